"""Decision routes: the relevant channels of some classes through all layers, as one picture.

What is drawn is computed first, as data (`layout`), and then only painted (`plot_routes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from brickyard.errors import OptionError
from brickyard.graph import Graph
from brickyard.relevance import Relevance, resolve_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Band", "Column", "Layout", "layout", "plot_routes"]

SHARED = "#444444"
IDLE = "#d9d9d9"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe and Ito: safe for colour-blind eyes
BINS = 48  # bricks a column, at most
FLOOR = -0.58  # curves stay above the counts


@dataclass(frozen=True)
class Column:
    """One channel axis: bricks from top to bottom, each a run of channels.

    Attributes:
        axis: The axis's name.
        size: Its channels.
        bricks: For each brick, which of the drawn classes have a relevant channel in it (indices).
        relevant: For each drawn class, how many channels are relevant.
        places: For each channel, its brick.
    """

    axis: str
    size: int
    bricks: tuple[tuple[int, ...], ...]
    relevant: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Band:
    """A bundle of contributions of one class, from a brick of one column to a brick of another."""

    owner: int
    layer: str
    start: tuple[int, int]
    end: tuple[int, int]
    weight: float


@dataclass(frozen=True)
class Layout:
    """What a picture of routes shows; `left_out` counts the bundles that are too weak to be drawn."""

    classes: tuple[str, ...]
    columns: tuple[Column, ...]
    bands: tuple[Band, ...]
    left_out: int


def layout(relevance: Relevance, graph: Graph, classes: Sequence[int | str], *, most_bands: int = 600) -> Layout:
    """Compute what a picture of routes shows.

    Args:
        relevance: Relevances with their sums kept.
        graph: The graph of their source.
        classes: Classes to draw, by name or index.
        most_bands: Bundles to draw at most; the strongest of each layer come first.

    Raises:
        TaskError: A class is unknown.
        OptionError: Sums were not kept.
    """
    chosen = resolve_task(classes, relevance.classes)
    axes = _ordered(graph)
    columns = tuple(_column(relevance, graph, axis.name, chosen) for axis in axes)
    position = {axis.name: index for index, axis in enumerate(axes)}
    owner = np.zeros(graph.channels, dtype=np.int64)
    for axis in graph.axes:
        owner[axis.channels] = position[axis.name]
    start = np.array([axis.start for axis in axes])
    bands: list[Band] = []
    for index, k in enumerate(chosen):
        relevant = np.concatenate([_relevant(relevance, graph, axis.name, k).numpy() for axis in graph.axes])
        for mixer in graph.mixers():
            bands += _bands(relevance, mixer, k, index, relevant, owner, start, columns)
    drawn = _strongest(bands, most_bands)
    return Layout(tuple(relevance.classes[k] for k in chosen), columns, tuple(drawn), len(bands) - len(drawn))


def _ordered(graph: Graph) -> list[Any]:
    """Axes from the image to the classes, by the first step that touches them."""
    first: dict[int, int] = {}
    for record in graph.dims:
        for number in record.atoms.tolist():
            first[number] = min(first.get(number, record.position), record.position)
    return sorted(graph.axes, key=lambda axis: first.get(axis.start, 0))


def _relevant(relevance: Relevance, graph: Graph, name: str, k: int) -> torch.Tensor:
    if graph.axis(name).output:
        return torch.arange(graph.axis(name).size) == k
    return relevance.relevant(name)[k]


def _column(relevance: Relevance, graph: Graph, name: str, chosen: Sequence[int]) -> Column:
    masks = [_relevant(relevance, graph, name, k) for k in chosen]
    size = graph.axis(name).size
    count = min(size, BINS)
    places = [channel * count // size for channel in range(size)]
    bricks = tuple(
        tuple(i for i, mask in enumerate(masks) if any(mask[c] for c in range(size) if places[c] == brick))
        for brick in range(count)
    )
    return Column(name, size, bricks, tuple(int(mask.sum()) for mask in masks), tuple(places))


def _bands(
    relevance: Relevance,
    mixer: Any,
    k: int,
    index: int,
    relevant: np.ndarray[Any, Any],
    owner: np.ndarray[Any, Any],
    start: np.ndarray[Any, Any],
    columns: Sequence[Column],
) -> list[Band]:
    """Contributions between relevant channels of one class in one layer, summed over pairs of bricks."""
    r = relevance.contribution(mixer.name)[k].numpy()  # (out, in)

    def bricks(numbers: np.ndarray[Any, Any]) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for number in numbers.tolist():
            column = int(owner[number])
            brick = columns[column].places[number - int(start[column])]
            found.append((column, brick) if relevant[number] else None)
        return found

    reads, writes = bricks(mixer.reads), bricks(mixer.writes)
    groups_in: dict[tuple[int, int], list[int]] = {}
    groups_out: dict[tuple[int, int], list[int]] = {}
    for groups, places in ((groups_in, reads), (groups_out, writes)):
        for entry, place in enumerate(places):
            if place is not None:
                groups.setdefault(place, []).append(entry)
    return [
        Band(index, mixer.name, source, target, float(r[np.ix_(rows, columns_)].sum()))
        for target, rows in groups_out.items()
        for source, columns_ in groups_in.items()
    ]


def _strongest(bands: list[Band], most: int) -> list[Band]:
    """The strongest bundles of every layer and class, a like share of each."""
    groups: dict[tuple[str, int], list[Band]] = {}
    for band in bands:
        groups.setdefault((band.layer, band.owner), []).append(band)
    share = max(1, most // max(1, len(groups)))
    return [band for group in groups.values() for band in sorted(group, key=lambda b: -b.weight)[:share]]


# -- painting ------------------------------------------------------------------------------------------------


def plot_routes(
    relevance: Relevance,
    graph: Graph,
    classes: Sequence[int | str],
    path: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Draw the decision routes of some classes as PNG or SVG, by the suffix of the path.

    Raises:
        OptionError: matplotlib is missing, too many classes are asked for, or sums were not kept.
        TaskError: A class is unknown.
        FileError: The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError("pictures need matplotlib; pip install 'brickyard[plots]'") from None
    from brickyard.container import write_atomically

    path = Path(path)
    plan = layout(relevance, graph, classes)
    if len(plan.classes) > len(COLOURS):
        raise OptionError(f"{len(plan.classes)} classes were asked for; a picture shows {len(COLOURS)} at most")
    if path.suffix not in (".png", ".svg"):
        raise OptionError(f"a picture {path.name!r} was asked for; use a name that ends in .png or .svg")
    figure = Figure(figsize=(max(7.0, 1.15 * len(plan.columns) + 1.5), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    _paint(figure.add_subplot(), plan, f"Decision routes in {relevance.source_name}")
    kind = path.suffix[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    write_atomically(
        path,
        lambda place: figure.savefig(place, format=kind, dpi=150, metadata=metadata),
        overwrite=overwrite,
    )
    return path


def _height(column: Column, brick: int) -> float:
    """Bricks are stacked around the middle; tall columns fill the picture."""
    count = len(column.bricks)
    return ((count - 1) / 2 - brick) * min(0.06, 1.0 / max(1, count - 1))


@dataclass(frozen=True)
class _Curve:
    """A curve to paint: bundles of several classes at one place are one curve, in the colour of what is shared."""

    start: tuple[int, int]
    end: tuple[int, int]
    colour: str
    strength: float


def _curves(plan: Layout) -> list[_Curve]:
    """Curves with strengths in [0, 1] within their layer and class, weak ones first so that strong ones show."""
    strongest: dict[tuple[str, int], float] = {}
    for band in plan.bands:
        key = (band.layer, band.owner)
        strongest[key] = max(strongest.get(key, 1e-9), band.weight)
    places: dict[tuple[str, tuple[int, int], tuple[int, int]], list[Band]] = {}
    for band in plan.bands:
        places.setdefault((band.layer, band.start, band.end), []).append(band)
    curves = [
        _Curve(
            start,
            end,
            SHARED if len(bands) > 1 else COLOURS[bands[0].owner],
            max(band.weight / strongest[band.layer, band.owner] for band in bands),
        )
        for (_, start, end), bands in places.items()
    ]
    return sorted(curves, key=lambda curve: curve.strength)


def _paint(ax: Axes, plan: Layout, title: str) -> None:
    from matplotlib.patches import Patch, PathPatch
    from matplotlib.path import Path as Curve

    for curve_of in _curves(plan):
        (x0, b0), (x1, b1) = curve_of.start, curve_of.end
        y0, y1 = _height(plan.columns[x0], b0), _height(plan.columns[x1], b1)
        bend = (x1 - x0) / 2
        skips = not 0 < x1 - x0 <= 1
        lift = -0.13 * abs(x1 - x0) ** 0.5 if skips else 0.0  # residual: below the others, above the counts
        curve = Curve(
            [(x0, y0), (x0 + bend, max(FLOOR, y0 + lift)), (x1 - bend, max(FLOOR, y1 + lift)), (x1, y1)],
            [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4],
        )
        alpha = 0.06 + 0.34 * curve_of.strength
        width = 0.3 + 1.6 * curve_of.strength
        ax.add_patch(PathPatch(curve, fc="none", ec=curve_of.colour, lw=width, alpha=alpha / 2 if skips else alpha))
    for x, column in enumerate(plan.columns):
        for brick, owners in enumerate(column.bricks):
            colour = IDLE if not owners else COLOURS[owners[0]] if len(owners) == 1 else SHARED
            ax.scatter(x, _height(column, brick), s=26 if owners else 9, marker="s", color=colour, zorder=3, lw=0)
        counts = " · ".join(map(str, column.relevant))
        ax.text(x, -0.66, f"{counts}\nof {column.size}", ha="center", va="top", fontsize=7.5, color="#333333")
        ax.text(x, 0.64, column.axis, ha="left", va="bottom", fontsize=7.5, rotation=35, color="#333333")
    handles = [Patch(color=COLOURS[i], label=f"only {name}") for i, name in enumerate(plan.classes)]
    handles += [Patch(color=SHARED, label="shared"), Patch(color=IDLE, label="not relevant")]
    ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    caption = "a brick: a channel (or a run of them)   ·   a curve: contributions, thicker is more"
    if plan.left_out:
        caption += f"   ·   {plan.left_out:,} weaker curves are not drawn"
    ax.text(0.5, -0.125, caption, transform=ax.transAxes, ha="center", fontsize=7.5, color="#666666")
    ax.set_title(f"{title}: {', '.join(plan.classes)}", fontsize=12, pad=4)
    ax.set_xlim(-0.6, len(plan.columns) - 0.4 + 0.5)
    longest = max(len(column.axis) for column in plan.columns)
    ax.set_ylim(-0.76, 0.72 + 0.018 * longest)
    ax.axis("off")
