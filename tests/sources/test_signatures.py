"""Files that people give for weights and that hold none: each is told by what it is, whatever it is called."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from brickyard.sources._loading import load_source
from brickyard.sources._signatures import foreign
from brickyard.sources._weights import read_weights
from brickyard.testing import chain
from errors import refused


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def exported() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),)), file)
    return file.getvalue()


def onnx() -> bytes:
    helper = pytest.importorskip("onnx.helper")
    graph = helper.make_graph([], "g", [], [])
    return bytes(helper.make_model(graph, producer_name="pytorch").SerializeToString())


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46827520\n"
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "empty"),
    "a pointer": (lambda: POINTER, "git lfs pull"),
    "a page": (lambda: b"\n<!DOCTYPE html><html>404</html>", "HTML"),
    "Keras, old": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "Keras, new": (lambda: zipped("metadata.json", "config.json", "model.weights.h5"), "Keras"),
    "a language model": (lambda: b"GGUF\x03" + bytes(64), "GGUF"),
    "TorchScript": (scripted, "TorchScript"),
    "torch.export": (exported, "torch.export"),
    "ONNX": (onnx, "ONNX"),
    "gzip": (lambda: gzip.compress(save({"a": torch.zeros(2)})), "gzip"),
    "tar": (lambda: bytes(257) + b"ustar" + bytes(500), "tar"),
    "TensorFlow Lite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
    "pictures": (lambda: zipped("train/cat/1.jpg", "train/dog/1.jpg"), "zip"),
    "a picture": (picture, "PNG"),
    "an array": (lambda: b"\x93NUMPY\x01\x00" + bytes(64), "NumPy"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_weights_is_told_by_what_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    make, word = FILES[name]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(make())
    with refused("file-weights-not-plain", word, path.name):
        load_source("zoo:cnn?classes=4", weights=path)


@pytest.mark.parametrize("old", [False, True])
def test_files_of_weights_are_none_of_these(old: bool, tmp_path: Path) -> None:
    state = chain().state_dict()
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    (tmp_path / "w.safetensors").write_bytes(save(state))
    assert [foreign(path) for path in sorted(tmp_path.iterdir())] == [None, None]


def test_what_a_file_is_called_does_not_matter(tmp_path: Path) -> None:
    state = chain().state_dict()
    (tmp_path / "a.pth").write_bytes(save(state))
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        found, _ = read_weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in state.items())
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.safetensors").write_bytes(bytes(64))
    for name in ("c.safetensors", "d.safetensors"):
        with refused("file-damaged", name):
            read_weights(tmp_path / name)


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    state = chain().state_dict()
    names = sorted(state)
    for k, part in enumerate((names[:3], names[3:])):
        (tmp_path / f"model-{k}.safetensors").write_bytes(save({name: state[name] for name in part}))
    places = {name: f"model-{int(k >= 3)}.safetensors" for k, name in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found, _ = read_weights(index)
    assert sorted(found) == names
    assert all(torch.equal(found[name], state[name]) for name in names)
    for odd in ("../model-0.safetensors", "model-7.safetensors", str(tmp_path / "model-0.safetensors")):
        index.write_text(json.dumps({"weight_map": {**places, names[0]: odd}}))
        with refused("file-missing", "model.safetensors.index.json"):
            read_weights(index)
    for text in ("[]", "{", '{"weight_map": 3}'):
        index.write_text(text)
        with refused("file-damaged", "model.safetensors.index.json"):
            read_weights(index)
