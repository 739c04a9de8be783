"""Every refusal that a forward method can cause names the user's line, and says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.axes._tracing import _Tracer
from brickyard.base._errors import BrickyardError
from brickyard.testing import randomised
from errors import judge

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
calls = count()


def marked(name: str) -> int:
    """The line of this file that ends in this mark."""
    lines = Path(__file__).read_text("utf-8").splitlines()
    return 1 + next(number for number, line in enumerate(lines) if re.search(rf"#( noqa: \S+)? here: {name}$", line))


class Net(nn.Module):
    """A convolution, something in the middle, and a classifier."""

    def __init__(self, middle: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Linear(6, 3)
        self.middle = [middle]
        randomised(self)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.b(self.middle[0](self.a(x))).mean((2, 3)))


class Ends(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.fc(self.a(x).mean((2, 3)))
        return self.middle[0](y)  # here: ends


class Second(Net):
    def forward(self, x: Tensor, scale: Tensor) -> Any:  # here: second
        return super().forward(x) * scale


class Nothing(Net):
    def forward(self, *, x: Tensor) -> Any:  # here: none
        return super().forward(x)


def decides(y: Tensor) -> Tensor:
    if y.sum() > 0:  # here: decides
        y = y * 2
    return y


def loops(y: Tensor) -> Tensor:
    total = y * 0
    for image in y:  # here: loops
        total = total + image.sum() if image.sum() > 0 else total
    return total


def counts(y: Tensor) -> Tensor:
    return y * int(y.abs().max())  # here: counts


def numpys(y: Tensor) -> Tensor:
    return torch.from_numpy(y.detach().numpy() * y.sum().item())  # here: numpys


def fails(y: Tensor) -> Tensor:
    return y + torch.zeros(5, 1, 1)  # here: fails


def infinite(y: Tensor) -> Tensor:
    y = y.relu()
    return y / (y - y)  # here: infinite


def fixed(y: Tensor) -> Tensor:
    return y.view(2, 6, -1).view(2, 6, 8, 8)  # here: fixed


def read_fixed(y: Tensor) -> Tensor:
    size = int(str(len(y))) if not isinstance(y, torch.fx.Proxy) else 2
    return y.reshape(size, 6, 8, 8)  # here: read_fixed


def mixes(y: Tensor) -> Tensor:
    y = y.relu()
    return y - y.mean(0, keepdim=True)  # here: mixes


def first(y: Tensor) -> Tensor:
    return y + y[:1]  # here: first


def draws(y: Tensor) -> Tensor:
    return y + torch.rand_like(y)  # here: draws


def changes(y: Tensor) -> Tensor:
    return y * next(calls)


def unknown(y: Tensor) -> Tensor:
    return torch.logcumsumexp(y, 1)  # here: unknown


def overwritten(y: Tensor) -> Tensor:
    half = y[:, 2:]
    half.add_(1.0)
    return y


def whole(model: nn.Module) -> Any:
    return trace(model, X)


def saved(model: nn.Module) -> Any:
    return trace(model, X).network.to_spec()


def padded(model: nn.Module) -> Any:
    data = torch.rand(12, 3, 8, 8), torch.arange(12) % 3
    relevance = by.locate(model, data)
    parts = [
        by.disassemble(model, relevance, task=task, budget=by.Budget(flops=0.9), heal="none") for task in ([0], [1])
    ]
    return by.assemble(parts, form="padded")


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], str, tuple[str, ...]]] = {
    "decides": (lambda: Net(decides), whole, "trace-control-flow", ("torch.where",)),
    "loops": (lambda: Net(loops), whole, "trace-control-flow", ("unbind",)),
    "counts": (lambda: Net(counts), whole, "trace-control-flow", (".item()",)),
    "numpys": (lambda: Net(numpys), whole, "trace-control-flow", ("numpy",)),
    "fails": (lambda: Net(fails), whole, "trace-run-failed", ("example",)),
    "infinite": (lambda: Net(infinite), whole, "trace-not-finite", ("step 'truediv'",)),
    "fixed": (lambda: Net(fixed), whole, "trace-batch", ("x.shape[0]",)),
    "read_fixed": (lambda: Net(read_fixed), whole, "trace-batch", ("step 'reshape'", "x.shape[0]")),
    "mixes": (lambda: Net(mixes), whole, "trace-batch", ("step 'mean'", "by itself")),
    "first": (lambda: Net(first), whole, "trace-batch", ("by itself",)),
    "draws": (lambda: Net(draws), whole, "trace-mismatch", ("step 'rand_like'", "a layer of its own")),
    "unknown": (lambda: Net(unknown), saved, "file-unsupported-operation", ("logcumsumexp",)),
    "second": (lambda: Second(decides), whole, "trace-forward-inputs", ("scale", "wrap it")),
    "none": (lambda: Nothing(decides), whole, "trace-forward-inputs", ("wrap it",)),
}
ENDS: dict[str, Callable[[Tensor], Any]] = {
    "a tuple": lambda y: (y, y),
    "integers": lambda y: y.long(),
    "one dimension": lambda y: y[0],
}


def place_of(name: str) -> str:
    return f"test_places.py line {marked(name)} "


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_the_line_and_what_to_write(name: str) -> None:
    make, act, code, quoted = CASES[name]
    model = make()
    with pytest.raises(BrickyardError) as caught:
        act(model)
    judge(caught.value, code, place_of(name), *quoted)


@pytest.mark.parametrize("name", ENDS)
def test_an_output_that_cannot_be_used_names_where_it_is_returned(name: str) -> None:
    with pytest.raises(BrickyardError) as caught:
        trace(Ends(ENDS[name]), X)
    judge(caught.value, "trace-output", place_of("ends"), "return")


def test_a_number_of_python_that_changes_is_found_by_the_first_layer_after_it() -> None:
    with pytest.raises(BrickyardError) as caught:
        trace(Net(changes), X)
    judge(caught.value, "trace-mismatch", "step 'b'", "test_places.py line ")


def test_images_that_are_not_finite_are_told_apart_from_a_network_that_is() -> None:
    with pytest.raises(BrickyardError) as caught:
        trace(Net(lambda y: y), X * float("nan"))
    judge(caught.value, "trace-not-finite", "in the images themselves")


def test_lines_are_those_of_exported_networks_too() -> None:
    class Sized(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            y = F.avg_pool2d(y, 2) if y.shape[-1] > 64 else y
            y = torch.logcumsumexp(y, 1)  # here: exported
            return self.fc(y.mean((2, 3)))

    with pytest.raises(BrickyardError) as caught:
        saved(Sized(decides))
    judge(caught.value, "file-unsupported-operation", "aten.", place_of("exported"))


def test_what_overwrites_a_part_is_named_where_parts_are_padded() -> None:
    with pytest.raises(BrickyardError) as caught:
        padded(Net(overwritten))
    judge(caught.value, "surgery-not-paddable", "step 'add_'", "without working in place")


def test_a_pinned_axis_shows_its_line_where_it_is_printed_and_not_where_it_is_stored() -> None:
    graph = trace(Net(unknown), X)
    axis = graph.axis("a")
    assert place_of("unknown") in str(graph)
    assert [place_of("unknown") in line for line in axis.lines] == [True] * len(axis.pinned)
    assert not any(".py" in pinned.reason for pinned in graph.pinned())
    assert ".py" not in str(trace(Net(lambda y: y), X)).replace("pinned because", "")


def test_a_step_keeps_its_line_through_a_cut_and_a_file_does_not(monkeypatch) -> None:
    model = Net(torch.relu)
    data = torch.rand(12, 3, 8, 8), torch.arange(12) % 3
    component = by.disassemble(model, by.locate(model, data), task=[0, 1], budget=by.Budget(flops=0.8), heal="none")
    lines = {node.name: node.line for node in component.network.nodes}
    assert lines["relu"].startswith("test_places.py line ")
    assert ".py" not in component.manifest.model_dump_json()
    monkeypatch.setattr(_Tracer, "create_node", torch.fx.Tracer.create_node)  # the control: nothing notes lines
    assert not any(node.line for node in trace(model, X).network.nodes)
