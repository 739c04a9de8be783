"""What a file is that holds no weights, told by its first bytes, and what its owner can do with it."""

from __future__ import annotations

import zipfile
from pathlib import Path

HEAD = 1024
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, which stands for the real file; fetch that with git lfs pull"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it; load it there, and export the network to ONNX"),
    (b"GGUF", "a GGUF file of a language model, which is not an image classifier"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x93NUMPY", "an array of NumPy; save a dictionary of named tensors"),
    (b"%PDF", "a PDF document"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml")
_LFS = 200  # bytes of a pointer at most


def foreign(path: Path) -> str | None:
    """What a file is, and what to do with it, if it is not one of weights.

    Args:
        path: A file that can be read.

    Returns:
        The end of a sentence, or None where it may be a file of weights.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "weights.pth"
        ...     _ = path.write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
        ...     foreign(path)
        'a page of HTML, perhaps that of a failed download; download the file itself'
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "empty; get a fresh copy"
    for start, what in _STARTS:
        if head.startswith(start):
            return what
    if head.lstrip()[:9].lower().startswith(_PAGES):
        return "a page of HTML, perhaps that of a failed download; download the file itself"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model, which is mostly quantised; export the float network to ONNX"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if path.suffix == ".onnx" or (
        head[0] == 8 and any(word in head[:200] for word in (b"pytorch", b"onnx", b"tf2onnx"))
    ):
        return "an ONNX model; give it as the source itself, without --weights"
    return _archive(path) if head.startswith(b"PK") else None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like one of safetensors: with the length of a JSON text, and that text."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def is_pickled(path: Path) -> bool:
    """Whether a file begins like one of torch.save, whatever it is called."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def _archive(path: Path) -> str | None:
    """What a zip archive is that is none of torch.save's."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()[:4096]]
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # the reader says what is wrong with it
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return (
            "a TorchScript program, whose layers cannot be read; save state_dict() of the network that it was made "
            "from (torch.jit.load(path).state_dict() gives its weights)"
        )
    if "model.weights.h5" in names:
        return "a Keras model; load it there, and export the network to ONNX"
    if any(name.startswith(("archive_format", "models/", "data/aotinductor")) for name in names):
        return "a program of torch.export; save state_dict() of the network that it was made from"
    if "data.pkl" in names:
        return None
    pictures = sum(name.lower().endswith((".jpg", ".jpeg", ".png")) for name in names)
    return f"a zip archive{' of pictures' if pictures else ''}; unpack it first"
