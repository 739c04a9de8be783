"""Commands that train with components: finetune, distil."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brickyard.base._declare import gathered
from brickyard.base._errors import OptionError
from brickyard.base._options import Distillation, FinetuneOptions, TrainingOptions
from brickyard.cli._make import FROM_SCRATCH, trained
from brickyard.cli._options import (
    Classes,
    Data,
    Device,
    Force,
    Json,
    Mean,
    Output,
    Size,
    Std,
    Weights,
    with_options,
)
from brickyard.cli._output import emit, loaded
from brickyard.sources._resolve import check_free, labelled_images, source_of

if TYPE_CHECKING:
    from torch import nn


@with_options(FinetuneOptions)
def finetune(
    file: Annotated[Path, typer.Argument(help="Component or assembly file.", show_default=False)],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Labelled training images; for an assembly, once per part.", show_default=False),
    ],
    output: Output,
    teacher: Annotated[
        Path | None, typer.Option(help="Distil from this component or assembly, which must know the classes.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Distil from the component's own source.")] = None,
    weights: Weights = None,
    device: Device = "cpu",
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Fine-tune a component or an assembly on labelled images."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component
    from brickyard.component._predictor import Predictor
    from brickyard.training._finetune import finetune as tune
    from brickyard.training._sources import device_named

    check_free(output, force, file, teacher, source, weights)
    if teacher is not None and source is not None:
        raise OptionError("option-conflict", "--teacher and --source cannot be combined; give one of them")
    if weights is not None and source is None:
        raise OptionError(
            "option-requires-option", f"--weights {weights} needs a source, and none was given; add --source"
        )
    if options["features"] and source is None:
        raise OptionError(
            "option-requires-option",
            f"--features {options['features']:g} are of the component's source, and none was given; add --source",
        )
    chosen = gathered(FinetuneOptions, options)
    place = device_named(device)
    model = loaded(file, Component, Assembly).to(place)
    images = labelled_images(data, model.manifest.parts, "--data")
    teaching: nn.Module | None = None
    if teacher is not None:
        teaching = loaded(teacher, Predictor).to(place)
    elif source is not None:
        teaching = source_of(source, weights, None, None).model.to(place)
    if teaching is None:
        chosen.pop("distillation", None)
    better = tune(model, images if isinstance(model, Assembly) else images[0], **chosen, teacher=teaching)
    better.save(output, overwrite=force)
    emit({"output": str(output), **better.manifest.tuned.model_dump()}, as_json, f"{better}\n{output}")


@with_options(TrainingOptions, Distillation, only=(*FROM_SCRATCH, "temperature", "weight"), lr=0.1)
def distil(
    network: Annotated[str, typer.Argument(help="Student, a zoo network: NAME or NAME?width=0.5.")],
    teacher: Annotated[Path, typer.Option(help="Distil from this component or assembly.")],
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
    """Distil a component or an assembly into a small zoo network."""
    from brickyard.component._predictor import Predictor
    from brickyard.training._sources import device_named

    check_free(output, force, teacher)
    options["distillation"] = Distillation(**{name: options.pop(name) for name in ("temperature", "weight")})
    options["teacher"] = loaded(teacher, Predictor).to(device_named(device))
    classes = classes or list(options["teacher"].classes)
    trained(network, data, output, classes, size, mean, std, force, as_json, device=device, **options)
