"""Image data from a short text: `digits`, or a place whose form is recognised: folders, tables, arrays, files of data.

All data are raw: images of one size, labels, class names. Images are uint8, or float32 in [0, 1] where their size had
to be changed, so that nothing is rounded that `predict` does not round. Arrays of numbers that are no pictures stay as
they are. The text may end in options: `digits?split=test&classes=0-2,7`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from brickyard.base._checks import check_choice, whole
from brickyard.base._classes import parse_classes, resolve_task
from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import told
from brickyard.base._records import Preprocessing
from brickyard.base._sides import BATCHED, BATCHES
from brickyard.inputs._arrays import npy_in, npy_parts, read_npy, read_npz
from brickyard.inputs._columns import read_parquet, read_saved, saved_files, saved_folder, shards
from brickyard.inputs._folders import class_files, read_folder, root_of, split_folder
from brickyard.inputs._idx import labels_beside, read_idx
from brickyard.inputs._json_files import json_files, lists_pictures, read_json
from brickyard.inputs._reading import Found, Wanted, of_tensor, quietly, say_stand_in, split_names
from brickyard.inputs._tables import names_pictures, read_table, table_files
from brickyard.inputs._taken import Taken


class ImageData(Dataset[tuple[Tensor, int]]):
    """Raw images with labels and class names.

    Args:
        images: (images, channels, height, width), uint8; float32 in [0, 1] where they were resized, or other float32
            numbers that are no pictures. Also signals (signals, channels, length) and cubes (cubes, channels, depth,
            height, width).
        labels: (images,), indices into `classes`.
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

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str], name: str = "images") -> None:
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor) or labels.is_floating_point():
            raise DataError("data-type", f"{name}: images and labels must be tensors, and labels must be integers")
        self.images = images
        self.labels = labels.long()
        self.classes = tuple(classes)
        self.name = name
        if (
            images.ndim not in BATCHED
            or images.dtype not in (torch.uint8, torch.float32)
            or labels.shape != (len(images),)
        ):
            shape, kind = tuple(images.shape), images.dtype
            found = f"images of shape {shape} and type {kind}, labels of shape {tuple(labels.shape)}"
            wanted = f"give {BATCHES}, uint8 or float32, and one label for each"
            raise DataError("data-shape", f"{name}: {found}; {wanted}")
        check_labels(self.labels, self.classes, name)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def subset(self, indices: Sequence[int] | Tensor) -> ImageData:
        """Select the images at these indices, or where a mask is true.

        Raises:
            DataError: An index is out of range.
        """
        chosen = torch.as_tensor(indices)
        if chosen.dtype == torch.bool and chosen.shape == self.labels.shape:
            chosen = chosen.nonzero().flatten()
        chosen = chosen.long()
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            found = f"{self.name} has images 0 to {len(self) - 1}, got index {int(chosen.max())}"
            raise DataError("data-index-out-of-range", found)
        return ImageData(self.images[chosen], self.labels[chosen], self.classes, self.name)

    def of_classes(self, classes: Sequence[int | str]) -> ImageData:
        """Select the images of some classes; labels and class names stay the same.

        Raises:
            TaskError: A class is unknown.
        """
        wanted = torch.tensor(resolve_task(classes, self.classes))
        return self.subset(torch.isin(self.labels, wanted))

    def without(self, classes: Sequence[int | str]) -> Tensor | None:
        """The images of all other classes, without labels; None if there are none.

        Raises:
            TaskError: A class is unknown.
        """
        chosen = ~torch.isin(self.labels, torch.tensor(resolve_task(classes, self.classes)))
        return self.images[chosen] if bool(chosen.any()) else None

    def renumbered(self, classes: Sequence[int | str]) -> ImageData:
        """Select the images of some classes, which become classes 0, 1, ... in this order.

        Raises:
            TaskError: A class is unknown.
        """
        wanted = resolve_task(classes, self.classes)
        part = self.of_classes(wanted)
        labels = torch.tensor([wanted.index(k) for k in part.labels.tolist()], dtype=torch.long)
        return ImageData(part.images, labels, [self.classes[k] for k in wanted], self.name)

    def shuffled(self, seed: int = 0) -> ImageData:
        """Return the same images in random order."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)))

    def split(self, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
        """Split into `fraction` of every class's images and the rest, both in random order.

        Raises:
            OptionError: The fraction is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise OptionError("option-range", f"a split must be a fraction between 0 and 1, got {fraction!r}")
        mixed = self.shuffled(seed)
        first = torch.zeros(len(self), dtype=torch.bool)
        for k in range(len(self.classes)):
            places = (mixed.labels == k).nonzero().flatten()
            first[places[: round(fraction * len(places))]] = True
        return mixed.subset(first), mixed.subset(~first)


def check_labels(labels: Tensor, classes: Sequence[str], name: str) -> None:
    """Refuse class names that are not unique, and labels that are not indices into them.

    Raises:
        DataError: They are not.
    """
    if len(set(classes)) != len(classes):
        found = told(", ".join(classes[:8]), 200)
        raise DataError("data-class-names", f"{name}: class names must be unique, but two are equal among {found}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        found = f"labels run from {int(labels.min())} to {int(labels.max())}, for {len(classes)} class names"
        advice = "give labels that count the names from 0, and leave out images without a label"
        raise DataError("data-label-out-of-range", f"{name}: {found}; {advice}")


def load_data(
    spec: str | Path,
    *,
    split: str = "train",
    size: tuple[int, int] | Preprocessing | None = None,
    max_images: int | None = None,
    shape: Sequence[int] | Taken | None = None,
) -> ImageData:
    """Load image data.

    Args:
        spec: `digits` (scikit-learn's, included); a folder with one sub-folder per class, or with `train` and
            `test` (or `val`) folders of that kind; a CSV, TSV or JSON file that lists pictures and labels; a CSV file
            of pixels; a `.npz` file, or a `.npy` file with labels beside it; a `.parquet` file or folder, or a folder
            that `save_to_disk` wrote, as of the Hugging Face library; an idx file of images, or a folder with idx
            files. Options may follow a question mark: `split` (which must exist), and `classes` to keep only some
            (labels stay the same).
        split: "train" or "test", unless the text specifies it.
        size: Height and width for pictures in files: they are resized to cover it and cropped. A preprocessing: they
            are brought to its size in its way.
        max_images: Maximum number of images, drawn with a fixed seed; no others are decoded.
        shape: What the network takes, where that is no pictures: (channels, length) for signals, (channels, depth,
            height, width) for cubes. Arrays are read as such, and the number of channels tells which axis holds them.

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
    found = _open(place, Wanted(options.get("split", split), "split" in options, size, Taken.of(shape)))
    check_labels(found.labels, found.classes, found.name)
    chosen = torch.arange(len(found.labels))
    if "classes" in options:
        kept = resolve_task(parse_classes([options["classes"]], found.classes), found.classes)
        chosen = torch.isin(found.labels, torch.tensor(kept)).nonzero().flatten()
    if max_images is not None and len(chosen) > whole("max_images", max_images):
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:max_images]]
    if not len(chosen):
        which = told(options.get("classes", "any"), 80)
        raise DataError("data-no-images", f"{found.name} has no images of classes {which}; name others")
    return ImageData(found.take(chosen.tolist()), found.labels[chosen], found.classes, found.name)


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
    return [file for _, file in class_files(root_of(path, wanted))[1]]


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
    return Found(part.labels, part.classes, part.name, of_tensor(part.images))
