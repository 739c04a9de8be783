"""Opens an ONNX file as hostile data: its operators in order, its weights, and what it says of itself.

The `onnx` package parses the protobuf, and nothing else is taken from it: nothing in the file runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brickyard.base._errors import FileError, TraceError
from brickyard.base._lazy import package
from brickyard.base._messages import told
from brickyard.base._sides import BATCHED, BATCHES

MAX_BYTES = 1 << 31  # protobuf's own limit; weights beyond it lie in files beside
MAX_EXTERNAL = 1 << 34  # bytes of weights in files beside
MAX_NODES = 1 << 13
OPSETS = range(7, 24)
DOMAINS = ("", "ai.onnx")

_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
_TYPES = {  # of ONNX's numbers of types, those that are read, and as what
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float32,  # float16: computed with the precision of float32
    11: torch.float64,
}
FLOATS = {1: torch.float32, 10: torch.float32, 11: torch.float64}


@dataclass(frozen=True)
class Op:
    """One operator of the file, with its attributes as plain values."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The operator for a message."""
        return f"{self.kind} {told(self.name or self.outputs[0], 60)!r}"


@dataclass(frozen=True)
class Port:
    """An input or output: its name, the number of its type in ONNX, and its sizes, None where they are open."""

    name: str
    type: int
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "" if self.shape is None else f" ({', '.join('?' if s is None else str(s) for s in self.shape)})"
        return f"{told(self.name, 60)}{sizes}"


@dataclass(frozen=True)
class OnnxFile:
    """What a file holds.

    Attributes:
        path: Where it lies.
        opset: The version of the operators.
        ops: The operators, each after those that it needs.
        weights: Numbers by name.
        images: The one input.
        outputs: The outputs that are floating point.
        metadata: What the file says of itself, by key.
        external: Whether weights lie in files beside it.
        half: Whether weights or values are float16.
        proto: The same as `onnx` has it, with these operators alone.
    """

    path: Path
    opset: int
    ops: tuple[Op, ...]
    weights: Mapping[str, Tensor]
    images: Port
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str]
    external: bool
    half: bool
    proto: Any


def open_onnx(path: Path, known: Collection[str]) -> OnnxFile:
    """Read a file, once it is known that every operator that its outputs need can be.

    Args:
        path: The file.
        known: Names of the operators that can be read.

    Raises:
        FileError: It is missing, damaged, too large, or has operators that are not known.
        TraceError: It is quantised, takes several inputs, or returns nothing that is floating point.
        OptionError: The package `onnx` is not installed.
    """
    proto = _parsed(path)
    opset = _opset(proto, path)
    images, outputs = _input(proto, path), _outputs(proto, path)
    _check_order(proto, path)
    needed = [proto.graph.node[k] for k in _ancestors(proto, [port.name for port in outputs])]
    _check_kinds(needed, known, path)
    reader = _Tensors(path)
    used = {name for node in needed for name in node.input} | {port.name for port in outputs}
    weights = {item.name: reader.read(item) for item in proto.graph.initializer if item.name in used}
    _check_weights(needed, weights, path)
    ops = tuple(
        Op(
            name=node.name,
            kind=node.op_type,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            attributes={item.name: _attribute(item, reader) for item in node.attribute},
        )
        for node in needed
    )
    metadata = {item.key: item.value for item in proto.metadata_props}
    half = reader.half or any(op.kind == "Cast" and op.attributes.get("to") == 10 for op in ops)
    kept = [type(node).FromString(node.SerializeToString()) for node in needed]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    return OnnxFile(path, opset, ops, weights, images, outputs, metadata, bool(reader.files), half, proto)


