"""Own modules: attention over channels and positions, gates, and context."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from own_modules import block
from torch import nn


@block(16)
class SqueezeExcite(nn.Module):
    def __init__(self, c, r=4):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, c // r), nn.Linear(c // r, c)

    def forward(self, x):
        b, c, _, _ = x.size()
        s = F.adaptive_avg_pool2d(x, 1).view(b, c)
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(s)))).view(b, c, 1, 1)
        return x * s.expand_as(x)


@block(16)
class Cbam(nn.Module):
    def __init__(self, c, r=4):
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(c, c // r), nn.ReLU(), nn.Linear(c // r, c))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        avg = F.avg_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3)))
        top = F.max_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3)))
        x = x * torch.sigmoid(self.mlp(avg) + self.mlp(top)).unsqueeze(2).unsqueeze(3).expand_as(x)
        maps = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(maps))


@block(16)
class Eca(nn.Module):
    def __init__(self, c, k=3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


@block(16)
class NonLocal(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.inter = c // 2
        self.theta, self.phi, self.g = (nn.Conv2d(c, self.inter, 1) for _ in range(3))
        self.out = nn.Conv2d(self.inter, c, 1)

    def forward(self, x):
        b = x.size(0)
        theta = self.theta(x).view(b, self.inter, -1).permute(0, 2, 1)
        phi = self.phi(x).view(b, self.inter, -1)
        g = self.g(x).view(b, self.inter, -1).permute(0, 2, 1)
        f = F.softmax(torch.matmul(theta, phi), dim=-1)
        y = torch.matmul(f, g).permute(0, 2, 1).contiguous().view(b, self.inter, *x.size()[2:])
        return self.out(y) + x


@block(16)
class DualAttentionPosition(nn.Module):
    """Position attention with a learned gate that starts at zero."""

    def __init__(self, c):
        super().__init__()
        self.query, self.key, self.value = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c, c // 4, 1), nn.Conv2d(c, c, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x):
        m, c, h, w = x.size()
        q = self.query(x).view(m, -1, w * h).permute(0, 2, 1)
        k = self.key(x).view(m, -1, w * h)
        attention = self.softmax(torch.bmm(q, k))
        v = self.value(x).view(m, -1, w * h)
        out = torch.bmm(v, attention.permute(0, 2, 1)).view(m, c, h, w)
        return self.gamma * out + x


@block(16)
class DualAttentionChannel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        m, c, h, w = x.size()
        q, k = x.view(m, c, -1), x.view(m, c, -1).permute(0, 2, 1)
        energy = torch.bmm(q, k)
        energy = torch.max(energy, -1, keepdim=True)[0].expand_as(energy) - energy
        out = torch.bmm(F.softmax(energy, dim=-1), x.view(m, c, -1)).view(m, c, h, w)
        return self.gamma * out + x


@block(16)
class CoordinateAttention(nn.Module):
    def __init__(self, c, r=4):
        super().__init__()
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        mip = max(4, c // r)
        self.conv1, self.bn1 = nn.Conv2d(c, mip, 1), nn.BatchNorm2d(mip)
        self.act = nn.Hardswish()
        self.conv_h, self.conv_w = nn.Conv2d(mip, c, 1), nn.Conv2d(mip, c, 1)

    def forward(self, x):
        _, _, h, w = x.size()
        y = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2)
        y = self.act(self.bn1(self.conv1(y)))
        x_h, x_w = torch.split(y, [h, w], dim=2)
        return x * self.conv_w(x_w.permute(0, 1, 3, 2)).sigmoid() * self.conv_h(x_h).sigmoid()


@block(16)
class PolarizedAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wv, self.wq, self.wz = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c, 1, 1), nn.Conv2d(c // 2, c, 1)
        self.ln = nn.LayerNorm(c)
        self.sv, self.sq = nn.Conv2d(c, c // 2, 1), nn.Conv2d(c, c // 2, 1)

    def forward(self, x):
        b, c, h, w = x.size()
        v = self.wv(x).reshape(b, c // 2, -1)
        q = self.wq(x).reshape(b, -1, 1).softmax(1)
        z = torch.matmul(v, q).unsqueeze(-1)
        z = self.ln(self.wz(z).reshape(b, c, 1).permute(0, 2, 1)).sigmoid().permute(0, 2, 1).reshape(b, c, 1, 1)
        x = z * x
        q = F.adaptive_avg_pool2d(self.sq(x), (1, 1)).permute(0, 2, 3, 1).reshape(b, 1, c // 2).softmax(-1)
        v = self.sv(x).reshape(b, c // 2, -1)
        return torch.matmul(q, v).reshape(b, 1, h, w).sigmoid() * x


@block(16)
class TripletAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(3))

    @staticmethod
    def zpool(x):
        return torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)

    def forward(self, x):
        a = x.permute(0, 2, 1, 3).contiguous()
        a = (a * torch.sigmoid(self.gates[0](self.zpool(a)))).permute(0, 2, 1, 3)
        b = x.permute(0, 3, 2, 1).contiguous()
        b = (b * torch.sigmoid(self.gates[1](self.zpool(b)))).permute(0, 3, 2, 1)
        return (a + b + x * torch.sigmoid(self.gates[2](self.zpool(x)))) / 3


@block(16)
class GlobalContext(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.mask = nn.Conv2d(c, 1, 1)
        self.add = nn.Sequential(
            nn.Conv2d(c, c // 2, 1), nn.LayerNorm([c // 2, 1, 1]), nn.ReLU(), nn.Conv2d(c // 2, c, 1)
        )

    def forward(self, x):
        b, c, h, w = x.size()
        context = self.mask(x).view(b, 1, h * w).softmax(2).unsqueeze(-1)
        context = torch.matmul(x.view(b, c, h * w).unsqueeze(1), context).view(b, c, 1, 1)
        return x + self.add(context)


@block(16)
class SimAm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.e = 1e-4

    def forward(self, x):
        n = x.shape[2] * x.shape[3] - 1
        d = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        v = d.sum(dim=[2, 3], keepdim=True) / n
        return x * torch.sigmoid(d / (4 * (v + self.e)) + 0.5)


@block(16)
class SelectiveKernel(nn.Module):
    def __init__(self, c, m=2):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, padding=1 + i, dilation=1 + i), nn.BatchNorm2d(c), nn.ReLU())
            for i in range(m)
        )
        self.fc = nn.Linear(c, 8)
        self.fcs = nn.ModuleList(nn.Linear(8, c) for _ in range(m))

    def forward(self, x):
        feats = torch.cat([conv(x).unsqueeze(dim=1) for conv in self.convs], dim=1)
        z = self.fc(feats.sum(dim=1).mean(-1).mean(-1))
        weights = torch.cat([fc(z).unsqueeze(dim=1) for fc in self.fcs], dim=1).softmax(dim=1)
        return (feats * weights.unsqueeze(-1).unsqueeze(-1)).sum(dim=1)


@block(16)
class SplitAttention(nn.Module):
    def __init__(self, c, radix=2):
        super().__init__()
        self.radix = radix
        self.conv = nn.Conv2d(c, c * radix, 3, padding=1, groups=radix)
        self.fc1, self.fc2 = nn.Conv2d(c, 8, 1), nn.Conv2d(8, c * radix, 1)

    def forward(self, x):
        b = x.size(0)
        x = F.relu(self.conv(x))
        splits = torch.split(x, x.shape[1] // self.radix, dim=1)
        gap = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(sum(splits), 1))))
        atten = F.softmax(gap.view(b, self.radix, -1), dim=1).reshape(b, -1, 1, 1)
        return sum(a * s for a, s in zip(torch.split(atten, x.shape[1] // self.radix, dim=1), splits))


@block(16)
class ExternalAttention(nn.Module):
    def __init__(self, c, s=12):
        super().__init__()
        self.mk, self.mv = nn.Linear(c, s, bias=False), nn.Linear(s, c, bias=False)

    def forward(self, x):
        b, c, h, w = x.shape
        attn = self.mk(x.flatten(2).transpose(1, 2)).softmax(dim=1)
        attn = attn / torch.sum(attn, dim=2, keepdim=True)
        return self.mv(attn).transpose(1, 2).reshape(b, c, h, w) + x


@block(16)
class ShuffleAttention(nn.Module):
    def __init__(self, c, g=2):
        super().__init__()
        self.g = g
        n = c // (2 * g)
        self.cw, self.cb = nn.Parameter(torch.zeros(1, n, 1, 1)), nn.Parameter(torch.ones(1, n, 1, 1))
        self.sw, self.sb = nn.Parameter(torch.zeros(1, n, 1, 1)), nn.Parameter(torch.ones(1, n, 1, 1))
        self.gn = nn.GroupNorm(n, n)

    def forward(self, x):
        b, _, h, w = x.shape
        x0, x1 = x.reshape(b * self.g, -1, h, w).chunk(2, dim=1)
        x0 = x0 * torch.sigmoid(self.cw * x0.mean((2, 3), keepdim=True) + self.cb)
        x1 = x1 * torch.sigmoid(self.sw * self.gn(x1) + self.sb)
        out = torch.cat([x0, x1], dim=1).reshape(b, -1, h, w)
        return out.reshape(b, 2, -1, h, w).permute(0, 2, 1, 3, 4).reshape(b, -1, h, w)


@block(16)
class CrissCross(nn.Module):
    """Each position looks along its row and its column."""

    def __init__(self, c):
        super().__init__()
        self.q, self.k, self.v = nn.Conv2d(c, 4, 1), nn.Conv2d(c, 4, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        rows = torch.einsum("bchw,bciw->bhwi", q, k)
        cols = torch.einsum("bchw,bchj->bhwj", q, k)
        both = F.softmax(torch.cat([rows, cols], -1), dim=-1)
        h = x.size(2)
        out = torch.einsum("bhwi,bciw->bchw", both[..., :h], v) + torch.einsum("bhwj,bchj->bchw", both[..., h:], v)
        return x + out


@block(16)
class GatherExcite(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gather = nn.Conv2d(c, c, 3, stride=2, padding=1, groups=c)

    def forward(self, x):
        gate = F.interpolate(self.gather(x), size=x.shape[-2:], mode="nearest")
        return x * torch.sigmoid(gate)


@block(16)
class EfficientChannelStd(nn.Module):
    """Style pooling: mean and standard deviation of each channel."""

    def __init__(self, c):
        super().__init__()
        self.cfc = nn.Parameter(torch.randn(c, 2) * 0.1)
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x, eps=1e-5):
        n, c, _, _ = x.size()
        mean = x.view(n, c, -1).mean(dim=2, keepdim=True)
        std = (x.view(n, c, -1).var(dim=2, keepdim=True) + eps).sqrt()
        z = torch.cat((mean, std), dim=2) * self.cfc[None, :, :]
        return x * torch.sigmoid(self.bn(torch.sum(z, dim=2)[:, :, None, None]))


@block(16)
class FrequencyAttention(nn.Module):
    """Multi-spectral channel attention with fixed cosine filters."""

    def __init__(self, c, size=16, freq=4):
        super().__init__()
        filters = torch.zeros(c, size, size)
        for i in range(c):
            for t in range(size):
                filters[i, t, :] = math.cos(math.pi * (i % freq) * (t + 0.5) / size) / math.sqrt(size)
        self.register_buffer("weight", filters)
        self.fc = nn.Sequential(
            nn.Linear(c, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, c, bias=False), nn.Sigmoid()
        )

    def forward(self, x):
        n, c, _, _ = x.shape
        pooled = F.adaptive_avg_pool2d(x, (16, 16))
        y = torch.sum(pooled * self.weight, dim=[2, 3])
        return x * self.fc(y).view(n, c, 1, 1).expand_as(x)


@block(16)
class DoubleAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b, self.v, self.out = (
            nn.Conv2d(c, 8, 1),
            nn.Conv2d(c, 6, 1),
            nn.Conv2d(c, 6, 1),
            nn.Conv2d(8, c, 1),
        )

    def forward(self, x):
        b, _, h, w = x.shape
        a = self.a(x).view(b, 8, -1)
        maps = F.softmax(self.b(x).view(b, 6, -1), dim=-1)
        vectors = F.softmax(self.v(x).view(b, 6, -1), dim=1)
        descriptors = torch.bmm(a, maps.permute(0, 2, 1))
        return x + self.out(descriptors.matmul(vectors).view(b, 8, h, w))


@block(16)
class LambdaLayer(nn.Module):
    def __init__(self, c, k=4, heads=2):
        super().__init__()
        self.heads, self.dim_k = heads, k
        self.to_q = nn.Conv2d(c, k * heads, 1, bias=False)
        self.to_k, self.to_v = nn.Conv2d(c, k, 1, bias=False), nn.Conv2d(c, c // heads, 1, bias=False)

    def forward(self, x):
        b, c, h, w = x.shape
        q = self.to_q(x).reshape(b, self.heads, self.dim_k, h * w)
        k = self.to_k(x).reshape(b, self.dim_k, h * w).softmax(dim=-1)
        v = self.to_v(x).reshape(b, c // self.heads, h * w)
        lam = torch.einsum("bkm,bvm->bkv", k, v)
        y = torch.einsum("bhkn,bkv->bhvn", q, lam)
        return y.reshape(b, -1, h, w)


@block(16)
class ContextGatedConv(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.feature, self.gate = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)
        self.norm = nn.InstanceNorm2d(c, affine=True)

    def forward(self, x):
        return F.elu(self.norm(self.feature(x))) * torch.sigmoid(self.gate(x))


@block(16)
class BottleneckAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.channel = nn.Sequential(nn.Linear(c, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, c))
        self.spatial = nn.Sequential(
            nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 1, 1)
        )

    def forward(self, x):
        c = self.channel(x.mean([2, 3]))[:, :, None, None].expand_as(x)
        return x * (1 + torch.sigmoid(c * self.spatial(x).expand_as(x)))
