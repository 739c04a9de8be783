"""Contributions of positions, and routes of single images, against independent computations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.relevance._explain import position_map, route
from brickyard.testing import chain

GENERATOR = torch.Generator().manual_seed(3)


class Residual(nn.Module):
    """Ends in an average over positions and a linear layer, after a shortcut and a bare tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.shift = nn.Parameter(torch.randn(6, 1, 1, generator=GENERATOR))
        self.linear = nn.Linear(6, 4)

    def features(self, x):
        x = F.relu(self.conv1(x))
        return F.relu(self.conv2(x) + x + self.shift)

    def forward(self, x):
        return self.linear(self.features(x).mean((2, 3)))


class Deep(nn.Module):
    """Ends in a map that is too coarse to be shown, and several layers that are not linear together."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(2), nn.ReLU())  # 8 -> 4
        self.rest = nn.Sequential(
            nn.Conv2d(5, 6, 2, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 7),
            nn.ReLU(),
            nn.Linear(7, 3),
        )  # 4 -> 3

    def forward(self, x):
        return self.rest(self.first(x))


def seeded(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind().eval()


def test_behind_an_average_and_a_linear_layer_positions_sum_to_the_logit_less_its_bias() -> None:
    net, x = seeded(Residual), torch.rand(1, 3, 10, 9, generator=GENERATOR)
    found = {k: position_map(trace(net, x).network, x, lambda logits, k=k: logits[:, k]) for k in (0, 2)}
    with torch.no_grad():
        maps, logits = net.features(x), net(x)
    for k, values in found.items():
        expected = torch.einsum("c,chw->hw", net.linear.weight[k].detach(), maps[0]) / 90
        torch.testing.assert_close(values.float(), expected, atol=1e-5, rtol=1e-4)
        assert float(values.sum()) == pytest.approx(float(logits[0, k]) - net.linear.bias[k].item(), abs=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-3)  # the control: another output, another map


def test_elsewhere_a_position_counts_for_what_the_score_is_without_it() -> None:
    net, x = seeded(Deep), torch.rand(1, 3, 8, 8, generator=GENERATOR)
    values = position_map(trace(net, x).network, x, lambda logits: logits[:, 1])
    with torch.no_grad():
        maps = net.first(x)
        expected = torch.zeros(4, 4)
        for row in range(4):
            for column in range(4):
                without = maps.clone()
                without[:, :, row, column] = 0
                expected[row, column] = net(x)[0, 1] - net.rest(without)[0, 1]
    torch.testing.assert_close(values.float(), expected, atol=1e-5, rtol=1e-4)
    assert float(expected.abs().max()) > 1e-3


def test_a_network_without_positions_has_no_map() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.rand(1, 3, 4, 4)
    assert position_map(trace(net, x).network, x, lambda logits: logits[:, 0]) is None


def test_the_route_of_an_image_is_what_locating_finds_from_it_alone() -> None:
    net, image = chain(), torch.rand(1, 3, 8, 8, generator=GENERATOR)
    found = {k: route(trace(net, image), image, k) for k in (0, 2)}
    for k, own in found.items():
        relevance = by.locate(net, (image, torch.tensor([k])), task=[str(k)])
        for name in ("input_1", "conv1", "conv2"):
            assert torch.equal(own[name], relevance.relevant(name)[k])
        assert own["linear"].tolist() == [place == k for place in range(4)]
    assert not torch.equal(found[0]["conv2"], found[2]["conv2"])  # the control: another output
