"""Sources by a short text: a name of a library's, a file of weights or of ONNX, or a function of the user's."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from brickyard.axes._answers import Form
from brickyard.axes._detector_models import is_detector, preparation, with_one_output
from brickyard.axes._tracing import rows_of
from brickyard.base._boxes import Boxes, boxes_asked, family_of
from brickyard.base._checks import output_name
from brickyard.base._classes import one_too_many, ordered_names
from brickyard.base._errors import FileError, OptionError, TaskError
from brickyard.base._frozen import first_problem
from brickyard.base._messages import brief
from brickyard.base._records import Preprocessing
from brickyard.base._sides import NAMES, by_sides, is_picture
from brickyard.inputs._preprocessing import check_units
from brickyard.network._place import Place
from brickyard.network._untouched import guarded
from brickyard.runtime._progress import say
from brickyard.sources import _onnx
from brickyard.sources import _zoo as zoo
from brickyard.sources._catalogue import KEY, suggestions
from brickyard.sources._libraries import (
    Built,
    from_timm,
    from_torchvision,
    is_of_hub,
    is_own,
    network_options,
    seeded,
)
from brickyard.sources._names import COCO_CLASSES, COCO_NUMBERS, coco_names
from brickyard.sources._transformers import from_transformers
from brickyard.sources._weights import SourceText, check_fit, fill, misfits, read_weights, renamed

CIFAR = Preprocessing(size=(32, 32), channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Source:
    """A trained classifier, or a detector, with what is known about it.

    Attributes:
        model: The network, in evaluation mode.
        name: What manifests call it.
        classes: Class names, one an output.
        preprocessing: What is done to raw images before it takes them.
        input_shape: (channels, height, width) that it takes; (channels, length) of signals, (channels, depth, height,
            width) of cubes.
        scores: Its accuracies when it was trained here, as its file tells them; in [0, 1].
        output: The part of what the model returns that holds its logits, where it was named.
        assumed: How its images are assumed to be normalised, where nothing says it; "" where something does.
        boxes: How the outputs of a detector are read; None for a classifier.
    """

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    input_shape: tuple[int, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    output: str | None = None
    assumed: str = ""
    boxes: Boxes | None = None

    @property
    def accuracy(self) -> float | None:
        """The share of images that it answered correctly when it was trained here, or None; of several, the least."""
        known = [share for name, share in self.scores.items() if name.endswith("accuracy") and 0 <= share <= 1]
        return min(known, default=None)


@guarded
def load_source(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    random_weights: bool = False,
    averaged: bool = True,
    input_shape: tuple[int, ...] | None = None,
    output: str | int | None = None,
    boxes: str | Boxes | None = None,
    device: Any = None,
    dtype: Any = None,
) -> Source:
    """Load a trained classifier or detector.

    Args:
        spec: `zoo:NAME`, `zoo:NAME?width=0.25&classes=100`, `torchvision:NAME`, `timm:NAME` (both with options such as
            `?num_classes=7`), `hf:FOLDER` or `hf:ID` (an image classifier of transformers),
            `path/to/file.py:function` (your own code, run as it is), the path of an `.onnx` file, or that of a
            `.safetensors` file that `save_source` or `brickyard train` wrote.
        weights: A `.safetensors` file, or `.pt`, `.pth` or `.bin` (read with weights_only). For torchvision and timm
            also "DEFAULT", or a name such as "IMAGENET1K_V2": the library's own weights, from its cache or downloaded.
        classes: Class names; default: what the weights say, else "0", "1", ...
        preprocessing: What is done to raw images; default: what the weights or the library say.
        random_weights: Whether a network without weights is meant.
        averaged: Whether to take moving averages where a checkpoint holds them beside the weights of the last step.
        input_shape: (channels, height, width) of its images, or the shape of its signals or cubes, where nothing else
            says so.
        output: Which part of what it returns holds the logits, where several could: see `brickyard.axes.trace`. Give
            `output=source.output` to `locate` too.
        boxes: For a detector, how its outputs are read: a family, such as "yolox", or `brickyard.Boxes(...)`. Give the
            same to `locate`, as `outputs=`. A known family implies its usual preprocessing.
        device: Bring the network to this device, as for `brickyard.load`. Default: the CPU.
        dtype: Convert its numbers to this type, as for `brickyard.load`. The source keeps its fingerprint, so that
            what was cut from it still knows it. Default: that of its weights.

    Where nothing says how its images are normalised, what is assumed is said on standard error, and kept as `assumed`.

    Raises:
        OptionError: The text is not understood, or a package is missing.
        FileError: Weights cannot be read or do not fit the network.
        TaskError: Class names do not fit the number of outputs.

    Example:
        >>> from brickyard.sources import load_source
        >>> load_source("zoo:lenet5?classes=4", random_weights=True).input_shape
        (3, 32, 32)
    """
    source = quietly_loaded(
        spec,
        weights=weights,
        classes=classes,
        preprocessing=preprocessing,
        random_weights=random_weights,
        averaged=averaged,
        input_shape=input_shape,
        output=output,
        boxes=boxes,
        place=Place.of(device, dtype),
    )
    say_assumed(source)
    return source


def say_assumed(source: Source) -> None:
    """Say what is assumed of a source, if anything is."""
    if source.assumed:
        what = source.assumed.removeprefix(NORMALISATION)
        said = f"{source.name.partition('?')[0]}: normalisation not given: assuming {what}"
        say(f"{said}; give --mean and --std (in Python preprocessing=) if the network was trained otherwise")


@guarded
def quietly_loaded(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    random_weights: bool = False,
    averaged: bool = True,
    input_shape: tuple[int, ...] | None = None,
    output: str | int | None = None,
    boxes: str | Boxes | None = None,
    place: Place | None = None,
) -> Source:
    """Do what `load_source` does, without saying what is assumed."""
    spec = _text(spec)
    if spec.endswith(".safetensors") and ":" not in Path(spec).name:
        weights, spec = weights or spec, "zoo:auto"
    kind, place = _kind(spec), place or Place.of()
    own = str(weights) if kind in ("torchvision", "timm") and is_own(weights) else ""
    inside = own or kind == "file.onnx"  # nothing lies in a file of weights beside it
    tensors, said = ({}, None) if weights is None or inside else read_weights(Path(weights), averaged=averaged)
    text = said or SourceText(arch="auto")
    asked = _Asked(
        spec,
        weights,
        own,
        tensors,
        said,
        ordered_names(classes) or text.classes,
        preprocessing,
        random_weights,
        None if output is None else output_name(output),
        boxes_asked(boxes),
    )
    try:
        found = _KINDS[kind](asked)
        if tensors:
            fill(found.model, tensors, weights)
    except FileError as error:
        raise _with_what_fits(error, tensors) from None
    if not tensors and not found.trained and not random_weights:
        raise OptionError(
            "option-requires-option",
            f"{spec} has no weights: a network with random weights would be cut; give weights"
            f"{' (a file, or DEFAULT for those of the library)' if kind != 'zoo' else ''}, or --random-weights (in "
            "Python random_weights=True) where that is what you want",
        )
    if detector := is_detector(found.model):
        found = replace(found, how=preparation(found.model, (input_shape or ())[1:]), guessed=False)
    told = preprocessing or text.preprocessing
    usual = None if told is not None or detector else _usual(asked.boxes, found, input_shape)
    how = told or usual or found.how
    shape = _shape(how, text.input_shape or input_shape or found.shape)
    if told is not None and (text.input_shape or input_shape or found.shape) is not None:  # else locating checks it
        check_units(told, shape)
    names = tuple(asked.names or found.classes)
    source = Source(found.model, found.title, names, how, shape, text.scores, asked.output, boxes=asked.boxes)
    if told is None and usual is None and found.guessed:
        source = replace(source, assumed=_normalisation(how))
    ready = _run_once(source)
    place.put(ready.model)
    return ready


def _text(spec: Any) -> str:
    spec = os.fspath(spec) if isinstance(spec, os.PathLike) else spec
    if not isinstance(spec, str):
        raise OptionError(
            "option-type",
            f"a source must be a path or a text such as zoo:cnn, got {brief(spec)} of type {type(spec).__name__}",
        )
    return spec


@dataclass(frozen=True)
class _Asked:
    """What a source was asked for, with its weights read; `names` are those of its classes, if any are known."""

    spec: str
    weights: str | Path | None
    own: str
    tensors: dict[str, Tensor]
    said: SourceText | None
    names: Sequence[str]
    how: Preprocessing | None
    random_weights: bool
    output: str | None
    boxes: Boxes | None = None

    @property
    def rest(self) -> str:
        """What stands behind the kind."""
        return self.spec.partition(":")[2]


@dataclass(frozen=True)
class _Found:
    """A network as it was built.

    `trained` tells whether it has its weights, or needs none from elsewhere; `guessed`, whether nothing says that its
    images are normalised like this; `whole_numbers`, whether it was made for images from 0 to 255, which it now takes
    from 0 to 1.
    """

    model: nn.Module
    title: str
    how: Preprocessing
    shape: tuple[int, ...] | None = None
    classes: Sequence[str] = ()
    trained: bool = False
    guessed: bool = False
    whole_numbers: bool = False


NORMALISATION = "normalisation "
NO_NORMALISATION = f"{NORMALISATION}none"


def _normalisation(how: Preprocessing | None) -> str:
    """How images are normalised, in words."""
    if how is None or how.mean is None or how.std is None:
        return NO_NORMALISATION
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
    return f"{NORMALISATION}mean {mean}, std {std}"


def _kind(spec: str) -> str:
    kind, colon, _ = spec.partition(":")
    if colon and kind in _KINDS:
        return kind
    if _onnx.is_onnx(spec):
        return "file.onnx"
    if ".py:" in spec:
        return "file.py"
    meant = suggestions(spec)
    hint = f"did you mean {' or '.join(meant)}? Or give" if meant else "give"
    raise OptionError(
        "option-source-unknown",
        f"source {brief(spec, 100)} is not understood; {hint} zoo:NAME, torchvision:NAME, timm:NAME, hf:FOLDER or "
        "hf:ID, path/to/file.py:function, an .onnx file, or a file that `brickyard train` wrote; `brickyard sources` "
        "lists what there is",
    )


def _run_once(source: Source) -> Source:
    """The source, with names for all of its outputs.

    Raises:
        OptionError: It does not run on images of its size.
        TaskError: It has other names than outputs.
    """
    model, name, shape, names = source.model, source.name, source.input_shape, source.classes
    model.eval()
    like = next(model.parameters(), torch.zeros(0))
    example = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
    model, boxes, output = with_one_output(model, example, source.boxes, source.output)
    source = replace(source, model=model, boxes=boxes)
    with torch.no_grad():
        try:
            result = model(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
        except Exception as error:
            raise OptionError(
                "option-source-size",
                f"source {name!r} fails on {NAMES[len(shape) - 1]} of shape {shape}: {error}; give its --size",
            ) from error
    count = rows_of(model, result, 2, output, Form(source.boxes)).shape[1]
    outputs = max(2, count) if source.boxes is None else source.boxes.sized(count).classes or 0  # one is of two classes
    names = names or _of_coco(source, outputs) or tuple(map(str, range(outputs)))
    if len(names) != outputs:
        raise TaskError(
            "task-class-count",
            f"source {name!r} has {outputs} {'outputs' if source.boxes is None else 'classes'}, got {len(names)} class "
            "names; give as many"
            f"{one_too_many(len(names), outputs)}",
        )
    return replace(source, classes=names)


def _of_coco(source: Source, count: int) -> tuple[str, ...]:
    """COCO's class names for a known family of detectors with as many classes, which is said; else none."""
    if family_of(source.boxes) is None or count not in (COCO_CLASSES, *COCO_NUMBERS):
        return ()
    try:
        names = tuple(coco_names(count))
    except OptionError:  # without torchvision, classes have numbers
        return ()
    say(f"{source.name}: its {count} classes are taken for COCO's; --class-names (in Python classes=) changes that")
    return names


