"""What could be cut of a network is told from its shapes: no weight is computed with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from brickyard.axes import trace
from brickyard.surgery._cost import Removable, weightless
from brickyard.surgery._rotation import opened
from brickyard.testing import chain


class Stream(nn.Module):
    """A residual stream behind layer norms, with a scale and places."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.token = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.rand(1, 1, 12))
        self.register_buffer("places", torch.rand(5, 12))
        self.norm, self.scale = nn.LayerNorm(12), nn.Parameter(torch.rand(12))
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.more, self.last = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU()), nn.Linear(20, 12)
        if tied:
            self.last.weight = self.down.weight
        self.head = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.scale * self.down(torch.relu(self.up(self.norm(x))))
        x = x + self.last(self.more(x))
        return self.head(x[:, 0])


MAKES: dict[str, Callable[[], nn.Module]] = {"a stream": Stream, "none": chain, "tied": lambda: Stream(tied=True)}


@pytest.mark.parametrize("name", MAKES)
def test_turned_without_weights_as_much_can_be_cut(name: str) -> None:
    model = MAKES[name]().eval()
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, torch.rand(2, 3, 8, 8))
    found, expected = opened(weightless(graph)), opened(graph)
    (turned, streams), (wanted, count) = (found.graph, found.turned), (expected.graph, expected.turned)
    assert found.norms == expected.norms
    assert streams == count == (name != "none")
    assert str(turned) == str(wanted)
    assert Removable.of(turned) == Removable.of(wanted)
    assert (Removable.of(turned) == Removable.of(graph)) == (streams == 0)  # the control
    assert {value.is_meta for value in turned.network.state_dict().values()} == {name != "tied"}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(value.is_meta for value in graph.network.state_dict().values())


def test_steps_that_no_table_knows_keep_their_weights() -> None:
    model = chain().eval()
    model.conv2 = torch.jit.script(model.conv2)
    graph = trace(model, torch.rand(2, 3, 8, 8))
    assert weightless(graph) is graph
