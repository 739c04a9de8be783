"""Evaluation: each component against its source with only the task's outputs competing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Unpack, overload

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly, check_model
from brickyard.assembly._cascade import course_of, measured
from brickyard.assembly._labelled import Shared, shared_signals
from brickyard.axes._graph import trace
from brickyard.base._boxes import KIND
from brickyard.base._declare import verb
from brickyard.base._errors import DataError, OptionError
from brickyard.base._options import EvaluateOptions
from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.evaluation._detectors import DetectorScores, evaluate_detector
from brickyard.evaluation._roc import Roc
from brickyard.evaluation._scores import Row, Scores
from brickyard.evaluation._sieve import Sieve, named
from brickyard.inputs._batches import Images, warn_of_names
from brickyard.inputs._box_data import BoxData
from brickyard.inputs._preprocessing import preprocess
from brickyard.network._identity import fingerprint, source_of
from brickyard.network._network import kind
from brickyard.network._untouched import guarded
from brickyard.outputs._kinds import Cases
from brickyard.outputs._outputs import find_outputs
from brickyard.runtime._processes import Ranks
from brickyard.runtime._profiling import Latency, count_flops, count_parameters, measure_latency
from brickyard.runtime._progress import bar, step


@overload
def evaluate(model: Component | Assembly, data: BoxData, **options: Unpack[EvaluateOptions]) -> DetectorScores: ...


@overload
def evaluate(model: Component | Assembly, data: Any, **options: Unpack[EvaluateOptions]) -> Scores: ...


@guarded
@verb(EvaluateOptions)
def evaluate(model: Component | Assembly, data: Any, **options: Unpack[EvaluateOptions]) -> Scores | DetectorScores:
    """Score a component or an assembly, and optionally its sources.

    Args:
        model: The component or assembly.
        data: Labelled test images, as for `locate`: labels are indices into the source's classes. For an
            assembly, a list with one entry per part. Those that were
            used to locate, heal or scale are known again, and left out.

    Returns:
        Rows with accuracies, sizes and latencies; prints as a table, writes JSON and CSV.
        base: the source with all its classes competing. restricted: the source with only the task's outputs
        competing, the fair baseline. component: the component's accuracy; `drop` is restricted minus component.
        oracle: each image sent to the right component. assembled: all classes of all parts competing.
        For the component of a detector, whose data have boxes, the rows have mean average precisions.

    Raises:
        DataError: The images cannot be used, none belongs to the task, or a source is not that of its component.
            All images were used to locate, heal or scale.
        OptionError: `model` is neither a component nor an assembly.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(80, 3, 8, 8), torch.arange(80) % 4
        >>> source = chain()
        >>> relevance = by.locate(source, (images[:60], labels[:60]))
        >>> component = by.disassemble(source, relevance, task=["1", "3"])
        >>> scores = by.evaluate(component, (images, labels), source=source, latency=False)
        >>> [row.name for row in scores.rows], scores.rows[0].images
        (['base', 'restricted', 'component'], 10)
        >>> print(scores.notes[0])
        30 of 40 images were used to locate, heal or scale, and are left out (--including-calibration scores them too)
    """
    batch_size = options["batch_size"]
    check_model(model, "evaluate")
    sources = sources_of(model, options["source"])
    known = sum(source is not None for source in sources)
    step(f"evaluate: {len(model.classes)} classes of {len(sources)} parts, of which {known} are compared with a source")
    sieve = Sieve.of(model.manifest, options["including_calibration"])
    if model.manifest.outputs == KIND:
        return evaluate_detector(model, data, sources, options, sieve)
    if isinstance(model, Component):
        answered = _component(model, data, sources[0], batch_size, sieve)
    else:
        answered = _assembly(model, data, sources, batch_size, sieve)
    step(f"evaluate: {len(answered.right[answered.name]):,} cases scored in {len(answered.right)} rows")
    sizes = _sizes(model, answered.name)
    if answered.flops is not None:
        sizes[answered.name]["flops"] = answered.flops
    if options["latency"]:
        step(f"evaluate: measuring latency in batches of {options['latency_batch']}")
        for name, value in _times(model, answered.name, sources, options["latency_batch"]).items():
            sizes[name]["latency"] = dict(value.__dict__)
    found = scored(model.classes, answered, sizes, sieve.notes)
    return found.model_copy(update={"overlap": sieve.overlap, "data": named(data), "data_sha256": sieve.sha256})


def scored(
    classes: Sequence[str], answered: Answered, sizes: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()
) -> Scores:
    """What was answered as a table: with the names of its classes, and what else is known of each row."""
    cases = answered.cases
    shown = torch.bincount(cases.classes[cases.wanted.bool()], minlength=len(classes)).tolist()
    found = Scores(
        title=answered.title,
        rows=tuple(row.model_copy(update=dict(sizes.get(row.name, {}))) for row in _rows(answered)),
        notes=(*answered.notes, *notes, *answered.other_texts),
        other_classes=tuple(left for left, _ in answered.others),
        per_class=per_class(classes, answered.right[answered.name], cases.classes),
        per_class_images=dict(zip(classes, shown, strict=True)),
        counted=answered.counted,
    )
    return found.model_copy(update={"notes": (*found.notes, found.scope)}) if found.untried else found


def sources_of(model: Any, given: Any) -> list[nn.Module | None]:
    """The source of each part, or None."""
    parts = model.manifest.parts
    listed = isinstance(given, list | tuple)
    if listed and (isinstance(model, Component) or len(given) != len(parts)):
        wanted = "one source" if isinstance(model, Component) else f"{len(parts)} sources, or None where there is none"
        raise OptionError("option-count", f"a list of {len(given)} sources was given; give {wanted}")
    sources = [None if item is None else source_of(item) for item in (given if listed else [given] * len(parts))]
    for part, source in zip(parts, sources, strict=True):
        if source is not None and (found := fingerprint(source)) != part.source.sha256:
            why = f"the component was cut from {part.source.name!r} with weights {part.source.sha256[:12]}"
            advice = f"the source given has {found[:12]}: give the source that it came from"
            raise DataError("data-wrong-source", f"{why}; {advice}")
    return sources


Ask = Callable[[Tensor], Tensor]
"""Numbers of examples -> a model's outputs, (examples, outputs)."""


