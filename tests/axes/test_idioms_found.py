"""What networks drawn from idioms brought to light, each in its shortest form, with its siblings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import Graph, trace
from brickyard.surgery import Part, cut, join
from brickyard.testing import randomised, zeroed_output
from errors import refused
from nets import images, relative


class Middle(nn.Module):
    """A stem, something drawn between, and a classifier."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor], read: int = 6, **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.last = nn.Conv2d(read, 5, 1)
        self.head = nn.Linear(5, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.between = between
        randomised(self.double())

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, torch.tanh(self.stem(x)))
        return self.head(F.silu(self.last(x)).mean((2, 3)))


def checked(model: nn.Module) -> Graph:
    """Two cuts against the source, alone and side by side, on three images and on one."""
    graph = trace(model, images(2))
    sizes = {axis.name: axis.size for axis in graph.free}
    keeps = [
        {name: (torch.arange(size) != size // 2).nonzero().flatten() for name, size in sizes.items() if size > 1},
        {name: torch.arange(max(1, size - 1)) for name, size in sizes.items()},
    ]
    parts = [Part(graph, keep) for keep in keeps]
    for x in (images(3), images(3)[:1]):
        with torch.no_grad():
            assert relative(cut(graph, {})(x), model(x.clone())) < 1e-12
            cuts = [cut(graph, keep)(x) for keep in keeps]
            for found, keep in zip(cuts, keeps, strict=True):
                assert relative(found, zeroed_output(graph, keep, x)) < 1e-10
            assert relative(join(parts)(x), torch.cat(cuts, 1)) < 1e-10
            assert relative(cuts[0], model(x.clone())) > 1e-8
    return graph


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: net.own(x) / x.shape[1],
        lambda net, x: net.own(x) * x.size(1) ** -0.5,
        lambda net, x: net.own(x) + x.shape[1] // 2,
    ],
    ids=["over", "root", "half"],
)
def test_a_number_from_a_count_of_channels_is_that_of_the_source(between) -> None:
    """The count once changed with the cut."""
    graph = checked(Middle(between, own=nn.Conv2d(6, 6, 1)))
    assert {"stem", "own"} <= {axis.name for axis in graph.free}


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: torch.cat(x.chunk(3, 1)[::-1], 1),
        lambda net, x: torch.cat(x.split(2, 1), 1),
        lambda net, x: torch.stack(x.chunk(3, 1), 1).flatten(1, 2),
        lambda net, x: torch.cat(x.unflatten(1, (3, 2)).unbind(1)[::-1], 1),
        lambda net, x: torch.cat(torch.cat(x.chunk(2, 1)).chunk(2), 1),
    ],
    ids=["turned", "whole", "stacked", "unbound", "batch"],
)
def test_lists_passed_whole_are_those_of_each_part(between) -> None:
    checked(Middle(between))


