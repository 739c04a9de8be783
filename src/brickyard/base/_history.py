"""What was done to a model, as data: the images that it was made with, and how it was trained."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from brickyard.base._frozen import Count, Frozen

MARK = 16  # bytes
MOST = 20_000  # marks that a record holds
_LETTERS = -(-MOST * MARK // 3) * 4


class UsedRecord(Frozen):
    """Which images something was made with, by marks from which no image can be drawn.

    `images` is how many different ones they were, as far as that is known, and `unknown` how many more were used of
    which no mark is there. `marks` holds 16 bytes for each of at most 20,000 images, in base64 and ascending; of more
    images, those of the lowest marks, which are as good as drawn.

    Example:
        >>> from brickyard.base._history import UsedRecord
        >>> record = UsedRecord.of([b"b" * 16, b"a" * 16, b"a" * 16])
        >>> record.images, sorted(record.known) == [b"a" * 16, b"b" * 16]
        (2, True)
    """

    images: Count = 0
    unknown: Count = 0
    marks: Annotated[str, Field(max_length=_LETTERS)] = ""

    @model_validator(mode="after")
    def _marks_fit(self) -> UsedRecord:
        try:
            count, odd = divmod(len(base64.b64decode(self.marks, validate=True)), MARK)
        except binascii.Error:
            raise ValueError("the marks of images are not in base64") from None
        if odd or count > MOST or count > self.images:
            raise ValueError(f"marks of {MARK} bytes were expected, of at most {MOST:,} and {self.images:,} images")
        return self

    @cached_property
    def known(self) -> frozenset[bytes]:
        """The marks."""
        found = base64.b64decode(self.marks)
        return frozenset(found[start : start + MARK] for start in range(0, len(found), MARK))

    @property
    def missing(self) -> int:
        """How many images were used of which no mark is there."""
        return self.unknown + self.images - len(self.known)

    @classmethod
    def of(cls, marks: Iterable[bytes], *, more: int = 0, unknown: int = 0) -> UsedRecord:
        """A record of images with these marks, of `more` that are only counted, and of unknown ones."""
        found = sorted(set(marks))
        text = base64.b64encode(b"".join(found[:MOST])).decode()
        return cls(images=len(found) + more, unknown=unknown, marks=text)

    def joined(self, other: UsedRecord | None) -> UsedRecord:
        """A record of the images of both."""
        if other is None:
            return self
        more = sum(one.images - len(one.known) for one in (self, other))
        return self.of(self.known | other.known, more=more, unknown=self.unknown + other.unknown)

    def forgotten(self) -> UsedRecord:
        """A record of as many images, where their marks tell nothing any more."""
        return UsedRecord(unknown=self.images + self.unknown)


class TuneRecord(Frozen):
    """How a model was trained after it was made.

    `best` is the epoch whose weights it has; 0 means before training. `scores` are the validation accuracies, averaged
    over classes, before the first epoch and after each; empty without validation images.
    """

    images: Count
    validation: Count = 0
    epochs: Count
    best: Count
    optimizer: Literal["sgd", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    batch_size: Annotated[int, Field(ge=1, le=1 << 62)]
    seed: Count = 0
    teacher: Annotated[str, Field(max_length=1024)] = ""
    scores: tuple[float, ...] = ()


class Versions(Frozen):
    """The versions that made the file."""

    brickyard: str
    torch: str
    python: str
