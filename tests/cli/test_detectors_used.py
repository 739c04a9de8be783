"""Detectors on the command line: from a source and images with boxes to tables, CSV, JSON and drawings."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.assembly import refine
from brickyard.base._boxes import Boxes
from brickyard.inputs import load_box_data
from brickyard.outputs._outputs import find_outputs
from brickyard.sources import load_source
from brickyard.sources._resolve import answered, axes_of, fitted, preprocessing_of
from brickyard.testing import Detector, chain
from errors import refused
from shell import run

NAMES = ["ant", "bee", "cow", "dog"]
NET = """
from brickyard.testing import Detector, chain


def tiny():
    model = Detector()
    model.sure[0].weight.data *= 2
    return model

"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """Twelve photographs of two sizes with a box each, as COCO writes them, and a file that makes a detector."""
    folder: Path = tmp_path_factory.mktemp("detector")
    (folder / "images").mkdir()
    generator = np.random.default_rng(4)
    pictures, boxes = [], []
    for k in range(12):
        height, width = (48, 64) if k % 2 else (64, 40)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"images/{k}.png")
        pictures.append({"id": k, "file_name": f"images/{k}.png", "height": height, "width": width})
        boxes.append({"id": k, "image_id": k, "category_id": k % 4 + 1, "bbox": [4, 6, 20, 24], "iscrowd": 0})
    classes = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    (folder / "boxes.json").write_text(json.dumps({"images": pictures, "annotations": boxes, "categories": classes}))
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture(scope="module")
def component(place: Path) -> Path:
    """A component for two classes; its source and images in one size."""
    how = by.Preprocessing(size=(32, 32), fit="letterbox", channels=3)
    source = load_source(f"{place / 'net.py'}:tiny", boxes=Detector.boxes, classes=NAMES, preprocessing=how)
    data = load_box_data(place / "boxes.json")
    relevance = by.locate(source.model, data, outputs=Detector.boxes, preprocessing=how, classes=NAMES)
    part = by.disassemble(source.model, relevance, task=["bee", "dog"], budget=by.Budget(flops=0.9), select="mda")
    return part.save(place / "part.safetensors")


# -- sources -----------------------------------------------------------------------------------------------


def test_a_source_with_boxes_counts_its_classes(place: Path) -> None:
    source = load_source(f"{place / 'net.py'}:tiny", boxes=Detector.boxes, input_shape=(3, 32, 32))
    assert source.classes == ("0", "1", "2", "3")
    assert source.boxes == Detector.boxes
    graph = axes_of(source)
    assert graph.output_width == 4
    assert graph.network(torch.rand(2, 3, 32, 32)).shape == (2, 9, 80)
    with refused("task-class-count", "4 classes"):
        load_source(f"{place / 'net.py'}:tiny", boxes=Detector.boxes, input_shape=(3, 32, 32), classes=["a", "b"])
    with refused("option-type", "yolox"):
        load_source("zoo:cnn?classes=4", random_weights=True, boxes=3)  # type: ignore[arg-type]


def test_a_detector_without_a_word_of_it_is_refused_with_what_to_say(place: Path) -> None:
    with refused("trace-output", "--outputs yolox", "nanodet"):
        load_source(f"{place / 'net.py'}:tiny", input_shape=(3, 32, 32))
    with refused("trace-output", "outputs='yolox'"):
        by.locate(Detector(), (torch.rand(4, 3, 32, 32), torch.arange(4)))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("yolox", {"fit": "letterbox", "place": "corner", "order": "bgr", "mean": (0.0,), "std": (1 / 255,)}),
        ("yolov8", {"fit": "letterbox", "place": "centre", "order": "rgb", "mean": None, "fill": 114 / 255}),
        ("nanodet", {"order": "bgr", "size": (320, 320), "fill": 0.0}),
    ],
)
def test_a_family_implies_its_usual_preprocessing(family: str, expected: dict[str, Any]) -> None:
    how = by.Preprocessing.of_detector(family)
    assert {name: getattr(how, name) for name in expected} == expected
    assert by.Preprocessing.of_detector(family, (96, 64)) == how.changed({"size": (96, 64)})
    with refused("option-boxes", "yolox"):
        by.Preprocessing.of_detector("yoloxx")


def test_nanodet_takes_bytes_less_its_mean() -> None:
    how = by.Preprocessing.of_detector("nanodet")
    assert how.mean is not None
    assert how.std is not None
    byte = torch.tensor([10.0, 120.0, 250.0])  # blue, green, red
    wanted = (byte - torch.tensor([103.53, 116.28, 123.675])) / torch.tensor([57.375, 57.12, 58.395])
    assert torch.allclose((byte / 255 - torch.tensor(how.mean)) / torch.tensor(how.std), wanted, atol=1e-5)


def test_a_size_keeps_the_letterbox_of_a_detector() -> None:
    assert preprocessing_of(size="96", boxed=True) == by.Preprocessing(size=(96, 96))
    found = preprocessing_of(size="96", boxed=True)
    assert found is not None
    assert "fit" not in found.model_fields_set
    assert preprocessing_of(size="resize:96", boxed=True).model_fields_set >= {"fit"}  # type: ignore[union-attr]
    assert "fit" in preprocessing_of(size="96").model_fields_set  # type: ignore[union-attr]


# -- data --------------------------------------------------------------------------------------------------


def test_boxes_count_the_sources_classes_by_name(place: Path) -> None:
    data = load_box_data(place / "boxes.json")
    same = fitted(data, ["Dog", "cow", "eel", "ant"])
    assert same.classes == ("Dog", "cow", "eel", "ant")
    wanted = torch.stack([data.presence[:, 3], data.presence[:, 2], torch.zeros(12).long(), data.presence[:, 0]], 1)
    assert torch.equal(same.presence, wanted)
    assert [len(same.truth(k).labels) for k in range(4)] == [1, 0, 1, 1]  # bees are left out
    assert torch.equal(same.truth(3).boxes, data.truth(3).boxes)
    assert torch.equal(fitted(data, list("0123")).presence, data.presence)
    assert torch.equal(same.subset([3, 2]).presence, wanted[[3, 2]])
    with refused("data-unknown-class", "elk"):
        fitted(data, ["elk", "fox"])
    with refused("data-class-names"):
        data.relabelled([0, 1, 2, 4], NAMES)


def test_a_folder_of_photographs_is_labelled_by_the_detectors_own_boxes(place: Path) -> None:
    how = by.Preprocessing(size=(32, 32), fit="letterbox", channels=3)
    source = load_source(f"{place / 'net.py'}:tiny", boxes=Detector.boxes, preprocessing=how)
    data = answered(source, place / "images", find_outputs("boxes"))
    assert data.labels.shape == (12, 4)
    with torch.no_grad():
        rows = source.model(torch.stack([image.float() / 255 for image in data.images]))
    wanted = ((rows[..., 4:5] * rows[..., 5:]).amax(1) > 0.25).long()
    assert torch.equal(data.labels, wanted)
    assert 0 < int(wanted.sum()) < wanted.numel()


# -- commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def known_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny detector's form, as if it were that of YOLOX, whose cells are larger."""
    import brickyard.base._boxes as boxes

    monkeypatch.setitem(boxes.FAMILIES, "yolox", Detector.boxes)


