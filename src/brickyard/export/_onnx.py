"""Export components and assemblies as ONNX files, torch programs, and state dicts.

Exported models take raw images, so that the preprocessing need not be repeated by hand, and describe their inputs and
outputs. An ONNX file is run and compared with torch before it is written.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly, check_model
from brickyard.base._boxes import check_no_boxes
from brickyard.base._checks import check_choice, flag, given_path
from brickyard.base._errors import BrickyardWarning, DataError, OptionError, SurgeryError
from brickyard.base._interrupts import Held
from brickyard.base._lazy import package
from brickyard.base._messages import first_line, told
from brickyard.base._options import BoxOptions
from brickyard.base._sides import NAMES, is_picture
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.export._about import describe, description, title
from brickyard.export._int8 import (
    ENOUGH,
    MOST_IMAGES,
    Int8Record,
    check_int8,
    divided,
    inner_nodes,
    measured,
    quantised,
    session,
)
from brickyard.export._onnx_boxes import Form, check_boxes
from brickyard.export._onnx_modules import OUTPUTS, Entry, FromRaw, Shares, program, written
from brickyard.export._onnx_turns import check_at_once, in_turn_proto
from brickyard.inputs._box_data import BoxData
from brickyard.inputs._decoding import read_images
from brickyard.network._network import Network
from brickyard.network._untouched import guarded
from brickyard.outputs._kinds import Outputs
from brickyard.storage._atomic import check_free, write_atomically, write_content

if TYPE_CHECKING:
    from torch.export import ExportedProgram


TOLERANCE = 1e-5  # of the largest logit of a batch
NEAR = 1e-2  # of strangeness, which float32 holds less exactly: it counts small differences in small units
MOST_CHECKED = 100  # real images that the check runs
STATE_KEY = "brickyard-state"  # another key than that of our own files: it is none of them


@dataclass(frozen=True)
class ExportRecord:
    """What was written, and its deviation from torch.

    Attributes:
        path: The file.
        format: "onnx" or "safetensors".
        bytes: File size.
        opset: The ONNX opset version, or None.
        fused: Whether batch norms were folded into the preceding layers.
        images: Number of images checked, or 0 if there was no check.
        error: Maximum difference between the logits of onnxruntime and torch, relative to the largest logit of the
            batch, or None. For an int8 file: that of the float32 file it was made from. For boxes: that of scores and
            of corners, relative to the image's longer side.
        int8: What quantising changed, or None.
    """

    path: Path
    format: str
    bytes: int
    opset: int | None = None
    fused: bool = False
    images: int = 0
    error: float | None = None
    int8: Int8Record | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.format}, {self.bytes:,} bytes"]
        if self.error is not None:
            folded = ", batch norm folded" if self.fused else ""
            kind = "float32 " if self.int8 else ""
            lines.append(f"  opset {self.opset}{folded}; {kind}{self.error:.1e} from torch on {self.images} images")
        if self.int8 is not None:
            lines[0] += f", {self.bytes / self.int8.float_bytes:.2f} of float32's {self.int8.float_bytes:,}"
            lines.append(str(self.int8))
        return "\n".join(lines)


# -- ONNX --------------------------------------------------------------------------------------------------


@guarded
def export_onnx(
    model: Component | Assembly,
    path: str | Path,
    *,
    overwrite: bool = False,
    check_images: Any = None,
    dtype: str = "float32",
    channels: int | None = None,
    int8: bool = False,
    images: Any = None,
    decode: bool = True,
    **boxes: Unpack[BoxOptions],
) -> ExportRecord:
    """Export a component or an assembly as an ONNX file that takes raw images.

    The input is `images`, (batch, channels, height, width), or signals (batch, channels, length) or cubes (batch,
    channels, depth, height, width) where the model takes those, for any batch size; the outputs are `logits` and
    `probabilities`, (batch, classes), with one more at the end for "(none of these)" if the model has a reject
    output, and, where it is known, `strangeness`, (batch,): above 1, an image looks like none of the classes. All
    preprocessing is included: scale, channels, padding or resizing, normalisation. If it sets a size, the file takes
    images of any size; otherwise, images of the source's input size. The file's metadata holds the class names and the
    manifest's contents as JSON (`classes` and `brickyard`).

    Before anything is written, onnxruntime runs the file on random images, and on yours, in batches of one and five.
    Its logits must match those of the model in torch (float32, on the CPU, batch norm not folded): the maximum
    difference in a batch, divided by the batch's largest logit, must be at most 1e-5. Its probabilities must match
    those that the model's kind of outputs derives from the logits, to 1e-5.

    With `int8`, the file that passed is then quantised: input and outputs stay the same, the layers of the networks
    compute with int8 weights (one scale per output channel) and 8-bit activations. A fifth of `images` (at least 20,
    at most half) is not calibrated on; the record's `int8` says on how many of these the answers agree with those of
    the float32 file, and compares the latencies of both. Agreement below 95 % is warned of. An int8 file has no
    `strangeness`, which was measured on values that are not rounded.

    The file of a detector takes one image, (1, channels, height, width), and finds the boxes in it: `boxes`, (n, 4),
    left, top, right and bottom in pixels of the image, `scores`, (n,), and `classes`, (n,), by falling score. `score`,
    `iou` and `most` are as for `detect`. With `decode=False` the file takes any batch, and returns the network's
    `outputs`, (batch, outputs, places). In the check, boxes are compared with those that torch finds: they must agree
    to 1e-4 of the image's longer side, and scores to 1e-4.

    Args:
        model: The component or assembly. Its weights are written as float32, unless `int8` is set.
        path: The file to write.
        overwrite: Replace an existing file.
        check_images: Real images for the check, in any form that `predict` takes, or image data; the first 100 are
            used.
        dtype: "float32": images in [0, 1]; "uint8": in 0..255.
        channels: Channels of the raw images, 1 or 3, if the model converts between them; default: those that the
            network takes.
        int8: Quantise the weights and activations of the networks.
        images: Calibration images for `int8`, in the same forms; the first 500 are used. They must be of the kind that
            the model will see: activations beyond their range are clipped.
        decode: Of a detector: find boxes in the file, instead of returning what the network does.
        boxes: Of a detector: `score`, `iou` and `most`, as for `Component.detect`.

    Raises:
        FileError: The file exists and `overwrite` is false, or cannot be written.
        OptionError: An option cannot be used, images for `int8` are missing, or onnx, onnxscript or onnxruntime is.
        SurgeryError: The model cannot be exported, or the file's outputs differ from the model's. No file is left.
        DataError: The images for the check or the calibration do not match the model, or are too few.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.export._onnx import export_onnx
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = export_onnx(component, f"{folder}/small.onnx", check_images=data[0])
        >>> record.images, record.error < 1e-5
        (15, True)
    """
    check_model(model, "export_onnx")
    path = given_path(path, "the file to write")
    check_free(path, overwrite)  # before any work is done
    for needed in ("onnx", "onnxruntime", "onnxscript"):
        package(needed, "onnx", "writing ONNX")
    form = check_boxes(model, boxes, decode=flag("decode", decode), int8=flag("int8", int8))
    entry = _entry(model, dtype, channels)
    given = [] if check_images is None else _in_fives(_fitting(check_images, entry, MOST_CHECKED, "the check"))
    calibration = _for_int8(model, entry, int8, images)
    found = _float32(model, entry, given, path, bool(model.stranger_limits) and not int8, form=form)
    content, record = found.content, None
    if calibration is not None:
        content, record = _int8(model, entry, found, calibration, path)
    write_content(path, content, overwrite=overwrite)
    return ExportRecord(path, "onnx", len(content), found.opset, found.fused, found.images, found.error, record)


@dataclass(frozen=True)
class _Float32:
    """An ONNX file that passed its check, and the names of the nodes that int8 would change."""

    proto: Any
    content: bytes
    opset: int
    fused: bool
    images: int
    error: float
    nodes: Sequence[str]
    strangers: bool


def onnx_bytes(model: Component | Assembly, path: Path, *, strangers: bool) -> _Float32:
    """A model of coloured bytes as ONNX for a file of another kind, with its strangeness to each part if asked for."""
    return _float32(model, _entry(model, "uint8", 3), [], path, strangers, each=True)


def _float32(
    model: Component | Assembly,
    entry: Entry,
    given: Sequence[Tensor],
    path: Path,
    strangers: bool,
    each: bool = False,
    form: Form | None = None,
) -> _Float32:
    """Make the ONNX file, with strangeness where asked for, and check it on random and given images."""
    plain = _on_cpu(model)

    def said(images: Tensor) -> tuple[Tensor, Tensor | None]:
        if not strangers:
            return plain.logits(images), None
        logits, strange = plain.judged(images)
        return logits, strange if each else strange.amin(1)

    expected: Any
    with torch.inference_mode():
        if form is not None:
            expected = form.expected(plain, form.batches(entry, given))
        else:
            checked = (*entry.batches(), *given)
            expected = [(images, *run_images(said, images, "the images for the check")) for images in checked]
    count = sum(len(images) for images, *_ in expected)
    for fused in (True, False):
        candidate = plain.fused() if fused else plain
        try:
            candidate = candidate.to(memory_format=torch.contiguous_format)
            proto = form.proto(candidate, entry) if form else _proto(candidate, entry, strangers, each)
            nodes = inner_nodes(proto, [f"model.{name}." for name in _networks(candidate)])  # as FromRaw holds them
            describe(proto, model, entry, form.about(model) if form else None)
            content: bytes = proto.SerializeToString(deterministic=True)
        except Exception as refusal:  # what the exporter raises differs by version and by operation
            problem = f"it cannot be written as ONNX: {told(first_line(_cause(refusal)))}"
            continue
        if form is not None:
            error, problem = form.compare(content, expected)
        else:
            error, problem = _compare(content, expected, model.outputs)
        if problem:
            continue
        opset = next(int(item.version) for item in proto.opset_import if item.domain in ("", "ai.onnx"))
        return _Float32(proto, content, opset, fused, count, error, nodes, strangers)
    if strangers:
        found = _float32(model, entry, given, path, strangers=False)
        warnings.warn(f"{path} does not say how strange images are: {problem}", BrickyardWarning, stacklevel=5)
        return found
    raise _refused(model, path, problem)


def _cause(error: BaseException) -> BaseException:
    """What an error came from: the exporter's own says only at which stage it stopped."""
    return error if error.__cause__ is None else _cause(error.__cause__)


