"""Which channels a budget should keep, by the damage that the refit cannot repair.

Every axis has a curve: the damage at each number of channels kept. The budget is spent where it saves operations at the
least damage.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from brickyard.axes._graph import Axis, Graph
from brickyard.base._errors import OptionError
from brickyard.base._options import Budget
from brickyard.healing._heal import heal_network
from brickyard.healing._places import Shown
from brickyard.network._network import Network
from brickyard.selection._budget import check_enough
from brickyard.selection._curves import Curve, damage_curves
from brickyard.selection._factors import Factored, factored
from brickyard.selection._thresholds import kept_outputs
from brickyard.selection._turning import turned
from brickyard.surgery._cost import CostModel, Mask, cost_share, keep_mask
from brickyard.surgery._join import cut
from brickyard.surgery._pairs import carried, paying, with_pairs
from brickyard.surgery._rotation import Opened

STAGE = 0.8  # approximate share left after each stage
PER_INPUT = 20  # samples for each input of a layer, in refits between stages
STEP = 0.8  # share left after each stage on the way to an agreement
HALVINGS = 3  # how often the last step is halved
SMALLEST = 0.01  # share of the source at which to stop


@dataclass(frozen=True)
class Selected:
    """What a component keeps.

    Attributes:
        graph: The source's graph, in which layers may be replaced by pairs of factors, and norms be opened.
        keep: The channels that stay, by the name of the axis; an axis that is left out stays whole, but for the
            class outputs, of which the task's stay.
        pairs: How many layers were replaced.
        turned: How many residual streams are in another basis.
        norms: How many norms are written as steps.
        notes: What a reader of the manifest should know.

    Example:
        >>> import torch
        >>> from brickyard.axes import trace
        >>> from brickyard.selection import Selected
        >>> from brickyard.testing import chain
        >>> graph = trace(chain(), torch.rand(2, 3, 8, 8))
        >>> Selected(graph, {axis.name: torch.arange(2) for axis in graph.free}, notes=("the first two",)).notes
        ('the first two',)
    """

    graph: Graph
    keep: dict[str, Tensor]
    pairs: int = 0
    turned: int = 0
    norms: int = 0
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> dict[str, int]:
        """What was rewritten, as the manifest names it, and how often."""
        return {"factors": self.pairs, "rotated": self.turned, "norms": self.norms}


def by_damage(
    graph: Graph, shown: Shown, outputs: Sequence[int], budget: Budget, ridge: float | None = None
) -> Selected:
    """Keep the channels whose loss the refit cannot repair; see the module.

    Residual streams are turned to their principal directions, and layers become pairs of factors, unless the budget
    forbids it; pairs that save nothing in the end become layers again. Channels are removed in stages. Each starts from
    the remainder, refitted, since the cost of losing a channel depends on what else is gone.

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
    if cost_share(graph, fixed, whole, budget.resource) <= budget.share:
        return Selected(graph, {**graph.everything(), **fixed})
    opened, made = _opened(graph, shown, outputs, budget)
    graph = opened.graph
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
    found = _settled(graph, made, curves, keep, budget, whole)
    return replace(found, turned=opened.turned, norms=opened.norms)


def _opened(graph: Graph, shown: Shown, outputs: Sequence[int], budget: Budget) -> tuple[Opened, Factored]:
    """The source with its norms opened, and with layers as pairs too, unless the budget forbids it."""
    opened = Opened(graph, 0, 0) if budget.rotate is False else turned(graph, shown)
    graph = opened.graph
    fixed = kept_outputs(graph, outputs)
    made = Factored(graph, {}, fixed) if budget.factors is False else factored(graph, fixed, shown, budget.step)
    return opened, made


def by_agreement(
    graph: Graph,
    shown: Shown,
    outputs: Sequence[int],
    budget: Budget,
    ridge: float | None,
    agreement: Callable[[Network], float],
) -> Selected:
    """Keep the least that still agrees with the source on a share of the images held back.

    The budget is lowered stage by stage, as `by_damage` does, until the repaired network agrees too rarely; then the
    last step is halved a few times.

    Args:
        graph: The source's graph.
        shown: Preprocessed images of the task.
        outputs: The class outputs to keep, in order.
        budget: The least agreement.
        ridge: The prior of the refits; None: the best for each layer.
        agreement: On how many of the images held back, as a share, a network gives the source's answer.
    """
    assert budget.agreement is not None
    fixed = kept_outputs(graph, outputs)
    whole = CostModel(graph).whole.flops
    source = graph
    best = Selected(source, {**graph.everything(), **fixed})
    opened, made = _opened(graph, shown, outputs, budget)
    graph = opened.graph
    keep = {**made.graph.everything(), **made.keep}
    share = cost_share(made.graph, keep, whole, "flops")
    curves = damage_curves(made.graph, shown, keep)
    step, halvings = STEP, HALVINGS

    def limited(share: float) -> Budget:
        return Budget(flops=share, round_to=budget.round_to)

    while halvings and share * step > SMALLEST:
        try:
            found = _settled(graph, made, curves, keep, limited(share * step), whole)
        except OptionError:  # one channel an axis takes more
            break
        tried = _repaired(found, shown, ridge)
        if agreement(tried) < budget.agreement:
            step, halvings = math.sqrt(step), halvings - 1
            continue
        best, share = found, share * step
        if halvings == HALVINGS:  # the next stage starts from here
            if found.graph is not made.graph:  # pairs that save nothing yet may do so later
                found = Selected(made.graph, by_curves(made.graph, curves, keep, int(share * whole), limited(share)))
                tried = _repaired(found, shown, ridge)
            keep = found.keep
            curves = damage_curves(made.graph, shown, keep, tried)
    return best if best.graph is source else replace(best, turned=opened.turned, norms=opened.norms)


