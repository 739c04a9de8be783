"""How often one brick would answer for another's images: a guess from manifests, and a count from labelled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from brickyard.base._records import AssemblyManifest, ComponentManifest

Level = tuple[float, float]


def level(part: ComponentManifest, factors: Sequence[float] | None = None) -> Level | None:
    """How high a part's right answers are, and by how much they win: mean winning logit, and margin.

    Args:
        part: The part's manifest.
        factors: What a scaling multiplies each of its classes with, or None.

    Returns:
        None where the manifest has no statistics, or the part has one class only and so no margin.
    """
    found = part.statistics
    factors = factors or [1.0] * len(part.classes)
    if found is None or found.margin is None:
        return None
    winning = [w * f for w, f in zip(found.winning_logit, factors, strict=True) if w is not None]
    margin = found.margin * sum(factors) / len(factors)
    return (sum(winning) / len(winning), margin) if winning and margin > 0 else None


def predicted(own: Level, other: Level) -> float:
    """The chance that the other part's highest logit beats the own part's, for an image of the own part.

    The own logit is around the own winning logit. That of the other part, to which the image is foreign, is around a
    quarter of its margin above its runner-up, which is a margin below its winning logit. Both spread by a quarter of
    the part's margin, as normal variables. The quarters were chosen on what pairs of small parts really did.

    Example:
        >>> from brickyard.workbench._overlap import predicted
        >>> round(predicted((10.0, 8.0), (10.0, 8.0)), 3), round(predicted((10.0, 8.0), (16.0, 8.0)), 3)
        (0.017, 0.5)
    """
    (high, margin), (foreign_high, foreign_margin) = own, other
    gap = high - (foreign_high - 0.75 * foreign_margin)
    return 1 - NormalDist().cdf(gap / math.hypot(margin / 4, foreign_margin / 4))


def measured(manifest: AssemblyManifest, logits: Tensor, owners: Tensor) -> list[dict[str, int]]:
    """Count for every two parts how many labelled images of the one the other wins, side by side and unscaled.

    Classes of the other part that have the name of one of the own part's do not count.

    Args:
        manifest: The assembly's manifest.
        logits: The parts' logits side by side, (images, logits).
        owners: The part that each image belongs to, (images,).
    """
    blocks = logits.split([len(columns) for columns in manifest.columns], 1)
    found: list[dict[str, int]] = []
    for a, own in enumerate(manifest.parts):
        mine = owners == a
        for b, other in enumerate(manifest.parts):
            foreign = [i for i, name in enumerate(other.classes) if name not in own.classes]
            if a == b or not foreign or not bool(mine.any()):
                continue
            best = blocks[a][mine][:, : len(own.classes)].amax(1)
            won = int((blocks[b][mine][:, torch.tensor(foreign)].amax(1) > best).sum())
            found.append({"of": a, "by": b, "images": int(mine.sum()), "won": won})
    return found
