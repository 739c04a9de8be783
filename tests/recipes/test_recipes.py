"""Recipes: what is refused and where, what a build runs, and what it leaves."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import brickyard as by
from brickyard.base._errors import BrickyardError
from brickyard.evaluation._scores import Scores
from brickyard.inputs._datasets import load_data
from brickyard.recipes import _build as building
from brickyard.recipes import _schema, _steps
from brickyard.recipes._build import build, plan
from brickyard.recipes._fingerprints import Fingerprints, data_files
from brickyard.recipes._reader import MAX_BYTES, load_recipe
from brickyard.reports._cards import model_card, score_table
from conftest import needed_package
from errors import refused
from fuzzing.judging import limited
from shell import run, save_folder

RECIPE = """\
brickyard: 1
name: Four digits
sources:
  lower:
    train: {network: lenet5?width=0.5, data: digits, classes: "0-4", epochs: 2, lr: 0.05, batch-size: 32}
    preprocessing: {size: 16}
    locate: {per-class: 8}
  upper:
    train: {network: cnn?width=0.25, data: digits, classes: "5-9", lr: 0.05, epochs: 1}
    preprocessing: {size: 16}
    locate: {per-class: 8}
components:
  low: {source: lower, task: "0,2", flops: 0.7, heal-images: 60}
  high: {source: upper, task: [7, 9], flops: 0.6, heal-images: 60, reject: true}
assembly: {scaling: lda, shots: 3}
evaluate: {data: {lower: digits, upper: "digits?split=test"}, max-images: 250}
"""
STEPS = [
    *("train lower", "train upper", "locate lower", "locate upper", "cut low", "cut high", "assemble"),
    *("evaluate low", "evaluate high", "evaluate the assembly", "tabulate", "write the card", "copy the recipe"),
]


def write(folder: Path, text: str = RECIPE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "digits.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All files that a build leaves, but for its notes on times of this machine."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != building.STATE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def did(result) -> dict[str, list[str]]:
    """Steps by what became of them."""
    found: dict[str, list[str]] = {}
    for step in result["steps"]:
        found.setdefault(step["status"], []).append(step["step"])
    return found


def built(path: Path, **options) -> dict[str, list[str]]:
    return did(build(load_recipe(path), **options))


@pytest.fixture(scope="module", autouse=True)
def _one_day():
    """Files carry a date; a build over midnight is another build."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    yield
    if before is None:
        del os.environ["SOURCE_DATE_EPOCH"]
    else:
        os.environ["SOURCE_DATE_EPOCH"] = before


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A recipe that was built once, undisturbed; nothing may change it."""
    path = write(tmp_path_factory.mktemp("first"))
    assert built(path) == {"ran": STEPS}
    return path


@pytest.fixture
def again(first, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(first.parent, tmp_path / "copy")) / first.name


def test_another_type_of_numbers_makes_everything_anew_but_trained_sources(again) -> None:
    said = run("build", again, "--dtype", "float64", "--json").stdout
    done = did(json.loads(said))
    assert {"train lower", "train upper"} <= set(done["up to date"])
    assert {"locate lower", "cut low", "assemble"} <= set(done["ran"])
    (path,) = again.parent.rglob("low.safetensors")
    assert {value.dtype for value in by.load(path).network.parameters()} == {torch.float64}
    assert "ran" not in did(json.loads(run("build", again, "--dtype", "float64", "--json").stdout))
    planned = plan(load_recipe(again))
    assert any("dtype" in str(item.as_dict()) for item in planned)  # the control: without it, it is another build


# -- what is refused ---------------------------------------------------------------------------------------

SMALL = """\
brickyard: 1
sources:
  a: {network: a.safetensors, data: digits}
  b: {train: {network: lenet5, data: digits}}
components:
  low: {source: a, task: "0-2", flops: 0.5}
  high: {source: b, task: "7-9", flops: 0.5}
