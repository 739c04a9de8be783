"""Models with several results that could be logits: the user names one, and every later step remembers it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import trace
from brickyard.base._options import TrainingOptions
from brickyard.export import export_onnx
from brickyard.recipes._schema import SourceRecipe
from brickyard.sources import load_source
from errors import refused
from nets import relative
from shell import run

X = torch.rand(48, 3, 8, 8, generator=torch.Generator().manual_seed(3))
Y = torch.arange(48) % 4


@dataclasses.dataclass
class Answer:
    main: Tensor
    aux: Tensor


class Pair(NamedTuple):
    main: Tensor
    aux: Tensor


class Two(nn.Module):
    """A trunk with two classifiers, of which something is made at the end."""

    def __init__(self, end: Callable[[Tensor, Tensor], Any], steps: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.main, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)
        self.end, self.steps = end, steps
        self.eval()

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x)).mean((2, 3))
        return self.main(x), self.aux(x)

    def forward(self, x: Tensor) -> Any:
        if self.steps and float(x.shape[2]) > 1:  # what symbolic tracing cannot follow and export can
            for _ in range(len(x.shape) - 3):
                x = x + 0.0
        return self.end(*self.both(x))


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "a tuple": (lambda a, b: (a, b), 1),
    "a tuple, in words": (lambda a, b: (a, b), "1"),
    "a tuple, from its end": (lambda a, b: (a, b), -1),
    "a list": (lambda a, b: [a, b], 1),
    "a dict": (lambda a, b: {"cls": a, "aux": b}, "aux"),
    "not the one called logits": (lambda a, b: {"logits": a, "aux": b}, "aux"),
    "keys that are numbers": (lambda a, b: {0: a, 1: b}, 1),
    "nested": (lambda a, b: {"head": {"cls": a, "aux": b}, "x": a}, "head.aux"),
    "a tuple in a dict": (lambda a, b: {"heads": [a, b]}, "heads.1"),
    "what holds one": (lambda a, b: {"main": {"z": a}, "aux": {"z": b, "map": b[..., None].expand(-1, -1, 2)}}, "aux"),
    "a key with a dot": (lambda a, b: {"head.cls": a, "head.aux": b}, "head.aux"),
    "an object": (lambda a, b: Answer(a, b), "aux"),
    "a named tuple": (lambda a, b: Pair(a, b), "aux"),
    "a named tuple, by place": (lambda a, b: Pair(a, b), 1),
    "further dimensions": (lambda a, b: (a, b[:, :, None, None]), 1),
    "probabilities": (lambda a, b: (a, b.softmax(1)), 1),
}  # fmt: skip


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_one_that_is_named_is_read(form: str, steps: bool) -> None:
    end, output = FORMS[form]
    model = Two(end, steps)
    graph = trace(model, X[:2], output)
    with torch.no_grad():
        main, aux = model.both(X)
        assert relative(graph.network(X), aux) < 1e-6
        assert relative(graph.network(X), main) > 0.1  # the control
    assert graph.output_width == 4


def test_what_could_be_meant_is_told() -> None:
    with refused("trace-output", "'cls' and 'aux'", "output='cls'", "--output-name cls"):
        trace(Two(lambda a, b: {"cls": a, "aux": b}), X[:2])
    with refused("trace-output", "'0' and '1'", "output='0'"):
        by.locate(Two(lambda a, b: (a, b)), (X, Y))
    with refused("trace-output", "'head.cls' and 'head.aux'"):
        trace(Two(lambda a, b: {"head": {"cls": a, "aux": b}}), X[:2])


BOTH: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda z: (z.softmax(1), z),
    "logarithms": lambda z: {"scores": z, "log": z.log_softmax(1)},
    "sigmoid": lambda z: [z, torch.sigmoid(z)],
    "three": lambda z: (z.softmax(1).log(), {"p": z.softmax(1)}, z),
    "further dimensions": lambda z: (z[:, :, None], z.softmax(1)),
    "one number": lambda z: (z[:, 0].sigmoid(), z[:, 0]),
}


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("form", BOTH)
def test_of_logits_and_their_probabilities_the_logits_are_read(form: str, steps: bool) -> None:
    model = Two(lambda a, b: BOTH[form](a), steps)
    with torch.no_grad():
        main, aux = model.both(X)
        wanted = torch.stack([-main[:, 0], main[:, 0]], 1) / 2 if form == "one number" else main
    graph = trace(model, X[:2])
    assert graph.ending == ""
    assert relative(graph.network(X), wanted) < 1e-6
    assert relative(graph.network(X), aux[:, : wanted.shape[1]]) > 0.1  # the control


@pytest.mark.parametrize("other", [lambda a, b: b.softmax(1), lambda a, b: 2 * a, lambda a, b: a])
def test_what_is_not_the_probabilities_of_the_other_is_refused(other: Callable[[Tensor, Tensor], Tensor]) -> None:
    with refused("trace-output", "'0' and '1'"):
        trace(Two(lambda a, b: (a, other(a, b))), X[:2])


WRONG: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any, str, tuple[str, ...]]] = {
    "unknown": (lambda a, b: {"cls": a, "aux": b}, "axu", "option-choice", ("'axu'", "'cls', 'aux'", "did you mean")),
    "no such place": (lambda a, b: (a, b), 2, "option-choice", ("'2'", "'0', '1'")),
    "a place in a dict": (lambda a, b: {"cls": a, "aux": b}, 0, "option-choice", ("'0'", "'cls', 'aux'")),
    "nothing to choose": (lambda a, b: a + b, "logits", "option-choice", ("'logits'", "leave output out")),
    "many": (lambda a, b: {f"part{k}": a for k in range(60)}, "x", "option-choice", ("'part0'", "and 52 more")),
    "a map": (lambda a, b: (a, b[:, :, None, None].expand(-1, -1, 2, 2)), 1, "trace-output", ("'1' does not hold",)),
    "several in it": (lambda a, b: {"head": (a, b)}, "head", "trace-output", ("'head.0' and 'head.1'",)),
    "no name": (lambda a, b: (a, b), "", "option-type", ("'head.logits'",)),
    "a flag": (lambda a, b: (a, b), True, "option-type", ("True",)),
    "a fraction": (lambda a, b: (a, b), 1.0, "option-type", ("1.0",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_found_is_refused(case: str) -> None:
    end, output, code, quoted = WRONG[case]
    for call in (lambda: trace(Two(end), X[:2], output), lambda: by.locate(Two(end), (X, Y), output=output)):
        with refused(code, *quoted):
            call()


def plain() -> nn.Module:
    return Two(lambda a, b: b)


def test_every_later_step_remembers_it(tmp_path: Path) -> None:
    model = Two(lambda a, b: {"cls": a, "aux": b})
    labels = plain()(X).argmax(1)
    task = labels.unique().tolist()[:2]
    relevance = by.locate(model, (X, labels), output="aux", task=task)
    assert torch.equal(relevance.scores, by.locate(plain(), (X, labels), task=task).scores)
    relevance = by.load(relevance.save(tmp_path / "relevance.safetensors"))
    assert "aux" in str(relevance)
    component = by.disassemble(model, relevance, task=task, images=(X, labels))
    component = by.load(component.save(tmp_path / "part.safetensors"))
    assert component.manifest.located.output == "aux"
    assert "aux" in str(component)
    scores = by.evaluate(component, (X, labels), source=model, latency=False, including_calibration=True)
    assert scores.row("base").accuracy == 100  # the labels are this output's own answers
    parts = [by.disassemble(model, relevance, task=[k], heal="none") for k in task]
    whole = by.assemble(parts, form="union", source=model)
    assert (
        by.evaluate(whole, [(X, labels)], source=model, latency=False, including_calibration=True).row("base").accuracy
        == 100
    )
    taught = by.finetune(component, (X, labels), teacher=model, training=TrainingOptions(epochs=1))
    assert taught.manifest.tuned is not None
    other = by.disassemble(model, by.locate(model, (X, Y), output="cls"), task=[3], heal="none")
    with refused("surgery-union-sources", "one of its outputs"):
        by.assemble([parts[0], other], form="union")
    both = by.assemble([parts[0], other], on_duplicate="rename")  # one source, two outputs
    assert (
        by.evaluate(both, [(X, labels), (X, Y)], source=model, latency=False, including_calibration=True)
        .row("base")
        .images
        > 0
    )


def test_work_on_another_output_is_not_taken_up(tmp_path: Path) -> None:
    model = Two(lambda a, b: (a, b))
    by.locate(model, (X, Y), output=0, resume=tmp_path)
    with refused("file-resume-mismatch"):
        by.locate(model, (X, Y), output=1, resume=tmp_path)


NETWORK = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.main, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), nn.Linear(8, 10)
    def forward(self, x):
        x = torch.relu(self.body(x)).mean((2, 3))
        return {"main": self.main(x), "extra": {"aux": self.aux(x)}}

def make():
    return Two()
"""


