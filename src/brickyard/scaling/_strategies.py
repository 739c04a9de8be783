"""Strategies that make the logits of different components comparable: the paper's parameter scaling, and others.

Each strategy is a function registered in one table. It returns a `Scale`: a linear map on the concatenated logits of
the parts and, for some, a gate that raises or lowers all classes of a part depending on its features. Strategies
without images use statistics stored in the components; few-shot strategies also need a few labelled images.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from brickyard.base._checks import check_choice, check_new, share_or_more
from brickyard.base._classes import numbered
from brickyard.base._errors import OptionError
from brickyard.base._records import ComponentManifest, ScalingRecord
from brickyard.component._familiarity import Within
from brickyard.scaling._scale import Evidence, Gate, Scale, combine, owned

FAMILIARITY = 0.3  # of the smallest margin: what a part's logits lose for each usual distance of its features
INSIDE = 1.5  # the weight of what is unusual inside a part; chosen on training images
LDA_STRENGTH = 4.0  # of the prior, over the number of images
LDA_SHRINK = 1.0  # of the mean variance, added to every direction


@dataclass(frozen=True)
class Scaling:
    """A registered strategy, and whether it needs labelled images or the parts' features."""

    name: str
    help: str
    fit: Callable[..., Scale]
    few_shot: bool
    gated: bool


SCALINGS: dict[str, Scaling] = {}


def scaling(
    name: str, *, help: str, few_shot: bool = False, gated: bool = False
) -> Callable[[Callable[..., Scale]], Callable[..., Scale]]:
    """Register a strategy under a name, with a one-sentence description for help and tables.

    Raises:
        OptionError: One of Brickyard's own has that name.
    """

    def register(fit: Callable[..., Scale]) -> Callable[..., Scale]:
        check_new("scaling", name, fit, SCALINGS[name].fit if name in SCALINGS else None)
        SCALINGS[name] = Scaling(name, help, fit, few_shot, gated)
        return fit

    return register


def scale(name: str, evidence: Evidence, options: dict[str, Any]) -> tuple[Scale, ScalingRecord]:
    """Fit a strategy by name."""
    strategy = find(name)
    if strategy.few_shot and evidence.logits is None:
        raise OptionError("option-needs-data", f"scaling={name!r} needs labelled images for each part; give images=")
    if strategy.gated and evidence.manifest.form != "parallel":
        form = evidence.manifest.form
        why = f"scaling={name!r} reads the parts' features, which form={form!r} does not keep separate"
        raise OptionError("option-needs-parallel-form", f"{why}; use form='parallel'")
    try:
        inspect.signature(strategy.fit).bind(evidence, **options)
    except TypeError as error:
        raise OptionError("option-unknown-name", f"scaling={name!r} has no options {options}: {error}") from None
    try:
        fitted: Any = strategy.fit(evidence, **options)
    except TypeError as error:
        if not options or not strategy.fit.__module__.startswith("brickyard."):
            raise
        raise OptionError("option-type", f"scaling={name!r} cannot take options {options}: {error}") from None
    if not isinstance(fitted, Scale):
        why = f"scaling={name!r} returned a {type(fitted).__name__}"
        raise OptionError("option-wrong-object", f"{why}; return a brickyard.scaling.Scale")
    record = ScalingRecord(
        name=name,
        options={**options, **fitted.options},
        images=0 if evidence.logits is None or not strategy.few_shot else len(evidence.logits),
        log_probability=fitted.log_probability,
        gate=fitted.gate is not None,
        energy=fitted.energy,
        depth=fitted.depth,
        notes=fitted.notes,
    )
    return fitted, record


def find(name: str, given: object = None, option: str = "images") -> Scaling:
    """Look up a strategy; `given` are labelled images or nodes for it, and `option` is what messages call them."""
    check_choice("scaling", name, tuple(SCALINGS), "brickyard.scaling.scaling")
    if given is not None and not SCALINGS[name].few_shot:
        able = [key for key, one in SCALINGS.items() if one.few_shot]
        advice = f"leave it out, or choose one of {', '.join(able)}"
        raise OptionError("option-without-effect", f"scaling={name!r} does not use {option}=; {advice}")
    return SCALINGS[name]


