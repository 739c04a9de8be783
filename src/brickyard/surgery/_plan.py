"""What each network keeps, and where it goes when several are laid side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from brickyard.axes._atoms import DimRole, Labels, lying_dims
from brickyard.axes._graph import Axis, Graph
from brickyard.base._errors import SurgeryError
from brickyard.network._network import Network, Node

KeepSet = Mapping[str, Tensor]
"""For each axis by name, the channels that stay, as an integer tensor. Axes left out stay whole."""


def check_keep(graph: Graph, keep: KeepSet) -> None:
    """Check a keep-set: known axes, valid channels without duplicates, at least one per axis, pinned axes whole.

    Raises:
        SurgeryError: It does not fit the graph.
    """
    for name, channels in keep.items():
        if name not in graph.names:
            raise SurgeryError(
                "surgery-keep-invalid", f"the network has no axis {name!r}; it has {', '.join(graph.names)}"
            )
        axis = graph.axis(name)
        found = channels.tolist()
        if not found or len(set(found)) != len(found) or min(found) < 0 or max(found) >= axis.size:
            raise SurgeryError(
                "surgery-keep-invalid",
                f"a keep-set for axis {name!r} must name one or more of the channels "
                f"0..{axis.size - 1}, each once; got {len(found)} entries, {found[:8]}",
            )
        if axis.pinned and not axis.output and len(found) != axis.size:
            raise SurgeryError(
                "surgery-keep-invalid",
                f"axis {name!r} must stay whole because {axis.pinned[0]}; keep all {axis.size} channels",
            )


@dataclass(frozen=True, eq=False)
class Part:
    """A graph and what is kept of it.

    Attributes:
        graph: The source's graph; its network may be on the meta device if `network` is given.
        keep: The keep-set.
        network: Where the weights come from: None for the source's own network (they are sliced), or the network
            already cut (they are used as they are).
    """

    graph: Graph
    keep: KeepSet
    network: Network | None = None

    @cached_property
    def rank(self) -> NDArray[np.int64]:
        """For every channel of the source, its position in its axis's keep-set, or -1."""
        rank = np.full(self.graph.channels, -1, dtype=np.int64)
        for axis in self.graph.axes:
            channels = self.keep.get(axis.name)
            chosen = np.arange(axis.size) if channels is None else channels.numpy()
            rank[axis.start + chosen] = np.arange(len(chosen))
        return rank


def positions(part: Part, labels: Labels) -> NDArray[np.int64]:
    """Kept positions along a dimension, in ascending order, but for class outputs side by side: these in task order.

    Class outputs that come again, as those of every anchor of a detector, are ordered each time by themselves.
    """
    rank = part.rank[labels]
    kept = np.flatnonzero(rank >= 0)
    own = _on(part.graph.output, labels)
    if own is None or not own.any():
        return kept
    runs = _runs(labels, own)[kept]
    return kept[np.lexsort((np.where(own, rank, np.arange(len(labels)))[kept], runs))]


