"""What exported files say of themselves: classes, preprocessing, sources, inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from brickyard._version import __version__
from brickyard.assembly._assembly import Assembly
from brickyard.base._records import ComponentManifest
from brickyard.base._sides import SIDES, is_picture
from brickyard.component._component import Component
from brickyard.component._predictor import REJECT
from brickyard.export._onnx_modules import Entry

KEY = "brickyard"


def description(model: Component | Assembly) -> dict[str, Any]:
    """What a model is, as JSON for files that are not Brickyard's own."""
    manifest = model.manifest
    kept: Any = {"classes": True, "preprocessing": True, "input_shape": True, "source": {"name", "sha256"}}
    about: dict[str, Any] = {
        "brickyard": __version__,
        "kind": manifest.kind,
        "classes": list(model.classes),
        "outputs": [*model.classes, *([REJECT] if model.reject else [])],
        "answers": manifest.outputs,
        **({"decision_thresholds": list(manifest.decision_thresholds)} if manifest.decision_thresholds else {}),
        "parts": [part.model_dump(mode="json", include=kept) | _stands_for(part) for part in manifest.parts],
        "scores": manifest.scores,
        "created": manifest.created,
    }
    if isinstance(model, Assembly):
        about |= {"form": model.manifest.form, "scaling": model.manifest.scaling.name}
    return about


def _stands_for(part: ComponentManifest) -> dict[str, Any]:
    """The classes of its source that each class of a part stands for, where that is not one of the same name."""
    groups = zip(part.classes, part.groups, strict=True)
    found = {name: [part.source.classes[k] for k in group] for name, group in groups}
    return {"stands_for": found} if part.members else {}


def title(model: Component | Assembly) -> str:
    names = ", ".join(model.classes[:5]) + (" ..." if len(model.classes) > 5 else "")
    return f"the {model.manifest.kind} for {names}"


def describe(proto: Any, model: Component | Assembly, entry: Entry, more: Mapping[str, Any] | None = None) -> None:
    """Add a description to the file, with more entries if there are any, and remove this machine's paths from it."""
    sides = proto.graph.input[0].type.tensor_type.shape.dim
    batch = sides[0].dim_value or "batch"
    names = ("batch", "", *SIDES[len(sides) - 2])
    renamed = {side.dim_param: name for side, name in zip(sides, names, strict=True) if name}
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    for value in values:
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = renamed.get(side.dim_param, side.dim_param)
    for item in (*values, *proto.graph.node, *proto.graph.initializer, proto.graph, proto):
        del item.metadata_props[:]
        item.doc_string = ""
    proto.producer_name, proto.producer_version = "brickyard", __version__
    proto.graph.name = "brickyard"
    proto.doc_string = str(model)
    about = description(model) | {"input": _input(model, entry, batch)} | dict(more or {})
    for key, value in (("classes", about["outputs"]), (KEY, about)):
        proto.metadata_props.add(key=key, value=json.dumps(value, allow_nan=False))


def _input(model: Component | Assembly, entry: Entry, batch: int | str) -> dict[str, Any]:
    raw = "0 to 255" if entry.dtype == "uint8" else "0 to 1"
    pictures = is_picture(model.input_shape)
    normalised = any(part.preprocessing.mean is not None for part in model.manifest.parts)
    return {
        "name": "images",
        "dtype": entry.dtype,
        "shape": [batch, entry.channels, *(entry.size or ("height", "width"))],
        "values": raw if pictures and (normalised or entry.dtype == "uint8") else f"{raw}, or as the source takes them",
    }
