"""The paper's published values stand beside ours on docs/paper.md as the generator writes them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import paper_table

ROWS = json.loads(paper_table.RESULTS.read_text())["rows"]


def test_the_page_is_what_the_generator_writes(monkeypatch) -> None:
    page = paper_table.PAGE.read_text()
    assert paper_table.page() == page, "run python tools/paper_table.py"
    monkeypatch.setitem(paper_table.PARTS, "cifar10 0-2", ((93.88, 95.47), *paper_table.PARTS["cifar10 0-2"][1:]))
    assert paper_table.page() != page  # the control


@pytest.mark.parametrize("task", list(paper_table.WHOLES)[:2])
def test_published_tables_agree_with_each_other(task: str) -> None:
    """The sources' mean in the one table is that over the classes of the parts in the other."""
    spans = [[int(end) for end in span.split("-")] for span in re.findall(r" (\d+-\d+)", task)]
    sizes = [last - first + 1 for first, last in spans]
    for index in range(3):
        bases = [paper_table.PARTS[part][index][0] for part in task.split(" + ")]
        mean = sum(size * base for size, base in zip(sizes, bases, strict=True)) / sum(sizes)
        assert paper_table.WHOLES[task][index][0] == pytest.approx(mean, abs=0.011)
        assert paper_table.WHOLES[task][index][0] != pytest.approx(sum(bases) / 2, abs=1)  # the control


def test_every_row_that_was_measured_is_shown() -> None:
    lines = paper_table.text(ROWS).splitlines()
    expected = set()
    for name, row in ROWS.items():
        kind, source, task = name.split(" | ")
        if (kind, task) in {
            *(("part", one) for one in paper_table.PARTS),
            *(("whole", one) for one in paper_table.WHOLES),
        }:
            start = f"| {paper_table.title(task)} | {paper_table.OURS[source][0]} |"
            cells = f"| {paper_table.OURS[source][1]} | {row['base']:.1f} |"
            expected.add((start, cells))
    shown = {(start, cells) for start, cells in expected for line in lines if line.startswith(start) and cells in line}
    assert shown == expected
    assert len(expected) == 12
