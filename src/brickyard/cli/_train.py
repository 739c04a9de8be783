"""Commands that train with components: finetune, distil."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from brickyard.base._boxes import check_no_boxes
from brickyard.base._declare import gathered
from brickyard.base._errors import OptionError
from brickyard.base._options import DistilOptions, FinetuneOptions
from brickyard.cli import _options as words
from brickyard.cli._options import Force, Output, check_companion, with_options
from brickyard.cli._output import Result, loaded, model
from brickyard.sources._resolve import check_free, labelled_images, models_of

if TYPE_CHECKING:
    from brickyard.component._component import Component


TRAINED = "cut it again with more images, which need no labels (--more-images), or with a larger budget"


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
    force: Force = False,
    **options: Any,
) -> Result:
    """Fine-tune a component or an assembly on labelled images."""
    from brickyard.component._component import Component
    from brickyard.component._predictor import Predictor
    from brickyard.training._finetune import finetune as tune

    check_free(output, force, file, teacher, source, weights)
    if teacher is not None and source is not None:
        raise OptionError("option-conflict", "--teacher and --source cannot be combined; give one of them")
    check_companion("the component's --source", source is not None, weights=weights, features=options["features"])
    chosen = gathered(FinetuneOptions, options)
    student = model(file)
    check_no_boxes(student, "finetune", TRAINED)
    images = labelled_images(data, [(file.name, student.manifest)], "--data")
    if teacher is not None:
        chosen["teacher"] = loaded(teacher, Predictor)
    elif source is not None:
        (own,) = models_of([source], [weights] if weights else [], student.manifest.parts[:1])
        chosen["teacher"] = own
    else:
        chosen.pop("distillation", None)
    better = tune(student, images[0] if isinstance(student, Component) else images, **chosen)
    better.save(output, overwrite=force)
    return Result({"output": str(output), **better.manifest.tuned.model_dump()}, f"{better}\n{output}")


@with_options(DistilOptions)
def distil(
    file: words.File,
    images: Annotated[
        str, Option(help="Unlabelled images: a folder, or anything that --data of other commands takes.")
    ],
    output: Output,
    force: Force = False,
    **options: Any,
) -> Result:
    """Train one small network to answer like a component or an assembly, without labels."""
    from brickyard.component._predictor import Predictor
    from brickyard.training._students import distil as teach

    check_free(output, force, file, images)
    teacher: Any = loaded(file, Predictor)
    student = teach(teacher, images, **gathered(DistilOptions, options)).to("cpu")
    student.save(output, overwrite=force)
    return _compared(file, teacher, output, student)


def _compared(file: Path, teacher: Any, output: Path, student: Component) -> Result:
    """What is told of a student: how often it agrees with its teacher, and what both cost."""
    from brickyard.evaluation._evaluate import sizes

    same, count = student.manifest.agreement or (0, 0)
    share = same / max(1, count)
    error = math.sqrt(share * (1 - share) / max(1, count))
    rows = []
    for name, path, one in (("teacher", file, teacher), ("student", output, student)):
        parameters, flops = sizes(one)
        rows.append({"name": name, "parameters": parameters, "flops": flops, "bytes": path.stat().st_size})
    value = {
        "output": str(output),
        "classes": list(student.classes),
        "agreement": {"same": same, "images": count, "share": share, "error": error},
        "sizes": rows,
    }
    lines = [f"{'':<8}{'parameters':>14}{'FLOPs':>18}{'bytes':>14}"]
    lines += [f"{r['name']:<8}{r['parameters']:>14,}{r['flops']:>18,}{r['bytes']:>14,}" for r in rows]
    said = (
        f"gives the answer of {file} on {same:,} of {count:,} images held back: {share:.1%}, standard error {error:.1%}"
    )
    return Result(value, "\n".join([str(student), *lines, said, str(output)]))
