"""A progress bar with the time left, on standard error, and only when that is a terminal; or told to a listener."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

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


Hear = Callable[[str, float, float | None], None]
"""Told what is done, how much of it, and of how much in all, if that is known."""

_heard: list[Hear] = []


@contextmanager
def listening(hear: Hear) -> Iterator[None]:
    """While the body runs, tell all progress of this process to a function, in place of drawing bars.

    Example:
        >>> from brickyard.runtime._progress import bar, listening
        >>> with listening(lambda text, done, total: print(text, done, total)), bar("counting", 3) as advance:
        ...     advance(2)
        counting 0 3
        counting 2 3
    """
    _heard.append(hear)
    try:
        yield
    finally:
        _heard.remove(hear)


def _told(hear: Hear, text: str, total: float | None) -> Advance:
    """What tells a listener of a bar's progress."""
    at: dict[str, Any] = {"text": text, "done": 0}

    def advance(amount: float = 1, *, text: str | None = None) -> None:
        at["done"] += amount
        at["text"] = at["text"] if text is None else text
        hear(at["text"], at["done"], total)

    hear(text, 0, total)
    return advance


@contextmanager
def bar(text: str, total: float | None) -> Iterator[Advance]:
    """Show a bar of `total` units while the body runs; None: it counts."""
    if _heard:
        yield _told(_heard[-1], text, total)
        return
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
