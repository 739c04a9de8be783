"""Detectors that return several tensors, which are laid side by side in a described order."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.surgery import cut
from brickyard.testing import randomised, zeroed_output
from errors import refused

POINTS = by.Boxes(boxes_at=0, objectness_at=4, scores_at=5, scores="sigmoid", coding="sides", strides=(4,))
FIRST = by.Boxes(**{**POINTS.model_dump(), "outputs_first": True})


class Parts(NamedTuple):
    scores: Tensor
    sides: Tensor
    sure: Tensor


FORMS: dict[str, tuple[Any, str | None]] = {
    "tuple": (lambda *parts: parts, "1,2,0"),
    "fields": (Parts, "sides, sure, scores"),
    "nested": (lambda a, b, c: {"head": {"a": a}, "rest": [b, c]}, "rest.0,rest.1,head.a"),
    "torchvision": (lambda a, b, c: {"cls_logits": a, "bbox_regression": b, "bbox_ctrness": c}, None),
}


class Several(nn.Module):
    """One grid; scores, sides and objectness as tensors of their own."""

    def __init__(self, form: str = "tuple", boxes: by.Boxes = POINTS) -> None:
        super().__init__()
        self.made, self.boxes = FORMS[form][0], boxes
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
        self.scores, self.sides, self.sure = (nn.Conv2d(8, count, 1) for count in (5, 4, 1))
        randomised(self)

    def parts(self, x: Tensor) -> list[Tensor]:
        found = self.stem(x)
        parts = [layer(found).flatten(2) for layer in (self.scores, self.sides, self.sure)]
        return parts if self.boxes.outputs_first else [part.transpose(1, 2) for part in parts]

    def forward(self, x: Tensor) -> Any:
        return self.made(*self.parts(x))


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("boxes", [POINTS, FIRST], ids=["places first", "outputs first"])
@pytest.mark.parametrize("form", FORMS)
def test_tensors_are_laid_side_by_side_in_the_order_of_their_names(form: str, boxes: by.Boxes) -> None:
    net, x = Several(form, boxes).double(), images()
    graph = trace(net, x, FORMS[form][1], boxes=boxes)
    scores, sides, sure = (part if boxes.outputs_first else part.transpose(1, 2) for part in net.parts(x))
    assert torch.equal(graph.network(x), torch.cat([sides, sure, scores], 1))
    assert not torch.equal(graph.network(x), torch.cat([scores, sides, sure], 1))
    assert graph.boxes is not None
    assert graph.boxes.classes == 5
    keep = {graph.output.name: torch.tensor([3, 0]), graph.free[0].name: torch.tensor([1, 2, 6])}
    found, wanted = cut(graph, keep)(x), zeroed_output(graph, keep, x)
    assert found.shape[1] == 7
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)


def test_a_component_of_several_tensors_is_stored_and_knows_their_names(tmp_path) -> None:
    net = Several()
    rows = (torch.arange(10)[:, None] % 5 == torch.arange(5)).long()
    relevance = by.locate(net, (images(10).float(), rows), outputs=POINTS, output="1,2,0", per_class=2)
    part = by.disassemble(net, relevance, task=[4, 1], heal="none", budget=by.Budget(flops=1.0), select="mda")
    read = by.load(part.save(tmp_path / "part.safetensors"))
    x = images().float()
    assert torch.equal(read(x), part(x))
    assert read.manifest.output == "1,2,0"
    scores, sides, sure = (part.transpose(1, 2) for part in net.parts(x))
    with torch.no_grad():
        assert torch.allclose(read(x), torch.cat([sides, sure, scores[:, [4, 1]]], 1), atol=1e-6)


def test_a_source_of_ones_own_may_return_several_tensors(tmp_path) -> None:
    from brickyard.sources import load_source

    (tmp_path / "mine.py").write_text("from test_joined_outputs import Several\n\ndef net():\n    return Several()\n")
    source = load_source(f"{tmp_path / 'mine.py'}:net", boxes=POINTS, output="1,2,0", input_shape=(3, 16, 24))
    assert source.output == "1,2,0"
    assert len(source.classes) == 5
    x = images().float()
    graph = trace(source.model, x, source.output, boxes=source.boxes)
    with torch.no_grad():
        assert torch.equal(graph.network(x), source.model(x).transpose(1, 2))


def test_what_cannot_be_laid_side_by_side_is_refused_by_name() -> None:
    x = images()
    with refused("trace-output", "0,1,2", "order"):
        trace(Several().double(), x, boxes=POINTS)
    with refused("option-choice", "'7'"):
        trace(Several().double(), x, "1,7", boxes=POINTS)
    with refused("option-boxes", "0 (2, 24, 5)", "1 (2, 24, 4)", "outputs_first"):
        trace(Several().double(), x, "0,1", boxes=FIRST)
    with refused("option-boxes", "outputs"):
        trace(Several().double(), x, "1,2", boxes=POINTS)
