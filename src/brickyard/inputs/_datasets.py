"""Image data from a short text: `digits`, or a place whose form is recognised: folders, tables, arrays, files of data.

All data are raw: images of one size, labels, class names. Pictures are uint8, and are decoded when they are asked for.
Arrays of numbers that are not images stay as they are. The text may end in options: `digits?split=test&classes=0-2,7`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from brickyard.base._checks import check_choice, seed_of, whole
from brickyard.base._classes import parse_classes, resolve_task
from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import told
from brickyard.base._records import Preprocessing
from brickyard.base._sides import BATCHED, BATCHES
from brickyard.inputs._arrays import npy_in, npy_parts, read_npy, read_npz
from brickyard.inputs._columns import read_parquet, read_saved, saved_files, saved_folder, shards
from brickyard.inputs._folders import class_files, read_folder, root_of, split_folder
from brickyard.inputs._hub import PREFIX, read_hub
from brickyard.inputs._idx import labels_beside, read_idx
from brickyard.inputs._json_files import json_files, lists_pictures, read_json
from brickyard.inputs._pictures import Pictures, Rows, Store
from brickyard.inputs._reading import Found, Wanted, examples, note, quietly, say_stand_in, split_names
from brickyard.inputs._several import one_each
from brickyard.inputs._tables import names_pictures, read_table, table_files
from brickyard.inputs._taken import Taken


def chosen_images(indices: Sequence[int] | Tensor, count: int, name: str) -> Tensor:
    """Indices of some of so many images, given as such or as a mask.

    Raises:
        DataError: An index is out of range.
    """
    chosen = torch.as_tensor(indices)
    if chosen.dtype == torch.bool and chosen.shape == (count,):
        chosen = chosen.nonzero().flatten()
    chosen = chosen.long()
    outside = chosen[(chosen < 0) | (chosen >= count)]
    if len(outside):
        there = f"images 0 to {count - 1}" if count else "no images"
        raise DataError("data-index-out-of-range", f"{name} has {there}, got index {int(outside[0])}")
    return chosen


class ImageData(Dataset[tuple[Tensor, Any]]):
    """Raw images with labels and class names.

    Images in files are decoded when they are asked for, in threads and ahead of the one who asks, and only some of them
    are kept in memory. Selecting some of them reads none.

    Args:
        images: (images, channels, height, width), uint8; or float32, in [0, 1] or other numbers that are no pictures.
            Also signals (signals, channels, length) and cubes (cubes, channels, depth, height, width). `load_data`
            gives what reads them instead.
        labels: (images,), indices into `classes`; or (images, classes), 0 or 1 for each, where an image may belong to
            several classes.
        classes: Class names.
        name: What messages and manifests call the data.

    Raises:
        DataError: The parts do not match.

    Example:
        >>> import torch
        >>> from brickyard.inputs._datasets import ImageData
        >>> data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), ("cat", "dog"))
        >>> len(data), len(data.of_classes(["dog"]))
        (4, 2)
    """

    def __init__(self, images: Tensor | Store, labels: Tensor, classes: Sequence[str], name: str = "images") -> None:
        if not isinstance(images, Tensor | Rows | Pictures) or not isinstance(labels, Tensor):
            raise DataError("data-type", f"{name}: images and labels must be tensors")
        if labels.is_floating_point():
            raise DataError("data-type", f"{name}: labels must be integers, got {labels.dtype}")
        self._store: Store = Rows(images) if isinstance(images, Tensor) else images
        self.labels = labels.long()
        self.classes = tuple(classes)
        self.name = name
        found = f"{len(images)} images"
        if isinstance(images, Tensor):
            found = f"images of shape {tuple(images.shape)} and type {images.dtype}"
        good = not isinstance(images, Tensor) or (
            images.ndim in BATCHED and images.dtype in (torch.uint8, torch.float32)
        )
        if not good or labels.ndim not in (1, 2) or len(labels) != len(images):
            found = f"{found}, labels of shape {tuple(labels.shape)}"
            wanted = f"give {BATCHES}, uint8 or float32, and one label for each"
            raise DataError("data-shape", f"{name}: {found}; {wanted}")
        check_labels(self.labels, self.classes, name)

    @property
    def several(self) -> bool:
        """Whether an image may belong to several classes."""
        return self.labels.ndim == 2

    @property
    def images(self) -> Tensor:
        """All images at once, (images, channels, height, width); they stay in memory from then on.

        Raises:
            DataError: One cannot be decoded, their sizes differ, or they take too much memory.
        """
        if not isinstance(self._store, Rows) or self._store.places is not None:
            self._store = Rows(self._store.all())
        return self._store.tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of the images.

        Raises:
            DataError: Some of those that were looked at differ in size.
        """
        return self._store.shape

    def batches(self, batch_size: int, order: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield batches of images, of all or in the order of these indices: (images, channels, height, width).

        Raises:
            DataError: One cannot be decoded, or has another size than others.
        """
        return self._store.batches(whole("batch_size", batch_size), order)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, got index {index}")
        (images,) = self.batches(1, [index])
        return images[0], self.labels[index] if self.several else int(self.labels[index])

    def relabelled(self, labels: Tensor, classes: Sequence[str], name: str | None = None) -> ImageData:
        """The same images with other labels and class names.

        Raises:
            DataError: The parts do not match.
        """
        return ImageData(self._store, labels, classes, self.name if name is None else name)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageData:
        """Select the images at these indices, or where a mask is true.

        Raises:
            DataError: An index is out of range.
        """
        chosen = chosen_images(indices, len(self), self.name)
        return ImageData(self._store.at(chosen), self.labels[chosen], self.classes, self.name)

    def of_classes(self, classes: Sequence[int | str]) -> ImageData:
        """Select the images of some classes; labels and class names stay the same.

        Raises:
            TaskError: A class is unknown.
        """
        return self.subset(belong(self.labels, resolve_task(classes, self.classes)))

    def without(self, classes: Sequence[int | str]) -> ImageData:
        """Select the images of all other classes; labels and class names stay the same.

        Raises:
            TaskError: A class is unknown.
        """
        return self.subset(~belong(self.labels, resolve_task(classes, self.classes)))

    def in_order(self, classes: Sequence[str]) -> ImageData:
        """The same images with a column for each of a source's classes, by name, where labels are rows.

        Classes that the data do not name count as absent, and those of the data that the source does not have are left
        out; both are said.

        Raises:
            DataError: No name agrees.
        """
        places = {name: k for k, name in enumerate(self.classes)}
        if places.keys().isdisjoint(classes):
            theirs, ours = (told(", ".join(names[:5]), 100) for names in (self.classes, classes))
            why = f"{self.name} has {theirs} ..., the source {ours} ..., and no name agrees"
            raise DataError("data-unknown-class", f"{why}; give the source's class names")
        for what, odd in (
            ("classes that the data do not name count as absent", [name for name in classes if name not in places]),
            ("classes that the source does not have are left out", [name for name in places if name not in classes]),
        ):
            if odd:
                note(f"{self.name}: {what}: {examples(odd)}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''}")
        labels = torch.zeros(len(self), len(classes), dtype=torch.long)
        for k, name in enumerate(classes):
            labels[:, k] = self.labels[:, places[name]] if name in places else 0
        return self.relabelled(labels, classes)

    def renumbered(self, classes: Sequence[int | str]) -> ImageData:
        """Select the images of some classes, which become classes 0, 1, ... in this order.

        Raises:
            TaskError: A class is unknown.
        """
        wanted = resolve_task(classes, self.classes)
        part = self.of_classes(wanted)
        if self.several:
            return part.relabelled(part.labels[:, wanted], [self.classes[k] for k in wanted])
        labels = torch.tensor([wanted.index(k) for k in part.labels.tolist()], dtype=torch.long)
        return part.relabelled(labels, [self.classes[k] for k in wanted])

    def shuffled(self, seed: int = 0) -> ImageData:
        """Return the same images in random order."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed_of(seed))))

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
        """Split into `fraction` of every class's images and the rest, both in random order.

        Where an image may belong to several classes, it is a fraction of all images.

        Raises:
            OptionError: The fraction is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise OptionError("option-range", f"a split must be a fraction between 0 and 1, got {fraction!r}")
        mixed = self.shuffled(seed)
        first = torch.zeros(len(self), dtype=torch.bool)
        if self.several:
            first[: round(fraction * len(self))] = True
            return mixed.subset(first), mixed.subset(~first)
        for k in range(len(self.classes)):
            places = (mixed.labels == k).nonzero().flatten()
            first[places[: round(fraction * len(places))]] = True
        return mixed.subset(first), mixed.subset(~first)


def belong(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Which images belong to one of these classes, or to several: bool, (images,)."""
    if labels.ndim == 2:
        return labels[:, list(classes)].any(1)
    return torch.isin(labels, torch.tensor(list(classes), dtype=torch.long))


def check_labels(labels: Tensor, classes: Sequence[str], name: str) -> None:
    """Refuse class names that are not unique, and labels that are neither indices into them nor rows of 0 and 1.

    Raises:
        DataError: They are not.
    """
    if len(set(classes)) != len(classes):
        found = told(", ".join(classes[:8]), 200)
        raise DataError("data-class-names", f"{name}: class names must be unique, but two are equal among {found}")
    if labels.ndim == 2:
        if labels.shape[1] != len(classes) or not bool(((labels == 0) | (labels == 1)).all()):
            found = f"labels of shape {tuple(labels.shape)} for {len(classes)} class names"
            raise DataError("data-label-out-of-range", f"{name}: {found}; give a row of 0 and 1 per image")
    elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        found = f"labels run from {int(labels.min())} to {int(labels.max())}, for {len(classes)} class names"
        advice = "give labels that count the names from 0, and leave out images without a label"
        raise DataError("data-label-out-of-range", f"{name}: {found}; {advice}")


def load_data(
    spec: str | Path,
    *,
    split: str = "train",
    size: tuple[int, int] | Preprocessing | None = None,
    max_images: int | None = None,
    several: bool = False,
    shape: Sequence[int] | Taken | None = None,
) -> ImageData:
    """Load image data.

    Args:
        spec: `digits` (scikit-learn's, included); a folder with one sub-folder per class, or with `train` and
            `test` (or `val`) folders of that kind; a CSV, TSV or JSON file that lists pictures and labels; a CSV file
            of pixels; a `.npz` file, or a `.npy` file with labels beside it; a `.parquet` file or folder, or a folder
            that `save_to_disk` wrote, as of the Hugging Face library; an idx file of images, or a folder with idx
            files; or `hf:ID`, a data set of the Hugging Face hub. Options may follow a question mark: `split` (which
            must exist), and `classes` to keep only some (labels stay the same).
        split: "train" or "test", unless the text specifies it.
        size: Height and width for pictures in files: they are resized to cover it and cropped. A preprocessing: they
            are brought to its size in its way.
        max_images: Maximum number of images, drawn with a fixed seed.
        several: Whether an image may belong to several classes. Labels are then rows of 0 and 1, (images, classes):
            from columns of 0 and 1, from names in one column ("cat|dog", lists, "" for none), from arrays, from
            several rows or annotations of one picture, or from one class an image.
        shape: What the network takes, where that is no pictures: (channels, length) for signals, (channels, depth,
            height, width) for cubes. Arrays are read as such, and the number of channels tells which axis holds them.

    Of pictures in files, only a few are decoded now, so that what cannot be read shows.

    Raises:
        DataError: The data cannot be read.
        OptionError: The text or an option is not understood, or a package is missing.

    Example:
        >>> from brickyard.inputs._datasets import load_data
        >>> load_data("digits?split=test&classes=0-2").images.shape
        torch.Size([161, 1, 8, 8])
    """
    if not str(spec).strip():
        raise OptionError("option-empty", "data must not be empty, got ''; give digits, a folder or a file")
    place, options = place_and_options(str(spec))
    unknown = set(options) - {"split", "classes"}
    if unknown:
        name = sorted(unknown)[0]
        raise OptionError("option-unknown-name", f"data {spec!s}: unknown option {name!r}; use split= or classes=")
    wanted = Wanted(options.get("split", split), "split" in options, size, several, Taken.of(shape))
    found = _open(place, wanted)
    if several and found.labels.ndim == 1:
        check_labels(found.labels, found.classes, found.name)
        found = replace(found, labels=one_each(found.labels, len(found.classes), found.name))
    check_labels(found.labels, found.classes, found.name)
    chosen = torch.arange(len(found.labels))
    if "classes" in options:
        kept = resolve_task(parse_classes([options["classes"]], found.classes), found.classes)
        chosen = belong(found.labels, kept).nonzero().flatten()
    if max_images is not None and len(chosen) > whole("max_images", max_images):
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:max_images]]
    if not len(chosen):
        which = told(options.get("classes", "any"), 80)
        raise DataError("data-no-images", f"{found.name} has no images of classes {which}; name others")
    images = found.images.at(chosen) if len(chosen) < len(found.labels) else found.images
    data = ImageData(images, found.labels[chosen], found.classes, found.name)
    if isinstance(images, Pictures):
        next(data.batches(1, [0]))  # the usual mistakes show now
    return data


