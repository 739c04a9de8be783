"""Own modules: transformers written by hand, token mixers and linear attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from own_modules import CLASSES, network
from torch import nn

DIM = 16


class OnTokens(nn.Module):
    """A classifier on patches: embedding, blocks that a subclass makes, mean over tokens."""

    tokens = 16

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, 4, 4)
        self.pos = nn.Parameter(torch.randn(1, self.tokens, DIM) * 0.1)
        self.norm, self.mixers = nn.LayerNorm(DIM), nn.ModuleList(self.made() for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, DIM)) for _ in range(2)
        )
        self.head = nn.Linear(DIM, CLASSES)

    def made(self):
        raise NotImplementedError

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        for mixer, mlp in zip(self.mixers, self.mlps):
            x = x + mixer(self.norm(x))
            x = x + mlp(self.norm(x))
        return self.head(x.mean(dim=1))


def mixer(cls):
    """Add a classifier on patches with this mixer of tokens, made from the width."""
    network(sizes=False)(type(cls.__name__, (OnTokens,), {"made": lambda self: cls(DIM)}))
    return cls


@mixer
class SplitHeads(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h, self.scale = h, (d // h) ** -0.5
        self.qkv, self.proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        attn = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


@mixer
class EinsumHeads(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h = h
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x):
        b, t, e = x.size()
        s = e // self.h
        q, k, v = (m(x).view(b, t, self.h, s) for m in (self.q, self.k, self.v))
        dot = torch.einsum("bthe,bihe->bhti", q, k) / math.sqrt(s)
        out = torch.einsum("bhtd,bdhe->bthe", F.softmax(dot, dim=3), v).reshape(b, t, self.h * s)
        return self.o(out)


@mixer
class HeadsInBatch(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h = h
        self.keys, self.queries, self.values = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.unify = nn.Linear(d, d)

    def forward(self, x):
        b, t, e = x.size()
        h, s = self.h, e // self.h
        k = self.keys(x).view(b, t, h, s).transpose(1, 2).contiguous().view(b * h, t, s)
        q = self.queries(x).view(b, t, h, s).transpose(1, 2).contiguous().view(b * h, t, s)
        v = self.values(x).view(b, t, h, s).transpose(1, 2).contiguous().view(b * h, t, s)
        dot = torch.bmm(q / (e**0.25), k.transpose(1, 2) / (e**0.25))
        out = torch.bmm(F.softmax(dot, dim=2), v).view(b, h, t, s)
        return self.unify(out.transpose(1, 2).contiguous().view(b, t, s * h))


@mixer
class CausalHeads(nn.Module):
    def __init__(self, d, h=2):
        super().__init__()
        self.h = h
        self.c_attn, self.c_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x):
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(c, dim=2)
        k = k.view(b, t, self.h, c // self.h).transpose(1, 2)
        q = q.view(b, t, self.h, c // self.h).transpose(1, 2)
        v = v.view(b, t, self.h, c // self.h).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        y = (F.softmax(att, dim=-1) @ v).transpose(1, 2).contiguous().view(b, t, c)
        return self.c_proj(y)


@mixer
class MaskMadeInForward(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(d, 8), nn.Linear(d, 8), nn.Linear(d, d)

    def forward(self, x):
        t = x.shape[1]
        mask = torch.triu(torch.ones(t, t, device=x.device), diagonal=1).bool()
        s = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        return s.masked_fill(mask, -1e9).softmax(-1) @ self.v(x)


@mixer
class TalkingHeads(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h = h
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.proj_l, self.proj_w = nn.Linear(h, h), nn.Linear(h, h)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * 0.5, qkv[1], qkv[2]
        attn = self.proj_l((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
        attn = self.proj_w(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


@mixer
class MultiQuery(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h = h
        self.q, self.kv, self.o = nn.Linear(d, d), nn.Linear(d, 2 * (d // h)), nn.Linear(d, d)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.h, -1).transpose(1, 2)
        k, v = self.kv(x).chunk(2, dim=-1)
        out = F.scaled_dot_product_attention(q, k.unsqueeze(1), v.unsqueeze(1))
        return self.o(out.transpose(1, 2).flatten(2))


@mixer
class GroupedQuery(nn.Module):
    def __init__(self, d, h=4, g=2):
        super().__init__()
        self.h, self.g, self.s = h, g, d // h
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, g * self.s), nn.Linear(d, g * self.s)
        self.o = nn.Linear(d, d)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.h, self.s).transpose(1, 2)
        k = self.k(x).view(b, n, self.g, self.s).transpose(1, 2).repeat_interleave(self.h // self.g, dim=1)
        v = self.v(x).view(b, n, self.g, self.s).transpose(1, 2).repeat_interleave(self.h // self.g, dim=1)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


@mixer
class Rotary(nn.Module):
    def __init__(self, d, h=2):
        super().__init__()
        self.h, self.s = h, d // h
        self.qkv, self.o = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.register_buffer(
            "inv_freq", 1.0 / (10000 ** (torch.arange(0, self.s, 2).float() / self.s)), persistent=False
        )

    def forward(self, x):
        b, n, _ = x.shape
        t = torch.arange(n, device=x.device).type_as(self.inv_freq)
        freqs = torch.einsum("i,j->ij", t, self.inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        cos, sin = emb.cos()[None, None], emb.sin()[None, None]
        q, k, v = (y.view(b, n, self.h, self.s).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


@mixer
class RotaryPairs(nn.Module):
    """Rotary embedding with even and odd channels."""

    def __init__(self, d):
        super().__init__()
        self.qk, self.v = nn.Linear(d, 2 * d), nn.Linear(d, d)
        angles = torch.outer(torch.arange(16.0), 1.0 / 100 ** (torch.arange(0, d, 2) / d))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * self.cos - b * self.sin, a * self.sin + b * self.cos), dim=-1).flatten(-2)

    def forward(self, x):
        q, k = self.qk(x).chunk(2, dim=-1)
        return (self.turned(q) @ self.turned(k).mT * 0.25).softmax(-1) @ self.v(x)


@mixer
class RelativeBias(nn.Module):
    def __init__(self, d, h=4, side=4):
        super().__init__()
        self.h = h
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * side - 1) ** 2, h) * 0.1)
        coords = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        rel = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0).contiguous()
        rel += side - 1
        rel[:, :, 0] *= 2 * side - 1
        self.register_buffer("relative_position_index", rel.sum(-1))

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = q * (c // self.h) ** -0.5 @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        attn = (attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


@mixer
class AlibiBias(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h = h
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.register_buffer("slopes", torch.tensor([2.0 ** -(i + 1) for i in range(h)]).view(1, h, 1, 1))

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.h, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(n, device=x.device)
        distance = (place[None, :] - place[:, None]).abs().neg()[None, None]
        a = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + distance * self.slopes
        return self.proj((a.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(b, n, -1))


@mixer
class CosineHeads(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h = h
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones((h, 1, 1))))
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.h, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = attn * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        return self.proj((attn.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


@mixer
class LinearAttention(nn.Module):
    def __init__(self, d, h=4):
        super().__init__()
        self.h = h
        self.qkv, self.o = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (y.view(b, n, self.h, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("bhnd,bhne->bhde", k, v)
        z = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(dim=2)) + 1e-6)
        return self.o(torch.einsum("bhnd,bhde,bhn->bhne", q, kv, z).transpose(1, 2).reshape(b, n, -1))


@mixer
class CausalLinearAttention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(d, 8), nn.Linear(d, 8), nn.Linear(d, 12), nn.Linear(12, d)

    def forward(self, x):
        q, k, v = F.relu(self.q(x)) + 0.1, F.relu(self.k(x)) + 0.1, self.v(x)
        context = torch.cumsum(k.unsqueeze(-1) * v.unsqueeze(-2), dim=1)
        norm = (q * k.cumsum(dim=1)).sum(-1, keepdim=True)
        return self.o((q.unsqueeze(-2) @ context).squeeze(-2) / norm)


@mixer
class Performer(nn.Module):
    def __init__(self, d, m=12):
        super().__init__()
        self.kqv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.w = nn.Parameter(torch.randn(m, d), requires_grad=False)
        self.m = m

    def features(self, x):
        xd = (x * x).sum(dim=-1, keepdim=True).repeat(1, 1, self.m) / 2
        return torch.exp(torch.einsum("bti,mi->btm", x, self.w) * 0.2 - 0.1 * xd) / math.sqrt(self.m)

    def forward(self, x):
        k, q, v = torch.split(self.kqv(x), x.shape[-1], dim=-1)
        kp, qp = self.features(k), self.features(q)
        d = torch.einsum("bti,bi->bt", qp, kp.sum(dim=1)).unsqueeze(dim=2)
        kptv = torch.einsum("bin,bim->bnm", v, kp)
        y = torch.einsum("bti,bni->btn", qp, kptv) / (d.repeat(1, 1, x.shape[-1]) + 1e-8)
        return self.proj(y)


@mixer
class Linformer(nn.Module):
    def __init__(self, d, n=16, k=5):
        super().__init__()
        self.e = nn.Parameter(torch.randn(n, k) * 0.2)
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x):
        keys = torch.einsum("bnd,nk->bkd", self.k(x), self.e)
        values = torch.einsum("bnd,nk->bkd", self.v(x), self.e)
        return F.softmax(self.q(x) @ keys.transpose(1, 2) / 4, -1) @ values


@mixer
class GatedMlp(nn.Module):
    """gMLP: half of the channels gates the other after mixing tokens."""

    def __init__(self, d, n=16):
        super().__init__()
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(2 * d, d)
        self.norm, self.spatial = nn.LayerNorm(2 * d), nn.Conv1d(n, n, kernel_size=1)

    def forward(self, x):
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        return self.down(u * self.spatial(self.norm(v)))


@mixer
class MlpMixer(nn.Module):
    def __init__(self, d, n=16):
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(n, 24), nn.GELU(), nn.Linear(24, n))
        self.channels = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 48), nn.GELU(), nn.Linear(48, d))

    def forward(self, x):
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


@mixer
class FourierMixer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(d, 40), nn.GELU(), nn.Linear(40, d))

    def forward(self, x):
        return self.ff(torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)


class RmsNorm(nn.Module):
    def __init__(self, d, eps=1e-6):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(d))

    def forward(self, x):
        return x.float().mul(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


@mixer
class RmsSwiGlu(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm = RmsNorm(d)
        self.w1, self.w2, self.w3 = (
            nn.Linear(d, 40, bias=False),
            nn.Linear(40, d, bias=False),
            nn.Linear(d, 40, bias=False),
        )

    def forward(self, x):
        x = self.norm(x)
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


@mixer
class TorchRmsNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.w12, self.w3 = nn.RMSNorm(d), nn.Linear(d, 64), nn.Linear(32, d)

    def forward(self, x):
        a, b = self.w12(self.norm(x)).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


@mixer
class MixtureOfExperts(nn.Module):
    """All experts run; a softmax over the router's top two weighs them."""

    def __init__(self, d, n=4, k=2):
        super().__init__()
        self.k, self.gate = k, nn.Linear(d, n)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, 24), nn.ReLU(), nn.Linear(24, d)) for _ in range(n))

    def forward(self, x):
        logits = self.gate(x)
        top, index = logits.topk(self.k, dim=-1)
        weights = torch.zeros_like(logits).scatter(-1, index, top.softmax(dim=-1))
        return sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


