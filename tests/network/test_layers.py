"""Every layer of the table that mixes channels: each answer against an independent way to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.evaluation._faithfulness import masked
from brickyard.healing._heal import heal_network
from brickyard.healing._least_squares import Equations
from brickyard.healing._places import Shown
from brickyard.network._cost_limit import Bounds
from brickyard.network._fusing import fuse
from brickyard.network._layer_types import LAYER_TYPES, layer_role, mixing_of
from brickyard.relevance._contribution import ContributionSums, contributions
from brickyard.runtime._processes import Ranks
from brickyard.selection._importance import Evidence, magnitude
from brickyard.surgery._cost import CostModel, keep_mask
from brickyard.surgery._join import cut
from brickyard.testing import randomised, zeroed_output

IN, OUT = 8, 6


@dataclass(frozen=True)
class Case:
    """A layer of 8 inputs and 6 outputs, how many dimensions its kernel has, and how it is cut."""

    name: str
    make: Callable[[], nn.Module]
    dims: int
    whole_groups: bool = False

    def __str__(self) -> str:
        return self.name


def case(name: str, kernel: int | tuple[int, ...] = 3, out: int = OUT, whole: bool = False, **options) -> Case:
    kind, _, _ = name.partition("-")
    return Case(name, partial(getattr(nn, kind), IN, out, kernel, **options), int(kind[-2]), whole)


CASES = [
    Case("Linear", partial(nn.Linear, IN, OUT), 0),
    case("Conv1d", stride=2, padding=2, dilation=2),
    case("Conv1d-pointwise", 1, stride=3),
    case("Conv1d-circular", padding=1, padding_mode="circular", bias=False),
    case("Conv1d-groups", groups=2),
    case("Conv1d-whole-groups", out=8, groups=4, whole=True),
    case("Conv2d", (3, 2), stride=(1, 2), padding=(1, 0)),
    case("Conv2d-same", (2, 3), padding="same"),
    case("Conv2d-groups", groups=2, padding=1),
    case("Conv2d-depthwise", out=8, groups=8, padding=1, whole=True),
    case("Conv3d", (2, 3, 2), stride=(1, 2, 3), padding=(1, 0, 1)),
    case("Conv3d-dilated", (1, 2, 3), dilation=(1, 2, 2), bias=False),
    case("Conv3d-whole-groups", (1, 2, 2), out=8, groups=4, whole=True),
    case("ConvTranspose1d", 4, stride=3, padding=1, output_padding=2),
    case("ConvTranspose2d", (3, 2), stride=2, padding=1, output_padding=1, dilation=(1, 2)),
    case("ConvTranspose2d-plain", 2, stride=2, bias=False),
    case("ConvTranspose2d-cropped", 1, padding=1),
    case("ConvTranspose2d-overlapping", 5, stride=(1, 3), dilation=2, padding=3),
    case("ConvTranspose2d-groups", 3, groups=2, stride=2, whole=True),
    case("ConvTranspose2d-depthwise", 2, out=8, groups=8, stride=2, whole=True),
    case("ConvTranspose3d", (1, 3, 2), stride=(1, 2, 2), padding=(0, 1, 0), output_padding=(0, 1, 0)),
]
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
every_layer = pytest.mark.parametrize("case", CASES, ids=str)
mixed_layers = pytest.mark.parametrize("case", [case for case in CASES if not case.whole_groups], ids=str)


def laid_out(x: Tensor, dims: int) -> Tensor:
    """Feature maps (batch, channels, 8, 6) with as many dimensions as a layer takes."""
    if dims == 0:
        return x.mean((2, 3))
    if dims == 1:
        return x.flatten(2)
    return x if dims == 2 else x.unflatten(2, (2, 4))


class Net(nn.Module):
    """A convolution, the layer, a batch norm behind it, and a classifier; masks stand for dropped channels."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        super().__init__()
        self.dims = case.dims
        self.front = nn.Conv2d(3, IN, 3, padding=1)
        self.mid = case.make()
        out = len(mixing_of(self.mid).rows)
        self.bn = getattr(nn, f"BatchNorm{max(1, case.dims)}d")(out)
        self.linear = nn.Linear(out, 4)
        self.masks: tuple[Tensor, Tensor] | None = None
        randomised(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        x = laid_out(torch.relu(self.front(x)), self.dims)
        x = x if self.masks is None else self._masked(x, self.masks[0])
        x = torch.relu(self.bn(self.mid(x)))
        x = x if self.masks is None else self._masked(x, self.masks[1])
        return self.linear(x.flatten(2).mean(2) if self.dims else x)

    @staticmethod
    def _masked(x: Tensor, mask: Tensor) -> Tensor:
        return x * mask.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))


