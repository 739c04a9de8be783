"""Draws networks: which idioms follow each other, in which module, and how the network starts and ends."""

from __future__ import annotations

import linecache
import math
import random
import re
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idioms import blocks, customs, tokens  # noqa: F401
from idioms.writing import IDIOMS, Writer, text

SIZE = 8
EXOTIC_SHARE = 0.04


@dataclass(frozen=True)
class Drawn:
    """One network as data.

    Attributes:
        seed: Of its numbers, start and end.
        parts: Its idioms, each with a seed of its own.
        widths: How many channels it starts with, and how many classes it has.
        exotic: Whether spellings that take long to read may be drawn.
    """

    seed: int
    parts: tuple[tuple[str, int], ...]
    widths: tuple[int, int]
    exotic: bool = True

    @property
    def source(self) -> str:
        """Its text."""
        return written(self)

    def model(self) -> nn.Module:
        """The network, in float64, with random numbers far from the usual ones."""
        return built(self.source, self.seed)

    def without(self, place: int) -> Drawn:
        return replace(self, parts=self.parts[:place] + self.parts[place + 1 :])


def drawn(seed: int) -> Drawn:
    """The network of that number."""
    rng = random.Random(seed)
    exotic = rng.random() < EXOTIC_SHARE
    weights = [weight if exotic or weight >= 1 else 0.0 for _, weight in IDIOMS.values()]
    chosen = rng.choices(list(IDIOMS), weights, k=rng.randint(1, 2 if exotic else 4))
    parts = tuple((name, rng.randrange(1 << 30)) for name in chosen)
    return Drawn(seed, parts, (rng.randint(4, 10), rng.randint(2, 5)), exotic)


def written(net: Drawn) -> str:
    """The text of a network's class `Net`, and of the modules in it."""
    rng = random.Random(net.seed)
    writer = Writer(rng, net.exotic)
    c, s = _start(writer, net.widths[0])
    for place, (name, seed) in enumerate(net.parts):
        inner = Writer(random.Random(seed), net.exotic)
        own = inner.maybe(0.4)
        target = inner if own else writer
        if not own:
            target.rng = inner.rng
        c, s = IDIOMS[name][0](target, c, s)
        writer.rng = rng
        if own:
            _held(writer, inner, f"Part{place}", (c, s))
        if random.Random(seed + 1).random() < 0.3:
            writer.rng = random.Random(seed + 2)
            out = writer.width()
            writer.do(f"x = {writer.conv(c, out, 1)}(x)")
            writer.activate()
            c, writer.rng = out, rng
    _end(writer, c, s, net.widths[1])
    if rng.random() < 0.2 and not re.search(r"\b[ht]\b|\n", writer.lines[-1]):
        head = writer.lines.pop()
        body = text("Net", writer, "forward_features")
        return (
            body
            + f"\n    def forward(self, x):\n        x = self.forward_features(x)\n        {head}\n        return x\n"
        )
    return text("Net", writer)


def _held(writer: Writer, inner: Writer, name: str, _size: tuple[int, int]) -> None:
    """A module of its own for one idiom."""
    writer.classes.append(text(name, inner))
    writer.classes += inner.classes
    form = writer.pick(
        f"{name}()", f"nn.Sequential({name}())", f"nn.Sequential({name}(), nn.ReLU())", f"nn.ModuleList([{name}()])"
    )
    held = writer.layer(form, "layer", "step", "nodes", "block", "features", "layer_names", "foreign", "home")
    writer.do(f"for part in {held}:\n    x = part(x)" if "List" in form else f"x = {held}(x)")


def _start(w: Writer, c: int) -> tuple[int, int]:
    mean = w.buffer("torch.full((1, 3, 1, 1), 0.4)")
    if w.maybe(0.15):
        w.do(
            w.pick(
                f"x.sub_({mean})",
                f"x = x.sub_({mean}).div_(0.3)",
                f"x = (x - {mean}) / 0.3",
                f"x -= {mean}",
                "x = 2 * x - 1",
                "x = x[:, [2, 1, 0]]",
                "x = torch.stack([x[:, 0] * 0.9, x[:, 1] + 0.1, x[:, 2]], 1)",
                "x = torch.cat((torch.unsqueeze(x[:, 0], 1) * 0.5, x[:, 1:]), 1)",
                "x = x.flip(1).contiguous()",
                "x = F.interpolate(x, size=(8, 8), mode='bilinear')",
                "x.mul_(2)\nx = F.relu_(x)",
                "x = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)",
            )
        )
    stride = w.pick(1, 1, 2)
    w.do(f"x = {w.layer(f'nn.Conv2d(3, {c}, 3, stride={stride}, padding=1)', 'stem', 'conv1', 'layer', 'input')}(x)")
    if w.maybe():
        w.do(f"x = {w.layer(f'nn.BatchNorm2d({c})', 'bn1', 'norm')}(x)")
    if w.maybe(0.8):
        w.activate()
    return c, SIZE // stride


