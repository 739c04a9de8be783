"""Which components of a yard to assemble a classifier of some classes from, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from brickyard.covering import Part, cover
from brickyard.errors import OptionError, TaskError
from brickyard.options import brief
from brickyard.shelf import Entry

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """A component that was chosen, the wanted classes that it covers, and why."""

    entry: Entry
    classes: tuple[str, ...]
    reason: str


def choose(
    entries: Sequence[Entry],
    classes: Sequence[str],
    *,
    max_parameters: int | None = None,
    max_flops: int | None = None,
) -> list[Choice]:
    """Choose among entries; see `Yard.choose`."""
    wanted = _checked(classes)
    for limit, value in (("max_parameters", max_parameters), ("max_flops", max_flops)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise OptionError(f"{limit}={value!r} is no whole number above 0; give one, or leave it out")
    known = {name for entry in entries for name in entry.classes}
    if missing := [name for name in wanted if name not in known]:
        raise TaskError(
            f"no component in the yard has {_named('the class', missing)}"
            f"{_near_names(missing, known)}; cut components for them and add these to the yard"
        )
    parts = [Part(e.name, e.classes, _loss(e), e.parameters, e.flops) for e in entries]
    found = cover(parts, wanted, max_parameters=max_parameters, max_flops=max_flops)
    if not found.parts:
        free = cover(parts, wanted) if max_parameters is not None or max_flops is not None else found
        raise TaskError(_why_none(wanted, free.parts, found.complete, max_parameters, max_flops))
    owners = {name: [e for e in entries if name in e.classes] for name in wanted}
    by_name = {entry.name: entry for entry in entries}
    return [_choice(by_name[part.name], owners, found.complete) for part in found.parts]


def _checked(classes: Sequence[str]) -> list[str]:
    """Wanted classes, each once."""
    if isinstance(classes, str):
        raise OptionError(f"classes={classes!r} is one text; give a list of names, such as [{classes!r}]")
    if not isinstance(classes, Iterable):
        raise OptionError(f"classes={brief(classes)} is a {type(classes).__name__}; give a list of names")
    wanted = list(classes)
    if wrong := [name for name in wanted if not isinstance(name, str)]:
        raise OptionError(f"classes are chosen by name; {wrong[0]!r} was given: give texts")
    if not wanted:
        raise TaskError("components for no classes were asked for; name at least one")
    if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise TaskError(f"{_named('the class', twice)} was asked for twice; name each once")
    return wanted


def _named(what: str, names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    plural = "es" if len(names) > 1 and what.endswith("class") else ""
    return f"{what}{plural} {', '.join(map(repr, names[:most]))}{more}"


def _near_names(missing: Sequence[str], known: set[str]) -> str:
    near = [(name, get_close_matches(name, sorted(known), 2, 0.6)) for name in missing[:8]]
    hints = [f"for {name!r} there is {' and '.join(map(repr, found))}" for name, found in near if found]
    return f" ({'; '.join(hints)})" if hints else ""


def _why_none(
    wanted: Sequence[str], free: Sequence[Part], complete: bool, max_parameters: int | None, max_flops: int | None
) -> str:
    if not complete:
        return (
            f"no choice of components was found for {_named('the class', wanted)}, and there are too many to look at "
            "all; ask for fewer classes, or raise the limits"
        )
    if not free:
        return (
            f"no choice of components has each of {_named('the class', wanted)} once and no class twice: their classes "
            "overlap; cut components for fewer classes and add these to the yard"
        )
    limits = {"parameters": max_parameters, "FLOPs": max_flops}
    asked = " and ".join(f"{value:,} {name}" for name, value in limits.items() if value is not None)
    parameters, flops = sum(part.parameters for part in free), sum(part.flops for part in free)
    names = ", ".join(part.name for part in free[:8]) + (" ..." if len(free) > 8 else "")
    return (
        f"no choice of components for {_named('the class', wanted)} is within {asked}; without limits it would be "
        f"{names} with {parameters:,} parameters and {flops:,} FLOPs: raise the limits, or cut smaller components"
    )


def _loss(entry: Entry) -> int:
    """Share of wrong answers in thousandths; where it is not known, that of a guess."""
    return round(1000 * (1 - (1 / len(entry.classes) if entry.accuracy is None else entry.accuracy)))


def _choice(entry: Entry, owners: dict[str, list[Entry]], complete: bool) -> Choice:
    """Why a component was chosen, in a line."""
    own = tuple(name for name in owners if name in entry.classes)
    extra = [name for name in entry.classes if name not in owners]
    alone = [name for name in own if len(owners[name]) == 1]
    others = len({e.name for name in own for e in owners[name]}) - 1
    why = []
    if alone:
        why.append(f"the only one with {', '.join(alone[:5])}")
    elif others:
        why.append(f"chosen over {others:,} other{'s' if others > 1 else ''} with some of these classes")
    if extra:
        names = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
        why.append(
            f"also brings {names}, not asked for" + (": no choice brings fewer such classes" if complete else "")
        )
    else:
        why.append("all its classes are wanted")
    why.append("accuracy not known" if entry.accuracy is None else f"accuracy {entry.accuracy:.1%}")
    why.append(f"{entry.parameters:,} parameters")
    if not complete:
        why.append("the search was stopped early, so there may be a better choice")
    return Choice(entry, own, "; ".join(why))
