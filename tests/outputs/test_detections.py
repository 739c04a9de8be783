"""Detectors' outputs: decoding, suppression and comparison against slow ways of computing the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brickyard import Boxes, BrickyardError
from brickyard.base._boxes import FAMILIES
from brickyard.outputs._detections import CANDIDATES, Detections, Found, decoded, matched, overlaps
from errors import refused

SIDES = (24, 40)
STRIDES = (8, 16)
CODINGS = {
    "grid": Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="grid", strides=STRIDES),
    "sides": Boxes(scores_at=0, boxes_at=3, classes=3, scores="sigmoid", coding="sides", strides=STRIDES),
    "bins": Boxes(scores_at=0, boxes_at=3, classes=3, scores="sigmoid", coding="bins", bins=5, strides=STRIDES),
    "centre": Boxes(scores_at=4, boxes_at=0, coding="centre"),
    "corners": Boxes(scores_at=5, boxes_at=1, objectness_at=0, scores="sigmoid", coding="corners"),
}


def grid_cells() -> list[tuple[int, int, int]]:
    """(x, y, stride) of every place, cell by cell."""
    return [
        (x, y, stride)
        for stride in STRIDES
        for y in range(math.ceil(SIDES[0] / stride))
        for x in range(math.ceil(SIDES[1] / stride))
    ]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def by_hand(
    column: list[float], boxes: Boxes, cell: tuple[int, int, int], count: int
) -> tuple[list[float], list[float]]:
    """One place's outputs -> its box and the score of each class, as the documentation of `Boxes` says."""
    said = (lambda v: v) if boxes.scores == "probabilities" else sigmoid
    object_ = 1.0 if boxes.objectness_at is None else said(column[boxes.objectness_at])
    scores = [said(column[boxes.scores_at + k]) * object_ for k in range(count)]
    n = column[boxes.boxes_at : boxes.boxes_at + boxes.box_outputs]
    x, y, stride = cell
    if boxes.coding == "corners":
        return n, scores
    if boxes.coding == "centre":
        return [n[0] - n[2] / 2, n[1] - n[3] / 2, n[0] + n[2] / 2, n[1] + n[3] / 2], scores
    if boxes.coding == "grid":
        cx, cy, w, h = (n[0] + x) * stride, (n[1] + y) * stride, math.exp(n[2]) * stride, math.exp(n[3]) * stride
        return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], scores
    if boxes.coding == "bins":
        far = []
        for side in range(4):
            shares = [math.exp(v) for v in n[side * boxes.bins : (side + 1) * boxes.bins]]
            far.append(sum(k * share for k, share in enumerate(shares)) / sum(shares))
        n = far
    cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
    return [cx - n[0] * stride, cy - n[1] * stride, cx + n[2] * stride, cy + n[3] * stride], scores


