"""Other names for classes, and merged classes outside Python: exports, the command line, recipes, reports, the yard."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_merged import DATA, GROUPS, RELEVANCE, TASK, TEST, images, pair, part, several, source, summed
from torch import Tensor

import brickyard as by
from brickyard.base._classes import resolve_merged
from brickyard.export import export_onnx, export_state_dict, save_pretrained
from brickyard.export._module import export_module
from brickyard.inputs._datasets import load_data
from brickyard.recipes._build import build
from brickyard.recipes._reader import load_recipe
from brickyard.reports._cards import model_card
from brickyard.reports._page import report
from brickyard.sources._resolve import fitted
from brickyard.workbench._bench import Bench, Plan
from brickyard.workbench._limits import Limits
from brickyard.yard import Yard
from conftest import needed_package
from errors import refused
from shell import run, save_folder

WHOLE: dict[str, Any] = {"budget": by.Budget(flops=1.0)}

# -- other names -------------------------------------------------------------------------------------------


def test_a_renamed_component_is_the_same_model(tmp_path: Path) -> None:
    component = part(heal="refit")
    other = component.renamed({"truck": "lorry", "pet": "friend"})
    for model in (other, by.load(other.save(tmp_path / "part.safetensors")), other.fused()):
        assert model.classes == ("friend", "lorry", "bird")
        assert torch.allclose(model(TEST[0]), component(TEST[0]), atol=1e-9)
    assert other.manifest.members == component.manifest.members
    assert component.classes == ("pet", "truck", "bird")
    scores = [by.evaluate(model, TEST, source=source(), latency=False) for model in (component, other)]
    assert scores[0].row("component") == scores[1].row("component")
    assert list(scores[1].per_class) == ["friend", "lorry", "bird"]


def test_a_name_that_goes_back_leaves_no_trace() -> None:
    component = part(["cat", "truck"])
    other = component.renamed({"truck": "lorry"})
    assert other.manifest.members == ((0,), (2,))
    assert other.renamed({"lorry": "truck"}).manifest == component.manifest
    assert other.renamed({}).manifest == other.manifest


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        ({"fish": "a"}, "task-unknown-class", "'fish'"),
        ({"pet": "truck"}, "task-duplicate-class", "'truck'"),
        ({"pet": "car"}, "task-class-name", "'car'"),
        ({"pet": "hen"}, "task-class-name", "'hen'"),
        ({"pet": ""}, "task-class-name", "''"),
        ({"pet": 3}, "option-syntax", "3"),
        (["pet"], "option-syntax", "['pet']"),
        ("pet", "option-syntax", "'pet'"),
    ],
)
def test_names_that_cannot_be_used_are_refused(names: Any, code: str, said: str) -> None:
    with refused(code, said):
        part().renamed(names)


def test_a_class_may_be_called_as_one_of_its_members() -> None:
    assert part().renamed({"pet": "dog", "truck": "car 2"}).classes == ("dog", "car 2", "bird")


@pytest.mark.parametrize("form", ["parallel", "padded"])
def test_an_assembly_and_its_parts_are_renamed(form: Any, tmp_path: Path) -> None:
    whole = by.assemble(pair(), form=form, scaling="none")
    other = whole.renamed({"car": "auto", "pet": "friend"})
    for model in (other, by.load(other.save(tmp_path / "whole.safetensors"))):
        assert model.classes == ("friend", "truck", "bird", "auto")
        assert [one.classes for one in model.manifest.parts] == [("friend", "truck"), ("bird", "auto")]
        assert torch.equal(model(TEST[0]), whole(TEST[0]))
    with refused("task-duplicate-class", "'truck'"):
        whole.renamed({"car": "truck"})
    with refused("task-unknown-class", "'fish'"):
        whole.renamed({"fish": "a"})
    if form == "parallel":
        assert by.assemble([other], without=["friend"], scaling="none").classes == ("truck", "bird", "auto")


def test_classes_that_parts_share_are_renamed_together() -> None:
    twice = [part(["cat", "truck"], **WHOLE), part(["cat", "owl"], **WHOLE)]
    whole = by.assemble(twice, on_duplicate="max", scaling="none")
    assert whole.renamed({"cat": "kitten"}).classes == ("kitten", "truck", "owl")
    apart = by.assemble(twice, on_duplicate="rename", scaling="none")
    other = apart.renamed({apart.classes[2]: "second"})
    assert other.classes == ("cat", "truck", "second", "owl")
    assert by.assemble([other], scaling="none").classes == other.classes


def test_parts_that_call_one_class_differently_are_joined() -> None:
    first, second = part({"aeroplane": "cat", "truck": 2}, **WHOLE), part(["owl", "car"], **WHOLE)
    second = second.renamed({"owl": "airplane"})
    assert by.assemble([first, second], scaling="none").classes == ("aeroplane", "truck", "airplane", "car")
    for same in ({"aeroplane": "airplane"}, "aeroplane=airplane"):
        whole = by.assemble([first, second], same=same, on_duplicate="average", scaling="none")
        assert whole.classes == ("airplane", "truck", "car")
        assert torch.allclose(whole(TEST[0])[:, 0], (first(TEST[0])[:, 0] + second(TEST[0])[:, 0]) / 2)
        with refused("task-class-in-two-parts", "'airplane'"):
            by.assemble([first, second], same=same)
    with refused("task-unknown-class", "'plane'"):
        by.assemble([first, second], same={"plane": "airplane"})
    with refused("task-class-name", "'dog'"):
        by.assemble([first, second], same={"aeroplane": "dog"})


# -- exports -----------------------------------------------------------------------------------------------


def module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODELS: dict[str, Any] = {
    "component": lambda: part(**WHOLE),
    "reject": lambda: part(reject=True, **WHOLE),
    "one": lambda: part({"pet": ["cat", "dog"]}, **WHOLE),
    "parallel": lambda: by.assemble(pair(), scaling="none"),
    "padded": lambda: by.assemble(pair(reject=True), form="padded", scaling="log-probability"),
    "without": lambda: by.assemble([by.assemble(pair())], without=["truck"], scaling="none"),
    "gate": lambda: by.assemble([part(heal="refit"), part(["car", "cat"], heal="refit")], scaling="mahalanobis"),
    "several": lambda: several(),
    "several-parts": lambda: by.assemble([several(), several({"rest": [2]})], scaling="none"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_python_without_brickyard_merges(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    export_module(model, tmp_path / "part.py")
    module = module_of(tmp_path / "part.py")
    x = images(5, 11)
    with torch.no_grad():
        found, wanted = module.load()(module.preprocess(x)), model.logits(x)
    assert (found - wanted).abs().max() <= 1e-9 + 1e-5 * (wanted.dtype == torch.float32)
    assert tuple(module.CLASSES)[: len(model.classes)] == model.classes
    text = (tmp_path / "part.py").read_text()
    assert ("pet = cat + dog" in text) == ("several" not in name)
    assert ("def any_of" in text) == ("several" in name)


@pytest.mark.parametrize("name", ["component", "reject", "parallel", "padded", "several"])
def test_onnx_merges(name: str, tmp_path: Path) -> None:
    onnxruntime = needed_package("onnxruntime")
    model = MODELS[name]().float()
    export_onnx(model, tmp_path / "part.onnx")
    x = images(5, 11).float()
    opened = onnxruntime.InferenceSession(str(tmp_path / "part.onnx"), providers=["CPUExecutionProvider"])
    logits, likely = opened.run(["logits", "probabilities"], {"images": x.numpy()})
    assert np.abs(logits - model.logits(x).detach().numpy()).max() < 1e-4
    assert np.allclose(likely, model.predict_proba(x).numpy(), atol=1e-5)
    told = json.loads(opened.get_modelmeta().custom_metadata_map["brickyard"])
    members = {"low": ["0", "1"], "top": ["3"]} if name == "several" else {"pet": ["cat", "dog"], "truck": ["truck"]}
    assert members.items() <= told["parts"][0]["stands_for"].items()


def test_hub_folders_and_state_dicts_tell_what_classes_stand_for(tmp_path: Path) -> None:
    component = part(heal="refit")
    save_pretrained(component, tmp_path / "hub")
    assert "pet = cat + dog" in (tmp_path / "hub" / "README.md").read_text()
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["id2label"] == {"0": "pet", "1": "truck", "2": "bird"}
    again = by.load(tmp_path / "hub" / "brickyard.safetensors")
    export_state_dict(again, tmp_path / "state.safetensors")
    for text in (str(again), model_card(again)):
        assert "pet = cat + dog" in text
        assert "bird = owl + hen" in text
        assert "truck = truck" not in text
    assert "pet = cat + dog" in report([again])


# -- collections -------------------------------------------------------------------------------------------


def test_the_yard_and_the_workbench_know_the_names(tmp_path: Path) -> None:
    yard = Yard(tmp_path)
    first, second = part(heal="refit").float(), part({"auto": "car", "kitten": "cat"}, heal="refit").float()
    yard.add(first, name="first")
    yard.add(second, name="second")
    assert {entry.name: entry.classes for entry in yard.entries()} == {
        "first": ("pet", "truck", "bird"),
        "second": ("auto", "kitten"),
    }
    chosen = yard.choose(["pet", "truck", "bird", "auto", "kitten"])
    whole = by.assemble([yard.load(choice.entry.name) for choice in chosen], scaling="none")
    assert whole.classes == ("pet", "truck", "bird", "auto", "kitten")
    bench, limits = Bench(yard, Limits()), Limits()

    def picture(k: int) -> bytes:
        content = io.BytesIO()
        Image.fromarray((DATA[0][k] * 255).byte().permute(1, 2, 0).numpy()).save(content, "PNG")
        return content.getvalue()

    plan = Plan.of({"bricks": ["first", "second"], "scaling": "affine"}, limits)
    labelled = {(0, k): [(f"{k}.png", picture(k))] for k in range(3)} | {
        (1, k): [("b.png", picture(k))] for k in (0, 1)
    }
    made = bench.build(plan, labelled)
    assert made["classes"] == whole.classes
    (answer,) = bench.classify(made["id"], [("a.png", picture(0))])
    assert answer["classes"][0]["name"] in whole.classes


def test_graph_networks_merge_too(tmp_path: Path) -> None:
    needed_package("torch_geometric")
    from brickyard import gnn
    from brickyard.testing import random_graph

    graph, network = random_graph(), gnn.random_network("gcn", 12, 8, 4)
    relevance = gnn.locate(network, graph, nodes=range(40))
    component = gnn.disassemble(
        network, relevance, task={"low": [0, 1], "3": 3}, budget=by.Budget(flops=1.0), heal="none"
    )
    z = network(*graph[:2])
    wanted = torch.stack([z[:, :2].logsumexp(1), z[:, 3]], 1)
    for model in (component, gnn.load(component.save(tmp_path / "part.safetensors"))):
        assert torch.allclose(model(*graph[:2]), wanted, atol=1e-5)
    assert component.manifest.statistics.images == (20, 10)
    scores = gnn.evaluate(component, graph, source=network, nodes=range(40, 60))
    own = graph[2][40:60]
    mine, place = own != 2, torch.tensor([0, 0, -1, 1])[own]
    right = (wanted[40:60].argmax(1) == place)[mine].double().mean().item()
    assert scores.row("component").accuracy == scores.row("restricted").accuracy == pytest.approx(100 * right)


# -- the command line --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of the digits 0 to 4, which was trained for a moment, and pictures of them."""
    folder = tmp_path_factory.mktemp("merged")
    run("train", "cnn?width=0.25", "--data", "digits", "--classes", "0-4", "--epochs", 1, "--lr", 0.05, "--size", 16,
        "-o", folder / "source.safetensors")  # fmt: skip
    data = load_data("digits", split="test").of_classes(["0", "1", "2", "3"])
    merged = data.subset(list(range(80)))
    merged = merged.relabelled(torch.tensor([0, 1, 1, 2])[merged.labels], ["0", "low", "odd"])
    save_folder(merged, folder / "pictures")
    return folder


