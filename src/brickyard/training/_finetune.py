"""Fine-tune a component or an assembly on labelled images, optionally with a teacher."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar, Unpack

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly, check_model, check_no_cascade
from brickyard.assembly._labelled import Examples
from brickyard.base._boxes import check_no_boxes
from brickyard.base._checks import given_path
from brickyard.base._declare import verb
from brickyard.base._errors import BrickyardWarning, DataError, OptionError
from brickyard.base._history import TuneRecord, UsedRecord
from brickyard.base._options import Distillation, FinetuneOptions, TrainingOptions
from brickyard.base._records import ComponentManifest
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.component._statistics import observed
from brickyard.inputs._augment import shifted_and_mirrored
from brickyard.inputs._batches import Images
from brickyard.inputs._content import as_bytes
from brickyard.network._identity import fingerprint, weights_like
from brickyard.network._untouched import guarded
from brickyard.training._distillation import Lesson, lesson_loss, taught_by, teacher_name
from brickyard.training._loop import fit

ModelT = TypeVar("ModelT", Component, Assembly)


@guarded
@verb(FinetuneOptions)
def finetune(model: ModelT, images: Any, **options: Unpack[FinetuneOptions]) -> ModelT:
    """Fine-tune a component or an assembly on labelled images.

    Args:
        model: The model; it is not changed, and a trained copy is returned.
        images: Labelled training images, as for `locate`: labels are indices into the source's classes. For an
            assembly, a list with one entry per part. Images of other classes are ignored, except by a component
            with a reject output, which learns from them too.

    The images of `validation`, drawn evenly from the classes, are held out of training. They select the epoch whose
    weights are kept, by accuracy and then by likelihood; the state before training competes too.

    Returns:
        The trained copy, in evaluation mode; its manifest records the training. A component's statistics are
        measured again. An assembly keeps its scaling.

    Raises:
        DataError: The images cannot be used, or none belongs to a class of the model.
        OptionError: An option cannot be used, the teacher does not fit, or training diverges.
        FileError: `resume` holds the state of a different call, or cannot be written.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.training import TrainingOptions
        >>> from brickyard.testing import chain
        >>> data = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
        >>> relevance = by.locate(chain(), data)
        >>> parts = [by.disassemble(chain(), relevance, task=[k]) for k in (3, 1)]
        >>> whole = by.assemble(parts, scaling="none")
        >>> trained = by.finetune(whole, [data, data], training=TrainingOptions(epochs=1))
        >>> [line.strip().split(",")[0] for line in str(trained).splitlines() if line.startswith("  trained")]
        ['trained      1 epoch on 18 images']
    """
    check_model(model, "finetune")
    check_no_boxes(model, "finetune", "cut it again with more images, which need no labels (more_images=), or larger")
    check_no_cascade(model, "training")
    teacher = options["teacher"]
    if options["distillation"] is not None and teacher is None:
        raise OptionError("option-requires-option", "distillation needs a teacher; give teacher=, or leave it out")
    folder = None if options["resume"] is None else given_path(options["resume"], "the folder to go on from")
    training, how = options["training"] or TrainingOptions(), options["distillation"] or Distillation()
    examples, held_out = _divided(model, images, options["validation"], training.seed)
    if teacher is None:
        _warn(model, len(examples))
    taught = None if teacher is None else taught_by(teacher, model, how)
    trained = copy.deepcopy(model)
    before = _free(trained)

    def loss(chosen: list[int], generator: torch.Generator) -> Tensor:
        images, labels = zip(*examples.raw(torch.tensor(chosen)), strict=True)
        raw = [shifted_and_mirrored(x, generator) if training.augment else x for x in images]
        answer = _answer(trained, raw, features=how.features > 0)
        targets = torch.cat(labels).to(answer[0].device)
        if taught is None:
            return model.outputs.loss(answer[0], targets)
        logits, features = zip(*map(taught, raw), strict=True)
        lesson = torch.cat(logits), None if features[0] is None else torch.cat(features)
        return lesson_loss(answer, lesson, targets, how, model.outputs)

    fitted = fit(
        trained,
        loss,
        len(examples),
        training,
        score=None if held_out is None else lambda: _score(trained, held_out, training.batch_size),
        resume=folder,
        key="" if folder is None else _key(model, (examples, held_out), teacher, how),
    )
    record = TuneRecord(
        images=len(examples),
        validation=0 if held_out is None else len(held_out),
        epochs=fitted.epochs,
        best=fitted.best,
        optimizer=training.optimizer,
        lr=training.rate,
        batch_size=training.batch_size,
        seed=training.seed,
        teacher="" if teacher is None else teacher_name(teacher, model),
        scores=fitted.scores,
    )
    return _finished(trained, record, examples, held_out, before)


FEW = 2_000  # images; with fewer, labels alone take back what a refit has gained


def _warn(model: Component | Assembly, images: int) -> None:
    """Say before any work that labels alone will probably make a refitted component worse, and what to do instead."""
    if isinstance(model, Component) and model.manifest.heal.method in ("refit", "distil") and images < FEW:
        warnings.warn(
            f"the component was refitted to its source, and is trained by the labels of only {images:,} images: with "
            f"fewer than about {FEW:,} it often ends up worse. Give the source as teacher (teacher=, in the shell "
            "--source), or more images",
            BrickyardWarning,
            stacklevel=5,
        )


def _divided(model: Component | Assembly, images: Any, validation: Any, seed: int) -> tuple[Examples, Examples | None]:
    """Split into training images and images that select the best epoch."""
    examples = Examples.of(model, images, "the images to train on", strict=True)
    held_out: Examples | None = None
    if not isinstance(validation, int | float):
        held_out = Examples.of(model, validation, "the validation images", strict=True)
    elif not 0 <= validation <= 0.5:
        raise OptionError("option-range", f"validation={validation!r} must be in [0, 0.5], or labelled images")
    elif validation > 0:
        generator = torch.Generator().manual_seed(seed)
        out = torch.zeros(len(examples), dtype=torch.bool)
        cases = examples.outputs.cases(examples.targets)
        for k in cases.classes[cases.wanted].unique().tolist():
            own = cases.images[cases.wanted & (cases.classes == k)]
            out[own[torch.randperm(len(own), generator=generator)[: round(validation * len(own))]]] = True
        if out.any():
            examples, held_out = examples.some(~out), examples.some(out)
    if len(examples) < 2:
        raise DataError("data-too-few", f"training needs at least two images, and {len(examples)} remain; give more")
    return examples, held_out


# -- the model ---------------------------------------------------------------------------------------------


def _free(model: Component | Assembly) -> list[bool]:
    """Make all parameters of the model's networks trainable, and return which were before."""
    before = [parameter.requires_grad for parameter in model.parameters()]
    networks = model.networks() if isinstance(model, Assembly) else [model.network]
    model.requires_grad_(False)
    for network in networks:
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    return before


