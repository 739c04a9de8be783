"""Residual streams in another basis: the network computes the same, and every direction is a channel like others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import Graph, trace
from brickyard.healing._places import Shown
from brickyard.selection._turning import turned as in_principal_directions
from brickyard.surgery._cost import CostModel
from brickyard.surgery._join import cut
from brickyard.surgery._rotation import opened, principal, residuals, rotated
from brickyard.surgery._verify import zeroed_output
from brickyard.testing import chain, randomised
from errors import refused
from nets import relative

WIDTH = 12
IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Block(nn.Module):
    """A block of a vision transformer, in one of the forms in which they are written."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        if form == "rms":
            self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-3), nn.RMSNorm(WIDTH)
        else:
            self.norm1 = nn.LayerNorm(WIDTH, eps=1e-3)
            self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=form != "plain")
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * 8, bias=form != "plain"), nn.Linear(8, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        self.drop = nn.Dropout(0.5)
        if form == "scaled":
            self.gamma1, self.gamma2 = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = self.drop(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8)))
        if self.form == "in place":
            x += y
            x += self.fc2(F.gelu(self.fc1(self.norm2(x))))
            return x
        x = x + (self.gamma1 * y if self.form == "scaled" else y)
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return (y * self.gamma2 if self.form == "scaled" else y) + x


