"""Why a network answers one image as it does: which places of the image speak for an output, and by which channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.base._options import Thresholds
from brickyard.network._network import Network, refs
from brickyard.relevance._allocation import allocate
from brickyard.relevance._contribution import class_sums
from brickyard.relevance._locate import layer_records

FINE = 4  # positions on each side of a map that is fine enough
TOGETHER = 64  # copies of a map that run at once


def position_map(network: Network, x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor | None:
    """How much each position of the last map contributes to a score: the score, less the score without the position.

    The map is the last value with (batch, channels, height, width) that all later steps depend on, and on nothing else,
    with at least four positions on each side, or else more than one. Without a position means zeros in all its
    channels. If the rest of the network is linear, as an average over positions and a linear layer, these are the terms
    of the score: their sum is the score minus its bias. No gradient is taken.

    Args:
        network: The network.
        x: One preprocessed image, (1, channels, height, width).
        score: The number to explain, from the network's outputs: (batch, outputs) -> (batch,).

    Returns:
        (height, width) of the map in float64, or None where no value of the network is such a map.

    Example:
        >>> import torch
        >>> from brickyard.axes._graph import trace
        >>> from brickyard.relevance._explain import position_map
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        ...     torch.nn.Linear(5, 2))
        >>> x = torch.rand(1, 3, 8, 8)
        >>> found = position_map(trace(net, x).network, x, lambda outputs: outputs[:, 0])
        >>> found.shape, bool(torch.isclose(found.sum().float(), net(x)[0, 0] - net[3].bias[0], atol=1e-5))
        (torch.Size([6, 6]), True)
    """
    with torch.inference_mode():
        last = _last_map(network, x)
        if last is None:
            return None
        index, value = last
        _, channels, height, width = value.shape
        nodes = network.nodes
        later = {name for node in nodes[index + 1 :] for name in refs(node)}
        bare = [node for node in nodes[:index] if node.op == "tensor" and node.name in later]

        def run(maps: Tensor) -> Tensor:
            values: dict[str, Any] = {nodes[index].name: maps, **{node.name: network.step(node, {}) for node in bare}}
            network.advance(values, index + 1, len(nodes))
            return score(values[nodes[-1].name]).double()

        whole = run(value.clone())
        found: list[Tensor] = []
        for places in torch.arange(height * width, device=value.device).split(TOGETHER):
            maps = value.flatten(2).repeat(len(places), 1, 1)
            maps[torch.arange(len(places), device=value.device), :, places] = 0
            found.append(whole - run(maps.reshape(len(places), channels, height, width)))
        return torch.cat(found).reshape(height, width).cpu()


def _last_map(network: Network, x: Tensor) -> tuple[int, Tensor] | None:
    """The step whose value is the last map, and its value."""
    nodes = network.nodes
    tensors = {node.name for node in nodes if node.op == "tensor"}
    last_use = {name: index for index, node in enumerate(nodes) for name in refs(node)}
    alone: set[int] = set()  # steps behind which only their own value is still needed
    needed: set[str] = set()
    for index, node in enumerate(nodes[:-1]):
        needed = {name for name in needed | {node.name} if last_use.get(name, -1) > index} - tensors
        if needed == {node.name}:
            alone.add(index)
    best: tuple[int, Tensor] | None = None
    for after, _, values in network.walk(x):
        index = after - 1
        value = values.get(nodes[index].name) if index > 0 else None
        if index not in alone or not isinstance(value, Tensor) or value.ndim != 4 or len(value) != len(x):
            continue
        fine = min(value.shape[2:]) >= FINE
        if fine or best is None or (min(best[1].shape[2:]) < FINE and value[0, 0].numel() > 1):
            best = index, value.clone()
    return best if best is not None and best[1][0, 0].numel() > 1 else None


def route(graph: Graph, x: Tensor, output: int, thresholds: Thresholds | None = None) -> dict[str, Tensor]:
    """The channels that locating finds relevant for one output from a single image, or a few.

    Args:
        graph: The network's axes.
        x: Preprocessed images, (batch, channels, height, width).
        output: The output.
        thresholds: alpha and beta; None: the usual ones.

    Returns:
        For each axis, bool of its channels.
    """
    relevant, written = torch.zeros(2, graph.channels, dtype=torch.bool)
    for axis in graph.axes:
        if axis.pinned and not axis.output:
            relevant[axis.channels] = written[axis.channels] = True
    if graph.output is not None:
        written[graph.output.start + output] = True
    found = allocate(layer_records(graph), class_sums(graph, [x]), (relevant, written), thresholds or Thresholds())
    if graph.output is not None:
        found.relevant[graph.output.start + output] = True
    return {axis.name: found.relevant[axis.channels] for axis in graph.axes}
