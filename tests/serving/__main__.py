"""Many drawn requests to the workbench: `python tests/serving --count 5000`; writes benchmarks/results/serving.json."""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import drawn_requests as drawn
import torch
from hypothesis import HealthCheck, given, seed, settings

import tables
from brickyard.workbench._app import create_app

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "serving.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Send drawn requests to the workbench; stops at the first wrong answer."
    )
    parser.add_argument("--count", type=int, default=5000, help="how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-write", action="store_true", help="print, and write no file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="serving-") as place:
        root = Path(place)
        yard = drawn.small_yard(root)
        app = create_app(yard)
        key = drawn.built(app)
        statuses: collections.Counter[int] = collections.Counter()
        seconds: list[float] = []
        outside: set[str] = set()

        @seed(args.seed)
        @settings(max_examples=args.count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(drawn.requests(key))
        def run(asked: drawn.Asked) -> None:
            with drawn.watched() as opened:
                begun = time.perf_counter()
                answer = drawn.ask(app, asked, loop)
                seconds.append(time.perf_counter() - begun)
            outside.update(drawn.foreign(opened, yard.path))
            assert not (problem := drawn.wrong(answer, root)), problem
            assert not outside, outside
            statuses[answer.status] += 1

        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
    found = {
        "machine": tables.machine(),
        "requests": len(seconds),
        "seed": args.seed,
        "seconds": round(took, 1),
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "longest answer, seconds": round(max(seconds), 3),
        "tracebacks, answers of 500, files outside the yard": 0,
    }
    print(json.dumps(found, indent=1))
    if not args.no_write:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
