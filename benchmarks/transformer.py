"""A small vision transformer cut to a part of its FLOPs: with its stream turned, with factors, and as others do it.

    python benchmarks/transformer.py           # trains the source, then everything that is not there yet
    python benchmarks/transformer.py --only 50 # rows whose name contains the text
    python benchmarks/transformer.py --fresh   # make the rows that are there again; with --only, those alone

The source is torchvision's `VisionTransformer` with patches of 8 x 8 pixels, four blocks and 96 channels, trained on
the 10,000 shared training images of CIFAR-10 for some minutes on one core. Channels are chosen and repaired on training
images, and scored on the full test split.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import brickyard as by
import tables
from brickyard.inputs._augment import shifted_and_mirrored
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.inputs._preprocessing import preprocess

PATH: Path = tables.RESULTS / "transformer.json"
WEIGHTS: Path = tables.TRAINED / "vit-cifar10.safetensors"
HOW = by.Preprocessing(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
EPOCHS, BATCH, RATE, WARM = 20, 128, 1e-3, 200
TASKS = (range(3), range(3, 10))
SHARES = (0.7, 0.5, 0.3)
WAYS: dict[str, dict[str, Any]] = {
    "rotated, factors": {},
    "rotated": {"factors": False},
    "factors": {"rotate": False},
    "damage": {"rotate": False, "factors": False},
    "taylor": {"select": "taylor"},
    "l1": {"select": "l1"},
    "l1, no refit": {"select": "l1", "heal": "none"},
}


def network() -> nn.Module:
    from torchvision.models import VisionTransformer

    found: nn.Module = VisionTransformer(32, 8, 4, 4, 96, 192, num_classes=10)
    return found


@cache
def data(split: str) -> ImageData:
    return load_data(f"{tables.SHARED / 'data/cifar10'}?split={split}")


def train(model: nn.Module) -> None:
    """AdamW with warm-up and cosine decay, label smoothing, shifts and mirroring."""
    images, labels = data("train").images, data("train").labels
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * (len(labels) // BATCH)
    for step in range(steps):
        if step % (len(labels) // BATCH) == 0:
            order = torch.randperm(len(labels), generator=generator)
        some = order[step % (len(labels) // BATCH) * BATCH :][:BATCH]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / WARM) * (1 + math.cos(math.pi * step / steps)) / 2
        x = shifted_and_mirrored(preprocess(images[some], HOW), generator)
        loss = F.cross_entropy(model(x), labels[some], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@cache
def source() -> nn.Module:
    """The trained network; it is trained once."""
    model = network()
    if not WEIGHTS.exists():
        torch.manual_seed(0)
        model = network()
        train(model)
        WEIGHTS.parent.mkdir(exist_ok=True)
        save_file(model.state_dict(), WEIGHTS)
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


@cache
def relevance() -> Any:
    return by.locate(source(), data("train"), preprocessing=HOW)


def row(title: str, task: range, share: float, way: str) -> dict[str, Any]:
    options = dict(WAYS[way])
    budget = by.Budget(flops=share, **{key: options.pop(key) for key in ("factors", "rotate") if key in options})
    component = by.disassemble(
        source(), relevance(), task=list(task), images=data("train"), budget=budget, seed=0, **options
    )
    scores = by.evaluate(component, data("test").of_classes(list(task)), source=source(), latency=False)
    found = {name: scores.row(name).accuracy for name in ("restricted", "component")}
    chosen = component.manifest.selection
    return {
        **found,
        "drop": scores.row("component").drop,
        "drop_error": scores.row("component").drop_error,
        "flops": chosen.flops / component.manifest.source.flops,
        "parameters": chosen.parameters / component.manifest.source.parameters,
    }


def jobs() -> list[tuple[str, range, float, str]]:
    return [
        (f"{task.start}-{task.stop - 1} | {share:.0%} | {way}", task, share, way)
        for task in TASKS
        for share in SHARES
        for way in WAYS
    ]


def page(rows: dict[str, Any]) -> str:
    """The page of the results."""
    lines = [
        "# A vision transformer, cut",
        "",
        "Written by `python benchmarks/transformer.py`. The drop below the source restricted to the task's classes, in",
        "points, on the full test split; in brackets one standard error, paired over images. The source is a small",
        "transformer that was trained for minutes on 10,000 images. `damage` is measured damage with the refit; the",
        "residual stream stays whole unless it is `rotated`, as it is by default, with factors. `l1` and `taylor`",
        "choose heads and hidden channels by magnitude and by gradients, with the same refit, or without.",
        "",
        f"| task | FLOPs | restricted | {' | '.join(WAYS)} |",
        f"|---|---|---|{'---|' * len(WAYS)}",
    ]
    for task in TASKS:
        for share in SHARES:
            start = f"{task.start}-{task.stop - 1} | {share:.0%}"
            mine = {way: rows[f"{start} | {way}"] for way in WAYS if f"{start} | {way}" in rows}
            if mine:
                cells = [
                    f"{mine[way]['drop']:.1f} ({mine[way]['drop_error']:.1f})" if way in mine else "" for way in WAYS
                ]
                restricted = next(iter(mine.values()))["restricted"]
                lines.append(f"| {start} | {restricted:.1f} | {' | '.join(cells)} |")
    told = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {told}.", ""])


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, [job[0] for job in jobs()])
    PATH.with_suffix(".md").write_text(page(ordered))


def main() -> None:
    options = tables.parser("A vision transformer, cut.").parse_args()
    source()  # before workers start
    tables.run_rows(options, PATH, jobs(), row, write)


if __name__ == "__main__":
    main()
