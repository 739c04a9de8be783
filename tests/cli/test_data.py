"""Commands read data and class names in the forms in which people have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.inputs import load_data
from shell import run


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> Path:
    """The same 60 digits as pictures with a table, as JSON lines, as pixels and as arrays; names in files."""
    folder = tmp_path_factory.mktemp("forms")
    data = load_data("digits?classes=0-2").subset(range(60))
    greys, labels = data.images[:, 0].numpy(), data.labels.numpy()
    names = ["zero", "one", "two"]
    (folder / "images").mkdir()
    for k, grey in enumerate(greys):
        Image.fromarray(grey).save(folder / "images" / f"{k}.png")
    rows = [(str(k), names[label]) for k, label in enumerate(labels)]
    (folder / "t.csv").write_text("\n".join(["image_id,class", *map(",".join, rows)]))
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"file_name": f"{a}.png", "label": b}) for a, b in rows))
    np.savetxt(folder / "p.csv", np.column_stack([labels, greys.reshape(60, 64)]), "%d", ",")
    np.savez(folder / "d.npz", images=greys, labels=labels, class_names=np.array(names))
    (folder / "names.txt").write_text("0: zero\n1: one\n2: two\n")
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    return folder


SOURCE = "zoo:cnn?width=0.25&classes=3&channels=1"


@pytest.mark.parametrize("form", ["t.csv", "t.jsonl", "p.csv", "d.npz"])
@pytest.mark.parametrize("names", ["names.txt", "config.json"])
def test_locating_is_the_same_from_every_form(form: str, names: str, forms: Path, tmp_path: Path) -> None:
    words = ["--random-weights", "--size", "16", "--mean", "0.3", "--std", "0.4", "--class-names", forms / names]
    result = run("locate", SOURCE, "--data", forms / form, *words, "-o", tmp_path / "r.safetensors")
    assert "zero, one, two" in result.stderr
    run("locate", SOURCE, "--data", forms / "d.npz", *words[:-1], "zero,one,two", "-o", tmp_path / "s.safetensors")
    found, wanted = (by.load(tmp_path / f"{name}.safetensors") for name in "rs")
    assert found.classes == wanted.classes == ("zero", "one", "two")
    assert wanted.layers
    for layer in wanted.layers:
        assert torch.equal(found.contribution(layer), wanted.contribution(layer))


def test_what_cannot_be_used_is_one_message(forms: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\nnone.png,zero\n")
    words = ["--random-weights", "-o", tmp_path / "r.safetensors"]
    result = run("locate", SOURCE, "--data", tmp_path / "t.csv", *words, code=1)
    assert "1 of 1 pictures are missing, such as 'none.png'" in result.stderr
    (tmp_path / "names.txt").write_text("zero\none\n")
    result = run("locate", SOURCE, "--data", forms / "t.csv", *words, "--class-names", tmp_path / "names.txt", code=1)
    assert "2 class names" in result.stderr
    assert not (tmp_path / "r.safetensors").exists()
