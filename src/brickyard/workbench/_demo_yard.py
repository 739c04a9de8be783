"""A small yard to play with, made in seconds: digits, two sources, a few bricks, and pictures to try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from brickyard.base._options import Budget
from brickyard.base._records import Preprocessing
from brickyard.component._disassemble import disassemble
from brickyard.evaluation._evaluate import evaluate
from brickyard.inputs._datasets import ImageData, load_data
from brickyard.relevance._locate import locate
from brickyard.sources._loading import Source, save_source
from brickyard.training._sources import build_seeded, train

HOW = Preprocessing(size=(16, 16), channels=1, mean=(0.305,), std=(0.376,))
SIZE = (1, 16, 16)
OPTIONS = {"width": 0.25, "channels": 1}
NETWORKS = {"digits-0-to-5": (range(6), ("012", "345")), "digits-4-to-9": (range(4, 10), ("678", "89"))}
FLOPS = 0.6
EACH = 2  # samples of each digit


def make(folder: Path, say: Callable[[str], None]) -> None:
    """Make the sources, bricks and samples in an empty folder.

    Args:
        folder: Where: bricks lie in it, sources and samples in folders of their own.
        say: Called with what is done next.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks: more threads wait for each other, and round differently
    try:
        _make(folder, say)
    finally:
        torch.set_num_threads(threads)


def _make(folder: Path, say: Callable[[str], None]) -> None:
    digits, test = load_data("digits"), load_data("digits", split="test")
    (folder / "sources").mkdir()
    _samples(test, folder / "samples")
    for seed, (name, (classes, tasks)) in enumerate(NETWORKS.items()):
        say(f"Training a network on the digits {classes.start} to {classes.stop - 1}")
        images, held_out = (data.renumbered(list(classes)) for data in (digits, test))
        model = build_seeded("cnn", len(classes), OPTIONS["width"], seed=seed, channels=1)
        found = train(model, images, preprocessing=HOW, epochs=6, lr=0.05, batch_size=32)
        source = Source(model, name, images.classes, HOW, SIZE)
        path = folder / "sources" / f"{name}.safetensors"
        save_source(path, source, arch="cnn", options=OPTIONS, scores={"train_accuracy": found})
        say(f"Cutting bricks out of {name}")
        relevance = locate(model, images, preprocessing=HOW, name=name)
        for task in tasks:
            part = disassemble(model, relevance, task=list(task), budget=Budget(flops=FLOPS))
            scores = evaluate(part, held_out, source=model, latency=False)
            part.with_scores({"digits test": scores.as_dict()}).save(folder / f"digits-{task}.safetensors")


def _samples(test: ImageData, folder: Path) -> None:
    folder.mkdir()
    for digit in range(10):
        for number, place in enumerate((test.labels == digit).nonzero().flatten()[:EACH].tolist()):
            Image.fromarray(test.images[place, 0].numpy()).save(folder / f"digit-{digit}-{number + 1}.png")