DIGITS = ("--data", "digits?classes=0-4")


def merged_accuracy(model: by.Component, data: Any, groups: list[list[int]]) -> float:
    places = torch.full((10,), -1)
    for k, group in enumerate(groups):
        places[group] = k
    mine = places[data.labels] >= 0
    said = model.predict_proba(data.images[mine]).argmax(1)
    return 100 * (said == places[data.labels[mine]]).double().mean().item()


def test_every_command_takes_merged_classes(place: Path) -> None:
    source_file, out = place / "source.safetensors", place / "part.safetensors"
    run("disassemble", source_file, *DIGITS, "--task", "low=1+2,0", "--task", "odd=3", "--flops", 0.8, "-o", out)
    component = by.load(out)
    assert component.classes == ("low", "0", "odd")
    assert component.manifest.members == ((1, 2), (0,), (3,))
    assert "low = 1 + 2, odd = 3" in run("show", out).output
    scores = json.loads(run("evaluate", out, *DIGITS, "--source", source_file, "--json").stdout)
    data = load_data("digits", split="test")
    wanted = merged_accuracy(component, data, [[1, 2], [0], [3]])
    assert scores["rows"][-1]["accuracy"] == pytest.approx(wanted)
    pictures = json.loads(run("evaluate", out, "--data", place / "pictures", "--json").stdout)
    assert pictures["rows"][-1]["images"] == 80
    picture = next((place / "pictures" / "low").iterdir())
    said = json.loads(run("predict", out, picture, "--json").stdout)["predictions"][0]["classes"]
    assert {one["name"] for one in said} == {"low", "0", "odd"}
    run("export", out, "-o", place / "part.py")
    run("finetune", out, *DIGITS, "--epochs", 1, "-o", place / "tuned.safetensors")
    assert by.load(place / "tuned.safetensors").classes == component.classes
    run("locate", source_file, *DIGITS, "--task", "low=1+2", "-o", place / "found.safetensors")
    assert by.load(place / "found.safetensors").task == (1, 2)
    wrong = run("disassemble", source_file, *DIGITS, "--task", "low=1+9", "-o", place / "x.safetensors", code=1)
    assert "'9'" in wrong.output


