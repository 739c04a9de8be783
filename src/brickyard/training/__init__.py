"""The training loop, distillation, fine-tuning, and training of zoo sources from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.base._options import Distillation as Distillation
    from brickyard.base._options import TrainingOptions as TrainingOptions
    from brickyard.network._place import device_named as device_named
    from brickyard.training._finetune import finetune as finetune
    from brickyard.training._sources import Trained as Trained
    from brickyard.training._sources import accuracy as accuracy
    from brickyard.training._sources import build_seeded as build_seeded
    from brickyard.training._sources import train as train
    from brickyard.training._sources import train_source as train_source
    from brickyard.training._students import distil as distil

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "training._finetune": "finetune",
        "training._sources": "Trained accuracy build_seeded train train_source",
        "training._students": "distil",
        "network._place": "device_named",
        "base._options": "Distillation TrainingOptions",
    },
)
