"""Shifted and mirrored copies of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted_and_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image independently, (batch, channels, height, width); uncovered areas are 0."""
    count, size, reach = len(x), x.shape[2:], max(1, x.shape[3] // SHIFT)
    top, left = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator)
    x = windows(F.pad(x, (reach,) * 4), top, left, size)
    mirror = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirror.reshape(-1, 1, 1, 1).to(x.device), x.flip(3), x)


SHIFT = 8  # images are shifted by up to their size divided by this


def with_copies(batches: Sequence[Tensor], copies: int, seed: int) -> list[Tensor]:
    """Return the batches, followed by copies in which every image is shifted independently; edges are reflected.

    `copies` is how many times to use the images, including the originals.
    """
    generator = torch.Generator().manual_seed(seed)
    return [*batches, *(_shifted(batch, generator) for _ in range(copies - 1) for batch in batches)]


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    down, across = height // SHIFT, width // SHIFT
    padded = F.pad(images, (across, across, down, down), mode="reflect")
    top = torch.randint(0, 2 * down + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * across + 1, (count, 1), generator=generator)
    return windows(padded, top, left, (height, width))


def windows(images: Tensor, top: Tensor, left: Tensor, size: Sequence[int]) -> Tensor:
    """Cut a window of `size` from each image, starting at its own row `top` and column `left`, (count, 1) each."""
    count, channels = images.shape[:2]
    rows = (top + torch.arange(size[0])).reshape(count, 1, size[0], 1)
    columns = (left + torch.arange(size[1])).reshape(count, 1, 1, size[1])
    which = torch.arange(count).reshape(count, 1, 1, 1), torch.arange(channels).reshape(1, channels, 1, 1)
    return images[*which, rows, columns]
