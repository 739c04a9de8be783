"""Options shared by several commands, and those declared once for the shell, Python and recipes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.models import OptionInfo

from brickyard.base._declare import Opt, flat
from brickyard.base._errors import OptionError

SOURCE_HELP = "zoo:NAME, torchvision:NAME, timm:NAME, path/to/file.py:function, or a source file (.safetensors)."
DATA_HELP = (
    "digits, an image folder, a .parquet file or folder, or IDX files; append ?split=test&classes=0-2 for a subset."
)

SourceSpec = Annotated[str, typer.Argument(help=SOURCE_HELP, show_default=False)]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="Read weights from this file: .safetensors, or .pt/.pth/.bin.", show_default=False),
]
Data = Annotated[str, typer.Option("--data", help=f"Images: {DATA_HELP}", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Write the result to this file.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output if it exists.")]
Task = Annotated[
    list[str],
    typer.Option(
        "--task", help='Classes by name or index, as "cat,dog" or "0-2,7"; may be repeated.', show_default=False
    ),
]
Classes = Annotated[list[str] | None, typer.Option("--classes", help="Use only these classes.", show_default=False)]
Names = Annotated[
    str | None,
    typer.Option("--class-names", help="Class names of the source, comma-separated.", show_default=False),
]
Mean = Annotated[
    str | None, typer.Option("--mean", help="Per-channel mean, comma-separated, each in [0, 1].", show_default=False)
]
Std = Annotated[
    str | None, typer.Option("--std", help="Per-channel standard deviation, comma-separated.", show_default=False)
]
Size = Annotated[
    str | None,
    typer.Option("--size", help='Image size: 32, 32x48, or "pad:32" to pad smaller images.', show_default=False),
]
Split = Annotated[str, typer.Option(help="Use this split unless --data names one.")]
Seed = Annotated[int, typer.Option("--seed", help="Set the random seed.", min=-(2**63), max=2**63 - 1)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
Device = Annotated[str, typer.Option(help="Train on this device: cpu, or cuda if there is a GPU.")]


class _Declared(OptionInfo):
    """An option whose help text is built when it is shown, since choices can be registered until then."""

    def __init__(self, option: Opt, words: list[str], **known: Any) -> None:
        self.option = option
        super().__init__(param_decls=words or None, **known)

    @property
    def help(self) -> str:
        """The declared help, including the meaning of None."""
        return self.option.said.replace('"', "")

    @help.setter
    def help(self, value: Any) -> None: ...


def shell_option(option: Opt) -> inspect.Parameter:
    """Convert a declared option to a parameter that typer turns into a command-line option."""
    kind, default = option.plain, None if option.optional else option.default
    words = [f"--{option.name.replace('_', '-')}"] if kind is not bool or not default else []
    bounds: dict[str, Any] = {} if kind is not int else {key: int(value) for key, value in option.shell_bounds.items()}
    shown = _Declared(option, words, default=..., show_default=default is not None, **bounds)
    annotation = Annotated[kind if default is not None else kind | None, shown]  # type: ignore[valid-type]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def with_options(
    *holders: Any, only: tuple[str, ...] = (), unset: tuple[Any, ...] = (), **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the `**options` of a command by the options that verbs declare.

    Args:
        holders: Where they are declared; parameters of the command itself take precedence.
        only: Names of the options to use; default: all.
        unset: Where options are declared that are None unless given, so that the command can tell.
        defaults: Defaults that differ for this command.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)
        own = {
            name: item.replace(annotation=hints[name], kind=item.KEYWORD_ONLY)
            for name, item in signature.parameters.items()
            if item.kind is not item.VAR_KEYWORD
        }
        known = {name: one for holder in holders for name, one in flat(holder, *only).items()}
        for holder in unset:
            for name, one in flat(holder).items():
                known.setdefault(name, replace(one, default=None, optional=True, unset=one.unset or one.value))
        known = {
            name: replace(one, default=defaults[name], optional=False, unset="") if name in defaults else one
            for name, one in known.items()
        }
        more = {name: shell_option(one) for name, one in known.items() if name not in own}
        last = {name: own.pop(name) for name in ("device", "force", "as_json") if name in own}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**given)

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own.values(), *more.values(), *last.values()], return_annotation=None
        )
        run.__annotations__ = {item.name: item.annotation for item in (*own.values(), *more.values(), *last.values())}
        return run

    return wrap


def only_for_locating(path: Path, given: dict[str, Any]) -> None:
    """Refuse options that have no effect on relevances from a file."""
    idle = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if idle:
        raise OptionError(
            "option-without-effect",
            f"{', '.join(idle)} would have no effect: {path} was already located, and a budget "
            "needs no threshold; leave it out, or give --data without --relevance",
        )
