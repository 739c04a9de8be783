"""Cut graph networks, join them, and repair them: the only place that changes weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from brickyard.base._errors import SurgeryError
from brickyard.gnn._network import Edges, GraphLayerSpec, GraphNetwork, NodeData, NodeLayer, shapes
from brickyard.healing._heal import ROUNDS, keep_better
from brickyard.healing._least_squares import HealReport, equations_for
from brickyard.healing._streams import blocks, exact
from brickyard.runtime._processes import Ranks
from brickyard.runtime._progress import bar


def cut(network: GraphNetwork, keep: Mapping[str, Tensor]) -> GraphNetwork:
    """A network with some units an axis only; axes that are left out stay whole.

    It equals the whole network with the channels that are dropped at zero where layers read them.

    Args:
        network: The source.
        keep: For each axis, the units to keep, in the order that they shall have.
    """
    axes = network.axes()
    units = [keep.get(axis.name, torch.arange(axis.units)) for axis in axes]
    layers: list[NodeLayer] = []
    for i, layer in enumerate(network.steps()):
        spec = layer.spec
        reads, writes = axes[i].channels(units[i]), axes[i + 1].channels(units[i + 1])
        heads = spec.groups > 1
        chosen = units[i + 1] if heads else torch.arange(1)
        rows = torch.arange(spec.outputs) if heads else units[i + 1]
        own = layer.tensors()
        found = {"weight": own["weight"][chosen][:, :, rows][..., reads]}
        if "bias" in own:
            found["bias"] = own["bias"][writes]
        for name in ("source", "target") if spec.attends else ():
            found[name] = (own[name][chosen] if heads else own[name])[:, reads]
        changes = {"groups": len(chosen), "outputs": len(rows), "inputs": len(reads)}
        layers.append(NodeLayer(spec.model_copy(update=changes), found))
    return GraphNetwork(layers, network.names, network.columns[units[0]])


# -- joining -----------------------------------------------------------------------------------------------


def join(networks: Sequence[GraphNetwork], columns: Sequence[Tensor]) -> GraphNetwork:
    """One network with the parts side by side on every axis, zeros between them (alignment padding).

    Args:
        networks: Networks with layers of the same kinds.
        columns: Which feature each input of a part reads. Parts may read the same ones.

    Returns:
        A network whose outputs are the parts', side by side.

    Raises:
        SurgeryError: The networks differ in more than their widths.
    """
    read = torch.cat(list(columns)).unique()
    places = [torch.searchsorted(read, own) for own in columns]
    layers: list[NodeLayer] = []
    width = len(read)
    kinds = [[layer.spec for layer in network.steps()] for network in networks]
    if len({len(specs) for specs in kinds}) > 1:
        raise SurgeryError(
            "surgery-not-paddable",
            f"networks of {', '.join(str(len(k)) for k in kinds)} layers cannot be padded; use parallel",
        )
    for i, name in enumerate(networks[0].names):
        parts = [network.steps()[i] for network in networks]
        layer, places = _joined(name, parts, places, width)
        width = layer.spec.width
        layers.append(layer)
    return GraphNetwork(layers, networks[0].names, read)


def _joined(
    name: str, parts: Sequence[NodeLayer], reads: Sequence[Tensor], inputs: int
) -> tuple[NodeLayer, list[Tensor]]:
    """The parts' layers as one, and where the output channels of each part are."""
    specs = [part.spec for part in parts]
    kinds = {(s.attends or s.gather, s.activation, s.slope, s.loops) for s in specs}
    first = specs[0]
    grouped = any(s.groups > 1 for s in specs)  # heads whose outputs lie side by side
    if len(kinds) > 1 or (grouped and any(len(s.gather) > 1 for s in specs)):
        raise SurgeryError(
            "surgery-not-paddable",
            f"layer {name!r} is of several kinds in the parts, which cannot be padded; use parallel",
        )
    ways = sum(len(s.gather) for s in specs) if first.attends and not grouped else len(first.gather)
    spec = GraphLayerSpec(
        gather=(first.gather[0],) * ways if first.attends else first.gather,
        groups=sum(s.groups for s in specs) if grouped else 1,
        outputs=max(s.outputs for s in specs) if grouped else sum(s.outputs for s in specs),
        inputs=inputs,
        bias=any(s.bias for s in specs),
        activation=first.activation,
        slope=first.slope,
        loops=first.loops,
    )
    like = parts[0].weight
    found = {key: like.new_zeros(shape) for key, shape in shapes(spec).items()}
    writes: list[Tensor] = []
    group = way = row = head = 0
    for part, read in zip(parts, reads, strict=True):
        own, s = part.tensors(), part.spec
        groups, gathers = torch.arange(group, group + s.groups), torch.arange(way, way + len(s.gather))
        rows = torch.arange(row, row + s.outputs)
        found["weight"][groups[:, None, None, None], gathers[:, None, None], rows[:, None], read] = own["weight"]
        out = (groups[:, None] * spec.outputs + rows).flatten()
        if "bias" in own:
            found["bias"][out] = own["bias"]
        for key in ("source", "target") if s.attends else ():
            heads = torch.arange(head, head + len(own[key]))
            found[key][heads[:, None], read] = own[key]
        writes.append(out)
        head += s.groups * len(s.gather)
        if grouped:
            group += s.groups
        else:
            row += s.outputs
            way += len(s.gather) if s.attends else 0
    return NodeLayer(spec, found), writes


