"""From the words of a shell to a source, a data set and its preprocessing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brickyard.base._classes import one_too_many
from brickyard.base._errors import DataError, FileError, OptionError
from brickyard.base._messages import first_line
from brickyard.base._sides import NAMES, by_sides, is_picture
from brickyard.runtime._progress import say
from brickyard.sources._words import preprocessing_of as preprocessing_of

if TYPE_CHECKING:
    from torch import nn

    from brickyard.axes._graph import Graph
    from brickyard.base._boxes import Boxes
    from brickyard.base._records import AssemblyManifest, ComponentManifest, Preprocessing
    from brickyard.inputs._box_data import BoxData
    from brickyard.inputs._datasets import ImageData
    from brickyard.inputs._taken import Taken
    from brickyard.sources._loading import Source


MOST_UNLABELLED = 2_000  # pictures of a folder that a source is asked for


def check_free(path: Path, force: bool, *inputs: str | Path | None) -> None:
    """Refuse an output that exists, or that is an input, before any work is done.

    Raises:
        FileError: It is a folder, or exists and `force` is false, or is an input, or its folder does not exist.
    """
    if path.is_dir():
        raise FileError("file-path-invalid", f"the output must be a file, but {path} is a folder; give a file name")
    if os.path.lexists(path) and not force:  # a link that leads nowhere too
        raise FileError("file-exists", f"{path} exists; give another path, or --force to overwrite it")
    if path.exists() and any(Path(place).exists() and path.samefile(place) for place in inputs if place):
        raise FileError(
            "file-path-invalid", f"{path} is both an input and the output; inputs are never changed: give another path"
        )
    if not path.parent.is_dir():
        raise FileError(
            "file-path-invalid", f"cannot write {path}: folder {path.parent} does not exist; create it first"
        )


def source_of(
    spec: str,
    weights: Path | None,
    names: str | Sequence[str] | None,
    how: Preprocessing | None,
    *,
    random_weights: bool = False,
    ema: bool = True,
    output_name: str | None = None,
    input_shape: tuple[int, ...] | None = None,
    tell: bool = True,
    boxes: Boxes | None = None,
) -> Source:
    """A source, with class names from options, from a file that these name, or from its weights.

    What `how` was not given (size, mean, channels, interpolation ...) stays as the source has it. Where nothing says
    what it takes, that is `input_shape`. `boxes` says how a detector's outputs are read. With `tell`, what is assumed
    of its images is said.
    """
    from dataclasses import replace

    from brickyard.base._boxes import family_of
    from brickyard.base._records import Preprocessing
    from brickyard.sources._loading import NO_NORMALISATION, quietly_loaded, say_assumed
    from brickyard.sources._names import class_names

    classes = class_names(names)
    load = functools.partial(
        quietly_loaded,
        spec,
        weights=weights,
        classes=classes,
        random_weights=random_weights,
        averaged=ema,
        input_shape=input_shape,
        output=output_name,
        boxes=boxes,
    )
    assumed = None
    if how is not None:
        assumed = "" if how.mean is not None else NO_NORMALISATION
        try:
            own = load()
            assumed = "" if how.mean is not None else own.assumed
            how = own.preprocessing.changed(how.model_dump(exclude_none=True, exclude_unset=True))
        except OptionError as error:
            whole = how.size is not None and how.mean is not None  # nothing of its own is needed
            if error.code != "option-source-size" and not (whole and error.code == "option-preprocessing"):
                raise  # else it does not take its usual size: the size that was asked for decides
            if (family := family_of(boxes)) is not None:
                usual = Preprocessing.of_detector(family)
                how = usual.changed(how.model_dump(exclude_none=True, exclude_unset=True))
    source = load(preprocessing=how)
    if assumed is not None:
        source = replace(source, assumed=assumed)
    if tell:
        say_assumed(source)
    if how is not None and how.channels is None and is_picture(source.input_shape) and source.input_shape[0] in (1, 3):
        channels = source.input_shape[0]
        source = replace(source, preprocessing=how.changed({"channels": channels}))
    return source


def source_and_data(
    spec: str,
    data: str,
    weights: Path | None,
    names: str | Sequence[str] | None,
    how: Preprocessing | None,
    outputs: str | None,
    **which: Any,
) -> tuple[Source, ImageData | BoxData]:
    """A source and its images; a network of the user's own that does not take pictures of 224 x 224 takes the images'.

    Where an array can be read in several ways (pictures, signals, channels first or last), the first counts on which
    the network runs.

    Raises:
        OptionError: The source does not run on images of its size.
    """
    try:
        source = source_of(spec, weights, names, how, **which)
    except OptionError as error:
        if error.code != "option-source-size" or (how is not None and how.size is not None) or which.get("boxes"):
            raise
        load = functools.partial(source_of, spec, weights, names, how, **which, tell=False)
        return _of_the_datas_shape(load, data, how, outputs)
    kind: Any = {"outputs": kind_of(source, outputs), "shape": source.input_shape}
    return source, data_of(data, source.preprocessing, **kind)


def _of_the_datas_shape(
    load: Callable[..., Source], data: str, how: Preprocessing | None, outputs: str | None
) -> tuple[Source, ImageData]:
    """A source that takes inputs of the data's own shape, and the data.

    Raises:
        OptionError: It runs on none of the ways to read them.
    """
    from brickyard.inputs._taken import Taken
    from brickyard.sources._loading import say_assumed

    tried = _Tried(load, None if how is None else how.channels)
    try:
        images = data_of(data, how, shape=Taken(tried.runs, "nothing of this"), outputs=outputs)
    except DataError:
        if tried.source is None and tried.problems:
            raise tried.error(data) from None
        raise
    if tried.source is None and not tried.runs(images.shape):
        raise tried.error(data)
    assert tried.source is not None
    shape = tried.source.input_shape
    say(f"{tried.source.name}: taken for a network of {_text(shape)}, as those of the data")
    say_assumed(tried.source)
    return tried.source, images


class _Tried:
    """Shapes of inputs that a source is tried with.

    Args:
        load: Loads the source for an `input_shape`.
        channels: What pictures are brought to, if anything.

    Attributes:
        source: The source, once it ran.
        problems: What it said to the shapes on which it did not run.
    """

    def __init__(self, load: Callable[..., Source], channels: int | None) -> None:
        self.load, self.channels = load, channels
        self.source: Source | None = None
        self.problems: dict[tuple[int, ...], OptionError] = {}

    def runs(self, shape: tuple[int, ...]) -> bool:
        """Whether the source runs on inputs of this shape."""
        if self.channels is not None and is_picture(shape):
            shape = (self.channels, *shape[1:])
        try:
            self.source = self.load(input_shape=shape)
        except OptionError as error:
            if error.code not in ("option-source-size", "option-preprocessing"):
                raise
            self.problems[shape] = error
            return False
        return True

    def error(self, data: str) -> OptionError:
        """The error for data on which it does not run in any way to read them."""
        if len(self.problems) == 1:
            return next(iter(self.problems.values()))
        reasons = (f"{_text(shape)}: {first_line(error.__cause__ or error)}" for shape, error in self.problems.items())
        return OptionError(
            "option-source-size", f"the source runs on {data} in no way to read it; {'; '.join(reasons)}"
        )


def _text(shape: Sequence[int]) -> str:
    return f"{NAMES[len(shape) - 1]} of {by_sides(shape)}"


def answered(
    source: Source, folder: Path, outputs: Any, look: Callable[[Graph], None] = lambda graph: None
) -> ImageData:
    """The pictures of a folder without labels, whose labels are the source's own answers.

    Where an image may belong to several classes, these are the ones that its answer includes. Of more than
    `MOST_UNLABELLED` pictures, so many are drawn. `outputs` is the kind of its outputs. `look` sees the source's
    axes before it is asked.

    Raises:
        DataError: There are no pictures, or they cannot be brought to one size.
    """
    import torch

    from brickyard.inputs._datasets import ImageData
    from brickyard.inputs._folders import pictures_in
    from brickyard.inputs._preprocessing import preprocess
    from brickyard.inputs._reading import Wanted, of_files
    from brickyard.network._identity import weights_like
    from brickyard.runtime._progress import bar

    if not is_picture(source.input_shape):
        why = f"{source.name} takes {_text(source.input_shape)}"
        raise DataError("data-type", f"{why}, and --calibration is for pictures; give --data, with labels")
    if not folder.is_dir():
        raise DataError("data-missing", f"--calibration must be a folder of pictures, got {folder}; give a folder")
    paths, how = pictures_in(folder), source.preprocessing
    if len(paths) > MOST_UNLABELLED:
        say(f"{folder.name}: {MOST_UNLABELLED:,} of {len(paths):,} pictures are drawn")
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
        paths = [paths[k] for k in order[:MOST_UNLABELLED].sort().values.tolist()]
    images = of_files(list(map(str, paths)), Wanted(size=how), folder.name)
    graph, like = axes_of(source), weights_like(source.model)
    look(graph)
    kind = outputs.reading(graph.boxes, graph.input_shape)
    labels = []
    with torch.no_grad(), bar("asking the source", len(images)) as advance:
        for batch in images.batches(64):
            said = kind.says(graph.network(preprocess(batch, how).to(like))).long()
            labels.append(said if kind.label_dims > 1 else said.argmax(1))
            advance(len(batch))
    name = f"{folder.name}, by the source's own answers"
    data = ImageData(images, torch.cat(labels), source.classes, name)
    counts = (
        f"{len(images):,} pictures without labels",
        f"{len(seen_in(data)):,} of its {len(source.classes):,} classes",
    )
    say(f"{folder.name}: {counts[0]}; the source's own answers stand in their place, and name {counts[1]}")
    return data


def seen_in(data: ImageData) -> list[int]:
    """The classes that some image belongs to."""
    found = data.labels.unique() if data.labels.ndim == 1 else data.labels.any(0).nonzero().flatten()
    return [int(k) for k in found]


def kind_of(source: Source, outputs: str | None) -> str:
    """What a source's outputs mean: as was asked, or as a model of transformers or torchvision says of itself."""
    from brickyard.base._boxes import KIND, split_outputs
    from brickyard.network._identity import SEVERAL, problem_of

    outputs, _ = split_outputs(outputs)
    if outputs is None and source.boxes is not None:
        return KIND
    return outputs or (SEVERAL if problem_of(source.model) == SEVERAL else "one")


