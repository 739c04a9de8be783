"""How familiar an image is to a component: the distance of its features from those of the component's own classes.

The features are the classifier's input: the values that enter the last layer, or the first of the linear layers at the
end of the network, averaged over positions. The distance is the Mahalanobis distance to the nearest class, with one
covariance for all classes (Lee et al., 2018, arXiv 1807.03888), divided by its usual value on the component's own
images, so that 1 means the same in every component. Images that say little to a network have short features, which lie
near every class; so a shortfall in length, in standard deviations of the usual length, is squared and added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brickyard.base._statistics import FamiliarityRecord
from brickyard.component._depths import Depths

SHRINK = 0.1  # of the mean variance, added to every direction
MOST = 256  # directions whose variance is known; in all others it is SHRINK's
FOLDS = 2
SHORTNESS = 0.3  # usual distances per standard deviation by which a length falls short


class Familiarity(nn.Module):
    """Measures how far features are from those of a component's own classes; 1 is usual for images of these.

    Attributes:
        mean: Mean features per class, (classes, size).
        directions: Orthonormal directions in which features vary, (rank, size).
        gains: Excess of the variance in each direction over that in all others, as a share of both together, (rank,).
        unit: Divisor of squared lengths outside these directions, ().
        length: Usual length of features and its standard deviation, (2,).
        depths: How unusual images look further inside, or None.

    Shapes:
        (batch, size) -> (batch,)
    """

    mean: Tensor
    directions: Tensor
    gains: Tensor
    unit: Tensor
    length: Tensor

    def __init__(
        self,
        mean: Tensor,
        directions: Tensor,
        gains: Tensor,
        unit: Tensor,
        length: Tensor,
        depths: Depths | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)
        self.register_buffer("gains", gains)
        self.register_buffer("unit", unit)
        self.register_buffer("length", length)
        self.depths = depths

    @property
    def record(self) -> FamiliarityRecord:
        """The shape as data."""
        layers = () if self.depths is None else self.depths.layers
        rank, (classes, size) = len(self.directions), self.mean.shape
        return FamiliarityRecord(classes=classes, size=size, rank=rank, depths=layers)

    @classmethod
    def blank(cls, record: FamiliarityRecord) -> Familiarity:
        """Create an instance without values, on the meta device."""
        shapes = (record.classes, record.size), (record.rank, record.size), (record.rank,), (), (2,)
        depths = Depths.blank(record.depths) if record.depths else None
        mean, directions, gains, unit, length = (torch.empty(shape, device="meta") for shape in shapes)
        return cls(mean, directions, gains, unit, length, depths)

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, depths: Depths | None = None) -> Familiarity | None:
        """Fit to features (images, size) of labelled images; None if they do not vary within classes, or vary too much.

        The unit is measured on images that were not used for the covariance, which lies closer to those that were.
        """
        whole = _fitted(features.double(), labels)
        if whole is None:
            return None
        found: list[Tensor] = []
        turn = torch.arange(len(features)) % FOLDS
        for fold in range(FOLDS):
            rest = _fitted(features[turn != fold].double(), labels[turn != fold])
            if rest is not None and bool((turn == fold).any()):
                found.append(rest.distance(features[turn == fold].double()))
        usual = (torch.cat(found) if found else whole.distance(features.double())).mean()
        if not usual > 0:
            return None
        unit = whole.unit * usual
        values = whole.mean, whole.directions, whole.gains, unit, whole.length
        rounded = [value.float().contiguous() for value in values]  # rounded as in a file
        mean, directions, gains, unit, length = rounded
        if not all(bool(torch.isfinite(value).all()) for value in rounded) or not unit > 0 or not length[1] > 0:
            return None  # features whose squares float32 cannot hold
        return cls(mean, directions, gains, unit, length, depths)

    def forward(self, features: Tensor) -> Tensor:
        """Return the distance of each feature vector, in usual distances."""
        usual, spread = self.length.to(features.dtype)
        short = (usual - features.norm(dim=1)).clamp_min(0) / spread
        result: Tensor = self.distance(features) + SHORTNESS * short.square()
        return result

    def distance(self, features: Tensor) -> Tensor:
        """Return the squared distance to the nearest class, in units of the usual one."""
        mean, directions = self.mean.to(features.dtype), self.directions.to(features.dtype)
        centre = mean.mean(0)
        x, m = features - centre, mean - centre
        # Varying and constant parts are computed separately: their difference would lose most of its digits.
        along, along_mean = x @ directions.T, m @ directions.T
        root = (1 - self.gains.to(features.dtype)).clamp_min(0).sqrt()
        lengths = _squared(along * root, along_mean * root)
        lengths = lengths + _squared(x - along @ directions, m - along_mean @ directions)
        return (lengths / self.unit.to(features.dtype)).clamp_min(0).amin(1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between rows: (n, d), (m, d) -> (n, m)."""
    return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T


@dataclass(frozen=True)
class Within:
    """Group means and the covariance within groups, with a floor added in every direction.

    Attributes:
        counts: Members per group, (groups,).
        mean: Mean per group, (groups, size).
        directions: Orthonormal directions of the covariance, (rank, size).
        gains: In each direction, the variance as a share of variance plus floor, (rank,).
        floor: Variance added in every direction, ().
    """

    counts: Tensor
    mean: Tensor
    directions: Tensor
    gains: Tensor
    floor: Tensor

    @classmethod
    def of(cls, features: Tensor, groups: Tensor, shrink: float) -> Within | None:
        """Measure features (images, size) in float64; None if they do not vary within groups.

        The floor is `shrink` times the mean variance.
        """
        present, index = groups.unique(return_inverse=True)
        if len(features) <= len(present):
            return None
        counts = torch.bincount(index)
        sums = torch.zeros(len(present), features.shape[1], dtype=features.dtype).index_add_(0, index, features)
        mean = sums / counts.unsqueeze(1)
        rest = features - mean[index]
        floor = shrink * rest.square().mean()
        if not floor > 0:
            return None
        _, values, directions = torch.linalg.svd(rest, full_matrices=False)
        variance = values.square() / len(rest)
        return cls(counts, mean, directions, variance / (variance + floor), floor)

    def inverse(self, rows: Tensor) -> Tensor:
        """Multiply rows by the inverse of the covariance."""
        result: Tensor = (rows - (rows @ self.directions.T * self.gains) @ self.directions) / self.floor
        return result


def _fitted(features: Tensor, labels: Tensor) -> Familiarity | None:
    """Fit everything but the unit of distance."""
    lengths = features.norm(dim=1)
    within = Within.of(features, labels, SHRINK)
    if within is None or not lengths.std() > 0:
        return None
    length = torch.stack([lengths.mean(), lengths.std()])
    return Familiarity(within.mean, within.directions[:MOST], within.gains[:MOST], within.floor, length)
