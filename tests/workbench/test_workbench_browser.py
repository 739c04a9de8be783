"""The workbench's page in a browser: from bricks to a file, with a mouse and with keys alone; nothing leaves here."""

from __future__ import annotations

import csv
import os
import re
import shutil
import time

import pytest
import torch

import brickyard as by
from brickyard.inputs._datasets import load_data
from workbench_yard import HOSTILE, commanded, encoded, serving

if os.environ.get("CI") != "true":
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'brickyard[workbench]'")
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")

from playwright.sync_api import Page, expect, sync_playwright

PATIENCE = 120_000  # milliseconds: on a busy machine too
expect.set_options(timeout=PATIENCE)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None and os.environ.get("CI") != "true":
    pytest.skip("chromium is not installed: apt-get install chromium", allow_module_level=True)

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]


@pytest.fixture(scope="module")
def address(digits_yard):
    with commanded(digits_yard) as line:
        yield re.search(r"http://\S+", line).group()


@pytest.fixture(scope="module")
def browser():
    assert BROWSER is not None, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield found
        found.close()


def is_problem(message) -> bool:
    """An error of the page itself: that a request was refused is logged by the browser, and is what some tests want."""
    return message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")


@pytest.fixture
def page(browser, address):
    """A page that fails its test when a script fails, something is logged as an error, or a request leaves here."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["camera"])
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    problems: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if is_problem(message) else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector(".brick")
    yield page
    context.close()
    assert problems == []
    assert len(asked) > 3
    assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []


def button(page: Page, name: str):
    return page.get_by_role("button", name=name, exact=True)


def picture(name: str, image: torch.Tensor) -> dict[str, str | bytes]:
    return {"name": f"{name}.png", "mimeType": "image/png", "buffer": encoded(image)}


def add(page: Page, *bricks: str) -> None:
    for name in bricks:
        button(page, f"Add brick {name}").click()


def assembled(page: Page, bricks: int) -> None:
    button(page, "Assemble").click()
    expect(page.locator("#made")).to_contain_text(f"One classifier of {bricks} brick")


def tried(page: Page, sample: str) -> None:
    button(page, f"Try sample {sample}").click()
    expect(page.locator(".answer")).to_have_count(1)


def headline(page: Page) -> str:
    return page.locator(".answer .headline").first.inner_text()


def test_from_bricks_to_a_file_that_says_the_same(page, digits_yard, tmp_path) -> None:
    button(page, "class 0, in brick digits-012").click()
    expect(page.locator("#status")).to_contain_text("1, 2 are included too")
    page.locator("li.brick", has=page.get_by_text("digits-789", exact=True)).drag_to(page.locator("#tray"))
    expect(page.locator("#total-classes")).to_have_text("6")
    expect(page.locator("#overlap-list li")).to_have_count(2)
    assembled(page, 2)
    data = load_data("digits", split="test")
    places = [int((data.labels == k).nonzero()[5]) for k in (0, 8)]
    pictures = [digits_yard.path / "samples" / f"digit-{k}.png" for k in (0, 8)]
    page.locator("#picture").set_input_files(pictures)
    expect(page.locator(".answer")).to_have_count(2)
    names = page.locator(".answer .headline").all_inner_texts()[::-1]
    expect(page.locator(".answer .tag").first).to_have_text("digits-789" if names[1] in "789" else "digits-012")
    with page.expect_download() as waiting:
        button(page, "Classifier (.safetensors)").click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    whole = by.load(path)
    assert isinstance(whole, by.Assembly)
    expected = by.assemble([digits_yard.load("digits-012"), digits_yard.load("digits-789")])
    assert whole.predict(pictures, strangers="answer") == names == expected.predict(pictures, strangers="answer")
    assert len(set(names)) == 2  # the control
    assert torch.equal(whole(data.images[places]), expected(data.images[places]))


def press(page: Page, key: str, on: str) -> None:
    """Press a key on what is called so: Tab leads there."""
    called = "() => { const e = document.activeElement; return e.getAttribute('aria-label') || e.id || e.textContent; }"
    for _ in range(120):
        if page.evaluate(called) == on:
            page.keyboard.press(key)
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {on!r}")


def test_with_keys_alone(page) -> None:
    press(page, "Space", "class 7, in brick digits-789")
    expect(page.locator("#wall li")).to_have_count(1)
    press(page, "Enter", "Add brick hostile")
    expect(page.locator("#wall li")).to_have_count(2)
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Remove brick hostile"  # the focus stays on the brick
    page.keyboard.press("Delete")
    expect(page.locator("#wall li")).to_have_count(1)
    press(page, "Enter", "Add brick digits-012")
    press(page, "Delete", "Remove brick digits-789 from the tray")
    expect(page.locator("#wall li")).to_have_count(1)
    expect(page.locator("#total-classes")).to_have_text("3")
    press(page, "Enter", "assemble")
    expect(page.locator("#made")).to_contain_text("0, 1, 2")
    assert page.evaluate("document.activeElement.id") == "try"
    press(page, "Enter", "Try sample digit-2.png")
    expect(page.locator(".answer")).to_have_count(1)
    expect(page.locator("#status")).to_contain_text("digit-2.png: 2")
    assert headline(page) == "2"


def test_names_from_files_stay_text(page) -> None:
    assert page.locator(".chip", has_text=HOSTILE).count() == 1
    add(page, "hostile")
    expect(page.locator("#wall .chip").first).to_have_text(HOSTILE)
    assembled(page, 1)
    tried(page, "digit-4.png")
    button(page, "Look inside brick hostile").click()
    expect(page.locator("#inside-picture rect").first).to_be_visible()
    assert page.title() == "Brickyard workbench"
    assert page.locator("img[src=x], b:text-is('chain')").count() == 0


ORDERS = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "'-(document.title='owned')-'",
    "\u202etxt.exe\x1b[2J",
    "javascript:document.title='owned'",
]


@pytest.mark.parametrize("safe", [True, False])
def test_names_that_give_orders_are_shown_and_not_obeyed(browser, tmp_path, monkeypatch, safe) -> None:
    from brickyard.reports._page import write_report
    from brickyard.testing import chain
    from brickyard.workbench import _app as module
    from brickyard.workbench import _guard as guarding
    from brickyard.workbench._app import create_app
    from brickyard.workbench._limits import Limits
    from brickyard.yard._yard import Yard

    data = torch.rand(20, 3, 8, 8), torch.arange(20) % 5
    part = by.disassemble(chain(5), by.locate(chain(5), data, classes=ORDERS, name=ORDERS[0]), task=ORDERS)
    yard = Yard(tmp_path / "yard", create=True)
    yard.add(part, "orders")
    if not safe:  # the control: without the policy, and with names as markup, they would be obeyed
        monkeypatch.setattr(guarding, "HEADERS", {})
        monkeypatch.setattr(module, "shown", lambda text: text)
    with serving(create_app(yard), Limits()) as port, browser.new_page() as page:
        page.set_default_timeout(PATIENCE)
        if not safe:
            page.route("**/app.js", lambda route: route.fulfill(body=careless(route.fetch().text())))
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector(".brick")
        expect(page).to_have_title("Brickyard workbench" if safe else "owned")
        if not safe:
            return
        chips = page.locator(".brick .chip").all_inner_texts()
        assert chips == [*ORDERS[:3], r"\u202etxt.exe\x1b[2J", ORDERS[4]]
        add(page, "orders")
        assembled(page, 1)
        page.locator("#picture").set_input_files(
            [picture("<img src=x onerror=document.title='owned'>", torch.zeros(1, 8, 8, dtype=torch.uint8))]
        )
        expect(page.locator(".answer")).to_have_count(1)
        button(page, "Look inside brick orders").click()
        expect(page.locator("#inside-text")).to_contain_text(ORDERS[0])
        assert page.title() == "Brickyard workbench"
        page.goto(write_report(tmp_path / "report.html", [part], names=[ORDERS[1]], title=ORDERS[2]).as_uri())
        time.sleep(0.3)
        assert page.title() != "owned"
        page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        assert ORDERS[0] in page.locator("body").inner_text()


def careless(script: str) -> str:
    """The page's script as it must not be: names become markup."""
    assert "node.append(...children.filter((child) => child !== null));" in script
    return script.replace(
        "node.append(...children.filter((child) => child !== null));",
        "for (const c of children) { if (typeof c === 'string') node.insertAdjacentHTML('beforeend', c); "
        "else if (c !== null) node.append(c); }",
    )


