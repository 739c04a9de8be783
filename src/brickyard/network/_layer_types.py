"""The table of layer types: for each, what it does to channels, its constructor arguments and its tensors.

Adding a layer type is adding one `LayerType` to `LAYER_TYPES`. A module whose exact class is not in the
table is never guessed at: it runs as it is, its channels are pinned, and it cannot be written to a file.

Nothing here knows graphs, classes or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from brickyard.base._errors import FileError
from brickyard.base._messages import told

Role = Literal["mix", "follow", "pointwise", "spatial", "move", "normalise", "pin"]
"""What a layer does to channels.

mix: reads one channel axis and writes another (convolution, linear).
follow: holds numbers of its own for every channel or group of channels (batch norm, depthwise convolution, PReLU).
pointwise: treats every number alike (activations, dropout).
spatial: works within each channel (pooling, upsampling).
move: only moves numbers to other places (flatten).
normalise: mixes the numbers along some dimensions (layer norm, softmax), whose channels then stay whole.
pin: does something else with channels, which then stay whole.
"""

WORDS = frozenset({"padding", "padding_mode", "mode", "approximate"})
MAX_WORD = 32
MAX_LIST = 64

Dims = Mapping[str, tuple[Literal["out", "in"], ...]]
Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LayerType:
    """All that is known of one layer type.

    Attributes:
        cls: The module class; only this very class, not its subclasses.
        role: What it does to channels; `layer_role` refines it for a given module.
        config: Constructor arguments, each read from the attribute of the same name.
        dims: For each tensor with channels, what its leading dimensions index.
        resize: `(config, out, in)` -> config with that many output and input channels.
        channel_dim: The dimension of an activation that holds the channels that are mixed or followed.
    """

    cls: type[nn.Module]
    role: Role
    config: tuple[str, ...] = ()
    dims: Dims = field(default_factory=dict)
    resize: Callable[[Config, int, int], Config] | None = None
    channel_dim: int = 1

    @property
    def name(self) -> str:
        """The name in files: the class's own."""
        return self.cls.__name__


