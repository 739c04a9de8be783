"""Compression: all classes kept, fewer operations; what each choice of channels is worth, and what the refit adds.

    python benchmarks/applications/compression.py                # everything that is not there yet
    python benchmarks/applications/compression.py --only GoogLeNet
    python benchmarks/applications/compression.py --workers 2    # rows at once, one thread each

Every choice is cut bare and with the refit, and both are trained for two epochs, in the same way. Channels are chosen
and healed on at most 400 training images; training takes all 10,000; the full test split is scored, and nothing else.
Every row is written as soon as it is known; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import brickyard as by
import tables
from brickyard.base._options import TrainingOptions
from brickyard.inputs._datasets import ImageData
from brickyard.inputs._preprocessing import preprocess
from brickyard.training._finetune import finetune

SOURCES = ("VGG-16-w25 CIFAR-10", "GoogLeNet-w25 CIFAR-10", "ResNet-32")
CHOICES = ("damage", "mda", "taylor", "l1", "fpgm", "hrank", "random")
SHARES = (0.5, 0.7, 0.3)
KINDS = ("bare", "refit", "bare, trained", "refit, trained")
TRAINING = TrainingOptions(epochs=2, augment=True)
PATH = tables.RESULTS / "compression.json"
PAGE = tables.RESULTS / "compression.md"
PICTURE = tables.RESULTS / "compression.png"


def jobs() -> Iterator[tuple[str, str, float, str]]:
    for share in SHARES:
        for name in SOURCES:
            for choice in CHOICES:
                yield title(name, share, choice), name, share, choice


def title(name: str, share: float, choice: str) -> str:
    return f"{name} | {share:.0%} | {choice}"


def work(_: str, name: str, share: float, choice: str) -> dict[str, Any]:
    """One choice of channels: four accuracies on the full test split, with sizes."""
    torch.set_num_threads(1)
    source, test, train = tables.source(name).model, tables.load(name, "test"), tables.load(name, "train")
    found: dict[str, Any] = {}
    for heal in ("none", "refit"):
        part = by.disassemble(
            source,
            tables.relevance(name),
            task=list(range(10)),
            budget=by.Budget(flops=share, factors=False),
            select=choice,
            heal=heal,
        )
        kind = "bare" if heal == "none" else "refit"
        started = time.perf_counter()
        trained = finetune(part, train, training=TRAINING, validation=0)
        found[f"{kind}, trained seconds"] = time.perf_counter() - started
        whole = of_source(name)
        found["source"] = 100 * float(whole.mean())
        for label, model in ((kind, part), (f"{kind}, trained", trained)):
            lost = whole - right(model.logits, test)
            found[label] = found["source"] - 100 * float(lost.mean())
            found[f"{label} error"] = 100 * float(lost.std()) / math.sqrt(len(lost))
    timed = by.evaluate(part.fused(), test.subset(range(64)), source=source, latency_batch=64)
    times = {kind: timed.row(kind).latency or {} for kind in ("base", "component")}
    chosen, all_of_it = part.manifest.selection, part.manifest.source
    found["time"] = times["component"]["median_ms"] / times["base"]["median_ms"]
    found["flops"], found["parameters"] = chosen.flops / all_of_it.flops, chosen.parameters / all_of_it.parameters
    return found


@cache
def of_source(name: str) -> Tensor:
    """Which test images the source answers right, all of its classes being there."""
    source = tables.source(name)
    return right(lambda raw: source.model(preprocess(raw, source.preprocessing)), tables.load(name, "test"))


def right(answer: Callable[[Tensor], Tensor], test: ImageData) -> Tensor:
    return (tables.answers(answer, test.images).argmax(1) == test.labels).double()


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, (job[0] for job in jobs()))
    PAGE.write_text(page(ordered))
    draw(ordered)


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Compression",
        "",
        "Written by `python benchmarks/applications/compression.py`. CIFAR-10, all ten classes, full test split.",
        "Accuracy in percent, with one standard error of its difference from the source. bare: cut; refit: healed in",
        f"closed form; trained: {TRAINING.epochs} epochs of SGD after that, the same for all. time: median of a batch",
        "of 64, one thread, fused, as a share of the source's.",
        "",
        f"| source | FLOPs | choice | parameters | time | {' | '.join(KINDS)} | refit adds |",
        f"|---|---|---|---|---|{'---|' * (len(KINDS) + 1)}",
    ]
    for name in SOURCES:
        for share in sorted(SHARES, reverse=True):
            for choice in CHOICES:
                row = rows.get(title(name, share, choice))
                if row is None:
                    continue
                cells = [f"{row[kind]:.1f} ({row[f'{kind} error']:.1f})" for kind in KINDS]
                gains = f"{row['refit'] - row['bare']:+.1f}, {row['refit, trained'] - row['bare, trained']:+.1f}"
                lines.append(
                    f"| {name}, {row['source']:.1f} | {row['flops']:.0%} | {choice} | {row['parameters']:.0%} | "
                    f"{row['time']:.2f} | {' | '.join(cells)} | {gains} |"
                )
    lines += ["", "refit adds: points before and after training.", "", "![Accuracy against FLOPs](compression.png)", ""]
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, f"Machine: {about}.", ""])


def draw(rows: dict[str, Any]) -> None:
    """Accuracy against FLOPs, a panel a source and kind, a line a choice."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    known = [name for name in SOURCES if any(title.startswith(name) for title in rows)]
    size = (11, 2.8 * len(known))
    figure, panels = plt.subplots(
        len(known), len(KINDS), figsize=size, sharex=True, sharey="row", squeeze=False, constrained_layout=True
    )
    panels[0][0].set(xlim=(20, 80), xticks=[100 * share for share in sorted(SHARES)])
    for line, name in zip(panels, known, strict=True):
        for panel, kind in zip(line, KINDS, strict=True):
            for choice, mark in zip(CHOICES, "osDv^<x", strict=True):
                found = [row for share in sorted(SHARES) if (row := rows.get(title(name, share, choice)))]
                flops, values = [100 * row["flops"] for row in found], [row[kind] for row in found]
                panel.plot(flops, values, marker=mark, markersize=4, linewidth=1.1, label=choice)
                for row in found[:1]:
                    panel.axhline(row["source"], color="0.6", linewidth=0.8)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(f"{name.split(' ')[0]}, {kind}", fontsize=9)
        line[0].set_ylabel("accuracy, %")
    for panel in panels[-1]:
        panel.set_xlabel("% of the source's FLOPs")
    panels[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def main() -> None:
    options = tables.parser("What the refit is worth to each choice of channels.").parse_args()
    tables.run_rows(options, PATH, list(jobs()), work, write)


if __name__ == "__main__":
    main()
