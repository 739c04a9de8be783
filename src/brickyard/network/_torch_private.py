"""Every use of torch beyond its documented interface but for dispatch modes: if torch changes, fix it here."""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _device

PAD = torch._C._nn.pad  # what `F.pad` is bound to
ASSERT = torch._assert
ASSERT_IS_NONE = fx._symbolic_trace._assert_is_none
NO_FORWARD = nn.modules.module._forward_unimplemented
_CALLS = {name: getattr(nn.Module, name) for name in ("__call__", "__getattr__")}


def stored(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own parameters and buffers, by their names in the module."""
    return {**module._parameters, **module._buffers}


def store(module: nn.Module, name: str, value: Tensor | None) -> None:
    """Replace one of a module's own parameters or buffers, without any check."""
    if name in module._parameters:
        module._parameters[name] = None if value is None else nn.Parameter(value, value.is_floating_point())
    else:
        module._buffers[name] = value


def own_buffers(module: nn.Module) -> list[Tensor]:
    return [value for value in module._buffers.values() if value is not None]


def child(module: nn.Module, name: str) -> nn.Module | None:
    """A module's direct child, even if an attribute hides it."""
    return module._modules.get(name)


def adopt(parent: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    """Put a module or tensor under a name, even if an attribute hides it: `layer`, `training`, `forward`."""
    if isinstance(value, nn.Module):
        parent._modules[name] = value
    elif isinstance(value, nn.Parameter):
        parent._parameters[name] = value
    else:
        parent._buffers[name] = value


def taken_names(module: nn.Module) -> set[str]:
    """The names of a module's own parameters and buffers, and of its direct children."""
    return {*module._parameters, *module._buffers, *module._modules}


def hooked(module: nn.Module) -> bool:
    """Whether anything runs before or after a module's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def version_of(value: Tensor) -> int | None:
    """How often a tensor has been changed, or None if torch does not count."""
    return None if value.is_inference() else value._version


def padding_around(layer: Any) -> Any:
    """A convolution's padding in the form of `F.pad`: last dimension first, both sides."""
    return layer._reversed_padding_repeated_twice


def is_pure(call: Any) -> bool:
    """Whether something is an operator that changes nothing and draws no random numbers."""
    if not isinstance(call, torch._ops.OpOverload):
        return False
    return not call._schema.is_mutable and torch.Tag.nondeterministic_seeded not in call.tags


def with_versions(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights with the versions of a module's layers: some layers ask for them while they load."""
    found = OrderedDict(tensors)
    found._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    return found


def own_parameters(module: nn.Module) -> list[Tensor]:
    lazy = nn.parameter.UninitializedParameter
    return [value for value in module._parameters.values() if value is not None and not isinstance(value, lazy)]


def place_of(value: Tensor) -> int | None:
    """Where a tensor's numbers are, or None if it does not say."""
    try:
        return value.data_ptr()
    except RuntimeError:
        return None


class Modes:
    """The modes of torch that a thread is in: stacks, and the default device, which is kept apart."""

    def __init__(self) -> None:
        self.functions, self.dispatches = _function_modes(), _dispatch_modes()
        self.device = _device.CURRENT_DEVICE

    def restore(self) -> None:
        if _function_modes() != self.functions:
            while torch._C._len_torch_function_stack():
                torch._C._pop_torch_function_stack()
            for mode in self.functions:
                torch._C._push_on_torch_function_stack(mode)
        if _dispatch_modes() != self.dispatches:
            for mode in reversed(_dispatch_modes()):
                torch._C._pop_torch_dispatch_stack(getattr(mode, "_mode_key", None))
            for mode in self.dispatches:
                torch._C._push_on_torch_dispatch_stack(mode)
        _device.CURRENT_DEVICE = self.device


def _function_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(place) for place in range(torch._C._len_torch_function_stack())]


def _dispatch_modes() -> list[Any]:
    return [torch._C._get_dispatch_stack_at(place) for place in range(torch._C._len_torch_dispatch_stack())]


class SharedState:
    """What all code of a thread or of the process shares, and interrupted code of libraries may leave changed."""

    def __init__(self) -> None:
        self.modes, self.gradients, self.type = Modes(), torch.is_grad_enabled(), torch.get_default_dtype()
        self.filters, self.warn, self.streams = warnings.filters, warnings.showwarning, (sys.stdout, sys.stderr)
        self.drawn = torch.default_generator.get_state()

    def restore(self) -> None:
        self.modes.restore()
        torch.set_grad_enabled(self.gradients)
        if torch.get_default_dtype() != self.type:
            torch.set_default_dtype(self.type)
        for name, value in _CALLS.items():
            if getattr(getattr(nn.Module, name), "__fx_already_patched", False):  # by a tracer that was cut off
                setattr(nn.Module, name, value)
        warnings.filters, warnings.showwarning = self.filters, self.warn
        sys.stdout, sys.stderr = self.streams
        torch.default_generator.set_state(self.drawn)
