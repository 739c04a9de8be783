"""Columns of pictures and boxes in parquet and Arrow files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from brickyard.base._errors import DataError
from brickyard.base._lazy import package
from brickyard.base._limits import foreign_json
from brickyard.base._messages import path_title, told
from brickyard.inputs._box_table import MOST_BOXES, MOST_CLASSES, BoxesFound, Coding, Marked, number
from brickyard.inputs._columns import (
    IMAGES,
    ArrowFile,
    Column,
    ColumnFile,
    ParquetFile,
    features_beside,
    features_of,
)

OBJECTS = ("objects", "annotations")
BOXES = ("boxes", "bboxes", "bbox")
CLASSES = ("classes", "labels", "categories", "category", "label", "class_id", "category_id")
CROWD = ("iscrowd", "is_crowd", "crowd", "difficult")

Row = tuple[list[Any], list[Any], list[Any]]
"""Boxes, classes and crowd of one image, as the file holds them."""


def read_box_columns(files: Sequence[Path], split: str) -> BoxesFound:
    """Images and boxes of the parquet files of a split, or of the Arrow files that `save_to_disk` wrote.

    Raises:
        DataError: A file is damaged, or has no such columns.
    """
    package("pyarrow.parquet", "parquet", str(files[0]))
    parquet = files[0].suffix.lower() == ".parquet"
    opened: list[ColumnFile] = [ParquetFile(path) if parquet else ArrowFile(path) for path in files]
    kinds = [_columns(file) for file in opened]
    image, columns, metadata = kinds[0]
    odd = next((k for k, kind in enumerate(kinds) if _told_of(kind) != _told_of(kinds[0])), None)
    if odd is not None:
        why = f"{files[odd]} has other columns or class names than {files[0].name}"
        raise DataError("data-damaged-file", f"{why}; get all shards of one set")
    marked: list[Marked] = []
    classes: list[list[Any]] = []
    lengths, count = [], 0
    for file in opened:
        start = len(marked)
        with file.open() as found:
            for _, batch in found.batches(columns, lambda rows: True):
                for row in _rows(batch, columns, files[0], len(marked)):
                    count += 1 + len(row[0])
                    _check_count(count, files[0])
                    marked.append(_marked(row, len(marked), files[0]))
                    classes.append(row[1])
        lengths.append(len(marked) - start)
    features = features_of(metadata) or (None if parquet else features_beside(files[0]))
    labels, names = _labels(classes, columns, features, metadata, files[0])
    marked = [replace(one, labels=np.array(held, np.int64)) for one, held in zip(marked, labels, strict=True)]
    name = path_title(files[0]) if len(files) == 1 else f"{files[0].parent.name}/{split}"
    coding: Coding = "shares" if len(columns) > 1 else "unknown"
    return BoxesFound(Column(opened, lengths, image, strict=False), marked, names, name, coding, Counter())


Kind = tuple[str, list[str], dict[bytes, bytes] | None]
"""The column of images, those of objects, and what the file says of itself."""


def _told_of(kind: Kind) -> tuple[str, list[str], list[str] | None]:
    """The columns and the class names of a file."""
    image, columns, metadata = kind
    return image, columns, _feature_names(features_of(metadata), columns) or _plain_names(metadata)


def _columns(file: ColumnFile) -> Kind:
    """The column of images, that of objects or those of boxes and classes, and what the file says of itself."""
    with file.open() as found:
        names = list(found.columns)
        metadata = found.metadata
    image = next((name for name in IMAGES if name in names), None)
    whole = next((name for name in OBJECTS if name in names), None)
    pair = [next((name for name in known if name in names), "") for known in (BOXES, CLASSES)]
    if image is None or not (whole or all(pair)):
        why = f"{file.path} must have columns 'image', and 'objects' or 'boxes' and 'classes'"
        raise DataError("data-unknown-format", f"{why}, got {told(', '.join(names), 200)}; rename them")
    return image, [whole] if whole else pair, metadata


def _rows(batch: Any, columns: Sequence[str], path: Path, start: int) -> list[Row]:
    values = [batch.column(batch.schema.get_field_index(name)).to_pylist() for name in columns]
    if len(columns) > 1:
        return [(boxes or [], classes or [], []) for boxes, classes in zip(*values, strict=True)]
    return [_objects(value, path, start + k) for k, value in enumerate(values[0])]


def _objects(value: Any, path: Path, row: int) -> Row:
    """The objects of a row: lists by key, or a list of objects."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        keys = value[0] if value else {}
        value = {key: [item.get(key) for item in value] for key in keys}
    found = value if isinstance(value, dict) else {} if value is None else None
    picked = [next(((found or {})[k] for k in names if k in (found or {})), None) for names in (BOXES, CLASSES, CROWD)]
    if found is None or (found and (picked[0] is None) != (picked[1] is None)):
        why = f"{path}: row {row} must have objects with 'bbox' and 'category', got {told(repr(value), 80)}"
        raise DataError("data-unknown-format", f"{why}; rename the fields")
    return picked[0] or [], picked[1] or [], picked[2] or []


