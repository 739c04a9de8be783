"""What words of a shell say of a preprocessing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from brickyard.base._errors import OptionError

if TYPE_CHECKING:
    from brickyard.base._records import Preprocessing


def preprocessing_of(
    *,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    fill: str | None = None,
    place: str | None = None,
    order: str | None = None,
    no_antialias: bool = False,
    boxed: bool = False,
) -> Preprocessing | None:
    """What the options say of the preprocessing, or None where none was given; `source_of` adds the rest.

    With `boxed`, the source is a detector, whose images stay letterboxed where a size alone is given.
    """
    from brickyard.base._records import Preprocessing

    if all(value is None for value in (mean, std, size, fill, place, order)) and not no_antialias:
        return None
    values: dict[str, Any] = {"mean": _numbers(mean, "--mean"), "std": _numbers(std, "--std")}
    if fill is not None:
        values["fill"] = _number(fill, "--fill")
    values |= {name: value for name, value in (("place", place), ("order", order)) if value is not None}
    if {"fill", "place"} & values.keys() and not (boxed or (size or "").startswith(("letterbox:", "pad:"))):
        asked = " and ".join(f"--{name}" for name in ("fill", "place") if name in values)
        raise OptionError(
            "option-conflict", f"{asked} says what is left around images; add such as --size letterbox:416 or pad:32"
        )
    if no_antialias:
        values["antialias"] = False
    if size is not None:
        parts = re.fullmatch(r"(?:(pad|resize|crop|letterbox)?:)?([0-9]{1,9})(?:x([0-9]{1,9}))?", size)
        if parts is None:
            raise OptionError(
                "option-syntax", f"--size must be given as 32, 32x48, crop:32, pad:32 or letterbox:32, got {size!r}"
            )
        values["size"] = int(parts[2]), int(parts[3] or parts[2])
        if parts[1] or not boxed:
            values |= {"fit": parts[1] or "resize", "crop": 1.0}
        elif {"fill", "place"} & values.keys():
            values["fit"] = "letterbox"
    elif {"fill", "place"} & values.keys():
        values["fit"] = "letterbox"
    return Preprocessing(**values)


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(_quotient(item) for item in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise OptionError(
            "option-syntax", f"{option} must be comma-separated numbers such as 0.5,0.5,0.5 or 1/255, got {text!r}"
        ) from None


def _number(text: str, option: str) -> float:
    try:
        return _quotient(text)
    except (ValueError, ZeroDivisionError):
        raise OptionError("option-syntax", f"{option} must be a number such as 0.5 or 114/255, got {text!r}") from None


def _quotient(text: str) -> float:
    """A number, or one divided by another."""
    over, slash, under = text.partition("/")
    return float(over) / float(under) if slash else float(over)
