"""What every reader of image data shares: what is asked for, what is found, splits, labels, stacking pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from brickyard.inputs._decoding import decode_image
from brickyard.inputs._preprocessing import sized
from brickyard.inputs._taken import Taken
from brickyard.runtime._progress import say

MAX_BYTES = 8 << 30  # largest array of images in memory, and largest decompressed idx file
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
        taken: What takes the inputs, where arrays may hold other ones than pictures.
    """

    split: str = "train"
    asked: bool = False
    size: tuple[int, int] | Preprocessing | None = None
    taken: Taken | None = None


@dataclass(frozen=True)
class Found:
    """What is known of data before a picture is decoded.

    Attributes:
        labels: (images,), indices into `classes`.
        classes: Class names.
        name: What messages call the data.
        take: Reads the images at some indices, in their order: (images, channels, height, width).
    """

    labels: Tensor
    classes: Sequence[str]
    name: str
    take: Callable[[Sequence[int]], Tensor]


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
    known = told(", ".join(there), 200) or "none"
    return DataError("data-missing", f"{place} has no split {split!r}; its splits are {known}: name one of them")


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
        values: One label an image.
        what: What messages call them, such as "a.csv: column 'label'".
        names: The class names, where they are known.

    Raises:
        DataError: A label is missing, or cannot be the index of a class.
    """
    if not values:
        raise DataError("data-no-images", f"{what} holds no images; give at least one per class")
    numbers = [number_of(value) for value in values]
    if any(number is None for number in numbers):
        texts = all(isinstance(value, str) and value.strip() for value in values)
        if not texts:
            wrong = [k for k, value in enumerate(values) if not isinstance(value, str) or not value.strip()]
            row = next((k for k in wrong if numbers[k] is None), wrong[0] if wrong else 0)
            why = f"{what} must hold whole numbers or names, and row {row} holds {told(repr(values[row]), 40)}"
            raise DataError("data-label-mismatch", f"{why}; leave out images without a label")
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


def stacked(
    pictures: Iterable[tuple[Any, str | None]], size: tuple[int, int] | Preprocessing | None, name: str
) -> Tensor:
    """Decode pictures, bring them to a size if there is one, and stack them; grey ones become colour if others are.

    Args:
        pictures: What `decode_image` takes, and what messages call it.
        size: Height and width, to which pictures are resized until they cover it, and cropped; or a preprocessing.
        name: What messages call all of them.

    Raises:
        DataError: One cannot be decoded, or their sizes differ.
    """
    how = Preprocessing(size=size, fit="crop") if isinstance(size, tuple) else size
    found: list[Tensor] = []
    for source, title in pictures:
        picture = decode_image(source, title)
        found.append(picture if how is None else sized(picture, how))
        if found[-1].shape[1:] != found[0].shape[1:]:
            one, other = (f"{item.shape[1]}x{item.shape[2]}" for item in (found[0], found[-1]))
            why = f"{name}: images have different sizes, such as {one} and {other} ({told(title or source, 200)})"
            raise DataError("data-not-batchable", f"{why}; give a size to resize them to")
    if not found:
        raise DataError("data-no-images", f"{name} holds no images; give at least one per class")
    if any(picture.is_floating_point() for picture in found):
        found = [picture if picture.is_floating_point() else picture.float() / 255 for picture in found]
    if len({len(picture) for picture in found}) > 1:
        found = [picture.expand(3, -1, -1) for picture in found]
    return torch.stack(found)


def of_files(paths: Sequence[Path], size: tuple[int, int] | Preprocessing | None, name: str) -> Callable[..., Tensor]:
    """What reads some of these pictures."""
    return lambda chosen: stacked(((paths[index], None) for index in chosen), size, name)


def of_tensor(images: Tensor) -> Callable[[Sequence[int]], Tensor]:
    """What picks some of these images; all of them in their order are not copied."""

    def take(chosen: Sequence[int]) -> Tensor:
        return images if list(chosen) == list(range(len(images))) else images[torch.as_tensor(chosen)]

    return take


def too_large(what: str, size: int) -> DataError:
    """The error for data that would take more memory than the limit."""
    found = f"{what} would take {size / 2**30:,.1f} GiB, and {MAX_BYTES / 2**30:g} GiB are the limit"
    return DataError("data-too-large", f"{found}; give fewer or smaller images, or pictures in files of their own")
