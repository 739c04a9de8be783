"""COCO annotations with boxes: one JSON file, and its pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brickyard.base._errors import DataError
from brickyard.base._messages import path_title, told
from brickyard.inputs._box_table import UNLISTED, BoxesFound, Marked, Sides, number, of_entries
from brickyard.inputs._folders import split_folder
from brickyard.inputs._json_files import COCO, by_id, json_content
from brickyard.inputs._listings import located
from brickyard.inputs._reading import SPLIT_NAMES, Wanted, examples, is_of, no_split, say_stand_in, split_names

_WORDS = re.compile(r"[-_. ]|(?<=[a-z])(?=\d)")  # between the words of a name such as instances_train2017


def coco_files(folder: Path, wanted: Wanted) -> list[Path]:
    """The annotations of a split in a folder, or nothing if it holds none.

    They lie in `annotations`, in the folder itself, or in the split's own folder.

    Raises:
        DataError: There are several that fit, or others only.
    """
    own = split_folder(folder, wanted.split)
    if own is not None and (found := _json_in(own)):
        say_stand_in(folder.name, wanted.split, own.name.casefold())
        return _the_one(folder, found)
    every = _json_in(folder / "annotations") or _json_in(folder)
    for part in split_names(wanted.split):
        if found := [path for path in every if part in _words(path)]:
            say_stand_in(folder.name, wanted.split, part)
            return _the_one(folder, found)
    others = sorted({word for path in every for word in _words(path) if word in SPLIT_NAMES})
    if others or (every and wanted.asked):
        raise no_split(folder, wanted.split, others)
    return _the_one(folder, every) if every else []


def _json_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json")) if folder.is_dir() else []


def _words(path: Path) -> list[str]:
    return _WORDS.split(path.stem.casefold())


def _the_one(folder: Path, found: list[Path]) -> list[Path]:
    """The only file, or the only one of instances: COCO has captions and key points beside them.

    Raises:
        DataError: There are several.
    """
    named = [path for path in found if "instances" in _words(path)]
    if len(found) > 1 and len(named) != 1:
        names = examples([path.name for path in found])
        why = f"{folder} holds {len(found)} JSON files that may be meant, such as {names}"
        raise DataError("data-unknown-format", f"{why}; name the file itself")
    return named if len(found) > 1 else found


def read_coco(path: Path, wanted: Wanted) -> BoxesFound:
    """Images and boxes of COCO annotations.

    Raises:
        DataError: The file is no such JSON, or an entry in it has another form.
    """
    found = json_content(path)
    if not isinstance(found, dict) or not set(found) >= COCO:
        kind = f"keys {examples(list(found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        why = f"{path} must hold COCO annotations with the keys {', '.join(sorted(COCO))}, got {kind}"
        raise DataError("data-unknown-format", f"{why}; export them in that form")
    if wanted.asked and not (is_of(path, wanted.split) or set(split_names(wanted.split)) & set(_words(path))):
        raise no_split(path, wanted.split, [])
    images, categories = by_id(path, found, "images"), by_id(path, found, "categories")
    classes = [str(categories[k].get("name", k)) for k in sorted(categories)]
    left_out: Counter[str] = Counter()
    places = {k: place for place, k in enumerate(sorted(categories))}
    marked = _marked(path, found["annotations"], images, places, left_out)
    names = [_name(path, item, k) for k, item in images.items()]
    files, joined = of_entries(zip(located(path, names, wanted.split), marked, strict=True), left_out)
    if not len(files):
        why = f"{path}: none of the {len(names):,} images is there, such as {examples(names)}"
        raise DataError("data-missing", f"{why}; put them beside the file, or into 'images' there")
    return BoxesFound(files, joined, classes, path_title(path), "sized", left_out)


def _name(path: Path, item: Mapping[str, Any], k: int) -> str:
    name = item.get("file_name")
    if not isinstance(name, str) or not name.strip():
        why = f"{path}: image {k} must have a 'file_name', got {told(repr(name), 60)}"
        raise DataError("data-damaged-file", f"{why}; name its file, or leave the image out")
    return name


def _marked(
    path: Path,
    annotations: Any,
    images: Mapping[int, Mapping[str, Any]],
    places: Mapping[int, int],
    left_out: Counter[str],
) -> list[Marked]:
    """What is marked in each image."""
    if not isinstance(annotations, list):
        why = f"{path}: 'annotations' must be a list, got a {type(annotations).__name__}"
        raise DataError("data-damaged-file", f"{why}; export it again")
    each: dict[int, list[tuple[list[float], int, bool]]] = {k: [] for k in images}
    for index, item in enumerate(annotations):
        box = item.get("bbox") if isinstance(item, dict) else None
        numbers = [number(value) for value in box] if isinstance(box, list) else []
        values = [value for value in numbers if value is not None]
        ids: list[Any] = [item.get(key) for key in ("image_id", "category_id")] if isinstance(item, dict) else []
        if len(numbers) != 4 or len(values) != 4 or not all(type(value) is int for value in ids):
            found = told({"bbox": box, "ids": ids}, 80)
            why = f"{path}: annotation {index} must have image_id, category_id and a bbox of four numbers, got {found}"
            raise DataError("data-damaged-file", f"{why}; repair it, or leave it out")
        if ids[0] in each:
            each[ids[0]].append((values, places.get(ids[1], -1), bool(item.get("iscrowd", 0))))
        else:
            left_out[UNLISTED] += 1
    return [Marked.of(*_columns(each[k]), stated=_stated(item)) for k, item in images.items()]


def _columns(rows: list[tuple[list[float], int, bool]]) -> tuple[list[list[float]], list[int], list[bool]]:
    return [box for box, _, _ in rows], [label for _, label, _ in rows], [crowd for _, _, crowd in rows]


def _stated(item: Mapping[str, Any]) -> Sides | None:
    sides = item.get("height"), item.get("width")
    return (int(sides[0]), int(sides[1])) if all(isinstance(k, int) and k > 0 for k in sides) else None  # type: ignore[arg-type]
