"""`predict` on folders, patterns, lists, addresses and bytes: everything is answered, or named and left out."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import brickyard as by
from brickyard.cli import _answers, _asked
from brickyard.cli._answers import drawn
from brickyard.cli._app import app
from brickyard.testing import chain
from errors import refused
from shell import run

HOW = by.Preprocessing(size=(8, 8), channels=3, mean=(0.5,), std=(0.25,))


def picture(seed: int, side: int = 20, channels: int = 3) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (side, side + 4, channels), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.squeeze(2).numpy())


def png(seed: int) -> bytes:
    content = io.BytesIO()
    picture(seed).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asking")
    data = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    source = chain()
    relevance = by.locate(source, data, preprocessing=HOW, classes=["cat", "dog", "hen", "pig"])
    by.disassemble(source, relevance, task=["cat", "hen", "pig"], heal="none").save(folder / "part.safetensors")
    (folder / "photos" / "deep").mkdir(parents=True)
    for k in range(5):
        picture(k, 20 + k, 1 if k == 3 else 3).save(folder / "photos" / ("deep" if k % 2 else ".") / f"{k}.png")
    return folder


def named(text: str) -> dict[str, str]:
    """The answer for each picture, of a command's JSON."""
    found = json.loads(text)["predictions"]
    return {Path(one["image"]).name: one["classes"][0]["name"] for one in found}


def wanted(place: Path, *files: Path) -> dict[str, str]:
    """The same, each asked by itself in Python."""
    part = by.load(place / "part.safetensors")
    return {file.name: part.predict(file, strangers="answer")[0] for file in files}


def typed(place: Path, given: bytes, *more: object, code: int = 0):
    words = ["predict", str(place / "part.safetensors"), "-", *map(str, more)]
    done = CliRunner().invoke(app, words, input=given)
    assert done.exit_code == code, done.output
    return done


def test_folders_patterns_and_lists_are_the_files_in_them(place, monkeypatch) -> None:
    monkeypatch.setattr(_answers, "TOGETHER", 2)
    files = sorted((place / "photos").rglob("*.png"))
    expected = wanted(place, *files)
    assert len(set(expected.values())) > 1
    part = place / "part.safetensors"
    for given in ([place / "photos"], [place / "photos" / "**" / "*.png"], files):
        assert named(run("predict", part, *given, "--json").stdout) == expected
    deep, first = place / "photos" / "deep", place / "photos" / "0.png"
    lines = f"{first}\n\n{deep}\r\n".encode()
    assert named(typed(place, lines, "--json").stdout) == wanted(place, first, *deep.iterdir())


def test_a_picture_on_standard_input_is_a_picture(place) -> None:
    found = json.loads(typed(place, png(2), "--json").stdout)["predictions"]
    (name,) = by.load(place / "part.safetensors").predict(picture(2), strangers="answer")
    assert [(one["image"], one["classes"][0]["name"]) for one in found] == [("-", name)]


def test_broken_pictures_among_many_are_named_and_counted(place, tmp_path) -> None:
    good = sorted((place / "photos").glob("*.png"))
    broken = tmp_path / "\x1b[2Jbroken.png"
    broken.write_bytes(png(1)[:200])
    missing = tmp_path / "missing.png"
    done = run("predict", place / "part.safetensors", good[0], broken, missing, *good[1:], "--json", code=1)
    assert named(done.stdout) == wanted(place, *good)
    lost = json.loads(done.stdout)["left_out"]
    assert [(one["image"], one["code"]) for one in lost] == [
        (str(broken), "data-unreadable-image"),
        (str(missing), "file-missing"),
    ]
    assert f"2 of {len(good) + 2} images" in done.stderr
    assert "missing.png" in done.stderr
    assert "\x1b" not in done.stderr + run("predict", place / "part.safetensors", good[0], broken, code=1).stdout
    assert run("predict", place / "part.safetensors", *good).exit_code == 0  # the control
    alone = run("predict", place / "part.safetensors", broken, missing, code=1)
    assert (alone.stdout, "cannot read image" in alone.stderr) == ("", True)
    nothing = run("predict", place / "part.safetensors", tmp_path / "*.jpeg", code=1).stderr
    assert "matches" in nothing


