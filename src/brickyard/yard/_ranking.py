"""Which components of a yard transfer best to a new task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brickyard.base._checks import check_choice, seed_of, whole
from brickyard.base._errors import BrickyardError, DataError
from brickyard.component._component import Component
from brickyard.evaluation._probe import SCORES, Score, features, numbered
from brickyard.inputs._batches import DataLike, Images
from brickyard.runtime._progress import bar
from brickyard.yard._index import Entry

PER_CLASS = 100


# -- a yard --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """What a component is worth to a new task.

    Attributes:
        entry: The component, as the yard knows it.
        score: Its score; higher is better. None where it cannot take the images.
        size: How many features it has; None where it cannot take the images.
        images: How many images it was scored on.
        why: The reason why it has no score, or "".
    """

    entry: Entry
    score: float | None
    size: int | None
    images: int
    why: str = ""


def ranked(
    entries: Sequence[Entry],
    load: Callable[[str], Component],
    data: DataLike,
    *,
    score: Score = "logme",
    per_class: int | None = PER_CLASS,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Rank]:
    """Components scored on labelled images of a new task, best first; see `brickyard.yard._yard.Yard.rank`.

    Args:
        entries: The components.
        load: Reads one by its name.
        data: Labelled images of the new task.
        score: "logme" or "h-score", which is shrunk for all alike.
        per_class: At most so many images of each class; None takes all.
        seed: Of the choice of images.
        batch_size: Images at once.
    """
    check_choice("score", score, Score)
    batch_size = whole("batch_size", batch_size)
    chosen, labels = _chosen(data, per_class, seed)
    found: list[Rank] = []
    with bar("scoring components", len(entries)) as advance:
        for entry in entries:
            advance(0, text=entry.name)
            try:
                x = features(load(entry.name), (chosen, labels), batch_size)
                found.append(Rank(entry, SCORES[score](x, labels), x.shape[1], len(x)))
            except BrickyardError as error:
                found.append(Rank(entry, None, None, len(labels), str(error)))
            advance()
    return sorted(found, key=lambda rank: (rank.score is None, -(rank.score or 0.0), rank.entry.name))


def _chosen(data: DataLike, per_class: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Some images of every class, as they are given, with their labels.

    Raises:
        DataError: They cannot be read, or are too few.
    """
    images = Images(data, what="the images")
    labels = images.all_labels().cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed_of(seed)))
    if per_class is not None:
        per_class = whole("per_class", per_class)
        order = torch.cat([order[labels[order] == k][:per_class] for k in labels.unique().tolist()])
    order = order.sort().values
    numbered(labels[order], len(order))
    parts = list(images.raw(order.tolist()))
    sizes = {tuple(raw.shape[1:]) for raw, _ in parts}
    if len(sizes) > 1:
        raise DataError(
            "data-not-batchable",
            f"the images have {len(sizes)} shapes ({sorted(sizes)[:2]} ...); give images of one size",
        )
    return torch.cat([raw for raw, _ in parts]), torch.cat([part for _, part in parts]).cpu()
