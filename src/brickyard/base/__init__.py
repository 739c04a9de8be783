"""Foundations of every other package, without torch: errors, messages, checks, options, records, class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.base._codes import CODES as CODES
    from brickyard.base._errors import BrickyardError as BrickyardError
    from brickyard.base._errors import DataError as DataError
    from brickyard.base._errors import FileError as FileError
    from brickyard.base._errors import OptionError as OptionError
    from brickyard.base._errors import ProcessError as ProcessError
    from brickyard.base._errors import SurgeryError as SurgeryError
    from brickyard.base._errors import TaskError as TaskError
    from brickyard.base._errors import TraceError as TraceError
    from brickyard.base._options import Budget as Budget
    from brickyard.base._options import Distillation as Distillation
    from brickyard.base._options import Thresholds as Thresholds
    from brickyard.base._options import TrainingOptions as TrainingOptions
    from brickyard.base._records import AssemblyManifest as AssemblyManifest
    from brickyard.base._records import ComponentManifest as ComponentManifest
    from brickyard.base._records import Preprocessing as Preprocessing
    from brickyard.base._specs import NetworkSpec as NetworkSpec

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "base._codes": "CODES",
        "base._errors": "BrickyardError DataError FileError OptionError ProcessError SurgeryError TaskError TraceError",
        "base._options": "Budget Distillation TrainingOptions Thresholds",
        "base._records": "AssemblyManifest ComponentManifest Preprocessing",
        "base._specs": "NetworkSpec",
    },
)
