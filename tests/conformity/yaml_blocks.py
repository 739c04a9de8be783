"""Blocks that rows of a configuration name, as in detectors: they take (input channels, output channels, ...)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS: dict[str, type[nn.Module]] = {
    name: getattr(nn, name) for name in ("Upsample", "MaxPool2d", "ZeroPad2d", "BatchNorm2d", "Identity")
}
WIDE: set[str] = set()  # blocks that take their numbers of channels
DEEP: set[str] = set()  # of these, blocks that repeat themselves


def block(repeats: bool = False) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Add a block that takes its numbers of channels to the table."""

    def add(cls):
        BLOCKS[cls.__name__] = cls
        WIDE.add(cls.__name__)
        if repeats:
            DEEP.add(cls.__name__)
        return cls

    return add


def same(k: int, p: int | None = None, d: int = 1) -> int:
    """The padding that keeps a size."""
    return d * (k - 1) // 2 if p is None else p


# -- convolutions --------------------------------------------------------------------------------------------------


@block()
class Conv(nn.Module):
    """A convolution, a batch norm and an activation, which all convolutions share unless they have their own."""

    default_act = nn.SiLU()

    def __init__(self, c1, c2, k=1, s=1, p=None, g=1, d=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, same(k, p, d), groups=g, dilation=d, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = self.default_act if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))

    def fuse(self):
        """Fold the batch norm into the convolution."""
        self.conv = nn.utils.fuse_conv_bn_eval(self.conv, self.bn)
        del self.bn
        self.forward = self.forward_fuse


@block()
class DWConv(Conv):
    def __init__(self, c1, c2, k=1, s=1, d=1, act=True):
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


@block()
class LightConv(nn.Module):
    def __init__(self, c1, c2, k=1, act=True):
        super().__init__()
        self.conv1, self.conv2 = Conv(c1, c2, 1, act=False), DWConv(c2, c2, k, act=act)

    def forward(self, x):
        return self.conv2(self.conv1(x))


@block()
class Focus(nn.Module):
    """Every second pixel of both directions, as channels."""

    def __init__(self, c1, c2, k=1, s=1):
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k, s)

    def forward(self, x):
        return self.conv(torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1))


@block()
class GhostConv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1, g=1, act=True):
        super().__init__()
        half = c2 // 2
        self.cv1, self.cv2 = Conv(c1, half, k, s, None, g, act=act), Conv(half, half, 5, 1, None, half, act=act)

    def forward(self, x):
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


@block()
class RepConv(nn.Module):
    """Convolutions of two sizes side by side, and a batch norm beside them where the shapes agree."""

    def __init__(self, c1, c2, k=3, s=1, bn=True):
        super().__init__()
        self.conv1, self.conv2 = Conv(c1, c2, k, s, act=False), Conv(c1, c2, 1, s, act=False)
        self.bn = nn.BatchNorm2d(c1) if bn and c1 == c2 and s == 1 else None
        self.act = nn.SiLU()

    def forward(self, x):
        identity = 0 if self.bn is None else self.bn(x)
        return self.act(self.conv1(x) + self.conv2(x) + identity)


@block()
class SCDown(nn.Module):
    def __init__(self, c1, c2, k, s):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c2, 1, 1), Conv(c2, c2, k, s, g=c2, act=False)

    def forward(self, x):
        return self.cv2(self.cv1(x))


