"""The cost of a network that keeps only some of its channels: counted, not measured."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brickyard.axes._graph import Axes, Graph
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import find_mixing, layer_role
from brickyard.network._network import Node, iter_layers, kind, map_refs, refs

Mask = NDArray[np.bool_]
_WEIGHTED = frozenset({"linear", *(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3))})


@dataclass(frozen=True)
class Cost:
    """Floating-point operations per image (two per multiply-add) and parameters."""

    flops: int
    parameters: int


@dataclass(frozen=True)
class Term:
    """One layer's cost: `flops` and `parameters` times kept outputs (times kept inputs)."""

    writes: NDArray[np.int64]
    reads: NDArray[np.int64] | None
    flops: int
    parameters: int
    bias: int


class Costs:
    """What a network costs when only some channels are kept; counts, no measuring.

    Args:
        terms: The costs of its layers.
        whole: What its source costs.
    """

    def __init__(self, terms: Iterable[Term] = (), whole: Cost | None = None) -> None:
        self._terms = list(terms)
        self._fixed = Cost(0, 0)
        self.whole = whole or self._fixed

    def __call__(self, mask: Mask) -> Cost:
        """The cost of a network that keeps the channels where `mask` (over all channels) is true."""
        flops, parameters = self._fixed.flops, self._fixed.parameters
        for term in self._terms:
            written = int(mask[term.writes].sum())
            pairs = written if term.reads is None else written * int(mask[term.reads].sum())
            flops += term.flops * pairs
            parameters += term.parameters * pairs + term.bias * written
        return Cost(flops, parameters)


class CostModel(Costs):
    """The costs of a traced network."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        seen: set[str] = set()
        for _, node, module in iter_layers(graph.network):
            self._add(graph, node, module, counted=node.target in seen)
            seen.add(node.target)
        for node in graph.network.nodes:
            if node.op == "function" and node.target in FUNCTIONS and FUNCTIONS[node.target].role == "attend":
                self._add_product(graph, node)
            elif node.op == "function" and (node.target in graph.network.foreign or node.target in _WEIGHTED):
                self._add_unknown(graph, node, counted=node.target in seen)
                seen.add(node.target)
        for name in graph.network.tensor_names:
            value = graph.network.tensor(name)
            follow = next((x for d in range(value.ndim) if (x := graph.at(name, "follow", d)) is not None), None)
            if not isinstance(value, nn.Parameter):
                continue
            if follow is None:
                self._fixed = Cost(self._fixed.flops, self._fixed.parameters + value.numel())
            else:
                self._terms.append(Term(follow, None, 0, value.numel() // len(follow), 0))
        self.whole = self(np.ones(graph.channels, dtype=np.bool_))

    def _add(self, graph: Graph, node: Node, module: nn.Module, counted: bool) -> None:
        """Count a layer; running it again adds operations but no parameters."""
        name, mixing = node.target, find_mixing(module)
        pair = 0
        if mixing is not None:
            pair = mixing.pair_flops(graph.shapes[node.args[0].node], graph.shapes[node.name], graph.batch)
        own = [] if counted else [p for p in module.parameters(recurse=False) if p is not None]
        role = layer_role(module)
        if role == "mix":
            writes, reads = graph.at(name, "out"), graph.at(name, "in")
            assert writes is not None
            assert reads is not None
            kernel = 0 if counted else own[0].numel() // (len(writes) * len(reads))
            self._terms.append(Term(writes, reads, pair, kernel, len(own) - 1 if own else 0))
        elif role == "follow":
            follow = graph.at(name, "follow")
            assert follow is not None
            flops = 0 if mixing is None else pair * mixing.rows.shape[1]
            self._terms.append(Term(follow, None, flops, sum(p.numel() for p in own) // len(follow), 0))
        else:
            self._fixed = Cost(self._fixed.flops, self._fixed.parameters + sum(p.numel() for p in own))

    def _add_unknown(self, graph: Graph, node: Node, counted: bool) -> None:
        """Count a step that is kept whole, by running it on zeros; running it again adds no parameters."""
        call = graph.network.foreign.get(node.target) or FUNCTIONS[node.target].call
        like, batch = kind(graph.network), graph.shapes[graph.network.nodes[0].name].shape[0]
        args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: _zeros(graph.shapes[ref.node], like))
        unsuitable = contextlib.suppress(ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), unsuitable:
            call(*args, **kwargs)  # what runs until zeros do not suit it is counted
        own = call.parameters() if isinstance(call, nn.Module) and not counted else ()
        parameters = self._fixed.parameters + sum(value.numel() for value in own)
        self._fixed = Cost(self._fixed.flops + counter.get_total_flops() // batch, parameters)

    def _add_product(self, graph: Graph, node: Node) -> None:
        """Count a sum of products of activations, per channel along which it lies."""
        operands = [graph.shapes[name] for name in refs(node) if isinstance(graph.shapes[name], Tensor)]
        result = graph.shapes[node.name].shape
        batch = graph.shapes[graph.network.nodes[0].name].shape[0]
        if node.target == "matmul":
            depth = operands[0].shape[-1]
        elif node.target == "einsum":
            inputs, _, out = str(node.args[0]).replace(" ", "").partition("->")
            sizes: dict[str, int] = {}
            for own, value in zip(inputs.split(","), operands, strict=True):
                sizes.update(zip(own, value.shape, strict=True))
            depth = int(np.prod([size for letter, size in sizes.items() if letter not in out]))
        else:  # the scores are a product too, as deep as the queries
            depth = operands[1].shape[-2] * (operands[0].shape[-1] + result[-1]) / result[-1]
        total = round(2 * int(np.prod(result)) * depth) // batch
        labels = graph.labels(node)
        if labels is None or labels.size < 2:
            self._fixed = Cost(self._fixed.flops + total, self._fixed.parameters)
        else:
            self._terms.append(Term(labels.reshape(-1), None, total // labels.size, 0, 0))


def _zeros(value: Any, like: Tensor) -> Any:
    """A step's value on an example, with zeros for its numbers."""
    if isinstance(value, Tensor):
        return torch.zeros(value.shape, dtype=value.dtype, device=like.device)
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(_zeros(item, like) for item in value)
    return value


