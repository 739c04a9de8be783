"""Kill processes while they write, and look at what they leave."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import Files, Job, after_a_kill, after_a_rerun, contents, copied, jobs, material
from shim import AFTER, BEFORE, COUNT, HALF, KILL, Shim

MOMENTS = {"before": BEFORE, "in the middle": HALF, "after": AFTER}


def in_a_child(work: Callable[[], Any]) -> Any:
    """What a function gives in a process of its own, as JSON; None where that was killed.

    Raises:
        RuntimeError: It raised.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            value = {"value": work()}
        except BaseException:
            value = {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as file:
            json.dump(value, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    if not text:
        return None
    found = json.loads(text)
    if "error" in found:
        raise RuntimeError(found["error"])
    return found["value"]


@dataclass
class Figures:
    """What came of the kills of one job."""

    calls: list[str] = field(default_factory=list)
    seconds: float = 0.0
    at_a_call: int = 0
    at_a_time: int = 0
    ended_before: int = 0
    new: int = 0  # kills after which all was there already
    problems: list[str] = field(default_factory=list)
    where: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return {
            "kills": self.at_a_call + self.at_a_time,
            "at a call": self.at_a_call,
            "at a random time": self.at_a_time,
            "calls of an undisturbed run": len(self.calls),
            "seconds of an undisturbed run": round(self.seconds, 4),
            "killed at": dict(sorted(self.where.items())),
            "new content was in place": self.new,
            "problems": len(self.problems),
        }


def run(points: int, seed: int, careless: bool = False, only: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Kill so often, spread over all jobs; the figures by job, and all problems."""
    if careless:
        write_carelessly()
    shim, draw = Shim(), random.Random(seed)
    todo = [job for job in jobs(material()) if not only or job.name in only]
    total = sum(job.share for job in todo)
    counts = [round(points * job.share / total) for job in todo]
    counts[-1] += points - sum(counts)
    found: dict[str, Any] = {}
    problems: list[str] = []
    for job, count in zip(todo, counts, strict=True):
        with tempfile.TemporaryDirectory(prefix="faults-") as place:
            figures = kill(job, count, Path(place), shim, draw)
        found[job.name] = figures.as_dict()
        problems += [f"{job.name}: {problem}" for problem in figures.problems]
        print(f"{job.name}: {found[job.name]['kills']} kills, {len(figures.problems)} problems", file=sys.stderr)
    return found, problems


def undisturbed(job: Job, place: Path, shim: Shim) -> tuple[Path, Files, Files, list[str], float]:
    """The folder that work begins with, what is in it then and at its end, and the calls and seconds that it takes."""
    pattern, folder = place / "pattern", place / "undisturbed"
    pattern.mkdir()
    in_a_child(lambda: job.prepare(pattern) and None)

    def once() -> list[Any]:
        shim.arm(copied(pattern, folder), COUNT)
        begun = time.perf_counter()
        job.work(folder)
        return [shim.disarm(), time.perf_counter() - begun]

    calls, seconds = in_a_child(once)
    return pattern, contents(pattern), contents(folder), calls, seconds


def kill(job: Job, count: int, place: Path, shim: Shim, draw: random.Random) -> Figures:
    figures = Figures()
    pattern, before, after, figures.calls, figures.seconds = undisturbed(job, place, shim)
    whole: set[bytes] = set()
    folder = place / "killed"
    while figures.at_a_call + figures.at_a_time < count:
        copied(pattern, folder)
        if (figures.at_a_call + figures.at_a_time) % 2:
            where = at_a_time(job, folder, draw.uniform(0, figures.seconds * 1.02))
            if where is None:
                figures.ended_before += 1
                shutil.rmtree(folder)
                continue
            figures.at_a_time += 1
        else:
            number, moment = draw.randrange(len(figures.calls)), draw.choice(list(MOMENTS))
            killed = at_a_call(job, folder, shim, number + 1, MOMENTS[moment])
            where = f"{moment} call {number + 1} ({figures.calls[number]})"
            if not killed:
                raise RuntimeError(f"{job.name} was not killed {where}")
            figures.at_a_call += 1
            figures.where[figures.calls[number]] += 1

        def look() -> list[str]:
            wrong = after_a_kill(folder, before, after, whole)
            if wrong:
                return wrong
            job.work(folder)
            return after_a_rerun(folder, after)

        figures.new += not after_a_rerun_but_left(folder, after)
        try:
            wrong = in_a_child(look)
        except RuntimeError as error:
            wrong = [str(error).strip().splitlines()[-1]]
        figures.problems += [f"killed {where}: {problem}" for problem in wrong]
        shutil.rmtree(folder)
    return figures


def after_a_rerun_but_left(folder: Path, after: dict[str, Any]) -> list[str]:
    try:
        return [text for text in after_a_rerun(folder, after) if not text.endswith(" is left")]
    except ValueError:
        return ["half a text"]


def at_a_call(job: Job, folder: Path, shim: Shim, number: int, moment: int) -> bool:
    """Kill the work at its call of that number; whether it was."""
    child = os.fork()
    if not child:
        shim.arm(folder, KILL, number, moment=moment)
        try:
            job.work(folder)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def at_a_time(job: Job, folder: Path, seconds: float) -> str | None:
    """Kill the work so long after its beginning; None where it had ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"!")
        try:
            job.work(folder)
        finally:
            os._exit(0)
    os.read(reading, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(reading)
    os.close(writing)
    return f"after {seconds * 1000:.2f} ms" if code == -signal.SIGKILL else None


def write_carelessly() -> None:
    """The control: files are written under their final names."""
    from brickyard.storage import _safefile as container

    def careless(path: Path, write: Callable[[Path], object], *, overwrite: bool) -> None:
        with tempfile.TemporaryDirectory() as elsewhere:
            write(Path(elsewhere, path.name))
            data = Path(elsewhere, path.name).read_bytes()
        path.write_bytes(data)

    container.write_atomically = careless
