"""Evaluation of a detector's component: average precision, beside its source's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.axes._graph import trace
from brickyard.base._errors import DataError
from brickyard.base._frozen import Frozen
from brickyard.base._messages import json_text, shown
from brickyard.component._component import Component
from brickyard.evaluation._average_precision import Precision, average_precision, paired_drop
from brickyard.evaluation._scores import Overlap, write_text
from brickyard.evaluation._sieve import Sieve, named
from brickyard.inputs._batches import Images
from brickyard.inputs._box_data import BoxData
from brickyard.inputs._box_table import Truth
from brickyard.inputs._preprocessing import preprocess, sized, to_picture
from brickyard.network._network import kind
from brickyard.outputs._detections import Detections, Found
from brickyard.runtime._profiling import Latency, count_flops, count_parameters, measure_latency
from brickyard.runtime._progress import bar, step

LOWEST = 0.001  # score of boxes that are scored, at least
IOU = 0.65  # overlap from which duplicates are suppressed, as is usual where precision is measured
MOST = 300  # boxes of an image
NOTE = "classes of a detector do not compete, so that restricted is the whole source's precision for these classes"


class DetectorRow(Frozen):
    """One row of a detector's table. Precisions, drops and errors are in percent (points).

    Attributes:
        name: restricted or component.
        images: Number of images scored.
        map50: Mean over classes of the average precision, where boxes that overlap by half count as found.
        map50_95: The same as a mean over overlaps from 0.5 to 0.95.
        drop: Points of `map50` below the reference row; `drop_error` is its standard error, paired over images.
        parameters: Number of parameters.
        flops: Floating-point operations per image, two per multiply-add.
        latency: Milliseconds per batch of the network and of reading its boxes (median, low, high).
    """

    name: str
    images: int
    map50: float
    map50_95: float
    drop: float | None = None
    drop_error: float | None = None
    parameters: int | None = None
    flops: int | None = None
    latency: dict[str, float] | None = None


class DetectorScores(Frozen):
    """The score table of a detector's component.

    Attributes:
        title: What was scored.
        rows: The rows.
        notes: What is to be said of them.
        per_class: Average precision at an overlap of half of each class that has objects, in percent.
        objects: How many objects each class has.
        data: What the images are called; "" where they have no name.
        data_sha256: A hash of the images and their labels, in whatever order and form they were given.
        overlap: How many of the images were used to locate or heal.
    """

    title: str
    rows: tuple[DetectorRow, ...]
    notes: tuple[str, ...] = ()
    per_class: dict[str, float] = {}
    objects: dict[str, int] = {}
    data: str = ""
    data_sha256: str = ""
    overlap: Overlap | None = None

    def row(self, name: str) -> DetectorRow:
        """Return the row with this name.

        Raises:
            KeyError: There is no such row.
        """
        return {row.name: row for row in self.rows}[name]

    def as_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        return self.model_dump(mode="json")

    def remembered(self) -> dict[str, Any]:
        """The values to keep with a model, under the name of the images: all but times, which are of one machine."""
        rows = tuple(row.model_copy(update={"latency": None}) for row in self.rows)
        return {self.data or "test images": self.model_copy(update={"rows": rows}).as_dict()}

    def to_json(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Write all values as JSON.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        return write_text(path, json_text(self.as_dict(), 1) + "\n", overwrite)

    def cells(self) -> list[list[str]]:
        """The table as text: a header, and one list per row."""
        table = [["", "mAP50", "mAP50:95", "drop", "parameters", "FLOPs", "latency"]]
        for row in self.rows:
            drop = "" if row.drop is None else f"{row.drop:+.1f}±{row.drop_error or 0:.1f}"
            numbers = ["" if value is None else f"{value:,}" for value in (row.parameters, row.flops)]
            time = "" if row.latency is None else f"{row.latency['median_ms']:.2f} ms"
            table.append([row.name, f"{row.map50:.1f}", f"{row.map50_95:.1f}", drop, *numbers, time])
        if len(self.rows) == 1:
            table[-1][table[0].index("drop")] = "needs --source"
        return table

    def __str__(self) -> str:
        table = self.cells()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        each = ", ".join(f"{name} {value:.1f} of {self.objects[name]:,}" for name, value in self.per_class.items())
        count = f"scored on {self.rows[0].images:,} images with {sum(self.objects.values()):,} objects"
        return "\n".join(shown(line, keep="") for line in (self.title, *lines, f"AP50: {each}", count, *self.notes))


def evaluate_detector(
    component: Component, data: Any, source: nn.Module | None, options: Any, sieve: Sieve
) -> DetectorScores:
    """Score a component of a detector on images with boxes, and its source, if there is one.

    Raises:
        DataError: These are no images with boxes, or none shows an object of the task.
    """
    scored = _chosen(component, data, sieve)
    truths = [_of_task(data.truth(index), component) for index in scored]
    step(f"evaluate: {len(scored):,} images with {sum(len(one.labels) for one in truths):,} objects of the task")
    shape, like = component.input_shape, kind(component)
    networks: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {}
    task = torch.tensor(component.manifest.task, device=like.device)
    if source is not None:
        example = torch.zeros(2, *shape).to(kind(source))
        whole = trace(source, example, component.manifest.output, boxes=component.manifest.boxes).network
        networks["restricted"] = whole, lambda rows: component.outputs.head(rows, task, None)
    networks["component"] = component, lambda rows: rows
    found = {name: _found(component, *pair, data, scored, options["batch_size"]) for name, pair in networks.items()}
    precision = {name: average_precision(own, truths, component.classes) for name, own in found.items()}
    rows = [_row(name, precision[name], networks[name][0], shape) for name in networks]
    if len(rows) > 1:
        drop = paired_drop(found["restricted"], found["component"], truths, component.classes)
        rows[-1] = rows[-1].model_copy(update={"drop": drop.drop, "drop_error": drop.error})
    if options["latency"]:
        times = _times(component, networks, options["latency_batch"])
        rows = [row.model_copy(update={"latency": dict(times[row.name].__dict__)}) for row in rows]
    last = precision["component"]
    return DetectorScores(
        title=f"{', '.join(component.classes[:6])}{' ...' if len(component.classes) > 6 else ''} of "
        f"{component.manifest.source.name}",
        rows=tuple(rows),
        notes=(*last.notes, *((NOTE,) if len(rows) > 1 else ()), *sieve.notes),
        per_class=last.ap50,
        objects=last.objects,
        data=named(data),
        data_sha256=sieve.sha256,
        overlap=sieve.overlap,
    )


def _chosen(component: Component, data: Any, sieve: Sieve) -> list[int]:
    """The images to score, of which some were perhaps used."""
    manifest = component.manifest
    if not isinstance(data, BoxData):
        raise DataError(
            "data-no-labels",
            f"a detector is scored on images with boxes, got {type(data).__name__}; give what "
            "brickyard.inputs.load_box_data returns",
        )
    if not bool(data.presence[:, list(manifest.task)].any()):
        why = f"none of the {len(data):,} images shows an object of {', '.join(component.classes[:8])}"
        raise DataError("data-no-task-class", f"{why}; give some that do, with the source's class names")
    images = Images(data, manifest.preprocessing, "the images to score", component.outputs.label_dims)
    every = torch.arange(len(data))
    fresh = every[sieve.fresh(images, every, data.presence)]
    sieve.check(bool(data.presence[fresh][:, list(manifest.task)].any()))
    return [int(index) for index in fresh]


def _of_task(truth: Truth, component: Component) -> Truth:
    """The objects of the task's classes, numbered as the component's classes."""
    places = torch.tensor(component.manifest.places[0])[truth.labels]
    own = places >= 0
    return Truth(truth.boxes[own], places[own], truth.crowd[own], truth.sides)


def _found(
    component: Component,
    network: nn.Module,
    head: Callable[[Tensor], Tensor],
    data: BoxData,
    chosen: Sequence[int],
    batch_size: int,
) -> list[Found]:
    """The boxes of the task's classes in some images, in pixels of these."""
    outputs, how, like = component.outputs, component.manifest.preprocessing, kind(network)
    assert isinstance(outputs, Detections)
    found: list[Found] = []
    with torch.inference_mode(), bar("finding", len(chosen)) as advance:
        for pictures in _batched(data.pictures(chosen), batch_size):
            shown = torch.stack([_colour(sized(one, how), how.channels) for one in pictures])
            rows = head(network(preprocess(shown, how).to(like.device, like.dtype))).double()
            for picture, own in zip(pictures, outputs.find(rows, LOWEST, IOU, MOST), strict=True):
                height, width = picture.shape[1:]
                boxes = to_picture(own.boxes.cpu(), (height, width), how)
                found.append(own.on_cpu()._replace(boxes=boxes))
            advance(len(pictures))
    return found


