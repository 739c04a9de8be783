"""A page that answers pictures by itself: in a browser without a network it says what `predict` and `judge` say."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.export import export_html
from brickyard.testing import chain
from errors import refused
from shell import run
from workbench_yard import HOSTILE, encoded

if os.environ.get("CI") != "true":
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'brickyard[onnx]'")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
PATIENCE = 120_000  # milliseconds: on a busy machine too


@pytest.fixture(scope="module")
def browser():
    if os.environ.get("CI") != "true":
        pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
        if BROWSER is None:
            pytest.skip("chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield found
        found.close()


class Opened:
    """A page without a network, and what it shows; it fails where something else is loaded or a script fails."""

    def __init__(self, browser: Any, path: Path, width: int = 390) -> None:
        options = {"viewport": {"width": width, "height": 800}, "permissions": ["camera"], "offline": True}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def answers(self, files: list[Any]) -> dict[str, dict[str, str]]:
        """What it says to pictures: by their names, the answer, how far it can be trusted, and the first percentage."""
        before = self.page.locator(".answer").count()
        self.page.set_input_files("#pictures", files)
        self.page.wait_for_selector(f".answer:nth-child({before + len(files)})")
        read = "all => all.map(one => ({...one.dataset, share: one.querySelector('.number').textContent}))"
        return {one["name"]: one for one in self.page.eval_on_selector_all(".answer", read)}

    def close(self) -> None:
        self.context.close()
        assert self.problems == []
        schemes = [url.partition(":")[0] for url in self.asked]
        assert schemes[0] == "file"
        assert set(schemes[1:]) <= {"blob"}  # the pictures that it shows


def photographs(folder: Path, seed: int) -> list[Path]:
    """Pictures of all the kinds that a phone may hand over: turned, large, grey, in palettes, see-through."""
    rng = np.random.default_rng(seed)
    plain = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = plain.convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 320).astype(np.uint8), (240, 1))))
    found = {
        "plain.png": encoded(plain),
        "turned.jpg": encoded(plain, "JPEG", exif=turned, quality=95),
        "large.jpg": encoded(plain.resize((2400, 1800)), "JPEG"),
        "grey.png": encoded(plain.convert("L")),
        "palette.png": encoded(plain.quantize(16)),
        "clear.png": encoded(clear),
        "web.webp": encoded(plain, "WEBP", lossless=True),
    }
    folder.mkdir()
    for name, content in found.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in found]


def expected(model: Any, paths: list[Path]) -> dict[str, tuple[str, str, float]]:
    """What `judge` says: headline, words, and the highest probability."""
    found = {}
    for path in paths:
        judged = model.judge([path])
        verdict = judged.verdicts()[0]
        headline = "none of these" if verdict.none else verdict.answer
        words = verdict.words or "not known whether it looks like its classes"
        if model.manifest.outputs == "several":
            headline, words = ", ".join(verdict.answer) or "none of the classes", verdict.words
        found[path.name] = headline, words, float(judged.probabilities.max())
    return found


def check(said: dict[str, dict[str, str]], wanted: dict[str, tuple[str, str, float]]) -> None:
    assert said.keys() == wanted.keys()
    for name, (headline, words, share) in wanted.items():
        own = said[name]
        assert (own["answer"], own["words"]) == (headline, words), name
        assert float(own["share"].rstrip(" %")) == pytest.approx(100 * share, abs=0.35), name


def test_a_page_answers_what_predict_answers(browser, digits_yard, tmp_path) -> None:
    parts = [by.load(digits_yard.path / f"digits-{task}.safetensors") for task in ("012", "789")]
    whole = by.assemble(parts)
    whole.save(tmp_path / "six.safetensors")
    result = run("export", tmp_path / "six.safetensors", "-o", tmp_path / "try.html")
    size = (tmp_path / "try.html").stat().st_size
    assert f"{size / 1e6:.1f} MB" in result.stdout
    samples = sorted((digits_yard.path / "samples").iterdir())
    paths = [*samples, *photographs(tmp_path / "photographs", 1)]
    opened = Opened(browser, tmp_path / "try.html")
    said = opened.answers(paths)
    told = json.loads(run("predict", tmp_path / "six.safetensors", *paths, "--json").stdout)["predictions"]
    for one in told:
        own = said[Path(one["image"]).name]
        assert own["answer"] == ("none of these" if one["none"] else one["classes"][0]["name"])
        assert one["none"] or own["words"] == ("sure" if one["sure"] else "not sure")
    check(said, expected(whole, paths))
    assert len({one["answer"] for one in said.values()}) > 4  # the control: it says different things
    assert {one["words"] for one in said.values()} >= {"sure", "none of these (unlike all of its classes)"}
    assert opened.page.evaluate_handle("document.documentElement.scrollWidth").json_value() <= 390
    opened.close()


@pytest.mark.slow
def test_a_page_says_what_each_kind_of_model_says(browser, tmp_path) -> None:
    data = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(80) % 4
    rows = data[0], (torch.rand(80, 4, generator=torch.Generator().manual_seed(2)) > 0.5).long()
    how = by.Preprocessing(size=(8, 8), channels=3, mean=(0.5,), std=(0.25,))
    relevance = by.locate(chain(), data, preprocessing=how)
    several = by.disassemble(chain(), by.locate(chain(), rows, preprocessing=how, outputs="several"), task=[0, 2, 3])
    models = {
        "reject": by.disassemble(chain(), relevance, task=[1, 3], reject=True),
        "several": several.with_decision_thresholds({"2": 0.45, "3": 0.55}),
        "few": by.disassemble(chain(), by.locate(chain(), (data[0][:8], data[1][:8]), preprocessing=how), task=[1, 2]),
    }
    paths = photographs(tmp_path / "photographs", 2)
    heard = {}
    for name, model in models.items():
        record = export_html(model, tmp_path / f"{name}.html")
        assert record.strangers == bool(model.stranger_limits)
        assert not record.resized
        opened = Opened(browser, record.path)
        heard[name] = opened.answers(paths)
        check(heard[name], expected(model, paths))
        opened.close()
    assert heard["reject"] != heard["few"]


@pytest.mark.slow
def test_the_camera_and_the_fitting_of_a_model_that_leaves_sizes_open(browser, tmp_path) -> None:
    data = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(80) % 4
    part = by.disassemble(chain(), by.locate(chain(), data), task=[1, 3])
    record = export_html(part, tmp_path / "try.html", title="Mine")
    assert record.resized
    assert "predict leaves to you" in str(record)
    fitted = part.with_preprocessing(by.Preprocessing(size=(8, 8), channels=3))
    opened = Opened(browser, record.path, width=1280)
    paths = photographs(tmp_path / "photographs", 3)
    check(opened.answers(paths), expected(fitted, paths))
    opened.page.get_by_role("button", name="Camera", exact=True).click()
    opened.page.get_by_role("button", name="What is this?").click()
    opened.page.wait_for_selector(f".answer:nth-child({len(paths) + 1})")
    assert opened.page.locator(".answer").first.get_attribute("data-name") == "camera.png"
    opened.page.set_input_files("#pictures", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    opened.page.get_by_text("x.png is not a picture that this browser reads").wait_for()
    opened.page.get_by_text("Licences", exact=True).click()
    opened.page.get_by_role("button", name="Show the notices").click()
    opened.page.get_by_text("Eigen").first.wait_for()
    opened.close()


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, text):
        tag, attributes = self.found[-1] if self.found else ("", {})
        if tag in ("script", "style") and text.strip():
            self.texts.setdefault(attributes.get("id") or attributes.get("type") or tag, text)


def test_the_file_is_whole_and_obeys_no_name(digits_yard, tmp_path) -> None:
    part = by.load(digits_yard.path / "hostile.safetensors")
    assert HOSTILE in part.classes
    record = export_html(part, tmp_path / "one.html")
    text = record.path.read_text("utf-8")
    page = Elements(text)
    assert export_html(part, tmp_path / "two.html").path.read_bytes() == record.path.read_bytes()
    assert record.bytes == len(record.path.read_bytes())
    assert not [tag for tag, _ in page.found if tag in ("img", "link", "iframe", "object", "base", "form")]
    assert not [a for _, a in page.found if {"src", "href", "onerror", "onclick"} & a.keys()]
    assert HOSTILE in json.loads(page.texts["about"])["outputs"]
    policy = next(a["content"] for _, a in page.found if "http-equiv" in a)
    for name, where in (("module", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(page.texts[name].encode()).digest()).decode()
        assert re.search(rf"{where} 'sha256-{re.escape(digest)}'", policy)
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert gzip.decompress(base64.b64decode(page.texts["runtime-data"]))[:4] == b"\0asm"
    assert "Permission is hereby granted" in text
    assert b"Eigen" in gzip.decompress(base64.b64decode(page.texts["notices-data"]))
    import onnx

    proto = onnx.load_from_string(gzip.decompress(base64.b64decode(page.texts["model-data"])))
    assert [one.name for one in proto.graph.input] == ["images"]


def test_what_cannot_be_a_page_is_refused(tmp_path) -> None:
    path = tmp_path / "try.html"
    signals = torch.rand(24, 3, 30), torch.arange(24) % 3
    layers = (torch.nn.Conv1d(3, 6, 5), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(6, 3))
    net = torch.nn.Sequential(*layers)
    hears = by.disassemble(net, by.locate(net, signals), task=[0, 2], heal="none")
    with refused("option-wrong-object", "signals", ".onnx"):
        export_html(hears, path)
    data = torch.randn(24, 3, 8, 8) * 3, torch.arange(24) % 4
    unknown = by.disassemble(chain(), by.locate(chain(), data), task=[0, 2], heal="none")
    assert unknown.manifest.preprocessing.unknown
    with refused("data-preprocessing-unknown", "pictures for a page"):
        export_html(unknown, path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with refused("file-exists", "try.html"):
        export_html(hears, path)
    assert path.read_text() == "mine"
