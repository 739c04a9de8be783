"""The images that a component is chosen, repaired and judged with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.base._errors import DataError, OptionError
from brickyard.base._history import UsedRecord
from brickyard.base._records import Preprocessing
from brickyard.base._sides import BATCHED, BATCHES
from brickyard.healing._more_images import copies_needed
from brickyard.healing._places import Shown
from brickyard.inputs._augment import with_copies
from brickyard.inputs._batches import Images, warn_of_names
from brickyard.inputs._content import as_bytes, marks
from brickyard.inputs._datasets import ImageData
from brickyard.inputs._decoding import read_images
from brickyard.inputs._folders import pictures_in
from brickyard.inputs._preprocessing import check_raw, preprocess
from brickyard.network._network import kind
from brickyard.outputs._kinds import Outputs
from brickyard.outputs._outputs import find_outputs
from brickyard.relevance._relevance import Relevance

HELD = 20  # images held back, at least, where there are three times as many
SHARE = 5  # one image of this many is held back
MOST = 3  # one of this many, at most


@dataclass(frozen=True)
class Calibration:
    """Images of a task.

    Attributes:
        shown: Those that are used, preprocessed: to fit with, with shifted copies, and held back.
        copies: How many times each image to fit with is among them.
        batches: How many batches to fit with are no copies.
        others: How many of them belong to none of the task's classes, or to none that is known.
        held_at: Which of the pool's images of the task are held back.
        used: Which images these are.
    """

    shown: Shown
    copies: int
    batches: int
    others: int = 0
    held_at: tuple[int, ...] = ()
    used: UsedRecord = field(default_factory=UsedRecord)

    @property
    def fitted(self) -> int:
        """How many different images there are to fit with."""
        return sum(map(len, self.shown.fit)) // self.copies

    @property
    def held(self) -> int:
        """How many images are held back."""
        return sum(map(len, self.shown.held))


class Pool:
    """The images that are at hand.

    Attributes:
        images: The images.
        by_class: Which belong to each class of the task; None if labels are unknown.
        others: Which belong to none of them.
    """

    def __init__(self, images: Images, by_class: dict[int, list[int]] | None, others: Sequence[int] = ()) -> None:
        self.images = images
        self.by_class = by_class
        self.others = others

    @classmethod
    def of(cls, relevance: Relevance, images: Any, task: Sequence[int]) -> Pool | None:
        """Images that were given, or else those that were located on; None if there are none.

        Raises:
            DataError: They cannot be used.
        """
        if images is not None:
            return cls.given(images, relevance.preprocessing, relevance.classes, relevance.outputs, task, 8)
        remembered = relevance.images()
        return None if remembered is None else cls._of(remembered[0], relevance.outputs, task)

    @classmethod
    def given(
        cls, images: Any, how: Preprocessing, classes: Sequence[str], kind: str, task: Sequence[int], depth: int
    ) -> Pool:
        """Images that were given.

        Args:
            images: Labelled images, or a tensor without labels.
            how: How they are preprocessed.
            classes: Names of the source's classes.
            kind: The kind of its outputs.
            task: The task's classes, as labels count them.
            depth: How many calls lie between a warning and whom it is for.

        Raises:
            DataError: They cannot be used.
        """
        if isinstance(images, Tensor):
            return cls(unlabelled(images, how), None)
        source = Images(images, how, "the images to heal with", find_outputs(kind).label_dims)
        warn_of_names(images, classes, "the images to heal with", depth)
        return cls._of(source, kind, task)

    @classmethod
    def _of(cls, source: Images, kind: str, task: Sequence[int]) -> Pool:
        """Labelled images, those of the task apart."""
        outputs, labels = find_outputs(kind), source.all_labels()
        by_class = {k: torch.nonzero(outputs.members(labels, k)).flatten().tolist() for k in task}
        if not any(by_class.values()):
            raise DataError(
                "data-no-task-class",
                "none of the images to heal with belongs to the task's classes; give some that do, or heal='none'",
            )
        own = {index for indices in by_class.values() for index in indices}
        return cls(source, by_class, [index for index in range(len(source)) if index not in own])

    def draw(self, count: int, seed: int) -> list[int]:
        """Draw up to `count` images of the task, evenly from the classes and interleaved."""
        generator = torch.Generator().manual_seed(seed)
        if self.by_class is None:
            return torch.randperm(len(self.images), generator=generator)[:count].tolist()
        shuffled = [
            [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
            for pool in self.by_class.values()
        ]
        longest = max(map(len, shuffled), default=0)
        turns = [pool[turn] for turn in range(longest) for pool in shuffled if turn < len(pool)]
        return list(dict.fromkeys(turns))[:count]  # an image may belong to several classes

    def draw_others(self, count: int, seed: int) -> list[int]:
        """Draw up to `count` images of none of the task's classes."""
        generator = torch.Generator().manual_seed(seed)
        return [self.others[i] for i in torch.randperm(len(self.others), generator=generator)[:count].tolist()]


def unlabelled(images: Tensor, how: Preprocessing) -> Images:
    """Images without labels, given as a tensor.

    Raises:
        DataError: They have another form.
    """
    if images.ndim not in BATCHED or len(images) == 0:
        raise DataError(
            "data-shape",
            f"the images to heal with must be {BATCHES}, at least one, got shape {tuple(images.shape)}",
        )
    return Images((images, torch.zeros(len(images), dtype=torch.long)), how)


