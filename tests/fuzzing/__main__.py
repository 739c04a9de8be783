"""Many files changed at random, and what came of them: `python tests/fuzzing --count 200000`.

    python tests/fuzzing --count 200000 --workers 2 --write    # writes benchmarks/results/fuzzing.json
    python tests/fuzzing --only 1234 --keep case.safetensors   # one file again, and the file itself
    python tests/fuzzing --legal --count 200000 --minutes 60 --write    # files that are legal to look at

Workers are forked from one process that has read every kind of file once. One that dies or stands still is a find, and
another goes on after the file that it read.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torch

import tables
from brickyard.runtime._progress import bar
from fuzzing import using
from fuzzing.judging import FLOOR, SECONDS, Judge, Verdict, limit_space
from fuzzing.seeding import seeds
from fuzzing.using import Legal, partner

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "fuzzing.json"
STILL = (
    90,
    900,
)  # changed at random, legal: seconds of the clock without a file read: the worker hangs where Python cannot stop it


def main() -> int:
    parser = argparse.ArgumentParser(description="Read many files that were changed at random, and judge each.")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--legal", action="store_true", help="draw files that are legal to look at, and use them")
    parser.add_argument("--first", type=int, default=0, help="with --legal: the number of the first file")
    parser.add_argument("--minutes", type=float, help="with --legal: begin no file after so many minutes")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--only", type=int, help="one file, by its number")
    parser.add_argument("--keep", type=Path, help="with --only: write the file itself there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        if args.legal:
            return legal(folder, args)
        judge = Judge(seeds(folder), folder, args.seed)
        warm(judge)
        if args.only is not None:
            return one(judge, args.only, args.keep)
        start = time.perf_counter()
        found = Run(judge, args.count, max(1, args.workers), folder).all()
        minutes = (time.perf_counter() - start) / 60
    report = summary(found, args, minutes)
    print(json.dumps(report, indent=1))
    if args.write:
        known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        report |= {"legal": known["legal"]} if "legal" in known else {}
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    return bool(report["problems"])


def legal(folder: Path, args: argparse.Namespace) -> int:
    """Draw files, use them, and add the figures to those of files that were changed at random."""
    judge = Legal(folder, args.seed, partner(folder))
    for index in range(3):
        judge.case(-1 - index)  # what is imported late is imported
    if args.only is not None:
        return one(judge, args.only, args.keep)
    start = time.perf_counter()
    found = Run(judge, args.count, max(1, args.workers), folder, args.minutes, args.first).all()
    minutes = (time.perf_counter() - start) / 60
    report = figures(found, minutes) | {"command": f"python tests/fuzzing --legal --seed {args.seed} --write"}
    report |= {"first": args.first, "workers": args.workers, "machine": tables.machine()}
    print(json.dumps(report, indent=1))
    if args.write:
        text = json.dumps(json.loads(RESULT.read_text()) | {"legal": report}, indent=1)
        RESULT.write_text(text + "\n")
    return bool(report["problems"])


def figures(found: list[dict[str, Any]], minutes: float) -> dict[str, Any]:
    """What came of files that are legal to look at."""
    problems = [
        {"index": row["index"], "kind": row["kind"], "problem": row["problem"].partition("\n")[0]}
        for row in found
        if row["problem"]
    ]
    by_kind: dict[str, Any] = {}
    for kind in ("component", "assembly"):
        mine = [row for row in found if row["kind"] == kind]
        by_kind[kind] = {"files": len(mine), **Counter(row["outcome"] for row in mine)}
    return {
        "count": sum(row["outcome"] != "not drawn" for row in found),
        "problems": len(problems),
        "first_problems": sorted(problems, key=lambda row: row["index"])[:40],
        "outcomes": Counter(row["outcome"] for row in found),
        "by_kind": by_kind,
        "kinds_of_refusal": len({row["message"] for row in found if row["outcome"] == "refused"}),
        "longest_use_s": max((row["run_seconds"] for row in found), default=0),
        "most_memory_of_a_use_mib": round(max((row["run_memory"] for row in found), default=0) / (1 << 20), 1),
        "limits": {"seconds_of_a_use": using.SECONDS, "memory_beyond_the_file_mib": using.MEMORY >> 20},
        "minutes": round(minutes, 1),
    }


def warm(judge: Judge) -> None:
    """Read every seed, and a few hundred changed files, so that all that is imported late is imported."""
    for kind, items in judge.seeds.items():
        for seed in items:
            verdict = judge.judge(kind, seed, seed.content, "none")
            late = verdict.problem.startswith(("did import", "did open", "did exec", "did compile", "took"))
            if verdict.outcome != "loaded" or (verdict.problem and not late):
                raise SystemExit(f"the seed {seed.name} is not read: {verdict}")
    for index in range(400):
        judge.case(-1 - index)


def one(judge: Any, index: int, keep: Path | None) -> int:
    kind, seed, content, how = judge.make(index)
    print(f"{kind} {seed.name if seed else 'drawn'} {how}")
    if keep is not None:
        keep.write_bytes(content)
    limit_space()
    verdict = judge.case(index)
    print(verdict)
    print(verdict.problem)
    return bool(verdict.problem)


class Run:
    """Workers, what they are at, and what they found."""

    def __init__(
        self, judge: Any, count: int, workers: int, folder: Path, minutes: float | None = None, first: int = 0
    ) -> None:
        self.judge, self.count, self.folder = judge, first + count, folder
        self.still = STILL[isinstance(judge, Legal)]
        self.end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.fork = multiprocessing.get_context("fork")
        self.at = self.fork.RawArray(ctypes.c_int64, [first + worker for worker in range(workers)])
        self.notes = folder / "notes.jsonl"
        self.notes.touch()
        self.lost: list[dict[str, Any]] = []

    def all(self) -> list[dict[str, Any]]:
        """Read all files; what came of each, in no order."""
        workers = len(self.at)
        running = {w: self.started(w) for w in range(workers)}
        moved = {w: (self.at[w], time.monotonic()) for w in range(workers)}
        with bar("files", self.count) as advance:
            shown = 0
            while running:
                time.sleep(0.2)
                for w, process in list(running.items()):
                    if self.at[w] != moved[w][0]:
                        moved[w] = self.at[w], time.monotonic()
                    still = time.monotonic() - moved[w][1] > self.still
                    if still and process.is_alive():
                        os.kill(process.pid or 0, signal.SIGKILL)
                        process.join()
                    if process.is_alive():
                        continue
                    process.join()
                    del running[w]
                    if process.exitcode != 0:
                        self.lose(self.at[w], "stands still" if still else f"dies: {process.exitcode}")
                        self.at[w] += workers
                        running[w], moved[w] = self.started(w), (self.at[w], time.monotonic())
                done = min(self.count, sum(self.at) // workers)
                advance(done - shown)
                shown = done
        return self.lost + [json.loads(line) for line in self.notes.read_text().splitlines()]

    def started(self, worker: int) -> Any:
        process = self.fork.Process(target=self.work, args=(worker,), daemon=True)
        process.start()
        return process

    def work(self, worker: int) -> None:
        limit_space()
        parent = os.getppid()
        torch.manual_seed(0)  # torch keeps where from, with the lines of the sources: read now, not later
        with self.notes.open("a", buffering=1) as notes:
            while self.at[worker] < self.count and os.getppid() == parent and time.monotonic() < self.end:
                verdict = self.judge.case(self.at[worker])
                notes.write(json.dumps({"index": self.at[worker], **short(verdict)}) + "\n")
                self.at[worker] += len(self.at)

    def lose(self, index: int, problem: str) -> None:
        kind, _, _, how = self.judge.make(index)
        print(f"{index}: {kind} {how}: {problem}", file=sys.stderr, flush=True)
        self.lost.append({"index": index, **short(Verdict(kind, how, "failed", problem))})


def short(verdict: Verdict) -> dict[str, Any]:
    if verdict.problem:
        print(f"{verdict.kind} {verdict.how}: {verdict.problem}", file=sys.stderr, flush=True)
    values = vars(verdict) | {"message": shape(verdict.message), "problem": verdict.problem[:1500]}
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in values.items()}


def shape(message: str) -> str:
    """A message without what it quotes, and without numbers: what kind of refusal it is."""
    text = re.sub(r"/\S+?: |/\S+ ", "", message)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\[[^\]]*\]|\{.*", "_", text)
    return re.sub(r"\d[\d,.e+]*", "0", text)[:48]


def summary(found: list[dict[str, Any]], args: argparse.Namespace, minutes: float) -> dict[str, Any]:
    """The figures."""
    table: dict[str, Any] = {}
    for kind in ("file", "graph", "entry", "weights", "recipe", "index"):
        mine = [row for row in found if row["kind"] == kind]
        table[kind] = {"files": len(mine), **Counter(row["outcome"] for row in mine)}
    problems = [{k: row[k] for k in ("index", "kind", "how", "problem")} for row in found if row["problem"]]
    return {
        "command": f"python tests/fuzzing --count {args.count} --seed {args.seed} --workers {args.workers} --write",
        "count": len(found),
        "problems": len(problems),
        "first_problems": sorted(problems, key=lambda row: row["index"])[:40],
        "outcomes": Counter(row["outcome"] for row in found),
        "by_reader": table,
        "by_change": Counter(row["how"] for row in found),
        "kinds_of_refusal": len({row["message"] for row in found if row["outcome"] == "refused"}),
        "longest_to_read_s": max((row["seconds"] for row in found), default=0),
        "most_memory_to_read_mib": round(max((row["memory"] for row in found), default=0) / (1 << 20), 1),
        "longest_to_run_s": max((row["run_seconds"] for row in found), default=0),
        "most_memory_to_run_mib": round(max((row["run_memory"] for row in found), default=0) / (1 << 20), 1),
        "limits": {"seconds": SECONDS, "memory_beyond_twice_the_file_mib": FLOOR >> 20},
        "minutes": round(minutes, 1),
        "workers": args.workers,
        "machine": tables.machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
