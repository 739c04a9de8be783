"""Weights as people have them: wrapped, prefixed, with counters, averages or foreign objects beside them."""

from __future__ import annotations

import argparse
import fractions
import pathlib
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import brickyard as by
from brickyard.inputs._datasets import ImageData
from brickyard.sources._loading import load_source
from brickyard.sources._resolve import fitted
from brickyard.sources._weights import read_weights, renamed
from brickyard.testing import randomised
from errors import refused

torchvision = pytest.importorskip("torchvision")
MODEL = randomised(torchvision.models.squeezenet1_1(num_classes=4))
STATE = MODEL.state_dict()
OTHER = randomised(torchvision.models.squeezenet1_1(num_classes=4), seed=1).state_dict()
X = torch.rand(1, 3, 64, 64)
HOW = by.Preprocessing(size=(64, 64))


def prefixed(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Any] = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 7},
    "net, as in kuangliu's": {"net": STATE, "acc": 93.1, "epoch": 7},
    "model and optimizer": {
        "model": STATE,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
    },
    "model_state": {"model_state": STATE, "best": 0.9},
    "nested": {"model": {"state_dict": STATE}},
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "Lightning": {
        "state_dict": prefixed("model."),
        "pytorch-lightning_version": "2.4",
        "hyper_parameters": {"lr": 0.1},
    },
    "compiled and wrapped": {"state_dict": prefixed("module._orig_mod.")},
    "counters of thop": {**STATE, "total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1)},
    "averages": {"state_dict": OTHER, "state_dict_ema": STATE},
    "averages of timm": {"state_dict": OTHER, "model_ema": prefixed("module."), "arch": "x"},
    "averaged by torch": {**prefixed("module."), "n_averaged": torch.tensor(5)},
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_are_found_where_they_are(name: str, tmp_path) -> None:
    path = tmp_path / "w.pth"
    torch.save(FORMS[name], path)
    source = load_source("torchvision:squeezenet1_1", weights=path, preprocessing=HOW)
    assert source.classes == ("0", "1", "2", "3")
    with torch.no_grad():
        assert torch.equal(source.model(X), MODEL(X))


def test_averages_are_left_if_asked(tmp_path) -> None:
    path = tmp_path / "w.pth"
    torch.save(FORMS["averages"], path)
    kept = load_source("torchvision:squeezenet1_1", weights=path, preprocessing=HOW, averaged=False)
    assert torch.equal(kept.model.state_dict()["features.0.weight"], OTHER["features.0.weight"])


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_safetensors_say_as_much_as_pickles(prefix: str, tmp_path) -> None:
    """Their keys come sorted: the number of classes is not that of whatever bias is last."""
    model = randomised(torchvision.models.resnet18(num_classes=4))
    save_file({prefix + name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    source = load_source("torchvision:resnet18", weights=tmp_path / "w.safetensors", preprocessing=HOW)
    assert len(source.classes) == 4
    with torch.no_grad():
        assert torch.equal(source.model(X), model(X))


def test_names_that_belong_to_the_network_keep_their_prefix() -> None:
    state = {"model.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert renamed(state, state, "w") == state
    assert renamed(prefixed("module.", state), state, "w").keys() == state.keys()
    strange = {"module.other": torch.zeros(1)}
    assert renamed(strange, state, "w") == strange  # nothing fits: left for the message that says so


NAMED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "class_to_idx": ({"dog": 0, "cat": 1, "bee": 2, "ant": 3}, ("dog", "cat", "bee", "ant")),
    "classes": (["dog", "cat", "bee", "ant"], ("dog", "cat", "bee", "ant")),
    "class_names": (("dog", "cat", "bee", "ant"), ("dog", "cat", "bee", "ant")),
    "meta": (["dog", "cat", "bee", "ant"], ("0", "1", "2", "3")),
}
NO_NAMES: list[Any] = [
    ["a", "b", "c"],  # no layer has three outputs
    ["a", "a", "b", "c"],
    [3, 2, 1, 0],
    {"a": 0, "b": 1, "c": 2, "d": 4},
    4,
]


@pytest.mark.parametrize("key", NAMED)
def test_names_beside_the_weights_are_those_of_the_classes(key: str, tmp_path, capsys) -> None:
    names, wanted = NAMED[key]
    path = tmp_path / "w.pth"
    torch.save({"state_dict": STATE, key: names}, path)
    source = load_source("torchvision:squeezenet1_1", weights=path, preprocessing=HOW)
    assert source.classes == wanted
    assert (key in capsys.readouterr().err) == (key != "meta")
    with torch.no_grad():
        assert torch.equal(source.model(X), MODEL(X))
    given = load_source("torchvision:squeezenet1_1", weights=path, preprocessing=HOW, classes=["a", "b", "c", "d"])
    assert given.classes == ("a", "b", "c", "d")
    with refused("file-weights-mismatch", "w.pth"):
        load_source("zoo:auto", weights=path)


@pytest.mark.parametrize("names", NO_NAMES)
def test_what_is_no_list_of_names_is_passed_over(names: Any, tmp_path) -> None:
    torch.save({"state_dict": STATE, "classes": names, "class_to_idx": names}, tmp_path / "w.pth")
    source = load_source("torchvision:squeezenet1_1", weights=tmp_path / "w.pth", preprocessing=HOW)
    assert source.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(kind: torch.dtype, tmp_path) -> None:
    name = "classifier.1.bias"
    torch.save({**STATE, name: (STATE[name] * 10).to(kind)}, tmp_path / "w.pth")
    with refused("file-weights-mismatch", name, str(kind)):
        load_source("torchvision:squeezenet1_1", weights=tmp_path / "w.pth", preprocessing=HOW)


@pytest.mark.parametrize("beside", [argparse.Namespace(lr=0.1), pathlib.PurePosixPath("x"), fractions.Fraction(1, 2)])
def test_a_foreign_object_is_named(beside: Any, tmp_path) -> None:
    path = tmp_path / "args.pth"
    torch.save({"model": STATE, "args": beside}, path)
    kind = type(beside)
    with refused("file-weights-unsafe", f"{kind.__module__}.{kind.__qualname__}", "weights_only=False") as caught:
        read_weights(path)
    assert "\x1b" not in str(caught.value)


# -- labels and names ----------------------------------------------------------------------------------------------


def images(labels: list[int], names: list[str]) -> ImageData:
    return ImageData(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), torch.tensor(labels), names, "images")


@pytest.mark.parametrize(
    ("labels", "names", "classes", "wanted"),
    [
        ([0, 1], ["Cat", "Dog"], ["dog", "cat"], [1, 0]),
        ([0, 1], ["Golden Retriever", "tench"], ["tench", "golden_retriever"], [1, 0]),
        ([1, 2, 3], ["0", "1", "2", "3"], ["a", "b", "c"], [0, 1, 2]),
        ([1, 2, 3], ["0", "1", "2", "3"], ["0", "1", "2"], [0, 1, 2]),
        ([0, 1, 2], ["0", "1", "2"], ["a", "b", "c"], [0, 1, 2]),
        ([0, 2, 1], ["c", "a", "b"], ["a", "b", "c"], [2, 1, 0]),
    ],
)
def test_labels_meet_the_sources_classes(labels, names, classes, wanted, capsys) -> None:
    found = fitted(images(labels, names), classes)
    assert found.labels.tolist() == wanted
    exact = set(names) == set(classes) and labels[0] == 0
    assert bool(capsys.readouterr().err) != bool(exact)  # whatever was assumed is said


def test_names_of_which_none_agrees_are_refused() -> None:
    with refused("data-unknown-class", "x, y", "a, b"):
        fitted(images([0, 1], ["x", "y"]), ["a", "b"])
