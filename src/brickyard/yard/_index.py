"""What a yard knows of its components: entries, read from their files, or from an index of these in SQLite.

SQLite commits changes whole or not at all, undoes one whose process was killed, and lets others read meanwhile. Kept by
hand is what it does not give:

- Turns of processes that write (`Yard._lock`): a turn is a file and its row together, and lasts while the index is made
  again. A wait for SQLite's own lock cannot be interrupted.
- Distrust. The index is a cache that anyone may have written: a database is opened only if neither it nor its journal
  could lead SQLite to another file; it must have our table and nothing else; and every value is checked. Where
  anything is not as it should be, the index is made again from the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickyard.base._errors import BrickyardError, FileError, reading_code
from brickyard.base._limits import foreign_json

if TYPE_CHECKING:
    from brickyard.base._records import ComponentManifest
from brickyard.base._specs import NetworkSpec

INDEX, JOURNAL, LOGS = "index.sqlite", "index.sqlite-journal", ("-wal", "-shm")
STAGE = ".adding"  # a folder for files that are prepared; cleared by who writes next
OLD_INDEX = "index.json"  # of earlier versions; it is taken over
MAX_INDEX = 1 << 28
MAX_TEXT = 1 << 26  # of one value
MAX_NUMBER = 1 << 62  # bytes, parameters, FLOPs
BUSY = 30  # seconds that a process may take to commit or read
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
SHA256 = re.compile(r"[0-9a-f]{64}")
ARCHITECTURE = re.compile(r"[0-9a-f]{12}|")
WIDTHS = ("out_features", "out_channels")  # arguments that say how many outputs a layer has
OTHER_FILES = bytes.fromhex("d9d505f920a163d7")  # ends a journal that names another file, which SQLite would delete
SCHEMA = (
    "CREATE TABLE files (name TEXT PRIMARY KEY, sha256 TEXT, bytes INTEGER, classes TEXT, reject INTEGER, source TEXT, "
    "source_sha256 TEXT, parameters INTEGER, flops INTEGER, accuracy REAL, input_shape TEXT, architecture TEXT, "
    "agreement REAL, changed INTEGER, verdict TEXT) WITHOUT ROWID"
)

Stamp = tuple[int, int]  # a file's size and time of change, in bytes and nanoseconds


@dataclass(frozen=True)
class Entry:
    """One component in a yard; everything comes from its file and the manifest in it.

    Attributes:
        name: Its name, unique in the yard; the file is NAME.safetensors.
        sha256: Of the file.
        bytes: Size of the file.
        classes: Names of its classes.
        reject: Whether a last output stands for the source's other classes.
        source: Name of the source that it was cut from.
        source_sha256: Of the source's weights.
        parameters: Numbers in all parameters.
        flops: Floating-point operations for one image, two a multiply-add.
        accuracy: Share of images that it answers right, in [0, 1], as the scores of its manifest say (those on the most
            images). None where nothing was measured, and for a component of one class, which always answers right.
        input_shape: Of one image after preprocessing: channels, height, width.
        architecture: A short hash of the source's structure and input shape, class counts left out. Components with
            equal ones can be padded together. Empty where the file has no structure of the source.
        agreement: Share of images that nothing was fitted to on which it answers as its source, in [0, 1], or None.
    """

    name: str
    sha256: str
    bytes: int
    classes: tuple[str, ...]
    reject: bool
    source: str
    source_sha256: str
    parameters: int
    flops: int
    accuracy: float | None
    input_shape: tuple[int, ...]
    architecture: str
    agreement: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**asdict(self), "classes": list(self.classes), "input_shape": list(self.input_shape)}


Known = dict[str, tuple[Stamp, Entry | str]]  # by name: the file's stamp, and its entry, or why it has none
Read = tuple[tuple[int, ...], Known]  # what differs between two states of an index, and what it says


def is_name(name: object) -> bool:
    """Whether a component may have that name: a plain file name, without the ending."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None and not name.endswith(".safetensors")


def stamp_of(status: os.stat_result) -> Stamp:
    """Size and time of change, as SQLite's numbers of 64 bits."""
    return status.st_size, status.st_mtime_ns % (1 << 63)


# -- the index ---------------------------------------------------------------------------------------------


def read_index(path: Path, last: Read | None = None) -> Read | None:
    """What an index says, or `last` where nothing was written since; None where anything is not as it should be."""
    try:
        size = path.lstat().st_size
        with contextlib.closing(_opened(path)) as base:
            base.execute("PRAGMA query_only = ON")
            if base.execute("SELECT type, name, sql FROM sqlite_master").fetchmany(2) != [("table", "files", SCHEMA)]:
                return None
            base.execute("BEGIN")
            state = _state(path, base.execute("PRAGMA user_version").fetchone()[0])
            if last is not None and last[0] == state:
                return last
            return state, _checked(base.execute("SELECT * FROM files"), size)
    except (sqlite3.Error, OSError, ValueError, TypeError, RecursionError):
        return None