# -- answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """What was answered right.

    Attributes:
        title: Title of the table.
        cases: What is scored.
        right: For each row, whether each case was answered correctly. The model's own row comes last; it is compared
            with the row before it, if any.
        scores: For each row, a score that separates images of a single class from others; empty otherwise.
        inside: Which of the scored images belong to the class.
        notes: Notes for the reader.
        measures: For each row, further figures of its kind of outputs.
        flops: Those of the model itself per image, where they depend on the images.
        counted: What the images are called.
        others: For each part, how many of its images are of no class that is scored, and how many there are.
    """

    title: str
    cases: Cases
    right: dict[str, Tensor]
    scores: dict[str, Tensor]
    inside: Tensor
    notes: tuple[str, ...]
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    flops: int | None = None
    counted: str = "images"
    others: tuple[tuple[int, int], ...] = ()

    @property
    def other_texts(self) -> list[str]:
        """How many images of other classes were left out, a sentence for each part that has some."""
        found = []
        for index, (left, given) in enumerate(self.others):
            whose = f" for part {index}" if len(self.others) > 1 else ""
            if left:
                found.append(f"{left:,} of {given:,} {self.counted}{whose} are of other classes, and are left out")
        return found

    @property
    def name(self) -> str:
        """Name of the model's own row."""
        return list(self.right)[-1]


def _component(component: Component, data: Any, source: nn.Module | None, batch_size: int, sieve: Sieve) -> Answered:
    warn_of_names(data, component.manifest.source.classes, "the images to score")
    images = Images(data, component.manifest.preprocessing, "the images to score", component.outputs.label_dims)
    output = component.manifest.output
    whole = (
        None if source is None else lambda some: _logits(_network_of(source, images, output), images, batch_size, some)
    )
    labels = images.all_labels()

    def fresh(chosen: Tensor) -> Tensor:
        return chosen[sieve.fresh(images, chosen, labels[chosen])]

    own = partial(_logits, component, images, batch_size)
    return component_answers(component, labels, own, whole, fresh=fresh, check=sieve.check)


