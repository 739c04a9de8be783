"""Components as feature extractors for a new task: scores for ranking them, and a linear probe on their features.

The features are the inputs of a component's classifier. Two scores predict, without training, how well a linear
classifier on them will do. Higher is better, and scores are comparable only on the same images:

- "logme", the logarithm of maximum evidence (You et al., 2021, arXiv 2102.11005): how probable the labels are under a
  Bayesian linear model of the features, per image and class;
- "h-score" (Bao et al., 2019): how much of the features' variance lies between classes, relative to their covariance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from brickyard.base._boxes import check_no_boxes
from brickyard.base._checks import is_number, seed_of, whole
from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import brief
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.inputs._batches import DataLike, Images
from brickyard.inputs._preprocessing import preprocess
from brickyard.network._identity import weights_like
from brickyard.network._untouched import guarded
from brickyard.runtime._isolation import loading

Score = Literal["logme", "h-score"]
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation of a probe; its features have unit variance
FOLDS = 5
STEPS = 500  # of the fixed-point iteration
NEAR = 1e-9  # the relative change of a ratio at which it ends
STARTS = 10.0 ** np.arange(-6, 7, 1)  # prior precision over noise precision, in mean squared lengths of directions
LEAST = 1e-12  # the least noise, and the least of what counts as varying, as a share of the whole


@guarded
def features(component: Component, images: DataLike, batch_size: int = 64) -> Tensor:
    """Compute the features that a component's classifier reads, for images of any task.

    Args:
        component: The component.
        images: Images in any form that `locate` takes, before the component's preprocessing. Labels are ignored, so
            they may belong to any task.
        batch_size: Images per batch.

    Returns:
        (images, size) in float64, on the CPU.

    Raises:
        DataError: The component cannot take the images, or its features are not finite.
        OptionError: `component` is not a component.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> from brickyard.evaluation._probe import features
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
        >>> found = features(component, data)
        >>> len(found), found.dtype
        (8, torch.float64)
    """
    if not isinstance(component, Component):
        raise OptionError("option-wrong-object", f"features needs a component, got {type(component).__name__}")
    check_no_boxes(component, "features", "probe the component of a classifier")
    batch_size = whole("batch_size", batch_size)
    like = weights_like(component)
    if like.is_meta:
        raise DataError("data-meta-device", "the component is on the meta device and has no weights; load it again")

    def observed(raw: Tensor) -> Tensor:
        x = preprocess(raw, component.manifest.preprocessing).to(like.device, like.dtype)
        return component.observe(x)[0].double().cpu()

    with torch.inference_mode():
        given = Images(images, what="the images").raw(batch_size=batch_size)
        found = torch.cat([run_images(observed, raw, "the images") for raw, _ in given])
    bad = int((~torch.isfinite(found)).any(1).sum())
    if bad:
        advice = "look at the component with `brickyard yard verify`, or give images in the range that it was made for"
        raise DataError("data-overflow", f"features of {bad} of {len(found)} images are NaN or infinite; {advice}")
    return found.clone()  # outside inference mode: an ordinary tensor


# -- scores --------------------------------------------------------------------------------------------------


def log_evidence(features: Tensor, labels: Tensor) -> float:
    """Compute the logarithm of maximum evidence (LogME), as a mean over images and classes.

    For each class, the targets y are 1 for its images and 0 for the others. They are drawn around F w with precision
    beta, and w around 0 with precision alpha. The evidence p(y | F) is maximised over alpha and beta by fixed-point
    iterations from the best of several starts; one decomposition of F serves all classes.

    Args:
        features: F, (images, size).
        labels: (images,), integers, one value per class.

    Raises:
        DataError: There are fewer than two classes, no more images than classes, or features that are not finite.

    Limitations:
        Features that determine the labels exactly have no maximum evidence; noise stops at 1e-12 of the targets.

    Example:
        >>> import torch
        >>> from brickyard.evaluation._probe import log_evidence
        >>> labels = torch.arange(60) % 3
        >>> noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> telling = noise + 2 * torch.eye(3, 5)[labels]
        >>> log_evidence(telling, labels) > log_evidence(noise, labels)
        True
    """
    x, index = _checked(features, labels)
    targets = torch.nn.functional.one_hot(index).double()  # (n, classes)
    count = len(x)
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)
    squares = singular.square()  # (rank,)
    vary = squares > LEAST * squares.sum()
    squares = squares[vary].unsqueeze(1)
    along = (left[:, vary].T @ targets).square()  # (rank, classes): what of the targets each direction holds
    whole_ = targets.sum(0)  # squared lengths
    outside = (whole_ - along.sum(0)).clamp_min(0)

    def evidence(ratio: Tensor) -> Tensor:
        """For alpha / beta (starts or 1, classes), at the best beta."""
        s = squares.unsqueeze(1)
        misfit = (along.unsqueeze(1) * ratio / (ratio + s)).sum(0) + outside  # times beta: the exponent
        beta = count / misfit.clamp_min(LEAST * whole_)
        result: Tensor = 0.5 * (count * (beta.log() - math.log(2 * math.pi) - 1) - (s / ratio).log1p().sum(0))
        return result

    if not len(squares):  # nothing varies: the weights have nothing to say
        return (0.5 * ((count / whole_).log() - math.log(2 * math.pi) - 1)).mean().item()
    scale = squares.mean()
    starts = (torch.from_numpy(STARTS) * scale).unsqueeze(1).expand(-1, targets.shape[1])
    found = evidence(starts)
    best, place = found.max(0)
    ratio = starts.gather(0, place.unsqueeze(0))[0]
    for _ in range(STEPS):
        gamma = (squares / (ratio + squares)).sum(0)  # how many weights the labels determine
        weights = (along * squares / (ratio + squares).square()).sum(0)  # squared length of the mean weights
        rest = (along * (ratio / (ratio + squares)).square()).sum(0) + outside
        new = (gamma * rest / (weights * (count - gamma)).clamp_min(1e-300)).clamp(1e-9 * scale, 1e9 * scale)
        best = torch.maximum(best, evidence(new.unsqueeze(0))[0])
        done = bool(((new - ratio).abs() <= NEAR * ratio).all())
        ratio = new
        if done:
            break
    return (best / count).mean().item()


def h_score(features: Tensor, labels: Tensor, *, shrink: bool | None = None) -> float:
    """Compute the H-score, tr(cov(f)^+ cov(E[f | y])), between 0 and the number of classes minus one.

    Args:
        features: f, (images, size).
        labels: y, (images,), integers, one value per class.
        shrink: Apply Ledoit-Wolf shrinkage to the covariance, and the same share to that between classes. Default: if
            there are fewer images than features, since every direction would then seem to separate classes.

    Raises:
        DataError: There are fewer than two classes, no more images than classes, or features that are not finite.

    Example:
        >>> import torch
        >>> from brickyard.evaluation._probe import h_score
        >>> labels = torch.arange(60) % 3
        >>> noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> h_score(noise + 2 * torch.eye(3, 5)[labels], labels) > h_score(noise, labels)
        True
    """
    x, index = _checked(features, labels)
    shrink = len(x) < x.shape[1] if shrink is None else shrink
    x = x - x.mean(0)
    size = x.square().sum().sqrt()
    if not size > 0:
        return 0.0
    x = x / size  # features of any size are the same to the score
    means = torch.zeros(int(index.max()) + 1, x.shape[1], dtype=x.dtype).index_add_(0, index, x)
    counts = torch.bincount(index).double().unsqueeze(1)
    between = means / counts.sqrt() / math.sqrt(len(x))  # its products with itself are the covariance of the means
    covariance = x.T @ x / len(x)
    kept = 1.0
    if shrink:
        with loading():
            from sklearn.covariance import ledoit_wolf_shrinkage

        share = float(ledoit_wolf_shrinkage(x.numpy(), assume_centered=True))
        covariance = (1 - share) * covariance + share * covariance.trace() / x.shape[1] * torch.eye(x.shape[1]).double()
        kept = 1 - share
    inverse = torch.linalg.pinv(covariance, hermitian=True, rtol=1e-10)
    return kept * float((between @ inverse * between).sum())


SCORES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "logme": log_evidence,
    "h-score": lambda features, labels: h_score(features, labels, shrink=True),  # one rule for few features and many
}


def _checked(features: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Convert features to float64, and labels to 0, 1, ... over those that occur."""
    try:
        x, y = torch.as_tensor(features), torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        kinds = f"a {type(features).__name__} and a {type(labels).__name__}"
        raise DataError("data-type", f"features and labels must be tensors or arrays of numbers, got {kinds}") from None
    x, y = x.detach().cpu(), y.detach().cpu()
    if x.ndim != 2 or 0 in x.shape or x.is_complex():
        raise DataError("data-shape", f"features must be numbers (images, size), got {tuple(x.shape)} of {x.dtype}")
    if y.shape != (len(x),) or y.is_floating_point() or y.is_complex():
        why = f"{len(x)} feature vectors and labels of shape {tuple(y.shape)} and type {y.dtype}"
        raise DataError("data-label-mismatch", f"{why}; give one integer per image")
    bad = int((~torch.isfinite(x)).any(1).sum())
    if bad:
        raise DataError("data-not-finite", f"features of {bad} of {len(x)} images are NaN or infinite; leave them out")
    return x.double(), numbered(y, len(x))


