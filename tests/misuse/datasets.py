"""Wrong and odd data: folders of images, idx and parquet files."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brickyard.inputs._datasets import load_data
from misuse.rows import (
    GREY,
    IDX_IMAGES,
    IDX_LABELS,
    NAMES,
    RGB,
    ZEROS,
    Loaded,
    Marker,
    Refused,
    Write,
    both,
    folder_of,
    idx,
    idx_pair,
    nothing,
    png,
    put,
    without,
)


def parquet(metadata: dict[str, str] | None = None, **columns: list[Any]) -> Write:
    def write(folder: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "train.parquet")

    return write


def bad(write: Write, code: str, *quoted: str, spec: str = "", megabytes: float = 64) -> Refused:
    return Refused(lambda place: load_data(f"{place.folder}/{spec}"), code, quoted, write, megabytes)


def name_that_is_no_utf8(folder: Path) -> None:
    os.mkdir(os.fsencode(folder) + b"/\xff\xfe")


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


def bad_idx(images: bytes, *quoted: str, end: str = "", most: float = 64) -> Refused:
    return bad(idx_pair(images, end=end), "data-damaged-file", f"{IMAGES}{end}", *quoted, megabytes=most)


def labels(code: str, *values: Any, quoted: tuple[str, ...]) -> Refused:
    return bad(parquet(image=[PICTURE] * len(values), label=list(values)), code, "train", *quoted)


SQUARE = (32, 32)
HUGE = "?classes=0-900000000"
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
UNEVEN = both(folder_of("a/0.png"), folder_of("b/0.png", size=(5, 5)))
HALF = png(np.tile(RGB, (20, 20, 1)))[:300]
CUT_OFF = put("a/1.png", HALF)
DOTTED = both(put("x-images.idx3-ubyte", idx(IDX_IMAGES)), put("x-labels.idx1-ubyte", idx(IDX_LABELS)))
PACKED = gzip.compress(idx(IDX_IMAGES))
T10K = both(put("t10k-images-idx3-ubyte.gz", PACKED), put("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(IDX_LABELS))))
PICTURE = {"bytes": png(GREY), "path": None}
ONE = parquet(image=[PICTURE], label=[0])
CLASSES = json.dumps({"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}})
NAMED = parquet({"huggingface": CLASSES}, image=[{"bytes": png(RGB), "path": None}, PICTURE], label=[0, 1])
NO_IMAGE = parquet(picture=[PICTURE], label=[0])
PARTLY = parquet(image=[PICTURE, {"bytes": HALF, "path": None}], label=[0, 0])
PATHS = parquet(image=[{"bytes": None, "path": "/etc/hostname"}], label=[0])
NESTED = parquet({"huggingface": "[" * 100_000}, image=[PICTURE], label=[0])

DATA: dict[str, Any] = {
    "a folder without anything": bad(nothing, "data-no-images", "'train'"),
    "pictures without classes": bad(folder_of("1.png", "2.png"), "data-no-images", "'train'"),
    "classes without pictures": bad(put("a/notes.txt", b"none"), "data-no-images", "'train'", "'a'"),
    "only hidden files": bad(folder_of("a/.x.png", ".b/y.png"), "data-no-images", "'train'", "'a'"),
    "pictures in a deeper folder": Loaded(
        folder_of("a/b/x.png", "a/y.png", "c/d/z.png"), (3, 1, 6, 9), [0, 0, 1], "ac"
    ),
    "an empty class keeps its number": Loaded(
        both(folder_of("a/0.png", "c/1.png"), put("b/none.txt")), (2, 1, 6, 9), [0, 2], "abc"
    ),
    "hidden files and others beside pictures": Loaded(
        both(folder_of(*TWO), put("a/._0.png", b"fork"), put("a/Thumbs.db"), put("a/x.svg"), put("README.md")),
        (2, 1, 6, 9),
        [0, 1],
        "ab",
    ),
    "links that go round": Loaded(looped, (3, 1, 6, 9), [0, 1, 1], "ab"),
    "a class with one picture": Loaded(
        folder_of("a/0.png", "a/1.png", "a/2.png", "b/3.png"), (4, 1, 6, 9), [0, 0, 0, 1], "ab"
    ),
    "unusual class names": Loaded(folder_of(*(f"{n}/x.png" for n in NAMES)), (3, 1, 6, 9), [0, 1, 2], sorted(NAMES)),
    "a very long class name": Loaded(folder_of(f"{LONG}/x.png"), (1, 1, 6, 9), [0], [LONG]),
    "classes that differ by case": Loaded(folder_of("Cat/0.png", "cat/1.png"), (2, 1, 6, 9), [0, 1], ["Cat", "cat"]),
    "a class name that is no UTF-8": bad(name_that_is_no_utf8, "data-class-names", r"\udcff\udcfe", "UTF-8"),
    "grey beside colour": Loaded(
        both(folder_of("a/0.png"), lambda f: (f / "a" / "1.png").write_bytes(png(RGB))),
        (2, 3, 6, 9),
        [0, 0],
        "a",
        pixels=[np.zeros((3, 6, 9)), RGB.transpose(2, 0, 1)],
    ),
    "several sizes": bad(UNEVEN, "data-not-batchable", "6x9", "5x5"),
    "several sizes, and one asked for": Loaded(
        both(UNEVEN, folder_of("c/0.png", "b/1.png", size=(5, 5))),
        (4, 1, 4, 4),
        [0, 1, 1, 2],
        "abc",
        options={"size": (4, 4)},
        pixels=np.array([0, 0, 1, 0]).reshape(4, 1, 1, 1),
    ),
    "a picture 20,000 times as wide as high": Loaded(
        put("a/x.png", png(THIN)), (1, 1, *SQUARE), [0], "a", options={"size": SQUARE}, pixels=cropped(THIN, SQUARE)
    ),
    "a picture that is cut off, by its name": bad(
        both(folder_of("a/0.png"), CUT_OFF), "data-unreadable-image", "1.png"
    ),
    "a split that is not there": bad(folder_of("train/a/0.png"), "data-missing", "'test'", "train", spec="?split=test"),
    "the test split of a folder": Loaded(
        folder_of("train/a/0.png", "test/a/1.png", "test/b/2.png"),
        (2, 1, 6, 9),
        [0, 1],
        "ab",
        options={"split": "test"},
        pixels=np.array([1, 2]).reshape(2, 1, 1, 1),
    ),
    "a split of a flat folder": bad(folder_of(*TWO), "data-missing", "'train'", "a, b", spec="?split=train"),
    "classes beyond the data": bad(folder_of(*TWO), "task-range", "'0-9'", "0 to 1", spec="?classes=0-9"),
    "a range with more numbers than memory": bad(folder_of(*TWO), "task-range", "'0-900000000'", "0 to 1", spec=HUGE),
    "a small raised two for a number": bad(folder_of(*TWO), "task-unknown-class", "'²'", "a, b", spec="?classes=²"),
    "a name longer than names may be": bad(nothing, "data-missing", "xxx", spec="x" * 300),
    "no name at all": Refused(lambda place: load_data(""), "option-empty", ("''", "digits")),
    "a text file": bad(put("x.txt", b"x"), "data-unknown-format", "x.txt", spec="x.txt"),
    "npz with pickled objects: nothing runs": bad(evil_npz, "data-unknown-format", "x.npz", spec="x.npz"),
    "pickled CIFAR batches: nothing runs": bad(evil_batches, "data-no-images", "'train'"),
    # idx
    "idx": Loaded(idx_pair(), (3, 1, 4, 5), [2, 0, 1], "012", pixels=IDX_IMAGES[:, None]),
    "idx with dots": Loaded(DOTTED, (3, 1, 4, 5), [2, 0, 1], "012", spec="x-images.idx3-ubyte"),
    "packed idx of the test split": Loaded(
        T10K, (3, 1, 4, 5), [2, 0, 1], "012", options={"split": "test"}, pixels=IDX_IMAGES[:, None]
    ),
    "idx with labels that are none": bad(idx_pair(labels=b"nothing"), "data-damaged-file", LABELS),
    "idx of floating point": bad_idx(idx(IDX_IMAGES, 13), "00 00 0d"),
    "idx with another magic number": bad_idx(b"PK" + idx(IDX_IMAGES)[2:], "50 4b 08 03"),
    "idx of two dimensions": bad_idx(idx(IDX_IMAGES, shape=(12, 5)), "00 00 08 02", "12x5"),
    "idx that is too short": bad_idx(idx(IDX_IMAGES)[:-1], "3x4x5"),
    "idx that is too long": bad_idx(idx(IDX_IMAGES) + b"1", "3x4x5"),
    "idx with a shape beyond memory": bad_idx(idx(IDX_IMAGES, shape=(2**32 - 1,) * 3), "4294967295x4294967295", most=2),
    "an empty idx file": bad_idx(b""),
    "idx with fewer labels": bad(idx_pair(labels=idx(IDX_LABELS[:2])), "data-shape", "(3, 1, 4, 5)", "(2,)"),
    "idx without labels": bad(put(IMAGES, idx(IDX_IMAGES)), "data-damaged-file", LABELS),
    "idx: the labels for the images": bad(idx_pair(), "data-unknown-format", LABELS, IMAGES, spec=LABELS),
    "gzip that is cut off": bad_idx(gzip.compress(idx(IDX_IMAGES))[:-12], end=".gz"),
    "gzip that is none": bad_idx(idx(IDX_IMAGES), end=".gz"),
    "gzip of 10 GB behind a small header": bad_idx(PACKED + ZEROS * 1000, "3x4x5", end=".gz", most=40),
    "gzip of less than its header says": bad_idx(
        gzip.compress(BIG_HEADER + bytes(999)), "60000x28x28", end=".gz", most=2
    ),
    # parquet
    "parquet": Loaded(parquet(image=[PICTURE] * 2, label=[1, 0]), (2, 1, 6, 9), [1, 0], "01", pixels=[[GREY], [GREY]]),
    "parquet with names of its classes, colour beside grey": Loaded(
        NAMED, (2, 3, 6, 9), [0, 1], ("no", "yes"), pixels=[RGB.transpose(2, 0, 1), [GREY] * 3]
    ),
    "a parquet file by its name": Loaded(ONE, (1, 1, 6, 9), [0], "0", spec="train.parquet", pixels=[[GREY]]),
    "parquet without an image column": bad(NO_IMAGE, "data-unknown-format", "train.parquet", "picture, label"),
    "parquet with an image that is cut off": bad(PARTLY, "data-unreadable-image", "train.parquet", "image 1"),
    "parquet whose images are paths: they are not followed": bad(
        PATHS, "data-unreadable-image", "train.parquet", "image 0"
    ),
    "parquet without a label": labels("data-label-mismatch", 0, None, quoted=("'label'", "row 1", "None")),
    "parquet with labels of -1": labels("data-label-out-of-range", -1, 0, quoted=("-1 to 0",)),
    "parquet with a label of two billion": labels(
        "data-label-out-of-range", 2 * 10**9, quoted=("1 images", "2000000000")
    ),
    "parquet of labels beyond 64 bits": labels("data-label-mismatch", float("inf"), quoted=("'label'", "inf")),
    "parquet with a text of names that nests too deep": Loaded(NESTED, (1, 1, 6, 9), [0], "0"),
    "parquet that is none": bad(put("train.parquet", b"PAR1 nothing PAR1"), "data-damaged-file", "train.parquet"),
    "parquet without its package": without(
        "pyarrow.parquet", lambda place: load_data(place.folder), "train.parquet", "pyarrow", write=ONE
    ),
}
