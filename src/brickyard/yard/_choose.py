"""Which components of a yard to assemble a classifier of some classes from, and why.

The choice is an exact cover of the wanted classes. SciPy's `milp` (the solver HiGHS) finds the best one and proves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from brickyard.base._checks import whole
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
    entries: Sequence[Entry], classes: Sequence[str], *, max_parameters: int | None = None, max_flops: int | None = None
) -> list[Choice]:
    """Choose among entries; see `Yard.choose`."""
    wanted = _checked(classes)
    for limit, value in (("max_parameters", max_parameters), ("max_flops", max_flops)):
        if value is not None:
            whole(limit, value)
    known = {name for entry in entries for name in entry.classes}
    if missing := [name for name in wanted if name not in known]:
        raise TaskError(
            "task-not-in-yard",
            f"no component in the yard has {_named('the class', missing)}{_near_names(missing, known)}; cut one",
        )
    parts = [Part(e.name, e.classes, _loss(e), e.parameters, e.flops) for e in entries]
    try:
        found = cover(parts, wanted, max_parameters=max_parameters, max_flops=max_flops)
        free = found or cover(parts, wanted)
    except StoppedError:
        raise TaskError(
            "task-not-coverable",
            f"the search for components with {_named('the class', wanted)} was stopped after {NODES:,} steps; ask for "
            "fewer classes, or remove unneeded components from the yard",
        ) from None
    if not found:
        raise TaskError("task-not-coverable", _why_none(wanted, free, max_parameters, max_flops))
    owners = {name: [e for e in entries if name in e.classes] for name in wanted}
    by_name = {entry.name: entry for entry in entries}
    return [_choice(by_name[part.name], owners) for part in found]


def check_names(classes: Sequence[str]) -> None:
    """Check that classes are given as a list."""
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise OptionError(
            "option-type",
            f"classes must be a list of names such as ['cat'], got {brief(classes)} of type {type(classes).__name__}",
        )


def _checked(classes: Sequence[str]) -> list[str]:
    """Wanted classes, each once."""
    check_names(classes)
    wanted = list(classes)
    for name in wanted:
        if not isinstance(name, str):
            raise OptionError("option-type", f"classes must be names, got {name!r}; give strings")
    if not wanted:
        raise TaskError("task-empty", "classes is empty; name at least one class")
    if twice := sorted({name for name in wanted if wanted.count(name) > 1}):
        raise TaskError(
            "task-duplicate-class", f"classes lists {_named('the class', twice)} more than once; name each once"
        )
    return wanted


def _named(what: str, names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    plural = "es" if len(names) > 1 and what.endswith("class") else ""
    return f"{what}{plural} {', '.join(map(repr, names[:most]))}{more}"


def _near_names(missing: Sequence[str], known: set[str]) -> str:
    near = [(name, get_close_matches(name, sorted(known), 2, 0.6)) for name in missing[:8]]
    hints = [f"for {name!r} there is {' and '.join(map(repr, found))}" for name, found in near if found]
    return f" ({'; '.join(hints)})" if hints else ""


def _why_none(wanted: Sequence[str], free: Sequence[Part], max_parameters: int | None, max_flops: int | None) -> str:
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
    """Share of wrong answers in thousandths; unmeasured, of those unlike its source's; else that of a guess."""
    known = entry.agreement if entry.accuracy is None and len(entry.classes) > 1 else entry.accuracy
    return round(1000 * (1 - (1 / len(entry.classes) if known is None else known)))


def _choice(entry: Entry, owners: dict[str, list[Entry]]) -> Choice:
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
        why.append(f"also brings {names}, not asked for: no choice brings fewer such classes")
    else:
        why.append("all its classes are wanted")
    if entry.accuracy is not None:
        why.append(f"accuracy {entry.accuracy:.1%}")
    elif entry.agreement is not None:
        why.append(f"accuracy not measured, answers as its source on {entry.agreement:.1%}")
    else:
        why.append("accuracy not known")
    why.append(f"{entry.parameters:,} parameters")
    return Choice(entry, own, "; ".join(why))


NODES = 2_000  # of the search tree, for one answer of the solver


@dataclass(frozen=True)
class Part:
    """What the search knows of a component. `loss` is the share of wrong answers, in thousandths."""

    name: str
    classes: tuple[str, ...]
    loss: int
    parameters: int
    flops: int


class StoppedError(Exception):
    """The solver reached its limit before it had proved anything."""