def _check_count(count: int, path: Path) -> None:
    if count > MOST_BOXES:
        why = f"{path} has more than {MOST_BOXES:,} rows and boxes, which is the limit"
        raise DataError("data-too-large", f"{why}; divide it")


def _marked(row: Row, k: int, path: Path) -> Marked:
    """What is marked in a row, without the classes."""
    boxes, classes, crowd = row
    values = [[number(value) for value in box] if isinstance(box, list) and len(box) == 4 else [] for box in boxes]
    odd = next((place for place, box in enumerate(values) if not box or None in box), None)
    if odd is not None or len(classes) != len(boxes) or len(crowd) not in (0, len(boxes)):
        found = f"{len(boxes)} boxes and {len(classes)} classes" if odd is None else told(repr(boxes[odd]), 60)
        why = f"{path}: row {k} must have four numbers and a class for each box, got {found}"
        raise DataError("data-damaged-file", f"{why}; repair it, or leave it out")
    numbers = [[value for value in box if value is not None] for box in values]
    return Marked.of(numbers, [0] * len(boxes), [bool(value) for value in crowd])


# -- classes -------------------------------------------------------------------------------------------------------


def _labels(
    values: Sequence[list[Any]], columns: Sequence[str], features: Any, metadata: dict[bytes, bytes] | None, path: Path
) -> tuple[list[list[int]], list[str]]:
    """Indices of classes, -1 for unknown ones, and the class names: the file's, or those that occur."""
    names = _feature_names(features, columns) or _plain_names(metadata)
    every = [value for row in values for value in row]
    if every and all(isinstance(value, str) for value in every):
        names = sorted(set(every)) if names is None else names
        places = {name: k for k, name in enumerate(names)}
        return [[places.get(value, -1) for value in row] for row in values], names
    odd = next((value for value in every if isinstance(value, bool) or not isinstance(value, int)), None)
    if odd is not None or (not every and not names):
        what = f"got {told(repr(odd), 40)}" if every else "and there are none"
        why = f"{path}: classes of boxes must be integers, or names for all of them, {what}"
        raise DataError("data-label-mismatch", f"{why}; give every box a class")
    most = max(every, default=0)
    if names is None and most >= MOST_CLASSES:
        why = f"{path} has classes up to {most}, and {MOST_CLASSES:,} are the limit"
        raise DataError("data-label-out-of-range", f"{why}; give classes that count from 0")
    names = list(map(str, range(most + 1))) if names is None else names
    return [[value if 0 <= value < len(names) else -1 for value in row] for row in values], names


def _feature_names(features: Any, columns: Sequence[str]) -> list[str] | None:
    """The names of the classes by what the Hugging Face library says of the columns."""
    item = features.get(columns[-1]) if isinstance(features, dict) else None
    for _ in range(8):  # levels of lists and objects
        item = item[0] if isinstance(item, list) and item else item
        if not isinstance(item, dict):
            return None
        if isinstance(item.get("names"), list) and item.get("_type") == "ClassLabel":
            return [str(name) for name in item["names"]]
        item = next((item[key] for key in (*CLASSES, "feature") if key in item), None)
    return None


def _plain_names(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """The names of the classes in the file's own metadata: a JSON list."""
    try:
        found = foreign_json((metadata or {})[b"names"].decode())
    except (KeyError, ValueError, RecursionError):
        return None
    good = isinstance(found, list) and found and all(isinstance(name, str) for name in found)
    return list(found) if good else None
