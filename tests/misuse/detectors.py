"""Uses of detectors: the right ones, and those that are one clear error."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

import brickyard as by
from brickyard.assembly import Refined, refine
from brickyard.evaluation import Drop, Precision, average_precision, paired_drop
from brickyard.inputs import BoxData, Truth, load_box_data
from brickyard.reports import draw_boxes
from brickyard.testing import Detector
from misuse.world import Case, World, X, Y

BOX = torch.tensor([[2.0, 2.0, 8.0, 8.0]], dtype=torch.float64)
TRUTHS = [Truth(BOX, torch.tensor([k]), torch.tensor([False]), (10, 10)) for k in (0, 1)]
FOUND = [(BOX, torch.tensor([0.9]), truth.labels) for truth in TRUTHS]
ELSEWHERE = [(BOX + 50, scores, labels) for _, scores, labels in FOUND]
SOURCE = Detector()  # building one draws from the global generator
ROWS = torch.eye(4)[Y].long()
NAMES = ["cat", "dog"]


def found_by(**options: Any) -> by.Relevance:
    return by.locate(SOURCE, (X, ROWS), **{"outputs": Detector.boxes, "per_class": 2, **options})


def part(**options: Any) -> by.Component:
    return by.disassemble(SOURCE, found_by(), **{"task": ["1", "3"], "heal": "none", **options})


def read(world: World) -> BoxData:
    for name in ("images", "labels"):
        (world.folder / name).mkdir(exist_ok=True)
    Image.new("RGB", (40, 20)).save(world.folder / "images/a.png")
    (world.folder / "labels/a.txt").write_text("1 0.5 0.5 0.25 1")
    (world.folder / "data.yaml").write_text("train: images\nnames: [cat, dog]")
    data = load_box_data(world.folder)
    assert isinstance(data, BoxData)
    return data


def right(world: World) -> float:
    found: Precision = average_precision(FOUND, TRUTHS, NAMES)
    return found.map50


def lost(world: World) -> float:
    found: Drop = paired_drop(FOUND, ELSEWHERE, TRUTHS, NAMES, draws=20)
    return found.drop


def further(world: World, **options: Any) -> Refined:
    """Boxes of a class named further by a classifier, whose names are its own."""
    namer = world.component.with_preprocessing(by.Preprocessing(size=(8, 8))).renamed({"1": "one", "3": "three"})
    return refine(part(), {"1": namer}, **options)


def drawn(world: World) -> tuple[int, int]:
    return draw_boxes(Image.new("RGB", (400, 300)), BOX, ["cat"], [0]).size


CASES = [
    Case("detectors: bins without distributions", lambda w: by.Boxes(scores_at=4, boxes_at=0, coding="bins"),
         "option-boxes", "bins=1"),
    Case("detectors: boxes that are right", right, 100.0),
    Case("detectors: boxes elsewhere", lost, 100.0),
    Case("detectors: found and true counts differ", lambda w: average_precision(FOUND[:1], TRUTHS, NAMES),
         "data-label-mismatch", "1", "2"),
    Case("detectors: data of a YOLO folder", lambda w: read(w).presence.tolist(), [[0, 1]]),
    Case("detectors: its objects", lambda w: read(w).truth(0).boxes.tolist(), [[15.0, 0.0, 25.0, 20.0]]),
    Case("detectors: no such data", lambda w: load_box_data(w.folder / "nowhere"), "data-missing", "nowhere"),
    Case("detectors: boxes are drawn", drawn, (400, 300)),
    Case("detectors: class indices as labels", lambda w: by.locate(SOURCE, (X, Y), outputs=Detector.boxes),
         "data-label-mismatch", "one row"),
    Case("detectors: an unknown family", lambda w: found_by(outputs="yolo9000"), "option-choice", "yolo9000"),
    Case("detectors: taken for a classifier", lambda w: by.locate(SOURCE, (X, Y)),
         "trace-output", "--outputs yolox"),
    Case("detectors: a classifier taken for one", lambda w: by.locate(w.source, (X, ROWS), outputs="yolox"),
         "trace-output", "places"),
    Case("detectors: a score above one", lambda w: part().detect(X, score=1.5), "option-range", "score"),
    Case("detectors: no boxes at all", lambda w: part().detect(X, most=0), "option-range", "most"),
    Case("detectors: detect of a classifier", lambda w: w.component.detect(X), "option-conflict", "predict"),
    Case("detectors: names are scored", lambda w: part().score(X, ["1"] * 12), "option-conflict", "evaluate"),
    Case("detectors: finetuned", lambda w: by.finetune(part(), (X, ROWS)), "option-wrong-object", "finetune"),
    Case("detectors: named further", lambda w: further(w).classes, ("1", "3", "one", "three")),
    Case("detectors: named further, unknown class", lambda w: refine(part(), {"cat": w.component}),
         "task-unknown-class", "cat"),
    Case("detectors: named further by nobody", lambda w: refine(part(), {}), "option-type", "0"),
    Case("detectors: named further by a detector", lambda w: refine(part(), {"1": part()}), "option-wrong-object",
         "detector"),
    Case("detectors: a classifier named further", lambda w: refine(w.component, {"1": w.component}),
         "option-wrong-object", "classifier"),
    Case("detectors: classes there twice", lambda w: refine(part(), {"1": w.component.with_preprocessing(
         by.Preprocessing(size=(8, 8)))}), "task-class-in-two-parts", "'1'"),
    Case("detectors: pictures as they are", lambda w: refine(part(), {"1": w.component}), "option-conflict", "size"),
    Case("detectors: too many crops", lambda w: further(w, crops=1000), "option-range", "crops"),
    Case("detectors: refined ones joined", lambda w: by.assemble([further(w)]), "option-wrong-object", "Refined"),
    Case("detectors: in padded form", lambda w: by.assemble([part()], form="padded"), "option-conflict", "form"),
]  # fmt: skip
