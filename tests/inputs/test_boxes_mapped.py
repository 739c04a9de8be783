"""Boxes of a network's input and of its picture, checked by rectangles that are drawn and found again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brickyard import Preprocessing
from brickyard.inputs._preprocessing import preprocess, to_input, to_picture
from errors import refused

WAYS = {
    "as it is": Preprocessing(),
    "resize": Preprocessing(size=(60, 90)),
    "resize and crop": Preprocessing(size=(60, 90), crop=0.8),
    "crop": Preprocessing(size=(60, 90), fit="crop", crop=0.75),
    "crop without a margin": Preprocessing(size=(60, 60), fit="crop"),
    "pad": Preprocessing(size=(60, 90), fit="pad"),
    "pad in the corner": Preprocessing(size=(61, 90), fit="pad", place="corner"),
    "letterbox": Preprocessing(size=(60, 90), fit="letterbox"),
    "letterbox in the corner": Preprocessing(size=(60, 91), fit="letterbox", place="corner"),
    "letterbox, not smoothed": Preprocessing(size=(61, 90), fit="letterbox", antialias=False),
}
SIDES = [(50, 70), (51, 40), (200, 110), (100, 301), (120, 180), (60, 90)]


def edges(x: Tensor) -> Tensor:
    """Left, top, right and bottom of what is brighter than half in an image (1, 1, H, W)."""
    found = []
    for profile in (x[0, 0].amax(0), x[0, 0].amax(1)):
        bright = (profile > profile.max() / 2).nonzero().flatten()
        found.append((int(bright[0]), int(bright[-1]) + 1))
    (left, right), (top, bottom) = found
    return torch.tensor([left, top, right, bottom], dtype=torch.float64)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_a_rectangle_is_found_where_its_box_is_mapped_to(name, sides) -> None:
    how, (height, width) = WAYS[name], sides
    box = torch.tensor([0.42 * width, 0.4 * height, 0.6 * width, 0.58 * height]).round().double()
    left, top, right, bottom = box.int().tolist()
    picture = torch.zeros(1, 1, height, width, dtype=torch.float64)
    picture[..., top:bottom, left:right] = 1
    x = preprocess(picture, how)
    found, mapped = edges(x), to_input(box, sides, how)
    assert (found - mapped).abs().max() <= 1
    one_pixel = (to_picture(torch.ones(4).double(), sides, how) - to_picture(torch.zeros(4).double(), sides, how)).max()
    assert (to_picture(found, sides, how) - box).abs().max() <= one_pixel
    if how.size is not None and sides != how.size:  # the control: another way is seen to be another
        shift = to_input(box, sides, Preprocessing(size=how.size, fit="crop", crop=0.5))
        assert (found - shift).abs().max() > 2


def test_boxes_that_are_known_by_heart() -> None:
    inner = torch.tensor([[0.0, 0.0, 10.0, 20.0], [100.0, 50.0, 200.0, 100.0]], dtype=torch.float64)
    yolo = Preprocessing(size=(640, 640), fit="letterbox")
    assert torch.equal(to_input(inner, (480, 640), yolo), inner + torch.tensor([0, 80, 0, 80]))
    assert torch.equal(to_input(inner, (960, 1280), yolo), inner / 2 + torch.tensor([0, 80, 0, 80]))
    corner = yolo.model_copy(update={"place": "corner"})
    assert torch.equal(to_input(inner, (320, 240), corner), inner * 2)
    eighth = Preprocessing(size=(224, 224), fit="crop", crop=224 / 256)
    assert torch.equal(to_input(inner, (256, 512), eighth), inner - torch.tensor([144, 16, 144, 16]))
    pad = Preprocessing(size=(33, 40), fit="pad")
    assert torch.equal(to_input(inner, (30, 35), pad), inner + torch.tensor([2, 1, 2, 1]))
    assert torch.equal(to_input(inner, (66, 40), pad), inner / torch.tensor([1, 2, 1, 2]))  # too large: it is resized


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(WAYS)),
    sides=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    size=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    seed=st.integers(0, 99),
)
def test_there_and_back_is_the_same_box(name, sides, size, seed) -> None:
    how = WAYS[name] if WAYS[name].size is None else WAYS[name].model_copy(update={"size": size})
    boxes = 1000 * torch.rand(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 200
    for there, back in ((to_input, to_picture), (to_picture, to_input)):
        torch.testing.assert_close(back(there(boxes, sides, how), sides, how), boxes, rtol=1e-9, atol=1e-9)
    assert to_picture(boxes.float(), sides, how).dtype == torch.float32
    if how.fit == "letterbox":  # the whole picture is inside, and touches two sides of the input
        whole = to_input(torch.tensor([0, 0, sides[1], sides[0]]).double(), sides, how)
        assert whole.min() >= 0
        assert (whole[2:] <= torch.tensor([size[1], size[0]]) + 1e-9).all()
        lengths = whole[2:] - whole[:2]
        assert ((lengths - torch.tensor([size[1], size[0]])).abs() < 1e-9).any()


def test_boxes_that_are_refused() -> None:
    how = WAYS["letterbox"]
    for boxes, code in (
        (torch.zeros(2, 5), "data-shape"),
        (torch.tensor(1.0), "data-shape"),
        (torch.zeros(2, 4, dtype=torch.int64), "data-type"),
        ([[0.0, 0.0, 1.0, 1.0]], "data-type"),
    ):
        with refused(code):
            to_picture(boxes, (10, 10), how)
    for sides in ((0, 10), (10,), (10, -1)):
        with refused("data-shape", str(sides)):
            to_input(torch.zeros(1, 4), sides, how)