@block()
class ADown(nn.Module):
    """Halves the size: of half of the channels by a convolution, of the others by a maximum."""

    def __init__(self, c1, c2):
        super().__init__()
        self.cv1, self.cv2 = Conv(c1 // 2, c2 // 2, 3, 2, 1), Conv(c1 // 2, c2 // 2, 1, 1, 0)

    def forward(self, x):
        x = F.avg_pool2d(x, 2, 1, 0, False, True)
        a, b = x.chunk(2, 1)
        return torch.cat((self.cv1(a), self.cv2(F.max_pool2d(b, 3, 2, 1))), 1)


# -- stages --------------------------------------------------------------------------------------------------------


@block()
class Bottleneck(nn.Module):
    def __init__(self, c1, c2, shortcut=True, g=1, k=(3, 3), e=0.5):
        super().__init__()
        c_ = int(c2 * e)
        self.cv1, self.cv2 = Conv(c1, c_, k[0], 1), Conv(c_, c2, k[1], 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


@block()
class CIB(nn.Module):
    def __init__(self, c1, c2, shortcut=True, e=0.5):
        super().__init__()
        c_ = 2 * int(c2 * e)
        self.cv1 = nn.Sequential(
            *(Conv(c1, c1, 3, g=c1), Conv(c1, c_, 1), Conv(c_, c_, 7, g=c_)),
            *(Conv(c_, c2, 1), Conv(c2, c2, 3, g=c2)),
        )
        self.add = shortcut and c1 == c2

    def forward(self, x):
        return x + self.cv1(x) if self.add else self.cv1(x)


@block()
class GhostBottleneck(nn.Module):
    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        c_ = c2 // 2
        down = DWConv(c_, c_, k, s, act=False) if s == 2 else nn.Identity()
        self.conv = nn.Sequential(GhostConv(c1, c_, 1, 1), down, GhostConv(c_, c2, 1, 1, act=False))
        by_one = nn.Sequential(DWConv(c1, c1, k, s, act=False), Conv(c1, c2, 1, 1, act=False))
        self.shortcut = by_one if s == 2 else nn.Identity()

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


@block(repeats=True)
class C3(nn.Module):
    """Two paths, of which one has bottlenecks."""

    def __init__(self, c1, c2, n=1, shortcut=True, g=1, e=0.5):
        super().__init__()
        self.c = int(c2 * e)
        self.cv1, self.cv2, self.cv3 = Conv(c1, self.c, 1, 1), Conv(c1, self.c, 1, 1), Conv(2 * self.c, c2, 1)
        self.m = nn.Sequential(*(self.inner(shortcut, g) for _ in range(n)))

    def inner(self, shortcut, g):
        return Bottleneck(self.c, self.c, shortcut, g, k=(1, 3), e=1.0)

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


@block(repeats=True)
class C3Ghost(C3):
    def inner(self, shortcut, g):
        return GhostBottleneck(self.c, self.c)


class C3k(C3):
    def inner(self, shortcut, g):
        return Bottleneck(self.c, self.c, shortcut, g, k=(3, 3), e=1.0)


@block(repeats=True)
class C2f(nn.Module):
    """Halves, of which one goes through bottlenecks; all that comes between is kept."""

    def __init__(self, c1, c2, n=1, shortcut=False, g=1, e=0.5):
        super().__init__()
        self.c = int(c2 * e)
        self.cv1, self.cv2 = Conv(c1, 2 * self.c, 1, 1), Conv((2 + n) * self.c, c2, 1)
        self.m = nn.ModuleList(self.inner(shortcut, g) for _ in range(n))

    def inner(self, shortcut, g):
        return Bottleneck(self.c, self.c, shortcut, g, e=1.0)

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


@block(repeats=True)
class C3k2(C2f):
    def __init__(self, c1, c2, n=1, c3k=False, e=0.5, g=1, shortcut=True):
        self.c3k = c3k
        super().__init__(c1, c2, n, shortcut, g, e)

    def inner(self, shortcut, g):
        return C3k(self.c, self.c, 2, shortcut, g) if self.c3k else Bottleneck(self.c, self.c, shortcut, g)


@block(repeats=True)
class C2fCIB(C2f):
    def inner(self, shortcut, g):
        return CIB(self.c, self.c, shortcut, e=1.0)


@block()
class ELAN(nn.Module):
    """Split by sizes; each path goes on from the one before."""

    def __init__(self, c1, c2, c3, c4, n=1):
        super().__init__()
        self.c = c3 // 2
        self.cv1, self.cv4 = Conv(c1, c3, 1, 1), Conv(c3 + 2 * c4, c2, 1, 1)
        self.cv2 = nn.Sequential(RepStage(c3 // 2, c4, n), Conv(c4, c4, 3, 1))
        self.cv3 = nn.Sequential(RepStage(c4, c4, n), Conv(c4, c4, 3, 1))

    def forward(self, x):
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in [self.cv2, self.cv3])
        return self.cv4(torch.cat(y, 1))


class RepStage(C3):
    def __init__(self, c1, c2, n=1):
        super().__init__(c1, c2, n)
        self.m = nn.Sequential(*(RepConv(self.c, self.c) for _ in range(n)))


@block()
class SPP(nn.Module):
    """Maxima of windows of several sizes side by side."""

    def __init__(self, c1, c2, k=(5, 9, 13)):
        super().__init__()
        c_ = c1 // 2
        self.cv1, self.cv2 = Conv(c1, c_, 1, 1), Conv(c_ * (len(k) + 1), c2, 1, 1)
        self.m = nn.ModuleList([nn.MaxPool2d(kernel_size=x, stride=1, padding=x // 2) for x in k])

    def forward(self, x):
        x = self.cv1(x)
        return self.cv2(torch.cat([x] + [m(x) for m in self.m], 1))


@block()
class SPPF(nn.Module):
    """The same by one window that is run several times."""

    def __init__(self, c1, c2, k=5):
        super().__init__()
        c_ = c1 // 2
        self.cv1, self.cv2 = Conv(c1, c_, 1, 1), Conv(c_ * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x):
        y = [self.cv1(x)]
        for _ in range(3):
            y.append(self.m(y[-1]))
        return self.cv2(torch.cat(y, 1))


@block()
class Shuffled(nn.Module):
    """Half of the channels through a depthwise convolution, then a shuffle of both halves."""

    def __init__(self, c1, c2, s=1):
        super().__init__()
        self.stride, half = s, c2 // 2
        enters = c1 if s == 2 else half
        self.left = nn.Sequential(DWConv(c1, c1, 3, 2, act=False), Conv(c1, half, 1)) if s == 2 else nn.Identity()
        self.right = nn.Sequential(
            Conv(enters, half, 1), Conv(half, half, 3, s, g=half, act=False), Conv(half, half, 1, act=nn.ReLU())
        )

    def forward(self, x):
        if self.stride == 1:
            a, b = x.chunk(2, dim=1)
            y = torch.cat((a, self.right(b)), dim=1)
        else:
            y = torch.cat((self.left(x), self.right(x)), dim=1)
        b, c, h, w = y.shape
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


@block()
class HGStem(nn.Module):
    def __init__(self, c1, c2, cm):
        super().__init__()
        act = nn.ReLU()
        self.stem1, self.stem2a = Conv(c1, cm, 3, 2, act=act), Conv(cm, cm // 2, 2, 1, 0, act=act)
        self.stem2b, self.stem3 = Conv(cm // 2, cm, 2, 1, 0, act=act), Conv(cm * 2, cm, 3, 2, act=act)
        self.stem4 = Conv(cm, c2, 1, 1, act=act)
        self.pool = nn.MaxPool2d(kernel_size=2, stride=1, padding=0, ceil_mode=True)

    def forward(self, x):
        x = F.pad(self.stem1(x), [0, 1, 0, 1])
        y = self.stem2b(F.pad(self.stem2a(x), [0, 1, 0, 1]))
        return self.stem4(self.stem3(torch.cat([self.pool(x), y], dim=1)))


@block(repeats=True)
class HGBlock(nn.Module):
    """All that comes between is kept, squeezed and excited."""

    def __init__(self, c1, c2, n=3, cm=16, k=3, light=False, shortcut=False):
        super().__init__()
        kind, act = (LightConv if light else Conv), nn.ReLU()
        self.m = nn.ModuleList(kind(c1 if i == 0 else cm, cm, k=k, act=act) for i in range(n))
        self.sc, self.ec = Conv(c1 + n * cm, c2 // 2, 1, act=act), Conv(c2 // 2, c2, 1, act=act)
        self.add = shortcut and c1 == c2

    def forward(self, x):
        y = [x]
        y.extend(m(y[-1]) for m in self.m)
        y = self.ec(self.sc(torch.cat(y, 1)))
        return y + x if self.add else y


# -- attention -----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Attention between positions, with a depthwise convolution of the values as their place."""

    def __init__(self, dim, num_heads=2, attn_ratio=0.5):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.key_dim = int(self.head_dim * attn_ratio)
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(dim, dim + self.key_dim * num_heads * 2, 1, act=False)
        self.proj, self.pe = Conv(dim, dim, 1, act=False), Conv(dim, dim, 3, 1, g=dim, act=False)

    def forward(self, x):
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.scale).softmax(dim=-1)
        y = (v @ attn.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(y)


class PSABlock(nn.Module):
    def __init__(self, c, num_heads=2, shortcut=True):
        super().__init__()
        self.attn, self.ffn = Attention(c, num_heads), nn.Sequential(Conv(c, c * 2, 1), Conv(c * 2, c, 1, act=False))
        self.add = shortcut

    def forward(self, x):
        x = x + self.attn(x) if self.add else self.attn(x)
        return x + self.ffn(x) if self.add else self.ffn(x)


@block(repeats=True)
class C2PSA(nn.Module):
    """Half of the channels through attention."""

    def __init__(self, c1, c2, n=1, e=0.5):
        super().__init__()
        assert c1 == c2
        self.c = int(c1 * e)
        self.cv1, self.cv2 = Conv(c1, 2 * self.c, 1, 1), Conv(2 * self.c, c1, 1)
        self.m = nn.Sequential(*(PSABlock(self.c, num_heads=max(self.c // 16, 1)) for _ in range(n)))

    def forward(self, x):
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        return self.cv2(torch.cat((a, self.m(b)), 1))


class AreaAttention(nn.Module):
    """Attention within stripes of the map."""

    def __init__(self, dim, num_heads, area=1):
        super().__init__()
        self.area, self.num_heads, self.head_dim = area, num_heads, dim // num_heads
        self.qkv, self.proj = Conv(dim, dim * 3, 1, act=False), Conv(dim, dim, 1, act=False)
        self.pe = Conv(dim, dim, 7, 1, 3, g=dim, act=False)

    def forward(self, x):
        b, c, h, w = x.shape
        n = h * w
        qkv = self.qkv(x).flatten(2).transpose(1, 2)
        if self.area > 1:
            qkv = qkv.reshape(b * self.area, n // self.area, c * 3)
            b, n, _ = qkv.shape
        q, k, v = (
            qkv.view(b, n, self.num_heads, self.head_dim * 3).permute(0, 2, 3, 1).split([self.head_dim] * 3, dim=2)
        )
        attn = (q.transpose(-2, -1) @ k) * (self.head_dim**-0.5)
        x = (v @ attn.softmax(dim=-1).transpose(-2, -1)).permute(0, 3, 1, 2)
        v = v.permute(0, 3, 1, 2)
        if self.area > 1:
            x, v = (y.reshape(b // self.area, n * self.area, c) for y in (x, v))
            b, n, _ = x.shape
        x, v = (y.reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous() for y in (x, v))
        return self.proj(x + self.pe(v))


class AreaBlock(nn.Module):
    def __init__(self, dim, num_heads, ratio=1.2, area=1):
        super().__init__()
        self.attn, hidden = AreaAttention(dim, num_heads, area), int(dim * ratio)
        self.mlp = nn.Sequential(Conv(dim, hidden, 1), Conv(hidden, dim, 1, act=False))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


@block(repeats=True)
class A2C2f(nn.Module):
    """All that comes between is kept, with a learned scale of the whole."""

    def __init__(self, c1, c2, n=1, area=1, e=0.5):
        super().__init__()
        c_ = int(c2 * e)
        self.cv1, self.cv2 = Conv(c1, c_, 1, 1), Conv((1 + n) * c_, c2, 1)
        self.gamma = nn.Parameter(0.5 * torch.ones(c2)) if c1 == c2 else None
        heads = max(c_ // 16, 1)
        self.m = nn.ModuleList(nn.Sequential(*(AreaBlock(c_, heads, area=area) for _ in range(2))) for _ in range(n))

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(m(y[-1]) for m in self.m)
        y = self.cv2(torch.cat(y, 1))
        return y if self.gamma is None else x + self.gamma.view(-1, self.gamma.shape[0], 1, 1) * y


@block()
class CBAM(nn.Module):
    """Gates of channels, then of places."""

    def __init__(self, c1, c2, k=7):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c1, c1, 1, 1, 0, bias=True)
        self.act, self.places = nn.Sigmoid(), nn.Conv2d(2, 1, k, padding=k // 2, bias=False)

    def forward(self, x):
        x = x * self.act(self.fc(self.pool(x)))
        two = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return x * self.act(self.places(two))


# -- between rows, and at the end ----------------------------------------------------------------------------------


class Concat(nn.Module):
    def __init__(self, dimension=1):
        super().__init__()
        self.d = dimension

    def forward(self, x):
        return torch.cat(x, self.d)


class Weighted(nn.Module):
    """A sum of rows with learned weights."""

    def __init__(self, n):
        super().__init__()
        self.w, self.iter = nn.Parameter(-torch.arange(1.0, n) / 2), range(n - 1)

    def forward(self, x):
        y, w = x[0], torch.sigmoid(self.w) * 2
        for i in self.iter:
            y = y + x[i + 1] * w[i]
        return y


class Classify(nn.Module):
    """The head: it takes one row or several, and says when it is not trained what `eval_returns` says."""

    def __init__(self, c1, c2, hidden=64, eval_returns="both"):
        super().__init__()
        self.conv, self.pool = Conv(c1, hidden, 1, 1), nn.AdaptiveAvgPool2d(1)
        self.drop, self.linear = nn.Dropout(p=0.1, inplace=True), nn.Linear(hidden, c2)
        self.eval_returns = eval_returns

    def forward(self, x):
        if isinstance(x, list):
            x = torch.cat(x, 1)
        x = self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))
        if self.training or self.eval_returns == "logits":
            return x
        y = x.softmax(1)
        return y if self.eval_returns == "probabilities" else (y, x)


BLOCKS |= {cls.__name__: cls for cls in (Concat, Weighted, Classify)}
