"""Detectors of torchvision as networks with one output tensor: what they compute between resizing and suppression."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.axes._answers import Form, Path, at, parts_of, path_to
from brickyard.base._boxes import Boxes, alike, cells_along, of_points, of_pyramid, of_single_shot
from brickyard.base._errors import OptionError, TraceError
from brickyard.base._records import Preprocessing
from brickyard.network._network import Network

_HOME = "torchvision.models.detection"
_ORDER = ("bbox_regression", "bbox_ctrness", "cls_logits")  # as `Boxes` of each family expects them
_ONE_STAGE = ("RetinaNet", "FCOS", "SSD")
_OTHERS = {  # the first that fits
    "MaskRCNN": "it draws a mask for each box, and masks are not read",
    "KeypointRCNN": "it finds key points in each box, and these are not read",
    "GeneralizedRCNN": "it is of two stages: the second one classifies crops, whose number differs from image to image",
}
_OF_QUERIES = "ForObjectDetection"
_QUERIES = "it answers queries, and none of them stands for a place of the image"
_MULTIPLE = 128  # pixels
_PICTURES = 4  # dimensions of a batch
_FEWEST = 2  # tensors that become one
_SAME = 1e-5


class DetectorBody(nn.Module):
    """A one-stage detector of torchvision without its resizing and its suppression: (batch, places, outputs).

    Its layers are those of the detector, by the same names.

    Attributes:
        form: "RetinaNet", "FCOS" or "SSD".
    """

    def __init__(self, model: Any, form: str) -> None:
        super().__init__()
        self.backbone, self.head, self.anchor_generator = model.backbone, model.head, model.anchor_generator
        self.form = form
        self.weights: Sequence[float] = getattr(model.box_coder, "weights", ())  # FCOS has none
        self.training = model.training

    def maps(self, x: Tensor) -> list[Tensor]:
        """The features that the heads see, grid by grid."""
        features = self.backbone(x)
        return list(features.values()) if isinstance(features, Mapping) else [features]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of each place: those of the box, the objectness if there is one, and those of the classes."""
        found = self.head(self.maps(x))
        return torch.cat([found[name] for name in _ORDER if name in found], 2)


