"""What is known of the objects in images: boxes and labels, checked, counted and put into one table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import told, writable
from brickyard.inputs._decoding import QUARTERS, image_sides
from brickyard.inputs._pictures import MAX_BYTES, Encodings, Files, too_large
from brickyard.inputs._reading import examples, note

MOST_CLASSES = 1 << 16
MOST_BOXES = 1 << 25  # of all images

# What may be left out
MISSING = "images that are missing"
UNREADABLE = "images that cannot be decoded"
RESIZED = "images of another size than their annotations say"
TWICE = "entries that repeat an image"
UNLISTED = "boxes of images that are not listed"
UNKNOWN = "boxes of an unknown class"
NOT_FINITE = "boxes that are not finite"
EMPTY = "boxes without an area"
OUTSIDE = "boxes outside the image"

Floats = NDArray[np.float64]
Coding = Literal["corners", "sized", "shares", "unknown"]
Sides = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The objects in an image.

    Attributes:
        boxes: (objects, 4), float64: left, top, right and bottom in pixels of the picture as it is decoded.
        labels: (objects,), int64, indices into the data's classes.
        crowd: (objects,), bool: groups and objects that are hard to tell, which count neither as found nor as missed.
        sides: Height and width of the picture.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    sides: Sides


@dataclass(frozen=True, eq=False)
class Marked:
    """What a file says of one image, before it is checked.

    Attributes:
        boxes: (objects, 4), in the reader's coding.
        labels: (objects,), indices of classes; -1 where the class is unknown.
        crowd: (objects,), bool.
        stated: Height and width of the image as the file says, if it does.
    """

    boxes: Floats
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    stated: Sides | None = None

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[int],
        crowd: Sequence[bool] = (),
        stated: Sides | None = None,
    ) -> Marked:
        """Build from lists."""
        held = np.array(crowd if len(crowd) else [False] * len(labels), bool)
        return cls(np.array(boxes, float).reshape(-1, 4), np.array(labels, np.int64), held, stated)


def _joined(parts: Sequence[Marked]) -> Marked:
    """The objects of all entries for one image, each once."""
    if len(parts) == 1:
        return parts[0]
    boxes, labels, crowd = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "labels", "crowd")
    )
    own = len(parts[0].labels)  # which may hold equal ones
    known = {box.tobytes() + label.tobytes() for box, label in zip(boxes[:own], labels[:own], strict=True)}
    kept = list(range(own))
    for k in range(own, len(labels)):
        row = boxes[k].tobytes() + labels[k].tobytes()
        if row not in known:
            known.add(row)
            kept.append(k)
    stated = next((part.stated for part in parts if part.stated), None)
    return Marked(boxes[kept], labels[kept], crowd[kept], stated)


@dataclass(frozen=True)
class BoxesFound:
    """What a reader found, of which no picture is decoded yet.

    Attributes:
        encodings: What `decode_image` takes, for each image.
        marked: What the file says of each.
        classes: Class names.
        name: What messages call the data.
        coding: How boxes are written: corners; left, top, width and height; or centre, width and height as shares of
            the image. Unknown: one of the first two.
        left_out: What the reader left out, and how often.
    """

    encodings: Encodings
    marked: Sequence[Marked]
    classes: Sequence[str]
    name: str
    coding: Coding
    left_out: Counter[str]


def of_entries(entries: Iterable[tuple[Path | None, Marked]], left_out: Counter[str]) -> tuple[Files, list[Marked]]:
    """Pictures in files of their own: missing ones are counted, and several entries for one are joined."""
    known: dict[str, list[Marked]] = {}
    for path, marked in entries:
        if path is None:
            left_out[MISSING] += 1
        else:
            left_out[TWICE] += str(path) in known
            known.setdefault(str(path), []).append(marked)
    return Files(list(known)), [_joined(parts) for parts in known.values()]


def number(value: Any) -> float | None:
    """A number of JSON as a float: infinite where it is too large, None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def check_names(classes: Sequence[str], name: str) -> None:
    """Check class names.

    Raises:
        DataError: There are none or too many, two are equal, or one cannot be written.
    """
    if not 0 < len(classes) <= MOST_CLASSES:
        why = f"{name} has {len(classes):,} classes, and 1 to {MOST_CLASSES:,} are what is known"
        raise DataError("data-class-names", f"{why}; name the classes of its objects")
    odd = [text for text, count in Counter(classes).items() if count > 1 or not text.strip() or not writable(text)]
    if odd:
        why = f"{name}: class names must be unique texts that can be written as UTF-8, got {examples(odd)}"
        raise DataError("data-class-names", f"{why}; rename them")


