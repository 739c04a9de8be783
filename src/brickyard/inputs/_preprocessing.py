"""From raw images to a network's input: scale, channels, size, order, normalisation; and back for boxes.

Only tensor operations that exporters can trace are used, for any batch size and, if a size is set, any image size.
Resizing is two matrix products, one per side of the image: the weights depend only on the sizes, so no antialiasing
operator is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from brickyard.base._errors import DataError, OptionError
from brickyard.base._records import Preprocessing
from brickyard.base._sides import BATCHED, BATCHES, NAMES, axes_text, is_picture

OVERSHOOT = 0.1  # beyond [0, 1], as bicubic resizing leaves it
PLACES = 1 << 22  # parts of one in the weights of PIL
_EDGE = 2  # pixels beyond a side that a cubic curve of one old pixel reaches
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def preprocess(images: Tensor, how: Preprocessing) -> Tensor:
    """Turn raw images into a network's input.

    Args:
        images: (B, C, H, W), uint8 in 0..255 or floating point in [0, 1]; or signals (B, C, T) or cubes (B, C, D, H, W)
            in any unit, which are scaled and normalised in the same way, and neither resized nor converted to colour.
        how: The preprocessing; the default only scales uint8 images.

    Returns:
        (B, C', H', W'), or (B, C, T) or (B, C, D, H, W); float64 for float64 images, otherwise float32.

    Raises:
        DataError: The images have other dimensions or another type, or have sides or channels that `how` cannot use.

    Example:
        >>> import torch
        >>> from brickyard import Preprocessing
        >>> how = Preprocessing(size=(4, 4), channels=3, mean=(0.5,), std=(0.25,))
        >>> preprocess(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), how)[0, :, 0, 0]
        tensor([2., 2., 2.])
    """
    x = _known(images)
    if x.dim() != 4 and (how.size is not None or how.channels is not None or how.order != "rgb"):
        why = f"only pictures {axes_text(2, 'batch')} have a size, channels and an order to set, got {tuple(x.shape)}"
        raise DataError("data-shape", f"{why}; for {NAMES[x.dim() - 2]}, leave these out of the preprocessing")
    if how.size is not None:
        x = _to_size(x, how)
    if x.dtype == torch.uint8:
        x = x.float() / 255
    if how.channels is not None:
        x = _to_channels(x, how.channels)
    if how.order == "bgr":
        x = _reversed(x)
    if how.mean is not None and how.std is not None:
        x = _normalised(x, how.mean, how.std)
    return x


def check_units(how: Preprocessing, shape: Sequence[int]) -> None:
    """Refuse a mean and a standard deviation of pictures in another unit than [0, 1], such as those of bytes.

    Args:
        how: What was given; that of signals and cubes may be in any unit.
        shape: The shape of one input, without the batch.

    Raises:
        OptionError: A mean is not in [0, 1], or a standard deviation above 1.

    Example:
        >>> from brickyard import Preprocessing
        >>> check_units(Preprocessing(mean=(0.485,), std=(0.229,)), (3, 32, 32))
    """
    if not is_picture(shape) or how.mean is None or how.std is None:
        return
    odd = [f"mean {value:g}" for value in how.mean if not 0 <= value <= 1]
    odd += [f"std {value:g}" for value in how.std if value > 1]
    if not odd:
        return
    bytes_too = all(0 <= value <= 255 for value in (*how.mean, *how.std)) and min(how.std) > 1
    mean, std = (",".join(f"{value / 255:.3g}" for value in values) for values in (how.mean, how.std))
    raise OptionError(
        "option-preprocessing",
        f"pictures are scaled to [0, 1] before they are normalised, so their mean must be in [0, 1] and their std in "
        f"(0, 1], got {odd[0]}; "
        + (f"divide by 255: mean {mean}, std {std}" if bytes_too else "give both in that unit"),
    )


def _known(images: Tensor) -> Tensor:
    """Images as uint8, float32 or float64."""
    if not isinstance(images, Tensor):
        raise DataError("data-type", f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dim() not in BATCHED:
        raise DataError("data-shape", f"the input must be {BATCHES}, got shape {tuple(images.shape)}")
    if images.dtype in (torch.uint8, torch.float64):
        return images
    if not images.is_floating_point():
        raise DataError("data-type", f"images must be uint8 in 0..255 or floating point in [0, 1], got {images.dtype}")
    return images.to(torch.float32)


def check_images(images: Tensor, what: str) -> None:
    """Reject images that are not (B, C, H, W), signals (B, C, T) or cubes (B, C, D, H, W), are empty, or not finite."""
    if images.dim() not in BATCHED or images.numel() == 0:
        raise DataError("data-shape", f"{what}: images of shape {tuple(images.shape)}; give at least one of {BATCHES}")
    if not images.is_floating_point():
        return
    bad = ~torch.isfinite(images).flatten(1).all(1)  # (B,)
    if bool(bad.any()):
        found = f"{int(bad.sum())} of {len(images)} images hold NaN or infinity"
        raise DataError("data-not-finite", f"{what}: {found}, the first at index {int(bad.nonzero()[0])}; repair them")


def _is_raw(images: Tensor) -> bool:
    """Whether images are uint8, or floating point in [0, 1] but for a little overshoot."""
    if not images.is_floating_point() or not images.numel():
        return True
    low, high = images.aminmax()
    return float(low) >= -OVERSHOOT and float(high) <= 1 + OVERSHOOT


def check_raw(images: Tensor, how: Preprocessing, what: str) -> bool:
    """Reject images that preprocessing would misread: normalised ones, floating-point ones up to 255, pictures.

    Signals and cubes in floating point may be in any unit, in which their mean and standard deviation are too.

    Returns:
        Whether they are raw.

    Raises:
        DataError: They are not raw although `how` normalises, or they are raw and how they were prepared is unknown.
    """
    raw = _is_raw(images)
    if how.mean is not None and not raw and images.dim() == 4:
        low, high = (float(value) for value in images.aminmax())
        raise DataError(
            "data-not-raw",
            f"{what} must be uint8, or floating point in [0, 1], because they are normalised here; got values from "
            f"{low:.3g} to {high:.3g}: divide by 255, or give images that are not normalised yet",
        )
    if how.unknown and images.dtype == torch.uint8:
        raise DataError(
            "data-preprocessing-unknown",
            f"{what} are raw pictures, and the source was located on images prepared in a way that is not known "
            "here: give preprocessing= to locate, or call component.with_preprocessing(brickyard.Preprocessing(...))",
        )
    return raw


def _to_channels(x: Tensor, channels: int) -> Tensor:
    """Convert grey (B, 1, H, W) to colour by repetition, or colour (B, 3, H, W) to grey by luma."""
    found = x.shape[1]
    if found not in (1, 3):
        why = f"images with {found} channels cannot be converted to {channels}"
        raise DataError("data-wrong-size", f"{why}; give 1 (grey) or 3 (RGB)")
    if found == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    red, green, blue = LUMA
    return red * x[:, 0:1] + green * x[:, 1:2] + blue * x[:, 2:3]


def _reversed(x: Tensor) -> Tensor:
    """Colour (B, 3, H, W) with blue first."""
    if x.shape[1] != 3:
        why = f"images with {x.shape[1]} channels have no order of red, green and blue to reverse"
        raise DataError("data-wrong-size", f"{why}; give colour, or channels=3 or order='rgb' in the preprocessing")
    return x.flip(1)


def sized(picture: Tensor, how: Preprocessing) -> Tensor:
    """Bring a picture (C, H, W), uint8, to one size for all, from which `preprocess` goes on as from the picture.

    That is `size`, or, where a middle is taken, `size / crop`, of which `preprocess` takes it.
    """
    return picture if how.size is None else _to_size(picture[None], how, margin=True)[0]


def framed(images: Tensor, how: Preprocessing) -> Tensor:
    """Bring pictures (B, C, H, W), uint8, to what `sized` brings each to; those that were brought to it stay."""
    return images if how.size is None or list(images.shape[2:]) == _goals(how) else _to_size(images, how, margin=True)


def _goals(how: Preprocessing) -> list[int]:
    """The sides of which `size` is taken."""
    assert how.size is not None
    share = how.crop if how.crops else 1.0
    return [math.floor(side / share + 1e-6) for side in how.size]


def _to_size(x: Tensor, how: Preprocessing, margin: bool = False) -> Tensor:
    """Letterbox or pad (B, C, H, W) where that is asked for (and they are smaller), else resize: (B, C, *size)."""
    assert how.size is not None
    if how.fit == "letterbox":
        return _letterboxed(x, how.size, how)
    if how.fit != "pad":
        return _resized(x, how, margin)
    if _is_open(x):
        return _from_any_size(x, how.size, how)
    down, right = how.size[0] - x.shape[2], how.size[1] - x.shape[3]
    if down < 0 or right < 0:
        return _resized(x, how)
    above, left = (down // 2, right // 2) if how.place == "centre" else (0, 0)
    return F.pad(x, (left, right - left, above, down - above), value=_filling(x, how))


def _is_open(x: Tensor) -> bool:
    """Whether an exporter leaves the sides of images open."""
    return any(isinstance(side, torch.SymInt) for side in x.shape[2:])


def _resized(x: Tensor, how: Preprocessing, margin: bool = False) -> Tensor:
    """Resize (B, C, H, W) until it just covers `size / crop`, or to it, then take the middle: (B, C, *size).

    The sides are those of torchvision's Resize and CenterCrop: the longer one is cut to whole pixels, and the first
    pixel of the middle is rounded. One matrix per side does both, also where an exporter leaves the sides open. With
    `margin`, all of `size / crop` is taken, around the same middle.
    """
    assert how.size is not None
    goals = _goals(how)
    if not _is_open(x) and list(x.shape[2:]) == goals == list(how.size):
        return x
    sides = _number(x.shape[2], x), _number(x.shape[3], x)
    found = []
    for before, after, goal, (cover, start) in zip(x.shape[2:], how.size, goals, _taken(sides, how), strict=True):
        count = after
        if margin:
            start, count = start - round((goal - after) / 2), goal
        found.append(_resampling(before, cover, x, how, start, count))
    return _multiplied(x, found[0], found[1], how)


def _taken(sides: tuple[Tensor, Tensor], how: Preprocessing) -> list[tuple[Tensor, Tensor]]:
    """For height and width: how many pixels the side is scaled to, and which of them is the first that is taken.

    Where something is left around the picture, that first one lies before it: it is negative.
    """
    assert how.size is not None
    goals = _goals(how)
    found = []
    if how.fit == "letterbox":
        factor = torch.minimum(goals[0] / sides[0], goals[1] / sides[1])
        scaled = [(side * factor + 1e-6).floor().clamp(min=1) for side in sides]
        return [(side, _before(side, goal, how)) for side, goal in zip(scaled, goals, strict=True)]
    factor = torch.maximum(goals[0] / sides[0], goals[1] / sides[1])
    for side, after, goal in zip(sides, how.size, goals, strict=True):
        cover = torch.clamp((side * factor + 1e-6).floor(), min=goal) if how.fit == "crop" else factor.new_tensor(goal)
        found.append((cover, ((cover - after) / 2).round()))
    if how.fit == "pad":
        fits = (sides[0] <= goals[0]) & (sides[1] <= goals[1])
        padded = [(side, _before(side, goal, how)) for side, goal in zip(sides, goals, strict=True)]
        found = [
            (torch.where(fits, own[0], other[0]), torch.where(fits, own[1], other[1]))
            for own, other in zip(padded, found, strict=True)
        ]
    return found


def _before(side: Tensor, goal: int, how: Preprocessing) -> Tensor:
    """The pixels before a side that lies in a longer one, as a number that is not positive."""
    return -((goal - side) / 2).floor() if how.place == "centre" else torch.zeros_like(side)


def _letterboxed(x: Tensor, size: tuple[int, int], how: Preprocessing) -> Tensor:
    """Scale (B, C, H, W) by one factor until it just fits, with the filling around it: (B, C, *size).

    One matrix per side scales and places, also where an exporter leaves the sides open.
    """
    if not _is_open(x) and tuple(x.shape[2:]) == size:
        return x
    found, inside = [], []
    for before, goal, (cover, start) in zip(
        x.shape[2:], size, _taken((_number(x.shape[2], x), _number(x.shape[3], x)), how), strict=True
    ):
        place = torch.arange(goal, dtype=torch.float64, device=x.device) + start
        inside.append((place >= 0) & (place < cover))
        found.append(_weights(before, cover, x, how, torch.minimum(place.clamp(min=0), cover - 1)[:, None]))
    shown = _multiplied(x, found[0], found[1], how)
    filling = torch.scalar_tensor(_filling(x, how), dtype=shown.dtype, device=x.device)
    return torch.where(inside[0][:, None] & inside[1], shown, filling)


def _filling(like: Tensor, how: Preprocessing) -> float:
    """The value around images: a whole one among bytes."""
    return math.floor(255 * how.fill + 0.5) if like.dtype == torch.uint8 else how.fill


def _multiplied(x: Tensor, down: Tensor, across: Tensor, how: Preprocessing) -> Tensor:
    """Apply a matrix to either side of (B, C, H, W).

    Bytes stay bytes: as in PIL, weights have 22 binary places, and numbers are rounded behind each of the two sides,
    the width first. All of that is exact in float64.
    """
    if x.dtype != torch.uint8:
        return down @ (x @ across.T)
    x = x.double()
    if not how.antialias:  # which PIL does not know
        return _bytes(down @ (x @ across.T)).to(torch.uint8)
    down, across = ((weights * PLACES).round() / PLACES for weights in (down, across))
    return _bytes(down @ _bytes(x @ across.T)).to(torch.uint8)


def _bytes(x: Tensor) -> Tensor:
    """Round to bytes, halves up."""
    return (x + 0.5).floor().clamp(0, 255)


def _from_any_size(x: Tensor, size: tuple[int, int], how: Preprocessing) -> Tensor:
    """Pad or resize images whose sides are known only when the exported network runs.

    No branch may depend on them: padding is a matrix product too, and the sizes select between the matrices.
    """
    height, width = x.shape[2], x.shape[3]
    across, down = (_resampling(*sides, x, how) for sides in ((width, size[1]), (height, size[0])))
    fits = (_number(height, x) <= size[0]) & (_number(width, x) <= size[1])
    padding = _padding(width, size[1], across, how), _padding(height, size[0], down, how)
    across, down = torch.where(fits, padding[0], across), torch.where(fits, padding[1], down)
    shown = _multiplied(x, down, across, how)
    if not how.fill:
        return shown
    filling = torch.scalar_tensor(_filling(x, how), dtype=shown.dtype, device=x.device)
    inside = (padding[1].sum(1) > 0)[:, None] & (padding[0].sum(1) > 0)
    return torch.where(inside | ~fits, shown, filling)


def _number(side: int, like: Tensor) -> Tensor:
    """A side of the image as a tensor, ()."""
    return torch.scalar_tensor(side, dtype=torch.float64, device=like.device)


def _resampling(
    before: int,
    after: int | Tensor,
    like: Tensor,
    how: Preprocessing,
    start: Tensor | float = 0.0,
    count: int | None = None,
) -> Tensor:
    """The matrix (count, before) that resamples one side to `after` pixels and takes `count` of them from `start` on.

    Around each new pixel lies a triangle whose half-width is one old or one new pixel, whichever is larger, or a cubic
    curve of twice that half-width (Keys, 1981, with a = -0.5); rows sum to 1. Without antialiasing the half-width is
    one old pixel, the curve has a = -0.75, and the image goes on beyond its sides as at them: torch's `interpolate`.
    """
    rows: Any = after if count is None else count
    new = torch.arange(rows, dtype=torch.float64, device=like.device)[:, None] + start
    return _weights(before, after, like, how, new)


def _weights(before: int, after: int | Tensor, like: Tensor, how: Preprocessing, new: Tensor) -> Tensor:
    """The rows of that matrix for the pixels `new`, (rows, 1)."""
    scale = _number(before, like) / after
    reach = scale.clamp(min=1.0) if how.antialias else torch.ones_like(scale)
    edge = 0 if how.antialias else _EDGE
    old = torch.arange(before + 2 * edge, dtype=torch.float64, device=like.device)[None, :] + 0.5 - edge
    new = (new + 0.5) * scale
    far = (old - new).abs() / reach
    weight = (
        (1 - far).clamp(min=0) if how.interpolation == "bilinear" else _cubic(far, -0.5 if how.antialias else -0.75)
    )
    if edge:
        place = (old[0] - 0.5).clamp(0, before - 1).long()
        weight = weight.new_zeros(len(new), before).index_add(1, place, weight)
    weight = weight / weight.sum(1, keepdim=True)
    return weight if like.dtype == torch.uint8 else weight.to(like.dtype)


def _cubic(far: Tensor, a: float) -> Tensor:
    near = ((a + 2) * far - (a + 3)) * far * far + 1
    wide = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return torch.where(far <= 1, near, torch.where(far < 2, wide, 0.0))


def _padding(before: int, after: int, like: Tensor, how: Preprocessing) -> Tensor:
    """The matrix (after, before) that places one side in a longer one."""
    start = -_before(_number(before, like), after, how)
    old = torch.arange(before, dtype=torch.float64, device=like.device)[None, :]
    new = torch.arange(after, dtype=torch.float64, device=like.device)[:, None]
    return (old + start == new).to(like.dtype)


def _normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract the mean and divide by the standard deviation per channel; a single number serves all channels."""
    if len(mean) not in (1, x.shape[1]):
        why = f"images with {x.shape[1]} channels, but a mean and std for {len(mean)}"
        advice = f", or set channels={len(mean)}" if x.dim() == 4 else ""
        raise DataError("data-wrong-size", f"{why}; give as many numbers as channels{advice}")
    ones = [1] * (x.dim() - 2)
    shift, scale = (torch.tensor(v, dtype=x.dtype, device=x.device).reshape(1, -1, *ones) for v in (mean, std))
    return (x - shift) / scale


