"""A cut equals the source with the dropped channels at zero; padded equals parallel. Both in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brickyard.axes._graph import trace
from brickyard.network._fusing import fuse
from brickyard.surgery import _join
from brickyard.surgery._cost import CostModel
from brickyard.surgery._groups import join_as_groups
from brickyard.surgery._join import cut, join
from brickyard.surgery._plan import Part
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised, zeroed_output
from errors import refused
from nets import BLOCKS, Drawn, SequenceFirst, images, keep_sets, masks, plans, relative

KINDS = [*BLOCKS, "all"]
FEW = ("all", "attention", "grouped", "shuffle")  # kinds that are always tried
KINDS_AND_SLOW = [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
SLOW = settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def kinds_of(kind: str) -> tuple[str, ...]:
    return tuple(BLOCKS) if kind == "all" else (kind, "conv")


@pytest.mark.parametrize("kind", KINDS)
@SLOW
@given(data=st.data())
def test_cut_equals_zeroed(kind: str, data: st.DataObject) -> None:
    net = Drawn(data.draw(plans(kinds_of(kind))))
    keep = data.draw(keep_sets(net.axes))
    x = images()
    graph = trace(net, x)
    assert {axis.name: axis.size for axis in graph.free} == net.axes
    with torch.no_grad():
        found = cut(graph, keep)(x)
        whole = net(x)
        net.masks = masks(keep, net.axes)
        expected = net(x)
        net.mask_early = True
        control = net(x)
        net.masks, net.mask_early = {}, False
    assert relative(found, expected) < 1e-9
    assert relative(zeroed_output(graph, keep, x), expected) < 1e-9  # the shipped oracle agrees with this one
    assert torch.equal(net(x), whole)
    dropped = [name for name, size in net.axes.items() if len(keep[name]) < size]
    if dropped and net.plan.activation == "silu":  # an activation that is zero only at zero
        assert relative(found, whole) > 1e-9
        if any(name.removeprefix("layers.") + "n" in net.layers for name in dropped):
            assert relative(found, control) > 1e-9


@pytest.mark.parametrize("kind", KINDS_AND_SLOW)
@SLOW
@given(data=st.data())
def test_padded_equals_parallel(kind: str, data: st.DataObject) -> None:
    plan = data.draw(plans(kinds_of(kind)))
    nets = [Drawn(plan), randomised(Drawn(plan), seed=101)]
    graphs = [trace(net, images()) for net in nets]
    keeps = [data.draw(keep_sets(net.axes)) for net in nets]
    cuts = [cut(graph, keep) for graph, keep in zip(graphs, keeps, strict=True)]
    parts = [Part(graph, keep, network) for graph, keep, network in zip(graphs, keeps, cuts, strict=True)]
    x, y = images(3, seed=1), images(3, seed=2)
    with torch.no_grad():
        one = join(parts)(x)
        assert relative(one, torch.cat([network(x) for network in cuts], 1)) < 1e-9
        assert relative(join_as_groups(parts)[0](x), one) < 1e-9
        two = join(parts, shared_input=False)(torch.cat([x, y], 1))
        assert relative(two, torch.cat([cuts[0](x), cuts[1](y)], 1)) < 1e-9
        swapped = join(parts[::-1])(x)
        assert relative(swapped, torch.cat([network(x) for network in cuts[::-1]], 1)) < 1e-9
        assume(not torch.allclose(cuts[0](x), cuts[1](x)))
        assert relative(swapped, one) > 1e-9


@SLOW
@given(data=st.data())
def test_one_part_joined_is_the_part_and_everything_kept_is_the_source(data: st.DataObject) -> None:
    net = Drawn(data.draw(plans()))
    graph = trace(net, images())
    keep = data.draw(keep_sets(net.axes))
    part = cut(graph, keep)
    with torch.no_grad():
        assert torch.equal(join([Part(graph, keep, part)])(images()), part(images()))
        assert torch.equal(cut(graph, {})(images()), net(images()))
        assert torch.equal(cut(graph, graph.everything())(images()), net(images()))


@SLOW
@given(data=st.data())
def test_outputs_come_in_the_order_of_the_task(data: st.DataObject) -> None:
    net = Drawn(data.draw(plans()))
    graph = trace(net, images())
    assert graph.output is not None
    order = data.draw(st.permutations(range(net.plan.classes)))
    taken = order[: data.draw(st.integers(1, net.plan.classes))]
    with torch.no_grad():
        found = cut(graph, {graph.output.name: torch.tensor(taken)})(images())
        assert relative(found, net(images())[:, taken]) < 1e-12


@pytest.mark.parametrize("make", [chain, Residual, Branches, SqueezeExcite])
def test_cut_owns_its_numbers(make) -> None:
    net = make()
    graph = trace(net, torch.rand(2, 3, 8, 8))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    copy = cut(graph, {})
    with torch.no_grad():
        for value in copy.parameters():
            value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in copy.parameters())


class Shuffled(nn.Module):
    """Channels that are split, sliced, padded with zeros and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 10, 3, padding=1, stride=2)
        self.c = nn.Conv2d(5, 4, 1)
        self.d = nn.Conv2d(9, 3, 1)
        randomised(self.double())

    def forward(self, x):
        x = nn.functional.silu(self.a(x))
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = nn.functional.silu(self.b(x) + short)
        left, right = x.chunk(2, dim=1)
        x = torch.cat([nn.functional.silu(self.c(left)), right], 1)
        rest = x[:, 1:]
        x = torch.cat([x[:, :1], rest], dim=1)
        x = self.d(nn.functional.pad(x, (1, 0, 0, 1)))
        return x.mean((2, 3))


