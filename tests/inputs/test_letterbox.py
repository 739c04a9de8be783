"""Letterboxed and padded pictures and reversed colours, against PIL and torch composed by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, export

import brickyard as by
from brickyard import Preprocessing
from brickyard.component._component import check_input
from brickyard.inputs._content import marks
from brickyard.inputs._datasets import load_data
from brickyard.inputs._preprocessing import framed, preprocess, sized
from brickyard.sources._resolve import check_seen_by_all, labelled_images
from brickyard.testing import chain, randomised
from errors import refused

GREY = 114 / 255
NAMES = (["a", "b", "c", "d"], ["e", "f", "g", "h"])
YOLOX = Preprocessing(size=(24, 32), fit="letterbox", fill=GREY, place="corner", order="bgr")
SHAPES = [(20, 90), (90, 20), (7, 5), (24, 32), (48, 64), (200, 3), (1, 1)]  # wide, tall, smaller, fitting, larger


def fitting(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int]:
    """The sides of a letterboxed picture, in whole numbers: the side that is the tighter one becomes the goal."""
    (height, width), (rows, columns) = shape, size
    if rows * width <= columns * height:
        return rows, max(1, width * rows // height)
    return max(1, height * columns // width), columns


def pasted(picture: Tensor, size: tuple[int, int], fill: float, place: str) -> Tensor:
    """A picture (..., height, width) on an area of one value."""
    height, width = picture.shape[-2:]
    top, left = ((size[0] - height) // 2, (size[1] - width) // 2) if place == "centre" else (0, 0)
    whole = torch.full((*picture.shape[:-2], *size), fill, dtype=picture.dtype)
    whole[..., top : top + height, left : left + width] = picture
    return whole


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(4, 70), st.integers(4, 70)),
    size=st.tuples(st.integers(6, 50), st.integers(6, 50)),
    place=st.sampled_from(["centre", "corner"]),
    curve=st.sampled_from(["bilinear", "bicubic"]),
    smooth=st.booleans(),
    seed=st.integers(0, 99),
)
def test_floats_are_torchs_resize_in_an_area(shape, size, place, curve, smooth, seed) -> None:
    x = torch.rand(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ways = {"interpolation": curve, "antialias": smooth, "place": place}
    how = Preprocessing(size=size, fit="letterbox", fill=0.3, **ways)
    inner = fitting(shape, size)
    found = preprocess(x, how)
    if min(inner) > 1 or not smooth:  # torch smooths a single column otherwise than PIL and this library
        wanted = F.interpolate(x, inner, mode=curve, antialias=smooth)
        torch.testing.assert_close(found, pasted(wanted, size, 0.3, place), rtol=0, atol=1e-12)
    if inner != size:
        other = preprocess(x, how.model_copy(update={"fill": 0.4}))
        assert not torch.equal(found, other)


@pytest.mark.parametrize("place", ["centre", "corner"])
@pytest.mark.parametrize("shape", [(20, 90), (90, 80), (7, 5), (48, 60), (1, 1)])
def test_bytes_are_pils_resize_in_an_area_of_bytes(shape, place) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = fitting(shape, (24, 32))
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    raw, theirs = (torch.from_numpy(np.array(item)).permute(2, 0, 1)[None] for item in (pixels, image))
    how = Preprocessing(size=(24, 32), fit="letterbox", fill=GREY, place=place)
    found = (255 * preprocess(raw, how).double()).round().to(torch.uint8)
    wanted = pasted(theirs, (24, 32), 114, place)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, pasted(theirs, (24, 32), 113, place))
    assert torch.equal(sized(raw[0], how), wanted[0])  # as a folder's pictures are kept
    assert torch.equal(preprocess(sized(raw[0], how)[None], how), preprocess(raw, how))


def test_the_place_and_the_filling_hold_for_padded_pictures_too() -> None:
    small = torch.randint(0, 256, (1, 3, 5, 8), dtype=torch.uint8)
    for place in ("centre", "corner"):
        how = Preprocessing(size=(8, 11), fit="pad", fill=0.2, place=place)
        assert torch.equal(preprocess(small, how), pasted(small, (8, 11), 51, place).float() / 255)
        assert torch.equal(preprocess(small / 255, how), pasted(small / 255, (8, 11), 0.2, place))
    assert torch.equal(preprocess(small, Preprocessing(size=(8, 11), fit="pad"))[..., 0], torch.zeros(1, 3, 8))


def test_blue_comes_first_and_is_normalised_as_the_first() -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = preprocess(x, Preprocessing(order="bgr", mean=mean, std=std))
    wanted = (x.flip(1) - torch.tensor(mean).double().view(1, 3, 1, 1)) / torch.tensor(std).double().view(1, 3, 1, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)
    assert not torch.allclose(found, preprocess(x, Preprocessing(mean=mean, std=std)).flip(1))
    raw = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    bytes_of = preprocess(raw, Preprocessing(order="bgr", mean=(0,), std=(1 / 255,)))  # as a network of 0 to 255 has it
    torch.testing.assert_close(bytes_of, raw.flip(1).float(), rtol=1e-6, atol=0)
    grey = raw[:, :1]
    colour = Preprocessing(channels=3)
    assert torch.equal(preprocess(grey, colour), preprocess(grey, colour.changed({"order": "bgr"})))


def test_reversed_colours_need_colours() -> None:
    how = Preprocessing(order="bgr")
    with refused("data-wrong-size", "1", "channels=3"):
        preprocess(torch.rand(2, 1, 4, 4), how)
    with refused("data-shape", "(2, 3, 8)"):
        preprocess(torch.rand(2, 3, 8), how)
    with refused("option-preprocessing", "'bgr'"):
        Preprocessing(order="bgr", channels=1)


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 8, 8), (3, 64)])
def test_files_that_reverse_other_than_three_colours_are_refused(shape) -> None:
    manifest: Any = SimpleNamespace(preprocessing=Preprocessing(order="bgr"), input_shape=shape)
    with refused("file-inconsistent", str(shape[0])):
        check_input(manifest)
    manifest.preprocessing = Preprocessing()
    check_input(manifest)
    check_input(SimpleNamespace(preprocessing=YOLOX, input_shape=(3, 24, 32)))


@pytest.mark.parametrize(
    "values",
    [
        {"fill": 0.5},
        {"fit": "crop", "place": "corner"},
        {"fit": "letterbox", "crop": 0.5},
        {"fit": "letterbox", "fill": 114},
        {"fit": "letterbox", "fill": float("nan")},
        {"fit": "letterbox", "place": "center"},
        {"order": "BGR"},
    ],
)
def test_values_that_do_not_fit_together_are_refused(values) -> None:
    with refused("option-preprocessing"):
        Preprocessing(size=(8, 8), **values)


def test_what_belongs_to_another_fit_does_not_stay() -> None:
    cropped = Preprocessing(size=(8, 8), fit="crop", crop=0.8, mean=(0.5,), std=(0.2,))
    boxed = cropped.changed({"fit": "letterbox", "fill": 0.5})
    assert (boxed.crop, boxed.fill, boxed.mean) == (1.0, 0.5, (0.5,))
    assert boxed.changed({"fit": "pad"}).fill == 0.5
    assert boxed.changed({"fit": "crop", "crop": 0.8}) == cropped
    with refused("option-preprocessing", "fill"):
        cropped.changed({"fill": 0.5})


def test_files_of_earlier_versions_mean_the_same() -> None:
    for values in ({}, {"size": [8, 8], "fit": "pad"}, {"size": [8, 8], "fit": "resize", "crop": 0.5}):
        how = Preprocessing.model_validate(values)
        assert (how.fill, how.place, how.order) == (0.0, "centre", "rgb")
    assert Preprocessing.model_validate_json(YOLOX.model_dump_json()) == YOLOX


class Wrapped(nn.Module):
    def __init__(self, how: Preprocessing) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        return preprocess(images, self.how)


@pytest.mark.parametrize(
    "how",
    [
        YOLOX,
        YOLOX.model_copy(update={"place": "centre", "antialias": False, "interpolation": "bicubic"}),
        Preprocessing(size=(24, 32), fit="pad", fill=GREY, place="corner"),
    ],
    ids=["corner", "centre", "pad"],
)
def test_it_exports_for_sides_that_are_open(how) -> None:
    sides = {0: Dim("batch"), 2: Dim("height", max=256), 3: Dim("width", max=256)}
    for dtype in (torch.float32, torch.uint8):
        example = torch.zeros(2, 3, 20, 30, dtype=dtype)
        exported = export(Wrapped(how), (example,), dynamic_shapes=(sides,)).module()
        for shape in [shape for shape in SHAPES if min(shape) > 2]:
            x = (255 * torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
            x = x if dtype == torch.uint8 else x / 255
            wanted = preprocess(x, how)
            torch.testing.assert_close(exported(x), wanted, rtol=0, atol=1e-6)
            inner = fitting(shape, how.size) if how.fit == "letterbox" else shape
            filled = inner != how.size and inner[0] <= how.size[0] and inner[1] <= how.size[1]
            other = preprocess(x, how.model_copy(update={"fill": 0.2}))
            assert torch.allclose(exported(x), other, atol=1e-3) != filled


def test_marks_know_what_lies_around_a_picture() -> None:
    photo = torch.arange(9 * 20 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 3, 9, 20)
    same = marks(framed(photo, YOLOX), YOLOX), marks(photo / 255, YOLOX), marks(photo, YOLOX.changed({"order": "rgb"}))
    assert all(torch.equal(marks(photo, YOLOX), one) for one in same)
    assert YOLOX.frame == YOLOX.changed({"order": "rgb"}).frame
    for change in ({"fill": 0.1}, {"place": "centre"}, {"fit": "resize"}):
        other = YOLOX.changed(change)
        assert other.frame != YOLOX.frame
        assert not torch.equal(marks(photo, YOLOX), marks(photo, other))


def test_a_folder_of_pictures_of_several_sizes_is_letterboxed(tmp_path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    pixels = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in ((10, 30), (30, 10), (60, 60))]
    for index, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / "a" / f"{index}.png")
    data = load_data(str(tmp_path), size=YOLOX)
    raw = [torch.from_numpy(one).permute(2, 0, 1)[None] for one in pixels]
    assert torch.equal(preprocess(data.images, YOLOX), torch.cat([preprocess(one, YOLOX) for one in raw]))
    squashed = Preprocessing(size=(24, 32), order="bgr")
    assert not torch.equal(preprocess(data.images, YOLOX), torch.cat([preprocess(one, squashed) for one in raw]))


def test_parts_that_letterbox_and_others_are_shown_the_same_pictures(tmp_path) -> None:
    boxed, squashed = YOLOX.changed({"size": (8, 8)}), Preprocessing(size=(8, 8))
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4
    parts = []
    for index, how in enumerate((boxed, squashed)):
        model = randomised(chain(), index)
        relevance = by.locate(model, images, classes=NAMES[index], preprocessing=how)
        parts.append(by.disassemble(model, relevance, task=[0, 1], heal="none"))
    whole = by.assemble(parts)
    rng, pixels = np.random.default_rng(0), []
    for name in ("a", "b", "e", "f"):
        (tmp_path / name).mkdir()
        pixels.append(rng.integers(0, 256, (6, 20, 3), dtype=np.uint8))
        Image.fromarray(pixels[-1]).save(tmp_path / name / "0.png")
    raw = [torch.from_numpy(one).permute(2, 0, 1) for one in pixels]
    read = labelled_images([str(tmp_path)], [("whole", whole.manifest)], "--data", shared=True)
    found = [data.images for data in read if data is not None]
    assert torch.equal(torch.cat(found), torch.stack(raw))  # as predict is shown them
    alone = labelled_images([str(tmp_path)], [("part", parts[0].manifest)], "--data", shared=True)[0]
    assert alone is not None
    assert torch.equal(alone.images, torch.stack([sized(one, boxed) for one in raw[:2]]))
    Image.fromarray(pixels[0][:, :9]).save(tmp_path / "e" / "1.png")  # no longer one size
    with refused("data-not-batchable", "6x20", "6x9"):
        labelled_images([str(tmp_path)], [("whole", whole.manifest)], "--data", shared=True)
    with refused("data-not-batchable", repr(parts[0].manifest.source.name)):
        check_seen_by_all(whole.manifest.parts)
    check_seen_by_all([parts[0].manifest] * 2)
