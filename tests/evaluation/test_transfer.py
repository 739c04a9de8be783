"""Transfer: scores against independent ways of computing them, probes, and yards that rank their components."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from torch.utils.data import DataLoader, TensorDataset

import brickyard as by
from brickyard.evaluation._probe import SCORES, features, h_score, log_evidence, probe
from brickyard.inputs._datasets import ImageData
from brickyard.testing import Residual, chain, randomised
from brickyard.yard._yard import Yard
from shell import python, run

GENERATOR = torch.Generator().manual_seed(1)
DATA = (torch.rand(24, 3, 8, 8, generator=GENERATOR), torch.arange(24) % 4)


def component(model=None, task=(0, 1), data=DATA, **options) -> by.Component:
    model = randomised(chain(), 0) if model is None else model
    return by.disassemble(model, by.locate(model, data, **options), task=list(task), heal="none")


def drawn(images: int, size: int, classes: int = 3, signal: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Features of labelled images that tell their classes apart more or less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    x = torch.randn(images, size, generator=generator, dtype=torch.float64) @ torch.randn(
        size, size, generator=generator, dtype=torch.float64
    )
    return x + signal * torch.randn(classes, size, generator=generator, dtype=torch.float64)[labels], labels


# -- features ------------------------------------------------------------------------------------------------


def test_features_are_what_the_last_layer_reads() -> None:
    part = component()
    read: list[torch.Tensor] = []
    layer = next(module for module in part.modules() if isinstance(module, torch.nn.Linear))
    hook = layer.register_forward_pre_hook(lambda _, given: read.append(given[0].double()))
    part(part.preprocess(DATA[0]))
    hook.remove()
    found = features(part, DATA, batch_size=5)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    torch.testing.assert_close(found, read[0], rtol=1e-5, atol=1e-6)
    other = features(component(task=(2, 3)), DATA)
    assert not torch.equal(other, found)


def test_features_of_all_forms_of_images_are_the_same() -> None:
    part = component()
    found = features(part, DATA)
    pairs = TensorDataset(*DATA)
    for form in (
        (DATA[0].numpy(), DATA[1].numpy()),
        pairs,
        DataLoader(pairs, batch_size=7),
        [(DATA[0][:10], DATA[1][:10]), (DATA[0][10:], DATA[1][10:])],
    ):
        torch.testing.assert_close(features(part, form), found)
    assert not torch.allclose(features(part, (DATA[0].flip(0), DATA[1])), found)
    features(part.train(), DATA)
    assert part.training  # as it was


def test_features_use_the_component_s_own_preprocessing() -> None:
    raw = (DATA[0] * 255).round().to(torch.uint8), DATA[1]
    part = component(data=raw, preprocessing=by.Preprocessing(mean=(0.5,), std=(0.25,)))
    by_hand = part.observe((raw[0].float() / 255 - 0.5) / 0.25)[0].detach().double()
    torch.testing.assert_close(features(part, raw), by_hand, rtol=1e-5, atol=1e-6)
    without = part.observe(raw[0].float() / 255)[0].detach().double()
    assert not torch.allclose(features(part, raw), without, rtol=1e-2)


# -- the evidence --------------------------------------------------------------------------------------------


def direct_evidence(x: np.ndarray, y: np.ndarray) -> float:
    """log N(y; 0, I / beta + F F^T / alpha) at its highest, by an optimiser from many starts; an image."""
    gram = x @ x.T

    def negative(point: np.ndarray) -> float:
        noise, prior = np.exp(point)
        covariance = noise * np.eye(len(y)) + prior * gram
        _, logdet = np.linalg.slogdet(covariance)
        return 0.5 * (y @ np.linalg.solve(covariance, y) + logdet + len(y) * math.log(2 * math.pi))

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    starts = [(a, b) for a in (-6.0, -2.0) for b in (-8.0, -3.0, 1.0)]
    found = [minimize(negative, np.array(start), method="Nelder-Mead", options=options).fun for start in starts]
    return -min(found) / len(y)


@pytest.mark.parametrize(("images", "size", "signal"), [(20, 5, 1.0), (20, 5, 4.0), (12, 30, 1.0), (30, 3, 0.5)])
def test_evidence_is_the_highest_of_a_bayesian_linear_model(images, size, signal) -> None:
    for seed in range(2):
        x, labels = drawn(images, size, signal=signal, seed=seed)
        direct = np.mean([direct_evidence(x.numpy(), (labels == k).double().numpy()) for k in range(3)])
        assert log_evidence(x, labels) == pytest.approx(direct, rel=1e-6, abs=1e-7)
        mixed = labels[torch.randperm(images, generator=torch.Generator().manual_seed(seed))]
        assert abs(log_evidence(x, mixed) - direct) > 1e-4  # a hundred times the tolerance


def test_evidence_does_not_depend_on_units_order_or_names_of_classes() -> None:
    x, labels = drawn(40, 6)
    found = log_evidence(x, labels)
    for factor in (1e-6, 1e6):
        assert log_evidence(x * factor, labels) == pytest.approx(found, rel=1e-9)
    order = torch.randperm(40, generator=GENERATOR)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=GENERATOR, dtype=torch.float64))
    assert log_evidence((x @ turn)[order], labels[order]) == pytest.approx(found, rel=1e-9)
    assert log_evidence(x, 10 - 3 * labels) == pytest.approx(found, rel=1e-9)
    assert log_evidence(x.float(), labels.numpy()) == pytest.approx(found, rel=1e-4)
    assert log_evidence(x[:, :3], labels) != pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("score", SCORES)
def test_scores_rise_with_what_features_tell(score) -> None:
    for images, size in ((60, 8), (20, 40)):
        rising = [SCORES[score](*drawn(images, size, signal=signal)) for signal in (0.0, 3.0, 30.0)]
        assert all(a < b for a, b in pairwise(rising)), rising


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_odd_features_are_finite(score) -> None:
    labels = torch.arange(12) % 3
    nothing = SCORES[score](torch.zeros(12, 4), labels)
    constant = SCORES[score](torch.ones(12, 4), labels)
    perfect = SCORES[score](torch.eye(3)[labels], labels)
    huge = SCORES[score](torch.eye(3)[labels] * 1e30, labels)
    assert all(math.isfinite(value) for value in (nothing, constant, perfect, huge))
    assert perfect > max(nothing, constant)
    assert huge == pytest.approx(perfect)


# -- the H-score ---------------------------------------------------------------------------------------------


def direct_h_score(x: np.ndarray, labels: np.ndarray) -> float:
    means = np.array([x[labels == k].mean(0) for k in labels])  # E[f | y] of every image
    covariance, between = (np.cov(values, rowvar=False, bias=True) for values in (x, means))
    return float(np.trace(np.linalg.pinv(covariance) @ between))


def test_h_score_is_the_trace() -> None:
    for size in (3, 8):
        x, labels = drawn(40, size)
        found = h_score(x, labels)
        assert found == pytest.approx(direct_h_score(x.numpy(), labels.numpy()), rel=1e-9)
        assert found == pytest.approx(h_score(x * 1e-5 + 7, labels), rel=1e-6)
        assert 0 < found < 2
        assert h_score(x, labels.flip(0).roll(1)) != pytest.approx(found, rel=1e-3)
    doubled = torch.cat([x, x], 1)  # a covariance without an inverse
    assert h_score(doubled, labels) == pytest.approx(found, rel=1e-6)


def test_h_score_shrinks_where_images_are_few() -> None:
    from sklearn.covariance import ledoit_wolf

    x, labels = drawn(15, 40, signal=0.0)
    assert h_score(x, labels, shrink=False) == pytest.approx(2, rel=1e-6)  # noise, and every class is told apart
    found = h_score(x, labels)
    covariance, share = ledoit_wolf(x.numpy())
    means = np.array([x.numpy()[labels.numpy() == k].mean(0) for k in labels.tolist()])
    between = (1 - share) * np.cov(means, rowvar=False, bias=True)
    assert found == pytest.approx(float(np.trace(np.linalg.inv(covariance) @ between)), rel=1e-6)
    assert found < 1.5


# -- probes --------------------------------------------------------------------------------------------------


def test_a_probe_predicts_its_own_labels() -> None:
    x, labels = drawn(150, 6, signal=6.0)
    labels = labels * 5 + 2  # numbers of their own
    head = probe(x[:90], labels[:90])
    assert set(head.predict(x[90:]).tolist()) <= {2, 7, 12}
    assert head.score(x[90:], labels[90:]) == (head.predict(x[90:]) == labels[90:]).double().mean().item() > 0.8
    assert 0.8 < head.validated <= 1
    again = probe(x[:90], labels[:90])
    assert (again.strength, again.validated) == (head.strength, head.validated)
    assert torch.equal(again.predict(x), head.predict(x))
    mixed = labels[torch.randperm(150, generator=GENERATOR)]
    assert probe(x[:90], mixed[:90]).score(x[90:], mixed[90:]) < 0.55


def test_a_probe_s_strength_is_that_of_the_best_folds() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    x, labels = drawn(60, 30, signal=1.0)
    x[:, 0] *= 1e4  # standardised away
    strengths = (1e-3, 1e-1, 10.0)
    means = []
    for strength in strengths:
        scores = []
        for train, held in StratifiedKFold(5, shuffle=True, random_state=3).split(x.numpy(), labels.numpy()):
            mean, std = x[train].mean(0), x[train].std(0, correction=0)
            line = LogisticRegression(C=strength, max_iter=500).fit(((x[train] - mean) / std).numpy(), labels[train])
            scores.append(line.score(((x[held] - mean) / std).numpy(), labels[held]))
        means.append(np.mean(scores))
    assert len(set(means)) > 1
    head = probe(x, labels, strengths=strengths, seed=3)
    assert head.strength == strengths[int(np.argmax(means))]
    assert head.validated == pytest.approx(max(means))


def test_a_probe_of_single_images_holds_none_out() -> None:
    x, labels = drawn(4, 6)  # class 0 has two images, the others one
    head = probe(x, labels, strengths=(0.1, 1.0, 5.0))
    assert (head.strength, head.validated) == (1.0, None)


# -- yards ---------------------------------------------------------------------------------------------------


@pytest.fixture
def yard(tmp_path) -> Yard:
    made = Yard(tmp_path / "yard", create=True)
    made.add(component(), "one")
    made.add(component(task=(2, 3)), "two")
    made.add(component(randomised(Residual(), 3), (1, 2)), "three")
    return made


def grey_only() -> by.Component:
    """A component that takes images of one channel only, and no others."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    data = torch.rand(12, 1, 8, 8, generator=GENERATOR), torch.arange(12) % 3
    return component(model, data=data)


