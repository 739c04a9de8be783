"""Sources by a short text: a zoo, torchvision or timm name, a file of weights or of ONNX, or the user's function."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from brickyard.axes._tracing import logits_in
from brickyard.base._classes import ordered_names
from brickyard.base._errors import FileError, OptionError, TaskError
from brickyard.base._lazy import package
from brickyard.base._messages import brief, near
from brickyard.base._records import Preprocessing, first_problem
from brickyard.sources import _onnx
from brickyard.sources import _zoo as zoo
from brickyard.sources._weights import KEY, SourceText, check_fit, class_count, fill, read_weights, renamed

CIFAR = Preprocessing(size=(32, 32), channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Source:
    """A trained classifier with what is known about it.

    Attributes:
        model: The network, in evaluation mode.
        name: What manifests call it.
        classes: Class names, one an output.
        preprocessing: What is done to raw images before it takes them.
        input_shape: (channels, height, width) that it takes.
        scores: Its accuracies when it was trained here, as its file tells them; in [0, 1].
    """

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """The share of images that it answered correctly when it was trained here, or None; of several, the least."""
        known = [share for name, share in self.scores.items() if name.endswith("accuracy") and 0 <= share <= 1]
        return min(known, default=None)


def load_source(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    random_weights: bool = False,
    averaged: bool = True,
) -> Source:
    """Load a trained classifier.

    Args:
        spec: `zoo:NAME`, `zoo:NAME?width=0.25&classes=100`, `torchvision:NAME`, `timm:NAME`,
            `path/to/file.py:function` (your own code, run as it is), the path of an `.onnx` file, or that of a
            `.safetensors` file that `save_source` or `brickyard train` wrote.
        weights: A `.safetensors` file, or `.pt`, `.pth` or `.bin` (read with weights_only).
        classes: Class names; default: what the weights say, else "0", "1", ...
        preprocessing: What is done to raw images; default: what the weights or the library say.
        random_weights: Whether a network without weights is meant.
        averaged: Whether to take moving averages where a checkpoint holds them beside the weights of the last step.

    Raises:
        OptionError: The text is not understood, or a package is missing.
        FileError: Weights cannot be read or do not fit the network.
        TaskError: Class names do not fit the number of outputs.

    Example:
        >>> from brickyard.sources import load_source
        >>> load_source("zoo:lenet5?classes=4", random_weights=True).input_shape
        (3, 32, 32)
    """
    spec = os.fspath(spec) if isinstance(spec, os.PathLike) else spec
    if not isinstance(spec, str):
        raise OptionError(
            "option-type",
            f"a source must be a path or a text such as zoo:cnn, got {brief(spec)} of type {type(spec).__name__}",
        )
    if spec.endswith(".safetensors") and ":" not in Path(spec).name:
        weights, spec = weights or spec, "zoo:auto"
    beside = None if _onnx.is_onnx(spec) else weights  # an ONNX file holds its own
    tensors, said = ({}, None) if beside is None else read_weights(Path(beside), averaged=averaged)
    text = said or SourceText(arch="auto")
    names = ordered_names(classes) or text.classes
    kind, colon, rest = spec.partition(":")
    title, known, kind = spec, text.input_shape, kind if colon else ""
    if kind == "zoo":
        title, model, found, usual = _zoo(spec, rest, weights, tensors, said, classes)
        known = known or usual
        title = title if weights is None else f"{title} ({Path(weights).stem})"
    elif kind == "torchvision":
        model, found = _torchvision(rest, len(names), tensors)
    elif kind == "timm":
        model, found = _timm(rest, len(names), tensors)
    elif _onnx.is_onnx(spec):
        title, (model, found, known, names) = Path(spec).stem, _onnx.load(spec, weights, names, preprocessing)
    elif ".py:" in spec:
        model, found = _own(spec, names), Preprocessing()
        title = Path(spec).name  # where the file is, is nobody's business
    else:
        forms = (
            "zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:function, an .onnx file, or a file that `brickyard "
            "train` wrote"
        )
        raise OptionError(
            "option-source-unknown",
            f"source {spec!r} is not understood; give {forms}. The zoo has {', '.join(zoo.available())}",
        )
    if tensors:
        fill(model, tensors, weights)
    elif kind in ("zoo", "torchvision", "timm") and not random_weights:
        raise OptionError(
            "option-requires-option",
            f"{spec} has no weights: a network with random weights would be cut; give weights, or --random-weights "
            "(in Python random_weights=True) where that is what you want",
        )
    how = preprocessing or text.preprocessing or found
    return replace(_source(model, title, names, how, _shape(how, known)), scores=text.scores)


def _source(
    model: nn.Module, name: str, classes: Sequence[str], how: Preprocessing, shape: tuple[int, int, int]
) -> Source:
    model.eval()
    with torch.no_grad():
        like = next(model.parameters(), torch.zeros(0))
        try:
            result = model(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
        except Exception as error:
            raise OptionError(
                "option-source-size", f"source {name!r} fails on images of shape {shape}: {error}; give its --size"
            ) from None
    outputs = max(2, logits_in(model, result, 2).shape[1])  # one is the logit of two classes
    names = tuple(classes) or tuple(map(str, range(outputs)))
    if len(names) != outputs:
        raise TaskError(
            "task-class-count", f"source {name!r} has {outputs} outputs, got {len(names)} class names; give as many"
        )
    return Source(model, name, names, how, shape)


def _shape(how: Preprocessing, known: tuple[int, int, int] | None) -> tuple[int, int, int]:
    channels, height, width = known or (3, 224, 224)
    if how.size is not None:
        height, width = how.size
    return how.channels or channels, height, width


# -- where networks come from --------------------------------------------------------------------------------


def _zoo(
    spec: str,
    rest: str,
    weights: str | Path | None,
    tensors: dict[str, Tensor],
    said: SourceText | None,
    classes: Sequence[str] | None,
) -> tuple[str, nn.Module, Preprocessing, tuple[int, int, int]]:
    """The name of a network of the zoo, the network, and what it usually takes."""
    name, options = network_options(rest)
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
    if classes:
        options.setdefault("classes", len(classes))
    if tensors:
        options = zoo.infer_options(name, tensors, options)
    if "classes" not in options:
        raise OptionError(
            "option-source-undetermined", f"{spec} has no class count; give zoo:{name}?classes=NUMBER, or weights"
        )
    if tensors:  # before memory is taken for what the file only tells of
        with zoo.weightless():
            blank = zoo.build(name, **options)
            check_fit(blank, renamed(tensors, blank.state_dict()), weights)
    with seeded():
        model = zoo.build(name, **options)
    shape = zoo.input_shape(name, options)
    trained_on_cifar = zoo.entry(name).name in ("resnet20", "resnet32", "resnet56") and shape[0] == 3
    return name, model, CIFAR if trained_on_cifar else Preprocessing(), shape


def network_options(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME?width=0.5` -> the name, and its options as numbers where they are some."""
    name, _, query = text.partition("?")
    return name, {key: _number(value) for key, value in parse_qsl(query, keep_blank_values=True)}


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _torchvision(name: str, classes: int, tensors: dict[str, Tensor]) -> tuple[nn.Module, Preprocessing]:
    models = package("torchvision.models", "torchvision", f"torchvision:{name}")
    known = models.list_models(module=models)
    if name not in known:
        raise OptionError(
            "option-source-unknown",
            f"torchvision has no classifier {name!r}{near(name, known) or '.'} See torchvision.models.list_models()",
        )
    count = classes or class_count(lambda: models.get_model(name, weights=None), tensors)
    with seeded():
        model: nn.Module = models.get_model(name, weights=None, **_outputs(count))
    return model, Preprocessing.from_torchvision(models.get_model_weights(name).DEFAULT)


def _timm(name: str, classes: int, tensors: dict[str, Tensor]) -> tuple[nn.Module, Preprocessing]:
    timm = package("timm", "timm", f"timm:{name}")
    if not timm.is_model(name):
        raise OptionError(
            "option-source-unknown",
            f"timm has no model {name!r}{near(name, timm.list_models()) or '.'} See timm.list_models()",
        )
    count = classes or class_count(lambda: timm.create_model(name, pretrained=False), tensors)
    with seeded():
        model = timm.create_model(name, pretrained=False, **_outputs(count))
    return model, Preprocessing.from_timm(model)


def _outputs(classes: int | None) -> dict[str, int]:
    return {} if classes is None else {"num_classes": classes}


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw initial weights from a seed in this block; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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
        raise refused(f": {place!r} is no Python file")
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