def test_commands_go_from_boxes_to_a_component(place: Path, tmp_path: Path, known_family: None) -> None:
    net = f"{place / 'net.py'}:tiny"
    shown = run("show", net, "--outputs", "yolox", "--size", 32, "--json")
    assert json.loads(shown.stdout)["classes"] == list("0123")
    assert "usual for yolox" in shown.stderr
    found = run(
        *("disassemble", net, "--outputs", "yolox", "--size", 32, "--data", place / "boxes.json", "--std", "1,1,1"),
        *(
            "--mean",
            "0,0,0",
            "--task",
            "bee,dog",
            "--flops",
            0.9,
            "--select",
            "mda",
            "-o",
            tmp_path / "part.safetensors",
        ),
    )
    part = by.load(tmp_path / "part.safetensors")
    assert part.classes == ("bee", "dog")
    how = part.manifest.preprocessing
    assert (how.size, how.fit, how.place, how.order, how.std) == ((32, 32), "letterbox", "corner", "bgr", (1, 1, 1))
    assert "later" not in found.stdout
    run(
        *("locate", net, "--outputs", "yolox", "--size", 32, "--calibration", place / "images"),
        *("-o", tmp_path / "r.safetensors"),
    )
    assert by.load(tmp_path / "r.safetensors").boxes.classes == 4
    run("locate", net, "--outputs", "yoloy", "--data", place / "boxes.json", "-o", tmp_path / "q.safetensors", code=1)


def test_predict_tells_what_detect_finds(component: Path, place: Path) -> None:
    pictures = [place / f"images/{k}.png" for k in range(3)]
    given = ("--score", 0.3, "--iou", 0.4, "--most", 4)
    found = json.loads(run("predict", component, *pictures, *given, "--json").stdout)["predictions"]
    part = by.load(component)
    wanted = [part.detect([str(path)], score=0.3, iou=0.4, most=4)[0] for path in pictures]
    assert [len(answer["objects"]) for answer in found] == [len(one.labels) for one in wanted]
    assert sum(len(one.labels) for one in wanted) > 0
    for answer, one in zip(found, wanted, strict=True):
        boxes = torch.tensor([item["box"] for item in answer["objects"]]).reshape(-1, 4)
        assert torch.allclose(boxes.double(), one.boxes.double(), atol=0.01)
        assert [item["class"] for item in answer["objects"]] == [part.classes[k] for k in one.labels.tolist()]
    table = run("predict", component, *pictures, "--score", 0.3, "--csv", "-").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert {row["image"] for row in rows} == set(map(str, pictures))
    many = [len(one.labels) for one in part.detect(list(map(str, pictures)), score=0.3)]
    assert len(rows) == sum(max(1, count) for count in many)
    none = run("predict", component, pictures[0], "--score", 0.999999).stdout
    assert "nothing found" in none


