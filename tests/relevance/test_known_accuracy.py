"""A source that does far worse than when it was trained is told of; one source is traced once for one command."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import brickyard as by
from brickyard.axes import _graph
from brickyard.relevance._locate import _far_below
from brickyard.sources import load_source
from brickyard.testing import chain, randomised
from shell import run

KNOWN = "known to answer"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("known") / "digits.safetensors"
    run("train", "lenet5?width=0.5", "--data", "digits", "--epochs", 12, "-o", place)
    return place


def told(*arguments: object) -> list[str]:
    """The warnings of a command."""
    lines = run(*arguments).stderr.splitlines()
    return [line for line in lines if line.startswith("warning: ")]


LOCATE = ("--data", "digits?split=test", "--choose", "all")


def test_wrong_preprocessing_is_told_of_with_both_figures(trained: Path, tmp_path: Path) -> None:
    known = load_source(trained).accuracy
    assert (known or 0) > 0.9
    assert not told("locate", trained, *LOCATE, "-o", tmp_path / "right.safetensors")
    wrong = ("--mean", "0.9", "--std", "0.05")
    (text,) = told("locate", trained, *LOCATE, *wrong, "-o", tmp_path / "wrong.safetensors")
    right, asked = by.load(tmp_path / "wrong.safetensors").record.right
    for part in (KNOWN, f"{known:.1%}", f"{right:,} of {asked:,}"):
        assert part in text
    assert "preprocessing" in text
    (text,) = told("disassemble", trained, *LOCATE, *wrong, "--task", "0-9", "-o", tmp_path / "part.safetensors")
    assert KNOWN in text


def test_the_lowest_of_several_scores_is_what_a_source_is_known_for(trained: Path) -> None:
    source = load_source(trained)
    assert set(source.scores) == {"train_accuracy", "test_accuracy"}
    assert source.accuracy == min(source.scores.values())
    assert load_source("zoo:lenet5?classes=4", random_weights=True).accuracy is None


def test_labels_in_another_order_are_told_of_and_a_source_as_good_as_known_is_not() -> None:
    model, x = randomised(chain()), torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers: Tensor = model(x).argmax(1)
    task = answers.unique().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by.locate(model, (x, answers), choose="all", task=task, accuracy=1.0)
    with pytest.warns(by.BrickyardWarning, match=KNOWN) as found:
        by.locate(model, (x, (answers + 1) % 4), choose="all", task=[(k + 1) % 4 for k in task], accuracy=1.0)
    assert found[0].filename == __file__  # the caller's line


@pytest.mark.parametrize(
    ("right", "asked", "known", "ratio", "far"),
    [
        (850, 1000, 0.97, 1, True),
        (880, 1000, 0.97, 1, False),  # nine points
        (17, 20, 0.97, 1, False),  # three errors of twenty may be chance
        (2, 10, 0.97, 1, False),  # too few to tell
        (850, 1000, 0.97, 5, False),  # all errors may be in a fifth of the classes
        (700, 1000, 0.97, 5, True),
        (0, 0, 0.97, 1, False),
        (0, 1000, 0.5, 4, False),
    ],
)
def test_far_below_is_ten_points_and_three_standard_errors(right, asked, known, ratio, far) -> None:
    assert _far_below(right, asked, known, ratio) is far


def test_a_command_traces_its_source_once(trained: Path, tmp_path: Path, monkeypatch) -> None:
    found: list[int] = []
    read = _graph.read_network
    monkeypatch.setattr(_graph, "read_network", lambda *given: found.append(1) or read(*given))
    options = ("--task", "0,1", "--flops", 0.5)
    relevance = tmp_path / "relevance.safetensors"
    for arguments in (
        ("locate", trained, *LOCATE, "-o", relevance),
        ("disassemble", trained, *LOCATE, *options, "-o", tmp_path / "a.safetensors"),
        (
            "disassemble",
            trained,
            "--relevance",
            relevance,
            "--heal",
            "none",
            *options,
            "-o",
            tmp_path / "b.safetensors",
        ),
    ):
        found.clear()
        run(*arguments)
        assert len(found) == 1, arguments[0]
