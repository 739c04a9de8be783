"""Options shared by several commands, and those declared once for the shell, Python and recipes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer import Argument, Option
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from brickyard.base._declare import Opt, flat
from brickyard.base._errors import OptionError
from brickyard.base._preprocessing import Order, Place

SOURCE_HELP = (
    "zoo:NAME, torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID, path/to/file.py:function, model.onnx, or a source file "
    "(.safetensors)."
)
DATA_HELP = (
    "digits, an image folder, a table of paths (.csv, .json), arrays (.npz), .parquet or IDX files; append "
    "?split=test&classes=0-2 for a subset. For a detector: COCO (.json), YOLO (data.yaml), Pascal VOC or .parquet."
)

File = Annotated[Path, Argument(help="Component or assembly file.")]
SourceSpec = Annotated[str, Argument(help=SOURCE_HELP)]
Weights = Annotated[Path | None, Option(help="Read weights from this file: .safetensors, or .pt/.pth/.bin.")]
AllWeights = Annotated[list[Path] | None, Option("--weights", help="Read weights from this file, once per --source.")]
Data = Annotated[str, Option(help=f"Images: {DATA_HELP}")]
Output = Annotated[Path, Option("--output", "-o", help="Write the result to this file.")]
Force = Annotated[bool, Option("--force", help="Overwrite the output if it exists.")]
Names = Annotated[
    str | None,
    Option("--class-names", help="Class names of the source: comma-separated, a .txt or .json file, imagenet or coco."),
]
Split = Annotated[str, Option(help="Use this split unless --data names one.")]
MaxImages = Annotated[int | None, Option(help="Use at most this many images per --data.", min=1)]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Report each step on standard error.", hidden=True)]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print results and errors only.", hidden=True)]
Including = Annotated[
    bool, Option("--including-calibration", help="Also score images that were used to locate, heal or scale.")
]
Json = Annotated[bool, Option("--json", help="Print one JSON object to standard output.")]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class PreprocessingOptions(TypedDict, total=False):
    """What happens to raw images, as words; see `brickyard.sources._resolve.preprocessing_of`."""

    size: Annotated[
        str | None,
        Opt(default=None, help="Image size: 32, 32x48, crop:32 to crop, pad:32 to pad smaller images, or letterbox:32 "
            "to scale images by one factor and fill the rest."),
    ]  # fmt: skip
    mean: Annotated[
        str | None, Opt(default=None, help="Per-channel mean, comma-separated; of pictures, each in [0, 1].")
    ]
    std: Annotated[
        str | None,
        Opt(
            default=None, help="Per-channel standard deviation, comma-separated; of pictures, each in (0, 1], or 1/255."
        ),
    ]
    fill: Annotated[
        str | None,
        Opt(
            default=None,
            help="Fill the space around padded and letterboxed images with this value in [0, 1], such as 114/255.",
            unset="0",
        ),
    ]
    place: Annotated[
        Place | None, Opt(default=None, help="Choose where padded and letterboxed images lie", unset="centre")
    ]
    order: Annotated[Order | None, Opt(default=None, help="Choose the order of colours that the network takes")]
    no_antialias: Annotated[bool, Opt(default=False, help="Scale images down without smoothing them.")]


class WeightOptions(TypedDict, total=False):
    """Which weights a source has, where a file leaves that open."""

    random_weights: Annotated[bool, Opt(default=False, help="Use a network without weights, initialised at random.")]
    ema: Annotated[bool, Opt(default=True, help="Use moving averages where the weights file holds them.")]
    output_name: Annotated[
        str | None,
        Opt(default=None, help="Take the logits from this part of what the source returns: logits, 1 or head.logits.",
            unset="the one called logits, or the only one"),
    ]  # fmt: skip


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
    words = [typed(option.name)] if kind is not bool or not default else []
    limits: dict[str, Any] = {}
    if option.validate is not None:
        limits["callback"] = _checked(option.validate)
    elif kind is int:
        limits = {key: int(value) for key, value in option.shell_bounds.items()}
    shown = _Declared(option, words, default=..., show_default=default is not None, **limits)
    annotation = Annotated[kind if default is not None else kind | None, shown]  # type: ignore[valid-type]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _checked(validate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A callback of typer's that tells of a value that is refused as a mistake in the use of a command."""

    def check(value: Any) -> Any:
        try:
            return value if value is None else validate(value)
        except OptionError as error:
            raise typer.BadParameter(str(error)) from None

    return check


