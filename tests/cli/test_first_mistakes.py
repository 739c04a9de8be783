"""What people meet who join networks of different classes for the first time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.testing import chain
from conftest import needed_package
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


NET = """
import torch
from torch import nn


class Asked(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(6, classes)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.arange(classes, 0, -1.0))

    def forward(self, x):
        return self.linear(self.pool(torch.relu(self.conv(x))).flatten(1))


def few():
    return Asked(4)


def many():
    return Asked(1000)
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A file of networks that answer every picture with their first class."""
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


@pytest.mark.parametrize("verb", ["locate", "disassemble"])
@pytest.mark.parametrize("option", ["--calibration", "--data"])
def test_unknown_classes_are_refused_before_the_source_is_asked(
    verb: str, option: str, net: Path, tmp_path: Path
) -> None:
    photos = photographs(tmp_path / "photos", [BIRDS[0], "heron"])
    asked = (verb, f"{net}:few", option, photos, "--size", 8, "--class-names", ",".join(BIRDS), "-o", tmp_path / "out")
    error = run(*asked, "--task", "Limpkin", code=1).stderr
    assert f"did you mean '{BIRDS[0]}'?" in error
    assert "asking the source" not in error
    assert "own answers" not in error
    assert "locating in" not in error
    assert "did you mean" not in run(*asked, "--task", "zzz", code=1).stderr


def test_the_classes_of_imagenet_have_names_in_the_shell(net: Path, tmp_path: Path) -> None:
    weights = needed_package("torchvision.models").get_model_weights("mobilenet_v2").DEFAULT
    photos = photographs(tmp_path / "photos", ["some"])
    asked = ("locate", f"{net}:many", "--calibration", photos, "--size", 8, "-o", tmp_path / "r.safetensors")
    assert "--class-names imagenet" in run(*asked, "--task", "golf ball", code=1).stderr
    assert "--class-names" not in run(*asked[:1], f"{net}:few", *asked[2:], "--task", "golf ball", code=1).stderr
    shown = json.loads(run("show", f"{net}:many", "--size", 8, "--class-names", "imagenet", "--json").stdout)
    assert shown["classes"] == weights.meta["categories"]
    run(*asked, "--class-names", "imagenet", "--task", "tench")
    assert by.load(tmp_path / "r.safetensors").classes == tuple(weights.meta["categories"])


def test_all_classes_without_an_image_are_named_and_what_was_answered(net: Path, tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", ["some", "more"])
    asked = ("locate", f"{net}:few", "--calibration", photos, "--size", 8, "--class-names", "a,b,c,d")
    error = run(*asked, "--task", "b,a,d", "-o", tmp_path / "r.safetensors", code=1).stderr
    assert "is of classes 'b', 'd'" in error
    assert "'a' (6)" in error
    assert "'c'" not in error


def test_files_without_the_suffix_of_a_picture_are_counted_and_named(net: Path, tmp_path: Path) -> None:
    photos = photographs(tmp_path / "photos", ["some", "more"])
    for name in ("IMG_1", "IMG_2.heic"):
        (photos / "some" / "0.png").rename(photos / name) if name == "IMG_1" else (photos / name).write_bytes(b"x")
    (photos / "notes.txt").write_text("taken in May")
    asked = ("locate", f"{net}:few", "--calibration", photos, "--size", 8, "-o", tmp_path / "r.safetensors")
    error = run(*asked).stderr
    assert "files that are left out: 2, such as IMG_1, IMG_2.heic" in error
    assert "5 pictures without labels" in error
    assert "notes.txt" not in error
