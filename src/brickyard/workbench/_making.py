"""Bricks in the making: each in a process of its own, a few at once, the others in line, all by their keys."""

from __future__ import annotations

import json
import multiprocessing
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brickyard.base._errors import OptionError
from brickyard.workbench._limits import BusyError, GoneError, Limits
from brickyard.workbench._orders import Order, size_name
from brickyard.workbench._shelf import BUILT_IN, Shelf
from brickyard.workbench._store import Store
from brickyard.workbench._worker import work

NOTES = 40  # that are kept of one brick
WAITING, WORKING, DONE, FAILED, CANCELLED = "waiting", "working", "done", "failed", "cancelled"
PATIENCE = 5.0  # seconds for a process to end by itself after its last word


@dataclass
class Making:
    """One order, and what has become of it.

    Attributes:
        key: Its key, which the page has in its address.
        visitor: Whose it is.
        order: What was ordered.
        paths: The order with paths, as the process gets it.
        folder: Where the process writes.
        state: How it stands.
        told: What the process has told: stage, progress, source, points.
        notes: What a reader should know.
        error: Code and text, if it failed.
        kept: Names in the yard of the sizes that were kept.
    """

    key: str
    visitor: str
    order: Order
    paths: dict[str, Any]
    folder: tempfile.TemporaryDirectory[str]
    uploads: list[str] = field(default_factory=list)
    state: str = WAITING
    told: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: dict[str, str] | None = None
    kept: dict[str, str] = field(default_factory=dict)
    process: Any = None

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return self.state in (DONE, FAILED, CANCELLED)

    @property
    def looks(self) -> bool:
        """Whether it only looks at a source, which does not wait for a brick of the same visitor."""
        return self.order.kind == "look"

    def heard(self, event: dict[str, Any]) -> None:
        """Take in what the process tells."""
        if point := event.get("point"):
            self.points = sorted([*self.points, point], key=lambda one: one["size"])
        if (note := event.get("note")) and note not in self.notes and len(self.notes) < NOTES:
            self.notes.append(note)
        self.told |= {key: event[key] for key in ("stage", "progress", "source") if key in event}
        if event.get("end") == FAILED:
            self.error = event["error"]


