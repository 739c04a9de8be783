"""Wrong and odd pictures, data, sources and commands: what each gives, or how it is refused.

One table, `TABLE`. Every row says what is expected, by a value that was found another way, or by words of all three
parts of the message: what was asked, what was found, what to do next. After every row, all files that were there are
what they were; after a refusal there is no file more.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from safetensors.torch import save_file
from typer.testing import CliRunner

import brickyard as by
from brickyard.base._errors import DataError, FileError, OptionError
from brickyard.cli._app import app
from brickyard.export._hub import from_pretrained
from brickyard.inputs import _decoding as datasets
from brickyard.inputs._datasets import load_data
from brickyard.inputs._decoding import decode_image
from brickyard.sources._loading import load_source
from brickyard.testing import chain

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()
WIDE = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
NAMES = ("Катя", "犬 ☃\x1b[2J", "é\u0301\n2")


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


def says(message: str, words: Sequence[str]) -> None:
    """Words of the three parts are there, in their order."""
    assert len(words) == 3, "what was asked, what was found, what to do next"
    assert all(words)
    at = 0
    for word in words:
        assert word in message[at:], f"{word!r} is not in {message[at:]!r} of {message!r}"
        at += message[at:].index(word) + len(word)


# -- the kinds of rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A picture that is read: its pixels (height, width, channels) are known another way."""

    write: Callable[[Path], object]
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

    write: Callable[[Path], object]
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
            assert np.abs(data.images.numpy().astype(int) - np.asarray(self.pixels).astype(int)).max() <= 1
        assert snapshot(place.folder) == before


@dataclass(frozen=True)
class Refused:
    """A call that is refused with one of our errors."""

    act: Callable[[Place], object]
    words: tuple[str, str, str]
    error: type[by.BrickyardError] = by.BrickyardError
    megabytes: float = 64.0

    def check(self, place: Place) -> None:
        made: dict[str, str] = {}

        def act() -> None:
            call = self.act(place)  # writes its input, and returns what is to be refused
            made.update(snapshot(place.folder, place.work))
            tracemalloc.start()
            assert callable(call)
            call()

        try:
            with pytest.raises(by.BrickyardError) as caught:
                act()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert isinstance(caught.value, self.error)
        assert peak < self.megabytes * 1e6
        says(str(caught.value), self.words)
        assert snapshot(place.folder, place.work) == made


@dataclass(frozen=True)
class Shell:
    """A command that is refused: exit code, one message on standard error, nothing else, no file."""

    arguments: Sequence[str]
    words: tuple[str, str, str]
    code: int = 1
    env: dict[str, str | None] = field(default_factory=dict)
    write: Callable[[Path], object] = lambda folder: None

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
        assert len(notes) == (1 if self.code == 1 else 4), result.stderr
        says(" ".join(notes), self.words)
        assert snapshot(place.folder, place.work) == before


@dataclass(frozen=True)
class Printed:
    """A command that works: its standard output is known another way."""

    arguments: Sequence[str]
    wanted: Callable[[Place, Any], None]
    env: dict[str, str | None] = field(default_factory=dict)
    charset: str = "utf-8"
    note: str = ""  # on standard error
    write: Callable[[Path], object] = lambda folder: None

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


# -- making odd files ----------------------------------------------------------------------------------------


