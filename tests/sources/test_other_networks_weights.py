"""Weights that belong to another network: what agrees, what differs, and which network they fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from brickyard.sources import _zoo as zoo
from brickyard.sources import load_source
from errors import refused


def saved(model: nn.Module, place: Path, prefix: str = "") -> Path:
    save_file({prefix + key: value for key, value in model.state_dict().items()}, place)
    return place


def agreeing(spec: str, other: nn.Module, **options: float) -> tuple[int, int]:
    """How many tensors of a network another one has in the same shape, and how many it has."""
    state, found = zoo.build(spec, **options).state_dict(), other.state_dict()
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    return sum(name in found and found[name].shape == state[name].shape for name in names), len(names)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_the_network_that_they_fit_is_named(prefix, tmp_path) -> None:
    model = zoo.build("resnet20", 10, 0.25)
    weights = saved(model, tmp_path / "w.safetensors", prefix)
    same, count = agreeing("resnet32", model, classes=10, width=0.25)
    assert 0 < same < count
    with refused("file-weights-mismatch", f"{same} of its {count}", "missing: layer1.3.conv1.weight", "zoo:resnet20"):
        load_source("zoo:resnet32", weights=weights)
    with refused("file-weights-mismatch", "0 of its", "zoo:resnet20"):  # no layer tells a class count
        load_source("zoo:vgg16", weights=weights)
    with refused("file-weights-mismatch", "of another shape: conv1.weight (4, 3, 3, 3) for (8, 3, 3, 3)"):
        load_source("zoo:resnet20?width=0.5", weights=weights)
    pytest.importorskip("torchvision")
    with refused("file-weights-mismatch", "not in the network: layer1.2.", "zoo:resnet20"):
        load_source("torchvision:resnet18", weights=weights)


def test_no_network_is_named_where_none_fits(tmp_path) -> None:
    model = zoo.build("resnet20", 10, 0.25)
    model.conv1 = nn.Conv2d(3, 4, 5, bias=False)
    with pytest.raises(Exception, match="missing") as error:
        load_source("zoo:resnet32", weights=saved(model, tmp_path / "w.safetensors", "model."))
    assert "zoo:" not in str(error.value)


@pytest.mark.parametrize("name", ["cnn", "googlenet", "lenet5", "resnet18", "resnet20", "resnet56", "vgg16"])
def test_weights_fit_the_network_that_they_come_from_alone(name) -> None:
    state = zoo.build(name, 5, 0.125).state_dict()
    assert zoo.fitting(state) == [name]
    assert zoo.fitting({"net." + key: value for key, value in state.items()}) == [name]
    key = next(key for key, value in state.items() if value.ndim == 4)
    assert zoo.fitting({**state, key: torch.zeros(3, 3, 2, 2)}) == []


@pytest.mark.shared
def test_shared_weights_of_another_network(shared, tmp_path) -> None:
    found = shared / "models" / "resnet20-cifar10.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({f"module.{key}": value for key, value in load_file(found).items()}, other)
    for weights in (found, other):
        with refused("file-weights-mismatch", "97 of its 157 tensors", "zoo:resnet20"):
            load_source("zoo:resnet32", weights=weights)
