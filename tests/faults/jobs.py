"""What is disturbed: work that writes files, and how to tell whether a folder is as it may be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import brickyard as by
from brickyard.export._module import export_module
from brickyard.export._onnx import export_state_dict
from brickyard.recipes._build import build
from brickyard.recipes._reader import load_recipe
from brickyard.reports._page import write_report
from brickyard.storage._safefile import read
from brickyard.testing import chain, randomised
from brickyard.yard._index import INDEX, JOURNAL, read_index
from brickyard.yard._yard import Yard

CLASSES = ["ant", "bee", "cow", "dog", "eel", "fox"]
GENERATOR = torch.Generator().manual_seed(1)
DATA = (torch.rand(36, 3, 8, 8, generator=GENERATOR), torch.arange(36) % len(CLASSES))
RECIPE = """\
brickyard: 1
sources:
  a:
    train: {network: lenet5?width=0.5, data: digits, classes: "0-3", epochs: 1, lr: 0.05, batch-size: 64}
    preprocessing: {size: 16}
    locate: {per-class: 4}
components:
  low: {source: a, task: "0,1", flops: 0.6, heal-images: 20}
  high: {source: a, task: "2,3", flops: 0.6, heal-images: 20}
assembly: {scaling: none}
evaluate: {data: "digits?split=test", max-images: 60}
"""


def source(seed: int) -> Any:
    return randomised(chain(len(CLASSES)), seed)


def relevance(seed: int, **options: Any) -> Any:
    return by.locate(source(seed), DATA, classes=CLASSES, name="farm", **options)


def component(seed: int, *task: str, **options: Any) -> Any:
    return by.disassemble(source(seed), relevance(seed), task=list(task), **{"heal": "none", **options})


def material() -> SimpleNamespace:
    """What the jobs write: made once."""
    old, new, third = component(1, "ant", "bee"), component(2, "ant", "bee"), component(2, "cow", "fox")
    return SimpleNamespace(
        **{"old": old, "new": new, "third": third, "old_relevance": relevance(1), "new_relevance": relevance(2)},
        **{"old_whole": by.assemble([old, component(1, "dog")]), "new_whole": by.assemble([new, third])},
    )


@dataclass(frozen=True)
class Job:
    """Work on a folder.

    Attributes:
        name: What it is called.
        prepare: Puts there what was there before.
        work: What is disturbed. Doing it again after a disturbance must end as it would have without.
        share: How many of the kills it gets, relative to the others.
    """

    name: str
    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    share: float = 1


def jobs(of: SimpleNamespace) -> list[Job]:
    def saving(old: Any, new: Any) -> tuple[Callable[[Path], object], Callable[[Path], object]]:
        return (
            lambda folder: old.save(folder / "it.safetensors"),
            lambda folder: new.save(folder / "it.safetensors", overwrite=True),
        )

    def yard(folder: Path) -> None:
        own = Yard(folder / "yard", create=True)
        own.add(of.old, "old")
        own.add(of.new, "new")
        of.third.save(folder / "third.safetensors")

    def located(folder: Path) -> None:
        relevance(3, resume=folder / "notes").save(folder / "it.safetensors", overwrite=True)

    def refitted(folder: Path) -> None:
        component(3, "ant", "dog", heal="refit", images=DATA[0]).save(folder / "it.safetensors", overwrite=True)

    def recipe(folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE)

    return [
        Job("save a component", *saving(of.old, of.new)),
        Job("save an assembly", *saving(of.old_whole, of.new_whole)),
        Job("save relevances", *saving(of.old_relevance, of.new_relevance)),
        Job("save a new file", lambda folder: None, lambda folder: either_way(of.new, folder / "it.safetensors"), 0.5),
        Job("add to a yard", yard, lambda folder: Yard(folder / "yard").add(folder / "third.safetensors", "third")),
        Job("remove from a yard", yard, lambda folder: removed(Yard(folder / "yard"), "old"), 0.5),
        Job("locate and resume", lambda folder: None, located),
        Job("refit and save", lambda folder: of.old.save(folder / "it.safetensors"), refitted),
        Job("build a recipe", recipe, lambda folder: build(load_recipe(folder / "recipe.yaml")), 1.5),
    ]


def exports(of: SimpleNamespace) -> list[Job]:
    """Other files that are written; they are not killed, but every call of theirs fails once."""

    def pages(folder: Path, item: Any) -> None:
        write_report(folder / "page.html", [item], names=["it"], overwrite=True)

    def onnx(folder: Path, item: Any) -> None:
        from brickyard.export._onnx import export_onnx

        export_onnx(item, folder / "it.onnx", overwrite=True)

    def scored(folder: Path, item: Any) -> None:
        scores = by.evaluate(item, DATA, latency=False, including_calibration=True)
        scores.to_csv(folder / "rows.csv")
        scores.to_json(folder / "rows.json")

    def packed(folder: Path, item: Any) -> None:
        from brickyard.export._hub import save_pretrained

        save_pretrained(item, folder / "model", overwrite=True)

    def both(call: Callable[[Path, Any], None]) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
        return (lambda folder: call(folder, of.old), lambda folder: call(folder, of.new))

    def state(folder: Path, item: Any) -> None:
        export_state_dict(item, folder / "weights.safetensors", overwrite=True)

    def module(folder: Path, item: Any) -> None:
        export_module(item, folder / "weights.py", overwrite=True)  # and weights.weights.safetensors

    calls = {
        "state dict": state,
        "Python": module,
        "report": pages,
        "scores": scored,
        "folder for the Hub": packed,
        "ONNX": onnx,
    }
    return [Job(name, *both(call)) for name, call in calls.items()]


def either_way(item: Any, path: Path) -> None:
    item.save(path, overwrite=path.exists())


def removed(yard: Yard, name: str) -> None:
    if name in [entry.name for entry in yard.entries()]:
        yard.remove(name)
    yard.add(yard.load("new"))  # takes the lock, and so clears what is left


# -- what a folder may be like -----------------------------------------------------------------------------

Files = dict[str, Any]


def temporary(name: str) -> bool:
    return any(part.endswith(".tmp") or part.startswith(".tmp") or part == ".adding" for part in Path(name).parts)


def contents(folder: Path) -> Files:
    """What is in a folder by name: bytes; of an index and of a build's state what does not tell of times."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if temporary(name):
                found[name] = None
            continue
        if path.name == JOURNAL:
            continue  # of SQLite: what it undoes with it when the index is opened
        if path.name == INDEX:
            index = read_index(path)
            found[name] = index and sorted((name, repr(told)) for name, (_, told) in index[1].items())
            continue
        data: Any = path.read_bytes()
        if path.name == ".build.json" and not temporary(name):
            value = json.loads(data)
            data = value["steps"]
        found[name] = data
    return found


