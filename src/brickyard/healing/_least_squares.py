"""Ridge least squares for the weights of one layer, from samples of what it reads and should give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from brickyard.runtime._processes import Ranks

_PIVOT = 1e-7  # a Cholesky pivot below this share of the largest one means singular
_BLOCK = 1 << 12  # samples that are multiplied at once
NAMED = 3  # layers that a note names


@dataclass
class HealReport:
    """How many layers were repaired, with notes.

    Attributes:
        layers: How many.
        notes: What was left alone, and why.
        ridges: The strength of the prior that each layer was refitted with.
        worse: For layers with outputs that stay as they were cut, how many these are, and how many there are.
    """

    layers: int = 0
    notes: list[str] = field(default_factory=list)
    ridges: dict[str, float] = field(default_factory=dict)
    worse: dict[str, tuple[int, int]] = field(default_factory=dict)

    def summed_up(self) -> HealReport:
        """The report, with one note on all outputs that stay as they were cut."""
        if self.worse:
            count = sum(outputs for outputs, _ in self.worse.values())
            named = [f"{outputs} of {of} of layer {name!r}" for name, (outputs, of) in self.worse.items()]
            more = f" and those of {len(named) - NAMED} more layers" if len(named) > NAMED else ""
            why = f"{count} outputs were left as they were cut ({', '.join(named[:NAMED])}{more})"
            self.notes.append(f"{why}: on the images held back, the refit did not lower their error")
        return self


class Change(NamedTuple):
    """A change of weights (G, q, n), and of outputs' shifts (G, q, 1), in float64; zeros where there is no shift."""

    weight: Tensor
    shift: Tensor

    def moved(self, x: Tensor) -> Tensor:
        """What it does to outputs, (G * q, N), for inputs (G, n, N)."""
        moved = self.weight.to(x.dtype) @ x + self.shift.to(x.dtype)
        return moved.flatten(0, 1)

    def only(self, outputs: Tensor) -> Change:
        """The change of some outputs, as a mask (G * q,); the others stay."""
        chosen = outputs.reshape(*self.weight.shape[:2], 1)
        return Change(self.weight * chosen, self.shift * chosen)


class Right(NamedTuple):
    """The right side of equations, (G, n, q) or (G, N, q), and the mean residual, (G, q, 1); in float64."""

    products: Tensor
    mean: Tensor


class Equations:
    """Equations (X X^T + ridge * scale * I) change^T = X R^T for each group of a layer, over all processes.

    `scale` is the mean diagonal of X X^T, and a shift of the outputs is free. With fewer samples than inputs, the same
    solution is computed from the products between samples.

    Args:
        x: What the layer's outputs read at this process's samples, (G, n, N).
        with_shift: Whether its outputs can be shifted.
        ranks: The processes that have a share of the samples each.
    """

    def __init__(self, x: Tensor, with_shift: bool, ranks: Ranks) -> None:
        self._ranks, self._with_shift = ranks, with_shift
        total = torch.tensor(float(x.shape[2]), dtype=torch.float64)
        ranks.add(total)
        self._few = int(total) < x.shape[1]
        self._x = ranks.joined(x) if self._few else x
        self._mean = x.new_zeros(*x.shape[:2], 1, dtype=torch.float64)
        if with_shift:
            self._mean = self._x.sum(2, keepdim=True, dtype=torch.float64)
            if not self._few:
                ranks.add(self._mean)
            self._mean /= total
        self._gram = self._products()
        centred = self._gram.diagonal(dim1=1, dim2=2).sum(1)
        energy = centred + total * self._mean.square().sum((1, 2))
        self.dead = int((energy <= 0).sum())
        self._scale = torch.where(energy > 0, energy / x.shape[1], 1.0)
        self._count = total
        self._factors: dict[float, tuple[Tensor, float] | None] = {}

    def _products(self) -> Tensor:
        """Products of centred inputs: between inputs (G, n, n), or between samples (G, N, N)."""
        if self._few:
            centred = self._x.double() - self._mean
            return centred.transpose(1, 2) @ centred
        groups, inputs, _ = self._x.shape
        gram = self._x.new_zeros(groups, inputs, inputs, dtype=torch.float64)
        for block in self._x.split(_BLOCK, 2):
            some = block - self._mean.to(block.dtype)
            gram += some @ some.transpose(1, 2)
        self._ranks.add(gram)
        return gram

    def right(self, residual: Tensor) -> Right:
        """The right side for residuals (G, q, N)."""
        if self._few:
            residual = self._ranks.joined(residual)
        mean = residual.sum(2, keepdim=True, dtype=torch.float64)
        if not self._few:
            self._ranks.add(mean)
        mean = mean / self._count if self._with_shift else mean * 0
        if self._few:
            return Right((residual.double() - mean).transpose(1, 2), mean)
        groups, inputs, _ = self._x.shape
        cross = self._x.new_zeros(groups, inputs, residual.shape[1], dtype=torch.float64)
        for x, r in zip(self._x.split(_BLOCK, 2), residual.split(_BLOCK, 2), strict=True):
            centred = x - self._mean.to(x.dtype)
            cross += centred @ (r - mean.to(r.dtype)).transpose(1, 2)
        self._ranks.add(cross)
        return Right(cross, mean)

    def solve(self, right: Right, ridge: float) -> tuple[Change, float] | None:
        """The change that lowers residuals most, and the ridge it took; None if there is none."""
        found = self._factor(ridge)
        if found is None:
            return None
        factor, strength = found
        weight = torch.cholesky_solve(right.products, factor).transpose(1, 2)
        if self._few:
            weight = weight @ (self._x.double() - self._mean).transpose(1, 2)
        if not bool(torch.isfinite(weight).all()):
            return None
        return Change(weight, right.mean - weight @ self._mean), strength

    def _factor(self, ridge: float) -> tuple[Tensor, float] | None:
        """A Cholesky factor of the equations, with a stronger ridge if they are singular."""
        if ridge not in self._factors:
            self._factors[ridge] = next(self._strengthened(ridge), None)
        return self._factors[ridge]

    def _strengthened(self, ridge: float) -> Iterator[tuple[Tensor, float]]:
        if not bool(torch.isfinite(self._gram).all()):
            return
        strength = ridge
        for _ in range(8):
            penalty = torch.diag_embed((strength * self._scale).unsqueeze(1).expand(self._gram.shape[:2]))
            factor, info = torch.linalg.cholesky_ex(self._gram + penalty)
            pivots = factor.diagonal(dim1=1, dim2=2)
            if not info.any() and bool((pivots.amin(1) > _PIVOT * pivots.amax(1)).all()):
                yield factor, strength
                return
            strength = max(strength * 10, 1e-6)
