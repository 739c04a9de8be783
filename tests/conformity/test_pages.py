"""What the pages of the conformity suite say of errors is seen by readers, whatever signs the errors hold."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import families
import own_report
import pytest

SAID = "No ONNX function found for <OpOverload(op='aten.median')>: a & b, 3 < 4"
ROW: dict[str, Any] = {
    **{"name": "Net", "title": "yaml:net", "stage": "onnx", "reason": SAID, "saved": True, "onnx": None, "free": 0.5},
    **{"turned": 0.5, "pinned": [SAID], "sizes": SAID, "traced": 0.0, "zeroed": 0.0},
}


class Seen(HTMLParser):
    """The text of a page, without what browsers take for tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_messages_are_seen_whole() -> None:
    assert SAID not in Seen(f"- {SAID}\n").text  # the control: as it is, some of it is taken for a tag
    assert Seen(own_report.page([ROW])).text.count(SAID) == 3


def test_families_tell_them_whole_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "version", lambda package: "1.0")
    assert Seen(families.page([ROW])).text.count(SAID) == 2


def test_the_page_as_it_stands_loses_nothing() -> None:
    assert "<OpOverload(op='aten.median'" in Seen(own_report.PAGE.read_text()).text
