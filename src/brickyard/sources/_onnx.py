"""Reads an ONNX classifier as a network that can be traced, cut, healed and saved; nothing in the file runs.

What was read is then compared with ONNX Runtime on two images, so that a difference is never cut from.
"""

from __future__ import annotations

import copy
import importlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._answers import LOGITS_ALONE, Form, detector_hint
from brickyard.base._boxes import Boxes
from brickyard.base._errors import FileError, OptionError, TraceError
from brickyard.base._limits import foreign_json
from brickyard.base._messages import brief, first_line, near, told, writable
from brickyard.base._records import Preprocessing
from brickyard.base._sides import NAMES, is_picture
from brickyard.network._cost_limit import Bounds
from brickyard.network._network import Network, refs
from brickyard.runtime._progress import say
from brickyard.sources._onnx_file import FLOATS, OnnxFile, Port, open_onnx
from brickyard.sources._onnx_graph import Reader, Value
from brickyard.sources._onnx_moves import MOVES
from brickyard.sources._onnx_steps import STEPS

TOLERANCE = 1e-4  # of the largest output
HALF_TOLERANCE = 3e-2  # where ONNX Runtime computes in float16
MAX_SIDE = 4096
_KINDS = {**STEPS, **MOVES}
_NAMES = ("classes", "class_names", "names", "labels", "id2label")
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class OnnxSource:
    """A classifier from an ONNX file.

    Attributes:
        model: The network.
        classes: Class names that the file tells, one an output; may be empty.
        preprocessing: The size and channels that it takes.
        input_shape: (channels, height, width) that it takes, or the shape of its signals or cubes.
        prepared: Whether Brickyard exported the file, with all preprocessing inside.
        whole_numbers: Whether the file takes uint8 images, which the network takes in [0, 1].
    """

    model: Network
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    input_shape: tuple[int, ...]
    prepared: bool = False
    whole_numbers: bool = False


def is_onnx(spec: str) -> bool:
    """Whether the text that names a source is the path of an ONNX file."""
    return spec.endswith(".onnx") and not spec.startswith(("zoo:", "torchvision:", "timm:"))


def load(
    spec: str, weights: Any, how: Preprocessing | None, output: str | None = None, boxes: Boxes | None = None
) -> OnnxSource:
    """The network of an ONNX file as a source.

    Args:
        spec: The file's path.
        weights: A file of weights; there must be none.
        how: The preprocessing that was given, whose size goes before the file's where that is open.
        output: The output of the file that holds the logits, by name or place.
        boxes: How the outputs of a detector are read.

    Raises:
        OptionError: Weights are given, or the size is missing.
        FileError: The file cannot be read.
        TraceError: It is no float classifier of images.
    """
    if weights is not None:
        raise OptionError("option-conflict", f"{spec} holds its own weights; leave weights ({weights}) out")
    return read_onnx(spec, None if how is None else how.size, output, boxes)


def read_onnx(
    path: str | Path, size: tuple[int, int] | None = None, output: str | None = None, boxes: Boxes | None = None
) -> OnnxSource:
    """Read an ONNX classifier, or a detector, into a network, and compare it with ONNX Runtime where that is installed.

    Args:
        path: The file. Weights may lie in files beside it.
        size: Height and width of the images, where the file leaves them open.
        output: The output that holds the logits, by name or place, where several could.
        boxes: How the outputs of a detector are read, which are one tensor; None: it is a classifier.

    Raises:
        FileError: The file cannot be read, or has operators that are not known.
        TraceError: It is no float classifier of images, holds the size of a batch that cannot be opened, or the network
            computes something else than ONNX Runtime.
        OptionError: The package `onnx` is not installed, or the size is missing or is not that of the file.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.export import export_onnx
        >>> from brickyard.sources._onnx import read_onnx
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(component, f"{folder}/small.onnx").path
        ...     source = read_onnx(path)
        >>> source.classes, source.input_shape, torch.allclose(source.model(data[0]), component(data[0]), atol=1e-5)
        (('1', '3'), (3, 8, 8), True)
    """
    path = Path(path)
    file = open_onnx(path, _KINDS)
    shape, last = _shape(file, size)
    reader = Reader(file, shape, FLOATS.get(file.images.type, torch.float32))
    _start(reader, last)
    for op in file.ops:
        reader.run(op, _KINDS[op.kind])
    form = Form(boxes)
    port = _logits(reader, output, form)
    network = reader.network(reader.values[port.name])
    _check_cost(network, shape, path)
    _check_against_runtime(network, file, port, shape, last, form)
    classes = _classes(file, network, shape, form)
    how: dict[str, Any] = {}
    if is_picture(shape):
        how = {"size": shape[1:], "channels": shape[0] if shape[0] in _CHANNELS else None}
    uint8, own = file.images.type == 2, "brickyard" in file.metadata
    return OnnxSource(network, classes, Preprocessing(**how), shape, own, uint8)