def images(count: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def alone(case: Case) -> tuple[nn.Module, Tensor]:
    """The layer by itself, with an input."""
    generator = torch.Generator().manual_seed(2)
    x = laid_out(torch.randn(3, IN, 8, 6, dtype=torch.float64, generator=generator), case.dims)
    return randomised(case.make().double()), x


def without_bias(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x) - layer(torch.zeros_like(x))


def keep_of(net: Net) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """A keep-set that drops channels before and behind the layer, and the same as masks."""
    mixing = mixing_of(net.mid)
    outputs, groups = len(mixing.rows), mixing.groups
    if mixing.by_groups:  # the group goes as a whole
        dropped = torch.arange(IN) // (IN // groups) == 1
        gone = torch.arange(outputs) // (outputs // groups) == 1
    else:
        dropped = torch.isin(torch.arange(IN) % (IN // groups), torch.tensor([1, 3]))
        gone = torch.isin(torch.arange(outputs) % (outputs // groups), torch.tensor([0, 4]))
    graph = trace(net, images())
    keep: dict[str, Tensor] = {}
    for owner, role, mask in (("front", "out", ~dropped), ("mid", "out", ~gone)):
        labels = graph.at(owner, role)
        for axis in graph.free if labels is not None else ():
            inside = torch.from_numpy((labels >= axis.start) & (labels < axis.start + axis.size))
            if bool(inside.any()):
                keep[axis.name] = torch.from_numpy(labels - axis.start)[inside & mask].unique()
    return keep, (~dropped, ~gone)


def test_every_mixing_layer_of_the_table_is_here() -> None:
    assert {entry.name for entry in LAYER_TYPES.values() if entry.mixing} == {c.name.partition("-")[0] for c in CASES}


@every_layer
def test_contributions_are_those_of_the_layer_with_all_else_at_zero(case) -> None:
    layer, x = alone(case)
    groups = mixing_of(layer).groups
    width = IN // groups
    with torch.no_grad():
        whole = without_bias(layer, x).flatten(2).sum(2) if case.dims else without_bias(layer, x)
        direct = torch.zeros(len(x), whole.shape[1], width, dtype=x.dtype)
        for channel in range(IN):
            only = torch.zeros_like(x)
            only[:, channel] = x[:, channel]
            maps = without_bias(layer, only).reshape(len(x), whole.shape[1], -1).sum(2)
            own = torch.arange(whole.shape[1]) // (whole.shape[1] // groups) == channel // width
            direct[:, own, channel % width] = maps[:, own]
        found = contributions(layer, x)
        torch.testing.assert_close(found, direct, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.sum(2), whole, rtol=1e-10, atol=1e-10)
        sums = ContributionSums(layer)
        sums.add(x[:2])
        sums.add(x[2:])
        torch.testing.assert_close(sums.dense(), direct.clamp_min(0).sum(0), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(sums.dense(), direct.sum(0).clamp_min(0))  # clamped image by image


@pytest.mark.parametrize("case", [case for case in CASES if case.dims], ids=str)
def test_large_and_scattered_inputs_give_the_same_sums(case, monkeypatch) -> None:
    layer, x = alone(case)
    usual = contributions(layer, x)
    turned = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert not turned.is_contiguous()
    torch.testing.assert_close(contributions(layer, turned), usual, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr("brickyard.network._mixing._PLANE", 0)
    torch.testing.assert_close(contributions(layer, x), usual, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(contributions(layer, x.flip(0)), usual)


@every_layer
def test_the_refit_is_the_least_squares_solution(case) -> None:
    """The layer is linear in its weights: run with one weight at a time it gives the matrix of the problem."""
    layer, x = alone(case)
    layer.bias = None
    mixing = mixing_of(layer)
    with torch.no_grad():
        given = mixing.rows.clone()
        goal = torch.randn(layer(x).shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
        columns = []
        for place in range(given.numel()):
            unit = torch.zeros(given.numel(), dtype=x.dtype)
            unit[place] = 1
            mixing.set_rows(unit)
            columns.append(layer(x).flatten())
        matrix = torch.stack(columns, 1)
        direct = torch.linalg.lstsq(matrix, goal.flatten().unsqueeze(1), driver="gelsd").solution[:, 0]
        mixing.set_rows(given)
        assert torch.equal(mixing.rows, given)
        positions = goal.numel() // len(given)
        sizes = goal.shape[1:-1] if mixing.linear else goal.shape[2:]
        before = (goal - layer(x)).square().sum()
        drawn = torch.randperm(positions, generator=torch.Generator().manual_seed(4))
        read = mixing.read_at(x, sizes, drawn)
        output = (mixing.rows.flatten(1).unflatten(0, (mixing.groups, -1)) @ read).flatten(0, 1)
        torch.testing.assert_close(output, mixing.by_output(layer(x))[:, drawn], rtol=1e-9, atol=1e-9)
        equations = Equations(read, False, Ranks())
        residual = mixing.by_output(goal - layer(x))[:, drawn].unflatten(0, (mixing.groups, -1))
        solution = equations.solve(equations.right(residual), 1e-13)
        assert solution is not None
        fitted = given + solution[0].weight.flatten(0, 1).reshape(given.shape)
        reached = matrix @ fitted.flatten()
        torch.testing.assert_close(reached, matrix @ direct, rtol=1e-5, atol=1e-5)
        if torch.linalg.matrix_rank(matrix) == matrix.shape[1]:
            torch.testing.assert_close(fitted.flatten(), direct, rtol=1e-5, atol=1e-5)
        assert float((goal.flatten() - reached).square().sum()) < 0.95 * float(before)


@every_layer
def test_a_cut_is_the_source_with_dropped_channels_at_zero(case) -> None:
    net = Net(case).double()
    graph = trace(net, images())
    assert graph.pinned() == ()
    assert (layer_role(net.mid) == "follow") == case.whole_groups
    keep, masks = keep_of(net)
    assert len(keep) == (1 if case.whole_groups else 2)
    part = cut(graph, keep)
    assert mixing_of(part.layer("mid")).rows.numel() < mixing_of(net.mid).rows.numel()
    with torch.no_grad():
        whole, found = net(images()), part(images())
        net.masks = masks
        direct = net(images())
        net.masks = None
        torch.testing.assert_close(found, direct, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(zeroed_output(graph, keep, images()), direct, rtol=1e-9, atol=1e-9)
        assert float((found - whole).abs().max()) > 1e-3
    if not case.whole_groups:
        name = next(iter(keep))
        mask = torch.isin(torch.arange(graph.axis(name).size), keep[name])
        once = {name: keep[name]}
        with torch.no_grad():
            torch.testing.assert_close(masked(graph, {name: mask})(images()), cut(graph, once)(images()))


@every_layer
def test_costs_are_those_that_torch_counts(case) -> None:
    net = Net(case).double()
    graph = trace(net, images())
    keep, _ = keep_of(net)
    model = CostModel(graph)
    counted = []
    for kept in ({}, keep):
        network = cut(graph, kept)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images(1))
        cost = model(keep_mask(graph, kept))
        assert cost.flops == counter.get_total_flops()
        assert cost.parameters == sum(value.numel() for value in network.parameters())
        counted.append(cost)
    assert counted[1].flops < counted[0].flops
    assert counted[1].parameters < counted[0].parameters


@every_layer
def test_a_batch_norm_behind_it_folds_in(case) -> None:
    network = trace(Net(case).double(), images()).network
    fused = fuse(network, images())
    assert "bn" in network.layer_names
    assert "bn" not in fused.layer_names
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), network(images()), rtol=1e-9, atol=1e-9)
        network.layer("bn").weight.mul_(2)
        assert not torch.allclose(fused(images()), network(images()), rtol=1e-3)


@every_layer
@pytest.mark.parametrize("method", ["refit", "moments"])
def test_healing_lowers_what_a_cut_leaves(case, method) -> None:
    net = Net(case).double()
    graph = trace(net, images())
    keep, _ = keep_of(net)
    batches = [images(40, seed=seed) for seed in (4, 5)]
    found = {}
    for how in ("none", method):
        network = cut(graph, keep)
        report = heal_network(graph, keep, network, Shown(batches), how, 1e-6)
        with torch.no_grad():
            found[how] = sum(float((network(x) - net(x)).square().sum()) for x in batches)
    assert report.layers >= 1
    assert found[method] < (0.9 if method == "refit" else 1.0) * found["none"]


@every_layer
def test_a_component_is_located_cut_healed_and_saved(case, tmp_path: Path) -> None:
    net = Net(case)
    data = images(32, torch.float32), torch.arange(32) % 4
    relevance = by.locate(net, data, choose="all")
    parts = []
    for task, options in (([1, 3], {}), ([0, 2], {"select": "damage"})):
        part = by.disassemble(net, relevance, task=task, budget=by.Budget(flops=0.6), **options)
        loaded = by.load(part.save(tmp_path / f"{task[0]}.safetensors"))
        with torch.no_grad():
            assert torch.equal(part(data[0]), loaded(data[0]))
            assert torch.equal(part.observe(data[0])[0], loaded.observe(data[0])[0])
            torch.testing.assert_close(part.fused()(data[0]), part(data[0]), rtol=1e-3, atol=1e-4)
            rows = mixing_of(loaded.network.layer("mid")).rows * 1.5
            mixing_of(loaded.network.layer("mid")).set_rows(rows)
            assert not torch.equal(part(data[0]), loaded(data[0]))
        parts.append(part)
    together = {form: by.assemble(parts, form=form, scaling="none") for form in ("parallel", "padded", "grouped")}
    union = by.assemble(parts, form="union", source=net, scaling="none")
    with torch.no_grad():
        goal = together["parallel"](data[0])
        for form in ("padded", "grouped"):
            torch.testing.assert_close(together[form](data[0]), goal, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(goal[:, :2], goal[:, 2:])
        assert not torch.allclose(union(data[0]), goal, rtol=1e-3)  # the source's weights, not the healed ones


@mixed_layers
def test_magnitudes_are_those_of_the_weights_that_write_a_channel(case) -> None:
    net = Net(case).double()
    graph = trace(net, images())
    weight = net.mid.weight.detach().abs()
    outputs = 1 if isinstance(net.mid, nn.modules.conv._ConvTransposeNd) else 0
    direct = weight.movedim(outputs, 0).flatten(1).sum(1)
    found = magnitude(Evidence(graph, [], []))[torch.from_numpy(graph.at("mid", "out"))]
    if mixing_of(net.mid).groups > 1:  # an axis has the channels of all groups
        direct = direct.reshape(mixing_of(net.mid).groups, -1).sum(0).repeat(mixing_of(net.mid).groups)
    torch.testing.assert_close(found, direct)
    assert not torch.allclose(found, direct.flip(0))


@every_layer
def test_a_file_is_charged_for_what_its_layers_compute(case, monkeypatch) -> None:
    monkeypatch.setattr("brickyard.base._limits.WORD", 0)  # numbers in and out aside
    layer = case.make()
    x = laid_out(torch.rand(2, IN, 8, 6), case.dims)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    with Bounds(10**9) as bounds:
        layer.to("meta")(x.to("meta"))
    assert bounds.work == counter.get_total_flops() // 4 > 0  # one image, a multiply-add


class Tokens(nn.Module):
    """A batch norm over positions, of which there are as many as features."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, 5, 3)
        self.mid, self.bn = nn.Linear(5, 24), nn.BatchNorm1d(24)
        self.linear = nn.Linear(24, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x).flatten(2).transpose(1, 2)
        return self.linear(torch.relu(self.bn(self.mid(x))).mean(1))


def test_a_batch_norm_over_positions_does_not_fold_into_what_writes_features() -> None:
    network = trace(Tokens().double(), images()).network
    fused = fuse(network, images())
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), network(images()))
    assert "bn" in fused.layer_names


class Functional(nn.Module):
    """A transposed convolution that is called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, 4, 3)
        self.weight = nn.Parameter(torch.zeros(4, 5, 2, 2))
        self.linear = nn.Linear(5, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(torch.relu(self.front(x)), self.weight, stride=2, output_padding=1)
        return self.linear(torch.relu(x).mean((2, 3)))


class Sized(nn.Module):
    """A transposed convolution that may be told how large its output is."""

    def __init__(self, told: bool) -> None:
        super().__init__()
        self.told = told
        self.front = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose2d(4, 5, 2, stride=2)
        self.linear = nn.Linear(5, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.front(x))
        x = self.up(x, output_size=[13, 9]) if self.told else self.up(x)
        return self.linear(torch.relu(x).mean((2, 3)))


def test_a_function_with_known_weights_is_a_layer() -> None:
    model = Functional().double()
    graph = trace(model, images())
    assert {type(graph.network.layer(name)) for name in graph.network.layer_names} >= {nn.ConvTranspose2d}
    keep = {"front": torch.tensor([0, 3])}
    with torch.no_grad():
        found = cut(graph, keep)(images())
        torch.testing.assert_close(found, zeroed_output(graph, keep, images()), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(found, model(images()))


@pytest.mark.parametrize("told", [True, False])
def test_a_layer_that_is_told_its_output_size_becomes_one_that_needs_no_telling(told) -> None:
    model = Sized(told).double()
    graph = trace(model, images())
    assert graph.network.layer("up").output_padding == ((1, 1) if told else (0, 0))
    assert graph.pinned() == ()
    with torch.no_grad():
        torch.testing.assert_close(graph.network(images()), model(images()))
