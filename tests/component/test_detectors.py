"""Components of detectors: cut exactly, healed, stored, asked in pictures' own pixels, and scored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import brickyard as by
from brickyard import BrickyardError
from brickyard.axes import trace
from brickyard.evaluation import faithfulness, features
from brickyard.export import export_html, export_onnx, torch_program
from brickyard.healing._distil import distil_network
from brickyard.outputs._detections import Detections
from brickyard.reports import model_card
from brickyard.surgery import cut
from brickyard.testing import randomised, zeroed_output
from brickyard.training import distil
from errors import refused

SIZE = (16, 16)
SEPARATE = by.Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="grid", strides=(2, 4))
JOINT = by.Boxes(classes=5, scores_at=0, boxes_at=5, scores="sigmoid", coding="bins", bins=3, strides=(2, 4))
FIRST = by.Boxes(scores_at=4, boxes_at=0, coding="centre", scores="sigmoid", outputs_first=True)


class Detector(nn.Module):
    """Two grids; boxes, objectness and scores by layers of their own, or by one layer."""

    def __init__(self, boxes: by.Boxes, classes: int = 5) -> None:
        super().__init__()
        self.boxes = boxes
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.SiLU())
        widths = (8, 10)
        if boxes.objectness_at is not None:
            self.scores, self.sides, self.object = (
                nn.ModuleList(nn.Conv2d(width, count, 1) for width in widths) for count in (classes, 4, 1)
            )
        else:
            self.heads = nn.ModuleList(nn.Conv2d(width, boxes.box_outputs + classes, 1) for width in widths)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        found = []
        for k, grid in enumerate((fine, self.down(fine))):
            if self.boxes.objectness_at is None:
                found.append(self.heads[k](grid).flatten(2))
            else:
                parts = [self.sides[k](grid), self.object[k](grid).sigmoid(), self.scores[k](grid).sigmoid()]
                found.append(torch.cat(parts, 1).flatten(2))
        joined = torch.cat(found, 2)
        return joined if self.boxes.outputs_first else joined.transpose(1, 2)


FORMS = {"separate": SEPARATE, "joint": JOINT, "outputs first": FIRST}


@pytest.fixture(params=FORMS)
def boxes(request: Any) -> by.Boxes:
    return FORMS[request.param]


def images(count: int = 24) -> Tensor:
    return torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def rows(count: int = 24) -> Tensor:
    return (torch.arange(count)[:, None] % 5 == torch.arange(5)).long()


def located(boxes: by.Boxes, **more: Any) -> tuple[nn.Module, by.Relevance]:
    source = Detector(boxes)
    return source, by.locate(source, (images(), rows()), outputs=boxes, per_class=4, **more)


def outputs_first(source: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        found = source(x)
    return found if source.boxes.outputs_first else found.transpose(1, 2)


def test_scores_are_the_axis_that_a_task_chooses(boxes: by.Boxes) -> None:
    graph = trace(Detector(boxes), images(2), boxes=boxes)
    assert graph.output is not None
    assert graph.output.size == graph.output_width == 5
    kept = [axis for axis in graph.axes if "boxes" in axis.told]
    assert sum(axis.size for axis in kept) == boxes.others
    assert {axis.name for axis in graph.free} == {"stem.0", "down.0"}


def test_a_cut_detector_equals_its_source_with_channels_at_zero(boxes: by.Boxes) -> None:
    source, x = Detector(boxes).double(), images(3).double()
    graph = trace(source, x, boxes=boxes)
    keep = {graph.output.name: torch.tensor([3, 1]), "stem.0": torch.tensor([0, 2, 3, 7]), "down.0": torch.arange(4)}
    found, wanted = cut(graph, keep)(x), zeroed_output(graph, keep, x)
    assert found.shape == (3, boxes.others + 2, 80)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    other = zeroed_output(graph, {**keep, "down.0": torch.arange(1, 5)}, x)
    assert not torch.allclose(found, other)


def test_a_whole_component_says_what_its_source_says_of_the_tasks_classes(boxes: by.Boxes) -> None:
    source, relevance = located(boxes)
    part = by.disassemble(source, relevance, task=[4, 1], heal="none", budget=by.Budget(flops=1.0), select="mda")
    own, whole = part(images(3)), outputs_first(source, images(3))
    assert torch.allclose(own, whole[:, list(relevance.boxes.kept((4, 1)))], atol=1e-6)
    every = Detections().reading(relevance.boxes, part.input_shape)
    with torch.no_grad():
        own = part(images(3))
    for mine, theirs in zip(part.outputs.find(own, 0.1), every.find(whole, 0.1, most=10_000), strict=True):
        for place, k in enumerate((4, 1)):
            few = int((mine.labels == place).sum())
            wanted = theirs.of(theirs.labels == k)
            assert torch.allclose(mine.scores[mine.labels == place], wanted.scores[:few], atol=1e-6)
            assert few or not len(wanted.scores)


@pytest.mark.parametrize("select", ["damage", "mda", "l1"])
def test_a_detector_is_cut_healed_and_stored(boxes: by.Boxes, select: str, tmp_path: Any) -> None:
    source, relevance = located(boxes)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    part = by.disassemble(source, relevance, task=[4, 1], budget=by.Budget(flops=0.7), select=select)
    assert part.manifest.selection.flops <= 0.7 * part.manifest.source.flops
    again = by.disassemble(source, relevance, task=[4, 1], budget=by.Budget(flops=0.7), select=select)
    read = by.load(part.save(tmp_path / "part.safetensors"))
    x = images(5)
    assert torch.equal(part(x), again(x))
    assert torch.equal(part(x), read(x))
    assert read.detect(x, score=0.0, most=3)[0].boxes.shape == (3, 4)
    assert str(read) == str(part)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_a_refit_brings_answers_nearer_to_the_sources() -> None:
    source, relevance = located(JOINT)

    def error(heal: str) -> float:
        keep = {"task": [0, 2], "budget": by.Budget(flops=0.6, factors=False), "select": "l1"}
        part = by.disassemble(source, relevance, heal=heal, **keep)
        own = outputs_first(source, images(40)[24:])[:, list(JOINT.kept((0, 2)))]
        return float((part(images(40)[24:]) - own).square().mean())

    assert error("refit") < 0.5 * error("none")


def test_relevances_and_their_files_know_how_boxes_are_read(tmp_path: Any) -> None:
    source, relevance = located(SEPARATE)
    assert relevance.boxes == SEPARATE.sized(10)
    read = by.load(relevance.save(tmp_path / "found.safetensors"))
    assert read.boxes == relevance.boxes
    part = by.disassemble(source, read, task=[0], heal="none", budget=by.Budget(flops=1.0), select="mda")
    assert part.classes == ("0",)


class Constant(nn.Module):
    """Says the same of every image: one box of class 1, at (4, 2, 12, 8) of an input of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, 6, 16)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([4.0, 2.0, 12.0, 8.0, 0.1, 0.8]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x)).flatten(2)


