"""Sources of which no component can be written to a file: said, or refused, before their images are gone through."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import brickyard as by
from brickyard.inputs import _pictures
from brickyard.recipes._build import build
from brickyard.recipes._reader import load_recipe
from brickyard.testing import chain
from errors import refused
from shell import run

COUNT = 40
FEW = 3  # images that tell what a source takes
NET = """\
import torch
from brickyard.testing import chain


def plain():
    model = chain().eval()
    with torch.no_grad():  # every class is some image's
        model.linear.bias -= model(torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))).mean(0)
    return model


def opaque():
    model = plain()
    model.conv2 = torch.jit.script(model.conv2)
    return model
"""
OPTIONS = ("--size", 8, "--task", "0,1", "--flops", 0.7)


class Counted:
    """Images and labels, and how many were taken."""

    def __init__(self) -> None:
        self.taken = 0
        self.images = torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= COUNT:
            raise IndexError(index)
        self.taken += 1
        return self.images[index], index % 4


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file that makes networks, and a folder of pictures by class."""
    (tmp_path / "net.py").write_text(NET)
    for index, image in enumerate(Counted().images):
        folder = tmp_path / "photos" / "abcd"[index % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(folder / f"{index}.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The pictures that were decoded."""
    seen: list[object] = []
    real = _pictures.decode_image

    def decode(source: object, title: str | None) -> Tensor:
        seen.append(source)
        return real(source, title)

    monkeypatch.setattr(_pictures, "decode_image", decode)
    return seen


def test_locate_warns_before_it_goes_through_the_images() -> None:
    model, data = chain(), Counted()
    model.conv2 = torch.jit.script(model.conv2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "components of this source cannot be saved: .*conv2", by.BrickyardWarning)
        with pytest.raises(by.BrickyardWarning):
            by.locate(model, data, choose="all")
        assert data.taken <= FEW
        by.locate(chain(), data, choose="all")  # the control
    assert data.taken >= COUNT


@pytest.mark.parametrize("option", ["--data", "--calibration"])
def test_on_the_command_line_it_is_refused_before_that(place: Path, decoded: list[object], option: str) -> None:
    command = ("disassemble", f"{place / 'net.py'}:opaque", option, place / "photos", *OPTIONS)
    result = run(*command, "-o", place / "part.safetensors", code=1)
    assert "conv2" in result.stderr
    assert len(decoded) <= FEW
    assert not (place / "part.safetensors").exists()
    run("disassemble", f"{place / 'net.py'}:plain", *command[2:], "-o", place / "part.safetensors")  # the control
    assert len(decoded) >= COUNT / 2


def test_located_before_it_is_refused_at_once(place: Path, decoded: list[object]) -> None:
    for name, code in (("opaque", 1), ("plain", 0)):
        spec, found = f"{place / 'net.py'}:{name}", place / f"{name}.safetensors"
        run("locate", spec, "--data", place / "photos", "--size", 8, "-o", found)
        decoded.clear()
        more = ("--relevance", found, "--data", place / "photos", *OPTIONS[2:])
        result = run("disassemble", spec, *more, "-o", place / f"{name}-part.safetensors", code=code)
        assert ("conv2" in result.stderr) == bool(code)
        assert (len(decoded) <= FEW) == bool(code)


def test_a_build_is_refused_before_that(place: Path, decoded: list[object]) -> None:
    for name in ("opaque", "plain"):
        text = f"""\
brickyard: 1
sources:
  it: {{network: "net.py:{name}", data: photos, preprocessing: {{size: 8}}}}
components:
  part: {{source: it, task: "0,1", flops: 0.7}}
"""
        (place / f"{name}.yaml").write_text(text)
    with refused("file-unsupported-operation", "conv2"):
        build(load_recipe(place / "opaque.yaml"), trust=True)
    assert len(decoded) <= FEW
    assert not list(place.rglob("relevance/*"))
    build(load_recipe(place / "plain.yaml"), trust=True)  # the control
    assert len(decoded) >= COUNT / 2
