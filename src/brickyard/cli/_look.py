"""Commands that inspect and use files: evaluate, show, predict; and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from brickyard.base._declare import gathered
from brickyard.base._errors import FileError, OptionError
from brickyard.base._messages import shown
from brickyard.base._options import EvaluateOptions
from brickyard.cli._options import DATA_HELP, Force, Json, Names, Size, Split, Weights, with_options
from brickyard.cli._output import emit, loaded
from brickyard.runtime._progress import say, speaks
from brickyard.sources._resolve import check_free, data_of, fitted, preprocessing_of, source_of

File = Annotated[Path, typer.Argument(help="Component or assembly file.", show_default=False)]


@with_options(EvaluateOptions)
def evaluate(
    file: File,
    data: Annotated[list[str], typer.Option("--data", help=f"Test images, once per part: {DATA_HELP}")],
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Compare with this source, once per part (rows base and restricted)."),
    ] = None,
    weights: Annotated[
        list[Path] | None, typer.Option("--weights", help="Read weights from this file, once per --source.")
    ] = None,
    split: Split = "test",
    max_images: Annotated[int | None, typer.Option(help="Score at most this many images per --data.", min=1)] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the rows to this CSV file.")] = None,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Score a component or an assembly on test images. With --source, compare it with its sources."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component
    from brickyard.evaluation._evaluate import evaluate as score

    if csv is not None:
        check_free(csv, force, file, *(source or []), *(weights or []))
    model = loaded(file, Component, Assembly)
    parts = model.manifest.parts
    if len(data) not in (1, len(parts)):
        raise OptionError("option-count", f"{file} has {len(parts)} parts; give --data once, or {len(parts)} times")
    data = data if len(data) == len(parts) else data * len(parts)
    images = [
        fitted(data_of(spec, part.preprocessing, split, max_images), part.source.classes)
        for spec, part in zip(data, parts, strict=True)
    ]
    specs: list[str] = list(source or [])
    files: list[Path | None] = list(weights or [])
    if specs and len(specs) != len(parts):
        raise OptionError(
            "option-count", f"{file} has {len(parts)} parts; give --source {len(parts)} times, or not at all"
        )
    if files and len(files) != len(specs):
        raise OptionError(
            "option-count", f"--weights was given {len(files)} times for {len(specs)} sources; give it once per source"
        )
    models: list[Any] = [
        source_of(spec, place, None, part.preprocessing).model
        for spec, place, part in zip(specs, files or [None] * len(specs), parts, strict=False)
    ]
    target: Any = images if isinstance(model, Assembly) else images[0]
    origin: Any = (models or None) if isinstance(model, Assembly) else (models[0] if models else None)
    scores = score(model, target, **gathered(EvaluateOptions, options), source=origin)
    if csv is not None and speaks():
        scores.to_csv(csv, overwrite=force)
    emit(scores.as_dict(), as_json, scores)


def show(
    item: Annotated[str, typer.Argument(help="File, or source such as zoo:resnet20.", show_default=False)],
    weights: Weights = None,
    names: Names = None,
    size: Size = None,
    axes: Annotated[bool, typer.Option("--axes", help="List the axes with their sizes and kept channels.")] = False,
    as_json: Json = False,
) -> None:
    """Show the contents of a file or the channel axes of a source."""
    path = Path(item)
    if path.suffix == ".safetensors" and not _is_source(path):
        if weights is not None or names is not None or size is not None:
            raise OptionError(
                "option-without-effect",
                f"--weights, --class-names and --size apply to sources only, and {item} is not a "
                "source; leave them out",
            )
        _show_file(path, axes, as_json)
        return
    import torch

    from brickyard.axes._graph import trace

    spec = item if "?" in item or weights or not item.startswith("zoo:") else f"{item}?classes=10"
    source = source_of(spec, weights, names, preprocessing_of(None, None, size))
    graph = trace(source.model, torch.zeros(2, *source.input_shape))
    value = {
        "source": source.name,
        "classes": list(source.classes),
        "input_shape": list(source.input_shape),
        "axes": [
            {"name": a.name, "size": a.size, "writers": a.writers, "readers": a.readers, "pinned": a.pinned}
            for a in graph.axes
        ],
    }
    emit(value, as_json, f"{source.name}, {len(source.classes)} classes\n{graph}")


def _is_source(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    from brickyard.sources._loading import KEY

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return KEY in metadata or ("brickyard" not in metadata and path.with_suffix(".json").is_file())
    except (OSError, SafetensorError):
        return False


def _show_file(path: Path, axes: bool, as_json: bool) -> None:
    from brickyard.component._component import Component
    from brickyard.relevance._relevance import Relevance

    found = loaded(path)
    if isinstance(found, Relevance):
        value: dict[str, Any] = {
            "kind": "relevance",
            "source": found.source_name,
            "classes": list(found.classes),
            "images": list(found.record.images),
            "relevant": {name: found.relevant(name).sum(1).tolist() for name in found.axes},
        }
    else:
        value = found.manifest.model_dump(mode="json")
    lines = [str(found)]
    if axes and isinstance(found, Component):
        width = max(map(len, found.manifest.axes))
        lines += [f"  {name:<{width}}  {len(a.kept):>5} of {a.size}" for name, a in found.manifest.axes.items()]
    if axes and isinstance(found, Relevance):
        width = max(map(len, found.axes))
        task = list(found.task)
        lines += [
            f"  {name:<{width}}  {int(found.relevant(name)[task].any(0).sum()):>5} of {size} relevant for some class"
            for name, (_, size) in found.axes.items()
        ]
    emit(value, as_json, "\n".join(lines))


def predict(
    file: File,
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    top: Annotated[int, typer.Option(help="Print this many classes per image.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Classify images."""
    from brickyard.assembly._assembly import Assembly
    from brickyard.component._component import Component
    from brickyard.component._predictor import REJECT

    model = loaded(file, Component, Assembly)
    names = (*model.classes, REJECT)
    missing = [path for path in images if not path.is_file()]
    if missing:
        found = "it is no plain file" if missing[0].exists() else "there is no such file"
        raise FileError("file-missing", f"cannot read image {missing[0]}: {found}; check the path")
    answers: list[dict[str, Any]] = []
    for path, probabilities in zip(images, model.predict_proba(images), strict=True):
        best = probabilities.topk(min(top, len(probabilities)))
        answers.append(
            {
                "image": str(path),
                "classes": [
                    {"name": names[k], "probability": round(p, 6)}
                    for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ],
            }
        )
    lines = [
        shown(f"{answer['image']}: " + ", ".join(f"{c['name']} {c['probability']:.1%}" for c in answer["classes"]), "")
        for answer in answers
    ]
    emit({"predictions": answers}, as_json, "\n".join(lines))


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Write files to this folder.")] = Path("demo-output"),
    as_json: Json = False,
) -> None:
    """Build a digit classifier from two sources. Runs offline, in under two minutes."""
    from brickyard.cli._demo import run_demo

    result = run_demo(output, say=say)
    emit(result, as_json, f"files written to {output}")
