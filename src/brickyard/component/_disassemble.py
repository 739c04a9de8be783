"""Cutting a component out of a source."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from brickyard._version import __version__
from brickyard.axes._graph import Axes, Graph
from brickyard.base._classes import resolve_task
from brickyard.base._declare import verb
from brickyard.base._errors import DataError, FileError, OptionError, TaskError
from brickyard.base._options import DisassembleOptions
from brickyard.base._records import (
    AxisRecord,
    ComponentManifest,
    HealRecord,
    NetworkSpec,
    SelectionRecord,
    SourceRecord,
    Versions,
)
from brickyard.component._component import Component
from brickyard.component._statistics import observed
from brickyard.healing._heal import heal_network
from brickyard.healing._more_images import copies_needed
from brickyard.inputs._augment import with_copies
from brickyard.inputs._batches import Images
from brickyard.network._identity import weights_like
from brickyard.network._network import Network, kind
from brickyard.outputs._outputs import find_outputs
from brickyard.relevance._relevance import Relevance, Relevances
from brickyard.runtime._isolation import steady
from brickyard.selection._importance import CRITERIA, Evidence
from brickyard.selection._thresholds import by_thresholds
from brickyard.surgery._cost import CostModel, Costs, keep_mask
from brickyard.surgery._join import cut
from brickyard.surgery._verify import check_cut, drawn_images


@steady
@verb(DisassembleOptions)
def disassemble(model: nn.Module, relevance: Relevance, **options: Unpack[DisassembleOptions]) -> Component:
    """Cut the part of a source that a task needs into a small working model.

    Args:
        model: The source on which the relevances were located; it is left unchanged.
        relevance: The result of `locate`.

    Returns:
        The component, in evaluation mode, with a manifest that records where it came from.

    Raises:
        TaskError: The task is empty, or names a class that is unknown or was not located.
        OptionError: Options contradict each other, or the budget is too small.
        DataError: The relevances belong to another model, or the images cannot be used.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> source, data = chain(), (torch.rand(8, 3, 8, 8), torch.arange(8) % 4)
        >>> relevance = by.locate(source, data)
        >>> small = by.disassemble(source, relevance, task=["0", "2"], budget=by.Budget(flops=0.5))
        >>> small.manifest.selection.flops <= 0.5 * small.manifest.source.flops
        True
    """
    job = _job(model, relevance, options)
    keep, notes = _choose(job)
    network = cut(job.choice.graph, keep)
    check_cut(job.choice.graph, keep, network, job.batches[0][:2] if job.batches else drawn_images(job.choice.graph))
    healed = _heal(job, keep, network, notes)
    _narrow(network, weights_like(model).dtype)
    return _describe(job, keep, network, healed)


@dataclass(frozen=True)
class Choice:
    """What is to be cut from a source of any kind.

    Attributes:
        graph: The source's axes.
        relevance: What was located, with the thresholds to use.
        options: All options.
        task: The task's classes.
        outputs: The class outputs to keep: with a reject output, all.
    """

    graph: Any
    relevance: Any
    options: Any
    task: list[int]
    outputs: list[int]

    @classmethod
    def of(cls, relevance: Relevances, options: Any, graph: Callable[[], Axes]) -> Choice:
        """Check what was asked for.

        Raises:
            BrickyardError: It does not fit together.
        """
        thresholds, budget = options["thresholds"], options["budget"]
        if thresholds is not None and budget is not None:
            raise OptionError("option-conflict", "thresholds= and budget= cannot be combined; give one of them")
        task = _task(options["task"], relevance, options["reject"])
        axes = graph()
        if budget is None:
            relevance = relevance.with_thresholds(thresholds or relevance.thresholds, axes)
        outputs = find_outputs(relevance.outputs).kept(task, len(relevance.classes), options["reject"])
        return cls(axes, relevance, options, task, outputs)

    def manifest(self, keep: Mapping[str, Tensor], costs: Costs, heal: HealRecord) -> ComponentManifest:
        """What the component is and where it came from."""
        relevance, budget, everything = self.relevance, self.options["budget"], self.graph.everything()
        part = costs(keep_mask(self.graph, keep))
        return ComponentManifest(
            classes=tuple(relevance.classes[k] for k in self.task),
            task=tuple(self.task),
            reject=self.options["reject"],
            preprocessing=relevance.preprocessing,
            input_shape=self.graph.input_shape,
            source=SourceRecord(
                name=relevance.source_name,
                sha256=relevance.source_sha256,
                classes=relevance.classes,
                parameters=costs.whole.parameters,
                flops=costs.whole.flops,
            ),
            axes={
                axis.name: AxisRecord(
                    size=axis.size,
                    kept=tuple(keep.get(axis.name, everything[axis.name]).tolist()),
                    pinned=bool(axis.pinned),
                )
                for axis in self.graph.axes
            },
            output_axis=self.graph.output.name if self.graph.output is not None else None,
            pinned=self.graph.pinned(),
            located=relevance.record,
            selection=SelectionRecord(
                thresholds=relevance.thresholds.as_dict() if budget is None else None,
                budget=None if budget is None else budget.record(self.options["select"]),
                parameters=part.parameters,
                flops=part.flops,
            ),
            heal=heal,
            outputs=relevance.outputs,
            versions=made_with(),
            created=today(),
        )


@dataclass(frozen=True)
class _Job:
    """The inputs of one call.

    Attributes:
        choice: What is to be cut.
        pool: Images of the task, where there are any.
        batches: Those that are used, preprocessed, and shifted copies.
        copies: How many times each image is among them.
    """

    choice: Choice
    pool: _Pool | None
    batches: list[Tensor]
    copies: int


def _job(model: nn.Module, relevance: Relevance, options: DisassembleOptions) -> _Job:
    """Check the arguments and read the images.

    Raises:
        BrickyardError: They do not fit together.
    """
    if not isinstance(relevance, Relevance):
        raise OptionError(
            "option-wrong-object",
            f"relevance must be the result of locate, got {type(relevance).__name__}; call locate, or load its file",
        )
    select, heal, budget, seed = options["select"], options["heal"], options["budget"], options["seed"]
    if select != "mda" and budget is None:
        raise OptionError(
            "option-requires-option", f"select={select!r} ranks channels for a budget, and none was given; add budget="
        )
    choice = Choice.of(relevance, options, lambda: relevance.graph(model))
    graph, pool = choice.graph, _pool(choice.relevance, options["images"], choice.task)
    batches: list[Tensor] = []
    copies = 1
    if CRITERIA[select].images or heal != "none":
        wanted_by = f"select={select!r}" if CRITERIA[select].images else f"heal={heal!r}"
        batches = _batches(graph, pool, options["heal_images"], options["batch_size"], seed, wanted_by)
        copies = copies_needed(graph, sum(map(len, batches)))
        batches = with_copies(batches, copies, seed)
    return _Job(choice, pool, batches, copies)


def _choose(job: _Job) -> tuple[dict[str, Tensor], list[str]]:
    """The channels to keep, and what a reader of the manifest should know."""
    choice, options = job.choice, job.choice.options
    if (budget := options["budget"]) is None:
        return by_thresholds(choice.graph, choice.relevance, choice.task, choice.outputs)
    seed, ridge = options["seed"], options["ridge"]
    evidence = Evidence(choice.graph, job.batches, choice.outputs, seed, choice.relevance, choice.task, budget, ridge)
    return CRITERIA[options["select"]].keep(evidence), []


def _heal(job: _Job, keep: dict[str, Tensor], network: Network, notes: list[str]) -> HealRecord:
    """Repair the network in place; what was done."""
    heal, ridge = job.choice.options["heal"], job.choice.options["ridge"]
    if heal == "none":
        return HealRecord(method="none", notes=tuple(notes))
    report = heal_network(job.choice.graph, keep, network, job.batches, heal, ridge)
    return HealRecord(
        method=heal,
        images=sum(map(len, job.batches)) // job.copies,
        copies=job.copies,
        ridge=ridge if heal == "refit" else None,
        layers=report.layers,
        notes=(*notes, *report.notes),
    )


def _describe(job: _Job, keep: dict[str, Tensor], network: Network, healed: HealRecord) -> Component:
    """The component: the network with where it came from, and statistics of its features where images are labelled."""
    graph = job.choice.graph
    component = Component(network, job.choice.manifest(keep, CostModel(graph), healed), _skeleton(graph))
    if job.pool is None or job.pool.by_class is None:
        return component
    return observed(component, job.pool.images, job.pool.by_class, job.choice.options["batch_size"])


def _narrow(network: Network, dtype: torch.dtype) -> None:
    """Convert a network that was cut and healed in float32 to its source's type.

    Raises:
        DataError: A value overflows in that type.
    """
    network.to(dtype)
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise DataError(
                "data-overflow",
                f"{name!r} of the component is not finite in {str(dtype).removeprefix('torch.')}: "
                "healing it with these images needs larger values; check the preprocessing, or use "
                "heal='none' or a source in float32 or float64",
            )


def _task(task: Sequence[int | str], relevance: Relevances, reject: bool) -> list[int]:
    chosen = resolve_task(task, relevance.classes)
    missing = [relevance.classes[k] for k in chosen if k not in relevance.task]
    if missing:
        raise TaskError(
            "task-not-located", f"class {missing[0]!r} is in the task, but was not located; locate it, or leave it out"
        )
    if reject and not find_outputs(relevance.outputs).exclusive:
        raise OptionError(
            "option-conflict",
            f"reject=True was asked for, and outputs of kind {relevance.outputs!r} have no answer that means none of "
            "the classes; leave reject out",
        )
    if reject and len(chosen) == len(relevance.classes):
        raise TaskError(
            "task-nothing-to-reject",
            "reject=True needs a class outside the task, but the task has all the source's classes; leave reject out",
        )
    return chosen


class _Pool:
    """The task's images, and which belong to each class (None if labels are unknown)."""

    def __init__(self, images: Images, by_class: dict[int, list[int]] | None) -> None:
        self.images = images
        self.by_class = by_class

    def draw(self, count: int, seed: int) -> list[int]:
        """Draw up to `count` images, evenly from the classes and interleaved."""
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


