"""Networks that end in probabilities: what they compute before that are the logits that everything else works on.

A softmax, a log-softmax or a sigmoid at the end keeps the order of the classes, but not what joining parts, reject
outputs and probabilities of a task are computed from: a second softmax would flatten them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from brickyard.network._arguments import argument
from brickyard.network._network import Network, Node, Ref, refs

_SOFTMAX = ("softmax", "tensor_softmax", "log_softmax")
_SUM = 1e-3  # how far from one the sum of an image's probabilities may be


def with_logits(network: Network, images: Tensor) -> tuple[Network, str]:
    """Leave out what turns a network's logits into probabilities.

    Args:
        network: The network.
        images: Some images.

    Returns:
        The network that returns logits, and what it ended in: "" if it returned logits already. If probabilities are
        computed in another way, as by `cat([1 - p, p])`, their logarithm follows instead, which is "probabilities".
    """
    *steps, output = network.nodes
    by_name = {node.name: node for node in steps}
    found: list[str] = []
    last = by_name[output.args[0].node]
    while (kind := _ending(network, last)) and sum(last.name in refs(node) for node in network.nodes) == 1:
        found.insert(0, kind)
        steps.remove(last)
        last = by_name[last.args[0].node]
    if found and found != ["log"]:
        return _rebuilt(network, [*steps, replace(output, args=(Ref(last.name),))]), " and ".join(found)
    with torch.no_grad():
        values = network(images)
    if not are_probabilities(values):
        return network, ""
    low = Node(f"{output.name}_low", "function", "clamp_min", (output.args[0], torch.finfo(values.dtype).tiny))
    log = Node(f"{output.name}_log", "function", "log", (Ref(low.name),))
    return _rebuilt(network, [*network.nodes[:-1], low, log, replace(output, args=(Ref(log.name),))]), "probabilities"


def are_probabilities(values: Tensor) -> bool:
    """Whether outputs (images, classes) are shares of one in every row."""
    sums = values.double().sum(1)
    return values.shape[1] > 1 and bool((values >= 0).all()) and bool(((sums - 1).abs() < _SUM).all())


def _ending(network: Network, node: Node) -> str:
    """What a step is called if it maps each image's outputs to numbers in the same order."""
    if not node.args or not isinstance(node.args[0], Ref):
        return ""
    if node.op == "layer":
        layer = network.layer(node.target)
        over = getattr(layer, "dim", None) in (None, 1, -1)
        kinds: Mapping[type[nn.Module], str] = {nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax"}
        return "sigmoid" if type(layer) is nn.Sigmoid else kinds.get(type(layer), "") if over else ""
    if node.op == "function" and node.target in _SOFTMAX:
        return node.target.removeprefix("tensor_") if argument(node, "dim") in (None, 1, -1) else ""
    return node.target if node.op == "function" and node.target in ("sigmoid", "log") else ""


def _rebuilt(network: Network, nodes: list[Node]) -> Network:
    used = {node.target for node in nodes}
    layers = {name: network.layer(name) for name in network.layer_names if name in used}
    tensors = {name: network.tensor(name) for name in network.tensor_names}
    return Network(nodes, layers, tensors, network.foreign).eval()
