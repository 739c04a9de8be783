"""Bounded decoding of image files to pixels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import first_line
from brickyard.base._sides import NAMES, axes_text, by_sides, is_picture
from brickyard.inputs._preprocessing import check_images

_ORIENTATION = 274  # tag of EXIF
QUARTERS = (5, 6, 7, 8)  # orientations that exchange height and width
_PHOTOMETRIC = 262  # tag of a TIFF that says what its numbers mean
MAX_PIXELS = 80_000_000  # per picture; its header is checked before anything is decoded
MAX_SIDE = 65_535  # of height or width: resizing builds a matrix from the longer one
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # no others: some decoders start external programs


def decode_image(source: Any, name: str | None = None) -> Tensor:
    """Decode a picture to a uint8 tensor (channels, height, width): one channel if it is grey, otherwise three.

    It is rotated according to its EXIF data. Animations yield their first frame. 16 bits become 8, from the range 0 to
    65535; transparent areas become white; CMYK and palettes become colour. Floating point is rejected, since its range
    is unknown. A picture with more than `MAX_PIXELS` pixels, or a side above `MAX_SIDE`, is rejected before decoding.

    Args:
        source: A path, a file object, or a PIL image.
        name: What messages call it.

    Raises:
        DataError: It is not a picture, is truncated, or is unreasonably large.

    Example:
        >>> from PIL import Image
        >>> from brickyard.inputs._decoding import decode_image
        >>> decode_image(Image.new("RGBA", (4, 2))).shape
        torch.Size([3, 2, 4])
    """
    with _opened(source, name) as image:
        image.load()
        array = _pixels(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()


def image_sides(source: Any, name: str | None = None) -> tuple[int, int, int]:
    """Height and width of what `decode_image` makes of a picture, and its EXIF orientation (1 to 8).

    Only the header is read, unless the picture is rotated and no JPEG.

    Raises:
        DataError: As for `decode_image`, as far as the header shows it.

    Example:
        >>> from PIL import Image
        >>> from brickyard.inputs._decoding import image_sides
        >>> image_sides(Image.new("RGB", (4, 2)))
        (2, 4, 1)
    """
    with _opened(source, name) as image:
        turned = image.getexif().get(_ORIENTATION, 1)
        width, height = image.size
        if turned not in range(2, 9):
            return height, width, 1
        if image.format != "JPEG":  # others may have been rotated by their decoder
            width, height = ImageOps.exif_transpose(image).size
        elif turned in QUARTERS:
            width, height = height, width
        return height, width, int(turned)


@contextlib.contextmanager
def _opened(source: Any, name: str | None) -> Iterator[Image.Image]:
    """A picture that is open, and within the limits by its header; whatever a decoder raises becomes one error."""
    name = name or str(getattr(source, "filename", None) or source)
    try:
        if isinstance(source, str | Path) and Path(source).exists() and not Path(source).is_file():
            raise ValueError(f"expected a file, got {'a folder' if Path(source).is_dir() else 'something else'}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = not isinstance(source, Image.Image)
            image = Image.open(source, formats=FORMATS) if opened else source
            with image if opened else contextlib.nullcontext():
                width, height = image.size
                if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                    raise _too_large(name, f"{width} x {height} pixels")
                yield image
    except DataError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, where it is lower
        raise _too_large(name, "it has more pixels than Pillow opens") from None
    except Exception as error:  # decoders raise all sorts of errors on damaged files
        if isinstance(error, UnidentifiedImageError):
            error = ValueError(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
        why = f"cannot read image {name}: {first_line(error)}"
        raise DataError("data-unreadable-image", f"{why}; repair it, or leave it out") from None


def _too_large(name: str, found: str) -> DataError:
    limits = f"{MAX_PIXELS:,} in all and {MAX_SIDE:,} a side are the limit"
    return DataError("data-image-too-large", f"image {name} is too large: {found}, and {limits}; make it smaller first")


def _pixels(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    form = image.format  # rotating drops it
    negative = form == "TIFF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0  # 0 is white
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16-bit grey; mode "I" may also hold 8-bit values
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"its numbers run from {wide.min()} to {wide.max()}, and 0 to 65535 is what is known")
        step = 257 if image.mode != "I" or form in ("PNG", "PPM") or wide.max() > 255 else 1
        wide = _on_white(wide, image, 255 * step)
        wide = 255 * step - wide if negative else wide  # Pillow inverts the others itself
        return np.rint(wide / step).astype(np.uint8)
    if image.mode == "F":
        raise ValueError("its numbers are floating point, and their range is not known")
    if image.mode in ("1", "L"):
        return _on_white(np.array(image.convert("L")), image, 255)
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


def _on_white(values: np.ndarray[Any, Any], image: Image.Image, white: int) -> np.ndarray[Any, Any]:
    """Grey values, with white for the one that the picture says is transparent."""
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return values
    clear = 255 * min(clear, 1) if image.mode == "1" else clear
    return np.where(values == clear, np.array(white, values.dtype), values)


COLOURS = (1, 3)  # channels of a picture


def read_images(images: Any, batch_size: int, shape: Sequence[int] | None = None) -> list[Tensor]:
    """Convert images in any form that `Predictor.predict_proba` takes to raw batches.

    Args:
        images: What it takes.
        batch_size: Number of images of a batch.
        shape: What the network takes, where that may be signals or cubes.

    Raises:
        DataError: The images have another form.
    """
    if shape is not None and not is_picture(shape):
        return _arrays(images, batch_size, shape)
    if isinstance(images, np.ndarray) and images.ndim == 4:
        last = images.shape[3] in COLOURS and images.shape[1] not in COLOURS
        images = _tensor(images.transpose(0, 3, 1, 2) if last else images)
    if isinstance(images, Tensor) and images.ndim == 4:
        check_images(images, "the images")
        return list(images.split(batch_size))
    if isinstance(images, str | Path) or not isinstance(images, Sequence):
        images = [images]
    return [_picture(item) for item in images]


def _arrays(items: Any, batch_size: int, shape: Sequence[int]) -> list[Tensor]:
    """Signals or cubes as raw batches: a batch, a single one, or a list of these."""
    if isinstance(items, Tensor | np.ndarray):
        return list(_batch(items, shape).split(batch_size))
    single = isinstance(items, str | Path) or not isinstance(items, Sequence)
    return [_batch(item, shape) for item in ([items] if single else items)]


def _batch(item: Any, shape: Sequence[int]) -> Tensor:
    """Signals or cubes as (batch, *shape), of which the sides may differ; a single channel needs no axis of its own."""
    x = _tensor(item) if isinstance(item, np.ndarray) else item
    missing = len(shape) + 1 - x.ndim if isinstance(x, Tensor) else -1
    if missing == 2 and shape[0] == 1:
        x = x[None, None]
    elif missing == 1:
        x = x.unsqueeze(1 if shape[0] == 1 else 0)
    elif missing:
        found = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        sides = len(shape) - 1
        wanted = f"arrays or tensors {axes_text(sides)} or {axes_text(sides, 'batch')}"
        why = f"the model takes {NAMES[sides]} of {by_sides(shape)}, got {found}"
        raise DataError("data-type", f"{why}; give {wanted}")
    check_images(x, f"the {NAMES[len(shape) - 1]}")
    return x


def _picture(item: Any) -> Tensor:
    """One picture as (1, channels, height, width)."""
    if isinstance(item, np.ndarray) and item.ndim in (2, 3):
        array = item if item.ndim == 3 else item[:, :, None]
        item = _tensor(array.transpose(2, 0, 1))
    if isinstance(item, Tensor) and item.ndim == 3:
        batch = item.unsqueeze(0)
        check_images(batch, "the image")
        return batch
    if isinstance(item, str | Path) or hasattr(item, "convert"):
        return decode_image(item).unsqueeze(0)
    shape = f" of shape {tuple(item.shape)}" if isinstance(item, Tensor | np.ndarray) else ""
    forms = "a path, a PIL image, an array (height, width[, channels]) or a tensor (channels, height, width)"
    raise DataError("data-type", f"an image is a {type(item).__name__}{shape}; give {forms}")


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Copy an array with any strides to a tensor."""
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except (TypeError, ValueError):
        wanted = "uint8 in 0..255 or floating point in [0, 1]"
        raise DataError("data-type", f"an array must be {wanted}, got {array.dtype}") from None
