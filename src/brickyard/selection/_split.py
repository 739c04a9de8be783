"""One budget for several networks: each is cut until the next operation saved would lose as much in any of them.

What a network loses at some costs is measured, and its lower convex hull says what it loses at all costs between. Where
losses add up, the best split of a budget then has one price (the Lagrange multiplier): every stretch of a hull on which
an operation loses less than that is saved, and none on which it loses more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]  # what a network costs, and what it loses there

_SAME = 1e-9  # slopes that differ by a smaller share are one


@dataclass(frozen=True)
class Split:
    """What every network may cost.

    Attributes:
        costs: One per network.
        losses: What each is then expected to lose.
        price: What the last operation saved loses.
    """

    costs: tuple[float, ...]
    losses: tuple[float, ...]
    price: float


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """The lower convex hull of a curve of losses, from the dearest point down to the cheapest."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (-point[0], point[1])):
        if found and point[0] == found[-1][0]:
            continue
        while len(found) > 1 and slope(found[-2], found[-1]) >= slope(found[-1], point):
            found.pop()
        found.append(point)
    return found


def slope(dear: Point, cheap: Point) -> float:
    """What is lost per operation saved between two points of a curve."""
    return (cheap[1] - dear[1]) / (dear[0] - cheap[0])


def split_budget(curves: Sequence[Sequence[Point]], limit: float) -> Split:
    """Divide a budget among networks so that the sum of their losses is least.

    Stretches of equal slope are saved in proportion, so that equal networks get equal shares.

    Args:
        curves: For each network, what it loses at some costs; the first is what it costs whole, where it loses nothing.
        limit: What all may cost; if that is less than the cheapest points do, these are the result.

    Example:
        >>> from brickyard.selection._split import split_budget
        >>> easy, hard = [(10, 0), (5, 0.01), (1, 0.1)], [(10, 0), (5, 1.0)]
        >>> split_budget([easy, hard], 12).costs
        (2.0, 10.0)
    """
    hulls = [lower_hull(curve) for curve in curves]
    stretches = sorted(
        (slope(dear, cheap), index, dear[0] - cheap[0])
        for index, hull in enumerate(hulls)
        for dear, cheap in itertools.pairwise(hull)
    )
    costs, price = [float(hull[0][0]) for hull in hulls], 0.0
    left = sum(costs) - limit
    while stretches and left > 0:
        price = stretches[0][0]
        level = [one for one in stretches if math.isclose(one[0], price, rel_tol=_SAME)]
        stretches = stretches[len(level) :]
        saved = min(1.0, left / sum(size for _, _, size in level))
        for _, index, size in level:
            costs[index] -= saved * size
            left -= saved * size
    return Split(tuple(costs), tuple(map(_at, hulls, costs)), price)


def _at(hull: Sequence[Point], cost: float) -> float:
    """What is lost at a cost."""
    for dear, cheap in itertools.pairwise(hull):
        if cost >= cheap[0]:
            return dear[1] + slope(dear, cheap) * (dear[0] - cost)
    return hull[-1][1]
