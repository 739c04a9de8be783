"""Commands that create files: train, locate, disassemble, assemble."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brickyard.base._declare import declared, flat, gathered
from brickyard.base._errors import OptionError
from brickyard.base._options import (
    AssembleOptions,
    Budget,
    DisassembleOptions,
    LocateOptions,
    Thresholds,
    TrainingOptions,
)
from brickyard.cli._options import (
    Classes,
    Data,
    Device,
    Force,
    Json,
    Mean,
    Names,
    Output,
    Size,
    SourceSpec,
    Std,
    Task,
    Weights,
    only_for_locating,
    with_options,
)
from brickyard.cli._output import emit, keep, loaded
from brickyard.runtime._progress import say
from brickyard.sources._resolve import (
    check_free,
    data_of,
    fitted,
    labelled_images,
    named_after,
    preprocessing_of,
    source_of,
)

if TYPE_CHECKING:
    from brickyard.component._component import Component
    from brickyard.relevance._relevance import Relevance
    from brickyard.sources._loading import Source


FROM_SCRATCH = ("epochs", "lr", "batch_size", "augment", "seed")  # of the options of training


@with_options(TrainingOptions, only=FROM_SCRATCH, lr=0.1)
def train(
    network: Annotated[str, typer.Argument(help="Zoo network: NAME or NAME?width=0.5.")],
    data: Data,
    output: Output,
    classes: Classes = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Train a small network from the zoo, to be used as a source."""
    trained(network, data, output, classes, size, mean, std, force, as_json, device=device, **options)


