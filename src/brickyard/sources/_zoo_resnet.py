"""Residual networks for 32x32 images: the thin ones (20, 32, 56 layers) and ResNet-18 and 50."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.base._errors import OptionError
from brickyard.sources._registry import register, scaled


def conv(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A square convolution without bias that keeps height and width at stride 1."""
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


def start(model: nn.Module) -> None:
    """Draw convolution weights as He et al. (2015) do, so that depth neither damps nor amplifies."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class PadShortcut(nn.Module):
    """Option A of the paper: every second pixel, and zero channels on both sides; no weights.

    With an odd number of new channels, the one left over goes behind.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.front = (after - before) // 2
        self.behind = after - before - self.front

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to maps (B, after, H/stride, W/stride)."""
        kept = x[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.front, self.behind))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv(before, after, 3, stride)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = conv(after, after, 3)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module | None = None
        if stride != 1 or before != after:
            self.shortcut = (
                PadShortcut(before, after, stride)
                if shortcut == "A"
                else nn.Sequential(conv(before, after, 1, stride), nn.BatchNorm2d(after))
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to maps (B, after, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + (x if self.shortcut is None else self.shortcut(x))
        return F.relu(out)


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels (He et al. 2016, section 4.2)."""

    def __init__(self, blocks: int, classes: int, width: float, channels: int, shortcut: str) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise OptionError(
                "option-choice", f"shortcut must be 'A' (padding) or 'B' (1x1 convolution), got {shortcut!r}"
            )
        counts = [scaled(count, width) for count in (16, 32, 64)]
        self.conv1 = conv(channels, counts[0], 3)
        self.bn1 = nn.BatchNorm2d(counts[0])
        self.layer1 = self._stage(counts[0], counts[0], blocks, 1, shortcut)
        self.layer2 = self._stage(counts[0], counts[1], blocks, 2, shortcut)
        self.layer3 = self._stage(counts[1], counts[2], blocks, 2, shortcut)
        self.linear = nn.Linear(counts[2], classes)
        start(self)

    @staticmethod
    def _stage(before: int, after: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
        first = CifarBlock(before, after, stride, shortcut)
        return nn.Sequential(first, *(CifarBlock(after, after, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Square images (B, channels, H, H), at least 4x4, to logits (B, classes)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size(3))  # (B, C, 1, 1)
        return self.linear(torch.flatten(x, 1))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, named as torchvision names them."""

    expansion = 1

    def __init__(self, before: int, middle: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(before, middle, 3, stride)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu = nn.ReLU()
        self.conv2 = conv(middle, middle, 3)
        self.bn2 = nn.BatchNorm2d(middle)
        self.downsample = _downsample(before, middle, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to maps (B, middle, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + (x if self.downsample is None else self.downsample(x))
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut; the stride is on the 3x3 one."""

    expansion = 4

    def __init__(self, before: int, middle: int, stride: int) -> None:
        super().__init__()
        after = middle * self.expansion
        self.conv1 = conv(before, middle, 1)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = conv(middle, middle, 3, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv(middle, after, 1)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.downsample = _downsample(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to maps (B, 4 * middle, H/stride, W/stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + (x if self.downsample is None else self.downsample(x))
        return self.relu(out)  # type: ignore[no-any-return]


def _downsample(before: int, after: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and before == after:
        return None
    return nn.Sequential(conv(before, after, 1, stride), nn.BatchNorm2d(after))


class ResNet(nn.Module):
    """Four stages behind a 3x3 stem without a pool; named as torchvision names them."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        classes: int,
        width: float,
        channels: int,
    ) -> None:
        super().__init__()
        counts = [scaled(count, width) for count in (64, 128, 256, 512)]
        self.conv1 = conv(channels, counts[0], 3)
        self.bn1 = nn.BatchNorm2d(counts[0])
        self.relu = nn.ReLU()
        before = counts[0]
        stages = []
        for index, (middle, number) in enumerate(zip(counts, blocks, strict=True)):
            after = middle * block.expansion
            rest = [block(after, middle, 1) for _ in range(number - 1)]
            stages.append(nn.Sequential(block(before, middle, 1 if index == 0 else 2), *rest))
            before = after
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)
        start(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W), at least 8x8, to logits (B, classes)."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)  # type: ignore[no-any-return]


@register("resnet20", "resnet20-cifar")
def resnet20(classes: int, width: float = 1.0, *, channels: int = 3, shortcut: str = "A") -> nn.Module:
    """The thin residual network with 20 layers."""
    return CifarResNet(3, classes, width, channels, shortcut)


@register("resnet32", "resnet32-cifar")
def resnet32(classes: int, width: float = 1.0, *, channels: int = 3, shortcut: str = "A") -> nn.Module:
    """The thin residual network with 32 layers."""
    return CifarResNet(5, classes, width, channels, shortcut)


@register("resnet56", "resnet56-cifar")
def resnet56(classes: int, width: float = 1.0, *, channels: int = 3, shortcut: str = "A") -> nn.Module:
    """The thin residual network with 56 layers."""
    return CifarResNet(9, classes, width, channels, shortcut)


@register("resnet18", "resnet18-cifar")
def resnet18(classes: int, width: float = 1.0, *, channels: int = 3) -> nn.Module:
    """ResNet-18 with a stem for 32x32 images."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, width, channels)


@register("resnet50", "resnet50-cifar")
def resnet50(classes: int, width: float = 1.0, *, channels: int = 3) -> nn.Module:
    """ResNet-50 with a stem for 32x32 images."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, width, channels)
