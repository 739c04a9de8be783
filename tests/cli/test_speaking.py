"""What is said while a command works: progress, steps, and nothing at all."""

from __future__ import annotations

import io
import itertools
import logging
import sys

import pytest
import torch

import brickyard as by
from brickyard.runtime import _progress as progress
from brickyard.testing import chain
from shell import run


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(progress, "_clock", lambda: now[0])
    monkeypatch.setattr(progress._Lines, "told", None)
    return now


def test_progress_without_a_terminal_is_a_line_every_thirty_seconds(clock, monkeypatch) -> None:
    """Of all works together, with the time that is left at the pace so far."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    said: list[tuple[float, str]] = []

    def work() -> None:
        with progress.bar("training", 100) as outer:
            for _ in range(100):
                with progress.bar("scoring", None) as inner:
                    for _ in range(5):
                        clock[0] += 1.5
                        before = len(out.getvalue())
                        inner(2)
                        if text := out.getvalue()[before:]:
                            said.append((clock[0], text))
                clock[0] += 2.5
                before = len(out.getvalue())
                outer()
                if text := out.getvalue()[before:]:
                    said.append((clock[0], text))

    with progress.spoken():
        work()
    times = [time for time, _ in said]
    assert len(times) == 33  # a thousand seconds, in which every thirtieth is the end of a round
    assert all(late - early >= 30 for early, late in itertools.pairwise(times))
    for time, text in said:
        done = int(time / 10)
        left = 10.0 * (100 - done)
        about = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} minutes"
        assert text == f"training: {done} of 100, about {about} left\n"
    for silent in (progress.spoken(quiet=True), progress.spoken(quiet=True, verbose=True)):
        said.clear()
        with silent:
            work()
        assert said == []
    work()  # in a program of somebody's own nothing is printed unless it listens to the logger
    assert said == []


def test_a_count_without_an_end_and_a_terminal(clock, monkeypatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with progress.spoken(), progress.bar("reading \x1b[2J", None) as advance:
        for amount, seconds in ((5, 29), (1000, 2)):
            clock[0] += seconds
            advance(amount)
    assert out.getvalue() == "reading \\x1b[2J: 1,005 so far\n"
    out.isatty = lambda: True  # type: ignore[method-assign]
    before = len(out.getvalue())
    with progress.spoken(), progress.bar("reading", 2) as advance:
        clock[0] += 100
        advance()
    assert "so far" not in out.getvalue()[before:]
    assert "about" not in out.getvalue()[before:]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speaking")
    run("train", "cnn?width=0.125", "--data", "digits", "--epochs", 1, "--size", 16, "-o", folder / "s.safetensors")
    return folder


def test_steps_are_said_when_asked_for_and_nothing_when_not(files) -> None:
    s, r, a, b, ab = (files / f"{name}.safetensors" for name in ("s", "r", "a", "b", "ab"))
    data = ("--data", "digits")
    lines = {
        "locate": (s, *data, "--per-class", 5, "--choose", "random", "-o", r),
        "disassemble": (s, "--relevance", r, *data, "--task", "0,2", "--heal-images", 20, "-o", a),
        "assemble": (a, b, "-o", ab),
        "evaluate": (ab, *data, "--no-latency", "--max-images", 100),
    }
    heard: list[str] = []
    for verb, words in lines.items():
        if verb == "assemble":
            run("disassemble", s, "--relevance", r, "--task", "1", "--heal", "none", "-o", b)
        force = () if verb == "evaluate" else ("--force",)
        usual = run(verb, *words)
        heard.append(usual.stderr)
        loud = run(verb, *words, *force, "-v")
        assert [line for line in loud.stderr.splitlines() if line.startswith(f"{verb}: ")], loud.stderr
        assert not [line for line in usual.stderr.splitlines() if line.startswith(f"{verb}: ")]
        silent = run("-q", verb, *words, *force)
        assert silent.stderr == ""
        assert silent.stdout == usual.stdout
    assert run("--verbose", verb, *words).stderr == loud.stderr  # before the command, and after it
    assert run(verb, *words, "--quiet").stderr == ""
    assert "locating" in heard[0]  # the control of -q
    wrong = run("-q", "evaluate", files / "none.safetensors", *data, code=1)
    assert "none.safetensors" in wrong.stderr
    assert "--quiet" in run("-q", "evaluate", ab, *data, "-v", code=1).stderr


def test_a_program_can_follow_the_steps_and_hears_nothing_unasked(caplog, capfd) -> None:
    source, data = chain(), (torch.rand(40, 3, 8, 8), torch.arange(40) % 4)

    def work() -> None:
        relevance = by.locate(source, data)
        parts = [by.disassemble(source, relevance, task=[k]) for k in (2, 0)]
        by.evaluate(by.assemble(parts), [data, data], latency=False, including_calibration=True)

    work()
    assert caplog.records == []
    assert capfd.readouterr().err == ""
    with caplog.at_level(logging.INFO, "brickyard"):
        work()
    verbs = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert list(dict.fromkeys(verbs)) == ["locate", "disassemble", "assemble", "evaluate"]
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("brickyard").handlers)