def test_boxes_are_drawn_on_the_photograph(component: Path, place: Path, tmp_path: Path) -> None:
    run("predict", component, place / "images/1.png", "--score", 0.2, "--most", 2, "--draw", tmp_path / "drawn")
    with Image.open(tmp_path / "drawn/1.png") as drawn, Image.open(place / "images/1.png") as photograph:
        factor = drawn.width // photograph.width
        assert drawn.size == (photograph.width * factor, photograph.height * factor)
        plain = photograph.convert("RGB").resize(drawn.size, Image.Resampling.BICUBIC)
        assert (np.asarray(drawn) != np.asarray(plain)).any()


def test_options_of_the_other_kind_are_refused(component: Path, place: Path, tmp_path: Path) -> None:
    picture = place / "images/0.png"
    assert "--most" in run("predict", component, picture, "--top", 2, code=1).stderr
    from brickyard.testing import chain

    data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    part = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"]).save(tmp_path / "c.safetensors")
    assert "--score" in run("predict", part, picture, "--score", 0.4, code=1).stderr
    assert "detector" in run("export", component, "-o", tmp_path / "a.html", code=1).stderr


def test_evaluate_scores_a_detector(component: Path, place: Path) -> None:
    given = ("--data", place / "boxes.json", "--including-calibration", "--no-latency")
    found = json.loads(run("evaluate", component, *given, "--json").stdout)
    wanted = by.evaluate(
        by.load(component),
        fitted(load_box_data(place / "boxes.json", "test"), NAMES),
        including_calibration=True,
        latency=False,
    )
    assert found["rows"] == wanted.as_dict()["rows"]
    assert "--json" in run("evaluate", component, *given, "--csv", place / "x.csv", code=1).stderr


def test_yolox_is_cut_from_its_file(shared: Path) -> None:
    source = load_source(shared / "models" / "yolox_nano-coco80.onnx", boxes="yolox")
    assert source.preprocessing == by.Preprocessing.of_detector("yolox", (416, 416))
    assert len(source.classes) == 80
    assert source.boxes == Boxes.named("yolox")


# -- named further -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def breeds(place: Path) -> Path:
    """A classifier for pictures of any size."""
    images, how = (torch.rand(40, 3, 8, 8), torch.arange(40) % 4), by.Preprocessing(size=(8, 8), channels=3)
    located = by.locate(chain(), images, classes=["collie", "poodle", "spitz", "boxer"], preprocessing=how)
    part = by.disassemble(chain(), located, task=["collie", "poodle"], heal="none")
    return part.save(place / "breeds.safetensors")


def test_what_is_found_is_named_further(place: Path, component: Path, breeds: Path, tmp_path: Path) -> None:
    to = tmp_path / "refined.safetensors"
    said = run("assemble", component, "--refine", f"bee={breeds}", "--margin", "0.2", "-o", to)
    assert "named further" in said.stdout
    assert "collie, poodle" in said.stdout
    made = by.load(to)
    wanted = refine(by.assemble([by.load(component)]), {"bee": by.load(breeds)}, margin=0.2)
    picture = place / "images/0.png"
    told = json.loads(run("predict", to, picture, "--score", "0.05", "--json").stdout)["predictions"][0]["objects"]
    (found,) = wanted.detect(str(picture), score=0.05)
    assert [one["class"] for one in told] == [wanted.classes[k] for k in found.labels]
    assert [one["score"] for one in told] == pytest.approx(found.scores.tolist(), abs=1e-5)
    assert {"collie", "poodle"} & {one["class"] for one in told}
    assert made.manifest.margin == 0.2
    assert "named further" in run("show", to).stdout
    assert json.loads(run("show", to, "--json").stdout)["refines"] == ["bee"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--refine", "bee"], "give it as dog=breeds.safetensors"),
        (["--refine", "wasp=FILE"], "classes: bee, dog"),
        (["--margin", "0.2"], "needs --refine"),
        (["--refine", "bee=FILE", "--refine", "bee=FILE"], "each class once"),
    ],
)
def test_what_is_named_further_must_be_said(
    component: Path, breeds: Path, tmp_path: Path, words: list[str], why: str
) -> None:
    given = [word.replace("FILE", str(breeds)) for word in words]
    said = run("assemble", component, *given, "-o", tmp_path / "refined.safetensors", code=1)
    assert why in said.stderr
    assert not (tmp_path / "refined.safetensors").exists()


def test_a_refined_detector_is_not_joined_again(component: Path, breeds: Path, tmp_path: Path) -> None:
    to = refine(by.load(component), {"bee": by.load(breeds)}).save(tmp_path / "refined.safetensors")
    for command in (
        ["assemble", to, "-o", tmp_path / "x.safetensors"],
        ["rename", to, "bee=wasp", "-o", tmp_path / "x.safetensors"],
        ["report", to, "-o", tmp_path / "x.html"],
    ):
        assert "found a refined detector" in run(*command, code=1).stderr
