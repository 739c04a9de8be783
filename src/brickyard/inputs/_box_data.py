"""Images with boxes around objects, from the forms in which people have them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from brickyard.base._checks import given_path, is_whole
from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import told
from brickyard.base._records import Preprocessing
from brickyard.inputs._box_coco import coco_files, read_coco
from brickyard.inputs._box_columns import read_box_columns
from brickyard.inputs._box_table import BoxesFound, BoxTable, Truth, checked, said
from brickyard.inputs._box_voc import read_voc, voc_root
from brickyard.inputs._box_yolo import read_yolo, yolo_files
from brickyard.inputs._columns import saved_files, saved_folder, shards
from brickyard.inputs._datasets import chosen_images, place_and_options
from brickyard.inputs._decoding import decode_image
from brickyard.inputs._pictures import MOST_WORKERS, Encodings
from brickyard.inputs._preprocessing import sized
from brickyard.inputs._reading import Wanted, note

_AHEAD = 16  # pictures that are decoded before they are asked for

FORMS = (
    "a COCO .json file or a folder that holds one in 'annotations'",
    "a YOLO .yaml file or a folder that holds one",
    "a folder in Pascal VOC's form",
    "a .parquet file or a folder of them",
    "a folder that save_to_disk wrote",
)


class BoxData(Dataset[tuple[Tensor, Truth]]):
    r"""Images with boxes around objects, of several sizes. Pictures are decoded when they are asked for.

    Args:
        encodings: What `decode_image` takes, for each image.
        table: The objects of the images.
        places: Which image of `encodings` each row of the table is of.
        classes: Class names.
        name: What messages call the data.
        left_out: What was left out when they were read, and how often.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from brickyard.inputs import load_box_data
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("images", "labels"):
        ...     (folder / name).mkdir()
        >>> Image.new("RGB", (40, 20)).save(folder / "images/a.png")
        >>> _ = (folder / "labels/a.txt").write_text("1 0.5 0.5 0.25 1")
        >>> _ = (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]")
        >>> data = load_box_data(folder)
        >>> data.picture(0).shape, data.truth(0).boxes.tolist(), data.presence.tolist()
        (torch.Size([3, 20, 40]), [[15.0, 0.0, 25.0, 20.0]], [[0, 1]])
    """

    def __init__(
        self,
        encodings: Encodings,
        table: BoxTable,
        places: Sequence[int],
        classes: Sequence[str],
        name: str,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self._encodings = encodings
        self._table = table
        self._places = list(places)
        self._rows = torch.arange(len(places))
        self.classes = tuple(classes)
        self.name = name
        self.left_out = dict(left_out or {})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Truth]:
        return self.picture(index), self.truth(index)

    def truth(self, index: int) -> Truth:
        """The objects in an image.

        Raises:
            IndexError: There is no such image.
        """
        return self._table.truth(self._row(index))

    def picture(self, index: int) -> Tensor:
        """An image, uint8, (channels, height, width): one channel if it is grey, otherwise three.

        Raises:
            DataError: It cannot be decoded.
            IndexError: There is no such image.
        """
        (item,) = self._encodings.fetch([self._places[self._row(index)]])
        return self._fitting(decode_image(*item), index)

    def pictures(self, order: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Yield all images, or those at these indices: in threads, and with one pass over files that hold many.

        Raises:
            DataError: One cannot be decoded.
            IndexError: There is no such image.
        """
        indices = list(range(len(self)) if order is None else order)
        rows = [self._row(index) for index in indices]
        coming = iter(self._encodings.fetch([self._places[row] for row in rows]))
        ready: deque[Future[Tensor]] = deque()
        pool = ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1), "decoding")
        try:
            for index in indices:
                while len(ready) < _AHEAD and (item := next(coming, None)) is not None:
                    ready.append(pool.submit(decode_image, *item))
                yield self._fitting(ready.popleft().result(), index)
        finally:
            pool.shutdown(cancel_futures=True)

    def framed(self, how: Preprocessing) -> Framed:
        """The images as a network is shown them, with the classes that each has.

        Raises:
            DataError: The preprocessing brings them to no size, so that they cannot be put into batches.
        """
        if how.size is None:
            raise DataError(
                "data-not-batchable",
                f"{self.name}: its pictures have several sizes; give a preprocessing that brings them to "
                "the detector's, such as brickyard.Preprocessing(size=(416, 416), fit='letterbox', ...)",
            )
        return Framed(self, how)

    def subset(self, indices: Sequence[int] | Tensor) -> BoxData:
        """Select the images at these indices, or where a mask is true. No picture is read for it.

        Raises:
            DataError: An index is out of range.
        """
        chosen = chosen_images(indices, len(self), self.name)
        part = BoxData(self._encodings, self._table, self._places, self.classes, self.name, self.left_out)
        part._rows = self._rows[chosen]
        return part

    def relabelled(self, places: Sequence[int], classes: Sequence[str]) -> BoxData:
        """The same images, whose boxes are of other classes.

        Args:
            places: For each class, the new one; -1 leaves its boxes out.
            classes: Names of the new classes.

        Raises:
            DataError: There are not as many places as classes, or one is beyond the new classes.
        """
        if len(places) != len(self.classes) or not all(-1 <= place < len(classes) for place in places):
            why = f"{self.name} has {len(self.classes)} classes, got {list(places)[:8]} for {len(classes)} new ones"
            raise DataError("data-class-names", f"{why}; give one of these, or -1, for each")
        table = self._table.relabelled(places)
        part = BoxData(self._encodings, table, self._places, classes, self.name, self.left_out)
        part._rows = self._rows
        return part

    @property
    def presence(self) -> Tensor:
        """Which classes are in each image: 0 or 1, (images, classes), int64. Crowds count too.

        Raises:
            DataError: That takes too much memory.
        """
        return self._table.presence(len(self.classes))[self._rows]

    def _row(self, index: int) -> int:
        if not is_whole(index) or not -len(self) <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, got index {index}")
        return int(self._rows[int(index)])

    def _fitting(self, picture: Tensor, index: int) -> Tensor:
        """The picture, if it still is the one whose header was read.

        Raises:
            DataError: It has another size.
        """
        sides = self.truth(index).sides
        if tuple(picture.shape[1:]) != sides:
            one, other = (f"{height}x{width}" for height, width in (sides, picture.shape[1:]))
            why = f"{self.name}: image {index} was {one} when its boxes were read, and is {other} now"
            raise DataError("data-damaged-file", f"{why}; load the data again")
        return picture


