"""Many networks drawn from idioms, and what came of each: `python tests/idioms --count 20000 --write`.

    python tests/idioms --count 20000 --write    # goes on where it stopped; writes docs/idioms.md
    python tests/idioms --only 1234              # one network again: its text, made as short as still shows the same

What came of each network is kept in a file of notes, which is begun anew when the drawing or the library has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import brickyard as by
from idioms.drawing import drawn
from idioms.judging import judged, minimal, running, runs
from idioms.reporting import page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "idioms.md"
SAVED = 10  # every tenth network also becomes a component in a file


def main() -> int:
    parser = argparse.ArgumentParser(description="Trace and cut many networks drawn from idioms, and judge each.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="the number of the first network")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--notes", type=Path, default=ROOT / ".cache" / "idioms.jsonl")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long, and report what there is"
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--only", type=int, help="one network, by its number")
    args = parser.parse_args()
    _alone()
    if args.only is not None:
        return one(args.only)
    found = all_of(range(args.start, args.start + args.count), args.workers, args.notes, args.minutes)
    counts = Counter(row["outcome"] for row in found)
    print(dict(counts))
    for row in found:
        if row["outcome"] in ("wrong", "raw error"):
            print(f"{row['index']}: {row['outcome']}: {row['what']}")
    if args.write:
        PAGE.write_text(page(found, args.count, by.__version__, torch.__version__))
    return bool(counts["wrong"] + counts["raw error"])


def _alone() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def case(index: int) -> dict[str, Any]:
    """What came of the network of that number."""
    drawn_one = running(index)
    if drawn_one is None:
        return {"index": index, "outcome": "not drawn"}
    net, model = drawn_one
    verdict = judged(net, model, save=index % SAVED == 0)
    idioms = [name for name, _ in net.parts]
    return {"index": index, "idioms": idioms, "exotic": net.exotic, **vars(verdict), "what": verdict.what[:400]}


def one(index: int) -> int:
    """Print the verdict on one network, and the shortest one like it."""
    net = drawn(index)
    model = runs(net)
    if model is None:
        print(net.source, "does not run", sep="\n")
        return 0
    verdict = judged(net, model, save=True)
    if verdict.outcome != "right":
        alike = verdict.outcome, verdict.code, verdict.what[:24]
        net = minimal(net, lambda other: (other.outcome, other.code, other.what[:24]) == alike, save=True)
    print(net.source, verdict, sep="\n")
    return verdict.outcome in ("wrong", "raw error")


def all_of(indices: Iterable[int], workers: int, notes: Path, minutes: float) -> list[dict[str, Any]]:
    """The verdicts on all these networks; those in the notes are not drawn again."""
    wanted = set(indices)
    state = _state()
    lines = notes.read_text().splitlines() if notes.exists() else []
    if not lines or json.loads(lines[0]) != state:
        notes.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(state)]
        notes.write_text(lines[0] + "\n")
    known = {row["index"]: row for row in map(json.loads, lines[1:]) if row["index"] in wanted}
    missing = sorted(wanted - set(known))
    end = time.monotonic() + 60 * minutes
    with notes.open("a", buffering=1) as file, multiprocessing.get_context("fork").Pool(workers, _alone) as pool:
        for row in pool.imap_unordered(case, missing, chunksize=8):
            file.write(json.dumps(row) + "\n")
            known[row["index"]] = row
            if len(known) % 500 == 0:
                print(f"{len(known)} of {len(wanted)}", file=sys.stderr, flush=True)
            if time.monotonic() > end:
                pool.terminate()
                break
    return [known[index] for index in sorted(known)]


def _state() -> dict[str, str]:
    """What the verdicts depend on."""
    files = [*Path(__file__).parent.glob("*.py"), *(ROOT / "src" / "brickyard").rglob("*.py")]
    text = b"".join(
        path.read_bytes()
        for path in sorted(files)
        if path.name not in ("__main__.py", "reporting.py", "test_idioms.py")
    )
    return {"state": hashlib.sha256(text).hexdigest(), "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(main())
