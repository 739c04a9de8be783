"""The command line. `--help` imports neither torch nor anything else slow."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperGroup

from brickyard._version import __version__
from brickyard.base._declare import declared
from brickyard.base._errors import BrickyardError, BrickyardWarning, FileError, OptionError
from brickyard.base._options import PlaceOptions
from brickyard.cli import _build, _export, _look, _make, _report, _serve, _signals, _sources, _train, _yard
from brickyard.cli._options import Command, Json, Quiet, Verbose, reshape, shell_option, with_metavar
from brickyard.cli._output import Result, emit, exit_code
from brickyard.runtime._progress import quiet as is_quiet
from brickyard.runtime._progress import say, spoken

ResultT = TypeVar("ResultT")

_SPOKEN = {"verbose": False, "quiet": False}  # as given before the command
_SHOW = warnings.showwarning
_SHARED = ("locate", "disassemble", "evaluate")  # commands whose work several processes share
_TRAINING = ("finetune", "distil")  # commands whose gradients need more digits than half of float32's
_PLACED = {  # commands that compute with networks, and what they let choose of where
    "train": ("device",),
    **dict.fromkeys((*_SHARED, *_TRAINING), ("device", "dtype")),
    **dict.fromkeys(("assemble", "predict", "routes", "report", "yard_rank", "build"), ("device", "dtype")),
}


class _Group(TyperGroup):
    """All commands; a word that is a source, and no command, is told what to do with it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            from brickyard.sources._catalogue import suggestions

            if type(error).__name__ != "UsageError" or "Did you mean" in getattr(error, "message", ""):
                raise
            if meant := suggestions(args[0]):
                error.message += f" To use it as a source: brickyard show {meant[0]}"  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    name="brickyard",
    cls=_Group,
    help="Cut trained image classifiers into small working models, and assemble these into new classifiers.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 120},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"brickyard {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Report each step on standard error. May also follow the command.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors only. May also follow the command.")
    ] = False,
) -> None:
    _SPOKEN.update(verbose=verbose, quiet=quiet)


def _guarded(command: Callable[..., Result | None]) -> Callable[..., None]:
    """Add --json to a command and print its result; turn Brickyard's errors and Ctrl-C into a message and a code."""
    asked = _PLACED.get(command.__name__, ())
    computed = _computing(command, asked) if asked else command

    def work(*args: Any, as_json: bool, **kwargs: Any) -> None:
        several = os.environ.get("WORLD_SIZE", "1") not in ("0", "1")
        result = _shared(computed, *args, **kwargs) if several else computed(*args, **kwargs)
        if result is not None:
            emit(result, as_json)
            if result.code:
                raise typer.Exit(result.code)

    @functools.wraps(command)
    def run(*args: Any, as_json: bool = False, verbose: bool = False, quiet: bool = False, **kwargs: Any) -> None:
        warnings.showwarning = _told
        try:
            with _aloud(verbose or _SPOKEN["verbose"], quiet or _SPOKEN["quiet"]):
                work(*args, as_json=as_json, **kwargs)
        except (BrickyardError, KeyboardInterrupt) as error:
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:
            _signals.no_reader()
            raise typer.Exit(_signals.PIPE) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            told = FileError(
                "file-system", f"{place}{error.strerror or error}; check the path, the free space and the permissions"
            )
            raise typer.Exit(exit_code(told)) from None

    hints = get_type_hints(command, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    own = inspect.signature(command).parameters.values()
    parameters = [item.replace(annotation=hints[item.name], kind=kind) for item in own]
    at = next((k for k, item in enumerate(parameters) if item.name == "force"), len(parameters))
    parameters[at:at] = [shell_option(declared(PlaceOptions)[name]) for name in asked]
    if hints["return"] is Result:
        parameters.append(inspect.Parameter("as_json", kind, default=False, annotation=Json))
    for name, option in (("verbose", Verbose), ("quiet", Quiet)):
        parameters.append(inspect.Parameter(name, kind, default=False, annotation=option))
    reshape(run, [with_metavar(item) for item in parameters])
    return run


def _aloud(verbose: bool, quiet: bool) -> AbstractContextManager[None]:
    if verbose and quiet:
        raise OptionError("option-conflict", "--verbose and --quiet cannot be combined; give one of them")
    return spoken(verbose=verbose, quiet=quiet)


def _computing(command: Callable[..., ResultT], asked: Sequence[str]) -> Callable[..., ResultT]:
    """A command that brings the networks it reads to the device, and to the type of numbers, that it is asked for."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> ResultT:
        from brickyard.network._place import placed, unsupported

        where = {name: kwargs.pop(name) for name in asked}
        if command.__name__ in _TRAINING and where["dtype"] in ("float16", "bfloat16"):
            raise OptionError(
                "option-conflict",
                f"{command.__name__} needs more digits than {where['dtype']} has; leave --dtype out"
                + (", and give --precision for mixed precision" if command.__name__ == "finetune" else ""),
            )
        with placed(**where):
            try:
                return command(*args, **kwargs)
            except (BrickyardError, RuntimeError, TypeError) as error:
                lacking = unsupported(error)
                if lacking is None:
                    raise
                raise lacking from error

    return run


def _told(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Print a warning of Brickyard's as one line; others keep their form."""
    if issubclass(category, BrickyardWarning):
        say(f"warning: {message}")
    elif not is_quiet():
        _SHOW(message, category, *place, **more)


def _shared(command: Callable[..., Result | None], *args: Any, **kwargs: Any) -> Result | None:
    """Run a command as one of the processes started by `torchrun`; only the first to fail reports its error."""
    from brickyard.runtime._processes import joined, process_count

    if process_count() < 2:
        return command(*args, **kwargs)
    with joined() as first_to_fail:
        try:
            if command.__name__ not in _SHARED:
                name = command.__name__.replace("_", " ")
                raise OptionError(
                    "option-several-processes",
                    f"{name} runs in one process, but torchrun started several; use it with {', '.join(_SHARED)}",
                )
            return command(*args, **kwargs)
        except (BrickyardError, KeyboardInterrupt):
            if not first_to_fail():
                raise typer.Exit(1) from None
            raise


def _first(command: Callable[..., Any]) -> str:
    """The first sentence of a command's help, in full."""
    return inspect.cleandoc(command.__doc__ or "").partition("\n\n")[0].split(". ")[0].removesuffix(".") + "."


for _command in (
    *(_look.demo, _make.train, _make.locate, _make.disassemble, _make.assemble, _train.finetune, _train.distil),
    *(_look.evaluate, _look.rename, _look.show, _look.predict, _report.routes, _report.report),
    *(_sources.sources,),
    *(_export.export, _export.push, _build.build, _serve.workbench),
):
    app.command(_command.__name__, cls=Command, short_help=_first(_command))(_guarded(_command))

_yards = typer.Typer(help=_yard.HELP, no_args_is_help=True, rich_markup_mode=None)
for _other in _yard.COMMANDS:
    _yards.command(_other.__name__.removeprefix("yard_"), cls=Command, short_help=_first(_other))(_guarded(_other))
app.add_typer(_yards, name="yard")


def main() -> None:
    """Run the command line."""
    _signals.listen()
    try:
        app()
    except BaseException as error:
        if _signals.seen() is None:
            raise
        sys.exit(exit_code(error))
    finally:
        _signals.unheard()
