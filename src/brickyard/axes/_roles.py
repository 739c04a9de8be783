"""Steps that treat channels alike, or mix numbers along dimensions that are known: what each leaves of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from brickyard.axes._atoms import DimRecord, Labels, lying_dims
from brickyard.axes._following import Follower
from brickyard.axes._shapes import implicit_dim, many
from brickyard.network._arguments import argument
from brickyard.network._network import Node

_GROUPED = ((4, 4), (4, 3), (3, 4))  # dimensions of maps or patches before and after
_OVER_ONE = ("softmax", "tensor_softmax", "log_softmax", "softmin", "normalize")


class Roles(Follower):
    """The steps whose effect on channels follows from their arguments and the shape of their value."""

    def _normalising_layer(self, node: Node, module: nn.Module, labels: Labels | None, ndim: int) -> Labels | None:
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            dims = range(ndim - len(module.normalized_shape), ndim)
        elif isinstance(module, nn.LocalResponseNorm | nn.Softmax2d):
            dims = range(max(1, ndim - 3) if isinstance(module, nn.Softmax2d) else 1, 2)
        elif isinstance(module, nn.GroupNorm):
            dims = range(1, ndim)
        else:
            dim = implicit_dim(ndim) if module.dim is None else int(module.dim) % ndim  # type: ignore[arg-type]
            dims = range(dim, dim + 1)
        return self._mixed_over(node, labels, dims)

    def _spatial(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        return None if labels is None else self._mixed_over(node, labels, range(2, labels.ndim))

    def _as_often(self, node: Node, labels: Labels | None) -> Any:
        """The same labels for each of the values that a step returns."""
        value = self.shapes[node.name]
        return (labels,) * len(value) if many(value) and labels is not None else labels

    def _reduce(self, node: Node) -> Any:
        return self._as_often(node, self._reduced(node))

    def _reduced(self, node: Node) -> Labels | None:
        labels = self._of(node.args[0])
        if labels is None:
            return None
        dims = self._concrete(argument(node, "dim", -1 if node.target == "kthvalue" else None))
        keep = bool(argument(node, "keepdim", False))
        if isinstance(dims, bool):  # `unbiased` stands where the dimension would
            raise ValueError("a dimension must be a number")
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
        if node.op == "function" and node.target == "local_response_norm":
            return self._mixed_over(node, self._of(node.args[0]), [1])
        if node.op == "function" and node.target in _OVER_ONE:
            ndim = len(self.shapes[node.name].shape)
            dim = argument(node, "dim", 1 if node.target == "normalize" else None)
            dims = [d % ndim for d in ([implicit_dim(ndim)] if dim is None else dim if many(dim) else [dim])]
            return self._mixed_over(node, self._of(node.args[0]), dims)
        self._pin_all(node, f"{self.title(node)} mixes channels")
        labels = self._of(node.args[0])
        return labels if node.target in ("layer_norm", "group_norm", "batch_norm") else None

    _number = _pin

    def _along_dims(self, node: Node) -> Any:
        """Handle a step that mixes numbers along some dimensions, which the result still has."""
        labels = self._of(node.args[0])
        if labels is None:
            return None
        dims = self._mixed_dims(node, labels.ndim)
        return self._as_often(node, self._mixed_over(node, labels, [d % labels.ndim for d in dims]))

    def _mixed_dims(self, node: Node, ndim: int) -> Sequence[int]:
        if node.target in ("tril", "triu"):
            return (-2, -1)
        dim = self._concrete(argument(node, "dim"))
        if dim is not None:
            return dim if many(dim) else (dim,)
        if node.target.endswith(("fft2", "fftn", "fftshift")):
            sizes: Any = argument(node, "s") if not node.target.endswith("shift") else None
            last = 2 if node.target.endswith("2") else len(sizes) if many(sizes) else ndim
            return range(ndim - last, ndim)
        return (-1,)

    def _sample(self, node: Node) -> Labels | None:
        """Handle maps that are read where a grid says, which is the same for all channels."""
        self.pin(self._of(node.args[1]), f"{self.title(node)} reads places from channels")
        return self._spatial(node)

    def _regroup(self, node: Node) -> Labels | None:
        """Handle a step that takes several channels for one with more positions, or the other way round."""
        labels, shape = self._of(node.args[0]), self.shapes[node.args[0].node].shape
        result = self.shapes[node.name].shape
        if labels is None:
            return None
        if (len(shape), len(result)) not in _GROUPED:
            raise ValueError("neither maps nor patches of a batch")
        atoms = self._along(node, labels, shape, 1)
        more = result[1] // shape[1]
        return self._place(np.repeat(atoms, more) if more else self._in_groups(atoms, result[1]), len(result), 1)

    def _halve(self, node: Node) -> Labels | None:
        """Tie the two halves of a dimension, which are joined number by number."""
        labels = self._of(node.args[0])
        if labels is None:
            return None
        given: Any = self.network.layer(node.target).dim if node.op == "layer" else argument(node, "dim", -1)
        dim = int(given) % labels.ndim
        if labels.shape[dim] == 1:
            return labels
        first, second = np.split(labels, 2, axis=dim)
        self.atoms.tie(first, second)
        return self._settled(first)

    def _made(self, node: Node) -> Labels | None:
        """Give a value that is made of sizes channels where it can have them; places in a row have none."""
        shape = self.shapes[node.name].shape
        if node.target != "new_full":
            self._pin_counts(node)
            return None
        long = [d for d, size in enumerate(shape) if d > 0 and size > 1]
        dim = long[0] if len(long) == 1 else 1 if len(shape) > 3 and shape[1] > 1 else None
        sizes = node.args[1]
        others = [size for d, size in enumerate(sizes) if d != dim] if many(sizes) else [sizes]
        self._pin_counts(Node(node.name, node.op, node.target, tuple(others)))
        if dim is None:
            self._open.add(node.name)
            return None
        atoms = self.atoms.fresh(shape[dim])
        self.dims.append(DimRecord(node.name, "zeros", atoms, self.position, dim))
        return self._place(atoms, len(shape), dim)
