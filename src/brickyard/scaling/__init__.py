"""Calibration of logits between parts: the map on logits, and its strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.scaling._scale import Evidence as Evidence
    from brickyard.scaling._scale import Gate as Gate
    from brickyard.scaling._scale import Scale as Scale
    from brickyard.scaling._strategies import SCALINGS as SCALINGS
    from brickyard.scaling._strategies import scaling as scaling

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "scaling._scale": "Evidence Gate Scale",
        "scaling._strategies": "SCALINGS scaling",
    },
)
