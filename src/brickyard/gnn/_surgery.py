"""Axes of graph networks, and all that changes weights: cutting, joining and repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from brickyard.axes._graph import OUTPUT, Axes, Axis
from brickyard.base._errors import SurgeryError
from brickyard.gnn._network import FEATURES, GraphLayerSpec, GraphNetwork, NodeData, NodeLayer
from brickyard.healing._heal import Job, Sample
from brickyard.healing._heal import refit as refit_layer
from brickyard.healing._least_squares import HealReport
from brickyard.healing._streams import Intercept
from brickyard.healing._tail import Tail
from brickyard.relevance._allocation import LayerRecord
from brickyard.runtime._processes import Ranks
from brickyard.runtime._progress import bar
from brickyard.surgery._cost import Cost, Costs, Term


class NodeGraph(Axes):
    """A graph network with its axes: the features, and what each layer writes, channels or whole attention heads.

    Attributes:
        network: The source as it was read.
        data: The graph that it is for.
        parameters: Numbers in the source itself: reading folds some of them.
        layers: For each layer what it reads and writes, in units of the axes.
        costs: What it costs on this graph when some units are kept.
    """

    def __init__(self, network: GraphNetwork, data: NodeData, parameters: int, features: bool = True) -> None:
        self.network, self.data, self.parameters = network, data, parameters
        self.input_name, self.input_shape = FEATURES, (data.x.shape[1],)
        specs = [layer.spec for layer in network.steps()]
        names, sizes = (FEATURES, *network.names), [specs[0].inputs, *(spec.units for spec in specs)]
        why = {names[-1]: (OUTPUT,)} | ({} if features else {FEATURES: ("features are an input",)})
        self.axes = tuple(
            Axis(name, size, sum(sizes[:i]), (name,), names[i + 1 : i + 2], (), why.get(name, ()), name == names[-1])
            for i, (name, size) in enumerate(zip(names, sizes, strict=True))
        )
        numbers = np.arange(self.channels)
        self.layers = {
            after.name: LayerRecord(
                reads=numbers[before.channels],
                writes=np.repeat(numbers[after.channels], spec.width // spec.units),
                linear=spec.gather == ("self",),
            )
            for before, after, spec in zip(self.axes, self.axes[1:], specs, strict=False)
        }
        terms = [
            term for spec, layer in zip(specs, self.layers.values(), strict=True) for term in self._terms(spec, layer)
        ]
        self.costs = Costs(terms)
        flops = self.costs(np.ones(self.channels, dtype=np.bool_)).flops
        self.costs.whole = Cost(flops, parameters)

    def _terms(self, spec: GraphLayerSpec, layer: LayerRecord) -> list[Term]:
        """What a layer costs: its weights, what nodes gather, and the scores of attention."""
        nodes, edges, ways = len(self.data.x), self.data.edge_index.shape[1], len(spec.gather)
        reads = np.repeat(layer.reads, spec.inputs // len(layer.reads))
        gathers = sum(name != "self" for name in spec.gather)
        found = [
            Term(layer.writes, reads, 2 * nodes * ways, ways, 0),
            Term(layer.writes, None, 2 * edges * gathers, 0, int(spec.bias)),
        ]
        if spec.attends and spec.groups > 1:
            found.append(Term(np.unique(layer.writes), reads, 4 * nodes, 2, 0))
        elif spec.attends:
            found.append(Term(reads, None, 4 * nodes * ways, 2 * ways, 0))
        return found


def cut(network: GraphNetwork, keep: Mapping[str, Tensor]) -> GraphNetwork:
    """A network with some units an axis only, in the order given; axes that are left out stay whole.

    It equals the whole network with the channels that are dropped at zero where layers read them.
    """
    reads = features = keep.get(FEATURES, torch.arange(network.steps()[0].spec.inputs))
    layers: list[NodeLayer] = []
    for name, layer in zip(network.names, network.steps(), strict=True):
        spec, own = layer.spec, layer.tensors()
        units = keep.get(name, torch.arange(spec.units))
        groups, rows = (units, torch.arange(spec.outputs)) if spec.groups > 1 else (torch.arange(1), units)
        writes = spec.channels(units)
        found = {"weight": own["weight"][groups][:, :, rows][..., reads]}
        if spec.bias:
            found["bias"] = own["bias"][writes]
        for key in ("source", "target") if spec.attends else ():
            found[key] = (own[key][groups] if spec.groups > 1 else own[key])[:, reads]
        changes = {"groups": len(groups), "outputs": len(rows), "inputs": len(reads)}
        layers.append(NodeLayer(spec.model_copy(update=changes), found))
        reads = writes
    return GraphNetwork(layers, network.names, network.columns[features])


# -- joining -----------------------------------------------------------------------------------------------


def join(networks: Sequence[GraphNetwork], columns: Sequence[Tensor]) -> GraphNetwork:
    """One network with the parts and their outputs side by side, zeros between them (alignment padding).

    `columns` are the features that each part reads; parts may read the same ones.
    """
    read = torch.cat(list(columns)).unique()
    places = [torch.searchsorted(read, own) for own in columns]
    counts = [len(network.names) for network in networks]
    if len(set(counts)) > 1:
        found = ", ".join(map(str, counts))
        raise SurgeryError("surgery-not-paddable", f"networks of {found} layers cannot be padded; use parallel")
    layers: list[NodeLayer] = []
    for i, name in enumerate(networks[0].names):
        width = layers[-1].spec.width if layers else len(read)
        layer, places = _joined(name, [network.steps()[i] for network in networks], places, width)
        layers.append(layer)
    return GraphNetwork(layers, networks[0].names, read)


def _joined(
    name: str, parts: Sequence[NodeLayer], reads: Sequence[Tensor], inputs: int
) -> tuple[NodeLayer, list[Tensor]]:
    """The parts' layers as one, and where the output channels of each part are."""
    spec = _joined_spec(name, [part.spec for part in parts], inputs)
    like = parts[0].weight
    found = {key: like.new_zeros(shape) for key, shape in spec.shapes.items()}
    writes: list[Tensor] = []
    group = way = row = head = 0
    for part, read in zip(parts, reads, strict=True):
        own, s = part.tensors(), part.spec
        groups, gathers = torch.arange(group, group + s.groups), torch.arange(way, way + len(s.gather))
        rows = torch.arange(row, row + s.outputs)
        found["weight"][groups[:, None, None, None], gathers[:, None, None], rows[:, None], read] = own["weight"]
        out = (groups[:, None] * spec.outputs + rows).flatten()
        if s.bias:
            found["bias"][out] = own["bias"]
        for key in ("source", "target") if s.attends else ():
            heads = torch.arange(head, head + len(own[key]))
            found[key][heads[:, None], read] = own[key]
        writes.append(out)
        head += s.groups * len(s.gather)
        if spec.groups > 1:
            group += s.groups
        else:
            row += s.outputs
            way += len(s.gather) if s.attends else 0
    return NodeLayer(spec, found), writes


