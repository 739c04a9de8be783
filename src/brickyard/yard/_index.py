"""What a yard knows of its components: entries, read from files or from the index, which is checked by hand.

An index of ten thousand entries is read in a fraction of a second, without torch. It is only believed if everything in
it has the right form.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickyard.base._errors import FileError, reading_code

if TYPE_CHECKING:
    from brickyard.base._records import ComponentManifest, NetworkSpec


INDEX = "index.json"
INDEX_VERSION = 1
MAX_INDEX = 1 << 28
MAX_NUMBER = 1 << 62  # bytes, parameters, FLOPs
KIND = "brickyard yard"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
SHA256 = re.compile(r"[0-9a-f]{64}")
ARCHITECTURE = re.compile(r"[0-9a-f]{12}|")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
WIDTHS = ("out_features", "out_channels")  # arguments that say how many outputs a layer has

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
        accuracy: Share of images that it answers right, in [0, 1]: as measured, where the manifest has scores (those
            on the most images); else on training images, those that its statistics were made with. None where neither
            is there, and for a component of one class, which always answers right.
        input_shape: Of one image after preprocessing: channels, height, width.
        architecture: A short hash of the source's structure and input shape, class counts left out. Components with
            equal ones can be padded together. Empty where the file has no structure of the source.
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

    def as_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**asdict(self), "classes": list(self.classes), "input_shape": list(self.input_shape)}


@dataclass(frozen=True)
class Record:
    """An entry, and when its file was last changed, in nanoseconds."""

    entry: Entry
    changed: int


@dataclass
class Shelf:
    """Records of components by name, and of files that hold none: size and time of change, and why."""

    records: dict[str, Record] = field(default_factory=dict)
    others: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    def take(self, name: str, stamp: Stamp, other: Shelf) -> bool:
        """Take over what another shelf knows of a file, if the file has not changed; whether it did."""
        record = other.records.get(name)
        if record is not None and (record.entry.bytes, record.changed) == stamp:
            self.records[name] = record
            return True
        left_out = other.others.get(name)
        if left_out is not None and left_out[0] == stamp:
            self.others[name] = left_out
            return True
        return False


def is_name(name: object) -> bool:
    """Whether a component may have that name: a plain file name, without the ending."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None and not name.endswith(".safetensors")


# -- the index ---------------------------------------------------------------------------------------------


def written(shelf: Shelf) -> bytes:
    """The text of an index."""
    rows = [[*vars(e).values(), record.changed] for _, record in sorted(shelf.records.items()) for e in (record.entry,)]
    others = [[name, *stamp, why] for name, (stamp, why) in sorted(shelf.others.items())]
    value = {"kind": KIND, "format": INDEX_VERSION, "components": rows, "others": others}
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def read_index(path: Path) -> Shelf | None:
    """What an index says, or None where it cannot be read or anything in it is not as it should be."""
    try:
        place = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(place, "rb") as file:
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_INDEX:
                return None
            data = file.read(MAX_INDEX)
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        if SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a character is an error
        return _shelf(value)
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _shelf(value: Any) -> Shelf | None:
    if not isinstance(value, dict) or set(value) != {"kind", "format", "components", "others"}:
        return None
    version = value["format"]
    if value["kind"] != KIND or type(version) is not int or version != INDEX_VERSION:
        return None
    rows, others = value["components"], value["others"]
    if type(rows) is not list or type(others) is not list:
        return None
    shelf = Shelf()
    for row in rows:
        record = _record(row)
        if record is None or record.entry.name in shelf.records:
            return None
        shelf.records[record.entry.name] = record
    for row in others:
        if type(row) is not list or [type(item) for item in row] != [str, int, int, str] or not is_name(row[0]):
            return None
        shelf.others[row[0]] = (row[1], row[2]), row[3]
    return None if shelf.others.keys() & shelf.records.keys() else shelf


