"""Argument checks, each with one clear error."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from brickyard.base._errors import FileError, OptionError
from brickyard.base._messages import brief, first_line, near


def check_choice(name: str, value: object, choices: object, register: str = "") -> None:
    """Check a value against a `Literal` or a tuple of strings; `register` is the decorator that adds to them, if any.

    Raises:
        OptionError: It is not among the choices.
    """
    allowed = choices if isinstance(choices, tuple) else get_args(choices)
    if not isinstance(value, str) or value not in allowed:
        hint = near(value.casefold(), allowed) if isinstance(value, str) else ""
        own = f"; or register your own with @{register}" if register else ""
        raise OptionError(
            "option-choice", f"{name} must be one of {', '.join(map(repr, allowed))}, got {brief(value)}{hint}{own}"
        )


def check_kind(name: str, value: object, kind: type, advice: str) -> None:
    """Check that an argument is None or an instance of `kind`.

    Raises:
        OptionError: It has another type.
    """
    if value is not None and not isinstance(value, kind):
        raise OptionError("option-type", f"{name}={brief(value)} has type {type(value).__name__}; {advice}")


def flag(name: str, value: Any) -> bool:
    """Convert a boolean, including numpy's, to a bool.

    Raises:
        OptionError: The value is not a boolean.
    """
    if type(value).__name__ not in ("bool", "bool_"):
        raise OptionError(
            "option-type", f"{name} must be True or False, got {brief(value)} of type {type(value).__name__}"
        )
    return bool(value)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, including numpy's; booleans are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, including numpy's; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, least: int = 1, advice: str = "", most: float = math.inf) -> int:
    """Convert an integer, including numpy's, to an int.

    Raises:
        OptionError: The value is not an integer, is below `least`, or above `most`.
    """
    if not is_whole(value) or not least <= value <= most:
        span = f"of {least} or more" if most == math.inf else f"from {least} to {most:g}"
        raise OptionError("option-range", f"{name}={brief(value)} is not an integer {span}; {advice or 'give one'}")
    return int(value)


def seed_of(value: Any) -> int:
    """Convert a seed to an int.

    Raises:
        OptionError: It is not a 64-bit integer.
    """
    if not is_whole(value) or not -(1 << 63) <= value < 1 << 63:
        raise OptionError("option-range", f"seed must be a 64-bit integer such as 0, got {brief(value)}")
    return int(value)


def share_or_more(name: str, value: Any) -> float:
    """Check for a finite number of at least 0.

    Raises:
        OptionError: The value is not one.
    """
    if not is_number(value) or not 0 <= value < math.inf:
        raise OptionError("option-range", f"{name} must be a finite number of 0 or more, got {brief(value)}")
    return float(value)


def output_name(value: Any) -> str:
    """Convert the name or the place of a part of what a model returns to a str.

    Raises:
        OptionError: It is neither.
    """
    if is_whole(value) or (isinstance(value, str) and 0 < len(value) <= 1024):
        return str(value)
    raise OptionError(
        "option-type",
        f"output must be the name of a part of what the model returns, or its place, got {brief(value)}; give "
        "'logits', 1, or 'head.logits'",
    )


EVEN = 0.5  # the probability above which a class is in an answer, where nothing else is said


def decision_thresholds(value: Any) -> dict[str, float] | float:
    """Convert decision thresholds: one number for all classes, or numbers by class name.

    Both may be text, as in "0.3" or "cat=0.3,dog=0.7".

    Raises:
        OptionError: They have another form, or are not between 0 and 1.
    """
    if isinstance(value, str):
        value = _thresholds_read(value)
    named = value if isinstance(value, Mapping) else {"": value}
    for name, share in named.items():
        if not isinstance(name, str) or not is_number(share) or not 0 < share < 1:
            whose = f" of class {brief(name)}" if name else ""
            raise OptionError(
                "option-range",
                f"a decision threshold{whose} must be a number between 0 and 1, got {brief(share)}; give one number "
                "for all classes, or one by class name, such as {'cat': 0.3}",
            )
    if isinstance(value, Mapping):
        return {name: float(share) for name, share in value.items()}
    return float(value)


def _thresholds_read(text: str) -> Any:
    """A number, or numbers by class name, whose names may hold commas."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return {name: float(share) for name, share in _pairs(text)}
    except ValueError:
        raise OptionError(
            "option-syntax",
            f"decision thresholds must be written as 0.3, or by class as cat=0.3,dog=0.7, got {brief(text)}",
        ) from None


def other_names(value: Any, what: str = "same") -> dict[str, str]:
    """Convert new names by old ones, which may be text, as in "aeroplane=airplane,lorry=truck".

    Args:
        value: The names.
        what: What messages call them.

    Raises:
        OptionError: They have another form.
    """
    try:
        named = dict(_pairs(value)) if isinstance(value, str) else value
    except ValueError:
        named = None
    if isinstance(named, Mapping) and all(isinstance(name, str) for pair in named.items() for name in pair):
        return dict(named)
    raise OptionError(
        "option-syntax",
        f"{what} must hold new names by old ones, as in {{'aeroplane': 'airplane'}}, or in words as "
        f"aeroplane=airplane, got {brief(value)}",
    )


def _pairs(text: str) -> list[tuple[str, str]]:
    """Names and what belongs to them, written as "a=b,c=d"; names may hold commas.

    Raises:
        ValueError: It is not written so.
    """
    found = re.findall(r"([^=]+)=([^=,]+)(?:,|$)", text)
    if "".join(f"{name}={value}," for name, value in found) != text.rstrip(",") + ",":
        raise ValueError
    return [(name.strip(), value.strip()) for name, value in found]


def given_path(path: Any, what: str) -> Path:
    """Convert a user's path to a `Path`.

    Raises:
        FileError: It is neither a string nor a path, or no file can have it.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(found := os.fspath(path), bytes):
        raise FileError(
            "file-path-invalid",
            f"{what} must be a string or a pathlib.Path, got {brief(path)} of type {type(path).__name__}",
        )
    try:
        os.stat(found or ".")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise FileError("file-path-invalid", f"{what} {brief(found)} cannot be used: {why}; choose another") from None
    return Path(found)


def check_new(what: str, name: str, call: Any, known: Any) -> None:
    """Refuse to register something under a name that one of Brickyard's own has.

    Args:
        what: What is registered, for the message.
        name: Its name.
        call: Its function.
        known: The function that has that name, or None.

    Raises:
        OptionError: It is one of Brickyard's own, and the other is not.
    """
    home = __name__.partition(".")[0] + "."
    if known is not None and known.__module__.startswith(home) and not call.__module__.startswith(home):
        raise OptionError("option-conflict", f"{what} {name!r} is one of Brickyard's own; choose another name")
