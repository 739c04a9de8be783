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

FunctionRole = Literal[
    "pointwise",
    "binary",
    "spatial",
    "move",
    "regroup",
    "halve",
    "reduce",
    "along",
    "places",
    "sample",
    "attend",
    "pad",
    "made",
    "pin",
    "number",
]


@dataclass(frozen=True)
class Function:
    """One allowed function.

    Attributes:
        name: The name in files.
        call: The function to run.
        role: What it does to channels: as for layers, or binary (joins values element by element), halve (joins two
            halves of a dimension), reduce (makes one number of those
            along some dimensions), along (mixes numbers along some dimensions, which stay), places (takes or puts
            numbers along a dimension where another value says), sample (reads maps where a grid says), attend (sums
            products of activations), pad, made (makes a value from sizes), number (returns sizes or other plain
            numbers, no tensor).
        same: Equivalent callables that take the same arguments.
        methods: Names of equivalent tensor methods that take the same arguments.
        python: How Python writes it where it is neither a function of torch nor a method of tensors: by the names of
            its arguments, as in "{input} + {other}", or the name of a function that takes the same arguments.
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


def _neg(x: Any) -> Any:
    """Minus a tensor, or a size."""
    return torch.neg(x) if isinstance(x, torch.Tensor) else -x


def _arange(x: torch.Tensor, start: Any, end: Any, step: Any, dtype: torch.dtype) -> torch.Tensor:
    """Numbers one step apart, on the device of a value."""
    return torch.arange(start, end, step, dtype=dtype, device=x.device)


def _linspace(x: torch.Tensor, start: Any, end: Any, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """Evenly spaced numbers, on the device of a value."""
    return torch.linspace(start, end, steps, dtype=dtype, device=x.device)


def _to_type(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.to(dtype)


def _meshgrid(tensors: Sequence[torch.Tensor], indexing: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.meshgrid(*tensors, indexing=indexing))


def _plain_tuple(call: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that returns named values, with a plain tuple of them."""

    def run(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return tuple(call(*args, **kwargs))

    return run


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


def _method(name: str, role: FunctionRole, *same: Callable[..., Any], also: tuple[str, ...] = ()) -> Function:
    return Function(name, getattr(torch.Tensor, name), role, same, (name, *also))


def _compared(name: str, sign: str) -> Function:
    call = getattr(operator, name)
    more = (call, getattr(torch, name))
    return Function(name, _guarded(call), "binary", more, (name,), f"{{input}} {sign} {{other}}")


def _methods(role: FunctionRole, *names: str) -> tuple[Function, ...]:
    """Methods that torch has as functions of the same name too."""
    return tuple(_method(name, role, getattr(torch, name)) for name in names)


def _several(role: FunctionRole, call: Callable[..., Any], name: str = "") -> Function:
    """A function of torch that returns several values."""
    of_torch = call.__name__
    method = (of_torch,) if not name and hasattr(torch.Tensor, of_torch) else ()
    return Function(name or of_torch, _plain_tuple(call), role, () if name else (call,), method, f"torch.{of_torch}")


def _functional(name: str, role: FunctionRole, *same: Callable[..., Any]) -> Function:
    return Function(name, getattr(F, name), role, same)


_ACTIVATIONS = (
    *("relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "softplus", "softsign", "logsigmoid"),
    *("hardswish", "hardsigmoid", "hardtanh", "hardshrink", "softshrink", "tanhshrink", "threshold", "rrelu"),
    *("dropout", "dropout2d", "alpha_dropout"),
)
_POINTWISE = (
    Function("relu", F.relu, "pointwise", (torch.relu,), ("relu",)),
    Function("sigmoid", torch.sigmoid, "pointwise", (F.sigmoid, torch.special.expit), ("sigmoid",)),
    Function("tanh", torch.tanh, "pointwise", (F.tanh,), ("tanh",)),
    *(_functional(name, "pointwise") for name in _ACTIVATIONS),
    _method("relu_", "pointwise", torch.relu_, F.relu_),
    _method("clamp", "pointwise", torch.clamp, torch.clip, also=("clip",)),
    _method("abs", "pointwise", torch.abs, torch.absolute, operator.abs, also=("absolute",)),
    *_methods(
        "pointwise", "clamp_min", "clamp_max", "square", "sqrt", "exp", "log", "sin", "cos", "rsqrt", "reciprocal"
    ),
    *_methods("pointwise", "erf", "sign", "floor", "ceil", "round", "trunc", "frac", "log1p", "expm1", "log2", "log10"),
    *_methods("pointwise", "exp2", "tan", "atan", "asin", "acos", "sinh", "cosh", "nan_to_num", "isnan", "isfinite"),
    Function("pow", _guarded(operator.pow), "pointwise", (operator.pow, torch.pow), ("pow",), "{input} ** {exponent}"),
    Function("neg", _neg, "pointwise", (operator.neg, torch.neg, torch.negative), ("neg", "negative"), "-{input}"),
    _method("logical_not", "pointwise", torch.logical_not),
    _method("bitwise_not", "pointwise", torch.bitwise_not, operator.invert),
    *(Function(name, getattr(torch, name), "pointwise") for name in ("zeros_like", "ones_like", "full_like")),
    *(Function(name, getattr(torch, name), "pointwise") for name in ("real", "imag", "angle")),
    _method("contiguous", "pointwise"),
    _method("clone", "pointwise", torch.clone),
    _method("detach", "pointwise"),
    _method("float", "pointwise"),
    Function("to_type", _to_type, "pointwise", python="{input}.to({dtype})"),
    _method("type_as", "pointwise"),
)

_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
_BINARY = (
    _operator("add", operator.add, "binary", "+"),
    _operator("sub", operator.sub, "binary", "-"),
    _operator("mul", operator.mul, "binary", "*"),
    _operator("truediv", operator.truediv, "binary", "/"),
    _operator("iadd", operator.iadd, "binary", "+="),
    _operator("imul", operator.imul, "binary", "*="),
    Function("tensor_add", torch.add, "binary", (), ("add",)),
    Function("tensor_mul", torch.mul, "binary", (torch.multiply,), ("mul", "multiply")),
    Function("tensor_sub", torch.sub, "binary", (torch.subtract,), ("sub", "subtract")),
    Function("tensor_div", torch.div, "binary", (torch.true_divide, torch.divide), ("div", "true_divide", "divide")),
    _method("add_", "binary"),
    _method("mul_", "binary"),
    _method("sub_", "binary"),
    _method("div_", "binary"),
    _method("maximum", "binary", torch.maximum),
    _method("minimum", "binary", torch.minimum),
    *(_compared(name, sign) for name, sign in zip(_COMPARED, ("==", "!=", "<", "<=", ">", ">="), strict=True)),
    *_methods("binary", "addcmul", "addcdiv", "lerp", "hypot", "atan2", "fmod", "remainder", "masked_fill"),
    *_methods("binary", "logical_and", "logical_or", "logical_xor"),
    _method("bitwise_and", "binary", torch.bitwise_and, operator.and_),
    _method("bitwise_or", "binary", torch.bitwise_or, operator.or_),
    _method("bitwise_xor", "binary", torch.bitwise_xor, operator.xor),
    Function("where", torch.where, "binary"),
    Function("complex", torch.complex, "binary"),
)

_POOLS = tuple(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3))
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
    _method("tile", "move", torch.tile),
    _method("repeat_interleave", "move", torch.repeat_interleave),
    _method("permute", "move", torch.permute),
    _method("transpose", "move", torch.transpose, torch.swapaxes, torch.swapdims, also=("swapaxes", "swapdims")),
    _method("movedim", "move", torch.movedim, torch.moveaxis, also=("moveaxis",)),
    _method("t", "move", torch.t),
    _method("squeeze", "move", torch.squeeze),
    _method("unsqueeze", "move", torch.unsqueeze),
    _method("chunk", "move", torch.chunk),
    _method("split", "move", torch.split),
    _method("tensor_split", "move", torch.tensor_split),
    _method("unbind", "move", torch.unbind),
    Function("tensor_unfold", torch.Tensor.unfold, "move", (), ("unfold",)),
    _method("expand", "move", torch.broadcast_to, also=("broadcast_to",)),
    _method("expand_as", "move"),
    _method("flip", "move", torch.flip),
    _method("roll", "move", torch.roll),
    _method("rot90", "move", torch.rot90),
    _functional("channel_shuffle", "move", torch.channel_shuffle),
    Function("meshgrid", _meshgrid, "move", python="torch.meshgrid(*{tensors}, indexing={indexing})"),
    Function("take", _take, "move", python=_TAKE),
)

