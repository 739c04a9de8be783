"""Create sources: train small networks on image data, reproducibly from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from brickyard.base._checks import seed_of, whole
from brickyard.base._declare import Opt, declared, verb
from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import first_line
from brickyard.base._options import Distillation, FinetuneOptions, TrainingOptions
from brickyard.base._preprocessing import Order
from brickyard.base._records import Preprocessing
from brickyard.component._predictor import Predictor
from brickyard.inputs._augment import shifted_and_mirrored
from brickyard.inputs._datasets import ImageData
from brickyard.inputs._preprocessing import check_units, preprocess
from brickyard.network._place import device_named
from brickyard.network._untouched import guarded, guarded_but
from brickyard.outputs._kinds import ONE
from brickyard.sources import _zoo as zoo
from brickyard.sources._libraries import network_options, seeded
from brickyard.sources._loading import Source, save_source
from brickyard.training._distillation import lesson_loss, named_teacher
from brickyard.training._loop import fit

_TRAINING = declared(TrainingOptions)


class ScratchOptions(TypedDict, total=False):
    """Options of `train` and `train_source`: SGD with momentum, warm-up, and cosine decay to zero."""

    epochs: Annotated[int, _TRAINING["epochs"]]
    lr: Annotated[float, replace(_TRAINING["lr"], default=0.1, unset="")]
    batch_size: Annotated[int, _TRAINING["batch_size"]]
    weight_decay: Annotated[float, _TRAINING["weight_decay"]]
    augment: Annotated[bool, _TRAINING["augment"]]
    seed: Annotated[int, _TRAINING["seed"]]
    teacher: Annotated[
        Predictor | None,
        Opt(default=None, help="Distil from a component or an assembly that knows the classes by name.", unset="none"),
    ]
    distillation: Annotated[Distillation | None, declared(FinetuneOptions)["distillation"]]


def build_seeded(name: str, classes: int, width: float = 1.0, seed: int = 0, **options: object) -> nn.Module:
    """A network of the zoo with initial weights drawn from a seed; the global random state stays as it is."""
    with seeded(seed_of(seed)):
        return zoo.build(name, classes, width, **options)


@guarded_but("model")
@verb(ScratchOptions)
def train(
    model: nn.Module, data: ImageData, *, preprocessing: Preprocessing, **options: Unpack[ScratchOptions]
) -> float:
    """Train a classifier in place: SGD with momentum, warm-up, and cosine decay to zero.

    Args:
        model: Takes preprocessed images and returns (batch, classes).
        data: Training images; labels are the model's outputs.
        preprocessing: Applied to the images before they enter the model.

    Returns:
        Accuracy on the training images, in [0, 1]. The model is left in evaluation mode.

    Raises:
        OptionError: An option cannot be used.
        DataError: There are no images.
    """
    training = TrainingOptions(**{name: value for name, value in options.items() if name in _TRAINING})  # type: ignore[arg-type]
    if len(data) < 2:
        raise DataError("data-too-few", f"{data.name} has {len(data)} images; training needs two or more")
    like = next(model.parameters())
    how, teacher, augment = options["distillation"] or Distillation(), options["teacher"], training.augment
    taught = None if teacher is None else named_teacher(teacher, data.classes)
    last = max(data.labels.tolist())

    def loss(chosen: list[int], generator: torch.Generator) -> Tensor:
        (raw,), labels = data.batches(len(chosen), chosen), data.labels[chosen].to(like.device)
        if taught is not None and augment:  # both sides see the same images
            raw = shifted_and_mirrored(raw, generator)
        x = preprocess(raw, preprocessing).to(like.device, like.dtype)
        logits = model(shifted_and_mirrored(x, generator) if augment and taught is None else x)
        if logits.ndim != 2 or logits.shape[1] <= last:
            why = f"{data.name} has labels to {last}, and outputs are {tuple(logits.shape)}"
            raise DataError("data-label-out-of-range", f"{why}; give one output a class")
        if taught is None:
            return ONE.loss(logits, labels)
        return lesson_loss((logits, None), taught(raw), labels, how)

    fit(model, loss, len(data), training)
    return accuracy(model, data, preprocessing)


@guarded
def accuracy(model: nn.Module, data: ImageData, preprocessing: Preprocessing, batch_size: int = 256) -> float:
    """Compute a classifier's accuracy, in [0, 1]."""
    batch_size, right, like = whole("batch_size", batch_size), 0, next(model.parameters())
    with torch.inference_mode():
        for images, labels in zip(data.batches(batch_size), data.labels.split(batch_size), strict=True):
            x = preprocess(images, preprocessing).to(like.device, like.dtype)
            right += int(ONE.says(model(x)).cpu().gather(1, labels.unsqueeze(1)).sum())
    return right / len(data) if len(data) else 0.0


