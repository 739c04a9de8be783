"""Wrong and odd values of options: budgets, thresholds, preprocessing, schedules."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any

import numpy as np
import torch

import brickyard as by
from brickyard.base._options import Distillation, TrainingOptions
from brickyard.testing import chain
from brickyard.training._finetune import finetune
from misuse.world import INFINITY, NAN, Case, World, X, Y, wrong


def of(kind: Any, w: World, **options: Any) -> Any:
    return kind(**options)


def budget(w: World, **options: Any) -> by.Budget:
    return by.Budget(**{"flops": 0.5, **options})


def preprocessing(*quoted: str, **options: Any) -> Case:
    title = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return Case(f"Preprocessing({title})", lambda w: by.Preprocessing(**options), "option-preprocessing", *quoted)


thresholds, training, distillation = partial(of, by.Thresholds), partial(of, TrainingOptions), partial(of, Distillation)
STRANGE = [0, -1, NAN, 1.1, INFINITY, "0.5", True, torch.tensor(0.5)]
HUGE = by.Budget(flops=0.5, round_to=10**9)

VALUES = [
    *wrong("Budget", budget, "flops", "option-range", *STRANGE),
    *wrong("Budget", budget, "round_to", "option-range", 0, 1.5, True),
    *wrong("Budget", budget, "allocation", "option-choice", "x", [], None),
    Case("Budget()", lambda w: by.Budget(), "option-conflict", "flops=", "parameters=", "0"),
    Case("Budget of both", lambda w: budget(w, parameters=0.5), "option-conflict", "flops=", "parameters=", "2"),
    Case("Budget(0.5)", lambda w: by.Budget(0.5), TypeError, "Budget", "positional"),
    Case("Budget(flop=)", lambda w: by.Budget(flop=0.5), TypeError, "Budget", "'flop'"),
    Case("a budget is frozen", lambda w: setattr(by.Budget(flops=0.5), "flops", 2), FrozenInstanceError, "'flops'"),
    Case("Budget(flops=1)", lambda w: by.Budget(flops=1).share, 1.0),
    Case("Budget(numpy)", lambda w: by.Budget(flops=np.float32(0.5)), by.Budget(flops=0.5)),
    Case("a multiple beyond the layers", lambda w: w.cut(budget=HUGE), "option-budget-too-small", "0.5", "1000000000"),
    *wrong("Thresholds", thresholds, "alpha", "option-range", 1, -0.1, NAN, "x", None, True),
    *wrong("Thresholds", thresholds, "linear_beta", "option-range", 1.5, -INFINITY),
    Case("Thresholds(gamma=)", lambda w: by.Thresholds(gamma=1), TypeError, "Thresholds", "'gamma'"),
    Case("Thresholds(numpy)", lambda w: by.Thresholds(alpha=np.float64(0.25)), by.Thresholds(alpha=0.25)),
    preprocessing("size", "5", size=5),
    preprocessing("size.0", "(0, 1)", size=(0, 1)),
    preprocessing("size.1", "(4,)", size=(4,)),
    preprocessing("size", "'4x4'", size="4x4"),
    preprocessing("size.0", "(4.5, 4)", size=(4.5, 4)),
    preprocessing("size.0", "16384", size=(2**20, 2)),
    preprocessing("mean", "std", mean=(0.5,)),
    preprocessing("std.0", "(0,)", mean=(0,), std=(0,)),
    preprocessing("mean.0", "nan", mean=(NAN,), std=(1,)),
    preprocessing("mean", "2", "std", "1", mean=(1, 2), std=(1,)),
    preprocessing("mean", "0.5", mean=0.5, std=0.5),
    preprocessing("channels", "2", "1 or 3", channels=2),
    preprocessing("fit", "'squash'", "'resize'", "'crop'", "'pad'", fit="squash"),
    preprocessing("crop", "1.5", fit="crop", crop=1.5),
    preprocessing("interpolation", "'nearest'", "'bicubic'", interpolation="nearest"),
    preprocessing("colour", "'rgb'", colour="rgb"),
]

TUNE = [
    *wrong("finetune", World.tune, "training", "option-type", 5, {"epochs": 1}),
    *wrong("finetune", World.tune, "distillation", "option-type", 5, {"weight": 1}),
    *wrong("finetune", World.tune, "validation", "option-range", 5, NAN),
    *wrong("TrainingOptions", training, "epochs", "option-range", 0, 1.5, "x"),
    *wrong("TrainingOptions", training, "batch_size", "option-range", 0, 1),
    *wrong("TrainingOptions", training, "patience", "option-range", -1, 0),
    *wrong("TrainingOptions", training, "lr", "option-range", -1, 0, NAN, "x"),
    *wrong("TrainingOptions", training, "warmup", "option-range", 1.0),
    *wrong("TrainingOptions", training, "weight_decay", "option-range", -1),
    *wrong("TrainingOptions", training, "seed", "option-range", -1, None),
    *wrong("TrainingOptions", training, "optimizer", "option-choice", "lion"),
    *wrong("TrainingOptions", training, "norms", "option-choice", "x"),
    *wrong("TrainingOptions", training, "precision", "option-choice", "int8"),
    *wrong("Distillation", distillation, "temperature", "option-range", 0, "x"),
    *wrong("Distillation", distillation, "weight", "option-range", 2, NAN),
    Case("finetune(resume=5)", lambda w: w.tune(resume=5), "file-path-invalid", "5", "int"),
    Case("finetune without labels", lambda w: w.tune(X), "data-no-labels", "labels"),
    Case("finetune on other classes", lambda w: w.tune((X, Y * 0)), "data-no-task-class", "1, 3"),
    Case("finetune a source", lambda w: finetune(w.model, (X, Y)), "option-wrong-object", "Sequential", model=chain),
    Case("a teacher that is a number", lambda w: w.tune(teacher=5), "option-wrong-object", "int"),
    Case("finetuning changes the copy", lambda w: torch.equal(retuned(w)(X), w.component(X)), False),
]


def retuned(w: World) -> by.Component:
    return w.tune(training=TrainingOptions(epochs=2, lr=0.1))


CASES = [*VALUES, *TUNE]
