"""Where networks compute: their device, and the type of their numbers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from brickyard.base._checks import check_choice
from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import brief, first_line, told
from brickyard.base._options import DTYPES
from brickyard.network._identity import digest_of, known_as

ModelT = TypeVar("ModelT")

# What torch says of an operation that a device or a type of numbers lacks.
_LACKING = re.compile(
    r"not implemented for '(Half|BFloat16)'|[Uu]nsupported dtype (Half|BFloat16)|must be either float or double dtype"
    r"|not currently implemented for the \S+ device|the MPS (framework|device|backend)|(CUDA|HIP|backend) out of memory"
)


@dataclass(frozen=True)
class Place:
    """A device and a type of numbers; None leaves a network as it is."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, device: Any = None, dtype: Any = None) -> Place:
        """The place that is asked for, after checking that it works; what is not given is that of `placed`.

        Args:
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU if there is one; or a torch.device.
            dtype: "float32", "float64", "float16" or "bfloat16"; or a torch.dtype.

        Raises:
            OptionError: There is no such device or type, or the device has no such numbers.

        Example:
            >>> from brickyard.network._place import Place
            >>> Place.of("cpu", "float64")
            Place(device=device(type='cpu'), dtype=torch.float64)
        """
        usual = _PLACE.get()
        kind = usual.dtype
        if dtype is not None:
            name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
            check_choice("dtype", name, tuple(DTYPES))
            kind = getattr(torch, name)
        found = usual.device if device is None else device_named(device)
        if found is not None and kind is not None:
            _try(found, kind)
        return cls(found, kind)

    def put(self, model: ModelT) -> ModelT:
        """Bring a network here, in place; anything else stays as it is. It keeps its identity: see `fingerprint`.

        Raises:
            DataError: A weight is too large for the type.
            OptionError: The device has no room for it.
        """
        if not isinstance(model, nn.Module) or (self.device is None and self.dtype is None):
            return model
        before = model.state_dict()
        convert = any(v.is_floating_point() and v.dtype != self.dtype for v in before.values()) and self.dtype
        own = digest_of(before) if convert else ""
        finite = {name for name, value in before.items() if not convert or bool(torch.isfinite(value).all())}
        try:
            model.to(device=self.device, dtype=self.dtype)
        except RuntimeError as error:
            raise unsupported(error) or error from None
        if convert:
            for name, value in model.state_dict().items():
                if name in finite and not bool(torch.isfinite(value).all()):
                    kind = str(self.dtype).removeprefix("torch.")
                    why = f"{name!r} of the network has values that are too large for {kind}"
                    raise DataError("data-overflow", f"{why}; use bfloat16, or leave the dtype as it is")
            known_as(model, own)
        return model


_USUAL = Place()
_PLACE: ContextVar[Place] = ContextVar("place", default=_USUAL)


@contextlib.contextmanager
def placed(device: Any = None, dtype: Any = None) -> Iterator[Place]:
    """Bring networks that are read from files, or built by name, to a place while the body runs."""
    token = _PLACE.set(Place.of(device, dtype))
    try:
        yield _PLACE.get()
    finally:
        _PLACE.reset(token)


def device_named(name: Any) -> torch.device:
    """Return a device by name, after checking that it works here.

    "auto" is a GPU of CUDA or ROCm if there is one, else the CPU. Apple's GPUs have no float64, in which Brickyard
    compares probabilities, so that "mps" is taken only where it is asked for.

    Raises:
        OptionError: There is no such device.

    Example:
        >>> from brickyard.training import device_named
        >>> device_named("cpu")
        device(type='cpu')
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if not isinstance(name, str | torch.device):
            raise TypeError(f"a device is named by a text, not by a {type(name).__name__}")
        device = torch.device(name)
        (torch.zeros(1, device=device) + 1).item()  # a driver says only now that it is missing
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        why = f"device {brief(name)} cannot be used here ({told(first_line(error), 100)})"
        hint = "" if torch.cuda.is_available() else "; cuda needs a GPU that PyTorch sees"
        raise OptionError("option-device", f"{why}; use {' or '.join(devices())}{hint}") from None
    return device


def devices() -> list[str]:
    """The devices that are there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = ["cuda"] * (count == 1) + [f"cuda:{k}" for k in range(count)] * (count > 1)
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def _try(device: torch.device, dtype: torch.dtype) -> None:
    try:
        torch.zeros(1, device=device, dtype=dtype)
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            "option-device", f"{device} has no numbers of type {dtype} ({told(first_line(error), 100)}); use float32"
        ) from None


def unsupported(error: BaseException) -> OptionError | None:
    """The error to raise where torch says, in an error or what caused it, that a device or a type lacks something."""
    seen: BaseException | None = error
    while seen is not None:
        if _LACKING.search(str(seen)):
            why = f"the device or the type of numbers cannot do this: {told(first_line(seen), 200)}"
            if "out of memory" in str(seen):
                return OptionError("option-device", f"{why}; use a smaller batch size or model, or device cpu")
            return OptionError("option-device", f"{why}; use dtype float32, or device cpu")
        seen = seen.__cause__ or seen.__context__
    return None
