"""What people meet who join networks of different classes for the first time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.testing import chain
from shell import run

GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.arange(40) % 4
HOW = by.Preprocessing(size=(8, 8), channels=3)
BIRDS = ["Aramus guarauna (Limpkin)", "blue jay", "heron", "rail"]
THINGS = ["golf ball", "church", "truck", "ship"]


def save(image: torch.Tensor, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(place)


def part(names: list[str], task: object, width: int) -> by.Component:
    source = chain(4, (6, width))
    relevance = by.locate(source, (IMAGES, LABELS), classes=names, preprocessing=HOW, per_class=5)
    return by.disassemble(source, relevance, task=task)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two parts of different sources."""
    birds = {"limpkin": [BIRDS[0]], "blue jay": ["blue jay"]}
    whole = by.assemble([part(THINGS, ["golf ball", "church"], 8), part(BIRDS, birds, 9)])
    whole = whole.renamed({"church": "chapel"})
    return whole.save(tmp_path_factory.mktemp("both") / "both.safetensors")


def photographs(folder: Path, names: list[str], seed: int = 9) -> Path:
    """Three new pictures of each class."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        for k in range(3):
            image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator)
            save(image, folder / name / f"{k}.png")
    return folder


def test_an_assembly_is_scored_on_images_that_one_part_does_not_know(both: Path, tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", ["golf ball", "chapel"])
    result = run("evaluate", both, "--data", photos, "--no-latency", "--json")
    found = json.loads(result.stdout)
    assert found["per_class_images"] == {"golf ball": 3, "chapel": 3, "limpkin": 0, "blue jay": 0}
    assert "0 images are of a class of part 1 of both.safetensors" in result.stderr
    images = torch.cat([torch.stack([torch.from_numpy(_pixels(photos / name / f"{k}.png")) for k in range(3)])
                        for name in ("golf ball", "chapel")])  # fmt: skip
    said = by.load(both).predict(images, strangers="answer")
    right = sum(one == name for one, name in zip(said, ["golf ball"] * 3 + ["chapel"] * 3, strict=True))
    assert found["rows"][-1]["accuracy"] == pytest.approx(100 * right / 6)
    assert any("no image of limpkin, blue jay" in note for note in found["notes"])
    page = tmp_path / "page.html"
    run("report", both, "--data", photos, "-o", page)
    assert "of 6 images right, which show 2 of its 4 classes" in page.read_text(encoding="utf-8")


def _pixels(place: Path):
    import numpy as np

    return np.asarray(Image.open(place)).transpose(2, 0, 1).copy()


def test_each_line_on_images_that_are_left_out_names_its_part(both: Path, tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", ["golf ball", "limpkin", "blue jay"])
    error = run("evaluate", both, "--data", photos, "--no-latency").stderr
    for index, left in ((0, 6), (1, 3)):
        said = f"{left} of 9 images are of classes that part {index} of both.safetensors does not know"
        assert error.count(said) == 1
    nothing = photographs(tmp_path / "others", ["teapot", "kettle"])
    refused = run("evaluate", both, "--data", nothing, code=1).stderr
    assert "no name agrees" in refused
    assert "golf ball, chapel" in refused
    assert "brickyard rename" in refused
    assert "--class-names" not in refused