def test_calibration_asks_for_pictures_of_every_class(page) -> None:
    add(page, "digits-012", "digits-789")
    page.locator("#options summary").click()
    page.locator("#scaling").select_option("lda")
    button(page, "Calibrate and assemble").click()
    expect(page.locator("#tray-error")).to_contain_text("at least one picture of “0”")
    data = load_data("digits")
    for brick, digits in (("digits-012", "012"), ("digits-789", "789")):
        for digit in digits:
            shown = [picture(str(i), image) for i, image in enumerate(data.images[data.labels == int(digit)][:3])]
            page.get_by_label(f"Pictures of {digit} for brick {brick}").set_input_files(shown)
    button(page, "Calibrate and assemble").click()
    expect(page.locator("#made")).to_contain_text("calibrated with 18 pictures")
    expect(page.locator("#measured li")).to_have_count(2)


def test_duplicates_are_shown_and_decided(page) -> None:
    add(page, "digits-012", "digits-23")
    expect(page.locator("#duplicate-names")).to_have_text("“2” is in digits-012 and digits-23")
    button(page, "Assemble").click()
    expect(page.locator("#tray-error")).to_contain_text("class '2' is in both part 0")
    page.get_by_label("average the scores").check()
    assembled(page, 2)
    expect(page.locator("#made")).to_contain_text("knows 4 classes")


