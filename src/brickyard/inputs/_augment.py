"""Shifted, mirrored and mixed copies of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted_and_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image independently, (batch, channels, height, width); uncovered areas are 0.

    Signals and cubes are shifted along all their sides; signals are not mirrored.
    """
    sides, reach = x.shape[2:], max(1, x.shape[-1] // SHIFT)
    reaches = [*(max(1, side // SHIFT) for side in sides[:-2]), *[reach] * len(sides[-2:])]
    return _mirrored(_moved(x, reaches, generator, "constant"), generator)


def _mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images from left to right; a signal backwards would be another one."""
    if x.ndim == 3:
        return x
    mirror = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(_at(mirror[:, None], 1, x.ndim).to(x.device), x.flip(-1), x)


def _moved(x: Tensor, reaches: Sequence[int], generator: torch.Generator, mode: str) -> Tensor:
    """Shift each image independently by up to a reach on every side."""
    padded = F.pad(x, [reach for reach in reversed(reaches) for _ in range(2)], mode=mode)
    starts = [torch.randint(0, 2 * reach + 1, (len(x), 1), generator=generator) for reach in reaches]
    return _windows(padded, starts, x.shape[2:])


def _at(values: Tensor, dim: int, dims: int) -> Tensor:
    """Values (batch or 1, length) in so many dimensions, of which one is the length."""
    return values.reshape(len(values), *(values.shape[1] if d == dim else 1 for d in range(1, dims)))


SHIFT = 8  # images are shifted by up to their size divided by this


def with_copies(batches: Sequence[Tensor], copies: int, seed: int) -> list[Tensor]:
    """Return the batches, followed by copies in which every image is shifted independently; edges are reflected.

    `copies` is how many times to use the images, including the originals.
    """
    generator = torch.Generator().manual_seed(seed)
    return [*batches, *(_shifted(batch, generator) for _ in range(copies - 1) for batch in batches)]


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    return _moved(images, [side // SHIFT for side in images.shape[2:]], generator, "reflect")


def _windows(images: Tensor, starts: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Cut a window of `size` from each image, which starts at its own place on every side, (count, 1) each."""
    count, channels = images.shape[:2]
    places = [torch.arange(channels)[None], *(start + torch.arange(n) for start, n in zip(starts, size, strict=True))]
    which = [_at(values, dim, images.ndim) for dim, values in enumerate(places, 1)]
    return images[_at(torch.arange(count)[:, None], 1, images.ndim), *which]


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image of a batch independently, then mix half of them with others of the batch.

    Edges are reflected. One draw decides for the batch between mixup (Zhang et al., 2018: a weighted mean that keeps
    at least half of the image) and cutmix (Yun et al., 2019: a rectangle of another image, its area uniform in [0, 1]).
    """
    x = _mirrored(_shifted(images, generator), generator)
    half = len(x) // 2
    cut = bool(torch.rand((), generator=generator) < 0.5)
    return torch.cat([(_cutmix if cut else _mixup)(x[:half], generator), x[half:]])


def _mixup(images: Tensor, generator: torch.Generator) -> Tensor:
    other = images[torch.randperm(len(images), generator=generator)]
    share = 0.5 + 0.5 * _at(torch.rand((len(images), 1), generator=generator), 1, images.ndim).to(images)
    return share * images + (1 - share) * other


def _cutmix(images: Tensor, generator: torch.Generator) -> Tensor:
    count, sides = len(images), images.shape[2:]
    other = images[torch.randperm(count, generator=generator)]
    part = torch.rand((count, 1), generator=generator) ** (
        1 / len(sides)
    )  # all sides shrink alike: the area is uniform
    box = torch.ones((), dtype=torch.bool)
    for dim, length in enumerate(sides, 2):
        centre = torch.randint(0, length, (count, 1), generator=generator)
        box = box & _at((torch.arange(length) - centre).abs() * 2 < part * length, dim, images.ndim)
    return torch.where(box.to(images.device), other, images)
