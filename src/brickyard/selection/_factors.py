"""Layers as pairs of factors, chosen for the task's images.

A convolution with weights W, as a matrix with rows (output, column of the kernel) and columns (input, row of the
kernel), reads vertical strips of its input. With L the Cholesky factor of the strips' second moments, and each output
weighted by how much it moves the task's logits, the singular value decomposition of the weighted W L gives the best
pair of every rank for these images (asymmetric, data-aware low rank: Jaderberg et al., 2014; Zhang et al., 2015): the
middle's channels come in order of what they explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.healing._heal import Draws, Shown
from brickyard.healing._streams import Stream, own_bias
from brickyard.network._layer_types import mixing_of
from brickyard.network._network import Network, Node, iter_layers
from brickyard.selection._curves import sensitivity
from brickyard.surgery._join import cut
from brickyard.surgery._pairs import Pair, middle, with_pairs
from brickyard.surgery._plan import KeepSet

NARROWEST = 8  # inputs and outputs below which a layer stays as it is
PER_INPUT = 50  # samples for each input of a first factor
LOST = 0.05  # largest share of a layer's weighted energy that a pair as dear as the layer may lose
_RIDGE = 1e-6
_FAINT = 1e-3  # least weight of an output, as a share of the mean


@dataclass(frozen=True)
class Factored:
    """A source with pairs in place of layers.

    Attributes:
        graph: Its graph; with all channels kept, it computes what the source does.
        pairs: The pairs, by the layer that they replace.
        keep: The task's class outputs, and what makes each pair as dear as its layer.
        notes: What a reader of the manifest should know.
    """

    graph: Graph
    pairs: dict[str, Pair]
    keep: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def factored(graph: Graph, keep: KeepSet, shown: Shown, round_to: int = 1) -> Factored:
    """Replace layers by pairs where a pair loses next to nothing at the cost of the layer.

    Args:
        graph: The source's graph.
        keep: The task's class outputs.
        shown: Preprocessed images of the task.
        round_to: Keep a multiple of this many channels of each middle.
    """
    network = cut(graph, keep)
    nodes = _candidates(network)
    if not nodes:
        return Factored(graph, {}, dict(keep))
    weights = sensitivity(network, [node for _, node in nodes], graph, shown)
    pairs: dict[str, Pair] = {}
    ranks: dict[str, Tensor] = {}
    with torch.no_grad():
        stream = Stream(graph, network, shown.fit)
        images = sum(map(len, shown.fit))
        for index, node in nodes:
            layer = network.layer(node.target)
            assert isinstance(layer, nn.Conv2d)
            draws = Draws(PER_INPUT, shown.seed + index)
            moments = _moments(stream, index, node, _empty(layer, 1).first, _sizes(graph, node), draws, images)
            factors = _factors(layer, moments, weights[node.target])
            rank = _rank(graph, node, layer)
            rank -= rank % round_to
            lost = float(factors.energy[rank:].sum()) / max(float(factors.energy.sum()), 1e-30)
            if rank > 0 and lost <= LOST:
                pairs[node.target], ranks[middle(node.target)] = _pair(layer, factors), torch.arange(rank)
        if not pairs:
            return Factored(graph, {}, dict(keep))
        made = with_pairs(graph, pairs)
        if not _equal(graph, made, shown.fit[0][:2]):
            return Factored(graph, {}, dict(keep), ("factors of its layers lose too much by rounding; none was used",))
    kept = {} if graph.output is None or made.output is None else {made.output.name: keep[graph.output.name]}
    return Factored(made, pairs, {**kept, **ranks})


def _equal(graph: Graph, made: Graph, x: Tensor) -> bool:
    """Whether a network with pairs of full rank computes what its source does, to rounding."""
    goal, found = graph.network(x), made.network(x)
    return float((found - goal).abs().max()) <= 1e-3 * float(goal.abs().max())


def _candidates(network: Network) -> list[tuple[int, Node]]:
    """The layers that could become pairs: convolutions in steps of one, and linear layers, that run once."""
    runs: dict[str, int] = {}
    for _, node, _ in iter_layers(network):
        runs[node.target] = runs.get(node.target, 0) + 1
    found = []
    for index, node, layer in iter_layers(network):
        if runs[node.target] > 1 or not isinstance(layer, nn.Conv2d):
            continue
        square = isinstance(layer.padding, tuple) and min(layer.kernel_size) > 1 and layer.groups == 1
        wide = min(layer.in_channels, layer.out_channels) >= NARROWEST
        if square and wide and set(layer.stride) == {1}:
            found.append((index, node))
    return found


def _empty(layer: nn.Conv2d, rank: int) -> Pair:
    """A pair of that rank, without weights that mean anything."""
    (tall, wide), (gap, apart) = layer.kernel_size, layer.dilation
    assert not isinstance(layer.padding, str)
    down, across = layer.padding
    mode, device, dtype = layer.padding_mode, layer.weight.device, layer.weight.dtype
    with torch.random.fork_rng(devices=[]):
        first = nn.Conv2d(
            layer.in_channels, rank, (tall, 1), padding=(down, 0), dilation=(gap, 1), bias=False,
            padding_mode=mode, device=device, dtype=dtype,
        )  # fmt: skip
        second = nn.Conv2d(
            rank, layer.out_channels, (1, wide), padding=(0, across), dilation=(1, apart),
            bias=layer.bias is not None, padding_mode=mode, device=device, dtype=dtype,
        )  # fmt: skip
    return Pair(first.eval(), second.eval())


def _sizes(graph: Graph, node: Node) -> tuple[int, int]:
    """Height and width of the middle."""
    (value,) = node.args
    return graph.shapes[node.name].shape[2], graph.shapes[value.node].shape[3]


def _rank(graph: Graph, node: Node, layer: nn.Conv2d) -> int:
    """The largest rank of a pair that takes no more operations than its layer."""
    height, width = _sizes(graph, node)
    out = graph.shapes[node.name].shape[2:]
    whole = layer.in_channels * layer.out_channels * int(np.prod(layer.kernel_size)) * int(np.prod(out))
    each = layer.in_channels * layer.kernel_size[0] * height * width
    each += layer.out_channels * layer.kernel_size[1] * int(np.prod(out))
    full = min(layer.in_channels * layer.kernel_size[0], layer.out_channels * layer.kernel_size[1])
    return min(whole // each, full)


def _moments(
    stream: Stream, index: int, node: Node, first: nn.Module, sizes: Sequence[int], draws: Draws, images: int
) -> Tensor:
    """Second moments of what a first factor reads, (inputs, inputs), in float64."""
    mixing = mixing_of(first)
    places = draws.places(images, sizes, mixing)
    total = torch.zeros(mixing.rows[0].numel(), mixing.rows[0].numel(), dtype=torch.float64)
    count = 0
    for start, values in zip(stream.starts, stream.before(index), strict=True):
        x = values[node.args[0].node]
        some = places[start : start + len(x)]
        where = (torch.arange(len(some)).unsqueeze(1) * int(np.prod(sizes)) + some).flatten()
        (read,) = mixing.read_at(x, sizes, where.to(x.device))
        total += (read @ read.T).double().cpu()
        count += read.shape[1]
    return total / count


@dataclass(frozen=True)
class _Factors:
    """Factors of full rank: first (rank, inputs * rows), second (outputs * columns, rank), and their energies."""

    first: Tensor
    second: Tensor
    energy: Tensor


def _factors(layer: nn.Conv2d, moments: Tensor, weights: Tensor) -> _Factors:
    """Factors of a layer, the most important first."""
    weight = layer.weight.detach().double().cpu()
    outputs, inputs, tall, wide = weight.shape
    scale = weights.clamp_min(_FAINT * float(weights.mean()) + 1e-30).sqrt()
    moments = moments + _RIDGE * moments.diagonal().mean().clamp_min(1e-30) * torch.eye(len(moments))
    lower = torch.linalg.cholesky(moments)
    matrix = (weight * scale.reshape(-1, 1, 1, 1)).permute(0, 3, 1, 2).reshape(outputs * wide, inputs * tall)
    left, values, right = torch.linalg.svd(matrix @ lower, full_matrices=False)
    first = torch.linalg.solve_triangular(lower.T, right.T, upper=True).T
    second = (left * values).reshape(outputs, wide, -1) / scale.reshape(-1, 1, 1)
    return _Factors(first, second.flatten(0, 1), values.square())


def _pair(layer: nn.Conv2d, factors: _Factors) -> Pair:
    """The pair of full rank."""
    rank = len(factors.energy)
    pair = _empty(layer, rank)
    (tall, wide), inputs, outputs = layer.kernel_size, layer.in_channels, layer.out_channels
    first = factors.first.reshape(rank, inputs, tall, 1)
    second = factors.second.reshape(outputs, wide, rank).permute(0, 2, 1).unsqueeze(2)
    mixing_of(pair.first).set_rows(first)
    mixing_of(pair.second).set_rows(second)
    if isinstance(layer.bias, Tensor):
        own_bias(pair.second).put([layer.bias.detach()])
    return pair