# -- its images --------------------------------------------------------------------------------------------


def _shape(file: OnnxFile, size: tuple[int, int] | None) -> tuple[tuple[int, ...], bool]:
    """(channels, height, width) of the images, and whether the file has the channels last."""
    _, *found = file.images.shape or ()
    if len(found) != 3:
        return _array_shape(file, found, size), False
    last = found[0] not in _CHANNELS and found[2] in _CHANNELS
    last = last or (found[0] in _CHANNELS and found[2] in _CHANNELS and _turned(file))
    channels, sides = (found[2], found[:2]) if last else (found[0], found[1:])
    if channels is None:
        raise TraceError(
            "trace-forward-inputs", f"{file.path} leaves the channels of {file.images} open; export it with them fixed"
        )
    wanted = size or _usual(file)
    if wanted is not None:
        wrong = [have for have, side in zip(sides, wanted, strict=True) if have not in (None, side)]
        if wrong and size is not None:
            have = "x".join("?" if side is None else str(side) for side in sides)
            raise OptionError(
                "option-source-size", f"{file.path} takes images of {have}, not of {size[0]}x{size[1]}; give its size"
            )
        sides = [side if side is not None else other for side, other in zip(sides, wanted, strict=True)]
    if any(side is None for side in sides):
        raise OptionError(
            "option-source-size", f"{file.path} takes images of any size ({file.images}); give the one to use (--size)"
        )
    if channels > 64 or max(side for side in sides if side is not None) > MAX_SIDE:
        raise FileError("file-too-costly", f"{file.path} takes {file.images}, which is too large for an image")
    if last:
        say(f"{file.path.name}: images have their channels last in the file; here they come first")
    return (channels, int(sides[0] or 1), int(sides[1] or 1)), last


def _array_shape(file: OnnxFile, found: Sequence[int | None], size: tuple[int, int] | None) -> tuple[int, ...]:
    """(channels, length) of signals or (channels, depth, height, width) of cubes, as the file fixes them."""
    what = NAMES[len(found) - 1]
    if size is not None:
        why = f"{file.path} takes {what} ({file.images}), and a size is for pictures only"
        raise OptionError("option-preprocessing", f"{why}; leave it out")
    shape = tuple(side for side in found if side is not None)
    if len(shape) < len(found):
        raise TraceError(
            "trace-forward-inputs",
            f"{file.path} leaves sides of its {what} open ({file.images}); export it with them fixed",
        )
    if math.prod(shape) > 64 * MAX_SIDE**2:
        raise FileError("file-too-costly", f"{file.path} takes {file.images}, which is too large")
    return shape


def _turned(file: OnnxFile) -> bool:
    """Whether the images are turned to channels first before anything else is done with them."""
    uses = [op for op in file.ops if file.images.name in op.inputs]
    return bool(uses) and all(op.kind == "Transpose" and op.attributes.get("perm") == [0, 3, 1, 2] for op in uses)


def _usual(file: OnnxFile) -> tuple[int, int] | None:
    """The size that one of this library's own exports was made for."""
    try:
        part = foreign_json(file.metadata.get("brickyard", ""))["parts"][0]
        height, width = part["preprocessing"].get("size") or part["input_shape"][1:]
        found = int(height), int(width)
    except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return found if min(found) > 0 else None


def _start(reader: Reader, last: bool) -> None:
    """Bring images (batch, channels, height, width) in [0, 1] into the form that the file takes."""
    found = reader.images
    if reader.file.images.type == 2:  # uint8
        whole = reader.call("mul", found, 255.0)
        reader.scaled[whole.step] = found
        found = whole
        say(f"{reader.file.path.name}: images are uint8 in the file; here they are in [0, 1]")
    if last:
        turned = reader.call("permute", found, (0, 2, 3, 1))
        reader.source[turned.step], reader.orders[turned.step] = found, [0, 2, 3, 1]
        found = turned
    reader.values[reader.file.images.name] = found


# -- its outputs -------------------------------------------------------------------------------------------


