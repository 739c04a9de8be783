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
    *("neg", "contiguous", "clone", "detach", "float", "dim", "shape", "numel", "t", "sign", "floor", "ceil", "trunc"),
    *("frac", "log1p", "expm1", "log2", "log10", "exp2", "tan", "atan", "asin", "acos", "sinh", "cosh", "isnan"),
    *("isfinite", "logical_not", "bitwise_not", "zeros_like", "ones_like", "real", "imag", "angle", "softsign"),
    *("logsigmoid", "tanhshrink", "view_as_complex", "view_as_real"),
)
_IN_PLACE_FLAG = ("relu", "relu6", "selu", "silu", "mish", "hardswish", "hardsigmoid")
_TWO = (
    *("add", "sub", "mul", "truediv", "iadd", "imul", "floordiv", "mod", "matmul", "maximum", "minimum", "type_as"),
    *("eq", "ne", "lt", "le", "gt", "ge", "hypot", "atan2", "fmod", "remainder", "logical_and", "logical_or"),
    *("logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor"),
)
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
    **dict.fromkeys(("dropout", "dropout2d", "alpha_dropout"), "input | p training inplace"),
    **dict.fromkeys(("hardshrink", "softshrink"), "input | lambd"),
    "threshold": "input | threshold value inplace",
    "rrelu": "input | lower upper training inplace",
    "to_type": "input dtype |",
    "full_like": "input fill_value |",
    "round": "input | decimals",
    "nan_to_num": "input | nan posinf neginf",
    "clamp_max": "input | max",
    "addcdiv": "input tensor1 tensor2 | value",
    "lerp": "input end weight |",
    "masked_fill": "input mask value |",
    "where": "condition input other |",
    "complex": "real imag |",
    **dict.fromkeys(("view", "expand"), "input size |"),
    **dict.fromkeys(("view_as", "reshape_as", "expand_as"), "input other |"),
    **dict.fromkeys(("mean", "sum"), "input | dim keepdim dtype"),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), "input | dim _stacklevel dtype"),
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
    **{f"lp_pool{n}d": "input norm_type kernel_size | stride ceil_mode" for n in (1, 2, 3)},
    "interpolate": "input | size scale_factor mode align_corners recompute_scale_factor antialias",
    "getitem": "input index |",
    "flatten": "input | start_dim end_dim",
    "reshape": "input shape |",
    "unflatten": "input dim sizes |",
    "repeat": "input repeats |",
    "permute": "input dims |",
    "tile": "input dims |",
    "repeat_interleave": "input repeats | dim output_size",
    "movedim": "input source destination |",
    "tensor_split": "input indices_or_sections | dim",
    "tensor_unfold": "input dimension size step |",
    "rot90": "input k dims |",
    "meshgrid": "tensors indexing |",
    "pixel_shuffle": "input upscale_factor |",
    "pixel_unshuffle": "input downscale_factor |",
    "unfold": "input kernel_size | dilation padding stride",
    "fold": "input output_size kernel_size | dilation padding stride",
    "glu": "input | dim",
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
    **dict.fromkeys(("amax", "amin", "any", "all", "logsumexp", "argmax", "argmin"), "input | dim keepdim"),
    **dict.fromkeys(("max_along", "min_along", "median_along"), "input | dim keepdim"),
    **dict.fromkeys(("std", "var", "var_mean", "std_mean"), "input | dim unbiased keepdim correction"),
    "prod": "input | dim keepdim dtype",
    "kthvalue": "input k | dim keepdim",
    **dict.fromkeys(("cumsum", "cumprod"), "input dim | dtype"),
    **dict.fromkeys(("cummax", "cummin"), "input dim |"),
    **dict.fromkeys(("sort", "argsort"), "input | dim descending stable"),
    "topk": "input k | dim largest sorted",
    **dict.fromkeys(("tril", "triu"), "input | diagonal"),
    **{f"fft_{kind}fft": "input | n dim norm" for kind in ("", "i", "r", "ir")},
    **{f"fft_{kind}fft{n}": "input | s dim norm" for kind in ("", "i", "r", "ir") for n in ("2", "n")},
    **dict.fromkeys(("fft_fftshift", "fft_ifftshift"), "input | dim"),
    "gather": "input dim index | sparse_grad",
    **dict.fromkeys(("scatter", "scatter_add"), "input dim index src | value reduce"),
    "index_select": "input dim index |",
    "grid_sample": "input grid | mode padding_mode align_corners",
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
    "rms_norm": "input | normalized_shape weight eps",
    "instance_norm": "input | running_mean running_var weight bias use_input_stats momentum eps",
    "local_response_norm": "input | size alpha beta k",
    "bilinear": "input1 input2 | weight bias",
    "embedding": "input | weight padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "prelu": "input | weight",
    "cosine_similarity": "input other | dim eps",
    "pairwise_distance": "input other | p eps keepdim",
    "cdist": "input other | p compute_mode",
    "outer": "input vec2 |",
    **dict.fromkeys(("baddbmm", "addmm"), "input batch1 batch2 | beta alpha"),
    "affine_grid": "theta size | align_corners",
    "stft": "input n_fft | hop_length win_length window center pad_mode normalized onesided return_complex",
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu"),
        "input hx params | has_biases num_layers dropout train bidirectional batch_first",
    ),
    **{f"{kind}_cell": "input hx | w_ih w_hh b_ih b_hh" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "new_full": "input size fill_value |",
    "arange": "input start end step dtype |",
    "linspace": "input start end steps dtype |",
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
    "mat1": "batch1",
    "tensor": "input",
    "sections": "indices_or_sections",
    "indices": "indices_or_sections",
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
