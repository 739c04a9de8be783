"""Calls that write several files write all or none, and can be made again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import brickyard as by
from brickyard.export import export_module, save_pretrained
from brickyard.storage import _atomic
from brickyard.storage._atomic import write_together
from brickyard.testing import chain, randomised
from errors import refused

DATA = (torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)
CALLS = ("link", "replace", "fsync")


def _part(seed: int) -> by.Component:
    source = randomised(chain(), seed)
    return by.disassemble(source, by.locate(source, DATA), task=[0, 1], heal="none")


@pytest.fixture(scope="module")
def parts() -> tuple[by.Component, by.Component]:
    return _part(1), _part(2)


WORK: dict[str, Callable[[by.Component, Path, bool], object]] = {
    "Hub": lambda part, folder, again: save_pretrained(part, folder / "new" / "model", overwrite=again),
    "Python": lambda part, folder, again: export_module(part, folder / "part.py", overwrite=again),
}


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


class Stop(KeyboardInterrupt):
    pass


def _disturbed(monkeypatch: Any, work: Callable[[], object], call: int, fault: BaseException, after: bool) -> bool:
    """Whether the call with this number that changes files was reached; a fault arises before it, or after it."""
    seen = [0]

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            seen[0] += 1
            if seen[0] == call and not after:
                raise fault
            found = real(*args, **more)
            if seen[0] == call:
                raise fault
            return found

        return run

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(_atomic.os, name, wrapped(getattr(os, name)))
        try:
            work()
        except (by.BrickyardError, Stop):
            assert seen[0] >= call
    return seen[0] >= call


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", WORK)
@pytest.mark.parametrize(("fault", "after"), [(OSError(errno.ENOSPC, "No space left"), False), (Stop(), True)])
def test_all_files_are_new_or_none(kind, again, fault, after, parts, tmp_path, monkeypatch) -> None:
    call, work = 0, WORK[kind]
    whole = tmp_path / "whole"
    whole.mkdir()
    work(parts[1], whole, False)
    while True:
        call += 1
        folder = tmp_path / str(call)
        folder.mkdir()
        if again:
            work(parts[0], folder, False)
        before = _contents(folder)
        assert before != _contents(whole)  # the control
        reached = _disturbed(monkeypatch, lambda: work(parts[1], folder, again), call, fault, after)  # noqa: B023
        if not reached:
            break
        assert _contents(folder) == before, call
        work(parts[1], folder, again)  # as it was called before
        assert _contents(folder) == _contents(whole)
    assert call > 4
    assert _contents(folder) == _contents(whole)


def test_a_folder_that_was_there_stays(parts, tmp_path, monkeypatch) -> None:
    (tmp_path / "new").mkdir()
    _disturbed(monkeypatch, lambda: WORK["Hub"](parts[0], tmp_path, False), 2, OSError(errno.ENOSPC, "full"), False)
    assert _contents(tmp_path) == {"new": None}


def test_errors_name_the_file_and_not_where_it_was_prepared(parts, tmp_path, monkeypatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("brickyard.storage._safefile.save_file", full)
    with refused("file-not-writable", str(tmp_path / "model" / "brickyard.safetensors"), "free some space") as found:
        save_pretrained(parts[0], tmp_path / "model")
    assert ".tmp" not in str(found.value)
    assert not (tmp_path / "model").exists()


def test_what_others_put_there_meanwhile_is_not_taken_away(tmp_path) -> None:
    def late(place: Path) -> None:
        place.write_text("mine")
        (tmp_path / "b").write_text("theirs")

    with refused("file-exists", "b"):
        write_together({tmp_path / "a": lambda p: p.write_text("a"), tmp_path / "b": late}, overwrite=False)
    assert _contents(tmp_path) == {"b": b"theirs"}


def test_where_there_are_no_links_files_are_moved_back(tmp_path, monkeypatch) -> None:
    def none(*args: Any, **more: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    (tmp_path / "a").write_text("old")
    real, calls = os.replace, []

    def third(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.EIO, "Input/output error")
        real(*args)

    monkeypatch.setattr(_atomic.os, "link", none)
    monkeypatch.setattr(_atomic.os, "replace", third)
    writes: Any = {tmp_path / name: lambda place: place.write_text("new") for name in "ab"}
    with refused("file-not-writable", "the disk fails"):
        write_together(writes, overwrite=True)
    assert _contents(tmp_path) == {"a": b"old"}
