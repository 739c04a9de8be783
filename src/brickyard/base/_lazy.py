"""Lazy exports of documented packages, so that importing a package does not import torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

Exports = tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]


def lazy_exports(package: str, homes: dict[str, str]) -> Exports:
    """Return `__all__`, `__getattr__` and `__dir__` for a package whose names live in its modules.

    Args:
        package: The package's `__name__`.
        homes: For each module, below `brickyard`, the names it provides, separated by spaces.
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
