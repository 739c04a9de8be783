"""Assemblies: classifiers composed of components, and the forms they can take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.assembly._refined import Refined as Refined
    from brickyard.assembly._refined import refine as refine

__all__, __getattr__, __dir__ = lazy_exports(__name__, {"assembly._refined": "Refined refine"})
