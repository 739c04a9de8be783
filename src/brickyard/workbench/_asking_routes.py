"""Routes by which a page asks a classifier about pictures, and what it is taken along as."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from brickyard.base._errors import DataError
from brickyard.workbench._along import file, texts
from brickyard.workbench._bench import Bench
from brickyard.workbench._limits import Limits
from brickyard.workbench._many import rows
from brickyard.workbench._requests import content_of, form_of
from brickyard.workbench._why import explained


def add_asking(app: FastAPI, bench: Bench, limits: Limits) -> None:
    """Add the routes."""

    @app.get("/api/assemblies/{key}")
    def _described(key: str) -> Any:
        return bench.described(key)

    @app.post("/api/assemblies/{key}/classify")
    async def _classify(request: Request, key: str, sample: str | None = None) -> Any:
        return {"answers": await run_in_threadpool(bench.classify, key, await _shown(request, bench, limits, sample))}

    @app.post("/api/assemblies/{key}/table")
    async def _table(request: Request, key: str) -> Any:
        return {"rows": await run_in_threadpool(rows, bench, key, await _shown(request, bench, limits))}

    @app.post("/api/assemblies/{key}/why")
    async def _why(request: Request, key: str, sample: str | None = None, name: str | None = None) -> Any:
        title, content = (await _shown(request, bench, limits, sample))[0]
        return await run_in_threadpool(explained, bench, key, title, content, name)

    @app.get("/api/assemblies/{key}/texts")
    def _texts(key: str) -> Any:
        return texts(bench, key)

    @app.get("/api/assemblies/{key}/file")
    def _file(key: str, kind: str) -> Response:
        content, media, name = file(bench, key, kind)
        return Response(content, media_type=media, headers={"content-disposition": f'attachment; filename="{name}"'})


async def _shown(request: Request, bench: Bench, limits: Limits, sample: str | None = None) -> list[tuple[str, bytes]]:
    """Names and bytes of the pictures that are asked about.

    Raises:
        DataError: There is none.
    """
    if sample is not None:
        return [(sample, bench.sample(sample))]
    async with form_of(request, limits) as form:
        shown = [await content_of(item, limits) for _, item in form.multi_items() if not isinstance(item, str)]
    if not shown:
        raise DataError("data-no-images", "no picture was given; choose one or more")
    return shown
