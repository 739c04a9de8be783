"""Wrong and odd uses of `disassemble`, and of the component that it returns."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.testing import Residual, chain
from misuse.world import INFINITY, LONG, NAN, Case, World, X, Y, answers, wrong

CATS = ["tabby", "siamese", "manx", "sphynx"]
NUMBERS = itertools.count()


def task(name: str, given: Any, expect: Any, *quoted: str) -> Case:
    return Case(f"task: {name}", lambda w: w.cut(task=given).classes, expect, *quoted)


TASKS = [
    task("a text", "1", ("1",)),
    task("a number", 3, ("3",)),
    task("numpy's number", np.int64(2), ("2",)),
    task("numpy's numbers", [np.int64(1), np.int32(0)], ("1", "0")),
    task("an array", np.array([3, 1]), ("3", "1")),
    task("an array of texts", np.array(["3", "1"]), ("3", "1")),
    task("a tensor", torch.tensor([2, 0]), ("2", "0")),
    task("a range", range(2), ("0", "1")),
    task("a generator", (k for k in (3, 0)), ("3", "0")),
    task("a tuple", ("1", 0), ("1", "0")),
    task("names run together", "13", "task-unknown-class", "'13'", "0, 1, 2, 3", "'1'"),
    task("nothing", [], "task-empty", "0, 1, 2, 3"),
    task("None", None, "task-type", "None", "NoneType"),
    task("bytes", b"1", "task-type", "b'1'", "bytes"),
    task("a set", {"1", "3"}, "task-type", "set"),
    task("a dict", {"one": 1, "rest": [0, np.int64(2)]}, ("one", "rest")),
    task("a dict with arrays", {"one": np.array([1, 0])}, ("one",)),
    task("a dict with another class's name", {"1": 0}, "task-class-name", "'1'"),
    task("a dict of nothing", {"one": {}}, "task-type", "dict"),
    task("a dict of None", {"one": None}, "task-type", "None"),
    task("words for nothing", ["one=1+"], "task-empty", "'one'", "0, 1, 2, 3"),
    task("words for an unknown class", ["one=1+9"], "task-unknown-class", "9"),
    task("beyond the classes", [9], "task-unknown-class", "class 9", "0, 1, 2, 3", "0 to 3"),
    task("negative", [-1], "task-unknown-class", "class -1", "0, 1, 2, 3", "0 to 3"),
    task("numpy's number, negative", [np.int64(-1)], "task-unknown-class", "-1", "0, 1, 2, 3", "0 to 3"),
    task("a fraction", [1.0], "task-type", "1.0", "float", "0 to 3"),
    task("a truth value", [True], "task-type", "True", "bool", "0 to 3"),
    task("None in a list", [None], "task-type", "None", "NoneType", "0 to 3"),
    task("twice by name", ["1", "1"], "task-duplicate-class", "'1'"),
    task("twice, by name and number", ["1", 1], "task-duplicate-class", "'1'"),
    task("a name with a space", ["1 "], "task-unknown-class", "'1 '", "0, 1, 2, 3", "'1'"),
    task("a very long name", [LONG], "task-unknown-class", "class 'xxx", "0, 1, 2, 3"),
    task("an unknown name in another script", ["\u65e5"], "task-unknown-class", "'\u65e5'", "0, 1, 2, 3"),
]


def near_miss(w: World) -> by.Component:
    return w.cut(relevance=w.locate(classes=CATS), task=["taby"])


def thresholds_without_sums(w: World) -> by.Component:
    return w.cut(relevance=w.locate(keep_sums=False), thresholds=by.Thresholds(alpha=0.1))


def both(w: World) -> by.Component:
    return w.cut(thresholds=by.Thresholds(), budget=by.Budget(flops=0.5))


def cut_here(w: World) -> Tensor:
    """The shared relevances with the case's own model."""
    return by.disassemble(w.model, w.relevance, task=["1", "3"])(X)


def reread(w: World) -> by.Relevance:
    return by.load(w.relevance.save(w.folder / f"{next(NUMBERS)}.safetensors"))


def nothing_passes(w: World) -> list[bool]:
    share = dict.fromkeys(("alpha", "beta", "linear_alpha", "linear_beta"), 0.999)
    axes = w.cut(thresholds=by.Thresholds(**share)).manifest.axes
    return [len(axes[name].kept) >= 1 for name in axes if name.startswith("conv")]


