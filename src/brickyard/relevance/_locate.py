"""Component locating: from a source and sample images to relevances (the paper's sections 3.1 to 3.3)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from brickyard.axes._detector_models import is_detector
from brickyard.axes._graph import Graph, trace
from brickyard.base._boxes import KIND, split_outputs
from brickyard.base._checks import check_kind, given_path, is_whole
from brickyard.base._classes import MOST_LETTERS, check_class_name, one_too_many, ordered_names, task_classes
from brickyard.base._declare import verb
from brickyard.base._errors import BrickyardWarning, DataError, FileError, OptionError, TaskError
from brickyard.base._messages import brief, told, writable
from brickyard.base._options import LocateOptions
from brickyard.base._records import LocateRecord, Preprocessing
from brickyard.inputs._batches import Images, class_names, warn_of_names
from brickyard.inputs._preprocessing import check_units
from brickyard.inputs._reading import examples
from brickyard.network._fusing import quick_layout
from brickyard.network._identity import SEVERAL, names_of, problem_of, source_of, weights_like
from brickyard.network._layer_types import mixing_of
from brickyard.network._untouched import guarded
from brickyard.outputs._kinds import Outputs
from brickyard.outputs._outputs import find_outputs
from brickyard.relevance._allocation import LayerRecord
from brickyard.relevance._answering import Answering
from brickyard.relevance._checkpoint import Notebook
from brickyard.relevance._contribution import class_sums
from brickyard.relevance._quantities import check_labels, check_no_quantity, check_no_rank
from brickyard.relevance._relevance import Relevance
from brickyard.runtime._processes import Ranks
from brickyard.runtime._progress import bar, say, step

FEW = 20  # images that say nothing about how good a source is
FEWEST = 3  # of which a source answers none: wrong labels, or a wrong source
FAR = 0.1  # below its known accuracy
CANDIDATES = 20  # images that one of the most confident is chosen from, at most
KEEP_BYTES = 1 << 28  # by default, sums are kept up to this size
MOST_NAMED, MOST_TOLD = 24, 8  # classes without images, and those with the most, in a message


@verb(LocateOptions)
def locate(model: nn.Module, data: Any, **options: Unpack[LocateOptions]) -> Relevance:
    """Find out which channels matter for each class.

    Args:
        model: The source: a classifier that takes one image batch and returns (batch, classes).
        data: Training images: `(images, labels)`, a data set, a `DataLoader`, or an iterable of batches.
            Labels are indices into the source's classes.

    In a process group (`torchrun`, or one of your own), every process makes the same call. Each works on its share of
    the images, and all return the same relevances.

    Returns:
        The relevances, which remember the images they come from.

    Raises:
        TraceError: The model cannot be traced, or its weights are missing or not finite.
        DataError: A class has no image, or images or labels do not fit the model.
        TaskError: `task` names an unknown class, or `classes` does not have one usable name per output.
        OptionError: An option has a value that cannot be used.
        FileError: `resume` holds the work of another call, or cannot be written.
        ProcessError: Another process of the group has stopped.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> relevance = by.locate(chain(), (images, labels), per_class=2)
        >>> relevance.hard("conv2").shape
        torch.Size([4, 6])
    """
    return located(model, data, options, _warn_of_files)


@guarded
def located(model: nn.Module, data: Any, options: LocateOptions, look: Callable[[Graph], None]) -> Relevance:
    """Do what `locate` does, with all options given; `look` sees the source's axes before any work is done."""
    model = source_of(model)
    check_no_quantity(model, data)
    asked, boxes = split_outputs(options["outputs"])
    outputs = _kind_of(model, asked)
    kind = find_outputs(outputs)
    check_kind("preprocessing", options["preprocessing"], Preprocessing, "give brickyard.Preprocessing(mean=..., ...)")
    _check_name(options["name"])
    resume = None if options["resume"] is None else given_path(options["resume"], "the folder to go on from")
    images = Images(data, options["preprocessing"], "the images to locate with", kind.label_dims)
    example = images.example(weights_like(model))
    check_units(images.preprocessing, example.shape[1:])
    graph = trace(model, example, options["output"], boxes=boxes)
    kind = kind.reading(graph.boxes, graph.input_shape)
    look(graph)
    like = weights_like(graph.network)  # half-precision networks are processed in float32
    _check_kind(kind, outputs, graph)
    check_no_rank(graph)
    relevance = _blank(model, graph, images, data, {**options, "outputs": outputs})
    if options["classes"] is not None:
        warn_of_names(data, relevance.classes, "the images to locate with", 6)
    layout = quick_layout(graph.network, example.to(like.dtype))
    notebook = Notebook(resume, relevance, images)
    run = _Run(graph, kind, images, options["batch_size"], like, notebook, Ranks.current(), layout)
    step(f"locate: {relevance.source_name} has {len(graph.axes)} channel axes, {graph.channels:,} channels")
    chosen = _choose(run, relevance)
    counts = tuple(len(chosen.get(k, ())) for k in range(len(relevance.classes)))
    relevance.record = relevance.record.model_copy(update={"images": counts})
    step(f"locate: {sum(counts):,} images of {len(chosen):,} classes, chosen by {options['choose']!r}")
    relevance.attach(images, [index for indices in chosen.values() for index in indices], graph)
    right = _fill(run, relevance, chosen)
    relevance.marks = images.marks([index for indices in chosen.values() for index in indices])
    total = right.sum(0).tolist()
    relevance.record = relevance.record.model_copy(update={"right": (total[0], total[1])})
    step(f"locate: done; the source answers {total[0]:,} of {total[1]:,} images correctly")
    prepared = torch.tensor(int(not images.all_raw))
    run.ranks.add(prepared)
    if int(prepared):
        relevance.preprocessing = images.preprocessing.model_copy(update={"unknown": True})
    _warn(relevance, right, options["accuracy"])
    return relevance