# -- the table -----------------------------------------------------------------------------------------------------


class BoxTable:
    """The objects of all images, one after the other.

    Args:
        truths: Boxes, labels and crowd of each image, and its height and width.
    """

    def __init__(self, truths: Sequence[tuple[Marked, Sides]]) -> None:
        self._starts = [*itertools.accumulate((len(marked.labels) for marked, _ in truths), initial=0)]
        self._boxes, self._labels, self._crowd = (
            torch.from_numpy(np.concatenate([first, *parts]))
            for first, parts in (
                (np.zeros((0, 4)), [marked.boxes for marked, _ in truths]),
                (np.zeros(0, np.int64), [marked.labels for marked, _ in truths]),
                (np.zeros(0, bool), [marked.crowd for marked, _ in truths]),
            )
        )
        self._sides = [sides for _, sides in truths]

    def __len__(self) -> int:
        """How many objects there are."""
        return len(self._labels)

    def truth(self, place: int) -> Truth:
        """The objects of one image, which may be changed."""
        rows = slice(self._starts[place], self._starts[place + 1])
        return Truth(
            self._boxes[rows].clone(), self._labels[rows].clone(), self._crowd[rows].clone(), self._sides[place]
        )

    def relabelled(self, places: Sequence[int]) -> BoxTable:
        """The same with other labels, by label; -1 leaves objects out."""
        labels = torch.tensor(places, dtype=torch.long)[self._labels]
        kept = labels >= 0
        before = [0, *kept.cumsum(0).tolist()]
        found = BoxTable([])
        found._starts, found._sides = [before[start] for start in self._starts], self._sides
        found._boxes, found._labels, found._crowd = self._boxes[kept], labels[kept], self._crowd[kept]
        return found

    def presence(self, classes: int) -> Tensor:
        """Which classes are in each image: 0 or 1, (images, classes).

        Raises:
            DataError: That takes too much memory.
        """
        images = len(self._sides)
        if images * classes * 8 > MAX_BYTES:
            raise too_large(f"a row of {classes:,} classes for each of {images:,} images", images * classes * 8)
        found = torch.zeros(images, classes, dtype=torch.long)
        rows = torch.arange(images).repeat_interleave(torch.tensor(self._starts).diff())
        found[rows, self._labels] = 1
        return found


def checked(found: BoxesFound) -> tuple[BoxTable, list[int], Counter[str]]:
    """The table of all images that can be decoded, their places, and what was left out.

    Headers of all pictures are read for it.

    Raises:
        DataError: No image or no box can be used.
    """
    check_names(found.classes, found.name)
    given = sum(len(marked.labels) for marked in found.marked)
    if given > MOST_BOXES:
        why = f"{found.name} has {given:,} boxes, and {MOST_BOXES:,} are the limit"
        raise DataError("data-too-large", f"{why}; divide it")
    left_out, places = Counter(found.left_out), range(len(found.marked))
    seen = [_seen(*item) for item in found.encodings.fetch(places)]
    coding = _decided(found, seen)
    kept: list[tuple[int, tuple[Marked, Sides]]] = []
    for place, marked, header in zip(places, found.marked, seen, strict=True):
        corners = None if header is None else _corners(marked, header, coding)
        if header is None or corners is None:
            left_out[UNREADABLE if header is None else RESIZED] += 1
            continue
        kept.append((place, (_cleaned(corners, marked, header[:2], len(found.classes), left_out), header[:2])))
    if not kept:
        raise DataError("data-no-images", f"{found.name}: no image can be used{_listed(left_out)}; check the paths")
    table = BoxTable([pair for _, pair in kept])
    if given and not len(table):
        why = f"{found.name}: none of the {given:,} boxes can be used{_listed(left_out)}"
        raise DataError("data-label-mismatch", f"{why}; check how they are written, and the class names")
    return table, [place for place, _ in kept], +left_out


