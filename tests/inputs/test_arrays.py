"""Arrays: .npz and .npy files, compared with what numpy alone reads."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brickyard as by
from brickyard.inputs import _arrays as arrays
from brickyard.inputs import load_data
from brickyard.testing import chain
from errors import refused

R = np.random.default_rng(5)
COLOUR = R.integers(0, 256, (6, 8, 7, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
LABELS = np.array([2, 0, 1, 1, 0, 2])


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("x", "y"), ("X", "y"), ("data", "label"), ("x_train", "y_train"), ("arr_0", "arr_1"),
     ("data", "targets"), ("train_images", "train_labels"), ("X_train", "y_train"), ("mfcc", "label")],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_keys_in_use(images: str, labels: str, packed: bool, tmp_path: Path) -> None:
    (np.savez_compressed if packed else np.savez)(tmp_path / "d.npz", **{images: GREY, labels: LABELS})
    data = load_data(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as by_numpy:
        assert np.array_equal(data.images.numpy()[:, 0], by_numpy[images])
        assert np.array_equal(data.labels.numpy(), by_numpy[labels])
    assert not np.array_equal(data.images.numpy()[:, 0], GREY[::-1])  # the control
    assert data.classes == ("0", "1", "2")


def test_medmnist(tmp_path: Path, capsys) -> None:
    parts = {"train": slice(0, 3), "val": slice(3, 4), "test": slice(4, 6)}
    found = {f"{part}_images": COLOUR[place] for part, place in parts.items()}
    found |= {f"{part}_labels": LABELS[place, None].astype(np.uint8) for part, place in parts.items()}
    path = saved(tmp_path / "bloodmnist.npz", **found)
    for part, place in parts.items():
        data = load_data(f"{path}?split={part}")
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), COLOUR[place])
        assert data.labels.tolist() == LABELS[place].tolist()
    assert len(load_data(path)) == 3
    del found["test_images"], found["test_labels"]
    saved(path, **found)
    capsys.readouterr()
    assert len(load_data(path, split="test")) == 1
    assert "'val' serves as it" in capsys.readouterr().err
    with refused("data-missing", "'extra'", "train, val"):
        load_data(f"{path}?split=extra")
    saved(path, **(found | {"train_labels": np.eye(3, 14, dtype=np.uint8) + np.eye(3, 14, 1, dtype=np.uint8)}))
    with refused("data-label-mismatch", "(3, 14)"):
        load_data(path)


def test_labels_in_other_forms_and_names(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    names = np.array(["ant", "bee", "cow", "dög"])
    for key in ("classes", "class_names"):
        data = load_data(saved(path, images=GREY, labels=LABELS, **{key: names}))
        assert data.classes == ("ant", "bee", "cow", "dög")
    assert load_data(saved(path, images=GREY, labels=LABELS.astype(float))).labels.tolist() == LABELS.tolist()
    assert load_data(saved(path, images=GREY, labels=np.eye(3)[LABELS])).labels.tolist() == LABELS.tolist()
    data = load_data(saved(path, images=GREY, labels=names[LABELS]))
    assert (data.classes, data.labels.tolist()) == (("ant", "bee", "cow"), LABELS.tolist())
    data = load_data(saved(path, images=GREY, labels=np.char.encode(names[:3])[LABELS]))
    assert (data.classes, data.labels.tolist()) == (("ant", "bee", "cow"), LABELS.tolist())
    for labels, code in [
        (LABELS[:4], "data-shape"), (LABELS - 1, "data-label-out-of-range"), (LABELS + 0.5, "data-label-mismatch"),
    ]:  # fmt: skip
        with refused(code, "d.npz"):
            load_data(saved(path, images=GREY, labels=labels))
    with refused("data-label-out-of-range", "2 class names"):
        load_data(saved(path, images=GREY, labels=LABELS, classes=names[:2]))
    with refused("data-class-names", "unique"):
        load_data(saved(path, images=GREY, labels=LABELS, classes=names[[0, 0, 1]]))


LAYOUTS = {  # shape -> where the channels are, or None where that cannot be told
    (6, 8, 7): "three axes",
    (6, 8, 7, 3): "channels last",
    (6, 3, 8, 7): "channels first",
    (6, 8, 7, 1): "channels last",
    (6, 1, 8, 7): "channels first",
    (6, 8, 8, 4): "channels last",
    (6, 13, 8, 8): "channels first",
    (6, 64): "square",
    (6, 3, 8, 3): None,
    (6, 4, 8, 7): None,
    (6, 8, 8, 8): None,
    (6, 192): None,
    (6,): None,
    (6, 1, 8, 7, 3): None,
}


@pytest.mark.parametrize("shape", LAYOUTS)
def test_channels_are_told_by_the_shape_or_refused(shape: tuple[int, ...], tmp_path: Path, capsys) -> None:
    images = R.integers(0, 256, shape, dtype=np.uint8)
    path = saved(tmp_path / "d.npz", images=images, labels=LABELS)
    where = LAYOUTS[shape]
    if where is None:
        with refused("data-shape", "d.npz", str(shape), "channels"):
            load_data(path)
        return
    wanted = {"three axes": lambda: images[:, None], "square": lambda: images.reshape(6, 1, 8, 8)}
    wanted |= {"channels first": lambda: images, "channels last": lambda: np.moveaxis(images, 3, 1)}
    assert np.array_equal(load_data(path).images.numpy(), wanted[where]())
    assert where in capsys.readouterr().err


SAID = {"uint16": "65535", "int64": "int64 from", "data that are no pictures": "not images"}


def test_numbers(tmp_path: Path, capsys) -> None:
    path = tmp_path / "d.npz"
    wide = R.integers(0, 65536, (6, 8, 7), dtype=np.uint16)
    share = R.random((6, 8, 7))
    same = {
        "uint16": (wide, wide / 65535),
        "big-endian uint16": (wide.astype(">u2"), wide / 65535),
        "float64": (share, share),
        "float16": (share.astype(np.float16), share.astype(np.float16)),
        "big-endian float32": (share.astype(">f4"), share.astype(np.float32)),
        "int64": (GREY.astype(np.int64), GREY),
        "bool": (share > 0.5, np.where(share > 0.5, 255, 0)),
        "Fortran order": (np.asfortranarray(GREY), GREY),
        "data that are no pictures": (share * 40 - 30, share * 40 - 30),
    }
    for name, (images, wanted) in same.items():
        data = load_data(saved(path, images=images, labels=LABELS))
        assert np.abs(data.images.numpy()[:, 0].astype(float) - wanted).max() < 1e-5, name
        assert data.images.dtype == (torch.float32 if np.asarray(wanted).dtype.kind == "f" else torch.uint8), name
        said = capsys.readouterr().err
        assert {"uint16": "65535", "int64": "int64 from", "data that are no pictures": "not images"}.get(
            name, ""
        ) in said
    clipped = np.clip(wide, 0, 255) / 255  # the control
    assert np.abs(load_data(saved(path, images=wide, labels=LABELS)).images.numpy()[:, 0] - clipped).max() > 0.5
    for images, code, quoted in [
        (share * 255, "data-not-raw", "divide it by 255"),
        (np.where(share > 0.9, np.nan, share), "data-not-finite", "NaN"),
        (GREY.astype(np.uint16), "data-type", "uint16"),
        (GREY.astype(np.int32) * 3, "data-type", "int32"),
        ((GREY > 9).astype(np.int64), "data-type", "int64"),
        (share.astype(complex), "data-type", "complex128"),
        (GREY[:0], "data-shape", "(0, 8, 7)"),
    ]:
        with refused(code, "d.npz", quoted):
            load_data(saved(path, images=images, labels=LABELS))
    with refused("data-no-images", "d.npz"):
        load_data(saved(path, images=GREY[:0], labels=LABELS[:0]))


def test_maps_that_are_no_pictures_go_through_a_source_that_takes_them_as_they_are(tmp_path: Path) -> None:
    maps = R.normal(0, 20, (12, 3, 8, 8)).astype(np.float32)
    path = saved(tmp_path / "d.npz", features=maps, label=np.arange(12) % 4)
    data = load_data(path)
    assert torch.equal(data.images, torch.from_numpy(maps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", by.BrickyardWarning)  # the source is at chance
        assert by.locate(chain(), data, preprocessing=by.Preprocessing()).preprocessing.unknown
        with refused("data-not-raw", "[0, 1]"):
            by.locate(chain(), data, preprocessing=by.Preprocessing(mean=(0.5,), std=(0.5,)))
        saved(path, images=R.random((12, 3, 8, 8)), label=np.arange(12) % 4)  # the control: pictures
        assert not by.locate(chain(), load_data(path), preprocessing=by.Preprocessing()).preprocessing.unknown


@pytest.mark.shared
def test_speech_commands(shared: Path) -> None:
    path = shared / "data" / "speech-commands" / "mfcc.npz"
    with np.load(path) as by_numpy:
        wanted = by_numpy["mfcc"], by_numpy["label"], by_numpy["classes"]
    data = load_data(path)
    assert np.array_equal(data.images.numpy(), wanted[0][:, None])
    assert np.array_equal(data.labels.numpy(), wanted[1])
    assert data.classes == tuple(wanted[2])


# -- .npy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [("d", "labels"), ("d", "d_labels"), ("d", "y"), ("x_train", "y_train"), ("train_images", "train_labels"),
     ("X", "y")],
)  # fmt: skip
def test_a_pair_of_npy_files(images: str, labels: str, tmp_path: Path) -> None:
    np.save(tmp_path / f"{images}.npy", COLOUR)
    with refused("data-no-labels", f"{images}.npy", f"{images}_labels.npy"):
        load_data(tmp_path / f"{images}.npy")
    np.save(tmp_path / f"{labels}.npy", LABELS)
    np.save(tmp_path / "classes.npy", np.array(["a", "b", "c"]))
    data = load_data(tmp_path / f"{images}.npy")
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), COLOUR)
    assert (data.labels.tolist(), data.classes) == (LABELS.tolist(), ("a", "b", "c"))


def test_a_folder_of_npy_files_for_each_split(tmp_path: Path) -> None:
    for part, place in (("train", slice(0, 4)), ("test", slice(4, 6))):
        np.save(tmp_path / f"x_{part}.npy", GREY[place])
        np.save(tmp_path / f"y_{part}.npy", LABELS[place])
    assert load_data(tmp_path).labels.tolist() == LABELS[:4].tolist()
    assert load_data(f"{tmp_path}?split=test").labels.tolist() == LABELS[4:].tolist()
    for part in ("x_test", "y_test"):
        (tmp_path / f"{part}.npy").unlink()
    with refused("data-missing", "'test'", "train"):
        load_data(tmp_path, split="test")


@pytest.mark.parametrize("kind", ["d.npy", "d.npz"])
def test_images_are_mapped_and_only_what_is_chosen_is_copied(kind: str, tmp_path: Path) -> None:
    images = np.zeros((4_000, 100, 100), np.uint8)
    images[:, 0, 0] = np.arange(4_000) % 256
    if kind == "d.npz":
        saved(tmp_path / kind, images=images, labels=np.arange(4_000) % 10)
    else:
        np.save(tmp_path / kind, images)
        np.save(tmp_path / "labels.npy", np.arange(4_000) % 10)
    before = (tmp_path / kind).read_bytes()
    tracemalloc.start()
    whole = load_data(tmp_path / kind)
    some = load_data(tmp_path / kind, max_images=20)
    assert tracemalloc.get_traced_memory()[1] < 5e6  # of 40 MB
    np.array(images)  # the control: a copy is seen
    assert tracemalloc.get_traced_memory()[1] > 40e6
    tracemalloc.stop()
    assert np.array_equal(whole.images.numpy()[:, 0], images)
    assert torch.equal(some.images, whole.shuffled(0).subset(range(20)).images)
    whole.images[0] = 9  # what is written stays in memory
    assert (tmp_path / kind).read_bytes() == before


# -- hostile files -------------------------------------------------------------------------------------------------


class Marker:
    """Its pickle makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["images", "labels", "classes"])
