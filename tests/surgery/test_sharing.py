"""Steps that networks have in common run once: found by their numbers, and equal to running each network by itself."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import nn

import nets
from brickyard.axes._graph import trace
from brickyard.network._network import Network, Node, Ref, refs, with_refs
from brickyard.surgery._sharing import Sharing, find_sharing, tied
from brickyard.testing import Residual, chain, randomised

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def network_of(model: nn.Module) -> Network:
    return trace(model.double().eval(), X).network


def together(networks, sharing: Sharing | None = None, reads_at=None):
    """What each network returns when common steps run once."""
    sharing = sharing or find_sharing(networks, [0] * len(networks))
    made = tied(networks, sharing.ties)
    found = dict(enumerate(made))
    with torch.no_grad():
        results = {index: network(X) for index, network in found.items()}
        for run in sharing.runs:
            one = run.network(made)
            if reads_at is not None:
                one = run.looking(made, [()] * len(run.parts), [reads_at[index] for index in run.parts])
            results |= zip(run.parts, one(X), strict=True)
    return [results[index] for index in range(len(networks))]


def weighted_steps(sharing: Sharing, networks) -> list[str]:
    """The steps with weights that run, each under its first name."""
    runs = {index: run for run in sharing.runs for index in run.parts}
    names = [(index, node) for index, one in enumerate(networks) if index not in runs for node in one.nodes]
    names += [(int(n.target.partition(".")[0]), n) for run in sharing.runs for n in run.steps if n.op == "layer"]
    found = []
    for index, node in names:
        target = node.target.removeprefix(f"{index}.") if index in runs else node.target
        if node.op == "layer" and isinstance(networks[index].layer(target), WEIGHTED):
            found.append(node.name)
    return found


def distinct_values(networks) -> int:
    """The oracle: how many different values the layers with weights compute, by the bits of these values."""
    found = set()
    with torch.no_grad():
        for network in networks:
            values = {network.nodes[0].name: X.clone()}
            for node in network.nodes[1:]:
                values[node.name] = network.step(node, values)
                if node.op == "layer" and isinstance(network.layer(node.target), WEIGHTED):
                    value = values[node.name].contiguous()
                    found.add((tuple(value.shape), hashlib.sha256(value.numpy().tobytes()).hexdigest()))
    return len(found)


@settings(max_examples=60, deadline=None)
@given(nets.plans(most=3), st.data())
def test_drawn_networks_share_what_is_equal_and_nothing_else(plan, data) -> None:
    plan = nets.Plan(plan.blocks, "silu", plan.head, plan.classes, plan.seed)  # no value becomes zero as a whole
    models = [nets.Drawn(plan) for _ in range(data.draw(st.integers(2, 3)))]
    names = [name for name, layer in models[0].named_modules() if isinstance(layer, WEIGHTED)]
    for model in models[1:]:
        name = data.draw(st.sampled_from([None, *names]))
        if name is not None:
            with torch.no_grad():
                weight = model.get_submodule(name).weight  # all of it: half of a value may go on by itself
                weight += torch.linspace(0.1, 0.2, weight.numel()).reshape(weight.shape)
    networks = [network_of(model) for model in models]
    sharing = find_sharing(networks, [0] * len(networks))
    for found, network in zip(together(networks, sharing), networks, strict=True):
        assert torch.equal(found, network(X))
    steps = weighted_steps(sharing, networks)
    alone = sum(len(weighted_steps(Sharing({}, ()), [network])) for network in networks)
    event("some shared" if len(steps) < alone else "none shared")
    assert len(steps) == distinct_values(networks)


SQUARE = {
    "conv0": 1, "conv1": 1, "conv2": 1, "relu": 1, "relu_": 1, "iadd": 2, "imul": 2, "add": 2, "mul_": 2, "detach": 1,
    "contiguous": 1, "transpose": 1, "flip": 1, "drop": 1, "ReLU": 1, "same": 1, "cat": 2,
}  # fmt: skip


@st.composite
def programs(draw):
    """Networks of one beginning, of steps that change values in place and give views of them."""
    steps = st.lists(st.tuples(st.sampled_from(sorted(SQUARE)), st.integers(0, 99), st.integers(0, 99)), max_size=7)
    start = [("conv0", 0, 0), *draw(steps)]
    return [start + draw(steps) for _ in range(draw(st.integers(1, 3)))], draw(st.integers(0, 3))


def program(steps, changed: bool) -> Network:
    """A network of drawn steps, all of whose values are (batch, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(5)
    layers: dict[str, nn.Module] = {f"conv{k}": nn.Conv2d(3, 3, 1).double() for k in range(3)}
    for layer in layers.values():
        layer.weight = nn.Parameter(torch.randn(3, 3, 1, 1, generator=generator, dtype=torch.float64))
        layer.bias = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
    if changed:
        layers["conv1"].bias = nn.Parameter(torch.ones(3, dtype=torch.float64))
    layers |= {"drop": nn.Dropout2d(0.5), "ReLU": nn.ReLU(inplace=True), "same": nn.Identity()}
    names, nodes = ["x"], [Node("x", "input")]

    def call(name, function, *args):
        nodes.append(Node(name, "function", function, args))

    for place, (kind, first, second) in enumerate(steps):
        known = names[first < 90 and place > 0 :]  # the image itself only now and then
        name, a, b = f"v{place}", Ref(known[first % len(known)]), Ref(known[second % len(known)])
        if kind in layers:
            nodes.append(Node(name, "layer", kind, (a,)))
        elif kind == "cat":
            call(f"{name}c", "cat", [a, b], 1)
            call(name, "getitem", Ref(f"{name}c"), (slice(None), slice(2, 5)))
        else:
            more = {"transpose": (2, 3), "flip": ([2],)}.get(kind, ())
            call(name, kind, *((a, b) if SQUARE[kind] == 2 else (a,)), *more)
        names.append(name)
    last = names[0]
    for place, name in enumerate(names[-3:]):
        call(f"s{place}", "add", Ref(last), Ref(name))
        last = f"s{place}"
    call("mean", "mean", Ref(last), [2, 3])
    nodes.append(Node("out", "output", args=(Ref("mean"),)))
    used = {node.target for node in nodes if node.op == "layer"}
    return Network(nodes, {name: layer for name, layer in layers.items() if name in used}).eval()


@settings(max_examples=300, deadline=None)
@given(programs(), st.integers(0, 99))
def test_steps_in_place_change_nothing_for_others(drawn, place) -> None:
    lists, changed = drawn
    networks = [program(steps, index == changed) for index, steps in enumerate(lists)]
    before = X.clone()
    reads_at = [1 + place % (len(network.nodes) - 2) for network in networks]
    expected, entering = [], []
    with torch.no_grad():
        for network, at in zip(networks, reads_at, strict=True):
            try:
                expected.append(network(X))
            except RuntimeError:  # a value added to its own mirror image
                assume(False)
            for index, node, values in network.walk(X):
                if index == at:
                    entering.append(values[refs(node)[0]].clone())
    sharing = find_sharing(networks, [0] * len(networks))
    copies = any(node.target == "clone" for run in sharing.runs for node in run.network(networks).nodes)
    event(("with copies" if copies else "without copies") if sharing.runs else "none shared")
    for found, wanted in zip(together(networks, sharing), expected, strict=True):
        assert torch.equal(found, wanted)
    parts = {index for run in sharing.runs for index in run.parts}
    for index, pair in enumerate(together(networks, sharing, reads_at)):
        if index in parts:
            assert torch.equal(pair[0], expected[index])
            assert torch.equal(pair[1], entering[index])
    assert torch.equal(X, before)


class Overwriting(nn.Module):
    """A convolution whose value is used in some way."""

    def __init__(self, use) -> None:
        super().__init__()
        self.conv, self.linear, self.use = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), use
        randomised(self)

    def forward(self, x):
        return self.linear(self.use(self.conv(x)).mean((2, 3)))


