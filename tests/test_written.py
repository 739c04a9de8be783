"""Files that earlier versions wrote load, and say to the last bit what they said then.

`tests/written/write.py` tells what is in the folder. Bits are compared on one thread. Where torch, its CPU capability
(`torch.backends.cpu.get_cpu_capability()`) or the maker of the processor is another than when the files were written,
its kernels may round otherwise: there, and only there, numbers may differ by 1e-6 of the largest one (1e-3 for those in
half precision).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import brickyard as by
from brickyard import gnn as graphnets
from brickyard.yard._index import INDEX
from brickyard.yard._yard import Yard
from errors import refused

HERE = Path(__file__).parent / "written"
OTHERS = ("names", "yard")  # JSON files that are about no model
MODELS = sorted(path.stem for path in HERE.glob("*.json") if path.stem not in OTHERS)
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 1e-2}


def told(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def of_kind(*kinds: str) -> list[str]:
    return [name for name in MODELS if told(name)["kind"] in kinds]


IMAGE_MODELS, RELEVANCES = of_kind("Component", "Assembly"), of_kind("Relevance")
GRAPH_MODELS = of_kind("GraphComponent", "GraphAssembly")


def tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def machine() -> dict[str, str]:
    vendor = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        vendor = next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": f"{platform.machine()} {vendor}".strip(),
    }


class Expected(dict[str, Tensor]):
    """What was said then, with how exactly it must be said again."""

    def __init__(self, name: str) -> None:
        tensors, metadata = tensors_of(HERE / f"{name}.expected.safetensors")
        super().__init__(tensors)
        self.exact = json.loads(metadata["machine"]) == machine()

    def agrees(self, key: str, found: Tensor) -> bool:
        expected = self[key]
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return False
        if torch.equal(found, expected):
            return True
        if self.exact or not expected.is_floating_point():  # processors of one vendor may still add in another order
            return bool(self.exact and torch.allclose(found.double(), expected.double(), rtol=1e-6, atol=1e-6))
        difference, size = (found.double() - expected.double()).abs().max(), expected.double().abs().max()
        return bool(difference <= TOLERANCE.get(self["logits"].dtype if "logits" in self else found.dtype, 4e-6) * size)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def facts(model: Any) -> dict[str, Any]:
    """What a user reads about a model, without the report's words."""
    manifest = model.manifest
    parts = [
        {
            "classes": list(p.classes),
            "source": p.source.name,
            "source_classes": list(p.source.classes),
            "parameters": p.selection.parameters,
            "flops": p.selection.flops,
        }
        for p in manifest.parts
    ]
    found = {
        "kind": type(model).__name__,
        "classes": list(model.classes),
        "numbers": sum(p.numel() for p in model.parameters()),
    }
    if manifest.kind == "component":
        return found | parts[0] | {"reject": manifest.reject}
    return found | {"parts": parts, "form": manifest.form, "scaling": manifest.scaling.name}


def with_another_number(path: Path, place: Path, tensor: str, index: int) -> Path:
    """A copy of a file in which one number is another."""
    tensors, metadata = tensors_of(path)
    numbers = tensors[tensor].view(-1)
    assert numbers[index] != 0
    numbers[index] *= 1.5
    save_file(tensors, place, metadata)
    return place


# -- the folder --------------------------------------------------------------------------------------------


def test_the_folder_is_whole_and_small() -> None:
    assert (len(IMAGE_MODELS), len(RELEVANCES), len(GRAPH_MODELS)) == (73, 4, 9)
    names = {path.name.split(".")[0] for path in HERE.glob("*.safetensors")} - {"source"}
    assert names == set(MODELS)
    for name in MODELS:
        assert (HERE / f"{name}.expected.safetensors").is_file(), name
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 1_500_000


def test_public_names_are_still_there() -> None:
    then = told("names")["names"]
    assert len(then) > 10
    assert [name for name in then if not hasattr(by, name)] == []
    assert not hasattr(by, "Brick")  # the control


# -- components and assemblies -----------------------------------------------------------------------------


