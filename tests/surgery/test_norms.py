"""Norms over channels as steps: the network computes the same, and the channels can be cut."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.export import export_onnx
from brickyard.surgery._join import cut
from brickyard.surgery._norms import spread
from brickyard.surgery._verify import zeroed_output
from brickyard.testing import chain, randomised
from errors import refused
from nets import relative

WIDTH = 10
IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
NORMS = {
    "layer": lambda: nn.LayerNorm(WIDTH, eps=1e-3),
    "layer, plain": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "layer, no bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "rms": lambda: nn.RMSNorm(WIDTH),
    "maps": lambda: nn.LayerNorm((WIDTH, 4, 4)),
    "group": lambda: nn.GroupNorm(1, WIDTH),
    "group, plain": lambda: nn.GroupNorm(1, WIDTH, affine=False),
}


class Mixed(nn.Module):
    """A residual stream that a depthwise convolution reads, and then a norm, as in ConvNeXt."""

    def __init__(self, norm: str, place: str = "before") -> None:
        super().__init__()
        self.last, self.place = norm.startswith(("layer", "rms")), place
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        self.deep = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm, self.one, self.two = NORMS[norm](), nn.Conv2d(WIDTH, 7, 1), nn.Conv2d(7, WIDTH, 1)
        self.head = nn.Linear(WIDTH, 4)
        randomised(self)
        for parameter in self.parameters():
            parameter.data += 0.1
        self.eval().double()

    def normalised(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.norm(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.deep(x)
        if self.place == "before":
            x = x + self.two(torch.relu(self.one(self.normalised(y))))
        else:  # as in the second Swin: what a branch gives is normalised
            x = x + self.normalised(self.two(torch.relu(self.one(y))))
        if self.place == "mixed":
            x = x.softmax(1)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_network_computes_the_same_and_its_stream_can_be_cut(norm: str, place: str) -> None:
    model = Mixed(norm, place)
    graph = trace(model, IMAGES[:2])
    assert [axis.size for axis in graph.axes if axis.pinned] == [3, WIDTH, 4]
    after, count = spread(graph)
    assert count == 1
    assert [axis.size for axis in after.axes if axis.pinned] == [3, 4]
    keep = {"stem": torch.tensor([0, 2, 3, 7, 9]), "one": torch.arange(5)}
    with torch.no_grad():
        assert relative(after.network(IMAGES), model(IMAGES)) < 1e-10
        found = cut(after, keep)(IMAGES)
        assert relative(found, zeroed_output(after, keep, IMAGES)) < 1e-10
        assert relative(found, model(IMAGES)) > 1e-4  # the control


def test_averages_go_on_counting_the_channels_that_are_gone() -> None:
    """The cut norm, written down: sums over what is left, divided by what there was."""
    model = Mixed("layer")
    keep = torch.tensor([0, 2, 3, 7, 9])
    after, _ = spread(trace(model, IMAGES[:2]))
    with torch.no_grad():
        y = model.deep(model.stem(IMAGES))[:, keep]
        centred = y - y.sum(1, keepdim=True) / WIDTH
        y = centred / (centred.square().sum(1, keepdim=True) / WIDTH + 1e-3).sqrt()
        y = y * model.norm.weight[keep, None, None] + model.norm.bias[keep, None, None]
        hidden = torch.relu(
            torch.einsum("oi,nihw->nohw", model.one.weight[:, keep, 0, 0], y) + model.one.bias[:, None, None]
        )
        x = model.stem(IMAGES)[:, keep] + model.two(hidden)[:, keep]
        wanted = x.mean((2, 3)) @ model.head.weight[:, keep].T + model.head.bias
        assert relative(cut(after, {"stem": keep})(IMAGES), wanted) < 1e-10


def test_a_norm_stays_a_layer_where_something_else_keeps_its_channels() -> None:
    graph = trace(Mixed("layer", "mixed"), IMAGES[:2])
    after, count = spread(graph)
    assert count == 0
    assert after is graph or "norm" in after.network.layer_names
    assert spread(trace(chain(), IMAGES[:2].float()))[1] == 0


# -- as users have it --------------------------------------------------------------------------------------------

SAMPLES = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(60) % 4


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Mixed("layer").float()


def made(model: nn.Module, task: list[int], **budget) -> by.Component:
    limits = by.Budget(**{"round_to": 1, "factors": False, **budget})
    relevance = by.locate(model, (SAMPLES, LABELS))
    return by.disassemble(model, relevance, task=task, budget=limits, images=(SAMPLES, LABELS))


@pytest.fixture(scope="module")
def part(model) -> by.Component:
    return made(model, [0, 2], flops=0.5)


def test_a_component_has_fewer_channels_everywhere_and_says_so(part, tmp_path: Path) -> None:
    manifest = part.manifest
    assert manifest.selection.budget["norms"] == 1
    assert len(manifest.axes["stem"].kept) < WIDTH
    again = by.load(part.save(tmp_path / "part.safetensors"))
    x = IMAGES.float()
    assert torch.equal(again(x), part(x))
    path = tmp_path / "part.onnx"
    export_onnx(part, path)
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"images": x.numpy()})
    assert relative(torch.from_numpy(logits), part(x)) < 1e-5


def test_without_it_the_stream_stays_whole(model) -> None:
    plain = made(model, [0, 2], flops=0.8, rotate=False)
    assert len(plain.manifest.axes["stem"].kept) == WIDTH
    assert "norms" not in plain.manifest.selection.budget


@pytest.mark.parametrize("form", ["padded", "grouped"])
def test_parts_are_laid_side_by_side_but_not_over_each_other(model, part, form: str) -> None:
    other = made(model, [1, 3], flops=0.6)
    x = IMAGES.float()
    joined = by.assemble([part, other], form=form, scaling="none")
    torch.testing.assert_close(joined(x), by.assemble([part, other], scaling="none")(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(joined(x), by.assemble([other, part], scaling="none")(x), rtol=1e-4, atol=1e-5)
    with refused("surgery-union-sources", "0, 2", "rotate=False"):
        by.assemble([part, other], form="union", source=model)
