"""What a step's arguments and value say about its dimensions, without following any channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._atoms import Labels
from brickyard.network._network import Node, Ref, map_refs, refs

VIEWS = ("view", "reshape", "transpose", "permute", "contiguous", "flatten", "unflatten")


def only_moved(name: str, nodes: Sequence[Node]) -> bool:
    """Whether a value is only rearranged next, as heads beside the batch are that a view takes apart again."""
    return all(node.op == "function" and node.target in VIEWS for node in nodes if name in refs(node))


def fits(labels: Any, value: Any) -> bool:
    """Whether labels have a value's dimensions, each of its size or one."""
    if isinstance(labels, tuple):
        return isinstance(value, tuple | list) and len(labels) == len(value) and all(map(fits, labels, value))
    if labels is None:
        return True
    return (
        isinstance(value, Tensor)
        and len(labels.shape) == value.ndim
        and all(size in (1, whole) for size, whole in zip(labels.shape, value.shape, strict=True))
    )


def same_numbers(value: Any, other: Any) -> bool:
    """Whether two values are equal where they are numbers; tensors may differ in their batch."""
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return len(value) == len(other) and all(map(same_numbers, value, other))
    return isinstance(value, Tensor) or bool(value == other)


def implicit_dim(ndim: int) -> int:
    """The dimension of a softmax that names none: torch's choice by the number of dimensions."""
    return 0 if ndim in (0, 1, 3) else 1


def many(value: Any) -> bool:
    return isinstance(value, tuple | list)


def plain_slice(index: Any) -> bool:
    return isinstance(index, slice) and index.step in (None, 1)


def tensor_refs(node: Node) -> list[Ref]:
    found: list[Ref] = []
    map_refs((node.args, dict(node.kwargs)), found.append)
    return found


def letters(node: Node, ndims: Sequence[int]) -> list[str] | None:
    """Assign one letter per dimension to each operand and the result; letters missing there are summed over."""
    if node.target == "einsum":
        equation = str(node.args[0]).replace(" ", "")
        inputs, arrow, result = equation.partition("->")
        found = [*inputs.split(","), result]
        plain = arrow and "." not in equation and all(len(set(term)) == len(term) for term in found)
        return found if plain and [*map(len, found[:-1])] == list(ndims) else None
    batch = "".join(chr(ord("A") + d) for d in range(max(ndims) - 2))
    if min(ndims) < 2 or len(ndims) < 2:
        return None
    if node.target == "matmul":
        (a, b) = (batch[len(batch) - (n - 2) :] for n in ndims)
        return [a + "ik", b + "kj", batch + "ij"]
    q, k, v, *masks = (batch[len(batch) - (n - 2) :] for n in ndims)
    return [q + "nd", k + "md", v + "me", *(mask + "nm" for mask in masks), batch + "ne"]


def arranged(labels: Labels, own: str, result: str) -> Labels:
    """Reorder dimensions by the result's letters, with size one for missing letters; the others are dropped."""
    kept = [letter for letter in result if letter in own]
    first = labels[tuple(slice(None) if letter in kept else 0 for letter in own)]
    order = [letter for letter in own if letter in kept]
    moved = first.transpose([order.index(letter) for letter in kept])
    return moved.reshape([moved.shape[kept.index(letter)] if letter in kept else 1 for letter in result])


def has_tensors(value: Any) -> bool:
    return any(isinstance(item, Tensor) for item in leaves(value))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]
