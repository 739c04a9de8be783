"""Labelled images of a model's parts, and the outputs of all parts for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import DataError
from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.inputs._batches import Images, warn_of_names
from brickyard.outputs._kinds import Outputs
from brickyard.scaling._scale import Evidence, Signals, shortfall, usual_energies


@dataclass(frozen=True)
class Examples:
    """Labelled images of a model's classes.

    Attributes:
        pools: The sets of images, one per part.
        owners: The pool of each image.
        places: Its index in the pool.
        targets: Its target in terms of the model's classes.
        outputs: The kind of the model's outputs.
        others: For each pool, how many of its images are of none of the classes, and how many it has.
    """

    pools: tuple[Images | None, ...]
    owners: Tensor
    places: Tensor
    targets: Tensor
    outputs: Outputs
    others: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, model: Component | Assembly, images: Any, what: str, *, strict: bool = False, rest: bool = True
    ) -> Examples:
        """Select the images that belong to a class of the model, or to none of them if it has an output for these.

        Args:
            model: The model.
            images: Labelled images; for an assembly, a list with one entry per part, which may be None. Labels are
                indices into the classes of the part's source.
            what: What messages call them.
            strict: Also refuse labels that are no class of the source.
            rest: False leaves out images of none of the classes all the same.
        """
        outputs, parts = model.outputs, model.manifest.parts
        given = [images] if isinstance(model, Component) else images
        listed = isinstance(given, list | tuple) and len(given) == len(parts) and not isinstance(given[0], Tensor)
        if not listed and not isinstance(model, Component):
            wanted = f"a list with one entry for each of the {len(parts)} parts (None for a part without images)"
            raise DataError("data-type", f"{what} must be {wanted}, got {type(images).__name__}")
        for data, part in zip(given, parts, strict=True):
            warn_of_names(data, part.source.classes, what)
        pools = tuple(None if data is None else Images(data, None, what, outputs.label_dims) for data in given)
        found: list[tuple[Tensor, ...]] = []
        others = [(0, 0)] * len(pools)
        for index, (pool, own) in enumerate(zip(pools, model.manifest.places, strict=True)):
            if pool is None:
                continue
            if strict:
                outputs.check_labels(pool.all_labels(), len(own))
            classes = torch.tensor(own)
            if model.reject and rest:  # classes of which another part has one of the same name are left out
                elsewhere = torch.tensor([name in model.classes for name in parts[index].names])
                classes[(classes < 0) & ~elsewhere] = len(model.classes)
            targets = outputs.targets(pool.all_labels(), classes, len(model.classes))
            places = outputs.cases(targets).images.unique()
            missing = [k for k, name in enumerate(parts[index].names) if own[k] < 0 and name in model.classes]
            known = sum(int(outputs.members(pool.all_labels(), k).sum()) for k in missing) if outputs.exclusive else 0
            others[index] = len(pool) - len(places) - known, len(pool)
            found.append((torch.full_like(places, index), places, targets[places]))
        if not any(len(places) for _, places, _ in found):
            names = ", ".join(model.classes[:8])
            raise DataError("data-no-task-class", f"none of {what} belongs to the classes {names}; give some that do")
        owners, numbers, answers = (torch.cat(list(values)) for values in zip(*found, strict=True))
        return cls(pools, owners, numbers, answers, outputs, tuple(others))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def chosen(self) -> tuple[list[int], ...]:
        """For each pool, the indices of its images."""
        return tuple(self.places[self.owners == index].tolist() for index in range(len(self.pools)))

    def some(self, chosen: Tensor) -> Examples:
        """Return a subset."""
        return replace(self, owners=self.owners[chosen], places=self.places[chosen], targets=self.targets[chosen])

    def shots(self, manifest: AssemblyManifest, count: int, seed: int) -> Examples:
        """Draw up to `count` images of each class; an image may belong to several classes."""
        chosen: list[int] = []
        for index, (pool, task, groups) in enumerate(zip(self.pools, manifest.tasks, manifest.groups, strict=True)):
            if pool is None:
                continue
            generator = torch.Generator().manual_seed(seed)
            rows = torch.nonzero(self.owners == index).flatten()
            labels = pool.all_labels()[self.places[rows]]
            for group in groups[: len(task)]:
                own = rows[self.outputs.members_of(labels, group)]
                if not len(own):
                    name = manifest.parts[index].names[group[0]]
                    why = f"class {name!r} has no image; give at least one per class for a few-shot scaling"
                    raise DataError("data-class-without-images", why)
                chosen += own[torch.randperm(len(own), generator=generator)[:count]].tolist()
        return self.some(torch.tensor(list(dict.fromkeys(chosen))))

    def marks(self, parts: Sequence[ComponentManifest]) -> Tensor:
        """What each image shows, made for the preprocessing of its own part: (images, 16)."""
        pairs = zip(self.pools, self.chosen, parts, strict=True)
        found = [pool.marks(own, part.preprocessing) for pool, own, part in pairs if pool is not None and own]
        return torch.cat(found)

    def raw(self, chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Raw images and targets, one batch per pool, since image sizes may differ between pools."""
        found: list[tuple[Tensor, Tensor]] = []
        for owner in self.owners[chosen].unique().tolist():
            own, pool = chosen[self.owners[chosen] == owner], self.pools[owner]
            assert pool is not None
            found += [(images, self.targets[own]) for images, _ in pool.raw(self.places[own].tolist(), len(own))]
        return found


@dataclass(frozen=True)
class Shared(Examples):
    """Labelled images of several parts, and the outputs of all parts for them.

    Attributes:
        signals: The result of `Assembly.signals`, in float64, without what reject needs: classes alone are scored.
        unknown: What reject needs, or None.
    """

    signals: Signals
    unknown: Tensor | None

    def evidence(self, manifest: AssemblyManifest) -> Evidence:
        """Convert this to evidence for a few-shot scaling; the manifest is that of the assembly that ran."""
        seen, lost = self.signals, None
        if seen.energies is not None:
            usual, spread = usual_energies(manifest).double()
            lost = shortfall(seen.energies, usual, spread, seen.depths, manifest.scaling.depth)
        given = seen.logits, self.targets, self.owners, seen.features, seen.distances
        return Evidence(manifest, *given, lost=lost)


def shared_signals(
    assembly: Assembly,
    images: Any,
    *,
    features: bool,
    shots: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    sieve: Callable[[Examples], Examples] | None = None,
) -> Shared:
    """Run labelled images of every part, given as for `Examples.of`, through all parts.

    With `features`, also compute features and distances; `shots` is the maximum number of images per class. `sieve`
    leaves some of the images out.
    """
    examples = Examples.of(assembly, images, "the labelled images", rest=False)
    if shots is not None:
        examples = examples.shots(assembly.manifest, shots, seed)
    examples = examples if sieve is None else sieve(examples)
    found: list[Signals] = []
    with torch.inference_mode():
        for pool, own in zip(examples.pools, examples.chosen, strict=True):
            for x, _ in pool.raw(own, batch_size) if pool is not None else ():
                found.append(run_images(lambda x: assembly.signals(x, features), x, "the labelled images"))
    logits, *others = (_joined(values) for values in zip(*found, strict=True))
    assert logits is not None
    signals = Signals(logits, *others)
    return Shared(**vars(examples), signals=signals._replace(unknown=None), unknown=signals.unknown)


def _joined(values: Sequence[Tensor | None]) -> Tensor | None:
    known = [value.double().cpu() for value in values if value is not None]
    return torch.cat(known) if known else None
