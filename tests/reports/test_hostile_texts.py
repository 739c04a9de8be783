"""Every text of every kind of file is shown as text: on pages, cards and pictures, in terminals, errors and code.

Each text of a file is replaced by one that would be obeyed, everywhere at once where it occurs; what the file then
still loads as is shown in every way there is. What does not load has to say so in one printable line.
"""

from __future__ import annotations

import ast
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import brickyard as by
from brickyard.base._errors import BrickyardError, BrickyardWarning
from brickyard.evaluation._scores import Row, Scores
from brickyard.reports import draw, model_card, report, routes, score_table
from shell import run

WRITTEN = Path(__file__).parent.parent / "written"
ORDERS = (
    "<script>alert(1)</script> [x](http://evil.example) ![i](https://evil.example/i.png) www.evil.example "
    "a@evil.example "
    "\x1b[31m\x07\u202e\u2066\u200f \"'`\n# head\n---\n| a | b |\n$x$ {{ 7*7 }} {% x %} &lt; <b onclick=x>"
)
SHORT = "<img src=x onerror=alert(1)>`*[red]\u202e\x1b]0;t"  # without dots, slashes or line ends
KINDS = ("scored", "tuned-taught", "assembly-tuned", "relevance", "graph-assembly")


class Page(HTMLParser):
    """The tags of a page with the names of their attributes, and where it leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[tuple[str, tuple[str, ...]]] = set()
        self.leads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add((tag, tuple(sorted(name for name, _ in attrs if name not in ("class", "title")))))
        self.leads |= {value or "" for name, value in attrs if name in ("href", "src", "action") and value[:1] != "#"}


def obeyed(text: str) -> list[str]:
    """Letters that are no text, ends of lines apart."""
    return [letter for letter in text if not letter.isprintable() and letter != "\n"]


# -- files of which every text is another -------------------------------------------------------------------------


def texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def swapped(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new if value == old else value
    if isinstance(value, dict):
        return {new if key == old else key: swapped(item, old, new) for key, item in value.items()}
    return [swapped(item, old, new) for item in value] if isinstance(value, list) else value


def _renamed(name: str, old: str, new: str) -> str:
    """The name of a tensor after one of its words, which dots part, was replaced."""
    return re.sub(rf"(^|(?<=\.)){re.escape(old)}((?=\.)|$)", lambda _: new, name)


def hostile(path: Path, to: Path, load: Callable[[Path], Any]) -> tuple[set[str], list[BrickyardError]]:
    """A copy of a file in which every text that may be is an order; those that were replaced, and what was refused."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = json.loads(file.metadata()["brickyard"])
    done: set[str] = set()
    refused: list[BrickyardError] = []
    for number, old in enumerate(dict.fromkeys(texts(told))):
        for orders in (ORDERS, SHORT):
            new = f"{number}{orders}"
            text = swapped(told, old, new)
            parts = {_renamed(name, old, new): value for name, value in tensors.items()}
            save_file(parts, to, {"brickyard": json.dumps(text)})
            try:
                load(to)
            except BrickyardError as error:
                refused.append(error)
                continue
            told, tensors = text, parts
            done.add(old)
            break
    save_file(tensors, to, {"brickyard": json.dumps(told)})
    return done, refused


def _load(path: Path) -> Any:
    if path.stem.startswith("graph"):
        pytest.importorskip("torch_geometric")
        from brickyard.gnn import load

        return load(path)
    return by.load(path)


SCORES = Scores(
    title=ORDERS,
    rows=(Row(name=ORDERS, images=10, accuracy=90, error=3, class_accuracy=90, class_error=3),),
    notes=(ORDERS, f"- {ORDERS}", f"1. {ORDERS}"),
    per_class={ORDERS: 90.0},
)


