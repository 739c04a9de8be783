"""What a classifier's outputs mean: one class per kind of answer, looked up by the name that manifests store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.outputs._outputs import OUTPUTS as OUTPUTS
    from brickyard.outputs._outputs import Cases as Cases
    from brickyard.outputs._outputs import OneOfMany as OneOfMany
    from brickyard.outputs._outputs import Outputs as Outputs
    from brickyard.outputs._outputs import Several as Several
    from brickyard.outputs._outputs import outputs as outputs

__all__, __getattr__, __dir__ = lazy_exports(
    __name__, {"outputs._outputs": "OUTPUTS Cases OneOfMany Outputs Several outputs"}
)
