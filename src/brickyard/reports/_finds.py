"""What a detector finds in pictures with boxes, as pages show it: some pictures, each with several sets of boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly
from brickyard.component._component import Component
from brickyard.evaluation._detectors import find_with_sources, images_to_score, of_task, places_of
from brickyard.evaluation._sieve import Sieve
from brickyard.inputs._box_data import BoxData
from brickyard.inputs._box_table import Truth
from brickyard.outputs._detections import SCORE, Found, matched
from brickyard.reports._drawn_boxes import LEAST_SIDE, as_picture, draw_boxes, said_of

MOST_PICTURES = 6  # of one file
MOST_SHOWN = 50  # boxes of a picture


@dataclass(frozen=True)
class Version:
    """A picture with one set of boxes: whose they are, how many, and the picture as a data URL."""

    whose: str
    boxes: int
    picture: str


@dataclass(frozen=True)
class Example:
    """A picture of the data.

    Attributes:
        objects: How many objects of the model's classes it shows; groups do not count.
        hits: How many of these the model finds, with an overlap of at least one half.
        more: How many boxes the model finds where the data have none.
        versions: The picture with the model's boxes, its sources' if they are known, and the data's.
    """

    objects: int
    hits: int
    more: int
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Finds:
    """Examples of what a detector finds, of so many images, with boxes of at least a score."""

    images: int
    score: float
    examples: tuple[Example, ...]


def finds_of(
    item: Component | Assembly, data: BoxData, sources: Sequence[nn.Module | None], most_bytes: int, sieve: Sieve
) -> Finds:
    """Ask a detector about some pictures that the sieve lets through, and draw them in at most so many bytes.

    The pictures are spread evenly among those that show an object of the model's classes.
    """
    places = places_of(item, data)
    scored = images_to_score(item, data, places, sieve)
    shows = [k for k in scored if bool((places[data.truth(k).labels] >= 0).any())]
    spread = torch.linspace(0, max(0, len(shows) - 1), min(MOST_PICTURES, len(shows))).round().long().tolist()
    chosen = [shows[k] for k in spread]
    theirs: list[Found | None] = [None] * len(chosen)
    if all(source is not None for source in sources):
        theirs = [_sure(one) for one in find_with_sources(item, sources, data, chosen, 8)]
    examples, left = [], most_bytes
    for index, other in zip(chosen, theirs, strict=True):
        example = _example(item, data.picture(index), of_task(data.truth(index), places), other)
        left -= sum(len(one.picture) for one in example.versions)
        if left < 0:
            break
        examples.append(example)
    return Finds(len(scored), SCORE, tuple(examples))


def _sure(found: Found) -> Found:
    """The boxes that are told of unless somebody asks for others."""
    return found.of(found.scores >= SCORE)


def _example(item: Component | Assembly, picture: Tensor, truth: Truth, theirs: Found | None) -> Example:
    found = item.detect(picture)[0].on_cpu()
    known = Found(truth.boxes, torch.ones(len(truth.labels)), truth.labels)
    own = known.of(~truth.crowd)
    source = "its source" if isinstance(item, Component) else "its parts' sources"
    drawn = [("found", found, True), *([] if theirs is None else [(source, theirs, True)]), ("the data", known, False)]
    versions = [Version(whose, len(one.labels), _drawn(picture, one, item.classes, sure)) for whose, one, sure in drawn]
    return Example(len(own.labels), matched(found, own), len(found.labels) - matched(found, known), tuple(versions))


def _drawn(picture: Tensor, found: Found, names: Sequence[str], sure: bool) -> str:
    """A small picture with boxes, as a data URL."""
    image = as_picture(picture)
    share = min(1.0, LEAST_SIDE / max(image.size))
    small = image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), _SMOOTH)
    found = found.of(slice(MOST_SHOWN))
    labels = found.labels.tolist()
    texts: list[Any] = [
        said_of(names[k], s if sure else None) for k, s in zip(labels, found.scores.tolist(), strict=True)
    ]
    scale = torch.tensor([small.width / image.width, small.height / image.height] * 2, dtype=torch.float64)
    file = io.BytesIO()
    draw_boxes(small, found.boxes.double() * scale, texts, labels).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


_SMOOTH = Image.Resampling.BICUBIC
