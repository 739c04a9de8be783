"""Commands that create files: train, locate, disassemble, assemble."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from brickyard.base import _options as declarations
from brickyard.base._declare import checked, declared, flat, gathered
from brickyard.base._errors import OptionError
from brickyard.cli import _options as words
from brickyard.cli._costs import costs
from brickyard.cli._options import Data, Force, Output, SourceSpec, Weights, check_companion, check_effect, with_options
from brickyard.cli._output import Result, keep, loaded, model
from brickyard.runtime._progress import say
from brickyard.sources import _resolve as resolve

if TYPE_CHECKING:
    from brickyard.assembly._assembly import Assembly
    from brickyard.base._records import ComponentManifest
    from brickyard.component._component import Component
    from brickyard.relevance._relevance import Relevance
    from brickyard.sources._loading import Source

FROM_SCRATCH = ("epochs", "lr", "batch_size", "augment", "seed", *declared(words.PreprocessingOptions))
OptionalData = Annotated[str | None, Option(help=f"Images: {words.DATA_HELP}")]
Calibration = Annotated[
    Path | None, Option(help="Instead of --data: use the images in this folder, labelled by the source's own answers.")
]
Classes = Annotated[list[str] | None, Option(help="Use only these classes.")]


@with_options(words.PreprocessingOptions, declarations.TrainingOptions, only=FROM_SCRATCH, lr=0.1)
def train(
    network: Annotated[str, Argument(help="Zoo network: NAME or NAME?width=0.5.")],
    data: Data,
    output: Output,
    classes: Classes = None,
    force: Force = False,
    **options: Any,
) -> Result:
    """Train a small network from the zoo, to be used as a source."""
    from brickyard.base._classes import parse_classes
    from brickyard.network._place import Place
    from brickyard.training._sources import train_source

    device = Place.of().device or "cpu"
    resolve.check_free(output, force)
    how = resolve.preprocessing_of(**{name: options.pop(name) for name in declared(words.PreprocessingOptions)})
    images = resolve.data_of(data, how)
    if classes:
        images = images.renumbered(parse_classes(classes, images.classes))
    held_out = resolve.data_of(data, how, "test").renumbered(images.classes) if data == "digits" else None
    made = train_source(network, images, preprocessing=how, held_out=held_out, device=device, **options)
    made.save(output, overwrite=force)
    text = ", ".join(f"{key.replace('_', ' ')} {value:.1%}" for key, value in made.scores.items())
    text = f"{output}: {made.arch}, {len(images.classes)} classes, {text}"
    return Result({"output": str(output), **made.scores}, text)


@with_options(words.PreprocessingOptions, words.WeightOptions, declarations.LocateOptions)
def locate(
    source: SourceSpec,
    output: Output,
    data: OptionalData = None,
    calibration: Calibration = None,
    weights: Weights = None,
    task: Annotated[list[str] | None, Option(help="Locate only these classes.")] = None,
    names: words.Names = None,
    force: Force = False,
    **options: Any,
) -> Result:
    """Find the channels of a source that matter for each class."""
    resolve.check_free(output, force, source, weights)
    _check_one(data, calibration)
    found, relevance, _ = _located(source, (data, calibration), weights, task, names, options, cut=False)
    keep(relevance, output, force)
    value = {
        "output": str(output),
        "source": found.name,
        "classes": list(relevance.classes),
        "images": list(relevance.record.images),
    }
    return Result(value, f"{relevance}\n{output}")


def _check_one(data: str | None, calibration: Path | None) -> None:
    """Refuse images with and without labels together.

    Raises:
        OptionError: Both were given.
    """
    if data is not None and calibration is not None:
        raise OptionError(
            "option-conflict",
            "--calibration stands in the place of --data; leave one out, or give pictures without labels beside "
            "labelled ones with --more-images",
        )


def _check_task(task: list[str] | None, source: Source) -> None:
    """Refuse classes that a source does not have, before it is asked about any picture.

    Raises:
        TaskError: One is unknown.
    """
    from brickyard.base._classes import parse_classes, task_classes

    if task:
        task_classes(parse_classes(task, source.classes), source.classes)


def _located(
    spec: str,
    given_images: tuple[str | None, Path | None],
    weights: Path | None,
    task: list[str] | None,
    names: str | None,
    options: dict[str, Any],
    *,
    cut: bool,
) -> tuple[Source, Relevance, Any]:
    """A source, its relevances and the images; with `cut`, only if a component of it can be written to a file.

    Images come from data with labels, or from a folder without.
    """
    from brickyard.base._boxes import split_outputs
    from brickyard.base._classes import parse_classes
    from brickyard.outputs._outputs import find_outputs
    from brickyard.relevance._locate import check_savable, located
    from brickyard.relevance._locate import locate as find

    outputs, boxes = split_outputs(options["outputs"])
    find_outputs(outputs or "one")  # refuses an unknown one before any work
    how = resolve.preprocessing_of(**gathered(words.PreprocessingOptions, options), boxed=boxes is not None)
    which = gathered(words.WeightOptions, options) | {"boxes": boxes}
    data, calibration = given_images
    images: Any
    if calibration is not None:
        source = resolve.source_of(spec, weights, names, how, **which)
        _check_task(task, source)
        kind = resolve.kind_of(source, options["outputs"])
        images = resolve.answered(source, calibration, find_outputs(kind), *([check_savable] if cut else []))
        seen: list[int] | None = resolve.seen_in(images)
    elif data is not None:
        source, images = resolve.source_and_data(spec, data, weights, names, how, options["outputs"], **which)
        source = resolve.named_after(source, images)
        _check_task(task, source)
        images, seen = resolve.fitted(images, source.classes), None
    else:
        raise OptionError("option-needs-data", "locate needs images; give --data, or --calibration without labels")
    say(f"locating in {source.name}: {len(images):,} images, {len(source.classes)} classes")
    given = gathered(declarations.LocateOptions, options) | {
        "classes": source.classes,
        "preprocessing": source.preprocessing,
        "task": parse_classes(task, source.classes) if task else seen,
        "accuracy": source.accuracy,
        "name": source.name,
        "output": source.output,
    }
    if cut:
        chosen: Any = checked(declarations.LocateOptions, given, "locate")
        found = located(source.model, images, chosen, check_savable)
    else:
        found = find(source.model, images, **given)
    known: dict[str, Any] = {"assumed": source.assumed}
    if calibration is not None:  # a source is always right about its own answers
        known["right"] = None
    found.record = found.record.model_copy(update=known)
    return source, found, images


@with_options(
    words.PreprocessingOptions,
    words.WeightOptions,
    declarations.DisassembleOptions,
    unset=(declarations.LocateOptions,),
)
def disassemble(
    source: SourceSpec,
    task: Annotated[
        list[str], Option(help='Classes by name or index, as "cat,dog", "0-2,7" or "animal=cat+dog"; may be repeated.')
    ],
    output: Output,
    data: Annotated[
        str | None, Option(help="Training images for healing and, without --relevance, for locating.")
    ] = None,
    calibration: Calibration = None,
    relevance: Annotated[Path | None, Option(help="Use relevances written by `locate`.")] = None,
    more_images: Annotated[
        Path | None, Option(help="Also heal with the images in this folder; they may show anything.", exists=True)
    ] = None,
    weights: Weights = None,
    names: words.Names = None,
    force: Force = False,
    **options: Any,
) -> Result:
    """Cut a component for the given classes out of a source."""
    from brickyard.base._classes import parse_classes, task_classes
    from brickyard.component._disassemble import disassemble as cut
    from brickyard.outputs._outputs import find_outputs
    from brickyard.relevance._locate import check_savable
    from brickyard.relevance._relevance import Relevance

    resolve.check_free(output, force, source, weights, relevance)
    _check_one(data, calibration)
    limited = any(options[name] is not None for name in declarations.LIMITS)
    companions = {key: options[key] for key in declared(declarations.Budget)}
    check_companion("--flops, --parameters or --agreement", limited, **companions)
    thresholds = {name: options[name] for name in declared(declarations.Thresholds)}
    images: Any = None
    if relevance is not None:
        found: Relevance = loaded(relevance, Relevance)
        task_classes(parse_classes(task, found.classes), found.classes)  # refuses before any work
        used = flat(declarations.DisassembleOptions)
        which = gathered(words.WeightOptions, options)
        same = used.keys() | (which.keys() - {"output_name"})
        idle = {name: value for name, value in options.items() if name not in same} | (thresholds if limited else {})
        check_effect(f"{relevance} was already located, and a budget needs no threshold", **idle)
        which |= {"input_shape": found.input_shape, "output_name": found.record.output}
        which |= {"boxes": found.boxes, "tell": False}
        origin = resolve.source_of(source, weights, names, found.preprocessing, **which)
        check_savable(found.graph(origin.model))
        if data is not None:
            kind: Any = {"outputs": found.outputs, "shape": found.input_shape}
            images = resolve.fitted(resolve.data_of(data, found.preprocessing, **kind), found.classes)
        elif calibration is not None:
            asked = replace(origin, classes=found.classes)
            images = shown = resolve.answered(asked, calibration, find_outputs(found.outputs))
    elif data is None and calibration is None:
        raise OptionError(
            "option-needs-data", "disassemble needs images or relevances; give --data, --calibration or --relevance"
        )
    else:
        origin, found, shown = _located(source, (data, calibration), weights, task, names, options, cut=True)
    if limited:  # thresholds were for locating
        options |= dict.fromkeys(thresholds)
    chosen = gathered(declarations.DisassembleOptions, options, thresholds=found.thresholds)
    classes = parse_classes(task, found.classes)
    more: Any = more_images
    if more is None and calibration is not None and options["heal"] != "none":
        others = shown.without(task_classes(classes, found.classes))
        more = others or None  # other pictures of the folder tell what the layers do, too
    component = cut(origin.model, found, **chosen, task=classes, images=images, more_images=more)
    keep(component, output, force)
    return Result(_figures(component, output), f"{component}\n{_later(component)}{output}")


def _later(component: Component) -> str:
    """What a component cannot do later, and how it could, in a line each; its summary says some of it."""
    from brickyard.component._describe import later_texts

    said = str(component)
    return "".join(f"  later        {text}\n" for text in later_texts(component.manifest) if text not in said)


def _figures(component: Component, output: Path) -> dict[str, Any]:
    """What is told of a new component as JSON."""
    from brickyard.component._describe import later_texts

    manifest = component.manifest
    return {
        "output": str(output),
        "classes": list(component.classes),
        "parameters": manifest.selection.parameters,
        "flops": manifest.selection.flops,
        "parameters_share": manifest.selection.parameters / max(1, manifest.source.parameters),
        "flops_share": manifest.selection.flops / max(1, manifest.source.flops),
        "agreement": manifest.agreement,
        "pinned": [pin.model_dump() for pin in manifest.pinned],
        "notes": list(manifest.heal.notes),
        "later": list(later_texts(manifest)),
    }


@with_options(declarations.AssembleOptions, unset=(declarations.RefineOptions,))
def assemble(
    files: Annotated[list[str], Argument(help="Component or assembly files; with --yard, class names.")],
    output: Output,
    yard: Annotated[Path | None, Option(help="Choose the best components for the classes from this yard.")] = None,
    max_parameters: Annotated[
        int | None, Option(help="With --yard: limit the total parameters of the parts.", min=1)
    ] = None,
    max_flops: Annotated[int | None, Option(help="With --yard: limit the total FLOPs per image.", min=1)] = None,
    without: Annotated[list[str] | None, Option(help="Leave out this class; may be repeated.")] = None,
    images: Annotated[
        list[str] | None, Option(help="Labelled training images for few-shot scalings, once per part.")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        Option(
            help="Training images to cut with within --flops or --parameters (default: --images), or to merge with, "
            "once per part. With --form cascade: images of the kind and in the shares that it will see, labels unread: "
            f"a folder of pictures, or {words.DATA_HELP.removesuffix('.')}; may be repeated."
        ),
    ] = None,
    source: Annotated[
        str | None, Option(help="With --form union: fill in weights from the parts' common source.")
    ] = None,
    weights: Weights = None,
    refine: Annotated[
        list[str] | None,
        Option(
            help="With detectors: name boxes of a class further with the classifier in a file, as "
            "dog=breeds.safetensors; may be repeated."
        ),
    ] = None,
    force: Force = False,
    **options: Any,
) -> Result:
    """Join components into one classifier."""
    from brickyard.assembly._assemble import assemble as join

    resolve.check_free(output, force, source, weights, *files)
    further = _classifiers(refine or [], output, force)
    how = {name: options.pop(name) for name in declared(declarations.RefineOptions)}
    check_companion("--refine", bool(further), **how)
    check_companion("--yard", yard is not None, max_parameters=max_parameters, max_flops=max_flops)
    check_companion("--images, once per part", bool(images), shots=options["shots"])
    limited = options["flops"] is not None or options["parameters"] is not None
    companions = {key: options[key] for key in declarations.JOINT}
    check_companion("--flops or --parameters", limited, **companions)
    check_companion("--source", source is not None, weights=weights)
    if options["form"] not in ("cascade", "merged"):
        what = f"it applies to --form cascade and merged, and this is {options['form']}"
        check_effect(what, agreement=options["agreement"])
        either = "--flops, --parameters, or --form cascade or merged"
        check_companion(either, limited, calibration=", ".join(calibration or ()))
    elif not calibration and options["form"] == "merged":
        why = "--form merged brings parts together on images of each"
        raise OptionError("option-needs-data", f"{why}; add --calibration, once per part")
    elif not calibration:
        why = "--form cascade takes from images when an answer is sure enough"
        raise OptionError("option-needs-data", f"{why}; add --calibration, of the kind that the assembly will see")
    if options["form"] != "union":
        check_effect(f"it applies to --form union, and this is {options['form']}", source=source)
    chosen: list[str] = []
    if yard is not None:
        chosen, parts = _from_yard(yard, files, max_parameters, max_flops)
    else:
        parts = [model(Path(path)) for path in files]
    manifests = [manifest for part in parts for manifest in part.manifest.parts]
    named = list(zip(chosen or [Path(path).name for path in files], (part.manifest for part in parts), strict=True))
    labelled = resolve.labelled_images(images, named, "--images") if images else None
    shown: Any = None
    if calibration:
        if options["form"] == "cascade":
            shown = _unlabelled(calibration, manifests)
        else:
            shown = resolve.labelled_images(calibration, named, "--calibration")
    origin = None if source is None else resolve.models_of([source], [weights] if weights else [], manifests)[0]
    given = {**gathered(declarations.AssembleOptions, options), "without": without or [], "images": labelled}
    whole = join(parts, **given, calibration=shown, source=origin)
    cost, line = costs(whole)
    value = {"output": str(output), "costs": cost, "scaling": options["scaling"], **_joined(whole)}
    value |= {"components": chosen} if chosen else {}
    if further:
        return _refined(whole, further, how, output, force, value, line)
    whole.save(output, overwrite=force)
    return Result(value, f"{whole}\n{line}\n{output}")


def _classifiers(words: list[str], output: Path, force: bool) -> dict[str, Any]:
    """The classifiers that name boxes of a class further, by its name, as typed: "dog=breeds.safetensors".

    Raises:
        OptionError: One is not typed so.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, _, path = word.rpartition("=")
        if not name or not path or name in found:
            why = f"--refine {word} does not say which class which file names further, each class once"
            raise OptionError("option-type", f"{why}; give it as dog=breeds.safetensors")
        resolve.check_free(output, force, path)
        found[name] = model(Path(path))
    return found


