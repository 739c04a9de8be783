"""GoogLeNet with batch norm in its form for 32x32 images (Szegedy et al. 2015, table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brickyard.sources._registry import register, scaled

# Channels a module: 1x1 | 1x1 then 3x3 | 1x1 then 3x3 | pool then 1x1
CHANNELS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}

POOLED = ("4a", "5a")  # blocks behind a pool that halves height and width


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to maps (B, after, H, W)."""
        return torch.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches side by side; the third has a 3x3 kernel, as in torchvision."""

    def __init__(self, before: int, counts: tuple[int, ...]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pool = counts
        self.branch1 = BasicConv2d(before, one, 1)
        self.branch2 = nn.Sequential(BasicConv2d(before, three_in, 1), BasicConv2d(three_in, three, 3))
        self.branch3 = nn.Sequential(BasicConv2d(before, five_in, 1), BasicConv2d(five_in, five, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BasicConv2d(before, pool, 1))
        self.channels = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, before, H, W) to maps (B, self.channels, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """A stem of three convolutions, nine inception modules, one linear layer."""

    def __init__(self, classes: int, width: float, channels: int) -> None:
        super().__init__()
        first, last = scaled(64, width), scaled(192, width)
        self.stem = nn.Sequential(
            BasicConv2d(channels, first, 3), BasicConv2d(first, first, 3), BasicConv2d(first, last, 3)
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        before = last
        for name, counts in CHANNELS.items():
            module = Inception(before, tuple(scaled(count, width) for count in counts))
            self.add_module(f"inception{name}", module)
            before = module.channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) to logits (B, classes)."""
        x = self.pool(self.stem(images))
        for name in CHANNELS:
            block = getattr(self, f"inception{name}")
            x = block(self.pool(x) if name in POOLED else x)
        x = self.dropout(torch.flatten(self.avgpool(x), 1))
        return self.fc(x)  # type: ignore[no-any-return]


@register("googlenet", "googlenet-cifar", "googlenet_cifar")
def googlenet(classes: int, width: float = 1.0, *, channels: int = 3) -> nn.Module:
    """GoogLeNet with batch norm in its form for 32x32 images, without side classifiers."""
    return GoogLeNet(classes, width, channels)
