"""What a layer's output goes through on its way to the next layer: norms, sums, and the nonlinearity behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.network._layer_types import mixing_of
from brickyard.network._mixing import NORMS
from brickyard.network._network import Network, Node, Ref, refs

_ADD = ("add", "iadd", "add_", "tensor_add")
_PRODUCT = ("mul", "imul", "mul_")
_RELU = ("relu", "relu_")
_BENDS = {
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leakyrelu", "logsigmoid", "mish", "relu6"),
    *("selu", "sigmoid", "silu", "softplus", "softsign", "tanh", "tanhshrink"),
}  # without jumps, and nowhere steep


@dataclass(frozen=True)
class Tail:
    """What a layer's output goes through on its way to the next layer.

    Attributes:
        name: The value that is the layer's output.
        steps: A batch norm, and a sum with a shortcut that is known by then; either, both, or none.
        scale: What they multiply the layer's output by, (channels,).
        rectified: Whether a ReLU follows.
        bend: Another nonlinearity that follows, number by number.
    """

    name: str = ""
    steps: tuple[Node, ...] = ()
    scale: Tensor | None = None
    rectified: bool = False
    bend: Callable[[Tensor], Tensor] | None = None

    def behind(self, value: Tensor) -> Tensor:
        """What the nonlinearity makes of values; the same values where none is known."""
        if self.rectified:
            return value.clamp(min=0)
        return value if self.bend is None else self.bend(value)

    def run(self, network: Network, output: Tensor, values: Mapping[str, Any]) -> Tensor:
        """What a network's steps make of a layer's output; no value is changed in place."""
        name, found = self.name, {**values, self.name: output}
        for step in self.steps:
            if step.op == "function":
                one, other = (found[ref.node] for ref in step.args)
                found[step.name] = one + other
            else:
                found[step.name] = network.step(step, found)
            name = step.name
        result: Tensor = found[name]
        return result

    def at(self, network: Network, output: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        """The same for some of the layer's outputs, (outputs, N), and what is `added` to them, in their own type."""
        value = output.T
        for step in self.steps:
            layer = network.layer(step.target) if step.op == "layer" else None
            if isinstance(layer, NORMS):
                numbers = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
                mean, variance, weight, bias = (None if n is None else n.to(value.dtype) for n in numbers)
                value = F.batch_norm(value, mean, variance, weight, bias, eps=layer.eps)
            elif layer is None:
                value = value + added[step.name].T.to(value.dtype)
        return value.T


def tail_of(graph: Graph, network: Network, index: int, node: Node) -> Tail:
    """The steps behind the layer at `index`, as far as they can be seen through."""
    shape = graph.shapes[node.name].shape
    known = {step.name for step in network.nodes[:index]}
    seen = Tail(node.name)
    fresh = not mixing_of(network.layer(node.target)).linear  # nothing has changed a convolution's output yet
    name = node.name
    while True:
        users = [other for other in network.nodes if name in refs(other)]
        if bend := _bend(network, name, users):
            return replace(seen, bend=bend)
        if len(users) != 1:
            return seen
        (user,) = users
        layer = network.layer(user.target) if user.op == "layer" else None
        scale = seen.scale
        if isinstance(layer, nn.ReLU) or (user.op == "function" and user.target in _RELU):
            return replace(seen, rectified=True)
        if isinstance(layer, NORMS) and fresh:
            if layer.running_var is None or layer.weight is None or bool((layer.weight == 0).any()):
                return seen
            scale = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
        elif user.op == "function" and user.target in _ADD and len(user.args) == 2 and not user.kwargs:
            others = [value.node for value in user.args if isinstance(value, Ref) and value.node != name]
            if len(others) != 1 or others[0] not in known or graph.shapes[user.name].shape != shape:
                return seen
        elif not isinstance(layer, nn.Identity | nn.Dropout):
            return seen
        fresh = fresh and isinstance(layer, nn.Identity | nn.Dropout)
        seen = Tail(node.name, (*seen.steps, user), scale)
        name = user.name


def _bend(network: Network, name: str, users: Sequence[Node]) -> Callable[[Tensor], Tensor] | None:
    """The nonlinearity that a value goes through: one step, or the value's product with what a step makes of it."""
    first = next((step for step in users if _bends(network, step)), None)
    products = [step for step in users if step is not first]
    if first is None or len(products) > 1:
        return None
    for product in products:
        read = [step for step in network.nodes if first.name in refs(step)]
        alone = product.op == "function" and product.target in _PRODUCT and read == products
        if not alone or sorted(refs(product)) != sorted([name, first.name]):
            return None

    def bend(value: Tensor) -> Tensor:
        found: Tensor = network.step(first, {name: value.clone()})  # it may overwrite what it reads
        return found * value if products else found

    return bend


def _bends(network: Network, node: Node) -> bool:
    """Whether a step is a nonlinearity, number by number, without jumps."""
    name = type(network.layer(node.target)).__name__ if node.op == "layer" else node.target
    return node.op in ("layer", "function") and name.replace("_", "").lower() in _BENDS
