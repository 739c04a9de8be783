"""How much each input channel of a layer contributes to each of its output channels.

This is the paper's relative contribution (its section 3.1), without ever building the hidden maps.

The sum of a hidden map over its positions is linear in the kernel: `s[b,q,p] = sum_k c[q,p,k] U[b,p,k]`, where
`U[b,p,k]` is the sum of the padded input over the positions that kernel offset k visits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.errors import SurgeryError

__all__ = ["contribution_sums", "contributions", "window_sums"]

_BLOCK = 1 << 22  # numbers held at once in a (channels, images, outputs) block


def window_sums(module: nn.Module, x: Tensor) -> Tensor:
    """Sums of a layer's input over output positions, one a kernel offset.

    Args:
        module: A convolution or linear layer.
        x: Its input, (B, P, H, W) or (B, ..., P).

    Returns:
        U of shape (B, P, K): K is the kernel's height times width, 1 for a linear layer.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(x.shape[0], -1, x.shape[-1]).sum(1).unsqueeze(2)
    if not isinstance(module, nn.Conv2d):
        raise SurgeryError(f"contributions are defined for convolutions and linear layers, not for {module}")
    left = _padding(module)
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        left = (0, 0)
    out = [_out_size(module, d, x.shape[2 + d]) for d in (0, 1)]
    rows, columns = (_visits(module, d, x.shape[2 + d], out[d], left[d], x) for d in (0, 1))
    sums = rows @ (x @ columns.T)  # (B, P, kh, kw)
    return sums.flatten(2)


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    """Zeros above and to the left of the image."""
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return 0, 0
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return total[0] // 2, total[1] // 2
    return module.padding[0], module.padding[1]


def _out_size(module: nn.Conv2d, d: int, size: int) -> int:
    reach = module.dilation[d] * (module.kernel_size[d] - 1)
    if module.padding_mode != "zeros" or module.padding == "valid":
        padded = size
    elif module.padding == "same":
        padded = size + reach
    else:
        padded = size + 2 * int(module.padding[d])
    return (padded - reach - 1) // module.stride[d] + 1


def _visits(module: nn.Conv2d, d: int, size: int, out: int, left: int, like: Tensor) -> Tensor:
    """(kernel, size): 1 where a kernel offset meets an input row (or column) at some output position."""
    offset = torch.arange(module.kernel_size[d], device=like.device) * module.dilation[d] - left
    step = torch.arange(size, device=like.device) - offset.unsqueeze(1)  # (kernel, size)
    stride = module.stride[d]
    return ((step % stride == 0) & (step >= 0) & (step < out * stride)).to(like.dtype)


def contributions(module: nn.Module, x: Tensor) -> Tensor:
    """Summed hidden maps of each image, (B, Q, P / groups): positions summed, nothing clamped, no bias.

    Summed over p they are the layer's own output without bias, summed over its positions. For tests and small
    cases: memory is B * Q * P numbers.
    """
    maps = [torch.einsum("bpk,qpk->bqp", sums, kernel) for sums, kernel in _groups(module, x)]
    return torch.cat(maps, 1)


def contribution_sums(module: nn.Module, x: Tensor) -> Tensor:
    """`S[q,p]`: the clamped contributions, summed over a batch of images of one class.

    Args:
        module: A convolution or linear layer.
        x: Its input on a batch, (B, P, H, W) or (B, ..., P).

    Returns:
        S of shape (Q, P / groups) in float64: in a grouped convolution, of the inputs of each output's own group.
        Memory beyond it is bounded by a fixed block.
    """
    return torch.cat([_clamped(sums, kernel) for sums, kernel in _groups(module, x)])


def _groups(module: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each group of a layer: window sums (B, P / groups, K), and its kernel (Q / groups, P / groups, K)."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    sums, kernel = window_sums(module, x), _kernel(module)
    return list(zip(sums.chunk(groups, 1), kernel.chunk(groups, 0), strict=True))


def _clamped(sums: Tensor, kernel: Tensor) -> Tensor:
    images, inputs, offsets = sums.shape
    outputs = kernel.shape[0]
    if offsets == 1:  # max(w u, 0) = max(w, 0) max(u, 0) + max(-w, 0) max(-u, 0)
        weight, total = kernel[:, :, 0].double(), sums[:, :, 0]
        positive = total.clamp_min(0).sum(0, dtype=torch.float64)
        negative = (-total).clamp_min(0).sum(0, dtype=torch.float64)
        return weight.clamp_min(0) * positive + (-weight).clamp_min(0) * negative
    result = torch.empty(outputs, inputs, dtype=torch.float64, device=sums.device)
    block = max(1, _BLOCK // max(1, images * outputs))
    for start in range(0, inputs, block):
        part = slice(start, start + block)
        maps = torch.bmm(sums[:, part].transpose(0, 1), kernel[:, part].permute(1, 2, 0))  # (p, B, Q)
        result[:, part] = maps.clamp_min_(0).sum(1, dtype=torch.float64).T
    return result


def _kernel(module: nn.Module) -> Tensor:
    weight = _weight(module).detach()
    return weight.flatten(2) if weight.ndim == 4 else weight.unsqueeze(2)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
