"""Boxes of one object that several detectors found, fused to one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from brickyard.outputs._detections import Found, overlaps, together

FUSED = 0.55  # overlap with a fused box above which another box is of the same object


def fused(parts: Sequence[Found], classes: Collection[int]) -> Found:
    """Fuse the boxes that several parts found in an image, class by class; by falling score.

    Weighted boxes fusion (Solovyev, Wang and Gabruseva, 2021), with another score. Boxes are taken by falling score.
    Each joins the fused box that it overlaps most, if by more than 0.55, or begins another. A fused box's corners are
    the means of its boxes' corners, weighted by their scores. Its score is the probability that not all parts are
    wrong, `1 - prod(1 - score)` over the surest box of each part: an object that one part alone finds keeps its score,
    where the mean over all parts would lower it.

    Args:
        parts: What each part found, its duplicates suppressed.
        classes: Those that several parts know. Boxes of others stay as they are.
    """
    every = together(parts)
    owner = torch.cat([torch.full_like(one.labels, index) for index, one in enumerate(parts)])
    owner = owner[torch.cat([one.scores for one in parts]).argsort(descending=True, stable=True)]
    shared = torch.isin(every.labels, torch.tensor(sorted(classes), dtype=every.labels.dtype))
    found = [every.of(~shared)]
    for k in sorted(classes):
        own = every.labels == k
        boxes, scores = _of_class(every.boxes[own], every.scores[own], owner[own], len(parts))
        found.append(Found(boxes, scores, every.labels.new_full((len(scores),), k)))
    return together(found)


def _of_class(boxes: Tensor, scores: Tensor, owner: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The fused boxes (fused, 4) of a class and their scores (fused,); given by falling score, each with its part."""
    middles, sums, weights = boxes.clone(), torch.zeros_like(boxes), torch.zeros_like(scores)
    doubt = torch.ones(len(boxes), parts, dtype=scores.dtype)  # that the surest box of each part is wrong
    count = 0
    for box, score, part in zip(boxes, scores, owner.tolist(), strict=True):
        at = count
        if count:
            shared = overlaps(box[None], middles[:count])[0]
            best = int(shared.argmax())
            at = best if float(shared[best]) > FUSED else count
        sums[at] += score * box
        weights[at] += score
        middles[at] = box if at == count else sums[at] / weights[at]
        doubt[at, part] = torch.minimum(doubt[at, part], 1 - score)
        count += at == count
    alone = (doubt[:count] < 1).sum(1) < 2
    surest = 1 - doubt[:count].amin(1)
    return middles[:count], torch.where(alone, surest, 1 - doubt[:count].prod(1))