def _usual(boxes: Boxes | None, found: _Found, given: tuple[int, ...] | None) -> Preprocessing | None:
    """The preprocessing that is usual for a known family of detectors, which is said; None for others."""
    family, (channels, *sides) = family_of(boxes), found.shape or given or (3,)
    if family is None or channels != 3 or len(sides) not in (0, 2):
        return None
    how = Preprocessing.of_detector(family, (sides[0], sides[1]) if sides else None)
    if found.whole_numbers:  # the file itself normalises them
        how = how.changed({"mean": None, "std": None})
    height, width = how.size or (0, 0)
    whole = how.mean == (0.0,) and how.std == (1 / 255,)
    numbers = "0 to 1" if how.mean is None else "0 to 255" if whole else "normalised"
    say(
        f"{found.title}: pictures are prepared as is usual for {family}: letterboxed to {width}x{height}, "
        f"{how.order.upper()}, {numbers}; "
        "--size, --mean, --std, --order, --fill and --place change that (in Python preprocessing=)"
    )
    return how


def _shape(how: Preprocessing, known: tuple[int, ...] | None) -> tuple[int, ...]:
    channels, *sides = known or (3, 224, 224)
    if known is not None and not is_picture(known):
        if how.size is not None or how.channels is not None:
            why = f"the source takes {NAMES[len(sides)]} of {by_sides(known)}"
            raise OptionError("option-preprocessing", f"{why}; leave out size and channels, which are for pictures")
        return known
    return (how.channels or channels, *(how.size or sides))


