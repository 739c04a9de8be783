"""Section 2's sums over a stream of images: one class at a time, one pass over its images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from brickyard.graph import Graph
from brickyard.layers.contributions import ContributionSums

__all__ = ["class_sums"]


def class_sums(graph: Graph, batches: Iterable[Tensor]) -> dict[str, ContributionSums]:
    """Clamped contributions of every convolution and linear layer, summed over images of one class.

    Args:
        graph: The source's graph.
        batches: Preprocessed images of the class, (batch, channels, height, width) each.

    Returns:
        For each layer that reads and writes channels, its S.
    """
    network = graph.network
    sums = {mixer.name: ContributionSums(network.layer(mixer.name)) for mixer in graph.mixers()}
    with torch.inference_mode():
        for images in batches:
            values = {network.nodes[0].name: images}
            for index, node in enumerate(network.nodes):
                if node.op == "layer" and node.target in sums:
                    sums[node.target].add(values[node.args[0].node])
                network.advance(values, index, index + 1)
    return sums
