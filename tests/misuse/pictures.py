"""Wrong and odd pictures."""

from __future__ import annotations

import io
import os
import struct
from typing import Any

import numpy as np
from PIL import Image

from brickyard.inputs._decoding import decode_image
from misuse.rows import GREY, RGB, RNG, Refused, Seen, Write, png, put, saved, written

WIDE = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def unreadable(content: bytes, name: str = "x.png", *quoted: str) -> Refused:
    return refused_picture(content, "data-unreadable-image", name, *quoted)


def refused_picture(content: bytes, code: str, name: str, *quoted: str, megabytes: float = 64) -> Refused:
    return Refused(
        lambda place: decode_image(place.folder / name), code, (name, *quoted), put(name, content), megabytes
    )


def giant(height: int, width: int, *quoted: str) -> Refused:
    """Its header names a size; the file is of a few bytes."""
    content = png(np.zeros((1, 9), np.uint8), size=(height, width))
    return refused_picture(content, "data-image-too-large", "x.png", *quoted, megabytes=2)


ORIENTED = {  # EXIF orientation -> what a viewer shows
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1),
    7: RGB[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(RGB, 1),
}


def turned(value: int) -> Write:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(Image.fromarray(RGB), exif=exif)


def tiff_of(array: np.ndarray, white: int) -> bytes:
    """A 16-bit grey TIFF by hand, whose tag 262 says whether 0 is white (0) or black (1)."""
    (height, width), data = array.shape, array.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: white, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


TURNED = Image.Exif()
TURNED[0x0112] = 6
ALPHA = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def on_white(colour: np.ndarray) -> np.ndarray:
    share = (ALPHA / 255)[..., None]
    return np.rint((colour if colour.ndim == 3 else colour[..., None]) * share + 255 * (1 - share))


SMALL = RGB // 86 * 86  # 27 colours at most, for palettes
PALETTE = Image.fromarray(SMALL).quantize(64)
CMYK = np.tile(np.array([[[200, 30, 90, 40]]], np.uint8), (16, 16, 1))
FRAMES = [Image.fromarray(SMALL), Image.fromarray(255 - SMALL)]

