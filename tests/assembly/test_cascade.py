"""Parts that run in turn: what they answer, what does not run, and where their thresholds come from."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import brickyard as by
from brickyard.assembly._cascade import most_wrong
from brickyard.base._errors import BrickyardWarning, DataError, FileError, OptionError
from brickyard.base._records import AssemblyManifest
from brickyard.export import export_module, export_onnx, torch_program
from brickyard.inputs._datasets import ImageData
from brickyard.runtime._profiling import count_flops
from brickyard.testing import Residual, chain, randomised
from shell import run

CLASSES = 4
AGREEMENT = 0.9
COLOURS = torch.tensor([[1.0, 0.2, 0.1], [0.1, 1.0, 0.2], [0.2, 0.1, 1.0], [0.9, 0.9, 0.1]])


def drawn(count: int, seed: int, noise: float = 0.75) -> tuple[Tensor, Tensor]:
    """Images whose class is their colour, more or less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    rest = torch.rand(count, 3, 8, 8, generator=generator)
    level = torch.rand(count, 1, 1, 1, generator=generator) * noise
    return COLOURS[labels][:, :, None, None] * (1 - level) + rest * level, labels


TRAIN, STREAM, TEST = drawn(80, 0), drawn(300, 1)[0], drawn(200, 2)


def fitted(make: type[nn.Module], seed: int) -> nn.Module:
    """A source whose last layer is fitted to the colours, so that its answers are no noise."""
    model = randomised(make(), seed).eval()
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, given, found: seen.append(given[0].double()))
    with torch.no_grad():
        model(TRAIN[0])
        hook.remove()
        x = torch.cat([seen[0], torch.ones(len(seen[0]), 1).double()], 1)
        wanted = 8 * nn.functional.one_hot(TRAIN[1], CLASSES).double()
        ridge = 1e-3 * torch.eye(x.shape[1]).double()
        found = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted)
        last.weight.copy_(found[:-1].T)
        last.bias.copy_(found[-1])
    return model


@pytest.fixture(scope="module")
def parts() -> list[by.Component]:
    found = []
    for seed, (make, task) in enumerate([(chain, [0, 1]), (Residual, [2]), (chain, [3])]):
        source = fitted(make, seed)
        relevance = by.locate(source, TRAIN)
        whole = by.Budget(flops=1.0, factors=False)
        found.append(by.disassemble(source, relevance, task=task, budget=whole, heal="none"))
    return found


@pytest.fixture(scope="module")
def pair(parts) -> list[by.Component]:
    return parts[:2]


@pytest.fixture(scope="module")
def cascade(parts) -> by.Assembly:
    return by.assemble(parts, form="cascade", calibration=STREAM, agreement=AGREEMENT)


def changed(whole: by.Assembly, *thresholds: float | None) -> by.Assembly:
    record = whole.manifest.cascade.model_copy(update={"thresholds": thresholds})
    return whole.with_manifest(cascade=record)


def rows_of(whole: by.Assembly, images: Tensor) -> list[int]:
    """How many rows each part runs on."""
    found = [0] * len(whole.stages)

    def count(index: int):
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[index] += len(given[0])

        return hook

    first = [one.network.layer(one.network.layer_names[0]) for one in whole.parts]
    hooks = [layer.register_forward_pre_hook(count(index)) for index, layer in enumerate(first)]
    with torch.no_grad():
        whole(images)
    for hook in hooks:
        hook.remove()
    return found


# -- answers -----------------------------------------------------------------------------------------------


