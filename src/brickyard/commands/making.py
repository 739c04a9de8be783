"""Commands that make files: train, locate, disassemble, assemble."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brickyard.commands.common import (
    Classes,
    Data,
    Force,
    Json,
    Mean,
    Names,
    Output,
    Seed,
    Size,
    SourceSpec,
    Std,
    Task,
    Weights,
    check_free,
    data_of,
    emit,
    loaded,
    preprocessing_of,
    say,
    source_of,
)
from brickyard.errors import OptionError

if TYPE_CHECKING:
    from brickyard.options import Budget, Thresholds
    from brickyard.relevance import Relevance
    from brickyard.sources import Source

Choose = Annotated[str, typer.Option("--choose", help="Images to locate with: confident, random or all.")]
PerClass = Annotated[int, typer.Option("--per-class", help="Images a class to locate with.", min=1)]
Alpha = Annotated[float, typer.Option("--alpha", help="Threshold of contributions, convolutions.")]
Beta = Annotated[float, typer.Option("--beta", help="Threshold of relevance, convolutions.")]
LinearAlpha = Annotated[float, typer.Option("--linear-alpha", help="Threshold of contributions, linear layers.")]
LinearBeta = Annotated[float, typer.Option("--linear-beta", help="Threshold of relevance, linear layers.")]


def train(
    network: Annotated[str, typer.Argument(help="A network of the zoo: NAME or NAME?width=0.5.")],
    data: Data,
    output: Output,
    classes: Classes = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.", min=1)] = 10,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=2)] = 64,
    augment: Annotated[bool, typer.Option(help="Shift and mirror the images.")] = False,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a small network of the zoo: makes a source."""
    from urllib.parse import parse_qsl

    from brickyard.datasets import parse_classes
    from brickyard.manifest import Preprocessing
    from brickyard.sources import Source, save_source, zoo
    from brickyard.sources.loading import _number
    from brickyard.training import accuracy, build_seeded
    from brickyard.training import train as fit

    check_free(output, force)
    how = preprocessing_of(mean, std, size)
    images = data_of(data, how)
    if classes:
        images = images.renumbered(parse_classes(classes, images.classes))
    channels = images.images.shape[1]
    if how is None or how.mean is None:
        values = images.images.double().div(255).transpose(0, 1).flatten(1)
        how = Preprocessing(
            size=how.size if how else (32, 32),
            fit=how.fit if how else "resize",
            channels=1 if channels == 1 else 3,
            mean=tuple(values.mean(1).tolist()),
            std=tuple((values.std(1) + 1e-6).tolist()),
        )
    name, _, query = network.removeprefix("zoo:").partition("?")
    options: dict[str, Any] = {key: _number(value) for key, value in parse_qsl(query)}
    options.setdefault("channels", channels)
    if "size" in zoo.entry(name).defaults and how.size:
        options.setdefault("size", how.size[0])
    width = options.pop("width", 1.0)
    model = build_seeded(name, len(images.classes), width, seed, **options)
    found = fit(
        model,
        images,
        preprocessing=how,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
    )
    scores = {"train_accuracy": found}
    side = how.size or tuple(images.images.shape[2:])
    source = Source(model, name, images.classes, how, (channels, side[0], side[1]))
    if data == "digits":
        held_out = data_of(data, how, "test")
        held_out = held_out.renumbered(images.classes)
        scores["test_accuracy"] = accuracy(model, held_out, how)
    save_source(output, source, arch=name, options={"width": width, **options}, scores=scores, overwrite=force)
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
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find out which channels of a source matter for which class."""
    check_free(output, force)
    found, relevance = _located(
        source, data, weights, task, choose, per_class, _thresholds(alpha, beta, linear_alpha, linear_beta),
        names, size, mean, std, seed,
    )  # fmt: skip
    relevance.save(output, overwrite=force)
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
    alpha: Alpha = 0.3,
    beta: Beta = 0.2,
    linear_alpha: LinearAlpha = 0.4,
    linear_beta: LinearBeta = 0.3,
    reject: Annotated[bool, typer.Option("--reject", help='Keep an output for "none of these".')] = False,
    heal: Annotated[str, typer.Option(help="Repair: refit, moments or none.")] = "refit",
    heal_images: Annotated[int, typer.Option(help="Images to heal with, at most.", min=1)] = 400,
    ridge: Annotated[float, typer.Option(help="Strength of the refit's prior.")] = 1e-3,
    choose: Choose = "confident",
    per_class: PerClass = 50,
    names: Names = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut a component for a task out of a source."""
    from brickyard.datasets import parse_classes
    from brickyard.disassembling import disassemble as cut
    from brickyard.options import Budget
    from brickyard.relevance import Relevance

    check_free(output, force)
    thresholds = _thresholds(alpha, beta, linear_alpha, linear_beta)
    budget = None if flops is None and parameters is None else Budget(flops=flops, parameters=parameters)
    images = None
    if relevance is not None:
        found: Relevance = loaded(relevance, Relevance)
        how = preprocessing_of(mean, std, size) or found.preprocessing
        origin = source_of(source, weights, names, how)
        images = None if data is None else data_of(data, how)
    elif data is None:
        raise OptionError("disassemble needs images or relevances; give --data or --relevance")
    else:
        origin, found = _located(
            source, data, weights, task, choose, per_class, thresholds, names, size, mean, std, seed
        )
    component = cut(
        origin.model,
        found,
        task=parse_classes(task, found.classes),
        **_chosen(thresholds, budget),
        reject=reject,
        heal=heal,  # type: ignore[arg-type]
        heal_images=heal_images,
        ridge=ridge,
        images=images,
        seed=seed,
    )
    component.save(output, overwrite=force)
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
    files: Annotated[list[Path], typer.Argument(help="Files of components.", show_default=False)],
    output: Output,
    form: Annotated[str, typer.Option(help="auto, parallel, padded or union.")] = "auto",
    scaling: Annotated[
        str, typer.Option(help="none, log-probability, logit-mean, magnitude, affine or joint-head.")
    ] = "none",
    images: Annotated[
        list[str] | None,
        typer.Option("--images", help="Labelled training images of a part, for few-shot scalings; once a part."),
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Use at most so many images a class.", min=1)] = None,
    on_duplicate: Annotated[str, typer.Option(help="Class names twice: error, average, max, rename.")] = "error",
    source: Annotated[str | None, typer.Option(help="The parts' source, for --form union.")] = None,
    weights: Weights = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Join components into one classifier."""
    from brickyard.assembling import assemble as join
    from brickyard.component import Component

    check_free(output, force)
    parts = [loaded(path, Component) for path in files]
    labelled = None
    if images:
        labelled = [data_of(spec, part.manifest.preprocessing) for spec, part in zip(images, parts, strict=False)]
        if len(images) != len(parts):
            raise OptionError(f"{len(parts)} parts need --images {len(parts)} times; it was given {len(images)} times")
    model = None if source is None else source_of(source, weights, None, None).model
    whole = join(
        parts,
        form=form,  # type: ignore[arg-type]
        scaling=scaling,
        images=labelled,
        shots=shots,
        on_duplicate=on_duplicate,  # type: ignore[arg-type]
        source=model,
        seed=seed,
    )
    whole.save(output, overwrite=force)
    value = {
        "output": str(output),
        "classes": list(whole.classes),
        "form": whole.manifest.form,
        "scaling": scaling,
    }
    emit(value, as_json, f"{whole}\n{output}")


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
) -> tuple[Source, Relevance]:
    from brickyard.datasets import parse_classes
    from brickyard.locating import locate as find

    how = preprocessing_of(mean, std, size)
    source = source_of(spec, weights, names, how)
    images = data_of(data, source.preprocessing)
    source = source_of(spec, weights, names, how, images)
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
    )
    return source, relevance


def _thresholds(alpha: float, beta: float, linear_alpha: float, linear_beta: float) -> Thresholds:
    from brickyard.options import Thresholds

    return Thresholds(alpha=alpha, beta=beta, linear_alpha=linear_alpha, linear_beta=linear_beta)


def _chosen(thresholds: Thresholds, budget: Budget | None) -> dict[str, Any]:
    """A budget where one was given, else thresholds."""
    return {"thresholds": thresholds} if budget is None else {"budget": budget}
