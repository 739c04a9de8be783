"""Cutting a component out of a source."""

from __future__ import annotations

import datetime
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from brickyard._version import __version__
from brickyard.axes._graph import Axes, Graph
from brickyard.base._boxes import check_no_boxes
from brickyard.base._classes import resolve_merged
from brickyard.base._declare import verb
from brickyard.base._doubts import of_repair, of_statistics
from brickyard.base._errors import BrickyardWarning, DataError, FileError, OptionError, TaskError
from brickyard.base._history import Versions
from brickyard.base._options import DisassembleOptions
from brickyard.base._precisions import PrecisionRecord
from brickyard.base._records import (
    AxisRecord,
    ComponentManifest,
    HealRecord,
    SelectionRecord,
    SourceRecord,
)
from brickyard.base._specs import NetworkSpec
from brickyard.component._calibration import Calibration, Judge, Pool, calibration
from brickyard.component._component import Component
from brickyard.component._statistics import observed
from brickyard.healing._distil import distil_network
from brickyard.healing._heal import heal_network
from brickyard.healing._places import Shown
from brickyard.network._identity import weights_like
from brickyard.network._network import Network, kind
from brickyard.network._untouched import guarded
from brickyard.outputs._detections import Detections, matches
from brickyard.outputs._kinds import Outputs
from brickyard.outputs._outputs import find_outputs, thresholds_for
from brickyard.outputs._precisions import fitted
from brickyard.relevance._relevance import Relevance, Relevances
from brickyard.runtime._processes import Ranks
from brickyard.runtime._progress import step
from brickyard.selection._damage import Selected
from brickyard.selection._importance import CRITERIA, Evidence
from brickyard.selection._thresholds import by_thresholds
from brickyard.surgery._cost import CostModel, Costs, keep_mask
from brickyard.surgery._join import cut
from brickyard.surgery._verify import check_cut, drawn_images


@guarded
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
    images = 0 if job.images is None else sum(len(batch) for batch in job.shown.fit)
    step(f"disassemble: {', '.join(job.choice.classes[:6])} of {relevance.source_name}, with {images:,} images")
    chosen = _choose(job)
    left = sum(map(len, chosen.keep.values()))
    step(f"disassemble: {left:,} channels are kept on the {len(chosen.keep)} axes that are cut")
    network = cut(chosen.graph, chosen.keep)
    check_cut(chosen.graph, chosen.keep, network, job.example)
    step(f"disassemble: cut, and the same as the source with those channels alone; healing: {options['heal']}")
    healed = _heal(job, chosen, network)
    narrow(network, weights_like(model).dtype)
    return _describe(job, chosen, network, healed)


