"""Image data from a short text: `digits`, a folder of images, a parquet file, or a pair of idx files.

All data are raw: images of one size, labels, class names. Images are uint8, or float32 in [0, 1] where their size had
to be changed, so that nothing is rounded that `predict` does not round. The text may end in options:
`digits?split=test&classes=0-2,7`.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from brickyard.base._checks import check_choice, whole
from brickyard.base._classes import parse_classes, resolve_task
from brickyard.base._errors import DataError, OptionError
from brickyard.base._lazy import package
from brickyard.base._messages import first_line, told, writable
from brickyard.base._records import Preprocessing
from brickyard.inputs._decoding import decode_image
from brickyard.inputs._preprocessing import sized
from brickyard.runtime._progress import say

MAX_BYTES = 8 << 30  # largest decompressed idx file
MAX_CLASSES = 1_000_000

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_NO_PICTURES = {".db", ".ini", ".txt", ".json", ".csv", ".xml", ".md"}  # which lie beside pictures
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


class ImageData(Dataset[tuple[Tensor, int]]):
    """Raw images with labels and class names.

    Args:
        images: (images, channels, height, width), uint8; float32 in [0, 1] where they were resized.
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
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32) or labels.shape != (len(images),):
            shape, kind = tuple(images.shape), images.dtype
            found = f"images of shape {shape} and type {kind}, labels of shape {tuple(labels.shape)}"
            wanted = "give uint8 images (images, channels, height, width), or float32 in [0, 1], and one label an image"
            raise DataError("data-shape", f"{name}: {found}; {wanted}")
        if len(set(self.classes)) != len(self.classes):
            found = ", ".join(self.classes[:8])
            raise DataError("data-class-names", f"{name}: class names must be unique, but two are equal among {found}")
        if len(labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            found = f"labels run from {int(labels.min())} to {int(labels.max())}, for {len(self.classes)} class names"
            advice = "give labels that count the names from 0, and leave out images without a label"
            raise DataError("data-label-out-of-range", f"{name}: {found}; {advice}")

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


def load_data(
    spec: str | Path,
    *,
    split: str = "train",
    size: tuple[int, int] | Preprocessing | None = None,
    max_images: int | None = None,
) -> ImageData:
    """Load image data.

    Args:
        spec: `digits` (scikit-learn's, included); a folder with one sub-folder per class, or with `train` and
            `test` (or `val`) folders of that kind; a `.parquet` file in the Hugging Face layout or a folder with
            `train.parquet` and `test.parquet`; an idx file of images, or a folder with idx files. Options may
            follow a question mark: `split` (which must exist), and `classes` to keep only some (labels stay the same).
        split: "train" or "test", unless the text specifies it.
        size: Height and width for image folders: images are resized to cover it and cropped. A preprocessing: they are
            brought to its size in its way.
        max_images: Maximum number of images, drawn with a fixed seed.

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
    data = _open(place, options.get("split", split), size, "split" in options)
    if "classes" in options:
        data = data.of_classes(parse_classes([options["classes"]], data.classes))
    if max_images is not None and len(data) > whole("max_images", max_images):
        data = data.shuffled(0).subset(range(max_images))
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


def _open(place: str, split: str, size: tuple[int, int] | Preprocessing | None, asked: bool) -> ImageData:
    if place == "digits":
        return _digits(split)
    path = Path(place)
    if not _exists(path):
        raise DataError("data-missing", f"there is no file or folder at {place!r}; give a path, or 'digits'")
    stem = "t10k" if split == "test" else split
    names = (f"{split}.parquet", f"{stem}-images-idx3-ubyte.gz", f"{stem}-images-idx3-ubyte")
    file = next((path / name for name in names if (path / name).is_file()), path)
    if file.suffix == ".parquet":
        return _parquet(file)
    if file.is_file() and "idx" in file.name:
        return _idx(file)
    if path.is_dir():
        return _folder(path, split, size, asked)
    raise DataError("data-unknown-format", f"data {place!r} must be an image folder, a parquet file or an idx file")


def _digits(split: str) -> ImageData:
    """scikit-learn's 1,797 digits; 70 % of each class are for training."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(np.rint(found.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    data = ImageData(images, torch.from_numpy(found.target), [str(k) for k in range(10)], "digits")
    check_choice("split of digits", split, ("train", "test"))
    return data.split(0.7, seed=0)[split == "test"]


# -- parquet and idx -----------------------------------------------------------------------------------------


def _parquet(path: Path) -> ImageData:
    pq = package("pyarrow.parquet", "parquet", str(path))
    try:
        with pq.ParquetFile(path) as file:
            columns, metadata = file.schema_arrow.names, file.schema_arrow.metadata
            image = next((name for name in ("image", "img") if name in columns), None)
            label = next((name for name in ("label", "fine_label", "labels") if name in columns), None)
            if image is None or label is None:
                found = ", ".join(columns)
                raise DataError("data-unknown-format", f"{path} must have columns 'image' and 'label', got {found}")
            pictures, values = _rows(file, path, image, label)
    except DataError:
        raise
    except Exception as error:  # what pyarrow raises for damaged files differs by version
        why = f"cannot read {path} as parquet: {first_line(error)}"
        raise DataError("data-damaged-file", f"{why}; get a fresh copy") from None
    count = max(values, default=0) + 1
    if not values or count > MAX_CLASSES:
        why = f"{path} has {len(values)} images and labels up to {count - 1}"
        raise DataError("data-label-out-of-range", f"{why}; give at least one image, and labels from 0")
    names = _names_in_schema(metadata, label) or [str(k) for k in range(count)]
    labels = torch.tensor(values, dtype=torch.long)
    return ImageData(_stack(pictures, None, str(path)), labels, names, f"{path.parent.name}/{path.stem}")


def _rows(file: Any, path: Path, image: str, label: str) -> tuple[list[Tensor], list[int]]:
    """Read images and labels a few hundred rows at a time: a highly repetitive column is small only when compressed."""
    pictures: list[Tensor] = []
    values: list[int] = []
    for batch in file.iter_batches(batch_size=256, columns=[image, label]):
        for content, value in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
            index = len(values)
            if not isinstance(value, int) or abs(value) >> 62:
                why = f"{path}: column {label!r} must hold whole numbers, and row {index} holds {str(value)[:40]!r}"
                raise DataError("data-label-mismatch", f"{why}; leave out images without a label")
            found = content.get("bytes") if isinstance(content, dict) else content
            if not isinstance(found, bytes):
                raise DataError("data-unreadable-image", f"{path}: image {index} has no bytes; embed the images in it")
            pictures.append(decode_image(io.BytesIO(found), f"{path}, image {index}"))
            values.append(int(value))
    return pictures, values


def _names_in_schema(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _idx(path: Path) -> ImageData:
    labels_path = labels_beside(path)
    if labels_path == path:
        why = f"{path} was asked for, and its name does not mention images"
        raise DataError("data-unknown-format", f"{why}; give train-images-idx3-ubyte.gz or the like")
    images, labels = _read_idx(path, 3), _read_idx(labels_path, 1)
    folder = path.parent.name
    count = int(labels.max()) + 1 if len(labels) else 1
    names = FASHION if "fashion" in folder else [str(k) for k in range(count)]
    return ImageData(images.unsqueeze(1), labels, names, f"{folder}/{path.name.split('-')[0]}")


def labels_beside(images: Path) -> Path:
    """The path of the labels for an idx file of images; the same path if its name does not mention images."""
    return images.with_name(images.name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1"))


def _read_idx(path: Path, ndim: int) -> Tensor:
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
        why = f"{path} is no whole idx file of bytes with {ndim} dimensions ({MAX_BYTES >> 30} GiB at most)"
        found = f"it starts with {start[:4].hex(' ')}, and a shape of {'x'.join(map(str, shape))}"
        raise DataError("data-damaged-file", f"{why}: {found}; get it again")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape))


# -- image folders -------------------------------------------------------------------------------------------


def split_folder(path: Path, split: str) -> Path | None:
    """The folder of a split, if there is one; "val" serves as "test"."""
    names = (split, "val") if split == "test" else (split,)
    return next((path / name for name in names if name and (path / name).is_dir()), None)


def pictures_in(folder: Path) -> list[Path]:
    """All pictures in a folder and in those within it, in order.

    Raises:
        DataError: There are none.
    """
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found:
        raise DataError("data-no-images", f"{folder} holds no pictures; give a folder with .png, .jpg or the like")
    return found


def _folder(path: Path, split: str, size: tuple[int, int] | Preprocessing | None, asked: bool) -> ImageData:
    """Images in a folder a class. Where the text asks for a split, there must be a folder of it."""
    found = split_folder(path, split)
    if found is None and asked:
        there = ", ".join(sorted(item.name for item in path.iterdir() if item.is_dir())[:5]) or "none"
        raise DataError("data-missing", f"{path} has no split {split!r}; its folders are {there}: name one of them")
    path = found or path
    classes = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    how = Preprocessing(size=size, fit="crop") if isinstance(size, tuple) else size
    pictures: list[Tensor] = []
    labels: list[int] = []
    left: list[str] = []
    for k, name in enumerate(classes):
        if not writable(name):
            why = f"{path} has a folder whose name is not valid UTF-8, {name!r}"
            raise DataError("data-class-names", f"{why}; rename it, because it names a class")
        for file in sorted((path / name).iterdir()):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                picture = decode_image(file)
                pictures.append(picture if how is None else sized(picture, how))
                labels.append(k)
            elif not file.name.startswith(".") and file.suffix.lower() not in _NO_PICTURES:
                left.append(f"{name}/{file.name}")
    if left and pictures:
        why = "pictures lie directly in the folder of their class, and end in .png, .jpg or the like"
        say(f"{path.name}: {len(left):,} files and folders are left out, such as {told(left[0], 80)}: {why}")
    if not pictures:
        there = ", ".join(map(repr, classes[:5])) or "no sub-folder"
        why = f"{path} was asked for, split {split!r}, and it holds no images in class folders ({there})"
        advice = "put each class's images into a folder of its own, directly and as .png, .jpg or the like"
        raise DataError("data-no-images", f"{why}; {advice}")
    return ImageData(_stack(pictures, size, str(path)), torch.tensor(labels), classes, path.name)


def _stack(pictures: list[Tensor], size: Any, name: str) -> Tensor:
    """Stack pictures into one tensor; grey ones become colour if others are."""
    if not pictures:
        raise DataError("data-no-images", f"{name} holds no images")
    sizes = Counter(tuple(picture.shape[1:]) for picture in pictures)
    if len(sizes) > 1:
        found = ", ".join(f"{h}x{w}" for (h, w), _ in sizes.most_common(4))
        why = f"{name}: images have {len(sizes)} different sizes ({found} ...)"
        raise DataError("data-not-batchable", f"{why}; give a size to resize them to")
    if any(picture.is_floating_point() for picture in pictures):
        pictures = [picture if picture.is_floating_point() else picture.float() / 255 for picture in pictures]
    if len({len(picture) for picture in pictures}) > 1:
        pictures = [picture.expand(3, -1, -1) for picture in pictures]
    return torch.stack(pictures)
