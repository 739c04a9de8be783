"""Assemblies of parts that know what they are not: "none of these" where all parts say so, in every form and file."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import brickyard as by
from brickyard import gnn
from brickyard.assembly._labelled import Examples
from brickyard.base._options import TrainingOptions
from brickyard.component._predictor import REJECT
from brickyard.export import export_module, export_onnx
from brickyard.runtime._profiling import measure_latency
from brickyard.testing import Residual, chain, random_graph, randomised
from conftest import needed_package

X = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.arange(60) % 4
NAMES = (["cat", "dog", "hen", "cow"], ["car", "bus", "van", "cat"])
TASKS = (["dog", "cat"], ["van", "bus"])

pytestmark = pytest.mark.filterwarnings("ignore:.*no better than chance")


def part(which: int, make=chain, task=None, names=None, **options: Any) -> by.Component:
    model = randomised(make(), which).double()
    relevance = by.locate(model, (X, Y), classes=names or NAMES[which])
    return by.disassemble(model, relevance, task=task or TASKS[which], **{"reject": True} | options)


def pair(make=chain, **options: Any) -> list[by.Component]:
    return [part(which, make, **options) for which in (0, 1)]


def by_definition(parts: list[by.Component], known: set[str]) -> Tensor:
    """The product of what the parts' own networks give to classes that the assembly has not, in float64."""
    found = torch.ones(len(X), dtype=torch.float64)
    with torch.no_grad():
        for one in parts:
            rest = [k for k, name in enumerate(one.manifest.names) if name not in known]
            found = found * one.network(one.preprocess(X)).double().softmax(1)[:, rest].sum(1)
    return found


def probabilities(model: Any) -> Tensor:
    return torch.as_tensor(model.predict_proba(X)).double()


