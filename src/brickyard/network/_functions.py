"""The table of functions that a network may call between its layers, and what each does to channels.

A function outside the table pins the channels it touches, and cannot be written to a file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from brickyard.network._torch_private import PAD

MAX_DIMS = 64
MAX_NUMBER = 1 << 63
_SIZES = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)

FunctionRole = Literal["pointwise", "binary", "spatial", "move", "reduce", "attend", "pad", "pin", "number"]


@dataclass(frozen=True)
class Function:
    """One allowed function.

    Attributes:
        name: The name in files.
        call: The function to run.
        role: What it does to channels: as for layers, or binary (joins two values element by element), reduce (sums
            or averages some dimensions), attend (sums products of activations), pad, number (returns sizes or other
            plain numbers, no tensor).
        same: Equivalent callables that take the same arguments.
        methods: Names of equivalent tensor methods that take the same arguments.
        python: How Python writes it, by the names of its arguments, where it is neither a function of torch nor a
            method of tensors: "{input} + {other}".
    """

    name: str
    call: Callable[..., Any]
    role: FunctionRole
    same: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    python: str = ""

    @property
    def in_place(self) -> bool:
        """Whether it overwrites what it is given."""
        return self.name.endswith("_") or self.name in ("iadd", "imul")


def _shape(x: torch.Tensor) -> torch.Size:
    return x.shape


def _take(x: torch.Tensor, dim: int, places: Sequence[int]) -> torch.Tensor:
    """Take the entries at some positions along a dimension, in that order."""
    if places and (min(places) < 0 or max(places) >= x.shape[dim]):
        raise IndexError(f"places {list(places)[:4]}... do not lie in a dimension of size {x.shape[dim]}")
    return x.index_select(dim, torch.tensor(list(places), dtype=torch.int64, device=x.device))


def _mean_of(x: torch.Tensor, dim: int | tuple[int, ...] | None, keepdim: bool, share: float) -> torch.Tensor:
    """Average over numbers of which only a share is in `x`; the others are zero."""
    return x.mean(dim, keepdim) * share


def _guarded(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Limit an operator to tensors and sizes: Python's own also repeats lists, formats strings and makes huge numbers.

    Lists of sizes may be joined.
    """

    def run(a: Any, b: Any) -> Any:
        if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
            return call(a, b)
        if call is operator.add and isinstance(a, tuple | list) and isinstance(b, tuple | list):
            if len(a) + len(b) > MAX_DIMS:
                raise ValueError(f"a shape of {len(a) + len(b)} dimensions")
            return call(a, b)
        for value in (a, b):
            if not isinstance(value, _SIZES):
                raise TypeError(f"{call.__name__} of a {type(value).__name__}")
        if call is operator.pow and isinstance(b, int) and abs(b) > 64:
            raise ValueError(f"a size to the power of {b}")
        result = call(a, b)
        if isinstance(result, int) and abs(result) >= MAX_NUMBER:
            raise ValueError("a size is too large")
        return result

    return run


def _operator(name: str, call: Callable[[Any, Any], Any], role: FunctionRole, sign: str) -> Function:
    return Function(name, _guarded(call), role, (call,), python=f"{{input}} {sign} {{other}}")


def _method(name: str, role: FunctionRole, *same: Callable[..., Any]) -> Function:
    return Function(name, getattr(torch.Tensor, name), role, same, (name,))


def _functional(name: str, role: FunctionRole, *same: Callable[..., Any]) -> Function:
    return Function(name, getattr(F, name), role, same)


_ACTIVATIONS = (
    *("relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "softplus"),
    *("hardswish", "hardsigmoid", "hardtanh", "dropout", "dropout2d"),
)
_POINTWISE = (
    Function("relu", F.relu, "pointwise", (torch.relu,), ("relu",)),
    Function("sigmoid", torch.sigmoid, "pointwise", (F.sigmoid, torch.special.expit), ("sigmoid",)),
    Function("tanh", torch.tanh, "pointwise", (F.tanh,), ("tanh",)),
    *(_functional(name, "pointwise") for name in _ACTIVATIONS),
    _method("relu_", "pointwise", torch.relu_, F.relu_),
    _method("clamp", "pointwise", torch.clamp),
    _method("clamp_min", "pointwise", torch.clamp_min),
    _method("abs", "pointwise", torch.abs),
    _method("square", "pointwise", torch.square),
    _method("sqrt", "pointwise", torch.sqrt),
    _method("exp", "pointwise", torch.exp),
    _method("log", "pointwise", torch.log),
    _method("sin", "pointwise", torch.sin),
    _method("cos", "pointwise", torch.cos),
    _method("rsqrt", "pointwise", torch.rsqrt),
    _method("reciprocal", "pointwise", torch.reciprocal),
    _method("erf", "pointwise", torch.erf),
    Function("pow", _guarded(operator.pow), "pointwise", (operator.pow, torch.pow), ("pow",), "{input} ** {exponent}"),
    _method("neg", "pointwise", torch.neg, operator.neg),
    _method("contiguous", "pointwise"),
    _method("clone", "pointwise", torch.clone),
    _method("detach", "pointwise"),
    _method("float", "pointwise"),
)

_BINARY = (
    _operator("add", operator.add, "binary", "+"),
    _operator("sub", operator.sub, "binary", "-"),
    _operator("mul", operator.mul, "binary", "*"),
    _operator("truediv", operator.truediv, "binary", "/"),
    _operator("iadd", operator.iadd, "binary", "+="),
    _operator("imul", operator.imul, "binary", "*="),
    Function("tensor_add", torch.add, "binary", (), ("add",)),
    Function("tensor_mul", torch.mul, "binary", (torch.multiply,), ("mul", "multiply")),
    Function("tensor_sub", torch.sub, "binary", (torch.subtract,), ("sub",)),
    Function("tensor_div", torch.div, "binary", (torch.true_divide,), ("div",)),
    _method("add_", "binary"),
    _method("mul_", "binary"),
    _method("sub_", "binary"),
    _method("div_", "binary"),
    _method("addcmul", "binary", torch.addcmul),
    _method("maximum", "binary", torch.maximum),
    _method("minimum", "binary", torch.minimum),
)

_POOLS = tuple(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3))
_SPATIAL = tuple(_functional(name, "spatial") for name in (*_POOLS, "interpolate"))