assembly: {parts: [low, high]}
evaluate: {data: {a: digits, b: digits}}
"""

WRONG = [
    ("brickyard: 1\n", "brickyard: 2\n", "1:12", "inconsistent", "Brickyard"),
    ("brickyard: 1\n", "brickyard: one\n", "1:12", "invalid", "'one'"),
    ("sources:", "source:", "2:1", "invalid", "'sources'"),
    ("data: digits}\n  b", "date: digits}\n  b", "3:31", "invalid", "'data'"),
    ("data: digits}\n  b", "data: digit}\n  b", "3:37", "inconsistent", "'digits'"),
    ("data: digits}\n  b", 'data: "digits?spilt=test"}\n  b', "3:37", "inconsistent", "'split'"),
    (", data: digits}\n  b", "}\n  b", "3:6", "inconsistent", "sources.a"),
    ("network: a.safe", "network: b.safe", "3:16", "inconsistent", "'b.safetensors'"),
    ("network: a.safetensors", "network: resnet", "3:16", "inconsistent", "zoo:NAME"),
    ("network: a.safetensors", "network: zoo:lenet4", "3:16", "inconsistent", "'lenet5'"),
    ("network: lenet5", "network: lenet6", "4:24", "inconsistent", "'lenet5'"),
    ("network: a.safetensors", "weights: a.safetensors", "3:6", "inconsistent", "'network'"),
    ("b: {train", "b: {network: a.safetensors, train", "4:6", "inconsistent", ""),
    ("data: digits}\n  b", "data: digits, weights: w.pt}\n  b", "3:54", "inconsistent", ""),
    ("lenet5, data: digits", "lenet5, data: digits, epochs: 0", "4:54", "invalid", ""),
    ("lenet5, data: digits", "lenet5, data: digits, lr: fast", "4:50", "invalid", ""),
    ("lenet5, data: digits", "lenet5, data: digits, lr: .inf", "4:50", "invalid", ""),
    ("lenet5, data: digits", "lenet5, data: digits, augment: perhaps", "4:55", "invalid", ""),
    ("data: digits}\n  b", "data: digits, locate: {choose: confidnet}}\n  b", "3:62", "invalid", "'confident'"),
    ("data: digits}\n  b", "data: digits, locate: {alpha: 1.5}}\n  b", "3:61", "invalid", ""),
    ("data: digits}\n  b", "data: digits, preprocessing: {size: 3x4x5}}\n  b", "3:67", "invalid", "32x48"),
    ("data: digits}\n  b", "data: digits, preprocessing: {mean: [0.5]}}\n  b", "3:60", "inconsistent", ""),
    ("  b: {train", "  A: {train", "4:3", "invalid", "also 'a'"),
    ("  b: {train", "  ../b: {train", "4:3", "invalid", ""),
    ("  b: {train", "  con: {train", "4:3", "invalid", ""),
    ("source: a,", "source: aa,", "6:17", "inconsistent", "'a'"),
    ("source: a,", "", "6:8", "invalid", "components.low"),
    ('"0-2", flops: 0.5', '"0-2", flops: 50', "6:40", "invalid", ""),
    ('"0-2", flops: 0.5', '"0-2", flop: 0.5', "6:33", "invalid", "'flops'"),
    ('"0-2", flops: 0.5', '"0-2", flops: 0.5, flops: 0.4', "6:45", "invalid", ""),
    ('"0-2", flops: 0.5', '"0-2", flops: 0.5, parameters: 0.4', "6:57", "inconsistent", ""),
    ('"0-2", flops: 0.5', '"0-2", flops: 0.5, linear-alpha: 0.4', "6:59", "inconsistent", ""),
    ('"0-2", flops: 0.5', '"0-2", select: damage', "6:41", "inconsistent", "'parameters'"),
    ('"0-2", flops: 0.5', '"0-2", heal: refti', "6:39", "invalid", "'refit'"),
    ('"0-2", flops: 0.5', '"0-2", heal_images: 4', "6:33", "invalid", "'heal-images'"),
    ('"0-2", flops: 0.5', '"0-2", reject:', "6:40", "invalid", ""),
    ('task: "0-2"', "task: {0: {1: 2}}", "6:26", "invalid", ""),
    ('task: "0-2"', "task: []", "6:26", "invalid", ""),
    ("  low: {source", "  assembly: {source", "6:3", "inconsistent", ""),
    ("parts: [low, high]", "parts: [low, hihg]", "8:25", "inconsistent", "'high'"),
    ("parts: [low, high]", "parts: [low, low]", "8:25", "inconsistent", ""),
    ("parts: [low, high]", "scaling: mahalanobi", "8:21", "invalid", "'mahalanobis'"),
    ("parts: [low, high]", "form: union", "8:18", "inconsistent", ""),
    ("parts: [low, high]", "form: padding", "8:18", "invalid", "'padded'"),
    ("parts: [low, high]", "flops: 0.5, parameters: 0.4", "8:36", "inconsistent", "'parameters'"),
    ("parts: [low, high]", "round-to: 8", "8:22", "inconsistent", "'flops'"),
    ("parts: [low, high]", "flops: 1.5", "8:19", "invalid", ""),
    ("parts: [low, high]", "agreement: 0.9", "8:23", "inconsistent", "'cascade'"),
    ("parts: [low, high]", "form: cascade, flops: 0.5", "8:34", "inconsistent", "'cascade'"),
    ("parts: [low, high]", "votes: true", "8:19", "inconsistent", ""),
    ("assembly: {parts: [low, high]}", "assembly: high", "8:11", "invalid", ""),
    ("{a: digits, b: digits}", "{a: digits, bb: digits}", "9:30", "inconsistent", "'b'"),
    ("{a: digits, b: digits}", "{a: digits}", "9:18", "inconsistent", "'b'"),
    ("{a: digits, b: digits}", "[digits]", "9:18", "invalid", ""),
    ("evaluate: {data: {a: digits, b: digits}}", "evaluate: {}", "9:11", "invalid", "'data'"),
    ("components:\n", "components: {}\nrest:\n", "5:13", "invalid", ""),
    ("assembly: {parts: [low, high]}", "license: [mit]", "8:10", "invalid", ""),
]


@pytest.mark.parametrize(
    ("old", "new", "place", "code", "quoted"), WRONG, ids=[f"{c[2]}-{i}" for i, c in enumerate(WRONG)]
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, old, new, place, code, quoted) -> None:
    (tmp_path / "a.safetensors").touch()
    assert SMALL.count(old) >= 1
    with refused(f"option-recipe-{code}", quoted) as error:
        load_recipe(write(tmp_path, SMALL.replace(old, new, 1)))
    assert str(error.value).startswith(f"{tmp_path / 'digits.yaml'}:{place}: ")


def test_the_control_is_not_refused(tmp_path) -> None:
    (tmp_path / "a.safetensors").touch()
    recipe = load_recipe(write(tmp_path, SMALL)).recipe
    assert recipe.components["low"].flops == 0.5
    assert recipe.parts == ("low", "high")
    assert recipe.sources["b"].images == "digits"


HOSTILE = [
    (b"brickyard: [1\nsources: {}", "file-recipe-syntax", "YAML"),
    (b"a: !!python/object/apply:os.system [touch pwned]", "file-recipe-syntax", "object/apply:os.system'"),
    (b"a: " + b"[" * 100_000, "file-recipe-syntax", "12"),
    (b"a: &x [1]\nb: [" + b"*x, " * 100 + b"]", "file-recipe-syntax", "64"),
    (b"a: *x", "file-recipe-syntax", ""),
    (b"a: 1\n---\nb: 2\n", "file-recipe-syntax", ""),
    (b"a: \xff\xfe", "file-recipe-syntax", "(byte 3)"),
    (b"a: \x00", "file-recipe-syntax", "YAML"),
    (b"#" * (MAX_BYTES + 1), "file-too-large", "256 KiB"),
    (b"", "option-recipe-invalid", ""),
    (b"- 1", "option-recipe-invalid", "1:1"),
    (b"? [a, b]\n: 1", "option-recipe-invalid", "1:3"),
    (b'"\\e[2J": 1', "option-recipe-invalid", ""),
    (b"brickyard: .inf", "option-recipe-invalid", ""),
    (b"brickyard: " + b"9" * 5000, "option-recipe-invalid", ""),
    (b"name: [" + b"1, " * 30_000 + b"1]", "option-recipe-invalid", "20,000"),
    (SMALL.replace("digits}", "d" * 3000 + "}", 1).encode(), "option-recipe-inconsistent", "sources.a.data"),
]


@pytest.mark.parametrize(("content", "code", "quoted"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_recipes_are_refused(tmp_path, monkeypatch, content, code, quoted) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").touch()
    path = tmp_path / "digits.yaml"
    path.write_bytes(content)
    with limited(), refused(code, str(path), quoted) as caught:
        load_recipe(path)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "pwned").exists()


def test_aliases_that_multiply_are_bounded(tmp_path) -> None:
    nines = [f"&x{k} [{', '.join([f'*x{k - 1}'] * 9)}]" for k in range(1, 7)]
    text = f"brickyard: 1\nlicense: [&x0 [{', '.join('1' * 9)}], {', '.join(nines)}]\n"
    with refused("option-recipe-invalid", "20,000"):
        load_recipe(write(tmp_path, text))
    with refused("option-recipe-invalid", "2:10"):
        load_recipe(write(tmp_path, "brickyard: 1\nlicense: &y [*y]\n"))


def test_texts_are_taken_as_they_are_written(tmp_path) -> None:
    text = SMALL.replace("a.safetensors,", "a.safetensors, class-names: [no, 1e3, 2024-01-01, off, ~x],")
    (tmp_path / "a.safetensors").touch()
    source = load_recipe(write(tmp_path, text)).recipe.sources["a"]
    assert source.class_names == ("no", "1e3", "2024-01-01", "off", "~x")
    two = 'brickyard: 1\nsources: {a: {train: {network: lenet5?width=0.5, data: "digits?classes=0"}}}\n'
    two += "components: {low: {source: a, task: a?b}}\n"
    recipe = load_recipe(write(tmp_path, two)).recipe
    assert recipe.sources["a"].train.network == "lenet5?width=0.5"
    assert recipe.sources["a"].train.data == "digits?classes=0"
    assert recipe.components["low"].task == ("a?b",)


def test_recipes_can_be_made_in_python() -> None:
    train = {"network": "lenet5", "data": "digits", "batch_size": 8}
    sources = {"a": {"train": train, "preprocessing": {"size": 16, "mean": "0.5", "std": [0.5]}}}
    recipe = _schema.Recipe(
        brickyard=1, sources=sources, components={"low": {"source": "a", "task": "0", "alpha": 0.1}}
    )
    how = recipe.sources["a"].preprocessing.value()
    assert how == by.Preprocessing(size=(16, 16), mean=(0.5,), std=(0.5,))
    assert recipe.sources["a"].train.said()["batch-size"] == 8
    assert recipe.components["low"].alpha == 0.1
    assert recipe.components["low"].beta is None
    with pytest.raises(ValueError):
        recipe.brickyard = 2
    boxed = {"size": 16, "fit": "letterbox", "fill": 0.4, "place": "corner", "order": "bgr"}
    assert _schema.PreprocessingRecipe(**boxed).value() == by.Preprocessing(**boxed | {"size": (16, 16)})


def test_code_runs_only_where_it_is_trusted(tmp_path) -> None:
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\nfrom brickyard.sources import zoo\n"
        "def make():\n    Path(__file__).with_name('ran').touch()\n"
        "    return zoo.build('lenet5', 10, 0.25, channels=1)\n"
    )
    text = (
        "brickyard: 1\nsources:\n  a: {network: own.py:make, data: digits, preprocessing: {size: 32}}\n"
        "components:\n  low: {source: a, task: 0-2, flops: 0.5}\n"
    )
    path = write(tmp_path, text)
    for command in ((), ("--dry-run",)):
        assert f"{path}:3:16: " in (error := run("build", path, *command, code=1).stderr)
        assert "--trust-code" in error
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    run("build", path, "--trust-code", "--dry-run")
    assert not (tmp_path / "ran").exists()


# -- what is run -------------------------------------------------------------------------------------------


def test_a_dry_run_does_nothing(tmp_path, again) -> None:
    path = write(tmp_path / "new")
    result = run("build", path, "--dry-run")
    assert re.findall(r"^  (.+?)  +runs: never run$", result.stdout, re.M) == STEPS
    value = json.loads(run("build", path, "--dry-run", "--json").stdout)
    assert [step["step"] for step in value["steps"]] == STEPS
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    before, state = contents(again.parent), (again.parent / "out" / building.STATE).read_bytes()
    again.write_text(RECIPE.replace("flops: 0.7", "flops: 0.8"))
    run("build", again, "--dry-run")
    again.write_text(RECIPE)
    assert contents(again.parent) == before
    assert (again.parent / "out" / building.STATE).read_bytes() == state


def test_a_second_build_runs_nothing(again) -> None:
    before = contents(again.parent)
    assert built(again) == {"up to date": STEPS}
    assert contents(again.parent) == before
    assert {item.status for item in plan(load_recipe(again))} == {"up to date"}
    assert {item.status for item in plan(load_recipe(again), force=True)} == {"run"}


CHANGES = [
    (
        ("flops: 0.7", "flops: 0.8"),
        ["cut low", "assemble", "evaluate low", "evaluate the assembly", "tabulate", "write the card"],
        "flops was 0.7, now 0.8",
    ),
    (
        ("scaling: lda", "scaling: none"),
        ["assemble", "evaluate the assembly", "tabulate", "write the card"],
        'scaling was "lda", now "none"',
    ),
    (("name: Four digits", "name: Cards"), ["write the card"], "name was Four digits, now Cards"),
    (
        ("max-images: 250", "max-images: 300"),
        ["evaluate low", "evaluate high", "evaluate the assembly", "tabulate", "write the card"],
        "max-images was 250, now 300",
    ),
    (("name: Four digits\n", "name: Four digits  # the same\n"), [], ""),
    (("shots: 3", "shots: 3, form: parallel"), [], ""),
    (
        ("scaling: lda, shots: 3", "form: cascade, agreement: 0.9"),
        ["assemble", "evaluate the assembly", "tabulate", "write the card"],
        'form was "parallel", now "cascade"',
    ),
]


@pytest.mark.parametrize(("change", "steps", "reason"), CHANGES, ids=[c[0][1] for c in CHANGES])
def test_a_change_runs_what_depends_on_it_and_nothing_else(again, change, steps, reason) -> None:
    again.write_text(RECIPE.replace(*change))
    planned = plan(load_recipe(again))
    expected = [*steps, "copy the recipe"]
    assert [item.step.name for item in planned if item.status == "run"] == expected
    assert any(reason in item.reasons for item in planned) or not reason
    assert built(again)["ran"] == expected
    assert built(again) == {"up to date": STEPS}


def test_what_was_not_changed_after_all_does_not_run_on(again) -> None:
    before = contents(again.parent / "out")
    (again.parent / "out" / "components" / "low.safetensors").unlink()
    planned = {item.step.name: item for item in plan(load_recipe(again))}
    assert planned["cut low"].reasons == ("components/low.safetensors is missing",)
    assert planned["assemble"].reasons == ("components/low.safetensors is made again",)
    assert planned["assemble"].key is None
    assert planned["cut high"].status == "up to date"
    done = built(again)
    assert done["ran"] == ["cut low"]
    assert set(done["unchanged"]) == {
        *("assemble", "evaluate low", "evaluate the assembly", "tabulate", "write the card")
    }
    assert contents(again.parent / "out") == before


def test_an_output_that_was_changed_by_hand_is_made_again(again) -> None:
    before = contents(again.parent / "out")
    whole = again.parent / "out" / "assembly.safetensors"
    damaged = bytearray(whole.read_bytes())
    damaged[-1] ^= 1
    whole.write_bytes(damaged)
    (again.parent / "out" / "README.md").write_text("mine")
    assert built(again)["ran"] == ["assemble", "write the card"]
    assert contents(again.parent / "out") == before


def test_changed_images_and_weights_run_again(tmp_path) -> None:
    training = load_data("digits?classes=0-2").renumbered([0, 1, 2])
    save_folder(training.subset(range(90)), tmp_path / "photos" / "train")
    save_folder(training.subset(range(90, 150)), tmp_path / "photos" / "test")
    train = f"train lenet5?width=0.5 --data {tmp_path}/photos --epochs 1 --batch-size 16 --size 16"
    run(*train.split(), "-o", tmp_path / "a.safetensors")
    text = (
        "brickyard: 1\nsources:\n  a: {network: a.safetensors, data: photos, locate: {per-class: 5}}\n"
        "components:\n  low: {source: a, task: [0, 2], flops: 0.7}\nevaluate: {data: photos}\n"
    )
    path = write(tmp_path, text)
    steps = ["locate a", "cut low", "evaluate low", "tabulate", "write the card of low", "copy the recipe"]
    assert built(path) == {"ran": steps}
    picture = sorted((tmp_path / "photos" / "test" / "2").iterdir())[0]
    os.utime(picture)  # the same content: hashed again, and nothing runs
    assert built(path) == {"up to date": steps}
    picture.unlink()
    assert built(path)["ran"] == ["evaluate low", "tabulate", "write the card of low"]
    Image.new("L", (8, 8), 77).save(tmp_path / "photos" / "train" / "0" / "new.png")
    reasons = {item.step.name: item.reasons for item in plan(load_recipe(path))}
    assert reasons["locate a"] == ("images photos (train) changed",)
    assert {"locate a", "cut low"} <= set(built(path)["ran"])
    weights = tmp_path / "a.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 64
    weights.write_bytes(content)
    reasons = {item.step.name: item.reasons for item in plan(load_recipe(path))}
    assert reasons["locate a"] == ("file a.safetensors changed",)
    assert built(path)["ran"][:2] == ["locate a", "cut low"]
    path.write_text(text.replace("evaluate: {data: photos}", "evaluate: {data: photos/train}"))
    with refused("data-seen-in-training"):
        build(load_recipe(path))


def _sources(folder: Path) -> dict[str, tuple[str, Path]]:
    """Sources of several files: what a recipe says of each, and one of the files that it does not name."""
    onnx = pytest.importorskip("onnx")
    weights = {"w": torch.ones(2)}
    save_file(weights, folder / "part-1.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "part-1.safetensors")}
    (folder / "w.safetensors.index.json").write_text(json.dumps(index))
    save_file(weights, folder / "w.safetensors")
    (folder / "w.json").write_text('{"arch": "lenet5"}')
    (folder / "own.py").write_text("from inner.deep import make\n")
    (folder / "inner").mkdir()
    (folder / "inner" / "deep.py").write_text("make = None\n")
    tensor = onnx.numpy_helper.from_array(np.ones(4, dtype=np.float32), "w")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [out], [tensor])
    model, place = onnx.helper.make_model(graph), str(folder / "m.onnx")
    onnx.save_model(model, place, save_as_external_data=True, location="m.bytes", size_threshold=0)
    return {
        "index": ("{network: zoo:lenet5, weights: w.safetensors.index.json", folder / "part-1.safetensors"),
        "json": ("{network: zoo:lenet5, weights: w.safetensors", folder / "w.json"),
        "code": ("{network: own.py:make", folder / "inner" / "deep.py"),
        "onnx": ("{network: m.onnx", folder / "m.bytes"),
    }


@pytest.mark.parametrize("kind", ["index", "json", "code", "onnx"])
def test_every_file_that_a_source_is_read_from_counts(kind, tmp_path) -> None:
    said, other = _sources(tmp_path)[kind]
    text = f"brickyard: 1\nsources:\n  a: {said}, data: digits}}\ncomponents:\n  low: {{source: a, task: 0-2}}\n"
    path = write(tmp_path, text)

    def key() -> str | None:
        return plan(load_recipe(path), trust=True)[0].key

    before = key()
    (tmp_path / "unrelated.txt").write_text("new")
    assert key() == before
    other.write_bytes(other.read_bytes() + b" ")
    assert key() != before


def test_other_versions_run_all(again, monkeypatch) -> None:
    monkeypatch.setattr(_steps, "version", lambda name: "0")
    planned = plan(load_recipe(again))
    assert planned[0].reasons[0].startswith("PyTorch was")
    assert [item.step.name for item in planned if item.status == "run"] == STEPS[:-1]


@pytest.mark.parametrize(
    ("target", "calls"),
    [
        ("brickyard.outputs._kinds.F.cross_entropy", 9),
        ("brickyard.relevance._locate.class_sums", 1),
        ("brickyard.relevance._locate.class_sums", 3),
        ("brickyard.component._disassemble.heal_network", 1),
        ("brickyard.storage._atomic.os.replace", 9),
        ("brickyard.storage._atomic.os.replace", 12),
        ("brickyard.recipes._build.Made", 4),
        ("brickyard.evaluation._evaluate._logits", 2),
    ],
)
def test_a_build_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    first, tmp_path, monkeypatch, target, calls
) -> None:
    path = write(tmp_path)
    owner, _, name = target.rpartition(".")
    parts = owner.split(".")
    module = importlib.import_module(".".join(parts[:3]))
    for part in parts[3:]:
        module = getattr(module, part)
    real, count = getattr(module, name), 0

    def stopping(*args, **kwargs):
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, stopping)
    run("build", path, code=130)
    monkeypatch.setattr(module, name, real)
    assert count == calls
    assert not list(tmp_path.rglob("*.tmp"))
    finished = [item.step.name for item in plan(load_recipe(path)) if item.status == "up to date"]
    done = built(path)
    assert done.get("up to date", []) == finished
    assert contents(path.parent / "out") == contents(first.parent / "out")
    assert not (path.parent / "out" / _steps.NOTES).exists()


def test_locating_goes_on_with_the_classes_that_are_done(tmp_path, monkeypatch) -> None:
    from brickyard.relevance import _locate as locating

    real, seen = locating.class_sums, []

    def counted(graph, batches, *told):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(graph, batches, *told)

    monkeypatch.setattr(locating, "class_sums", counted)
    path = write(tmp_path)
    run("build", path, code=130)
    assert len(list((tmp_path / "out" / _steps.NOTES).rglob("class-*.safetensors"))) == 1
    built(path)
    assert len(seen) == 2 + 1 + 2  # of four classes in all, the first was not done again


def test_what_a_killed_build_was_writing_is_swept_up_and_nothing_else(again) -> None:
    out = again.parent / "out"
    half = [out / ".brickyard-0123abcd.tmp", out / "components" / ".brickyard-89abcdef.tmp"]
    others = [out / ".mine.0123abcd.tmp", out / "components" / ".brickyard-mine.tmp"]
    for path in (*half, *others):
        path.mkdir()
        (path / "low.safetensors").touch()
    assert built(again) == {"up to date": STEPS}
    assert [path.exists() for path in half] == [False, False]
    assert [path.exists() for path in others] == [True, True]


def test_files_of_others_are_not_overwritten(tmp_path) -> None:
    path = write(tmp_path, RECIPE + "outputs: {folder: .}\n")
    (tmp_path / "README.md").write_text("precious")
    error = run("build", path, code=1).stderr
    assert "README.md" in error
    assert sorted(item.name for item in tmp_path.iterdir()) == ["README.md", "digits.yaml"]


def test_a_broken_state_is_told(again) -> None:
    state = again.parent / "out" / building.STATE
    for content in (b"{", b'{"build": 2}', b'{"steps": {"cut low": 1}}'):
        state.write_bytes(content)
        with refused("file-damaged", "--force"):
            build(load_recipe(again))
    before = contents(again.parent / "out")
    assert built(again, force=True) == {"ran": STEPS}
    assert contents(again.parent / "out") == before


def test_what_is_left_of_an_earlier_recipe_is_named_and_kept(again) -> None:
    again.write_text(RECIPE.replace("  low:", "  few:"))
    result = build(load_recipe(again))
    assert result["left_over"] == ["components/low.safetensors", "scores/components/low.json"]
    assert (again.parent / "out" / "components" / "low.safetensors").is_file()


def test_what_fails_while_building_is_told_with_its_place(again) -> None:
    for change, place, quoted in (
        (('task: "0,2"', 'task: "0,7"'), "13:30", "components.low.task"),
        (("flops: 0.7", "flops: 1.0e-9"), "13:8", "cut low: "),
        (("upper, task: [7, 9]", "lower, task: [2, 4]"), "15:11", "assemble: class '2' is in "),
    ):
        assert change[0] in RECIPE
        again.write_text(RECIPE.replace(*change))
        with pytest.raises(BrickyardError) as error:
            build(load_recipe(again))
        assert str(error.value).startswith(f"{again}:{place}: ")
        assert quoted in str(error.value)


def test_components_alone_have_a_card_each(again) -> None:
    again.write_text(RECIPE.replace("assembly: {scaling: lda, shots: 3}\n", "license: mit\n"))
    result = build(load_recipe(again))
    cards = ["write the card of low", "write the card of high"]
    assert did(result)["ran"] == ["tabulate", *cards, "copy the recipe"]
    assert set(result["scores"]) == {"low", "high"}
    assert "README.md" in result["left_over"]
    card = (again.parent / "out" / "components" / "high.md").read_text()
    row = next(row for row in result["scores"]["high"]["rows"] if row["name"] == "component")
    assert front_matter(card)["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(row["accuracy"])
    assert front_matter(card)["license"] == "mit"
    assert 'by.load("high.safetensors")' in card


def test_a_source_without_weights_is_named(tmp_path) -> None:
    text = "brickyard: 1\nsources: {a: {network: 'zoo:lenet5?channels=1&width=0.25&classes=10', random-weights: true, "
    text += "data: digits, "
    text += "preprocessing: {size: 32}, locate: {per-class: 2}}}\n"
    text += "components: {low: {source: a, task: 0-1, flops: 0.8, heal: none}}\n"
    said: list[object] = []
    result = build(load_recipe(write(tmp_path, text)), say=said.append)
    assert any("source a " in str(line) for line in said)
    part = by.load(tmp_path / "out" / "components" / "low.safetensors")
    assert part.manifest.source.name == "a (zoo:lenet5)"
    assert part.manifest.located.images[:3] == (2, 2, 0)
    assert result["scores"] == {}
    assert "model-index" not in front_matter((tmp_path / "out" / "README.md").read_text())


# -- what is left ------------------------------------------------------------------------------------------


def test_the_parts_are_what_the_library_makes(first) -> None:
    """The same by hand, with the library's own calls."""
    from brickyard.sources._loading import load_source

    out = first.parent / "out"
    source = load_source(str(out / "sources" / "lower.safetensors"))
    images = load_data("digits").renumbered(range(5))
    relevance = by.locate(source.model, images, preprocessing=source.preprocessing, per_class=8, task=["0", "2"])
    found = by.disassemble(
        source.model, relevance, task=["0", "2"], budget=by.Budget(flops=0.7), heal_images=60, images=images
    )
    kept, test = by.load(out / "components" / "low.safetensors"), load_data("digits", split="test")
    assert kept.manifest.axes == found.manifest.axes
    torch.testing.assert_close(kept(kept.preprocess(test.images)), found(found.preprocess(test.images)))
    whole = by.load(out / "assembly.safetensors")
    assert whole.classes == ("0", "2", "7", "9")
    assert whole.manifest.scaling.name == "lda"
    assert whole.manifest.scaling.images == 3 * 4
    assert whole.manifest.parts[1].reject


