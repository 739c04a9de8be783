"""Kinds of answer by the name that manifests and options have for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from brickyard.base._boxes import KIND, Boxes
from brickyard.base._checks import EVEN
from brickyard.base._errors import FileError, OptionError, TaskError
from brickyard.base._messages import brief, near
from brickyard.base._records import AssemblyManifest, ComponentManifest, RelevanceFile
from brickyard.outputs import _detections  # noqa: F401  registers its kind
from brickyard.outputs._kinds import OUTPUTS as OUTPUTS
from brickyard.outputs._kinds import Outputs


def find_outputs(name: str) -> Outputs:
    """Look up a kind of answer by name.

    Raises:
        OptionError: The name is unknown.
    """
    if not isinstance(name, str) or name not in OUTPUTS:
        hint = near(name, list(OUTPUTS)) if isinstance(name, str) else ""
        raise OptionError(
            "option-choice",
            f"outputs={brief(name)} is not known; use one of {', '.join(OUTPUTS)}{hint}, or register it with "
            "brickyard.outputs.outputs",
        )
    return OUTPUTS[name]


def outputs_of(manifest: ComponentManifest | AssemblyManifest) -> Outputs:
    """What a model's outputs mean, with its decision thresholds.

    Raises:
        OptionError: The kind is unknown, has no thresholds or cannot take several classes as one, or parts that share a
            class differ in its threshold.
    """
    if isinstance(manifest, AssemblyManifest):
        for name, own in zip(manifest.classes, manifest.thresholds_by_part, strict=True):
            if len(set(own)) > 1:
                raise OptionError(
                    "option-conflict",
                    f"class {brief(name)} has decision thresholds {' and '.join(f'{one:g}' for one in own)} in the "
                    "parts that share it; give them one, with part.with_decision_thresholds",
                )
    boxes, shape = _reading(manifest)
    found = find_outputs(manifest.outputs).reading(boxes, shape).deciding(manifest.decision_thresholds)
    if any(len(group) > 1 for part in manifest.parts for group in part.groups):
        found.any_of(torch.zeros(1, 2))  # refuses where it cannot
    return found


def _reading(manifest: ComponentManifest | AssemblyManifest) -> tuple[Boxes | None, tuple[int, ...]]:
    """How boxes are read, and what the network takes; several detectors say corners in pixels of the picture."""
    if not isinstance(manifest, AssemblyManifest):
        return manifest.boxes, manifest.input_shape
    if manifest.outputs != KIND:
        return None, ()
    count = len(manifest.classes)
    return Boxes(classes=count, scores_at=4, boxes_at=0, coding="corners", outputs_first=True), ()


def thresholds_for(
    given: Mapping[str, float] | float, classes: Sequence[str], before: Sequence[float] = ()
) -> tuple[float, ...]:
    """Decision thresholds by class.

    Args:
        given: One for all classes, or some by class name.
        classes: The class names.
        before: What classes have that are not named; none: one half each.

    Returns:
        One per class.

    Raises:
        TaskError: A name is none of the classes.
    """
    known = dict(zip(classes, before or [EVEN] * len(classes), strict=True))
    named = given if isinstance(given, Mapping) else dict.fromkeys(classes, given)
    if unknown := [name for name in named if name not in known]:
        raise TaskError(
            "task-unknown-class",
            f"decision_thresholds= names class {brief(unknown[0])}; classes: {', '.join(classes[:8])}"
            f"{near(unknown[0], classes)}: give one of them",
        )
    return tuple({**known, **named}.values())


def check_outputs(text: ComponentManifest | AssemblyManifest | RelevanceFile) -> None:
    """Check what the outputs of a file mean.

    Raises:
        FileError: Their kind is unknown, or cannot do what is asked of it.
    """
    name = text.outputs
    if name not in OUTPUTS:
        raise FileError(
            "file-unknown-operation",
            f"its outputs are of kind {brief(name)}, which is not known here ({', '.join(OUTPUTS)} are); register it "
            "with brickyard.outputs.outputs before loading",
        )
    try:
        if isinstance(text, RelevanceFile):
            OUTPUTS[name].reading(text.boxes, text.input_shape)
            return
        outputs_of(text)
    except OptionError as error:
        raise FileError("file-inconsistent", f"its outputs cannot be used: {error}") from None