def component_answers(
    component: Any,
    labels: Tensor,
    own: Ask,
    whole: Ask | None,
    what: str = "images",
    *,
    fresh: Callable[[Tensor], Tensor] = lambda chosen: chosen,
    check: Callable[[bool], None] = lambda left: None,
) -> Answered:
    """What a component of any kind answers right, and its source, which `whole` asks, if there is one.

    `labels` are those of all examples, as the source counts classes, and `what` is what messages call these. `fresh`
    leaves some examples out, and `check` is told whether any of the task are left.
    """
    manifest, outputs, task = component.manifest, component.outputs, torch.tensor(component.manifest.leads)
    targets = outputs.targets(labels, torch.tensor(manifest.places[0]), len(task))
    cases = outputs.cases(targets)
    if not cases.wanted.any():
        why = f"none of the {len(labels)} {what} belongs to the task {', '.join(manifest.classes[:8])}"
        advice = "give some that do, with labels that are indices into the source's classes"
        raise DataError("data-no-task-class", f"{why}: {advice}")
    single = len(task) == 1
    chosen = torch.arange(len(labels)) if single else cases.images.unique()  # AUROC wants the other images too
    others = len(labels) - len(chosen)
    chosen = fresh(chosen)
    cases, inside = outputs.cases(targets[chosen]), outputs.members_of(labels[chosen], manifest.groups[0])
    check(bool(cases.wanted.any()))
    found = own(chosen)
    answers, scores = {"component": found[:, : len(task)]}, {}
    if single and not inside.all():
        scores["component"] = found[:, 0] - found[:, 1] if manifest.reject else found[:, 0]
    if whole is not None:
        found = outputs.gathered(whole(chosen), manifest.groups)
        answers = {"restricted": found[:, task], **answers}
        if scores:
            scores |= {"base": outputs.log_probabilities(found)[:, task[0]], "restricted": found[:, task[0]]}
    right = {name: outputs.right(logits, cases) for name, logits in answers.items()}
    measures = {name: outputs.measures(logits, cases) for name, logits in answers.items()}
    if whole is not None:
        every = outputs.placed(task, found.shape[1])
        right = {"base": every.right(found, cases.of(task)), **right}
        measures["base"] = every.measures(found, cases.of(task))
    note = "a task of one class is always answered right; AUROC against the other classes says more"
    title = f"{', '.join(manifest.classes[:6])}{' ...' if len(task) > 6 else ''} of {manifest.source.name}"
    notes = (note,) if single and outputs.exclusive else ()
    counts = ((others, len(labels)),)
    return Answered(title, cases, right, scores, inside, notes, measures, counted=what, others=counts)