@scaling(
    "auto",
    help="Lowers the logits of a part on images unlike its own; with votes, uses log-probabilities.",
)
def automatic(evidence: Evidence) -> Scale:
    """The best that is known without labelled images, from what each part stored about its own.

    Parts that vote on each other's classes, whose sources know them, are compared by their log-probabilities. Other
    parts are compared by their logits, lowered where they are lower than they usually are, and where the values inside
    the part are unusual; these are known where the parts run apart.
    """
    if len(evidence.parts) == 1:
        return Scale(notes=("one part needs no scaling",))
    if evidence.manifest.outputs != "one":
        return Scale(notes=("classes that do not exclude each other need no scaling",))
    if evidence.manifest.votes:
        return Scale(log_probability=True, notes=("parts vote on each other's classes, by their log-probabilities",))
    unknown = [part for part in evidence.parts if part.statistics is None or part.statistics.energy is None]
    if unknown:
        names = "; ".join(", ".join(part.classes[:3]) for part in unknown)
        why = f"the logits stay as they are, since too few labelled images of the parts for {names} were seen"
        return Scale(notes=(f"{why} to know how low theirs usually are: cut them with 8 or more",))
    how = "logits are lowered where they are lower than on the part's own images"
    if _could_vote(evidence):
        how += "; the sources know all classes, so parts cut with reject=True would vote on those of the others"
    if evidence.inside:
        return Scale(energy=True, depth=INSIDE, notes=(f"{how}, and where the values inside the part are unusual",))
    known = [part.statistics.familiarity for part in evidence.parts if part.statistics is not None]
    if all(one is not None and one.depths for one in known):
        how += "; form='parallel' would also look at the values inside them"
    return Scale(energy=True, notes=(how,))


@scaling("none", help="Concatenates the logits unchanged.")
def side_by_side(evidence: Evidence) -> Scale:
    """Leave the logits unchanged."""
    return Scale()


@scaling(
    "log-probability",
    help="Converts the logits of each part to log-probabilities over all its outputs; best for parts cut with reject.",
)
def log_probability(evidence: Evidence) -> Scale:
    """Use each part's log-probabilities over all its outputs; with a reject output, over all source classes."""
    return Scale(log_probability=True)


@scaling("logit-mean", help="Divides the logit of each class by its mean over images on which it correctly wins.")
def logit_mean(evidence: Evidence) -> Scale:
    """Divide each class's logit by its mean over the part's own training images on which it correctly wins."""
    factors: list[float] = []
    notes: list[str] = []
    for part, task, size in zip(evidence.parts, evidence.manifest.tasks, evidence.sizes, strict=True):
        known = dict(zip(part.leads, _statistics(part, "logit-mean").winning_logit, strict=True))
        usable = [value for value in known.values() if value is not None and value > 0]
        fallback = sum(usable) / len(usable) if usable else 1.0
        for k in task:
            value = known[k]
            if value is None or value <= 0:
                why = "no correct image" if value is None else "a mean winning logit that is not positive"
                notes.append(f"class {part.names[k]!r} has {why}; the mean of its component's other classes stands in")
                value = fallback
            factors.append(1 / value)
        factors += [1 / fallback] * (size - len(task))
    return _diagonal(factors, notes=tuple(notes))


@scaling("magnitude", help="Scales each part by the magnitude of its features; for comparison, can reduce accuracy.")
def magnitude(evidence: Evidence) -> Scale:
    """Scale each part by the mean magnitude of the features that enter its last layer, relative to the others'.

    The paper's feature-map rule, carried through to the logits. For comparison only: it can reduce accuracy.
    """
    known = [_statistics(part, "magnitude").magnitude for part in evidence.parts]
    if not all(known):
        why = "scaling='magnitude' needs a positive feature magnitude for every part"
        raise OptionError("option-needs-statistics", f"{why}; use another scaling")
    mean = sum(known) / len(known)
    return _diagonal([mean / value for value, size in zip(known, evidence.sizes, strict=True) for _ in range(size)])


@scaling(
    "mahalanobis",
    gated=True,
    help="Lowers the logits of a part for images whose features are far from those of its own classes.",
)
def mahalanobis(evidence: Evidence, weight: float = FAMILIARITY) -> Scale:
    """Lower a part's logits where its features are far from those of its own classes.

    The distance is measured in units of the usual one, and `weight` in units of the smallest margin of any part (the
    mean difference between its two highest logits), so that differences between parts do not outweigh those within
    a part. Classes that a part's source knows by name are not foreign to it: the weight is multiplied by the share of
    the other parts' classes that the source does not know.

    Args:
        evidence: The parts.
        weight: Number of margins subtracted from a part's logits per unit of distance.
    """
    weight = share_or_more("weight", weight)
    slopes = weight * _smallest_margin(evidence, "mahalanobis") * _foreign(evidence)
    sizes = _feature_sizes(evidence, "mahalanobis")
    gate = Gate(slopes, torch.zeros(len(sizes), sum(sizes)), torch.zeros(len(sizes)))
    return Scale(gate=gate, options={"weight": weight})


