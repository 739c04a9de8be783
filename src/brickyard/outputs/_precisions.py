"""Scores of boxes as expected precisions: a curve is fitted to boxes known to be right or wrong, and applied."""

from __future__ import annotations

import torch
from torch import Tensor

from brickyard.base._precisions import FLATTEST, STEEPEST, PrecisionRecord

FEW = 30  # boxes, of which no curve is fitted
SLOPE, SHIFT = 0.5, 1.0  # standard deviations of the prior on slope and shift: about 1 and 0, which change no score
RAW = 0.05  # the share of the raw score in a precision, by which the curve rises everywhere in single precision too
_TINY = 1e-6
_STEPS = 100


def fitted(scores: Tensor, right: Tensor, images: int) -> PrecisionRecord | None:
    """Fit a curve of precision against score; None for too few boxes.

    Logistic regression on the log-odds of scores (Platt, 1999, who took the outputs of support vector machines; with
    log-odds it is the symmetric case of beta calibration: Kull, Silva Filho and Flach, 2017). A normal prior expects
    that scores are precisions already, so that few boxes change little, and boxes that are all right, all wrong or
    separated by their scores give no step. Slope and shift are the mode of the posterior, which is one, as the problem
    is convex. Two numbers rather than a step function with many: a component holds back a few dozen right boxes.

    Args:
        scores: Of boxes, in [0, 1], (boxes,).
        right: Which of them are right, (boxes,).
        images: In how many images they were found.
    """
    if len(scores) < FEW:
        return None
    odds, hits = _odds(scores.double().cpu()), right.double().cpu()
    at = _mode(odds, hits, torch.tensor([1.0, 0.0], dtype=torch.float64), free=2)
    if not FLATTEST <= float(at[0]) <= STEEPEST:  # the mode within the bounds lies on one of them
        at[0].clamp_(FLATTEST, STEEPEST)
        at = _mode(odds, hits, at, free=1)
    slope, shift = at.tolist()
    shift = min(max(shift, -20.0), 20.0)
    return PrecisionRecord(slope=slope, shift=shift, boxes=len(hits), right=int(hits.sum()), images=images)


def _odds(scores: Tensor) -> Tensor:
    return scores.clamp(_TINY, 1 - _TINY).logit()


def _loss(odds: Tensor, hits: Tensor, at: Tensor) -> Tensor:
    """Minus the logarithm of the posterior of (slope, shift)."""
    z = at[0] * odds + at[1]
    return torch.nn.functional.softplus(z).sum() - (hits * z).sum() + _prior(at)


def _prior(at: Tensor) -> Tensor:
    return ((at[0] - 1) / SLOPE) ** 2 / 2 + (at[1] / SHIFT) ** 2 / 2


def _mode(odds: Tensor, hits: Tensor, at: Tensor, free: int) -> Tensor:
    """The mode of the posterior of (slope, shift) by Newton's method; with one free number, of the shift alone."""
    rows = torch.stack([odds, torch.ones_like(odds)], 1)[:, 2 - free :]
    weight = torch.tensor([SLOPE**-2, SHIFT**-2], dtype=at.dtype)[2 - free :]
    usual = torch.tensor([1.0, 0.0], dtype=at.dtype)[2 - free :]
    for _ in range(_STEPS):
        p = (at[0] * odds + at[1]).sigmoid()
        slope = rows.T @ (p - hits) + weight * (at[2 - free :] - usual)
        bend = (rows.T * (p * (1 - p))) @ rows + torch.diag(weight)
        step, before = torch.linalg.solve(bend, slope), _loss(odds, hits, at)
        if float(step.abs().max()) < 1e-12:
            break
        for _ in range(_STEPS):  # halved until it is downhill
            new = at.clone()
            new[2 - free :] -= step
            if bool(_loss(odds, hits, new) <= before):
                break
            step = step / 2
        at = new
    return at


def expected(scores: Tensor, curve: PrecisionRecord | None) -> Tensor:
    """Scores of any shape as expected precisions; as they are without a curve."""
    if curve is None:
        return scores
    return RAW * scores + (1 - RAW) * (curve.slope * _odds(scores) + curve.shift).sigmoid()
