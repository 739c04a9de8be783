"""Writes one network as Python text: what `__init__` makes, and what `forward` does with the value `x`.

An idiom is a function that writes some lines. It is given the writer, the channels and the size of `x`, a tensor
(batch, channels, size, size), and returns those of the `x` that it leaves behind.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

Idiom = Callable[["Writer", int, int], tuple[int, int]]
IDIOMS: dict[str, tuple[Idiom, float]] = {}
# What symbolic tracing does not follow or the library's table does not have: reading it with torch.export takes ten
# times as long, so only a few networks are drawn with it.
EXOTIC = re.compile(
    r"\.max\(|torch\.max\(|clamp_\(|movedim|swapaxes|where|\.std\(|logsumexp|pixel_|Pixel|cdist|_like\(|new_zeros|lerp|"
    r"torch\.zeros|unfold|interleave|^torch$|copy_|select\(|\.to\(|atleast|tensordot|\.sort|addcmul_|glu\(|GLU|lp_pool|"
    r"LPPool|cumsum|eye\(|tensor_split|topk|return_ind|\.var\(|rot90|masked_fill|complex|neg_|take_along|gather|Softmax2d|"
    r"arange|floor|round\(|type_as|fft|sign\(|double|special|log1p|prelu|instance_norm|clip|nan_to_num|sigmoid_|stride\(\)|"
    r"GRU|narrow|addcdiv|baddbmm|linspace|> 0|< -1|\.T\b|\.mT|prod\(|\*\w+\.shape|\*\w+\.size|list\(|\*rest|zip\(|"
    r"(?<!\.)sum\(\w+\)|for \w+ in (?!range|\(|self|enumerate)|//=|\*\*=|Swish|scripted|Hooked|Softshrink|Threshold|"
    r"Hardshrink|RReLU|Tanhshrink|parametrizations|AlphaDropout|Unflatten|OwnNorm|LocalResponse|Dropout1d|\(-1\) for|/="
)
NAMES = ("conv", "layer", "step", "nodes", "block", "stage", "tensor", "network", "fc", "proj", "walk", "stem")


def idiom(weight: float = 1.0) -> Callable[[Idiom], Idiom]:
    """Add an idiom to the table, to be drawn with this weight."""

    def add(call: Idiom) -> Idiom:
        IDIOMS[call.__name__] = call, weight
        return call

    return add


class Writer:
    """The text of one module while it is being written.

    Attributes:
        rng: Where all choices come from.
        made: Lines of `__init__`.
        lines: Lines of `forward`.
        exotic: Whether spellings that take long to read may be drawn.
        classes: Texts of modules that this one holds.
    """

    def __init__(self, rng: random.Random, exotic: bool = True) -> None:
        self.rng = rng
        self.exotic = exotic
        self.made: list[str] = []
        self.lines: list[str] = []
        self.classes: list[str] = []
        self._taken: set[str] = set()

    def pick(self, *options: Any) -> Any:
        """One of several spellings."""
        if not self.exotic:
            options = tuple(option for option in options if not EXOTIC.search(_told(option))) or options
        return self.rng.choice(options)

    def maybe(self, share: float = 0.5) -> bool:
        return self.rng.random() < share

    def width(self, divisor: int = 1, least: int = 4, most: int = 12) -> int:
        """A drawn number of channels."""
        return divisor * self.rng.randint(max(1, -(-least // divisor)), max(1, most // divisor))

    def name(self, *wanted: str) -> str:
        """A name of this module that is free."""
        base = self.rng.choice(wanted or NAMES)
        name, number = base, 1
        while name in self._taken:
            name, number = f"{base}{number}", number + 1
        self._taken.add(name)
        return name

    def layer(self, code: str, *wanted: str) -> str:
        """Make a layer; return how it is called: `self.name`."""
        name = self.name(*wanted)
        self.made.append(f"self.{name} = {code}")
        return f"self.{name}"

    def parameter(self, *shape: int) -> str:
        sizes = ", ".join(map(str, shape))
        return self.layer(f"nn.Parameter(torch.randn({sizes}))", "weight", "gamma", "scale", "w", "pos")

    def buffer(self, code: str) -> str:
        name = self.name("index", "mean", "mask", "table")
        self.made.append(f'self.register_buffer("{name}", {code})')
        return f"self.{name}"

    def do(self, *lines: str) -> None:
        self.lines.extend(lines)

    def local(self) -> str:
        """A fresh local name."""
        return self.name("y", "z", "out", "h_", "t")

    # -- what all idioms need ------------------------------------------------------------------------------

    def batch(self, x: str = "x") -> str:
        return self.pick(f"{x}.shape[0]", f"{x}.size(0)", "-1", f"{x}.size()[0]", f"{x}.size(dim=0)")

    def channels(self, c: int, x: str = "x") -> str:
        return self.pick(f"{x}.shape[1]", f"{x}.size(1)", str(c), f"{x}.shape[-3]")

    def activated(self, x: str) -> str:
        """An expression: `x` through some activation, none of which changes `x` itself."""
        kind = self.pick("nn.ReLU()", "nn.SiLU(inplace=False)", "nn.GELU()", "nn.LeakyReLU(0.1)", "nn.Hardswish()")
        forms = (
            *(f"F.relu({x})", f"torch.relu({x})", f"{x}.relu()", f"F.relu(input={x})", f"torch.relu(input={x})"),
            *(f"F.silu({x})", f"F.gelu({x}, approximate='tanh')", f"F.leaky_relu({x}, 0.1)", f"torch.tanh({x})"),
            *(f"F.leaky_relu({x}, negative_slope=0.2)", f"{x} * torch.sigmoid({x})", f"{x}.clamp(min=0, max=6)"),
            *(f"{x} * F.relu6({x} + 3) / 6", f"{x}.clamp(0)", f"torch.clamp({x}, min=0.0)", f"F.elu({x}, alpha=0.5)"),
            *(f"F.hardtanh({x}, -1.0, 2.0)", f"F.softplus({x})", f"{x} * torch.tanh(F.softplus({x}))", f"F.mish({x})"),
            *(f"torch.where({x} > 0, {x}, 0.1 * {x})", f"{x} * ({x} > 0)", f"F.relu({x}) ** 2", f"F.hardswish({x})"),
            *(f"F.relu({x}, False)", f"F.relu(F.dropout({x}, 0.5, self.training))", f"{x}.sigmoid()", f"F.celu({x})"),
        )
        return f"{self.layer(kind, 'act', 'relu')}({x})" if self.maybe(0.2) else self.pick(*forms)

    def activate(self, x: str = "x") -> None:
        """A statement: `x` through some activation, also in place."""
        if self.maybe(0.7):
            self.do(f"{x} = {self.activated(x)}")
            return
        act = self.layer(self.pick("nn.ReLU(inplace=True)", "nn.SiLU(inplace=True)", "nn.LeakyReLU(0.1, True)"), "act")
        self.do(
            self.pick(
                f"{x} = F.relu({x}, inplace=True)",
                f"{x} = F.relu({x}, True)",
                f"{x}.relu_()",
                f"{x} = torch.relu_({x})",
                f"F.relu_({x})",
                f"{act}({x})",
                f"{x} = {act}({x})",
                f"{x} = F.leaky_relu({x}, inplace=True)",
                f"{x}.clamp_(min=0)",
                f"{x} = {x}.mul_(torch.sigmoid({x}))",
            )
        )

    def conv(self, c: int, out: int, kernel: int = 1, **options: Any) -> str:
        """Make a convolution that keeps the size."""
        options = {"padding": kernel // 2, **options} if kernel > 1 else options
        if self.maybe(0.2):
            options["bias"] = False
        extra = "".join(f", {key}={value!r}" for key, value in options.items())
        return self.layer(f"nn.Conv2d({c}, {out}, {kernel}{extra})")

    def linear(self, c: int, out: int) -> str:
        return self.layer(f"nn.Linear({c}, {out}{', bias=False' if self.maybe(0.2) else ''})", "fc", "layer", "proj")

    def pooled(self, x: str, keep: bool, s: int) -> str:
        """An expression: the mean over positions, (batch, channels) or (batch, channels, 1, 1)."""
        if keep:
            return self.pick(
                f"{x}.mean((2, 3), keepdim=True)",
                f"{x}.mean([-2, -1], True)",
                f"{x}.mean(axis=(2, 3), keepdims=True)",
                f"torch.mean({x}, dim=(2, 3), keepdim=True)",
                f"torch.mean(input={x}, dim=[2, 3], keepdim=True)",
                f"F.adaptive_avg_pool2d({x}, 1)",
                f"F.adaptive_avg_pool2d({x}, (1, 1))",
                f"F.avg_pool2d({x}, {x}.size()[2:])" if self.maybe(0.3) else f"F.avg_pool2d({x}, {s})",
                f"{x}.mean(3, keepdim=True).mean(2, keepdim=True)",
                f"{x}.flatten(2).mean(-1)[:, :, None, None]",
                f"{x}.flatten(2).mean(-1)[..., None, None]",
                f"{x}.mean((2, 3)).unsqueeze(-1).unsqueeze(-1)",
                f"{x}.mean((2, 3)).view({x}.shape[0], -1, 1, 1)",
                f"{x}.amax(dim=(2, 3), keepdim=True)",
                f"F.adaptive_max_pool2d({x}, 1)",
                f"{x}.sum((2, 3), keepdim=True) / ({x}.shape[2] * {x}.shape[3])",
            )
        return self.pick(
            f"{x}.mean((2, 3))",
            f"{x}.mean(dim=(-1, -2))",
            f"{x}.mean(axis=(2, 3))",
            f"torch.mean({x}, axis=[2, 3])",
            f"{x}.mean(3).mean(2)",
            f"{x}.mean(-1).mean(-1)",
            f"torch.flatten(F.adaptive_avg_pool2d({x}, 1), 1)",
            f"torch.flatten(input=F.adaptive_avg_pool2d({x}, output_size=1), start_dim=1)",
            f"F.adaptive_avg_pool2d({x}, 1).flatten(start_dim=1)",
            f"F.adaptive_avg_pool2d({x}, (1, 1)).view({x}.size(0), -1)",
            f"F.adaptive_avg_pool2d({x}, 1).reshape({self.batch(x)}, {x}.shape[1])",
            f"F.adaptive_avg_pool2d({x}, 1).squeeze(-1).squeeze(-1)",
            f"F.adaptive_avg_pool2d({x}, 1)[:, :, 0, 0]",
            f"{x}.flatten(2).mean(dim=2)",
            f"{x}.flatten(2).max(-1)[0]",
            f"{x}.flatten(2).max(dim=-1).values",
            f"torch.max(torch.max({x}, 3)[0], 2)[0]",
            f"{x}.amax((2, 3))",
            f"{x}.view({x}.size(0), {x}.size(1), -1).mean(2)",
            f"{x}.view({x}.shape[:2] + (-1,)).mean(2)",
            f"{x}.reshape(*{x}.shape[:2], -1).mean(-1)",
            f"{x}.sum(dim=[2, 3]) / {s * s}",
            f"{x}.std((2, 3))",
            f"{x}.flatten(2).logsumexp(-1)",
            f"{x}.clamp(min=1e-3).pow(3).mean((2, 3)).pow(1.0 / 3)",
            f"torch.einsum('bchw->bc', {x})",
            f"F.adaptive_max_pool2d({x}, 1).flatten(1)",
            f"F.max_pool2d({x}, kernel_size={x}.shape[2:]).flatten(1)"
            if self.maybe(0.3)
            else f"F.max_pool2d({x}, {s}).flatten(1)",
            f"F.adaptive_avg_pool2d({x}, 1).squeeze()"
            if self.maybe(0.1)
            else f"torch.squeeze(F.adaptive_avg_pool2d({x}, 1), (2, 3))",
        )

    def tokens(self, x: str = "x") -> str:
        """An expression: positions in a row, (batch, positions, channels)."""
        return self.pick(
            f"{x}.flatten(2).transpose(1, 2)",
            f"{x}.flatten(2).permute(0, 2, 1)",
            f"{x}.permute(0, 2, 3, 1).flatten(1, 2)",
            f"{x}.permute((0, 2, 3, 1)).reshape({x}.shape[0], -1, {x}.shape[1])",
            f"{x}.view({x}.size(0), {x}.size(1), -1).mT",
            f"{x}.reshape({x}.shape[0], {x}.shape[1], {x}.shape[2] * {x}.shape[3]).swapaxes(1, 2)",
            f"torch.einsum('bcn->bnc', {x}.flatten(start_dim=2))",
        )

    def grid(self, x: str, c: int, s: int) -> str:
        """An expression: tokens back on the grid."""
        return self.pick(
            f"{x}.transpose(1, 2).reshape({x}.shape[0], {c}, {s}, {s})",
            f"{x}.transpose(1, 2).reshape({x}.size(0), -1, {s}, {s})",
            f"{x}.transpose(-2, -1).unflatten(2, ({s}, {s}))",
            f"{x}.permute(0, 2, 1).contiguous().view(-1, {x}.shape[-1], {s}, {s})",
            f"{x}.unflatten(1, ({s}, {s})).permute(0, 3, 1, 2)",
            f"{x}.reshape({x}.size(0), {s}, {s}, {x}.size(2)).movedim(-1, 1)",
        )

    def joined(self, names: list[str], dim: int = 1) -> str:
        """An expression: values one after another along the channels."""
        listed = f"[{', '.join(names)}]" if self.maybe(0.7) else f"({', '.join(names)},)"
        back = dim - 4
        return self.pick(
            f"torch.cat({listed}, {dim})",
            f"torch.cat({listed}, dim={dim})",
            f"torch.cat({listed}, dim={back})",
            f"torch.cat({listed}, axis={dim})",
            f"torch.cat(tensors={listed}, dim={dim})",
            f"torch.concat({listed}, dim={dim})",
            f"torch.concatenate({listed}, axis={back})",
        )

    def added(self, a: str, b: str, result: str = "x") -> None:
        """A statement: a sum of two values; the first may be overwritten."""
        self.do(
            self.pick(
                f"{result} = {a} + {b}",
                f"{a} += {b}\n{result} = {a}",
                f"{result} = torch.add({a}, {b})",
                f"{result} = torch.add({a}, {b}, alpha=0.5)",
                f"{result} = torch.add(input={a}, other={b})",
                f"{result} = {a}.add({b})",
                f"{result} = {a}.add_({b})",
                f"{result} = sum([{a}, {b}])",
                f"{result} = torch.stack([{a}, {b}]).sum(0)",
                f"{result} = torch.stack(({a}, {b}), dim=0).mean(dim=0)",
                f"{result} = torch.stack([{a}, {b}], -1).amax(-1)",
                f"{result} = torch.maximum({a}, {b})",
                f"{result} = {a} - {b}",
                f"{a} -= {b}\n{result} = {a}",
                f"{result} = {a}.sub({b}, alpha=2)",
                f"{result} = torch.addcmul({a}, {b}, {b}, value=0.1)",
                f"{result} = torch.lerp({a}, {b}, 0.3)",
            )
        )


def _told(option: Any) -> str:
    first = option[0] if isinstance(option, tuple) else option
    return first if isinstance(first, str) else ""


def text(name: str, writer: Writer, forward: str = "forward", tail: str = "return x") -> str:
    """The text of a module's class."""
    lines = [f"class {name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in writer.made]
    lines += ["", f"    def {forward}(self, x):"]
    for line in [*writer.lines, tail]:
        lines += [f"        {part}" for part in line.split("\n")]
    return "\n".join([*writer.classes, *lines, ""])