class JoinedOutputs(nn.Module):
    """A detector that returns several tensors, of which those at some paths are laid side by side."""

    def __init__(self, model: nn.Module, paths: Sequence[Path], dim: int) -> None:
        super().__init__()
        self.model, self.paths, self.dim = model, paths, dim
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of each place, those of one tensor after those of another."""
        found = self.model(x)
        return torch.cat([at(found, path) for path in self.paths], self.dim)


def is_detector(model: nn.Module) -> bool:
    """Whether it is a one-stage detector of torchvision, which `with_one_output` takes.

    Raises:
        TraceError: It is a detector of a kind that cannot be cut.
    """
    return isinstance(model, DetectorBody) or _form(model) is not None


def _form(model: nn.Module) -> str | None:
    classes = type(model).__mro__
    names = [one.__name__ for one in classes if one.__module__.startswith(_HOME)]
    why = next((_OTHERS[name] for name in _OTHERS if name in names), None)
    if any(one.__module__.startswith("transformers.") and one.__name__.endswith(_OF_QUERIES) for one in classes):
        why = _QUERIES
    if why is not None:
        raise TraceError(
            "trace-output",
            f"{type(model).__name__} cannot be cut: {why}; use a one-stage detector: RetinaNet, FCOS or SSD of "
            "torchvision, or a network whose outputs brickyard.Boxes describes (outputs=)",
        )
    return next((name for name in _ONE_STAGE if name in names), None)


def with_one_output(
    model: nn.Module, example: Tensor, boxes: Boxes | None, output: str | None = None
) -> tuple[nn.Module, Boxes | None, str | None]:
    """What of a detector is traced, how its outputs are read, and which of them is meant; others as they are.

    Of one of torchvision it is what lies between its resizing and its suppression, with the anchors that it makes for
    images of the example's size. Of a network that returns several tensors it is these, laid side by side: those named
    in `output`, with commas between them; or those of a dict with the names that torchvision gives them.

    Raises:
        TraceError: It is a detector of a kind that cannot be cut.
        OptionError: Other boxes are described than it has; its grids do not fit images of that size; or its tensors
            cannot be laid side by side.
    """
    if isinstance(model, JoinedOutputs):
        return model, boxes, None
    if not isinstance(example, Tensor) or example.ndim != _PICTURES:
        return model, boxes, output
    if not is_detector(model):
        if boxes is None or isinstance(model, Network) or not (paths := _paths(model, example, boxes, output)):
            return model, boxes, output
        return JoinedOutputs(model, paths, 1 if boxes.outputs_first else 2), boxes, None
    body = model if isinstance(model, DetectorBody) else DetectorBody(model, _form(model) or "")
    try:
        with torch.no_grad():
            maps = body.maps(example[:1])
    except Exception:  # reading it says what is wrong
        return body, boxes, None
    own = _described(body, example, maps)
    if boxes is not None and not alike(boxes, own):
        raise OptionError(
            "option-boxes",
            f"{body.form} of torchvision has outputs of its own form, and others were described; leave them out "
            f"(outputs= or boxes=), or give {body.form.lower()!r}",
        )
    return body, own, None


def _paths(model: nn.Module, example: Tensor, boxes: Boxes, output: str | None) -> tuple[Path, ...]:
    """Where the tensors lie that become one; none where one is meant.

    Raises:
        OptionError: The model has no part of a name, or they do not fit each other.
    """
    if output is not None and "," not in output:
        return ()
    try:
        with torch.no_grad():
            result = model(example.clone())
    except Exception:  # reading it says what is wrong
        return ()
    if isinstance(result, Tensor) or output in dict(parts_of(result)):
        return ()
    if output is None:
        names = [name for name in _ORDER if isinstance(result, Mapping) and name in result]
        if len(names) < _FEWEST:
            return ()
    else:
        names = [name.strip() for name in output.split(",")]
    paths = tuple(path_to(result, name) for name in names)
    parts, kept = [at(result, path) for path in paths], 2 if boxes.outputs_first else 1
    if not all(Form(boxes).fits(part, len(example)) and part.shape[kept] == parts[0].shape[kept] for part in parts):
        shapes = [f"{name} {tuple(getattr(part, 'shape', ()))}" for name, part in zip(names, parts, strict=True)]
        raise OptionError(
            "option-boxes",
            f"the outputs {', '.join(shapes)} cannot be laid side by side: each must be {Form(boxes).words}, for the "
            "same places; describe with outputs_first= which comes first, or name others (output= or --output-name)",
        )
    return paths


def preparation(model: Any, sides: Sequence[int] = ()) -> Preprocessing:
    """How a detector of torchvision prepares its images, for images of one size.

    Where it resizes them to a size of its own, so it is; else they are letterboxed to `sides`, or to 640 x 640 pixels.
    """
    resizing = model.transform
    how = Preprocessing.of_detector("retinanet")
    mean, std = map(tuple, (resizing.image_mean, resizing.image_std))
    if resizing.fixed_size is None:
        size = {"size": tuple(sides)} if sides else {}
        return how.changed({"mean": mean, "std": std, "fill": sum(mean) / len(mean), **size})
    width, height = resizing.fixed_size
    return how.changed({"fit": "resize", "size": (height, width), "mean": mean, "std": std})


def _described(model: DetectorBody, example: Tensor, maps: Sequence[Tensor]) -> Boxes:
    """How its outputs are read for images of the example's size, of which it has these features.

    Raises:
        OptionError: Its anchors lie on no regular grids.
    """
    from torchvision.models.detection.image_list import ImageList

    sides = (example.shape[2], example.shape[3])
    with torch.no_grad():
        generator = copy.copy(model.anchor_generator)  # it keeps the type of numbers of its last call
        anchors = generator(ImageList(example[:1].double(), [sides]), [one.double() for one in maps])[0].cpu()
    grids = [(one.shape[2], one.shape[3]) for one in maps]
    counts = model.anchor_generator.num_anchors_per_location()
    ends = [rows * columns * count for (rows, columns), count in zip(grids, counts, strict=True)]
    parts = zip(anchors.split(ends), grids, counts, strict=True)
    found = [_grid(part, grid, count, sides) for part, grid, count in parts]
    sizes = [own for _, _, own in found]
    strides = [stride or (own[0][0] if model.form == "FCOS" else max(sides)) for stride, _, own in found]
    if model.form == "SSD":
        boxes = of_single_shot(strides, sizes, model.weights)
    else:
        boxes = of_points(strides) if model.form == "FCOS" else of_pyramid(strides, sizes)
    regular = all(offset in (None, boxes.offset) for _, offset, _ in found) and boxes.places(sides) == len(anchors)
    if not regular or float((_anchors(boxes, sides) - anchors).abs().max()) > _SAME * max(sides):
        raise OptionError(
            "option-boxes",
            f"the anchors of {model.form} lie on no regular grids in images of {sides[0]} x {sides[1]}; "
            f"give images whose sides are multiples of {_MULTIPLE} (preprocessing= with another size)",
        )
    return boxes


def _grid(
    anchors: Tensor, grid: tuple[int, int], count: int, sides: tuple[int, ...]
) -> tuple[float, float | None, list[tuple[float, float]]]:
    """The stride of a grid, where in a cell its anchors lie (0 and None if one cell does not tell), and their sizes."""
    rows, columns = grid
    middles = ((anchors[:, :2] + anchors[:, 2:]) / 2).unflatten(0, (rows, columns, count))[:, :, 0]
    first = float(middles[0, 0, 0])
    if columns > 1:
        stride = float(middles[0, 1, 0]) - first
    else:
        stride = float(middles[1, 0, 1]) - float(middles[0, 0, 1]) if rows > 1 else 2 * first
    sizes = [(float(one[2] - one[0]), float(one[3] - one[1])) for one in anchors[:count]]
    if stride <= 0:  # one cell, with its anchors at the corner
        return 0.0, None, sizes
    return _whole(stride, sides), 0.5 if abs(first / stride - 0.5) < 0.25 else 0.0, sizes


def _whole(stride: float, sides: Sequence[int]) -> float:
    """A stride as a whole number, or as a share of a side of the image, but for rounding."""
    shares = [round(stride), *(side / max(1, round(side / stride)) for side in sides)]
    return next((near for near in shares if near and abs(stride - near) < _SAME * stride), stride)


def _anchors(boxes: Boxes, sides: Sequence[int]) -> Tensor:
    """The anchors of a description for an input of (height, width): (places, 4)."""
    cell, stride, size = cells(boxes, sides, torch.zeros(0, dtype=torch.float64))
    middle = (cell + boxes.offset) * stride
    return torch.cat([middle - size / 2, middle + size / 2], 1)


def cells(boxes: Boxes, sides: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each place of an input of (height, width): its cell (places, 2) as x and y, its stride, and its anchor.

    Anchors are (places, 2), width and height; where there are none, they are as large as a cell.
    """
    found, sizes, anchors = [], [], []
    for number, stride in enumerate(boxes.strides):
        rows, columns = (cells_along(side, stride) for side in sides)
        own = torch.tensor(boxes.anchors[number] if boxes.anchors else [[stride, stride]], dtype=torch.float64)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        found.append(torch.stack([x.flatten(), y.flatten()], 1).repeat_interleave(len(own), 0))
        sizes.append(torch.full((rows * columns * len(own), 1), stride, dtype=torch.float64))
        anchors.append(own.repeat(rows * columns, 1))
    return torch.cat(found).to(like), torch.cat(sizes).to(like), torch.cat(anchors).to(like)