def axes_of(source: Source) -> Graph:
    """The channel axes of a source, read without images."""
    import torch

    from brickyard.axes._graph import trace
    from brickyard.network._identity import weights_like

    example = torch.zeros(2, *source.input_shape).to(weights_like(source.model))
    return trace(source.model, example, source.output, boxes=source.boxes)


def named_after(source: Source, data: ImageData | BoxData) -> Source:
    """A source whose classes are only numbered takes the names of data that have as many."""
    from dataclasses import replace

    count = len(source.classes)
    if source.classes == tuple(map(str, range(count))) and len(data.classes) == count:
        if data.classes != source.classes:
            what = "outputs" if source.boxes is None else "classes"
            say(f"{source.name}: its {count} {what} take the names of the images' classes, in their order")
        return replace(source, classes=data.classes)
    return source


def data_of(
    spec: str,
    how: Preprocessing | None,
    split: str = "train",
    most: int | None = None,
    *,
    outputs: str | None = None,
    shape: Sequence[int] | Taken | None = None,
) -> Any:
    """Image data, whose pictures are brought to the size of the preprocessing, with labels for a kind of outputs.

    Arrays are read as `shape` says. For detectors, images with boxes, whose pictures keep their sizes.
    """
    from brickyard.base._boxes import KIND
    from brickyard.inputs._box_data import load_box_data
    from brickyard.inputs._datasets import load_data
    from brickyard.network._identity import SEVERAL

    if outputs == KIND:
        found = load_box_data(spec, split)
        return found if most is None or most >= len(found) else found.subset(evenly(len(found), most))
    several = outputs == SEVERAL
    return load_data(spec, split=split, size=how, max_images=most, several=several, shape=shape)


