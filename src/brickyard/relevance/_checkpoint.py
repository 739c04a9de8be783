"""What locating has done so far, in a folder: one file a class, and one for the source's confidences.

A call that was stopped goes on from there. Every file says which call it belongs to: one with another source, other
images or other options is refused, not mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.inputs._batches import Images
from brickyard.relevance._relevance import Relevance
from brickyard.storage._notes import Notes


class Notebook:
    """Finished work of one call of `locate`.

    Args:
        folder: Where it is; made where it is missing. None: nothing is written or found.
        relevance: What is being filled: source and options are part of every file's key.
        images: The images; so are the first of each class.

    Raises:
        FileError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path | None, relevance: Relevance, images: Images) -> None:
        self._notes = None if folder is None else Notes(Path(folder), "notebook")
        self._images = images
        self._about = {
            "source": relevance.source_sha256,
            "classes": relevance.classes,
            "thresholds": relevance.thresholds.as_dict(),
            "record": relevance.record.model_dump(mode="json", exclude={"images"}),
            "preprocessing": relevance.preprocessing.model_dump(mode="json"),
            "sums": relevance.sums is not None,
        }
        if relevance.outputs != "one":  # as folders have it that were written before there were others
            self._about["outputs"] = relevance.outputs

    def recall(self, k: int, indices: Sequence[int], relevance: Relevance, graph: Graph) -> bool:
        """Put a class that is done into the relevances; false where it is not done."""
        found = self._read(f"class-{k:05d}", indices)
        if found is not None:
            relevance.put(k, found, graph)
        return found is not None

    def write(self, k: int, indices: Sequence[int], relevance: Relevance) -> None:
        """Keep a class that is done."""
        self._write(f"class-{k:05d}", indices, relevance.take(k))

    def recall_numbers(self, indices: Sequence[int]) -> Tensor | None:
        """The confidences for these images, where they are known."""
        found = self._read("confidences", indices)
        return None if found is None else found["confidences"]

    def write_numbers(self, indices: Sequence[int], confidences: Tensor) -> None:
        """Keep the confidences."""
        self._write("confidences", indices, {"confidences": confidences})

    def _key(self, indices: Sequence[int]) -> str:
        image, _ = next(self._images.raw(indices[:1]))
        first = hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).hexdigest()
        about = json.dumps([self._about, list(indices), first], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def _read(self, name: str, indices: Sequence[int]) -> dict[str, Tensor] | None:
        found = None if self._notes is None else self._notes.read(name, lambda: self._key(indices))
        return None if found is None else found[1]

    def _write(self, name: str, indices: Sequence[int], tensors: dict[str, Tensor]) -> None:
        if self._notes is not None:
            self._notes.write(name, self._key(indices), tensors)
