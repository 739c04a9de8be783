"""What is assumed of a source's normalisation, where nobody gave it: it is said once, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import brickyard as by
from brickyard.sources import _zoo as zoo
from brickyard.sources._loading import load_source, save_source
from shell import run

MEAN = "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225"
SAID = "normalisation not given: assuming"
OWN = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    place = tmp_path / "w.safetensors"
    save_file(zoo.build("resnet20", 10, 0.25).state_dict(), place)
    return place


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Images of ten classes as an array."""
    import numpy as np

    generator = np.random.default_rng(0)
    place = tmp_path / "images.npz"
    np.savez(place, images=generator.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8), labels=np.arange(40) % 10)
    return place


def test_python_is_told_what_is_assumed_of_a_network_of_the_zoo(weights, tmp_path, capsys) -> None:
    for spec, more, assumed in (
        ("zoo:resnet20", {"weights": weights}, MEAN),
        ("zoo:resnet20?classes=10", {"random_weights": True}, MEAN),
        ("zoo:lenet5?classes=4", {"random_weights": True}, "none"),
    ):
        source = load_source(spec, **more)
        assert source.assumed == f"normalisation {assumed}"
        assert capsys.readouterr().err.count(f"{SAID} {assumed};") == 1
    own = tmp_path / "own.py"
    own.write_text(OWN)
    assert load_source(f"{own}:make").assumed == "normalisation none"
    assert capsys.readouterr().err.count(SAID) == 1


def test_nothing_is_assumed_where_it_was_given_or_the_file_says_it(weights, tmp_path, capsys) -> None:
    how = by.Preprocessing(mean=(0.5,), std=(0.25,))
    given = load_source("zoo:resnet20", weights=weights, preprocessing=how)
    none = load_source("zoo:resnet20", weights=weights, preprocessing=by.Preprocessing())
    own = save_source(tmp_path / "own.safetensors", given, arch="resnet20", options={"width": 0.25})
    weights.with_suffix(".json").write_text(json.dumps({"arch": "resnet20", "mean": [0.5] * 3, "std": [0.25] * 3}))
    assert [one.assumed for one in (given, none, load_source(own), load_source("zoo:auto", weights=weights))] == [
        ""
    ] * 4
    assert SAID not in capsys.readouterr().err
    weights.with_suffix(".json").write_text(json.dumps({"arch": "resnet20"}))  # says nothing of it
    assert load_source("zoo:auto", weights=weights).assumed == f"normalisation {MEAN}"


def test_weights_of_ones_own_in_a_network_of_a_library_take_its_normalisation(tmp_path, capsys) -> None:
    torchvision = pytest.importorskip("torchvision")
    place = tmp_path / "w.safetensors"
    save_file(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), place)
    assert load_source("torchvision:squeezenet1_1", weights=place).assumed == f"normalisation {MEAN}"
    assert SAID in capsys.readouterr().err


@pytest.mark.parametrize("size", [(), ("--size", "32")])
def test_the_command_line_says_it_once_and_the_files_keep_it(weights, digits, tmp_path, size) -> None:
    place, found = ("zoo:resnet20", "--weights", weights), tmp_path / "r.safetensors"
    said = run("locate", *place, "--data", digits, "-o", found, "--per-class", 2, *size)
    assert said.stderr.count(SAID) == 1
    part = tmp_path / "part.safetensors"
    cut = ("disassemble", *place, "--task", "0,1", "-o", part, "--heal", "none")
    said = run(*cut, "--relevance", found)
    assert said.stderr.count(SAID) == 0  # it was said when they were located
    assert by.load(part).manifest.located.assumed == f"normalisation {MEAN}"
    assert f"normalisation {MEAN}" in run("show", part).stdout
    assert run("show", *place).stderr.count(SAID) == 0  # pictures play no part
    given = ("--mean", "0.5", "--std", "0.25")
    said = run(*cut, "--force", "--data", digits, "--per-class", 2, *size, *given)
    assert SAID not in said.stderr
    assert by.load(part).manifest.located.assumed == ""


def test_a_source_that_is_tried_with_several_shapes_says_it_once(tmp_path) -> None:
    import numpy as np

    own, data = tmp_path / "own.py", tmp_path / "cubes.npz"
    own.write_text(OWN.replace("Conv2d(3", "Conv1d(3").replace("Pool2d", "Pool1d"))
    np.savez(data, images=np.random.default_rng(0).random((12, 3, 20), dtype=np.float32), labels=np.arange(12) % 3)
    found = tmp_path / "r.safetensors"
    assert run("locate", f"{own}:make", "--data", data, "-o", found, "--per-class", 2).stderr.count(SAID) == 1


def test_a_resumed_location_goes_on_whatever_was_assumed(weights, digits, tmp_path) -> None:
    from brickyard.inputs._batches import Images
    from brickyard.relevance._checkpoint import Notebook

    model, images = zoo.build("lenet5", 2), torch.rand(4, 3, 32, 32)
    found = by.locate(model, (images, torch.tensor([0, 1, 0, 1])), per_class=1)
    held = Images((images, torch.tensor([0, 1, 0, 1])), None, "images", 1)
    before = Notebook(None, found, held)._about
    found.record = found.record.model_copy(update={"assumed": "normalisation none"})
    assert Notebook(None, found, held)._about == before
