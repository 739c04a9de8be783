"""Resizing in ONNX files: which pixels are taken, or between which pixels values lie, by the file's own rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from brickyard.sources._onnx_file import Op
from brickyard.sources._onnx_graph import Reader, Value
from brickyard.sources._onnx_steps import Given, at, first

Numbers = np.ndarray[Any, np.dtype[np.float32]]

_LIKE_TORCH = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}
_HALF = np.float32(0.5)
_CUBIC = -0.75  # the coefficient that torch has
_PIXELS: dict[str, Callable[[Numbers, int, int, np.float32], Numbers]] = {  # where each new pixel lies among the old
    "half_pixel": lambda new, goal, size, scale: (new + _HALF) / scale - _HALF,
    "half_pixel_symmetric": lambda new, goal, size, scale: _symmetric(new, goal, size, scale),
    "pytorch_half_pixel": lambda new, goal, size, scale: (new + _HALF) / scale - _HALF if goal > 1 else 0 * new,
    "align_corners": lambda new, goal, size, scale: new * np.float32((size - 1) / max(1, goal - 1)),
    "asymmetric": lambda new, goal, size, scale: new / scale,
    "tf_half_pixel_for_nn": lambda new, goal, size, scale: (new + _HALF) / scale,
}
_ROUND: dict[str, Callable[[Numbers], Numbers]] = {
    "round_prefer_floor": lambda at: np.ceil(at - _HALF),
    "round_prefer_ceil": lambda at: np.floor(at + _HALF),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(reader: Reader, op: Op, given: Given) -> Value:
    """The steps of a Resize or an Upsample of images."""
    x, old = first(reader, given), op.kind == "Upsample" or reader.file.opset < 11
    goal, scales = _goal(reader, op, given, x, old)
    if goal == list(x.shape):
        return x
    if x.ndim != 4 or goal[:2] != list(x.shape[:2]):
        reader.refuse(f"scales {x.shape} to {tuple(goal)}; only the height and width of images are scaled")
    mode = str(op.attributes.get("mode", "nearest"))
    how = "asymmetric" if old else str(op.attributes.get("coordinate_transformation_mode", "half_pixel"))
    if mode == "nearest":
        rounding = str(op.attributes.get("nearest_mode", "round_prefer_floor"))
        return _nearest(reader, x, goal, scales, how, "" if old else rounding)
    return _smooth(reader, op, x, goal, scales, mode, how)


def _goal(reader: Reader, op: Op, given: Given, x: Value, old: bool) -> tuple[list[int], list[float]]:
    """The sizes that are wanted, and the factors to them."""
    scales, sizes = (at(given, 1), None) if old else (at(given, 2), at(given, 3))
    axes = [int(dim) % x.ndim for dim in op.attributes.get("axes") or range(x.ndim)]
    goal, factors = list(x.shape), [1.0] * x.ndim
    if str(op.attributes.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        reader.refuse("keeps the ratio of the sides, which is not read")
    if sizes is not None and sizes.worlds[0].numel():
        for dim, size in zip(axes, sizes.worlds[0].reshape(-1).tolist(), strict=True):
            goal[dim] = goal[dim] if dim in x.by_batch else int(size)
            factors[dim] = goal[dim] / x.shape[dim]
        return goal, factors
    held = op.attributes.get("scales") if scales is None else scales.worlds[0].double().reshape(-1).tolist()
    if not held:
        reader.refuse("has neither scales nor sizes")
    for dim, scale in zip(axes, held, strict=True):
        goal[dim], factors[dim] = int(x.shape[dim] * scale + 1e-6), float(scale)
    return goal, factors


def _nearest(reader: Reader, x: Value, goal: list[int], scales: list[float], how: str, rounding: str) -> Value:
    """Take one pixel for each new one; as torch's nearest where that takes the same."""
    places = [_places(reader, x.shape[dim], goal[dim], scales[dim], how, rounding) for dim in (2, 3)]
    usual = [[int(k * np.float32(x.shape[d] / goal[d])) for k in range(goal[d])] for d in (2, 3)]
    if places == usual:
        return reader.call("interpolate", x, size=tuple(goal[2:]), mode="nearest")
    for dim, some in zip((2, 3), places, strict=True):
        x = x if some == reader.places(x.shape[dim]) else reader.call("take", x, dim, some)
    return x


def _places(reader: Reader, size: int, goal: int, scale: float, how: str, rounding: str) -> list[int]:
    """The old pixel of each new one along a side; no rounding stands for that of opset 10."""
    rounding = rounding or ("ceil" if scale < 1 else "floor")
    if how not in _PIXELS or rounding not in _ROUND:
        reader.refuse(f"takes the nearest pixels by {how} and {rounding}, which is not read")
    new = np.asarray(reader.places(goal), np.float32)
    found = _ROUND[rounding](_PIXELS[how](new, goal, size, np.float32(scale)))
    return [int(place) for place in found.clip(0, size - 1)]


def _symmetric(new: Numbers, goal: int, size: int, scale: np.float32) -> Numbers:
    """Half pixels around the middle, where sizes were rounded."""
    whole = np.float32(scale * size)
    return size / np.float32(2) * (1 - goal / whole) + (new + _HALF) / scale - _HALF


def _smooth(reader: Reader, op: Op, x: Value, goal: list[int], scales: list[float], mode: str, how: str) -> Value:
    """Values between pixels, where torch computes them as the file does."""
    kinds = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic"}
    single = how == "pytorch_half_pixel" and 1 in goal[2:]
    if mode not in kinds or how not in _LIKE_TORCH or single:
        reader.refuse(f"scales by {mode} with {how} coordinates, which is not read")
    cubic = mode == "cubic" and abs(float(op.attributes.get("cubic_coeff_a", _CUBIC)) - _CUBIC) > 1e-6
    if cubic or any(op.attributes.get(name) for name in ("antialias", "exclude_outside")):
        reader.refuse(f"scales by {mode} with antialias, exclude_outside or cubic_coeff_a, which is not read")
    kind = {"mode": kinds[mode], "align_corners": _LIKE_TORCH[how]}
    whole = all(abs(x.shape[dim] * scales[dim] - goal[dim]) < 1e-6 * goal[dim] for dim in (2, 3))
    if whole or _LIKE_TORCH[how]:
        return reader.call("interpolate", x, size=tuple(goal[2:]), **kind)
    return reader.call("interpolate", x, scale_factor=tuple(scales[2:]), **kind)