@dataclass(frozen=True)
class Choice:
    """What is to be cut from a source of any kind.

    Attributes:
        graph: The source's axes.
        relevance: What was located, with the thresholds to use.
        options: All options.
        task: The source's classes that are in the task.
        groups: The same, divided among the component's classes.
        classes: The names of these.
        outputs: The class outputs to keep: with a reject output, all.
        answers: What the task's outputs mean.
        decision_thresholds: Those of the task's classes, where they were given.
    """

    graph: Any
    relevance: Any
    options: Any
    task: list[int]
    groups: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    outputs: list[int]
    answers: Outputs
    decision_thresholds: tuple[float, ...] = ()

    @classmethod
    def of(cls, relevance: Relevances, options: Any, graph: Callable[[], Axes]) -> Choice:
        """Check what was asked for.

        Raises:
            BrickyardError: It does not fit together.
        """
        thresholds, budget = options["thresholds"], options["budget"]
        if thresholds is not None and budget is not None:
            raise OptionError("option-conflict", "thresholds= and budget= cannot be combined; give one of them")
        merged = resolve_merged(options["task"], relevance.classes)
        task = _task(merged, relevance, options["reject"])
        given = options.get("decision_thresholds")  # graph networks have none
        known = [*merged, *(name for k, name in enumerate(relevance.classes) if k not in task)]
        shares = () if given is None else thresholds_for(given, known)[: len(merged)]
        answers = find_outputs(relevance.outputs).reading(relevance.boxes, relevance.input_shape).deciding(shares)
        if budget is not None and options["select"] == "taylor":
            check_no_boxes(relevance, "select='taylor'", "use select='damage', which is the default")
        if options["reject"]:
            check_no_boxes(relevance, "reject=True", "leave it out: an image without boxes shows none of the classes")
        if len(merged) < len(task):
            check_no_boxes(relevance, "a class that stands for several", "name each class by itself")
        if len(merged) < len(task):
            answers.any_of(torch.zeros(1, 2))  # refuses where it cannot
        axes = graph()
        if budget is None:
            relevance = relevance.with_thresholds(thresholds or relevance.thresholds, axes)
        outputs = answers.kept(task, len(relevance.classes), options["reject"])
        groups, names = tuple(map(tuple, merged.values())), tuple(merged)
        return cls(axes, relevance, options, task, groups, names, outputs, answers, shares)

    def manifest(
        self, keep: Mapping[str, Tensor], costs: Costs, heal: HealRecord, *, chosen: Selected | None = None
    ) -> ComponentManifest:
        """What the component is and where it came from.

        Args:
            keep: The channels that stay.
            costs: What the source costs with some channels.
            heal: How it was repaired.
            chosen: Where they were chosen on another graph of the source.
        """
        relevance, budget = self.relevance, self.options["budget"]
        axes = self.graph if chosen is None else chosen.graph
        everything = axes.everything()
        part = (costs if chosen is None else CostModel(chosen.graph))(keep_mask(axes, keep))
        return ComponentManifest(
            classes=self.classes,
            task=tuple(self.task),
            members=() if self.classes == tuple(relevance.classes[k] for k in self.task) else self.groups,
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
                for axis in axes
            },
            output_axis=axes.output.name if axes.output is not None else None,
            pinned=axes.pinned(),
            located=relevance.record,
            selection=SelectionRecord(
                thresholds=relevance.thresholds.as_dict() if budget is None else None,
                budget=None
                if budget is None
                else budget.record(self.options["select"], chosen.changed if chosen else None),
                parameters=part.parameters,
                flops=part.flops,
            ),
            heal=heal,
            outputs=relevance.outputs,
            boxes=relevance.boxes,
            decision_thresholds=self.decision_thresholds,
            versions=made_with(),
            created=today(),
        )


@dataclass(frozen=True)
class _Job:
    """The inputs of one call.

    Attributes:
        choice: What is to be cut.
        pool: Images of the task, where there are any.
        images: Those that are used, where any are wanted.
        example: Two images to compare networks on.
    """

    choice: Choice
    pool: Pool | None
    images: Calibration | None
    example: Tensor

    @property
    def shown(self) -> Shown:
        """The images that are used."""
        return Shown([]) if self.images is None else self.images.shown

    @property
    def judge(self) -> Judge:
        """What compares a network's answers with the source's."""
        choice, graph = self.choice, self.choice.graph
        like, reject = kind(graph.network).device, choice.options["reject"]
        others = [k for k in range(len(choice.relevance.classes)) if k not in choice.task]
        return Judge(
            graph,
            choice.answers,
            torch.tensor(choice.task, device=like),
            torch.tensor(others, device=like) if reject else None,
            reject or graph.output is None,
            self.sizes,
        )

    @property
    def sizes(self) -> list[int]:
        """How many of the task's classes become one, class by class."""
        return [len(group) for group in self.choice.groups]

    @property
    def judged(self) -> bool:
        """Whether answers can differ at all."""
        choice = self.choice
        several = len(choice.groups) > 1 or choice.options["reject"]
        return several or not choice.answers.exclusive

    def agreement(self, network: nn.Module) -> float:
        """On how many of the images held back a network gives the source's answer, as a share."""
        same, count = self.judge.agreeing(network, self.shown.held)
        return same / max(1, count)