def test_an_assembly_keeps_one_budget(again) -> None:
    text = again.read_text().replace("assembly: {scaling: lda, shots: 3}", "assembly: {flops: 0.6, seed: 1}")
    again.write_text(text)
    assert built(again)["ran"][0] == "assemble"
    folder = again.parent / "out"
    whole = by.load(folder / "assembly.safetensors")
    parts = [by.load(folder / f"components/{name}.safetensors") for name in ("low", "high")]
    data = [load_data("digits").renumbered(range(5)), load_data("digits").renumbered(range(5, 10))]
    made = by.assemble(parts, budget=by.Budget(flops=0.6), calibration=data, seed=1)
    assert whole.manifest.budget == made.manifest.budget
    total = sum(part.manifest.selection.flops for part in parts)
    assert sum(part.selection.flops for part in whole.manifest.parts) <= 0.6 * total
    again.write_text(text.replace("flops: 0.6, seed", "flops: 0.5, seed"))
    assert "flops was 0.6, now 0.5" in plan(load_recipe(again))[6].reasons


def test_the_score_tables_agree_with_evaluate(first) -> None:
    out = first.parent / "out"
    values = json.loads((out / "scores.json").read_text())
    assert list(values) == ["low", "high", "assembly"]
    part = by.load(out / "components" / "high.safetensors")
    test = load_data("digits", split="test", max_images=250).of_classes(["5", "6", "7", "8", "9"])
    expected = by.evaluate(part, test.renumbered(range(5, 10)), latency=False)
    component = next(row for row in values["high"]["rows"] if row["name"] == "component")
    assert component["accuracy"] == pytest.approx(expected.row("component").accuracy)
    assert [row["name"] for row in values["low"]["rows"]] == ["base", "restricted", "component"]
    assert [row["name"] for row in values["assembly"]["rows"]] == ["base", "restricted", "oracle", "assembled"]
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["of"], row["name"], float(row["accuracy"])) for row in rows] == [
        (name, row["name"], row["accuracy"]) for name, table in values.items() for row in table["rows"]
    ]
    for table in values.values():
        assert score_table(Scores.model_validate(table)) in (out / "scores.md").read_text()


