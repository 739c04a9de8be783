"""The residual stream of a transformer in another basis, in which single directions of it can be cut.

A layer norm over the channels of a stream, x -> (x - mean) / sqrt(variance + eps) * weight + bias, pins them: it reads
all of them, and each has its own weight. But the mean and the two affine parts can be moved into the layers before and
behind it. What is left is x / sqrt(sum(x^2) / width + eps), which treats all directions of the stream alike, so that a
rotation in front of it can be undone behind it: the layers that write the stream write it rotated, and those that read
it turn it back. The network computes what it did before, and every direction of the new basis is a channel like any
other: one that is zero changes no norm. (Rotations of language models: Ashkboos et al., SliceGPT, 2024.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.axes._atoms import Labels
from brickyard.axes._graph import Axis, Graph
from brickyard.network._arguments import argument
from brickyard.network._layer_types import layer_role, mixing_of
from brickyard.network._network import Network, Node, Ref, kind, refs, with_refs
from brickyard.surgery._norms import epsilon, spread

# Steps that move values, or add up or average them over other dimensions, and so commute with a rotation of channels.
# fmt: off
_LINEAR = frozenset((
    "flatten", "reshape", "view", "unflatten", "permute", "transpose", "squeeze", "unsqueeze", "expand", "expand_as",
    "flip", "roll", "getitem", "take", "repeat", "mean", "contiguous", "clone", "detach", "dropout", "dropout2d",
    "interpolate", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
))
# fmt: on
_SUMS = frozenset(("add", "tensor_add", "add_", "iadd", "cat", "stack"))  # of values that lie in one basis
_SCALES = frozenset(("mul", "tensor_mul"))
_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NORMS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Residual:
    """A stream that can be turned.

    Attributes:
        axis: Its channels.
        writers: The layers that write it.
        tensors: The bare tensors that are added or joined to it, with their dimension of channels.
        norms: The steps that normalise it, whose results are read by linear layers only.
        readers: For each layer that reads it, the step that normalises what it reads.
        scales: Steps that multiply what a layer writes with a bare tensor: the layer's name, and the tensor's.
        centred: Whether its norms subtract the mean.
    """

    axis: Axis
    writers: tuple[str, ...]
    tensors: dict[str, int]
    norms: tuple[str, ...]
    readers: dict[str, str]
    scales: dict[str, tuple[str, str]]
    centred: bool

    @property
    def width(self) -> int:
        """How many channels it has."""
        return self.axis.size


def residuals(graph: Graph) -> list[Residual]:
    """The streams of a network that can be turned: those that norms pin, and that nothing else treats by channel.

    Every layer that writes a stream or reads it must do so once, and read it behind a norm.
    """
    norms = [node for node in graph.network.nodes if _norm_width(graph.network, node)]
    found = []
    for axis in graph.axes:
        if axis.pinned and any(_on(graph, axis, node) is not None for node in norms):
            stream = _Search(graph, axis).run()
            found += [] if stream is None else [stream]
    return found


def _norm_width(network: Network, node: Node) -> int:
    """How many channels a step normalises, if it is a layer or RMS norm over the last dimension alone; else 0."""
    layer = network.layer(node.target) if node.op == "layer" else None
    if not isinstance(layer, _NORMS) or len(layer.normalized_shape) != 1:
        return 0
    return layer.normalized_shape[0]


def _on(graph: Graph, axis: Axis, node: Node) -> int | None:
    """The dimension of a value that holds all channels of an axis in their order, once or several times; or None."""
    labels = None if node.op == "output" else graph.labels(node)
    if not isinstance(labels, np.ndarray) or not _is_whole(labels, axis) or labels.size not in labels.shape:
        return None
    return int(labels.shape.index(labels.size))


def _is_whole(labels: Labels, axis: Axis) -> bool:
    """Whether these are all channels of an axis in their order, once or several times."""
    every = np.arange(axis.start, axis.start + axis.size)
    return labels.size > 0 and np.array_equal(labels.reshape(-1), np.resize(every, labels.size))


@dataclass
class _Search:
    """Goes through a network's steps, and finds out whether a stream can be turned."""

    graph: Graph
    axis: Axis
    norm_of: dict[str, str] = field(default_factory=dict)  # by step on the stream: the norm that it lies behind, or ""
    writers: list[str] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)
    scales: dict[str, tuple[str, str]] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)  # by step: the layer whose output it is, and no other's

    def run(self) -> Residual | None:
        """The stream, or None if it cannot be turned."""
        network = self.graph.network
        if not all(self._step(node) for node in network.nodes):
            return None
        norms = tuple(dict.fromkeys(self.readers.values()))
        runs = [node.target for node in network.nodes if node.op in ("layer", "tensor")]
        once = all(runs.count(name) == 1 for name in (*self.writers, *self.readers, *self.tensors))
        apart = not set(self.writers) & set(self.readers)
        behind = {norm for norm in self.norm_of.values() if norm}
        kinds = {isinstance(network.layer(node.target), nn.LayerNorm) for node in network.nodes if node.name in norms}
        if behind != set(norms) or len(kinds) != 1 or not once or not apart:
            return None
        return Residual(self.axis, tuple(self.writers), self.tensors, norms, self.readers, self.scales, *kinds)

    def _step(self, node: Node) -> bool:
        """Whether a step leaves the stream turnable."""
        given = [name for name in refs(node) if name in self.norm_of]
        where = _on(self.graph, self.axis, node)
        if not given:
            return self._writes(node, where) if where is not None else not self._touches(node)
        if node.op == "function" and self._is_number(node):
            return True
        bases = {self.norm_of[name] for name in given}
        if len(bases) != 1 or node.op == "output":
            return False
        (basis,) = bases
        if where is None:
            return self._reads(node, basis)
        return self._passes(node, basis, len(given))

    def _touches(self, node: Node) -> bool:
        """Whether a step's value holds channels of the axis, in whatever order."""
        labels = None if node.op == "output" else self.graph.labels(node)
        every = labels if isinstance(labels, tuple) else (labels,)
        start, stop = self.axis.start, self.axis.start + self.axis.size
        return any(isinstance(one, np.ndarray) and bool(((one >= start) & (one < stop)).any()) for one in every)

    def _is_number(self, node: Node) -> bool:
        return node.target in ("shape", "size", "dim")

    def _writes(self, node: Node, where: int) -> bool:
        """Whether a layer or a bare tensor begins to be on the stream here."""
        if node.op == "tensor":
            self.tensors[node.target] = where
        elif node.op == "layer" and _mixes_all(self.graph.network.layer(node.target)):
            self.writers.append(node.target)
            self.written[node.name] = node.target
        else:
            return False
        self.norm_of[node.name] = ""
        return True

    def _reads(self, node: Node, basis: str) -> bool:
        """Whether a linear layer reads all of the stream, normalised."""
        layer = self.graph.network.layer(node.target) if node.op == "layer" else None
        reads = self.graph.at(node.target, "in") if isinstance(layer, nn.Linear) else None
        if not basis or reads is None or not _is_whole(reads, self.axis) or len(reads) % self.axis.size:
            return False
        self.readers[node.target] = basis
        return True

    def _passes(self, node: Node, basis: str, count: int) -> bool:
        """Whether a step commutes with a rotation, or is a norm that can be opened."""
        network = self.graph.network
        layer = network.layer(node.target) if node.op == "layer" else None
        source = refs(node)[0]
        if isinstance(layer, _NORMS):
            if basis or _norm_width(network, node) != self.axis.size:  # which holds other copies, too
                return False
            self.norm_of[node.name] = node.name
            return True
        if node.op == "function" and node.target in _SCALES and not basis:
            return self._scales(node)
        good = (
            isinstance(layer, _IDLE + _POOLS)
            if layer is not None
            else node.target in _LINEAR or _adds_zeros(node, basis)
        )
        if node.target in _SUMS:  # of nothing but values on the stream, side by side in another dimension
            joins = node.target in ("cat", "stack")
            good = count == len(refs(node)) and (joins or not (basis or _numbers(node)))
        if good and (layer is not None or node.target in ("dropout", "contiguous")) and source in self.written:
            self.written[node.name] = self.written[source]
        self.norm_of[node.name] = basis
        return good

    def _scales(self, node: Node) -> bool:
        """Whether a step multiplies what one layer writes with a bare tensor, and nothing else uses these."""
        names = refs(node)
        layer = next((self.written[name] for name in names if name in self.written), None)
        scale = next((name for name in names if self._is_tensor(name)), None)
        if layer is None or scale is None or len(names) != 2:
            return False
        chain = [name for name, writer in self.written.items() if writer == layer]
        uses = [other for other in self.graph.network.nodes if any(name in refs(other) for name in (*chain, scale))]
        if len(uses) != len(chain):  # each goes to the next of them, and the last one and the tensor to this step
            return False
        tensor = next(other.target for other in self.graph.network.nodes if other.name == scale)
        self.tensors.pop(tensor, None)
        self.scales[node.name] = layer, tensor
        self.norm_of[node.name] = ""
        return True

    def _is_tensor(self, name: str) -> bool:
        return any(node.name == name and node.op == "tensor" for node in self.graph.network.nodes)


