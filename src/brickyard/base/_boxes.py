"""How a detector's outputs become boxes: a description as data, by name or in full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from brickyard.base._errors import OptionError
from brickyard.base._frozen import Frozen, UnusableError, first_problem
from brickyard.base._messages import brief, near

Coding = Literal["grid", "sides", "bins", "deltas", "centre", "corners"]
Scores = Literal["probabilities", "sigmoid", "softmax"]
Joined = Literal["product", "geometric"]
Number = Annotated[int, Field(ge=0, le=1 << 16)]
Length = Annotated[float, Field(gt=0, le=1 << 16, allow_inf_nan=False)]
Anchors = Annotated[tuple[tuple[Length, Length], ...], Field(min_length=1, max_length=64)]
_NUMBERS = 4  # of a box
_ON_GRIDS = ("grid", "sides", "bins", "deltas")
_ROUNDING = 1e-6  # of a cell


class Boxes(Frozen):
    """How to read what a detector says of an image.

    A detector looks at many places of an image, cell by cell of one or several grids. Of each place it returns the same
    outputs: a score per class, four numbers or four distributions that code a box, and in some detectors the chance
    that there is an object at all ("objectness"). They come as one tensor (batch, places, outputs), or (batch, outputs,
    places). Grids follow each other from the finest to the coarsest, each row by row; of a cell with several anchors,
    the places follow each other.

    Attributes:
        classes: How many classes there are; None: as many as outputs are left.
        scores_at: The first output that is a class's score; those of the other classes follow.
        boxes_at: The first output that codes the box; the others follow.
        objectness_at: The output that is the objectness; None: there is none.
        joined: How objectness and scores become one score: their product (YOLOX), or its root, which is their geometric
            mean (FCOS).
        background_at: With scores="softmax", the output that says there is nothing (SSD). Every task keeps it.
        scores: Whether scores and objectness are probabilities already, or become so by a sigmoid, or scores by a
            softmax over all classes and the background. With a softmax, classes compete: a component's scores are
            those of a choice among its own classes and the background.
        coding: How the four numbers code a box, in pixels of the network's input. "grid": centre (x + cell) * stride
            and size exp(w) * stride (YOLOX). "sides": distances from the place to left, top, right and bottom, times
            stride (FCOS). "bins": the same distances as distributions over 0, 1, ..., bins - 1, of which the mean is
            taken after a softmax (NanoDet). "deltas": how far the box lies from an anchor's centre as a share of its
            size, and the logarithm of how much larger it is, each times its weight (RetinaNet, SSD). "centre": centre
            and size in pixels (YOLOv5 and YOLOv8 as they are exported). "corners": left, top, right and bottom in
            pixels.
        bins: Numbers of each distance's distribution, with coding="bins".
        strides: For each grid, how many pixels of the input a cell has; the grid has as many cells as fit into the
            input's sides, rounded up. Needed unless boxes are in pixels.
        offset: With coding="sides", "bins" or "deltas", where in its cell a place lies: 0.5 is the middle, 0 the top
            left corner.
        anchors: With coding="deltas", for each grid the anchors of a cell, each as width and height in pixels.
        weights: With coding="deltas", what the shifts in x and y and both logarithms were multiplied with.
        outputs_first: Whether the tensor is (batch, outputs, places).

    Example:
        >>> from brickyard import Boxes
        >>> Boxes.named("yolox").sized(85).classes
        80
    """

    classes: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    scores_at: Number
    boxes_at: Number
    objectness_at: Number | None = None
    joined: Joined = "product"
    background_at: Number | None = None
    scores: Scores = "probabilities"
    coding: Coding
    bins: Annotated[int, Field(ge=1, le=256)] = 1
    strides: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1 << 12)] | Annotated[float, Field(ge=1, le=1 << 12)], ...],
        Field(max_length=16),
    ] = ()
    offset: Annotated[float, Field(ge=0, le=1)] = 0.5
    anchors: Annotated[tuple[Anchors, ...], Field(max_length=16)] = ()
    weights: tuple[Length, Length, Length, Length] = (1.0, 1.0, 1.0, 1.0)
    outputs_first: bool = False

    def __init__(self, **values: Any) -> None:
        """See the class.

        Raises:
            OptionError: A value cannot be used; the message names it.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UnusableError("option-boxes", f"boxes cannot be read that way: {first_problem(error)}") from None

    @model_validator(mode="after")
    def _fits_together(self) -> Boxes:
        if (self.coding == "bins") != (self.bins > 1):
            raise ValueError(f"bins={self.bins} with coding={self.coding!r}; distributions alone have bins")
        if (self.coding == "deltas") != bool(self.anchors) or len(self.anchors) not in (0, len(self.strides)):
            grids = f"{len(self.anchors)} groups of anchors and {len(self.strides)} strides"
            raise ValueError(f"coding={self.coding!r} with {grids}; deltas alone have anchors, those of every grid")
        if (self.scores == "softmax") != (self.background_at is not None):
            raise ValueError("scores='softmax' is over the classes and a background, and takes background_at=")
        if self.joined != "product" and self.objectness_at is None:
            raise ValueError(f"joined={self.joined!r} is about scores and objectness, and there is no objectness_at=")
        if self.scores == "softmax" and self.objectness_at is not None:
            raise ValueError("scores='softmax' has a background in place of an objectness; leave objectness_at= out")
        if (self.coding in _ON_GRIDS) != bool(self.strides):
            wanted = "takes the strides of its grids" if not self.strides else "is in pixels and takes no strides"
            raise ValueError(f"coding={self.coding!r} {wanted}")
        if self.classes is not None:
            taken = [*range(self.boxes_at, self.boxes_at + self.box_outputs)]
            taken += [*range(self.scores_at, self.scores_at + self.classes)]
            taken += [place for place in (self.objectness_at, self.background_at) if place is not None]
            if sorted(taken) != list(range(self.outputs)):
                raise ValueError("scores, boxes and objectness overlap, or leave outputs between them")
        return self

    @classmethod
    def named(cls, name: str) -> Boxes:
        """The description of a known family of detectors.

        Raises:
            OptionError: The name is unknown.
        """
        if name not in FAMILIES:
            raise OptionError(
                "option-boxes",
                f"boxes={brief(name)} names no known family of detectors; there are {', '.join(FAMILIES)}"
                f"{near(name, list(FAMILIES))}: give one of them, or brickyard.Boxes(...)",
            )
        return FAMILIES[name]

    @property
    def box_outputs(self) -> int:
        """How many outputs code a box."""
        return _NUMBERS * self.bins

    @property
    def others(self) -> int:
        """How many outputs are no class's score."""
        return self.box_outputs + (self.objectness_at is not None) + (self.background_at is not None)

    @property
    def outputs(self) -> int:
        """How many outputs each place has."""
        return self.others + (self.classes or 0)

    def sized(self, outputs: int) -> Boxes:
        """The same for a detector with so many outputs, whose classes are counted where they are not known.

        Raises:
            OptionError: They do not fit.
        """
        count = outputs - self.others if self.classes is None else self.classes
        if count < 1 or count + self.others != outputs:
            raise OptionError(
                "option-boxes",
                f"the detector has {outputs} outputs at each place, and {self.others} for boxes and objectness"
                + (f" and {self.classes} classes" if self.classes else " and at least one class")
                + f" were described (coding={self.coding!r}); give boxes= that fit it",
            )
        return self if self.classes is not None else Boxes(**{**self.model_dump(), "classes": count})

    def places(self, sides: tuple[int, ...]) -> int | None:
        """How many places the grids of an input of (height, width) have; None where that is not described."""
        if not self.strides:
            return None
        if len(sides) != 2:
            raise OptionError("option-boxes", f"boxes lie in pictures, and the detector takes inputs of {sides}")
        grids = [math.prod(cells_along(side, stride) for side in sides) for stride in self.strides]
        anchors = map(len, self.anchors) if self.anchors else [1] * len(grids)
        return sum(cells * each for cells, each in zip(grids, anchors, strict=True))

    def kept(self, task: tuple[int, ...]) -> tuple[int, ...]:
        """The outputs that a task needs, in their order; its classes' scores in the order of the task."""
        first = [k for k in range(self.outputs) if not self.is_score(k) and k < self.scores_at]
        last = [k for k in range(self.outputs) if not self.is_score(k) and k > self.scores_at]
        return (*first, *(self.scores_at + k for k in task), *last)

    def is_score(self, output: int) -> bool:
        """Whether an output is a class's score."""
        return self.scores_at <= output < self.scores_at + (self.classes or 0)

    def of_task(self, count: int) -> Boxes:
        """The description of what is left of the outputs with so many classes."""

        def moved(place: int) -> int:
            return place if place < self.scores_at else place - (self.classes or 0) + count

        changes: dict[str, Any] = {"classes": count, "boxes_at": moved(self.boxes_at)}
        for name in ("objectness_at", "background_at"):
            changes[name] = None if (place := getattr(self, name)) is None else moved(place)
        return Boxes(**{**self.model_dump(), **changes})


