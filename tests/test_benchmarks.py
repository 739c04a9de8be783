"""Recorded tables are what the code of benchmarks writes; what can be measured in seconds is measured again."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
NAMES = (
    "accuracy",
    "assemblies",
    "cascades",
    "merged",
    "paper",
    "compression",
    "detectors",
    "distillation",
    "graphs",
    "guards",
    "incremental",
    "sensitivity",
    "shared",
    "transformer",
    "signals",
    "strangers",
    "transfer",
)


@pytest.fixture
def benchmark(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A benchmark that writes its tables and pictures into an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "benchmarks/applications")
    module = importlib.import_module(request.param)
    for name, value in vars(module).items():
        if isinstance(value, Path) and value.parent == RESULTS:
            monkeypatch.setattr(module, name, tmp_path / value.name)
    return module


def recorded(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


def text(path: Path) -> str:
    """A page without the line that tells of the machine."""
    return "\n".join(line for line in path.read_text().splitlines() if not line.startswith("Machine:"))


@pytest.mark.parametrize(
    "benchmark",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "transfer")) for name in NAMES],  # many pictures
    indirect=True,
)
def test_a_page_is_what_its_rows_say(benchmark: ModuleType, tmp_path: Path) -> None:
    name = benchmark.PATH.stem
    rows = recorded(name)
    benchmark.write(dict(rows))
    written = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.json", f"{name}.md"} <= written
    assert all((RESULTS / file).exists() for file in written)
    assert json.loads((tmp_path / f"{name}.json").read_text())["rows"] == rows  # none that no command makes any more
    assert text(tmp_path / f"{name}.md") == text(RESULTS / f"{name}.md")


@pytest.mark.parametrize("benchmark", ["tables"], indirect=True)
def test_a_row_that_is_made_again_leaves_the_others(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, jobs = tmp_path / "rows.json", [("one, small", 1), ("one, large", 2), ("two", 3), ("three", 4)]
    benchmark.write_rows(path, {"one, small": {"a": 1}, "two": {"a": 3}}, [job[0] for job in jobs])

    def begun(*words: str) -> tuple[list[str], list[str]]:
        rows, todo = benchmark.begun(benchmark.parser("Rows.").parse_args(words), jobs, path)
        return list(rows), [job[0] for job in todo]

    there = ["one, small", "two"]
    assert begun() == (there, ["one, large", "three"])
    assert begun("--only", "one") == (there, ["one, large"])
    assert begun("--only", "one", "--fresh") == (there, ["one, small", "one, large"])
    assert begun("--fresh") == (there, [job[0] for job in jobs])  # rows of other runs stay
    assert capsys.readouterr().out == ""
    assert begun("--only", "two") == (there, [])
    assert "--fresh makes them again" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="three"):
        begun("--only", "four")


@pytest.mark.parametrize("benchmark", ["compression"], indirect=True)
def test_a_number_that_was_changed_shows(benchmark: ModuleType, tmp_path: Path) -> None:
    rows = recorded("compression")
    next(iter(rows.values()))["refit"] += 0.1
    benchmark.write(rows)
    assert text(tmp_path / "compression.md") != text(RESULTS / "compression.md")


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["graphs"], indirect=True)
def test_two_halves_of_a_graph_network_are_assembled_as_recorded(
    benchmark: ModuleType, shared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "CORA", shared / "data/cora")
    monkeypatch.setattr(benchmark.tables, "TRAINED", tmp_path)
    row, expected = benchmark.assembly_row("GCN", 0), recorded("graphs")["halves | 0"]
    assert row.keys() == expected.keys()
    for part in ("whole", "10 %"):
        assert row[part].keys() == expected[part].keys()
        assert row[part]["padded_from_parallel"] < 1e-4
        for scaling in (*benchmark.SCALINGS, "oracle"):
            assert row[part][scaling] == pytest.approx(expected[part][scaling], abs=4)  # trained anew, on any machine