def test_classes_are_renamed_and_matched_in_the_shell(place: Path) -> None:
    source_file, out, other = (place / f"{name}.safetensors" for name in ("source", "first", "second"))
    run("disassemble", source_file, *DIGITS, "--task", "low=1+2,0", "-o", out)
    run("disassemble", source_file, *DIGITS, "--task", "3,4", "-o", other)
    run("rename", out, "low=few=2", "0=none", "-o", place / "renamed.safetensors")
    renamed, before = by.load(place / "renamed.safetensors"), by.load(out)
    assert renamed.classes == ("few=2", "none")
    x = load_data("digits", split="test").images[:9]
    assert torch.equal(renamed.predict_proba(x), before.predict_proba(x))
    again = run("rename", place / "renamed.safetensors", "few=2=low", "-o", place / "again.safetensors", "--json")
    assert json.loads(again.stdout)["classes"] == ["low", "none"]
    assert "exists" in run("rename", out, "low=x", "-o", other, code=1).output
    assert "'9'" in run("rename", out, "9=x", "-o", place / "x.safetensors", code=1).output
    assert "old" in run("rename", "--help").output
    joined = ("assemble", out, other, "-o", place / "whole.safetensors", "--same", "low=small,3=small")
    assert "small" in run(*joined, code=1).output
    run(*joined, "--on-duplicate", "average")
    assert by.load(place / "whole.safetensors").classes == ("small", "0", "4")


