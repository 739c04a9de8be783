"""The process in which a brick is made: it does one order, tells how far it is, and can be ended at any time.

It writes to the folder that it is given, and nowhere else. Where the server ends, it ends too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from brickyard.base._errors import BrickyardError
from brickyard.base._messages import told
from brickyard.runtime._progress import listening

EVERY = 0.15  # seconds between two messages of progress, at least
LETTERS = 500  # of a note


class Tell:
    """Tells the server what happens, one JSON object at a time."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._last = 0.0
        self._text = ""

    def __call__(self, **event: Any) -> None:
        """Tell of one event; after a new stage, progress is told at once."""
        self._text = "" if "stage" in event else self._text
        self._line.send_bytes(json.dumps(event).encode())

    def progress(self, text: str, done: float, total: float | None) -> None:
        """Tell how far a step is, not too often."""
        now = time.monotonic()
        if text != self._text or now - self._last > EVERY:
            self._last, self._text = now, text
            self(progress={"text": told(text, 120), "done": done, "total": total})

    def stage(self, text: str) -> None:
        """Tell of the next stage."""
        self(stage=text, progress=None)

    def note(self, text: str) -> None:
        """Tell what a reader should know."""
        if text.strip():
            self(note=told(text.strip(), LETTERS))


class _Notes(io.TextIOBase):
    """What is printed, as notes."""

    def __init__(self, tell: Tell) -> None:
        self._say = tell
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self._say.note(line)
        return len(text)

    def isatty(self) -> bool:
        return False


def work(line: Connection, text: str) -> None:
    """Do one order: what a process that the server started runs.

    Args:
        line: Where to tell what happens.
        text: The order as JSON, with paths in place of names.
    """
    with contextlib.suppress(ValueError):  # not the main thread, in tests
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    with contextlib.suppress(OSError, AttributeError):
        os.nice(2)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    tell, terminal = Tell(line), sys.stderr
    try:
        with listening(tell.progress), warnings.catch_warnings(), contextlib.redirect_stderr(_Notes(tell)):
            warnings.simplefilter("default")
            warnings.showwarning = lambda message, kind, *_: _warned(tell, message, kind)
            _do(json.loads(text), tell)
        tell(end="done")
    except BrickyardError as error:
        tell(end="failed", error={"code": error.code, "text": str(error)})
    except MemoryError:
        tell(end="failed", error={"code": "workbench-failed", "text": "the memory of this machine does not suffice"})
    except Exception as error:
        traceback.print_exc(file=terminal)
        why = f"{type(error).__name__}: {told(str(error), LETTERS)}"
        tell(end="failed", error={"code": "workbench-failed", "text": f"{why}; the workbench's terminal says more"})


def _warned(tell: Tell, message: Warning | str, kind: type[Warning]) -> None:
    if issubclass(kind, UserWarning):
        tell.note(str(message))


def _do(order: dict[str, Any], tell: Tell) -> None:
    from brickyard.workbench import _cutting as cutting

    folder = Path(order["folder"])
    if order["kind"] == "look":
        tell.stage("Loading the source")
        tell(source=cutting.look(order))
    elif order["kind"] == "cut":
        cutting.cut(order, folder, tell)
    else:
        from brickyard.workbench._demo_yard import make

        make(folder, tell.stage)


def _end_with_the_server() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
