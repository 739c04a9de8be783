"""What several commands share: options, reading sources and data, printing results."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from brickyard.errors import DataError, FileError, OptionError, shown
from brickyard.options import writable
from brickyard.progress import speaks
from brickyard.stopping import no_reader, seen, tell

if TYPE_CHECKING:
    from brickyard.datasets import ImageData
    from brickyard.manifest import ComponentManifest, Preprocessing
    from brickyard.sources import Source

__all__ = [
    "Alpha",
    "Augment",
    "BatchSize",
    "Beta",
    "Choose",
    "Classes",
    "Data",
    "Device",
    "Epochs",
    "Force",
    "GivenAlpha",
    "GivenBeta",
    "GivenChoose",
    "GivenLinearAlpha",
    "GivenLinearBeta",
    "GivenPerClass",
    "Json",
    "LinearAlpha",
    "LinearBeta",
    "Mean",
    "Names",
    "Output",
    "PerClass",
    "Rate",
    "Seed",
    "Size",
    "SourceSpec",
    "Std",
    "Task",
    "Weights",
    "check_free",
    "data_of",
    "emit",
    "fitted",
    "keep",
    "labelled_images",
    "loaded",
    "named_after",
    "numbers",
    "only_for_locating",
    "preprocessing_of",
    "say",
    "source_of",
]

SOURCE_HELP = "zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:function, or a source file (.safetensors)."
DATA_HELP = "digits, an image folder, a .parquet file or folder, or idx files; may end in ?split=test&classes=0-2."

SourceSpec = Annotated[str, typer.Argument(help=SOURCE_HELP, show_default=False)]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Weights: .safetensors, or .pt/.pth/.bin.", show_default=False),
]
Data = Annotated[str, typer.Option("--data", help=DATA_HELP, show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")]
Task = Annotated[
    list[str],
    typer.Option("--task", help='Classes by name or index: "cat,dog" or "0-2,7"; may be repeated.', show_default=False),
]
Classes = Annotated[list[str] | None, typer.Option("--classes", help="Only these classes.", show_default=False)]
Names = Annotated[
    str | None,
    typer.Option("--class-names", help="Names of the source's classes, by commas.", show_default=False),
]
Mean = Annotated[str | None, typer.Option("--mean", help="Mean a channel, by commas, in [0, 1].", show_default=False)]
Std = Annotated[str | None, typer.Option("--std", help="Standard deviation a channel.", show_default=False)]
Size = Annotated[
    str | None,
    typer.Option("--size", help='Image size: 32, 32x48, or "pad:32" to pad smaller images.', show_default=False),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random choices.", min=-(2**63), max=2**63 - 1)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]

Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the data.", min=1)]
Rate = Annotated[float, typer.Option("--lr", help="Highest learning rate.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Images a step.", min=2)]
Augment = Annotated[bool, typer.Option(help="Shift and mirror the images.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu, or cuda where there is a GPU.")]

Choose = Annotated[str, typer.Option("--choose", help="Images to locate with: confident, random or all.")]
PerClass = Annotated[int, typer.Option("--per-class", help="Images a class to locate with.", min=1)]
Alpha = Annotated[float, typer.Option("--alpha", help="Threshold of contributions, convolutions.")]
Beta = Annotated[float, typer.Option("--beta", help="Threshold of relevance, convolutions.")]
LinearAlpha = Annotated[float, typer.Option("--linear-alpha", help="Threshold of contributions, linear layers.")]
LinearBeta = Annotated[float, typer.Option("--linear-beta", help="Threshold of relevance, linear layers.")]

# `disassemble` has to know which of them were given: relevances from a file bring their own.
GivenAlpha = Annotated[
    float | None, typer.Option("--alpha", help="As for `locate`; default: the relevances', or 0.3.", show_default=False)
]
GivenBeta = Annotated[float | None, typer.Option("--beta", help="The same, or 0.2.", show_default=False)]
GivenLinearAlpha = Annotated[float | None, typer.Option("--linear-alpha", help="The same, or 0.4.", show_default=False)]
GivenLinearBeta = Annotated[float | None, typer.Option("--linear-beta", help="The same, or 0.3.", show_default=False)]
GivenChoose = Annotated[
    str | None,
    typer.Option("--choose", help="Images to locate with: confident (default), random or all.", show_default=False),
]
GivenPerClass = Annotated[
    int | None,
    typer.Option("--per-class", help="Images a class to locate with; default 50.", min=1, show_default=False),
]


def say(text: object) -> None:
    """Print to standard error: standard output is for results. A terminal obeys nothing that is in the text."""
    if speaks():
        put(text, sys.stderr)


def emit(value: dict[str, Any], as_json: bool, text: object) -> None:
    """Print a result: JSON, or text.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        FileError: Standard output takes nothing.
    """
    if not speaks():
        return
    if sys.stdout is None:
        raise FileError("the result cannot be printed: standard output is closed; open it, or send it to /dev/null")
    line = _json(value) if as_json else str(text)
    if as_json and not fits(line, sys.stdout):
        line = json.dumps(value, allow_nan=False)
    try:
        put(line, sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):  # what it still holds would be tried again at the end
            no_reader()
        raise FileError(
            f"the result cannot be printed: {error.strerror or error}; free some space or send it elsewhere"
        ) from None


def _json(value: dict[str, Any]) -> str:
    """JSON in which characters that are not printable are escaped; letters of any script are not."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def fits(text: str, stream: TextIO) -> bool:
    """Whether a stream can write these signs."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def put(text: object, stream: TextIO | None) -> None:
    """Print a line; signs that the stream cannot write, or that a terminal would obey, become escapes."""
    line = shown(str(text))
    if stream is not None and not fits(line, stream):
        coding = stream.encoding or "utf-8"
        line = line.encode(coding, "backslashreplace").decode(coding)
    print(line, file=stream, flush=True)


def keep(found: Any, path: Path, force: bool) -> None:
    """Save a result, once where several processes have it."""
    if speaks():
        found.save(path, overwrite=force)


def check_free(path: Path, force: bool, *inputs: str | Path | None) -> None:
    """Refuse an output that exists, or that is an input, before any work is done.

    Raises:
        FileError: It is a folder, or exists and `force` is false, or is an input, or its folder does not exist.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder, and a file is to be written; give the name of a file")
    if os.path.lexists(path) and not force:  # a link that leads nowhere too
        raise FileError(f"{path} exists; give another path, or --force to overwrite it")
    if path.exists() and any(Path(place).exists() and path.samefile(place) for place in inputs if place):
        raise FileError(f"{path} is to be written and is read too; inputs are never changed: give another path")
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: there is no folder {path.parent}; make it first")


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Numbers by commas."""
    if text is None:
        return None
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text!r} was given; numbers by commas are needed, such as 0.5,0.5,0.5") from None


def preprocessing_of(mean: str | None, std: str | None, size: str | None) -> Preprocessing | None:
    """What the options say of the preprocessing, or None where none was given; `source_of` adds the rest."""
    from brickyard.manifest import Preprocessing

    if mean is None and std is None and size is None:
        return None
    fit, _, sides = (size or "").rpartition(":")
    values: dict[str, Any] = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}
    if size is not None:
        parts = sides.split("x")
        if (
            fit not in ("", "pad", "resize")
            or len(parts) > 2
            or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts)
        ):
            raise OptionError(f"--size {size!r} was given; give 32, 32x48 or pad:32")
        values |= {"size": (int(parts[0]), int(parts[-1])), "fit": fit or "resize"}
    return Preprocessing(**values)


def source_of(
    spec: str,
    weights: Path | None,
    names: str | Sequence[str] | None,
    how: Preprocessing | None,
) -> Source:
    """A source, with class names from options or from its weights.

    What `how` leaves open (size, mean, channels) stays as the source has it.
    """
    from dataclasses import replace

    from brickyard.sources import load_source

    classes = (names.split(",") if isinstance(names, str) else list(names)) if names else None
    odd = [name for name in classes or () if not name or not writable(name)]
    if odd:
        raise OptionError(
            f"class name {odd[0]!r} was given, which is empty or no UTF-8; give another with --class-names"
        )
    own: Preprocessing | None = None
    if how is not None:
        try:
            own = load_source(spec, weights=weights, classes=classes).preprocessing
        except OptionError:  # it does not take its usual size: the size that was asked for decides
            own = None
    if how is not None and own is not None:
        given = {key: value for key, value in how.model_dump().items() if value is not None}
        if how.size is None:
            given.pop("fit", None)
        how = own.model_copy(update=given)
    source = load_source(spec, weights=weights, classes=classes, preprocessing=how)
    if how is not None and how.channels is None and source.input_shape[0] in (1, 3):
        channels = source.input_shape[0]
        source = replace(source, preprocessing=how.model_copy(update={"channels": channels}))
    return source


def named_after(source: Source, data: ImageData) -> Source:
    """A source whose classes are only numbered takes the names of data that have as many."""
    from dataclasses import replace

    count = len(source.classes)
    if source.classes == tuple(map(str, range(count))) and len(data.classes) == count:
        return replace(source, classes=data.classes)
    return source


def data_of(spec: str, how: Preprocessing | None, split: str = "train", most: int | None = None) -> ImageData:
    """Image data, brought to the size of the preprocessing where its images have several."""
    from brickyard.datasets import load_data

    try:
        return load_data(spec, split=split, max_images=most)
    except DataError as error:
        if "sizes" in str(error) and how is not None and how.size is not None:
            return load_data(spec, split=split, size=how.size, max_images=most)
        raise


def fitted(data: ImageData, classes: Sequence[str]) -> ImageData:
    """The same images with labels that count a source's classes: by name, or by number where no name agrees.

    Raises:
        DataError: No name agrees, and there are not as many classes.
    """
    from brickyard.datasets import ImageData

    places = {name: k for k, name in enumerate(classes)}
    if data.classes == tuple(classes):
        return data
    if not places.keys() & set(data.classes):
        if len(data.classes) == len(classes):
            return data
        raise DataError(
            f"{data.name} has {len(data.classes)} classes ({', '.join(data.classes[:5])} ...), the source "
            f"{len(classes)} ({', '.join(classes[:5])} ...), and no name agrees; give --class-names, or other images"
        )
    known = data.of_classes([name for name in data.classes if name in places])
    labels = known.labels.clone()
    for k, name in enumerate(data.classes):
        labels[known.labels == k] = places.get(name, -1)
    if not len(known):
        raise DataError(
            f"{data.name} has {len(data):,} images, and none of a class that the source knows "
            f"({', '.join(classes[:5])} ...); give images of these classes"
        )
    if len(known) < len(data):
        left = f"{len(data) - len(known):,} of {len(data):,}"
        say(f"{data.name}: {left} images are of classes that the source does not know; they are left out")
    return ImageData(known.images, labels, tuple(classes), data.name)


def labelled_images(specs: Sequence[str], parts: Sequence[ComponentManifest], option: str) -> list[ImageData]:
    """Images for every part, with labels that count its source's classes.

    Raises:
        OptionError: There are not as many as parts.
    """
    if len(specs) != len(parts):
        raise OptionError(f"{len(parts)} parts need {option} {len(parts)} times; it was given {len(specs)} times")
    return [
        fitted(data_of(spec, part.preprocessing), part.source.classes) for spec, part in zip(specs, parts, strict=True)
    ]


def loaded(path: Path, *kinds: type) -> Any:
    """A file of ours, of one of some kinds.

    Raises:
        FileError: It is of another kind.
    """
    from brickyard.files import load

    found = load(path)
    if kinds and not isinstance(found, kinds):
        wanted = " or ".join(kind.__name__.lower() for kind in kinds)
        kind = type(found).__name__.lower()
        article = "an" if kind[0] in "aeiou" else "a"
        raise FileError(f"{path} holds {article} {kind}; a {wanted} is needed here")
    return found


def exit_code(error: BaseException) -> int:
    """The exit code for an error, after printing it to standard error: 130 after Ctrl-C, 143 after SIGTERM, else 1."""
    if isinstance(error, KeyboardInterrupt) or seen() is not None:
        tell()
        return seen() or 130
    put(f"brickyard: {error}", sys.stderr)
    return 1


def only_for_locating(
    path: Path,
    choose: str | None,
    per_class: int | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    thresholds: dict[str, float | None],
) -> None:
    """Refuse options that relevances from a file leave without effect."""
    given = {"choose": choose, "per_class": per_class, "size": size, "mean": mean, "std": std, **thresholds}
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if idle:
        raise OptionError(
            f"{', '.join(idle)} would change nothing: {path} was located before, and a budget needs no threshold; "
            "leave it out, or give --data without --relevance"
        )