def test_objects_are_never_unpickled(key: str, tmp_path: Path) -> None:
    evil = np.array([Marker(tmp_path / "ran")] * 6, dtype=object)
    path = saved(tmp_path / "d.npz", **({"images": GREY, "labels": LABELS} | {key: evil}))
    with refused("data-unknown-format", "d.npz", key, "nothing in it was run"):
        load_data(path)
    np.save(tmp_path / "x.npy", evil)
    np.save(tmp_path / "y.npy", LABELS)
    with refused("data-unknown-format", "x.npy"):
        load_data(tmp_path / "x.npy")
    assert not (tmp_path / "ran").exists()
    np.load(path, allow_pickle=True)[key]  # the control
    assert (tmp_path / "ran").exists()


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(path: Path, images: bytes, how: int = zipfile.ZIP_DEFLATED) -> Path:
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", how) as file:
        file.writestr("images.npy", images)
        file.writestr("labels.npy", labels.getvalue())
    return path


def test_a_header_that_lies_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    for how in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        for shape, code in (((6, 2**20, 2**20), "data-too-large"), ((6, 20_000, 20_000), "data-damaged-file")):
            with refused(code, "d.npz"):
                load_data(archive(tmp_path / "d.npz", header(shape) + bytes(99), how))
    (tmp_path / "x.npy").write_bytes(header((6, 20_000, 20_000)) + bytes(99))
    np.save(tmp_path / "y.npy", LABELS)
    with refused("data-damaged-file", "x.npy"):
        load_data(tmp_path / "x.npy")
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_a_bomb_is_refused_by_its_size(tmp_path: Path, monkeypatch) -> None:
    size = 40_000_000
    path = archive(tmp_path / "d.npz", header((6, size // 6 // 1000, 1000)) + bytes(size // 6 // 1000 * 6000))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(arrays, "MAX_BYTES", 30_000_000)
    tracemalloc.start()
    with refused("data-too-large", "d.npz", "images"):
        load_data(path)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    monkeypatch.undo()
    load_data(path)  # the control
    assert tracemalloc.get_traced_memory()[1] > 30e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda content: content[:-40], "data-damaged-file"),
        (lambda content: content[:200] + b"xx" + content[202:], "data-damaged-file"),
        (lambda content: b"", "data-damaged-file"),
        (lambda content: b"PK\x05\x06" + bytes(18), "data-unknown-format"),
        (lambda content: content.replace(b"NUMPY\x01", b"NUMPY\x09"), "data-damaged-file"),
        (lambda content: content.replace(b"'shape': (", b"'shape': [("), "data-damaged-file"),
        (lambda content: content.replace(b"(6, 8, 7)", b"(-6,8,7) "), "data-damaged-file"),
    ],
)
def test_damaged_archives_are_one_error(change: Any, code: str, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=GREY, labels=LABELS)
    if code != "data-unknown-format" and b"NUMPY" in change(b"NUMPY\x01'shape': ((6, 8, 7)"):
        saved(tmp_path / "d.npz", images=GREY, labels=LABELS)
    content = change((tmp_path / "d.npz").read_bytes())
    assert content != (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content)
    with refused(code, "d.npz"):
        load_data(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("keys", "code", "quoted"),
    [
        ({"pictures": GREY, "others": GREY, "labels": LABELS}, "data-unknown-format", "'pictures', 'others'"),
        ({"images": GREY}, "data-no-labels", "'images'"),
        ({"images": GREY, "labels": LABELS.astype("datetime64[s]")}, "data-unknown-format", "datetime64"),
    ],
)
def test_keys_that_do_not_say_what_they_are(keys: Any, code: str, quoted: str, tmp_path: Path) -> None:
    with refused(code, "d.npz", quoted):
        load_data(saved(tmp_path / "d.npz", **keys))
