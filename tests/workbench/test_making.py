"""Bricks that are made on the page: they are what Python makes of the same options, and what may not be asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import brickyard as by
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.sources._loading import Source, load_source, save_source
from brickyard.training._sources import build_seeded
from brickyard.yard._yard import Yard
from workbench_yard import HOW, encoded

if os.environ.get("CI") != "true":
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'brickyard[workbench]'")

from fastapi.testclient import TestClient

from brickyard.workbench._app import create_app
from brickyard.workbench._limits import Limits

HERE = "http://127.0.0.1:8000"
SMALL = {"source": {"file": "small.safetensors"}, "pictures": {"data": "digits"}}
TASK = {"one": ["1"], "round": ["0", "8"], "7": ["7"]}


def save_small(path: Path) -> Path:
    model = build_seeded("cnn", 10, 0.25, channels=1)
    options = {"width": 0.25, "channels": 1}
    save_source(path, Source(model, "cnn", tuple(map(str, range(10))), HOW, (1, 16, 16)), arch="cnn", options=options)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("beside") / "sources"
    folder.mkdir()
    save_small(folder / "small.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no model")
    digits = load_data("digits")
    for digit in "07":
        (folder / "photos" / digit).mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.labels == int(digit)][:4]):
            (folder / "photos" / digit / f"{number}.png").write_bytes(encoded(image))
    secret = folder.parent / "secret"
    shutil.copytree(folder / "photos", secret)
    save_small(folder.parent / "secret.safetensors")
    (folder / "link.safetensors").symlink_to(folder.parent / "secret.safetensors")
    (folder / "linked").symlink_to(secret)
    shutil.copytree(folder / "photos", folder / "mixed")
    (folder / "mixed" / "0" / "link.png").symlink_to(secret / "0" / "0.png")
    return folder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: other processes add in the same order then


def served(tmp_path: Path, sources: Path | None, **limits) -> TestClient:
    app = create_app(Yard(tmp_path / "yard", create=True), sources=sources, limits=Limits(**limits))
    return TestClient(app, base_url=HERE)


@pytest.fixture
def page(tmp_path, sources):
    found = served(tmp_path, sources)
    yield found
    found.app.state.makings.close()


def begun(page, code=200, **order):
    answer = page.post("/api/makings", json=order)
    assert answer.status_code == code, answer.text
    return answer.json()


def ended(page, key, until=("done", "failed", "cancelled")):
    while (found := page.get(f"/api/makings/{key}").json())["state"] not in until:
        time.sleep(0.1)
    return found


def made(page, **order):
    return ended(page, begun(page, **order)["id"])


def kept(page, found, size, name):
    answer = page.post(f"/api/makings/{found['id']}/keep", json={"size": size, "name": name})
    assert answer.status_code == 200, answer.text
    return by.load(Path(page.app.state.bench.yard.path) / f"{answer.json()['name']}.safetensors")


def same(left: by.Component, right: by.Component) -> bool:
    """Whether two components are equal, tensor for tensor, and in what their manifests say."""
    ours, theirs = left.network.state_dict(), right.network.state_dict()
    alike = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return alike and left.manifest == right.manifest


def small(sources: Path, images: ImageData, task, size: float, **more) -> by.Component:
    source = load_source(sources / "small.safetensors")
    wanted = [name for group in task.values() for name in group]
    given = {"classes": source.classes, "preprocessing": source.preprocessing, "task": wanted, "name": source.name}
    relevance = by.locate(source.model, images, **given)
    return by.disassemble(source.model, relevance, task=task, budget=by.Budget(flops=size), **more)


def test_a_brick_is_what_the_same_options_give_in_python(page, sources) -> None:
    found = made(page, kind="cut", task=TASK, sizes=[0.9, 0.6], reject=True, **SMALL)
    assert found["state"] == "done", found["error"]
    expected = small(sources, load_data("digits", size=HOW), TASK, 0.6, reject=True)
    part = kept(page, found, 0.6, "mine")
    assert part.classes[:3] == ("one", "round", "7")
    assert same(part, expected)
    assert not same(kept(page, found, 0.9, "larger"), expected)  # the control
    point = found["points"][0]
    assert [one["size"] for one in found["points"]] == [0.6, 0.9]
    agreed, held = expected.manifest.agreement
    assert (point["agreement"], point["held"]) == (agreed / held, held)
    assert point["flops"] == [expected.manifest.selection.flops, expected.manifest.source.flops]
    assert [brick["name"] for brick in page.get("/api/yard").json()["bricks"]] == ["larger", "mine"]


def sent(page, pictures) -> list[str]:
    files = [("picture", (f"{number}.png", encoded(image))) for number, image in enumerate(pictures)]
    answer = page.post("/api/uploads/pictures", files=files).json()
    assert answer["refused"] == []
    return [item["id"] for item in answer["pictures"]]


def test_pictures_that_were_sent_and_a_model_that_was_sent_give_the_same(page, sources, tmp_path) -> None:
    digits, content = load_data("digits"), (sources / "small.safetensors").read_bytes()
    upload = page.put("/api/uploads/model?name=../../small.safetensors", content=content).json()
    assert upload["name"] == "small.safetensors"
    images = {digit: digits.images[digits.labels == digit][:20] for digit in (0, 7, 3)}
    labelled = [{"id": key, "label": digit} for digit in (0, 7) for key in sent(page, images[digit])]
    loose = [{"id": key} for key in sent(page, images[3])]
    order = {"source": {"upload": upload["id"]}, "task": {"0": ["0"], "7": ["7"]}, "sizes": [0.7]}
    found = made(page, kind="cut", pictures={"shown": labelled + loose}, **order)
    assert found["state"] == "done", found["error"]
    both = torch.cat([images[0], images[7]])
    names = tuple(map(str, range(10)))
    given = ImageData(both, torch.tensor([0] * 20 + [7] * 20), names, "pictures from the page")
    more = []
    for number, image in enumerate(images[3]):
        more.append(tmp_path / f"{number:05}.png")
        more[-1].write_bytes(encoded(image))
    expected = small(sources, given, order["task"], 0.7, more_images=more)
    assert same(kept(page, found, 0.7, None), expected)
    assert not same(
        kept(page, found, 0.7, None), small(sources, given, order["task"], 0.7)
    )  # without them: the control


def test_a_source_is_looked_at(page) -> None:
    found = made(page, kind="look", **SMALL)["source"]
    counts = torch.bincount(load_data("digits").labels, minlength=10).tolist()
    assert (found["classes"], found["pictures"]) == ([str(k) for k in range(10)], counts)
    named = made(page, kind="look", source={"file": "small.safetensors", "names": "a,b,c,d,e,f,g,h,i,j"})["source"]
    assert (named["classes"], named["pictures"]) == (list("abcdefghij"), None)


def test_the_list_has_what_is_beside_the_server_and_no_links(page) -> None:
    found = page.get("/api/shelf").json()
    assert [item["name"] for item in found["models"]] == ["broken.safetensors", "small.safetensors"]
    assert [(item["name"], item["kind"]) for item in found["data"]] == [("mixed", "classes"), ("photos", "classes")]


REFUSED = [
    ({"source": {"file": "../secret.safetensors"}}, "file-missing"),
    ({"source": {"file": "link.safetensors"}}, "file-missing"),
    ({"source": {"file": "/etc/passwd"}}, "file-missing"),
    ({"source": {"upload": "no-such-upload"}}, "workbench-gone"),
    ({"source": {}}, "option-requires-option"),
    ({"source": {"file": "small.safetensors", "network": "hf:some/model"}}, "option-source-unknown"),
    ({"source": {"file": "small.safetensors", "network": "evil.py:make"}}, "option-source-unknown"),
    ({"source": {"file": "small.safetensors", "network": "timm:x?checkpoint_path=1"}}, "option-source-unknown"),
    ({"source": {"file": "small.safetensors", "names": "a", "imagenet": True}}, "option-conflict"),
    ({"source": {"file": "small.safetensors", "names_file": "../names.txt"}}, "file-missing"),
    ({"pictures": {"data": "../secret"}}, "file-missing"),
    ({"pictures": {"data": "linked"}}, "file-missing"),
    ({"pictures": {"data": "hf:some/data"}}, "file-missing"),
    ({"pictures": {"shown": [{"id": "none"}]}}, "workbench-gone"),
    ({"pictures": {}}, "option-needs-data"),
    ({"task": {}}, "option-empty"),
    ({"task": ["0"]}, "option-plan-invalid"),
    ({"sizes": []}, "option-range"),
    ({"sizes": [0.5] * 9}, "option-range"),
    ({"sizes": [0]}, "option-plan-invalid"),
    ({"sizes": [1e999]}, "option-plan-invalid"),
    ({"kind": "run"}, "option-plan-invalid"),
    ({"more": 1}, "option-plan-invalid"),
]


@pytest.mark.parametrize(("change", "code"), REFUSED, ids=lambda value: str(value)[:60])
def test_orders_that_are_refused(page, change, code) -> None:
    order = {"kind": "cut", "task": {"0": ["0"]}, "sizes": [0.5], **SMALL, **change}
    content = json.dumps(order).replace("Infinity", "1e999")
    answer = page.post("/api/makings", content=content)
    assert (answer.status_code, answer.json()["code"]) == (404 if code == "workbench-gone" else 400, code), answer.text


WRONG = [
    ({"source": {"file": "broken.safetensors"}}, "file-"),
    ({"pictures": {"data": "mixed"}}, "file-path-invalid"),
    ({"task": {"eleven": ["11"]}}, "task-unknown-class"),
]


def test_errors_of_the_library_are_told_as_they_are_and_nothing_is_left(page, sources) -> None:
    for change, code in WRONG:
        found = made(page, **{"kind": "cut", "task": {"0": ["0"], "7": ["7"]}, "sizes": [0.5], **SMALL, **change})
        assert found["state"] == "failed"
        assert found["error"]["code"].startswith(code), found["error"]
        assert str(sources) not in json.dumps(found)
        assert not Path(page.app.state.makings.found(found["id"]).folder.name).exists()
    assert page.get("/api/yard").json()["bricks"] == []


def test_uploads_are_bounded_in_kind_size_and_number(tmp_path, sources) -> None:
    page = served(tmp_path, sources, model_bytes=1 << 20, kept_bytes=3 << 20, kept_files=3)
    store = page.app.state.makings.store
    folder = store.folder

    def put(name, content):
        return page.put(f"/api/uploads/model?name={name}", content=content)

    assert put("m.pt", b"x").json()["code"] == "file-wrong-kind"
    assert put("m.safetensors", b"").json()["code"] == "file-wrong-kind"
    assert put("m.onnx", bytes((1 << 20) + 1)).status_code == 413
    assert put("m.onnx", (bytes(1 << 19) for _ in range(3))).status_code in (400, 413)  # of no told length
    assert list(folder.iterdir()) == []
    refused = page.post("/api/uploads/pictures", files=[("picture", ("a.png", b"<svg/>"))]).json()
    assert [item["code"] for item in refused["refused"]] == ["data-unreadable-image"]
    keys = [put("m.onnx", bytes([number]) * 1000).json()["id"] for number in range(3)]
    store.hold(keys[:1], 1)
    keys.append(put("m.onnx", b"more").json()["id"])  # the oldest that nothing needs goes
    gone = [begun(page, 404, kind="look", source={"upload": key})["code"] for key in keys[1:2]]
    assert gone == ["workbench-gone"]
    assert len(list(folder.iterdir())) == 3
    store.hold(keys[2:], 1)
    assert put("m.onnx", b"again").json()["code"] == "workbench-full"
    page.app.state.makings.close()
    assert not folder.exists()


def test_two_at_once_wait_for_each_other_and_are_cancelled(page) -> None:
    order = {"kind": "cut", "task": TASK, "sizes": [1.0, 0.7, 0.5], **SMALL}
    first, second = begun(page, **order), begun(page, **order)
    assert (first["state"], second["state"], second["before"]) == ("working", "waiting", 1)
    makings = page.app.state.makings
    process, folder = makings.found(first["id"]).process, Path(makings.found(first["id"]).folder.name)
    assert folder.exists()
    assert process.is_alive()
    other = makings.begin(makings.found(first["id"]).order, "another visitor")
    assert other.state == "working"  # one visitor's work does not stop another's
    makings.cancel(other.key)
    looks = [begun(page, kind="look", **SMALL) for _ in range(2)]
    assert [one["state"] for one in looks] == ["working", "waiting"]  # nor a brick a look by the same visitor
    for one in looks:
        page.delete(f"/api/makings/{one['id']}")
    found = page.delete(f"/api/makings/{first['id']}").json()
    assert found["state"] == "cancelled"
    assert not process.is_alive()
    assert not folder.exists()
    assert ended(page, second["id"], ("working",))["state"] == "working"  # its turn has come
    page.delete(f"/api/makings/{second['id']}")
    gone = page.post(f"/api/makings/{first['id']}/keep", json={"size": 1.0})
    assert gone.json()["code"] == "option-range"
    assert page.get("/api/makings/none").status_code == 404
    assert page.get("/api/yard").json()["bricks"] == []


def test_a_python_file_is_sent_to_the_command_line(page) -> None:
    for network, says in (("birdnet.py:birds", True), ("birdnet.py", True), ("zoo:happy", False), ("birds", False)):
        order = {"kind": "look", "source": {"file": "small.safetensors", "network": network}}
        found = page.post("/api/makings", json=order)
        text = found.json().get("error") or ""
        assert (f"`brickyard disassemble {network} ...`" in text) == says, text
        assert (found.status_code == 200) == network.startswith("zoo:")


def test_a_folder_of_sources_that_is_missing_leaves_no_yard(tmp_path) -> None:
    command = [sys.executable, "-m", "brickyard", "workbench", "--yard", str(tmp_path / "new"), "--port", "0"]
    found = subprocess.run([*command, "--sources", str(tmp_path / "missing")], capture_output=True, text=True)
    assert (found.returncode, "does not exist" in found.stderr) == (1, True), found.stderr
    assert not (tmp_path / "new").exists()


def test_no_more_wait_than_may(tmp_path, sources) -> None:
    page = served(tmp_path, sources, makings_waiting=1)
    order = {"kind": "look", **SMALL}
    keys = [begun(page, **order)["id"] for _ in range(2)]
    assert begun(page, 503, **order)["code"] == "workbench-busy"
    page.app.state.makings.close()
    assert {page.get(f"/api/makings/{key}").json()["state"] for key in keys} == {"cancelled"}


def test_a_signal_ends_the_server_while_it_cuts(tmp_path, sources) -> None:
    import re
    import urllib.request

    command = [sys.executable, "-m", "brickyard", "workbench", "--yard", str(tmp_path / "new"), "--port", "0"]
    with subprocess.Popen([*command, "--sources", str(sources)], stderr=subprocess.PIPE, text=True) as server:
        try:
            line = next(line for line in server.stderr if "http://" in line)
            address = re.search(r"http://\S+", line).group()
            order = {"kind": "cut", "task": TASK, "sizes": [1.0, 0.8, 0.6, 0.4], **SMALL}
            asked = urllib.request.Request(f"{address}api/makings", json.dumps(order).encode(), method="POST")
            key = json.load(urllib.request.urlopen(asked))["id"]
            while "Cutting" not in json.load(urllib.request.urlopen(f"{address}api/makings/{key}"))["stage"]:
                time.sleep(0.1)
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
            workers = [pid for pid in Path(f"/proc/{server.pid}/task").glob("*/children") if pid.read_text().split()]
            started = {int(pid) for path in workers for pid in path.read_text().split()}
            assert started, children
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) in (0, 143)
        finally:
            server.kill()
    alive = {
        pid for pid in started if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
    }
    assert alive == set()
    assert sorted(path.name for path in (tmp_path / "new").glob("*.safetensors")) == []


@pytest.mark.slow
def test_the_demo_fills_an_empty_yard_once(tmp_path) -> None:
    page = served(tmp_path, None)
    first = begun(page, kind="demo")
    assert begun(page, kind="demo")["id"] == first["id"] == page.get("/api/shelf").json()["demo"]
    found = ended(page, first["id"])
    assert found["state"] == "done", found["error"]
    value = page.get("/api/yard").json()
    assert [brick["name"] for brick in value["bricks"]] == ["digits-012", "digits-345", "digits-678", "digits-89"]
    assert min(brick["accuracy"] for brick in value["bricks"]) > 0.9
    assert len(value["samples"]) == 20
    assert [item["name"] for item in page.get("/api/shelf").json()["models"]] == [
        "digits-0-to-5.safetensors",
        "digits-4-to-9.safetensors",
    ]
    assert begun(page, 400, kind="demo")["code"] == "option-conflict"
    page.app.state.makings.close()
