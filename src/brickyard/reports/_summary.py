"""The top of a page: one sentence on its main file, and one picture of what everything on it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from brickyard.assembly._assembly import Assembly
from brickyard.base._doubts import share_held
from brickyard.base._records import ComponentManifest
from brickyard.base._sides import NAMES
from brickyard.component._component import Component
from brickyard.evaluation._detectors import DetectorRow, DetectorScores
from brickyard.evaluation._scores import Row, Scores
from brickyard.relevance._relevance import Relevance
from brickyard.reports._entries import Entry
from brickyard.reports._figures import Point, points
from brickyard.runtime._profiling import count_flops, count_parameters

OWN = ("component", "assembled")  # rows of a model itself
MOST_BARS = 24


def headline(entries: Sequence[Entry]) -> dict[str, Any]:
    """One sentence on the main entry: the first assembly, else the first component, else the first relevance."""
    order = (Assembly, Component, Relevance)
    entry = min(entries, key=lambda one: next(k for k, kind in enumerate(order) if isinstance(one.item, kind)))
    item, count = entry.item, len(entry.classes)
    classes = f"{count:,} class{'es' if count != 1 else ''}"
    if isinstance(item, Relevance):
        what = f"{classes} located in a source of {len(item.classes):,}"
        return {"entry": entry, "clauses": [what], "named": len(entries) > 1}
    found = [f"{classes} in {_size(weight_bytes(item))}", _agreed(item), _lost(entry, item)]
    return {"entry": entry, "clauses": [clause for clause in found if clause], "named": len(entries) > 1}


def weight_bytes(model: nn.Module) -> int:
    """The bytes of a model's numbers; what is there twice counts once."""
    found = {(v.untyped_storage().data_ptr(), v.storage_offset(), v.shape): v for v in model.state_dict().values()}
    return sum(value.nbytes for value in found.values() if isinstance(value, torch.Tensor))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _agreed(item: Component | Assembly) -> str:
    """How often it answers like what it was made from, on images that nothing was fitted to; "" if not known."""
    parts = item.manifest.parts
    known = [part.agreement for part in parts if part.agreement is not None and part.agreement[1]]
    if len(known) < len(parts):
        return ""
    same, count = (sum(pair[k] for pair in known) for k in (0, 1))
    what = NAMES[len(item.input_shape) - 1]
    on = share_held(same, count, what if parts[0].boxes is None else f"boxes in {what}")
    if isinstance(item, Component):
        tuned = item.manifest.tuned
        return f"agrees with its {'teacher' if tuned and tuned.best and tuned.teacher else 'source'} on {on}"
    whole = item.manifest
    if whole.tuned is not None or whole.merged is not None or whole.budget is not None:
        return ""  # the parts were measured before that
    return f"its part{'s agree with their sources' if len(parts) > 1 else ' agrees with its source'} on {on}"


def own_row(entry: Entry) -> Row | DetectorRow | None:
    """The row of the model itself in the first table of scores, if there is one."""
    scores: Any = next(iter(entry.scores.values()), None)
    return None if scores is None else next((row for row in reversed(scores.rows) if row.name in OWN), None)


def _lost(entry: Entry, item: Component | Assembly) -> str:
    row = own_row(entry)
    if row is None:
        kind, which = ("precision", "images with boxes") if entry.detects else ("accuracy", "test images")
        return f"no {kind} is known: the file stores none, and no {which} were given"
    right, drop = _right(entry, item, row)
    right += "" if entry.images is not None else ", as stored in the file"
    if drop is None:
        return right
    change = "loses nothing" if abs(drop) < 0.05 else f"{'loses' if drop > 0 else 'gains'} {abs(drop):.1f} points"
    parts = "its parts' sources" if entry.detects else "its parts by themselves"
    against = parts if isinstance(item, Assembly) else "its source on the same classes"
    return f"{change} against {against}: {right}"


