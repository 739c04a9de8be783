"""The area under the ROC curve of a score for one class against the rest, with its standard error.

The error follows DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988): the area is a mean over pairs of one example
of the class and one other example, so each side contributes the variance of its own means. Two areas on the same
examples are compared pairwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from brickyard.base._errors import DataError


@dataclass(frozen=True, eq=False)
class Roc:
    """The means that make up an area under the ROC curve.

    Attributes:
        own: (examples of the class,) the share of the other examples that each exceeds; a tie counts half.
        others: (other examples,) the share of the class's examples that exceed each; a tie counts half.
    """

    own: Tensor
    others: Tensor

    @classmethod
    def of(cls, score: Tensor, inside: Tensor) -> Roc:
        """Build from each example's score, (examples,), and whether it is of the class; both kinds must occur.

        Raises:
            DataError: A score is not a number.

        Example:
            >>> import torch
            >>> roc = Roc.of(torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([True, True, False, False]))
            >>> roc.area, round(roc.error, 1)
            (75.0, 35.4)
        """
        if bool(score.isnan().any()):
            found = f"the score is NaN for {int(score.isnan().sum())} of {len(score)} examples"
            raise DataError("data-overflow", f"{found}; check the preprocessing, or use a source in float32")
        score = score.double()
        return cls(_share_below(score[~inside], score[inside]), _share_below(-score[inside], -score[~inside]))

    @property
    def area(self) -> float:
        """The area in percent: 50 is chance, 100 is perfect."""
        return 100 * self.own.mean().item()

    @property
    def error(self) -> float:
        """Standard error of the area, in points."""
        return _error(self.own, self.others)

    def below(self, other: Roc) -> tuple[float, float]:
        """Points by which this area is below another on the same examples, and the standard error, paired."""
        return other.area - self.area, _error(other.own - self.own, other.others - self.others)


def _share_below(values: Tensor, of: Tensor) -> Tensor:
    """For each value, the share of all `values` below it; equal values count half."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, of, right=False) + torch.searchsorted(ordered, of, right=True)
    return below.double() / (2 * len(values))


def _error(*sides: Tensor) -> float:
    spread = sum(float(side.var(correction=min(1, len(side) - 1))) / len(side) for side in sides)
    return 100 * math.sqrt(spread)