def test_the_camera_and_the_clipboard(page) -> None:
    add(page, "digits-012")
    assembled(page, 1)
    button(page, "Use the camera").click()
    expect(page.locator("#video")).not_to_have_js_property("videoWidth", 0)
    button(page, "Take a picture").click()
    expect(page.locator(".answer")).to_have_count(1)
    button(page, "Close the camera").click()
    expect(page.locator("#camera-box")).to_be_hidden()
    paste = """async () => {
        const blob = await (await fetch('/api/sample?name=digit-1.png')).blob();
        const data = new DataTransfer();
        data.items.add(new File([blob], 'pasted.png', {type: 'image/png'}));
        document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}));
    }"""
    page.evaluate(paste)
    expect(page.locator(".answer")).to_have_count(2)
    assert headline(page) == "1"


def test_many_pictures_two_classifiers_and_an_explanation_that_survive_a_reload(page, digits_yard, tmp_path) -> None:
    data, names = load_data("digits", split="test"), ["digits-012", "digits-789"]
    wanted: dict[str, str] = {}
    for digit in (0, 2, 8, 9, 4):  # 4 is none of the classes
        (tmp_path / "all" / str(digit)).mkdir(parents=True)
        for place, image in enumerate(data.images[data.labels == digit][:9]):
            wanted[f"{digit}/{digit}-{place}.png"] = str(digit)
            (tmp_path / "all" / str(digit) / f"{digit}-{place}.png").write_bytes(encoded(image))
    parts, paths = [digits_yard.load(name) for name in names], [tmp_path / "all" / name for name in wanted]
    found = {how: by.assemble(parts, scaling=how).predict(paths) for how in ("auto", "magnitude")}
    truths = list(wanted.values())
    right = {how: sum(a == b for a, b in zip(said, truths, strict=True)) for how, said in found.items()}
    differ = sum(a != b for a, b in zip(*found.values(), strict=True))
    assert differ > 0
    add(page, *names)
    assembled(page, 2)
    page.locator("#options summary").click()
    page.locator("#scaling").select_option("magnitude")
    assembled(page, 2)
    expect(page.locator("#made")).to_contain_text("scaling: magnitude")
    page.locator("#which").select_option(index=0)
    page.locator("#folder").set_input_files(tmp_path / "all")
    expect(page.locator("#many-score p").first).to_contain_text(f"A: {right['auto']} of 36 right")
    cell = next((b, a) for a, b in zip(found["auto"], truths, strict=True) if a != b and b != "4")
    same = [a for a, b in zip(found["auto"], truths, strict=True) if b == cell[0] and a == cell[1]]
    shown = cell[1].strip("()")
    page.locator(f"#matrix-rows [aria-label$=' of {cell[0]}, answered {shown}']").click()
    expect(page.locator("#many-rows tr")).to_have_count(len(same))
    page.locator("#many-with").select_option(index=1)
    expect(page.locator("#many-score p").nth(1)).to_contain_text(f"B: {right['magnitude']} of 36 right")
    expect(page.locator("#many-rows tr.differ")).to_have_count(differ)
    with page.expect_download() as waiting:
        button(page, "Download as CSV").click()
    rows = list(csv.DictReader(waiting.value.path().open(newline="")))
    for letter, said in zip("AB", found.values(), strict=True):
        assert [row[f"{letter} answer"] for row in rows] == [
            name.strip("()") for _, name in sorted(zip(wanted, said, strict=True))
        ]
    page.reload()
    expect(page.locator("#wall li")).to_have_count(2)
    expect(page.locator("#which option")).to_have_count(2)
    expect(page.locator("#made")).to_contain_text("scaling: auto")
    expect(page.locator("#scaling")).to_have_value("magnitude")
    tried(page, "digit-8.png")
    button(page, "Why this answer to digit-8.png").click()
    expect(page.locator(".why canvas")).to_have_attribute("aria-label", re.compile("strongest for 8 at the"))
    expect(page.locator(".why svg rect.lit").first).to_be_visible()