def _joined_spec(name: str, specs: Sequence[GraphLayerSpec], inputs: int) -> GraphLayerSpec:
    """The layer that layers lie side by side in."""
    first = specs[0]
    kinds = {(s.attends or s.gather, s.activation, s.slope, s.loops) for s in specs}
    grouped = any(s.groups > 1 for s in specs)  # heads whose outputs lie side by side
    if len(kinds) > 1 or (grouped and any(len(s.gather) > 1 for s in specs)):
        why = f"layer {name!r} is of different kinds in the parts, so it cannot be padded"
        raise SurgeryError("surgery-not-paddable", f"{why}; use form='parallel'")
    ways = sum(len(s.gather) for s in specs) if first.attends and not grouped else len(first.gather)
    changes = {
        "gather": (first.gather[0],) * ways if first.attends else first.gather,
        "groups": sum(s.groups for s in specs) if grouped else 1,
        "outputs": max(s.outputs for s in specs) if grouped else sum(s.outputs for s in specs),
        "inputs": inputs,
        "bias": any(s.bias for s in specs),
    }
    return first.model_copy(update=changes)


# -- repair ------------------------------------------------------------------------------------------------


def refit(
    graph: NodeGraph, keep: Mapping[str, Tensor], network: GraphNetwork, nodes: Tensor, ridge: float
) -> HealReport:
    """Repair a network that was cut with `keep`, in place, at some nodes: the refit of `brickyard.healing._heal`."""
    report, data, nodes = HealReport(), graph.data, nodes.to(graph.data.x.device)
    both = zip(graph.network.walk(data.x, data.edge_index), network.walk(data.x, data.edge_index), strict=True)
    with torch.no_grad(), bar("healing (refit)", len(network.names)) as advance:
        for (name, whole, theirs, edges), (_, layer, ours, _) in both:
            rows = whole.spec.channels(keep.get(name, torch.arange(whole.spec.units)))
            goal = whole.linear(theirs, edges)[nodes][:, rows]
            conv, tail = layer.convolution(), Tail(rectified=layer.spec.activation == "relu")
            job = Job(name, conv, Intercept(None if conv.bias is None else conv.bias.data), tail, Ranks())
            every = torch.arange(len(nodes), device=nodes.device)
            read = job.mixing.read_at(layer.gathered(ours, edges, nodes), (1, 1), every)
            report.layers += refit_layer(job, Sample(job.check(read), job.check(goal.T), {}), None, ridge, report)
            layer.take(conv)
            advance(text=f"healing {name}")
    return report.summed_up()