def _pool(relevance: Relevance, images: Any, task: Sequence[int]) -> _Pool | None:
    outputs = find_outputs(relevance.outputs)
    if images is None:
        remembered = relevance.images()
        if remembered is None:
            return None
        source = remembered[0]
    elif isinstance(images, Tensor):
        if images.ndim != 4 or len(images) == 0:
            raise DataError(
                "data-shape",
                "the images to heal with must be (batch, channels, height, width) with at least "
                f"one image, got shape {tuple(images.shape)}",
            )
        return _Pool(Images((images, torch.zeros(len(images), dtype=torch.long)), relevance.preprocessing), None)
    else:
        source = Images(images, relevance.preprocessing, "the images to heal with", outputs.label_dims)
    labels = source.all_labels()
    by_class = {k: torch.nonzero(outputs.members(labels, k)).flatten().tolist() for k in task}
    if not any(by_class.values()):
        raise DataError(
            "data-no-task-class",
            "none of the images to heal with belongs to the task's classes; give some that do, or heal='none'",
        )
    return _Pool(source, by_class)


def _batches(graph: Graph, pool: _Pool | None, count: int, batch_size: int, seed: int, wanted_by: str) -> list[Tensor]:
    """Preprocess images of the task, drawn evenly from its classes."""
    if pool is None:
        raise OptionError(
            "option-needs-data",
            f"{wanted_by} needs images, but relevances from a file hold none; give images=, or "
            "choose one that needs no images",
        )
    indices = pool.draw(count, seed)
    like = kind(graph.network)
    batches = [x for x, _ in pool.images.batches(indices, batch_size, like)]
    if tuple(batches[0].shape[1:]) != graph.input_shape:
        raise DataError(
            "data-wrong-size",
            f"{wanted_by} needs images of the source's input shape {graph.input_shape}, got "
            f"{tuple(batches[0].shape[1:])} after preprocessing; give images of that size",
        )
    return batches


def _skeleton(graph: Graph) -> NetworkSpec | None:
    try:
        return graph.network.to_spec()
    except FileError:
        return None


def made_with() -> Versions:
    """Return the versions that a new file records."""
    return Versions(brickyard=__version__, torch=torch.__version__, python=platform.python_version())


def today() -> str:
    """Return the date in UTC; `SOURCE_DATE_EPOCH` overrides it for reproducible files."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = (
        datetime.datetime.fromtimestamp(int(fixed), datetime.UTC)
        if fixed.isdigit()
        else datetime.datetime.now(datetime.UTC)
    )
    return now.date().isoformat()