def _cut_by_groups(in_channels: int, out_channels: int, groups: int) -> bool:
    return groups > 1 and (groups >= in_channels // groups or groups == out_channels)


def _resize_conv(config: Config, out: int, in_: int) -> Config:
    groups, width = config["groups"], config["in_channels"] // config["groups"]
    if _cut_by_groups(config["in_channels"], config["out_channels"], groups):
        groups = in_ // width
    else:
        in_ *= groups
    return {**config, "out_channels": out, "in_channels": in_, "groups": groups}


def _resize_linear(config: Config, out: int, in_: int) -> Config:
    return {**config, "out_features": out, "in_features": in_}


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


def _pointwise(cls: type[nn.Module], *config: str) -> LayerType:
    return LayerType(cls=cls, role="pointwise", config=config)


def _spatial(cls: type[nn.Module], *config: str) -> LayerType:
    return LayerType(cls=cls, role="spatial", config=config)


LAYER_TYPES: dict[str, LayerType] = {
    entry.name: entry
    for entry in (
        LayerType(
            cls=nn.Conv2d,
            role="mix",
            config=(
                "in_channels",
                "out_channels",
                "kernel_size",
                "stride",
                "padding",
                "dilation",
                "groups",
                "bias",
                "padding_mode",
            ),
            dims={"weight": ("out", "in"), "bias": ("out",)},
            resize=_resize_conv,
        ),
        LayerType(
            cls=nn.Linear,
            role="mix",
            config=("in_features", "out_features", "bias"),
            dims={"weight": ("out", "in"), "bias": ("out",)},
            resize=_resize_linear,
            channel_dim=-1,
        ),
        LayerType(cls=nn.BatchNorm1d, role="follow", config=_NORM, dims=_NORM_DIMS, resize=_resize_features),
        LayerType(cls=nn.BatchNorm2d, role="follow", config=_NORM, dims=_NORM_DIMS, resize=_resize_features),
        LayerType(
            cls=nn.PReLU,
            role="follow",
            config=("num_parameters",),
            dims={"weight": ("out",)},
            resize=_resize_prelu,
        ),
        LayerType(cls=nn.InstanceNorm2d, role="follow", config=_NORM, dims=_NORM_DIMS, resize=_resize_features),
        LayerType(
            cls=nn.GroupNorm,
            role="follow",
            config=("num_groups", "num_channels", "eps", "affine"),
            dims={"weight": ("out",), "bias": ("out",)},
            resize=_resize_group_norm,
        ),
        LayerType(cls=nn.LayerNorm, role="normalise", config=("normalized_shape", "eps", "elementwise_affine", "bias")),
        LayerType(
            cls=nn.Conv1d,
            role="pin",
            config=(
                *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"),
                "padding_mode",
            ),
        ),
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
        _pointwise(nn.Dropout, "p", "inplace"),
        _pointwise(nn.Dropout2d, "p", "inplace"),
        _spatial(nn.MaxPool2d, *_POOL, "dilation"),
        _spatial(nn.AvgPool2d, *_POOL, "count_include_pad", "divisor_override"),
        _spatial(nn.AdaptiveAvgPool2d, "output_size"),
        _spatial(nn.AdaptiveMaxPool2d, "output_size"),
        _spatial(nn.Upsample, "size", "scale_factor", "mode", "align_corners"),
        _spatial(nn.ZeroPad2d, "padding"),
        _spatial(nn.ReflectionPad2d, "padding"),
        _spatial(nn.ReplicationPad2d, "padding"),
        _spatial(nn.CircularPad2d, "padding"),
        _spatial(nn.ConstantPad2d, "padding", "value"),
        LayerType(cls=nn.Flatten, role="move", config=("start_dim", "end_dim")),
        LayerType(cls=nn.ChannelShuffle, role="move", config=("groups",)),
    )
}

_BY_CLASS = {entry.cls: entry for entry in LAYER_TYPES.values()}


def find_type(module: nn.Module) -> LayerType | None:
    """The table entry of a module's exact class, or None."""
    return _BY_CLASS.get(type(module))


def layer_role(module: nn.Module) -> Role:
    """The role of this very module: a convolution that is cut by whole groups follows, as a depthwise one does."""
    if isinstance(module, nn.Conv2d) and whole_groups(module):
        return "follow"
    if isinstance(module, nn.GroupNorm) and module.num_groups == 1:
        return "normalise"
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return "pointwise"
    return _BY_CLASS[type(module)].role


def whole_groups(module: nn.Conv2d) -> bool:
    """Whether a grouped convolution is cut by whole groups (many narrow groups), or else alike in every group."""
    return _cut_by_groups(module.in_channels, module.out_channels, module.groups)


def tensor_dims(module: nn.Module) -> Dims:
    """For each of the module's tensors that has channels, what its leading dimensions index."""
    dims = _BY_CLASS[type(module)].dims
    if isinstance(module, nn.Conv2d) and whole_groups(module):
        return dict.fromkeys(dims, ("out",))  # the second dimension lies within a group
    return dims


def describe_layer(module: nn.Module) -> Config:
    """The constructor arguments of a module as JSON values."""
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
    """Whether an argument is a number, a flat list of numbers, or a word where words are taken.

    Torch computes with arguments before it looks at them, and Python's operators format texts and repeat lists.
    """
    if isinstance(value, str):
        return key in WORDS and len(value) <= MAX_WORD
    if isinstance(value, list):
        return len(value) <= MAX_LIST and all(item is None or isinstance(item, int | float) for item in value)
    return value is None or isinstance(value, int | float)


def build_layer(kind: str, config: Config) -> nn.Module:
    """Make a layer on the meta device: shapes, no numbers, no random state used.

    Raises:
        FileError: The type is not in the table, or the arguments do not make such a layer.
    """
    entry = LAYER_TYPES.get(kind)
    if entry is None:
        raise FileError(
            "file-unknown-operation",
            f"layer type {told(kind, 80)!r} is not one that Brickyard knows ({', '.join(sorted(LAYER_TYPES))}); "
            "a newer version may",
        )
    unknown = set(config) - set(entry.config)
    if unknown:
        raise FileError(
            "file-network-invalid",
            f"{kind} takes no argument {sorted(unknown)[0]!r}; it takes {', '.join(entry.config)}",
        )
    for key, value in config.items():
        if not _usual(key, value):
            raise FileError(
                "file-network-invalid",
                f"{kind} cannot be made with {key}={told(repr(value), 80)}: numbers are expected",
            )
    try:
        with torch.device("meta"):
            module = entry.cls(**{key: _tuples(value) for key, value in config.items()})
    except Exception as error:
        raise FileError("file-network-invalid", f"{kind} cannot be made from {told(config)}: {told(error)}") from None
    return module.eval()
