"""Data sets of the Hugging Face library by their names: from its cache, else from the hub."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import first_line, told
from brickyard.inputs._columns import image_and_label, labels_in
from brickyard.inputs._pictures import Encoded, Pictures, Reader, spread
from brickyard.inputs._reading import Found, Wanted, no_split, say_stand_in, split_names

PREFIX = "hf:"
PATIENCE = 4  # seconds for the hub to answer; without an answer, only the cache is looked at


def read_hub(name: str, wanted: Wanted) -> Found:
    """Images and labels of a data set of the hub.

    Args:
        name: Its name there, such as "uoft-cs/cifar10".
        wanted: What is asked for.

    Raises:
        DataError: It is neither in the cache nor to be had, or has no columns of images and labels.
        OptionError: The library is not installed.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        why = f"{PREFIX}{name} needs the package datasets"
        raise OptionError("option-missing-package", f"{why}; pip install datasets") from None
    data, split = _loaded(datasets, name, wanted)
    place = f"{PREFIX}{name} ({split})"
    image, label = image_and_label(data.column_names, place)
    values = list(data.with_format(None)[label])
    labels, classes = labels_in(values, f"{place}: column {label!r}", _names(data.features[label]), wanted)
    encoded = data.select_columns(image).cast_column(image, datasets.Image(decode=False))
    return Found(labels, classes, place, Pictures(Reader(_Rows(encoded, image, place), wanted.size, place)))


def _loaded(datasets: Any, name: str, wanted: Wanted) -> tuple[Any, str]:
    """The data set's split, or what stands in for it, and the name of that."""
    reason = ""
    with _without_waiting(datasets, name):
        for split in split_names(wanted.split):
            try:
                found = datasets.load_dataset(name, split=split)
            except Exception as error:  # those of several libraries
                reason = reason or first_line(error)
                if "nknown split" not in str(error):
                    break
            else:
                say_stand_in(name, wanted.split, split)
                return found, split
    if "nknown split" in reason:
        raise no_split(f"{PREFIX}{name}", wanted.split, [told(reason.partition("among")[2], 100)])
    why = f"cannot load {PREFIX}{name}: {told(reason, 200).rstrip('.')}"
    raise DataError(
        "data-missing", f"{why}; give the id of a data set that is in the library's cache or can be downloaded now"
    )


@contextmanager
def _without_waiting(datasets: Any, name: str) -> Iterator[None]:
    """Look at the cache alone where the hub does not answer: the library asks for minutes."""
    before = datasets.config.HF_HUB_OFFLINE
    try:
        if not Path(name).exists() and not before:
            from huggingface_hub import HfApi

            try:
                HfApi().dataset_info(name, timeout=PATIENCE)
            except Exception:  # whatever libraries for networks raise
                datasets.config.HF_HUB_OFFLINE = True
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _names(feature: Any) -> list[str] | None:
    """The names of classes that a column knows, also where each row is a list of them."""
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if getattr(feature, "names", None) else None


class _Rows:
    """The pictures in a column of a data set."""

    def __init__(self, data: Any, column: str, place: str) -> None:
        self.data, self.column, self.place = data, column, place

    def __len__(self) -> int:
        return len(self.data)

    def probes(self, among: Sequence[int]) -> Sequence[int]:
        return spread(among)

    def fetch(self, indices: Sequence[int]) -> Iterator[Encoded]:
        """The encoded pictures: bytes, or files in the library's cache."""
        for index in indices:
            value = self.data[index][self.column] or {}
            title = f"{self.place}, image {index}"
            if not value.get("bytes") and not value.get("path"):
                raise DataError("data-unreadable-image", f"{title} has no picture; leave that row out")
            yield io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"], title
