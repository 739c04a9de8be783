"""How layers mix channels: one class per kind of layer, which answers everything asked of such a layer.

Every layer here computes `y[q, o] = sum_p sum_k rows[q, p, k] x[p, i]`, where kernel offset k of output position o
meets input position i. A linear layer has one offset; a transposed convolution is a convolution, with its kernel
reversed, of its input spread out with zeros in between.

Nothing here depends on graphs, classes or files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.network._torch_private import padding_around

Dims = Mapping[str, tuple[Literal["out", "in"], ...]]
Config = dict[str, Any]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_PLANE = 1 << 12  # pixels up to which window sums are one matrix product


class Mixing(ABC):
    """Answers questions about one layer that mixes channels.

    In a grouped layer, "inputs" are those of each output's own group.

    Attributes:
        layer: The layer.
        channel_dim: The dimension of its input and output that holds channels.
        linear: Whether it is a linear layer: no kernel, channels last, never grouped.
    """

    channel_dim: ClassVar[int] = 1
    linear: ClassVar[bool] = False

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @classmethod
    @abstractmethod
    def resize(cls, config: Config, out: int, in_: int) -> Config:
        """Constructor arguments for a cut with this many output and input channels."""

    @property
    def groups(self) -> int:
        """How many groups of channels are mixed separately."""
        return 1

    @property
    def by_groups(self) -> bool:
        """Whether the layer is cut by whole groups rather than alike in every group."""
        return False

    @property
    def dims(self) -> Dims:
        """For each tensor, what its leading dimensions index."""
        return {"weight": ("out", "in"), "bias": ("out",)}

    @property
    def rows(self) -> Tensor:
        """The weights, (outputs, inputs, *kernel), which may share the layer's memory."""
        rows: Tensor = self.layer.weight.detach()
        return rows

    def weight_of(self, rows: Tensor) -> Tensor:
        """Convert these rows to the layer's own weight."""
        return rows

    def set_rows(self, rows: Tensor) -> None:
        """Set the layer's weights, in place."""
        self.layer.weight.data.copy_(self.weight_of(rows.reshape(self.rows.shape)))

    @property
    def kernel(self) -> Tensor:
        """The weights, (outputs, inputs, offsets)."""
        rows = self.rows
        return rows.flatten(2) if rows.ndim > 2 else rows.unsqueeze(2)

    @abstractmethod
    def window_sums(self, x: Tensor) -> Tensor:
        """Sums of the layer's input over output positions, one per kernel offset: (B, P, K)."""

    @abstractmethod
    def read_at(self, x: Tensor, sizes: Sequence[int], where: Tensor) -> Tensor:
        """What single outputs read: (G, inputs * K, N).

        Args:
            x: The layer's input.
            sizes: The sizes of its output's dimensions that hold positions.
            where: For each, its number among the positions of all images, image by image (N,).
        """

    @abstractmethod
    def by_output(self, y: Tensor) -> Tensor:
        """The layer's output as (outputs, N)."""

    @abstractmethod
    def pair_flops(self, x: Tensor, y: Tensor, batch: int) -> int:
        """Operations per image of one (output, input) pair, two per multiply-add.

        Args:
            x: The input.
            y: The output; no dimension of it needs to be that of the images.
            batch: How many images they are of.
        """


class Linear(Mixing):
    """A linear layer: every position on its own."""

    channel_dim = -1
    linear = True

    @classmethod
    def resize(cls, config: Config, out: int, in_: int) -> Config:
        return {**config, "out_features": out, "in_features": in_}

    def window_sums(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, x.shape[-1]).sum(1).unsqueeze(2)

    def read_at(self, x: Tensor, sizes: Sequence[int], where: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])[where].T.unsqueeze(0)

    def by_output(self, y: Tensor) -> Tensor:
        return y.reshape(-1, y.shape[-1]).T

    def pair_flops(self, x: Tensor, y: Tensor, batch: int) -> int:
        return 2 * math.prod(y.shape[:-1]) // batch


class _Walk(NamedTuple):
    """Along one dimension, offset k of output o meets input `(o * stride + k * dilation - left) / spread`.

    Attributes:
        out: Output positions.
        left: Zeros before the first input.
        stride: Steps from one output to the next.
        spread: Steps from one input to the next.
    """

    out: int
    left: int
    stride: int
    spread: int = 1