class Makings:
    """All bricks in the making.

    Args:
        shelf: What lies beside the server.
        store: What was sent.
        limits: How many at once, and how long.
        finish: Called with the folder of a demo that is made, before it counts as done.
        empty: Whether the yard has no brick.
    """

    def __init__(
        self,
        shelf: Shelf,
        store: Store,
        limits: Limits,
        finish: Callable[[Path], None],
        empty: Callable[[], bool],
    ) -> None:
        self.shelf, self.store, self.limits, self.finish, self.empty = shelf, store, limits, finish, empty
        self._all: OrderedDict[str, Making] = OrderedDict()
        self._lock = threading.RLock()
        self._closed = False

    def begin(self, order: Order, visitor: str) -> Making:
        """Put an order in line, and begin it if there is room.

        Raises:
            BrickyardError: It names what is not there, or too many wait.
        """
        keys = [shown.id for shown in order.pictures.shown]
        keys += [order.source.upload] if order.source is not None and order.source.upload else []
        with self._lock:
            waiting = [one for one in self._all.values() if one.state == WAITING]
            mine = [one for one in waiting if one.visitor == visitor]
            most = self.limits.makings_waiting
            if self._closed or len(mine) >= most or len(waiting) >= 4 * most:
                raise BusyError("workbench-busy", "too many bricks wait to be made; wait for one, or cancel one")
            if order.kind == "demo":
                if other := self._demo():
                    return other
                if not self.empty():
                    raise OptionError("option-conflict", "the yard has bricks, and a demo is for an empty one")
        self.store.hold(keys, 1)
        try:
            folder = tempfile.TemporaryDirectory(prefix="brickyard-", ignore_cleanup_errors=True)
            paths = {**self._paths(order), "folder": folder.name}
        except BaseException:
            self.store.hold(keys, -1)
            raise
        made = Making(secrets.token_urlsafe(12), visitor, order, paths, folder, keys)
        with self._lock:
            self._all[made.key] = made
            self._forget()
            self._next()
        return made

    def begin_demo(self) -> None:
        """Order a demo where the yard is empty."""
        if self.empty():
            self.begin(Order(kind="demo"), "")

    def running_demo(self) -> str | None:
        """The key of a demo that is being made."""
        with self._lock:
            found = self._demo()
            return None if found is None else found.key

    def _demo(self) -> Making | None:
        found = (one for one in self._all.values() if one.order.kind == "demo" and one.state in (WAITING, WORKING))
        return next(found, None)

    def found(self, key: str) -> Making:
        """The order of that key.

        Raises:
            GoneError: It is not remembered.
        """
        with self._lock:
            if key not in self._all:
                raise GoneError("workbench-gone", "this unfinished brick is no longer stored; make it again")
            return self._all[key]

    def shown(self, key: str) -> dict[str, Any]:
        """How an order stands, as the page shows it."""
        with self._lock:
            made = self.found(key)
            active = [one for one in self._all.values() if not one.over]
            return {
                "id": made.key,
                "kind": made.order.kind,
                "state": made.state,
                "before": active.index(made) if made.state == WAITING else 0,
                "order": made.order.model_dump(mode="json"),
                "stage": made.told.get("stage", ""),
                "progress": made.told.get("progress"),
                "source": made.told.get("source"),
                "points": made.points,
                "notes": made.notes,
                "error": made.error,
                "kept": made.kept,
            }

    def cancel(self, key: str) -> None:
        """End an order; what it has made so far is gone, but for what was kept."""
        with self._lock:
            made = self.found(key)
            if not made.over:
                made.state = CANCELLED
                self._end(made)

    def made(self, key: str, size: float) -> Path:
        """The file of a brick of some size.

        Raises:
            OptionError: There is none, or not yet.
        """
        made = self.found(key)
        path = Path(made.folder.name) / size_name(size)
        if all(point["size"] != size or "error" in point for point in made.points) or not path.is_file():
            raise OptionError("option-range", f"there is no brick of {size:.0%} of the FLOPs; choose one that is made")
        return path

    def close(self) -> None:
        """End everything, and remove what was not kept."""
        with self._lock:
            self._closed = True
            for made in self._all.values():
                made.state = made.state if made.over else CANCELLED
                self._end(made)
                made.folder.cleanup()
        self.store.close()

    def named(self, text: str) -> str:
        """A text with names where it has the paths of folders, which a page need not know."""
        folders = [self.store.folder] if self.shelf.folder is None else [self.shelf.folder, self.store.folder]
        with self._lock:
            folders += [Path(made.folder.name) for made in self._all.values()]
        for folder in folders:
            for place in {str(folder), str(folder.resolve())}:
                text = text.replace(f"{place}/", "").replace(place, folder.name)
        return text

    # -- one after the other ---------------------------------------------------------------------------------------

    def _paths(self, order: Order) -> dict[str, Any]:
        """An order with paths in place of names."""
        value = order.model_dump(mode="json")
        if (given := order.source) is None:
            return value
        if given.upload is not None:
            upload = self.store.found(given.upload, "model")
            value["source"] |= {"path": str(upload.path), "called": upload.name}
        else:
            path = self.shelf.path("models", given.file or "")
            value["source"] |= {"path": str(path), "called": path.name}
        if given.names_file is not None:
            value["source"]["names_file"] = str(self.shelf.path("names", given.names_file))
        data = order.pictures.data
        if data is not None and data != BUILT_IN:
            value["pictures"]["data"] = str(self.shelf.path("data", data))
        shown = order.pictures.shown
        value["pictures"]["shown"] = [
            {"path": str(self.store.found(one.id, "picture").path), "label": one.label} for one in shown
        ]
        return value

    def _next(self) -> None:
        """Begin those whose turn it is: the first of each visitor who has a place left; looks have their own."""
        for made in list(self._all.values()):
            busy = [one for one in self._all.values() if one.state == WORKING]
            if len(busy) >= self.limits.makings or self._closed:
                return
            mine = sum(one.visitor == made.visitor and one.looks == made.looks for one in busy)
            if made.state == WAITING and mine < self.limits.makings_each:
                self._start(made)

    def _start(self, made: Making) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        made.process = context.Process(target=work, args=(there, json.dumps(made.paths)), daemon=True)
        made.state = WORKING
        made.process.start()
        there.close()
        threading.Thread(target=self._follow, args=(made, here), daemon=True).start()

    def _follow(self, made: Making, line: Any) -> None:
        """Hear what a process tells until it ends."""
        end, last = time.monotonic() + self.limits.making_seconds, ""
        with suppress(EOFError, OSError):
            while not last and line.poll(max(0.0, end - time.monotonic())):
                event = json.loads(line.recv_bytes())
                with self._lock:
                    made.heard(event)
                last = event.get("end", "")
        line.close()
        if last == DONE and made.order.kind == "demo":
            try:
                self.finish(Path(made.folder.name))
            except Exception as error:
                made.error, last = {"code": getattr(error, "code", "workbench-failed"), "text": str(error)}, FAILED
        if last:
            made.process.join(PATIENCE)
        with self._lock:
            if not made.over:
                made.state = last or FAILED
                if not last:
                    why = "the process that made the brick ended, or took too long; the workbench's terminal says more"
                    made.error = {"code": "workbench-failed", "text": why}
            self._end(made)
            self._next()

    def _end(self, made: Making) -> None:
        """End the process of an order that is over, and release what it needed."""
        if made.process is not None and made.process.is_alive():
            made.process.kill()
            made.process.join(PATIENCE)
        self.store.hold(made.uploads, -1)
        made.uploads = []
        if made.state != DONE:
            made.folder.cleanup()
        if not self._closed:
            self._next()

    def _forget(self) -> None:
        """Forget the oldest orders that are over."""
        over = [one for one in self._all.values() if one.over]
        for made in over[: max(0, len(self._all) - self.limits.makings_kept)]:
            made.folder.cleanup()
            del self._all[made.key]
