"""The documentation: its site builds without a warning and needs no network, and what it shows runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from conftest import needed_package
from test_cli import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    needed_package("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert run.returncode == 0, run.stderr
    return folder


class Page(HTMLParser):
    """What a page links to and loads, and the places that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places |= {found[name] or "" for name in ("id", "name") if name in found}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(found["src"] or "")
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found.get("href") or "")


def test_every_page_is_there_and_every_link_leads_somewhere(site) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    wanted = re.findall(r"[\w/-]+\.(?:md|ipynb)", (ROOT / "mkdocs.yml").read_text())
    assert len(wanted) > 20
    for name in wanted:
        assert (site / name).with_suffix(".html") in pages, name
    counted = 0
    for path, page in pages.items():
        for link in page.links:
            target, _, place = link.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            found = (path.parent / target).resolve() if target else path
            found = found / "index.html" if found.is_dir() else found
            assert found.exists(), f"{path.relative_to(site)}: {link}"
            if place and not place.startswith("__") and found in pages:
                assert place in pages[found].places, f"{path.relative_to(site)}: {link}"
            counted += 1
    assert counted > 500


def test_no_page_loads_anything_from_elsewhere(site) -> None:
    loads = [load for path in site.rglob("*.html") for load in Page(path.read_text()).loads]
    assert len(loads) > 50
    assert not [load for load in loads if load.startswith(("http:", "https:", "//"))]


def test_the_page_of_commands_has_them_all(site) -> None:
    text = (site / "reference/commands.html").read_text()
    assert all(f'<h2 id="{name}"' in text for name in COMMANDS)
    assert 'id="yard-add"' in text


@pytest.mark.parametrize("name", ["own-model", "two-models", "budget", "calibrate", "../yard"])
def test_blocks_of_how_to_pages_run(name, tmp_path, monkeypatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "howto" / f"{name}.md").read_text(), re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), space)  # noqa: S102
    assert {"part", "whole", "tuned", "choice"} & space.keys()


def test_the_tutorial_runs_and_says_what_it_says() -> None:
    """Run anew, every cell gives outputs of the same kinds, and the scores that the text speaks of."""
    nbformat, nbclient = needed_package("nbformat"), needed_package("nbclient")
    path = DOCS / "tutorial.ipynb"
    book = nbformat.read(path, as_version=4)
    before = [[output.output_type for output in cell.get("outputs", ())] for cell in book.cells]
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))
    nbclient.NotebookClient(book, timeout=200, kernel_name="python3").execute()
    again = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))
    kinds = [{output.output_type for output in cell.get("outputs", ())} for cell in book.cells]
    assert kinds == [set(one) for one in before]
    assert any("display_data" in kind or "execute_result" in kind for kind in kinds)  # the picture
    for text in (printed, again):
        scores = {name: float(value) for name, value in re.findall(r"^(none|lda) +([\d.]+) of", text, re.M)}
        assert scores["lda"] > max(scores["none"], 93)
        assert float(re.findall(r"of ([\d.]+)", text)[-1]) > 97  # the oracle


def test_shells_complete_commands() -> None:
    def completed(words: str) -> str:
        place = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_BRICKYARD_COMPLETE": "complete_bash"}
        code = "import sys; sys.argv[0] = 'brickyard'; from brickyard.cli import app; app(prog_name='brickyard')"
        run = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **place}, check=True, capture_output=True, text=True
        )
        return run.stdout

    assert completed("brickyard dis").split() == ["disassemble"]
    assert completed("brickyard yard ver").split() == ["verify"]
    assert completed("brickyard nothing").split() == []


def test_the_navigation_has_every_document() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert yaml.compose(text) is not None
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md"), *DOCS.glob("*.ipynb")]:
        assert path.relative_to(DOCS).as_posix() in text, path.name
