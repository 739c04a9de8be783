"""Progress of locating, kept in a folder: one file per class, and one for the source's confidences.

An interrupted call resumes from there. Every file records the call it belongs to: files of a call with another source,
other images or other options are rejected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.base._records import LocateRecord, Preprocessing
from brickyard.inputs._batches import Images
from brickyard.relevance._relevance import Relevance
from brickyard.storage._notes import Notes

_NEWER = {"crop", "interpolation", "antialias", "unknown"}  # which folders of earlier versions do not know


def _told(how: Preprocessing) -> dict[str, Any]:
    """A preprocessing as earlier versions wrote it, with what is newer only where it says something."""
    said = how.model_dump(mode="json")
    return {key: value for key, value in said.items() if key not in _NEWER or value != _USUAL[key]}


def _record(record: LocateRecord) -> dict[str, Any]:
    """What was asked for, as earlier versions wrote it."""
    unknown = {"images", "ending", "right", "candidates"} | ({"output"} if record.output is None else set())
    return record.model_dump(mode="json", exclude=unknown)


_USUAL = Preprocessing().model_dump(mode="json")


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
        self._about = {
            "source": relevance.source_sha256,
            "classes": relevance.classes,
            "thresholds": relevance.thresholds.as_dict(),
            "record": _record(relevance.record),
            "preprocessing": _told(relevance.preprocessing),
            "sums": relevance.sums is not None,
        }
        if relevance.outputs != "one":  # as in folders written before there were other kinds
            self._about["outputs"] = relevance.outputs

    def recall(self, k: int, indices: Sequence[int], relevance: Relevance, graph: Graph) -> Tensor | None:
        """Load a finished class into the relevances; return how many images were right of how many, or None."""
        found = self._read(f"class-{k:05d}", indices)
        if found is None:
            return None
        right = found.pop("right")
        relevance.put(k, found, graph)
        return right

    def write(self, k: int, indices: Sequence[int], relevance: Relevance, right: Tensor) -> None:
        self._write(f"class-{k:05d}", indices, {**relevance.take(k), "right": right})

    def recall_numbers(self, indices: Sequence[int]) -> Tensor | None:
        """Return the confidences for these images, if known."""
        found = self._read("confidences", indices)
        return None if found is None else found["confidences"]

    def write_numbers(self, indices: Sequence[int], confidences: Tensor) -> None:
        self._write("confidences", indices, {"confidences": confidences})

    def _key(self, indices: Sequence[int], looked_at: int | None = None) -> str:
        """The key of a call on these images, with the bytes of the first `looked_at` of them, or of all."""
        digest = hashlib.sha256()
        for images, _ in self._images.raw(indices[:looked_at]):
            digest.update(images.cpu().contiguous().numpy().tobytes())
        about = json.dumps([self._about, list(indices), digest.hexdigest()], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()

    def _read(self, name: str, indices: Sequence[int]) -> dict[str, Tensor] | None:
        if self._notes is None:
            return None
        found = self._notes.read(name, lambda: self._key(indices), lambda: self._key(indices, 1))
        return None if found is None else found[1]

    def _write(self, name: str, indices: Sequence[int], tensors: dict[str, Tensor]) -> None:
        if self._notes is not None:
            self._notes.write(name, self._key(indices), tensors)
