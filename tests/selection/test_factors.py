"""Layers as pairs of factors: exact at full rank, the best for the data at any, and an axis like any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.healing._places import Shown
from brickyard.selection import _factors
from brickyard.selection._damage import by_damage
from brickyard.selection._factors import factored
from brickyard.surgery._cost import CostModel, keep_mask
from brickyard.surgery._join import cut
from brickyard.surgery._pairs import carried, middle, paired, paying, plain_name, with_pairs
from brickyard.surgery._verify import zeroed_output
from brickyard.testing import Branches, Residual, randomised
from brickyard.yard import Yard
from errors import refused

IMAGES = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SHOWN = Shown([IMAGES[:15], IMAGES[15:30]], [IMAGES[30:]])


@pytest.fixture(autouse=True)
def layers_without_a_kernel_may_be_narrow(monkeypatch) -> None:
    monkeypatch.setattr(_factors, "NARROWEST_FLAT", 8)


def mixed(inputs: int, outputs: int, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1, **options})


def stack(*layers: nn.Module, width: int = 12) -> nn.Sequential:
    stem = nn.Conv2d(3, width, 3, padding=1), nn.ReLU()
    return randomised(nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4)).double())


CONVOLUTIONS = {
    "padded": mixed(12, 10),
    "valid": mixed(12, 10, padding=0),
    "uneven": mixed(12, 10, kernel_size=(2, 3), padding=(1, 0)),
    "dilated": mixed(12, 10, dilation=(2, 1), padding=(2, 1)),
    "reflected": mixed(12, 10, padding_mode="reflect"),
    "circular": mixed(12, 10, padding_mode="circular"),
    "without bias": mixed(12, 10, bias=False),
    "five by five": mixed(12, 10, kernel_size=5, padding=2),
    "pointwise": mixed(12, 10, kernel_size=1, padding=0),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_pair_of_full_rank_is_the_layer(name, monkeypatch) -> None:
    monkeypatch.setattr(_factors, "LOST", 1.0)
    monkeypatch.setattr(_factors, "LOST_FLAT", 1.0)
    model = stack(CONVOLUTIONS[name], nn.ReLU())
    graph = trace(model, IMAGES[:2])
    made = factored(graph, {}, SHOWN)
    assert set(made.pairs) == {"2"}
    with torch.no_grad():
        whole, found = model(IMAGES), made.graph.network(IMAGES)
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)
        less = cut(made.graph, {middle("2"): torch.arange(made.pairs["2"].rank - 1)})(IMAGES)
    assert float((less - whole).abs().max()) > 1e-8  # the control: every channel of the middle counts


@pytest.mark.parametrize(
    "layer",
    [mixed(12, 10, stride=2), mixed(12, 12, groups=12), mixed(12, 10, kernel_size=(3, 1), padding=0), mixed(12, 4)],
    ids=["strided", "depthwise", "tall", "narrow"],
)
def test_other_layers_stay_as_they_are(layer) -> None:
    follow = () if layer.out_channels == 10 else (nn.Conv2d(layer.out_channels, 10, 3, stride=2),)
    graph = trace(stack(layer, *follow), IMAGES[:2])
    assert factored(graph, {}, SHOWN).pairs == {}


def test_a_layer_that_runs_twice_stays_as_it_is() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.linear = nn.Conv2d(3, 8, 3), mixed(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.relu(self.conv(torch.relu(self.conv(self.stem(x))))).mean((2, 3)))

    graph = trace(randomised(Twice().double()), IMAGES[:2])
    assert factored(graph, {}, SHOWN).pairs == {}


def test_no_pair_of_a_rank_loses_less_on_these_images() -> None:
    """Against gradient descent from the pair, and against the best pair for the weights alone."""
    layer = mixed(8, 8, padding=0, bias=False).double()
    torch.manual_seed(1)
    with torch.no_grad():
        layer.weight.normal_()
    x = torch.nn.functional.avg_pool2d(torch.rand(60, 8, 10, 10, dtype=torch.float64), 3, 1)  # neighbours are alike
    strips = x.unfold(2, 3, 1).permute(0, 2, 3, 1, 4).reshape(-1, 24)  # (positions, inputs * rows)
    moments = strips.T @ strips / len(strips)
    found = _factors._factors(layer, moments, torch.ones(8, dtype=torch.float64))
    matrix = layer.weight.detach().permute(0, 3, 1, 2).reshape(24, 24)

    def lost(product: Tensor) -> float:
        missing = matrix - product
        return float(torch.trace(missing @ moments @ missing.T))

    rank = 10
    first, second = found.first[:rank], found.second[:, :rank]
    best = lost(second @ first)
    assert best == pytest.approx(float(found.energy[rank:].sum()), rel=1e-3)
    left, values, right = torch.linalg.svd(matrix)
    assert best < 0.7 * lost(left[:, :rank] * values[:rank] @ right[:rank])
    one, two = (value.clone(memory_format=torch.contiguous_format).requires_grad_() for value in (first, second))
    descent = torch.optim.LBFGS([one, two], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        descent.zero_grad()
        missing = matrix - two @ one
        loss = torch.trace(missing @ moments @ missing.T)
        loss.backward()
        return loss

    descent.step(closure)
    assert lost((two @ one).detach()) > 0.999 * best


def wide() -> nn.Module:
    return Residual(width=24, inner=20).double()


def test_the_middle_is_an_axis_that_is_cut_exactly() -> None:
    graph = trace(wide(), IMAGES[:2])
    made = factored(graph, {}, SHOWN)
    assert {"conv1", "conv2"} <= set(made.pairs)
    generator = torch.Generator().manual_seed(3)
    keep = {
        axis.name: torch.randperm(axis.size, generator=generator)[: axis.size // 2].sort().values
        for axis in made.graph.free
    }
    network = cut(made.graph, keep)
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), zeroed_output(made.graph, keep, IMAGES), rtol=1e-9, atol=1e-9)
        with FlopCounterMode(display=False) as counter:
            network(IMAGES[:1])
    assert CostModel(made.graph)(keep_mask(made.graph, keep)).flops == counter.get_total_flops()


def test_pairs_that_save_nothing_become_layers_again() -> None:
    graph = trace(wide(), IMAGES[:2])
    made = factored(graph, {}, SHOWN)
    everything = made.graph.everything()
    assert paying(graph, made.graph, everything, made.pairs, "flops") == {}  # at full rank, none does
    few = {**everything, middle("conv1"): torch.arange(3)}
    useful = paying(graph, made.graph, few, made.pairs, "flops")
    assert set(useful) == {"conv1"}
    after = with_pairs(graph, useful)
    kept = {axis.name: torch.arange(0, axis.size, 2) for axis in made.graph.free} | {middle("conv1"): torch.arange(3)}
    moved = carried(kept, made.graph, after, [name for name in made.pairs if name not in useful])
    assert {plain_name(name) for name in moved} == {plain_name(name) for name in kept} - {
        middle(name) for name in made.pairs if name not in useful
    }
    for axis in after.free:
        size = 3 if axis.name == middle("conv1") else len(range(0, axis.size, 2))
        assert len(moved[axis.name]) == size


def test_a_budget_with_factors_is_met_and_finds_the_rank_of_a_layer() -> None:
    torch.manual_seed(0)
    columns, rows = torch.randn(6, 16, 3), torch.randn(10, 6, 3)  # six ways in, which no choice of channels shows
    model = stack(mixed(12, 16), nn.ReLU(), mixed(16, 10), nn.ReLU())
    with torch.no_grad():
        model[4].weight.copy_(torch.einsum("rpi,qrj->qpij", columns, rows) / 10)
    graph = trace(model, IMAGES[:2])
    for factors in (True, False):
        found = by_damage(graph, SHOWN, [0, 1, 3], by.Budget(flops=0.5, factors=factors))
        assert bool(found.pairs) == factors
        cost = CostModel(found.graph)(keep_mask(found.graph, found.keep)).flops
        assert 0.9 * 0.5 <= cost / CostModel(graph).whole.flops <= 0.5
        if factors:
            assert len(found.keep[middle("4")]) <= 8
            assert len(found.keep[middle("2")]) > 8  # the control: the other layer is not like that


def component(task=(0, 3), model=None, heal="refit", **options) -> by.Component:
    model = randomised(Residual(width=24, inner=20)) if model is None else model
    relevance = by.locate(model, (IMAGES.float(), torch.arange(40) % 4))
    return by.disassemble(model, relevance, task=list(task), budget=by.Budget(flops=0.5, **options), heal=heal)


def test_a_component_with_pairs_is_saved_loaded_fused_and_joined(tmp_path) -> None:
    part = component()
    pairs = part.manifest.selection.budget["factors"]
    middles = [name for name in part.manifest.axes if name.endswith(".factor1")]
    assert pairs == len(middles) > 0
    assert part.manifest.selection.flops <= 0.5 * part.manifest.source.flops
    assert part.manifest.source.flops == CostModel(trace(Residual(width=24, inner=20), IMAGES[:2].float())).whole.flops
    x = IMAGES.float()
    again = by.load(part.save(tmp_path / "part.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(x), part(x))
        torch.testing.assert_close(part.fused()(x), part(x), rtol=1e-4, atol=1e-5)
        both = by.assemble([part, component(task=(1, 2))], scaling="none")
        torch.testing.assert_close(both(x)[:, :2], part(x), rtol=1e-4, atol=1e-5)
        same = by.assemble([part, again], form="padded", on_duplicate="rename", scaling="none")
        torch.testing.assert_close(same(x)[:, :2], part(x), rtol=1e-4, atol=1e-5)


def test_factors_can_be_forbidden_and_need_damage() -> None:
    part = component(factors=False)
    assert not any(".factor" in name for name in part.network.layer_names)
    assert "factors" not in part.manifest.selection.budget
    model = Residual(width=24, inner=20)
    relevance = by.locate(model, (IMAGES.float(), torch.arange(40) % 4))
    with refused("option-conflict", "factors=True"):
        by.disassemble(model, relevance, task=[0], budget=by.Budget(flops=0.5, factors=True), select="mda")


@pytest.mark.parametrize("form", ["padded", "grouped", "union"])
def test_parts_with_other_pairs_are_laid_side_by_side_without_them(form) -> None:
    model = randomised(Residual(width=24, inner=20))
    first = component(model=model, heal="none")
    second = component((1, 2), model, factors=False, heal="none")
    options = {"source": model} if form == "union" else {}
    joined = by.assemble([first, second], form=form, scaling="none", **options)
    x = IMAGES.float()
    with torch.no_grad():
        if form != "union":  # which has channels of both
            torch.testing.assert_close(joined(x), by.assemble([first, second], scaling="none")(x), rtol=1e-4, atol=1e-5)
    assert any("multiplied out" in note for note in joined.manifest.notes)
    same = by.assemble([first, first], form="padded", on_duplicate="rename")
    assert not any("multiplied out" in note for note in same.manifest.notes)


def test_features_of_a_source_are_matched_to_a_component_with_pairs() -> None:
    from brickyard.training._distillation import SourceTeacher

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    randomised(model)
    part = component(model=model)
    assert any(name.startswith("2.factor") for name in part.network.layer_names)
    axis = next(axis for name, axis in part.manifest.axes.items() if plain_name(name) == "2")
    assert len(axis.kept) < axis.size
    teacher = SourceTeacher(model, part, features=True)
    assert teacher.kept.tolist() == list(axis.kept)
    logits, features = teacher(IMAGES.float())
    goal = model[:6](IMAGES.float())[:, list(axis.kept)]
    torch.testing.assert_close(features, goal, rtol=1e-5, atol=1e-6)
    assert logits.shape == (40, 2)


def test_damage_is_measured_on_images_that_no_equation_has_seen() -> None:
    """Few images can be fitted from almost nothing: on these the last axis looks free, on others it does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)).double()
    graph = trace(randomised(model), IMAGES[:2])
    keep = {graph.output.name: torch.arange(4)}
    from brickyard.selection._curves import damage_curves

    few = [IMAGES[:8]]
    unseen, seen = (damage_curves(graph, Shown(few, held), keep)["0"].damage for held in ([IMAGES[8:]], []))
    assert unseen[16] > 10 * seen[16]
    assert np.isclose(unseen[64], 0)


