"""The line of requests that take long: so many are worked on at once, and so many of one visitor."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from brickyard.workbench._limits import Limits


@dataclass(frozen=True, eq=False)
class Ticket:
    """A request in line: whose it is, and the name that its page gave it."""

    visitor: str
    name: str


class Line:
    """Requests that take long, in the order in which they came; one visitor's do not stop those of others."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.working: list[Ticket] = []
        self.waiting: list[Ticket] = []

    @contextlib.asynccontextmanager
    async def place(self, visitor: str, name: str) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises:
            TimeoutError: None became free in time.
        """
        mine = Ticket(visitor, name)
        self.waiting.append(mine)
        try:
            end = time.monotonic() + self.limits.wait
            while self._next() is not mine:
                if time.monotonic() > end:
                    raise TimeoutError
                await asyncio.sleep(0.02)
            self.waiting.remove(mine)
            self.working.append(mine)
            yield
        finally:
            for held in (self.waiting, self.working):
                if mine in held:
                    held.remove(mine)

    def _next(self) -> Ticket | None:
        """Whose turn it is: the first whose visitor has a place left."""
        if len(self.working) >= self.limits.uploads:
            return None
        busy = [ticket.visitor for ticket in self.working]
        return next((ticket for ticket in self.waiting if busy.count(ticket.visitor) < self.limits.each), None)

    def told(self, name: str = "") -> dict[str, int | None]:
        """How many are worked on and wait, and how many are before the one with this name; None: it does not wait."""
        names = [ticket.name for ticket in self.waiting]
        before = len(self.working) + names.index(name) if name and name in names else None
        return {"working": len(self.working), "waiting": len(self.waiting), "before": before}