def test_what_goes_wrong_is_said_in_words(page) -> None:
    add(page, "digits-012")
    assembled(page, 1)
    page.route("**/classify*", lambda route: route.abort())
    button(page, "Try sample digit-1.png").click()
    expect(page.locator("#try-error")).to_contain_text("the workbench does not answer")


def test_it_fits_a_phone_and_has_names_for_all_it_offers(page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    add(page, "digits-012", "digits-789")
    assembled(page, 2)
    tried(page, "digit-8.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    nameless = """() => [...document.querySelectorAll('button, input, select')].filter((e) =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length))).length"""
    assert page.evaluate(nameless) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(page, scheme) -> None:
    page.emulate_media(color_scheme=scheme)
    add(page, "digits-012", "digits-23")
    page.get_by_label("keep both, rename one").check()
    assembled(page, 2)
    tried(page, "digit-2.png")
    page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")  # what fades in
    assert page.evaluate(CONTRAST) == []


# Text whose colour is less than 4.5 : 1 (3 : 1 where large) from the nearest opaque background, as WCAG counts it.
CONTRAST = """() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (text) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const light = (c) => c.slice(0, 3).map((v) => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const found = [];
    for (const e of document.querySelectorAll('body *')) {
        const text = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!text || !e.checkVisibility() || e.closest('.hidden, .skip, :disabled, option')) continue;
        let back = null;
        for (let p = e; p && !back; p = p.parentElement) {
            const c = rgba(getComputedStyle(p).backgroundColor);
            if (c[3] === 255) back = c;
        }
        const style = getComputedStyle(e);
        const [a, b] = [light(rgba(style.color)), light(back || [255, 255, 255])].sort((x, y) => y - x);
        const size = parseFloat(style.fontSize);
        const least = size >= 24 || (size >= 18.6 && style.fontWeight >= 700) ? 3 : 4.5;
        if ((a + .05) / (b + .05) < least) found.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 20)}`);
    }
    return found;
}"""
