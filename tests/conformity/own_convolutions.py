"""Own modules: convolutions of all kinds, and the nets that are made of them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from own_modules import block, conv_bn
from torch import nn
from torch.nn.utils import parametrizations


@block(16)
class Ghost(nn.Module):
    def __init__(self, c, ratio=2):
        super().__init__()
        self.oup = c
        init = -(-c // ratio)
        self.primary = conv_bn(c, init, 1)
        self.cheap = conv_bn(init, init * (ratio - 1), 3, groups=init)

    def forward(self, x):
        x1 = self.primary(x)
        x2 = self.cheap(x1)
        return torch.cat([x1, x2], dim=1)[:, : self.oup, :, :]


@block(16)
class Involution(nn.Module):
    def __init__(self, c, k=3, g=2):
        super().__init__()
        self.k, self.g, self.gc = k, g, c // g
        self.reduce, self.span = nn.Conv2d(c, 8, 1), nn.Conv2d(8, k * k * g, 1)
        self.unfold = nn.Unfold(k, 1, (k - 1) // 2, 1)

    def forward(self, x):
        weight = self.span(F.relu(self.reduce(x)))
        b, _, h, w = weight.shape
        weight = weight.view(b, self.g, self.k**2, h, w).unsqueeze(2)
        out = self.unfold(x).view(b, self.g, self.gc, self.k**2, h, w)
        return (weight * out).sum(dim=3).view(b, -1, h, w)


@block(16)
class DynamicConv(nn.Module):
    """Kernels mixed for each image, as one grouped convolution over the batch."""

    def __init__(self, c, k=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(k, c, c, 3, 3) * 0.1)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 8), nn.ReLU(), nn.Linear(8, k)
        )

    def forward(self, x):
        b, c, h, w = x.shape
        a = F.softmax(self.attention(x) / 3.0, dim=1)
        weight = torch.mm(a, self.weight.view(self.weight.size(0), -1)).view(b * c, c, 3, 3)
        out = F.conv2d(x.view(1, -1, h, w), weight, None, padding=1, groups=b)
        return out.view(b, c, h, w)


@block(16)
class CondConvByOutputs(nn.Module):
    """Experts that each run, mixed by a routing weight."""

    def __init__(self, c, n=3):
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in range(n))
        self.route = nn.Linear(c, n)

    def forward(self, x):
        r = torch.sigmoid(self.route(x.mean((2, 3))))
        outs = torch.stack([e(x) for e in self.experts], dim=1)
        return (outs * r[:, :, None, None, None]).sum(1)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        mean = w.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
        w = w - mean
        std = w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return F.conv2d(x, w / std.expand_as(w), self.bias, self.stride, self.padding, self.dilation, self.groups)


@block(16)
class WeightStandardised(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.gn = StandardisedConv(c, c, 3, padding=1), nn.GroupNorm(4, c)

    def forward(self, x):
        return F.relu(self.gn(self.conv1(x)))


@block(16)
class SpectralNormed(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = parametrizations.spectral_norm(nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x):
        return F.leaky_relu(self.conv(x), 0.2)


@block(16)
class WeightNormed(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x):
        return F.elu(self.conv(x))


@block(16)
class OldWeightNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.utils.weight_norm(nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x):
        return F.relu(self.conv(x))


@block(16)
class Octave(nn.Module):
    def __init__(self, c, alpha=0.5):
        super().__init__()
        low = int(c * alpha)
        self.split = c - low
        self.h2h, self.h2l = nn.Conv2d(c - low, c - low, 3, padding=1), nn.Conv2d(c - low, low, 3, padding=1)
        self.l2h, self.l2l = nn.Conv2d(low, c - low, 3, padding=1), nn.Conv2d(low, low, 3, padding=1)

    def forward(self, x):
        high, low = x[:, : self.split], F.avg_pool2d(x[:, self.split :], 2)
        h = self.h2h(high) + F.interpolate(self.l2h(low), scale_factor=2, mode="nearest")
        lo = self.l2l(low) + self.h2l(F.avg_pool2d(high, 2))
        return torch.cat([h, F.interpolate(lo, scale_factor=2)], 1)


@block(16)
class RepVgg(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c))
        self.one = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c))
        self.identity = nn.BatchNorm2d(c)
        self.act = nn.ReLU()

    def forward(self, x):
        id_out = 0 if self.identity is None else self.identity(x)
        return self.act(self.dense(x) + self.one(x) + id_out)


@block(16)
class GatedConv(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, 2 * c, 3, padding=1)

    def forward(self, x):
        return F.glu(self.conv(x), dim=1)


@block(16)
class MaxOut(nn.Module):
    def __init__(self, c, pieces=2):
        super().__init__()
        self.pieces = pieces
        self.conv = nn.Conv2d(c, c * pieces, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        b, c, h, w = y.shape
        return y.view(b, c // self.pieces, self.pieces, h, w).max(dim=2)[0]


@block(16)
class MaxFeatureMap(nn.Module):
    """The larger of two halves."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.filter = nn.Conv2d(c, 2 * c, 3, 1, 1)

    def forward(self, x):
        out = torch.split(self.filter(x), self.c, 1)
        return torch.max(out[0], out[1])


