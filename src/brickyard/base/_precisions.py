"""How often boxes of a score are right, as a record."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from brickyard.base._frozen import Count, Frozen

FLATTEST, STEEPEST = 0.1, 10.0  # slopes of a curve


class PrecisionRecord(Frozen):
    """How often boxes of a score are right: a curve that rises strictly.

    A box is right where the source, at its usual threshold, has one of the same class that overlaps it by half. The
    log-odds of the share of right boxes are those of the score, times `slope`, plus `shift`.

    Attributes:
        slope: Above 1, scores are spread from one half; below 1, they are drawn to it.
        shift: Below 0, fewer boxes are right than scores say.
        boxes: How many boxes, found in images held back, the curve was fitted to.
        right: How many of these boxes were right.
        images: How many images they were found in.
    """

    slope: Annotated[float, Field(ge=FLATTEST, le=STEEPEST)]
    shift: Annotated[float, Field(ge=-20, le=20)]
    boxes: Count
    right: Count
    images: Count

    @model_validator(mode="after")
    def _counts_fit(self) -> PrecisionRecord:
        if self.right > self.boxes:
            raise ValueError(f"{self.right} of {self.boxes} boxes are right")
        return self
