"""From an order to bricks, by the calls that anyone would make in Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from brickyard.base._classes import numbered, task_classes
from brickyard.base._declare import checked
from brickyard.base._errors import BrickyardError, OptionError
from brickyard.base._options import Budget, LocateOptions
from brickyard.component._component import Component
from brickyard.component._disassemble import disassemble
from brickyard.inputs._datasets import ImageData
from brickyard.inputs._reading import Wanted, of_files
from brickyard.outputs._outputs import find_outputs
from brickyard.relevance._locate import check_savable, located
from brickyard.relevance._relevance import Relevance
from brickyard.sources import _resolve as resolve
from brickyard.sources._loading import Source
from brickyard.sources._names import imagenet_names
from brickyard.workbench._orders import size_name
from brickyard.workbench._shelf import BUILT_IN, check_no_links

SENT = "pictures from the page"  # what manifests call them


class Shown(NamedTuple):
    """Pictures to calibrate with.

    Attributes:
        images: With labels, or with the source's own answers in their place.
        more: Pictures that may show anything, or None.
        guessed: Whether the labels are the source's own answers.
    """

    images: ImageData
    more: Any
    guessed: bool


def look(order: dict[str, Any]) -> dict[str, Any]:
    """What a page shows of a source, and how many pictures there are of each of its classes, if labels say so."""
    data, labels = order["pictures"]["data"], order["pictures"]["labels"]
    source, images = _labelled(order) if data is not None and labels else (_source(order), None)
    counts = None
    if images is not None:
        counts = torch.bincount(images.labels, minlength=len(source.classes)).tolist()
    return {
        "name": source.name,
        "classes": list(source.classes),
        "numbered": numbered(source.classes),
        "input_shape": list(source.input_shape),
        "parameters": sum(p.numel() for p in source.model.parameters()),
        "pictures": counts,
    }


def cut(order: dict[str, Any], folder: Path, tell: Callable[..., None]) -> None:
    """Locate once, then cut a brick of each size, the largest first: large ones take the fewest steps.

    Raises:
        BrickyardError: No size can be made.
    """
    tell(stage="Loading the source and the pictures", progress=None)
    source, shown = _source_and_pictures(order)
    task = {name: list(members) for name, members in order["task"].items()}
    tell(stage="Locating", progress=None)
    found = _located(source, shown, task)
    problems: list[BrickyardError] = []
    for size in sorted(order["sizes"], reverse=True):
        tell(stage=f"Cutting to {size:.0%} of the FLOPs", progress=None)
        try:
            options: dict[str, Any] = {"budget": Budget(flops=size), "reject": order["reject"]}
            part = disassemble(source.model, found, task=task, more_images=_more(shown, task), **options)
            part.save(folder / size_name(size), overwrite=True)
        except BrickyardError as error:
            problems.append(error)
            tell(point={"size": size, "error": str(error), "code": error.code})
            continue
        tell(point=_point(size, part))
    if len(problems) == len(order["sizes"]):
        raise problems[0]


def _point(size: float, part: Component) -> dict[str, Any]:
    """One point of the curve."""
    manifest = part.manifest
    same, count = manifest.agreement or (0, 0)
    return {
        "size": size,
        "classes": list(part.classes),
        "flops": [manifest.selection.flops, manifest.source.flops],
        "parameters": [manifest.selection.parameters, manifest.source.parameters],
        "agreement": same / count if count else None,
        "held": count,
    }


def _located(source: Source, shown: Shown, task: dict[str, list[str]]) -> Relevance:
    wanted = [source.classes[k] for k in task_classes(task, source.classes)]
    given = {
        "classes": source.classes,
        "preprocessing": source.preprocessing,
        "task": wanted,
        "accuracy": source.accuracy,
        "name": source.name,
        "output": source.output,
    }
    options: Any = checked(LocateOptions, given, "locate")
    found = located(source.model, shown.images, options, check_savable)
    known: dict[str, Any] = {"assumed": source.assumed}
    if shown.guessed:  # a source is always right about its own answers
        known["right"] = None
    found.record = found.record.model_copy(update=known)
    return found


def _more(shown: Shown, task: dict[str, list[str]]) -> Any:
    """Pictures to heal with beside those of the task's classes: without labels, all others tell what layers do, too."""
    if not shown.guessed:
        return shown.more
    return shown.images.without(task_classes(task, shown.images.classes)) or None


