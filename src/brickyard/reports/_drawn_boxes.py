"""Boxes drawn on a picture, with what is said of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import shown, tidy
from brickyard.base._notebook import COLOURS

LEAST_SIDE = 360  # pixels: a picture whose longer side is shorter is enlarged, since no text could be read on it
MOST_BOXES = 2_000  # that are drawn, the first ones
_SHADES = (0.0, -0.45, 0.5)  # of the colours: as they are, darker, lighter
_SHORTEST = 4  # letters of a label

Colour = tuple[int, int, int]
Place = tuple[float, float, float, float]


def class_colour(k: int) -> Colour:
    """The colour of a class: those of Okabe and Ito, then darker and lighter ones, then from the start.

    Example:
        >>> from brickyard.reports._drawn_boxes import class_colour
        >>> class_colour(0), class_colour(0) == class_colour(18)
        ((0, 114, 178), True)
    """
    text, shade = COLOURS[k % len(COLOURS)], _SHADES[k // len(COLOURS) % len(_SHADES)]
    red, green, blue = (int(text[at : at + 2], 16) for at in (1, 3, 5))
    to, share = (255, shade) if shade > 0 else (0, -shade)
    return _mixed(red, to, share), _mixed(green, to, share), _mixed(blue, to, share)


def _mixed(value: int, to: int, share: float) -> int:
    return round(value + (to - value) * share)


def as_picture(image: Tensor) -> Image.Image:
    """A picture of PIL's from (channels, height, width), uint8 or in [0, 1]."""
    if image.dtype != torch.uint8:
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(image[:3].expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy())


def said_of(name: str, score: float | None) -> str:
    """What is said of a box: its class and, if there is one, its score."""
    return shown(name if score is None else f"{name} {score:.0%}", keep="")


def draw_boxes(picture: Image.Image, boxes: Any, texts: Sequence[str], labels: Sequence[int]) -> Image.Image:
    """Draw boxes and what is said of each on a copy of a picture.

    Lines and letters grow with the picture. One that is too small for letters is enlarged by a whole factor. Texts stay
    within the picture, and apart where there is room. Boxes that are not finite are left out.

    Args:
        picture: The picture.
        boxes: (boxes, 4): left, top, right and bottom in its pixels, the most important ones first.
        texts: What is said of each, such as "dog 87 %"; "" for nothing.
        labels: The class of each, which says its colour.

    Raises:
        DataError: The numbers of boxes, texts and labels differ.

    Example:
        >>> from PIL import Image
        >>> from brickyard.reports import draw_boxes
        >>> draw_boxes(Image.new("RGB", (100, 50)), [[10, 10, 60, 40]], ["dog"], [1]).size
        (400, 200)
    """
    values = np.asarray(boxes.detach().cpu() if isinstance(boxes, Tensor) else boxes, float)
    values = values.reshape(-1, 4) if not values.size else values
    if values.ndim != 2 or values.shape[1] != 4 or not len(values) == len(texts) == len(labels):
        why = f"boxes of shape {values.shape}, {len(texts)} texts and {len(labels)} labels"
        raise DataError("data-shape", f"boxes must be (boxes, 4), with a text and a label for each, got {why}")
    factor = max(1, math.ceil(LEAST_SIDE / max(1, *picture.size)))
    width, height = (side * factor for side in picture.size)
    drawn = picture.convert("RGB")
    drawn = drawn.resize((width, height), Image.Resampling.BICUBIC) if factor > 1 else drawn.copy()
    kept = [k for k in range(len(values)) if np.isfinite(values[k]).all()][:MOST_BOXES]
    inner = np.clip(values * factor, 0, np.array([width, height, width, height]) - 1.0)
    size = math.sqrt(width * height)
    line = max(2, round(size / 260))
    pen = ImageDraw.Draw(drawn)
    for k in sorted(kept, key=lambda k: -_area(inner[k])):  # small ones on top
        _frame(pen, inner[k], class_colour(int(labels[k])), line)
    font = ImageFont.load_default(max(12.0, size / 40))
    labelled: list[tuple[int, str, Place]] = []
    for k in kept:
        if texts[k]:
            text = _fitting(font, texts[k], width)
            place = _place(font, text, inner[k], [other for *_, other in labelled], (width, height))
            labelled.append((k, text, place))
    for k, text, place in reversed(labelled):  # the first ones on top
        colour = class_colour(int(labels[k]))
        pen.rectangle(place, fill=colour)
        pen.text((place[0] + _gap(font), place[1] + _gap(font) / 2), text, fill=_ink(colour), font=font)
    return drawn


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _frame(pen: ImageDraw.ImageDraw, box: Any, colour: Colour, line: int) -> None:
    """A frame with a thin edge in the other shade, so that it shows on any ground."""
    left, top, right, bottom = (round(float(value)) for value in box)
    right, bottom = max(left, right), max(top, bottom)
    edge = max(1, line // 3)
    pen.rectangle((left - edge, top - edge, right + edge, bottom + edge), outline=_ink(colour), width=edge)
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour, by the contrast that WCAG defines."""
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (255, 255, 255) if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else (0, 0, 0)


def _gap(font: Any) -> int:
    """Pixels between a text and the edge of its ground."""
    return max(2, round(float(font.size) / 5))


def _fitting(font: Any, text: str, width: int) -> str:
    """The text, with its end cut off if it is wider than the picture."""
    text = tidy(text, 80)
    while len(text) > _SHORTEST and font.getlength(text) + 2 * _gap(font) > width:
        text = tidy(text, len(text) - 1)
    return text


def _place(font: Any, text: str, box: Any, taken: Sequence[Place], sides: tuple[int, int]) -> Place:
    """Where a text stands: at the corner of its box where it shares the least with those that have a place."""
    ascent, descent = font.getmetrics()
    width, height = font.getlength(text) + 2 * _gap(font), float(ascent + descent + _gap(font))
    left, top, right, bottom = (float(value) for value in box)
    corners = [
        (left, top - height),
        (left, top),
        (left, bottom),
        (right - width, top - height),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom - height),
        (right - width, bottom),
    ]
    places = [_within((x, y, x + width, y + height), sides) for x, y in corners]
    return min(places, key=lambda place: (sum(_shared(place, other) for other in taken), places.index(place)))


def _within(place: Place, sides: tuple[int, int]) -> Place:
    """The same place, moved into the picture."""
    left, top, right, bottom = place
    x = max(0.0, min(left, sides[0] - 1 - (right - left)))
    y = max(0.0, min(top, sides[1] - 1 - (bottom - top)))
    return x, y, min(x + right - left, sides[0] - 1), min(y + bottom - top, sides[1] - 1)


def _shared(one: Place, other: Place) -> float:
    """The area that two places share."""
    across, down = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    return max(0.0, across) * max(0.0, down)
