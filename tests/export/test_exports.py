"""What goes out says what the model says: ONNX in onnxruntime, torch programs, state dicts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import brickyard as by
from brickyard.component._familiarity import Familiarity, _squared
from brickyard.component._predictor import REJECT
from brickyard.export import _onnx as exports
from brickyard.export._module import export_module
from brickyard.export._onnx import export_onnx, export_state_dict, torch_program
from brickyard.testing import Branches, Detector, Residual, chain, randomised
from conftest import needed_package, python_blocks, run_blocks
from errors import refused
from shell import run

onnxruntime = needed_package("onnxruntime")
needed_package("onnxscript")
onnx = needed_package("onnx")

DATA = (torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(48) % 4)
NAMES = (["a", "b", "c", "d"], ["e", "f", "g", "h"])
HOW = (
    by.Preprocessing(size=(8, 8), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3),
    by.Preprocessing(size=(8, 8), channels=3, fit="pad", mean=(0.1,), std=(0.3,)),
)


def part(index: int = 0, make=chain, how=None, names=None, task=(2, 0), **options) -> by.Component:
    model = randomised(make(), index)
    relevance = by.locate(model, DATA, classes=names or NAMES[index], preprocessing=how)
    return by.disassemble(model, relevance, task=list(task), **options)


def pair(makes=(chain, chain), how=HOW, **options) -> list[by.Component]:
    tasks = (2, 0), (1, 3, 2)
    return [part(i, makes[i], how[i], task=tasks[i], **options) for i in range(2)]


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def agrees(path, model, *shapes, dtype=torch.float32) -> None:
    """The file's outputs are those of the model, on images that the export has not seen."""
    opened = session(path)
    generator = torch.Generator().manual_seed(7)
    for shape in shapes:
        x = torch.rand(shape, generator=generator)
        x = x if dtype == torch.float32 else (x * 255).to(torch.uint8)
        logits, shares = opened.run(["logits", "probabilities"], {"images": x.numpy()})
        wanted = model(model.preprocess(x) if isinstance(model, by.Component) else x).detach()
        assert logits.dtype == shares.dtype == np.float32
        assert np.abs(logits - wanted.numpy()).max() <= 1e-5 * float(wanted.abs().max())
        assert np.allclose(shares, model.predict_proba(x).numpy(), atol=1e-5)
        assert np.abs(logits - wanted.roll(1, 1).numpy()).max() > 1e-3  # the control


SIZES = ((1, 3, 8, 8), (7, 3, 8, 8), (2, 3, 5, 6), (3, 3, 13, 8), (2, 3, 6, 21))


def test_letterboxed_pictures_with_blue_first(tmp_path) -> None:
    boxed = {"size": (8, 8), "fit": "letterbox", "channels": 3, "fill": 114 / 255, "order": "bgr"}
    how = (
        by.Preprocessing(**boxed, place="corner", antialias=False, mean=(0,), std=(0.5,)),
        by.Preprocessing(size=(8, 8), fit="pad", fill=0.3, place="corner", channels=3, mean=(0.1,), std=(0.3,)),
    )
    whole, alone = by.assemble(pair(how=how)), part(how=by.Preprocessing(**boxed))
    shapes = (*SIZES, (2, 3, 40, 7), (1, 3, 1, 9))
    agrees(export_onnx(whole, tmp_path / "bytes.onnx", dtype="uint8").path, whole, *shapes, dtype=torch.uint8)
    path = export_onnx(alone, tmp_path / "floats.onnx").path
    agrees(path, alone, *shapes)
    x = torch.rand(2, 3, 40, 7, generator=torch.Generator().manual_seed(7))
    found = session(path).run(["logits"], {"images": x.numpy()})[0]
    for other in ({"fit": "resize"}, {"order": "rgb"}, {"place": "corner"}, {"fill": 0.2}):
        changed = alone.with_preprocessing(how[0].changed(boxed).changed(other))
        assert np.abs(found - changed(changed.preprocess(x)).detach().numpy()).max() > 1e-3, other


