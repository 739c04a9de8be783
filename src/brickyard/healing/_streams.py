"""Two networks side by side over the same images, and the inputs of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.network._layer_types import mixing_of
from brickyard.network._mixing import NORMS
from brickyard.network._network import Network, Node, refs

MEMORY = 1 << 30  # bytes of activations to hold; beyond that, they are recomputed for every layer


# -- the two networks, side by side ------------------------------------------------------------------------


class Stream:
    """The values of all batches just before some step; kept if they fit in memory, otherwise recomputed."""

    def __init__(self, graph: Graph, network: Network, batches: Sequence[Tensor]) -> None:
        self.network = network
        self._shapes = graph.shapes
        self._start = network.nodes[0].name
        self._batches = batches
        self._position = 0
        fits = peak_bytes(graph) * sum(map(len, batches)) <= MEMORY
        self._held = [{self._start: network.taken(batch)} for batch in batches] if fits else None

    def positions(self, node: Node) -> int:
        """A layer's outputs per channel and image."""
        return int(self._shapes[node.name][0].numel()) // len(mixing_of(self.network.layer(node.target)).rows)

    def before(self, index: int) -> Iterator[dict[str, Tensor]]:
        """Yield the values of each batch before step `index`, which may only grow."""
        if self._held is None:
            for batch in self._batches:
                values = {self._start: self.network.taken(batch)}
                self.network.advance(values, 0, index)
                yield values
            return
        for values in self._held:
            self.network.advance(values, self._position, index)
        self._position = index
        yield from self._held

    def ahead(self, values: dict[str, Tensor], index: int, stop: int) -> dict[str, Tensor]:
        """The values before a later step, from those before step `index`, which stay as they are."""
        if stop == index:
            return values
        found = {name: _cloned(value) for name, value in values.items()}
        self.network.advance(found, index, stop)
        return found


def _cloned(value: Any) -> Any:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(map(_cloned, value))
    return value.clone() if isinstance(value, Tensor) else value


def peak_bytes(graph: Graph) -> int:
    """The peak size of one image's live values at any step, in bytes."""
    nodes = graph.network.nodes
    live = peak = 0
    sizes: dict[str, int] = {}
    for index, node in enumerate(nodes):
        value = graph.shapes[node.name]
        items = value if isinstance(value, tuple | list) else (value,)
        tensors = [item for item in items if isinstance(item, Tensor)]
        sizes[node.name] = sum(t.numel() // t.shape[0] * t.element_size() for t in tensors if t.ndim)
        live += sizes[node.name]
        peak = max(peak, live)
        live -= sum(sizes[name] for name in graph.network.dead_after(index))
    return peak


@dataclass(frozen=True)
class Intercept:
    """Where a layer's output can be shifted: its bias, or the running mean of the batch norm behind it."""

    bias: Tensor | None = None
    running_mean: Tensor | None = None

    def __bool__(self) -> bool:
        return self.bias is not None or self.running_mean is not None

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(value for value in (self.bias, self.running_mean) if value is not None)

    def values(self) -> list[Tensor]:
        """Copy what `add` changes."""
        return [value.clone() for value in self._tensors]

    def put(self, values: Sequence[Tensor]) -> None:
        for place, value in zip(self._tensors, values, strict=True):
            place.copy_(value)

    def add(self, shift: Tensor) -> None:
        if self.bias is not None:
            self.bias.add_(shift.to(self.bias.dtype))
        elif self.running_mean is not None:
            self.running_mean.sub_(shift.to(self.running_mean.dtype))


def own_bias(layer: nn.Module) -> Intercept:
    """A layer's bias, where it has one."""
    return Intercept(bias=layer.bias.data) if isinstance(layer.bias, Tensor) else Intercept()


def intercept_of(network: Network, node: Node) -> Intercept:
    """Find where a layer's output can be shifted."""
    layer = network.layer(node.target)
    if own := own_bias(layer):
        return own
    users = [other for other in network.nodes if node.name in refs(other)]
    if len(users) == 1 and users[0].op == "layer":
        norm = network.layer(users[0].target)
        uses = sum(other.target == users[0].target for other in network.nodes if other.op == "layer")
        outputs = len(mixing_of(layer).rows)  # a norm over positions has another length
        if isinstance(norm, NORMS) and norm.running_mean is not None and uses == 1 and norm.num_features == outputs:
            return Intercept(running_mean=norm.running_mean)
    return Intercept()


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """Compute a layer's output in float64."""
    numbers = {name: value.double() for name, value in layer.named_parameters(recurse=False)}
    found: Tensor = torch.func.functional_call(layer, numbers, (x.double(),))
    return found


def blocks(layer: nn.Module, x: Tensor, residual: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs (G, n, N) and residuals (G, q, N) for a few images at a time; half precision becomes float32."""
    if x.element_size() < 4:  # sums of products need more than half precision
        x, residual = x.float(), residual.float()
    return mixing_of(layer).blocks(x, residual)
