"""Layers as pairs of factors, chosen for the task's images.

A convolution with weights W, as a matrix with rows (output, column of the kernel) and columns (input, row of the
kernel), reads vertical strips of its input. With L the Cholesky factor of the strips' second moments, and each output
weighted by how much it moves the task's logits, the singular value decomposition of the weighted W L gives the best
pair of every rank for these images (asymmetric, data-aware low rank: Jaderberg et al., 2014; Zhang et al., 2015): the
middle's channels come in order of what they explain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.healing._heal import reads
from brickyard.healing._places import Draws, Shown
from brickyard.healing._streams import Stream, own_bias
from brickyard.network._layer_types import find_mixing, mixing_of
from brickyard.network._mixing import Mixing
from brickyard.network._network import Network, Node, iter_layers
from brickyard.selection._curves import sensitivity
from brickyard.surgery._join import cut
from brickyard.surgery._pairs import Pair, middle_axis, with_pairs
from brickyard.surgery._plan import KeepSet, Part, positions

NARROWEST = 8  # inputs and outputs below which a layer stays as it is
NARROWEST_FLAT = 64  # the same for a layer without a kernel
WIDEST = 2048  # largest side of a matrix that is decomposed
PER_INPUT = 50  # samples for each input of a first factor
LOST = 0.05  # largest share of a layer's weighted energy that a pair as dear as the layer may lose
LOST_FLAT = 0.002  # the same for a layer without a kernel, whose pair can only be dearer or lose something
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


def factored(graph: Graph, keep: KeepSet, shown: Shown, step: Callable[[int], int] = lambda _: 1) -> Factored:
    """Replace layers by pairs where a pair loses next to nothing at the cost of the layer.

    Args:
        graph: The source's graph.
        keep: The task's class outputs.
        shown: Preprocessed images of the task.
        step: Of what number the channels of a middle of some size are to be a multiple.
    """
    network = cut(graph, keep)
    nodes = [(index, node) for index, node in _candidates(network) if _reads_all(graph, network, node.target)]
    if not nodes:
        return Factored(graph, {}, dict(keep))
    weights = sensitivity(network, [node for _, node in nodes], graph, shown)
    pairs: dict[str, Pair] = {}
    ranks: dict[str, int] = {}
    with torch.no_grad():
        stream = Stream(graph, network, shown.fit)
        for index, node in nodes:
            layer = network.layer(node.target)
            sizes, draws = _sizes(graph, node, layer), Draws(PER_INPUT, shown.seed + index, shown.near[0])
            first = mixing_of(_empty(layer, 1).first)
            moments = _moments(reads(stream, index, node, first, sizes, draws), first)
            whole, heard = _whole(graph, keep, node.target, weights[node.target])
            factors = _factors(whole, moments, heard)
            if factors is None:
                continue
            rank = _rank(graph, node, layer, len(factors.energy))
            rank -= rank % step(len(factors.energy))
            lost = float(factors.energy[rank:].sum()) / max(float(factors.energy.sum()), 1e-30)
            flat = mixing_of(layer).kernel.shape[2] == 1
            if rank > 0 and lost <= (LOST_FLAT if flat else LOST):
                pairs[node.target], ranks[node.target] = _pair(whole, factors), rank
        if not pairs:
            return Factored(graph, {}, dict(keep))
        made = with_pairs(graph, pairs)
        if not _equal(graph, made, shown.fit[0][:2]):
            return Factored(graph, {}, dict(keep), ("factors of its layers lose too much by rounding; none was used",))
    kept: dict[str, Tensor] = {}
    if graph.output is not None and made.output is not None and graph.output.name in keep:
        kept = {made.output.name: keep[graph.output.name]}
    kept |= {middle_axis(made, name): torch.arange(rank) for name, rank in ranks.items()}
    return Factored(made, pairs, kept)


def _equal(graph: Graph, made: Graph, x: Tensor) -> bool:
    """Whether a network with pairs of full rank computes what its source does, to rounding."""
    goal, found = graph.network(x), made.network(x)
    return float((found - goal).abs().max()) <= 1e-3 * float(goal.abs().max())


def _candidates(network: Network) -> list[tuple[int, Node]]:
    """The layers that could become pairs: those of one group and in steps of one, that run once."""
    runs = Counter(node.target for _, node, _ in iter_layers(network))
    found = []
    for index, node, layer in iter_layers(network):
        mixing = find_mixing(layer)
        if mixing is None or mixing.groups > 1 or runs[node.target] > 1:
            continue
        outputs, inputs = mixing.rows.shape[:2]
        kernel = tuple(mixing.rows.shape[2:]) or (1, 1)
        flat = max(kernel) == 1
        sides = inputs * kernel[0], outputs * kernel[-1]
        if min(inputs, outputs) < (NARROWEST_FLAT if flat else NARROWEST) or max(sides) > WIDEST:
            continue
        if mixing.linear or _separable(layer):
            found.append((index, node))
    return found


def _reads_all(graph: Graph, network: Network, name: str) -> bool:
    """Whether a layer of the cut network reads all that the source's does."""
    cut_rows, rows = (mixing_of(one.layer(name)).rows for one in (network, graph.network))
    return cut_rows.shape[1] == rows.shape[1]


