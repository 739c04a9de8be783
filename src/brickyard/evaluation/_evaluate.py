"""Honest scores: every component against its source with only the task's outputs competing."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly, network_shapes
from brickyard.assembly._labelled import shared_signals
from brickyard.base._declare import verb
from brickyard.base._errors import DataError, OptionError
from brickyard.base._options import EvaluateOptions
from brickyard.base._records import ComponentManifest
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.evaluation._roc import Roc
from brickyard.evaluation._scores import Row, Scores
from brickyard.inputs._batches import Images
from brickyard.inputs._preprocessing import preprocess
from brickyard.network._identity import fingerprint, source_of
from brickyard.network._network import kind
from brickyard.network._untouched import as_before
from brickyard.runtime._isolation import steady
from brickyard.runtime._processes import Ranks
from brickyard.runtime._profiling import Latency, count_flops, count_parameters, measure_latency
from brickyard.runtime._progress import bar


@steady
@verb(EvaluateOptions)
def evaluate(model: Component | Assembly, data: Any, **options: Unpack[EvaluateOptions]) -> Scores:
    """Score a component or an assembly against its source or sources.

    Args:
        model: What to score.
        data: Labelled test images, as for `locate`: labels are indices into the source's classes. For an
            assembly, a list with one entry per part. Images that were used to locate, heal or scale must not be
            among them.

    Returns:
        Rows with accuracies, sizes and times; prints as a table, writes JSON and CSV.
        base: the source with all its classes competing. restricted: the source with only the task's outputs
        competing, the fair baseline. component: its own accuracy; `drop` is restricted minus component.
        oracle: each image sent to the right component. assembled: all classes of all parts competing.

    Raises:
        DataError: The images cannot be used, or none belongs to the task, or a source is another one.
        OptionError: `model` is neither a component nor an assembly.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> data = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
        >>> source = chain()
        >>> component = by.disassemble(source, by.locate(source, data), task=["1", "3"])
        >>> scores = by.evaluate(component, data, source=source, latency=False)
        >>> [row.name for row in scores.rows]
        ['base', 'restricted', 'component']
    """
    source, latency = options["source"], options["latency"]
    latency_batch, batch_size = options["latency_batch"], options["batch_size"]
    if isinstance(model, Component):
        if isinstance(source, list | tuple):
            raise OptionError(
                "option-count", f"a component has one source; a list of {len(source)} was given: give that one"
            )
        given = None if source is None else source_of(source)
        return _component(model, data, given, latency, latency_batch, batch_size)
    if isinstance(model, Assembly):
        sources = source if isinstance(source, list | tuple) else [source] * len(model.manifest.parts)
        if len(sources) != len(model.manifest.parts):
            raise OptionError(
                "option-count",
                f"{len(model.manifest.parts)} parts need as many sources; {len(sources)} were given: give one a part, "
                "or None where there is none",
            )
        known = [None if item is None else source_of(item) for item in sources]
        for part, item in zip(model.manifest.parts, known, strict=True):
            if item is not None:
                _check_source(item, part)
        return _assembly(model, data, known, latency, latency_batch, batch_size)
    raise OptionError(
        "option-wrong-object",
        f"a component or an assembly is scored; a {type(model).__name__} was given: make one with disassemble, "
        "assemble or load",
    )


# -- components --------------------------------------------------------------------------------------------


def _component(
    component: Component, data: Any, source: nn.Module | None, timed: bool, batch: int, batch_size: int
) -> Scores:
    manifest = component.manifest
    if source is not None:
        _check_source(source, manifest)
    images = Images(data, manifest.preprocessing, "the images to score")
    labels = images.all_labels()
    task = list(manifest.task)
    single = len(task) == 1
    chosen = None if single else torch.nonzero(torch.isin(labels, torch.tensor(task))).flatten().tolist()
    own = _logits(component, images, chosen, batch_size)
    scored = labels if chosen is None else labels[chosen]
    inside = torch.isin(scored, torch.tensor(task))
    if not inside.any():
        raise DataError(
            "data-no-task-class",
            f"none of the {len(labels)} images belongs to the task {', '.join(manifest.classes[:8])}: "
            "give some that do, with labels that are indices into the source's classes",
        )
    target = torch.tensor([task.index(k) if k in task else -1 for k in scored.tolist()])
    right = own[:, : len(task)].argmax(1) == target
    rows: list[Row] = []
    found: Tensor | None = None
    if source is not None:
        with as_before(source):
            found = _logits(source, images, chosen, batch_size)
        rows.append(accuracy_row("base", (found.argmax(1) == scored)[inside], target[inside]))
        restricted = found[:, task].argmax(1) == target
        rows.append(accuracy_row("restricted", restricted[inside], target[inside]))
    row = accuracy_row("component", right[inside], target[inside])
    if found is not None:
        drop, error = difference(restricted[inside], right[inside])
        row = row.model_copy(update={"drop": drop, "drop_error": error})
    rows.append(row)
    if single and not inside.all():
        scores = {"component": own[:, 0] - own[:, 1] if manifest.reject else own[:, 0]}
        if found is not None:
            scores |= {"restricted": found[:, task[0]], "base": found.log_softmax(1)[:, task[0]]}
        rows = with_auroc(rows, scores, inside)
    rows = _with_sizes(rows, component, source, timed, batch)
    notes = (
        []
        if not single
        else ["a task of one class is always answered right; AUROC against the other classes says more"]
    )
    return Scores(
        title=f"{', '.join(manifest.classes[:6])}{' ...' if len(task) > 6 else ''} of {manifest.source.name}",
        rows=tuple(rows),
        notes=tuple(notes),
        per_class=per_class(manifest.classes, right[inside], target[inside]),
    )


def _logits(model: nn.Module, images: Images, chosen: list[int] | None, batch_size: int) -> Tensor:
    """Outputs for the chosen images, (images, outputs), in float64; processes of a group share the work."""
    like = kind(model)
    ranks = Ranks.current()
    order = list(range(len(images))) if chosen is None else chosen
    starts = range(0, len(order), batch_size)
    parts: list[tuple[int, Tensor]] = []
    with torch.inference_mode(), bar("scoring", len(order)) as advance:
        for start in ranks.mine(starts):
            part = order[start : start + batch_size]
            for x, _ in images.batches(part, batch_size, like):
                parts.append((start, run_images(model, x, images.what).double().cpu()))
            advance(len(part) * ranks.count)
    width = ranks.joined(torch.tensor([max((logits.shape[1] for _, logits in parts), default=1)]))
    found = torch.zeros(len(order), int(width.max()), dtype=torch.float64)
    for start, logits in parts:
        found[start : start + len(logits)] = logits
    ranks.add(found)
    return found


def _check_source(source: nn.Module, manifest: ComponentManifest) -> None:
    found = fingerprint(source)
    expected = manifest.source
    if found != expected.sha256:
        raise DataError(
            "data-wrong-source",
            f"the component was cut from {expected.name!r} with weights {expected.sha256[:12]}; the source given has "
            f"{found[:12]}: give the source that it came from",
        )


def with_auroc(rows: list[Row], scores: Mapping[str, Tensor], inside: Tensor) -> list[Row]:
    """AUROC of each row's score for a class, (examples,), and how far the component is below restricted."""
    found = {name: Roc.of(score, inside) for name, score in scores.items()}
    areas = {name: {"auroc": roc.area, "auroc_error": roc.error} for name, roc in found.items()}
    rows = [row.model_copy(update=areas[row.name]) for row in rows]
    if "restricted" in found:
        drop, error = found["component"].below(found["restricted"])
        rows[-1] = rows[-1].model_copy(update={"auroc_drop": drop, "auroc_drop_error": error})
    return rows