def test_the_table_and_csv_say_the_same(place, tmp_path) -> None:
    part, photos = place / "part.safetensors", place / "photos"
    header, *rows = run("predict", part, photos, "--top", 2).stdout.splitlines()
    assert header.split("  ")[0].strip() == "image"
    answers = json.loads(run("predict", part, photos, "--top", 2, "--json", "--csv", tmp_path / "a.csv").stdout)
    printed = run("predict", part, photos, "--top", 2, "--csv", "-").stdout
    assert printed == (tmp_path / "a.csv").read_text()
    table = list(csv.DictReader(io.StringIO(printed)))
    assert len(table) == len(rows) == len(answers["predictions"]) == 5
    for row, line, answer in zip(table, rows, answers["predictions"], strict=True):
        assert row["image"] == answer["image"]
        assert [row["class 1"], row["class 2"]] == [one["name"] for one in answer["classes"]]
        assert float(row["probability 1"]) == answer["classes"][0]["probability"]
        assert f"{row['class 1']} {float(row['probability 1']):.1%}" in line
    assert "exists" in run("predict", part, photos, "--csv", tmp_path / "a.csv", code=1).stderr


def test_drawn_pictures_hold_the_picture_and_a_text(place, tmp_path) -> None:
    run(
        "predict",
        place / "part.safetensors",
        place / "photos",
        place / "photos" / "0.png",
        "--draw",
        tmp_path / "drawn",
    )
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["0-2.png", "0.png", "1.png", "2.png", "3.png", "4.png"]
    pixels = torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8)
    one, other, bare = (drawn(pixels, text) for text in ("cat", "dog", " "))
    band = one.height - 320
    assert one.size == (320, 320 + band)
    assert band > 12
    middle = torch.tensor([one.getpixel((40 * x + 20, 40 * y + 20)) for y in range(8) for x in range(8)])
    assert torch.equal(middle.T.reshape(3, 8, 8), pixels.long())
    bands = [image.crop((0, 320, 320, one.height)).tobytes() for image in (one, other, bare)]
    assert len(set(bands)) == 3
    assert drawn(pixels, "x" * 500).width == 320
    said = run("predict", place / "part.safetensors", place / "photos", "--draw", tmp_path / "drawn", code=1).stderr
    assert "exists" in said


# -- addresses ---------------------------------------------------------------------------------------------


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/picture.png":
            self._answer(png(4))
        elif self.path == "/away":
            self._lead("/picture.png")
        elif self.path == "/file":
            self._lead("file:///etc/hostname")
        elif self.path == "/endless":
            self._answer(b"\x89PNG" + b"\0" * 300_000)
        else:
            self.send_error(404)

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def _lead(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_addresses_are_fetched_within_bounds(place, address, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(_asked, "MAX_FETCHED", 100_000)
    done = run("predict", place / "part.safetensors", f"{address}/picture.png", f"{address}/away", "--json")
    (name,) = by.load(place / "part.safetensors").predict(picture(4), strangers="answer")
    assert named(done.stdout) == {"picture.png": name, "away": name}
    for page, code in (
        ("none", "data-download-failed"),
        ("file", "data-download-failed"),
        ("endless", "data-image-too-large"),
    ):
        with refused(code, f"{address}/{page}"):
            _asked.fetched(f"{address}/{page}")
    with refused("data-download-failed", "http://127.0.0.1:1/x"):
        _asked.fetched("http://127.0.0.1:1/x")
    alone = run("predict", place / "part.safetensors", "http://127.0.0.1:1/x.png", code=1)
    assert "check the address and the network" in alone.stderr
