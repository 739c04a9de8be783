"""Tiny networks and an oracle for tests of your own: nothing here is large, random without a seed, or slow."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn

from brickyard.base._boxes import Boxes
from brickyard.surgery._verify import zeroed_output as zeroed_output

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def chain(classes: int = 4, widths: tuple[int, int] = (6, 8)) -> nn.Sequential:
    """A plain convolutional chain for 3-channel images of any size."""
    first, second = widths
    return randomised(
        nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, first, 3, padding=1),
                bn1=nn.BatchNorm2d(first),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(first, second, 3, stride=2, bias=False),
                bn2=nn.BatchNorm2d(second),
                relu2=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(second, classes),
            )
        )
    )


class Residual(nn.Module):
    """A stem, two residual blocks, and a classifier."""

    def __init__(self, classes: int = 4, width: int = 6, inner: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, inner, 1)
        self.conv4 = nn.Conv2d(inner, width, 1)
        self.linear = nn.Linear(width, classes)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        x = torch.relu(self.bn(self.stem(x)))
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(y)) + x)
        x = x + self.conv4(torch.relu(self.conv3(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


class Branches(nn.Module):
    """Two branches that are concatenated, a depthwise convolution, and a flattened classifier."""

    def __init__(self, classes: int = 4, widths: tuple[int, int, int] = (5, 4, 3), size: int = 8) -> None:
        super().__init__()
        stem, left, right = widths
        self.stem = nn.Conv2d(3, stem, 3, stride=2, padding=1)
        self.left = nn.Conv2d(stem, left, 1)
        self.right = nn.Conv2d(stem, right, 3, padding=1)
        self.depthwise = nn.Conv2d(left + right, left + right, 3, padding=1, groups=left + right)
        self.bn = nn.BatchNorm2d(left + right)
        self.linear = nn.Linear((left + right) * (size // 4) ** 2, classes)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, size, size) -> (batch, classes)."""
        x = torch.relu(self.stem(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        x = torch.relu(self.bn(self.depthwise(x)))
        x = nn.functional.max_pool2d(x, 2)
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """A convolution whose channels are scaled by a gate computed from their means."""

    def __init__(self, classes: int = 4, width: int = 6, squeezed: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, width, 1)
        self.head = nn.Conv2d(width, classes, 1)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        x = torch.nn.functional.silu(self.bn(self.conv(x)))
        gate = x.mean((2, 3), keepdim=True)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(gate))))
        x = self.head(x * gate)
        return x.mean((2, 3))


class Detector(nn.Module):
    """A detector with two grids, whose cells have 4 and 8 pixels. Its outputs are read as `boxes` says.

    Of each cell it returns a box, its objectness, and a score per class, as YOLOX does.
    """

    boxes = Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="grid", strides=(4, 8))

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=4, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.shapes = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(2))
        self.sure = nn.ModuleList(nn.Conv2d(width, 1 + classes, 1) for _ in range(2))
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, cells, 5 + classes)."""
        fine = torch.relu(self.stem(x))
        grids = [fine, torch.relu(self.down(fine))]
        found = [
            torch.cat([shape(grid), (sure(grid) * 6 - 1).sigmoid()], 1).flatten(2)
            for grid, shape, sure in zip(grids, self.shapes, self.sure, strict=True)
        ]
        return torch.cat(found, 2).transpose(1, 2)


def random_graph(
    nodes: int = 60, features: int = 12, classes: int = 4, *, degree: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A graph whose nodes have classes: features lean towards the class, and most edges stay within it.

    Returns:
        Features (nodes, features), edges (2, 2 * nodes * degree) in both directions, and labels (nodes,).
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(nodes) % classes
    x = torch.randn(nodes, features, generator=generator) + torch.eye(classes, features)[labels] * 2
    start = torch.arange(nodes).repeat(degree)
    steps = torch.randint(1, max(2, nodes // classes), start.shape, generator=generator) * classes
    strays = torch.rand(start.shape, generator=generator) < 0.2
    end = torch.where(strays, torch.randint(0, nodes, start.shape, generator=generator), (start + steps) % nodes)
    return x, torch.cat([torch.stack([start, end]), torch.stack([end, start])], 1), labels


def randomised(model: ModuleT, seed: int = 0) -> ModuleT:
    """Give every number of a model a value far from its default, batch-norm statistics included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("var"):
                value.copy_(noise.abs() + 0.5)
            elif value.ndim > 1:
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(noise * 0.3 + (1.0 if name.endswith("weight") else 0.1))
    return model.eval()
