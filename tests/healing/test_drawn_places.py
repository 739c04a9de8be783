"""Which positions equations are made of: all alike, or more of those where a detector finds something."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brickyard.axes._graph import trace
from brickyard.healing import _places
from brickyard.healing._heal import heal_network
from brickyard.healing._places import CELL, NEAR, Draws, Shown
from brickyard.network._layer_types import mixing_of
from brickyard.surgery._join import cut
from brickyard.testing import Detector, chain

IMAGES = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(6)).double()
LAYER = mixing_of(nn.Conv2d(4, 4, 1))


def near(rows: int = 8, columns: int = 8) -> torch.Tensor:
    """Three images: an object of a cell, two objects that one is surer of, and nothing."""
    found = torch.zeros(3, rows, columns)
    found[0, 2, 5] = 0.9
    found[1, 1, 1], found[1, 6, 2] = 0.8, 0.2
    return found


def test_every_position_comes_as_often_as_its_share_says_rounded_up_or_down(monkeypatch) -> None:
    monkeypatch.setattr(_places, "FEWEST", 90)
    places = Draws(1, 3, near()).places(3, (8, 8), 64, LAYER)
    assert places.shape == (3, 30)
    assert torch.equal(places, places.sort(1).values)
    counts = torch.stack([torch.bincount(row, minlength=64) for row in places]).double()
    weight = near().flatten(1).double()
    shares = (1 - NEAR) / 64 + NEAR * weight / weight.sum(1, keepdim=True)
    shares[2] = 1 / 64
    wanted = 30 * shares
    assert bool((counts >= wanted.floor() - 1e-9).all())
    assert bool((counts <= wanted.ceil() + 1e-9).all())
    assert int(counts[0, 2 * 8 + 5]) >= 19  # the control: far more than one in 64
    other = Draws(1, 4, near()).places(3, (8, 8), 64, LAYER)
    assert not torch.equal(places, other)


@pytest.mark.parametrize("sizes", [(16, 16), (4, 4), (3, 9)], ids=["finer", "coarser", "another form"])
def test_maps_fit_grids_of_any_size(sizes, monkeypatch) -> None:
    monkeypatch.setattr(_places, "FEWEST", 3 * 1000)
    every = sizes[0] * sizes[1]
    places = Draws(1, 0, near()).places(3, sizes, every, LAYER)
    rows, columns = places[0] // sizes[1], places[0] % sizes[1]
    inside = (rows * 8 // sizes[0] - 2).abs() + (columns * 8 // sizes[1] - 5).abs() <= 1
    assert float(inside.double().mean()) > NEAR - 0.05
    assert float(inside.double().mean()) < 1  # the rest is not forgotten


def test_without_a_map_or_a_grid_positions_are_alike() -> None:
    plain = Draws(1, 3).places(3, (8, 8), 64, LAYER)
    assert torch.equal(plain, torch.arange(64).expand(3, 64))
    assert torch.equal(Draws(1, 3, near()).places(3, (64,), 64, LAYER), plain)


def test_objects_lie_where_the_source_finds_them() -> None:
    model = Detector().double()
    graph = trace(model, IMAGES[:2], boxes=model.boxes)
    found = Shown([IMAGES[:8], IMAGES[8:10]], [IMAGES[10:]]).focused(graph, [1, 3]).near
    assert found[0] is not None
    assert found[1] is not None
    assert torch.stack([found[0][9], found[1][1]]).shape == (2, 32 // CELL, 32 // CELL)
    with torch.no_grad():
        rows = model(IMAGES)
    expected = torch.zeros(12, 32 // CELL, 32 // CELL)
    strides = torch.tensor([4.0] * 64 + [8.0] * 16).double()
    x = torch.cat([torch.arange(8).repeat(8), torch.arange(4).repeat(4)]).double()
    y = torch.cat([torch.arange(8).repeat_interleave(8), torch.arange(4).repeat_interleave(4)]).double()
    for image, one in enumerate(rows):
        scores = (one[:, [6, 8]] * one[:, 4:5]).amax(1)
        middle = torch.stack([(one[:, 0] + x) * strides, (one[:, 1] + y) * strides], 1)
        half = one[:, 2:4].exp() * strides.unsqueeze(1) / 2
        for place in range(len(one)):
            if scores[place] <= 0.05:
                continue
            left, top = ((middle[place] - half[place]) / CELL).clamp(min=0).floor().int().tolist()
            right, bottom = ((middle[place] + half[place]) / CELL).clamp(min=0).ceil().int().tolist()
            area = expected[image, top:bottom, left:right]
            expected[image, top:bottom, left:right] = area.clamp(min=float(scores[place]))
    torch.testing.assert_close(torch.cat([found[0], found[1]]), expected, rtol=1e-6, atol=1e-6)
    assert 0 < float((expected > 0).double().mean()) < 1


def test_a_classifier_has_no_objects() -> None:
    graph = trace(chain(), IMAGES[:2].float())
    assert Shown([IMAGES.float()]).focused(graph, [0]).near == (None, None)


def test_positions_near_objects_lower_the_error_there(monkeypatch) -> None:
    monkeypatch.setattr(_places, "FEWEST", 400)
    model = Detector(width=12).double()
    graph = trace(model, IMAGES[:2], boxes=model.boxes)
    keep = {**graph.everything(), "stem": torch.arange(5)}
    where = torch.zeros(12, 8, 8)
    where[:, 2:4, 2:4] = 1
    errors = {}
    for name, shown in {"near": Shown([IMAGES], near=(where, None)), "alike": Shown([IMAGES])}.items():
        network = cut(graph, keep)
        heal_network(graph, keep, network, shown, "refit", 1e-6, per_input=1)
        with torch.no_grad():
            moved = (network(IMAGES) - graph.network(IMAGES))[:, :, :64].unflatten(2, (8, 8)).square()
        errors[name] = float(moved[:, :, 2:4, 2:4].mean()), float(moved.mean())
    assert errors["near"][0] < errors["alike"][0]
    assert errors["near"][1] > errors["alike"][1]  # the control: elsewhere it costs
