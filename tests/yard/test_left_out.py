"""Files that a yard does not list: it says so, and only what their content says is remembered."""

from __future__ import annotations

import errno
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import brickyard as by
from brickyard.testing import chain
from brickyard.yard import Yard
from errors import refused
from shell import run

DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)
MOMENTS: dict[str, Exception] = {
    "memory": MemoryError(),
    "torch's memory": RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    "disk": OSError(errno.EIO, "Input/output error"),
    "open files": OSError(errno.EMFILE, "Too many open files"),
    "stale": OSError(errno.ESTALE, "Stale file handle"),
    "no such file, as safetensors says of too many open files": FileNotFoundError("No such file or directory"),
    "depth of calls": RecursionError("maximum recursion depth exceeded"),
}
PLACES = {
    "header": "brickyard.storage._safefile._check_header",
    "opening": "brickyard.storage._safefile.safe_open",
    "text": "brickyard.storage._safefile.own_json",
    "numbers": "brickyard.storage._safefile._own",
    "hash": "brickyard.yard._index.hashlib.file_digest",
    "manifest": "brickyard.base._frozen.validated",
    "structure": "brickyard.yard._index._architecture",
}


@pytest.fixture(scope="module")
def part() -> by.Component:
    return by.disassemble(chain(), by.locate(chain(), DATA), task=[0, 1], heal="none")


def _yard(part: by.Component, folder: Path) -> Yard:
    Yard(folder, create=True).add(part, "good")
    part.save(folder / "other.safetensors")
    return Yard(folder)


def _names(yard: Yard) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", by.BrickyardWarning)
        return [entry.name for entry in yard.entries()]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("place", PLACES)
def test_what_passes_is_not_remembered(part, place: str, moment: str, tmp_path, monkeypatch) -> None:
    def fail(*args: Any, **more: Any) -> Any:
        raise MOMENTS[moment]

    yard = _yard(part, tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(PLACES[place], fail)
        assert _names(yard) == ["good"]  # the index tells of it
        assert [problem.name for problem in yard.left_out()] == ["other"]
        with pytest.warns(by.BrickyardWarning, match="1 file is left out .*other: "):
            yard.entries()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [entry.name for entry in yard.entries()] == ["good", "other"]
        assert [entry.name for entry in Yard(yard.path).entries()] == ["good", "other"]
    assert yard.left_out() == []
    assert yard.verify() == []


def test_what_the_content_says_is_remembered(part, tmp_path, monkeypatch) -> None:
    yard = _yard(part, tmp_path / "parts")
    (yard.path / "other.safetensors").write_bytes(b"x" * 100)
    by.locate(chain(), DATA).save(yard.path / "relevance.safetensors")
    (yard.path / "a name.safetensors").write_bytes(b"x")
    (yard.path / "notes.txt").write_text("no file that could be meant as a component")
    assert [problem.name for problem in yard.left_out()] == ["a name.safetensors", "other", "relevance"]
    monkeypatch.setattr("brickyard.yard._yard.read_entry", None)
    again = {problem.name: problem.what for problem in Yard(yard.path).left_out()}
    assert "not a safetensors file" in again["other"]
    assert "'relevance'" in again["relevance"]
    with refused("file-component-unusable", "'relevance'"):
        yard.entry("relevance")


def test_a_file_whose_state_cannot_be_told_is_not_taken_for_gone(part, tmp_path, monkeypatch) -> None:
    yard, real = _yard(part, tmp_path / "parts"), Path.lstat

    def stale(path: Path) -> Any:
        if path.name == "other.safetensors":
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", stale)
        assert [problem.name for problem in yard.left_out()] == ["other"]
    assert _names(yard) == ["good", "other"]


def test_verdicts_of_indexes_that_remembered_moments_are_not_believed(part, tmp_path) -> None:
    import sqlite3

    yard = _yard(part, tmp_path / "parts")
    assert _names(yard) == ["good", "other"]
    place = yard.path / "other.safetensors"
    with sqlite3.connect(yard.path / "index.sqlite") as base:
        base.execute("ALTER TABLE files RENAME COLUMN verdict TO why")
        base.execute("DELETE FROM files WHERE name = 'other'")
        row = ("other", place.stat().st_size, place.stat().st_mtime_ns, f"{place} could not be read")
        base.execute("INSERT INTO files (name, bytes, changed, why) VALUES (?, ?, ?, ?)", row)
    base.close()
    assert _names(Yard(yard.path)) == ["good", "other"]


def test_the_shell_and_the_page_say_what_is_left_out(part, tmp_path) -> None:
    from brickyard.workbench._bench import Bench
    from brickyard.workbench._limits import Limits

    yard = _yard(part, tmp_path / "parts")
    (yard.path / "other.safetensors").write_bytes(b"x" * 100)
    listed = run("yard", "list", "--yard", yard.path, "--json")
    (out,) = json.loads(listed.stdout)["left_out"]
    assert out["name"] == "other"
    assert "not a safetensors file" in out["what"]
    assert "1 file is left out" in listed.stderr
    found = Bench(yard, Limits()).overview()["left_out"]
    assert found["count"] == 1
    assert found["files"][0]["what"].startswith("parts/other.safetensors is not a safetensors file")
    (yard.path / "other.safetensors").unlink()
    assert "left out" not in run("yard", "list", "--yard", yard.path).stderr
    assert Bench(yard, Limits()).overview()["left_out"] == {"count": 0, "files": []}