def _kind_of(model: nn.Module, asked: str | None) -> str:
    """The kind of outputs that was asked for, or that a model of transformers or torchvision says of itself."""
    if is_detector(model) and asked in (None, KIND):
        return KIND
    if asked is not None or problem_of(model) != SEVERAL:
        return asked or "one"
    say(f"{type(model).__name__}: an image may belong to several of its classes (problem_type of its config), as with "
        "outputs='several': a label is a row with 0 or 1 for each; outputs='one' takes the likeliest only")  # fmt: skip
    return "several"


def _check_kind(kind: Outputs, name: str, graph: Graph) -> None:
    """Refuse a kind of outputs in which classes do not compete for a source whose classes do.

    Raises:
        OptionError: The source ends in a softmax, or both classes come of one logit.
    """
    if not kind.exclusive and (graph.one_logit or "softmax" in graph.ending or graph.ending == "probabilities"):
        found = "both classes come of one logit" if graph.one_logit else f"the source ends in {graph.ending}"
        raise OptionError(
            "option-conflict",
            f"outputs={name!r} is for classes that do not exclude each other, but {found}; leave outputs= out",
        )


def check_savable(graph: Graph) -> None:
    """Refuse a source of which no component can be written to a file.

    Raises:
        FileError: It has a step that files have no form for.
    """
    graph.network.to_spec()


def _warn_of_files(graph: Graph) -> None:
    """Say before any work that components of a source cannot be written to files, and why."""
    try:
        check_savable(graph)
    except FileError as error:
        warnings.warn(f"components of this source cannot be saved: {error}", BrickyardWarning, stacklevel=6)