def test_branches_keep_their_layout_with_pairs() -> None:
    model = Branches(widths=(20, 16, 12)).double()
    graph = trace(model, IMAGES[:2])
    made = factored(graph, {}, SHOWN)
    assert "right" in made.pairs
    with torch.no_grad():
        torch.testing.assert_close(made.graph.network(IMAGES), model(IMAGES), rtol=1e-10, atol=1e-10)


def test_a_classifier_of_which_some_outputs_stay_becomes_a_pair_of_all(monkeypatch) -> None:
    """Eight classes or more make a layer wide enough; the task has not all of the source's, and in another order."""
    monkeypatch.setattr(_factors, "LOST_FLAT", 1.0)
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 12)
    model = randomised(nn.Sequential(*layers).double())
    task = [11, 3, 2, 1, 0, 9, 8, 7, 5]
    graph = trace(model, IMAGES[:2])
    made = factored(graph, {graph.output.name: torch.tensor(task)}, SHOWN)
    assert "4" in made.pairs
    whole = {**made.graph.everything(), made.graph.output.name: torch.tensor(task)}
    with torch.no_grad():
        torch.testing.assert_close(cut(made.graph, whole)(IMAGES), model(IMAGES)[:, task], rtol=1e-9, atol=1e-9)
    relevance = by.locate(model, (IMAGES, torch.arange(40) % 12))
    part = by.disassemble(model, relevance, task=task, budget=by.Budget(parameters=0.5))
    assert part(IMAGES).shape == (40, 9)
    assert part.manifest.selection.parameters == sum(value.numel() for value in part.network.parameters())