def front_matter(card: str):
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_scores_say(first, tmp_path, monkeypatch) -> None:
    out = first.parent / "out"
    card = (out / "README.md").read_text()
    values = json.loads((out / "scores.json").read_text())
    head = front_matter(card)
    read = needed_package("huggingface_hub").ModelCard(card).data
    assert read.model_name == "Four digits"
    assert read.eval_results[0].metric_value == pytest.approx(values["assembly"]["rows"][-1]["accuracy"], abs=1e-4)
    assert head["library_name"] == "brickyard"
    assert head["pipeline_tag"] == "image-classification"
    assert "license" not in head
    (result,) = head["model-index"][0]["results"]
    assert head["model-index"][0]["name"] == "Four digits"
    assert result["metrics"][0]["value"] == pytest.approx(values["assembly"]["rows"][-1]["accuracy"], abs=1e-4)
    for name, table in values.items():
        section = card.split(f"### {name}\n")[1].split("###")[0]
        assert re.search(rf"\b{table['rows'][-1]['images']}\b", section)
        for row in table["rows"]:
            assert f"| {row['name']} | {row['accuracy']:.1f}±{row['error']:.1f} |" in section
    whole = by.load(out / "assembly.safetensors")
    for part in whole.manifest.parts:
        assert part.source.sha256 in card
        assert re.search(rf"\b{sum(part.located.images)}\b.*digits", card)
        assert re.search(rf"refit.*\b{part.heal.images}\b", card)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    monkeypatch.chdir(shutil.copytree(out, tmp_path / "hub"))
    Image.fromarray(load_data("digits").images[0, 0].numpy()).save("picture.png")
    space: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), space)  # noqa: S102
    assert space["model"].classes == whole.classes