@scaling("affine", few_shot=True, help="Fits one scale factor and one offset per part.")
def affine(evidence: Evidence, strength: float = 1e-3) -> Scale:
    """Fit one factor and one shift per component to labelled images by logistic regression."""
    z = _few_shot(evidence)
    owner = evidence.part_of

    def outputs(p: Tensor) -> Tensor:
        return combine(evidence.manifest, z * (1 + p[0])[owner] + p[1][owner] * _spread(z))

    p = _minimise(evidence, torch.zeros(2, len(evidence.sizes), dtype=torch.float64), outputs, strength)
    return Scale(torch.diag((1 + p[0])[owner]), p[1][owner] * _spread(z), options={"strength": strength})


@scaling(
    "joint-head",
    few_shot=True,
    help="Fits a linear map on all logits, with a prior that pulls it towards the identity.",
)
def joint_head(evidence: Evidence, strength: float | None = None) -> Scale:
    """Fit a linear map on all logits, with a prior that pulls it towards the identity.

    Args:
        evidence: The parts, with logits and targets of labelled images.
        strength: Weight of the prior; default: grows with the number of classes, since the sources have
            already fitted the training images that the head learns from.
    """
    z = _lowered(evidence)
    count = z.shape[1]
    strength = JOINT_STRENGTH * count**4 if strength is None else strength
    eye = torch.eye(count, dtype=torch.float64)

    def outputs(p: Tensor) -> Tensor:
        return combine(evidence.manifest, z @ (eye + p[:count]).T + p[count] * _spread(z))

    p = _minimise(evidence, torch.zeros(count + 1, count, dtype=torch.float64), outputs, strength, _spread(z))
    return _begun(evidence, Scale(eye + p[:count], p[count] * _spread(z), options={"strength": strength}))


@scaling(
    "lda",
    few_shot=True,
    gated=True,
    help="Learns from the features of all parts to which part an image belongs; usually the best choice.",
)
def lda(evidence: Evidence, strength: float = LDA_STRENGTH, shrink: float = LDA_SHRINK) -> Scale:
    """Learn to which part an image belongs, by linear discriminant analysis of all parts' features.

    A logistic regression then fits one factor and one shift per component, the weight of the analysis and that of
    "mahalanobis". It uses leave-one-out scores, so that images already seen do not inflate the analysis. It starts
    from what "auto" does without labels, or else from "mahalanobis", and a prior pulls it there.

    Args:
        evidence: The parts, with logits, features and targets of labelled images.
        strength: Weight of the prior, divided by the number of images.
        shrink: Share of the mean variance added to every direction of the features' covariance.
    """
    z = _lowered(evidence)
    features, distances, image_owner = evidence.features, evidence.distances, evidence.owners
    sizes = _feature_sizes(evidence, "lda")
    if features is None or distances is None or image_owner is None:
        raise OptionError("option-needs-data", "scaling='lda' needs the features of labelled images; give images=")
    if not shrink > 0:
        raise OptionError("option-range", f"shrink must be above 0, got {shrink!r}")
    slopes = FAMILIARITY * _smallest_margin(evidence, "lda") * _foreign(evidence)
    found = _discriminant(features, image_owner, sizes, shrink)
    blank = torch.zeros_like(distances), torch.zeros(len(sizes), sum(sizes)), 0 * distances[0]
    scores, weights, bias = found or blank
    share, owner, count = owned(evidence.manifest), evidence.part_of, len(sizes)
    start = float(evidence.lost is None)

    def outputs(p: Tensor) -> Tensor:
        rows = z * (1 + p[:count])[owner] + p[count : 2 * count][owner] * _spread(z)
        gate = p[-1] * _spread(z) * scores - (start + p[-2]) * slopes * distances
        return combine(evidence.manifest, rows) + gate @ share.T

    p = _minimise(evidence, torch.zeros(2 * count + 2, dtype=torch.float64), outputs, 2 * strength / len(z))
    reach = p[-1] * _spread(z)
    gate = Gate((start + p[-2]) * slopes, reach * weights, reach * bias)
    notes = () if found else ("the labelled images were too few to tell the parts apart by their features",)
    matrix, shift = torch.diag((1 + p[:count])[owner]), p[count : 2 * count][owner] * _spread(z)
    return _begun(evidence, Scale(matrix, shift, gate, notes=notes, options={"strength": strength, "shrink": shrink}))


