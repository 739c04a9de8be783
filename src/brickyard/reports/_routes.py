"""Decision routes as data: the relevant channels of some classes through all layers.

`draw` draws them, and `faithfulness` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brickyard.base._checks import whole
from brickyard.base._classes import resolve_task
from brickyard.base._errors import OptionError
from brickyard.relevance._allocation import normalised
from brickyard.relevance._relevance import Relevance

MOST_CLASSES = 6  # more colours cannot be told apart by everyone
MOST_LINKS = 1500


@dataclass(frozen=True)
class Bundle:
    """Channels of one axis that are needed by the same classes.

    Attributes:
        owners: Indices of these classes in `Routes.classes`; several share the channels, none means unused.
        channels: Channel indices within the axis.
    """

    owners: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Station:
    """A channel axis at one depth of the network; a residual axis appears again after every addition.

    Attributes:
        axis: Name of the axis.
        label: The layer that writes the axis here, or the axis's name if none does.
        column: The depth; 0 is the image.
        size: Number of channels.
        bundles: All channels, grouped in bundles.
    """

    axis: str
    label: str
    column: int
    size: int
    bundles: tuple[Bundle, ...]

    def relevant(self, owner: int) -> int:
        """Count the channels that a class needs."""
        return sum(len(bundle.channels) for bundle in self.bundles if owner in bundle.owners)


@dataclass(frozen=True)
class Link:
    """The contribution of one bundle of a class to another.

    Attributes:
        layer: The layer in between, or None for a shortcut (the same channels before and after an addition).
        owner: The class's index in `Routes.classes`.
        start: Indices of the station and bundle read.
        end: Indices of the station and bundle written.
        weight: Relative contributions, summed over the pairs of channels; for a shortcut, the number of channels.
    """

    layer: str | None
    owner: int
    start: tuple[int, int]
    end: tuple[int, int]
    weight: float


@dataclass(frozen=True)
class Routes:
    """Decision routes of some classes.

    Attributes:
        source: Name of the source.
        classes: Class names.
        stations: Axes, from the image to the classes.
        links: Contributions between bundles.
        left_out: Number of weaker links left out.
    """

    source: str
    classes: tuple[str, ...]
    stations: tuple[Station, ...]
    links: tuple[Link, ...]
    left_out: int


def routes(relevance: Relevance, classes: Sequence[int | str], *, most_links: int = MOST_LINKS) -> Routes:
    """Compute the decision routes of some classes.

    Args:
        relevance: The result of `locate`, with its sums kept; the source is not needed.
        classes: Up to six classes, by name or index.
        most_links: Maximum number of links; every layer keeps its strongest for each class, at least one.

    Raises:
        TaskError: A class is unknown.
        OptionError: More than six classes were given, one was not located, or the sums were not kept.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.reports._routes import routes
        >>> from brickyard.testing import chain
        >>> relevance = by.locate(chain(), (torch.rand(8, 3, 8, 8), torch.arange(8) % 4))
        >>> found = routes(relevance, ["0", "3"])
        >>> [(station.label, station.column, station.size) for station in found.stations]
        [('input_1', 0, 3), ('conv1', 1, 6), ('conv2', 2, 8), ('linear', 3, 4)]
    """
    if not isinstance(relevance, Relevance):
        raise OptionError(
            "option-wrong-object", f"routes need relevances, got {type(relevance).__name__}; call locate first"
        )
    most_links = whole("most_links", most_links)
    chosen = resolve_task(classes, relevance.classes)
    if len(chosen) > MOST_CLASSES:
        raise OptionError(
            "option-range", f"at most {MOST_CLASSES} classes can be told apart in routes, got {len(chosen)}"
        )
    strange = [relevance.classes[k] for k in chosen if k not in relevance.task]
    if strange:
        raise OptionError("option-not-located", f"class {strange[0]!r} was not located; locate it too, or leave it out")
    members = _members(relevance, chosen)
    stations, readings, shortcuts = _stations(relevance, members)
    links = [link for reading in readings for link in _links(relevance, chosen, stations, reading)]
    kept = _strongest(links, most_links)
    drawn = (*_carried(stations, shortcuts), *kept)
    names = tuple(relevance.classes[k] for k in chosen)
    return Routes(relevance.source_name, names, tuple(stations), drawn, len(links) - len(kept))


def _output(relevance: Relevance) -> str | None:
    """The axis of the class outputs: one channel per class, read by no layer."""
    read = np.concatenate([layer.reads for layer in relevance.layers.values()]) if relevance.layers else np.zeros(0)
    written = [set(layer.writes.tolist()) for layer in relevance.layers.values()]
    for name, (start, size) in relevance.axes.items():
        own = set(range(start, start + size))
        if size == len(relevance.classes) and not own & set(read.tolist()) and any(own == w for w in written):
            return name
    return None


def _members(relevance: Relevance, chosen: Sequence[int]) -> NDArray[np.bool_]:
    """Whether a channel is relevant for a class: (chosen, channels of all axes)."""
    found: NDArray[np.bool_] = relevance.scores[0][list(chosen)].bool().numpy().copy()
    name = _output(relevance)
    if name is not None:
        start, size = relevance.axes[name]
        found[:, start : start + size] = False
        for place, k in enumerate(chosen):
            found[place, start + k] = True
    return found


@dataclass(frozen=True)
class _Reading:
    """A layer, with the stations that it reads and writes, by axis."""

    layer: str
    reads: dict[str, int]
    writes: dict[str, int]


def _stations(
    relevance: Relevance, members: NDArray[np.bool_]
) -> tuple[list[Station], list[_Reading], list[tuple[int, int]]]:
    """Stations, the reads and writes of every layer, and the shortcuts between stations of one axis.

    An axis that a layer writes after another has read it is a residual sum and gets another station further right.
    """
    owner = _owners(relevance)
    stations: list[Station] = []
    now: dict[str, int] = {}
    used: set[int] = set()
    readings: list[_Reading] = []
    shortcuts: list[tuple[int, int]] = []

    def add(axis: str, label: str, column: int) -> int:
        start, size = relevance.axes[axis]
        stations.append(Station(axis, label, column, size, _bundles(members[:, start : start + size])))
        return len(stations) - 1

    for layer, record in relevance.layers.items():
        for axis in owner(record.reads):
            if axis not in now:
                now[axis] = add(axis, axis, 0)
        reads = {axis: now[axis] for axis in owner(record.reads)}
        used |= set(reads.values())
        column = 1 + max(stations[place].column for place in reads.values())
        written = owner(record.writes)
        before = {axis: now[axis] for axis in written if axis in now}
        column = max([column, *(stations[p].column + (p in used) for p in before.values())])
        for axis in written:
            if axis in before and before[axis] not in used:
                stations[before[axis]] = replace(stations[before[axis]], column=column)
                continue
            now[axis] = add(axis, layer, column)
            if axis in before:
                used.add(before[axis])
                shortcuts.append((before[axis], now[axis]))
        readings.append(_Reading(layer, reads, {axis: now[axis] for axis in written}))
    _settle(stations, readings, shortcuts)
    return stations, readings, shortcuts


def _owners(relevance: Relevance) -> Any:
    """Return a function from channel indices to the names of the axes that have them, in order."""
    names = list(relevance.axes)
    number = np.zeros(sum(size for _, size in relevance.axes.values()), dtype=np.int64)
    for place, (start, size) in enumerate(relevance.axes.values()):
        number[start : start + size] = place

    def find(channels: NDArray[np.int64]) -> list[str]:
        return [names[place] for place in dict.fromkeys(number[channels].tolist())]

    return find


def _settle(stations: list[Station], readings: list[_Reading], shortcuts: list[tuple[int, int]]) -> None:
    """Move stations right, to just before their first reader, so that parts of a concatenation align."""
    after: dict[int, set[int]] = {}
    for reading in readings:
        for place in reading.reads.values():
            after.setdefault(place, set()).update(reading.writes.values())
    for start, end in shortcuts:
        after.setdefault(start, set()).add(end)
    first = {place for reading in readings for place in reading.writes.values()}
    for place in sorted(range(len(stations)), key=lambda p: -stations[p].column):
        if place in after and place in first:
            column = min(stations[other].column for other in after[place]) - 1
            stations[place] = replace(stations[place], column=max(stations[place].column, column))


def _bundles(members: NDArray[np.bool_]) -> tuple[Bundle, ...]:
    """Group channels by the classes that need them; bundles in the order of these classes, unused ones last."""
    found: dict[tuple[int, ...], list[int]] = {}
    for channel, column in enumerate(members.T):
        found.setdefault(tuple(np.flatnonzero(column).tolist()), []).append(channel)

    def order(owners: tuple[int, ...]) -> tuple[float, int, tuple[int, ...]]:
        return (sum(owners) / len(owners) if owners else len(members), -len(owners), owners)

    return tuple(Bundle(owners, tuple(found[owners])) for owners in sorted(found, key=order))


def _links(relevance: Relevance, chosen: Sequence[int], stations: Sequence[Station], reading: _Reading) -> list[Link]:
    record = relevance.layers[reading.layer]
    sums = relevance.sum(reading.layer)
    links: list[Link] = []
    for owner, k in enumerate(chosen):
        rows, row_of = _places(relevance, record.writes, reading.writes, stations, owner)
        columns, column_of = _places(relevance, record.reads, reading.reads, stations, owner)
        r = normalised(sums[k].double()).numpy()
        weights = row_of @ r @ column_of.T  # (written bundles, read bundles)
        links += [
            Link(reading.layer, owner, start, end, float(weights[i, j]))
            for i, end in enumerate(rows)
            for j, start in enumerate(columns)
            if weights[i, j] > 0
        ]
    return links


def _places(
    relevance: Relevance, numbers: NDArray[np.int64], at: Mapping[str, int], stations: Sequence[Station], owner: int
) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
    """A class's bundles among a layer's channels, and the channels they hold, (bundles, channels of the layer)."""
    places: list[tuple[int, int]] = []
    rows: list[NDArray[np.float64]] = []
    for axis, station in at.items():
        start, _ = relevance.axes[axis]
        for place, bundle in enumerate(stations[station].bundles):
            if owner in bundle.owners:
                places.append((station, place))
                rows.append(np.isin(numbers, np.array(bundle.channels) + start).astype(np.float64))
    return places, np.array(rows).reshape(len(rows), len(numbers))


def _carried(stations: Sequence[Station], shortcuts: Sequence[tuple[int, int]]) -> list[Link]:
    return [
        Link(None, owner, (start, place), (end, place), float(len(bundle.channels)))
        for start, end in shortcuts
        for place, bundle in enumerate(stations[start].bundles)
        for owner in bundle.owners
    ]


def _strongest(links: list[Link], most: int) -> list[Link]:
    """The strongest links of every layer and class, an equal share of each, in the order given."""
    if len(links) <= most:
        return links
    groups: dict[tuple[str | None, int], list[int]] = {}
    for place, link in enumerate(links):
        groups.setdefault((link.layer, link.owner), []).append(place)
    share = max(1, most // len(groups))
    kept = {p for group in groups.values() for p in sorted(group, key=lambda p: -links[p].weight)[:share]}
    return [link for place, link in enumerate(links) if place in kept]