def write_index(path: Path, known: Known, before: Known | None) -> Read:
    """Write what differs from what the index said before, or make it anew; the yard's lock must be held.

    Returns:
        What `read_index` would read.

    Raises:
        sqlite3.Error, OSError: It cannot be written.
    """
    if before is not None:
        with contextlib.suppress(sqlite3.Error, ValueError):  # what cannot be changed is made anew
            return _state(path, _commit(path, known, before)), known
    fresh = path.with_name(STAGE) / INDEX
    fresh.parent.mkdir(exist_ok=True)
    fresh.unlink(missing_ok=True)
    fresh.touch(0o666)  # SQLite would not let a group write, whatever the umask says
    written = _commit(fresh, known, None)
    for end in ("-journal", *LOGS):
        Path(f"{path}{end}").unlink(missing_ok=True)
    os.replace(fresh, path)
    return _state(path, written), known


def _commit(path: Path, known: Known, before: Known | None) -> int:
    """Write what differs into a database, which is empty where nothing was before; the number of the commit."""
    written = int.from_bytes(os.urandom(4)) >> 1
    old = before or {}
    rows = [_row(name, *found) for name, found in known.items() if old.get(name) != found]
    with contextlib.closing(_opened(path)) as base:
        base.execute("BEGIN IMMEDIATE")
        with base:
            if before is None:
                base.execute(SCHEMA)
            base.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in old.keys() - known.keys()])
            base.executemany(f"REPLACE INTO files VALUES ({', '.join('?' * 15)})", rows)
            base.execute(f"PRAGMA user_version = {written}")
    return written


def _state(path: Path, written: int) -> tuple[int, ...]:
    """What differs between two states of an index; `written` is drawn anew by every commit of ours."""
    status = path.lstat()
    return status.st_ino, *stamp_of(status), written


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to an index that is there.

    Raises:
        OSError: It cannot be read.
        ValueError: It, its journal or its name is not what SQLite may be let at.
    """
    _check_plain(path)
    if any(os.path.lexists(f"{path}{end}") for end in LOGS):
        raise ValueError("no index of ours has these")
    with contextlib.suppress(FileNotFoundError):  # it comes and goes with a commit
        _check_plain(path.with_name(JOURNAL))
        with path.with_name(JOURNAL).open("rb") as journal:
            journal.seek(max(0, os.fstat(journal.fileno()).st_size - len(OTHER_FILES)))
            if journal.read() == OTHER_FILES:
                raise ValueError("the journal names another file")
    base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", BUSY, isolation_level=None, uri=True)
    base.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT)
    base.execute("PRAGMA trusted_schema = OFF")
    return base


def _check_plain(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_INDEX:
        raise ValueError("not a regular file, or too large")


def _row(name: str, stamp: Stamp, found: Entry | str) -> tuple[Any, ...]:
    """A row of the index; see `SCHEMA`."""
    if isinstance(found, str):
        return (name, None, stamp[0], *[None] * 10, stamp[1], found)
    texts = {"classes": json.dumps(found.classes), "input_shape": json.dumps(found.input_shape)}
    return (*{**vars(found), **texts}.values(), stamp[1], None)


def _checked(rows: Iterable[tuple[Any, ...]], size: int) -> Known:
    """What the rows of an index of that size say.

    Raises:
        ValueError: A row is not as it should be, or there is more of them than the file has room for.
    """
    known: Known = {}
    for *values, changed, why in rows:
        name, number = values[0], values[2]
        size -= len(values[3]) + len(values[5]) + len(values[10]) if why is None else len(why)
        if size < 0 or name in known or type(number) is not int or type(changed) is not int:
            raise ValueError("no row of an index, or pages of it are read twice")
        if why is None:
            values[3], values[10] = foreign_json(values[3]), foreign_json(values[10])
            values[4] = {0: False, 1: True}.get(values[4])
            known[name] = (number, changed), _entry(values)
        elif is_name(name) and type(why) is str and {values[1], *values[3:]} == {None}:
            known[name] = (number, changed), why
        else:
            raise ValueError("no row of an index")
    return known


def _entry(values: list[Any]) -> Entry:
    """An entry of its values; TypeError or ValueError where one is not as it should be."""
    *values, agreement = values
    name, sha, size, classes, reject, source, source_sha, parameters, flops, accuracy, shape, architecture = values
    if not (
        is_name(name)
        and all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (size, parameters, flops))
        and (type(reject), type(classes), type(shape)) == (bool, list, list)
        and SHA256.fullmatch(sha)
        and SHA256.fullmatch(source_sha)
        and ARCHITECTURE.fullmatch(architecture)
        and source
        and classes
        and all(classes)
        and all(type(side) is int and side > 0 for side in shape)
        and all(share is None or (type(share) in (int, float) and 0 <= share <= 1) for share in (accuracy, agreement))
    ):
        raise ValueError("no entry")
    "".join((source, *classes)).encode("utf-8")  # what is no text, or half a character, is an error
    sizes = parameters, flops, accuracy
    more = tuple(shape), architecture, agreement
    return Entry(name, sha, size, tuple(classes), reject, source, source_sha, *sizes, *more)


def read_old_index(path: Path) -> Known:
    """What the index of an earlier version says of components; nothing where it is not believed.

    Their accuracy may be one on training images: files of which it knows one are read again.
    """
    try:
        _check_plain(path)
        value = foreign_json(path.read_text(encoding="utf-8"))
        if (value["kind"], value["format"]) != ("brickyard yard", 1):
            return {}
        return {row[0]: ((row[2], row[12]), _entry([*row[:12], None])) for row in value["components"] if row[9] is None}
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        return {}


# -- files -------------------------------------------------------------------------------------------------


def read_entry(path: Path, name: str) -> Entry:
    """What a component's file says of it; the network is not built.

    Raises:
        FileError: The file cannot be read, or is not one of a component.
    """
    from brickyard.base._frozen import validated
    from brickyard.base._records import ComponentFile
    from brickyard.storage._safefile import read

    sha256, size = sha256_of(path)
    text, _ = read(path)
    manifest = text.get("manifest")
    kind = manifest.get("kind", "component") if isinstance(manifest, dict) else text.get("kind", "nothing")
    if kind != "component":
        raise FileError(
            "file-wrong-kind", f"{path} holds a file of kind {str(kind)[:40]!r}; a yard takes components only"
        )
    file = validated(ComponentFile, text, f"{path}: its text")
    found = file.manifest
    if max(found.selection.parameters, found.selection.flops) > MAX_NUMBER:
        raise FileError(
            "file-too-large", f"{path} claims more than {MAX_NUMBER:,} parameters or FLOPs; get a fresh copy"
        )
    try:
        architecture = "" if file.skeleton is None else _architecture(file.skeleton, found)
    except (ValueError, RecursionError):
        raise FileError(
            "file-too-large", f"{path} has steps whose arguments are nested too deeply; get a fresh copy"
        ) from None
    return Entry(
        name=name,
        sha256=sha256,
        bytes=size,
        classes=found.classes,
        reject=found.reject,
        source=found.source.name,
        source_sha256=found.source.sha256,
        parameters=found.selection.parameters,
        flops=found.selection.flops,
        accuracy=_accuracy(found),
        input_shape=found.input_shape,
        architecture=architecture,
        agreement=_agreement(found),
    )


def sha256_of(path: Path) -> tuple[str, int]:
    """The sha256 of a file's content, and how many bytes it has.

    Raises:
        FileError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise FileError(reading_code(error), f"cannot read {path}: {error.strerror or error}; check the path") from None


