"""Own modules: whole networks: dense and pyramid ones, those with skips, and those that look at places of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from own_modules import CLASSES, conv_bn, network
from torch import nn


@network()
class DenseNetLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.layers = nn.ModuleList(nn.Conv2d(12 + 6 * i, 6, 3, padding=1) for i in range(3))
        self.fc = nn.Linear(30, CLASSES)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(F.relu(torch.cat(features, 1))))
        out = F.relu(torch.cat(features, 1))
        return self.fc(F.adaptive_avg_pool2d(out, (1, 1)).squeeze(3).squeeze(2))


@network()
class UNetLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.mid = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, stride=2), nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.dec2, self.dec1, self.head = conv_bn(24, 12), conv_bn(16, 8), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.up2(self.mid(F.max_pool2d(b, 2)))
        dh, dw = b.size(2) - y.size(2), b.size(3) - y.size(3)
        y = F.pad(y, [dw // 2, dw - dw // 2, dh // 2, dh - dh // 2])
        y = self.up1(self.dec2(torch.cat([b, y], dim=1)))
        return self.head(self.dec1(torch.cat([a, y], dim=1))).mean(dim=(2, 3))


@network()
class Hypercolumns(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 8), conv_bn(8, 12, stride=2), conv_bn(12, 16, stride=2)])
        self.mix, self.fc = nn.Conv2d(36, 20, 1), nn.Linear(20, CLASSES)

    def forward(self, x):
        size, maps = x.shape[2:], []
        for stage in self.stages:
            x = stage(x)
            maps.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        y = torch.relu(self.mix(torch.cat(maps, dim=1)))
        return self.fc(y.flatten(2).max(dim=2).values)


@network()
class FeaturePyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.c2, self.c3, self.c4 = conv_bn(3, 8), conv_bn(8, 12, stride=2), conv_bn(12, 16, stride=2)
        self.lat = nn.ModuleDict({"p2": nn.Conv2d(8, 10, 1), "p3": nn.Conv2d(12, 10, 1), "p4": nn.Conv2d(16, 10, 1)})
        self.smooth = nn.Conv2d(10, 10, 3, padding=1)
        self.fc = nn.Linear(30, CLASSES)

    def forward(self, x):
        c2 = self.c2(x)
        c3 = self.c3(c2)
        c4 = self.c4(c3)
        p4 = self.lat["p4"](c4)
        p3 = self.lat["p3"](c3) + F.interpolate(p4, size=c3.shape[-2:], mode="nearest")
        p2 = self.lat["p2"](c2) + F.interpolate(p3, size=c2.shape[-2:], mode="nearest")
        return self.fc(torch.cat([self.smooth(p).mean((2, 3)) for p in (p2, p3, p4)], dim=-1))


@network()
class PyramidPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = conv_bn(3, 16, stride=2)
        self.paths = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(s), nn.Conv2d(16, 4, 1, bias=False), nn.ReLU()) for s in (1, 2, 4)
        )
        self.head = nn.Conv2d(28, CLASSES, 1)

    def forward(self, x):
        x = self.body(x)
        h, w = x.shape[2], x.shape[3]
        out = [x] + [F.interpolate(p(x), size=(h, w), mode="bilinear", align_corners=True) for p in self.paths]
        return self.head(torch.cat(out, 1)).mean((-2, -1))


@network()
class SpatialPyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Sequential(conv_bn(3, 12), conv_bn(12, 16)), nn.Linear(16 * 21, CLASSES)

    def forward(self, x):
        x = self.body(x)
        levels = [F.adaptive_max_pool2d(x, n).view(x.size(0), -1) for n in (4, 2, 1)]
        return self.fc(torch.cat(levels, dim=1))


@network()
class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.localization = nn.Sequential(nn.Conv2d(3, 8, 5), nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(3))
        self.fc_loc = nn.Sequential(nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 6))
        self.conv, self.fc = conv_bn(3, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        xs = self.localization(x).view(-1, 72)
        theta = self.fc_loc(xs).view(-1, 2, 3)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.fc(self.conv(x).mean((2, 3)))


@network()
class SpaceToDepth(nn.Module):
    """Focus: pixels of a square beside each other."""

    def __init__(self):
        super().__init__()
        self.conv, self.more, self.fc = conv_bn(12, 16), conv_bn(16, 24, stride=2), nn.Linear(24, CLASSES)

    def forward(self, x):
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return self.fc(self.more(self.conv(x)).mean([-1, -2]))