_PLACES = {"source": "SOURCE", "like": "SOURCE", "task": "CLASSES", "classes": "CLASSES", "without": "CLASS"}
_KINDS = {Path: "PATH", int: "NUMBER", float: "NUMBER", str: "TEXT"}


def with_metavar(item: inspect.Parameter) -> inspect.Parameter:
    """A parameter that help shows with what is to be typed, in place of its Python type."""
    kind, info, *_ = get_args(item.annotation) if get_origin(item.annotation) is Annotated else (None, None)
    if not isinstance(info, ParameterInfo) or info.metavar is not None:
        return item
    if isinstance(info, ArgumentInfo):
        word: str | None = item.name.upper()
    else:
        kinds = {one for part in (kind, *get_args(kind)) for one in (part, *get_args(part))}
        word = next((word for one, word in _KINDS.items() if one in kinds), None)
        if isinstance(info, _Declared) and info.option.names:
            word = "NAME"
        word = word and _PLACES.get(item.name, word)
    named = copy.copy(info)
    named.metavar = word
    return item.replace(annotation=Annotated[kind, named])


class Command(TyperCommand):
    """A command whose help shows arguments by their names alone; typer adds their Python types."""

    def __init__(self, *args: Any, **known: Any) -> None:
        super().__init__(*args, **known)
        for item in self.params:
            if item.param_type_name == "argument":
                setattr(item, "display_type_rich", lambda ctx: None)  # noqa: B010


def reshape(command: Callable[..., Any], parameters: Sequence[inspect.Parameter], **more: Any) -> None:
    """Give a command these parameters, and more annotations, as typer reads them."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in parameters} | more


def with_options(
    *holders: Any, only: tuple[str, ...] = (), unset: tuple[Any, ...] = (), **defaults: Any
) -> Callable[[CommandT], CommandT]:
    """Replace the `**options` of a command by the options that verbs declare.

    Args:
        holders: Where they are declared; parameters of the command itself take precedence.
        only: Names of the options to use; default: all.
        unset: Where options are declared that are None unless given, so that the command can tell.
        defaults: Defaults that differ for this command.
    """

    def wrap(command: CommandT) -> CommandT:
        hints = get_type_hints(command, include_extras=True)
        own = {
            name: item.replace(annotation=hints[name], kind=item.KEYWORD_ONLY)
            for name, item in inspect.signature(command).parameters.items()
            if item.kind is not item.VAR_KEYWORD
        }
        known = {name: one for holder in holders for name, one in flat(holder, *only).items()}
        for holder in unset:
            for name, one in flat(holder, *only).items():
                known.setdefault(name, replace(one, default=None, optional=True, unset=one.unset or one.value))
        for name, default in defaults.items():
            known[name] = replace(known[name], default=default, optional=False, unset="")
        more = [shell_option(one) for name, one in known.items() if name not in own]
        last = [own.pop(name) for name in ("force",) if name in own]
        reshape(command, [*own.values(), *more, *last], **{"return": hints["return"]})
        return command

    return wrap


def typed(name: str) -> str:
    """An option as one types it."""
    return f"--{name.replace('_', '-')}"


def check_companion(companion: str, there: bool, **words: Any) -> None:
    """Refuse options that were given without another one that they need.

    Raises:
        OptionError: One was, and `companion` is not there.
    """
    for name, value in words.items():
        if value and not there:
            text = f"{typed(name)} {f'{value:g}' if isinstance(value, float) else value}"
            raise OptionError("option-requires-option", f"{text} needs {companion}; add it, or leave this one out")


def check_effect(why: str, **words: Any) -> None:
    """Refuse options that would have no effect.

    Raises:
        OptionError: One was given.
    """
    if idle := [typed(name) for name, value in words.items() if value not in (None, False)]:
        raise OptionError("option-without-effect", f"{', '.join(idle)} would have no effect: {why}; leave it out")
