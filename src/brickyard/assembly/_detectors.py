"""Assemblies of detectors: every part looks at the picture in its own way, and their boxes meet in its pixels.

The outputs of an assembly are those of one more detector: (batch, 4 + classes, places of all parts), where each place
has the corners of its box in pixels of the raw picture, and the scores of the assembly's classes, zero for those of
other parts. Boxes of one class suppress each other across parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from brickyard.base._errors import OptionError
from brickyard.component._component import Component
from brickyard.inputs._preprocessing import to_picture
from brickyard.outputs._detections import Detections, Found, within
from brickyard.outputs._kinds import Outputs

_USUAL: Mapping[str, Any] = {
    "form": ("auto", "parallel"),
    "scaling": ("auto", "none"),
    "images": (None,),
    "votes": (None, False),
    "budget": (None,),
    "calibration": (None,),
    "agreement": (None,),
    "source": (None,),
}


def check_detectors(options: Mapping[str, Any]) -> None:
    """Refuse what detectors are not assembled with.

    Raises:
        OptionError: The message names the option.
    """
    for name, usual in _USUAL.items():
        if not any(options[name] is value or options[name] == value for value in usual):
            raise OptionError(
                "option-conflict",
                f"{name}= was given, and detectors are joined in parallel form as they are; leave it out",
            )


def boxes_of_all(
    parts: Sequence[Component], places: Sequence[Sequence[int]], outputs: Sequence[Tensor], images: Tensor
) -> Tensor:
    """The outputs of an assembly of detectors.

    Args:
        parts: The parts.
        places: For each part and class of its source, the assembly's class, or -1.
        outputs: What the network of each part returns.
        images: The raw pictures, (batch, channels, height, width).

    Returns:
        (batch, 4 + classes, places of all parts).
    """
    height, width = images.shape[2:]
    classes = 1 + max(max(own) for own in places)
    found = []
    for part, own, rows in zip(parts, places, outputs, strict=True):
        assert isinstance(part.outputs, Detections)
        boxes, scores = part.outputs.decode(part.head(rows))
        boxes = to_picture(boxes, (height, width), part.manifest.preprocessing)
        used = [(index, own[k]) for index, k in enumerate(part.manifest.task) if own[k] >= 0]
        every = scores.new_zeros(*scores.shape[:2], classes)
        every[..., [target for _, target in used]] = scores[..., [index for index, _ in used]]
        found.append(torch.cat([boxes, every], 2))
    return torch.cat(found, 1).transpose(1, 2)


def found_among(outputs: Outputs, sides: tuple[int, ...], logits: Tensor, *how: Any) -> list[Found]:
    """The boxes in pictures of some sides, of what all parts say, as `Predictor.found` returns them."""
    assert isinstance(outputs, Detections)
    height, width = sides
    kind = outputs.reading(outputs.boxes, (3, height, width))
    found = (one.on_cpu() for one in kind.find(logits, *how))
    return [one._replace(boxes=within(one.boxes, (height, width))) for one in found]
