"""ONNX operators that compute: layers, activations, arithmetic, pools and sums, as steps of Brickyard's tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from brickyard.sources._onnx_file import Op
from brickyard.sources._onnx_graph import Reader, Value, constant, volume
from brickyard.sources._onnx_patterns import layer_norm

Given = list[Value | None]
Convert = Callable[[Reader, Op, Given], Value | list[Value]]

_SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}
_LOWEST = -3.4028234663852886e38  # infinity cannot be written to a file


def first(reader: Reader, given: Given) -> Value:
    """What an operator works on."""
    if not given or given[0] is None:
        reader.refuse("has no input", "file-network-invalid")
    return given[0]


def at(given: Given, place: int) -> Value | None:
    """An input that may be left out."""
    return given[place] if place < len(given) else None


# -- layers ------------------------------------------------------------------------------------------------


def _weight(reader: Reader, given: Given, place: int = 1) -> Value:
    value = at(given, place)
    if value is None or not value.constant or not value.worlds[0].is_floating_point():
        reader.refuse("has weights that the graph computes from images, or none; give the network as Python code")
    return value


def windows(reader: Reader, op: Op, x: Value, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and paddings (all starts, then all ends) of a window that runs over an image."""
    count = len(kernel)
    if x.ndim != count + 2:
        reader.refuse(f"has a kernel of {count} sizes for a value of shape {x.shape}", "file-network-invalid")
    strides = list(op.attributes.get("strides") or [1] * count)
    dilations = list(op.attributes.get("dilations") or [1] * count)
    pads = list(op.attributes.get("pads") or [0] * 2 * count)
    auto = op.attributes.get("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * 2 * count
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        sides = zip(x.shape[2:], kernel, strides, dilations, strict=True)
        whole = [max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size) for size, k, s, d in sides]
        less, more = [value // 2 for value in whole], [value - value // 2 for value in whole]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    if not len(strides) == len(dilations) == len(pads) // 2 == count:
        reader.refuse("has strides, dilations or pads of another length than its kernel", "file-network-invalid")
    return strides, dilations, pads


def padded(reader: Reader, x: Value, pads: Sequence[int], value: float = 0.0) -> Value:
    """Pad the last dimensions, each by its start and its end."""
    count = len(pads) // 2
    amounts = [amount for d in reversed(range(count)) for amount in (pads[d], pads[count + d])]
    more = {} if value == 0 else {"value": value}
    return reader.call("pad", x, amounts, **more) if any(amounts) else x


def _conv(reader: Reader, op: Op, given: Given) -> Value:
    x, weight, bias = first(reader, given), _weight(reader, given), at(given, 2)
    out, in_, *kernel = weight.shape
    strides, dilations, pads = windows(reader, op, x, kernel)
    even = pads[: len(kernel)] == pads[len(kernel) :]
    x = x if even else padded(reader, x, pads)
    groups = int(op.attributes.get("group", 1))
    config = {
        "in_channels": in_ * groups,
        "out_channels": out,
        "kernel_size": kernel,
        "stride": strides,
        "padding": pads[: len(kernel)] if even else [0] * len(kernel),
        "dilation": dilations,
        "groups": groups,
        "bias": bias is not None,
        "padding_mode": "zeros",
    }
    return reader.layer(f"Conv{len(kernel)}d", x, config, {"weight": weight, "bias": bias})


def _conv_transpose(reader: Reader, op: Op, given: Given) -> Value:
    x, weight, bias = first(reader, given), _weight(reader, given), at(given, 2)
    in_, out, *kernel = weight.shape
    count, groups = len(kernel), int(op.attributes.get("group", 1))
    extra = list(op.attributes.get("output_padding") or [0] * count)
    auto = op.attributes.get("auto_pad", "NOTSET")
    strides, dilations, pads = windows(reader, op, x, kernel)
    wanted = op.attributes.get("output_shape")
    if wanted or auto.startswith("SAME"):
        sides = zip(x.shape[2:], kernel, strides, dilations, extra, strict=True)
        full = [s * (size - 1) + e + (k - 1) * d + 1 for size, k, s, d, e in sides]
        goal = list(wanted or [size * s for size, s in zip(x.shape[2:], strides, strict=True)])
        over = [have - want for have, want in zip(full, goal[-count:], strict=True)]
        less, more = [value // 2 for value in over], [value - value // 2 for value in over]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    even = pads[:count] == pads[count:] and min(pads) >= 0
    config = {
        "in_channels": in_,
        "out_channels": out * groups,
        "kernel_size": kernel,
        "stride": strides,
        "padding": pads[:count] if even else [0] * count,
        "dilation": dilations,
        "groups": groups,
        "bias": bias is not None,
        "output_padding": extra,
    }
    y = reader.layer(f"ConvTranspose{count}d", x, config, {"weight": weight, "bias": bias})
    return y if even else padded(reader, y, [-amount for amount in pads])


def _linear(reader: Reader, x: Value, weight: Value, bias: Value | None, title: str = "") -> Value:
    out, in_ = weight.shape
    config = {"in_features": in_, "out_features": out, "bias": bias is not None}
    return reader.layer("Linear", x, config, {"weight": weight, "bias": bias}, title)


def _gemm(reader: Reader, op: Op, given: Given) -> Value:
    x, weight, bias = first(reader, given), _weight(reader, given), at(given, 2)
    alpha, beta = (float(op.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    if op.attributes.get("transA"):
        x = reader.call("permute", x, (1, 0))
    matrix = weight.worlds[0] if op.attributes.get("transB") else weight.worlds[0].T
    weight = constant(matrix if alpha == 1 else matrix * alpha, weight.name)
    if bias is None or not bias.constant or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
        y = _linear(reader, x, weight, None)
        return y if bias is None else reader.call("add", y, reader.call("mul", bias, beta))
    vector = bias.worlds[0].reshape(-1) * beta if beta != 1 else bias.worlds[0].reshape(-1)
    return _linear(reader, x, weight, constant(vector.expand(len(matrix)), bias.name))


def _matmul(reader: Reader, op: Op, given: Given) -> Value:
    x, y = first(reader, given), at(given, 1)
    assert y is not None
    for one, other in ((x, y), (y, x)):
        if _is_identity(one) and other.ndim >= 2 and not other.known:
            return other  # as where an export resizes images that have their size already
    if x.known or not y.constant or y.ndim != 2 or x.ndim < 2:
        return reader.call("matmul", x, y)
    matrix = y.worlds[0]
    if not reader.layers and x.ndim == 4:
        return reader.call("matmul", x, y)  # along a side of an image, and no channels
    bias, name = _added(reader, op, len(matrix.T))
    title = bias.name.removesuffix(".bias") if bias is not None and bias.name.endswith(".bias") else ""
    weight = constant(matrix.T, y.name)
    found = _linear(reader, x, weight, bias, "" if y.name.endswith(".weight") else title)
    if name:
        reader.done.add(name)
        reader.values[name] = found
    return found


def _is_identity(value: Value) -> bool:
    matrix = value.worlds[0]
    square = value.constant and value.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    return square and torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype))


def _added(reader: Reader, op: Op, width: int) -> tuple[Value | None, str]:
    """The vector that is added to a product and to nothing else, and the sum's name."""
    product = op.outputs[0]
    after = reader.uses.get(product, [])
    if len(after) != 1 or after[0].kind != "Add" or product in (port.name for port in reader.file.outputs):
        return None, ""
    other = next((name for name in after[0].inputs if name != product), "")
    value = reader.values.get(other)
    if value is None or not value.constant or value.shape != (width,):
        return None, ""
    return value, after[0].outputs[0]


def _batch_norm(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    weight, bias, mean, var = (_weight(reader, given, place) for place in (1, 2, 3, 4))
    if op.attributes.get("training_mode") or op.attributes.get("spatial", 1) == 0:
        reader.refuse("is a batch norm in training, or per position; export the model in evaluation mode")
    config = {
        "num_features": len(weight.worlds[0]),
        "eps": float(op.attributes.get("epsilon", 1e-5)),
        "momentum": 0.1,
        "affine": True,
        "track_running_stats": True,
    }
    own: dict[str, Value | None] = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    return reader.layer(f"BatchNorm{max(1, x.ndim - 2)}d", x, config, own)


def _layer_norm(reader: Reader, op: Op, given: Given) -> Value:
    x, weight, bias = first(reader, given), _weight(reader, given), at(given, 2)
    shape = list(x.shape[int(op.attributes.get("axis", -1)) % x.ndim :])
    if bias is None:
        bias = constant(torch.zeros(shape))
    weight, bias = (constant(v.worlds[0].expand(shape).contiguous(), v.name) for v in (weight, bias))
    config = {"normalized_shape": shape, "eps": float(op.attributes.get("epsilon", 1e-5))}
    own: dict[str, Value | None] = {"weight": weight, "bias": bias}
    return reader.layer("LayerNorm", x, {**config, "elementwise_affine": True, "bias": True}, own)


def _group_norm(reader: Reader, op: Op, given: Given, groups: int = 0) -> Value:
    x, weight, bias = first(reader, given), _weight(reader, given), _weight(reader, given, 2)
    channels = x.shape[1]
    groups = groups or int(op.attributes.get("num_groups", 1))
    weight, bias = (
        constant(v.worlds[0].repeat_interleave(channels // len(v.worlds[0])), v.name) for v in (weight, bias)
    )
    eps = float(op.attributes.get("epsilon", 1e-5))
    config = {"num_groups": groups, "num_channels": channels, "eps": eps, "affine": True}
    return reader.layer("GroupNorm", x, config, {"weight": weight, "bias": bias})


def _instance_norm(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    if x.ndim != 4:
        return _group_norm(reader, op, given, x.shape[1])  # of every channel alone
    weight, bias = _weight(reader, given), _weight(reader, given, 2)
    eps = float(op.attributes.get("epsilon", 1e-5))
    config = {"num_features": x.shape[1], "eps": eps, "momentum": 0.1, "affine": True, "track_running_stats": False}
    return reader.layer("InstanceNorm2d", x, config, {"weight": weight, "bias": bias})


# -- activations and arithmetic ----------------------------------------------------------------------------


def _unary(target: str, **defaults: str) -> Convert:
    """An operator that is one function; `defaults` pairs the function's arguments with attributes."""

    def convert(reader: Reader, op: Op, given: Given) -> Value:
        found = {own: op.attributes[name] for own, name in defaults.items() if name in op.attributes}
        return reader.call(target, first(reader, given), **found)

    return convert


def _leaky_relu(reader: Reader, op: Op, given: Given) -> Value:
    return reader.call("leaky_relu", first(reader, given), float(op.attributes.get("alpha", 0.01)))


def _prelu(reader: Reader, op: Op, given: Given) -> Value:
    x, slope = first(reader, given), _weight(reader, given)
    count = slope.worlds[0].numel()
    dims = (1,) * (x.ndim - slope.ndim) + slope.shape
    if count > 1 and (x.ndim < 2 or dims[1] != count or count != x.shape[1]):
        below = reader.call("mul", reader.call("clamp", x, max=0.0), slope)
        return reader.call("add", reader.call("relu", x), below)
    weight = constant(slope.worlds[0].reshape(-1), slope.name)
    return reader.layer("PReLU", x, {"num_parameters": count}, {"weight": weight})


def _clip(reader: Reader, op: Op, given: Given) -> Value:
    x, limits = first(reader, given), []
    for place, name in ((1, "min"), (2, "max")):
        bound = at(given, place)
        limits.append(op.attributes.get(name) if bound is None else reader.number(bound, f"{name}imum"))
    low, high = (None if v is None or abs(v) > 3e38 else v for v in limits)
    if x.known:
        return reader.compute(torch.clamp, x, low, high) if (low, high) != (None, None) else x
    return _clamped(reader, x, low, high)


def _clamped(reader: Reader, x: Value, low: float | None, high: float | None) -> Value:
    if x.step in reader.scaled and (low or 0) <= 0 and (high is None or high >= 255):
        return x
    if low == 0 and high == 6:
        return reader.call("relu6", x)
    if low == 0 and high is None:
        return reader.call("relu", x)
    return x if low is None and high is None else reader.call("clamp", x, min=low, max=high)


def _selu(reader: Reader, op: Op, given: Given) -> Value:
    x, own = first(reader, given), {name: op.attributes.get(name) for name in ("alpha", "gamma")}
    if all(value is None or abs(value - _SELU[name]) < 1e-6 for name, value in own.items()):
        return reader.call("selu", x)
    alpha, gamma = (float(_SELU[name] if value is None else value) for name, value in own.items())
    return reader.call("mul", reader.call("elu", x, alpha=alpha), gamma)


def _hard_sigmoid(reader: Reader, op: Op, given: Given) -> Value:
    x, alpha, beta = first(reader, given), float(op.attributes.get("alpha", 0.2)), float(op.attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return reader.call("hardsigmoid", x)
    return reader.call("clamp", reader.call("add", reader.call("mul", x, alpha), beta), min=0.0, max=1.0)


def _gelu(reader: Reader, op: Op, given: Given) -> Value:
    return reader.call("gelu", first(reader, given), approximate=op.attributes.get("approximate", "none"))


def _softsign(reader: Reader, op: Op, given: Given) -> Value:
    x = first(reader, given)
    return reader.call("truediv", x, reader.call("add", reader.call("abs", x), 1.0))


def _softmax(target: str) -> Convert:
    def convert(reader: Reader, op: Op, given: Given) -> Value:
        x, old = first(reader, given), reader.file.opset < 13
        dim = int(op.attributes.get("axis", 1 if old else -1)) % x.ndim
        if old and volume(x.shape[dim + 1 :]) > 1:  # over all that follows, as if it were one dimension
            if dim != 1:
                reader.refuse("works on several dimensions at once; export with opset 13 or later")
            flat = reader.call(target, reader.call("flatten", x, 1), dim=1)
            return reader.call("reshape", flat, (-1, *x.shape[1:]))
        return reader.call(target, x, dim=dim)

    return convert


def _binary(target: str) -> Convert:
    def convert(reader: Reader, op: Op, given: Given) -> Value:
        values = [value for value in given if value is not None]
        found = values[0]
        for value in values[1:]:
            found = _two(reader, target, found, value)
        return found

    return convert


def _two(reader: Reader, target: str, a: Value, b: Value) -> Value:
    if a.known and b.known:
        whole = not a.worlds[0].is_floating_point() and not b.worlds[0].is_floating_point()
        if target == "truediv" and whole:
            return reader.compute(partial(torch.div, rounding_mode="trunc"), a, b)
        return reader.compute(_ON_NUMBERS[target], a, b)
    one = next((v for v in (a, b) if v.constant and v.worlds[0].numel() == 1 and v.ndim <= max(a.ndim, b.ndim)), None)
    if one is None:
        return reader.call(target, a, b)
    x, number = (b, float(one.worlds[0])) if one is a else (a, float(one.worlds[0]))
    before = reader.scaled.get(x.step)
    if target in ("mul", "truediv") and one is b and before is not None:
        factor = 1 / number if target == "truediv" else number
        if math.isclose(factor * 255, 1, rel_tol=1e-6):  # of raw images, which are given between 0 and 1 here
            return before
    if target == "add" and number == 0.5 and before is not None:
        found = reader.call(target, a, b)
        reader.raised[found.step] = x
        return found
    if target in ("maximum", "minimum"):
        return _clamped(reader, x, number, None) if target == "maximum" else _clamped(reader, x, None, number)
    if target == "pow" and one is b and number in (2.0, 0.5):
        return reader.call("square" if number == 2 else "sqrt", x)
    same = (target in ("mul", "truediv") and one is b and number == 1) or (target == "add" and number == 0)
    return x if same and one.ndim <= x.ndim else reader.call(target, a, b)


_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: a / b,
    "pow": lambda a, b: a**b,
    "maximum": lambda a, b: torch.maximum(a, b),
    "minimum": lambda a, b: torch.minimum(a, b),
}


# -- pools and sums ----------------------------------------------------------------------------------------


def _pool(reader: Reader, op: Op, given: Given) -> Value:
    """A maximum or an average over windows; padding that torch does not know is a step of its own."""
    x, kernel = first(reader, given), list(op.attributes.get("kernel_shape") or [])
    strides, dilations, pads = windows(reader, op, x, kernel)
    count, largest = len(kernel), op.kind == "MaxPool"
    ceil = bool(op.attributes.get("ceil_mode", 0))
    if largest and op.attributes.get("storage_order", 0):
        reader.refuse("orders its storage by columns, which is not read")
    even = pads[:count] == pads[count:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False))
    padding = pads[:count] if even else [0] * count
    if largest:
        x = x if even else padded(reader, x, pads, _LOWEST)
        kinds = {"stride": strides, "padding": padding, "dilation": dilations, "ceil_mode": ceil}
        return reader.call(f"max_pool{count}d", x, kernel, **kinds)
    if any(d != 1 for d in dilations):
        reader.refuse("averages with dilation, which is not read")
    zeros = bool(op.attributes.get("count_include_pad", 0))
    call = partial(reader.call, f"avg_pool{count}d", kernel_size=kernel, stride=strides, ceil_mode=ceil)
    if even:
        return call(x, padding=padding, count_include_pad=zeros)
    y = call(padded(reader, x, pads))
    if zeros:
        return y
    one = constant(torch.ones((), dtype=reader.dtype))
    ones = reader.compute(torch.Tensor.expand, one, (1, 1, *x.shape[2:]))
    return reader.call("truediv", y, call(padded(reader, ones, pads)))


def _global_pool(kind: str) -> Convert:
    def convert(reader: Reader, op: Op, given: Given) -> Value:
        x = first(reader, given)
        if x.ndim not in (3, 4, 5):
            reader.refuse(f"works on a value of shape {x.shape}, which is not an image", "file-network-invalid")
        return reader.call(f"adaptive_{kind}_pool{x.ndim - 2}d", x, 1)

    return convert


def axes_of(reader: Reader, op: Op, given: Given, ndim: int) -> list[int] | None:
    """The dimensions that an operator names, by an attribute or, later, by an input; None if it names none."""
    value = at(given, 1)
    found = op.attributes.get("axes") if value is None else reader.integers(value, "axes")
    return None if not found else sorted(int(dim) % max(1, ndim) for dim in found)


def _reduce(target: str) -> Convert:
    def convert(reader: Reader, op: Op, given: Given) -> Value:
        x = first(reader, given)
        dims = axes_of(reader, op, given, x.ndim)
        keep = bool(op.attributes.get("keepdims", 1))
        norm = layer_norm(reader, op, x) if dims == [x.ndim - 1] else None
        if norm is not None:
            return norm
        if dims is None:
            if op.attributes.get("noop_with_empty_axes"):
                return x
            dims = list(range(x.ndim))
        if x.known and not x.worlds[0].is_floating_point():
            return reader.compute(_REDUCE_NUMBERS[target], x, dims, keep)
        if target == "amin":
            return reader.call("neg", reader.call("amax", reader.call("neg", x), dims, keep))
        if target == "square_sum":
            return reader.call("sum", reader.call("square", x), dims, keep)
        if target == "log_sum_exp":
            most = reader.call("amax", x, dims, True)
            parts = reader.call("exp", reader.call("sub", x, most))
            found = reader.call("add", reader.call("log", reader.call("sum", parts, dims, True)), most)
            return found if keep else reader.call("sum", found, dims, False)
        if target == "norm":
            return reader.call("sqrt", reader.call("sum", reader.call("square", x), dims, keep))
        return reader.call(target, x, dims, keep)

    return convert


_REDUCE_NUMBERS: dict[str, Callable[..., Any]] = {
    "sum": lambda x, dims, keep: x.sum(dims, keep),
    "amax": lambda x, dims, keep: x.amax(dims, keep),
    "amin": lambda x, dims, keep: x.amin(dims, keep),
    "mean": lambda x, dims, keep: x.double().mean(dims, keep),
}


def _einsum(reader: Reader, op: Op, given: Given) -> Value:
    return reader.call("einsum", str(op.attributes.get("equation", "")).replace(" ", ""), *given)


STEPS: dict[str, Convert] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Softsign": _softsign,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "Selu": _selu,
    "Elu": _unary("elu", alpha="alpha"),
    "Celu": _unary("celu", alpha="alpha"),
    **{
        kind: _unary(target)
        for kind, target in {
            **{name: name.lower() for name in ("Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Mish", "HardSwish")},
            **{name: name.lower() for name in ("Sqrt", "Exp", "Log", "Neg", "Abs", "Reciprocal", "Sin", "Cos")},
        }.items()
    },
    **{
        kind: _binary(target)
        for kind, target in {
            **{"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "truediv", "Pow": "pow"},
            **{"Max": "maximum", "Min": "minimum", "Sum": "add"},
        }.items()
    },
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool("avg"),
    "GlobalMaxPool": _global_pool("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"),
    "ReduceMin": _reduce("amin"),
    "ReduceL2": _reduce("norm"),
    "ReduceLogSumExp": _reduce("log_sum_exp"),
    "ReduceSumSquare": _reduce("square_sum"),
}