def place_and_options(text: str) -> tuple[str, dict[str, str]]:
    """The path that a text of data starts with, and the options that follow a question mark."""
    place, _, query = (text, "", "") if _exists(Path(text)) else text.rpartition("?")
    place, query = (place, query) if place else (query, "")
    return place, dict(parse_qsl(query, keep_blank_values=True))


def _exists(path: Path) -> bool:
    """Whether the file or folder exists; a text that cannot be a path does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


# -- the forms of data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A form in which people keep images.

    Attributes:
        name: What messages call it.
        finds: The files of a place that make it one of this form, or nothing.
        read: What reads them.
        files: All files that reading opens.
    """

    name: str
    finds: Callable[[Path, Wanted], Sequence[Path]]
    read: Callable[[Sequence[Path], Wanted], Found]
    files: Callable[[Sequence[Path], Wanted], Sequence[Path]]


def _of(read: Callable[[Path, Wanted], Found]) -> Callable[[Sequence[Path], Wanted], Found]:
    """A reader of several files from that of one."""
    return lambda files, wanted: read(files[0], wanted)


def _suffixed(*suffixes: str) -> Callable[[Path, Wanted], Sequence[Path]]:
    return lambda path, wanted: [path] if path.is_file() and path.suffix.lower() in suffixes else []


