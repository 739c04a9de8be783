"""JSON files: lines or a list of pictures and labels, and COCO annotations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brickyard.base._errors import DataError
from brickyard.base._messages import first_line, told
from brickyard.inputs._listings import PATHS, Listing, is_header, listed_files, located, plain, read_listing
from brickyard.inputs._reading import MAX_TEXT, Found, Wanted, examples, quietly

COCO = {"images", "annotations", "categories"}


def read_json(path: Path, wanted: Wanted) -> Found:
    """Images and labels of a JSON file.

    Raises:
        DataError: It has another structure, an image has no category or several, or pictures are missing.
    """
    listing, names = _listing(path, wanted)
    return read_listing(listing, wanted, names)


def json_files(path: Path, wanted: Wanted) -> list[Path]:
    """The file, and the pictures that it names."""
    return [path, *listed_files(_listing(path, wanted)[0], wanted)]


def lists_pictures(path: Path, wanted: Wanted) -> bool:
    """Whether the first lines name pictures and labels, and one of the pictures is there."""
    found = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for text, _ in zip(file, range(8), strict=False):
                found.append(json.loads(text))
    except (OSError, ValueError, RecursionError):
        return False
    rows = [row for row in found if isinstance(row, dict) and is_header(list(row), wanted.several)]
    texts = [_first(row) for row in rows]
    with quietly():
        return any(located(path, [text for text in texts if text], wanted.split))


def _first(row: Mapping[str, Any]) -> str:
    """The path in a row."""
    known = {plain(key): value for key, value in row.items()}
    return next((str(known[word]) for word in PATHS if isinstance(known.get(word), str | int)), "")


def _listing(path: Path, wanted: Wanted) -> tuple[Listing, list[str] | None]:
    """What a file lists, and the names of classes where labels are indices into them."""
    found = json_content(path)
    if isinstance(found, dict) and set(found) >= COCO:
        return _coco(path, found, wanted.several)
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    if not rows or len(rows) != len(found):
        kind = f"keys {examples(list(found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        why = f"{path} must hold a list of objects with a path and a label, or COCO annotations; it holds {kind}"
        raise DataError("data-unknown-format", f'{why}: write [{{"path": "a.png", "label": "cat"}}, ...]')
    kinds = (str, int, float, list) if wanted.several else (str, int, float)
    columns = [key for key, value in rows[0].items() if isinstance(value, kinds)]
    if not is_header(columns, wanted.several):
        why = f"{path}: objects must have a path and a label, and the first has {told(', '.join(rows[0]), 200)}"
        raise DataError("data-unknown-format", f"{why}; name them 'path' and 'label'")
    return Listing(path, columns, [[row.get(column) for column in columns] for row in rows]), None


def json_content(path: Path) -> Any:
    """The whole file as one value; JSON lines as a list.

    Raises:
        DataError: It is too large, or no JSON.
    """
    try:
        size = path.stat().st_size
        if size > MAX_TEXT:
            limit = f"{MAX_TEXT / 1e6:,.0f} MB are the limit"
            raise DataError("data-too-large", f"{path} has {size / 1e6:,.0f} MB, and {limit}; divide it")
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() != ".json":
            return _lines(text)
        try:
            return json.loads(text)
        except ValueError:
            if text.lstrip()[:1] != "{" or "\n" not in text.strip():
                raise
            return _lines(text)
    except (OSError, ValueError, RecursionError) as error:
        why = f"cannot read {path} as JSON: {first_line(error)}"
        raise DataError("data-damaged-file", f"{why}; save it as JSON in UTF-8") from None


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


# -- COCO ----------------------------------------------------------------------------------------------------------


def _coco(path: Path, found: Mapping[str, Any], several: bool) -> tuple[Listing, list[str]]:
    """COCO annotations as labels: every image must have annotations of one category, unless it may have several."""
    images, categories = by_id(path, found, "images"), by_id(path, found, "categories")
    names = {number: str(categories[number].get("name", number)) for number in sorted(categories)}
    each: dict[int, set[int]] = {number: set() for number in images}
    annotations = found["annotations"]
    for index, item in enumerate(annotations if isinstance(annotations, list) else ()):
        pair = (item.get("image_id"), item.get("category_id")) if isinstance(item, dict) else (None, None)
        if not all(isinstance(value, int) for value in pair) or pair[0] not in images or pair[1] not in categories:
            why = f"{path}: annotation {index} must name an image and a category of the file, got {told(pair, 60)}"
            raise DataError("data-damaged-file", f"{why}; get a fresh copy")
        each[pair[0]].add(pair[1])
    if several:
        listed = [
            [images[number].get("file_name"), [names[k] for k in sorted(kinds)]] for number, kinds in each.items()
        ]
        return Listing(path, ("path", "label"), listed), list(names.values())
    counts = Counter(min(len(found), 2) for found in each.values())
    if counts[0] or counts[2]:
        odd = f"{counts[2]:,} of {len(each):,} images have annotations of several categories, {counts[0]:,} of none"
        advice = "give images of one category each, or say that an image may have several (--outputs several)"
        raise DataError("data-label-mismatch", f"{path}: {odd}; {advice}")
    places = {number: k for k, number in enumerate(names)}
    rows = [[images[number].get("file_name"), places[min(kinds)]] for number, kinds in each.items()]
    return Listing(path, ("path", "label"), rows), list(names.values())


def by_id(path: Path, found: Mapping[str, Any], key: str) -> dict[int, Mapping[str, Any]]:
    """The images or categories of COCO annotations, by their ids.

    Raises:
        DataError: One has no id of its own.
    """
    items: Sequence[Any] = found[key] if isinstance(found[key], list) else []
    known: dict[int, Mapping[str, Any]] = {}
    for item in items:
        if isinstance(item, dict) and type(item.get("id")) is int:
            known[item["id"]] = item
    if not known or len(known) != len(items):
        why = f"{path}: every item of {key!r} must have an 'id' of its own, an integer"
        raise DataError("data-damaged-file", f"{why}; {len(known)} of {len(items)} have")
    return known
