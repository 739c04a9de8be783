"""What every reader of image data shares: what is asked for, what is found, splits, labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brickyard.base._checks import is_whole
from brickyard.base._errors import DataError
from brickyard.base._messages import told
from brickyard.base._records import Preprocessing
from brickyard.inputs._pictures import Files, Pictures, Reader, Store
from brickyard.inputs._taken import Taken
from brickyard.runtime._progress import say

MAX_TEXT = 1 << 29  # largest JSON file, and largest table of paths
MAX_CLASSES = 1_000_000

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

SPLITS = {  # the usual names of each split; the first that is there counts
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "val": ("val", "valid", "validation"),
    "validation": ("validation", "val", "valid"),
}
SPLIT_NAMES = {name for names in SPLITS.values() for name in names}


@dataclass(frozen=True)
class Wanted:
    """What is asked of a place.

    Attributes:
        split: The split.
        asked: Whether the text of the data names it, so that it must exist.
        size: What pictures are brought to, if anything.
        several: Whether an image may belong to several classes, so that its label is a row.
        taken: What takes the inputs, where arrays may hold other ones than pictures.
    """

    split: str = "train"
    asked: bool = False
    size: tuple[int, int] | Preprocessing | None = None
    several: bool = False
    taken: Taken | None = None


@dataclass(frozen=True)
class Found:
    """What is known of data, of which no picture is decoded yet.

    Attributes:
        labels: (images,), indices into `classes`; or 0 and 1, (images, classes).
        classes: Class names.
        name: What messages call the data.
        images: The images, or what decodes them.
    """

    labels: Tensor
    classes: Sequence[str]
    name: str
    images: Store


def split_names(split: str) -> tuple[str, ...]:
    """The usual names of a split, the most exact one first."""
    return SPLITS.get(split, (split,))


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def note(text: str) -> None:
    """Say what a reader assumed or left out."""
    if not _quiet.get():
        say(text)


@contextmanager
def quietly() -> Iterator[None]:
    """Say nothing of what readers assume, as where a place is only looked at, or read a second time."""
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)


def say_stand_in(name: str, split: str, used: str) -> None:
    """Say which split serves as the one that was wanted, where that is another one."""
    if used in SPLITS["val"] and split not in SPLITS["val"]:
        note(f"{name}: there is no split {split!r}; {used!r} serves as it")


def no_split(place: object, split: str, there: Iterable[str]) -> DataError:
    """The error for a split that is not there."""
    known = told(", ".join(there), 200)
    what = f"its splits are {known}: name one of them" if known else "it has no splits: leave split= out"
    return DataError("data-missing", f"{place} has no split {split!r}; {what}")


def is_of(path: Path, split: str) -> bool:
    """Whether a file, or the folder that it lies in, is called like a split."""
    words = [*re.split(r"[-_. ]", path.stem.casefold()), path.parent.name.casefold()]
    return any(name in words for name in split_names(split))


def examples(names: Sequence[object], most: int = 3) -> str:
    """Some of the names, quoted, for a message."""
    return ", ".join(repr(told(name, 60)) for name in names[:most])


def labelled(values: Sequence[Any], what: str, names: Sequence[str] | None = None) -> tuple[Tensor, list[str]]:
    """Labels and class names from what stands for labels: whole numbers are indices, other texts are names.

    Args:
        values: One label an image; true and false alone are names.
        what: What messages call them, such as "a.csv: column 'label'".
        names: The class names, where they are known.

    Raises:
        DataError: A label is missing, or cannot be the index of a class.
    """
    if not values:
        raise DataError("data-no-images", f"{what} holds no images; give at least one per class")
    if all(isinstance(value, bool) for value in values):
        values = list(map(str, values))
    numbers = [number_of(value) for value in values]
    if any(number is None for number in numbers):
        texts = all(isinstance(value, str) and value.strip() for value in values)
        if not texts:
            wrong = [k for k, value in enumerate(values) if not isinstance(value, str) or not value.strip()]
            row = next((k for k in wrong if numbers[k] is None), wrong[0] if wrong else 0)
            why = f"{what} must hold integers or names, and row {row} holds {told(repr(values[row]), 40)}"
            rows = isinstance(values[row], list | tuple)
            advice = "say that an image may belong to several classes (--outputs several)" if rows else ""
            raise DataError("data-label-mismatch", f"{why}; {advice or 'leave out images without a label'}")
        classes = sorted({value.strip() for value in values}) if names is None else list(names)
        places = {name: k for k, name in enumerate(classes)}
        unknown = sorted({value.strip() for value in values} - places.keys())
        if unknown:
            why = f"{what} names {examples(unknown)}, and the classes are {told(', '.join(classes), 200)}"
            raise DataError("data-label-mismatch", f"{why}; name the class of every image")
        return torch.tensor([places[value.strip()] for value in values], dtype=torch.long), classes
    whole = [number for number in numbers if number is not None]
    low, high = min(whole), max(whole)
    if low < 0 or high >= MAX_CLASSES:
        why = f"{what} has {len(values)} images and labels from {low} to {high}"
        raise DataError("data-label-out-of-range", f"{why}; give labels that count the classes from 0")
    classes = [str(k) for k in range(high + 1)] if names is None else list(names)
    return torch.tensor(whole, dtype=torch.long), classes


def number_of(value: Any) -> int | None:
    """A label as a whole number: 3, "3", "3.0" or " 3 "; None if it is none."""
    if isinstance(value, str):
        text = re.fullmatch(r"\s*([+-]?[0-9]{1,18})(?:\.0*)?\s*", value, re.ASCII)
        return int(text[1]) if text else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 1 << 53 else None
    return int(value) if is_whole(value) and not abs(value) >> 62 else None


def of_files(paths: Sequence[str], wanted: Wanted, name: str) -> Pictures:
    """Pictures in files of their own, which messages call `name`."""
    return Pictures(Reader(Files(paths), wanted.size, name))
