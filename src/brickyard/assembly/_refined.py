"""Refined detectors: a classifier names further what a detector finds of a class, on boxes cut out of the picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly, check_model
from brickyard.assembly._reading import read_assembly
from brickyard.base._checks import given_path, whole
from brickyard.base._declare import verb
from brickyard.base._errors import BrickyardError, FileError, OptionError, TaskError
from brickyard.base._frozen import validated
from brickyard.base._messages import brief, near, shown, told
from brickyard.base._notebook import as_html
from brickyard.base._options import DetectOptions, RefineOptions
from brickyard.base._refined import REFINERS, RefinedFile, RefinedManifest
from brickyard.base._sides import is_picture
from brickyard.component._component import Component, read_component
from brickyard.component._disassemble import made_with, today
from brickyard.component._predictor import REJECT
from brickyard.inputs._decoding import read_images
from brickyard.inputs._preprocessing import sized
from brickyard.network._shown import Shown
from brickyard.network._untouched import guarded
from brickyard.outputs._detections import Detections, Found
from brickyard.outputs._detections import told as told_of
from brickyard.storage._safefile import write

Model = Component | Assembly


class Refined(Shown):
    """A detector, and classifiers that name what it finds of some classes further; made by `refine` or `load`.

    A box of such a class is enlarged a little, cut out of the picture and shown to the class's classifier. The answer
    takes the place of the class, and the score is the detector's times the probability of the answer. Where the
    classifier finds that the box shows none of its classes (by its reject output, or as a stranger), the box stays what
    the detector says.

    Attributes:
        detector: The detector.
        classifiers: The classifiers.
        manifest: Which classes they name further, and how.
    """

    detector: Model
    classifiers: Sequence[Model]

    def __init__(self, detector: Model, classifiers: Sequence[Model], manifest: RefinedManifest) -> None:
        super().__init__()
        self.detector, self.manifest = detector, manifest
        self.classifiers = nn.ModuleList(classifiers)  # type: ignore[assignment]
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names: those of the detector, then those of each classifier."""
        return self.manifest.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What the detector takes after preprocessing."""
        return self.detector.input_shape

    @guarded
    @verb(DetectOptions)
    def detect(self, images: Any, **options: Unpack[DetectOptions]) -> list[Found]:
        """Find objects in images, and name those of some classes further.

        Args:
            images: As for `Component.detect`.

        Returns:
            For each image its boxes (n, 4), left, top, right and bottom in pixels of the image; their scores (n,) and
            classes (n,), by falling score. Scores of what was named further are compared with `score` when they are
            multiplied.

        Raises:
            OptionError: A number is out of range.
            DataError: The images cannot be used.
        """
        asked: Any = options
        found: list[Found] = []
        for batch in read_images(images, asked["batch_size"], self.input_shape):
            for picture, own in zip(batch, self.detector.detect(batch, **asked), strict=True):
                named = self._named(picture, own, asked["batch_size"])
                kept = named.of(named.scores > asked["score"])
                found.append(kept.of(kept.scores.argsort(descending=True, stable=True)))
        return found

    def predict(self, images: Any, batch_size: int = 64) -> list[list[dict[str, Any]]]:
        """Return for each image what `detect` finds, as dicts of "class", "score" and "box".

        Args:
            images: As for `Component.detect`.
            batch_size: Number of images to process at once.

        Raises:
            DataError: The images cannot be used.
        """
        found = self.detect(images, batch_size=whole("batch_size", batch_size))
        return [told_of(one, self.classes) for one in found]

    def _named(self, picture: Tensor, found: Found, batch_size: int) -> Found:
        """What was found in a picture, named further."""
        scores, labels, first = found.scores.clone(), found.labels.clone(), len(self.detector.classes)
        for name, classifier in zip(self.manifest.refines, self.classifiers, strict=True):
            own = (found.labels == self.classes.index(name)).nonzero().flatten()[: self.manifest.crops]
            if len(own):
                crops = [cut_out(picture, box, self.manifest.margin) for box in found.boxes[own].tolist()]
                judged = classifier.judge(_together(crops, classifier), batch_size)
                share, place = judged.probabilities[:, : len(classifier.classes)].max(1)
                known = torch.tensor([answer != REJECT for answer in judged.answers])
                scores[own] = torch.where(known, scores[own] * share.to(scores.dtype), scores[own])
                labels[own] = torch.where(known, first + place, labels[own])
            first += len(classifier.classes)
        return Found(found.boxes, scores, labels)

    @guarded
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the detector and the classifiers to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        path, models = given_path(path, "the file to write"), [self.detector, *self.classifiers]
        texts, tensors = zip(*(model.content() for model in models), strict=True)
        file = RefinedFile(manifest=self.manifest, detector=texts[0], classifiers=texts[1:])
        every = {
            start + name: value
            for start, own in zip(_starts(models), tensors, strict=True)
            for name, value in own.items()
        }
        return write(path, every, file.model_dump(mode="json"), overwrite)

    def __str__(self) -> str:
        manifest, own = self.manifest, [f"detector whose boxes of {', '.join(self.manifest.refines)} are named further"]
        for name, classifier in zip(manifest.refines, self.classifiers, strict=True):
            own.append(f"  {name:<12} {', '.join(classifier.classes[:6])}{' ...' * (len(classifier.classes) > 6)}")
        own.append(
            f"  boxes        enlarged by {manifest.margin:.0%} to each side, at most {manifest.crops} of an image"
        )
        every = [shown(line, keep="") for line in own]
        return "\n".join([*every, "", *map(str, (self.detector, *self.classifiers))])

    def _repr_html_(self) -> str:
        return as_html(str(self))


@guarded
@verb(RefineOptions)
def refine(detector: Model, classifiers: Mapping[str, Model], **options: Unpack[RefineOptions]) -> Refined:
    """Find with one, name with the other: classifiers look at what a detector finds of some classes.

    Args:
        detector: A component or an assembly of detectors.
        classifiers: By the name of one of its classes, a component or an assembly of classifiers that names its boxes
            further: {"dog": breeds}.

    Returns:
        The refined detector, with `detect`, `predict` and `save`.

    Raises:
        TaskError: The detector has no such class, or two classes have one name.
        OptionError: One of them is of another kind, or a number is out of range.

    Example:
        >>> import brickyard as by, torch, warnings
        >>> from brickyard.assembly import refine
        >>> from brickyard.testing import Detector, chain
        >>> warnings.simplefilter("ignore")
        >>> images, rows = torch.rand(8, 3, 32, 32), torch.eye(4).repeat(2, 1).long()
        >>> net = Detector()
        >>> found = by.locate(net, (images, rows), outputs=net.boxes, classes=["ant", "bee", "cow", "dog"])
        >>> dogs = by.disassemble(net, found, task=["dog"], heal="none")
        >>> how = by.Preprocessing(size=(8, 8))
        >>> names = ["collie", "poodle", "spitz", "boxer"]
        >>> located = by.locate(chain(), (images, torch.arange(8) % 4), classes=names, preprocessing=how)
        >>> breeds = by.disassemble(chain(), located, task=["collie", "poodle"], heal="none")
        >>> refine(dogs, {"dog": breeds}).classes
        ('dog', 'collie', 'poodle')
    """
    check_model(detector, "refine")
    if not isinstance(detector.outputs, Detections):
        raise OptionError("option-wrong-object", "refine needs a detector that finds boxes, got a classifier; give one")
    if not isinstance(classifiers, Mapping) or not 1 <= len(classifiers) <= REFINERS:
        found = f"{len(classifiers)}" if isinstance(classifiers, Mapping) else f"a {type(classifiers).__name__}"
        why = f"refine needs 1 to {REFINERS} classifiers by the class that each names further, got {found}"
        raise OptionError("option-type", f"{why}; give {{'dog': breeds}}")
    for name, classifier in classifiers.items():
        _check_pair(detector, name, classifier)
    classes = [*detector.classes, *(name for one in classifiers.values() for name in one.classes)]
    if twice := [name for k, name in enumerate(classes) if name in classes[:k]]:
        why = f"class {brief(twice[0])} would be there twice, among those of the detector and the classifiers"
        raise TaskError("task-class-in-two-parts", f"{why}; rename it in one, with model.renamed({{old: new}})")
    asked: Any = options
    manifest = RefinedManifest(
        classes=tuple(classes), refines=tuple(classifiers), **asked, versions=made_with(), created=today()
    )
    return Refined(detector, list(classifiers.values()), manifest)


def _check_pair(detector: Model, name: Any, classifier: Any) -> None:
    """Check that a classifier can name a detector's boxes of a class further.

    Raises:
        TaskError: There is no such class.
        OptionError: It is no classifier, lets several classes be in a picture, or takes no pictures of any size.
    """
    if name not in detector.classes:
        found = f"refine names boxes of class {brief(name)} further; classes: {', '.join(detector.classes[:8])}"
        hint = near(name, detector.classes) if isinstance(name, str) else ""
        raise TaskError("task-unknown-class", f"{found}{hint}: give one of them")
    check_model(classifier, "refine")
    if isinstance(classifier.outputs, Detections) or not classifier.outputs.exclusive:
        kind = "a detector" if isinstance(classifier.outputs, Detections) else "one that names several classes at once"
        why = f"boxes of {brief(name)} are to be named further by a classifier of one class each, got {kind}"
        raise OptionError("option-wrong-object", f"{why}; give one that was located with outputs='one'")
    if not is_picture(classifier.input_shape) or any(how.size is None for how in classifier.preprocessings):
        why = f"the classifier for {brief(name)} takes pictures of one size as they are, and boxes have any size"
        raise OptionError("option-conflict", f"{why}; give its parts a size, with part.with_preprocessing(...)")


def cut_out(picture: Tensor, box: Sequence[float], margin: float) -> Tensor:
    """A box out of a picture (channels, height, width), enlarged, in whole pixels, at least one.

    Args:
        picture: The picture.
        box: Left, top, right and bottom.
        margin: By which share of its width and height it is enlarged to each side.
    """
    height, width = picture.shape[1:]
    left, right = _span(box[0], box[2], margin, width)
    top, bottom = _span(box[1], box[3], margin, height)
    return picture[:, top:bottom, left:right]


def _span(low: float, high: float, margin: float, side: int) -> tuple[int, int]:
    more = margin * (high - low)
    start = min(max(0, math.floor(low - more)), side - 1)
    return start, max(start + 1, min(side, math.ceil(high + more)))


def _together(crops: list[Tensor], classifier: Model) -> Any:
    """Crops as one batch, where the classifier's parts bring pictures to one size."""
    ways = {how.frame: how for how in classifier.preprocessings}
    if len(ways) > 1 or crops[0].dtype != torch.uint8:
        return crops
    return torch.stack([sized(one, *ways.values()) for one in crops])


