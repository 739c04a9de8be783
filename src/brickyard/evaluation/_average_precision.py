"""Average precision of found boxes, as COCO defines it, and the difference between two detectors with its error."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from brickyard.base._checks import seed_of, whole
from brickyard.base._errors import DataError
from brickyard.base._frozen import Frozen
from brickyard.base._lazy import package
from brickyard.base._messages import told
from brickyard.evaluation._scores import MOST_NAMED
from brickyard.inputs._box_table import Truth

Found = tuple[Tensor, Tensor, Tensor]
"""Boxes (found, 4) as left, top, right and bottom in pixels, scores (found,) and labels (found,) of an image."""

MOST_FOUND = 100  # boxes of a class in an image that count: those of the highest scores
_AT_ONCE = 1 << 22  # numbers of a table of resamples and found boxes
_SPACING = float(np.spacing(1))  # as pycocotools has it, so that no precision is 0/0

Floats = NDArray[np.float64]


class Precision(Frozen):
    """Average precision in percent. A crowd counts neither as found nor as missed.

    Attributes:
        map50: Mean over classes of the average precision, where a box is found if it overlaps by half (IoU 0.5).
        map50_95: The same, as a mean over the overlaps 0.5, 0.55, ..., 0.95.
        ap50: Average precision at IoU 0.5 of each class that has objects.
        ap: As a mean over the overlaps, of each class that has objects.
        objects: How many objects each class has.
        images: How many images were scored.

    Example:
        >>> import torch
        >>> from brickyard.evaluation import average_precision
        >>> from brickyard.inputs import Truth
        >>> box = torch.tensor([[2.0, 2.0, 8.0, 8.0]], dtype=torch.float64)
        >>> truth = Truth(box, torch.tensor([0]), torch.tensor([False]), (10, 10))
        >>> shifted = (box + 1, torch.tensor([0.9]), torch.tensor([0]))  # it overlaps by 25/47
        >>> print(average_precision([shifted], [truth], ["cat", "dog"]))
        mAP50 100.0, mAP50:95 10.0 on 1 images with 1 objects
        no object of dog: left out of the means
    """

    map50: float
    map50_95: float
    ap50: dict[str, float]
    ap: dict[str, float]
    objects: dict[str, int]
    images: int

    @property
    def untried(self) -> tuple[str, ...]:
        """The classes without objects, which are left out of the means."""
        return tuple(name for name, count in self.objects.items() if not count)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it."""
        names = self.untried
        if not names:
            return ()
        more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
        which = ", ".join(told(name, 60) for name in names[:MOST_NAMED])
        return (f"no object of {which}{more}: left out of the means",)

    def __str__(self) -> str:
        many = f"{self.images:,} images with {sum(self.objects.values()):,} objects"
        return "\n".join([f"mAP50 {self.map50:.1f}, mAP50:95 {self.map50_95:.1f} on {many}", *self.notes])


@dataclass(frozen=True)
class Drop:
    """How far the mAP50 of one detector is below that of another on the same images.

    Attributes:
        drop: Points of percent.
        error: Its standard error, by bootstrap over images: both detectors see the same resample.
        first: mAP50 of the first detector.
        second: mAP50 of the second one.
        draws: How many resamples the error is of.
    """

    drop: float
    error: float
    first: float
    second: float
    draws: int


def average_precision(found: Sequence[Found], truths: Sequence[Truth], classes: Sequence[str]) -> Precision:
    """Score found boxes with pycocotools: precision at 101 recalls, at most 100 boxes per class and image.

    Args:
        found: For each image, boxes (found, 4), scores (found,) and labels (found,).
        truths: The objects in each image.
        classes: Class names.

    Raises:
        DataError: Found boxes have another form or are not finite, or there are no objects.
        OptionError: The package is missing.
    """
    scored = _evaluated(found, truths, len(classes), None)
    with _silenced():
        scored.accumulate()
    every = scored.eval["precision"][:, :, :, 0, 0]  # (overlaps, recalls, classes)
    counts = _counts(truths, len(classes))
    tried = [k for k, count in enumerate(counts) if count]
    ap50, ap = (100 * values.mean(0) for values in (every[0], every.mean(0)))
    return Precision(
        map50=float(ap50[tried].mean()),
        map50_95=float(ap[tried].mean()),
        ap50={classes[k]: float(ap50[k]) for k in tried},
        ap={classes[k]: float(ap[k]) for k in tried},
        objects=dict(zip(classes, counts, strict=True)),
        images=len(truths),
    )


