"""Folders of pictures: one sub-folder per class, however deep its pictures lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from brickyard.base._errors import DataError
from brickyard.base._messages import told, writable
from brickyard.inputs._reading import (
    SPLIT_NAMES,
    SUFFIXES,
    Found,
    Wanted,
    no_split,
    note,
    of_files,
    say_stand_in,
    split_names,
)

_NO_PICTURES = {".db", ".ini", ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".md"}  # which lie beside pictures
_MOST_LEVELS = 8  # of folders that hold one folder each


def split_folder(path: Path, split: str) -> Path | None:
    """The folder of a split, if there is one; "val" serves as "test". A class may be called "train" too."""
    known = {folder.name.casefold(): folder for folder in reversed(_folders(path))}
    names = [name for name in split_names(split) if name.casefold() in known]
    return next((known[name.casefold()] for name in names if not _is_class(known[name.casefold()], known)), None)


def _is_class(folder: Path, beside: dict[str, Path]) -> bool:
    """Whether a folder called like a split is that of a class: pictures lie in it, and other classes beside it."""
    others = [other for name, other in beside.items() if name not in SPLIT_NAMES]
    return bool(others) and not _folders(folder) and _has_pictures(folder) and any(map(_has_pictures, others))


def _folders(path: Path) -> list[Path]:
    """The folders in a folder, in order, but for hidden ones and those that archives leave."""
    try:
        found = [folder for folder in path.iterdir() if folder.is_dir()]
    except OSError:
        return []
    return sorted(folder for folder in found if folder.name[0] != "." and folder.name != "__MACOSX")


def is_picture(name: str) -> bool:
    """Whether a file is called like a picture."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _has_pictures(folder: Path) -> bool:
    """Whether pictures lie directly in a folder."""
    try:
        return any(is_picture(item.name) for item in folder.iterdir())
    except OSError:
        return False


def pictures_in(folder: Path) -> list[Path]:
    """All pictures in a folder and in those within it, in order; what is left out is said.

    Raises:
        DataError: There are none.
    """
    every = sorted(file for file in folder.rglob("*") if not file.name.startswith("."))
    found = [file for file in every if is_picture(file.name)]
    if not found:
        raise DataError("data-no-images", f"{folder} holds no pictures; give a folder with .png, .jpg or the like")
    other = (file for file in every if not is_picture(file.name) and file.suffix.lower() not in _NO_PICTURES)
    if left := [str(file.relative_to(folder)) for file in other if file.is_file()]:
        such = f"such as {told(', '.join(left[:3]), 200)}; pictures end in .png, .jpg or the like"
        note(f"{folder.name}: files that are left out: {len(left):,}, {such}")
    return found


def root_of(path: Path, wanted: Wanted) -> Path:
    """The folder whose sub-folders are the classes: that of the split, within folders that hold just one folder.

    Raises:
        DataError: The split was asked for and is not there, or there are splits, and not this one.
    """
    root, splits = path, 0
    for _ in range(_MOST_LEVELS):
        part = split_folder(root, wanted.split) if not splits else None
        if part is not None:
            say_stand_in(path.name, wanted.split, part.name.casefold())
            root, splits = part, 1
            continue
        inner = _folders(root)
        if not splits and inner and all(folder.name.casefold() in SPLIT_NAMES for folder in inner):
            raise no_split(path, wanted.split, (folder.name for folder in inner))
        if len(inner) != 1 or _has_pictures(root) or _has_pictures(inner[0]) or not _wraps(inner[0], wanted):
            break
        root = inner[0]
    if not splits and wanted.asked:
        there = ", ".join(folder.name for folder in _folders(root)[:5]) or "none"
        raise DataError("data-missing", f"{path} has no split {wanted.split!r}; its folders are {there}: name one")
    return root


def _wraps(folder: Path, wanted: Wanted) -> bool:
    """Whether the only folder of a root is no class but holds the classes or the splits."""
    again = folder.name == folder.parent.name  # as archives of Kaggle are unpacked
    return again or len(_folders(folder)) > 1 or split_folder(folder, wanted.split) is not None


def class_files(root: Path) -> tuple[list[str], list[int], list[str], list[str]]:
    """The classes of a folder, the class and the path of each picture, in order, and what is left out.

    Links to folders are followed where they are classes, and nowhere below: they may lead round in a circle. A folder
    may hold millions of pictures, so their paths are texts.
    """
    classes = [folder.name for folder in _folders(root)]
    labels: list[int] = []
    pictures: list[str] = []
    left: list[str] = []
    for k, name in enumerate(classes):
        for folder, file in _below(str(root / name), left, root):
            suffix = os.path.splitext(file)[1].lower()
            if suffix in SUFFIXES:
                labels.append(k)
                pictures.append(f"{folder}{os.sep}{file}")
            elif suffix not in _NO_PICTURES:
                left.append(os.path.relpath(os.path.join(folder, file), root))
    return classes, labels, pictures, left


def _below(folder: str, left: list[str], root: Path) -> Iterator[tuple[str, str]]:
    """The folder and the name of each file in a folder, then of those in its folders, in order.

    Hidden ones are passed over, links to folders are noted.
    """
    for at, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        left += [os.path.relpath(os.path.join(at, name), root) for name in links]
        folders[:] = sorted(name for name in set(folders) - set(links) if name[0] != "." and name != "__MACOSX")
        yield from ((at, name) for name in sorted(files) if not name.startswith("."))


def read_folder(path: Path, wanted: Wanted) -> Found:
    """Images in a folder a class. Where the text asks for a split, there must be a folder of it.

    Raises:
        DataError: There are no pictures in folders of classes.
    """
    root = root_of(path, wanted)
    classes, labels, pictures, left = class_files(root)
    for name in classes:
        if not writable(name):
            why = f"{root} has a folder whose name is not valid UTF-8, {name!r}"
            raise DataError("data-class-names", f"{why}; rename it, because it names a class")
    if not pictures:
        there = ", ".join(map(repr, classes[:5])) or "no sub-folder"
        why = f"{path} was asked for, split {wanted.split!r}, and it holds no images in class folders ({there})"
        advice = "put each class's images into a folder of its own, as .png, .jpg or the like, or a table beside them"
        raise DataError("data-no-images", f"{why}; {advice}")
    direct = root.parent == path and root.name.casefold() in split_names(wanted.split)
    if root != path and not direct:
        note(f"{path.name}: the classes are the folders of {root.relative_to(path)}")
    _tell(root, pictures, left)
    return Found(torch.tensor(labels), classes, root.name, of_files(pictures, wanted, str(root)))


def _tell(root: Path, pictures: list[str], left: list[str]) -> None:
    """Say which pictures lie deeper, and what is left out."""
    level = str(root / "class" / "file").count(os.sep)
    deep = [file for file in pictures if file.count(os.sep) > level]
    if deep:
        such = told(os.path.relpath(deep[0], root), 80)
        note(f"{root.name}: pictures in deeper folders belong to the topmost one: {len(deep):,}, such as {such}")
    if left:
        why = "pictures end in .png, .jpg or the like, and links to folders are not followed within a class"
        note(f"{root.name}: files and folders that are left out: {len(left):,}, such as {told(left[0], 80)}; {why}")
