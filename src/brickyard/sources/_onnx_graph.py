"""Builds a network from an ONNX graph, step by step, while it follows every value's sizes.

Each value is followed through two batches, of 2 and of 3 images: images as tensors without numbers, and whatever
depends on no image as numbers. A size that differs between the two is a multiple of the batch; numbers that agree are
constants. So shapes that a graph computes (Shape, Gather, Concat, Reshape) are computed here, once, and what is left is
steps and layers of Brickyard's tables.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from brickyard.base._errors import BrickyardError, FileError, TraceError
from brickyard.base._messages import first_line, told
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import build_layer
from brickyard.network._network import Network, Node, Ref, refs
from brickyard.network._torch_private import store, stored
from brickyard.sources._onnx_file import OnnxFile, Op, users

BATCHES = (2, 3)
MAX_KNOWN = 1 << 26  # numbers in one value that is computed while reading
MAX_STEPS = 1 << 13
MAX_PLACES = 1 << 16
_PLAIN = re.compile(r"[^0-9A-Za-z_]+")
_PARTS = (".weight", ".bias", ".running_mean", ".running_var")


@dataclass(frozen=True)
class Value:
    """One value of the graph.

    Attributes:
        worlds: The value in a batch of 2 and of 3: without numbers if it depends on images. One object twice is a
            constant.
        step: The step that computes it; "" if it depends on no image.
        name: What the file calls it.
    """

    worlds: tuple[Tensor, Tensor]
    step: str = ""
    name: str = ""

    @property
    def known(self) -> bool:
        """Whether its numbers depend on no image; they may depend on the size of the batch."""
        return not self.step

    @property
    def constant(self) -> bool:
        """Whether its numbers depend on nothing."""
        return not self.step and self.worlds[0] is self.worlds[1]

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return self.worlds[0].ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes in a batch of 2."""
        return tuple(self.worlds[0].shape)

    @property
    def by_batch(self) -> list[int]:
        """The dimensions whose size depends on the batch."""
        first, second = self.worlds
        return [d for d, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b]


def constant(value: Tensor, name: str = "") -> Value:
    """A value that depends on nothing."""
    return Value((value, value), "", name)


