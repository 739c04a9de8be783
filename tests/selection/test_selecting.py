"""What a budget keeps: elimination against brute force, and budgets by measured damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.healing._heal import heal_network
from brickyard.healing._places import Shown
from brickyard.selection._curves import LEVELS, RIDGE, damage_curves, sensitivity
from brickyard.selection._damage import by_damage
from brickyard.selection._importance import CRITERIA, Evidence
from brickyard.surgery._cost import CostModel, keep_mask
from brickyard.surgery._join import cut
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised
from errors import refused

IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def two_layers(width: int = 8) -> nn.Sequential:
    layers = nn.Sequential(nn.Conv2d(3, width, 8), nn.Flatten(), nn.SiLU(), nn.Linear(width, 3))
    return randomised(layers.double())


def curves_for(graph, outputs, batches=(IMAGES,)):
    return damage_curves(graph, Shown(batches), {graph.output.name: torch.tensor(outputs)})


def brute_force(x: Tensor, weight: Tensor, outputs: Tensor) -> tuple[list[int], dict[int, float]]:
    """Backward elimination with a regression from scratch for every candidate: the order, and the logits' error.

    Candidates are compared by the error of each output times its weight in `outputs`.
    """
    centred = x - x.mean(0)
    gram = (centred.T @ centred).numpy()
    gram += RIDGE * np.mean(np.diag(gram)) * np.eye(len(gram))
    target = weight.numpy()
    logits = (centred @ weight.T).numpy()
    logits -= logits.mean(1, keepdims=True)
    alive, gone, errors = list(range(x.shape[1])), [], {}

    def best(kept: list[int]) -> tuple[float, np.ndarray]:
        changed = np.zeros_like(target)
        changed[:, kept] = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ target.T).T
        lost = target - changed
        return float(np.diag(lost @ gram @ lost.T) @ outputs.numpy()), changed

    while len(alive) > 1:
        costs = [best([c for c in alive if c != channel])[0] for channel in alive]
        gone.append(alive.pop(int(np.argmin(costs))))
        moved = centred.numpy() @ (target - best(alive)[1]).T
        moved -= moved.mean(1, keepdims=True)
        errors[len(alive)] = float((moved**2).sum())
    return [*gone, *alive][::-1], errors


def test_elimination_is_backward_selection_by_regression() -> None:
    model = two_layers()
    graph = trace(model, IMAGES)
    curve = curves_for(graph, [0, 1, 2], [IMAGES[:10], IMAGES[10:]])["0"]
    (node,) = (node for node in graph.network.nodes if node.target == "3")
    weights = sensitivity(graph.network, [node], graph, Shown([IMAGES]))["3"]
    order, errors = brute_force(model[:3](IMAGES).detach(), model[3].weight.detach(), weights)
    logits = model(IMAGES)
    energy = (logits - logits.mean(1, keepdim=True)).square().sum().item()
    assert curve.order.tolist() == order
    marks = {round(level * 8) for level in LEVELS} - {8}
    for kept in marks:
        assert curve.damage[kept] == pytest.approx(errors[kept] / energy, rel=1e-6)
    assert curve.damage[8] == 0
    assert curve.damage[1] > 10 * curve.damage[7] > 0


class Shortcut(nn.Module):
    """A shortcut that a sum overwrites, or does not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 3)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        shortcut = torch.tanh(self.stem(x))
        y = self.outer(torch.tanh(self.inner(shortcut)))
        if self.in_place:
            shortcut += y
        else:
            shortcut = shortcut + y
        return self.linear(torch.tanh(shortcut).mean((2, 3)))


def test_damage_is_the_same_where_a_step_overwrites_a_value() -> None:
    curves = [
        curves_for(trace(randomised(Shortcut(in_place).double()), IMAGES), [0, 1, 2]) for in_place in (True, False)
    ]
    assert curves[0].keys() == curves[1].keys()
    for name in curves[0]:
        assert np.array_equal(curves[0][name].order, curves[1][name].order)
        np.testing.assert_allclose(curves[0][name].damage, curves[1][name].damage, rtol=1e-9, atol=1e-15)
        assert curves[0][name].damage[0] > 1e-4


