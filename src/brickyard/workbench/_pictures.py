"""Pictures that come in: bounded, decoded by the library, and brought to what the bricks take."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._records import ComponentManifest, Preprocessing
from brickyard.base._sides import NAMES, by_sides, is_picture
from brickyard.inputs._decoding import decode_image
from brickyard.inputs._preprocessing import preprocess, sized
from brickyard.inputs._reading import SUFFIXES
from brickyard.workbench._limits import Limits

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
MOST_SAMPLES = 60
SIDE = 192
LARGE = 2_000_000  # pixels above which a picture is brought to the parts' size once, not by every part
PIECES = 20_000  # chunks, segments or blocks of a picture's file: more are there to keep a reader busy
SCANS, SCANNED = 64, 1_500_000_000  # times that a JPEG goes over its pixels, and those times its pixels


def checked(content: bytes, name: str, limits: Limits) -> Image.Image:
    """A picture of which only the head was read.

    Raises:
        DataError: It is no picture, has more pixels than allowed, or is made to keep its reader busy.
    """
    name = name[:80]

    def too_large(text: str) -> DataError:
        return DataError("data-image-too-large", f"{name!r} {text}")

    if pieces(content) > PIECES:
        raise too_large(f"has more than {PIECES:,} pieces; save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise too_large(f"has more than {limits.pixels / 1e6:g} million pixels; shrink it first") from None
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        raise DataError(
            "data-unreadable-image", f"{name!r} is not a readable picture; give a PNG, JPEG, WebP, GIF or BMP"
        ) from None
    width, height = image.size
    if width * height > limits.pixels or max(width, height) > limits.side:
        most = f"{limits.pixels / 1e6:g} million, and {limits.side:,} for a side"
        raise too_large(f"has {width} x {height} pixels; the limit is {most}: make it smaller first")
    scans = content.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 1
    if scans > SCANS or scans * width * height > SCANNED:
        raise too_large(f"scans its pixels {scans:,} times; save it again as an ordinary JPEG or PNG")
    return image


def check_all(shown: Iterable[tuple[str, bytes]], limits: Limits) -> None:
    """Refuse pictures of which one, or all together, are too large, before any is decoded."""
    total = 0
    for name, content in shown:
        image = checked(content, name, limits)
        total += image.width * image.height
    if total > limits.all_pixels:
        why = f"the pictures have {total / 1e6:,.0f} million pixels together; {limits.all_pixels / 1e6:g} million"
        raise DataError("data-image-too-large", f"{why} is the limit of one request: send fewer, or make them smaller")


def decode(content: bytes, name: str, limits: Limits) -> Tensor:
    """A picture that is `checked`, as (channels, height, width), uint8."""
    return decode_image(checked(content, name, limits), repr(name[:80]))


def pieces(content: bytes) -> int:
    r"""How many pieces a reader of a PNG, JPEG or GIF goes through before its pixels; counted up to `PIECES` + 1.

    Example:
        >>> from brickyard.workbench._pictures import pieces
        >>> pieces(b"\xff\xd8" + b"\xff\xe1\x00\x02" * 30_000), pieces(b"no picture")
        (20001, 0)
    """
    steps = {b"\x89PNG": _chunks, b"\xff\xd8": _segments, b"GIF8": _blocks}
    found = next((step for start, step in steps.items() if content.startswith(start)), None)
    return sum(1 for _ in islice(found(content), PIECES + 1)) if found else 0


def _chunks(content: bytes) -> Iterator[int]:
    place = 8
    while place + 8 <= len(content):
        yield place
        place += 12 + int.from_bytes(content[place : place + 4], "big")


def _segments(content: bytes) -> Iterator[int]:
    """Segments of a JPEG up to its first scan; what is between them is passed over, as readers do."""
    place = content.find(b"\xff", 2)
    while 0 <= place < len(content) - 1 and content[place + 1] != 0xDA:
        yield place
        long = content[place + 1] not in (0x00, 0x01, 0xFF, *range(0xD0, 0xDA))
        skipped = 2 + int.from_bytes(content[place + 2 : place + 4], "big") if long else 1
        place = content.find(b"\xff", place + skipped)


def _blocks(content: bytes) -> Iterator[int]:
    """Extensions of a GIF up to its first frame, and the blocks in them."""
    place = 13 + (3 << (content[10] & 7) + 1 if len(content) > 10 and content[10] & 128 else 0)
    while place + 2 < len(content) and content[place] != 0x2C:
        yield place
        if content[place] != 0x21:
            place += 1
            continue
        place += 2
        while place < len(content) and content[place]:
            yield place
            place += 1 + content[place]
        place += 1


def check_wanted(parts: Sequence[ComponentManifest]) -> None:
    """Refuse pictures for parts that take something else.

    Raises:
        DataError: A part takes signals or cubes.
    """
    for part in parts:
        if not is_picture(part.input_shape):
            what = f"{NAMES[len(part.input_shape) - 1]} of {by_sides(part.input_shape)}"
            why = f"the brick of {part.source.name!r} takes {what}, and the workbench shows pictures only"
            raise DataError("data-type", f"{why}; download the classifier, and ask it with `brickyard predict`")


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
    """Pictures as one batch: as they are where all have one shape, else as all parts take them, or at one size.

    Raises:
        DataError: A part letterboxes pictures, and others do not take them in the same way.
    """
    found = [fitted(picture, parts) for picture in pictures]
    if len({(picture.shape, picture.dtype) for picture in found}) == 1:
        return torch.stack(found)
    letterboxing = [part for part in parts if part.preprocessing.size and part.preprocessing.fit == "letterbox"]
    if letterboxing and len({part.preprocessing.frame for part in parts}) > 1:
        why = f"the brick of {letterboxing[0].source.name!r} letterboxes pictures, and others take them in another way"
        raise DataError("data-not-batchable", f"{why}; give pictures of one size")
    if letterboxing:
        most = max(map(len, found))
        return torch.stack([sized(picture, parts[0].preprocessing).expand(most, -1, -1) for picture in found])
    how = Preprocessing(size=_largest(parts), channels=3 if any(len(p) == 3 for p in found) else 1)
    return torch.cat([preprocess(picture.unsqueeze(0), how) for picture in found])


def shrunk(picture: Tensor, parts: Sequence[ComponentManifest]) -> Tensor:
    """A large picture at the size of the largest part, so that no part has to bring it there; others stay.

    Where all parts take the same size, their own preprocessing would have made the same of it. Where a part takes the
    middle of a picture, or fits it otherwise, its sides keep their proportion.
    """
    size = _largest(parts)
    height, width = picture.shape[1:]
    if height * width <= LARGE or height < size[0] or width < size[1]:
        return picture
    if any(part.preprocessing.crops or part.preprocessing.fit != "resize" for part in parts):
        factor = max(
            (LARGE / (height * width)) ** 0.5, *(goal / side for goal, side in zip(size, (height, width), strict=True))
        )
        size = round(height * factor), round(width * factor)
    # One channel after the other, which needs a third of the memory.
    return torch.cat([preprocess(channel[None, None], Preprocessing(size=size))[0] for channel in picture])


def _largest(parts: Sequence[ComponentManifest]) -> tuple[int, int]:
    sizes = [part.preprocessing.size or tuple(part.input_shape[1:]) for part in parts]
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def sample_paths(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by name: plain files only, and nothing where the folder itself is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return {}
    suffixes = SUFFIXES - {".tif", ".tiff", ".ppm", ".pgm"}  # which are not read here
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name.isprintable())
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
