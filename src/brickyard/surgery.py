"""The one place that builds a resized network: cutting keeps some channels, padding lays parts side by side.

Both are the same job. Each part is a graph and a keep-set; the result has, along every channel dimension, the
kept channels of all parts in the order of their places in the source. With one part this is a cut. With
several, every layer's weights become blocks with zeros elsewhere (the paper's alignment padding). Constants in
steps that depend on channel counts (views, splits, slices, channel padding) are rewritten to fit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brickyard.errors import SurgeryError
from brickyard.graph.axes import Axis, Graph, step_shapes
from brickyard.graph.labels import DimRole, Labels, indexed_dims
from brickyard.layers.modules import build_layer, describe_layer, find_type, tensor_dims
from brickyard.network import Network, Node, Ref, map_refs

__all__ = ["KeepSet", "Part", "check_keep", "cut", "join", "overlay", "positions"]

KeepSet = Mapping[str, Tensor]
"""For each axis by name, the channels that stay, as an integer tensor. Axes left out stay whole."""


def check_keep(graph: Graph, keep: KeepSet) -> None:
    """Check a keep-set: known axes, valid channels, none twice, at least one, pinned axes whole.

    Raises:
        SurgeryError: It does not fit the graph.
    """
    for name, channels in keep.items():
        if name not in graph.names:
            raise SurgeryError(f"axis {name!r} was asked for; the network has {', '.join(graph.names)}")
        axis = graph.axis(name)
        found = channels.tolist()
        if not found or len(set(found)) != len(found) or min(found) < 0 or max(found) >= axis.size:
            raise SurgeryError(
                f"axis {name!r} has channels 0..{axis.size - 1}; a keep-set of {len(found)} entries, "
                f"{found[:8]}, does not name one or more of them, once each"
            )
        if axis.pinned and not axis.output and len(found) != axis.size:
            raise SurgeryError(f"axis {name!r} stays whole because {axis.pinned[0]}; keep all {axis.size} channels")


@dataclass(frozen=True, eq=False)
class Part:
    """A graph and what is kept of it.

    Attributes:
        graph: The source's graph; its network may be on the meta device when `network` is given.
        keep: The keep-set.
        network: Where the numbers are: None for the source's own network (they are sliced), or the already
            cut network (they are taken as they are).
    """

    graph: Graph
    keep: KeepSet
    network: Network | None = None

    @property
    def rank(self) -> NDArray[np.int64]:
        """For every channel of the source, its place in its axis's keep-set, or -1."""
        rank = np.full(self.graph.channels, -1, dtype=np.int64)
        for axis in self.graph.axes:
            channels = self.keep.get(axis.name)
            chosen = np.arange(axis.size) if channels is None else channels.numpy()
            rank[axis.start + chosen] = np.arange(len(chosen))
        return rank


def positions(part: Part, labels: Labels) -> NDArray[np.int64]:
    """Places along a dimension that are kept: in place order, or in task order for the class outputs."""
    rank = part.rank[labels]
    kept = np.flatnonzero(rank >= 0)
    if _is_output(part.graph.output, labels):
        return kept[np.argsort(rank[kept], kind="stable")]
    return kept


def _is_output(axis: Axis | None, labels: Labels) -> bool:
    return axis is not None and bool(((labels >= axis.start) & (labels < axis.start + axis.size)).all())


def cut(graph: Graph, keep: KeepSet) -> Network:
    """A new network with only the kept channels; the graph's own network is not touched.

    Raises:
        SurgeryError: The keep-set does not fit the graph.
    """
    check_keep(graph, keep)
    return join([Part(graph, keep)])


def join(parts: Sequence[Part], *, shared_input: bool = True) -> Network:
    """One network that computes the parts side by side on every channel axis.

    The class outputs lie part after part. With `shared_input` all parts read the same image; otherwise the
    input has the parts' images one after another along its channels.

    Raises:
        SurgeryError: The parts' graphs differ, or one has an axis that cannot be laid side by side.
    """
    if len(parts) > 1:
        _check_same(parts)
    joiner = _Joiner(parts, shared_input)
    layers = {name: joiner.layer(name) for name in parts[0].graph.network.layer_names}
    tensors = {name: joiner.tensor(name) for name in parts[0].graph.network.tensor_names}
    nodes = tuple(joiner.node(node) for node in parts[0].graph.network.nodes)
    foreign = parts[0].graph.network.foreign
    network = Network(nodes, layers, tensors, {name: _own(call) for name, call in foreign.items()}).eval()
    joiner.check_shapes(network)
    return network