@pytest.mark.filterwarnings("ignore::brickyard.BrickyardWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_of_a_file_is_shown_as_text(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{'graph' if kind.startswith('graph') else 'odd'}.safetensors"
    done, refused = hostile(WRITTEN / f"{kind}.safetensors", path, _load)
    assert len(done) > (3 if kind.startswith("graph") else 8), done  # the control: there is something to be shown
    for error in refused:
        assert str(error).isprintable(), str(error)
    odd, plain = _load(path), _load(WRITTEN / f"{kind}.safetensors")
    shown = [str(odd), repr(odd), odd._repr_html_()]
    assert {tag for tag, _ in Page(odd._repr_html_()).tags} <= {"table", "caption", "tbody", "tr", "th", "td"}
    if not kind.startswith("graph"):
        shown += [run("show", path, "--axes").stdout, run("show", path, "--json").stdout]
        _check_page(report([odd], names=[ORDERS], title=ORDERS), report([plain], names=["x"], title="y"))
    if kind == "relevance":
        found = routes(odd, list(odd.task))
        _check_picture(draw(found, tmp_path / "routes.svg").read_text("utf-8"))
    elif not kind.startswith("graph"):
        parts = len(odd.manifest.parts)
        _check_card(
            model_card(odd, {ORDERS: SCORES}, ORDERS, title=ORDERS, file=ORDERS, data=ORDERS, names=[ORDERS] * parts)
        )
        _check_card(model_card(odd, SCORES))
        _check_code(run("export", path, "-o", tmp_path / "odd.py", "--force"), tmp_path / "odd.py")
    for text in shown:
        assert obeyed(text) == [], obeyed(text)


def _check_page(page: str, plain: str) -> None:
    assert obeyed(page) == []
    found, expected = Page(page), Page(plain)
    assert found.tags <= expected.tags, found.tags - expected.tags
    assert found.leads <= expected.leads or all(lead.startswith("data:image/png") for lead in found.leads)
    assert "evil.example" in page  # the control


TAGS = {
    *("h1", "h2", "h3", "p", "ul", "li", "code", "pre", "strong", "em"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


def _check_card(card: str) -> None:
    import markdown

    assert obeyed(card) == []
    _, front, body = card.split("---\n", 2)
    yaml.safe_load(front)
    made = Page(markdown.markdown(body, extensions=["tables", "fenced_code"]))
    assert {tag for tag, _ in made.tags} <= TAGS
    assert made.leads == set()
    assert len(re.findall(r"(?m)^# ", re.sub(r"(?s)```.*?```", "", body))) == 1
    bare = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", body)  # what is no code, where addresses would become links
    assert not re.search(r"https?://|www\.|\w@\w", bare), re.search(r"https?://|www\.|\w@\w", bare)


def _check_picture(text: str) -> None:
    assert obeyed(text) == []
    assert not [item for item in ET.fromstring(text).iter() if item.tag.rpartition("}")[2] in ("script", "a", "image")]


def _check_code(result: Any, path: Path) -> None:
    assert obeyed(result.stdout + result.stderr) == []
    if path.exists():
        assert obeyed(path.read_text("utf-8")) == []
        ast.parse(path.read_text("utf-8"))


# -- what is no file of ours ----------------------------------------------------------------------------------------


def test_errors_and_warnings_are_one_printable_line() -> None:
    for made in (BrickyardError("file-missing", ORDERS), BrickyardWarning(ORDERS)):
        assert str(made).isprintable()
        assert "evil.example" in str(made)


def test_score_tables_are_text() -> None:
    assert obeyed(str(SCORES)) == []
    assert len(score_table(SCORES).splitlines()) == 3


def test_a_yards_index_is_shown_as_text(tmp_path) -> None:
    import sqlite3

    from brickyard.workbench._app import Plain
    from brickyard.workbench._bench import Bench
    from brickyard.workbench._limits import Limits
    from brickyard.yard import Yard

    run("yard", "add", WRITTEN / "scored.safetensors", "--yard", tmp_path / "yard", "--name", "a")
    Yard(tmp_path / "yard").entries()
    with sqlite3.connect(tmp_path / "yard" / "index.sqlite") as base:
        base.execute("UPDATE files SET source = ?, classes = ?", (ORDERS, json.dumps([ORDERS, f"2{ORDERS}"])))
    base.close()
    yard = Yard(tmp_path / "yard")
    assert yard.entry("a").source == ORDERS  # the control: the index is believed
    for command in (["list"], ["list", "--json"], ["show", "a"], ["search", "a"], ["verify"]):
        result = run("yard", *command, "--yard", yard.path, code=1 if command == ["verify"] else 0)
        assert obeyed(result.stdout + result.stderr) == []
        assert command[-1] == "--json" or not [line for line in result.stdout.splitlines() if line.startswith("# head")]
    assert obeyed(Plain(Bench(yard, Limits()).overview()).body.decode()) == []


RECIPE: dict[str, Any] = {
    "brickyard": 1,
    "name": "n",
    "license": "mit",
    "sources": {
        "a": {"network": "zoo:lenet5?width=0.5", "weights": "a.safetensors", "data": "digits", "class-names": "0"}
    },
    "components": {"low": {"source": "a", "task": "0-2", "select": "mda"}},
    "assembly": {"parts": "low", "scaling": "none"},
    "evaluate": {"data": "digits"},
    "outputs": {"folder": "out"},
}


def test_errors_of_recipes_are_printable(tmp_path) -> None:
    from brickyard.recipes._build import plan, plan_text
    from brickyard.recipes._reader import load_recipe

    for old in dict.fromkeys(texts(RECIPE)):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(swapped(RECIPE, old, ORDERS)), encoding="utf-8")
        try:
            file = load_recipe(path)
            shown = plan_text(plan(file), tmp_path)
        except BrickyardError as error:
            shown = str(error)
        assert obeyed(shown) == [], (old, shown)
        result = run("build", path, "--dry-run", code=run_code(path))
        assert obeyed(result.stdout + result.stderr) == [], old


def run_code(path: Path) -> int:
    from typer.testing import CliRunner

    from brickyard.cli._app import app

    return CliRunner().invoke(app, ["build", str(path), "--dry-run"]).exit_code


def test_names_of_data_are_shown_as_text(tmp_path, capsys) -> None:
    """Folders, tables and arrays name classes, files and columns."""
    from PIL import Image

    from brickyard.inputs import load_data

    for name in (SHORT, "b\u202e\x1b[2J", "c\nfake: line"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / f"{SHORT}.png")
        (tmp_path / "photos" / name / f"{SHORT}.bin.png").write_bytes(b"no picture")
    table = tmp_path / f"t{SHORT}.csv"
    table.write_text(f"image,label\n{SHORT}.png,{SHORT}\nmissing\x1b[2J.png,cat\n", encoding="utf-8")
    (tmp_path / "rows.json").write_text(json.dumps([{SHORT: ORDERS, "label": ORDERS}]))
    said: Any = []
    for place in (tmp_path / "photos", table, tmp_path / "rows.json", tmp_path / f"no{ORDERS[:20]}"):
        try:
            data = load_data(place)
            list(data.batches(8))
        except BrickyardError as error:
            said += [str(error)]
    assert len(said) == 4  # the control: nothing of this can be read whole
    assert all(map(str.isprintable, said)), said
    said = capsys.readouterr()
    assert obeyed(said.out + said.err) == []
    assert "fake" not in [line[:4] for line in said.err.splitlines()]


def test_a_graphs_names_are_shown_as_text() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(SHORT, torch.nn.Conv2d(3, 4, 3))
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(getattr(self, SHORT)(x).mean((2, 3)))

    from brickyard.axes import trace

    model = Odd()
    graph = trace(model, torch.rand(2, 3, 8, 8))
    assert obeyed(str(graph)) == []
    relevance = by.locate(model, (torch.rand(8, 3, 8, 8), torch.arange(8) % 2))
    part = by.disassemble(model, relevance, task=[0, 1], heal="none")
    assert obeyed(str(relevance) + str(part)) == []
    assert "onerror" in str(graph)
