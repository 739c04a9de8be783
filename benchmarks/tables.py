"""The tables of components and assemblies on real images, full test splits.

    python benchmarks/tables.py                # everything that is not there yet
    python benchmarks/tables.py --only MNIST   # rows whose name contains the text
    python benchmarks/tables.py --fresh        # make the rows that are there again; with --only, those alone

Trained sources and images are read from the folder that BRICKYARD_SHARED names; Fashion-MNIST from where the
Debian package `dataset-fashion-mnist` puts it. Every row is written as soon as it is known; a run that was
stopped goes on where it was. Locating, healing and scaling see training images only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import brickyard as by
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.runtime._progress import bar
from brickyard.sources._loading import Source, load_source

SHARED = Path(os.environ.get("BRICKYARD_SHARED", Path(__file__).parents[2] / "shared"))
FASHION = Path(os.environ.get("BRICKYARD_FASHION", "/usr/share/datasets/fashion-mnist"))
RESULTS = Path(__file__).parent / "results"
TRAINED = Path(__file__).parent / "trained"  # what `python benchmarks/sources.py` trains


def grey(mean: float, std: float) -> by.Preprocessing:
    return by.Preprocessing(size=(32, 32), fit="pad", channels=3, mean=(mean,), std=(std,))


SOURCES: dict[str, tuple[str, str, Path, by.Preprocessing | None]] = {
    "MNIST": (
        "zoo:cnn",
        "vggs-mnist",
        SHARED / "data/mnist",
        grey(0.1307, 0.3081),
    ),
    "Fashion": (
        "zoo:cnn",
        "vggs-fmnist",
        FASHION,
        grey(0.2860, 0.3530),
    ),
    "ResNet-20": ("zoo:resnet20", "resnet20-cifar10", SHARED / "data/cifar10", None),
    "ResNet-32": ("zoo:resnet32", "resnet32-cifar10", SHARED / "data/cifar10", None),
    "VGG-16-w25 CIFAR-10": ("zoo:auto", "vgg16-w25-cifar10", SHARED / "data/cifar10", None),
    "GoogLeNet-w25 CIFAR-10": ("zoo:auto", "googlenet-w25-cifar10", SHARED / "data/cifar10", None),
    "VGG-16-w25 CIFAR-100": ("zoo:auto", "vgg16-w25-cifar100", SHARED / "data/cifar100", None),
    "VGG-11-w25 CIFAR-100": ("zoo:auto", "vgg11-w25-cifar100", SHARED / "data/cifar100", None),
}
THRESHOLDS = {
    ".2/.1/.25/.2": by.Thresholds(alpha=0.2, beta=0.1, linear_alpha=0.25, linear_beta=0.2),
    "default": by.Thresholds(),
    ".4/.35/.5/.4": by.Thresholds(alpha=0.4, beta=0.35, linear_alpha=0.5, linear_beta=0.4),
}
SMALL = ("MNIST", "Fashion", "ResNet-20")
COMPONENTS: list[tuple[str, range, tuple[str, ...]]] = [
    *((name, task, tuple(THRESHOLDS)) for name in SMALL for task in (range(3), range(3, 10))),
    *(("VGG-16-w25 CIFAR-10", task, ("default",)) for task in (range(3), range(3, 10))),
    *(("VGG-16-w25 CIFAR-100", task, ("default",)) for task in (range(20), range(20, 70))),
]
M5F5 = (("MNIST", range(5)), ("Fashion", range(5, 10)))
MF = (("MNIST", range(10)), ("Fashion", range(10)))
CF = (("ResNet-20", range(5)), ("Fashion", range(5, 10)))
SAME = (("ResNet-20", range(5)), ("ResNet-32", range(5, 10)))
ASSEMBLIES: list[tuple[str, tuple[tuple[str, range], ...], tuple[float, ...]]] = [
    ("M5F5", M5F5, (1.0, 0.25, 0.09)),
    ("MF", MF, (1.0, 0.25)),
    ("CF", CF, (1.0,)),
    ("SAME", SAME, (1.0, 0.75, 0.49)),
]
SCALINGS: list[tuple[str, str, int | None]] = [
    ("none", "none", None),
    ("logit-mean", "logit-mean", None),
    ("joint-head n=5", "joint-head", 5),
    ("joint-head n=20", "joint-head", 20),
]


@cache
def source(name: str) -> Source:
    spec, weights, _, how = SOURCES[name]
    classes = load(name, "train").classes if name != "MNIST" else None
    path = SHARED / "models" / f"{weights}.safetensors"
    if not path.exists():
        path = TRAINED / path.name
    if not path.exists():
        raise SystemExit(f"{path} is missing: set BRICKYARD_SHARED, or run python benchmarks/sources.py")
    return load_source(spec, weights=path, classes=classes, preprocessing=how)


@cache
def load(name: str, split: str) -> ImageData:
    place = SOURCES[name][2]
    if not place.exists():
        raise SystemExit(f"{place} is missing: set BRICKYARD_SHARED or BRICKYARD_FASHION")
    data = load_data(str(place), split=split)
    return data.shuffled(0).subset(range(10_000)) if len(data) > 10_000 else data


@cache
def relevance(name: str) -> by.Relevance:
    found = source(name)
    return by.locate(
        found.model,
        load(name, "train"),
        classes=found.classes,
        preprocessing=found.preprocessing,
        name=name,
    )


def answers(model: Callable[..., Tensor], images: Tensor) -> Tensor:
    """What a model says to images, in batches."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(256)])


