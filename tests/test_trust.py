"""Promises are only as good as the tests they name: every one that the documents name exists."""

from __future__ import annotations

import ast
import copy
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import trust_table  # noqa: E402

AREAS = yaml.safe_load(trust_table.PROMISES.read_text())
TEXT = trust_table.PAGE.read_text()


@pytest.mark.parametrize("page", ["docs/trust.md", "SECURITY.md"])
def test_every_named_test_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).is_file(), f"{page} names {file}"
        functions = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)}
        assert not name or name in functions, f"{page} names {file}::{name}"


def test_every_promise_names_a_test() -> None:
    rows = re.findall(r"^\| (?!Promise|-)(.+)$", re.sub(r"(?s)<!-- attacks.*", "", TEXT), re.M)
    assert len(rows) == sum(len(area["rows"]) for area in AREAS) > 50
    for row in rows:
        assert "`tests/" in row, f"no test: {row}"
    promises = re.findall(r"^- \*\*.+\(`tests/.+`\)$", TEXT, re.M)
    assert len(promises) == len(AREAS)


def test_the_page_is_what_the_tool_writes() -> None:
    places = trust_table.files_of_tests(ROOT)
    assert trust_table.page(TEXT, AREAS, places) == TEXT, "run: python tools/trust_table.py"
    other = copy.deepcopy(AREAS)  # the control: another promise is another page
    other[-1]["rows"][-1]["promise"] += " Always."
    assert trust_table.page(TEXT, other, places) != TEXT


def test_what_attacks_found_is_what_their_results_say(tmp_path: Path) -> None:
    for path in trust_table.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = trust_table.attacks(tmp_path)
    assert table in TEXT
    found = json.loads((tmp_path / "interrupts.json").read_text())
    (tmp_path / "interrupts.json").write_text(json.dumps(found | {"problems": 7}))
    assert f"| interrupts of public calls | {found['count']:,} | 7 |" in trust_table.attacks(tmp_path)


def test_a_promise_without_its_test_is_refused() -> None:
    places = trust_table.files_of_tests(ROOT)
    name = AREAS[0]["shown_by"]
    for found, where in (([], "no file"), (["tests/a.py", "tests/b.py"], "tests/a.py and tests/b.py")):
        with pytest.raises(SystemExit, match=f"{name}: must be in one file, found in {where}"):
            trust_table.page(TEXT, AREAS, {**places, name: found})


def test_a_page_without_its_comments_is_refused() -> None:
    with pytest.raises(SystemExit, match="must have the part 'table' once, got 0"):
        trust_table.page(TEXT.replace("<!-- end of table -->", ""), AREAS, trust_table.files_of_tests(ROOT))
