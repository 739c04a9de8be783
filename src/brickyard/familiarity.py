"""How familiar an image is to a component: the distance of its features from those of the component's own classes.

The features are what enters the last convolution or linear layer, averaged over positions. The distance is that of
Mahalanobis, to the nearest class, with one covariance for all classes (Lee et al., 2018, arXiv 1807.03888). It is given
in units of what it is for the component's own images, so that 1 means the same in every component.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brickyard.manifest import FamiliarityRecord
from brickyard.network import Network, map_refs

__all__ = ["Familiarity", "observe", "pooled"]

SHRINK = 0.1  # of the mean variance, added to every direction
MOST = 256  # directions in which the variance is known; it is SHRINK's in all others
FOLDS = 2


class Familiarity(nn.Module):
    """Distances of features from those of a component's own classes; 1 is usual for images of these.

    Attributes:
        mean: Mean features a class, (classes, size).
        directions: Orthonormal directions in which features vary, (rank, size).
        gains: How far the variance in each exceeds that in all others, as a share of the two together, (rank,).
        unit: What a squared length outside these directions is divided by, ().

    Shapes:
        (batch, size) -> (batch,)
    """

    mean: Tensor
    directions: Tensor
    gains: Tensor
    unit: Tensor

    def __init__(self, mean: Tensor, directions: Tensor, gains: Tensor, unit: Tensor) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("directions", directions), ("gains", gains), ("unit", unit)):
            self.register_buffer(name, value)

    @property
    def record(self) -> FamiliarityRecord:
        """Its shape as data."""
        return FamiliarityRecord(classes=len(self.mean), size=self.mean.shape[1], rank=len(self.directions))

    @classmethod
    def blank(cls, record: FamiliarityRecord) -> Familiarity:
        """One without numbers, on the meta device."""
        shapes = (record.classes, record.size), (record.rank, record.size), (record.rank,), ()
        return cls(*(torch.empty(shape, device="meta") for shape in shapes))

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor) -> Familiarity | None:
        """Measure features (images, size) of labelled images; None where they do not vary within classes.

        The unit comes from images that the covariance was not measured on, since it is closer to those it was.
        """
        whole = _fitted(features.double(), labels)
        if whole is None:
            return None
        found: list[Tensor] = []
        turn = torch.arange(len(features)) % FOLDS
        for fold in range(FOLDS):
            rest = _fitted(features[turn != fold].double(), labels[turn != fold])
            if rest is not None and bool((turn == fold).any()):
                found.append(rest(features[turn == fold].double()))
        usual = (torch.cat(found) if found else whole(features.double())).mean()
        if not usual > 0:
            return None
        unit = whole.unit * usual
        return cls(whole.mean.float(), whole.directions.float(), whole.gains.float(), unit.float())

    def forward(self, features: Tensor) -> Tensor:
        """Squared distance to the nearest class, in units of the usual one."""
        mean, directions = self.mean.to(features.dtype), self.directions.to(features.dtype)
        centre = mean.mean(0)
        x, m = features - centre, mean - centre
        root = self.gains.to(features.dtype).sqrt()
        lengths = _squared(x, m) - _squared(x @ directions.T * root, m @ directions.T * root)
        return (lengths / self.unit.to(features.dtype)).clamp_min(0).amin(1)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between rows: (n, d), (m, d) -> (n, m)."""
    return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T


def _fitted(features: Tensor, labels: Tensor) -> Familiarity | None:
    """Class means, and the covariance of what is left, before distances have a unit."""
    present, index = labels.unique(return_inverse=True)
    if len(features) <= len(present):
        return None
    counts = torch.bincount(index).unsqueeze(1)
    mean = torch.zeros(len(present), features.shape[1], dtype=torch.float64).index_add_(0, index, features) / counts
    rest = features - mean[index]
    floor = SHRINK * rest.square().mean()
    if not floor > 0:
        return None
    _, values, directions = torch.linalg.svd(rest, full_matrices=False)
    variance = values.square() / len(rest)
    rank = min(MOST, len(variance))
    gains = variance[:rank] / (variance[:rank] + floor)
    return Familiarity(mean, directions[:rank], gains, floor)


def observe(network: Network, x: Tensor) -> tuple[nn.Module | None, Tensor, Tensor]:
    """Run a network: its last convolution or linear layer, what enters that, and the output.

    Where there is no such layer, the images themselves stand for what enters it.
    """
    steps = [
        index
        for index, node in enumerate(network.nodes)
        if node.op == "layer" and isinstance(network.layer(node.target), nn.Conv2d | nn.Linear)
    ]
    values = {network.nodes[0].name: x}
    stop = steps[-1] if steps else 0
    network.advance(values, 0, stop)
    read: list[Tensor] = [x]
    if steps:
        map_refs(network.nodes[stop].args[:1], lambda ref: read.append(values[ref.node]))
    network.advance(values, stop, len(network.nodes))
    layer = network.layer(network.nodes[stop].target) if steps else None
    return layer, read[-1], values[network.nodes[-1].name]


def pooled(layer: nn.Module | None, value: Tensor) -> Tensor:
    """What enters a layer, averaged over positions: (batch, channels)."""
    if isinstance(layer, nn.Linear):
        return value.reshape(len(value), -1, value.shape[-1]).mean(1)
    return value.flatten(2).mean(2) if value.ndim > 2 else value
