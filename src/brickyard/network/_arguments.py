"""How the functions of the table take their arguments: by position, by name, and by numpy's names for torch's.

This is the only place that knows the order of a function's arguments. Tracing writes every call in one form: what the
function works on by position, everything else as it was given, under torch's name. `argument` reads either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Call(Protocol):
    """A step that calls a function of the table."""

    @property
    def target(self) -> str: ...
    @property
    def args(self) -> tuple[Any, ...]: ...
    @property
    def kwargs(self) -> Mapping[str, Any]: ...


_ALONE = (
    *("sigmoid", "tanh", "relu_", "abs", "square", "sqrt", "exp", "log", "sin", "cos", "rsqrt", "reciprocal", "erf"),
    *("neg", "contiguous", "clone", "detach", "float", "dim", "shape"),
)
_IN_PLACE_FLAG = ("relu", "relu6", "selu", "silu", "mish", "hardswish", "hardsigmoid")
_TWO = ("add", "sub", "mul", "truediv", "iadd", "imul", "floordiv", "mod", "matmul", "maximum", "minimum")
_SCALED = ("tensor_add", "tensor_sub", "add_", "sub_")

# Before the bar: what is worked on, and lists that may also be given as single numbers. After it: settings.
_ORDER = {
    **dict.fromkeys(_ALONE, "input |"),
    **dict.fromkeys(_IN_PLACE_FLAG, "input | inplace"),
    **dict.fromkeys(_TWO, "input other |"),
    **dict.fromkeys(_SCALED, "input other | alpha"),
    **dict.fromkeys(("tensor_mul", "mul_"), "input other |"),
    **dict.fromkeys(("tensor_div", "div_"), "input other | rounding_mode"),
    **dict.fromkeys(("elu", "celu"), "input | alpha inplace"),
    **dict.fromkeys(("dropout", "dropout2d"), "input | p training inplace"),
    **dict.fromkeys(("view", "expand"), "input size |"),
    **dict.fromkeys(("view_as", "reshape_as", "expand_as"), "input other |"),
    **dict.fromkeys(("mean", "sum"), "input | dim keepdim dtype"),
    **dict.fromkeys(("softmax", "log_softmax"), "input | dim _stacklevel dtype"),
    **dict.fromkeys(("cat", "stack"), "tensors | dim"),
    "leaky_relu": "input | negative_slope inplace",
    "gelu": "input | approximate",
    "softplus": "input | beta threshold",
    "hardtanh": "input | min_val max_val inplace",
    "clamp": "input | min max",
    "clamp_min": "input | min",
    "pow": "input exponent |",
    "addcmul": "input tensor1 tensor2 | value",
    "avg_pool1d": "input | kernel_size stride padding ceil_mode count_include_pad",
    **{
        name.format(n): order
        for name, order in (
            ("max_pool{}d", "input | kernel_size stride padding dilation ceil_mode return_indices"),
            ("adaptive_avg_pool{}d", "input | output_size"),
            ("adaptive_max_pool{}d", "input | output_size return_indices"),
        )
        for n in (1, 2, 3)
    },
    **dict.fromkeys(
        ("avg_pool2d", "avg_pool3d"), "input | kernel_size stride padding ceil_mode count_include_pad divisor_override"
    ),
    "interpolate": "input | size scale_factor mode align_corners recompute_scale_factor antialias",
    "getitem": "input index |",
    "flatten": "input | start_dim end_dim",
    "reshape": "input shape |",
    "unflatten": "input dim sizes |",
    "repeat": "input repeats |",
    "permute": "input dims |",
    "transpose": "input dim0 dim1 |",
    "squeeze": "input | dim",
    "unsqueeze": "input dim |",
    "chunk": "input chunks | dim",
    "split": "input split_size | dim",
    "unbind": "input | dim",
    "flip": "input dims |",
    "roll": "input shifts | dims",
    "channel_shuffle": "input groups |",
    "take": "input dim places |",
    "amax": "input | dim keepdim",
    "norm": "input | p dim keepdim dtype",
    "mean_of": "input dim keepdim share |",
    "einsum": "equation operands |",
    "scaled_dot_product_attention": "query key value | attn_mask dropout_p is_causal scale enable_gqa",
    "tensor_softmax": "input | dim dtype",
    "layer_norm": "input | normalized_shape weight bias eps",
    "group_norm": "input | num_groups weight bias eps",
    "normalize": "input | p dim eps",
    **{f"conv{n}d": "input | weight bias stride padding dilation groups" for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": "input | weight bias stride padding output_padding groups dilation" for n in (1, 2, 3)},
    "linear": "input | weight bias",
    "batch_norm": "input | running_mean running_var weight bias training momentum eps",
    "size": "input | dim",
    "pad": "input pad | mode value",
}
OPERANDS = {name: tuple(order.partition("|")[0].split()) for name, order in _ORDER.items()}
ORDER = {name: tuple(order.replace("|", " ").split()) for name, order in _ORDER.items()}

# Other names that torch takes for the same arguments: numpy's, and those of a method or of an older version.
ALIASES = {
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "input",
    "a": "input",
    "x1": "input",
    "x2": "other",
    "self": "input",
    "mat2": "other",
    "axis0": "dim0",
    "axis1": "dim1",
    "split_size_or_sections": "split_size",
    "split_sizes": "split_size",
    "ord": "p",
}


def canonical(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Write the arguments of a call of the table's function `name` in one form.

    Args:
        name: The name in the table.
        args: Arguments by position, as in the user's code.
        kwargs: Arguments by name, as in the user's code.
    """
    order = ORDER[name]
    named = {key if key in order else ALIASES.get(key, key): value for key, value in kwargs.items()}
    if named.get("out", 0) is None:  # torch's own Python functions pass it on
        del named["out"]
    named.pop("_stacklevel", None)
    given = list(args)
    for key in OPERANDS[name][len(given) :]:
        if key not in named:
            break
        given.append(named.pop(key))
    return tuple(given), named


def argument(node: Call, key: str, default: Any = None) -> Any:
    """An argument of a step that calls a function of the table, wherever it stands."""
    place = ORDER[node.target].index(key)
    return node.args[place] if place < len(node.args) else node.kwargs.get(key, default)


def listed(node: Call, key: str) -> Any:
    """An argument that is a list, or single numbers from its place on: `permute(0, 2, 1)`."""
    first = argument(node, key)
    return first if isinstance(first, tuple | list) else node.args[ORDER[node.target].index(key) :]