# -- where networks come from --------------------------------------------------------------------------------


def _zoo(asked: _Asked) -> _Found:
    weights, said, tensors = asked.weights, asked.said, asked.tensors
    name, options = network_options(asked.rest)
    if name == "auto" and weights is None:
        raise OptionError(
            "option-requires-option", "zoo:auto reads the network's name from its weights; give --weights, or zoo:NAME"
        )
    if name == "auto" and (said is None or said.arch == "auto"):
        raise FileError(
            "file-weights-mismatch",
            f"{weights} does not name its network; give that as the source, and the file with --weights",
        )
    if said is not None:
        name = said.arch if name == "auto" else name
        options = {**({"classes": len(said.classes)} if said.classes else {}), **said.options, **options}
    if asked.names and asked.names != (said.classes if said else ()):
        options.setdefault("classes", len(asked.names))
    if tensors:
        options = _inferred(name, asked, options)
    if "classes" not in options:
        raise OptionError(
            "option-source-undetermined",
            f"{asked.spec} has no class count; give zoo:{name}?classes=NUMBER, or weights",
        )
    if tensors:  # before memory is taken for what the file only tells of
        with zoo.weightless():
            blank = zoo.build(name, **options)
            check_fit(blank, renamed(tensors, blank.state_dict()), weights)
    with seeded():
        model = zoo.build(name, **options)
    shape = zoo.input_shape(name, options)
    trained_on_cifar = zoo.entry(name).name in ("resnet20", "resnet32", "resnet56") and shape[0] == 3
    title = name if weights is None else f"{name} ({Path(weights).stem})"
    return _Found(model, title, CIFAR if trained_on_cifar else Preprocessing(), shape, guessed=True)


