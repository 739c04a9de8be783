"""A mean and a standard deviation in the unit of bytes, which people copy from other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import brickyard as by
from brickyard.inputs._datasets import ImageData
from brickyard.sources import load_source
from brickyard.testing import chain
from brickyard.training._sources import train_source
from errors import refused
from shell import run

BYTES = by.Preprocessing(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
SHARES = by.Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IMAGES, LABELS = torch.rand(8, 3, 8, 8), torch.arange(8) % 4


@pytest.mark.parametrize(
    ("how", "quoted"),
    [
        (BYTES, ("mean 123.675", "mean 0.485,0.456,0.406, std 0.229,0.224,0.225")),
        (by.Preprocessing(mean=(-0.1,), std=(0.5,)), ("mean -0.1",)),
        (by.Preprocessing(mean=(0.5,), std=(57.0,)), ("std 57",)),
    ],
)
def test_other_units_are_refused_wherever_they_are_given(how, quoted) -> None:
    part = by.disassemble(chain(), by.locate(chain(), (IMAGES, LABELS), per_class=2), task=[0, 1])
    data = ImageData(IMAGES, LABELS, tuple("abcd"), "some")
    for act in (
        lambda: by.locate(chain(), (IMAGES, LABELS), preprocessing=how),
        lambda: load_source("zoo:lenet5?classes=4", random_weights=True, preprocessing=how),
        lambda: part.with_preprocessing(how),
        lambda: train_source("cnn", data, preprocessing=how, epochs=1),
    ):
        with refused("option-preprocessing", *quoted):
            act()


def test_the_same_in_the_unit_of_pictures_and_those_of_signals_are_taken() -> None:
    part = by.disassemble(chain(), by.locate(chain(), (IMAGES, LABELS), preprocessing=SHARES), task=[0, 1])
    edge = by.Preprocessing(mean=(0.0, 0.5, 1.0), std=(1.0, 1.0, 1 / 255))
    assert part.with_preprocessing(edge).manifest.preprocessing == edge
    assert load_source("zoo:lenet5?classes=4", random_weights=True, preprocessing=edge).preprocessing == edge
    signals = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1),
                                  torch.nn.Flatten(), torch.nn.Linear(4, 4))  # fmt: skip
    assert (
        by.locate(signals, (100 * torch.rand(8, 3, 20), LABELS), preprocessing=BYTES).preprocessing.mean == BYTES.mean
    )


def test_the_command_line_says_it_too(tmp_path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, images=np.zeros((8, 3, 32, 32), dtype=np.uint8), labels=LABELS.numpy())
    words = ("--data", data, "-o", tmp_path / "r.safetensors", "--random-weights")
    given = ("--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375")
    said = run("locate", "zoo:lenet5?classes=4", *words, *given, code=1).stderr
    assert "mean 0.485,0.456,0.406" in said
