"""What a model answers to labelled images, as pages show it: counts by class, and some of the pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.assembly._cascade import course_of
from brickyard.assembly._labelled import Shared, shared_signals
from brickyard.base._sides import is_picture
from brickyard.component._component import Component
from brickyard.component._predictor import run_images
from brickyard.evaluation._sieve import Sieve
from brickyard.inputs._batches import Images
from brickyard.network._network import kind

MOST_RIGHT, MOST_WRONG = 6, 12  # pictures of one file
SIDE = 80  # pixels of a picture, at most


@dataclass(frozen=True)
class Example:
    """An image with its class, the answer, the probability of that, and a small picture as a data URL, or ""."""

    wanted: str
    answer: str
    share: float
    picture: str = ""


@dataclass(frozen=True)
class Part:
    """How a part of an assembly answers the images of its own classes, among these: accuracy in percent."""

    accuracy: float
    images: int


@dataclass(frozen=True)
class Answers:
    """A model's answers.

    Attributes:
        classes: The names of its classes.
        counts: The number of images by class (rows) and answer (columns).
        right: Some images that are answered correctly, spread evenly.
        wrong: Those that are not, in the order of how sure the answer is; the surest ones only.
        parts: For each part of an assembly that has images of its classes, its own answers by place.
    """

    classes: tuple[str, ...]
    counts: Tensor
    right: tuple[Example, ...]
    wrong: tuple[Example, ...]
    parts: dict[int, Part]

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.counts.sum())

    @property
    def mistakes(self) -> int:
        """The number of those that are not answered correctly."""
        return self.images - int(self.counts.diagonal().sum())

    @property
    def pictured(self) -> bool:
        """Whether there are pictures to be shown."""
        return any(one.picture for one in (*self.right, *self.wrong))


Picture = Callable[[int], Tensor]
"""The number of a scored image -> that image as it was given."""


def answers_of(item: Component | Assembly, data: Any, most_bytes: int, sieve: Sieve) -> Answers | None:
    """Ask a model about images that the sieve lets through, and keep what a page shows, with so many bytes of pictures.

    None where there is only one class, or where classes do not exclude each other.
    """
    classes = item.classes
    if len(classes) < 2 or not item.outputs.exclusive:
        return None
    if isinstance(item, Assembly):
        target, logits, picture, parts = _of_assembly(item, data, sieve)
    else:
        target, logits, picture, parts = _of_component(item, data, sieve)
    share, answer = item.outputs.probabilities(logits)[:, : len(classes)].max(1)
    counts = torch.bincount(target * len(classes) + answer, minlength=len(classes) ** 2)
    right, wrong = ((target == answer).nonzero().flatten(), (target != answer).nonzero().flatten())
    spread = torch.linspace(0, max(0, len(right) - 1), min(MOST_RIGHT, len(right))).long()
    surest = share[wrong].argsort(descending=True, stable=True)[:MOST_WRONG]
    chosen = [right[spread].tolist(), wrong[surest].tolist()]
    made = [
        [Example(classes[int(target[k])], classes[int(answer[k])], float(share[k])) for k in places]
        for places in chosen
    ]
    if is_picture(item.input_shape):
        _fill(made, chosen, picture, most_bytes)
    return Answers(classes, counts.reshape(len(classes), len(classes)), tuple(made[0]), tuple(made[1]), parts)


Asked = tuple[Tensor, Tensor, Picture, dict[int, Part]]


def _of_component(item: Component, data: Any, sieve: Sieve) -> Asked:
    images = Images(data, item.manifest.preprocessing, "the images to score", item.outputs.label_dims)
    places = torch.tensor(item.manifest.places[0])
    labels = images.all_labels()
    chosen, target, _ = item.outputs.cases(item.outputs.targets(labels, places, len(item.classes)))
    fresh = sieve.fresh(images, chosen, labels[chosen])
    chosen, target = chosen[fresh], target[fresh]
    like, order = kind(item), chosen.tolist()
    with torch.inference_mode():
        found = [run_images(item, x, images.what).double().cpu() for x, _ in images.batches(order, 128, like)]
    return target.cpu(), torch.cat(found), lambda k: next(images.raw([order[k]], 1))[0][0], {}


def _of_assembly(item: Assembly, data: Any, sieve: Sieve) -> Asked:
    seen = shared_signals(item, data, features=item.gate is not None, batch_size=128, sieve=sieve.examples)
    logits = item.scaled(*seen.signals)
    if item.stages:
        logits = course_of(item, seen, logits).logits

    def picture(k: int) -> Tensor:
        pool = seen.pools[int(seen.owners[k])]
        assert pool is not None  # as it has this image
        return next(pool.raw([int(seen.places[k])], 1))[0][0]

    return seen.targets.cpu(), logits.cpu(), picture, _of_parts(item, seen)


def _of_parts(item: Assembly, seen: Shared) -> dict[int, Part]:
    """What each part answers to the images of its own classes, with only these competing."""
    found: dict[int, Part] = {}
    columns = seen.signals[0].split([len(one) for one in item.manifest.columns], 1)
    for index, (logits, task) in enumerate(zip(columns, item.manifest.tasks, strict=True)):
        place = torch.full((len(item.classes),), -1)
        place[torch.tensor(item.manifest.places[index])[torch.tensor(task)]] = torch.arange(len(task))
        wanted = torch.where(seen.owners == index, place[seen.targets], -1)
        mine = wanted >= 0
        if mine.any():
            right = logits[mine, : len(task)].argmax(1) == wanted[mine]
            found[index] = Part(100 * float(right.double().mean()), int(mine.sum()))
    return found


# -- pictures ------------------------------------------------------------------------------------------------


def _fill(made: Sequence[list[Example]], chosen: Sequence[Sequence[int]], picture: Picture, most_bytes: int) -> None:
    """Add pictures, one of each list in turn; what has none, or is beyond the bytes, is left out."""
    left = most_bytes
    for place in range(max(map(len, chosen), default=0)):
        for row, numbers in zip(made, chosen, strict=True):
            if place >= len(numbers):
                continue
            url = thumbnail(picture(numbers[place]))
            left -= len(url)
            if url and left >= 0:
                row[place] = replace(row[place], picture=url)
    for row in made:
        row[:] = [one for one in row if one.picture]


def thumbnail(image: Tensor) -> str:
    """A small PNG of an image (channels, height, width) as a data URL; "" if its values are not those of a picture."""
    from PIL import Image

    whole = image.dtype == torch.uint8
    if len(image) not in (1, 3) or not (whole or (bool((image >= 0).all()) and bool((image <= 1).all()))):
        return ""
    values = (image if whole else (image * 255).round().to(torch.uint8)).cpu()
    array = values.permute(1, 2, 0).contiguous().numpy()
    shown = Image.fromarray(array[:, :, 0] if len(image) == 1 else array)
    shown.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    shown.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
