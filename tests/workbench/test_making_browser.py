"""From an empty yard to a brick and an answer in a browser, with a reload while the brick is cut."""

from __future__ import annotations

import os
import re
import shutil

import pytest

import brickyard as by
from brickyard.inputs._datasets import load_data
from brickyard.sources._loading import Source, save_source
from brickyard.training._sources import build_seeded, train
from brickyard.yard._yard import Yard
from workbench_yard import HOW, commanded, encoded

if os.environ.get("CI") != "true":
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'brickyard[workbench]'")
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")

from playwright.sync_api import expect, sync_playwright

PATIENCE = 300_000  # milliseconds: on a busy machine too
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None and os.environ.get("CI") != "true":
    pytest.skip("chromium is not installed: apt-get install chromium", allow_module_level=True)


@pytest.fixture
def page(tmp_path):
    """The page of an empty yard, with a source beside the server; it fails its test when a script fails."""
    digits = load_data("digits")
    model = build_seeded("cnn", 10, 0.25, channels=1)
    train(model, digits, preprocessing=HOW, epochs=3, lr=0.05, batch_size=32)
    source = Source(model, "cnn", digits.classes, HOW, (1, 16, 16))
    (tmp_path / "sources").mkdir()
    options = {"width": 0.25, "channels": 1}
    save_source(tmp_path / "sources" / "digits.safetensors", source, arch="cnn", options=options)
    problems: list[str] = []
    yard = Yard(tmp_path / "yard", create=True)
    with commanded(yard, "--sources", str(tmp_path / "sources")) as line, sync_playwright() as playwright:
        assert BROWSER is not None, "chromium is not installed: apt-get install chromium"
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(re.search(r"http://\S+", line).group())
        yield page
        browser.close()
    assert problems == []


@pytest.mark.slow
def test_from_an_empty_yard_to_a_brick_and_an_answer(page, tmp_path) -> None:
    def button(name: str):
        return page.get_by_role("button", name=name, exact=True)

    expect(page.locator("#welcome")).to_contain_text("This yard is empty")
    button("New brick from your own model").click()
    page.locator("#new-file").select_option("digits.safetensors")
    button("Next").click()
    expect(page.locator("#new-data")).to_have_value("digits")
    button("Show the classes").click()
    for digit in "0817":
        page.locator(f"#class-list .chip[title='{digit}']").click()
    for digit in "08":
        page.get_by_label(f"Tick {digit}, to join it with others").check()
    page.locator("#join-name").fill("round")
    button("Join the ticked classes as one").click()
    expect(page.locator("#picked li").last).to_contain_text("round = 0 + 8")
    button("Cut").click()
    expect(page.locator("#work-stage")).to_be_visible()
    page.reload()  # the address knows what is being made
    expect(page.locator("#work-stage")).to_have_text("All sizes are made.")
    expect(page.locator("#curve circle")).to_have_count(5)
    page.locator("#new [data-close]").click()
    expect(page.locator("#makings")).to_contain_text("1, 7, round: is made")  # the start page knows it, too
    page.route("**/api/networks", lambda route: None)  # never answered: a size is chosen without it
    button("Choose a size: 1, 7, round").click()
    expect(page.locator("#size")).to_be_visible()  # keys that are pressed before go nowhere
    page.locator("#size").press("Home")
    expect(page.locator("#size-text")).to_contain_text("of the source")
    smallest = page.locator("#size-text").inner_text()
    page.locator("#size").press("End")
    expect(page.locator("#size-text")).not_to_have_text(smallest)  # the control
    page.locator("#size").press("Home")
    page.locator("#brick-name").fill("mine")
    button("Keep this brick").click()
    expect(page.locator("li.brick h3")).to_have_text("mine")
    expect(page.locator("#makings")).to_be_hidden()
    part = by.load(tmp_path / "yard" / "mine.safetensors")
    assert isinstance(part, by.Component)
    assert part.classes == ("1", "7", "round")
    assert part.manifest.selection.budget["flops"] == 0.3
    button("Add brick mine").click()
    button("Assemble").click()
    expect(page.locator("#made")).to_contain_text("One classifier of 1 brick")
    test = load_data("digits", split="test")
    place = int((test.labels == 7).nonzero()[0])
    shown = [{"name": "seven.png", "mimeType": "image/png", "buffer": encoded(test.images[place])}]
    page.locator("#picture").set_input_files(shown)
    expect(page.locator(".answer")).to_have_count(1)
    expected = by.assemble([part]).predict([test.images[place]], strangers="answer")
    assert page.locator(".answer .headline").inner_text() in (*expected, "none of these")
    assert expected == ["7"]