class ViT(nn.Module):
    """A vision transformer that reads its answer in one of several ways."""

    def __init__(self, form: str = "usual", pool: str = "token", depth: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.pool = pool
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.registers = nn.Parameter(torch.randn(1, 3, WIDTH)) if form == "registers" else None
        self.blocks = nn.ModuleList(Block(form) for _ in range(depth))
        self.first = nn.LayerNorm(WIDTH) if form == "norm first" else nn.Identity()
        self.norm = nn.RMSNorm(WIDTH) if form == "rms" else nn.LayerNorm(WIDTH)
        self.average = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(2 * WIDTH if pool == "both" else WIDTH, classes)
        randomised(self)
        for parameter in self.parameters():
            parameter.data += 0.1
        self.eval().double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        if self.registers is not None:
            x = torch.cat([x, self.registers.expand(x.shape[0], -1, -1)], 1)
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        if self.pool == "pool":
            return self.head(self.average(self.norm(x).transpose(1, 2)).flatten(1))
        if self.pool == "mean first":
            return self.head(self.norm(x.mean(1)))
        x = self.norm(x)
        if self.pool == "both":
            return self.head(torch.cat([x[:, 0], x[:, 1:].mean(1)], 1))
        return self.head(x[:, 0] if self.pool == "token" else x.mean(1))


FORMS = ("usual", "plain", "scaled", "registers", "in place", "rms")
POOLS = ("token", "mean", "mean first", "both", "pool")


def basis(width: int = WIDTH, seed: int = 0) -> Tensor:
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def turned(model: nn.Module, seed: int = 0) -> tuple[Graph, Graph]:
    """A network before and after its stream is turned to a random basis."""
    graph = trace(model, IMAGES[:2])
    (stream,) = residuals(graph)
    return graph, rotated(graph, stream, basis(stream.width, seed))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(form=st.sampled_from(FORMS), pool=st.sampled_from(POOLS), seed=st.integers(0, 99))
def test_a_turned_network_computes_the_same_and_any_direction_can_be_cut(form, pool, seed) -> None:
    model = ViT(form, pool)
    graph, after = turned(model, seed)
    assert [axis.size for axis in graph.axes if axis.pinned] == [3, WIDTH, 4]
    assert [axis.size for axis in after.axes if axis.pinned] == [3, 4]  # only the images and the class outputs
    with torch.no_grad():
        assert relative(after.network(IMAGES), model(IMAGES)) < 1e-10
        random = torch.Generator().manual_seed(seed)
        keep = {axis.name: torch.randperm(axis.size, generator=random)[: axis.size // 2 + 1].sort().values
                for axis in after.free}  # fmt: skip
        found = cut(after, keep)(IMAGES)
        assert relative(found, zeroed_output(after, keep, IMAGES)) < 1e-10
        assert relative(found, model(IMAGES)) > 1e-4  # the control
    assert residuals(after) == []  # it is turned once
    whole, now = CostModel(graph).whole, CostModel(after).whole
    norms = 0 if form == "plain" else 2 * 2 * WIDTH  # of a block; what they weigh is in other layers now
    moved = {"plain": 24, "scaled": -2 * WIDTH, "rms": 2 * WIDTH}.get(form, 0)
    last, plain = (1 if form == "rms" else 2) * WIDTH, 2 * WIDTH * (form == "plain")
    assert now.parameters == whole.parameters - last + 2 * (moved - norms - plain)
    assert now.flops == whole.flops


def test_the_source_stays_as_it_is() -> None:
    model = ViT("scaled")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    turned(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Odd(ViT):
    """A vision transformer that does one thing to its stream that does not commute with a rotation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.more, self.other = nn.Linear(WIDTH, WIDTH).double(), nn.RMSNorm(WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        if self.kind == "rectified":
            x = x.relu()
        if self.kind == "shifted":
            x = x + 0.5
        if self.kind == "largest":
            x = torch.cat([x, x.amax(1, keepdim=True)], 1)
        if self.kind == "read without a norm":
            x = x + self.more(x)
        if self.kind == "a product":
            x = x * self.more(self.norm(x))
        if self.kind == "normalised twice":
            x = x + self.more(self.norm(self.norm(x)))
        if self.kind == "added behind the norm":
            x = x + self.norm(x)
        if self.kind == "two norms in one":
            x = x + self.more(self.norm(x) + self.blocks[0].norm1(x))
        if self.kind == "padded behind a norm":
            x = torch.cat([x, self.more(F.pad(self.norm(x), (0, 0, 0, 1)))], 1)
        if self.kind == "norms of two kinds":
            x = x + self.more(self.other(x))
        if self.kind == "a layer twice":
            x = x + self.more(self.norm(x))
            x = x + self.more(self.norm(x))
        if self.kind == "after the sum":
            x = self.norm(x + self.more(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


ODD = ("rectified", "shifted", "largest", "read without a norm", "a product", "normalised twice")
ODD += ("added behind the norm", "two norms in one", "a layer twice", "after the sum")
ODD += ("padded behind a norm", "norms of two kinds")


@pytest.mark.parametrize("kind", ODD)
def test_what_does_not_commute_with_a_rotation_is_left_alone(kind: str) -> None:
    model = randomised(Odd(kind)).eval().double()
    assert residuals(trace(model, IMAGES[:2])) == []
    assert len(residuals(trace(ViT(), IMAGES[:2]))) == 1  # the control


def test_a_stream_that_begins_behind_a_norm_is_turned_behind_a_layer_that_changes_nothing() -> None:
    """As in CLIP, whose embeddings are normalised before the first block."""
    model = ViT("norm first")
    graph = trace(model, IMAGES[:2])
    made = opened(graph, lambda _, stream: basis(stream.width))
    assert (made.turned, made.norms) == (2, 0)
    assert [axis.size for axis in made.graph.axes if axis.pinned] == [3, 4]
    keep = {axis.name: torch.arange((axis.size + 1) // 2) for axis in made.graph.free}
    with torch.no_grad():
        assert relative(made.graph.network(IMAGES), model(IMAGES)) < 1e-10
        found = cut(made.graph, keep)(IMAGES)
        assert relative(found, zeroed_output(made.graph, keep, IMAGES)) < 1e-10
        assert relative(found, model(IMAGES)) > 1e-4  # the control


def test_networks_without_such_a_stream_are_left_alone() -> None:
    assert residuals(trace(chain(), IMAGES[:2].float())) == []


def test_principal_directions_come_in_order_and_do_not_depend_on_signs() -> None:
    q, values = basis(), torch.arange(WIDTH, 0, -1).double()
    found = principal(q @ torch.diag(values) @ q.T)
    torch.testing.assert_close(found.T @ found, torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close((found.T @ q).abs(), torch.eye(WIDTH, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.equal(found, principal((-q) @ torch.diag(values) @ (-q).T))


# -- as users have it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def part() -> tuple[nn.Module, by.Component]:
    model = ViT(depth=3).float()
    return model, made(model, [0, 2], flops=0.5)


def test_a_component_has_fewer_directions_and_says_so(part, tmp_path: Path) -> None:
    _, component = part
    manifest = component.manifest
    assert manifest.selection.budget["rotated"] == 1
    assert manifest.axes["embed"].size == WIDTH
    assert len(manifest.axes["embed"].kept) < WIDTH
    assert manifest.selection.flops <= 0.5 * manifest.source.flops
    component.save(tmp_path / "part.safetensors")
    again = by.load(tmp_path / "part.safetensors")
    x = IMAGES.float()
    assert torch.equal(again(x), component(x))
    assert "rotated 1" in str(component)


SAMPLES = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(60) % 4


def made(model: nn.Module, task: list[int], **budget) -> by.Component:
    relevance = by.locate(model, (SAMPLES, LABELS))
    limits = by.Budget(**{"round_to": 1, **budget})
    return by.disassemble(model, relevance, task=task, budget=limits, images=(SAMPLES, LABELS))


@pytest.fixture(scope="module")
def other(part) -> by.Component:
    return made(part[0], [1, 3], flops=0.6)


@pytest.mark.parametrize("form", ["padded", "grouped"])
def test_parts_with_bases_of_their_own_are_laid_side_by_side(part, other, form: str) -> None:
    x = IMAGES.float()
    joined = by.assemble([part[1], other], form=form, scaling="none")
    torch.testing.assert_close(joined(x), by.assemble([part[1], other], scaling="none")(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(joined(x), by.assemble([other, part[1]], scaling="none")(x), rtol=1e-4, atol=1e-5)


def test_they_cannot_be_laid_over_each_other(part, other) -> None:
    for source in (None, part[0]):
        with refused("surgery-union-sources", "0, 2", "rotate=False", "form='parallel'"):
            by.assemble([part[1], other], form="union", source=source)


def test_a_budget_may_forbid_it(part) -> None:
    plain = made(part[0], [0, 2], flops=0.7, rotate=False)
    assert len(plain.manifest.axes["embed"].kept) == WIDTH
    assert "rotated" not in plain.manifest.selection.budget
    relevance = by.locate(part[0], (SAMPLES, LABELS))
    with refused("option-conflict", "rotate=True", "select='l1'"):
        by.disassemble(part[0], relevance, task=[0, 2], budget=by.Budget(flops=0.7, rotate=True), select="l1")


def test_the_basis_is_that_of_the_task(part) -> None:
    """Its energies are the eigenvalues of what the norms give, as the model itself computes it."""
    model = part[0]
    images = SAMPLES[LABELS % 2 == 0]
    seen: list[Tensor] = []
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [
        norm.register_forward_hook(lambda _, given, __: seen.append(F.layer_norm(given[0], (WIDTH,)).double()))
        for norm in norms
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    rows = torch.cat([x.reshape(-1, WIDTH) for x in seen])
    graph = trace(model, images[:2])
    (stream,) = residuals(graph)
    made = in_principal_directions(graph, Shown([images]))
    found = made.graph
    energies = torch.zeros(WIDTH, dtype=torch.float64)
    with torch.no_grad():
        for _, node, values in found.network.walk(images):
            if node.name in stream.norms:
                x = values[node.args[0].node].reshape(-1, WIDTH).double()
                energies += (x / x.square().mean(1, keepdim=True).sqrt()).square().sum(0)
    assert (made.turned, made.norms) == (1, 0)
    torch.testing.assert_close(energies, torch.linalg.eigvalsh(rows.T @ rows).flip(0), rtol=1e-2, atol=1e-1)
