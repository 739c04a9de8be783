"""Components at a budget of FLOPs: what the choice of channels is worth, on real images, full test splits.

    python benchmarks/accuracy.py                # everything that is not there yet
    python benchmarks/accuracy.py --only Fashion # rows whose name contains the text
    python benchmarks/accuracy.py --workers 2    # rows at once, one thread each

Every row is written as soon as it is known; a run that was stopped goes on where it was. Channels are chosen and
components refitted on at most 400 training images, drawn with three seeds; test images are scored, and nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

import brickyard as by
import tables

SEEDS = (0, 1, 2)
CHOICES = ("factors", "damage", "mda", "l1", "activation", "taylor", "random")
TASKS: list[tuple[str, range]] = [
    *((name, task) for name in ("MNIST", "Fashion", "ResNet-20") for task in (range(3), range(3, 10))),
    *(("VGG-16-w25 CIFAR-10", task) for task in (range(3), range(3, 10))),
    ("VGG-16-w25 CIFAR-100", range(20)),
    *(("GoogLeNet-w25 CIFAR-10", task) for task in (range(3), range(3, 10))),
    ("VGG-16-w25 CIFAR-100", range(20, 70)),
]
MAIN = TASKS[:9]  # with all three seeds
CURVES = [TASKS[k] for k in (3, 5, 7, 8)]  # at other shares too
SINGLES = [(name, range(k, k + 1)) for name in ("ResNet-20", "VGG-16-w25 CIFAR-10") for k in (0, 1)]
SHARES = (0.7, 0.5, 0.3, 0.2)
PATH = tables.RESULTS / "accuracy.json"
PAGE = tables.RESULTS / "accuracy.md"
PICTURE = tables.RESULTS / "accuracy.png"


def jobs() -> Iterator[tuple[str, str, range, float, str, int]]:
    """Every component: its title, and what it is made of; what matters most comes first."""
    half = [(seed, 0.5, task) for seed in SEEDS[:2] for task in MAIN]
    curves = [(SEEDS[0], share, task) for share in SHARES if share != 0.5 for task in CURVES]
    last = [(SEEDS[2], 0.5, task) for task in MAIN]
    rest = [(SEEDS[0], 0.5, task) for task in TASKS[len(MAIN) :]]
    for seed, share, (name, task) in [*half[: len(MAIN)], *curves, *rest, *half[len(MAIN) :], *last]:
        for choice in ("factors", "damage"):
            yield title(name, task, share, choice, seed), name, task, share, choice, seed
    for seed, share, (name, task) in [*half, *curves, *last]:
        for choice in ("mda", "l1", "random") if share > SHARES[-1] else ():
            yield title(name, task, share, choice, seed), name, task, share, choice, seed
    for name, task in SINGLES:
        for choice in ("factors", "damage", "mda", "random"):
            yield title(name, task, 0.5, choice, SEEDS[0]), name, task, 0.5, choice, SEEDS[0]
    for choice in ("activation", "taylor"):
        for name, task in MAIN:
            yield title(name, task, 0.5, choice, SEEDS[0]), name, task, 0.5, choice, SEEDS[0]
    for name, task in TASKS[len(MAIN) :]:
        for choice in ("mda", "l1", "random"):
            yield title(name, task, 0.5, choice, SEEDS[0]), name, task, 0.5, choice, SEEDS[0]


def named(name: str, task: range) -> str:
    return f"{name} {task.start}" + (f"-{task.stop - 1}" if len(task) > 1 else "")


def title(name: str, task: range, share: float, choice: str, seed: int) -> str:
    return f"{named(name, task)} | {share:.0%} | {choice} | {seed}"


def row(name: str, task: range, share: float, choice: str, seed: int) -> dict[str, Any]:
    """One component's scores on the full test split."""
    torch.set_num_threads(1)
    model = tables.source(name).model
    started = time.perf_counter()
    part = by.disassemble(
        model,
        tables.relevance(name),
        task=list(task),
        budget=by.Budget(flops=share, factors=None if choice == "factors" else False),
        select="damage" if choice == "factors" else choice,
        seed=seed,
    )
    seconds = time.perf_counter() - started
    scores = by.evaluate(part, tables.load(name, "test"), source=model, latency=False)
    own, chosen, whole = scores.row("component"), part.manifest.selection, part.manifest.source
    return {
        "base": scores.row("base").accuracy,
        "restricted": scores.row("restricted").accuracy,
        "accuracy": own.accuracy,
        "drop": own.drop,
        "drop_error": own.drop_error,
        "flops": chosen.flops / whole.flops,
        "parameters": chosen.parameters / whole.parameters,
        "seconds": seconds,
        "auroc": own.auroc,
        "auroc_drop_error": own.auroc_drop_error,
        "restricted_auroc": scores.row("restricted").auroc,
    }


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, (job[0] for job in jobs()))
    PAGE.write_text(page(ordered))
    draw(ordered)


