"""The documentation: its site builds without a warning and needs no network, and what it shows runs."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

import brickyard as by
from brickyard.scaling import SCALINGS
from brickyard.selection import CRITERIA
from brickyard.testing import chain
from conftest import needed_package, python_blocks, run_blocks
from shell import COMMANDS, python

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def built(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a project. Not with --quiet: then warnings are not counted, and nothing is strict."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    needed_package("material")
    folder = tmp_path_factory.mktemp("site")
    run = built(ROOT, folder)
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
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
        names = {"src", "srcset", "poster", "data"}
        if tag == "link" and found.get("rel") not in ("prev", "next", "canonical", "alternate"):
            names.add("href")
        self.loads += [value for name, value in attrs if name in names and value]


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


ELSEWHERE = re.compile(r"^(https?:)?//", re.I)


def test_no_page_loads_anything_from_elsewhere(site) -> None:
    loads = [load for path in site.rglob("*.html") for load in Page(path.read_text()).loads]
    assert len(loads) > 50
    assert not [load for load in loads if ELSEWHERE.match(load)]
    sheets = [path.read_text() for path in [*site.rglob("*.css"), *site.rglob("*.html")]]
    named = [name for text in sheets for name in re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", text)]
    assert len(named) > 5
    assert not [name for name in named if ELSEWHERE.match(name)]


def test_loads_from_elsewhere_would_be_seen() -> None:
    text = '<link rel="preconnect" href="//a"><script src="http://b"></script><img srcset="https://c 2x"><a href="//d">'
    assert [load for load in Page(text).loads if ELSEWHERE.match(load)] == ["//a", "http://b", "https://c 2x"]


def test_a_browser_asks_nobody_else(site) -> None:
    """Scripts may load what no page names: so pages are opened, and every request is looked at."""
    sync_api = needed_package("playwright.sync_api")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed: apt-get install chromium")
    handler = functools.partial(Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_api.sync_playwright() as play:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        home = f"http://127.0.0.1:{server.server_port}/"
        asked: list[str] = []
        problems: list[str] = []
        page = chromium.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        for name in ("index", "method", "howto/two-models", "reference/python", "tutorial", "results/speed"):
            page.goto(f"{home}{name}.html", wait_until="networkidle")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        chromium.close()
        server.shutdown()
    assert len(asked) > 10
    assert not [url for url in asked if not url.startswith((home, "data:", "blob:"))]
    assert not problems


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_: object) -> None: ...


@pytest.mark.slow
def test_a_broken_link_stops_the_build(tmp_path) -> None:
    """The control: a build that warns of nothing would pass with any links."""
    needed_package("material")
    places = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "benchmarks", "src", "examples")
    for name in ("mkdocs_site.py", *places):
        (tmp_path / name).symlink_to(ROOT / name)
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "yard.md").write_text("# The yard\n")
    settings = (ROOT / "mkdocs.yml").read_text().partition("nav:")[0]
    for line in ("docs_dir: docs\n", "hooks: [mkdocs_site.py]\n", "extra_css: [site.css]\n"):
        assert line in settings
        settings = settings.replace(line, "docs_dir: pages\n" if "docs_dir" in line else "")
    (tmp_path / "mkdocs.yml").write_text(settings)
    for fault in ("[gone](nowhere.md)", "[gone](yard.md#nowhere)"):
        (pages / "limits.md").write_text(f"# Limits\n\n{fault}\n")
        run = built(tmp_path, tmp_path / "site")
        assert run.returncode != 0
        assert "nowhere" in run.stderr
    (pages / "limits.md").write_text("# Limits\n")
    assert built(tmp_path, tmp_path / "site").returncode == 0


def test_examples_are_shown_as_code(site) -> None:
    text = (site / "reference/python.html").read_text()
    assert "<blockquote>" not in text  # what ">>>" would be
    assert text.count(">&gt;&gt;&gt; ") > 50


def test_formulas_are_mathematics(site) -> None:
    """Blocks and dollars of a page, which GitHub shows too, are MathML: no script, and nothing is left as LaTeX."""
    for name in ("method", "limits"):  # the control has none
        source, text = (DOCS / f"{name}.md").read_text(), (site / f"{name}.html").read_text()
        blocks = re.findall(r"^```math\n(.*?)^```", source, re.S | re.M)
        lines = re.findall(
            r"(?<!\$)\$(?!\s)[^$]+?(?<!\s)\$(?!\$)", re.sub(r"^```.*?^```", "", source, flags=re.S | re.M)
        )
        assert text.count("<math") == len(blocks) + len(lines)
        assert text.count('display="block"') == len(blocks)
        assert "arithmatex" not in text
        assert (len(blocks) > 10) == (len(lines) > 30) == (name == "method")


def test_the_page_of_commands_has_them_all(site) -> None:
    text = (site / "reference/commands.html").read_text()
    assert all(f'<h2 id="{name}"' in text for name in COMMANDS)
    assert 'id="yard-add"' in text


def ratios(printed: str, names: dict[str, Any]) -> None:
    *lines, divided = printed.splitlines()
    record = names["whole"].manifest.budget
    assert divided == record.text
    assert sum(one.after for one in record.parts) <= 0.6 * record.before
    pairs = [tuple(map(float, line.split())) for line in lines]
    assert [share for share, _ in pairs] == [0.7, 0.5, 0.3]
    assert all(share - 0.05 < found <= share for share, found in pairs)


def own_model(printed: str, names: dict[str, Any]) -> None:
    assert names["part"].classes == ("bee", "dog")
    assert re.search(r"^first +16 +first, second ", printed, re.M)  # one axis, as the page says


def two_models(printed: str, names: dict[str, Any]) -> None:
    assert printed.startswith("('cat', 'owl', 'lamp')\n")
    assert len(names["whole"].manifest.parts) == 2


def calibrated(printed: str, names: dict[str, Any]) -> None:
    assert int(printed) == 5 * 4  # shots and classes
    picture = names["data"][0][:8]
    assert not torch.allclose(names["tuned"](picture), names["plain"](picture))


def strangers_told(printed: str, names: dict[str, Any]) -> None:
    assert len(names["judged"].answers) == 4
    assert "strangers    turned away" in str(names["pets"])


def trained_further(printed: str, names: dict[str, Any]) -> None:
    assert int(printed) <= 3
    assert names["taught"].manifest.tuned.teacher == names["component"].manifest.source.name
    assert names["better"].classes == names["component"].classes


def merged_and_renamed(printed: str, names: dict[str, Any]) -> None:
    lines = printed.splitlines()
    assert lines[0] == "('pet', 'lorry')"
    assert lines[-2:] == ["('friend', 'lorry')", "('pet', 'lorry', 'bird')"]
    assert names["friendly"].manifest.members == ((0, 1), (2,))


def joined_and_left(printed: str, _: dict[str, Any]) -> None:
    assert printed.splitlines() == ["('cat', 'owl', 'lamp') ('cat', 'lamp')", "True"]


def yard_page(printed: str, _: dict[str, Any]) -> None:
    assert [line.split(" (")[0] for line in printed.splitlines()] == ["ant-cow-Sequential", "bee-Sequential"]


def reports_page(_: str, names: dict[str, Any]) -> None:
    assert Path("routes.svg").read_text().count("<path") > 10


def transfer_page(printed: str, names: dict[str, Any]) -> None:
    name, score, accuracy = printed.split()
    assert (name, float(score)) == (names["best"].entry.name, names["best"].score)
    assert 0.6 < float(accuracy) <= 1  # of four classes, none of which the source knows


def graphs_page(printed: str, names: dict[str, Any]) -> None:
    assert "restricted" in printed
    assert names["part"].classes == ("0", "2")
    assert names["whole"].classes == ("0", "2", "1")
    assert names["again"](*names["graph"][:2]).shape == (60, 3)


def data_page(printed: str, names: dict[str, Any]) -> None:
    assert printed == "torch.Size([4, 1, 8, 8]) ('cat', 'dog')\n"
    assert names["data"].labels.tolist() == [0, 1, 1, 0]


def sources_page(printed: str, names: dict[str, Any]) -> None:
    assert printed == "(224, 224) crop 0.875\n(0.485, 0.456, 0.406)\n(1, 3, 416, 416) 0 114\n"
    assert names["how"].std == (0.229, 0.224, 0.225)


def signals_page(printed: str, names: dict[str, Any]) -> None:
    assert names["part"].input_shape == (6, 100)
    assert set(names["part"].predict(names["signals"])) <= {"walk", "run"}
    assert printed.startswith("['")


def one_network(printed: str, names: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+ of 20\n", printed)
    assert names["student"].classes == names["assembly"].classes == ("1", "3", "0")


def research_page(printed: str, names: dict[str, Any]) -> None:
    sizes, select, note, scaled = printed.splitlines()
    assert note == "the first channels of every axis"
    kept = {name: axis.kept for name, axis in names["by_place"].manifest.axes.items() if len(axis.kept) < axis.size}
    kept.pop(names["by_place"].manifest.output_axis, None)
    assert kept
    assert all(places == tuple(range(len(places))) for places in kept.values())
    published, changed = json.loads(sizes)
    assert published != changed  # the rule was replaced
    assert select == "mean-relevance"
    assert scaled == "unit-spread {'power': 0.5}"
    spreads = [part.statistics.energy[1] ** -0.5 for part in names["whole"].manifest.parts]
    matrix = torch.diag(torch.tensor(spreads).repeat_interleave(2))
    plain = by.assemble(names["pair"], scaling="none")
    assert torch.allclose(names["whole"](names["images"]), plain(names["images"]) @ matrix, atol=1e-5)
    assert not torch.allclose(names["whole"](names["images"]), plain(names["images"]), atol=1e-2)  # the control


def detectors_page(out: str, names: dict[str, Any]) -> None:
    assert out.splitlines()[-1] == "('bee', 'dog', 'a', 'b') 12"
    assert names["relevance"].boxes.classes == 4
    assert len(names["found"].boxes) > 0


PAGES = {
    "howto/research.md": research_page,
    "howto/sources.md": sources_page,
    "howto/data.md": data_page,
    "howto/signals.md": signals_page,
    "howto/detectors.md": detectors_page,
    "howto/budget.md": ratios,
    "howto/own-model.md": own_model,
    "howto/two-models.md": two_models,
    "howto/calibrate.md": calibrated,
    "howto/strangers.md": strangers_told,
    "howto/transfer.md": transfer_page,
    "howto/train-further.md": trained_further,
    "howto/one-network.md": one_network,
    "howto/add-remove.md": joined_and_left,
    "howto/merge-classes.md": merged_and_renamed,
    "yard.md": yard_page,
    "reports.md": reports_page,
    "graphs.md": graphs_page,
}


@pytest.mark.parametrize("name", PAGES)
def test_blocks_of_pages_run(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {}
    if name == "graphs.md":
        needed_package("torch_geometric")
    if name == "reports.md":  # the page goes on where a guide to locating ends
        needed_package("matplotlib")
        model, images = chain(), torch.rand(40, 3, 8, 8)
        data = images, torch.arange(40) % 4
        relevance = by.locate(model, data, classes=["cat", "dog", "hen", "pig"])
        given = {"model": model, "relevance": relevance, "test_images": (torch.rand(40, 3, 8, 8), data[1])}
    with patch.dict(SCALINGS), patch.dict(CRITERIA):  # a page may register its own
        names = run_blocks(DOCS / name, **given)
    PAGES[name](capsys.readouterr().out, names)


def test_every_page_with_python_is_run() -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if python_blocks(path)}
    assert pages == {*PAGES, "export.md"}  # export.md: with the other tests of exports


def shape(printed: str) -> list[str]:
    """What was printed, without its numbers, the room that they take, and notes, which depend on the processor."""
    printed = re.sub(r"(?m)^ *note .*$", "", printed)
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]\d+)?[kM]?", "#", printed).split()


@pytest.mark.slow
def test_the_tutorial_runs_and_says_what_it_says(tmp_path: Path) -> None:
    """Run anew, every cell gives outputs of the same kinds, and the scores that the text speaks of."""
    nbformat, nbclient = needed_package("nbformat"), needed_package("nbclient")
    path = DOCS / "tutorial.ipynb"
    book = nbformat.read(path, as_version=4)
    before = [[output.output_type for output in cell.get("outputs", ())] for cell in book.cells]
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=1500, kernel_name="python3", resources=where).execute()
    again = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", ()))
    kinds = [{output.output_type for output in cell.get("outputs", ())} for cell in book.cells]
    assert kinds == [set(one) for one in before]
    assert any("display_data" in kind or "execute_result" in kind for kind in kinds)  # the picture
    assert shape(printed) == shape(again)
    counts = [cell.execution_count for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert set(book.metadata) == {"kernelspec", "language_info"}
    for text in (printed, again):
        scores = {name: float(value) for name, value in re.findall(r"^(none|auto|lda) +([\d.]+) of", text, re.M)}
        assert min(scores["auto"], scores["lda"]) > max(scores["none"] - 1, 93)
        assert float(re.findall(r"of ([\d.]+)", text)[-1]) > 97  # the oracle


def test_shells_complete_commands() -> None:
    def completed(words: str) -> str:
        place = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_BRICKYARD_COMPLETE": "complete_bash"}
        code = "import sys; sys.argv[0] = 'brickyard'; from brickyard.cli._app import app; app(prog_name='brickyard')"
        return python(code, env={**os.environ, **place})

    assert completed("brickyard disa").split() == ["disassemble"]
    assert completed("brickyard dis").split() == ["disassemble", "distil"]
    assert completed("brickyard yard ver").split() == ["verify"]
    assert completed("brickyard nothing").split() == []


def test_the_navigation_has_every_document() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert yaml.compose(text) is not None
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*/*.md"), *DOCS.glob("*.ipynb")]:
        assert path.relative_to(DOCS).as_posix() in text, path.name