def _numbers(node: Node) -> bool:
    """Whether a sum has a plain number among its terms."""
    return node.target in ("add", "tensor_add", "add_", "iadd") and (
        any(isinstance(value, int | float) for value in node.args) or bool(node.kwargs)
    )


def _adds_zeros(node: Node, basis: str) -> bool:
    """Whether a step adds zeros, to a stream that is not normalised yet: a norm's shift would be missing there."""
    if node.target != "pad":
        return False
    amounts, value = argument(node, "pad"), argument(node, "value", 0)
    nothing = all(isinstance(amount, int) and amount == 0 for amount in amounts)
    return nothing or (not basis and argument(node, "mode", "constant") == "constant" and value in (0, None))


def _mixes_all(layer: nn.Module) -> bool:
    """Whether every output of a layer may read every input."""
    return layer_role(layer) == "mix" and mixing_of(layer).groups == 1


# -- turning ---------------------------------------------------------------------------------------------------


def rotated(graph: Graph, stream: Residual, basis: Tensor) -> Graph:
    """A network that computes the same, with a stream in another basis.

    Args:
        graph: A network's graph.
        stream: One of its streams.
        basis: The new directions as columns, orthonormal: (width, width), in float64.
    """
    network = graph.network
    turn = basis - basis.mean(0) if stream.centred else basis  # what the norms subtract, those do now that write
    layers = {name: network.layer(name) for name in network.layer_names}
    tensors = {name: network.tensor(name) for name in network.tensor_names}
    scales = dict(stream.scales.values())
    for name in stream.writers:
        scale = tensors[scales[name]].detach().double().reshape(-1) if name in scales else None
        layers[name] = _writing(layers[name], turn, scale)
    for name, dim in stream.tensors.items():
        before = tensors[name]
        turned = torch.movedim(before.detach().double(), dim, -1) @ turn.to(before.device)
        turned = torch.movedim(turned, -1, dim).to(before.dtype).contiguous()
        tensors[name] = nn.Parameter(turned) if isinstance(before, nn.Parameter) else turned
    norms = {node.name: network.layer(node.target) for node in network.nodes if node.name in stream.norms}
    for name, norm in stream.readers.items():
        layers[name] = _reading(layers[name], norms[norm], basis)
    return graph.rewritten(_steps(network, stream), layers, tensors)