def test_a_card_alone(first) -> None:
    out = first.parent / "out"
    low, high = (by.load(out / "components" / f"{name}.safetensors") for name in ("low", "high"))
    card = model_card(low, license="mit")
    head = front_matter(card)
    assert head["license"] == "mit"
    assert "model-index" not in head
    assert '"none of these"' in model_card(high)
    assert '"none of these"' not in card
    scores = by.evaluate(low, load_data("digits", split="test"), latency=False)
    assert f"{scores.row('component').accuracy:.1f}±" in model_card(low, scores)
    with refused("option-count", "2", "1"):
        model_card(low, names=["a", "b"])


# -- fingerprints, command, documents ----------------------------------------------------------------------


def test_all_files_that_loading_reads_are_hashed(tmp_path, monkeypatch) -> None:
    images = load_data("digits?classes=0-2").renumbered([0, 1, 2]).subset(range(12))
    save_folder(images, tmp_path / "plain")
    save_folder(images, tmp_path / "parts" / "train")
    save_folder(images, tmp_path / "parts" / "val")
    opened: set[Path] = set()
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: opened.add(Path(path)) or real(path, **how))
    for folder, split in (("plain", "train"), ("plain", "test"), ("parts", "train"), ("parts", "test")):
        opened.clear()
        _ = load_data(tmp_path / folder, split=split).images
        assert opened == set(data_files(tmp_path / folder, split))
        assert len(opened) == 12
    for name in ("x-images-idx3-ubyte", "x-images.idx3-ubyte"):
        labels = tmp_path / name.replace("images", "labels").replace("idx3", "idx1")
        for path in (tmp_path / name, labels):
            path.touch()
        assert set(data_files(tmp_path / name, "train")) == {tmp_path / name, labels}