def _own(call: Callable[..., Any]) -> Callable[..., Any]:
    """A foreign module is copied, so that training a component leaves its source alone."""
    return copy.deepcopy(call) if isinstance(call, nn.Module) else call


def _check_same(parts: Sequence[Part]) -> None:
    first = parts[0].graph
    for part in parts:
        blocked = [axis for axis in part.graph.axes if axis.pinned and not axis.output and not _is_image(part, axis)]
        if blocked:
            raise SurgeryError(
                f"alignment padding lays channels side by side, and axis {blocked[0].name!r} cannot be: "
                f"{blocked[0].pinned[0]}; use form='parallel'"
            )
        if part.graph.output is None:
            raise SurgeryError("the class outputs cannot be laid side by side; use form='parallel'")
        if part.graph.network.nodes != first.network.nodes or not _same_sizes(part.graph, first):
            raise SurgeryError(
                "alignment padding needs parts cut from one architecture with equal sizes (class counts may "
                "differ); use form='parallel'"
            )


def _is_image(part: Part, axis: Axis) -> bool:
    return axis.writers == (part.graph.network.nodes[0].name,)


def _same_sizes(a: Graph, b: Graph) -> bool:
    if [(x.name, x.size, x.output) for x in a.axes if not x.output] != [
        (x.name, x.size, x.output) for x in b.axes if not x.output
    ]:
        return False
    ends = {record.owner for record in a.dims if _is_output(a.output, record.atoms)}
    for name in a.network.layer_names:
        x, y = a.network.layer(name), b.network.layer(name)
        if type(x) is not type(y) or (name not in ends and describe_layer(x) != describe_layer(y)):
            return False
    return True


