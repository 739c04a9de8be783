"""The whole conformity suite: `python tests/conformity`; writes `docs/architectures.md`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checks
import families
import models
import own_report
import torch

import brickyard as by
from brickyard.runtime._progress import bar

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
LIMIT = 900  # seconds for one architecture


def main() -> int:
    parser = argparse.ArgumentParser(description="Check every architecture of the table and write it to docs/.")
    parser.add_argument("--only", nargs="*", default=None, metavar="NAME", help="these alone; prints, writes nothing")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="architectures at once, one thread each"
    )
    parser.add_argument("--own", action="store_true", help=f"the own modules instead; writes {own_report.PAGE.name}")
    parser.add_argument("--families", action="store_true", help=f"families instead; writes {families.PAGE.name}")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--family", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own:
        return own_report.run(args.only, write=args.only is None)
    if args.families:
        return families.run(args.only, args.workers, write=args.only is None)
    if args.family:
        torch.set_num_threads(1)
        print("REPORT " + json.dumps(families.check(args.family, families.every()[args.family])))
        return 0
    if args.one:
        return run_one(args.one)
    chosen = [entry for entry in models.MODELS if args.only is None or entry.name in args.only]
    start = time.perf_counter()
    with ThreadPoolExecutor(args.workers) as pool, bar("architectures", len(chosen)) as advance:
        reports = []
        for entry, report in zip(chosen, pool.map(in_a_process, chosen), strict=True):
            advance(text=entry.name)
            print(json.dumps(report), flush=True)
            reports.append(report)
    minutes = (time.perf_counter() - start) / 60
    problems = [f"{r['title']}: {problem}" for r in reports for problem in checks.wrong(r)]
    if args.only is None:
        TABLE.write_text(page(reports, minutes, args.workers))
    print("\n".join(problems) or "all right", file=sys.stderr)
    return bool(problems)


def run_one(name: str) -> int:
    torch.set_num_threads(1)
    entry = next(entry for entry in models.MODELS if entry.name == name)
    with tempfile.TemporaryDirectory() as folder:
        report = checks.check(entry, Path(folder), onnx=True, pruning=True)
    print("REPORT " + json.dumps(report))
    return 0


def in_a_process(entry: models.Entry) -> dict[str, Any]:
    """One architecture in a process of its own, so that none can spoil another."""
    command = [sys.executable, str(Path(__file__).parent), "--one", entry.name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"title": entry.title, "error": f"took more than {LIMIT} s"}
    for line in done.stdout.splitlines():
        if line.startswith("REPORT "):
            found: dict[str, Any] = json.loads(line.removeprefix("REPORT "))
            return found
    return {"title": entry.title, "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}


PAGE = """# Architectures

Written by `make conformity` (`tests/conformity`), which checks {count} architectures of torchvision and timm, taken by
name, with random weights. Adding one is a line in `tests/conformity/models.py`.

{versions}; {minutes:.0f} minutes with {workers} architectures at once, one thread each.

- **axes**: channel axes; **free**: share of the output channels of convolutions and linear layers (class outputs aside)
  that can be cut.
- **trace**: seconds for tracing and finding the axes.
- **cut = zeroed**: a random 30 % of every free axis is cut; the largest difference to the source with these channels at
  zero wherever they are read, relative to the largest output, in float64. **control**: the same difference to the whole
  source.
- **padded = parallel**: two differently cut copies as one padded network, against the copies, in float64.
- **refit**: error of the logits, relative to how much they vary, of a component at 60 % of the FLOPs, as cut and after
  the refit, on the {images} random images that it was refitted with. It shows that the refit works on this
  architecture, and says nothing about accuracy.
- **file**: whether the saved component, loaded in a process that has not imported torchvision or timm, gives the same
  outputs bit for bit.
- **onnx**: largest difference between onnxruntime and torch, relative, in float32, at another batch size.

| architecture | px | axes | free | trace | cut = zeroed | control | padded = parallel | refit | file | onnx |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}

## What is pinned, and why

{pinned}

All other axes are free, image and class outputs aside.

## A second opinion

Torch-Pruning cuts the same channels, starting from the first layer that writes each axis; its outputs are compared with
Brickyard's in float64. It agrees on {agreeing} of {count}:
{agree}.

Elsewhere Brickyard's cut equals the zeroed source (table above), and Torch-Pruning

{others}
"""


def page(reports: list[dict[str, Any]], minutes: float, workers: int) -> str:
    import onnxruntime
    import timm
    import torch_pruning
    import torchvision

    good = [r for r in reports if "error" not in r]
    agree = [r["title"].partition(":")[2] for r in good if r["pruning"].startswith("agrees")]
    versions = {
        "Brickyard": by.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "onnxruntime": onnxruntime.__version__,
        "Torch-Pruning": torch_pruning.__version__,
    }
    return PAGE.format(
        count=len(reports),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        minutes=minutes,
        workers=workers,
        images=2 * models.CLASSES,
        rows="\n".join(row(r) for r in reports),
        pinned="\n".join(
            f"- {r['title']}: " + "; ".join(f"{reason} ({number} axes)" for reason, number in r["pinned"].items())
            for r in good
            if r["pinned"]
        )
        or "Nothing.",
        agreeing=len(agree),
        agree=textwrap.fill(", ".join(agree), 118),
        others="\n".join(
            f"- {r['title']}: {checks.told(r['pruning'], 200)}" for r in good if not r["pruning"].startswith("agrees")
        ),
    )


def row(r: dict[str, Any]) -> str:
    if "error" in r:
        return f"| {r['title']} | {checks.told(r['error'], 200)} |" + " |" * 9
    cells = (
        *(r["title"], r["size"], r["axes"], f"{r['free']:.0%}", f"{r['trace_s']:.1f} s", f"{r['zeroed']:.0e}"),
        *(f"{r['control']:.0e}", f"{r['padded']:.0e}", f"{r['bare']:.2g} → {r['refit']:.2g}"),
        *("same" if r["file"] else "DIFFERS", f"{r['onnx']:.0e}"),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())
