"""Arrays of images and labels: .npz and .npy files, read without ever running what a pickle could hold."""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import first_line, path_title, told
from brickyard.base._sides import BATCHED
from brickyard.inputs._layouts import Array, arranged
from brickyard.inputs._pictures import MAX_BYTES, Rows, too_large
from brickyard.inputs._reading import (
    SPLIT_NAMES,
    Found,
    Wanted,
    examples,
    is_of,
    labelled,
    no_split,
    note,
    say_stand_in,
    split_names,
)
from brickyard.inputs._several import rows_of_array
from brickyard.inputs._taken import Taken

IMAGES = ("images", "image", "imgs", "img", "x", "X", "data", "features", "pixels", "signals", "cubes", "arr_0")
LABELS = ("labels", "label", "y", "Y", "targets", "target", "arr_1")
NAMES = ("classes", "class_names", "label_names", "names", "categories")
ARRAYS = (".npy", ".npz")
MOST_MEMBERS = 4_096
_NUMBER = 32  # bytes of a label in a list


@dataclass(frozen=True)
class Stored:
    """An array in a file, of which only the header was read.

    Attributes:
        name: What messages call it.
        shape: Its shape.
        dtype: The type of its numbers.
        read: Reads it, memory-mapped where that is possible.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(path: Path, wanted: Wanted) -> Found:
    """Images and labels of a .npz file.

    Raises:
        DataError: It is damaged or too large, holds pickled objects where images or labels are, or says not which is
            which.
    """
    stored = _members(path)
    images, labels, part = _chosen(path, stored, wanted)
    names = next((stored[key] for key in NAMES if key in stored and key not in (images, labels)), None)
    name = path_title(path) + (f" ({part})" if part else "")
    return _found(path, name, wanted, stored[images], stored[labels], names)


def read_images(path: Path, taken: Taken | None = None) -> Tensor:
    """The images of a .npy or .npz file, which need no labels beside them: (images, channels, height, width).

    Args:
        path: The file.
        taken: What takes them, where those may be signals (signals, channels, length) or cubes.

    Raises:
        DataError: It is damaged or too large, or holds no images.
    """
    if path.suffix.lower() == ".npy":
        return _images(_npy(path), path, taken)
    stored = _members(path)
    labels = next((key for key in LABELS if key in stored), None)
    return _images(stored[_images_key(path, stored, labels)], path, taken)


def npy_parts(path: Path) -> tuple[Path, Path | None, Path | None]:
    """The files of images, labels and class names for one of images; None where there is none beside it."""
    stem = path.stem
    swaps = [("images", "labels"), ("image", "label"), ("imgs", "labels"), ("x_", "y_"), ("X_", "y_"), ("_x", "_y")]
    swaps += [("_X", "_y"), ("data", "labels"), ("data", "targets")]
    swapped = [stem.replace(one, other) for one, other in swaps if one in stem]
    usual = [f"{stem}_labels", f"{stem}_label", f"{stem}_y", *swapped, "labels", "label", "y", "targets"]
    there = [path.with_name(f"{name}.npy") for name in usual if name != stem]
    labels = next((file for file in there if file.is_file()), None)
    names = next((file for key in NAMES if (file := path.with_name(f"{key}.npy")).is_file()), None)
    return path, labels, names


def npy_in(folder: Path, wanted: Wanted) -> Path | None:
    """The .npy file of images in a folder, with labels beside it: of the split, or the only one.

    Raises:
        DataError: There are files of other splits alone.
    """
    there = {file.stem: file for file in sorted(folder.glob("*.npy")) if npy_parts(file)[1] is not None}
    for part in split_names(wanted.split):
        for key in _split_keys(part, IMAGES):
            if key in there:
                say_stand_in(folder.name, wanted.split, part)
                return there[key]
    others = sorted({part for part in SPLIT_NAMES for key in _split_keys(part, IMAGES) if key in there})
    if others:
        raise no_split(folder, wanted.split, others)
    return next((there[key] for key in IMAGES if key in there), None)


def read_npy(path: Path, wanted: Wanted) -> Found:
    """Images of a .npy file, and labels of the one beside it.

    Raises:
        DataError: One is missing, damaged or too large, or holds pickled objects.
    """
    images, labels, names = npy_parts(path)
    if wanted.asked and not is_of(path, wanted.split):
        raise no_split(path, wanted.split, [])
    if labels is None:
        why = f"{path} has no labels beside it"
        raise DataError("data-no-labels", f"{why}; save them as {path.stem}_labels.npy or labels.npy")
    name = path_title(path)
    return _found(path, name, wanted, _npy(images), _npy(labels), None if names is None else _npy(names))


# -- reading what is stored ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever numpy and zipfile raise for a damaged file, which differs by version, becomes one error."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        why = f"cannot read {path} as arrays: {told(first_line(error), 200)}"
        raise DataError("data-damaged-file", f"{why}; save it again") from None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array; objects, of which only a pickle could be read, keep their type."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format has version {version[0]}.{version[1]}, and 1.0 and 2.0 are known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if any(side < 0 for side in shape):
        raise ValueError(f"its shape is {shape}")
    return tuple(map(int, shape)), fortran, dtype


def _checked(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    """Refuse what is no plain array, is larger than the limit, or is not as long as its header says."""
    if dtype.hasobject or dtype.fields is not None or dtype.kind not in "buifSU":
        why = f"{name} holds {told(dtype, 60)}, which is not a plain array; nothing in it was run"
        advice = "save numbers, of one length for all, or texts as np.array(names, dtype=str)"
        raise DataError("data-unknown-format", f"{why}: {advice}")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > MAX_BYTES:
        raise too_large(name, wanted)
    if wanted != size:
        raise ValueError(f"{name} has {size:,} bytes of numbers, and its shape {shape} says {wanted:,}")


def _npy(path: Path) -> Stored:
    with _damage(path):
        with path.open("rb") as file:
            shape, fortran, dtype = _header(file)
            start = file.tell()
        _checked(str(path), shape, dtype, path.stat().st_size - start)

    def read() -> Array:
        with _damage(path):
            return _mapped(path, start, shape, dtype, fortran)

    return Stored(str(path), shape, dtype, read)


def _mapped(path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool) -> Array:
    """An array that is read where it is looked at, and that can be written to without a change of the file."""
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    order: Any = "F" if fortran else "C"
    return np.asarray(np.memmap(path, dtype, "c", start, shape, order))


def _members(path: Path) -> dict[str, Stored]:
    """The arrays of a .npz file by their keys."""
    found: dict[str, Stored] = {}
    with _damage(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise ValueError(f"it has {len(members):,} members, and {MOST_MEMBERS:,} are the limit")
        for info in members:
            if info.filename.endswith(".npy"):
                key = info.filename.removesuffix(".npy")
                with archive.open(info) as file:
                    shape, fortran, dtype = _header(file)
                    size = info.file_size - file.tell()
                found[key] = _member(path, info, (shape, fortran, dtype), size)
    if not found:
        raise DataError("data-unknown-format", f"{path} holds no arrays; save it with np.savez(path, images=, labels=)")
    return found


def _member(
    path: Path, info: zipfile.ZipInfo, header: tuple[tuple[int, ...], bool, np.dtype[Any]], size: int
) -> Stored:
    shape, fortran, dtype = header
    name = f"{path}: {told(info.filename.removesuffix('.npy'), 60)}"

    def read() -> Array:
        with _damage(path):
            _checked(name, shape, dtype, size)
            if info.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, _start(path, info) + info.file_size - size, shape, dtype, fortran)
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                _header(file)
                content = _exactly(file, size)
            return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")

    return Stored(name, shape, dtype, read)


def _start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the content of a member that is not compressed starts in its file."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) != 30 or head[:4] != b"PK\x03\x04":
            raise ValueError(f"its member {told(info.filename, 60)} is not where the list of members says")
        name, extra = struct.unpack("<HH", head[26:30])
    start = info.header_offset + 30 + int(name) + int(extra)
    if start + info.file_size > path.stat().st_size:
        raise ValueError(f"its member {told(info.filename, 60)} is cut off")
    return start


def _exactly(file: IO[bytes], size: int) -> bytearray:
    """So many bytes, and not more: what a header says takes no memory before it is there."""
    content = bytearray()
    while len(content) < size and (more := file.read(min(size - len(content), 1 << 20))):
        content += more
    if len(content) != size:
        raise ValueError(f"it ends after {len(content):,} of {size:,} bytes")
    return content


# -- which is which ------------------------------------------------------------------------------------------------


def _split_keys(part: str, words: Sequence[str]) -> list[str]:
    return [key for word in words for key in (f"{part}_{word}", f"{word}_{part}", f"{part}{word}", f"{word}{part}")]


def _chosen(path: Path, stored: Mapping[str, Stored], wanted: Wanted) -> tuple[str, str, str]:
    """The keys of images and labels, and the split that they are of."""
    pairs: dict[str, tuple[str, str]] = {}
    for part in sorted(SPLIT_NAMES | {wanted.split}):
        keys = [next((key for key in _split_keys(part, words) if key in stored), None) for words in (IMAGES, LABELS)]
        if keys[0] is not None and keys[1] is not None:
            pairs[part] = keys[0], keys[1]
    parts = [name for name in split_names(wanted.split) if name in pairs]
    if parts:
        part = parts[0]
        say_stand_in(path.name, wanted.split, part)
        return *pairs[part], part
    if pairs or (wanted.asked and not is_of(path, wanted.split)):
        raise no_split(path, wanted.split, sorted(pairs))
    labels = next((key for key in LABELS if key in stored), None)
    images = _images_key(path, stored, labels)
    if labels is None:
        raise _lacks(path, stored, "labels", "data-no-labels")
    return images, labels, ""


def _images_key(path: Path, stored: Mapping[str, Stored], labels: str | None) -> str:
    """The key of the images in a file without splits."""
    found = next((key for key in IMAGES if key in stored and key != labels), None)
    if found is not None:
        return found
    for part in ("test", *sorted(SPLIT_NAMES)):  # only where no labels are asked for
        for key in _split_keys(part, IMAGES):
            if labels is None and key in stored:
                note(f"{path.name}: {key!r} is taken for the images")
                return key
    maps = [key for key, item in stored.items() if len(item.shape) in BATCHED and item.dtype.kind in "buif"]
    if len(maps) != 1:
        raise _lacks(path, stored, "images", "data-unknown-format")
    note(f"{path.name}: {maps[0]!r} is taken for the images")
    return maps[0]


def _lacks(path: Path, stored: Mapping[str, Stored], what: str, code: str) -> DataError:
    for item in stored.values():
        if item.dtype.hasobject:
            item.read()  # which refuses it
    why = f"{path} must hold images and labels, and {what} are not among its keys {examples(list(stored), 8)}"
    return DataError(code, f"{why}; save it with np.savez(path, images=, labels=)")


def _found(path: Path, name: str, wanted: Wanted, images: Stored, labels: Stored, names: Stored | None) -> Found:
    for stored in (images, labels):
        if stored.dtype.hasobject:
            stored.read()  # which refuses it
    if labels.shape[:1] != images.shape[:1]:
        found = f"images of shape {images.shape}, labels of shape {labels.shape}"
        raise DataError("data-shape", f"{path}: {found}; give one label per image")
    if math.prod(labels.shape) * _NUMBER > MAX_BYTES:
        raise too_large(labels.name, math.prod(labels.shape) * _NUMBER)
    classes = None if names is None or names.dtype.kind not in "SUO" else _texts(names)
    found_labels, found_classes = _labels(labels.read(), path, classes, wanted)
    return Found(found_labels, found_classes, name, Rows(_images(images, path, wanted.taken)))


def _images(stored: Stored, path: Path, taken: Taken | None) -> Tensor:
    """The images of an array whose header was read."""
    size = math.prod(stored.shape) * 4
    if stored.dtype.itemsize != 1 and size > MAX_BYTES:
        raise too_large(f"{stored.name}, as 32-bit numbers,", size)
    return arranged(stored, path.name, taken)


def _texts(stored: Stored) -> list[str]:
    """Names of classes; objects would have to be unpickled."""
    values = stored.read()
    if values.ndim != 1:
        raise DataError("data-class-names", f"{stored.name} must be a list of names, got shape {values.shape}")
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
    except UnicodeDecodeError:
        raise DataError("data-class-names", f"{stored.name}: a name is not valid UTF-8; save them as texts") from None


def _labels(values: Array, path: Path, classes: Sequence[str] | None, wanted: Wanted) -> tuple[Tensor, Sequence[str]]:
    """Labels and class names; rows of 0 and 1 where an image may belong to several classes."""
    what = f"{path}: the labels"
    if wanted.several and values.ndim == 2 and values.shape[1] > 1:
        rows = rows_of_array(values, what, classes)
        return rows.labels, rows.classes
    return labelled(_label_values(values, path), what, classes)


def _label_values(values: Array, path: Path) -> list[Any]:
    """One label an image: of (N,), (N, 1), or a one in the place of the class in (N, classes)."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.dtype.kind in "buif" and values.size:
        single = bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) == 1).all())
        if single:
            note(f"{path.name}: labels are the places of the ones in {values.shape[1]} columns")
            return list(values.argmax(1).tolist())
    if values.ndim != 1:
        why = f"{path}: labels of shape {values.shape} are not one class per image"
        advice = "give labels (images,), or say that an image may belong to several classes (--outputs several)"
        raise DataError("data-label-mismatch", f"{why}; {advice}")
    found = values.tolist()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in found]