def _parsed(path: Path) -> Any:
    """The protobuf in a file, without the weights beside it."""
    onnx = package("onnx", "onnx", f"reading {path.name}")
    try:
        if not path.is_file():
            raise FileError("file-missing", f"cannot read {path}: there is no such file; check the path")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise FileError(
                "file-too-large",
                f"{path} has {size:,} bytes, and an ONNX file holds at most {MAX_BYTES:,}; save its weights beside it "
                "(onnx.save with save_as_external_data=True)",
            )
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except (OSError, ValueError) as error:
        raise FileError("file-unreadable", f"cannot read {path}: {told(error)}; check the path") from None
    except FileError:
        raise
    except Exception as error:  # what protobuf raises differs between its versions
        why = f"{path} is not an ONNX file, or is cut off ({type(error).__name__})"
        raise FileError("file-damaged", f"{why}; get a fresh copy") from None
    _check_text(proto, path)
    if not proto.HasField("graph") or not proto.graph.node or not proto.graph.output:
        raise FileError("file-damaged", f"{path} holds no network, or is not an ONNX file; get a fresh copy")
    if len(proto.graph.node) > MAX_NODES:
        raise FileError("file-too-large", f"{path} has {len(proto.graph.node):,} operators; the limit is {MAX_NODES:,}")
    return proto


def weight_files(path: Path) -> set[Path]:
    """The files beside an ONNX file that its weights are in, where they are in its folder.

    Raises:
        FileError: It cannot be read.
    """
    graph = _parsed(path).graph
    tensors = [*graph.initializer, *(item.t for node in graph.node for item in node.attribute if int(item.type) == 4)]
    said = {pair.value for tensor in tensors for pair in tensor.external_data if pair.key == "location"}
    return {place for name in said if (place := path.parent / name).resolve().is_relative_to(path.parent.resolve())}


def _check_text(proto: Any, path: Path) -> None:
    """Refuse names that are no UTF-8, which protobuf gives as bytes or refuses itself, as its version goes."""
    graph = proto.graph
    words = [item.domain for item in proto.opset_import]
    words += [text for item in proto.metadata_props for text in (item.key, item.value)]
    words += [value.name for value in (*graph.input, *graph.output, *graph.initializer)]
    words += [text for item in graph.initializer for pair in item.external_data for text in (pair.key, pair.value)]
    for node in graph.node:
        words += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    odd = next((text for text in words if not isinstance(text, str)), None)
    if odd is not None:
        raise FileError("file-damaged", f"{path} has a name that is not UTF-8, {told(odd, 60)}; get a fresh copy")


def _opset(proto: Any, path: Path) -> int:
    found = max((int(item.version) for item in proto.opset_import if item.domain in DOMAINS), default=0)
    if found not in OPSETS:
        code = "file-newer-version" if found >= OPSETS.stop else "file-unknown-operation"
        raise FileError(
            code,
            f"{path} is written for opset {found}, and opsets {OPSETS.start} to {OPSETS.stop - 1} are read; export it "
            "again with one of them, or convert it with onnx.version_converter",
        )
    return found


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    known = value.type.HasField("tensor_type") and tensor.HasField("shape")
    sizes = (int(side.dim_value) if side.HasField("dim_value") else None for side in tensor.shape.dim)
    shape = tuple(size if size and size > 0 else None for size in sizes)
    return Port(value.name, int(tensor.elem_type), shape if known else None)


def _input(proto: Any, path: Path) -> Port:
    """The one input that takes images."""
    given = {item.name for item in proto.graph.initializer}
    found = [_port(value) for value in proto.graph.input if value.name not in given]
    if len(found) != 1:
        names = ", ".join(map(str, found[:6])) or "none"
        raise TraceError(
            "trace-forward-inputs",
            f"{path} must take one batch of images, and has {len(found)} inputs: {names}; export the classifier alone",
        )
    if found[0].shape is None or len(found[0].shape) not in BATCHED or found[0].type not in (*FLOATS, 2):
        raise TraceError(
            "trace-forward-inputs",
            f"{path} must take {BATCHES}, floating point or uint8, and takes {found[0]} of ONNX type {found[0].type}; "
            "export such a classifier",
        )
    return found[0]


def _outputs(proto: Any, path: Path) -> tuple[Port, ...]:
    """The outputs that may be logits, or lead to them; that called `logits` alone where there is one."""
    every = [_port(value) for value in proto.graph.output]
    found = [port for port in every if port.type in (0, *FLOATS)]
    if not found:
        names = ", ".join(map(str, every[:8]))
        raise TraceError(
            "trace-output", f"{path} must return floating-point logits (batch, classes), and returns {names}"
        )
    return tuple([port for port in found if port.name == "logits"] or found)


