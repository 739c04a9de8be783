"""Random networks for hypothesis: they know, by construction, what a cut must do to them.

Every value of a drawn network is multiplied by the mask of the channels that it carries, after normalisation
and activation. Masks are ones unless set, so that the network itself is the oracle: nothing here uses the
library's idea of axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from brickyard.testing import randomised

ACTIVATIONS = {"relu": torch.relu, "silu": nn.functional.silu, "hardswish": nn.functional.hardswish}


@dataclass(frozen=True)
class Plan:
    """A drawn network as data."""

    blocks: tuple[tuple, ...]
    activation: str
    head: str
    classes: int
    seed: int = 0


class Drawn(nn.Module):
    SIZE = 8

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleDict()
        self.axes: dict[str, int] = {}  # free axes by the layer that writes them first
        self.masks: dict[str, Tensor] = {}
        self.mask_early = False  # the control: zero before normalisation instead of after activation
        self.steps: list[tuple] = []
        stream: list[tuple[str, int]] = [("", 3)]
        size = self.SIZE
        for index, (kind, *rest) in enumerate(plan.blocks):
            stream, size = getattr(self, f"_add_{kind}")(f"b{index}", stream, size, *rest)
        self._head(stream, size)
        randomised(self.double(), plan.seed)

    # -- building ----------------------------------------------------------------------------------------

    def _conv(self, name: str, stream, out: int, kernel: int, stride: int = 1, bias: bool = True, norm: bool = True):
        width = sum(count for _, count in stream)
        self.layers[name] = nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=bias)
        if norm:
            self.layers[name + "n"] = nn.BatchNorm2d(out)

    def _new(self, name: str, out: int):
        self.axes[f"layers.{name}"] = out
        return [(f"layers.{name}", out)]

    def _add_conv(self, name, stream, size, out, kernel, stride, bias, norm):
        stride = stride if size >= 4 else 1
        self._conv(name, stream, out, kernel, stride, bias, norm)
        new = self._new(name, out)
        self.steps.append(("conv", name, new))
        return new, (size - 1) // stride + 1

    def _add_residual(self, name, stream, size, inner, kernel):
        if stream[0][0] == "":
            stream, size = self._add_conv(name + "s", stream, size, inner + 1, 3, 1, True, True)
        self._conv(name + "a", stream, inner, kernel)
        middle = self._new(name + "a", inner)
        self._conv(name + "b", middle, sum(c for _, c in stream), 1, bias=False)
        self.steps.append(("residual", name, middle, stream))
        return stream, size

    def _add_branch(self, name, stream, size, left, right):
        self._conv(name + "l", stream, left, 1)
        self._conv(name + "r", stream, right, 3, norm=False)
        new_left, new_right = self._new(name + "l", left), self._new(name + "r", right)
        self.steps.append(("branch", name, new_left, new_right))
        return new_left + new_right, size

    def _add_depthwise(self, name, stream, size, kernel):
        width = sum(c for _, c in stream)
        if stream[0][0] == "" or width < 2:
            stream, size = self._add_conv(name + "s", stream, size, 4, 1, 1, True, True)
            width = 4
        self.layers[name] = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.layers[name + "n"] = nn.BatchNorm2d(width)
        self.steps.append(("conv", name, stream))
        return stream, size

    def _add_squeeze(self, name, stream, size, squeezed):
        if stream[0][0] == "" or sum(c for _, c in stream) < 2:
            stream, size = self._add_conv(name + "s", stream, size, 5, 3, 1, True, True)
        self._conv(name + "q", stream, squeezed, 1, norm=False)
        middle = self._new(name + "q", squeezed)
        self._conv(name + "e", middle, sum(c for _, c in stream), 1, norm=False)
        self.steps.append(("squeeze", name, middle, stream))
        return stream, size

    def _head(self, stream, size):
        width = sum(c for _, c in stream)
        if self.plan.head == "flatten":
            self.layers["hidden"] = nn.Linear(width * size * size, 5)
            self.axes["layers.hidden"] = 5
            width = 5
        self.layers["linear"] = nn.Linear(width, self.plan.classes)

    # -- running -----------------------------------------------------------------------------------------

    def _masked(self, x: Tensor, stream) -> Tensor:
        if not self.masks:
            return x
        mask = torch.cat([self.masks.get(name, torch.ones(count, dtype=x.dtype)) for name, count in stream])
        return x * mask.reshape(1, -1, *[1] * (x.ndim - 2))

    def _unit(self, name: str, x: Tensor, stream, activate: bool = True) -> Tensor:
        x = self.layers[name](x)
        if self.mask_early:
            x = self._masked(x, stream)
        if name + "n" in self.layers:
            x = self.layers[name + "n"](x)
        if activate:
            x = ACTIVATIONS[self.plan.activation](x)
        return x if self.mask_early else self._masked(x, stream)

    def forward(self, x: Tensor) -> Tensor:
        for kind, name, *rest in self.steps:
            if kind == "conv":
                x = self._unit(name, x, rest[0])
            elif kind == "residual":
                middle, stream = rest
                y = self._unit(name + "b", self._unit(name + "a", x, middle), stream, activate=False)
                x = self._masked(ACTIVATIONS[self.plan.activation](y + x), stream)
            elif kind == "branch":
                x = torch.cat([self._unit(name + "l", x, rest[0]), self._unit(name + "r", x, rest[1])], 1)
            else:
                middle, stream = rest
                gate = self._unit(name + "q", x.mean((2, 3), keepdim=True), middle)
                x = self._masked(x * torch.sigmoid(self.layers[name + "e"](gate)), stream)
        if self.plan.head == "flatten":
            x = ACTIVATIONS[self.plan.activation](self.layers["hidden"](torch.flatten(x, 1)))
            x = self._masked(x, [("layers.hidden", 5)])
        else:
            x = nn.functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return self.layers["linear"](x)


widths = st.integers(1, 5)
kernels = st.sampled_from([1, 3])
BLOCKS = {
    "conv": st.tuples(st.just("conv"), widths, kernels, st.sampled_from([1, 2]), st.booleans(), st.booleans()),
    "residual": st.tuples(st.just("residual"), widths, kernels),
    "branch": st.tuples(st.just("branch"), widths, widths),
    "depthwise": st.tuples(st.just("depthwise"), st.sampled_from([3, 5])),
    "squeeze": st.tuples(st.just("squeeze"), st.integers(1, 3)),
}


@st.composite
def plans(draw, kinds=tuple(BLOCKS), most: int = 4) -> Plan:
    blocks = draw(st.lists(st.one_of([BLOCKS[kind] for kind in kinds]), min_size=1, max_size=most))
    return Plan(
        blocks=tuple(blocks),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        head=draw(st.sampled_from(["pool", "flatten"])),
        classes=draw(st.integers(2, 5)),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def keep_sets(draw, axes: dict[str, int]) -> dict[str, Tensor]:
    """A keep-set with at least one channel of every axis."""
    keep = {}
    for name, size in axes.items():
        kept = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        chosen = [channel for channel, keeps in enumerate(kept) if keeps]
        keep[name] = torch.tensor(chosen or [draw(st.integers(0, size - 1))])
    return keep


def masks(keep: dict[str, Tensor], axes: dict[str, int]) -> dict[str, Tensor]:
    found = {}
    for name, size in axes.items():
        found[name] = torch.zeros(size, dtype=torch.float64)
        found[name][keep[name]] = 1
    return found


def images(count: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, Drawn.SIZE, Drawn.SIZE, generator=generator, dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))
