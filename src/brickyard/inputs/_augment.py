"""Shifted, mirrored and mixed copies of images."""

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


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image of a batch independently, then mix half of them with others of the batch.

    Edges are reflected. One draw decides for the batch between mixup (Zhang et al., 2018: a weighted mean that keeps
    at least half of the image) and cutmix (Yun et al., 2019: a rectangle of another image, its area uniform in [0, 1]).
    """
    x = _shifted(images, generator)
    mirror = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirror.reshape(-1, 1, 1, 1).to(x.device), x.flip(3), x)
    half = len(x) // 2
    cut = bool(torch.rand((), generator=generator) < 0.5)
    return torch.cat([(_cutmix if cut else _mixup)(x[:half], generator), x[half:]])


def _mixup(images: Tensor, generator: torch.Generator) -> Tensor:
    other = images[torch.randperm(len(images), generator=generator)]
    share = 0.5 + 0.5 * torch.rand((len(images), 1, 1, 1), generator=generator).to(images)
    return share * images + (1 - share) * other


def _cutmix(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    other = images[torch.randperm(count, generator=generator)]
    side = torch.rand((count, 1), generator=generator).sqrt()  # both sides shrink alike: the area is uniform
    inside = []
    for length in (height, width):
        centre = torch.randint(0, length, (count, 1), generator=generator)
        inside.append((torch.arange(length) - centre).abs() * 2 < side * length)
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(box.to(images.device), other, images)