# -- its operators ---------------------------------------------------------------------------------------------


def _check_order(proto: Any, path: Path) -> None:
    """Refuse a graph that names a value twice or uses one before it is computed, as one with a cycle does."""
    graph = proto.graph
    known = {"", *(value.name for value in graph.input), *(item.name for item in graph.initializer)}
    later = {name for node in graph.node for name in node.output}
    for node in graph.node:
        if not node.output or not any(node.output):
            raise FileError("file-network-invalid", f"{path}: {node.op_type} {told(node.name, 60)!r} has no output")
        for name in node.input:
            if name not in known:
                why = "before it is computed" if name in later else "which nothing computes"
                raise FileError(
                    "file-network-invalid",
                    f"{path}: {node.op_type} {told(node.name or node.output[0], 60)!r} uses {told(name, 60)!r} {why}; "
                    "the operators must stand in the order in which they run, without a cycle",
                )
        for name in node.output:
            if name and name in known:
                raise FileError("file-network-invalid", f"{path}: two operators write {told(name, 60)!r}")
            known.add(name)
    missing = next((value.name for value in graph.output if value.name not in known), None)
    if missing is not None:
        raise FileError("file-network-invalid", f"{path}: nothing computes its output {told(missing, 60)!r}")


def _ancestors(proto: Any, wanted: Collection[str]) -> list[int]:
    """The places of the operators that some values need, in order."""
    needed, kept = set(wanted), []
    for place in reversed(range(len(proto.graph.node))):
        node = proto.graph.node[place]
        if needed & set(node.output):
            kept.append(place)
            needed.update(node.input)
    return kept[::-1]


def _check_kinds(nodes: list[Any], known: Collection[str], path: Path) -> None:
    """Refuse quantised networks, control flow, and operators that are not known."""
    quantised = [n for n in nodes if n.op_type in _QUANTISED or n.op_type.startswith("QLinear")]
    if quantised:
        raise TraceError(
            "trace-not-floating-point",
            f"{path} is quantised: {len(quantised)} of its operators are of the kind {quantised[0].op_type} "
            f"({told(quantised[0].name, 60)!r}); give the float model that it was made from",
        )
    unknown = [node for node in nodes if node.op_type not in known or node.domain not in DOMAINS]
    if not unknown:
        return
    first = unknown[0]
    kind = first.op_type if first.domain in DOMAINS else f"{first.domain}.{first.op_type}"
    others = Counter(node.op_type for node in unknown[1:] if node.op_type != first.op_type)
    more = f", nor are {len(others)} other kinds: {', '.join(sorted(others)[:6])}" if others else ""
    flow = any(node.op_type in _FLOW for node in unknown)
    advice = (
        "control flow cannot be cut: export it without" if flow else "a newer version of Brickyard may know it; or give"
    )
    end = "" if flow else " the network as Python code"
    raise FileError(
        "file-unknown-operation",
        f"{path}: operator {told(kind, 60)} ({told(first.name or first.output[0], 60)!r}) is not known{told(more)}; "
        f"{advice}{end}",
    )


