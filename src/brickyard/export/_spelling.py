"""How the layers, functions and arguments of a network are written as Python.

Spellings come from the tables of layers and functions. Names and strings of a network are data: they are written as
literals, or turned into identifiers that nothing else uses.
"""

from __future__ import annotations

import inspect
import keyword
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from brickyard.base._errors import FileError
from brickyard.base._messages import brief, told
from brickyard.base._specs import LayerSpec
from brickyard.network._arguments import ORDER
from brickyard.network._functions import FUNCTIONS, Function
from brickyard.network._layer_types import LAYER_TYPES
from brickyard.network._network import Ref

WIDTH = 100
BREAK = "\x1f"  # where a line may be broken: within brackets; a control character, which no literal contains
_LONGEST_NAME = 40

Names = Mapping[str, str]
"""The variable that holds each step's value."""


# -- lines -------------------------------------------------------------------------------------------------


def joined(items: Iterable[str]) -> str:
    """Items of a list, with places between them where a line may be broken."""
    return f",{BREAK}".join(items)


def wrapped(text: str, indent: int = 0) -> list[str]:
    """A statement as indented lines, broken at its marks if it is too long for one.

    Example:
        >>> from brickyard.export._spelling import joined, wrapped
        >>> wrapped(f"x = [{joined('ab')}]", 4)
        ['    x = [a, b]']
        >>> [len(line) <= 100 for line in wrapped(f"x = [{joined(map(str, range(30)))}]")]
        [True, True]
    """
    first, more = " " * indent, " " * (indent + 4)
    whole = first + text.replace(BREAK, " ")
    if len(whole) <= WIDTH:
        return [whole]
    lines = [first]
    for piece in text.split(BREAK):
        if lines[-1].strip() and len(lines[-1]) + 1 + len(piece) > WIDTH:
            lines.append(more)
        lines[-1] += piece if not lines[-1].strip() else f" {piece}"
    return lines


# -- names -------------------------------------------------------------------------------------------------


