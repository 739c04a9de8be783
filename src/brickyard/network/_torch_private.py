"""Every use of torch beyond its documented interface: if torch changes, fix it here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

PAD = torch._C._nn.pad  # what `F.pad` is bound to
ASSERT = torch._assert
ASSERT_IS_NONE = fx._symbolic_trace._assert_is_none
NO_FORWARD = nn.modules.module._forward_unimplemented


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
