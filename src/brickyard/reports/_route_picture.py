"""Pictures of decision routes: the layout, also used by reports, and drawing with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brickyard.base._errors import OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import tidy
from brickyard.base._notebook import COLOURS
from brickyard.evaluation._faithfulness import Faithfulness
from brickyard.reports._routes import Routes
from brickyard.storage._atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# -- places --------------------------------------------------------------------------------------------------

STEP, ROOMY, BAR, TALL, GAP = 66.0, 118.0, 14.0, 300.0, 16.0  # columns (close, few), bars, tallest, between stations
ACROSS = 760.0  # few columns fill so much
SIDE, LINE = 34.0, 12.0  # margin, height of a line of counts
WIDEST = 13.0


@dataclass(frozen=True)
class Box:
    """The position of a bundle: its upper left corner, width and height."""

    station: int
    bundle: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Curve:
    """The position of a link: a cubic curve with four control points."""

    link: int
    points: tuple[tuple[float, float], ...]
    width: float


@dataclass(frozen=True)
class Heading:
    """The text above and below a column: its name, the channels needed by each class, and the total."""

    x: float
    text: str
    counts: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Picture:
    """Routes with positions in points; y points down, names end at `head`, and counts start at `foot`."""

    routes: Routes
    width: float
    height: float
    head: float
    foot: float
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]
    headings: tuple[Heading, ...]


@dataclass
class _Columns:
    """Boxes by station and bundle, and the extent of the columns."""

    boxes: dict[tuple[int, int], Box] = field(default_factory=dict)
    extents: dict[int, tuple[float, float]] = field(default_factory=dict)


def placed(found: Routes) -> Picture:
    """Lay out routes: columns from left to right, links as curves between them, weak ones first."""
    columns: dict[int, list[int]] = {}
    for place, station in enumerate(found.stations):
        columns.setdefault(station.column, []).append(place)
    order = {column: index for index, column in enumerate(sorted(columns))}
    step = min(ROOMY, max(STEP, ACROSS / max(1, len(order) - 1)))
    plan = _stacked(found, columns, order, step)
    curves = _curves(found, plan, order)
    low = min([top for top, _ in plan.extents.values()] + [y for c in curves for y in _reach(c)])
    high = max([bottom for _, bottom in plan.extents.values()] + [y for c in curves for y in _reach(c)])
    headings = tuple(
        Heading(
            SIDE + order[column] * step + BAR / 2,
            _common([found.stations[p].label for p in places]),
            tuple(sum(found.stations[p].relevant(owner) for p in places) for owner in range(len(found.classes))),
            sum(found.stations[p].size for p in places),
        )
        for column, places in sorted(columns.items())
    )
    head = 16 + 3.7 * max(len(heading.text) for heading in headings)  # names are written upwards
    shift = head + 8 - low
    foot = high + shift + 18
    return Picture(
        found,
        width=max(2 * SIDE + (len(order) - 1) * step + BAR + 40, 420),
        height=foot + LINE * (len(found.classes) + 1),
        head=head,
        foot=foot,
        boxes=tuple(replace(box, y=box.y + shift) for box in plan.boxes.values()),
        curves=tuple(replace(c, points=tuple((x, y + shift) for x, y in c.points)) for c in curves),
        headings=headings,
    )


def _stacked(found: Routes, columns: Mapping[int, Sequence[int]], order: Mapping[int, int], step: float) -> _Columns:
    """Stack the stations of a column, with heights by channel count (by its square root between columns)."""
    plan = _Columns()
    totals = {column: sum(found.stations[p].size for p in places) for column, places in columns.items()}
    most = max(totals.values())
    for column, places in columns.items():
        scale = TALL * (totals[column] / most) ** 0.5 / totals[column]
        y, boxes = 0.0, []
        for place in places:
            for index, bundle in enumerate(found.stations[place].bundles):
                height = max(scale * len(bundle.channels), 2.5)
                thin = 0.0 if bundle.owners else BAR / 4
                x = SIDE + order[column] * step
                boxes.append(Box(place, index, x + thin, y, BAR - 2 * thin, height))
                y += height + 1
            y += GAP
        total = y - GAP - 1
        plan.extents[order[column]] = (-total / 2, total / 2)
        plan.boxes.update({(b.station, b.bundle): replace(b, y=b.y - total / 2) for b in boxes})
    return plan


def _curves(found: Routes, plan: _Columns, order: Mapping[int, int]) -> list[Curve]:
    strongest: dict[str | None, float] = {}
    for link in found.links:
        strongest[link.layer] = max(strongest.get(link.layer, 0.0), link.weight)
    widths = [
        1.6 if link.layer is None else 0.5 + (WIDEST - 0.5) * link.weight / strongest[link.layer]
        for link in found.links
    ]
    starts, ends = (_ports(found, plan, widths, side) for side in ("start", "end"))
    curves: list[Curve] = []
    for place, link in enumerate(found.links):
        a, b = plan.boxes[link.start], plan.boxes[link.end]
        (x0, y0), (x1, y1) = (a.x + a.width, starts[place]), (b.x, ends[place])
        if x1 <= x0:  # stations of one column, or an axis that is read where it is written
            x0, x1 = a.x + a.width, b.x + b.width
        first, last = (order[found.stations[end[0]].column] for end in (link.start, link.end))
        bend = (x1 - x0) / 2 if x1 > x0 + BAR else STEP / 2
        middle = _around(y0, y1, [plan.extents[c] for c in range(first + 1, last)], link.layer is None)
        if middle is None:
            points = ((x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1))
        else:
            points = ((x0, y0), (x0 + 0.3 * (x1 - x0), middle), (x1 - 0.3 * (x1 - x0), middle), (x1, y1))
        curves.append(Curve(place, points, widths[place]))
    return sorted(curves, key=lambda curve: curve.width)


def _ports(found: Routes, plan: _Columns, widths: Sequence[float], side: str) -> dict[int, float]:
    """Positions of link ends along their bundles: by class, then by the position of the other end."""
    groups: dict[tuple[int, int], list[int]] = {}
    for place, link in enumerate(found.links):
        groups.setdefault(getattr(link, side), []).append(place)
    ports: dict[int, float] = {}
    other = "end" if side == "start" else "start"
    for at, places in groups.items():
        box, total, done = plan.boxes[at], sum(widths[p] for p in places), 0.0
        places.sort(key=lambda p: (found.links[p].owner, plan.boxes[getattr(found.links[p], other)].y))
        for p in places:
            ports[p] = box.y + box.height * (done + widths[p] / 2) / total
            done += widths[p]
    return ports


def _around(y0: float, y1: float, between: Sequence[tuple[float, float]], below: bool) -> float | None:
    """The height of the inner points of a curve that avoids columns, or None if it can go straight."""
    if not between:
        return None
    top, bottom = min(t for t, _ in between) - 8, max(b for _, b in between) + 8
    if not below and (max(y0, y1) < top or min(y0, y1) > bottom):
        return None
    lower = bottom + 0.08 * max(0.0, bottom - y0)  # curves that come from higher up go further around
    upper = top - 0.08 * max(0.0, y0 - top)
    target = lower if below or y0 + y1 > 0 else upper
    return (target - 0.125 * (y0 + y1)) / 0.75


def _reach(curve: Curve) -> tuple[float, float]:
    """The minimum and maximum y of a curve, from sampled points."""
    (_, a), (_, b), (_, c), (_, d) = curve.points
    ys = [
        a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t * t * (1 - t) + d * t**3 for t in np.linspace(0, 1, 9)
    ]
    return min(ys) - curve.width / 2, max(ys) + curve.width / 2


def _common(labels: Sequence[str]) -> str:
    """A common name for the stations of a column: their shared prefix and their number."""
    if len(labels) == 1:
        return tidy(labels[0], 22)
    parts = [label.split(".") for label in labels]
    same = [names[0] for names in zip(*parts, strict=False) if len(set(names)) == 1]
    return tidy(".".join(same) if same else labels[0], 18) + f" ({len(labels)})"


# -- painting ------------------------------------------------------------------------------------------------

INK, IDLE, GREY = "#333333", "#d5d5d5", "#9a9a9a"
ROW, PANEL = 15.0, 380.0


def check_suffix(path: Path) -> None:
    """Refuse a path that ends in neither .png nor .svg.

    Raises:
        OptionError: It does.
    """
    if path.suffix not in (".png", ".svg"):
        raise OptionError("option-suffix", f"the picture's name must end in .png or .svg, got {path.name!r}")


def draw(found: Routes, path: str | Path, rows: Sequence[Faithfulness] = (), *, overwrite: bool = False) -> Path:
    """Draw decision routes as PNG or SVG, depending on the suffix; identical routes give identical bytes.

    Args:
        found: The routes.
        path: The file to write.
        rows: Results of `faithfulness`, drawn below the routes.
        overwrite: Replace an existing file.

    Raises:
        OptionError: matplotlib is missing, or the path ends in neither .png nor .svg.
        FileError: The file exists and `overwrite` is false, or cannot be written.
    """
    package("matplotlib", "plots", "a picture")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    check_suffix(path)
    picture = placed(found)
    across = max(1, min(len(rows), int(picture.width // PANEL)))
    below = (8 + 7 * ROW) * -(-len(rows) // across) + 2 * ROW if rows else 0.0
    height = picture.height + 46 + below + 12
    kind = path.suffix[1:]
    settings: dict[Any, Any] = {"svg.hashsalt": "brickyard", "svg.fonttype": "none", "font.family": ["DejaVu Sans"]}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names may have characters that the font lacks
        figure = Figure(figsize=(picture.width / 72, height / 72))
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, picture.width), ylim=(height, -22))
        ax.axis("off")
        _paint(ax, picture)
        _paint_rows(ax, rows, picture.height + 50, across)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        write_atomically(
            path, lambda place: figure.savefig(place, format=kind, dpi=110, metadata=metadata), overwrite=overwrite
        )
    return path


def _write(ax: Axes, x: float, y: float, text: str, **options: Any) -> None:
    ax.text(x, y, text, **{"fontsize": 8, "color": INK, "parse_math": False, **options})


def _paint(ax: Axes, picture: Picture) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Line

    found = picture.routes
    names = ", ".join(tidy(name, 24) for name in found.classes)
    _write(ax, picture.width / 2, -8, f"Decision routes in {tidy(found.source)}: {names}", ha="center", fontsize=12)
    for curve in picture.curves:
        link = found.links[curve.link]
        line = Line(list(curve.points), [Line.MOVETO, Line.CURVE4, Line.CURVE4, Line.CURVE4])
        far = found.stations[link.end[0]].column - found.stations[link.start[0]].column > 1
        style: dict[str, Any] = {"alpha": 0.26 if far else 0.42}
        if link.layer is None:
            style = {"alpha": 0.7, "ls": (0, (1.5, 1.5))}
        ax.add_patch(
            PathPatch(line, fc="none", ec=COLOURS[link.owner], lw=curve.width, capstyle="butt", zorder=2, **style)
        )
    for box in picture.boxes:
        _paint_box(ax, found.stations[box.station].bundles[box.bundle].owners, box.x, box.y, box.width, box.height)
    for heading in picture.headings:
        _write(ax, heading.x, picture.head, heading.text, rotation=38, ha="left", va="bottom", rotation_mode="anchor")
        for owner, count in enumerate(heading.counts):
            y = picture.foot + owner * LINE
            _write(ax, heading.x, y, str(count), ha="center", color=COLOURS[owner], fontweight="bold")
        y = picture.foot + len(heading.counts) * LINE
        _write(ax, heading.x, y, f"of {heading.size}", ha="center", fontsize=7.5, color="#666666")
    _paint_legend(ax, picture)


def _paint_box(ax: Axes, owners: Sequence[int], x: float, y: float, width: float, height: float) -> None:
    """Paint a bundle in its class's colour, or in stripes of the classes that share it."""
    from matplotlib.patches import Rectangle

    colours = [COLOURS[owner] for owner in owners] or [IDLE]
    stripe = width / len(colours)
    for place, colour in enumerate(colours):
        ax.add_patch(Rectangle((x + place * stripe, y), stripe, height, fc=colour, lw=0, zorder=3))


