"""CSV and TSV files: of paths and labels, or of pixels."""

from __future__ import annotations

import codecs
import csv
import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from brickyard.base._errors import DataError
from brickyard.base._messages import first_line, path_title, told
from brickyard.inputs._listings import (
    LABELS,
    NAMES,
    PATHS,
    Listing,
    is_header,
    listed_files,
    located,
    plain,
    read_listing,
)
from brickyard.inputs._pictures import MAX_BYTES, Rows, too_large
from brickyard.inputs._reading import (
    MAX_TEXT,
    Found,
    Wanted,
    is_of,
    labelled,
    no_split,
    note,
    number_of,
    quietly,
)

FEWEST = 4  # pixels of the smallest picture that is told from a table of something else
_DELIMITERS = ",;\t|"

Row = list[str]


def read_table(path: Path, wanted: Wanted) -> Found:
    """Images and labels of a CSV or TSV file.

    Raises:
        DataError: It is neither a table of paths and labels nor one of pixels and labels, or pictures are missing.
    """
    with _rows(path) as (rows, head):
        if not head:
            raise DataError("data-no-images", f"{path} is empty; give one line per picture")
        if pixel_count(head):
            return _pixels(path, rows, head, wanted)
    return read_listing(_listing(path, wanted), wanted)


def table_files(path: Path, wanted: Wanted) -> list[Path]:
    """The table, and the pictures that it names."""
    with _rows(path) as (_, head):
        if not head or pixel_count(head):
            return [path]
    return [path, *listed_files(_listing(path, wanted), wanted)]


def names_pictures(path: Path, wanted: Wanted) -> bool:
    """Whether a table has columns of pictures and labels, and one of its first pictures is there."""
    try:
        with _rows(path) as (rows, head):
            place = next((k for word in PATHS for k, cell in enumerate(head) if plain(cell) == word), None)
            if place is None or not is_header(head, wanted.several):
                return pixel_count(head) > 0 and not is_header(head)
            first = [row[place] for row, _ in zip(rows, range(8), strict=False) if len(row) == len(head)]
    except DataError:
        return False
    with quietly():
        return any(located(path, [text for text in first if text.strip()], wanted.split))


def _is_there(path: Path, text: str, wanted: Wanted) -> bool:
    with quietly():
        return any(located(path, [text], wanted.split))


def pixel_count(head: Row) -> int:
    """How many pixels a row has, by the first row of a table; 0 where it is one of paths."""
    words = [plain(cell) for cell in head]
    if len(head) <= FEWEST or any(word in (*PATHS, *NAMES) for word in words):
        return 0
    numbers = all(number_of(cell) is not None for cell in head)
    named = sum(bool(re.fullmatch(r"(pixel|px|p|x|attribute|feature)?\d+(x\d+)?", word)) for word in words)
    return len(head) - 1 if numbers or named >= len(head) - 1 else 0


@contextmanager
def _rows(path: Path) -> Iterator[tuple[Iterator[Row], Row]]:
    """The rows of a table but for empty ones, and its first row, which is one of them unless it is a header.

    Raises:
        DataError: It cannot be read as a table.
    """
    try:
        with _text(path) as file:
            start = file.readline(1 << 20)
            file.seek(0)
            sign = "\t" if path.suffix.lower() == ".tsv" else max(_DELIMITERS, key=start.count)
            reader = csv.reader(file, delimiter=sign, skipinitialspace=True)
            kept = (row for row in reader if any(cell.strip() for cell in row))
            head = next(kept, [])
            yield kept, [cell.strip() for cell in head]
    except (OSError, UnicodeError, csv.Error) as error:
        why = f"cannot read {path} as a table: {first_line(error)}"
        raise DataError("data-damaged-file", f"{why}; save it as CSV in UTF-8") from None


def _text(path: Path) -> IO[str]:
    with path.open("rb") as file:
        start = file.read(2)
    coding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return path.open(encoding=coding, newline="")


