"""Write the promises in docs/trust.md and the tests that hold them, from tools/trust.yaml, and what attacks found.

    python tools/trust_table.py            # writes the generated parts of docs/trust.md
    python tools/trust_table.py --check    # exits with 1 if the page is out of date

The file names tests by their functions alone, so that a test may move.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PROMISES = ROOT / "tools" / "trust.yaml"
PAGE = ROOT / "docs" / "trust.md"
RESULTS = ROOT / "benchmarks" / "results"


def files_of_tests(root: Path) -> dict[str, list[str]]:
    """For each test function, the files that define it."""
    places: dict[str, list[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                places.setdefault(node.name, []).append(path.relative_to(root).as_posix())
    return places


def summary(areas: list[dict[str, Any]], places: dict[str, list[str]]) -> str:
    """The promises in plain words, one per area."""
    return "\n".join(f"- **{a['area']}.** {a['promise']} ({_named(a['shown_by'], places)})" for a in areas)


def table(areas: list[dict[str, Any]], places: dict[str, list[str]]) -> str:
    """The table of every promise and the tests that hold it, with a heading per area."""
    lines: list[str] = []
    for area in areas:
        lines += [f"### {area['area']}", "", "| Promise | Held by |", "|---|---|"]
        for row in area["rows"]:
            lines.append(f"| {row['promise']} | {', '.join(_named(name, places) for name in row['tests'])} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def attacks(results: Path) -> str:
    """What was attacked, how often, and what came of it, from the results that the campaigns wrote."""
    fuzzing, faults, interrupts, serving = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("fuzzing", "faults", "interrupts", "serving")
    )
    legal, kills, writers = fuzzing["legal"], faults["kill"], faults["writers"]
    killed = [job for job in kills.values() if isinstance(job, dict)]
    failing = [job for job in faults["failing"].values() if isinstance(job, dict)]
    answers = serving["tracebacks, answers of 500, files outside the yard"]
    rows = [
        ("valid files changed at random", fuzzing["count"], fuzzing["problems"], _outcomes(fuzzing)),
        (
            "files drawn to be legal, and all that can be done with them",
            legal["count"],
            legal["problems"],
            _outcomes(legal),
        ),
        (
            "interrupts of public calls",
            interrupts["count"],
            interrupts["problems"],
            f"{interrupts['calls']} calls, each made again afterwards",
        ),
        (
            "kills",
            sum(job["kills"] for job in killed),
            sum(job["problems"] for job in killed),
            f"{len(killed)} kinds of work",
        ),
        (
            "adds by processes at once",
            writers["adds"],
            writers["problems"],
            f"{writers['writers']} writers, {writers['components']} components",
        ),
        (
            "calls that fail or are interrupted",
            sum(job["tried"] for job in failing),
            sum(_count(job.get("problems", 0)) for job in failing),
            f"{len(failing)} kinds of work",
        ),
        ("requests", serving["requests"], answers, f"longest answer {serving['longest answer, seconds']:.2g} s"),
    ]
    lines = ["| attack | how often | problems | |", "|---|---|---|---|"]
    lines += [f"| {what} | {count:,} | {_count(problems)} | {more} |" for what, count, problems, more in rows]
    about = ", ".join(f"{key} {value}" for key, value in fuzzing["machine"].items())
    return "\n".join([*lines, "", f"Machine: {about}."])


def _outcomes(found: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(found["outcomes"].items()))


def _count(problems: Any) -> int:
    return problems if isinstance(problems, int) else len(problems)


def page(text: str, areas: list[dict[str, Any]], places: dict[str, list[str]]) -> str:
    """The page with its generated parts written again."""
    parts = {"summary": summary(areas, places), "table": table(areas, places), "attacks": attacks(RESULTS)}
    for name, part in parts.items():
        text, found = re.subn(
            rf"(<!-- {name}: [^\n]*-->\n).*?(\n<!-- end of {name} -->)",
            lambda match, part=part: f"{match[1]}\n{part}\n{match[2]}",  # type: ignore[misc]
            text,
            flags=re.S,
        )
        if found != 1:
            raise SystemExit(f"docs/trust.md must have the part '{name}' once, got {found}; restore its two comments")
    return text


def _named(name: str, places: dict[str, list[str]]) -> str:
    found = places.get(name, [])
    if len(found) != 1:
        where = " and ".join(found) or "no file"
        raise SystemExit(f"tools/trust.yaml names the test {name}: must be in one file, found in {where}")
    return f"`{found[0]}::{name}`"


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    areas = yaml.safe_load(PROMISES.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    new = page(text, areas, files_of_tests(ROOT))
    if "--check" in arguments:
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