def test_a_value_that_one_network_overwrites_is_copied_where_another_needs_it() -> None:
    plain, adding = network_of(Overwriting(lambda y: y * 2)), network_of(Overwriting(lambda y: torch.relu_(y)))
    sharing = find_sharing([adding, plain], [0, 0])
    (run,) = sharing.runs
    assert [node.target for node in run.steps].count("0.conv") == 1
    made = run.network([adding, plain])
    copies = [node.name for node in made.nodes if node.target == "clone"]
    assert len(copies) == 1
    assert all(torch.equal(a, one(X)) for a, one in zip(made(X), (adding, plain), strict=True))
    steps = [with_refs(n, lambda ref: Ref("0.conv") if ref.node in copies else ref) for n in made.nodes]
    kept = [node for node in steps if node.name not in copies]  # the control: without the copy
    wrong = Network(kept, {name: made.layer(name) for name in made.layer_names})
    assert not torch.equal(wrong(X)[1], plain(X))
    alike = find_sharing([adding, copy.deepcopy(adding)], [0, 0]).runs[0].network([adding, adding])
    assert "clone" not in [node.target for node in alike.nodes]  # both overwrite it: once is enough


@pytest.mark.parametrize(("layer", "shared"), [("stem", 0), ("conv2", 4), ("linear", 8), (None, 9)])
def test_one_ulp_in_a_layer_ends_what_is_shared_there(layer, shared) -> None:
    a = Residual()
    b = copy.deepcopy(a)
    if layer is not None:
        with torch.no_grad():
            weight = b.get_submodule(layer).double().weight.view(-1)
            weight[0] = torch.nextafter(weight[0], weight[0] + 1)
    networks = [network_of(a), network_of(b)]
    sharing = find_sharing(networks, [0, 0])
    assert len(weighted_steps(sharing, networks)) == 18 - shared
    assert len(sharing.ties) == shared


