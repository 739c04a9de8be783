"""Lists of pictures and labels, whatever file they come from: which column is which, and where the pictures lie."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import path_title, told
from brickyard.inputs._reading import (
    SPLIT_NAMES,
    SUFFIXES,
    Found,
    Wanted,
    examples,
    is_of,
    labelled,
    no_split,
    note,
    number_of,
    of_files,
    say_stand_in,
    split_names,
)
from brickyard.inputs._several import rows_of_columns, rows_of_names

# Names of columns without regard to case and to signs between words; the first that is there counts.
# fmt: off
PATHS = (
    "path", "filename", "filepath", "file", "imagepath", "imgpath", "imagefilename", "imagefile", "image", "img",
    "imagename", "imageid", "imgid", "picture", "photo", "name", "id",
)
LABELS = (
    "label", "labels", "class", "target", "category", "y", "cls", "labelid", "classid", "categoryid", "classindex",
    "labelidx", "classidx",
)
# fmt: on
NAMES = ("labelname", "classname", "categoryname", "labeltext", "classlabel")
PARTS = ("split", "set", "subset", "partition")

_PROBES = 200  # rows by which the folder of the pictures is found


def plain(name: object) -> str:
    """The name of a column without what people write differently."""
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())


@dataclass(frozen=True)
class Listing:
    """Rows of a table.

    Attributes:
        path: The file.
        columns: Names of the columns.
        rows: One a picture, with a value a column.
    """

    path: Path
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def column(self, words: Iterable[str]) -> list[int]:
        """The columns called by one of these words, in the words' order."""
        known = [plain(name) for name in self.columns]
        return [known.index(word) for word in words if word in known]


def is_header(cells: Sequence[object], several: bool = False) -> bool:
    """Whether these are names of a column of pictures and of one of labels; with `several`, of one for each class."""
    words = {plain(cell) for cell in cells}
    return bool(words & set(PATHS)) and (bool(words & {*LABELS, *NAMES}) or (several and len(words) > 1))


def read_listing(listing: Listing, wanted: Wanted, names: Sequence[str] | None = None) -> Found:
    """Images and labels of a list of pictures.

    Args:
        listing: The list.
        wanted: What is asked for.
        names: Class names, where the labels are known to be indices into them.

    Raises:
        DataError: A column, a label or a picture is missing.
    """
    paths, labels, classes, split = _rows(listing, wanted, names)
    found = located(listing.path, paths, wanted.split)
    missing = [text for text, file in zip(paths, found, strict=True) if file is None]
    if missing:
        why = f"{listing.path}: {len(missing):,} of {len(paths):,} pictures are missing, such as {examples(missing)}"
        advice = "paths count from the folder of the file, and a name without its suffix must be that of one picture"
        raise DataError("data-missing", f"{why}; {advice}")
    files = [str(file) for file in found if file is not None]
    name = path_title(listing.path) + (f" ({split})" if split else "")
    return Found(labels, classes, name, of_files(files, wanted, str(listing.path)))


def listed_files(listing: Listing, wanted: Wanted) -> list[Path]:
    """The pictures of a list that are there, for a split."""
    paths, *_ = _rows(listing, wanted, None)
    return [file for file in located(listing.path, paths, wanted.split) if file is not None]


