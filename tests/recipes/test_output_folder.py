"""Where a build writes: below the recipe's own folder, unless who builds says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brickyard.recipes._build import build, plan
from brickyard.recipes._reader import load_recipe
from errors import refused
from shell import run

TEXT = """\
brickyard: 1
sources:
  a:
    network: zoo:lenet5?channels=1&width=0.25&classes=10
    random-weights: true
    data: digits
    preprocessing: {size: 32}
    locate: {per-class: 2}
components: {low: {source: a, task: 0-1, flops: 0.8, heal: none}}
"""


def _recipe(tmp_path: Path, folder: str | None) -> Path:
    own = tmp_path / "own"
    own.mkdir()
    path = own / "recipe.yaml"
    path.write_text(TEXT + ("" if folder is None else f"outputs: {{folder: {json.dumps(folder)}}}\n"), "utf-8")
    return path


def _others(tmp_path: Path) -> list[str]:
    """All files that are not in the recipe's folder."""
    return [str(path) for path in tmp_path.rglob("*") if path.is_file() and (tmp_path / "own") not in path.parents]


@pytest.mark.parametrize("folder", ["../x", "a/../../x", "ABSOLUTE", "..", "link", "link/deep", "deep/../link"])
def test_a_recipe_writes_nowhere_else(folder: str, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = _recipe(tmp_path, folder.replace("ABSOLUTE", str(tmp_path / "x")))
    (path.parent / "link").symlink_to(tmp_path / "elsewhere")
    for call in (plan, build):
        with refused("option-recipe-inconsistent", "outputs.folder", "--output-folder"):
            call(load_recipe(path))
    assert run("build", path, code=1).stderr.count("recipe.yaml:10:") == 1
    assert _others(tmp_path) == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("inner", ["components", "relevance", ".build", ".build.json", "."])
def test_links_that_came_with_a_recipe_lead_nowhere(inner: str, tmp_path) -> None:
    path, elsewhere = _recipe(tmp_path, None), tmp_path / "elsewhere"
    (elsewhere / "locate-precious").mkdir(parents=True)
    (elsewhere / "locate-precious" / "file").touch()
    out = path.parent / "out"
    if inner != ".":
        out.mkdir()
    (out / inner if inner != "." else out).symlink_to(elsewhere)
    with refused("option-recipe-inconsistent", "outputs.folder"):
        build(load_recipe(path), force=True)
    assert _others(tmp_path) == [str(elsewhere / "locate-precious" / "file")]


@pytest.mark.parametrize("folder", [None, "deep/er", ".", "inner"])
def test_folders_inside_are_the_recipes_own(folder: str | None, tmp_path) -> None:
    path = _recipe(tmp_path, folder)
    (path.parent / "real").mkdir()
    (path.parent / "inner").symlink_to("real")
    assert plan(load_recipe(path))[0].status == "run"


def test_who_builds_says_where_results_go(tmp_path) -> None:
    path, there = _recipe(tmp_path, "../x"), tmp_path / "there"
    found = run("build", path, "--output-folder", there)
    assert f"{there / 'components' / 'low.safetensors'}" in found.stdout
    assert (there / "components" / "low.safetensors").is_file()
    assert not (tmp_path / "x").exists()
    again = json.loads(run("build", path, "-o", there, "--json").stdout)
    assert {step["status"] for step in again["steps"]} == {"up to date"}
    assert f"into {there}, 0 to run" in run("build", path, "-o", there, "--dry-run").stdout


def test_what_a_state_owns_elsewhere_is_left_alone(tmp_path) -> None:
    path = _recipe(tmp_path, None)
    (path.parent / "out").mkdir()
    (path.parent / "out" / ".build.json").write_text(json.dumps({"build": 1, "owned": ["../../other/file"]}))
    stage = tmp_path / "other" / ".brickyard-0123abcd.tmp"
    stage.mkdir(parents=True)
    build(load_recipe(path))
    assert stage.exists()