def test_labels_of_data_follow_the_names_of_a_component() -> None:
    data = load_data("digits").of_classes(["0", "1", "2"])
    named = data.relabelled(torch.tensor([0, 1, 1])[data.labels], ["zero", "Low"])
    found = fitted(named, ["0", "1", "2"], {"zero": 0, "low": 1})
    assert torch.equal(found.labels, torch.tensor([0, 1, 1])[data.labels])
    with refused("data-unknown-class"):
        fitted(named, ["a", "b", "c"], {"zwei": 0})


RECIPE = """\
brickyard: 1
name: Merged digits
sources:
  lower: {network: SOURCE, data: "digits?classes=0-4", locate: {per-class: 8}}
components:
  words: {source: lower, task: ["low=1+2", "0"], heal-images: 60}
  table: {source: lower, task: {odd: [3], many: "4"}, heal-images: 60}
assembly: {same: "many=four"}
evaluate: {data: "digits?split=test", max-images: 100}
"""


def test_recipes_say_the_same(place: Path) -> None:
    path = place / "merged.yaml"
    path.write_text(RECIPE.replace("SOURCE", str(place / "source.safetensors")))
    build(load_recipe(path))
    whole = by.load(place / "out" / "assembly.safetensors")
    assert whole.classes == ("low", "0", "odd", "four")
    assert [one.members for one in whole.manifest.parts] == [((1, 2), (0,)), ((3,), (4,))]
    scores = json.loads((place / "out" / "scores.json").read_text())
    assert scores["assembly"]["rows"][-1]["accuracy"] > 0
    path.write_text(path.read_text().replace("low=1+2", "low=1+7"))
    with refused("option-recipe-inconsistent", "'7'"):
        build(load_recipe(path))


def test_the_words_of_this_module_mean_what_they_did() -> None:
    assert resolve_merged(TASK, RELEVANCE.classes) == {"pet": [0, 1], "truck": [2], "bird": [4, 3]}
    likely: Tensor = source()(TEST[0]).softmax(1)
    assert (part(**WHOLE).predict_proba(TEST[0]) - summed(likely, GROUPS)).abs().max() < 1e-12
