"""One YAML file that says how components and assemblies are made: read, checked, built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.recipes._build import build as build
    from brickyard.recipes._build import plan as plan
    from brickyard.recipes._reader import load_recipe as load_recipe

__all__, __getattr__, __dir__ = lazy_exports(
    __name__, {"recipes._build": "build plan", "recipes._reader": "load_recipe"}
)
