"""Graph networks: read as PyTorch Geometric computes them, cut as if zeroed, joined as if side by side; in float64."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import brickyard as by
from brickyard.gnn._component import GraphComponent, load
from brickyard.gnn._evaluation import evaluate
from brickyard.gnn._make import assemble, disassemble, locate
from brickyard.gnn._network import Edges, GraphNetwork, NodeData, disjoint, random_network
from brickyard.gnn._reading import read_network
from brickyard.gnn._surgery import cut, join
from brickyard.relevance._contribution import contributions
from brickyard.scaling._strategies import SCALINGS
from brickyard.storage._safefile import read
from brickyard.testing import random_graph, randomised
from conftest import needed_package
from errors import refused
from shell import python

FEATURES, CLASSES = 6, 4
KINDS = ("gcn", "sage", "gat")
SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


class Stack(nn.Module):
    """Layers of PyTorch Geometric one after the other; masks, where there are any, meet what a layer reads."""

    def __init__(self, kinds: Sequence[str], widths: Sequence[int], heads: int, elu: bool, norm: bool) -> None:
        super().__init__()
        geometric = needed_package("torch_geometric.nn")
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.elu, self.kinds = elu, list(kinds)
        self.masks: list[Tensor] = []
        size = FEATURES
        for i, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
            last = i == len(kinds) - 1
            options = {"heads": heads, "concat": not last} if kind == "GATConv" else {}
            options |= {"root_weight": False, "aggr": "sum"} if kind == "sum" else {}
            layer = geometric.SAGEConv if kind == "sum" else getattr(geometric, kind)
            self.convs.append(layer(size, width, **options))
            size = width * heads if kind == "GATConv" and not last else width
            self.norms.append(nn.BatchNorm1d(size) if norm and not last else nn.Identity())
        randomised(self)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = x * self.masks[i] if self.masks else x
            x = norm(conv(x) if self.kinds[i] == "Linear" else conv(x, edge_index))
            if i < len(self.convs) - 1:
                x = nn.functional.elu(x) if self.elu else torch.relu(x)
                x = nn.functional.dropout(x, 0.5, training=self.training)
        return x


@st.composite
def stacks(draw: st.DrawFn, kinds: Sequence[str] = ("GCNConv", "SAGEConv", "GATConv", "sum", "Linear")) -> Stack:
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    widths = [*(draw(st.integers(1, 4)) for _ in chosen[1:]), CLASSES]
    return Stack(chosen, widths, draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())).double()


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A few nodes with any edges: loops, doubles, nodes without neighbours."""
    count = draw(st.integers(2, 9))
    node = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(node, node), max_size=20))
    edges = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randn(count, FEATURES, generator=generator, dtype=torch.float64), edges


@st.composite
def keeps(draw: st.DrawFn, network: GraphNetwork) -> dict[str, Tensor]:
    def some(units: int) -> Tensor:
        return torch.tensor(sorted(draw(st.sets(st.integers(0, units - 1), min_size=1))))

    return {name: some(units) for name, units in sizes(network).items()}


def sizes(network: GraphNetwork) -> dict[str, int]:
    """Units of each axis."""
    features = network.steps()[0].spec.inputs
    return {"features": features} | {n: s.spec.units for n, s in zip(network.names, network.steps(), strict=True)}


def percent(right: Tensor) -> Any:
    return pytest.approx(100 * right.double().mean().item())


def plain(kind: str) -> tuple[GraphNetwork, tuple[Tensor, Tensor, Tensor]]:
    x, edges, labels = random_graph()
    return random_network(kind, 12, 5, CLASSES).double(), (x.double(), edges, labels)


def located(kind: str) -> tuple[GraphNetwork, tuple[Tensor, Tensor, Tensor], Any]:
    network, graph = plain(kind)
    return network, graph, locate(network, graph, nodes=range(40))


# -- reading -----------------------------------------------------------------------------------------------


@SLOW
@given(data=st.data())
def test_networks_say_what_their_sources_say(data: st.DataObject) -> None:
    model, (x, edges) = data.draw(stacks()), data.draw(graphs())
    network = read_network(model, NodeData.of((x, edges)))
    expected = model(x, edges)
    torch.testing.assert_close(network(x, edges), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["GCN", "GraphSAGE", "GAT"])