def _warn(relevance: Relevance, counts: Tensor, known: float | None) -> None:
    """Say when a source is no better than chance on the images, or on most classes, and what that may come from.

    `counts` are how many images of each class it answers correctly, and how many it was asked: (classes, 2). Where its
    accuracy is `known`, say too when it is far from that.
    """
    right, asked = counts.sum(0).tolist()
    if known is not None and _far_below(right, asked, known, len(relevance.classes) / len(relevance.task)):
        warnings.warn(
            f"{relevance.source_name} answers {right:,} of {asked:,} images correctly ({right / asked:.1%}), but is "
            f"known to answer {known:.1%} correctly: check the preprocessing, the names and the order of the "
            "classes, labels that start at 1, and whether these images are of the kind that it was trained on",
            BrickyardWarning,
            stacklevel=6,
        )
        return
    chance = 1 / len(relevance.classes)
    seen = counts[counts[:, 1] >= FEW // 4]
    never = int((seen[:, 0] == 0).sum())
    by_chance = right <= asked * chance + 2 * math.sqrt(asked * chance * (1 - chance))
    none = right == 0 and asked >= FEWEST
    if not none and (asked < FEW or not (by_chance or never > len(seen) / 2)):
        return
    found = f"no better than chance ({chance:.1%})" if by_chance else f"and none of {never} of {len(seen)} classes"
    warnings.warn(
        f"{relevance.source_name} answers {right:,} of {asked:,} images correctly, {found}: check the preprocessing, "
        "the names and the order of the classes, labels that start at 1, and whether the trained weights were loaded",
        BrickyardWarning,
        stacklevel=6,
    )


def _far_below(right: int, asked: int, known: float, ratio: float) -> bool:
    """Whether a source does clearly worse than its known accuracy: by more than ten points and three standard errors.

    Where one of `ratio` classes is located, all of its known errors may be in these.
    """
    least = max(0.0, 1 - (1 - known) * ratio)
    error = math.sqrt(max(least * (1 - least), 1 / asked) / asked) if asked else 0.0
    return asked >= FEW and right / asked < least - max(FAR, 3 * error)


def _blank(model: nn.Module, graph: Graph, images: Images, data: Any, options: LocateOptions) -> Relevance:
    """Create relevances with no class located yet."""
    classes, task, choose, keep_sums = options["classes"], options["task"], options["choose"], options["keep_sums"]
    if classes is None:
        classes = class_names(data) or names_of(model, graph.output_width)
    names = output_names(classes, graph.output_width)
    wanted = task_classes(task, names) if task is not None else list(range(len(names)))
    size = sum(m.reads.size * m.writes.size for m in graph.mixers()) * 4 * len(names)  # of all classes
    record = LocateRecord(
        choose=choose,
        per_class=None if choose == "all" else options["per_class"],
        seed=options["seed"],
        images=(0,) * len(names),
        data=str(getattr(data, "name", type(data).__name__)),
        ending=graph.ending or None,
        output=None if options["output"] is None else str(options["output"]),
        given=len(images),
    )
    return Relevance.blank(
        model,
        graph,
        layer_records(graph),
        options,
        record,
        classes=names,
        task=tuple(wanted),
        preprocessing=images.preprocessing,
        outputs=str(options["outputs"]),
        boxes=graph.boxes,
        sums={} if (size <= KEEP_BYTES if keep_sums is None else keep_sums) else None,
    )


@dataclass(frozen=True)
class _Run:
    """State shared by the steps of one call."""

    graph: Graph
    outputs: Outputs
    images: Images
    batch_size: int
    like: Tensor
    notebook: Notebook
    ranks: Ranks
    layout: torch.memory_format

    @cached_property
    def answering(self) -> Answering | None:
        """What finds where a detector answers for a class; None for a classifier."""
        return None if self.graph.boxes is None else Answering(self.graph)

    def batches(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Preprocessed images, in the fastest memory layout."""
        look = self.notebook.watching(indices)
        for x, _ in self.images.batches(indices, self.batch_size, self.like, look):
            yield x.contiguous(memory_format=self.layout)

    def split(self, indices: Sequence[int]) -> list[Sequence[int]]:
        return [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]


def _fill(run: _Run, relevance: Relevance, chosen: dict[int, list[int]]) -> Tensor:
    """Locate all classes, one per process at a time: images are dealt out, and each sum has an owner.

    Returns:
        For each class, how many images the source answers correctly, and how many it was asked: (classes, 2).
    """
    ranks = run.ranks
    right = torch.zeros(len(relevance.classes), 2, dtype=torch.int64)

    def count(k: int, seen: Tensor, logits: Tensor) -> None:
        seen += torch.tensor([int(run.outputs.says(logits)[:, k].sum()), len(logits)])

    known = [run.notebook.recall(k, chosen[k], relevance, run.graph) for k in chosen]
    done = torch.tensor([int(found is not None) for found in known])
    ranks.add(done)  # processes on several machines may see different folders
    left = [k for k, places in zip(chosen, done.tolist(), strict=True) if places < ranks.count]
    for k, found in zip(chosen, known, strict=True):
        if found is not None and k not in left and ranks.rank == 0:
            right[k] = found
    with bar("locating", len(chosen)) as advance:
        advance(len(chosen) - len(left))
        for start in range(0, len(left), ranks.count):
            block = left[start : start + ranks.count]
            deals = [(k, part) for k in block for part in run.split(chosen[k])]
            for owner, k in enumerate(block):
                parts = [part for at, part in ranks.mine(deals) if at == k]
                seen = torch.zeros(2, dtype=torch.int64)
                batches = (x for part in parts for x in run.batches(part))
                answering = None if run.answering is None else partial(run.answering, k=k)
                sums = class_sums(run.graph, batches, partial(count, k, seen), answering)
                read = run.notebook.seen(chosen[k])
                for value in (seen, read, *(value.totals for value in sums.values())):
                    ranks.add_for(owner, value)
                if owner == ranks.rank:
                    relevance.add_class(k, sums, run.graph)
                    right[k] = seen
                    run.notebook.write(k, chosen[k], relevance, seen, read)
                advance(text=f"locating {relevance.classes[k]}")
    relevance.gather(left, ranks, run.graph)
    ranks.add(right)
    return right


def _check_name(name: Any) -> None:
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= MOST_LETTERS and writable(name)):
        raise OptionError(
            "option-syntax",
            f"a source's name must be a string of 1 to {MOST_LETTERS} characters, got "
            f"name={brief(name)}; give another, or leave it out",
        )


def output_names(classes: Any, count: int) -> tuple[str, ...]:
    if classes is None:
        return tuple(map(str, range(count)))
    classes = ordered_names(classes)
    if isinstance(classes, str | bytes | set | frozenset) or not isinstance(classes, Iterable):
        raise TaskError(
            "task-type",
            f"class names must be a list in the order of the model's outputs, got {brief(classes)} "
            f"of type {type(classes).__name__}; give a list of {count} names",
        )
    given = list(classes)
    names = tuple(map(str, given))
    if len(names) != count:
        raise TaskError(
            "task-class-count",
            f"got {len(names)} class names for {count} model outputs; give one per class"
            f"{one_too_many(len(names), count)}",
        )
    for place, (item, name) in enumerate(zip(given, names, strict=True)):
        check_class_name(name if is_whole(item) else item, f"class {place}")
    if len(set(names)) != count:
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskError(
            "task-duplicate-class", f"class name {brief(twice)} occurs twice; names must be unique: rename one of them"
        )
    return names


def layer_records(graph: Graph) -> dict[str, LayerRecord]:
    """What locating needs to know about each layer, in network order."""
    return {
        mixer.name: LayerRecord(mixer.reads, mixer.writes, mixing_of(graph.network.layer(mixer.name)).linear)
        for mixer in sorted(graph.mixers(), key=lambda mixer: mixer.position)
    }


def _choose(run: _Run, relevance: Relevance) -> dict[int, list[int]]:
    """Choose the images to use for each class to locate, as indices."""
    names, record, per_class = relevance.classes, relevance.record, relevance.record.per_class
    labels = run.images.all_labels()
    check_labels(run.outputs, labels, run.graph)
    pools = {k: torch.nonzero(run.outputs.members(labels, k)).flatten().tolist() for k in relevance.task}
    if missing := [names[k] for k, pool in pools.items() if not pool]:
        raise _without_images(missing, relevance, labels, run.outputs)
    if record.choose == "all":
        return pools
    assert per_class is not None
    if record.choose == "random":
        return _drawn(pools, per_class, record.seed)
    most = CANDIDATES * per_class
    if larger := sum(len(pool) > most for pool in pools.values()):
        relevance.record = record.model_copy(update={"candidates": most})
        say(f"{larger:,} classes have more than {most:,} images; the most confident ones are those of {most:,} drawn")
        pools = {k: sorted(pool) for k, pool in _drawn(pools, most, record.seed).items()}
    every = [index for pool in pools.values() for index in pool]
    confidence = run.notebook.recall_numbers(pools)
    known = torch.tensor(int(confidence is not None))
    run.ranks.add(known)
    if confidence is None or int(known) < run.ranks.count:
        classes = torch.tensor([k for k, pool in pools.items() for _ in pool])
        confidence = _confidences(run, every, classes)
        read = run.notebook.seen(every)
        run.ranks.add(read)
        if run.ranks.rank == 0:
            run.notebook.write_numbers(pools, confidence, read)
    left = iter(confidence.tolist())
    ordered = {k: sorted((-next(left), index) for index in pool) for k, pool in pools.items()}
    return {k: [index for _, index in ranking[:per_class]] for k, ranking in ordered.items()}


def _without_images(missing: Sequence[str], relevance: Relevance, labels: Tensor, outputs: Outputs) -> DataError:
    """The error for classes that no image is of: which they are, and of which classes most images are."""
    names = relevance.classes
    counts = {name: int(outputs.members(labels, k).sum()) for k, name in enumerate(names)}
    most = sorted((name for name in names if counts[name]), key=lambda name: -counts[name])
    there = ", ".join(f"{name!r} ({counts[name]:,})" for name in most[:MOST_TOLD])
    more = f" and {len(missing) - MOST_NAMED:,} more" if len(missing) > MOST_NAMED else ""
    which = f"class{' ' if len(missing) == 1 else 'es '}{examples(missing, MOST_NAMED)}{more}"
    what = f"none of the {len(labels):,} images ({told(relevance.record.data, 100)}) is of {which}"
    rest = f"; of {len(most):,} classes that there are, most images are of {there}" if most else ""
    advice = "give at least one of each, or leave these classes out of the task"
    return DataError("data-class-without-images", f"{what}{rest}; {advice}")


def _drawn(pools: dict[int, list[int]], most: int, seed: int) -> dict[int, list[int]]:
    """At most so many images of each class, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: [pool[i] for i in torch.randperm(len(pool), generator=generator)[:most].tolist()]
        for k, pool in pools.items()
    }


def _confidences(run: _Run, indices: list[int], classes: Tensor) -> Tensor:
    """The source's log-probability that each image belongs to its given class, (images,) in float64."""
    found = torch.zeros(len(indices), dtype=torch.float64)
    starts = range(0, len(indices), run.batch_size)
    with bar("choosing images", len(indices)) as advance, torch.inference_mode():
        for start in run.ranks.mine(starts):
            part = slice(start, start + run.batch_size)
            for x in run.batches(indices[part]):
                logits = run.graph.network(x).double()
                own = classes[part].to(logits.device).unsqueeze(1)
                found[part] = run.outputs.log_probabilities(logits).gather(1, own).squeeze(1).cpu()
            advance(len(indices[part]) * run.ranks.count)
    run.ranks.add(found)
    return found
