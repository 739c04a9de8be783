"""Choosing channels, cutting a component out, and healing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.healing import _heal as healing
from brickyard.healing import _streams
from brickyard.healing._heal import heal_network
from brickyard.healing._more_images import copies_needed
from brickyard.healing._places import Shown
from brickyard.inputs._augment import with_copies
from brickyard.network._identity import fingerprint
from brickyard.runtime._profiling import count_flops, count_parameters
from brickyard.surgery._cost import CostModel, keep_mask
from brickyard.surgery._join import cut
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, randomised, zeroed_output
from errors import refused
from nets import Drawn, images, keep_sets, plans, relative

NETS = [chain, Residual, Branches, SqueezeExcite]
DATA = (torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4)


def wide(make):
    return {
        chain: lambda: chain(widths=(24, 32)),
        Residual: lambda: Residual(width=24, inner=16),
        Branches: lambda: Branches(widths=(16, 14, 10)),
        SqueezeExcite: lambda: SqueezeExcite(width=32, squeezed=16),
    }[make]()


# -- cost and budgets ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_costs_are_counted_right(data) -> None:
    net = Drawn(data.draw(plans())).float()
    graph = trace(net, images().float())
    keep = data.draw(keep_sets(net.axes))
    network = cut(graph, keep)
    cost = CostModel(graph)(keep_mask(graph, keep))
    assert cost.parameters == count_parameters(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images(1).float())
    assert cost.flops == count_flops(network, graph.input_shape)
    if all(kind != "attention" for kind, *_ in net.plan.blocks):  # the counter does not see fused attention on a CPU
        assert cost.flops == counter.get_total_flops()


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("resource", ["flops", "parameters"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.35])
def test_a_budget_is_met_from_below_within_five_percent(make, resource, allocation, share) -> None:
    model = wide(make)
    relevance = by.locate(model, DATA)
    budget = by.Budget(**{resource: share}, allocation=allocation)
    for select, least in (("mda", 0.95), ("damage", 0.8)):  # channels that were cut for a pair do not come back
        options = {"budget": budget, "select": select, "heal": "none"}
        chosen = by.disassemble(model, relevance, task=["0", "2"], **options).manifest
        part, whole = (getattr(record, resource) for record in (chosen.selection, chosen.source))
        assert least * share <= part / whole <= share


def test_counting_hooks_into_no_module_of_another_thread() -> None:
    """Hooks for all modules would run in other threads too, and break `autograd.grad` there."""
    seen: list[int] = []

    class Watching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hooks = torch.nn.modules.module
            seen.append(len(hooks._global_forward_hooks) + len(hooks._global_forward_pre_hooks))
            return x

    model = nn.Sequential(Watching(), nn.Conv2d(3, 4, 3, bias=False))
    assert count_flops(model, (3, 8, 8)) == 2 * 3 * 4 * 9 * 36
    assert seen == [0]


def test_a_budget_keeps_the_most_relevant_channels() -> None:
    model = chain(widths=(24, 32))
    relevance = by.locate(model, DATA)
    kept = by.disassemble(
        model, relevance, task=[1], budget=by.Budget(parameters=0.5), select="mda", heal="none"
    ).manifest.axes
    for name in ("conv1", "conv2"):
        start, size = relevance.axes[name]
        score = relevance.scores[2, 1, start : start + size]
        inside = torch.zeros(size, dtype=torch.bool)
        inside[list(kept[name].kept)] = True
        assert inside.any()
        assert bool(inside.all()) or score[inside].min() >= score[~inside].max()
    assert sum(len(kept[name].kept) for name in ("conv1", "conv2")) < 56


@pytest.mark.parametrize("make", NETS)
def test_thresholds_keep_the_union_over_the_task(make) -> None:
    model = wide(make)
    relevance = by.locate(model, DATA)
    component = by.disassemble(model, relevance, task=["3", "1"], heal="none")
    for axis in relevance.graph(model).free:
        union = relevance.relevant(axis.name)[3] | relevance.relevant(axis.name)[1]
        if union.any():
            assert component.manifest.axes[axis.name].kept == tuple(union.nonzero().flatten().tolist())


# -- components ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
def test_a_bare_component_is_the_zeroed_source(make) -> None:
    model = wide(make).double()
    x = DATA[0].double()
    relevance = by.locate(model, (x, DATA[1]))
    for reject in (False, True):
        component = by.disassemble(model, relevance, task=["3", "1"], heal="none", reject=reject)
        keep = {name: torch.tensor(axis.kept) for name, axis in component.manifest.axes.items()}
        expected = zeroed_output(relevance.graph(model), keep, x)
        if reject:
            expected = torch.cat([expected[:, [3, 1]], expected[:, [0, 2]].logsumexp(1, keepdim=True)], 1)
        assert relative(component(x), expected) < 1e-9
        assert relative(component(x)[:, :2], model(x)[:, [3, 1]]) > 1e-9


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("heal", ["refit", "moments", "none"])
def test_the_same_call_gives_the_same_component_and_leaves_the_source_alone(make, heal) -> None:
    model = wide(make)
    model.train()
    before = fingerprint(model)
    relevance = by.locate(model, DATA)
    parts = [by.disassemble(model, relevance, task=[0, 2], heal=heal, seed=3) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(p.state_dict().values() for p in parts), strict=True))
    assert parts[0].manifest == parts[1].manifest
    assert fingerprint(model) == before
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        for p in parts[0].parameters():
            p.add_(1)
    assert fingerprint(model) == before


def test_unknown_operations_cost_size_and_never_correctness() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)
            self.norm = nn.LayerNorm([8, 6, 6])
            self.b = nn.Conv2d(8, 12, 3)
            self.c = nn.Conv2d(12, 6, 1)
            self.d = nn.Conv2d(6, 5, 1)
            self.linear = nn.Linear(5, 4)
            randomised(self)

        def forward(self, x):
            x = self.b(torch.relu(self.norm(self.a(x))))
            x = torch.logcumsumexp(self.c(x), 1)
            return self.linear(torch.tanh(self.d(x)).mean((2, 3)))

    model = Odd().double()
    data = DATA[0].double(), DATA[1]
    relevance = by.locate(model, data)
    budget = by.Budget(parameters=0.97, factors=False, rotate=False)
    component = by.disassemble(model, relevance, task=[0, 1], budget=budget, heal="none")
    reasons = " | ".join(pin.reason for pin in component.manifest.pinned)
    for name in ("LayerNorm 'norm'", "logcumsumexp"):
        assert name in reasons
        assert name in str(component)
    keep = {name: torch.tensor(axis.kept) for name, axis in component.manifest.axes.items()}
    assert len(keep["d"]) < 5
    assert relative(component(data[0]), zeroed_output(relevance.graph(model), keep, data[0])) < 1e-9
    with refused("file-unsupported-operation", "logcumsumexp"):
        component.save("never.safetensors")


# -- healing -------------------------------------------------------------------------------------------------


def setup(make, share=0.6):
    model = wide(make).double()
    graph = trace(model, DATA[0][:2].double())
    generator = torch.Generator().manual_seed(0)
    keep = {
        axis.name: torch.randperm(axis.size, generator=generator)[: max(1, int(axis.size * share))].sort().values
        for axis in graph.free
    }
    return model, graph, keep, list(DATA[0].double().split(16))


@pytest.mark.parametrize("images", [None, 2])  # two images give fewer positions than the layer has inputs
def test_refit_is_ridge_regression(images, monkeypatch) -> None:
    monkeypatch.setattr(healing, "ROUNDS", 0)
    model, graph, keep, batches = setup(chain)
    if images is not None:
        batches = [batches[0][:images]]
    network = cut(graph, keep)
    x = torch.cat(batches)
    read = torch.relu(network.layer("bn1")(network.layer("conv1")(x)))
    target = model.conv2(torch.relu(model.bn1(model.conv1(x))))[:, keep["conv2"]]
    residual = (target - network.layer("conv2")(read)).detach()
    columns = nn.functional.unfold(read.detach(), 3, stride=2)  # (B, n, L)
    design = columns.permute(0, 2, 1).reshape(-1, columns.shape[1]).numpy()
    assert (len(design) < design.shape[1]) == (images is not None)
    goal = residual.flatten(2).permute(0, 2, 1).reshape(design.shape[0], -1).numpy()
    ridge = 1e-3 * np.mean(np.sum(design**2, 0))
    n = design.shape[1]
    extended = np.vstack([np.hstack([design, np.ones((len(design), 1))]), np.eye(n, n + 1) * np.sqrt(ridge)])
    solution, *_ = np.linalg.lstsq(extended, np.vstack([goal, np.zeros((n, goal.shape[1]))]), rcond=None)
    prior = network.layer("conv2").weight.detach().clone()
    shift = network.layer("bn2").running_mean.clone()
    report = heal_network(graph, keep, network, Shown(batches), "refit", 1e-3)
    assert report.layers == 2  # conv2 and linear; conv1 reads the image, which has not changed
    change = (network.layer("conv2").weight.detach() - prior).flatten(1).numpy()
    np.testing.assert_allclose(change, solution[:n].T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose((shift - network.layer("bn2").running_mean).numpy(), solution[n], rtol=1e-6, atol=1e-9)
    assert np.abs(change).max() > 1e-3


def test_every_round_lowers_the_error_behind_the_relu(monkeypatch) -> None:
    model, graph, keep, batches = setup(chain)
    x = torch.cat(batches)
    behind, before = [], []
    for rounds in (0, 1, 2, 6):
        monkeypatch.setattr(healing, "ROUNDS", rounds)
        network = cut(graph, keep)
        sliced = network.layer("conv2").weight.detach().clone()
        heal_network(graph, keep, network, Shown(batches), "refit", 1e-3)
        read = torch.relu(network.layer("bn1")(network.layer("conv1")(x)))
        found = network.layer("bn2")(network.layer("conv2")(read))
        goal = model.bn2(model.conv2(torch.relu(model.bn1(model.conv1(x)))))[:, keep["conv2"]]
        scale = (network.layer("bn2").weight / (network.layer("bn2").running_var + 1e-5).sqrt()).reshape(1, -1, 1, 1)
        moved = (network.layer("conv2").weight - sliced).square().sum()
        pull = 1e-3 * nn.functional.unfold(read, 3, stride=2).square().sum() / sliced[0].numel() * moved
        behind.append((((torch.relu(goal) - torch.relu(found)) / scale).square().sum() + pull).item())
        before.append((((goal - found) / scale).square().sum() + pull).item())
    assert behind == sorted(behind, reverse=True)
    assert behind[3] < 0.9 * behind[0]
    assert before == sorted(before)  # the control: the plain least squares are the best there is for this


class InPlace(nn.Module):
    """A residual block that is written with or without changes in place."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 4)
        self.in_place = in_place

    def forward(self, x):
        shortcut = torch.relu(self.stem(x))
        y = self.outer(torch.relu(self.inner(shortcut)))
        if self.in_place:
            shortcut += y
            return self.linear(nn.functional.relu(shortcut, inplace=True).mean((2, 3)))
        return self.linear(torch.relu(shortcut + y).mean((2, 3)))


