"""YOLO's form of boxes: a YAML file that names classes and folders, and one text per picture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brickyard.base._classes import ordered_names
from brickyard.base._errors import DataError, TaskError
from brickyard.base._messages import first_line, told
from brickyard.inputs._box_table import MOST_CLASSES, TWICE, BoxesFound, Marked, of_entries
from brickyard.inputs._folders import pictures_in
from brickyard.inputs._reading import (
    MAX_TEXT,
    SPLIT_NAMES,
    SUFFIXES,
    Wanted,
    examples,
    no_split,
    note,
    say_stand_in,
    split_names,
)

MOST_YAML = 1 << 19  # bytes of the YAML file: there may be thousands of names
MOST_LABELS = 1 << 24  # bytes of the labels of one picture
MOST_PLACES = 1_000
_DEPTH = 16
_SHORTEST_OUTLINE = 6  # numbers of three corners


def yolo_files(folder: Path) -> tuple[Path | None, Path | None]:
    """The YAML file of a folder that is called as usual, and the only one, if there are such files."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    usual = [path for path in files if path.stem in ("data", "dataset")]
    return usual[0] if usual else None, files[0] if len(files) == 1 else None


def read_yolo(path: Path, wanted: Wanted) -> BoxesFound:
    """Images and boxes of a data set in YOLO's form.

    Raises:
        DataError: The YAML file or a text of labels has another form, or what they name is missing.
    """
    found = _yaml(path)
    if not isinstance(found, dict) or not set(found) & SPLIT_NAMES:
        kind = f"keys {examples(list(found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        why = f"{path} must be a mapping with names and paths of train, val or test, got {kind}"
        raise DataError("data-unknown-format", f"{why}; write such a file, as for YOLO")
    classes = _classes(path, found)
    part = next((name for name in split_names(wanted.split) if found.get(name)), None)
    if part is None:
        raise no_split(path, wanted.split, [name for name in found if name in SPLIT_NAMES and found[name]])
    say_stand_in(path.parent.name, wanted.split, part)
    places = found[part] if isinstance(found[part], list) else [found[part]]
    if len(places) > MOST_PLACES:
        why = f"{path} names {len(places):,} places for {part!r}, and {MOST_PLACES:,} are the limit"
        raise DataError("data-too-large", f"{why}; list the pictures in a text")
    listed = Counter(file for place in places for file in _pictures(path, found.get("path"), place))
    left_out = Counter({TWICE: listed.total() - len(listed)})
    pictures, poses = list(listed), "kpt_shape" in found
    files, marked = of_entries(((_there(file), _marked(file, len(classes), poses)) for file in pictures), left_out)
    name = f"{path.parent.name}/{part}" if path.parent.name else part
    if not any(_text_of(file).is_file() for file in pictures):
        why = f"{path}: none of the {len(pictures):,} pictures of {part!r} has labels, such as {_text_of(pictures[0])}"
        raise DataError("data-no-labels", f"{why}; put them into a folder 'labels' beside 'images'")
    return BoxesFound(files, marked, classes, name, "shares", left_out)


def _there(file: Path) -> Path | None:
    return file if file.is_file() else None


# -- the YAML file -------------------------------------------------------------------------------------------------