# -- boxes -------------------------------------------------------------------------------------------------


def to_picture(boxes: Tensor, sides: tuple[int, int], how: Preprocessing) -> Tensor:
    """Map boxes from a network's input to the picture that it was made of.

    Pixels have an extent: the left side of the first pixel is 0, the right side of the last one is the picture's width.
    Boxes are not cut off at the picture's sides. Scaled sides are whole pixels, so the two sides of a letterboxed
    picture may have slightly different factors; both are exact here.

    Args:
        boxes: (..., 4), floating point: left, top, right, bottom in pixels of the network's input.
        sides: Height and width of the picture.
        how: The preprocessing between them.

    Returns:
        (..., 4), of the type of `boxes`: the same in pixels of the picture.

    Raises:
        DataError: The boxes have another shape or type, or the picture has no pixels.

    Example:
        >>> import torch
        >>> from brickyard import Preprocessing
        >>> how = Preprocessing(size=(416, 416), fit="letterbox")  # a picture of 832 x 640 becomes 416 x 320 at (0, 48)
        >>> to_picture(torch.tensor([48.0, 0.0, 368.0, 416.0]), (832, 640), how)
        tensor([  0.,   0., 640., 832.])
    """
    scale, shift = _mapping(boxes, sides, how)
    return ((boxes.double() + shift) * scale).to(boxes.dtype)