def _whole(graph: Graph, keep: KeepSet, name: str, weights: Tensor) -> tuple[nn.Module, Tensor]:
    """The source's layer, of which the cut network may have some outputs, and a weight for each of its outputs."""
    layer, labels = graph.network.layer(name), graph.at(name, "out")
    heard = torch.zeros(len(mixing_of(layer).rows), dtype=weights.dtype)
    if len(heard) == len(weights) or labels is None:
        return layer, weights
    heard[torch.from_numpy(positions(Part(graph, keep), labels))] = weights
    return layer, heard


def _separable(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that a column and a row can replace, or one without a kernel."""
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str) or set(layer.stride) != {1}:
        return False
    return min(layer.kernel_size) > 1 or max(layer.kernel_size) == 1


def _empty(layer: nn.Module, rank: int) -> Pair:
    """A pair of that rank, without weights that mean anything."""
    like: dict[str, Any] = {"device": mixing_of(layer).rows.device, "dtype": mixing_of(layer).rows.dtype}
    biased = layer.bias is not None
    with torch.random.fork_rng(devices=[]):
        if isinstance(layer, nn.Linear):
            first: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **like)
            return Pair(first.eval(), nn.Linear(rank, layer.out_features, bias=biased, **like).eval())
        assert isinstance(layer, nn.Conv2d)
        assert not isinstance(layer.padding, str)
        (tall, down, gap), (wide, across, apart) = zip(layer.kernel_size, layer.padding, layer.dilation, strict=True)
        like["padding_mode"] = layer.padding_mode
        first = nn.Conv2d(layer.in_channels, rank, (tall, 1), padding=(down, 0), dilation=(gap, 1), bias=False, **like)
        second = nn.Conv2d(
            rank, layer.out_channels, (1, wide), padding=(0, across), dilation=(1, apart), bias=biased, **like
        )
    return Pair(first.eval(), second.eval())


def _sizes(graph: Graph, node: Node, layer: nn.Module) -> tuple[int, ...]:
    """The sizes of the middle's dimensions that hold positions."""
    out = tuple(graph.shapes[node.name].shape)
    if isinstance(layer, nn.Linear):
        return out[1:-1]
    assert isinstance(layer, nn.Conv2d)
    (value,) = node.args
    return out[2], graph.shapes[value.node].shape[3]


def _rank(graph: Graph, node: Node, layer: nn.Module, full: int) -> int:
    """The largest rank of a pair that takes no more operations than its layer."""
    mixing, pair = mixing_of(layer), _empty(layer, 1)
    (value,) = node.args
    outputs, inputs = mixing.rows.shape[:2]
    read, written = graph.shapes[value.node], graph.shapes[node.name]
    shape = list(written.shape)
    shape[mixing.channel_dim] = 1
    if not mixing.linear:
        shape[2:] = _sizes(graph, node, layer)
    between = written.new_empty(shape)
    whole = mixing.pair_flops(read, written, graph.batch) * inputs * outputs
    first, second = (mixing_of(part) for part in (pair.first, pair.second))
    each = first.pair_flops(read, between, graph.batch) * inputs
    each += second.pair_flops(between, written, graph.batch) * outputs
    return min(whole // max(1, each), full)


def _moments(read: Iterable[Tensor], mixing: Mixing) -> Tensor:
    """Second moments of what a first factor reads, (inputs, inputs), in float64."""
    total = torch.zeros(mixing.rows[0].numel(), mixing.rows[0].numel(), dtype=torch.float64)
    count = 0
    for (x,) in read:
        total += (x @ x.T).double().cpu()
        count += x.shape[1]
    return total / count


@dataclass(frozen=True)
class _Factors:
    """Factors of full rank: first (rank, inputs * rows), second (outputs * columns, rank), and their energies."""

    first: Tensor
    second: Tensor
    energy: Tensor


def _factors(layer: nn.Module, moments: Tensor, weights: Tensor) -> _Factors | None:
    """Factors of a layer, the most important first; None where its inputs tell nothing."""
    rows = mixing_of(layer).rows.double().cpu()
    weight = rows.reshape(*rows.shape[:2], *(rows.shape[2:] or (1, 1)))
    outputs, inputs, tall, wide = weight.shape
    scale = weights.clamp_min(_FAINT * float(weights.mean()) + 1e-30).sqrt()
    moments = moments + _RIDGE * moments.diagonal().mean().clamp_min(1e-30) * torch.eye(len(moments))
    lower, info = torch.linalg.cholesky_ex(moments)
    if int(info) or not bool(torch.isfinite(lower).all()):
        return None
    matrix = (weight * scale.reshape(-1, 1, 1, 1)).permute(0, 3, 1, 2).reshape(outputs * wide, inputs * tall)
    left, values, right = torch.linalg.svd(matrix @ lower, full_matrices=False)
    first = torch.linalg.solve_triangular(lower.T, right.T, upper=True).T
    second = (left * values).reshape(outputs, wide, -1) / scale.reshape(-1, 1, 1)
    return _Factors(first, second.flatten(0, 1), values.square())


def _pair(layer: nn.Module, factors: _Factors) -> Pair:
    """The pair of full rank."""
    pair = _empty(layer, len(factors.energy))
    outputs = len(mixing_of(layer).rows)
    mixing_of(pair.first).set_rows(factors.first)
    mixing_of(pair.second).set_rows(factors.second.unflatten(0, (outputs, -1)).transpose(1, 2))
    if bias := own_bias(layer):
        own_bias(pair.second).put(bias.values())
    return pair