class Framed(Dataset[tuple[Tensor, Tensor]]):
    """Images with boxes as a network is shown them: of one size, each with 0 or 1 for every class.

    Args:
        data: The images.
        how: What brings them to a size.
    """

    def __init__(self, data: BoxData, how: Preprocessing) -> None:
        self.data, self.how, self.classes, self.name = data, how, data.classes, data.name
        self._presence = data.presence

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture = sized(self.data.picture(index), self.how)
        return picture.expand(3, -1, -1) if self.how.channels == 3 else picture, self._presence[index]


def load_box_data(spec: str | Path, split: str | None = None) -> BoxData:
    """Load images with boxes around objects.

    Boxes that cannot be right are left out, and so are images that are missing or cannot be decoded. They are counted,
    said on standard error, and kept in `left_out`. Images without objects stay: nothing is to be found in them.

    Args:
        spec: COCO: a `.json` file, or a folder that holds such a file in `annotations`. YOLO: `data.yaml`, or a folder
            that holds it. Pascal VOC: a folder with `Annotations` and `JPEGImages`. A `.parquet` file or a folder of
            them, with columns `image`, and `objects` or `boxes` and `classes`. A question mark and `split=` may follow,
            which must then exist.
        split: "train" or "test", unless the text specifies it; None: "train". Data without splits are read as a whole.

    Raises:
        DataError: The data cannot be read.
        OptionError: The text is not understood, or a package is missing.
        FileError: No file can have such a path.
    """
    if not str(spec).strip():
        raise OptionError("option-empty", "data must not be empty, got ''; give a folder or a file")
    place, options = place_and_options(str(spec))
    if unknown := sorted(set(options) - {"split"}):
        raise OptionError("option-unknown-name", f"data {spec!s}: unknown option {unknown[0]!r}; use split=")
    path = given_path(place, "data")
    found = _read(path, Wanted(options.get("split", split or "train"), "split" in options))
    table, places, left_out = checked(found)
    if left_out:
        note(f"{found.name}: left out: {said(left_out)}")
    return BoxData(found.encodings, table, places, found.classes, found.name, left_out)


def _read(path: Path, wanted: Wanted) -> BoxesFound:
    """Read the annotations of a place by the form that it has."""
    if not path.exists():
        raise DataError("data-missing", f"there is no file or folder at {told(path, 200)!r}; give the path of the data")
    try:
        found = _read_file(path, wanted) if path.is_file() else _read_folder(path, wanted)
    except OSError as error:
        why = f"cannot read {path}: {error.strerror or error}"
        raise DataError("data-damaged-file", f"{why}; check that it may be read") from None
    if found is None:
        forms = ", ".join(FORMS)
        raise DataError("data-unknown-format", f"data with boxes {told(path, 200)!r} must be one of these: {forms}")
    return found


def _read_file(path: Path, wanted: Wanted) -> BoxesFound | None:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_coco(path, wanted)
    if suffix in (".yaml", ".yml"):
        return read_yolo(path, wanted)
    return read_box_columns([path], wanted.split) if suffix == ".parquet" else None


def _read_folder(path: Path, wanted: Wanted) -> BoxesFound | None:
    if files := shards(path, wanted):
        return read_box_columns(files, wanted.split)
    if (saved := saved_folder(path, wanted)) is not None:
        return read_box_columns(saved_files(saved), wanted.split)
    usual, lone = yolo_files(path)
    if usual is not None:
        return read_yolo(usual, wanted)
    if (root := voc_root(path)) is not None:
        return read_voc(root, wanted)
    if annotations := coco_files(path, wanted):
        return read_coco(annotations[0], wanted)
    return None if lone is None else read_yolo(lone, wanted)
