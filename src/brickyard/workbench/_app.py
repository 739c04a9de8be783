"""The workbench's web application: routes, uploads, and errors as plain words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from brickyard.base._errors import BrickyardError, DataError, OptionError
from brickyard.base._messages import shown
from brickyard.workbench._bench import Bench, BusyError, GoneError, Plan
from brickyard.workbench._guard import LOCAL, Guard, RefusedError
from brickyard.workbench._limits import Limits
from brickyard.workbench._line import Line
from brickyard.yard._yard import Yard

STATIC = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}
KINDS = {"safetensors": "application/octet-stream", "onnx": "application/octet-stream", "html": "text/html"}
PLAN_BYTES = 1 << 16


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
    yard: Yard | Path | str, *, token: str | None = None, hosts: Sequence[str] = LOCAL, limits: Limits | None = None
) -> FastAPI:
    """The workbench as an ASGI application.

    Args:
        yard: A yard, or the path of one.
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
    return app


def _errors(app: FastAPI, bench: Bench) -> None:
    @app.exception_handler(BrickyardError)
    def _ours(request: Request, error: BrickyardError) -> JSONResponse:
        status = 404 if isinstance(error, GoneError) else 503 if isinstance(error, BusyError) else 400
        return Plain({"error": bench.named(str(error))}, status)

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

    @app.get("/api/assemblies/{key}/file")
    def _file(key: str, kind: str) -> Response:
        if kind not in KINDS:
            raise OptionError("option-choice", f"the file's kind must be one of {', '.join(KINDS)}, got {kind[:40]!r}")
        content, name = bench.file(key, kind)
        return Response(
            content, media_type=KINDS[kind], headers={"content-disposition": f'attachment; filename="{name}"'}
        )


def _work(app: FastAPI, bench: Bench, limits: Limits) -> None:
    @app.post("/api/plan")
    async def _plan(request: Request) -> Any:
        plan = Plan.of(_json(await request.body()), limits)
        return await run_in_threadpool(bench.plan, plan)

    @app.post("/api/assemblies")
    async def _build(request: Request) -> Any:
        async with _form(request, limits) as form:
            text = form.get("plan")
            plan = Plan.of(_json(text.encode() if isinstance(text, str) else b""), limits)
            labelled: dict[tuple[int, int], list[tuple[str, bytes]]] = {}
            for field, item in form.multi_items():
                if not isinstance(item, str):
                    labelled.setdefault(_place(field), []).append(await _content(item, limits))
        return await run_in_threadpool(bench.build, plan, labelled)

    @app.post("/api/assemblies/{key}/classify")
    async def _classify(request: Request, key: str, sample: str | None = None) -> Any:
        if sample is not None:
            shown = [(sample, bench.sample(sample))]
        else:
            async with _form(request, limits) as form:
                items = [item for _, item in form.multi_items() if not isinstance(item, str)]
                shown = [await _content(item, limits) for item in items]
        if not shown:
            raise DataError("data-no-images", "no picture was given; choose one or more")
        return {"answers": await run_in_threadpool(bench.classify, key, shown)}


def _form(request: Request, limits: Limits) -> Any:
    """A request's form. One that is not of kind multipart/form-data can be slow to read: it has to be short."""
    kind, size = request.headers.get("content-type", "").lower(), request.headers.get("content-length")
    if not kind.startswith("multipart/form-data") and (size is None or int(size) > 4 * PLAN_BYTES):
        raise OptionError(
            "option-plan-invalid", "the request must be multipart/form-data; use the workbench's own page"
        )
    return request.form(max_files=limits.files, max_fields=1)


def _json(content: bytes) -> Any:
    if len(content) > PLAN_BYTES:
        raise OptionError("option-plan-invalid", "the plan is too long")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise OptionError("option-plan-invalid", "the plan is not JSON") from None


def _place(field: str) -> tuple[int, int]:
    """Part and class from a field's name, such as "0.2"."""
    part, _, place = field.partition(".")
    if not (part.isascii() and part.isdigit() and place.isascii() and place.isdigit() and len(field) < 12):
        raise DataError(
            "data-type", f"labelled pictures must be in fields named BRICK.CLASS, such as 0.2, got {field[:40]!r}"
        )
    return int(part), int(place)


async def _content(item: Any, limits: Limits) -> tuple[str, bytes]:
    """Name and bytes of an upload; the name is only ever shown."""
    name = Path(str(item.filename or "picture").replace("\\", "/")).name[:80] or "picture"
    content: bytes = await item.read(limits.file_bytes + 1)
    if len(content) > limits.file_bytes:
        raise DataError(
            "data-image-too-large", f"{name!r} is too large; the limit is {limits.file_bytes >> 20} MiB per picture"
        )
    return name, content
