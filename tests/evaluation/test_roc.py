"""The area under the ROC curve against a library's, its error against a count of pairs and against drawing anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from brickyard.evaluation._roc import Roc
from errors import refused

SCORES = st.lists(st.integers(-3, 3), min_size=2, max_size=8)


def of(own: list[int], others: list[int]) -> Roc:
    inside = torch.arange(len(own) + len(others)) < len(own)
    mixed = torch.randperm(len(inside), generator=torch.Generator().manual_seed(0))
    return Roc.of(torch.tensor([*own, *others]).float()[mixed], inside[mixed])


def by_pairs(own: list[int], others: list[int]) -> list[list[float]]:
    return [[(a > b) + (a == b) / 2 for b in others] for a in own]


def error_of_pairs(pairs: list[list[float]]) -> float:
    """DeLong's, one pair after the other."""
    mean = sum(map(sum, pairs)) / (len(pairs) * len(pairs[0]))
    rows = [sum(row) / len(row) for row in pairs]
    columns = [sum(column) / len(column) for column in zip(*pairs, strict=True)]
    return math.sqrt(
        sum((v - mean) ** 2 for v in rows) / (len(rows) - 1) / len(rows)
        + sum((v - mean) ** 2 for v in columns) / (len(columns) - 1) / len(columns)
    )


@given(SCORES, SCORES)
def test_area_and_error_are_those_of_all_pairs(own: list[int], others: list[int]) -> None:
    roc, pairs = of(own, others), by_pairs(own, others)
    labels = [True] * len(own) + [False] * len(others)
    assert roc.area == pytest.approx(100 * roc_auc_score(labels, [*own, *others]))
    assert roc.error == pytest.approx(100 * error_of_pairs(pairs), abs=1e-9)


@given(st.data(), SCORES, SCORES)
def test_a_difference_is_that_of_the_same_pairs(data: st.DataObject, own: list[int], others: list[int]) -> None:
    second = [data.draw(st.lists(st.integers(-3, 3), min_size=len(v), max_size=len(v))) for v in (own, others)]
    drop, error = of(*second).below(of(own, others))
    first, then = np.array(by_pairs(own, others)), np.array(by_pairs(*second))
    assert drop == pytest.approx(100 * float((first - then).mean()))
    assert error == pytest.approx(100 * error_of_pairs((first - then).tolist()), abs=1e-9)


def test_errors_are_what_drawing_anew_gives() -> None:
    """Over 2,000 draws of 60 and 90 examples, areas and differences scatter as one draw says that they do."""
    rng = np.random.default_rng(0)
    inside = torch.arange(150) < 60
    areas, drops, told, paired, unpaired = [], [], [], [], []
    for _ in range(2000):
        score = rng.normal(size=150) + 1.0 * inside.numpy()
        worse = score + rng.normal(scale=0.5, size=150)
        a, b = Roc.of(torch.tensor(score), inside), Roc.of(torch.tensor(worse), inside)
        areas.append(a.area)
        told.append(a.error)
        drop, error = b.below(a)
        drops.append(drop)
        paired.append(error)
        unpaired.append(math.hypot(a.error, b.error))
    assert np.mean(told) == pytest.approx(np.std(areas), rel=0.05)
    assert np.mean(paired) == pytest.approx(np.std(drops), rel=0.05)
    assert np.mean(unpaired) > 2 * np.std(drops)  # what not pairing them would say


def test_one_example_of_a_side_has_no_spread() -> None:
    roc = of([1], [0, 2, 0, 0])
    assert roc.area == 75
    assert roc.error == pytest.approx(100 * math.sqrt(0.25 / 4))


def test_a_score_that_is_no_number_is_named() -> None:
    with refused("data-overflow", "1", "3"):
        Roc.of(torch.tensor([1.0, float("nan"), 2.0]), torch.tensor([True, False, False]))
