"""NanoDet-m in PyTorch, built from the text that ncnn has of it; commands take it as `nanodet.py:network`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

SHARED = Path(os.environ.get("BRICKYARD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
SLOPE = 0.1  # of its leaky ReLU
LEVELS = 3


def _step(line: str) -> tuple[str, list[str], list[str], dict[int, str]]:
    """Kind, inputs, outputs and numbers of one line."""
    kind, _, given, made, *rest = line.split()
    count = int(given)
    ends = count + int(made)
    return kind, rest[:count], rest[count:ends], {int(k): v for k, v in (word.split("=") for word in rest[ends:])}


class NanoDet(nn.Module):
    """Says (batch, places, 112): the logits of 80 classes and four distributions over eight distances."""

    def __init__(self, text: str, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.steps = [_step(line) for line in text.splitlines()[2:]]
        count = 0
        for kind, _, _, numbers in self.steps:
            if not kind.startswith("Convolution"):
                continue
            kernel = weights[f"conv{count:02d}.weight"]
            side, stride, padding = (int(numbers.get(k, default)) for k, default in ((1, 1), (3, 1), (4, 0)))
            groups = int(numbers.get(7, 1))
            layer = nn.Conv2d(kernel.shape[1] * groups, len(kernel), side, stride, padding, groups=groups)
            layer.load_state_dict({"weight": kernel, "bias": weights[f"conv{count:02d}.bias"]})
            self.add_module(f"conv{count:02d}", layer)
            count += 1

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 320, 320) -> (batch, 2100, 112)."""
        values: dict[str, Tensor] = {}
        levels: list[Tensor] = []
        count = 0
        for kind, reads, writes, numbers in self.steps:
            if kind == "Input":
                values[writes[0]] = x
            elif kind.startswith("Convolution"):
                made = getattr(self, f"conv{count:02d}")(values[reads[0]])
                values[writes[0]] = F.leaky_relu(made, SLOPE) if numbers.get(9) == "2" else made
                count += 1
                if made.shape[1] == 112:  # what the head says of one grid
                    levels.append(made.flatten(2))
                    if len(levels) == LEVELS:
                        break
            elif kind == "Pooling":
                values[writes[0]] = F.max_pool2d(values[reads[0]], 3, 2, 1)
            elif kind == "Split":
                values.update(dict.fromkeys(writes, values[reads[0]]))
            elif kind == "Concat":
                values[writes[0]] = torch.cat([values[name] for name in reads], 1)
            elif kind == "ShuffleChannel":
                values[writes[0]] = F.channel_shuffle(values[reads[0]], 2)
            elif kind == "Slice" and len(levels) == 0:
                values.update(zip(writes, values[reads[0]].chunk(2, 1), strict=True))
            elif kind == "Interp":
                values[writes[0]] = F.interpolate(values[reads[0]], scale_factor=float(numbers[1]), mode="bilinear")
            elif kind == "BinaryOp":
                values[writes[0]] = values[reads[0]] + values[reads[1]]
        return torch.cat(levels, 2).transpose(1, 2)


def network() -> nn.Module:
    """The network with its weights."""
    models = SHARED / "models"
    text, weights = (models / "nanodet_m.param").read_text(), load_file(models / "nanodet_m-coco80.safetensors")
    return NanoDet(text, weights).eval()
