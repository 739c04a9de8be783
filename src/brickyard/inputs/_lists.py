"""Rows of numbers in columns: lists, of one length or nested, in the place of the bytes of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import told
from brickyard.inputs._layouts import Array, arranged
from brickyard.inputs._pictures import MAX_BYTES, too_large
from brickyard.inputs._reading import Wanted


@dataclass(frozen=True)
class _Rows:
    """Rows that were read, as an array."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]


def read_lists(rows: Iterable[tuple[Any, str | None]], wanted: Wanted, name: str) -> Tensor:
    """An array of rows that are lists of numbers, as images, signals or cubes.

    Args:
        rows: What each row holds, and what messages call it.
        wanted: What is asked for.
        name: What messages call all of them.

    Raises:
        DataError: Lists are of different lengths, or hold something else than numbers.
    """
    array = np.stack(list(_arrays(rows, name)))
    return arranged(_Rows(name, array.shape, array.dtype, lambda: array), name, wanted.taken)


def _arrays(rows: Iterable[tuple[Any, str | None]], name: str) -> Iterator[Array]:
    shape: tuple[int, ...] | None = None
    total = 0
    for value, title in rows:
        try:
            found = np.asarray(value)
        except ValueError:  # of different lengths
            found = np.asarray(None)
        if found.dtype.kind not in "buif" or not found.ndim:
            why = f"{title} must be a list of numbers, each nested list of one length, got {told(repr(value), 60)}"
            raise DataError("data-type", f"{why}; repair it, or leave it out")
        shape = found.shape if shape is None else shape
        if found.shape != shape:
            why = f"{name}: rows have different shapes, such as {shape} and {found.shape} ({title})"
            raise DataError("data-not-batchable", f"{why}; cut or pad them to one length")
        total += found.nbytes
        if total > MAX_BYTES:
            raise too_large(name, total)
        yield found