def test_damage_to_one_class_does_not_depend_on_batches() -> None:
    """What all images share is no matter for one class; nor is it what the images of one batch share."""
    curves = [curves_for(trace(chain().double(), IMAGES), [2], IMAGES.split(size)) for size in (24, 5, 1)]
    for name, curve in curves[0].items():
        assert curve.damage[0] > 1e-4
        for other in curves[1:]:
            assert np.array_equal(curve.order, other[name].order)
            np.testing.assert_allclose(curve.damage, other[name].damage, rtol=1e-6, atol=1e-12)


def test_a_channel_that_says_what_another_says_goes_first_and_costs_nothing() -> None:
    model = two_layers()
    with torch.no_grad():
        model[0].weight[6], model[0].bias[6] = model[0].weight[2], model[0].bias[2]
    curve = curves_for(trace(model, IMAGES), [0, 1])["0"]
    assert curve.order[-1] in (2, 6)
    control = curves_for(trace(two_layers(), IMAGES), [0, 1])["0"]
    assert control.damage[7] > 10 * curve.damage[7]


@pytest.mark.parametrize("make", [chain, Residual, Branches, SqueezeExcite])
def test_measuring_leaves_the_source_alone_and_is_reproducible(make) -> None:
    model = make().double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = trace(model, IMAGES)
    first, second = (curves_for(graph, [0, 2]) for _ in range(2))
    assert set(first) == {axis.name for axis in graph.free if axis.size > 1}
    for name, curve in first.items():
        assert np.array_equal(curve.order, second[name].order)
        assert np.array_equal(curve.damage, second[name].damage)
        assert sorted(curve.order) == list(range(graph.axis(name).size))
        assert (np.diff(curve.damage) <= 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [chain, Residual, Branches])
@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_a_budget_by_damage_is_met_from_below_and_hurts_less_than_chance(make, resource) -> None:
    wide = {chain: {"widths": (24, 32)}, Residual: {"width": 24, "inner": 20}, Branches: {"widths": (20, 16, 12)}}
    model = make(**wide[make]).double()
    graph = trace(model, IMAGES)
    budget = by.Budget(**{resource: 0.5}, factors=False)
    outputs = [0, 2, 3]
    keep = by_damage(graph, Shown([IMAGES]), outputs, budget, 1e-3).keep
    cost, whole = (getattr(CostModel(graph)(keep_mask(graph, k)), resource) for k in (keep, {}))
    assert 0.95 * 0.5 <= cost / whole <= 0.5

    def error(kept: dict[str, Tensor]) -> float:
        network = cut(graph, kept)
        heal_network(graph, kept, network, Shown([IMAGES]), "refit", 1e-3)
        return (network(IMAGES) - model(IMAGES)[:, outputs]).square().sum().item()

    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(5):
        chance = {
            name: torch.randperm(graph.axis(name).size, generator=generator)[: len(kept)].sort().values
            for name, kept in keep.items()
        }
        drawn.append(error({**chance, graph.output.name: keep[graph.output.name]}))
    assert error(keep) < min(drawn)


