"""What a call that may be stopped has done so far, in a folder: the same call, made again, goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from brickyard.base._errors import FileError
from brickyard.storage._atomic import clear_stages, make_folder
from brickyard.storage._safefile import read, write

KEYS = 2  # version of what keys are made of; work under older ones is done again, as they looked at less of a call


class Notes:
    """Files of finished work. Each says of which call it is: one of another call is refused, not mixed in.

    Args:
        folder: Where they are; made where it is missing.
        kind: What the files are, as they say themselves.

    Raises:
        FileError: The folder cannot be made.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        make_folder(folder, "give another resume=")
        clear_stages(folder)  # where all is done, nothing more is written that would clear them away

    def read(self, name: str, key: Callable[[], str]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The text and the tensors of a file, or None where there is none yet; only then is its key not asked for.

        Raises:
            FileError: The file is of another call.
        """
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            return None
        text, tensors = read(path)
        if text.get("kind") == self.kind and "keys" not in text:
            return None
        if (text.get("kind"), text.get("keys"), text.get("key")) != (self.kind, KEYS, key()):
            what = "training" if self.kind == "training" else "call"
            why = f"{path} is from another {what}, with another model, other images, labels or options"
            raise FileError(
                "file-resume-mismatch",
                f"{why} (images that differ at every reading are others too); give another folder, or delete this one "
                "to start again",
            )
        return text, tensors

    def write(self, name: str, key: str, tensors: Mapping[str, Tensor], text: Mapping[str, Any] | None = None) -> None:
        """Keep tensors and a text."""
        about = {"kind": self.kind, "keys": KEYS, "key": key, **(text or {})}
        write(self.folder / f"{name}.safetensors", tensors, about, overwrite=True)
