"""What the guards cost: the check of every cut in `disassemble`, and the extra batches and lines in tracing.

    python benchmarks/guards.py                # everything that is not there yet; some minutes on one core
    python benchmarks/guards.py --only refit   # rows whose name contains the text
    python benchmarks/guards.py --fresh        # make the rows that are there again; with --only, those alone

A guard's share is its time within one call over the time of that call: the median over rounds, with the least and the
most. Sources are trained ones, from the folder that BRICKYARD_SHARED names; images are drawn, since time does not
depend on them. `refit` is how components are cut by default; `none` shows a guard where hardly any work is beside it.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import brickyard as by
import speed
import tables
from brickyard.axes import _graph, _tracing
from brickyard.component import _disassemble
from brickyard.sources._loading import load_source

PATH: Path = tables.RESULTS / "guards.json"
NETS = {
    "ResNet-20": ("zoo:resnet20", "resnet20-cifar10", 32),
    "MobileNetV2": ("torchvision:mobilenet_v2", "mobilenet_v2-imagenet", 224),
    "SqueezeNet": ("torchvision:squeezenet1_1", "squeezenet1_1-imagenet", 224),
}
TASK = [0, 1]
IMAGES = 20  # few: more of them make the guards' share smaller
WANTED = "under 5%"


@cache
def source(name: str) -> torch.nn.Module:
    spec, weights, _ = NETS[name]
    return load_source(spec, weights=tables.SHARED / f"models/{weights}.safetensors").model


@cache
def images(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    side = NETS[name][2]
    x = torch.rand(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(IMAGES) % len(TASK)


@cache
def relevance(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", by.BrickyardWarning)  # drawn images are of no class
        return by.locate(source(name), images(name), task=TASK)


@contextmanager
def timed(spent: list[float], *guards: tuple[ModuleType, str]) -> Iterator[None]:
    """Add up the seconds that some functions take while the block runs."""
    before = [(module, name, getattr(module, name)) for module, name in guards]

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - begun)

        return run

    for module, name, call in before:
        setattr(module, name, watched(call))
    try:
        yield
    finally:
        for module, name, call in before:
            setattr(module, name, call)


def share(act: Callable[[], object], *guards: tuple[ModuleType, str], rounds: int = 5) -> dict[str, Any]:
    act()
    shares, seconds = [], []
    for _ in range(rounds):
        spent: list[float] = []
        with timed(spent, *guards):
            begun = time.perf_counter()
            act()
            whole = time.perf_counter() - begun
        shares.append(sum(spent) / whole)
        seconds.append(sum(spent))
    return {
        "share": statistics.median(shares),
        "low": min(shares),
        "high": max(shares),
        "rounds": rounds,
        "guard_s": statistics.median(seconds),
    }


def cutting(name: str, heal: Any) -> dict[str, Any]:
    """The check of a cut, in `disassemble`."""
    located, budget = relevance(name), by.Budget(flops=0.5)

    def act() -> object:
        return by.disassemble(source(name), located, task=TASK, budget=budget, heal=heal, images=images(name))

    return share(act, (_disassemble, "check_cut"), rounds=3 if heal == "refit" else 7)


def tracing(name: str) -> dict[str, Any]:
    """The comparison with the model on other batches, in `trace`, without the two passes that find the sizes."""
    x = images(name)[0][:2]
    return share(lambda: _graph.trace(source(name), x), (_tracing, "_check_equal"), rounds=7)


def lines(name: str) -> dict[str, Any]:
    """Noting the user's line of every step, in `trace`."""
    x = images(name)[0][:2]
    return share(lambda: _graph.trace(source(name), x), (_tracing, "line_running"), rounds=7)


def jobs() -> Iterator[tuple[str, str, Callable[..., dict[str, Any]], tuple[str, ...]]]:
    for name in NETS:
        yield f"cut | {name} | heal refit", WANTED, cutting, (name, "refit")
        yield f"cut | {name} | heal none", "", cutting, (name, "none")
        yield f"trace | {name} | compared on other batches", "", tracing, (name,)
        yield f"trace | {name} | lines of the user's code", WANTED, lines, (name,)


def page(rows: dict[str, Any]) -> str:
    """The page of the results."""
    lines = [
        "# What the guards cost",
        "",
        "Written by `python benchmarks/guards.py`. Each figure is the share of a call's time that a guard takes: the",
        "median over rounds, with the least and the most in brackets, and the guard's own seconds. `cut`: the check of",
        f"a cut in `disassemble`, at half the FLOPs for two classes with {IMAGES} images; more of them make its share",
        "smaller. `trace`: what tracing spends on comparing with the model, and on noting lines.",
        "",
        "| in | network | measure | share of the call | seconds | wanted |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in rows.items():
        kind, name, measure = title.split(" | ")
        found = f"{row['share']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
        lines.append(f"| {kind} | {name} | {measure} | {found} | {row['guard_s']:.3f} | {row['wanted']} |")
    told = ", ".join(f"{key} {value}" for key, value in speed.machine().items())
    return "\n".join([*lines, "", f"Machine: {told}.", ""])


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, [job[0] for job in jobs()])
    PATH.with_suffix(".md").write_text(page(ordered))


def main() -> None:
    options = tables.parser("What the guards cost.", workers=False).parse_args()
    rows, todo = tables.begun(options, list(jobs()), PATH)
    for title, wanted, work, arguments in todo:
        rows[title] = {**work(*arguments), "wanted": wanted}
        write(rows)
        print(f"{title}: {rows[title]['share']:.1%} [{wanted}]", flush=True)
    write(rows)


if __name__ == "__main__":
    main()
