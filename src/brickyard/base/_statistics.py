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


Positive = Annotated[float, Field(gt=0)]
Usual = tuple[float, Positive]


class StrangersRecord(Frozen):
    """How unlike a component's own images one must be to be turned away, as measured on images held back.

    An image has up to three scores: how far its log-sum-exp is below the usual, how far its features are from those of
    the classes, and how unusual the values inside the network are. For each that is known, this holds the median on
    `images` images held back, and how far above it the largest tenth begins. Of a score that is above its median by so
    many of these distances, the logarithm of one more is taken, and the sum over the scores says how unlike an image
    is. Two in three of the images held back have at most `sure` (nine in ten, in older files); those above `limit` are
    turned away.
    """

    energy: Usual | None = None
    features: Usual | None = None
    inside: Usual | None = None
    sure: Positive
    limit: Positive
    images: Count

    @model_validator(mode="after")
    def _fits(self) -> StrangersRecord:
        if not any(self.scores):
            raise ValueError("strangers need at least one score to be recognised, and there is none")
        if self.sure > self.limit:
            raise ValueError(f"the limit of sure answers, {self.sure}, is above that of strangers, {self.limit}")
        return self

    @property
    def scores(self) -> tuple[Usual | None, Usual | None, Usual | None]:
        """What is usual for each score."""
        return self.energy, self.features, self.inside


class Statistics(Frozen):
    """Statistics for later scaling, measured on the component's own training images.

    All lists have one entry per class of the task. `winning_logit` is None if no image of the class was answered
    correctly. `margin` is the mean difference between the highest and the next logit. `energy` is the usual (median)
    log-sum-exp of an image's logits, and how far below it the lowest tenth begins. `strangers` is None where too few
    images were seen to tell strangers, or where an image need not show any of the classes.
    """

    images: tuple[Count, ...]
    correct: tuple[Count, ...]
    winning_logit: tuple[float | None, ...]
    mean_logit: tuple[float | None, ...]
    magnitude: float | None = None
    margin: float | None = None
    energy: Usual | None = None
    familiarity: FamiliarityRecord | None = None
    strangers: StrangersRecord | None = None

    @model_validator(mode="after")
    def _lists_fit(self) -> Statistics:
        counts = {len(values) for values in (self.images, self.correct, self.winning_logit, self.mean_logit)}
        if len(counts) > 1:
            raise ValueError(f"lists of {' and '.join(map(str, sorted(counts)))} entries, where all have one per class")
        return self

    @model_validator(mode="after")
    def _strangers_fit(self) -> Statistics:
        inside = self.familiarity is not None and bool(self.familiarity.depths)
        known = {"energy": self.energy is not None, "features": self.familiarity is not None, "inside": inside}
        for name, there in known.items():
            if self.strangers is not None and getattr(self.strangers, name) is not None and not there:
                raise ValueError(f"strangers are recognised by {name}, of which nothing is known")
        return self