@pytest.mark.parametrize(
    ("form", "scaling", "reject", "makes", "more"),
    [
        ("parallel", "mahalanobis", True, (chain, Residual), {}),
        ("parallel", "lda", False, (chain, Branches), {"images": [DATA, DATA], "shots": 5}),
        ("padded", "log-probability", True, (Residual, Residual), {}),
        ("grouped", "logit-mean", True, (Branches, Branches), {}),
    ],
)
def test_assemblies_of_every_form_and_scaling(form, scaling, reject, makes, more, tmp_path) -> None:
    whole = by.assemble(pair(makes, reject=reject), form=form, scaling=scaling, **more)
    record = export_onnx(whole, tmp_path / "x.onnx", check_images=DATA[0][:12])
    assert record.error <= 1e-5
    assert record.images == 3 * 6 + 1 + 12
    assert record.fused
    agrees(record.path, whole, *SIZES)


def test_a_union(tmp_path) -> None:
    model = chain()
    relevance = by.locate(model, DATA, classes=NAMES[0])
    found = [by.disassemble(model, relevance, task=[task], heal="none") for task in ("a", "c")]
    whole = by.assemble(found, form="union")
    agrees(export_onnx(whole, tmp_path / "x.onnx").path, whole, (1, 3, 8, 8), (6, 3, 8, 8))


def test_classes_that_two_parts_know(tmp_path) -> None:
    found = [part(0, names=["a", "b", "c", "d"], task=(0, 1)), part(1, names=["b", "c", "e", "f"], task=(0, 2))]
    whole = by.assemble(found, on_duplicate="max")
    assert whole.classes == ("a", "b", "e")
    agrees(export_onnx(whole, tmp_path / "x.onnx").path, whole, (1, 3, 8, 8), (6, 3, 8, 8))


def test_a_component_with_reject_takes_grey_bytes_of_any_size(tmp_path) -> None:
    component = part(how=HOW[0], reject=True)
    record = export_onnx(component, tmp_path / "x.onnx", dtype="uint8", channels=1, check_images=DATA[0][:, :1])
    agrees(record.path, component, (1, 1, 8, 8), (5, 1, 19, 7), dtype=torch.uint8)
    opened = session(record.path)
    assert opened.get_inputs()[0].type == "tensor(uint8)"
    assert opened.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    assert json.loads(opened.get_modelmeta().custom_metadata_map["classes"]) == ["c", "a", REJECT]


def test_the_file_explains_itself_and_is_the_same_each_time(tmp_path) -> None:
    component = part().with_scores({"accuracy": 97.5})
    for name in ("x", "y"):
        export_onnx(component, tmp_path / f"{name}.onnx")
    content = (tmp_path / "x.onnx").read_bytes()
    assert content == (tmp_path / "y.onnx").read_bytes()
    for trace in (b".py", b"brickyard/", str(Path.home()).encode() + b"/"):
        assert trace not in content
    model = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(model, full_check=True)
    told = json.loads(next(item.value for item in model.metadata_props if item.key == "brickyard"))
    assert told["classes"] == told["outputs"] == ["c", "a"]
    assert told["scores"] == {"accuracy": 97.5}
    assert told["parts"][0]["source"]["sha256"] == component.manifest.source.sha256
    assert by.Preprocessing(**told["parts"][0]["preprocessing"]) == component.manifest.preprocessing
    assert told["input"] == {
        "name": "images",
        "dtype": "float32",
        "shape": ["batch", 3, 8, 8],
        "values": "0 to 1, or as the source takes them",
    }
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    with pytest.raises(Exception, match="9"):
        session(tmp_path / "x.onnx").run(None, {"images": np.zeros((1, 3, 9, 9), np.float32)})