def test_without_thresholds_it_equals_parallel(parts, cascade) -> None:
    parallel = by.assemble(parts)
    never = changed(cascade, None, None, None)
    with torch.no_grad():
        wanted = parallel(TEST[0])
        torch.testing.assert_close(never(TEST[0]), wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(cascade(TEST[0]), wanted, rtol=1e-3, atol=1e-3)  # the control
    assert rows_of(never, TEST[0]) == [len(TEST[0])] * 3
    assert torch.equal(by.assemble([cascade])(TEST[0]), wanted)
    assert by.assemble([cascade]).manifest.form == "parallel"


@pytest.mark.parametrize("scaling", ["auto", "logit-mean", "affine"])
def test_what_ran_says_what_it_says_in_parallel_and_the_rest_is_expected(pair, scaling) -> None:
    more = {"images": [TRAIN, TRAIN]} if scaling == "affine" else {}
    options = {"calibration": STREAM, "agreement": AGREEMENT}
    whole = by.assemble(pair, form="cascade", scaling=scaling, **options, **more)
    with torch.no_grad():
        full, found, order = by.assemble(pair, scaling=scaling, **more)(TEST[0]), whole(TEST[0]), whole.order(TEST[0])
    record = whole.manifest.cascade
    columns = [[0, 1], [2]]
    ended = 0
    for row, (a, b) in enumerate(zip(full, found, strict=True)):
        first = int(order[row, 0])
        if float(a[columns[first]].max()) > record.thresholds[first]:
            a = a.clone()
            a[columns[1 - first]] = torch.tensor(record.expected)[columns[1 - first]]
            ended += 1
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
    assert 0 < ended < len(TEST[0])
    open_rows = len(TEST[0]) - ended
    firsts = order[:, 0].bincount(minlength=2).tolist()
    counted = rows_of(whole, TEST[0])
    assert sum(counted) == len(TEST[0]) + open_rows  # those that ended have not run the other part
    assert all(own >= first for own, first in zip(counted, firsts, strict=True))
    assert sum(whole.predict_proba(TEST[0])[0]).item() == pytest.approx(1)


def test_an_answer_is_always_of_a_part_that_ran(cascade) -> None:
    said = list(zip(cascade.manifest.cascade.expected, (0, 0, 1, 2), strict=True))
    least = [max(value for value, part in said if part != own) for own in range(3)]
    low = changed(cascade, *least)
    with torch.no_grad():
        found, order = low(TEST[0]), low.order(TEST[0])
    owner, expected = torch.tensor([0, 0, 1, 2]), torch.tensor(low.manifest.cascade.expected)
    assert sum(rows_of(low, TEST[0])) <= sum(rows_of(cascade, TEST[0]))
    ran = torch.stack([(found != expected)[:, owner == part].any(1) for part in range(3)], 1)
    answers = owner[found.argmax(1)][:, None]
    assert bool(ran.gather(1, answers).all())
    assert not bool(ran.all(1).all())
    assert bool((order[:, :1] != answers).any())  # the control: not all are of the first part


def test_batches_devices_and_types(cascade) -> None:
    with torch.no_grad():
        whole = cascade(TEST[0])
        single = torch.cat([cascade(one) for one in TEST[0].split(1)])
        torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)
        wide = copy.deepcopy(cascade).double()
        assert wide(TEST[0].double()).dtype == torch.float64
        torch.testing.assert_close(wide(TEST[0].double()).float(), whole, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cascade.fused()(TEST[0]), whole, rtol=1e-4, atol=1e-4)
    assert {value.device.type for stage in copy.deepcopy(cascade).to("meta").stages for value in stage.buffers()} == {
        "meta"
    }


# -- thresholds --------------------------------------------------------------------------------------------


