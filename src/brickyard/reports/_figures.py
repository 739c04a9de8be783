"""Figures of a page as data for its templates: shapes of routes and points, heat maps as small PNG images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brickyard.base._messages import tidy
from brickyard.reports._route_picture import LINE, Box, Curve, placed
from brickyard.reports._routes import Routes

LEVELS = 16


# -- routes --------------------------------------------------------------------------------------------------


def routes_figure(found: Routes) -> dict[str, Any]:
    """Convert routes to SVG shapes; the shapes of a class carry `k` and its index."""
    picture = placed(found)
    lines = [picture.foot + owner * LINE for owner in range(len(found.classes) + 1)]
    return {
        "names": ", ".join(tidy(name, 24) for name in found.classes),
        "stations": len(found.stations),
        "width": f"{picture.width:.0f}",
        "height": f"{picture.height:.0f}",
        "head": f"{picture.head:.0f}",
        "curves": [_curve(found, curve) for curve in picture.curves],
        "boxes": [_box(found, box) for box in picture.boxes],
        "headings": [
            {
                "x": f"{heading.x:.0f}",
                "text": heading.text,
                "counts": [(n, f"{y:.0f}") for n, y in zip(heading.counts, lines, strict=False)],
                "foot": f"{lines[-1]:.0f}",
                "size": heading.size,
            }
            for heading in picture.headings
        ],
        "shortcuts": any(link.layer is None for link in found.links),
        "left_out": found.left_out,
    }


def _curve(found: Routes, curve: Curve) -> dict[str, Any]:
    link = found.links[curve.link]
    far = found.stations[link.end[0]].column - found.stations[link.start[0]].column > 1
    kind = " s" if link.layer is None else " far" if far else ""
    start, *rest = [f"{x:.0f} {y:.1f}" for x, y in curve.points]
    return {"kind": f"l k{link.owner}{kind}", "path": f"M{start}C{' '.join(rest)}", "width": curve.width}


def _box(found: Routes, box: Box) -> dict[str, Any]:
    station = found.stations[box.station]
    bundle = station.bundles[box.bundle]
    kinds = [f"k{owner}" for owner in bundle.owners]
    width = box.width / max(1, len(kinds))
    who = "needed by none" if not kinds else "only " if len(kinds) == 1 else "shared by "
    who += ", ".join(tidy(found.classes[owner], 24) for owner in bundle.owners)
    return {
        "kind": "b " + (" ".join(kinds) or "idle"),
        "text": f"{tidy(station.label, 40)}: {len(bundle.channels)} of {station.size} channels, {who}",
        "y": box.y,
        "width": width,
        "height": box.height,
        "stripes": [(box.x + place * width, kind) for place, kind in enumerate(kinds or [""])],
    }


# -- accuracy against size -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One score: a tag, a name, parameters, accuracy and error in percent.

    `kind` says what it is of: "own" (a file), "part" (of an assembly), "base" (the sources) or "restricted" (these, on
    the same classes).
    """

    tag: str
    name: str
    parameters: int
    accuracy: float
    error: float
    kind: str


_KINDS = {"base": "the sources of {}", "restricted": "the sources of {} on the same classes"}


def points(found: Sequence[Point], measure: str = "accuracy") -> dict[str, Any]:
    """Plot a measure against parameters: dots with tags for files and parts, rings for sources."""
    width, height, left, top, right, foot = 560, 300, 44, 16, 22, 44
    logs = [math.log10(point.parameters) for point in found]
    pad = max(0.08, 0.08 * (max(logs) - min(logs)))
    low, high = min(logs) - pad, max(logs) + pad
    floor = max(0.0, 5 * math.floor((min(p.accuracy - p.error for p in found) - 1) / 5))

    def x(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (width - left - right)

    def y(value: float) -> float:
        return top + (100 - min(100.0, max(floor, value))) / (100 - floor) * (height - top - foot)

    def shape(p: Point) -> dict[str, Any]:
        name = _KINDS.get(p.kind, "{}").format(tidy(p.name))
        text = f"{name}: {p.parameters:,} parameters, {p.accuracy:.1f}%"
        ends = {"high": y(p.accuracy + p.error), "low": y(p.accuracy - p.error)}
        said = {"tag": p.tag, "kind": p.kind, "text": text}
        row = {"name": name, "parameters": p.parameters, "accuracy": p.accuracy, "error": p.error}
        return {**said, **row, "x": x(p.parameters), "y": y(p.accuracy), **ends}

    step = next(s for s in (1, 2, 5, 10, 20, 25) if (100 - floor) / s <= 6)
    order = ("base", "restricted", "part", "own")  # what matters most lies on top
    return {
        "measure": measure,
        "spoken": "; ".join(
            f"{tidy(p.name)}: {p.accuracy:.1f} % with {p.parameters:,} parameters" for p in found if p.kind == "own"
        ),
        **{"width": width, "height": height, "left": left, "right": width - right, "middle": (left + width) // 2},
        **{"top": top, "bottom": height - foot},
        "across": [(y(v), f"{v:g}") for v in np.arange(math.ceil(floor / step) * step, 100.1, step)],
        "upright": [(x(value), _count(value)) for value in _ticks(10**low, 10**high)],
        "shapes": [shape(point) for point in sorted(found, key=lambda p: order.index(p.kind))],
        "kinds": {point.kind for point in found},
    }


def _ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [d * 10.0**e for e in exponents for d in digits if low <= d * 10.0**e <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 8)]
    return found


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# -- heat maps -----------------------------------------------------------------------------------------------


def heat_map(
    values: NDArray[np.float64], names: Sequence[str], what: str, columns: int, top: float = 1.0
) -> dict[str, Any]:
    """Convert values in [0, top], (classes, channels), to an image with one row per class.

    Args:
        values: The values to show.
        names: Class names, one per row.
        what: Name of the values, for the caption.
        columns: Maximum number of columns; with more channels, each column shows the maximum of several.
        top: The value shown at full strength.
    """
    channels = values.shape[1]
    bins = min(channels, columns)
    edges = [channels * place // bins for place in range(bins)]
    shown = np.maximum.reduceat(values, edges, axis=1)
    levels = np.clip(np.round(shown / max(top, 1e-9) * (LEVELS - 1)), 0, LEVELS - 1).astype(np.uint8)
    each = "" if bins == channels else f"; a column is the highest of up to {-(-channels // bins)} channels"
    scale = "" if top == 1.0 else f"; strongest is {top:.2g}"
    caption = f"{what}: {channels:,} channel{'s' if channels > 1 else ''}{each}{scale}"
    strongest = [int(place) for place in values.argmax(1)]
    alt = f"{what}. Highest: " + "; ".join(
        f"{tidy(name, 24)} channel {place} ({values[row, place]:.2f})"
        for row, (name, place) in enumerate(zip(names, strongest, strict=True))
        if row < 8
    )
    return {"caption": caption, "names": names, "image": _png(levels), "alt": alt, "bins": bins}


def _png(levels: NDArray[np.uint8]) -> str:
    """An image in one colour, from transparent to opaque, as a data URL."""
    from PIL import Image

    image = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    image.putpalette([9, 62, 105] * LEVELS)
    file = io.BytesIO()
    alphas = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    image.save(file, "PNG", bits=4, transparency=alphas, optimize=False)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
