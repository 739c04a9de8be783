"""Columns of pictures and labels in parquet and Arrow files, as the Hugging Face library writes them."""

from __future__ import annotations

import io
import itertools
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._lazy import package
from brickyard.base._limits import foreign_json
from brickyard.base._messages import first_line, path_title, told
from brickyard.inputs._lists import read_lists
from brickyard.inputs._pictures import PROBES, Encoded, Pictures, Reader, Rows
from brickyard.inputs._reading import (
    MAX_TEXT,
    SPLIT_NAMES,
    Found,
    Wanted,
    examples,
    labelled,
    no_split,
    note,
    say_stand_in,
    split_names,
)
from brickyard.inputs._several import rows_of_names

IMAGES = ("image", "img", "images", "jpg", "png", "signal", "signals", "cube", "cubes", "x", "data", "features")
LABELS = ("label", "fine_label", "labels", "class", "category", "target", "cls")
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")

_ROWS = 256  # that are unpacked at a time, at most
_UNPACKED = 1 << 27  # bytes that these take at most
_FETCHED = 256, 4_096  # pictures that one pass over the files finds, first and at most
_FETCHED_BYTES = 1 << 27


def shards(folder: Path, wanted: Wanted) -> list[Path]:
    """The parquet files of a split, in order: `train.parquet`, or shards in the folder or in `data` within it.

    Raises:
        DataError: The split has shards, and one is missing; or other splits have, and this one has none.
    """
    plain = folder / f"{wanted.split}.parquet"
    if plain.is_file():
        return [plain]
    known: set[str] = set()
    for place in (folder, folder / "data"):
        files = sorted(place.glob("*.parquet")) if place.is_dir() else []
        parts = [(match, file) for file in files if (match := _SHARD.fullmatch(file.name))]
        known |= {match["split"] for match, _ in parts} | {file.stem for file in files if file.stem in SPLIT_NAMES}
        for name in split_names(wanted.split):
            if found := [(match, file) for match, file in parts if match["split"] == name]:
                say_stand_in(folder.name, wanted.split, name)
                return _complete(found)
            if (place / f"{name}.parquet").is_file():
                say_stand_in(folder.name, wanted.split, name)
                return [place / f"{name}.parquet"]
    if known:
        raise no_split(folder, wanted.split, sorted(known))
    return []


def _complete(found: list[tuple[re.Match[str], Path]]) -> list[Path]:
    split, folder = found[0][0]["split"], found[0][1].parent
    counts = sorted({match["count"] for match, _ in found})
    if len(counts) > 1:
        why = f"{folder} holds shards of {split!r} from several sets, of {', '.join(counts)} shards"
        raise DataError("data-missing", f"{why}; get all shards of one set, and no others")
    there = {int(match["number"]) for match, _ in found}
    missing = [f"{split}-{k:05}-of-{counts[0]}.parquet" for k in range(int(counts[0])) if k not in there]
    if missing:
        why = f"{folder} holds {len(found)} of {int(counts[0])} shards of {split!r}, and lacks {examples(missing)}"
        raise DataError("data-missing", f"{why}; get all shards of the set")
    return [file for _, file in sorted(found, key=lambda pair: int(pair[0]["number"]))]


def read_parquet(files: Sequence[Path], wanted: Wanted) -> Found:
    """Images and labels of one parquet file, or of the shards of a split.

    Raises:
        DataError: A file is damaged, or has no columns of images and labels.
    """
    package("pyarrow.parquet", "parquet", str(files[0]))
    shard = _SHARD.fullmatch(files[0].name)
    if shard and int(shard["count"]) > 1 and len(files) == 1:
        note(f"{files[0].name} is one of {int(shard['count'])} shards; name its folder to read all of them")
    name = path_title(files[0].with_name(shard["split"] + ".parquet") if shard and len(files) > 1 else files[0])
    return _found([ParquetFile(file) for file in files], name, wanted, None)


# -- folders that `datasets` saved -------------------------------------------------------------------------------