def by_hand(parts: list[by.Component], images: Tensor, agreement: float, seed: int = 0):
    """Thresholds by trying every level on the images held back, with another word for each step."""
    with torch.no_grad():
        logits = by.assemble(parts)(images).double().numpy()
        order = (
            by.assemble(parts, form="cascade", calibration=images, agreement=agreement, seed=seed)
            .order(images)
            .tolist()
        )
    count = len(parts)
    owner = np.repeat(range(count), [len(part.classes) for part in parts])
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).numpy()
    held, own = drawn[: len(images) // 2], drawn[len(images) // 2 :]
    best = np.stack([logits[:, owner == part].max(1) for part in range(count)], 1)
    winner = best.argmax(1)
    expected = [logits[own][winner[own] != part, k].mean() for k, part in enumerate(owner)]
    least = [max(value for value, part in zip(expected, owner, strict=True) if part != p) for p in range(count)]
    wins = [np.sort(best[own][winner[own] == part, part]) for part in range(count)]
    usual = [values[(len(values) - 1) // 2] for values in wins]
    spread = [middle - np.quantile(values, 0.1) for middle, values in zip(usual, wins, strict=True)]
    most = max(k for k in range(len(held)) if binomial(len(held), k, 1 - agreement) <= 0.05)

    def answer(row: int, level: float) -> tuple[int, int]:
        for turn in range(1, count + 1):
            ran = order[row][:turn]
            part = max(ran, key=lambda p: best[row, p])
            sure = best[row, part] > least[part] and levels_of[row, part] > level
            if sure or turn == count:
                return part, turn
        raise AssertionError

    levels_of = (best - np.array(usual)) / np.array(spread)
    levels = sorted(levels_of[held].ravel())
    wrong = {level: sum(answer(row, level)[0] != winner[row] for row in held) for level in levels}
    level = min(one for one in levels if wrong[one] <= most)
    thresholds = [max(least[p], usual[p] + level * spread[p]) for p in range(count)]
    ran = [order[row][: answer(row, level)[1]] for row in held]
    return thresholds, expected, wrong[level], ran


def binomial(n: int, k: int, share: float) -> float:
    return sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k + 1))


@pytest.mark.parametrize("count", [2, 3])
def test_thresholds_are_those_of_trying_every_level(parts, count) -> None:
    whole = by.assemble(parts[:count], form="cascade", calibration=STREAM, agreement=AGREEMENT)
    record, held = whole.manifest.cascade, len(STREAM) // 2
    thresholds, expected, wrong, ran = by_hand(parts[:count], STREAM, AGREEMENT)
    assert record.expected == pytest.approx(expected, rel=1e-9)
    assert record.agreement == pytest.approx(1 - wrong / held)
    assert (record.wanted, record.images, record.held_back) == (AGREEMENT, len(STREAM), held)
    costs = [count_flops(network, shape) for network, shape in whole.shaped_networks()]
    assert record.flops == pytest.approx(np.mean([sum(costs[p] for p in own) for own in ran]) / sum(costs))
    assert 0.2 < record.flops < 1
    assert wrong > 0
    # between two levels that images have, any threshold does the same
    assert sum(rows_of(changed(whole, *thresholds), STREAM)) == sum(rows_of(whole, STREAM))
    assert record.thresholds == pytest.approx(thresholds, rel=1e-6)
    stricter = by.assemble(parts[:count], form="cascade", calibration=STREAM, agreement=0.97).manifest.cascade
    assert all(a >= b for a, b in zip(stricter.thresholds, record.thresholds, strict=True))
    assert stricter.flops > record.flops  # the control


@pytest.mark.parametrize(("n", "share"), [(59, 0.05), (299, 0.01), (500, 0.1), (2000, 0.01)])
def test_the_most_wrong_answers_are_those_of_the_binomial_distribution(n, share) -> None:
    most = most_wrong(n, share, 0.05)
    assert binomial(n, most, share) <= 0.05 < binomial(n, most + 1, share)
    assert most_wrong(5, share, 0.05) == -1


def test_a_part_that_answers_no_image_is_never_final(pair) -> None:
    own = drawn(400, 5, noise=0.3)
    images = own[0][own[1] < 2]
    whole = by.assemble(pair, form="cascade", calibration=images, agreement=AGREEMENT)
    answers = by.assemble(pair)(images).argmax(1)
    assert int((answers == 2).sum()) == 0
    assert whole.manifest.cascade.thresholds[1] is None
    with torch.no_grad():
        assert torch.equal(whole(images).argmax(1), answers)


# -- images ------------------------------------------------------------------------------------------------


def test_labels_do_not_matter_and_every_form_of_images_is_the_same(pair, tmp_path) -> None:
    labels = torch.zeros(len(STREAM), dtype=torch.long)
    options = {"form": "cascade", "agreement": AGREEMENT}
    wanted = by.assemble(pair, calibration=STREAM, **options).manifest.cascade
    forms = [
        (STREAM, labels),
        TensorDataset(STREAM, labels),
        DataLoader(TensorDataset(STREAM, labels), batch_size=32),
        ImageData(STREAM, labels, ["any"]),
        [STREAM[:100], (STREAM[100:], labels[100:])],
        STREAM.numpy(),
        list(STREAM),
    ]
    for form in forms:
        found = by.assemble(pair, calibration=form, **options).manifest.cascade
        assert found.thresholds == pytest.approx(wanted.thresholds, rel=1e-5)
        assert found.flops == pytest.approx(wanted.flops)
    other = by.assemble(pair, calibration=STREAM[:200], **options).manifest.cascade
    assert other.thresholds != pytest.approx(wanted.thresholds, rel=1e-5)  # the control


def test_what_cannot_run_in_turn_is_refused(parts, cascade, pair, monkeypatch) -> None:
    from brickyard.assembly import _cascade as module

    given = {"form": "cascade", "calibration": STREAM}
    with pytest.raises(OptionError, match="calibration=") as found:
        by.assemble(pair, form="cascade")
    assert found.value.code == "option-needs-data"
    for name in ("calibration", "agreement"):
        with pytest.raises(OptionError, match=f"{name}= is for form='cascade'"):
            by.assemble(pair, **{name: STREAM if name == "calibration" else 0.9})
    with pytest.raises(OptionError, match="there is one"):
        by.assemble(pair[:1], **given)
    with pytest.raises(OptionError, match="several parts know a class"):
        by.assemble([pair[0], pair[0]], on_duplicate="max", **given)
    with pytest.raises(OptionError, match=r"agreement=1\.5 is not a share"):
        by.assemble(pair, agreement=1.5, **given)
    with pytest.raises(OptionError, match="reads the features"):
        by.assemble(pair, scaling="mahalanobis", **given)
    with pytest.raises(OptionError, match="joint-head"):
        by.assemble(pair, scaling="joint-head", images=[TRAIN, TRAIN], **given)
    with pytest.raises(DataError, match="give 598 or more"):
        by.assemble(pair, **given)
    with pytest.raises(OptionError, match=r"assemble\(\[cascade\]\)"):
        by.finetune(cascade, [TRAIN] * 3)
    with pytest.raises(OptionError, match="another scaling"):
        cascade.with_scaling(None, None)
    monkeypatch.setattr(module, "_observed", lambda *_: pytest.fail("this must be refused before any work"))
    with pytest.raises(OptionError, match="one"):
        by.assemble(pair[:1], **given)


def test_what_saves_nothing_is_said(pair) -> None:
    noise = torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    record = by.assemble(pair, form="cascade", calibration=noise, agreement=AGREEMENT).manifest.cascade
    assert record.flops < 1  # on other noise
    same = [pair[0], pair[0].renamed({"0": "zero", "1": "one"})]
    with pytest.warns(BrickyardWarning, match="use form='parallel'"):
        by.assemble(same, form="cascade", calibration=STREAM, agreement=AGREEMENT)


# -- files, scores, exports --------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(cascade, tmp_path) -> None:
    again = by.load(cascade.save(tmp_path / "x.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(TEST[0]), cascade(TEST[0]))
        assert not torch.equal(again(TEST[0]), by.assemble([cascade])(TEST[0]))  # the control
    assert again.manifest == cascade.manifest
    assert "in turn      " in str(again)
    assert again.renamed({"2": "two"}).classes == ("0", "1", "two", "3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": (1e9,)}, "thresholds"),
        ({"thresholds": (-1e9, None, None)}, "below what other parts are expected"),
        ({"expected": (0.0,)}, "expected logits"),
        ({"wanted": 1.5}, "wanted"),
        ({"flops": math.nan}, "flops"),
        ({"thresholds": (math.inf, None, None)}, "thresholds"),
    ],
)
def test_hostile_values_are_refused(cascade, changes, message) -> None:
    text = cascade.manifest.model_dump()
    assert AssemblyManifest.model_validate(text) == cascade.manifest
    with pytest.raises(ValueError, match=message):
        AssemblyManifest.model_validate(text | {"cascade": text["cascade"] | changes})
    for wrong in (
        {"form": "parallel"},
        {"cascade": None},
        {"members": ((0, 1), (2,), (3,)), "classes": ("a", "b", "c")},
    ):
        with pytest.raises(ValueError, match="cascade"):
            AssemblyManifest.model_validate(text | wrong)


