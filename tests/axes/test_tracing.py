"""What tracing makes of parts that are not plain layers, each against the model itself and with a control."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import Graph, trace
from brickyard.surgery._join import cut, join
from brickyard.surgery._plan import Part
from brickyard.testing import randomised, zeroed_output
from errors import refused
from nets import images, relative


def checked(model: nn.Module, free: dict[str, int]) -> Graph:
    """The model's graph, after cutting and padding every free axis but for one channel, against the oracles."""
    x = images(2)
    graph = trace(model, x)
    assert {axis.name: axis.size for axis in graph.free} == free
    keeps = [{name: torch.arange(size) != size // 2 for name, size in free.items() if size > 1}]
    keeps.append({name: torch.arange(size) < max(1, size - 1) for name, size in free.items()})
    keeps = [{name: kept.nonzero().flatten() for name, kept in keep.items()} for keep in keeps]
    with torch.no_grad():
        assert torch.equal(graph.network(x), model(x)) or relative(graph.network(x), model(x)) < 1e-12
        cuts = [cut(graph, keep) for keep in keeps]
        for network, keep in zip(cuts, keeps, strict=True):
            assert relative(network(x), zeroed_output(graph, keep, x)) < 1e-10
        if free:
            assert relative(cuts[0](x), model(x)) > 1e-8
        both = join([Part(graph, keep, network) for keep, network in zip(keeps, cuts, strict=True)])
        assert relative(both(x), torch.cat([network(x) for network in cuts], 1)) < 1e-10
    return graph


class Headed(nn.Module):
    """A stem, something in the middle, and a classifier on averaged positions."""

    def __init__(self, width: int = 6, read: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(read, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(F.silu(self.stem(x))).mean((2, 3)))


def test_standardised_weights_are_computed_once() -> None:
    class Standardised(Headed):
        def __init__(self) -> None:
            super().__init__(read=5)
            self.conv = nn.Conv2d(6, 5, 3)

        def middle(self, x: Tensor) -> Tensor:
            weight = self.conv.weight
            mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
            return F.silu(F.conv2d(x, (weight - mean) / deviation, self.conv.bias))

    model = randomised(Standardised().double())
    before = model.conv.weight.clone()
    graph = checked(model, {"stem": 6, "conv": 5})
    assert isinstance(graph.network.layer("conv"), nn.Conv2d)
    assert torch.equal(model.conv.weight, before)
    assert not torch.equal(graph.network.layer("conv").weight, before)


def test_functional_norms_become_layers_that_a_shift_can_go_into() -> None:
    class Functional(Headed):
        def __init__(self) -> None:
            super().__init__(read=5)
            self.conv = nn.Conv2d(6, 5, 3, bias=False)
            self.bn = nn.BatchNorm2d(5)
            self.norm = nn.LayerNorm(6)

        def middle(self, x: Tensor) -> Tensor:
            bn = self.bn
            x = F.layer_norm(x.permute(0, 2, 3, 1), (6,), self.norm.weight, self.norm.bias).permute(0, 3, 1, 2)
            x = F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, bn.eps)
            return F.silu(x)

    graph = checked(randomised(Functional().double()), {"conv": 5})
    assert isinstance(graph.network.layer("bn"), nn.BatchNorm2d)
    assert isinstance(graph.network.layer("norm"), nn.LayerNorm)
    assert [pin.reason for pin in graph.pinned()] == ["LayerNorm 'norm' mixes channels"]


def test_a_layer_that_runs_twice_has_one_axis() -> None:
    class Twice(Headed):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def middle(self, x: Tensor) -> Tensor:
            return F.silu(self.conv(F.silu(self.conv(x))))

    checked(randomised(Twice().double()), {"stem": 6})


def test_tied_weights_are_pinned_and_said() -> None:
    class Tied(Headed):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.c = nn.Conv2d(6, 6, 1)
            self.b.weight = self.a.weight

        def middle(self, x: Tensor) -> Tensor:
            x = F.silu(self.b(F.silu(self.c(F.silu(self.a(x))))))
            return F.conv2d(x, self.a.weight) + x  # the same weight once more, as a function

    graph = checked(randomised(Tied().double()), {})
    assert graph.pinned()
    assert all(pin.reason for pin in graph.pinned())


@pytest.mark.parametrize("groups", [2, 3])
def test_channel_shuffles_in_every_spelling(groups: int) -> None:
    class Shuffled(Headed):
        def __init__(self, spelling: str) -> None:
            super().__init__()
            self.spelling = spelling
            self.shuffle = nn.ChannelShuffle(groups)
            self.depthwise = nn.Conv2d(6, 6, 3, groups=6)

        def middle(self, x: Tensor) -> Tensor:
            if self.spelling == "view":
                batch, channels, height, width = x.size()
                x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
                x = x.view(batch, -1, height, width)
            elif self.spelling == "function":
                x = F.channel_shuffle(x, groups)
            elif self.spelling == "unflatten":
                x = x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
            else:
                x = self.shuffle(x)
            return F.silu(self.depthwise(x))

    for spelling in ("view", "function", "layer", "unflatten"):
        graph = checked(randomised(Shuffled(spelling).double()), {"stem": 6})
        assert [node.args[2] for node in graph.network.nodes if node.target == "take"] == [
            F.channel_shuffle(torch.arange(6).reshape(1, 6, 1, 1), groups).flatten().tolist()
        ]


def test_whole_heads_are_cut_with_a_bias_for_each_head() -> None:
    class Attention(Headed):
        def __init__(self) -> None:
            super().__init__(read=4)
            self.qkv, self.proj = nn.Linear(6, 3 * 3 * 2), nn.Linear(3 * 2, 4)
            self.table = nn.Parameter(torch.zeros(7, 3))
            self.register_buffer("index", torch.arange(64 * 64).reshape(64, 64) % 7)

        def middle(self, x: Tensor) -> Tensor:
            batch, _, height, width = x.shape
            qkv = self.qkv(x.flatten(2).transpose(1, 2)).reshape(batch, 64, 3, 3, 2)
            q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))
            scores = q @ k.transpose(-2, -1) * 2**-0.5 + self.table[self.index].permute(2, 0, 1)
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, 64, 6)
            return self.proj(y).transpose(1, 2).reshape(batch, 4, height, width)

    graph = checked(randomised(Attention().double()), {"stem": 6, "qkv": 3, "proj": 4})
    (bias,) = graph.network.tensor_names
    assert graph.network.tensor(bias).shape == (3, 64, 64)  # looked up once, and cut with the heads