def _inferred(name: str, asked: _Asked, options: dict[str, Any]) -> dict[str, Any]:
    """Options of a network of the zoo, with those that its weights tell.

    Raises:
        FileError: They are those of another network.
        OptionError: They do not tell all that is needed.
    """
    try:
        return zoo.infer_options(name, asked.tensors, options)
    except OptionError as error:
        if error.code != "option-source-undetermined":
            raise
        with zoo.weightless():
            expected = zoo.build(name, **{"classes": 1, **options}).state_dict()
        problems = misfits(expected, renamed(asked.tensors, expected), shapes=False)
        if not problems:
            raise
        why = f"weights {asked.weights} do not fit zoo:{name}: {problems}"
        raise FileError("file-weights-mismatch", f"{why}. Check the name of the source") from None


def _with_what_fits(error: FileError, tensors: Mapping[str, Tensor]) -> FileError:
    """An error for weights that do not fit, with the networks of the zoo that they fit, if any."""
    names = zoo.fitting(tensors) if error.code == "file-weights-mismatch" and tensors else []
    if not names:
        return error
    return FileError(error.code, f"{error}. These weights fit {' and '.join(f'zoo:{name}' for name in names)}")


def _library(build: Callable[..., Built], asked: _Asked) -> _Found:
    """A network of torchvision or timm."""
    model, how, channels = build(asked.rest, asked.tensors, len(asked.names), asked.own)
    trained = bool(asked.own) or is_of_hub(asked.rest)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
    names = tuple(map(str, names)) if len(names) == getattr(model, "num_classes", 0) else ()
    return _Found(model, asked.spec, how, (channels, *(how.size or (224, 224))), names, trained, guessed=not trained)


