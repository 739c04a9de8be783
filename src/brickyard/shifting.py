"""Shifted copies of images, where a layer has few positions to learn from for its many inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.graph import Graph
from brickyard.healing import MEMORY, peak_bytes
from brickyard.network import iter_layers

__all__ = ["copies_needed", "windows", "with_copies"]

ENOUGH = 5  # positions for each input of a layer
MOST = 4  # times the images, the originals included
REACH = 1 / 8  # of the height and width: the farthest shift


def copies_needed(graph: Graph, images: int) -> int:
    """How many times the images are needed, themselves included, so that every layer has enough positions.

    It is also kept to what can be held in memory, where going through the images is cheap.

    Args:
        graph: The source's graph.
        images: How many images there are.
    """
    needed = 1
    for _, node, layer in iter_layers(graph.network):
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        value = graph.shapes[node.name]
        positions = value[0].numel() // layer.weight.shape[0]
        needed = max(needed, math.ceil(ENOUGH * layer.weight[0].numel() / (positions * max(1, images))))
    held = MEMORY // max(1, peak_bytes(graph) * images)
    return max(1, min(needed, MOST, held))


def with_copies(batches: Sequence[Tensor], copies: int, seed: int) -> list[Tensor]:
    """The batches, and further ones in which every image is shifted on its own; edges are mirrored outwards.

    Args:
        batches: Preprocessed images, (batch, channels, height, width) each.
        copies: How many times the images are wanted, themselves included.
        seed: Seed of the shifts.
    """
    generator = torch.Generator().manual_seed(seed)
    return [*batches, *(_shifted(batch, generator) for _ in range(copies - 1) for batch in batches)]


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    down, across = int(height * REACH), int(width * REACH)
    padded = F.pad(images, (across, across, down, down), mode="reflect")
    top = torch.randint(0, 2 * down + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * across + 1, (count, 1), generator=generator)
    return windows(padded, top, left, (height, width))


def windows(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """From each image the window of a size that starts at its own row and column, `top` and `left`, (count, 1) each."""
    count, channels = images.shape[:2]
    rows = (top + torch.arange(size[0])).reshape(count, 1, size[0], 1)
    columns = (left + torch.arange(size[1])).reshape(count, 1, 1, size[1])
    which = torch.arange(count).reshape(count, 1, 1, 1), torch.arange(channels).reshape(1, channels, 1, 1)
    return images[*which, rows, columns]
