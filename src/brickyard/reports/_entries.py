"""The items of a page, with their scores and routes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import OptionError
from brickyard.base._messages import brief, tidy
from brickyard.base._records import ComponentManifest
from brickyard.component._component import Component
from brickyard.evaluation._evaluate import evaluate
from brickyard.evaluation._faithfulness import Faithfulness, faithfulness
from brickyard.evaluation._sieve import Sieve
from brickyard.relevance._relevance import Relevance
from brickyard.reports._answers import Answers, answers_of
from brickyard.reports._cards import Table, stored
from brickyard.reports._finds import Finds, finds_of
from brickyard.reports._routes import MOST_CLASSES, Routes, routes

Item = Component | Assembly | Relevance

LINKS, MOST_LINKS = 1500, 250  # curves of all routes together, and of one picture: the strongest
PICTURES = 800_000  # bytes of all example pictures together

_OTHERS = "; for graph networks, print it, and score it with brickyard.gnn.evaluate"


@dataclass
class Entry:
    """One item, with its scores and routes."""

    number: int
    name: str
    item: Item
    images: Any = None
    scores: dict[str, Table] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    answers: Answers | None = None
    finds: Finds | None = None
    routes: Routes | None = None
    faithful: tuple[Faithfulness, ...] = ()

    @property
    def kind(self) -> str:
        return {Component: "component", Assembly: "assembly", Relevance: "relevance"}[type(self.item)]

    @property
    def classes(self) -> tuple[str, ...]:
        """Those that it answers with, or that were located."""
        item = self.item
        return tuple(item.classes[k] for k in item.task) if isinstance(item, Relevance) else item.classes

    @property
    def detects(self) -> bool:
        """Whether it is of a detector."""
        item = self.item
        return (item.boxes if isinstance(item, Relevance) else item.manifest.parts[0].boxes) is not None

    @property
    def parts(self) -> tuple[ComponentManifest, ...]:
        if isinstance(self.item, Relevance):
            return ()
        return self.item.manifest.parts


def entries_of(items: Sequence[Item], names: Sequence[str] | None, data: Sequence[Any] | None) -> list[Entry]:
    """Check the items, and give them numbers and names."""
    if not isinstance(items, list | tuple) or not items:
        raise OptionError(
            "option-type", f"a report needs a list of components, assemblies and relevances, got {brief(items)}"
        )
    for what, values in (("names", names), ("data", data)):
        if values is not None and len(values) != len(items):
            raise OptionError(
                "option-count", f"{len(values)} {what} were given for {len(items)} items; give one per item"
            )
    entries: list[Entry] = []
    for place, item in enumerate(items):
        if not isinstance(item, Component | Assembly | Relevance):
            raise OptionError(
                "option-wrong-object",
                f"a report shows components, assemblies and relevances of image classifiers and detectors, got "
                f"{type(item).__name__}{_OTHERS if type(item).__module__.startswith('brickyard.gnn') else ''}",
            )
        entry = Entry(place + 1, "", item, None if data is None else data[place])
        entry.name = names[place] if names is not None else f"{entry.kind} {place + 1}"
        entries.append(entry)
    return entries


def listed(entries: Sequence[Entry]) -> list[list[tuple[Entry, int] | None]]:
    """For each entry and part: an entry before it with the same part, and the place of that there, or None."""
    first: dict[str, tuple[Entry, int]] = {}
    found: list[list[tuple[Entry, int] | None]] = []
    for entry in entries:
        keys = [part.model_dump_json(exclude={"scores"}) for part in entry.parts]
        found.append([first.get(key) for key in keys])
        for place, key in enumerate(keys):
            first.setdefault(key, (entry, place))
    return found


def score(
    entry: Entry, item: Component | Assembly, known: dict[str, nn.Module], most_bytes: int, **options: bool
) -> None:
    """Collect an item's scores: those stored in its file and, with images, those measured now.

    The pictures that are shown of these take at most so many bytes.
    """
    tables, others = stored(item.manifest)
    entry.scores = {f"from the file: {name}": table for name, table in tables.items()}
    entry.other = {name: tidy(json.dumps(value, ensure_ascii=False), 300) for name, value in others.items()}
    if entry.images is None:
        return
    own = [known.get(part.source.sha256) for part in entry.parts]
    source = own if isinstance(item, Assembly) else own[0]
    entry.scores = {
        "measured for this page": evaluate(item, entry.images, source=source, **options),
        **entry.scores,
    }
    sieve = Sieve.of(item.manifest, options["including_calibration"])
    if entry.detects:
        entry.finds = finds_of(item, entry.images, own, most_bytes, sieve)
    else:
        entry.answers = answers_of(item, entry.images, most_bytes, sieve)


def find_routes(
    entry: Entry, relevance: Relevance, entries: Sequence[Entry], source: nn.Module | None, including: bool
) -> None:
    """Compute the routes of the page's classes and, with images and the source, their faithfulness."""
    if relevance.sums is None:
        return
    tasks = [k for other in entries for p in other.parts if p.source.sha256 == relevance.source_sha256 for k in p.task]
    wanted = [k for k in dict.fromkeys(tasks) if k in relevance.task] or list(relevance.task)[:3]
    chosen = wanted[:MOST_CLASSES]
    among = sum(isinstance(other.item, Relevance) for other in entries)
    entry.routes = routes(relevance, chosen, most_links=min(MOST_LINKS, LINKS // among))
    if entry.images is not None and source is not None:
        entry.faithful = faithfulness(source, relevance, chosen, entry.images, including_calibration=including)
