"""Channels to keep within a budget, ranked by a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brickyard.axes._graph import Axes
from brickyard.base._errors import OptionError
from brickyard.base._options import Budget
from brickyard.selection._thresholds import kept_outputs
from brickyard.surgery._cost import Costs, Mask, keep_mask


def by_budget(graph: Axes, costs: Costs, scores: Tensor, outputs: Sequence[int], budget: Budget) -> dict[str, Tensor]:
    """Keep the channels with the highest scores that the budget allows; it is met from below.

    Args:
        graph: The source's axes.
        costs: What the source costs with some channels.
        scores: One number for every channel of all axes.
        outputs: The class outputs to keep, in order.
        budget: The budget.

    Raises:
        OptionError: Even one channel (or `round_to`) per axis exceeds the budget.
    """
    fixed = kept_outputs(graph, outputs)
    limit = budget.share * getattr(costs.whole, budget.resource)
    mask, step = keep_mask(graph, fixed), budget.round_to or 1
    for axis in graph.free:
        mask[axis.channels] = False
    candidates: list[tuple[float, int, NDArray[np.int64]]] = []
    for axis in graph.free:
        score = scores[axis.channels]
        order = torch.argsort(score, descending=True, stable=True).numpy()
        mask[axis.start + order[:step]] = True
        for place in range(step, axis.size, step):
            value = 1 - place / axis.size if budget.uniform else float(score[order[place]])
            block = axis.start + order[place : place + step]
            candidates.append((-value, int(block[0]), block))
    candidates.sort(key=lambda candidate: candidate[:2])

    def cost(chosen: Mask) -> int:
        return int(getattr(costs(chosen), budget.resource))

    check_enough(cost(mask), limit, budget)
    mask = _fill(mask, [block for _, _, block in candidates], cost, limit)
    return {
        **fixed,
        **{axis.name: torch.from_numpy(np.flatnonzero(mask[axis.channels])) for axis in graph.free},
    }


def check_enough(least: float, limit: float, budget: Budget) -> None:
    if least > limit:
        share = least / limit * budget.share
        raise OptionError(
            "option-budget-too-small",
            f"a budget of {budget.share:.3g} of the source's {budget.resource} was asked for; {budget.round_to or 1} "
            f"channel(s) an axis already take {share:.3g}: raise the budget",
        )


def _fill(mask: Mask, ranked: Sequence[NDArray[np.int64]], cost: Callable[[Mask], int], limit: float) -> Mask:
    """Take the longest prefix of the ranking that fits, then whatever else still fits."""
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
