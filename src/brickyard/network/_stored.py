"""A network's weights in files: matched to its steps, and filled in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brickyard.base._errors import FileError
from brickyard.base._messages import told
from brickyard.base._sides import BATCHED, INPUTS
from brickyard.base._specs import NetworkSpec
from brickyard.network._cost_limit import BATCHES, Bounds
from brickyard.network._network import Network

_PLACES = (torch.int64, torch.int32, torch.uint8, torch.bool)  # of bare tensors that index others


def tensors_of(module: nn.Module | None, prefix: str) -> dict[str, Tensor]:
    state = {} if module is None else module.state_dict()
    blank = next((name for name, value in state.items() if value.is_meta), None)
    if blank is not None:
        raise FileError(
            "file-meta-device",
            f"tensor {blank!r} is on the meta device and has no values to write; load the component again",
        )
    return {prefix + name: value for name, value in state.items()}


def stored_network(
    spec: NetworkSpec,
    tensors: dict[str, Tensor],
    prefix: str,
    shape: tuple[int, ...],
    width: int,
    bounds: Bounds,
    places: tuple[int | None, ...] = (),
) -> Network:
    """Build a network, check that it runs from images to the right number of outputs for each, fill in its weights.

    A detector's outputs are those of so many `places`, or of any number of them: (None,).
    """
    network = Network.from_spec(spec)
    if len(shape) + 1 not in BATCHED:
        raise FileError("file-inconsistent", f"its input shape must be {INPUTS}, got {shape}")
    match_types(network, tensors, prefix)
    try:
        found = bounds.answers(network, shape)
    except FileError:
        raise
    except Exception as error:
        raise FileError(
            "file-network-invalid", f"its network does not run on images of shape {shape}: {told(error)}"
        ) from None
    shapes = [tuple(one.shape) if isinstance(one, Tensor) else () for one in found]
    wanted = [(count, width, *places) for count in BATCHES]
    if any(
        len(a) != len(b) or any(y not in (None, x) for x, y in zip(a, b, strict=True))
        for a, b in zip(shapes, wanted, strict=True)
    ):
        each = f" of {places[0] or 'several'} places" if places else ""
        raise FileError("file-network-invalid", f"its network does not return {width} outputs{each} per image")
    fill_in(network, tensors, prefix)
    return network


def taken(
    tensors: dict[str, Tensor], name: str, shape: tuple[int, ...] = (), dtype: torch.dtype | None = None
) -> Tensor:
    """Take a tensor out of those of a file.

    Args:
        tensors: The tensors; it is removed.
        name: Its name.
        shape: Its shape; empty: any.
        dtype: Its type; None: any floating-point type.

    Raises:
        FileError: There is no such tensor.
    """
    value = tensors.pop(name, None)
    fits = value is not None and (value.is_floating_point() if dtype is None else value.dtype == dtype)
    if value is None or not fits or (shape and tuple(value.shape) != shape):
        found = "missing" if value is None else f"{tuple(value.shape)} of {value.dtype}"
        raise FileError(
            "file-tensor-mismatch",
            f"tensor {name!r} is {found}; {shape or 'numbers'} of {dtype or 'floating-point numbers'} is expected",
        )
    return value


def count_numbers(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())


def match_types(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Convert a module without weights to the types of the file's tensors."""
    state = module.state_dict()
    bare = set(module.tensor_names) if isinstance(module, Network) else set()
    trained = {name for name, _ in module.named_parameters()}
    for name, blank in state.items():
        value = tensors.get(prefix + name)
        if value is None or not blank.is_floating_point():
            continue
        if value.is_floating_point() or (name in bare - trained and value.dtype in _PLACES):
            state[name] = blank.to(value.dtype)
    module.load_state_dict(state, strict=True, assign=True)


def fill_in(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Fill a module with the file's weights."""
    state: dict[str, Tensor] = {}
    for name, blank in module.state_dict().items():
        value = tensors.pop(prefix + name, None)
        if value is None:
            raise FileError("file-tensor-mismatch", f"tensor {prefix + name!r} is missing")
        if value.shape != blank.shape or value.dtype != blank.dtype:
            raise FileError(
                "file-tensor-mismatch",
                f"tensor {prefix + name!r} is {tuple(value.shape)} of {value.dtype}; expected "
                f"{tuple(blank.shape)} of {blank.dtype}",
            )
        state[name] = value
    module.load_state_dict(state, strict=True, assign=True)


def check_all_used(tensors: dict[str, Tensor]) -> None:
    if tensors:
        raise FileError(
            "file-tensor-mismatch",
            f"tensor {sorted(tensors)[0]!r} is not used by anything in the file ({len(tensors)} such tensors in total)",
        )
