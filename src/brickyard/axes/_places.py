"""Where in the user's code a step comes from, and which step a refusal is about.

A line is told as "net.py line 12 (y = y + z)". Lines of torch and of Brickyard itself are passed over.
"""

from __future__ import annotations

import contextlib
import dis
import linecache
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._messages import told
from brickyard.network._network import Network

_HOMES = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent.parent}{os.sep}", "<eval_with", "<frozen")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ')
_ADVICE = {
    "cannot be iterated": "take the pieces with x.unbind(dim) or x.split(size, dim)",
    "control flow": "decide with torch.where(condition, a, b), or by x.shape",
    "unpack": "take the pieces with x.unbind(dim) or x.split(size, dim)",
    "'len' is not supported": "write x.shape[0] in place of len(x)",
    "int() argument": "keep the number in the model, or compute with tensors in place of int() and .item()",
    "float() argument": "keep the number in the model, or compute with tensors in place of float() and .item()",
    "real number": "keep the number in the model, or compute with tensors in place of float() and .item()",
    "interpreted as an integer": "keep the number in the model, or take it from x.shape",
    "__index__": "keep the number in the model, or take it from x.shape",
    "umpy": "use torch's functions in place of numpy's",
}


def line_of(filename: str, number: int | None) -> str:
    """A line of code for a message: its file's name, its number and its text."""
    text = linecache.getline(filename, number or 0).strip()
    return f"{Path(filename).name} line {number}" + (f" ({told(text, 80)})" if text else "")


def line_of_error(error: BaseException) -> str:
    """The innermost line of the user's code that an error went through, or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_HOMES)]
    return line_of(own[-1].filename, own[-1].lineno) if own else ""


def line_running(until: CodeType) -> str:
    """The innermost line of the user's code that is running now, called by the code `until`, or ""."""
    frame = sys._getframe(1)
    while frame.f_code is not until and frame.f_back is not None:
        if not frame.f_code.co_filename.startswith(_HOMES):
            return line_of(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def line_of_export(stack: str | None) -> str:
    """The innermost line of the user's code in the stack that `torch.export` notes of a step, or ""."""
    own = [(name, number) for name, number in _FRAME.findall(stack or "") if not name.startswith(_HOMES)]
    return line_of(own[-1][0], int(own[-1][1])) if own else ""


def line_of_forward(model: nn.Module, returns: bool = False) -> str:
    """The line where a model's forward begins, or where it returns if it does so on one line; "" if it is torch's."""
    code = getattr(getattr(model.forward, "__func__", model.forward), "__code__", None)
    if code is None or code.co_filename.startswith(_HOMES):
        return ""
    lines = {
        step.positions.lineno for step in dis.get_instructions(code) if step.opname == "RETURN_VALUE" and step.positions
    }
    number = lines.pop() if returns and len(lines) == 1 else code.co_firstlineno
    return line_of(code.co_filename, number)


def advice_for(text: str) -> str:
    """What to write in place of what tracing cannot follow."""
    return next((advice for mark, advice in _ADVICE.items() if mark in text), "make it independent of the input")


def after(line: str) -> str:
    """A line as the end of a phrase, if there is one."""
    return f" at {line}" if line else ""


def first_step(network: Network, images: Tensor, wrong: Callable[[Any], bool]) -> str:
    """The first step whose value is wrong, or which fails, for a message; "" if there is none."""
    node = network.nodes[0]
    try:
        for _, following, values in network.walk(images):
            if node.name in values and wrong(values[node.name]):
                return node.place
            node = following
    except Exception:  # the step that fails is what was looked for
        return node.place
    return ""


def failing_step(network: Network, images: Tensor) -> str:
    """The step that fails on these images, for a message; "" if none does."""
    return first_step(network, images, lambda value: False)


def not_finite(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())


def mixing_step(network: Network, images: Tensor, place: int) -> str:
    """The first step whose value for an image depends on the others of its batch, for a message."""
    walks = network.walk(images), network.walk(images[place : place + 1])
    last = network.nodes[0]
    for (_, node, among), (_, _, alone) in zip(*walks, strict=True):
        whole, one = among.get(last.name), alone.get(last.name)
        if isinstance(whole, Tensor) and isinstance(one, Tensor) and whole.is_floating_point() and whole.ndim:
            if whole.shape[0] == len(images) and one.shape[0] == 1:
                whole = whole[place : place + 1]
            if whole.shape == one.shape and not _alike(whole, one):
                return last.place
        last = node
    return ""


def drawing_step(network: Network, images: Tensor) -> str:
    """The first step that returns something else when it runs again, for a message."""
    last = network.nodes[0]
    for (_, node, first), (_, _, second) in zip(network.walk(images), network.walk(images), strict=True):
        one, other = first.get(last.name), second.get(last.name)
        if isinstance(one, Tensor) and isinstance(other, Tensor) and not torch.equal(one, other):
            return last.place
        last = node
    return ""


def parting_step(model: nn.Module, network: Network, images: Tensor) -> str:
    """The first layer whose output differs between a model and what was read of it, for a message."""
    outputs: dict[str, list[Any]] = {}
    with _noted(model, set(network.layer_names), outputs):
        model(images)
    for _, node, values in network.walk(images):
        if node.op == "layer" and outputs.get(node.target):
            expected, found = outputs[node.target].pop(0), network.step(node, values)
            if not isinstance(expected, Tensor) or found.shape != expected.shape or not _alike(found, expected):
                return node.place
    return ""


def _alike(a: Tensor, b: Tensor) -> bool:
    share = 3e-2 if a.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return torch.allclose(a, b, rtol=share, atol=share * float(b.abs().nan_to_num().amax() if b.numel() else 0))


@contextlib.contextmanager
def _noted(model: nn.Module, names: set[str], outputs: dict[str, list[Any]]) -> Iterator[None]:
    """Note what layers return while the block runs."""

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, result: outputs.setdefault(name, []).append(
            result.clone() if isinstance(result, Tensor) else result
        )

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