DISASSEMBLE = [
    Case("task: a near miss", near_miss, "task-unknown-class", "'taby'", "tabby, siamese", "'tabby'"),
    Case("task: not located", lambda w: w.cut(relevance=w.locate(task=[0])), "task-not-located", "'1'"),
    Case("task: all, and reject", lambda w: w.cut(task=range(4), reject=True), "task-nothing-to-reject", "reject=True"),
    *wrong("disassemble", World.cut, "budget", "option-type", 0.5, "0.5", {"flops": 0.5}),
    *wrong("disassemble", World.cut, "thresholds", "option-type", 0.3, {"alpha": 1}),
    *wrong("disassemble", World.cut, "select", "option-choice", "best", ["mda"]),
    *wrong("disassemble", World.cut, "heal", "option-choice", "x", None, True),
    *wrong("disassemble", World.cut, "reject", "option-type", "yes", None, 1),
    *wrong("disassemble", World.cut, "heal_images", "option-range", 0, -1, 1.5, "x", None, NAN),
    *wrong("disassemble", World.cut, "ridge", "option-range", -1, NAN, INFINITY, "x"),
    *wrong("disassemble", World.cut, "batch_size", "option-range", 0, -1, 1.5, "x", None),
    *wrong("disassemble", World.cut, "seed", "option-range", "x", None, 1.5, 2**80),
    Case("thresholds and a budget", both, "option-conflict", "thresholds=", "budget="),
    Case("a ranking without a budget", lambda w: w.cut(select="l1"), "option-requires-option", "'l1'", "budget="),
    Case("other thresholds without sums", thresholds_without_sums, "option-sums-not-kept", "alpha=0.1"),
    Case("relevances None", lambda w: by.disassemble(w.source, None, task="1"), "option-wrong-object", "NoneType"),
    Case("relevances a path", lambda w: by.disassemble(w.source, "r.pt", task="1"), "option-wrong-object", "str"),
    Case("relevances of another model", cut_here, "data-wrong-source", "'Sequential'", model=Residual),
    Case("cutting None", lambda w: by.disassemble(None, w.relevance, task="1"), "trace-not-module", "NoneType"),
    Case("cutting a component", lambda w: w.cut(w.component, relevance=w.relevance), "data-wrong-source", "weights"),
    Case("cutting a copy of the source", cut_here, answers, model=lambda: copy.deepcopy(chain())),
    Case("cutting the wrapped source", cut_here, answers, model=lambda: nn.DataParallel(chain())),
    Case("healing with images alone", lambda w: w.cut(images=X).manifest.heal.images, 8),
    Case("healing without labels", lambda w: w.cut(images=(X, None)), "data-no-labels", "labels"),
    Case("healing with no image", lambda w: w.cut(images=X[:0]), "data-shape", "(0, 3, 8, 8)"),
    Case("healing with another size", lambda w: w.cut(images=torch.ones(2, 3, 9, 9)), "data-wrong-size", "(3, 9, 9)"),
    Case("healing with images of other classes", lambda w: w.cut(images=(X, Y * 0)), "data-no-task-class", "images"),
    Case("healing with a number", lambda w: w.cut(images=5), "data-type", "int"),
    Case("healing from a file", lambda w: w.cut(relevance=reread(w)), "option-needs-data", "heal='refit'", "images="),
    Case("a budget too small", lambda w: w.cut(budget=by.Budget(flops=1e-9)), "option-budget-too-small", "1e-09"),
    Case("thresholds that nothing passes", nothing_passes, [True, True]),
]


def in_training(w: World) -> by.Component:
    return copy.deepcopy(w.component).train()


def trained_on(w: World) -> tuple[list[str], set[bool]]:
    component = in_training(w)
    return component.predict(X), {module.training for module in component.modules()}


def shared_tensors(a: nn.Module, b: nn.Module) -> int:
    places = {value.data_ptr() for value in [*a.parameters(), *a.buffers()] if value.numel()}
    return sum(value.data_ptr() in places for value in [*b.parameters(), *b.buffers()] if value.numel())


def pickled(item: nn.Module) -> Tensor:
    return pickle.loads(pickle.dumps(item))(X)  # noqa: S301 - pickled here


def off_by(w: World, images: Tensor) -> float:
    return float((w.component.predict_proba(images) - w.component.predict_proba(X)).abs().max())


def doubled(w: World) -> Tensor:
    return copy.deepcopy(w.component).double().predict_proba(X)


def on_meta(w: World) -> list[str]:
    return copy.deepcopy(w.component).to("meta").predict(X)


