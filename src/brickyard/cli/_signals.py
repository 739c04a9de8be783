"""Interruption: Ctrl-C and `kill` both end a command after it has cleaned up."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

PIPE = 141  # the exit code where nobody reads the output any more, as a shell gives it to other programs

_PAUSE = 0.02  # seconds between two looks at whether a library has been loaded

_later = getattr(signal, "SIGALRM", None)  # not on Windows
_seen: int | None = None
_told = False
_waits = False  # for a library that is being loaded


class Stopped(KeyboardInterrupt):
    """Raised on SIGTERM, and handled like Ctrl-C."""


def listen() -> None:
    """Make Ctrl-C raise KeyboardInterrupt, and SIGTERM raise Stopped."""
    global _seen, _told
    _seen, _told = None, False
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background
        signal.signal(signal.SIGINT, _stop)


def unheard() -> None:
    """Make both end the process at once and silently, as nothing is left to clean up."""
    _wait_no_more()
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def seen() -> int | None:
    """The exit code after a request to end, 130 or 143, or None without one.

    A library that is interrupted while it loads may turn the interruption into its own error.
    """
    return None if _seen is None else 128 + _seen


def tell() -> None:
    """Report once that the process was stopped; another Ctrl-C then ends it at once."""
    global _told
    unheard()
    if not _told:
        print("brickyard: stopped", file=sys.stderr, flush=True)  # noqa: T201
    _told = _seen is not None


def end(code: int) -> NoReturn:
    """End the process with this exit code.

    Python would end by the signal if an interruption has passed through generated code, such as that of dataclasses.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def no_reader() -> None:
    """Discard any further output, so that the process ends without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _stop(number: int, frame: FrameType | None) -> None:
    global _seen, _waits
    again, _seen = _seen is not None, number
    if not again and _later is not None and _importing(frame):
        _waits = True
        signal.signal(_later, _after_import)
        signal.setitimer(signal.ITIMER_REAL, _PAUSE, _PAUSE)
        return
    _stopped()


def _after_import(number: int, frame: FrameType | None) -> None:
    if _waits and not _importing(frame):  # the last alarm may come after the end of waiting
        _stopped()


def _stopped() -> NoReturn:
    _wait_no_more()
    raise Stopped if _seen == signal.SIGTERM else KeyboardInterrupt


def _wait_no_more() -> None:
    global _waits
    if _waits:
        _waits = False
        signal.setitimer(signal.ITIMER_REAL, 0)


def _importing(frame: FrameType | None) -> bool:
    """Whether a library is being loaded.

    An exception raised meanwhile may pass through compiled code, which then aborts the whole process, so the first one
    waits until the library is loaded.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
