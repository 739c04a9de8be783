"""Students: one network of any architecture in place of a component or an assembly, taught without labels."""

from __future__ import annotations

import copy
import math
import time
from functools import reduce
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly, check_model
from brickyard.axes._graph import Graph, trace
from brickyard.base._boxes import check_no_boxes
from brickyard.base._declare import verb
from brickyard.base._errors import DataError, OptionError
from brickyard.base._history import TuneRecord, UsedRecord
from brickyard.base._messages import brief, first_line
from brickyard.base._options import DistilOptions, TrainingOptions
from brickyard.base._records import (
    AxisRecord,
    ComponentManifest,
    Preprocessing,
    SelectionRecord,
    SourceRecord,
)
from brickyard.base._sides import by_sides, is_picture
from brickyard.component._calibration import parted
from brickyard.component._component import Component
from brickyard.component._disassemble import made_with, today
from brickyard.component._predictor import REJECT, run_images
from brickyard.component._statistics import observed
from brickyard.inputs._arrays import ARRAYS, read_images
from brickyard.inputs._augment import varied
from brickyard.inputs._batches import Images
from brickyard.inputs._content import as_bytes
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.inputs._decoding import read_images as batches_of
from brickyard.inputs._folders import is_picture as called_picture
from brickyard.inputs._folders import pictures_in, split_folder
from brickyard.inputs._preprocessing import check_raw, preprocess
from brickyard.inputs._reading import Wanted, note, of_files
from brickyard.inputs._taken import Taken
from brickyard.network._identity import fingerprint, weights_like
from brickyard.network._untouched import guarded
from brickyard.runtime._progress import bar, say, span
from brickyard.sources import _zoo as zoo
from brickyard.sources._libraries import network_options, seeded
from brickyard.sources._loading import quietly_loaded
from brickyard.surgery._cost import CostModel
from brickyard.training._distillation import teacher_name
from brickyard.training._loop import fit

ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
LEAST = 10  # images
MOST_HELD = 1_000  # images
STEPS = 2_000  # of training, where no passes are given
MOST_EPOCHS = 200
ASKED = 2_000  # images whose answers say what the student's statistics are measured on
TRIED = 2  # steps that are timed


