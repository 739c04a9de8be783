"""What no use, right or wrong, may change: the models given, and the state that all code shares."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def snapshot(*models: nn.Module) -> dict[str, Any]:
    """All that must not change: of models everything that can be seen, and the state that all code shares."""
    found: dict[str, Any] = {}
    for number, model in enumerate(models):
        for name, module in model.named_modules():
            place = f"model {number}, module {name!r}: "
            found[place + "class"] = type(module)
            found[place + "mode"] = module.training
            for key, value in vars(module).items():
                found[f"{place}attribute {key}"] = _seen(value)
        named = itertools.chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        )
        for name, value in named:
            found[f"model {number}, tensor {name!r}"] = _tensor(value)
            found[f"model {number}, gradient of {name!r}"] = None if value.grad is None else _tensor(value.grad)
    found["torch's random state"] = bytes(torch.get_rng_state().numpy())
    found["numpy's random state"] = str(np.random.get_state())
    found["Python's random state"] = random.getstate()
    found["default type"] = torch.get_default_dtype()
    found["default device"] = torch.get_default_device()
    found["threads"] = torch.get_num_threads(), torch.get_num_interop_threads()
    found["gradients"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    found["autocast"] = torch.is_autocast_enabled("cpu")
    found["determinism"] = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    found["what torch calls"] = nn.Module.__call__, nn.Module.__getattr__
    found["environment"] = dict(os.environ)
    found["folder"] = Path.cwd()
    return found


def _seen(value: Any) -> Any:
    """An attribute: itself, and what it holds where it is a container."""
    if type(value) in (dict, OrderedDict):
        return value, [(key, _Same(item)) for key, item in value.items()]
    if type(value) in (list, tuple, set):
        return _Same(value), [_Same(item) for item in value]
    return _Same(value)


class _Same:
    """Equal to the very same thing only; it is kept, so that no other can take its place in memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and (self.value is other.value or _plain_equal(self.value, other.value))

    __hash__ = None  # type: ignore[assignment]


def _plain_equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, bool | int | float | str | type(None)) and a == b


def _tensor(value: Tensor) -> tuple[Any, ...]:
    lazy = isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer)
    blank = lazy or value.is_meta or value.is_quantized
    content = b"" if blank else value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    shape = () if lazy else tuple(value.shape)
    return _Same(value), shape, value.dtype, value.device, value.requires_grad, value.is_leaf, content


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    missing = object()
    return [key for key in {**before, **after} if _differ(before.get(key, missing), after.get(key, missing))]


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == 2 and isinstance(a[0], dict):
        return a[0] is not b[0] or a[1] != b[1]
    return bool(a != b)


@contextlib.contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Check that models, and the state that all code shares, are the same after the block, also where it fails."""
    before = snapshot(*models)
    try:
        yield
    finally:
        assert changes(before, snapshot(*models)) == []
