"""Wrong and odd uses of the scores for transfer: features, probes, ranking."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from brickyard.evaluation._probe import Probe, features, h_score, log_evidence, probe
from misuse.component import in_training
from misuse.files import with_nan
from misuse.world import DATA, NAN, Case, World, X, Y, wrong

ROWS = torch.randn(24, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
KINDS = torch.arange(24) % 3
RENUMBERED = 7 - 3 * KINDS
FAR = torch.full_like(ROWS, torch.inf)


def probed(w: World, **given: Any) -> Probe:
    return probe(ROWS, KINDS, **given)


def ranked(w: World, data: Any = DATA, **given: Any) -> Any:
    return w.yard().rank(data, **given)


def scored(w: World, call: Any, x: Any, y: Any) -> Any:
    return call(x, y)


def both_scores(kinds: torch.Tensor) -> tuple[float, float]:
    return log_evidence(ROWS, kinds), h_score(ROWS, kinds)


CASES = [
    Case("features of None", lambda w: features(None, DATA), "option-wrong-object", "NoneType"),
    Case("features of a source", lambda w: features(w.source, DATA), "option-wrong-object", "Sequential"),
    Case("features of an assembly", lambda w: features(w.assembly, DATA), "option-wrong-object", "Assembly"),
    Case("features, training", lambda w: features(in_training(w), DATA), lambda w: features(w.component, DATA)),
    *wrong("features", lambda w, **o: features(w.component, DATA, **o), "batch_size", "option-range", 0),
    Case("features of other channels", lambda w: features(w.component, (X[:, :2], Y)), "data-wrong-size", "2, 8, 8"),
    Case("features of images of NaN", lambda w: features(w.component, (X * NAN, Y)), "data-not-finite", "NaN"),
    Case("features of NaN", lambda w: features(with_nan(w.component), DATA), "data-overflow", "NaN", "12 of 12"),
    *[
        Case(f"{call.__name__} of {name}", partial(scored, call=call, x=x, y=y), code, *quoted)
        for call in (log_evidence, h_score, probe)
        for name, x, y, code, *quoted in (
            ("one class", ROWS, KINDS * 0, "data-too-few", "24"),
            ("as many images as classes", ROWS[:3], KINDS[:3], "data-too-few", "3 images", "3 classes"),
            ("labels of other images", ROWS, KINDS[:9], "data-label-mismatch", "24", "(9,)"),
            ("labels with a comma", ROWS, KINDS + 0.5, "data-label-mismatch", "24", "torch.float32"),
            ("images", X, Y, "data-shape", "(12, 3, 8, 8)", "(images, size)"),
            ("infinite features", FAR, KINDS, "data-not-finite", "24 of 24"),
            ("a text", "rows", KINDS, "data-type", "str"),
        )
    ],
    Case("half precision", lambda w: log_evidence(ROWS.half(), KINDS), log_evidence(ROWS.half().double(), KINDS)),
    Case("other numbers for the same classes", lambda w: both_scores(RENUMBERED), lambda w: both_scores(KINDS)),
    Case("other classes", lambda w: both_scores(KINDS.sort()[0]) == pytest.approx(both_scores(KINDS)), False),
    *wrong("probe", probed, "strengths", "option-range", [], 5, None),
    Case("probe(strengths=[0])", lambda w: probed(w, strengths=[0.0]), "option-range", "strength", "0.0"),
    *wrong("probe", probed, "folds", "option-range", 1),
    Case("a probe", lambda w: isinstance(probed(w), Probe) and probed(w).validated is not None, True),
    Case("predict other features", lambda w: probed(w).predict(ROWS[:, :3]), "data-shape", "(24, 3)", "(images, 5)"),
    Case("score fewer labels", lambda w: probed(w).score(ROWS, KINDS[:2]), "data-label-mismatch", "24", "(2,)"),
    *wrong("yard.rank", ranked, "score", "option-choice", "best", None, 3),
    *wrong("yard.rank", ranked, "per_class", "option-range", 0, 1.5),
    *wrong("yard.rank", ranked, "seed", "option-range", 0.5),
    *wrong("yard.rank", ranked, "batch_size", "option-range", 0),
    Case("yard.rank of an image a class", lambda w: ranked(w, (X[:4], Y[:4])), "data-too-few", "4"),
    Case("yard.rank by an image a class", lambda w: ranked(w, per_class=1), "data-too-few", "4"),
    Case("yard.rank of NaN", lambda w: ranked(w, (X * NAN, Y)), "data-not-finite", "NaN"),
    Case("yard.rank without labels", lambda w: ranked(w, X), "data-no-labels", "labels"),
    Case("yard.rank of one class", lambda w: ranked(w, (X, Y * 0)), "data-too-few", "12"),
]