def keep_mask(graph: Axes, keep: Mapping[str, Tensor]) -> Mask:
    """A keep-set as a mask over all channels."""
    mask = np.ones(graph.channels, dtype=np.bool_)
    for axis in graph.axes:
        if axis.name in keep:
            mask[axis.channels] = False
            mask[axis.start + keep[axis.name].numpy()] = True
    return mask


def cost_share(graph: Graph, keep: Mapping[str, Tensor], whole: int, resource: str) -> float:
    """What a keep-set costs, as a share of the whole."""
    return float(getattr(CostModel(graph)(keep_mask(graph, keep)), resource)) / max(1, whole)


def weightless(graph: Graph) -> Graph:
    """The same graph with its network on the meta device, for what depends on shapes only.

    Networks with steps that no table knows, and those whose layers share weights, stay as they are.
    """
    network, own = graph.network, list(graph.network.parameters())
    if network.foreign or len({value.data_ptr() for value in own}) < len(own):
        return graph
    blank: dict[int, Any] = {id(value): value.to("meta") for value in network.buffers()}
    blank |= {id(value): nn.Parameter(value.to("meta"), value.requires_grad) for value in own}
    found = copy.copy(graph)
    found.network = copy.deepcopy(network, blank)
    return found


@dataclass(frozen=True)
class Removable:
    """What can be cut of a network at most, as shares of its cost: all but one channel of each free axis."""

    parameters: float
    flops: float

    @classmethod
    def of(cls, graph: Graph) -> Removable:
        """Compute it for a traced network."""
        cost = CostModel(graph)
        mask = np.ones(graph.channels, dtype=np.bool_)
        for axis in graph.free:
            mask[axis.start + 1 : axis.start + axis.size] = False
        least = cost(mask)
        return cls(1 - least.parameters / max(1, cost.whole.parameters), 1 - least.flops / max(1, cost.whole.flops))
