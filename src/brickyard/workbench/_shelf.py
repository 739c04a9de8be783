"""What lies beside the server for making bricks: models, pictures and class names in one folder, known by name.

Nothing but what is listed can be named. Links are neither listed nor followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brickyard.base._errors import FileError
from brickyard.inputs._reading import SUFFIXES

MODELS = {".safetensors", ".onnx"}
DATA = {".parquet", ".npz"}
NAMES = {".txt", ".json"}
BUILT_IN = "digits"
MOST = 500  # entries of a list
MOST_SEEN = 20_000  # files and folders that are looked at
LEVELS = 4  # of folders
FIRST = 50  # entries of a folder that are looked at for pictures


class Shelf:
    """A folder beside the server.

    Args:
        folder: The folder; None, or one that is not there: nothing is listed.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def listed(self) -> dict[str, list[dict[str, Any]]]:
        """What there is: models, data and files of class names, each with its name, sorted."""
        found: dict[str, list[dict[str, Any]]] = {"models": [], "data": [], "names": []}
        root = self.folder
        if root is None or root.is_symlink() or not root.is_dir():
            return found
        for kind, entry in _below(root):
            if len(found[kind]) < MOST:
                found[kind].append(entry)
        return {kind: sorted(entries, key=lambda entry: entry["name"]) for kind, entries in found.items()}

    def path(self, kind: str, name: str) -> Path:
        """Where something that is listed is.

        Raises:
            FileError: There is nothing of that name.
        """
        if self.folder is None or name not in (entry["name"] for entry in self.listed()[kind]):
            raise FileError(
                "file-missing", f"{name[:200]!r} is not in the folder beside the server; choose one that is listed"
            )
        return self.folder / name


def check_no_links(folder: Path) -> None:
    """Refuse a folder in which there are links: they may lead anywhere.

    Raises:
        FileError: There is one.
    """
    for at, folders, files in os.walk(folder):
        link = next((name for name in (*folders, *files) if os.path.islink(os.path.join(at, name))), None)
        if link is not None:
            where = Path(at, link).relative_to(folder.parent)
            raise FileError("file-path-invalid", f"{where} is a link, and links are not followed here; copy the file")


def _below(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is in a folder and those within it, nearest first."""
    level, seen = [root], 0
    for _ in range(LEVELS):
        deeper: list[Path] = []
        for folder in level:
            plain = _plain(folder)
            seen += len(plain)
            if seen > MOST_SEEN:
                return
            inner = [Path(entry.path) for entry in plain if entry.is_dir(follow_symlinks=False)]
            if folder != root and (kind := _pictures(plain, inner)):
                yield "data", {"name": folder.relative_to(root).as_posix(), "kind": kind}
                continue
            deeper += inner
            for entry in plain:
                name, suffix = Path(entry.path).relative_to(root).as_posix(), Path(entry.name).suffix.lower()
                if not entry.is_file(follow_symlinks=False):
                    continue
                for kind, suffixes in (("models", MODELS), ("data", DATA), ("names", NAMES)):
                    if suffix in suffixes:
                        yield kind, {"name": name, "kind": "file", "bytes": entry.stat(follow_symlinks=False).st_size}
        level = deeper


def _plain(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are neither hidden nor links, in order."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for _, entry in zip(range(MOST_SEEN), entries, strict=False) if not entry.is_symlink()]
    except OSError:
        return []
    return sorted((e for e in found if e.name[0] != "." and e.name.isprintable()), key=lambda entry: entry.name)


def _pictures(plain: list[os.DirEntry[str]], inner: list[Path]) -> str:
    """Whether a folder is one of pictures ("pictures"), or has one of pictures for each class ("classes")."""
    if any(_is_picture(entry) for entry in plain[:FIRST]):
        return "pictures"
    return "classes" if any(_is_picture(e) for folder in inner[:FIRST] for e in _plain(folder)[:FIRST]) else ""


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file(follow_symlinks=False)
