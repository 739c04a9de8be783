"""Iterables of which nobody knows the end: they are counted as they are read, and bounded."""

from __future__ import annotations

import io
import itertools
import sys

import torch

import brickyard as by
from brickyard.inputs import _batches
from brickyard.testing import chain
from errors import refused


def endless(most: int | None = None):
    for k in itertools.islice(itertools.count(), most):
        yield torch.rand(2, 3, 8, 8), torch.tensor([k % 4, (k + 1) % 4])


def test_an_endless_iterable_ends_in_an_error(monkeypatch) -> None:
    monkeypatch.setattr(_batches, "MAX_BYTES", 1 << 20)
    with refused("data-too-large", "iterable", "Dataset"):
        by.locate(chain(), endless())
    assert by.locate(chain(), endless(50)).record.images == (25, 26, 25, 24)  # the control: one that ends in time


def test_long_reading_is_said_once_and_counted(monkeypatch, capsys) -> None:
    from rich.console import Console

    monkeypatch.setattr(_batches, "MANY", 20)
    _batches.Images(endless(30))
    assert capsys.readouterr().err.count("20 batches read so far") == 1
    _batches.Images(endless(10))
    assert "batches" not in capsys.readouterr().err
    out = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.Console", lambda stderr: Console(file=out, force_terminal=True, width=200))
    _batches.Images(endless(10), None, "the images")
    assert "reading the images" in out.getvalue()
    assert "10/?" in out.getvalue()
