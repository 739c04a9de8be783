"""Take trained image classifiers apart into small working models and build new classifiers from the parts.

The names below are loaded when they are first used, so that `import brickyard` costs no import of torch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brickyard._version import __version__
from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard._files import load as load
    from brickyard.assembly._assemble import assemble as assemble
    from brickyard.assembly._assembly import Assembly as Assembly
    from brickyard.base._boxes import Boxes as Boxes
    from brickyard.base._errors import BrickyardError as BrickyardError
    from brickyard.base._errors import BrickyardWarning as BrickyardWarning
    from brickyard.base._options import Budget as Budget
    from brickyard.base._options import Thresholds as Thresholds
    from brickyard.base._records import Preprocessing as Preprocessing
    from brickyard.component._component import Component as Component
    from brickyard.component._disassemble import disassemble as disassemble
    from brickyard.evaluation._evaluate import evaluate as evaluate
    from brickyard.relevance._locate import locate as locate
    from brickyard.relevance._relevance import Relevance as Relevance
    from brickyard.training._finetune import finetune as finetune

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "_files": "load",
        "assembly._assemble": "assemble",
        "assembly._assembly": "Assembly",
        "base._boxes": "Boxes",
        "base._errors": "BrickyardError BrickyardWarning",
        "base._options": "Budget Thresholds",
        "base._records": "Preprocessing",
        "component._component": "Component",
        "component._disassemble": "disassemble",
        "evaluation._evaluate": "evaluate",
        "relevance._locate": "locate",
        "relevance._relevance": "Relevance",
        "training._finetune": "finetune",
    },
)
__all__ += ["__version__"]

logging.getLogger("brickyard").addHandler(logging.NullHandler())  # who wants to follow the steps adds another one
