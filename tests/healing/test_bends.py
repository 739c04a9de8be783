"""The refit behind nonlinearities other than a ReLU: what counts is the error that is left behind them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.axes._graph import trace
from brickyard.healing import _heal
from brickyard.healing._heal import heal_network
from brickyard.healing._places import Shown
from brickyard.healing._tail import tail_of
from brickyard.surgery._join import cut
from brickyard.testing import randomised

IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(4)).double()
BENDS = {
    "a layer": nn.SiLU(inplace=True),
    "a function": F.silu,
    "gate first": lambda x: x.sigmoid() * x,
    "gate last": lambda x: x * F.hardsigmoid(x),
    "hardswish": F.hardswish,
    "gelu": nn.GELU(approximate="tanh"),
    "relu6": nn.ReLU6(),
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "sigmoid": torch.sigmoid,
}


class Bent(nn.Module):
    """Two convolutions, a nonlinearity behind each, and a norm before the second."""

    def __init__(self, bend) -> None:
        super().__init__()
        self.bend = bend
        self.first, self.second = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 6, 3, bias=False)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 4)
        randomised(self)
        with torch.no_grad():
            self.second.weight.mul_(6)  # so that the bend is not a line

    def forward(self, x: Tensor) -> Tensor:
        x = self.bend(self.norm(self.second(torch.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))


def cut_one(model):
    graph = trace(model, IMAGES[:2])
    return graph, {**graph.everything(), "first": torch.arange(5)}


def at(graph, name: str):
    return next((index, node) for index, node in enumerate(graph.network.nodes) if node.target == name)


@pytest.mark.parametrize("form", BENDS)
def test_the_nonlinearity_is_seen_in_every_form_that_it_is_written_in(form) -> None:
    graph = trace(Bent(BENDS[form]).double(), IMAGES[:2])
    tail = tail_of(graph, graph.network, *at(graph, "second"))
    numbers = torch.linspace(-8, 8, 101).double()
    assert [step.target for step in tail.steps] == ["norm"]
    assert not tail.rectified
    assert torch.equal(tail.behind(numbers), BENDS[form](numbers.clone()))
    assert float((tail.behind(numbers) - numbers).abs().max()) > 0.5  # the control: it does something


class Gated(nn.Module):
    """A gate that is not the value's own, or a value that something else reads too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.second(x)
        if self.kind == "another's gate":
            y = y * x.sigmoid()
        if self.kind == "read elsewhere":
            y = F.silu(y) + y
        if self.kind == "gate read twice":
            gate = y.sigmoid()
            y = y * gate + gate
        if self.kind == "a jump":
            y = F.hardshrink(y)
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("kind", ["another's gate", "read elsewhere", "gate read twice", "a jump", "nothing"])
def test_what_only_looks_like_one_is_none(kind) -> None:
    graph = trace(Gated(kind).double(), IMAGES[:2])
    tail = tail_of(graph, graph.network, *at(graph, "second"))
    assert tail.bend is None
    assert not tail.rectified


def error(model, network) -> float:
    """The squared error behind the norm and the nonlinearity."""
    with torch.no_grad():
        found = network.layer("norm")(network.layer("second")(torch.relu(network.layer("first")(IMAGES))))
        goal = model.norm(model.second(torch.relu(model.first(IMAGES))))
        return float((model.bend(found) - model.bend(goal)).square().sum())


def least(model, network) -> float:
    """The same at the best weights and shifts that a quasi-Newton search finds from two starts."""
    starts = (model.second.weight[:, :5], model.norm), (network.layer("second").weight, network.layer("norm"))
    return min(searched(model, network, *start) for start in starts)


def searched(model, network, weight, norm) -> float:
    """The error at the end of a search from some weights, behind a norm."""
    with torch.no_grad():
        read = torch.relu(network.layer("first")(IMAGES))
        goal = model.bend(model.norm(model.second(torch.relu(model.first(IMAGES)))))
        layer = nn.Conv2d(5, 6, 3).double()
        layer.weight.copy_(weight)
        layer.bias.zero_()
    search = torch.optim.LBFGS(layer.parameters(), max_iter=400, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        found = (model.bend(norm(layer(read))) - goal).square().sum()
        found.backward()
        return found

    search.step(loss)
    return loss().item()


@pytest.mark.parametrize("form", BENDS)
def test_rounds_lower_the_error_behind_it_towards_the_least_there_is(form, monkeypatch) -> None:
    model = Bent(BENDS[form]).double()
    graph, keep = cut_one(model)
    errors = {}
    for rounds in (0, _heal.BENT):
        monkeypatch.setattr(_heal, "BENT", rounds)
        network = cut(graph, keep)
        plain = error(model, network)
        heal_network(graph, keep, network, Shown([IMAGES]), "refit", 1e-9)
        errors[rounds] = error(model, network)
    best = least(model, network)
    assert best < errors[_heal.BENT] < errors[0] < plain
    assert errors[_heal.BENT] - best < 0.25 * (errors[0] - best)
