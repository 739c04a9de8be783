"""Which axis of an array is which, and what its numbers are: pictures by rules, signals and cubes by what takes them.

A picture has rules of its own, by which its channels are told from its sides. Nothing in an array tells a signal of 28
channels from a grey picture, so those and cubes are read only where it is known, or can be tried, what takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._sides import NAMES, SIDES, by_sides, is_picture
from brickyard.inputs._preprocessing import OVERSHOOT
from brickyard.inputs._reading import note
from brickyard.inputs._taken import Taken

Array = np.ndarray[Any, np.dtype[Any]]

_CHUNK = 1 << 24  # numbers that are looked at together
_LARGEST = float(np.finfo(np.float32).max)
_COLOURS = (1, 3)


class Numbers(Protocol):
    """An array that may still lie in a file."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its numbers."""

    @property
    def read(self) -> Callable[[], Array]:
        """Reads it."""


@dataclass(frozen=True)
class _Reading:
    """One way to read an array.

    Attributes:
        shape: The shape of one input.
        text: Which axis was taken for the channels.
        moved: The order to bring the axes of the array to first, if it is another.
    """

    shape: tuple[int, ...]
    text: str
    moved: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """What messages call such inputs."""
        return NAMES[len(self.shape) - 1]

    def of(self, array: Array) -> Array:
        """The array (inputs, channels, sides ...)."""
        array = array if self.moved is None else array.transpose(self.moved)
        return array.reshape(len(array), *self.shape)


def arranged(stored: Numbers, place: str, taken: Taken | None = None) -> Tensor:
    """An array as images (images, channels, height, width), signals or cubes; what was assumed is said.

    Args:
        stored: The array.
        place: What the line that says it begins with.
        taken: What takes the images; None for pictures.

    Raises:
        DataError: Its shape or its numbers cannot be told to be those of images.
    """
    reading = _picture(stored.shape) if taken is None else next(_fitting(stored.shape, taken), None)
    if reading is None:
        raise _unread(stored, taken)
    if stored.dtype.kind not in "buif":
        raise DataError("data-type", f"{stored.name} must hold numbers, got {stored.dtype}; save images as uint8")
    if not math.prod(stored.shape):
        raise DataError("data-no-images", f"{stored.name} holds no images: its shape is {stored.shape}")
    array = reading.of(stored.read())
    images, kind = (_levels if is_picture(reading.shape) else _as_they_are)(array, stored.name)
    note(f"{place}: {len(images):,} {reading.name} of {by_sides(reading.shape)}: {reading.text}{kind}")
    return images


def _fitting(shape: tuple[int, ...], taken: Taken) -> Iterator[_Reading]:
    return (reading for reading in _readings(shape) if taken.fits(reading.shape))


def _readings(shape: tuple[int, ...]) -> list[_Reading]:
    """All ways to read an array that is not empty, the most usual one first."""
    if not math.prod(shape):
        return []
    picture = _picture(shape)
    found = [] if picture is None else [picture]
    sides, count = shape[1:], len(shape) - 2
    if count in SIDES and count != 2:
        found.append(_Reading(sides, "channels first"))
        found.append(_Reading((sides[-1], *sides[:-1]), "channels last", (0, count + 1, *range(1, count + 1))))
    if count + 1 in SIDES and count != 1:
        found.append(_Reading((1, *sides), f"one channel, as the array has {len(shape)} axes"))
    return found


def _picture(shape: tuple[int, ...]) -> _Reading | None:
    """An array read as pictures, where it can be told which axis holds the channels."""
    if len(shape) == 2:
        side = math.isqrt(shape[1])
        return _Reading((1, side, side), "rows are square grey pictures") if side * side == shape[1] > 1 else None
    if len(shape) == 3:
        return _Reading((1, *shape[1:]), "one channel, as the array has three axes")
    if len(shape) != 4:
        return None
    first, middle, last = shape[1:]
    ends = first in _COLOURS, last in _COLOURS
    if ends == (False, False):
        ends = middle == last != first, first == middle != last
    if ends == (True, True) or not any(ends):
        return None
    if ends[0]:
        return _Reading(shape[1:], "channels first")
    return _Reading((last, first, middle), "channels last", (0, 3, 1, 2))