def _check_weights(nodes: list[Any], weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights of layers that are whole numbers, and numbers that are not finite."""
    for node in nodes:
        for name in node.input[1:] if node.op_type in _WEIGHTED else ():
            if name in weights and not weights[name].is_floating_point():
                raise TraceError(
                    "trace-not-floating-point",
                    f"{path} is quantised: {told(name, 60)!r} of {node.op_type} {told(node.name, 60)!r} holds "
                    f"{str(weights[name].dtype).removeprefix('torch.')}; give the float model that it was made from",
                )
            if name in weights and not bool(torch.isfinite(weights[name]).all()):
                raise FileError("file-not-finite", f"{path}: {told(name, 60)!r} is not finite; get a fresh copy")


# -- its numbers -------------------------------------------------------------------------------------------------


class _Tensors:
    """Reads tensors of a file, and of the files beside it that it names.

    Attributes:
        files: Files beside it that were read.
        half: Whether one of the tensors is float16.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: set[Path] = set()
        self.half = False
        self._bytes = 0

    def read(self, proto: Any) -> Tensor:
        """One tensor.

        Raises:
            FileError: It is of a type that is not read, or does not hold the numbers that its shape tells of.
        """
        name, kind = told(proto.name, 60), int(proto.data_type)
        if kind not in _TYPES:
            raise FileError(
                "file-tensor-mismatch",
                f"{self.path}: tensor {name!r} is of ONNX type {kind}; float16, float32, float64 and whole numbers are "
                "read",
            )
        self.half = self.half or kind == 10
        shape = tuple(int(size) for size in proto.dims)
        if len(shape) > 8 or any(size < 0 for size in shape):
            raise FileError("file-tensor-mismatch", f"{self.path}: tensor {name!r} cannot have the shape {shape}")
        try:
            if int(proto.data_location) == 1:
                value = self._beside(proto, shape, _numpy(kind))
            else:
                value = package("onnx.numpy_helper", "onnx", "reading ONNX").to_array(proto)
            found = torch.from_numpy(np.ascontiguousarray(value).copy()).reshape(shape)
        except FileError:
            raise
        except Exception as error:  # numpy and the package raise what they like for numbers that do not fit
            why = f"{self.path}: tensor {name!r} cannot be read: {told(error)}"
            raise FileError("file-damaged", f"{why}; get a fresh copy") from None
        return found.to(_TYPES[kind])

    def _beside(self, proto: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """A tensor that lies in a file beside the model: in its folder, and nowhere else."""
        said = {item.key: item.value for item in proto.external_data}
        location = said.get("location", "")
        folder = self.path.resolve().parent
        place = (folder / location).resolve()
        name = told(proto.name, 60)
        if not location or Path(location).is_absolute() or not place.is_relative_to(folder) or not place.is_file():
            raise FileError(
                "file-missing" if place.is_relative_to(folder) else "file-path-invalid",
                f"{self.path}: tensor {name!r} lies in {told(location, 80)!r}, and must lie in a file in the folder of "
                "the model; put the file of weights beside it",
            )
        start, length = int(said.get("offset", 0)), math.prod(shape) * dtype.itemsize
        size, told_of = place.stat().st_size, int(said.get("length", length))
        if start < 0 or told_of != length or start + length > size:
            raise FileError(
                "file-damaged",
                f"{self.path}: tensor {name!r} needs {length:,} bytes from {start:,} of {told(location, 80)!r}, which "
                f"has {size:,}; get a fresh copy of both files",
            )
        self._bytes += length
        if self._bytes > MAX_EXTERNAL:
            raise FileError(
                "file-too-large", f"{self.path}: its weights take more than {MAX_EXTERNAL:,} bytes, which is the limit"
            )
        self.files.add(place)
        with place.open("rb") as file:
            file.seek(start)
            return np.frombuffer(file.read(length), dtype=dtype).reshape(shape)


def _numpy(kind: int) -> Any:
    """The type of ONNX's number for numpy, as bytes lie in files: the lowest first."""
    names = {1: "<f4", 2: "u1", 3: "i1", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
    return np.dtype(names[kind])


def _attribute(item: Any, reader: _Tensors) -> Any:
    """An attribute as a plain value; graphs, which only control flow has, are left out."""
    kinds: dict[int, Any] = {
        1: lambda: float(item.f),
        2: lambda: int(item.i),
        3: lambda: item.s.decode("utf-8", "replace"),
        4: lambda: reader.read(item.t),
        6: lambda: [float(value) for value in item.floats],
        7: lambda: [int(value) for value in item.ints],
        8: lambda: [value.decode("utf-8", "replace") for value in item.strings],
    }
    read = kinds.get(int(item.type))
    return None if read is None else read()


def users(ops: tuple[Op, ...]) -> dict[str, list[Op]]:
    """The operators that use each value."""
    found: dict[str, list[Op]] = {}
    for op in ops:
        for name in op.inputs:
            found.setdefault(name, []).append(op)
    return found