def _colour(picture: Tensor, channels: int | None) -> Tensor:
    return picture.expand(3, -1, -1) if channels == 3 else picture


def _batched(pictures: Iterator[Tensor], size: int) -> Iterator[list[Tensor]]:
    some: list[Tensor] = []
    for picture in pictures:
        some.append(picture)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _row(name: str, precision: Precision, network: nn.Module, shape: tuple[int, ...]) -> DetectorRow:
    inner = network.network if isinstance(network, Component) else network
    return DetectorRow(
        name=name,
        images=precision.images,
        map50=precision.map50,
        map50_95=precision.map50_95,
        parameters=count_parameters(inner),
        flops=count_flops(inner, shape),
    )


def _times(
    component: Component, networks: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]], batch: int
) -> dict[str, Latency]:
    """The latency of a batch, with reading the boxes."""
    outputs, like = component.outputs, kind(component)
    assert isinstance(outputs, Detections)
    noise = torch.rand(batch, *component.input_shape, generator=torch.Generator().manual_seed(0)).to(like)

    def call(network: nn.Module, head: Callable[[Tensor], Tensor]) -> object:
        with torch.inference_mode():
            return outputs.find(head(network(noise)))

    return measure_latency({name: partial(call, *pair) for name, pair in networks.items()}, batch=batch)
