"""Reports: what the page says is what was measured, it loads nothing, and nothing from outside becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.evaluation._faithfulness import faithfulness
from brickyard.evaluation._scores import Row, Scores
from brickyard.evaluation._sieve import Sieve
from brickyard.reports._answers import answers_of, thumbnail
from brickyard.reports._cards import score_table
from brickyard.reports._figures import heat_map
from brickyard.reports._page import report, write_report
from brickyard.reports._routes import routes
from brickyard.reports._templates import _preprocessing, card_environment, page_environment
from brickyard.testing import Residual, chain
from errors import refused

DATA = (torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 4)
TEST = (torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(80) % 4)
VOID = {"meta", "img", "br"}
HOSTILE = (
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "\u202e\x00\x1blöwe & 猫 " + "w" * 900,
    "a b",
)


class Page(HTMLParser):
    """A page as a flat list of elements, tables as texts; complains where elements do not close each other."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        assert len({key for key, _ in attributes}) == len(attributes)
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)
        if name == "table":
            self.tables.append([])
        elif name == "tr":
            self.tables[-1].append([])
        elif name in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, name):
        assert self.open.pop() == name, (name, self.getpos())

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]

    def table(self, *header: str) -> list[list[str]]:
        """The rows of the one table with these words in its header."""
        (found,) = [rows for rows in self.tables if set(header) <= set(rows[0])]
        return found


@pytest.fixture(scope="module")
def made():
    source = Residual()
    relevance = by.locate(source, DATA, name="Residual")
    half = by.Budget(flops=0.6)
    parts = [by.disassemble(source, relevance, task=task, budget=half) for task in (["1", "3"], ["0", "2"])]
    whole = by.assemble(parts)
    scores = by.evaluate(parts[1], TEST, source=source, latency=False)
    parts[1] = parts[1].with_scores({"held out": scores.as_dict(), "mine": {"speed": 3}})
    items = [parts[0], parts[1], whole, relevance]
    page = report(items, data=[TEST, None, [TEST, TEST], TEST], sources=[source])
    return source, items, page, Page(page)


def test_scores_are_those_of_evaluate(made) -> None:
    source, items, _, page = made
    first = by.evaluate(items[0], TEST, source=source, latency=False)
    whole = by.evaluate(items[2], [TEST, TEST], source=[source, source], latency=False)
    remembered = items[1].manifest.scores["held out"]
    tables = [t for t in page.tables if "class mean" in t[0]]
    assert len(tables) == 3
    for rows, scores in zip(tables, (first, None, whole), strict=True):
        expected = scores.rows if scores is not None else [Row.model_validate(row) for row in remembered["rows"]]
        assert [row[0] for row in rows[1:]] == [row.name for row in expected]
        place = rows[0].index("accuracy")
        assert [row[place] for row in rows[1:]] == [f"{row.accuracy:.1f}±{row.error:.1f}" for row in expected]
    assert any("speed" in text for _, text in page.texts)  # what is no score table is shown as it is
    classes = [t for t in page.tables if t[0][:2] == ["class", "accuracy"]]
    assert [(row[0], row[1]) for row in classes[0][1:]] == [(k, f"{v:.1f}") for k, v in first.per_class.items()]


def test_confusion_adds_up_to_the_accuracy(made) -> None:
    source, items, _, page = made
    first = by.evaluate(items[0], TEST, source=source, latency=False).row("component")
    whole = by.evaluate(items[2], [TEST, TEST], latency=False).row("assembled")
    tables = [t for t in page.tables if t[0][0] == "class" and t[0][1] != "accuracy" and len(t) == len(t[0])]
    assert [t[0][1:] for t in tables] == [["1", "3"], ["1", "3", "0", "2"]]
    for rows, row in zip(tables, (first, whole), strict=True):
        counts = np.array([[int(cell) for cell in line[1:]] for line in rows[1:]])
        assert counts.sum() == row.images
        assert 100 * np.trace(counts) / counts.sum() == pytest.approx(row.accuracy)
        assert np.trace(counts) < counts.sum()


