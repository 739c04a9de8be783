"""Own modules: classifiers on patches, with class tokens, positions and windows of all kinds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from own_modules import CLASSES, block, network
from torch import nn
from torch.utils.checkpoint import checkpoint

DIM = 16


@block(16)
class WindowAttention(nn.Module):
    def __init__(self, c, ws=4, shift=2):
        super().__init__()
        self.ws, self.shift, self.h = ws, shift, 4
        self.norm, self.qkv, self.proj = nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x):
        b, c, hh, ww = x.shape
        y = torch.roll(self.norm(x.permute(0, 2, 3, 1)), shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = y.view(b, hh // self.ws, self.ws, ww // self.ws, self.ws, c)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.ws * self.ws, c)
        q, k, v = self.qkv(y).view(-1, self.ws**2, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.proj((((q @ k.mT) * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(-1, self.ws**2, c))
        y = y.view(b, hh // self.ws, ww // self.ws, self.ws, self.ws, -1)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, hh, ww, -1)
        return x + torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2)).permute(0, 3, 1, 2)


@network(sizes=False)
class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(48, DIM)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, DIM)), nn.Parameter(torch.randn(1, 17, DIM))
        self.registers = nn.Parameter(torch.randn(1, 3, DIM))
        self.norm, self.q, self.kv, self.o = (
            nn.LayerNorm(DIM),
            nn.Linear(DIM, 16),
            nn.Linear(DIM, 32),
            nn.Linear(16, DIM),
        )
        self.mlp, self.head = nn.Sequential(nn.Linear(DIM, 48), nn.GELU(), nn.Linear(48, DIM)), nn.Linear(DIM, CLASSES)

    def forward(self, img):
        b = img.shape[0]
        x = img.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(b, 16, 48)
        x = torch.cat((self.cls.expand(b, -1, -1), self.proj(x)), dim=1)
        x = x + self.pos[:, : x.size(1)]
        x = torch.cat([x, self.registers.repeat(b, 1, 1)], 1)
        y = self.norm(x)
        k, v = self.kv(y).chunk(2, -1)
        x = x + self.o(F.scaled_dot_product_attention(self.q(y), k, v))
        x = x[:, :-3]
        x = x + self.mlp(x)
        return self.head(self.norm(x)[:, 0])


@network(sizes=False)
class PatchesByRearrange(nn.Module):
    """Patches cut by a view and a permutation, as einops writes them."""

    def __init__(self, p=4):
        super().__init__()
        self.p, self.embed, self.norm = p, nn.Linear(3 * p * p, 24), nn.LayerNorm(24)
        self.block = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x):
        b, c, h, w = x.shape
        p = self.p
        x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)
        x = self.embed(x)
        return self.head(self.norm(x + self.block(x)).mean(1))


@network(sizes=False)
class CrossAttentionPool(nn.Module):
    """A few learned queries look at the maps."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, DIM, 4, 2, 1)
        self.latents = nn.Parameter(torch.randn(5, DIM))
        self.k, self.v, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, 20), nn.Linear(20, CLASSES)

    def forward(self, x):
        y = F.relu(self.body(x)).flatten(2).permute(0, 2, 1)
        q = self.latents.unsqueeze(0).expand(y.size(0), -1, -1)
        a = torch.einsum("bid,bjd->bij", q, self.k(y)).mul(0.25).softmax(dim=-1)
        return self.head((a @ self.v(y)).mean(dim=1))


@network(sizes=False)
class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, 4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, DIM)) for _ in range(2)
        )
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        for blk in self.blocks:
            x = x + checkpoint(blk, x, use_reentrant=False)
        return self.head(x.mean(1))


@network(sizes=False)
class PositionLookedUp(nn.Module):
    """Positions from an embedding of running numbers."""

    def __init__(self):
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, DIM, 4, 4), nn.Embedding(16, DIM)
        self.up, self.down, self.head = nn.Linear(DIM, 40), nn.Linear(40, DIM), nn.Linear(DIM, CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.position(torch.arange(x.size(1), device=x.device))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@network(sizes=False)
class SineCosinePositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.up, self.down = nn.Conv2d(3, DIM, 4, 4), nn.Linear(DIM, 40), nn.Linear(40, DIM)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x):
        x = self.patch(x)
        _, c, h, w = x.shape
        y, z = torch.meshgrid(torch.arange(h, dtype=x.dtype), torch.arange(w, dtype=x.dtype), indexing="ij")
        omega = 1.0 / 100 ** (torch.arange(c // 4, dtype=x.dtype) / (c // 4 - 1))
        y, z = y.flatten()[:, None] * omega[None], z.flatten()[:, None] * omega[None]
        x = x.flatten(2).transpose(1, 2) + torch.cat((z.sin(), z.cos(), y.sin(), y.cos()), dim=1)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))