@block(16)
class StochasticDepth(nn.Module):
    def __init__(self, c, p=0.2):
        super().__init__()
        self.p = p
        self.inner = nn.Sequential(conv_bn(c, c), nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x):
        if self.training and random.random() < self.p:
            return x
        y = self.inner(x)
        return x + (y if self.training else y * (1 - self.p))


class DropPath(nn.Module):
    def __init__(self, p=0.1):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = keep + torch.rand(shape, dtype=x.dtype, device=x.device)
        return x.div(keep) * mask.floor_()


@block(16)
class ConvNextBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.dw = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.pw1, self.pw2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.gamma = nn.Parameter(1e-1 * torch.ones(c))
        self.path = DropPath()

    def forward(self, x):
        y = self.dw(x).permute(0, 2, 3, 1)
        y = self.pw2(F.gelu(self.pw1(self.norm(y))))
        return x + self.path((self.gamma * y).permute(0, 3, 1, 2))


class ChannelsFirstNorm(nn.Module):
    def __init__(self, c, eps=1e-6):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c)), eps

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


@block(16)
class OwnLayerNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm, self.mlp = ChannelsFirstNorm(c), nn.Sequential(nn.Conv2d(c, 48, 1), nn.GELU(), nn.Conv2d(48, c, 1))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


@block(16)
class GlobalResponseNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.up, self.down = nn.Conv2d(c, 4 * c, 1), nn.Conv2d(4 * c, c, 1)
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 4 * c, 1, 1)), nn.Parameter(torch.zeros(1, 4 * c, 1, 1))

    def forward(self, x):
        y = F.gelu(self.up(x))
        g = torch.norm(y, p=2, dim=(2, 3), keepdim=True)
        n = g / (g.mean(dim=1, keepdim=True) + 1e-6)
        return x + self.down(self.gamma * (y * n) + self.beta + y)


@block(16)
class FilterResponseNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, 20, 3, padding=1)
        self.gamma, self.beta = nn.Parameter(torch.ones(1, 20, 1, 1)), nn.Parameter(torch.zeros(1, 20, 1, 1))
        self.tau, self.back = nn.Parameter(torch.zeros(1, 20, 1, 1)), nn.Conv2d(20, c, 1)

    def forward(self, x):
        x = self.conv(x)
        nu2 = torch.mean(x**2, dim=[2, 3], keepdim=True)
        x = x * torch.rsqrt(nu2 + abs(1e-6))
        return self.back(torch.max(self.gamma * x + self.beta, self.tau))


@block(16)
class LocalResponse(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.lrn = nn.Conv2d(c, c, 3, padding=1), nn.LocalResponseNorm(5)

    def forward(self, x):
        return self.lrn(F.relu(self.conv(x)))


@block(16)
class Res2(nn.Module):
    def __init__(self, c, scale=4):
        super().__init__()
        self.nums, self.width = scale - 1, c // scale
        self.conv1, self.conv3 = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.convs = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(self.nums))

    def forward(self, x):
        out = F.relu(self.conv1(x))
        spx = torch.split(out, self.width, 1)
        for i in range(self.nums):
            sp = spx[i] if i == 0 else sp + spx[i]  # noqa: F821
            sp = F.relu(self.convs[i](sp))
            out = sp if i == 0 else torch.cat((out, sp), 1)
        return x + self.conv3(torch.cat((out, spx[self.nums]), 1))


