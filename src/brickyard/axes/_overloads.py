"""Names of torch that mean several things: which function of the table a call is, by its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brickyard.network._network import Ref

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
_EXTREMES = {"max": ("amax", "maximum"), "min": ("amin", "minimum")}
_OF_MEMORY = ("device", "layout", "pin_memory", "memory_format", "requires_grad")
_ATTRIBUTES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "shape": ("shape", ()),
    "ndim": ("dim", ()),
    "data": ("detach", ()),
    "T": ("t", ()),
    "mT": ("transpose", (-2, -1)),
    "real": ("real", ()),
    "imag": ("imag", ()),
    "values": ("getitem", (0,)),
    "indices": ("getitem", (1,)),
}


def of_attribute(args: tuple[Any, ...]) -> Call | None:
    """The function that gives an attribute of a value, or None."""
    found = _ATTRIBUTES.get(args[1])
    return None if found is None else (found[0], (args[0], *found[1]), {})


def resolved(name: str | None, own: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """The table's function that a call means, with its arguments, or None.

    Args:
        name: The table's function of that name, if there is one.
        own: The name that torch gives it.
        args: Its arguments by position.
        kwargs: Its arguments by name.
    """
    others = dict(kwargs)
    if own in _EXTREMES:
        return _extreme(own, args, others)
    if own == "median":
        return ("median_along", args, others) if len(args) + len(others) > 1 else None
    if own == "where" and len(args) + len(others) < 3:
        return None
    if own in ("hstack", "vstack") and len(args) == 1 and not others:
        return "cat", (args[0], int(own == "hstack")), {}
    if own in ("narrow", "select"):
        return _part(own, args, others)
    if own == "meshgrid":
        tensors = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        return own, (tuple(tensors), others.get("indexing", "ij")), {}
    if own.endswith("_like"):  # that is on the device of its input, wherever it is
        others = {key: value for key, value in others.items() if key not in _OF_MEMORY}
    return None if name is None else (name, args, others)


def _extreme(own: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The largest number of all, of two values, or along a dimension."""
    of_all, of_two = _EXTREMES[own]
    if len(args) + len(kwargs) == 1:
        return of_all, args, kwargs
    if "other" in kwargs or (len(args) > 1 and isinstance(args[1], Ref)):
        return of_two, args, kwargs
    return f"{own}_along", args, kwargs


def _part(own: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """A part of one dimension as a subscript."""
    keys = ("input", "dim", "index") if own == "select" else ("input", "dim", "start", "length")
    given = dict(zip(keys, args, strict=False)) | dict(kwargs)
    dim, part = given["dim"], given["index"] if own == "select" else _run_of(given["start"], given["length"])
    if not isinstance(dim, int) or part is None:
        return None
    before, behind = ((slice(None),) * dim, ()) if dim >= 0 else ((Ellipsis,), (slice(None),) * (-dim - 1))
    return "getitem", (given["input"], (*before, part, *behind)), {}


def _run_of(start: Any, length: Any) -> slice | None:
    """So many places from one on, if their end is known."""
    if start == 0 and isinstance(start, int):
        return slice(0, length)
    counted = isinstance(start, int) and isinstance(length, int) and start > 0
    return slice(start, start + length) if counted else None