class Unknown(nn.Module):
    """A layer that reads channels that cannot be followed, behind an operation that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.linear = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 5), nn.Linear(10, 4)
        randomised(self.double())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 8, 8) -> (batch, classes)."""
        x = torch.fft.irfft2(torch.fft.rfft2(torch.relu(self.stem(x))), s=(6, 6))
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("flops", [0.9, 0.7])
def test_a_layer_behind_an_unknown_operation_becomes_a_pair_too(flops) -> None:
    model = Unknown()
    made = factored(trace(model, IMAGES[:2]), {}, SHOWN)
    assert set(made.pairs) == {"conv"}
    relevance = by.locate(model, (IMAGES, torch.arange(40) % 4))
    part = by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(flops=flops))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        part.network(IMAGES[:1])
    assert counter.get_total_flops() == part.manifest.selection.flops <= flops * part.manifest.source.flops


class Thin(nn.Module):
    """A source whose own layers have the names that factors get; only "pair" is what the names say."""

    def __init__(self) -> None:
        super().__init__()
        column, row = nn.Conv2d(12, 6, (3, 1), padding=(1, 0), bias=False), nn.Conv2d(6, 10, (1, 3), padding=(0, 1))
        biased = nn.Conv2d(12, 6, (3, 1), padding=(1, 0))
        square, point = nn.Conv2d(10, 6, 3, padding=1, bias=False), nn.Conv2d(6, 10, 1)
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.pair = nn.ModuleDict({"factor1": column, "factor2": row})
        self.curved = nn.ModuleDict({"factor1": square, "factor2": point})
        self.alone = nn.ModuleDict({"factor1": nn.Conv2d(10, 12, 1)})
        self.biased = nn.ModuleDict({"factor1": biased, "factor2": nn.Conv2d(6, 10, (1, 3), padding=(0, 1))})
        self.wide, self.linear = nn.Conv2d(10, 32, 5, padding=2), nn.Linear(32, 4)
        randomised(self.double())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        x = torch.relu(self.stem(x))
        x = torch.relu(self.pair["factor2"](self.pair["factor1"](x)))
        x = self.curved["factor2"](torch.relu(self.curved["factor1"](x)))
        x = torch.relu(self.alone["factor1"](x))
        x = torch.relu(self.biased["factor2"](self.biased["factor1"](x)))
        return self.linear(torch.relu(self.wide(x)).mean((2, 3)))