@pytest.mark.parametrize("form", ["parallel", "padded", "grouped", "auto"])
@pytest.mark.parametrize("scaling", ["auto", "none", "log-probability"])
def test_its_probability_is_the_product_of_what_the_parts_say(form: Any, scaling: str, monkeypatch) -> None:
    monkeypatch.setattr("brickyard.assembly._forms.measure_latency", partial(measure_latency, runs=1))
    parts = pair()
    options = {"form": form, "scaling": scaling, "on_duplicate": "error", "votes": False}
    whole = by.assemble(parts, **options)
    found, wanted = probabilities(whole), by_definition(parts, set(whole.classes))
    # the second source's "cat" is none of its task, and no other name of the first's
    own = [one.predict_proba(X)[:, -1].double() for one in parts]
    torch.testing.assert_close(found[:, -1], own[0] * own[1], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(found[:, -1], wanted, rtol=1e-3)  # by name it would be less: names do not count here
    without = by.assemble([part(which, reject=which == 0) for which in (0, 1)], **options)
    assert (whole.reject, without.reject) == (True, False)
    assert list(whole.classes_) == [*without.classes_, REJECT]


def test_the_classes_among_themselves_are_as_they_were() -> None:
    data = [(X, Y), (X, Y)]
    for scaling in ("auto", "lda", "mahalanobis", "affine"):
        given = {} if scaling == "auto" or scaling == "mahalanobis" else {"images": data}
        parts = pair(heal="refit")
        whole = by.assemble(parts, scaling=scaling, **given)
        with torch.no_grad():
            logits, alone = whole(X), whole.scaled(*whole.signals(X, features=True)._replace(unknown=None))
        assert (logits.shape[1], alone.shape[1]) == (5, 4)
        torch.testing.assert_close(logits[:, :-1], alone, rtol=1e-12, atol=1e-12)
        own = [one.predict_proba(X)[:, -1].double() for one in parts]
        torch.testing.assert_close(probabilities(whole)[:, -1], own[0] * own[1], rtol=1e-8, atol=1e-12)
        answers = whole.predict(X, strangers="answer")
        rejected = logits.argmax(1) == 4
        assert [answer == REJECT for answer in answers] == rejected.tolist()


def test_with_votes_it_is_for_what_no_part_has() -> None:
    names = ["cat", "dog", "hen", "cow"]
    parts = [part(which, names=names, task=task) for which, task in enumerate((["cat"], ["hen", "dog"]))]
    whole = by.assemble(parts)
    assert whole.manifest.votes
    torch.testing.assert_close(
        probabilities(whole)[:, -1], by_definition(parts, {"cat", "hen", "dog"}), rtol=1e-9, atol=1e-12
    )
    halves = (["cat", "cow"], ["hen", "dog"])
    every = by.assemble([part(which, names=names, task=task) for which, task in enumerate(halves)])
    assert every.manifest.votes
    assert not every.reject  # some part has each class that the sources know
    assert every(X).shape == (60, 4)


def test_far_from_and_near_to_certainty_it_stays_finite() -> None:
    whole = by.assemble(pair(), scaling="none")
    for value in (0.0, -1e-9, -1e-3, -20.0, -1e4):
        for kind in (torch.float64, torch.float32, torch.bfloat16):
            logits = whole.scaled(torch.zeros(1, 4, dtype=kind), unknown=torch.tensor([[value]], dtype=torch.float64))
            assert torch.isfinite(logits).all()
            if kind == torch.float64 and value:
                wanted = torch.tensor([value], dtype=kind).exp()
                torch.testing.assert_close(logits.softmax(1)[:, -1], wanted, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("form", ["parallel", "padded"])
def test_files_and_copies_say_the_same(form: Any, tmp_path: Path) -> None:
    whole = by.assemble(pair(), form=form)
    with torch.no_grad():
        wanted = whole(X)
        again = by.load(whole.save(tmp_path / "whole.safetensors"))
        assert torch.equal(again(X), wanted)
        torch.testing.assert_close(whole.fused()(X), wanted, rtol=1e-9, atol=1e-9)
        assert torch.equal(whole.renamed({"van": "lorry"})(X), wanted)
        export_module(whole, tmp_path / "whole.py")
        spec = importlib.util.spec_from_file_location("whole", tmp_path / "whole.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        torch.testing.assert_close(module.load()(module.preprocess(X)), wanted, rtol=1e-9, atol=1e-9)
    assert tuple(module.CLASSES) == (*whole.classes, REJECT)
    assert "4 classes + reject" in str(again)


@pytest.mark.parametrize("form", ["parallel", "padded"])
def test_onnx_says_the_same(form: Any, tmp_path: Path) -> None:
    onnxruntime = needed_package("onnxruntime")
    whole = by.assemble([one.float() for one in pair(Residual)], form=form)
    export_onnx(whole, tmp_path / "whole.onnx")
    opened = onnxruntime.InferenceSession(str(tmp_path / "whole.onnx"), providers=["CPUExecutionProvider"])
    logits, chances = opened.run(["logits", "probabilities"], {"images": X.float().numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), whole(X.float()), rtol=1e-4, atol=1e-4)
    assert chances.shape == (60, 5)


def test_scores_are_about_the_classes_and_training_knows_the_rest() -> None:
    parts = pair()
    data = [(X, Y), (X, Y)]
    whole = by.assemble(parts)
    plain = by.assemble([part(which, reject=which == 0) for which in (0, 1)])
    found, wanted = (
        by.evaluate(one, data, latency=False, including_calibration=True).rows[-1].accuracy for one in (whole, plain)
    )
    assert found == pytest.approx(wanted)  # whether there is an output for the rest or not
    examples = Examples.of(whole, data, "the images")
    known = {"dog": 0, "cat": 1, "van": 2, "bus": 3, "hen": 4, "cow": 4, "car": 4}
    named = [NAMES[0][k] for k in Y.tolist()] + [NAMES[1][k] for k in Y.tolist() if NAMES[1][k] != "cat"]
    assert examples.targets.tolist() == [known[name] for name in named]  # the first part's class has that name too
    tuned = by.finetune(whole, data, training=TrainingOptions(epochs=1))
    assert tuned.reject


def test_a_file_that_claims_it_without_parts_that_can_is_refused() -> None:
    whole = by.assemble([part(which, reject=which == 0) for which in (0, 1)])
    text = whole.manifest.model_dump(mode="json") | {"reject": True}
    with pytest.raises(ValueError, match="an output for other classes"):
        type(whole.manifest).model_validate(text)


def test_graph_networks_too() -> None:
    network = gnn.random_network("gcn", 12, 8, 4).double()
    x, edges, labels = random_graph()
    relevance = gnn.locate(network, (x.double(), edges, labels), nodes=range(40))
    parts = [gnn.disassemble(network, relevance, task=task, reject=True) for task in ([1], [3])]
    whole = gnn.assemble(parts)
    with torch.no_grad():
        found = whole(x.double(), edges).softmax(1)[:, -1]
        first, second = (one.network(x.double(), edges).softmax(1) for one in parts)
    assert whole(x.double(), edges).shape[1] == 3
    torch.testing.assert_close(found, first[:, [0, 2, 3]].sum(1) * second[:, [0, 1, 2]].sum(1), rtol=1e-6, atol=1e-9)
