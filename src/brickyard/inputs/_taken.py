"""What takes the inputs that arrays hold: it decides which axis is which where they are no pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brickyard.base._sides import by_sides, is_picture


@dataclass(frozen=True)
class Taken:
    """What takes the inputs of an array.

    Attributes:
        fits: Whether it takes inputs of a shape, such as (channels, length).
        text: What it takes, for messages.
    """

    fits: Callable[[tuple[int, ...]], bool]
    text: str

    @classmethod
    def of(cls, shape: Sequence[int] | Taken | None) -> Taken | None:
        """What takes inputs of a shape, whose sides may have other lengths; None for pictures, which have own rules."""
        if shape is None or isinstance(shape, Taken):
            return shape
        known = tuple(shape)
        if is_picture(known):
            return None
        return cls(lambda one: (len(one), one[0]) == (len(known), known[0]), by_sides(known))
