"""The map on logits that calibrates parts against each other, and the registry of its strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.outputs._outputs import Outputs, find_outputs


class Gate(nn.Module):
    """Raises or lowers all classes of a part by how the parts' features look.

    For images at distances d (batch, parts) with features f of all parts side by side (batch, features) it gives
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
        """One without numbers, on the meta device, for parts with so many features."""
        parts = len(sizes)
        return cls(*(torch.empty(shape, device="meta") for shape in ((parts,), (parts, sum(sizes)), (parts,))))

    def forward(self, features: Tensor, distances: Tensor) -> Tensor:
        """What is added to the classes of each part, (batch, parts)."""
        slopes, weights, bias = (value.to(features.dtype) for value in (self.slopes, self.weights, self.bias))
        return features @ weights.T + bias - distances * slopes


@dataclass(frozen=True)
class Evidence:
    """What a strategy may look at.

    Attributes:
        manifest: The assembly's manifest, with those of the parts.
        logits: Logits of the few-shot images, all parts' side by side, (images, logits), or None.
        targets: What is right for each of them in the assembly's classes, or None.
        owners: For each of them, the part that it belongs to, or None.
        features: For each of them, the features of all parts side by side, or None where the parts are not at hand one
            by one.
        distances: For each of them, how far it is from each part's classes, (images, parts), or None.
    """

    manifest: AssemblyManifest
    logits: Tensor | None = None
    targets: Tensor | None = None
    owners: Tensor | None = None
    features: Tensor | None = None
    distances: Tensor | None = None

    @property
    def parts(self) -> tuple[ComponentManifest, ...]:
        """The components' manifests."""
        return self.manifest.parts

    @property
    def outputs(self) -> Outputs:
        """What the logits mean."""
        return find_outputs(self.manifest.outputs)

    @property
    def sizes(self) -> list[int]:
        """Logits a part."""
        return [len(columns) for columns in self.manifest.columns]

    @property
    def part_of(self) -> Tensor:
        """For each logit, the part that gives it."""
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))


@dataclass(frozen=True)
class Scale:
    """`logits @ matrix.T + shift`; None stands for no map at all.

    Attributes:
        matrix: (logits, logits).
        shift: (logits,).
        gate: Added to a part's classes, or None.
        log_probability: Whether each part's logits are first normalised as its kind of outputs does it: to
            log-probabilities over all the outputs that it has, reject included.
        notes: What a reader of the manifest should know.
    """

    matrix: Tensor | None = None
    shift: Tensor | None = None
    gate: Gate | None = None
    log_probability: bool = False
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def combine(manifest: AssemblyManifest, logits: Tensor) -> Tensor:
    """Scaled logits side by side -> one for each class: several parts may know it."""
    if manifest.plain:
        return logits
    return find_outputs(manifest.outputs).joined(logits, manifest.members, manifest.on_duplicate == "max")


def owned(manifest: AssemblyManifest) -> Tensor:
    """What share of a class each part contributes: (classes, parts)."""
    share = torch.zeros(len(manifest.classes), len(manifest.parts), dtype=torch.float64)
    for index, parts in enumerate(manifest.owners):
        for part in parts:
            share[index, part] += 1 / len(parts)
    return share