def test_channel_padding_slices_and_splits() -> None:
    net = Shuffled()
    x = images(2)
    graph = trace(net, x)
    generator = torch.Generator().manual_seed(0)
    free = {axis.name: axis.size for axis in graph.free}
    assert sum(free.values()) == 6 + 4 + 4  # a; four of b's ten are tied to nothing but zeros; c
    for _ in range(20):
        keep = {
            name: torch.randperm(size, generator=generator)[: max(1, size - 1)].sort().values
            for name, size in free.items()
        }
        other = {name: torch.tensor([0]) for name in free}
        with torch.no_grad():
            found = cut(graph, keep)(x)
            assert relative(found, zeroed_output(graph, keep, x)) < 1e-12
            assert relative(found, net(x)) > 1e-6
            both = join([Part(graph, keep), Part(graph, other)])(x)
            assert relative(both, torch.cat([found, cut(graph, other)(x)], 1)) < 1e-12


@pytest.mark.parametrize(
    ("keep", "quoted"),
    [
        ({"nowhere": torch.tensor([0])}, "'nowhere'"),
        ({"conv1": torch.tensor([0, 0])}, ""),
        ({"conv1": torch.tensor([6])}, "0..5"),
        ({"conv1": torch.tensor([], dtype=torch.long)}, "0"),
        ({"input_1": torch.tensor([0])}, ""),
    ],
)
def test_a_keep_set_that_does_not_fit_is_refused(keep, quoted) -> None:
    graph = trace(chain(), torch.rand(2, 3, 8, 8))
    with refused("surgery-keep-invalid", quoted):
        cut(graph, keep)


def test_different_architectures_cannot_be_padded() -> None:
    a = Part(trace(chain(), torch.rand(2, 3, 8, 8)), {})
    b = Part(trace(chain(widths=(6, 9)), torch.rand(2, 3, 8, 8)), {})
    with refused("surgery-not-paddable", "form='parallel'"):
        join([a, b])
    c = Part(trace(chain(classes=7), torch.rand(2, 3, 8, 8)), {})  # class counts may differ
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert join([a, c])(x).shape == (2, 11)


