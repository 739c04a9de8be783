"""Parquet shards and folders that `save_to_disk` wrote, compared with the pictures that were put in."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from brickyard.inputs import load_data
from conftest import needed_package
from errors import refused

pa = needed_package("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

NOISE = np.random.default_rng(6).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
LABELS = [1, 0, 2, 2, 1, 0, 0, 1, 2, 1]
NAMES = ["cat", "dog", "eel"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
WANTED = torch.from_numpy(NOISE).permute(0, 3, 1, 2)


def content(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def table(rows: slice, named: bool = True, **columns: Any) -> Any:
    found = {"image": [{"bytes": content(pixels), "path": None} for pixels in NOISE[rows]], "label": LABELS[rows]}
    text = json.dumps({"info": {"features": FEATURES}})
    return pa.table(found | columns).replace_schema_metadata({"huggingface": text} if named else None)


# -- parquet -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "data"])
def test_all_shards_of_a_split_are_read_in_order(inside: str, tmp_path: Path, capsys) -> None:
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    for k, rows in ((2, slice(5, 8)), (0, slice(0, 4)), (1, slice(4, 5))):
        pq.write_table(table(rows), folder / f"train-{k:05}-of-00003.parquet")
    pq.write_table(table(slice(8, 10)), folder / "validation-00000-of-00001.parquet")
    data = load_data(tmp_path)
    assert torch.equal(data.images, WANTED[:8])
    assert not torch.equal(data.images, WANTED[[5, 6, 7, 0, 1, 2, 3, 4]])  # the control: as they were written
    assert (data.labels.tolist(), data.classes) == (LABELS[:8], tuple(NAMES))
    assert not capsys.readouterr().err
    assert torch.equal(load_data(tmp_path, split="test").images, WANTED[8:])
    assert "'validation' serves as it" in capsys.readouterr().err
    some = load_data(f"{tmp_path}?classes=dog", max_images=2)
    assert torch.equal(some.images, data.of_classes(["dog"]).shuffled(0).subset(range(2)).images)
    assert torch.equal(load_data(folder / "train-00001-of-00003.parquet").images, WANTED[4:5])
    assert "one of 3 shards" in capsys.readouterr().err
    with refused("data-missing", "'extra'", "train, validation"):
        load_data(f"{tmp_path}?split=extra")
    (folder / "train-00001-of-00003.parquet").unlink()
    with refused("data-missing", "2 of 3", "train-00001-of-00003.parquet"):
        load_data(tmp_path)


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    pq.write_table(table(slice(0, 4)), tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(table(slice(4, 8), named=False), tmp_path / "train-00001-of-00002.parquet")
    with refused("data-damaged-file", "train-00001-of-00002.parquet", "other columns or class names"):
        load_data(tmp_path)
    pq.write_table(table(slice(4, 8)), tmp_path / "train-00001-of-00003.parquet")
    with refused("data-missing", "00002, 00003"):
        load_data(tmp_path)


def test_labels_that_are_texts_and_pictures_of_several_sizes(tmp_path: Path) -> None:
    words = [NAMES[k] for k in LABELS]
    pq.write_table(table(slice(0, 10), named=False, label=words), tmp_path / "train.parquet")
    data = load_data(tmp_path)
    assert (data.classes, data.labels.tolist()) == (tuple(NAMES), LABELS)
    large = [{"bytes": content(np.repeat(pixels, 1 + k % 2, 0)), "path": None} for k, pixels in enumerate(NOISE)]
    pq.write_table(table(slice(0, 10), image=large), tmp_path / "train.parquet")
    with refused("data-not-batchable", "4x5", "8x5"):
        load_data(tmp_path)
    assert load_data(tmp_path, size=(4, 4)).images.shape == (10, 3, 4, 4)


# -- saved folders -------------------------------------------------------------------------------------------------


def save(folder: Path, found: Any, *, parts: int = 1, whole: bool = False, **state: Any) -> Path:
    """What `save_to_disk` writes, by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{k:05}-of-{parts:05}.arrow" for k in range(parts)]
    step = -(-found.num_rows // parts)
    for k, name in enumerate(names):
        open_ = pa.ipc.new_file if whole else pa.ipc.new_stream
        with open_(str(folder / name), found.schema) as writer:
            writer.write_table(found.slice(k * step, step))
    listed = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": listed, "_split": "train"} | state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_saved_folder_is_read_without_its_library(parts: int, whole: bool, named: bool, tmp_path: Path) -> None:
    folder = save(tmp_path / "d", table(slice(0, 10), named), parts=parts, whole=whole)
    data = load_data(folder)
    assert torch.equal(data.images, WANTED)
    assert not torch.equal(data.images, WANTED.flip(0))  # the control
    assert (data.labels.tolist(), data.classes) == (LABELS, tuple(NAMES))
    assert len(load_data(f"{folder}?split=train")) == 10
    with refused("data-missing", "'test'", "train"):
        load_data(f"{folder}?split=test")


def test_saved_splits(tmp_path: Path, capsys) -> None:
    save(tmp_path / "train", table(slice(0, 7)))
    save(tmp_path / "validation", table(slice(7, 10)), _split="validation")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert torch.equal(load_data(tmp_path).images, WANTED[:7])
    assert torch.equal(load_data(tmp_path, split="test").images, WANTED[7:])
    assert "'validation' serves as it" in capsys.readouterr().err
    with refused("data-missing", "'extra'", "train, validation"):
        load_data(f"{tmp_path}?split=extra")


def test_a_saved_folder_that_is_not_whole_is_one_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "d", table(slice(0, 10)), parts=2)
    name = "data-00001-of-00002.arrow"
    for length in (40, (folder / name).stat().st_size // 2):
        (folder / name).write_bytes((folder / name).read_bytes()[:length])
        with refused("data-damaged-file", name):
            load_data(folder)
    (folder / name).unlink()
    with refused("data-missing", name):
        load_data(folder)
    for listed in ([{"filename": "../train.arrow"}], [], [{"filename": 3}], None):
        save(folder, table(slice(0, 4)), _data_files=listed)
        with refused("data-damaged-file", "state.json"):
            load_data(folder)
    save(folder, table(slice(0, 4)), _indices_data_files=[{"filename": "indices.arrow"}])
    with refused("data-unknown-format", "flatten_indices"):
        load_data(folder)
    (folder / "state.json").write_text("[" * 100_000)
    with refused("data-damaged-file", "state.json"):
        load_data(folder)
    paths = [{"bytes": None, "path": "/etc/hostname"}] * 4
    with refused("data-unreadable-image", "image 0"):
        load_data(save(folder, table(slice(0, 4), image=paths)))


def test_what_the_library_itself_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    pictures = [Image.fromarray(pixels) for pixels in NOISE]
    found = datasets.Dataset.from_dict({"image": pictures, "label": LABELS}, features=features)
    order = [3, 1, 9, 0]
    found.select(order).save_to_disk(tmp_path / "some", num_shards=2)
    data = load_data(tmp_path / "some")
    assert torch.equal(data.images, WANTED[order])
    assert data.classes == tuple(NAMES)
    datasets.DatasetDict(train=found, test=found.select([2])).save_to_disk(tmp_path / "all")
    assert torch.equal(load_data(tmp_path / "all").images, WANTED)
    assert torch.equal(load_data(f"{tmp_path}/all?split=test").images, WANTED[2:3])


@pytest.mark.parametrize("rows", [slice(0, 4), slice(9, None, -1)], ids=["fewer", "in another order"])
def test_a_file_that_was_written_anew_after_its_labels_were_read_is_refused(rows: slice, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(table(slice(0, 10)), file)
    data = load_data(file)
    assert torch.equal(torch.cat(list(data.batches(4))), WANTED)  # the control: the same file, read twice
    data = load_data(file)
    pq.write_table(table(rows), file)
    os.utime(file, ns=(1, 1))  # clocks of file systems may be coarse
    with refused("data-damaged-file", "train.parquet", "load the data again"):
        list(data.batches(4))


@pytest.mark.parametrize("place", [0, 9])
@pytest.mark.parametrize("none", [None, {"bytes": None, "path": None}])
def test_a_row_without_an_image_is_to_be_left_out(none: Any, place: int, tmp_path: Path) -> None:
    images = table(slice(0, 10)).column("image").to_pylist()
    pq.write_table(table(slice(0, 10), image=[*images[:place], none, *images[place + 1 :]]), tmp_path / "train.parquet")
    with refused("data-unreadable-image", f"row {place} ", "leave it out") as caught:
        _ = load_data(tmp_path).images
    assert "paths" not in str(caught.value)


def test_a_path_in_place_of_an_image_is_not_followed(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "a.png"}] * 10
    pq.write_table(table(slice(0, 10), image=images), tmp_path / "train.parquet")
    with refused("data-unreadable-image", "paths are not followed"):
        load_data(tmp_path)


def test_true_and_false_are_names_as_they_are_in_text(tmp_path: Path) -> None:
    answers = [True, False, False, True, True, False, True, True, False, False]
    pq.write_table(table(slice(0, 10), named=False, label=answers), tmp_path / "train.parquet")
    data = load_data(tmp_path)
    assert data.classes == ("False", "True")
    assert data.labels.tolist() == [int(answer) for answer in answers]
