"""A layer as a pair of layers, whose middle is one more axis that can be cut.

A convolution becomes a column and a row: `kernel x 1`, then `1 x kernel`. A layer without a kernel becomes two of its
kind. A pair of full rank computes what its layer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph, analyse
from brickyard.base._errors import SurgeryError
from brickyard.network._layer_types import mixing_of
from brickyard.network._network import Network, Node, Ref, kind
from brickyard.surgery._cost import CostModel, keep_mask
from brickyard.surgery._plan import KeepSet

FIRST, SECOND = "factor1", "factor2"


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
    """The name of the middle axis of a layer's pair."""
    return f"{layer}.{FIRST}"


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
    network = Network(nodes, layers, tensors, source.foreign).eval()
    like = kind(source)
    example = torch.zeros(2, *graph.input_shape, dtype=like.dtype, device=like.device)
    return analyse(network, example, graph.ending)


def paying(plain: Graph, paired: Graph, keep: KeepSet, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """The pairs that take fewer operations than their layers would, with what is kept.

    Args:
        plain: The source's graph.
        paired: Its graph with all pairs.
        keep: What is kept of that.
        pairs: The pairs.
    """
    mask = keep_mask(paired, keep)
    found = {}
    for name, pair in pairs.items():
        first, second = middle(name), f"{name}.{SECOND}"
        (node,) = (node for node in plain.network.nodes if node.op == "layer" and node.target == name)
        each = mixing_of(plain.network.layer(name)).pair_flops(plain.shapes[_source(node)], plain.shapes[node.name])
        read, rank, written = (
            int(mask[paired.at(owner, role)].sum())  # type: ignore[arg-type]
            for owner, role in ((first, "in"), (first, "out"), (second, "out"))
        )
        steps = {step.target: step for step in paired.network.nodes if step.op == "layer"}
        costs = [
            mixing_of(layer).pair_flops(paired.shapes[_source(steps[owner])], paired.shapes[steps[owner].name])
            for owner, layer in ((first, pair.first), (second, pair.second))
        ]
        if costs[0] * read * rank + costs[1] * rank * written < each * read * written:
            found[name] = pair
    return found


def _source(node: Node) -> str:
    (value,) = node.args
    assert isinstance(value, Ref)
    return value.node


def carried(keep: Mapping[str, Tensor], before: Graph, after: Graph, gone: Sequence[str]) -> dict[str, Tensor]:
    """A keep-set of a graph with pairs, for the graph in which the pairs of some layers are layers again.

    Raises:
        SurgeryError: The graphs differ in more than that.
    """
    lost = {middle(name) for name in gone}
    axes = [axis for axis in before.axes if axis.name not in lost]
    if [axis.size for axis in axes] != [axis.size for axis in after.axes]:
        raise SurgeryError(
            "surgery-parts-differ", "two graphs of one source have other axes, beyond those of its pairs"
        )
    return {new.name: keep[old.name] for old, new in zip(axes, after.axes, strict=True) if old.name in keep}


def cost_share(graph: Graph, keep: KeepSet, whole: int, resource: str) -> float:
    """What a keep-set costs, as a share of the whole."""
    return float(getattr(CostModel(graph)(keep_mask(graph, keep)), resource)) / max(1, whole)
