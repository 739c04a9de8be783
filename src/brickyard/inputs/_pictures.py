"""Where images lie: in a tensor, or in files of pictures, which are decoded when they are asked for."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._messages import told
from brickyard.base._records import Preprocessing
from brickyard.inputs._decoding import decode_image
from brickyard.inputs._preprocessing import sized

MAX_BYTES = 8 << 30  # largest array of images in memory, and largest decompressed idx file
KEPT_BYTES = 1 << 28  # of decoded pictures that are kept, so that those used again are not decoded again
AHEAD = 64  # pictures that are decoded before they are asked for, and at most as many bytes as are kept
MOST_WORKERS = 8
PROBES = 8  # pictures that tell what all of them look like

Encoded = tuple[Any, str | None]
"""What `decode_image` takes, and what messages call it."""


class Store(Protocol):
    """Images of one shape, in an order."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of each."""

    def at(self, places: Tensor) -> Store:
        """Those at some places, (images,), which are not read for that."""

    def batches(self, batch_size: int, order: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Batches (images, channels, height, width), of all or in the order of these places."""

    def all(self) -> Tensor:
        """All of them at once, (images, channels, height, width)."""


class Rows:
    """Images that lie in a tensor, which may be mapped from a file.

    Args:
        tensor: (images, channels, height, width).
        places: Which of its rows are meant; None for all.
    """

    def __init__(self, tensor: Tensor, places: Tensor | None = None) -> None:
        self.tensor = tensor
        self.places = places

    def __len__(self) -> int:
        return len(self.tensor) if self.places is None else len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[1:])

    def at(self, places: Tensor) -> Rows:
        return Rows(self.tensor, places if self.places is None else self.places[places])

    def batches(self, batch_size: int, order: Sequence[int] | None = None) -> Iterator[Tensor]:
        if order is None and self.places is None:
            yield from self.tensor.split(batch_size)
            return
        places = torch.arange(len(self)) if order is None else torch.tensor(order, dtype=torch.long)
        places = places if self.places is None else self.places[places]
        for some in places.split(batch_size) if len(places) else ():
            yield self.tensor[some.to(self.tensor.device)]

    def all(self) -> Tensor:
        return self.tensor if self.places is None else self.tensor[self.places.to(self.tensor.device)]


class Files:
    """Pictures in files of their own."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, indices: Sequence[int]) -> Iterator[Encoded]:
        """The files of some pictures, in their order."""
        return ((self.paths[index], None) for index in indices)

    def probes(self, among: Sequence[int]) -> Sequence[int]:
        """Some of these pictures, which tell what all of them look like."""
        return spread(among)


def spread(among: Sequence[int]) -> Sequence[int]:
    """A few of these, from all over."""
    return among[:: -(-len(among) // PROBES)]


class Encodings(Protocol):
    """Pictures that are not decoded yet, as of a folder or of a column of a table."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int]) -> Iterable[Encoded]:
        """What `decode_image` takes for some of them, in their order."""

    def probes(self, among: Sequence[int]) -> Sequence[int]:
        """Some of these pictures, which tell what all of them look like, and are soon found."""


class Reader:
    """Decodes pictures ahead of the one who asks, in threads, and keeps some of them.

    Pillow and torch let other threads go on while they decode and resize.

    Args:
        encodings: The pictures.
        how: What they are brought to: a height and width, to which pictures are resized until they cover it, and
            cropped; or a preprocessing.
        name: What messages call all of them.
    """

    def __init__(self, encodings: Encodings, how: tuple[int, int] | Preprocessing | None, name: str) -> None:
        self.encodings = encodings
        self.how = Preprocessing(size=how, fit="crop") if isinstance(how, tuple) else how or Preprocessing()
        self.name = name
        self._shape: tuple[int, ...] | None = None
        self._kept: OrderedDict[int, Tensor] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}

    def shape(self, among: Tensor) -> tuple[int, ...]:
        """Channels, height and width of each picture: one channel if those that are looked at are grey.

        Args:
            among: The pictures that are asked for, (images,), of which a few are looked at the first time; others may
                never be read. None of them stands for all.

        Raises:
            DataError: There are none, or they have several sizes.
        """
        if self._shape is None:
            places = among.tolist() or range(len(self.encodings))
            probes = self.encodings.probes(places) if len(places) else []
            found = [self._sized(*item) for item in self.encodings.fetch(probes)]
            if not found:
                raise DataError("data-no-images", f"{self.name} holds no images; give at least one per class")
            self._shape = (max(map(len, found)), *found[0].shape[1:])
            for picture in found:
                self._fitting(picture, None)
        return self._shape

    def each(self, indices: Sequence[int], among: Tensor) -> Generator[Tensor]:
        """Yield pictures (channels, height, width) in this order, of those `among` which they are.

        Raises:
            DataError: One cannot be decoded, or has another size than others.
        """
        if self.how.size is None or self.how.channels is None:  # else all are brought to one shape
            self.shape(among)
        missing = [index for index in dict.fromkeys(indices) if index not in self._kept]
        coming = zip(missing, self.encodings.fetch(missing), strict=True)
        ready: dict[int, Future[Tensor]] = {}
        ahead = self._ahead()
        pool = ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1), "decoding")
        try:
            for index in indices:
                for number, item in islice(coming, ahead - len(ready)):
                    ready[number] = pool.submit(self._decoded, *item)
                picture = self._kept.get(index)
                if index in ready:
                    picture = ready.pop(index).result()
                if picture is None:  # it was kept before, and others took its place
                    (item,) = self.encodings.fetch([index])
                    picture = self._decoded(*item)
                self._keep(index, picture)
                yield picture
        finally:
            pool.shutdown(cancel_futures=True)

    def _ahead(self) -> int:
        """How many pictures are decoded before they are asked for: fewer where they are large."""
        shape = self._shape or (3, *(self.how.size or (1, 1)))
        return max(1, min(AHEAD, KEPT_BYTES // math.prod(shape)))

    def _decoded(self, source: Any, title: str | None) -> Tensor:
        return self._fitting(self._sized(source, title), told(title or source, 200))

    def _sized(self, source: Any, title: str | None) -> Tensor:
        return sized(decode_image(source, title), self.how)

    def _fitting(self, picture: Tensor, title: str | None) -> Tensor:
        """The picture, in colour if others are.

        Raises:
            DataError: It has another size, or it is in colour and others are not.
        """
        channels, *sides = self._shape or picture.shape
        if list(picture.shape[1:]) != sides:
            one, other = (f"{height}x{width}" for height, width in (sides, picture.shape[1:]))
            such = f"such as {one} and {other}" + (f" ({title})" if title else "")
            raise DataError(
                "data-not-batchable", f"{self.name}: images have different sizes, {such}; give a size to resize them to"
            )
        if len(picture) > channels and self.how.channels is None:
            why = f"{self.name}: the first images are grey, and {title} is in colour"
            raise DataError("data-not-batchable", f"{why}; give images of one kind, or channels= in a preprocessing")
        return picture.expand(channels, -1, -1) if len(picture) < channels else picture

    def _keep(self, index: int, picture: Tensor) -> None:
        """Keep a picture, in the place of those that were not used for the longest time."""
        if self._kept.pop(index, None) is None:
            self._bytes += picture.nbytes
        self._kept[index] = picture
        while self._bytes > KEPT_BYTES and self._kept:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


class Pictures:
    """Images that are decoded when they are asked for.

    Args:
        reader: What decodes them.
        places: Which of its pictures are meant; None for all.
    """

    def __init__(self, reader: Reader, places: Tensor | None = None) -> None:
        self._reader = reader
        self._places = torch.arange(len(reader.encodings)) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._reader.shape(self._places)

    def at(self, places: Tensor) -> Pictures:
        return Pictures(self._reader, self._places[places])

    def batches(self, batch_size: int, order: Sequence[int] | None = None) -> Iterator[Tensor]:
        places = self._places if order is None else self._places[torch.tensor(order, dtype=torch.long)]
        with closing(self._reader.each(places.tolist(), self._places)) as pictures:
            while some := list(islice(pictures, batch_size)):
                yield _stacked(some)

    def all(self) -> Tensor:
        """All of them at once.

        Raises:
            DataError: They take too much memory.
        """
        if not len(self):
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        found: list[Tensor] = []
        with closing(self._reader.each(self._places.tolist(), self._places)) as pictures:
            for picture in pictures:
                if picture.numel() * len(self) > MAX_BYTES:
                    raise too_large(self._reader.name, picture.numel() * len(self))
                found.append(picture)
        return _stacked(found)


def _stacked(pictures: Sequence[Tensor]) -> Tensor:
    """Put pictures together; grey ones become colour if others are."""
    most = max(map(len, pictures))
    return torch.stack([picture.expand(most, -1, -1) for picture in pictures])


def too_large(what: str, size: int) -> DataError:
    """The error for data that would take more memory than the limit."""
    found = f"{what} would take {size / 2**30:,.1f} GiB, and {MAX_BYTES / 2**30:g} GiB are the limit"
    return DataError("data-too-large", f"{found}; give fewer or smaller images, or pictures in files of their own")
