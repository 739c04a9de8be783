"""Evaluation of detectors: average precision of a component or an assembly, beside its sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly
from brickyard.axes._graph import trace
from brickyard.base._errors import DataError
from brickyard.base._frozen import Frozen
from brickyard.base._messages import shown
from brickyard.component._component import Component
from brickyard.evaluation._average_precision import Precision, average_precision, paired_drop
from brickyard.evaluation._scores import Overlap, ScoreTable
from brickyard.evaluation._sieve import Sieve, named
from brickyard.inputs._batches import Images
from brickyard.inputs._box_data import BoxData
from brickyard.inputs._box_table import Truth
from brickyard.inputs._preprocessing import preprocess, sized, to_picture
from brickyard.network._network import kind
from brickyard.outputs._detections import Detections, Found, together
from brickyard.runtime._profiling import Latency, count_flops, count_parameters, measure_latency
from brickyard.runtime._progress import bar, step

LOWEST = 0.001  # score of boxes that are scored, at least
IOU = 0.65  # overlap from which duplicates are suppressed, as is usual where precision is measured
MOST = 300  # boxes of an image
NOTE = "restricted is the whole source's precision for these classes"


class DetectorRow(Frozen):
    """One row of a detector's table. Precisions, drops and errors are in percent (points).

    Attributes:
        name: restricted, component or assembled.
        images: Number of images scored.
        map50: Mean over classes of the average precision, where boxes that overlap by half count as found.
        map50_95: The same as a mean over overlaps from 0.5 to 0.95.
        drop: Points of `map50` below the reference row; `drop_error` is its standard error, paired over images.
        parameters: Number of parameters.
        flops: Floating-point operations per image, two per multiply-add.
        latency: Milliseconds per batch from raw pictures to boxes (median, low, high).
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


class DetectorScores(ScoreTable):
    """The score table of a component or an assembly of detectors.

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

    @property
    def images(self) -> int:
        """How many images were scored."""
        return max((row.images for row in self.rows), default=0)

    @property
    def untried(self) -> tuple[str, ...]:
        """The classes of which no object was in the images."""
        return tuple(name for name, count in self.objects.items() if not count)

    @property
    def scope(self) -> str:
        """How many images were scored, with how many objects."""
        return f"scored on {self.images:,} images with {sum(self.objects.values()):,} objects"

    @property
    def brief(self) -> str:
        """The figures of what was scored, in one line: those of the last row."""
        if not self.rows:
            return "no images scored"
        row = self.rows[-1]
        drop = "" if row.drop is None else f", drop {row.drop:+.1f}±{row.drop_error or 0:.1f}"
        return f"mAP50 {row.map50:.1f}{drop}, on {row.images:,} images"

    def cells(self) -> list[list[str]]:
        """The table as text: a header, and one list per row."""
        table = [["", "mAP50", "mAP50:95", "drop", "parameters", "FLOPs", "latency"]]
        for row in self.rows:
            drop = "" if row.drop is None else f"{row.drop:+.1f}±{row.drop_error or 0:.1f}"
            numbers = ["" if value is None else f"{value:,}" for value in (row.parameters, row.flops)]
            time = "" if row.latency is None else f"{row.latency['median_ms']:.2f} ms"
            table.append([row.name, f"{row.map50:.1f}", f"{row.map50_95:.1f}", drop, *numbers, time])
        return table

    def __str__(self) -> str:
        each = ", ".join(f"{name} {value:.1f} of {self.objects[name]:,}" for name, value in self.per_class.items())
        return "\n".join(
            shown(line, keep="") for line in (self.title, *self.laid_out(), f"AP50: {each}", self.scope, *self.notes)
        )


def evaluate_detector(
    model: Component | Assembly, data: Any, sources: Sequence[nn.Module | None], options: Any, sieve: Sieve
) -> DetectorScores:
    """Score a component or an assembly of detectors on images with boxes, and its sources, if all are given.

    Raises:
        DataError: These are no images with boxes, or none shows an object of the task.
    """
    if not isinstance(data, BoxData):
        raise DataError(
            "data-no-labels",
            f"a detector is scored on images with boxes, got {type(data).__name__}; give what "
            "brickyard.inputs.load_box_data returns",
        )
    places = places_of(model, data)
    scored = images_to_score(model, data, places, sieve)
    truths = [of_task(data.truth(index), places) for index in scored]
    step(f"evaluate: {len(scored):,} images with {sum(len(one.labels) for one in truths):,} objects of the task")
    found, sizes, own = {}, {}, "component" if isinstance(model, Component) else "assembled"
    if all(source is not None for source in sources):
        found["restricted"] = find_with_sources(model, sources, data, scored, options["batch_size"])
        every = {part.source.sha256: part.source for part in model.manifest.parts}.values()
        sizes["restricted"] = sum(one.parameters for one in every), sum(one.flops for one in every)
    found[own] = _of_model(model, data, scored, options["batch_size"])
    networks = [(model.network, model.input_shape)] if isinstance(model, Component) else model.distinct_networks()
    sizes[own] = count_parameters(model), sum(count_flops(*pair) for pair in networks)
    precision = {name: average_precision(one, truths, model.classes) for name, one in found.items()}
    rows = [_row(name, precision[name], *sizes[name]) for name in found]
    if len(rows) > 1:
        drop = paired_drop(found["restricted"], found[own], truths, model.classes)
        rows[-1] = rows[-1].model_copy(update={"drop": drop.drop, "drop_error": drop.error})
    if options["latency"]:
        time = _time(model, options["latency_batch"])
        rows[-1] = rows[-1].model_copy(update={"latency": dict(time.__dict__)})
    last, names = precision[own], dict.fromkeys(part.source.name for part in model.manifest.parts)
    return DetectorScores(
        title=f"{', '.join(model.classes[:6])}{' ...' if len(model.classes) > 6 else ''} of {' and '.join(names)}",
        rows=tuple(rows),
        notes=(*last.notes, *((NOTE,) if len(rows) > 1 else ()), *sieve.notes),
        per_class=last.ap50,
        objects=last.objects,
        data=named(data),
        data_sha256=sieve.sha256,
        overlap=sieve.overlap,
    )


def places_of(model: Component | Assembly, data: BoxData) -> Tensor:
    """For each class of the data, the model's class or -1: by name, or by number where the source's have no names.

    Raises:
        DataError: No name agrees.
    """
    known = {name: k for k, name in enumerate(model.classes)}
    found = [known.get(name, -1) for name in data.classes]
    numbered = all(part.source.classes == tuple(map(str, range(len(data.classes)))) for part in model.manifest.parts)
    if max(found) < 0 and numbered:
        found = [max(own) for own in zip(*model.manifest.places, strict=True)]
    if max(found) < 0:
        names = [", ".join(some[:5]) for some in (data.classes, model.classes)]
        why = f"{data.name} has {names[0]} ..., the model {names[1]} ..., and no name agrees"
        raise DataError("data-unknown-class", f"{why}; give images with boxes of the model's classes, by its names")
    return torch.tensor(found)


def images_to_score(model: Component | Assembly, data: BoxData, places: Tensor, sieve: Sieve) -> list[int]:
    """The images to score, of which some were perhaps used."""
    own = data.presence[:, places >= 0].any(1)
    if not bool(own.any()):
        why = f"none of the {len(data):,} images shows an object of {', '.join(model.classes[:8])}"
        raise DataError("data-no-task-class", f"{why}; give some that do, with the source's class names")
    images = Images(data, model.preprocessings[0], "the images to score", model.outputs.label_dims)
    every = torch.arange(len(data))
    fresh = every[sieve.fresh(images, every, data.presence)]
    sieve.check(bool(own[fresh].any()))
    return [int(index) for index in fresh]


def of_task(truth: Truth, places: Tensor) -> Truth:
    """The objects of the model's classes, numbered as these."""
    labels = places[truth.labels]
    own = labels >= 0
    return Truth(truth.boxes[own], labels[own], truth.crowd[own], truth.sides)