CORNERS = by.Boxes(scores_at=4, boxes_at=0, coding="corners", outputs_first=True)


def constant(**how: Any) -> by.Component:
    preprocessing = by.Preprocessing(size=SIZE, channels=3, **how)
    source = Constant()
    relevance = by.locate(
        source,
        (torch.randint(0, 255, (8, 3, 16, 16), dtype=torch.uint8), rows(8)[:, :2] | torch.tensor([[0, 1]])),
        outputs=CORNERS,
        preprocessing=preprocessing,
        classes=["cat", "dog"],
        task=["dog"],
    )
    return by.disassemble(source, relevance, task=["dog"], heal="none", budget=by.Budget(flops=1.0), select="mda")


@pytest.mark.parametrize(
    ("how", "sides", "box"),
    [
        ({}, (16, 16), (4, 2, 12, 8)),
        ({}, (32, 64), (16, 4, 48, 16)),
        ({"fit": "letterbox", "place": "corner"}, (32, 64), (16, 8, 48, 32)),
        ({"fit": "letterbox"}, (32, 64), (16, 0, 48, 16)),  # four rows of filling above; cut off at the picture
        ({"fit": "crop"}, (16, 32), (12, 2, 20, 8)),
    ],
)
def test_boxes_are_in_the_pictures_own_pixels(how: dict, sides: tuple[int, int], box: tuple) -> None:
    part = constant(**how)
    picture = torch.randint(0, 255, (3, *sides), dtype=torch.uint8)
    (found,) = part.detect(picture)
    assert found.boxes.tolist() == [pytest.approx(box)]
    ((answer,),) = part.predict([picture])
    assert (answer["class"], answer["box"]) == ("dog", pytest.approx(box))
    assert answer["score"] == pytest.approx(0.8)
    mixed = part.predict([picture, torch.randint(0, 255, (3, 16, 16), dtype=torch.uint8)])
    assert mixed[0] == [answer]
    assert len(mixed) == 2
    assert part.detect(picture, score=0.85)[0].boxes.shape == (0, 4)