def _job(model: nn.Module, relevance: Relevance, given: DisassembleOptions) -> _Job:
    """Check the arguments and read the images.

    Raises:
        BrickyardError: They do not fit together.
    """
    if not isinstance(relevance, Relevance):
        raise OptionError(
            "option-wrong-object",
            f"relevance must be the result of locate, got {type(relevance).__name__}; call locate, or load its file",
        )
    merged = resolve_merged(given["task"], relevance.classes)
    pool = Pool.of(relevance, given["images"], [k for group in merged.values() for k in group])
    options: dict[str, Any] = {**given, "task": merged, "select": _criterion(given, pool)}
    choice = Choice.of(relevance, options, lambda: relevance.graph(model))
    select, heal = options["select"], options["heal"]
    if not CRITERIA[select].images and heal == "none":
        if options["more_images"] is not None:
            raise OptionError(
                "option-conflict", "more_images= are fitted to, and heal='none' fits nothing; leave one of them out"
            )
        return _Job(choice, pool, None, drawn_images(choice.graph))
    wanted_by = f"select={select!r}" if CRITERIA[select].images else f"heal={heal!r}"
    alone = len(choice.groups) == 1 or options["reject"]
    images = calibration(choice.graph, pool, options, wanted_by, strangers=alone)
    if heal == "distil" and not images.held:
        raise OptionError(
            "option-needs-data", "heal='distil' is judged on images held back, and there are too few; give at least 3"
        )
    images = replace(images, shown=images.shown.focused(choice.graph, choice.task))
    return _Job(choice, pool, images, images.shown.fit[0][:2])


def _criterion(options: DisassembleOptions, pool: Pool | None) -> str:
    """The criterion to choose channels by.

    Raises:
        OptionError: Options contradict each other.
    """
    select, budget = options["select"], options["budget"]
    if budget is None and select not in (None, "mda"):
        raise OptionError(
            "option-requires-option", f"select={select!r} ranks channels for a budget, and none was given; add budget="
        )
    if select is None:
        select = "mda" if budget is None or (pool is None and options["heal"] == "none") else "damage"
    asked = (
        {}
        if budget is None
        else {
            "factors": budget.factors,
            "rotate": budget.rotate,
            "agreement": budget.agreement,
        }
    )
    for name in (name for name, value in asked.items() if value and select != "damage"):
        raise OptionError(
            "option-conflict",
            f"{name}={asked[name]} needs select='damage', and select={select!r} was given; leave one of them out",
        )
    if options["minutes"] is not None and options["heal"] != "distil":
        raise OptionError(
            "option-requires-option",
            f"minutes= is for heal='distil', and heal={options['heal']!r} was given; leave it out, or ask for distil",
        )
    return select


def _choose(job: _Job) -> Selected:
    """The channels to keep."""
    choice, options = job.choice, job.choice.options
    if (budget := options["budget"]) is None:
        keep, notes = by_thresholds(choice.graph, choice.relevance, choice.task, choice.outputs)
        return Selected(choice.graph, keep, notes=tuple(notes))
    if budget.agreement is not None:
        _check_agreement(job)
    evidence = Evidence(
        choice.graph,
        job.shown.fit,
        choice.outputs,
        options["seed"],
        choice.relevance,
        choice.task,
        budget,
        options["ridge"],
        job.shown.held,
        job.agreement,
        job.shown.near,
    )
    return CRITERIA[options["select"]].select(evidence)


def _check_agreement(job: _Job) -> None:
    """Check that agreement with the source can be measured.

    Raises:
        OptionError: It cannot.
    """
    heal = job.choice.options["heal"]
    if heal in ("none", "moments"):
        raise OptionError(
            "option-conflict",
            f"agreement= is that of a component after a refit, and heal={heal!r} was given; give heal='refit' or "
            "'distil', or a budget of flops= or parameters=",
        )
    if not job.judged:
        raise OptionError(
            "option-conflict",
            "agreement= compares answers, and a component for one class has only one; give flops=, parameters= or "
            "reject=True",
        )
    if not job.shown.held:
        raise OptionError(
            "option-needs-data", "agreement= is measured on images held back, and there are too few; give at least 3"
        )


def _heal(job: _Job, chosen: Selected, network: Network) -> HealRecord:
    """Repair the network in place; what was done."""
    options, images = job.choice.options, job.images
    heal, ridge = options["heal"], options["ridge"]
    if heal == "none" or images is None:
        return HealRecord(method="none", notes=chosen.notes)
    report = heal_network(
        chosen.graph, chosen.keep, network, job.shown, "moments" if heal == "moments" else "refit", ridge
    )
    steps = _distilled(job, network) if heal == "distil" else 0
    return HealRecord(
        method=heal,
        images=images.fitted,
        copies=images.copies,
        ridge=None if heal == "moments" else ridge,
        layers=report.layers,
        notes=(*chosen.notes, *report.notes),
        held=images.held,
        others=images.others,
        ridges=report.ridges if ridge is None else {},
        steps=steps,
    )