def test_layers_of_a_source_that_are_named_like_factors_stay_what_they_are(tmp_path) -> None:
    assert paired(trace(Thin(), IMAGES[:2]).network) == ["pair"]
    model, data = Thin(), (IMAGES, torch.arange(40) % 4)
    relevance = by.locate(model, data)
    for factors in (False, None):
        budget = by.Budget(flops=0.8, factors=factors)
        parts = [
            by.disassemble(model, relevance, task=task, budget=budget, heal=heal)
            for task, heal in (([0, 1], "none"), ([2, 3], "refit"))
        ]
        if factors is None:  # the control: there is a pair that was made
            assert "alone.factor1.factor1" in parts[0].network.layer_names
            parts[1] = by.disassemble(model, relevance, task=[2, 3], budget=by.Budget(flops=0.8, factors=False))
        with torch.no_grad():
            beside = by.assemble(parts, scaling="none")(IMAGES)
            torch.testing.assert_close(by.assemble(parts, form="padded", scaling="none")(IMAGES), beside)
        if factors is False:  # no part has more than the source
            by.assemble(parts, form="union", source=model)
    yard = Yard(tmp_path / "yard", create=True)
    for number, part in enumerate(parts):
        yard.add(part.save(tmp_path / f"{number}.safetensors"))
    assert len({entry.architecture for entry in yard.entries()}) == 1
