"""Who may talk to the workbench: the checks that every request passes before anything else sees it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import Request
from fastapi.responses import JSONResponse, RedirectResponse

from brickyard.workbench._limits import Limits
from brickyard.workbench._line import Line

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL = ("127.0.0.1", "localhost", "::1")
COOKIE = "brickyard-token"
TICKET = "x-brickyard-ticket"  # the name that a page gives a request, to ask for its place in the line
MODEL = "/api/uploads/model"
BUSY = "the workbench is busy with other requests; try again in a moment"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`.

    Example:
        >>> from brickyard.workbench._guard import is_local
        >>> is_local("127.0.0.1"), is_local("localhost"), is_local("0.0.0.0")
        (True, True, False)
    """
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


class RefusedError(Exception):
    """A request that does not pass, with its HTTP status, and the line that it would have to wait in."""

    def __init__(self, status: int, text: str, queue: dict[str, int | None] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.queue = queue


class LeftError(Exception):
    """A client that went away before its request was whole."""


class Guard:
    """Middleware: checks host, origin, token and size, and adds the safety headers to every answer.

    Args:
        app: What answers the requests that pass.
        token: Asked of every request, or None.
        hosts: Names that a `Host` header may give. With a token, addresses in numbers may be given too: names are
            what a foreign page can point at this machine, numbers are not.
        limits: Bounds of what a client may send.
        line: Where requests that take long wait.
    """

    def __init__(
        self, app: App, *, token: str | None, hosts: Sequence[str], limits: Limits, line: Line | None = None
    ) -> None:
        self.app = app
        self.token = token
        self.hosts = frozenset(host.lower() for host in hosts)
        self.limits = limits
        self.working = 0
        self.line = line or Line(limits)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        started = False

        async def careful(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                known = [(k, v) for k, v in message.get("headers", []) if k.decode().lower() not in HEADERS]
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*known, *added]}
            await send(message)

        def answer(status: int, text: str, **more: Any) -> Awaitable[None]:
            return JSONResponse({"error": text, **more}, status, {"connection": "close"})(scope, receive, careful)

        request = Request(scope)
        try:
            _check_single(request)
            self._check_host(request)
            _check_origin(request)
            if welcome := self._welcome(request):
                await welcome(scope, receive, careful)
                return
            size = request.headers.get("content-length", "0")
            if not (size.isascii() and size.isdigit() and len(size) < 20) or int(size) > self._most(request):
                raise RefusedError(413, self._too_large(request))
            async with self._place(request):
                await self.app(scope, self._bounded(request, receive), careful)
        except RefusedError as refused:
            await answer(refused.status, str(refused), **({"queue": refused.queue} if refused.queue else {}))
        except LeftError:
            return  # nobody is there to answer to
        except asyncio.CancelledError:  # the server ends, and does not wait for what still computes
            if not started:
                await answer(503, "the workbench is ending")
        except Exception:
            if not started:
                await answer(500, "the workbench could not do this; its terminal says why")
            raise

    @contextlib.asynccontextmanager
    async def _place(self, request: Request) -> AsyncIterator[None]:
        """A place among the requests that are worked on; those that take long wait for one."""
        if self.working >= self.limits.requests:
            raise RefusedError(503, BUSY, self.line.told())
        self.working += 1
        try:
            if not _takes_long(request):
                yield
                return
            visitor = request.client.host if request.client else ""
            async with contextlib.AsyncExitStack() as held:
                try:
                    name = request.headers.get(TICKET, "")[:64]
                    await held.enter_async_context(self.line.place(visitor, name))
                except TimeoutError:
                    raise RefusedError(503, BUSY, self.line.told()) from None
                yield
        finally:
            self.working -= 1

    def _check_host(self, request: Request) -> None:
        name = _hostname(request.headers.get("host", ""))
        if name is None or not (name in self.hosts or (self.token is not None and _address(name))):
            raise RefusedError(421, "this host name is not one of the workbench's; open the address that it printed")

    def _welcome(self, request: Request) -> RedirectResponse | None:
        """Check the token; the answer to a first visit with one, which gets a cookie."""
        if self.token is None:
            return None
        asked = request.query_params.get("token")
        given = [asked, request.headers.get("x-brickyard-token"), request.cookies.get(COOKIE)]
        right = [value is not None and hmac.compare_digest(value.encode(), self.token.encode()) for value in given]
        if not any(right):
            raise RefusedError(401, "a token is needed; open the whole address that the workbench printed")
        if not right[0] or request.scope["path"] != "/":
            return None
        rest = urlencode([(k, v) for k, v in request.query_params.multi_items() if k != "token"])
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        return RedirectResponse(f"/{'?' + rest if rest else ''}", 303, {"set-cookie": cookie})

    def _most(self, request: Request) -> int:
        """Bytes that a request may have."""
        return self.limits.model_bytes if request.scope["path"] == MODEL else self.limits.body_bytes

    def _bounded(self, request: Request, receive: Receive) -> Receive:
        """The request's body, until it is too large or takes too long."""
        loop = asyncio.get_running_loop()
        limits, model = self.limits, request.scope["path"] == MODEL
        end = loop.time() + (limits.model_seconds if model else limits.seconds)
        seen, whole = 0, False

        async def bounded() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - loop.time()))
            except TimeoutError:
                raise RefusedError(408, "the request took too long to arrive; send fewer or smaller files") from None
            if message["type"] == "http.disconnect":
                raise LeftError
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > self._most(request):
                raise RefusedError(413, self._too_large(request))
            return message

        return bounded

    def _too_large(self, request: Request) -> str:
        what = "put the file beside the server" if request.scope["path"] == MODEL else "send fewer pictures at once"
        return f"the request is too large: {self._most(request) >> 20} MiB is the limit; {what}"


def _takes_long(request: Request) -> bool:
    """Whether a request brings pictures, or asks for what is computed; plans and orders are short."""
    path = str(request.scope["path"])
    if request.method in ("GET", "HEAD"):
        return path.startswith("/api/assemblies/")
    return path != "/api/plan" and not path.startswith("/api/makings")


def _check_single(request: Request) -> None:
    """Refuse headers that say something twice: whoever reads the other one would think otherwise."""
    for name in ("host", "origin", "content-length", "x-brickyard-token"):
        if len(request.headers.getlist(name)) > 1:
            raise RefusedError(400, f"the request has the header {name} twice; send it once")


def _check_origin(request: Request) -> None:
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if request.method in ("GET", "HEAD") and not str(request.scope["path"]).startswith("/api/"):
        return
    own = origin is None or _netloc(origin) == request.headers.get("host", "").lower() != ""
    if not own or site not in (None, "same-origin", "none"):
        raise RefusedError(403, "the request comes from another page; use the workbench's own")


def _netloc(origin: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(origin).netloc.lower()
    return None


def _hostname(value: str) -> str | None:
    with contextlib.suppress(ValueError):
        found = urlsplit(f"//{value}")
        return found.hostname if found.netloc == value and found.port != 0 and "@" not in value else None
    return None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A host given in numbers."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name)
    return None
