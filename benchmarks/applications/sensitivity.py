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
from brickyard.evaluation._roc import Roc

SWEPT = {"VGG-16-w25 CIFAR-10": range(3), "ResNet-20": range(3), "Fashion": range(3, 10)}
THRESHOLDS = ("alpha", "beta", "linear_alpha", "linear_beta")
VALUES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
PATTERNS = (
    "MNIST",
    "Fashion",
    "ResNet-20",
    "VGG-16-w25 CIFAR-10",
    "GoogLeNet-w25 CIFAR-10",
    "VGG-16-w25 CIFAR-100",
)
CLASSES, IMAGES = 10, 20  # of each class so many images, one contribution pattern each
SHOWN = 4, 6  # classes, and images of each, whose patterns are drawn
ASSEMBLIES = {"M5F5": tables.M5F5, "MF": tables.MF, "SAME": tables.SAME}
SCALINGS = ("none", "magnitude", "logit-mean", "mahalanobis")
PATH, PAGE, PICTURE = (tables.RESULTS / f"sensitivity.{kind}" for kind in ("json", "md", "png"))
PATTERNS_PICTURE = tables.RESULTS / "patterns.png"


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
    """For each layer, how alike the contributions of two images are: of one class, and of two.

    The third number is the AUROC with which that tells another image of the class from images of other classes, mean
    over classes, and the fourth one standard error of it.
    """
    source, data = tables.source(name), tables.load(name, "train")
    classes = range(min(CLASSES, len(source.classes)))
    found: dict[str, list[Tensor]] = {}
    drawn: list[str] = []  # a line an image
    for k in classes:
        for count, i in enumerate(torch.nonzero(data.labels == k).flatten()[:IMAGES].tolist()):
            relevance = by.locate(
                source.model,
                (data.images[i : i + 1], data.labels[i : i + 1]),
                classes=source.classes,
                preprocessing=source.preprocessing,
                choose="all",
                task=[k],
                name=name,
            )
            for layer in relevance.layers:
                pattern = relevance.contribution(layer)[k].flatten().double()
                found.setdefault(layer, []).append(pattern - pattern.mean())
            last = [layer for layer, record in relevance.layers.items() if not record.linear][-1]
            if k < SHOWN[0] and count < SHOWN[1]:
                inputs = relevance.contribution(last)[k].mean(0)
                drawn.append(" ".join(f"{value:.2f}" for value in (inputs / inputs.max()).tolist()))
    y = torch.arange(len(classes)).repeat_interleave(IMAGES)
    same = y.unsqueeze(0) == y.unsqueeze(1)
    pair = ~torch.eye(len(y), dtype=torch.bool)
    layers: dict[str, list[float]] = {}
    for layer, rows in found.items():
        x = torch.nn.functional.normalize(torch.stack(rows), dim=1)
        alike = x @ x.T
        own = [pair & (y == k).unsqueeze(1) for k in classes]
        told = torch.tensor([Roc.of(alike[mine], same[mine]).area for mine in own])
        error = float(told.std()) / len(told) ** 0.5
        layers[layer] = [float(alike[same & pair].mean()), float(alike[~same].mean()), float(told.mean()), error]
    return {"images": len(y), "layers": layers, "last convolution": last, "patterns": drawn}


