"""Detectors of torchvision as networks with one output tensor: what they compute between resizing and suppression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._boxes import Boxes, alike, of_points, of_pyramid, of_single_shot
from brickyard.base._errors import OptionError, TraceError
from brickyard.base._records import Preprocessing

_HOME = "torchvision.models.detection"
_ORDER = ("bbox_regression", "bbox_ctrness", "cls_logits")  # as `Boxes` of each family expects them
_ONE_STAGE = ("RetinaNet", "FCOS", "SSD")
_OTHERS = {
    "GeneralizedRCNN": "it classifies crops of its own features, whose number differs from image to image",
    "DetrForObjectDetection": "its outputs are sets of queries, of which none stands for a place or a class",
}
_MULTIPLE = 128  # pixels
_SAME = 1e-5


class DetectorBody(nn.Module):
    """A one-stage detector of torchvision without its resizing and its suppression: (batch, places, outputs)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of each place: those of the box, the objectness if there is one, and those of the classes."""
        features = self.backbone(x)
        found = self.head(list(features.values()) if isinstance(features, Mapping) else [features])
        return torch.cat([found[name] for name in _ORDER if name in found], 2)


def is_detector(model: nn.Module) -> bool:
    """Whether it is a one-stage detector of torchvision, which `with_one_output` takes.

    Raises:
        TraceError: It is a detector of a kind that cannot be cut.
    """
    names = [cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith((_HOME, "transformers."))]
    for name, why in _OTHERS.items():
        if name in names:
            raise TraceError(
                "trace-output",
                f"{type(model).__name__} cannot be cut: {why}; use a one-stage detector, such as YOLOX, or RetinaNet, "
                "FCOS or SSD of torchvision",
            )
    return any(name in names for name in _ONE_STAGE)


def with_one_output(model: nn.Module, example: Tensor, boxes: Boxes | None) -> tuple[nn.Module, Boxes | None]:
    """What of a detector of torchvision is traced, and how its outputs are read; any other model as it is.

    The anchors are those of the model for images of the example's size.

    Raises:
        TraceError: It is a detector of a kind that cannot be cut.
        OptionError: Other boxes are asked for than it has, or its grids do not fit images of that size.
    """
    if not is_detector(model):
        return model, boxes
    own = _described(model, example)
    if boxes is not None and not alike(boxes, own):
        raise OptionError(
            "option-boxes",
            f"{type(model).__name__} of torchvision has outputs of its own form, and others were described; leave them "
            "out (outputs= or boxes=): how it is read is known",
        )
    return DetectorBody(model), own


def preparation(model: Any) -> Preprocessing:
    """How a detector of torchvision prepares its images, for images of one size.

    Where it resizes them to a size of its own, so it is; else they are letterboxed to 640 x 640 pixels.
    """
    resizing = model.transform
    how = Preprocessing.of_detector("retinanet")
    mean, std = map(tuple, (resizing.image_mean, resizing.image_std))
    if resizing.fixed_size is None:
        return how.changed({"mean": mean, "std": std, "fill": sum(mean) / len(mean)})
    width, height = resizing.fixed_size
    return how.changed({"fit": "resize", "size": (height, width), "mean": mean, "std": std})


def _described(model: Any, example: Tensor) -> Boxes:
    """How its outputs are read for images of the example's size: with the anchors that it makes for these.

    Raises:
        OptionError: Its anchors lie on no regular grids.
    """
    from torchvision.models.detection.image_list import ImageList

    sides = tuple(example.shape[2:])
    with torch.no_grad():
        features = model.backbone(example[:1])
        maps = list(features.values()) if isinstance(features, Mapping) else [features]
        anchors = model.anchor_generator(ImageList(example[:1], [sides]), maps)[0].double().cpu()
    grids = [tuple(one.shape[2:]) for one in maps]
    counts = model.anchor_generator.num_anchors_per_location()
    ends = [rows * columns * count for (rows, columns), count in zip(grids, counts, strict=True)]
    found = [_grid(part, *more) for *more, part in zip(grids, counts, anchors.split(ends), strict=True)]
    strides, sizes = [stride for stride, _, _ in found], [own for _, _, own in found]
    names = {cls.__name__ for cls in type(model).__mro__}
    if "SSD" in names:
        boxes = of_single_shot(strides, sizes)
    else:
        boxes = of_points(strides) if "FCOS" in names else of_pyramid(strides, sizes)
    regular = all(offset in (None, boxes.offset) for _, offset, _ in found) and boxes.places(sides) == len(anchors)
    if not regular or float((_anchors(boxes, grids) - anchors).abs().max()) > _SAME * max(sides):
        raise OptionError(
            "option-boxes",
            f"the anchors of {type(model).__name__} lie on no regular grids in images of {sides[0]} x {sides[1]}; "
            f"give images whose sides are multiples of {_MULTIPLE} (preprocessing= with another size)",
        )
    return boxes


def _grid(anchors: Tensor, grid: tuple[int, int], count: int) -> tuple[float, float | None, list[tuple[float, float]]]:
    """The stride of a grid, where in a cell its anchors lie (None where one cell does not tell), and their sizes."""
    rows, columns = grid
    middles = ((anchors[:, :2] + anchors[:, 2:]) / 2).unflatten(0, (rows, columns, count))[:, :, 0]
    first = float(middles[0, 0, 0])
    if columns > 1:
        stride = float(middles[0, 1, 0]) - first
    else:
        stride = float(middles[1, 0, 1]) - float(middles[0, 0, 1]) if rows > 1 else 2 * first
    sizes = [(float(one[2] - one[0]), float(one[3] - one[1])) for one in anchors[:count]]
    if stride <= 0:  # one cell, with its anchors at the corner
        return _whole(max(1.0, *(side for pair in sizes for side in pair))), None, sizes
    return _whole(stride), 0.5 if abs(first / stride - 0.5) < 0.25 else 0.0, sizes


def _whole(stride: float) -> float:
    """A stride as a whole number, but for rounding."""
    near = round(stride)
    return near if abs(stride - near) < _SAME * stride else stride


def _anchors(boxes: Boxes, grids: Sequence[tuple[int, int]]) -> Tensor:
    """The anchors of a description, (places, 4)."""
    found = []
    for number, ((rows, columns), stride) in enumerate(zip(grids, boxes.strides, strict=True)):
        own = torch.tensor(boxes.anchors[number] if boxes.anchors else [[stride, stride]]).double()
        y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
        middles = ((torch.stack([x.flatten(), y.flatten()], 1) + boxes.offset) * stride).repeat_interleave(len(own), 0)
        sizes = own.repeat(rows * columns, 1)
        found.append(torch.cat([middles - sizes / 2, middles + sizes / 2], 1))
    return torch.cat(found)
