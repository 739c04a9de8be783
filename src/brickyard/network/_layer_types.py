"""The table of layer types: for each, what it does to channels, its constructor arguments and its tensors.

To add a layer type, add one `LayerType` to `LAYER_TYPES`. A module whose exact class is not in the table is never
guessed at: it runs unchanged, its channels are pinned, and it cannot be written to a file.

Nothing here depends on graphs, classes or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from brickyard.base._errors import FileError, SurgeryError
from brickyard.base._messages import told
from brickyard.network._mixing import Config, Convolution, Dims, Linear, Mixing, Transposed

Role = Literal["mix", "follow", "pointwise", "spatial", "move", "regroup", "halve", "normalise"]
"""What a layer does to channels.

mix: reads one channel axis and writes another (convolution, linear).
follow: holds numbers of its own for every channel or group of channels (batch norm, depthwise convolution, PReLU).
pointwise: treats every number alike (activations, dropout).
spatial: works within each channel (pooling, upsampling).
move: only moves numbers to other places (flatten).
regroup: moves numbers between the channels and the positions of a map (pixel shuffle, unfolding into patches).
halve: joins the two halves of a dimension (gated linear unit).
normalise: mixes the numbers along some dimensions (layer norm, softmax), whose channels then stay whole.
"""

WORDS = frozenset({"padding", "padding_mode", "mode", "approximate"})
MAX_WORD = 32
MAX_LIST = 64


@dataclass(frozen=True, kw_only=True)
class LayerType:
    """The entry of one layer type.

    Attributes:
        cls: The module class; subclasses do not count.
        role: What it does to channels; `layer_role` refines it for a given module.
        config: Constructor arguments, each read from the attribute of the same name.
        dims: For each tensor with channels, what its leading dimensions index.
        resize: `(config, out, in)` -> config with that many output and input channels.
        mixing: For a layer that mixes channels, the class that answers everything else, including its `dims`.
    """

    cls: type[nn.Module]
    role: Role
    config: tuple[str, ...] = ()
    dims: Dims = field(default_factory=dict)
    resize: Callable[[Config, int, int], Config] | None = None
    mixing: type[Mixing] | None = None

    @property
    def name(self) -> str:
        """The name in files: that of the class."""
        return self.cls.__name__


def _resize_features(config: Config, out: int, in_: int) -> Config:
    return {**config, "num_features": out}


def _resize_group_norm(config: Config, out: int, in_: int) -> Config:
    width = config["num_channels"] // config["num_groups"]
    return {**config, "num_groups": out // width, "num_channels": out}


def _resize_prelu(config: Config, out: int, in_: int) -> Config:
    return {**config, "num_parameters": out}


_NORM_DIMS: Dims = {"weight": ("out",), "bias": ("out",), "running_mean": ("out",), "running_var": ("out",)}
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
_PATCH = ("kernel_size", "dilation", "padding", "stride")
_POWER_POOLS = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
_PADS = tuple(
    getattr(nn, f"{kind}Pad{n}d") for kind in ("Zero", "Reflection", "Replication", "Circular") for n in (1, 2, 3)
)


def _mixing(cls: type[nn.Module], mixing: type[Mixing], *config: str) -> LayerType:
    return LayerType(cls=cls, role="mix", config=config, resize=mixing.resize, mixing=mixing)


def _pointwise(cls: type[nn.Module], *config: str) -> LayerType:
    return LayerType(cls=cls, role="pointwise", config=config)


def _spatial(cls: type[nn.Module], *config: str) -> LayerType:
    return LayerType(cls=cls, role="spatial", config=config)


LAYER_TYPES: dict[str, LayerType] = {
    entry.name: entry
    for entry in (
        _mixing(nn.Conv1d, Convolution, *_CONVOLUTION, "padding_mode"),
        _mixing(nn.Conv2d, Convolution, *_CONVOLUTION, "padding_mode"),
        _mixing(nn.Conv3d, Convolution, *_CONVOLUTION, "padding_mode"),
        _mixing(nn.ConvTranspose1d, Transposed, *_CONVOLUTION, "output_padding"),
        _mixing(nn.ConvTranspose2d, Transposed, *_CONVOLUTION, "output_padding"),
        _mixing(nn.ConvTranspose3d, Transposed, *_CONVOLUTION, "output_padding"),
        _mixing(nn.Linear, Linear, "in_features", "out_features", "bias"),
        LayerType(cls=nn.BatchNorm1d, role="follow", config=_NORM, dims=_NORM_DIMS, resize=_resize_features),
        LayerType(cls=nn.BatchNorm2d, role="follow", config=_NORM, dims=_NORM_DIMS, resize=_resize_features),
        LayerType(cls=nn.BatchNorm3d, role="follow", config=_NORM, dims=_NORM_DIMS, resize=_resize_features),
        LayerType(
            cls=nn.PReLU,
            role="follow",
            config=("num_parameters",),
            dims={"weight": ("out",)},
            resize=_resize_prelu,
        ),
        *(
            LayerType(cls=cls, role="follow", config=_NORM, dims=_NORM_DIMS, resize=_resize_features)
            for cls in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
        ),
        LayerType(
            cls=nn.GroupNorm,
            role="follow",
            config=("num_groups", "num_channels", "eps", "affine"),
            dims={"weight": ("out",), "bias": ("out",)},
            resize=_resize_group_norm,
        ),
        LayerType(cls=nn.LayerNorm, role="normalise", config=("normalized_shape", "eps", "elementwise_affine", "bias")),
        LayerType(cls=nn.RMSNorm, role="normalise", config=("normalized_shape", "eps", "elementwise_affine")),
        LayerType(cls=nn.LocalResponseNorm, role="normalise", config=("size", "alpha", "beta", "k")),
        LayerType(cls=nn.Softmin, role="normalise", config=("dim",)),
        LayerType(cls=nn.Softmax2d, role="normalise"),
        LayerType(cls=nn.Softmax, role="normalise", config=("dim",)),
        LayerType(cls=nn.LogSoftmax, role="normalise", config=("dim",)),
        _pointwise(nn.Identity),
        _pointwise(nn.ReLU, "inplace"),
        _pointwise(nn.ReLU6, "inplace"),
        _pointwise(nn.LeakyReLU, "negative_slope", "inplace"),
        _pointwise(nn.ELU, "alpha", "inplace"),
        _pointwise(nn.SELU, "inplace"),
        _pointwise(nn.CELU, "alpha", "inplace"),
        _pointwise(nn.SiLU, "inplace"),
        _pointwise(nn.Mish, "inplace"),
        _pointwise(nn.GELU, "approximate"),
        _pointwise(nn.Sigmoid),
        _pointwise(nn.Tanh),
        _pointwise(nn.Softplus, "beta", "threshold"),
        _pointwise(nn.Softsign),
        _pointwise(nn.LogSigmoid),
        _pointwise(nn.Hardswish, "inplace"),
        _pointwise(nn.Hardsigmoid, "inplace"),
        _pointwise(nn.Hardtanh, "min_val", "max_val", "inplace"),
        _pointwise(nn.Threshold, "threshold", "value", "inplace"),
        _pointwise(nn.RReLU, "lower", "upper", "inplace"),
        _pointwise(nn.Hardshrink, "lambd"),
        _pointwise(nn.Softshrink, "lambd"),
        _pointwise(nn.Tanhshrink),
        _pointwise(nn.Dropout, "p", "inplace"),
        _pointwise(nn.Dropout1d, "p", "inplace"),
        _pointwise(nn.Dropout2d, "p", "inplace"),
        _pointwise(nn.Dropout3d, "p", "inplace"),
        _pointwise(nn.AlphaDropout, "p", "inplace"),
        _pointwise(nn.FeatureAlphaDropout, "p", "inplace"),
        _spatial(nn.MaxPool1d, *_POOL, "dilation"),
        _spatial(nn.MaxPool2d, *_POOL, "dilation"),
        _spatial(nn.MaxPool3d, *_POOL, "dilation"),
        _spatial(nn.AvgPool1d, *_POOL, "count_include_pad"),
        _spatial(nn.AvgPool2d, *_POOL, "count_include_pad", "divisor_override"),
        _spatial(nn.AvgPool3d, *_POOL, "count_include_pad", "divisor_override"),
        _spatial(nn.AdaptiveAvgPool1d, "output_size"),
        _spatial(nn.AdaptiveAvgPool2d, "output_size"),
        _spatial(nn.AdaptiveAvgPool3d, "output_size"),
        _spatial(nn.AdaptiveMaxPool1d, "output_size"),
        _spatial(nn.AdaptiveMaxPool2d, "output_size"),
        _spatial(nn.AdaptiveMaxPool3d, "output_size"),
        *(_spatial(cls, "norm_type", "kernel_size", "stride", "ceil_mode") for cls in _POWER_POOLS),
        _spatial(nn.UpsamplingNearest2d, "size", "scale_factor"),
        _spatial(nn.UpsamplingBilinear2d, "size", "scale_factor"),
        _spatial(nn.Upsample, "size", "scale_factor", "mode", "align_corners"),
        *(_spatial(cls, "padding") for cls in _PADS),
        *(_spatial(cls, "padding", "value") for cls in (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)),
        LayerType(cls=nn.Flatten, role="move", config=("start_dim", "end_dim")),
        LayerType(cls=nn.ChannelShuffle, role="move", config=("groups",)),
        LayerType(cls=nn.PixelShuffle, role="regroup", config=("upscale_factor",)),
        LayerType(cls=nn.PixelUnshuffle, role="regroup", config=("downscale_factor",)),
        LayerType(cls=nn.Unfold, role="regroup", config=_PATCH),
        LayerType(cls=nn.Fold, role="regroup", config=("output_size", *_PATCH)),
        LayerType(cls=nn.GLU, role="halve", config=("dim",)),
    )
}

_BY_CLASS = {entry.cls: entry for entry in LAYER_TYPES.values()}


def find_type(module: nn.Module) -> LayerType | None:
    """The table entry for a module's exact class, or None."""
    return _BY_CLASS.get(type(module))


