"""Several ONNX operators that are one layer: a layer norm as exporters before opset 17 write it."""

from __future__ import annotations

import torch
from torch import Tensor

from brickyard.sources._onnx_file import Op
from brickyard.sources._onnx_graph import Reader, Value, constant


def layer_norm(reader: Reader, op: Op, x: Value) -> Value | None:
    """The layer norm that starts with the mean over the last dimension, (x - mean) / sqrt(variance + eps), or None.

    Its operators are marked as done, and its result is that of the last of them.
    """
    if x.known or op.kind != "ReduceMean" or not op.attributes.get("keepdims", 1):
        return None
    minus = _sole(reader, op, "Sub")
    if minus is None or minus.inputs != (op.inputs[0], op.outputs[0]):
        return None
    after = {other.kind: other for other in reader.uses.get(minus.outputs[0], [])}
    square, over = after.get("Pow"), after.get("Div")
    if len(after) != 2 or square is None or over is None or _number(reader, square.inputs[1]) != 2:
        return None
    variance = _sole(reader, square, "ReduceMean")
    plus = None if variance is None else _sole(reader, variance, "Add")
    root = None if plus is None else _sole(reader, plus, "Sqrt")
    if variance is None or plus is None or root is None or over.inputs != (minus.outputs[0], root.outputs[0]):
        return None
    axes = (variance.attributes.get("axes"), *variance.inputs[1:], variance.attributes.get("keepdims", 1))
    eps = next((_number(reader, name) for name in plus.inputs if name != variance.outputs[0]), None)
    if eps is None or axes != (op.attributes.get("axes"), *op.inputs[1:], 1):
        return None
    return _made(reader, x, eps, [minus, square, variance, plus, root, over])


def _made(reader: Reader, x: Value, eps: float, ops: list[Op]) -> Value:
    """The layer, with the weights that its result is multiplied by and the ones that are added, if any."""
    width, last = x.shape[-1], ops[-1]
    own: dict[str, Value | None] = {"weight": constant(torch.ones(width)), "bias": constant(torch.zeros(width))}
    for kind, key in (("Mul", "weight"), ("Add", "bias")):
        after = _sole(reader, last, kind)
        name = "" if after is None else next((n for n in after.inputs if n != last.outputs[0]), "")
        value = _constant(reader, name)
        if after is None or value is None or tuple(value.shape) != (width,):
            break
        own[key], last = constant(value, name), after
        ops.append(after)
    config = {"normalized_shape": [width], "eps": eps, "elementwise_affine": True, "bias": True}
    found = reader.layer("LayerNorm", x, config, own)
    reader.done.update(op.outputs[0] for op in ops)
    reader.values[last.outputs[0]] = found
    return found


def _sole(reader: Reader, op: Op, kind: str) -> Op | None:
    """The one operator that uses a result, if it is of a kind and the result is no output."""
    after = reader.uses.get(op.outputs[0], [])
    shown = any(port.name == op.outputs[0] for port in reader.file.outputs)
    return after[0] if len(after) == 1 and after[0].kind == kind and not shown else None


def _constant(reader: Reader, name: str) -> Tensor | None:
    """A tensor that depends on nothing, where it is known by now or is written as an operator."""
    value = reader.values.get(name)
    if value is not None:
        return value.worlds[0] if value.constant else None
    maker = reader.makers.get(name)
    found = None if maker is None or maker.kind != "Constant" else maker.attributes.get("value")
    return found if isinstance(found, Tensor) else None


def _number(reader: Reader, name: str) -> float | None:
    value = _constant(reader, name)
    return float(value) if value is not None and value.numel() == 1 else None