def to_input(boxes: Tensor, sides: tuple[int, int], how: Preprocessing) -> Tensor:
    """Map boxes from a picture to the network's input that is made of it: the inverse of `to_picture`.

    Example:
        >>> import torch
        >>> from brickyard import Preprocessing
        >>> how = Preprocessing(size=(416, 416), fit="letterbox", place="corner")
        >>> to_input(torch.tensor([0.0, 0.0, 640.0, 832.0]), (832, 640), how)
        tensor([  0.,   0., 320., 416.])
    """
    scale, shift = _mapping(boxes, sides, how)
    return (boxes.double() / scale - shift).to(boxes.dtype)


def _mapping(boxes: Tensor, sides: tuple[int, int], how: Preprocessing) -> tuple[Tensor, Tensor]:
    """What boxes of an input are multiplied by once they are shifted, (4,) each in float64."""
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point():
        given = boxes.dtype if isinstance(boxes, Tensor) else type(boxes).__name__
        raise DataError("data-type", f"boxes must be a floating-point torch.Tensor, got {given}; convert them")
    if boxes.dim() == 0 or boxes.shape[-1] != 4:
        why = f"boxes must be (..., 4), of left, top, right and bottom, got {tuple(boxes.shape)}"
        raise DataError("data-shape", f"{why}; bring them to that form")
    if len(sides) != 2 or any(isinstance(side, int) and side < 1 for side in sides):
        raise DataError("data-shape", f"a picture's sides must be its height and width in pixels, got {sides}")
    old = _number(sides[0], boxes), _number(sides[1], boxes)
    if how.size is None:
        return torch.ones_like(old[0]), torch.zeros_like(old[0])
    taken = _taken(old, how)
    down, across = (side / cover for side, (cover, _) in zip(old, taken, strict=True))
    (_, above), (_, left) = taken
    return torch.stack([across, down, across, down]), torch.stack([left, above, left, above])
