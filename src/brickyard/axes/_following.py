"""What following channels through a network needs at every step: the atoms, ties, pins and records so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from brickyard.axes._atoms import Atoms, DimRecord, DimRole, Labels, PinRecord, Purse, lying_dims, settled
from brickyard.axes._shapes import same_numbers, tensor_refs
from brickyard.network._functions import FUNCTIONS
from brickyard.network._network import Network, Node, Ref, map_refs


class Follower:
    """Holds what is known of a network's channels while its steps are visited.

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
        purse: What it may cost, or None for no limit.
    """

    def __init__(
        self,
        network: Network,
        shapes: dict[str, Any],
        other: dict[str, Any] | None = None,
        purse: Purse | None = None,
    ) -> None:
        self.network = network
        self.shapes = shapes
        self._other = shapes if other is None else other
        self.by_batch = {name for name, value in shapes.items() if not same_numbers(value, self._other[name])}
        self.purse = purse
        self.atoms = Atoms(purse)
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
        self._open: set[str] = set()  # made values without channels yet, which take those that they meet
        self._whole: set[str] = set()  # bare tensors whose use forbids slicing them
        self._layer_dims: dict[str, dict[str, Labels]] = {}
        self.position = 0

    def pay(self, what: str, count: int) -> None:
        """Take so many atoms, labels, ties or moved numbers from what following channels may cost."""
        if self.purse is not None:
            self.purse.pay(what, count)

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
        """Pin what a number counts that must not change with a cut."""
        reason = f"{self.title(node)} uses a number computed from a count of channels"
        for name in (ref.node for ref in tensor_refs(node) if ref.node in self.counts):
            self.apart.add(self._step)  # it counts the channels of all parts that lie side by side
            for labels in self._counted[name]:
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
        self.pay("labels", len(atoms))
        known = self._layer_dims.setdefault(owner, {})
        key = f"{role}{dim}"
        if key in known:
            self.atoms.tie(known[key], atoms)
        else:
            known[key] = atoms
        self.dims.append(DimRecord(owner, role, atoms, self.position, dim))
        return known[key]
