"""Plain chains of layers: LeNet-5, the small `cnn`, and VGG with batch norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brickyard.base._errors import OptionError
from brickyard.sources._registry import register, scaled

POOL = 0  # in a list of widths: halve height and width here

CNN_WIDTHS = (16, POOL, 32, 32, POOL, 64, 64, POOL, 128, 128, POOL)
VGG11_WIDTHS = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
VGG16_WIDTHS = (
    *(64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL),
    *(512, 512, 512, POOL, 512, 512, 512, POOL),
)


def conv_stack(widths: Sequence[int], channels: int, *, bias: bool) -> list[nn.Module]:
    """The layers of 3x3 convolution, batch norm and ReLU a width, and of a 2x2 max pool a `POOL`."""
    layers: list[nn.Module] = []
    before = channels
    for after in widths:
        if after == POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    return layers


def _widths(full: Sequence[int], width: float) -> list[int]:
    return [POOL if count == POOL else scaled(count, width) for count in full]


class LeNet5(nn.Module):
    """LeCun's network of 1998 with ReLU and max pooling: two 5x5 convolutions, three linear layers."""

    def __init__(self, classes: int, width: float, channels: int, size: int) -> None:
        super().__init__()
        first, second = scaled(6, width), scaled(16, width)
        side = ((size - 4) // 2 - 4) // 2
        if side < 1:
            raise OptionError(
                "option-source-size", f"lenet5: size={size} leaves no pixels after its layers; give 16 or more"
            )
        self.conv1 = nn.Conv2d(channels, first, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(second * side * side, scaled(120, width))
        self.fc2 = nn.Linear(scaled(120, width), scaled(84, width))
        self.fc3 = nn.Linear(scaled(84, width), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, size, size) to logits (B, classes)."""
        x = self.pool1(torch.relu(self.conv1(images)))
        x = self.pool2(torch.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)  # type: ignore[no-any-return]


class Chain(nn.Module):
    """One `nn.Sequential`, called `seq`: convolutions, global average pool, two linear layers."""

    def __init__(self, classes: int, width: float, channels: int) -> None:
        super().__init__()
        widths = _widths(CNN_WIDTHS, width)
        last = max(widths[-2], 1)
        self.seq = nn.Sequential(
            *conv_stack(widths, channels, bias=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, last),
            nn.ReLU(),
            nn.Linear(last, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W), at least 16x16, to logits (B, classes)."""
        return self.seq(images)  # type: ignore[no-any-return]


class VGG(nn.Module):
    """VGG with batch norm for 32x32 images: `features`, a global average pool, and `classifier`."""

    def __init__(self, full: Sequence[int], classes: int, width: float, channels: int) -> None:
        super().__init__()
        widths = _widths(full, width)
        last = widths[-2]
        self.features = nn.Sequential(*conv_stack(widths, channels, bias=False))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(last, last), nn.ReLU(), nn.Linear(last, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W), at least 32x32, to logits (B, classes)."""
        x = self.avgpool(self.features(images))  # (B, last, 1, 1)
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


@register("lenet5", "lenet")
def lenet5(classes: int, width: float = 1.0, *, channels: int = 3, size: int = 32) -> nn.Module:
    """LeNet-5 with ReLU and max pooling; `size` is the side of its square input."""
    return LeNet5(classes, width, channels, size)


@register("cnn", "vggs")
def cnn(classes: int, width: float = 1.0, *, channels: int = 3) -> nn.Module:
    """A small plain network: seven 3x3 convolutions with batch norm, two linear layers."""
    return Chain(classes, width, channels)


@register("vgg11", "vgg11-bn", "vgg11_bn")
def vgg11(classes: int, width: float = 1.0, *, channels: int = 3) -> nn.Module:
    """VGG-11 with batch norm in its form for 32x32 images."""
    return VGG(VGG11_WIDTHS, classes, width, channels)


@register("vgg16", "vgg16-bn", "vgg16_bn", "vgg16-cifar")
def vgg16(classes: int, width: float = 1.0, *, channels: int = 3) -> nn.Module:
    """VGG-16 with batch norm in its form for 32x32 images."""
    return VGG(VGG16_WIDTHS, classes, width, channels)