def test_kept_channels_and_routes_are_those_of_the_files(made) -> None:
    _, items, _, page = made
    tables = [t for t in page.tables if t[0][:2] == ["axis", "kept"]]
    manifests = [items[0].manifest, items[1].manifest]  # the parts of the assembly are these, and not listed again
    assert len(tables) == len(manifests) == 2
    for rows, manifest in zip(tables, manifests, strict=True):
        kept = {row[0]: row[1].removesuffix(" pinned") for row in rows[1:]}
        assert kept == {name: f"{len(axis.kept)} of {axis.size}" for name, axis in manifest.axes.items()}
    relevance = items[3]
    found = routes(relevance, [1, 3, 0, 2])
    table = page.table("axis", "shared", "unused")
    assert table[0] == ["axis", "channels", "1", "3", "0", "2", "shared", "unused"]
    for row in table[1:]:
        station = next(s for s in found.stations if s.axis == row[0])
        _, size = relevance.axes[row[0]]
        masks = relevance.relevant(row[0])[[1, 3, 0, 2]]
        if row[0] == "linear":
            masks = torch.arange(size) == torch.tensor([[1], [3], [0], [2]])
        alone = [int((mask & (masks.sum(0) == 1)).sum()) for mask in masks]
        assert row[1:] == [
            str(size),
            *[f"{int(mask.sum())} ({own})" for mask, own in zip(masks, alone, strict=True)],
            str(int((masks.sum(0) > 1).sum())),
            str(int((masks.sum(0) == 0).sum())),
        ]
        assert station.size == size
    drawn = [a["class"] for a in page.named("path")]
    assert len(drawn) == len(found.links)
    assert sum("k2" in c for c in drawn) == sum(link.owner == 2 for link in found.links)


def test_the_top_says_what_was_measured(made) -> None:
    source, items, text, _ = made
    whole = by.evaluate(items[2], [TEST, TEST], source=[source, source], latency=False)
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', text, re.DOTALL)
    same, count = (sum(part.manifest.agreement[k] for part in items[:2]) for k in (0, 1))
    row = whole.row("assembled")
    size = sum(value.nbytes for part in items[:2] for value in part.state_dict().values())
    assert re.sub("<[^>]*>", "", lead) == (
        f"3. assembly 3: 4 classes in {size / 1e3:.1f} kB; "
        f"its parts agree with their sources on {same / count:.1%} of {count} images held back; "
        f"{'loses' if row.drop > 0 else 'gains'} {abs(row.drop):.1f} points against its parts by themselves: "
        f"{row.accuracy:.1f}% of 80 images right."
    )
    alone = report([items[0]], data=[TEST], sources=[source])
    row = by.evaluate(items[0], TEST, source=source, latency=False).row("component")
    lost = f"loses {row.drop:.1f} points" if row.drop else "loses nothing"
    assert f"{lost} against its source on the same classes: {row.accuracy:.1f}% of {row.images} images" in alone
    stored = report([items[1]])
    assert " images right, as stored in the file." in stored
    assert "as stored in the file" not in text + alone
    assert "no accuracy is known" in report([items[0]])
    assert "no accuracy is known" not in text


