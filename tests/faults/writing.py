"""Many processes that add to one yard while others read it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jobs import component
from safetensors import safe_open
from safetensors.torch import save_file

import brickyard as by
from brickyard.yard._index import INDEX, read_index
from brickyard.yard._yard import Yard

READERS = 2


def run(writers: int, adds: int, seed: int, careless: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Let so many processes make so many adds in all; the figures, and what went wrong."""
    if careless:
        Yard._lock = lambda self, *, wait=True: contextlib.nullcontext(True)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as text:
        place = Path(text)
        parts = made(place / "parts", max(1, adds * 3 // 4))
        # Every part is added by someone; a quarter of the adds are of parts that another process adds too.
        plan = [*range(len(parts)), *(draw.randrange(len(parts)) for _ in range(adds - len(parts)))]
        draw.shuffle(plan)
        yard = place / "yard"
        Yard(yard, create=True)
        return measured(yard, parts, [plan[k::writers] for k in range(writers)])


def made(folder: Path, count: int) -> list[Path]:
    """Files of components that differ in one number."""
    folder.mkdir()
    first = component(1, "ant", "bee").save(folder / "first.safetensors")
    with safe_open(first, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(key for key in tensors if key.endswith("linear.bias"))
    paths = [folder / f"{k}.safetensors" for k in range(count)]
    for k, path in enumerate(paths):
        save_file({**tensors, name: torch.full_like(tensors[name], k)}, path, metadata)
    first.unlink()
    return paths


def measured(yard: Path, parts: list[Path], plans: list[list[int]]) -> tuple[dict[str, Any], list[str]]:
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
    ready, go = os.pipe()
    begun = time.perf_counter()
    writers = [start(yard.parent / f"writer{k}", go, lambda p=plan: add(yard, parts, hashes, p, ready))
               for k, plan in enumerate(plans)]  # fmt: skip
    stop = yard.parent / "stop"
    readers = [start(yard.parent / f"reader{k}", go, lambda own=k: look(yard, set(hashes), own, stop))
               for k in range(READERS)]  # fmt: skip
    os.close(go)
    os.close(ready)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in writers]
    seconds = time.perf_counter() - begun
    stop.touch()
    codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in readers]
    reports = [json.loads(path.read_text()) for path in sorted(yard.parent.glob("writer*"))]
    looks = [json.loads(path.read_text()) for path in sorted(yard.parent.glob("reader*"))]
    problems = [problem for report in (*reports, *looks) for problem in report["problems"]]
    problems += [f"a process ended with {code}" for code in codes if code]
    adds = sum(map(len, plans))
    there = Counter(entry.sha256 for entry in Yard(yard).entries())
    problems += [f"lost: {sha[:12]}" for sha in hashes if sha not in there]
    problems += [f"{count} times: {sha[:12]}" for sha, count in there.items() if count > 1]
    problems += [f"not from here: {sha[:12]}" for sha in there.keys() - set(hashes)]
    problems += [f"{problem.name}: {problem.what}" for problem in Yard(yard).verify()]
    left = [item.name for item in yard.iterdir() if item.name.startswith(".") and item.name != ".lock"]
    problems += [f"left: {name}" for name in left]
    files = len(list(yard.glob("*.safetensors")))
    problems += [] if files == len(parts) else [f"{files} files for {len(parts)} components"]
    found = read_index(yard / INDEX)
    problems += [] if found is not None and len(found[1]) == len(parts) else ["the index does not list all"]
    figures = {
        "writers": len(plans),
        "adds": adds,
        "components": len(parts),
        "adds of what another process adds too": adds - len(parts),
        "adds a second": round(adds / seconds, 1),
        "readers": READERS,
        "lists read": sum(report["lists"] for report in looks),
        "components loaded by readers": sum(report["loads"] for report in looks),
        "problems": len(problems),
    }
    shutil.rmtree(yard)
    return figures, problems


def start(report: Path, go: int, work: Callable[[], dict[str, Any]]) -> int:
    child = os.fork()
    if child:
        return child
    signal.alarm(540)
    os.close(go)
    try:
        found = work()
        report.write_text(json.dumps(found))
        os._exit(0)
    except BaseException:
        report.write_text(json.dumps({"problems": [traceback.format_exc(limit=-3)], "lists": 0, "loads": 0}))
        os._exit(1)


def add(yard: Path, parts: list[Path], hashes: list[str], plan: list[int], ready: int) -> dict[str, Any]:
    os.read(ready, 1)  # returns in all of them at once, when the other end is closed
    problems: list[str] = []
    for k in plan:
        try:
            entry = Yard(yard).add(parts[k])
        except by.BrickyardError as error:
            problems.append(f"add: {error}")
            continue
        if entry.sha256 != hashes[k]:
            problems.append(f"{entry.name} is not what was added")
    return {"problems": problems}


def look(yard: Path, hashes: set[str], seed: int, stop: Path) -> dict[str, Any]:
    """List and load until told to stop; what was seen once must be seen again, as it was."""
    draw, seen, problems = random.Random(seed), {}, []
    lists = loads = 0
    last = False
    while not last:
        last = stop.exists()
        entries = Yard(yard).entries()
        lists += 1
        now = {entry.name: entry.sha256 for entry in entries}
        problems += [f"{name} is gone or another" for name, sha in seen.items() if now.get(name) != sha]
        problems += [f"{name} is half a component" for name, sha in now.items() if sha not in hashes]
        problems += [] if len(set(now.values())) == len(now) else ["one content twice in a list"]
        seen = now
        if entries:
            chosen = draw.choice(entries)
            Yard(yard).load(chosen.name)
            loads += 1
        if problems:
            break
    return {"problems": problems, "lists": lists, "loads": loads}