def _discriminant(
    features: Tensor, owners: Tensor, sizes: Sequence[int], shrink: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Run linear discriminant analysis on the parts: leave-one-out scores (images, parts), weights and bias.

    The scores have unit standard deviation. None if a part has fewer than two images.
    """
    images = torch.bincount(owners, minlength=len(sizes))
    if int(images.min()) < 2:
        return None
    x = features - (middle := features.mean(0))
    within = Within.of(x, owners, shrink)
    if within is None:
        return None
    weights = within.inverse(within.mean)
    bias = -0.5 * (weights * within.mean).sum(1)
    scores = x @ weights.T + bias
    size = images[owners].unsqueeze(1)
    without = (within.mean[owners] * size - x) / (size - 1)
    turned = within.inverse(without)
    own = (turned * x).sum(1) - 0.5 * (turned * without).sum(1)
    scores[torch.arange(len(x)), owners] = own
    spread = scores.std().clamp_min(1e-12)
    bias = bias - weights @ middle
    return scores / spread, weights / spread, bias / spread


JOINT_STRENGTH = 3e-7  # times the fourth power of the number of logits; chosen on held-out training images


def _minimise(
    evidence: Evidence, start: Tensor, outputs: Callable[[Tensor], Tensor], strength: float, unit: float = 1.0
) -> Tensor:
    """Minimise the training loss plus `strength / 2 * |unit * p|^2` by L-BFGS in float64; convex if the loss is."""
    if not strength >= 0:
        raise OptionError("option-range", f"strength must be 0 or more, got {strength!r}")
    p, targets = start.clone().requires_grad_(), evidence.targets
    assert targets is not None
    optimizer = torch.optim.LBFGS([p], max_iter=200, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = evidence.outputs.loss(outputs(p), targets)
        value = value + 0.5 * strength * (p * unit).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return p.detach()


def _spread(z: Tensor) -> float:
    """The typical difference between logits, used as the unit of shifts."""
    return float(z.std()) or 1.0


def _few_shot(evidence: Evidence) -> Tensor:
    assert evidence.logits is not None  # `scale` gives them
    return evidence.logits.double()


def _lowered(evidence: Evidence) -> Tensor:
    """The logits of labelled images as they are without any label."""
    z = _few_shot(evidence)
    return z if evidence.lost is None else z - evidence.lost[:, evidence.part_of]


def _begun(evidence: Evidence, scale: Scale) -> Scale:
    """A scaling of logits that are lowered first, where `_lowered` did so."""
    if evidence.lost is None:
        return scale
    return replace(scale, energy=True, depth=evidence.manifest.scaling.depth)


def _smallest_margin(evidence: Evidence, name: str) -> float:
    margins = [_statistics(part, name).margin for part in evidence.parts]
    return min((margin for margin in margins if margin is not None), default=1.0)


def _foreign(evidence: Evidence) -> Tensor:
    """For each part, the share of the others' classes that its source does not know by name: (parts,)."""
    found: list[float] = []
    for index, part in enumerate(evidence.parts):
        others = [name for other, p in enumerate(evidence.parts) if other != index for name in p.classes]
        unknown = sum(name not in part.source.classes for name in others)
        found.append(unknown / len(others) if others else 0.0)
    return torch.tensor(found, dtype=torch.float64)


def _could_vote(evidence: Evidence) -> bool:
    """Whether sources know all classes by name, but some part has no output for what is not its own."""
    known = {name for part in evidence.parts for name in part.classes}
    named = all(not numbered(part.source.classes) and known <= set(part.source.classes) for part in evidence.parts)
    return named and not all(part.reject for part in evidence.parts)


def _feature_sizes(evidence: Evidence, name: str) -> list[int]:
    """Number of features per part."""
    sizes: list[int] = []
    for part in evidence.parts:
        record = _statistics(part, name).familiarity
        if record is None:
            whose = f"the component for {', '.join(part.classes[:5])} of {part.source.name!r}"
            why = f"scaling={name!r} needs feature statistics, but those of {whose} were not measured or do not vary"
            advice = "cut it again with several labelled images per class, or use scaling='none'"
            raise OptionError("option-needs-statistics", f"{why}; {advice}")
        sizes.append(record.size)
    return sizes


def _diagonal(factors: Sequence[float], notes: tuple[str, ...] = ()) -> Scale:
    matrix = torch.diag(torch.tensor(list(factors), dtype=torch.float64))
    return Scale(matrix, torch.zeros(len(matrix), dtype=torch.float64), notes=notes)


def _statistics(part: ComponentManifest, name: str) -> Any:
    if part.statistics is None:
        whose = f"the component for {', '.join(part.classes[:5])} of {part.source.name!r}"
        why = f"scaling={name!r} needs statistics, but {whose} was cut without labelled images"
        raise OptionError("option-needs-statistics", f"{why}; cut it again with images, or use scaling='none'")
    return part.statistics
