"""Numbers: the same bytes from the same seed, agreement between types and threads, and what cannot get worse."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import Graph, analyse, trace
from brickyard.axes._tracing import read_network
from brickyard.base._errors import DataError
from brickyard.base._options import TrainingOptions
from brickyard.healing import _heal as healing
from brickyard.healing._heal import heal_network
from brickyard.healing._places import Shown
from brickyard.relevance._contribution import ContributionSums, class_sums, contributions
from brickyard.surgery._join import cut
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from brickyard.training._finetune import finetune
from errors import refused
from nets import Drawn, images, keep_sets, plans
from shell import python

ROOT = Path(__file__).parent.parent
DATA = (torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 4)
NETS = [chain, Residual, Branches, SqueezeExcite]
CHOICES = ("mda", "damage", "l1", "fpgm", "hrank", "activation", "taylor", "random")
SCALINGS = ("none", "log-probability", "logit-mean", "magnitude", "mahalanobis", "affine", "joint-head", "lda")


# -- the same bytes ------------------------------------------------------------------------------------------


def made(folder: Path, seed: int = 0, images: Tensor = DATA[0]) -> dict[str, str]:
    """A hash of every kind of file that can be made, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model, other = randomised(Residual(), 0), randomised(chain(), 1)
    data = images, DATA[1]
    relevance = by.locate(model, data, seed=seed)
    found = {"relevance": relevance}
    for select in CHOICES:
        found[select] = by.disassemble(
            model, relevance, task=["2", "0"], budget=by.Budget(flops=0.5), select=select, seed=seed
        )
    second = by.disassemble(other, by.locate(other, data, classes=["e", "f", "g", "h"], seed=seed), task=["e", "h"])
    parts = [found["mda"], second]
    for scaling in SCALINGS:
        few = {"images": [data, data], "shots": 5} if scaling in ("affine", "joint-head", "lda") else {}
        found[f"scaled {scaling}"] = by.assemble(parts, scaling=scaling, seed=seed, **few)
    training = TrainingOptions(epochs=2, augment=True, batch_size=8, seed=seed)
    found["trained"] = finetune(found["mda"], data, training=training)
    hashes = {}
    for name, item in found.items():
        path = item.save(folder / f"{name}.safetensors", overwrite=True)
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_here_and_in_another_process(tmp_path) -> None:
    first, second = made(tmp_path / "1"), made(tmp_path / "2")
    assert first == second
    for name, value in made(tmp_path / "4", images=DATA[0].flip(0)).items():
        assert value != first[name], name
    other = made(tmp_path / "3", seed=5)
    assert other["relevance"] != first["relevance"]
    assert other["random"] != first["random"]
    assert other["trained"] != first["trained"]
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1); torch.manual_seed(99)\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r}); from test_numbers import made\n"
        "print(sorted(made(Path('made')).items()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    assert python(code, cwd=tmp_path, env=environment).strip() == repr(sorted(first.items()))


# -- types, threads, layouts, batches ------------------------------------------------------------------------


def component(make, dtype=torch.float32, threads: int = 1, batch_size: int = 64, last: bool = False):
    """Relevances, a component, and its answers in float64."""
    model = randomised(make(), 0).to(dtype)
    x = DATA[0].contiguous(memory_format=torch.channels_last) if last else DATA[0]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        relevance = by.locate(model, (x, DATA[1]), batch_size=batch_size)
        part = by.disassemble(model, relevance, task=["1", "3"], budget=by.Budget(flops=0.5))
    finally:
        torch.set_num_threads(before)
    return relevance, part, part.logits(DATA[0]).double()


@cache
def exact(make):
    return component(make, torch.float64)


