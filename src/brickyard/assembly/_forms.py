"""Forms of an assembly: components run as one joined network, or one after the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from brickyard.assembly._assembly import Assembly
from brickyard.assembly._common import shared
from brickyard.axes._atoms import Purse
from brickyard.axes._graph import Graph, analyse, trace
from brickyard.base._errors import BrickyardError, SurgeryError
from brickyard.base._messages import told
from brickyard.base._records import AssemblyManifest
from brickyard.component._component import Component
from brickyard.network._cost_limit import Bounds
from brickyard.network._identity import fingerprint, source_of, weights_like
from brickyard.network._network import Network
from brickyard.runtime._profiling import count_parameters, measure_latency
from brickyard.surgery._groups import join_as_groups
from brickyard.surgery._join import join
from brickyard.surgery._pairs import alike, has_pairs
from brickyard.surgery._plan import Part
from brickyard.surgery._union import overlay

BATCHES = (1, 32)  # images at once at which forms are timed
MARGIN = 0.95  # another form than parallel must take less than this share of its time


def formed(parts: Sequence[Component], manifest: AssemblyManifest, source: nn.Module | None = None) -> Assembly:
    """Build the assembly in the form that its manifest names."""
    skeletons = [part.skeleton for part in parts]
    if manifest.form == "parallel":
        known = [part.familiarity for part in parts]
        networks, sharing, manifest = shared([part.network for part in parts], manifest)
        return Assembly(networks, manifest, skeletons=skeletons, familiarity=known, sharing=sharing)
    try:
        return _joined(parts, manifest, source)
    except BrickyardError:
        raise
    except Exception as error:  # parts from files may tell of structures that are not theirs, in any way
        why = f"form={manifest.form!r} is not possible, because a part does not match the source structure it records"
        raise SurgeryError("surgery-structure-mismatch", f"{why}: {told(error)}; use form='parallel'") from error


def _joined(parts: Sequence[Component], manifest: AssemblyManifest, source: nn.Module | None) -> Assembly:
    """Build an assembly whose parts are joined into one network."""
    skeletons = [part.skeleton for part in parts]
    cut_so = [has_pairs(part.manifest) for part in parts]
    blueprints, multiplied = alike([_blueprint(part) for part in parts], cut_so, none=manifest.form == "union")
    factors = (f"the factors of {multiplied} layers, which not all parts have, were multiplied out",) * bool(multiplied)
    if manifest.form == "union":
        network, notes = _union(parts, blueprints, source)
        manifest = manifest.model_copy(update={"shared_input": True, "notes": (*factors, *notes)})
        network.to(weights_like(parts[0].network).dtype)
        return Assembly([network], manifest, skeletons=skeletons)
    if len({part.manifest.input_shape for part in parts}) > 1:
        why = f"{manifest.form} parts must take images of the same size"
        raise SurgeryError("surgery-input-mismatch", f"{why}; use form='parallel'")
    types = {weights_like(part.network).dtype: ", ".join(part.classes[:3]) for part in parts}
    if len(types) > 1:
        found = " and ".join(f"{str(kind).removeprefix('torch.')} ({names})" for kind, names in types.items())
        why = f"{manifest.form} parts must have weights of the same type, got {found}"
        raise SurgeryError("surgery-input-mismatch", f"{why}; convert them with .float(), or use form='parallel'")
    graph = blueprints[0].graph
    image = next(axis for axis in graph.axes if axis.writers == (graph.network.nodes[0].name,))
    shared = len({part.preprocessing for part in manifest.parts}) == 1 and not image.followers
    if manifest.form == "grouped":
        network, notes = join_as_groups(blueprints, shared_input=shared)
    else:
        network, notes = join(blueprints, shared_input=shared), ()
    manifest = manifest.model_copy(update={"shared_input": shared, "notes": (*factors, *notes)})
    made = Assembly([network], manifest, skeletons=skeletons)
    _check_equal(made, formed(parts, manifest.model_copy(update={"form": "parallel"})))
    return made


def quickest(parts: Sequence[Component], manifest: AssemblyManifest) -> Assembly:
    """Build the assembly in the fastest of the equivalent forms, as measured on this machine.

    Each form is timed on one image and on a batch; parallel is kept unless another is clearly faster.
    """
    made: dict[str, Assembly] = {}
    for form in ("parallel", "padded", "grouped"):
        with contextlib.suppress(SurgeryError):  # parallel is always there
            made[form] = formed(parts, manifest.model_copy(update={"form": form}))
    shares = dict.fromkeys(made, 0.0)  # logarithms of times
    for batch in BATCHES if len(made) > 1 else ():
        images = torch.rand(batch, *manifest.parts[0].input_shape, generator=torch.Generator().manual_seed(0))
        times = measure_latency({form: partial(assembly, images) for form, assembly in made.items()}, batch=batch)
        for form in made:
            shares[form] += math.log(times[form].median_ms / times["parallel"].median_ms) / len(BATCHES)
    best = min(made, key=lambda form: shares[form])
    if shares[best] > math.log(MARGIN):
        best = "parallel"
    note = f"form='auto': {best} is the fastest of {', '.join(made)} here"
    if best != "parallel":
        note += f", {math.exp(shares[best]):.2f} of parallel's time"
    return made[best].with_manifest(notes=(*made[best].manifest.notes, note))


def _union(
    parts: Sequence[Component], blueprints: Sequence[Part], source: nn.Module | None
) -> tuple[Network, tuple[str, ...]]:
    if len({(part.manifest.source.sha256, part.manifest.output) for part in parts}) > 1:
        names = ", ".join(dict.fromkeys(part.manifest.source.name for part in parts))
        why = f"form='union' needs parts of one source, located on one of its outputs, got {names}"
        raise SurgeryError("surgery-union-sources", f"{why}; use form='parallel'")
    for manifest in (part.manifest for part in parts):
        if manifest.selection.of == "component":
            raise SurgeryError(
                "surgery-union-sources",
                f"form='union' lays channels of one source over each other, and {', '.join(manifest.classes[:3])} was "
                "cut further as a component; use form='parallel'",
            )
        found = manifest.selection.budget or {}
        if found.get("rotated") or found.get("norms"):
            what = "directions of its residual stream in their place" if found.get("rotated") else "norms of its own"
            raise SurgeryError(
                "surgery-union-sources",
                f"form='union' lays channels of one source over each other, and {', '.join(manifest.classes[:3])} has "
                f"{what}; cut it with rotate=False, or use form='parallel'",
            )
    network, notes = overlay(blueprints, None if source is None else _source_graph(parts, source))
    changed: list[str] = [p.manifest.heal.method for p in parts if p.manifest.heal.method != "none"]
    changed += ["training" for p in parts if p.manifest.tuned is not None]
    if source is not None and changed:
        notes = (*notes, f"the parts' {changed[0]} was dropped: the union has the source's own weights")
    return network, notes


def _blueprint(part: Component) -> Part:
    """Express a component as a cut of its source's structure, which is rebuilt without weights."""
    if part.skeleton is None:
        why = f"the component of {part.manifest.source.name!r} does not record its source's structure"
        why += ": it is fused, or has operations that cannot be stored as data"
        raise SurgeryError("surgery-no-structure", f"{why}; use form='parallel', or fuse after assembling")
    structure = Network.from_spec(part.skeleton)
    Bounds(None).answers(structure, part.manifest.input_shape)
    graph = analyse(
        structure,
        torch.empty(2, *part.manifest.input_shape, device="meta"),
        purse=Purse(count_parameters(part.network)),
    )
    keep = {name: torch.tensor(axis.kept) for name, axis in part.manifest.axes.items()}
    if {axis.name: axis.size for axis in graph.axes} != {n: a.size for n, a in part.manifest.axes.items()}:
        why = f"the axes in the manifest of {part.manifest.source.name!r} do not match its structure"
        raise SurgeryError("surgery-structure-mismatch", why)
    return Part(graph, keep, part.network)


def _source_graph(parts: Sequence[Component], source: nn.Module) -> Graph:
    source = source_of(source)
    found = fingerprint(source)
    for part in parts:
        if part.manifest.source.sha256 != found:
            whose = f"the component for {', '.join(part.classes[:3])} was cut from {part.manifest.source.sha256[:12]}"
            why = f"form='union' got a source with weights {found[:12]}, but {whose}"
            raise SurgeryError("surgery-wrong-source", f"{why}; give its own source")
    like = next(source.parameters())
    example = torch.randn(2, *parts[0].manifest.input_shape, generator=torch.Generator().manual_seed(0))
    return trace(source, example.to(like.device, like.dtype), parts[0].manifest.output)


def _check_equal(joined: Assembly, parallel: Assembly) -> None:
    """Compare the joined and parallel outputs on random images, to detect misplaced weights."""
    shape = parallel.manifest.parts[0].input_shape
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = joined.side_by_side(images), parallel.side_by_side(images)
    if not torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())):
        why = f"the {joined.manifest.form} network differs from its parts by {float((a - b).abs().max()):.3g}"
        raise SurgeryError("surgery-check-failed", f"{why}; use form='parallel' and please report this architecture")