RESIZED = ("preprocessing", "assembly-mixed")  # models that resize bytes


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_a_model_says_what_it_said(name, tmp_path) -> None:
    path, expected, then = HERE / f"{name}.safetensors", Expected(name), told(name)
    model = by.load(path)
    text, weight = then.pop("text"), then.pop("weight")
    assert facts(model) == then
    total = then["parameters"] if "parameters" in then else sum(part["parameters"] for part in then["parts"])
    assert f"{total:,}" in text
    assert f"{total:,}" in str(model)
    images = expected["images"]
    if name in RESIZED:  # bytes were not rounded then
        assert not expected.agrees("logits", model.logits(images))
        torch.testing.assert_close(model.logits(images), expected["logits"], rtol=0, atol=0.02)
        images = images.float() / 255
    assert expected.agrees("logits", model.logits(images))
    assert expected.agrees("probabilities", model.predict_proba(images))
    again = by.load(model.save(tmp_path / "again.safetensors"))
    assert expected.agrees("logits", again.logits(images))
    other = by.load(with_another_number(path, tmp_path / "other.safetensors", *weight))
    assert facts(other) == then
    assert not expected.agrees("logits", other.logits(images))


@pytest.mark.parametrize("name", GRAPH_MODELS)
def test_a_graph_model_says_what_it_said(name, tmp_path) -> None:
    path, expected, then = HERE / f"{name}.safetensors", Expected(name), told(name)
    model = graphnets.load(path)
    text, weight = then.pop("text"), then.pop("weight")
    assert text
    assert facts(model) == then
    x, edges = expected["x"], expected["edges"]
    assert expected.agrees("logits", model(x, edges))
    assert not expected.agrees("logits", model(x, edges[:, : edges.shape[1] // 2]))
    other = graphnets.load(with_another_number(path, tmp_path / "other.safetensors", *weight))
    assert not expected.agrees("logits", other(x, edges))


@pytest.mark.parametrize("path", sorted((HERE / "state").iterdir()), ids=lambda path: path.stem)
def test_a_state_dict_fits_its_model(path) -> None:
    model, numbers = by.load(HERE / path.name), tensors_of(path)[0]
    assert len(numbers) > 5
    state = model.state_dict()
    assert state.keys() == numbers.keys()
    assert all(torch.equal(state[name], value) for name, value in numbers.items())
    expected = Expected(path.stem)
    model.load_state_dict({name: value * 2 if value.is_floating_point() else value for name, value in numbers.items()})
    assert not expected.agrees("logits", model.logits(expected["images"]))
    model.load_state_dict(numbers)
    assert expected.agrees("logits", model.logits(expected["images"]))


# -- relevances --------------------------------------------------------------------------------------------


def numbers_of(relevance: by.Relevance) -> dict[str, Tensor]:
    """Everything that is written of relevances, by name."""
    found = {"scores": relevance.scores}
    for layer in relevance.layers:
        found[f"hard.{layer}"] = relevance.hard(layer)
        if relevance.sums is not None:
            found[f"contribution.{layer}"] = relevance.contribution(layer)
    for axis in relevance.axes:
        found[f"axis.{axis}"], found[f"relevant.{axis}"] = relevance.axis(axis), relevance.relevant(axis)
    return found


def differs(relevance: by.Relevance, expected: Expected, then: dict[str, Any]) -> list[str]:
    """What is not as it was written."""
    assert (list(relevance.layers), list(relevance.axes)) == (then["layers"], then["axes"])
    found = numbers_of(relevance)
    assert found.keys() == expected.keys()
    return [key for key, value in found.items() if not expected.agrees(key, value)]


@pytest.mark.parametrize("name", RELEVANCES)
def test_relevances_say_what_they_said(name, tmp_path) -> None:
    path, expected, then = HERE / f"{name}.safetensors", Expected(name), told(name)
    relevance = by.load(path)
    assert isinstance(relevance, by.Relevance)
    assert list(relevance.classes) == then["classes"]
    assert list(relevance.task) == then["task"]
    assert relevance.source_name == then["source"]
    assert differs(relevance, expected, then) == []
    if not then["sums"]:
        with refused("option-sums-not-kept"):
            relevance.contribution(then["layers"][0])
    other = by.load(with_another_number(path, tmp_path / "other.safetensors", "scores", int(relevance.scores.argmax())))
    assert "scores" in differs(other, expected, then)


def source_of(expected: Expected) -> nn.Module:
    """The network that `relevance` and the notebook tell of."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 6, 3, padding=1),
        bn1=nn.BatchNorm2d(6),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(6, 8, 3, stride=2, bias=False),
        bn2=nn.BatchNorm2d(8),
        relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        linear=nn.Linear(8, 4),
    )
    source = nn.Sequential(layers).eval()
    state = {name: value for name, value in expected.items() if name.startswith("source.")}
    source.load_state_dict({name.removeprefix("source."): value for name, value in state.items()})
    return source


def test_relevances_cut_what_they_cut() -> None:
    expected = Expected("source")
    source, data = source_of(expected), (expected["images"], expected["labels"])
    relevance = by.load(HERE / "relevance.safetensors")
    options: dict[str, Any] = {"images": data, "budget": by.Budget(parameters=0.6), "select": "mda"}
    part = by.disassemble(source, relevance, task=["pig", "dog"], ridge=1e-3, **options)
    assert part.classes == ("pig", "dog")
    other = by.disassemble(source, relevance, task=["pig", "dog"], heal="none", **options)
    far = [float((model.logits(data[0][:4]) - expected["logits"]).abs().max()) for model in (part, other)]
    assert far[0] < 0.05 < 0.5 < far[1]  # the refit has other images than then, and the same channels
    source.linear.bias += 1
    with refused("data-wrong-source"):
        by.disassemble(source, relevance, task=["pig", "dog"], **options)


def test_an_interrupted_locate_goes_on(tmp_path) -> None:
    stored = Expected("source")
    source, data = source_of(stored), (stored["images"], stored["labels"])
    expected, then = Expected("relevance"), told("relevance")
    options: dict[str, Any] = {"classes": then["classes"], "per_class": 6}
    folder = Path(shutil.copytree(HERE / "notebook", tmp_path / "notebook"))
    assert not (folder / "class-00003.safetensors").exists()
    assert differs(by.locate(source, data, resume=folder, **options), expected, then) == []
    assert (folder / "class-00003.safetensors").exists()
    with refused("file-resume-mismatch"):
        by.locate(source, data, resume=folder, **options | {"per_class": 5})
    done = folder / "class-00001.safetensors"  # the control: what is done now is read, and not done again
    with_another_number(done, done, "scores", int(tensors_of(done)[0]["scores"].argmax()))
    assert differs(by.locate(source, data, resume=folder, **options), expected, then) != []


# -- a yard ------------------------------------------------------------------------------------------------


def yard_at(folder: Path) -> Path:
    """A copy of the yard whose files were last changed when its index says so."""
    shutil.copytree(HERE / "yard", folder)
    for row in json.loads((folder / "index.json").read_text())["components"]:
        os.utime(folder / f"{row[0]}.safetensors", ns=(row[-1], row[-1]))
    return folder


def yard_then() -> list[dict[str, Any]]:
    """What the yard's index said then, with what is said now in place of shares of training images."""
    then = told("yard")
    assert [row["accuracy"] for row in then] == [0.5, None]  # measured on the images that the component was cut with
    return [row | {"accuracy": None, "agreement": None} for row in then]


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(entry.as_dict())) for entry in Yard(folder).entries()]


def test_a_yard_is_what_it_was(tmp_path) -> None:
    folder, then = yard_at(tmp_path / "yard"), yard_then()
    assert entries(folder) == then
    assert Yard(folder).verify() == []
    assert not (folder / "index.json").exists()  # it was taken over
    index = (folder / INDEX).read_bytes()
    assert entries(folder) == then
    assert (folder / INDEX).read_bytes() == index  # it was read, and not written again
    assert Yard(folder).load("hens").classes == ("hen",)
    (folder / INDEX).unlink()
    assert entries(folder) == then


def test_the_index_of_a_yard_is_believed_but_for_accuracy_on_training_images(tmp_path) -> None:
    folder = yard_at(tmp_path / "yard")
    index = json.loads((folder / "index.json").read_text())
    then = yard_then()
    for row, entry in zip(index["components"], then, strict=True):
        assert row.count(entry["flops"]) == 1
        row[row.index(entry["flops"])] += 2
    (folder / "index.json").write_text(json.dumps(index))
    read_again, believed = entries(folder)
    assert read_again == then[0]
    assert believed == then[1] | {"flops": then[1]["flops"] + 2}
    assert [problem.name for problem in Yard(folder).verify()] == [then[1]["name"]]
