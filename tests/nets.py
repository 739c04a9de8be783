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

Stream = list[tuple[str, int]]  # for every channel of a value: its axis and place in it; "" is never cut
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
        stream: Stream = [("", 0)] * 3
        size = self.SIZE
        for index, (kind, *rest) in enumerate(plan.blocks):
            stream, size = getattr(self, f"_add_{kind}")(f"b{index}", stream, size, *rest)
        self._head(stream, size)
        randomised(self.double(), plan.seed)

    # -- building ----------------------------------------------------------------------------------------

    def _conv(self, name, stream, out: int, kernel: int, stride: int = 1, bias: bool = True, norm: bool = True):
        self.layers[name] = nn.Conv2d(len(stream), out, kernel, stride, kernel // 2, bias=bias)
        if norm:
            self.layers[name + "n"] = nn.BatchNorm2d(out)

    def _new(self, name: str, out: int) -> Stream:
        self.axes[f"layers.{name}"] = out
        return [(f"layers.{name}", channel) for channel in range(out)]

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
        self._conv(name + "b", middle, len(stream), 1, bias=False)
        self.steps.append(("residual", name, middle, stream))
        return stream, size

    def _add_branch(self, name, stream, size, left, right):
        self._conv(name + "l", stream, left, 1)
        self._conv(name + "r", stream, right, 3, norm=False)
        new_left, new_right = self._new(name + "l", left), self._new(name + "r", right)
        self.steps.append(("branch", name, new_left, new_right))
        return new_left + new_right, size

    def _add_depthwise(self, name, stream, size, kernel):
        width = len(stream)
        if stream[0][0] == "" or width < 2:
            stream, size = self._add_conv(name + "s", stream, size, 4, 1, 1, True, True)
            width = 4
        self.layers[name] = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.layers[name + "n"] = nn.BatchNorm2d(width)
        self.steps.append(("conv", name, stream))
        return stream, size

    def _add_squeeze(self, name, stream, size, squeezed):
        if stream[0][0] == "" or len(stream) < 2:
            stream, size = self._add_conv(name + "s", stream, size, 5, 3, 1, True, True)
        self._conv(name + "q", stream, squeezed, 1, norm=False)
        middle = self._new(name + "q", squeezed)
        self._conv(name + "e", middle, len(stream), 1, norm=False)
        self.steps.append(("squeeze", name, middle, stream))
        return stream, size

    def _add_grouped(self, name, stream, size, groups, width, out):
        """A convolution in groups: cut by whole groups when they are many or have one output, else alike in each."""
        self._conv(name + "s", stream, groups * width, 1)
        self.layers[name] = nn.Conv2d(groups * width, groups * out, 3, padding=1, groups=groups)
        self.layers[name + "n"] = nn.BatchNorm2d(groups * out)
        if groups >= width or out == 1:
            axis = self._new(name + "s", groups)
            inner = [axis[group] for group in range(groups) for _ in range(width)]
            outer = [axis[group] for group in range(groups) for _ in range(out)]
        else:
            inner, outer = self._new(name + "s", width) * groups, self._new(name, out) * groups
        self.steps += [("conv", name + "s", inner), ("conv", name, outer)]
        return outer, size

    def _add_shuffle(self, name, stream, size, groups, half):
        """Halves that go different ways, are joined and shuffled, as views."""
        self._conv(name + "s", stream, 2 * half, 1)
        left, right = self._new(name + "s", half), self._new(name + "s#2", half)  # read by different layers
        self.steps.append(("conv", name + "s", left + right))
        self._conv(name, right, groups * half, 1)
        joined = left * groups  # repeated, so that the groups divide the channels
        joined = joined + self._new(name, groups * half)
        each = len(joined) // groups
        self.steps.append(("shuffle", name, groups, joined[groups * half :]))
        return [joined[group * each + place] for place in range(each) for group in range(groups)], size

    def _add_groupnorm(self, name, stream, size, groups, width):
        self._conv(name + "s", stream, groups * width, 1, norm=False)
        self.layers[name + "sn"] = nn.GroupNorm(groups, groups * width)
        axis = self._new(name + "s", groups) if groups > 1 else [("", 0)]
        new = [axis[group] for group in range(groups) for _ in range(width)]
        self.steps.append(("conv", name + "s", new))
        return new, size

    def _add_layernorm(self, name, stream, size, width, inner):
        """A norm over all channels, which keeps them whole, and a block that is cut inside."""
        self._conv(name + "s", stream, width, 1, norm=False)
        self.layers[name + "m"] = nn.LayerNorm(width)
        self.layers[name + "a"] = nn.Linear(width, inner)
        self.layers[name + "b"] = nn.Linear(inner, width)
        whole = [("", 0)] * width
        self.steps.append(("layernorm", name, self._new(name + "a", inner)))
        return whole, size

    def _add_attention(self, name, stream, size, heads, width, out):
        self.layers[name + "q"] = nn.Linear(len(stream), 3 * heads * width)
        self.layers[name + "p"] = nn.Linear(heads * width, out)
        axis = self._new(name + "q", heads)
        inner = [axis[head] for head in range(heads) for _ in range(width)]
        new = self._new(name + "p", out)
        self.steps.append(("attention", name, heads, inner, new))
        return new, size

    def _head(self, stream, size):
        width = len(stream)
        if self.plan.head == "flatten":
            self.layers["hidden"] = nn.Linear(width * size * size, 5)
            self.axes["layers.hidden"] = 5
            width = 5
        self.layers["linear"] = nn.Linear(width, self.plan.classes)

    # -- running -----------------------------------------------------------------------------------------

    def _masked(self, x: Tensor, stream: Stream, dim: int = 1) -> Tensor:
        if not self.masks:
            return x
        mask = x.new_tensor([1.0 if name not in self.masks else self.masks[name][i] for name, i in stream])
        shape = [1] * x.ndim
        shape[dim] = len(mask)
        return x * mask.reshape(shape)

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
            elif kind == "shuffle":
                groups, stream = rest
                left, right = x.chunk(2, dim=1)
                x = torch.cat([left] * groups + [self._unit(name, right, stream)], 1)
                batch, channels, height, width = x.shape
                x = x.view(batch, groups, channels // groups, height, width)
                x = torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)
            elif kind == "layernorm":
                x = self.layers[name + "s"](x).permute(0, 2, 3, 1)
                y = ACTIVATIONS[self.plan.activation](self.layers[name + "a"](self.layers[name + "m"](x)))
                x = (x + self.layers[name + "b"](self._masked(y, rest[0], -1))).permute(0, 3, 1, 2)
            elif kind == "attention":
                heads, inner, stream = rest
                batch, channels, height, width = x.shape
                y = self.layers[name + "q"](x.flatten(2).transpose(1, 2))
                y = y.reshape(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
                y = nn.functional.scaled_dot_product_attention(y[0], y[1], y[2]).transpose(1, 2).flatten(2)
                y = self.layers[name + "p"](self._masked(y, inner, -1)).transpose(1, 2)
                x = self._masked(y.reshape(batch, -1, height, width), stream)
            else:
                middle, stream = rest
                gate = self._unit(name + "q", x.mean((2, 3), keepdim=True), middle)
                x = self._masked(x * torch.sigmoid(self.layers[name + "e"](gate)), stream)
        if self.plan.head == "flatten":
            x = ACTIVATIONS[self.plan.activation](self.layers["hidden"](torch.flatten(x, 1)))
            x = self._masked(x, [("layers.hidden", channel) for channel in range(5)])
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
    "grouped": st.tuples(st.just("grouped"), st.integers(2, 4), widths, st.integers(1, 3)),
    "shuffle": st.tuples(st.just("shuffle"), st.integers(2, 3), st.integers(1, 3)),
    "groupnorm": st.tuples(st.just("groupnorm"), st.integers(1, 3), st.integers(2, 3)),
    "layernorm": st.tuples(st.just("layernorm"), st.integers(2, 4), widths),
    "attention": st.tuples(st.just("attention"), st.integers(2, 3), st.integers(1, 3), st.integers(2, 4)),
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


class SequenceFirst(nn.Module):
    """Linear layers on (tokens, batch, channels), and on (tokens * batch, channels)."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.embed, self.wide = nn.Conv2d(3, 8, patch, patch), nn.Linear(8, 24)
        self.back, self.linear = nn.Linear(24, 8), nn.Linear(8, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 8, 8) -> (batch, classes)."""
        y = self.embed(x).flatten(2).permute(2, 0, 1)
        tokens, batch, width = y.shape
        z = torch.relu(self.wide(y))
        z = self.back(z.reshape(tokens * batch, 24)).view(tokens, batch, width)
        return self.linear((y + z).mean(0))