def _writing(layer: nn.Module, turn: Tensor, scale: Tensor | None) -> nn.Module:
    """A layer that writes the stream in the new basis."""
    turned = copy.deepcopy(layer)
    mixing = mixing_of(turned)
    rows, turn = mixing.rows.double(), turn.to(mixing.rows.device)
    turn = turn if scale is None else turn * scale.to(turn.device).unsqueeze(1)
    mixing.set_rows((turn.T @ rows.flatten(1)).reshape(rows.shape).to(mixing.rows.dtype))
    if isinstance(turned.bias, Tensor):
        turned.bias.data.copy_(turn.T @ turned.bias.detach().double())
    return turned


def _reading(layer: nn.Module, norm: nn.Module, basis: Tensor) -> nn.Module:
    """A linear layer that turns the normalised stream back, and does what the norm's affine part did."""
    assert isinstance(layer, nn.Linear)
    copies = layer.in_features // len(basis)
    rows, turn = layer.weight.detach().double(), torch.block_diag(*[basis.to(layer.weight.device)] * copies)
    affine = (getattr(norm, part, None) for part in ("weight", "bias"))
    weight, shift = (one.detach().double().repeat(copies) if isinstance(one, Tensor) else None for one in affine)
    biases = [layer.bias.detach().double()] if isinstance(layer.bias, Tensor) else []
    biases += [rows @ shift] if shift is not None else []
    made = nn.Linear(layer.in_features, layer.out_features, bool(biases), device="meta")
    made.weight = nn.Parameter(((rows if weight is None else rows * weight) @ turn).to(layer.weight.dtype))
    if biases:
        made.bias = nn.Parameter(torch.stack(biases).sum(0).to(layer.weight.dtype))
    return made.eval()


