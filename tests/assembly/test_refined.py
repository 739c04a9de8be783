"""Refined detectors: boxes of a class are cut out and named further by a classifier."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import brickyard as by
from brickyard.assembly import Refined, refine
from brickyard.component._predictor import REJECT
from brickyard.testing import Detector, chain
from errors import refused

NAMES = ["ant", "bee", "cow", "dog"]
BREEDS = ["collie", "poodle", "spitz", "boxer"]
SIZE = by.Preprocessing(size=(8, 8), channels=3)
LETTERBOX = by.Preprocessing(size=(32, 32), channels=3, fit="letterbox")
RAW = 0.3  # score above which boxes are asked for: some hundred a picture


def part_of(task: list[str]) -> by.Component:
    source = Detector()
    shown = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.eye(4).long().repeat(3, 1)
    how: Any = {"outputs": Detector.boxes, "classes": NAMES, "preprocessing": LETTERBOX}
    return by.disassemble(source, by.locate(source, shown, **how), task=task, heal="none")


def classifier_of(task: list[str], names: list[str] = BREEDS, **options: Any) -> by.Component:
    source, images = chain(), torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(80) % 4
    located = by.locate(source, (images, labels), classes=names, preprocessing=SIZE, per_class=8)
    return by.disassemble(source, located, task=task, **options)


@pytest.fixture(scope="module")
def detector() -> by.Component:
    return part_of(["dog", "bee"])


@pytest.fixture(scope="module")
def breeds() -> by.Component:
    return classifier_of(["collie", "spitz"], reject=True)


def picture(height: int = 40, width: int = 56, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_hand(
    detector: by.Component, classifier: Any, array: np.ndarray[Any, Any], margin: float
) -> list[dict[str, Any]]:
    """What a refined detector says, with a picture of Pillow's, its crops, and the answers to each alone."""
    whole = Image.fromarray(array)
    (found,) = detector.detect(whole, score=RAW)
    told = []
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        name = detector.classes[label]
        if name == "bee":
            left, top, right, bottom = box
            wide, high = margin * (right - left), margin * (bottom - top)
            start = [
                min(max(0, math.floor(left - wide)), whole.width - 1),
                min(max(0, math.floor(top - high)), whole.height - 1),
            ]
            end = [min(whole.width, math.ceil(right + wide)), min(whole.height, math.ceil(bottom + high))]
            crop = whole.crop((*start, *(max(low + 1, high) for low, high in zip(start, end, strict=True))))
            (answer,) = classifier.predict([crop])
            if answer != REJECT:
                score *= float(classifier.predict_proba([crop])[0, classifier.classes.index(answer)])
                name = answer
        if score > RAW:
            told.append({"class": name, "score": score, "box": tuple(box)})
    return sorted(told, key=lambda one: -one["score"])


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_a_refined_detector_says_what_detecting_cropping_and_predicting_say(
    detector: by.Component, breeds: by.Component, margin: float, tmp_path: Any
) -> None:
    both = refine(detector, {"bee": breeds}, margin=margin)
    assert both.classes == ("dog", "bee", "collie", "spitz")
    read = by.load(both.save(tmp_path / "both.safetensors"))
    assert isinstance(read, Refined)
    seen: set[str] = set()
    for array in (picture(), picture(70, 33, 4)):
        wanted = by_hand(detector, breeds, array, margin)
        (found,) = both.detect(array, score=RAW)
        assert len(found.labels) == len(wanted) > 10
        for one, box, score, label in zip(wanted, found.boxes, found.scores, found.labels, strict=True):
            assert both.classes[label] == one["class"]
            assert float(score) == pytest.approx(one["score"], abs=1e-6)
            assert torch.allclose(box, torch.tensor(one["box"], dtype=box.dtype), atol=1e-4)
        seen |= {one["class"] for one in wanted}
        (again,) = read.detect(array, score=RAW)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert len(seen) > 1
    assert read.manifest == both.manifest


def test_margins_change_what_a_classifier_sees(detector: by.Component, breeds: by.Component) -> None:
    found = [refine(detector, {"bee": breeds}, margin=margin).detect(picture(), score=RAW)[0] for margin in (0, 0.5)]
    assert found[0].scores.tolist() != found[1].scores.tolist()


def test_what_is_turned_away_stays_what_the_detector_says(detector: by.Component) -> None:
    strangers = classifier_of(["collie", "spitz"], reject=True)

    class Nobody(type(strangers)):  # type: ignore[misc]
        def judge(self, images: Any, batch_size: int = 64) -> Any:
            found = super().judge(images, batch_size)
            return type(found)(found.probabilities, found.strangeness, (REJECT,) * len(found.answers), found.sure)

    strangers.__class__ = Nobody
    (found,), (alone,) = (one.detect(picture(), score=RAW) for one in (refine(detector, {"bee": strangers}), detector))
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


def test_only_the_surest_boxes_are_looked_at(detector: by.Component, breeds: by.Component) -> None:
    few = refine(detector, {"bee": breeds}, crops=2).detect(picture(), score=0.01)[0]
    every = refine(detector, {"bee": breeds}).detect(picture(), score=0.01)[0]
    assert int((few.labels > 1).sum()) <= 2 < int((every.labels > 1).sum())
    assert int((few.labels == 1).sum()) > int((every.labels == 1).sum())