def with_error(row: dict[str, Any], key: str) -> str:
    """A figure of a row with its error, as a cell."""
    return f"{row[key]:.1f} ({row[f'{key} error']:.1f})"


def component_row(name: str, task: range, setting: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for heal in ("none", "moments", "refit"):
        started = time.perf_counter()
        part = by.disassemble(
            source(name).model, relevance(name), task=list(task), thresholds=THRESHOLDS[setting], heal=heal
        )
        seconds = time.perf_counter() - started
        scores = by.evaluate(part, load(name, "test"), source=source(name).model, latency=False)
        for kind in ("base", "restricted"):
            row[kind] = scores.row(kind).accuracy
        own = scores.row("component")
        row[heal] = {
            "accuracy": own.accuracy,
            "drop": own.drop,
            "drop_error": own.drop_error,
            "seconds": seconds,
        }
        chosen, whole = part.manifest.selection, part.manifest.source
        row |= {
            "images": own.images,
            "error": own.error,
            "parameters": chosen.parameters / whole.parameters,
            "flops": chosen.flops / whole.flops,
        }
    return row


def assembly_row(parts: tuple[tuple[str, range], ...], share: float) -> dict[str, Any]:
    components = [
        by.disassemble(
            source(name).model, relevance(name), task=list(task), budget=by.Budget(parameters=share), select="mda"
        )
        for name, task in parts
    ]
    tests = [load(name, "test") for name, _ in parts]
    shots = [load(name, "train") for name, _ in parts]
    models = [source(name).model for name, _ in parts]
    row: dict[str, Any] = {}
    for title, scaling, count in SCALINGS:
        images = None if count is None else shots
        whole = by.assemble(components, scaling=scaling, images=images, shots=count, on_duplicate="rename", seed=0)
        with_sources = models if not row else None
        scores = by.evaluate(whole, tests, source=with_sources, latency=False)
        for kind in ("base", "restricted", "oracle"):
            if kind not in row and any(line.name == kind for line in scores.rows):
                row[kind] = scores.row(kind).class_accuracy
        own = scores.row("assembled")
        row[title] = own.class_accuracy
        row |= {"images": own.images, "error": own.class_error}
    return row


def jobs() -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    for name, task, settings in COMPONENTS:
        for setting in settings:
            title = f"{name} {task.start}-{task.stop - 1} | {setting}"
            yield "components", title, partial(component_row, name, task, setting)
    for title, parts, shares in ASSEMBLIES:
        for share in shares:
            label = f"{title} | {'whole' if share == 1 else f'{share:.0%} of the parameters'}"
            yield "assemblies", label, partial(assembly_row, parts, share)


def machine() -> dict[str, Any]:
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "brickyard": by.__version__,
    }


def parser(about: str, workers: bool = True) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--only", default="", help="rows whose name contains this text")
    found.add_argument("--fresh", action="store_true", help="make the rows again that are there (with --only: those)")
    if workers:
        found.add_argument("--workers", type=int, default=1, help="rows at once, one thread each")
    return found


def read_rows(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())["rows"]) if path.exists() else {}


def write_rows(path: Path, rows: dict[str, Any], order: Iterable[str]) -> dict[str, Any]:
    """Write rows in an order, atomically; returns them in it."""
    ordered = {title: rows[title] for title in order if title in rows}
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(), "rows": ordered}, indent=1) + "\n")
    temporary.replace(path)
    return ordered