class Convolution(Mixing):
    """A convolution in any number of dimensions."""

    @staticmethod
    def _by_groups(in_channels: int, out_channels: int, groups: int) -> bool:
        """Whether to cut whole groups: many narrow ones, or ones with a single output."""
        return groups > 1 and (groups >= in_channels // groups or groups == out_channels)

    @classmethod
    def resize(cls, config: Config, out: int, in_: int) -> Config:
        groups, width = config["groups"], config["in_channels"] // config["groups"]
        if cls._by_groups(config["in_channels"], config["out_channels"], groups):
            groups = in_ // width
        else:
            in_ *= groups
        return {**config, "out_channels": out, "in_channels": in_, "groups": groups}

    @property
    def groups(self) -> int:
        return int(self.layer.groups)

    @property
    def by_groups(self) -> bool:
        return self._by_groups(self.layer.in_channels, self.layer.out_channels, self.layer.groups)

    @property
    def dims(self) -> Dims:
        return {"weight": ("out",), "bias": ("out",)} if self.by_groups else super().dims  # inputs lie within a group

    def window_sums(self, x: Tensor) -> Tensor:
        if self.layer.padding_mode != "zeros":
            x = self._padded(x)
        walks = [self._walk(d, size) for d, size in enumerate(x.shape[2:])]
        count = len(walks)
        if math.prod(self.layer.kernel_size) == 1 and not any(walk.left for walk in walks):
            met = tuple(slice(0, walk.out * walk.stride, walk.stride) for walk in walks)
            return x[(slice(None), slice(None), *met)].sum(tuple(range(2, 2 + count))).unsqueeze(2)
        visits = [self._visits(d, walk, x) for d, walk in enumerate(walks)]
        if x[0, 0].numel() > _PLANE:
            x = x @ visits[-1].T
            for d in reversed(range(count - 1)):
                x = (visits[d] @ x.flatten(3 + d)).unflatten(3 + d, x.shape[3 + d :])
            return x.flatten(2)
        offsets, places = "abc"[:count], "xyz"[:count]
        each = ",".join(map("".join, zip(offsets, places, strict=True)))
        whole = torch.einsum(f"{each}->{places}{offsets}", *visits).flatten(count).flatten(0, count - 1)  # (pixels, K)
        if x.is_contiguous():
            return x.flatten(2) @ whole
        return (whole.T @ x.movedim(1, -1).flatten(1, -2)).transpose(1, 2).contiguous()  # channels last

    def read_at(self, x: Tensor, sizes: Sequence[int], where: Tensor) -> Tensor:
        field, stride = self._field(x)
        image, *places = torch.unravel_index(where, (len(x), *sizes))
        index = image.unsqueeze(1)  # of every (output, offset), among the positions of the field
        for d, (place, size) in enumerate(zip(places, field.shape[2:], strict=True)):
            offsets = torch.arange(self.layer.kernel_size[d], device=x.device) * self.layer.dilation[d]
            met = (place * stride[d]).unsqueeze(1) + offsets  # (N, kernel)
            index = (index.unsqueeze(2) * size + met.unsqueeze(1)).flatten(1)
        read = field.movedim(1, -1).reshape(-1, field.shape[1])[index.flatten()]  # (N * K, P)
        read = read.reshape(len(where), -1, self.groups, field.shape[1] // self.groups)
        return read.permute(2, 3, 1, 0).flatten(1, 2)

    def by_output(self, y: Tensor) -> Tensor:
        return y.transpose(0, 1).flatten(1)

    def pair_flops(self, x: Tensor, y: Tensor, batch: int) -> int:
        kernel: Sequence[int] = self.layer.kernel_size
        return 2 * math.prod(kernel) * math.prod(y.shape[2:]) * len(y) // batch

    def _padded(self, x: Tensor) -> Tensor:
        mode = "constant" if self.layer.padding_mode == "zeros" else self.layer.padding_mode
        return F.pad(x, padding_around(self.layer), mode=mode)

    def _field(self, x: Tensor) -> tuple[Tensor, Sequence[int]]:
        """What the kernel moves over, and in which steps."""
        return self._padded(x), self.layer.stride

    def _walk(self, d: int, size: int) -> _Walk:
        """Walk along dimension d of an input of this size, already padded unless the padding is zeros."""
        layer = self.layer
        reach = layer.dilation[d] * (layer.kernel_size[d] - 1)
        if layer.padding_mode != "zeros" or layer.padding == "valid":
            before = total = 0
        elif layer.padding == "same":
            before, total = reach // 2, reach
        else:
            before, total = layer.padding[d], 2 * layer.padding[d]
        return _Walk((size + total - reach - 1) // layer.stride[d] + 1, before, layer.stride[d])

    def _visits(self, d: int, walk: _Walk, x: Tensor) -> Tensor:
        """(kernel, size): 1 where a kernel offset meets an input row (or column) at some output position."""
        offset = torch.arange(self.layer.kernel_size[d], device=x.device) * self.layer.dilation[d] - walk.left
        step = torch.arange(x.shape[2 + d], device=x.device) * walk.spread - offset.unsqueeze(1)  # (kernel, size)
        met: Tensor = (step % walk.stride == 0) & (step >= 0) & (step < walk.out * walk.stride)
        return met.to(x.dtype)


class Transposed(Convolution):
    """A transposed convolution in any number of dimensions; a grouped one is cut by whole groups."""

    @staticmethod
    def _by_groups(in_channels: int, out_channels: int, groups: int) -> bool:
        return groups > 1

    @property
    def dims(self) -> Dims:
        return {"weight": ("in",) if self.by_groups else ("in", "out"), "bias": ("out",)}

    @property
    def rows(self) -> Tensor:
        return self.weight_of(self.layer.weight.detach())

    def weight_of(self, rows: Tensor) -> Tensor:
        """Convert (out, in / groups, *kernel) to (in, out / groups, *kernel), or back, with the kernel reversed."""
        found: Tensor = rows.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return found.flip(tuple(range(2, rows.ndim))).contiguous()

    def pair_flops(self, x: Tensor, y: Tensor, batch: int) -> int:
        return super().pair_flops(y, x, batch)  # the kernel is applied at each input position

    def _field(self, x: Tensor) -> tuple[Tensor, Sequence[int]]:
        layer = self.layer
        sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], layer.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in layer.stride))] = x
        edges: list[int] = []
        for d in reversed(range(len(sizes))):  # as F.pad counts them
            left = self._walk(d, x.shape[2 + d]).left
            edges += [left, left + layer.output_padding[d]]
        return F.pad(spread, edges), (1,) * len(sizes)

    def _walk(self, d: int, size: int) -> _Walk:
        layer = self.layer
        reach = layer.dilation[d] * (layer.kernel_size[d] - 1)
        left = reach - layer.padding[d]
        out = (size - 1) * layer.stride[d] + 1 + 2 * left + layer.output_padding[d] - reach
        return _Walk(out, left, 1, layer.stride[d])
