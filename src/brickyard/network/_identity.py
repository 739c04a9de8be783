"""A model's identity, whatever torch has wrapped around it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from brickyard.base._errors import TraceError
from brickyard.network._torch_private import child, hooked

_QUANTISED = (".quantized.", ".quantizable.")  # in the names of torch's modules of quantised layers
_CONVERTED: MutableMapping[nn.Module, tuple[str, str]] = WeakKeyDictionary()  # digests: of its weights, before that


def source_of(model: Any) -> nn.Module:
    """Unwrap a network from anything torch puts around it (`torch.compile`, data parallelism), and check its weights.

    Raises:
        TraceError: It is not a module, its weights are missing or not floating point, or it is not Python code.
    """
    if not isinstance(model, nn.Module):
        where = ", which is its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise TraceError(
            "trace-not-module",
            f"the model must be a torch.nn.Module, got {type(model).__name__}; give the trained network itself{where}",
        )
    while (inner := wrapped(model)) is not None:
        model = inner
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "trace-torchscript",
            f"the model must be a Python network, but {name} is a TorchScript program, whose layers "
            "cannot be read; give the torch.nn.Module it was made from",
        )
    for place, module in model.named_modules():
        if any(mark in type(module).__module__ for mark in _QUANTISED):
            raise TraceError(
                "trace-not-floating-point",
                f"the network must be floating-point, but layer {place or name!r} is a quantised "
                f"{type(module).__name__}; disassemble the float network, and quantise the result",
            )
    for place, value in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(value, UninitializedParameter | UninitializedBuffer):
            raise TraceError(
                "trace-no-weights",
                f"the network must have weights, but {place!r} is not initialised yet; run {name} "
                "once on a batch, and train it",
            )
        if value.is_meta:
            raise TraceError(
                "trace-no-weights",
                f"the network must have weights, but {place!r} is on the meta device, which holds "
                f"none; load weights, for example with {name}(...).to_empty(device='cpu') and "
                "load_state_dict",
            )
        if value.is_complex() or value.is_quantized:
            raise TraceError(
                "trace-not-floating-point",
                f"the network must be floating-point, but {place!r} is {value.dtype}; convert it to float32",
            )
    found: nn.Module = model
    return found


def wrapped(model: nn.Module) -> nn.Module | None:
    """The module inside one of torch's wrappers, or None; a wrapper with hooks of its own is not unwrapped."""
    if hooked(model):
        return None
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    if type(model).__name__ == "OptimizedModule":  # importing its class takes a second
        return child(model, "_orig_mod")
    return None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of a model's weights, whatever torch has wrapped around it.

    A model that was converted when it was loaded has that of its weights before.

    Raises:
        TraceError: It is not a module, or has no weights.
    """
    source = source_of(model)
    found = digest_of(source.state_dict())
    now, before = _CONVERTED.get(source, (found, found))
    return before if now == found else found


def known_as(model: nn.Module, before: str) -> None:
    """Let a model that was just converted to another type keep its fingerprint, for as long as nobody changes it."""
    _CONVERTED[model] = digest_of(model.state_dict()), before


def digest_of(state: Mapping[str, Any]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor):
            value = value.to_dense() if value.layout != torch.strided else value
            digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def names_of(model: nn.Module, outputs: int) -> tuple[str, ...] | None:
    """The names that a model of transformers has for its outputs, if somebody gave them; equal ones are numbered."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict) or {str(key) for key in names} != set(map(str, range(outputs))):
        return None
    found = [str(name) if name else "" for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if found == [f"LABEL_{k}" for k in range(outputs)] or not all(
        found
    ):  # what the library calls classes without names
        return None
    unique = tuple(f"{name} ({k})" if found.count(name) > 1 else name for k, name in enumerate(found))
    return unique if len(set(unique)) == len(unique) else None


QUANTITY, SEVERAL = "quantity", "several"


def problem_of(model: Any) -> str:
    """What a model of transformers, or a classifier right inside another module, was trained for as its config says.

    Returns:
        `QUANTITY`; `SEVERAL` classes at once; or "" for one class of many, and where nothing is known.
    """
    inner = (
        [m for m in model.children() if "Classification" in type(m).__name__] if isinstance(model, nn.Module) else []
    )
    configs = [getattr(module, "config", None) for module in (model, *inner)]
    return next((problem_in(config) for config in configs if hasattr(config, "problem_type")), "")


def problem_in(config: Any) -> str:
    """What a config of transformers says that a model was trained for, as for `problem_of`."""
    kind = getattr(config, "problem_type", None)
    if kind == "multi_label_classification":
        return SEVERAL
    one = getattr(config, "num_labels", 2) == 1  # the library then trains with a squared error
    return QUANTITY if kind == "regression" or (kind is None and one) else ""


def weights_like(model: nn.Module) -> Tensor:
    """A tensor with the device and type of a model's weights."""
    if isinstance(model, nn.Module):
        for value in model.parameters():
            if value.is_floating_point():
                return torch.empty(0, dtype=value.dtype, device=value.device)
    return torch.zeros(0)
