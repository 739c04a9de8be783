"""Atoms: the channels that layers write, which of them are tied, and where they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from brickyard.base import _limits as limits
from brickyard.base._errors import SurgeryError

Labels = NDArray[np.int64]
DimRole = Literal["out", "in", "follow", "through", "zeros"]


@dataclass(frozen=True)
class DimRecord:
    """One tensor dimension that is cut together with the atoms it lists.

    Attributes:
        owner: Dotted name of the layer or bare tensor, or the step's name for channel padding.
        role: "out" (written), "in" (read), "follow" (one entry per channel), "through" (inputs of a depthwise
            convolution), "zeros" (padded channels).
        atoms: One atom per entry of the dimension.
        position: The step at which it happens.
        dim: For bare tensors, which dimension.
    """

    owner: str
    role: DimRole
    atoms: Labels
    position: int
    dim: int = 0


@dataclass(frozen=True)
class PinRecord:
    """Atoms that are kept whole, why, and the line of the user's code that the reason is about, if it is known."""

    atoms: Labels
    reason: str
    line: str = ""


class Purse:
    """What following channels may cost, for a network that a file tells of.

    Args:
        numbers: How many numbers the file holds of it.
    """

    def __init__(self, numbers: int) -> None:
        labels = limits.LABELS + 16 * numbers
        self._left = {
            "atoms": limits.JOINED + numbers,
            "labels": labels,
            "ties": labels,
            "moved": limits.MOVED_IN_ALL,
        }

    def pay(self, what: str, count: int) -> None:
        """Take so many of these from what is left.

        Raises:
            SurgeryError: It is more than that.
        """
        self._left[what] -= count
        if self._left[what] < 0 or (what == "moved" and count > limits.MOVED):
            raise SurgeryError(
                "surgery-too-costly",
                "the structure that a part records has too many channels to be followed; use form='parallel'",
            )


class Atoms:
    """Union-find over atoms.

    Args:
        purse: What it may cost, or None for no limit.
    """

    def __init__(self, purse: Purse | None = None) -> None:
        self._parent: list[int] = []
        self._purse = purse

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Labels:
        if self._purse is not None:
            self._purse.pay("atoms", count)
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, atom: int) -> int:
        """The representative of all atoms tied to this one."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def roots(self, labels: Labels) -> Labels:
        unique, inverse = np.unique(labels, return_inverse=True)
        found = np.array([self.root(int(atom)) for atom in unique], dtype=np.int64)
        return found[inverse].reshape(labels.shape)

    def tie(self, a: Labels, b: Labels) -> None:
        """Tie two arrays of atoms, entry by entry, after broadcasting."""
        count = len(self._parent)
        pairs = np.unique(np.add(a * count, b))
        if self._purse is not None:
            self._purse.pay("ties", len(pairs))
        for pair in pairs.tolist():
            x, y = self.root(pair // count), self.root(pair % count)
            if x != y:
                self._parent[max(x, y)] = min(x, y)


def indexed_dims(index: Any, ndim: int) -> list[tuple[int, Any]]:
    """The dimension to which each part of a subscript applies."""
    parts = list(index) if isinstance(index, tuple) else [index]
    result: list[tuple[int, Any]] = []
    dim = 0
    for part in parts:
        if part is None:
            continue
        if part is Ellipsis:
            dim = ndim - sum(1 for rest in parts[parts.index(Ellipsis) + 1 :] if rest is not None)
            continue
        result.append((dim, part))
        dim += 1
    return result


def compress(labels: NDArray[np.int64]) -> Labels:
    """Shrink every dimension along which the labels do not change to size one."""
    for dim in range(labels.ndim):
        first = labels.take([0], axis=dim)
        if labels.shape[dim] > 1 and (labels == first).all():
            labels = first
    return labels


def settled(labels: Labels, stands_for: Callable[[Labels], Labels]) -> Labels:
    """Drop the dimensions along which the labels' representatives do not change, except the longest."""
    if labels.size == max(labels.shape, default=1):
        return labels
    found = compress(stands_for(labels))
    if found.size > 1:
        return found
    longest = int(np.argmax(labels.shape))
    return labels[tuple(slice(None) if d == longest else slice(0, 1) for d in range(labels.ndim))]


def lying_dims(labels: Labels, shape: Sequence[int]) -> tuple[int, ...]:
    """The dimensions along which the channels of a value of this shape lie.

    These are the dimensions along which labels vary. A single channel lies along the first dimension of size one after
    the batch or, if flattened, along the one after the batch.
    """
    varying = tuple(d for d, size in enumerate(labels.shape) if size > 1)
    ones = [d for d, size in enumerate(shape) if d > 0 and size == 1]
    return varying or ((ones or [1])[0],) if len(shape) > 1 else varying
