"""Detectors as ONNX and as plain Python: the boxes that detect finds, in pixels of the picture."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.export import _onnx_boxes, export_html, export_module, export_onnx
from brickyard.outputs import _detections
from brickyard.outputs._detections import Detections
from brickyard.testing import chain, randomised
from conftest import needed_package
from errors import refused
from shell import run

onnxruntime = needed_package("onnxruntime")
needed_package("onnxscript")
needed_package("torchvision")

SIZE = (16, 16)
LIMITS = {"score": 0.3, "iou": 0.3, "most": 25}
GRIDS = {"strides": (2, 4)}
CODINGS = {
    "grid": by.Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="grid", **GRIDS),
    "sides": by.Boxes(classes=5, scores_at=0, boxes_at=5, scores="sigmoid", coding="sides", **GRIDS),
    "bins": by.Boxes(classes=5, scores_at=0, boxes_at=5, scores="sigmoid", coding="bins", bins=3, **GRIDS),
    "centre": by.Boxes(scores_at=4, boxes_at=0, coding="centre", outputs_first=True),
    "corners": by.Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="corners", scores="sigmoid"),
    "points": by.Boxes(
        scores_at=5,
        boxes_at=0,
        objectness_at=4,
        coding="sides",
        scores="sigmoid",
        joined="geometric",
        offset=0,
        **GRIDS,
    ),
    "deltas": by.Boxes(
        scores_at=5,
        boxes_at=0,
        background_at=4,
        coding="deltas",
        scores="softmax",
        weights=(10, 10, 5, 5),
        **GRIDS,
        anchors=(((2.5, 3),), ((4, 6),)),
    ),
}
HOWS: dict[str, dict[str, Any]] = {
    "grid": {"size": SIZE, "fit": "letterbox", "fill": 0.5, "order": "bgr"},
    "sides": {"size": SIZE, "fit": "crop", "crop": 0.8, "mean": (0.5,), "std": (0.3,)},
    "bins": {"size": SIZE, "fit": "pad", "place": "corner"},
    "centre": {"size": SIZE, "fit": "letterbox", "place": "corner"},
    "corners": {},
    "points": {"size": SIZE, "fit": "letterbox", "place": "corner", "fill": 0.4},
    "deltas": {"size": SIZE},
}


class Net(nn.Module):
    """Two grids with cells of 2 and 4 pixels, and boxes as they are coded."""

    def __init__(self, boxes: by.Boxes, classes: int = 5) -> None:
        super().__init__()
        self.boxes, more = boxes, boxes.others - boxes.box_outputs
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        self.down = nn.Conv2d(6, 6, 3, 2, 1)
        self.shapes = nn.ModuleList(nn.Conv2d(6, boxes.box_outputs, 1) for _ in range(2))
        self.sure = nn.ModuleList(nn.Conv2d(6, more + classes, 1) for _ in range(2))
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.stem(x))
        found = []
        for shape, sure, grid in zip(self.shapes, self.sure, (fine, torch.relu(self.down(fine))), strict=True):
            box, score = shape(grid).sigmoid() * (1 if self.boxes.strides else SIZE[0]), sure(grid)
            score = score.sigmoid() if self.boxes.scores == "probabilities" else score
            found.append(torch.cat([score, box] if self.boxes.boxes_at else [box, score], 1).flatten(2))
        joined = torch.cat(found, 2)
        return joined if self.boxes.outputs_first else joined.transpose(1, 2)


@functools.cache
def part(coding: str) -> by.Component:
    boxes, source = CODINGS[coding], Net(CODINGS[coding])
    images = torch.randint(0, 256, (20, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    rows = (torch.arange(20)[:, None] % 5 == torch.arange(5)).long()
    how = by.Preprocessing(channels=3, **HOWS[coding]) if HOWS[coding] else by.Preprocessing(channels=3)
    found = by.locate(source, (images, rows), outputs=boxes, per_class=4, preprocessing=how, classes=list("abcde"))
    return by.disassemble(source, found, task=["d", "b"], heal="none", budget=by.Budget(flops=0.9), select="mda")


def pictures(coding: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    sides = [SIZE] if not HOWS[coding] else [SIZE, (20, 33), (41, 18), (11, 12)]
    made = [torch.rand(1, 3, *one, generator=torch.Generator().manual_seed(k)) for k, one in enumerate(sides)]
    return [(one * 255).round().to(torch.uint8) if dtype == torch.uint8 else one for one in made]


def opened(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def about(file: Any) -> dict[str, Any]:
    return json.loads(file.get_modelmeta().custom_metadata_map["brickyard"])


# -- ONNX --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
def test_a_file_finds_the_boxes_that_detect_finds(coding: str, tmp_path: Path) -> None:
    component, bytes_ = part(coding), coding == "bins"
    record = export_onnx(component, tmp_path / "a.onnx", dtype="uint8" if bytes_ else "float32", **LIMITS)
    assert 0 < record.error < 1e-4
    file = opened(tmp_path / "a.onnx")
    outputs = [(one.name, one.shape[1:]) for one in file.get_outputs()]
    assert outputs == [("boxes", [4]), ("scores", []), ("classes", [])]
    assert json.loads(file.get_modelmeta().custom_metadata_map["classes"]) == ["d", "b"]
    assert about(file)["suppression"] == LIMITS
    counts = []
    for picture in pictures(coding, torch.uint8 if bytes_ else torch.float32):
        boxes, scores, classes = file.run(None, {"images": picture.numpy()})
        assert (boxes.dtype, scores.dtype, classes.dtype) == (np.float32, np.float32, np.int64)
        (wanted,) = component.detect(picture, **LIMITS)
        assert classes.tolist() == wanted.labels.tolist()
        assert np.allclose(boxes, wanted.boxes.numpy(), atol=1e-3)
        assert np.allclose(scores, wanted.scores.numpy(), atol=1e-5)
        counts.append(len(boxes))
        (other,) = component.detect(picture, **{**LIMITS, "iou": 0.9, "most": 300})
        assert len(other.labels) > len(classes)  # so that suppression was seen
    assert max(counts) > 3


def test_a_file_that_does_not_decode_says_how_its_outputs_are_read(tmp_path: Path) -> None:
    component, images = part("sides"), torch.rand(3, 3, 19, 24)
    record = export_onnx(component, tmp_path / "a.onnx", decode=False)
    assert record.error < 1e-5
    file = opened(tmp_path / "a.onnx")
    (outputs,) = map(torch.from_numpy, file.run(["outputs"], {"images": images.numpy()}))
    assert outputs.shape == (3, 6, 80)
    assert torch.allclose(outputs, component.logits(images), atol=1e-5)
    told = about(file)
    kind = Detections().reading(by.Boxes(**told["boxes"]), (3, *told["sides"]))
    for found, wanted in zip(kind.find(outputs), component.outputs.find(component.logits(images)), strict=True):
        assert torch.allclose(found.boxes, wanted.boxes, atol=1e-4)
        assert torch.equal(found.labels, wanted.labels)


def test_only_the_surest_candidates_are_compared(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(_detections, "CANDIDATES", 40)
    monkeypatch.setattr(_onnx_boxes, "CANDIDATES", 40)
    component, (picture, *_) = part("grid"), pictures("grid")
    export_onnx(component, tmp_path / "a.onnx", score=0.0, iou=0.3)
    boxes, _, classes = opened(tmp_path / "a.onnx").run(None, {"images": picture.numpy()})
    (wanted,) = component.detect(picture, score=0.0, iou=0.3)
    assert classes.tolist() == wanted.labels.tolist()
    assert np.allclose(boxes, wanted.boxes.numpy(), atol=1e-3)
    monkeypatch.undo()
    assert len(component.detect(picture, score=0.0, iou=0.3)[0].labels) > len(classes)


def test_a_file_with_other_boxes_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    inner = _onnx_boxes._suppressing
    changed = _onnx_boxes.Form(score=0.3, iou=0.6, most=300, decode=True)
    monkeypatch.setattr(_onnx_boxes, "_suppressing", lambda onnx, proto, form: inner(onnx, proto, changed))
    with refused("surgery-export-failed", "torch's boxes"):
        export_onnx(part("grid"), tmp_path / "a.onnx", score=0.3, iou=0.3)
    assert not list(tmp_path.iterdir())


def answer(boxes: list[list[float]], scores: list[float]) -> Any:
    given = torch.tensor(boxes, dtype=torch.float64)
    return _onnx_boxes._Answer(given, given, torch.tensor(scores, dtype=torch.float64)[:, None], 100)


def said(wanted: Any, *chosen: int, shift: float = 0.0, iou: float = 0.5, score: float = 0.25) -> bool:
    """Whether the check takes these boxes of torch's answer for the file's."""
    rows = list(chosen)
    found = wanted.placed[rows].float() + shift, wanted.scores[rows, 0].float(), torch.zeros(len(rows)).long()
    return not _onnx_boxes.compared(found, wanted, score, iou, 300)[1]


def test_what_rounding_may_turn_is_left_open_and_nothing_else() -> None:
    two = answer([[0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]], [0.9, 0.8, 0.7])  # an overlap of 0.5
    assert said(two, 0, 1, 2)
    assert said(two, 0, 2)
    assert not said(two, 0, 1, 2, iou=0.4)
    assert said(two, 0, 2, iou=0.4)
    assert not said(two, 0, 2, iou=0.6)
    assert not said(two, 0, 1)
    assert not said(two, 0, 1, 2, shift=0.02)
    assert not said(two, 0, 0, 1, 2)
    assert said(two, 0, 1, score=0.70001)
    assert said(two, 0, 1, 2, score=0.70001)
    assert not said(two, 0, 1, 2, score=0.75)
    same = answer([[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.9])  # either may be the surest
    assert said(same, 0)
    assert said(same, 1)
    assert not said(answer([[0, 0, 10, 10]], [0.9]), shift=float("nan"))


def test_what_a_file_cannot_be_is_said_before_any_work(tmp_path: Path, monkeypatch: Any) -> None:
    data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    classifier = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
    detector, both, path = part("grid"), by.assemble([part("grid")]), tmp_path / "a.onnx"
    monkeypatch.setattr("brickyard.export._onnx._on_cpu", lambda *_: pytest.fail("refused before any work"))
    with refused("option-conflict", "int8"):
        export_onnx(detector, path, int8=True, images=torch.rand(40, 3, *SIZE))
    with refused("option-without-effect", "iou"):
        export_onnx(detector, path, decode=False, iou=0.3)
    with refused("option-range", "score"):
        export_onnx(detector, path, score=1.5)
    for options in ({"score": 0.25}, {"decode": False}):
        with refused("option-without-effect", *options):
            export_onnx(classifier, path, **options)
    with refused("option-wrong-object"):
        export_onnx(both, path)
    with refused("option-wrong-object"):
        export_module(both, tmp_path / "a.py")
    with refused("option-wrong-object", ".onnx"):
        export_html(detector, tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path) -> None:
    file = part("centre").save(tmp_path / "part.safetensors")
    run("export", file, "-o", tmp_path / "a.onnx", "--score", 0.4, "--iou", 0.6, "--most", 7)
    assert about(opened(tmp_path / "a.onnx"))["suppression"] == {"score": 0.4, "iou": 0.6, "most": 7}
    run("export", file, "-o", tmp_path / "b.onnx", "--no-decode")
    assert [one.name for one in opened(tmp_path / "b.onnx").get_outputs()] == ["outputs"]
    given = ("--int8", "--calibration-data", tmp_path / "nowhere")
    assert "int8" in run("export", file, "-o", tmp_path / "c.onnx", *given, code=1).stderr  # before data are read
    assert "--iou" in run("export", file, "-o", tmp_path / "c.py", "--iou", 0.4, code=1).stderr


# -- plain Python ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", CODINGS)
def test_plain_python_finds_the_same_bits(coding: str, tmp_path: Path, monkeypatch: Any) -> None:
    component = part(coding)
    export_module(component, tmp_path / f"part_{coding}.py")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"part_{coding}")
    try:
        model = module.load()
        count = 0
        for dtype in (torch.float32, torch.uint8):
            for picture in pictures(coding, dtype):
                twice = torch.cat([picture, picture.flip(3)])
                for limits in ({}, LIMITS):
                    for found, wanted in zip(
                        module.find(model, twice, **limits), component.detect(twice, **limits), strict=True
                    ):
                        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
                        count += len(found[0])
        assert count > 20
    finally:
        del sys.modules[f"part_{coding}"]
    lines = (tmp_path / f"part_{coding}.py").read_text().splitlines()
    assert not [line for line in lines if "import " in line and "brickyard" in line]
    assert module.CLASSES == ("d", "b")


# -- a real detector ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_yolox_finds_the_same_boxes_in_photographs(shared: Path, tmp_path: Path) -> None:
    from brickyard.inputs import load_box_data
    from brickyard.sources._onnx import read_onnx

    train, test = (load_box_data(shared / f"data/coco128/{name}.parquet") for name in ("train", "test"))
    how = by.Preprocessing.of_detector("yolox", size=(416, 416))
    source = read_onnx(shared / "models/yolox_nano-coco80.onnx", boxes=by.Boxes.named("yolox")).model
    options: Any = {"outputs": "yolox", "per_class": 4, "preprocessing": how, "classes": train.classes}
    found = by.locate(source, train.subset(range(24)), task=[0, 2, 16], **options)
    whole = by.disassemble(source, found, task=[0, 2, 16], heal="none", budget=by.Budget(flops=1.0), select="mda")
    record = export_onnx(whole, tmp_path / "a.onnx", check_images=test.subset(range(3)), dtype="uint8")
    assert record.images == 9  # two random ones of each of three sizes, and three photographs
    file, count = opened(tmp_path / "a.onnx"), 0
    for index in range(10):
        picture = test.picture(index)
        boxes, scores, classes = file.run(None, {"images": picture.expand(3, -1, -1)[None].numpy()})
        (wanted,) = whole.detect(picture)
        assert classes.tolist() == wanted.labels.tolist()
        assert np.allclose(boxes, wanted.boxes.numpy(), atol=1e-3 * max(picture.shape))
        assert np.allclose(scores, wanted.scores.numpy(), atol=1e-4)
        count += len(boxes)
    assert count > 5
