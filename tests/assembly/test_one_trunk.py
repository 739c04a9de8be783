"""Parts of one ancestor: their leading layers become one, as far as their answers allow."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.healing._merging import Sibling, Trunk, common_ends
from brickyard.healing._places import Shown
from brickyard.testing import Residual
from errors import refused
from nets import randomised
from shell import run

NAMES = (list("abcd"), list("efgh"))
PROTOTYPES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def drawn(classes: range, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of some of eight classes, labelled from 0."""
    labels = torch.arange(count) % len(classes)
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (PROTOTYPES[labels + classes[0]] + noise).clamp(-2, 2) / 4 + 0.5, labels


DATA = tuple(drawn(range(first, first + 4), 160, first) for first in (0, 4))
FRESH = tuple(drawn(range(first, first + 4), 80, first + 1) for first in (0, 4))


def trained(model: nn.Module, data: tuple[Tensor, Tensor], steps: int, step: float) -> nn.Module:
    head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    own = {id(value) for value in head.parameters()}
    body = [value for value in model.train().parameters() if id(value) not in own]
    groups = [{"params": body}, {"params": list(head.parameters()), "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, step, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    return model.eval()


def part(model: nn.Module, turn: int) -> by.Component:
    relevance = by.locate(model, DATA[turn], classes=NAMES[turn])
    return by.disassemble(model, relevance, task=NAMES[turn], budget=by.Budget(flops=1.0), heal="none")


@pytest.fixture(scope="module")
def ancestor() -> nn.Module:
    torch.manual_seed(0)
    return trained(Residual(), DATA[0], 80, 0.02)


@pytest.fixture(scope="module")
def pair(ancestor: nn.Module) -> list[by.Component]:
    return [part(trained(copy.deepcopy(ancestor), DATA[turn], 40, 0.001), turn) for turn in (0, 1)]


def same(before: by.Component, after: by.Component, images: Tensor) -> float:
    with torch.no_grad():
        return float((before.logits(images).argmax(1) == after.logits(images).argmax(1)).double().mean())


def merge(parts, agreement: float = 0.9) -> by.Assembly:
    return by.assemble(parts, form="merged", calibration=list(DATA), agreement=agreement, scaling="none")


# -- one layer, by hand ------------------------------------------------------------------------------------


def test_a_merged_layer_solves_the_equations_of_both() -> None:
    """Ridge least squares written down once more, in float64: pulled towards the mean, a shift is free."""
    nets = [nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(180, 2)).double() for _ in range(2)]
    for seed, net in enumerate(nets):
        randomised(net, seed)
    channels = [torch.tensor([[[2.0]], [[1.0]], [[0.2]]]).double(), torch.tensor([[[0.1]], [[1.0]], [[2.0]]]).double()]

    def shown(count: int, seed: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return [own * torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=draw) for own in channels]

    images, held = shown(30, 0), shown(10, 1)
    siblings = [Sibling(trace(n, x[:2]), Shown([x], [h])) for n, x, h in zip(nets, images, held, strict=True)]
    ends = common_ends([one.graph.network for one in siblings])
    trunk = Trunk(siblings, ends[0])
    (ridge,) = trunk.report.ridges.values()
    x = torch.cat([nn.functional.unfold(own, 3).transpose(1, 2).reshape(-1, 27) for own in images])
    goals = [net[0](own).flatten(2).transpose(1, 2).reshape(-1, 5) for net, own in zip(nets, images, strict=True)]
    y = torch.cat(goals)
    mean = sum(net[0].weight.flatten(1) for net in nets) / 2
    centred, goal = x - x.mean(0), y - y.mean(0)
    gram = centred.T @ centred
    energy = gram.diagonal().sum() + len(x) * x.mean(0).square().sum()
    change = torch.linalg.solve(
        gram + ridge * energy / 27 * torch.eye(27, dtype=torch.float64), centred.T @ (goal - centred @ mean.T)
    )
    weight = mean + change.T
    bias = y.mean(0) - weight @ x.mean(0)
    for network in trunk.networks:
        layer = network.layer("0")
        torch.testing.assert_close(layer.weight.flatten(1), weight, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(layer.bias, bias, rtol=1e-8, atol=1e-9)
    error = (x @ weight.T + bias - y).square().sum()
    plain = (x @ mean.T + sum(net[0].bias for net in nets) / 2 - y).square().sum()
    assert error < 0.99 * plain  # the control: the mean alone


def test_where_networks_could_be_one() -> None:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    wider = nn.Sequential(*(copy.deepcopy(layer) for layer in first[:5]), nn.Linear(64, 3))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 2))
    twice = nn.Conv2d(3, 3, 3, padding=1)
    again = nn.Sequential(twice, nn.ReLU(), twice, nn.Flatten(), nn.Linear(192, 2))

    def ends(*models: nn.Module) -> list[int]:
        return common_ends([trace(model, torch.zeros(2, 3, 8, 8)).network for model in models])

    assert ends(first, wider) == [3, 6]  # before the second convolution, and before the linear layers
    assert ends(first, first) == [3, 6, 7]
    assert ends(first, other) == [3]
    assert ends(first, Residual()) == []
    assert ends(again, copy.deepcopy(again)) == [5, 6]  # the layer that runs twice stays on one side