def _listing(path: Path, wanted: Wanted) -> Listing:
    """The rows of a table of paths, with its names of columns; without a header, two columns are paths and labels."""
    if path.stat().st_size > MAX_TEXT:
        size = f"{path.stat().st_size / 1e6:,.0f} MB"
        raise DataError("data-too-large", f"{path} has {size}, and {MAX_TEXT / 1e6:,.0f} MB are the limit; divide it")
    with _rows(path) as (rows, head):
        columns = head
        table = list(rows)
    if not is_header(head, wanted.several):
        if len(head) != 2 or not _is_there(path, head[0], wanted):
            found = told(", ".join(head), 200)
            why = f"{path} must start with names of columns such as 'path,label', got {found}"
            raise DataError("data-unknown-format", f"{why}; or give two columns, a picture that exists and its label")
        columns, table = ["path", "label"], [head, *table]
    for index, row in enumerate(table):
        if len(row) != len(columns):
            why = f"{path}: row {index} has {len(row)} columns, and the first has {len(columns)}"
            raise DataError("data-damaged-file", f"{why}; put texts with commas in quotes")
    return Listing(path, columns, [[cell.strip() for cell in row] for row in table])


# -- pixels --------------------------------------------------------------------------------------------------------


def _pixels(path: Path, rows: Iterator[Row], head: Row, wanted: Wanted) -> Found:
    """A row a picture: its label and the grey values of a square, row by row."""
    if wanted.asked and not is_of(path, wanted.split):
        raise no_split(path, wanted.split, [])
    has_header = any(number_of(cell) is None for cell in head)
    place, side = _layout(path, head, has_header)
    content, others = _grey_values(path, rows, head, place, has_header)
    table = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, len(head) - (place is not None)))
    if place is None:
        last = _label_is_last(table)
        note(f"{path.name}: there are no names of columns; labels are those of the {'last' if last else 'first'} one")
        others = (table[:, -1] if last else table[:, 0]).tolist()
        table = table[:, :-1] if last else table[:, 1:]
    labels, classes = labelled(others, f"{path}: the column of labels")
    note(f"{path.name}: {len(table):,} grey pictures of {side} x {side} pixels")
    return Found(labels, classes, path_title(path), Rows(table.reshape(-1, 1, side, side)))


def _grey_values(path: Path, rows: Iterator[Row], head: Row, place: int | None, has_header: bool) -> Any:
    """The numbers of all rows as bytes, and the labels where their column is known; they are not among the numbers."""
    content, others = bytearray(), []
    for index, row in enumerate(itertools.chain([] if has_header else [head], rows)):
        if len(row) != len(head):
            why = f"{path}: row {index} has {len(row)} columns, and the first has {len(head)}"
            raise DataError("data-damaged-file", f"{why}; get a fresh copy")
        if place is not None:
            others.append(row.pop(place))
        try:
            content += bytes(map(int, row))
        except ValueError:
            content += bytes(_grey(cell, path, index) for cell in row)
        if len(content) > MAX_BYTES:
            raise too_large(str(path), len(content))
    return content, others


def _grey(cell: str, path: Path, index: int) -> int:
    value = number_of(cell)
    if value is None or not 0 <= value <= 255:
        why = f"{path}: row {index} must hold integers from 0 to 255, got {told(repr(cell), 40)}"
        raise DataError("data-type", f"{why}; save grey values as 8-bit numbers")
    return value


def _layout(path: Path, head: Row, has_header: bool) -> tuple[int | None, int]:
    """The column of labels, None where there is no header, and the side of a square."""
    place: int | None = None
    if has_header:
        places = [k for k, cell in enumerate(head) if plain(cell) in LABELS]
        if len(places) != 1:
            why = f"{path} must have one column 'label' beside {len(head)} of pixels, and has {len(places)}"
            raise DataError("data-no-labels", f"{why}; add the labels, or name their column so")
        place = places[0]
    count = len(head) - 1
    side = math.isqrt(count)
    if side * side == count:
        return place, side
    whole = math.isqrt(count + 1)
    if not has_header and whole * whole == count + 1:
        why = f"{path} has {count + 1} columns, as grey pictures of {whole} x {whole} have without labels"
        raise DataError("data-no-labels", f"{why}; add a first column of labels")
    why = f"{path} has {count} columns of pixels, which make no square grey picture"
    raise DataError("data-shape", f"{why}; save colour pictures as .npz, or as files with a table of paths")


def _label_is_last(table: Any) -> bool:
    """Whether the last column varies and the first does not, as the corners of pictures often do not."""
    return bool((table[:, 0] == table[0, 0]).all()) and not bool((table[:, -1] == table[0, -1]).all())
