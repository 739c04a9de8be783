"""Make the logits of different components comparable (the paper's parameter scaling, and others).

A strategy is one function in one table. It returns a `Scale`: a linear map on the parts' logits side by side.
Strategies that need no image come from statistics in the manifests; few-shot ones also take a few labelled
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brickyard.errors import OptionError
from brickyard.manifest import ComponentManifest, ScalingRecord

__all__ = ["SCALINGS", "Evidence", "Scale", "Scaling", "scale", "scaling"]


@dataclass(frozen=True)
class Evidence:
    """What a strategy may look at.

    Attributes:
        parts: The components' manifests.
        logits: Logits of the few-shot images, all parts' side by side, (images, logits), or None.
        targets: For each of them, the place of the right logit, or None.
    """

    parts: tuple[ComponentManifest, ...]
    logits: Tensor | None = None
    targets: Tensor | None = None

    @property
    def sizes(self) -> list[int]:
        """Logits a part."""
        return [len(part.classes) for part in self.parts]


@dataclass(frozen=True)
class Scale:
    """`logits @ matrix.T + shift`; None stands for no map at all.

    Attributes:
        matrix: (logits, logits).
        shift: (logits,).
        log_probability: Whether each part's logits are first turned into log-probabilities over all the
            outputs that it has, reject included.
        notes: What a reader of the manifest should know.
    """

    matrix: Tensor | None = None
    shift: Tensor | None = None
    log_probability: bool = False
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scaling:
    """A strategy: its function, and whether it needs labelled images."""

    name: str
    fit: Callable[..., Scale]
    few_shot: bool


SCALINGS: dict[str, Scaling] = {}


def scaling(name: str, *, few_shot: bool = False) -> Callable[[Callable[..., Scale]], Callable[..., Scale]]:
    """Register a strategy under a name."""

    def register(fit: Callable[..., Scale]) -> Callable[..., Scale]:
        SCALINGS[name] = Scaling(name, fit, few_shot)
        return fit

    return register


def scale(name: str, evidence: Evidence, options: dict[str, Any]) -> tuple[Scale, ScalingRecord]:
    """Fit a strategy by name.

    Raises:
        OptionError: There is no such strategy or option, or it needs images or statistics that are missing.
    """
    strategy = find(name)
    if strategy.few_shot and evidence.logits is None:
        raise OptionError(f"scaling={name!r} needs a few labelled images of every part; give images=")
    try:
        fitted = strategy.fit(evidence, **options)
    except TypeError as error:
        raise OptionError(f"scaling={name!r} cannot take the options {options}: {error}") from None
    record = ScalingRecord(
        name=name,
        options={**options, **fitted.options},
        images=0 if evidence.logits is None or not strategy.few_shot else len(evidence.logits),
        log_probability=fitted.log_probability,
        notes=fitted.notes,
    )
    return fitted, record


def find(name: str) -> Scaling:
    """The strategy of that name.

    Raises:
        OptionError: There is none.
    """
    if name not in SCALINGS:
        raise OptionError(f"scaling={name!r} is not known; choose one of {', '.join(SCALINGS)}")
    return SCALINGS[name]


@scaling("none")
def side_by_side(evidence: Evidence) -> Scale:
    """The logits as they are."""
    return Scale()


@scaling("log-probability")
def log_probability(evidence: Evidence) -> Scale:
    """Each part's log-probabilities over all its outputs; with a reject output, over all source classes."""
    return Scale(log_probability=True)


@scaling("logit-mean")
def logit_mean(evidence: Evidence) -> Scale:
    """Divide each class's logit by its mean where it wins and is right, on the part's own training images."""
    factors: list[float] = []
    notes: list[str] = []
    for part in evidence.parts:
        found = _statistics(part, "logit-mean").winning_logit
        usable = [value for value in found if value is not None and value > 0]
        fallback = sum(usable) / len(usable) if usable else 1.0
        for name, value in zip(part.classes, found, strict=True):
            if value is None or value <= 0:
                why = "no correct image" if value is None else "a mean winning logit that is not positive"
                notes.append(f"class {name!r} has {why}; the mean of its component's other classes stands in")
                value = fallback
            factors.append(1 / value)
    return _diagonal(factors, notes=tuple(notes))


