"""Pictures that come in: bounded, decoded by the library, and brought to what the bricks take."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from brickyard.datasets import FORMATS, SUFFIXES, decode_image
from brickyard.errors import DataError
from brickyard.manifest import ComponentManifest, Preprocessing
from brickyard.preprocessing import preprocess

__all__ = ["decode", "fitted", "sample_paths", "stacked", "thumbnail"]

MOST_SAMPLES = 60
SIDE = 192


def decode(content: bytes, name: str, pixels: int) -> Tensor:
    """A picture (channels, height, width), uint8.

    Raises:
        DataError: It is no picture, or has more pixels than allowed.
    """
    name = name[:80]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise DataError(f"{name!r} is no picture that can be read; give a PNG, JPEG, WebP, GIF, BMP or TIFF") from None
    width, height = image.size
    if width * height > pixels:
        raise DataError(
            f"{name!r} has {width} x {height} pixels; {pixels / 1e6:g} million is the limit: make it smaller first"
        )
    return decode_image(image, repr(name))


def fitted(picture: Tensor, parts: Sequence[ComponentManifest]) -> Tensor:
    """A picture as the parts can take it.

    Where no part says how channels (or sizes) come to what its network takes, and all take the same, the picture is
    brought to that; otherwise it stays as it is, and each part's own preprocessing does it.
    """
    shapes = {part.input_shape for part in parts}
    if len(shapes) != 1:
        return picture
    channels, *size = shapes.pop()
    how: dict[str, object] = {}
    if all(part.preprocessing.channels is None for part in parts) and channels in (1, 3) and len(picture) != channels:
        how["channels"] = channels
    if all(part.preprocessing.size is None for part in parts) and list(picture.shape[1:]) != size:
        how["size"] = tuple(size)
    return preprocess(picture.unsqueeze(0), Preprocessing.model_validate(how))[0] if how else picture


def stacked(pictures: Sequence[Tensor], parts: Sequence[ComponentManifest]) -> Tensor:
    """Pictures as one batch: as they are where all have one shape, else at the size of the largest part."""
    found = [fitted(picture, parts) for picture in pictures]
    if len({(picture.shape, picture.dtype) for picture in found}) == 1:
        return torch.stack(found)
    sizes = [part.preprocessing.size or tuple(part.input_shape[1:]) for part in parts]
    how = Preprocessing(
        size=(max(h for h, _ in sizes), max(w for _, w in sizes)), channels=3 if any(len(p) == 3 for p in found) else 1
    )
    return torch.cat([preprocess(picture.unsqueeze(0), how) for picture in found])


def sample_paths(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by name: plain files only."""
    if not folder.is_dir():
        return {}
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    plain = [path for path in found if path.is_file() and not path.is_symlink()]
    return {path.name: path for path in plain[:MOST_SAMPLES]}


def thumbnail(picture: Tensor) -> bytes:
    """A small PNG of a picture."""
    array = picture.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if len(picture) == 1 else array)
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
