"""Layers of a user's own that the library cannot know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        share = torch.sigmoid(x)
        return grad * (share * (1 + x * (1 - share)))


class MemorySwish(nn.Module):
    """EfficientNet's activation with a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return _Swish.apply(x)  # type: ignore[no-any-return]


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.nn.functional.softplus(x))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) > 100000:
            return x
        return torch.relu(x * self.scale)


def scripted_block(channels: int) -> nn.Module:
    """A compiled module with weights and a decision."""
    return torch.jit.script(_Block(channels))  # type: ignore[no-any-return]


class OwnNorm(nn.BatchNorm2d):
    """A subclass of a known layer."""


class StandardConv(nn.Conv2d):
    """Weight standardisation, as Big Transfer writes it."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        w = (w - m) / torch.sqrt(v + 1e-10)
        return nn.functional.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SameConv(nn.Conv2d):
    """Padding computed from the size of the image, as TensorFlow does it."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (1, 1, 1, 1))
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class LayerNorm2d(nn.LayerNorm):
    """torchvision's layer norm over channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Hooked(nn.Module):
    """A module that only passes on what it is given by keyword."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.inner(x) * scale


class SqueezeArgs(nn.Module):
    """A module that takes two values and returns two."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a * torch.sigmoid(b)