def cells_along(side: float, stride: float) -> int:
    """How many cells a grid has along a side of so many pixels: as many as fit, rounded up."""
    return max(1, math.ceil(side / stride - _ROUNDING))


def of_pyramid(strides: Sequence[float], anchors: Sequence[Sequence[tuple[float, float]]]) -> Boxes:
    """RetinaNet's outputs, as torchvision has them, with the anchors of every grid."""
    return Boxes(boxes_at=0, scores_at=4, scores="sigmoid", coding="deltas", strides=strides, offset=0, anchors=anchors)


def of_points(strides: Sequence[float]) -> Boxes:
    """FCOS's outputs, as torchvision has them."""
    known = {"boxes_at": 0, "objectness_at": 4, "scores_at": 5, "scores": "sigmoid", "joined": "geometric"}
    return Boxes(**known, coding="sides", strides=strides, offset=0)


def of_single_shot(
    strides: Sequence[float],
    anchors: Sequence[Sequence[tuple[float, float]]],
    weights: Sequence[float] = (10, 10, 5, 5),
) -> Boxes:
    """SSD's outputs, as torchvision has them, with the anchors of every grid."""
    known = {"boxes_at": 0, "background_at": 4, "scores_at": 5, "scores": "softmax", "coding": "deltas"}
    return Boxes(**known, strides=strides, anchors=anchors, weights=weights)