def test_files_whose_parts_cannot_run_in_turn_are_refused(cascade, tmp_path) -> None:
    path = cascade.save(tmp_path / "x.safetensors")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    dense = {"scaling.matrix": torch.full((4, 4), 0.5), "scaling.shift": torch.zeros(4)}
    weights = "cascade.glance.weights"
    cases = [
        (tensors | dense, "answers depend on each other"),
        ({name: value for name, value in tensors.items() if name != weights}, weights),
        (tensors | {weights: tensors[weights][:2].clone()}, weights),
        (tensors | {"cascade.glance.bias": torch.tensor([0.0, torch.nan, 0.0])}, "cascade.glance.bias"),
    ]
    for number, (wrong, message) in enumerate(cases):
        save_file(wrong, tmp_path / f"{number}.safetensors", metadata)
        with pytest.raises(FileError, match=message):
            by.load(tmp_path / f"{number}.safetensors")
    apart = tensors | {"scaling.matrix": 2 * torch.eye(4), "scaling.shift": torch.zeros(4)}
    save_file(apart, tmp_path / "apart.safetensors", metadata)
    assert by.load(tmp_path / "apart.safetensors").stages  # the control


def test_the_command_takes_a_folder_of_pictures(pair, tmp_path) -> None:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    images = (STREAM[:160] * 255).round().to(torch.uint8)
    for k, image in enumerate(images):
        place = tmp_path / "photos" / ("more" if k >= 100 else "") / f"{k:03}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place)
    files = [part.save(tmp_path / f"{k}.safetensors") for k, part in enumerate(pair)]
    given = ("assemble", *files, "--form", "cascade", "-o", tmp_path / "x.safetensors")
    result = run(*given, "--calibration", tmp_path / "photos", "--agreement", 0.9, "--json")
    told, found = json.loads(result.stdout), by.load(tmp_path / "x.safetensors").manifest.cascade
    assert (told["form"], told["cascade"]["flops"], found.images) == ("cascade", found.flops, 160)
    wanted = by.assemble(pair, form="cascade", calibration=images, agreement=0.9).manifest.cascade
    assert found.thresholds == pytest.approx(wanted.thresholds, rel=1e-5)
    other = "-o", tmp_path / "y.safetensors"
    assert "add --calibration" in " ".join(run(*given[:-2], *other, code=1).stderr.split())
    idle = run("assemble", *files, "--agreement", 0.9, *other, code=1).stderr
    assert "it applies to --form cascade" in " ".join(idle.split())
    run("assemble", *files, *other)  # the control