class _Joiner:
    def __init__(self, parts: Sequence[Part], shared_input: bool) -> None:
        self.parts = parts
        self.first = parts[0].graph
        self.shared_input = shared_input
        self.image = self.first.at(self.first.network.nodes[0].name, "out")

    # -- layers and tensors ----------------------------------------------------------------------------

    def _places(self, owner: str, role: DimRole, dim: int = 0) -> list[NDArray[np.int64]] | None:
        """Where the kept entries of each part go along a dimension of the result; None for no channels."""
        kept: list[NDArray[np.int64]] = []
        for part in self.parts:
            labels = part.graph.at(owner, role, dim)
            if labels is None:
                return None
            kept.append(positions(part, labels))
        labels = self.first.at(owner, role, dim)
        if labels is None:
            return None
        if role == "in" and self.shared_input and self._reads_image(labels):
            return [np.arange(len(labels)) for _ in self.parts]
        sizes = [len(places) for places in kept]
        if _is_output(self.first.output, labels) or self._reads_image(labels):
            order = np.arange(sum(sizes))
        else:
            order = np.argsort(np.lexsort(_side_by_side(labels, kept)))
        return np.split(order, np.cumsum(sizes)[:-1])

    def _reads_image(self, labels: Labels) -> bool:
        return self.image is not None and bool(np.isin(labels, self.image).all())

    def _total(self, places: list[NDArray[np.int64]] | None, otherwise: int) -> int:
        return otherwise if places is None else 1 + max(int(p.max()) for p in places if len(p))

    def layer(self, name: str) -> nn.Module:
        module = self.first.network.layer(name)
        entry = find_type(module)
        assert entry is not None
        config = describe_layer(module)
        out = self._places(name, "out") or self._places(name, "follow")
        read = self._places(name, "in") or self._places(name, "through")
        if entry.resize is not None and out is not None:
            config = entry.resize(config, self._total(out, 0), self._total(read, 0))
        made = build_layer(entry.name, config)
        dims = tensor_dims(module)
        stores: tuple[dict[str, Any], ...] = (made._parameters, made._buffers)
        for store in stores:
            for key, blank in store.items():
                if blank is None:
                    continue
                indices = [{"out": out, "in": read}[role] for role in dims.get(key, ())]
                value = self._blend(
                    [_number(part, name, key) for part in self.parts], tuple(blank.shape), indices, name
                )
                store[key] = nn.Parameter(value) if store is made._parameters else value
        return made

    def tensor(self, name: str) -> Tensor:
        values = [(part.network or part.graph.network).tensor(name) for part in self.parts]
        indices = [self._places(name, "follow", dim) for dim in range(values[0].ndim)]
        shape = [self._total(places, size) for places, size in zip(indices, values[0].shape, strict=True)]
        value = self._blend(values, tuple(shape), indices, name)
        return nn.Parameter(value) if isinstance(values[0], nn.Parameter) else value

    def _blend(
        self,
        values: Sequence[Tensor],
        shape: tuple[int, ...],
        indices: Sequence[list[NDArray[np.int64]] | None],
        name: str,
    ) -> Tensor:
        """Put the kept numbers of each part at their places; zeros elsewhere."""
        if all(places is None for places in indices):
            if any(not torch.equal(value, values[0]) for value in values[1:]) and values[0].is_floating_point():
                raise SurgeryError(
                    f"parts have different numbers in {name!r}, which has no channels; use form='parallel'"
                )
            return values[0].detach().clone()
        result = torch.zeros(shape, dtype=values[0].dtype, device=values[0].device)
        for number, (part, value) in enumerate(zip(self.parts, values, strict=True)):
            target = [
                torch.arange(size) if places is None else torch.from_numpy(places[number])
                for places, size in zip(_padded(indices, len(shape)), shape, strict=True)
            ]
            block = value.detach() if part.network is not None else self._sliced(part, value, name, indices)
            result[torch.meshgrid(*target, indexing="ij")] = block
        return result

    def _sliced(
        self, part: Part, value: Tensor, name: str, indices: Sequence[list[NDArray[np.int64]] | None]
    ) -> Tensor:
        value = value.detach()
        bare = name in part.graph.network.tensor_names
        roles: list[tuple[DimRole, DimRole]] = [("out", "follow"), ("in", "through")]
        for dim, places in enumerate(indices):
            if places is None:
                continue
            labels = (
                part.graph.at(name, "follow", dim)
                if bare
                else next(found for role in roles[dim] if (found := part.graph.at(name, role)) is not None)
            )
            assert labels is not None
            value = value.index_select(dim, torch.from_numpy(positions(part, labels)).to(value.device))
        return value

    # -- steps -----------------------------------------------------------------------------------------

    def _kept(self, labels: Labels, dim: int, node: Node, stop: int | None = None) -> int:
        """How many entries of a value's dimension (before `stop`) the result has, over all parts."""
        total = 0
        for part in self.parts[:1] if self.shared_input and self._reads_image(labels) else self.parts:
            own = part.graph.labels(node)
            along = np.moveaxis(own, dim, 0)
            along = np.broadcast_to(along.reshape(along.shape[0], -1)[:, 0], (part.graph.shapes[node.name].shape[dim],))
            total += int((part.rank[along[:stop]] >= 0).sum())
        return total

    def _affected(self, node: Node) -> dict[int, int]:
        """Dimensions of a step's value whose size changes, with the new size."""
        labels = self.first.labels(node)
        if not isinstance(labels, np.ndarray):
            return {}
        changed: dict[int, int] = {}
        for dim, size in enumerate(labels.shape):
            if size == 1 and not (labels.size == 1 and dim == 1):
                continue
            new = self._kept(labels, dim, node)
            if new != self.first.shapes[node.name].shape[dim]:
                changed[dim] = new
        return changed

    def node(self, node: Node) -> Node:
        """The step with its constants rewritten."""
        rewrite = self._REWRITE.get(node.target) if node.op == "function" else None
        return node if rewrite is None else rewrite(self, node)

    def _reshape(self, node: Node) -> Node:
        changed = self._affected(node)
        if not changed:
            return node
        sizes = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        new = tuple(
            changed[dim] if dim in changed and isinstance(size, int) and size != -1 else size
            for dim, size in enumerate(sizes)
        )
        return replace(node, args=(node.args[0], new))

    def _pieces(self, node: Node, dim: int) -> Node:
        """Split at the places where the source splits, counted in kept channels."""
        pieces = self.first.labels(node)
        if not isinstance(pieces, tuple):
            return node
        sizes: list[int] = []
        for index, piece in enumerate(pieces):
            if piece is None:
                return node
            total = 0
            for part in self.parts:
                own = part.graph.labels(node)[index]
                size = part.graph.shapes[node.name][index].shape[dim]
                along = np.broadcast_to(own.reshape(-1), (size,)) if own.size in (1, size) else None
                if along is None:
                    return node
                total += int((part.rank[along] >= 0).sum())
            sizes.append(total)
        if sizes == [int(value.shape[dim]) for value in self.first.shapes[node.name]]:
            return node
        return Node(node.name, "function", "split", (node.args[0], sizes, dim))

    def _chunk(self, node: Node) -> Node:
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        source = self.first.labels(self._producer(node))
        dim = dim % source.ndim if isinstance(source, np.ndarray) else dim
        if not isinstance(source, np.ndarray) or source.shape[dim] == 1:
            return node
        return self._pieces(node, dim)

    def _producer(self, node: Node) -> Node:
        return next(other for other in self.first.network.nodes if other.name == node.args[0].node)

    def _getitem(self, node: Node) -> Node:
        if not isinstance(node.args[0], Ref):
            return node
        producer = self._producer(node)
        source = self.first.labels(producer)
        if not isinstance(source, np.ndarray):
            return node
        index = node.args[1]
        changed = dict(indexed_dims(index, source.ndim))
        parts = list(index) if isinstance(index, tuple) else [index]
        moved = {}
        for dim, part in changed.items():
            if isinstance(part, slice) and source.shape[dim] > 1 and (part.start, part.stop) != (None, None):
                size = self.first.shapes[producer.name].shape[dim]
                concrete = map_refs(part, lambda ref: self.first.shapes[ref.node])
                start, stop, _ = concrete.indices(size)
                moved[id(part)] = slice(
                    self._kept(source, dim, producer, start), self._kept(source, dim, producer, stop)
                )
        if not moved:
            return node
        new = [moved.get(id(part), part) for part in parts]
        return replace(node, args=(node.args[0], tuple(new) if isinstance(index, tuple) else new[0]))

    def _pad(self, node: Node) -> Node:
        labels = self.first.labels(node)
        if not isinstance(labels, np.ndarray):
            return node
        key = None if len(node.args) > 1 else "pad"
        amounts = list(
            map_refs(node.args[1] if key is None else node.kwargs[key], lambda ref: self.first.shapes[ref.node])
        )
        changed = False
        for back in range(len(amounts) // 2):
            dim = labels.ndim - 1 - back
            left, right = amounts[2 * back], amounts[2 * back + 1]
            if labels.shape[dim] > 1 and (left, right) != (0, 0):
                size = labels.shape[dim]
                whole = self._kept(labels, dim, node)
                amounts[2 * back] = self._kept(labels, dim, node, left)
                amounts[2 * back + 1] = whole - self._kept(labels, dim, node, size - right)
                changed = True
        if not changed:
            return node
        if key is None:
            return replace(node, args=(node.args[0], amounts, *node.args[2:]))
        return replace(node, kwargs={**node.kwargs, key: amounts})

    _REWRITE: ClassVar[dict[str, Callable[[_Joiner, Node], Node]]] = {
        "reshape": _reshape,
        "view": _reshape,
        "expand": _reshape,
        "chunk": _chunk,
        "split": _chunk,
        "getitem": _getitem,
        "pad": _pad,
    }

    # -- check -----------------------------------------------------------------------------------------

    def check_shapes(self, network: Network) -> None:
        """Run the result on the meta device and compare every value's shape with what the labels say."""
        if network.foreign:
            return
        channels, height, width = self.first.input_shape
        if not self.shared_input:
            channels *= len(self.parts)
        bones = Network(
            network.nodes,
            {name: _on_meta(network.layer(name)) for name in network.layer_names},
            {name: torch.empty(network.tensor(name).shape, device="meta") for name in network.tensor_names},
        )
        try:
            shapes = step_shapes(bones, torch.empty(2, channels, height, width, device="meta"))
        except Exception as error:
            raise SurgeryError(f"the resized network does not fit together: {error}") from error
        for node in self.first.network.nodes:
            before, after = self.first.shapes[node.name], shapes[node.name]
            if isinstance(before, Tensor) and isinstance(self.first.labels(node), np.ndarray) and node.op != "input":
                expected = list(before.shape)
                for dim, size in self._affected(node).items():
                    expected[dim] = size
                if list(after.shape) != expected:
                    raise SurgeryError(
                        f"step {node.name!r} of the resized network gives {tuple(after.shape)} where "
                        f"{tuple(expected)} was planned; please report this network"
                    )


def _side_by_side(labels: Labels, kept: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], ...]:
    """Sort keys, last one first: the source's channel, then the part, then the place within the channel.

    Flattening repeats a channel in a run of entries, which must stay together.
    """
    run = np.concatenate([[0], np.cumsum(labels[1:] != labels[:-1])])
    places = np.concatenate(kept)
    part = np.repeat(np.arange(len(kept)), [len(p) for p in kept])
    return places, part, run[places]