def ablation(name: str) -> dict[str, Any]:
    """Parts side by side (padded where they fit), and with each scaling that needs no image; whole sources."""
    parts = [
        by.disassemble(
            tables.source(n).model,
            tables.relevance(n),
            task=list(task),
            heal="none",
            budget=by.Budget(flops=1),
            select="mda",
        )
        for n, task in ASSEMBLIES[name]
    ]
    tests = [tables.load(n, "test") for n, _ in ASSEMBLIES[name]]
    models = [tables.source(n).model for n, _ in ASSEMBLIES[name]]
    found: dict[str, Any] = {}
    for scaling in SCALINGS:
        whole = by.assemble(parts, scaling=scaling, on_duplicate="rename")
        scores = by.evaluate(whole, tests, source=models, latency=False)
        for key, kind in (("base", "base"), ("restricted", "restricted"), (scaling, "assembled")):
            row = scores.row(kind)
            found |= {key: row.class_accuracy, f"{key} error": row.class_error}
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
            cells = [tables.with_error(row, heal) for heal in ("none", "refit")]
            share = f"{row['parameters']:.0%} | {row['flops']:.0%}"
            lines.append(f"| {task} | {threshold} | {value} | {share} | {' | '.join(cells)} |")
    lines += [
        "",
        "![Accuracy, FLOPs and parameters against each threshold](sensitivity.png)",
        "",
        "## Patterns",
        "",
        f"Relative contributions of single training images, {IMAGES} of each of {CLASSES} classes: mean correlation of",
        "the patterns of two images of one class, and of two classes. Then the AUROC with which that tells another",
        "image of a class from those of other classes (50 is chance), mean over classes, with one standard error.",
        "",
        "| source | layers | first | middle | last | mean |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in ordered.items():
        if title.startswith("pattern"):
            layers = list(row["layers"].values())
            mean = [statistics.mean(values) for values in zip(*layers, strict=True)]
            shown = [layers[0], layers[len(layers) // 2], layers[-1], mean]
            cells = [f"{same:.2f}, {other:.2f}; {told:.0f} ({error:.0f})" for same, other, told, error in shown]
            lines.append(f"| {title.split(' | ')[1]} | {len(layers)} | {' | '.join(cells)} |")
    columns = ("base", "restricted", *SCALINGS)
    lines += [
        "",
        "![Patterns of images, and how alike they are, layer by layer](patterns.png)",
        "",
        f"Above: each line is an image, {SHOWN[1]} of each of the first {SHOWN[0]} classes, each column an input",
        "channel of the last convolution, brighter where it contributes more. Below: the correlations, layer by layer.",
        "",
        "## Padding, and scaling",
        "",
        "Whole sources, mean over classes. base: all classes of the sources compete; restricted: those of a part.",
        "none: the parts side by side, which padding alone gives; magnitude: the paper's feature-map rule; logit-mean:",
        "the rule of its code; mahalanobis: ours, without images.",
        "",
        f"| assembly | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for title, row in ordered.items():
        if title.startswith("scaling"):
            cells = [tables.with_error(row, key) for key in columns]
            lines.append(f"| {title.split(' | ')[1]} | {' | '.join(cells)} |")
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    PAGE.write_text("\n".join([*lines, "", f"Machine: {about}.", ""]))
    draw(ordered)
    draw_patterns({title.split(" | ")[1]: row for title, row in ordered.items() if title.startswith("pattern")})


def draw_patterns(rows: dict[str, Any]) -> None:
    """For each source: patterns of images at its last convolution, and similarities layer by layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        2, len(rows), figsize=(2.6 * len(rows), 4.6), squeeze=False, sharey="row", constrained_layout=True
    )
    for (above, below), (name, row) in zip(panels.T, rows.items(), strict=True):
        lines = [[float(value) for value in line.split()] for line in row["patterns"]]
        above.imshow(lines, aspect="auto", cmap="magma", interpolation="nearest", vmin=0, vmax=1)
        for k in range(1, SHOWN[0]):
            above.axhline(k * SHOWN[1] - 0.5, color="white", linewidth=1)
        above.set_title(name.replace("-w25", ""), fontsize=8)
        above.set_yticks([(k + 0.5) * SHOWN[1] - 0.5 for k in range(SHOWN[0])], range(SHOWN[0]))
        above.set_xlabel("channel", fontsize=7)
        same, other, *_ = zip(*row["layers"].values(), strict=True)
        below.plot(range(1, len(same) + 1), same, label="same class")
        below.plot(range(1, len(other) + 1), other, "--", label="other class")
        below.set_xlabel("layer", fontsize=7)
        below.set_ylim(0, 1)
        below.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat:
        panel.tick_params(labelsize=7)
    panels[0][0].set_ylabel("class", fontsize=8)
    panels[1][0].set_ylabel("correlation", fontsize=8)
    panels[1][0].legend(frameon=False, fontsize=7)
    figure.savefig(PATTERNS_PICTURE, dpi=110)
    plt.close(figure)


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