def _logits(reader: Reader, output: str | None, form: Form) -> Port:
    """The output that holds the logits: that which was asked for, or that from which the others are computed.

    Raises:
        OptionError: There is no output of that name or place.
        TraceError: None or several can be logits.
    """
    file = reader.file
    asked = file.outputs if output is None else [_asked(file, output)]
    ports = [port for port in asked if _can_be_logits(reader.values[port.name], form)]
    if len(ports) > 1:
        before = {port.name: _ancestors(reader, reader.values[port.name].step) for port in ports}
        steps = {port.name: reader.values[port.name].step for port in ports}
        ports = [p for p in ports if all(steps[p.name] in before[other.name] for other in ports)] or ports
        if len({steps[port.name] for port in ports}) == 1:
            ports = ports[:1]
    if len(ports) == 1:
        if len(file.outputs) > 1:
            say(f"{file.path.name}: of its outputs, {told(ports[0].name, 60)} holds the logits")
        return ports[0]
    told_of = ", ".join(f"{told(p.name, 60)} {_at_batch(reader.values[p.name])}" for p in file.outputs[:6])
    why = (
        "several of its outputs could be them"
        if ports
        else f"output {output!r} is not"
        if output
        else "no output is one row of logits per image"
        if form.boxes is None
        else "no output has that form"
    )
    raise TraceError(
        "trace-output",
        f"{file.path} must return {form.words}, and {why}: {told_of}; name one such output with --output-name (in "
        f"Python output=){detector_hint((reader.values[port.name].shape for port in file.outputs), form)}",
    )


def _asked(file: OnnxFile, output: str) -> Port:
    """The output of a name or a place.

    Raises:
        OptionError: There is none.
    """
    named = {str(k): port for k, port in enumerate(file.outputs)} | {port.name: port for port in file.outputs}
    if output not in named:
        names = [port.name for port in file.outputs]
        raise OptionError(
            "option-choice",
            f"output={brief(output)} was asked for, and {file.path.name} has {', '.join(map(brief, names[:8]))}"
            f"{near(output, names)}: give one of these",
        )
    return named[output]


def _can_be_logits(value: Value, form: Form) -> bool:
    """Whether an output depends on the images and has the form that is looked for, in any batch."""
    worlds = zip(value.worlds, (2, 3), strict=True)
    return bool(value.step) and all(form.fits(world, images) for world, images in worlds)


