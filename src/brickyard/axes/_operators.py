"""ATen operators whose arguments are other than those of the table's functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]

_INTERPOLATIONS = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")


def _first(name: str, count: int, args: _Args, kwargs: _Kwargs) -> Call | None:
    """The first arguments: those behind them choose a kernel."""
    return name, args[:count], kwargs


def _log_softmax(args: _Args, kwargs: _Kwargs) -> Call | None:
    return ("log_softmax", args[:2], kwargs) if args[2:] in ((), (None,)) else None


def _softmin(args: _Args, kwargs: _Kwargs) -> Call | None:
    return ("softmin", args[:2], kwargs) if args[2:] in ((), (None,)) else None


def _batch_norm(args: _Args, kwargs: _Kwargs) -> Call | None:
    x, weight, bias, mean, variance, training, momentum, eps, *_ = args
    return "batch_norm", (x, mean, variance, weight, bias, training, momentum, eps), kwargs


def _instance_norm(args: _Args, kwargs: _Kwargs) -> Call | None:
    x, weight, bias, mean, variance, *rest = args
    return "instance_norm", (x, mean, variance, weight, bias, *rest[:3]), kwargs


def _rsub(args: _Args, kwargs: _Kwargs) -> Call | None:
    return ("sub", (args[1], args[0]), {}) if len(args) == 2 and not kwargs else None


def _embedding(args: _Args, kwargs: _Kwargs) -> Call | None:
    return "embedding", (args[1], args[0]), {}


def _grid_sample(args: _Args, kwargs: _Kwargs) -> Call | None:
    x, grid, mode, padding, align = args
    return "grid_sample", (x, grid, _INTERPOLATIONS[mode], _PADDINGS[padding], align), {}


def _stft(args: _Args, kwargs: _Kwargs) -> Call | None:
    keys = ("hop_length", "win_length", "window", "normalized", "onesided", "return_complex")
    given = dict(zip(keys, args[2:], strict=False)) | kwargs
    return "stft", args[:2], {**given, "center": False}


def _resized(mode: str, aligns: bool, args: _Args, kwargs: _Kwargs) -> Call | None:
    """An upsampling to a size, or by factors."""
    keys = ("size", "align_corners", "scale_factor") if aligns else ("size", "scale_factor")
    given = dict(zip(keys, args[1:], strict=False))
    renamed = {"output_size": "size", "scale_factors": "scale_factor"}
    given |= {renamed.get(key, key): value for key, value in kwargs.items()}
    given = {key: value for key, value in given.items() if value is not None}
    return "interpolate", args[:1], {**given, "mode": mode}


REWRITTEN: dict[str, Callable[[_Args, _Kwargs], Call | None]] = {
    "layer_norm": partial(_first, "layer_norm", 5),
    "group_norm": partial(_first, "group_norm", 5),
    "log_softmax": _log_softmax,
    "softmin": _softmin,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "rsub": _rsub,
    "embedding": _embedding,
    "grid_sampler": _grid_sample,
    "stft": _stft,
    **{f"upsample_nearest{n}d": partial(_resized, "nearest", False) for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": partial(_resized, "nearest-exact", False) for n in (1, 2, 3)},
    "upsample_linear1d": partial(_resized, "linear", True),
    "upsample_bilinear2d": partial(_resized, "bilinear", True),
    "upsample_bicubic2d": partial(_resized, "bicubic", True),
    "upsample_trilinear3d": partial(_resized, "trilinear", True),
}
