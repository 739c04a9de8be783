"""One budget for several networks: the split is the best there is, by an independent search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from brickyard.selection._split import lower_hull, split_budget

EASY = [(100.0, 0.0), (80.0, 0.001), (60.0, 0.004), (40.0, 0.02), (20.0, 0.1)]
HARD = [(100.0, 0.0), (80.0, 0.05), (60.0, 0.2), (40.0, 0.7)]
NOISY = [(50.0, 0.0), (40.0, 0.08), (32.0, 0.05), (26.0, 0.3), (20.0, 0.25), (10.0, 2.0)]


def envelope(curve, costs: np.ndarray) -> np.ndarray:
    """The lowest chord between any two points of a curve above each cost: the convex hull, by brute force."""
    best = np.full(costs.shape, np.inf)
    for (c1, l1), (c2, l2) in itertools.product(curve, repeat=2):
        if c1 > c2:
            inside = (costs <= c1) & (costs >= c2)
            chord = l2 + (l1 - l2) * (costs - c2) / (c1 - c2)
            best[inside] = np.minimum(best, chord)[inside]
    return best


def searched(curves, limit: float, steps: int = 400) -> tuple[float, tuple[float, ...]]:
    """The least loss of all splits on a grid, and that split."""
    grids = [np.linspace(min(c)[0], max(c)[0], steps + 1) for c in curves[:-1]]
    mesh = np.meshgrid(*grids, indexing="ij")
    rest = np.minimum(limit - sum(mesh), max(curves[-1])[0])
    total = sum(envelope(curve, own) for curve, own in zip(curves, mesh, strict=False))
    total = total + np.where(rest >= min(curves[-1])[0], envelope(curves[-1], rest), np.inf)
    place = np.unravel_index(np.argmin(total), total.shape)
    return float(total[place]), (*(float(own[place]) for own in mesh), float(rest[place]))


@pytest.mark.parametrize("limit", [190, 150, 125, 100, 75, 62])
@pytest.mark.parametrize("curves", [(EASY, HARD), (NOISY, HARD), (HARD, NOISY), (EASY, NOISY)])
def test_the_split_is_that_of_a_search(curves, limit) -> None:
    most, least = (sum(pick(curve)[0] for curve in curves) for pick in (max, min))
    if not least <= limit < most:
        return
    found = split_budget(curves, limit)
    loss, costs = searched(curves, limit)
    assert sum(found.costs) == pytest.approx(limit)
    assert sum(found.losses) <= loss + 1e-9  # on no grid
    assert sum(found.losses) == pytest.approx(loss, rel=0.02, abs=1e-4)
    assert found.costs == pytest.approx(costs, abs=0.5)
    equal = [envelope(curve, np.array([max(curve)[0] * limit / most]))[0] for curve in curves]
    assert sum(found.losses) < sum(equal)  # the control: the same share for each


def test_the_split_of_three_is_that_of_a_search() -> None:
    curves = (EASY, HARD, NOISY)
    found = split_budget(curves, 150)
    loss, _ = searched(curves, 150, steps=160)
    assert sum(found.losses) == pytest.approx(loss, rel=0.02)
    assert sum(found.losses) <= loss + 1e-9


def test_all_are_cut_at_one_price() -> None:
    curves = (EASY, HARD, NOISY)
    found = split_budget(curves, 150)
    for curve, cost in zip(curves, found.costs, strict=True):
        hull = lower_hull(curve)
        slopes = [(b[1] - a[1]) / (a[0] - b[0]) for a, b in itertools.pairwise(hull)]
        assert slopes == sorted(slopes)
        for (dear, _), (cheap, _), price in zip(hull, hull[1:], slopes, strict=False):
            if cost <= cheap:  # saved
                assert price <= found.price * (1 + 1e-9)
            elif cost >= dear:
                assert price >= found.price * (1 - 1e-9)


def test_equal_networks_get_equal_shares() -> None:
    for limit in (170, 100, 90):
        assert len({round(cost, 9) for cost in split_budget([HARD, HARD, HARD], limit * 1.5).costs}) == 1
    one, other = split_budget([HARD, EASY], 120).costs  # the control
    assert one > other


def test_what_loses_nothing_gives_all() -> None:
    free = [(100.0, 0.0), (60.0, 0.0), (30.0, 0.0)]
    assert split_budget([free, HARD], 130).costs == (30.0, 100.0)
    assert split_budget([free, HARD], 150).costs == (50.0, 100.0)


def test_ends() -> None:
    whole = split_budget([EASY, HARD], 200)
    assert whole.costs == (100.0, 100.0)
    assert whole.price == sum(whole.losses) == 0
    assert split_budget([EASY, HARD], 10).costs == (20.0, 40.0)  # more is not known
    assert split_budget([[(9.0, 0.0)], HARD], 80).costs == (9.0, 71.0)  # one that stays whole
