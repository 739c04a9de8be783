"""Scores of channels that a budget can rank by: the controls that the relevances are compared with.

Each is a function of a graph, images of the task and its outputs, and gives one number a channel of every axis; within
an axis, channels with higher numbers are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.network._layer_types import find_mixing
from brickyard.network._network import iter_layers

RANKED = 64  # images that ranks are measured on

Criterion = Callable[[Graph, Sequence[Tensor], Sequence[int], int], Tensor]
"""(graph, batches of images, class outputs, seed) -> one score a channel, (channels,)."""


def magnitude(graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], seed: int) -> Tensor:
    """L1 norm of the weights that write a channel (Li et al., "Pruning Filters for Efficient ConvNets", 2017)."""
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    for _, node, layer in iter_layers(graph.network):
        writes, mixing = graph.at(node.target, "out"), find_mixing(layer)
        if writes is not None and mixing is not None:
            norms = mixing.rows.double().flatten(1).abs().sum(1).cpu()
            scores.index_add_(0, torch.from_numpy(writes), norms)
    return scores


def activation(graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], seed: int) -> Tensor:
    """Mean size of a channel's values where layers read them."""
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    with torch.no_grad():
        for reads, x in _read(graph, batches):
            scores.index_add_(0, reads, _per_channel(x.abs(), len(reads)))
    return scores


def taylor(graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], seed: int) -> Tensor:
    """First-order change of the loss without a channel (Molchanov et al., 2017): |sum of value times gradient|.

    The loss is the cross-entropy of the task's logits, the source's own answers being right.
    """
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    network = graph.network
    for batch in batches:
        read: list[tuple[Tensor, Tensor]] = []
        with torch.enable_grad():
            for _, node, values in network.walk(batch.clone().requires_grad_()):
                reads = graph.at(node.target, "in") if node.op == "layer" else None
                if reads is not None and (x := values[node.args[0].node]).requires_grad:
                    read.append((torch.from_numpy(reads), x))
            logits = values[node.name][:, list(outputs)]
            loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
            slopes = torch.autograd.grad(loss, [x for _, x in read], allow_unused=True)
        for (channels, x), slope in zip(read, slopes, strict=True):
            if slope is not None:
                scores.index_add_(0, channels, _per_channel(x.detach() * slope, len(channels)))
    return scores


def random(graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], seed: int) -> Tensor:
    """Numbers drawn with the seed."""
    return torch.rand(graph.channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def median_distance(graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], seed: int) -> Tensor:
    """FPGM (He et al., 2019, arXiv 1811.00250): sum of a filter's distances from all filters of its layer.

    Filters near the geometric median of a layer can be replaced by the others.
    """
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    for _, node, layer in iter_layers(graph.network):
        writes, mixing = graph.at(node.target, "out"), find_mixing(layer)
        if writes is not None and mixing is not None:
            filters = mixing.rows.double().flatten(1)
            scores.index_add_(0, torch.from_numpy(writes), torch.cdist(filters, filters).sum(1).cpu())
    return scores


def feature_rank(graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], seed: int) -> Tensor:
    """HRank (Lin et al., 2020, arXiv 2002.10179): mean rank of a channel's values (height, width) as a matrix.

    Measured where layers read them, on the first images; single values have rank 1 where they are not 0.
    """
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    left = RANKED
    with torch.no_grad():
        for batch in batches:
            batch, left = batch[:left], left - len(batch[:left])
            if not len(batch):
                break
            for reads, x in _read(graph, [batch]):
                maps = x if x.ndim == 4 else x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2).unsqueeze(3)
                ranks = torch.linalg.matrix_rank(maps.float()).double().sum(0).cpu()
                scores.index_add_(0, reads, ranks.reshape(-1, len(reads)).sum(0))
    return scores


CRITERIA: dict[str, Criterion] = {
    "l1": magnitude,
    "fpgm": median_distance,
    "hrank": feature_rank,
    "activation": activation,
    "taylor": taylor,
    "random": random,
}


def _read(graph: Graph, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """What every layer reads on every batch: channel numbers, values."""
    for batch in batches:
        for _, node, values in graph.network.walk(batch):
            reads = graph.at(node.target, "in") if node.op == "layer" else None
            if reads is not None:
                yield torch.from_numpy(reads), values[node.args[0].node]


def _per_channel(x: Tensor, channels: int) -> Tensor:
    """Sizes of the sums over positions, summed over images (and over groups that are cut alike): (channels,)."""
    sums = x.flatten(2).sum(2) if x.ndim == 4 else x.flatten(1, -2).sum(1) if x.ndim > 2 else x
    return sums.abs().sum(0).double().cpu().reshape(-1, channels).sum(0)
