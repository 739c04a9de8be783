"""Join components, from one or many sources, into one classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from brickyard.assembly import Assembly, shared_signals
from brickyard.component import Component
from brickyard.disassembling import made_with, today
from brickyard.errors import OptionError, TaskError
from brickyard.forming import formed, quickest
from brickyard.manifest import AssemblyManifest, ComponentManifest
from brickyard.options import Duplicates, Form, check_choice, check_kind, flag, seed_of, whole
from brickyard.scaling import Evidence, find, scale
from brickyard.steady import steady

__all__ = ["assemble", "assembly_manifest"]


@steady
def assemble(
    components: Sequence[Component],
    *,
    form: Form = "parallel",
    scaling: str = "none",
    images: Any = None,
    shots: int | None = None,
    on_duplicate: Duplicates = "error",
    votes: bool = False,
    source: nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> Assembly:
    """Join components into one classifier, without training.

    Args:
        components: The parts; each keeps its own preprocessing.
        form: "parallel": the parts run one after the other (any mix of architectures); "padded": one network
            with the parts side by side on every channel axis (one architecture: the paper's alignment
            padding); "grouped": the same with equal channel counts and groups in place of zeros, so that it
            multiplies nothing by zero; "union": one component with the union of the channels (one source);
            "auto": measured on the parts' device, whichever of the first three is fastest.
        scaling: How logits become comparable: a name in `brickyard.scaling.SCALINGS`.
        images: For few-shot scalings: a list with labelled images for each component (None where there are
            none), as for `locate`; labels are indices into that component's source's classes.
        shots: Use at most so many images a class, drawn with `seed`.
        on_duplicate: When two parts know a class of the same name: "error", "average" or "max" of their
            scaled logits, or "rename" the later ones.
        votes: A part that was cut with `reject=True` has its source's other outputs still. With this, they count where
            another part contributes a class of the same name: the class's logit is the mean of all that know it.
        source: The source of all parts, for form="union": fills in the weights between channels that only
            different parts keep.
        seed: Seed for drawing images.
        **options: Options of the scaling.

    Returns:
        The assembly, in evaluation mode.

    Raises:
        TaskError: Two parts know a class of the same name.
        SurgeryError: The parts cannot be joined in this form.
        OptionError: An option or scaling is not known, or lacks what it needs.
        DataError: The images cannot be used.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> source = chain()
        >>> relevance = by.locate(source, data)
        >>> parts = [by.disassemble(source, relevance, task=[k]) for k in (2, 0)]
        >>> by.assemble(parts, form="padded").classes
        ('2', '0')
    """
    check_choice("form", form, Form)
    check_choice("on_duplicate", on_duplicate, Duplicates)
    votes = flag("votes", votes)
    check_kind("source", source, nn.Module, "give the torch.nn.Module that the parts were cut from")
    seed, shots = seed_of(seed), None if shots is None else whole("shots", shots)
    if not isinstance(components, Iterable):
        raise OptionError(
            f"a list of components to assemble is needed; a {type(components).__name__} was given: put it in a list"
        )
    parts = list(components)
    if not parts or not all(isinstance(part, Component) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "nothing"
        raise OptionError(f"components to assemble are needed; {kinds} was given: make some with disassemble or load")
    strategy = find(scaling)
    manifest = assembly_manifest([part.manifest for part in parts], form, on_duplicate, votes)
    auto = form == "auto" and not strategy.gated
    assembly = quickest(parts, manifest) if auto else formed(parts, manifest, source)
    manifest = assembly.manifest
    evidence = Evidence(manifest)
    if strategy.few_shot and images is not None:
        seen = shared_signals(assembly, images, features=strategy.gated, shots=shots, seed=seed)
        evidence = seen.evidence(manifest)
    return assembly.with_scaling(*scale(scaling, evidence, options))


def assembly_manifest(
    parts: Sequence[ComponentManifest],
    form: Form = "parallel",
    on_duplicate: Duplicates = "error",
    votes: bool = False,
) -> AssemblyManifest:
    """What an assembly of these parts would be, before anything is joined; "auto" is parallel until it is measured.

    Raises:
        TaskError: Two parts know a class of the same name, or there is nothing to vote on.
    """
    classes, members, voting = _members(parts, on_duplicate, votes)
    return AssemblyManifest(
        classes=classes,
        members=members,
        on_duplicate=on_duplicate,
        votes=voting,
        parts=tuple(parts),
        form="parallel" if form == "auto" else form,
        versions=made_with(),
        created=today(),
    )


def _members(
    parts: Sequence[ComponentManifest], on_duplicate: Duplicates, votes: bool
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Class names; for each the places of its logits side by side; and what further classes each part votes on."""
    known = {name for part in parts for name in part.classes} if votes else set()
    voting = tuple(_votes(part, known) for part in parts)
    if votes and not any(voting):
        raise TaskError(
            "votes=True was asked for, and no part knows a class that another one contributes: cut the parts with "
            "reject=True from sources that name their classes alike, or leave votes out"
        )
    places: dict[str, list[int]] = {}
    first_owner: dict[str, str] = {}
    place = 0
    for index, (part, own_votes) in enumerate(zip(parts, voting, strict=True)):
        owner = f"part {index} ({part.source.name})"
        for name in part.classes:
            if name in places and on_duplicate == "error":
                raise TaskError(
                    f"class {name!r} is in {first_owner[name]} and in {owner}; leave it out of one, or choose "
                    "on_duplicate='average', 'max' or 'rename'"
                )
            if name in places and on_duplicate == "rename":
                name = _new_name(name, part.source.name, places)
            places.setdefault(name, []).append(place)
            first_owner.setdefault(name, owner)
            place += 1
        place += len(own_votes)
    place = 0
    for part, own_votes in zip(parts, voting, strict=True):
        place += len(part.classes)
        for k in own_votes:
            places[part.source.classes[k]].append(place)
            place += 1
    return tuple(places), tuple(map(tuple, places.values())), voting if any(voting) else ()


def _votes(part: ComponentManifest, known: set[str]) -> tuple[int, ...]:
    """Classes outside a part's task that other parts contribute and its source knows."""
    if not part.reject:
        return ()
    return tuple(k for k, name in enumerate(part.source.classes) if name in known and k not in part.task)


def _new_name(name: str, source: str, taken: dict[str, list[int]]) -> str:
    candidate, number = f"{name} ({source})", 2
    while candidate in taken:
        candidate, number = f"{name} ({source} {number})", number + 1
    return candidate
