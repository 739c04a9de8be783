"""The scaling that needs no labelled images: a part loses where its logits are lower than on its own images."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import brickyard as by
from brickyard.component._depths import Depths
from brickyard.component._familiarity import Familiarity
from brickyard.export import export_module, export_onnx
from brickyard.testing import chain, randomised
from errors import refused
from nets import relative

DATA = (torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 4)
OTHERS = (
    torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * torch.linspace(0, 1, 9)[:, None, None, None]
)


def part(seed: int, task: list[int], **options) -> by.Component:
    source = randomised(chain(), seed)
    relevance = by.locate(source, DATA, classes=[f"{seed}{name}" for name in "abcd"])
    return by.disassemble(source, relevance, task=task, **options)


@pytest.fixture(scope="module")
def parts() -> list[by.Component]:
    return [part(0, [2, 0]), part(1, [1, 3, 2])]


def middle(values: Tensor) -> Tensor:
    values = values.sort().values
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def at(values: Tensor, share: float) -> Tensor:
    values, place = values.sort().values, share * (len(values) - 1)
    low, high = values[int(place)], values[min(int(place) + 1, len(values) - 1)]
    return low + (place % 1) * (high - low)


def inside(one: by.Component, own: Tensor, images: Tensor) -> Tensor:
    """How unusual images are before the convolutions of a chain, by hooks and from the definition."""
    network, seen = one.network, {}
    hooks = [
        network.layer(name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].double()}))
        for name in ("conv1", "conv2")
    ]
    numbers = []
    for x in (own, images):
        one.logits(x)
        numbers.append(
            [torch.cat([v.flatten(2).mean(2), v.flatten(2).var(2, correction=0).sqrt()], 1) for v in seen.values()]
        )
    for hook in hooks:
        hook.remove()
    found = []
    for mine, theirs in zip(*numbers, strict=True):
        known, rest = mine[::2], mine[1::2]
        deviation = ((known - known.mean(0)) ** 2).mean(0).sqrt()
        deviation = deviation.maximum(0.01 * (deviation**2).mean().sqrt())
        far, rest = ((((z - known.mean(0)) / deviation) ** 2).mean(1).sqrt() for z in (theirs, rest))
        found.append((1 + ((far - middle(rest)) / (at(rest, 0.9) - middle(rest))).clamp_min(0)).log())
    return (4 / 3 * found[0] + 2 / 3 * found[1]) / 2


def by_hand(parts: list[by.Component], images: Tensor, depth: bool = True) -> Tensor:
    """The rule written down once more, from the parts' answers to their own images."""
    found = []
    for one in parts:
        x, y = DATA
        own = torch.cat([x[y == k] for k in one.manifest.task])
        energy = one.logits(own).double().exp().sum(1).log()
        usual, low = middle(energy), at(energy, 0.1)
        logits = one.logits(images).double()
        below = (1 + ((usual - logits.exp().sum(1).log()) / (usual - low)).clamp_min(0)).log()
        below = below + 1.5 * inside(one, own, images) if depth else below
        found.append(logits - ((usual - low) * below)[:, None])
    return torch.cat(found, 1)


