"""Classifiers that are rows of a configuration: what each row takes is said by indices of other rows.

A row is (from, number, block, arguments), as in the configurations of detectors; `parse` makes modules of the rows, and
`YamlModel` runs them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from yaml_blocks import BLOCKS, DEEP, WIDE, Conv

Row = tuple[int | list[int], int, str, list[Any]]


def divisible(x: float, by: int = 8) -> int:
    return math.ceil(x / by) * by


def parse(
    rows: Sequence[Row], classes: int, width: float = 1.0, depth: float = 1.0, most: int = 1024, channels: int = 3
) -> tuple[nn.Sequential, list[int]]:
    """The modules of a configuration, and the rows whose outputs are needed later."""
    layers: list[Any] = []
    save: set[int] = set()
    have = [channels]
    for i, (f, n, name, given) in enumerate(rows):
        args, froms = list(given), [f] if isinstance(f, int) else f
        c1 = sum(have[x] for x in froms)
        n = max(round(n * depth), 1) if n > 1 else n
        if name == "Classify":
            c2, args = classes, [c1, classes, *args]
        elif name in WIDE:
            c2 = divisible(min(args[0], most) * width)
            args = [c1, c2, *args[1:]]
            if name in DEEP:
                args.insert(2, n)
                n = 1
        elif name == "BatchNorm2d":
            c2, args = c1, [c1]
        else:
            c2 = have[froms[0]] if name == "Weighted" else c1
        kind = BLOCKS[name]
        made: Any = nn.Sequential(*(kind(*args) for _ in range(n))) if n > 1 else kind(*args)
        made.i, made.f, made.type = i, f, f"{kind.__module__}.{kind.__name__}"
        made.np = sum(x.numel() for x in made.parameters())
        save.update(x % i for x in froms if x != -1)
        layers.append(made)
        have = [*([] if i == 0 else have), c2]
    return nn.Sequential(*layers), sorted(save)


class YamlModel(nn.Module):
    """Runs the rows."""

    def __init__(self, cfg, classes):
        super().__init__()
        self.yaml, self.names = deepcopy(cfg), {i: f"{i}" for i in range(classes)}
        self.model, self.save = parse(self.yaml["rows"], classes, *self.yaml["scale"])
        self.task, self.inplace = "classify", self.yaml.get("inplace", True)
        for m in self.modules():
            if isinstance(m, nn.SiLU | nn.ReLU | nn.LeakyReLU):
                m.inplace = self.inplace

    def forward(self, x, *args, **kwargs):
        if isinstance(x, dict):
            return self.loss(x, *args, **kwargs)
        return self.predict(x, *args, **kwargs)

    def predict(self, x, profile=False, visualize=False, augment=False, embed=None):
        if augment:
            return self._predict_once(torch.cat((x, x.flip(3))), profile, visualize, embed)
        return self._predict_once(x, profile, visualize, embed)

    def _predict_once(self, x, profile=False, visualize=False, embed=None):
        y, dt, embeddings, seen = [], [], [], {}
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            start = time.perf_counter() if profile else 0.0
            x = m(x)
            y.append(x if m.i in self.save else None)
            if profile:
                dt.append((m.type, m.np, time.perf_counter() - start))
            if visualize:
                seen[m.i] = x.detach().mean(1)
            if embed and m.i in embed:
                embeddings.append(F.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1))
                if m.i == max(embed):
                    return torch.unbind(torch.cat(embeddings, 1), dim=0)
        return x

    def loss(self, batch, preds=None):
        return F.cross_entropy(self.forward(batch["img"]) if preds is None else preds, batch["cls"])

    def fuse(self):
        """Fold all batch norms behind convolutions."""
        for m in self.modules():
            if isinstance(m, Conv) and hasattr(m, "bn"):
                m.fuse()
        return self


# -- configurations ------------------------------------------------------------------------------------------------

# fmt: off
STEM: list[Row] = [(-1, 1, "Conv", [64, 3, 2]), (-1, 1, "Conv", [128, 3, 2])]
CONFIGS: dict[str, dict[str, Any]] = {  # scale: width, depth, most channels
    "c2f": {"scale": (0.25, 0.33, 1024), "rows": [
        *STEM, (-1, 3, "C2f", [128, True]), (-1, 1, "Conv", [256, 3, 2]), (-1, 6, "C2f", [256, True]),
        (-1, 1, "Conv", [512, 3, 2]), (-1, 6, "C2f", [512, True]), (-1, 1, "Conv", [1024, 3, 2]),
        (-1, 3, "C2f", [1024, True]), (-1, 1, "Classify", []),
    ]},
    "c3, sppf": {"scale": (0.25, 0.33, 512), "rows": [
        (-1, 1, "Conv", [64, 6, 2, 2]), (-1, 1, "Conv", [128, 3, 2]), (-1, 3, "C3", [128]),
        (-1, 1, "Conv", [256, 3, 2]), (-1, 6, "C3", [256]), (-1, 1, "Conv", [512, 3, 2]), (-1, 9, "C3", [512]),
        (-1, 1, "SPPF", [512, 5]), (-1, 1, "Classify", [64, "probabilities"]),
    ]},
    "c3k2, c2psa": {"scale": (0.25, 0.5, 512), "rows": [
        *STEM, (-1, 2, "C3k2", [256, False, 0.25]), (-1, 1, "Conv", [256, 3, 2]), (-1, 2, "C3k2", [512, False, 0.25]),
        (-1, 1, "Conv", [512, 3, 2]), (-1, 2, "C3k2", [512, True]), (-1, 2, "C2PSA", [512]), (-1, 1, "Classify", []),
    ]},
    "focus, spp": {"scale": (0.25, 0.33, 512), "inplace": False, "rows": [
        (-1, 1, "Focus", [64, 3]), (-1, 1, "Conv", [128, 3, 2]), (-1, 3, "C3", [128]), (-1, 1, "Conv", [256, 3, 2]),
        (-1, 9, "C3", [256]), (-1, 1, "Conv", [512, 3, 2]), (-1, 1, "SPP", [512, [3, 5, 7]]),
        (-1, 3, "C3", [512, False]), (-1, 1, "Classify", [64, "logits"]),
    ]},
    "ghost": {"scale": (0.25, 0.33, 512), "rows": [
        (-1, 1, "Conv", [64, 3, 2]), (-1, 1, "GhostConv", [128, 3, 2]), (-1, 3, "C3Ghost", [128]),
        (-1, 1, "GhostBottleneck", [256, 3, 2]), (-1, 6, "C3Ghost", [256]), (-1, 1, "GhostConv", [512, 3, 2]),
        (-1, 1, "DWConv", [512, 5, 1]), (-1, 1, "Classify", []),
    ]},
    "shuffled, gated": {"scale": (0.5, 1.0, 256), "rows": [
        (-1, 1, "Conv", [32, 3, 2]), (-1, 1, "MaxPool2d", [3, 2, 1]), (-1, 1, "Shuffled", [64, 2]),
        (-1, 3, "Shuffled", [64, 1]), (-1, 1, "CBAM", [64]), (-1, 1, "Shuffled", [128, 2]),
        (-1, 3, "Shuffled", [128, 1]), (-1, 1, "CBAM", [128, 3]), (-1, 1, "Classify", [64, "logits"]),
    ]},
    "routes": {"scale": (0.25, 0.33, 512), "rows": [
        *STEM, (-1, 3, "C2f", [128, True]), (-1, 1, "Conv", [256, 3, 2]), (-1, 3, "C2f", [256, True]),
        (-1, 1, "Conv", [512, 3, 2]), (-1, 1, "SPPF", [512]), (-1, 1, "Upsample", [None, 2, "nearest"]),
        ([-1, 4], 1, "Concat", [1]), (-1, 3, "C2f", [256]), (-1, 1, "Upsample", [None, 2, "nearest"]),
        ([-1, 2], 1, "Concat", [1]), (-1, 3, "C2f", [128]), (-1, 1, "Conv", [128, 3, 2]), ([-1, 9], 1, "Concat", [1]),
        (-1, 3, "C2f", [256]), (-1, 1, "Conv", [256, 3, 2]), ([-1, 6], 1, "Concat", [1]), (-1, 3, "C2f", [512]),
        (15, 1, "MaxPool2d", [2, 2]), ([18, -1], 1, "Classify", []),
    ]},
    "scdown, cib": {"scale": (0.25, 0.33, 512), "rows": [
        *STEM, (-1, 3, "C2f", [128, True]), (-1, 1, "SCDown", [256, 3, 2]), (-1, 6, "C2fCIB", [256, True]),
        (-1, 1, "SCDown", [512, 3, 2]), (-1, 3, "C2fCIB", [512, True]), (-1, 1, "C2PSA", [512]),
        (-1, 1, "Classify", [64, "probabilities"]),
    ]},
    "elan, adown": {"scale": (0.25, 1.0, 512), "rows": [
        *STEM, (-1, 1, "ELAN", [256, 32, 16, 1]), (-1, 1, "ADown", [256]), (-1, 1, "ELAN", [512, 64, 32, 2]),
        (-1, 1, "ADown", [512]), (-1, 1, "ELAN", [512, 64, 64, 1]), (-1, 1, "Classify", []),
    ]},
    "darknet, weighted": {"scale": (0.25, 0.5, 512), "rows": [
        (-1, 1, "Conv", [32, 3, 1]), (-1, 1, "Conv", [64, 3, 2]), (-1, 1, "Bottleneck", [64]),
        (-1, 1, "Conv", [128, 3, 2]), (-1, 4, "Bottleneck", [128]), (-1, 1, "ZeroPad2d", [[0, 1, 0, 1]]),
        (-1, 1, "MaxPool2d", [2, 1, 0]), (4, 1, "Conv", [128, 1, 1]), ([-1, 6, 3], 1, "Weighted", [3]),
        (-1, 1, "Conv", [256, 3, 2]), (-1, 8, "Bottleneck", [256, False]), (-1, 1, "BatchNorm2d", []),
        (-1, 1, "Classify", [64, "logits"]),
    ]},
    "hgblock": {"scale": (0.25, 0.5, 512), "rows": [
        (-1, 1, "HGStem", [96, 16]), (-1, 6, "HGBlock", [128, 16, 3]), (-1, 1, "DWConv", [128, 3, 2, 1, False]),
        (-1, 6, "HGBlock", [256, 24, 3]), (-1, 1, "DWConv", [256, 3, 2, 1, False]),
        (-1, 6, "HGBlock", [512, 32, 5, True, False]), (-1, 6, "HGBlock", [512, 32, 5, True, True]),
        (-1, 1, "Classify", []),
    ]},
    "areas": {"scale": (0.25, 0.5, 512), "rows": [
        *STEM, (-1, 2, "C3k2", [256, False, 0.25]), (-1, 1, "Conv", [256, 3, 2]), (-1, 2, "A2C2f", [256, 4]),
        (-1, 1, "Conv", [512, 3, 2]), (-1, 4, "A2C2f", [512, 1]), (-1, 1, "Classify", []),
    ]},
    "repconv, fused": {"scale": (0.25, 0.33, 512), "fused": True, "rows": [
        *STEM, (-1, 3, "C2f", [128, True]), (-1, 1, "RepConv", [256, 3, 2]), (-1, 1, "RepConv", [256]),
        (-1, 3, "C3", [256]), (-1, 1, "Conv", [512, 3, 2]), (-1, 1, "SPPF", [512]), (-1, 1, "Classify", []),
    ]},
}
# fmt: on


def made(name: str, classes: int) -> nn.Module:
    """A classifier of the table."""
    model = YamlModel(CONFIGS[name], classes).eval()
    return model.fuse() if CONFIGS[name].get("fused") else model
