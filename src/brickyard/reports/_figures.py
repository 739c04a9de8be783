"""Pictures in a page: routes and points as SVG, heat maps as small PNG images in the text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brickyard.base._messages import tidy
from brickyard.reports._markup import Html, joined, short, tag
from brickyard.reports._route_picture import LINE, Picture, placed
from brickyard.reports._routes import Routes

LEVELS = 16


# -- routes --------------------------------------------------------------------------------------------------


def routes_figure(found: Routes) -> Html:
    """Routes with a button a class; a class's route lights up when it is pointed at, focused or tapped."""
    picture = placed(found)
    names = ", ".join(tidy(name, 24) for name in found.classes)
    drawing = tag(
        "svg",
        _links(picture),
        _boxes(picture),
        _headings(picture),
        role="img",
        aria_label=f"Decision routes of {names} through {len(found.stations)} channel axes; the table below has the "
        "numbers",
        width=f"{picture.width:.0f}",
        height=f"{picture.height:.0f}",
        viewBox=f"0 0 {picture.width:.0f} {picture.height:.0f}",
    )
    keys = [
        tag("button", tag("i"), short(name, 30), type="button", value=k, aria_pressed="false", class_=f"k{k}")
        for k, name in enumerate(found.classes)
    ]
    caption = "A bar is the channels of an axis: in a class's colour those that it alone needs, striped those that "
    caption += "several share, grey the rest. A curve is what they contribute to the next layer: thicker is more, "
    caption += "within a layer."
    if any(link.layer is None for link in found.links):
        caption += " Dotted curves are shortcuts around layers."
    if found.left_out:
        caption += f" {found.left_out:,} weaker curves are left out."
    return tag(
        "figure",
        tag("div", *keys, class_="keys", role="group", aria_label="Show the route of one class"),
        tag("div", drawing, class_="pane", tabindex="0", role="group", aria_label="picture; scrolls sideways"),
        tag("figcaption", caption),
        class_="routes",
    )


def _links(picture: Picture) -> list[Html]:
    found = picture.routes
    drawn: list[Html] = []
    for curve in picture.curves:
        link = found.links[curve.link]
        far = found.stations[link.end[0]].column - found.stations[link.start[0]].column > 1
        kind = " s" if link.layer is None else " far" if far else ""
        (a, b), *rest = [(f"{x:.0f}", f"{y:.1f}") for x, y in curve.points]
        d = f"M{a} {b}C" + " ".join(f"{x} {y}" for x, y in rest)
        drawn.append(tag("path", class_=f"l k{link.owner}{kind}", d=d, stroke_width=f"{curve.width:.1f}"))
    return drawn


def _boxes(picture: Picture) -> list[Html]:
    found = picture.routes
    drawn: list[Html] = []
    for box in picture.boxes:
        station = found.stations[box.station]
        bundle = station.bundles[box.bundle]
        owners = bundle.owners or (None,)
        stripe = box.width / len(owners)
        rects = [
            tag(
                "rect",
                x=f"{box.x + place * stripe:.1f}",
                y=f"{box.y:.1f}",
                width=f"{stripe:.1f}",
                height=f"{box.height:.1f}",
                class_=None if owner is None else f"k{owner}",
            )
            for place, owner in enumerate(owners)
        ]
        who = "needed by none" if not bundle.owners else "only " if len(bundle.owners) == 1 else "shared by "
        who += ", ".join(tidy(found.classes[owner], 24) for owner in bundle.owners)
        title = tag("title", f"{tidy(station.label, 40)}: {len(bundle.channels)} of {station.size} channels, {who}")
        kind = "b " + (" ".join(f"k{owner}" for owner in bundle.owners) or "idle")
        drawn.append(tag("g", title, *rects, class_=kind))
    return drawn


def _headings(picture: Picture) -> list[Html]:
    drawn: list[Html] = []
    for heading in picture.headings:
        x, y = f"{heading.x:.0f}", f"{picture.head:.0f}"
        drawn.append(tag("text", heading.text, x=x, y=y, class_="name", transform=f"rotate(-38 {x} {y})"))
        for owner, count in enumerate(heading.counts):
            place = f"{picture.foot + owner * LINE:.0f}"
            drawn.append(tag("text", count, x=x, y=place, class_=f"n k{owner}", text_anchor="middle"))
        place = f"{picture.foot + len(heading.counts) * LINE:.0f}"
        drawn.append(tag("text", f"of {heading.size}", x=x, y=place, class_="dim", text_anchor="middle"))
    return drawn