def written(whole: by.Assembly, folder: Path) -> Callable[[Tensor], Tensor]:
    """The model of an assembly's Python file."""
    export_module(whole, folder / "whole.py")
    spec = importlib.util.spec_from_file_location("whole", folder / "whole.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load()
    return lambda images: model(module.preprocess(images))


def test_it_is_the_default_and_follows_its_rule(parts) -> None:
    with torch.no_grad():
        whole = by.assemble(parts)
        assert whole.manifest.scaling.name == "auto"
        assert "lower than on the part's own images" in str(whole)
        assert relative(whole(OTHERS).double(), by_hand(parts, OTHERS)) < 1e-6
        plain = by.assemble(parts, scaling="none")
        assert torch.equal(plain(OTHERS), torch.cat([one.logits(OTHERS) for one in parts], 1))
        assert relative(plain(OTHERS), whole(OTHERS)) > 1e-4  # the controls
        assert relative(by_hand(parts, OTHERS, depth=False), by_hand(parts, OTHERS)) > 1e-4
        assert torch.equal(whole.side_by_side(OTHERS), plain(OTHERS))


@pytest.mark.parametrize("form", ["padded", "grouped"])
def test_joined_forms_follow_it_by_their_outputs(parts, form: str) -> None:
    with torch.no_grad():
        whole = by.assemble(parts, form=form)
        assert relative(whole(OTHERS).double(), by_hand(parts, OTHERS, depth=False)) < 1e-5
        assert "unusual" not in str(whole)
        assert "unusual" in str(by.assemble(parts))


def test_the_form_that_is_fastest_changes_no_answer(parts) -> None:
    whole = by.assemble(parts, form="auto")
    with torch.no_grad():
        assert relative(whole(OTHERS).double(), by_hand(parts, OTHERS, depth=False)) < 1e-5


def test_parts_with_layers_in_common_look_once() -> None:
    first = randomised(chain(), 0)
    second = copy.deepcopy(first)
    randomised(second.get_submodule("linear"), 5)
    pair = []
    for number, source in enumerate((first, second)):
        relevance = by.locate(source, DATA, classes=[f"{number}{name}" for name in "abcd"])
        pair.append(by.disassemble(source, relevance, task=[2 * number, 1], budget=by.Budget(flops=1.0)))
    whole = by.assemble(pair)
    assert [parts for parts, _ in whole.lookers] == [(0, 1)]
    means = sum(node.target == "mean" for node in whole.lookers[0][1].nodes)
    assert means == 2  # before conv1 and conv2, once for both
    with torch.no_grad():
        assert relative(whole(OTHERS).double(), by_hand(pair, OTHERS)) < 1e-6
        assert torch.equal(whole.unshared()(OTHERS), whole(OTHERS))


def test_no_gradient_flows_through_what_is_unusual(parts) -> None:
    whole = by.assemble(parts)
    flat = torch.full((4, 3, 8, 8), 0.5)  # no channel of the image deviates: the root of zero has no slope
    whole(flat).sum().backward()
    slopes = [value.grad for value in whole.parameters() if value.grad is not None]
    assert slopes
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
    whole.zero_grad()


def test_files_and_exports_follow_it(parts, tmp_path: Path) -> None:
    import onnxruntime

    whole = by.assemble(parts)
    with torch.no_grad():
        wanted = whole(OTHERS)
    assert torch.equal(by.load(whole.save(tmp_path / "whole.safetensors"))(OTHERS), wanted)
    export_onnx(whole, tmp_path / "whole.onnx")
    (logits,) = onnxruntime.InferenceSession(tmp_path / "whole.onnx").run(["logits"], {"images": OTHERS.numpy()})
    assert relative(torch.from_numpy(logits), wanted) < 1e-5
    with torch.no_grad():
        assert torch.equal(written(whole, tmp_path)(OTHERS), wanted)


def test_channels_that_hardly_vary_have_numbers_that_half_precision_holds(parts) -> None:
    layer = parts[0].familiarity.depths.layers[1]
    seen = 1e-7 * torch.rand(40, layer.size, generator=torch.Generator().manual_seed(0))
    found = Depths.fit([layer], [seen])
    assert bool(torch.isfinite(found.half()([1e-3 * torch.ones(2, layer.size)])).all())
    with torch.no_grad():
        rough = by.assemble([copy.deepcopy(one).half() for one in parts])(OTHERS)
        assert relative(rough.double(), by.assemble(parts)(OTHERS).double()) < 0.02


def test_fused_parts_look_at_the_same(parts) -> None:
    with torch.no_grad():
        wanted = by.assemble(parts)(OTHERS)
        assert relative(by.assemble(parts).fused()(OTHERS), wanted) < 1e-5
        assert relative(by.assemble([one.fused() for one in parts])(OTHERS), wanted) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [{"layer": "conv9"}, {"size": 5}, {"dims": (2,)}, {"dims": ()}, {"layer": "bn1"}],
    ids=["no such layer", "size", "too few positions", "no positions", "no weights over channels"],
)
def test_files_that_look_where_nothing_is_are_refused(parts, tmp_path: Path, changes: dict) -> None:
    one = parts[0]
    first, *more = one.familiarity.depths.layers
    size = one.familiarity.depths.mean.numel()
    depths = Depths.blank([first.model_copy(update=changes), *more])
    values = [torch.ones(count) for count in (size - first.size + changes.get("size", first.size),) * 2]
    depths = Depths(depths.layers, *values, *(torch.ones(len(depths.layers)) for _ in range(3)))
    known = Familiarity(*one.familiarity.buffers(recurse=False), depths)
    statistics = one.manifest.statistics.model_copy(update={"familiarity": known.record})
    made = by.Component(one.network, one.manifest.model_copy(update={"statistics": statistics}), one.skeleton, known)
    with refused("file-inconsistent", repr(depths.layers[0].layer)):
        by.load(made.save(tmp_path / "wrong.safetensors"))


def test_a_class_that_is_left_out_changes_no_other(parts) -> None:
    with torch.no_grad():
        whole, fewer = by.assemble(parts), by.assemble(parts, without=["1d"])
        kept = [whole.classes.index(name) for name in fewer.classes]
        assert torch.equal(fewer(OTHERS), whole(OTHERS)[:, kept])