def test_einsum_is_followed_by_its_letters() -> None:
    class Einsum(Headed):
        def __init__(self) -> None:
            super().__init__(read=5)
            self.conv, self.mix = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 64, 1)

        def middle(self, x: Tensor) -> Tensor:
            weights = self.mix(x).flatten(2).softmax(1)
            y = torch.einsum("bcn,bnm->bcm", self.conv(x).flatten(2), weights)
            return F.silu(y).reshape(x.shape[0], -1, 8, 8)

    graph = checked(randomised(Einsum().double()), {"stem": 6, "conv": 5})
    assert graph.pinned()[0].reason.startswith("tensor_softmax")


def test_a_mean_over_channels_counts_the_dropped_ones_as_zeros() -> None:
    class Response(Headed):
        def middle(self, x: Tensor) -> Tensor:
            energy = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x * (energy / (energy.mean(dim=1, keepdim=True) + 0.1))

    checked(randomised(Response().double()), {"stem": 6})


def test_numbers_from_channel_counts_stay_right_where_nothing_is_cut() -> None:
    class Pooled(Headed):
        def middle(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            summed = torch.logcumsumexp(x, 1)  # not known: its channels stay whole, x's are not read elsewhere
            return summed.reshape(batch, channels, height, width) / (height * width)

    graph = checked(randomised(Pooled().double()), {})
    assert "logcumsumexp" in graph.pinned()[0].reason
    assert not any("computed" in pin.reason for pin in graph.pinned())


def test_single_channels_that_are_repeated_or_turned_round_come_out_right() -> None:
    class Repeated(Headed):
        def __init__(self) -> None:
            super().__init__(width=3, read=8)
            self.one = nn.Conv2d(3, 1, 1)

        def middle(self, x: Tensor) -> Tensor:
            y = F.silu(self.one(x))
            y = torch.cat([y, y, x.flip(1)], 1)
            return torch.cat([y.repeat(1, 1, 1, 1), x], 1)

    checked(randomised(Repeated().double()), {"stem": 3, "one": 1})


class Stepping(Headed):
    """Python control flow over sizes, which symbolic tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__(read=4)
        self.conv = nn.Conv2d(6, 4, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(4)

    def middle(self, x: Tensor) -> Tensor:
        extra = max(3 - x.shape[-1] % 2 - 1, 0)
        if extra > 0:
            x = F.pad(x, (0, extra, 0, extra))
        return F.relu6(self.bn(self.conv(x)))


def test_control_flow_over_sizes_is_followed(tmp_path) -> None:
    model = randomised(Stepping().double())
    graph = checked(model, {"stem": 6, "conv": 4})
    assert set(graph.network.layer_names) == {"stem", "conv", "bn", "head"}
    with torch.no_grad():
        assert relative(graph.network(images(5)), model(images(5))) < 1e-12  # the batch stays free
    data = images(6).float(), torch.arange(6) % 3
    model = model.float()
    component = by.disassemble(model, by.locate(model, data), task=[0, 2], budget=by.Budget(flops=0.7))
    again = by.load(component.save(tmp_path / "stepping.safetensors"))
    assert torch.equal(again(data[0]), component(data[0]))


class Deciding(Headed):
    def middle(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # this very line is named
            x = x * 2
        return x


def test_control_flow_over_numbers_names_the_users_line() -> None:
    with refused("trace-control-flow", "Deciding", "test_tracing.py", "if x.sum() > 0:"):
        trace(randomised(Deciding()), torch.rand(2, 3, 8, 8))


def test_export_is_not_used_where_it_knows_no_more() -> None:
    class Odd(Headed):
        def middle(self, x: Tensor) -> Tensor:
            return torch.logcumsumexp(x, 1)

    graph = trace(Odd(), torch.rand(2, 3, 8, 8))
    assert list(graph.network.foreign) == ["logcumsumexp (logcumsumexp)"]
    assert graph.network.nodes[1].name == "stem"  # a layer's step has its name: traced, not exported


def test_taking_places_that_do_not_exist_is_an_error() -> None:
    from brickyard.network._functions import FUNCTIONS

    take = FUNCTIONS["take"].call
    x = torch.arange(6.0).reshape(1, 6)
    assert torch.equal(take(x, 1, [5, 0]), torch.tensor([[5.0, 0.0]]))
    assert take(x, 1, []).shape == (1, 0)  # a part that keeps none of them
    for places in ([6], [-1]):
        with pytest.raises(IndexError, match="size 6"):
            take(x, 1, places)


class Registers(nn.Module):
    """Several learned tokens in front of those of the image, brought to the batch in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.embed, self.tokens = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 4, 12))
        self.wide, self.back, self.head = nn.Linear(12, 10), nn.Linear(10, 12), nn.Linear(12, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        tokens = self.tokens.repeat(count, 1, 1) if self.way == "repeat" else self.tokens.expand(count, -1, -1)
        tokens = self.tokens.expand(count, 4, 12) if self.way == "sizes" else tokens
        if self.way == "read elsewhere":
            tokens = tokens + self.tokens.mean(1, keepdim=True)
        x = torch.cat([tokens, self.embed(x).flatten(2).transpose(1, 2)], 1)
        x = x + self.back(torch.relu(self.wide(x)))
        if self.way == "along channels":
            x = torch.cat([x, self.tokens.expand(count, -1, -1)[:, :1].expand(-1, x.shape[1], -1)], 2)[:, :, :12]
        return self.head(x.mean(1))


@pytest.mark.parametrize("way", ["expand", "repeat", "sizes", "read elsewhere", "along channels"])
def test_learned_tokens_have_the_channels_of_those_that_they_are_joined_to(way: str) -> None:
    graph = trace(Registers(way).double(), torch.rand(2, 3, 8, 8, dtype=torch.float64))
    axis = graph.axis("embed")
    assert (axis.size, axis.pinned) == (12, ())
    assert "tokens" in axis.followers
    keep = {axis.name: torch.arange(1, axis.size, 2) for axis in graph.free}
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert relative(cut(graph, keep)(x), zeroed_output(graph, keep, x)) < 1e-10
        assert relative(cut(graph, keep)(x), graph.network(x)) > 1e-4


class ChangedInPlace(nn.Module):
    """Changes a value in place that another step has used, behind a branch that symbolic tracing cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "meta":
            return x.sum()
        y = self.norm(self.conv(x))
        z = y * 2
        y.relu_()
        return self.fc((y + z).mean((2, 3)))


def test_values_that_are_changed_in_place_after_a_use_are_followed() -> None:
    model = ChangedInPlace().double().eval()
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x[:2])
    keep = {axis.name: torch.arange(1, axis.size, 2) for axis in graph.free}
    graph.network.to_spec()  # every step can be stored
    with torch.no_grad():
        assert relative(graph.network(x), model(x)) < 1e-12
        assert relative(cut(graph, keep)(x), zeroed_output(graph, keep, x)) < 1e-10
        assert relative(cut(graph, keep)(x), model(x)) > 1e-4
    assert [axis.size for axis in graph.free] == [8]
