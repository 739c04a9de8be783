"""Preprocessing: types, export with any batch size, and images that are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export

import brickyard as by
from brickyard.inputs._preprocessing import check_images, preprocess
from errors import refused


class Wrapped(nn.Module):
    def __init__(self, how: by.Preprocessing) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return preprocess(images, self.how)


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_it_exports_with_any_batch_size(fit) -> None:
    how = by.Preprocessing(size=(12, 16), fit=fit, channels=3, mean=(0.5,), std=(0.2,))
    exported = export(
        Wrapped(how), (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),), dynamic_shapes=({0: Dim("batch")},)
    ).module()
    for batch in (2, 7):
        images = torch.randint(0, 256, (batch, 1, 8, 8), dtype=torch.uint8)
        torch.testing.assert_close(exported(images), preprocess(images, how), rtol=0, atol=1e-6)
        assert not torch.allclose(exported(images), preprocess(255 - images, how))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (50, 60), (31, 7), (3, 2)])
def test_without_antialiasing_it_is_torchs_own_resize(size, interpolation) -> None:
    x = torch.rand(2, 3, 31, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for antialias in (True, False):
        how = by.Preprocessing(size=size, interpolation=interpolation, antialias=antialias)
        found = preprocess(x, how)
        both = [F.interpolate(x, size, mode=interpolation, antialias=smooth) for smooth in (antialias, not antialias)]
        torch.testing.assert_close(found, both[0], rtol=0, atol=1e-12)
        assert size == (50, 60) or not torch.allclose(found, both[1], atol=1e-3)


def test_without_antialiasing_a_crop_is_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    x = torch.rand(1, 3, 60, 91, generator=torch.Generator().manual_seed(0))
    for antialias in (True, False):
        steps = transforms.Compose([transforms.Resize(50, antialias=antialias), transforms.CenterCrop(44)])
        how = by.Preprocessing(size=(44, 44), fit="crop", crop=44 / 50, antialias=antialias)
        ways = how, how.model_copy(update={"antialias": not antialias})
        torch.testing.assert_close(preprocess(x, ways[0]), steps(x), rtol=0, atol=1e-5)
        assert not torch.allclose(preprocess(x, ways[1]), steps(x), atol=1e-2)


def test_antialiasing_goes_through_files_and_exports(tmp_path) -> None:
    how = by.Preprocessing(size=(6, 5), antialias=False)
    old = by.Preprocessing.model_validate({"size": (6, 5), "fit": "resize"})  # as files of earlier versions have it
    assert old.antialias
    assert not by.Preprocessing.model_validate_json(how.model_dump_json()).antialias
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    sides = {0: Dim("batch"), 2: Dim("height", max=64), 3: Dim("width", max=64)}
    exported = export(Wrapped(how), (images,), dynamic_shapes=(sides,)).module()
    for shape in ((2, 3, 16, 16), (3, 3, 9, 31)):
        given = torch.randint(0, 256, shape, dtype=torch.uint8)
        torch.testing.assert_close(exported(given), preprocess(given, how), rtol=0, atol=1e-6)
        assert not torch.allclose(exported(given), preprocess(given, old), atol=1e-3)


def test_types() -> None:
    raw = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    how = by.Preprocessing(size=(6, 6), mean=(0.5,), std=(0.2,))
    exact = preprocess(raw.double() / 255, how)
    assert exact.dtype == torch.float64
    assert preprocess(raw, how).dtype == preprocess(raw.half() / 255, how).dtype == torch.float32
    torch.testing.assert_close(preprocess(raw.float() / 255, how).double(), exact, rtol=0, atol=1e-5)
    grey_level = 1 / 255 / 0.2  # bytes are rounded to whole ones, once a side
    torch.testing.assert_close(preprocess(raw, how).double(), exact, rtol=0, atol=1.01 * grey_level)
    assert not torch.allclose(preprocess(raw, how).double(), exact, rtol=0, atol=1e-5)
    assert not torch.allclose(preprocess(raw.double(), how), exact)  # floats are taken to be in [0, 1]


def test_a_larger_image_is_resized_where_a_smaller_one_is_padded() -> None:
    pad, resized = (by.Preprocessing(size=(8, 8), fit=fit) for fit in ("pad", "resize"))
    large, small = torch.rand(1, 3, 10, 9), torch.rand(1, 3, 5, 8)
    assert torch.equal(preprocess(large, pad), preprocess(large, resized))
    assert torch.equal(preprocess(small, pad)[:, :, 1:6], small)
    assert not torch.equal(preprocess(small, pad), preprocess(small, resized))


def test_images_that_are_refused() -> None:
    good = torch.rand(4, 3, 2, 2)
    check_images(good, "mine")
    for value in (float("nan"), float("inf")):
        bad = good.clone()
        bad[2, 1, 0, 1] = value
        with refused("data-not-finite", "mine", "2"):
            check_images(bad, "mine")
    for images in (good[0, 0], good[None, None], good[:0]):
        with refused("data-shape", "mine"):
            check_images(images, "mine")
    with refused("data-wrong-size", "2", "3"):
        preprocess(good[:, :2], by.Preprocessing(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)))
