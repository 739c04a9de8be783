"""Commands that make files: train, locate, disassemble, assemble."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brickyard.base._errors import OptionError
from brickyard.cli._options import (
    Alpha,
    Augment,
    BatchSize,
    Beta,
    Choose,
    Classes,
    Data,
    Device,
    Epochs,
    Force,
    GivenAlpha,
    GivenBeta,
    GivenChoose,
    GivenLinearAlpha,
    GivenLinearBeta,
    GivenPerClass,
    Json,
    LinearAlpha,
    LinearBeta,
    Mean,
    Names,
    Output,
    PerClass,
    Rate,
    Seed,
    Size,
    SourceSpec,
    Std,
    Task,
    Weights,
    only_for_locating,
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
    from brickyard.base._options import Budget, Thresholds
    from brickyard.component._component import Component
    from brickyard.relevance._relevance import Relevance
    from brickyard.sources._loading import Source


def train(
    network: Annotated[str, typer.Argument(help="A network of the zoo: NAME or NAME?width=0.5.")],
    data: Data,
    output: Output,
    classes: Classes = None,
    epochs: Epochs = 10,
    lr: Rate = 0.1,
    batch_size: BatchSize = 64,
    augment: Augment = False,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a small network of the zoo: makes a source."""
    trained(
        network, data, output, classes, size, mean, std, force, as_json,
        epochs=epochs, lr=lr, batch_size=batch_size, augment=augment, seed=seed, device=device,
    )  # fmt: skip


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
    """Train a network of the zoo with options of `train_source`, and write it."""
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


