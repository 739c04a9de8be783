"""A progress bar with the time left, on standard error, and only when that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from brickyard.base._messages import shown


def say(text: object) -> None:
    """Print to standard error: standard output is for results. A terminal obeys nothing that is in the text."""
    if speaks():
        put(text, sys.stderr)


def fits(text: str, stream: TextIO) -> bool:
    """Whether a stream can write these signs."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def put(text: object, stream: TextIO | None) -> None:
    """Print a line; signs that the stream cannot write, or that a terminal would obey, become escapes."""
    line = shown(str(text))
    if stream is not None and not fits(line, stream):
        coding = stream.encoding or "utf-8"
        line = line.encode(coding, "backslashreplace").decode(coding)
    print(line, file=stream, flush=True)


class Advance(Protocol):
    """Tells a bar that some more is done."""

    def __call__(self, amount: float = 1, *, text: str | None = None) -> None:
        """Advance by `amount`, and change the text if one is given."""


def speaks() -> bool:
    """Whether this process prints: of those that `torchrun` starts, the first does; one that is alone always does."""
    count = os.environ.get("WORLD_SIZE", "1")
    alone = not (count.isascii() and count.isdecimal() and int(count) > 1)
    return alone or os.environ.get("RANK", "0") == "0"


@contextmanager
def bar(text: str, total: float | None) -> Iterator[Advance]:
    """Show a bar of `total` units while the body runs; None: it counts."""
    if not (speaks() and sys.stderr.isatty()):
        yield lambda amount=1, *, text=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(shown(text, keep=""), total=total)

        def advance(amount: float = 1, *, text: str | None = None) -> None:
            progress.update(task, advance=amount, description=None if text is None else shown(text, keep=""))

        yield advance
