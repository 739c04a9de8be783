"""Scores of detectors as expected precisions: fitted without labels, stored, applied in assemblies, and monotone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import brickyard as by
from brickyard.base._precisions import PrecisionRecord
from brickyard.component._calibration import Pool, parted
from brickyard.evaluation import average_precision
from brickyard.inputs import Truth
from brickyard.outputs._detections import SCORE
from brickyard.outputs._precisions import FEW, RAW, SHIFT, SLOPE, expected, fitted
from brickyard.testing import Detector
from errors import refused

NAMES = ["ant", "bee", "cow", "dog"]
CURVE = PrecisionRecord(slope=0.4, shift=-1.5, boxes=90, right=30, images=12)


def drawn(count: int, slope: float, shift: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes that are right as often as a curve says."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    chance = (slope * scores.logit() + shift).sigmoid()
    return scores, torch.rand(count, generator=generator, dtype=torch.float64) < chance


def minus_log_posterior(at: np.ndarray[Any, Any], scores: Tensor, right: Tensor) -> float:
    odds = np.log(scores.numpy() / (1 - scores.numpy()))
    p = 1 / (1 + np.exp(-(at[0] * odds + at[1])))
    told = np.where(right.numpy(), p, 1 - p)
    return float(-np.log(told).sum() + ((at[0] - 1) / SLOPE) ** 2 / 2 + (at[1] / SHIFT) ** 2 / 2)


@pytest.mark.parametrize(("slope", "shift", "count"), [(1.0, 0.0, 60), (2.0, -1.0, 300), (0.5, 0.7, 300)])
def test_a_curve_is_the_mode_of_its_posterior(slope: float, shift: float, count: int) -> None:
    scores, right = drawn(count, slope, shift)
    curve = fitted(scores, right, 5)
    assert curve is not None
    assert (curve.boxes, curve.right, curve.images) == (count, int(right.sum()), 5)
    best = np.array([curve.slope, curve.shift])
    least = minus_log_posterior(best, scores, right)
    for angle in np.linspace(0, 2 * np.pi, 16):
        assert minus_log_posterior(best + 1e-3 * np.array([np.cos(angle), np.sin(angle)]), scores, right) > least


def test_many_boxes_tell_the_curve_and_few_change_little() -> None:
    many = fitted(*drawn(40_000, 2.0, -1.0), 9)
    assert many is not None
    assert (many.slope, many.shift) == (pytest.approx(2.0, abs=0.05), pytest.approx(-1.0, abs=0.05))
    assert fitted(*drawn(FEW - 1, 2.0, -1.0), 9) is None
    for hits in (torch.ones(FEW), torch.zeros(FEW)):  # no step to one or to zero
        few = fitted(torch.linspace(0.3, 0.6, FEW), hits, 9)
        assert few is not None
        made = expected(torch.tensor([0.3, 0.6]), few)
        assert 0.01 < float(made.min()) < float(made.max()) < 0.99


def test_a_curve_that_falls_in_the_data_rises_in_the_record() -> None:
    scores, right = drawn(3000, 3.0, 0.0)
    curve = fitted(scores, ~right, 9)
    assert curve is not None
    assert curve.slope == 0.1


def test_expected_precisions_keep_every_order_in_single_precision() -> None:
    scores = torch.rand(20_000, generator=torch.Generator().manual_seed(3)).sort().values.unique()
    for slope, shift in ((10.0, 20.0), (0.1, -20.0), (1.0, 0.0)):
        made = expected(scores, CURVE.model_copy(update={"slope": slope, "shift": shift}))
        assert bool((made.diff()[scores.diff() > 1e-5] > 0).all())
        assert 0 <= float(made[0]) <= float(made[-1]) <= 1 + 1e-6
    p = scores.double().numpy()
    z = 1 / (1 + np.exp(-(CURVE.slope * np.log(p / (1 - p)) + CURVE.shift)))
    some = (p > 1e-5) & (p < 1 - 1e-5)
    assert np.allclose(expected(scores.double(), CURVE).numpy()[some], (RAW * p + (1 - RAW) * z)[some])
    assert expected(scores, None) is scores


def located() -> tuple[nn.Module, by.Relevance]:
    source = Detector()
    shown = torch.rand(90, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    rows = torch.eye(4).long().repeat(23, 1)[:90]
    return source, by.locate(source, (shown, rows), outputs=Detector.boxes, classes=NAMES)


@pytest.fixture(scope="module")
def part() -> by.Component:
    source, relevance = located()
    return by.disassemble(source, relevance, task=["bee", "dog"], budget=by.Budget(flops=0.8))


def other(part: by.Component, **changes: Any) -> by.Component:
    return part.renamed({"bee": "wasp", "dog": "wolf"}).with_manifest(**changes)


def pictures() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def overlap(a: list[float], b: list[float]) -> float:
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_a_component_stores_how_often_its_source_has_its_boxes_in_images_held_back(part: by.Component) -> None:
    curve = part.manifest.precisions
    assert curve is not None
    assert curve.images == part.manifest.heal.held > 0
    assert 0 < curve.right < curve.boxes
    source, relevance = located()
    how: Any = {"heal": "none", "budget": by.Budget(flops=1.0), "select": "mda"}
    whole = by.disassemble(source, relevance, task=["bee", "dog"], **how)
    assert whole.manifest.precisions is None
    pool = Pool.of(relevance, None, [1, 3])
    assert pool is not None
    given = pool.draw(500, 0)
    held, _ = parted(given + pool.draw_others(500 - len(given), 0), 0)
    scores, right = [], []
    for batch, _ in pool.images.raw(held, 64):
        for own, known in zip(part.detect(batch, score=0.05), whole.detect(batch, score=SCORE), strict=True):
            free = list(zip(known.boxes.tolist(), known.labels.tolist(), strict=True))
            for box, score, label in zip(own.boxes.tolist(), own.scores.tolist(), own.labels.tolist(), strict=True):
                best = max(free, key=lambda one: overlap(box, one[0]) * (one[1] == label), default=None)
                hit = best is not None and best[1] == label and overlap(box, best[0]) >= 0.5
                if hit and best is not None:
                    free.remove(best)
                scores.append(score)
                right.append(hit)
    wanted = fitted(torch.tensor(scores), torch.tensor(right), len(held))
    assert wanted is not None
    assert abs(wanted.boxes - curve.boxes) <= 2  # boxes are cut off at the picture's borders in `detect`
    assert (wanted.slope, wanted.shift) == (pytest.approx(curve.slope, abs=0.1), pytest.approx(curve.shift, abs=0.2))


def test_an_assembly_maps_scores_and_keeps_boxes_classes_and_order(part: by.Component, tmp_path: Any) -> None:
    both = [part.with_manifest(precisions=CURVE), other(part, precisions=None)]
    with pytest.warns(by.BrickyardWarning, match=r"part 1 \(wasp, wolf\) keeps raw scores") as said:
        whole = by.assemble(both)
    assert len([one for one in said if "raw scores" in str(one.message)]) == 1
    raw = by.assemble(both, scaling="none")
    assert whole.manifest.scaling.name == "auto"
    assert raw.manifest.scaling.name == "none"
    assert "expected precisions, from 90 boxes" in str(whole)
    assert "expected precisions" not in str(raw)
    a, b = whole(pictures()), raw(pictures())
    assert torch.equal(a[:, :4], b[:, :4])
    places = a.shape[2] // 2
    assert torch.equal(a[:, 4:6, :places], expected(b[:, 4:6, :places], CURVE))
    assert not torch.equal(a[:, 4:6, :places], b[:, 4:6, :places])
    assert torch.equal(a[:, 6:], b[:, 6:])
    assert torch.equal(by.load(whole.save(tmp_path / "both.safetensors"))(pictures()), a)


def test_no_average_precision_changes_within_a_part(part: by.Component) -> None:
    part = part.double()
    alone = by.assemble([part.with_manifest(precisions=CURVE)])
    raw = by.assemble([part], scaling="none")
    truths = [
        Truth(boxes, labels, torch.zeros(len(labels), dtype=torch.bool), (32, 32))
        for boxes, _, labels in (one.of(slice(0, 60, 3)) for one in part.detect(pictures(), score=0.0))
    ]
    found = [one.detect(pictures(), score=0.0, most=100) for one in (alone, raw)]
    scored = [average_precision(one, truths, part.classes) for one in found]
    assert scored[0].ap == scored[1].ap
    assert 0 < scored[0].map50_95 < 100
    assert not torch.allclose(found[0][0].scores, found[1][0].scores)


@pytest.mark.parametrize("change", [{"slope": -1.0}, {"slope": 1e9}, {"shift": 1e9}, {"right": 91}, {"knots": []}])
def test_a_curve_that_cannot_be_is_refused_when_a_file_is_read(
    part: by.Component, change: dict[str, Any], tmp_path: Any
) -> None:
    path = part.with_manifest(precisions=CURVE).save(tmp_path / "part.safetensors")
    assert by.load(path).manifest.precisions == CURVE
    with safe_open(path, "pt") as file:
        about, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (key,) = about
    text = json.loads(about[key])
    text["manifest"]["precisions"] |= change
    save_file(tensors, path, {key: json.dumps(text)})
    with refused("file-manifest-invalid"):
        by.load(path)
