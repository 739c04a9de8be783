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
    found = [_links(relevance, chosen, stations, reading, most_links) for reading in readings]
    total = sum(count for _, count in found)
    kept = _strongest([link for links, _ in found for link in links], total, most_links)
    drawn = (*_carried(stations, shortcuts), *kept)
    names = tuple(relevance.classes[k] for k in chosen)
    return Routes(relevance.source_name, names, tuple(stations), drawn, total - len(kept))


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


def _links(
    relevance: Relevance, chosen: Sequence[int], stations: Sequence[Station], reading: _Reading, most: int
) -> tuple[list[Link], int]:
    """The links of a layer, for each class at most so many of the strongest, in order; and how many there are."""
    record = relevance.layers[reading.layer]
    sums = relevance.sum(reading.layer)
    links: list[Link] = []
    total = 0
    for owner, k in enumerate(chosen):
        rows, row_of = _places(relevance, record.writes, reading.writes, stations, owner)
        columns, column_of = _places(relevance, record.reads, reading.reads, stations, owner)
        r = normalised(sums[k].double()).numpy()
        weights = _summed(_summed(r, row_of, len(rows)).T, column_of, len(columns)).T  # (written, read bundles)
        there = np.flatnonzero(weights > 0)
        total += len(there)
        if len(there) > most:
            there = np.sort(there[np.argsort(-weights.flat[there], kind="stable")[:most]])
        links += [
            Link(reading.layer, owner, columns[j], rows[i], float(weights[i, j]))
            for i, j in zip(*np.unravel_index(there, weights.shape), strict=True)
        ]
    return links, total


def _places(
    relevance: Relevance, numbers: NDArray[np.int64], at: Mapping[str, int], stations: Sequence[Station], owner: int
) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """A class's bundles among a layer's channels, and for each of these the place of its bundle, or -1."""
    places: list[tuple[int, int]] = []
    place_of = np.full(sum(size for _, size in relevance.axes.values()), -1, dtype=np.int64)
    for axis, station in at.items():
        start, _ = relevance.axes[axis]
        for place, bundle in enumerate(stations[station].bundles):
            if owner in bundle.owners:
                place_of[np.array(bundle.channels) + start] = len(places)
                places.append((station, place))
    found = place_of[numbers]
    used = np.unique(found[found >= 0])
    return [places[place] for place in used], np.where(found >= 0, np.searchsorted(used, found), -1)


def _summed(values: NDArray[np.float64], places: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Add up the rows of each place; those at -1 are left out."""
    found = np.zeros((count, values.shape[1]))
    np.add.at(found, places[places >= 0], values[places >= 0])
    return found


def _carried(stations: Sequence[Station], shortcuts: Sequence[tuple[int, int]]) -> list[Link]:
    return [
        Link(None, owner, (start, place), (end, place), float(len(bundle.channels)))
        for start, end in shortcuts
        for place, bundle in enumerate(stations[start].bundles)
        for owner in bundle.owners
    ]


def _strongest(links: list[Link], total: int, most: int) -> list[Link]:
    """The strongest links of every layer and class, an equal share of each, in the order given."""
    if total <= most:
        return links
    groups: dict[tuple[str | None, int], list[int]] = {}
    for place, link in enumerate(links):
        groups.setdefault((link.layer, link.owner), []).append(place)
    share = max(1, most // len(groups))
    kept = {p for group in groups.values() for p in sorted(group, key=lambda p: -links[p].weight)[:share]}
    return [link for place, link in enumerate(links) if place in kept]