def test_scores_count_what_ran(cascade) -> None:
    scores = by.evaluate(cascade, [TEST] * 3, latency=False)
    ran = rows_of(cascade, TEST[0])
    costs = [count_flops(network, shape) for network, shape in cascade.shaped_networks()]
    row = scores.row("assembled")
    assert row.flops == round(sum(a * b for a, b in zip(ran, costs, strict=True)) / len(TEST[0]))
    assert row.flops < sum(costs)
    with torch.no_grad():
        right = (cascade(TEST[0]).argmax(1) == TEST[1]).double().mean()
    assert row.accuracy == pytest.approx(100 * float(right))
    assert any("of the FLOPs of all parts" in note for note in scores.notes)


def test_onnx_runs_parts_in_turn_too(pair, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    cascade = by.assemble(pair, form="cascade", calibration=STREAM, agreement=AGREEMENT)
    record = export_onnx(cascade, tmp_path / "x.onnx", check_images=TEST[0][:20])
    assert record.error <= 1e-5
    proto = onnx.load(record.path)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node].count("If") == 4  # two parts at two turns
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for images in (TEST[0], TEST[0][:1], TEST[0][7:12]):
        logits, shares = session.run(["logits", "probabilities"], {"images": images.numpy()})
        with torch.no_grad():
            wanted = cascade(images)
        assert np.abs(logits - wanted.numpy()).max() <= 1e-4 * float(wanted.abs().max())
        assert np.allclose(shares, cascade.predict_proba(images).numpy(), atol=1e-5)
    with torch.no_grad():
        assert np.abs(logits - by.assemble([cascade])(images).numpy()).max() > 1e-3  # the control


def test_what_cannot_be_exported_is_said_before_any_work(cascade, tmp_path) -> None:
    for call in (
        lambda: export_module(cascade, tmp_path / "x.py"),
        lambda: torch_program(cascade),
        lambda: export_onnx(cascade, tmp_path / "x.onnx", int8=True, images=STREAM),
    ):
        with pytest.raises(OptionError, match=r"export assemble\(\[cascade\]\)"):
            call()
    assert not list(tmp_path.iterdir())