_REGROUP = tuple(_functional(name, "regroup") for name in ("pixel_shuffle", "pixel_unshuffle", "unfold", "fold"))

_REDUCE = (
    _method("mean", "reduce", torch.mean),
    _method("sum", "reduce", torch.sum),
    _method("norm", "reduce", torch.norm, torch.linalg.vector_norm),
    *_methods("reduce", "amax", "amin", "prod", "any", "all", "std", "var", "logsumexp", "argmax", "argmin"),
    *(_several("reduce", getattr(torch, name), f"{name}_along") for name in ("max", "min", "median")),
    *(_several("reduce", call) for call in (torch.var_mean, torch.std_mean, torch.kthvalue)),
    Function("mean_of", _mean_of, "reduce", python="{input}.mean({dim}, {keepdim}) * {share}"),
)

_TRANSFORMS = ("fft", "ifft", "rfft", "irfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn")
_ALONG = (
    *_methods("along", "cumsum", "cumprod", "argsort", "tril", "triu"),
    *(_several("along", call) for call in (torch.sort, torch.topk, torch.cummax, torch.cummin)),
    *(
        Function(f"fft_{name}", getattr(torch.fft, name), "along", python=f"torch.fft.{name}")
        for name in (*_TRANSFORMS, "fftshift", "ifftshift")
    ),
)
_PLACES = tuple(_methods("places", "gather", "scatter", "scatter_add", "index_select"))

