"""Int8 files: near their float32 files on images that nothing was calibrated on, small, and the same each time."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.export import _int8 as int8
from brickyard.export import _onnx as exports
from brickyard.export._onnx import export_onnx
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.sources._loading import load_source
from brickyard.testing import Branches, Residual, chain, randomised
from conftest import needed_package
from errors import refused
from shell import run

onnxruntime = needed_package("onnxruntime")
needed_package("onnxscript")
onnx = needed_package("onnx")

DATA = (torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(48) % 4)
HOW = by.Preprocessing(size=(8, 8), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
QUANTISED = {"Conv", "Gemm", "ConvTranspose"}


def part(index: int = 0, make=chain, how=HOW, task=(2, 0), **options) -> by.Component:
    model = randomised(make(), index)
    names = [f"{letter}{index}" for letter in "abcd"]
    relevance = by.locate(model, DATA, classes=names, preprocessing=how)
    return by.disassemble(model, relevance, task=list(task), **options)


def answers(path, images) -> np.ndarray:
    opened = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([opened.run(["logits"], {"images": one[None].numpy()})[0] for one in images])


@pytest.fixture
def room(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# -- a real network ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet(shared) -> tuple[by.Component, ImageData]:
    source = load_source("zoo:resnet20", weights=shared / "models" / "resnet20-cifar10.safetensors")
    data = load_data(shared / "data" / "cifar10", max_images=1200).of_classes(list(range(3, 10)))
    relevance = by.locate(
        source.model, data, classes=data.classes, preprocessing=source.preprocessing, per_class=3, task=range(3, 10)
    )
    budget = by.Budget(flops=1.0)
    return by.disassemble(source.model, relevance, task=range(3, 10), budget=budget, heal="none"), data


@pytest.mark.slow
def test_a_real_network_answers_as_in_float32_and_one_calibrated_on_dark_images_does_not(resnet, tmp_path) -> None:
    component, data = resnet
    images, others = data.images[:200], data.images[200:600].float() / 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = export_onnx(component, tmp_path / "int8.onnx", int8=True, images=images)
    assert record.int8 is not None
    whole = export_onnx(component, tmp_path / "float.onnx")
    assert record.bytes == record.path.stat().st_size
    assert 0.9 * whole.bytes < record.int8.float_bytes < whole.bytes  # which says how strange an image is, besides
    assert record.bytes <= 0.35 * whole.bytes
    assert (record.int8.calibration_images, record.int8.held_back) == (160, 40)
    assert record.int8.agreement >= 0.95
    wanted = answers(whole.path, others)
    agreed = (answers(record.path, others).argmax(1) == wanted.argmax(1)).mean()
    assert agreed >= 0.97
    dark = export_onnx(component, tmp_path / "dark.onnx", int8=True, images=images.float() / 255 * 0.02)
    assert (answers(dark.path, others).argmax(1) == wanted.argmax(1)).mean() < agreed - 0.2  # the control


def test_agreement_is_that_of_the_images_that_were_not_calibrated_on(resnet, tmp_path, monkeypatch) -> None:
    component, data = resnet
    seen: list[torch.Tensor] = []
    inner = int8.quantised
    monkeypatch.setattr(exports, "quantised", lambda *given: [seen.extend(given[2]), inner(*given)][1])
    images = data.images[:60].float() / 255
    record = export_onnx(component, tmp_path / "int8.onnx", int8=True, images=images)
    fed = {one.numpy().tobytes() for one in seen}
    left = torch.stack([one for one in images if one.numpy().tobytes() not in fed])
    assert (len(seen), len(left)) == (40, 20)
    export_onnx(component, tmp_path / "float.onnx")
    alike = answers(tmp_path / "float.onnx", left).argmax(1) == answers(record.path, left).argmax(1)
    assert record.int8.agreement == pytest.approx(alike.mean())
    monkeypatch.setattr(exports, "ENOUGH", 1.01)
    with pytest.warns(by.BrickyardWarning, match="of 20 held-back images"):
        export_onnx(component, tmp_path / "warned.onnx", int8=True, images=images)


# -- what is quantised -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "scaling", "makes"),
    [
        ("parallel", "mahalanobis", (chain, Residual)),
        ("padded", "log-probability", (Residual, Residual)),
        ("grouped", "logit-mean", (Branches, Branches)),
    ],
)
def test_assemblies_quantise_the_layers_of_their_networks_and_nothing_else(form, scaling, makes, tmp_path) -> None:
    parts = [part(i, make, task=task) for i, (make, task) in enumerate(zip(makes, ((2, 0), (1, 3, 2)), strict=True))]
    whole = by.assemble(parts, form=form, scaling=scaling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", by.BrickyardWarning)  # these networks were never trained
        record = export_onnx(whole, tmp_path / "int8.onnx", int8=True, images=DATA[0], dtype="uint8")
    export_onnx(whole, tmp_path / "float.onnx", dtype="uint8")
    small, large = onnx.load(record.path), onnx.load(tmp_path / "float.onnx")
    onnx.checker.check_model(small, full_check=True)
    known = [value for value in large.graph.output if value.name != "strangeness"]  # which int8 files do not have
    for value, other in zip((*small.graph.input, *small.graph.output), (*large.graph.input, *known), strict=True):
        assert value == other
    made = {value: node.op_type for node in small.graph.node for value in node.output}
    layers = [node for node in small.graph.node if node.op_type in QUANTISED]
    assert len(layers) == sum(node.op_type in QUANTISED for node in large.graph.node) > 4
    assert all(made.get(value) == "DequantizeLinear" for node in layers for value in node.input[:2])
    plain = [node for node in small.graph.node if node.op_type in {"MatMul", "Softmax", "ReduceSum", "Sub", "Div"}]
    assert plain
    held = {item.name: item.data_type for item in small.graph.initializer}
    for node in plain:  # the control: preprocessing, distances and scaling stay as they are
        assert not any(held.get(value) == onnx.TensorProto.INT8 for value in node.input)
    told = {item.key: item.value for item in small.metadata_props}
    assert set(told) == {"brickyard", "classes"}
    assert json.loads(told["brickyard"])["int8"] == {"calibration_images": 28}
    pixels = (DATA[0][:5] * 255).to(torch.uint8)
    near, exact = answers(record.path, pixels), answers(tmp_path / "float.onnx", pixels)
    assert 0 < np.abs(near - exact).max() < 0.5 * np.abs(exact).max()


def test_a_union_and_a_component_with_reject(tmp_path) -> None:
    model = chain()
    relevance = by.locate(model, DATA, classes=list("abcd"))
    union = by.assemble([by.disassemble(model, relevance, task=[k], heal="none") for k in "ac"], form="union")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", by.BrickyardWarning)
        for name, one in (("union", union), ("reject", part(reject=True))):
            record = export_onnx(one, tmp_path / f"{name}.onnx", int8=True, images=DATA[0])
            assert record.int8.held_back == 20
            assert answers(record.path, DATA[0][:1]).shape == (1, len(one.classes_))


def test_the_same_call_gives_the_same_bytes_and_leaves_nothing_behind(tmp_path, room, monkeypatch) -> None:
    component = part()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", by.BrickyardWarning)
        for name, images in (("x", DATA[0]), ("y", DATA[0]), ("z", DATA[0].flip(0) * 0.9)):
            export_onnx(component, tmp_path / f"{name}.onnx", int8=True, images=images)
    content = (tmp_path / "x.onnx").read_bytes()
    assert content == (tmp_path / "y.onnx").read_bytes()
    assert content != (tmp_path / "z.onnx").read_bytes()  # the control
    for trace in (b".py", b"brickyard/", b"brickyard-", str(tmp_path).encode()):
        assert trace not in content
    assert not list(room.iterdir())
    for error, caught in ((KeyboardInterrupt, KeyboardInterrupt), (ValueError, by.BrickyardError)):
        monkeypatch.setattr(onnxruntime.quantization, "quantize_static", _stopped(error))
        with pytest.raises(caught):
            export_onnx(component, tmp_path / "x.onnx", int8=True, images=DATA[0], overwrite=True)
        assert (tmp_path / "x.onnx").read_bytes() == content
        assert not list(room.iterdir())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["temporary", "x.onnx", "y.onnx", "z.onnx"]


def _stopped(error):
    def stop(before, after, reader, **_options):
        reader.get_next()
        Path(after).write_bytes(b"half")
        raise error("stopped")

    return stop


# -- what cannot be asked for ------------------------------------------------------------------------------


def test_what_is_refused_before_any_work(tmp_path, monkeypatch) -> None:
    component = part()
    monkeypatch.setattr(exports, "_proto", lambda *_: pytest.fail("this must be refused before any work"))
    for options, code, *quoted in (
        ({"int8": True}, "option-needs-data", "--calibration-data"),
        ({"images": DATA[0]}, "option-requires-option", "int8=True"),
        ({"int8": 1, "images": DATA[0]}, "option-type"),
        ({"int8": True, "images": DATA[0][:1]}, "data-too-few"),
        ({"int8": True, "images": DATA[0] * 255}, "data-not-raw"),
        ({"int8": True, "images": DATA[0][:, :1]}, "data-wrong-size"),
    ):
        with refused(code, *quoted):
            export_onnx(component, tmp_path / "x.onnx", **options)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with refused("option-missing-package", "'brickyard[onnx]'"):
        export_onnx(component, tmp_path / "x.onnx", int8=True, images=DATA[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "held"), [(2, 1), (30, 15), (50, 20), (200, 40)])
def test_a_fifth_is_held_back_at_least_twenty_at_most_half(given, held) -> None:
    images = list(torch.arange(given).float().reshape(-1, 1, 1, 1, 1) / given)
    used, left = int8.divided(images, [by.Preprocessing()])
    assert (len(used), len(left)) == (given - held, held)
    assert sorted(float(one) for one in (*used, *left)) == [float(one) for one in images]
    assert torch.equal(torch.stack(left), torch.stack(int8.divided(images, [])[1]))


def test_int8_from_the_command_line(tmp_path) -> None:
    component = part()
    file = component.save(tmp_path / "c.safetensors")
    for name in ("c0", "a0", "other"):
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        for k in range(10):
            Image.fromarray((DATA[0][k].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(folder / f"{k}.png")
    out = tmp_path / "c.onnx"
    call = ("export", file, "-o", out, "--int8", "--calibration-data", tmp_path / "images")
    done = run(*call, "--json")
    value = json.loads(done.stdout)
    assert value["int8"]["calibration_images"] == value["int8"]["held_back"] == 10
    assert "10 images are of classes that the model lacks" in done.stderr
    assert value["bytes"] == out.stat().st_size
    twice = json.loads(run(*call, "--calibration-data", tmp_path / "images", "--force", "--json").stdout)
    assert twice["int8"]["calibration_images"] == twice["int8"]["held_back"] == 20
    text = run(*call, "--force").stdout
    assert "of 10 held-back images" in text
    assert "latency" in text
    assert "of float32's" in text
    for name, options, quoted in (
        ("x.onnx", ("--int8",), "--calibration-data"),
        ("x.onnx", ("--calibration-data", tmp_path / "images"), "--int8"),
        ("x.safetensors", ("--int8", "--calibration-data", tmp_path / "images"), "--int8"),
    ):
        assert quoted in run("export", file, "-o", tmp_path / name, *options, code=1).stderr
        assert not (tmp_path / name).exists()