class Hidden(nn.Module):
    """Layers and tensors named like attributes of the networks that hold them, and of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.step = nn.Conv2d(3, 6, 3, padding=1), nn.Parameter(torch.rand(6, 1, 1))
        self.tensor = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.register_buffer("nodes", torch.rand(8, 1, 1))
        self.foreign = nn.ModuleDict({"layer": nn.Linear(8, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.layer(x)) * self.step
        return self.foreign["layer"]((torch.relu(self.tensor(x)) + self.nodes).mean((2, 3)))


@pytest.mark.parametrize("form", ["component", "parallel"])
def test_no_name_of_a_layer_is_in_the_way(tmp_path: Path, form: str) -> None:
    parts = pair((Hidden, Hidden), (None, None))
    model = parts[0] if form == "component" else by.assemble(parts, form="parallel")
    before = list(model.state_dict())
    record = export_onnx(model, tmp_path / "x.onnx")
    assert record.fused
    agrees(tmp_path / "x.onnx", model, (1, 3, 8, 8), (7, 3, 8, 8))
    x = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch_program(model).module()(x)[0], model(x))
    assert list(model.state_dict()) == before


def test_a_file_that_says_something_else_is_never_written(tmp_path, monkeypatch) -> None:
    component, proto = part(), exports._proto
    (tmp_path / "old.onnx").write_bytes(b"precious")

    def changed(model, entry):
        found = proto(model, entry)
        weight = next(item for item in found.graph.initializer if len(item.dims) == 4)
        numbers = onnx.numpy_helper.to_array(weight).copy()
        numbers.flat[0] += 0.01
        weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
        return found

    monkeypatch.setattr(exports, "_proto", changed)
    with refused("surgery-export-failed"):
        export_onnx(component, tmp_path / "old.onnx", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"precious"
    monkeypatch.setattr(exports, "_proto", lambda model, entry: 1 / 0)
    with refused("surgery-export-failed", "ONNX"):
        export_onnx(component, tmp_path / "new.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["old.onnx"]


def test_folding_that_does_not_keep_the_check_is_left_out(tmp_path, monkeypatch) -> None:
    component = part()
    fused = by.Component.fused

    def wrong(self):
        found = fused(self)
        with torch.no_grad():
            next(found.parameters()).mul_(1.01)
        return found

    monkeypatch.setattr(by.Component, "fused", wrong)
    record = export_onnx(component, tmp_path / "x.onnx")
    assert not record.fused
    agrees(record.path, component, (4, 3, 8, 8))


def test_the_model_comes_back_untouched(tmp_path) -> None:
    component = part().double().train()
    before = {name: value.clone() for name, value in component.state_dict().items()}
    export_onnx(component, tmp_path / "x.onnx")
    assert component.training
    assert all(torch.equal(value, before[name]) for name, value in component.state_dict().items())
    assert next(component.parameters()).dtype == torch.float64


def test_what_cannot_be_asked_for(tmp_path, monkeypatch) -> None:
    component, sized = part(), part(how=HOW[0])
    (tmp_path / "old.onnx").write_bytes(b"precious")
    monkeypatch.setattr(exports, "_proto", lambda *_: pytest.fail("this must be refused before any work"))
    for model, name, options, code, *quoted in (
        (component, "old.onnx", {}, "file-exists"),
        (component, "x.onnx", {"dtype": "int8"}, "option-choice", "float32"),
        (component, "x.onnx", {"channels": 1}, "option-range"),
        (sized, "x.onnx", {"channels": 2}, "option-range"),
        (sized, "x.onnx", {"check_images": DATA[0][:, :1]}, "data-wrong-size"),
        (component, "x.onnx", {"check_images": DATA[0][:, :, :7]}, "data-wrong-size", "7x8"),
    ):
        with refused(code, *quoted):
            export_onnx(model, tmp_path / name, **options)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with refused("option-missing-package", "'brickyard[onnx]'"):
        export_onnx(component, tmp_path / "x.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["old.onnx"]


def test_a_torch_program_gives_the_same_for_any_batch_and_size() -> None:
    whole = by.assemble(pair(), scaling="mahalanobis")
    program = torch_program(whole).module()
    for shape in SIZES:
        x = torch.rand(shape)
        logits, shares = program(x)
        torch.testing.assert_close(logits, whole(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(shares.double(), whole.predict_proba(x), rtol=1e-5, atol=1e-5)


def test_a_state_dict_round_trip(tmp_path) -> None:
    whole = by.assemble(pair(), scaling="lda", images=[DATA, DATA], shots=5)
    record = export_state_dict(whole, tmp_path / "x.safetensors")
    assert record.bytes == record.path.stat().st_size
    whole.save(tmp_path / "whole.safetensors")
    again = by.load(tmp_path / "whole.safetensors")
    with torch.no_grad():
        wanted = whole(DATA[0])
        for value in again.state_dict().values():
            value.zero_() if value.is_floating_point() else None
        assert not torch.equal(again(DATA[0]), wanted)
        again.load_state_dict(load_file(record.path))
        assert torch.equal(again(DATA[0]), wanted)
    with safe_open(record.path, framework="pt") as file:
        told = json.loads(file.metadata()["brickyard-state"])
    assert told["classes"] == list(whole.classes)
    assert [by.Preprocessing(**one["preprocessing"]) for one in told["parts"]] == list(HOW)
    with refused("file-wrong-kind"):
        by.load(record.path)
    with refused("file-exists"):
        export_state_dict(whole, record.path)
    first = record.path.read_bytes()
    assert export_state_dict(whole, record.path, overwrite=True).path.read_bytes() == first


def test_distances_keep_their_digits_in_float32() -> None:
    """Features far from the middle along what varies: distances are small differences of large numbers."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 24, generator=generator, dtype=torch.float64)
    features = noise * torch.logspace(3, -1, 24, dtype=torch.float64) + 5000
    known = Familiarity.fit(features, torch.arange(200) % 3)
    assert known is not None
    x = features[:50].float()
    exact = known.double().distance(x.double())
    found = known.float().distance(x)
    m, x = known.mean - (centre := known.mean.mean(0)), x - centre
    root = known.gains.sqrt()
    subtracted = _squared(x, m) - _squared(x @ known.directions.T * root, m @ known.directions.T * root)
    subtracted = (subtracted / known.unit).clamp_min(0).amin(1)
    assert float((found - exact).abs().max() / exact.max()) < 2e-6
    assert float((subtracted - exact).abs().max() / exact.max()) > 1e-5  # the control