# -- accuracy against size -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One row of scores: the number of its file, its name, parameters, accuracy and error in percent."""

    number: int
    name: str
    parameters: int
    accuracy: float
    error: float
    own: bool


def points(found: Sequence[Point]) -> Html:
    """Accuracy against parameters: dots with the numbers of their files, rings for sources."""
    width, height, left, top, right, foot = 640, 330, 52, 14, 22, 46
    logs = [math.log10(point.parameters) for point in found]
    low, high = min(logs), max(logs)
    pad = max(0.08, 0.08 * (high - low))
    low, high = low - pad, high + pad
    bottom = max(0.0, 5 * math.floor((min(p.accuracy - p.error for p in found) - 1) / 5))

    def x(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (width - left - right)

    def y(value: float) -> float:
        value = min(100.0, max(bottom, value))
        return top + (100 - value) / (100 - bottom) * (height - top - foot)

    drawn: list[Html] = []
    step = next(s for s in (1, 2, 5, 10, 20, 25) if (100 - bottom) / s <= 6)
    for value in np.arange(math.ceil(bottom / step) * step, 100.1, step):
        at = f"{y(value):.1f}"
        drawn.append(tag("line", class_="grid", x1=left, x2=width - right, y1=at, y2=at))
        drawn.append(tag("text", f"{value:g}", class_="dim", x=left - 7, y=f"{y(value) + 4:.1f}", text_anchor="end"))
    for value in _ticks(10**low, 10**high):
        at = f"{x(value):.1f}"
        drawn.append(tag("line", class_="grid", x1=at, x2=at, y1=top, y2=height - foot))
        drawn.append(tag("text", _count(value), class_="dim", x=at, y=height - foot + 16, text_anchor="middle"))
    label = "parameters (logarithmic)"
    drawn.append(tag("text", label, class_="dim", x=(left + width) // 2, y=height - 8, text_anchor="middle"))
    drawn.append(tag("text", "accuracy, %", class_="dim", x=4, y=height - 8))
    for point in sorted(found, key=lambda p: p.own):
        cx, cy = f"{x(point.parameters):.1f}", f"{y(point.accuracy):.1f}"
        title = tag(
            "title",
            f"{point.number}: {tidy(point.name)}, {point.parameters:,} parameters, {point.accuracy:.1f} %",
        )
        if not point.own:
            drawn.append(tag("circle", title, class_="ring", cx=cx, cy=cy, r=6))
            continue
        ends = {"y1": f"{y(point.accuracy + point.error):.1f}", "y2": f"{y(point.accuracy - point.error):.1f}"}
        drawn.append(tag("line", class_="whisker", x1=cx, x2=cx, **ends))
        number = tag("text", point.number, class_="tag", x=cx, y=f"{y(point.accuracy) + 3.6:.1f}")
        drawn.append(tag("g", title, tag("circle", class_="dot", cx=cx, cy=cy, r=9), number))
    spoken = "; ".join(f"{p.number}: {p.accuracy:.1f} % with {p.parameters:,} parameters" for p in found if p.own)
    picture = tag(
        "svg", *drawn, role="img", aria_label=f"Accuracy against parameters. {spoken}", viewBox=f"0 0 {width} {height}"
    )
    caption = "Dots: files, by their numbers above, with one standard error. Rings: their sources, on the same images."
    return tag("figure", picture, tag("figcaption", caption), class_="points")


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


def heat_map(values: NDArray[np.float64], names: Sequence[str], what: str, columns: int, top: float = 1.0) -> Html:
    """Values in [0, top], (classes, channels), as an image: a row a class.

    Args:
        values: What is shown.
        names: Class names, one a row.
        what: Says in the caption what the values are.
        columns: Columns at most; where there are more channels, a column is the highest of several.
        top: The value that is strongest.
    """
    rows, channels = values.shape
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
    return tag(
        "figure",
        tag("figcaption", joined(caption)),
        tag("ul", *[tag("li", tidy(name, 24)) for name in names], aria_hidden="true"),
        tag("img", src=_png(levels), alt=alt, style=f"--n:{bins};height:{14 * rows}px"),
        class_="heat",
    )


def _png(levels: NDArray[np.uint8]) -> str:
    """An image of one colour, from clear to full, as a data address."""
    from PIL import Image

    image = Image.frombytes("P", levels.shape[::-1], levels.tobytes())
    image.putpalette([9, 62, 105] * LEVELS)
    file = io.BytesIO()
    alphas = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    image.save(file, "PNG", bits=4, transparency=alphas, optimize=False)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
