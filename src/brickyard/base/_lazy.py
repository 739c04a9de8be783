"""Exports of documented packages: loaded when they are first used, so that importing one costs no import of torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

Exports = tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]


def lazy_exports(package: str, homes: dict[str, str]) -> Exports:
    """`__all__`, `__getattr__` and `__dir__` of a package whose names live in its modules.

    Args:
        package: The package's `__name__`.
        homes: For each module, below `brickyard`, the names that it gives, separated by spaces.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def getattr_(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"brickyard.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(home)
    return names, getattr_, lambda: names
