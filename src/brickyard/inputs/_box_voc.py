"""Pascal VOC's form of boxes: one XML file per picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brickyard.base._errors import DataError
from brickyard.base._limits import DEPTH
from brickyard.base._messages import first_line, told
from brickyard.inputs._box_table import TWICE, BoxesFound, Marked, Sides, of_entries
from brickyard.inputs._folders import split_folder
from brickyard.inputs._listings import Folders
from brickyard.inputs._reading import MAX_TEXT, Wanted, examples, no_split, note, say_stand_in, split_names

MOST_XML = 1 << 24  # bytes of one file
MOST_ELEMENTS = 1 << 18
_HOMES = ("JPEGImages", "images", "Images")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


def voc_root(folder: Path) -> Path | None:
    """The folder that holds `Annotations`, or XML files beside pictures: this one, or the only one in it.

    Raises:
        DataError: There are several.
    """
    if _annotations(folder):
        return folder
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _annotations(path)]
    if len(inner) > 1:
        why = f"{folder} holds {len(inner)} data sets in VOC's form, {examples([path.name for path in inner])}"
        raise DataError("data-unknown-format", f"{why}; name one of them")
    return inner[0] if inner else folder if _xml_in(folder) or _parts(folder) else None


def _xml_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.xml")) if folder.is_dir() else []


def _annotations(folder: Path) -> list[Path]:
    """The files in the folder of annotations."""
    return _xml_in(folder / "Annotations") or _xml_in(folder / "annotations")


def _parts(folder: Path) -> list[Path]:
    """The files in folders of splits, where XML lies beside the pictures."""
    return [file for path in sorted(folder.iterdir()) if path.is_dir() for file in _xml_in(path)]


@dataclass(frozen=True)
class _Page:
    """What an XML file says: the name of the picture, its sides, and names, boxes and difficulty of its objects."""

    picture: str
    stated: Sides | None
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


def read_voc(folder: Path, wanted: Wanted) -> BoxesFound:
    """Images and boxes of a data set in VOC's form. Classes are all names that its files have, sorted.

    Raises:
        DataError: A file has another form, or what is listed is missing.
    """
    whole = _annotations(folder)
    every = whole or _xml_in(folder) or _parts(folder)
    size = sum(path.stat().st_size for path in every)
    if size > MAX_TEXT:
        why = f"the XML files of {folder} have {size / 1e6:,.0f} MB, and {MAX_TEXT / 1e6:,.0f} MB are the limit"
        raise DataError("data-too-large", f"{why}; divide it")
    pages = {path: _page(path) for path in every}
    chosen, part = _chosen(folder, every, wanted) if whole else _in_parts(folder, every, wanted)
    classes = sorted({name for page in pages.values() for name in page.names})
    places = {name: k for k, name in enumerate(classes)}
    from_zero = any(min(box[:2]) == 0 for page in pages.values() for box in page.boxes)
    if from_zero:
        note(f"{folder.name}: some boxes begin at 0, so coordinates count from 0, and not from 1 as in VOC itself")
    left_out = Counter({TWICE: len(chosen) - len(set(chosen))})
    home = next((folder / name for name in _HOMES if whole and (folder / name).is_dir()), None)
    folders, entries = Folders(), []
    for path in dict.fromkeys(chosen):
        page = pages[path]
        boxes = np.array(page.boxes, float).reshape(-1, 4) - (0 if from_zero else np.array([1, 1, 0, 0]))
        marked = Marked.of(boxes.tolist(), [places[name] for name in page.names], page.difficult, page.stated)
        entries.append((_picture(home or path.parent, path, page, folders), marked))
    files, joined = of_entries(entries, left_out)
    if not len(files):
        why = (
            f"{folder}: none of the {len(entries):,} pictures is there, such as {examples([pages[chosen[0]].picture])}"
        )
        raise DataError("data-missing", f"{why}; put them into 'JPEGImages'")
    return BoxesFound(files, joined, classes, f"{folder.name}/{part}" if part else folder.name, "corners", left_out)


def _chosen(folder: Path, every: list[Path], wanted: Wanted) -> tuple[list[Path], str]:
    """The files that a list in `ImageSets/Main` names, and its name; all where there are no lists."""
    lists = folder / "ImageSets" / "Main"
    known = {path.stem: path for path in sorted(lists.glob("*.txt"))} if lists.is_dir() else {}
    names = [*split_names(wanted.split), *(["trainval"] if wanted.split == "train" else [])]
    part = next((name for name in names if name in known), None)
    if part is None:
        if known or wanted.asked:
            raise no_split(folder, wanted.split, [name for name in known if "_" not in name])
        return every, ""
    say_stand_in(folder.name, wanted.split, part)
    if part == "trainval":
        note(f"{folder.name}: there is no split 'train'; 'trainval' serves as it")
    lines = _bytes(known[part]).decode("utf-8", "replace").split("\n")
    stems = [line.split()[0] for line in lines if line.split()]
    there = {path.stem: path for path in every}
    missing = [stem for stem in stems if stem not in there]
    if missing or not stems:
        why = f"{known[part]} lists {len(stems):,} images, and {len(missing):,} have no XML file, {examples(missing)}"
        raise DataError("data-missing", f"{why}; repair the list, or get the files")
    return [there[stem] for stem in stems], part


def _in_parts(folder: Path, every: list[Path], wanted: Wanted) -> tuple[list[Path], str]:
    """The files beside the pictures, in the folder of the split or in this one."""
    own = split_folder(folder, wanted.split)
    if own is not None:
        say_stand_in(folder.name, wanted.split, own.name.casefold())
        return _xml_in(own), own.name
    if wanted.asked or not _xml_in(folder):
        raise no_split(folder, wanted.split, sorted({path.parent.name for path in every if path.parent != folder}))
    return every, ""


def _picture(home: Path, path: Path, page: _Page, folders: Folders) -> Path | None:
    """The picture of a file: the one called like it, or the one that it names."""
    return folders.find(home / path.stem) or (folders.find(home / page.picture) if page.picture else None)


# -- one file ------------------------------------------------------------------------------------------------------


class _Builder(ET.TreeBuilder):
    """Builds a small tree: without a document type, which may define entities, and neither deep nor large."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = self._count = 0

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which annotations do not need")

    def start(self, tag: Any, attrs: Any) -> Any:
        self._depth += 1
        self._count += 1
        if self._depth > DEPTH or self._count > MOST_ELEMENTS:
            raise ValueError(f"it is nested deeper than {DEPTH}, or has more than {MOST_ELEMENTS:,} elements")
        return super().start(tag, attrs)

    def end(self, tag: Any) -> Any:
        self._depth -= 1
        return super().end(tag)


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_XML + 1)
        if len(content) > MOST_XML:
            raise ValueError(f"it is larger than {MOST_XML >> 20} MiB")
        return content
    except (OSError, ValueError) as error:
        raise DataError("data-damaged-file", f"cannot read {path}: {first_line(error)}; get it again") from None


