"""HTTP connections that do not wait for ever: of clients that send or read too slowly, and of many at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from brickyard.workbench._guard import BUSY, HEADERS
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
        "timeout_keep_alive": max(1, int(bounds.head_seconds)),
        "timeout_graceful_shutdown": 3,
    }
    return uvicorn.Server(uvicorn.Config(app, **settings))


async def _busy(scope: Any, receive: Any, send: Any) -> None:
    """Tell a client that there is no connection left for it."""
    headers, body = _told(BUSY)
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _told(text: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of an error."""
    body = json.dumps({"error": text}).encode()
    size = (b"content-length", str(len(body)).encode())
    return [(b"content-type", b"application/json"), (b"connection", b"close"), size, *_ENCODED], body


_ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Patient(H11Protocol):
    """A connection that is dropped where no whole head of a request comes in time, or an answer is not read.

    The server itself waits for both without end, and each waiting client takes one of the connections there may be.
    Where there are too many, one without a finished head has to go for the next. How long a body may take is checked
    where it is read.
    """

    limits = Limits()
    begun = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._idle: float | None = self.loop.time()  # since when nothing is worked on
        self._unread: tuple[float, int] | None = None  # since when an answer waits to be read, and its bytes
        self.begun = self.loop.time()
        self._make_room()
        self._look()

    @property
    def address(self) -> str:
        """Of the client."""
        return self.client[0] if self.client else ""

    def _make_room(self) -> None:
        """Drop a connection that asks for nothing where there are too many, of one address or in all."""
        others = [
            c for c in self.connections if isinstance(c, Patient) and c is not self and not c.transport.is_closing()
        ]
        headless = [c for c in others if c.cycle is None]
        own = [c for c in headless if c.address == self.address]
        if len(own) >= self.limits.heads:
            _drop_oldest(own)
        elif len(others) >= self.limits.connections:
            idle = [c for c in others if c.cycle is not None and c.cycle.response_complete]
            counts = Counter(c.address for c in headless or idle)
            if not counts:
                self.app = _busy
                return
            most, _ = counts.most_common(1)[0]
            _drop_oldest(c for c in headless or idle if c.address == most)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request."""
        headers, body = _told("this is not an HTTP request; open the address that the workbench printed")
        lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

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


def _drop_oldest(found: Iterable[Patient]) -> None:
    min(found, key=lambda connection: connection.begun).transport.abort()
