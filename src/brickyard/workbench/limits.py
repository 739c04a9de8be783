"""What a client may send and keep."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what a client may send and keep.

    Attributes:
        file_bytes: Bytes of one picture.
        files: Pictures in one request.
        body_bytes: Bytes of one request.
        pixels: Pixels of one picture.
        bricks: Components in one classifier.
        assemblies: Classifiers that are kept; the one that was not used for longest goes first.
        seconds: Time that a request may take to arrive.

    Example:
        >>> from brickyard.workbench.limits import Limits
        >>> Limits(assemblies=2).assemblies
        2
    """

    file_bytes: int = 16 << 20
    files: int = 400
    body_bytes: int = 64 << 20
    pixels: int = 50_000_000
    bricks: int = 24
    assemblies: int = 8
    seconds: float = 60.0
