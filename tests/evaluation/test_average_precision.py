"""Average precision against a computation of its own, on random boxes; and the error of a difference."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from brickyard.evaluation import average_precision, paired_drop
from brickyard.inputs import Truth
from conftest import needed_package
from errors import refused

needed_package("pycocotools")

CLASSES = ["cat", "dog", "eel"]
Item = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def truth(boxes: Any, labels: Any, crowd: Any = None) -> Truth:
    held = [False] * len(labels) if crowd is None else crowd
    shaped = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return Truth(shaped, torch.tensor(labels, dtype=torch.long), torch.tensor(held, dtype=torch.bool), (64, 64))


def item(boxes: Any, scores: Any, labels: Any) -> Item:
    shaped = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    return shaped, torch.tensor(scores, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)


# -- computed anew -------------------------------------------------------------------------------------------------


def overlap(a: Any, b: Any, crowd: bool) -> float:
    """Intersection over union; over the found box alone, for a crowd."""
    across, down = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    if across <= 0 or down <= 0:
        return 0.0
    own, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    inner = across * down
    return inner / own if crowd else inner / (own + other - inner)


def average_of_class(found: list[Item], truths: list[Truth], kind: int, level: float) -> float:
    """The mean of the best precision at or beyond each of 101 recalls; boxes take the best object that is left."""
    rows, objects = [], 0
    for (boxes, scores, labels), true in zip(found, truths, strict=True):
        mine = [
            (b, c) for b, k, c in zip(true.boxes.tolist(), true.labels, true.crowd.tolist(), strict=True) if k == kind
        ]
        objects += sum(not crowd for _, crowd in mine)
        taken: set[int] = set()
        chosen = [k for k in np.argsort(-scores.numpy(), kind="stable") if labels[k] == kind][:100]
        for k in chosen:
            box = boxes[k].tolist()
            free = [(overlap(box, b, c), j) for j, (b, c) in enumerate(mine) if not c and j not in taken]
            best = max(free, key=lambda pair: (pair[0], pair[1]), default=(0.0, -1))
            if best[0] >= level:
                taken.add(best[1])
                rows.append((float(scores[k]), 1, 0))
            elif not any(c and overlap(box, b, c) >= level for b, c in mine):
                rows.append((float(scores[k]), 0, 1))
    if not objects:
        return math.nan
    rows.sort(key=lambda row: -row[0])  # stable: ties stay in the order of the images
    right, wrong = (np.cumsum([row[k] for row in rows]) for k in (1, 2))
    total = 0.0
    for step in np.linspace(0, 1, 101):
        reached = [r / (r + w) for r, w in zip(right, wrong, strict=True) if r + w and r / objects >= step]
        total += max(reached, default=0.0)
    return 100 * total / 101


@st.composite
def scenes(draw: Any, ties: bool = True, most: int = 4) -> tuple[list[Item], list[Truth]]:
    """Objects and found boxes near them, with crowds, ties, empty images and classes without objects."""
    seed = draw(st.integers(0, 2**32 - 1))
    images, kinds = draw(st.integers(1, most)), draw(st.integers(1, 3))
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(images):
        count = int(rng.integers(0, 6))
        first = rng.uniform(0, 40, (count, 2))
        boxes = np.concatenate([first, first + rng.uniform(4, 20, (count, 2))], 1)
        labels = rng.integers(0, kinds, count)
        truths.append(truth(boxes.tolist(), labels.tolist(), (rng.random(count) < 0.25).tolist()))
        near = np.repeat(np.arange(count), rng.integers(0, 4, count))
        noisy = boxes[near] + rng.normal(0, 1.5, (len(near), 4))
        wild = rng.uniform(0, 60, (int(rng.integers(0, 4)), 4))
        every = np.concatenate([noisy, wild])
        kind = np.concatenate([labels[near], rng.integers(0, kinds, len(wild))])
        scores = rng.integers(0, 4, len(every)) / 4 if ties else rng.random(len(every))
        found.append(item(every.tolist(), scores.tolist(), kind.tolist()))
    return found, truths


def crossed(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes without an area as both sides see them."""
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)


@given(scenes())
@settings(max_examples=60, deadline=None)
def test_it_equals_an_independent_computation(scene: tuple[list[Item], list[Truth]]) -> None:
    found, truths = scene
    counts = [sum(int(((t.labels == k) & ~t.crowd).sum()) for t in truths) for k in range(3)]
    if not any(counts):
        with refused("data-no-labels"):
            average_precision(found, truths, CLASSES)
        return
    mine = [(crossed(boxes), scores, labels) for boxes, scores, labels in found]
    levels = np.linspace(0.5, 0.95, 10)
    table = np.array([[average_of_class(mine, truths, k, level) for level in levels] for k in range(3)])
    got = average_precision(found, truths, CLASSES)
    tried = [k for k in range(3) if counts[k]]
    assert got.objects == dict(zip(CLASSES, counts, strict=True))
    assert list(got.ap50) == list(got.ap) == [CLASSES[k] for k in tried]
    assert np.allclose(list(got.ap50.values()), table[tried, 0], atol=1e-9)
    assert np.allclose(list(got.ap.values()), table[tried].mean(1), atol=1e-9)
    assert math.isclose(got.map50, table[tried, 0].mean(), abs_tol=1e-9)
    assert math.isclose(got.map50_95, table[tried].mean(), abs_tol=1e-9)
    assert got.untried == tuple(CLASSES[k] for k in range(3) if not counts[k])


