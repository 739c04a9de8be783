"""Locating the direct way, to compare with: every hidden map is built.

    S[q,p] += max(sum over positions of (the part of output q that comes from input p), 0)

Inputs are unfolded and multiplied with kernels into maps of shape (images, outputs, inputs, positions), as the formula
says; nothing of the library's own way is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def hidden_maps(layer: nn.Module, x: Tensor) -> Tensor:
    """(images, outputs, inputs, positions) of a convolution without groups, or of a linear layer (one position)."""
    if isinstance(layer, nn.Linear):
        return (x.unsqueeze(1) * layer.weight).unsqueeze(3)
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(layer.padding, str)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = columns.reshape(len(x), layer.in_channels, -1, columns.shape[-1])
    return torch.einsum("bikl,oik->boil", columns, layer.weight.flatten(2))


def class_sums(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """S of every convolution and linear layer of a model."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def see(layer: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> None:
            found = hidden_maps(layer, args[0]).sum(3).clamp_min(0).sum(0).double()
            sums[name] = sums[name] + found if name in sums else found

        return see

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers]
    try:
        with torch.inference_mode():
            for x in batches:
                model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sums