def locate(
    source: SourceSpec,
    data: Data,
    output: Output,
    weights: Weights = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only these classes.", show_default=False)] = None,
    choose: Choose = "confident",
    per_class: PerClass = 50,
    alpha: Alpha = 0.3,
    beta: Beta = 0.2,
    linear_alpha: LinearAlpha = 0.4,
    linear_beta: LinearBeta = 0.3,
    names: Names = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    resume: Annotated[
        Path | None,
        typer.Option(help="A folder to keep finished classes in: the same command, started again, goes on from there."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find out which channels of a source matter for which class."""
    from brickyard.base._options import Thresholds

    check_free(output, force, source, weights)
    found, relevance = _located(
        source, data, weights, task, choose, per_class,
        Thresholds(alpha=alpha, beta=beta, linear_alpha=linear_alpha, linear_beta=linear_beta),
        names, size, mean, std, seed, resume,
    )  # fmt: skip
    keep(relevance, output, force)
    value = {
        "output": str(output),
        "source": found.name,
        "classes": list(relevance.classes),
        "images": list(relevance.record.images),
    }
    emit(value, as_json, f"{relevance}\n{output}")


def disassemble(
    source: SourceSpec,
    task: Task,
    output: Output,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Training images, to locate (without --relevance) and to heal with."),
    ] = None,
    relevance: Annotated[Path | None, typer.Option("--relevance", help="A file that `locate` wrote.")] = None,
    weights: Weights = None,
    flops: Annotated[float | None, typer.Option(help="Budget: share of the source's FLOPs, in (0, 1].")] = None,
    parameters: Annotated[float | None, typer.Option(help="Budget: share of its parameters, in (0, 1].")] = None,
    multiple: Annotated[int, typer.Option(help="Budget: keep multiples of so many channels; 8 is fast.", min=1)] = 1,
    alpha: GivenAlpha = None,
    beta: GivenBeta = None,
    linear_alpha: GivenLinearAlpha = None,
    linear_beta: GivenLinearBeta = None,
    reject: Annotated[bool, typer.Option("--reject", help='Keep an output for "none of these".')] = False,
    select: Annotated[
        str,
        typer.Option(help="Rank channels for a budget by: mda, damage, l1, fpgm, hrank, activation, taylor, random."),
    ] = "mda",
    heal: Annotated[str, typer.Option(help="Repair: refit, moments or none.")] = "refit",
    heal_images: Annotated[int, typer.Option(help="Images to heal with, at most.", min=1)] = 400,
    ridge: Annotated[float, typer.Option(help="Strength of the refit's prior.")] = 1e-3,
    choose: GivenChoose = None,
    per_class: GivenPerClass = None,
    names: Names = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut a component for a task out of a source."""
    from brickyard.base._classes import parse_classes
    from brickyard.base._options import Budget, Thresholds
    from brickyard.component._disassemble import disassemble as cut
    from brickyard.relevance._relevance import Relevance

    check_free(output, force, source, weights, relevance)
    if multiple != 1 and flops is None and parameters is None:
        raise OptionError(
            "option-requires-option",
            f"--multiple {multiple} is of a budget, and none was given; add --flops or --parameters",
        )
    asked = {"alpha": alpha, "beta": beta, "linear_alpha": linear_alpha, "linear_beta": linear_beta}
    budget = (
        None if flops is None and parameters is None else Budget(flops=flops, parameters=parameters, multiple=multiple)
    )
    images = None
    if relevance is not None:
        found: Relevance = loaded(relevance, Relevance)
        only_for_locating(relevance, choose, per_class, size, mean, std, asked if budget else {})
        thresholds = _thresholds(found.thresholds, asked)
        origin = source_of(source, weights, names, found.preprocessing)
        images = None if data is None else fitted(data_of(data, found.preprocessing), found.classes)
    elif data is None:
        raise OptionError("option-needs-data", "disassemble needs images or relevances; give --data or --relevance")
    else:
        thresholds = _thresholds(Thresholds(), asked)
        origin, found = _located(
            source, data, weights, task, choose or "confident", per_class or 50, thresholds,
            names, size, mean, std, seed,
        )  # fmt: skip
    component = cut(
        origin.model,
        found,
        task=parse_classes(task, found.classes),
        **_chosen(thresholds, budget),
        reject=reject,
        select=select,  # type: ignore[arg-type]
        heal=heal,  # type: ignore[arg-type]
        heal_images=heal_images,
        ridge=ridge,
        images=images,
        seed=seed,
    )
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


def assemble(
    files: Annotated[
        list[str],
        typer.Argument(help="Files of components or assemblies; with --yard, names of classes.", show_default=False),
    ],
    output: Output,
    yard: Annotated[
        Path | None,
        typer.Option(help="A folder of components: choose the best ones for the classes.", show_default=False),
    ] = None,
    max_parameters: Annotated[
        int | None, typer.Option(help="With --yard: most parameters of all parts together.", min=1, show_default=False)
    ] = None,
    max_flops: Annotated[
        int | None, typer.Option(help="With --yard: most FLOPs for one image, of all parts.", min=1, show_default=False)
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="Leave a class out; may be repeated.", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option(help="parallel, padded, grouped, union, or auto: measured.")] = "parallel",
    scaling: Annotated[
        str,
        typer.Option(help="none, mahalanobis, log-probability, logit-mean, magnitude; affine, joint-head or lda."),
    ] = "none",
    images: Annotated[
        list[str] | None,
        typer.Option("--images", help="Labelled training images of a part, for few-shot scalings; once a part."),
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Use at most so many images a class.", min=1)] = None,
    on_duplicate: Annotated[str, typer.Option(help="Class names twice: error, average, max, rename.")] = "error",
    votes: Annotated[
        bool, typer.Option("--votes", help="Parts cut with --reject also vote on other parts' classes that they know.")
    ] = False,
    source: Annotated[str | None, typer.Option(help="The parts' source, for --form union.")] = None,
    weights: Weights = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
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
            "--max-parameters and --max-flops choose among the components of a yard; give --yard too",
        )
    else:
        parts = [loaded(Path(path), Component, Assembly) for path in files]
    if shots is not None and not images:
        raise OptionError(
            "option-requires-option",
            f"--shots {shots} is of labelled images, and none were given; add --images once a part",
        )
    if source is not None and form != "union":
        raise OptionError(
            "option-without-effect",
            f"--source {source} would change nothing: it is for --form union, and this is {form}",
        )
    if weights is not None and source is None:
        raise OptionError(
            "option-requires-option", f"--weights {weights} are of a source, and none was given; add --source"
        )
    manifests = [manifest for part in parts for manifest in part.manifest.parts]
    labelled = labelled_images(images, manifests, "--images") if images else None
    model = None if source is None else source_of(source, weights, None, None).model
    whole = join(
        parts,
        without=without or [],
        form=form,  # type: ignore[arg-type]
        scaling=scaling,
        images=labelled,
        shots=shots,
        on_duplicate=on_duplicate,  # type: ignore[arg-type]
        votes=votes,
        source=model,
        seed=seed,
    )
    whole.save(output, overwrite=force)
    value = {
        "output": str(output),
        "classes": list(whole.classes),
        "form": whole.manifest.form,
        "scaling": scaling,
        **({"components": chosen} if chosen else {}),
    }
    emit(value, as_json, f"{whole}\n{output}")


def _from_yard(
    place: Path, classes: list[str], max_parameters: int | None, max_flops: int | None
) -> tuple[list[str], list[Component]]:
    """Names of the best components of a yard for some classes, and the components; says which and why."""
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
    choose: str,
    per_class: int,
    thresholds: Thresholds,
    names: str | None,
    size: str | None,
    mean: str | None,
    std: str | None,
    seed: int,
    resume: Path | None = None,
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
        classes=source.classes,
        preprocessing=source.preprocessing,
        choose=choose,  # type: ignore[arg-type]
        per_class=per_class,
        task=parse_classes(task, source.classes) if task else None,
        thresholds=thresholds,
        seed=seed,
        name=source.name,
        resume=resume,
    )
    return source, relevance


def _thresholds(base: Thresholds, asked: dict[str, float | None]) -> Thresholds:
    """Thresholds with those that were asked for in place of the others."""
    from dataclasses import replace

    return replace(base, **{name: value for name, value in asked.items() if value is not None})


def _chosen(thresholds: Thresholds, budget: Budget | None) -> dict[str, Any]:
    """A budget where one was given, else thresholds."""
    return {"thresholds": thresholds} if budget is None else {"budget": budget}
