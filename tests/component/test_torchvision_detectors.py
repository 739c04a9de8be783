"""RetinaNet, FCOS and SSD of torchvision, as they are: read, cut, stored and exported."""

from __future__ import annotations

import copy
import functools
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.base._boxes import FAMILIES
from brickyard.export import export_module, export_onnx
from brickyard.outputs._detections import Detections, within
from brickyard.surgery import cut
from brickyard.testing import randomised, zeroed_output
from conftest import needed_package
from errors import refused

detection = needed_package("torchvision.models.detection")
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator  # noqa: E402
from torchvision.models.detection.image_list import ImageList  # noqa: E402

SIDE = 64
NAMES = ("retinanet", "fcos", "ssd")


class Backbone(nn.Module):
    """Two maps, of cells of 8 and 16 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, width, 3, 2, 1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        return {"fine": fine, "coarse": self.down(fine)}


@functools.cache
def detector(name: str) -> Any:
    """A small one with four classes, in float64; its last layers say more than noise."""
    torch.manual_seed(3)
    if name == "retinanet":
        anchors = AnchorGenerator(((12, 17), (24, 33)), ((0.5, 1.0, 2.0),) * 2)
        model = detection.RetinaNet(Backbone(8), 4, anchor_generator=anchors)
    elif name == "fcos":
        model = detection.FCOS(Backbone(32), 4, anchor_generator=AnchorGenerator(((8,), (16,)), ((1.0,),) * 2))
    else:
        boxes = DefaultBoxGenerator([[2], [2, 3]], scales=[0.13, 0.4, 1.1], steps=[8, 16])
        backbone = Backbone(8)
        head = detection.ssd.SSDHead([8, 8], boxes.num_anchors_per_location(), 5)
        model = detection.ssd.SSD(backbone, boxes, (SIDE, SIDE), 5, head=head)
    randomised(model)
    if name == "fcos":  # distances are cut off at zero
        model.head.regression_head.bbox_reg.bias.data += 1.5
    return model.double().eval()


def images(count: int = 20) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


@functools.cache
def located(name: str) -> by.Relevance:
    rows = (torch.arange(20)[:, None] % 4 == torch.arange(4)).long()
    how = by.Preprocessing(size=(SIDE, SIDE), channels=3, mean=(0.4,), std=(0.3,))
    return by.locate(detector(name), (images(), rows), per_class=4, preprocessing=how, classes=list("abcd"))


def answered(model: Any, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the heads say, and the anchors, by torchvision itself."""
    with torch.no_grad():
        maps = list(model.backbone(x).values())
        heads = model.head(maps)
        anchors = model.anchor_generator(ImageList(x, [(SIDE, SIDE)] * len(x)), maps)[0]
    return heads, anchors