def _number(part: Part, layer: str, key: str) -> Tensor:
    value: Tensor = getattr((part.network or part.graph.network).layer(layer), key)
    return value


def _padded(indices: Sequence[list[NDArray[np.int64]] | None], ndim: int) -> list[list[NDArray[np.int64]] | None]:
    return [*indices, *[None] * (ndim - len(indices))]


def _on_meta(module: nn.Module) -> nn.Module:
    entry = find_type(module)
    assert entry is not None
    return build_layer(entry.name, describe_layer(module))


def overlay(parts: Sequence[Part], source: Graph | None) -> tuple[Network, tuple[str, ...]]:
    """One component with the union of the channels of parts that were cut from one source.

    Args:
        parts: The parts, each with its cut network.
        source: The source's graph. With it the union has the source's weights. Without it, weights between
            channels that no single part keeps together are zero.

    Returns:
        The network, and notes on weights that are not known.

    Raises:
        SurgeryError: The parts are of different sources, or their weights disagree where they overlap.
    """
    graph = parts[0].graph
    if any(p.graph.network.nodes != graph.network.nodes or p.graph.names != graph.names for p in parts):
        raise SurgeryError("form='union' needs parts of one source; use form='parallel'")
    output = graph.output
    if output is None:
        raise SurgeryError("form='union' needs class outputs that can be cut; use form='parallel'")
    keep: dict[str, Tensor] = {}
    for axis in graph.axes:
        kept = [p.keep[axis.name] for p in parts]
        keep[axis.name] = torch.cat(kept) if axis.output else torch.cat(kept).unique()
    if len(keep[output.name].unique()) != len(keep[output.name]):
        raise SurgeryError("form='union' needs parts with different classes of their source; use form='parallel'")
    if source is not None:
        return cut(source, keep), ()
    whole = Part(graph, keep)
    network = cut(graph, keep)
    unknown = 0
    for name in (*graph.network.layer_names, *graph.network.tensor_names):
        unknown += _overlay_one(network, whole, parts, name)
    notes = (f"{unknown:,} weights between channels of different parts are not known and were set to zero",)
    return network, notes if unknown else ()