def _paint_legend(ax: Axes, picture: Picture) -> None:
    found = picture.routes
    y = picture.height + 14
    entries: list[tuple[tuple[int, ...], str]] = [((k,), tidy(name, 18)) for k, name in enumerate(found.classes)]
    if len(found.classes) > 1:
        entries.append((tuple(range(min(3, len(found.classes)))), "shared: stripes"))
    entries.append(((), "not relevant"))
    x = SIDE
    for owners, text in entries:
        _paint_box(ax, owners, x, y - 9, 12, 10)
        _write(ax, x + 16, y, text, fontsize=8.5)
        x += 34 + 5.6 * len(text)
    notes = "Bars: channels of an axis, counted below. Curves: contributions; thickness compares within a layer."
    if any(link.layer is None for link in found.links):
        notes += " Dotted: shortcuts."
    if found.left_out:
        notes += f" {found.left_out:,} weaker curves are left out."
    _write(ax, SIDE, y + 18, notes, fontsize=7.5, color="#666666")


def _paint_rows(ax: Axes, rows: Sequence[Faithfulness], top: float, across: int) -> None:
    from matplotlib.patches import Rectangle

    if not rows:
        return
    text = (
        "Does the route decide? Bars: images of the class classified as it. Diamonds: other images. AUROC: its logit."
    )
    _write(ax, SIDE, top + ROW, text, fontsize=9)
    for index, row in enumerate(rows):
        x = SIDE + (index % across) * PANEL
        y = top + 2.4 * ROW + (index // across) * (8 + 7 * ROW)
        colour = COLOURS[index % len(COLOURS)]
        title = f"{tidy(row.name, 24)}: {row.kept:,} of {row.channels:,} channels, {row.images:,} images"
        _write(ax, x, y, title, fontweight="bold", color=colour)
        for line, (name, answers) in enumerate(row.cases()):
            at = y + (line + 1) * ROW
            _write(ax, x, at, name, fontsize=7.5)
            ax.add_patch(Rectangle((x + 78, at - 8), 150, 9, fc="#efefef", lw=0))
            fill = GREY if "random" in name else colour
            ax.add_patch(Rectangle((x + 78, at - 8), 1.5 * answers.hits, 9, fc=fill, lw=0))
            figures = f"{answers.hits:.1f}%"
            if answers.others is not None:
                ax.plot([x + 78 + 1.5 * answers.others], [at - 3.5], "D", ms=4, color=INK, mec="white", mew=0.6)
                figures += f", {answers.others:.1f}%"
            if answers.auroc is not None:
                figures += f", AUROC {answers.auroc:.1f}"
            _write(ax, x + 234, at, figures, fontsize=7.5)
