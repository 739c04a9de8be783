"""Quantise an exported ONNX file to int8, and measure what that costs and gains.

The layers of the networks get int8 weights, one scale per output channel, and uint8 activations, whose ranges are taken
from calibration images. Preprocessing, feature statistics and scaling stay in float32.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._lazy import package
from brickyard.base._records import Preprocessing
from brickyard.inputs._preprocessing import check_raw
from brickyard.outputs._kinds import Outputs
from brickyard.runtime._profiling import measure_latency
from brickyard.runtime._progress import bar

MOST_IMAGES = 500  # of those given: more change the ranges very little
HELD_BACK = 20  # at least so many, if as many are left to calibrate on
ENOUGH = 0.95  # agreement below this is warned of
RUNS = 51  # of each file, for its latency

LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}  # those with weights
BETWEEN = {"Add", "Clip", "Concat", "MaxPool", "Relu"}  # int8 in, int8 out: converting back between layers takes time
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules that a node comes from


@dataclass(frozen=True)
class Int8Record:
    """What quantising changed, measured against the float32 file.

    Attributes:
        calibration_images: Number of images that set the ranges.
        held_back: Number of other images that the answers were compared on.
        agreement: Share of those that both files answer alike.
        float_bytes: Size of the float32 file.
        float_ms: Its median latency in milliseconds: one image, one thread.
        int8_ms: That of the int8 file, measured in turn with it.
        latency_ratio: `int8_ms / float_ms`.
    """

    calibration_images: int
    held_back: int
    agreement: float
    float_bytes: int
    float_ms: float
    int8_ms: float
    latency_ratio: float

    def __str__(self) -> str:
        agreed = f"{self.agreement:.1%} of {self.held_back} held-back images are answered as in float32"
        times = f"{self.int8_ms:.3g} ms against {self.float_ms:.3g} ms, one image, one thread"
        return (
            f"  int8, calibrated on {self.calibration_images} images: {agreed}\n"
            f"  latency {self.latency_ratio:.2f} of float32's ({times})"
        )


def check_int8() -> None:
    """Check that onnxruntime's quantisation is installed.

    Raises:
        OptionError: It is not.
    """
    package("onnxruntime.quantization", "onnx", "quantising to int8")


def divided(images: Sequence[Tensor], preprocessings: Iterable[Preprocessing]) -> tuple[list[Tensor], list[Tensor]]:
    """Divide images, (1, channels, height, width) each, into those to calibrate on and those held back.

    A fifth is held back, at least 20 of them, but never more than half; the same ones each time.

    Raises:
        DataError: There are fewer than two images, or the model's preprocessing would misread them.
    """
    if len(images) < 2:
        raise DataError(
            "data-too-few",
            f"int8 needs images to calibrate on and others to compare answers on, and got {len(images)}; give 100 or "
            "more of the kind that the model will see",
        )
    for how in preprocessings:
        for one in images:
            check_raw(one, how, "the calibration images")
    count = min(max(len(images) // 5, HELD_BACK), len(images) // 2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    return [images[i] for i in sorted(order[count:])], [images[i] for i in sorted(order[:count])]


# -- the file ----------------------------------------------------------------------------------------------


def inner_nodes(proto: Any, networks: Sequence[str]) -> list[str]:
    """Name the nodes to quantise: layers of the networks, and what lies between such layers.

    Args:
        proto: The ONNX model, with the exporter's notes on modules.
        networks: Names of the modules whose layers to quantise.
    """
    held = {item.name for item in proto.graph.initializer}
    layers = {
        node.name
        for node in proto.graph.node
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in held and _belongs(node, networks)
    }
    after = _reached(proto.graph.node, layers)
    before = _reached(reversed(proto.graph.node), layers, backwards=True)
    between = {node.name for node in proto.graph.node if node.op_type in BETWEEN}
    inner = layers | (between & after & before)
    return [node.name for node in proto.graph.node if node.name in inner]


def _belongs(node: Any, networks: Sequence[str]) -> bool:
    scopes = next((item.value for item in node.metadata_props if item.key == SCOPES), "")
    return any(f"'{name}" in scopes for name in networks)


def _reached(nodes: Iterable[Any], start: set[str], *, backwards: bool = False) -> set[str]:
    """Name the nodes that the values of some lead to, themselves included; `nodes` are in the order of the walk."""
    values: set[str] = set()
    found: set[str] = set()
    for node in nodes:
        entering, leaving = (node.output, node.input) if backwards else (node.input, node.output)
        if node.name in start or values & set(entering):
            found.add(node.name)
            values |= set(leaving) - {""}
    return found


def quantised(proto: Any, nodes: Sequence[str], images: Sequence[Tensor]) -> Any:
    """Quantise an ONNX model by onnxruntime's static quantiser; return another ONNX model.

    Args:
        proto: The model, whose input `images` takes raw images.
        nodes: Names of the nodes to quantise.
        images: Batches to calibrate on, as the model takes them.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            advance()
            return next(feeds, None)

    with tempfile.TemporaryDirectory(prefix="brickyard-") as folder, bar("calibrating", len(images)) as advance:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        add_pre_process_metadata(copy)  # shapes are known and norms are folded: there is nothing left to prepare
        before.write_bytes(copy.SerializeToString())
        feeds = iter([{"images": batch.numpy()} for batch in images])
        quantization.quantize_static(
            before,
            after,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=sorted(LAYERS | BETWEEN),
            nodes_to_quantize=list(nodes),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,  # onnxruntime's kernels for x86 and ARM are fastest with it
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        return onnx.load_model_from_string(after.read_bytes())


# -- measuring ---------------------------------------------------------------------------------------------


def session(content: bytes) -> Any:
    """Open an ONNX file in onnxruntime, on the CPU with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def measured(whole: bytes, small: bytes, calibration: int, held_back: Sequence[Tensor], outputs: Outputs) -> Int8Record:
    """Compare the answers and times of a float32 file and of its int8 file on held-back images."""
    files = {"float": session(whole), "int8": session(small)}
    answers: dict[str, list[Tensor]] = defaultdict(list)
    for name, file in files.items():
        for image in held_back:
            answers[name].append(torch.from_numpy(file.run(["logits"], {"images": image.numpy()})[0]))
    alike = outputs.alike(torch.cat(answers["float"]), torch.cat(answers["int8"]))
    feed = {"images": held_back[0].numpy()}
    calls: dict[str, Callable[[], object]] = {name: partial(file.run, ["logits"], feed) for name, file in files.items()}
    times = {name: one.median_ms for name, one in measure_latency(calls, batch=1, runs=RUNS).items()}
    return Int8Record(
        calibration_images=calibration,
        held_back=len(held_back),
        agreement=float(alike.double().mean()),
        float_bytes=len(whole),
        float_ms=times["float"],
        int8_ms=times["int8"],
        latency_ratio=times["int8"] / times["float"],
    )