def is_word(name: str) -> bool:
    """Whether a name can stand in Python as it is, as an attribute or a keyword argument."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


class Identifiers:
    """Makes identifiers of names from files, each of which is new.

    Args:
        reserved: Identifiers that are taken from the start.

    Example:
        >>> from brickyard.export._spelling import Identifiers
        >>> found = Identifiers({"self"})
        >>> [found.new(name) for name in ("conv.1", "conv_1", "self", "class", "2x", "a; import os", "")]
        ['conv_1', 'conv_1_2', 'self_2', 'class_2', 'v_2x', 'a_import_os', 'v']
    """

    def __init__(self, reserved: Iterable[str]) -> None:
        self._taken = set(reserved) | set(keyword.kwlist)
        self._next: dict[str, int] = {}

    def new(self, name: str) -> str:
        """An identifier that resembles a name."""
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")[:_LONGEST_NAME].rstrip("_")
        base = plain if plain and not plain[0].isdigit() else f"v_{plain}".rstrip("_")
        found, number = base, self._next.get(base, 2)
        while found in self._taken:
            found, number = f"{base}_{number}", number + 1
        self._next[base] = number
        self._taken.add(found)
        return found


# -- values ------------------------------------------------------------------------------------------------


def literal(value: Any, names: Names | None = None) -> str:
    r"""A value as Python; references become variables.

    Raises:
        FileError: It is a value that cannot be written.

    Example:
        >>> from brickyard.export._spelling import literal
        >>> literal((1, [None, "a\"\n"], slice(0, None))).replace("\x1f", " ")
        '(1, [None, \'a"\\n\'], slice(0, None, None))'
    """
    if isinstance(value, Ref) and names is not None:
        return names[value.node]
    if value is None or value is Ellipsis or isinstance(value, bool):
        return "..." if value is Ellipsis else repr(value)
    if isinstance(value, str):
        text = repr(str(value))
        return text if '"' in text else f'"{text[1:-1]}"'  # without one, both kinds of quotes do
    if isinstance(value, numbers.Integral):
        return repr(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, list):
        return f"[{joined(literal(item, names) for item in value)}]"
    if isinstance(value, tuple):
        return f"({joined(literal(item, names) for item in value)}{',' * (len(value) == 1)})"
    if isinstance(value, slice):
        return f"slice({joined(literal(item, names) for item in (value.start, value.stop, value.step))})"
    if isinstance(value, dict):
        return f"{{{joined(f'{literal(key)}: {literal(item, names)}' for key, item in value.items())}}}"
    raise FileError("file-unsupported-operation", f"the value {brief(value)} cannot be written as Python")


def _index(value: Any, names: Names) -> str:
    """What stands in square brackets behind a variable."""
    if isinstance(value, tuple) and value:
        return joined(_index(item, names) for item in value) + "," * (len(value) == 1)
    if isinstance(value, slice):
        start, stop, step = ("" if v is None else literal(v, names) for v in (value.start, value.stop, value.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return literal(value, names)


def arguments(args: Iterable[Any], kwargs: Mapping[str, Any], names: Names) -> str:
    """What stands in the brackets of a call; names of arguments that Python cannot take go in as literals."""
    plain = {key: value for key, value in kwargs.items() if is_word(key)}
    others = {key: value for key, value in kwargs.items() if key not in plain}
    found = [literal(value, names) for value in args]
    found += [f"{key}={literal(value, names)}" for key, value in plain.items()]
    return joined([*found, *([f"**{literal(others, names)}"] if others else [])])


# -- functions ---------------------------------------------------------------------------------------------


def callee(entry: Function) -> str:
    """The dotted name of a function of the table that is one of torch's: "F.relu", "torch.cat", "torch.Tensor.view".

    Raises:
        FileError: It is none of torch's.
    """
    for name in (getattr(entry.call, "__name__", ""), entry.name):
        for place, prefix in ((F, "F"), (torch, "torch"), (torch.Tensor, "torch.Tensor")):
            if name and getattr(place, name, None) is entry.call:
                return f"{prefix}.{name}"
    raise FileError("file-unsupported-operation", f"function {entry.name!r} cannot be written as Python")


def function(target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Names) -> str:
    """A call of a function of the table as Python."""
    entry = FUNCTIONS[target]
    if "{" in entry.python:
        return _by_template(entry, args, kwargs, names)
    if entry.python:
        return f"{entry.python}({arguments(args, kwargs, names)})"
    name = callee(entry)
    method = name.removeprefix("torch.Tensor.")
    if method != name and args and isinstance(args[0], Ref):
        return f"{names[args[0].node]}.{method}({arguments(args[1:], kwargs, names)})"
    return f"{name}({arguments(args, kwargs, names)})"


def assigned(target: str) -> str:
    """The sign of a function that Python writes as an assignment, such as "+=", or ""."""
    entry = FUNCTIONS[target]
    return entry.python.removeprefix("{input} ").removesuffix(" {other}") if entry.in_place else ""


def _by_template(entry: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Names) -> str:
    given = dict(zip(ORDER[entry.name], args, strict=False)) | dict(kwargs)
    found = {key: _operand(value, names) for key, value in given.items()}
    if "{index}" in entry.python and "index" in given:
        found["index"] = _index(given["index"], names)
    try:
        return entry.python.format(**found)
    except KeyError as missing:
        why = f"function {entry.name!r} is called without its argument {missing}"
        raise FileError("file-network-invalid", f"{why}, so that it cannot be written as Python") from None


def _operand(value: Any, names: Names) -> str:
    """A value beside an operator: a number below zero stands in brackets."""
    text = literal(value, names)
    return f"({text})" if text.startswith("-") else text


# -- layers ------------------------------------------------------------------------------------------------


def layer(spec: LayerSpec) -> str:
    r"""The constructor of a layer, without the arguments that are its defaults.

    Example:
        >>> from brickyard.base._specs import LayerSpec
        >>> from brickyard.export._spelling import layer
        >>> config = {"in_channels": 3, "out_channels": 6, "kernel_size": [3, 3], "padding": [0, 0], "bias": False}
        >>> layer(LayerSpec(type="Conv2d", config=config)).replace("\x1f", " ")
        'nn.Conv2d(3, 6, kernel_size=(3, 3), bias=False)'
    """
    cls = LAYER_TYPES[spec.type].cls
    if getattr(nn, cls.__name__, None) is not cls:
        raise FileError("file-unsupported-operation", f"layer type {told(spec.type, 80)!r} is none of torch.nn's")
    usual = _defaults(cls)
    place, found = 0, []
    order = [name for name in usual if name in spec.config]
    for name in order:
        value = _tuples(spec.config[name])
        if _is_default(value, usual[name]):
            continue
        leading = usual[name] is inspect.Parameter.empty and place == list(usual).index(name) and place < 2
        place += leading
        found.append(literal(value) if leading else f"{name}={literal(value)}")
    return f"nn.{cls.__name__}({joined(found)})"


def _defaults(cls: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters.values()
    return {item.name: item.default for item in parameters if item.kind is not item.VAR_KEYWORD}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _is_default(value: Any, default: Any) -> bool:
    """Whether an argument is its default, or a tuple of nothing else where the default is one number for all sides."""
    if isinstance(value, tuple) and isinstance(default, int):
        return bool(value) and all(item == default for item in value)
    return type(value) is type(default) and bool(value == default)
