"""The table of networks by name: one decorator fills it, one function builds from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from brickyard.base._checks import is_number, is_whole
from brickyard.base._errors import OptionError
from brickyard.base._messages import near

Builder = Callable[..., nn.Module]
BuilderT = TypeVar("BuilderT", bound=Builder)

MAX_CLASSES = 1_000_000
MAX_WIDTH = 64.0


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        name: What it is called.
        make: Builds it: `make(classes, width=1.0, **options)`.
        defaults: The options that it takes, with their defaults.
    """

    name: str
    make: Builder
    defaults: dict[str, Any]


_ENTRIES: dict[str, Entry] = {}  # by all their names


def register(name: str, *aliases: str) -> Callable[[BuilderT], BuilderT]:
    """Put a builder into the table, under a name and under the other names that files call it by."""

    def add(make: BuilderT) -> BuilderT:
        for one in (name, *aliases):
            if one in _ENTRIES:
                raise OptionError("option-duplicate", f"zoo network {one!r} is already registered; choose another name")
        parameters = list(inspect.signature(make).parameters.values())[2:]
        found = Entry(name, make, {one.name: one.default for one in parameters})
        _ENTRIES.update(dict.fromkeys((name, *aliases), found))
        return make

    return add


def available() -> tuple[str, ...]:
    """The names of all networks in the zoo, sorted."""
    return tuple(sorted({found.name for found in _ENTRIES.values()}))


def entry(name: str) -> Entry:
    """The entry of a network, by its name or one of its other names.

    Raises:
        OptionError: There is no network of that name.
    """
    if name not in _ENTRIES:
        hint = near(name, list(_ENTRIES)) or "."
        raise OptionError(
            "option-source-unknown", f"no zoo network is called {name!r}{hint} Known: {', '.join(available())}"
        )
    return _ENTRIES[name]


def build(name: str, classes: int, width: float = 1.0, **options: Any) -> nn.Module:
    """Build a network of the zoo, freshly initialised and in training mode.

    Args:
        name: A name from `available()`, or one of its other names.
        classes: How many outputs it has.
        width: Factor on the number of channels of every layer; counts are rounded down, to 1 at least.
        **options: Those of the network, for example `shortcut="B"` for `resnet20`; `channels` (of the
            input) for every network.

    Returns:
        A module that takes images (B, channels, H, W) and returns logits (B, classes).

    Raises:
        OptionError: The name or an option is unknown, or a value cannot be used.

    Example:
        >>> import torch
        >>> from brickyard.sources import build
        >>> net = build("resnet20", classes=10, width=0.5).eval()
        >>> net(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    found = entry(name)
    _check_count(name, "classes", classes, MAX_CLASSES)
    if not is_number(width) or not 0 < width <= MAX_WIDTH:
        raise OptionError("option-range", f"{name}: width must be above 0 and at most {MAX_WIDTH:g}, got {width!r}")
    unknown = sorted(set(options) - set(found.defaults))
    if unknown:
        known = ", ".join(["width", *found.defaults])
        raise OptionError(
            "option-unknown-name", f"{name} has no option {', '.join(map(repr, unknown))}; it takes {known}"
        )
    for key, value in options.items():
        if isinstance(found.defaults[key], str) and not isinstance(value, str):
            raise OptionError(
                "option-type", f"{name}: {key} must be a word such as {found.defaults[key]!r}, got {value!r}"
            )
    for key in ("channels", "size"):
        _check_count(name, key, options.get(key, 1), 4096)
    options = {key: int(value) if is_whole(value) else value for key, value in options.items()}
    return found.make(int(classes), float(width), **options)


def _check_count(name: str, key: str, value: Any, most: int) -> None:
    if not is_whole(value) or not 1 <= value <= most:
        raise OptionError("option-range", f"{name}: {key}={value!r}; give an integer from 1 to {most}")


def scaled(count: int, width: float) -> int:
    """A number of channels times a width factor, rounded down, never below 1."""
    return max(1, int(count * width + 1e-9))
