"""Distillation: assemblies and components teach small networks, and sources teach their own components.

    python benchmarks/applications/distillation.py             # everything that is not there yet
    python benchmarks/applications/distillation.py --only MNIST

Full test splits, restricted to the task; three seeds. Temperature 4 and weight 0.5 were chosen on training images that
a source trained for it had not seen.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import brickyard as by
import tables
from brickyard.base._options import Distillation, TrainingOptions
from brickyard.inputs._datasets import ImageData
from brickyard.inputs._preprocessing import preprocess
from brickyard.training._finetune import finetune
from brickyard.training._sources import accuracy, build_seeded, train

C10 = "VGG-16-w25 CIFAR-10"
STUDENTS = {  # teachers' parts; the student, its width; labelled images
    "MNIST 0-4 + Fashion 5-9 -> cnn at a quarter": (tables.M5F5, "cnn", 0.25, 2000),
    "ResNet-20 3-9 -> resnet20 at a half": ((("ResNet-20", range(3, 10)),), "resnet20", 0.5, 5000),
    "VGG-16-w25 CIFAR-10 3-9 -> cnn": (((C10, range(3, 10)),), "cnn", 1.0, 5000),
}
OWN = {  # a source and a task: its component at 30 % of the FLOPs
    "Fashion 3-9": ("Fashion", range(3, 10)),
    "ResNet-20 3-9": ("ResNet-20", range(3, 10)),
    "VGG-16-w25 CIFAR-10 3-9": (C10, range(3, 10)),
}
SEEDS = (0, 1, 2)
WAYS = {
    "labels": None,
    "labels and teacher": Distillation(),
    "labels, teacher, features": Distillation(features=1.0),
}
PATH, PAGE = tables.RESULTS / "distillation.json", tables.RESULTS / "distillation.md"


def jobs() -> Iterator[tuple[str, str, int]]:
    for seed in SEEDS:
        for name in STUDENTS:
            yield f"student | {name} | {seed}", name, seed
        for name in OWN:
            yield f"own | {name} | {seed}", name, seed


def work(title: str, name: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return student(name, seed) if title.startswith("student") else own(name, seed)


def student(name: str, seed: int) -> dict[str, Any]:
    """A small network trained from nothing, on labels alone and with a teacher."""
    parts, network, width, count = STUDENTS[name]
    teacher = by.assemble([component(*part, 0.5) for part in parts], on_duplicate="rename")
    images, test = ([tables.load(part, split) for part, _ in parts] for split in ("train", "test"))
    data = together(images, parts, teacher.classes).shuffled(seed).subset(range(count))
    held = together(test, parts, teacher.classes)
    how = by.Preprocessing(size=(32, 32), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    right = tables.answers(teacher, held.images).argmax(1) == held.labels
    found = {"teacher": 100 * right.double().mean().item(), "images": len(held)}
    for way in ("labels", "labels and teacher"):
        model = build_seeded(network, len(teacher.classes), width, seed)
        taught = {"teacher": teacher, "distillation": WAYS[way]} if WAYS[way] else {}
        train(model, data, preprocessing=how, epochs=10, lr=0.05, augment=True, seed=seed, **taught)  # type: ignore[arg-type]
        found[way] = 100 * accuracy(model, held, how)
    return found


def own(name: str, seed: int) -> dict[str, Any]:
    """A component trained further, on labels alone and with its source."""
    source_name, task = OWN[name]
    source, test = tables.source(source_name).model, tables.load(source_name, "test")
    data = tables.load(source_name, "train").shuffled(seed).subset(range(5000))
    part = component(source_name, task, 0.3)
    first = by.evaluate(part, test, source=source, latency=False)
    found = {
        "teacher": first.row("restricted").accuracy,
        "refit": first.row("component").accuracy,
        "images": first.row("component").images,
    }
    for way, how in WAYS.items():
        trained = finetune(
            part,
            data,
            training=TrainingOptions(epochs=3, augment=True, seed=seed),
            validation=0,
            teacher=None if how is None else source,
            distillation=how,
        )
        found[way] = by.evaluate(trained, test, latency=False).row("component").accuracy
    return found


def component(name: str, task: range, share: float) -> by.Component:
    budget = by.Budget(flops=share)
    return by.disassemble(
        tables.source(name).model, tables.relevance(name), task=list(task), budget=budget, select="mda"
    )


def together(data: list[ImageData], parts: Sequence[tuple[str, range]], classes: tuple[str, ...]) -> ImageData:
    """Images of the parts' classes in one size, with labels that count the assembly's classes."""
    how = by.Preprocessing(size=(32, 32), channels=3)
    images, labels, offset = [], [], 0
    for one, (_, task) in zip(data, parts, strict=True):
        inside = torch.isin(one.labels, torch.tensor(list(task)))
        images.append(preprocess(one.images[inside], how).mul(255).round().to(torch.uint8))
        labels.append(one.labels[inside] - task.start + offset)
        offset += len(task)
    return ImageData(torch.cat(images), torch.cat(labels), classes, "together")


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, (job[0] for job in jobs()))
    lines = [
        "# Distillation",
        "",
        "Written by `python benchmarks/applications/distillation.py`. Full test splits; accuracy in percent, mean over",
        "seeds, with one standard error of seeds and test images together.",
        "",
        "Students trained from nothing, ten epochs:",
        "",
        "| teacher -> student | teacher | labels | labels and teacher |",
        "|---|---|---|---|",
        *lines_of(ordered, "student", STUDENTS, ("labels", "labels and teacher"), ("teacher",)),
        "",
        "Components at 30 % of the FLOPs, three epochs, taught by their own source:",
        "",
        f"| component | source restricted | refit | {' | '.join(WAYS)} |",
        "|---|---|---|---|---|---|",
        *lines_of(ordered, "own", OWN, tuple(WAYS), ("teacher", "refit")),
    ]
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    PAGE.write_text("\n".join([*lines, "", f"Machine: {about}.", ""]))


def lines_of(rows: dict[str, Any], kind: str, names: Any, ways: Any, fixed: Any) -> Iterator[str]:
    for name in names:
        found = [rows[key] for seed in SEEDS if (key := f"{kind} | {name} | {seed}") in rows]
        if found:
            cells = [f"{found[0][key]:.1f}" for key in fixed]
            for way in ways:
                values = [row[way] for row in found]
                share = statistics.mean(values) / 100
                seeds = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
                images = 100 * (share * (1 - share) / found[0]["images"]) ** 0.5
                cells.append(f"{100 * share:.1f} ({(seeds**2 + images**2) ** 0.5:.1f})")
            yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    options = tables.parser("Assemblies, components and sources as teachers.").parse_args()
    tables.run_rows(options, PATH, list(jobs()), work, write)


if __name__ == "__main__":
    main()
