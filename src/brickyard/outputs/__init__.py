"""What a classifier's outputs mean: one class per kind of answer, looked up by the name that manifests store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.outputs._kinds import Cases as Cases
    from brickyard.outputs._kinds import OneOfMany as OneOfMany
    from brickyard.outputs._kinds import Outputs as Outputs
    from brickyard.outputs._kinds import Several as Several
    from brickyard.outputs._kinds import outputs as outputs
    from brickyard.outputs._outputs import OUTPUTS as OUTPUTS

__all__, __getattr__, __dir__ = lazy_exports(
    __name__, {"outputs._kinds": "Cases OneOfMany Outputs Several outputs", "outputs._outputs": "OUTPUTS"}
)
