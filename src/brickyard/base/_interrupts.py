"""Interrupts (Ctrl-C) that arrive while shared state is being changed wait until it is whole again.

Python runs signal handlers in the main thread alone, and only between calls and at jumps. Storing an attribute is
therefore never cut in two: `desk.holding = ...` is what begins and ends each wait, and nothing here counts.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from types import FrameType
from typing import Any

_PAUSE = 0.02  # seconds between two looks at whether a library has been loaded
_IMPORTS = "<frozen importlib"

OPEN, LONG, SHORT = range(3)


class Desk:
    """What a thread knows of interrupts.

    Attributes:
        holding: OPEN: an interrupt is raised at once; SHORT: it waits; LONG: it waits, and a second one does not.
        waits: Whether one has arrived.
        raised: Whether one was raised in this call. If the call ends otherwise, code below has taken it for something
            else, as libraries do that are not written in Python: it is then raised again.
        owner: The call that listens, or None.
        before: The handler that was there, which is called in the end.
    """

    def __init__(self) -> None:
        self.holding, self.waits, self.raised = OPEN, False, False
        self.owner: Any = None
        self.before: Any = None


_main = Desk()


def desk() -> Desk:
    """That of this thread; interrupts never reach any but the main thread, so others get one that nothing reads."""
    return _main if threading.get_ident() == threading.main_thread().ident else Desk()


def listen(owner: object, place: Desk) -> None:
    """Take over Ctrl-C for one call, with interrupts held back, unless an outer call has done so."""
    if place is not _main or place.owner is not None:
        return
    before = signal.getsignal(signal.SIGINT)
    if before is _arrived:  # of a call that was torn out of its guard
        before = place.before or signal.default_int_handler
    if not callable(before):  # it is ignored, or ends the process
        return
    place.before, place.waits, place.raised = before, False, False
    place.owner, place.holding = owner, SHORT
    signal.signal(signal.SIGINT, _arrived)


def unlisten(owner: object, place: Desk, error: BaseException | None) -> None:
    """Give Ctrl-C back after a call that ended with an error or none, and raise what has waited or was lost."""
    if place.owner is not owner:
        return
    place.holding = SHORT
    try:
        if signal.getsignal(signal.SIGINT) is _arrived:
            signal.signal(signal.SIGINT, place.before)
    finally:
        before = place.before
        lost = place.waits or (place.raised and (error is None or isinstance(error, Exception)))
        place.waits = place.raised = False
        place.owner, place.before, place.holding = None, None, OPEN
    if lost:
        before(signal.SIGINT, sys._getframe())


def reopen(place: Desk, holding: int) -> None:
    """End a wait that began when `holding` was the state, and raise what has waited."""
    place.holding = holding
    if holding == OPEN and place.waits and place.owner is not None:
        _pass_on(place, signal.SIGINT, sys._getframe())


class Held:
    """While the body runs, an interrupt waits; it is raised at the end of the body.

    Args:
        long: Let a second interrupt through, as the body may take long: the state of libraries is then put back by
            the guard around the call, as far as it is known.
    """

    def __init__(self, long: bool = False) -> None:
        self.place, self.before = desk(), OPEN
        self.holding = LONG if long else SHORT

    def __enter__(self) -> None:
        self.before = self.place.holding
        self.place.holding = self.holding if self.holding > self.before else self.before  # the last thing done here

    def __exit__(self, *_: object) -> None:
        reopen(self.place, self.before)


def _arrived(number: int, frame: FrameType | None) -> None:
    """The handler: raise now, or later."""
    place = _main
    if place.holding == SHORT or (place.holding == LONG and not place.waits):
        place.waits = True
    elif _importing(frame):  # what is half imported may never work again
        threading.Timer(_PAUSE, _thread.interrupt_main).start()
    else:
        _pass_on(place, number, frame)


def _pass_on(place: Desk, number: int, frame: FrameType | None) -> None:
    place.waits, place.raised = False, True
    (place.before or signal.default_int_handler)(number, frame)
    place.raised = False  # that handler raises nothing


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTS):
            return True
        frame = frame.f_back
    return False
