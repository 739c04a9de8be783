"""`--device` and `--dtype`: where commands compute, and with which numbers."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import brickyard as by
from brickyard.axes import trace
from brickyard.network._identity import digest_of, fingerprint
from brickyard.sources._loading import load_source
from errors import judge, refused
from shell import run

COMPUTING = {
    "locate": "{none} --data {data}",
    "disassemble": "{none} --data {data} --task 0",
    "assemble": "{none}",
    "evaluate": "{none} --data {data}",
    "predict": "{none} {data}",
    "routes": "{none} --relevance {none} --classes 0",
    "report": "{none}",
    "finetune": "{none} --data {data}",
    "distil": "{none} --images {data} --like zoo:cnn",
    "yard rank": "--yard {none} --data {data}",
    "train": "lenet5 --data {data}",
    "build": "{none}",
}
WRITES = set(COMPUTING) - {"evaluate", "predict", "yard rank", "build"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A source that was trained a little, its relevances and a component, all of float32."""
    folder = tmp_path_factory.mktemp("places")
    train = "--epochs 2 --batch-size 32 --lr 0.05 --size 16 -o"
    run("train", "cnn?width=0.25", "--data", "digits", *train.split(), folder / "source.safetensors")
    data = ("--data", "digits")
    run("locate", folder / "source.safetensors", *data, "-o", folder / "relevance.safetensors")
    known = ("--relevance", folder / "relevance.safetensors", *data, "--task", "1,3", "--flops", 0.6)
    run("disassemble", folder / "source.safetensors", *known, "-o", folder / "component.safetensors")
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1)).numpy()
    np.save(folder / "images.npy", images)
    return folder


@pytest.mark.parametrize("verb", COMPUTING)
def test_a_device_that_is_not_there_is_said_before_anything_is_read(verb, tmp_path) -> None:
    words = COMPUTING[verb].format(none=tmp_path / "none.safetensors", data=tmp_path / "no-images").split()
    output = ["-o", tmp_path / "out.safetensors"] if verb in WRITES else []
    for device in ("abacus", "meta", "cuda:99"):
        said = run(*verb.split(), *words, *output, "--device", device, code=1).stderr
        assert len(said.splitlines()) == 1
        assert repr(device) in said
        assert "use cpu" in said
    assert not list(tmp_path.iterdir())
    other = run(*verb.split(), *words, *output, "--device", "cpu", code=1).stderr  # the control: now it is read
    assert "cannot be used here" not in other


def test_predictions_in_float64_are_those_of_python(work) -> None:
    """To the last bit, which float32 has not; the network in float64 is written out by hand."""
    component = by.load(work / "component.safetensors")
    images = torch.from_numpy(np.load(work / "images.npy"))

    def strangeness(*words: object) -> list[float]:
        said = run("predict", work / "component.safetensors", work / "images.npy", "--json", *words).stdout
        return [one["strangeness"] for one in json.loads(said)["predictions"]]

    wide = copy.deepcopy(component).double()
    assert strangeness("--dtype", "float64", "--device", "cpu") == wide.strangeness(images).tolist()
    assert strangeness() == component.strangeness(images).tolist() != wide.strangeness(images).tolist()
    assert {v.dtype for v in by.load(work / "component.safetensors", dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }


def test_loading_in_float64_computes_as_numpy_does(tmp_path) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    data = torch.rand(40, 3, 2, 2), torch.arange(40) % 4
    made = by.disassemble(source, by.locate(source, data), task=["1", "3"], heal="none")
    path = made.save(tmp_path / "c.safetensors")
    x = data[0].double()
    layers = [layer for layer in made.network.modules() if isinstance(layer, nn.Linear)]
    value = x.flatten(1).numpy()
    for layer in layers:
        value = value @ layer.weight.detach().numpy().astype(np.float64).T + layer.bias.detach().numpy()
        value = np.maximum(value, 0) if layer is not layers[-1] else value
    with torch.no_grad():
        found = by.load(path, device="cpu", dtype="float64")(x).numpy()
        narrow = by.load(path)(data[0]).double().numpy()
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-15)
    assert abs(narrow - value).max() > 1e-9
    for device, dtype, code in (("abacus", None, "option-device"), (None, "int8", "option-choice")):
        with refused(code):
            by.load(path, device=device, dtype=dtype)


def test_a_source_keeps_its_identity_in_another_type(work, tmp_path) -> None:
    narrow = load_source(work / "source.safetensors").model
    wide = load_source(work / "source.safetensors", dtype="float64").model
    assert {v.dtype for v in wide.parameters()} == {torch.float64}
    assert fingerprint(wide) == fingerprint(narrow) == by.load(work / "relevance.safetensors").source_sha256
    assert digest_of(wide.state_dict()) != fingerprint(wide)  # the control
    with torch.no_grad():
        next(wide.parameters()).mul_(2)
    assert fingerprint(wide) == digest_of(wide.state_dict())  # it is another network now
    source, data = work / "source.safetensors", "digits"
    out = tmp_path / "wide.safetensors"
    run("disassemble", source, "--data", data, "--task", "1,3", "--dtype", "float64", "-o", out)
    assert {v.dtype for v in by.load(out).network.parameters()} == {torch.float64}
    assert by.load(out).manifest.source.sha256 == fingerprint(narrow)
    scored = ("--data", data, "--source", source, "--no-latency", "--json")
    rows = json.loads(run("evaluate", out, *scored, "--dtype", "float64").stdout)["rows"]
    assert [row["name"] for row in rows] == ["base", "restricted", "component"]
    assert rows == json.loads(run("evaluate", out, *scored).stdout)["rows"]


def test_what_a_type_of_numbers_lacks_is_said(work, tmp_path) -> None:
    torch.manual_seed(0)
    source = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    data = torch.rand(40, 1, 16, 16), torch.arange(40) % 4
    made = by.disassemble(source, by.locate(source, data), task=["1", "3"])
    path = made.save(tmp_path / "lrn.safetensors")
    run("predict", path, work / "images.npy")
    said = run("predict", path, work / "images.npy", "--dtype", "float16", code=1).stderr
    assert "Half" in said
    assert "float32" in said
    with refused("option-device", "Half", "float32"):
        by.load(path, dtype="float16").predict(data[0])
    with torch.no_grad():
        next(iter(made.parameters())).mul_(1e6)
    made.save(tmp_path / "large.safetensors")
    with refused("data-overflow", "float16", "bfloat16"):
        by.load(tmp_path / "large.safetensors", dtype="float16")
    assert by.load(tmp_path / "large.safetensors", dtype="bfloat16")
    tuned = ("--data", "digits", "-o", tmp_path / "tuned.safetensors")
    refusal = run("finetune", work / "component.safetensors", *tuned, "--dtype", "float16", code=1).stderr
    assert "--precision" in refusal
    assert trace(source, data[0][:2])


def test_torchs_words_for_what_is_lacking() -> None:
    """As torch 2 says it on devices that this machine may not have."""
    from brickyard.network._place import unsupported

    for text, word in (
        ("\"avg_pool3d_out_frame\" not implemented for 'Half'", "float32"),
        ("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.", "device cpu"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "batch size"),
    ):
        error = unsupported(RuntimeError(text))
        assert error is not None
        judge(error, "option-device", word)
    assert unsupported(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert unsupported(RuntimeError("\"conv\" not implemented for 'Byte'")) is None