def _end(w: Writer, c: int, s: int, classes: int) -> None:
    kind = w.pick("pool", "pool", "pool", "conv", "flatten", "dropouts", "cosine", "hidden", "both", "tokens", "norm")
    if kind == "conv":
        w.do(f"x = {w.conv(c, classes, 1)}(x)")
        w.do(f"x = {w.pooled('x', False, s)}")
    elif kind == "flatten":
        fc = w.layer(f"nn.Linear({c * s * s}, {classes})", "fc", "head")
        flat = w.pick(
            "x.flatten(1)",
            "x.view(x.size(0), -1)",
            "torch.flatten(x, 1)",
            f"x.reshape(-1, {c * s * s})",
            "x.view(-1, x.shape[1] * x.shape[2] * x.shape[3])",
            "x.permute(0, 2, 3, 1).flatten(1)",
        )
        w.do(f"x = {fc}({flat})")
    elif kind == "dropouts":
        fc, drop = w.layer(f"nn.Linear({c}, {classes})", "fc"), w.layer("nn.Dropout(0.5)", "drop")
        drops = w.layer("nn.ModuleList([nn.Dropout(0.5) for _ in range(3)])", "drops")
        w.do(f"h = {w.pooled('x', False, s)}")
        w.do(
            w.pick(
                f"x = sum({fc}({drop}(h)) for _ in range(4)) / 4",
                f"x = sum([{fc}(d(h)) for d in {drops}]) / 3",
                f"x = torch.stack([{fc}(d(h)) for d in {drops}]).mean(0)",
                f"x = torch.mean(torch.stack([{fc}({drop}(h)) for _ in range(3)], dim=0), dim=0)",
            )
        )
    elif kind == "cosine":
        weight = w.parameter(classes, c)
        w.do(f"h = {w.pooled('x', False, s)}")
        w.do(
            w.pick(
                f"x = F.linear(F.normalize(h), F.normalize({weight})) * 4",
                f"x = h @ {weight}.t()",
                f"x = torch.matmul(h, {weight}.T)",
                f"x = F.linear(h, {weight})",
                f"x = -torch.cdist(h, {weight})",
                f"x = -(h[:, None] - {weight}).pow(2).sum(-1)",
            )
        )
    elif kind == "hidden":
        inner = w.width()
        layer = w.layer(
            f"nn.Sequential(nn.Linear({c}, {inner}), nn.BatchNorm1d({inner}), nn.ReLU(inplace=True), nn.Linear({inner}, {classes}))",
            "head",
            "classifier",
        )
        w.do(f"x = {layer}({w.pooled('x', False, s)})")
    elif kind == "both":
        fc = w.linear(2 * c, classes)
        w.do(
            f"x = {fc}(torch.cat([{w.pooled('x', False, s)}, {w.pooled('x', False, s)}], {w.pick('1', 'dim=1', 'dim=-1')}))"
        )
    elif kind == "tokens":
        norm, fc = w.layer(f"nn.LayerNorm({c})", "norm"), w.linear(c, classes)
        w.do(
            f"t = {w.tokens()}",
            f"x = {fc}({norm}({w.pick('t.mean(1)', 't[:, 0]', 't[:, -1]', 't.mean(dim=-2)', 't.amax(1)', 't.max(dim=1)[0]')}))",
        )
    elif kind == "norm":
        w.do(f"x = {w.linear(c, classes)}({w.layer(f'nn.BatchNorm1d({c})', 'bn')}({w.pooled('x', False, s)}))")
    else:
        w.do(f"x = {w.layer(f'nn.Linear({c}, {classes})', 'fc', 'head')}({w.pooled('x', False, s)})")
    if w.maybe(0.15):
        w.do(
            w.pick(
                "x = F.softmax(x, dim=1)",
                "x = F.log_softmax(x, 1)",
                "x = x.softmax(-1)",
                "x = torch.sigmoid(x)",
                "x = x * 2",
                "x = x / x.norm(dim=1, keepdim=True)",
                "x = x - x.mean(1, keepdim=True)",
            )
        )


def built(source: str, seed: int = 0) -> nn.Module:
    """The network that a text describes."""
    name = f"<drawn {seed}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    space = {"torch": torch, "nn": nn, "F": F, "math": math, "__name__": "drawn"}
    space |= {key: value for key, value in vars(customs).items() if not key.startswith("_")}
    exec(compile(source, name, "exec"), space)  # noqa: S102
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = space["Net"]()
    return filled(model.double().eval(), seed)


def filled(model: nn.Module, seed: int) -> nn.Module:
    """Random numbers for every parameter and every statistic."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or value.numel() == 0 or "_u" in name or "_v" in name:
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                value.copy_(noise.abs() + 0.5)
            elif isinstance(value, nn.Parameter) or name.endswith("running_mean"):
                scale = max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 2.0
                value.copy_(noise / scale + (0.3 if value.ndim == 1 else 0.0))
    return model


def images(count: int, seed: int) -> Tensor:
    """Different images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
