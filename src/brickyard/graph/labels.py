"""Follow channels through a network: which position of which tensor belongs to which channel.

Every channel that a layer writes is an *atom*. A value's labels are an integer array with as many dimensions
as the value, of size one along the dimensions where the label does not change: (1, C, 1, 1) after a
convolution. Operations that only move numbers (flatten, concatenate, slice, permute, chunk ...) are applied
to the labels themselves, so they need no rules of their own. Adding ties atoms together. What is not
understood pins its atoms: they are kept whole, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.graph.atoms import Atoms, DimRecord, DimRole, Labels, PinRecord, compress, indexed_dims
from brickyard.layers.functions import FUNCTIONS
from brickyard.layers.modules import find_type, layer_role
from brickyard.network import Network, Node, Ref, map_refs

__all__ = ["Labeller"]


class Labeller:
    """Runs over a network's steps once; afterwards `dims`, `pins` and `labels` hold what was found.

    Args:
        network: The network.
        shapes: The value of every step on an example, with tensors replaced by meta tensors.
    """

    def __init__(self, network: Network, shapes: dict[str, Any]) -> None:
        self.network = network
        self.shapes = shapes
        self.atoms = Atoms()
        self.labels: dict[str, Any] = {}
        self.dims: list[DimRecord] = []
        self.pins: list[PinRecord] = []
        self._bare: dict[str, str] = {}  # step -> bare tensor's dotted name
        self._whole: set[str] = set()  # bare tensors that are used in a way that forbids slicing them
        self._layer_dims: dict[str, dict[str, Labels]] = {}
        for position, node in enumerate(network.nodes):
            self.position = position
            self.labels[node.name] = self._label(node)
        for record in self.dims:
            if record.owner in self._whole:
                self.pin(record.atoms, f"tensor {record.owner!r} is also used where it cannot be sliced")

    # -- helpers ---------------------------------------------------------------------------------------

    def _concrete(self, value: Any) -> Any:
        return map_refs(value, lambda ref: self.shapes[ref.node])

    def _of(self, value: Any) -> Labels | None:
        found = self.labels.get(value.node) if isinstance(value, Ref) else None
        return found if isinstance(found, np.ndarray) else None

    def pin(self, labels: Labels | None, reason: str) -> None:
        """Keep these atoms whole."""
        if labels is not None and labels.size:
            self.pins.append(PinRecord(np.unique(labels), reason))

    def _pin_all(self, node: Node, reason: str) -> None:
        def visit(ref: Ref) -> None:
            if ref.node in self._bare:
                self._whole.add(self._bare[ref.node])
            found = self.labels.get(ref.node)
            for item in found if isinstance(found, tuple) else (found,):
                if isinstance(item, np.ndarray):
                    self.pin(item, reason)

        map_refs((node.args, dict(node.kwargs)), visit)

    def _title(self, node: Node) -> str:
        if node.op == "layer":
            kind = type(self.network.layer(node.target)).__name__
            return f"{kind} {node.target!r}"
        return f"{node.target} ({node.name})" if node.target in FUNCTIONS else node.target

    def _along(self, node: Node, labels: Labels | None, shape: Sequence[int], dim: int) -> Labels:
        """Atoms along one dimension; unknown ones are new and pinned, mixed ones are pinned."""
        dim = dim % len(shape)
        reason = f"{self._title(node)} reads channels that could not be followed"
        if labels is not None and all(size == 1 for d, size in enumerate(labels.shape) if d != dim):
            return np.broadcast_to(labels.reshape(-1), (shape[dim],)).copy()
        self.pin(labels, reason)
        atom = self.atoms.fresh(1)
        self.pin(atom, reason)
        return np.repeat(atom, shape[dim])

    @staticmethod
    def _place(atoms: Labels, ndim: int, dim: int) -> Labels:
        shape = [1] * ndim
        shape[dim % ndim] = len(atoms)
        return atoms.reshape(shape)

    def _record(self, owner: str, role: DimRole, atoms: Labels, dim: int = 0) -> Labels:
        """Note a dimension; a layer that runs twice ties the atoms of both runs."""
        known = self._layer_dims.setdefault(owner, {})
        key = f"{role}{dim}"
        if key in known:
            self.atoms.tie(known[key], atoms)
        else:
            known[key] = atoms
        self.dims.append(DimRecord(owner, role, atoms, self.position, dim))
        return known[key]

    # -- one step --------------------------------------------------------------------------------------

    def _label(self, node: Node) -> Any:
        if node.op == "input":
            channels = self.atoms.fresh(self.shapes[node.name].shape[1])
            self.pin(channels, "the image input is never cut")
            self._record(node.name, "out", channels)
            return self._place(channels, 4, 1)
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
        if not any(isinstance(item, Tensor) for item in _leaves(self.shapes[node.name])):
            return None  # sizes and other plain numbers
        handler = getattr(self, f"_{role}")
        return handler(node)

    def _tensor(self, node: Node) -> Labels | None:
        """A bare tensor with one long dimension has one entry a channel; others wait for what they meet."""
        self._bare[node.name] = node.target
        shape = self.shapes[node.name].shape
        long = [d for d, size in enumerate(shape) if size > 1]
        if len(long) != 1:
            return None
        atoms = self._record(node.target, "follow", self.atoms.fresh(shape[long[0]]), long[0])
        return self._place(atoms, len(shape), long[0])

    def _layer(self, node: Node) -> Any:
        module = self.network.layer(node.target)
        entry = find_type(module)
        assert entry is not None
        role = layer_role(module)
        x = node.args[0]
        labels, shape = self._of(x), self.shapes[x.node].shape
        out_shape = self.shapes[node.name].shape
        if role == "mix":
            read = self._along(node, labels, shape, entry.channel_dim)
            self._record(node.target, "in", read)
            written = self._record(node.target, "out", self.atoms.fresh(out_shape[entry.channel_dim]))
            return self._place(written, len(out_shape), entry.channel_dim)
        if role == "follow":
            return self._follow(node, module, labels, shape, out_shape)
        if role == "pin":
            return self._pinning_layer(node, module, labels, out_shape)
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
        if isinstance(module, nn.Conv2d):
            self._record(node.target, "through", atoms)
            atoms = np.repeat(atoms, module.out_channels // module.in_channels)
        self._record(node.target, "follow", atoms)
        return self._place(atoms, len(out_shape), 1)

    def _pinning_layer(
        self, node: Node, module: nn.Module, labels: Labels | None, out_shape: Sequence[int]
    ) -> Labels | None:
        if isinstance(module, nn.Conv2d):
            reason = f"{self._title(node)} has {module.groups} groups"
            self.pin(labels, reason)
            written = self.atoms.fresh(module.out_channels)
            self.pin(written, reason)
            return self._place(written, len(out_shape), 1)
        self.pin(labels, f"{self._title(node)} mixes the channels of its input")
        return labels

    # -- roles -----------------------------------------------------------------------------------------

    def _pointwise(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        for extra in (*node.args[1:], *node.kwargs.values()):
            if isinstance(extra, Ref):  # a number computed from sizes may change with the cut
                self.pin(labels, f"{self._title(node)} uses a computed number")
        return labels

    def _binary(self, node: Node) -> Labels | None:
        operands = list(node.args[:2])
        if node.kwargs or len(node.args) > 2:
            operands += [*node.args[2:], *node.kwargs.values()]
        tensors = [x for x in operands if isinstance(x, Ref) and isinstance(self.shapes[x.node], Tensor)]
        if any(isinstance(x, Ref) and not isinstance(self.shapes[x.node], Tensor) for x in operands):
            self._pin_all(node, f"{self._title(node)} uses a computed number")
        ndim = len(self.shapes[node.name].shape)
        varying = {
            ndim - labels.ndim + d
            for x in tensors
            if (labels := self._of(x)) is not None
            for d, size in enumerate(labels.shape)
            if size > 1 or (self.shapes[x.node].shape[d] > 1 and _is_channel(labels, d))
        }
        result: Labels | None = None
        for x in tensors:
            result = self._join(node, x, result, varying, ndim)
        return result

    def _join(self, node: Node, x: Ref, result: Labels | None, varying: set[int], ndim: int) -> Labels | None:
        """Add one operand to what the others gave."""
        shape = self.shapes[x.node].shape
        offset = ndim - len(shape)
        labels = self._of(x)
        touching = [d for d in varying if d >= offset and shape[d - offset] > 1]
        if labels is not None:
            labels = labels.reshape((1,) * offset + labels.shape)
            if varying and not touching:  # one channel spread over many
                self.pin(labels, f"{self._title(node)} spreads one channel over many")
                return result
            if result is None:
                return labels
            if {d for d in range(ndim) if labels.shape[d] > 1} - {
                d for d in range(ndim) if result.shape[d] > 1
            } and max(result.shape) > 1:
                reason = f"{self._title(node)} joins channels that lie along different dimensions"
                self.pin(labels, reason)
                self.pin(result, reason)
                return result
            self.atoms.tie(result, labels)
            return labels if labels.size > result.size else result
        if not touching:
            return result
        if x.node in self._bare and len(varying) == 1:
            dim = touching[0]
            other = next(found for y in _tensor_refs(node) if (found := self._of(y)) is not None)
            atoms = np.broadcast_to(other.reshape(-1), (shape[dim - offset],)).copy()
            self._record(self._bare[x.node], "follow", atoms, dim - offset)
            return result
        self._pin_all(node, f"{self._title(node)} meets channels that could not be followed")
        return result

    def _spatial(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        if labels is not None and any(size > 1 for size in labels.shape[2:]):
            self.pin(labels, f"{self._title(node)} mixes channels that lie along height or width")
            return None
        return labels

    def _move(self, node: Node) -> Any:
        """Do to the labels what the step does to the numbers."""
        source = self._of(node.args[0]) if isinstance(node.args[0], Ref) else None
        if source is None and isinstance(node.args[0], Ref) and isinstance(self.labels.get(node.args[0].node), tuple):
            return self.labels[node.args[0].node][self._concrete(node.args[1])]
        used = [ref for ref in _tensor_refs(node) if isinstance(self.shapes[ref.node], Tensor)]
        if all(self._of(ref) is None for ref in used):
            return None

        def expanded(ref: Ref) -> Any:
            value = self.shapes[ref.node]
            if not isinstance(value, Tensor):
                return value
            labels = self._of(ref)
            if labels is None:
                labels = self.atoms.fresh(1)
                self.pin(labels, f"{self._title(node)} uses channels that could not be followed")
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
            return tuple(self._one_dim(node, item) for item in moved)
        return self._one_dim(node, moved)

    def _pin_places(self, node: Node) -> None:
        """Pin channels that a step picks by their place in a way that no cut can preserve."""
        labels = self._of(node.args[0])
        if labels is None:
            return
        varying = {d for d, size in enumerate(labels.shape) if size > 1}
        if node.target == "getitem":
            picked = {d for d, index in indexed_dims(node.args[1], labels.ndim) if not _plain_slice(index)}
        elif node.target in ("roll", "unbind"):
            dims = node.args[-1] if len(node.args) > 1 else node.kwargs.get("dims", node.kwargs.get("dim", 0))
            picked = {d % labels.ndim for d in (dims if isinstance(dims, tuple | list) else (dims,))}
        else:
            return
        if varying & picked:
            self.pin(labels, f"{self._title(node)} picks channels by their place")

    def _one_dim(self, node: Node, moved: Tensor) -> Labels:
        """Compress labels; channels spread over several dimensions are pinned."""
        labels = compress(moved.numpy())
        spread = [d for d, size in enumerate(labels.shape) if size > 1]
        if len(spread) > 1:
            self.pin(labels, f"{self._title(node)} spreads channels over several dimensions")
        return labels

    def _reduce(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        if labels is None:
            return None
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
        dims = self._concrete(dims)
        if dims is None or isinstance(dims, torch.dtype):
            reduced = list(range(labels.ndim))
        else:
            reduced = [d % labels.ndim for d in (dims if isinstance(dims, tuple | list) else (dims,))]
        if any(labels.shape[d] > 1 or (d == 1 and labels.ndim == 4) for d in reduced):
            self.pin(labels, f"{self._title(node)} mixes channels")
            return None
        return labels if keep else labels.reshape([s for d, s in enumerate(labels.shape) if d not in reduced])

    def _pad(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        if labels is None:
            return None
        shape = self.shapes[node.args[0].node].shape
        amounts = list(self._concrete(node.args[1] if len(node.args) > 1 else node.kwargs["pad"]))
        for back, (left, right) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
            dim = labels.ndim - 1 - back
            if (labels.shape[dim] == 1 and dim != 1) or (left, right) == (0, 0):
                continue
            mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
            value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value", 0)
            one_dim = all(size == 1 for d, size in enumerate(labels.shape) if d != dim)
            if mode != "constant" or value not in (0, None) or min(left, right) < 0 or not one_dim:
                self.pin(labels, f"{self._title(node)} pads channels with something else than zeros")
                return None
            inner = np.broadcast_to(labels.reshape(-1), (shape[dim],))
            zeros = self.atoms.fresh(left + right)
            self.dims.append(DimRecord(node.name, "zeros", zeros, self.position, dim))
            labels = self._place(np.concatenate([zeros[:left], inner, zeros[left:]]), labels.ndim, dim)
        return labels

    def _norm(self, node: Node) -> Labels | None:
        """Functional batch norm: its tensors follow the channels."""
        x, *tensors = node.args
        atoms = self._along(node, self._of(x), self.shapes[x.node].shape, 1)
        for ref in (*tensors, *node.kwargs.values()):
            if isinstance(ref, Ref) and ref.node in self._bare:
                self._record(self._bare[ref.node], "follow", atoms, 0)
            elif isinstance(ref, Ref) and isinstance(self.shapes[ref.node], Tensor):
                self.pin(atoms, f"{self._title(node)} has computed parameters")
        return self._place(atoms, len(self.shapes[x.node].shape), 1)

    def _pin(self, node: Node) -> Labels | None:
        self._pin_all(node, f"{self._title(node)} mixes channels")
        labels = self._of(node.args[0])
        same = labels is not None and self.shapes[node.name].shape == self.shapes[node.args[0].node].shape
        return labels if same and node.target.endswith(("softmax", "norm", "normalize")) else None

    _number = _pin


def _plain_slice(index: Any) -> bool:
    return isinstance(index, slice) and index.step in (None, 1)


def _is_channel(labels: Labels, dim: int) -> bool:
    """Whether a label array of size one along `dim` still has its channels there (one channel in all)."""
    return dim == 1 and labels.size == 1


def _tensor_refs(node: Node) -> list[Ref]:
    found: list[Ref] = []
    map_refs((node.args, dict(node.kwargs)), found.append)
    return found


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
