"""Pairs of idx files: images and labels as MNIST was published."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import first_line
from brickyard.inputs._pictures import MAX_BYTES, Rows
from brickyard.inputs._reading import Found

FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read_idx(path: Path) -> Found:
    """Images and labels of a pair of idx files.

    Raises:
        DataError: One is damaged, or they do not belong together.
    """
    labels_path = labels_beside(path)
    if labels_path == path:
        why = f"{path} was asked for, and its name does not mention images"
        raise DataError("data-unknown-format", f"{why}; give train-images-idx3-ubyte.gz or the like")
    images, labels = _numbers(path, 3), _numbers(labels_path, 1)
    folder = path.parent.name
    count = int(labels.max()) + 1 if len(labels) else 1
    names = FASHION if "fashion" in folder else [str(k) for k in range(count)]
    images = images.unsqueeze(1)
    if len(images) != len(labels):
        found = f"images of shape {tuple(images.shape)}, labels of shape {tuple(labels.shape)}"
        raise DataError("data-shape", f"{path}: {found}; give one label per image")
    return Found(labels.long(), names, f"{folder}/{path.name.split('-')[0]}", Rows(images))


def labels_beside(images: Path) -> Path:
    """The path of the labels for an idx file of images; the same path if its name does not mention images."""
    return images.with_name(images.name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1"))


def _numbers(path: Path, ndim: int) -> Tensor:
    """Read exactly as many numbers as an idx file's header declares, however much a compressed file holds."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4 + 4 * ndim)
            zero, kind, dims, *shape = struct.unpack(f">HBB{ndim}I", start)
            size = math.prod(shape)
            complete = (zero, kind, dims) == (0, 8, ndim) and size <= MAX_BYTES
            if path.suffix != ".gz":
                complete = complete and size == path.stat().st_size - len(start)
            content = bytearray()
            while complete and len(content) <= size and (more := file.read(min(size + 1 - len(content), 1 << 20))):
                content += more
    except (OSError, EOFError, struct.error, zlib.error, MemoryError) as error:
        why = f"cannot read {path} as an idx file: {first_line(error)}"
        raise DataError("data-damaged-file", f"{why}; get a fresh copy") from None
    if not complete or len(content) != size:
        why = f"{path} is not a complete idx file of bytes with {ndim} dimensions ({MAX_BYTES >> 30} GiB at most)"
        found = f"it starts with {start[:4].hex(' ')}, and a shape of {'x'.join(map(str, shape))}"
        raise DataError("data-damaged-file", f"{why}: {found}; get it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape))