def _parquet(path: Path, wanted: Wanted) -> Sequence[Path]:
    return shards(path, wanted) if path.is_dir() else _suffixed(".parquet")(path, wanted)


def _saved(path: Path, wanted: Wanted) -> Sequence[Path]:
    folder = saved_folder(path, wanted) if path.is_dir() else None
    return [] if folder is None else saved_files(folder)


def _idx(path: Path, wanted: Wanted) -> Sequence[Path]:
    stem = "t10k" if wanted.split == "test" else wanted.split
    names = [f"{stem}-images{kind}{end}" for end in (".gz", "") for kind in ("-idx3-ubyte", ".idx3-ubyte")]
    file = next((path / name for name in names if (path / name).is_file()), path)
    return [file] if file.is_file() and "idx" in file.name else []


def _npz(path: Path, wanted: Wanted) -> Sequence[Path]:
    found = _in_folder(path, wanted, (".npz",), lambda file: True, ("images", "data", "dataset"))
    return found or _suffixed(".npz")(path, wanted)


def _npy(path: Path, wanted: Wanted) -> Sequence[Path]:
    found = npy_in(path, wanted) if path.is_dir() else path if path.suffix.lower() == ".npy" else None
    return [] if found is None or not found.is_file() else [found]


def _table(path: Path, wanted: Wanted) -> Sequence[Path]:
    found = _in_folder(path, wanted, (".csv", ".tsv"), lambda file: names_pictures(file, wanted))
    return found or _suffixed(".csv", ".tsv")(path, wanted)


