"""Assemblies of detectors: every part looks at the picture in its own way, and their boxes meet in its pixels.

The outputs of an assembly are those of one more detector: (batch, 4 + classes, places of all parts), where each place
has the corners of its box in pixels of the raw picture, and the scores of the assembly's classes, zero for those of
other parts. With scaling "auto", a score is the expected precision of boxes that have it. Where parts know one class,
their boxes suppress each other, or are fused (`on_duplicate="average"`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from brickyard.base._errors import BrickyardWarning, OptionError
from brickyard.base._records import AssemblyManifest, ScalingRecord
from brickyard.component._component import Component
from brickyard.inputs._preprocessing import to_picture
from brickyard.network._network import kind
from brickyard.outputs._detections import IOU, MOST, SCORE, Detections, Found, suppressed, within
from brickyard.outputs._fusion import fused
from brickyard.outputs._kinds import Outputs
from brickyard.outputs._precisions import expected

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

LEAST = 0.01  # score of boxes that are fused


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


def scaling_of(parts: Sequence[Component]) -> ScalingRecord:
    """How scores are made comparable, with notes; parts that do not know how often their boxes are right are warned of.

    A score becomes the expected precision of boxes that have it, by the curve of its part.
    """
    notes, raw = [], []
    for index, part in enumerate(parts):
        named = f"part {index} ({', '.join(part.classes[:3])}{', ...' if len(part.classes) > 3 else ''})"
        curve = part.manifest.precisions
        if curve is None:
            raw.append(named)
        else:
            notes.append(f"scores of {named} are expected precisions, from {curve.boxes:,} boxes held back")
    if raw:
        why = "it was" if len(raw) == 1 else "they were"
        told = f"{' and '.join(raw)} keep{'s' if len(raw) == 1 else ''} raw scores"
        told += f": {why} cut from too few images, or by an earlier version"
        notes.append(told)
        if len(parts) > 1:
            advice = "cut again with images that show more objects, or give scaling='none' to keep all scores raw"
            warnings.warn(f"{told}; {advice}", BrickyardWarning, stacklevel=5)
    return ScalingRecord(name="auto", notes=tuple(notes))


def boxes_of_all(
    parts: Sequence[Component],
    places: Sequence[Sequence[int]],
    outputs: Sequence[Tensor],
    images: Tensor,
    *,
    precise: bool,
) -> Tensor:
    """The outputs of an assembly of detectors.

    Args:
        parts: The parts.
        places: For each part and class of its source, the assembly's class, or -1.
        outputs: What the network of each part returns.
        images: The raw pictures, (batch, channels, height, width).
        precise: Whether scores become expected precisions, where a part knows how.

    Returns:
        (batch, 4 + classes, places of all parts).
    """
    height, width = images.shape[2:]
    classes = 1 + max(max(own) for own in places)
    found = []
    for part, own, rows in zip(parts, places, outputs, strict=True):
        assert isinstance(part.outputs, Detections)
        boxes, scores = part.outputs.decode(part.head(rows))
        scores = expected(scores, part.manifest.precisions if precise else None)
        boxes = to_picture(boxes, (height, width), part.manifest.preprocessing)
        used = [(index, own[k]) for index, k in enumerate(part.manifest.task) if own[k] >= 0]
        every = scores.new_zeros(*scores.shape[:2], classes)
        every[..., [target for _, target in used]] = scores[..., [index for index, _ in used]]
        found.append(torch.cat([boxes, every], 2))
    return torch.cat(found, 1).transpose(1, 2)


def spans_of(parts: Sequence[Component], manifest: AssemblyManifest) -> tuple[int, ...]:
    """How many places each part has, where boxes of parts that know a class are fused; else nothing."""
    if manifest.on_duplicate != "average" or all(len(owners) < 2 for owners in manifest.owners):
        return ()
    return tuple(map(_places_of, parts))


def _places_of(part: Component) -> int:
    """How many places a detector looks at; one that does not describe its grids is asked once."""
    boxes = part.manifest.boxes
    known = None if boxes is None else boxes.places(part.input_shape[1:])
    if known is not None:
        return known
    with torch.inference_mode():
        return int(part(torch.zeros(1, *part.input_shape).to(kind(part))).shape[2])


def found_among(
    outputs: Outputs,
    owners: Sequence[Sequence[int]],
    spans: Sequence[int],
    sides: tuple[int, ...],
    logits: Tensor,
    how: Sequence[Any],
) -> list[Found]:
    """The boxes in pictures of some sides, of what all parts say, as `Predictor.found` returns them.

    Args:
        outputs: What the assembly's outputs mean.
        owners: For each class, the parts that know it.
        spans: How many places each part has, if boxes of classes that several know are fused; else the surest stays.
        sides: Height and width of the pictures.
        logits: What `boxes_of_all` returns.
        how: The least score, the overlap above which boxes of a class are one object, and how many boxes to return.
    """
    assert isinstance(outputs, Detections)
    height, width = sides
    reader = outputs.reading(outputs.boxes, (3, height, width))
    if not spans:
        return [_cut_off(one, sides) for one in reader.find(logits, *how)]
    score, iou, most = how or (SCORE, IOU, MOST)
    least = min(score, LEAST), iou, max(most, MOST)
    each = [[_cut_off(one, sides) for one in reader.find(own, *least)] for own in logits.split(list(spans), 2)]
    shared = [k for k, own in enumerate(owners) if len(own) > 1]
    joined = [fused(parts, shared) for parts in zip(*each, strict=True)]
    kept = [one.of(one.scores > score) for one in joined]
    return [one.of(suppressed(*one, iou, most)) for one in kept]


def _cut_off(found: Found, sides: tuple[int, ...]) -> Found:
    height, width = sides
    return found.on_cpu()._replace(boxes=within(found.boxes.cpu(), (height, width)))
