"""Networks that run over all images at once, step by step, and the inputs of each layer."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.base._errors import FileError
from brickyard.base._messages import told
from brickyard.network._layer_types import mixing_of
from brickyard.network._mixing import NORMS
from brickyard.network._network import Network, Node, refs

MEMORY = 384 << 20  # bytes of activations that a stream holds; the rest waits on disk
_HALF = 6e4  # largest number that half precision holds
_FAINT = 1e-2  # the largest of several numbers must not be smaller, for half precision to hold the others well


# -- one network over all images -----------------------------------------------------------------------------


class Stream:
    """The values of all batches just before some step, which only moves forward.

    Beyond `MEMORY`, a batch's values wait in a file, in half precision where they are float32: every step runs once for
    every image, whatever their number and size.

    Args:
        graph: The source's graph.
        network: The source's network, or one that was cut from it.
        batches: Preprocessed images.
        start: The number of the first image of each batch, among those of all processes.
    """

    def __init__(
        self, graph: Graph, network: Network, batches: Sequence[Tensor], start: Sequence[int] | None = None
    ) -> None:
        self.network = network
        self._shapes, self._batch = graph.shapes, graph.batch
        self.counts = [len(batch) for batch in batches]
        begins = itertools.accumulate(map(len, batches), initial=0) if start is None else start
        self.starts = list(begins)[: len(batches)]
        self._folder: Path | None = None
        self._rests = [_Rest() for _ in batches]
        first = network.nodes[0].name
        for rest, batch in zip(self._rests, batches, strict=True):
            rest.hold({first: network.taken(batch)}, 0, 0)  # images are held anyway

    def sizes(self, node: Node) -> tuple[int, ...]:
        """The sizes of a layer's output dimensions that hold positions, batch aside."""
        shape = tuple(self._shapes[node.name].shape)
        mixing = mixing_of(self.network.layer(node.target))
        return shape[1:-1] if mixing.linear else shape[2:]

    def each(self, node: Node, sizes: Sequence[int]) -> int:
        """How many outputs of these sizes a layer has for each image, whatever dimension is that of the images."""
        shape = tuple(self._shapes[node.name].shape)
        linear = mixing_of(self.network.layer(node.target)).linear
        every: int = math.prod(shape[:-1]) if linear else shape[0] * math.prod(sizes)
        return max(1, every // self._batch)

    def before(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the values of each batch before step `index`, which may only grow."""
        for rest in self._rests:
            values = rest.values()
            if rest.position < index:
                self.network.advance(values, rest.position, index)
                size, storable = _size(values)
                if not storable or size <= MEMORY - sum(other.held for other in self._rests if other is not rest):
                    rest.hold(values, index, size)
                else:
                    rest.store(values, index, self._file(rest))
            yield values

    def _file(self, rest: _Rest) -> Path:
        """Where a batch's values wait; it is removed with the stream."""
        if self._folder is None:
            with _writing(Path(tempfile.tempdir or ".")):
                self._folder = Path(tempfile.mkdtemp(prefix="brickyard-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder / str(self._rests.index(rest))

    def ahead(self, values: dict[str, Any], index: int, stop: int) -> dict[str, Any]:
        """The values before a later step, from those before step `index`, which stay as they are."""
        if stop == index:
            return values
        found = copied(values)
        self.network.advance(found, index, stop)
        return found


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """For writes of values that wait.

    Raises:
        FileError: They cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FileError(
            "file-not-writable",
            f"activations of so many images wait on disk, and {str(place)!r} cannot be written: {told(error)}; free "
            "space there, name another folder in TMPDIR, or use fewer images",
        ) from error


def drawn(places: Tensor, every: int, total: int) -> Tensor:
    """Where the positions drawn of each image, (images, positions), are among all of a batch, `total` of them."""
    where = (torch.arange(len(places)).unsqueeze(1) * every + places).flatten()
    return where[where < total]  # what depends on no image has as many for any batch


class _Rest:
    """The values of one batch before a step, in memory or in a file.

    Attributes:
        position: The step.
        held: How many bytes it holds in memory.
    """

    def __init__(self) -> None:
        self.position = self.held = 0
        self._file: Path | None = None
        self._values: dict[str, Any] = {}
        self._like: list[Tensor] = []

    def hold(self, values: dict[str, Any], position: int, size: int) -> None:
        """Hold these values, of so many bytes, in memory."""
        self.position, self.held, self._file, self._values = position, size, None, values

    def store(self, values: dict[str, Any], position: int, file: Path) -> None:
        """Write these values to a file."""
        wholes: list[Tensor] = []
        places = _places(values)
        self.position, self.held, self._file = position, 0, file
        self._values = _mapped(values, lambda value: _stored(value, places, wholes))
        self._like = [whole.new_empty(0) for whole in wholes]
        with _writing(file):
            save_file({str(number): _narrow(whole) for number, whole in enumerate(wholes)}, file)

    def values(self) -> dict[str, Any]:
        """The values."""
        if self._file is None:
            return self._values
        read = load_file(self._file)
        wholes = [read[str(number)].to(like) for number, like in enumerate(self._like)]
        found: dict[str, Any] = _mapped(self._values, lambda at: at.of(wholes), _Stored)
        return found


@dataclass(frozen=True)
class _Stored:
    """Stands for a tensor in a file: all of one that is there, or a view of it."""

    number: int
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None

    def of(self, wholes: Sequence[Tensor]) -> Tensor:
        """The tensor."""
        whole = wholes[self.number]
        return whole if self.view is None else whole.as_strided(*self.view)


def _memory(value: Tensor) -> tuple[int, torch.dtype]:
    return value.untyped_storage().data_ptr(), value.dtype


def _places(values: dict[str, Any]) -> dict[tuple[int, torch.dtype], int | None]:
    """The memory that several values share, which a step that overwrites one of them changes for all."""
    tensors: list[Tensor] = []
    _mapped(values, tensors.append)
    counts = Counter(_memory(value) for value in tensors if value.numel())
    return {memory: None for memory, count in counts.items() if count > 1}


def _stored(value: Tensor, places: dict[tuple[int, torch.dtype], int | None], wholes: list[Tensor]) -> _Stored:
    """What stands for a value; `wholes` gets what is to be written, memory that values share once."""
    memory = _memory(value)
    if memory not in places:
        wholes.append(value)
        return _Stored(len(wholes) - 1)
    number = places[memory]
    if number is None:
        number = places[memory] = len(wholes)
        size = value.untyped_storage().nbytes() // value.element_size()
        wholes.append(value.detach().as_strided((size,), (1,), 0))
    return _Stored(number, (tuple(value.shape), tuple(value.stride()), int(value.storage_offset())))


def copied(values: dict[str, Any]) -> dict[str, Any]:
    """Values that steps may overwrite without changing these; those that share memory do so still."""
    return copy.deepcopy(values)


def _size(values: dict[str, Any]) -> tuple[int, bool]:
    """The bytes of values, and whether a file can hold them."""
    tensors: list[Tensor] = []
    _mapped(values, tensors.append)
    return sum(value.nbytes for value in tensors), not any(value.is_complex() for value in tensors)


def _narrow(value: Tensor) -> Tensor:
    """In half precision, where that holds float32: it loses what is tiny altogether."""
    fits = value.dtype == torch.float32 and value.numel() > 0 and _FAINT <= float(value.abs().max()) < _HALF
    return value.to(torch.float16 if fits else value.dtype).clone(memory_format=torch.contiguous_format)


def _mapped(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Change every tensor among a step's values."""
    if isinstance(value, dict):
        return {key: _mapped(item, change, kind) for key, item in value.items()}
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(_mapped(item, change, kind) for item in value)
    return change(value) if isinstance(value, kind) else value


def peak_bytes(graph: Graph) -> int:
    """The peak size of one image's live values at any step, in bytes."""
    nodes = graph.network.nodes
    live = peak = 0
    sizes: dict[str, int] = {}
    for index, node in enumerate(nodes):
        sizes[node.name] = image_bytes(graph.shapes[node.name])
        live += sizes[node.name]
        peak = max(peak, live)
        live -= sum(sizes[name] for name in graph.network.dead_after(index))
    return peak


def image_bytes(value: Any) -> int:
    """The size of a step's value for one image, in bytes."""
    items = value if isinstance(value, tuple | list) else (value,)
    return sum(item.nbytes // max(1, len(item)) for item in items if isinstance(item, Tensor) and item.ndim)


@dataclass(frozen=True)
class Intercept:
    """Where a layer's output can be shifted: its bias, or the running mean of the batch norm behind it."""

    bias: Tensor | None = None
    running_mean: Tensor | None = None

    def __bool__(self) -> bool:
        return self.bias is not None or self.running_mean is not None

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(value for value in (self.bias, self.running_mean) if value is not None)

    def values(self) -> list[Tensor]:
        """Copy what `add` changes."""
        return [value.clone() for value in self._tensors]

    def put(self, values: Sequence[Tensor]) -> None:
        for place, value in zip(self._tensors, values, strict=True):
            place.copy_(value)

    def add(self, shift: Tensor) -> None:
        if self.bias is not None:
            self.bias.add_(shift.to(self.bias.dtype))
        elif self.running_mean is not None:
            self.running_mean.sub_(shift.to(self.running_mean.dtype))


def own_bias(layer: nn.Module) -> Intercept:
    """A layer's bias, where it has one."""
    return Intercept(bias=layer.bias.data) if isinstance(layer.bias, Tensor) else Intercept()


def intercept_of(network: Network, node: Node) -> Intercept:
    """Find where a layer's output can be shifted."""
    layer = network.layer(node.target)
    if own := own_bias(layer):
        return own
    users = [other for other in network.nodes if node.name in refs(other)]
    if len(users) == 1 and users[0].op == "layer":
        norm = network.layer(users[0].target)
        uses = sum(other.target == users[0].target for other in network.nodes if other.op == "layer")
        outputs = len(mixing_of(layer).rows)  # a norm over positions has another length
        if isinstance(norm, NORMS) and norm.running_mean is not None and uses == 1 and norm.num_features == outputs:
            return Intercept(running_mean=norm.running_mean)
    return Intercept()
