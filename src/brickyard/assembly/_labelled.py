"""Labelled images of several parts, and the outputs of all parts for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import DataError
from brickyard.base._records import AssemblyManifest
from brickyard.component._predictor import run_images
from brickyard.inputs._batches import Images
from brickyard.scaling._scale import Evidence


@dataclass(frozen=True)
class Shared:
    """Labelled images of several parts, and the outputs of all parts for them; one entry per image.

    Attributes:
        chosen: For each part, the indices of its images.
        owners: The part that each image belongs to.
        targets: The target of each image in terms of the assembly's classes.
        signals: The result of `Assembly.signals`, in float64.
    """

    chosen: tuple[list[int], ...]
    owners: Tensor
    targets: Tensor
    signals: tuple[Tensor, Tensor | None, Tensor | None]

    def evidence(self, manifest: AssemblyManifest) -> Evidence:
        """Convert this to evidence for a few-shot scaling of the assembly."""
        logits, features, distances = self.signals
        return Evidence(manifest, logits, self.targets, self.owners, features, distances)


def shared_signals(
    assembly: Assembly,
    images: Any,
    *,
    features: bool,
    shots: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Shared:
    """Run labelled images of every part through all parts.

    Args:
        assembly: The assembly.
        images: A list with one entry per part: labelled images whose labels index the classes of the part's source,
            or None. Images of classes outside the part's task are ignored.
        features: Also compute features and distances.
        shots: Maximum number of images per class.
        seed: Random seed for drawing them.
        batch_size: Images per batch.
    """
    parts = assembly.manifest.parts
    if not isinstance(images, list | tuple) or len(images) != len(parts):
        raise DataError(
            "data-type",
            f"labelled images must be a list with one entry for each of the {len(parts)} parts "
            f"(None for a part without images), got {type(images).__name__}",
        )
    chosen: list[list[int]] = [[] for _ in parts]
    targets: list[Tensor] = []
    found: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    for index, data in enumerate(images):
        if data is None:
            continue
        pool = Images(data, None, f"the images of part {index}", assembly.outputs.label_dims)
        names, places = parts[index].source.classes, torch.tensor(assembly.manifest.places[index])
        own = assembly.outputs.targets(pool.all_labels(), places, len(assembly.classes))
        task = assembly.manifest.tasks[index]
        if shots is None:
            chosen[index] = assembly.outputs.cases(own).images.unique().tolist()
        else:
            wanted = {names[k]: assembly.outputs.members(pool.all_labels(), k) for k in task}
            chosen[index] = _shots(wanted, shots, seed)
        targets.append(own[chosen[index]])
        with torch.inference_mode():
            for x, _ in pool.raw(chosen[index], batch_size):
                found.append(run_images(lambda x: assembly.signals(x, features), x, pool.what))
    if not found:
        raise DataError(
            "data-no-task-class", "none of the images belongs to a class of the assembly; give some that do"
        )
    owners = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(some) for some in chosen]))
    logits, entering, distances = (_joined(list(values)) for values in zip(*found, strict=True))
    assert logits is not None
    return Shared(tuple(chosen), owners, torch.cat(targets), (logits, entering, distances))


def _joined(values: list[Tensor | None]) -> Tensor | None:
    known = [value.double().cpu() for value in values if value is not None]
    return torch.cat(known) if known else None


def _shots(members: Mapping[str, Tensor], shots: int, seed: int) -> list[int]:
    """Draw up to `shots` images of each class from its members; an image may belong to several classes."""
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    for name, inside in members.items():
        pool = torch.nonzero(inside).flatten()
        if not len(pool):
            raise DataError(
                "data-class-without-images",
                f"class {name!r} has no image; give at least one a class for a few-shot scaling",
            )
        found += pool[torch.randperm(len(pool), generator=generator)[:shots]].tolist()
    return list(dict.fromkeys(found))
