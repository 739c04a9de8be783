"""The shared things of all cases, and what a case is: one wrong or odd use, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.base._options import TrainingOptions
from brickyard.testing import chain, randomised
from brickyard.yard._yard import Yard

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
DATA = (X, Y)
NAN, INFINITY = float("nan"), float("inf")
LONG = "x" * 10_000


class Case:
    """A use: what is called, what is expected, and of whose model (by default the shared source).

    Expected is the code of an error and the names that it quotes, another type of error, or the result: as a value, or
    as a function that finds it another way.
    """

    def __init__(self, name: str, call: Callable[[World], Any], expect: Any, *quoted: str, model: Any = None) -> None:
        self.name, self.call, self.expect, self.quoted, self.model = name, call, expect, quoted, model


@dataclass
class World:
    """What every case may use."""

    model: Any  # of this case
    source: nn.Sequential
    relevance: by.Relevance
    component: by.Component
    other: by.Component
    assembly: by.Assembly
    scores: Any
    folder: Path
    grey: by.Component
    double: by.Component

    def locate(self, model: Any = None, data: Any = DATA, **options: Any) -> by.Relevance:
        return by.locate(self.model if model is None else model, data, **{"per_class": 2, **options})

    def cut(self, model: Any = None, **options: Any) -> by.Component:
        model = self.model if model is None else model
        relevance = options.pop("relevance", None) or (self.relevance if model is self.source else self.locate(model))
        return by.disassemble(model, relevance, **{"task": ["1", "3"], **options})

    def join(self, parts: Any = ..., **options: Any) -> by.Assembly:
        return by.assemble([self.component, self.other] if parts is ... else parts, **options)

    def score(self, data: Any = DATA, item: Any = None, **options: Any) -> Any:
        return by.evaluate(
            self.component if item is None else item,
            data,
            **{"latency": False, "including_calibration": True, **options},
        )

    def tune(self, data: Any = DATA, **options: Any) -> by.Component:
        return by.finetune(self.component, data, **{"training": TrainingOptions(epochs=1), "validation": 0, **options})

    def yard(self) -> Yard:
        yard = Yard(self.folder / "yard", create=True)
        yard.add(self.component, "small")
        return yard


def make_world(folder: Path) -> World:
    source = used_source()
    relevance = by.locate(source, DATA, per_class=2)
    component = by.disassemble(source, relevance, task=["1", "3"])
    other = by.disassemble(source, relevance, task=["0"])
    assembly = by.assemble([component, other])
    scores = by.evaluate(component, DATA, source=source, latency=False, including_calibration=True)
    component.save(folder / "component.safetensors")
    (folder / "text.safetensors").write_text("this is no file of numbers")
    grey, double = grey_component(), double_component()
    return World(source, source, relevance, component, other, assembly, scores, folder, grey, double)


def wrong(what: str, call: Callable[..., Any], name: str, code: str, *values: Any) -> list[Case]:
    """One case per value of one option, all refused with the same code, the option's name and the value."""
    return [
        Case(f"{what}({name}={value!r:.30})", partial(call, **{name: value}), code, name, repr(value)[:40])
        for value in values
    ]


def same(found: Any, wanted: Any) -> None:
    """Equal; components where they keep the same channels and give the same answers, numbers up to rounding."""
    if isinstance(wanted, by.Component):
        assert [a.kept for a in found.manifest.axes.values()] == [a.kept for a in wanted.manifest.axes.values()]
        answers, kind = found.predict_proba(X), next(found.parameters()).dtype
        reach = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 0.01, torch.bfloat16: 0.05}[kind]
        assert float((answers.double() - wanted.predict_proba(X).double()).abs().max()) < reach
        if kind == torch.float32:
            same(found(X), wanted(X))
    elif isinstance(wanted, by.Relevance):
        assert all(torch.equal(found.hard(name), wanted.hard(name)) for name in ("conv1", "conv2", "linear"))
    elif isinstance(wanted, Tensor):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    elif isinstance(wanted, tuple | list):
        assert type(found) is type(wanted)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted)
    else:
        assert found == wanted


# -- models and parts that many cases use --------------------------------------------------------------------------


def used_source() -> nn.Sequential:
    """A source as users have them: half in training mode, half frozen, with gradients, hooks and notes of its own."""
    model = chain()
    model.conv1.weight.requires_grad_(False)
    model.bn1.requires_grad_(False)
    for value in model.parameters():
        if value.requires_grad:
            value.grad = torch.full_like(value, 0.5)
    model.train()
    model.bn1.eval()
    model.conv1.register_forward_hook(lambda module, args, out: None)
    model.linear.register_full_backward_hook(lambda module, before, after: None)
    model.register_forward_pre_hook(lambda module, args: None)
    model.note = {"epochs": 3}
    return model


def plain(w: World) -> by.Component:
    """The component that the plain model gives, made here and now: what odd models are compared with."""
    model = chain()
    return by.disassemble(model, by.locate(model, DATA, per_class=2), task=["1", "3"])


def plain_relevance(w: World) -> by.Relevance:
    return w.relevance


def answers(w: World) -> Tensor:
    return w.component(X)


def whole(w: World) -> by.Component:
    """All classes with everything kept and nothing healed: it must say what the model says."""
    relevance = by.locate(w.model, DATA, per_class=2)
    return by.disassemble(w.model, relevance, task=range(4), budget=by.Budget(flops=1.0), heal="none")


def grey_component() -> by.Component:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    model = randomised(nn.Sequential(*layers))
    relevance = by.locate(model, (X[:, :1], Y % 2), classes=["g", "h"])
    return by.disassemble(model, relevance, task=["g", "h"], budget=by.Budget(flops=0.9))


def double_component() -> by.Component:
    model = chain().double()
    return by.disassemble(model, by.locate(model, DATA, classes=list("abcd"), per_class=2), task=["a"])


class Labelled(Tensor):
    """A subclass of a tensor."""