def test_a_yard_ranks_by_the_scores_of_its_components(yard) -> None:
    labels = (DATA[0].mean((1, 2, 3)) > DATA[0].mean()).long() + 5  # a task that no source knows
    for score, function in SCORES.items():
        found = yard.rank((DATA[0], labels), score=score, per_class=None)
        by_hand = {e.name: function(features(yard.load(e.name), DATA), labels) for e in yard.entries()}
        assert [rank.entry.name for rank in found] == sorted(by_hand, key=by_hand.get, reverse=True)
        assert [rank.score for rank in found] == sorted(by_hand.values(), reverse=True)
        assert len({rank.score for rank in found}) == 3
        for rank in found:
            assert rank.entry == yard.entry(rank.entry.name)  # with FLOPs and parameters
            assert (rank.size, rank.images) == (features(yard.load(rank.entry.name), DATA).shape[1], 24)
            assert rank.why == ""
        assert yard.rank((DATA[0], labels), score=score, per_class=None) == found
        assert yard.rank((DATA[0], 10 - labels), score=score, per_class=None)[0].score == pytest.approx(found[0].score)


def test_images_are_drawn_by_class_and_seed(yard) -> None:
    labels = torch.tensor([0] * 16 + [1] * 8)
    few = yard.rank((DATA[0], labels), per_class=6)
    assert {rank.images for rank in few} == {12}
    assert yard.rank((DATA[0], labels), per_class=6) == few != yard.rank((DATA[0], labels), per_class=6, seed=1)
    assert {rank.images for rank in yard.rank((DATA[0], labels), per_class=10)} == {18}
    assert yard.rank((DATA[0], labels), per_class=99) == yard.rank((DATA[0], labels), per_class=None)


