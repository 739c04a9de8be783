"""Routes by which a page makes bricks: what there is, what is sent, and bricks in the making."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from brickyard.base._errors import DataError, OptionError
from brickyard.workbench._bench import Bench
from brickyard.workbench._limits import Limits
from brickyard.workbench._making import Makings
from brickyard.workbench._orders import Order
from brickyard.workbench._requests import content_of, form_of, json_of
from brickyard.workbench._shelf import Shelf
from brickyard.workbench._store import Store, checked_all


def add_routes(app: FastAPI, bench: Bench, shelf: Shelf, limits: Limits) -> Makings:
    """Add the routes, and return what keeps the bricks in the making."""
    makings = Makings(shelf, Store(limits), limits, bench.take_demo, bench.empty)
    _offers(app, shelf, makings)
    _uploads(app, makings.store, limits)
    _makings(app, bench, makings, limits)
    return makings


def _offers(app: FastAPI, shelf: Shelf, makings: Makings) -> None:
    @app.get("/api/shelf")
    def _shelf() -> dict[str, Any]:
        place = shelf.folder
        return {
            "demo": makings.running_demo(),
            "folder": place.name if place is not None and place.is_dir() else None,
            **shelf.listed(),
        }

    @app.get("/api/networks")
    def _names() -> dict[str, Any]:
        return _networks()


def _uploads(app: FastAPI, store: Store, limits: Limits) -> None:
    @app.post("/api/uploads/pictures")
    async def _pictures(request: Request) -> Any:
        async with form_of(request, limits) as form:
            items = [await content_of(item, limits) for _, item in form.multi_items() if not isinstance(item, str)]
        if not items:
            raise DataError("data-no-images", "no picture was given; choose one or more")
        return await run_in_threadpool(checked_all, items, store)

    @app.put("/api/uploads/model")
    async def _model(request: Request, name: str) -> Any:
        return {"id": await store.model(name, request.stream()), "name": Path(name).name[:80]}


def _makings(app: FastAPI, bench: Bench, makings: Makings, limits: Limits) -> None:
    @app.post("/api/makings")
    async def _begin(request: Request) -> Any:
        order = Order.of(json_of(await request.body(), limits.order_bytes), limits)
        visitor = request.client.host if request.client else ""
        made = await run_in_threadpool(makings.begin, order, visitor)
        return makings.shown(made.key)

    @app.get("/api/makings/{key}")
    def _shown(key: str) -> Any:
        return _plain_paths(makings.shown(key), bench, makings)

    @app.delete("/api/makings/{key}")
    def _cancel(key: str) -> Any:
        makings.cancel(key)
        return _plain_paths(makings.shown(key), bench, makings)

    @app.post("/api/makings/{key}/keep")
    async def _keep(request: Request, key: str) -> Any:
        asked = json_of(await request.body())
        size, name = (asked.get("size"), asked.get("name")) if isinstance(asked, dict) else (None, None)
        if not isinstance(size, int | float) or not (name is None or isinstance(name, str)):
            raise OptionError("option-plan-invalid", "to keep a brick, give its size and its name, or no name")
        return await run_in_threadpool(_kept, makings, bench, key, float(size), name or None)


def _kept(makings: Makings, bench: Bench, key: str, size: float, name: str | None) -> dict[str, Any]:
    entry = bench.keep(makings.made(key, size), name)
    makings.found(key).kept[f"{size:g}"] = entry["name"]
    return entry


def _plain_paths(value: Any, bench: Bench, makings: Makings) -> Any:
    """What is told, with names where it has paths, which a page need not know."""
    if isinstance(value, str):
        return makings.named(bench.named(value))
    if isinstance(value, dict):
        return {key: _plain_paths(item, bench, makings) for key, item in value.items()}
    return [_plain_paths(item, bench, makings) for item in value] if isinstance(value, list | tuple) else value


def _networks() -> dict[str, list[str]]:
    """Names of networks to choose from, as far as what is installed has them."""
    from brickyard.sources._zoo import available

    names = [f"zoo:{name}" for name in available()]
    try:
        from torchvision import models
    except ImportError:
        return {"networks": names}
    return {"networks": [*names, *(f"torchvision:{name}" for name in models.list_models(module=models))]}
