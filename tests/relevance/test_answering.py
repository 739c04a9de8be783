"""Relevances of detectors start where they answer for a class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.relevance._answering import Answering
from brickyard.relevance._contribution import class_sums
from brickyard.testing import Detector, randomised

IMAGES = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(7)).double()
FORM = by.Boxes(classes=3, scores_at=4, boxes_at=0, coding="sides", scores="sigmoid", strides=(8, 16))


class Shared(nn.Module):
    """One head with a kernel of 3 for both grids, as RetinaNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 5, 8, 2), nn.Conv2d(6, 6, 3, 2, 1)
        self.head = nn.Conv2d(6, 7, 3, padding=1)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.stem(x))
        maps = [fine, torch.relu(self.down(fine))]
        return torch.cat([self.head(one).flatten(2) for one in maps], 2).transpose(1, 2)


def chosen_places(scores: Tensor) -> Tensor:
    return scores >= 0.5 * scores.amax(1, keepdim=True)


@pytest.mark.parametrize("k", [0, 2])
def test_last_layers_are_summed_over_the_places_that_answer(k) -> None:
    model = Shared().double()
    graph = trace(model, IMAGES[:2], boxes=FORM)
    answering = Answering(graph)
    found = class_sums(graph, IMAGES.split(4), answering=lambda images: answering(images, k))
    with torch.no_grad():
        where = chosen_places(model(IMAGES)[..., 4 + k].sigmoid())
        assert 0 < int(where.sum()) < where.numel()
        fine = torch.relu(model.stem(IMAGES))
        maps = [(fine, where[:, :16]), (torch.relu(model.down(fine)), where[:, 16:])]
        wanted = torch.zeros(7, 6).double()
        for x, mask in maps:
            columns = nn.functional.unfold(x, 3, padding=1).unflatten(1, (6, 9))  # (B, P, K, L)
            window = (columns * mask[:, None, None, :]).sum(3)
            wanted += torch.einsum("bpk,qpk->bqp", window, model.head.weight.flatten(2)).clamp(min=0).sum(0)
        everywhere = class_sums(graph, IMAGES.split(4))
    torch.testing.assert_close(found["head"].dense(), wanted, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(everywhere["head"].dense(), wanted, rtol=0.1)  # the control
    for name in ("stem", "down"):  # other layers as in the paper
        assert torch.equal(found[name].dense(), everywhere[name].dense())


def test_layers_of_a_kernel_of_one_too_and_each_grid_by_itself() -> None:
    model = Detector().double()
    graph = trace(model, IMAGES[:2], boxes=model.boxes)
    answering = Answering(graph)
    masks = answering(IMAGES, 1)
    with torch.no_grad():
        rows = model(IMAGES)
    where = chosen_places(rows[..., 6] * rows[..., 4])
    assert {len(one[0]) for one in masks.values()} == {64, 16}
    assert len(masks) == 4
    for one in masks.values():
        assert torch.equal(one, where[:, :64] if one.shape[1] == 64 else where[:, 64:])


def test_locating_uses_them() -> None:
    model = Detector()
    rows = (torch.arange(9)[:, None] % 4 == torch.arange(4)).long()
    relevance = by.locate(model, (IMAGES.float(), rows), outputs=model.boxes, keep_sums=True)
    graph = trace(model, IMAGES[:2].float(), boxes=model.boxes)
    answering, same = Answering(graph), []
    for k in range(4):
        own = IMAGES.float()[rows[:, k] == 1]
        wanted = class_sums(graph, [own], answering=lambda images, k=k: answering(images, k))
        plain = class_sums(graph, [own])
        for name in ("sure.0", "shapes.1"):
            torch.testing.assert_close(relevance.sums[name][k].double(), wanted[name].dense(), rtol=1e-5, atol=1e-6)
        same.append(torch.allclose(wanted["sure.0"].dense(), plain["sure.0"].dense()))
    assert not all(same)  # the control
