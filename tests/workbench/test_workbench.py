"""The workbench's server: what it builds and answers is what the library says, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import urllib.error
import urllib.request
from importlib.resources import files
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image

import brickyard as by
from brickyard.assembly._labelled import shared_signals
from brickyard.inputs._datasets import load_data
from shell import run
from workbench_yard import HOSTILE, commanded, encoded

if os.environ.get("CI") != "true":
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'brickyard[workbench]'")

from fastapi.testclient import TestClient

from brickyard.workbench._app import create_app
from brickyard.workbench._limits import Limits
from brickyard.workbench._overlap import level, measured, predicted

HERE = "http://127.0.0.1:8000"
TWO = ["digits-012", "digits-789"]


@pytest.fixture(scope="module")
def page(digits_yard):
    return TestClient(create_app(digits_yard), base_url=HERE)


def build(page, bricks=TWO, pictures=(), code=200, **rest):
    plan = {"bricks": bricks, **rest}
    answer = page.post("/api/assemblies", data={"plan": json.dumps(plan)}, files=pictures or None)
    assert answer.status_code == code, answer.text
    return answer.json()


def answers(page, key, *pictures, **params):
    sent = [("picture", (f"{i}.png", encoded(picture))) for i, picture in enumerate(pictures)]
    return page.post(f"/api/assemblies/{key}/classify", files=sent or None, params=params).json()["answers"]


def shots(each: int = 4) -> list[tuple[str, tuple[str, bytes]]]:
    """Labelled pictures of the six classes of the two bricks, as the page sends them."""
    data = load_data("digits")
    found = []
    for part, digits in enumerate(("012", "789")):
        for place, digit in enumerate(digits):
            own = data.images[data.labels == int(digit)][:each]
            found += [(f"{part}.{place}", (f"{digit}.png", encoded(image))) for image in own]
    return found


# -- what it gives ---------------------------------------------------------------------------------------------


def test_the_yard_is_what_the_library_says(page, digits_yard) -> None:
    value = page.get("/api/yard").json()
    assert value["bricks"] == [json.loads(json.dumps(entry.as_dict())) for entry in digits_yard.entries()]
    assert value["samples"] == [f"digit-{k}.png" for k in range(10)]
    assert {item["name"] for item in value["scalings"] if item["few_shot"]} == {"affine", "joint-head", "lda"}
    assert all(item["text"] for item in value["scalings"] + value["forms"])


@pytest.mark.parametrize(
    ("form", "scaling"), [("parallel", "mahalanobis"), ("padded", "none"), ("grouped", "logit-mean")]
)
def test_answers_are_those_of_the_library(page, digits_yard, form, scaling) -> None:
    parts = [digits_yard.load(name) for name in TWO]
    expected = by.assemble(parts, form=form, scaling=scaling)
    pool = load_data("digits", split="test").images[:400]
    first = torch.tensor([expected.classes[k] in "012" for k in expected.predict_proba(pool).argmax(1).tolist()])
    images = torch.cat([pool[first][:6], pool[~first][:6]])  # both bricks have their turn
    made = build(page, form=form, scaling=scaling)
    assert made["classes"] == list(expected.classes)
    found = answers(page, made["id"], *images)
    chances = expected.predict_proba(images)
    assert len(found) == 12
    for answer, row, image in zip(found, chances, images, strict=True):
        best = row.topk(5)
        assert [item["name"] for item in answer["classes"]] == [expected.classes[k] for k in best.indices.tolist()]
        got = torch.tensor([item["probability"] for item in answer["classes"]], dtype=torch.float64)
        assert torch.allclose(got, best.values, atol=1e-6)
        assert answer["answered"] == [0 if answer["classes"][0]["name"] in "012" else 1]
        for view, part in zip(answer["views"], parts, strict=True):
            own = part.predict_proba([image])[0]
            assert view["classes"][0]["name"] == part.classes[int(own.argmax())]
            assert view["classes"][0]["probability"] == pytest.approx(float(own.max()), abs=1e-6)
    assert [answer["answered"][0] for answer in found] == [0] * 6 + [1] * 6


def test_pictures_of_something_else_are_none_of_these(page, digits_yard) -> None:
    parts = [digits_yard.load(name) for name in TWO]
    images = load_data("digits", split="test").of_classes([0, 4, 5, 8]).images[:24]
    noise = torch.rand(4, *images.shape[1:], generator=torch.Generator().manual_seed(1))
    images = torch.cat([images, (noise * 255).to(torch.uint8)])
    for form in ("parallel", "padded"):
        whole = by.assemble(parts, form=form)
        found, judged = answers(page, build(page, form=form)["id"], *images), whole.judge(images)
        for answer, image, verdict in zip(found, images, judged.verdicts(), strict=True):
            best = answer["classes"][0]["name"]
            assert (answer["none"], answer["words"]) == (verdict.none, verdict.words)
            assert answer["answer"] == [best]  # the best guess, also where it is none of these
            assert (answer["strangeness"] is None) == (form == "padded")
            for view, part in zip(answer["views"], parts, strict=True):
                own = part.judge([image]).verdicts()[0]
                assert view["strangeness"] == pytest.approx(own.strangeness, rel=1e-5)
                assert (view["none"], view["words"]) == (own.none, own.words)
        said = {answer["words"] for answer in found}
        assert said == ({""} if form == "padded" else {"none of these (unlike all of its classes)", "sure", "not sure"})


def test_colour_and_large_pictures_are_brought_to_what_the_bricks_take(page, digits_yard) -> None:
    whole = by.assemble([digits_yard.load(name) for name in TWO])
    key = build(page)["id"]
    picture = Image.open(digits_yard.path / "samples" / "digit-8.png").resize((200, 120)).convert("RGB")
    (answer,) = answers(page, key, picture)
    expected = whole.predict_proba([picture])[0]
    assert answer["classes"][0]["probability"] == pytest.approx(float(expected.max()), abs=1e-6)


def test_bricks_without_preprocessing_get_pictures_of_their_shape(page, digits_yard) -> None:
    part = digits_yard.load("hostile")
    assert part.manifest.preprocessing == by.Preprocessing()
    key = build(page, ["hostile"])["id"]
    (answer,) = answers(page, key, sample="digit-3.png")
    with Image.open(digits_yard.path / "samples" / "digit-3.png") as image:
        grey = torch.from_numpy(np.array(image)).float().reshape(1, 1, 8, 8) / 255
    expected = part.predict_proba(grey.expand(-1, 3, -1, -1))[0]
    assert answer["classes"][0]["probability"] == pytest.approx(float(expected.max()), abs=1e-5)
    assert {item["name"] for item in answer["classes"]} == {HOSTILE, "hen"}


def test_downloads_load_and_say_the_same(page, digits_yard, tmp_path) -> None:
    key = build(page, scaling="mahalanobis")["id"]
    answer = page.get(f"/api/assemblies/{key}/file?kind=safetensors")
    assert 'filename="classifier-6-classes.safetensors"' in answer.headers["content-disposition"]
    (tmp_path / "got.safetensors").write_bytes(answer.content)
    again = by.load(tmp_path / "got.safetensors")
    sample = digits_yard.path / "samples" / "digit-7.png"
    (shown,) = answers(page, key, sample="digit-7.png")
    assert again.predict([sample], strangers="answer") == [shown["classes"][0]["name"]] == ["7"]
    assert float(again.predict_proba([sample]).max()) == pytest.approx(shown["classes"][0]["probability"], abs=1e-9)


def test_onnx_says_the_same(page, digits_yard, tmp_path) -> None:
    if os.environ.get("CI") != "true":
        pytest.importorskip("onnxscript", reason="the onnx extra is not installed")
    import onnxruntime

    key = build(page, scaling="mahalanobis")["id"]
    answer = page.get(f"/api/assemblies/{key}/file?kind=onnx")
    assert answer.status_code == 200, answer.text
    session = onnxruntime.InferenceSession(answer.content, providers=["CPUExecutionProvider"])
    images = load_data("digits", split="test").images[:3]
    found = session.run(["probabilities"], {"images": images.float().numpy() / 255})[0]
    for answer, row in zip(answers(page, key, *images), found, strict=True):
        probability = answer["classes"][0]["probability"]
        assert probability == pytest.approx(float(row.max()), abs=1e-3)  # bytes are rounded where they are resized


def test_the_report_is_about_the_classifier_and_its_bricks(page) -> None:
    key = build(page, scaling="mahalanobis")["id"]
    answer = page.get(f"/api/assemblies/{key}/file?kind=html")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].startswith("attachment")
    assert all(word in answer.text for word in ("A classifier from the workbench", "mahalanobis", *TWO))


def test_files_of_other_kinds_and_of_classifiers_that_are_gone(page) -> None:
    key = build(page)["id"]
    assert "onnx" in page.get(f"/api/assemblies/{key}/file?kind=exe").json()["error"]
    for kind in ("safetensors", "onnx", "html"):
        assert page.get(f"/api/assemblies/nothing/file?kind={kind}").status_code == 404


def test_calibration_is_the_librarys(page, digits_yard) -> None:
    pictures = shots()
    made = build(page, pictures=pictures, scaling="lda")
    assert made["images"] == 24
    parts = [digits_yard.load(name) for name in TWO]
    data = load_data("digits")
    images = []
    for part, digits in zip(parts, ("012", "789"), strict=True):
        chosen = torch.cat([data.images[data.labels == int(digit)][:4] for digit in digits])
        labels = torch.repeat_interleave(torch.tensor(part.manifest.task), 4)
        images.append((chosen, labels))
    expected = by.assemble(parts, scaling="lda", images=images)
    test = load_data("digits", split="test").images[:6]
    for answer, row in zip(answers(page, made["id"], *test), expected.predict_proba(test), strict=True):
        assert answer["classes"][0]["probability"] == pytest.approx(float(row.max()), abs=1e-6)
    plain = by.assemble(parts).predict_proba(test).amax(1)
    assert not torch.allclose(plain, expected.predict_proba(test).amax(1), atol=1e-4)  # calibrating changed something
    assert {(row["of"], row["by"], row["images"]) for row in made["measured"]} == {(0, 1, 12), (1, 0, 12)}


def test_pictures_of_several_sizes_calibrate_too(page) -> None:
    pictures = shots()
    field, (name, content) = pictures[0]
    larger = Image.open(io.BytesIO(content)).resize((40, 30)).convert("RGB")
    made = build(page, pictures=[(field, (name, encoded(larger))), *pictures[1:]], scaling="joint-head")
    assert made["images"] == 24


def test_a_plan_counts_classes_costs_and_duplicates(page, digits_yard) -> None:
    entries = [digits_yard.entry(name) for name in TWO]
    plan = page.post("/api/plan", json={"bricks": TWO}).json()
    assert plan["classes"] == ["0", "1", "2", "7", "8", "9"]
    assert plan["parameters"] == sum(entry.parameters for entry in entries)
    assert plan["flops"] == sum(entry.flops for entry in entries)
    assert plan["duplicates"] == []
    assert list(plan["forms"]) == ["union", "cascade", "merged"]  # other sources, one structure; no calibration images
    build(page, form="padded")
    both = ["digits-012", "digits-23"]
    plan = page.post("/api/plan", json={"bricks": both}).json()
    assert plan["duplicates"] == [{"name": "2", "bricks": [0, 1]}]
    assert list(plan["forms"]) == ["cascade", "merged"]
    assert "'2'" in build(page, both, code=400)["error"]
    assert build(page, both, on_duplicate="average")["classes"] == ["0", "1", "2", "3"]
    assert build(page, both, on_duplicate="rename")["classes"] == ["0", "1", "2", "2 (cnn-0)", "3"]
    other = page.post("/api/plan", json={"bricks": ["digits-012", "hostile"]}).json()
    assert other["forms"]["padded"]  # why not
    assert page.post("/api/plan", json={"bricks": []}).json()["classes"] == []


def test_the_channels_that_a_brick_keeps(page, digits_yard) -> None:
    manifest = digits_yard.load("digits-012").manifest
    value = page.get("/api/inside", params={"brick": "digits-012"}).json()
    assert [axis["name"] for axis in value["axes"]] == list(manifest.axes)
    for axis in value["axes"]:
        record = manifest.axes[axis["name"]]
        assert axis["kept"] == len(record.kept)
        if record.size == len(axis["cells"]):
            assert [k for k, share in enumerate(axis["cells"]) if share == 1] == list(record.kept)
    assert any(axis["kept"] < axis["size"] for axis in value["axes"])


# -- overlap -----------------------------------------------------------------------------------------------------


def test_predicted_overlap_is_the_chance_of_two_normal_variables() -> None:
    generator = torch.Generator().manual_seed(0)
    (high, margin), (foreign, lead) = own, other = (10.0, 6.0), (12.0, 9.0)
    draws = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    beaten = foreign - 0.75 * lead + draws[1] * lead / 4 > high + draws[0] * margin / 4
    assert predicted(own, other) == pytest.approx(float(beaten.double().mean()), abs=0.003)
    assert predicted((10, 4), (8, 4)) < predicted((10, 4), (10, 4)) < predicted((10, 4), (20, 4))
    assert predicted((10, 4), (13, 4)) == 0.5


def test_the_plan_predicts_from_the_manifests_and_follows_the_scaling(page, digits_yard) -> None:
    levels = []
    for name in TWO:
        found = digits_yard.load(name).manifest.statistics
        levels.append((sum(found.winning_logit) / len(found.winning_logit), found.margin))
        assert level(digits_yard.load(name).manifest) == pytest.approx(levels[-1])
    plan = page.post("/api/plan", json={"bricks": TWO}).json()
    (w, m), (v, n) = levels
    expected = 1 - NormalDist().cdf((w - (v - 0.75 * n)) / ((m / 4) ** 2 + (n / 4) ** 2) ** 0.5)
    first = next(row for row in plan["overlap"] if (row["of"], row["by"]) == (0, 1))
    assert first["share"] == pytest.approx(expected, abs=1e-4)
    scaled = page.post("/api/plan", json={"bricks": TWO, "scaling": "logit-mean"}).json()["overlap"]
    assert scaled[0]["scaled"]
    assert scaled[0]["share"] != first["share"]
    gated = page.post("/api/plan", json={"bricks": TWO, "scaling": "lda"}).json()["overlap"]
    assert not gated[0]["scaled"]
    assert [row["share"] for row in gated] == [row["share"] for row in plan["overlap"]]


def test_overlap_of_labelled_images_is_counted(digits_yard) -> None:
    parts = [digits_yard.load(name) for name in TWO]
    whole = by.assemble(parts, scaling="none")
    data = load_data("digits", split="test")
    images = []
    for part in parts:
        own = data.of_classes(list(part.classes))
        labels = torch.tensor([part.manifest.source.classes.index(data.classes[k]) for k in own.labels.tolist()])
        images.append((own.images, labels))
    seen = shared_signals(whole, images, features=False)
    found = {(row["of"], row["by"]): row for row in measured(whole.manifest, seen.signals[0], seen.owners)}
    answers = whole.predict(images[0][0], strangers="answer")
    assert found[0, 1]["images"] == len(answers)
    assert found[0, 1]["won"] == sum(answer in "789" for answer in answers)
    assert found[1, 0]["won"] == sum(answer in "012" for answer in whole.predict(images[1][0], strangers="answer"))


# -- what it refuses -------------------------------------------------------------------------------------------


def test_unknown_bricks_and_paths_are_refused(page, digits_yard, tmp_path) -> None:
    digits_yard.load("digits-012").save(tmp_path / "outside.safetensors")
    for name in ("nothing", "../outside", str(tmp_path / "outside"), "digits-012.safetensors", "samples", "", "a\0b"):
        assert build(page, [name], code=400)["error"]
        assert page.post("/api/plan", json={"bricks": [name]}).status_code == 400
        assert page.get("/api/inside", params={"brick": name}).status_code == 400
    key = build(page)["id"]
    for name in ("../index.sqlite", "index.sqlite", str(tmp_path / "outside.safetensors"), "..", ""):
        assert page.post(f"/api/assemblies/{key}/classify", params={"sample": name}).status_code == 400
        assert page.get("/api/sample", params={"name": name}).status_code == 400
    for name in ("../app.py", "..%2fapp.py", "building.py", "%2e%2e/app.py"):
        assert page.get(f"/static/{name}").status_code == 404


@pytest.mark.parametrize(
    ("plan", "quoted"),
    [
        ({"bricks": []}, ""),
        ({"bricks": "digits-012"}, ""),
        ({"bricks": ["digits-012", "digits-012"]}, ""),
        ({"bricks": [f"b{k}" for k in range(25)]}, "24"),
        ({"bricks": TWO, "form": "spiral"}, "'spiral'"),
        ({"bricks": TWO, "scaling": "luck"}, "'luck'"),
        ({"bricks": TWO, "scaling": ["none"]}, "scaling"),
        ({"bricks": TWO, "form": {}}, "form"),
        ({"bricks": TWO, "path": "/etc"}, ""),
        ([], ""),
        ({"bricks": TWO, "scaling": "lda"}, "'lda'"),
        ({"bricks": TWO, "scaling": "mahalanobis", "form": "padded"}, "form='parallel'"),
        ({"bricks": ["digits-012", "hostile"], "form": "padded"}, "form='parallel'"),
    ],
)
def test_plans_that_cannot_be_built_say_why(page, plan, quoted) -> None:
    answer = page.post("/api/assemblies", data={"plan": json.dumps(plan)})
    assert answer.status_code == 400
    assert quoted in answer.json()["error"]


def test_what_is_no_plan_is_refused(page) -> None:
    for text in (b"", b"{", b"[" * 60_000, b"\xff\xfe", b" " * 70_000):
        answer = page.post("/api/plan", content=text)
        assert (answer.status_code, "plan" in answer.json()["error"]) == (400, True)


def test_what_is_no_picture_is_refused(page) -> None:
    key = build(page)["id"]
    whole = encoded(Image.effect_noise((64, 64), 50))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for content in (b"", b"hello", postscript, b"<svg xmlns='http://www.w3.org/2000/svg'/>", whole[: len(whole) // 2]):
        answer = page.post(f"/api/assemblies/{key}/classify", files={"picture": ("../../x.png", content)})
        assert answer.status_code == 400
        assert "x.png" in answer.json()["error"]
        assert ".." not in answer.json()["error"]
    assert page.post(f"/api/assemblies/{key}/classify").status_code == 400


def test_uploads_are_bounded(digits_yard) -> None:
    small = Limits(file_bytes=5000, files=14, body_bytes=60_000, pixels=100)
    page = TestClient(create_app(digits_yard, limits=small), base_url=HERE)
    path = f"/api/assemblies/{build(page)['id']}/classify"
    fine = encoded(Image.new("L", (10, 10)))
    assert page.post(path, files={"p": ("a.png", fine)}).status_code == 200
    assert "100 x 2" in page.post(path, files={"p": ("a.png", encoded(Image.new("L", (100, 2))))}).json()["error"]
    assert page.post(path, files={"p": ("a.png", fine + b"\0" * 5000)}).status_code == 400
    assert page.post(path, files=[("p", ("a.png", fine))] * 14).status_code == 200
    assert page.post(path, files=[("p", ("a.png", fine))] * 15).status_code == 400
    assert page.post(path, files={"p": ("a.png", b"\0" * 70_000)}).status_code == 413

    def drip():
        for _ in range(100):
            yield b"x" * 1000

    assert page.post("/api/plan", content=drip()).status_code == 413  # no Content-Length: counted as it comes


def test_labelled_pictures_must_fit_the_plan(page) -> None:
    pictures = shots(1)
    missing = build(page, pictures=pictures[1:], scaling="lda", code=400)
    assert "'0'" in missing["error"]
    for field in ("9.0", "0.7", "x", "0", "-1.0", "0.0.0"):
        assert build(page, pictures=[*pictures, (field, pictures[0][1])], scaling="lda", code=400)["error"]


def test_only_the_last_classifiers_are_kept(digits_yard) -> None:
    page = TestClient(create_app(digits_yard, limits=Limits(assemblies=2)), base_url=HERE)
    first, second = build(page)["id"], build(page)["id"]
    ask = "/api/assemblies/{}/classify?sample=digit-1.png"
    assert page.post(ask.format(first)).status_code == 200  # used last: the second goes first
    third = build(page)["id"]
    assert [page.post(ask.format(key)).status_code for key in (first, second, third)] == [200, 404, 200]
    assert len({first, second, third}) == 3


# -- who may ask -------------------------------------------------------------------------------------------------


def test_foreign_hosts_and_pages_are_refused(page, digits_yard) -> None:
    foreign = ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "10.0.0.1", "[::1", "a b")
    for host in (*foreign, "localhost.", "unix:/run/x", "[::1%25lo]:8000", "127.0.0.1:0", "0x7f.1"):
        assert page.get("/api/yard", headers={"host": host}).status_code == 421, host
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert page.get("/api/yard", headers={"host": host}).status_code == 200, host
    plan = {"bricks": TWO}
    for origin in ("http://evil.example", "null", "http://localhost:9", "http://127.0.0.1:80000", "file://"):
        assert page.post("/api/plan", json=plan, headers={"origin": origin}).status_code == 403, origin
    for site in ("cross-site", "same-site"):
        assert page.post("/api/plan", json=plan, headers={"sec-fetch-site": site}).status_code == 403
        assert page.get("/api/yard", headers={"sec-fetch-site": site}).status_code == 403
    own = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert page.post("/api/plan", json=plan, headers=own).status_code == 200


def test_a_token_is_asked_of_every_request(digits_yard) -> None:
    def fresh() -> TestClient:
        app = create_app(digits_yard, token="secret", hosts=("bench.example",))
        return TestClient(app, base_url="http://bench.example", follow_redirects=False)

    page = fresh()
    for path in ("/", "/api/yard", "/static/app.js", "/?token=wrong", "/?token=", "/?token=secre", "/?token=%ff"):
        assert page.get(path).status_code == 401, path
    assert page.get("/api/yard", headers={"cookie": "brickyard-token=other"}).status_code == 401
    assert page.get("/api/yard", headers={"x-brickyard-token": "secret"}).status_code == 200
    assert page.get("/api/yard").status_code == 401  # a header gives no cookie
    answer = page.get("/?token=secret&a=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?a=1")
    assert {"HttpOnly", "SameSite=Strict"} <= set(answer.headers["set-cookie"].split("; "))
    assert page.get("/api/yard").status_code == 200
    assert page.post("/api/plan", json={"bricks": TWO}).status_code == 200
    token = {"x-brickyard-token": "secret"}
    assert fresh().get("/api/yard", headers={"host": "evil.example", **token}).status_code == 421
    assert fresh().get("/api/yard", headers={"host": "192.168.0.7:8000", **token}).status_code == 200


def test_every_answer_has_the_safety_headers(page) -> None:
    for path, code in (("/", 200), ("/static/app.js", 200), ("/api/yard", 200), ("/nowhere", 404)):
        answer = page.get(path)
        assert answer.status_code == code
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    assert page.get("/docs").status_code == page.get("/openapi.json").status_code == 404


def test_the_page_is_self_contained_and_never_writes_markup() -> None:
    folder = files("brickyard.workbench") / "static"
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    for name, text in texts.items():
        outside = set(re.findall(r"https?://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, name
    script = "".join(text for name, text in texts.items() if name.endswith(".js"))
    assert "textContent" in script
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in script
    assert not re.search(r"\son\w+=|<style|style=|<script>", texts["index.html"])
    for found in re.findall(r"\$\(\"([a-z-]+)\"\)", script):
        assert f'id="{found}"' in texts["index.html"], found


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_serves_the_page(digits_yard) -> None:
    with commanded(digits_yard) as line:
        address = re.search(r"http://127\.0\.0\.1:\d+/", line).group()
        assert "token" not in line
        assert len(json.load(urllib.request.urlopen(f"{address}api/yard", timeout=600))["bricks"]) == 4
    with commanded(digits_yard, "--host", "0.0.0.0") as line:
        port, token = re.search(r":(\d+)/\?token=(\S+)", line).groups()
        assert len(token) >= 32
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/yard", timeout=600)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/yard", headers={"x-brickyard-token": token})
        assert len(json.load(urllib.request.urlopen(request, timeout=600))["bricks"]) == 4


def test_the_command_says_what_is_wrong(tmp_path) -> None:
    (tmp_path / "none").write_text("no folder")
    assert "none" in run("workbench", "--yard", tmp_path / "none", "--port", "0", code=1).stderr
    assert "203.0.113.1" in run("workbench", "--yard", tmp_path, "--host", "203.0.113.1", code=1).stderr