def _shared(net: nn.Module, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return net.own(x.view(b * c, 1, h, w)).view(b, c, h, w)


def _unflattened(net: nn.Module, x: Tensor) -> Tensor:
    return net.own(x.flatten(0, 1)[:, None]).squeeze(1).unflatten(0, x.shape[:2])


def _pooled(net: nn.Module, x: Tensor) -> Tensor:
    weights = net.score(x).view(x.size(0), -1, 1).softmax(1)
    return x + torch.matmul(x.flatten(2), weights).unsqueeze(-1)


def _neighbours(net: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(net.row(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[:, :, None, None])


@pytest.mark.parametrize("between", [_shared, _unflattened, _pooled, _neighbours])
def test_single_channels_of_several_parts_do_not_mix_in_a_view(between) -> None:
    row = nn.Conv1d(1, 1, 3, padding=1)
    checked(Middle(between, own=nn.Conv2d(1, 1, 3, padding=1), score=nn.Conv2d(6, 1, 1), row=row))


@pytest.mark.parametrize(
    "between",
    [
        lambda net, x: x.clamp_(min=0) * 0 + x,
        lambda net, x: (x.neg_(), x)[1],
        lambda net, x: (x.copy_(x.flip(1)), net.own(x))[1],
        lambda net, x: (F.threshold(x, 0.1, 0.0, inplace=True), net.own(x))[1],
        lambda net, x: (net.act(x), net.own(x))[1],
        lambda net, x: (x.neg_(), x.relu_(), x.sin() + x)[2],
    ],
    ids=["clamp", "negative", "copied", "flag", "layer", "twice"],
)
def test_values_changed_in_place_are_changed_in_every_part(between) -> None:
    """The result of the step is not used: later steps take what it has changed."""
    model = Middle(between, own=nn.Conv2d(6, 6, 1), act=nn.Threshold(0.1, 0.0, inplace=True))
    checked(model)


def test_a_group_whose_first_channel_comes_before_the_last_of_the_one_before() -> None:
    order = [5, 2, 0, 4, 3, 1]

    def between(net: nn.Module, x: Tensor) -> Tensor:
        return net.own(torch.stack([x, x * 2], 2).flatten(1, 2)[:, [*order, *(k + 6 for k in order)]])

    checked(Middle(between, read=8, own=nn.Conv2d(12, 8, 3, padding=1, groups=2)))


def test_channels_that_make_a_dimension_of_their_own_stay() -> None:
    def between(net: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([x, torch.stack(net.own(x).chunk(2, 1), 2).flatten(1, 2)], 1)

    graph = checked(Middle(between, read=8, own=nn.Conv2d(6, 2, 1)))
    assert "own" not in {axis.name for axis in graph.free}


def _part(net: nn.Module, x: Tensor) -> Tensor:
    x = net.own(x)
    x[:, :2].neg_()
    return x


def _rows(net: nn.Module, x: Tensor) -> Tensor:
    x = net.own(x)
    y = x.view(x.shape[0], -1)
    y.mul_(0.5)
    return x


@pytest.mark.parametrize("between", [_part, _rows])
def test_a_part_of_a_value_that_is_overwritten_is_cut_but_not_laid_side_by_side(between) -> None:
    model = Middle(between, own=nn.Conv2d(6, 6, 1))
    graph = trace(model, images(2))
    keep = {axis.name: torch.arange(axis.size - 1) for axis in graph.free}
    with torch.no_grad():
        assert relative(cut(graph, {})(images(3)), model(images(3))) < 1e-12
        assert relative(cut(graph, keep)(images(3)), zeroed_output(graph, keep, images(3))) < 1e-10
    with refused("surgery-not-paddable"):
        join([Part(graph, {}), Part(graph, keep)])


TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "centred": lambda z: z - z.mean(1, keepdim=True),
    "times their sum": lambda z: z * z.sum(1, keepdim=True),
    "shares": lambda z: (F.softplus(z) + 1) / (F.softplus(z) + 1).sum(1, keepdim=True),
    "times two": lambda z: z * 2,  # the control, whose outputs are cut
}


@pytest.mark.parametrize("name", TAILS)
def test_outputs_that_are_summed_or_averaged_are_those_of_the_source(name: str) -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return TAILS[name](self.fc(self.a(x).relu().mean((2, 3))))

    model, x = randomised(Ends()), torch.rand(12, 3, 8, 8)
    relevance = by.locate(model, (x, torch.arange(12) % 4))
    component = by.disassemble(model, relevance, task=[1, 3], budget=by.Budget(flops=1.0), heal="none")
    with torch.no_grad():
        expected, found = model(x)[:, [1, 3]], component(x)
    if name == "shares":  # they are probabilities, of which the logarithm is taken
        expected = expected.log()
    assert torch.allclose(found, expected, atol=1e-5)
    output = relevance.graph(model).output
    assert (output is not None) == (name == "times two")


@pytest.mark.parametrize("copies", ["behind each other", "side by side"])
def test_features_of_copies_in_a_batch_are_averaged_for_each_image(copies: str) -> None:
    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            both = [x, x.flip(-1)]
            y = torch.cat(both) if copies == "behind each other" else torch.stack(both, 1).flatten(0, 1)
            z = self.fc(self.a(y).relu().mean((2, 3)))
            halves = z.chunk(2) if copies == "behind each other" else z.unflatten(0, (-1, 2)).unbind(1)
            return (halves[0] + halves[1]) / 2

    model, x = randomised(Mirrored()), torch.rand(12, 3, 8, 8)
    relevance = by.locate(model, (x, torch.arange(12) % 4))
    component = by.disassemble(model, relevance, task=[0, 1, 2, 3], budget=by.Budget(flops=1.0), heal="none")
    with torch.no_grad():
        expected = (model.a(x).relu().mean((2, 3)) + model.a(x.flip(-1)).relu().mean((2, 3))) / 2
        assert torch.allclose(component.observe(x)[0], expected, atol=1e-6)
        assert torch.allclose(component(x), model(x), atol=1e-5)
    assert component.manifest.statistics.images == (3, 3, 3, 3)