def _of_model(model: Component | Assembly, data: BoxData, chosen: Sequence[int], batch_size: int) -> list[Found]:
    if isinstance(model, Component):
        return _found(model, model, lambda rows: rows, data, chosen, batch_size)
    found: list[Found] = []
    with bar("finding", len(chosen)) as advance:
        for picture in data.pictures(chosen):
            found += model.detect(picture, score=LOWEST, iou=IOU, most=MOST)
            advance()
    return found


def find_with_sources(
    model: Component | Assembly,
    sources: Sequence[nn.Module | None],
    data: BoxData,
    chosen: Sequence[int],
    batch_size: int,
) -> list[Found]:
    """What the sources find of the model's classes, each of those of its part."""
    parts = [model] if isinstance(model, Component) else model.components()
    each = []
    for part, source, places in zip(parts, sources, model.manifest.places, strict=True):
        assert source is not None
        about, task = part.manifest, torch.tensor(part.manifest.task, device=kind(source).device)
        example = torch.zeros(2, *part.input_shape).to(kind(source))
        network = trace(source, example, about.output, boxes=about.boxes).network
        head = partial(part.outputs.head, task=task, others=None)
        numbers = torch.tensor([places[k] for k in about.task])
        found = _found(part, network, head, data, chosen, batch_size)
        renamed = [one._replace(labels=numbers[one.labels]) for one in found]
        each.append([one.of(one.labels >= 0) for one in renamed])
    return [together(found).of(slice(MOST)) for found in zip(*each, strict=True)]


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


def _row(name: str, precision: Precision, parameters: int, flops: int) -> DetectorRow:
    return DetectorRow(
        name=name,
        images=precision.images,
        map50=precision.map50,
        map50_95=precision.map50_95,
        parameters=parameters,
        flops=flops,
    )


def _time(model: Component | Assembly, batch: int) -> Latency:
    """The latency of a batch of raw pictures of the network's size, with reading the boxes."""
    pictures = torch.rand(batch, *model.input_shape, generator=torch.Generator().manual_seed(0))
    return measure_latency({"": lambda: model.detect(pictures, batch_size=batch)}, batch=batch)[""]
