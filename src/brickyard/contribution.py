"""Section 2's sums over a stream of images: one class at a time, one pass over its images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from brickyard.graph import Graph
from brickyard.layers.contributions import contribution_sums

__all__ = ["class_sums"]


def class_sums(graph: Graph, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Clamped contributions of every convolution and linear layer, summed over images of one class.

    Args:
        graph: The source's graph.
        batches: Preprocessed images of the class, (batch, channels, height, width) each.

    Returns:
        For each layer that reads and writes channels, S of shape (out, in), in float64.
    """
    network = graph.network
    wanted = {mixer.name for mixer in graph.mixers()}
    sums: dict[str, Tensor] = {}
    with torch.inference_mode():
        for images in batches:
            values = {network.nodes[0].name: images}
            for index, node in enumerate(network.nodes):
                if node.op == "layer" and node.target in wanted:
                    found = contribution_sums(network.layer(node.target), values[node.args[0].node])
                    sums[node.target] = sums[node.target] + found if node.target in sums else found
                network.advance(values, index, index + 1)
    return sums
