"""Output of results as text or JSON, and exit codes of errors."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brickyard.base._errors import FileError
from brickyard.base._messages import json_text, shown
from brickyard.cli._signals import no_reader, seen, tell
from brickyard.runtime._progress import fits, put, speaks

WIDTH = 100  # of tables on a terminal, in columns, unless that is wider


@dataclass(frozen=True)
class Result:
    """What a command prints: a value with --json, a text without (nothing if it is empty); and its exit code."""

    value: dict[str, Any]
    text: object
    code: int = 0


def emit(result: Result, as_json: bool) -> None:
    """Print a result as JSON or text.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
        FileError: Standard output cannot be written.
    """
    line = json_text(result.value) if as_json else str(result.text)
    if not speaks() or not line:
        return
    if sys.stdout is None:
        raise FileError(
            "file-not-writable", "cannot print the result: standard output is closed; redirect it to /dev/null"
        )
    if as_json and not fits(line, sys.stdout):
        line = json.dumps(result.value, allow_nan=False)
    try:
        put(line, sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):  # what it still holds would be tried again at the end
            no_reader()
        raise FileError(
            "file-not-writable", f"cannot print the result: {error.strerror or error}; redirect it, or free some space"
        ) from None


def keep(found: Any, path: Path, force: bool) -> None:
    """Save a result, only once if several processes hold it."""
    if speaks():
        found.save(path, overwrite=force)


def exit_code(error: BaseException) -> int:
    """Print an error to standard error and return its exit code: 130 after Ctrl-C, 143 after SIGTERM, else 1."""
    if isinstance(error, KeyboardInterrupt) or seen() is not None:
        tell()
        return seen() or 130
    put(f"brickyard: {error}", sys.stderr)
    return 1


def loaded(path: Path, *kinds: type) -> Any:
    """Call `brickyard._files.loaded`, imported only when a command runs, since it imports torch."""
    from brickyard import _files

    return _files.loaded(path, *kinds)


def model(path: Path) -> Any:
    """The component or assembly in a file."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component

    return loaded(path, Component, Assembly)


def answering(path: Path) -> Any:
    """What answers to images in a file: a component, an assembly or a refined detector."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.assembly._refined import Refined
    from brickyard.component._component import Component

    return loaded(path, Component, Assembly, Refined)


def _room() -> float:
    """How many columns a table may take."""
    if sys.stdout is None or not sys.stdout.isatty():
        return math.inf
    return max(WIDTH, shutil.get_terminal_size().columns)


def table(lines: Sequence[Sequence[str]], right: Sequence[int] = (), shorten: Sequence[tuple[int, int]] = ()) -> str:
    """Format a table. On a terminal, cells are shortened where its lines are wider than that and than 100 columns.

    What is read by a program or from a file, or is piped, is never shortened, and nothing is wrapped.

    Args:
        lines: Cells by line.
        right: Right-aligned columns.
        shorten: Columns that may be shortened, in this order, each with its minimum width.
    """
    from rich.cells import cell_len, set_cell_size

    lines = [[shown(cell, keep="") for cell in line] for line in lines]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - _room()
    for column, least in shorten:
        cut = int(max(0, min(over, widths[column] - least)))
        widths[column] -= cut
        over -= cut

    def cell(text: str, column: int) -> str:
        width = widths[column]
        if cell_len(text) > width:
            text = set_cell_size(text, width - 1).rstrip() + "…"
        space = " " * (width - cell_len(text))
        return space + text if column in right else text + space

    return "\n".join("  ".join(cell(text, column) for column, text in enumerate(line)).rstrip() for line in lines)


def short(value: int) -> str:
    """A count with three digits and a unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)