def saved_folder(path: Path, wanted: Wanted) -> Path | None:
    """The folder of a split that `save_to_disk` wrote, or None if it did not write this folder.

    Raises:
        DataError: It holds other splits, or one split although another was asked for.
    """
    if (path / "state.json").is_file():
        split = _json(path / "state.json").get("_split")
        if wanted.asked and split not in split_names(wanted.split):
            raise no_split(path, wanted.split, [str(split)] if split else [])
        return path
    if not (path / "dataset_dict.json").is_file():
        return None
    there = _json(path / "dataset_dict.json").get("splits")
    known = [name for name in there if isinstance(name, str)] if isinstance(there, list) else []
    for name in split_names(wanted.split):
        if name in known and (path / name / "state.json").is_file():
            say_stand_in(path.name, wanted.split, name)
            return path / name
    raise no_split(path, wanted.split, known)


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved split, in order; they lie directly in the folder.

    Raises:
        DataError: One is missing, or the folder also holds an order of rows that is not read here.
    """
    state = _json(folder / "state.json")
    listed = state.get("_data_files")
    names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    plain = [name for name in names if isinstance(name, str) and Path(name).name == name and name.strip(".")]
    if not plain or len(plain) != len(names):
        why = f"{folder / 'state.json'} must name Arrow files beside it, got {examples(names) or 'none'}"
        raise DataError("data-damaged-file", f"{why}; save the data set again")
    if state.get("_indices_data_files"):
        why = f"{folder} holds its rows in an order that lies in a file of its own"
        raise DataError("data-unknown-format", f"{why}; call flatten_indices() on the data set, and save it again")
    missing = [name for name in plain if not (folder / name).is_file()]
    if missing:
        why = f"{len(missing)} of {len(plain)} files of {folder} are missing, such as {examples(missing)}"
        raise DataError("data-missing", f"{why}; copy the whole folder")
    return [folder / name for name in plain]


def read_saved(files: Sequence[Path], wanted: Wanted) -> Found:
    """Images and labels of a split that `save_to_disk` of the Hugging Face library wrote.

    Raises:
        DataError: A file is damaged, or has no columns of images and labels.
    """
    package("pyarrow", "parquet", str(files[0]))
    return _found([ArrowFile(file) for file in files], files[0].parent.name, wanted, features_beside(files[0]))


def features_beside(file: Path) -> Any:
    """What the folder of a saved split says of its columns, or None."""
    info = file.with_name("dataset_info.json")
    return _json(info).get("features") if info.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ValueError("it is too large")
        found = foreign_json(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("data-damaged-file", f"cannot read {path}: {first_line(error)}; get it again") from None
    return found if isinstance(found, dict) else {}


# -- the columns ---------------------------------------------------------------------------------------------------


def image_and_label(columns: Sequence[str], place: str) -> tuple[str, str]:
    """The names of the columns of images and of labels.

    Raises:
        DataError: One is missing.
    """
    image = next((name for name in IMAGES if name in columns), None)
    label = next((name for name in LABELS if name in columns), None)
    if image is None or label is None:
        why = f"{place} must have columns 'image' (or 'signal') and 'label', got {told(', '.join(columns), 300)}"
        raise DataError("data-unknown-format", why)
    return image, label


def labels_in(
    values: Sequence[Any], what: str, names: Sequence[str] | None, wanted: Wanted
) -> tuple[Tensor, Sequence[str]]:
    """Labels and class names of a column: one class an image, or rows of 0 and 1 where it may have several.

    Raises:
        DataError: The values are no labels of that kind.
    """
    if not wanted.several:
        return labelled(values, what, names)
    rows = rows_of_names(values, what, names)
    return rows.labels, rows.classes


@dataclass(frozen=True)
class _Open:
    """A file with columns that is open.

    Attributes:
        columns: Their names.
        metadata: What the file says of them.
        batches: Some columns, a few hundred rows at a time, with the number of the first row. A repetitive column is
            small until it is unpacked, so no more are. Parts of the file that hold no wanted row are passed over.
    """

    columns: list[str]
    metadata: dict[bytes, bytes] | None
    batches: Callable[[list[str], Callable[[range], bool]], Iterator[tuple[int, Any]]]


class ColumnFile:
    """A file with columns, opened anew for every pass over it."""

    kind = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None

    def _opened(self) -> AbstractContextManager[_Open]:
        raise NotImplementedError

    @contextmanager
    def open(self) -> Iterator[_Open]:
        """Open it; whatever pyarrow raises, which differs by version, becomes one error."""
        try:
            self._check_same()
            with self._opened() as found:
                yield found
        except DataError:
            raise
        except Exception as error:
            why = f"cannot read {self.path} as {self.kind}: {first_line(error)}"
            raise DataError("data-damaged-file", f"{why}; get a fresh copy") from None

    def _check_same(self) -> None:
        """Refuse a file that was written anew since its labels were read: its pictures may be others.

        Raises:
            DataError: Its size or its time differs from when it was first opened.
        """
        found = self.path.stat()
        stamp = found.st_size, found.st_mtime_ns
        self._stamp = self._stamp or stamp
        if stamp != self._stamp:
            why = f"{self.path} changed since its labels were read, and its pictures may be others"
            raise DataError("data-damaged-file", f"{why}; load the data again")

    def columns(self) -> tuple[str, str, list[str] | None]:
        """The names of the columns of images and of labels, and the class names where the file has them."""
        with self.open() as found:
            image, label = image_and_label(found.columns, str(self.path))
            return image, label, _names(features_of(found.metadata), label)


class ParquetFile(ColumnFile):
    kind = "parquet"

    @contextmanager
    def _opened(self) -> Iterator[_Open]:
        with package("pyarrow.parquet", "parquet", str(self.path)).ParquetFile(self.path) as file:

            def batches(columns: list[str], wanted: Callable[[range], bool]) -> Iterator[tuple[int, Any]]:
                start = 0
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    if wanted(range(start, stop)):
                        some = _rows_at_once(file.metadata.row_group(group), columns)
                        for batch in file.iter_batches(batch_size=some, row_groups=[group], columns=columns):
                            yield start, batch
                            start += len(batch)
                        if start != stop:
                            raise ValueError(f"its group of rows {group} ends at row {start:,}, and not at {stop:,}")
                    start = stop

            yield _Open(file.schema_arrow.names, file.schema_arrow.metadata, batches)


def _rows_at_once(group: Any, columns: list[str]) -> int:
    """How many rows to unpack together: each may be a repeated value that is as large as its whole column."""
    every = (group.column(k) for k in range(group.num_columns))
    mine = [column for column in every if column.path_in_schema.partition(".")[0] in columns]
    size = sum(column.total_uncompressed_size for column in mine if any("DICT" in kind for kind in column.encodings))
    return max(1, min(_ROWS, _UNPACKED // max(1, int(size))))


class ArrowFile(ColumnFile):
    kind = "Arrow"

    @contextmanager
    def _opened(self) -> Iterator[_Open]:
        pa = package("pyarrow", "parquet", str(self.path))
        with pa.memory_map(str(self.path)) as mapped:
            try:
                stream = pa.ipc.open_stream(mapped)
            except pa.ArrowInvalid:
                mapped.seek(0)
                whole = pa.ipc.open_file(mapped)
                every = (whole.get_batch(k) for k in range(whole.num_record_batches))
                yield _Open(whole.schema.names, whole.schema.metadata, partial(_pieces, every))
            else:
                with stream:
                    yield _Open(stream.schema.names, stream.schema.metadata, partial(_pieces, stream))


def _pieces(batches: Iterable[Any], columns: list[str], wanted: Callable[[range], bool]) -> Iterator[tuple[int, Any]]:
    start = 0
    for batch in batches:
        if wanted(range(start, start + batch.num_rows)):
            some = batch.select(columns)
            some.validate(full=True)  # offsets of a damaged file may lead anywhere
            yield from ((start + at, some.slice(at, _ROWS)) for at in range(0, some.num_rows, _ROWS))
        start += batch.num_rows


def _found(files: list[ColumnFile], name: str, wanted: Wanted, features: Any) -> Found:
    """Read the labels of all files; pictures stay where they are."""
    kinds = [file.columns() for file in files]
    image, label, names = kinds[0]
    odd = next((k for k, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        why = f"{files[odd].path} has other columns or class names than {files[0].path.name}"
        raise DataError("data-damaged-file", f"{why}; get all shards of one set")
    values: list[Any] = []
    lengths = []
    for file in files:
        with file.open() as found:
            start = len(values)
            for _, batch in found.batches([label], lambda rows: True):
                values += batch.column(0).to_pylist()
            lengths.append(len(values) - start)
    place = f"{files[0].path}: column {label!r}"
    labels, classes = labels_in(values, place, names or _names(features, label), wanted)
    column = Column(files, lengths, image)
    if len(column) and any(isinstance(value, list) for value, _ in column.fetch([0])):
        return Found(
            labels, classes, name, Rows(read_lists(column.fetch(range(len(column))), wanted, str(files[0].path)))
        )
    return Found(labels, classes, name, Pictures(Reader(column, wanted.size, str(files[0].path))))


class Column:
    """The pictures in a column of several files.

    Args:
        files: The files.
        lengths: How many rows each has.
        name: The column.
        strict: Whether a row without an encoded picture is an error; else it counts as a picture that is damaged.
    """

    def __init__(self, files: Sequence[ColumnFile], lengths: Sequence[int], name: str, strict: bool = True) -> None:
        self.files = files
        self.name = name
        self.strict = strict
        self.starts = list(itertools.accumulate(lengths, initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def probes(self, among: Sequence[int]) -> Sequence[int]:
        """The first ones, since only a pass over the file finds others."""
        return sorted(among)[:PROBES]

    def fetch(self, indices: Sequence[int]) -> Iterator[Encoded]:
        """The encoded pictures, in their order: one pass over the files for many of them, however they are mixed."""
        start, (count, most) = 0, _FETCHED
        while some := indices[start : start + count]:
            found = dict(self._passing(sorted(some)))
            size = sum(item.getbuffer().nbytes for item, _ in found.values() if isinstance(item, io.BytesIO))
            yield from (found.pop(index) for index in some)
            start += count
            count = max(1, min(most, _FETCHED_BYTES * len(some) // max(1, size)))

    def _passing(self, indices: Sequence[int]) -> Iterator[tuple[int, Encoded]]:
        """Pictures in the order of the files."""
        for file, first, stop in zip(self.files, self.starts, self.starts[1:], strict=False):
            mine = indices[bisect_left(indices, first) : bisect_left(indices, stop)]
            if mine:
                yield from _pictures_of(file, self.name, [index - first for index in mine], first, self.strict)


def _pictures_of(
    file: ColumnFile, column: str, rows: Sequence[int], first: int, strict: bool
) -> Iterator[tuple[int, Encoded]]:
    """The pictures in some rows of a file, whose first row is number `first` of all."""

    def wanted(some: range) -> bool:
        return bisect_left(rows, some.start) < bisect_left(rows, some.stop)

    with file.open() as found:
        for start, batch in found.batches([column], wanted):
            values = batch.column(0)
            for row in rows[bisect_left(rows, start) : bisect_left(rows, start + len(values))]:
                yield first + row, _content(values[row - start].as_py(), file.path, first + row, strict)


def _content(value: Any, path: Path, index: int, strict: bool) -> Encoded:
    found = value.get("bytes") if isinstance(value, dict) else value
    if not strict:
        return io.BytesIO(found if isinstance(found, bytes) else b""), f"{path}, image {index}"
    if isinstance(found, list):
        return found, f"{path}, row {index}"
    if value is None or (isinstance(value, dict) and not any(value.values())):
        raise DataError("data-unreadable-image", f"{path}: row {index} has no image; leave it out")
    if not isinstance(found, bytes):
        why = f"{path}: image {index} has no bytes"
        raise DataError("data-unreadable-image", f"{why}; embed the images in it, since paths are not followed")
    return io.BytesIO(found), f"{path}, image {index}"


def features_of(metadata: dict[bytes, bytes] | None) -> Any:
    """What a file that the Hugging Face library wrote says of its columns, or None."""
    try:
        return foreign_json((metadata or {})[b"huggingface"].decode())["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _names(features: Any, label: str) -> list[str] | None:
    try:
        column = features[label]
        column = column[0] if isinstance(column, list) else column.get("feature", column)
        return [str(name) for name in column["names"]]
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
