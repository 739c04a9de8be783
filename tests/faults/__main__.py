"""Faults: kill processes that write, let many write at once; writes `benchmarks/results/faults.json`.

python tests/faults kill --points 500      # kill -9 while files are saved, built, located
python tests/faults writers                # 8 processes add 1,000 components to one yard
python tests/faults all --write            # both, into benchmarks/results/faults.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import shim

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill processes that write, and let many write at once.")
    parser.add_argument("what", choices=["kill", "writers", "failing", "all"])
    parser.add_argument("--points", type=int, default=500, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writers", type=int, default=8, help="processes that add at once")
    parser.add_argument("--adds", type=int, default=1000, help="components that they add in all")
    parser.add_argument("--only", nargs="*", default=[], metavar="JOB", help="kill, failing: these jobs alone")
    parser.add_argument("--calls", type=int, default=40, help="failing: calls of one job that are tried")
    parser.add_argument(
        "--careless", action="store_true", help="the control: without what protects; must find problems"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    shim.restart()

    import torch

    torch.set_num_threads(1)
    import failing
    import killing
    import writing

    found: dict[str, Any] = {}
    problems: list[str] = []
    calls = {
        "kill": lambda: killing.run(args.points, args.seed, args.careless, args.only),
        "writers": lambda: writing.run(args.writers, args.adds, args.seed, args.careless),
        "failing": lambda: failing.run(args.only, args.calls),
    }
    for name, call in calls.items():
        if args.what in (name, "all"):
            begun = time.perf_counter()
            figures, wrong = call()
            found[name] = {**figures, "seconds": round(time.perf_counter() - begun, 1)}
            problems += wrong
    found["problems"] = problems
    print(json.dumps(found, indent=1))
    if args.write:
        write(found)
    return bool(problems)


def write(found: dict[str, Any]) -> None:
    sys.path.insert(0, str(RESULT.parents[1]))
    import tables

    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**known, "machine": tables.machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
