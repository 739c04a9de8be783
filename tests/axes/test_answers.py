"""What models return, as people write them, and how it becomes logits (batch, classes)."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.testing import chain
from errors import refused
from nets import relative

X = torch.rand(48, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@dataclasses.dataclass
class Answer:
    """As transformers' classes of outputs."""

    logits: Tensor
    features: Any = None


@dataclasses.dataclass
class Other:
    scores: Tensor
    loss: Any = None


class Both(NamedTuple):
    """As torchvision's GoogLeNet and Inception return them."""

    logits: Tensor
    aux_logits: Any


class Net(nn.Module):
    """A chain of which something is made at the end."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.end = chain().double(), end
        self.eval()

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found

    def forward(self, x: Tensor) -> Any:
        return self.end(self.net(x))


class Unrolled(Net):
    """The same, with control flow that symbolic tracing cannot follow and export can."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[1] > 2 and float(x.shape[2]) > 1:
            x = x * 1.0
        for _ in range(len(x.shape) - 3):
            x = x + 0.0
        return self.end(self.net(x))


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a dict": lambda z: {"logits": z, "features": 2 * z},
    "a dict of one": lambda z: {"out": z},
    "a dict with a loss": lambda z: {"loss": z.mean(), "scores": z},
    "an ordered dict": lambda z: OrderedDict(logits=z, hidden=(z, z)),
    "a tuple": lambda z: (z,),
    "a tuple with None": lambda z: (z, None),
    "loss first": lambda z: (z.mean(), z),
    "logits and maps": lambda z: (z, z[:, :, None, None].expand(-1, -1, 3, 3)),
    "a list": lambda z: [z],
    "a named tuple": lambda z: Both(z, 2 * z),
    "an object": lambda z: Answer(z, 3 * z),
    "an object with other names": lambda z: Other(z),
    "nested": lambda z: {"output": {"logits": z}, "other": None},
    "four dimensions": lambda z: z[:, :, None, None],
    "three dimensions in a dict": lambda z: {"logits": z.unsqueeze(-1)},
}


@pytest.mark.parametrize("kind", [Net, Unrolled])
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_what_a_model_returns(form: str, kind: type[Net]) -> None:
    model = kind(FORMS[form])
    graph = trace(model, X[:2])
    with torch.no_grad():
        assert relative(graph.network(X), model.logits(X)) < 1e-12
        assert relative(graph.network(X[:1]), model.logits(X[:1])) < 1e-12
    assert [axis.name for axis in graph.free] == [axis.name for axis in trace(Net(lambda z: z), X[:2]).free]


def test_a_component_of_such_a_model_is_that_of_the_plain_one(tmp_path) -> None:
    labels = Net(lambda z: z).logits(X).argmax(1)
    parts = []
    for end in (FORMS["an object"], FORMS["four dimensions"], lambda z: z):
        model = Net(end)
        relevance = by.locate(model, (X, labels), choose="all", task=labels.unique().tolist())
        task = relevance.task[:2]
        parts.append(by.disassemble(model, relevance, task=task, images=(X, labels), budget=by.Budget(flops=0.7)))
    assert {round(100 * part.manifest.selection.flops) for part in parts[:2]} == {
        round(100 * parts[2].manifest.selection.flops)
    }
    with torch.no_grad():
        for part in parts:
            assert torch.equal(by.load(part.save(tmp_path / f"{id(part)}.safetensors"))(X), part(X))
            assert relative(part(X), parts[2](X)) < 1e-9


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "two that fit": lambda z: (z, z + 1),
    "two named otherwise": lambda z: {"a": z, "b": z + 1},
    "nothing": lambda z: {},
    "text": lambda z: "cat",
    "a map": lambda z: z[:, :, None, None].expand(-1, -1, 2, 2),
    "a map named logits": lambda z: {"logits": z[:, :, None, None].expand(-1, -1, 2, 2)},
    "indices": lambda z: z.argmax(1),
    "one number in all": lambda z: z.mean(),
    "squeeze() of one logit": lambda z: z[:, :1].squeeze(),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_told_is_refused(form: str) -> None:
    with refused("trace-output", "Net", "test_answers.py"):
        trace(Net(REFUSED[form]), X[:2])


