"""Pictures that are scaled and cropped are those of torchvision's pipeline on PIL's images, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from brickyard import Preprocessing
from brickyard.inputs._preprocessing import preprocess, sized

transforms = pytest.importorskip("torchvision.transforms")
WAYS = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
}


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Noise, where every rounding shows, with saturated areas, where bicubic curves overshoot."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 3] = 255 * (pixels[: height // 3] > 127)
    return Image.fromarray(pixels)


def raw(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    width=st.integers(8, 90),
    height=st.floats(0.2, 1.5),  # of the width; the height of taller ones may be scaled first, by the version of Pillow
    resize=st.integers(8, 80),
    share=st.floats(0.4, 1),
    way=st.sampled_from(sorted(WAYS)),
    seed=st.integers(0, 99),
)
def test_scaled_and_cropped_pictures_are_those_of_pil(width, height, resize, share, way, seed) -> None:
    crop = max(1, int(resize * share))
    image = picture(max(4, int(height * width)), width, seed)
    theirs = transforms.Compose(
        [transforms.Resize(resize, WAYS[way]), transforms.CenterCrop(crop), transforms.PILToTensor()]
    )(image)
    how = Preprocessing(size=(crop, crop), fit="crop", crop=crop / resize, interpolation=way)
    found = preprocess(raw(image)[None], how)[0]
    assert torch.equal((255 * found.double()).round().to(torch.uint8), theirs)
    kept = sized(raw(image), how)
    assert kept.dtype == torch.uint8
    assert torch.equal(preprocess(kept[None], how)[0], found)  # as a folder's pictures are kept


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    before=st.tuples(st.integers(4, 90), st.integers(4, 90)),
    resize=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    share=st.sampled_from([1, 0.9, 0.5]),
    way=st.sampled_from(sorted(WAYS)),
    seed=st.integers(0, 99),
)
def test_pictures_whose_sides_are_scaled_independently_are_those_of_pil(before, resize, share, way, seed) -> None:
    assume(not height_first(before, resize))
    crop = tuple(int(side * share) for side in resize)
    resize = tuple(int(side / share) for side in crop)  # which one share of both sides leads to
    assume(tuple(int(side / share + 1e-6) for side in crop) == resize and not height_first(before, resize))
    image = picture(*before, seed)
    steps = [transforms.Resize(resize, WAYS[way]), transforms.CenterCrop(crop), transforms.PILToTensor()]
    how = Preprocessing(size=crop, crop=share, interpolation=way)
    found = preprocess(raw(image)[None], how)[0]
    assert torch.equal((255 * found.double()).round().to(torch.uint8), transforms.Compose(steps)(image))
    kept = sized(raw(image), how)
    assert kept.dtype == torch.uint8
    assert torch.equal(preprocess(kept[None], how)[0], found)


def height_first(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether Pillow from version 13 on scales the height first, where earlier ones scale the width."""
    (height, width), (rows, columns) = before, after
    return height > rows and height - rows > 2 * (width - columns)


def test_the_other_order_is_another_picture() -> None:
    before, after = (80, 40), (20, 36)
    assert height_first(before, after)
    image = picture(*before, 0)
    first, second = image.resize((36, 80), 2).resize((36, 20), 2), image.resize((40, 20), 2).resize((36, 20), 2)
    found = (255 * preprocess(raw(image)[None], Preprocessing(size=after))[0].double()).round().to(torch.uint8)
    assert torch.equal(found, raw(first))
    assert not torch.equal(found, raw(second))


def test_another_curve_is_another_picture() -> None:
    image, how = picture(60, 80, 1), Preprocessing(size=(32, 32), fit="crop", crop=0.8)
    other = how.model_copy(update={"interpolation": "bicubic"})
    assert not torch.equal(preprocess(raw(image)[None], how), preprocess(raw(image)[None], other))