def test_the_shell_names_it_once(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    source, part, found = f"{tmp_path}/net.py:make", tmp_path / "part.safetensors", tmp_path / "found.safetensors"
    given = ("--size", "8", "--output-name", "extra.aux")
    assert "'main' and 'extra.aux'" in run("show", source, "--size", "8", code=1).output
    assert "10 classes" in run("show", source, *given).output
    run("locate", source, "--data", "digits", "-o", found, *given)
    assert by.load(found).record.output == "extra.aux"
    run("disassemble", source, "--relevance", found, "--data", "digits", "--task", "0-2", "-o", part)
    late = run("disassemble", source, "--relevance", found, "--task", "0", "-o", "x.safetensors", *given[2:], code=1)
    assert "--output-name" in late.output
    assert by.load(part).manifest.located.output == "extra.aux"
    assert "base" in run("evaluate", part, "--data", "digits", "--source", source).output
    run("routes", source, "--relevance", found, "--classes", "0", "-o", tmp_path / "routes.svg")
    run("finetune", part, "--data", "digits", "--source", source, "-o", tmp_path / "tuned.safetensors", "--epochs", 1)


def test_python_sources_and_recipes_name_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    shape = {"input_shape": (3, 8, 8)}
    with refused("trace-output", "'main' and 'extra.aux'"):
        load_source(f"{tmp_path}/net.py:make", **shape)
    source = load_source(f"{tmp_path}/net.py:make", output="extra.aux", **shape)
    assert source.output == "extra.aux"
    said = SourceRecipe(**{"network": "net.py:make", "data": "digits", "output-name": 1})
    assert said.output_name == "1"


def test_outputs_of_onnx_files_are_named(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    part = by.disassemble(plain(), by.locate(plain(), (X, Y)), task=[0, 1, 2, 3], heal="none")
    path = export_onnx(part, tmp_path / "a.onnx").path
    model = onnx.load(path)
    logits = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Neg", [logits], ["other"]))
    model.graph.node.append(onnx.helper.make_node("Abs", [logits], ["third"]))
    del model.graph.output[:]
    for name in ("other", "third"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4]))
    onnx.save(model, path)
    with refused("trace-output", "other", "third", "--output-name"):
        load_source(path)
    with refused("option-choice", "'fourth'", "'other', 'third'"):
        load_source(path, output="fourth")
    for output, sign in (("other", -1), (0, -1)):
        source = load_source(path, output=output)
        with torch.no_grad():
            assert relative(source.model(X), sign * part(X)) < 1e-5
        relevance = by.locate(source.model, (X, Y), output=source.output)
        assert relevance.record.output == str(output)
    assert relative(load_source(path, output="third").model(X), part(X).abs()) < 1e-5
