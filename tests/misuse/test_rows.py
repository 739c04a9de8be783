"""Wrong and odd pictures, data, sources and commands: what each gives, or how it is refused.

One table, `TABLE`. Every row says what is expected, by a value that was found another way, or by the code of an error
and the names that it quotes. After every row, all files that were there are what they were; after a refusal there is no
file more.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFile

import brickyard as by
from brickyard.inputs import _decoding as decoding
from brickyard.inputs._datasets import load_data
from brickyard.inputs._decoding import decode_image
from brickyard.testing import chain
from errors import refused
from misuse.commands import COMMANDS, CUT
from misuse.datasets import DATA
from misuse.pictures import PICTURES
from misuse.rows import IDX_IMAGES, IDX_LABELS, NAMES, RGB, ZEROS, Place, idx, png, shell
from misuse.sources import SOURCES

TABLE = {
    f"{kind}: {name}": row
    for kind, rows in (("picture", PICTURES), ("data", DATA), ("source", SOURCES), ("command", COMMANDS))
    for name, row in rows.items()
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, relevances, components, an assembly of one part, a yard, pictures."""
    folder = tmp_path_factory.mktemp("work")
    place = Place(folder, folder, pytest.MonkeyPatch())
    images = load_data("digits").renumbered([0, 1, 2]).subset(range(60))
    for i, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        path = folder / "train" / images.classes[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image[0].numpy()))
    (folder / "photo.png").write_bytes(png(RGB))
    (folder / "folder.safetensors").mkdir()
    train = "train lenet5?width=0.5 --data W/train --epochs 6 --batch-size 8 --lr 0.05 --size 16 -o W/s.safetensors"
    for command in (
        train,
        "locate W/s.safetensors --data W/train --per-class 5 -o W/r.safetensors",
        CUT.replace("F/x", "W/a") + " --task 0,2",
        "assemble W/a.safetensors -o W/one.safetensors",
        "yard add W/a.safetensors --yard W/yard",
    ):
        result = shell(place, *command.split())
        assert result.exit_code == 0, result.output
    data = (torch.rand(9, 3, 8, 8), torch.arange(9) % 3)
    how = by.Preprocessing(size=(8, 8), channels=3)
    relevance = by.locate(chain(3), data, classes=NAMES, preprocessing=how)
    by.disassemble(chain(3), relevance, task=list(NAMES)).save(folder / "names.safetensors")
    return folder


@pytest.mark.parametrize("name", TABLE)
def test_every_row(name: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    TABLE[name].check(Place(tmp_path, work, monkeypatch))


def test_the_table_is_large() -> None:
    assert len(TABLE) >= 70
    assert len(PICTURES) + len(DATA) + len(SOURCES) + len(COMMANDS) == len(TABLE)


def test_a_giant_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[int, int]] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(image.size))
    (tmp_path / "x.png").write_bytes(png(np.zeros((1, 9), np.uint8), size=(9_001, 9_001)))
    with refused("data-image-too-large", "9001 x 9001"):
        decode_image(tmp_path / "x.png")
    assert loads == []
    monkeypatch.setattr(decoding, "MAX_PIXELS", 9_001**2)  # the control: without the bound it is decoded
    monkeypatch.setattr(decoding, "_pixels", lambda image: 1 / 0)  # there are no pixels to go on with
    with refused("data-unreadable-image", "division by zero"):
        decode_image(tmp_path / "x.png")
    assert loads == [(9_001, 9_001)]


def test_a_bomb_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    """The control: what the same file would be, read whole."""
    content = gzip.compress(idx(IDX_IMAGES)) + ZEROS
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(IDX_LABELS)))
    tracemalloc.start()
    with refused("data-damaged-file", "3x4x5"):
        load_data(tmp_path)
    peaks = [tracemalloc.get_traced_memory()[1]]
    gzip.decompress(content)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[0] < 1e6 < 10e6 < peaks[1]


@pytest.mark.parametrize(
    ("command", "env", "code", "out", "err"),
    [
        ("yard list >&- <&-", {}, 1, "", "standard output"),
        ("yard list >/dev/full", {}, 1, "", "No space left on device"),
        ("yard list | true", {}, 141, "", ""),
        (
            "predict names.safetensors photo.png <&-",
            {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
            0,
            "\\u72ac",
            "",
        ),
    ],
)
def test_a_real_shell(command: str, env: dict[str, str], code: int, out: str, err: str, work: Path) -> None:
    line = f"set -o pipefail; {sys.executable} -m brickyard {command}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=work, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert len(done.stderr.splitlines()) == bool(err)