# -- sources and pictures --------------------------------------------------------------------------------------------


def _arguments(order: dict[str, Any]) -> tuple[str, Path | None, Any, Any]:
    """The source as text, its weights, class names and preprocessing, as `brickyard disassemble` takes them."""
    given = order["source"]
    how = resolve.preprocessing_of(size=given["size"] or None, mean=given["mean"] or None, std=given["std"] or None)
    names: Any = given["names_file"] or (
        [name.strip() for name in given["names"].split(",")] if given["names"] else None
    )
    path = Path(given["path"])
    if given["imagenet"]:
        names = imagenet_names()
    if path.suffix.lower() == ".onnx":
        if given["network"]:
            why = f"{given['called']} holds its network, and {given['network']} was named too"
            raise OptionError("option-conflict", f"{why}; leave the network out")
        return str(path), None, names, how
    return given["network"] or "zoo:auto", path, names, how


def _source(order: dict[str, Any]) -> Source:
    return _titled(resolve.source_of(*_arguments(order)), order)


def _titled(source: Source, order: dict[str, Any]) -> Source:
    """The source, called as its file is called by the visitor and not as it is kept here."""
    from dataclasses import replace

    kept, called = Path(order["source"]["path"]).stem, Path(order["source"]["called"]).stem
    return source if kept == called else replace(source, name=source.name.replace(kept, called))


def _labelled(order: dict[str, Any]) -> tuple[Source, ImageData]:
    """A source, and data with labels that count its classes."""
    source, images = resolve.source_and_data(*_data_arguments(order))
    source = resolve.named_after(_titled(source, order), images)
    return source, resolve.fitted(images, source.classes)


def _data_arguments(order: dict[str, Any]) -> tuple[Any, ...]:
    spec, weights, names, how = _arguments(order)
    data = order["pictures"]["data"]
    if data != BUILT_IN and Path(data).is_dir():
        check_no_links(Path(data))
    return spec, data, weights, names, how, None


def _source_and_pictures(order: dict[str, Any]) -> tuple[Source, Shown]:
    pictures = order["pictures"]
    if pictures["data"] is not None and pictures["labels"]:
        source, images = _labelled(order)
        return source, Shown(images, None, guessed=False)
    source = _source(order)
    if pictures["data"] is not None:
        folder = Path(pictures["data"])
        if folder.is_dir():
            check_no_links(folder)
        kind = resolve.kind_of(source, None)
        return source, Shown(resolve.answered(source, folder, find_outputs(kind), check_savable), None, guessed=True)
    return source, _sent(source, pictures["shown"], Path(order["folder"]))


def _sent(source: Source, shown: list[dict[str, Any]], folder: Path) -> Shown:
    """Pictures that were sent: those with a class, and the others beside them; or none with a class."""
    known = [item for item in shown if item["label"] is not None]
    others = [item["path"] for item in shown if item["label"] is None]
    if not known:
        place = folder / SENT
        place.mkdir()
        for number, path in enumerate(others):
            shutil.copyfile(path, place / f"{number:05}{Path(path).suffix}")
        kind = find_outputs(resolve.kind_of(source, None))
        return Shown(resolve.answered(source, place, kind, check_savable), None, guessed=True)
    most = len(source.classes)
    if (label := max(item["label"] for item in known)) >= most:
        raise OptionError(
            "option-range", f"the source has {most} classes, and a picture is of class {label}; look again"
        )
    store = of_files([item["path"] for item in known], Wanted(size=source.preprocessing), SENT)
    images = ImageData(store, torch.tensor([item["label"] for item in known]), source.classes, SENT)
    return Shown(images, list(map(Path, others)) or None, guessed=False)
