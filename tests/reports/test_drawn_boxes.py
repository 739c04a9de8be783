"""Boxes on pictures: where they are drawn, that texts can be read, and that nothing leaves the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from brickyard.reports import draw_boxes
from brickyard.reports._drawn_boxes import class_colour
from errors import refused

GREY = (128, 128, 128)


def drawn(width: int, height: int, *boxes: list[float], text: str = "", label: int = 0) -> np.ndarray:
    picture = Image.new("RGB", (width, height), GREY)
    found = draw_boxes(picture, boxes, [text] * len(boxes), [label] * len(boxes))
    assert picture.getcolors() == [(width * height, GREY)]  # the given picture stays as it is
    return np.asarray(found)


def of_colour(pixels: np.ndarray, label: int) -> np.ndarray:
    return (pixels == class_colour(label)).all(2)


def luminance(colour: tuple[int, ...]) -> float:
    def linear(value: float) -> float:
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    return sum(share * linear(value / 255) for share, value in zip((0.2126, 0.7152, 0.0722), colour, strict=True))


def test_a_frame_stands_on_its_box_and_its_line_grows_with_the_picture() -> None:
    for scale in (1, 4):
        pixels = of_colour(drawn(400 * scale, 300 * scale, [40 * scale, 30 * scale, 200 * scale, 150 * scale]), 0)
        down, across = pixels.nonzero()
        assert (across.min(), down.min(), across.max(), down.max()) == tuple(scale * k for k in (40, 30, 200, 150))
        line = int(pixels[90 * scale, : 100 * scale].sum())
        assert line == {1: 2, 4: 5}[scale]
        assert not pixels[60 * scale : 120 * scale, 80 * scale : 160 * scale].any()


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    pixels = of_colour(drawn(32, 24, [4, 6, 20, 12]), 0)
    assert pixels.shape == (24 * 12, 32 * 12)
    down, across = pixels.nonzero()
    assert (across.min(), down.min(), across.max(), down.max()) == (48, 72, 240, 144)


@pytest.mark.parametrize("box", [[0, 0, 9, 9], [391, 0, 399, 9], [391, 291, 399, 299], [0, 291, 9, 299]])
def test_texts_stay_whole_within_the_picture(box: list[float]) -> None:
    """What a text changes is as wide and high as in the middle, but for the frame below it."""

    def extent(at: list[float]) -> tuple[int, int]:
        changed = (drawn(400, 300, at, text="dog 90 %") != drawn(400, 300, at)).any(2)
        down, across = changed.nonzero()
        return int(np.ptp(across)), int(np.ptp(down))

    (width, height), (wide, high) = extent([200, 150, 209, 159]), extent(box)
    assert width > 40
    assert height > 10
    assert abs(wide - width) <= 3
    assert abs(high - height) <= 3


def test_a_text_wider_than_the_picture_is_cut() -> None:
    assert np.array_equal(
        drawn(400, 30, [5, 5, 50, 20], text="w" * 70)[:, :60], drawn(400, 30, [5, 5, 50, 20], text="w" * 60)[:, :60]
    )
    assert of_colour(drawn(400, 30, [5, 5, 50, 20], text="w" * 70), 0).any(0).sum() <= 400


def test_two_texts_at_one_box_stand_apart() -> None:
    box = [100, 100, 300, 200]
    one, two = (int(of_colour(drawn(400, 300, *[box] * count, text="cat"), 0).sum()) for count in (1, 2))
    frame = int(of_colour(drawn(400, 300, box), 0).sum())
    assert two - frame > 1.7 * (one - frame)


def test_every_colour_bears_its_text_and_differs_from_the_others() -> None:
    colours = [class_colour(k) for k in range(18)]
    assert len(set(colours)) == 18
    for k, colour in enumerate(colours):
        pixels = drawn(400, 300, [100, 100, 300, 200], text="MMMM", label=k)[80:120, 90:180]
        inks = set(map(tuple, np.unique(pixels.reshape(-1, 3), axis=0).tolist())) & {(0, 0, 0), (255, 255, 255)}
        assert len(inks) == 1
        light, dark = sorted((luminance(colour), luminance(inks.pop())), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_boxes_that_cannot_be_drawn() -> None:
    plain = np.asarray(Image.new("RGB", (400, 300), GREY))
    assert np.array_equal(drawn(400, 300, [float("nan"), 0, 9, 9], text="cat"), plain)
    assert np.array_equal(drawn(400, 300), plain)
    assert not np.array_equal(drawn(400, 300, [50, 50, 20, 20], text="cat"), plain)  # crossed
    assert not np.array_equal(drawn(400, 300, [-1e9, -1e9, 1e9, 1e9], text="cat"), plain)
    for mode in ("L", "RGBA", "P", "1"):
        assert draw_boxes(Image.new(mode, (400, 300)), torch.tensor([[1.0, 2, 30, 40]]), ["cat"], [3]).mode == "RGB"
    with refused("data-shape", "2 texts"):
        draw_boxes(Image.new("RGB", (4, 4)), [[0, 0, 1, 1]], ["a", "b"], [0])
    with refused("data-shape", "(1, 3)"):
        draw_boxes(Image.new("RGB", (4, 4)), [[0, 0, 1]], ["a"], [0])
