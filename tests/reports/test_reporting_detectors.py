"""Reports and cards of detectors: figures are those of evaluate, and pictures show the boxes that are found."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import brickyard as by
from brickyard.evaluation._sieve import Sieve
from brickyard.inputs import load_box_data
from brickyard.reports import model_card, report
from brickyard.reports._finds import finds_of
from brickyard.testing import Detector, chain
from shell import run

NAMES = ["ant", "bee", "cow", "dog"]
HOW = by.Preprocessing(size=(32, 32), fit="letterbox", channels=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """Two dozen pictures of a size each with two boxes, as COCO writes them."""
    folder: Path = tmp_path_factory.mktemp("reported")
    (folder / "images").mkdir()
    generator = np.random.default_rng(7)
    pictures, boxes = [], []
    for k in range(24):
        height, width = (48, 64) if k % 2 else (64, 40)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"images/{k}.png")
        pictures.append({"id": k, "file_name": f"images/{k}.png", "height": height, "width": width})
        for j in range(2):
            box = [2.0 + 9 * j, 3.0 + k % 5, 18.0, 20.0]
            boxes.append({"id": 2 * k + j, "image_id": k, "category_id": (k + j) % 4 + 1, "bbox": box, "iscrowd": 0})
    classes = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    (folder / "boxes.json").write_text(json.dumps({"images": pictures, "annotations": boxes, "categories": classes}))
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, Any]:
    """A source, its component for two classes, an assembly of two of these, and what they are scored on."""
    source = Detector()
    data = load_box_data(place / "boxes.json")
    relevance = by.locate(source, data, outputs=Detector.boxes, preprocessing=HOW, classes=NAMES)
    parts = [
        by.disassemble(source, relevance, task=task, budget=by.Budget(flops=0.9), select="mda")
        for task in (["bee", "dog"], ["ant"])
    ]
    return {"source": source, "data": data, "part": parts[0], "both": by.assemble(parts)}


def examples(made: dict[str, Any], name: str, *, source: bool, most_bytes: int = 10**6) -> Any:
    item = made[name]
    sieve = Sieve.of(item.manifest, including=True)
    known = [made["source"] if source else None] * len(item.manifest.parts)
    return finds_of(item, made["data"], known, most_bytes, sieve)


def overlap(one: Any, other: Any) -> float:
    """Intersection over union of two boxes, written anew."""
    across, down = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    both = max(0.0, across) * max(0.0, down)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


@pytest.mark.parametrize("name", ["part", "both"])
def test_the_page_tells_the_figures_of_evaluate(made: dict[str, Any], name: str) -> None:
    item, source = made[name], made["source"]
    sources = source if name == "part" else [source, source]
    scores = by.evaluate(item, made["data"], source=sources, latency=False, including_calibration=True)
    page = report([item], data=[made["data"]], sources=[source], including_calibration=True)
    row = scores.rows[-1]
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.S)
    assert lead is not None
    assert (
        f"{row.map50:.1f}% mean average precision on 24 images with {sum(scores.objects.values())} objects" in lead[1]
    )
    assert "boxes in images held back" in lead[1]
    assert "accuracy" not in page.split("<main")[1].lower()
    for label, value in scores.per_class.items():
        assert re.search(rf"{label}</bdi></th><td>{value:.1f}</td><td>{scores.objects[label]}</td>", page), label
    assert page.count('class="own"') == 1  # in the plot, beside a ring for the source
    assert page.count('class="ring restricted"') == 1


def test_without_images_the_page_says_that_no_precision_is_known(made: dict[str, Any]) -> None:
    page = report([made["part"]])
    assert "no precision is known: the file stores none, and no images with boxes were given" in page
    assert 'id="found"' not in page


def test_scores_that_a_file_keeps_are_on_the_page_and_the_card(made: dict[str, Any]) -> None:
    scores = by.evaluate(made["part"], made["data"], latency=False, including_calibration=True)
    kept = made["part"].with_manifest(scores=scores.remembered())
    assert f"{scores.rows[-1].map50:.1f}% mean average precision" in report([kept])
    front = yaml.safe_load(model_card(kept).split("---")[1])
    assert front["pipeline_tag"] == "object-detection"
    result = front["model-index"][0]["results"][0]
    assert result["task"]["type"] == "object-detection"
    assert result["metrics"][0] == {"type": "map", "name": "mAP50 (%)", "value": round(scores.rows[-1].map50, 4)}
    card = model_card(kept)
    for label, value in scores.per_class.items():
        assert f"| {label} | {value:.1f} | {scores.objects[label]} |" in card
    assert "classif" not in card.lower()
    assert "accurac" not in card.lower()
    assert "A detector of objects of 3 classes" in model_card(made["both"])


def test_examples_count_what_is_found(made: dict[str, Any]) -> None:
    found = examples(made, "part", source=True)
    assert found.images == 24
    assert len(found.examples) == 6
    shows = [k for k in range(24) if any(int(label) in (1, 3) for label in made["data"].truth(k).labels)]
    chosen = [shows[round(j * (len(shows) - 1) / 5)] for j in range(6)]
    for k, example in zip(chosen, found.examples, strict=True):
        truth = made["data"].truth(k)
        wanted = [
            (b.tolist(), {1: 0, 3: 1}[int(c)])
            for b, c in zip(truth.boxes, truth.labels, strict=True)
            if int(c) in (1, 3)
        ]
        own = made["part"].detect(made["data"].picture(k))[0]
        boxes = list(zip(own.boxes.tolist(), own.labels.tolist(), strict=True))
        left, hits = list(range(len(wanted))), 0
        for box, label in boxes:
            pairs = [(overlap(box, wanted[j][0]), j) for j in left if wanted[j][1] == label]
            if pairs and max(pairs)[0] >= 0.5:
                hits += 1
                left.remove(max(pairs)[1])
        assert (example.objects, example.hits, example.more) == (len(wanted), hits, len(boxes) - hits)
        assert [one.whose for one in example.versions] == ["found", "its source", "the data"]
        assert [one.boxes for one in example.versions][::2] == [len(boxes), len(wanted)]
    assert [one.whose for one in examples(made, "both", source=False).examples[0].versions] == ["found", "the data"]


def test_examples_show_the_picture_with_the_boxes(made: dict[str, Any]) -> None:
    example = examples(made, "part", source=False).examples[0]
    pictures = [np.asarray(_image(one.picture)) for one in example.versions]
    truth = made["data"].truth(0)
    box = truth.boxes[[int(c) for c in truth.labels].index(1)]
    factor = pictures[1].shape[0] / truth.sides[0]
    left, top, _, bottom = (float(value) * factor for value in box)
    x, middle = round(left) + 1, slice(round(top) + 40, round(bottom) - 40)  # the frame's left side, apart from labels
    colour = np.array([0, 114, 178])  # of the first class
    assert np.abs(pictures[1][middle, x].astype(float).mean(0) - colour).max() < 35
    plain = np.asarray(
        Image.fromarray(made["data"].picture(0).permute(1, 2, 0).numpy()).resize(pictures[1].shape[1::-1])
    )
    assert np.abs(plain[middle, x].astype(float).mean(0) - colour).max() > 35  # the control: no frame


def _image(url: str) -> Image.Image:
    assert url.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_pictures_are_left_out_beyond_their_bytes(made: dict[str, Any]) -> None:
    whole = examples(made, "part", source=False)
    first = sum(len(one.picture) for one in whole.examples[0].versions)
    assert len(examples(made, "part", source=False, most_bytes=first).examples) == 1
    assert examples(made, "part", source=False, most_bytes=first - 1).examples == ()


def test_classifiers_and_detectors_share_a_page_with_a_plot_each(made: dict[str, Any]) -> None:
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    classifier = by.disassemble(chain(), by.locate(chain(), images), task=["1", "3"])
    page = report([classifier, made["part"]], data=[images, made["data"]], including_calibration=True)
    assert page.count('<figure class="points">') == 2
    assert "accuracy, %</text>" in page
    assert "mAP50, %</text>" in page


def test_the_command_takes_images_with_boxes(made: dict[str, Any], place: Path, tmp_path: Path) -> None:
    for name in ("part", "both"):
        file = made[name].save(tmp_path / f"{name}.safetensors")
        given = ("--data", place / "boxes.json", "--including-calibration")
        run("report", file, *given, "-o", tmp_path / f"{name}.html")
        scores = by.evaluate(made[name], made["data"], latency=False, including_calibration=True)
        page = (tmp_path / f"{name}.html").read_text()
        assert f"{scores.rows[-1].map50:.1f}% mean average precision" in page
        assert page.count("data:image/jpeg") == 12
