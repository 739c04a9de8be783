"""Networks for several classes at once from the shell: labels become rows, and answers name any number of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import brickyard as by
from brickyard.inputs._datasets import load_data
from shell import run, save_folder

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)
    def forward(self, x):
        return 40 * self.head(torch.relu(self.body(x[:, :1])).mean((2, 3)))

def make():
    return Net().eval()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of four outputs, and pictures of digits 0 to 3."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "net.py").write_text(NETWORK)
    digits = load_data("digits")
    chosen = digits.of_classes(["0", "1", "2", "3"])
    save_folder(chosen.subset(list(range(60))), folder / "pictures")
    return folder


def test_every_command_takes_them(place: Path) -> None:
    source, part, found = f"{place}/net.py:make", place / "part.safetensors", place / "found.safetensors"
    data, several = ("--data", "digits?classes=0-3"), ("--outputs", "several")
    done = run("locate", source, *data, *several, "-o", found)
    assert "absent" in done.stderr
    relevance = by.load(found)
    assert relevance.outputs == "several"
    run(
        "disassemble",
        source,
        "--relevance",
        found,
        *data,
        "--task",
        "1,2",
        "-o",
        part,
        "--decision-thresholds",
        "1=0.9",
    )
    component = by.load(part)
    assert (component.manifest.outputs, component.manifest.decision_thresholds) == ("several", (0.9, 0.5))
    scores = json.loads(run("evaluate", part, *data, "--source", source, "--json").stdout)
    assert {"mean_ap", "f1"} <= scores["rows"][-1].keys()
    digits = load_data("digits", split="test").of_classes([0, 1, 2, 3])
    rows = torch.nn.functional.one_hot(digits.labels, 4)
    own = by.evaluate(component, (digits.images, rows), latency=False).row("component")
    assert scores["rows"][-1]["accuracy"] == pytest.approx(own.accuracy)
    whole, more = place / "whole.safetensors", place / "more.safetensors"
    run("disassemble", source, *data, *several, "--task", "0,3", "-o", more)
    run("assemble", part, more, "-o", whole, "--scaling", "affine", "--images", data[1], "--images", data[1])
    assert "mAP" in run("evaluate", whole, *data).output
    run("finetune", part, *data, "-o", place / "tuned.safetensors", "--epochs", 1)
    run("routes", source, "--relevance", found, "--classes", "0", *data, "-o", place / "routes.svg")
    run("report", part, *data, "-o", place / "report.html")
    picture = next((place / "pictures").rglob("*.png"))
    said = json.loads(run("predict", part, picture, "--json").stdout)["predictions"][0]
    assert said["answer"] == list(component.predict([picture])[0])
    assert by.load(more).manifest.outputs == "several"


def test_pictures_without_labels_get_all_answers_of_the_source(place: Path) -> None:
    out = place / "unlabelled.safetensors"
    given = ("--calibration", place / "pictures", "--size", "8", "--outputs", "several")
    done = run("locate", f"{place}/net.py:make", *given, "-o", out)
    assert "own answers" in done.stderr
    assert by.load(out).outputs == "several"


def test_unknown_kinds_are_refused(place: Path) -> None:
    given = (f"{place}/net.py:make", "--data", "digits?classes=0-3", "-o", place / "x.safetensors")
    assert "severel" in run("locate", *given, "--outputs", "severel", code=1).output


def test_a_folder_of_transformers_chooses_by_itself(tmp_path: Path, place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(
        **sizes, image_size=8, patch_size=4, num_labels=4, problem_type="multi_label_classification"
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    given = (f"hf:{tmp_path / 'vit'}", "--data", "digits?classes=0-3")
    done = run("locate", *given, "-o", tmp_path / "found.safetensors")
    assert "outputs='several'" in done.stderr
    assert by.load(tmp_path / "found.safetensors").outputs == "several"
    run("locate", *given, "--outputs", "one", "-o", tmp_path / "one.safetensors")
    assert by.load(tmp_path / "one.safetensors").outputs == "one"


def test_a_recipe_says_it(place: Path) -> None:
    (place / "recipe.yaml").write_text(
        """
brickyard: 1
sources:
  net: {network: "net.py:make", data: "digits?classes=0-3", preprocessing: {size: 8}, locate: {outputs: several}}
components:
  low: {source: net, task: "0,1", decision-thresholds: "0=0.3"}
  high: {source: net, task: "2,3"}
assembly: {}
evaluate: {data: "digits?classes=0-3"}
"""
    )
    run("build", place / "recipe.yaml", "--trust-code")
    whole = by.load(place / "out" / "assembly.safetensors")
    assert whole.manifest.decision_thresholds == (0.3, 0.5, 0.5, 0.5)
    assert "names none, one or several" in (place / "out" / "README.md").read_text()