@pytest.mark.parametrize("select", ["mda", "damage", "l1"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_axes_that_are_cut_keep_a_multiple(select, allocation) -> None:
    model = Residual(width=24, inner=20)
    relevance = by.locate(model, (IMAGES.float(), torch.arange(24) % 4))
    for round_to in (8, 1):
        budget = by.Budget(flops=0.5, allocation=allocation, round_to=round_to)
        manifest = by.disassemble(model, relevance, task=[0, 3], budget=budget, select=select, heal="none").manifest
        assert 0.3 <= manifest.selection.flops / manifest.source.flops <= 0.5
        kept = [(len(axis.kept), axis.size) for axis in manifest.axes.values() if not axis.pinned]
        assert any(count < size for count, size in kept)
        fits = [count == size or count % 8 == 0 for count, size in kept]
        assert all(fits) if round_to == 8 else not all(fits)
        assert manifest.selection.budget.get("round_to", 1) == round_to
    with refused("option-budget-too-small", "0.05"):
        by.disassemble(model, relevance, task=[0, 3], budget=by.Budget(flops=0.05, round_to=8), select=select)


@pytest.mark.parametrize("select", ["damage", "l1", "fpgm", "hrank", "activation", "taylor", "random"])
def test_every_choice_makes_a_component_that_says_how_it_was_chosen(select) -> None:
    model = Residual(width=24, inner=20)
    data = IMAGES.float(), torch.arange(24) % 4
    relevance = by.locate(model, data)
    budget = by.Budget(flops=0.5)
    component = by.disassemble(model, relevance, task=[0, 3], budget=budget, select=select)
    again = by.disassemble(model, relevance, task=[0, 3], budget=budget, select=select)
    assert component.manifest == again.manifest
    assert component.manifest.selection.budget["select"] == select
    assert component.manifest.selection.flops <= 0.5 * component.manifest.source.flops
    other = by.disassemble(model, relevance, task=[0, 3], budget=budget, select="mda").manifest
    assert other.selection.budget["select"] == "mda"
    assert other.axes != component.manifest.axes


def test_controls_are_what_their_names_say() -> None:
    model = two_layers()
    graph = trace(model, IMAGES)
    start = graph.axis("0").channels
    x = model[:3](IMAGES)
    evidence = Evidence(graph, [IMAGES], [0, 1, 2])
    controls = [criterion for name, criterion in CRITERIA.items() if name not in ("mda", "damage")]
    scores = {one.name: one.call(evidence)[start].numpy() for one in controls}
    np.testing.assert_allclose(scores["l1"], model[0].weight.detach().abs().sum((1, 2, 3)))
    np.testing.assert_allclose(scores["activation"], x.detach().abs().sum(0))
    x = x.detach().requires_grad_()
    logits = model[3](x)
    nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    np.testing.assert_allclose(scores["taylor"], (x * x.grad).abs().sum(0).detach(), rtol=1e-9)
    assert len(set(scores["random"].tolist())) == 8
    filters = model[0].weight.detach().flatten(1).double().numpy()
    apart = np.linalg.norm(filters[:, None] - filters[None], axis=2).sum(1)
    np.testing.assert_allclose(scores["fpgm"], apart, rtol=1e-9)
    np.testing.assert_allclose(scores["hrank"], (x != 0).sum(0))


def test_ranks_are_those_of_the_maps_that_are_read() -> None:
    model = randomised(Residual(), 0).double()
    graph = trace(model, IMAGES)
    found = CRITERIA["hrank"].call(Evidence(graph, [IMAGES], [0, 1, 2]))
    read: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: read.__setitem__(name, args[0].detach()))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    model.eval()(IMAGES)
    for hook in hooks:
        hook.remove()
    wanted = np.zeros(graph.channels)
    for name, x in read.items():
        reads = graph.at(name, "in")
        maps = x.numpy() if x.ndim == 4 else x.numpy()[:, :, None, None]
        np.add.at(wanted, reads, np.linalg.matrix_rank(maps.astype(np.float32)).sum(0))
    np.testing.assert_allclose(found.numpy(), wanted)
    assert len(np.unique(wanted)) > 3


def test_a_choice_without_images_is_refused(tmp_path) -> None:
    model = chain()
    relevance = by.locate(model, (IMAGES.float(), torch.arange(24) % 4))
    remembers_nothing = by.load(relevance.save(tmp_path / "relevance.safetensors"))
    with refused("option-needs-data", "select='damage'"):
        by.disassemble(model, remembers_nothing, task=[0], budget=by.Budget(flops=0.5), select="damage")


class Sum(nn.Module):
    """Two linear ways from the image, summed: one through a bottleneck that will be cut."""

    def __init__(self, bottleneck_first: bool) -> None:
        super().__init__()
        self.first = bottleneck_first
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.first else x + 0  # the same; only the order of the two ways differs
        if self.first:
            shortcut = self.b(self.a(x))
            y = self.c(x) + shortcut
        else:
            main = self.c(x)
            y = self.b(self.a(x)) + main
        return self.linear(torch.tanh(y).mean((2, 3)))


def test_a_layer_makes_up_for_the_shortcut_that_it_is_added_to() -> None:
    errors = []
    for bottleneck_first in (True, False):
        model = randomised(Sum(bottleneck_first).double())
        graph = trace(model, IMAGES)
        keep = {"a": torch.tensor([1])}
        network = cut(graph, keep)
        heal_network(graph, keep, network, Shown([IMAGES]), "refit", 1e-9)
        errors.append(((network(IMAGES) - model(IMAGES)).abs().max() / model(IMAGES).abs().max()).item())
    assert errors[0] < 1e-6  # c reads the image, and can give what the bottleneck lost
    assert errors[1] > 1e-3  # the control: c came first, when nothing was off yet


class Unusual(nn.Module):
    """Axes whose only readers have groups that are cut alike, run twice, or read flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.grouped = nn.Conv2d(6, 8, 1, groups=2)
        self.twice = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(torch.tanh(self.stem(x))))
        return self.linear(torch.tanh(self.twice(torch.tanh(self.twice(x)))).flatten(1))


def test_axes_with_unusual_readers_are_not_thought_to_be_free_of_cost() -> None:
    model = randomised(Unusual().double())
    graph = trace(model, IMAGES)
    curves = curves_for(graph, [0, 1, 2, 3])
    assert {name: len(curve.order) for name, curve in curves.items()} == {"stem": 3, "grouped": 4}
    for curve in curves.values():
        assert curve.damage[1] > 1e-3
        assert curve.damage[-1] == 0


def test_groups_that_become_few_on_the_way_to_a_budget_are_still_cut_whole() -> None:
    layers = [nn.Conv2d(3, 12, 1), nn.SiLU(), nn.Conv2d(12, 12, 3, groups=4), nn.SiLU(), nn.Conv2d(12, 8, 1)]
    model = randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double())
    graph = trace(model, IMAGES)
    assert graph.axis("0").size == 4  # one channel a group; with two left, a network of its own would be cut otherwise
    keep = by_damage(graph, Shown([IMAGES]), [0, 1], by.Budget(flops=0.4), 1e-3).keep
    assert 0 < len(keep["0"]) <= 2
    cost, whole = (CostModel(graph)(keep_mask(graph, k)).flops for k in (keep, {}))
    assert cost <= 0.4 * whole


class Halves(nn.Module):
    """Overwrites one of two views, which torch cannot differentiate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.linear = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, classes)."""
        left, right = self.stem(x).chunk(2, 1)
        torch.relu_(left)
        return self.linear(torch.relu(self.conv(torch.cat([left, right], 1))).mean((2, 3)))


@pytest.mark.parametrize("options", [{"select": "damage"}, {"select": "taylor"}, {"select": "l1", "heal": "distil"}])
def test_a_network_without_gradients_is_refused_where_they_are_needed(options) -> None:
    model, data = Halves(), (IMAGES.float(), torch.arange(24) % 4)
    relevance = by.locate(model, data)
    with refused("surgery-no-gradients", "overwrites", "select='mda'" if "heal" not in options else "heal='refit'"):
        by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(flops=0.5), **options)
    by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(flops=0.5), select="mda")  # the control


class Constant(nn.Module):
    """A layer in the middle reads the same number everywhere, but for rounding."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3), nn.Conv2d(10, 8, 1)
        self.linear, self.level = nn.Linear(8, 4), level
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 3, 8, 8) to logits (batch, 4)."""
        y = self.first(x) * 1e-12 + self.level
        result: Tensor = self.linear(self.third(self.second(y)).mean((2, 3)))
        return result


@pytest.mark.parametrize("level", [0.0, 0.4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_that_reads_a_constant_is_cut_like_others(level: float, dtype: torch.dtype) -> None:
    model = Constant(level).to(dtype)
    data = torch.rand(40, 3, 8, 8, dtype=dtype), torch.arange(40) % 4
    relevance = by.locate(model, data)
    part = by.disassemble(model, relevance, task=["0", "1"], images=data, budget=by.Budget(flops=0.5))
    assert part.manifest.selection.flops < 0.5 * part.manifest.source.flops
    with torch.no_grad():
        wanted = model(data[0])[:, :2]
        assert (part(data[0]) - wanted).abs().max() < 1e-3 * wanted.abs().max()  # constants are answered from biases
