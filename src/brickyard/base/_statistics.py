"""What components know about their own images, as data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from brickyard.base._frozen import Count, Frozen, Name


class DepthRecord(Frozen):
    """A layer before which images are compared with usual ones, in how many numbers, and what dimensions are positions.

    The numbers are the means of all channels over positions, and their standard deviations where there are positions.
    """

    layer: Name
    size: Annotated[int, Field(ge=1, le=1 << 20)]
    dims: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(max_length=8)] = ()


class FamiliarityRecord(Frozen):
    """Shape of a component's feature statistics; their values are tensors in the file.

    `depths` lists the layers before which images are compared with the component's own.
    """

    classes: Annotated[int, Field(ge=1, le=1 << 20)]
    size: Annotated[int, Field(ge=1, le=1 << 20)]
    rank: Annotated[int, Field(ge=1, le=1 << 10)]
    depths: Annotated[tuple[DepthRecord, ...], Field(max_length=64)] = ()


class Statistics(Frozen):
    """Statistics for later scaling, measured on the component's own training images.

    All lists have one entry per class of the task. `winning_logit` is None if no image of the class was answered
    correctly. `margin` is the mean difference between the highest and the next logit. `energy` is the usual (median)
    log-sum-exp of an image's logits, and how far below it the lowest tenth begins.
    """

    images: tuple[Count, ...]
    correct: tuple[Count, ...]
    winning_logit: tuple[float | None, ...]
    mean_logit: tuple[float | None, ...]
    magnitude: float | None = None
    margin: float | None = None
    energy: tuple[float, Annotated[float, Field(gt=0)]] | None = None
    familiarity: FamiliarityRecord | None = None

    @model_validator(mode="after")
    def _lists_fit(self) -> Statistics:
        counts = {len(values) for values in (self.images, self.correct, self.winning_logit, self.mean_logit)}
        if len(counts) > 1:
            raise ValueError(f"lists of {' and '.join(map(str, sorted(counts)))} entries, where all have one per class")
        if self.familiarity is not None and self.familiarity.classes > len(self.images):
            raise ValueError(f"features of {self.familiarity.classes} classes for {len(self.images)} classes")
        return self