def test_pictures_in_batches_and_assemblies_of_classifiers(detector: by.Component, breeds: by.Component) -> None:
    other = classifier_of(["0", "3"], ["0", "1", "2", "3"], reject=True)
    joined = by.assemble([breeds, other])
    both = refine(by.assemble([detector], scaling="none"), {"bee": joined, "dog": classifier_of(["poodle", "boxer"])})
    many = torch.stack([torch.from_numpy(picture(seed=k)).permute(2, 0, 1) for k in range(3)])
    together, alone = both.predict(many), [both.predict([one])[0] for one in many]
    assert [[one["class"] for one in some] for some in together] == [[one["class"] for one in some] for some in alone]
    assert both.predict(many.float() / 255)[0]
    labels = torch.cat([one.labels for one in both.detect(many, score=0.001)]).unique()
    assert {both.classes[k] for k in labels} & {"poodle", "boxer"}
    assert {both.classes[k] for k in labels} & {"collie", "spitz", "0", "3"}


@pytest.mark.parametrize(
    ("box", "margin", "wanted"),
    [
        ([2.0, 3.0, 6.0, 9.0], 0.0, (6, 4)),
        ([2.2, 3.0, 5.8, 9.0], 0.0, (6, 4)),
        ([2.0, 3.0, 6.0, 9.0], 0.5, (10, 8)),
        ([-4.0, -4.0, 99.0, 99.0], 0.1, (10, 12)),
        ([12.0, 10.0, 12.0, 10.0], 0.1, (1, 1)),
        ([0.0, 0.0, 0.0, 0.0], 0.0, (1, 1)),
    ],
)
def test_a_box_is_cut_out_in_whole_pixels(box: list[float], margin: float, wanted: tuple[int, int]) -> None:
    from brickyard.assembly._refined import cut_out

    assert cut_out(torch.zeros(3, 10, 12), box, margin).shape[1:] == wanted


def test_what_cannot_be_refined_is_refused(detector: by.Component, breeds: by.Component) -> None:
    images, rows = torch.rand(12, 3, 8, 8), torch.eye(4).long().repeat(3, 1)
    several = by.disassemble(chain(), by.locate(chain(), (images, rows), outputs="several"), task=[0], heal="none")
    sizeless = breeds.with_preprocessing(by.Preprocessing())
    with refused("task-unknown-class", "cat", "dog"):
        refine(detector, {"cat": breeds})
    with refused("task-class-in-two-parts", "dog"):
        refine(detector, {"bee": breeds.renamed({"collie": "dog"})})
    with refused("option-wrong-object", "classifier"):
        refine(breeds, {"collie": breeds})
    with refused("option-wrong-object", "a detector"):
        refine(detector, {"bee": detector})
    with refused("option-wrong-object", "several"):
        refine(detector, {"bee": several})
    with refused("option-conflict", "with_preprocessing"):
        refine(detector, {"bee": sizeless})
    with refused("option-type", "0"):
        refine(detector, {})
    with refused("option-range", "margin"):
        refine(detector, {"bee": breeds}, margin=2.0)
    with refused("option-range", "crops", "300"):
        refine(detector, {"bee": breeds}, crops=301)
    with refused("option-wrong-object"):
        by.evaluate(refine(detector, {"bee": breeds}), (images, rows))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        (("manifest", "classes"), ["dog", "bee", "collie", "pug"], "file-inconsistent"),
        (("manifest", "refines"), ["cat"], "file-manifest-invalid"),
        (("manifest", "refines"), ["collie"], "file-inconsistent"),
        (("manifest", "margin"), 7, "file-manifest-invalid"),
        (("manifest", "crops"), 10**9, "file-manifest-invalid"),
        (("classifiers",), [], "file-manifest-invalid"),
        (("detector",), None, "file-manifest-invalid"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(
    detector: by.Component, breeds: by.Component, place: tuple[str, ...], value: Any, code: str, tmp_path: Any
) -> None:
    path = refine(detector, {"bee": breeds}).save(tmp_path / "both.safetensors")
    tensors, text = opened(path)
    at: Any = text
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    save_file(tensors, path, {"brickyard": json.dumps(text)})
    with refused(code):
        by.load(path)


def opened(path: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["brickyard"])


def test_a_tensor_of_no_model_is_refused(detector: by.Component, breeds: by.Component, tmp_path: Any) -> None:
    path = refine(detector, {"bee": breeds}).save(tmp_path / "both.safetensors")
    tensors, text = opened(path)
    save_file({**tensors, "classifiers.1.network.x": torch.zeros(1)}, path, {"brickyard": json.dumps(text)})
    with refused("file-tensor-mismatch", "classifiers.1"):
        by.load(path)
    some = next(name for name in tensors if name.startswith("classifiers.0.network."))
    save_file({name: one for name, one in tensors.items() if name != some}, path, {"brickyard": json.dumps(text)})
    with refused("file-tensor-mismatch"):
        by.load(path)
