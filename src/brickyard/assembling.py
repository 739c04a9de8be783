"""Join components, from one or many sources, into one classifier."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickyard._version import __version__
from brickyard.component import Component
from brickyard.disassembling import today
from brickyard.errors import DataError, OptionError, SurgeryError, TaskError
from brickyard.graph import Graph, analyse
from brickyard.images import Images
from brickyard.manifest import AssemblyManifest, ComponentManifest, NetworkSpec, Versions
from brickyard.network import Network
from brickyard.options import Duplicates, Form, check_choice
from brickyard.predicting import Predictor, run_images
from brickyard.preprocessing import preprocess
from brickyard.scaling import Evidence, Scale, find, scale
from brickyard.surgery import Part, join, overlay

__all__ = ["Assembly", "assemble", "shared_logits"]


class Assembly(Predictor):
    """One classifier made of components; made by `assemble` or `load`.

    It takes raw images, uint8 or in [0, 1], and applies each component's own preprocessing.

    Attributes:
        manifest: What it is, with the manifests of its parts.
        matrix: The scaling's linear map on the parts' logits, (logits, logits), or None.
        shift: Its shift, (logits,), or None.
        skeletons: The sources' networks as data, one a part.

    Shapes:
        (batch, channels, height, width) -> (batch, classes)

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> relevance = by.locate(chain(), (images, labels))
        >>> whole = by.assemble([by.disassemble(chain(), relevance, task=[k]) for k in (3, 1)])
        >>> isinstance(whole, by.Assembly), whole(images).shape
        (True, torch.Size([8, 2]))
    """

    matrix: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        networks: Sequence[Network],
        manifest: AssemblyManifest,
        matrix: Tensor | None = None,
        shift: Tensor | None = None,
        skeletons: Sequence[NetworkSpec | None] = (),
    ) -> None:
        super().__init__()
        if manifest.form == "parallel":
            self.parts = nn.ModuleList(map(Component, networks, manifest.parts, skeletons))
            self.heads = nn.ModuleList()
        else:
            self.joined = networks[0]
            self.heads = nn.ModuleList(Component(_Nothing(), part) for part in manifest.parts)
        self.manifest = manifest
        self.skeletons = tuple(skeletons)
        count = sum(len(part.classes) for part in manifest.parts)
        if matrix is not None and (
            tuple(matrix.shape) != (count, count) or shift is None or tuple(shift.shape) != (count,)
        ):
            raise SurgeryError(f"a scaling of shape {tuple(matrix.shape)} does not fit {count} logits")
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)
        self._plain = all(member == (place,) for place, member in enumerate(manifest.members))
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        return self.manifest.classes

    @property
    def reject(self) -> bool:
        """An assembly answers with one of its classes."""
        return False

    def networks(self) -> list[Network]:
        """The networks that hold the numbers: one a part, or one in all."""
        if self.manifest.form == "parallel":
            return [part.network for part in self.components()]
        return [self.joined]

    def components(self) -> Iterator[Component]:
        """The parts, in parallel form."""
        for part in self.parts:
            assert isinstance(part, Component)
            yield part

    def part_outputs(self, images: Tensor) -> list[Tensor]:
        """Each part's own outputs, reject included: one (batch, outputs) a part."""
        if self.manifest.form == "parallel":
            return [part._logits(images) for part in self.components()]
        like = next(self.joined.parameters())
        if self.manifest.shared_input:
            x = preprocess(images, self.manifest.parts[0].preprocessing)
        else:
            x = torch.cat([preprocess(images, part.preprocessing) for part in self.manifest.parts], 1)
        outputs = self.joined(x.to(like.device, like.dtype)).split([part.width for part in self.manifest.parts], 1)
        return [head.head(z) for head, z in zip(self.heads, outputs, strict=True)]  # type: ignore[operator]

    def side_by_side(self, images: Tensor) -> Tensor:
        """The parts' class logits before scaling, (batch, logits)."""
        found: list[Tensor] = []
        for part, z in zip(self.manifest.parts, self.part_outputs(images), strict=True):
            z = z.log_softmax(1) if self.manifest.scaling.log_probability else z
            found.append(z[:, : len(part.classes)])
        return torch.cat(found, 1)

    def scaled(self, logits: Tensor) -> Tensor:
        """Side-by-side logits -> the assembly's outputs: scaling, then classes that several parts know."""
        if self.matrix is not None and self.shift is not None:
            logits = logits @ self.matrix.T.to(logits.dtype) + self.shift.to(logits.dtype)
        if self._plain:
            return logits
        columns = [logits[:, list(member)] for member in self.manifest.members]
        if self.manifest.on_duplicate == "max":
            return torch.stack([column.amax(1) for column in columns], 1)
        return torch.stack([column.mean(1) for column in columns], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Raw images -> logits of all classes."""
        return self.scaled(self.side_by_side(images))

    _logits = forward

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the assembly to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        from brickyard.files import save_assembly

        return save_assembly(self, Path(path), overwrite=overwrite)

    def __str__(self) -> str:
        m = self.manifest
        total = sum(p.selection.parameters for p in m.parts)
        lines = [
            f"assembly of {len(m.parts)} components, {len(m.classes)} classes",
            f"  form         {m.form}",
            f"  scaling      {m.scaling.name}" + (f", {m.scaling.images} images" if m.scaling.images else ""),
            f"  parameters   {total:,} in the parts",
        ]
        lines += [
            f"  part {i}       {', '.join(p.classes[:6])}{' ...' if len(p.classes) > 6 else ''}  of {p.source.name}"
            for i, p in enumerate(m.parts)
        ]
        lines += [f"  note         {note}" for note in (*m.notes, *m.scaling.notes)]
        return "\n".join(lines)


class _Nothing(Network):
    """Stands in for the network of a part whose numbers are in the joined network."""

    def __init__(self) -> None:
        from brickyard.network import Node, Ref

        super().__init__([Node("x", "input"), Node("output", "output", "", (Ref("x"),))], {})


def assemble(
    components: Sequence[Component],
    *,
    form: Form = "auto",
    scaling: str = "none",
    images: Any = None,
    shots: int | None = None,
    on_duplicate: Duplicates = "error",
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
    classes, members = _members([part.manifest for part in parts], on_duplicate)
    manifest = AssemblyManifest(
        classes=classes,
        members=members,
        on_duplicate=on_duplicate,
        parts=tuple(part.manifest for part in parts),
        form="parallel" if form == "auto" else form,
        versions=Versions(brickyard=__version__, torch=torch.__version__, python=platform.python_version()),
        created=today(),
    )
    assembly = _joined(parts, manifest, source)
    evidence = Evidence(manifest.parts)
    if strategy.few_shot and images is not None:
        _, _, logits, targets = shared_logits(assembly, images, shots=shots, seed=seed)
        evidence = Evidence(manifest.parts, logits, targets)
    fitted, record = scale(scaling, evidence, options)
    return _scaled(assembly, fitted, assembly.manifest.model_copy(update={"scaling": record}))


def _scaled(assembly: Assembly, fitted: Scale, manifest: AssemblyManifest) -> Assembly:
    return Assembly(assembly.networks(), manifest, fitted.matrix, fitted.shift, assembly.skeletons)


def _members(
    parts: Sequence[ComponentManifest], on_duplicate: Duplicates
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Class names, and for each the places of its logits side by side."""
    places: dict[str, list[int]] = {}
    first_owner: dict[str, str] = {}
    place = 0
    for index, part in enumerate(parts):
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
    return tuple(places), tuple(map(tuple, places.values()))


def _new_name(name: str, source: str, taken: dict[str, list[int]]) -> str:
    candidate, number = f"{name} ({source})", 2
    while candidate in taken:
        candidate, number = f"{name} ({source} {number})", number + 1
    return candidate


# -- forms -------------------------------------------------------------------------------------------------


def _joined(parts: list[Component], manifest: AssemblyManifest, source: nn.Module | None) -> Assembly:
    skeletons = [part.skeleton for part in parts]
    if manifest.form == "parallel":
        return Assembly([part.network for part in parts], manifest, skeletons=skeletons)
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


# -- labelled images of several parts ----------------------------------------------------------------------


def shared_logits(
    assembly: Assembly, images: Any, *, shots: int | None = None, seed: int = 0, batch_size: int = 64
) -> tuple[list[int], list[int], Tensor, Tensor]:
    """Run labelled images of every part through all parts.

    Args:
        assembly: The assembly.
        images: A list with one entry a part: labelled images whose labels index the part's source's classes,
            or None. Images of classes outside the part's task are left out.
        shots: At most so many images a class.
        seed: Seed for drawing them.
        batch_size: Images at once.

    Returns:
        For each image: its part, its label in the part's source, the side-by-side logits (images, logits) in
        float64, and the place of the right logit.
    """
    parts = assembly.manifest.parts
    if not isinstance(images, list | tuple) or len(images) != len(parts):
        raise DataError(
            f"labelled images for each of the {len(parts)} parts are needed, in a list with one entry a part (None "
            f"where there are none); a {type(images).__name__} was given"
        )
    owners: list[int] = []
    labels: list[int] = []
    places: list[int] = []
    logits: list[Tensor] = []
    offset = 0
    for index, (part, data) in enumerate(zip(parts, images, strict=True)):
        if data is not None:
            pool = Images(data, what=f"the images of part {index}")
            chosen = _shots(pool.all_labels(), part, shots, seed)
            with torch.inference_mode():
                for x, y in pool.raw(chosen, batch_size):
                    logits.append(run_images(assembly.side_by_side, x, pool.what).double().cpu())
                    owners += [index] * len(y)
                    labels += y.tolist()
                    places += [offset + part.task.index(k) for k in y.tolist()]
        offset += len(part.classes)
    if not logits:
        raise DataError("none of the images belongs to a class of the assembly; give some that do")
    return owners, labels, torch.cat(logits), torch.tensor(places)


def _shots(labels: Tensor, part: ComponentManifest, shots: int | None, seed: int) -> list[int]:
    if shots is None:
        return torch.nonzero(torch.isin(labels, torch.tensor(part.task))).flatten().tolist()
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    for k, name in zip(part.task, part.classes, strict=True):
        pool = torch.nonzero(labels == k).flatten()
        if not len(pool):
            raise DataError(f"class {name!r} has no image; give at least one a class for a few-shot scaling")
        found += pool[torch.randperm(len(pool), generator=generator)[:shots]].tolist()
    return found
