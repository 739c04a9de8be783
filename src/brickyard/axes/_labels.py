"""Follows channels through a network: which position of which tensor belongs to which channel.

Every channel that a layer writes is an *atom*. A value's labels are an integer array with as many dimensions as the
value, of size one wherever the label does not change: (1, C, 1, 1) after a convolution. Operations that only move
numbers (flatten, concatenate, slice, permute, chunk ...) are applied to the labels themselves, so they need no rules of
their own. Adding ties atoms together. Any step that is not understood pins its atoms: they are kept whole, with the
reason.

A view may spread channels over several dimensions (heads and their width, halves of a split). A cut must leave a block,
so all but one of these dimensions are tied: those that a later step mixes or selects from, and finally all but the
longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.axes._atoms import (
    Labels,
    Purse,
    compress,
    indexed_dims,
    lying_dims,
)
from brickyard.axes._roles import Roles
from brickyard.axes._shapes import (
    arranged,
    fits,
    has_tensors,
    leaves,
    letters,
    only_moved,
    plain_slice,
    tensor_refs,
)
from brickyard.network._arguments import argument
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import find_mixing, layer_role, mixing_of
from brickyard.network._network import Network, Node, Ref, map_refs, refs

# Where a step takes numbers from by their place: the argument that says along which dimensions, and its default.
_TAKES_PLACES: dict[str, tuple[str, Any]] = {
    "roll": ("dims", 0),
    "unbind": ("dim", 0),
    "rot90": ("dims", (0, 1)),
    "tensor_unfold": ("dimension", 0),
}


@dataclass(frozen=True)
class _Operand:
    """A value that is combined with others, aligned with the dimensions of the result.

    Attributes:
        ref: The step it comes from.
        labels: Its labels, or None.
        shape: Its shape, with size one for missing dimensions.
        dims: Its own dimension for each one of the result; below zero if it has none.
    """

    ref: Ref
    labels: Labels | None
    shape: tuple[int, ...]
    dims: tuple[int, ...]


class Labeller(Roles):
    """Runs over a network's steps once; afterwards its attributes hold the results.

    Args:
        network: The network.
        shapes: The value of every step on an example, with tensors replaced by meta tensors.
        other: The same on an example of another batch size.
        purse: What it may cost, or None for no limit.
    """

    def __init__(
        self,
        network: Network,
        shapes: dict[str, Any],
        other: dict[str, Any] | None = None,
        purse: Purse | None = None,
    ) -> None:
        super().__init__(network, shapes, other, purse)
        for position, node in enumerate(network.nodes):
            self.position, self._step, self._line = position, node.name, node.line
            longest = [max(value.shape, default=0) for value in leaves(shapes[node.name]) if isinstance(value, Tensor)]
            self.pay("labels", max(longest, default=0))  # as many as may be noted
            self.labels[node.name] = self._followed(node)
            found = self.labels[node.name]
            self.pay(
                "labels", sum(one.size for one in (found if isinstance(found, tuple) else (found,)) if one is not None)
            )
        self._step = self._line = ""
        self._tie_spread()
        for record in self.dims:
            if record.owner in self._whole:
                self.pin(record.atoms, f"tensor {record.owner!r} is also used where it cannot be sliced")

    # -- one step --------------------------------------------------------------------------------------

    def _along_batch(self, labels: Any, name: str) -> bool:
        """Whether channels lie along a dimension whose size changes with the batch."""
        if not isinstance(labels, np.ndarray):
            return False
        sizes = zip(labels.shape, self.shapes[name].shape, self._other[name].shape, strict=True)
        return any(long > 1 and size != more for long, size, more in sizes)

    def _followed(self, node: Node) -> Any:
        """A step's labels, or None with its channels pinned: nothing that is not understood is ever cut."""
        try:
            found = self._label(node)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            found = None
            self._pin_all(node, f"{self.title(node)} has arguments that could not be followed")
        mixed = self._along_batch(found, node.name) and not only_moved(node.name, self.network.nodes)
        if fits(found, self.shapes[node.name]) and not mixed:
            return found
        for labels in found if isinstance(found, tuple) else (found,):
            self.pin(labels, f"{self.title(node)} has channels that could not be followed")
        self._pin_all(node, f"{self.title(node)} has channels that could not be followed")
        return None

    def _label(self, node: Node) -> Any:
        if node.op == "input":
            channels = self.atoms.fresh(self.shapes[node.name].shape[1])
            self.pin(channels, "the image input is never cut")
            self._record(node.name, "out", channels)
            return self._place(channels, self.shapes[node.name].ndim, 1)
        if node.op == "output":
            return self._of(node.args[0])
        if node.op == "tensor":
            return self._tensor(node)
        if node.op == "layer":
            return self._layer(node)
        if node.target not in FUNCTIONS:
            self._pin_all(node, f"{node.target} is not an operation that Brickyard knows")
            return None
        role = FUNCTIONS[node.target].role
        if not any(isinstance(item, Tensor) for item in leaves(self.shapes[node.name])):
            self._count(node)
            return None
        found = self._along_dims(node) if role == "along" else getattr(self, f"_{role}")(node)
        if found is None and node.name not in self.apart and node.name not in self._bare:
            self._pin_all(node, f"{self.title(node)} has channels that could not be followed")
        return found

    def _count(self, node: Node) -> None:
        """Record a plain number that changes with a cut: the size of a channel dimension, or one derived from it."""
        inputs = tensor_refs(node)
        if not inputs:
            return
        first = inputs[0].node
        labels = self._of(inputs[0])
        if node.target == "shape" or (node.target == "size" and len(node.args) + len(node.kwargs) == 1):
            self._size_of[node.name] = first
        elif node.target == "size":
            dim = argument(node, "dim")
            if labels is not None and int(dim) % labels.ndim in lying_dims(labels, self.shapes[first].shape):
                self._counts(node, labels)
        elif node.target == "getitem" and first in self._size_of:
            labels = self._of(Ref(self._size_of[first]))
            sizes = self.shapes[self._size_of[first]].shape
            picked = list(range(len(sizes)))[self._concrete(node.args[1])]
            dims = picked if isinstance(picked, list) else [picked]
            if labels is not None and set(dims) & set(lying_dims(labels, sizes)):
                self._counts(node, labels)
        elif node.target == "numel" and labels is not None:
            self._counts(node, labels)
        elif self.counts & {ref.node for ref in inputs}:
            self._counts(node, *(labels for ref in inputs for labels in self._counted.get(ref.node, ())))

    def _tensor(self, node: Node) -> Labels | None:
        """Give a bare tensor with one long dimension one entry per channel; others wait for the values they meet."""
        self._bare[node.name] = node.target
        shape = self.shapes[node.name].shape
        long = [d for d, size in enumerate(shape) if size > 1]
        if len(long) != 1:
            return None
        atoms = self._record(node.target, "follow", self.atoms.fresh(shape[long[0]]), long[0])
        return self._place(atoms, len(shape), long[0])

    def _layer(self, node: Node) -> Any:
        module = self.network.layer(node.target)
        role = layer_role(module)
        x = node.args[0]
        labels, shape = self._of(x), self.shapes[x.node].shape
        out_shape = self.shapes[node.name].shape
        if role == "mix":
            mixing = mixing_of(module)
            groups, dim = mixing.groups, mixing.channel_dim
            read = self._along(node, labels, shape, dim)
            self._record(node.target, "in", self._across_groups(read, groups))
            fresh = self.atoms.fresh(out_shape[dim] // groups)
            written = self._record(node.target, "out", np.tile(fresh, groups))
            return self._place(written, len(out_shape), dim)
        if role == "follow":
            return self._follow(node, module, labels, shape, out_shape)
        if role == "normalise":
            return self._normalising_layer(node, module, labels, len(shape))
        return getattr(self, f"_{role}")(node)

    def _follow(
        self,
        node: Node,
        module: nn.Module,
        labels: Labels | None,
        shape: Sequence[int],
        out_shape: Sequence[int],
    ) -> Labels:
        atoms = self._along(node, labels, shape, 1)
        mixing = find_mixing(module)
        if mixing is not None:
            self._record(node.target, "through", atoms)
            atoms = np.repeat(self._in_groups(atoms, mixing.groups), out_shape[1] // mixing.groups)
        elif isinstance(module, nn.GroupNorm):
            self._in_groups(atoms, module.num_groups)
        self._record(node.target, "follow", atoms)
        return self._place(atoms, len(out_shape), 1)

    # -- roles -----------------------------------------------------------------------------------------

    def _pointwise(self, node: Node) -> Labels | None:
        tensors = [ref for ref in tensor_refs(node) if isinstance(self.shapes[ref.node], Tensor)]
        self._pin_counts(node)
        return self._meeting(node, tensors[:1] if node.target == "type_as" else tensors)

    def _binary(self, node: Node) -> Labels | None:
        tensors = [x for x in tensor_refs(node) if isinstance(self.shapes[x.node], Tensor)]
        self._pin_counts(node)
        return self._meeting(node, tensors)

    def _meeting(self, node: Node, tensors: Sequence[Ref]) -> Labels | None:
        """Tie values that are combined element by element, after broadcasting."""
        ndim = len(self.shapes[node.name].shape)
        found: list[_Operand] = []
        for x in tensors:
            labels, shape = self._of(x), tuple(self.shapes[x.node].shape)
            missing = ndim - len(shape)
            if labels is not None:
                labels = labels.reshape((1,) * missing + labels.shape)
            found.append(_Operand(x, labels, (1,) * missing + shape, tuple(range(-missing, len(shape)))))
        return self._joined(node, found)

    def _joined(self, node: Node, operands: Sequence[_Operand]) -> Labels | None:
        """Tie operands that are aligned with the result's dimensions."""
        result: Labels | None = None
        for operand in operands:
            if operand.labels is not None:
                result = operand.labels if result is None else self._merged(node, result, operand.labels)
        if result is None:
            return None
        for operand in operands:
            name = operand.ref.node
            varying = [d for d, size in enumerate(result.shape) if size > 1]
            touching = [d for d in varying if operand.shape[d] > 1]
            if operand.labels is not None:
                if varying and operand.labels.size == 1:
                    reason = f"{self.title(node)} spreads one channel over many"
                    self.pin(operand.labels, reason)
                    self.pin(result if touching else None, reason)
            elif touching and len(touching) < len(varying):
                result = self._tied_over(result, touching)
            elif touching and name in self._bare and len(varying) == 1:
                dim = operand.dims[varying[0]]
                atoms = self._record(self._bare[name], "follow", result.reshape(-1), dim)
                self.labels[name] = self._place(atoms, len(self.shapes[name].shape), dim)
            elif touching and name in self._open and len(varying) == 1:
                labels = np.broadcast_to(result.reshape(-1), (operand.shape[varying[0]],))
                self.labels[name] = self._place(labels, len(self.shapes[name].shape), operand.dims[varying[0]])
            elif touching:
                self._pin_all(node, f"{self.title(node)} meets channels that could not be followed")
        return result

    def _merged(self, node: Node, a: Labels, b: Labels) -> Labels:
        """Tie two label arrays, unless each varies where the other does not."""
        along = [{d for d, size in enumerate(labels.shape) if size > 1} for labels in (a, b)]
        if along[0] and along[1] and not along[0] & along[1]:
            reason = f"{self.title(node)} joins channels that lie along different dimensions"
            self.pin(a, reason)
            self.pin(b, reason)
            return a
        if bool(along[0]) == bool(along[1]):  # else one channel meets many
            self.atoms.tie(a, b)
        return self._settled(np.broadcast_to(a if along[0] else b, np.broadcast_shapes(a.shape, b.shape)).copy())

    def _places(self, node: Node) -> Labels | None:
        """Handle numbers that are taken from places along a dimension, or put there; all else stays where it is."""
        values = [x for x in tensor_refs(node) if isinstance(self.shapes[x.node], Tensor)]
        shapes = [tuple(self.shapes[x.node].shape) for x in values]
        dim = int(argument(node, "dim")) % len(shapes[0])
        if node.target == "index_select":
            return self._mixed_over(node, self._of(values[0]), [dim])
        found: list[_Operand] = []
        for x, shape in zip(values, shapes, strict=True):
            if shape[:dim] + shape[dim + 1 :] != shapes[0][:dim] + shapes[0][dim + 1 :]:
                raise ValueError("values of different sizes")
            labels = self._of(x)
            if labels is not None and dim in lying_dims(labels, shape):
                labels = self._without(node, labels, shape, dim)
            found.append(_Operand(x, labels, (*shape[:dim], 1, *shape[dim + 1 :]), tuple(range(len(shape)))))
        return self._joined(node, found)

    def _without(self, node: Node, labels: Labels, shape: tuple[int, ...], dim: int) -> Labels | None:
        """Labels tied along a dimension whose numbers a step mixes; None, pinned, if the channels lie there alone."""
        if lying_dims(labels, shape) == (dim,):
            self.pin(labels, f"{self.title(node)} mixes channels")
            return None
        return self._tied_over(labels, [dim])

    def _attend(self, node: Node) -> Labels | None:
        """Handle a sum of products: channels stay along dimensions that are not summed over."""
        operands = [x for x in tensor_refs(node) if isinstance(self.shapes[x.node], Tensor)]
        terms = letters(node, [self.shapes[x.node].ndim for x in operands])
        if terms is None:
            self._pin_all(node, f"{self.title(node)} is not followed in this form")
            return None
        *inputs, result = terms
        found: list[_Operand] = []
        for x, own in zip(operands, inputs, strict=True):
            labels, shape = self._of(x), tuple(self.shapes[x.node].shape)
            if labels is not None:
                lying = lying_dims(labels, shape)
                inside = [d for d in lying if own[d] not in result]
                if len(inside) == len(lying):
                    self.pin(labels, f"{self.title(node)} mixes channels")
                    labels = None
                else:
                    labels = arranged(self._tied_over(labels, inside), own, result)
            sizes = tuple(shape[own.index(letter)] if letter in own else 1 for letter in result)
            found.append(_Operand(x, labels, sizes, tuple(map(own.find, result))))
        return self._joined(node, found)

    def _move(self, node: Node) -> Any:
        """Apply the step to the labels as it applies to the numbers."""
        if node.target == "getitem" and isinstance(self.labels.get(refs(node)[0]), tuple):
            return self.labels[node.args[0].node][self._concrete(node.args[1])]
        used = [ref for ref in tensor_refs(node) if has_tensors(self.shapes[ref.node])]
        if node.target == "getitem" and len(used) > 1:
            return self._picked(node, used[1:])
        if node.target == "repeat_interleave" and len(used) > 1:
            raise ValueError("how often is not known")
        if node.target in ("expand_as", "reshape_as", "view_as"):
            used = used[:1]  # the other one only provides its shape
        if all(self.labels.get(ref.node) is None for ref in used):
            self._still_bare(node, used)
            return None
        if node.target == "cat":
            self._joined_behind(node, used)

        def expanded(ref: Ref) -> Any:
            value = self.shapes[ref.node]
            if isinstance(value, tuple | list) and has_tensors(value):
                found = self.labels.get(ref.node) or [None] * len(value)
                return [whole(labels, item) for labels, item in zip(found, value, strict=True)]
            return whole(self._of(ref), value) if isinstance(value, Tensor) else value

        self._pay_moves([*used, Ref(node.name)])

        def whole(labels: Labels | None, value: Tensor) -> Tensor:
            if labels is None:
                labels = self.atoms.fresh(1)
                self.pin(labels, f"{self.title(node)} uses channels that could not be followed")
                labels = labels.reshape((1,) * value.ndim)
            return torch.from_numpy(np.broadcast_to(labels, tuple(value.shape)).copy())

        for ref in used:
            if ref.node in self._bare and self._of(ref) is None:
                self._whole.add(self._bare[ref.node])
        self._pin_places(node)
        args = map_refs(node.args, expanded)
        kwargs = map_refs(dict(node.kwargs), expanded)
        call = self.network.layer(node.target) if node.op == "layer" else FUNCTIONS[node.target].call
        return self._moved(node, call(*args, **kwargs))

    def _moved(self, node: Node, moved: Any) -> Any:
        """The labels that a step's result has, where these were moved as numbers are."""
        if isinstance(moved, tuple | list):
            return tuple(self._settled(compress(item.numpy())) for item in moved)
        labels = self._settled(compress(moved.numpy()))
        if node.target in ("cat", "stack"):
            dim = argument(node, "dim", 0)
            if sum(size > 1 for size in labels.shape) > 1:
                labels = self._tied_over(labels, [dim % labels.ndim])
            elif node.target == "stack" and labels.shape[dim % labels.ndim] > 1:
                self.pin(labels, f"{self.title(node)} makes a dimension of single channels")
        return labels

    def _pay_moves(self, used: Sequence[Ref]) -> None:
        """Pay for the numbers of these values, which are written out to be moved."""
        for ref in used:
            self.pay("moved", sum(one.numel() for one in leaves(self.shapes[ref.node]) if isinstance(one, Tensor)))

    def _still_bare(self, node: Node, used: Sequence[Ref]) -> None:
        """Record that a bare tensor is only repeated for every image here."""
        if node.target not in ("expand", "repeat") or len(used) != 1 or used[0].node not in self._bare:
            return
        before, after = (tuple(self.shapes[name].shape) for name in (used[0].node, node.name))
        if len(before) == len(after) and before[1:] == after[1:] and before[0] == 1:
            self._bare[node.name] = self._bare[used[0].node]

    def _joined_behind(self, node: Node, used: Sequence[Ref]) -> None:
        """Let bare tensors that are joined to values along another dimension have their channels, as tokens have."""
        found = [labels for ref in used if (labels := self._of(ref)) is not None and labels.size > 1]
        along = {d for labels in found for d, size in enumerate(labels.shape) if size > 1}
        if len(along) != 1 or argument(node, "dim", 0) % found[0].ndim in along:
            return
        (dim,) = along
        for ref in used:
            if self._of(ref) is None and ref.node in self._bare and self.shapes[ref.node].shape[dim] == found[0].size:
                owner = self._bare[ref.node]
                atoms = self._record(owner, "follow", found[0].reshape(-1), dim)
                for name in (name for name, other in self._bare.items() if other == owner):
                    self.labels[name] = self._place(atoms, found[0].ndim, dim)

    def _picked(self, node: Node, places: Sequence[Ref]) -> Labels | None:
        """Handle a subscript that holds tensors: which places they name is not known, and may differ by image."""
        for ref in places:
            if ref.node in self._bare:
                self._whole.add(self._bare[ref.node])
        masks = any(self.shapes[ref.node].dtype is torch.bool for ref in places)
        if masks or places[0].node == node.args[0].node or self._of(node.args[0]) is None:
            return None
        self._pin_places(node)
        labels = self._of(node.args[0])
        shape, result = self.shapes[node.args[0].node].shape, self.shapes[node.name].shape
        lying = lying_dims(labels, shape) if labels is not None else ()
        picked = {d for d, part in indexed_dims(node.args[1], len(shape)) if not plain_slice(part)}
        before = all(d < min(picked) for d in lying)  # such dimensions keep their places
        if labels is None or len(lying) != 1 or not before or result[lying[0]] != shape[lying[0]]:
            return None
        return self._place(labels.reshape(-1), len(result), lying[0])

    def _pin_places(self, node: Node) -> None:
        """Tie, or pin, channels that a step selects by position in a way that no cut can preserve."""
        labels = self._of(node.args[0])
        if labels is None:
            return
        if node.target == "getitem":
            picked = [d for d, index in indexed_dims(node.args[1], labels.ndim) if not plain_slice(index)]
        elif node.target in _TAKES_PLACES:
            key, usual = _TAKES_PLACES[node.target]
            dims = argument(node, key, usual)
            picked = [d % labels.ndim for d in (dims if isinstance(dims, tuple | list) else (dims,))]
        elif node.target == "channel_shuffle" or (node.op == "layer" and "Shuffle" in self.title(node)):
            picked = [1]
        else:
            return
        varying = {d for d, size in enumerate(labels.shape) if size > 1}
        if varying - set(picked):
            self._tied_over(labels, [d for d in picked if d in varying])
        elif varying:
            self.pin(labels, f"{self.title(node)} picks channels by their place")