_PYRAMID = (8, 16, 32, 64, 128)
_RATIOS = (0.5, 1.0, 2.0)  # of heights to widths
_OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


def _usual_anchors(stride: int) -> list[tuple[float, float]]:
    """RetinaNet's: three sizes from four strides on, in three forms (Lin et al., 2017), as torchvision rounds them."""
    sizes = [int(4 * stride * part) for part in _OCTAVE]
    sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in _RATIOS for size in sizes]
    return [(2.0 * round(width / 2), 2.0 * round(height / 2)) for width, height in sides]


def _default_boxes(
    side: int, scales: Sequence[float], ratios: Sequence[Sequence[int]]
) -> list[list[tuple[float, float]]]:
    """SSD's (Liu et al., 2016): per grid two squares, and two boxes of each ratio, cut off at the image's size."""
    found = []
    for scale, larger, forms in zip(scales, scales[1:], ratios, strict=False):
        pairs = [(scale, scale), (math.sqrt(scale * larger),) * 2]
        for root in map(math.sqrt, forms):
            pairs += [(scale * root, scale / root), (scale / root, scale * root)]
        found.append([(side * min(1.0, width), side * min(1.0, height)) for width, height in pairs])
    return found


_SSD300 = _default_boxes(300, (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05), [[2], [2, 3], [2, 3], [2, 3], [2], [2]])
_SSDLITE320 = _default_boxes(320, (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), [[2, 3]] * 6)


