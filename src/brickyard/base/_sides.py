"""What the axes of an input are called: signals have one side, images two, cubes three."""

from __future__ import annotations

from collections.abc import Sequence

SIDES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
NAMES = {1: "signals", 2: "images", 3: "cubes"}
BATCHED = tuple(count + 2 for count in SIDES)  # dimensions of a batch


def axes_text(count: int, *first: str) -> str:
    """The axes of an input with so many sides, as a message writes them.

    Example:
        >>> from brickyard.base._sides import axes_text
        >>> axes_text(1, "batch")
        '(batch, channels, length)'
    """
    return f"({', '.join((*first, 'channels', *SIDES[count]))})"


BATCHES = f"images {axes_text(2, 'batch')}, signals {axes_text(1, 'batch')} or cubes {axes_text(3, 'batch')}"
INPUTS = f"{axes_text(2)}, {axes_text(1)} or {axes_text(3)}"


def is_picture(shape: Sequence[int]) -> bool:
    """Whether the shape of one input, without the batch, is that of a picture."""
    return len(shape) == 3


def by_sides(shape: Sequence[int]) -> str:
    """A shape as a message writes it: 3 x 32 x 32."""
    return " x ".join(map(str, shape))