FLOATS = encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF")
LARGE = encoded(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF")
TILES = np.tile(RGB, (20, 20, 1))
JPEG = encoded(Image.fromarray(TILES), "JPEG")
DAMAGED = png(RGB)[:60] + bytes(20) + png(RGB)[80:]
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"

PICTURES: dict[str, Any] = {
    "grey": Seen(saved(Image.fromarray(GREY)), GREY),
    "grey with alpha": Seen(
        saved(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), on_white(np.repeat(GREY[..., None], 3, 2)), within=1
    ),
    "one bit": Seen(saved(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0)),
    "palette": Seen(saved(PALETTE), SMALL),
    "palette with a transparent colour": Seen(
        saved(PALETTE, transparency=0),
        np.where((np.asarray(PALETTE) == 0)[..., None], 255, SMALL),
        unlike=SMALL if (np.asarray(PALETTE) == 0).any() else None,
    ),
    "RGBA": Seen(saved(Image.fromarray(np.dstack([RGB, ALPHA]))), on_white(RGB), within=1, unlike=RGB),
    "CMYK JPEG": Seen(
        saved(Image.fromarray(CMYK, "CMYK"), quality=100),
        (255 - CMYK[..., :3].astype(float)) * (255 - CMYK[..., 3:]) / 255,
        "x.jpg",
        within=3,
        unlike=CMYK[..., :3],
    ),
    "16-bit grey PNG": Seen(
        written(png(WIDE, 16)), np.rint(WIDE / 65535 * 255), unlike=np.clip(WIDE[..., None].astype(int), 0, 255)
    ),
    "dark 16-bit grey PNG": Seen(written(png(np.full((4, 4), 200), 16)), np.full((4, 4), 1)),
    "16-bit RGB PNG": Seen(
        written(png(RNG.integers(0, 65536, (6, 9, 3)) * 0 + 513 * np.arange(54 * 3).reshape(6, 9, 3) % 65536, 16)),
        np.rint(513 * np.arange(54 * 3).reshape(6, 9, 3) % 65536 / 257),
        within=1,
    ),
    "16-bit grey TIFF": Seen(saved(Image.fromarray(WIDE)), np.rint(WIDE / 257), "x.tif"),
    "16-bit grey PNG, turned": Seen(
        saved(Image.fromarray(WIDE), exif=TURNED), np.rot90(np.rint(WIDE / 257), -1), unlike=np.rint(WIDE / 257)
    ),
    "16-bit grey PNG with a transparent value": Seen(
        saved(Image.fromarray(WIDE), transparency=int(WIDE[2, 3])),
        np.where(WIDE[2, 3] == WIDE, 255, np.rint(WIDE / 257)),
        unlike=np.rint(WIDE / 257),
    ),
    "grey PNG with a transparent value": Seen(
        saved(Image.fromarray(GREY), transparency=int(GREY[2, 3])),
        np.where(GREY[2, 3] == GREY, 255, GREY),
        unlike=GREY,
    ),
    "16-bit grey TIFF in which 0 is white": Seen(
        written(tiff_of(WIDE, white=0)), 255 - np.rint(WIDE / 257), "x.tif", unlike=np.rint(WIDE / 257)
    ),
    "16-bit grey TIFF by hand": Seen(written(tiff_of(WIDE, white=1)), np.rint(WIDE / 257), "x.tif"),
    "dark 16-bit PGM": Seen(
        written(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 100, 250)), np.array([[0, 0, 1]]), "x.pgm"
    ),
    "8-bit PGM of the same numbers": Seen(written(b"P5 3 1 255\n" + bytes([0, 100, 250])), np.array([[0, 100, 250]])),
    **{f"EXIF orientation {k}": Seen(turned(k), pixels) for k, pixels in ORIENTED.items()},
    "EXIF orientation 1": Seen(turned(1), RGB),
    "EXIF orientation 99": Seen(turned(99), RGB),
    "animated GIF: its first frame": Seen(
        saved(FRAMES[0], save_all=True, append_images=FRAMES[1:]), SMALL, "x.gif", unlike=255 - SMALL
    ),
    "WebP": Seen(saved(Image.fromarray(RGB), lossless=True), RGB, "x.webp"),
    "animated WebP: its first frame": Seen(
        saved(FRAMES[0], save_all=True, append_images=FRAMES[1:], lossless=True), SMALL, "x.webp", unlike=255 - SMALL
    ),
    "TIFF of two pages: the first": Seen(
        saved(FRAMES[0], save_all=True, append_images=FRAMES[1:]), SMALL, "x.tif", unlike=255 - SMALL
    ),
    "a PNG that is called .jpg": Seen(written(png(RGB)), RGB, "x.jpg"),
    "one pixel": Seen(written(png(GREY[:1, :1])), GREY[:1, :1]),
    "a line of pixels": Seen(written(png(np.tile(GREY[:1], (1, 1000)))), np.tile(GREY[:1], (1, 1000))),
    "32-bit floating point TIFF": unreadable(FLOATS, "x.tif"),
    "32-bit whole numbers": unreadable(LARGE, "x.tif", "0 to 70000"),
    "truncated JPEG": unreadable(JPEG[:3000], "x.jpg", "truncated"),
    "truncated PNG": unreadable(png(TILES)[:400]),
    "PNG with a damaged middle": unreadable(DAMAGED),
    "JPEG with only its start": unreadable(b"\xff\xd8\xff\xe0", "x.jpg"),
    "an empty file": unreadable(b"", "x.png", "PNG, JPEG"),
    "text called .jpg": unreadable(b"a picture of a cat", "cat.jpg", "PNG, JPEG"),
    "an SVG": unreadable(SVG, "x.svg", "PNG, JPEG"),
    "EPS called .png: nothing is started": unreadable(EPS, "x.png", "PNG, JPEG"),
    "30000 x 30000 in a few bytes": giant(30_000, 30_000),
    "10000 x 10000 in a few bytes": giant(10_000, 10_000, "10000 x 10000"),
    "one row of 70 million pixels": giant(1, 70_000_000, "70000000 x 1"),
    "a folder for a picture": Refused(
        lambda place: decode_image(place.folder), "data-unreadable-image", ("test_every_row",)
    ),
    "a pipe for a picture: it is not waited for": Refused(
        lambda place: decode_image(place.folder / "x.png"),
        "data-unreadable-image",
        ("x.png",),
        lambda folder: os.mkfifo(folder / "x.png"),
    ),
}
