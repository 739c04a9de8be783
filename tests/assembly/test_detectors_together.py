"""Assemblies of detectors: each part sees the picture in its own way, and boxes meet in the picture's pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.runtime._profiling import count_flops
from brickyard.testing import Detector, chain, randomised
from errors import refused

GRID = by.Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="grid", strides=(4,))
BINS = by.Boxes(classes=3, scores_at=0, boxes_at=3, scores="sigmoid", coding="bins", bins=4, strides=(2,))
FIRST = by.Preprocessing(size=(16, 16), fit="letterbox", channels=3, fill=0.5)
SECOND = by.Preprocessing(size=(12, 24), channels=3, order="bgr", mean=(0.5,), std=(0.25,))


class Small(nn.Module):
    """One grid of cells of some stride."""

    def __init__(self, boxes: by.Boxes, classes: int, seed: int) -> None:
        super().__init__()
        (stride,) = boxes.strides
        self.conv = nn.Conv2d(3, 6, stride, stride)
        self.head = nn.Conv2d(6, boxes.others + classes, 1)
        self.sigmoid = boxes.scores == "probabilities"
        randomised(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(torch.relu(self.conv(x))).flatten(2).transpose(1, 2)
        return torch.cat([found[..., :4], found[..., 4:].sigmoid()], 2) if self.sigmoid else found


def part(boxes: by.Boxes, how: by.Preprocessing, names: list[str], task: list[str], seed: int) -> by.Component:
    source = Small(boxes, len(names), seed)
    pictures = torch.randint(0, 255, (6, 3, 20, 30), dtype=torch.uint8)
    shown = (pictures, torch.ones(6, len(names), dtype=torch.long))
    relevance = by.locate(source, shown, outputs=boxes, preprocessing=how, classes=names, task=task)
    return by.disassemble(source, relevance, task=task, heal="none", budget=by.Budget(flops=1.0), select="mda")


@pytest.fixture(scope="module")
def parts() -> list[by.Component]:
    return [
        part(GRID, FIRST, ["person", "car", "dog"], ["dog", "person"], 1),
        part(BINS, SECOND, ["car", "cat", "dog"], ["car"], 2),
    ]


def pictures(*sides: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator) for size in sides]


def test_an_assembly_finds_what_its_parts_find(parts: list[by.Component], tmp_path: Any) -> None:
    whole = by.assemble(parts)
    assert whole.classes == ("dog", "person", "car")
    for picture in pictures((20, 30), (40, 16), (9, 9)):
        (found,) = whole.detect(picture, score=0.05, most=10_000)
        (first,), (second,) = (one.detect(picture, score=0.05, most=10_000) for one in parts)
        alone = [(parts[0].classes[k], s, b) for k, s, b in zip(first.labels, first.scores, first.boxes, strict=True)]
        alone += [("car", s, b) for s, b in zip(second.scores, second.boxes, strict=True)]
        assert len(found.labels) == len(alone) > 0
        left = sorted(alone, key=lambda item: -float(item[1]))
        for (name, score, box), k, s, b in zip(left, found.labels, found.scores, found.boxes, strict=True):
            assert (whole.classes[k], float(s)) == (name, pytest.approx(float(score), abs=1e-6))
            assert torch.allclose(b, box, atol=1e-4)
    read = by.load(whole.save(tmp_path / "both.safetensors"))
    many = pictures((20, 30), (31, 17))
    assert read.predict(many) == whole.predict(many)
    assert torch.equal(read(torch.stack(pictures((20, 30)))), whole(torch.stack(pictures((20, 30)))))
    assert read.classes == whole.classes


def test_boxes_of_a_class_that_two_parts_know_suppress_each_other(parts: list[by.Component]) -> None:
    again = parts[1].renamed({"car": "person"})
    with refused("task-class-in-two-parts"):
        by.assemble([parts[0], again])
    whole = by.assemble([parts[0], again], on_duplicate="max")
    assert whole.classes == ("dog", "person")
    twice = by.assemble([parts[0], parts[0].renamed({"dog": "hound", "person": "human"})], on_duplicate="max")
    same = by.assemble([parts[0], parts[0]], on_duplicate="max")
    (picture,) = pictures((20, 30))
    (alone,), (both,), (apart,) = (one.detect(picture, score=0.05) for one in (parts[0], same, twice))
    assert len(both.labels) == len(alone.labels)
    assert len(apart.labels) == 2 * len(alone.labels)


def test_components_of_one_source_run_their_common_steps_once() -> None:
    source = Small(GRID, 3, 1)
    shown = (torch.rand(6, 3, 16, 16), torch.ones(6, 3, dtype=torch.long))
    relevance = by.locate(source, shown, outputs=GRID, classes=["a", "b", "c"])
    how: dict[str, Any] = {"heal": "none", "budget": by.Budget(flops=1.0), "select": "mda"}
    whole = by.assemble([by.disassemble(source, relevance, task=[k], **how) for k in ("a", "c")])
    assert whole.manifest.shared_flops > 0
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(whole(x), whole.unshared()(x))


def test_whole_components_of_one_source_cost_what_one_for_both_classes_costs() -> None:
    source, names = Detector(), ["ant", "bee", "cow", "dog"]
    shown = (torch.rand(8, 3, 32, 32), torch.ones(8, 4, dtype=torch.long))
    relevance = by.locate(source, shown, outputs=Detector.boxes, classes=names)
    how: dict[str, Any] = {"heal": "none", "budget": by.Budget(flops=1.0), "select": "mda"}
    few, others, both = (
        by.disassemble(source, relevance, task=task, **how) for task in (["bee"], ["dog", "ant"], ["bee", "dog", "ant"])
    )
    whole = by.assemble([few, others])
    runs = sum(count_flops(*pair) for pair in whole.distinct_networks())
    cells = 8 * 8 + 4 * 4
    objectness = cells * (2 * 8 + 1) - cells  # of every cell: a product and a sum for each of eight channels
    one, apart = (count_flops(part.network, part.input_shape) for part in (both, few))
    assert runs == one + objectness  # alone in being computed twice, as it is one layer with the scores
    assert runs == apart + count_flops(others.network, others.input_shape) - whole.manifest.shared_flops
    assert runs < 1.2 * one < apart + one
    narrow = by.disassemble(source, relevance, task=["bee"], heal="none", budget=by.Budget(flops=0.5), select="l1")
    assert by.assemble([narrow, others]).manifest.shared_flops < whole.manifest.shared_flops


@pytest.mark.parametrize(
    "options", [{"form": "padded"}, {"form": "cascade"}, {"scaling": "mahalanobis"}, {"votes": True}]
)
def test_what_detectors_are_not_assembled_with_is_refused(parts: list[by.Component], options: dict[str, Any]) -> None:
    with refused("option-conflict", next(iter(options))):
        by.assemble(parts, **options)


def test_a_detector_and_a_classifier_are_not_joined(parts: list[by.Component]) -> None:
    source = chain()
    images = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
    other = by.disassemble(source, by.locate(source, images), task=["0", "1"])
    with refused("option-conflict", "boxes"):
        by.assemble([parts[0], other])