def _accuracy(manifest: ComponentManifest) -> float | None:
    """Share of right answers, on the most images that were scored."""
    if len(manifest.classes) == 1:
        return None
    measured: list[tuple[int, float]] = []
    for scores in (manifest.scores, *manifest.scores.values()):
        rows = scores.get("rows") if isinstance(scores, dict) and not _flattered(scores) else None
        for row in rows if isinstance(rows, list | tuple) else ():
            if isinstance(row, dict) and row.get("name") == "component":
                images, percent = row.get("images"), row.get("accuracy")
                if isinstance(images, int) and isinstance(percent, int | float) and images > 0 and 0 <= percent <= 100:
                    measured.append((images, percent / 100))
    return max(measured, key=lambda found: found[0])[1] if measured else None


def _flattered(scores: dict[str, Any]) -> bool:
    """Whether images that the component was made with were scored too."""
    overlap = scores.get("overlap")
    return isinstance(overlap, dict) and overlap.get("used") != overlap.get("left_out")


def _agreement(manifest: ComponentManifest) -> float | None:
    """Share of the images held back on which it answers as its source."""
    same, count = manifest.agreement or (0, 0)
    return min(same, count) / count if count else None


def _architecture(skeleton: NetworkSpec, manifest: ComponentManifest) -> str:
    """A hash of what has to be equal for alignment padding: steps, layers, input shape; not the count of classes."""
    if any(name.endswith(".factor1") for name in skeleton.layers):
        from brickyard.network._network import Network
        from brickyard.surgery._pairs import without_pairs

        with contextlib.suppress(BrickyardError):  # a structure that is none stays as it is
            skeleton = without_pairs(Network.from_spec(skeleton)).to_spec()
    value = skeleton.model_dump(mode="json")
    for name in _last_layers(skeleton):
        config = value["layers"][name]["config"]
        for key in WIDTHS:
            if config.get(key) == len(manifest.source.classes):
                config[key] = "classes"
    text = json.dumps([value, manifest.input_shape], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _last_layers(skeleton: NetworkSpec) -> set[str]:
    """The layers with outputs of their own that the network's output is made of, without others in between."""
    steps = {node.name: node for node in skeleton.nodes}
    found: set[str] = set()
    seen: set[str] = set()
    open_steps = [node.name for node in skeleton.nodes if node.op == "output"]
    while open_steps:
        node = steps.get(open_steps.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        layer = skeleton.layers.get(node.target) if node.op == "layer" else None
        if layer is not None and any(key in layer.config for key in WIDTHS):
            found.add(node.target)
        else:
            open_steps += _references([node.args, node.kwargs])
    return found


def _references(value: Any) -> Iterator[str]:
    """Names of the steps in a step's arguments."""
    if isinstance(value, dict):
        if isinstance(value.get("node"), str):
            yield value["node"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
