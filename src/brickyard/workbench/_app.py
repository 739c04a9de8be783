"""The workbench's web application: routes, uploads, and errors as plain words."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from brickyard.base._errors import BrickyardError, DataError, FileError
from brickyard.base._messages import shown
from brickyard.workbench._asking_routes import add_asking
from brickyard.workbench._bench import SOURCES, Bench, Plan
from brickyard.workbench._guard import LOCAL, Guard, RefusedError
from brickyard.workbench._limits import BusyError, GoneError, Limits
from brickyard.workbench._line import Line
from brickyard.workbench._making_routes import add_routes
from brickyard.workbench._requests import content_of, form_of, json_of
from brickyard.workbench._shelf import Shelf
from brickyard.yard._yard import Yard

STATIC = {"index.html": "text/html", "style.css": "text/css", "icon.svg": "image/svg+xml"} | dict.fromkeys(
    ("app.js", "try.js", "address.js", "many.js", "why.js", "new.js", "curve.js", "own.js"), "text/javascript"
)


class Plain(JSONResponse):
    """JSON whose texts have escapes in place of what is not printable: marks that turn the direction of writing too."""

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return super().render(_plain(content))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def create_app(
    yard: Yard | Path | str,
    *,
    sources: Path | str | None = None,
    token: str | None = None,
    hosts: Sequence[str] = LOCAL,
    limits: Limits | None = None,
) -> FastAPI:
    """The workbench as an ASGI application.

    Args:
        yard: A yard, or the path of one.
        sources: A folder of models and pictures that the page may make bricks from; None: `sources` in the yard.
        token: A secret that every request must bring: `?token=` at the first visit, then a cookie; or the header
            `X-Brickyard-Token`. None where only this machine reaches the server.
        hosts: Host names under which it is reached.
        limits: Bounds of what clients may send and what is kept.

    Raises:
        OptionError: FastAPI is missing.
        FileError: There is no such yard.

    Example:
        >>> import tempfile
        >>> from brickyard.workbench import create_app
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     create_app(folder).title
        'Brickyard workbench'
    """
    limits = limits or Limits()
    beside = None if sources is None else sources_folder(sources)
    bench = Bench(yard, limits)
    app = FastAPI(
        title="Brickyard workbench", docs_url=None, redoc_url=None, openapi_url=None, default_response_class=Plain
    )
    line = Line(limits)
    app.add_middleware(Guard, token=token, hosts=tuple(hosts), limits=limits, line=line)
    app.state.bench = bench
    _errors(app, bench)
    _pages(app)
    _questions(app, bench, line)
    _work(app, bench, limits)
    add_asking(app, bench, limits)
    app.state.makings = add_routes(app, bench, Shelf(beside or bench.yard.path / SOURCES), limits)
    return app


def sources_folder(sources: Path | str) -> Path:
    """A folder beside the server that was named.

    Raises:
        FileError: It is not there.
    """
    if not Path(sources).is_dir():
        raise FileError("file-missing", f"the folder of sources {sources} does not exist; give another with --sources")
    return Path(sources).resolve()


def _errors(app: FastAPI, bench: Bench) -> None:
    @app.exception_handler(BrickyardError)
    def _ours(request: Request, error: BrickyardError) -> JSONResponse:
        status = 404 if isinstance(error, GoneError) else 503 if isinstance(error, BusyError) else 400
        text = app.state.makings.named(bench.named(str(error)))
        return Plain({"error": text, "code": error.code}, status)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return Plain({"error": "the request has not all that is needed; use the workbench's own page"}, 422)

    @app.exception_handler(RefusedError)
    def _refused(request: Request, error: RefusedError) -> JSONResponse:
        return Plain({"error": str(error)}, error.status, {"connection": "close"})

    @app.exception_handler(HTTPException.__mro__[1])  # of routes that are not there, and ours
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        return Plain({"error": str(error.detail)}, error.status_code)


def _pages(app: FastAPI) -> None:
    folder = files("brickyard.workbench") / "static"
    content = {name: (folder / name).read_bytes() for name in STATIC}

    @app.get("/")
    def _index() -> Response:
        return Response(content["index.html"], media_type="text/html")

    @app.get("/static/{name}")
    def _static(name: str) -> Response:
        if name not in content:
            raise HTTPException(404, "there is no such page")
        return Response(content[name], media_type=STATIC[name])


def _questions(app: FastAPI, bench: Bench, line: Line) -> None:
    @app.get("/api/queue")
    async def _queue(ticket: str = "") -> dict[str, Any]:
        return dict(line.told(ticket[:64]))

    @app.get("/api/yard")
    def _yard() -> dict[str, Any]:
        return bench.overview()

    @app.get("/api/inside")
    def _inside(brick: str) -> dict[str, Any]:
        return bench.inside(brick)

    @app.get("/api/sample")
    def _sample(name: str) -> Response:
        return Response(bench.sample_thumbnail(name), media_type="image/png")


def _work(app: FastAPI, bench: Bench, limits: Limits) -> None:
    @app.post("/api/plan")
    async def _plan(request: Request) -> Any:
        plan = Plan.of(json_of(await request.body()), limits)
        return await run_in_threadpool(bench.plan, plan)

    @app.post("/api/assemblies")
    async def _build(request: Request) -> Any:
        async with form_of(request, limits) as form:
            text = form.get("plan")
            plan = Plan.of(json_of(text.encode() if isinstance(text, str) else b""), limits)
            labelled: dict[tuple[int, int], list[tuple[str, bytes]]] = {}
            for field, item in form.multi_items():
                if not isinstance(item, str):
                    labelled.setdefault(_place(field), []).append(await content_of(item, limits))
        return await run_in_threadpool(bench.build, plan, labelled)


def _place(field: str) -> tuple[int, int]:
    """Part and class from a field's name, such as "0.2"."""
    part, _, place = field.partition(".")
    if not (part.isascii() and part.isdigit() and place.isascii() and place.isdigit() and len(field) < 12):
        raise DataError(
            "data-type", f"labelled pictures must be in fields named BRICK.CLASS, such as 0.2, got {field[:40]!r}"
        )
    return int(part), int(place)