def evenly(count: int, most: int) -> list[int]:
    """So many of the indices below a count, evenly spread."""
    return [k * count // most for k in range(most)]


def fitted(
    data: Any,
    classes: Sequence[str],
    others: Mapping[str, int] | None = None,
    *,
    who: str = "the source",
    advice: str = "give --class-names, or other images",
) -> Any:
    """The same images with labels that count a source's classes: by name, or by number where one side has no names.

    Names may differ in case, and in how their words are joined. Labels that run from 1 to the number of classes are
    counted from 0. Whatever was assumed is said. `others` are further names of some classes, as those that a component
    gave them. Messages call the source `who`, and end in `advice` where no name agrees.

    Raises:
        DataError: No name agrees, or there are not as many classes.
    """
    from brickyard.inputs._box_data import BoxData

    if isinstance(data, BoxData):
        return _boxes_fitted(data, classes, others or {}, who, advice)
    numbered = data.classes == tuple(map(str, range(len(data.classes))))
    if data.several:
        data = _with_own_names(data, classes, others or {})
        if numbered and len(data.classes) == len(classes) and data.classes != tuple(classes):
            say(f"{data.name}: columns of labels are matched with the source's classes by number")
            return data.relabelled(data.labels, classes)
        return data if data.classes == tuple(classes) else data.in_order(classes)
    if numbered and len(data) and int(data.labels.min()) == 1 and int(data.labels.max()) == len(classes):
        say(f"{data.name}: labels run from 1 to {len(classes)} and are counted from 0")
        data = data.relabelled(data.labels - 1, data.classes[:-1])
    places = {**(others or {}), **{name: k for k, name in enumerate(classes)}}
    hint = one_too_many(int(data.labels.max()) + 1, len(classes)) if numbered and len(data) else ""
    if hint and tuple(classes) == tuple(map(str, range(len(classes)))):
        why = f"{data.name}: labels run to {len(classes)}, and the source has {len(classes)} outputs without names"
        raise DataError("data-label-out-of-range", f"{why}{hint}")
    if data.classes == tuple(classes):
        return data
    alike = {_plain(name): name for name in places}
    found = [name if name in places else alike.get(_plain(name), name) for name in data.classes]
    if tuple(found) != data.classes and len(alike) == len(places) and len(set(found)) == len(found):
        say(f"{data.name}: class names are matched without regard to case, spaces and hyphens")
        return fitted(data.relabelled(data.labels, found), classes, others, who=who, advice=advice)
    if not places.keys() & set(data.classes):
        unnamed = numbered or tuple(classes) == tuple(map(str, range(len(classes))))
        if len(data.classes) == len(classes) and unnamed:
            say(f"{data.name}: labels are matched with the source's classes by number")
            return data
        ours = list(dict.fromkeys([*(others or {}), *classes]))
        theirs, mine = (f"{len(names)} classes ({', '.join(names[:5])} ...)" for names in (data.classes, ours))
        raise DataError("data-unknown-class", f"{data.name} has {theirs}, {who} {mine}, and no name agrees; {advice}")
    known = data.of_classes([name for name in data.classes if name in places])
    labels = known.labels.clone()
    for k, name in enumerate(data.classes):
        labels[known.labels == k] = places.get(name, -1)
    if not len(known):
        why = f"{data.name} has {len(data):,} images, none of a class of {who} ({', '.join(classes[:5])} ...)"
        raise DataError("data-no-task-class", f"{why}; give images of these classes")
    if len(known) < len(data):
        left = f"{len(data) - len(known):,} of {len(data):,}"
        say(f"{data.name}: {left} images are of classes that {who} does not know; they are left out")
    return known.relabelled(labels, classes)


def _with_own_names(data: ImageData, classes: Sequence[str], others: Mapping[str, int]) -> ImageData:
    """The same images, whose classes have the source's names where they had others that are known."""
    found = [name if name in classes or name not in others else classes[others[name]] for name in data.classes]
    return data.relabelled(data.labels, found) if len(set(found)) == len(found) else data


def _boxes_fitted(data: BoxData, classes: Sequence[str], others: Mapping[str, int], who: str, advice: str) -> BoxData:
    """Images whose boxes count a source's classes; boxes of other classes are left out, which is said."""
    places = {**others, **{name: k for k, name in enumerate(classes)}}
    alike = {_plain(name): k for name, k in places.items()}
    found = [places.get(name, alike.get(_plain(name), -1)) for name in data.classes]
    numbered = [tuple(map(str, range(len(names)))) == tuple(names) for names in (data.classes, classes)]
    if max(found, default=-1) < 0 and len(data.classes) == len(classes) and any(numbered):
        say(f"{data.name}: classes of boxes are matched with the source's by number")
        found = list(range(len(classes)))
    if max(found, default=-1) < 0:
        theirs, mine = (f"{len(names)} classes ({', '.join(names[:5])} ...)" for names in (data.classes, classes))
        raise DataError("data-unknown-class", f"{data.name} has {theirs}, {who} {mine}, and no name agrees; {advice}")
    if data.classes == tuple(classes):
        return data
    if gone := [name for name, place in zip(data.classes, found, strict=True) if place < 0]:
        say(f"{data.name}: boxes of classes that {who} does not know are left out: {', '.join(gone[:6])}")
    return data.relabelled(found, classes)


def _plain(name: str) -> str:
    """A class name without what people write differently."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def labelled_images(
    specs: Sequence[str],
    models: Sequence[tuple[str, ComponentManifest | AssemblyManifest]],
    option: str,
    split: str = "train",
    most: int | None = None,
    *,
    shared: bool = False,
) -> list[ImageData | None]:
    """Images for every part, with labels that count its source's classes.

    Args:
        specs: What to read, one per part.
        models: What has the parts, in order: the name of each, and its manifest.
        option: What `specs` are called on the command line.
        split: The split to read, unless a text names one.
        most: Read at most this many of each.
        shared: Allow one text for all parts. A part that finds no image there has None, which is said.

    Raises:
        DataError: No part finds an image; without `shared`, some part finds none.
        OptionError: There are not as many as parts.
    """
    parts = [part for name, manifest in models for part in _parts_of(name, manifest)]
    if len(specs) not in {len(parts), 1 if shared else len(parts)}:
        once = "once, or " if shared else ""
        raise OptionError(
            "option-count", f"{len(parts)} parts need {option} {once}{len(parts)} times, got {len(specs)}"
        )
    each = specs if len(specs) == len(parts) else list(specs) * len(parts)
    all_parts = [one.manifest for one in parts]  # which are to be joined, unless each model is looked at by itself
    together = [manifest.parts if shared else all_parts for _, manifest in models for _ in manifest.parts]
    found: list[ImageData | None] = []
    problems: list[DataError] = []
    for spec, one, others in zip(each, parts, together, strict=True):
        part = one.manifest
        data = data_of(spec, seen_by(part, others), split, most, outputs=part.outputs, shape=part.input_shape)
        try:
            found.append(fitted(data, part.source.classes, one.classes, who=one.name, advice=_RENAME))
        except DataError as error:
            if not shared or len(parts) == 1 or error.code not in ("data-unknown-class", "data-no-task-class"):
                raise
            problems.append(error)
            found.append(None)
    if len(problems) == len(parts):
        raise problems[0]
    for spec, one, data_or_none in zip(each, parts, found, strict=True):
        if data_or_none is None:
            say(f"{spec}: 0 images are of a class of {one.name}")
    return found


def seen_by(part: ComponentManifest, parts: Sequence[ComponentManifest]) -> Preprocessing:
    """How pictures in files are read for a part, where all of several parts are shown them.

    If one letterboxes and another does otherwise, they stay as they are, and must have one size: what the one leaves
    around a picture is not for the other to see.
    """
    return part.preprocessing.changed({"size": None}) if _boxed_for_some(parts) else part.preprocessing


def check_seen_by_all(parts: Sequence[ComponentManifest]) -> None:
    """Refuse parts that are shown pictures which each of their sources reads in its own way, if one letterboxes.

    Raises:
        DataError: Another part would see what is left around the pictures.
    """
    if _boxed_for_some(parts):
        names = dict.fromkeys(part.source.name for part in parts if part.preprocessing.fit == "letterbox")
        raise DataError(
            "data-not-batchable",
            f"source {', '.join(map(repr, names))} letterboxes its pictures, and other parts take them in another way; "
            "a recipe reads the pictures of each source in its own way: give these sources one preprocessing, or "
            "assemble and evaluate the components with `brickyard assemble` and `brickyard evaluate`",
        )


def _boxed_for_some(parts: Sequence[ComponentManifest]) -> bool:
    ways = [part.preprocessing for part in parts]
    return any(way.size and way.fit == "letterbox" for way in ways) and len({way.frame for way in ways}) > 1


_RENAME = (
    "call the classes of the images like those of the file, give the file's other names with `brickyard rename`, or "
    "give other images"
)


class _Part(NamedTuple):
    """A part of a file: what messages call it, its manifest, and the file's names of its source's classes."""

    name: str
    manifest: ComponentManifest
    classes: dict[str, int]


def _parts_of(name: str, manifest: ComponentManifest | AssemblyManifest) -> list[_Part]:
    """The parts of a file. Its own names of classes count before those that a part was cut with."""
    found = []
    for index, (part, places) in enumerate(zip(manifest.parts, manifest.places, strict=True)):
        own = {manifest.classes[places[k]]: k for k in reversed(part.leads) if places[k] >= 0}
        called = name if len(manifest.parts) == 1 else f"part {index} of {name}"
        found.append(_Part(called, part, {**dict(zip(part.classes, part.leads, strict=True)), **own}))
    return found


def models_of(
    specs: Sequence[str], weights: Sequence[Path], parts: Sequence[ComponentManifest | None]
) -> list[nn.Module]:
    """The networks of sources, with a file of weights for each or for none, and what was cut from each, if known.

    Raises:
        OptionError: There are some weights, but not as many as sources.
    """
    if weights and len(weights) != len(specs):
        raise OptionError("option-count", f"{len(specs)} sources need --weights {len(specs)} times, got {len(weights)}")
    places: Sequence[Path | None] = weights or [None] * len(specs)
    found = []
    for spec, place, part in zip(specs, places, parts, strict=False):
        how, shape, name = (None,) * 3 if part is None else (part.preprocessing, part.input_shape, part.output)
        which: dict[str, Any] = {"output_name": name, "boxes": None if part is None else part.boxes}
        which |= {"random_weights": True, "input_shape": shape, "tell": part is None}
        source = source_of(spec, place, None, how, **which)
        found.append(source.model)
    return found
