"""Numpy's whole numbers are taken wherever a whole number is, and become Python's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import brickyard as by
import brickyard.base
from brickyard.base import _options
from brickyard.base._declare import declared
from brickyard.evaluation import faithfulness, features
from brickyard.export import export_onnx
from brickyard.inputs import ImageData, load_data
from brickyard.reports import routes
from brickyard.testing import chain
from brickyard.training import accuracy, build_seeded
from misuse.calls import digest
from misuse.world import DATA, X

HOLDERS = [getattr(_options, name) for name in dir(_options) if hasattr(getattr(_options, name), "__annotations__")]
OPTIONS = [
    (holder, name, option)
    for holder in HOLDERS
    if holder.__module__ == _options.__name__
    for name, option in declared(holder).items()
    if option.kind is int and option.validate is None
]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_every_declared_option(kind: type) -> None:
    assert len(OPTIONS) > 10
    for holder, name, option in OPTIONS:
        value = int(max(option.least, 2))
        found = option.check(kind(value))
        assert found == value, (holder, name)
        assert type(found) is int, (holder, name)


@pytest.fixture(scope="module")
def made() -> tuple[Any, by.Relevance, by.Component]:
    source = chain()
    relevance = by.locate(source, DATA, per_class=2)
    return source, relevance, by.disassemble(source, relevance, task=["1", "3"])


CALLS = {
    "locate": lambda s, r, c, n: by.locate(s, DATA, per_class=n(2), seed=n(3), batch_size=n(5)),
    "locate, some classes": lambda s, r, c, n: by.locate(s, DATA, task=[n(1), n(3)], output=None),
    "disassemble": lambda s, r, c, n: by.disassemble(s, r, task=[n(1), n(3)], heal_images=n(8), seed=n(3)),
    "a budget": lambda s, r, c, n: by.disassemble(s, r, task=[n(1)], budget=by.Budget(flops=0.7, round_to=n(2))),
    "assemble": lambda s, r, c, n: by.assemble([c], scaling="affine", images=[DATA], shots=n(2), seed=n(1)),
    "evaluate": lambda s, r, c, n: by.evaluate(
        c, DATA, batch_size=n(5), latency=False, including_calibration=True, latency_batch=n(2)
    ),
    "predict_proba": lambda s, r, c, n: c.predict_proba(X, batch_size=n(5)),
    "score": lambda s, r, c, n: c.score(X[:2], ["1", "3"], batch_size=n(5)),
    "features": lambda s, r, c, n: features(c, DATA, batch_size=n(5)),
    "faithfulness": lambda s, r, c, n: faithfulness(
        s, r, [n(1)], DATA, seeds=n(2), batch_size=n(5), including_calibration=True
    ),
    "finetune": lambda s, r, c, n: by.finetune(
        c, DATA, validation=0, training=by.base.TrainingOptions(epochs=n(1), batch_size=n(4), seed=n(2))
    ),
    "relevance.sum": lambda s, r, c, n: r.sum("conv2")[n(1)],
    "load_data": lambda s, r, c, n: load_data("digits", max_images=n(5)).subset([n(1), n(2)]).images,
    "ImageData.split": lambda s, r, c, n: load_data("digits").split(0.99, seed=n(1))[1].images,
    "ImageData.shuffled": lambda s, r, c, n: load_data("digits").shuffled(seed=n(1)).labels,
    "build_seeded": lambda s, r, c, n: build_seeded("cnn", n(3), 0.25, seed=n(1)),
    "accuracy": lambda s, r, c, n: accuracy(s, ImageData(*DATA, tuple("abcd")), by.Preprocessing(), batch_size=n(5)),
    "routes": lambda s, r, c, n: routes(r, [n(1)], most_links=n(3)),
    "trace": lambda s, r, c, n: str(r.graph(s)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str, made: tuple[Any, by.Relevance, by.Component]) -> None:
    assert digest(CALLS[name](*made, np.int64)) == digest(CALLS[name](*made, int))


def test_the_results_can_be_written(made: tuple[Any, by.Relevance, by.Component], tmp_path: Any) -> None:
    pytest.importorskip("onnx")
    part = by.disassemble(made[0], made[1], task=[np.int64(1)], heal_images=np.int64(8), seed=np.int64(3))
    again = by.load(part.save(tmp_path / "part.safetensors"))
    assert isinstance(again, by.Component)
    assert torch.equal(again(X), part(X))
    assert export_onnx(part, tmp_path / "part.onnx", channels=np.int64(3)).images > 0