def _yaml(path: Path) -> Any:
    """The file as texts, lists and mappings: nothing else is made of it."""
    import yaml

    try:
        if path.stat().st_size > MOST_YAML:
            raise ValueError(f"it is larger than {MOST_YAML >> 10} KiB")
        text = path.read_text("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1
            if depth > _DEPTH:
                raise ValueError(f"line {line} is nested deeper than {_DEPTH}")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) not in (None, "!"):
                raise ValueError(f"line {line} has an alias or a tag, and only plain values are read")
        return _value(yaml.compose(text, Loader=yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        why = first_line(error) if mark is None else f"line {mark.line + 1}: {getattr(error, 'problem', None)}"
        raise DataError("data-damaged-file", f"cannot read {path} as YAML: {told(why, 200)}; repair it") from None


def _value(node: Any) -> Any:
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return ""
    if node.id == "sequence":
        return [_value(item) for item in node.value]
    if node.id != "mapping":
        return str(node.value)
    found: dict[str, Any] = {}
    for key, value in node.value:
        if key.id != "scalar" or key.value in found:
            raise ValueError(f"line {key.start_mark.line + 1} has a key that is there twice, or is no text")
        found[key.value] = _value(value)
    return found


def _classes(path: Path, found: dict[str, Any]) -> list[str]:
    names, count = found.get("names"), found.get("nc")
    if not names and isinstance(count, str) and count.isdecimal() and int(count[:9]) <= MOST_CLASSES:
        return [str(k) for k in range(int(count))]
    try:
        names = ordered_names(names)
    except TaskError as error:
        raise DataError("data-class-names", f"{path}: {error}") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        why = f"{path}: 'names' must be a list of class names or a mapping of numbers to names, got {told(names, 60)}"
        raise DataError("data-class-names", f"{why}; name the classes in the order of their numbers")
    return names


# -- the pictures --------------------------------------------------------------------------------------------------


def _pictures(path: Path, root: Any, place: Any) -> list[Path]:
    """The pictures of a folder, or those that a text lists."""
    found = _located(path, root, place)
    if found.is_dir():
        return pictures_in(found)
    if found.suffix.lower() in SUFFIXES:
        return [found]
    try:
        if found.stat().st_size > MAX_TEXT:
            raise ValueError(f"it is larger than {MAX_TEXT >> 20} MiB")
        lines = [line.strip() for line in found.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError("data-damaged-file", f"cannot read {found} as a list: {first_line(error)}; repair it") from None
    roots = [found.parent, *_roots(path, root)]
    pictures = [_first([base / line.replace("\\", "/") for base in roots]) for line in lines if line]
    if not pictures:
        raise DataError("data-no-images", f"{found} lists no pictures; write one path per line")
    return pictures


def _first(places: list[Path]) -> Path:
    """The first that is there, or the first one."""
    return next((place for place in places if _exists(place)), places[0])


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):  # no file can be called so
        return False


def _roots(path: Path, root: Any) -> Iterator[Path]:
    """The folders that paths may count from: the one that the file names, and its own."""
    if isinstance(root, str) and root:
        named = Path(root.replace("\\", "/"))
        yield path.parent / named
        yield path.parent.parent / named
        yield path.parent / named.name
    yield path.parent


def _located(path: Path, root: Any, place: Any) -> Path:
    """Where a path of the YAML file leads.

    Those that begin with `../` are often meant from the file's own folder.

    Raises:
        DataError: Nowhere.
    """
    text = place.replace("\\", "/") if isinstance(place, str) else ""
    inner = text
    while inner.startswith("../"):
        inner = inner.removeprefix("../")
    roots = list(dict.fromkeys(_roots(path, root)))
    tried = list(dict.fromkeys(base / part for part in (text, inner) for base in roots))
    found = next((file for file in tried if text and _exists(file)), None)
    if found is None:
        why = f"{path} names {told(place, 100)!r}, and there is nothing at {told(tried[0], 200)}"
        raise DataError("data-missing", f"{why}; give paths from the file's folder, or set 'path' in it")
    if found != tried[0]:
        note(f"{path.name}: {told(text, 100)!r} is read as {os.path.relpath(found, path.parent)}")
    return found


# -- the labels ----------------------------------------------------------------------------------------------------


def _text_of(picture: Path) -> Path:
    """The labels of a picture: in `labels` in place of the last `images`, or beside it."""
    beside = picture.with_suffix(".txt")
    parts = list(beside.parts)
    places = [k for k, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        if (moved := Path(*parts)).is_file() or not beside.is_file():
            return moved
    return beside


def _marked(picture: Path, classes: int, poses: bool) -> Marked:
    """The objects in a picture; one without a text of labels has none."""
    path = _text_of(picture)
    if not path.is_file():
        return Marked.of([], [])
    try:
        if path.stat().st_size > MOST_LABELS:
            raise ValueError(f"it is larger than {MOST_LABELS >> 20} MiB")
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError("data-damaged-file", f"cannot read labels {path}: {first_line(error)}; repair it") from None
    boxes, labels = [], []
    for k, line in enumerate(lines, 1):
        if line.strip():
            label, box = _line(path, k, line, poses)
            boxes.append(box)
            labels.append(label if 0 <= label < classes else -1)
    return Marked.of(boxes, labels)


def _line(path: Path, k: int, line: str, poses: bool) -> tuple[int, list[float]]:
    """The class and the box of an object; an outline is reduced to the box around it."""
    try:
        label, *values = [float(cell) for cell in line.split()]
        if not label.is_integer() or not (
            len(values) == 4
            or (poses and len(values) > 4)
            or (len(values) >= _SHORTEST_OUTLINE and len(values) % 2 == 0)
        ):
            raise ValueError
    except ValueError:
        why = f"{path}, line {k} must be a class, centre x and y, width and height, or a class and the corners of an "
        raise DataError("data-damaged-file", f"{why}outline; got {told(line, 60)!r}; repair it") from None
    if len(values) == 4 or poses:
        return int(label), values[:4]
    corners = np.array(values).reshape(-1, 2)
    low, high = corners.min(0), corners.max(0)
    return int(label), [*((low + high) / 2), *(high - low)]
