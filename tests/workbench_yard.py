"""A small yard of digits for the tests of the workbench, its command and servers, and pictures to send."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
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


def encoded(picture: torch.Tensor | np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A file of a picture: a tensor (1, height, width), an array, or as Pillow has it."""
    out = io.BytesIO()
    picture = picture[0].numpy() if isinstance(picture, torch.Tensor) else picture
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, kind, **options)
    return out.getvalue()


@contextmanager
def commanded(yard: Yard, *options: str) -> Iterator[str]:
    """The first line that `brickyard workbench` says."""
    command = [sys.executable, "-m", "brickyard", "workbench", "--yard", str(yard.path), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            yield server.stderr.readline()
        finally:
            server.terminate()


@contextmanager
def serving(app: Any, limits: Any, plain: bool = False) -> Iterator[int]:
    """The port of a server; `plain` takes away how it drops slow clients."""
    import uvicorn

    from brickyard.workbench._server import server

    place = socket.create_server(("127.0.0.1", 0))
    ordinary = {"http": "h11", "log_level": "critical", "limit_concurrency": limits.connections}
    found = uvicorn.Server(uvicorn.Config(app, **ordinary)) if plain else server(app, limits)
    thread = threading.Thread(target=found.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        yield place.getsockname()[1]
    finally:
        found.should_exit = found.force_exit = True
        thread.join(60)
        place.close()


def raw(port: int, content: bytes, wait: float = 5.0) -> bytes:
    """What a server says to some bytes, until it closes or says no more."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(wait)
        found = b""
        with suppress(OSError):
            line.sendall(content)
        with suppress(OSError):
            while piece := line.recv(1 << 16):
                found += piece
        return found
