"""Settles what a network's code asks of types, devices and sizes: conversions, and values made of sizes.

What a value's type and device are is known from a run on the example. A conversion that changes nothing goes; another
one becomes a function of the table. `torch.zeros(x.size(0), 8)` becomes a value that has the type and the device of the
images, wherever the network is later run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._lowering import Draft
from brickyard.network._functions import FUNCTIONS
from brickyard.network._network import Node, Ref, map_refs, refs, with_refs

_CONVERSIONS = {
    *("to", "_to_copy", "type", "type_as", "double", "half", "bfloat16", "long", "int", "bool", "cpu", "cuda"),
}
_FILLED = {"zeros": 0, "ones": 1, "new_zeros": 0, "new_ones": 1}
_SIZED = {*_FILLED, "full", "new_full", "arange", "linspace"}
_ATTRIBUTE_KINDS = (torch.dtype, torch.device, torch.layout, str, bool, type(None))


def settle(draft: Draft) -> None:
    """Replace conversions, and values made of sizes, by functions of the table; changes the draft."""
    names = {_name_of(call) for call in draft.foreign.values()} | {node.target for node in draft.nodes}
    if not names & (_CONVERSIONS | _SIZED | {"getattr"}):
        return
    values = run(draft, draft.example)
    same: dict[str, Any] = {}
    nodes: list[Node] = []
    for node in draft.nodes:
        node = with_refs(node, partial(_settled, same))
        call = draft.foreign.get(node.target) if node.op == "function" else None
        name, value = _name_of(call), values.get(node.name)
        if call is getattr and isinstance(value, _ATTRIBUTE_KINDS):
            same[node.name] = value
        elif (name in _CONVERSIONS or node.target == "type_as") and isinstance(value, Tensor):
            _convert(draft, node, values, nodes, same)
        elif name in _SIZED and isinstance(value, Tensor) and _by_sizes(node, values):
            nodes += _made(draft, node, name, value, values) or [node]
        else:
            nodes.append(node)
    draft.nodes = nodes


def _name_of(call: Callable[..., Any] | None) -> str:
    return str(getattr(call, "_opname", getattr(call, "__name__", "")))


def _settled(same: dict[str, Any], ref: Ref) -> Any:
    return same.get(ref.node, ref)


def run(draft: Draft, images: Tensor) -> dict[str, Any]:
    """Every step's value on some images; of tensors, an empty one of that type and device."""
    found: dict[str, Any] = {}
    values: dict[str, Any] = {}
    last = {name: place for place, node in enumerate(draft.nodes) for name in (node.name, *refs(node))}
    for place, node in enumerate(draft.nodes):
        value = values[node.name] = _value(draft, node, values, images)
        found[node.name] = value.new_empty(0) if isinstance(value, Tensor) else value
        for name in {node.name, *refs(node)}:
            if last[name] == place:
                del values[name]
    return found


def _value(draft: Draft, node: Node, values: dict[str, Any], images: Tensor) -> Any:
    args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: values[ref.node])
    if node.op == "input":
        return images.clone()
    if node.op == "tensor":
        return draft.tensors[node.target]
    if node.op == "output":
        return args[0]
    layer = draft.layers.get(node.target) if node.op == "layer" else None
    call = layer or draft.foreign.get(node.target) or FUNCTIONS[node.target].call
    with torch.no_grad():
        return call(*args, **kwargs)


def _convert(draft: Draft, node: Node, values: dict[str, Any], nodes: list[Node], same: dict[str, Any]) -> None:
    """Leave a conversion out that changes nothing; write another one as a function of the table."""
    x, after = node.args[0], values[node.name]
    before = values[x.node]
    if before.device != after.device or (node.target == "type_as" and before.dtype != after.dtype):
        nodes.append(node)
    elif before.dtype == after.dtype:
        same[node.name] = x
    else:
        nodes.append(_typed(draft, node, x, after.dtype))


def _typed(draft: Draft, node: Node, x: Ref, dtype: torch.dtype) -> Node:
    """A step that gives a value the type of the images, or another one."""
    if dtype == draft.example.dtype:
        return replace(node, target="type_as", args=(x, Ref(draft.nodes[0].name)), kwargs={})
    return replace(node, target="to_type", args=(x, dtype), kwargs={})


def _by_sizes(node: Node, values: dict[str, Any]) -> bool:
    """Whether a value is made of sizes that may change; else it is a constant, which is computed once."""
    given = node.args[1:] if _is_like(node) else node.args
    found: list[str] = []
    map_refs((given, dict(node.kwargs)), lambda ref: found.append(ref.node))
    return bool(found) and not any(isinstance(values[name], Tensor) for name in found)


def _is_like(node: Node) -> bool:
    """Whether a value is made like another one, which is the first argument."""
    return node.target.startswith(("Tensor.", "aten.new_"))


def _made(draft: Draft, node: Node, name: str, value: Tensor, values: dict[str, Any]) -> list[Node]:
    """The steps that make a value of sizes; none if it is written in a way that is not known."""
    images = Ref(draft.nodes[0].name)
    given = list(node.args[1:] if _is_like(node) else node.args)
    kwargs = dict(node.kwargs)
    if name in ("arange", "linspace"):
        call = _row(name, images, given, kwargs, value.dtype)
    else:
        call = _filled(name, images, given, kwargs, draft)
    if call is None or value.device != draft.example.device:
        return []
    if value.dtype == draft.example.dtype and call[0] in ("new_full", "full_like"):
        return [replace(node, target=call[0], args=call[1], kwargs={})]
    if not value.is_floating_point() and call[0] == "arange":
        return [replace(node, target=call[0], args=call[1], kwargs={})]
    first = replace(node, name=f"{node.name}_made", target=call[0], args=call[1], kwargs={})
    return [first, _typed(draft, node, Ref(first.name), value.dtype)]


def _row(
    name: str, images: Ref, given: list[Any], kwargs: dict[str, Any], dtype: torch.dtype
) -> tuple[str, tuple[Any, ...]] | None:
    if name == "linspace":
        keys = ("start", "end", "steps")
        found = dict(zip(keys, given, strict=False)) | {key: kwargs[key] for key in keys if key in kwargs}
        return ("linspace", (images, *(found[key] for key in keys), dtype)) if len(found) == 3 else None
    start, end, step = kwargs.get("start", 0), kwargs.get("end"), kwargs.get("step", 1)
    if len(given) == 1:
        end = given[0]
    elif given:
        start, end, step = (*given, step)[:3]
    return None if end is None else ("arange", (images, start, end, step, dtype))


def _filled(
    name: str, images: Ref, given: list[Any], kwargs: dict[str, Any], draft: Draft
) -> tuple[str, tuple[Any, ...]] | None:
    number: Any = None
    if name in _FILLED:
        number = _FILLED[name]
        size = kwargs.get("size", given[0] if len(given) == 1 else tuple(given))
    else:
        number = kwargs.get("fill_value", given[1] if len(given) > 1 else None)
        size = kwargs.get("size", given[0] if given else None)
    if number is None or isinstance(number, Ref):
        return None
    if isinstance(size, Ref):
        source = next(node for node in draft.nodes if node.name == size.node)
        if source.target == "shape":
            return "full_like", (source.args[0], number)
        if "getitem" in source.target:
            return None
        size = (size,)
    return "new_full", (images, tuple(size) if isinstance(size, list) else size, number)