def test_components_that_cannot_take_the_images_come_last_with_the_reason(yard) -> None:
    entry = yard.add(grey_only(), "grey")
    found = yard.rank(DATA)
    assert [rank.score is None for rank in found] == [False] * 3 + [True]
    last = found[-1]
    assert (last.entry, last.score, last.size) == (entry, None, None)
    assert "(24, 3, 8, 8)" in last.why
    path = yard.path / "two.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    stamp = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    broken = {rank.entry.name: rank.why for rank in yard.rank(DATA) if rank.score is None}
    assert set(broken) == {"grey", "two"}
    assert "two.safetensors" in broken["two"]


def test_an_empty_yard_ranks_nothing(tmp_path) -> None:
    assert Yard(tmp_path / "empty", create=True).rank(DATA) == []


@pytest.fixture
def pictures(tmp_path):
    """An image folder of three classes that the components do not know."""
    images = (DATA[0] * 255).round().to(torch.uint8)
    for i, image in enumerate(images):
        place = tmp_path / "pictures" / f"shade{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{i:02}.png")
    return tmp_path / "pictures"


def test_the_command_prints_the_ranks(yard, pictures) -> None:
    yard.add(grey_only(), "grey")
    order = sorted(range(24), key=lambda i: (i % 3, i))
    images = (DATA[0][order] * 255).round().to(torch.uint8)
    data = ImageData(images, torch.tensor([i % 3 for i in order]), ("shade0", "shade1", "shade2"))
    for options, expected in [
        ((), yard.rank(data)),
        (("--score", "h-score", "--per-class", 4), yard.rank(data, "h-score", per_class=4)),
    ]:
        result = run("yard", "rank", yard.path, "--data", pictures, *options, "--json")
        value = json.loads(result.stdout)
        assert [(row["name"], row["score"], row["features"]) for row in value["components"]] == [
            (rank.entry.name, rank.score, rank.size) for rank in expected
        ]
        assert value["images"] == expected[0].images
        assert value["components"][0]["flops"] == expected[0].entry.flops
        assert "3, 8, 8)" in value["components"][-1]["why"]
        assert (
            json.loads(run("yard", "rank", "--yard", yard.path, "--data", pictures, *options, "--json").stdout) == value
        )
    lines = run("yard", "rank", yard.path, "--data", pictures).stdout.splitlines()
    assert lines[0].split()[:5] == ["name", "logme", "features", "FLOPs", "parameters"]
    assert [line.split()[0] for line in lines[1:5]] == [rank.entry.name for rank in yard.rank(data)]
    assert lines[5].startswith("grey ")
    assert all(len(line) <= 100 for line in lines[:5])