def test_a_file_is_read_again_only_where_it_changed(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    prints = Fingerprints(tmp_path)
    one = prints.file(path)
    monkeypatch.setattr(Path, "open", lambda *_a, **_k: pytest.fail("read again"))
    assert Fingerprints(tmp_path, prints.known).file(path) == one
    monkeypatch.undo()
    path.write_text("two")
    assert Fingerprints(tmp_path, prints.known).file(path) != one
    with refused("file-missing", "missing"):
        prints.file(tmp_path / "missing")


def test_the_command(again) -> None:
    value = json.loads(run("build", again, "--json").stdout)
    assert did(value) == {"up to date": STEPS}
    assert value["scores"] == json.loads((again.parent / "out" / "scores.json").read_text())
    result = run("build", again)
    assert re.search(r"\b13\b", result.stdout)
    assert str(again.parent / "out" / "assembly.safetensors") in result.stdout
    assert "none.yaml" in run("build", again.parent / "none.yaml", code=1).stderr
    forced = json.loads(run("build", again, "--dry-run", "--force", "--json").stdout)
    assert all(step["reasons"] == ["asked for with --force"] for step in forced["steps"][:2])


SECTIONS = {
    "The recipe": _schema.Recipe,
    "A source": _schema.SourceRecipe,
    "train": _schema.TrainRecipe,
    "preprocessing": _schema.PreprocessingRecipe,
    "locate": _schema.LocateRecipe,
    "A component": _schema.ComponentRecipe,
    "assembly": _schema.AssemblyRecipe,
    "evaluate": _schema.EvaluateRecipe,
    "outputs": _schema.OutputsRecipe,
}


def test_the_documented_recipe_builds_and_every_key_is_documented(tmp_path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.S)
    assert len(blocks) == 1
    path = write(tmp_path, blocks[0])
    built(path)
    whole = by.load(tmp_path / "out" / "assembly.safetensors")
    assert whole.classes == ("0", "1", "2", "7", "8", "9")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["assembly"]["rows"][-1]["accuracy"] > 50
    tables = text.split("## Keys")[1]
    for section, model in SECTIONS.items():
        rows = tables.split(f"### {section}\n")[1].split("###")[0]
        documented = dict(re.findall(r"^\| `([a-z-]+)` \|[^|]*\| ([^|]*) \|$", rows, re.M))
        assert list(documented) == [name.replace("_", "-") for name in model.model_fields], section
        for name, item in model.model_fields.items():
            if not item.is_required() and isinstance(item.default, str | bool | int | float):
                said = documented[name.replace("_", "-")]
                expected = str(item.default).lower() if isinstance(item.default, bool) else f"{item.default}"
                assert said == f"`{expected}`", (section, name)