def _assembly(
    assembly: Assembly, data: Any, sources: Sequence[nn.Module | None], batch_size: int, sieve: Sieve
) -> Answered:
    manifest, outputs = assembly.manifest, assembly.outputs
    gated = assembly.gate is not None
    seen = shared_signals(assembly, data, features=gated, batch_size=batch_size, sieve=sieve.examples)
    found: dict[str, list[Tensor]] = {"base": [], "restricted": [], "oracle": []}
    networks: dict[tuple[int, str | None], nn.Module] = {}
    empty: list[str] = []
    logits = seen.signals[0].split([len(columns) for columns in manifest.columns], 1)
    for index, (part, source) in enumerate(zip(manifest.parts, sources, strict=True)):
        mine, task = seen.owners == index, torch.tensor(manifest.tasks[index])
        if not mine.any():
            empty.append(f"0 images were scored for part {index} ({part.source.name})")
            continue
        place = torch.full((len(manifest.classes),), -1)
        place[torch.tensor(manifest.places[index])[task]] = torch.arange(len(task))
        cases = outputs.cases(seen.targets[mine]).of(place)
        own = find_outputs(part.outputs).deciding(part.thresholds_of(manifest.tasks[index]))
        found["oracle"].append(own.right(logits[index][mine, : len(task)], cases))
        if source is not None:
            images = Images(data[index], part.preprocessing, label_dims=outputs.label_dims)
            which = id(source), part.output  # one source may be that of several parts
            if which not in networks:
                networks[which] = _network_of(source, images, part.output)
            whole = own.gathered(_logits(networks[which], images, batch_size, seen.places[mine]), part.groups)
            found["base"].append(own.placed(task, whole.shape[1]).right(whole, cases.of(task)))
            found["restricted"].append(own.right(whole[:, task], cases))
    cases = outputs.cases(seen.targets)
    known = found if all(source is not None for source in sources) else {"oracle": found["oracle"]}
    right = {name: torch.cat(values) for name, values in known.items()}
    joined, flops, notes = assembly.scaled(*seen.signals), None, ["drop of an assembly: oracle minus assembled", *empty]
    if assembly.stages:
        joined, flops, note = _in_turn(assembly, seen, joined, batch_size)
        notes.append(note)
    right["assembled"] = outputs.right(joined, cases)
    measures = {"assembled": outputs.measures(joined, cases)}
    title = assembly_title(manifest)
    return Answered(title, cases, right, {}, seen.owners, tuple(notes), measures, flops, others=seen.others)


def _in_turn(assembly: Assembly, seen: Shared, logits: Tensor, batch_size: int) -> tuple[Tensor, int, str]:
    """What a cascade answers, given the logits of all parts: its own, its FLOPs per image, and a note."""
    course = course_of(assembly, seen, logits, batch_size)
    costs = [count_flops(*pair) for pair in assembly.shaped_networks()]
    found = measured(assembly.manifest, course, logits, costs, seen.unknown)
    note = (
        f"the parts ran in turn: {found['flops']:.2f} of the FLOPs of all parts, and {found['agreement']:.2%} of their "
        "answers; the FLOPs are the mean of these images"
    )
    return course.logits, round(course.flops(costs)), note


def assembly_title(manifest: AssemblyManifest) -> str:
    """What the table of an assembly is called."""
    return (
        f"{len(manifest.classes)} classes from {len(manifest.parts)} parts, {manifest.form}, "
        f"scaling {manifest.scaling.name}"
    )


def _network_of(source: nn.Module, images: Images, output: str | None) -> nn.Module:
    """What computes the logits of a source, whatever it returns them in."""
    return trace(source, images.example(kind(source)), output).network


def _logits(model: nn.Module, images: Images, batch_size: int, chosen: Tensor) -> Tensor:
    """Outputs for the chosen images, (images, outputs), in float64; processes of a group share the work."""
    like, ranks, order = kind(model), Ranks.current(), chosen.tolist()
    parts: list[tuple[int, Tensor]] = []
    with torch.inference_mode(), bar("scoring", len(order)) as advance:
        for start in ranks.mine(range(0, len(order), batch_size)):
            for x, _ in images.batches(order[start : start + batch_size], batch_size, like):
                parts.append((start, run_images(model, x, images.what).double().cpu()))
                advance(len(x) * ranks.count)
    width = ranks.joined(torch.tensor([max((logits.shape[1] for _, logits in parts), default=1)]))
    found = torch.zeros(len(order), int(width.max()), dtype=torch.float64)
    for start, logits in parts:
        found[start : start + len(logits)] = logits
    ranks.add(found)
    return found


# -- sizes and times ---------------------------------------------------------------------------------------


def _sizes(model: Component | Assembly, name: str) -> dict[str, dict[str, Any]]:
    """Parameters and FLOPs of all sources, and of the model under its row's name."""
    parts = model.manifest.parts
    distinct = {part.source.sha256: part.source for part in parts}.values()
    parameters, flops = sizes(model)
    return {
        "base": {"parameters": sum(s.parameters for s in distinct), "flops": sum(s.flops for s in distinct)},
        name: {"parameters": parameters, "flops": flops},
    }