def _right(entry: Entry, item: Component | Assembly, row: Row | DetectorRow) -> tuple[str, float | None]:
    """The figure of a row in words, and the points below what it is compared with."""
    if isinstance(row, DetectorRow):
        scores = next(iter(entry.scores.values()))
        counted = sum(scores.objects.values()) if isinstance(scores, DetectorScores) else 0
        return f"{row.map50:.1f}% mean average precision on {row.images:,} images with {counted:,} objects", row.drop
    value, drop, unit = row.accuracy, row.drop, "% of {:,} {} right"
    if not item.outputs.exclusive:
        unit = "% of its yes and no on {:,} {} right"
    if row.auroc is not None and len(entry.classes) == 1:
        value, drop, unit = row.auroc, row.auroc_drop, " AUROC on {:,} {}"
    right = f"{value:.1f}{unit.format(row.images, NAMES[len(item.input_shape) - 1])}"
    scores = next(iter(entry.scores.values()))
    if isinstance(scores, Scores) and scores.untried:
        shown = len(scores.per_class_images) - len(scores.untried)
        right += f", which show {shown:,} of its {len(scores.per_class_images):,} classes"
    return right, drop


# -- the picture ---------------------------------------------------------------------------------------------


def score_plots(entries: Sequence[Entry], listed: Sequence[Sequence[Any]]) -> list[Any]:
    """Accuracy against size, and precision of detectors: sources, parts and files as points; none where none is known.

    `listed` has, for each entry and part, where on the page the same part comes first, or None.
    """
    plots = []
    for measure, detects in (("accuracy", False), ("mAP50", True)):
        pairs = [pair for pair in zip(entries, listed, strict=True) if pair[0].detects == detects]
        found = [point for entry, same in pairs for point in _points(entry, same)]
        if any(point.kind == "own" for point in found):
            plots.append(points(found, measure))
    return plots


def _points(entry: Entry, same: Sequence[Any]) -> Iterator[Point]:
    if isinstance(entry.item, Relevance):
        return
    scores = next(iter(entry.scores.values()), None)
    tag = str(entry.number)
    for row in () if scores is None else scores.rows:
        kind = "own" if row.name in OWN else row.name
        base = next((one.parameters for one in scores.rows if one.name == "base"), None) if scores else None
        parameters = row.parameters or (count_parameters(entry.item) if kind == "own" else base) or 0
        value, error = (row.map50, 0.0) if isinstance(row, DetectorRow) else (row.accuracy, row.error)
        if kind in ("own", "base", "restricted") and parameters > 0 and 0 <= value <= 100:
            yield Point(tag, entry.name, parameters, value, min(max(0.0, error), 100.0), kind)
    for place, part in (entry.answers.parts if entry.answers else {}).items():
        manifest = entry.parts[place]
        if same[place] is None and manifest.selection.parameters > 0:
            error = (part.accuracy * (100 - part.accuracy) / part.images) ** 0.5
            name = f"part {place} of {entry.name}"
            letter = chr(ord("a") + place) if place < 26 else "+"
            yield Point(f"{tag}{letter}", name, manifest.selection.parameters, part.accuracy, error, "part")


def costs(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What is left of the sources, as bars whose pieces are the parts."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        if isinstance(entry.item, Relevance):
            continue
        whole = {part.source.sha256: part.source for part in entry.parts}.values()
        for name, total, most in (
            ("parameters", parameters_of(entry.item), sum(one.parameters for one in whole)),
            ("FLOPs", flops_of(entry.item), sum(one.flops for one in whole)),
        ):
            key = name.lower()
            own = [_cost(part, key) for part in entry.parts]
            scale = total / max(1, sum(own))  # what parts have in common counts once
            share = [100 * one * scale / most if most else 0.0 for one in own]
            pieces = [(k % 6, value) for k, value in enumerate(share[:MOST_BARS])]
            found.append({"entry": entry, "name": name, "total": total, "most": most, "pieces": pieces})
    return [row for row in found if row["most"]]


def _cost(part: ComponentManifest, key: str) -> int:
    return part.selection.flops if key == "flops" else part.selection.parameters


def parameters_of(item: Component | Assembly) -> int:
    """The numbers that a model holds."""
    return count_parameters(item)


def flops_of(item: Component | Assembly) -> int:
    """The floating-point operations of a model per image, all parts run."""
    if isinstance(item, Component):
        return count_flops(item.network, item.manifest.input_shape)
    return sum(part.selection.flops for part in item.manifest.parts) - item.manifest.shared_flops
