"""Restores the caller's model: modes, weights and generators."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from brickyard.network._torch_private import own_buffers, version_of


class _Held:
    """A module's state before anything ran it."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 1
        self.module = module
        self.training = module.training
        self.attributes = dict(vars(module))
        self.contents = {
            name: copy.copy(value)
            for name, value in self.attributes.items()
            if type(value) in (list, dict, set, OrderedDict)
        }
        self.buffers = [(b, b.detach().clone(), version_of(b)) for b in own_buffers(module)]

    def restore(self) -> None:
        """Restore what running it has changed: attributes and their contents, buffers, the mode."""
        module = self.module
        for name in vars(module).keys() - self.attributes.keys():
            del vars(module)[name]
        for name, value in self.attributes.items():
            if vars(module).get(name, module) is not value:
                vars(module)[name] = value
            if name in self.contents and not _same(value, self.contents[name]):
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(self.contents[name])
        for buffer, numbers, version in self.buffers:
            if version is None or version_of(buffer) != version:
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(numbers)
        module.training = self.training


def _same(value: Any, before: Any) -> bool:
    """Whether a container holds the very same objects."""
    if isinstance(value, set):
        return bool(value == before)
    if isinstance(value, list):
        return len(value) == len(before) and all(a is b for a, b in zip(value, before, strict=True))
    return list(value) == list(before) and all(value[key] is before[key] for key in before)


_held: dict[int, _Held] = {}  # modules that some thread runs; the last one to finish restores them
_holding = threading.RLock()


@contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and always restore whatever running it changes.

    Several threads may use a model at once; a forward compiled by `torch.compile` is bypassed.
    """
    modules = list(model.modules())
    with _holding:
        for module in modules:
            if id(module) in _held:
                _held[id(module)].count += 1
                continue
            _held[id(module)] = _Held(module)
        for module in modules:  # only once all are known: some show another's mode
            module.training = False
            if vars(module).get("_compiled_call_impl") is not None:
                vars(module)["_compiled_call_impl"] = None
    try:
        yield
    finally:
        with _holding:
            for module in modules:
                held = _held[id(module)]
                held.count -= 1
                if held.count == 0:
                    del _held[id(module)]
                    held.restore()