# -- one logit for two classes -----------------------------------------------------------------------------------

BINARY: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a column": (lambda z: z[:, :1], ""),
    "a number": (lambda z: z[:, 0], ""),
    "squeezed": (lambda z: z[:, :1].squeeze(1), ""),
    "in a dict": (lambda z: {"logits": z[:, 0]}, ""),
    "sigmoid": (lambda z: torch.sigmoid(z[:, :1]), "sigmoid"),
    "sigmoid, squeezed": (lambda z: torch.sigmoid(z[:, :1]).squeeze(-1), "sigmoid"),
    "sigmoid, flattened": (lambda z: z[:, :1].sigmoid().view(-1), "sigmoid"),
    "by hand": (lambda z: 1 / (1 + torch.exp(-z[:, :1])), "probabilities"),
}


@pytest.mark.parametrize("form", BINARY)
def test_one_logit_is_two_classes(form: str) -> None:
    end, ending = BINARY[form]
    model = Net(end)
    graph = trace(model, X[:2])
    assert (graph.output_width, graph.ending) == (2, ending)
    with torch.no_grad():
        yes = model.logits(X)[:, 0].sigmoid()
        assert relative(graph.network(X).softmax(1), torch.stack([1 - yes, yes], 1)) < 1e-7


def test_two_classes_of_one_logit_are_cut_and_healed() -> None:
    model = Net(lambda z: z[:, :1])
    with torch.no_grad():
        z = model.logits(X)[:, 0]
        model.net.linear.bias[0] -= z.median()
        labels = (model.logits(X)[:, 0] > 0).long()
    relevance = by.locate(model, (X, labels), classes=["no", "yes"], choose="all")
    assert relevance.record.right == (48, 48)
    whole = by.disassemble(model, relevance, task=["no", "yes"], budget=by.Budget(flops=0.999), heal="none")
    assert whole.predict(X, strangers="answer") == [("no", "yes")[k] for k in labels.tolist()]
    half = by.disassemble(
        model, relevance, task=["yes", "no"], images=(X, labels), budget=by.Budget(flops=0.6, factors=False)
    )
    right = sum(
        name == ("no", "yes")[k] for name, k in zip(half.predict(X, strangers="answer"), labels.tolist(), strict=True)
    )
    assert right >= 40  # of 48


def test_a_network_that_answers_with_a_quantity_is_no_classifier() -> None:
    model = Net(lambda z: z[:, :1])
    with refused("data-label-mismatch", "one integer"):
        by.locate(model, (X, torch.rand(48)))
    with refused("data-label-out-of-range", "classes 0 to 1"):
        by.locate(model, (X, torch.arange(48)))


# -- probabilities behind views ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z[:, :, None, None].softmax(1),
        lambda z: z[:, :, None, None].softmax(1).flatten(1),
        lambda z: z.unsqueeze(-1).log_softmax(1).squeeze(-1),
        lambda z: z.softmax(-1).view(-1, 4, 1),
    ],
)
def test_logits_are_taken_before_a_softmax_behind_views(end: Callable[[Tensor], Any]) -> None:
    model = Net(end)
    graph = trace(model, X[:2])
    assert graph.ending in ("softmax", "log_softmax")
    with torch.no_grad():
        assert relative(graph.network(X), model.logits(X)) < 1e-12


def test_a_softmax_over_some_of_the_outputs_stays() -> None:
    model = Net(lambda z: z.view(-1, 2, 2).softmax(-1).view(-1, 4))
    graph = trace(model, X[:2])
    assert graph.ending == ""
    with torch.no_grad():
        assert relative(graph.network(X), model(X)) < 1e-12
