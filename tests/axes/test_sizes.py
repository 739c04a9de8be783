"""Images of other sizes than were traced, conversions, values made of sizes, and parts that are overwritten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.network._network import Network
from brickyard.surgery._join import cut
from brickyard.testing import randomised, zeroed_output
from errors import refused


class Net(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.last, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)
        self.between = between
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.last(self.between(self.stem(x)))).mean((2, 3)))


def images(size: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)


def by_loop(y: Tensor) -> Tensor:
    """Python that depends on sizes, so that the model has to be exported."""
    b, c, h, w = y.shape
    if h % 2 or w % 2:
        y = F.pad(y, (0, w % 2, 0, h % 2))
    return (y.view(b, c, -1) - y.mean((2, 3)).unsqueeze(-1)).view(b, c, y.shape[2], y.shape[3])[:, :, :h, :w]


def rows_and_columns(y: Tensor) -> Tensor:
    h, w = y.shape[2:]
    rows = torch.linspace(-1, 1, h, dtype=y.dtype, device=y.device)
    return y * torch.meshgrid(rows, torch.arange(w, dtype=y.dtype), indexing="ij")[0] + torch.zeros(1, 8, 1, 1).to(y)


def framed(y: Tensor) -> Tensor:
    frame = y.new_zeros(y.size(0), y.size(1), y.size(2), y.size(3))
    frame[:, :, 1:] = y[:, :, :-1]
    frame[:, :3] = 0.5
    return frame


def written_twice(y: Tensor) -> Tensor:
    out = y.clone()
    out[:, :4, 0] = y[:, 4:, 1]
    out[:, 2] = out[:, 3] * 2
    return out


@pytest.mark.parametrize("between", [by_loop, rows_and_columns, framed, written_twice])
def test_a_component_takes_images_of_any_size_that_its_source_takes(between) -> None:
    model = Net(between).double()
    graph = trace(model, images(8))
    keep = {axis.name: torch.arange(0, axis.size, 2) for axis in graph.free}
    assert keep
    part = cut(graph, keep)
    with torch.no_grad():
        for size in (8, 12, 42):
            torch.testing.assert_close(graph.network(images(size)), model(images(size)), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(
                part(images(size)), zeroed_output(graph, keep, images(size)), rtol=1e-10, atol=1e-10
            )
        assert not torch.allclose(part(images(8)), model(images(8)))


@pytest.mark.parametrize(("between", "other"), [(lambda y: y * math.log(y.shape[2]), 16), (by_loop, 9)])
def test_a_network_that_is_read_for_few_sizes_says_so(between, other) -> None:
    """`math.log` of a size is a number of Python, and odd sizes go another way than that of the example."""
    model = Net(between).double()
    with pytest.warns(by.BrickyardWarning, match="8 x 8"):
        network = trace(model, images(8)).network
    with torch.no_grad():
        torch.testing.assert_close(network(images(8)), model(images(8)))
        assert not torch.allclose(network(images(other)), model(images(other)))


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.to(y.dtype).contiguous().cpu().type(y.dtype),
        lambda y: y.to(device=y.device, dtype=y.dtype).type_as(y),
        lambda y: y.to(memory_format=torch.channels_last).double(),
    ],
)
def test_conversions_that_change_nothing_leave_no_step(between) -> None:
    network = trace(Net(between).double(), images(8)).network
    kinds = {node.target for node in network.nodes if node.op == "function"}
    assert kinds <= {"contiguous", "relu", "mean"}
    assert not network.foreign


def test_conversions_follow_the_type_of_the_network() -> None:
    model = Net(lambda y: y * (y > 0).to(y.dtype) + (y * 4).long().double())
    graph = trace(model.double(), images(8))
    assert {"type_as", "to_type"} <= {node.target for node in graph.network.nodes}
    loaded = Network.from_spec(graph.network.to_spec())
    assert loaded.nodes == graph.network.nodes


def test_infinities_are_written_and_read() -> None:
    graph = trace(Net(lambda y: y.masked_fill(y > 1, float("inf")).clamp(max=3)).double(), images(8))
    spec = graph.network.to_spec()
    steps = {node.name: node for node in spec.nodes}
    assert any({"float": "inf"} in node.args for node in steps.values())
    assert Network.from_spec(spec).nodes == graph.network.nodes


def test_a_network_that_draws_is_refused() -> None:
    pool: Any = nn.FractionalMaxPool2d(2, output_ratio=0.7)
    with refused("trace-mismatch", "draws anew"):
        trace(Net(pool).double(), images(8))