def test_the_plot_has_sources_parts_and_the_whole(made) -> None:
    source, items, _, page = made
    rows = {row[0]: row[1:] for row in page.table("model", "parameters", "accuracy")[1:]}
    whole = by.evaluate(items[2], [TEST, TEST], source=[source, source], latency=False)
    expected = {"3. assembly 3": whole.row("assembled"), "the sources of assembly 3": whole.row("base")}
    expected["the sources of assembly 3 on the same classes"] = whole.row("restricted")
    numbers = whole.row("base").parameters
    for name, row in expected.items():
        assert rows[name] == [f"{row.parameters or numbers:,}", f"{row.accuracy:.1f}±{row.error:.1f}"]
    assert not [name for name in rows if name.startswith("part")]  # the parts are files of this page
    assert len(page.table("model", "parameters", "accuracy")) == 1 + 3 * 3
    alone = Page(report([items[2]], data=[[TEST, TEST]]))
    rows = {row[0]: row[1:] for row in alone.table("model", "parameters", "accuracy")[1:]}
    for place, (letter, part) in enumerate(zip("ab", items[:2], strict=True)):
        row = by.evaluate(part, TEST, latency=False).row("component")
        found = rows[f"1{letter}. part {place} of assembly 1"]
        assert found == [f"{part.manifest.selection.parameters:,}", f"{row.accuracy:.1f}±{row.error:.1f}"]


def test_examples_are_the_pictures_with_what_is_answered(made) -> None:
    _, items, _, page = made
    found = [a for a in page.named("img") if not a["alt"].startswith(("axis", "inputs"))]
    assert 20 < len(found) <= 36
    codes = (TEST[0] * 255).round().to(torch.uint8)
    seen = {}
    for picture in found[:18]:  # of the first component
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1]))))
        (place,) = [k for k in range(80) if np.array_equal(codes[k].permute(1, 2, 0).numpy(), shown)]
        wanted, _, answer = picture["alt"].partition(", answered ")
        chances = items[0].predict_proba(TEST[0][place : place + 1])[0]
        assert wanted == str(int(TEST[1][place]))
        assert (answer or wanted) == items[0].classes[int(chances.argmax())]
        seen[place] = bool(answer), float(chances.max())
    wrong = [share for is_wrong, share in seen.values() if is_wrong]
    mine = torch.isin(TEST[1], torch.tensor([1, 3]))
    every = items[0].predict_proba(TEST[0][mine])
    names = [items[0].classes[k] for k in every.argmax(1)]
    missed = torch.tensor([name != str(int(k)) for name, k in zip(names, TEST[1][mine], strict=True)])
    assert wrong == pytest.approx(every.max(1).values[missed].sort(descending=True).values[: len(wrong)].tolist())
    assert len(wrong) == min(12, int(missed.sum()))
    assert len(seen) - len(wrong) == min(6, int((~missed).sum()))