def far(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


# Bounds of docs/trust.md: of contributions, and of a component's logits; shares of the largest entry.
BOUNDS = {
    "float32": ({"dtype": torch.float32}, 2e-6, 1e-4),
    "two threads": ({"threads": 2}, 2e-6, 1e-4),
    "batches of 7": ({"batch_size": 7}, 2e-6, 1e-4),
    "batches of 1": ({"batch_size": 1}, 2e-6, 1e-4),
    "channels last": ({"last": True}, 2e-6, 1e-4),
    "float16": ({"dtype": torch.float16}, 4e-3, 5e-3),
    "bfloat16": ({"dtype": torch.bfloat16}, 3e-2, 5e-2),
}


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "two threads")) for name in BOUNDS]
)
def test_types_threads_batches_and_layouts_agree(make, name) -> None:
    options, sums, logits = BOUNDS[name]
    relevance, part, answers = component(make, **options)
    wanted, best, goal = exact(make)
    for layer in wanted.layers:
        assert far(relevance.sum(layer), wanted.sum(layer)) <= sums, layer
        assert float((relevance.hard(layer) != wanted.hard(layer)).float().mean()) <= 0.05, layer
    if "dtype" not in options or options["dtype"] == torch.float32:
        assert all(torch.equal(relevance.hard(layer), wanted.hard(layer)) for layer in wanted.layers)
        assert part.manifest.axes == best.manifest.axes
    if part.manifest.axes == best.manifest.axes:
        assert far(answers, goal) <= logits
    assert all(bool(torch.isfinite(value).all()) for value in part.state_dict().values())
    assert next(part.parameters()).dtype == options.get("dtype", torch.float32)


def test_another_network_is_not_within_the_bounds() -> None:
    found = component(chain)[2]
    other = randomised(chain(), 1)
    part = by.disassemble(other, by.locate(other, DATA), task=["1", "3"], budget=by.Budget(flops=0.5))
    assert far(part.logits(DATA[0]).detach(), found) > 0.3


# -- contributions -------------------------------------------------------------------------------------------


@st.composite
def layers(draw) -> tuple[nn.Conv2d | nn.Linear, Tensor]:
    """A layer of any kind whose contributions are summed, and its input."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        layer: nn.Conv2d | nn.Linear = nn.Linear(draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.booleans()))
        shape = (draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 4), max_size=2)), layer.in_features)
    else:
        groups, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        padding = [st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2))]
        layer = nn.Conv2d(
            groups * draw(st.integers(1, 3)),
            groups * draw(st.integers(1, 3)),
            draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
            stride,
            draw(st.one_of([*padding, st.sampled_from(["same", "valid"])] if stride == 1 else padding)),
            draw(st.integers(1, 2)),
            groups,
            draw(st.booleans()),
            draw(st.sampled_from(["zeros", "reflect", "circular", "replicate"])),
        )
        shape = (draw(st.integers(1, 4)), layer.in_channels, draw(st.integers(8, 11)), draw(st.integers(8, 11)))
    return randomised(layer.double()), torch.randn(shape, generator=generator, dtype=torch.float64)


def alone(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Summed hidden maps (images, outputs, inputs of a group): the real layer runs with all other inputs at zero."""
    dim = -1 if isinstance(layer, nn.Linear) else 1
    groups = getattr(layer, "groups", 1)
    inputs, outputs = x.shape[dim] // groups, len(layer.weight) // groups
    found = torch.zeros(len(x), len(layer.weight), inputs, dtype=x.dtype)
    without = layer(torch.zeros_like(x))  # the bias
    for channel in range(x.shape[dim]):
        only = torch.zeros_like(x)
        only.select(dim, channel).copy_(x.select(dim, channel))
        maps = (layer(only) - without).movedim(dim, 1).flatten(2 if x.ndim > 2 else 1)
        maps = maps.unsqueeze(2) if x.ndim == 2 else maps
        rows = slice(channel // inputs * outputs, (channel // inputs + 1) * outputs)
        found[:, rows, channel % inputs] = maps.sum(2)[:, rows]
    return found


@settings(max_examples=80, deadline=None, derandomize=True)
@given(drawn=layers(), cut_at=st.integers(1, 3), last=st.booleans())
def test_contributions_are_those_of_the_real_layer_with_all_else_at_zero(drawn, cut_at, last) -> None:
    layer, x = drawn
    direct = alone(layer, x)
    size = direct.abs().max().clamp_min(1e-300)
    assert (contributions(layer, x) - direct).abs().max() <= 1e-10 * size
    output = (layer(x) - layer(torch.zeros_like(x))).movedim(-1 if isinstance(layer, nn.Linear) else 1, 1)
    output = output.reshape(len(x), len(layer.weight), -1).sum(2)
    assert (contributions(layer, x).sum(2) - output).abs().max() <= 1e-10 * size
    sums = ContributionSums(layer)
    laid = x.contiguous(memory_format=torch.channels_last) if last and x.ndim == 4 else x
    for batch in (laid[:cut_at], laid[cut_at:]):
        if len(batch):
            sums.add(batch)
    clamped = direct.clamp_min(0).sum(0)
    assert (sums.dense() - clamped).abs().max() <= 1e-10 * size
    if bool((direct < -1e-3 * size).any()):  # the control: without the clamp it is another number
        assert (sums.dense() - direct.sum(0)).abs().max() > 1e-10 * size


@pytest.mark.parametrize("make", NETS)
def test_sums_of_a_whole_network_are_those_of_what_its_layers_really_read(make) -> None:
    model = randomised(make(), 3).double()
    x = DATA[0][:10].double()
    read: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, given, __, name=name: read.update({name: given[0].clone()}))
        for name, layer in model.named_modules()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    found = class_sums(trace(model, x[:2]), x.split(4))
    assert len(found) >= 3
    for name, sums in found.items():
        direct = alone(model.get_submodule(name), read[name]).clamp_min(0).sum(0)
        assert far(sums.dense(), direct) <= 1e-10, name


