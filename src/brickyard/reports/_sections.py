"""The contents of each section of a page, as plain data for its template; empty if there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.base._messages import tidy
from brickyard.component._component import Component
from brickyard.evaluation._detectors import DetectorScores
from brickyard.relevance._relevance import Relevance
from brickyard.reports._cards import Table
from brickyard.reports._entries import Entry, listed
from brickyard.reports._figures import heat_map, routes_figure
from brickyard.reports._routes import Routes, Station
from brickyard.reports._summary import costs, score_plots

CELLS = 1_200_000  # of all heat maps together: about a byte each in the page
WIDE, NARROW = 512, 24  # columns of one heat map, at most and at least
MOST_MATRIX = 20  # classes in a confusion matrix
MOST_CONFUSIONS = 15
MOST_ROWS = 400  # rows of a table
MOST_NAMES = 40  # classes in a heat map
MOST_MAPS = 400

Found = Any  # values of a template: texts, numbers, and lists and dicts of them


def _relevances(entries: Sequence[Entry]) -> list[tuple[Entry, Relevance]]:
    return [(entry, entry.item) for entry in entries if isinstance(entry.item, Relevance)]


def _models(entries: Sequence[Entry]) -> list[tuple[Entry, Component | Assembly]]:
    return [(entry, entry.item) for entry in entries if not isinstance(entry.item, Relevance)]


def _overview(entries: Sequence[Entry]) -> Found:
    found = {
        "rows": entries if len(entries) > 1 else [],
        "costs": costs(entries),
        "plots": score_plots(entries, listed(entries)),
    }
    return found if any(found.values()) else None


def _scores(entries: Sequence[Entry]) -> Found:
    return [
        {
            "entry": entry,
            "detects": entry.detects,
            "tables": [_score_table(name, scores) for name, scores in entry.scores.items()],
            "other": list(entry.other.items()),
        }
        for entry, _ in _models(entries)
    ]


def _score_table(name: str, scores: Table) -> Found:
    header, *rows = scores.cells() if scores.rows else [[""]]
    kept = [place for place in range(len(header)) if place == 0 or any(row[place] for row in rows)]
    per_class = list(scores.per_class.items())
    cut = len(per_class) > MOST_ROWS
    return {
        "name": name,
        "title": scores.title,
        "header": [header[place] or "row" for place in kept],
        "lines": [[row[place] for place in kept] for row in rows[:MOST_ROWS]],
        "notes": ([] if scores.scope in scores.notes or not rows else [scores.scope]) + list(scores.notes[-10:]),
        "per_class": sorted(per_class, key=lambda pair: pair[1])[:MOST_ROWS] if cut else per_class,
        "cut": cut,
        "objects": scores.objects if isinstance(scores, DetectorScores) else None,
    }


def _examples(entries: Sequence[Entry]) -> Found:
    return [
        {"entry": entry, "answers": entry.answers}
        for entry in entries
        if entry.answers is not None and entry.answers.pictured
    ]


def _found(entries: Sequence[Entry]) -> Found:
    return [
        {"entry": entry, "finds": entry.finds} for entry in entries if entry.finds is not None and entry.finds.examples
    ]


def _confusions(entries: Sequence[Entry]) -> Found:
    return [
        {"entry": entry, "classes": entry.answers.classes, **_confusion(entry.answers.classes, entry.answers.counts)}
        for entry in entries
        if entry.answers is not None
    ]


def _confusion(classes: Sequence[str], counts: Tensor) -> Found:
    """Counts with their percentage of the class as a matrix or, for many classes, the most frequent confusions."""
    shares = (100 * counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
    if len(classes) <= MOST_MATRIX:
        lines = [list(zip(*pair, strict=True)) for pair in zip(counts.tolist(), shares, strict=True)]
        return {"matrix": list(zip(classes, lines, strict=True))}
    wrong = counts.clone().fill_diagonal_(0)
    most = wrong.flatten().topk(min(MOST_CONFUSIONS, wrong.numel()))
    places = [divmod(place, len(classes)) for place in most.indices.tolist()]
    found = [(classes[i], classes[j], n, shares[i][j]) for n, (i, j) in zip(most.values.tolist(), places, strict=True)]
    return {"matrix": None, "most": [row for row in found if row[2]]}


def _routes(entries: Sequence[Entry]) -> Found:
    found = []
    for entry, relevance in _relevances(entries):
        row: dict[str, Any] = {"entry": entry, "classes": (), "located": len(relevance.task)}
        if entry.routes is not None:
            axes = _axes(entry.routes)
            row |= {"classes": entry.routes.classes, "figure": routes_figure(entry.routes), "faithful": entry.faithful}
            row |= {"axes": axes[:MOST_ROWS], "more_axes": max(0, len(axes) - MOST_ROWS)}
        found.append(row)
    return found


def _axes(found: Routes) -> list[dict[str, Any]]:
    """Each axis once, with its channels grouped by the classes that need them."""
    first: dict[str, Station] = {}
    for station in found.stations:
        first.setdefault(station.axis, station)

    def count(station: Station, chosen: Callable[[tuple[int, ...]], bool]) -> int:
        return sum(len(bundle.channels) for bundle in station.bundles if chosen(bundle.owners))

    return [
        {
            "name": name,
            "size": station.size,
            "needed": [(station.relevant(k), count(station, (k,).__eq__)) for k in range(len(found.classes))],
            "shared": count(station, lambda owners: len(owners) > 1),
            "unused": count(station, lambda owners: not owners),
        }
        for name, station in first.items()
    ]


def _kept(entries: Sequence[Entry]) -> Found:
    found: list[dict[str, Any]] = []
    for entry, same in zip(entries, listed(entries), strict=True):
        for place, part in enumerate(entry.parts):
            if same[place] is not None:
                continue
            axes = [(name, len(axis.kept), axis.size, bool(axis.pinned)) for name, axis in part.axes.items()]
            found.append(
                {
                    "entry": entry,
                    "place": place if len(entry.parts) > 1 else None,
                    "classes": part.classes,
                    "count": len(axes),
                    "kept": sum(kept for _, kept, _, _ in axes),
                    "size": sum(size for _, _, size, _ in axes),
                    "axes": axes[:MOST_ROWS],
                }
            )
    return found


def _heat_maps(entries: Sequence[Entry]) -> Found:
    found = _relevances(entries)
    total = min(sum(len(item.axes) + len(item.layers) for _, item in found), MOST_MAPS * len(found))
    return [{"entry": entry, **_maps(relevance, total)} for entry, relevance in found]


def _maps(relevance: Relevance, total: int) -> Found:
    """Heat maps of one item, given the number on the whole page."""
    shown = list(relevance.task)[:MOST_NAMES]
    names = [relevance.classes[k] for k in shown]
    columns = max(NARROW, min(WIDE, CELLS // max(1, total * len(shown))))
    scores = {name: relevance.axis(name)[shown] for name in relevance.axes}
    axes = [name for name, values in scores.items() if (values != values.flatten()[0]).any()][: MOST_MAPS // 2]
    layers = None
    if relevance.sums is not None:
        layers = [
            _layer_map(relevance, name, shown, names, columns) for name in list(relevance.layers)[: MOST_MAPS // 2]
        ]
    return {
        "shown": len(shown),
        "located": len(relevance.task),
        "columns": columns,
        "binned": any(size > columns for _, size in relevance.axes.values()),
        "axes": [heat_map(scores[k].double().numpy(), names, f"axis {tidy(k, 60)}", columns) for k in axes],
        "left_out": len(relevance.axes) - len(axes),
        "layers": layers,
    }


def _layer_map(relevance: Relevance, layer: str, shown: Sequence[int], names: Sequence[str], columns: int) -> Found:
    values = relevance.inputs(layer, shown)
    return heat_map(values, names, f"inputs of layer {tidy(layer, 60)}", columns, float(values.max()) or 1.0)


def _origins(entries: Sequence[Entry]) -> Found:
    return [{"entry": entry, "same": same} for entry, same in zip(entries, listed(entries), strict=True)]


SECTIONS: tuple[tuple[str, str, Callable[[Sequence[Entry]], Found]], ...] = (
    ("overview", "Overview", _overview),
    ("examples", "Right and wrong answers", _examples),
    ("found", "Found in pictures", _found),
    ("confusion", "Confusions", _confusions),
    ("scores", "Scores", _scores),
    ("routes", "Decision routes", _routes),
    ("kept", "Channels kept", _kept),
    ("relevance", "Channel relevance", _heat_maps),
    ("origin", "Provenance", _origins),
)
