"""The model zoo: small networks for images of about 32x32, by name.

The networks are in `_zoo_plain`, `_zoo_resnet` and `_zoo_googlenet`; importing this module fills the table.

Example:
    >>> from brickyard.sources import available
    >>> available()
    ('cnn', 'googlenet', 'lenet5', 'resnet18', 'resnet20', ..., 'vgg16')
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from brickyard.base._errors import OptionError
from brickyard.sources import _zoo_googlenet, _zoo_plain, _zoo_resnet  # noqa: F401  # they fill the table
from brickyard.sources._registry import available as available
from brickyard.sources._registry import build as build
from brickyard.sources._registry import entry as entry
from brickyard.sources._weights import misfits, renamed

Shapes = dict[str, tuple[int, ...]]


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Build modules without memory and without drawing random numbers in this block."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def shapes(name: str, classes: int, width: float = 1.0, **options: Any) -> Shapes:
    """The shape of every tensor of the network that `build` would give, by key, at no cost in memory."""
    with weightless():
        state = build(name, classes, width, **options).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def input_shape(name: str, options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width that a network of the zoo is made for, given its options."""
    known = entry(name).defaults
    size = options.get("size", known.get("size", 32))
    return options.get("channels", known["channels"]), size, size


def infer_options(name: str, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete `given` by what the shapes of the weights say: classes, width, channels and shortcut.

    Only what is missing is filled in. What does not fit is found later, when weights are compared.

    Raises:
        OptionError: The number of classes or the width is not given and cannot be read off.
    """
    options = dict(given)
    known = entry(name).defaults
    tensors = renamed(tensors, shapes(name, 1))
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if "shortcut" in known and "shortcut" not in options and any(".shortcut." in key for key in found):
        options["shortcut"] = "B"
    rest = {key: value for key, value in options.items() if key not in ("classes", "width")}
    few, many = shapes(name, 1, **rest), shapes(name, 2, **rest)
    heads = [key for key in few if few[key] != many[key]]
    if "classes" not in options:
        options["classes"] = _dimension(name, "classes", found, heads[:1], 0)
    if "channels" not in options:
        images = [key for key in few if len(few[key]) == 4][:1]
        options["channels"] = _dimension(name, "channels", found, images, 1)
    if "width" not in options:
        options["width"] = _width(name, found, options)
    return options


def fitting(tensors: Mapping[str, Tensor]) -> list[str]:
    """The networks of the zoo that take these weights as they are, by name.

    Example:
        >>> from brickyard.sources._zoo import build, fitting
        >>> fitting(build("resnet20", 10, 0.25).state_dict())
        ['resnet20']
    """
    found = []
    for name in available():
        with contextlib.suppress(OptionError):
            options = infer_options(name, tensors, {})
            with weightless():
                expected = build(name, **options).state_dict()
            if not misfits(expected, renamed(tensors, expected)):
                found.append(name)
    return found


def _dimension(name: str, option: str, found: Shapes, keys: list[str], axis: int) -> int:
    for key in keys:
        if len(found.get(key, ())) > axis:
            return found[key][axis]
    raise _undetermined(f"the weights do not tell the {option} of {name}", name, option)


def _undetermined(why: str, name: str, option: str) -> OptionError:
    return OptionError("option-source-undetermined", f"{why}; give zoo:{name}?{option}=NUMBER")


def _width(name: str, found: Shapes, options: Mapping[str, Any]) -> float:
    """The simplest width whose shapes equal those found, else the one that the widest layer says."""
    rest = {key: value for key, value in options.items() if key not in ("classes", "width")}
    full = shapes(name, options["classes"], **rest)
    inner = [key for key in full if len(full[key]) == 4 and len(found.get(key, ())) == 4]
    if not inner:
        raise _undetermined(f"the weights share no convolution with {name}", name, "width")
    widest = max(inner, key=lambda key: full[key][0])
    exact = found[widest][0] / full[widest][0]
    if not math.isfinite(exact) or exact <= 0:
        raise _undetermined(f"{widest!r} has {found[widest][0]} rows, which tells no width", name, "width")
    for width in (round(exact, 2), round(exact, 3), round(exact + 0.5e-3, 3), exact):
        if width > 0 and shapes(name, options["classes"], width, **rest).items() <= found.items():
            return width
    return exact
