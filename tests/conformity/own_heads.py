"""Own modules: pooling and classifiers at the end of a network."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from own_modules import CLASSES, network
from torch import nn


class Head(nn.Module):
    """Two convolutions and a head that a subclass makes; the head takes maps (batch, 24, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
            *(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        )
        self.head = self.made()

    def made(self):
        raise NotImplementedError

    def forward(self, x):
        return self.head(self.body(x))


def head(cls):
    """Add a classifier with this head, made from the width of the maps."""
    network()(type(cls.__name__, (Head,), {"made": lambda self: cls(24)}))
    return cls


@head
class Cosine(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(CLASSES, c)), 10.0

    def forward(self, x):
        x = x.mean((2, 3))
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


@head
class CosineScaled(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, c))
        self.sigma = nn.Parameter(torch.tensor(4.0))

    def forward(self, x):
        x = x.mean((2, 3))
        x = x / x.norm(p=2, dim=1, keepdim=True).clamp(min=1e-12)
        w = self.weight / self.weight.norm(dim=1, keepdim=True)
        return self.sigma * torch.mm(x, w.t())


@head
class ArcFace(nn.Module):
    """The margin needs a label; without one the angle is used as it is."""

    def __init__(self, c, s=8.0, m=0.3):
        super().__init__()
        self.weight, self.s, self.m = nn.Parameter(torch.randn(CLASSES, c)), s, m
        self.bn = nn.BatchNorm1d(c)

    def forward(self, x, label=None):
        x = self.bn(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        cosine = F.linear(F.normalize(x, p=2, dim=1), F.normalize(self.weight, p=2, dim=1)).clamp(-1 + 1e-7, 1 - 1e-7)
        if label is None:
            return cosine * self.s
        target = torch.cos(torch.acos(cosine) + self.m)
        return self.s * torch.where(F.one_hot(label, CLASSES).bool(), target, cosine)


@head
class Prototypes(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed, self.prototypes = nn.Linear(c, 12), nn.Parameter(torch.randn(CLASSES, 12))

    def forward(self, x):
        return -torch.cdist(self.embed(x.mean((2, 3))), self.prototypes)


@head
class SquaredDistance(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed, self.centres = nn.Linear(c, 12), nn.Parameter(torch.randn(CLASSES, 12))

    def forward(self, x):
        x = self.embed(x.mean((2, 3)))
        return -(x.unsqueeze(1) - self.centres.unsqueeze(0)).pow(2).sum(2)


@head
class ProtoMaps(nn.Module):
    """Prototypes as 1x1 filters; the nearest place counts."""

    def __init__(self, c, n=8):
        super().__init__()
        self.add_on = nn.Sequential(nn.Conv2d(c, 12, 1), nn.Sigmoid())
        self.prototypes, self.last = nn.Parameter(torch.rand(n, 12, 1, 1)), nn.Linear(n, CLASSES, bias=False)

    def forward(self, x):
        x = self.add_on(x)
        x2 = F.conv2d(x**2, torch.ones_like(self.prototypes))
        p2 = (self.prototypes**2).sum(dim=(1, 2, 3)).view(-1, 1, 1)
        distances = F.relu(x2 - 2 * F.conv2d(x, self.prototypes) + p2)
        low = -F.max_pool2d(-distances, kernel_size=(distances.size(2), distances.size(3))).view(-1, 8)
        return self.last(torch.log((low + 1) / (low + 1e-4)))


@head
class Gem(nn.Module):
    def __init__(self, c, eps=1e-6):
        super().__init__()
        self.p, self.eps, self.fc = nn.Parameter(torch.ones(1) * 3), eps, nn.Linear(c, CLASSES)

    def forward(self, x):
        x = F.avg_pool2d(x.clamp(min=self.eps).pow(self.p), (x.size(-2), x.size(-1))).pow(1.0 / self.p)
        return self.fc(x.flatten(1))


@head
class MeanAndStd(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(2 * c, CLASSES)

    def forward(self, x):
        x = x.flatten(2)
        return self.fc(torch.cat([x.mean(-1), x.std(-1)], dim=1))


@head
class VarianceMean(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(2 * c, CLASSES)

    def forward(self, x):
        var, mean = torch.var_mean(x, dim=(2, 3), unbiased=False)
        return self.fc(torch.cat([var, mean], 1))


@head
class MaxAndMean(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(2 * c, CLASSES)

    def forward(self, x):
        return self.fc(torch.cat((F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)), 1).flatten(1))


@head
class TopKPool(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(c, CLASSES)

    def forward(self, x):
        return self.fc(x.view(x.size(0), x.size(1), -1).topk(4, dim=2)[0].mean(2))


@head
class KMaxSorted(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(c, CLASSES)

    def forward(self, x):
        ordered, _ = torch.sort(x.flatten(2), dim=-1, descending=True)
        return self.fc(ordered[..., :3].sum(-1) - ordered[..., -3:].mean(-1))


@head
class LogSumExpPool(nn.Module):
    def __init__(self, c, r=5.0):
        super().__init__()
        self.r, self.fc = r, nn.Linear(c, CLASSES)

    def forward(self, x):
        return self.fc((torch.logsumexp(self.r * x.flatten(2), dim=2) - math.log(x.size(2) * x.size(3))) / self.r)


@head
class AttentionPool(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.att, self.fc = nn.Conv2d(c, 1, 1), nn.Linear(c, CLASSES)

    def forward(self, x):
        a = F.softmax(self.att(x).flatten(2), dim=-1)
        return self.fc((x.flatten(2) * a).sum(dim=-1))


@head
class GatedMil(nn.Module):
    """Positions as instances of a bag, with gated attention."""

    def __init__(self, c):
        super().__init__()
        self.v, self.u = nn.Sequential(nn.Linear(c, 12), nn.Tanh()), nn.Sequential(nn.Linear(c, 12), nn.Sigmoid())
        self.w, self.fc = nn.Linear(12, 1), nn.Linear(c, CLASSES)

    def forward(self, x):
        h = x.flatten(2).transpose(2, 1)
        a = self.w(self.v(h) * self.u(h)).transpose(2, 1)
        return self.fc(torch.bmm(torch.softmax(a, dim=2), h).squeeze(1))


@head
class ClassActivation(nn.Module):
    """Class residuals: the largest and the mean score over positions."""

    def __init__(self, c):
        super().__init__()
        self.head = nn.Conv2d(c, CLASSES, 1, bias=False)

    def forward(self, x):
        score = self.head(x) / torch.norm(self.head.weight, dim=1, keepdim=True).transpose(0, 1)
        score = score.flatten(2)
        return score.mean(dim=2) + 0.2 * torch.max(score, dim=2)[0]


@head
class Capsules(nn.Module):
    """Capsules: vectors that are squashed, their lengths the logits."""

    def __init__(self, c):
        super().__init__()
        self.primary = nn.Conv2d(c, 16, 3, stride=2)
        self.w = nn.Parameter(torch.randn(1, 36, CLASSES, 6, 4) * 0.2)

    @staticmethod
    def squash(s, dim=-1):
        n2 = (s**2).sum(dim=dim, keepdim=True)
        return n2 / (1 + n2) * s / (n2.sqrt() + 1e-8)

    def forward(self, x):
        u = self.squash(self.primary(x).view(x.size(0), 4, 4, -1).permute(0, 1, 3, 2).reshape(x.size(0), -1, 4))
        u_hat = torch.matmul(self.w, u[:, :, None, :, None]).squeeze(-1)
        b = torch.zeros(x.size(0), u_hat.size(1), CLASSES, 1, device=x.device, dtype=x.dtype)
        for i in range(2):
            v = self.squash((b.softmax(dim=2) * u_hat).sum(dim=1, keepdim=True))
            if i < 1:
                b = b + (u_hat * v).sum(-1, keepdim=True)
        return v.squeeze(1).norm(dim=-1)


@head
class BilinearPool(nn.Module):
    """Products of all pairs of channels, with a signed root."""

    def __init__(self, c):
        super().__init__()
        self.reduce, self.fc = nn.Conv2d(c, 8, 1), nn.Linear(64, CLASSES)

    def forward(self, x):
        x = self.reduce(x)
        n, c, h, w = x.size()
        x = x.view(n, c, h * w)
        phi = (torch.bmm(x, x.transpose(1, 2)) / (h * w)).view(n, c * c)
        phi = torch.sign(phi) * torch.sqrt(torch.abs(phi) + 1e-5)
        return self.fc(F.normalize(phi))


@head
class BilinearLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a, self.b, self.bilinear = nn.Linear(c, 6), nn.Linear(c, 5), nn.Bilinear(6, 5, CLASSES)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.bilinear(self.a(x), self.b(x))


@head
class NetVlad(nn.Module):
    def __init__(self, c, k=5):
        super().__init__()
        self.conv, self.centroids = nn.Conv2d(c, k, 1), nn.Parameter(torch.rand(k, c))
        self.k, self.fc = k, nn.Linear(k * c, CLASSES)

    def forward(self, x):
        n, c = x.shape[:2]
        x = F.normalize(x, p=2, dim=1)
        soft = F.softmax(self.conv(x).view(n, self.k, -1), dim=1)
        flat = x.view(n, c, -1)
        residual = flat.expand(self.k, -1, -1, -1).permute(1, 0, 2, 3) - self.centroids.expand(
            flat.size(-1), -1, -1
        ).permute(1, 2, 0).unsqueeze(0)
        residual = residual * soft.unsqueeze(2)
        vlad = F.normalize(residual.sum(dim=-1), p=2, dim=2).view(n, -1)
        return self.fc(F.normalize(vlad, p=2, dim=1))


@head
class RegionPool(nn.Module):
    """Regions of interest: crops of the maps, pooled and averaged."""

    def __init__(self, c):
        super().__init__()
        self.fc, self.boxes = nn.Linear(c * 4, CLASSES), [(0, 0, 4, 4), (2, 2, 8, 8), (0, 3, 5, 8)]

    def forward(self, x):
        found = []
        for y0, x0, y1, x1 in self.boxes:
            region = x[:, :, y0:y1, x0:x1]
            found.append(F.adaptive_max_pool2d(region, (2, 2)).flatten(1))
        return self.fc(torch.stack(found).mean(0))


@head
class Stripes(nn.Module):
    """A classifier for each horizontal stripe, as in re-identification."""

    def __init__(self, c, parts=4):
        super().__init__()
        self.parts = parts
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(parts)
        )
        self.fcs = nn.ModuleList(nn.Linear(8, CLASSES) for _ in range(parts))

    def forward(self, x):
        x = F.adaptive_avg_pool2d(x, (self.parts, 1))
        logits = []
        for i in range(self.parts):
            logits.append(self.fcs[i](self.reduce[i](x[:, :, i : i + 1, :]).view(x.size(0), -1)))
        return torch.stack(logits, dim=0).sum(dim=0)


@head
class MultiSampleDropout(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.drops, self.fc = nn.ModuleList(nn.Dropout(0.5) for _ in range(3)), nn.Linear(c, CLASSES)

    def forward(self, x):
        x = x.mean((2, 3))
        for i, drop in enumerate(self.drops):
            out = self.fc(drop(x)) if i == 0 else out + self.fc(drop(x))  # noqa: F821
        return out / len(self.drops)


@head
class HierarchicalHead(nn.Module):
    """Coarse classes tell fine ones."""

    def __init__(self, c):
        super().__init__()
        self.coarse, self.fine = nn.Linear(c, 2), nn.Linear(c, CLASSES)
        self.register_buffer("parent", torch.tensor([0, 0, 1, 1]))

    def forward(self, x):
        x = x.mean((2, 3))
        coarse = F.log_softmax(self.coarse(x), dim=1)
        return self.fine(x) + coarse.index_select(1, self.parent)


@head
class Noisy(nn.Module):
    """A head that looks at a constant table by fixed places."""

    def __init__(self, c):
        super().__init__()
        self.table, self.fc = nn.Embedding(6, c), nn.Linear(c, CLASSES)
        self.register_buffer("which", torch.tensor([1, 3, 5]))

    def forward(self, x):
        return self.fc(x.mean((2, 3)) + self.table(self.which).mean(dim=0))


@head
class Normalised(nn.Module):
    """Whitened features: subtracts the mean over channels, divides by their deviation."""

    def __init__(self, c):
        super().__init__()
        self.hidden, self.fc = nn.Linear(c, 20), nn.Linear(20, CLASSES)

    def forward(self, x):
        x = F.relu(self.hidden(x.amax(dim=(2, 3))))
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, unbiased=False) + 1e-5)
        return self.fc(x)


@head
class CenterCropped(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(c, CLASSES)

    def forward(self, x):
        h, w = x.shape[2:]
        x = x[:, :, h // 4 : h - h // 4, w // 4 : w - w // 4]
        return self.fc(x.reshape(x.shape[0], x.shape[1], -1).median(dim=2).values + x.amin((2, 3)))