def _page(path: Path) -> _Page:
    """Read one file.

    Raises:
        DataError: It is no XML of this form.
    """
    content = _bytes(path)
    try:
        parser = ET.XMLParser(target=_Builder())
        parser.feed(content)
        root = parser.close()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DataError("data-damaged-file", f"cannot read {path} as XML: {first_line(error)}; repair it") from None
    found = _Page((root.findtext("filename") or "").strip(), _stated(root), [], [], [])
    for k, item in enumerate(root.findall("object")):
        name = (item.findtext("name") or "").strip()
        try:
            box = [float(item.findtext(f"bndbox/{side}") or "") for side in _SIDES]
            if not name:
                raise ValueError
        except ValueError:
            got = told({side: item.findtext(f"bndbox/{side}") for side in _SIDES} | {"name": name}, 100)
            why = f"{path}: object {k} must have a name and a bndbox of four numbers, got {got}"
            raise DataError("data-damaged-file", f"{why}; repair it, or leave it out") from None
        found.names.append(name)
        found.boxes.append(box)
        found.difficult.append((item.findtext("difficult") or "").strip() == "1")
    return found


def _stated(root: ET.Element) -> Sides | None:
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    if not all(text.isascii() and text.isdecimal() and 0 < len(text) < 9 for text in texts):
        return None
    height, width = map(int, texts)
    return (height, width) if height and width else None
