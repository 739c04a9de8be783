"""Limits a network's cost, counted operation by operation on the meta device before anything is computed.

A two-kilobyte file can describe a network that would run for a year, so the loader first runs it without weights, on
several sizes of batch. The limits are those of `base/_limits.py`. Each number read or written counts as a few
multiply-adds, and each tensor made, be it a view, counts too, so memory and steps are bounded along with time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from brickyard.base import _limits as limits
from brickyard.base._errors import FileError
from brickyard.network._network import Network, kind, refs
from brickyard.runtime._remembering import Remembering

BATCH = 2  # images to run on the meta device first
BATCHES = (BATCH, 1, 3)  # for one of which a step may be wrong, or cost more, though it is not for others
_SLOW = 64  # operations that such a one counts as, since torch takes long to derive its shape
MOST_POSITIONS = 1 << 20  # that count where a file may cost more the larger its images are


class Bounds(Remembering):
    """Counts what runs in its `with` block on the meta device, and stops anything too costly.

    Args:
        numbers: How many numbers the file holds, or None where nothing is to be computed: then only values and their
            count are limited.

    Attributes:
        work: Multiply-adds per image so far.
        entering: The shapes of what entered the layers of the last network at first, by the layer's name.

    Example:
        >>> import torch
        >>> from brickyard.network._cost_limit import Bounds
        >>> from brickyard.base._errors import FileError
        >>> layer = torch.nn.Linear(100_000, 100_000, device="meta")
        >>> with Bounds(numbers=10 ** 10) as bounds:
        ...     _ = layer(torch.empty(2, 100_000, device="meta"))  # nothing is multiplied
        >>> bounds.work > 100_000 ** 2
        True
        >>> try:
        ...     with Bounds(numbers=100):
        ...         _ = layer(torch.empty(2, 100_000, device="meta"))
        ... except FileError as error:
        ...     print(str(error)[:24])
        its network needs more t
    """

    def __init__(self, numbers: int | None) -> None:
        super().__init__()
        self.numbers = numbers
        self.wrote: set[int] = set()
        self.entering: dict[str, tuple[int, ...]] = {}
        self._work: Counter[int] = Counter()  # by the size of the batch
        self._made: Counter[int] = Counter()
        self._new: Counter[int] = Counter()
        self._count = BATCH
        self._positions = 1

    @property
    def work(self) -> int:
        return self._work[BATCH]

    def run(self, network: Network, shape: tuple[int, ...]) -> Any:
        """Run a network without weights on two images of its parameters' type; note whether it changes its parameters.

        Raises:
            FileError: It costs too much, or writes to its own tensors.
        """
        network.keeps_input = True  # it must be given the images themselves
        self._count = BATCH
        return self._run(network, shape)

    def answers(self, network: Network, shape: tuple[int, ...]) -> list[Any]:
        """What a network without weights returns for each of `BATCHES`.

        Raises:
            FileError: As for `run`.
        """
        network.keeps_input = True
        found = []
        for self._count in BATCHES:
            found.append(self._run(network, shape))
        return found

    def _run(self, network: Network, shape: tuple[int, ...]) -> Any:
        self._positions = min(MOST_POSITIONS, math.prod(shape[1:]))
        self.wrote.clear()  # another network's memory may be there by now
        if math.prod(shape) > limits.NUMBERS:
            raise FileError("file-too-costly", _too_large(math.prod(shape)))
        images = torch.empty(self._count, *shape, device="meta", dtype=kind(network).dtype)
        values: dict[str, Any] = {network.nodes[0].name: images}
        held, self.entering = _Held(), {}
        with self, torch.no_grad():
            for index, node in enumerate(network.nodes):
                if node.op == "layer" and node.target not in self.entering:
                    value = values[refs(node)[0]] if refs(node) else None
                    self.entering[node.target] = tuple(value.shape) if isinstance(value, Tensor) else ()
                network.advance(values, index, index + 1)
                if node.name in values:
                    held.add(node.name, values[node.name])
                self._check_memory(held.bytes)
                held.drop(network.dead_after(index))
        for name, value in network.state_dict().items():
            if _place(value) in self.wrote:
                raise FileError("file-network-invalid", f"its network overwrites its own tensor {name!r}")
        network.keeps_input &= _place(images) not in self.wrote
        return values[network.nodes[-1].name]

    def _check_memory(self, found: int) -> None:
        if self.numbers is None:
            return
        most = limits.MEMORY + 64 * self.numbers
        if found // self._count > most:
            raise FileError(
                "file-too-costly",
                f"its network needs {found // self._count:,} bytes per image for values that it needs at one time; "
                f"{most:,} is the limit for a file with {self.numbers:,} values",
            )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation and run it."""
        name = func.overloadpacket.__name__
        _check_pieces(name, args, kwargs or {})
        result = self.result(func, args, kwargs or {})
        if func._schema.is_mutable:
            self._note_writes(func, args, kwargs or {})
        if "batch_norm" in name and True in args[5:6]:  # in training it updates its statistics
            self.wrote.update(_place(value) for value in _tensors(args[3:5]))
        inputs, outputs = list(_tensors((*args, *(kwargs or {}).values()))), list(_tensors([result]))
        self._made[self._count] += len(outputs)
        if self._made[self._count] > limits.MADE:
            raise FileError(
                "file-too-costly", f"its networks make more than {limits.MADE:,} tensors in a run, which is the limit"
            )
        largest = max((value.numel() for value in outputs), default=0) // self._count
        if not func.is_view and largest > limits.NUMBERS:
            raise FileError("file-too-costly", _too_large(largest))
        if self.numbers is None or func.is_view:
            return result
        words = max([value.numel() for value in inputs] + [sum(value.numel() for value in outputs)], default=0)
        work = limits.WORD * words + _multiply_adds(name, args, outputs, self._count)
        self._work[self._count] += work // self._count
        most = limits.WORK + self.numbers * max(limits.RATIO, self._positions)
        if self._work[self._count] > most:
            raise FileError(
                "file-too-costly",
                f"its network needs more than {most:.1e} multiply-adds per image, the limit for a "
                f"file with {self.numbers:,} values",
            )
        return result

    def begin(self, name: str) -> None:
        """Count an operation whose result is not known yet."""
        self._new[self._count] += _SLOW if name.startswith(("upsample", "_upsample", "grid_sampler")) else 1
        most = limits.KINDS + (self.numbers or 0) // 256
        if self._new[self._count] > most:
            raise FileError(
                "file-too-costly", f"its networks have operations on more than {most:,} different shapes or settings"
            )

    def _note_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """Remember the memory that is written to."""
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[index] if index < len(args) else kwargs.get(argument.name)
                self.wrote.update(_place(item) for item in _tensors([value]))


