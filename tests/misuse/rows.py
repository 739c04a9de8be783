"""The kinds of rows for wrong and odd pictures, data, sources and commands, and the odd files that they need."""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from brickyard.cli._app import app
from brickyard.inputs._datasets import load_data
from brickyard.inputs._decoding import decode_image
from errors import refused

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()
NAMES = ("Катя", "犬 ☃\x1b[2J", "é\u0301\n2")
Write = Callable[[Path], object]  # writes the files of a row into its folder


def nothing(folder: Path) -> None:
    """No file is needed."""


@dataclass(frozen=True)
class Place:
    """Where a row works: `folder` is its own, `work` is shared and must stay as it is."""

    folder: Path
    work: Path
    patch: pytest.MonkeyPatch


def snapshot(*folders: Path) -> dict[str, str]:
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass(frozen=True)
class Seen:
    """A picture that is read: its pixels (height, width, channels) are known another way."""

    write: Write
    pixels: Any
    name: str = "x.png"
    within: float = 0
    unlike: Any = None  # pixels that a careless reader would give

    def check(self, place: Place) -> None:
        path = place.folder / self.name
        self.write(path)
        before = snapshot(place.folder)
        found = decode_image(path).permute(1, 2, 0).numpy().astype(int)
        wanted = np.asarray(self.pixels)
        wanted = (wanted if wanted.ndim == 3 else wanted[..., None]).astype(int)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= self.within
        if self.unlike is not None:
            other = np.asarray(self.unlike).astype(int)
            assert other.shape != found.shape or np.abs(found - other).max() > 10
        assert snapshot(place.folder) == before


@dataclass(frozen=True)
class Loaded:
    """Data that are read: (shape of the images, labels, class names) and, where given, the pixels."""

    write: Write
    shape: tuple[int, ...]
    labels: Sequence[int]
    classes: Sequence[str]
    spec: str = ""
    pixels: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def check(self, place: Place) -> None:
        self.write(place.folder)
        before = snapshot(place.folder)
        data = load_data(f"{place.folder}/{self.spec}", **self.options)
        assert tuple(data.images.shape) == self.shape
        assert data.labels.tolist() == list(self.labels)
        assert data.classes == tuple(self.classes)
        if self.pixels is not None:
            within = 1 if "size" in self.options else 0
            assert np.abs(data.images.numpy().astype(int) - np.asarray(self.pixels).astype(int)).max() <= within
        assert snapshot(place.folder) == before


@dataclass(frozen=True)
class Refused:
    """A call that is refused with one of our errors, before it takes much memory."""

    call: Callable[[Place], object]
    code: str
    quoted: Sequence[str]
    write: Write = nothing
    megabytes: float = 64.0

    def check(self, place: Place) -> None:
        self.write(place.folder)
        made = snapshot(place.folder, place.work)
        tracemalloc.start()
        try:
            with refused(self.code, *self.quoted):
                self.call(place)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < self.megabytes * 1e6
        assert snapshot(place.folder, place.work) == made


@dataclass(frozen=True)
class Shell:
    """A command that is refused: exit code, one message on standard error, nothing else, no file."""

    arguments: Sequence[str]
    quoted: Sequence[str]
    code: int = 1
    env: dict[str, str | None] = field(default_factory=dict)
    write: Write = nothing

    def check(self, place: Place) -> None:
        self.write(place.folder)
        before = snapshot(place.folder, place.work)
        result = shell(place, *self.arguments, env=self.env)
        assert result.exit_code == self.code, result.output + repr(result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        notes = [line for line in result.stderr.splitlines() if not line.startswith("locating in ")]
        assert sum(line.startswith(("brickyard: ", "Error: ")) for line in notes) == 1, result.stderr
        assert len(notes) == (1 if self.code == 1 else 4), result.stderr  # 2: a line of usage, a hint, an empty line
        assert all(word in notes[-1] for word in self.quoted), f"{self.quoted} are not all in {notes[-1]!r}"
        assert snapshot(place.folder, place.work) == before


@dataclass(frozen=True)
class Printed:
    """A command that works: its standard output is known another way."""

    arguments: Sequence[str]
    wanted: Callable[[Place, Any], None]
    env: dict[str, str | None] = field(default_factory=dict)
    charset: str = "utf-8"
    note: str = ""  # on standard error
    write: Write = nothing

    def check(self, place: Place) -> None:
        self.write(place.folder)
        before = snapshot(place.folder, place.work)
        result = shell(place, *self.arguments, env=self.env, charset=self.charset)
        assert result.exit_code == 0, result.output + repr(result.exception)
        assert self.note in result.stderr
        self.wanted(place, result)
        after = snapshot(place.folder, place.work)
        assert {path: after[path] for path in before} == before


def shell(place: Place, *arguments: str, env: dict[str, str | None] | None = None, charset: str = "utf-8") -> Any:
    """Run a command. In its arguments, W/ is the shared folder and F/ the row's own."""
    texts = [text.replace("W/", f"{place.work}/").replace("F/", f"{place.folder}/") for text in arguments]
    return CliRunner(charset=charset).invoke(app, texts, env=env)


# -- making odd files --------------------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(array: np.ndarray, depth: int = 8, size: tuple[int, int] | None = None, before: bytes = b"") -> bytes:
    """A PNG by hand: grey (H, W) or RGB (H, W, 3) of 8 or 16 bits; `size` is what its header says instead."""
    height, width = size or array.shape[:2]
    rows = array.astype(">u2" if depth == 16 else "u1")
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2 if array.ndim == 3 else 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(picture: Image.Image, **options: Any) -> Write:
    return lambda path: picture.save(path, **options)


def written(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def folder_of(*files: str, size: tuple[int, int] = (6, 9)) -> Write:
    """Pictures of one grey each at these places: 0, 1, 2, ..."""

    def write(folder: Path) -> None:
        for k, file in enumerate(files):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(png(np.full(size, k, np.uint8)))

    return write


def both(*writers: Write) -> Write:
    def write(folder: Path) -> None:
        for writer in writers:
            writer(folder)

    return write


def put(name: str, content: bytes = b"") -> Write:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def idx(array: np.ndarray, kind: int = 8, shape: Sequence[int] | None = None) -> bytes:
    shape = shape or array.shape
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + array.astype(np.uint8).tobytes()


IDX_IMAGES, IDX_LABELS = RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8), np.array([2, 0, 1], np.uint8)
ZEROS = gzip.compress(bytes(10_000_000))  # 10 kB


def idx_pair(images: bytes = idx(IDX_IMAGES), labels: bytes = idx(IDX_LABELS), end: str = "") -> Write:
    return both(put(f"train-images-idx3-ubyte{end}", images), put(f"train-labels-idx1-ubyte{end}", labels))


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def without(module: str, call: Callable[[Place], object], *quoted: str, write: Write = nothing) -> Refused:
    """A call for which a package is missing."""

    def called(place: Place) -> None:
        place.patch.setitem(sys.modules, module, None)
        call(place)

    return Refused(called, "option-missing-package", quoted, write)