def _overlay_one(network: Network, whole: Part, parts: Sequence[Part], name: str) -> int:
    """Fill one layer or bare tensor of a union; returns how many of its numbers no part knows."""
    bare = name in network.tensor_names
    keys = [""] if bare else [*network.layer(name)._parameters, *network.layer(name)._buffers]
    unknown = 0
    for key in keys:
        blank = network.tensor(name) if bare else getattr(network.layer(name), key)
        if blank is None:
            continue
        if blank.ndim == 0:
            _set(network, name, key, _own_value(parts[0], name, key).detach().clone(), bare)
            continue
        value = torch.zeros(blank.shape, dtype=_own_value(parts[0], name, key).dtype)
        known = torch.zeros(blank.shape, dtype=torch.bool)
        for part in parts:
            own = _own_value(part, name, key).detach().cpu()
            index = torch.meshgrid(
                *(_within(whole, part, name, dim, size, bare) for dim, size in enumerate(blank.shape)),
                indexing="ij",
            )
            if bool((known[index] & (value[index] != own)).any()):
                raise SurgeryError(
                    f"the parts have different numbers in {name!r} where they overlap (healed apart from each other, "
                    "or trained since); give source= to use its weights, or use form='parallel'"
                )
            value[index] = own
            known[index] = True
        unknown += int((~known).sum())
        _set(network, name, key, value, bare)
    return unknown


def _own_value(part: Part, name: str, key: str) -> Tensor:
    network = part.network or part.graph.network
    return network.tensor(name) if not key else getattr(network.layer(name), key)


def _within(whole: Part, part: Part, name: str, dim: int, size: int, bare: bool) -> Tensor:
    """Where the part's entries along a dimension lie in the union's."""
    roles: tuple[DimRole, ...] = ("follow",) if bare else (("out", "follow"), ("in", "through"))[dim] if dim < 2 else ()
    for role in roles:
        labels = whole.graph.at(name, role, dim if bare else 0)
        if labels is not None and (role != "through" or size > 1):
            place = {int(entry): index for index, entry in enumerate(positions(whole, labels))}
            return torch.tensor([place[int(entry)] for entry in positions(part, labels)])
    return torch.arange(size)


def _set(network: Network, name: str, key: str, value: Tensor, bare: bool) -> None:
    group, _, leaf = name.rpartition(".") if bare else (name, "", key)
    owner = network.get_submodule(group)
    store = owner._parameters if leaf in owner._parameters else owner._buffers
    store[leaf] = nn.Parameter(value) if store is owner._parameters else value  # type: ignore[assignment]
