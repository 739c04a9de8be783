"""What is said while work goes on: notes, steps, and progress with the time left.

Notes go to standard error. Steps are records of the logger "brickyard". Progress is a bar on a terminal; elsewhere it
is records of the logger "brickyard.progress", at most one every thirty seconds. The command line prints these, and
a listener may be told them in place of a bar.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from brickyard.base._messages import shown

EVERY = 30.0  # seconds between two lines of progress

_STEPS = logging.getLogger("brickyard")
_LINES = logging.getLogger("brickyard.progress")
_clock: Callable[[], float] = time.monotonic
_quiet = False


class _Printed(logging.Handler):
    """Prints records as notes are printed."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextmanager
def spoken(*, verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Print progress while the body runs, as the command line does; steps too if `verbose`; nothing if `quiet`."""
    global _quiet
    handler, before, levels = _Printed(), _quiet, (_STEPS.level, _LINES.level)
    _quiet = quiet
    _STEPS.addHandler(handler)
    if not quiet:
        _LINES.setLevel(logging.INFO)
        _STEPS.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        _quiet = before
        _STEPS.removeHandler(handler)
        for logger, level in zip((_STEPS, _LINES), levels, strict=True):
            logger.setLevel(level)


def quiet() -> bool:
    """Whether nothing but results and errors is wanted."""
    return _quiet


def say(text: object) -> None:
    """Print to standard error: standard output is for results. A terminal obeys nothing that is in the text."""
    if speaks() and not _quiet:
        put(text, sys.stderr)


def step(text: str) -> None:
    """Log a step of a verb, in one line, for those who want to follow it."""
    _STEPS.info("%s", shown(text, keep=""))


def span(seconds: float) -> str:
    """A time in words, with about two digits.

    Example:
        >>> from brickyard.runtime._progress import span
        >>> span(42.4), span(1260), span(9000)
        ('42 s', '21 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


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


class _Lines:
    """Logs how far a work is, where no terminal shows a bar. All works share one pace: they may lie in each other."""

    told: float | None = None  # when the last line was logged, or the first work began

    def __init__(self, text: str, total: float | None) -> None:
        self.text, self.total, self.done, self.began = text, total, 0.0, _clock()
        if _Lines.told is None:
            _Lines.told = self.began

    def __call__(self, amount: float = 1, *, text: str | None = None) -> None:
        self.done += amount
        self.text = self.text if text is None else text
        now = _clock()
        if _Lines.told is not None and now - _Lines.told < EVERY:
            return
        _Lines.told = now
        _LINES.info("%s: %s", shown(self.text, keep=""), self._far(now - self.began))

    def _far(self, took: float) -> str:
        if self.total is None:
            return f"{self.done:,.0f} so far"
        left = took / self.done * max(0.0, self.total - self.done) if self.done > 0 else 0.0
        return f"{self.done:,.6g} of {self.total:,.6g}" + (f", about {span(left)} left" if left else "")


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
    """Show a bar of `total` units while the body runs, or log how far it is; None: it counts."""
    if _heard:
        yield _told(_heard[-1], text, total)
        return
    if _quiet or not speaks():
        yield lambda amount=1, *, text=None: None
        return
    if not sys.stderr.isatty():
        yield _Lines(text, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(shown(text, keep=""), total=total)

        def advance(amount: float = 1, *, text: str | None = None) -> None:
            progress.update(task, advance=amount, description=None if text is None else shown(text, keep=""))

        yield advance
