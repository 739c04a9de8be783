"""Folders of pictures in the layouts in which they are unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brickyard.inputs import load_data
from brickyard.recipes._fingerprints import data_files
from errors import refused


def put(root: Path, *names: str) -> None:
    """Pictures of one grey each: 0, 1, 2, ..."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 3), k, np.uint8)).save(root / name)


CASES: dict[str, tuple[Sequence[str], str, dict[str, list[int]], str]] = {  # files, split, greys by class, what is said
    "deeper folders": (("a/0.png", "a/x/y/1.png", "b/2.png"), "train", {"a": [0, 1], "b": [2]}, "a/x/y/1.png"),
    "train/train": (("train/train/a/0.png", "train/train/b/1.png", "test/test/a/2.png"), "train",
                    {"a": [0], "b": [1]}, "train/train"),
    "test/test with one class": (("train/train/a/0.png", "test/test/a/2.png"), "test", {"a": [1]}, "test/test"),
    "one folder holds all": (("set/a/0.png", "set/b/1.png"), "train", {"a": [0], "b": [1]}, "folders of set"),
    "one folder holds the splits": (("set/train/a/0.png", "set/test/a/1.png"), "test", {"a": [1]}, "set/test"),
    "what archives leave": (("set/a/0.png", "set/b/1.png", "__MACOSX/set/a/0.png"), "train",
                            {"a": [0], "b": [1]}, "set"),
    "one class with deeper folders": (("a/x/0.png", "a/1.png"), "train", {"a": [1, 0]}, "a/x/0.png"),
    "Training and Testing": (("Training/a/0.png", "Testing/a/1.png"), "test", {"a": [1]}, ""),
    "valid serves as test": (("train/a/0.png", "valid/a/1.png"), "test", {"a": [1]}, "'valid' serves as it"),
    "a class called train": (("train/0.png", "car/1.png"), "train", {"car": [1], "train": [0]}, ""),
    "splits beside notes": (("train/a/0.png", "test/a/1.png", "notes/x/2.png"), "train", {"a": [0]}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layouts(name: str, tmp_path: Path, capsys) -> None:
    files, split, wanted, said = CASES[name]
    put(tmp_path, *files)
    data = load_data(tmp_path, split=split)
    found: dict[str, list[int]] = {kind: [] for kind in data.classes}
    for image, label in zip(data.images, data.labels.tolist(), strict=True):
        found[data.classes[label]].append(int(image[0, 0, 0]))
    assert found == wanted
    told = capsys.readouterr().err
    assert said in told
    assert bool(said) == bool(told)
    opened = {file for file in files if any(files.index(file) in greys for greys in wanted.values())}
    assert {str(path.relative_to(tmp_path)) for path in data_files(tmp_path, split)} == opened
    assert capsys.readouterr().err == ""


def test_a_split_that_is_not_there_is_not_replaced_by_all_others(tmp_path: Path) -> None:
    put(tmp_path, "train/a/0.png", "train/b/1.png")
    with refused("data-missing", "'test'", "train"):
        load_data(tmp_path, split="test")
    assert len(load_data(tmp_path)) == 2
    put(tmp_path, "flat/a/0.png", "flat/b/1.png")
    assert len(load_data(tmp_path / "flat", split="test")) == 2  # the control: a flat folder is all there is


def test_nothing_is_counted_twice(tmp_path: Path, capsys) -> None:
    put(tmp_path, "a/0.png", "a/x/1.png", "b/2.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "x")
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    data = load_data(tmp_path)
    assert data.labels.tolist() == [0, 0, 1]
    assert "left out: 2, such as a/again" in capsys.readouterr().err
    (tmp_path / "c").symlink_to(tmp_path / "a")  # a class may be a link
    assert load_data(tmp_path).labels.tolist() == [0, 0, 1, 2, 2]
