"""Labelled images of several parts, and what all parts say to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import DataError
from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.component._predictor import run_images
from brickyard.inputs._batches import Images
from brickyard.scaling._scale import Evidence

# -- labelled images of several parts ----------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """Labelled images of several parts, and what all parts say to them; one entry an image.

    Attributes:
        owners: The part that it belongs to.
        labels: Its label in that part's source.
        targets: The right class of the assembly.
        signals: What `Assembly.signals` gives, in float64.
    """

    owners: Tensor
    labels: Tensor
    targets: Tensor
    signals: tuple[Tensor, Tensor | None, Tensor | None]

    def evidence(self, manifest: AssemblyManifest) -> Evidence:
        """All of it for a few-shot scaling of the assembly."""
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
        images: A list with one entry a part: labelled images whose labels index the part's source's classes,
            or None. Images of classes outside the part's task are left out.
        features: Whether features and distances are wanted.
        shots: At most so many images a class.
        seed: Seed for drawing them.
        batch_size: Images at once.
    """
    parts = assembly.manifest.parts
    if not isinstance(images, list | tuple) or len(images) != len(parts):
        raise DataError(
            "data-type",
            f"labelled images for each of the {len(parts)} parts are needed, in a list with one entry a part (None "
            f"where there are none); a {type(images).__name__} was given",
        )
    class_of = assembly.manifest.class_of
    owners: list[int] = []
    labels: list[int] = []
    targets: list[int] = []
    found: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    offset = 0
    for index, (task, data) in enumerate(zip(assembly.manifest.tasks, images, strict=True)):
        if data is not None:
            pool = Images(data, what=f"the images of part {index}")
            chosen = _shots(pool.all_labels(), parts[index], task, shots, seed)
            with torch.inference_mode():
                for x, y in pool.raw(chosen, batch_size):
                    found.append(run_images(lambda x: assembly.signals(x, features), x, pool.what))
                    owners += [index] * len(y)
                    labels += y.tolist()
                    targets += [class_of[offset + task.index(k)] for k in y.tolist()]
        offset += len(assembly.manifest.columns[index])
    if not found:
        raise DataError(
            "data-no-task-class", "none of the images belongs to a class of the assembly; give some that do"
        )
    logits, entering, distances = (_joined(list(values)) for values in zip(*found, strict=True))
    assert logits is not None
    return Shared(torch.tensor(owners), torch.tensor(labels), torch.tensor(targets), (logits, entering, distances))


def _joined(values: list[Tensor | None]) -> Tensor | None:
    known = [value.double().cpu() for value in values if value is not None]
    return torch.cat(known) if known else None


def _shots(labels: Tensor, part: ComponentManifest, task: Sequence[int], shots: int | None, seed: int) -> list[int]:
    if shots is None:
        return torch.nonzero(torch.isin(labels, torch.tensor(list(task)))).flatten().tolist()
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    for k in task:
        pool = torch.nonzero(labels == k).flatten()
        if not len(pool):
            raise DataError(
                "data-class-without-images",
                f"class {part.source.classes[k]!r} has no image; give at least one a class for a few-shot scaling",
            )
        found += pool[torch.randperm(len(pool), generator=generator)[:shots]].tolist()
    return found