def test_what_it_cannot_know_it_leaves_alone_and_says_so(parts) -> None:
    few = part(1, [1, 3])
    statistics = few.manifest.statistics.model_copy(update={"energy": None})
    known = Familiarity(*few.familiarity.buffers(recurse=False))
    without = by.Component(few.network, few.manifest, few.skeleton, known)
    with torch.no_grad():
        whole = by.assemble([parts[0], without])
        assert relative(whole(OTHERS).double(), by_hand([parts[0], few], OTHERS, depth=False)) < 1e-6
    whole = by.assemble([parts[0], few.with_manifest(statistics=statistics)])
    assert not whole.manifest.scaling.energy
    assert "too few labelled images of the parts for 1b, 1d" in str(whole)
    assert torch.equal(whole(OTHERS), whole.side_by_side(OTHERS))
    assert by.assemble(parts[:1]).manifest.scaling.notes == ("one part needs no scaling",)


def test_parts_that_vote_are_compared_by_log_probabilities() -> None:
    source = randomised(chain(), 0)
    relevance = by.locate(source, DATA)
    pair = [by.disassemble(source, relevance, task=task, reject=True) for task in ([0, 1], [2, 3])]
    whole, wanted = by.assemble(pair, votes=True), by.assemble(pair, votes=True, scaling="log-probability")
    with torch.no_grad():
        assert torch.equal(whole(OTHERS), wanted(OTHERS))


NAMES = ["cat", "dog", "hen", "cow"]


@pytest.mark.parametrize(
    ("classes", "rejects", "votes"),
    [
        ((NAMES, NAMES[::-1]), (True, True), True),
        ((NAMES, [*NAMES[::-1][:3], "owl"]), (True, True), False),  # the second does not know cats
        ((NAMES, NAMES[::-1]), (True, False), False),
        ((None, None), (True, True), False),  # numbers of classes say nothing in another source
    ],
)
def test_parts_vote_where_all_of_them_can(classes, rejects, votes: bool) -> None:
    sources = [randomised(chain(), seed) for seed in (0, 1)]
    pair = [
        by.disassemble(one, by.locate(one, DATA, classes=names), task=task, reject=reject)
        for one, names, task, reject in zip(
            sources, classes, ([0, 1], [0, 1] if classes[0] else [2, 3]), rejects, strict=True
        )
    ]
    whole = by.assemble(pair)
    assert bool(whole.manifest.votes) == votes == whole.manifest.scaling.log_probability
    assert not by.assemble(pair, votes=False).manifest.votes
    assert not by.assemble(pair, scaling="none").manifest.votes
    assert ("reject=True would vote" in str(whole)) == (rejects == (True, False))
    if not votes:
        return
    with torch.no_grad():
        first, second = (part.network(OTHERS).double().log_softmax(1) for part in pair)
        by_hand = (first[:, [0, 1, 3, 2]] + second[:, [3, 2, 0, 1]]) / 2  # cat, dog, cow, hen
    torch.testing.assert_close(whole(OTHERS).double(), by_hand, rtol=1e-4, atol=1e-5)


def test_parts_of_one_source_vote_by_the_numbers_of_classes() -> None:
    source = randomised(chain(), 0)
    relevance = by.locate(source, DATA)
    pair = [by.disassemble(source, relevance, task=task, reject=True) for task in ([0, 1], [2, 3])]
    assert by.assemble(pair).manifest.votes == ((2, 3), (0, 1))


def test_with_labelled_images_it_learns_from_them(parts) -> None:
    own = [(DATA[0], torch.tensor([0, 1, 0, 1]).repeat(15)), (DATA[0], torch.tensor([0, 1, 2, 1]).repeat(15))]
    data = [(x, torch.tensor(one.manifest.task)[y]) for (x, y), one in zip(own, parts, strict=True)]
    assert by.assemble(parts, images=data).manifest.scaling.name == "lda"
    assert by.assemble(parts, images=data, form="padded").manifest.scaling.name == "joint-head"


@pytest.mark.parametrize("scaling", ["lda", "joint-head"])
def test_labelled_images_begin_where_it_ends(parts, scaling: str, tmp_path: Path) -> None:
    """The stronger the prior, the nearer to what is done without labels."""
    data = [(DATA[0], torch.tensor(one.manifest.task)[torch.arange(60) % len(one.classes)]) for one in parts]
    found = {}
    with torch.no_grad():
        start = by.assemble(parts)(OTHERS)
        for strength in (1e9, 1.0, 1e-3):
            whole = by.assemble(parts, images=data, scaling=scaling, strength=strength)
            found[strength] = relative(whole(OTHERS), start)
            again = by.load(whole.save(tmp_path / f"{strength}.safetensors"))
            assert torch.equal(again(OTHERS), whole(OTHERS))
    assert found[1e9] < 1e-4
    assert found[1e9] < found[1.0] < found[1e-3]


def test_labelled_images_and_a_look_inside_in_a_plain_module(parts, tmp_path: Path) -> None:
    data = [(DATA[0], torch.tensor(one.manifest.task)[torch.arange(60) % len(one.classes)]) for one in parts]
    whole = by.assemble(parts, images=data)
    assert whole.manifest.scaling.gate
    assert whole.manifest.scaling.depth == 1.5
    with torch.no_grad():
        assert torch.equal(written(whole, tmp_path)(OTHERS), whole(OTHERS))
