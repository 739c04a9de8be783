"""What is said of installing holds: files of containers exist and start what is there, the Space answers pictures."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import brickyard as by
from brickyard.testing import chain
from shell import python

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SPACE = ROOT / "examples" / "space"


def copied(text: str) -> list[str]:
    """What a Dockerfile copies from the folder that it is built in."""
    return [name for line in re.findall(r"^COPY (.*)", text, re.M) for name in line.split()[:-1]]


def test_the_container_is_built_from_what_it_copies(tmp_path) -> None:
    text = (ROOT / "Dockerfile").read_text()
    shown = (ROOT / ".dockerignore").read_text()
    for name in copied(text):
        assert f"!{name}\n" in shown
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = set(ZipFile(wheel).namelist())
    assert {"brickyard/__init__.py", "brickyard/workbench/static/index.html"} <= names
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras.split(",")) < set(PROJECT["optional-dependencies"])


def test_the_container_starts_a_command_that_exists() -> None:
    (words,) = re.findall(r"^CMD (.*)", (ROOT / "Dockerfile").read_text(), re.M)
    program, command, *options = json.loads(words)
    assert program in PROJECT["scripts"]
    told = python(
        f"from brickyard.__main__ import main; import sys; sys.argv = ['brickyard', '{command}', '--help']; main()"
    )
    assert all(option in told for option in options if option.startswith("--"))


def test_what_is_cited_is_what_is_there() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    readme = (ROOT / "README.md").read_text()
    assert str(cited["version"]) == by.__version__
    assert f"version = {{{by.__version__}}}" in readme
    assert cited["license"] == PROJECT["license"]
    (paper,) = cited["references"]
    names = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    assert f"author        = {{{names}}}" in readme
    assert paper["title"] == re.findall(r"title +=\s+\{(Model .*)\},", readme)[0].replace("{LEGO}", "LEGO")
    assert all(paper["identifiers"][0]["value"].removeprefix("arXiv:") in text for text in (readme, paper["url"]))


def test_every_extra_that_is_named_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), SPACE / "README.md", ROOT / "Dockerfile"]
    named = {
        extra
        for page in pages
        for found in re.findall(r"(?:brickyard|\.|whl)\[([a-z,]+)\]'", page.read_text())
        for extra in found.split(",")
    }
    assert len(named) > 5
    assert named <= set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def space() -> dict[str, Any]:
    return runpy.run_path(str(SPACE / "app.py"))


def test_the_space_answers_as_its_model_does(space, monkeypatch) -> None:
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
    part = by.disassemble(
        source := chain(), by.locate(source, images, classes=["cat", "dog", "owl", "hen"]), task=["cat", "owl"]
    )
    made: list[Any] = []
    stub = SimpleNamespace(
        Interface=lambda *given, **options: made.append((given, options)) or made[-1],
        **{name: lambda **options: options for name in ("Image", "Label", "Textbox")},
    )
    monkeypatch.setitem(sys.modules, "gradio", stub)  # the page itself is gradio's
    (answer, *_), options = space["page"](part)
    assert "cat, owl" in options["description"]
    picture = (images[0][0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    shares, words = answer(picture)
    expected = part.predict_proba([picture])[0].tolist()
    assert shares == dict(zip(["cat", "owl"], expected, strict=True))
    assert words.startswith(part.predict([picture])[0])
    assert answer(None) == ({}, "Choose a picture first.")
    other = answer(255 - picture)[0]
    assert other != shares  # the control


@pytest.mark.slow
def test_the_space_takes_the_model_beside_it_or_makes_one(space, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(space["model"].__globals__, "MODEL", tmp_path / "model.safetensors")
    made = space["model"]()
    assert made.classes == ("3", "6", "9")
    photograph = Image.new("RGB", (40, 30), "navy")  # what the page hands over, whatever the model takes
    assert set(space["classify"](made, photograph)[0]) == {"3", "6", "9"}
    made.renamed({"3": "three"}).save(tmp_path / "model.safetensors")
    assert space["model"]().classes == ("three", "6", "9")
