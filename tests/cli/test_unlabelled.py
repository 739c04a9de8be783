"""Pictures without labels: a source's own answers stand in their place."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import brickyard as by
from brickyard.testing import chain
from errors import refused
from shell import run

IMAGES = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of pictures, some in a folder within it, and a file that makes a network."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for k, image in enumerate(IMAGES):
        name = tmp_path / "photos" / ("more" if k >= 40 else "") / f"{k:02}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(name)
    (tmp_path / "photos" / "notes.txt").write_text("taken in May")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def source() -> nn.Module:
    """A network of which every class is some image's."""
    model, x = chain(), torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        model.linear.bias -= model(x).mean(0)
    return model


NET = f"import torch\nfrom torch import nn\nfrom brickyard.testing import chain\n\n{inspect.getsource(source)}"


def answers(x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = source()(x.float() / 255).argmax(1)
    return found


def test_relevances_are_those_of_the_sources_own_answers(place: Path) -> None:
    result = run(
        *("locate", f"{place / 'net.py'}:source", "--calibration", place / "photos", "--size", 8, "--per-class", 5),
        *("-o", place / "r.safetensors"),
    )
    labels = answers(IMAGES)
    assert "60 pictures without labels" in result.stderr
    assert f"{len(labels.unique())} of its 4 classes" in result.stderr
    how = by.Preprocessing(size=(8, 8), channels=3)
    wanted = by.locate(source(), (IMAGES, labels), preprocessing=how, per_class=5, task=labels.unique().tolist())
    found = by.load(place / "r.safetensors")
    assert torch.equal(found.scores, wanted.scores)
    assert found.record.right is None
    assert wanted.record.right is not None
    other = by.locate(
        source(), (IMAGES, labels.flip(0)), preprocessing=how, per_class=5, task=labels.unique().tolist()
    )  # the control
    assert not torch.equal(found.scores, other.scores)


def test_a_component_is_cut_and_healed_with_them(place: Path) -> None:
    labels = answers(IMAGES)
    first, second = labels.unique().tolist()[:2]
    spec, tail = f"{place / 'net.py'}:source", ("--size", 8, "--task", f"{first},{second}", "--flops", 0.7)
    for name, more in (("a", tail), ("b", ("--relevance", place / "r.safetensors", *tail[2:]))):
        if name == "b":
            run("locate", spec, "--calibration", place / "photos", "--size", 8, "-o", place / "r.safetensors")
        run("disassemble", spec, "--calibration", place / "photos", *more, "-o", place / f"{name}.safetensors")
        part = by.load(place / f"{name}.safetensors")
        heal = part.manifest.heal
        assert heal.images - heal.others + heal.held == int((labels <= second).sum())
        assert heal.others == int((labels > second).sum())
        assert part.manifest.agreement is not None
        assert "answers 100" not in str(part)
    answered = json.loads(run("predict", place / "a.safetensors", place / "photos", "--json").stdout)["predictions"]
    names = [entry["classes"][0]["name"] for entry in answered]
    assert sorted(Path(entry["image"]).name for entry in answered) == [f"{k:02}.png" for k in range(60)]
    assert names == by.load(place / "a.safetensors").predict(
        [Path(entry["image"]) for entry in answered], strangers="answer"
    )
    (place / "none").mkdir()
    assert "no pictures" in run("predict", place / "a.safetensors", place / "none", code=1).stderr


def test_what_does_not_go_together_is_refused(place: Path) -> None:
    spec = f"{place / 'net.py'}:source"
    both = run(
        *("locate", spec, "--calibration", place / "photos", "--data", "digits", "-o", place / "r.safetensors"),
        code=1,
    )
    assert "--calibration" in both.stderr
    assert "--calibration" in run("locate", spec, "-o", place / "r.safetensors", code=1).stderr
    (place / "empty").mkdir()
    for folder, word in (("empty", "no pictures"), ("net.py", "folder"), ("nowhere", "folder")):
        result = run(
            *("locate", spec, "--calibration", place / folder, "--size", 8, "-o", place / "r.safetensors"), code=1
        )
        assert word in result.stderr
    with refused("data-no-labels"):
        by.locate(chain(), IMAGES)