def test_the_command_brings_pictures_of_several_sizes_to_one(yard, pictures) -> None:
    before = json.loads(run("yard", "rank", yard.path, "--data", pictures, "--json").stdout)
    Image.new("RGB", (20, 12), "red").save(pictures / "shade0" / "wide.png")
    found = json.loads(run("yard", "rank", yard.path, "--data", pictures, "--json").stdout)
    assert found["images"] == before["images"] + 1
    assert all(row["score"] is not None for row in found["components"])


def test_the_folder_goes_before_the_environment(yard, pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BRICKYARD_YARD", str(tmp_path / "nowhere"))
    found = json.loads(run("yard", "rank", yard.path, "--data", pictures, "--json").stdout)
    assert found["yard"] == str(yard.path)
    assert "nowhere" in run("yard", "rank", "--data", pictures, code=1).stderr


def test_what_the_command_refuses(yard, pictures, tmp_path) -> None:
    for arguments, quoted in [
        ((tmp_path / "nowhere", "--data", pictures), "nowhere"),
        ((yard.path, "--data", f"{pictures}?classes=shade1"), "8"),
        ((yard.path, "--data", pictures, "--score", "leep"), "leep"),
        ((yard.path, "--yard", tmp_path, "--data", pictures), "--yard"),
    ]:
        assert quoted in run("yard", "rank", *arguments, code=1).stderr
    empty = Yard(tmp_path / "empty", create=True)
    assert str(empty.path) in run("yard", "rank", empty.path, "--data", pictures).stderr


def test_loading_libraries_draws_no_random_number_of_the_caller() -> None:
    code = """
import random
import torch
from brickyard.evaluation._probe import h_score, probe
y = torch.arange(24) % 3
x = torch.rand(24, 5) + y.unsqueeze(1)
before = random.getstate()
probe(x, y), h_score(x, y, shrink=True)
print(random.getstate() == before)
"""
    assert python(code) == "True\n"


def test_what_is_frozen_stays_so_when_a_component_in_training_is_asked() -> None:
    part = by.disassemble(chain(), by.locate(chain(), DATA), task=["1", "3"]).train()
    frozen = [module for module in part.modules() if not list(module.children())][:2]
    for module in frozen:
        module.eval()
    before = [module.training for module in part.modules()]
    assert set(before) == {True, False}
    for ask in (lambda: features(part, DATA), lambda: part.predict_proba(DATA[0])):
        ask()
        assert [module.training for module in part.modules()] == before
