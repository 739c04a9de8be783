"""Which channels a budget should keep, by the damage that the refit cannot repair.

Every axis has a curve: the damage at each number of channels kept. The budget is spent where it saves operations at the
least damage.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brickyard.axes._graph import Axis, Graph
from brickyard.base._options import Budget
from brickyard.healing._heal import Shown, heal_network
from brickyard.network._network import Network
from brickyard.selection._budget import check_enough
from brickyard.selection._curves import Curve, damage_curves
from brickyard.selection._factors import Factored, factored
from brickyard.selection._thresholds import kept_outputs
from brickyard.surgery._cost import CostModel, Mask, keep_mask
from brickyard.surgery._join import cut
from brickyard.surgery._pairs import carried, cost_share, paying, with_pairs

STAGE = 0.8  # approximate share left after each stage
PER_INPUT = 20  # samples for each input of a layer, in refits between stages


@dataclass(frozen=True)
class Selected:
    """What a component keeps.

    Attributes:
        graph: The source's graph, in which layers may be replaced by pairs of factors.
        keep: The channels that stay.
        pairs: How many layers were replaced.
        notes: What a reader of the manifest should know.
    """

    graph: Graph
    keep: dict[str, Tensor]
    pairs: int = 0
    notes: tuple[str, ...] = ()


def by_damage(
    graph: Graph, shown: Shown, outputs: Sequence[int], budget: Budget, ridge: float | None = None
) -> Selected:
    """Keep the channels whose loss the refit cannot repair; see the module.

    Layers become pairs of factors first, unless the budget forbids it; those that save nothing in the end become layers
    again. Channels are removed in stages. Each starts from the remainder, refitted, since the cost of losing a channel
    depends on what else is gone.

    Args:
        graph: The source's graph.
        shown: Preprocessed images of the task.
        outputs: The class outputs to keep, in order.
        budget: How much may be kept.
        ridge: The prior of the refits; None: the best for each layer.

    Raises:
        OptionError: Even one channel per axis exceeds the budget.
    """
    fixed = kept_outputs(graph, outputs)
    whole = getattr(CostModel(graph).whole, budget.resource)
    made = Factored(graph, {}, fixed)
    if budget.factors is not False and cost_share(graph, fixed, whole, budget.resource) > budget.share:
        made = factored(graph, fixed, shown, budget.round_to)
    keep = {**made.graph.everything(), **made.keep}
    start = cost_share(made.graph, keep, whole, budget.resource)
    stages = max(1, round(math.log(budget.share / start) / math.log(STAGE)))
    network: Network | None = None
    for stage in range(1, stages):
        limit = int(start * (budget.share / start) ** (stage / stages) * whole)
        keep = by_curves(made.graph, damage_curves(made.graph, shown, keep, network), keep, limit, budget)
        network = cut(made.graph, keep)
        heal_network(made.graph, keep, network, shown, "refit", ridge, PER_INPUT)
    curves = damage_curves(made.graph, shown, keep, network)
    return _settled(graph, made, curves, keep, budget)


def _settled(
    graph: Graph, made: Factored, curves: Mapping[str, Curve], keep: Mapping[str, Tensor], budget: Budget
) -> Selected:
    """Cut down to the budget, and make layers again of pairs that save nothing, until each of them does."""
    limit = int(budget.share * getattr(CostModel(graph).whole, budget.resource))
    pairs, now = made.pairs, made.graph
    while True:
        found = by_curves(now, curves, dict(keep), limit, budget)
        useful = paying(graph, now, found, pairs, budget.resource)
        if len(useful) == len(pairs):
            return Selected(now, found, len(pairs), made.notes)
        after = with_pairs(graph, useful) if useful else graph
        idle = [name for name in pairs if name not in useful]
        keep, curves = carried(keep, now, after, idle), carried(curves, now, after, idle)
        pairs, now = useful, after


def by_curves(
    graph: Graph, curves: Mapping[str, Curve], keep: dict[str, Tensor], limit: int, budget: Budget
) -> dict[str, Tensor]:
    """Cut down to `limit` operations (or parameters) at the least damage per unit saved.

    Channels of one axis at a time are removed until the budget is met; then whatever still fits comes back.

    Raises:
        OptionError: Even one channel per axis exceeds the budget.
    """
    cost_model = CostModel(graph)

    def cost(mask: Mask) -> int:
        return int(getattr(cost_model(mask), budget.resource))

    mask = keep_mask(graph, keep)
    axes = {name: graph.axis(name) for name in curves}
    kept = {name: len(curve.order) for name, curve in curves.items()}
    least = mask.copy()
    for name, axis in axes.items():
        least[axis.start + curves[name].order[budget.round_to :]] = False
    check_enough(cost(least), limit, budget)

    def cheapest(name: str) -> tuple[float, int]:
        """The least damage per unit saved by any next cut of an axis, and how many channels that cut leaves."""
        axis, curve, now = axes[name], curves[name], kept[name]
        found = []
        for step in (1, 2, 4):
            left = now - step * max(1, len(curve.order) // 16)
            left = max(budget.round_to, left - left % budget.round_to)
            trial = mask.copy()
            trial[axis.start + curve.order[left:now]] = False
            found.append(((curve.damage[left] - curve.damage[now]) / max(1, spent - cost(trial)), left))
        return min(found)

    spent = cost(mask)
    queue = [(*cheapest(name), name) for name in axes if kept[name] > budget.round_to]
    heapq.heapify(queue)
    while spent > limit:
        _, _, name = heapq.heappop(queue)
        ratio, left = cheapest(name)  # its savings have changed since
        if queue and ratio > queue[0][0]:
            heapq.heappush(queue, (ratio, left, name))
            continue
        mask[axes[name].start + curves[name].order[left : kept[name]]] = False
        kept[name] = left
        spent = cost(mask)
        if left > budget.round_to:
            heapq.heappush(queue, (*cheapest(name), name))
    _take_back(mask, axes, curves, kept, cost, limit, budget.round_to)
    free = {axis.name: torch.from_numpy(np.flatnonzero(mask[axis.channels])) for axis in graph.free}
    return {**keep, **free}


def _take_back(
    mask: Mask,
    axes: Mapping[str, Axis],
    curves: Mapping[str, Curve],
    kept: dict[str, int],
    cost: Callable[[Mask], int],
    limit: float,
    round_to: int,
) -> None:
    """Restore channels, `round_to` at a time, while they fit, the most damaging losses first."""
    while True:
        short = {name: k for name, k in kept.items() if k < len(curves[name].order)}
        more = {name: min(len(curves[name].order), k + round_to) for name, k in short.items()}
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
