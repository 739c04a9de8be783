"""The container of all our files: safetensors with one JSON text; written atomically, read as hostile.

Nothing here knows what the text and the tensors say.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from brickyard.errors import FileError, told
from brickyard.manifest import FORMAT_VERSION

__all__ = [
    "advice",
    "check_free",
    "clear_stages",
    "flush_folder",
    "lock_folder",
    "read",
    "surely",
    "write",
    "write_atomically",
    "write_content",
]

KEY = "brickyard"
MAX_HEADER = 64 << 20
MAX_DEPTH = 64  # of lists and objects in one another in the text
CHUNK = 1 << 20  # numbers looked at together
DTYPES = frozenset({
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
})  # fmt: skip
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"')  # without a way back, which would take much memory
BRACKET = re.compile(r"[\[\]{}]")
SURROGATE = re.compile(r"[\ud800-\udfff]")


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
    """Refuse a file that exists; a link that leads nowhere does too.

    Raises:
        FileError: It does, and `overwrite` is false.
    """
    if os.path.lexists(path) and not overwrite:
        raise FileError(f"{path} exists; give another path, or overwrite=True (--force on the command line)")


def write_atomically(path: Path, write: Callable[[Path], object], *, overwrite: bool) -> None:
    """Let `write` fill a file in a folder of its own beside `path`, then rename it; nothing is left after a failure.

    Content and name are on the disk when this returns. A link at `path` is replaced, and what it leads to stays. What
    a process that was killed had prepared in the same folder is cleared away.

    Raises:
        FileError: The path exists and `overwrite` is false, or the file cannot be written.
    """
    check_free(path, overwrite)
    special = path.exists() and not path.is_file()  # a folder, a device, a pipe
    if special or not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: {path if special else path.parent} is no place for a file")
    stage = path.with_name(f".brickyard-{secrets.token_hex(4)}.tmp")
    place, held = stage / path.name, None
    try:
        clear_stages(path.parent)
        held = _make_stage(stage)
        place.touch(exist_ok=False)  # never through a link that someone else put there
        usual = place.stat().st_mode  # the writer may make a file of its own that only its owner can read
        write(place)
        place.chmod(usual)
        with place.open("rb+") as file:
            os.fsync(file.fileno())
        _move(place, path, overwrite)
        flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        what = (error.strerror if isinstance(error, OSError) else None) or error
        raise FileError(f"{path} cannot be written: {what}; {advice(error)}") from error
    finally:
        try:
            surely(lambda: _clear_stage(stage))
        finally:
            if held is not None:
                os.close(held)


def _move(place: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name; a file that came to be there since is not replaced unless that was asked for."""
    if not overwrite:
        try:
            os.link(place, path)
            return
        except FileExistsError:
            check_free(path, overwrite)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            check_free(path, overwrite)
    os.replace(place, path)


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # of file systems without them
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


def advice(error: BaseException) -> str:
    """What to do next after a failure to write.

    Example:
        >>> from brickyard.container import advice
        >>> advice(OSError(13, "Permission denied")), advice(OSError(28, "No space left on device"))
        ('make its folder writable, or choose another place', 'free some space or choose another place')
    """
    named = re.search(r"os error (\d+)", str(error))  # as safetensors tells it
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    if number in _NO_RIGHT:
        return "make its folder writable, or choose another place"
    if number == errno.ENOENT:
        return "its folder was there and is gone: make it again, or choose another place"
    if number == errno.EIO:
        return "the disk fails: check it, or choose another place"
    return "free some space or choose another place"


def surely(clear: Callable[[], None]) -> None:
    """Clear away: who stops the work while it does so wants it done all the same."""
    try:
        clear()
    except KeyboardInterrupt:
        clear()
        raise


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: a file that was renamed is not lost when the power fails.

    Raises:
        OSError: The disk says that it failed.
    """
    if os.name == "nt":
        return
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that cannot flush a folder
            raise
    finally:
        os.close(place)


# -- folders where files are prepared ----------------------------------------------------------------------

_STAGE = re.compile(r"\.brickyard-[0-9a-f]{8}\.tmp")


def lock_folder(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock of a folder until it is closed or its process ends; None: cannot be locked.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
        OSError: There is no such folder.
    """
    try:
        import fcntl
    except ImportError:
        return None
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException as error:
        os.close(place)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            return None  # a file system without locks
        raise
    return place


