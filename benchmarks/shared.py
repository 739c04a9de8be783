"""One budget for two parts, divided by what the assembly loses, against half of each part: full test splits.

    python benchmarks/shared.py              # everything that is not there yet
    python benchmarks/shared.py --only MNIST # rows whose name contains the text

Parts know all classes of their source. They are whole; or each is cut to half of its own FLOPs; or both together are
cut to half of what they cost, as `assemble(budget=)` divides it. All cuts see the same training images, by the same
selection and repair. Test images are scored, once, and nothing else. Every row is written as soon as it is known.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import brickyard as by
import tables

PAIRS = {
    "MNIST + ResNet-20 CIFAR-10": ("MNIST", "ResNet-20"),
    "VGG-16-w25 CIFAR-10 + CIFAR-100": ("VGG-16-w25 CIFAR-10", "VGG-16-w25 CIFAR-100"),
}
WAYS = ("whole", "half of each", "half of both")
SHARE = 0.5
LOCATED = 5  # images per class, enough for parts that stay whole at first
PATH, PAGE = tables.RESULTS / "shared.json", tables.RESULTS / "shared.md"


def component(name: str, share: float) -> by.Component:
    """A part with all classes: whole, or cut by itself."""
    source, images = tables.source(name), tables.load(name, "train")
    relevance = by.locate(
        source.model,
        images,
        classes=source.classes,
        preprocessing=source.preprocessing,
        name=name,
        per_class=LOCATED,
    )
    return by.disassemble(
        source.model,
        relevance,
        task=list(range(len(relevance.classes))),
        budget=by.Budget(flops=share),
        images=images,
        heal="refit" if share < 1 else "none",
    )


def work(title: str, names: tuple[str, ...], way: str) -> dict[str, Any]:
    """Accuracy, mean over classes, of one pair cut in one way, and what it costs."""
    torch.set_num_threads(1)
    parts = [component(name, SHARE if way == "half of each" else 1.0) for name in names]
    started = time.process_time()
    more: dict[str, Any] = {}
    if way == "half of both":
        more = {"budget": by.Budget(flops=SHARE), "calibration": [tables.load(name, "train") for name in names]}
    made = by.assemble(parts, on_duplicate="rename", **more)
    seconds = time.process_time() - started
    scores = by.evaluate(made, [tables.load(name, "test") for name in names], latency=False)
    own = scores.row("assembled")
    record = made.manifest.budget
    return {
        "accuracy": own.class_accuracy,
        "accuracy error": own.class_error,
        "oracle": scores.row("oracle").class_accuracy,
        "images": own.images,
        "flops": [part.selection.flops for part in made.manifest.parts],
        "of": [int(part.source.flops) for part in made.manifest.parts],
        "seconds": seconds if more else None,
        "divided": None if record is None else record.model_dump(),
    }


def jobs() -> list[tuple[str, tuple[str, ...], str]]:
    return [(f"{pair} | {way}", names, way) for pair, names in PAIRS.items() for way in WAYS]


def write(rows: dict[str, Any]) -> None:
    PAGE.write_text(page(tables.write_rows(PATH, rows, (job[0] for job in jobs()))))


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# One budget for two parts",
        "",
        "Written by `python benchmarks/shared.py`. Full test splits; accuracy of the assembly in percent, mean over",
        "classes, with one standard error from the test images; oracle: each image sent to the right part. FLOPs are",
        "shares of both sources together, then of each. Half of each: every part is cut to half of its own FLOPs. Half",
        "of both: `assemble(parts, budget=Budget(flops=0.5))` divides the same total by what the assembly loses.",
        "",
        "| parts | cut | FLOPs | of each | accuracy | oracle |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in rows.items():
        pair, way = title.split(" | ")
        each = ", ".join(f"{own / whole:.1%}" for own, whole in zip(row["flops"], row["of"], strict=True))
        total = sum(row["flops"]) / sum(row["of"])
        lines.append(
            f"| {pair} | {way} | {total:.1%} | {each} | {tables.with_error(row, 'accuracy')} | {row['oracle']:.1f} |"
        )
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def main() -> None:
    options = tables.parser("One budget for two parts.").parse_args()
    tables.run_rows(options, PATH, jobs(), work, write)


if __name__ == "__main__":
    main()