def drawn_data(tmp_path: Any, count: int = 12) -> Any:
    import numpy as np
    from PIL import Image

    from brickyard.inputs import load_box_data

    generator = np.random.default_rng(7)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for k in range(count):
        Image.fromarray(generator.integers(0, 255, (20, 24 + k, 3), dtype=np.uint8)).save(tmp_path / f"images/{k}.png")
        lines = [f"{(k + i) % 5} 0.4 0.5 0.{2 + i} 0.{3 + i}" for i in range(1 + k % 3)]
        (tmp_path / f"labels/{k}.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a, b, c, d, e]")
    return load_box_data(tmp_path)


def test_images_with_boxes_locate_heal_and_score(tmp_path: Any) -> None:
    data, source = drawn_data(tmp_path), Detector(SEPARATE)
    how = by.Preprocessing(size=SIZE, fit="letterbox", channels=3, fill=0.5)
    relevance = by.locate(source, data.subset(range(8)), outputs=SEPARATE, preprocessing=how, classes=data.classes)
    whole = by.disassemble(source, relevance, task=["b", "d"], heal="none", budget=by.Budget(flops=1.0), select="mda")
    scores = by.evaluate(whole, data, source=source, latency=False)
    assert [row.name for row in scores.rows] == ["restricted", "component"]
    assert scores.row("component").drop == 0
    assert scores.overlap.left_out > 0
    assert scores.row("component").images == 12 - scores.overlap.left_out
    half = by.disassemble(source, relevance, task=["b", "d"], heal="none", budget=by.Budget(flops=0.4), select="l1")
    assert by.evaluate(half, data, source=source, latency=False).row("component").drop != 0
    with refused("data-seen-in-training"):
        by.evaluate(half, data.subset(range(8)), latency=False)
    with refused("data-no-labels", "load_box_data"):
        by.evaluate(half, (images(), rows()), latency=False)


def test_pictures_of_several_sizes_need_a_size(tmp_path: Any) -> None:
    with refused("data-not-batchable", "letterbox"):
        by.locate(Detector(SEPARATE), drawn_data(tmp_path), outputs=SEPARATE)


@pytest.mark.parametrize(
    ("boxes", "code", "words"),
    [
        (
            by.Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="grid", strides=(2, 8)),
            "option-boxes",
            ["80", "68"],
        ),
        (by.Boxes(**{**SEPARATE.model_dump(), "classes": 7}), "option-boxes", ["10 outputs"]),
        (by.Boxes(scores_at=4, boxes_at=0, coding="centre", outputs_first=True), None, []),
        ("one", "data-label-mismatch", []),
        ("yoloxx", "option-choice", ["yolox"]),
        (3, "option-type", ["yolox"]),
    ],
)
def test_a_description_that_does_not_fit_is_refused(boxes: Any, code: str | None, words: list[str]) -> None:
    call = lambda: by.locate(Detector(SEPARATE), (images(), rows()), outputs=boxes)  # noqa: E731
    if code is None:  # places taken for outputs: 76 classes, of which the labels have 5
        code, words = "data-label-out-of-range", ["76"]
    with refused(code, *words):
        call()


def test_what_a_detector_cannot_do_is_one_error(tmp_path: Any) -> None:
    source, relevance = located(SEPARATE)
    part = by.disassemble(source, relevance, task=[0, 2], heal="none", budget=by.Budget(flops=1.0), select="mda")
    with refused("option-conflict"):
        by.disassemble(source, relevance, task=[0, 2], reject=True)
    with refused("option-conflict", "int8"):
        export_onnx(part, tmp_path / "part.onnx", int8=True, images=images())
    with refused("option-wrong-object", "detector"):
        by.disassemble(source, relevance, task={"both": [0, 2]})
    with refused("option-conflict"):
        by.disassemble(source, relevance, task=[0, 2], decision_thresholds=0.4)
    with refused("option-wrong-object", "detector"):
        by.finetune(part, (images(), rows()))
    for call in (
        lambda: by.disassemble(source, relevance, task=[0], budget=by.Budget(flops=0.9), select="taylor"),
        lambda: distil(part, images(), like="zoo:cnn?width=0.125"),
        lambda: export_html(part, tmp_path / "part.html"),
        lambda: torch_program(part),
        lambda: features(part, (images(), rows())),
        lambda: faithfulness(source, relevance, [0], (images(), rows())),
    ):
        with refused("option-wrong-object", "detector"):
            call()
    assert list(tmp_path.iterdir()) == []
    chain = by.disassemble(*_classifier(), task=["0", "1"])
    with refused("option-conflict", "predict"):
        chain.detect(images(1))


