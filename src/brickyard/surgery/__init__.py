"""The one place that builds a resized network: cutting keeps some channels, padding lays parts side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.surgery._cost import CostModel as CostModel
    from brickyard.surgery._groups import join_as_groups as join_as_groups
    from brickyard.surgery._join import cut as cut
    from brickyard.surgery._join import join as join
    from brickyard.surgery._plan import KeepSet as KeepSet
    from brickyard.surgery._plan import Part as Part
    from brickyard.surgery._plan import check_keep as check_keep
    from brickyard.surgery._plan import positions as positions
    from brickyard.surgery._union import overlay as overlay

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "surgery._cost": "CostModel",
        "surgery._groups": "join_as_groups",
        "surgery._join": "cut join",
        "surgery._plan": "KeepSet Part check_keep positions",
        "surgery._union": "overlay",
    },
)