@mixer
class SoftExperts(nn.Module):
    def __init__(self, d, n=3):
        super().__init__()
        self.gate = nn.Linear(d, n)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d, 24), nn.GELU(), nn.Linear(24, d)) for _ in range(n))

    def forward(self, x):
        weights = F.softmax(self.gate(x), dim=-1)
        outs = torch.stack([e(x) for e in self.experts], dim=-1)
        return torch.sum(outs * weights.unsqueeze(2), dim=-1)


@mixer
class Hopfield(nn.Module):
    """Looks up learned patterns a few times."""

    def __init__(self, d, patterns=10):
        super().__init__()
        self.beta = 0.5
        self.query, self.patterns, self.out = nn.Linear(d, 8), nn.Parameter(torch.randn(patterns, 8)), nn.Linear(8, d)

    def forward(self, x):
        state = self.query(x)
        for _ in range(2):
            state = torch.softmax(self.beta * state @ self.patterns.t(), dim=-1) @ self.patterns
        return self.out(state)


@mixer
class MultiheadModule(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.attn = nn.MultiheadAttention(d, 4, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


@mixer
class MultiheadSequenceFirst(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.attn = nn.MultiheadAttention(d, 2)

    def forward(self, x):
        y = x.permute(1, 0, 2)
        out, _ = self.attn(y, y, y)
        return out.permute(1, 0, 2)


@mixer
class EncoderLayer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(d, 4, 32, batch_first=True, norm_first=True)

    def forward(self, x):
        return self.layer(x)


@mixer
class Encoder(nn.Module):
    def __init__(self, d):
        super().__init__()
        layer = nn.TransformerEncoderLayer(d, 2, 32, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.encoder(x)


@mixer
class PoolMixer(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.pool, self.side = nn.AvgPool2d(3, 1, 1, count_include_pad=False), 4

    def forward(self, x):
        b, _, c = x.shape
        y = x.transpose(1, 2).view(b, c, self.side, self.side)
        return (self.pool(y) - y).flatten(2).transpose(1, 2)


@mixer
class DepthwiseFeedForward(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fc1, self.dw, self.fc2 = nn.Linear(d, 32), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.Linear(32, d)

    def forward(self, x):
        b, n, _ = x.shape
        h = w = int(n**0.5)
        y = self.fc1(x).transpose(1, 2).view(b, -1, h, w).contiguous()
        return self.fc2(F.gelu(self.dw(y).flatten(2).transpose(1, 2)))


@mixer
class SpatialReduction(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q, self.kv = nn.Linear(d, d), nn.Linear(d, 2 * d)
        self.sr, self.norm, self.proj = nn.Conv2d(d, d, 2, 2), nn.LayerNorm(d), nn.Linear(d, d)

    def forward(self, x, h=4, w=4):
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, 2, c // 2).permute(0, 2, 1, 3)
        y = self.norm(self.sr(x.permute(0, 2, 1).reshape(b, c, h, w)).reshape(b, c, -1).permute(0, 2, 1))
        k, v = self.kv(y).reshape(b, -1, 2, 2, c // 2).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).softmax(dim=-1)
        return self.proj((a @ v).transpose(1, 2).reshape(b, n, c))
