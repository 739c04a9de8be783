"""Write the paper's published values beside ours into docs/paper.md, row by row.

    python tools/paper_table.py            # writes the generated part of docs/paper.md
    python tools/paper_table.py --check    # exits with 1 if the page is out of date

Ours are the rows of benchmarks/results/paper.json, written by `python benchmarks/paper.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "paper.md"
RESULTS = ROOT / "benchmarks" / "results" / "paper.json"
NETWORKS = ("VGG-16", "ResNet-50", "GoogLeNet")
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny": "Tiny-ImageNet"}
OURS = {  # the sources in our table: the network of the paper that each stands for, its name, and how it differs
    "vgg16, width 1": ("VGG-16", "VGG-16", "source"),
    "vgg16, width 0.25": ("VGG-16", "VGG-16, quarter width", "width"),
    "resnet50, width 1": ("ResNet-50", "ResNet-50", "source"),
    "resnet20, width 1": ("ResNet-50", "ResNet-20", "network"),
    "resnet32, width 1": ("ResNet-50", "ResNet-32", "network"),
    "googlenet, width 1": ("GoogLeNet", "GoogLeNet", "source"),
    "googlenet, width 0.25": ("GoogLeNet", "GoogLeNet, quarter width", "width"),
}

# Disassembling: for each network, the accuracy of the source with all classes competing, and of the component.
PARTS: dict[str, tuple[tuple[float, float], ...]] = {
    "cifar10 0-2": ((93.87, 95.47), (94.93, 97.43), (94.47, 98.17)),
    "cifar10 3-9": ((92.49, 92.27), (93.81, 94.46), (93.46, 93.17)),
    "cifar100 0-19": ((71.05, 82.50), (75.55, 77.15), (75.90, 87.55)),
    "cifar100 20-69": ((72.74, 79.66), (77.68, 79.72), (76.60, 82.42)),
    "tiny 0-69": ((50.17, 55.49), (56.06, 56.40), (52.89, 59.40)),
    "tiny 70-179": ((45.36, 47.95), (51.27, 53.42), (47.91, 51.04)),
}
# Assembling: for each network, the sources' mean accuracy, and the assembly's at once and after ten epochs.
WHOLES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "cifar10 0-2 + cifar100 0-19": ((74.03, 74.17, 74.19), (78.08, 64.34, 76.37), (78.32, 79.22, 79.22)),
    "cifar10 3-9 + cifar100 20-69": ((75.16, 73.72, 74.25), (79.66, 72.03, 75.25), (78.67, 70.24, 76.37)),
    "cifar10 0-9 + cifar100 20-99": ((74.87, 72.07, 73.18), (79.54, 65.97, 74.65), (78.57, 66.59, 70.36)),
    "cifar10 0-9 + tiny 70-179": ((49.33, 42.30, 47.98), (54.85, 47.21, 55.17), (51.73, 48.00, 52.16)),
    "cifar100 0-19 + tiny 0-69": ((69.86, 50.66, 57.19), (74.59, 57.86, 69.23), (74.73, 58.67, 69.14)),
    "cifar100 0-99 + tiny 0-199": ((55.97, 43.06, 56.13), (61.51, 53.05, 57.23), (59.19, 48.66, 58.28)),
}

REASONS = {
    "width": "Our source is the same network with a quarter of the channels. It knows less (base), and has fewer "
    "channels to spare.",
    "network": "Our source is ResNet-20 or ResNet-32, with 16 to 64 channels per layer, in place of ResNet-50.",
    "source": "Our source is the same network, but we trained it ourselves.",
    "training": "We trained the assembly on 10,000 images per source, fewer than its sources had seen. Labels alone "
    "then cost accuracy; the uncut sources as a teacher make up for it.",
    "not measured": "No source was trained for this network and data, or our command does not make this pair. [At full "
    "size](#run-it-at-full-size), it makes the tasks above and the first two pairs.",
}


def title(task: str) -> str:
    """A task as people write it."""
    return " + ".join(f"{DATA[name]} {span}" for name, span in (one.split(" ") for one in task.split(" + ")))


def sources(rows: dict[str, Any], kind: str, task: str, network: str) -> Iterator[tuple[str, str, str]]:
    """Our sources that stand for a network of the paper in a task: key, name and difference, or one without a key."""
    found = [(key, *one[1:]) for key, one in OURS.items() if one[0] == network and f"{kind} | {key} | {task}" in rows]
    yield from found or [("", "-", "not measured")]


def figure(row: dict[str, Any], key: str) -> str:
    """A figure with its standard error, if it has one."""
    if key not in row:
        return "-"
    return f"{row[key]:.1f}" + (f" ({row[f'{key} error']:.1f})" if f"{key} error" in row else "")


def table(head: str, rows: Iterator[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def parts(rows: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of disassembling."""
    for task, published in PARTS.items():
        for network, (base, component) in zip(NETWORKS, published, strict=True):
            for key, name, why in sources(rows, "part", task, network):
                row = rows.get(f"part | {key} | {task}", {})
                ours = [figure(row, one) for one in ("base", "none", "refit", "restricted")]
                yield [title(task), network, f"{base:.2f}", f"{component:.2f}", name, *ours, why]


