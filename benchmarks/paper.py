"""The paper's two main tables, disassembling and assembling, for any network, width and data that are at hand.

    python benchmarks/paper.py --network vgg16 --data cifar10=FOLDER --data cifar100=FOLDER --device cuda
    python benchmarks/paper.py --network googlenet --data tiny=FOLDER --device cuda
    python benchmarks/paper.py --network vgg16 --width 0.25 --data cifar10=FOLDER --weights cifar10=FILE

A source without weights is trained first: 200 epochs, shifted and mirrored images; it is kept in `benchmarks/trained`.
Components are the paper's: its thresholds, 50 confident training images per class. Full test splits. Every row is
written as soon as it is known; a run that was stopped goes on where it was, and rows of other networks stay.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

import brickyard as by
import tables
from brickyard.base._options import TrainingOptions
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.network._place import device_named
from brickyard.sources._loading import Source, load_source
from brickyard.training._finetune import finetune
from brickyard.training._sources import train_source

TASKS = {  # of the paper
    "cifar10": (range(1), range(1, 2), range(3), range(3, 10)),
    "cifar100": (range(1), range(1, 2), range(20), range(20, 70)),
    "tiny": (range(1), range(1, 2), range(70), range(70, 180)),
}
SCALINGS = ("none", "magnitude", "logit-mean", "mahalanobis")
EPOCHS = 10  # after assembling, in the paper
PATH, PAGE = tables.RESULTS / "paper.json", tables.RESULTS / "paper.md"


class Setting(NamedTuple):
    """What is measured, and where: data and weights are pairs of a name and a place."""

    network: str
    width: float
    data: tuple[tuple[str, str], ...]
    weights: tuple[tuple[str, str], ...]
    device: str

    def images(self, name: str, split: str) -> ImageData:
        return images(dict(self.data)[name], split)

    def trained(self, name: str) -> Path:
        """The file of a source: the one given, or where it is kept when it is trained here."""
        given = dict(self.weights).get(name)
        return Path(given) if given else tables.TRAINED / f"{self.network}-{self.width:g}-{name}.safetensors"


def span(task: range) -> str:
    return f"{task.start}-{task.stop - 1}" if len(task) > 1 else str(task.start)


def jobs(setting: Setting, tune: bool) -> Iterator[tuple[str, Setting, str, tuple[tuple[str, range], ...]]]:
    first = f"{setting.network}, width {setting.width:g}"
    for name, _ in setting.data:
        for task in TASKS[name]:
            yield f"part | {first} | {name} {span(task)}", setting, "part", ((name, task),)
    for (a, _), (b, _) in itertools.pairwise(setting.data):
        for parts in zip(TASKS[a], TASKS[b], strict=True):
            both = ((a, parts[0]), (b, parts[1]))
            title = " + ".join(f"{name} {span(task)}" for name, task in both)
            for kind in ("whole", "tuned", "taught")[: 3 if tune else 1]:
                yield f"{kind} | {first} | {title}", setting, kind, both


@cache
def images(place: str, split: str) -> ImageData:
    return load_data(place, split=split)


@cache
def source(setting: Setting, name: str) -> Source:
    """A source on the CPU, as it is written in its file."""
    return load_source(
        f"zoo:{setting.network}?width={setting.width:g}",
        weights=setting.trained(name),
        classes=setting.images(name, "train").classes,
    )


def prepare(setting: Setting, epochs: int, batch_size: int) -> None:
    """Train the sources that are not there."""
    tables.TRAINED.mkdir(exist_ok=True)
    for name, _ in setting.data:
        path = setting.trained(name)
        if name not in dict(setting.weights) and not path.exists():
            seen = setting.images(name, "train")
            made = train_source(
                f"{setting.network}?width={setting.width:g}",
                seen,
                preprocessing=by.Preprocessing(size=tuple(seen.images.shape[2:])),
                held_out=setting.images(name, "test"),
                epochs=epochs,
                batch_size=batch_size,
                augment=True,
                device=setting.device,
            )
            made.save(path)


@cache
def located(setting: Setting, name: str) -> tuple[torch.nn.Module, by.Relevance]:
    found = source(setting, name)
    model = found.model.to(setting.device)
    return model, by.locate(
        model,
        setting.images(name, "train"),
        classes=found.classes,
        preprocessing=found.preprocessing,
        name=f"{setting.network} {name}",
    )


def component(setting: Setting, name: str, task: range, heal: Any, budget: by.Budget | None = None) -> by.Component:
    model, relevance = located(setting, name)
    return by.disassemble(
        model, relevance, task=list(task), heal=heal, budget=budget, select=None if budget is None else "mda"
    )


def work(_: str, setting: Setting, kind: str, parts: tuple[tuple[str, range], ...]) -> dict[str, Any]:
    if setting.device == "cpu":
        torch.set_num_threads(1)
    if kind == "part":
        return part(setting, *parts[0])
    return assembled(setting, parts) if kind == "whole" else finetuned(setting, parts, kind)


def part(setting: Setting, name: str, task: range) -> dict[str, Any]:
    """A component of the paper, cut and healed, beside its source."""
    test = setting.images(name, "test")
    single = len(task) == 1
    found: dict[str, Any] = {}
    for heal in ("none", "refit"):
        made = component(setting, name, task, heal)
        scores = by.evaluate(made, test, source=located(setting, name)[0], latency=False)
        for key, kind in (("base", "base"), ("restricted", "restricted"), (heal, "component")):
            row = scores.row(kind)
            found[key] = row.auroc if single else row.accuracy
        found[f"{heal} error"] = row.auroc_drop_error if single else row.drop_error
    chosen, whole = made.manifest.selection, made.manifest.source
    return {**found, "parameters": chosen.parameters / whole.parameters, "flops": chosen.flops / whole.flops}


def finetuned(setting: Setting, parts: tuple[tuple[str, range], ...], kind: str) -> dict[str, Any]:
    """Refitted components of two sources after ten epochs: by labels alone, or also taught by the uncut sources."""
    tests = [setting.images(name, "test") for name, _ in parts]
    made = by.assemble([component(setting, *one, "refit") for one in parts], on_duplicate="rename")
    found: dict[str, Any] = {}
    teacher = None
    if kind == "taught":
        uncut = [component(setting, *one, "none", by.Budget(flops=1)) for one in parts]
        teacher = by.assemble(uncut, on_duplicate="rename")
        row = by.evaluate(teacher, tests, latency=False).row("assembled")
        found = {"teacher": row.class_accuracy, "teacher error": row.class_error}
    trains = [setting.images(name, "train") for name, _ in parts]
    made = finetune(made, trains, training=TrainingOptions(epochs=EPOCHS, augment=True), validation=0, teacher=teacher)
    row = by.evaluate(made, tests, latency=False).row("assembled")
    return {**found, kind: row.class_accuracy, f"{kind} error": row.class_error}


def assembled(setting: Setting, parts: tuple[tuple[str, range], ...]) -> dict[str, Any]:
    """Components of two sources in one classifier: cut as in the paper, and refitted."""
    tests = [setting.images(name, "test") for name, _ in parts]
    found: dict[str, Any] = {}
    for heal in ("none", "refit"):
        components = [component(setting, *one, heal) for one in parts]
        for scaling in SCALINGS:
            whole = by.assemble(components, scaling=scaling, on_duplicate="rename")
            models = [located(setting, name)[0] for name, _ in parts] if not found else None
            scores = by.evaluate(whole, tests, source=models, latency=False)
            row = scores.row("assembled")
            found |= {f"{heal}, {scaling}": row.class_accuracy, f"{heal}, {scaling} error": row.class_error}
            if models:
                found |= {kind: scores.row(kind).class_accuracy for kind in ("base", "restricted")}
    return found


def write(rows: dict[str, Any]) -> None:
    PAGE.write_text(page(tables.write_rows(PATH, rows, sorted(rows, key=place))))


def place(title: str) -> tuple[Any, ...]:
    """Where a row stands: by source, then data, then tasks as the paper has them."""
    kind, network, tasks = title.split(" | ")
    return kind, network, tasks.split(" ")[0], "-" in tasks, [int(number) for number in re.findall(r"\d+", tasks)]


def page(rows: dict[str, Any]) -> str:
    columns = [f"{heal}, {scaling}" for heal in ("none", "refit") for scaling in SCALINGS]
    shown = [f"{'bare' if heal == 'none' else heal}, {scaling}" for heal in ("none", "refit") for scaling in SCALINGS]
    lines = [
        "# The paper's tables",
        "",
        "Written by `python benchmarks/paper.py`. Full test splits; accuracy in percent. Components by the paper's",
        "thresholds, without a repair (bare) and with the refit. base: all classes of the source compete, as in the",
        "paper; restricted: those of the task. Tasks of one class have AUROC against the images of all other classes,",
        "since the accuracy of one class alone is always 100. Brackets: one standard error of the difference from",
        "restricted, paired over images.",
        "",
        "| source | task | parameters | FLOPs | base | restricted | bare | refit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, row in rows.items():
        kind, network, task = title.split(" | ")
        if kind == "part":
            cells = [f"{row[key]:.0%}" for key in ("parameters", "flops")]
            cells += [f"{row[key]:.1f}" for key in ("base", "restricted")]
            cells += [tables.with_error(row, key) for key in ("none", "refit")]
            lines.append(f"| {network} | {task} | {' | '.join(cells)} |")
    lines += [
        "",
        "Assemblies, mean over classes. Scalings without images: none, the paper's (magnitude), the one of its code",
        "(logit-mean), ours (mahalanobis). Brackets: one standard error.",
        "",
        f"| sources | tasks | base | restricted | {' | '.join(shown)} |",
        f"|---|---|---|---|{'---|' * len(shown)}",
    ]
    assemblies = [title.split(" | ")[1:] for title in rows if title.startswith("whole")]
    for network, tasks in assemblies:
        row = rows[f"whole | {network} | {tasks}"]
        cells = [f"{row[key]:.1f}" for key in ("base", "restricted")] + [tables.with_error(row, key) for key in columns]
        lines.append(f"| {network} | {tasks} | {' | '.join(cells)} |")
    lines += [
        "",
        f"After {EPOCHS} epochs on the training images of both sources, refitted and without a scaling: by labels,",
        "and by labels with the uncut sources side by side as a teacher (`finetune(teacher=)`).",
        "",
        "| sources | tasks | before | labels | labels and teacher | teacher |",
        "|---|---|---|---|---|---|",
    ]
    for network, tasks in assemblies:
        found = [rows.get(f"{kind} | {network} | {tasks}") for kind in ("whole", "tuned", "taught", "taught")]
        keys = ("refit, none", "tuned", "taught", "teacher")
        cells = [tables.with_error(row, key) if row else "" for row, key in zip(found, keys, strict=True)]
        if any(cells[1:]):
            lines.append(f"| {network} | {tasks} | {' | '.join(cells)} |")
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def pairs(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=TEXT` each.

    Raises:
        SystemExit: One is not of that form, or of no data set that the paper uses.
    """
    found = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in TASKS:
            raise SystemExit(f"{text!r} was given; write NAME=TEXT, NAME one of {', '.join(TASKS)}")
        found.append((name, value))
    return tuple(found)


def main() -> None:
    parser = tables.parser("The paper's tables, for networks and data at hand.")
    parser.add_argument("--network", default="vgg16", help="vgg16, resnet50 or googlenet, or another one of the zoo")
    parser.add_argument("--width", type=float, default=1.0, help="share of the network's channels")
    parser.add_argument("--data", action="append", required=True, help="NAME=TEXT; TEXT as for brickyard --data")
    parser.add_argument("--weights", action="append", default=[], help="NAME=FILE of a source that is trained")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--epochs", type=int, default=200, help="epochs for sources that are trained here")
    parser.add_argument("--batch-size", type=int, default=128, help="batch size for these")
    parser.add_argument("--tune", action="store_true", help="assemblies after ten epochs too")
    options: argparse.Namespace = parser.parse_args()
    device_named(options.device)
    setting = Setting(options.network, options.width, pairs(options.data), pairs(options.weights), options.device)
    prepare(setting, options.epochs, options.batch_size)
    tables.run_rows(options, PATH, list(jobs(setting, options.tune)), work, write)


if __name__ == "__main__":
    main()
