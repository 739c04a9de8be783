"""A small yard of digits for the tests of the workbench."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

import brickyard as by
from brickyard.inputs._datasets import load_data
from brickyard.testing import chain
from brickyard.training._sources import build_seeded, train
from brickyard.yard._yard import Yard

HOW = by.Preprocessing(size=(16, 16), channels=1, mean=(0.305,), std=(0.376,))
HOSTILE = '<img src=x onerror="document.title=1">'


def make_yard(folder: Path) -> Yard:
    """Digits from two sources (0-4 and 5-9) cut into three bricks, a brick with a hostile class name, and samples."""
    yard = Yard(folder, create=True)
    digits, test = load_data("digits"), load_data("digits", split="test")
    for seed, classes, tasks in ((0, range(5), ("012", "23")), (1, range(5, 10), ("789",))):
        data = digits.renumbered(list(classes))
        source = build_seeded("cnn", 5, 0.25, seed=seed, channels=1)
        train(source, data, preprocessing=HOW, epochs=5, lr=0.05, batch_size=32)
        relevance = by.locate(source, data, preprocessing=HOW, name=f"cnn-{seed}")
        for task in tasks:
            yard.add(by.disassemble(source, relevance, task=list(task), budget=by.Budget(flops=0.7)), f"digits-{task}")
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    foreign = by.locate(chain(), (images, labels), classes=[HOSTILE, "dog", "hen", "pig"], name="<b>chain</b>")
    yard.add(by.disassemble(chain(), foreign, task=[HOSTILE, "hen"]), "hostile")
    (folder / "samples").mkdir()
    for k in range(10):
        place = int((test.labels == k).nonzero()[1])
        Image.fromarray(test.images[place, 0].numpy()).save(folder / "samples" / f"digit-{k}.png")
    return yard