def _unread(stored: Numbers, taken: Taken | None) -> DataError:
    """The error for an array that is none of what is taken."""
    if taken is None:
        why = f"{stored.name} has shape {stored.shape}, and it is unclear which axis holds the channels"
        advice = "save it as (images, height, width), (images, 3, height, width) or (images, height, width, 3)"
        return DataError("data-shape", f"{why}; {advice}")
    known = " or ".join(f"{reading.name} of {by_sides(reading.shape)}" for reading in _readings(stored.shape))
    found = f"{stored.name} has shape {stored.shape}, which can be {known or 'no inputs'}"
    return DataError("data-shape", f"{found}, and {taken.text} is taken; save it as (inputs, channels, sides ...)")


# -- what the numbers are ------------------------------------------------------------------------------------------


def _levels(array: Array, name: str) -> tuple[Tensor, str]:
    """The numbers of pictures as uint8, or as float32: in [0, 1], or as they are where they are no pictures."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return torch.from_numpy(array.astype(np.uint8) * np.uint8(255)), ", true as white"
    if array.dtype == np.uint8:
        return torch.from_numpy(array), ""
    low, high = _range(array, name)
    if kind in "ui":
        if size == 2 and kind == "u" and high > 255:
            return torch.from_numpy(array.astype(np.float32) / np.float32(65535)), ", 16 bits, divided by 65535"
        if low < 0 or not 1 < high <= 255 or (size == 2 and kind == "u"):
            why = f"{name} holds {array.dtype} from {low:g} to {high:g}, and it is unclear which value is white"
            raise DataError("data-type", f"{why}; save it as uint8 in 0..255, or as float32 in [0, 1]")
        return torch.from_numpy(array.astype(np.uint8)), f", {array.dtype} from {low:g} to {high:g} taken as 8 bits"
    images = torch.from_numpy(array.astype(np.float32, copy=False))
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return images, ""
    if low >= 0 and high <= 255:
        why = f"{name} holds {array.dtype} from {low:g} to {high:g}: pictures must be in [0, 1]"
        advice = "divide it by 255; or, if these are not images, subtract their mean first"
        raise DataError("data-not-raw", f"{why}; {advice}")
    return images, f", numbers from {low:.4g} to {high:.4g}, which are not images and stay as they are"


def _as_they_are(array: Array, name: str) -> tuple[Tensor, str]:
    """The numbers of signals and cubes: floating point in any unit, or uint8 as in pictures."""
    if array.dtype == np.uint8:
        return torch.from_numpy(array), ", 8 bits, divided by 255 where they are used"
    low, high = _range(array, name)
    if array.dtype.kind != "f":
        why = f"{name} holds {array.dtype} from {low:g} to {high:g}, and it is unclear what they were divided by"
        advice = "save the float32 numbers that the network was trained on, such as 16-bit audio divided by 32768"
        raise DataError("data-type", f"{why}; {advice}")
    numbers = torch.from_numpy(array.astype(np.float32, copy=False))
    return numbers, f", numbers from {low:.4g} to {high:.4g} as they are"


def _range(array: Array, name: str) -> tuple[float, float]:
    """The smallest and the largest number, looked at in pieces."""
    lows, highs = [], []
    for part in _pieces(array):
        low, high = float(part.min()), float(part.max())
        if not math.isfinite(low) or not math.isfinite(high):
            raise DataError("data-not-finite", f"{name} holds NaN or infinity; repair it, or leave those images out")
        if array.dtype.kind == "f" and max(-low, high) > _LARGEST:
            why = f"{name} holds {array.dtype} from {low:g} to {high:g}, and float32 holds at most {_LARGEST:.4g}"
            raise DataError("data-not-finite", f"{why}; scale it, or leave those images out")
        lows.append(low)
        highs.append(high)
    return min(lows), max(highs)


def _pieces(array: Array) -> Iterable[Array]:
    step = max(1, _CHUNK // max(1, math.prod(array.shape[1:])))
    return (array[start : start + step] for start in range(0, len(array), step))