@scaling("magnitude")
def magnitude(evidence: Evidence) -> Scale:
    """Scale each part by the mean magnitude of the features that enter its last layer, relative to the others'.

    The paper's feature-map rule, carried through to the logits. Kept for comparison: it can make things worse.
    """
    found = [_statistics(part, "magnitude").magnitude for part in evidence.parts]
    if any(not value for value in found):
        raise OptionError("scaling='magnitude' needs a positive feature magnitude of every part; use another scaling")
    known = [float(value) for value in found if value]
    mean = sum(known) / len(known)
    return _diagonal([mean / value for value, size in zip(known, evidence.sizes, strict=True) for _ in range(size)])


@scaling("affine", few_shot=True)
def affine(evidence: Evidence, strength: float = 1e-3) -> Scale:
    """One factor and one shift a component, fitted to labelled images by logistic regression."""
    z, targets = _few_shot(evidence)
    owner = torch.repeat_interleave(torch.arange(len(evidence.sizes)), torch.tensor(evidence.sizes))

    def outputs(p: Tensor) -> Tensor:
        return z * (1 + p[0])[owner] + p[1][owner] * _spread(z)

    p = _minimise(torch.zeros(2, len(evidence.sizes), dtype=torch.float64), outputs, targets, strength)
    return Scale(torch.diag((1 + p[0])[owner]), p[1][owner] * _spread(z), options={"strength": strength})


@scaling("joint-head", few_shot=True)
def joint_head(evidence: Evidence, strength: float | None = None) -> Scale:
    """A linear map on all logits, started at side by side and held to it by a prior.

    Args:
        evidence: Parts, and logits and targets of labelled images.
        strength: Weight of the prior; default: grows with the number of classes, since sources have fitted
            the training images that the head learns from.
    """
    z, targets = _few_shot(evidence)
    count = z.shape[1]
    strength = JOINT_STRENGTH * count**4 if strength is None else strength
    eye = torch.eye(count, dtype=torch.float64)

    def outputs(p: Tensor) -> Tensor:
        return z @ (eye + p[:count]).T + p[count] * _spread(z)

    p = _minimise(torch.zeros(count + 1, count, dtype=torch.float64), outputs, targets, strength, _spread(z))
    return Scale(eye + p[:count], p[count] * _spread(z), options={"strength": strength})


JOINT_STRENGTH = 3e-7  # times the fourth power of the number of logits; chosen on held-out training images


def _minimise(
    start: Tensor, outputs: Callable[[Tensor], Tensor], targets: Tensor, strength: float, unit: float = 1.0
) -> Tensor:
    """Cross-entropy plus `strength / 2 * |unit * p|^2`, by L-BFGS in float64: convex, so the start does not matter."""
    if not strength >= 0:
        raise OptionError(f"strength={strength!r} must be 0 or more")
    p = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([p], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(outputs(p), targets)
        value = value + 0.5 * strength * (p * unit).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return p.detach()


def _spread(z: Tensor) -> float:
    """The size of a typical difference between logits: the unit of shifts."""
    return float(z.std()) or 1.0


def _few_shot(evidence: Evidence) -> tuple[Tensor, Tensor]:
    if evidence.logits is None or evidence.targets is None:
        raise OptionError("labelled images are needed; give images=")
    return evidence.logits.double(), evidence.targets


def _diagonal(factors: Sequence[float], notes: tuple[str, ...] = ()) -> Scale:
    matrix = torch.diag(torch.tensor(list(factors), dtype=torch.float64))
    return Scale(matrix, torch.zeros(len(matrix), dtype=torch.float64), notes=notes)


def _statistics(part: ComponentManifest, name: str) -> Any:
    if part.statistics is None:
        raise OptionError(
            f"scaling={name!r} needs statistics, and the component for {', '.join(part.classes[:5])} of "
            f"{part.source.name!r} was cut without labelled images; cut it again with images, or use scaling='none'"
        )
    return part.statistics