def sizes(model: Component | Assembly) -> tuple[int, int]:
    """The parameters of a model, and its FLOPs per image."""
    pairs = [(model.network, model.input_shape)] if isinstance(model, Component) else model.distinct_networks()
    return count_parameters(model), sum(count_flops(*pair) for pair in pairs)


def _times(
    model: Component | Assembly, name: str, sources: Sequence[nn.Module | None], batch: int
) -> dict[str, Latency]:
    """Measure the latency of one batch for the model, and for its sources if all are given.

    Components and their sources are timed on preprocessed images, assemblies and theirs on raw ones.
    """
    parts = model.manifest.parts
    noise = torch.rand(batch, *parts[0].input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    used = {id(source): (source, part) for source, part in zip(sources, parts, strict=True) if source is not None}

    def taken(network: nn.Module, part: ComponentManifest) -> Tensor:
        image = noise if isinstance(model, Component) else preprocess(noise, part.preprocessing)
        like = next(network.parameters())
        return image.to(like.device, like.dtype)

    image = taken(model, parts[0]) if isinstance(model, Component) else noise
    calls: dict[str, Callable[[], object]] = {name: lambda: model(image)}
    if None not in sources:
        calls["base"] = lambda: [source(taken(source, part)) for source, part in used.values()]
    return measure_latency(calls, batch=batch)


# -- figures -----------------------------------------------------------------------------------------------


def _rows(answered: Answered) -> list[Row]:
    changes: dict[str, dict[str, float]] = {name: {} for name in answered.right}
    if len(changes) > 1:
        *_, other, own = answered.right.values()
        gap = _shares(other.double() - own.double(), answered.cases.images)
        changes[answered.name] = {"drop": _percent(gap), "drop_error": _error(gap)}
    found = {name: Roc.of(score, answered.inside) for name, score in answered.scores.items()}
    for name, roc in found.items():
        changes[name] |= {"auroc": roc.area, "auroc_error": roc.error}
    if "restricted" in found:
        drop, error = found[answered.name].below(found["restricted"])
        changes[answered.name] |= {"auroc_drop": drop, "auroc_drop_error": error}
    rows = [_accuracy_row(name, right, answered.cases) for name, right in answered.right.items()]
    return [row.model_copy(update={**answered.measures.get(row.name, {}), **changes[row.name]}) for row in rows]


def _accuracy_row(name: str, right: Tensor, cases: Cases) -> Row:
    """Compute accuracy over images and over classes, each with one standard error."""
    share = _shares(right.double(), cases.images)
    counts = torch.bincount(cases.classes)
    present = counts > 0
    means = torch.bincount(cases.classes, weights=right.double())[present] / counts[present]
    variance = (means * (1 - means) / counts[present]).sum() / len(means) ** 2
    return Row(
        name=name,
        images=len(share),
        accuracy=_percent(share),
        error=_error(share),
        class_accuracy=100 * means.mean().item(),
        class_error=100 * math.sqrt(variance.item()),
    )


def _shares(values: Tensor, images: Tensor) -> Tensor:
    """Mean over the cases of each image."""
    _, index, counts = images.unique(return_inverse=True, return_counts=True)
    means: Tensor = torch.bincount(index, weights=values) / counts
    return means


def _percent(values: Tensor) -> float:
    return 100 * values.mean().item()


def _error(values: Tensor) -> float:
    """Standard error of a mean, in points."""
    return 100 * values.std(correction=0).item() / math.sqrt(len(values))


def per_class(names: Sequence[str], right: Tensor, classes: Tensor) -> dict[str, float]:
    """Accuracy of each class that has cases, in percent."""
    hits = torch.bincount(classes, weights=right.double(), minlength=len(names)).tolist()
    counts = torch.bincount(classes, minlength=len(names)).tolist()
    return {name: 100 * (hit / count) for name, hit, count in zip(names, hits, counts, strict=True) if count}