_ATTEND = (
    _method("matmul", "attend", torch.matmul, operator.matmul, torch.bmm, torch.mm, also=("bmm", "mm")),
    Function("einsum", torch.einsum, "attend"),
    _functional("scaled_dot_product_attention", "attend"),
)

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
_PIN = (
    Function("softmax", F.softmax, "pin"),
    Function("tensor_softmax", torch.softmax, "pin", (), ("softmax",)),
    *(_functional(name, "pin") for name in ("log_softmax", "softmin", "normalize")),
    *(_functional(name, "pin") for name in ("layer_norm", "group_norm", "rms_norm", "instance_norm")),
    _functional("local_response_norm", "pin"),
    *(_functional(name, "pin") for name in ("conv1d", "conv2d", "conv3d")),
    *(_functional(f"conv_transpose{n}d", "pin") for n in (1, 2, 3)),
    *(_functional(name, "pin") for name in ("linear", "bilinear", "embedding", "prelu")),
    _functional("batch_norm", "pin"),
    _functional("cosine_similarity", "pin"),
    _functional("pairwise_distance", "pin"),
    Function("cdist", torch.cdist, "pin"),
    _method("outer", "pin", torch.outer, also=("ger",)),
    _method("baddbmm", "pin", torch.baddbmm),
    _method("addmm", "pin", torch.addmm),
    _functional("affine_grid", "pin"),
    _method("stft", "pin", torch.stft),
    Function("view_as_complex", torch.view_as_complex, "pin"),
    Function("view_as_real", torch.view_as_real, "pin"),
    *(Function(name, getattr(torch, name), "pin") for name in _RECURRENT),
)

_MADE = (
    Function("new_full", torch.Tensor.new_full, "made"),
    Function(
        "arange",
        _arange,
        "made",
        python="torch.arange({start}, {end}, {step}, dtype={dtype}, device={input}.device)",
    ),
    Function(
        "linspace",
        _linspace,
        "made",
        python="torch.linspace({start}, {end}, {steps}, dtype={dtype}, device={input}.device)",
    ),
)

_NUMBER = (
    _method("size", "number"),
    _method("dim", "number", also=("ndimension",)),
    _method("numel", "number", torch.numel, also=("nelement",)),
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
        *_REGROUP,
        *_REDUCE,
        *_ALONG,
        *_PLACES,
        *_ATTEND,
        *_PIN,
        *_MADE,
        *_NUMBER,
        _functional("glu", "halve"),
        _functional("grid_sample", "sample"),
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