def _json(path: Path, wanted: Wanted) -> Sequence[Path]:
    found = _in_folder(path, wanted, (".jsonl",), lambda file: lists_pictures(file, wanted))
    return found or _suffixed(".json", ".jsonl", ".ndjson")(path, wanted)


def _in_folder(
    path: Path,
    wanted: Wanted,
    suffixes: Sequence[str],
    fits: Callable[[Path], bool],
    stems: Sequence[str] = ("metadata", "labels", "annotations"),
) -> Sequence[Path]:
    """The file of a split, or the one of all, in a folder or in the split's own."""
    if not path.is_dir():
        return []
    own = split_folder(path, wanted.split)
    for part in split_names(wanted.split):
        for suffix in suffixes:
            others = sorted(path.glob(f"*_{part}{suffix}"))  # mnist_train.csv
            for file in (path / f"{part}{suffix}", *(others if len(others) == 1 else [])):
                if file.is_file() and fits(file):
                    say_stand_in(path.name, wanted.split, part)
                    return [file]
    for folder in (path, *([] if own is None else [own])):
        for file in (folder / f"{stem}{suffix}" for stem in stems for suffix in suffixes):
            if file.is_file() and fits(file):
                return [file]
    return []


def _pictures(path: Path, wanted: Wanted) -> Sequence[Path]:
    return [path] if path.is_dir() else []


