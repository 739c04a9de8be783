"""Cut a component out of a source."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brickyard._version import __version__
from brickyard.axes._graph import Graph
from brickyard.base._checks import check_choice, check_kind, flag, seed_of, share_or_more, whole
from brickyard.base._classes import resolve_task
from brickyard.base._errors import DataError, FileError, OptionError, TaskError
from brickyard.base._options import Budget, Heal, Select, Thresholds
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
from brickyard.relevance._relevance import Relevance
from brickyard.runtime._isolation import steady
from brickyard.selection._budget import by_budget
from brickyard.selection._damage import by_damage
from brickyard.selection._importance import CRITERIA
from brickyard.selection._thresholds import by_thresholds, mda_scores
from brickyard.surgery._cost import CostModel, keep_mask
from brickyard.surgery._join import cut


@steady
def disassemble(
    model: nn.Module,
    relevance: Relevance,
    *,
    task: Sequence[int | str],
    thresholds: Thresholds | None = None,
    budget: Budget | None = None,
    select: Select = "mda",
    reject: bool = False,
    heal: Heal = "refit",
    images: Any = None,
    heal_images: int = 400,
    ridge: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> Component:
    """Cut out of a source the part that a task needs, as a small working model.

    Args:
        model: The source that the relevances were located on; it comes back untouched.
        relevance: What `locate` returned.
        task: Classes by name or index, in the order that the outputs shall have.
        thresholds: Keep channels by the paper's thresholds; default: those of the relevances.
        budget: Keep the most relevant channels that a budget allows, instead of thresholds.
        select: What a budget ranks channels by: "mda", the relevances (the paper); "damage", what the refit cannot
            repair, measured on images (slower, and the most accurate); or a control: "l1", "fpgm", "hrank",
            "activation", "taylor", "random".
        reject: Keep one more output, the log-sum-exp of the source's other classes: "none of these".
        heal: Repair without gradients: "refit", "moments" or "none".
        images: Images to heal with, as for `locate`, or a tensor without labels; default: the images that the
            relevances remember.
        heal_images: At most so many of them are used, drawn evenly from the task's classes. Where a layer has few
            positions for its many inputs, shifted copies of them are used too.
        ridge: Strength of the refit's prior, a share of the mean diagonal of its normal equations.
        batch_size: Images at once.
        seed: Seed for drawing the images.

    Returns:
        The component, in evaluation mode, with a manifest of where it came from.

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
    if not isinstance(relevance, Relevance):
        raise OptionError(
            "option-wrong-object",
            f"what locate returned is needed; as relevance a {type(relevance).__name__} was given: call locate, or "
            "load its file",
        )
    check_kind("thresholds", thresholds, Thresholds, "give brickyard.Thresholds(alpha=..., beta=...)")
    check_kind("budget", budget, Budget, "give brickyard.Budget(flops=...) or Budget(parameters=...)")
    reject = flag("reject", reject)
    check_choice("heal", heal, Heal)
    check_choice("select", select, Select)
    if select != "mda" and budget is None:
        raise OptionError(
            "option-requires-option", f"select={select!r} ranks channels for a budget, and none was given; add budget="
        )
    if thresholds is not None and budget is not None:
        raise OptionError(
            "option-conflict", "thresholds= and budget= were both given; a component is chosen by one of them"
        )
    ridge, seed = share_or_more("ridge", ridge), seed_of(seed)
    heal_images, batch_size = whole("heal_images", heal_images), whole("batch_size", batch_size)
    chosen = _task(task, relevance, reject)
    graph = relevance.graph(model)
    outputs = find_outputs(relevance.outputs).kept(chosen, len(relevance.classes), reject)
    pool = _pool(relevance, images, chosen)
    batches: list[Tensor] = []
    copies = 1
    if select != "mda" or heal != "none":
        wanted_by = f"heal={heal!r}" if select == "mda" else f"select={select!r}"
        batches = _batches(graph, pool, heal_images, batch_size, seed, wanted_by)
        copies = copies_needed(graph, sum(map(len, batches)))
        batches = with_copies(batches, copies, seed)
    notes: list[str] = []
    if budget is None:
        thresholds = thresholds or relevance.thresholds
        relevance = relevance.with_thresholds(thresholds, graph)
        keep, notes = by_thresholds(graph, relevance, chosen, outputs)
    elif select == "mda":
        keep = by_budget(graph, mda_scores(relevance, chosen), outputs, budget)
    elif select == "damage":
        keep = by_damage(graph, batches, outputs, budget, ridge)
    else:
        keep = by_budget(graph, CRITERIA[select](graph, batches, outputs, seed), outputs, budget)
    network = cut(graph, keep)
    record = HealRecord(method="none", notes=tuple(notes))
    if heal != "none":
        report = heal_network(graph, keep, network, batches, heal, ridge)
        record = HealRecord(
            method=heal,
            images=sum(map(len, batches)) // copies,
            copies=copies,
            ridge=ridge if heal == "refit" else None,
            layers=report.layers,
            notes=(*notes, *report.notes),
        )
    _narrow(network, weights_like(model).dtype)
    choice = {} if budget is None else {budget.resource: budget.share, "spread": budget.spread, "select": select}
    if budget is not None and budget.multiple > 1:
        choice["multiple"] = budget.multiple
    manifest = _manifest(graph, relevance, keep, chosen, reject, thresholds, choice, record)
    component = Component(network, manifest, _skeleton(graph))
    if pool is not None and pool.by_class is not None:
        component = observed(component, pool.images, pool.by_class, batch_size)
    return component


