"""Boxes of one object that two detectors found become one, as computed anew in numpy, and in assemblies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import brickyard as by
from brickyard.outputs._detections import Found
from brickyard.outputs._fusion import FUSED, fused
from brickyard.testing import Detector

NAMES = ["ant", "bee", "cow", "dog"]
Row = tuple[float, list[float], int]


def overlap(a: Any, b: Any) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, wide) * max(0.0, high)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return float(both / max(either, 1e-9))  # a box outside the picture is cut to nothing


def by_hand(rows: list[Row]) -> list[tuple[float, Any]]:
    """(score, box, part) of one class -> (score, fused box), by falling score; every mean from all members anew."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda one: -one[0]):
        middles = [np.average([box for _, box, _ in own], axis=0, weights=[s for s, _, _ in own]) for own in groups]
        shared = [overlap(row[1], middle) for middle in middles]
        if shared and max(shared) > FUSED:
            groups[int(np.argmax(shared))].append(row)
        else:
            groups.append([row])
    found = []
    for own in groups:
        middle = np.average([box for _, box, _ in own], axis=0, weights=[s for s, _, _ in own])
        best = {part: max(s for s, _, p in own if p == part) for part in {p for _, _, p in own}}
        found.append((1 - float(np.prod([1 - s for s in best.values()])), middle))
    return sorted(found, key=lambda one: -one[0])


def drawn(seed: int, count: int = 30) -> Found:
    """Boxes around a few places, so that many overlap."""
    generator = np.random.default_rng(seed)
    corner = np.array([[5, 5], [40, 10], [20, 50]])[generator.integers(3, size=count)] + generator.normal(
        0, 2, (count, 2)
    )
    size = 20 + generator.normal(0, 3, (count, 2))
    scores = np.sort(generator.uniform(0.05, 0.95, count))[::-1].copy()
    labels = torch.from_numpy(generator.integers(2, size=count))
    return Found(torch.from_numpy(np.concatenate([corner, corner + size], 1)), torch.from_numpy(scores), labels)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fused_boxes_equal_those_computed_by_hand(count: int) -> None:
    parts = [drawn(seed) for seed in range(count)]
    found = fused(parts, [0, 1])
    assert (found.scores.diff() <= 0).all()
    for k in (0, 1):
        rows: list[Row] = [
            (float(s), box.tolist(), p)
            for p, one in enumerate(parts)
            for s, box, label in zip(one.scores, one.boxes, one.labels, strict=True)
            if label == k
        ]
        wanted = by_hand(rows)
        own = found.of(found.labels == k)
        assert len(own.scores) == len(wanted) < len(rows)
        assert np.allclose(own.scores.numpy(), [s for s, _ in wanted], atol=1e-12)
        assert np.allclose(own.boxes.numpy(), np.stack([box for _, box in wanted]), atol=1e-9)


def test_classes_that_one_part_knows_stay_as_they_are() -> None:
    one, other = drawn(1), drawn(2)
    other = other._replace(labels=torch.full_like(other.labels, 1))
    found = fused([one, other], [1])
    assert torch.equal(found.boxes[found.labels == 0], one.boxes[one.labels == 0])
    assert torch.equal(found.scores[found.labels == 0], one.scores[one.labels == 0])
    assert int((found.labels == 1).sum()) < int((one.labels == 1).sum()) + len(other.labels)


def test_a_box_that_nobody_else_has_keeps_its_score_and_its_corners() -> None:
    alone = Found(torch.tensor([[3.0, 3.0, 9.0, 9.0]]) / 7, torch.tensor([0.3]), torch.tensor([0]))
    empty = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert all(torch.equal(a, b) for a, b in zip(fused([alone, empty], [0]), alone, strict=True))
    assert len(fused([empty, empty], [0]).scores) == 0


def part(seed: int) -> by.Component:
    source = Detector()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in source.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    shown = torch.rand(8, 3, 32, 32), torch.eye(4).long().repeat(2, 1)
    how = by.Preprocessing(size=(32, 32), channels=3, fit="letterbox")
    relevance = by.locate(source, shown, outputs=Detector.boxes, classes=NAMES, preprocessing=how)
    task = ["bee", "dog"] if seed else ["bee"]
    return by.disassemble(source, relevance, task=task, heal="none", budget=by.Budget(flops=1.0), select="mda")


def test_an_assembly_fuses_classes_that_its_parts_share(tmp_path: Any) -> None:
    parts = [part(0), part(1)]
    whole = by.assemble(parts, on_duplicate="average", scaling="none")
    surest = by.assemble(parts, on_duplicate="max", scaling="none")
    assert whole.classes == surest.classes == ("bee", "dog")
    picture = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    first, second = (one.detect(picture, score=0.01, iou=0.5)[0] for one in parts)
    rows: list[Row] = [(float(s), b.tolist(), 0) for b, s in zip(first.boxes, first.scores, strict=True)]
    rows += [(float(s), b.tolist(), 1) for b, s, k in zip(*second, strict=True) if k == 0]
    wanted = [one for one in by_hand(rows) if one[0] > 0.25]
    left = []
    for score, box in wanted:  # what is fused still overlaps another one by half at times
        if all(overlap(box, other) <= 0.5 for _, other in left):
            left.append((score, box))
    (found,) = whole.detect(picture, score=0.25, iou=0.5)
    bees = found.of(found.labels == 0)
    assert len(bees.scores) == len(left) > 5
    assert np.allclose(bees.scores.numpy(), [s for s, _ in left], atol=1e-5)
    assert np.allclose(bees.boxes.numpy(), np.stack([box for _, box in left]), atol=1e-3)
    alone = second.of((second.labels == 1) & (second.scores > 0.25))
    assert torch.allclose(found.boxes[found.labels == 1], alone.boxes, atol=1e-4)
    (other,) = surest.detect(picture, score=0.25, iou=0.5)
    assert other.scores[:5].tolist() != found.scores[:5].tolist()
    read = by.load(whole.save(tmp_path / "both.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(read.detect(picture)[0], whole.detect(picture)[0], strict=True))
    assert len(whole.detect(picture, score=0.25, most=3)[0].scores) == 3
