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
    Atoms,
    DimRecord,
    DimRole,
    Labels,
    PinRecord,
    compress,
    indexed_dims,
    lying_dims,
    settled,
)
from brickyard.axes._shapes import (
    arranged,
    fits,
    has_tensors,
    implicit_dim,
    leaves,
    letters,
    many,
    only_moved,
    plain_slice,
    same_numbers,
    tensor_refs,
)
from brickyard.network._arguments import argument
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import find_mixing, layer_role, mixing_of
from brickyard.network._network import Network, Node, Ref, map_refs, refs


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


class Labeller:
    """Runs over a network's steps once; afterwards its attributes hold the results.

    Attributes:
        atoms: The channels, and their ties.
        labels: By step: the labels of its value, a tuple of them, or None.
        dims: The tensor dimensions that are cut together with their atoms.
        pins: Atoms that are kept whole, and why.
        apart: Steps that treat channels of different networks, laid side by side, differently than alone.
        sums: By step: labels of values whose channels the step sums, counting dropped ones as zeros.
        counts: Steps whose value is a number computed from a count of channels.
        by_batch: Steps whose value is a number that changes with the size of the batch.

    Args:
        network: The network.
        shapes: The value of every step on an example, with tensors replaced by meta tensors.
        other: The same on an example of another batch size.
    """

    def __init__(self, network: Network, shapes: dict[str, Any], other: dict[str, Any] | None = None) -> None:
        self.network = network
        self.shapes = shapes
        self._other = shapes if other is None else other
        self.by_batch = {name for name, value in shapes.items() if not same_numbers(value, self._other[name])}
        self.atoms = Atoms()
        self.labels: dict[str, Any] = {}
        self.dims: list[DimRecord] = []
        self.pins: list[PinRecord] = []
        self.apart: set[str] = set()
        self.sums: dict[str, Labels] = {}
        self.counts: set[str] = set()
        self._counted: dict[str, list[Labels]] = {}  # such a step -> labels of the values whose sizes it counts
        self._step = self._line = ""
        self._size_of: dict[str, str] = {}  # step that returns all sizes of a value -> the value
        self._bare: dict[str, str] = {}  # step -> bare tensor's dotted name
        self._whole: set[str] = set()  # bare tensors whose use forbids slicing them
        self._layer_dims: dict[str, dict[str, Labels]] = {}
        for position, node in enumerate(network.nodes):
            self.position, self._step, self._line = position, node.name, node.line
            self.labels[node.name] = self._followed(node)
        self._step = self._line = ""
        self._tie_spread()
        for record in self.dims:
            if record.owner in self._whole:
                self.pin(record.atoms, f"tensor {record.owner!r} is also used where it cannot be sliced")

    # -- helpers ---------------------------------------------------------------------------------------

    def _concrete(self, value: Any) -> Any:
        return map_refs(value, lambda ref: self.shapes[ref.node])

    def _of(self, value: Any) -> Labels | None:
        found = self.labels.get(value.node) if isinstance(value, Ref) else None
        return self._settled(found) if isinstance(found, np.ndarray) else None

    def _settled(self, labels: Labels) -> Labels:
        """Drop the dimensions along which the labels are tied by now."""
        return settled(labels, self.atoms.roots)

    def _tied_over(self, labels: Labels, dims: Sequence[int]) -> Labels:
        """Tie along some dimensions; the result varies along the others."""
        for dim in dims:
            first = labels.take([0], axis=dim)
            if labels.shape[dim] > 1:
                self.atoms.tie(first, labels)
            labels = first
        return labels

    def _tie_spread(self) -> None:
        """Tie values whose channels are spread over several dimensions, until each lies along one."""
        spread = True
        while spread:
            spread = False
            for value in self.labels.values():
                for labels in value if isinstance(value, tuple) else (value,):
                    if isinstance(labels, np.ndarray) and labels.size > max(labels.shape):
                        found = self._settled(labels)
                        dims = sorted(range(found.ndim), key=lambda d: -found.shape[d])
                        if found.shape[dims[1]] > 1:
                            self._tied_over(found, dims[1:])
                            spread = True

    def pin(self, labels: Labels | None, reason: str) -> None:
        if labels is not None and labels.size:
            self.pins.append(PinRecord(np.unique(labels), reason, self._line))
            self.apart.add(self._step)

    def _pin_all(self, node: Node, reason: str) -> None:
        def visit(ref: Ref) -> None:
            if ref.node in self._bare:
                self._whole.add(self._bare[ref.node])
            found = self.labels.get(ref.node)
            for item in found if isinstance(found, tuple) else (found,):
                if isinstance(item, np.ndarray):
                    self.pin(item, reason)

        map_refs((node.args, dict(node.kwargs)), visit)

    def _pin_counts(self, node: Node) -> None:
        """Pin what a number counts if that number must not change with the cut."""
        counts = [ref.node for ref in tensor_refs(node) if ref.node in self.counts]
        if not counts:
            return
        reason = f"{self.title(node)} uses a number computed from a count of channels"
        self._pin_all(node, reason)
        for labels in (labels for name in counts for labels in self._counted[name]):
            self.pin(labels, reason)

    def _counts(self, node: Node, *labels: Labels) -> None:
        self.counts.add(node.name)
        self._counted.setdefault(node.name, []).extend(labels)

    def title(self, node: Node) -> str:
        """What reasons call a step."""
        if node.op == "layer":
            kind = type(self.network.layer(node.target)).__name__
            return f"{kind} {node.target!r}"
        return f"{node.target} ({node.name})" if node.target in FUNCTIONS else node.target

    def _along(self, node: Node, labels: Labels | None, shape: Sequence[int], dim: int) -> Labels:
        """Atoms along one dimension, tied along all others; unknown ones are new and pinned."""
        dim = dim % len(shape)
        if labels is not None and (labels.size == 1 or labels.shape[dim] > 1):
            labels = self._tied_over(labels, [d for d in range(labels.ndim) if d != dim])
            return np.broadcast_to(labels.reshape(-1), (shape[dim],)).copy()
        reason = f"{self.title(node)} reads channels that could not be followed"
        self.pin(labels, reason)
        atom = self.atoms.fresh(1)
        self.pin(atom, reason)
        return np.repeat(atom, shape[dim])

    def _mixed_over(self, node: Node, labels: Labels | None, dims: Sequence[int]) -> Labels | None:
        """For a step that mixes numbers along some dimensions, tie along them, or pin channels that lie there alone."""
        if labels is None:
            return None
        lying = lying_dims(labels, self.shapes[node.args[0].node].shape)
        inside = [d for d in lying if d in dims]
        if len(inside) < len(lying):
            return self._tied_over(labels, inside)
        if inside:
            self.pin(labels, f"{self.title(node)} mixes channels")
        return labels

    def _in_groups(self, atoms: Labels, groups: int) -> Labels:
        """Tie the atoms within each of several groups; return one per group."""
        rows = atoms.reshape(groups, -1)
        self.atoms.tie(rows[:, :1], rows)
        return rows[:, 0]

    def _across_groups(self, atoms: Labels, groups: int) -> Labels:
        """Tie the atoms at the same position of every group; return those of one group."""
        rows = atoms.reshape(groups, -1)
        self.atoms.tie(rows[:1], rows)
        return rows[:1].reshape(-1)

    @staticmethod
    def _place(atoms: Labels, ndim: int, dim: int) -> Labels:
        shape = [1] * ndim
        shape[dim % ndim] = len(atoms)
        return atoms.reshape(shape)

    def _record(self, owner: str, role: DimRole, atoms: Labels, dim: int = 0) -> Labels:
        """Record a dimension; a layer that runs twice ties the atoms of both runs."""
        known = self._layer_dims.setdefault(owner, {})
        key = f"{role}{dim}"
        if key in known:
            self.atoms.tie(known[key], atoms)
        else:
            known[key] = atoms
        self.dims.append(DimRecord(owner, role, atoms, self.position, dim))
        return known[key]

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
        found = getattr(self, f"_{role}")(node)
        if found is None and node.name not in self.apart:
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

    def _normalising_layer(self, node: Node, module: nn.Module, labels: Labels | None, ndim: int) -> Labels | None:
        if isinstance(module, nn.LayerNorm):
            dims = range(ndim - len(module.normalized_shape), ndim)
        elif isinstance(module, nn.GroupNorm):
            dims = range(1, ndim)
        else:
            dim = implicit_dim(ndim) if module.dim is None else int(module.dim) % ndim  # type: ignore[arg-type]
            dims = range(dim, dim + 1)
        return self._mixed_over(node, labels, dims)

    # -- roles -----------------------------------------------------------------------------------------

    def _pointwise(self, node: Node) -> Labels | None:
        tensors = [ref for ref in tensor_refs(node) if isinstance(self.shapes[ref.node], Tensor)]
        self._pin_counts(node)
        return self._meeting(node, tensors)

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

    def _spatial(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        return None if labels is None else self._mixed_over(node, labels, range(2, labels.ndim))

    def _move(self, node: Node) -> Any:
        """Apply the step to the labels as it applies to the numbers."""
        if node.target == "getitem" and isinstance(self.labels.get(refs(node)[0]), tuple):
            return self.labels[node.args[0].node][self._concrete(node.args[1])]
        used = [ref for ref in tensor_refs(node) if has_tensors(self.shapes[ref.node])]
        if node.target == "getitem" and len(used) > 1:
            return self._picked(node, used[1:])
        if node.target in ("expand_as", "reshape_as", "view_as"):
            used = used[:1]  # the other one only provides its shape
        if all(self.labels.get(ref.node) is None for ref in used):
            return None

        def expanded(ref: Ref) -> Any:
            value = self.shapes[ref.node]
            if isinstance(value, tuple | list) and has_tensors(value):
                found = self.labels.get(ref.node) or [None] * len(value)
                return [whole(labels, item) for labels, item in zip(found, value, strict=True)]
            return whole(self._of(ref), value) if isinstance(value, Tensor) else value

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
        if node.op == "layer":
            moved = self.network.layer(node.target)(*args, **kwargs)
        else:
            moved = FUNCTIONS[node.target].call(*args, **kwargs)
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
        elif node.target in ("roll", "unbind"):
            dims = argument(node, "dims" if node.target == "roll" else "dim", 0)
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

    def _reduce(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        if labels is None:
            return None
        dims, keep = self._concrete(argument(node, "dim")), bool(argument(node, "keepdim", False))
        if dims is None or dims == () or dims == []:
            reduced = list(range(labels.ndim))
        else:
            reduced = [d % labels.ndim for d in (dims if isinstance(dims, tuple | list) else (dims,))]
        lying = lying_dims(labels, self.shapes[node.args[0].node].shape)
        inside = [d for d in lying if d in reduced]
        if len(inside) < len(lying):
            labels = self._tied_over(labels, inside)
        elif inside and node.target in ("mean", "sum", "mean_of"):
            self.apart.add(node.name)
            self.sums[node.name] = labels
            return None
        elif inside:
            self.pin(labels, f"{self.title(node)} mixes channels")
            return None
        return labels if keep else labels.reshape([s for d, s in enumerate(labels.shape) if d not in reduced])

    def _pad(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        if labels is None:
            return None
        shape = self.shapes[node.args[0].node].shape
        amounts = list(self._concrete(argument(node, "pad")))
        for back, (left, right) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
            dim = labels.ndim - 1 - back
            if (labels.shape[dim] == 1 and dim != 1) or (left, right) == (0, 0):
                continue
            mode, value = argument(node, "mode", "constant"), argument(node, "value", 0)
            one_dim = all(size == 1 for d, size in enumerate(labels.shape) if d != dim)
            if mode != "constant" or value not in (0, None) or min(left, right) < 0 or not one_dim:
                self.pin(labels, f"{self.title(node)} pads channels with something else than zeros")
                return None
            inner = np.broadcast_to(labels.reshape(-1), (shape[dim],))
            zeros = self.atoms.fresh(left + right)
            self.dims.append(DimRecord(node.name, "zeros", zeros, self.position, dim))
            labels = self._place(np.concatenate([zeros[:left], inner, zeros[left:]]), labels.ndim, dim)
        return labels

    def _pin(self, node: Node) -> Labels | None:
        if node.op == "function" and node.target in ("softmax", "tensor_softmax", "log_softmax", "normalize"):
            ndim = len(self.shapes[node.name].shape)
            dim = argument(node, "dim", 1 if node.target == "normalize" else None)
            dims = [d % ndim for d in ([implicit_dim(ndim)] if dim is None else dim if many(dim) else [dim])]
            return self._mixed_over(node, self._of(node.args[0]), dims)
        self._pin_all(node, f"{self.title(node)} mixes channels")
        labels = self._of(node.args[0])
        return labels if node.target in ("layer_norm", "group_norm", "batch_norm") else None

    _number = _pin
