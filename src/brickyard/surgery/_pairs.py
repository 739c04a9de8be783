"""A layer as a pair of layers, whose middle is one more axis that can be cut.

A convolution becomes a column and a row: `kernel x 1`, then `1 x kernel`. A layer without a kernel becomes two of its
kind. A pair of full rank computes what its layer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from brickyard.axes._atoms import DimRole
from brickyard.axes._graph import Graph, analyse
from brickyard.base._errors import SurgeryError
from brickyard.base._records import ComponentManifest
from brickyard.network._layer_types import mixing_of
from brickyard.network._network import Network, Node, Ref, refs
from brickyard.surgery._cost import keep_mask
from brickyard.surgery._plan import KeepSet, Part

FIRST, SECOND = "factor1", "factor2"
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """What a layer is replaced by.

    Attributes:
        first: Reads what the layer reads, and writes the middle.
        second: Reads the middle, and writes what the layer writes.
    """

    first: nn.Module
    second: nn.Module

    @property
    def rank(self) -> int:
        """How many channels the middle has."""
        return len(mixing_of(self.first).rows)


def middle(layer: str) -> str:
    """The name of the first of a layer's pair, which writes its middle."""
    return f"{layer}.{FIRST}"


def middle_axis(graph: Graph, layer: str) -> str:
    """The name of the middle axis of a layer's pair; an input that cannot be followed takes that of the layer."""
    labels = graph.at(middle(layer), "out")
    assert labels is not None
    return next(axis.name for axis in graph.axes if axis.start <= labels[0] < axis.start + axis.size)


def paired(network: Network) -> list[str]:
    """The layers of a network that are pairs: whose product is a layer, whatever the names are."""
    names = [name.removesuffix(f".{FIRST}") for name in network.layer_names if name.endswith(f".{FIRST}")]
    return [name for name in names if _is_pair(network, name)]


def _is_pair(network: Network, name: str) -> bool:
    """Whether two layers with the names of a layer's factors are that; a source may use such names too."""
    first, second = middle(name), f"{name}.{SECOND}"
    if second not in network.layer_names:
        return False
    one, other = network.layer(first), network.layer(second)
    runs = [node for node in network.nodes if node.op == "layer" and node.target in (first, second)]
    if [node.target for node in runs] != [first, second] or runs[1].args != (Ref(runs[0].name),) or runs[1].kwargs:
        return False
    if isinstance(one.bias, Tensor) or sum(runs[0].name in refs(node) for node in network.nodes) > 1:
        return False
    if isinstance(one, nn.Linear) and isinstance(other, nn.Linear):
        return True
    return isinstance(one, nn.Conv2d) and isinstance(other, nn.Conv2d) and _column_and_row(one, other)


def _column_and_row(one: nn.Conv2d, other: nn.Conv2d) -> bool:
    """Whether convolutions are a column and a row of one kernel."""
    if any(layer.groups > 1 or set(layer.stride) != {1} or isinstance(layer.padding, str) for layer in (one, other)):
        return False
    flat = (one.kernel_size[1], one.padding[1], other.kernel_size[0], other.padding[0]) == (1, 0, 1, 0)
    return flat and one.padding_mode == other.padding_mode


def plain_name(axis: str) -> str:
    """The name that an axis of a graph with pairs has without them."""
    name, mark, number = axis.partition("#")
    return name.removesuffix(f".{SECOND}") + mark + number


def with_pairs(graph: Graph, pairs: Mapping[str, Pair]) -> Graph:
    """The graph of a network in which layers are replaced by pairs; other layers are shared.

    Args:
        graph: A traced source.
        pairs: Pairs by the dotted name of a layer that runs once.
    """
    source = graph.network
    nodes: list[Node] = []
    for node in source.nodes:
        if node.op == "layer" and node.target in pairs:
            first = Node(f"{node.name}_{FIRST}", "layer", middle(node.target), node.args, node.kwargs)
            nodes += [first, replace(node, target=f"{node.target}.{SECOND}", args=(Ref(first.name),), kwargs={})]
        else:
            nodes.append(node)
    layers = {name: source.layer(name) for name in source.layer_names if name not in pairs}
    for name, pair in pairs.items():
        layers |= {middle(name): pair.first, f"{name}.{SECOND}": pair.second}
    tensors = {name: source.tensor(name) for name in source.tensor_names}
    return graph.rewritten(nodes, layers, tensors)


def paying(plain: Graph, made: Graph, keep: KeepSet, pairs: Mapping[str, Pair], resource: str) -> dict[str, Pair]:
    """The pairs that cost less than their layers would, with what is kept.

    Args:
        plain: The source's graph.
        made: Its graph with all pairs.
        keep: What is kept of that.
        pairs: The pairs.
        resource: "flops" or "parameters".
    """
    mask = keep_mask(made, keep)

    def each(graph: Graph, name: str) -> int:
        """The cost of one of a layer's pairs of an output and an input."""
        mixing = mixing_of(graph.network.layer(name))
        if resource == "parameters":
            return mixing.kernel.shape[2]
        node = next(node for node in graph.network.nodes if node.op == "layer" and node.target == name)
        return mixing.pair_flops(graph.shapes[_source(node)], graph.shapes[node.name], graph.batch)

    def count(name: str, role: DimRole) -> int:
        labels = made.at(name, role)
        assert labels is not None
        return int(mask[labels].sum())

    found = {}
    for name, pair in pairs.items():
        first, second = middle(name), f"{name}.{SECOND}"
        read, rank, written = count(first, "in"), count(first, "out"), count(second, "out")
        cost = each(made, first) * read * rank + each(made, second) * rank * written
        if cost < each(plain, name) * read * written:
            found[name] = pair
    return found


