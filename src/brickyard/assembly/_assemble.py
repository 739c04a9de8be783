"""Join components, from one or many sources, into one classifier."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack, overload

from torch import nn

from brickyard.assembly._assembly import Assembly
from brickyard.assembly._budget import within_budget
from brickyard.assembly._cascade import cascaded, check_cascade
from brickyard.assembly._detectors import check_detectors, scaling_of
from brickyard.assembly._forms import formed, quickest
from brickyard.assembly._labelled import shared_signals
from brickyard.assembly._merging import merged
from brickyard.base._checks import check_kind
from brickyard.base._classes import numbered
from brickyard.base._declare import declared, verb
from brickyard.base._doubts import doubts
from brickyard.base._errors import BrickyardWarning, OptionError, SurgeryError, TaskError
from brickyard.base._history import UsedRecord
from brickyard.base._messages import near
from brickyard.base._options import AssembleOptions, Duplicates, Form
from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.base._sides import NAMES
from brickyard.component._component import Component
from brickyard.component._disassemble import made_with, today
from brickyard.inputs._content import as_bytes
from brickyard.network._untouched import guarded
from brickyard.outputs._outputs import outputs_of
from brickyard.runtime._progress import step
from brickyard.scaling._scale import Evidence
from brickyard.scaling._strategies import Scaling, find, scale


@overload
def assemble(components: Sequence[Component | Assembly], **options: Unpack[AssembleOptions]) -> Assembly: ...
@overload
def assemble(components: Sequence[Component | Assembly], **options: Any) -> Assembly: ...
@guarded
@verb(AssembleOptions, more=True)
def assemble(components: Sequence[Component | Assembly], **options: Any) -> Assembly:
    """Join components into one classifier, without training.

    Args:
        components: The parts; each keeps its own preprocessing. An assembly in parallel form is replaced by its parts.
        **options: Options of the scaling.

    Forms: "parallel": run the parts one after the other (any mix of architectures); "padded": one network with the
    parts side by side on every channel axis (one architecture; the paper's alignment padding); "grouped": the same,
    with equal channel counts and groups instead of zeros, so that nothing is multiplied by zero; "union": one component
    with the union of the channels (one source); "cascade": run the parts in turn, and later ones only for images whose
    answer is still open (thresholds from `calibration`, which needs no labels); "merged": the leading layers of parts
    that were trained from one ancestor become one, as far as each part still answers its images in `calibration` as
    before, and the rest of each runs by itself; "auto": the fastest of the first three,
    measured on the parts' device.

    With a budget, the parts are cut further, each by what the whole classifier loses; those given stay unchanged.

    A class that is left out stays in its part, so the logits of all other classes do not change by a bit. A part with
    no class left is dropped.

    Returns:
        The assembly, in evaluation mode.

    Raises:
        TaskError: Two parts share a class name, a class to leave out or to rename does not exist, or no class is left.
        SurgeryError: The parts cannot be joined in this form.
        OptionError: An option or scaling is unknown, or required input is missing.
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
        >>> deployed = by.assemble(parts)
        >>> more = by.assemble([deployed, by.disassemble(source, relevance, task=[1])], without=["2"])
        >>> more.classes, torch.equal(more(data[0])[:, 0], deployed(data[0])[:, 1])
        (('0', '1'), True)
    """
    form, scaling, images, source = options["form"], options["scaling"], options["images"], options["source"]
    without, on_duplicate, votes = options["without"], options["on_duplicate"], options["votes"]
    if votes is None and (scaling != "auto" or form == "cascade"):
        votes = False  # other scalings do not ask for them, and parts that vote cannot run in turn
    check_kind("source", source, nn.Module, "give the torch.nn.Module that the parts were cut from")
    if not isinstance(components, Iterable):
        raise OptionError(
            "option-type", f"assemble needs a list of components, got {type(components).__name__}; put it in a list"
        )
    parts, gone = _opened(components)
    boxed = any(part.manifest.boxes is not None for part in parts)
    if boxed:
        check_detectors(options)
        form, scaling = "parallel", "none"
    scaling = _with_images(parts, form) if scaling == "auto" and images is not None else scaling
    parts = _same(parts, options["same"] or {})
    strategy = find(scaling, images)
    step(f"assemble: {len(parts)} parts in form {form}, scaling {strategy.name}")
    _check_calibration(options, strategy)
    if isinstance(without, str):
        raise OptionError("option-type", f"without must be a list of class names, got {without!r}; put it in a list")
    manifest = assembly_manifest([part.manifest for part in parts], form, on_duplicate, votes, gone)
    if without:
        parts, gone = _left(parts, manifest, without)
        manifest = assembly_manifest([part.manifest for part in parts], form, on_duplicate, votes, gone)
    if form == "cascade":
        check_cascade(manifest, outputs_of(manifest).exclusive)
    if options["budget"] is not None:
        parts, manifest = within_budget(parts, manifest, options)
    if form == "merged":
        parts, record = merged(parts, options["calibration"], options["agreement"], options["seed"])
        manifest = manifest.model_copy(update={"parts": tuple(part.manifest for part in parts), "merged": record})
    auto = form == "auto" and not strategy.gated
    assembly = quickest(parts, manifest) if auto else formed(parts, manifest, source)
    manifest = assembly.manifest
    step(f"assemble: {len(manifest.classes)} classes in form {manifest.form}; scaling: {strategy.name}")
    evidence = Evidence(manifest, inside=form in ("parallel", "cascade", "merged") and bool(assembly.depths))
    more = {key: options[key] for key in options if key not in declared(AssembleOptions)}
    if images is not None:
        assembly, evidence = _shown(assembly, evidence, options, strategy)
    assembly = assembly.with_scaling(*scale(scaling, evidence, more))
    if boxed and options["scaling"] == "auto":
        assembly = assembly.with_manifest(scaling=scaling_of(parts))
    if doubted := doubts(assembly.manifest):
        warnings.warn("; ".join(doubted), BrickyardWarning, stacklevel=4)
    if form == "cascade":
        return cascaded(assembly, options["calibration"], options["agreement"], options["seed"])
    return assembly


def _shown(
    assembly: Assembly, evidence: Evidence, options: Mapping[str, Any], strategy: Scaling
) -> tuple[Assembly, Evidence]:
    """The assembly that has been shown labelled images, and what a scaling can be fitted to."""
    begun = assembly.with_scaling(*scale("auto", evidence, {}))
    asked = {"features": strategy.gated, "shots": options["shots"], "seed": options["seed"]}
    seen = shared_signals(begun, options["images"], **asked)
    used = UsedRecord.of(as_bytes(seen.marks(begun.manifest.parts))).joined(assembly.manifest.used)
    return assembly.with_manifest(used=used), seen.evidence(begun.manifest)


def _check_calibration(options: Mapping[str, Any], strategy: Scaling) -> None:
    """Refuse options that do not go with a form that needs images, or go with nothing else."""
    form, limited = options["form"], options["budget"] is not None
    judged = form in ("cascade", "merged")
    idle = [name for name in ("calibration", "agreement") if options[name] is not None and not judged]
    idle = [name for name in idle if name == "agreement" or not limited]
    if idle:
        use = "form='cascade', 'merged'" + (" or a budget" if idle[0] == "calibration" else "")
        why = f"{idle[0]}= is for {use}, and this is form={form!r}"
        raise OptionError("option-without-effect", f"{why}; leave it out, or choose that form")
    if not judged:
        return
    if limited:
        why = f"form={form!r} and a budget each take images of their own from calibration="
        order = "form='merged' first, then assemble([that], budget=..., calibration=...)"
        if form == "cascade":
            order = "the budget first, then assemble([that], form='cascade', calibration=...)"
        raise OptionError("option-conflict", f"{why}; assemble with {order}")
    if form == "merged":
        return
    if options["calibration"] is None:
        why = "form='cascade' takes from images when an answer is sure enough, and has none"
        advice = "give calibration=, images without labels of the kind and in the shares that the assembly will see"
        raise OptionError("option-needs-data", f"{why}; {advice}")
    if strategy.gated:
        why = f"scaling={strategy.name!r} reads the features of all parts, and a cascade runs without some"
        raise OptionError("option-needs-parallel-form", f"{why}; choose scaling='auto' or 'affine', or form='parallel'")


def _with_images(parts: Sequence[Component], form: Form) -> str:
    """The scaling that is best where there are labelled images."""
    if form == "cascade":
        return "affine"
    apart = form in ("parallel", "merged", "auto") and all(part.familiarity is not None for part in parts)
    return "lda" if apart else "joint-head"


def _opened(components: Sequence[Component | Assembly]) -> tuple[list[Component], list[tuple[int, ...]]]:
    """The components, including those inside assemblies, and the classes that each does not contribute."""
    parts: list[Component] = []
    gone: list[tuple[int, ...]] = []
    for item in components:
        if isinstance(item, Component):
            parts.append(item)
            gone.append(())
        elif isinstance(item, Assembly) and item.manifest.apart:
            parts += item.components()
            gone += item.manifest.left_out or ((),) * len(item.manifest.parts)
        elif isinstance(item, Assembly):
            why = f"got an assembly in {item.manifest.form} form, whose parts can no longer be separated"
            advice = "give its components, or an assembly in parallel form"
            raise OptionError("option-needs-parallel-form", f"{why}; {advice}")
        else:
            raise OptionError(
                "option-wrong-object", f"assemble needs components, got {type(item).__name__}; create or load some"
            )
    if not parts:
        raise OptionError("option-empty", "assemble needs components, got none; create some, or load them")
    kinds = sorted({NAMES[len(part.manifest.input_shape) - 1] for part in parts})
    if len(kinds) > 1:
        why = f"all parts must take inputs of one kind, and these take {' and '.join(kinds)}"
        raise SurgeryError("surgery-input-mismatch", f"{why}; assemble those of one kind")
    return parts, gone


def _same(parts: list[Component], names: Mapping[str, str]) -> list[Component]:
    """The parts, whose classes have other names where these are given."""
    known = list(dict.fromkeys(name for part in parts for name in part.classes))
    if unknown := [name for name in names if name not in known]:
        found = f"same= renames class {unknown[0]!r}, which no part has; classes: {', '.join(known[:8])}"
        raise TaskError("task-unknown-class", f"{found}{near(unknown[0], known)}: give one of them")
    return [
        part.renamed(own) if (own := {old: new for old, new in names.items() if old in part.classes}) else part
        for part in parts
    ]


def _left(
    parts: Sequence[Component], manifest: AssemblyManifest, names: Sequence[str]
) -> tuple[list[Component], list[tuple[int, ...]]]:
    """The parts that keep a class once these are left out too, and the classes that each does not contribute."""
    gone = [list(out) for out in manifest.left_out or ((),) * len(manifest.parts)]
    tasks = manifest.tasks
    places = [(part, place) for part, columns in enumerate(manifest.columns) for place in range(len(columns))]
    for name in dict.fromkeys(names):
        if name not in manifest.classes:
            found = f"class {name!r} was to be left out; classes: {', '.join(manifest.classes[:8])}"
            raise TaskError("task-unknown-class", f"{found}: give one of them")
        for member in manifest.members[manifest.classes.index(name)]:
            part, place = places[member]
            if place < len(tasks[part]):
                gone[part].append(tasks[part][place])
    left = [(part, tuple(out)) for part, out in zip(parts, gone, strict=True) if len(out) < len(part.classes)]
    if not left:
        raise TaskError("task-empty", f"without {', '.join(names)} no class is left; leave some in")
    return [part for part, _ in left], [out for _, out in left]


def assembly_manifest(
    parts: Sequence[ComponentManifest],
    form: Form = "parallel",
    on_duplicate: Duplicates = "error",
    votes: bool | None = False,
    left_out: Sequence[tuple[int, ...]] = (),
) -> AssemblyManifest:
    """The manifest of an assembly of these parts, before they are joined; parallel until another form is measured.

    With `votes=None`, parts vote where they can.
    """
    kinds = list(dict.fromkeys(part.outputs for part in parts))
    if len(kinds) > 1:
        found = ", ".join(map(repr, kinds))
        raise OptionError("option-conflict", f"outputs of kinds {found} cannot be joined; assemble parts of one kind")
    gone = tuple(left_out) if any(left_out) else ()
    tasks = [
        [k for k in part.leads if k not in out] for part, out in zip(parts, gone or [()] * len(parts), strict=True)
    ]
    classes, members, voting = _members(parts, tasks, on_duplicate, votes)
    manifest = AssemblyManifest(
        classes=classes,
        members=members,
        on_duplicate=on_duplicate,
        votes=voting,
        left_out=gone,
        parts=tuple(parts),
        form="parallel" if form == "auto" or form == "cascade" or form == "merged" else form,
        versions=made_with(),
        created=today(),
    )
    outputs_of(manifest)  # refuses what does not fit together
    return manifest.model_copy(update={"reject": manifest.rejectable})


def _members(
    parts: Sequence[ComponentManifest], tasks: Sequence[Sequence[int]], on_duplicate: Duplicates, votes: bool | None
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Class names, the positions of each one's logits, and the additional classes on which each part votes."""
    named = [list(map(part.names.__getitem__, task)) for part, task in zip(parts, tasks, strict=True)]
    voting = _voting(parts, named, votes)
    if votes and not any(voting):
        why = "votes=True needs a part that knows a class of another part, and there is none"
        advice = "cut the parts with reject=True from sources with matching class names, or omit votes"
        raise TaskError("task-no-votes", f"{why}; {advice}")
    places: dict[str, list[int]] = {}
    first_owner: dict[str, str] = {}
    votes_at: list[tuple[str, int]] = []  # the class and the place of each vote
    place = 0
    for index, (part, names, own_votes) in enumerate(zip(parts, named, voting, strict=True)):
        owner = f"part {index} ({part.source.name})"
        for name in names:
            if name in places and on_duplicate == "error":
                why = f"class {name!r} is in both {first_owner[name]} and {owner}"
                advice = "leave it out of one, or choose on_duplicate='average', 'max' or 'rename'"
                raise TaskError("task-class-in-two-parts", f"{why}; {advice}")
            if name in places and on_duplicate == "rename":
                name = _new_name(name, part.source.name, places)
            places.setdefault(name, []).append(place)
            first_owner.setdefault(name, owner)
            place += 1
        votes_at += [(part.source.classes[k], place + turn) for turn, k in enumerate(own_votes)]
        place += len(own_votes)
    for name, place in votes_at:
        places[name].append(place)
    return tuple(places), tuple(map(tuple, places.values())), voting if any(voting) else ()


def _voting(
    parts: Sequence[ComponentManifest], named: Sequence[Sequence[str]], votes: bool | None
) -> tuple[tuple[int, ...], ...]:
    """For each part, the additional classes on which it votes; with `votes=None`, only where all can vote on all.

    Then class numbers that stand for names are not taken for such, unless the source is the same.
    """
    none = ((),) * len(parts)
    if votes is False:
        return none
    known = {name for names in named for name in names}
    voting = tuple(_votes(part, known) for part in parts)
    if votes:
        return voting
    one = len({part.source.sha256 for part in parts}) == 1
    trusted = one or not any(numbered(part.source.classes) for part in parts)
    able = all(part.reject and known <= set(part.source.classes) for part in parts)
    return voting if trusted and able else none


def _votes(part: ComponentManifest, known: set[str]) -> tuple[int, ...]:
    """Classes outside a part's task that its source knows and other parts contribute."""
    if not part.reject:
        return ()
    return tuple(k for k, name in enumerate(part.source.classes) if name in known and k not in part.task)


def _new_name(name: str, source: str, taken: dict[str, list[int]]) -> str:
    candidate, number = f"{name} ({source})", 2
    while candidate in taken:
        candidate, number = f"{name} ({source} {number})", number + 1
    return candidate