@pytest.mark.parametrize("name", NAMES)
def test_boxes_and_scores_are_those_of_torchvision(name) -> None:
    model, x = detector(name), images(2).double()
    graph = trace(model, x)
    kind = Detections().reading(graph.boxes, graph.input_shape)
    heads, anchors = answered(model, x)
    with torch.no_grad():
        boxes, scores = kind.decode(graph.network(x))
    logits, numbers = heads["cls_logits"], heads["bbox_regression"]
    if name == "ssd":
        wanted = logits.softmax(2)[..., 1:]
    elif name == "fcos":
        wanted = (logits.sigmoid() * heads["bbox_ctrness"].sigmoid()).sqrt()
    else:
        wanted = logits.sigmoid()
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-12)
    decode = model.box_coder.decode if name == "fcos" else model.box_coder.decode_single
    for own, coded in zip(boxes, numbers, strict=True):
        torch.testing.assert_close(own, decode(coded, anchors), rtol=1e-6, atol=1e-4)
        assert float((own - decode(coded * 1.01, anchors)).abs().max()) > 1e-3  # the control


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found_is_what_torchvision_finds(name) -> None:
    model, x = detector(name), images(1)
    limits = {"score_thresh": 0.0, "topk_candidates": 10**6, "detections_per_img": 10**6, "nms_thresh": 1.0}
    before = {key: getattr(model, key) for key in limits}
    vars(model).update(limits)
    resizing = model.transform
    resizing.min_size, resizing.max_size, resizing.size_divisible = (SIDE,), SIDE, 1
    with torch.no_grad():
        (found,) = model([x[0].double()])
    vars(model).update(before)
    graph = trace(model, x.double())
    kind = Detections().reading(graph.boxes, graph.input_shape)
    mean, std = (torch.tensor(v).reshape(3, 1, 1).double() for v in (resizing.image_mean, resizing.image_std))
    with torch.no_grad():
        boxes, scores = kind.decode(graph.network((x.double() - mean) / std))
    first = 1 if name == "ssd" else 0
    boxes = within(boxes[0], (SIDE, SIDE))
    best = found["scores"].argsort(descending=True)[:40].tolist()
    assert best
    for k in best:
        apart = (boxes - found["boxes"][k]).abs().amax(1)
        apart += (scores[0, :, int(found["labels"][k]) - first] - found["scores"][k]).abs()
        assert float(apart.min()) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_what_overlaps_is_suppressed_as_torchvision_does_it(name, monkeypatch) -> None:
    """Torchvision cuts boxes off at the borders first; without that, both keep the same ones."""
    module = importlib.import_module(type(detector(name)).__module__)
    monkeypatch.setattr(module.box_ops, "clip_boxes_to_image", lambda boxes, size: boxes)
    model, x = copy.copy(detector(name)), images(2).double()
    graph = trace(model, x)
    kind = Detections().reading(graph.boxes, graph.input_shape)
    with torch.no_grad():
        rows = graph.network(x)
        ranked = kind.decode(rows)[1][0].flatten().sort(descending=True).values
    least = float(ranked[300:302].mean())
    vars(model).update(score_thresh=least, nms_thresh=0.05, topk_candidates=10**6, detections_per_img=200)
    heads, anchors = answered(model, x)
    if name == "ssd":
        wanted = model.postprocess_detections(heads, [anchors] * 2, [(SIDE, SIDE)] * 2)
    else:
        ends = [len(anchors) * 4 // 5, len(anchors) // 5]
        split = {key: list(value.split(ends, 1)) for key, value in heads.items()}
        wanted = model.postprocess_detections(split, [list(anchors.split(ends))] * 2, [(SIDE, SIDE)] * 2)
    first = 1 if name == "ssd" else 0
    for own, theirs in zip(kind.find(rows, least, 0.05, 200), wanted, strict=True):
        best = theirs["scores"].argsort(descending=True)
        assert 5 < len(own.labels) < 200
        assert torch.equal(own.labels, theirs["labels"][best] - first)
        assert torch.allclose(own.scores, theirs["scores"][best], rtol=0, atol=1e-9)
        assert torch.allclose(own.boxes, theirs["boxes"][best], rtol=0, atol=1e-4)
    assert len(kind.find(rows, least, 0.9, 300)[0].labels) > len(wanted[0]["labels"])  # the control


def test_wrong_weights_and_a_background_among_the_classes_are_seen() -> None:
    model, x = detector("ssd"), images(2).double()
    graph = trace(model, x)
    heads, anchors = answered(model, x)
    with torch.no_grad():
        rows = graph.network(x)
    wanted = model.box_coder.decode_single(heads["bbox_regression"][0], anchors)
    (own, _), scores = Detections().reading(graph.boxes, graph.input_shape).decode(rows)
    assert float((own - wanted).abs().max()) < 1e-4
    wrong = by.Boxes(**{**graph.boxes.model_dump(), "weights": (1, 1, 1, 1)})
    (other, _), _ = Detections().reading(wrong, graph.input_shape).decode(rows)
    assert float((other - wanted).abs().max()) > 1
    shares = heads["cls_logits"].softmax(2)
    assert torch.allclose(scores, shares[..., 1:], rtol=0, atol=1e-12)
    assert float((scores - shares[..., :-1]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_network_gives_what_the_source_gives_with_zeros(name) -> None:
    model, x = detector(name), images(3).double()
    graph = trace(model, x)
    free = [axis for axis in graph.free if not axis.output and axis.size > 4]
    keep = {axis.name: torch.arange(0, axis.size, 2) for axis in free[:3]} | {graph.output.name: torch.tensor([3, 1])}
    found, wanted = cut(graph, keep)(x), zeroed_output(graph, keep, x)
    assert found.shape[1] == graph.boxes.others + 2
    assert torch.allclose(found, wanted, rtol=0, atol=1e-10)
    other = {**keep, free[0].name: torch.arange(1, free[0].size, 2)}
    assert not torch.allclose(found, zeroed_output(graph, other, x))


@pytest.mark.parametrize("name", NAMES)
def test_a_component_is_stored_and_finds_the_sources_boxes(name, tmp_path) -> None:
    source, relevance = detector(name), located(name)
    assert relevance.boxes is not None
    part = by.disassemble(source, relevance, task=[2, 0], heal="none", select="mda", budget=by.Budget(flops=1.0))
    part.save(tmp_path / "part.safetensors")
    again = by.load(tmp_path / "part.safetensors")
    x = images(2)
    assert torch.equal(again.logits(x), part.logits(x))
    heads, _ = answered(source, part.preprocess(x).double())
    boxes, scores = part.outputs.decode(part.logits(x).double())
    logits = heads["cls_logits"]
    if name == "ssd":  # classes compete: the task's and the background
        wanted = logits[..., [3, 1, 0]].softmax(2)[..., :2]
    else:
        wanted = logits[..., [2, 0]].sigmoid()
        wanted = (wanted * heads["bbox_ctrness"].sigmoid()).sqrt() if name == "fcos" else wanted
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5)
    graph = trace(source, x.double())
    with torch.no_grad():
        whole = Detections().reading(graph.boxes, graph.input_shape).decode(graph.network(part.preprocess(x).double()))
    assert float((boxes - whole[0]).abs().max()) < 1e-4
    assert float((scores - whole[1][..., [1, 3]]).abs().max()) > 1e-2  # the control: of other classes


@pytest.mark.parametrize("name", ["ssd", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[:2])])
def test_a_smaller_component_is_repaired_and_exported(name, tmp_path, monkeypatch) -> None:
    part = by.disassemble(detector(name), located(name), task=[2, 0], budget=by.Budget(flops=0.7, factors=False))
    assert part.manifest.selection.flops <= 0.7 * part.manifest.source.flops
    assert part.manifest.heal.layers > 0
    part = part.to(torch.float32)
    export_module(part, tmp_path / f"alone_{name}.py")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(f"alone_{name}")
    limits = {"score": 0.1, "iou": 0.3, "most": 30}
    for found, wanted in zip(
        module.find(module.load(), images(2), **limits), part.detect(images(2), **limits), strict=True
    ):
        assert len(found[0]) > 5
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    export_onnx(part, tmp_path / "part.onnx")  # checked against torch
    assert (tmp_path / "part.onnx").stat().st_size > 1000


def test_known_anchors_are_those_of_torchvision() -> None:
    from torchvision.models.detection.retinanet import _default_anchorgen

    for own, wanted in zip(FAMILIES["retinanet"].anchors, _default_anchorgen().cell_anchors, strict=True):
        assert own == tuple((float(one[2] - one[0]), float(one[3] - one[1])) for one in wanted)


def test_a_file_of_ones_own_may_make_one(tmp_path) -> None:
    from brickyard.sources import load_source

    text = (
        "from torchvision.models.detection import ssdlite320_mobilenet_v3_large as make\n\n"
        "def net():\n    return make(weights=None, weights_backbone=None, num_classes=4)\n"
    )
    (tmp_path / "mine.py").write_text(text)
    source = load_source(f"{tmp_path / 'mine.py'}:net", random_weights=True)
    how = source.preprocessing
    assert (how.fit, how.size, how.mean, how.std) == ("resize", (320, 320), (0.5,) * 3, (0.5,) * 3)
    assert source.boxes is not None
    assert source.boxes.places((320, 320)) == 3234
    assert len(source.classes) == 3


def test_other_detectors_and_descriptions_are_refused_by_name() -> None:
    faster = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
    for model in (faster, detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)):
        with refused("trace-output", type(model).__name__):
            trace(model, images(2))
    with refused("option-boxes", "RetinaNet"):
        trace(detector("retinanet"), images(2).double(), boxes=by.Boxes.named("yolox"))
    with refused("option-boxes", "60 x 52", "multiples"):
        trace(detector("retinanet"), images(2).double()[:, :, :60, :52])
    assert not detector("retinanet").training
    for wrong in (
        {"coding": "deltas", "strides": (8,)},
        {"coding": "sides", "strides": (8,), "anchors": (((8, 8),),)},
        {"coding": "corners", "scores": "softmax"},
        {"coding": "corners", "joined": "geometric"},
        {"coding": "corners", "background_at": 4},
    ):
        with refused("option-boxes"):
            by.Boxes(scores_at=5, boxes_at=0, **wrong)
