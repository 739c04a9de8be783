"""Normal equations of one layer, and their ridge solution."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brickyard.network._layer_types import mixing_of
from brickyard.network._mixing import Mixing
from brickyard.runtime._processes import Ranks

_PIVOT = 1e-7  # a Cholesky pivot below this share of the largest one means singular


Solution = tuple[Tensor, Tensor | None]


@dataclass
class HealReport:
    """How many layers were repaired, with notes."""

    layers: int = 0
    notes: list[str] = field(default_factory=list)


class _NormalEquations:
    """Sums of x x^T and x r^T over all positions of all images, for each group of a layer."""

    def __init__(self, mixing: Mixing, with_shift: bool, ranks: Ranks) -> None:
        groups, rows = mixing.groups, mixing.rows
        size = rows[0].numel() + int(with_shift)
        self.with_shift, self._ranks = with_shift, ranks
        self.gram = rows.new_zeros((groups, size, size), dtype=torch.float64)
        self.cross = rows.new_zeros((groups, size, len(rows) // groups), dtype=torch.float64)
        self._complete = False

    def add(self, x: Tensor, residual: Tensor) -> None:
        """Add a block: inputs (G, n, N), residuals (G, q, N)."""
        if self.with_shift:
            x = torch.cat([x, x.new_ones(x.shape[0], 1, x.shape[2])], 1)
        self.cross += x @ residual.transpose(1, 2)
        if not self._complete:
            self.gram += x @ x.transpose(1, 2)

    def again(self) -> bool:
        """Switch to other residuals of the same inputs; return whether that is possible."""
        self.cross.zero_()
        self._complete = True
        return True

    def solve(self, ridge: float, moved: Tensor, name: str, report: HealReport) -> Solution | None:
        """Return the solution, or None if there is none; `moved` is how far weights have moved from the prior."""
        self._ranks.add(self.cross)
        if not self._complete:
            self._ranks.add(self.gram)
        diagonal = self.gram.diagonal(dim1=1, dim2=2)  # (G, n)
        weights = diagonal.shape[1] - int(self.with_shift)
        scale = _scale(diagonal[:, :weights].mean(1), name, report)
        penalty = torch.zeros_like(diagonal)
        penalty[:, :weights] = scale.unsqueeze(1)
        pull = torch.zeros_like(self.cross)
        pull[:, :weights] = moved.double().reshape(len(scale), -1, weights).transpose(1, 2) * scale.reshape(-1, 1, 1)
        solution = _solved(self.gram, penalty, self.cross, pull, ridge, name, report)  # (G, n, q)
        if solution is None:
            return None
        change = solution[:, :weights].transpose(1, 2).flatten(0, 1)
        return change, solution[:, weights].flatten() if self.with_shift else None


class _FewPositions:
    """The same solution from products between positions, for fewer positions than inputs."""

    def __init__(self, mixing: Mixing, with_shift: bool, ranks: Ranks) -> None:
        groups, rows = mixing.groups, mixing.rows
        self.with_shift, self._ranks = with_shift, ranks
        self.inputs = [rows.new_zeros(groups, rows[0].numel(), 0)]
        self.residuals = [rows.new_zeros(groups, len(rows) // groups, 0)]

    def add(self, x: Tensor, residual: Tensor) -> None:
        self.inputs.append(x.clone())
        self.residuals.append(residual.clone())

    def again(self) -> bool:
        """Not possible: it would have to hold all inputs again."""
        return False

    def solve(self, ridge: float, moved: Tensor, name: str, report: HealReport) -> Solution | None:
        """Return the solution; an unpenalised shift makes both sides' means agree."""
        x, r = (self._ranks.joined(torch.cat(parts, 2).double()) for parts in (self.inputs, self.residuals))
        scale = _scale(x.square().sum((1, 2)) / x.shape[1], name, report)
        x_mean, r_mean = x.mean(2, keepdim=True), r.mean(2, keepdim=True)
        if self.with_shift:
            x, r = x - x_mean, r - r_mean
        gram = x.transpose(1, 2) @ x  # (G, N, N)
        right = r.transpose(1, 2)
        solution = _solved(gram, scale.unsqueeze(1).expand(gram.shape[:2]), right, right * 0, ridge, name, report)
        if solution is None:
            return None
        change = solution.transpose(1, 2) @ x.transpose(1, 2)  # (G, q, n)
        shift = (r_mean - change @ x_mean).flatten() if self.with_shift else None
        return change.flatten(0, 1), shift


def equations_for(layer: nn.Module, positions: int, with_shift: bool, ranks: Ranks) -> _NormalEquations | _FewPositions:
    """Choose the form of a layer's refit equations that is smaller for this many positions."""
    mixing = mixing_of(layer)
    few = positions < mixing.rows[0].numel()
    return (_FewPositions if few else _NormalEquations)(mixing, with_shift, ranks)


def _scale(scale: Tensor, name: str, report: HealReport) -> Tensor:
    """The mean energy of a group's inputs; 1, with a note, if they are all zeros."""
    dead = int((scale <= 0).sum())
    if dead:
        report.notes.append(f"layer {name!r}: {dead} of {len(scale)} groups have only zeros as input")
    return torch.where(scale > 0, scale, 1.0)


def _solved(
    gram: Tensor, penalty: Tensor, right: Tensor, pull: Tensor, ridge: float, name: str, report: HealReport
) -> Tensor | None:
    """Solve (gram + ridge * penalty) z = right - ridge * pull per group, with a stronger ridge if that is singular."""
    if not bool(torch.isfinite(gram).all()) or not bool(torch.isfinite(right).all()):
        report.notes.append(f"layer {name!r}: its equations overflow; it was left as it was cut")
        return None
    strength = ridge
    for _ in range(8):
        factor, info = torch.linalg.cholesky_ex(gram + torch.diag_embed(strength * penalty))
        pivots = factor.diagonal(dim1=1, dim2=2)
        if not info.any() and bool((pivots.amin(1) > _PIVOT * pivots.amax(1)).all()):
            if strength > ridge:
                report.notes.append(f"layer {name!r}: its equations were singular; ridge {strength:g} was used")
            return torch.cholesky_solve(right - strength * pull, factor)
        strength = max(strength * 10, 1e-6)
    report.notes.append(f"layer {name!r}: its equations stayed singular; it was left as it was cut")
    return None