# -- repair ------------------------------------------------------------------------------------------------


def refit(
    source: GraphNetwork, network: GraphNetwork, keep: Mapping[str, Tensor], data: NodeData, nodes: Tensor, ridge: float
) -> HealReport:
    """Repair a cut network in place: ridge least squares layer by layer at some nodes.

    Args:
        source: What it was cut from.
        network: The cut network.
        keep: The keep-set that it was cut with.
        data: The graph; labels are not used.
        nodes: Nodes to repair on.
        ridge: Strength of the prior, a share of the mean diagonal of the normal equations.
    """
    report = HealReport()
    edges = Edges.of(data.edge_index, len(data.x))
    nodes = nodes.to(data.x.device)
    theirs, ours = data.x[:, source.columns], data.x[:, network.columns]
    axes = source.axes()[1:]
    pairs = zip(source.names, source.steps(), network.steps(), axes, strict=True)
    with torch.no_grad(), bar("healing (refit)", len(axes)) as advance:
        for name, whole, layer, axis in pairs:
            rows = axis.channels(keep.get(axis.name, torch.arange(axis.units)))
            goal = whole.linear(theirs, edges)[nodes][:, rows]
            report.layers += _refit_layer(name, layer, ours, edges, nodes, goal, ridge, report)
            theirs, ours = whole(theirs, edges), layer(ours, edges)
            advance(text=f"healing {name}")
    return report


def _refit_layer(
    name: str, layer: NodeLayer, x: Tensor, edges: Edges, nodes: Tensor, goal: Tensor, ridge: float, report: HealReport
) -> bool:
    conv = layer.convolution()
    places = [conv.weight] if layer.bias is None else [conv.weight, layer.bias]
    before = [value.clone() for value in places]
    sliced = before[0]
    inputs = layer.gathered(x, edges, nodes)
    equations = equations_for(conv, len(nodes), layer.bias is not None, Ranks())
    rectified = layer.spec.activation == "relu"
    for turn in range(1 + ROUNDS):
        output = conv(inputs)[:, :, 0, 0]
        output = output if layer.bias is None else output + layer.bias
        wanted = torch.where(goal > 0, goal, output.clamp(max=0)) if turn and rectified else goal
        missing = (wanted - output)[:, :, None, None]
        if turn == 0 and bool(missing.square().sum() <= 1e-10 * goal.square().sum()):
            return False
        for block, residual in blocks(conv, inputs, missing):
            equations.add(block, residual)
        solution = equations.solve(ridge, conv.weight - sliced, name, report)
        if solution is None:
            if turn == 0:
                return False
            break
        change, shift = solution
        conv.weight.add_(change.reshape(conv.weight.shape).to(conv.weight.dtype))
        if shift is not None and layer.bias is not None:
            layer.bias.add_(shift.to(layer.bias.dtype))
        if not rectified or not equations.again():
            break
    after = [value.clone() for value in places]
    errors: list[Tensor] = []
    for state in (before, after):
        for place, value in zip(places, state, strict=True):
            place.copy_(value)
        found = exact(conv, inputs)[:, :, 0, 0]
        found = found if layer.bias is None else found + layer.bias.double()
        found, wanted = (found.clamp(min=0), goal.clamp(min=0)) if rectified else (found, goal)
        errors.append((wanted.double() - found).square().sum(0))
    better = keep_better(name, places, before, torch.stack(errors), report)
    layer.take(conv)
    return better
