"""Promises are only as good as the tests they name: every one that the documents name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["docs/trust.md", "SECURITY.md"])
def test_every_named_test_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).is_file(), f"{page} names {file}"
        functions = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)}
        assert not name or name in functions, f"{page} names {file}::{name}"


def test_every_promise_names_a_test() -> None:
    rows = re.findall(r"^\| (?!Promise|-)(.+)$", (ROOT / "docs" / "trust.md").read_text(), re.M)
    for row in rows:
        assert "`tests/" in row, f"no test: {row}"
