"""Let every call that changes files fail once, or be interrupted, and look at what is said and left."""

from __future__ import annotations

import errno
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs import Job, after_a_kill, after_a_rerun, contents, copied, exports, jobs, material, temporary
from killing import in_a_child, undisturbed
from shim import FAIL, SIGNAL, Shim

import brickyard as by
from brickyard.cli import _signals as stopping

FAULTS: dict[str, tuple[int, int, bool]] = {
    "disk full from there on": (FAIL, errno.ENOSPC, True),
    "one input/output error": (FAIL, errno.EIO, False),
    "quota exceeded from there on": (FAIL, errno.EDQUOT, True),
    "read-only from there on": (FAIL, errno.EROFS, True),
    "Ctrl-C": (SIGNAL, signal.SIGINT, False),
    "SIGTERM": (SIGNAL, signal.SIGTERM, False),
}
TOGETHER = ("folder for the Hub", "Python")  # several files, all or none
CLEARING = ("unlink", "rmdir")  # where these fail, something is left until the next write


def run(only: Sequence[str] = (), most: int = 40) -> tuple[dict[str, Any], list[str]]:
    """Every fault at every call of every job; the figures by job, and all problems."""
    shim = Shim()
    of = material()
    found: dict[str, Any] = {}
    problems: list[str] = []
    for job in [*jobs(of), *exports(of)]:
        if only and job.name not in only:
            continue
        with tempfile.TemporaryDirectory(prefix="faults-") as place:
            found[job.name], wrong = fail(job, Path(place), shim, most)
        problems += [f"{job.name}: {problem}" for problem in wrong]
        print("\n".join([f"{job.name}: {found[job.name]}, {len(wrong)} problems", *wrong]), file=sys.stderr)
    return found, problems


def fail(job: Job, place: Path, shim: Shim, most: int) -> tuple[dict[str, Any], list[str]]:
    pattern, before, after, calls, _ = undisturbed(job, place, shim)
    most = {"build a recipe": 8, "ONNX": 2}.get(job.name, most)  # these take long
    chosen = sorted({round(k * (len(calls) - 1) / max(1, most - 1)) for k in range(most)})
    whole: set[bytes] = set()
    counts = {"calls": len(calls), "tried": 0, "told": 0, "done all the same": 0}
    problems: list[str] = []
    folder = place / "disturbed"

    def disturbed(number: int, mode: int, value: int, lasting: bool) -> list[Any]:
        stopping.listen()
        shim.arm(folder, mode, number + 1, value, lasting=lasting)
        try:
            job.work(folder)
            told = ""
        except by.BrickyardError as error:
            told = str(error)
        except KeyboardInterrupt:
            told = "stopped"
        reached = len(shim.disarm()) > number
        wrong = [] if reached else ["it was not reached"]
        wrong += after_a_kill(folder, before, after, whole)
        clear = calls[number] not in CLEARING or mode == SIGNAL
        wrong += [f"{name} is left" for name in contents(folder) if clear and temporary(name)]
        if told and job.name in TOGETHER and clear and contents(folder) not in (before, after):
            wrong.append("some of the files are new, and some are not")
        if told and mode == FAIL and ("; " not in told or "\n" in told):
            wrong.append(f"nothing says what to do next: {told}")
        if not told:
            wrong += [text for text in after_a_rerun(folder, after) if clear or not text.endswith(" is left")]
        job.work(folder)
        return [told, wrong + after_a_rerun(folder, after)]

    for number in chosen:
        for name, (mode, value, lasting) in FAULTS.items():
            copied(pattern, folder)
            where = f"{name} at call {number + 1} ({calls[number]})"

            try:
                told, wrong = in_a_child(partial(disturbed, number, mode, value, lasting))
            except RuntimeError as error:
                told, wrong = "", ["\n".join(str(error).strip().splitlines()[-6:])]
            counts["tried"] += 1
            counts["told" if told else "done all the same"] += 1
            problems += [f"{where}: {problem}" for problem in wrong]
            shutil.rmtree(folder)
    return counts, problems
