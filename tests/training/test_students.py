"""Students: one network of any architecture, taught by a component or an assembly without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import brickyard as by
from brickyard.inputs import ImageData, load_data
from brickyard.network._identity import fingerprint
from brickyard.testing import chain
from brickyard.training import _loop as loop
from brickyard.training import build_seeded, distil, train
from errors import refused
from shell import run, save_folder

HOW = by.Preprocessing(size=(16, 16), channels=1, mean=(0.3,), std=(0.4,))
LIKE = "zoo:cnn?width=0.125"
ALL = {"budget": by.Budget(flops=1.0), "select": "mda", "heal": "none"}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits?classes=0-3").renumbered(["0", "1", "2", "3"])


@pytest.fixture(scope="module")
def cut(digits) -> Callable[..., by.Component]:
    """Cuts components of one source, with all of its channels."""
    source = build_seeded("cnn", 4, 0.25, channels=1)
    train(source, digits, preprocessing=HOW, epochs=4, lr=0.05)
    relevance = by.locate(source, digits, preprocessing=HOW, per_class=5)
    return lambda task, **more: by.disassemble(source, relevance, task=task, **ALL, **more)


@pytest.fixture(scope="module")
def pair(cut) -> list[by.Component]:
    return [cut(["3", "1"]), cut(["0"])]


@pytest.fixture(scope="module")
def whole(pair) -> by.Assembly:
    return by.assemble(pair)


@pytest.fixture(scope="module")
def student(whole, digits) -> by.Component:
    return distil(whole, digits, like=LIKE, epochs=15, lr=0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory, whole, digits) -> Path:
    """The assembly in a file, and photographs as people keep them."""
    folder = tmp_path_factory.mktemp("students")
    whole.save(folder / "whole.safetensors")
    save_folder(digits.subset(range(48)), folder / "split" / "train")
    save_folder(digits.subset(range(48, 90)), folder / "split" / "test")
    (folder / "flat").mkdir()
    for k, image in enumerate(digits.images[:48, 0].numpy()):
        picture = Image.fromarray(image)
        picture = picture.convert("RGB") if k % 3 == 0 else picture
        picture.resize((8 + k % 4, 9)).save(folder / "flat" / f"{k}.png")
    np.savez(folder / "x.npz", images=digits.images[:48].numpy())
    (folder / "empty").mkdir()
    (folder / "zip.zip").write_bytes(b"PK")
    (folder / "net.py").write_text(NET)
    return folder


NET = """from torch import nn

