"""The images that `predict` is asked about: from files, folders, patterns, addresses and standard input, one by one."""

from __future__ import annotations

import glob
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickyard.base._errors import BrickyardError, DataError, FileError
from brickyard.base._messages import told

if TYPE_CHECKING:
    from torch import Tensor

STDIN = "-"
SCHEMES = ("http://", "https://")
MAX_FETCHED = 64 << 20  # bytes of one picture from an address or standard input
WAIT = 20  # seconds without a byte
LONGEST = 60  # seconds for one picture
_CHUNK = 1 << 16
_SIGNS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Asked:
    """One image, which is read when it is its turn.

    Attributes:
        title: What it is called.
        read: Reads it: (channels, height, width) for pictures.
    """

    title: str
    read: Callable[[], Tensor]


def asked(words: Sequence[str], shape: Sequence[int]) -> Iterator[Asked]:
    """All images, in order.

    What leads to none is one whose reading fails, so that others are answered all the same.

    Args:
        words: Paths of pictures, arrays and folders; patterns such as "photos/*.jpg"; http:// and https:// addresses;
            "-" for standard input, which holds a picture, or a word per line.
        shape: What the classifier takes.
    """
    for word in words:
        if word == STDIN:
            yield from _typed(shape)
        else:
            yield from _found(word, shape, patterns=True)


def _found(word: str, shape: Sequence[int], patterns: bool = False) -> Iterator[Asked]:
    if word.lower().startswith(SCHEMES):
        yield Asked(word, lambda: _decoded(io.BytesIO(fetched(word)), word))
        return
    path = Path(word)
    if patterns and not os.path.lexists(path) and glob.has_magic(word):
        places = sorted(glob.glob(word, recursive=True))
        if not places:
            yield _failing(word, FileError("file-missing", f"nothing matches {told(word)}; check the pattern"))
        for place in places:
            yield from _found(place, shape)
        return
    try:
        yield from _at(path, shape)
    except BrickyardError as error:
        yield _failing(word, error)


def _at(path: Path, shape: Sequence[int]) -> Iterator[Asked]:
    """The images at a path.

    Raises:
        BrickyardError: There are none.
    """
    from brickyard.inputs._arrays import ARRAYS, read_images
    from brickyard.inputs._folders import pictures_in
    from brickyard.inputs._taken import Taken

    if path.is_dir():
        for picture in pictures_in(path):
            yield Asked(str(picture), lambda picture=picture: _decoded(picture))  # type: ignore[misc]
    elif not path.is_file():
        why = "expected a file, got something else" if path.exists() else "there is no such file"
        raise FileError("file-missing", f"cannot read image {path}: {why}; check the path")
    elif path.suffix.lower() in ARRAYS:
        array = read_images(path, Taken.of(shape))
        for k in range(len(array)):
            yield Asked(f"{path}[{k}]", lambda k=k: array[k])  # type: ignore[misc]
    else:
        yield Asked(str(path), lambda: _decoded(path))


def _failing(title: str, error: BrickyardError) -> Asked:
    def read() -> Tensor:
        raise error

    return Asked(title, read)


def _decoded(source: Any, name: str | None = None) -> Tensor:
    from brickyard.inputs._decoding import decode_image

    return decode_image(source, name)


# -- standard input ----------------------------------------------------------------------------------------


def _typed(shape: Sequence[int]) -> Iterator[Asked]:
    """What standard input holds: one picture, or words, a line each."""
    stream: Any = getattr(sys.stdin, "buffer", None)
    if stream is None:
        yield _failing(STDIN, FileError("file-missing", "standard input is closed; give paths"))
        return
    stream = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    begin = stream.peek(_CHUNK)
    if begin.startswith(_SIGNS) and b"\0" in begin:  # which no path holds
        data = stream.read(MAX_FETCHED + 1)
        if len(data) > MAX_FETCHED:
            yield _failing(STDIN, _too_large("the picture on standard input"))
        else:
            yield Asked(STDIN, lambda: _decoded(io.BytesIO(data), "from standard input"))
        return
    for line in stream:
        if word := os.fsdecode(line.rstrip(b"\r\n")):
            yield from _found(word, shape)


# -- addresses ---------------------------------------------------------------------------------------------


def fetched(address: str) -> bytes:
    """What lies at an http:// or https:// address; it may lead on to others of these, and to no file.

    Raises:
        DataError: It cannot be reached, is too large, or takes too long.
    """
    from http.client import HTTPException
    from urllib import request

    from brickyard._version import __version__

    opener = request.OpenerDirector()
    for handler in (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPRedirectHandler,
                    request.HTTPErrorProcessor, request.HTTPDefaultErrorHandler):  # fmt: skip
        opener.add_handler(handler())
    end, found = time.monotonic() + LONGEST, io.BytesIO()
    try:
        asking = request.Request(address, headers={"User-Agent": f"brickyard/{__version__}"})
        answer = opener.open(asking, timeout=WAIT)
        if answer is None:
            raise ValueError("it leads to an address that is neither http:// nor https://")
        with answer:
            while chunk := answer.read1(_CHUNK):
                found.write(chunk)
                if found.tell() > MAX_FETCHED:
                    raise _too_large(told(address, 200))
                if time.monotonic() > end:
                    raise TimeoutError(f"it takes more than {LONGEST} seconds")
    except (OSError, ValueError, HTTPException) as error:
        why = f"cannot download {told(address, 200)}: {told(error, 200) or type(error).__name__}"
        raise DataError("data-download-failed", f"{why}; check the address and the network, or give a file") from None
    return found.getvalue()


def _too_large(what: str) -> DataError:
    return DataError(
        "data-image-too-large", f"{what} is larger than {MAX_FETCHED >> 20} MiB; give it as a file, or make it smaller"
    )