def wholes(rows: dict[str, Any]) -> Iterator[list[str]]:
    """The rows of assembling."""
    for task, published in WHOLES.items():
        for network, values in zip(NETWORKS, published, strict=True):
            for key, name, why in sources(rows, "whole", task, network):
                row: dict[str, Any] = {}
                for kind in ("whole", "tuned", "taught"):
                    row |= rows.get(f"{kind} | {key} | {task}", {})
                keys = ("base", "none, magnitude", "refit, none", "tuned", "taught")
                why = f"{why}, training" if "tuned" in row else why
                yield [
                    title(task), network, *(f"{one:.2f}" for one in values), name, *(figure(row, one) for one in keys),
                    why,
                ]  # fmt: skip


def text(rows: dict[str, Any]) -> str:
    """The generated part of the page."""
    disassembling, assembling = table(
        "| classes | paper: network | base | component | ours: network | base | bare | refit | restricted "
        "| differs in |",
        parts(rows),
    ), table(
        "| classes | paper: network | base | at once | ten epochs | ours: network | base | bare | refit | ten epochs "
        "| with a teacher | differs in |",
        wholes(rows),
    )  # fmt: skip
    seen = {reason.strip() for line in (disassembling + assembling).splitlines() for reason in re.split("[|,]", line)}
    about = [f"- **{name}.** {reason}" for name, reason in REASONS.items() if name in seen]
    return "\n".join(
        [
            "### Disassembling, row by row",
            "",
            "Accuracy in percent. `base` and `component` are the paper's columns, and ours mean the same: `bare` is "
            "the paper's component, `refit` adds our repair. `restricted` is the uncut source with only the classes of "
            "the task competing: what our components gain over `base` is due to that, not to the cut.",
            "",
            disassembling,
            "",
            "Tasks of one class have 100.00 everywhere in the paper, and would have it here: a classifier of one class "
            "cannot be wrong. We give their AUROC [instead](../benchmarks/results/paper.md).",
            "",
            "### Assembling, row by row",
            "",
            "Accuracy in percent, mean over classes. `base` is the mean of the sources with all their classes "
            "competing. `bare` uses the paper's scaling (`magnitude`); `refit` is repaired, and not scaled.",
            "",
            assembling,
            "",
            "### Why they differ",
            "",
            *about,
        ]
    )


def page() -> str:
    """The page with its generated part written again."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    pattern = r"(<!-- published: [^\n]*-->\n).*?(<!-- end of published -->)"
    old = PAGE.read_text(encoding="utf-8")
    new, found = re.subn(pattern, lambda match: f"{match[1]}\n{text(rows)}\n\n{match[2]}", old, flags=re.S)
    if found != 1:
        raise SystemExit(f"docs/paper.md must have the part 'published' once, got {found}; restore its two comments")
    return new


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    new = page()
    if "--check" in arguments:
        return int(PAGE.read_text(encoding="utf-8") != new)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