def trained(
    network: str,
    data: str,
    output: Path,
    classes: list[str] | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a zoo network with options of `train_source`, and save it."""
    from brickyard.base._classes import parse_classes
    from brickyard.training._sources import train_source

    check_free(output, force)
    how = preprocessing_of(mean, std, size)
    images = data_of(data, how)
    if classes:
        images = images.renumbered(parse_classes(classes, images.classes))
    held_out = data_of(data, how, "test").renumbered(images.classes) if data == "digits" else None
    made = train_source(network, images, preprocessing=how, held_out=held_out, **options)
    made.save(output, overwrite=force)
    name, scores = made.arch, made.scores
    text = ", ".join(f"{key.replace('_', ' ')} {value:.1%}" for key, value in scores.items())
    emit({"output": str(output), **scores}, as_json, f"{output}: {name}, {len(images.classes)} classes, {text}")


@with_options(LocateOptions)
def locate(
    source: SourceSpec,
    data: Data,
    output: Output,
    weights: Weights = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Locate only these classes.", show_default=False)
    ] = None,
    names: Names = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Find the channels of a source that matter for each class."""
    check_free(output, force, source, weights)
    found, relevance = _located(source, data, weights, task, names, size, mean, std, options)
    keep(relevance, output, force)
    value = {
        "output": str(output),
        "source": found.name,
        "classes": list(relevance.classes),
        "images": list(relevance.record.images),
    }
    emit(value, as_json, f"{relevance}\n{output}")


@with_options(DisassembleOptions, unset=(LocateOptions,))
def disassemble(
    source: SourceSpec,
    task: Task,
    output: Output,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Training images for healing and, without --relevance, for locating."),
    ] = None,
    relevance: Annotated[Path | None, typer.Option("--relevance", help="Use relevances written by `locate`.")] = None,
    weights: Weights = None,
    names: Names = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Cut a component for the given classes out of a source."""
    from brickyard.base._classes import parse_classes
    from brickyard.component._disassemble import disassemble as cut
    from brickyard.relevance._relevance import Relevance

    check_free(output, force, source, weights, relevance)
    asked = {name: options[name] for name in declared(Thresholds)}
    budget = {name: options[name] for name in declared(Budget)}
    idle = next((name for name, value in budget.items() if value is not None), None)
    limited = budget["flops"] is not None or budget["parameters"] is not None
    if idle is not None and not limited:
        raise OptionError(
            "option-requires-option",
            f"--{idle.replace('_', '-')} {budget[idle]} is of a budget, and none was given; add --flops or "
            "--parameters",
        )
    images = None
    if relevance is not None:
        found: Relevance = loaded(relevance, Relevance)
        shared = {*declared(DisassembleOptions), *asked}
        idle_here = {name: options[name] for name in flat(LocateOptions) if name not in shared}
        only_for_locating(relevance, idle_here | {"size": size, "mean": mean, "std": std} | (asked if limited else {}))
        origin = source_of(source, weights, names, found.preprocessing)
        images = None if data is None else fitted(data_of(data, found.preprocessing), found.classes)
    elif data is None:
        raise OptionError("option-needs-data", "disassemble needs images or relevances; give --data or --relevance")
    else:
        origin, found = _located(source, data, weights, task, names, size, mean, std, options)
    if limited:  # thresholds were for locating
        options |= dict.fromkeys(asked)
    chosen = gathered(DisassembleOptions, options, thresholds=found.thresholds)
    component = cut(origin.model, found, **chosen, task=parse_classes(task, found.classes), images=images)
    keep(component, output, force)
    manifest = component.manifest
    value = {
        "output": str(output),
        "classes": list(component.classes),
        "parameters": manifest.selection.parameters,
        "flops": manifest.selection.flops,
        "parameters_share": manifest.selection.parameters / max(1, manifest.source.parameters),
        "flops_share": manifest.selection.flops / max(1, manifest.source.flops),
        "pinned": [pin.model_dump() for pin in manifest.pinned],
        "notes": list(manifest.heal.notes),
    }
    emit(value, as_json, f"{component}\n{output}")


@with_options(AssembleOptions)
def assemble(
    files: Annotated[
        list[str],
        typer.Argument(help="Component or assembly files; with --yard, class names.", show_default=False),
    ],
    output: Output,
    yard: Annotated[
        Path | None,
        typer.Option(help="Choose the best components for the classes from this yard.", show_default=False),
    ] = None,
    max_parameters: Annotated[
        int | None,
        typer.Option(help="With --yard: limit the total parameters of the parts.", min=1, show_default=False),
    ] = None,
    max_flops: Annotated[
        int | None, typer.Option(help="With --yard: limit the total FLOPs per image.", min=1, show_default=False)
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="Leave out this class; may be repeated.", show_default=False),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", help="Labelled training images for few-shot scalings, once per part."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --form union: fill in weights from the parts' common source.")
    ] = None,
    weights: Weights = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Join components into one classifier."""
    from brickyard.assembly._assemble import assemble as join
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component

    check_free(output, force, source, weights, *files)
    chosen: list[str] = []
    if yard is not None:
        chosen, parts = _from_yard(yard, files, max_parameters, max_flops)
    elif max_parameters is not None or max_flops is not None:
        raise OptionError(
            "option-requires-option",
            "--max-parameters and --max-flops apply to components chosen from a yard; add --yard",
        )
    else:
        parts = [loaded(Path(path), Component, Assembly) for path in files]
    shots, form = options["shots"], options["form"]
    if shots is not None and not images:
        raise OptionError(
            "option-requires-option",
            f"--shots {shots} is of labelled images, and none were given; add --images once per part",
        )
    if source is not None and form != "union":
        raise OptionError(
            "option-without-effect",
            f"--source {source} would have no effect: it applies to --form union, and this is {form}",
        )
    if weights is not None and source is None:
        raise OptionError(
            "option-requires-option", f"--weights {weights} needs a source, and none was given; add --source"
        )
    manifests = [manifest for part in parts for manifest in part.manifest.parts]
    labelled = labelled_images(images, manifests, "--images") if images else None
    model = None if source is None else source_of(source, weights, None, None).model
    whole = join(parts, **{**options, "without": without or [], "images": labelled, "source": model})
    whole.save(output, overwrite=force)
    value = {
        "output": str(output),
        "classes": list(whole.classes),
        "form": whole.manifest.form,
        "scaling": options["scaling"],
        **({"components": chosen} if chosen else {}),
    }
    emit(value, as_json, f"{whole}\n{output}")


def _from_yard(
    place: Path, classes: list[str], max_parameters: int | None, max_flops: int | None
) -> tuple[list[str], list[Component]]:
    """Choose and load the best components of a yard for some classes; prints which and why."""
    from brickyard.cli._yard import plain
    from brickyard.yard._yard import Yard

    found = Yard(place)
    choices = found.choose(classes, max_parameters=max_parameters, max_flops=max_flops)
    for choice in choices:
        say(f"{choice.entry.name} for {plain(', '.join(choice.classes))}: {plain(choice.reason)}")
    names = [choice.entry.name for choice in choices]
    return names, [found.load(name) for name in names]


def _located(
    spec: str,
    data: str,
    weights: Path | None,
    task: list[str] | None,
    names: str | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    options: dict[str, Any],
) -> tuple[Source, Relevance]:
    from brickyard.base._classes import parse_classes
    from brickyard.relevance._locate import locate as find

    how = preprocessing_of(mean, std, size)
    source = source_of(spec, weights, names, how)
    images = data_of(data, source.preprocessing)
    source = named_after(source, images)
    images = fitted(images, source.classes)
    say(f"locating in {source.name}: {len(images):,} images, {len(source.classes)} classes")
    relevance = find(
        source.model,
        images,
        **gathered(LocateOptions, options),
        classes=source.classes,
        preprocessing=source.preprocessing,
        task=parse_classes(task, source.classes) if task else None,
        name=source.name,
    )
    return source, relevance
