"""Many pictures, explanations, and what is taken along: what the page shows is what the library says."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import runpy
import shlex
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.inputs._datasets import load_data
from shell import run
from workbench_yard import encoded

if os.environ.get("CI") != "true":
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'brickyard[workbench]'")

from fastapi.testclient import TestClient

from brickyard.workbench._app import create_app

TWO = ["digits-012", "digits-789"]


@pytest.fixture(scope="module")
def page(digits_yard):
    return TestClient(create_app(digits_yard), base_url="http://127.0.0.1:8000")


def build(page, bricks=TWO, **rest):
    answer = page.post("/api/assemblies", data={"plan": json.dumps({"bricks": bricks, **rest})}, files=None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sent(*contents: bytes):
    return [("picture", (f"{place}.png", content)) for place, content in enumerate(contents)]


def test_a_table_has_the_librarys_answers_and_says_what_cannot_be_read(page, digits_yard) -> None:
    images = load_data("digits", split="test").images[:70]  # more than are computed at once, and of unknown digits too
    noise = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 255).to(torch.uint8)
    images = torch.cat([images, noise])
    contents = [encoded(image) for image in images]
    broken = contents[5][:-30]  # its head can be read
    made = build(page)
    asked = sent(b"no picture", *contents, broken)
    rows = page.post(f"/api/assemblies/{made['id']}/table", files=asked).json()["rows"]
    assert [rows[0]["code"], rows[-1]["code"]] == ["data-unreadable-image"] * 2
    assert [row["picture"] for row in rows] == [f"{place}.png" for place in range(74)]
    whole = by.assemble([digits_yard.load(name) for name in TWO])
    judged = whole.judge(images)
    for row, chances, verdict in zip(rows[1:-1], judged.probabilities, judged.verdicts(), strict=True):
        assert row["best"] == whole.classes[int(chances.argmax())]
        assert row["probability"] == pytest.approx(float(chances.max()), abs=1e-5)
        assert (row["none"], row["sure"]) == (verdict.none, verdict.sure)
        assert row["answer"] == ([] if verdict.none else [verdict.answer])
    assert {row["none"] for row in rows[1:-1]} == {True, False}


def test_a_classifier_is_described_again_until_it_is_gone(page) -> None:
    made = build(page, scaling="logit-mean")
    again = page.get(f"/api/assemblies/{made['id']}").json()
    assert again == made
    assert again["options"]["scaling"] == "logit-mean" != build(page)["options"]["scaling"]
    gone = page.get("/api/assemblies/nothing")
    assert (gone.status_code, gone.json()["code"]) == (404, "workbench-gone")


def test_the_best_guess_is_a_class_where_all_bricks_can_turn_pictures_away(tmp_path) -> None:
    from brickyard.testing import chain
    from brickyard.yard._yard import Yard

    data = torch.rand(40, 3, 8, 8), torch.arange(40) % 5
    relevance = by.locate(chain(5), data)
    yard = Yard(tmp_path / "yard", create=True)
    for task in (["0"], ["1"]):
        yard.add(by.disassemble(chain(5), relevance, task=task, reject=True), f"b{task[0]}")
    own = TestClient(create_app(yard), base_url="http://127.0.0.1:8000")
    made = build(own, ["b0", "b1"])
    contents = [encoded((image.permute(1, 2, 0) * 255).to(torch.uint8).numpy()) for image in data[0]]
    answers = own.post(f"/api/assemblies/{made['id']}/classify", files=sent(*contents)).json()["answers"]
    whole = by.assemble([yard.load("b0"), yard.load("b1")])
    assert whole.predict_proba(data[0]).shape == (40, 3)
    assert {item["name"] for answer in answers for item in answer["classes"]} == {"0", "1"}


def test_an_explanation_is_the_librarys_of_the_brick_that_answers(page, digits_yard) -> None:
    from brickyard.relevance._explain import position_map, route

    made, sample = build(page), "digit-8.png"
    found = {name: page.post(f"/api/assemblies/{made['id']}/why?sample={sample}&name={name}").json() for name in "87"}
    best = page.post(f"/api/assemblies/{made['id']}/why?sample={sample}").json()
    part = digits_yard.load("digits-789")
    x = part.preprocess(_raw(digits_yard, sample))
    logits = part(x)[0]
    for name, own in found.items():
        place = part.classes.index(name)
        assert (own["brick"], own["class"], own["frame"]) == ("digits-789", name, [0.0, 0.0, 1.0, 1.0])
        assert own["logit"] == pytest.approx(float(logits[place]), abs=1e-5)
        values = position_map(part.network, x, lambda outputs, place=place: part.head(outputs)[:, place])
        torch.testing.assert_close(torch.tensor(own["map"]["values"]).double(), values, atol=1e-5, rtol=1e-5)
        lit = route(trace(part.network, x.repeat(2, 1, 1, 1)), x, place)
        assert {axis["name"]: axis["lit"] for axis in own["route"]["axes"]} == {k: int(v.sum()) for k, v in lit.items()}
        kept = {name: len(axis.kept) for name, axis in part.manifest.axes.items()}
        assert {axis["name"]: axis["kept"] for axis in own["route"]["axes"]} == kept
    assert found["8"]["map"] != found["7"]["map"]  # the control
    assert best == found[best["class"]]
    strange = [float(digits_yard.load(name).judge([_picture(digits_yard, sample)]).strangeness) for name in TWO]
    assert [one["strangeness"] for one in best["familiar"]] == pytest.approx(strange, rel=1e-5)
    refused = page.post(f"/api/assemblies/{made['id']}/why?sample={sample}&name=cat")
    assert (refused.status_code, refused.json()["code"]) == (400, "task-unknown-class")


def _picture(yard, sample):
    return Image.open(yard.path / "samples" / sample)


def _raw(yard, sample):
    return torch.from_numpy(np.array(_picture(yard, sample)))[None, None]


def test_what_is_taken_along_says_the_same(page, digits_yard, tmp_path, monkeypatch) -> None:
    from brickyard.recipes._reader import load_recipe

    made = build(page, scaling="logit-mean")
    images = load_data("digits", split="test").images[:8]
    whole = by.assemble([digits_yard.load(name) for name in TWO], scaling="logit-mean")
    plain = by.assemble([digits_yard.load(name) for name in TWO], scaling="none")
    assert not torch.equal(whole.predict_proba(images), plain.predict_proba(images))  # the control

    def taken(kind):
        answer = page.get(f"/api/assemblies/{made['id']}/file?kind={kind}")
        assert answer.status_code == 200, answer.text
        return answer.content

    with zipfile.ZipFile(io.BytesIO(taken("python"))) as archive:
        archive.extractall(tmp_path)
    spec = importlib.util.spec_from_file_location("classifier", tmp_path / "classifier.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert tuple(module.CLASSES) == whole.classes
    torch.testing.assert_close(module.load()(module.preprocess(images)), whole(images), atol=1e-4, rtol=1e-4)

    texts = page.get(f"/api/assemblies/{made['id']}/texts").json()
    monkeypatch.chdir(digits_yard.path.parent)
    code = texts["python"].replace('"classifier.safetensors"', repr(str(tmp_path / "by-python.safetensors")))
    (tmp_path / "copied.py").write_text(code)
    runpy.run_path(str(tmp_path / "copied.py"))
    command = shlex.split(texts["command"].replace("classifier.safetensors", f"{tmp_path}/by-cli.safetensors"))
    assert command[0] == "brickyard"
    run(*command[1:])
    for name in ("by-python", "by-cli"):
        assert torch.equal(by.load(tmp_path / f"{name}.safetensors")(images), whole(images)), name

    (tmp_path / "NETWORK").touch()
    for name in ("WEIGHTS.safetensors", "PICTURES"):
        (tmp_path / name).touch()
    (tmp_path / "recipe.yaml").write_bytes(taken("recipe").replace(b"NETWORK", b"zoo:cnn"))
    found = load_recipe(tmp_path / "recipe.yaml").recipe
    assert {name: list(part.task) for name, part in found.components.items()} == {
        "digits-012": ["0", "1", "2"],
        "digits-789": ["7", "8", "9"],
    }
    assert (found.assembly.scaling, len(found.sources)) == ("logit-mean", 2)


def test_the_offline_page_is_the_librarys(page, digits_yard, tmp_path) -> None:
    if os.environ.get("CI") != "true":
        pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    from brickyard.export import export_html

    made = build(page)
    export_html(by.assemble([digits_yard.load(name) for name in TWO]), tmp_path / "own.html")
    got = page.get(f"/api/assemblies/{made['id']}/file?kind=page").content
    assert got == (tmp_path / "own.html").read_bytes()
    assert got != page.get(f"/api/assemblies/{made['id']}/file?kind=html").content
