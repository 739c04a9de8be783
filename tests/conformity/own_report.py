"""Runs all own modules and writes what came of them: `python tests/conformity --own`; goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checks
import own_checks
import own_modules
import torch

import brickyard as by

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own_modules.md"
NOTES = ROOT / ".cache" / "own_modules.jsonl"
EXACT, CLOSE = 1e-9, 1e-5

TEXT = """# Own modules

Written by `python tests/conformity --own`, which checks {count} small networks that no library has. They are written the
way people write them: attention and gates, convolutions of all kinds, heads, transformers by hand, recurrent layers,
transforms. They are in `tests/conformity/own_*.py`; to add one, write a class with a decorator.

Brickyard {version}, torch {torch}. Random weights, images of 16 by 16.

| what holds | networks | share |
|---|---|---|
{counts}

- **exact**: a random 30 % of every free axis is cut, and the result equals the source with these channels at zero, in
  float64; the traced network equals the model.
- **saved**: a component at 75 % of the operations is saved, and the file that is read again gives the same bit for bit.
- **onnx**: onnxruntime differs from torch by less than 1e-5, relative, on a batch of another size.
- **other sizes**: of the networks that take larger images, those whose components do too, with equal results.
- **free**: the share of parameters that lie along a free axis. Those of a residual stream behind a layer norm stay.

## What does not hold

{others}

## Free parameters

{free}
"""


def run(only: Sequence[str] | None, *, write: bool) -> int:
    """Check the networks, or some of them by name; write the page if asked."""
    torch.set_num_threads(1)
    known = _noted()
    rows = []
    for name, own in own_modules.all_own().items():
        if only is not None and name not in only:
            continue
        if name not in known:
            known[name] = own_checks.check(own, onnx=True)
            with NOTES.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
        rows.append(known[name])
        print(json.dumps(known[name]), flush=True)
    if write:
        PAGE.write_text(page(rows))
    inexact = [row["name"] for row in rows if "zeroed" in row and not exact(row)]
    print(f"not exact: {', '.join(inexact)}" if inexact else "all right", file=sys.stderr)
    return bool(inexact)


def _noted() -> dict[str, Any]:
    """What is known by the same state of the code."""
    files = [*Path(__file__).parent.glob("own_*.py"), *(ROOT / "src" / "brickyard").rglob("*.py")]
    text = b"".join(path.read_bytes() for path in sorted(files) if path.name != Path(__file__).name)
    state = {"state": hashlib.sha256(text).hexdigest(), "torch": torch.__version__}
    lines = NOTES.read_text().splitlines() if NOTES.exists() else []
    if not lines or json.loads(lines[0]) != state:
        NOTES.parent.mkdir(parents=True, exist_ok=True)
        NOTES.write_text(json.dumps(state) + "\n")
        lines = []
    return {row["name"]: row for row in map(json.loads, lines[1:])}


def exact(row: dict[str, Any]) -> bool:
    return "zeroed" in row and max(row["zeroed"], row["traced"]) < EXACT


def any_size(row: dict[str, Any]) -> bool:
    return isinstance(row["sizes"], float) and row["sizes"] < EXACT


def page(rows: Sequence[dict[str, Any]]) -> str:
    sized = [row for row in rows if row["sizes"] is not None]
    counts = (
        ("exact", sum(map(exact, rows)), len(rows)),
        ("saved and loaded", sum(row["saved"] for row in rows), len(rows)),
        ("onnx", sum(row["onnx"] is not None and row["onnx"] < CLOSE for row in rows), len(rows)),
        ("other sizes", sum(map(any_size, sized)), len(sized)),
        ("more than 70 % of the parameters free", sum(row["free"] > 0.7 for row in rows), len(rows)),
    )
    return TEXT.format(
        count=len(rows),
        version=by.__version__,
        torch=torch.__version__,
        counts="\n".join(f"| {what} | {number} of {of} | {number / of:.1%} |" for what, number, of in counts),
        others="\n".join(filter(None, map(_missing, rows))) or "Nothing.",
        free="\n".join(_spread(rows)),
    )


def _missing(row: dict[str, Any]) -> str:
    """What does not hold of a network, and why."""
    found = [f"{row['stage']}: {_short(row['reason'])}"] if row["reason"] else []
    if "zeroed" in row and not exact(row):
        found.append(f"not exact ({row['zeroed']:.0e}, {row['traced']:.0e})")
    if row["onnx"] is not None and row["onnx"] >= CLOSE:
        found.append(f"onnx differs by {row['onnx']:.0e}")
    if row["sizes"] is not None and not any_size(row):
        said = checks.told(row["sizes"], 100) if isinstance(row["sizes"], str) else "another result"
        found.append(f"other sizes of images: {said}")
    return f"- `{row['name']}`: " + "; ".join(found) if found else ""


def _short(reason: str) -> str:
    lines = [line for line in reason.splitlines() if line.strip()]
    kept = next((line for line in lines if "No ONNX function found" in line or "Error when calling" in line), lines[0])
    kept = "".join(char for char in kept.partition("Error'>: ")[2] or kept if char.isprintable())
    return checks.told(kept, 140)


def _spread(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The networks with less than 70 % free, and what keeps the rest."""
    found = ["| network | free | kept whole because |", "|---|---|---|"]
    for row in rows:
        if row["free"] <= 0.7 and "pinned" in row:
            reasons = [reason for reason in row["pinned"] if reason != "the image input is never cut"]
            found.append(f"| `{row['name']}` | {row['free']:.0%} | {checks.told('; '.join(reasons[:3]), 200)} |")
    return found
