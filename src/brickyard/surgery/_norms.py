"""Norms over channels as plain steps, so that the channels can be cut.

A layer norm, an RMS norm or a group norm of one group is a single layer that reads all channels of a stream, and so
keeps them whole. Written as steps, it is two averages over the channels and products of each with numbers of its own.
The averages go on counting the channels that are gone, as zeros, so that a channel can be cut like any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.network._network import Network, Node, Ref, kind

Norm = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


def spread(graph: Graph) -> tuple[Graph, int]:
    """The network with every norm written as steps that keeps channels whole which nothing else does; and how many.

    It computes what it did before.
    """
    network = graph.network
    norms = [node for node in network.nodes if _is_norm(network, node) and not _is_free(graph, node)]
    every = _with_steps(graph, norms)
    useful = [node for node in norms if _is_free(every, node)]
    if len(useful) < len(norms):
        every = _with_steps(graph, useful)
    return every, len(useful)


def _is_norm(network: Network, node: Node) -> bool:
    """Whether a step is a norm over all channels."""
    layer = network.layer(node.target) if node.op == "layer" else None
    return isinstance(layer, Norm) and (not isinstance(layer, nn.GroupNorm) or layer.num_groups == 1)


def _is_free(graph: Graph, node: Node) -> bool:
    """Whether a step's value holds channels that can be cut."""
    labels = graph.labels(node)
    if not isinstance(labels, np.ndarray):
        return False
    return any(bool(((labels >= axis.start) & (labels < axis.channels.stop)).any()) for axis in graph.free)


def _with_steps(graph: Graph, norms: list[Node]) -> Graph:
    """The network with these norms written as steps."""
    if not norms:
        return graph
    network = graph.network
    tensors = {name: network.tensor(name) for name in network.tensor_names}
    chosen = {node.name for node in norms}
    nodes: list[Node] = []
    for node in network.nodes:
        if node.name in chosen:
            steps, more = _steps(node, network.layer(node.target), graph.shapes[node.name].ndim)
            nodes, tensors = nodes + steps, tensors | more
        else:
            nodes.append(node)
    layers = {name: network.layer(name) for name in network.layer_names}
    return graph.rewritten(nodes, layers, tensors)


def _steps(node: Node, norm: nn.Module, ndim: int) -> tuple[list[Node], dict[str, Tensor]]:
    """A norm's steps, of which the last has its name, and the tensors that they read."""
    assert isinstance(norm, Norm)
    group = isinstance(norm, nn.GroupNorm)
    dims = tuple(range(1, ndim)) if isinstance(norm, nn.GroupNorm) else tuple(range(-len(norm.normalized_shape), 0))
    steps: list[Node] = []

    def then(function: str, *args: Any) -> Ref:
        steps.append(Node(f"{node.name}_{len(steps)}_{function}", "function", function, args, line=node.line))
        return Ref(steps[-1].name)

    x = node.args[0]
    if not isinstance(norm, nn.RMSNorm):
        x = then("sub", x, then("mean", x, dims, True))
    x = then("mul", x, then("rsqrt", then("add", then("mean", then("square", x), dims, True), epsilon(norm))))
    tensors: dict[str, Tensor] = {}
    for function, part in (("mul", "weight"), ("add", "bias")):
        value = getattr(norm, part, None)
        if isinstance(value, Tensor):
            name = f"{node.target}.{part}"
            tensors[name] = nn.Parameter(value.detach().reshape(-1, *[1] * (ndim - 2))) if group else value
            steps.append(Node(f"{node.name}_{len(steps)}_{part}", "tensor", name))
            x = then(function, x, Ref(steps[-1].name))
    steps[-1] = Node(node.name, "function", steps[-1].target, steps[-1].args, line=node.line)
    return steps, tensors


def epsilon(norm: nn.Module) -> float:
    """What a norm adds to the mean of squares."""
    assert isinstance(norm, Norm)
    return norm.eps if norm.eps is not None else torch.finfo(kind(norm).dtype).eps