@block(16)
class PixelUnshuffleDown(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.down, self.conv, self.up = nn.PixelUnshuffle(2), nn.Conv2d(4 * c, 4 * c, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x):
        return x + self.up(F.relu(self.conv(self.down(x))))


@block(16)
class PartialConv(nn.Module):
    """A convolution on a quarter of the channels, written into a copy."""

    def __init__(self, c):
        super().__init__()
        self.dim = c // 4
        self.conv = nn.Conv2d(self.dim, self.dim, 3, padding=1, bias=False)

    def forward(self, x):
        x = x.clone()
        x[:, : self.dim, :, :] = self.conv(x[:, : self.dim, :, :])
        return x


@block(20)
class ShiftChannels(nn.Module):
    """Groups of channels shifted by one pixel in five directions."""

    def __init__(self, c):
        super().__init__()
        self.pw = nn.Conv2d(c, c, 1)

    def forward(self, x):
        g = x.shape[1] // 5
        out = torch.zeros_like(x)
        out[:, 0:g, :, :-1] = x[:, 0:g, :, 1:]
        out[:, g : 2 * g, :, 1:] = x[:, g : 2 * g, :, :-1]
        out[:, 2 * g : 3 * g, :-1, :] = x[:, 2 * g : 3 * g, 1:, :]
        out[:, 3 * g : 4 * g, 1:, :] = x[:, 3 * g : 4 * g, :-1, :]
        out[:, 4 * g :] = x[:, 4 * g :]
        return self.pw(out)


@block(16)
class AxialShift(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        parts = torch.chunk(x, 4, dim=1)
        moved = [torch.roll(p, s, dims=2) for p, s in zip(parts, range(-2, 2))]
        return self.conv(torch.cat(moved, 1))


@block(16)
class Highway(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h, self.t = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        t = torch.sigmoid(self.t(x))
        return F.relu(self.h(x)) * t + x * (1.0 - t)


@block(16)
class InceptionLike(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.b1, self.b3 = conv_bn(c, 4, 1), nn.Sequential(conv_bn(c, 4, 1), conv_bn(4, 6))
        self.bp = conv_bn(c, 6, 1)

    def forward(self, x):
        pool = self.bp(F.max_pool2d(x, 3, stride=1, padding=1))
        return torch.cat((self.b1(x), self.b3(x), pool), dim=1)


@block(16)
class SubPixelHead(nn.Module):
    def __init__(self, c, r=2):
        super().__init__()
        self.conv, self.down = nn.Conv2d(c, 8 * r * r, 3, padding=1), nn.Conv2d(8, c, 3, stride=r, padding=1)
        self.r = r

    def forward(self, x):
        return self.down(F.pixel_shuffle(self.conv(x), self.r))


@block(16)
class BlurPool(nn.Module):
    def __init__(self, c):
        super().__init__()
        a = torch.tensor([1.0, 2.0, 1.0])
        filt = a[:, None] * a[None, :]
        self.register_buffer("filt", (filt / filt.sum())[None, None].repeat(c, 1, 1, 1))
        self.pad = nn.ReflectionPad2d(1)

    def forward(self, x):
        y = F.conv2d(self.pad(x), self.filt, stride=2, groups=x.shape[1])
        return F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)


@block(16)
class MixedPool(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        a = torch.sigmoid(self.alpha)
        y = a * F.max_pool2d(x, 2) + (1 - a) * F.avg_pool2d(x, 2)
        return nn.UpsamplingNearest2d(scale_factor=2)(y)


@block(16)
class SoftPool(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        e = torch.exp(self.conv(x))
        y = F.avg_pool2d(x * e, 2, 2) / F.avg_pool2d(e, 2, 2)
        return F.interpolate(y, scale_factor=2)


@block(16)
class PowerPool(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(c, c, 3, padding=1), nn.LPPool2d(2, 2)

    def forward(self, x):
        return F.interpolate(self.pool(F.relu(self.conv(x))), scale_factor=2)


@block(16)
class AtrousPyramid(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(c, 6, 3, padding=d, dilation=d, bias=False) for d in (1, 2, 3))
        self.image, self.project = nn.Conv2d(c, 6, 1), nn.Conv2d(24, c, 1)

    def forward(self, x):
        out = [b(x) for b in self.branches]
        pooled = self.image(x.mean((2, 3), True)).expand(-1, -1, x.shape[2], x.shape[3])
        return self.project(torch.cat([*out, pooled], dim=1))


@block(16)
class DeformableLike(nn.Module):
    """Samples where offsets point, with a bilinear grid."""

    def __init__(self, c):
        super().__init__()
        self.offset, self.conv = nn.Conv2d(c, 2, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        b, _, h, w = x.shape
        ys = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
        xs = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype)
        gy, gx = torch.meshgrid(ys, xs, indexing="ij")
        grid = torch.stack((gx, gy), dim=-1).unsqueeze(0).expand(b, -1, -1, -1)
        grid = grid + 0.1 * torch.tanh(self.offset(x)).permute(0, 2, 3, 1)
        return self.conv(F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True))


@block(16)
class CoordConv(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c + 2, c, 3, padding=1)

    def forward(self, x):
        b, _, h, w = x.size()
        xx = torch.arange(w, device=x.device).repeat(1, h, 1).to(x.dtype) / (w - 1) * 2 - 1
        yy = torch.arange(h, device=x.device).repeat(1, w, 1).transpose(1, 2).to(x.dtype) / (h - 1) * 2 - 1
        xx, yy = xx.repeat(b, 1, 1, 1), yy.repeat(b, 1, 1, 1)
        return self.conv(torch.cat([x, xx.type_as(x), yy.type_as(x)], dim=1))
