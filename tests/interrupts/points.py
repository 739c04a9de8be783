"""One interrupt at one point of one call, and what is wrong afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from misuse.calls import CALLS, Models, digest
from misuse.untouched import changes, snapshot

LIBRARIES = tuple(f"{os.sep}{name}{os.sep}" for name in ("brickyard", "torch", "safetensors"))
IMPORTS = "<frozen importlib"
SETTINGS: dict[str, Callable[[], Any]] = {
    "none": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "a default device": lambda: torch.device("cpu"),
}


@dataclass
class Outcome:
    """What came of one interrupt.

    Attributes:
        call: The call.
        how: "at event 123 of 4567", or "after 0.0123 s".
        came: "interrupted"; "late": the call was over before; or "wrong".
        problems: What differs from what it was, or from what the second call should give.
    """

    call: str
    how: str
    came: str
    problems: list[str] = field(default_factory=list)
    where: str = ""


class Points:
    """Calls of functions and returns from them, in our code and in the libraries', counted; one raises SIGINT."""

    def __init__(self, stop: int = -1) -> None:
        self.count, self.stop, self.sent, self.where = 0, stop, False, ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if not any(name in frame.f_code.co_filename for name in LIBRARIES):
            return
        self.count += 1
        if self.count == self.stop:
            self.sent = True
            code = frame.f_code
            self.where = f"{code.co_filename.rpartition('site-packages/')[2]}:{frame.f_lineno} {code.co_name} {event}"
            signal.raise_signal(signal.SIGINT)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


def count_points(name: str, models: Models) -> int:
    points = Points()
    with points.watching():
        CALLS[name](models)
    return points.count


class After:
    """Raises SIGINT from another thread after some time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.sent, self.where = seconds, False, ""
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._wait, daemon=True)

    def _wait(self) -> None:
        if not self.over.wait(self.seconds):
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.thread.start()
        try:
            yield
        finally:
            self.over.set()
            self.thread.join()


def interrupt(
    name: str, models: Models, how: str, source: Points | After, expected: Any, setting: str = "none"
) -> Outcome:
    """Make a call, interrupt it, look at what it left, and make it again."""
    with SETTINGS[setting]():
        before = snapshot(*models.modules)
        caught: BaseException | None = None
        try:
            with source.watching():
                CALLS[name](models)
            time.sleep(0)  # a signal that came as the call ended is raised here
        except BaseException as error:
            caught = error  # kept alive, as an interactive session keeps it
        found = Outcome(name, how, "interrupted" if isinstance(caught, KeyboardInterrupt) else "late")
        found.where = source.where
        if caught is not None and not isinstance(caught, KeyboardInterrupt):
            found.problems.append(f"became {type(caught).__name__}: {str(caught)[:200]}")
        elif caught is None and source.sent and isinstance(source, Points) and not _waited_for_import():
            found.problems.append("was swallowed")
        found.problems += changes(before, snapshot(*models.modules))
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            found.problems.append("the handler of SIGINT")
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            again = digest(CALLS[name](models))
        except BaseException as error:
            found.problems.append(f"the second call fails: {type(error).__name__}: {str(error)[:200]}")
        else:
            if again != expected:
                found.problems.append("the second call gives another result")
        found.problems += [f"{key}, after the second call" for key in changes(before, snapshot(*models.modules))]
        del caught
    if found.problems:
        found.came = "wrong"
    return found


def _waited_for_import() -> bool:
    """Whether an interrupt comes now that had to wait until a library was loaded."""
    try:
        time.sleep(0.1)
    except KeyboardInterrupt:
        return True
    return False


def drawn(name: str, models: Models, points: int, seconds: float, expected: Any, generator: random.Random) -> Outcome:
    """One interrupt at a drawn point: seven of ten at a call or a return, the others after some time."""
    setting = generator.choice(list(SETTINGS)) if generator.random() < 0.3 else "none"
    if generator.random() < 0.7:
        stop = generator.randint(1, points)
        return interrupt(name, models, f"at {stop} of {points}, {setting}", Points(stop), expected, setting)
    wait = generator.uniform(0, seconds)
    return interrupt(name, models, f"after {wait:.4f} s, {setting}", After(wait), expected, setting)