# -- the command line and the page -------------------------------------------------------------------------


def test_export_from_the_command_line(tmp_path) -> None:
    component = part(how=HOW[0])
    file = component.save(tmp_path / "c.safetensors")
    folder = tmp_path / "images" / "test" / "a"
    folder.mkdir(parents=True)
    for k in range(3):
        Image.fromarray((DATA[0][k, 0].numpy() * 255).astype(np.uint8)).save(folder / f"{k}.png")
    out = tmp_path / "c.onnx"
    grey = ("export", file, "-o", out, "--data", tmp_path / "images", "--channels", 1)
    value = json.loads(run(*grey, "--json").stdout)
    assert value["path"] == str(out)
    assert value["images"] == 3 * 6 + 1 + 3
    assert value["bytes"] == out.stat().st_size
    agrees(out, component, (2, 1, 8, 8))
    before = out.read_bytes()
    assert "--force" in run(*grey, code=1).stderr
    assert out.read_bytes() == before
    assert " 18 images" in run("export", file, "-o", out, "--force", "--uint8").stdout
    agrees(out, component, (2, 3, 8, 8), dtype=torch.uint8)
    state = tmp_path / "numbers.safetensors"
    assert "safetensors" in run("export", file, "-o", state).stdout
    assert load_file(state).keys() == component.state_dict().keys()
    for name, options, quoted in (
        ("x.pt2", (), ".onnx"),
        ("x.tflite", (), ".onnx"),
        ("x.safetensors", ("--uint8",), "--uint8"),
        ("x.onnx", ("--data", tmp_path / "images"), "--channels"),
    ):
        assert quoted in run("export", file, "-o", tmp_path / name, *options, code=1).stderr
        assert not (tmp_path / name).exists()


def detector() -> by.Component:
    data = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.eye(4).repeat(2, 1).long()
    how = by.Preprocessing(size=(32, 32), fit="letterbox", channels=3)
    found = by.locate(Detector(), data, outputs=Detector.boxes, preprocessing=how, classes=list("abcd"))
    return by.disassemble(Detector(), found, task=["b", "d"], heal="none", budget=by.Budget(flops=1.0), select="mda")


def test_the_page_runs(tmp_path, monkeypatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "export.md"
    blocks = python_blocks(page)
    assert len(blocks) == 5
    assert sum(bool(line) for line in blocks[0].splitlines()) <= 8
    monkeypatch.chdir(tmp_path)
    component = part(how=HOW[0], names=["cat", "dog", "owl", "fox"])
    component.save("pets.safetensors")
    export_onnx(component, "pets.onnx")
    export_module(component, "pets.py")
    animals = detector()
    export_onnx(animals, "animals.onnx", score=0.1)
    monkeypatch.syspath_prepend(tmp_path)
    picture = (DATA[0][3].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Image.fromarray(picture).save("picture.png")
    space = run_blocks(page)
    del sys.modules["pets"]
    assert (
        space["names"][int(space["probabilities"][0].argmax())]
        == component.predict("picture.png", strangers="answer")[0]
    )
    assert torch.equal(space["model"](space["preprocess"](DATA[0])), component.logits(DATA[0]))
    assert torch.equal(space["again"](DATA[0]), component(DATA[0]))
    (found,) = animals.detect(space["picture"].transpose(2, 0, 1)[None], score=0.1)
    assert len(found.labels) > 0
    assert [space["animals"][k] for k in space["classes"]] == [animals.classes[k] for k in found.labels.tolist()]
    assert np.allclose(space["boxes"], found.boxes.numpy(), atol=1e-3)