def test_examples_are_bounded_and_are_pictures_only(made) -> None:
    _, items, _, _ = made
    every = Sieve.of(items[0].manifest, including=True)
    whole = answers_of(items[0], TEST, 1_000_000, every)
    sizes = [len(one.picture) for one in (*whole.right, *whole.wrong)]
    few = answers_of(items[0], TEST, sum(sizes) // 2, every)
    kept = [len(one.picture) for one in (*few.right, *few.wrong)]
    assert 0 < sum(kept) <= sum(sizes) // 2
    assert few.right  # each kind in turn, so that both are there
    assert few.wrong
    large = torch.rand(3, 300, 200)
    shown = Image.open(io.BytesIO(base64.b64decode(thumbnail(large).split(",")[1])))
    assert shown.size == (53, 80)
    assert thumbnail(large * 2 - 1) == thumbnail(torch.rand(4, 8, 8)) == ""
    normalised = TEST[0] * 4 - 2, TEST[1]
    assert answers_of(items[0], normalised, 1_000_000, every).images == whole.images
    assert not answers_of(items[0], normalised, 1_000_000, every).pictured


def test_faithfulness_is_what_is_measured(made) -> None:
    source, items, _, page = made
    rows = faithfulness(source, items[3], [1, 3, 0, 2], TEST)
    tables = [t for t in page.tables if t[0][0] == "network"]
    assert len(tables) == 4
    for table, row in zip(tables, rows, strict=True):
        expected = [[n, f"{a.hits:.1f}", f"{a.others:.1f}", f"{a.auroc:.1f}"] for n, a in row.cases()]
        assert [line[:4] for line in table[1:]] == expected


def test_the_page_is_whole_and_loads_nothing(made) -> None:
    _, items, text, page = made
    assert text == report(items, data=[TEST, None, [TEST, TEST], TEST], sources=[made[0]])  # the same bytes again
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    for name, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (name, key)
            if value and value.startswith("#"):
                assert value[1:] in ids
        assert not any(key.startswith("on") for key in attributes)
        if name == "img":
            assert attributes["alt"]
        if name == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    plain = re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", plain)
    names = Counter(name for name, _ in page.elements)
    assert names["main"] == names["h1"] == names["nav"] == names["header"] == names["footer"] == 1
    assert names["caption"] == names["table"]
    assert all(a.get("scope") in ("row", "col", "rowgroup") for a in page.named("th"))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert all(b <= a + 1 for a, b in zip([0, *levels], levels, strict=False))
    assert page.named("html")[0]["lang"] == "en"
    labelled = {a["aria-labelledby"] for a in page.named("section")}
    assert labelled <= set(ids)
    policy = next(a["content"] for a in page.named("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    (script,) = [value for name, value in page.texts if name == "script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy


def test_names_from_outside_stay_text() -> None:
    source = chain()
    relevance = by.locate(source, DATA, classes=HOSTILE, name="<svg onload=alert(2)>" + "s" * 500)
    component = by.disassemble(source, relevance, task=[0, 1, 2])
    component = component.with_scores({"<b>bold</b>": {"title": "<i>", "rows": []}, "x": "<script>alert(3)</script>"})
    text = report([component, relevance], names=["<u>&.safetensors", "n" * 2000], data=[TEST, None], sources=[source])
    page = Page(text)
    assert {name for name, _ in page.elements}.isdisjoint({"u", "iframe", "object", "link", "base", "form"})
    assert len(page.named("script")) == 1
    assert all(a["src"].startswith("data:image/png") for a in page.named("img"))
    assert not any("onload" in a or "onerror" in a for _, a in page.elements)
    assert "alert(1)" in text  # shown
    assert "\u202e" not in text
    assert "\x00" not in text
    shown = [value for name, value in page.texts if name not in ("script", "style")]
    assert max(len(word) for value in shown for word in value.split()) <= 120
    assert any("löwe & 猫" in value for value in shown)


def test_broken_characters_do_not_stop_the_writing(tmp_path) -> None:
    relevance = by.locate(chain(), DATA)
    relevance.classes = ("\ud800", "b", "c", "d")  # locate itself refuses such a name
    path = write_report(tmp_path / "page.html", [relevance])
    assert "\N{REPLACEMENT CHARACTER}" in path.read_text(encoding="utf-8")
    with refused("file-exists", "page.html"):
        write_report(path, [relevance])
    with refused("file-path-invalid", "x.html"):
        write_report(tmp_path / "no" / "x.html", [relevance])
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("environment", "escaped"),
    [
        (page_environment, "&lt;b&gt; &#34;&amp;&#39; `x` \N{REPLACEMENT CHARACTER}[1]"),
        (card_environment, "\\<b\\> \"\\&' \\`x\\` \\[1\\]"),
    ],
)
def test_templates_escape_every_value(environment, escaped) -> None:
    value = "<b>\n\"&' `x` \x1b[1]"
    found = environment()
    assert found.from_string("{{ value }}").render(value=value) == escaped
    assert found.from_string("{{ value }}").render(value="plain, 3±1") == "plain, 3±1"  # and only where it must
    assert found.from_string("{% macro m(x) %}{{ x }}{% endmacro %}{{ m(value) }}").render(value="a<b") != "a<b"
    with pytest.raises(jinja2.UndefinedError):
        found.from_string("{{ values }}").render(value=value)


def test_every_template_is_read_and_marks_nothing_safe() -> None:
    for name in page_environment().list_templates():
        text, _, _ = page_environment().loader.get_source(page_environment(), name)
        page_environment().parse(text)
        assert not re.search(r"\|\s*safe|autoescape", text), name
    assert {"page.html.jinja", "card.md.jinja", "script.js"} <= set(page_environment().list_templates())


def test_names_of_score_rows_stay_in_their_cell() -> None:
    row = Row(name="a|<b>\n# x", images=4, accuracy=50, error=3, class_accuracy=50, class_error=3)
    lines = score_table(Scores(title="t", rows=(row, row.model_copy(update={"name": "base"})))).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| row", "|---|---|---|", r"| a\|\<b\> \# x", "| base"]


def test_heat_maps_are_the_values() -> None:
    values = np.linspace(0, 1, 30).reshape(2, 15)
    found = heat_map(values, ["a", "b"], "axis x", 100)
    shown = Image.open(io.BytesIO(base64.b64decode(found["image"].split(",")[1]))).convert("RGBA")
    assert np.abs(np.asarray(shown)[:, :, 3] / 255 - values).max() <= 0.5 / 15 + 0.01
    assert "b channel 14 (1.00)" in found["alt"]
    found = heat_map(values, ["a", "b"], "axis x", 5)
    shown = Image.open(io.BytesIO(base64.b64decode(found["image"].split(",")[1]))).convert("RGBA")
    assert shown.size == (5, 2)
    highest = values.reshape(2, 5, 3).max(2)
    assert np.abs(np.asarray(shown)[:, :, 3] / 255 - highest).max() <= 0.5 / 15 + 0.01
    assert " 3 channels" in found["caption"]


def test_a_page_about_wide_networks_stays_small() -> None:
    source = chain(classes=50, widths=(1500, 20))
    data = (torch.rand(100, 3, 4, 4), torch.arange(100) % 50)
    relevance = by.locate(source, data)
    generator = torch.Generator().manual_seed(0)
    relevance.scores[1] = torch.rand(relevance.scores[1].shape, generator=generator)  # noise is hard to pack
    for value in relevance.sums.values():
        value.copy_(torch.rand(value.shape, generator=generator))
    alone, many = report([relevance]), report([relevance] * 12)
    assert re.search(r"\b512 channels", alone)
    assert re.search(r"\b40 of 50 classes", alone)
    assert len(alone) < len(many) < 3_000_000


def test_a_browser_shows_it_at_the_width_of_a_phone(made, tmp_path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium: the page is not opened in a browser")
    text = made[2]
    probe = "document.title = 'w' + document.documentElement.scrollWidth"
    other = tmp_path / "other.html"
    other.write_text(text.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8")
    free = tmp_path / "free.html"
    free.write_text(re.sub(r"<meta http-equiv[^>]*>", "", other.read_text(encoding="utf-8")), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,800", f"--user-data-dir={tmp_path}/p"]
    titles = []
    for page in (other, free):
        command = [browser, *flags, "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        titles.append(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
    assert titles[0] == "Brickyard report"  # the page's policy lets no script run but its own
    assert int(titles[1].removeprefix("w")) <= 500  # nothing makes the page itself scroll sideways


def test_all_of_a_preprocessing_that_is_not_usual_is_told() -> None:
    usual = by.Preprocessing(size=(32, 48))
    assert _preprocessing(usual) == "32x48 (resize)"
    odd = by.Preprocessing(size=(32, 48), fit="crop", crop=0.875, interpolation="bicubic", antialias=False)
    assert _preprocessing(odd) == "32x48 (crop, 0.875 of the side, bicubic, not antialiased)"
    boxed = by.Preprocessing(size=(416, 416), fit="letterbox", fill=114 / 255, place="corner", channels=3, order="bgr")
    assert _preprocessing(boxed) == "416x416 (letterboxed, filled with 0.447, in the top left corner); colour; BGR"