@dataclass
class _Stage:
    """What is left after a stage: what it costs, and its network and curves once they are known."""

    cost: int
    keep: dict[str, Tensor]
    network: Network | None = None
    curves: dict[str, Curve] | None = None


class Descent:
    """A network that `by_damage` cuts stage by stage, with all stages at hand: any budget can be met from them.

    Args:
        graph: The network's graph.
        shown: Preprocessed images of the task.
        outputs: The class outputs to keep, in order.
        budget: Which resource is saved, and how; its share does not matter.
        ridge: The prior of the refits; None: the best for each layer.
    """

    def __init__(
        self, graph: Graph, shown: Shown, outputs: Sequence[int], budget: Budget, ridge: float | None = None
    ) -> None:
        self.shown, self.budget, self.ridge = shown, budget, ridge
        self.whole = int(getattr(CostModel(graph).whole, budget.resource))
        self._opened, self._made = _opened(graph, shown, outputs, budget)
        self._model = CostModel(self._made.graph)
        keep = {**self._made.graph.everything(), **self._made.keep}
        self._stages = [_Stage(self._cost(keep), keep)]

    def _cost(self, keep: Mapping[str, Tensor]) -> int:
        return int(getattr(self._model(keep_mask(self._made.graph, keep)), self.budget.resource))

    def _curves(self, stage: _Stage) -> dict[str, Curve]:
        if stage.curves is None:
            stage.curves = damage_curves(self._made.graph, self.shown, stage.keep, stage.network)
        return stage.curves

    def further(self) -> tuple[int, Network] | None:
        """Cut another stage: what is left costs, and its network, repaired; None where hardly anything is left."""
        last, graph = self._stages[-1], self._made.graph
        limit = int(min(last.cost, self.whole) * STAGE)
        if limit < SMALLEST * self.whole:
            return None
        try:
            keep = by_curves(graph, self._curves(last), last.keep, limit, self.budget)
        except OptionError:  # one channel an axis takes more
            return None
        network = cut(graph, keep)
        heal_network(graph, keep, network, self.shown, "refit", self.ridge, PER_INPUT)
        self._stages.append(_Stage(self._cost(keep), keep, network))
        return self._stages[-1].cost, network

    def within(self, limit: float) -> Selected:
        """Cut down to a cost, from the last stage that has as much.

        Raises:
            OptionError: Even one channel per axis costs more.
        """
        stage = next((one for one in reversed(self._stages) if one.cost >= limit), self._stages[0])
        budget = self.budget.limited(limit / self.whole)
        found = _settled(self._opened.graph, self._made, self._curves(stage), stage.keep, budget, self.whole)
        return replace(found, turned=self._opened.turned, norms=self._opened.norms)


def _repaired(found: Selected, shown: Shown, ridge: float | None) -> Network:
    """What is kept, repaired as `disassemble` repairs it."""
    network = cut(found.graph, found.keep)
    heal_network(found.graph, found.keep, network, shown, "refit", ridge)
    return network


def _settled(
    graph: Graph, made: Factored, curves: Mapping[str, Curve], keep: Mapping[str, Tensor], budget: Budget, whole: int
) -> Selected:
    """Cut down to the budget, and make layers again of pairs that save nothing, until each of them does."""
    limit = int(budget.share * whole)
    pairs, now = made.pairs, made.graph
    while True:
        found = by_curves(now, curves, dict(keep), limit, budget)
        useful = paying(graph, now, found, pairs, budget.resource)
        if len(useful) == len(pairs):
            return Selected(now, found, len(pairs), notes=made.notes)
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
    steps = {name: budget.step(axis.size) for name, axis in axes.items()}
    least = mask.copy()
    for name, axis in axes.items():
        least[axis.start + curves[name].order[steps[name] :]] = False
    check_enough(cost(least), limit, budget)

    def cheapest(name: str) -> tuple[float, int]:
        """The least damage per unit saved by any next cut of an axis, and how many channels that cut leaves."""
        axis, curve, now = axes[name], curves[name], kept[name]
        found = []
        for step in (1, 2, 4):
            left = now - step * max(1, len(curve.order) // 16)
            left = max(steps[name], left - left % steps[name])
            trial = mask.copy()
            trial[axis.start + curve.order[left:now]] = False
            found.append(((curve.damage[left] - curve.damage[now]) / max(1, spent - cost(trial)), left))
        return min(found)

    spent = cost(mask)
    queue = [(*cheapest(name), name) for name in axes if kept[name] > steps[name]]
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
        if left > steps[name]:
            heapq.heappush(queue, (*cheapest(name), name))
    _take_back(mask, axes, curves, kept, cost, limit, steps)
    free = {axis.name: torch.from_numpy(np.flatnonzero(mask[axis.channels])) for axis in graph.free}
    return {**keep, **free}


def _take_back(
    mask: Mask,
    axes: Mapping[str, Axis],
    curves: Mapping[str, Curve],
    kept: dict[str, int],
    cost: Callable[[Mask], int],
    limit: float,
    steps: Mapping[str, int],
) -> None:
    """Restore channels, so many of an axis at a time, while they fit, the most damaging losses first."""
    while True:
        short = {name: k for name, k in kept.items() if k < len(curves[name].order)}
        more = {name: min(len(curves[name].order), k + steps[name]) for name, k in short.items()}
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
