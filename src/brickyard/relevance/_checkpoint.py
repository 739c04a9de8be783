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
from brickyard.base._errors import FileError
from brickyard.inputs._batches import Images
from brickyard.relevance._relevance import Relevance
from brickyard.storage._atomic import clear_stages
from brickyard.storage._safefile import read, write


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
        self._folder = None if folder is None else Path(folder)
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
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise FileError(
                    "file-not-writable", f"cannot create folder {self._folder}: {error}; give another resume="
                ) from None
            clear_stages(self._folder)  # where all is done, nothing more is written that would clear them away

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
        if self._folder is None or not (path := self._folder / f"{name}.safetensors").exists():
            return None
        text, tensors = read(path)
        if text.get("kind") != "notebook" or text.get("key") != self._key(indices):
            raise FileError(
                "file-resume-mismatch",
                f"{path} is from another call, with another source, other images or other options; "
                "give another folder, or delete this one to start again",
            )
        return tensors

    def _write(self, name: str, indices: Sequence[int], tensors: dict[str, Tensor]) -> None:
        if self._folder is not None:
            text = {"kind": "notebook", "key": self._key(indices)}
            write(self._folder / f"{name}.safetensors", tensors, text, overwrite=True)
