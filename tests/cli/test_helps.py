"""The help of every command is for people: no types, bounds or values as Python writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from brickyard.cli._app import app

INHUMAN = {
    "a Python type": r"<[A-Za-z][\w\[\], |]*>|\blist\[|\bdict\[|\btuple\[|\bint range\b|\btyping\.",
    "a bound of 64 bits": r"\d{10,}|\d[eE]\+\d\d",
    "a value as Python writes it": r"\{['\"]|\['|\(\)|\b(None|True|False)\b|<class|object at 0x|Path\(|\binf\b|\bnan\b",
    "a text that was cut": r"[a-z]\.\.\.(\s|$)|…",
}


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


def inhuman(text: str) -> list[str]:
    """What help says that is not for people, also where a line ends in the middle of it; lines of usage apart."""
    said = [text, " ".join(text.split())]
    usage = re.compile(r"\[ARGS\]\.\.\.|[\]}]\.\.\.")
    return [what for what, pattern in INHUMAN.items() if any(re.search(pattern, usage.sub("", one)) for one in said)]


@pytest.mark.parametrize("words", list(commands(get_command(app))), ids=" ".join)
def test_help_is_for_people(words) -> None:
    for width in (80, 200):
        result = CliRunner().invoke(app, [*words, "--help"], terminal_width=width)
        assert result.exit_code == 0
        assert inhuman(result.output) == [], result.output
        assert max(map(len, result.output.splitlines())) <= width
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    assert command.help
    assert all(item.help for item in command.params)


def test_what_typer_says_by_itself_would_be_seen() -> None:
    """The control."""
    plain = typer.Typer(rich_markup_mode=None)

    @plain.command()
    def work(
        files: list[Path],
        seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
        how: Annotated[str, typer.Option(help=f"One of { {'a': None} }")] = "a",
    ) -> None: ...

    said = CliRunner().invoke(plain, ["--help"], terminal_width=200).output
    assert inhuman(said)[:3] == list(INHUMAN)[:3]
    assert inhuman("Train one small network to answer like a...") == list(INHUMAN)[3:]