def test_training_towards_the_source_brings_scores_and_boxes_closer() -> None:
    source, _ = located(SEPARATE)
    graph = trace(source, images(2), boxes=SEPARATE)
    kind = Detections().reading(graph.boxes, graph.input_shape)
    kept = graph.boxes.kept((0, 2))
    keep = {graph.output.name: torch.tensor([0, 2]), "down.0": torch.arange(4)}
    x = images(24)
    found = cut(graph, keep)

    def apart() -> float:
        with torch.no_grad():
            wanted = graph.network(x[16:])[:, list(kept)]
            return float((kind.compared(found(x[16:]), wanted) - kind.compared(wanted, wanted)).square().sum(1).mean())

    before = apart()
    report = distil_network(
        graph.network, found, kept, [x[:16]], [x[16:]], outputs=kind, steps=24, batch_size=8, lr=1e-2
    )
    assert report.kl_before == pytest.approx(before, rel=1e-5)
    assert report.kl_after == pytest.approx(apart(), rel=1e-5)
    assert report.kl_after < 0.7 * before
    assert report.agreement_after >= report.agreement_before


def test_a_component_may_be_trained_towards_its_source() -> None:
    source, relevance = located(SEPARATE)
    options = {"task": [0, 2], "budget": by.Budget(flops=0.8)}
    part = by.disassemble(source, relevance, heal="distil", minutes=0.01, batch_size=4, **options)
    assert part.manifest.heal.method == "distil"
    assert part.manifest.heal.steps > 0
    assert part.manifest.agreement is not None


def _classifier() -> tuple[nn.Module, by.Relevance]:
    from brickyard.testing import chain

    source = chain()
    return source, by.locate(source, (images(), torch.arange(24) % 4))


def test_a_summary_and_a_card_tell_of_boxes() -> None:
    source, relevance = located(SEPARATE)
    part = by.disassemble(source, relevance, task=[0, 2], budget=by.Budget(flops=0.9))
    assert part.manifest.agreement is not None
    assert f"{part.manifest.agreement[1]:,} boxes in images held back" in str(part)
    assert "scaled" not in str(part)
    card = model_card(part)
    assert "pipeline_tag: object-detection" in card
    assert "model.detect(" in card
    assert "predict_proba" not in card


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 4}, ["4 classes"]),
        ({"classes": None}, ["None classes"]),
        ({"strides": [2, 8]}, ["places"]),
        ({"boxes_at": 3}, ["overlap"]),
        ({"coding": "corners"}, ["strides"]),
        (None, ["2 outputs"]),
    ],
)
def test_files_whose_boxes_do_not_fit_are_refused(change: Any, words: list[str], tmp_path: Any) -> None:
    source, relevance = located(SEPARATE)
    part = by.disassemble(source, relevance, task=[0, 2], heal="none", budget=by.Budget(flops=1.0), select="mda")
    path = part.save(tmp_path / "part.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in part.state_dict() if name.startswith("network.")}
        text = dict(file.metadata())
    ((key, value),) = [(key, json.loads(value)) for key, value in text.items() if "manifest" in value]
    manifest = value["manifest"]
    manifest["boxes"] = None if change is None else {**manifest["boxes"], **change}
    save_file(tensors, path, {**text, key: json.dumps(value)})
    with pytest.raises(BrickyardError) as caught:
        by.load(path)
    assert caught.value.code.startswith("file-"), caught.value
    assert all(word in str(caught.value) for word in words), caught.value


def test_boxes_that_are_no_numbers_are_not_found() -> None:
    kind = Detections().reading(by.Boxes(scores_at=4, boxes_at=0, coding="centre"), (3, 16, 16))
    rows = torch.tensor(
        [[8.0, 8.0, 4.0, 4.0, 0.9], [8.0, torch.nan, 4.0, 4.0, 0.9], [torch.inf, 8.0, torch.inf, 4, 0.9]]
    )
    (found,) = kind.find(rows.T[None])
    assert found.boxes.tolist() == [[6.0, 6.0, 10.0, 10.0]]