@pytest.mark.parametrize("coding", CODINGS)
def test_outputs_are_decoded_as_they_are_described(coding: str) -> None:
    boxes, cells = CODINGS[coding], grid_cells()
    rows = torch.randn(2, boxes.others + 3, len(cells), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found, scores = decoded(rows, boxes.sized(rows.shape[1]), SIDES)
    for image in range(2):
        for place, cell in enumerate(cells):
            box, own = by_hand(rows[image, :, place].tolist(), boxes, cell, 3)
            assert found[image, place].tolist() == pytest.approx(box, abs=1e-12)
            assert scores[image, place].tolist() == pytest.approx(own, abs=1e-12)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_task_keeps_its_classes_and_all_that_codes_boxes(coding: str) -> None:
    boxes = CODINGS[coding].sized(CODINGS[coding].others + 3)
    rows = torch.randn(2, boxes.outputs, len(grid_cells()), dtype=torch.float64)
    kept = boxes.kept((2, 0))
    whole, part = decoded(rows, boxes, SIDES), decoded(rows[:, list(kept)], boxes, SIDES)
    assert torch.allclose(part[0], whole[0], rtol=0, atol=1e-12)
    assert torch.allclose(part[1], whole[1][..., [2, 0]], rtol=0, atol=1e-12)
    assert not torch.allclose(part[1], whole[1][..., [0, 2]])
    assert boxes.of_task(2).kept((0, 1)) == tuple(range(boxes.others + 2))


def slowly(boxes: list[list[float]], scores: list[list[float]], score: float, iou: float) -> list[tuple[int, int]]:
    """Non-maximum suppression in plain Python: (place, class), the surest first."""
    every = sorted(
        ((value, place, k) for place, row in enumerate(scores) for k, value in enumerate(row) if value > score),
        key=lambda item: -item[0],
    )
    kept: list[tuple[int, int]] = []
    for _, place, k in every:
        if all(k != other or shared(boxes[place], boxes[at]) <= iou for at, other in kept):
            kept.append((place, k))
    return kept


def shared(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both, 1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_is_that_of_a_plain_loop(seed: int, iou: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = 12
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 20
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 15 + 2
    corners = torch.cat([low, low + size], 1)
    scores = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    rows = torch.cat([corners, scores], 1).T[None]
    kind = Detections().reading(Boxes(scores_at=4, boxes_at=0, coding="corners"), (3, 40, 40))
    (found,) = kind.find(rows, 0.25, iou)
    wanted = slowly(corners.tolist(), scores.tolist(), 0.25, iou)
    assert found.labels.tolist() == [k for _, k in wanted]
    assert torch.equal(found.boxes, corners[[place for place, _ in wanted]])
    assert torch.equal(found.scores, scores[[place for place, _ in wanted], [k for _, k in wanted]])


def test_overlaps_are_intersection_over_union() -> None:
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [10.0, 10.0, 10.0, 12.0]])
    b = torch.tensor([[2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 9.0, 9.0]])
    assert overlaps(a, b)[0].tolist() == pytest.approx([4 / 28, 1.0, 0.0])
    assert overlaps(a, b)[1].tolist() == [0.0, 0.0, 0.0]


def test_the_work_of_one_image_is_bounded() -> None:
    kind = Detections().reading(Boxes(scores_at=4, boxes_at=0, coding="corners"), (3, 40, 40))
    places = 3 * CANDIDATES
    low = torch.rand(2, places, dtype=torch.float64) * 1e9
    rows = torch.cat([low, low + 1, torch.rand(1, places, dtype=torch.float64)])[None]
    (found,) = kind.find(rows, 0.0, 0.5, 50)
    assert len(found.labels) <= 50
    assert found.boxes.max() <= 160  # four inputs


def some_boxes(count: int, seed: int) -> Found:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 100
    return Found(torch.cat([low, low + 20], 1), torch.linspace(0.9, 0.4, count), torch.arange(count) % 2)


def test_boxes_match_where_class_and_place_agree() -> None:
    found = some_boxes(5, 0)
    assert matched(found, found) == 5
    assert matched(found, found._replace(labels=1 - found.labels)) == 0
    assert matched(found, found._replace(boxes=found.boxes + 500)) == 0
    assert matched(found, found.of(torch.tensor([1, 3]))) == 2
    twice = Found(found.boxes[:1].repeat(3, 1), torch.ones(3), found.labels[:1].repeat(3))
    assert matched(twice, found.of(torch.tensor([0]))) == 1  # one object is found once


def test_agreement_counts_boxes_of_both_answers() -> None:
    kind = Detections().reading(Boxes(scores_at=4, boxes_at=0, coding="corners"), (3, 100, 100))
    box = [10.0, 10.0, 30.0, 30.0]
    one = torch.tensor([[*box, 0.9, 0.0], [60.0, 60.0, 90.0, 90.0, 0.0, 0.8]]).T[None]
    fewer, shifted = one.clone(), one.clone()
    fewer[0, 5, 1] = 0.1
    shifted[0, :4, 0] += 15
    assert kind.agreeing(one, one) == (4, 4)
    assert kind.agreeing(one, fewer) == (2, 3)
    assert kind.agreeing(one, shifted) == (2, 4)
    assert kind.agreeing(fewer * 0, fewer * 0) == (0, 0)


def test_boxes_count_where_the_reference_is_sure_of_them() -> None:
    kind = Detections().reading(Boxes(scores_at=4, boxes_at=0, coding="corners"), (3, 100, 100))
    rows = torch.tensor([[10.0, 10.0, 30.0, 30.0, 0.9], [60.0, 60.0, 90.0, 90.0, 0.001]]).double().T[None]

    def moved(place: int, by: float) -> float:
        other = rows.clone()
        other[0, :4, place] += by
        return float((kind.compared(other, rows) - kind.compared(rows, rows)).square().sum())

    assert moved(0, 0.0) == 0
    assert moved(0, 2.0) == pytest.approx(4 * (2 / 20 * 0.9) ** 2)
    assert moved(1, 2.0) == pytest.approx(4 * (2 / 30 * 0.001) ** 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coding": "bins"}, ["bins"]),
        ({"bins": 8}, ["bins=8"]),
        ({"strides": ()}, ["strides"]),
        ({"coding": "centre"}, ["strides"]),
        ({"classes": 3, "boxes_at": 6}, ["overlap"]),
        ({"classes": 3, "objectness_at": 9}, ["overlap"]),
        ({"scores": "softmax"}, ["scores"]),
        ({"strides": (0,)}, ["strides"]),
        ({"scores_at": -1}, ["scores_at"]),
        ({"scores_at": 2**40}, ["scores_at"]),
    ],
)
def test_descriptions_that_cannot_be_right_are_refused(changes: dict, words: list[str]) -> None:
    good = {"scores_at": 5, "boxes_at": 0, "objectness_at": 4, "coding": "grid", "strides": (8,)}
    assert Boxes(**good)
    with refused("option-boxes", *words):
        Boxes(**{**good, **changes})


def test_families_fit_the_outputs_that_they_have() -> None:
    for name, outputs in (("yolox", 85), ("nanodet", 112), ("yolov5", 85), ("yolov8", 84)):
        assert Boxes.named(name).sized(outputs).classes == 80
    assert FAMILIES["yolox"].places((416, 416)) == FAMILIES["yolox"].places((416, 410)) == 3549
    with refused("option-boxes", "yolox"):
        Boxes.named("yolo")
    with refused("option-boxes", "4 outputs"):
        Boxes.named("yolox").sized(4)
    with pytest.raises(BrickyardError):
        FAMILIES["nanodet"].sized(85)
