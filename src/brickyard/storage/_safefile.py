"""The container of all our files: safetensors with one JSON text; written atomically, read as hostile.

Nothing here knows what the text and the tensors say.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from brickyard.base._errors import FileError, passing, reading_code
from brickyard.base._interrupts import Held
from brickyard.base._limits import own_json
from brickyard.base._messages import told
from brickyard.base._records import FORMAT_VERSION
from brickyard.storage._atomic import write_atomically

KEY = "brickyard"
MAX_HEADER = 64 << 20
CHUNK = 1 << 20  # numbers looked at together
DTYPES = frozenset({
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
})  # fmt: skip


def write(path: Path, tensors: Mapping[str, Tensor], text: dict[str, Any], overwrite: bool) -> Path:
    """Write tensors and a text as one file of ours; nothing is left after a failure."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())}
    for name, value in plain.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FileError("file-not-finite", f"tensor {name!r} has values that are not finite; {path} was not made")
    metadata = {KEY: json.dumps({"format": FORMAT_VERSION, **text}, allow_nan=False)}
    write_atomically(path, lambda place: save_file(plain, place, metadata), overwrite=overwrite)
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON text and the tensors of a file of ours."""
    body = _check_header(path)
    try:
        with Held():  # what is raised inside safetensors becomes an error of its own
            opened = safe_open(path, framework="pt")
        with opened as file:
            with Held():
                metadata, names = file.metadata() or {}, list(file.keys())
            if KEY not in metadata:
                why = f"{path} is a safetensors file without the text {KEY!r}: no component, assembly or relevances"
                raise FileError("file-wrong-kind", f"{why}. Weights of a source go with --weights")
            text = _json(path, metadata[KEY], body)
            tensors = {name: _own(path, name, _tensor(file, name)) for name in names}
    except FileError:
        raise
    except Exception as error:  # what is raised for a type of number that torch lacks differs between versions
        if passing(error):
            why = told(error) or type(error).__name__
            raise FileError("file-unreadable", f"cannot read {path} at this moment: {why}; try again") from error
        why = f"{path} is not a complete safetensors file: {told(error)}"
        raise FileError("file-not-safetensors", f"{why}; get a fresh copy") from None
    for name, value in tensors.items():
        if value.dtype not in DTYPES:
            found = f"{path}: tensor {told(name)!r} has type {value.dtype}"
            raise FileError("file-tensor-mismatch", f"{found}, which Brickyard files do not use")
        pieces = value.reshape(-1).split(CHUNK) if value.is_floating_point() else ()  # so that little memory is needed
        if not all(bool(torch.isfinite(piece).all()) for piece in pieces):
            raise FileError("file-not-finite", f"{path}: tensor {told(name)!r} has values that are not finite")
    return text, tensors


def _tensor(file: Any, name: str) -> Tensor:
    with Held():
        found: Tensor = file.get_tensor(name)
    return found


def _own(path: Path, name: str, value: Tensor) -> Tensor:
    """A copy that is aligned: kernels may round otherwise where numbers are not, as in the file."""
    if value.dtype == torch.bool and value.numel() and int(value.view(torch.uint8).max()) > 1:
        raise FileError("file-tensor-mismatch", f"{path}: tensor {told(name)!r} has bytes other than true and false")
    return value.clone()


def _check_header(path: Path) -> int:
    """How many bytes of tensors follow the header."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileError("file-missing", f"cannot read {path}: it is a folder, pipe or device; check the path")
            size = status.st_size
            start = file.read(8)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(reading_code(error), f"cannot read {path}: {why}; check the path") from None
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if len(start) < 8 or length > min(MAX_HEADER, size - 8):
        why = f"{path} is not a safetensors file, or is truncated: {size} bytes, header of {length}"
        raise FileError("file-not-safetensors", f"{why}; get a fresh copy")
    return int(size - 8 - length)


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe that nobody writes to would hold us for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))


def _json(path: Path, text: str, body: int) -> dict[str, Any]:
    try:
        value = own_json(text, body)
    except ValueError as error:
        raise FileError("file-manifest-invalid", f"{path} has metadata that is not valid JSON: {told(error)}") from None
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise FileError("file-wrong-kind", f"{path} has metadata without a format version; Brickyard did not write it")
    if value["format"] != FORMAT_VERSION:
        found = told(value["format"], 20)
        why = f"{path} has format version {found}; this Brickyard reads {FORMAT_VERSION}"
        raise FileError("file-newer-version", f"{why}: install a version that fits")
    return {key: item for key, item in value.items() if key != "format"}
