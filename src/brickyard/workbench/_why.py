"""Why a classifier answers a picture as it does: where the picture speaks for a class, and along which channels."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._graph import trace
from brickyard.base._errors import BrickyardError, TaskError
from brickyard.base._messages import brief, first_line
from brickyard.base._records import AxisRecord, Preprocessing
from brickyard.component._component import Component
from brickyard.inputs._preprocessing import to_picture
from brickyard.network._network import kind
from brickyard.relevance._explain import position_map, route
from brickyard.workbench import _pictures as pictures
from brickyard.workbench._bench import Bench, Kept, cells

MOST_PLACES = 1_024  # of a map: finer ones are averaged
EXAMPLES = 2  # images that a network is traced with


def explained(bench: Bench, key: str, title: str, content: bytes, name: str | None) -> dict[str, Any]:
    """Explain one class of a classifier for a picture, by the brick that gives it the highest logit.

    Args:
        bench: The workbench.
        key: The classifier.
        title: What the picture is called.
        content: Its bytes.
        name: The class; None: the best one.
    """
    with bench.at_work(key) as kept:
        pictures.check_all([(title, content)], bench.limits)
        manifests = kept.assembly.manifest.parts
        picture = bench.picture(title, content, manifests, time.monotonic() + bench.limits.work_seconds)
        name = name if name is not None else _best(kept, picture)
        if name not in kept.assembly.classes:
            raise TaskError("task-unknown-class", f"the classifier has no class {brief(name)}; choose one that it has")
        wanted = kept.assembly.classes.index(name)
        logit, index, place = max(
            (float(_logits(part, picture)[0, own]), index, own)
            for index, (part, places) in enumerate(zip(kept.parts, kept.assembly.manifest.places, strict=True))
            for own, lead in enumerate(part.manifest.leads)
            if places[lead] == wanted
        )
        part = kept.parts[index]
        x = part.preprocess(picture.unsqueeze(0)).to(kind(part))
        values = position_map(part.network, x, lambda outputs: part.head(outputs)[:, place])
        return {
            "class": name,
            "brick": kept.bricks[index],
            "logit": logit,
            "map": None if values is None else _shown(values),
            "frame": frame(tuple(picture.shape[1:]), part.manifest.preprocessing),
            "route": _route(part, x, place),
            "familiar": [_familiar(brick, one, picture) for brick, one in zip(kept.bricks, kept.parts, strict=True)],
        }


def _best(kept: Kept, picture: Tensor) -> str:
    chances = kept.assembly.predict_proba([picture])[0]
    return kept.assembly.classes[int(chances[: len(kept.assembly.classes)].argmax())]


def _logits(part: Component, picture: Tensor) -> Tensor:
    with torch.inference_mode():
        return part.logits(picture.unsqueeze(0))


def _shown(values: Tensor) -> dict[str, Any]:
    total = float(values.sum())
    if values.numel() > MOST_PLACES:
        side = int(MOST_PLACES**0.5)
        height, width = (min(side, n) for n in values.shape)
        values = torch.nn.functional.adaptive_avg_pool2d(values[None], (height, width))[0]
    return {"values": [[round(v, 6) for v in row] for row in values.tolist()], "total": total}


def frame(shape: tuple[int, ...], how: Preprocessing) -> list[float]:
    """Which part of a picture a network is shown: left, top, width, height, as shares of the picture's sides.

    Where something is left around the picture, that reaches beyond its sides.

    Example:
        >>> from brickyard import Preprocessing
        >>> from brickyard.workbench._why import frame
        >>> frame((256, 512), Preprocessing(size=(224, 224), fit="crop", crop=0.875))
        [0.28125, 0.0625, 0.4375, 0.875]
    """
    if how.size is None:
        return [0.0, 0.0, 1.0, 1.0]
    (height, width), (rows, columns) = shape, how.size
    whole = torch.tensor([0, 0, columns, rows], dtype=torch.float64)
    left, top, right, bottom = to_picture(whole, (height, width), how).tolist()
    return [left / width, top / height, (right - left) / width, (bottom - top) / height]


def _route(part: Component, x: Tensor, place: int) -> dict[str, Any]:
    """The channels of the source that a brick keeps, and those of them that matter for this picture's class."""
    try:
        graph = trace(part.network, x.expand(EXAMPLES, *x.shape[1:]).contiguous())
        lit = route(graph, x, _output(part, x, place))
    except BrickyardError as error:
        return {"axes": [], "why": first_line(error)}
    axes = []
    for axis, record in part.manifest.axes.items():
        own = lit.get(axis)
        if own is None or len(own) != len(record.kept):
            continue
        channels = tuple(c for c, on in zip(record.kept, own.tolist(), strict=True) if on)
        on = AxisRecord(size=record.size, kept=channels)
        item = {"name": axis, "size": record.size, "kept": len(record.kept), "lit": len(channels)}
        axes.append({**item, "cells": cells(record), "lit_cells": cells(on)})
    return {"axes": axes, "why": "" if axes else "the axes of this brick are not those of its source"}


def _output(part: Component, x: Tensor, place: int) -> int:
    """The network's output for a class of the part; of one that stands for several classes, the highest."""
    manifest = part.manifest
    before = sum(len(group) for group in manifest.groups[:place])
    columns = list(range(before, before + len(manifest.groups[place])))
    if manifest.reject or manifest.output_axis is None:
        columns = [manifest.task[column] for column in columns]
    with torch.inference_mode():
        outputs = part.network(x)[0]
    return max(columns, key=lambda column: float(outputs[column]))


def _familiar(brick: str, part: Component, picture: Tensor) -> dict[str, Any]:
    verdict = part.judge([picture]).verdicts()[0]
    return {"brick": brick, "strangeness": verdict.strangeness}
