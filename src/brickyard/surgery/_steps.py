"""Rewriting constants of steps that depend on channel counts: views, splits, slices, channel padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from brickyard.axes._atoms import indexed_dims
from brickyard.network._arguments import argument, listed
from brickyard.network._functions import FUNCTIONS
from brickyard.network._network import Node, Ref, map_refs, refs, with_refs
from brickyard.surgery._plan import Plan


def rewritten(plan: Plan, node: Node) -> Node:
    """Return the step with its constants adapted to the result."""
    if node.op != "function" or node.target not in FUNCTIONS:
        return node
    if FUNCTIONS[node.target].role == "move" and plan.first.counts & set(refs(node)):
        node = with_refs(node, lambda ref: plan.first.shapes[ref.node] if ref.node in plan.first.counts else ref)
    rewrite = _REWRITE.get(node.target)
    return node if rewrite is None else rewrite(plan, node)


def _reshape(plan: Plan, node: Node) -> Node:
    changed = plan.changed(node)
    if not changed:
        return node
    sizes = listed(node, "shape" if node.target == "reshape" else "size")
    if len(sizes) == 1 and isinstance(sizes[0], Ref) and not isinstance(plan.first.shapes[sizes[0].node], int):
        by_batch = plan.first.batch_dims(node)
        if len(by_batch) > 1 or (by_batch and node.target == "expand"):
            return node  # sizes that follow the batch and the cut by themselves
        sizes = [-1 if dim in by_batch else size for dim, size in enumerate(plan.first.shapes[node.name].shape)]
    free = -1 not in sizes  # a computed size (from the batch, say) is left to be inferred
    new = tuple(
        size if size == -1 or dim not in changed else -1 if free and isinstance(size, Ref) else changed[dim]
        for dim, size in enumerate(sizes)
    )
    return replace(node, args=(node.args[0], new))


def _unflatten(plan: Plan, node: Node) -> Node:
    changed = plan.changed(node)
    if not changed:
        return node
    dim, sizes = node.args[1:]
    dim %= plan.first.shapes[_producer(plan, node).name].ndim
    if isinstance(sizes, Ref):  # sizes of a value: one that follows the batch is left to be inferred
        by_batch, sizes = plan.first.batch_dims(node), plan.first.shapes[sizes.node]
        sizes = [-1 if dim + place in by_batch else size for place, size in enumerate(sizes)]
    new = tuple(size if size == -1 else changed.get(dim + place, size) for place, size in enumerate(sizes))
    return replace(node, args=(node.args[0], node.args[1], new))


def _split(plan: Plan, node: Node) -> Node:
    """Split at the source's boundaries, counted in kept channels."""
    source, pieces = plan.first.labels(_producer(plan, node)), plan.first.labels(node)
    dim = argument(node, "dim", 0)
    if not isinstance(source, np.ndarray) or not isinstance(pieces, tuple) or source.shape[dim] == 1:
        return node
    dim = dim % source.ndim
    sizes = [plan.kept(node, dim, piece=index) for index in range(len(pieces))]
    if sizes == [int(value.shape[dim]) for value in plan.first.shapes[node.name]]:
        return node
    return Node(node.name, "function", "split", (node.args[0], sizes, dim))


def _getitem(plan: Plan, node: Node) -> Node:
    if not isinstance(node.args[0], Ref):
        return node
    producer = _producer(plan, node)
    source = plan.first.labels(producer)
    if not isinstance(source, np.ndarray):
        return node
    index = node.args[1]
    moved: dict[int, slice] = {}
    for dim, part in indexed_dims(index, source.ndim):
        plain = isinstance(part, slice) and part.step in (None, 1)  # others index positions, and nothing there is cut
        if plain and source.shape[dim] > 1 and (part.start, part.stop) != (None, None):
            start, stop, _ = concrete(plan, part).indices(plan.first.shapes[producer.name].shape[dim])
            moved[id(part)] = slice(plan.kept(producer, dim, start), plan.kept(producer, dim, stop))
    if not moved:
        return node
    if not isinstance(index, tuple):
        return replace(node, args=(node.args[0], moved[id(index)]))
    return replace(node, args=(node.args[0], tuple(moved.get(id(part), part) for part in index)))


def _pad(plan: Plan, node: Node) -> Node:
    labels = plan.first.labels(node)
    if not isinstance(labels, np.ndarray):
        return node
    by_name = len(node.args) == 1
    amounts = list(concrete(plan, argument(node, "pad")))
    before = list(amounts)
    for back in range(len(amounts) // 2):
        dim = labels.ndim - 1 - back
        left, right = before[2 * back : 2 * back + 2]
        if labels.shape[dim] > 1 and (left, right) != (0, 0):
            amounts[2 * back] = plan.kept(node, dim, left)
            amounts[2 * back + 1] = plan.kept(node, dim) - plan.kept(node, dim, labels.shape[dim] - right)
    if amounts == before:
        return node
    if by_name:
        return replace(node, kwargs={**node.kwargs, "pad": amounts})
    return replace(node, args=(node.args[0], amounts, *node.args[2:]))


def _producer(plan: Plan, node: Node) -> Node:
    return next(other for other in plan.first.network.nodes if other.name == node.args[0].node)


def concrete(plan: Plan, value: Any) -> Any:
    """Sizes that the network computes, with their values on the example."""
    return map_refs(value, lambda ref: plan.first.shapes[ref.node])


def _take(plan: Plan, node: Node) -> Node:
    """Take the same channels in the same order, renumbered to what is kept."""
    dim, order = node.args[1], np.asarray(node.args[2])
    if plan.dim(node) != dim:
        return node
    source = plan.layout(plan.along(_producer(plan, node), dim))
    result = plan.layout(plan.along(node, dim))
    new = np.zeros(result.size, dtype=np.int64)
    for before, targets, kept, places in zip(source.kept, source.targets, result.kept, result.targets, strict=True):
        where = np.zeros(1 + int(order.max()), dtype=np.int64)
        inside = before < len(where)
        where[before[inside]] = targets[inside]
        new[places] = where[order[kept]]
    return replace(node, args=(node.args[0], dim, new.tolist()))


def _new_full(plan: Plan, node: Node) -> Node:
    changed, sizes = plan.changed(node), node.args[1]
    if not changed or isinstance(sizes, Ref):
        return node
    new = tuple(changed.get(dim, size) for dim, size in enumerate(sizes))
    return replace(node, args=(node.args[0], new, *node.args[2:]))


def _mean(plan: Plan, node: Node) -> Node:
    """Average over channels, counting the dropped ones as zeros."""
    producer = _producer(plan, node)
    if node.name not in plan.first.sums or not plan.changed(producer):
        return node
    dim = plan.dim(producer)
    assert dim is not None
    share = plan.kept(producer, dim) / int(plan.first.shapes[producer.name].shape[dim])
    dims, keep = argument(node, "dim"), argument(node, "keepdim", False)
    if node.target == "mean_of":
        share *= argument(node, "share")
    return Node(node.name, "function", "mean_of", (node.args[0], dims, keep, share))


_REWRITE: dict[str, Callable[[Plan, Node], Node]] = {
    "reshape": _reshape,
    "view": _reshape,
    "expand": _reshape,
    "unflatten": _unflatten,
    "chunk": _split,
    "split": _split,
    "tensor_split": _split,
    "new_full": _new_full,
    "getitem": _getitem,
    "pad": _pad,
    "take": _take,
    "mean": _mean,
    "mean_of": _mean,
}
