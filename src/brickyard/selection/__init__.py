"""Which channels stay: thresholds, budgets, importance, damage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.selection._damage import Selected as Selected
    from brickyard.selection._importance import CRITERIA as CRITERIA
    from brickyard.selection._importance import Evidence as Evidence
    from brickyard.selection._importance import criterion as criterion

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "selection._damage": "Selected",
        "selection._importance": "CRITERIA Evidence criterion",
    },
)