def _record(row: Any) -> Record | None:
    """One line of the index; None if anything in it is not as it should be."""
    if type(row) is not list or len(row) != 13:
        return None
    name, sha, size, classes, reject, source, source_sha, parameters, flops, accuracy, shape, architecture, changed = (
        row
    )
    for text in (name, sha, source, source_sha, architecture):
        if type(text) is not str:
            return None
    for number in (size, parameters, flops):
        if type(number) is not int or not 0 <= number <= MAX_NUMBER:
            return None
    if type(changed) is not int or type(reject) is not bool or not source:
        return None
    if not is_name(name) or not SHA256.fullmatch(sha) or not SHA256.fullmatch(source_sha):
        return None
    if not ARCHITECTURE.fullmatch(architecture):
        return None
    if type(classes) is not list or not classes or not all(type(item) is str and item for item in classes):
        return None
    if type(shape) is not list or not all(type(item) is int and item > 0 for item in shape):
        return None
    if accuracy is not None and (type(accuracy) not in (int, float) or not 0 <= accuracy <= 1):
        return None
    entry = Entry(
        name, sha, size, tuple(classes), reject, source, source_sha, parameters, flops, accuracy, tuple(shape),
        architecture,
    )  # fmt: skip
    return Record(entry, changed)


# -- files -------------------------------------------------------------------------------------------------


def read_entry(path: Path, name: str) -> Entry:
    """What a component's file says of it; the network is not built.

    Raises:
        FileError: The file cannot be read, or is not one of a component.
    """
    from brickyard.base._records import ComponentFile, validated
    from brickyard.storage._safefile import read

    sha256, size = sha256_of(path)
    text, _ = read(path)
    manifest = text.get("manifest")
    kind = manifest.get("kind", "component") if isinstance(manifest, dict) else text.get("kind", "nothing")
    if kind != "component":
        raise FileError("file-wrong-kind", f"{path} holds a file of kind {str(kind)[:40]!r}; a yard takes components")
    file = validated(ComponentFile, text, f"{path}: its text")
    found = file.manifest
    if max(found.selection.parameters, found.selection.flops) > MAX_NUMBER:
        raise FileError("file-too-large", f"{path} tells of more than {MAX_NUMBER:,} parameters or FLOPs; get it again")
    try:
        architecture = "" if file.skeleton is None else _architecture(file.skeleton, found)
    except (ValueError, RecursionError):
        raise FileError(
            "file-too-large", f"{path} has steps whose arguments are nested too deep; get it again"
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
        raise FileError(
            reading_code(error), f"{path} cannot be read: {error.strerror or error}; check the path"
        ) from None


def _accuracy(manifest: ComponentManifest) -> float | None:
    """Share of right answers: on the most images that were scored, else on training images."""
    if len(manifest.classes) == 1:
        return None
    measured: list[tuple[int, float]] = []
    for scores in (manifest.scores, *manifest.scores.values()):
        rows = scores.get("rows") if isinstance(scores, dict) else None
        for row in rows if isinstance(rows, list | tuple) else ():
            if isinstance(row, dict) and row.get("name") == "component":
                images, percent = row.get("images"), row.get("accuracy")
                if isinstance(images, int) and isinstance(percent, int | float) and images > 0 and 0 <= percent <= 100:
                    measured.append((images, percent / 100))
    if measured:
        return max(measured, key=lambda found: found[0])[1]
    if manifest.statistics is None:
        return None
    images, correct = sum(manifest.statistics.images), sum(manifest.statistics.correct)
    return correct / images if 0 <= correct <= images and images else None


def _architecture(skeleton: NetworkSpec, manifest: ComponentManifest) -> str:
    """A hash of what has to be equal for alignment padding: steps, layers, input shape; not the count of classes."""
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


def _references(value: Any) -> list[str]:
    """Names of the steps in a step's arguments."""
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(item.get("node"), str):
                found.append(item["node"])
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
    return found