def _distilled(job: _Job, network: Network) -> int:
    """Train a repaired network towards its source, in place; the number of steps.

    Each process of a group trains for as long, and all take what the first one has got to.
    """
    choice, images = job.choice, job.images
    assert images is not None
    report = distil_network(
        choice.graph.network,
        network,
        choice.outputs if choice.graph.boxes is None else choice.graph.boxes.kept(tuple(choice.task)),
        images.shown.fit[: images.batches],
        images.shown.held,
        outputs=choice.answers,
        minutes=choice.options["minutes"] or MINUTES,
        batch_size=choice.options["batch_size"],
        seed=choice.options["seed"],
        sizes=() if choice.options["reject"] else job.sizes,
    )
    steps = torch.tensor(report.steps)
    with torch.no_grad():
        Ranks.current().as_first(steps, *network.parameters())
    return int(steps)


def _describe(job: _Job, chosen: Selected, network: Network, healed: HealRecord) -> Component:
    """The component: the network with where it came from, and statistics of its features where images are labelled."""
    choice = job.choice
    manifest = choice.manifest(chosen.keep, CostModel(choice.graph), healed, chosen=chosen)
    used = choice.relevance.used(choice.task).joined(None if job.images is None else job.images.used)
    manifest = manifest.model_copy(update={"used": used})
    component = Component(network, manifest, skeleton_of(chosen.graph))
    told = False
    if job.images is not None and job.judged:
        component, told = _judged(component, job, job.images)
    if job.pool is not None and job.pool.by_class is not None and manifest.boxes is None:
        component = observed(component, job.pool.images, job.pool.by_class, choice.options["batch_size"])
    doubted = [] if told else of_repair(component.manifest)
    doubted += [] if component.manifest.statistics is None else of_statistics(component.manifest)
    if doubted:
        names = ", ".join(component.classes[:3]) + (", ..." if len(component.classes) > 3 else "")
        warnings.warn(f"the component for {names}: {'; '.join(doubted)}", BrickyardWarning, stacklevel=5)
    return component


MINUTES = 5.0  # of training, where none are given
LEAST = 0.05  # score of boxes that tell how often boxes of their score are right
FEW = 0.1  # images to fit with are too few where others agree less often by this


def _judged(component: Component, job: _Job, images: Calibration) -> tuple[Component, bool]:
    """The component with how often it agrees with its source on images held back; whether these are warned of."""
    same, count = job.judge.agreeing(component.network, images.shown.held)
    if not count:
        return component, False
    fitted, shown = job.judge.agreeing(component.network, images.shown.fit[: images.batches])
    few = bool(shown) and fitted / shown - same / count > FEW
    if few:
        warnings.warn(
            f"the component gives its source's answer on {same / count:.1%} of {count} images held back, but on "
            f"{fitted / shown:.1%} of those that it was fitted to: {shown} are too few. Give some hundred more (any "
            "photographs help, and labels are not needed), or keep more of the source",
            BrickyardWarning,
            stacklevel=5,
        )
    return component.with_manifest(agreement=(same, count), precisions=_precisions(component, job.judge, images)), few


def _precisions(component: Component, judge: Judge, images: Calibration) -> PrecisionRecord | None:
    """How often boxes of a detector are right on images held back, by their score; None for a classifier."""
    if not isinstance(judge.outputs, Detections):
        return None
    scores, right = [torch.zeros(0)], [torch.zeros(0)]
    for ours, theirs in judge.answers(component.network, images.shown.held):
        for own, known in zip(judge.outputs.find(ours, LEAST), judge.outputs.find(theirs), strict=True):
            scores.append(own.scores.cpu())
            right.append(matches(own.on_cpu(), known.on_cpu()))
    return fitted(torch.cat(scores), torch.cat(right), images.held)


def narrow(network: Network, dtype: torch.dtype) -> None:
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


def _task(merged: Mapping[str, Sequence[int]], relevance: Relevances, reject: bool) -> list[int]:
    chosen = [k for group in merged.values() for k in group]
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


def skeleton_of(graph: Graph) -> NetworkSpec | None:
    """A graph's network as data, without numbers, or None where it has no form as data."""
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