@pytest.mark.parametrize("kind", KINDS_AND_SLOW)
@SLOW
@given(data=st.data())
def test_norms_fold_into_the_layers_before_them(kind: str, data: st.DataObject) -> None:
    net = Drawn(data.draw(plans(kinds_of(kind))))
    x = images()
    graph = trace(net, x)
    network = cut(graph, data.draw(keep_sets(net.axes)))
    numbers = {name: value.clone() for name, value in network.state_dict().items()}
    fused = fuse(network, x)
    with torch.no_grad():
        assert relative(fused(x), network(x)) < 1e-9
    assert all(torch.equal(value, numbers[name]) for name, value in network.state_dict().items())
    norms = [[m for m in each.modules() if isinstance(m, nn.BatchNorm2d)] for each in (network, fused)]
    assert not norms[0] or len(norms[1]) < len(norms[0])


def test_a_norm_stays_where_others_read_what_it_reads() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.alone = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.linear = nn.Linear(4, 2)
            randomised(self.double())

        def forward(self, x):
            y = self.conv(x)
            y = torch.relu(self.norm(y)) + y  # what is folded away would be missing here
            return self.linear(torch.relu(self.alone(y)).mean((2, 3)))  # and there is nothing to fold this into

    x = images()
    network = trace(Shared(), x).network
    fused = fuse(network, x)
    assert fused.layer_names == network.layer_names
    assert torch.equal(fused(x), network(x))


def test_groups_multiply_nothing_by_zero() -> None:
    """As many products as the parts have, less what makes them equal; dense padding has almost twice as many."""
    from torch.utils.flop_counter import FlopCounterMode

    graphs = [trace(randomised(Residual(width=8, inner=6), seed), torch.rand(2, 3, 8, 8)) for seed in (0, 1)]
    keeps = [{"stem": torch.arange(0, 8, 2), "conv1": torch.tensor([1, 4])}, {"stem": torch.arange(4)}]
    parts = [Part(graph, graph.everything() | keep) for graph, keep in zip(graphs, keeps, strict=True)]
    parts = [Part(part.graph, part.keep, cut(part.graph, part.keep)) for part in parts]
    network, notes = join_as_groups(parts)
    assert notes == ("4 of 5 convolutions run in 2 groups", "4 channels of zeros make the parts' sizes equal")

    def flops(net: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.rand(1, 3, 8, 8))
        return counter.get_total_flops()

    keeps[0]["conv1"] = torch.arange(6)
    equal = [cut(graph, graph.everything() | keep) for graph, keep in zip(graphs, keeps, strict=True)]
    head = 2 * 4 * 4 * 2  # the linear layer stays dense
    assert flops(network) == sum(map(flops, equal)) + head
    assert flops(join(parts)) > 1.3 * flops(network)


def test_operations_are_counted_wherever_images_lie() -> None:
    model = SequenceFirst(patch=4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(2, 3, 8, 8))
    assert CostModel(trace(model, torch.rand(2, 3, 8, 8))).whole.flops == counter.get_total_flops() // 2


class Single(nn.Module):
    """A softmax over all positions of a single channel, which alone is no step over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.linear = nn.Conv2d(3, 9, 3), nn.Conv2d(9, 1, 1), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.gate(x)
        weights = torch.softmax(gate.flatten(1), 1).view(gate.shape)
        return self.linear((x * weights).sum((2, 3)))


def test_parts_that_do_not_lie_side_by_side_are_refused(monkeypatch) -> None:
    """With one rule of joining broken, what comes out is compared with the parts, and refused."""
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    graphs = [trace(randomised(Single().double(), seed), x) for seed in (0, 1)]
    parts = [Part(graph, {"stem": torch.arange(5)}) for graph in graphs]
    join(parts)  # the control: it is right with all rules
    monkeypatch.setattr(_join._Builder, "_runs_apart", lambda *_: False)
    with refused("surgery-check-failed"):
        join(parts)
