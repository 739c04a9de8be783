"""Many interrupts at drawn points of every public call, and what they left: `python tests/interrupts --count 5000`.

    python tests/interrupts --count 5000 --minutes 20 --write    # writes benchmarks/results/interrupts.json
    python tests/interrupts --only locate --count 200            # one call

Every model is in training mode, as a training loop leaves it. After each interrupt, the models and the state that all
code shares must be as before, and the same call must give the same bytes as if nothing had happened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import torch

import tables
from interrupts.points import Outcome, count_points, drawn
from misuse.calls import CALLS, digest, make_models

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "interrupts.json"


def main() -> int:
    parser = argparse.ArgumentParser(description="Interrupt public calls at drawn points, and look at what is left.")
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--minutes", type=float, help="stop after so many, whatever the count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="CALL")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(args, Path(folder), begun)
    report = summary(found, args, (time.monotonic() - begun) / 60)
    print(json.dumps(report, indent=1))
    if args.write:
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    return bool(report["problems"])


def campaign(args: argparse.Namespace, folder: Path, begun: float) -> list[Outcome]:
    models = make_models(folder)
    for model in models.modules:
        model.train()
    known: dict[str, tuple[int, float, Any]] = {}
    found: list[Outcome] = []
    generator = random.Random(args.seed)
    names = [name for name in CALLS if not args.only or name in args.only]
    sys.stderr, terminal = open(os.devnull, "w"), sys.stderr  # noqa: SIM115
    while len(found) < args.count:
        order = generator.sample(names, len(names))
        for name in order[: args.count - len(found)]:
            if args.minutes is not None and time.monotonic() - begun > 60 * args.minutes:
                return found
            if name not in known:
                expected = digest(CALLS[name](models))  # and all that is loaded late is loaded
                start = time.monotonic()
                CALLS[name](models)
                known[name] = count_points(name, models), time.monotonic() - start, expected
            points, seconds, expected = known[name]
            found.append(drawn(name, models, points, seconds, expected, generator))
            if found[-1].problems:
                print(found[-1], file=terminal, flush=True)
                for model in models.modules:
                    model.train()
    return found


def summary(found: list[Outcome], args: argparse.Namespace, minutes: float) -> dict[str, Any]:
    """The figures."""
    problems = [vars(one) for one in found if one.problems]
    limit = "" if args.minutes is None else f" --minutes {args.minutes}"
    return {
        "command": f"python tests/interrupts --count {args.count}{limit} --seed {args.seed} --write",
        "count": len(found),
        "calls": len({one.call for one in found}),
        "outcomes": Counter(one.came for one in found),
        "by_kind": Counter(one.how.partition(" ")[0] for one in found),
        "problems": len(problems),
        "first_problems": problems[:40],
        "minutes": round(minutes, 1),
        "machine": tables.machine(),
    }


if __name__ == "__main__":
    sys.exit(main())