class Reader:
    """A network while it is read from a file.

    Args:
        file: The file.
        shape: (channels, height, width) of the images, or the shape of signals or cubes.
        dtype: The type of the network's numbers.

    Attributes:
        values: What is known by now, by name in the file.
        batch: The number of images that the file fixes; 1 where it leaves it open.
        uses: The operators that use each value.
        makers: The operator that computes each value.
        inner: By step: how many entries of the batch's dimension lie before the batch.
    """

    def __init__(self, file: OnnxFile, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.file, self.dtype = file, dtype
        self.batch = (file.images.shape or (None,))[0] or 1
        self.values: dict[str, Value] = {name: constant(value, name) for name, value in file.weights.items()}
        self.uses = users(file.ops)
        self.makers = {name: op for op in file.ops for name in op.outputs}
        self.nodes: list[Node] = [Node("images", "input")]
        self.layers: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.source: dict[str, Value] = {}  # by step: the value that it works on, where a later one may undo it
        self.orders: dict[str, list[int]] = {}  # by step: in which order it takes the dimensions
        self.scaled: dict[str, Value] = {}  # by step that scales images to 0..255: the images in [0, 1]
        self.raised: dict[str, Value] = {}  # by step that adds a half to whole numbers, to round them: these
        self.inner: dict[str, int] = {}
        self.done: set[str] = set()  # outputs of operators that an earlier one took in
        self._held: dict[tuple[str, int], str] = {}
        self._sized: dict[int, Ref] = {}
        self._shared: dict[str, str] = {}
        self._alive: list[Any] = []  # what keys name by identity
        self._computed = 0  # numbers that were computed while reading
        self._most_computed = MAX_KNOWN + 8 * sum(value.numel() for value in file.weights.values())
        self._counts: Counter[str] = Counter()
        self._names: set[str] = set()  # of layers and tensors
        self._within: set[str] = set()  # the groups that they lie in
        self._op: Op | None = None
        empty = tuple(torch.empty(batch, *shape, dtype=dtype, device="meta") for batch in BATCHES)
        self.images = Value((empty[0], empty[1]), "images", file.images.name)

    # -- errors ------------------------------------------------------------------------------------------

    def refuse(self, why: str, code: str = "file-unknown-operation") -> NoReturn:
        """Refuse the file for what the operator at hand does.

        Raises:
            FileError: Always; or a TraceError, as the code says.
        """
        place = "" if self._op is None else f"{self._op.place} "
        kind = TraceError if code.startswith("trace-") else FileError
        raise kind(code, f"{self.file.path}: {place}{told(why, 500)}")

    def run(self, op: Op, convert: Callable[[Reader, Op, list[Value | None]], Any]) -> None:
        """Read one operator.

        Raises:
            FileError: It cannot be read.
        """
        if op.outputs[0] in self.done:
            return
        self._op = op
        given = [self.values.get(name) if name else None for name in op.inputs]
        if any(name and value is None for name, value in zip(op.inputs, given, strict=True)):
            self.refuse("needs a value that was not computed", "file-network-invalid")
        try:
            found = convert(self, op, given)
        except BrickyardError:
            raise
        except Exception as error:  # whatever torch says of sizes that do not fit
            self.refuse(f"cannot be read: {first_line(error)}; obtain the file again", "file-network-invalid")
        results = found if isinstance(found, list) else [found]
        for name, value in zip(op.outputs, results, strict=False):
            if name:
                self.values[name] = replace(value, name=value.name or name)
        if len(self.nodes) > MAX_STEPS:
            self.refuse(f"is one step too many; the limit is {MAX_STEPS:,}", "file-too-large")
        self._op = None

    # -- steps -------------------------------------------------------------------------------------------

    def call(self, target: str, *args: Any, **kwargs: Any) -> Value:
        """Add a step that calls a function of the table; compute it now if it depends on no image.

        Args:
            target: The function's name in the table.
            args: Values and plain numbers, nested or not.
            kwargs: The same by name.
        """
        every = _values((args, kwargs))
        run = FUNCTIONS[target].call
        if all(value.known for value in every):
            return self.compute(run, *args, **kwargs)
        worlds = [run(*self._in(world, args), **self._in(world, kwargs)) for world in (0, 1)]
        number = FUNCTIONS[target].role == "binary" or target == "pow"
        node_args, node_kwargs = self._placed((args, kwargs), number)
        name = self._fresh(self._op.kind if self._op else target)
        self.nodes.append(Node(name, "function", target, node_args, node_kwargs))
        return self._laid_out(Value((worlds[0], worlds[1]), name), every)

    def compute(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """Compute what depends on no image, in both batches unless it is a constant."""
        every = _values((args, kwargs))
        if any(not value.known for value in every):
            self.refuse("depends on the images here, which is not known; give the network as Python code")
        self._check_size(run, args, kwargs)
        first = run(*self._in(0, args), **self._in(0, kwargs))
        if all(value.constant for value in every):
            return constant(first, every[0].name if len(every) == 1 else "")
        second = run(*self._in(1, args), **self._in(1, kwargs))
        return constant(first) if torch.equal(first, second) else Value((first, second))

    def _check_size(self, run: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Refuse a value that would not fit in memory, alone or with all others, before it is made."""
        try:
            made = run(*_bare(args), **_bare(kwargs)).numel()
        except Exception:  # it needs the numbers, and returns as many as it takes
            made = sum(value.worlds[1].numel() for value in _values((args, kwargs)))
        self._computed += made
        if made > MAX_KNOWN or self._computed > self._most_computed:
            most = MAX_KNOWN if made > MAX_KNOWN else self._most_computed
            self.refuse(f"makes {max(made, self._computed):,} numbers; the limit is {most:,}", "file-too-costly")

    def layer(
        self, kind: str, x: Value, config: Mapping[str, Any], tensors: Mapping[str, Value | None], title: str = ""
    ) -> Value:
        """Add a step that runs a layer of the table.

        Args:
            kind: The layer's type.
            x: What it works on.
            config: Its constructor arguments.
            tensors: Its weights, by their names in the layer.
            title: What to call it, if not after its weights or its operator.
        """
        given = {key: value for key, value in tensors.items() if value is not None}
        layer = build_layer(kind, dict(config)).to(self.dtype)
        worlds = [layer(x.worlds[world]) for world in (0, 1)]
        own: dict[str, Tensor] = {}
        for key, value in given.items():
            there = stored(layer).get(key)
            if not value.constant or there is None or tuple(there.shape) != value.shape:
                self.refuse(f"has {key}s of shape {value.shape}, which do not fit", "file-network-invalid")
            own[key] = value.worlds[0].to(self.dtype).contiguous()
        key = repr((kind, sorted(config.items()), [(k, v.name, id(v.worlds[0])) for k, v in given.items()]))
        self._alive.append(given)
        if key not in self._shared:
            for name, there in stored(layer).items():
                if there is not None:  # all but the given ones count batches
                    store(layer, name, own[name].clone() if name in own else torch.tensor(0))
            self._shared[key] = self.free(title or self._title([value.name for value in given.values()]))
            self.layers[self._shared[key]] = layer.requires_grad_(False).eval()
        name = self._fresh(kind)
        self.nodes.append(Node(name, "layer", self._shared[key], (Ref(x.step),)))
        return self._laid_out(Value((worlds[0], worlds[1]), name), [x])

    def _laid_out(self, value: Value, given: Sequence[Value]) -> Value:
        """Note where the batch lies within a dimension: where it lay before, if that has kept its size."""
        for item in given:
            if item.step in self.inner and [value.shape[d] for d in value.by_batch] == [
                item.shape[d] for d in item.by_batch
            ]:
                self.inner[value.step] = self.inner[item.step]
        return value

    def number(self, value: Value | None, what: str) -> float:
        """The one number that a value holds."""
        if value is None or not value.constant or value.worlds[0].numel() != 1:
            self.refuse(f"needs its {what} as a constant number")
        return float(value.worlds[0])

    def places(self, count: int) -> list[int]:
        """All places of a dimension of so many entries."""
        if count > MAX_PLACES:
            self.refuse(f"orders {count:,} entries; the limit is {MAX_PLACES:,}", "file-too-costly")
        return list(range(count))

    def integers(self, value: Value | None, what: str) -> list[int]:
        """The whole numbers that a constant holds."""
        if value is None or not value.constant or value.worlds[0].numel() > 64:
            self.refuse(f"needs its {what} as constants")
        return [int(item) for item in value.worlds[0].reshape(-1)]

    def _fresh(self, kind: str) -> str:
        kind = kind.lower()  # an operator and a layer may differ in capitals alone
        name = f"{kind}_{self._counts[kind]}"
        self._counts[kind] += 1
        return name

    def _in(self, world: int, value: Any) -> Any:
        """Arguments in one of both batches; sizes in lists as numbers, and constants without numbers by images."""
        images = any(not item.known for item in _values(value))

        def change(item: Value, inner: bool) -> Any:
            found = item.worlds[world]
            if item.known and found.ndim == 0 and not found.is_floating_point() and (inner or images):
                return int(found)
            if not images or not item.known:
                return found
            return torch.empty_like(found, device="meta", dtype=self.dtype if found.is_floating_point() else None)

        return _mapped(value, change)

    # -- arguments of steps ------------------------------------------------------------------------------

    def _placed(self, value: Any, number: bool) -> Any:
        """Arguments as steps store them: references, numbers, and sizes that follow the batch."""
        if isinstance(value, Value):
            return self._argument(value, number)
        if isinstance(value, dict):
            return {key: self._placed(item, number) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self._placed(item, number) for item in value)
        return value

    def _argument(self, value: Value, number: bool) -> Any:
        if not value.known:
            return Ref(value.step)
        first = value.worlds[0]
        if value.constant and first.numel() == 1 and number:
            return float(first) if first.is_floating_point() else int(first)
        if first.ndim == 0 and not first.is_floating_point():
            return int(first) if value.constant else self.size(value)
        return self.held(value)

    def size(self, value: Value) -> Ref:
        """A step that computes a size that is a multiple of the batch."""
        numbers = [int(world) for world in value.worlds]
        times, rest = divmod(numbers[0], BATCHES[0])
        if rest or times * BATCHES[1] != numbers[1]:
            self.refuse(
                f"needs a size that is {numbers[0]} for {BATCHES[0]} images and {numbers[1]} for {BATCHES[1]}, which "
                "is no multiple of the batch",
                "trace-batch",
            )
        if 1 not in self._sized:
            self.nodes.append(Node("batch", "function", "size", (Ref("images"),), {"dim": 0}))
            self._sized[1] = Ref("batch")
        if times not in self._sized:
            self.nodes.append(Node(f"batch_{times}", "function", "mul", (Ref("batch"), times)))
            self._sized[times] = Ref(f"batch_{times}")
        return self._sized[times]

    def held(self, value: Value) -> Ref:
        """A step that gives a constant tensor, spread over the batch where its first sizes follow that."""
        first, second = value.worlds
        dims = value.by_batch
        same = all(torch.equal(first.narrow(d, 0, 1).expand_as(first), first) for d in dims)
        base = first.narrow(dims[0], 0, 1) if dims else first
        if len(dims) > 1 or not same or not torch.equal(base.expand_as(second) if dims else second, second):
            self.refuse("uses numbers that change with the size of the batch", "trace-batch")
        tensor = base.to(self.dtype) if base.is_floating_point() else base
        if not bool(torch.isfinite(tensor).all()):
            tensor = tensor.clamp(torch.finfo(self.dtype).min, torch.finfo(self.dtype).max)  # masks hold infinities
        key = (value.name, id(first))
        if key not in self._held:
            self._alive.append(first)
            target = self.free(value.name, ("constant",))
            self.tensors[target] = nn.Parameter(tensor.clone(), False) if tensor.is_floating_point() else tensor
            self._held[key] = self._fresh("tensor")
            self.nodes.append(Node(self._held[key], "tensor", target))
        if not dims:
            return Ref(self._held[key])
        size = self.size(Value((torch.tensor(first.shape[dims[0]]), torch.tensor(second.shape[dims[0]]))))
        sizes = tuple(size if d == dims[0] else -1 for d in range(first.ndim))
        name = self._fresh("spread")
        self.nodes.append(Node(name, "function", "expand", (Ref(self._held[key]), sizes)))
        return Ref(name)

    # -- names -------------------------------------------------------------------------------------------

    def _title(self, weights: Sequence[str]) -> str:
        """What to call a layer: the module of torch that its weights name, else after its operator."""
        for name in weights:
            for part in _PARTS:
                if name.endswith(part) and len(name) > len(part):
                    return name.removesuffix(part)
        name = self._op.name if self._op is not None else ""
        return scoped(name) if "/" in name else name

    def free(self, wanted: str, otherwise: tuple[str, ...] = ()) -> str:
        """A dotted name for a layer or tensor that nothing has, and that lies within none that has."""
        parts = [_PLAIN.sub("_", part).strip("_") for part in wanted.split(".")]
        parts = [f"n{part}" if part in ("weight", "bias") else part for part in parts if part][-16:]
        op = self._op.kind.lower() if self._op is not None else "step"
        base = ".".join(parts)[:200].strip(".") or ".".join(otherwise) or op
        if any(group in self._names for group in _groups(base)):  # it would lie within a layer or a tensor
            base = base.replace(".", "_")
        name = base
        while name in self._names or name in self._within:
            self._counts[f"{base} "] += 1
            name = f"{base}_{self._counts[f'{base} '] + 1}"
        self._names.add(name)
        self._within.update(_groups(name))
        return name

    # -- the end -----------------------------------------------------------------------------------------

    def network(self, output: Value) -> Network:
        """The steps that an output needs, as a network."""
        nodes = [*self.nodes, Node("output", "output", "", (Ref(output.step),))]
        needed, kept = {"output", "images"}, []
        for node in reversed(nodes):
            if node.name in needed:
                kept.append(node)
                needed.update(refs(node))
        used = {node.target for node in kept}
        layers = {name: layer for name, layer in self.layers.items() if name in used}
        tensors = {name: value for name, value in self.tensors.items() if name in used}
        return Network(kept[::-1], layers, tensors).eval()


def _groups(name: str) -> list[str]:
    """The dotted names that a dotted name lies in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def scoped(name: str) -> str:
    """The module of torch that an operator's scope names: `/layer1/layer1.0/conv1/Conv` is in `layer1.0.conv1`."""
    whole: list[str] = []
    for part in [part for part in name.split("/") if part][:-1]:
        if whole and part.startswith(f"{whole[-1]}."):
            whole[-1] = part
        else:
            whole.append(part)
    return ".".join(whole) or name


def _values(value: Any) -> list[Value]:
    if isinstance(value, Value):
        return [value]
    if isinstance(value, dict):
        return [found for item in value.values() for found in _values(item)]
    if isinstance(value, tuple | list):
        return [found for item in value for found in _values(item)]
    return []


def _mapped(value: Any, change: Callable[[Value, bool], Any], depth: int = 0) -> Any:
    """Arguments with every value replaced; whether it lies in a list is told."""
    if isinstance(value, Value):
        return change(value, depth > 1)
    if isinstance(value, dict):
        return {key: _mapped(item, change, depth + 1) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change, depth + 1) for item in value)
    return value


def _bare(value: Any) -> Any:
    """Arguments without numbers, except sizes."""

    def change(item: Value, inner: bool) -> Any:
        found = item.worlds[1]
        return int(found) if found.ndim == 0 and not found.is_floating_point() and inner else found.to("meta")

    return _mapped(value, change)


def volume(sizes: Sequence[int]) -> int:
    """The product of sizes."""
    return math.prod(sizes)
