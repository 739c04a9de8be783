"""A network of signals, trained here and cut: nine speakers by cepstral coefficients.

    pip install --no-deps aeon                # which ships the data; nothing of it is imported
    python benchmarks/signals.py              # trains the network and measures, in half a minute
    python benchmarks/signals.py --fresh      # make the rows that are there again; with --only, those alone

The data are Japanese Vowels (Kudo, Toyama and Shimbo, 1999; CC BY 4.0): 270 recordings to train with, 370 to score.
`benchmarks/trained` gets `speakers.npz` and `speakers.safetensors`, for the commands of docs/howto/signals.md.
"""

from __future__ import annotations

import importlib.util
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import brickyard as by
import speakers
import tables
from brickyard.inputs._datasets import ImageData, load_data

PATH: Path = tables.RESULTS / "signals.json"
DATA, WEIGHTS = tables.TRAINED / "speakers.npz", tables.TRAINED / "speakers.safetensors"
SHAPE = (12, 25)
TASKS = ((0, 1), (2, 3, 4), (5, 6, 7, 8))
FLOPS = 0.5
EPOCHS, BATCH, RATE = 60, 30, 3e-3


def recordings(split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Signals (recordings, 12, 25) and speakers of a file that aeon ships: channels with colons between them."""
    found = importlib.util.find_spec("aeon")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("aeon is missing: pip install --no-deps aeon")
    folder = Path(found.submodule_search_locations[0], "datasets/data/JapaneseVowels")
    lines = (folder / f"JapaneseVowels_eq_{split.upper()}.ts").read_text().splitlines()
    rows = [line.split(":") for line in lines if line and line[0] not in "@#"]
    signals = np.array([[channel.split(",") for channel in row[:-1]] for row in rows], np.float32)
    return signals, np.array([int(row[-1]) - 1 for row in rows])


def prepare() -> None:
    """Write the data and the trained weights, unless they are there."""
    tables.TRAINED.mkdir(exist_ok=True)
    if not DATA.exists():
        pairs = {split: recordings(split) for split in ("train", "test")}
        (x_train, y_train), (x_test, y_test) = pairs["train"], pairs["test"]
        np.savez(DATA, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    if not WEIGHTS.exists():
        save_file(trained(load("train")).state_dict(), WEIGHTS)


def load(split: str) -> ImageData:
    return load_data(DATA, split=split, shape=SHAPE)


def trained(data: ImageData) -> nn.Module:
    torch.manual_seed(0)
    model = speakers.network()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    steps = EPOCHS * (len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(data)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.images[chosen]), data.labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@cache
def source() -> nn.Module:
    prepare()
    model = speakers.network().eval()
    model.load_state_dict(load_file(WEIGHTS))
    return model


@cache
def part(task: tuple[int, ...]) -> by.Component:
    relevance = by.locate(source(), load("train"), name="speakers")
    return by.disassemble(source(), relevance, task=list(task), budget=by.Budget(flops=FLOPS))


def component_row(task: tuple[int, ...]) -> dict[str, Any]:
    made = part(task)
    return scores(made, by.evaluate(made, load("test"), source=source(), latency=False), "component")


def assembly_row() -> dict[str, Any]:
    parts = [part(task) for task in TASKS]
    test = [load("test")] * len(parts)
    whole = by.assemble(parts)
    return scores(whole, by.evaluate(whole, test, source=[source()] * len(parts), latency=False), "assembled")


def scores(made: Any, found: Any, name: str) -> dict[str, Any]:
    rows = {row.name: row for row in found.rows}
    before = made.manifest.parts[0].source
    return {
        "flops": rows[name].flops / before.flops,
        "parameters": rows[name].parameters / before.parameters,
        **{key: rows[key].accuracy for key in ("base", "restricted", name) if key in rows},
        f"{name} error": rows[name].error,
    }


def jobs() -> list[tuple[str, Any]]:
    names = {task: f"speakers {task[0]}-{task[-1]}" for task in TASKS}
    return [*((names[task], partial(component_row, task)) for task in TASKS), ("all three, assembled", assembly_row)]


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# A network of signals",
        "",
        "Written by `python benchmarks/signals.py`. Japanese Vowels, 12 x 25; the whole test split, accuracy in",
        "percent, one standard error in brackets. Parts are cut to half of the source's FLOPs and refitted with",
        "training signals. restricted: the source with only the task's outputs competing. Sizes are shares of the",
        "source's.",
        "",
        "| task | FLOPs | parameters | base | restricted | part |",
        "|---|---|---|---|---|---|",
    ]
    for title, row in rows.items():
        name = "component" if "component" in row else "assembled"
        cells = [f"{row[key]:.1f}" if key in row else "" for key in ("base", "restricted")]
        sizes = f"{row['flops']:.0%} | {row['parameters']:.0%}"
        lines.append(f"| {title} | {sizes} | {' | '.join(cells)} | {tables.with_error(row, name)} |")
    told = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {told}.", ""])


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, [title for title, _ in jobs()])
    PATH.with_suffix(".md").write_text(page(ordered))


def main() -> None:
    options = tables.parser("A network of signals, trained and cut.", workers=False).parse_args()
    rows, todo = tables.begun(options, list(jobs()), PATH)
    for title, work in todo:
        rows[title] = work()
        write(rows)
    write(rows)


if __name__ == "__main__":
    main()