def test_looking_through_a_sum_changes_no_value_in_place() -> None:
    results = []
    for in_place in (True, False):
        graph = trace(randomised(InPlace(in_place).double()), DATA[0][:2].double())
        keep = {"inner": torch.tensor([0, 2, 5]), "stem": torch.tensor([0, 1, 2, 3, 6])}
        network = cut(graph, keep)
        heal_network(graph, keep, network, Shown([DATA[0].double()]), "refit", 1e-3)
        results.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert relative(*results) < 1e-12


def test_shifted_copies_are_what_a_window_over_the_mirrored_image_shows() -> None:
    batch = DATA[0][:6].double()
    copies = with_copies([batch], 3, seed=2)
    assert torch.equal(copies[0], batch)
    assert len(copies) == 3
    generator = torch.Generator().manual_seed(2)
    for copy in copies[1:]:
        top, left = (torch.randint(0, 3, (6, 1), generator=generator).flatten().tolist() for _ in range(2))
        for image, shown, row, column in zip(batch, copy, top, left, strict=True):
            padded = np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
            assert np.array_equal(shown.numpy(), padded[:, row : row + 8, column : column + 8])
    assert not torch.equal(copies[1], copies[2])


def test_copies_are_made_where_positions_are_few() -> None:
    graph = trace(chain(), DATA[0][:2])  # its second convolution has as many inputs as the first has channels, times 9
    assert copies_needed(graph, 1) == 4
    assert copies_needed(graph, 10_000) == 1
    counts = [copies_needed(graph, images) for images in range(1, 200)]
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {1, 2, 3, 4}


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("method", ["refit", "moments"])
def test_healing_brings_outputs_closer(make, method) -> None:
    model, graph, keep, batches = setup(make)
    x = torch.cat(batches)
    bare, healed = cut(graph, keep), cut(graph, keep)
    heal_network(graph, keep, healed, Shown(batches), method, 1e-3)
    errors = [(network(x) - model(x)).square().mean().item() for network in (healed, bare)]
    assert errors[0] < errors[1]


