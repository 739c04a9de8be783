"""Take trained image classifiers apart into small working models and build new classifiers from the parts.

The names below are loaded when they are first used, so that `import brickyard` costs no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from brickyard._version import __version__
from brickyard.errors import BrickyardError

if TYPE_CHECKING:
    from brickyard.assembling import assemble
    from brickyard.assembly import Assembly
    from brickyard.component import Component
    from brickyard.disassembling import disassemble
    from brickyard.evaluation import evaluate
    from brickyard.files import load
    from brickyard.finetuning import finetune
    from brickyard.locating import locate
    from brickyard.manifest import Preprocessing
    from brickyard.options import Budget, Thresholds
    from brickyard.relevance import Relevance

_HOME = {
    "Assembly": "assembly",
    "Budget": "options",
    "Component": "component",
    "Preprocessing": "manifest",
    "Relevance": "relevance",
    "Thresholds": "options",
    "assemble": "assembling",
    "disassemble": "disassembling",
    "evaluate": "evaluation",
    "finetune": "finetuning",
    "load": "files",
    "locate": "locating",
}

__all__ = [
    "Assembly",
    "BrickyardError",
    "Budget",
    "Component",
    "Preprocessing",
    "Relevance",
    "Thresholds",
    "__version__",
    "assemble",
    "disassemble",
    "evaluate",
    "finetune",
    "load",
    "locate",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"brickyard.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'brickyard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
