"""HTTP connections that do not wait for ever: of clients that send or read too slowly, and of many at once."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from brickyard.workbench._limits import Limits

STEP = 0.5  # seconds between looks at a connection
RATE = 32 << 10  # bytes a second that a client reads at least


def server(app: Any, limits: Limits | None = None) -> uvicorn.Server:
    """A server that serves an ASGI application and closes the connections of clients that are too slow."""
    bounds = limits or Limits()

    class Connection(Patient):
        limits = bounds

    settings: dict[str, Any] = {
        "http": Connection,
        "ws": "none",
        "lifespan": "off",
        "log_level": "error",
        "access_log": False,  # addresses may have a token
        "server_header": False,
        "limit_concurrency": bounds.connections,
        "timeout_keep_alive": max(1, int(bounds.head_seconds)),
        "timeout_graceful_shutdown": 3,
    }
    return uvicorn.Server(uvicorn.Config(app, **settings))


class Patient(H11Protocol):
    """A connection that is dropped where no whole head of a request comes in time, or an answer is not read.

    The server itself waits for both without end, and each waiting client takes one of the connections there may be.
    How long a body may take is checked where it is read.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._idle: float | None = self.loop.time()  # since when nothing is worked on
        self._unread: tuple[float, int] | None = None  # since when an answer waits to be read, and its bytes
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._next.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now = self.loop.time()
        busy = self.cycle is not None and not self.cycle.response_complete
        unread = self.transport.get_write_buffer_size()
        self._idle = None if busy or unread else now if self._idle is None else self._idle
        if not unread:
            self._unread = None
        elif self._unread is None:
            self._unread = now, unread
        late = self._idle is not None and now - self._idle > self.limits.head_seconds
        stuck = self._unread is not None and now - self._unread[0] > self.limits.seconds + self._unread[1] / RATE
        if late or stuck:
            self.transport.abort()
        self._next = self.loop.call_later(min(STEP, self.limits.head_seconds / 4), self._look)