def begun(
    options: argparse.Namespace, jobs: Sequence[tuple[Any, ...]], path: Path
) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The rows that are there, and the jobs (a title and more) that are asked for and not there, or asked for anew.

    A row that is there stays until the same job has made it again: a file has rows of other networks and data, too.
    """
    asked = [job for job in jobs if options.only in job[0]]
    if not asked:
        raise SystemExit(f"no row's name contains {options.only!r}; names:\n" + "\n".join(job[0] for job in jobs))
    rows = read_rows(path)
    todo = [job for job in asked if options.fresh or job[0] not in rows]
    if not todo:
        print(f"{len(asked)} rows are there already; --fresh makes them again, and leaves the others")
    return rows, todo


def run_rows(
    options: argparse.Namespace,
    path: Path,
    jobs: Sequence[tuple[Any, ...]],
    work: Callable[..., dict[str, Any]],
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Do the jobs (a title and more) that have no row yet, each with one thread; write after each."""
    rows, todo = begun(options, jobs, path)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # what the workers have, and what is written of the machine
    with (
        bar(path.stem, len(todo)) as advance,
        ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool,
    ):
        waiting = {pool.submit(work, *job): job[0] for job in todo}
        try:
            for done in as_completed(waiting):
                title = waiting[done]
                rows[title] = done.result()
                write(rows)
                advance(text=title)
                print(f"{title}: {json.dumps(rows[title])}", flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # what one row cannot do is told now, not after all others
    write(rows)


def markdown(components: dict[str, Any], assemblies: dict[str, Any]) -> str:
    lines = [
        "# Components and assemblies on real images",
        "",
        "Written by `python benchmarks/tables.py`. Full test splits; accuracy in percent, one standard error in",
        "brackets. restricted: the source with only the task's outputs competing. Sizes: share of the source's",
        "parameters / FLOPs. drop: restricted minus refit, paired over images.",
        "",
        "| task | thresholds | size | base | restricted | bare | moments | refit | drop |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, row in components.items():
        task, setting = title.split(" | ")
        cells = [f"{row[heal]['accuracy']:.1f}" for heal in ("none", "moments", "refit")]
        lines.append(
            f"| {task} | {setting} | {row['parameters']:.0%} / {row['flops']:.0%} | {row['base']:.1f} | "
            f"{row['restricted']:.1f} | {' | '.join(cells)} ({row['error']:.1f}) | "
            f"{row['refit']['drop']:+.1f} ({row['refit']['drop_error']:.1f}) |"
        )
    titles = [title for title, _, _ in SCALINGS]
    lines += [
        "",
        "Assemblies: accuracy on the union of the classes, mean over classes. oracle: each image sent to the right",
        "component. n: labelled training images per class.",
        "",
        f"| assembly | parts | base | restricted | oracle | {' | '.join(titles)} |",
        f"|---|---|---|---|---|{'---|' * len(titles)}",
    ]
    for title, row in assemblies.items():
        name, size = title.split(" | ")
        cells = [f"{row[key]:.1f}" for key in ("base", "restricted", "oracle", *titles)]
        lines.append(f"| {name} | {size} | {' | '.join(cells)} ({row['error']:.1f}) |")
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def main() -> None:
    options = parser("Tables of components and assemblies on real images.", workers=False).parse_args()
    every = [(title, kind, work) for kind, title, work in jobs()]
    rows, todo = {}, []
    for kind in ("components", "assemblies"):
        own, path = [job for job in every if job[1] == kind], RESULTS / f"{kind}.json"
        if any(options.only in job[0] for job in every) and not any(options.only in job[0] for job in own):
            rows[kind] = read_rows(path)
            continue
        rows[kind], own = begun(options, own, path)
        todo += own
    order = [title for title, _, _ in every]
    started = time.perf_counter()
    for done, (title, kind, work) in enumerate(todo, start=1):
        rows[kind][title] = work()
        write_rows(RESULTS / f"{kind}.json", rows[kind], order)
        left = (time.perf_counter() - started) / done * (len(todo) - done)
        print(
            f"{done}/{len(todo)} {title}: {json.dumps(rows[kind][title])[:200]} ({left / 60:.0f} min left)",
            flush=True,
        )
    ordered = {kind: write_rows(RESULTS / f"{kind}.json", found, order) for kind, found in rows.items()}
    (RESULTS / "tables.md").write_text(markdown(ordered["components"], ordered["assemblies"]))


if __name__ == "__main__":
    main()