def test_other_inputs_types_layouts_and_hooks_share_nothing() -> None:
    a = network_of(chain())
    assert find_sharing([a, copy.deepcopy(a)], [0, 0]).runs
    assert not find_sharing([a, copy.deepcopy(a)], [0, 1]).runs
    assert not find_sharing([a, copy.deepcopy(a).to(memory_format=torch.channels_last)], [0, 0]).ties.keys() & {
        "1.conv1"
    }
    assert not find_sharing([a, copy.deepcopy(a).half()], [0, 0]).runs
    hooked = copy.deepcopy(a)
    hooked.layer("conv1").register_forward_hook(lambda *_: None)
    assert not find_sharing([a, hooked], [0, 0]).runs


class Twice(nn.Module):
    """The same computation twice, by layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 2)
        randomised(self)
        self.right = copy.deepcopy(self.left)

    def forward(self, x):
        return self.linear((torch.relu(self.left(x)) * torch.relu(self.right(x))).mean((2, 3)))


def test_a_computation_that_one_network_does_twice_runs_once() -> None:
    network = network_of(Twice())
    sharing = find_sharing([network], [0])
    assert sharing.ties == {"0.right": "0.left"}
    assert len(weighted_steps(sharing, [network])) == 2
    assert torch.equal(together([network], sharing)[0], network(X))
    other = Twice()
    other.right.weight.data[0, 0, 0, 0] += 1
    assert not find_sharing([network_of(other)], [0]).runs


def test_true_one_and_one_point_zero_are_different_arguments() -> None:
    def network(factor):
        nodes = [Node("x", "input"), Node("y", "function", "mul", (Ref("x"), factor))]
        nodes += [Node("z", "function", "mean", (Ref("y"), [2, 3])), Node("out", "output", args=(Ref("z"),))]
        return Network(nodes, {})

    assert find_sharing([network(1), network(1)], [0, 0]).runs
    for other in (True, 1.0, -1):
        assert not find_sharing([network(1), network(other)], [0, 0]).runs
    assert not find_sharing([network(0.0), network(-0.0)], [0, 0]).runs


def test_random_steps_are_drawn_by_each_network() -> None:
    def network(training):
        nodes = [Node("x", "input"), Node("y", "function", "dropout", (Ref("x"), 0.5), {"training": training})]
        nodes += [Node("z", "function", "mean", (Ref("y"), [2, 3])), Node("out", "output", args=(Ref("z"),))]
        return Network(nodes, {})

    assert not find_sharing([network(True), network(True)], [0, 0]).runs
    assert find_sharing([network(False), network(False)], [0, 0]).runs


@pytest.mark.parametrize("layer", [nn.Dropout2d(), nn.AlphaDropout(), nn.PixelShuffle(1), nn.Identity()])
def test_images_that_a_layer_returns_are_not_overwritten(layer) -> None:
    nodes = [Node("x", "input"), Node("y", "layer", "layer", (Ref("x"),))]
    nodes += [Node("z", "function", "relu_", (Ref("y"),)), Node("out", "output", args=(Ref("z"),))]
    images = X.clone()
    Network(nodes, {"layer": layer}).eval()(images)
    assert torch.equal(images, X)


def test_weights_are_compared_only_where_all_before_them_is_equal(monkeypatch) -> None:
    digested = []
    from brickyard.surgery import _sharing

    real = _sharing.digest_of
    monkeypatch.setattr(_sharing, "digest_of", lambda state: digested.append(len(state)) or real(state))
    a, b = randomised(Residual(), 1), randomised(Residual(), 2)
    find_sharing([network_of(a), network_of(b)], [0, 0])
    assert len(digested) == 2  # both stems
    digested.clear()
    find_sharing([network_of(a), network_of(a), network_of(a)], [0] * 3)
    assert len(digested) <= 27