@guarded
@verb(DistilOptions)
def distil(teacher: Component | Assembly, images: Any, **options: Unpack[DistilOptions]) -> Component:
    """Train one network to answer like a component or an assembly, from images without labels.

    Args:
        teacher: The component or assembly; it is not changed.
        images: Photographs of the kind that the student will see. They may show anything, and labels are not read: a
            folder of pictures, however deep they lie, with or without folders of classes; whatever `load_data` reads;
            an `ImageData`; or a batch, as for `predict`.

    The student has the teacher's classes, in their order, its kind of answers, and its output for "none of these" where
    there is one. It prepares images as the teacher does; of an assembly, as the part with the largest input. In every
    step both see the same shifted, mirrored and mixed images. One image of five, and at most a thousand, is held back:
    no step sees it, and nothing is chosen by it. How often the student gives the teacher's answer there is recorded as
    `manifest.agreement`. How long it will take is said beforehand.

    Returns:
        The student, in evaluation mode, as a component of which nothing was cut.

    Raises:
        OptionError: The student is unknown or does not take the teacher's images, an option cannot be used, or training
            diverges.
        DataError: The images cannot be used, or are too few.
        FileError: The student has a step that files have no form for.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> from brickyard.training import distil
        >>> images, labels = torch.rand(40, 3, 16, 16), torch.arange(40) % 4
        >>> relevance = by.locate(chain(), (images, labels))
        >>> whole = by.assemble([by.disassemble(chain(), relevance, task=[k]) for k in (3, 1)], scaling="none")
        >>> student = distil(whole, images, like="zoo:cnn?width=0.125", epochs=1)
        >>> student.classes, student.manifest.agreement[1]
        (('3', '1'), 13)
    """
    check_model(teacher, "distil")
    check_no_boxes(teacher, "distil", "cut a smaller component with a budget instead")
    names = (*teacher.classes, *([REJECT] if teacher.reject else []))
    if len(names) < 2:
        why = f"the teacher knows {names[0]!r} alone, so that all of its answers are the same"
        raise OptionError("option-wrong-object", f"{why}; give one of several classes, or cut it with reject")
    first = max(teacher.manifest.parts, key=lambda part: math.prod(part.input_shape))
    how, shape = first.preprocessing, first.input_shape
    data = _photographs(images, how, shape)
    like = weights_like(teacher)
    title, graph = _built(options["like"], names, how, shape)
    network = graph.network.to(like.device)
    held, fitted = (data.subset(some) for some in parted(range(len(data)), options["seed"], MOST_HELD))
    lessons = _Lessons(teacher, fitted, how, options["temperature"])
    training = _training(options, len(fitted))
    _announce(lessons, network, training, len(held))
    fit(network, lambda chosen, generator: lessons.loss(network, chosen, generator), len(fitted), training)
    network.requires_grad_(False)
    same = lessons.agreeing(network, held)
    record = TuneRecord(
        images=len(fitted),
        validation=len(held),
        epochs=training.epochs,
        best=training.epochs,
        optimizer=training.optimizer,
        lr=training.rate,
        batch_size=training.batch_size,
        seed=training.seed,
        teacher=teacher_name(teacher, teacher),
    )
    shown = UsedRecord.of(as_bytes(Images(data, how).marks(range(len(data)))))
    used = reduce(UsedRecord.joined, teacher.manifest.uses, shown)
    manifest = _manifest(teacher, title, graph, how).model_copy(
        update={"tuned": record, "agreement": (same, len(held)), "used": used}
    )
    return _observed(Component(network, manifest, network.to_spec()), lessons)


# -- the images --------------------------------------------------------------------------------------------


def _photographs(images: Any, how: Preprocessing, shape: tuple[int, ...]) -> ImageData:
    """Images without labels, in any form in which they are kept.

    Args:
        images: What to read.
        how: What pictures in files are brought to the size of.
        shape: What a network takes after that.

    Raises:
        DataError: They cannot be read, are too few, or have another size.
    """
    data = _read(images, how, shape)
    if len(data) < LEAST:
        why = f"{data.name}: distillation needs at least {LEAST} images, and got {len(data)}"
        raise DataError("data-too-few", f"{why}; give some hundred, or better some thousand")
    some = next(data.batches(2, [0, len(data) - 1]))
    check_raw(some, how, data.name)
    found = tuple(preprocess(some, how).shape[1:])
    if found != shape:
        raise DataError(
            "data-wrong-size",
            f"{data.name}: the teacher takes {by_sides(shape)}, and the images are {by_sides(found)} after its "
            "preprocessing, which does not say a size or channels; bring them to that",
        )
    return data


def _read(images: Any, how: Preprocessing, shape: tuple[int, ...]) -> ImageData:
    if isinstance(images, ImageData):
        return images
    if not isinstance(images, str | Path):
        found = batches_of(images, 64, shape)
        shapes = {tuple(batch.shape[1:]) for batch in found}
        if len(shapes) > 1:
            why = f"the images have {len(shapes)} sizes, such as {' and '.join(map(by_sides, sorted(shapes)[:2]))}"
            raise DataError("data-not-batchable", f"{why}; give a folder of pictures, or bring them to one size")
        return _unlabelled(torch.cat(found) if found else torch.zeros(0, *shape), "the images")
    path = Path(images)
    if path.suffix.lower() in ARRAYS and path.is_file():
        return _unlabelled(read_images(path, Taken.of(shape)), path.name)
    if path.is_file() and called_picture(path.name):
        raise DataError("data-too-few", f"{path} is one picture; give a folder with some hundred, or better thousand")
    if path.suffix.lower() in ARCHIVES and path.is_file():
        raise DataError("data-unknown-format", f"{path} is an archive; unpack it, and give the folder")
    if path.is_dir() and is_picture(shape):
        part = split_folder(path, "train")
        if part is not None:
            note(f"{path.name}: of its splits, {part.name!r} is used")
        try:
            paths = pictures_in(part or path)
        except DataError:  # then it may hold a table
            return load_data(path, size=how)
        return _unlabelled(of_files(list(map(str, paths)), Wanted(size=how), path.name), path.name)
    return load_data(images, size=how, shape=shape)


