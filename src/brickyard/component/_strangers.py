"""Strangers: images that look like none of a component's classes.

Three scores that every component can compute say how unlike its own images one is: how far the log-sum-exp of its
logits is below the usual, how far its features are from those of the nearest class, and how unusual the values inside
the network are. Each is counted from its median on own images, in units of how far above that the largest tenth
begins, and the sum over them of the logarithm of one more is compared with a limit. All of this is measured on images
that the statistics behind the scores were not fitted to: those of one half by statistics of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brickyard.base._statistics import Statistics, StrangersRecord, Usual
from brickyard.component._familiarity import Familiarity

FEW = 20  # images, of which the largest tenth is too few to go by
TENTH = 0.1
RARE = 0.01  # share of own images beyond the limit, if their tail is exponential
NEAR = 2 / 3  # share of own images that look usual enough for a sure answer
SURE = 0.9  # least probability of such an answer

Halves = Callable[[Tensor, Tensor], "Sequence[Tensor | None]"]
"""Fits to some images, and returns the `scores` of others, both by their indices."""


def scores(
    energy: Usual | None,
    familiarity: Familiarity | None,
    logits: Tensor,
    features: Tensor | None,
    seen: Sequence[Tensor],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The three scores of images, each (images,), or None where what they need is not known.

    Args:
        energy: The usual log-sum-exp of logits, and how far below it the lowest tenth begins.
        familiarity: What features and values inside the network usually are.
        logits: Those of the classes, (images, classes).
        features: (images, size).
        seen: What was put before each layer that is looked at, (images, its numbers).
    """
    depths = None if familiarity is None else familiarity.depths
    return (
        None if energy is None else (energy[0] - logits.logsumexp(1)) / energy[1],
        None if familiarity is None or features is None else familiarity(features),
        None if depths is None else depths(seen),
    )


def unlikeness(usual: Sequence[Usual | None], found: Sequence[Tensor | None]) -> Tensor:
    """The sum over the scores with something usual of the logarithm of one more than their excess, (images,)."""
    logs = []
    for known, score in zip(usual, found, strict=True):
        if known is not None:
            assert score is not None  # what is usual of a score was measured on it
            logs.append(torch.log1p(((score - known[0]) / known[1]).clamp_min(0)))
    return torch.stack(logs).sum(0)


def strangeness(
    statistics: Statistics,
    familiarity: Familiarity | None,
    logits: Tensor,
    features: Tensor | None,
    seen: Sequence[Tensor],
) -> Tensor:
    """How unlike a component's own images others are, as a share of the limit: (images,); arguments as for `scores`."""
    record = statistics.strangers
    assert record is not None
    return unlikeness(record.scores, scores(statistics.energy, familiarity, logits, features, seen)) / record.limit


def limits_of(count: int, halves: Halves) -> StrangersRecord | None:
    """Measure the limits by two-fold cross-fitting; None if there are too few images, or they do not differ.

    Beyond the largest tenth, an exponential tail with the mean of what lies there gives the limit that a share of
    `RARE` exceeds. "Sure" claims more: only a share of `NEAR` of own images is usual enough for it, so that few
    strangers are.

    Args:
        count: How many images there are.
        halves: Fits to one half, and scores the other.
    """
    if count < FEW:
        return None
    even, odd = torch.arange(0, count, 2), torch.arange(1, count, 2)
    first, second = halves(odd, even), halves(even, odd)
    held = [None if a is None or b is None else torch.cat([a, b]) for a, b in zip(first, second, strict=True)]
    usual = [None if score is None else _usual(score) for score in held]
    if not any(usual):
        return None
    found = unlikeness(usual, held)
    sure, high = found.quantile(torch.tensor([NEAR, 1 - TENTH], dtype=found.dtype))
    limit = high + (found[found > high] - high).mean() * torch.tensor(TENTH / RARE).double().log()
    if not (sure > 0 and torch.isfinite(limit)):
        return None
    energy, features, inside = usual
    return StrangersRecord(
        energy=energy, features=features, inside=inside, sure=float(sure), limit=float(limit), images=count
    )


def _usual(score: Tensor) -> Usual | None:
    """The median of a score, and how far above it the largest tenth begins; None if that is no distance."""
    median, high = score.quantile(torch.tensor([0.5, 1 - TENTH], dtype=score.dtype)).tolist()
    spread = high - median
    return (median, spread) if 0 < spread < float("inf") else None
