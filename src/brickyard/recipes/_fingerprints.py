"""Content hashes of files and of image data, so that a build knows what has changed.

A file is read again only where its size or times are not those that were seen before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from brickyard.base._errors import DataError, FileError, reading_code

Seen = tuple[int, int, int, str]  # size, times of content and of inode in nanoseconds, sha256


def digest(*texts: str) -> str:
    """A sha256 of texts, each told apart from the next."""
    found = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogateescape")  # names of files may be no UTF-8
        found.update(f"{len(content)}:".encode() + content)
    return found.hexdigest()


def data_files(place: Path, split: str, asked: bool = False) -> list[Path]:
    """The files that `load_data` may read for a path and a split, sorted.

    Where they cannot be told, all files are named: a change that does not matter costs time, one that is missed costs a
    wrong result.
    """
    from brickyard.inputs._datasets import data_files

    try:
        return data_files(place, split, asked)
    except DataError:  # loading them says more
        return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def source_files(path: Path) -> list[Path]:
    """All files that a source is read from: the one that is named, and those beside it that belong to it.

    These are what Python code can import from its folder, the weights beside an ONNX file, the parts that an index
    names, and what a JSON file says of weights.

    Raises:
        FileError: One that names others cannot be read.
    """
    from brickyard.sources._onnx_file import weight_files
    from brickyard.sources._weights import INDEX, part_files

    if path.suffix == ".py":
        return [path, *(place for place in _python_files(path.parent) if place != path)]
    found = [path]
    if path.name.endswith(INDEX):
        found += part_files(path)
    elif path.suffix == ".onnx":
        found += sorted(place for place in weight_files(path) if place.is_file())
    beside = path.with_suffix(".json")
    return [*found, beside] if beside.is_file() and beside != path else found


def _python_files(folder: Path) -> list[Path]:
    """Python code in a folder and its packages; environments and hidden folders hold no code of the user's own."""
    found = sorted(folder.glob("*.py"))
    for inner in sorted(item for item in folder.iterdir() if item.is_dir()):
        if inner.name.isidentifier() and not inner.is_symlink() and not (inner / "pyvenv.cfg").exists():
            found += _python_files(inner)
    return found


class Fingerprints:
    """Hashes of files, remembered between builds.

    Args:
        folder: What paths are remembered relative to.
        known: What an earlier build remembered, by path.
    """

    def __init__(self, folder: Path, known: Mapping[str, Seen] | None = None) -> None:
        self.folder = folder
        self.known: dict[str, Seen] = dict(known or {})
        self.used: dict[str, Seen] = {}

    def file(self, path: Path) -> str:
        """The sha256 of a file's content.

        Raises:
            FileError: It cannot be read.
        """
        name = Path(os.path.relpath(path, self.folder)).as_posix()
        try:
            state = path.stat()
            stamp = (state.st_size, state.st_mtime_ns, state.st_ctime_ns)
            before = self.known.get(name)
            if before is None or before[:3] != stamp:
                with path.open("rb") as file:
                    before = (*stamp, hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise FileError(
                reading_code(error), f"cannot read {path}: {error.strerror or error}; check the path"
            ) from None
        self.known[name] = self.used[name] = before
        return before[3]

    def files(self, root: Path, paths: Iterable[Path]) -> str:
        """One hash of several files: their names below `root`, and their contents."""
        return digest(*(text for path in paths for text in (os.path.relpath(path, root), self.file(path))))

    def data(self, text: str, split: str) -> str:
        """A hash of the images that a text of data stands for; its path is complete.

        Raises:
            FileError: A file cannot be read.
        """
        from brickyard.inputs._datasets import place_and_options

        place, options = place_and_options(text)
        asked, split = "split" in options, options.get("split", split)
        if place == "digits":
            content = f"digits of scikit-learn {version('scikit-learn')}"
        else:
            root = Path(place)
            empty_too = sorted(str(item.relative_to(root)) for item in root.glob("*") if item.is_dir())
            content = digest(self.files(root, data_files(root, split, asked)), *empty_too)
        return digest(split, options.get("classes", ""), content)