def calibration(graph: Graph, pool: Pool | None, options: Any, wanted_by: str, *, strangers: bool) -> Calibration:
    """Read the images to work with, preprocessed, and hold some back.

    Args:
        graph: The source's graph.
        pool: The images at hand.
        options: Those of `disassemble`.
        wanted_by: What needs them, for messages.
        strangers: Whether images of none of the task's classes help: where a component must tell them apart.

    Raises:
        OptionError: There are none.
        DataError: They do not fit the source.
    """
    if pool is None:
        raise OptionError(
            "option-needs-data",
            f"{wanted_by} needs images, but relevances from a file hold none; give images=, or "
            "choose one that needs no images",
        )
    count, seed = options["heal_images"], options["seed"]
    wanted = count + count // (SHARE - 1)
    drawn = pool.draw(wanted, seed)
    if graph.boxes is not None:  # a place where nothing is teaches a detector as much as one where something is
        drawn += pool.draw_others(max(0, wanted - len(drawn)), seed)
    read = _reader(graph, options["batch_size"], wanted_by)
    held, fit = parted(drawn, seed)
    sides = [[*read(pool.images, some)] for some in (fit, held)]
    others = 0
    marked = list(drawn)
    if strangers:
        more = pool.draw_others(len(drawn) // 2, seed)
        others = len(more)
        marked += more
        for side, some in zip(sides, reversed(parted(more, seed)), strict=True):
            side += read(pool.images, some)
    used = UsedRecord.of(as_bytes(pool.images.marks(marked)))
    if options["more_images"] is not None:
        added, shown_marks = _added(graph, pool.images.preprocessing, options, count)
        used = used.joined(UsedRecord.of(as_bytes(shown_marks)))
        others += sum(map(len, added))
        sides[0] += added
    copies = copies_needed(graph, sum(map(len, sides[0])))
    shown = Shown(with_copies(sides[0], copies, seed), sides[1], seed)
    return Calibration(shown, copies, len(sides[0]), others, tuple(held), used)


def _added(graph: Graph, how: Preprocessing, options: Any, most: int) -> tuple[list[Tensor], Tensor]:
    """Images without labels to fit with, preprocessed: at most so many, drawn at random; and their marks.

    Raises:
        DataError: They cannot be used.
    """
    images, like = options["more_images"], kind(graph.network)
    if isinstance(images, str | Path) and Path(images).is_dir():
        images = pictures_in(Path(images))
    if isinstance(images, Sequence | ImageData) and not isinstance(images, str):
        drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(options["seed"]))[:most].tolist()
        images = images.subset(drawn).images if isinstance(images, ImageData) else [images[place] for place in drawn]
    found: list[Tensor] = []
    shown: list[Tensor] = []
    for batch in read_images(images, options["batch_size"], graph.input_shape):
        check_raw(batch, how, "more_images")
        x = preprocess(batch, how).to(like.device, like.dtype)
        _check_size(graph, x, "more_images need")
        found.append(x)
        shown.append(marks(batch, how))
    if not found:
        raise DataError("data-no-images", "more_images is empty; give at least one image, or leave it out")
    return list(torch.cat(found)[:most].split(options["batch_size"])), torch.cat(shown)[:most]


def parted(indices: Sequence[int], seed: int, most: int | None = None) -> tuple[list[int], list[int]]:
    """Images to hold back, at most so many, and the others; both in order."""
    count = min(max(HELD, len(indices) // SHARE), len(indices) // MOST, len(indices) if most is None else most)
    chosen = set(torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))[:count].tolist())
    return (
        [index for place, index in enumerate(indices) if place in chosen],
        [index for place, index in enumerate(indices) if place not in chosen],
    )


def _reader(graph: Graph, batch_size: int, wanted_by: str) -> Callable[[Images, Sequence[int]], list[Tensor]]:
    """What reads and preprocesses images by their indices."""
    like = kind(graph.network)

    def read(images: Images, indices: Sequence[int]) -> list[Tensor]:
        batches = [x for x, _ in images.batches(list(indices), batch_size, like)] if indices else []
        if batches:
            _check_size(graph, batches[0], f"{wanted_by} needs images of")
        return batches

    return read


def _check_size(graph: Graph, x: Tensor, needs: str) -> None:
    """Check that preprocessed images fit a source; `needs` says what needs them.

    Raises:
        DataError: They do not.
    """
    if tuple(x.shape[1:]) != graph.input_shape:
        raise DataError(
            "data-wrong-size",
            f"{needs} the source's input shape {graph.input_shape}, got {tuple(x.shape[1:])} after preprocessing; give "
            "images of that size, or locate with a preprocessing that resizes them",
        )


@dataclass(frozen=True)
class Judge:
    """Compares the answers of a cut network with those of its source, restricted to the task.

    Attributes:
        graph: The source's graph.
        outputs: What outputs mean.
        task: The task's classes, (classes,).
        others: The source's other classes, where the network has an output for them.
        whole: Whether the network has all outputs of the source.
        sizes: How many of the task's classes become one, class by class.
    """

    graph: Graph
    outputs: Outputs
    task: Tensor
    others: Tensor | None
    whole: bool
    sizes: Sequence[int]

    def answers(self, network: nn.Module, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What a network and the source say of the task to preprocessed images, batch by batch."""
        with torch.no_grad():
            for x in batches:
                found = network(x.to(kind(network).dtype))
                ours, theirs = self._head(found) if self.whole else found, self._head(self.graph.network(x))
                yield self.outputs.merged(ours, self.sizes), self.outputs.merged(theirs, self.sizes)

    def agreeing(self, network: nn.Module, batches: Sequence[Tensor]) -> tuple[int, int]:
        """How many preprocessed images have the same answer from both, and how many there are."""
        same = count = 0
        for ours, theirs in self.answers(network, batches):
            own, of = self.outputs.agreeing(ours, theirs)
            same, count = same + own, count + of
        return same, count

    def _head(self, logits: Tensor) -> Tensor:
        return self.outputs.head(logits, self.task, self.others)
