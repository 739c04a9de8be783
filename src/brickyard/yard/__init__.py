"""A folder of components: its index, and how parts are chosen from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.yard._choose import Choice as Choice
    from brickyard.yard._ranking import Rank as Rank
    from brickyard.yard._ranking import ranked as ranked
    from brickyard.yard._yard import Problem as Problem
    from brickyard.yard._yard import Yard as Yard

__all__, __getattr__, __dir__ = lazy_exports(
    __name__, {"yard._choose": "Choice", "yard._ranking": "Rank ranked", "yard._yard": "Problem Yard"}
)