def _unlabelled(images: Any, name: str) -> ImageData:
    if isinstance(images, Tensor) and images.is_floating_point():
        images = images.float()
    return ImageData(images, torch.zeros(len(images), dtype=torch.long), ("unlabelled",), name)


# -- the student -------------------------------------------------------------------------------------------


def _built(like: Any, names: tuple[str, ...], how: Preprocessing, shape: tuple[int, ...]) -> tuple[str, Graph]:
    """The name of a student without training, and its axes.

    Raises:
        BrickyardError: There is no such network, it does not fit the teacher, or it cannot be saved.
    """
    if isinstance(like, nn.Module):
        title, model = type(like).__name__, copy.deepcopy(like)
    elif isinstance(like, str):
        try:
            with seeded():
                found = quietly_loaded(
                    _spec(like, shape),
                    classes=names,
                    preprocessing=how if is_picture(shape) else None,
                    random_weights=True,
                    input_shape=shape,
                )
        except OptionError as error:
            if error.code != "option-source-size":
                raise
            why = f"the student {like} does not run on inputs of {by_sides(shape)}, which the teacher takes"
            cause = first_line(error.__cause__ or error)
            raise OptionError("option-source-size", f"{why} ({cause}); choose another architecture") from None
        title, model = found.name, found.model
    else:
        why = f"like= must name a network, such as zoo:resnet20, or be one, got {brief(like)}"
        raise OptionError("option-type", f"{why} of type {type(like).__name__}")
    example = torch.zeros(2, *shape).to(weights_like(model))
    graph = trace(model.eval(), example)
    outputs = run_images(graph.network, example, "images").shape[1]
    if outputs != len(names):
        why = f"the teacher has {len(names)} outputs ({', '.join(names[:5])} ...), and the student {outputs}"
        raise OptionError("option-count", f"{why}; give a network with as many")
    graph.network.to_spec()  # what cannot be saved is not worth training
    graph.network.requires_grad_(True)
    return title, graph


def _spec(like: str, shape: tuple[int, ...]) -> str:
    """The text of a student; a network of the zoo is made for the teacher's images."""
    kind, _, rest = like.partition(":")
    if kind != "zoo" or not is_picture(shape):
        return like
    name, given = network_options(rest)
    known = zoo.entry(name).defaults if name != "auto" else {}
    own = {"channels": shape[0], "size": shape[1]}
    more = "&".join(f"{key}={value}" for key, value in own.items() if key in known and key not in given)
    return f"{like}{'&' if '?' in like else '?'}{more}" if more else like


def _manifest(teacher: Component | Assembly, title: str, graph: Graph, how: Preprocessing) -> ComponentManifest:
    """The student as a component of itself, of which nothing was cut."""
    costs = CostModel(graph).whole
    count, told = len(teacher.classes), teacher.manifest
    return ComponentManifest(
        classes=teacher.classes,
        task=tuple(range(count)),
        reject=teacher.reject,
        preprocessing=how,
        input_shape=graph.input_shape,
        source=SourceRecord(
            name=f"student {title}",
            sha256=fingerprint(graph.network),
            classes=(*teacher.classes, *([REJECT] if teacher.reject else [])),
            parameters=costs.parameters,
            flops=costs.flops,
        ),
        axes={
            axis.name: AxisRecord(size=axis.size, kept=tuple(range(axis.size)), pinned=bool(axis.pinned))
            for axis in graph.axes
        },
        output_axis=None if graph.output is None else graph.output.name,
        pinned=graph.pinned(),
        selection=SelectionRecord(parameters=costs.parameters, flops=costs.flops),
        outputs=told.outputs,
        decision_thresholds=told.decision_thresholds,
        versions=made_with(),
        created=today(),
    )


