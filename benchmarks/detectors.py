"""Components of detectors: mean average precision at a share of the source's FLOPs, beside simpler ways to cut.

    python benchmarks/detectors.py                 # everything that is not there yet; hours on two cores
    python benchmarks/detectors.py --only dog      # rows whose name contains the text
    python benchmarks/detectors.py --fresh         # make the rows that are there again; with --only, those alone

The source is YOLOX-nano (80 classes of COCO, 416 pixels). Components are located and healed on the 128 images of
COCO128's train part, of which a fifth is held back, and scored on its 128 test images. Boxes of the train images serve
to tell which classes they show; healing needs no labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

import brickyard as by
import tables
from brickyard.inputs import BoxData, load_box_data
from brickyard.sources._onnx import read_onnx

PATH, PAGE = tables.RESULTS / "detectors.json", tables.RESULTS / "detectors.md"
TASKS = {
    "person": ("person",),
    "car, bus, truck": ("car", "bus", "truck"),
    "dog, cat": ("dog", "cat"),
    "ten classes": (
        *("person", "chair", "cup", "book", "bottle", "bowl", "handbag", "wine glass", "car", "dining table"),
    ),
}
SHARES = (0.7, 0.5)
HOW = by.Preprocessing(
    size=(416, 416), fit="letterbox", place="corner", fill=114 / 255, order="bgr", channels=3, mean=(0,), std=(1 / 255,)
)
WAYS: dict[str, dict[str, Any]] = {
    "damage": {"select": "damage", "heal": "refit"},
    "l1 + refit": {"select": "l1", "heal": "refit"},
    "l1": {"select": "l1", "heal": "none"},
}


def jobs() -> Iterator[tuple[str, str, float]]:
    """Every row: its title, the task, and the share of the FLOPs."""
    for share in SHARES:
        for task in TASKS:
            yield f"YOLOX-nano {task}, {share:.0%}", task, share


@cache
def images(split: str) -> BoxData:
    return load_box_data(tables.SHARED / f"data/coco128/{split}.parquet")


def row(_: str, task: str, share: float) -> dict[str, Any]:
    """One component, cut in several ways."""
    torch.set_num_threads(1)
    source = read_onnx(tables.SHARED / "models/yolox_nano-coco80.onnx", boxes=by.Boxes.named("yolox")).model
    data = images("train")
    relevance = by.locate(
        source, data, outputs="yolox", task=TASKS[task], classes=data.classes, preprocessing=HOW, name="YOLOX-nano"
    )
    found: dict[str, Any] = {}
    for way, options in WAYS.items():
        part = by.disassemble(source, relevance, task=TASKS[task], budget=by.Budget(flops=share), **options)
        scores = by.evaluate(part, images("test"), source=source, latency=False)
        own, same = scores.row("component"), part.manifest.agreement
        found |= {"restricted": scores.row("restricted").map50, "objects": sum(scores.objects.values())}
        found[way] = {
            "map50": own.map50,
            "map50_95": own.map50_95,
            "drop": own.drop,
            "error": own.drop_error,
            "agreement": None if same is None else 100 * same[0] / max(1, same[1]),
            "parameters": own.parameters,
            "flops": own.flops,
        }
    return found


def write(rows: dict[str, Any]) -> None:
    PAGE.write_text(page(tables.write_rows(PATH, rows, [title for title, _, _ in jobs()])))


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Detectors",
        "",
        "Written by `python benchmarks/detectors.py`. Components of YOLOX-nano at a share of its FLOPs, healed on the",
        "128 train images of COCO128, scored on its 128 test images. mAP50 in percent; drop: points below the source",
        "restricted to the task, with its standard error, paired over images. agreement: boxes of the component and of",
        "the source on images held back that the other one has too. damage: the default. l1: channels by the norm of",
        "their weights, with and without the refit.",
        "",
        "| task | objects | restricted | damage | drop | agreement | l1 + refit: drop | l1: drop |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, found in rows.items():
        drops = [f"{found[way]['drop']:+.1f} ({found[way]['error']:.1f})" for way in WAYS]
        agreement = found["damage"]["agreement"]
        lines.append(
            f"| {title} | {found['objects']} | {found['restricted']:.1f} | {found['damage']['map50']:.1f} | "
            f"{drops[0]} | {'' if agreement is None else f'{agreement:.1f}'} | {' | '.join(drops[1:])} |"
        )
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def main() -> None:
    tables.run_rows(tables.parser(__doc__.splitlines()[0]).parse_args(), PATH, list(jobs()), row, write)


if __name__ == "__main__":
    main()
