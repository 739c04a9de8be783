"""Families and models of detectors as torchvision has them: anchors, names, preprocessing, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from brickyard import Boxes, Preprocessing
from brickyard.axes import trace
from brickyard.base._boxes import FAMILIES, family_of
from brickyard.outputs._detections import Detections
from brickyard.sources import load_source
from brickyard.sources._names import coco_names
from conftest import needed_package
from errors import refused

detection = needed_package("torchvision.models.detection")
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402
from torchvision.models.detection.retinanet import _default_anchorgen  # noqa: E402

PYRAMID = (16, 8, 4, 2, 1)  # cells of 8 to 128 pixels in 128
GENERATORS: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "retinanet": (_default_anchorgen(), 128, PYRAMID),
    "fcos": (AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5), 128, PYRAMID),
    "ssd": (
        DefaultBoxGenerator(
            [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
            scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
            steps=[8, 16, 32, 64, 100, 300],
        ),
        300,
        (38, 19, 10, 5, 3, 1),
    ),
    "ssdlite": (DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95), 320, (20, 10, 5, 3, 2, 1)),
}


def save(path: Path) -> Path:
    save_file({"weight": torch.zeros(2, 2)}, path)
    return path


@pytest.mark.parametrize("name", GENERATORS)
def test_the_anchors_of_a_family_are_those_of_torchvision(name: str) -> None:
    generator, side, cells = GENERATORS[name]
    boxes = FAMILIES[name].sized(FAMILIES[name].others + 3)
    maps = [torch.zeros(1, 1, count, count, dtype=torch.float64) for count in cells]
    (anchors,) = copy.deepcopy(generator)(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), maps)
    assert boxes.places((side, side)) == len(anchors)
    kind = Detections().reading(boxes, (3, side, side))
    still = torch.zeros(1, boxes.outputs, len(anchors), dtype=torch.float64)
    if name == "fcos":  # from the middle of an anchor, a share of its size each way
        still[:, :4] = 0.5
    (found,), _ = kind.decode(still)
    assert torch.allclose(found, anchors.double(), rtol=0, atol=1e-4)
    (other,), _ = kind.decode(still + 0.01)
    assert not torch.allclose(other, anchors.double(), rtol=0, atol=1e-2)


def test_a_family_is_told_by_its_anchors() -> None:
    assert [family_of(FAMILIES[name]) for name in FAMILIES] == list(FAMILIES)
    other = Boxes(**{**FAMILIES["ssdlite"].model_dump(), "strides": (8,), "anchors": (((9.0, 9.0),),)})
    assert family_of(other) == "ssd"
    assert family_of(Boxes(**{**FAMILIES["fcos"].model_dump(), "strides": (8, 16)})) is None


def test_coco_has_names_for_classes_and_for_numbers() -> None:
    names = coco_names(91)
    assert len(set(names)) == 91
    assert [name for name in names if not name.startswith("unused")] == coco_names()
    assert (names[0], names[1], names[12], names[90]) == ("unused 0", "person", "unused 12", "toothbrush")
    assert coco_names(90) == names[1:]


def test_a_detector_of_torchvision_is_a_source_by_name(tmp_path: Path) -> None:
    source = load_source("torchvision:ssdlite320_mobilenet_v3_large", random_weights=True)
    assert (source.classes[0], len(source.classes), source.input_shape) == ("person", 90, (3, 320, 320))
    assert source.preprocessing == Preprocessing.of_detector("ssdlite").changed({"mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert source.boxes is not None
    known = FAMILIES["ssdlite"]
    assert source.boxes.strides == pytest.approx(known.strides)
    for own, wanted in zip(source.boxes.anchors, known.anchors, strict=True):
        assert torch.allclose(torch.tensor(own), torch.tensor(wanted))
    with refused("option-conflict", "file.py:function"):
        load_source("torchvision:ssd300_vgg16", weights=save(tmp_path / "some.safetensors"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "crops"),
        ("maskrcnn_resnet50_fpn", "mask"),
        ("keypointrcnn_resnet50_fpn", "key points"),
    ],
)
def test_detectors_of_other_kinds_are_refused_with_the_reason(name: str, why: str) -> None:
    with refused("trace-output", "RCNN cannot be cut", why):
        load_source(f"torchvision:{name}", random_weights=True)


def test_detectors_with_queries_are_refused_with_the_reason() -> None:
    class DetrForObjectDetection(nn.Module):
        """As transformers calls its own."""

        __module__ = "transformers.models.detr.modeling_detr"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with refused("trace-output", "DetrForObjectDetection", "queries"):
        trace(DetrForObjectDetection(), torch.rand(2, 3, 8, 8))
