"""Networks that end in probabilities: what they compute before that are the logits that everything else works on.

A softmax, a log-softmax or a sigmoid at the end keeps the order of the classes, but not what joining parts, reject
outputs and probabilities of a task are computed from: a second softmax would flatten them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.network._arguments import argument
from brickyard.network._network import Network, Node, Ref, refs, step_shapes, with_refs

_SOFTMAX = ("softmax", "tensor_softmax", "log_softmax")
_VIEWS = ("flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous")
_SUM = 1e-3  # how far from one the sum of an image's probabilities may be
_FAR = 1e3  # how much brighter than images what shows whether numbers stay between 0 and 1


def with_logits(network: Network, images: Tensor) -> tuple[Network, str]:
    """Leave out what turns a network's logits into probabilities.

    Args:
        network: The network.
        images: Some images.

    Returns:
        The network that returns logits, and what it ended in: "" if it returned logits already. If probabilities are
        computed in another way, as by `cat([1 - p, p])`, their logarithm follows instead, or that of p / (1 - p) where
        there is but one for each image, which is "probabilities".
    """
    by_name, shapes = {node.name: node for node in network.nodes}, step_shapes(network, images)
    found: list[str] = []
    gone: dict[str, Ref] = {}
    last = by_name[network.nodes[-1].args[0].node]
    while sum(last.name in refs(node) for node in network.nodes) == 1:
        kind = _ending(network, last, shapes)
        if kind:
            found.insert(0, kind)
            gone[last.name] = last.args[0]
        elif not _is_view(last):
            break
        last = by_name[last.args[0].node]
    if found and found != ["log"]:
        return network.with_steps([*_without(network.nodes, gone)]), " and ".join(found)
    with torch.no_grad():
        values = network(images)
        one = values.shape[1] == 1 and _is_share(network, images)
    if not one and not are_probabilities(values):
        return network, ""
    *steps, output = network.nodes
    least = torch.finfo(values.dtype).eps if one else torch.finfo(values.dtype).tiny
    low = Node(f"{output.name}_low", "function", "clamp", (output.args[0], least, 1 - least if one else None))
    log = Node(f"{output.name}_log", "function", "log", (Ref(low.name),))
    steps += [low, log]
    if one:
        rest = Node(f"{output.name}_rest", "function", "sub", (1, Ref(low.name)))
        other = Node(f"{output.name}_rest_log", "function", "log", (Ref(rest.name),))
        odds = Node(f"{output.name}_odds", "function", "sub", (Ref(log.name), Ref(other.name)))
        steps += [rest, other, odds]
    return network.with_steps([*steps, replace(output, args=(Ref(steps[-1].name),))]), "probabilities"


def are_probabilities(values: Tensor) -> bool:
    """Whether outputs (images, classes) are shares of one in every row."""
    sums = values.double().sum(1)
    return values.shape[1] > 1 and bool((values >= 0).all()) and bool(((sums - 1).abs() < _SUM).all())


def _is_share(network: Network, images: Tensor) -> bool:
    """Whether a network's numbers lie between 0 and 1, however bright its images are."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    return all(
        bool(((found >= 0) & (found <= 1)).all())
        for found in map(network, (images, _FAR * images, -_FAR * images, _FAR * noise, -_FAR * noise))
    )


def _without(nodes: Sequence[Node], gone: Mapping[str, Ref]) -> Iterator[Node]:
    """The other steps, which read what those read that are gone."""

    def earlier(ref: Ref) -> Ref:
        while ref.node in gone:
            ref = gone[ref.node]
        return ref

    return (with_refs(node, earlier) for node in nodes if node.name not in gone)


def _is_view(node: Node) -> bool:
    return node.op == "function" and node.target in _VIEWS


def _ending(network: Network, node: Node, shapes: Mapping[str, Any]) -> str:
    """What a step is called if it maps each image's outputs to numbers in the same order."""
    if not node.args or not isinstance(node.args[0], Ref):
        return ""
    if node.op == "layer":
        layer = network.layer(node.target)
        kinds: Mapping[type[nn.Module], str] = {
            nn.Sigmoid: "sigmoid",
            nn.Softmax: "softmax",
            nn.LogSoftmax: "log_softmax",
        }
        found, dim = kinds.get(type(layer), ""), getattr(layer, "dim", None)
    else:
        known = node.op == "function" and node.target in (*_SOFTMAX, "sigmoid", "log")
        found = node.target.removeprefix("tensor_") if known else ""
        dim = argument(node, "dim") if found in _SOFTMAX else None
    if found not in _SOFTMAX:
        return found
    shape = shapes[node.name].shape
    whole = shape[1 if dim is None else dim] == shape[1:].numel()  # over all outputs of an image
    return found if whole and dim in (None, 1, -1) else ""
