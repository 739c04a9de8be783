"""Data sets of the Hugging Face library by name: from its cache, and one clear error where they cannot be had."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from brickyard.inputs import load_data
from errors import refused

datasets = pytest.importorskip("datasets")
NOISE = np.random.default_rng(4).integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)
NAMES = ["cat", "dog", "eel"]
LABELS = [0, 2, 1, 0, 0, 1, 2, 2]
WANTED = torch.from_numpy(NOISE).permute(0, 3, 1, 2)


def made(label: Any, values: list[Any], column: str = "label") -> Any:
    features = datasets.Features({"img": datasets.Image(), column: label})
    return datasets.Dataset.from_dict({"img": [Image.fromarray(x) for x in NOISE], column: values}, features=features)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the library has in its cache, by (name, split); the hub does not answer."""
    cached: dict[tuple[str, str], Any] = {}
    seen: dict[str, Any] = {"cached": cached, "offline": []}

    def load(name: str, split: str) -> Any:
        seen["offline"].append(datasets.config.HF_HUB_OFFLINE)
        splits = [part for one, part in cached if one == name]
        if not splits:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub (offline)")
        if split not in splits:
            raise ValueError(f"Unknown split {split!r}. Should be one of {splits}.")
        return cached[name, split]

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    return seen


def test_a_data_set_of_the_cache(hub: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    before = datasets.config.HF_HUB_OFFLINE
    hub["cached"]["me/pets", "train"] = made(datasets.ClassLabel(names=NAMES), LABELS)
    hub["cached"]["me/pets", "validation"] = made(datasets.ClassLabel(names=NAMES), LABELS[::-1])
    data = load_data("hf:me/pets?classes=dog,eel")
    chosen = [k for k, label in enumerate(LABELS) if label]
    assert (data.classes, data.labels.tolist()) == (tuple(NAMES), [LABELS[k] for k in chosen])
    assert torch.equal(data.images, WANTED[chosen])
    assert load_data("hf:me/pets", split="test").labels.tolist() == LABELS[::-1]
    assert "'validation' serves as it" in capsys.readouterr().err
    assert set(hub["offline"]) == {True}  # nobody waits for the hub
    assert before == datasets.config.HF_HUB_OFFLINE


def test_several_classes(hub: dict[str, Any]) -> None:
    lists = [[0, 1], [], [2], [1], [0], [0], [1, 2], [2]]
    hub["cached"]["me/pets", "train"] = made(datasets.List(datasets.ClassLabel(names=NAMES)), lists, "labels")
    data = load_data("hf:me/pets", several=True)
    assert data.classes == tuple(NAMES)
    assert data.labels.tolist() == [[int(k in row) for k in range(3)] for row in lists]


def test_what_cannot_be_had_is_one_error(hub: dict[str, Any], tmp_path: Path) -> None:
    with refused("data-missing", "hf:me/pets", "cache"):
        load_data("hf:me/pets")
    hub["cached"]["me/pets", "other"] = made(datasets.Value("int64"), LABELS)
    with refused("data-missing", "hf:me/pets", "'train'"):
        load_data("hf:me/pets")
    hub["cached"]["me/pets", "train"] = made(datasets.Value("int64"), LABELS, "age")
    with refused("data-unknown-format", "hf:me/pets", "age"):
        load_data("hf:me/pets")
