"""The example that joins two things of one network with three birds of another, with the networks of others."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

import brickyard as by
from conftest import ROOT, needed_package
from shell import run

pytestmark = pytest.mark.shared
PLACE = ROOT / "examples" / "birds_and_things"
PICTURE = ROOT / "docs" / "images" / "birds-and-things.svg"
NAMES = {"jay": "blue jay", "goldfinch": "American goldfinch", "flamingo": "American flamingo"}  # as ImageNet has them
BIRDS = [*range(7, 25), *range(80, 101), *range(127, 147)]


@pytest.fixture
def photos(shared: Path, tmp_path: Path) -> Path:
    """Photographs in the folders that the page of the example names: a few of each."""
    pq, folder = needed_package("pyarrow.parquet"), tmp_path / "photos"

    def rows(name: str) -> tuple[list[str], list[dict[str, Any]]]:
        table = pq.read_table(shared / "data" / f"{name}.parquet")
        about = json.loads(table.schema.metadata[b"huggingface"])["info"]
        return about["features"]["label"]["names"], table.to_pylist()

    def put(place: str, row: dict[str, Any]) -> None:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(row["image"]["bytes"])

    for split, place, most in (("train", "things", 4), ("test", "ask", 2)):
        names, found = rows(f"imagenette/{split}")
        for name in ("golf ball", "church"):
            for k, row in enumerate([row for row in found if names[row["label"]] == name][:most]):
                put(f"ask/{name}/{k}.jpg" if place == "ask" else f"things/{name} {k}.jpg", row)
    names, found = rows("imagenet-one-a-class/train")
    for row in (found[k] for k in sorted(range(len(found)), key=lambda k: found[k]["label"])):
        name = names[row["label"]]
        if row["label"] in BIRDS and (name in NAMES or row["label"] % 16 == 0):
            put(f"birds/{name}.jpg", row)
        if name in NAMES:
            put(f"ask/{NAMES[name]}/one.jpg", row)
    return folder


@pytest.mark.slow
def test_the_example_makes_one_classifier_of_two_networks(shared: Path, photos: Path, monkeypatch, capsys) -> None:
    for name in ("torchvision", "onnx", "onnxruntime", "onnxscript"):
        needed_package(name)
    script, out = runpy.run_path(str(PLACE / "run.py")), photos.parent / "out"
    told: list[list[str]] = []

    def in_this_process(*words: object) -> Any:
        told.append(["brickyard", *map(str, words)])
        return json.loads(run(*words, "--json").stdout)

    monkeypatch.setitem(script["main"].__globals__, "brickyard", in_this_process)
    files = [shared / "models" / f"mobilenet_v2-{name}" for name in ("imagenet.safetensors", "coral-birds.safetensors")]
    given = ["--things", files[0], "--birds", files[1], "--bird-names", files[1].with_suffix(".labels.txt")]
    score = script["main"]([*map(str, given), "--photos", str(photos), "-o", str(out)])
    assert {name: count for name, (_, count) in score.items()} == {
        **dict.fromkeys(("golf ball", "church"), 2),
        **dict.fromkeys(NAMES.values(), 1),
    }
    assert sum(right for right, _ in score.values()) >= 6
    whole = by.load(out / "both.safetensors")
    assert whole.classes == tuple(score)
    things, birds = whole.manifest.parts
    assert things.selection.flops <= 0.5 * things.source.flops
    assert [len(part.source.classes) for part in (things, birds)] == [1000, 965]
    with Image.open(out / "answers.png") as sheet:
        assert sheet.width > 4 * 180
        assert len(sheet.getcolors(1 << 24) or ()) > 10_000  # there are photographs in it
    drawn = (out / "diagram.svg").read_text()
    ElementTree.parse(io.StringIO(drawn))
    assert "<image" not in drawn
    page = (PLACE / "README.md").read_text()
    for words in told[:5]:  # the page shows what is run
        assert f"brickyard {words[1]} " in page, words
    assert "2 of 2" in drawn


def test_the_picture_of_the_page_is_drawn_without_photographs() -> None:
    drawn = PICTURE.read_text()
    assert "<image" not in drawn
    assert "data:" not in drawn
    words = {item.text for item in ElementTree.parse(PICTURE).iter() if item.text}
    assert {"golf ball", "church", *NAMES.values()} <= words
