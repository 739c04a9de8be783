"""Cut a network, or lay several side by side: both build one network from parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.errors import SurgeryError
from brickyard.graph.axes import Axis, Graph, step_shapes
from brickyard.layers.modules import build_layer, describe_layer, find_type
from brickyard.network import Network
from brickyard.surgery.plan import KeepSet, Part, Plan, check_keep, is_output
from brickyard.surgery.steps import rewritten
from brickyard.surgery.weights import made_layer, made_tensor

__all__ = ["cut", "join"]


def cut(graph: Graph, keep: KeepSet) -> Network:
    """A new network with only the kept channels; the graph's own network is not touched.

    Raises:
        SurgeryError: The keep-set does not fit the graph.
    """
    check_keep(graph, keep)
    return join([Part(graph, keep)])


def join(parts: Sequence[Part], *, shared_input: bool = True) -> Network:
    """One network that computes the parts side by side on every channel axis.

    The class outputs lie part after part. With `shared_input` all parts read the same image; otherwise the
    input has the parts' images one after another along its channels.

    Raises:
        SurgeryError: The parts' graphs differ, or one has an axis that cannot be laid side by side.
    """
    if len(parts) > 1:
        _check_same(parts)
    plan = Plan(parts, shared_input)
    source = plan.first.network
    network = Network(
        [rewritten(plan, node) for node in source.nodes],
        {name: made_layer(plan, name) for name in source.layer_names},
        {name: made_tensor(plan, name) for name in source.tensor_names},
        {name: _own(call) for name, call in source.foreign.items()},
    ).eval()
    _check_shapes(plan, network)
    return network


def _own(call: Callable[..., Any]) -> Callable[..., Any]:
    """A foreign module is copied, so that training a component leaves its source alone."""
    return copy.deepcopy(call) if isinstance(call, nn.Module) else call


def _check_same(parts: Sequence[Part]) -> None:
    first = parts[0].graph
    for part in parts:
        blocked = [axis for axis in part.graph.axes if axis.pinned and not axis.output and not _is_image(part, axis)]
        if blocked:
            raise SurgeryError(
                f"alignment padding lays channels side by side, and axis {blocked[0].name!r} cannot be: "
                f"{blocked[0].pinned[0]}; use form='parallel'"
            )
        if part.graph.output is None:
            raise SurgeryError("the class outputs cannot be laid side by side; use form='parallel'")
        if part.graph.network.nodes != first.network.nodes or not _same_sizes(part.graph, first):
            raise SurgeryError(
                "alignment padding needs parts cut from one architecture with equal sizes (class counts may "
                "differ); use form='parallel'"
            )


def _is_image(part: Part, axis: Axis) -> bool:
    return axis.writers == (part.graph.network.nodes[0].name,)


def _same_sizes(a: Graph, b: Graph) -> bool:
    if [(x.name, x.size, x.output) for x in a.axes if not x.output] != [
        (x.name, x.size, x.output) for x in b.axes if not x.output
    ]:
        return False
    ends = {record.owner for record in a.dims if is_output(a.output, record.atoms)}
    for name in a.network.layer_names:
        x, y = a.network.layer(name), b.network.layer(name)
        if type(x) is not type(y) or (name not in ends and describe_layer(x) != describe_layer(y)):
            return False
    return True


def _check_shapes(plan: Plan, network: Network) -> None:
    """Run the result on the meta device and compare every value's shape with the plan."""
    if network.foreign:
        return  # what it calls may not run there
    channels, height, width = plan.first.input_shape
    channels *= 1 if plan.shared_input else len(plan.parts)
    bones = Network(
        network.nodes,
        {name: _on_meta(network.layer(name)) for name in network.layer_names},
        {name: torch.empty(network.tensor(name).shape, device="meta") for name in network.tensor_names},
    )
    try:
        shapes = step_shapes(bones, torch.empty(2, channels, height, width, device="meta"))
    except Exception as error:
        raise SurgeryError(f"the resized network does not fit together: {error}; please report this network") from error
    for node in plan.first.network.nodes[1:]:
        before, after = plan.first.shapes[node.name], shapes[node.name]
        if isinstance(before, Tensor) and isinstance(plan.first.labels(node), np.ndarray):
            expected = [plan.changed(node).get(dim, size) for dim, size in enumerate(before.shape)]
            if list(after.shape) != expected:
                raise SurgeryError(
                    f"step {node.name!r} of the resized network gives {tuple(after.shape)} where {tuple(expected)} was "
                    "planned; please report this network"
                )


def _on_meta(module: nn.Module) -> nn.Module:
    entry = find_type(module)
    assert entry is not None
    return build_layer(entry.name, describe_layer(module))