def _answer(model: Component | Assembly, raw: Sequence[Tensor], features: bool = False) -> Lesson:
    """Run raw images through a model in a single batch, so that batch norms see them together."""
    if isinstance(model, Assembly):
        inputs = [_one_batch(x) for x in zip(*(model.inputs(images) for images in raw), strict=True)]
        return run_images(lambda _: model.answers(inputs), inputs[0], "the images"), None
    like = weights_like(model)
    x = _one_batch(tuple(model.preprocess(images).to(like.device, like.dtype) for images in raw))
    if not features:
        return run_images(model, x, "the images"), None
    found, _, logits = model.observe(x)
    return model.head(logits), found


def _one_batch(images: tuple[Tensor, ...]) -> Tensor:
    shapes = {tuple(x.shape[1:]) for x in images}
    if len(shapes) > 1:
        why = f"images must have one shape per part after preprocessing, got {', '.join(map(str, sorted(shapes)))}"
        advice = "give images of one shape, or parts whose preprocessing has a size and channels"
        raise DataError("data-not-batchable", f"{why}; {advice}")
    return torch.cat(images)


def _score(model: Component | Assembly, examples: Examples, batch_size: int) -> tuple[float, float]:
    """Means over classes: accuracy, and the log-probability of the correct answer."""
    found: list[Tensor] = []
    targets: list[Tensor] = []
    with torch.inference_mode():
        for chosen in torch.arange(len(examples)).split(batch_size):
            images, answers = zip(*examples.raw(chosen), strict=True)
            found.append(_answer(model, images)[0].double().cpu())
            targets += answers
    outputs, logits = examples.outputs, torch.cat(found)
    cases = outputs.cases(torch.cat(targets))
    likely = outputs.log_probabilities(logits)[cases.images, cases.classes]
    likely = torch.where(cases.wanted, likely, torch.log1p(-likely.exp()))
    values = torch.stack([outputs.right(logits, cases), likely])
    means = [values[:, cases.classes == k].mean(1) for k in cases.classes.unique()]
    first, second = torch.stack(means).mean(0).tolist()
    return first, second


def _key(model: nn.Module, chosen: Sequence[Examples | None], teacher: nn.Module | None, how: Distillation) -> str:
    """What determines the result, apart from the training options: the models, and every image and label, in order."""
    known = [_told(model), *("" if examples is None else _digest(examples) for examples in chosen)]
    return " ".join([*known, "" if teacher is None else f"{_told(teacher)} {how!r}"])


def _told(model: nn.Module) -> str:
    """A model's weights, and what its manifest says: preprocessing and classes too."""
    manifest = model.manifest.model_dump_json() if isinstance(model, Component | Assembly) else ""
    return f"{fingerprint(model)} {hashlib.sha256(manifest.encode()).hexdigest()}"


def _digest(examples: Examples) -> str:
    """A hash of the selection, the targets, and all images."""
    read = [
        pool.digests(own) for pool, own in zip(examples.pools, examples.chosen, strict=True) if pool is not None and own
    ]
    found = hashlib.sha256()
    for value in (examples.owners, examples.places, examples.targets, *read):
        found.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _finished(
    model: ModelT, record: TuneRecord, examples: Examples, held_out: Examples | None, before: Sequence[bool]
) -> ModelT:
    """Finish the model: record the training, restore what was trainable, and measure its statistics again."""
    for parameter, was in zip(model.parameters(), before, strict=True):
        parameter.requires_grad_(was)
        parameter.grad = None
    seen = [examples] if held_out is None else [examples, held_out]
    shown = UsedRecord.of(mark for some in seen for mark in as_bytes(some.marks(model.manifest.parts)))
    own = model.manifest.uses if isinstance(model, Component) else (model.manifest.used,)
    model = model.with_manifest(tuned=record, used=shown.joined(*own))
    if isinstance(model, Assembly):
        return model.with_manifest(parts=tuple(map(_without_strangers, model.manifest.parts)))
    if record.best:  # it was that of other weights, and on images that may have been trained on since
        model = model.with_manifest(agreement=None)
    (pool,) = examples.pools
    assert pool is not None
    labels = pool.all_labels()[examples.places]
    by_class = {k: examples.places[model.outputs.members(labels, k)].tolist() for k in model.manifest.task}
    return observed(model, Images(pool, model.manifest.preprocessing), by_class)


def _without_strangers(part: ComponentManifest) -> ComponentManifest:
    """A part's manifest where its network has changed, so that it is no longer known which images are strangers."""
    if part.statistics is None:
        return part
    return part.model_copy(update={"statistics": part.statistics.model_copy(update={"strangers": None})})