def test_sums_over_large_images_do_not_overflow_in_half_precision() -> None:
    layer = nn.Conv2d(1, 2, 3, padding=1).half()
    nn.init.constant_(layer.weight, 0.25)
    x = torch.full((2, 1, 96, 96), 30.0, dtype=torch.float16)  # 30 * 96 * 96 is beyond float16
    half, double = ContributionSums(layer), ContributionSums(copy.deepcopy(layer).double())
    half.add(x)
    double.add(x.double())
    assert far(half.dense(), double.dense()) <= 1e-5


# -- blocks and training -------------------------------------------------------------------------------------


def pair() -> list[by.Component]:
    found = []
    for seed, names in enumerate((["a", "b", "c", "d"], ["e", "f", "g", "h"])):
        model = randomised(chain(), seed).double()
        found.append(by.disassemble(model, by.locate(model, DATA, classes=names), task=names[:2]))
    return found


def stepped(whole: by.Assembly, first: int, last: int, steps: int = 3, decay: float = 0.0) -> by.Assembly:
    """After training steps with the loss of some columns only."""
    free = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(free, 0.05, momentum=0.9, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(whole(DATA[0])[:, first:last], DATA[1] % 2).backward()
        optimizer.step()
    return whole


def free(whole: by.Assembly) -> by.Assembly:
    """An assembly whose numbers are all trained."""
    for parameter in whole.parameters():
        parameter.requires_grad_(True)
    return whole


@pytest.mark.parametrize("form", ["parallel", "grouped", "padded"])
def test_blocks_are_the_parts_after_training_one_of_them(form) -> None:
    first, second = pair()
    training = TrainingOptions(epochs=2, batch_size=8, lr=0.05)
    trained = finetune(first, DATA, training=training, validation=0)
    whole = by.assemble([trained, second], form=form, scaling="none")
    x = DATA[0].double()
    torch.testing.assert_close(whole(x), torch.cat([trained(x), second(x)], 1), rtol=1e-9, atol=1e-9)
    assert far(whole(x)[:, :2], first(x)) > 1e-3  # it did train
    before = by.assemble([first, second], form=form, scaling="none")(x)
    torch.testing.assert_close(whole(x)[:, 2:], before[:, 2:], rtol=1e-9, atol=1e-9)


def test_training_steps_on_one_part_leave_the_others_bits_alone() -> None:
    before = by.assemble(pair())(DATA[0])
    whole = stepped(free(by.assemble(pair())), 0, 2)
    found = whole(DATA[0])
    assert far(found[:, :2], before[:, :2]) > 1e-3
    assert torch.equal(found[:, 2:], before[:, 2:])


def test_weight_decay_moves_all_parts_but_frozen_ones() -> None:
    before = by.assemble(pair())(DATA[0])
    moved, kept = free(by.assemble(pair())), free(by.assemble(pair()))
    for parameter in kept.parts[1].parameters():
        parameter.requires_grad_(False)
    moved, kept = (stepped(whole, 0, 2, decay=0.01)(DATA[0]).detach() for whole in (moved, kept))
    assert far(moved[:, 2:], before[:, 2:]) > 1e-4
    assert far(kept[:, :2], before[:, :2]) > 1e-3
    assert torch.equal(kept[:, 2:], before[:, 2:])


@pytest.mark.parametrize("form", ["grouped", "padded"])
def test_one_network_of_parts_trains_as_one_network(form) -> None:
    """Zeros between the parts are trained: all in padded form, those of the classifier in grouped form."""
    whole = free(by.assemble(pair(), form=form))
    before = {name: value.detach().clone() for name, value in whole.joined.named_parameters()}
    stepped(whole, 0, 4)
    moved = {
        name for name, value in whole.joined.named_parameters() if bool((value.detach()[before[name] == 0] != 0).any())
    }
    assert moved == ({"linear.weight"} if form == "grouped" else {"conv2.weight", "linear.weight"})


@pytest.mark.parametrize("form", ["grouped", "padded"])
def test_one_part_trained_within_one_network_moves_the_others_from_the_second_step(form) -> None:
    """Once a number between the parts is not zero, one part reads the other, whose numbers then matter for its loss."""
    before = by.assemble(pair(), form=form)(DATA[0])
    found = [stepped(free(by.assemble(pair(), form=form)), 0, 2, steps=steps)(DATA[0]).detach() for steps in (1, 3)]
    assert all(far(logits[:, :2], before[:, :2]) > 1e-3 for logits in found)
    assert far(found[0][:, 2:], before[:, 2:]) <= 1e-12
    assert far(found[1][:, 2:], before[:, 2:]) > 1e-4


# -- the refit -----------------------------------------------------------------------------------------------


def as_it_is(model: nn.Module, example: Tensor) -> Graph:
    """A graph of a network in its own type, as of one that brings its values to a type itself: not in float32."""
    return analyse(read_network(model, example), example)


def error_of(graph, job, batches) -> Tensor:
    """The squared error of each output of a layer in float64, behind what follows it up to a nonlinearity.

    The steps that follow run as they are, in a copy of the network in float64.
    """
    total = torch.zeros(len(job.mixing.rows), dtype=torch.float64)
    network, layer = copy.deepcopy(job.network).double(), copy.deepcopy(job.layer).double()
    for x in batches:
        for index, node in job.runs:
            ours, theirs = ({net.nodes[0].name: x} for net in (job.network, graph.network))
            job.network.advance(ours, 0, index)
            graph.network.advance(theirs, 0, index)
            goal = job.tail.run(graph.network, graph.network.step(node, theirs), theirs).double()
            if job.rows is not None:
                goal = goal.index_select(job.mixing.channel_dim, torch.from_numpy(job.rows))
            values = {name: value.double() for name, value in ours.items() if isinstance(value, Tensor)}
            found = job.tail.run(network, layer(values[node.args[0].node]), values)
            goal, found = job.tail.behind(goal), job.tail.behind(found)
            total += (goal - found).square().movedim(job.mixing.channel_dim, 0).flatten(1).sum(1)
    return total


def residuals(graph, keep, batches, ridge: float, guarded: bool = True, rounds: int = healing.ROUNDS):
    """For each layer that is refitted: the errors of its outputs before and after its own refit; and the report."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    refit = healing.refit

    def watched(job, *given):
        before = error_of(graph, job, batches)
        done = refit(job, *given)
        seen.append((job.name, before, error_of(graph, job, batches)))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(healing, "refit", watched)
        patch.setattr(healing, "ROUNDS", rounds)
        if not guarded:
            patch.setattr(healing, "made_worse", lambda before, _: torch.zeros_like(before, dtype=torch.bool))
        network = cut(graph, keep)
        report = heal_network(graph, keep, network, Shown(batches), "refit", ridge)
    assert all(bool(torch.isfinite(value).all()) for value in network.state_dict().values())
    return seen, report


def raised(seen) -> list[str]:
    """Layers of which an output got worse."""
    return [name for name, before, after in seen if bool((after > before * (1 + 1e-9)).any())]


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    plan=plans(),
    ridge=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, 10.0]),
    rounds=st.sampled_from([0, healing.ROUNDS]),
)
def test_a_refit_never_raises_the_residual(data, plan, ridge, dtype, offset, rounds) -> None:
    model = Drawn(plan).to(dtype).eval()
    x = (images(12) + offset).to(dtype)
    graph = as_it_is(model, x[:2])
    keep = data.draw(keep_sets({axis.name: axis.size for axis in graph.free if not axis.output}))
    whole = {**graph.everything(), **keep}
    try:
        seen, _ = residuals(graph, whole, [x], ridge, rounds=rounds)
    except DataError as error:
        assert dtype == torch.float16
        assert error.code == "data-overflow"  # noqa: PT017
        return
    assert raised(seen) == []


def behind_a_relu() -> tuple:
    """The best solution before a ReLU is worse behind it than the plain cut; rounds do not make up for that."""
    x = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4))
    model.double().eval()
    with torch.no_grad():
        model[2].weight.mul_(3)
    graph = trace(model, x[:2])
    return graph, {**graph.everything(), "0": torch.arange(4)}, [x]


def test_an_output_that_a_refit_made_worse_stays_as_it_was_cut() -> None:
    graph, keep, batches = behind_a_relu()
    without, _ = residuals(graph, keep, batches, 0.0, guarded=False)
    assert "2" in raised(without)  # the control
    name, before, after = without[1]
    assert name == "2"
    assert after.sum() > before.sum() * 1.01
    seen, report = residuals(graph, keep, batches, 0.0)
    assert raised(seen) == []
    assert any("layer '2'" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_equations_of_halves_are_summed_in_float32(dtype, monkeypatch) -> None:
    model = randomised(chain(), 0).to(dtype)
    x = (DATA[0] + 20).to(dtype)  # inputs whose mean is far larger than how much they vary
    graph = as_it_is(model, x[:2])
    keep = {**graph.everything(), "conv1": torch.tensor([0, 2, 5])}
    gained = {}
    for wide in (True, False):
        if not wide:
            monkeypatch.setattr(healing, "precise", lambda value: value)
        seen, _ = residuals(graph, keep, [x], 1e-6, guarded=False)
        gained[wide] = {name: float(after.sum() / before.sum()) for name, before, after in seen}["conv2"]
    assert gained[True] < 2e-3
    assert gained[True] < gained[False]  # the control


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e4, 1e8])
@pytest.mark.parametrize("ridge", [0.0, 1e-9, 1e-3])
def test_a_refit_of_inputs_that_hardly_differ_does_not_raise_the_residual(scale, ridge) -> None:
    """Inputs that are almost copies of each other, at several sizes, in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        first, second = model[0], model[2]
        first.weight[1:5] = first.weight[0] * (1 + 1e-6 * torch.randn(4, 1, 1, 1))
        first.bias[1:5] = first.bias[0]
        first.weight *= scale
        first.bias *= scale
        second.weight /= scale
    x = DATA[0]
    graph = trace(model.eval(), x[:2])
    keep = {**graph.everything(), "0": torch.tensor([0, 1, 2, 3, 5])}
    seen, _ = residuals(graph, keep, [x], ridge)
    assert {name for name, _, _ in seen} == {"0", "2", "4"}
    assert raised(seen) == []


# -- far from usual ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [-20, -10, 10, 18, 30])
@pytest.mark.parametrize("select", ["mda", "damage"])
def test_extreme_weights_give_finite_numbers_or_one_error(power, select, tmp_path) -> None:
    model = chain()
    with torch.no_grad():
        for parameter in itertools.islice(model.parameters(), 2):
            parameter.mul_(10.0**power)
    said, code = "", ""
    try:
        relevance = by.locate(model, DATA)
        part = by.disassemble(model, relevance, task=["0", "2"], budget=by.Budget(flops=0.5), select=select)
        part.save(tmp_path / "part.safetensors")
    except by.BrickyardError as error:
        said, code = str(error), error.code
    if said:
        assert power > 0
        assert code == "data-overflow"
        assert any(f"layer '{name}'" in said for name, _ in model.named_children()), said
        assert not list(tmp_path.iterdir())
        return
    again = by.load(tmp_path / "part.safetensors")
    assert torch.isfinite(again.logits(DATA[0])).all()
    if again.familiarity is not None:
        assert torch.isfinite(again.familiarity(again.observe(again.preprocess(DATA[0]))[0])).all()


def test_contributions_that_overflow_name_their_layer() -> None:
    model = chain()
    relevance = by.locate(model, DATA)
    sums = {name: relevance.sum(name)[0].clone() for name in relevance.layers}
    graph = relevance.graph(model)
    relevance.add_class(0, sums, graph)
    sums["linear"][0, 0] = float("inf")
    with refused("data-overflow", "'linear'"):
        relevance.add_class(0, sums, graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_activations_that_overflow_are_one_error(dtype) -> None:
    model = chain().to(dtype)
    with torch.no_grad():
        next(model.parameters()).mul_(5e4 if dtype == torch.float16 else 1e38).mul_(10)
    with refused("trace-not-finite"):
        by.locate(model, DATA)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("heal", ["refit", "moments", "none"])
def test_images_that_overflow_after_locating_are_one_error_that_names_the_layer(dtype, heal) -> None:
    """A source in float16 is healed in float32, where nothing overflows; the component itself is in float16."""
    model = chain()
    with torch.no_grad():
        first = next(model.parameters())
        first.copy_(first.abs() / first.abs().max() * (5e4 if dtype == torch.float16 else 1e38))
    model.to(dtype)
    relevance = by.locate(model, (DATA[0] * 1e-3, DATA[1]))
    options = {"task": ["0", "2"], "budget": by.Budget(flops=0.5), "heal": heal}
    with refused("data-overflow") as caught:
        by.disassemble(model, relevance, images=DATA, **options)
    assert re.search("'(conv1|bn2.running_mean)'", str(caught.value))
    part = by.disassemble(model, relevance, **options)  # the control: with the images that it was located on
    assert torch.isfinite(part.logits(DATA[0] * 1e-3)).all()


def test_weights_beyond_half_precision_are_one_error_that_names_them() -> None:
    """What is left is a copy of what is cut, 1e5 times smaller: its weights have to be as much larger."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Flatten(), nn.Linear(256, 4))
    randomised(model, 0)
    with torch.no_grad():
        model[0].weight[0], model[0].weight[1] = 1e-3, 1e2
        model[0].bias.zero_()
        model[2].weight[:, 0], model[2].weight[:, 1] = 1.0, -10.0  # all that speaks for a class comes from the first

    def part(dtype: torch.dtype) -> by.Component:
        source = copy.deepcopy(model).to(dtype)
        relevance = by.locate(source, DATA)
        return by.disassemble(source, relevance, task=["0", "2"], budget=by.Budget(flops=0.4), select="mda", ridge=1e-3)

    kept = part(torch.bfloat16)  # the control: a type with as many bits that holds such numbers
    weight = kept.network.layer("2").weight
    assert weight.shape[1] == 1
    assert float(weight.detach().abs().max()) > torch.finfo(torch.float16).max
    with refused("data-overflow", "2.weight", "float16"):
        part(torch.float16)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("heal", ["refit", "moments"])
def test_constant_images_give_finite_files(value, heal, tmp_path) -> None:
    data = torch.full((16, 3, 8, 8), value), torch.arange(16) % 4
    model = randomised(chain(), 0)
    part = by.disassemble(model, by.locate(model, data), task=["0", "2"], budget=by.Budget(flops=0.5), heal=heal)
    again = by.load(part.save(tmp_path / "part.safetensors"))
    assert all(bool(torch.isfinite(v).all()) for v in again.state_dict().values() if v.is_floating_point())
    assert torch.equal(again.logits(DATA[0]), part.logits(DATA[0]))


def test_numbers_that_are_not_finite_are_never_written(tmp_path) -> None:
    model = randomised(chain(), 0)
    part = by.disassemble(model, by.locate(model, DATA), task=["0", "2"], budget=by.Budget(flops=0.5))
    with torch.no_grad():
        part.network.layer("conv2").weight[0, 0, 0, 0] = float("nan")
    with refused("file-not-finite", "conv2.weight"):
        part.save(tmp_path / "part.safetensors")
    assert not list(tmp_path.iterdir())
