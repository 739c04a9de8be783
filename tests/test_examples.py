"""Every script of `examples/` runs as it is, in an empty folder, and its figures are above chance."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

from conftest import needed_package

SCRIPTS = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEEDS = {"save_load_export": ("onnx", "onnxruntime", "onnxscript"), "cut_a_detector": ("onnx", "torchvision")}
SHARED = ("cut_a_detector",)


def test_there_are_examples_and_each_says_what_it_shows() -> None:
    assert len(SCRIPTS) >= 6
    for script in SCRIPTS:
        assert ast.get_docstring(ast.parse(script.read_text())), script.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_and_its_figures_are_above_chance(script, tmp_path, monkeypatch, capsys, request) -> None:
    for name in NEEDS.get(script.stem, ()):
        needed_package(name)
    if script.stem in SHARED:
        monkeypatch.setenv("BRICKYARD_SHARED", str(request.getfixturevalue("shared")))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    if script.stem == "cut_a_detector":
        assert re.search(r"image \d+: (person|dog) \d+%", out), out
        assert {path.name for path in tmp_path.iterdir()} == {"found.png"}
        return
    right = [float(figure) for figure in re.findall(r"(\d+\.\d) % right", out)]
    assert right, out
    assert min(right) > 60, out  # of two to ten classes
    assert max(right) <= 100
    if script.stem == "save_load_export":
        assert "loaded gives the same probabilities: True" in out
        assert {path.name for path in tmp_path.iterdir()} == {"component.safetensors", "component.onnx"}
    if script.stem in ("join_two_sources", "few_shot_scaling"):
        assert right[-1] > right[0]  # scaled, and as they are
    if script.stem == "finetune_and_distil":
        assert right[1] >= right[0]