def _refined(
    whole: Assembly,
    classifiers: dict[str, Any],
    how: dict[str, Any],
    output: Path,
    force: bool,
    value: dict[str, Any],
    line: str,
) -> Result:
    """Write an assembly of detectors whose boxes are named further, and say what it is."""
    from brickyard.assembly._refined import refine

    made = refine(whole, classifiers, **{name: one for name, one in how.items() if one is not None})
    made.save(output, overwrite=force)
    told = {"classes": list(made.classes), "refines": list(classifiers)}
    once = "for the detector, and for each box of theirs those of the classifiers"
    return Result(value | told, f"{made}\n{line}, {once}\n{output}")


def _joined(whole: Assembly) -> dict[str, Any]:
    """What is told of a new assembly as JSON."""
    manifest = whole.manifest
    records = {"cascade": manifest.cascade, "merged": manifest.merged, "budget": manifest.budget}
    return {
        "classes": list(whole.classes),
        "form": manifest.form,
        **{name: record.model_dump() for name, record in records.items() if record is not None},
    }


def _unlabelled(specs: list[str], parts: list[ComponentManifest]) -> list[Any]:
    """Images for a cascade: all pictures of a folder, or a data set."""
    from brickyard.inputs._folders import is_picture, pictures_in

    part = max(parts, key=lambda one: one.input_shape[1:])
    return [
        pictures_in(folder)
        if (folder := Path(spec)).is_dir() and any(is_picture(file.name) for file in folder.rglob("*"))
        else resolve.data_of(spec, resolve.seen_by(part, parts), shape=part.input_shape)
        for spec in specs
    ]


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
