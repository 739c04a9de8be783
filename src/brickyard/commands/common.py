"""What several commands share: options, reading sources and data, printing results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brickyard.errors import BrickyardError, FileError, OptionError

if TYPE_CHECKING:
    from brickyard.datasets import ImageData
    from brickyard.manifest import Preprocessing
    from brickyard.sources import Source

__all__ = [
    "Classes",
    "Data",
    "Force",
    "Json",
    "Mean",
    "Names",
    "Output",
    "Seed",
    "Size",
    "SourceSpec",
    "Std",
    "Task",
    "Weights",
    "check_free",
    "data_of",
    "emit",
    "numbers",
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
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random choices.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]


def say(text: object) -> None:
    """Print to standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def emit(value: dict[str, Any], as_json: bool, text: object) -> None:
    """Print a result: JSON, or text."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False) if as_json else str(text))  # noqa: T201


def check_free(path: Path, force: bool) -> None:
    """Refuse an output that exists, before any work is done.

    Raises:
        FileError: It exists and `force` is false, or its folder does not exist.
    """
    if path.exists() and not force:
        raise FileError(f"{path} exists; give another path, or --force to overwrite it")
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
    """Preprocessing from options, or None where none was given."""
    from pydantic import ValidationError

    from brickyard.manifest import Preprocessing, first_problem

    if mean is None and std is None and size is None:
        return None
    fit, _, sides = (size or "").rpartition(":")
    values: dict[str, Any] = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}
    if size is not None:
        parts = sides.split("x")
        if fit not in ("", "pad", "resize") or len(parts) > 2 or not all(part.isdigit() for part in parts):
            raise OptionError(f"--size {size!r} was given; give 32, 32x48 or pad:32")
        values |= {"size": (int(parts[0]), int(parts[-1])), "fit": fit or "resize", "channels": 3}
    try:
        return Preprocessing(**values)
    except ValidationError as error:
        raise OptionError(f"the preprocessing cannot be used: {first_problem(error)}") from None


def source_of(
    spec: str,
    weights: Path | None,
    names: str | None,
    how: Preprocessing | None,
    data: ImageData | None = None,
) -> Source:
    """A source, with class names from options, from its weights, or from the data."""
    from dataclasses import replace

    from brickyard.sources import load_source

    source = load_source(spec, weights=weights, classes=names.split(",") if names else None, preprocessing=how)
    count = len(source.classes)
    if data is not None and source.classes == tuple(map(str, range(count))) and len(data.classes) == count:
        source = replace(source, classes=data.classes)
    return source


def data_of(spec: str, how: Preprocessing | None, split: str = "train", most: int | None = None) -> ImageData:
    """Image data, brought to the size of the preprocessing where its images have several."""
    from brickyard.datasets import load_data
    from brickyard.errors import DataError

    try:
        return load_data(spec, split=split, max_images=most)
    except DataError as error:
        if "sizes" in str(error) and how is not None and how.size is not None:
            return load_data(spec, split=split, size=how.size, max_images=most)
        raise


def loaded(path: Path, *kinds: type) -> Any:
    """A file of ours, of one of some kinds.

    Raises:
        FileError: It is of another kind.
    """
    from brickyard.files import load

    found = load(path)
    if kinds and not isinstance(found, kinds):
        wanted = " or ".join(kind.__name__.lower() for kind in kinds)
        raise FileError(f"{path} holds a {type(found).__name__.lower()}; a {wanted} is needed here")
    return found


def exit_code(error: BaseException) -> int:
    """The exit code for an error, after printing it to standard error."""
    if isinstance(error, KeyboardInterrupt):
        say("brickyard: stopped")
        return 130
    assert isinstance(error, BrickyardError)
    say(f"brickyard: {error}")
    return 1
