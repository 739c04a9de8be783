"""Commands that train further: finetune, distil."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brickyard.base._errors import OptionError
from brickyard.cli._make import trained
from brickyard.cli._options import (
    Augment,
    BatchSize,
    Classes,
    Data,
    Device,
    Epochs,
    Force,
    Json,
    Mean,
    Output,
    Rate,
    Seed,
    Size,
    Std,
    Weights,
)
from brickyard.cli._output import emit, loaded
from brickyard.sources._resolve import check_free, labelled_images, source_of

if TYPE_CHECKING:
    from torch import nn

    from brickyard.base._options import Distillation


Temperature = Annotated[float, typer.Option(help="What logits are divided by before they are compared.")]
Weight = Annotated[float, typer.Option(help="Share of the teacher in the loss; the labels have the rest.")]


def finetune(
    file: Annotated[Path, typer.Argument(help="A component or an assembly.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Labelled training images; for an assembly once a part.", show_default=False),
    ],
    output: Output,
    epochs: Annotated[int, typer.Option(help="Passes over the images, at most.", min=1)] = 10,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; default: 0.01, or 3e-4 for adamw.", show_default=False)
    ] = None,
    batch_size: BatchSize = 64,
    validation: Annotated[
        float, typer.Option(help="Share of the images that chooses the best pass; 0 keeps the last.")
    ] = 0.1,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many passes without a better one.", min=1, show_default=False)
    ] = None,
    augment: Augment = False,
    norms: Annotated[str, typer.Option(help="Statistics of batch norms: frozen or trained.")] = "trained",
    precision: Annotated[str, typer.Option(help="full, bfloat16, float16, or auto: bfloat16 on a GPU.")] = "full",
    teacher: Annotated[
        Path | None, typer.Option(help="A component or an assembly that knows the classes.", show_default=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The component's own source, as teacher.", show_default=False)
    ] = None,
    weights: Weights = None,
    temperature: Temperature = 4.0,
    weight: Weight = 0.5,
    features: Annotated[
        float, typer.Option(help="With --source: weight of its features on the channels that were kept.")
    ] = 0.0,
    resume: Annotated[
        Path | None,
        typer.Option(help="A folder for the state after every pass: the same command, started again, goes on."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a component or an assembly on labelled images."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.base._options import Schedule
    from brickyard.component._component import Component
    from brickyard.component._predictor import Predictor
    from brickyard.training._finetune import finetune as tune
    from brickyard.training._sources import device_named

    check_free(output, force, file, teacher, source, weights)
    if teacher is not None and source is not None:
        raise OptionError("option-conflict", "--teacher and --source were both given; one teacher is enough")
    if weights is not None and source is None:
        raise OptionError(
            "option-requires-option", f"--weights {weights} are of a source, and none was given; add --source"
        )
    if features and source is None:
        raise OptionError(
            "option-requires-option",
            f"--features {features:g} are of the component's source, and none was given; add --source",
        )
    schedule = Schedule(
        epochs=epochs,
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=lr,
        batch_size=batch_size,
        patience=patience,
        augment=augment,
        norms=norms,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
    )
    place = device_named(device)
    model = loaded(file, Component, Assembly).to(place)
    images = labelled_images(data, model.manifest.parts, "--data")
    teaching: nn.Module | None = None
    if teacher is not None:
        teaching = loaded(teacher, Predictor).to(place)
    elif source is not None:
        teaching = source_of(source, weights, None, None).model.to(place)
    better = tune(
        model,
        images if isinstance(model, Assembly) else images[0],
        schedule=schedule,
        validation=validation,
        teacher=teaching,
        distillation=None if teaching is None else _heeding(temperature, weight, features),
        resume=resume,
    )
    better.save(output, overwrite=force)
    emit({"output": str(output), **better.manifest.tuned.model_dump()}, as_json, f"{better}\n{output}")


def distil(
    network: Annotated[str, typer.Argument(help="The student: a network of the zoo, NAME or NAME?width=0.5.")],
    teacher: Annotated[Path, typer.Option(help="A component or an assembly.", show_default=False)],
    data: Data,
    output: Output,
    classes: Classes = None,
    epochs: Epochs = 10,
    lr: Rate = 0.1,
    batch_size: BatchSize = 64,
    augment: Augment = False,
    temperature: Temperature = 4.0,
    weight: Weight = 0.5,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    seed: Seed = 0,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a small network of the zoo with a component or an assembly as teacher."""
    from brickyard.component._predictor import Predictor
    from brickyard.training._sources import device_named

    check_free(output, force, teacher)
    master: Predictor = loaded(teacher, Predictor).to(device_named(device))
    trained(
        network, data, output, classes or list(master.classes), size, mean, std, force, as_json,
        epochs=epochs, lr=lr, batch_size=batch_size, augment=augment, seed=seed, device=device,
        teacher=master, distillation=_heeding(temperature, weight, 0.0),
    )  # fmt: skip


def _heeding(temperature: float, weight: float, features: float) -> Distillation:
    from brickyard.base._options import Distillation

    return Distillation(temperature=temperature, weight=weight, features=features)
