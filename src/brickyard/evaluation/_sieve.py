"""Images that a model was made with are known among those to score, and left out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brickyard.assembly._labelled import Examples
from brickyard.base._errors import DataError
from brickyard.base._history import UsedRecord
from brickyard.base._records import AssemblyManifest, ComponentManifest, Preprocessing
from brickyard.evaluation._scores import Overlap
from brickyard.inputs._batches import Images
from brickyard.inputs._content import as_bytes

WITH = "including_calibration=True (--including-calibration)"


@dataclass
class Sieve:
    """Leaves out images that something was made with.

    Attributes:
        uses: The images that it was made with.
        ways: How its networks are shown images.
        including: Whether these are only counted.
        given: How many images have been looked at.
        used: How many of them it was made with.
    """

    uses: Sequence[UsedRecord]
    ways: Sequence[Preprocessing]
    including: bool = False
    given: int = 0
    used: int = 0
    _labelled: list[bytes] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, manifest: ComponentManifest | AssemblyManifest, including: bool = False) -> Sieve:
        """That of a component or an assembly."""
        return cls(manifest.uses, [part.preprocessing for part in manifest.parts], including)

    def fresh(self, images: Images, chosen: Tensor, labels: Tensor) -> Tensor:
        """Which of some images of a data set are to be scored, (chosen,).

        Raises:
            DataError: All of them were used.
        """
        known: set[bytes] = set().union(*(use.known for use in self.uses))
        ways = {how.frame: how for how in (images.preprocessing, *self.ways)}
        each = [as_bytes(images.marks(chosen.tolist(), how)) for how in ways.values()]
        used = torch.tensor([any(mark in known for mark in row) for row in zip(*each, strict=True)], dtype=torch.bool)
        texts = [repr(label).encode() for label in labels.tolist()]
        self._labelled += [mark + text for mark, text in zip(each[0], texts, strict=True)]
        self.given += len(used)
        self.used += int(used.sum())
        return torch.ones_like(used) if self.including else ~used

    def check(self, left: bool) -> None:
        """Refuse to go on where nothing is left to score.

        Raises:
            DataError: All images were used.
        """
        if not left and self.used:
            all_used = self.used == self.given
            what = f"all {self.given:,} images to score" if all_used else "all images of its classes to score"
            why = f"{what} were used to locate, heal or scale, so scores on them would say nothing of new images"
            raise DataError("data-seen-in-training", f"{why}; give others, or {WITH} to score them all the same")

    def examples(self, found: Examples) -> Examples:
        """Those images of several parts that are to be scored.

        Raises:
            DataError: There are none.
        """
        keep: list[Tensor] = []
        for pool, own, how in zip(found.pools, found.chosen, self.ways, strict=True):
            if pool is not None and own:
                rows = found.targets[sum(map(len, keep)) :][: len(own)]
                keep.append(self.fresh(Images(pool, how), torch.tensor(own), rows))
        kept = torch.cat(keep)
        self.check(bool(kept.any()))
        return found.some(kept)

    @property
    def sha256(self) -> str:
        """What the images and their labels are, in whatever order and form they were given."""
        return hashlib.sha256(b"".join(sorted(self._labelled))).hexdigest()

    @property
    def overlap(self) -> Overlap:
        """What was found."""
        missing = sum(use.missing for use in self.uses)
        return Overlap(given=self.given, used=self.used, left_out=0 if self.including else self.used, unknown=missing)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it."""
        return self.overlap.notes


def named(data: Any) -> str:
    """What data are called."""
    found = [str(getattr(item, "name", "")) for item in (data if isinstance(data, list) else [data])]
    return " and ".join(dict.fromkeys(name for name in found if name))
