"""Commands that inspect and use files: evaluate, show, predict; and the demo."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from brickyard.base._boxes import KIND, split_outputs
from brickyard.base._declare import gathered
from brickyard.base._errors import OptionError
from brickyard.base._messages import shown
from brickyard.base._options import DetectOptions, EvaluateOptions, LocateOptions
from brickyard.cli import _options as words
from brickyard.cli._costs import costs
from brickyard.cli._options import DATA_HELP, File, Force, check_effect, with_options
from brickyard.cli._output import Result, answering, keep, loaded, model
from brickyard.runtime._progress import say, speaks
from brickyard.sources import _resolve as resolve

if TYPE_CHECKING:
    from brickyard.axes._graph import Graph
    from brickyard.base._records import AssemblyManifest, ComponentManifest


@with_options(EvaluateOptions)
def evaluate(
    file: File,
    data: Annotated[list[str], Option(help=f"Test images, once per part: {DATA_HELP}")],
    source: Annotated[
        list[str] | None, Option(help="Compare with this source, once per part (rows base and restricted).")
    ] = None,
    weights: words.AllWeights = None,
    split: words.Split = "test",
    max_images: words.MaxImages = None,
    csv: Annotated[Path | None, Option(help="Also write the rows to this CSV file.")] = None,
    remember: Annotated[
        bool, Option("--remember", help="Keep the scores in FILE, for show, cards, yards, reports and the Hub.")
    ] = False,
    force: Force = False,
    **options: Any,
) -> Result:
    """Score a component or an assembly on test images. With --source, compare it with its sources."""
    from brickyard.component._component import Component
    from brickyard.evaluation._evaluate import evaluate as score

    if csv is not None:
        resolve.check_free(csv, force, file, *(source or []), *(weights or []))
    scored = model(file)
    parts = scored.manifest.parts
    if parts[0].boxes is not None:
        check_effect(f"{file} is a detector, whose figures are written with --json", csv=csv)
    models: Any = [(file.name, scored.manifest)]
    images: Any = boxes_to_score(data, scored, split, max_images) or resolve.labelled_images(
        data, models, "--data", split, max_images, shared=True
    )
    if source and len(source) != len(parts):
        raise OptionError(
            "option-count", f"{file} has {len(parts)} parts; give --source {len(parts)} times, or not at all"
        )
    models = resolve.models_of(source or [], weights or [], parts) or None
    if isinstance(scored, Component):
        models = models and models[0]
    if isinstance(scored, Component) or parts[0].boxes is not None:
        images = images[0]
    scores: Any = score(scored, images, **gathered(EvaluateOptions, options), source=models)
    if csv is not None and speaks():
        scores.to_csv(csv, overwrite=force)
    if remember:
        keep(scored.with_manifest(scores={**scored.manifest.scores, **scores.remembered()}), file, True)
        say(f"the scores are kept in {file}")
    return Result(scores.as_dict(), scores)


def boxes_to_score(specs: list[str], scored: Any, split: str, most: int | None) -> list[Any]:
    """For detectors, the images with boxes, whose classes are known by name; else nothing."""
    if scored.manifest.parts[0].boxes is None:
        return []
    if len(specs) > 1:
        raise OptionError("option-count", f"detectors are scored on one data set, got {len(specs)}; give --data once")
    return [resolve.data_of(specs[0], scored.preprocessings[0], split, most, outputs=KIND)]


def rename(
    file: File,
    names: Annotated[list[str], Argument(help="Classes and their new names, as old=new.")],
    output: words.Output,
    force: Force = False,
) -> Result:
    """Rename classes of a component or an assembly."""
    from brickyard.component._names import read_names

    resolve.check_free(output, force, file)
    before = model(file)
    after = before.renamed(read_names(names, before.classes))
    after.save(output, overwrite=force)
    return Result({"output": str(output), "classes": list(after.classes)}, f"{after}\n{output}")


@with_options(words.PreprocessingOptions, words.WeightOptions, LocateOptions, only=("size", "output_name", "outputs"))
def show(
    item: Annotated[str, Argument(help="File, or source such as zoo:resnet20.")],
    weights: words.Weights = None,
    names: words.Names = None,
    axes: Annotated[bool, Option("--axes", help="List the axes with their sizes and kept channels.")] = False,
    **options: Any,
) -> Result:
    """Show the contents of a file or the channel axes of a source."""
    path = Path(item)
    if path.suffix == ".safetensors" and not _is_source(path):
        why = f"only a source takes it, and {item} is none"
        check_effect(why, weights=weights, class_names=names, **options)
        return _show_file(path, axes)
    spec = item if "?" in item or weights or not item.startswith("zoo:") else f"{item}?classes=10"
    _, boxes = split_outputs(options.pop("outputs"))
    which = {"output_name": options.pop("output_name"), "random_weights": True, "boxes": boxes, "tell": False}
    source = resolve.source_of(spec, weights, names, resolve.preprocessing_of(**options, boxed=bool(boxes)), **which)
    graph = resolve.axes_of(source)
    free = _free(graph)
    value = {
        "source": source.name,
        "classes": list(source.classes),
        "input_shape": list(source.input_shape),
        "free": free,
        "axes": [
            {"name": a.name, "size": a.size, "writers": a.writers, "readers": a.readers, "pinned": a.pinned}
            for a in graph.axes
        ],
    }
    return Result(value, "\n".join([f"{source.name}, {len(source.classes)} classes", *_free_text(free), str(graph)]))


def _free(graph: Graph) -> dict[str, Any]:
    """What can be cut of a source, with and without its norms opened, and what keeps the rest whole."""
    from brickyard.surgery._cost import Removable, weightless
    from brickyard.surgery._rotation import opened

    made = opened(weightless(graph))
    kept = Counter(re.sub(r" '[^']*'", "", pin.reason) for pin in made.graph.pinned())
    return {
        **vars(Removable.of(graph)),
        "opened": {"turned": made.turned, "norms": made.norms, **vars(Removable.of(made.graph))},
        "kept_whole": dict(kept.most_common()),
    }


def _free_text(free: dict[str, Any]) -> list[str]:
    def shares(found: dict[str, Any]) -> str:
        return f"{found['parameters']:.1%} of the parameters, {found['flops']:.1%} of the FLOPs"

    lines = [f"can be cut: {shares(free)}"]
    opened = free["opened"]
    streams = "the residual stream" if opened["turned"] == 1 else f"{opened['turned']} residual streams"
    norms = "a norm as steps" if opened["norms"] == 1 else f"{opened['norms']} norms as steps"
    done = [f"turns {streams}"] * bool(opened["turned"]) + [f"writes {norms}"] * bool(opened["norms"])
    if done:
        lines.append(f"with a budget, which {' and '.join(done)}: {shares(opened)}")
    for reason, count in free["kept_whole"].items():
        lines.append(f"kept whole: {reason}" + (f" ({count} times)" if count > 1 else ""))
    return lines


def _is_source(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    from brickyard.sources._catalogue import KEY

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return KEY in metadata or ("brickyard" not in metadata and path.with_suffix(".json").is_file())
    except (OSError, SafetensorError):
        return False


def _show_file(path: Path, axes: bool) -> Result:
    from brickyard.assembly._refined import Refined
    from brickyard.component._component import Component
    from brickyard.relevance._relevance import Relevance

    found = loaded(path)
    if isinstance(found, Refined):
        return Result(found.manifest.model_dump(mode="json"), found)
    rows: dict[str, str] = {}
    if isinstance(found, Relevance):
        value: dict[str, Any] = {
            "kind": "relevance",
            "source": found.source_name,
            "classes": list(found.classes),
            "images": list(found.record.images),
            "relevant": {name: found.relevant(name).sum(1).tolist() for name in found.axes},
        }
        for name, (_, size) in found.axes.items():
            count = int(found.relevant(name)[list(found.task)].any(0).sum())
            rows[name] = f"{count:>5} of {size} relevant for some class"
    else:
        cost, line = costs(found)
        value = {**found.manifest.model_dump(mode="json"), "costs": cost}
        if isinstance(found, Component):
            rows = {name: f"{len(axis.kept):>5} of {axis.size}" for name, axis in found.manifest.axes.items()}
    width = max(map(len, rows), default=0)
    lines = [f"  {name:<{width}}  {text}" for name, text in rows.items()] if axes else []
    if not isinstance(found, Relevance):
        lines[:0] = [line, *_scores_kept(found.manifest)]
    return Result(value, "\n".join([str(found), *lines]))


def _scores_kept(manifest: ComponentManifest | AssemblyManifest) -> list[str]:
    """The scores that a file holds, a line per set of test images."""
    from brickyard.reports._cards import stored

    tables, others = stored(manifest)
    told = {name: table.brief for name, table in tables.items()} | dict.fromkeys(others, "of another form")
    return [shown(f"  scores       {name}: {text}", keep="") for name, text in told.items()]


@with_options(unset=(DetectOptions,), only=("score", "iou", "most"))
def predict(
    file: File,
    images: Annotated[
        list[str],
        Argument(
            help="Image files, folders, patterns in quotes, http(s) addresses, arrays (.npy, .npz), or - for standard "
            "input: a picture, or one of these per line."
        ),
    ],
    top: Annotated[int | None, Option(help="Print this many classes per image; 3 by default.", min=1)] = None,
    csv: Annotated[Path | None, Option(help="Also write the answers to this CSV file; - prints CSV instead.")] = None,
    draw: Annotated[Path | None, Option(help="Also write pictures with their answers to this folder.")] = None,
    force: Force = False,
    **options: Any,
) -> Result:
    """Classify images, and say which look like none of the classes. Exit code 1 if some could not be read.

    With the component of a detector, find objects: class, score, and left, top, right and bottom in pixels.
    """
    from brickyard.cli._answers import Answers, Drawing
    from brickyard.cli._asked import asked
    from brickyard.storage._atomic import folder_for, write_content

    printed = csv is not None and str(csv) == "-"
    if csv is not None and not printed:
        resolve.check_free(csv, force, file)
    classifier = answering(file)
    if getattr(classifier, "detector", classifier).manifest.parts[0].boxes is None:
        check_effect(f"{file} is a classifier", **options)
        answers = Answers(classifier, top or 3)
    else:
        from brickyard.cli._objects import Objects

        check_effect(f"{file} is a detector, whose boxes are limited by --most", top=top)
        answers = Objects(classifier, {name: value for name, value in options.items() if value is not None})
    drawing = None if draw is None else Drawing(draw, force)
    with nullcontext() if draw is None else folder_for(draw, "give another folder for --draw"):
        answers.take(asked(images, classifier.input_shape), drawing)
    if csv is not None and not printed and speaks():
        write_content(csv, answers.csv, overwrite=force)
    for line in answers.losses:
        say(line)
    if drawing is not None:
        say(f"{len(drawing.files):,} pictures with their answers: {draw}")
    return Result(answers.value, answers.csv.rstrip("\n") if printed else answers.text, int(bool(answers.left_out)))


def demo(
    output: Annotated[Path, Option("--output", "-o", help="Write files to this folder.")] = Path("demo-output"),
) -> Result:
    """Build a digit classifier from two sources. Runs offline, in under two minutes."""
    from brickyard.cli._demo import run_demo

    return Result(run_demo(output, say=say), f"files written to {output}")