FAMILIES: dict[str, Boxes] = {
    "yolox": Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="grid", strides=(8, 16, 32)),
    "nanodet": Boxes(
        scores_at=0, boxes_at=80, scores="sigmoid", coding="bins", bins=8, strides=(8, 16, 32), classes=80
    ),
    "yolov5": Boxes(scores_at=5, boxes_at=0, objectness_at=4, coding="centre"),
    "yolov8": Boxes(scores_at=4, boxes_at=0, coding="centre", outputs_first=True),
    "retinanet": of_pyramid(_PYRAMID, [_usual_anchors(stride) for stride in _PYRAMID]),
    "fcos": of_points(_PYRAMID),
    "ssd": of_single_shot((8, 16, 32, 64, 100, 300), _SSD300),
    "ssdlite": of_single_shot((16, 32, 64, 320 / 3, 160, 320), _SSDLITE320),
}
"""By family: as their public exporters write them, and torchvision's for images of the usual size."""

KIND = "boxes"
"""What manifests call the outputs of detectors."""


def family_of(boxes: Boxes | None) -> str | None:
    """The known family whose description this is, however many classes it has; None where it is of none."""
    if boxes is None:
        return None
    same = {name: known for name, known in FAMILIES.items() if alike(known, boxes)}
    exact = [name for name, known in same.items() if (known.strides, known.anchors) == (boxes.strides, boxes.anchors)]
    return next(iter(exact or (same if boxes.coding == "deltas" else ())), None)  # anchors depend on the image's size


def alike(one: Boxes, other: Boxes) -> bool:
    """Whether two descriptions are of one form: all but the classes and the grids with their anchors is the same."""

    def coded(boxes: Boxes) -> dict[str, Any]:
        return boxes.model_dump(exclude={"classes", "strides", "anchors"})

    return coded(one) == coded(other)


def boxes_asked(value: Any) -> Boxes | None:
    """How a detector's outputs are read, from a family's name or a description; None for a classifier.

    Raises:
        OptionError: It is neither.
    """
    if value is None or isinstance(value, Boxes):
        return value
    if isinstance(value, str):
        return Boxes.named(value)
    raise OptionError(
        "option-type",
        f"boxes must be a family of detectors such as 'yolox', or brickyard.Boxes(...), got {brief(value)}; give one "
        "of them, or leave it out for a classifier",
    )


def check_no_boxes(model: Any, what: str, advice: str) -> None:
    """Refuse what only classifiers can do for a detector, before any work.

    Args:
        model: What knows how boxes are read, such as a manifest, or has a manifest.
        what: What was asked for.
        advice: What to do instead.

    Raises:
        OptionError: It is a detector, or has a part that is one.
    """
    known = getattr(model, "manifest", model)
    if any(getattr(one, "boxes", None) is not None for one in (known, *getattr(known, "parts", ()))):
        raise OptionError("option-wrong-object", f"{what} is for classifiers, and this is a detector; {advice}")


def outputs_asked(value: Any) -> str | Boxes:
    """Check what was said of a source's outputs: a kind, a family of detectors, or a description.

    Raises:
        OptionError: It is neither.
    """
    if isinstance(value, str | Boxes):
        return value
    raise OptionError(
        "option-type",
        f"outputs must be a kind such as 'one' or 'several', a family of detectors such as 'yolox', or "
        f"brickyard.Boxes(...), got {brief(value)}; give one of them",
    )


def split_outputs(asked: str | Boxes | None) -> tuple[str | None, Boxes | None]:
    """The kind of outputs, and how boxes are read, in what was asked for."""
    if isinstance(asked, Boxes):
        return KIND, asked
    return (KIND, FAMILIES[asked]) if asked in FAMILIES else (asked, None)