def numbered(labels: Tensor, count: int) -> Tensor:
    """Renumber labels as 0, 1, ... over those that occur."""
    index: Tensor
    present, index = labels.unique(return_inverse=True)
    if len(present) < 2:
        raise DataError("data-too-few", f"all {count} images are of one class; give images of at least two classes")
    if count <= len(present):
        found = f"got {count} images of {len(present)} classes"
        raise DataError("data-too-few", f"{found}; give more images than classes, 5 per class or more")
    return index


# -- probes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """A linear classifier on a component's features.

    Attributes:
        strength: Inverse regularisation strength.
        validated: Cross-validated accuracy in [0, 1], a mean over folds; None if a class has too few images to hold any
            out.
    """

    strength: float
    validated: float | None
    _fitted: Any = field(repr=False)

    def predict(self, features: Tensor) -> Tensor:
        """Map features (images, size) to labels (images,), numbered as in training."""
        return torch.from_numpy(np.asarray(self._fitted.predict(_rows(features, self._fitted.n_features_in_))))

    def score(self, features: Tensor, labels: Tensor) -> float:
        """Compute the share of images answered correctly.

        Raises:
            DataError: Features and labels do not match each other or the probe.
        """
        right = torch.as_tensor(labels).cpu()
        found = self.predict(features)
        if right.shape != found.shape:
            why = f"got {len(found)} feature vectors and labels of shape {tuple(right.shape)}"
            raise DataError("data-label-mismatch", f"{why}; give one label per image")
        return (found == right).double().mean().item()


@guarded
def probe(
    features: Tensor, labels: Tensor, *, strengths: Sequence[float] = STRENGTHS, folds: int = FOLDS, seed: int = 0
) -> Probe:
    """Train a linear probe: logistic regression on standardised features, its strength chosen by cross-validation.

    Args:
        features: Features of the training images, (images, size).
        labels: (images,), integers, one value per class.
        strengths: Inverse regularisation strengths to choose from; the middle one if a class has a single image.
        folds: Number of cross-validation folds; at most as many as the smallest class has images.
        seed: Random seed of the folds.

    Raises:
        DataError: There are fewer than two classes, no more images than classes, or features that are not finite.
        OptionError: A strength is not a number above 0, or there are fewer than two folds.

    Example:
        >>> import torch
        >>> from brickyard.evaluation._probe import probe
        >>> labels = torch.arange(60) % 3
        >>> noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
        >>> head = probe(noise + 9 * torch.eye(3, 5)[labels], labels)
        >>> head.score(noise + 9 * torch.eye(3, 5)[labels], labels)
        1.0
    """
    with loading():
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    folds, seed = whole("folds", folds, 2), seed_of(seed)
    if not isinstance(strengths, Sequence) or not strengths:
        raise OptionError("option-range", f"strengths must be numbers such as [0.1, 1.0], got {brief(strengths)}")
    for value in strengths:
        if not is_number(value) or not 0 < value < math.inf:
            raise OptionError("option-range", f"strengths must be finite and above 0, such as 1.0; got {brief(value)}")
    x, index = _checked(features, labels)
    y = torch.as_tensor(labels).detach().cpu().numpy()
    folds = min(folds, int(torch.bincount(index).min()))
    line = make_pipeline(StandardScaler(), LogisticRegression(C=sorted(strengths)[len(strengths) // 2], max_iter=500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a strong fit of few images is as good a little earlier
        if folds < 2 or len(strengths) == 1:
            line.fit(x.numpy(), y)
            return Probe(float(line[-1].C), None, line)
        turns = StratifiedKFold(folds, shuffle=True, random_state=seed % (1 << 32))
        search = GridSearchCV(line, {"logisticregression__C": sorted(strengths)}, cv=turns).fit(x.numpy(), y)
    return Probe(float(search.best_params_["logisticregression__C"]), float(search.best_score_), search.best_estimator_)


def _rows(features: Any, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        x = torch.as_tensor(features).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        found = type(features).__name__
        raise DataError("data-type", f"features must be a tensor (images, {size}), got {found}") from None
    if x.ndim != 2 or x.shape[1] != size or not len(x) or not bool(torch.isfinite(x).all()):
        raise DataError("data-shape", f"features must be finite numbers (images, {size}), got shape {tuple(x.shape)}")
    return x.numpy()