def _observed(student: Component, lessons: _Lessons) -> Component:
    """The student with its statistics, if the teacher names each class on some of the images."""
    some = lessons.data.subset(list(range(min(ASKED, len(lessons.data)))))
    labels = student.outputs.own_targets(torch.cat([lessons.answers(batch) for batch in some.batches(64)])).cpu()
    by_class = {k: torch.nonzero(student.outputs.members(labels, k)).flatten().tolist() for k in student.manifest.task}
    if not all(by_class.values()):
        return student
    return observed(student, Images(some, lessons.how), by_class)


# -- teaching ----------------------------------------------------------------------------------------------


class _Lessons:
    """What the teacher says to images, and how far a student is from it."""

    def __init__(self, teacher: Component | Assembly, data: ImageData, how: Preprocessing, temperature: float) -> None:
        self.teacher, self.data, self.how, self.temperature = teacher.fused(), data, how, temperature

    def answers(self, raw: Tensor) -> Tensor:
        """The teacher's logits for raw images."""
        with torch.no_grad():
            return run_images(self.teacher.logits, raw, "the images")

    def of(self, student: nn.Module, raw: Tensor) -> Tensor:
        """The student's logits for the same images."""
        like = weights_like(student)
        logits: Tensor = student(preprocess(raw, self.how).to(like.device, like.dtype))
        return logits

    def loss(self, student: nn.Module, chosen: list[int], generator: torch.Generator) -> Tensor:
        """How far the student is from the teacher on images that are varied for both alike, ()."""
        (raw,) = self.data.batches(len(chosen), chosen)
        raw = varied(raw.float() / 255 if raw.dtype == torch.uint8 else raw, generator)
        logits = self.of(student, raw)
        return self.teacher.outputs.taught(logits, self.answers(raw).to(logits), self.temperature)

    def agreeing(self, student: nn.Module, held: ImageData) -> int:
        """On how many images the student gives the teacher's answer."""
        same = 0
        with torch.no_grad(), bar("comparing answers", len(held)) as advance:
            for raw in held.batches(64):
                ours = self.of(student, raw)
                same += int(self.teacher.outputs.alike(ours, self.answers(raw).to(ours)).sum())
                advance(len(raw))
        return same


def _training(options: Any, images: int) -> TrainingOptions:
    """How to train, with as many passes as make the usual number of steps if none are given."""
    steps = max(1, images // options["batch_size"])
    epochs = options["epochs"] or min(MOST_EPOCHS, math.ceil(STEPS / steps))
    own = {name: options[name] for name in ("lr", "batch_size", "seed")}
    return TrainingOptions(epochs=epochs, optimizer="adamw", weight_decay=0.01, warmup=0.1, **own)


def _announce(lessons: _Lessons, network: nn.Module, training: TrainingOptions, held: int) -> None:
    """Say how long training will take, by the time of some steps with a copy of the student."""
    count = len(lessons.data)
    size = min(training.batch_size, count)
    steps = training.epochs * max(1, count // size)
    trial, generator = copy.deepcopy(network).train(), torch.Generator().manual_seed(training.seed)
    optimizer = torch.optim.AdamW(trial.parameters(), lr=0.0)
    with torch.random.fork_rng():
        for turn in range(TRIED + 1):  # the first one is slower than all that follow
            if turn == 1:
                begun = time.perf_counter()
            order = torch.randperm(count, generator=generator)[:size].tolist()
            loss = lessons.loss(trial, order, generator)
            loss.backward()
            optimizer.step()
            loss.item()
    seconds = (time.perf_counter() - begun) / TRIED * steps
    say(
        f"distilling: {training.epochs} epochs on {count:,} images, {steps:,} steps; {held:,} images held back; it "
        f"will take about {span(seconds)}"
    )
