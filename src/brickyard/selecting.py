"""From relevances to keep-sets: by the paper's thresholds, or by a budget."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brickyard.eliminating import Curve, damage_curves
from brickyard.errors import OptionError
from brickyard.graph import Axis, Graph
from brickyard.graph.axes import pair_flops
from brickyard.healing import heal_network
from brickyard.layers.functions import FUNCTIONS
from brickyard.layers.modules import layer_role
from brickyard.network import Network, Node, iter_layers, refs
from brickyard.options import Budget
from brickyard.relevance import Relevance
from brickyard.surgery import cut

__all__ = ["Cost", "CostModel", "by_budget", "by_damage", "by_thresholds", "keep_mask", "mda_scores"]

STAGE = 0.8  # of what a stage starts from, about, is left after it

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Cost:
    """Floating-point operations for one image (two a multiply-add) and parameters."""

    flops: int
    parameters: int


@dataclass(frozen=True)
class _Term:
    """One layer's cost: `flops` and `parameters` times kept outputs (times kept inputs)."""

    writes: NDArray[np.int64]
    reads: NDArray[np.int64] | None
    flops: int
    parameters: int
    bias: int


class CostModel:
    """What a network costs when only some channels are kept; counts, no measuring."""

    def __init__(self, graph: Graph) -> None:
        self._terms: list[_Term] = []
        self._fixed = Cost(0, 0)
        seen: set[str] = set()
        for _, node, module in iter_layers(graph.network):
            self._add(graph, node.target, module, graph.shapes[node.name], counted=node.target in seen)
            seen.add(node.target)
        for node in graph.network.nodes:
            if node.op == "function" and node.target in FUNCTIONS and FUNCTIONS[node.target].role == "attend":
                self._add_product(graph, node)
        for name in graph.network.tensor_names:
            value = graph.network.tensor(name)
            follow = next((x for d in range(value.ndim) if (x := graph.at(name, "follow", d)) is not None), None)
            if not isinstance(value, nn.Parameter):
                continue
            if follow is None:
                self._fixed = Cost(self._fixed.flops, self._fixed.parameters + value.numel())
            else:
                self._terms.append(_Term(follow, None, 0, value.numel() // len(follow), 0))

    def _add(self, graph: Graph, name: str, module: nn.Module, output: Tensor, counted: bool) -> None:
        """Count a layer; one that runs twice costs its operations again but not its parameters."""
        own = [] if counted else [p for p in module.parameters(recurse=False) if p is not None]
        role = layer_role(module)
        is_conv = isinstance(module, nn.Conv2d)
        own_inputs = module.in_channels // module.groups if isinstance(module, nn.Conv2d) else 0
        if role == "mix":
            writes, reads = graph.at(name, "out"), graph.at(name, "in")
            assert writes is not None
            assert reads is not None
            kernel = 0 if counted else own[0].numel() // (len(writes) * len(reads))
            self._terms.append(_Term(writes, reads, pair_flops(module, output), kernel, len(own) - 1 if own else 0))
        elif role == "follow":
            follow = graph.at(name, "follow")
            assert follow is not None
            flops = pair_flops(module, output) * own_inputs if is_conv else 0
            self._terms.append(_Term(follow, None, flops, sum(p.numel() for p in own) // len(follow), 0))
        else:
            self._fixed = Cost(self._fixed.flops, self._fixed.parameters + sum(p.numel() for p in own))

    def _add_product(self, graph: Graph, node: Node) -> None:
        """Count a sum of products of activations, for each channel along which it lies."""
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
            self._terms.append(_Term(labels.reshape(-1), None, total // labels.size, 0, 0))

    def __call__(self, mask: Mask) -> Cost:
        """The cost of a network that keeps the channels where `mask` (over all channels) is true."""
        flops, parameters = self._fixed.flops, self._fixed.parameters
        for term in self._terms:
            written = int(mask[term.writes].sum())
            pairs = written if term.reads is None else written * int(mask[term.reads].sum())
            flops += term.flops * pairs
            parameters += term.parameters * pairs + term.bias * written
        return Cost(flops, parameters)


def keep_mask(graph: Graph, keep: dict[str, Tensor]) -> Mask:
    """A keep-set as a mask over all channels."""
    mask = np.ones(graph.channels, dtype=np.bool_)
    for axis in graph.axes:
        if axis.name in keep:
            mask[axis.channels] = False
            mask[axis.start + keep[axis.name].numpy()] = True
    return mask


def by_thresholds(
    graph: Graph, relevance: Relevance, task: Sequence[int], outputs: Sequence[int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Keep what is relevant for any class of the task; where nothing is, the best channel.

    Returns:
        The keep-set, and notes on axes where no channel was relevant.
    """
    keep = kept_outputs(graph, outputs)
    scores = mda_scores(relevance, task)
    notes: list[str] = []
    for axis in graph.free:
        relevant = relevance.relevant(axis.name)[list(task)].any(0)
        if not relevant.any():
            notes.append(f"axis {axis.name!r} has no relevant channel; its best one was kept")
            relevant[int(scores[axis.channels].argmax())] = True
        keep[axis.name] = relevant.nonzero().flatten()
    return keep, notes


def by_budget(graph: Graph, scores: Tensor, outputs: Sequence[int], budget: Budget) -> dict[str, Tensor]:
    """Keep the channels with the highest scores that the budget allows; it is met from below.

    Args:
        graph: The source's graph.
        scores: One number for every channel of all axes.
        outputs: The class outputs to keep, in order.
        budget: The budget.

    Raises:
        OptionError: Even one channel (or `multiple`) an axis costs more than the budget.
    """
    fixed = kept_outputs(graph, outputs)
    cost_model = CostModel(graph)
    limit = budget.share * getattr(cost_model(np.ones(graph.channels, dtype=np.bool_)), budget.resource)
    even = budget.spread == "even" or (budget.spread == "auto" and budget.resource == "flops")

    mask = keep_mask(graph, fixed)
    for axis in graph.free:
        mask[axis.channels] = False
    candidates: list[tuple[float, int, NDArray[np.int64]]] = []
    for axis in graph.free:
        score = scores[axis.channels]
        order = torch.argsort(score, descending=True, stable=True).numpy()
        mask[axis.start + order[: budget.multiple]] = True
        for place in range(budget.multiple, axis.size, budget.multiple):
            value = 1 - place / axis.size if even else float(score[order[place]])
            block = axis.start + order[place : place + budget.multiple]
            candidates.append((-value, int(block[0]), block))
    candidates.sort(key=lambda candidate: candidate[:2])

    def cost(chosen: Mask) -> int:
        return int(getattr(cost_model(chosen), budget.resource))

    check_enough(cost(mask), limit, budget)
    mask = _fill(mask, [block for _, _, block in candidates], cost, limit)
    return {
        **fixed,
        **{axis.name: torch.from_numpy(np.flatnonzero(mask[axis.channels])) for axis in graph.free},
    }


def by_damage(
    graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], budget: Budget, ridge: float
) -> dict[str, Tensor]:
    """Keep the channels whose loss the refit cannot repair: see `eliminating`.

    The way down is gone in stages. Each one starts from what is left and refitted, since what the loss of a channel
    costs depends on what else is gone.

    Args:
        graph: The source's graph.
        batches: Preprocessed images of the task.
        outputs: The class outputs to keep, in order.
        budget: The budget.
        ridge: Strength of the refit's prior between the stages.

    Raises:
        OptionError: Even one channel an axis costs more than the budget.
    """
    keep = {**graph.everything(), **kept_outputs(graph, outputs)}
    network: Network | None = None
    whole = getattr(CostModel(graph)(np.ones(graph.channels, dtype=np.bool_)), budget.resource)
    stages = max(1, round(math.log(budget.share) / math.log(STAGE)))
    for stage in range(1, stages + 1):
        limit = int(budget.share ** (stage / stages) * whole)
        keep = by_curves(graph, damage_curves(graph, batches, keep, network), keep, limit, budget)
        if stage < stages:
            network = cut(graph, keep)
            heal_network(graph, keep, network, batches, "refit", ridge)
    return keep


def by_curves(
    graph: Graph, curves: Mapping[str, Curve], keep: dict[str, Tensor], limit: int, budget: Budget
) -> dict[str, Tensor]:
    """Cut down to `limit` operations (or parameters) where a saved one costs the least damage.

    Channels go, some of one axis at a time, until the budget is met; then whatever still fits comes back.

    Raises:
        OptionError: Even one channel an axis costs more than the budget.
    """
    cost_model = CostModel(graph)

    def cost(mask: Mask) -> int:
        return int(getattr(cost_model(mask), budget.resource))

    mask = keep_mask(graph, keep)
    axes = {name: graph.axis(name) for name in curves}
    kept = {name: len(curve.order) for name, curve in curves.items()}
    least = mask.copy()
    for name, axis in axes.items():
        least[axis.start + curves[name].order[budget.multiple :]] = False
    check_enough(cost(least), limit, budget)

    def cheapest(name: str) -> tuple[float, int]:
        """The least damage for each unit that some next cut of an axis saves, and how many channels that leaves."""
        axis, curve, now = axes[name], curves[name], kept[name]
        found = []
        for step in (1, 2, 4):
            left = now - step * max(1, len(curve.order) // 16)
            left = max(budget.multiple, left - left % budget.multiple)
            trial = mask.copy()
            trial[axis.start + curve.order[left:now]] = False
            found.append(((curve.damage[left] - curve.damage[now]) / max(1, spent - cost(trial)), left))
        return min(found)

    spent = cost(mask)
    queue = [(*cheapest(name), name) for name in axes if kept[name] > budget.multiple]
    heapq.heapify(queue)
    while spent > limit:
        _, _, name = heapq.heappop(queue)
        ratio, left = cheapest(name)  # what it saves has changed since
        if queue and ratio > queue[0][0]:
            heapq.heappush(queue, (ratio, left, name))
            continue
        mask[axes[name].start + curves[name].order[left : kept[name]]] = False
        kept[name] = left
        spent = cost(mask)
        if left > budget.multiple:
            heapq.heappush(queue, (*cheapest(name), name))
    _take_back(mask, axes, curves, kept, cost, limit, budget.multiple)
    return {
        **keep,
        **{axis.name: torch.from_numpy(np.flatnonzero(mask[axis.channels])) for axis in graph.free},
    }


def _take_back(
    mask: Mask,
    axes: Mapping[str, Axis],
    curves: Mapping[str, Curve],
    kept: dict[str, int],
    cost: Callable[[Mask], int],
    limit: float,
    multiple: int,
) -> None:
    """Bring back channels, `multiple` at a time, while they fit, the most damaging losses first."""
    while True:
        short = {name: k for name, k in kept.items() if k < len(curves[name].order)}
        more = {name: min(len(curves[name].order), k + multiple) for name, k in short.items()}
        losses = {name: curves[name].damage[k] - curves[name].damage[more[name]] for name, k in short.items()}
        for name in sorted(losses, key=lambda name: -losses[name]):
            channels = axes[name].start + curves[name].order[kept[name] : more[name]]
            mask[channels] = True
            if cost(mask) <= limit:
                kept[name] = more[name]
                break
            mask[channels] = False
        else:
            return


def check_enough(least: float, limit: float, budget: Budget) -> None:
    if least > limit:
        share = least / limit * budget.share
        raise OptionError(
            f"a budget of {budget.share:.3g} of the source's {budget.resource} was asked for; {budget.multiple} "
            f"channel(s) an axis already take {share:.3g}: raise the budget"
        )


def _fill(mask: Mask, ranked: Sequence[NDArray[np.int64]], cost: Callable[[Mask], int], limit: float) -> Mask:
    """The longest prefix of the ranking that fits, then whatever else still fits."""
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high + 1) // 2
        trial = mask.copy()
        trial[np.concatenate(ranked[:middle])] = True
        low, high = (middle, high) if cost(trial) <= limit else (low, middle - 1)
    mask = mask.copy()
    for channels in ranked[:low]:
        mask[channels] = True
    for channels in ranked[low : low + 256]:
        mask[channels] = True
        if cost(mask) > limit:
            mask[channels] = False
    return mask


def kept_outputs(graph: Graph, outputs: Sequence[int]) -> dict[str, Tensor]:
    return {} if graph.output is None else {graph.output.name: torch.tensor(list(outputs))}


def mda_scores(relevance: Relevance, task: Sequence[int]) -> Tensor:
    """The highest relevance for any class of the task, one number for every channel of all axes."""
    return relevance.scores[2, list(task)].amax(0)
