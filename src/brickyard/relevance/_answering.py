"""Where a detector answers for a class: the positions of its last layers that its surest boxes come from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.network._layer_types import find_mixing
from brickyard.network._mixing import Mixing
from brickyard.network._network import Node, refs
from brickyard.network._probes import probed
from brickyard.outputs._detections import Detections

SURE = 0.5  # share of the highest score of an image from which on a place answers


class Answering:
    """Finds the positions of the last layers of a detector that answer for a class.

    A place answers for a class in an image if its score is at least half of the highest that any place has there. The
    last layers are those with no other layer that mixes channels between them and the outputs.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._kind = Detections().reading(graph.boxes, graph.input_shape)
        self._last = _last(graph)

    def __call__(self, images: Tensor, k: int) -> Mapping[str, Tensor]:
        """For each of the steps that run a last layer, which positions answer: (batch, positions), by name.

        Args:
            images: Preprocessed images of class k, (batch, channels, height, width).
            k: The class.
        """
        network = self._graph.network
        probes, rows = probed(network, self._last, images)
        with torch.no_grad():
            scores = self._kind.decode(rows)[1][..., k]
            chosen = scores >= SURE * scores.amax(1, keepdim=True)
        slopes = torch.autograd.grad((rows * chosen.unsqueeze(1)).sum(), list(probes.values()), allow_unused=True)
        found = {}
        for (name, probe), slope in zip(probes.items(), slopes, strict=True):
            depends = torch.zeros_like(probe, dtype=torch.bool) if slope is None else slope != 0
            channels = probe.ndim - 1 if self._last[name] else 1
            found[name] = depends.any(channels).flatten(1)
        return found


def _last(graph: Graph) -> dict[str, bool]:
    """The steps that run a last layer, by name, and whether their channels are the last dimension."""
    nodes = {node.name: node for node in graph.network.nodes}
    found: dict[str, bool] = {}
    waiting, seen = [graph.network.nodes[-1]], set()
    while waiting:
        node = waiting.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        mixing = _mixing(graph, node)
        if mixing is None:
            waiting += [nodes[name] for name in refs(node)]
        else:
            found[node.name] = mixing.linear
    return found


def _mixing(graph: Graph, node: Node) -> Mixing | None:
    """What answers for the layer that a step runs; None for other steps."""
    return find_mixing(graph.network.layer(node.target)) if node.op == "layer" else None
