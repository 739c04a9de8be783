"""What several commands share: options, reading sources and data, printing results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brickyard.base._errors import OptionError

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
            "option-without-effect",
            f"{', '.join(idle)} would change nothing: {path} was located before, and a budget needs no threshold; "
            "leave it out, or give --data without --relevance",
        )