def alike(parts: Sequence[Part], made: Sequence[bool], *, none: bool = False) -> tuple[list[Part], int]:
    """Parts whose layers are pairs in all of them or in none, so that they can be laid side by side.

    Args:
        parts: Parts of one architecture, with networks of their own.
        made: Whether each was cut with pairs in place of its source's layers; pairs of other parts are the source's.
        none: Whether no layer may be a pair.

    Returns:
        The parts, with other pairs multiplied out, and how many layers that concerns.
    """
    found = [set(paired(part.graph.network)) for part in parts]
    sources = set[str]().union(*(names for names, factors in zip(found, made, strict=True) if not factors))
    owned = [names - sources for names in found]
    common = set[str]() if none else set.intersection(*owned)
    return [_multiplied(part, own - common) for part, own in zip(parts, owned, strict=True)], len(
        set[str]().union(*owned) - common
    )


def without_pairs(network: Network) -> Network:
    """A network in which every pair is a layer again, with the product of its factors."""
    return _layers_of(network, set(paired(network)))


def has_pairs(manifest: ComponentManifest) -> bool:
    """Whether a component was cut with pairs in place of its source's layers."""
    return bool((manifest.selection.budget or {}).get("factors"))


def _multiplied(part: Part, names: set[str]) -> Part:
    """A part in which some pairs are layers again, with the product of their factors."""
    if not names or part.network is None:
        return part
    like = part.graph.input_shape
    whole = _layers_of(part.graph.network, names)
    after = analyse(whole, torch.empty(2, *like, device="meta"), part.graph.ending, boxes=part.graph.boxes)
    return Part(after, carried(part.keep, part.graph, after, sorted(names)), _layers_of(part.network, names))


def _layers_of(network: Network, names: set[str]) -> Network:
    """A network in which some pairs are layers."""
    firsts = {middle(name): name for name in names}
    seconds = {f"{name}.{SECOND}": name for name in names}
    given: dict[str, Node] = {}
    nodes: list[Node] = []
    for node in network.nodes:
        if node.op == "layer" and node.target in firsts:
            given[firsts[node.target]] = node
        elif node.op == "layer" and node.target in seconds:
            name = seconds[node.target]
            nodes.append(replace(node, target=name, args=given[name].args, kwargs=given[name].kwargs))
        else:
            nodes.append(node)
    layers = {name: network.layer(name) for name in network.layer_names if name not in {**firsts, **seconds}}
    for name in names:
        layers[name] = _product(network.layer(middle(name)), network.layer(f"{name}.{SECOND}"))
    tensors = {name: network.tensor(name) for name in network.tensor_names}
    return Network(nodes, layers, tensors, network.foreign).eval()


def _product(first: nn.Module, second: nn.Module) -> nn.Module:
    """The layer that a pair of factors computes."""
    ours, theirs = mixing_of(first).rows, mixing_of(second).rows
    biased = second.bias is not None
    if isinstance(first, nn.Linear) and isinstance(second, nn.Linear):
        made: nn.Module = nn.Linear(first.in_features, second.out_features, biased, device="meta")
        rows = theirs.double() @ ours.double()
    else:
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        made = nn.Conv2d(
            first.in_channels, second.out_channels, (first.kernel_size[0], second.kernel_size[1]),
            padding=(int(first.padding[0]), int(second.padding[1])),
            dilation=(first.dilation[0], second.dilation[1]),
            bias=biased, padding_mode=first.padding_mode, device="meta",
        )  # fmt: skip
        rows = torch.einsum("rpi,qrj->qpij", ours.double().squeeze(3), theirs.double().squeeze(2))
    made.weight = nn.Parameter(rows.to(ours.dtype))
    if isinstance(second.bias, Tensor):
        made.bias = nn.Parameter(second.bias.detach().clone())
    return made.eval()


def _source(node: Node) -> str:
    (value,) = node.args
    assert isinstance(value, Ref)
    return value.node


def carried(found: Mapping[str, T], before: Graph, after: Graph, gone: Sequence[str]) -> dict[str, T]:
    """What belongs to axes of a graph with pairs, for the graph in which the pairs of some layers are layers again.

    Raises:
        SurgeryError: The graphs differ in more than that.
    """
    lost = {middle_axis(before, name) for name in gone}
    axes = [axis for axis in before.axes if axis.name not in lost]
    if [axis.size for axis in axes] != [axis.size for axis in after.axes]:
        raise SurgeryError(
            "surgery-parts-differ", "two graphs of one source have other axes, beyond those of its pairs"
        )
    return {new.name: found[old.name] for old, new in zip(axes, after.axes, strict=True) if old.name in found}
