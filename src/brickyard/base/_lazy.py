"""What is loaded when it is first used: exports of documented packages (no import costs one of torch), and extras."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from brickyard.base._errors import OptionError

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


def package(name: str, extra: str, what: str) -> Any:
    """A package that is installed with an extra of ours, for what needs it.

    Raises:
        OptionError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(
            "option-missing-package", f"{what} needs {error.name or name}; pip install 'brickyard[{extra}]'"
        ) from None