def _make_stage(stage: Path) -> int | None:
    """Make a folder to prepare a file in, and hold its lock for as long as it is used."""
    while True:
        stage.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another process took it for one that is left, and cleared it
            held = lock_folder(stage, wait=True)
            if held is None or stage.is_dir():
                return held
            os.close(held)


def clear_stages(folder: Path) -> None:
    """Clear away what processes that are gone had prepared in a folder; what is in use stays."""
    with contextlib.suppress(OSError):
        with os.scandir(folder) as found:
            stages = [Path(item.path) for item in found if _STAGE.fullmatch(item.name)]
        for stage in stages:
            with contextlib.suppress(OSError):  # it is in use, or is no longer there
                held = lock_folder(stage)
                if held is not None:
                    try:
                        if os.path.samestat(os.fstat(held), stage.lstat()):
                            _clear_stage(stage)
                    finally:
                        os.close(held)


def _clear_stage(stage: Path) -> None:
    with contextlib.suppress(OSError):
        with os.scandir(stage) as found:
            for item in list(found):
                with contextlib.suppress(OSError):
                    os.unlink(item.path)
        os.rmdir(stage)


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
            tensors = {name: _own(path, name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except FileError:
        raise
    except Exception as error:  # what is raised for a type of number that torch lacks differs between versions
        raise FileError(f"{path} is not a whole safetensors file: {told(error)}; get it again") from None
    for name, value in tensors.items():
        if value.dtype not in DTYPES:
            raise FileError(f"{path}: tensor {told(name)!r} is of {value.dtype}, which our files do not hold")
        if value.is_floating_point() and not _finite(value):
            raise FileError(f"{path}: tensor {told(name)!r} has numbers that are not finite")
    return text, tensors


def _own(path: Path, name: str, value: Tensor) -> Tensor:
    """A copy that is aligned: kernels may round otherwise where numbers are not, as in the file."""
    if value.dtype == torch.bool and value.numel() and int(value.view(torch.uint8).max()) > 1:
        raise FileError(f"{path}: tensor {told(name)!r} has bytes that are neither true nor false")
    return value.clone()


def _finite(value: Tensor) -> bool:
    """Whether all numbers are finite, looked at in pieces, so that little memory is needed."""
    return all(bool(torch.isfinite(piece).all()) for piece in value.reshape(-1).split(CHUNK))


def _check_header(path: Path) -> None:
    try:
        with open(path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileError(
                    f"{path} cannot be read: it is no file but a folder, a pipe or a device; check the path"
                )
            size = status.st_size
            start = file.read(8)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{path} cannot be read: {why}; check the path") from None
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if len(start) < 8 or length > min(MAX_HEADER, size - 8):
        raise FileError(
            f"{path} is not a safetensors file, or is cut off: {size} bytes, header of {length}; get it again"
        )


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe that nobody writes to would hold us for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        _check_depth(text)
        value = json.loads(text, parse_constant=_no_constant, parse_float=_number, object_pairs_hook=_object)
        if "\\u" in text and SURROGATE.search(json.dumps(value, ensure_ascii=False)):
            raise ValueError("half a character is not allowed")
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} has a text that is not JSON: {told(error)}") from None
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise FileError(f"{path} has a text without a format version; it was not written by Brickyard")
    if value["format"] != FORMAT_VERSION:
        raise FileError(
            f"{path} has format version {told(value['format'], 20)}; this Brickyard reads version {FORMAT_VERSION}: "
            "install a version that fits"
        )
    return {key: item for key, item in value.items() if key != "format"}


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def _check_depth(text: str) -> None:
    """Refuse what is nested too deep, before anything is made of it."""
    depth = 0
    for bracket in BRACKET.findall(STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