def _refused(model: Component | Assembly, path: Path, problem: str) -> SurgeryError:
    advice = "nothing was written. Keep the .safetensors file, or export its state dict"
    return SurgeryError("surgery-export-failed", f"{title(model)} cannot go to {path}: {problem}; {advice}")


# -- int8 --------------------------------------------------------------------------------------------------


def _for_int8(
    model: Component | Assembly, entry: Entry, int8: bool, images: Any
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The images to calibrate on, and those held back; None without int8."""
    if not flag("int8", int8):
        if images is not None:
            raise OptionError("option-requires-option", "calibration images need int8=True; add it, or leave them out")
        return None
    check_at_once(model, "int8 changes what the parts say, and with it what their thresholds are worth")
    check_int8()
    if images is None:
        why = "int8 needs calibration images, from which it takes the ranges of the activations"
        raise OptionError(
            "option-needs-data", f"{why}; give images= (--calibration-data), 100 or more of the kind it will see"
        )
    return divided(_fitting(images, entry, MOST_IMAGES, "the calibration"), model.preprocessings)


def _networks(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Network)]


def _int8(
    model: Component | Assembly,
    entry: Entry,
    found: _Float32,
    calibration: tuple[list[Tensor], list[Tensor]],
    path: Path,
) -> tuple[bytes, Int8Record]:
    """Quantise a file, check that it runs, and compare it with the float32 file on the images held back."""
    images, held_back = calibration
    if not found.nodes:
        raise _refused(model, path, "its networks have no layer that int8 applies to")
    try:
        proto = quantised(found.proto, found.nodes, images)
        describe(proto, model, entry, {"int8": {"calibration_images": len(images)}})
        content: bytes = proto.SerializeToString(deterministic=True)
        record = measured(found.content, content, len(images), held_back, model.outputs)
        ran = session(content)
        for batch in entry.batches():
            ran.run(["logits", "probabilities"], {"images": batch.numpy()})
    except Exception as error:  # what onnxruntime raises is its own
        raise _refused(model, path, f"it cannot be quantised to int8: {first_line(error)}") from error
    if record.agreement < ENOUGH:
        warnings.warn(
            f"the int8 file answers only {record.agreement:.1%} of {record.held_back} held-back images as the float32 "
            f"file does, below {ENOUGH:.0%}: calibrate on more images of the kind it will see, or stay with float32",
            BrickyardWarning,
            stacklevel=3,
        )
    return content, record


# -- what the file takes -----------------------------------------------------------------------------------


def _entry(model: Component | Assembly, dtype: str, channels: int | None) -> Entry:
    check_choice("dtype", dtype, ("float32", "uint8"))
    parts = model.manifest.parts
    fixed = {part.input_shape[0] for part in parts if part.preprocessing.channels is None}
    usual = max(fixed or {part.preprocessing.channels or 3 for part in parts})
    if channels is not None and (channels not in (1, 3) or (fixed and fixed != {channels})):
        free = f"{usual}: it takes its images' channels as they are" if fixed else "1 or 3"
        raise OptionError("option-range", f"channels={channels} cannot be used; {title(model)} takes {free}")
    if dtype == "uint8" and not is_picture(parts[0].input_shape):
        why = f"{title(model)} takes {NAMES[len(parts[0].input_shape) - 1]}, and dtype='uint8' is for pictures"
        raise OptionError("option-conflict", f"{why}; leave it out (--uint8)")
    size = next((part.input_shape[1:] for part in parts if part.preprocessing.size is None), None)
    return Entry(int(channels or usual), size, size or parts[0].preprocessing.size or (), dtype)


def _on_cpu(model: Component | Assembly) -> Component | Assembly:
    """A copy that exporters can read."""
    plain = copy.deepcopy(model).to("cpu", torch.float32).eval()
    for name in _networks(plain):
        plain.set_submodule(name, plain.get_submodule(name).reachable())  # type: ignore[operator]
    return plain


def _fitting(images: Any, entry: Entry, most: int, what: str) -> list[Tensor]:
    """Real images as the file takes them, one by one, (1, channels, height, width)."""
    pictures = images.pictures(range(min(len(images), most))) if isinstance(images, BoxData) else images
    pictures = list(pictures) if pictures is not images else getattr(images, "images", images)
    shape = (entry.channels, *entry.usual)
    singles = [one[None] for batch in read_images(pictures, most, shape) for one in batch][:most]
    for index, one in enumerate(singles):
        start = f"image {index} of those for {what}"
        if one.shape[1] != entry.channels:
            why = f"{start} has {one.shape[1]} channels, and the file would take {entry.channels}"
            advice = f"give such images, or channels={one.shape[1]} (--channels) if the model turns them into its own"
            raise DataError("data-wrong-size", f"{why}; {advice}")
        if entry.size is not None and tuple(one.shape[2:]) != entry.size:
            found, wanted = ("x".join(map(str, size)) for size in (one.shape[2:], entry.size))
            why = f"{start} is {found}, and the file would take {wanted}, as the model's preprocessing sets no size"
            raise DataError("data-wrong-size", f"{why}; give images of that size")
    return [_of_type(one, entry.dtype) for one in singles]


def _in_fives(singles: Sequence[Tensor]) -> list[Tensor]:
    """Batches of images: the first alone, then all in fives of one size."""
    shapes = dict.fromkeys(one.shape for one in singles)
    groups = (torch.cat([one for one in singles if one.shape == shape]) for shape in shapes)
    return [*singles[:1], *(batch for group in groups for batch in group.split(5))]


def _of_type(images: Tensor, dtype: str) -> Tensor:
    if dtype == "uint8":
        return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _proto(model: Component | Assembly, entry: Entry, strangers: bool, each: bool = False) -> Any:
    """The ONNX model."""
    if isinstance(model, Component) or not model.stages:
        return written(program(FromRaw(model, strangers, each), entry), *OUTPUTS[: 2 + strangers])
    example, open_sides = torch.zeros(2, len(model.classes_)), {0: torch.export.Dim("batch")}
    with Held(long=True):
        shares = torch.export.export(Shares(model.outputs), (example,), dynamic_shapes=(open_sides,), strict=False)
    return in_turn_proto(
        model,
        list(map(_on_cpu, model.stages)),
        lambda module, *outputs: written(program(module, entry), *outputs),
        written(shares, "probabilities", given="logits"),
        strangers,
    )


def _compare(
    content: bytes, expected: Iterable[tuple[Tensor, Tensor, Tensor | None]], outputs: Outputs
) -> tuple[float, str]:
    """Run the file; return its largest error, and a description of what is wrong, or ""."""
    try:
        file, largest = session(content), 0.0
        for images, wanted, strange in expected:
            names = list(OUTPUTS[: 2 + (strange is not None)])
            found, shares, *told = map(torch.from_numpy, file.run(names, {"images": images.numpy()}))
            unit = wanted.abs().max().clamp_min(1e-30)
            error = float((found - wanted).abs().max() / unit) if found.shape == wanted.shape else float("inf")
            if not error <= TOLERANCE:
                shape = "x".join(map(str, images.shape))
                why = f"onnxruntime's logits differ from torch's by {error:.1e} of the largest one on images of {shape}"
                return error, f"{why}; {TOLERANCE:.0e} is allowed"
            if not float((shares - outputs.probabilities(found)).abs().max()) <= TOLERANCE:
                return error, "its probabilities are not those of its logits"
            if strange is not None and not torch.allclose(told[0].double(), strange, rtol=NEAR, atol=NEAR):
                return error, "its strangeness is not that of torch"
            largest = max(largest, error)
    except Exception as error:  # what onnxruntime raises is its own
        return float("inf"), f"onnxruntime does not run it: {first_line(error)}"
    return largest, ""


# -- torch -------------------------------------------------------------------------------------------------


@guarded
def torch_program(
    model: Component | Assembly, *, dtype: str = "float32", channels: int | None = None
) -> ExportedProgram:
    """Export to an in-memory `torch.export` program that maps raw images to logits and probabilities.

    It takes the input of the ONNX file of `export_onnx`. It is not written to a file: `torch.export.save` pickles
    example images and constants, and `torch.export.load` unpickles them, which can run arbitrary code. Create the
    program from the `.safetensors` file where it is needed.

    Raises:
        SurgeryError: The model cannot be exported.
        OptionError: An option cannot be used.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.export._onnx import torch_program
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), (images, labels)), task=["1", "3"])
        >>> logits, probabilities = torch_program(component).module()(images)
        >>> torch.allclose(logits, component(images), atol=1e-5)
        True
    """
    check_at_once(model, "a torch program has the same steps for every image")
    check_no_boxes(model, "torch_program", "use export_onnx, or the component as a module")
    entry = _entry(model, dtype, channels)
    try:
        return program(FromRaw(_on_cpu(model)), entry)
    except Exception as error:
        why = f"cannot convert {title(model)} to a torch program: {first_line(error)}"
        raise SurgeryError("surgery-export-failed", f"{why}; use it as a module instead") from error


@guarded
def export_state_dict(model: Component | Assembly, path: str | Path, *, overwrite: bool = False) -> ExportRecord:
    """Export the `state_dict()` of a component or an assembly as a plain safetensors file.

    The metadata entry `brickyard-state` holds classes, preprocessing and sources as JSON. The file has named tensors
    but no network: read it with `model.load_state_dict`, not with `brickyard.load`.

    Raises:
        FileError: The file exists and `overwrite` is false, or cannot be written.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.export._onnx import export_state_dict
        >>> from brickyard.testing import chain
        >>> from safetensors.torch import load_file
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_state_dict(component, f"{folder}/numbers.safetensors").path
        ...     numbers = load_file(path)
        >>> component.load_state_dict(numbers)
        <All keys matched successfully>
    """
    check_model(model, "export_state_dict")
    path = given_path(path, "the file to write")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(model.state_dict().items())}
    metadata = {STATE_KEY: json.dumps(description(model), allow_nan=False)}
    write_atomically(path, lambda place: save_file(state, place, metadata), overwrite=overwrite)
    return ExportRecord(path, "safetensors", path.stat().st_size)
