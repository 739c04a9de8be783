"""Running on the meta device in little time: results are remembered by the shapes that they come from.

Torch derives many shapes in Python, up to 40 ms a call, and networks repeat the same few calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # not documented by torch

Key = tuple[Any, ...]


class Remembering(TorchDispatchMode):
    """Remembers results on the meta device while its `with` block runs, but for views and what changes its arguments.

    Example:
        >>> import torch
        >>> from brickyard.runtime._remembering import Remembering
        >>> x = torch.empty(2, 3, device="meta")
        >>> with Remembering():
        ...     x.exp().shape, x.exp().shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[Key, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, or make what it returned before."""
        return self.result(func, args, kwargs or {})

    def result(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operation returns."""
        key = _key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        if key in self._known:
            return _made(self._known[key])
        self.begin(func.overloadpacket.__name__)
        result = func(*args, **kwargs)
        form = _form(result)
        if form is not None:
            self._known[key] = form
        return result

    def begin(self, name: str) -> None:
        """Note that an operation runs that is not remembered."""


def _key(func: Any, args: Any, kwargs: dict[str, Any]) -> Key | None:
    """What tells a call from others, or None if it must run each time."""
    schema = func._schema
    if func.is_view or schema.is_mutable or any(one.alias_info is not None for one in schema.returns):
        return None
    try:
        key = (func, _said(args), _said(tuple(kwargs.items())))
        hash(key)
    except (TypeError, _NotMetaError):
        return None
    return key


class _NotMetaError(Exception):
    """A tensor has numbers."""


def _said(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _NotMetaError
        return Tensor, value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_said, value))
    return type(value), value


def _form(value: Any) -> tuple[Any, ...] | None:
    """How to make a result again, or None if it is no tensor without numbers, nor several of these."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, tuple | list) and value:
        forms = [_form(item) for item in value]
        return None if None in forms else (type(value), forms)
    return None


def _made(form: Any) -> Any:
    if isinstance(form[0], type):
        kind, forms = form
        return kind(map(_made, forms))
    shape, stride, dtype = form
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