def cover(
    parts: Sequence[Part],
    wanted: Sequence[str],
    *,
    max_parameters: int | None = None,
    max_flops: int | None = None,
    nodes: int = NODES,
) -> list[Part]:
    """Find the best parts that have each wanted class exactly once, and no other class twice.

    Best means: fewest classes that are not wanted, then fewest parts, then the smallest loss (summed over the wanted
    classes), then fewest parameters, then fewest FLOPs, then the first in the alphabet (their sorted names are compared
    one by one). Each of these is solved for in turn, with the totals found before as limits. Limits count sums.

    Returns:
        The parts, in the order of the wanted classes; none where there is no choice.

    Raises:
        StoppedError: The solver opened `nodes` nodes of its search tree for one answer without a proof.

    Example:
        >>> from brickyard.yard._choose import Part, cover
        >>> parts = [Part("ab", ("a", "b"), 20, 9, 9), Part("b", ("b",), 0, 5, 5), Part("a", ("a",), 0, 5, 5)]
        >>> [part.name for part in cover(parts, ["a", "b"])]
        ['ab']
        >>> [part.name for part in cover(parts, ["a", "b"], max_parameters=8)]
        []
    """
    candidates = _candidates(parts, wanted, limited=max_parameters is not None or max_flops is not None)
    if not set(wanted) <= {name for part, _ in candidates for name in part.classes}:
        return []
    program = _Program([part.classes for part, _ in candidates], wanted, nodes)
    costs = [list(values) for values in zip(*(costs for _, costs in candidates), strict=True)]
    for values, limit in ((costs[3], max_parameters), (costs[4], max_flops)):
        if limit is not None:
            program.limit(values, limit)
    found: list[int] = []
    for values in costs:
        best = program.solve(values)
        if best is None:
            return []
        found = best
        program.limit(values, sum(values[k] for k in found))
    place = {name: k for k, name in enumerate(wanted)}
    chosen = [candidates[k][0] for k in program.first(found)]
    return sorted(chosen, key=lambda part: min(place[name] for name in part.classes if name in place))


def _candidates(parts: Sequence[Part], wanted: Sequence[str], limited: bool) -> list[tuple[Part, tuple[int, ...]]]:
    """Parts that may be in the best cover, by name, with what each adds: other classes, parts, loss, both sizes.

    Of those with the same classes: without limits the best, with limits all that no other beats in everything.
    """
    asked = set(wanted)
    groups: dict[frozenset[str], list[tuple[Part, tuple[int, ...]]]] = {}
    for part in sorted(parts, key=lambda part: (part.loss, part.parameters, part.flops, part.name)):
        classes = frozenset(part.classes)
        own = len(classes & asked)
        if len(classes) < len(part.classes) or not own:
            continue
        costs = (len(classes) - own, 1, part.loss * own, part.parameters, part.flops)
        group = groups.setdefault(classes, [])
        if not any(not limited or all(a <= b for a, b in zip(other, costs, strict=True)) for _, other in group):
            group.append((part, costs))
    return sorted((found for group in groups.values() for found in group), key=lambda found: found[0].name)


class _Program:
    """Exact cover as an integer program: a variable of 0 or 1 for each candidate, a row for each class."""

    def __init__(self, classes: Sequence[tuple[str, ...]], wanted: Sequence[str], nodes: int) -> None:
        import numpy as np
        from scipy.sparse import csr_array

        self.count, self.nodes = len(classes), nodes
        rows = {name: k for k, name in enumerate(wanted)}
        pairs = [(rows.setdefault(name, len(rows)), k) for k, names in enumerate(classes) for name in names]
        matrix = csr_array((np.ones(len(pairs)), np.array(pairs).T), (len(rows), self.count))
        least = np.arange(len(rows)) < len(wanted)  # each wanted class once, each other at most once
        self.constraints: list[Any] = [(matrix, least, 1)]
        self.limits: list[tuple[list[int], int]] = []

    def limit(self, values: list[int], most: int) -> None:
        """Let the chosen values add up to no more than this."""
        self.limits.append((values, most))
        scale = _scale(values)
        self.constraints.append(([value / scale for value in values], -float("inf"), most / scale))

    def _some(self, indices: Iterable[int], least: float, most: float) -> tuple[Any, float, float]:
        """A constraint: between so many of these are chosen."""
        chosen = set(indices)
        return [float(k in chosen) for k in range(self.count)], least, most

    def solve(self, values: Sequence[int], *more: Any) -> list[int] | None:
        """The cover with the smallest sum of values; None where there is none."""
        from scipy.optimize import milp

        options = {"node_limit": self.nodes, "mip_rel_gap": 0}
        scale = _scale(values)
        costs = [value / scale for value in values]
        while True:
            constraints = [*self.constraints, *more]
            result = milp(costs, integrality=1, bounds=(0, 1), constraints=constraints, options=options)
            if result.status == 2:
                return None
            if result.status:
                raise StoppedError(result.message)
            found = [k for k, value in enumerate(result.x) if value > 0.5]
            if all(sum(values[k] for k in found) <= most for values, most in self.limits):
                return found
            # Floating point took large numbers for small enough; this is no cover, and the search goes on without it.
            self.constraints.append(self._some(found, 0, len(found) - 1))

    def first(self, found: list[int]) -> list[int]:
        """Of all covers within the limits, the one whose candidates come first; all have as many as `found`."""
        if self.solve(range(self.count), self._some(found, 0, len(found) - 1)) is None:
            return found  # there is no other
        place = 0
        while place < len(found):
            before = found[:place]
            earlier = self._some(set(range(found[place])).difference(before), 1, place + len(found))
            better = self.solve(range(self.count), self._some(before, place, place), earlier)
            place, found = (place + 1, found) if better is None else (place, better)
        return found


def _scale(values: Sequence[int]) -> float:
    """What to divide values by so that the solver, which allows for errors of 1e-6, still tells them apart."""
    return max(1, max(values) / 1e6)