def _steps(network: Network, stream: Residual) -> list[Node]:
    """The steps of a turned network: norms are opened, and scales that layers have taken in are gone."""
    same: dict[str, str] = {}  # by a step that is gone: what it multiplied
    gone = {tensor for _, tensor in stream.scales.values()}
    nodes: list[Node] = []
    for node in network.nodes:
        moved = with_refs(node, lambda ref: Ref(same.get(ref.node, ref.node)))
        if node.name in stream.scales:
            (same[node.name],) = [name for name in refs(moved) if _target(network, name) not in gone]
        elif node.name in stream.norms:
            nodes += _opened(moved, stream.width, epsilon(network.layer(node.target)))
        elif node.op != "tensor" or node.target not in gone:
            nodes.append(moved)
    return nodes


def _target(network: Network, name: str) -> str:
    return next(node.target for node in network.nodes if node.name == name)


def _opened(node: Node, width: int, eps: float) -> list[Node]:
    """The steps of x / sqrt(sum(x^2) / width + eps), where `width` stays that of the uncut stream."""
    (x,) = node.args
    steps: list[Node] = []

    def then(function: str, *args: Any, **kwargs: Any) -> Ref:
        steps.append(Node(f"{node.name}_{function}", "function", function, args, kwargs))
        return Ref(steps[-1].name)

    total = then("sum", then("square", x), -1, keepdim=True)
    root = then("rsqrt", then("add", then("truediv", total, width), eps))
    return [*steps, Node(node.name, "function", "mul", (x, root))]


def principal(moments: Tensor) -> Tensor:
    """The principal directions of a stream as columns, the one of the most energy first: (width, width).

    Args:
        moments: Second moments of the normalised stream, (width, width), in float64.
    """
    _, vectors = torch.linalg.eigh(moments)
    vectors = vectors.flip(1)
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    found: Tensor = vectors * signs
    return found


@dataclass(frozen=True)
class Opened:
    """A network whose norms leave the streams that they normalise free to be cut.

    Attributes:
        graph: The network, which computes what it did before.
        turned: How many of its residual streams are in another basis.
        norms: How many norms of other streams are written as steps.
    """

    graph: Graph
    turned: int
    norms: int


def opened(graph: Graph, basis: Callable[[Graph, Residual], Tensor] | None = None) -> Opened:
    """The network with every stream turned that can be, and other norms over channels written as steps.

    Args:
        graph: A network's graph.
        basis: Gives the new directions of a stream, as for `rotated`; None: those that it has.
    """
    count = 0
    graph = _begun(graph)
    while streams := residuals(graph):  # one that is turned has no norms any more
        stream = streams[0]
        new = torch.eye(stream.width, dtype=torch.float64) if basis is None else basis(graph, stream)
        graph = rotated(graph, stream, new)
        count += 1
    graph, norms = spread(graph)
    return Opened(graph, count, norms)


def _begun(graph: Graph) -> Graph:
    """The network with a layer that changes nothing behind a norm whose result is a stream that can then be turned.

    Such a norm stands before the first block, as in CLIP. Where there is none, the network is as it was.
    """
    network = graph.network
    for node in network.nodes:
        width = _norm_width(network, node)
        idle = (other.name for other in network.nodes if node.name in refs(other) and _idles(network, other))
        same = {node.name, *idle}
        if width and any(same & set(refs(other)) and _norm_width(network, other) for other in network.nodes):
            begun, name = _with_layer_behind(graph, node, width)
            return begun if any(name in stream.writers for stream in residuals(begun)) else graph
    return graph


def _with_layer_behind(graph: Graph, norm: Node, width: int) -> tuple[Graph, str]:
    """The network with a linear layer that changes nothing behind a step; and the layer's name."""
    network = graph.network
    layer = nn.Linear(width, width, bias=False).to(kind(network)).eval()
    layer.weight.data.copy_(torch.eye(width))
    begin = Node(f"{norm.name}_begin", "layer", f"{norm.target}_begin", (Ref(norm.name),))

    def moved(ref: Ref) -> Ref:
        return Ref(begin.name) if ref.node == norm.name else ref

    nodes: list[Node] = []
    for node in network.nodes:
        nodes += [with_refs(node, moved), *([begin] if node is norm else [])]
    layers = {begin.target: layer, **{name: network.layer(name) for name in network.layer_names}}
    tensors = {name: network.tensor(name) for name in network.tensor_names}
    return graph.rewritten(nodes, layers, tensors), begin.target


def _idles(network: Network, node: Node) -> bool:
    return node.op == "layer" and isinstance(network.layer(node.target), _IDLE)
