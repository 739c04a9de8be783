"""Thresholds swept one at a time, how alike contributions are within and between classes, and what scaling adds.

    python benchmarks/applications/sensitivity.py               # everything that is not there yet
    python benchmarks/applications/sensitivity.py --only linear # rows whose name contains the text

Full test splits; thresholds are swept to be seen, and none is chosen here.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import brickyard as by
import tables

SWEPT = {"VGG-16-w25 CIFAR-10": range(3), "ResNet-20": range(3), "Fashion": range(3, 10)}
THRESHOLDS = ("alpha", "beta", "linear_alpha", "linear_beta")
VALUES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
PATTERNS = ("MNIST", "Fashion", "ResNet-20", "VGG-16-w25 CIFAR-10")
IMAGES = 20  # a class, one contribution pattern each
ASSEMBLIES = {"M5F5": tables.M5F5, "MF": tables.MF, "SAME": tables.SAME}
SCALINGS = ("none", "magnitude", "logit-mean", "mahalanobis")
PATH, PAGE, PICTURE = (tables.RESULTS / f"sensitivity.{kind}" for kind in ("json", "md", "png"))


def jobs() -> Iterator[tuple[Any, ...]]:
    for name in PATTERNS:
        yield f"pattern | {name}", patterns, name
    for name in ASSEMBLIES:
        yield f"scaling | {name}", ablation, name
    for name in SWEPT:
        for threshold, value in itertools.product(THRESHOLDS, VALUES):
            yield f"sweep | {name} | {threshold} | {value:g}", sweep, name, threshold, value


def work(_: str, call: Any, *job: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = call(*job)
    return found


def sweep(name: str, threshold: str, value: float) -> dict[str, Any]:
    """A component with one threshold moved away from the paper's, bare and refitted."""
    thresholds = replace(by.Thresholds(), **{threshold: value})
    found: dict[str, Any] = {}
    for heal in ("none", "refit"):
        part = by.disassemble(
            tables.source(name).model,
            tables.relevance(name),
            task=list(SWEPT[name]),
            thresholds=thresholds,
            heal=heal,
        )
        row = by.evaluate(part, tables.load(name, "test"), latency=False).row("component")
        found[heal], found[f"{heal} error"] = row.accuracy, row.error
    chosen, whole = part.manifest.selection, part.manifest.source
    return {**found, "parameters": chosen.parameters / whole.parameters, "flops": chosen.flops / whole.flops}


def patterns(name: str) -> dict[str, Any]:
    """For each layer, how alike the contributions of two images are: of one class, and of two."""
    source, data = tables.source(name), tables.load(name, "train")
    found: dict[str, list[Tensor]] = {}
    labels: list[int] = []
    for k in range(len(source.classes)):
        own = torch.nonzero(data.labels == k).flatten()[:IMAGES]
        for i in own.tolist():
            image = data.images[i : i + 1], data.labels[i : i + 1]
            relevance = by.locate(
                source.model,
                image,
                classes=source.classes,
                preprocessing=source.preprocessing,
                choose="all",
                task=[k],
                name=name,
            )
            labels.append(k)
            for layer in relevance.layers:
                pattern = relevance.contribution(layer)[k].flatten().double()
                found.setdefault(layer, []).append(pattern - pattern.mean())
    y = torch.tensor(labels)
    same = (y.unsqueeze(0) == y.unsqueeze(1)) & ~torch.eye(len(y), dtype=torch.bool)
    other = y.unsqueeze(0) != y.unsqueeze(1)
    layers: dict[str, list[float]] = {}
    for layer, rows in found.items():
        x = torch.nn.functional.normalize(torch.stack(rows), dim=1)
        alike = x @ x.T
        # The higher one tells whether another image is of the same class, better than chance, 0.5.
        a, b = alike[same].sort().values, alike[other].sort().values
        auroc = float(torch.searchsorted(b, a).double().mean() / len(b))
        layers[layer] = [float(alike[same].mean()), float(alike[other].mean()), auroc]
    return {"images": len(y), "layers": layers}