def _at_batch(value: Value) -> str:
    """The shape of an output for a message, as the file has it for one image."""
    by_batch = value.by_batch
    sizes = (size // 2 if d in by_batch else size for d, size in enumerate(value.shape))
    return f"({', '.join(map(str, sizes))})"


def _ancestors(reader: Reader, step: str) -> set[str]:
    """The steps that one needs, and itself."""
    needed = {step}
    for node in reversed(reader.nodes):
        if node.name in needed:
            needed.update(refs(node))
    return needed


def _classes(file: OnnxFile, network: Network, shape: tuple[int, ...], form: Form) -> tuple[str, ...]:
    """Class names that the file tells, if they are as many as it has classes."""
    count = _answers(network, torch.zeros(1, *shape, dtype=_dtype(file)), file.path, form).shape[1]
    count = count if form.boxes is None else form.boxes.sized(count).classes or 0
    for key in _NAMES:
        names = _names_in(file.metadata.get(key, ""))
        if not names:
            continue
        plain = all(name and writable(name) and len(name) <= 1024 for name in names)
        if len(names) == max(2, count) and len(set(names)) == len(names) and plain:
            say(f"{file.path.name}: class names are those of its {key}: {told(', '.join(names[:6]), 100)}")
            return tuple(names)
        say(f"{file.path.name}: its {key} are {len(names)} names for {count} outputs, or not plain, and left out")
    return ()


def _names_in(text: str) -> list[str]:
    """Names as JSON, as a mapping from numbers as Python writes it, or separated by commas."""
    try:
        found: Any = foreign_json(text)
    except (ValueError, RecursionError):
        pairs = re.findall(r"(\d{1,6})\s*:\s*(?:'([^']*)'|\"([^\"]*)\")", text) if text.startswith("{") else []
        found = {number: one or other for number, one, other in pairs} or text
    if isinstance(found, dict):
        keys = sorted((key for key in found if len(key) < 7 and key.isdecimal()), key=int)
        numbered = [int(key) for key in keys] == list(range(len(found)))
        found = [found[key] for key in keys] if numbered else []
    if isinstance(found, str):
        found = [name.strip() for name in found.split(",")] if "," in found else []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


# -- whether it is what it was read as ---------------------------------------------------------------------


def _dtype(file: OnnxFile) -> torch.dtype:
    return FLOATS.get(file.images.type, torch.float32)


def _check_cost(network: Network, shape: tuple[int, ...], path: Path) -> None:
    """Refuse a network that costs too much for its weights, before it runs."""
    numbers = sum(value.numel() for value in network.state_dict().values())
    try:
        Bounds(numbers).run(Network.from_spec(network.to_spec()), shape)
    except FileError as error:
        raise FileError(error.code, f"{path}: {error}") from None


def _answers(network: Network, images: Tensor, path: Path, form: Form) -> Tensor:
    """What the network answers, in its standard form."""
    try:
        with torch.no_grad():
            return form.standard(network(images))
    except Exception as error:  # whatever torch raises
        why = f"{path} does not run as it was read: {told(first_line(error), 300)}"
        raise FileError("file-network-invalid", f"{why}; obtain the file again") from None


def _check_against_runtime(
    network: Network, file: OnnxFile, port: Port, shape: tuple[int, ...], last: bool, form: Form = LOGITS_ALONE
) -> None:
    """Compare the network with ONNX Runtime on two images.

    Raises:
        TraceError: They differ.
    """
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        say(f"{file.path.name}: onnxruntime is not installed, so what was read is not compared with it")
        return
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *shape), generator=generator, dtype=torch.uint8)
    given = images if file.images.type == 2 else images.to(_dtype(file)) / 255
    try:
        expected = _run_file(runtime, file, port, given.permute(0, 2, 3, 1).contiguous() if last else given)
    except Exception as error:  # what onnxruntime raises is its own
        if type(error).__name__ == "NotImplemented":
            say(f"{file.path.name}: not compared with ONNX Runtime, which lacks an operator: {told(error, 200)}")
            return
        raise FileError(
            "file-network-invalid",
            f"{file.path}: ONNX Runtime does not run it, so what was read cannot be compared: "
            f"{told(first_line(error), 300)}; obtain the file again, or export it in a form that runs",
        ) from None
    found = _answers(network, images.to(_dtype(file)) / 255, file.path, form).double()
    expected = form.standard(expected).double()
    if expected.shape == found.shape and bool((expected.isfinite() == found.isfinite()).all()):
        unit = expected.abs().max().clamp_min(1e-6)
        error_ = float((found - expected).abs().max() / unit)
        allowed = HALF_TOLERANCE if file.half else TOLERANCE
        if allowed < error_ < HALF_TOLERANCE:  # a network may turn the last digits of its numbers into more
            wide = _answers(copy.deepcopy(network).double(), images.double() / 255, file.path, form)
            allowed = max(allowed, 10 * float((found - wide).abs().max() / unit))
        if error_ <= allowed:
            if float((expected[0] - expected[1]).abs().max()) <= TOLERANCE * float(expected.abs().max()):
                say(f"{file.path.name}: its outputs hardly depend on random images, so comparing them shows little")
            return
        how = f"by {error_:.1e} of the largest output; {allowed:.0e} is allowed"
    else:
        how = f"in shape: {tuple(found.shape)} for {tuple(expected.shape)}, or in what is finite"
    raise TraceError(
        "trace-mismatch",
        f"{file.path} as it was read differs from ONNX Runtime on two images, {how}; nothing is cut from it. Give the "
        "network as Python code",
    )


def _only(file: OnnxFile, port: Port) -> bytes:
    """The file with what was read of it alone: nothing else of it is run."""
    graph = file.proto.graph
    kept = [value.SerializeToString() for value in graph.output if value.name == port.name]
    del graph.output[:]
    for content in kept:
        graph.output.add().ParseFromString(content)
    found: bytes = file.proto.SerializeToString()
    return found


def _run_file(runtime: Any, file: OnnxFile, port: Port, images: Tensor) -> Tensor:
    """The output of ONNX Runtime, in the batches that the file takes."""
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = str(file.path) if file.external else _only(file, port)
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    numbers = images.numpy().astype("float16") if file.images.type == 10 else images.numpy()
    fixed = (file.images.shape or (None,))[0]
    batches = [numbers] if fixed is None else [one[None].repeat(fixed, 0) for one in numbers]
    found = [session.run([port.name], {file.images.name: batch})[0] for batch in batches]
    rows = found if fixed is None else [one[:1] for one in found]
    return torch.cat([torch.from_numpy(one.astype("float64")) for one in rows])
