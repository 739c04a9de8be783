"""Parts that run in turn and know what they are not: "none of these" is an answer that only all of them can give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cascade import AGREEMENT, binomial, changed, drawn, fitted, rows_of
from torch import Tensor

import brickyard as by
from brickyard.component._predictor import REJECT
from brickyard.export import export_onnx
from brickyard.runtime._profiling import count_flops
from brickyard.testing import Residual, chain
from conftest import needed_package

STREAM, (IMAGES, LABELS) = drawn(300, 1)[0].double(), drawn(200, 2)
TEST = IMAGES.double(), LABELS
OWNER = np.array([0, 0, 1])


@pytest.fixture(scope="module")
def parts() -> list[by.Component]:
    """Two parts whose sources know four colours; none of them has the last."""
    found = []
    for seed, (make, task) in enumerate([(chain, [0, 1]), (Residual, [2])]):
        source = fitted(make, seed).double()
        images, labels = drawn(80, 0)
        relevance = by.locate(source, (images.double(), labels))
        whole = by.Budget(flops=1.0, factors=False)
        found.append(by.disassemble(source, relevance, task=task, budget=whole, heal="none", reject=True))
    return found


@pytest.fixture(scope="module")
def cascade(parts) -> by.Assembly:
    return by.assemble(parts, form="cascade", scaling="none", calibration=STREAM, agreement=AGREEMENT)


def says(parts: list[by.Component], images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """From the parts' own networks: the logits of the three classes, and each part's probability of all others."""
    logits, none = [], []
    with torch.no_grad():
        for one in parts:
            found = one.network(one.preprocess(images)).double()
            task = list(one.manifest.task)
            rest = [k for k in range(4) if k not in task]
            logits.append(found[:, task])
            none.append(found.softmax(1)[:, rest].sum(1, keepdim=True))
    return torch.cat(logits, 1).numpy(), torch.cat(none, 1).numpy()


def course(logits, none, order, expected, limits) -> tuple[list[int], np.ndarray]:
    """The parts of an image that run, and its probabilities with "none of these" last, step by step."""
    for turn in range(1, len(order) + 1):
        ran = order[:turn]
        now = np.where(np.isin(OWNER, ran), logits, expected)
        shares = np.exp(now - now.max()) / np.exp(now - now.max()).sum()
        gone = np.prod(none[ran])
        whole = np.append((1 - gone) * shares, gone)
        best = max(ran, key=lambda part: now[part == OWNER].max())
        if now[best == OWNER].max() > limits[best] and whole.argmax() != 3:
            break
    return ran, whole


def test_it_is_the_product_over_the_parts_that_ran(parts, cascade) -> None:
    logits, none = says(parts, TEST[0])
    expected = np.array(cascade.manifest.cascade.expected)
    least = [float(expected[part != OWNER].max()) for part in (0, 1)]
    order = cascade.order(TEST[0]).tolist()
    parallel = by.assemble(parts, scaling="none").predict_proba(TEST[0])
    assert list(cascade.classes_) == ["0", "1", "2", REJECT]
    seen = []
    for limits in (cascade.manifest.cascade.thresholds, least, (None, None)):
        whole = changed(cascade, *limits)
        numbers = [np.inf if one is None else one for one in limits]
        wanted = [course(*row, expected, numbers) for row in zip(logits, none, order, strict=True)]
        found = whole.predict_proba(TEST[0])
        torch.testing.assert_close(found, torch.tensor(np.array([one for _, one in wanted])), rtol=1e-7, atol=1e-10)
        ran = [len(one) for one, _ in wanted]
        assert sum(rows_of(whole, TEST[0])) == sum(ran)
        gone = found.argmax(1) == 3
        assert [one == REJECT for one in whole.predict(TEST[0], strangers="answer")] == gone.tolist()
        assert bool(gone.any())
        assert all(count == 2 for count, away in zip(ran, gone.tolist(), strict=True) if away)  # only all parts can
        seen.append((sum(ran), found))
    (first, _), (fewest, _), (most, every) = seen
    assert fewest <= first < most == 2 * len(TEST[0])
    torch.testing.assert_close(every, parallel, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(seen[0][1], parallel, rtol=1e-3)  # the control


def test_without_that_rule_more_images_would_end(parts, cascade) -> None:
    logits, none = says(parts, TEST[0])
    expected = np.array(cascade.manifest.cascade.expected)
    least = [float(expected[part != OWNER].max()) for part in (0, 1)]
    ran = [course(*row, expected, least)[0] for row in zip(logits, none, cascade.order(TEST[0]).tolist(), strict=True)]
    never = [course(*row, expected, least)[0] for row in zip(logits, 0 * none, cascade.order(TEST[0]), strict=True)]
    assert sum(map(len, never)) < sum(map(len, ran))


def test_agreement_counts_none_of_these_as_an_answer(parts) -> None:
    logits, none = says(parts, STREAM)
    held = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:150].numpy()
    most = max(k for k in range(150) if binomial(150, k, 0.1) <= 0.05)
    whole = by.assemble(parts, form="cascade", scaling="none", calibration=STREAM, agreement=AGREEMENT)
    record, order = whole.manifest.cascade, whole.order(STREAM).tolist()
    expected = np.array(record.expected)
    full = np.array([course(*row, expected, [np.inf] * 2)[1].argmax() for row in zip(logits, none, order, strict=True)])
    assert 10 < int((full == 3).sum()) < 200

    def wrong(limits) -> int:
        rows = zip(logits[held], none[held], np.array(order)[held].tolist(), strict=True)
        return sum(
            course(*row, expected, limits)[1].argmax() != answer for row, answer in zip(rows, full[held], strict=True)
        )

    assert record.agreement == pytest.approx(1 - wrong(record.thresholds) / 150)
    assert wrong(record.thresholds) <= most
    answers = by.assemble(parts, scaling="none").predict(STREAM[held], strangers="answer")
    same = [a == b for a, b in zip(whole.predict(STREAM[held], strangers="answer"), answers, strict=True)]
    assert np.mean(same) == pytest.approx(record.agreement)
    # in units of the spread of each part's own answers, any lower level is wrong too often, unless the floor stops it
    own = np.setdiff1d(np.arange(300), held)
    best = np.stack([logits[:, part == OWNER].max(1) for part in (0, 1)], 1)
    wins = [np.sort(best[own][best[own].argmax(1) == part, part]) for part in (0, 1)]
    usual = np.array([values[(len(values) - 1) // 2] for values in wins])
    spread = np.array([middle - np.quantile(values, 0.1) for middle, values in zip(usual, wins, strict=True)])
    least = np.array([expected[part != OWNER].max() for part in (0, 1)])
    levels = np.sort(((best - usual) / spread)[held].ravel())
    level = next(one for one in levels if wrong(np.maximum(least, usual + one * spread)) <= most)
    assert record.thresholds == pytest.approx(np.maximum(least, usual + level * spread), rel=1e-6)


def test_scores_count_the_parts_that_ran(cascade) -> None:
    own = [TEST[0][TEST[1] < 3], TEST[1][TEST[1] < 3]]
    scores = by.evaluate(cascade, [tuple(own)] * 2, latency=False)
    costs = [count_flops(network, shape) for network, shape in cascade.shaped_networks()]
    ran = rows_of(cascade, own[0])
    assert scores.row("assembled").flops == round(sum(a * b for a, b in zip(ran, costs, strict=True)) / len(own[0]))
    with torch.no_grad():
        right = (cascade(own[0])[:, :3].argmax(1) == own[1]).double().mean()
    assert scores.row("assembled").accuracy == pytest.approx(100 * float(right))


def test_files_and_joined_parts_have_it_too(cascade, parts, tmp_path: Path) -> None:
    again = by.load(cascade.save(tmp_path / "x.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(TEST[0]), cascade(TEST[0]))
        assert torch.equal(by.assemble([again], scaling="none")(TEST[0]), by.assemble(parts, scaling="none")(TEST[0]))
        single = torch.cat([cascade(one) for one in TEST[0].split(1)])
        torch.testing.assert_close(single, cascade(TEST[0]), rtol=1e-9, atol=1e-9)
    assert "3 classes + reject" in str(again)
    before = cascade.with_manifest(reject=False)  # as written by earlier versions
    old = by.load(before.save(tmp_path / "old.safetensors"))
    assert old(TEST[0]).shape == (200, 3)
    assert rows_of(old, TEST[0]) == rows_of(before, TEST[0])


@pytest.mark.parametrize("strangers", [pytest.param(False, marks=pytest.mark.slow), True])
def test_onnx_says_the_same(parts, strangers, tmp_path: Path) -> None:
    onnxruntime = needed_package("onnxruntime")
    images = STREAM.float(), TEST[0].float()
    given = [one.float() for one in parts]
    if not strangers:
        made = [one.manifest.statistics.model_copy(update={"strangers": None}) for one in given]
        given = [one.with_manifest(statistics=new) for one, new in zip(given, made, strict=True)]
    whole = by.assemble(given, form="cascade", scaling="none", calibration=images[0], agreement=AGREEMENT)
    export_onnx(whole, tmp_path / "x.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()][2:] == ["strangeness"] * strangers
    for some in (images[1], images[1][:1], images[1][7:12]):
        logits, shares, *strange = session.run(None, {"images": some.numpy()})
        with torch.no_grad():
            wanted = whole(some).numpy()
        assert np.abs(logits - wanted).max() <= 1e-4 * np.abs(wanted).max()
        assert np.allclose(shares, whole.predict_proba(some).numpy(), atol=1e-5)
        assert (shares.shape, logits.argmax(1).tolist()) == ((len(some), 4), wanted.argmax(1).tolist())
        if strangers:
            assert np.allclose(strange[0], whole.strangeness(some).numpy(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert np.abs(logits - by.assemble(given, scaling="none")(some).numpy()).max() > 1e-3  # the control