@dataclass(frozen=True)
class Trained:
    """A newly trained source, with the contents of its file.

    Attributes:
        source: The source.
        arch: Name of its network in the zoo.
        options: Width and other options of the network.
        scores: `train_accuracy`, and `test_accuracy` if held-out images were given; in [0, 1].
    """

    source: Source
    arch: str
    options: dict[str, Any]
    scores: dict[str, float]

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the source to one file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        return save_source(
            path, self.source, arch=self.arch, options=self.options, scores=self.scores, overwrite=overwrite
        )


def _mean_and_std(images: Tensor, order: Order) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel, in a network's order."""
    values = preprocess(images, Preprocessing()).double().transpose(0, 1).flatten(1)
    values = values.flip(0) if order == "bgr" else values
    return tuple(values.mean(1).tolist()), tuple((values.std(1) + 1e-6).tolist())


@guarded_but("model")
@verb(ScratchOptions)
def train_source(
    network: str,
    images: ImageData,
    *,
    preprocessing: Preprocessing | None = None,
    held_out: ImageData | None = None,
    device: str | torch.device = "cpu",
    **options: Unpack[ScratchOptions],
) -> Trained:
    """Build a zoo network and train it on images.

    Args:
        network: A zoo network: `NAME` or `NAME?width=0.5`.
        images: Training images; their class names become the source's.
        preprocessing: Values left unset default to 32x32, and to the images' mean and standard deviation.
        held_out: Images of the same classes, for the test accuracy.
        device: Training device, such as "cuda"; the source is returned on the CPU.

    The seed also draws the initial weights.

    Raises:
        OptionError: The network is unknown or does not take images of this size, or an option cannot be used.
        DataError: There are too few images.
    """
    given, place = preprocessing or Preprocessing(), device_named(device)
    check_units(given, images.shape)
    name, shape = network_options(network.removeprefix("zoo:"))
    if "classes" in shape:
        why = f"{network} was asked for with classes={shape['classes']}, and the images have {len(images.classes)}"
        advice = "these make the outputs: leave it out, or choose classes of the data"
        raise OptionError("option-conflict", f"{why}; {advice}")
    channels, side = shape.setdefault("channels", images.shape[0]), given.size or (32, 32)
    if "size" in zoo.entry(name).defaults:
        shape.setdefault("size", side[0])
    mean, std = (given.mean, given.std) if given.mean is not None else _mean_and_std(images.images, given.order)
    how = Preprocessing(
        **given.model_dump(exclude={"size", "channels", "mean", "std"}),
        size=side,
        channels=1 if channels == 1 else 3,
        mean=mean,
        std=std,
    )
    width = shape.pop("width", 1.0)
    model = build_seeded(name, len(images.classes), width, options["seed"], **shape)
    try:
        model.eval()(torch.zeros(2, channels, *side))
    except RuntimeError as error:
        why = f"{name} does not accept images of {side[0]}x{side[1]}: {first_line(error)}"
        raise OptionError("option-source-size", f"{why}; give another --size") from None
    scores = {"train_accuracy": train(model.to(place), images, preprocessing=how, **options)}
    if held_out is not None:
        scores["test_accuracy"] = accuracy(model, held_out, how)
    source = Source(model.cpu(), name, images.classes, how, (channels, side[0], side[1]), scores)
    return Trained(source, name, {"width": width, **shape}, scores)
