"""Which components of a yard to assemble a classifier of some classes from, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from brickyard.base._errors import OptionError, TaskError
from brickyard.base._messages import brief
from brickyard.yard._index import Entry


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
            raise OptionError(
                "option-range", f"{limit}={value!r} is no whole number above 0; give one, or leave it out"
            )
    known = {name for entry in entries for name in entry.classes}
    if missing := [name for name in wanted if name not in known]:
        raise TaskError(
            "task-not-in-yard",
            f"no component in the yard has {_named('the class', missing)}"
            f"{_near_names(missing, known)}; cut components for them and add these to the yard",
        )
    parts = [Part(e.name, e.classes, _loss(e), e.parameters, e.flops) for e in entries]
    found = cover(parts, wanted, max_parameters=max_parameters, max_flops=max_flops)
    if not found.parts:
        free = cover(parts, wanted) if max_parameters is not None or max_flops is not None else found
        raise TaskError("task-not-coverable", _why_none(wanted, free.parts, found.complete, max_parameters, max_flops))
    owners = {name: [e for e in entries if name in e.classes] for name in wanted}
    by_name = {entry.name: entry for entry in entries}
    return [_choice(by_name[part.name], owners, found.complete) for part in found.parts]


def _checked(classes: Sequence[str]) -> list[str]:
    """Wanted classes, each once."""
    if isinstance(classes, str):
        raise OptionError(
            "option-type", f"classes={classes!r} is one text; give a list of names, such as [{classes!r}]"
        )
    if not isinstance(classes, Iterable):
        raise OptionError(
            "option-type", f"classes={brief(classes)} is a {type(classes).__name__}; give a list of names"
        )
    wanted = list(classes)
    if wrong := [name for name in wanted if not isinstance(name, str)]:
        raise OptionError("option-type", f"classes are chosen by name; {wrong[0]!r} was given: give texts")
    if not wanted:
        raise TaskError("task-empty", "components for no classes were asked for; name at least one")
    if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise TaskError("task-duplicate-class", f"{_named('the class', twice)} was asked for twice; name each once")
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


MAX_STEPS = 3_000_000  # parts looked at, in one search: about a second


@dataclass(frozen=True)
class Part:
    """What the search knows of a component. `loss` is the share of wrong answers, in thousandths."""

    name: str
    classes: tuple[str, ...]
    loss: int
    parameters: int
    flops: int


@dataclass(frozen=True)
class Cover:
    """The parts that were found, and whether the search was complete, so that there is no better choice."""

    parts: tuple[Part, ...]
    complete: bool


@dataclass(frozen=True)
class _Candidate:
    part: Part
    mask: int  # all its classes, as bits
    wanted: int  # the wanted ones among them
    cost: tuple[int, int, int, int, int]  # unwanted classes, parts, loss, parameters, FLOPs: what is added up

    @property
    def shares(self) -> tuple[float, ...]:
        """Its cost, divided among the wanted classes that it covers."""
        return tuple(value / self.wanted.bit_count() for value in self.cost)


def cover(
    parts: Sequence[Part],
    wanted: Sequence[str],
    *,
    max_parameters: int | None = None,
    max_flops: int | None = None,
    max_steps: int = MAX_STEPS,
) -> Cover:
    """Find the best parts that have each wanted class exactly once, and no other class twice.

    Best means: fewest classes that are not wanted, then fewest parts, then the smallest loss (summed over the wanted
    classes), then fewest parameters, then fewest FLOPs, then the first in the alphabet. Limits count sums.

    Args:
        parts: What there is to choose from.
        wanted: Names of the classes, each once.
        max_parameters: Most parameters in all.
        max_flops: Most FLOPs in all.
        max_steps: After so many looks at parts, the best that was found by then is returned.

    Returns:
        The parts, in the order of the wanted classes; none where there is no choice, or none was found.

    Example:
        >>> from brickyard.yard._choose import Part, cover
        >>> parts = [Part("ab", ("a", "b"), 20, 9, 9), Part("b", ("b",), 0, 5, 5), Part("a", ("a",), 0, 5, 5)]
        >>> [part.name for part in cover(parts, ["a", "b"]).parts]
        ['ab']
        >>> [part.name for part in cover(parts, ["a", "b"], max_parameters=8).parts]
        []
    """
    limits = (math.inf, math.inf, math.inf, _limit(max_parameters), _limit(max_flops))
    candidates = _candidates(parts, wanted, limits)
    best, complete = _search(candidates, len(wanted), limits, max_steps, (0, 1, 2, 3, 4))
    if best is None and not complete:  # another order may come upon one that fits
        best, complete = _search(candidates, len(wanted), limits, max_steps, (3, 4, 1, 0, 2))
    place = {name: k for k, name in enumerate(wanted)}
    found = sorted(best or (), key=lambda part: min(place[name] for name in part.classes if name in place))
    return Cover(tuple(found), complete)


def _limit(value: int | None) -> float:
    return math.inf if value is None else value


def _candidates(parts: Sequence[Part], wanted: Sequence[str], limits: Sequence[float]) -> list[_Candidate]:
    """Parts that may be in the best cover: of those with the same classes, only those that none beats in everything."""
    asked = set(wanted)
    bits = {name: 1 << k for k, name in enumerate(wanted)}
    groups: dict[int, list[_Candidate]] = {}
    for part in sorted(parts, key=lambda part: (part.loss, part.parameters, part.flops, part.name)):
        if len(set(part.classes)) < len(part.classes) or asked.isdisjoint(part.classes):
            continue
        mask = 0
        for name in part.classes:
            mask |= bits.setdefault(name, 1 << len(bits))
        own = mask & ((1 << len(wanted)) - 1)
        count = own.bit_count()
        cost = (mask.bit_count() - count, 1, part.loss * count, part.parameters, part.flops)
        if any(value > limit for value, limit in zip(cost, limits, strict=True)):
            continue
        group = groups.setdefault(mask, [])
        if not any(all(a <= b for a, b in zip(other.cost, cost, strict=True)) for other in group):
            group.append(_Candidate(part, mask, own, cost))
    if all(limit == math.inf for limit in limits):
        groups = {mask: group[:1] for mask, group in groups.items()}
    return [candidate for group in groups.values() for candidate in group]


def _search(
    candidates: Sequence[_Candidate], count: int, limits: Sequence[float], max_steps: int, order: Sequence[int]
) -> tuple[tuple[Part, ...] | None, bool]:
    """The best cover, and whether all were looked at. Candidates are tried in the order of those shares of cost."""

    def first(candidate: _Candidate) -> tuple[tuple[float, ...], str]:
        shares = candidate.shares
        return tuple(shares[k] for k in order), candidate.part.name

    having: list[list[_Candidate]] = [[] for _ in range(count)]
    for candidate in sorted(candidates, key=first):
        for k in _bits(candidate.wanted):
            having[k].append(candidate)
    if not all(having):
        return None, True
    # No cover adds less for class k than this: every part's cost, divided among the classes that it covers.
    least = [[min(shares) for shares in zip(*(c.shares for c in group), strict=True)] for group in having]
    best: tuple[tuple[int, ...], list[str], tuple[_Candidate, ...]] | None = None
    stack: list[tuple[int, int, tuple[int, ...], tuple[_Candidate, ...]]] = [((1 << count) - 1, 0, (0,) * 5, ())]
    steps = 0
    while stack:
        left, used, cost, chosen = stack.pop()
        if not left:
            names = sorted(c.part.name for c in chosen)
            if best is None or (cost, names) < best[:2]:
                best = (cost, names, chosen)
            continue
        open_classes = list(_bits(left))
        bound = tuple(
            value + math.ceil(sum(least[k][i] for k in open_classes) * (1 - 1e-9) - 1e-6)
            for i, value in enumerate(cost)
        )
        if (best is not None and bound > best[0]) or any(b > most for b, most in zip(bound, limits, strict=True)):
            continue
        if steps > max_steps:
            return (tuple(c.part for c in best[2]) if best else None), False
        fitting: list[_Candidate] | None = None
        for k in open_classes:
            fit = [c for c in having[k] if not c.mask & used]
            steps += len(having[k]) + 1
            if fitting is None or len(fit) < len(fitting):
                fitting = fit
            if len(fitting) <= 1:
                break
        for c in reversed(fitting or []):
            total = tuple(a + b for a, b in zip(cost, c.cost, strict=True))
            if any(value > most for value, most in zip(total, limits, strict=True)):
                continue
            stack.append((left & ~c.wanted, used | c.mask, total, (*chosen, c)))
    return (tuple(c.part for c in best[2]) if best else None), True


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
