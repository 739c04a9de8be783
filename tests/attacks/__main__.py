"""All attacks, one after the other, in so many minutes: `python tests/attacks --minutes 60`.

    python tests/attacks --minutes 5            # a short look; prints what each found
    python tests/attacks --minutes 60 --write   # and writes what docs/trust.md has of them, tables included

Each is a program of its own, and takes its share of the time, as near as it can. It ends with 1 if one found a problem.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands(minutes: float, seed: int, write: bool) -> dict[str, list[str]]:
    """The programs and their words; counts are what two cores do in the time."""
    drawn, keep = ["--seed", str(seed)], ["--write"] * write
    return {
        "changed files": ["tests/fuzzing", "--count", str(int(1500 * minutes)), *drawn, *keep],
        "legal files": [
            "tests/fuzzing",
            "--legal",
            "--count",
            "200000",
            "--minutes",
            f"{0.3 * minutes:g}",
            *drawn,
            *keep,
        ],
        "interrupts": ["tests/interrupts", "--count", "5000", "--minutes", f"{0.25 * minutes:g}", *drawn, *keep],
        "kills and faults": ["tests/faults", "all", "--points", str(max(10, int(8 * minutes))), *drawn, *keep],
        "requests": ["tests/serving", "--count", str(int(400 * minutes)), *drawn, *([] if write else ["--no-write"])],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Run all attacks, one after the other.")
    parser.add_argument("--minutes", type=float, default=60, help="how long, all together and roughly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="attacks whose name contains this text")
    parser.add_argument("--write", action="store_true", help="write the results and the page that shows them")
    args = parser.parse_args()
    failed = []
    for name, words in commands(args.minutes, args.seed, args.write).items():
        if args.only not in name:
            continue
        print(f"== {name}: python {' '.join(words)}", flush=True)
        started = time.perf_counter()
        code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
        print(
            f"== {name}: {'no problem' if code == 0 else 'a problem'}, {(time.perf_counter() - started) / 60:.1f} min"
        )
        failed += [name] * (code != 0)
    if args.write:
        subprocess.run([sys.executable, "tools/trust_table.py"], cwd=ROOT, check=True)
    print(f"problems in: {', '.join(failed)}" if failed else "no attack found a problem")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