def _rows(listing: Listing, wanted: Wanted, names: Sequence[str] | None) -> tuple[list[str], Any, list[str], str]:
    """Paths, labels, class names, and the split if the list has several."""
    place = listing.column(PATHS)
    if not place or not is_header(listing.columns, wanted.several):
        found = told(", ".join(map(str, listing.columns)), 200)
        why = f"{listing.path} must have columns such as 'path' and 'label', got {found}"
        raise DataError("data-unknown-format", f"{why}; rename them in the first line")
    labels, classes = _rows_of_classes(listing, names) if wanted.several else _labels(listing, names)
    texts = [_path(row[place[0]], listing, index) for index, row in enumerate(listing.rows)]
    parts = _parts(listing, texts)
    chosen, part = list(range(len(texts))), ""
    if parts is not None:
        part = next((name for name in split_names(wanted.split) if name in parts), "")
        if not part:
            raise no_split(listing.path, wanted.split, [f"{k} ({n:,})" for k, n in Counter(parts).most_common()])
        say_stand_in(listing.path.name, wanted.split, part)
        chosen = [index for index, name in enumerate(parts) if name == part]
    elif wanted.asked and not is_of(listing.path, wanted.split):
        raise no_split(listing.path, wanted.split, [])
    if wanted.several:
        chosen, labels = _together(chosen, texts, labels)
    else:
        chosen = _once(listing, chosen, texts, labels.tolist())
    return [texts[index] for index in chosen], labels[chosen], classes, part


def _once(listing: Listing, chosen: Sequence[int], texts: Sequence[str], labels: Sequence[int]) -> list[int]:
    """The rows without those that repeat a picture, which a table of objects in pictures has.

    Raises:
        DataError: A picture is there with several labels.
    """
    kinds: dict[str, set[int]] = {}
    kept: list[int] = []
    for index in chosen:
        if texts[index] not in kinds:
            kinds[texts[index]] = set()
            kept.append(index)
        kinds[texts[index]].add(labels[index])
    several = [text for text, found in kinds.items() if len(found) > 1]
    if several:
        why = f"{listing.path}: {len(several):,} of {len(kinds):,} pictures have several labels"
        raise DataError("data-label-mismatch", f"{why}, such as {examples(several)}; give one label a picture")
    if len(kept) < len(chosen):
        note(f"{listing.path.name}: rows that repeat a picture are left out: {len(chosen) - len(kept):,}")
    return kept


def _together(chosen: Sequence[int], texts: Sequence[str], labels: Tensor) -> tuple[list[int], Tensor]:
    """The first row of each picture, and labels in which it belongs to the classes of all its rows."""
    first: dict[str, int] = {}
    joined = labels.clone()
    for index in chosen:
        joined[first.setdefault(texts[index], index)] |= labels[index]
    return list(first.values()), joined


def _path(value: Any, listing: Listing, index: int) -> str:
    text = value.strip() if isinstance(value, str) else str(value) if number_of(value) is not None else ""
    if not text:
        why = f"{listing.path}: row {index} names no picture, got {told(repr(value), 40)}"
        raise DataError("data-damaged-file", f"{why}; give every row a path, or leave it out")
    return text


def _rows_of_classes(listing: Listing, names: Sequence[str] | None) -> tuple[Tensor, list[str]]:
    """Rows of 0 and 1, and class names: of the names in one column, or of a column for each class."""
    places = listing.column((*NAMES, *LABELS))
    if places:
        what = f"{listing.path}: column {str(listing.columns[places[0]])!r}"
        found = rows_of_names([row[places[0]] for row in listing.rows], what, names)
    else:
        other = [k for k in range(len(listing.columns)) if k not in listing.column((*PATHS, *PARTS))]
        columns = {str(listing.columns[k]): [row[k] for row in listing.rows] for k in other}
        found = rows_of_columns(columns, str(listing.path))
    return found.labels, list(found.classes)