def _idx_files(files: Sequence[Path], wanted: Wanted) -> Sequence[Path]:
    labels = labels_beside(files[0])
    return [files[0], *([labels] if labels.is_file() else [])]


FORMS = (  # the first that recognises a place reads it
    Form("a parquet file", _parquet, read_parquet, lambda files, wanted: files),
    Form("a folder that save_to_disk wrote", _saved, read_saved, lambda files, wanted: _beside(files)),
    Form("an idx file", _idx, _of(lambda path, wanted: read_idx(path)), _idx_files),
    Form("a .npz file", _npz, _of(read_npz), lambda files, wanted: files),
    Form("a .npy file", _npy, _of(read_npy), lambda files, wanted: [p for p in npy_parts(files[0]) if p is not None]),
    Form("a CSV or TSV file", _table, _of(read_table), lambda files, wanted: table_files(files[0], wanted)),
    Form("a JSON file", _json, _of(read_json), lambda files, wanted: json_files(files[0], wanted)),
    Form("an image folder", _pictures, _of(read_folder), lambda files, wanted: _folder_files(files[0], wanted)),
)


def _beside(files: Sequence[Path]) -> Sequence[Path]:
    names = ("state.json", "dataset_info.json")
    return [*files, *(path for name in names if (path := files[0].with_name(name)).is_file())]


def _folder_files(path: Path, wanted: Wanted) -> Sequence[Path]:
    return list(map(Path, class_files(root_of(path, wanted))[2]))


def data_files(place: Path, split: str, asked: bool = False) -> list[Path]:
    """The files that `load_data` reads for a path and a split, sorted.

    Raises:
        DataError: The place is of no known form, or lacks the split.
    """
    with quietly():
        form, files = _recognised(place, Wanted(split, asked))
        return sorted(set(form.files(files, Wanted(split, asked))))


def _recognised(path: Path, wanted: Wanted) -> tuple[Form, Sequence[Path]]:
    """The form of a place, and the files that show it."""
    if not _exists(path):
        raise DataError("data-missing", f"there is no file or folder at {str(path)!r}; give a path, or 'digits'")
    for form in FORMS:
        if files := form.finds(path, wanted):
            return form, files
    names = ", ".join(form.name for form in FORMS)
    raise DataError("data-unknown-format", f"data {str(path)!r} must be one of these: {names}")


def _open(place: str, wanted: Wanted) -> Found:
    if place == "digits":
        return _digits(wanted.split)
    if place.startswith(PREFIX) and not _exists(Path(place)):
        return read_hub(place.removeprefix(PREFIX), wanted)
    form, files = _recognised(Path(place), wanted)
    return form.read(files, wanted)


def _digits(split: str) -> Found:
    """scikit-learn's 1,797 digits; 70 % of each class are for training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(np.rint(found.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    data = ImageData(images, torch.from_numpy(found.target), [str(k) for k in range(10)], "digits")
    check_choice("split of digits", split, ("train", "test"))
    part = data.split(0.7, seed=0)[split == "test"]
    return Found(part.labels, part.classes, part.name, Rows(part.images))
