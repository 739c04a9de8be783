"""Wrong and odd uses of `assemble` and `evaluate`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.testing import Residual, chain
from misuse.world import DATA, INFINITY, Case, World, X, Y, answers, wrong


def normalised(w: World) -> by.Component:
    how = by.Preprocessing(size=(8, 8), mean=(0.5,), std=(0.2,))
    return w.cut(relevance=w.locate(classes=list("abcd"), preprocessing=how), task=["a", "b"])


def side_by_side(*parts: by.Component) -> Tensor:
    with torch.no_grad():
        return torch.cat([part(part.preprocess(X)).float() for part in parts], 1)


def twice(w: World, **options: Any) -> by.Assembly:
    return w.join([w.component] * 2, **options)


def unhealed(w: World) -> by.Component:
    return w.cut(w.source, relevance=w.relevance, task=["3"], heal="none")


def larger(w: World) -> Tensor:
    return w.join([w.component, unhealed(w)], on_duplicate="max")(X)[:, 1]


def padded_inside(w: World) -> by.Assembly:
    return w.join([w.join([w.component], form="padded"), w.other])


def scaled(w: World, **options: Any) -> by.Assembly:
    return w.join(scaling="mahalanobis", **options)


def other_preprocessing(w: World) -> Tensor:
    return w.join([w.component, normalised(w)], form="padded")(X)


def other_types(w: World, **options: Any) -> by.Assembly:
    return w.join([w.component, w.double], **options)


def other_channels(w: World, **options: Any) -> by.Assembly:
    return w.join([w.component, w.grey], **options)


def fused_inside(w: World) -> by.Assembly:
    return w.join([w.component.fused(), w.other], form="padded")


def union(w: World) -> by.Assembly:
    return w.join(form="union", source=w.model)


def single(w: World) -> by.Component:
    return copy.deepcopy(w.double).float()


BOTH = [DATA, DATA]
RENAMED = ("1", "3", "1 (Sequential)", "3 (Sequential)")
TYPES = ("float32 (1, 3)", "float64 (a)")

ASSEMBLE = [
    Case("assemble nothing", lambda w: w.join([]), "option-empty", "components"),
    Case("assemble None", lambda w: w.join(None), "option-type", "NoneType"),
    Case("assemble a component", lambda w: w.join(w.component), "option-type", "Component"),
    Case("assemble a text", lambda w: w.join("ab"), "option-wrong-object", "str"),
    Case("assemble a source", lambda w: w.join([w.component, w.source]), "option-wrong-object", "Sequential"),
    Case("assemble an assembly", lambda w: w.join([w.assembly, w.cut(task=["2"])])(X)[:, :3], lambda w: w.assembly(X)),
    Case("assemble a padded assembly", padded_inside, "option-needs-parallel-form", "padded"),
    Case("leave out a text", lambda w: w.join(without="1"), "option-type", "without", "'1'"),
    Case("leave out everything", lambda w: w.join(without=["0", "1", "3"]), "task-empty", "without", "0, 1, 3"),
    Case("leave out an unknown class", lambda w: w.join(without=["zz"]), "task-unknown-class", "'zz'", "1, 3, 0"),
    Case("assemble relevances", lambda w: w.join([w.relevance]), "option-wrong-object", "Relevance"),
    Case("assemble one", lambda w: w.join([w.component])(X), answers),
    Case("assemble a generator", lambda w: w.join(iter((w.component, w.other)))(X), lambda w: w.assembly(X)),
    Case("assemble one twice", twice, "task-class-in-two-parts", "'1'", "part 0", "part 1", "on_duplicate='average'"),
    Case("assemble one twice, renamed", lambda w: twice(w, on_duplicate="rename").classes, RENAMED),
    Case("assemble one twice, averaged", lambda w: twice(w, on_duplicate="average")(X), answers),
    Case("overlapping, the larger", larger, lambda w: torch.maximum(answers(w)[:, 1], unhealed(w)(X)[:, 0])),
    *wrong("assemble", World.join, "form", "option-choice", "x", None, 5, ["padded"]),
    *wrong("assemble", World.join, "scaling", "option-choice", "x", None, 5, ["none"]),
    *wrong("assemble", World.join, "on_duplicate", "option-choice", "x", None),
    *wrong("assemble", World.join, "votes", "option-type", "yes", 2),
    *wrong("assemble", World.join, "same", "option-syntax", "1", ["1"], {"1": 2}),
    *wrong("assemble", World.join, "source", "option-type", 5, "x"),
    *wrong("assemble", World.join, "seed", "option-range", "x", None),
    *wrong("assemble", World.join, "shots", "option-range", 0, -1, 1.5, "x", True),
    Case("images unused", lambda w: w.join(images=BOTH, scaling="logit-mean"), "option-without-effect", "images="),
    Case("scaling in capitals", lambda w: w.join(scaling="Mahalanobis"), "option-choice", "scaling", "'mahalanobis'"),
    Case("scaling without images", lambda w: w.join(scaling="affine"), "option-needs-data", "'affine'", "images="),
    Case("scaling with one pair", lambda w: w.join(scaling="lda", images=[DATA]), "data-type", "2 parts", "list"),
    Case("scaling with a number", lambda w: w.join(scaling="lda", images=5), "data-type", "2 parts", "int"),
    Case("scaling with no images", lambda w: w.join(scaling="lda", images=[None] * 2), "data-no-task-class", "images"),
    *wrong("scaling", scaled, "weight", "option-range", -1, INFINITY, "x"),
    Case("scaling option misspelt", lambda w: scaled(w, wieght=1), "option-unknown-name", "mahalanobis", "'wieght'"),
    Case("votes that nobody has", lambda w: w.join(votes=True), "task-no-votes", "votes=True"),
    Case("union of healed parts", lambda w: w.join(form="union"), "surgery-weights-differ", "'conv2'", "source="),
    Case("union, another source", union, "surgery-wrong-source", "form='union'", "1, 3", model=Residual),
    Case("union, wrapped source", lambda w: union(w).classes, ("1", "3", "0"), model=lambda: nn.DataParallel(chain())),
    Case("padded, other channels", lambda w: other_channels(w, form="padded"), "surgery-input-mismatch", "padded"),
    Case("images that one part refuses", lambda w: other_channels(w).predict(X), "data-wrong-size", "(12, 3, 8, 8)"),
    Case("padded, other preprocessing", other_preprocessing, lambda w: side_by_side(w.component, normalised(w))),
    Case("other types", lambda w: other_types(w)(X).float(), lambda w: side_by_side(w.component, single(w))),
    Case("padded, other types", lambda w: other_types(w, form="padded"), "surgery-input-mismatch", "padded", *TYPES),
    Case("grouped, other types", lambda w: other_types(w, form="grouped"), "surgery-input-mismatch", "grouped", *TYPES),
    Case("padded, one part fused", fused_inside, "surgery-no-structure", "'Sequential'"),
]


def with_source(w: World) -> Any:
    return w.score(source=w.model)


def timed(w: World) -> bool:
    return by.evaluate(w.component, DATA, source=w.source, including_calibration=True).rows[0].latency is not None


def foreign(w: World) -> Any:
    return w.score([DATA] * 2, w.assembly, source=[w.source, w.model])


EVALUATE = [
    Case("evaluate None", lambda w: by.evaluate(None, DATA), "option-wrong-object", "NoneType"),
    Case("evaluate a source", lambda w: by.evaluate(w.source, DATA), "option-wrong-object", "Sequential"),
    Case("evaluate a relevance", lambda w: by.evaluate(w.relevance, DATA), "option-wrong-object", "Relevance"),
    Case("evaluate a list", lambda w: by.evaluate([w.component], DATA), "option-wrong-object", "list"),
    *wrong("evaluate", World.score, "latency", "option-type", "x", None),
    *wrong("evaluate", World.score, "latency_batch", "option-range", 0, -1, 1.5, "x"),
    *wrong("evaluate", World.score, "batch_size", "option-range", 0, -1, 1.5, "x"),
    Case("evaluate with another source", with_source, "data-wrong-source", "'Sequential'", model=Residual),
    Case("evaluate with a number for a source", lambda w: w.score(source=5), "trace-not-module", "int"),
    Case("evaluate with two sources", lambda w: w.score(source=[w.source] * 2), "option-count", "list", "2"),
    Case("evaluate with the wrapped source", with_source, lambda w: w.scores, model=lambda: nn.DataParallel(chain())),
    Case("evaluate with the compiled source", with_source, lambda w: w.scores, model=lambda: torch.compile(chain())),
    Case("evaluate while timing the source", timed, True),
    Case("evaluate without timing", lambda w: w.score(source=w.source).rows[0].latency is not None, False),
    Case("evaluate classes that the data lack", lambda w: w.score((X, Y * 0)), "data-no-task-class", "12", "1, 3"),
    Case("evaluate half the classes", lambda w: w.score((X[Y == 1], Y[Y == 1])).rows[0].images, 3),
    Case("evaluate without labels", lambda w: w.score((X, None)), "data-no-labels", "labels"),
    Case("evaluate images of other channels", lambda w: w.score((X[:, :1], Y)), "data-wrong-size", "(1, 8, 8)"),
    Case("an assembly with one pair", lambda w: w.score([DATA], w.assembly), "data-type", "2 parts", "list"),
    Case("an assembly with None", lambda w: w.score(None, w.assembly), "data-type", "2 parts", "NoneType"),
    Case("one source of two", lambda w: w.score([DATA] * 2, w.assembly, source=[w.source]), "option-count", "2", "1"),
    Case("an assembly with a foreign source", foreign, "data-wrong-source", "'Sequential'", model=Residual),
    Case("an assembly with half its data", lambda w: w.score([DATA, None], w.assembly).rows[-1].images, 6),
]

CASES = [*ASSEMBLE, *EVALUATE]
