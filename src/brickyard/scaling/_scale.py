"""The map on logits that calibrates parts against each other, and the evidence that it is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brickyard.base._errors import FileError
from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.outputs._kinds import Outputs
from brickyard.outputs._outputs import find_outputs


class Gate(nn.Module):
    """Offset for all classes of a part, computed from the parts' features.

    For distances d (batch, parts) and the concatenated features f of all parts (batch, features), it returns
    `f @ weights.T + bias - d * slopes`, (batch, parts).

    Attributes:
        slopes: (parts,).
        weights: (parts, features).
        bias: (parts,).
    """

    slopes: Tensor
    weights: Tensor
    bias: Tensor

    def __init__(self, slopes: Tensor, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        for name, value in (("slopes", slopes), ("weights", weights), ("bias", bias)):
            self.register_buffer(name, value.float())

    @classmethod
    def blank(cls, sizes: Sequence[int]) -> Gate:
        """A gate on the meta device for parts with these numbers of features."""
        parts = len(sizes)
        return cls(*(torch.empty(shape, device="meta") for shape in ((parts,), (parts, sum(sizes)), (parts,))))

    def forward(self, features: Tensor, distances: Tensor) -> Tensor:
        """The offset for the classes of each part, (batch, parts)."""
        slopes, weights, bias = (value.to(features.dtype) for value in (self.slopes, self.weights, self.bias))
        return features @ weights.T + bias - distances * slopes


@dataclass(frozen=True)
class Evidence:
    """The input of a scaling strategy.

    Attributes:
        manifest: The assembly's manifest, including those of its parts.
        logits: Logits of the few-shot images, concatenated over the parts, (images, logits), or None.
        targets: Their targets in terms of the assembly's classes, or None.
        owners: The part that each image belongs to, or None.
        features: Their features, concatenated over the parts, or None if the parts cannot be run separately.
        distances: Their distances from each part's classes, (images, parts), or None.
        inside: Whether every part can tell how unusual the values inside it are.
        lost: What each part's logits lose without any label, as by `shortfall`, (images, parts), or None.
    """

    manifest: AssemblyManifest
    logits: Tensor | None = None
    targets: Tensor | None = None
    owners: Tensor | None = None
    features: Tensor | None = None
    distances: Tensor | None = None
    inside: bool = False
    lost: Tensor | None = None

    @property
    def parts(self) -> tuple[ComponentManifest, ...]:
        """The components' manifests."""
        return self.manifest.parts

    @property
    def outputs(self) -> Outputs:
        """The kind of the outputs."""
        return find_outputs(self.manifest.outputs)

    @property
    def sizes(self) -> list[int]:
        """Number of logits per part."""
        return [len(columns) for columns in self.manifest.columns]

    @property
    def part_of(self) -> Tensor:
        """The part that produces each logit."""
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))


@dataclass(frozen=True)
class Scale:
    """The map `logits @ matrix.T + shift`; None means no map.

    Attributes:
        matrix: (logits, logits).
        shift: (logits,).
        gate: Offset for the classes of each part, or None.
        log_probability: Whether each part's logits are first normalised as its kind of outputs prescribes: to
            log-probabilities over all its outputs, including reject.
        energy: Whether each part's logits are lowered where they are lower than usual, as by `shortfall`.
        depth: How much they are also lowered where the values inside the part are unusual, as a weight; 0 for not.
        notes: Notes for the manifest.
    """

    matrix: Tensor | None = None
    shift: Tensor | None = None
    gate: Gate | None = None
    log_probability: bool = False
    energy: bool = False
    depth: float = 0.0
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def shortfall(
    energies: Tensor, usual: Tensor, spread: Tensor, depths: Tensor | None = None, weight: float = 0.0
) -> Tensor:
    """What parts' logits lose where all of a part's are low, as on an image of none of its classes: (batch, parts).

    An image whose log-sum-exp E is below `usual` loses `spread * log(1 + (usual - E) / spread)`. So half of a part's
    own images lose nothing, and a part loses in units of its own logits. (Energy as a score of strangers: Liu et al.,
    2020, arXiv 2010.03759.) Where values inside a part are unusual, it loses `spread` times the mean logarithm over
    its layers as well, as often as `weight` says.

    Args:
        energies: The log-sum-exp of each part's logits, (batch, parts).
        usual: The median of each part's own images, (parts,).
        spread: How far below it the lowest tenth of them begins, (parts,).
        depths: How unusual values inside each part are, as from `Depths`, (batch, parts), or None.
        weight: How much these count.
    """
    lost = torch.log1p((usual - energies).clamp_min(0) / spread)
    return spread * (lost if depths is None or not weight else lost + weight * depths.to(lost.dtype))


def usual_energies(manifest: AssemblyManifest) -> Tensor:
    """The usual log-sum-exp of each part's logits, and its spread: (2, parts).

    Raises:
        FileError: A part does not know its own.
    """
    known = [part.statistics.energy for part in manifest.parts if part.statistics is not None]
    found = [energy for energy in known if energy is not None]
    if len(found) < len(manifest.parts):
        raise FileError("file-inconsistent", "its scaling needs the energies of every part's own images")
    return torch.tensor(found).T


class Signals(NamedTuple):
    """What parts say of images, before scaling.

    Attributes:
        logits: Those of the parts' columns side by side, (batch, logits).
        features: Their features, unit length per part, (batch, features), or None.
        distances: The distances of these from the parts' own classes, (batch, parts), or None.
        energies: The log-sum-exp of each part's logits, (batch, parts), or None.
        depths: How unusual values inside each part are, (batch, parts), or None.
        unknown: The log-probability that each part gives to classes which are none of the assembly's, (batch, parts),
            or None.
    """

    logits: Tensor
    features: Tensor | None = None
    distances: Tensor | None = None
    energies: Tensor | None = None
    depths: Tensor | None = None
    unknown: Tensor | None = None


def with_reject(logits: Tensor, unknown: Tensor | None) -> Tensor:
    """Add the logit of "none of these", so that its probability is as given: (batch, classes) -> (batch, classes + 1).

    The other logits, and so the answers among the classes, do not change: with p the probability, the new logit is
    `logsumexp(logits) + log p - log(1 - p)`. p is one less the smallest step of its type at most.

    Args:
        logits: Those of the classes, (batch, classes).
        unknown: What each part contributes to log p, (batch, parts), or None: then the logits stay as they are.
    """
    if unknown is None:
        return logits
    unknown = unknown.sum(1).to(logits.dtype).clamp_max(-torch.finfo(logits.dtype).eps)
    odds = unknown - torch.log(-torch.expm1(unknown))
    return torch.cat([logits, (logits.logsumexp(1) + odds).unsqueeze(1)], 1)


def combine(manifest: AssemblyManifest, logits: Tensor) -> Tensor:
    """Merge the scaled logits of all parts into one per class; several parts may know a class."""
    if manifest.plain:
        return logits
    return find_outputs(manifest.outputs).joined(logits, manifest.members, manifest.on_duplicate == "max")


def owned(manifest: AssemblyManifest) -> Tensor:
    """The share of each class that each part contributes, (classes, parts)."""
    share = torch.zeros(len(manifest.classes), len(manifest.parts), dtype=torch.float64)
    for index, parts in enumerate(manifest.owners):
        for part in parts:
            share[index, part] += 1 / len(parts)
    return share
