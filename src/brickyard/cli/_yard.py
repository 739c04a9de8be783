"""Commands for yards: folders of components with an index."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer
from typer import Argument, Option

from brickyard.base._errors import BrickyardError, OptionError
from brickyard.base._messages import shown
from brickyard.base._options import Seed
from brickyard.cli._options import Data, with_options
from brickyard.cli._output import Result, short, table
from brickyard.runtime._progress import put, say
from brickyard.sources._resolve import data_of

if TYPE_CHECKING:
    from brickyard.yard._index import Entry
    from brickyard.yard._ranking import Rank
    from brickyard.yard._yard import Yard


HELP = "Manage components in a folder with an index."

Place = Annotated[
    Path, Option("--yard", envvar="BRICKYARD_YARD", help="Yard folder. Default: ./yard.", show_default=False)
]
YARD = Path("yard")


def yard_add(
    files: Annotated[list[Path], Argument(help="Component files.")],
    place: Place = YARD,
    name: Annotated[str | None, Option(help="Name in the yard. Default: classes and source.")] = None,
) -> Result:
    """Copy components into a yard. Creates the yard if it does not exist."""
    if name is not None and len(files) != 1:
        raise OptionError("option-count", f"--name {name!r} applies to a single file, got {len(files)} files")
    yard = _yard(place, create=True)
    before = {entry.name for entry in yard.entries()}
    added: list[dict[str, Any]] = []
    lines: list[str] = []
    try:
        for path in files:
            entry = yard.add(path, name)
            new = entry.name not in before
            before.add(entry.name)
            added.append({"file": str(path), "new": new, **entry.as_dict()})
            lines.append(f"{plain(str(path))}: {entry.name}{'' if new else ', which is there already'}")
    except BrickyardError:
        if lines:
            put("\n".join([*lines, "what comes after these was not added:"]), sys.stderr)  # a part of the error
        raise
    return Result({"yard": str(place), "added": added}, "\n".join(lines))


def yard_list(place: Place = YARD) -> Result:
    """List all components of a yard."""
    yard = _yard(place)
    return _listed(yard, yard.entries(), _nothing(place))


def yard_search(
    text: Annotated[
        list[str] | None, Argument(help="Words to find in names, classes, sources and architectures.")
    ] = None,
    place: Place = YARD,
    classes: Annotated[
        list[str] | None, Option("--class", help="Require this class; may be repeated to require several.")
    ] = None,
    source: Annotated[str | None, Option(help="Require this source: its name, or a prefix of its SHA-256.")] = None,
    max_parameters: Annotated[int | None, Option(help="Require at most this many parameters.", min=1)] = None,
    max_flops: Annotated[int | None, Option(help="Require at most this many FLOPs per image.", min=1)] = None,
    min_accuracy: Annotated[float | None, Option(help="Require at least this accuracy, in [0, 1].")] = None,
) -> Result:
    """List the components that meet all criteria."""
    yard = _yard(place)
    entries = yard.search(
        classes=classes or (),
        source=source,
        max_parameters=max_parameters,
        max_flops=max_flops,
        min_accuracy=min_accuracy,
        text=" ".join(text or ()),
    )
    return _listed(yard, entries, f"none of the {len(yard.entries()):,} components in {place} fits; ask for less")


def yard_show(name: Annotated[str, Argument(help="Component name.")], place: Place = YARD) -> Result:
    """Show the index entry of a component."""
    from brickyard.base._doubts import share_held

    yard = _yard(place)
    entry = yard.entry(name)
    path, held = yard.path / f"{entry.name}.safetensors", yard.load(entry.name).manifest.agreement
    rows = {
        "classes": ", ".join(map(plain, entry.classes)) + (" + reject" if entry.reject else ""),
        "source": f"{plain(entry.source)}, weights {entry.source_sha256[:12]}",
        "parameters": f"{entry.parameters:,}",
        "FLOPs": f"{entry.flops:,}",
        "accuracy": _percent(entry.accuracy) or "not measured",
        "agreement": f"with its source on {share_held(*held)}" if held and held[1] else "not known",
        "input": "x".join(map(str, entry.input_shape)),
        "architecture": entry.architecture or "not known; joins others in parallel form only",
        "file": f"{plain(str(path))}, {entry.bytes:,} bytes",
        "sha256": entry.sha256,
    }
    lines = [entry.name, *(f"  {key:<12} {value}" for key, value in rows.items())]
    value = {**entry.as_dict(), "agreement_images": held[1] if held else 0, "path": str(path)}
    return Result(value, "\n".join(lines))


class _RankOptions(TypedDict, total=False):
    seed: Seed


@with_options(_RankOptions)
def yard_rank(
    data: Data,
    context: typer.Context,
    folder: Annotated[Path | None, Argument(metavar="YARD", help="Yard folder, same as --yard.")] = None,
    place: Place = YARD,
    score: Annotated[str, Option(help="Rank by this score: logme or h-score.")] = "logme",
    per_class: Annotated[int, Option(help="Use at most this many images per class.", min=1)] = 100,
    **options: Any,
) -> Result:
    """Rank components as feature extractors for a new task. Needs a few labelled images of it."""
    from brickyard.base._records import Preprocessing

    if folder is not None:
        given = context.get_parameter_source("place")
        if given is not None and given.name == "COMMANDLINE" and folder != place:
            raise OptionError("option-conflict", f"got two yards, {folder} and --yard {place}; give one")
        place = folder
    yard = _yard(place)
    entries = yard.entries()
    sides = [entry.input_shape[1:] for entry in entries if len(entry.input_shape) == 3]
    # Pictures of several sizes are brought to the largest one that a component takes.
    how = Preprocessing(size=(max(s[0] for s in sides), max(s[1] for s in sides))) if sides else None
    shape = next((entry.input_shape for entry in entries if not sides), None)
    images = data_of(data, how, shape=shape)
    found = yard.rank(images, score=score, per_class=per_class, **options)  # type: ignore[arg-type]
    if not found:
        say(_nothing(place))
    value = {
        "yard": str(place),
        "data": images.name,
        "score": score,
        "images": found[0].images if found else 0,
        "components": [
            {"score": rank.score, "features": rank.size, "why": rank.why, **rank.entry.as_dict()} for rank in found
        ],
    }
    return Result(value, _ranks(found, score) if found else "")


def yard_rm(names: Annotated[list[str], Argument(help="Component names.")], place: Place = YARD) -> Result:
    """Delete components from a yard."""
    yard = _yard(place)
    removed: list[str] = []
    try:
        for name in dict.fromkeys(names):
            yard.remove(name)
            removed.append(name)
    except BrickyardError:
        if removed:
            put(f"removed {', '.join(removed)}; what comes after these is still there:", sys.stderr)
        raise
    return Result({"yard": str(place), "removed": removed}, f"removed {', '.join(removed)}")


def yard_verify(place: Place = YARD) -> Result:
    """Check all components of a yard. Reads every file and compares it with the index; exits with 1 on a problem."""
    yard = _yard(place)
    problems = yard.verify()
    count = len(yard.entries())
    lines = [f"{plain(problem.name)}: {plain(problem.what)}" for problem in problems]
    lines.append(f"{count:,} components in {plain(str(place))}, {len(problems) or 'no'} problems")
    value = {"yard": str(place), "components": count, "problems": [vars(problem) for problem in problems]}
    return Result(value, "\n".join(lines), code=1 if problems else 0)


COMMANDS = (yard_add, yard_list, yard_search, yard_show, yard_rank, yard_rm, yard_verify)


def plain(text: str) -> str:
    """Text from a file in one line, with escapes for what a terminal would obey."""
    return shown(text, keep="")


def _yard(place: Path, create: bool = False) -> Yard:
    from brickyard.yard._yard import Yard

    return Yard(place, create=create)


def _nothing(place: Path) -> str:
    return f"no components in {place}; add some with: brickyard yard add FILE"


def _listed(yard: Yard, entries: Sequence[Entry], none: str) -> Result:
    if not entries:
        say(none)
    out = [vars(problem) for problem in yard.left_out()]
    value = {"yard": str(yard.path), "entries": [entry.as_dict() for entry in entries], "left_out": out}
    return Result(value, _table(entries) if entries else "")


def _table(entries: Sequence[Entry]) -> str:
    """Format entries as a table."""
    header = ["name", "classes", "source", "parameters", "FLOPs", "accuracy", "architecture"]
    lines = [header] + [
        [
            entry.name,
            _classes(entry),
            entry.source,
            short(entry.parameters),
            short(entry.flops),
            _percent(entry.accuracy),
            entry.architecture,
        ]
        for entry in entries
    ]
    return table(lines, right=range(3, 6), shorten=((1, 10), (2, 8), (0, 35)))


def _ranks(found: Sequence[Rank], score: str) -> str:
    """Format components and scores as a table, then the reasons for missing scores."""
    header = ["name", score, "features", "FLOPs", "parameters", "classes", "source"]
    lines = [header] + [
        [
            rank.entry.name,
            "-" if rank.score is None else f"{rank.score:.4f}",
            "-" if rank.size is None else str(rank.size),
            short(rank.entry.flops),
            short(rank.entry.parameters),
            _classes(rank.entry),
            rank.entry.source,
        ]
        for rank in found
    ]
    reasons = [f"{rank.entry.name} has no score: {plain(rank.why)}" for rank in found if rank.score is None]
    return "\n".join([table(lines, right=range(1, 5), shorten=((5, 10), (6, 8), (0, 35))), *reasons])


def _classes(entry: Entry) -> str:
    return ", ".join(entry.classes) + (" + reject" if entry.reject else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