def _with_sizes(rows: list[Row], component: Component, source: nn.Module | None, timed: bool, batch: int) -> list[Row]:
    manifest = component.manifest
    sizes: dict[str, dict[str, Any]] = {
        "base": {"parameters": manifest.source.parameters, "flops": manifest.source.flops},
        "component": {
            "parameters": count_parameters(component),
            "flops": count_flops(component.network, manifest.input_shape),
        },
    }
    if timed:
        like = next(component.parameters())
        x = _noise(batch, manifest.input_shape).to(like.device, like.dtype)
        calls: dict[str, Callable[[], object]] = {"component": lambda: component(x)}
        if source is not None:
            calls["base"] = lambda: source(x)
        _time(sizes, calls, source, batch)
    return [row.model_copy(update=sizes.get(row.name, {})) for row in rows]


def _noise(batch: int, shape: Sequence[int]) -> Tensor:
    """Random images, (batch, *shape), that leave the global generator as it is."""
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def _time(
    sizes: dict[str, dict[str, Any]],
    calls: dict[str, Callable[[], object]],
    source: nn.Module | None,
    batch: int,
) -> None:
    if source is None:
        found = measure_latency(calls, batch=batch)
    else:
        with as_before(source):
            found = measure_latency(calls, batch=batch)
    for name, value in found.items():
        sizes[name]["latency"] = _latency(value)


def _latency(value: Latency) -> dict[str, float]:
    return dict(value.__dict__)


# -- assemblies --------------------------------------------------------------------------------------------


