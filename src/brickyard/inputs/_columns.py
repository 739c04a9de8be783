"""Columns of pictures and labels in parquet and Arrow files, as the Hugging Face library writes them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._lazy import package
from brickyard.base._messages import first_line, told
from brickyard.inputs._lists import gathered
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

IMAGES = ("image", "img", "images", "jpg", "png", "signal", "signals", "cube", "cubes", "x", "data", "features")
LABELS = ("label", "fine_label", "labels", "class", "category", "target", "cls")
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")

Columns = list[str]
Batches = Callable[[Columns], Iterator[Any]]  # record batches of some columns


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
    pq = package("pyarrow.parquet", "parquet", str(files[0]))
    shard = _SHARD.fullmatch(files[0].name)
    if shard and int(shard["count"]) > 1 and len(files) == 1:
        note(f"{files[0].name} is one of {int(shard['count'])} shards; name its folder to read all of them")

    def source(file: Path) -> _Source:
        @contextmanager
        def opened() -> Iterator[tuple[Columns, Any, Batches]]:
            with pq.ParquetFile(file) as found:
                yield (
                    found.schema_arrow.names,
                    found.schema_arrow.metadata,
                    lambda columns: found.iter_batches(batch_size=256, columns=columns),
                )

        return _Source(file, "parquet", opened)

    name = f"{files[0].parent.name}/{shard['split'] if shard and len(files) > 1 else files[0].stem}"
    return _found([source(file) for file in files], name, wanted, None)


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
    pa = package("pyarrow", "parquet", str(files[0]))
    folder = files[0].parent

    def source(file: Path) -> _Source:
        @contextmanager
        def opened() -> Iterator[tuple[Columns, Any, Batches]]:
            with pa.memory_map(str(file)) as mapped:
                try:
                    stream = pa.ipc.open_stream(mapped)
                except pa.ArrowInvalid:
                    mapped.seek(0)
                    whole = pa.ipc.open_file(mapped)
                    yield (
                        whole.schema.names,
                        whole.schema.metadata,
                        lambda columns: _pieces((whole.get_batch(k) for k in range(whole.num_record_batches)), columns),
                    )
                else:
                    with stream:
                        yield stream.schema.names, stream.schema.metadata, lambda columns: _pieces(stream, columns)

        return _Source(file, "Arrow", opened)

    info = folder / "dataset_info.json"
    names = _json(info) if info.is_file() else {}
    return _found([source(file) for file in files], folder.name, wanted, names.get("features"))


def _pieces(batches: Any, columns: Columns) -> Iterator[Any]:
    for batch in batches:
        some = batch.select(columns)
        some.validate(full=True)  # offsets of a damaged file may lead anywhere
        yield from (some.slice(start, 256) for start in range(0, some.num_rows, 256))


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ValueError("it is too large")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("data-damaged-file", f"cannot read {path}: {first_line(error)}; get it again") from None
    return found if isinstance(found, dict) else {}


# -- the columns ---------------------------------------------------------------------------------------------------


class _Source:
    """One file with columns, opened anew for every pass over it."""

    def __init__(
        self, path: Path, kind: str, opened: Callable[[], AbstractContextManager[tuple[Columns, Any, Batches]]]
    ) -> None:
        self.path = path
        self.kind = kind
        self._opened = opened

    @contextmanager
    def open(self) -> Iterator[tuple[Columns, Any, Batches]]:
        """Column names, metadata and batches; whatever pyarrow raises, which differs by version, becomes one error."""
        try:
            with self._opened() as found:
                yield found
        except DataError:
            raise
        except Exception as error:
            why = f"cannot read {self.path} as {self.kind}: {first_line(error)}"
            raise DataError("data-damaged-file", f"{why}; get a fresh copy") from None

    def columns(self) -> tuple[str, str, list[str] | None]:
        """The names of the columns of images and of labels, and the class names where the file has them."""
        with self.open() as (columns, metadata, _):
            image = next((name for name in IMAGES if name in columns), None)
            label = next((name for name in LABELS if name in columns), None)
            if image is None or label is None:
                found = told(", ".join(columns), 300)
                why = f"{self.path} must have columns 'image' (or 'signal') and 'label', got {found}"
                raise DataError("data-unknown-format", why)
            return image, label, _names(_features(metadata), label)


def _found(sources: list[_Source], name: str, wanted: Wanted, features: Any) -> Found:
    """Read the labels of all files first; images are decoded when they are taken."""
    kinds = [source.columns() for source in sources]
    image, label, names = kinds[0]
    odd = next((k for k, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        why = f"{sources[odd].path} has other columns or class names than {sources[0].path.name}"
        raise DataError("data-damaged-file", f"{why}; get all shards of one set")
    values: list[Any] = []
    lengths = []
    for source in sources:
        with source.open() as (_, _, batches):
            start = len(values)
            for batch in batches([label]):
                values += batch.column(0).to_pylist()
            lengths.append(len(values) - start)
    place = f"{sources[0].path}: column {label!r}"
    labels, classes = labelled(values, place, names or _names(features, label))

    def take(chosen: Sequence[int]) -> Tensor:
        return gathered(_chosen(sources, lengths, image, chosen), wanted, str(sources[0].path))

    return Found(labels, classes, name, take)


def _chosen(sources: list[_Source], lengths: list[int], image: str, chosen: Sequence[int]) -> Iterator[tuple[Any, str]]:
    """The chosen pictures, in their order. A few hundred rows are unpacked at a time: a repetitive column is small."""
    if list(chosen) == sorted(chosen):
        yield from (picture for _, picture in _passing(sources, lengths, image, chosen))
        return
    found = dict(_passing(sources, lengths, image, chosen))
    yield from (found.pop(index) for index in chosen)


def _passing(
    sources: list[_Source], lengths: list[int], image: str, chosen: Sequence[int]
) -> Iterator[tuple[int, tuple[Any, str]]]:
    """The chosen pictures in the order of the files."""
    wanted, start = set(chosen), 0
    for source, length in zip(sources, lengths, strict=True):
        if wanted.isdisjoint(range(start, start + length)):
            start += length
            continue
        with source.open() as (_, _, batches):
            for batch in batches([image]):
                column = batch.column(0)
                for place in range(len(column)):
                    if start + place in wanted:
                        yield start + place, _content(column[place].as_py(), source.path, start + place)
                start += len(column)


def _content(value: Any, path: Path, index: int) -> tuple[Any, str]:
    found = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(found, list):
        return found, f"{path}, row {index}"
    if not isinstance(found, bytes):
        why = f"{path}: image {index} has no bytes"
        raise DataError("data-unreadable-image", f"{why}; embed the images in it, since paths are not followed")
    return io.BytesIO(found), f"{path}, image {index}"


def _features(metadata: dict[bytes, bytes] | None) -> Any:
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _names(features: Any, label: str) -> list[str] | None:
    try:
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError):
        return None
