"""Join components, from one or many sources, into one classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from brickyard.assembly import Assembly, shared_signals
from brickyard.component import Component
from brickyard.disassembling import made_with, today
from brickyard.errors import OptionError, SurgeryError, TaskError
from brickyard.graph import Graph, analyse
from brickyard.manifest import AssemblyManifest, ComponentManifest
from brickyard.network import Network
from brickyard.options import Duplicates, Form, check_choice
from brickyard.scaling import Evidence, find, scale
from brickyard.surgery import Part, join, overlay

__all__ = ["assemble"]


def assemble(
    components: Sequence[Component],
    *,
    form: Form = "auto",
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
            padding); "union": one component with the union of the channels (one source); "auto": parallel,
            which never multiplies by zero.
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
    parts = list(components)
    if not parts or not all(isinstance(part, Component) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "nothing"
        raise OptionError(f"components to assemble are needed; {kinds} was given: make some with disassemble or load")
    strategy = find(scaling)
    classes, members, voting = _members([part.manifest for part in parts], on_duplicate, votes)
    manifest = AssemblyManifest(
        classes=classes,
        members=members,
        on_duplicate=on_duplicate,
        votes=voting,
        parts=tuple(part.manifest for part in parts),
        form="parallel" if form == "auto" else form,
        versions=made_with(),
        created=today(),
    )
    assembly = _joined(parts, manifest, source)
    evidence = Evidence(manifest)
    if strategy.few_shot and images is not None:
        seen = shared_signals(assembly, images, features=strategy.gated, shots=shots, seed=seed)
        evidence = seen.evidence(manifest)
    return assembly.with_scaling(*scale(scaling, evidence, options))


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


# -- forms -------------------------------------------------------------------------------------------------


def _joined(parts: list[Component], manifest: AssemblyManifest, source: nn.Module | None) -> Assembly:
    skeletons = [part.skeleton for part in parts]
    if manifest.form == "parallel":
        known = [part.familiarity for part in parts]
        return Assembly([part.network for part in parts], manifest, skeletons=skeletons, familiarity=known)
    blueprints = [_blueprint(part) for part in parts]
    if manifest.form == "union":
        if len({part.manifest.source.sha256 for part in parts}) > 1:
            names = ", ".join(dict.fromkeys(part.manifest.source.name for part in parts))
            raise SurgeryError(f"form='union' needs parts of one source; these come from {names}: use form='parallel'")
        network, notes = overlay(blueprints, None if source is None else _source_graph(parts, source))
        healed = [p.manifest.heal.method for p in parts if p.manifest.heal.method != "none"]
        if source is not None and healed:
            notes = (*notes, f"the parts' {healed[0]} was dropped: the union has the source's own weights")
        shared = True
    else:
        shared = _can_share_input(manifest, blueprints[0].graph)
        if len({part.manifest.input_shape for part in parts}) > 1:
            raise SurgeryError("padded parts must take images of one size; use form='parallel'")
        network, notes = join(blueprints, shared_input=shared), ()
    made = Assembly(
        [network], manifest.model_copy(update={"shared_input": shared, "notes": notes}), skeletons=skeletons
    )
    if manifest.form == "padded":
        _check_equal(
            made,
            Assembly(
                [p.network for p in parts],
                manifest.model_copy(update={"form": "parallel"}),
                skeletons=skeletons,
            ),
        )
    return made


def _blueprint(part: Component) -> Part:
    """A component as a cut of its source's structure, which is rebuilt without numbers."""
    if part.skeleton is None:
        raise SurgeryError(
            f"the component of {part.manifest.source.name!r} has operations without a form as data, so its source's "
            "structure is not known; use form='parallel'"
        )
    like = torch.empty(2, *part.manifest.input_shape, device="meta")
    graph = analyse(Network.from_spec(part.skeleton), like)
    keep = {name: torch.tensor(axis.kept) for name, axis in part.manifest.axes.items()}
    if {axis.name: axis.size for axis in graph.axes} != {n: a.size for n, a in part.manifest.axes.items()}:
        raise SurgeryError(f"the axes in the manifest of {part.manifest.source.name!r} are not those of its structure")
    return Part(graph, keep, part.network)


def _source_graph(parts: Sequence[Component], source: nn.Module) -> Graph:
    from brickyard.graph import trace
    from brickyard.relevance import fingerprint

    found = fingerprint(source)
    for part in parts:
        if part.manifest.source.sha256 != found:
            raise SurgeryError(
                f"form='union' was asked for with a source of weights {found[:12]}; the component for "
                f"{', '.join(part.classes[:3])} was cut from {part.manifest.source.sha256[:12]}: give its own source"
            )
    like = next(source.parameters())
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, *parts[0].manifest.input_shape, generator=generator)
    return trace(source, example.to(like.device, like.dtype))


def _can_share_input(manifest: AssemblyManifest, graph: Graph) -> bool:
    image = next(axis for axis in graph.axes if axis.writers == (graph.network.nodes[0].name,))
    return len({part.preprocessing for part in manifest.parts}) == 1 and not image.followers


def _check_equal(padded: Assembly, parallel: Assembly) -> None:
    """Compare padded and parallel outputs on random images; a difference would be a wrong place."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *parallel.manifest.parts[0].input_shape, generator=generator)
    with torch.inference_mode():
        a, b = padded.side_by_side(images), parallel.side_by_side(images)
    if not torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())):
        raise SurgeryError(
            f"the padded network differs from its parts by {float((a - b).abs().max()):.3g}; use form='parallel' and "
            "please report this architecture"
        )