def _runs(labels: Labels, own: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the stretches of entries that lie on the axis of the class outputs, and of others.

    A stretch ends too where a class comes again after another one.
    """
    starts = own != np.concatenate([own[:1], own[:-1]])
    if len(np.unique(labels[own])) < own.sum():
        seen: set[int] = set()
        for place, label in enumerate(labels.tolist()):
            if starts[place] or not own[place]:
                seen = set()
            if label in seen and label != labels[place - 1]:
                starts[place], seen = True, set()
            seen.add(label)
    return np.cumsum(starts)


def _on(axis: Axis | None, labels: Labels) -> NDArray[np.bool_] | None:
    """Which entries along a dimension lie on an axis."""
    return None if axis is None else (labels >= axis.start) & (labels < axis.start + axis.size)


def is_output(axis: Axis | None, labels: Labels) -> bool:
    """Whether all entries along a dimension are class outputs."""
    own = _on(axis, labels)
    return own is not None and bool(own.all())


@dataclass(frozen=True)
class Layout:
    """How the kept entries of several parts lie along one dimension of the result.

    Attributes:
        kept: For each part, the kept positions in its source.
        targets: For each part, where they go.
        shared: Whether all parts have the very same entries: those of the image that all read.
    """

    kept: list[NDArray[np.int64]]
    targets: list[NDArray[np.int64]]
    shared: bool = False

    @property
    def size(self) -> int:
        return len(self.kept[0]) if self.shared else sum(map(len, self.kept))


class Plan:
    """Decides where everything goes when parts are laid side by side; builds nothing.

    Args:
        parts: The parts; the first one's graph provides the steps.
        shared_input: Whether all parts read the same image, or each has its own among the input's channels.
    """

    def __init__(self, parts: Sequence[Part], shared_input: bool) -> None:
        self.parts = parts
        self.first = parts[0].graph
        self.shared_input = shared_input
        self._starts = [axis.start for axis in self.first.axes]
        self._image = self.first.at(self.first.network.nodes[0].name, "out")

    def alone(self, number: int) -> Plan:
        return Plan([self.parts[number]], self.shared_input)

    def is_image(self, labels: Labels) -> bool:
        """Whether all these channels belong to the image."""
        return self._image is not None and bool(np.isin(labels, self._image).all())

    def layout(self, labels: Sequence[Labels]) -> Layout:
        """The layout of a dimension, given its channel indices for each part.

        The class outputs and the image lie part after part, and so does every run of one axis. Runs keep the source's
        order, so a concatenation of two layouts is the layout of the concatenation.
        """
        if self.shared_input and self.is_image(labels[0]):
            whole = [np.arange(len(own)) for own in labels]
            return Layout(whole, whole, shared=True)
        kept = [positions(part, own) for part, own in zip(self.parts, labels, strict=True)]
        sizes = [len(places) for places in kept]
        if is_output(self.first.output, labels[0]) or self.is_image(labels[0]):
            order = np.arange(sum(sizes))
        else:
            run = self.runs(labels[0])
            places, part = np.concatenate(kept), np.repeat(np.arange(len(kept)), sizes)
            within = np.concatenate([np.arange(size) for size in sizes])
            order = np.argsort(np.lexsort((within, part, run[places])))
        return Layout(kept, np.split(order, np.cumsum(sizes)[:-1]))

    def runs(self, labels: Labels) -> NDArray[np.int64]:
        """For each entry of a dimension, the index of its run: entries of one axis whose channels never decrease."""
        axis = np.searchsorted(self._starts, labels, side="right")
        return np.concatenate([[0], np.cumsum((axis[1:] != axis[:-1]) | (labels[1:] < labels[:-1]))])

    def places(self, owner: str, role: DimRole, dim: int = 0) -> list[NDArray[np.int64]] | None:
        """For each part, where its entries go along a dimension of a layer or tensor; None without channels."""
        if self.first.at(owner, role, dim) is None:
            return None
        found = [part.graph.at(owner, role, dim) for part in self.parts]
        return self.layout([own for own in found if own is not None]).targets

    def along(self, node: Node, dim: int, piece: int | None = None) -> list[Labels]:
        """For each part, the channel indices along a dimension of a step's value."""
        return [_along(part.graph, node, dim, piece) for part in self.parts]

    def kept(self, node: Node, dim: int, stop: int | None = None, piece: int | None = None) -> int:
        """How many entries (before `stop`) of a dimension of a step's value remain in the result.

        `piece` selects one value of a step that returns several.
        """
        return self.layout([labels[:stop] for labels in self.along(node, dim, piece)]).size

    def changed(self, node: Node) -> dict[int, int]:
        """Dimensions of a step's value whose size changes, with the new size."""
        dim = self.dim(node)
        if dim is None:
            return {}
        new = self.kept(node, dim)
        return {} if new == self.first.shapes[node.name].shape[dim] else {dim: new}

    def dim(self, node: Node) -> int | None:
        """The dimension of a step's value along which its channels lie, or None."""
        labels = self.first.labels(node)
        if not isinstance(labels, np.ndarray):
            return None
        return next(iter(lying_dims(labels, self.first.shapes[node.name].shape)), None)


def _along(graph: Graph, node: Node, dim: int, piece: int | None) -> Labels:
    labels, value = graph.labels(node), graph.shapes[node.name]
    if piece is not None:
        labels, value = labels[piece], value[piece]
    return np.broadcast_to(np.moveaxis(labels, dim, 0).reshape(labels.shape[dim], -1)[:, 0], (value.shape[dim],))
