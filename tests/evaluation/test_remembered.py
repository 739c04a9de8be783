"""Scores that are kept in the file that was scored: for yards, cards and reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import brickyard as by
from brickyard.evaluation._scores import Scores
from brickyard.reports import report
from brickyard.reports._cards import model_card
from brickyard.testing import chain
from brickyard.yard._yard import Yard
from shell import run

CLASSES = ["cat", "dog", "hen", "pig"]


def images(seed: int, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % 4


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "yard").mkdir()
    relevance = by.locate(chain(), images(0), classes=CLASSES)
    parts = [by.disassemble(chain(), relevance, task=task) for task in (["cat", "hen"], ["dog"])]
    parts[0].save(tmp_path / "yard" / "part.safetensors")
    by.assemble(parts).save(tmp_path / "whole.safetensors")
    for name, seed in (("one", 1), ("two", 2)):
        x, y = images(seed, 20 * seed)
        np.savez(tmp_path / f"{name}.npz", x=x.numpy(), y=y.numpy(), classes=np.array(CLASSES))
    return tmp_path


def test_scores_are_kept_and_nothing_else_changes(place) -> None:
    path = place / "yard" / "part.safetensors"
    before, bare = by.load(path), path.read_bytes()
    run("evaluate", path, "--data", place / "one.npz")
    assert path.read_bytes() == bare  # the control
    said = run("evaluate", path, "--data", place / "one.npz", "--remember", "--json").stdout
    after = by.load(path)
    (kept,) = after.manifest.scores.values()
    told = json.loads(said)
    assert [row.pop("latency") is None for row in told["rows"]] == [False]
    assert [row.pop("latency") for row in kept["rows"]] == [None]  # which is of one machine
    assert kept == told
    assert (kept["rows"][0]["images"], len(kept["data_sha256"]), kept["overlap"]["used"]) == (10, 64, 0)
    assert kept["data"] in after.manifest.scores
    assert after.manifest.model_copy(update={"scores": {}}) == before.manifest
    assert all(
        torch.equal(a, b) for a, b in zip(after.state_dict().values(), before.state_dict().values(), strict=True)
    )
    once = path.read_bytes()
    run("evaluate", path, "--data", place / "one.npz", "--remember", "--no-latency")
    assert path.read_bytes() == once
    run("evaluate", path, "--data", place / "two.npz", "--remember", "--no-latency")
    tables = [Scores.model_validate(table) for table in by.load(path).manifest.scores.values()]
    assert [table.rows[0].images for table in tables] == [10, 20]
    assert tables[0].data_sha256 != tables[1].data_sha256
    assert sorted(item.name for item in path.parent.iterdir()) == ["part.safetensors"]


def test_yards_cards_and_reports_have_them(place) -> None:
    path = place / "yard" / "part.safetensors"
    assert Yard(path.parent).entry("part").accuracy is None
    assert "Nothing was measured" in model_card(by.load(path))
    run("evaluate", path, "--data", place / "two.npz", "--remember", "--no-latency")
    scores = by.evaluate(by.load(path), images(2), latency=False)
    assert Yard(path.parent).entry("part").accuracy == scores.row("component").accuracy / 100
    card = model_card(by.load(path))
    assert f"value: {round(scores.row('component').accuracy, 4)}" in card
    assert "Images scored: 20." in card
    assert "from the file: " in report([by.load(path)])
    whole = place / "whole.safetensors"
    run("evaluate", whole, "--data", place / "two.npz", "--remember", "--no-latency")
    assert "oracle" in model_card(by.load(whole))


def test_scores_on_images_that_were_used_are_no_accuracy_of_a_yard(place) -> None:
    path = place / "yard" / "part.safetensors"
    x, y = images(0)
    np.savez(place / "used.npz", x=x.numpy(), y=y.numpy(), classes=np.array(CLASSES))
    assert "used to locate" in run("evaluate", path, "--data", place / "used.npz", code=1).stderr
    run("evaluate", path, "--data", place / "used.npz", "--including-calibration", "--remember", "--no-latency")
    assert Yard(path.parent).entry("part").accuracy is None
    assert "are scored too" in model_card(by.load(path))


def test_without_a_source_the_drop_says_what_it_needs() -> None:
    relevance = by.locate(chain(), images(0))
    part = by.disassemble(chain(), relevance, task=[0, 1])
    alone, both = (by.evaluate(part, images(3), latency=False, source=source) for source in (None, chain()))
    assert "needs --source" in str(alone)
    assert "needs --source" not in str(both)
    assert "needs --source" not in model_card(part, alone)


def test_show_tells_the_scores_that_a_file_holds(place) -> None:
    path = place / "yard" / "part.safetensors"
    assert "  scores " not in run("show", path).stdout  # the control
    for name in ("one", "two"):
        run("evaluate", path, "--data", place / f"{name}.npz", "--remember", "--no-latency")
    said = [line for line in run("show", path).stdout.splitlines() if line.startswith("  scores ")]
    tables = {name: Scores.model_validate(value) for name, value in by.load(path).manifest.scores.items()}
    assert len(said) == len(tables) == 2
    for line, (name, table) in zip(said, tables.items(), strict=True):
        row = table.rows[-1]
        assert f"{name}: accuracy {row.accuracy:.1f}" in line
        assert line.endswith(f"on {row.images} images")
    value = json.loads(run("show", path, "--json").stdout)
    assert list(value["scores"]) == list(tables)


def test_the_yard_tells_on_how_many_images_an_agreement_was_measured(place) -> None:
    path = place / "yard" / "part.safetensors"
    part = by.load(path)
    for agreement, said in (((19, 20), "95.0% of 20 images held back"), ((3, 4), "3 of 4 images held back")):
        part.with_manifest(agreement=agreement).save(path, overwrite=True)
        assert said in run("yard", "show", "part", "--yard", place / "yard").stdout
        found = json.loads(run("yard", "show", "part", "--yard", place / "yard", "--json").stdout)
        assert (found["agreement"], found["agreement_images"]) == (agreement[0] / agreement[1], agreement[1])