# -- assemblies --------------------------------------------------------------------------------------------


def test_two_heads_on_one_backbone_merge_without_a_change(ancestor: nn.Module) -> None:
    heads = [copy.deepcopy(ancestor) for _ in range(2)]
    last = [name for name, layer in ancestor.named_modules() if isinstance(layer, nn.Linear)][-1]
    for seed, model in enumerate(heads):
        randomised(model.get_submodule(last), seed)
    parts = [part(model, turn) for turn, model in enumerate(heads)]
    whole, plain = merge(parts, 0.999), by.assemble(parts, scaling="none")
    (group,) = whole.manifest.merged.groups
    assert group.agreement == ((group.agreement[0][1],) * 2,) * 2
    images = torch.cat([data[0] for data in FRESH])
    with torch.no_grad():
        assert torch.equal(whole(images), plain(images))


def test_siblings_share_what_their_answers_allow(pair: list[by.Component], tmp_path) -> None:
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in pair]
    whole, plain = merge(pair), by.assemble(pair, scaling="none")
    (group,) = whole.manifest.merged.groups
    assert group.layers >= 2
    assert whole.manifest.shared_flops > 0.3 * pair[0].manifest.selection.flops
    assert plain.manifest.shared_flops == 0  # the control: nearly equal is not equal
    assert all(same >= 0.9 * count for same, count in group.agreement)
    made = whole.components()
    assert all(same(*both, data[0]) > 0.8 for *both, data in zip(pair, made, FRESH, strict=True))
    tied = [
        name
        for name, layer in made[0].network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
        and torch.equal(layer.weight, made[1].network.get_submodule(name).weight)
    ]
    assert len(tied) > group.layers  # batch norms too
    for one, numbers in zip(pair, before, strict=True):
        assert all(torch.equal(value, numbers[name]) for name, value in one.state_dict().items())
    again = by.load(whole.save(tmp_path / "merged.safetensors"))
    assert again.manifest == whole.manifest
    with torch.no_grad():
        assert torch.equal(again(FRESH[0][0]), whole(FRESH[0][0]))
    assert "merged       " in str(whole)


def test_a_stricter_demand_shares_no_more(pair: list[by.Component]) -> None:
    shared = [merge(pair, wanted).manifest.shared_flops for wanted in (0.5, 0.9, 0.999)]
    assert shared == sorted(shared, reverse=True)
    assert shared[0] > 0


def test_strangers_stay_side_by_side(ancestor: nn.Module) -> None:
    other = trained(randomised(Residual(), 7), DATA[1], 80, 0.02)
    parts = [part(ancestor, 0), part(other, 1)]
    whole = merge(parts, 0.999)
    assert whole.manifest.merged.groups == ()
    assert "no layer" in str(whole)
    with torch.no_grad():
        assert torch.equal(whole(FRESH[0][0]), by.assemble(parts, scaling="none")(FRESH[0][0]))


def test_what_cannot_be_merged_is_refused(pair: list[by.Component]) -> None:
    with refused("option-needs-data", "calibration="):
        by.assemble(pair, form="merged")
    with refused("option-count", "2 parts"):
        by.assemble(pair, form="merged", calibration=[DATA[0]])
    with refused("option-without-effect", "agreement="):
        by.assemble(pair, agreement=0.9)
    with refused("option-conflict", "form='merged'"):
        by.assemble(pair, form="merged", calibration=list(DATA), budget=by.Budget(flops=0.5))
    with refused("data-too-few", "part 0"):
        by.assemble(pair, form="merged", calibration=[drawn(range(4), 12, 3), DATA[1]])
    plain = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    with refused("surgery-structure-mismatch", "form='parallel'"):
        merge([pair[0], part(plain, 1)])


def test_the_command(pair: list[by.Component], tmp_path) -> None:
    files = [one.save(tmp_path / f"{turn}.safetensors") for turn, one in enumerate(pair)]
    data = [tmp_path / f"data{turn}.npz" for turn in (0, 1)]
    for path, (images, labels) in zip(data, DATA, strict=True):
        np.savez(path, images=(images * 255).to(torch.uint8).numpy(), labels=labels.numpy())
    words = [*files, "--form", "merged", "-o", tmp_path / "out.safetensors", "--json"]
    assert "--calibration" in run("assemble", *words, code=1).stderr
    given = [word for path in data for word in ("--calibration", path)]
    told = json.loads(run("assemble", *words, *given, "--agreement", "0.9").stdout)
    assert told["merged"]["wanted"] == 0.9
    assert by.load(tmp_path / "out.safetensors").manifest.shared_flops > 0