@given(scenes())
@settings(max_examples=40, deadline=None)
def test_stored_matches_give_what_pycocotools_gives(scene: Any) -> None:
    found, truths = scene
    assume(len(truths) > 1 and any(int((~t.crowd).sum()) for t in truths))
    again = [item([], [], [])] * len(truths)
    drop = paired_drop(found, again, truths, CLASSES, draws=50)
    assert math.isclose(drop.first, average_precision(found, truths, CLASSES).map50, abs_tol=1e-9)
    assert drop.second == 0
    assert drop.drop == drop.first


def resample(seed: int, images: int, draws: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), draws)


@given(scenes(ties=False, most=6), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_error_is_that_of_explicit_resamples(scene: Any, seed: int) -> None:
    """Images are repeated as often as they are drawn, and scored as a whole."""
    found, truths = scene
    rng = np.random.default_rng(seed)
    other = [item(b.tolist(), rng.random(len(b)).tolist(), k.tolist()) for b, _, k in found]
    wanted = []
    for counts in resample(seed, len(truths), 6):
        places = np.repeat(np.arange(len(truths)), counts)
        if any(int((~truths[k].crowd).sum()) for k in places):
            one, two = (
                average_precision([side[k] for k in places], [truths[k] for k in places], CLASSES).map50
                for side in (found, other)
            )
            wanted.append(one - two)
    if len(truths) < 2 or len(wanted) < 2:
        return
    got = paired_drop(found, other, truths, CLASSES, draws=6, seed=seed)
    assert got.draws == len(wanted)
    assert math.isclose(got.error, float(np.std(wanted, ddof=1)), abs_tol=1e-8)


def test_the_error_is_paired() -> None:
    """Detectors that miss the same images differ with certainty; those that miss others do not."""
    box = [[2, 2, 30, 30]]
    truths = [truth(box, [0])] * 40
    hit, miss = item(box, [0.9], [0]), item([], [], [])
    odd, even, few = (
        [hit if keep(k) else miss for k in range(40)]
        for keep in (lambda k: k % 2, lambda k: 1 - k % 2, lambda k: k % 2 and k > 1)
    )
    same = paired_drop(odd, odd, truths, ["cat"])
    assert (same.drop, same.error) == (0, 0)
    close, apart = paired_drop(odd, few, truths, ["cat"]), paired_drop(odd, even, truths, ["cat"])
    assert 0 < close.drop < 4
    assert close.error < 4 < apart.error
    assert paired_drop(odd, even, truths, ["cat"], seed=1).error != apart.error
    assert paired_drop(odd, even, truths, ["cat"], seed=-1).error > 4


def test_crowds_count_neither_way() -> None:
    truths = [truth([[0, 0, 10, 10], [20, 20, 60, 60]], [0, 0], [False, True])]
    own, within = [0, 0, 10, 10], [25, 25, 35, 35]
    good = average_precision([item([own], [0.5], [0])], truths, ["cat"])
    crowded = average_precision([item([within, within, own], [0.9, 0.8, 0.5], [0, 0, 0])], truths, ["cat"])
    assert good.map50 == crowded.map50
    assert math.isclose(good.map50, 100)
    assert good.objects == {"cat": 1}
    wrong = average_precision([item([[40, 0, 50, 10], own], [0.9, 0.5], [0, 0])], truths, ["cat"])
    assert math.isclose(wrong.map50, 50)


def test_nothing_is_printed_and_classes_without_objects_are_said(capsys) -> None:
    truths = [truth([[0, 0, 10, 10]], [0]), truth([], [])]
    found = [item([[0, 0, 10, 10]], [0.5], [0]), item([], [], [])]
    got = average_precision(found, truths, CLASSES)
    paired_drop(found, found, truths, CLASSES, draws=20)
    printed = capsys.readouterr()
    assert not printed.out
    assert not printed.err
    assert "dog, eel" in str(got)
    assert got.images == 2


@pytest.mark.parametrize(
    ("found", "code", "named"),
    [
        ([], "data-label-mismatch", "0 images"),
        ([item([[0, 0, 1, math.nan]], [0.5], [0])], "data-overflow", "image 0"),
        ([item([[0, 0, 1, 1]], [math.inf], [0])], "data-overflow", "image 0"),
        ([item([[0, 0, 1, 1]], [0.5], [3])], "data-label-out-of-range", "3"),
        ([item([[0, 0, 1, 1]], [0.5], [-1])], "data-label-out-of-range", "-1"),
        ([item([[0, 0, 1, 1]], [0.5], [0.5])], "data-label-mismatch", "0.5"),
        ([item([[0, 0, 1, 1]], [0.5, 0.5], [0])], "data-shape", "(2,)"),
        ([(torch.zeros(2, 5), torch.zeros(2), torch.zeros(2))], "data-shape", "(2, 5)"),
    ],
)
def test_found_boxes_of_another_form(found: list[Item], code: str, named: str) -> None:
    with refused(code, named):
        average_precision(found, [truth([[0, 0, 1, 1]], [0])], CLASSES)


def test_labels_of_no_class_and_too_few_images() -> None:
    with refused("data-label-out-of-range", "7"):
        average_precision([item([], [], [])], [truth([[0, 0, 1, 1]], [7])], CLASSES)
    with refused("data-too-few"):
        paired_drop([item([], [], [])], [item([], [], [])], [truth([[0, 0, 1, 1]], [0])], CLASSES)
    with refused("option-range", "draws"):
        paired_drop([], [], [], CLASSES, draws=1)


def test_without_the_package(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pycocotools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with refused("option-missing-package", "pycocotools", "brickyard[detectors]"):
        average_precision([item([], [], [])], [truth([[0, 0, 1, 1]], [0])], CLASSES)