def find_mixing(module: nn.Module | None) -> Mixing | None:
    """The `Mixing` of a layer that mixes channels; None for any other module."""
    entry = _BY_CLASS.get(type(module))  # type: ignore[arg-type]
    return None if entry is None or entry.mixing is None else entry.mixing(module)


def mixing_of(module: nn.Module) -> Mixing:
    """Like `find_mixing`, but never None.

    Raises:
        SurgeryError: The module does not mix channels in a known way.
    """
    found = find_mixing(module)
    if found is None:
        raise SurgeryError(
            "surgery-layer-kind", f"contributions are defined only for convolutions and linear layers, got {module}"
        )
    return found


def layer_role(module: nn.Module) -> Role:
    """The role of this particular module: a convolution that is cut by whole groups follows, like a depthwise one."""
    mixing = find_mixing(module)
    if mixing is not None and mixing.by_groups:
        return "follow"
    if isinstance(module, nn.GroupNorm) and module.num_groups == 1:
        return "normalise"
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return "pointwise"
    return _BY_CLASS[type(module)].role


def tensor_dims(module: nn.Module) -> Dims:
    """For each of the module's tensors that has channels, what its leading dimensions index."""
    mixing = find_mixing(module)
    return _BY_CLASS[type(module)].dims if mixing is None else mixing.dims