def said(left_out: Counter[str]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{count:,} {what}" for what, count in sorted(left_out.items()) if count)


def _listed(left_out: Counter[str]) -> str:
    """What was left out, in brackets."""
    return f" (left out: {told(said(left_out), 300)})" if said(left_out) else ""


Header = tuple[int, int, int]
"""Height, width and EXIF orientation."""


def _seen(source: Any, title: str | None) -> Header | None:
    """The header of a picture, or None if it is none."""
    try:
        return image_sides(source, title)
    except DataError:
        return None


def _decided(found: BoxesFound, seen: Sequence[Header | None]) -> Coding:
    """How boxes are written; where the file does not tell, what fits the pictures better, which is said."""
    if found.coding != "unknown":
        return found.coding
    beyond = crossed = 0
    for marked, header in zip(found.marked, seen, strict=True):
        if header is not None:
            first, second = marked.boxes[:, :2], marked.boxes[:, 2:]
            beyond += int((first + second > np.array(header[1::-1]) + 2).any(1).sum())
            crossed += int((second <= first).any(1).sum())
    if beyond <= crossed:
        return "sized"
    note(f"{found.name}: boxes are read as left, top, right and bottom: as left, top, width and height they do not fit")
    return "corners"


def _corners(marked: Marked, header: Header, coding: Coding) -> Floats | None:
    """Left, top, right and bottom in pixels of the decoded picture.

    None if the file was made for a picture of another size. If EXIF exchanges the sides and the file states them as
    before, its boxes are turned too.
    """
    height, width, turned = header
    first, second = marked.boxes[:, :2], marked.boxes[:, 2:]
    if coding == "shares":
        scale = np.array([width, height], float)
        return np.concatenate([(first - second / 2) * scale, (first + second / 2) * scale], axis=1)
    corners = marked.boxes if coding == "corners" else np.concatenate([first, first + second], axis=1)
    if marked.stated in (None, (height, width)):
        return corners
    if turned not in QUARTERS or marked.stated != (width, height):
        return None
    left, top, right, bottom = corners.T
    across = (top, bottom) if turned in (5, 8) else (width - bottom, width - top)
    down = (left, right) if turned in (5, 6) else (height - right, height - left)
    return np.stack([across[0], down[0], across[1], down[1]], axis=1)


def _cleaned(corners: Floats, marked: Marked, sides: Sides, classes: int, left_out: Counter[str]) -> Marked:
    """Objects with boxes that are cut to the picture, without those that cannot be right."""
    known = (marked.labels >= 0) & (marked.labels < classes)
    finite = np.isfinite(corners).all(1)
    sized = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    inner = np.clip(corners, 0, np.array([sides[1], sides[0]] * 2, float))
    inside = (inner[:, 2] > inner[:, 0]) & (inner[:, 3] > inner[:, 1])
    good = np.ones(len(known), bool)
    for what, holds in ((UNKNOWN, known), (NOT_FINITE, finite), (EMPTY, sized), (OUTSIDE, inside)):
        left_out[what] += int((good & ~holds).sum())
        good &= holds
    return Marked(inner[good], marked.labels[good], marked.crowd[good])