def fixed(classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
"""


def test_a_student_agrees_far_more_often_than_one_without_training(whole, digits, student) -> None:
    assert student.classes == ("3", "1", "0") == whole.classes
    held = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[: len(digits) // 5]
    images = digits.images[held]
    same = sum(
        a == b
        for a, b in zip(
            student.predict(images, strangers="answer"), whole.predict(images, strangers="answer"), strict=True
        )
    )
    assert student.manifest.agreement == (same, len(images))
    untrained = distil(whole, digits, like=LIKE, epochs=1, lr=1e-12)
    assert same > 0.85 * len(images)
    assert untrained.manifest.agreement[0] < same - 0.2 * len(images)
    tuned = student.manifest.tuned
    assert (tuned.images, tuned.validation, tuned.epochs) == (len(digits) - len(images), len(images), 15)
    assert "with its teacher on" in str(student)


def test_the_same_seed_gives_the_same_bits(whole, digits, tmp_path) -> None:
    def made(**options) -> by.Component:
        torch.manual_seed(int(torch.randint(1 << 30, ())))  # what the caller draws changes nothing
        return distil(whole, digits.subset(range(90)), like=LIKE, epochs=1, **options)

    first, again, other = made(), made(), made(seed=1)
    for name, one in (("a", first), ("b", again)):
        one.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert fingerprint(other) != fingerprint(first)


def test_nothing_of_the_callers_changes(whole, digits) -> None:
    like, before = chain(classes=3), fingerprint(whole)
    like[0] = nn.Conv2d(1, 6, 3, padding=1)
    colour = digits.subset(range(40)).images.expand(-1, 3, -1, -1)
    with refused("data-wrong-size", "1 x 16 x 16"):  # the channels of its preprocessing are 1: this is what it takes
        distil(by.assemble([part.with_preprocessing(by.Preprocessing()) for part in whole.parts]), colour, like=LIKE)
    own, state = fingerprint(like), torch.get_rng_state()
    found = distil(whole, colour, like=like, epochs=1)
    assert found.classes == whole.classes
    assert (own, before) == (fingerprint(like), fingerprint(whole))
    assert torch.equal(state, torch.get_rng_state())
    assert all(value.grad is None for value in [*like.parameters(), *whole.parameters()])


def test_a_student_has_its_teachers_output_for_none_of_these(cut, digits) -> None:
    found = distil(cut(["2", "0"], reject=True), digits, like=LIKE, epochs=12, lr=0.01)
    assert found.reject
    images = digits.of_classes([1, 3]).images
    assert found.predict(images).count("(none of these)") > 0.7 * len(images)
    assert found.predict(digits.of_classes([0]).images).count("0") > 100
    with refused("option-wrong-object", "'0'", "reject"):
        distil(cut(["0"]), digits, like=LIKE)


def test_a_student_of_several_classes_at_once_keeps_their_thresholds() -> None:
    generator = torch.Generator().manual_seed(0)
    images, rows = torch.rand(40, 3, 16, 16, generator=generator), torch.eye(4).repeat(10, 1).long()
    relevance = by.locate(chain(), (images, rows), outputs="several")
    teacher = by.disassemble(chain(), relevance, task=["1", "3"], decision_thresholds={"3": 0.7})
    found = distil(teacher, images, like=LIKE, epochs=1)
    assert found.manifest.outputs == "several"
    assert found.manifest.decision_thresholds == teacher.manifest.decision_thresholds == (0.5, 0.7)


@pytest.mark.parametrize(("form", "held"), [("flat", 16), ("split", 16), ("x.npz", 16)])
def test_photographs_may_lie_in_any_form(place, form, held, tmp_path) -> None:
    """Grey or coloured, of various sizes, in folders of classes or none; test images stay unseen."""
    out = tmp_path / "one.safetensors"
    result = run(
        *("distil", place / "whole.safetensors", "--images", place / form, "--like", LIKE, "--epochs", 2),
        *("-o", out, "--json"),
    )
    value = json.loads(result.stdout)
    assert value["classes"] == ["3", "1", "0"]
    assert value["agreement"]["images"] == held
    assert f"{held} images held back" in result.stderr
    one, rows = by.load(out), value["sizes"]
    assert [row["bytes"] for row in rows] == [(place / "whole.safetensors").stat().st_size, out.stat().st_size]
    assert rows[1]["parameters"] == sum(p.numel() for p in one.parameters()) == one.manifest.selection.parameters
    share = value["agreement"]["share"]
    assert value["agreement"]["error"] == pytest.approx((share * (1 - share) / held) ** 0.5)
    assert one.manifest.agreement == (value["agreement"]["same"], held)


def test_a_student_is_a_component_like_others(student, digits, pair, tmp_path) -> None:
    student.save(tmp_path / "one.safetensors")
    one = by.load(tmp_path / "one.safetensors")
    assert torch.equal(one.predict_proba(digits.images[:9]), student.predict_proba(digits.images[:9]))
    assert by.assemble([one, pair[0]], on_duplicate="average").classes == ("3", "1", "0")
    test = load_data("digits?split=test&classes=0,1,3").renumbered(["3", "1", "0"])
    assert by.evaluate(one, test, latency=False).rows[-1].accuracy > 80
    for form in ("padded", "grouped"):
        assert by.assemble([one, one.renamed({"3": "c", "1": "b", "0": "a"})], form=form).classes[3:] == ("c", "b", "a")


def test_stopping_leaves_no_file(place, tmp_path, monkeypatch) -> None:
    words = ["distil", place / "whole.safetensors", "--images", place / "flat", "--like", LIKE, "--epochs", 9]
    real, seen = loop._epoch, []

    def stopped(*given) -> float:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(loop, "_epoch", stopped)
    run(*words, "-o", tmp_path / "one.safetensors", code=130)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    run(*words, "-o", tmp_path / "one.safetensors")  # the control
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


REFUSED = {
    "the output is there": ("flat", LIKE, "whole.safetensors", ["whole.safetensors", "--force"]),
    "no folder": ("nowhere", LIKE, "", ["nowhere"]),
    "no pictures": ("empty", LIKE, "", ["empty"]),
    "one picture": ("flat/1.png", LIKE, "", ["1.png", "folder"]),
    "an archive": ("zip.zip", LIKE, "", ["zip.zip", "unpack"]),
    "an unknown architecture": ("flat", "zoo:resnet21", "", ["resnet21", "resnet20"]),
    "an unknown kind": ("flat", "resnet20", "", ["'resnet20'", "zoo:"]),
    "other outputs": ("flat", "zoo:cnn?classes=5", "", ["5", "3"]),
    "another input size": ("flat", "PLACE/net.py:fixed", "", ["net.py:fixed", "1 x 16 x 16"]),
    "other channels": ("flat", "zoo:cnn?channels=3", "", ["cnn?channels=3", "1 x 16 x 16"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_work(place, name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("brickyard.training._students.fit", None)
    images, like, out, quoted = REFUSED[name]
    target = place / out if out else tmp_path / "one.safetensors"
    words = ["--images", place / images, "--like", like.replace("PLACE", str(place)), "-o", target]
    result = run("distil", place / "whole.safetensors", *words, code=1)
    for text in quoted:
        assert text in result.stderr, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_python_gives_is_checked(whole, digits) -> None:
    with refused("option-wrong-object", "distil", "Sequential"):
        distil(chain(), digits, like=LIKE)
    with refused("option-type", "zoo:resnet20", "int"):
        distil(whole, digits, like=7)
    with refused("option-count", "3", "4"):
        distil(whole, digits, like=nn.Sequential(nn.Flatten(), nn.Linear(256, 4)))
    with refused("data-too-few", "9", "10"):
        distil(whole, digits.subset(range(9)), like=LIKE)
    with refused("data-not-batchable", "2 sizes"):
        distil(whole, [np.zeros((9, 9), np.uint8), np.zeros((8, 8), np.uint8)] * 9, like=LIKE)
    with refused("option-training-diverged", "lr="):
        distil(whole, digits.subset(range(30)), like=LIKE, lr=1e30, epochs=50)
