"""How the parts of an assembly run in turn, as a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from brickyard.base._frozen import Count, Frozen


class CascadeRecord(Frozen):
    """How the parts of an assembly run in turn, and what that saved on calibration images.

    Attributes:
        thresholds: For each part, the logit above which an answer with one of its classes is final, or null where none
            is.
        expected: For each class, its logit where its part did not run: the mean over images of other parts.
        wanted: The share of images to be answered as by all parts.
        images: The number of calibration images, which needed no labels.
        held_back: How many of them the thresholds were chosen on; the following figures are of these.
        agreement: The share of them that are answered as by all parts.
        flops: What they took, as a share of the FLOPs of all parts.
    """

    thresholds: tuple[float | None, ...]
    expected: tuple[float, ...]
    wanted: Annotated[float, Field(gt=0, lt=1)]
    images: Count
    held_back: Count
    agreement: Annotated[float, Field(ge=0, le=1)]
    flops: Annotated[float, Field(ge=0)]

    def check(self, owners: Sequence[int], parts: int) -> None:
        """Check that it fits an assembly of so many parts, each of whose classes belongs to one of them.

        Raises:
            ValueError: It does not.
        """
        if (len(self.thresholds), len(self.expected)) != (parts, len(owners)):
            found = f"{len(self.thresholds)} thresholds and {len(self.expected)} expected logits"
            raise ValueError(f"{found} for {parts} parts and {len(owners)} classes")
        for part, threshold in enumerate(self.thresholds):
            others = [value for owner, value in zip(owners, self.expected, strict=True) if owner != part]
            if threshold is not None and threshold < max(others, default=threshold):
                raise ValueError(f"the threshold of part {part} is below what other parts are expected to say")
