"""Assemblies: one classifier made of components."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.component import Component
from brickyard.errors import DataError, SurgeryError
from brickyard.images import Images
from brickyard.manifest import AssemblyManifest, ComponentManifest, NetworkSpec
from brickyard.network import Network, Node, Ref
from brickyard.predicting import Predictor, run_images
from brickyard.preprocessing import preprocess

__all__ = ["Assembly", "shared_logits"]


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
        super().__init__([Node("x", "input"), Node("output", "output", "", (Ref("x"),))], {})


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
