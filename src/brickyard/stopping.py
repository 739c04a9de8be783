"""Being stopped: Ctrl-C and `kill` end a command alike, with what it was doing cleared away."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

__all__ = ["PIPE", "Stopped", "end", "listen", "no_reader", "seen", "tell", "unheard"]

PIPE = 141  # the exit code where nobody reads the output any more, as a shell gives it to other programs

_seen: int | None = None
_told = False


class Stopped(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; it does what it would do for Ctrl-C."""


def listen() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, and SIGTERM raises Stopped."""
    global _seen, _told
    _seen, _told = None, False
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, _stop)


def unheard() -> None:
    """From now on both end the process at once, without a word: there is nothing left to clear away."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def seen() -> int | None:
    """The exit code of a process that was asked to end: 130 or 143; None where it was not.

    A library that is interrupted while it loads may turn the interruption into an error of its own.
    """
    return None if _seen is None else 128 + _seen


def tell() -> None:
    """Say once that the process was stopped; a second Ctrl-C ends it at once from here on."""
    global _told
    unheard()
    if not _told:
        print("brickyard: stopped", file=sys.stderr, flush=True)  # noqa: T201
    _told = _seen is not None


def end(code: int) -> NoReturn:
    """End the process with this exit code.

    Python itself would end by the signal where an interruption has passed through generated code, as of dataclasses.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def no_reader() -> None:
    """Let what is still printed go nowhere, so that the end of the process has nothing to complain of."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _stop(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen = number
    raise Stopped if number == signal.SIGTERM else KeyboardInterrupt