def draw(rows: dict[str, Any]) -> None:
    """Drop against FLOPs, a panel a task, a line a choice; the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(CURVES), figsize=(3.1 * len(CURVES), 3.2), constrained_layout=True)
    for panel, (name, task) in zip(panels, CURVES, strict=True):
        for choice, mark in (("factors", "*"), ("damage", "o"), ("mda", "s"), ("l1", "^"), ("random", "x")):
            found = [rows.get(title(name, task, share, choice, SEEDS[0])) for share in SHARES]
            points = [(100 * row["flops"], row["drop"], row["drop_error"]) for row in found if row]
            if points:
                x, y, error = zip(*points, strict=True)
                panel.errorbar(x, y, error, marker=mark, markersize=4, linewidth=1.2, capsize=2, label=choice)
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.set_title(named(name, task), fontsize=9)
        panel.set_xlabel("% of the source's FLOPs")
        panel.set_xticks([100 * share for share in SHARES])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points below restricted")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Components at a budget of FLOPs",
        "",
        "Written by `python benchmarks/accuracy.py`. Full test splits. Each cell is the drop of accuracy against the",
        "source restricted to the task, in points, after the refit: mean over seeds, with one standard error (of the",
        "mean over seeds and of the paired test images together). Choices: `factors` (the default: measured damage,",
        "with pairs of factors), `damage` (the same without), `mda` (the paper's relevances), and controls. `mda` and",
        "the controls were refitted with one ridge (1e-3) for all layers.",
        "",
        f"| task | FLOPs | restricted | {' | '.join(CHOICES)} |",
        f"|---|---|---|{'---|' * len(CHOICES)}",
    ]
    for share in SHARES:
        for name, task in TASKS:
            cells, restricted = [], ""
            for choice in CHOICES:
                found = [rows[key] for seed in SEEDS if (key := title(name, task, share, choice, seed)) in rows]
                cells.append(cell(found))
                restricted = f"{found[0]['restricted']:.1f}" if found else restricted
            if any(cells):
                lines.append(f"| {named(name, task)} | {share:.0%} | {restricted} | {' | '.join(cells)} |")
    lines += ["", "![Points below restricted against FLOPs](accuracy.png)", "", *singles(rows)]
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, f"Machine: {about}.", ""])


def singles(rows: dict[str, Any]) -> list[str]:
    """Tasks of one class: accuracy is 100 for any of them, the AUROC against the other classes is not."""
    lines = [
        "Tasks of one class at half of the FLOPs: AUROC of the class's logit against all other classes' images.",
        "Brackets: one standard error of the difference from restricted, paired over images.",
        "",
        "| task | restricted | factors | damage | mda | random |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in SINGLES:
        found = [
            rows.get(title(name, task, 0.5, choice, SEEDS[0])) for choice in ("factors", "damage", "mda", "random")
        ]
        if any(found):
            whole = next(row["restricted_auroc"] for row in found if row)
            cells = [f"{row['auroc']:.1f} ({row['auroc_drop_error']:.1f})" if row else "" for row in found]
            lines.append(f"| {named(name, task)} | {whole:.1f} | {' | '.join(cells)} |")
    return [*lines, ""] if len(lines) > 5 else []


def cell(found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    drops = [one["drop"] for one in found]
    images = statistics.mean(one["drop_error"] for one in found)
    seeds = statistics.stdev(drops) / len(drops) ** 0.5 if len(drops) > 1 else 0.0
    return f"{statistics.mean(drops):.1f} ({(images**2 + seeds**2) ** 0.5:.1f})"


def work(_: str, *job: Any) -> dict[str, Any]:
    return row(*job)


def main() -> None:
    options = tables.parser("What the choice of channels is worth.").parse_args()
    tables.run_rows(options, PATH, list(jobs()), work, write)


if __name__ == "__main__":
    main()