def _labels(listing: Listing, names: Sequence[str] | None) -> tuple[Any, list[str]]:
    """Labels and class names; a column of numbers and one of names make numbered names."""
    places = listing.column((*LABELS, *NAMES))
    columns = {place: [row[place] for row in listing.rows] for place in places}
    numeric = [place for place in places if all(number_of(value) is not None for value in columns[place])]
    texts = [place for place in places if place not in numeric]
    if numeric and texts and names is None:
        pairs = {(number_of(a), str(b).strip()) for a, b in zip(columns[numeric[0]], columns[texts[0]], strict=True)}
        numbers = {number: name for number, name in pairs if number is not None}
        if len(pairs) == len(numbers) == len(set(numbers.values())) and set(numbers) == set(range(len(numbers))):
            names, places = [numbers[k] for k in range(len(numbers))], [numeric[0]]
        elif len(pairs) == len(numbers) == len(set(numbers.values())):  # they start elsewhere, or some are missing
            places = [texts[0], *(place for place in places if place != texts[0])]
    if len(places) > 1:
        others = ", ".join(str(listing.columns[place]) for place in places[1:])
        note(
            f"{listing.path.name}: labels are those of column {listing.columns[places[0]]!r}, not of {told(others, 80)}"
        )
    return labelled(columns[places[0]], f"{listing.path}: column {str(listing.columns[places[0]])!r}", names)


def _parts(listing: Listing, texts: Sequence[str]) -> list[str] | None:
    """The split of every row: of its column, or of the folder that its path starts with."""
    place = listing.column(PARTS)
    if place:
        return [str(row[place[0]]).strip().casefold() for row in listing.rows]
    first = [text.replace("\\", "/").partition("/")[0].casefold() for text in texts]
    known = set(first)
    if len(known) > 1 and known <= SPLIT_NAMES and all((listing.path.parent / name).is_dir() for name in known):
        note(f"{listing.path.name}: splits are the folders that paths start with: {', '.join(sorted(known))}")
        return first
    return None


# -- where the pictures lie ----------------------------------------------------------------------------------------


class Folders:
    """What lies in folders, each looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[set[str], dict[str, list[str]]]] = {}

    def find(self, path: Path) -> Path | None:
        """The file of this path, or the one picture that is called so but for its suffix."""
        names, stems = self._inside(str(path.parent))
        if path.name in names:
            return path
        alike = stems.get(path.name, [])
        return path.with_name(alike[0]) if len(alike) == 1 else None

    def _inside(self, folder: str) -> tuple[set[str], dict[str, list[str]]]:
        """The names in a folder, and those of pictures without their suffixes."""
        if folder not in self._known:
            stems: dict[str, list[str]] = {}
            try:
                with os.scandir(folder) as items:
                    names = {item.name for item in items}
            except (OSError, ValueError):
                names = set()
            for stem, suffix in map(os.path.splitext, sorted(names)):
                if suffix.lower() in SUFFIXES:
                    stems.setdefault(stem, []).append(stem + suffix)
            self._known[folder] = names, stems
        return self._known[folder]


def located(path: Path, texts: Sequence[str], split: str) -> list[Path | None]:
    """The pictures that a list names: from its own folder, or from a usual one beside it if more are there."""
    folders = Folders()
    steps = max(1, len(texts) // _PROBES)
    probes = texts[::steps]
    bases = _bases(path, split)
    counts = [sum(_find(folders, base, text) is not None for text in probes) for base in bases]
    base = bases[counts.index(max(counts))] if counts else path.parent
    found = [_find(folders, base, text) for text in texts]
    if base != path.parent and any(found):
        note(f"{path.name}: pictures are those in {os.path.relpath(base, path.parent)}")
    return found


def _find(folders: Folders, base: Path, text: str) -> Path | None:
    found = folders.find(base / text)
    if found is None and "\\" in text:
        found = folders.find(base / text.replace("\\", "/"))
    return found


def _bases(path: Path, split: str) -> list[Path]:
    """The folders that paths may count from: that of the list, and the usual ones for pictures."""
    end = path.stem.rpartition("_")[2]  # instances_train2017.json
    usual = [path.stem, end, "images", "imgs", "img", "pictures", "data", *split_names(split), f"{split}_images"]
    usual += [f"images/{name}" for name in (end, *split_names(split))]
    near = [path.parent / name for name in usual]
    above = [path.parent.parent, *(path.parent.parent / name for name in usual)]
    found = [path.parent, *(base for base in dict.fromkeys(near + above) if base.is_dir())]
    return list(dict.fromkeys(found))