def _transformers(asked: _Asked) -> _Found:
    pretrained = not asked.tensors and not asked.random_weights
    model, how, names = from_transformers(asked.rest, pretrained=pretrained, how=asked.how)
    channels = int(getattr(model.config, "num_channels", 3))
    title = f"hf:{Path(asked.rest).name}"
    return _Found(model, title, how, (channels, *(how.size or (224, 224))), names, trained=True)


def _file(asked: _Asked) -> _Found:
    """What the user's own function makes; where its file is, is nobody's business."""
    return _Found(_own(asked.spec, asked.names), Path(asked.spec).name, Preprocessing(), trained=True, guessed=True)


def _onnx_file(asked: _Asked) -> _Found:
    found = _onnx.load(asked.spec, asked.weights, asked.how, asked.output, asked.boxes)
    names, title = tuple(asked.names) or found.classes, Path(asked.spec).stem
    about = {"guessed": not found.prepared, "whole_numbers": found.whole_numbers}
    return _Found(found.model, title, found.preprocessing, found.input_shape, names, True, **about)


_KINDS: dict[str, Callable[[_Asked], _Found]] = {
    "zoo": _zoo,
    "torchvision": partial(_library, from_torchvision),
    "timm": partial(_library, from_timm),
    "hf": _transformers,
    "file.onnx": _onnx_file,
    "file.py": _file,
}


def _own(spec: str, classes: Sequence[str]) -> nn.Module:
    """Run the user's own function; its file is code that the user named."""

    def refused(text: str) -> OptionError:
        return OptionError("option-source-code", f"source {spec!r}{text}")

    place, _, function = spec.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise refused(f": there is no file {place!r}; give path/to/file.py:function")
    alone = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]  # files of one name are many
    module_spec = importlib.util.spec_from_file_location(f"{path.stem}_{alone}", path)
    if module_spec is None or module_spec.loader is None:
        raise refused(f": {place!r} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        with _importable(path, module):
            module_spec.loader.exec_module(module)
    except Exception as error:
        raise refused(f": {path.name} cannot be run: {type(error).__name__}: {error}; mend the file") from error
    make = getattr(module, function, None)
    if not callable(make):
        names = ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
        raise refused(f": {path.name} has no function {function!r}; it has {names or 'none'}")
    takes_classes = "classes" in inspect.signature(make).parameters and classes
    try:
        with _importable(path, module):
            model = make(classes=len(classes)) if takes_classes else make()
    except Exception as error:
        how = "it is called without arguments, or with classes=NUMBER where it takes that and class names are given"
        raise refused(f" failed: {type(error).__name__}: {error}; {how}") from error
    if not isinstance(model, nn.Module):
        raise refused(f" returned a {type(model).__name__}; return a torch.nn.Module")
    return model


@contextlib.contextmanager
def _importable(path: Path, module: ModuleType) -> Iterator[None]:
    """Let a file import its neighbours, as it can where Python is started beside it.

    They are forgotten afterwards: another file may have neighbours of the same names.
    """
    folder, known = str(path.resolve().parent), set(sys.modules)
    sys.path.insert(0, folder)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - known - {module.__name__}:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(folder + os.sep):
                del sys.modules[name]


@guarded
def save_source(
    path: str | Path,
    source: Source,
    *,
    arch: str,
    options: dict[str, Any] | None = None,
    scores: dict[str, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a source's weights with what is needed to build it again, atomically.

    Raises:
        FileError: The file exists and `overwrite` is false, or cannot be written.
    """
    from brickyard.storage._atomic import write_atomically

    try:
        own = {key: getattr(source, key) for key in ("classes", "preprocessing", "input_shape")}
        text = SourceText(arch=arch, options=options or {}, scores=scores or {}, **own)
    except ValidationError as error:
        raise OptionError("option-type", f"cannot write the description of {path}: {first_problem(error)}") from None
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in source.model.state_dict().items()}
    path = Path(path)
    metadata = {KEY: text.model_dump_json()}
    write_atomically(path, lambda place: save_file(tensors, place, metadata), overwrite=overwrite)
    return path