def describe_layer(module: nn.Module) -> Config:
    """A module's constructor arguments as JSON values."""
    entry = _BY_CLASS[type(module)]
    config = {key: _plain(getattr(module, key)) for key in entry.config}
    if "bias" in config:
        config["bias"] = module.bias is not None
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list | torch.Size):
        return [_plain(item) for item in value]
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _usual(key: str, value: Any) -> bool:
    """Whether an argument is a number, a flat list of numbers, or, where words are accepted, a word.

    Torch computes with arguments before checking them, and Python's operators format strings and repeat lists.
    """
    if isinstance(value, str):
        return key in WORDS and len(value) <= MAX_WORD
    if isinstance(value, list):
        return len(value) <= MAX_LIST and all(item is None or isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, int | float)


def build_layer(kind: str, config: Config) -> nn.Module:
    """Build a layer on the meta device, without weights or use of random state.

    Raises:
        FileError: The type is not in the table, or the arguments do not fit it.
    """
    entry = LAYER_TYPES.get(kind)
    if entry is None:
        raise FileError(
            "file-unknown-operation",
            f"unknown layer type {told(kind, 80)!r}; this version of Brickyard knows "
            f"{', '.join(sorted(LAYER_TYPES))}, a newer one may know more",
        )
    unknown = set(config) - set(entry.config)
    if unknown:
        raise FileError(
            "file-network-invalid", f"{kind} has no argument {sorted(unknown)[0]!r}; it takes {', '.join(entry.config)}"
        )
    for key, value in config.items():
        if not _usual(key, value):
            raise FileError(
                "file-network-invalid", f"{kind} cannot be created with {key}={told(repr(value), 80)}; expected numbers"
            )
    try:
        with torch.device("meta"):
            module = entry.cls(**{key: _tuples(value) for key, value in config.items()})
    except Exception as error:
        raise FileError(
            "file-network-invalid", f"{kind} cannot be created from {told(config)}: {told(error)}"
        ) from None
    return module.eval()