def test_moments_are_matched() -> None:
    model, graph, keep, batches = setup(chain)
    network = cut(graph, keep)
    heal_network(graph, keep, network, Shown(batches), "moments", 1e-3)
    x = torch.cat(batches)
    ours = nn.Sequential(*[network.layer(n) for n in ("conv1", "bn1", "relu1", "conv2", "bn2")])(x)
    theirs = nn.Sequential(*list(model.children())[:5])(x)[:, keep["conv2"]]
    torch.testing.assert_close(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ours.var((0, 2, 3)), theirs.var((0, 2, 3)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("method", ["refit", "moments"])
def test_memory_and_batches_do_not_change_the_result(make, method, monkeypatch) -> None:
    _, graph, keep, batches = setup(make)
    results = []
    for limit, size in ((_streams.MEMORY, 16), (0, 16), (_streams.MEMORY, 7)):
        monkeypatch.setattr(_streams, "MEMORY", limit)
        network = cut(graph, keep)
        heal_network(graph, keep, network, Shown(list(torch.cat(batches).split(size))), method, 1e-3)
        results.append(torch.cat([p.detach().flatten() for p in network.state_dict().values()]))
    assert relative(results[1], results[0]) < 1e-12  # rounding may depend on where values lie in memory
    assert relative(results[2], results[0]) < 1e-7
    assert not torch.equal(results[0], torch.cat([p.flatten() for p in cut(graph, keep).state_dict().values()]))


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("method", ["refit", "moments"])
def test_nothing_cut_nothing_healed(make, method) -> None:
    model, graph, _, batches = setup(make)
    network = cut(graph, {})
    assert heal_network(graph, {}, network, Shown(batches), method, 1e-3).layers == 0
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_singular_equations_are_handled_by_the_ridge_and_said() -> None:
    _, graph, keep, _ = setup(chain)
    network = cut(graph, keep)
    one = torch.zeros(2, 3, 8, 8, dtype=torch.float64)  # every position sees the same: rank one
    report = heal_network(graph, keep, network, Shown([one]), "refit", 0.0)
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert any("ridge" in note for note in report.notes)


def test_a_layer_that_runs_twice_is_healed_on_both_runs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.again = nn.Conv2d(8, 8, 3, padding=1)
            self.linear = nn.Linear(8, 4)
            randomised(self.double())

        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = torch.relu(self.again(torch.relu(self.again(x))))
            return self.linear(x.mean((2, 3)))

    model = Twice()
    data = DATA[0].double(), DATA[1]
    relevance = by.locate(model, data)
    assert relevance.graph(model).axis("stem").readers == ("again", "linear")  # both runs share one axis
    component = by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(parameters=0.5))
    assert component.manifest.heal.layers == 2  # the shared layer, once, and the classifier
    keep = {"stem": torch.tensor(component.manifest.axes["stem"].kept), "linear": torch.tensor([0, 1])}
    bare = cut(relevance.graph(model), keep)
    right = model(data[0])[:, :2]
    errors = [float((part(data[0]) - right).square().sum()) for part in (component, bare)]
    assert errors[0] < 0.5 * errors[1]
    assert relative(bare(data[0]), zeroed_output(relevance.graph(model), keep, data[0])) < 1e-12


def test_images_without_labels_heal_too() -> None:
    model = chain()
    relevance = by.locate(model, DATA)
    component = by.disassemble(model, relevance, task=[0, 2], images=DATA[0])
    assert (component.manifest.heal.images, component.manifest.heal.held) == (27, 13)
    assert component.manifest.statistics is None
    labelled = by.disassemble(model, relevance, task=[0, 2])
    assert (labelled.manifest.heal.images, labelled.manifest.heal.held) == (14, 6)  # only the task's
    assert labelled.manifest.statistics.images == (10, 10)