METHODS = [
    Case("pickle a component", lambda w: pickled(w.component), answers),
    Case("pickle an assembly", lambda w: pickled(w.assembly), lambda w: w.assembly(X)),
    Case("copy a component", lambda w: copy.deepcopy(w.component)(X), answers),
    Case("copy an assembly", lambda w: copy.deepcopy(w.assembly)(X), lambda w: w.assembly(X)),
    Case("a copy shares nothing", lambda w: shared_tensors(w.component, copy.deepcopy(w.component)), 0),
    Case("a component shares nothing with its source", lambda w: shared_tensors(w.source, w.component), 0),
    Case("a component shares all with itself", lambda w: shared_tensors(w.component, w.component) > 5, True),
    Case("copy relevances", lambda w: w.cut(relevance=copy.deepcopy(w.relevance))(X), answers),
    Case("predict in training mode", trained_on, lambda w: (w.component.predict(X), {True})),
    Case("training mode answers otherwise", lambda w: torch.allclose(in_training(w)(X), answers(w)), False),
    Case("predict with float16 images", lambda w: off_by(w, X.half()) < 1e-3, True),
    Case("predict with byte images", lambda w: off_by(w, (X * 255).round().byte()) < 0.01, True),
    Case("predict with other images", lambda w: off_by(w, 1 - X) < 0.01, False),
    Case("a call with float16 images is torch's own", lambda w: w.component(X.half()), RuntimeError, "Half", "float"),
    Case("a call with other channels", lambda w: w.component(X[:, :1]), "data-wrong-size", "(3, 8, 8)", "(1, 8, 8)"),
    Case("a component in float64", doubled, lambda w: w.component.predict_proba(X)),
    Case("predict None", lambda w: w.component.predict(None), "data-type", "NoneType"),
    Case("predict a number", lambda w: w.component.predict(5), "data-type", "int"),
    Case("predict nothing", lambda w: w.component.predict([]), []),
    Case("predict one image", lambda w: w.component.predict(X[0]), lambda w: w.component.predict(X)[:1]),
    Case("predict no image", lambda w: w.component.predict(X[:0]), "data-shape", "(0, 3, 8, 8)"),
    Case("predict a plane", lambda w: w.component.predict(X[0, 0]), "data-type", "Tensor", "(8, 8)"),
    Case("predict NaN", lambda w: w.component.predict(X * NAN), "data-not-finite", "12 of 12"),
    Case("predict a missing file", lambda w: w.component.predict("no.png"), "data-unreadable-image", "no.png"),
    Case(
        "predict strangers", lambda w: w.component.predict(X, strangers="turn"), "option-choice", "'turn'", "'reject'"
    ),
    *wrong("predict", lambda w, **o: w.component.predict(X, **o), "batch_size", "option-range", 0, -1, "x", 1.5),
    Case("predict on the meta device", on_meta, "data-meta-device", "meta"),
    Case("score with unknown names", lambda w: w.component.score(X, ["zz"] * 12), "data-unknown-class", "'zz'", "1, 3"),
    Case("score with too few names", lambda w: w.component.score(X, ["1"]), "data-label-mismatch", "12", "1 names"),
    Case("score with a text", lambda w: w.component.score(X, "1" * 12), "data-type", "names", "'111", "str"),
    Case("score with None", lambda w: w.component.score(X, None), "data-type", "names", "NoneType"),
    Case("preprocess None", lambda w: w.component.preprocess(None), "data-type", "torch.Tensor", "NoneType"),
    Case("preprocess an array", lambda w: w.component.preprocess(X.numpy()), "data-type", "torch.Tensor", "ndarray"),
    Case("an assembly of None", lambda w: w.assembly(None), "data-type", "torch.Tensor", "NoneType"),
    Case("side by side of whole numbers", lambda w: w.assembly.side_by_side(X.long()), "data-type", "uint8", "int64"),
    Case("rename to nothing", lambda w: w.component.renamed({"1": ""}), "task-class-name", "'1'", "''"),
    Case("rename no class", lambda w: w.component.renamed({"9": "a"}), "task-unknown-class", "'9'"),
    Case("rename by a list", lambda w: w.component.renamed(["1"]), "option-syntax", "['1']"),
    Case("rename nothing", lambda w: w.component.renamed({})(X), answers),
    Case("fuse twice", lambda w: w.component.fused().fused()(X), answers),
    Case("Component()", lambda w: by.Component(), TypeError, "__init__", "network"),
    Case("Assembly()", lambda w: by.Assembly(), TypeError, "__init__", "networks"),
]

CASES = [*TASKS, *DISASSEMBLE, *METHODS]