def png(array: np.ndarray, depth: int = 8, size: tuple[int, int] | None = None) -> bytes:
    """A PNG by hand: grey (H, W) or RGB (H, W, 3) of 8 or 16 bits; `size` is what its header says instead."""
    kind = 2 if array.ndim == 3 else 0
    height, width = size or array.shape[:2]
    rows = array.astype(">u2" if depth == 16 else "u1").reshape(len(array), -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(picture: Image.Image, **options: Any) -> Callable[[Path], object]:
    return lambda path: picture.save(path, **options)


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def refused_picture(content: bytes, found: str, name: str = "x.png", **bounds: float) -> Refused:
    def act(place: Place) -> Callable[[], object]:
        (place.folder / name).write_bytes(content)
        return lambda: decode_image(place.folder / name)

    advice = "smaller first" if "large" in found else "repair it or leave it out"
    return Refused(act, (name, found, advice), DataError, **bounds)


def folder_of(*files: str, size: tuple[int, int] = (6, 9)) -> Callable[[Path], object]:
    """Pictures of one grey each at these places: 0, 1, 2, ..."""

    def write(folder: Path) -> None:
        for k, file in enumerate(files):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(png(np.full(size, k, np.uint8)))

    return write


def both(*writers: Callable[[Path], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        for writer in writers:
            writer(folder)

    return write


def put(name: str, content: bytes = b"") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def refused_data(
    write: Callable[[Path], object], words: tuple[str, str, str], spec: str = "", **options: Any
) -> Refused:
    bounds = {key: options.pop(key) for key in ("megabytes",) if key in options}

    def act(place: Place) -> Callable[[], object]:
        write(place.folder)
        return lambda: load_data(f"{place.folder}/{spec}", **options)

    return Refused(act, words, **bounds)


def idx(array: np.ndarray, kind: int = 8, shape: Sequence[int] | None = None) -> bytes:
    shape = shape or array.shape
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + array.astype(np.uint8).tobytes()


IDX_IMAGES, IDX_LABELS = RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8), np.array([2, 0, 1], np.uint8)
ZEROS = gzip.compress(bytes(10_000_000))  # 10 kB


def idx_pair(
    images: bytes = idx(IDX_IMAGES), labels: bytes = idx(IDX_LABELS), end: str = ""
) -> Callable[[Path], object]:
    return both(put(f"train-images-idx3-ubyte{end}", images), put(f"train-labels-idx1-ubyte{end}", labels))


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def parquet(columns: dict[str, list[Any]], metadata: dict[str, str] | None = None) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "train.parquet")

    return write


PICTURE = {"bytes": png(GREY), "path": None}
ORIENTED = {  # EXIF orientation -> what a viewer shows
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: RGB[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(RGB, 1),
}


def turned(value: int) -> Callable[[Path], object]:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(Image.fromarray(RGB), exif=exif)


ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def on_white(colour: np.ndarray) -> np.ndarray:
    share = (ALPHA / 255)[..., None]
    return np.rint((colour if colour.ndim == 3 else colour[..., None]) * share + 255 * (1 - share))


SMALL = RGB // 86 * 86  # 27 colours at most, for palettes
PALETTE = Image.fromarray(SMALL).quantize(64)
CMYK = np.tile(np.array([[[200, 30, 90, 40]]], np.uint8), (16, 16, 1))
FRAMES = [Image.fromarray(SMALL), Image.fromarray(255 - SMALL)]

PICTURES: dict[str, Any] = {
    "grey": Seen(saved(Image.fromarray(GREY)), GREY),
    "grey with alpha": Seen(
        saved(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), on_white(np.repeat(GREY[..., None], 3, 2)), within=1
    ),
    "one bit": Seen(saved(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0)),
    "palette": Seen(saved(PALETTE), SMALL),
    "palette with a transparent colour": Seen(
        saved(PALETTE, transparency=0),
        np.where((np.asarray(PALETTE) == 0)[..., None], 255, SMALL),
        unlike=SMALL if (np.asarray(PALETTE) == 0).any() else None,
    ),
    "RGBA": Seen(saved(Image.fromarray(np.dstack([RGB, ALPHA]))), on_white(RGB), within=1, unlike=RGB),
    "CMYK JPEG": Seen(
        saved(Image.fromarray(CMYK, "CMYK"), quality=100),
        (255 - CMYK[..., :3].astype(float)) * (255 - CMYK[..., 3:]) / 255,
        "x.jpg",
        within=3,
        unlike=CMYK[..., :3],
    ),
    "16-bit grey PNG": Seen(
        written(png(WIDE, 16)), np.rint(WIDE / 65535 * 255), unlike=np.clip(WIDE[..., None].astype(int), 0, 255)
    ),
    "dark 16-bit grey PNG": Seen(written(png(np.full((4, 4), 200), 16)), np.full((4, 4), 1)),
    "16-bit RGB PNG": Seen(
        written(png(RNG.integers(0, 65536, (6, 9, 3)) * 0 + 513 * np.arange(54 * 3).reshape(6, 9, 3) % 65536, 16)),
        np.rint(513 * np.arange(54 * 3).reshape(6, 9, 3) % 65536 / 257),
        within=1,
    ),
    "16-bit grey TIFF": Seen(saved(Image.fromarray(WIDE)), np.rint(WIDE / 257), "x.tif"),
    "dark 16-bit PGM": Seen(
        written(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 100, 250)), np.array([[0, 0, 1]]), "x.pgm"
    ),
    "8-bit PGM of the same numbers": Seen(written(b"P5 3 1 255\n" + bytes([0, 100, 250])), np.array([[0, 100, 250]])),
    **{f"EXIF orientation {k}": Seen(turned(k), pixels) for k, pixels in ORIENTED.items()},
    "EXIF orientation 1": Seen(turned(1), RGB),
    "EXIF orientation 99": Seen(turned(99), RGB),
    "animated GIF: its first frame": Seen(
        saved(FRAMES[0], save_all=True, append_images=FRAMES[1:]), SMALL, "x.gif", unlike=255 - SMALL
    ),
    "WebP": Seen(saved(Image.fromarray(RGB), lossless=True), RGB, "x.webp"),
    "animated WebP: its first frame": Seen(
        saved(FRAMES[0], save_all=True, append_images=FRAMES[1:], lossless=True), SMALL, "x.webp", unlike=255 - SMALL
    ),
    "TIFF of two pages: the first": Seen(
        saved(FRAMES[0], save_all=True, append_images=FRAMES[1:]), SMALL, "x.tif", unlike=255 - SMALL
    ),
    "a PNG that is called .jpg": Seen(written(png(RGB)), RGB, "x.jpg"),
    "one pixel": Seen(written(png(GREY[:1, :1])), GREY[:1, :1]),
    "a line of pixels": Seen(written(png(np.tile(GREY[:1], (1, 1000)))), np.tile(GREY[:1], (1, 1000))),
    "32-bit floating point TIFF": refused_picture(
        encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "range is not known", "x.tif"
    ),
    "32-bit whole numbers": refused_picture(
        encoded(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF"), "from 0 to 70000", "x.tif"
    ),
    "truncated JPEG": refused_picture(
        encoded(Image.fromarray(np.tile(RGB, (20, 20, 1))), "JPEG")[:3000], "truncated", "x.jpg"
    ),
    "truncated PNG": refused_picture(png(np.tile(RGB, (20, 20, 1)))[:400], "cannot be read"),
    "PNG with a damaged middle": refused_picture(png(RGB)[:60] + bytes(20) + png(RGB)[80:], "cannot be read"),
    "JPEG with only its start": refused_picture(b"\xff\xd8\xff\xe0", "cannot be read", "x.jpg"),
    "an empty file": refused_picture(b"", "it is no PNG, JPEG"),
    "text called .jpg": refused_picture(b"a picture of a cat", "it is no PNG, JPEG", "cat.jpg"),
    "an SVG": refused_picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no PNG, JPEG", "x.svg"),
    "EPS called .png: nothing is started": refused_picture(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "it is no PNG, JPEG"
    ),
    "30000 x 30000 in a few bytes": refused_picture(
        png(np.zeros((1, 9), np.uint8), size=(30_000, 30_000)), "too large: it has more pixels", megabytes=2
    ),
    "10000 x 10000 in a few bytes": refused_picture(
        png(np.zeros((1, 9), np.uint8), size=(10_000, 10_000)), "too large: 10000 x 10000", megabytes=2
    ),
    "one row of 70 million pixels": refused_picture(
        png(np.zeros((1, 9), np.uint8), size=(1, 70_000_000)), "too large: 70000000 x 1", megabytes=2
    ),
    "a folder for a picture": Refused(
        lambda place: lambda: decode_image(place.folder), ("image", "no plain file", "leave it out"), DataError
    ),
    "a pipe for a picture: it is not waited for": Refused(
        lambda place: os.mkfifo(place.folder / "x.png") or (lambda: decode_image(place.folder / "x.png")),
        ("x.png", "no plain file", "leave it out"),
        DataError,
    ),
}

# -- data ----------------------------------------------------------------------------------------------------

LONG = "n" * 255
TWO = ("a/0.png", "b/1.png")


def looped(folder: Path) -> None:
    folder_of(*TWO)(folder)
    (folder / "c").symlink_to(folder / "c")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b" / "again.png").symlink_to(folder / "a" / "0.png")


def cropped(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Torch's own resize of the whole picture, and then the middle."""
    x = torch.from_numpy(array)[None, None].double()
    factor = max(size[0] / x.shape[2], size[1] / x.shape[3])
    cover = [max(s, round(side * factor)) for s, side in zip(size, x.shape[2:], strict=True)]
    whole = torch.nn.functional.interpolate(x, cover, mode="bilinear", antialias=True, align_corners=False)
    top, left = (cover[0] - size[0]) // 2, (cover[1] - size[1]) // 2
    return whole[:, :, top : top + size[0], left : left + size[1]].numpy()


THIN = np.tile((np.arange(20_000) % 256).astype(np.uint8), (1, 1))
NO_IMAGES = "holds no images in class folders"
BIG_HEADER = struct.pack(">HBB3I", 0, 8, 3, 60_000, 28, 28)


def evil_npz(folder: Path) -> None:
    np.savez(folder / "x.npz", images=np.array([Marker(folder / "ran")], dtype=object))
    folder_of("control")(folder)
    np.load(folder / "x.npz", allow_pickle=True)["images"]
    (folder / "ran").unlink()  # the control: it was there


def evil_batches(folder: Path) -> None:
    (folder / "data_batch_1").write_bytes(pickle.dumps(Marker(folder / "ran")))
    pickle.loads((folder / "data_batch_1").read_bytes())  # noqa: S301
    (folder / "ran").unlink()


def without(module: str, write: Callable[[Path], object], words: tuple[str, str, str], call: Any) -> Refused:
    def act(place: Place) -> Callable[[], object]:
        write(place.folder)
        place.patch.setitem(sys.modules, module, None)
        return lambda: call(place)

    return Refused(act, words, OptionError)


DATA: dict[str, Any] = {
    "a folder without anything": refused_data(
        lambda folder: None, ("split 'train'", "no sub-folder", "a folder of its own")
    ),
    "pictures without classes": refused_data(folder_of("1.png", "2.png"), ("split", NO_IMAGES, "a folder of its own")),
    "classes without pictures": refused_data(
        put("a/notes.txt", b"none"), ("split", f"{NO_IMAGES} ('a')", "a folder of")
    ),
    "only hidden files": refused_data(folder_of("a/.x.png", ".b/y.png"), ("split", f"{NO_IMAGES} ('a')", "put each")),
    "pictures one folder too deep": refused_data(folder_of("a/b/x.png"), ("split", f"{NO_IMAGES} ('a')", "directly")),
    "an empty class keeps its number": Loaded(
        both(folder_of("a/0.png", "c/1.png"), put("b/none.txt")), (2, 1, 6, 9), [0, 2], ["a", "b", "c"]
    ),
    "hidden files and others beside pictures": Loaded(
        both(folder_of(*TWO), put("a/._0.png", b"fork"), put("a/Thumbs.db"), put("a/x.svg"), put("README.md")),
        (2, 1, 6, 9),
        [0, 1],
        ["a", "b"],
    ),
    "links that go round": Loaded(looped, (3, 1, 6, 9), [0, 1, 1], ["a", "b"]),
    "a class with one picture": Loaded(
        folder_of("a/0.png", "a/1.png", "a/2.png", "b/3.png"), (4, 1, 6, 9), [0, 0, 0, 1], ["a", "b"]
    ),
    "unusual class names": Loaded(
        folder_of(*(f"{name}/x.png" for name in NAMES)), (3, 1, 6, 9), [0, 1, 2], sorted(NAMES)
    ),
    "a very long class name": Loaded(folder_of(f"{LONG}/x.png"), (1, 1, 6, 9), [0], [LONG]),
    "classes that differ by case": Loaded(folder_of("Cat/0.png", "cat/1.png"), (2, 1, 6, 9), [0, 1], ["Cat", "cat"]),
    "a class name that is no UTF-8": refused_data(
        lambda folder: os.mkdir(os.fsencode(folder) + b"/\xff\xfe"), ("folder whose name", "no UTF-8", "rename it")
    ),
    "grey beside colour": Loaded(
        both(folder_of("a/0.png"), lambda f: (f / "a" / "1.png").write_bytes(png(RGB))),
        (2, 3, 6, 9),
        [0, 0],
        ["a"],
        pixels=[np.zeros((3, 6, 9)), RGB.transpose(2, 0, 1)],
    ),
    "several sizes": refused_data(
        both(folder_of("a/0.png"), folder_of("b/0.png", size=(5, 5))), ("images", "2 sizes", "give a size")
    ),
    "several sizes, and one asked for": Loaded(
        both(folder_of("a/0.png"), folder_of("b/0.png", "b/1.png", size=(5, 5))),
        (3, 1, 4, 4),
        [0, 1, 1],
        ["a", "b"],
        options={"size": (4, 4)},
        pixels=np.array([0, 0, 1]).reshape(3, 1, 1, 1),
    ),
    "a picture 20,000 times as wide as high": Loaded(
        put("a/x.png", png(THIN)),
        (1, 1, 32, 32),
        [0],
        ["a"],
        options={"size": (32, 32)},
        pixels=cropped(THIN, (32, 32)),
    ),
    "a picture that is cut off, by its name": refused_data(
        both(folder_of("a/0.png"), put("a/1.png", png(np.tile(RGB, (20, 20, 1)))[:300])),
        ("image", "1.png cannot be read", "repair it or leave it out"),
    ),
    "a split that is not there": refused_data(
        folder_of("train/a/0.png"), ("split 'test'", "its folders are train", "name one"), "?split=test"
    ),
    "a split that is not there, of a flat folder": refused_data(
        folder_of(*TWO), ("split 'train'", "its folders are a, b", "name one"), "?split=train"
    ),
    "classes beyond the data": refused_data(
        folder_of(*TWO), ("range '0-9'", "classes 0 to 1", "end it"), "?classes=0-9"
    ),
    "a range with more numbers than memory": refused_data(
        folder_of(*TWO), ("range '0-900000000'", "classes 0 to 1", "end it"), "?classes=0-900000000"
    ),
    "a small raised two for a number": refused_data(
        folder_of(*TWO), ("class '²'", "knows a, b", "name some of these"), "?classes=²"
    ),
    "a name longer than names may be": refused_data(
        lambda folder: None, ("data", "no such file or folder", "give a path"), "x" * 300
    ),
    "no name at all": Refused(lambda place: lambda: load_data(""), ("data ''", "was asked for", "give digits")),
    "a text file": refused_data(put("x.txt", b"x"), ("x.txt", "is neither an image folder", "give one of"), "x.txt"),
    "npz with pickled objects: nothing runs": refused_data(evil_npz, ("x.npz", "is neither", "give one of"), "x.npz"),
    "pickled CIFAR batches: nothing runs": refused_data(evil_batches, ("split", "no sub-folder", "put each")),
    # idx
    "idx": Loaded(idx_pair(), (3, 1, 4, 5), [2, 0, 1], ["0", "1", "2"], pixels=IDX_IMAGES[:, None]),
    "idx with dots": Loaded(
        both(put("x-images.idx3-ubyte", idx(IDX_IMAGES)), put("x-labels.idx1-ubyte", idx(IDX_LABELS))),
        (3, 1, 4, 5),
        [2, 0, 1],
        ["0", "1", "2"],
        spec="x-images.idx3-ubyte",
    ),
    "idx of floating point": refused_data(
        idx_pair(idx(IDX_IMAGES, 13)), ("train-images", "starts with 00 00 0d", "again")
    ),
    "idx with another magic number": refused_data(
        idx_pair(b"PK" + idx(IDX_IMAGES)[2:]), ("idx", "50 4b 08 03", "get it")
    ),
    "idx of two dimensions": refused_data(
        idx_pair(idx(IDX_IMAGES, shape=(12, 5))), ("with 3 dimensions", "starts with 00 00 08 02", "get it again")
    ),
    "idx that is too short": refused_data(idx_pair(idx(IDX_IMAGES)[:-1]), ("train-images", "shape of 3x4x5", "get it")),
    "idx that is too long": refused_data(
        idx_pair(idx(IDX_IMAGES) + b"1"), ("train-images", "shape of 3x4x5", "get it")
    ),
    "idx with a shape beyond memory": refused_data(
        idx_pair(idx(IDX_IMAGES, shape=(2**32 - 1,) * 3)), ("idx", "4294967295x4294967295", "get it"), megabytes=2
    ),
    "an empty idx file": refused_data(idx_pair(b""), ("train-images", "cannot be read", "get it again")),
    "idx with fewer labels": refused_data(
        idx_pair(labels=idx(IDX_LABELS[:2])), ("images of", "labels of shape (2,)", "give")
    ),
    "idx without labels": refused_data(
        put("train-images-idx3-ubyte", idx(IDX_IMAGES)), ("train-labels-idx1", "No such file", "get it again")
    ),
    "idx: the labels for the images": refused_data(
        idx_pair(), ("train-labels", "says of no images", "give the file of images"), "train-labels-idx1-ubyte"
    ),
    "gzip that is cut off": refused_data(
        idx_pair(gzip.compress(idx(IDX_IMAGES))[:-12], end=".gz"), ("train-images", "cannot be read", "get it again")
    ),
    "gzip that is none": refused_data(
        idx_pair(idx(IDX_IMAGES), end=".gz"), ("images", "cannot be read", "get it again")
    ),
    "gzip of 10 GB behind a small header": refused_data(
        idx_pair(gzip.compress(idx(IDX_IMAGES)) + ZEROS * 1000, end=".gz"),
        ("train-images", "shape of 3x4x5", "get it again"),
        megabytes=40,
    ),
    "gzip of less than its header says": refused_data(
        idx_pair(gzip.compress(BIG_HEADER + bytes(999)), end=".gz"), ("images", "60000x28x28", "get it"), megabytes=2
    ),
    # parquet
    "parquet": Loaded(
        parquet({"image": [PICTURE, PICTURE], "label": [1, 0]}),
        (2, 1, 6, 9),
        [1, 0],
        ["0", "1"],
        pixels=[[GREY], [GREY]],
    ),
    "parquet without an image column": refused_data(
        parquet({"picture": [PICTURE], "label": [0]}), ("train.parquet", "columns picture, label", "are needed")
    ),
    "parquet with an image that is cut off": refused_data(
        parquet({"image": [PICTURE, {"bytes": png(np.tile(RGB, (20, 20, 1)))[:300], "path": None}], "label": [0, 0]}),
        ("train.parquet, image 1", "cannot be read", "repair it or leave it out"),
    ),
    "parquet whose images are paths: they are not followed": refused_data(
        parquet({"image": [{"bytes": None, "path": "/etc/hostname"}], "label": [0]}),
        ("train.parquet", "image 0 holds no bytes", "embed the images"),
    ),
    "parquet without a label": refused_data(
        parquet({"image": [PICTURE, PICTURE], "label": [0, None]}),
        ("column 'label'", "row 1 holds 'None'", "leave out"),
    ),
    "parquet with labels of -1": refused_data(
        parquet({"image": [PICTURE, PICTURE], "label": [-1, 0]}), ("train", "labels run from -1 to 0", "leave out")
    ),
    "parquet with a label of two billion": refused_data(
        parquet({"image": [PICTURE], "label": [2_000_000_000]}), ("1 images", "labels to 2000000000", "labels from 0")
    ),
    "parquet of labels beyond 64 bits": refused_data(
        parquet({"image": [PICTURE], "label": [float("inf")]}), ("column 'label'", "holds 'inf'", "leave out")
    ),
    "parquet with a text of names that nests too deep": Loaded(
        parquet({"image": [PICTURE], "label": [0]}, {"huggingface": "[" * 100_000}), (1, 1, 6, 9), [0], ["0"]
    ),
    "parquet that is none": refused_data(
        put("train.parquet", b"PAR1 nothing PAR1"), ("train.parquet", "cannot be read as parquet", "get it again")
    ),
    "parquet without its package": without(
        "pyarrow.parquet",
        parquet({"image": [PICTURE], "label": [0]}),
        ("train.parquet", "needs pyarrow", "pip install 'brickyard[parquet]'"),
        lambda place: load_data(place.folder),
    ),
}

# -- sources -------------------------------------------------------------------------------------------------


def refused_source(
    spec: str, words: tuple[str, str, str], write: Callable[[Path], object] | None = None, weights: str | None = None
) -> Refused:
    def act(place: Place) -> Callable[[], object]:
        if write is not None:
            write(place.folder)
        file = None if weights is None else place.folder / weights
        return lambda: load_source(spec.replace("F/", f"{place.folder}/"), weights=file)

    return Refused(act, words)


def evil_weights(folder: Path) -> None:
    torch.save({"conv1.weight": Marker(folder / "ran")}, folder / "x.pt")
    torch.load(folder / "x.pt", weights_only=False)
    (folder / "ran").unlink()  # the control: plain unpickling made it


def weights_with(**changes: torch.Tensor | None) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        from brickyard.training._sources import build_seeded

        state = build_seeded("lenet5", 3).state_dict()
        for key, value in changes.items():
            name = key.replace("__", ".")
            if value is None:
                del state[name]
            else:
                state[name] = value
        save_file(state, folder / "x.safetensors")

    return write


LENET = "zoo:lenet5?classes=3&channels=3"
SOURCES: dict[str, Any] = {
    "a near miss in the zoo": refused_source("zoo:resnet21?classes=2", ("resnet21", "did you mean 'resnet", "Known")),
    "an option that a network lacks": refused_source(f"{LENET}&colour=red", ("lenet5", "'colour'", "it takes width")),
    "a width that is a word": refused_source(
        f"{LENET}&width=wide", ("lenet5", "width='wide'", "give a number above 0")
    ),
    "a width that is no number": refused_source(f"{LENET}&width=nan", ("lenet5", "width=nan", "give a number above 0")),
    "no outputs": refused_source("zoo:lenet5?classes=0", ("lenet5", "classes=0", "give a whole number from 1")),
    "a million million outputs": refused_source(
        "zoo:lenet5?classes=1000000000000", ("lenet5", "classes=1000000000000", "give a whole number from 1")
    ),
    "classes that nobody said": refused_source(
        "zoo:lenet5", ("zoo:lenet5", "is not known", "give zoo:lenet5?classes=")
    ),
    "a kind of source that is none": refused_source("hub:someone/pets", ("hub:", "is not understood", "give zoo:NAME")),
    "an address": refused_source("https://example.org/x.py", ("https:", "is not understood", "give zoo:NAME")),
    "nothing": refused_source("", ("''", "is not understood", "give zoo:NAME")),
    "a near miss in torchvision": refused_source(
        "torchvision:resnet81", ("'resnet81'", "did you mean 'resnet", "torchvision.models.list_models()")
    ),
    "a near miss in timm": refused_source(
        "timm:resnet81", ("'resnet81'", "did you mean 'resnet", "timm.list_models()")
    ),
    "torchvision that is not installed": without(
        "torchvision.models",
        lambda folder: None,
        ("torchvision:resnet18", "needs torchvision", "pip install 'brickyard[torchvision]'"),
        lambda place: load_source("torchvision:resnet18"),
    ),
    "timm that is not installed": without(
        "timm",
        lambda folder: None,
        ("timm:resnet18", "needs timm", "pip install 'brickyard[timm]'"),
        lambda place: load_source("timm:resnet18"),
    ),
    "the Hub without its package": without(
        "huggingface_hub",
        lambda folder: None,
        ("someone/pets", "needs huggingface_hub", "pip install 'brickyard[hub]'"),
        lambda place: from_pretrained("someone/pets"),
    ),
    "a folder for a Hub repository, without its file": Refused(
        lambda place: lambda: from_pretrained(place.folder),
        ("brickyard.safetensors", "No such file", "check the path"),
        FileError,
    ),
    ".pt with code: nothing runs": refused_source(
        LENET, ("x.pt", "more than tensors", "model.state_dict()"), evil_weights, "x.pt"
    ),
    ".pt that is text": refused_source(LENET, ("x.pt", "are damaged", "Save model"), put("x.pt", b"hello"), "x.pt"),
    ".pt that is a whole model": refused_source(
        LENET,
        ("x.pt", "more than tensors", "Save model.state_dict()"),
        lambda folder: torch.save(chain(), folder / "x.pt"),
        "x.pt",
    ),
    ".pt that is a list": refused_source(
        LENET, ("x.pt", "no table of tensors", "save"), lambda f: torch.save([torch.zeros(1)], f / "x.pt"), "x.pt"
    ),
    "weights that are a folder": refused_source(LENET, ("x.pt", "no plain file", "check"), put("x.pt/y"), "x.pt"),
    "weights of another shape": refused_source(
        LENET,
        ("x.safetensors", "of another shape: conv1.weight (1, 2)", "Check the name, width"),
        weights_with(conv1__weight=torch.zeros(1, 2)),
        "x.safetensors",
    ),
    "weights with a layer missing": refused_source(
        LENET,
        ("do not fit LeNet", "missing: fc1.bias", "Check the name"),
        weights_with(fc1__bias=None),
        "x.safetensors",
    ),
    "weights with a layer more": refused_source(
        LENET,
        ("do not fit LeNet", "not in the network: fc9.bias", "Check the name"),
        weights_with(fc9__bias=torch.zeros(1)),
        "x.safetensors",
    ),
    "weights that are not finite": refused_source(
        LENET,
        ("x.safetensors", "not finite in fc3.bias", "get them again"),
        weights_with(fc3__bias=torch.full((3,), float("nan"))),
        "x.safetensors",
    ),
    "weights of something else": refused_source(
        f"{LENET}&width=1",
        ("x.safetensors do not fit", "missing: conv1.weight", "Check the name"),
        lambda folder: save_file({"embedding": torch.zeros(2, 2)}, folder / "x.safetensors"),
        "x.safetensors",
    ),
    "a Python file that is none": refused_source(
        "F/x.py:make", ("x.py", "SyntaxError", "mend the file"), put("x.py", b"def (")
    ),
    "a Python file without the function": refused_source(
        "F/x.py:make", ("x.py:make", "no function 'make'", "it has build"), put("x.py", b"def build(): pass")
    ),
    "a Python function that fails": refused_source(
        "F/x.py:make", ("x.py:make", "ZeroDivisionError", "called without arguments"), put("x.py", b"def make(): 1 / 0")
    ),
    "a Python function that returns no network": refused_source(
        "F/x.py:make", ("x.py:make", "returned a int", "return a torch.nn.Module"), put("x.py", b"def make(): return 3")
    ),
}

# -- commands ------------------------------------------------------------------------------------------------

CUT = ("disassemble", "W/s.safetensors", "--relevance", "W/r.safetensors", "--heal", "none", "-o", "F/x.safetensors")
LOCATE = ("locate", "W/s.safetensors", "--data", "W/train", "-o", "F/x.safetensors")
TO = ("-o", "F/x.safetensors")
TRAIN = ("train", "lenet5", "--data", "digits", "--epochs", "1", "-o", "F/x.safetensors")
USAGE = "Try 'brickyard"


def cut(task: str, *more: str, words: tuple[str, str, str], code: int = 1) -> Shell:
    return Shell((*CUT, "--task", task, *more), words, code)


MISSING = {
    **dict.fromkeys(("train",), "network"),
    **dict.fromkeys(("locate", "disassemble", "routes"), "source"),
    **dict.fromkeys(("assemble", "report"), "files"),
    **dict.fromkeys(("evaluate", "predict", "export", "push"), "file"),
    "show": "item",
    "build": "recipe",
    "workbench": "--yard",
    "yard add": "files",
    "yard show": "name",
    "yard rm": "names",
}


def no_signs(place: Place, result: Any) -> None:
    """Plain text: no colour and no line that a width has broken."""
    assert "\x1b" not in result.stdout
    assert result.stdout == shell(place, "show", "W/a.safetensors").stdout


def six_digits(place: Place, result: Any) -> None:
    """The same numbers as the library's, from one object on one line."""
    assert len(result.stdout.splitlines()) == 1
    found = json.loads(result.stdout)["predictions"][0]["classes"]
    model = by.load(place.work / "names.safetensors")
    wanted = model.predict_proba(place.work / "photo.png")[0]
    order = wanted.argsort(descending=True).tolist()
    assert [item["name"] for item in found] == [NAMES[k] for k in order]
    assert [item["probability"] for item in found] == pytest.approx(wanted[order].tolist(), abs=1e-6)


def escaped(place: Place, result: Any) -> None:
    for name in NAMES:
        assert (
            name.encode("ascii", "backslashreplace").decode().replace("\x1b", "\\x1b").replace("\n", "\\n")
            in result.stdout
        )
    assert "\x1b" not in result.stdout


def quiet(place: Place, result: Any) -> None:
    assert "犬 ☃\\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout


def all_scores(place: Place, result: Any) -> None:
    """Rows of 0, 1 and 2 only: the others are left out, and the note about them is not in the JSON."""
    assert len(result.stdout.splitlines()) == 1
    rows = json.loads(result.stdout)["rows"]
    test = load_data("digits", split="test").of_classes([0, 2])
    assert rows[-1]["images"] == len(test)
    model = by.load(place.work / "a.safetensors")
    right = [a == test.classes[k] for a, k in zip(model.predict(test.images), test.labels.tolist(), strict=True)]
    assert rows[-1]["accuracy"] == pytest.approx(100 * sum(right) / len(right))


def one_part(place: Place, result: Any) -> None:
    """The page of an assembly of one part has the accuracy that `evaluate` finds."""
    score = ("evaluate", "W/one.safetensors", "--data", "W/train", "--no-latency", "--json")
    row = json.loads(shell(place, *score).stdout)["rows"][-1]
    page = (place.folder / "page.html").read_text(encoding="utf-8")
    assert f"<td><bdi>{row['accuracy']:.1f}±{row['error']:.1f}</bdi></td>" in page


def odd_path(place: Place, result: Any) -> None:
    answer = json.loads(result.stdout)["predictions"][0]
    assert answer["image"] == f"{place.folder}/\udcff.png"
    wanted = by.load(place.work / "a.safetensors").predict(place.folder / "\udcff.png")
    assert [answer["classes"][0]["name"]] == wanted


def same_as_json(place: Place, result: Any) -> None:
    assert json.loads(result.stdout)["classes"] == ["0", "2"]
    assert by.load(place.folder / "x.safetensors").classes == ("0", "2")


ODD = ("predict", "W/names.safetensors", "W/photo.png")
COMMANDS: dict[str, Any] = {
    **{
        f"{name}: no arguments": Shell(name.split(), ("Usage: brickyard", USAGE, f"Missing {kind}"), 2)
        for name, what in MISSING.items()
        for kind in [f"option '{what}'" if what[0] == "-" else f"argument '{what}'"]
    },
    **{
        f"{name}: an option that is none": Shell(
            (*name.split(), "--colour"), ("Usage: brickyard", USAGE, "--colour"), 2
        )
        for name in ("demo", *MISSING, "yard list", "yard search", "yard verify")
    },
    "a command that is none": Shell(("assembel",), ("Usage", USAGE, "No such command 'assembel'"), 2),
    # tasks and budgets
    "a task of an unknown class": cut("cat", words=("class 'cat'", "the source knows 0, 1, 2", "name some of these")),
    "an empty task": cut("", words=("the task", "is empty", "name at least one of 0, 1, 2")),
    "a task of commas": cut(" , ,", words=("the task", "is empty", "name at least one of 0, 1, 2")),
    "a class twice in a task": cut("0,2,0", words=("class '0'", "named twice", "name each class once")),
    "a class twice in a task, by a range": cut("0-2,1", words=("class '1'", "named twice", "name each class once")),
    "a range that runs backwards": cut("2-0", words=("range '2-0'", "runs backwards", "write 0-2")),
    "a range beyond the classes": cut("1-7", words=("range '1-7'", "classes 0 to 2", "end it there")),
    "a negative class": cut("-1", words=("class '-1'", "the source knows 0, 1, 2", "name some of these")),
    "a task that is no UTF-8": cut(
        "\udcff", words=("class '\\udcff'", "the source knows 0, 1, 2", "name some of these")
    ),
    **{
        f"a budget of {share}": cut(
            "0", "--flops", share, words=("budget flops", "not a share in (0, 1]", "0.5 is half")
        )
        for share in ("0", "200", "-1", "nan", "inf")
    },
    "a budget of abc": cut("0", "--flops", "abc", words=("Usage", USAGE, "Invalid value for '--flops'"), code=2),
    "two budgets": cut(
        "0", "--flops", "0.5", "--parameters", "0.5", words=("needs one of", "2 were given", "keep one")
    ),
    "a budget too small for any channel": cut(
        "0", "--flops", "1e-9", words=("1e-09", "already take", "raise the budget")
    ),
    "multiples without a budget": cut("0", "--round-to", "8", words=("--round-to 8", "none was given", "add --flops")),
    "a repair that is none": cut("0", "--heal", "glue", words=("heal='glue'", "is not a choice", "use one of 'refit'")),
    # numbers and names
    "a seed beyond 64 bits": Shell((*LOCATE, "--seed", str(2**70)), ("Usage", USAGE, "Invalid value for '--seed'"), 2),
    "a threshold that is no number": Shell((*LOCATE, "--alpha", "nan"), ("threshold alpha", "nan", "the paper uses")),
    "a size that is a word": Shell((*LOCATE, "--size", "big"), ("--size 'big'", "was given", "give 32, 32x48")),
    "a size with a raised two": Shell((*LOCATE, "--size", "3²"), ("--size '3²'", "was given", "give 32, 32x48")),
    "a size of nothing": Shell((*LOCATE, "--size", "0"), ("preprocessing", "size.0", "greater than or equal to 1")),
    "means that are words": Shell((*LOCATE, "--mean", "a,b"), ("--mean 'a,b'", "was given", "numbers by commas")),
    "a mean without a deviation": Shell((*LOCATE, "--mean", "0.5"), ("preprocessing", "go together", "give both")),
    "too few class names": Shell(
        (*LOCATE, "--class-names", "a,b"), ("lenet5", "3 outputs and 2 class names", "as many")
    ),
    "a class name twice": Shell((*LOCATE, "--class-names", "a,b,a"), ("class name 'a'", "occurs twice", "must differ")),
    "a class name that is empty": Shell((*LOCATE, "--class-names", "a,,b"), ("class name ''", "empty", "give another")),
    "a class name that is no UTF-8": Shell(
        (*LOCATE, "--class-names", "a,b,\udcff"), ("class name '\\udcff'", "no UTF-8", "give another")
    ),
    "a learning rate that is no number": Shell(
        (*TRAIN, "--lr", "nan"), ("lr=nan", "lr is above 0", "0.1 for a new network")
    ),
    "a network with its own count of classes": Shell(
        ("train", "lenet5?classes=7", *TRAIN[2:]), ("classes=7", "the images have 10", "leave it out")
    ),
    "classes that the data lack": Shell(
        (*TRAIN, "--classes", "cat"), ("class 'cat'", "knows 0, 1, 2", "name some of these")
    ),
    # files
    "a folder for a file": Shell(
        ("show", "W/folder.safetensors"), ("folder.safetensors", "Is a directory", "check the path")
    ),
    "a file for a folder of images": Shell(
        ("evaluate", "W/a.safetensors", "--data", "W/photo.png"), ("photo.png", "is neither", "give one of these")
    ),
    "a file for a yard": Shell(("yard", "list", "--yard", "W/photo.png"), ("photo.png", "is a file", "give a folder")),
    "a yard that is not there": Shell(("yard", "verify", "--yard", "F/no"), ("no", "does not exist", "give a folder")),
    "a recipe that is a picture": Shell(
        ("build", "W/photo.png"), ("photo.png", "no text in UTF-8", "save it as UTF-8")
    ),
    "a recipe that is not there": Shell(("build", "F/no.yaml"), ("no.yaml", "No such file", "check the path")),
    "a source for a component": Shell(
        ("export", "W/s.safetensors", "-o", "F/x.onnx"), ("s.safetensors", "without the text", "--weights")
    ),
    "an assembly for a component": Shell(
        ("yard", "add", "W/one.safetensors", "--yard", "W/yard"), ("one.safetensors", "kind assembly", "give its parts")
    ),
    "a class to leave out that is none": Shell(
        ("assemble", "W/a.safetensors", "--without", "cat", "-o", "F/x.safetensors"),
        ("class 'cat'", "none of 0, 2", "give one of them"),
    ),
    "two teachers": Shell(
        ("finetune", "W/a.safetensors", "--data", "digits", "--teacher", "W/a.safetensors", "--source", "x", *TO),
        ("--teacher", "--source", "one teacher"),
    ),
    "features of no source": Shell(
        ("finetune", "W/a.safetensors", "--data", "digits", "--features", "1", "-o", "F/x.safetensors"),
        ("--features 1", "none was given", "add --source"),
    ),
    "a teacher that does not know the classes": Shell(
        (
            "distil",
            "cnn",
            "--teacher",
            "W/a.safetensors",
            "--data",
            "digits",
            "--classes",
            "0-4",
            "-o",
            "F/x.safetensors",
        ),
        ("has no class '1'", "it knows 0, 2", "give one"),
    ),
    "an optimiser that is none": Shell(
        ("finetune", "W/a.safetensors", "--data", "digits", "--optimizer", "lion", "-o", "F/x.safetensors"),
        ("optimizer='lion'", "not a choice", "'adamw'"),
    ),
    "a picture for a component": Shell(
        ("predict", "W/photo.png", "W/a.safetensors"), ("photo.png", "is not a safetensors", "get it again")
    ),
    "a picture that is not there": Shell(
        ("predict", "W/a.safetensors", "F/no.png"), ("no.png", "no such file", "check the path")
    ),
    "a folder for a picture, on the command line": Shell(
        ("predict", "W/a.safetensors", "W/train"), ("train cannot be read", "no plain file", "check the path")
    ),
    "a picture that is text": Shell(
        ("predict", "W/a.safetensors", "F/x.jpg"),
        ("x.jpg", "it is no PNG", "leave it out"),
        write=put("x.jpg", b"text"),
    ),
    "a giant picture": Shell(
        ("predict", "W/a.safetensors", "F/x.png"),
        ("x.png", "too large: it has more pixels", "smaller first"),
        write=put("x.png", png(np.zeros((1, 9)), size=(30_000, 30_000))),
    ),
    "a name longer than names may be, of a picture": Shell(
        ("predict", "W/a.safetensors", "x" * 300), ("xxx", "File name too long", "check the path")
    ),
    "a name longer than names may be, of an output": Shell(
        (*LOCATE[:-1], "x" * 300), ("xxx", "File name too long", "check the path")
    ),
    "an output that exists": Shell((*LOCATE[:-1], "W/a.safetensors"), ("a.safetensors", "exists", "or --force")),
    "an output that is a folder": Shell(
        (*LOCATE[:-1], "W/train", "--force"), ("train", "is a folder", "name of a file")
    ),
    "an output in a folder that is not there": Shell((*LOCATE[:-1], "F/no/x"), ("no/x", "no folder", "make it first")),
    "an output that is the source": Shell(
        (*LOCATE[:-1], "W/s.safetensors", "--force"), ("s.safetensors", "is read too", "give another path")
    ),
    "an output that is a part": Shell(
        ("assemble", "W/a.safetensors", "-o", "W/train/../a.safetensors", "--force"),
        ("a.safet", "is read too", "another"),
    ),
    "a table that is the component": Shell(
        ("evaluate", "W/a.safetensors", "--data", "W/train", "--csv", "W/a.safetensors", "--force"),
        ("a.safetensors", "is read too", "give another path"),
    ),
    "a format that is none": Shell(
        ("export", "W/a.safetensors", "-o", "F/x.pt"), ("x.pt", "names no format", "use .onnx")
    ),
    "a picture format that is none": Shell(
        ("routes", "W/s.safetensors", "--relevance", "W/r.safetensors", "--classes", "0", "-o", "F/x.pdf"),
        ("x.pdf", "was asked for", "ends in .png or .svg"),
    ),
    # options that do not go together
    "images of classes that the source does not know": Shell(
        (*LOCATE[:3], "digits?classes=7-9", *LOCATE[4:]), ("digits has", "none of a class", "give images of these")
    ),
    "few-shot images that are missing": Shell(
        ("assemble", "W/a.safetensors", "-o", "F/x.safetensors", "--shots", "3"),
        ("--shots 3", "none were given", "add --images"),
    ),
    "a source that no form needs": Shell(
        ("assemble", "W/a.safetensors", "-o", "F/x.safetensors", "--source", "W/s.safetensors"),
        ("--source", "change nothing", "--form union"),
    ),
    "weights of no source": Shell(
        ("assemble", "W/a.safetensors", "-o", "F/x.safetensors", "--weights", "W/s.safetensors"),
        ("--weights", "none was given", "add --source"),
    ),
    "a size for a component": Shell(
        ("show", "W/a.safetensors", "--size", "9"), ("--size", "is none", "leave them out")
    ),
    "a part twice": Shell(
        ("assemble", "W/a.safetensors", "W/a.safetensors", "-o", "F/x.safetensors"),
        ("class '0'", "in part 0 (lenet5 (s)) and in part 1", "choose on_duplicate"),
    ),
    "a name in a yard that leaves it": Shell(
        ("yard", "add", "W/a.safetensors", "--yard", "W/yard", "--name", "../x"),
        ("'../x'", "is no name", "use letters"),
    ),
    "a repository that is none": Shell(
        ("push", "W/r.safetensors", "a/b"), ("r.safetensors", "holds a relevance", "needed")
    ),
    # the environment
    **{
        f"WORLD_SIZE={value!r}": Shell(
            ("show", "W/a.safetensors"),
            (f"WORLD_SIZE={value!r}", "0 to", "unset WORLD_SIZE"),
            env={"WORLD_SIZE": value},
        )
        for value in ("abc", "-3", "1e3", "", "²")
    },
    **{
        f"RANK={rank!r} of two": Shell(
            LOCATE, (f"RANK={rank!r}", "0 to 1", "unset RANK"), env={"WORLD_SIZE": "2", "RANK": rank}
        )
        for rank in ("abc", "7", "-1")
    },
    "a port that is none": Shell(
        LOCATE,
        ("MASTER_PORT='x'", "0 to 65535", "unset MASTER_PORT"),
        env={"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "x"},
    ),
    "RANK alone silences nothing": Printed(
        (*CUT, "--task", "0,2", "--json"), same_as_json, env={"RANK": "3", "WORLD_SIZE": None}
    ),
    "a narrow terminal without colour": Printed(
        ("show", "W/a.safetensors"), no_signs, env={"COLUMNS": "20", "NO_COLOR": "1", "TERM": "dumb"}
    ),
    "JSON is one object, whatever the names": Printed((*ODD, "--json"), six_digits),
    "JSON is one object, and ASCII where nothing else can be printed": Printed(
        (*ODD, "--json"), six_digits, charset="ascii"
    ),
    "names that the terminal cannot write": Printed(ODD, escaped, charset="ascii"),
    "names that a terminal would obey": Printed(ODD, quiet),
    "a picture whose name is no UTF-8": Printed(
        ("predict", "W/a.safetensors", "F/\udcff.png", "--json"), odd_path, write=put("\udcff.png", png(RGB))
    ),
    "a page at a port that is none": Shell(
        ("workbench", "--yard", "W/yard", "--port", "99999"), ("Usage", USAGE, "Invalid value for '--port'"), 2
    ),
    "a page at an address that is none": Shell(
        ("workbench", "--yard", "W/yard", "--host", "999.1.1.1"),
        ("--host 999.1.1.1", "cannot be used", "choose another"),
    ),
    "a demo in a file": Shell(("demo", "-o", "W/photo.png"), ("photo.png", "exists", "choose another")),
    "JSON is one object, beside a note": Printed(
        ("evaluate", "W/a.safetensors", "--data", "digits", "--no-latency", "--json"), all_scores, note="left out"
    ),
    "a report of an assembly of one part": Printed(
        ("report", "W/one.safetensors", "--data", "W/train", "-o", "F/page.html"), one_part
    ),
}

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
    for arguments in (
        (
            "train",
            "lenet5?width=0.5",
            "--data",
            "W/train",
            "--epochs",
            "6",
            "--batch-size",
            "8",
            "--lr",
            "0.05",
            "--size",
            "16",
            "-o",
            "W/s.safetensors",
        ),
        ("locate", "W/s.safetensors", "--data", "W/train", "--per-class", "5", "-o", "W/r.safetensors"),
        (*CUT[:-1], "W/a.safetensors", "--task", "0,2"),
        ("assemble", "W/a.safetensors", "-o", "W/one.safetensors"),
        ("yard", "add", "W/a.safetensors", "--yard", "W/yard"),
    ):
        result = shell(place, *arguments)
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
    with pytest.raises(DataError, match="9001 x 9001"):
        decode_image(tmp_path / "x.png")
    assert loads == []
    monkeypatch.setattr(datasets, "MAX_PIXELS", 9_001**2)  # the control: without the bound it is decoded
    monkeypatch.setattr(datasets, "_pixels", lambda image: 1 / 0)  # there are no pixels to go on with
    with pytest.raises(DataError, match="division by zero"):
        decode_image(tmp_path / "x.png")
    assert loads == [(9_001, 9_001)]


def test_a_bomb_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    """The control: what the same file would be, read whole."""
    content = gzip.compress(idx(IDX_IMAGES)) + ZEROS
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(IDX_LABELS)))
    peaks = []
    for read in (lambda: refused(lambda: load_data(tmp_path)), lambda: gzip.decompress(content)):
        tracemalloc.start()
        read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 1e6 < 10e6 < peaks[1]


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(DataError, match="no whole idx file"):
        act()


@pytest.mark.parametrize(
    ("command", "env", "code", "out", "err"),
    [
        ("yard list >&- <&-", {}, 1, "", "standard output is closed"),
        ("yard list >/dev/full", {}, 1, "", "cannot be printed: No space left on device"),
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
        ["bash", "-c", line], cwd=work, env={**os.environ, **env}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert len(done.stderr.splitlines()) == bool(err)
