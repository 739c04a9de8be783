"""The container of all our files: safetensors with one JSON text; written atomically, read as hostile.

Nothing here knows what the text and the tensors say.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brickyard.errors import FileError
from brickyard.manifest import FORMAT_VERSION

__all__ = ["check_free", "read", "write", "write_atomically", "write_content"]

KEY = "brickyard"
MAX_HEADER = 64 << 20


def write(path: Path, tensors: Mapping[str, Tensor], text: dict[str, Any], overwrite: bool) -> Path:
    """Write tensors and a text as one file of ours; nothing is left after a failure.

    Raises:
        FileError: A number is not finite, the path exists and `overwrite` is false, or it cannot be written.
    """
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())}
    for name, value in plain.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FileError(f"tensor {name!r} has numbers that are not finite; nothing was written to {path}")
    metadata = {KEY: json.dumps({"format": FORMAT_VERSION, **text}, allow_nan=False)}
    write_atomically(path, lambda place: save_file(plain, place, metadata), overwrite=overwrite)
    return path


def write_content(path: Path, content: str | bytes, *, overwrite: bool) -> None:
    """Write a text, as UTF-8 and with its line ends as they are, or bytes; as `write_atomically` does.

    Raises:
        FileError: The path exists and `overwrite` is false, or the file cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    write_atomically(path, lambda place: place.write_bytes(data), overwrite=overwrite)


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a file that exists.

    Raises:
        FileError: It does, and `overwrite` is false.
    """
    if os.path.lexists(path) and not overwrite:
        raise FileError(f"{path} exists; give another path, or overwrite=True (--force on the command line)")


def write_atomically(path: Path, write: Callable[[Path], object], *, overwrite: bool) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; nothing is left after a failure.

    Where `path` is a link, the link is replaced, and what it leads to stays as it is.

    Raises:
        FileError: The path exists and `overwrite` is false, or the file cannot be written.
    """
    check_free(path, overwrite)
    special = path.exists() and not path.is_file()  # a folder, a device, a pipe
    if special or not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: {path if special else path.parent} is no place for a file")
    place = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        place.touch(exist_ok=False)  # never through a link that someone else put there
        usual = place.stat().st_mode  # the writer may make a file of its own that only its owner can read
        write(place)
        place.chmod(usual)
        with place.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(place, path)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} cannot be written: {error}; free some space or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON text and the tensors of a file of ours.

    Raises:
        FileError: The file cannot be read or is not one of ours.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise FileError(
                    f"{path} is a safetensors file without the text {KEY!r}: no component, assembly or relevances. "
                    "Weights of a source go with --weights"
                )
            text = _json(path, metadata[KEY])
            # Copies of their own: kernels may round otherwise where numbers are not aligned, as in the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise FileError(f"{path} is not a whole safetensors file: {error}; get it again") from None
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise FileError(f"{path}: tensor {name!r} has numbers that are not finite")
    return text, tensors


def _check_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}; check the path") from None
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if len(start) < 8 or length > min(MAX_HEADER, size - 8):
        raise FileError(
            f"{path} is not a safetensors file, or is cut off: {size} bytes, header of {length}; get it again"
        )


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} has a text that is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise FileError(f"{path} has a text without a format version; it was not written by Brickyard")
    if value["format"] != FORMAT_VERSION:
        raise FileError(
            f"{path} has format version {value['format']}; this Brickyard reads version {FORMAT_VERSION}: "
            "install a version that fits"
        )
    return {key: item for key, item in value.items() if key != "format"}


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")