# -- reading -----------------------------------------------------------------------------------------------


def read_refined(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> Refined:
    """A refined detector out of the text and the tensors of its file."""
    file = validated(RefinedFile, text, "its text")
    kinds = [one.manifest.kind for one in (file.detector, *file.classifiers)]
    models: list[Model] = []
    for start, kind, own in zip(_starts(kinds), kinds, [text["detector"], *text["classifiers"]], strict=True):
        mine = {name.removeprefix(start): tensors.pop(name) for name in list(tensors) if name.startswith(start)}
        models.append((read_component if kind == "component" else read_assembly)(path, own, mine))
    if tensors:
        raise FileError("file-tensor-mismatch", f"tensor {told(min(tensors))!r} belongs to none of its models")
    manifest = file.manifest
    try:
        made = refine(
            models[0],
            dict(zip(manifest.refines, models[1:], strict=True)),
            margin=manifest.margin,
            crops=manifest.crops,
        )
    except (BrickyardError, ValueError) as error:
        raise FileError("file-inconsistent", f"its models do not fit together: {told(error)}") from None
    if made.classes != manifest.classes:
        raise FileError("file-inconsistent", "its classes are not those of its detector and its classifiers")
    return Refined(models[0], models[1:], manifest)


def _starts(models: Sequence[Any]) -> list[str]:
    """What the names of the tensors of each model begin with."""
    return ["detector.", *(f"classifiers.{index}." for index in range(len(models) - 1))]