def test_ready_made_models_are_read(kind) -> None:
    geometric = needed_package("torch_geometric.nn")
    x, edges, _ = plain("gcn")[1]
    model = getattr(geometric, kind)(12, 8, num_layers=3, out_channels=4, norm="batch", dropout=0.5, act="elu").double()
    found = read_network(model.eval(), NodeData.of((x, edges)))
    torch.testing.assert_close(found(x, edges), model(x, edges), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found(x, edges.roll(1, 1)[:, 1:]), model(x, edges))  # the control: an edge less


class Whole(nn.Module):
    """Takes a graph as one object, and ends in log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.one = needed_package("torch_geometric.nn").GCNConv(12, 5, cached=True)
        self.two = needed_package("torch_geometric.nn").GATConv(5, 4, heads=2, concat=False)

    def forward(self, data: Any) -> Tensor:
        x, edges = data.x, data.edge_index
        x = nn.functional.dropout(x, training=self.training)
        return nn.functional.log_softmax(self.two(self.one(x, edges).relu(), edges), dim=1)


def test_a_source_that_takes_a_graph_comes_back_untouched() -> None:
    model = Whole().double().train()
    x, edges, labels = plain("gcn")[1]
    data = needed_package("torch_geometric.data").Data(x=x, edge_index=edges, y=labels, train_mask=labels < 9)
    before = copy.deepcopy(model.state_dict())
    relevance = locate(model, data)
    assert relevance.record.images == (15, 15, 15, 15)
    part = disassemble(model, relevance, task=[0, 1])
    assert model.training
    assert model.one._cached_edge_index is None  # nothing is left of the graph
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    scores = evaluate(part, data, nodes=labels < 9, source=model)
    right = model.eval()(data).argmax(1) == labels
    assert scores.row("base").accuracy == percent(right[labels < 2])


@pytest.mark.parametrize(
    ("make", "code", "quoted"),
    [
        (lambda g: g.GIN(12, 8, 2, 4), "trace-graph-layers", "GINConv"),
        (lambda g: g.GCN(12, 8, 2, 4, jk="cat"), "trace-graph-layers", "GCN"),
        (lambda g: g.GAT(12, 8, 2, 4, v2=True), "trace-graph-layers", "GATv2Conv"),
        (lambda g: g.GAT(12, 8, 2, 4, residual=True), "trace-graph-layers", "res="),
        (lambda g: g.GraphSAGE(12, 8, 2, 4, aggr="max"), "trace-graph-layers", "aggr='max'"),
        (lambda g: g.GraphSAGE(12, 8, 2, 4, normalize=True), "trace-graph-layers", "normalize=True"),
        (lambda g: g.GCN(12, 8, 2, 4, act="tanh"), "trace-graph-layers", "Tanh"),
        (lambda g: g.GCN(12, 8, 2, 4, improved=True), "trace-graph-layers", "improved=True"),
        (lambda g: g.GAT(12, 8, 1, heads=2), "trace-graph-layers", "concat=False"),
        (lambda g: Odd(g, lambda m, x, e: m.one(x, e) + m.two(x, e)), "trace-graph-layers", "'add'"),
        (lambda g: Odd(g, lambda m, x, e: m.one(x, e) if x.sum() > 0 else m.two(x, e)), "trace-control-flow", "Odd"),
        (lambda g: Odd(g, lambda m, x, e: nn.functional.elu(m.one(x, e), 2)), "trace-graph-layers", "'elu'"),
        (lambda g: Odd(g, lambda m, x, e: m.three(m.three(m.one(x, e), e), e)), "trace-graph-layers", "'three'"),
        (lambda g: Odd(g, lambda m, x, e: m.two(x, e)), "trace-mismatch", "two"),
        (lambda g: nn.ReLU, "trace-not-module", "type"),
    ],
)
def test_what_cannot_be_read_is_an_error(make, code, quoted) -> None:
    x, edges, labels = random_graph()
    with refused(code, quoted):
        locate(make(needed_package("torch_geometric.nn")), (x, edges, labels), nodes=range(40))


class Odd(nn.Module):
    """Runs its layers in some way; the second does something to its output that its options do not tell."""

    def __init__(self, geometric: Any, run: Any) -> None:
        super().__init__()
        self.one, self.two, self.three = (geometric.GCNConv(size, 4) for size in (12, 12, 4))
        self.two.register_forward_hook(lambda module, given, output: output * torch.tensor([[1.0, 2, 3, 4]]))
        self.run = run

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.run(self, x, edges)


def test_a_missing_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with refused("option-missing-package", "brickyard[graphs]"):
        locate(nn.Linear(12, 4), random_graph(), nodes=range(40))


# -- locating ----------------------------------------------------------------------------------------------


@SLOW
@given(data=st.data())
def test_contributions_sum_to_the_output_without_its_bias(data: st.DataObject) -> None:
    model, (x, edge_index) = data.draw(stacks()), data.draw(graphs())
    network = read_network(model, NodeData.of((x, edge_index)))
    edges = Edges.of(edge_index, len(x))
    nodes = torch.arange(len(x)).flip(0)[: data.draw(st.integers(1, len(x)))]
    for layer in network.steps():
        expected = layer.linear(x, edges)[nodes] - (0 if layer.bias is None else layer.bias)
        found = contributions(layer.convolution(), layer.gathered(x, edges, nodes)).sum(2)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        x = layer(x, edges)


def dense(kind: str, x: Tensor, edge_index: Tensor, layer: Any) -> list[Tensor]:
    """How nodes gather, as matrices (target, source), from the definitions."""
    count = len(x)
    a = torch.zeros(count, count, dtype=x.dtype)
    for source, target in edge_index.T.tolist():
        a[target, source] += 1
    if kind == "sage":
        return [a / a.sum(1, keepdim=True), torch.eye(count, dtype=x.dtype)]
    a.fill_diagonal_(1)
    if kind == "gcn":
        root = a.sum(1).sqrt()
        return [a / root[:, None] / root]
    found = []
    for source, target in zip(layer.source, layer.target, strict=True):
        raised = a * nn.functional.leaky_relu((x @ target)[:, None] + (x @ source), 0.2).exp()
        found.append(raised / raised.sum(1, keepdim=True))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_relevances_are_those_of_the_formulas(kind) -> None:
    network, (x, edge_index, labels) = plain(kind)
    relevance = locate(network, (x, edge_index, labels), nodes=range(40))
    alpha, beta = 0.3, 0.2
    inputs: list[Tensor] = []
    sums: list[Tensor] = []
    with torch.no_grad():
        for layer in network.steps():
            inputs.append(x)
            ways, groups = dense(kind, x, edge_index, layer), layer.spec.groups
            s = torch.zeros(CLASSES, layer.spec.width, x.shape[1], dtype=x.dtype)
            y = torch.zeros(len(x), layer.spec.width, dtype=x.dtype) + layer.bias
            for g in range(groups):
                rows = slice(g * layer.spec.outputs, (g + 1) * layer.spec.outputs)
                own = ways[g : g + 1] if groups > 1 else ways
                for v in range(len(x)):
                    each = sum(layer.weight[g, k] * (a[v] @ x) for k, a in enumerate(own))
                    y[v, rows] += each.sum(1)
                    if v < 40:
                        s[labels[v], rows] += each.clamp(min=0)
            sums.append(s)
            x = layer.activate(y)
        torch.testing.assert_close(x, network(*plain(kind)[1][:2]), rtol=1e-9, atol=1e-9)
    size = 5 if kind == "gat" else 1  # the channels of a head
    sums[1] = sums[1].reshape(CLASSES, CLASSES, -1, size).sum(3)
    for name, s in zip(("conv1", "conv2"), sums, strict=True):
        torch.testing.assert_close(relevance.sum(name), s, rtol=1e-9, atol=1e-9)
    for k in range(CLASSES):
        m = torch.arange(CLASSES) == k
        for axis, s, units in (("conv1", sums[1], 1), ("features", sums[0], size)):
            low, high = s[k].amin(1, keepdim=True), s[k].amax(1, keepdim=True)
            t = ((s[k] - low) / (high - low + 1e-5) > alpha)[m.repeat_interleave(units)].sum(0).double()
            m = (t - t.min()) / (t.max() - t.min() + 1e-5) > beta
            assert torch.equal(relevance.relevant(axis)[k], m), (axis, k)
        assert not m.all()


def test_what_cannot_be_located() -> None:
    network, (x, edges, labels) = plain("gcn")
    few: dict[str, Any] = {"nodes": range(9)}
    for code, quoted, data, options in (
        ("option-needs-data", "nodes=", (x, edges, labels), {}),
        ("data-no-labels", "labels", (x, edges), few),
        ("data-class-without-images", "'3'", (x, edges, labels), {"nodes": labels != 3}),
        ("data-label-out-of-range", "0 to 3", (x, edges, labels + 1), few),
        ("data-index-out-of-range", "60", (x, edges, labels), {"nodes": range(61)}),
        ("data-index-out-of-range", "edge_index", (x, edges + 1, labels), few),
        ("data-type", "Tensor", x, few),
        ("task-class-count", "3", (x, edges, labels), few | {"classes": ["a", "b", "c"]}),
    ):
        with refused(code, quoted):
            locate(network, data, **options)


# -- cutting -----------------------------------------------------------------------------------------------


@SLOW
@given(data=st.data())
def test_cut_equals_zeroed(data: st.DataObject) -> None:
    model, (x, edges) = data.draw(stacks()), data.draw(graphs())
    network = read_network(model, NodeData.of((x, edges)))
    keep = data.draw(keeps(network))
    outputs = keep[network.names[-1]]
    channels = {"features": keep["features"]}
    channels |= {n: s.spec.channels(keep[n]) for n, s in zip(network.names, network.steps(), strict=True)}
    for layer, kept in zip(network.steps(), channels.values(), strict=False):
        model.masks.append(torch.zeros(layer.spec.inputs, dtype=torch.float64))
        model.masks[-1][kept] = 1
    expected = model(x, edges)[:, outputs]
    found = cut(network, keep)(x, edges)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axis", ["features", "conv1"])
@pytest.mark.parametrize("kind", KINDS)
def test_cutting_other_channels_says_something_else(kind, axis) -> None:
    """The control of the test above: each axis matters."""
    network, (x, edges, _) = plain(kind)
    said = [cut(network, {axis: torch.tensor(units)})(x, edges) for units in ([0], [1], [0, 1])]
    assert not any(torch.allclose(one, other) for one, other in zip(said, said[1:] + said[:1], strict=True))


def test_heads_are_kept_or_dropped_whole() -> None:
    network, graph = plain("gat")
    assert sizes(network) == {"features": 12, "conv1": 2, "conv2": 4}
    part = disassemble(network, locate(network, graph, nodes=range(40)), task=[1], budget=by.Budget(parameters=0.5))
    (first, last) = part.network.steps()
    assert part.manifest.axes["conv1"].kept in ((0,), (1,))
    (head,) = part.manifest.axes["conv1"].kept
    assert torch.equal(first.source, network.steps()[0].source[[head]])  # its attention is that of the source
    assert last.spec.inputs == 5


@pytest.mark.parametrize("heads", [[0], [2], [1, 2], [2, 0]])
def test_heads_that_are_left_attend_as_before(heads) -> None:
    network, (x, edge_index, _) = random_network("gat", 12, 5, CLASSES, heads=3).double(), plain("gat")[1]
    edges = Edges.of(edge_index, len(x))
    first, last = network.steps()
    order = torch.tensor(heads)
    hidden = first(x, edges).unflatten(1, (3, 5))
    expected = torch.zeros_like(hidden)
    expected[:, order] = hidden[:, order]
    found = cut(network, {"conv1": order})
    torch.testing.assert_close(found(x, edge_index), last(expected.flatten(1), edges), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.steps()[0](x, edges), hidden[:, order].flatten(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_kept_is_the_source_and_nothing_is_repaired(kind) -> None:
    network, graph, relevance = located(kind)
    whole = disassemble(network, relevance, task=[3, 0, 1, 2], budget=by.Budget(parameters=1.0))
    assert whole.manifest.heal.layers == 0
    assert torch.equal(whole(*graph[:2]), network(*graph[:2])[:, [3, 0, 1, 2]])
    assert whole.manifest.selection.parameters == whole.manifest.source.parameters
    assert whole.manifest.selection.flops == whole.manifest.source.flops


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_budgets_are_met_from_below_and_random_keeps_as_much(kind, resource) -> None:
    network, _, relevance = located(kind)
    most = 0.4 if kind == "gat" else 0.5  # where one head is left with all features, chance may draw the same
    options: dict[str, Any] = {"task": [0, 1], "budget": by.Budget(**{resource: most}), "features": True}
    part = disassemble(network, relevance, **options)
    share = getattr(part.manifest.selection, resource) / getattr(part.manifest.source, resource)
    assert 0.7 * most < share <= most
    assert part.manifest.selection.parameters == sum(value.numel() for value in part.parameters())
    other = disassemble(network, relevance, select="random", **options)
    counts, drawn = ({name: a.kept for name, a in p.manifest.axes.items()} for p in (part, other))
    assert {name: len(kept) for name, kept in counts.items()} == {name: len(kept) for name, kept in drawn.items()}
    assert counts != drawn
    assert len(disassemble(network, relevance, task=[0, 1]).manifest.axes["features"].kept) == 12  # an input
    with refused("option-budget-too-small", resource):
        disassemble(network, relevance, task=[0], budget=by.Budget(**{resource: 0.01}))


def test_reject_is_what_the_source_says_of_its_other_classes() -> None:
    network, graph, relevance = located("sage")
    part = disassemble(network, relevance, task=[2], reject=True, budget=by.Budget(parameters=1.0))
    logits = network(*graph[:2])
    expected = torch.stack([logits[:, 2], logits[:, [0, 1, 3]].logsumexp(1)], 1)
    torch.testing.assert_close(part(*graph[:2]), expected)
    with refused("task-nothing-to-reject", "reject=True"):
        disassemble(network, relevance, task=range(4), reject=True)


# -- repair ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_refit_of_a_last_layer_is_ridge_least_squares(kind) -> None:
    network, graph, relevance = located(kind)
    options: dict[str, Any] = {"task": [0, 1, 2], "budget": by.Budget(parameters=0.5), "ridge": 1e-2}
    part, bare = (disassemble(network, relevance, heal=heal, **options) for heal in ("refit", "none"))
    edges = Edges.of(graph[1], len(graph[0]))
    nodes = torch.arange(40)[graph[2][:40] < 3]
    with torch.no_grad():
        goal = network(*graph[:2])[nodes][:, :3]
        hidden = part.network.steps()[0](graph[0][:, part.network.columns], edges)
        prior = bare.network.steps()[1]
        # inputs (nodes, ways * channels), from the dense definition
        ways = dense(kind, hidden, graph[1], part.network.steps()[1])
        x = torch.cat([(a @ hidden)[nodes] for a in ways], 1)
        w = torch.cat(list(prior.weight[0]), 1)
        xb = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        penalty = 1e-2 * x.square().sum(0).mean() * torch.eye(xb.shape[1], dtype=x.dtype)
        penalty[-1, -1] = 0
        missing = goal - x @ w.T - prior.bias
        change = torch.linalg.solve(xb.T @ xb + penalty, xb.T @ missing).T
        found = part.network.steps()[1]
        torch.testing.assert_close(torch.cat(list(found.weight[0]), 1), w + change[:, :-1], rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(found.bias, prior.bias + change[:, -1], rtol=1e-7, atol=1e-8)
        gap = [(p(*graph[:2])[nodes] - goal).square().mean() for p in (part, bare)]
        assert gap[0] < 0.5 * gap[1]  # and it helps


# -- joining -----------------------------------------------------------------------------------------------


@SLOW
@given(data=st.data())
def test_padded_equals_side_by_side(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["GCNConv", "SAGEConv", "GATConv", "sum"]), min_size=1, max_size=3))
    x, edges = data.draw(graphs())
    parts = []
    for _ in range(2):
        heads = data.draw(st.integers(2, 3))
        model = Stack(kinds, [*(data.draw(st.integers(1, 4)) for _ in kinds[1:]), CLASSES], heads, True, False)
        network = read_network(randomised(model, len(parts)).double(), NodeData.of((x, edges)))
        keep = data.draw(keeps(network))
        parts.append(cut(network, keep))
    columns = [part.columns for part in parts]
    expected = torch.cat([part(x, edges) for part in parts], 1)
    found = join(parts, columns)(x, edges)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    swapped = join(parts[::-1], columns[::-1])(x, edges)
    width = parts[1].steps()[-1].spec.width
    torch.testing.assert_close(torch.cat([swapped[:, width:], swapped[:, :width]], 1), expected, rtol=1e-9, atol=1e-9)


def halves(kind: str, form: Any = "parallel", **options: Any) -> tuple[Any, list[GraphComponent], Any]:
    """Two sources of their own, and half of the classes of each."""
    graph = plain(kind)[1]
    parts = []
    for seed, task in ((0, [0, 1]), (5, [3, 2])):
        source = random_network(kind, 12, 5 + seed, CLASSES, seed=seed, heads=2).double()
        relevance = locate(source, graph, nodes=range(40), name=f"s{seed}")
        parts.append(disassemble(source, relevance, task=task, features=True, budget=by.Budget(parameters=0.6)))
    return assemble(parts, form=form, **{"scaling": "none", **options}), parts, graph


@pytest.mark.parametrize("kind", KINDS)
def test_an_assembly_is_its_parts(kind) -> None:
    one, parts, (x, edges, _) = halves(kind, "padded")
    two, _, _ = halves(kind)
    expected = torch.cat([part(x, edges) for part in parts], 1)
    assert one.classes == two.classes == ("0", "1", "3", "2")
    torch.testing.assert_close(one(x, edges), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(two(x, edges), expected)
    assert len(one.networks) == 1
    assert not torch.allclose(one(x, edges), expected.flip(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["parallel", "padded"])
def test_sources_from_two_graphs(kind, form) -> None:
    graphs = [random_graph(), random_graph(nodes=40, features=9, classes=3, seed=4)]
    parts = []
    for index, graph in enumerate(graphs):
        source = random_network(kind, graph[0].shape[1], 4, int(graph[2].max()) + 1, seed=index)
        relevance = locate(source, graph, nodes=range(30), classes=[f"{index}{k}" for k in range(graph[2].max() + 1)])
        parts.append(disassemble(source, relevance, task=[0, 2], features=True))
    with refused("surgery-input-mismatch", "12", "9"):
        assemble(parts)
    whole = assemble(parts, form=form, shared_input=False, scaling="none").double()
    x, edges = disjoint([(graph[0].double(), graph[1]) for graph in graphs])
    found = whole(x, edges)
    assert found.shape == (100, 4)
    first, second = (part.double()(graph[0].double(), graph[1]) for part, graph in zip(parts, graphs, strict=True))
    torch.testing.assert_close(found[:60, :2], first, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[60:, 2:], second, rtol=1e-10, atol=1e-10)
    with refused("data-graph", "feature"):
        whole(x[:, :12], edges)


def test_layers_of_several_kinds_are_joined_in_parallel_only() -> None:
    graph = plain("gcn")[1]
    parts = []
    for kind, task in (("gcn", [0]), ("sage", [1])):
        source = random_network(kind, 12, 5, CLASSES).double()
        parts.append(disassemble(source, locate(source, graph, nodes=range(40)), task=task))
    assert assemble(parts)(*graph[:2]).shape == (60, 2)
    with refused("surgery-not-paddable", "'conv1'"):
        assemble(parts, form="padded")
    with refused("task-class-in-two-parts", "'0'", "part 0"):
        assemble([parts[0], parts[0]])
    with refused("option-wrong-object", "GraphNetwork"):
        assemble([parts[0].network])


def test_scalings() -> None:
    graph = halves("gcn")[2]
    labels = torch.tensor([0, 1, 3, 2])[graph[2]]  # indices into the assembly's classes
    data = (*graph[:2], labels)
    plainly, parts, _ = halves("gcn")
    scores = {}
    for name in ("none", "logit-mean", "log-probability", "affine", "joint-head"):
        few = {"data": data, "nodes": range(40)} if SCALINGS[name].few_shot else {}
        whole = assemble(parts, scaling=name, **few)
        scores[name] = torch.nn.functional.cross_entropy(whole(*graph[:2])[:40], labels[:40]).item()
        assert whole.manifest.scaling.images == (40 if name in ("affine", "joint-head") else 0)
    assert scores["affine"] < scores["none"]
    assert scores["joint-head"] < scores["none"]
    means = [value for part in parts for value in part.manifest.statistics.winning_logit]
    logits = plainly(*graph[:2])
    scaled = assemble(parts, scaling="logit-mean")(*graph[:2])
    for k, mean in enumerate(means):
        if mean is not None and mean > 0:
            torch.testing.assert_close(scaled[:, k], logits[:, k] / mean)
    with refused("option-choice", "'lda'"):
        assemble(parts, scaling="lda", data=data, nodes=range(40))
    with refused("option-needs-data", "'affine'"):
        assemble(parts, scaling="affine")
    with refused("option-without-effect", "data=", "'none'"):
        assemble(parts, scaling="none", data=data, nodes=range(40))
    with refused("data-no-labels", "nodes="):
        assemble(parts, scaling="affine", data=data)


# -- scoring -----------------------------------------------------------------------------------------------


def test_scores_are_counted_on_the_same_nodes() -> None:
    network, graph = plain("gcn")
    part = disassemble(network, locate(network, graph, nodes=range(40)), task=[1, 3])
    scores = evaluate(part, graph, nodes=range(40, 60), source=network)
    own = torch.arange(40, 60)[torch.isin(graph[2][40:60], torch.tensor([1, 3]))]
    target = graph[2][own]
    logits, cut_logits = network(*graph[:2])[own], part(*graph[:2])[own]
    restricted = torch.tensor([1, 3])[logits[:, [1, 3]].argmax(1)]
    assert scores.row("base").accuracy == percent(logits.argmax(1) == target)
    assert scores.row("restricted").accuracy == percent(restricted == target)
    answers = torch.tensor([1, 3])[cut_logits.argmax(1)]
    row = scores.row("component")
    assert row.accuracy == percent(answers == target)
    assert row.images == 10
    assert row.drop == pytest.approx(scores.row("restricted").accuracy - row.accuracy)
    with refused("data-wrong-source", "'GraphNetwork'"):
        evaluate(part, graph, nodes=range(40, 60), source=random_network("gcn", 12, 5, CLASSES, seed=3))
    with refused("data-no-task-class", "1, 3"):
        evaluate(part, graph, nodes=graph[2] == 0)


def test_one_class_is_detected_against_the_rest() -> None:
    network, graph, relevance = located("gat")
    part = disassemble(network, relevance, task=[2], reject=True, budget=by.Budget(parameters=0.5), features=True)
    scores = evaluate(part, graph, nodes=range(40, 60), source=network)
    mine = graph[2][40:60] == 2
    logits = part(*graph[:2])[40:60]
    says = logits[:, 0] > logits[:, 1]
    assert scores.row("component").images == 20
    assert scores.row("component").accuracy == percent(says == mine)
    assert scores.per_class == {"2": percent(says[mine]), "others": percent((~says)[~mine])}
    gap = logits[:, 0] - logits[:, 1]
    pairs = (gap[mine][:, None] > gap[~mine]).double().mean().item()  # what an AUROC is
    assert scores.row("component").auroc == pytest.approx(100 * pairs)
    alone = evaluate(disassemble(network, relevance, task=[2]), graph, nodes=range(40, 60), source=network)
    assert alone.row("component").accuracy == 100  # of a constant: hence AUROC
    assert alone.row("component").auroc_drop == pytest.approx(
        alone.row("restricted").auroc - alone.row("component").auroc
    )
    assert len(alone.notes) == 1


def test_an_assembly_is_compared_with_its_oracle() -> None:
    whole, _, graph = halves("sage")
    labels = torch.tensor([0, 1, 3, 2])[graph[2]]
    scores = evaluate(whole, (*graph[:2], labels), nodes=range(40, 60))
    logits, target = whole(*graph[:2])[40:60], labels[40:60]
    inside = torch.where(target < 2, logits[:, :2].argmax(1), 2 + logits[:, 2:].argmax(1))
    assert scores.row("oracle").accuracy == percent(inside == target)
    assert scores.row("assembled").accuracy == percent(logits.argmax(1) == target)
    assert scores.row("oracle").accuracy > scores.row("assembled").accuracy
    with refused("option-wrong-object", "GraphAssembly"):
        evaluate(whole, (*graph[:2], labels), nodes=range(40, 60), source=plain("sage")[0])


# -- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same_bit_for_bit(kind, tmp_path) -> None:
    whole, parts, graph = halves(kind, "padded", scaling="logit-mean")
    for model in (whole, parts[0]):
        path = model.save(tmp_path / f"{type(model).__name__}.safetensors")
        again = load(path)
        assert type(again) is type(model)
        assert again.manifest == model.manifest
        assert torch.equal(again(*graph[:2]), model(*graph[:2]))
        with refused("file-exists", path.name):
            model.save(path)
        with refused("file-wrong-kind", "brickyard.gnn.load"):
            by.load(path)


def test_a_component_runs_without_the_library_of_its_source(tmp_path) -> None:
    _, parts, graph = halves("gat")
    path = parts[0].save(tmp_path / "part.safetensors")
    given, said = tmp_path / "graph.safetensors", tmp_path / "said.safetensors"
    save_file({"x": graph[0], "edges": graph[1]}, given)
    code = (
        "import sys; sys.modules['torch_geometric'] = None\n"
        "from safetensors.torch import load_file, save_file\n"
        "from brickyard.gnn import load\n"
        "g = load_file(sys.argv[2])\n"
        "save_file({'y': load(sys.argv[1])(g['x'], g['edges']).detach()}, sys.argv[3])\n"
    )
    python(code, path, given, said)
    assert torch.equal(load_file(said)["y"], parts[0](*graph[:2]))


def layer(**values: Any) -> Any:
    """A change of what is said of the first layer."""
    return lambda text, tensors: text["network"]["layers"][0].update(**values)


def kept(*units: int) -> Any:
    """A change of the features that are kept."""
    return lambda text, tensors: text["component"]["axes"]["features"].update(kept=units)


WHOLE = torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("change", "code", "quoted"),
    [
        (lambda text, tensors: None, None, None),  # the control
        (kept(0, 99), "file-manifest-invalid", "12"),
        (kept(0, 0), "file-manifest-invalid", "12"),
        (lambda text, tensors: text["component"]["axes"].pop("features"), "file-inconsistent", "features"),
        (layer(inputs=3), "file-network-invalid", "12 features"),
        (lambda text, tensors: text["network"]["layers"].pop(), "file-network-invalid", "12 features"),
        (layer(gather=["exec"]), "file-manifest-invalid", "gather"),
        (layer(gather=["gcn", "attention"]), "file-manifest-invalid", "attention"),
        (layer(groups=2), "file-manifest-invalid", "attention"),
        (layer(code="x"), "file-manifest-invalid", "code"),
        (lambda text, tensors: text.update(kind="component"), "file-wrong-kind", "'component'"),
        (lambda text, tensors: text.update(format=99), "file-newer-version", "99"),
        (lambda text, tensors: tensors.pop("network.layers.0.bias"), "file-tensor-mismatch", "layers.0.bias"),
        (lambda text, tensors: tensors.update(more=torch.zeros(1)), "file-tensor-mismatch", "'more'"),
        (lambda text, tensors: tensors["network.layers.0.weight"].fill_(torch.nan), "file-not-finite", "layers.0"),
        (lambda text, tensors: tensors.update({"network.layers.0.bias": WHOLE}), "file-tensor-mismatch", "int64"),
        (lambda text, tensors: text["assembly"].update(form="union"), "file-inconsistent", "form"),
        (lambda text, tensors: text["networks"].pop(), "file-inconsistent", "2 parts"),
        (lambda text, tensors: tensors.pop("scaling.shift"), "file-inconsistent", "4 logits"),
        (
            lambda text, tensors: tensors.update({"scaling.matrix": tensors["scaling.matrix"][:3]}),
            "file-inconsistent",
            "4 logits",
        ),
    ],
)
def test_files_are_read_as_hostile(change, code, quoted, tmp_path) -> None:
    whole, (part, _), graph = halves("gcn", scaling="logit-mean")
    for model in (part, whole):
        path = model.save(tmp_path / f"{type(model).__name__}.safetensors")
        text, tensors = read(path)
        try:
            change(text, tensors)
        except KeyError:  # it is about the other kind of file
            continue
        save_file(tensors, path, {"brickyard": json.dumps({"format": 1} | text)})
        if code is None:
            assert torch.equal(load(path)(*graph[:2]), model(*graph[:2]))
            continue
        with refused(code, quoted):
            load(path)
        return
    assert code is None


def test_components_train() -> None:
    _, parts, (x, edges, labels) = halves("gat")
    own = torch.isin(labels, torch.tensor([0, 1]))
    optimizer = torch.optim.SGD(parts[0].parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parts[0](x, edges)[own], labels[own])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_report_refuses_graph_networks_and_says_what_to_use() -> None:
    from brickyard.gnn import disassemble, locate, random_network
    from brickyard.reports import report
    from brickyard.testing import random_graph

    source = random_network("gcn", 12, 8, 4)
    located = locate(source, random_graph(), nodes=range(40))
    for item in (located, disassemble(source, located, task=[1, 3])):
        with refused("option-wrong-object", type(item).__name__, "brickyard.gnn.evaluate"):
            report([item])
    with refused("option-wrong-object", "Linear") as error:  # the control
        report([torch.nn.Linear(2, 2)])
    assert "gnn" not in str(error.value)