class _Held:
    """Counts the memory of the values that are needed at one time; views share theirs."""

    def __init__(self) -> None:
        self.bytes = 0
        self._of: dict[str, list[tuple[int, int]]] = {}  # by step
        self._uses: Counter[int] = Counter()

    def add(self, name: str, value: Any) -> None:
        """Count the value of a step."""
        self._of[name] = [(_place(one), one.untyped_storage().nbytes()) for one in _tensors([value])]
        for place, size in self._of[name]:
            self.bytes += 0 if self._uses[place] else size
            self._uses[place] += 1

    def drop(self, names: Iterable[str]) -> None:
        """Count values no longer."""
        for name in names:
            for place, size in self._of.pop(name, ()):
                self._uses[place] -= 1
                self.bytes -= 0 if self._uses[place] else size


def _place(value: Tensor) -> int:
    """Identify a tensor's memory."""
    return int(value.untyped_storage()._cdata)


def _too_large(numbers: int) -> str:
    return f"its network makes a value of {numbers:,} numbers for an image; {limits.NUMBERS:,} is the limit"


def _check_pieces(name: str, args: Any, kwargs: Any) -> None:
    """Reject cutting a value into very many pieces, each of which takes memory even without data."""
    if name not in ("unbind", "split", "chunk", "tensor_split", "split_with_sizes"):
        return
    value = args[0]
    if name == "unbind":
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        pieces = value.shape[dim]
    elif isinstance(args[1], list | tuple):
        pieces = len(args[1])
    else:
        dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        pieces = value.shape[dim] if name != "split" else -(-value.shape[dim] // max(1, args[1]))
    if pieces > limits.PIECES:
        raise FileError(
            "file-too-costly", f"its network splits a tensor into {pieces:,} pieces; the limit is {limits.PIECES:,}"
        )


def _multiply_adds(name: str, args: Any, outputs: list[Tensor], images: int) -> int:
    """Multiply-adds of an operation beyond those counted for its inputs and outputs."""
    made = outputs[0].numel() if outputs else 0
    if name in ("convolution", "_convolution"):
        weight = args[1]
        inside = int(math.prod(weight.shape[1:]))
        if len(args) > 6 and args[6]:  # transposed: the kernel is applied at each input position
            made = args[0].numel()
        if weight.dtype not in (torch.float32, torch.bfloat16):  # these are unfolded: each position's inputs are copied
            made_once = made // max(1, weight.shape[0]) * inside * max(1, args[8] if len(args) > 8 else 1)
            if made_once // images > limits.NUMBERS:
                raise FileError("file-too-costly", _too_large(made_once // images))
        return made * inside
    if name in ("mm", "bmm", "mv", "dot"):
        return made * int(args[0].shape[-1])
    if "cdist" in name:
        return made * int(args[0].shape[-1])
    if name in ("_trilinear", "bilinear"):
        return made * int(math.prod(args[2].shape[-2:] if name == "bilinear" else args[1].shape))
    if name in ("addmm", "baddbmm", "addmv"):
        return made * int(args[1].shape[-1])
    if "scaled_dot_product" in name:
        query, key = args[0], args[1]
        pairs: int = query.numel() // max(1, query.shape[-1]) * int(key.shape[-2])
        return pairs * (limits.WORD + 2 * int(query.shape[-1]))
    if name.startswith(("max_pool", "avg_pool")):
        kernel = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        return made * int(math.prod(kernel if len(kernel) > 1 else list(kernel) * int(name[len("max_pool")])))
    return 0


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))
