"""Progress of locating, kept in a folder: one file per class, and one for the source's confidences.

An interrupted call resumes from there. Every file records the call it belongs to: files of a call with another source,
other images or other options are rejected. The images are those that were read for the work itself, so that keeping it
costs no second reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.inputs._batches import Images
from brickyard.inputs._content import SIZE, digests
from brickyard.relevance._relevance import Relevance
from brickyard.storage._notes import Notes

_FOUND = {"images", "right", "candidates", "assumed", "given"}  # of a record: not asked for, or not known at first


class Notebook:
    """Finished work of one call of `locate`.

    Args:
        folder: Where to keep it; created if missing. None: nothing is written or found.
        relevance: The relevances being filled: their source and options are part of every file's key.
        images: The images; those that are used are part of the key too.

    Raises:
        FileError: The folder cannot be created.
    """

    def __init__(self, folder: str | Path | None, relevance: Relevance, images: Images) -> None:
        self._notes = None if folder is None else Notes(Path(folder), "notebook")
        self._images = images
        self._seen = torch.zeros(0 if folder is None else len(images), SIZE, dtype=torch.uint8)
        self._about = {
            "source": relevance.source_sha256,
            "classes": relevance.classes,
            "thresholds": relevance.thresholds.as_dict(),
            "record": relevance.record.model_dump(mode="json", exclude=_FOUND),
            "preprocessing": relevance.preprocessing.model_dump(mode="json"),
            "sums": relevance.sums is not None,
            "outputs": relevance.outputs,
        }

    def watching(self, indices: Sequence[int]) -> Callable[[Tensor], None] | None:
        """What has to see the raw images of these indices as they are read, batch by batch; None: nothing has to."""
        if self._notes is None:
            return None
        left: Iterator[int] = iter(indices)

        def look(images: Tensor) -> None:
            self._seen[list(islice(left, len(images)))] = digests(images)

        return look

    def seen(self, indices: Sequence[int]) -> Tensor:
        """Digests of the images that this process has read of these, one after the other; zeros for the rest."""
        if self._notes is None:
            return torch.zeros(len(indices), SIZE, dtype=torch.uint8)
        places = list(indices)
        found = self._seen[places]
        self._seen[places] = 0
        return found

    def recall(self, k: int, indices: Sequence[int], relevance: Relevance, graph: Graph) -> Tensor | None:
        """Load a finished class into the relevances; return how many images were right of how many, or None."""
        found = self._read(f"class-{k:05d}", indices, indices)
        if found is None:
            return None
        right = found.pop("right")
        relevance.put(k, found, graph)
        return right

    def write(self, k: int, indices: Sequence[int], relevance: Relevance, right: Tensor, seen: Tensor) -> None:
        """Keep a finished class; `seen` are the digests of its images."""
        self._write(f"class-{k:05d}", self._key(indices, seen), {**relevance.take(k), "right": right})

    def recall_numbers(self, pools: dict[int, list[int]]) -> Tensor | None:
        """Return the confidences for the images of each class, one class after the other, if known."""
        found = self._read("confidences", pools, [index for pool in pools.values() for index in pool])
        return None if found is None else found["confidences"]

    def write_numbers(self, pools: dict[int, list[int]], confidences: Tensor, seen: Tensor) -> None:
        self._write("confidences", self._key(pools, seen), {"confidences": confidences})

    def _key(self, chosen: object, seen: Tensor) -> str:
        """The key of a call on these images, with their digests."""
        about = json.dumps([self._about, chosen, hashlib.sha256(seen.numpy().tobytes()).hexdigest()], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def _read(self, name: str, chosen: object, indices: Sequence[int]) -> dict[str, Tensor] | None:
        if self._notes is None:
            return None
        found = self._notes.read(name, lambda: self._key(chosen, self._images.digests(indices)))
        return None if found is None else found[1]

    def _write(self, name: str, key: str, tensors: dict[str, Tensor]) -> None:
        if self._notes is not None:
            self._notes.write(name, key, tensors)
