"""Attention in which several heads of queries share one head of keys and values, in the ways in which it is written."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.axes._graph import trace
from brickyard.surgery._join import cut
from brickyard.testing import randomised
from nets import relative

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
HEADS, GROUPS, DEPTH, WIDTH = 6, 2, 4, 5


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / math.sqrt(DEPTH)).softmax(-1) @ v


def expanded(x: Tensor) -> Tensor:
    b, _, n, _ = x.shape
    return x[:, :, None].expand(b, GROUPS, HEADS // GROUPS, n, DEPTH).reshape(b, HEADS, n, DEPTH)


def in_five_dimensions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, _, n, _ = q.shape
    y = attend(q.reshape(b, GROUPS, HEADS // GROUPS, n, DEPTH), k[:, :, None], v[:, :, None])
    return y.reshape(b, HEADS, n, DEPTH)


def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(HEADS // GROUPS, 1)


def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, None, 0.0, False, scale=0.3, enable_gqa=True)


FORMS = {
    "torch's own": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    "torch's own, scaled": scaled,
    "repeated": lambda q, k, v: F.scaled_dot_product_attention(q, repeated(k), repeated(v)),
    "expanded": lambda q, k, v: attend(q, expanded(k), expanded(v)),
    "five dimensions": in_five_dimensions,
}


class Grouped(nn.Module):
    def __init__(self, form: str, fused: bool) -> None:
        super().__init__()
        self.form, self.fused = form, fused
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * GROUPS) * DEPTH)
        self.q = nn.Linear(WIDTH, HEADS * DEPTH)
        self.k, self.v = nn.Linear(WIDTH, GROUPS * DEPTH), nn.Linear(WIDTH, GROUPS * DEPTH)
        self.out, self.head = nn.Linear(HEADS * DEPTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        sizes = [HEADS * DEPTH, GROUPS * DEPTH, GROUPS * DEPTH]
        parts = self.qkv(x).split(sizes, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.view(b, n, -1, DEPTH).transpose(1, 2) for part in parts)
        y = FORMS[self.form](q, k, v).transpose(1, 2).reshape(b, n, HEADS * DEPTH)
        return self.head((x + self.out(y)).mean(1))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_group_of_heads_is_cut_with_its_keys_and_values(form: str, fused: bool) -> None:
    model = randomised(Grouped(form, fused)).eval().double()
    graph = trace(model, IMAGES[:2])
    (name,) = (axis.name for axis in graph.free if axis.size == GROUPS)
    group = slice(HEADS // GROUPS * DEPTH, None)  # of the outputs of attention that the second group writes
    with torch.no_grad():
        assert relative(graph.network(IMAGES), model(IMAGES)) < 1e-12
        found = cut(graph, {name: torch.tensor([0])})(IMAGES)
        whole = model(IMAGES)
        model.out.weight[:, group] = 0
        assert relative(found, model(IMAGES)) < 1e-12
        assert relative(found, whole) > 1e-4  # the control
