"""Commands that train with components: finetune, distil."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from brickyard.base._declare import gathered
from brickyard.base._errors import OptionError
from brickyard.base._options import Distillation, FinetuneOptions, TrainingOptions
from brickyard.cli import _options as words
from brickyard.cli._make import FROM_SCRATCH, Classes, trained
from brickyard.cli._options import Data, Force, Output, check_companion, with_options
from brickyard.cli._output import Result, loaded, model
from brickyard.sources._resolve import check_free, labelled_images, models_of


@with_options(FinetuneOptions)
def finetune(
    file: words.File,
    data: Annotated[list[str], Option(help="Labelled training images; for an assembly, once per part.")],
    output: Output,
    teacher: Annotated[
        Path | None, Option(help="Distil from this component or assembly, which must know the classes.")
    ] = None,
    source: Annotated[str | None, Option(help="Distil from the component's own source.")] = None,
    weights: words.Weights = None,
    device: words.Device = "cpu",
    force: Force = False,
    **options: Any,
) -> Result:
    """Fine-tune a component or an assembly on labelled images."""
    from brickyard.component._component import Component
    from brickyard.component._predictor import Predictor
    from brickyard.training._finetune import finetune as tune
    from brickyard.training._sources import device_named

    check_free(output, force, file, teacher, source, weights)
    if teacher is not None and source is not None:
        raise OptionError("option-conflict", "--teacher and --source cannot be combined; give one of them")
    check_companion("the component's --source", source is not None, weights=weights, features=options["features"])
    chosen = gathered(FinetuneOptions, options)
    place = device_named(device)
    student = model(file).to(place)
    images = labelled_images(data, student.manifest.parts, "--data")
    if teacher is not None:
        chosen["teacher"] = loaded(teacher, Predictor).to(place)
    elif source is not None:
        (own,) = models_of([source], [weights] if weights else [], student.manifest.parts[:1])
        chosen["teacher"] = own.to(place)
    else:
        chosen.pop("distillation", None)
    better = tune(student, images[0] if isinstance(student, Component) else images, **chosen)
    better.save(output, overwrite=force)
    return Result({"output": str(output), **better.manifest.tuned.model_dump()}, f"{better}\n{output}")


@with_options(
    words.PreprocessingOptions, TrainingOptions, Distillation, only=(*FROM_SCRATCH, "temperature", "weight"), lr=0.1
)
def distil(
    network: Annotated[str, Argument(help="Student, a zoo network: NAME or NAME?width=0.5.")],
    teacher: Annotated[Path, Option(help="Distil from this component or assembly.")],
    data: Data,
    output: Output,
    classes: Classes = None,
    device: words.Device = "cpu",
    force: Force = False,
    **options: Any,
) -> Result:
    """Distil a component or an assembly into a small zoo network."""
    from brickyard.component._predictor import Predictor
    from brickyard.training._sources import device_named

    check_free(output, force, teacher)
    options["distillation"] = Distillation(**{name: options.pop(name) for name in ("temperature", "weight")})
    options["teacher"] = loaded(teacher, Predictor).to(device_named(device))
    classes = classes or list(options["teacher"].classes)
    return trained(network, data, output, classes, force, device=device, **options)