def ablation(name: str) -> dict[str, Any]:
    """Parts side by side (padded where they fit), and with each scaling that needs no image; whole sources."""
    parts = [
        by.disassemble(
            tables.source(n).model, tables.relevance(n), task=list(task), heal="none", budget=by.Budget(flops=1)
        )
        for n, task in ASSEMBLIES[name]
    ]
    tests = [tables.load(n, "test") for n, _ in ASSEMBLIES[name]]
    found: dict[str, Any] = {}
    for scaling in SCALINGS:
        whole = by.assemble(parts, scaling=scaling, on_duplicate="rename")
        row = by.evaluate(whole, tests, latency=False).row("assembled")
        found[scaling], found["error"] = row.class_accuracy, row.class_error
    return found


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, (job[0] for job in jobs()))
    lines = [
        "# Thresholds, patterns, scaling",
        "",
        "Written by `python benchmarks/applications/sensitivity.py`. Full test splits; accuracy in percent, one",
        "standard error in brackets.",
        "",
        "## Thresholds",
        "",
        "One threshold is moved, the others stay at the paper's (0.3, 0.2; linear 0.4, 0.3).",
        "",
        "| task | threshold | value | parameters | FLOPs | bare | refit |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, row in ordered.items():
        if title.startswith("sweep"):
            _, name, threshold, value = title.split(" | ")
            task = f"{name} {SWEPT[name].start}-{SWEPT[name].stop - 1}"
            cells = [f"{row[heal]:.1f} ({row[f'{heal} error']:.1f})" for heal in ("none", "refit")]
            share = f"{row['parameters']:.0%} | {row['flops']:.0%}"
            lines.append(f"| {task} | {threshold} | {value} | {share} | {' | '.join(cells)} |")
    lines += [
        "",
        "![Accuracy, FLOPs and parameters against each threshold](sensitivity.png)",
        "",
        "## Patterns",
        "",
        f"Relative contributions of single training images, {IMAGES} a class: mean correlation of the patterns of two",
        "images of one class, and of two classes; in brackets how often the former is higher (0.5 is chance).",
        "",
        "| source | layers | first | middle | last | mean |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in ordered.items():
        if title.startswith("pattern"):
            layers = list(row["layers"].values())
            mean = [statistics.mean(values) for values in zip(*layers, strict=True)]
            shown = [layers[0], layers[len(layers) // 2], layers[-1], mean]
            cells = [f"{a:.2f}, {b:.2f} ({c:.2f})" for a, b, c in shown]
            lines.append(f"| {title.split(' | ')[1]} | {len(layers)} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Padding, and scaling",
        "",
        "Whole sources, mean over classes. none: the parts side by side, which padding alone gives; magnitude: the",
        "paper's feature-map rule; logit-mean: the rule of its code; mahalanobis: ours, without images.",
        "",
        f"| assembly | {' | '.join(SCALINGS)} |",
        f"|---|{'---|' * len(SCALINGS)}",
    ]
    for title, row in ordered.items():
        if title.startswith("scaling"):
            cells = [f"{row[scaling]:.1f}" for scaling in SCALINGS]
            lines.append(f"| {title.split(' | ')[1]} | {' | '.join(cells)} ({row['error']:.1f}) |")
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    PAGE.write_text("\n".join([*lines, "", f"Machine: {about}.", ""]))
    draw(ordered)


def draw(rows: dict[str, Any]) -> None:
    """A panel a source and threshold: accuracies, FLOPs and parameters against its value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        len(SWEPT), len(THRESHOLDS), figsize=(11, 2.4 * len(SWEPT)), sharex=True, sharey="row", constrained_layout=True
    )
    for line, (name, task) in zip(panels, SWEPT.items(), strict=True):
        for panel, threshold in zip(line, THRESHOLDS, strict=True):
            found = {v: rows.get(f"sweep | {name} | {threshold} | {v:g}") for v in VALUES}
            known = {v: row for v, row in found.items() if row}
            for key, label, scale in (
                ("none", "bare", 1),
                ("refit", "refit", 1),
                ("flops", "FLOPs", 100),
                ("parameters", "parameters", 100),
            ):
                style = "--" if scale == 100 else "-"
                panel.plot(
                    list(known),
                    [scale * row[key] for row in known.values()],
                    style,
                    marker="o",
                    markersize=3,
                    label=label,
                )
            panel.axvline(getattr(by.Thresholds(), threshold), color="0.7", linewidth=0.8)
            panel.set_title(f"{name.split(' ')[0]} {task.start}-{task.stop - 1}, {threshold}", fontsize=8)
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("%")
    panels[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def main() -> None:
    options = tables.parser("Thresholds, patterns, scaling.").parse_args()
    tables.run_rows(options, PATH, list(jobs()), work, write)


if __name__ == "__main__":
    main()