def paired_drop(
    first: Sequence[Found],
    second: Sequence[Found],
    truths: Sequence[Truth],
    classes: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> Drop:
    """How far the mAP50 of the second detector is below that of the first, with its standard error.

    Images are resampled, the same for both detectors. Boxes are matched once; a resample only weighs the matches.
    Resamples without any object are not counted.

    Args:
        first: What the first detector found, as for `average_precision`.
        second: What the second one found.
        truths: The objects in each image.
        classes: Class names.
        draws: How many resamples.
        seed: Of the resamples.

    Raises:
        DataError: Found boxes have another form or are not finite, or there are too few images with objects.
        OptionError: A number is out of range, or the package is missing.

    Example:
        >>> import torch
        >>> from brickyard.evaluation import paired_drop
        >>> from brickyard.inputs import Truth
        >>> box, none = torch.tensor([[2.0, 2.0, 8.0, 8.0]], dtype=torch.float64), torch.zeros(0)
        >>> truths = [Truth(box, torch.tensor([0]), torch.tensor([False]), (10, 10))] * 4
        >>> good, bad = (box, torch.ones(1), torch.zeros(1)), (none.reshape(0, 4), none, none)
        >>> found = paired_drop([good] * 4, [good, bad, good, bad], truths, ["cat"])
        >>> round(found.drop), 20 < found.error < 30
        (50, True)
    """
    draws, seed = whole("draws", draws, 2), seed_of(seed)
    sides = [_Matches.of(_evaluated(found, truths, len(classes), (0.5,)), len(classes)) for found in (first, second)]
    images = len(truths)
    generator = np.random.default_rng(seed % (1 << 64))
    weights = generator.multinomial(images, np.full(images, 1 / images), draws).astype(float)
    one = np.ones((1, images))
    exact = [float(side.mean_ap(one)[0]) for side in sides]
    spread = sides[0].mean_ap(weights) - sides[1].mean_ap(weights)
    spread = spread[~np.isnan(spread)]
    if images < 2 or len(spread) < 2:
        why = f"{images:,} images hold objects too rarely: {len(spread):,} of {draws:,} resamples have any"
        raise DataError("data-too-few", f"{why}; give more images")
    return Drop(exact[0] - exact[1], float(spread.std(ddof=1)), exact[0], exact[1], len(spread))


# -- matches -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Class:
    """The matches of a class, by falling score. Boxes that match a crowd are neither right nor wrong.

    Attributes:
        right: (right,) which image each box is of that matches an object.
        wrong: (wrong,) which image each box is of that matches nothing.
        before: (right,) how many wrong boxes come before each right one.
        objects: (images,) how many objects there are.
    """

    right: NDArray[np.int64]
    wrong: NDArray[np.int64]
    before: NDArray[np.int64]
    objects: Floats


@dataclass(frozen=True)
class _Matches:
    """The matches of all classes at one overlap.

    Attributes:
        classes: Those of each class.
        recalls: At which the precision is taken.
    """

    classes: Sequence[_Class]
    recalls: Floats

    @classmethod
    def of(cls, scored: Any, classes: int) -> _Matches:
        """Take them from an evaluation that has matched boxes but is not accumulated."""
        images = len(scored.params.imgIds)
        each = [scored.evalImgs[k * images : (k + 1) * images] for k in range(classes)]
        return cls([_class(items, images) for items in each], np.asarray(scored.params.recThrs, float))

    def mean_ap(self, weights: Floats) -> Floats:
        """Mean average precision in percent, (draws,); NaN without objects.

        Args:
            weights: How often each image counts, (draws, images).
        """
        total, tried = np.zeros(len(weights)), np.zeros(len(weights))
        for held in self.classes:
            counts = weights @ held.objects
            some = np.flatnonzero(counts)
            step = max(1, _AT_ONCE // (1 + len(held.right) + len(held.wrong)))
            for start in range(0, len(some), step):
                rows = some[start : start + step]
                total[rows] += self._ap(held, weights[rows], counts[rows])
            tried[some] += 1
        with np.errstate(invalid="ignore"):
            return 100 * total / tried

    def _ap(self, held: _Class, weights: Floats, counts: Floats) -> Floats:
        """Average precision of a class, (draws,): as pycocotools accumulates it.

        Precision rises at right boxes only, so that its value there is all that counts.
        """
        if not len(held.right):
            return np.zeros(len(weights))
        right = weights[:, held.right].cumsum(1)
        wrong = np.concatenate([np.zeros((len(weights), 1)), weights[:, held.wrong].cumsum(1)], axis=1)
        precision = right / (right + wrong[:, held.before] + _SPACING)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.concatenate([envelope, np.zeros((len(weights), 1))], axis=1)  # recalls that are not reached
        places = np.stack([np.searchsorted(row, self.recalls) for row in right / counts[:, None]])
        taken: Floats = np.take_along_axis(padded, places, axis=1).mean(1)
        return taken


def _class(items: Sequence[dict[str, Any] | None], images: int) -> _Class:
    held = [(k, item) for k, item in enumerate(items) if item is not None]
    score = np.array([value for _, item in held for value in item["dtScores"]], float)
    image = np.array([k for k, item in held for _ in item["dtScores"]], np.int64)
    matched, ignored = (
        np.concatenate([np.zeros(0, bool), *(np.asarray(item[key][0]).astype(bool) for _, item in held)])
        for key in ("dtMatches", "dtIgnore")
    )
    objects = np.zeros(images)
    for k, item in held:
        objects[k] = np.count_nonzero(np.asarray(item["gtIgnore"]) == 0)
    order = np.argsort(-score, kind="mergesort")
    right, wrong = (matched & ~ignored)[order], (~matched & ~ignored)[order]
    return _Class(image[order][right], image[order][wrong], wrong.cumsum()[right], objects)


# -- pycocotools ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _evaluated(
    found: Sequence[Found], truths: Sequence[Truth], classes: int, overlaps: tuple[float, ...] | None
) -> Any:
    """An evaluation by pycocotools that has matched boxes and is not accumulated.

    Args:
        found: What was found in each image.
        truths: The objects in each.
        classes: How many classes there are.
        overlaps: From which on a box counts as found; None for COCO's ten.

    Raises:
        DataError: Found boxes have another form or are not finite, or there are no objects.
        OptionError: The package is missing.
    """
    if len(found) != len(truths):
        why = f"boxes were found in {len(found):,} images, and {len(truths):,} have true ones"
        raise DataError("data-label-mismatch", f"{why}; give both for the same images")
    if not any(_counts(truths, classes)):
        why = f"none of the {len(truths):,} images has an object, so that there is nothing to be found"
        raise DataError("data-no-labels", f"{why}; score on images with objects")
    coco = package("pycocotools.coco", "detectors", "average precision")
    true = [row for k, truth in enumerate(truths) for row in _true_rows(k, truth)]
    given = [row for k, item in enumerate(found) for row in _found_rows(k, item, classes)]
    with _silenced():
        sides = [_table(coco.COCO(), rows, len(truths), classes) for rows in (true, given)]
        scored = package("pycocotools.cocoeval", "detectors", "average precision").COCOeval(*sides, "bbox")
        scored.params.areaRng, scored.params.areaRngLbl = [[0, float("inf")]], ["all"]
        scored.params.maxDets = [MOST_FOUND]
        if overlaps is not None:
            scored.params.iouThrs = np.array(overlaps)
        scored.evaluate()
    return scored


def _table(coco: Any, rows: list[dict[str, Any]], images: int, classes: int) -> Any:
    """Boxes as pycocotools takes them; numbers start at 1, since it takes 0 for none."""
    for number, row in enumerate(rows, 1):
        row["id"] = number
    coco.dataset = {
        "images": [{"id": k} for k in range(images)],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def _counts(truths: Sequence[Truth], classes: int) -> list[int]:
    """How many objects each class has, crowds apart.

    Raises:
        DataError: A label is that of no class.
    """
    counts = np.zeros(classes, np.int64)
    for k, truth in enumerate(truths):
        labels = truth.labels.numpy(force=True)
        _check_labels(labels, classes, f"true boxes of image {k}")
        counts += np.bincount(labels[~truth.crowd.numpy(force=True)], minlength=classes)
    return [int(count) for count in counts]


def _check_labels(labels: NDArray[Any], classes: int, what: str) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        found = f"{what} have labels from {int(labels.min())} to {int(labels.max())}, for {classes} classes"
        raise DataError("data-label-out-of-range", f"{found}; give labels that count the classes from 0")


def _true_rows(image: int, truth: Truth) -> Iterator[dict[str, Any]]:
    for (left, top, right, bottom), label, crowd in zip(
        truth.boxes.tolist(), truth.labels.tolist(), truth.crowd.tolist(), strict=True
    ):
        box = [left, top, right - left, bottom - top]
        yield {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": int(crowd)}


def _found_rows(image: int, found: Found, classes: int) -> Iterator[dict[str, Any]]:
    """What was found in an image. A box that is crossed has no area, and is wrong.

    Raises:
        DataError: It has another form, or is not finite.
    """
    boxes, scores, labels = (values.detach().double().numpy(force=True) for values in found)
    if boxes.shape != (len(scores), 4) or scores.ndim != 1 or labels.shape != scores.shape:
        what = f"boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape}"
        why = f"image {image}: found boxes must be (found, 4), scores and labels (found,), got {what}"
        raise DataError("data-shape", f"{why}; give one of each for every box")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and np.isfinite(labels).all()):
        why = f"image {image}: found boxes, scores or labels are not finite"
        raise DataError("data-overflow", f"{why}; check the preprocessing, or use a source in float32")
    if (labels != np.floor(labels)).any():
        why = f"image {image}: labels of found boxes must be integers, got {told(labels.tolist(), 60)}"
        raise DataError("data-label-mismatch", f"{why}; give indices of classes")
    _check_labels(labels, classes, f"found boxes of image {image}")
    for (left, top, right, bottom), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
        box = [left, top, max(0.0, right - left), max(0.0, bottom - top)]
        row = {"image_id": image, "category_id": int(label), "bbox": box, "area": box[2] * box[3]}
        yield {**row, "score": score, "iscrowd": 0}
