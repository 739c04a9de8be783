"""Signals and cubes in arrays and columns: which axis is which, and what the numbers are, compared with numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import brickyard as by
from brickyard.inputs import ImageData, load_data, preprocess
from brickyard.inputs._arrays import read_images as read_file
from brickyard.inputs._augment import shifted_and_mirrored, varied, with_copies
from brickyard.inputs._batches import Images
from brickyard.inputs._decoding import read_images
from brickyard.inputs._taken import Taken
from errors import refused

R = np.random.default_rng(3)
LABELS = np.array([0, 1, 2, 1, 0, 2])
SIGNALS = R.normal(0, 5, (6, 3, 20)).astype(np.float32)
CUBES = R.normal(0, 5, (6, 3, 4, 5, 7)).astype(np.float32)
SIGNAL, CUBE = (3, 20), (3, 4, 5, 7)


def saved(folder: Path, images: Any, **more: Any) -> Path:
    np.savez(folder / "d.npz", x=images, y=LABELS, **more)
    return folder / "d.npz"


READ: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "signals": (SIGNALS, SIGNAL, SIGNALS),
    "signals, channels last": (SIGNALS.transpose(0, 2, 1), SIGNAL, SIGNALS),
    "signals of another length": (SIGNALS[:, :, :9], SIGNAL, SIGNALS[:, :, :9]),
    "signals in double precision": (SIGNALS.astype(np.float64), SIGNAL, SIGNALS),
    "signals in half precision": (SIGNALS.astype(np.float16), SIGNAL, SIGNALS.astype(np.float16)),
    "as many channels as steps": (SIGNALS[:, :, :3], SIGNAL, SIGNALS[:, :, :3]),
    "one channel without an axis": (SIGNALS[:, 0], (1, 20), SIGNALS[:, :1]),
    "one channel, of a square": (SIGNALS[:, 0, :16], (1, 20), SIGNALS[:, :1, :16]),
    "one channel with an axis": (SIGNALS[:, :1], (1, 20), SIGNALS[:, :1]),
    "one channel, last": (SIGNALS[:, 0, :, None], (1, 20), SIGNALS[:, :1]),
    "8 bits": (SIGNALS.astype(np.int8).view(np.uint8), SIGNAL, SIGNALS.astype(np.int8).view(np.uint8)),
    "cubes": (CUBES, CUBE, CUBES),
    "cubes, channels last": (np.moveaxis(CUBES, 1, 4), CUBE, CUBES),
    "cubes of one channel": (CUBES[:, 0], (1, 4, 5, 7), CUBES[:, :1]),
    "cubes of one channel that look like pictures": (CUBES[:, 0, :3], (1, 4, 5, 7), CUBES[:, :1, :3]),
}


@pytest.mark.parametrize("name", READ)
def test_what_takes_them_says_which_axis_holds_the_channels(name: str, tmp_path: Path, capsys) -> None:
    given, shape, wanted = READ[name]
    data = load_data(saved(tmp_path, given), shape=shape)
    assert np.array_equal(data.images.numpy(), wanted)
    assert data.images.dtype == (torch.uint8 if given.dtype == np.uint8 else torch.float32)
    assert ("signals of" if len(shape) == 2 else "cubes of") in capsys.readouterr().err
    assert torch.equal(read_file(tmp_path / "d.npz", Taken.of(shape)), data.images)


REFUSED: dict[str, tuple[Any, tuple[int, ...], str, tuple[str, ...]]] = {
    "other channels": (SIGNALS[:, :2], SIGNAL, "data-shape", ("(6, 2, 20)", "3 x 20", "20 x 2")),
    "several channels without an axis": (SIGNALS[:, 0], SIGNAL, "data-shape", ("(6, 20)", "3 x 20")),
    "pictures for signals": (CUBES[:, :, 0], SIGNAL, "data-shape", ("3 x 20",)),
    "signals for cubes": (SIGNALS, CUBE, "data-shape", ("3 x 4 x 5 x 7",)),
    "16-bit audio": ((SIGNALS * 900).astype(np.int16), SIGNAL, "data-type", ("int16", "32768")),
    "integers": (SIGNALS.astype(np.int64), SIGNAL, "data-type", ("int64",)),
    "not finite": (np.where(SIGNALS > 9, np.nan, SIGNALS), SIGNAL, "data-not-finite", ("NaN",)),
    "lengths that vary": (np.array([[1.0]] * 5 + [[]], object), SIGNAL, "data-unknown-format", ("one length",)),
    "nothing": (SIGNALS[:, :, :0], SIGNAL, "data-shape", ("(6, 3, 0)",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_one_error(name: str, tmp_path: Path) -> None:
    given, shape, code, quoted = REFUSED[name]
    with refused(code, "d.npz", *quoted):
        load_data(saved(tmp_path, given), shape=shape)


def test_without_a_shape_arrays_stay_pictures(tmp_path: Path) -> None:
    assert load_data(saved(tmp_path, SIGNALS)).images.shape == (6, 1, 3, 20)
    with refused("data-shape", "channels"):
        load_data(saved(tmp_path, CUBES))


def test_lists_in_columns(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "d.parquet"

    def written(rows: list[Any]) -> Path:
        pytest.importorskip("pyarrow.parquet").write_table(pa.table({"signal": rows, "label": LABELS}), path)
        return path

    assert np.array_equal(load_data(written(SIGNALS.tolist()), shape=SIGNAL).images.numpy(), SIGNALS)
    few = load_data(path, shape=SIGNAL, max_images=3)
    assert all(any(np.array_equal(one, whole) for whole in SIGNALS) for one in few.images.numpy())
    assert np.array_equal(load_data(written(SIGNALS[:, 0].tolist()), shape=(1, 20)).images.numpy(), SIGNALS[:, :1])
    assert np.array_equal(load_data(written(CUBES.tolist()), shape=CUBE).images.numpy(), CUBES)
    with refused("data-not-batchable", "d.parquet", "(19,)"):
        load_data(written([*SIGNALS[:5, 0].tolist(), SIGNALS[5, 0, :19].tolist()]), shape=(1, 20))
    for odd in ([[1.0], [2.0, 3.0]], [[None, 1.0], [2.0, 3.0]]):
        with refused("data-type", "row 0", "one length"):
            load_data(written([odd] * 6), shape=(2, 2))


@pytest.mark.parametrize("x", [torch.from_numpy(SIGNALS), torch.from_numpy(CUBES)], ids=["signals", "cubes"])
def test_each_channel_has_its_own_mean(x: torch.Tensor) -> None:
    mean, std = (1.0, -2.0, 3.0), (0.5, 2.0, 4.0)
    found = preprocess(x, by.Preprocessing(mean=mean, std=std)).numpy()
    for k in range(3):
        assert np.allclose(found[:, k], (x.numpy()[:, k] - mean[k]) / std[k], atol=1e-5)
    assert not np.allclose(found[:, 0], (x.numpy()[:, 0] - mean[1]) / std[1])  # the control
    assert torch.equal(preprocess(x.to(torch.uint8), by.Preprocessing()), x.to(torch.uint8) / 255)
    batches = list(Images((x, torch.from_numpy(LABELS)), by.Preprocessing(mean=mean, std=std)).batches(batch_size=4))
    assert np.array_equal(torch.cat([batch for batch, _ in batches]).numpy(), found)
    for how in (by.Preprocessing(size=(8, 8)), by.Preprocessing(channels=1)):
        with refused("data-shape", "pictures"):
            preprocess(x, how)
    with refused("data-wrong-size", "3 channels"):
        preprocess(x, by.Preprocessing(mean=(1.0, 2.0), std=(1.0, 1.0)))
    data = ImageData(x, torch.from_numpy(LABELS), ("a", "b", "c"))
    assert data.of_classes(["b"]).images.shape == (2, *x.shape[1:])


def test_single_ones_and_lists_are_told_from_batches() -> None:
    x = torch.from_numpy(SIGNALS)
    for given in (x, SIGNALS, list(x), list(SIGNALS)):
        assert torch.equal(torch.cat(read_images(given, 4, SIGNAL)), x)
    assert torch.equal(read_images(x[0], 4, SIGNAL)[0], x[:1])
    assert torch.equal(torch.cat(read_images(x[:, 0], 4, (1, 20))), x[:, :1])
    assert torch.equal(read_images(x[0, 0], 4, (1, 20))[0], x[:1, :1])
    cubes = torch.from_numpy(CUBES)
    assert torch.equal(read_images(cubes[0], 4, CUBE)[0], cubes[:1])
    assert torch.equal(torch.cat(read_images(cubes[:, 0], 4, (1, 4, 5, 7))), cubes[:, :1])
    for odd in (x[0, 0], x[None, None], "a.png", None):
        with refused("data-type", "3 x 20"):
            read_images(odd, 4, SIGNAL)


@pytest.mark.parametrize("x", [torch.from_numpy(SIGNALS), torch.from_numpy(CUBES)], ids=["signals", "cubes"])
def test_shifted_copies(x: torch.Tensor) -> None:
    for make in (shifted_and_mirrored, varied):
        assert make(x, torch.Generator().manual_seed(0)).shape == x.shape
    _, copy = with_copies([x], 2, 0)
    assert copy.shape == x.shape
    assert not torch.equal(copy, x) or x.ndim == 5  # its sides are shorter than the step
    line = torch.arange(64.0).reshape(1, 1, 64).repeat(50, 1, 1)
    moved = shifted_and_mirrored(line, torch.Generator().manual_seed(0))
    steps = moved[:, 0, 20] - 20
    assert steps.abs().max() <= 8
    assert len(steps.unique()) > 5
    assert bool((moved[:, 0, 12:52].diff(dim=1) == 1).all())  # forwards in time, all of them


@pytest.mark.parametrize("largest", [1e39, -1e39])
@pytest.mark.parametrize("shape", [None, SIGNAL])
def test_numbers_that_float32_cannot_hold_do_not_become_infinity(shape: Any, largest: float, tmp_path: Path) -> None:
    images = np.where(R.random((6, 3, 20)) < 0.5, largest, 0.5)
    with refused("data-not-finite", "float32", "d.npz"):
        load_data(saved(tmp_path, images), shape=shape)
    assert load_data(saved(tmp_path, images / 10), shape=shape).images.isfinite().all()  # the control