def _narrow(network: Network, dtype: torch.dtype) -> None:
    """Bring a network that was cut and healed in float32 to the type of its source.

    Raises:
        DataError: A number is beyond what that type holds.
    """
    network.to(dtype)
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise DataError(
                "data-overflow",
                f"{name!r} of the component is not finite in {str(dtype).removeprefix('torch.')}: its repair with "
                "these images needs larger numbers; check the preprocessing, or use heal='none' or a source in float32 "
                "or float64",
            )


def _task(task: Sequence[int | str], relevance: Relevance, reject: bool) -> list[int]:
    chosen = resolve_task(task, relevance.classes)
    missing = [relevance.classes[k] for k in chosen if k not in relevance.task]
    if missing:
        raise TaskError(
            "task-not-located", f"class {missing[0]!r} was asked for, but not located; locate it, or leave it out"
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
            "reject=True was asked for a task of all the source's classes; no other class is left",
        )
    return chosen


class _Pool:
    """Images of the task: where they are, and which belong to which class (None where labels are unknown)."""

    def __init__(self, images: Images, by_class: dict[int, list[int]] | None) -> None:
        self.images = images
        self.by_class = by_class

    def draw(self, count: int, seed: int) -> list[int]:
        """Up to `count` images, evenly from the classes, in an order that mixes them."""
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
                f"the images to heal with have shape {tuple(images.shape)}; (batch, channels, height, width) with at "
                "least one image is needed",
            )
        return _Pool(Images((images, torch.zeros(len(images), dtype=torch.long)), relevance.preprocessing), None)
    else:
        source = Images(images, relevance.preprocessing, "the images to heal with", outputs.label_dims)
    labels = source.all_labels()
    by_class = {k: torch.nonzero(outputs.members(labels, k)).flatten().tolist() for k in task}
    if not any(by_class.values()):
        raise DataError(
            "data-no-task-class", "the images to heal with hold none of the task's classes; give some, or heal='none'"
        )
    return _Pool(source, by_class)


def _batches(graph: Graph, pool: _Pool | None, count: int, batch_size: int, seed: int, wanted_by: str) -> list[Tensor]:
    """Preprocessed images of the task, drawn evenly from its classes."""
    if pool is None:
        raise OptionError(
            "option-needs-data",
            f"{wanted_by} needs images, and relevances from a file remember none; give images=, or choose without",
        )
    indices = pool.draw(count, seed)
    like = kind(graph.network)
    batches = [x for x, _ in pool.images.batches(indices, batch_size, like)]
    if tuple(batches[0].shape[1:]) != graph.input_shape:
        raise DataError(
            "data-wrong-size",
            f"the images that {wanted_by} needs are {tuple(batches[0].shape[1:])} after preprocessing; the source "
            f"takes {graph.input_shape}: give images of that size",
        )
    return batches


def _skeleton(graph: Graph) -> NetworkSpec | None:
    try:
        return graph.network.to_spec()
    except FileError:
        return None


def _manifest(
    graph: Graph,
    relevance: Relevance,
    keep: dict[str, Tensor],
    task: Sequence[int],
    reject: bool,
    thresholds: Thresholds | None,
    budget: dict[str, Any],
    heal: HealRecord,
) -> ComponentManifest:
    cost_model = CostModel(graph)
    whole, part = cost_model(keep_mask(graph, {})), cost_model(keep_mask(graph, keep))
    everything = graph.everything()
    return ComponentManifest(
        classes=tuple(relevance.classes[k] for k in task),
        task=tuple(task),
        reject=reject,
        preprocessing=relevance.preprocessing,
        input_shape=graph.input_shape,
        source=SourceRecord(
            name=relevance.source_name,
            sha256=relevance.source_sha256,
            classes=relevance.classes,
            parameters=whole.parameters,
            flops=whole.flops,
        ),
        axes={
            axis.name: AxisRecord(
                size=axis.size,
                kept=tuple(keep.get(axis.name, everything[axis.name]).tolist()),
                pinned=bool(axis.pinned),
            )
            for axis in graph.axes
        },
        output_axis=graph.output.name if graph.output is not None else None,
        pinned=graph.pinned(),
        located=relevance.record,
        selection=SelectionRecord(
            thresholds=None if thresholds is None or budget else thresholds.as_dict(),
            budget=budget or None,
            parameters=part.parameters,
            flops=part.flops,
        ),
        heal=heal,
        outputs=relevance.outputs,
        versions=made_with(),
        created=today(),
    )


def made_with() -> Versions:
    """What makes a file, now."""
    return Versions(brickyard=__version__, torch=torch.__version__, python=platform.python_version())


def today() -> str:
    """The date in UTC; `SOURCE_DATE_EPOCH` fixes it for reproducible files."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = (
        datetime.datetime.fromtimestamp(int(fixed), datetime.UTC)
        if fixed.isdigit()
        else datetime.datetime.now(datetime.UTC)
    )
    return now.date().isoformat()