def after_a_kill(folder: Path, before: Files, after: Files, whole: set[bytes]) -> list[str]:
    """What is wrong with a folder whose work was stopped at some point."""
    try:
        now = contents(folder)
    except ValueError as error:
        return [f"half a text: {error}"]
    problems: list[str] = []
    for name, data in now.items():
        if temporary(name):
            continue
        if name.endswith(".build.json"):
            if not all(after[name].get(step) == made for step, made in data.items()):
                problems.append(f"{name} tells of steps that are not so")
        elif "/.build/" in name:  # notes of locating: gone when a build is done
            problems += [] if _reads(folder / name) else [f"{name} is half a file"]
        elif not any(name in files and files[name] == data for files in (before, after)):
            problems.append(f"{name} is neither the old file nor the new one")
        elif (
            name.endswith(".safetensors")
            and data not in whole
            and not name.startswith(("notes/", "out/sources/", "weights"))
        ):
            by.load(folder / name)
            whole.add(data)
    problems += [f"{name} is gone" for name in before.keys() & after.keys() - now.keys()]
    if (folder / "yard").exists():
        problems += [f"the yard: {problem.name} {problem.what}" for problem in Yard(folder / "yard").verify()]
    return problems


def after_a_rerun(folder: Path, after: Files) -> list[str]:
    """What differs from an undisturbed run."""
    now = contents(folder)
    problems = [f"{name} is left" for name in now if temporary(name)]
    return problems + [
        f"{name} is not as without the kill"
        for name in sorted(now.keys() | after.keys())
        if not temporary(name) and (name not in now or name not in after or now[name] != after[name])
    ]


def _reads(path: Path) -> bool:
    try:
        read(path)
    except by.BrickyardError:
        return False
    return True


def copied(pattern: Path, folder: Path) -> Path:
    shutil.copytree(pattern, folder, dirs_exist_ok=True)
    return folder