_TAKE = "{input}.index_select({dim}, torch.tensor({places}, dtype=torch.int64, device={input}.device))"
_MOVE = (
    Function("getitem", operator.getitem, "move", python="{input}[{index}]"),
    Function("cat", torch.cat, "move", (torch.concat, torch.concatenate)),
    Function("stack", torch.stack, "move"),
    _method("flatten", "move", torch.flatten),
    _method("reshape", "move", torch.reshape),
    _method("view", "move"),
    _method("unflatten", "move", torch.unflatten),
    _method("reshape_as", "move"),
    _method("view_as", "move"),
    _method("repeat", "move"),
    _method("permute", "move", torch.permute),
    _method("transpose", "move", torch.transpose, torch.swapaxes, torch.swapdims),
    _method("squeeze", "move", torch.squeeze),
    _method("unsqueeze", "move", torch.unsqueeze),
    _method("chunk", "move", torch.chunk),
    _method("split", "move", torch.split),
    _method("unbind", "move", torch.unbind),
    _method("expand", "move"),
    _method("expand_as", "move"),
    _method("flip", "move", torch.flip),
    _method("roll", "move", torch.roll),
    _functional("channel_shuffle", "move", torch.channel_shuffle),
    Function("take", _take, "move", python=_TAKE),
)

_REDUCE = (
    _method("mean", "reduce", torch.mean),
    _method("sum", "reduce", torch.sum),
    _method("amax", "reduce", torch.amax),
    _method("norm", "reduce", torch.norm),
    Function("mean_of", _mean_of, "reduce", python="{input}.mean({dim}, {keepdim}) * {share}"),
)

_ATTEND = (
    _method("matmul", "attend", torch.matmul, operator.matmul, torch.bmm),
    Function("einsum", torch.einsum, "attend"),
    _functional("scaled_dot_product_attention", "attend"),
)

_PIN = (
    Function("softmax", F.softmax, "pin"),
    Function("tensor_softmax", torch.softmax, "pin", (), ("softmax",)),
    _functional("log_softmax", "pin"),
    _functional("layer_norm", "pin"),
    _functional("group_norm", "pin"),
    _functional("normalize", "pin"),
    *(_functional(name, "pin") for name in ("conv1d", "conv2d", "conv3d")),
    *(_functional(f"conv_transpose{n}d", "pin") for n in (1, 2, 3)),
    _functional("linear", "pin"),
    _functional("batch_norm", "pin"),
)

_NUMBER = (
    _method("size", "number"),
    _method("dim", "number"),
    Function("shape", _shape, "number", python="{input}.shape"),
    _operator("floordiv", operator.floordiv, "number", "//"),
    _operator("mod", operator.mod, "number", "%"),
)

FUNCTIONS: dict[str, Function] = {
    entry.name: entry
    for entry in (
        *_POINTWISE,
        *_BINARY,
        *_SPATIAL,
        *_MOVE,
        *_REDUCE,
        *_ATTEND,
        *_PIN,
        *_NUMBER,
        _functional("pad", "pad", PAD),
    )
}

_BY_CALLABLE = {call: entry.name for entry in FUNCTIONS.values() for call in (entry.call, *entry.same)}
_BY_CALLABLE |= {getattr(torch.Tensor, name): entry.name for entry in FUNCTIONS.values() for name in entry.methods}
_BY_METHOD = {method: entry.name for entry in FUNCTIONS.values() for method in entry.methods}


def function_name(call: Callable[..., Any]) -> str | None:
    """The table's name for a function found in a model, or None."""
    try:
        return _BY_CALLABLE.get(call)
    except TypeError:  # not hashable
        return None


def method_name(method: str) -> str | None:
    """The table's name for a tensor method found in a model, or None."""
    return _BY_METHOD.get(method)