def _assembly(
    assembly: Assembly, data: Any, sources: list[nn.Module | None], timed: bool, batch: int, batch_size: int
) -> Scores:
    manifest = assembly.manifest
    seen = shared_signals(assembly, data, features=assembly.gate is not None, batch_size=batch_size)
    logits, target = seen.signals[0], seen.targets
    class_of = manifest.class_of
    assembled = assembly.scaled(*seen.signals).argmax(1) == target
    oracle = torch.zeros(len(target), dtype=torch.bool)
    base, restricted = oracle.clone(), oracle.clone()
    offset = 0
    for index, (part, source) in enumerate(zip(manifest.parts, sources, strict=True)):
        mine = seen.owners == index
        task = list(manifest.tasks[index])
        own = torch.tensor([class_of[offset + place] for place in range(len(task))])
        oracle[mine] = own[logits[mine][:, offset : offset + len(task)].argmax(1)] == target[mine]
        if source is not None and mine.any():
            images = Images(data[index], part.preprocessing)
            chosen = torch.nonzero(torch.isin(images.all_labels(), torch.tensor(task))).flatten().tolist()
            with as_before(source):
                found = _logits(source, images, chosen, batch_size)
            base[mine] = found.argmax(1) == seen.labels[mine]
            restricted[mine] = own[found[:, task].argmax(1)] == target[mine]
        offset += len(manifest.columns[index])
    rows: list[Row] = []
    if all(source is not None for source in sources):
        rows += [accuracy_row("base", base, target), accuracy_row("restricted", restricted, target)]
    rows += [accuracy_row("oracle", oracle, target), accuracy_row("assembled", assembled, target)]
    drop, error = difference(oracle, assembled)
    rows[-1] = rows[-1].model_copy(update={"drop": drop, "drop_error": error})
    rows = _assembly_sizes(rows, assembly, sources, timed, batch)
    return Scores(
        title=f"{len(manifest.classes)} classes from {len(manifest.parts)} parts, {manifest.form}, "
        f"scaling {manifest.scaling.name}",
        rows=tuple(rows),
        notes=("drop of an assembly: oracle minus assembled",),
        per_class=per_class(manifest.classes, assembled, target),
    )


def _assembly_sizes(
    rows: list[Row], assembly: Assembly, sources: list[nn.Module | None], timed: bool, batch: int
) -> list[Row]:
    parts = assembly.manifest.parts
    shapes, _ = network_shapes(parts, assembly.manifest.form, assembly.manifest.shared_input)
    distinct = {part.source.sha256: part.source for part in parts}.values()
    sizes: dict[str, dict[str, Any]] = {
        "base": {"parameters": sum(s.parameters for s in distinct), "flops": sum(s.flops for s in distinct)},
        "assembled": {
            "parameters": count_parameters(assembly),
            "flops": sum(count_flops(n, s) for n, s in zip(assembly.networks(), shapes, strict=True)),
        },
    }
    if timed:
        image = _noise(batch, parts[0].input_shape)
        found = measure_latency({"assembled": lambda: assembly(image)}, batch=batch)
        if all(source is not None for source in sources):
            used: list[nn.Module] = []
            for source in sources:
                if source is not None and not any(source is other for other in used):
                    used.append(source)
            with contextlib.ExitStack() as stack:
                for source in used:
                    stack.enter_context(as_before(source))
                found = measure_latency(
                    {
                        "assembled": lambda: assembly(image),
                        "base": lambda: [_run_source(s, image, parts, sources) for s in used],
                    },
                    batch=batch,
                )
        for name, value in found.items():
            sizes[name]["latency"] = _latency(value)
    return [row.model_copy(update=sizes.get(row.name, {})) for row in rows]


def _run_source(source: nn.Module, image: Tensor, parts: Sequence[Any], sources: Sequence[nn.Module | None]) -> Tensor:
    part = next(p for p, s in zip(parts, sources, strict=True) if s is source)
    like = next(source.parameters())
    result: Tensor = source(preprocess(image, part.preprocessing).to(like.device, like.dtype))
    return result


# -- figures -----------------------------------------------------------------------------------------------


def accuracy_row(name: str, right: Tensor, target: Tensor) -> Row:
    """Accuracy over images and over classes, with one standard error."""
    share = right.double()
    counts = torch.bincount(target)
    hits = torch.bincount(target, weights=share)
    present = counts > 0
    means = hits[present] / counts[present]
    variance = (means * (1 - means) / counts[present]).sum() / len(means) ** 2
    return Row(
        name=name,
        images=len(right),
        accuracy=_percent(share),
        error=_error(share),
        class_accuracy=100 * means.mean().item(),
        class_error=100 * math.sqrt(variance.item()),
    )


def difference(right: Tensor, other: Tensor) -> tuple[float, float]:
    """How many points one row is above another on the same examples, and one standard error of it, paired."""
    gap = right.double() - other.double()
    return _percent(gap), _error(gap)


def _percent(values: Tensor) -> float:
    return 100 * values.double().mean().item()


def _error(values: Tensor) -> float:
    """One standard error of a mean, in points."""
    return 100 * values.double().std(correction=0).item() / math.sqrt(len(values))


def per_class(classes: Sequence[str], right: Tensor, target: Tensor) -> dict[str, float]:
    """Accuracy of each class that has examples, in percent."""
    hits = np.bincount(target.numpy(), weights=right.double().numpy(), minlength=len(classes))
    counts = np.bincount(target.numpy(), minlength=len(classes))
    return {name: 100 * float(h / c) for name, h, c in zip(classes, hits, counts, strict=True) if c}
