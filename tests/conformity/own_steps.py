"""Own modules: single operations and layers of torch, as they come between two convolutions, and ways to write them."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from own_modules import CLASSES, block, network
from torch import nn


@block(16)
class MaskedBySign(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        y = self.conv(x)
        y = torch.where(y > 0, y, 0.1 * y)
        y = y.masked_fill(y > 2.0, 2.0)
        return y * (x >= 0.1).float() + y * (x < -0.1).to(y.dtype)


@block(16)
class Thresholded(nn.Module):
    """Values below the mean of their map are left out."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        mask = y.gt(y.mean(dim=(2, 3), keepdim=True))
        any_left = mask.flatten(2).any(dim=2).unsqueeze(-1).unsqueeze(-1)
        return torch.where(mask & any_left, y, torch.zeros_like(y))


@block(16)
class MinMaxScaled(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        flat = self.conv(x).view(b, c, -1)
        low, high = flat.min(dim=2, keepdim=True)[0], flat.max(dim=2, keepdim=True)[0]
        return ((flat - low) / (high - low + 1e-5)).clip(0.05, 0.95).view(b, c, h, w)


@block(16)
class NewTensors(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3)

    def forward(self, x):
        y = self.conv(x)
        frame = x.new_zeros(y.size(0), y.size(1), x.size(2), x.size(3))
        frame[:, :, 1:-1, 1:-1] = y
        return frame + x.new_full((1,), 0.5) * torch.ones_like(frame) + torch.full_like(frame, 0.1)


@block(16)
class Interleaved(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = nn.Conv2d(c, 8, 1), nn.Conv2d(c, 8, 1)

    def forward(self, x):
        y = torch.stack([self.a(x), self.b(x)], dim=2).flatten(1, 2)
        return y.repeat_interleave(2, dim=2)[:, :, ::2].repeat_interleave(2, -1)[..., 1::2]


@block(16)
class FlippedBranches(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        y = self.conv(x) + torch.flip(self.conv(x.flip(-1)), dims=[-1]) + self.conv(torch.rot90(x, 2, [2, 3]))
        return y / 3 + torch.roll(x, (1, -1), (2, 3))


@block(16)
class Moved(nn.Module):
    """Channels last and back, a dimension taken apart."""

    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(c, c)

    def forward(self, x):
        y = self.fc(x.movedim(1, -1)).moveaxis(-1, 1)
        rows = torch.unbind(y, dim=2)
        top = torch.stack(rows[::2] + rows[1::2], dim=2)
        return top.narrow(2, 0, x.size(2)).swapaxes(2, 3).mT


@block(16)
class Arithmetic(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        y = torch.lerp(a, b, 0.3) + torch.addcdiv(a, b, b.abs() + 1, value=0.2) + torch.hypot(a, b + 0.1)
        y = y + torch.sign(a) * torch.log1p(b.abs()) + torch.atan2(a, b.abs() + 1) + torch.exp2(-a.abs())
        return torch.nan_to_num(y - torch.fmod(a, 2.0) + a.round() * 0.1 + b.floor() * 0.1, nan=0.0)


@block(16)
class FewActivations(nn.Module):
    def __init__(self, c):
        super().__init__()
        acts = [
            nn.Softsign(),
            nn.Tanhshrink(),
            nn.Hardshrink(0.2),
            nn.Softshrink(0.2),
            nn.Threshold(0.1, 0.0),
            nn.RReLU(),
            nn.CELU(),
        ]
        self.acts = nn.ModuleList(acts)
        self.convs = nn.ModuleList(nn.Conv2d(c, c, 1) for _ in acts)

    def forward(self, x):
        return sum(act(conv(x)) for act, conv in zip(self.acts, self.convs))


@block(16)
class OwnActivations(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.beta = nn.Conv2d(c, c, 3, padding=1), nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = self.conv(x)
        swish, mish = y * torch.sigmoid(self.beta * y), y * torch.tanh(F.softplus(y))
        serf = y * torch.erf(torch.log1p(torch.exp(y)))
        return swish + mish + serf + F.threshold(y, 0.1, 0.0) + F.logsigmoid(y) + F.softsign(y) + F.hardshrink(y)


@block(16)
class Funnel(nn.Module):
    """The larger of a value and a depthwise view of it."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        return torch.max(x, self.bn(self.conv(x)))


@block(16)
class DynamicRelu(nn.Module):
    def __init__(self, c, k=2):
        super().__init__()
        self.c, self.k = c, k
        self.fc1, self.fc2 = nn.Linear(c, 8), nn.Linear(8, 2 * k * c)
        self.register_buffer("lambdas", torch.tensor([1.0, 1.0, 0.5, 0.5]))
        self.register_buffer("start", torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, x):
        theta = 2 * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean(-1).mean(-1))))) - 1
        coefs = theta.view(-1, self.c, 2 * self.k) * self.lambdas + self.start
        y = x.permute(2, 3, 0, 1).unsqueeze(-1)
        out = torch.max(y * coefs[:, :, : self.k] + coefs[:, :, self.k :], dim=-1)[0]
        return out.permute(2, 3, 0, 1)


@block(16)
class Pads(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, c, 3) for _ in range(3))

    def forward(self, x):
        a = self.convs[0](F.pad(x, (1, 1, 1, 1), mode="reflect"))
        b = self.convs[1](nn.ReplicationPad2d(1)(x))
        return a + b + self.convs[2](F.pad(x, (2, 0, 2, 0), "constant", 0.5))


@block(16)
class RowPads(nn.Module):
    """Padding layers in one dimension and in three."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.zero, self.mirror = nn.Conv1d(c, c, 5), nn.ZeroPad1d(1), nn.ReflectionPad1d(1)
        self.cube, self.around = nn.Conv3d(c, c, (1, 3, 3)), nn.ReflectionPad3d((1, 1, 1, 1, 0, 0))

    def forward(self, x):
        b, c, h, w = x.shape
        y = self.conv(self.mirror(self.zero(x.flatten(2)))).view(b, c, h, w)
        return self.cube(self.around(y.unflatten(2, (2, h // 2)))).flatten(2, 3)


@block(16)
class RowPools(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.pool, self.top = nn.Conv1d(c, c, 3, padding=1), nn.AdaptiveMaxPool1d(8), nn.LPPool1d(2, 2)

    def forward(self, x):
        y = self.conv(x.flatten(2))
        gate = self.pool(y).mean(-1) + F.adaptive_avg_pool1d(self.top(y.relu() + 0.1), 4).amax(-1)
        return x * torch.sigmoid(gate)[..., None, None]


@block(16)
class InstanceAndBatch(nn.Module):
    """Half of the channels instance-normed, the others batch-normed."""

    def __init__(self, c):
        super().__init__()
        self.half = c // 2
        self.conv = nn.Conv2d(c, c, 3, padding=1)
        self.inorm, self.bnorm = nn.InstanceNorm2d(self.half, affine=True), nn.BatchNorm2d(c - self.half)

    def forward(self, x):
        split = torch.split(self.conv(x), self.half, 1)
        return torch.cat((self.inorm(split[0].contiguous()), self.bnorm(split[1].contiguous())), 1)


@block(16)
class SwitchableNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, 12, 1)
        self.weight, self.bias = nn.Parameter(torch.ones(1, 12, 1, 1)), nn.Parameter(torch.zeros(1, 12, 1, 1))
        self.mix, self.back = nn.Parameter(torch.ones(2)), nn.Conv2d(12, c, 1)

    def forward(self, x):
        x = self.conv(x)
        n, c, h, w = x.size()
        x = x.view(n, c, -1)
        mean_in, var_in = x.mean(-1, keepdim=True), x.var(-1, keepdim=True)
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = (var_in + mean_in**2).mean(1, keepdim=True) - mean_ln**2
        a = F.softmax(self.mix, 0)
        x = (x - (a[0] * mean_in + a[1] * mean_ln)) / (a[0] * var_in + a[1] * var_ln + 1e-5).sqrt()
        return self.back(x.view(n, c, h, w) * self.weight + self.bias)


@block(16)
class Autocast(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        with torch.autocast(device_type="cpu", enabled=False):
            y = self.conv(x.to(self.conv.weight.dtype).contiguous())
        return y.cpu().type(x.dtype)


@block(16)
class ListsOfBlocks(nn.Module):
    """Blocks in a dict, chosen by Python numbers and flags."""

    def __init__(self, c):
        super().__init__()
        self.depth, self.residual = 3, True
        self.blocks = nn.ModuleDict(OrderedDict((f"b{i}", nn.Conv2d(c, c, 3, padding=1)) for i in range(3)))
        self.scale = {"b0": 1.0, "b1": 0.5, "b2": 0.25}

    def forward(self, x):
        kept = {}
        for i, (name, blk) in enumerate(self.blocks.items()):
            y = F.relu(blk(x)) * self.scale[name]
            x = x + y if self.residual and i % 2 == 0 else y
            kept[name] = x
        return torch.stack(list(kept.values())).sum(0) / self.depth


@block(16)
class SizeDependent(nn.Module):
    """Takes another way for small images."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        b, c, h, w = x.shape
        if h % 2 or w % 2:
            x = F.pad(x, (0, w % 2, 0, h % 2))
        y = self.conv(x).view(b, c, -1)
        y = y - y.mean(-1, keepdim=True)
        return y.view(b, c, x.shape[2], x.shape[3])[:, :, :h, :w]


@block(16)
class OuterGate(nn.Module):
    """A gate for each position as an outer product of a row and a column."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)
        self.register_buffer("line", torch.linspace(0.5, 1.5, 16))

    def forward(self, x):
        return self.conv(x) * torch.outer(self.line, self.line) + x.prod(dim=3, keepdim=True).tanh()


@block(16)
class MedianResidual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        patches = F.unfold(x, 3, padding=1).view(x.size(0), x.size(1), 9, x.size(2), x.size(3))
        return self.conv(x - patches.median(dim=2)[0])


@block(16)
class TensorSplits(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(10, c, 1)

    def forward(self, x):
        a, b, c = torch.tensor_split(x, (4, 10), dim=1)
        return self.conv(torch.hstack([a, b]) + F.pad(c, (0, 0, 0, 0, 0, 4)).sum(1, keepdim=True))


@network(sizes=False)
class FlattenUnflatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 192), nn.ReLU())
        self.back = nn.Sequential(
            nn.Unflatten(1, (12, 4, 4)), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(64, CLASSES)
        )

    def forward(self, x):
        return self.back(self.front(x))


@network()
class StandardisedInput(nn.Module):
    """Normalises its images itself, with constants made in forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.more, self.fc = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 24, 3, 2, 1),
            nn.Linear(24, CLASSES),
        )

    def forward(self, x):
        mean = torch.tensor([0.4, 0.5, 0.6], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
        std = x.new_tensor([0.2, 0.3, 0.2]).reshape(1, 3, 1, 1)
        x = ((x - mean) / std).to(memory_format=torch.channels_last)
        x = F.interpolate(x, scale_factor=0.5, mode="bicubic", align_corners=False, recompute_scale_factor=False)
        return self.fc(F.relu(self.more(F.relu(self.conv(x)))).mean((2, 3)))


@network()
class DeepSupervision(nn.Module):
    """Several logits; the last ones count in evaluation."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, 2, 1)
        self.aux, self.fc = nn.Linear(16, CLASSES), nn.Linear(24, CLASSES)

    def forward(self, x, return_features: bool = False):
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        if self.training:
            return self.fc(b.mean((2, 3))), self.aux(a.mean((2, 3)))
        return self.fc(b.mean((2, 3))) + 0.3 * self.aux(a.mean((2, 3)))


@network()
class EarlyExit(nn.Module):
    """Exits mixed by a learned halting score."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.steps = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.halt, self.fc = nn.Linear(16, 1), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        left = torch.ones(x.size(0), 1, device=x.device, dtype=x.dtype)
        out = torch.zeros(x.size(0), CLASSES, device=x.device, dtype=x.dtype)
        for step in self.steps:
            x = x + F.relu(step(x))
            pooled = x.mean((2, 3))
            p = torch.sigmoid(self.halt(pooled))
            out = out + left * p * self.fc(pooled)
            left = left * (1 - p)
        return out


@network()
class DifferentiableTree(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.gates = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 2, 1), nn.Linear(24, 3)
        self.leaves = nn.Parameter(torch.randn(4, CLASSES))

    def forward(self, x):
        d = torch.sigmoid(self.gates(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3))))
        left = torch.stack([d[:, 0] * d[:, 1], d[:, 0] * (1 - d[:, 1])], dim=1)
        right = torch.stack([(1 - d[:, 0]) * d[:, 2], (1 - d[:, 0]) * (1 - d[:, 2])], dim=1)
        return torch.cat([left, right], dim=1) @ self.leaves
