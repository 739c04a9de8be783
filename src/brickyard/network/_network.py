"""A network as an ordinary module that runs a list of steps, and the same network as data.

Tracing finds this list of steps, and files store it. Running it needs no generated code: each step looks up its
function or layer in a whitelist. Nothing here depends on axes, classes or scores.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from brickyard.base._errors import FileError, SurgeryError
from brickyard.base._limits import STEPS
from brickyard.base._messages import told
from brickyard.base._specs import LayerSpec, NetworkSpec, NodeSpec, TensorSpec
from brickyard.network._arguments import ORDER, argument
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import build_layer, describe_layer, find_type
from brickyard.network._shown import Shown
from brickyard.network._torch_private import adopt, child, stored, taken_names
from brickyard.network._untouched import in_evaluation
from brickyard.runtime._remembering import Remembering

NodeOp = Literal["input", "layer", "tensor", "function", "output"]
NetworkT = TypeVar("NetworkT", bound="Network")

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
}
_MAX_DEPTH, _MAX_TEXT = 16, 256
_MAX_DOTS = 32  # in the name of a layer
HELD = "held."  # before names, in a network that is `reachable`


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference, among a step's arguments, to the value of an earlier step."""

    node: str


@dataclass(frozen=True)
class Node:
    """One step. `target` is the dotted name of a layer or tensor, or a function's name in the table.

    Attributes:
        line: The line of the model's code that it comes from, such as "net.py line 12 (y = y + z)", for messages; it is
            in no file.
    """

    name: str
    op: NodeOp
    target: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    line: str = field(default="", compare=False, repr=False)

    @property
    def place(self) -> str:
        """The step for a message, with the user's line where it is known."""
        return f"step {self.name!r}" + (f" at {self.line}" if self.line else "")


def map_refs(value: Any, change: Callable[[Ref], Any]) -> Any:
    """Replace every `Ref` in nested arguments."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, int | str | float) or value is None:
        return value
    if isinstance(value, tuple | list):
        return type(value)(map_refs(item, change) for item in value)
    if isinstance(value, slice):
        return slice(*(map_refs(item, change) for item in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: map_refs(item, change) for key, item in value.items()}
    return value


def with_refs(node: Node, change: Callable[[Ref], Any]) -> Node:
    """Return the step with every reference replaced."""
    args, kwargs = map_refs((node.args, dict(node.kwargs)), change)
    return replace(node, args=args, kwargs=kwargs)


def refs(node: Node) -> list[str]:
    """Names of the steps whose values this one uses, in order and with repeats."""
    found: list[str] = []
    map_refs((node.args, dict(node.kwargs)), lambda ref: found.append(ref.node))
    return found


@dataclass(frozen=True, slots=True)
class _Planned:
    """A step prepared for many runs: most are one layer of one value, or a call with flat arguments."""

    node: Node
    name: str
    dead: tuple[str, ...]
    layer: tuple[str, ...] = ()
    source: str = ""
    call: Callable[..., Any] | None = None
    args: tuple[tuple[bool, Any], ...] = ()


def _planned(node: Node, dead: tuple[str, ...], foreign: Mapping[str, Callable[..., Any]]) -> _Planned:
    one = len(node.args) == 1 and isinstance(node.args[0], Ref) and not node.kwargs
    if node.op == "layer" and one:
        return _Planned(node, node.name, dead, layer=tuple(node.target.split(".")), source=node.args[0].node)
    flat = all(isinstance(value, Ref | int | float | str) or value is None for value in node.args)
    if node.op == "function" and flat and not node.kwargs and node.target not in foreign:
        found = FUNCTIONS.get(node.target)  # unknown names are rejected elsewhere
        args = tuple((isinstance(value, Ref), value) for value in node.args)
        return _Planned(node, node.name, dead, call=found.call if found else None, args=args)
    return _Planned(node, node.name, dead)


class _Group(nn.Module):
    """A bare container, so that layers keep their dotted names from the source."""


class Network(Shown):
    """Runs its steps in order; layers and tensors are stored under their dotted names.

    Args:
        nodes: The steps; the first is the input, the last the output.
        layers: The layers by dotted name.
        tensors: Bare parameters and buffers by dotted name.
        foreign: Callables outside the whitelist, by the target that names them. A network that has any
            runs, but has no form as data.

    Shapes:
        input (batch, channels, height, width) -> output (batch, classes)
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        layers: Mapping[str, nn.Module],
        tensors: Mapping[str, Tensor] | None = None,
        foreign: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__()
        self._steps = tuple(nodes)
        self._layer_names = tuple(layers)
        self._tensor_names = tuple(tensors or {})
        self._foreign = dict(foreign or {})
        self.keeps_input = _keeps_input(self._steps, layers)
        self._dead = _last_uses(self._steps)
        self._plan = tuple(
            _planned(node, dead, self._foreign) for node, dead in zip(self._steps, self._dead, strict=True)
        )
        modules = {**layers, **{name: call for name, call in self._foreign.items() if isinstance(call, nn.Module)}}
        for name, layer in sorted(modules.items(), key=lambda item: item[0].count(".")):  # a layer may contain others
            adopt(*self._home(name), layer)
        for name, tensor in (tensors or {}).items():
            parent, leaf = self._home(name)
            if leaf in taken_names(parent):
                raise SurgeryError("surgery-name-taken", f"tensor {name!r} cannot be stored: a layer has that name")
            adopt(parent, leaf, tensor)

    def _home(self, name: str) -> tuple[nn.Module, str]:
        """Where a new layer or tensor with this dotted name goes: its parent, made if need be, and its name there."""
        *groups, leaf = name.split(".")
        parent: nn.Module = self
        for group in groups:
            inner = child(parent, group)
            if inner is None:
                if not group or group in taken_names(parent):
                    raise SurgeryError("surgery-name-taken", f"{name!r} cannot be stored: {group!r} is a tensor's name")
                inner = _Group()
                adopt(parent, group, inner)
            parent = inner
        if not leaf:
            raise SurgeryError("surgery-name-taken", f"{name!r} cannot be stored: a name must not end with a dot")
        return parent, leaf

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The steps, in order."""
        return self._steps

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Dotted names of the layers."""
        return self._layer_names

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Dotted names of the bare parameters and buffers."""
        return self._tensor_names

    @property
    def foreign(self) -> dict[str, Callable[..., Any]]:
        """Callables outside the whitelist."""
        return dict(self._foreign)

    def layer(self, name: str) -> nn.Module:
        """The layer with this dotted name."""
        module: nn.Module = self
        for part in name.split("."):
            module = module._modules[part]  # type: ignore[assignment]
        return module

    def tensor(self, name: str) -> Tensor:
        """The bare parameter or buffer with this dotted name."""
        holder, leaf = self.holder(name)
        value: Tensor = stored(holder)[leaf]  # type: ignore[assignment]
        return value

    def holder(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a bare tensor, and the tensor's name there."""
        group, _, leaf = name.rpartition(".")
        return (self.layer(group) if group else self), leaf

    def overwrites(self, node: Node) -> bool:
        """Whether a step overwrites the value it is given first."""
        layer = self.layer(node.target) if node.op == "layer" else None
        return overwrites(node, layer, self._foreign.get(node.target))

    def step(self, node: Node, values: Mapping[str, Any]) -> Any:
        """Compute the value of one step from those of earlier ones."""
        args = map_refs(node.args, lambda ref: values[ref.node])
        kwargs = map_refs(dict(node.kwargs), lambda ref: values[ref.node])
        if node.op == "function":
            call = self._foreign.get(node.target) or FUNCTIONS[node.target].call
            return call(*args, **kwargs)
        if node.op == "layer":
            return self.layer(node.target)(*args, **kwargs)
        if node.op == "tensor":
            return self.tensor(node.target)
        return args[0]  # output

    def taken(self, x: Tensor) -> Tensor:
        """The images to start with: a copy, if a network from a file would overwrite its caller's."""
        return x if self.keeps_input else x.clone()

    def dead_after(self, index: int) -> tuple[str, ...]:
        """Values that no step after this one needs."""
        return self._dead[index]

    def advance(self, values: dict[str, Any], start: int, stop: int) -> None:
        """Run steps `start` to `stop` (excluded) in place, dropping each value after its last use."""
        for index in range(start, stop):
            node = self._steps[index]
            if node.op != "input":
                values[node.name] = self.step(node, values)
            for name in self._dead[index]:
                del values[name]

    def walk(self, x: Tensor) -> Iterator[tuple[int, Node, dict[str, Any]]]:
        """Run step by step: before each step, yield its position, the step, and all values still needed.

        The values are one mapping, which holds the output once the walk has ended.
        """
        values: dict[str, Any] = {self._steps[0].name: self.taken(x)}
        for index, node in enumerate(self._steps):
            yield index, node, values
            self.advance(values, index, index + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.taken(x)
        values: dict[str, Any] = {self._steps[0].name: x}
        for step in self._plan[1:]:
            if step.layer:
                module: Any = self
                for part in step.layer:
                    module = module._modules[part]
                values[step.name] = module(values[step.source])
            elif step.call is not None:
                values[step.name] = step.call(*[values[item.node] if is_ref else item for is_ref, item in step.args])
            else:
                values[step.name] = self.step(step.node, values)
            for name in step.dead:
                del values[name]
        result: Tensor = values[self._steps[-1].name]
        return result

    def with_steps(self, nodes: Sequence[Node]) -> Network:
        """A network of other steps with these layers and tensors, in evaluation mode; layers that no step uses go."""
        own, used = in_evaluation(self), {node.target for node in nodes}
        layers = {name: own.layer(name) for name in self.layer_names if name in used}
        return Network(nodes, layers, {n: own.tensor(n) for n in self.tensor_names if n in used}, own.foreign).eval()

    def reachable(self) -> Network:
        """The same network, in evaluation mode, whose layers and tensors no attribute of a network hides.

        Exporters of torch look for them as attributes, and would find a method in the place of a layer named "layer".
        """
        modules = {name for name, call in self._foreign.items() if isinstance(call, nn.Module)}
        names = {*self._layer_names, *self._tensor_names, *modules}
        if not any(hasattr(Network, name.partition(".")[0]) for name in names):
            return self

        def moved(node: Node) -> Node:
            named = node.op in ("layer", "tensor") or node.target in modules
            return replace(node, target=HELD + node.target) if named else node

        layers = {HELD + name: self.layer(name) for name in self._layer_names}
        tensors = {HELD + name: self.tensor(name) for name in self._tensor_names}
        foreign = {HELD + name if name in modules else name: call for name, call in self._foreign.items()}
        return Network([moved(node) for node in self._steps], layers, tensors, foreign).eval()

    def to_spec(self) -> NetworkSpec:
        """The network as data.

        Raises:
            FileError: A step is outside the whitelist; the message names it.
        """
        if self._foreign:
            lines = {node.target: node.line for node in self._steps if node.line}
            names = ", ".join(f"{n} at {lines[n]}" if n in lines else n for n in sorted(self._foreign)[:5])
            raise FileError(
                "file-unsupported-operation",
                f"the network uses {len(self._foreign)} operation(s) that cannot be stored as data: "
                f"{names}; it runs here, but cannot be written to a file unless they are written with functions and "
                "layers that Brickyard knows",
            )
        layers: dict[str, LayerSpec] = {}
        for name in self._layer_names:
            module = self.layer(name)
            entry = find_type(module)
            if entry is None:
                raise FileError(
                    "file-unsupported-operation",
                    f"layer {name!r} is a {type(module).__name__}, which cannot be stored as data",
                )
            layers[name] = LayerSpec(type=entry.name, config=describe_layer(module))
        tensors = {
            name: TensorSpec(
                kind="parameter" if isinstance(self.tensor(name), nn.Parameter) else "buffer",
                shape=tuple(self.tensor(name).shape),
            )
            for name in self._tensor_names
        }
        return NetworkSpec(nodes=tuple(map(node_spec, self._steps)), layers=layers, tensors=tensors)

    @classmethod
    def from_spec(cls: type[NetworkT], spec: NetworkSpec) -> NetworkT:
        """Build a network on the meta device, without weights.

        Raises:
            FileError: A step, layer or argument is not allowed, or the steps do not fit together.
        """
        nodes = tuple(map(_read_node, spec.nodes))
        _check_order(nodes, spec)
        layers = {name: build_layer(layer.type, layer.config) for name, layer in spec.layers.items()}
        tensors: dict[str, Tensor] = {}
        for name, tensor in spec.tensors.items():
            value = torch.empty(tensor.shape, device="meta")
            tensors[name] = nn.Parameter(value) if tensor.kind == "parameter" else value
        try:
            return cls(nodes, layers, tensors).eval()
        except (SurgeryError, KeyError, TypeError) as error:
            raise FileError("file-network-invalid", f"the network's names are inconsistent: {error}") from None


def overwrites(node: Node, layer: nn.Module | None, call: Callable[..., Any] | None) -> bool:
    """Whether a step overwrites the value it is given first.

    Args:
        node: The step.
        layer: The layer that it runs, if it is one.
        call: What it calls outside the table, if it does.
    """
    if node.op == "layer" or isinstance(call, nn.Module):
        return bool(getattr(layer if call is None else call, "inplace", False))
    if node.op != "function" or not refs(node):
        return False
    entry = FUNCTIONS.get(node.target) if call is None else None
    if entry is not None:
        return entry.in_place or ("inplace" in ORDER[node.target] and bool(argument(node, "inplace", False)))
    name = node.target.partition(" ")[0].removeprefix("aten.").removeprefix("Tensor.").partition(".")[0]
    return bool(node.kwargs.get("inplace")) or name.endswith("_")


# Besides steps that move numbers: what may return its input, or a view of it.
_VIEWS = {
    *("detach", "contiguous", "float", "dropout", "dropout2d", "alpha_dropout", "to_type", "type_as", "real", "imag"),
    *("pixel_shuffle", "pixel_unshuffle", "view_as_complex", "view_as_real", "nan_to_num", "round", "trunc", "floor"),
}
_VIEWING = (
    *(nn.Identity, nn.Flatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)


def _keeps_input(nodes: Sequence[Node], layers: Mapping[str, nn.Module]) -> bool:
    """Whether no step can overwrite the images: none that works in place is given them or a view of them."""
    views = {nodes[0].name}
    for node in nodes[1:]:
        given = views & set(refs(node))
        if not given:
            continue
        layer = layers[node.target] if node.op == "layer" else None
        unknown = node.op == "function" and node.target not in FUNCTIONS  # which may do anything
        if unknown or overwrites(node, layer, None):
            return False
        if may_alias(node, layer):
            views.add(node.name)
    return True


def may_alias(node: Node, layer: nn.Module | None) -> bool:
    """Whether a step may return what it is given, or a view of it.

    Args:
        node: The step.
        layer: The layer that it runs, if it is one.
    """
    if node.op == "function":
        return node.target in _VIEWS or FUNCTIONS[node.target].role == "move"
    return isinstance(layer, _VIEWING) or overwrites(node, layer, None)


def _last_uses(nodes: Sequence[Node]) -> tuple[tuple[str, ...], ...]:
    """For each step, the values that no later step needs."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last[node.name] = index
        for name in refs(node):
            last[name] = index
    last[nodes[-1].name] = len(nodes)  # the output stays
    dead: list[list[str]] = [[] for _ in nodes]
    for name, index in last.items():
        if index < len(nodes):
            dead[index].append(name)
    return tuple(tuple(names) for names in dead)


def _check_order(nodes: Sequence[Node], spec: NetworkSpec) -> None:
    if len(nodes) > STEPS:
        raise FileError("file-too-large", f"the network has {len(nodes):,} steps; the limit is {STEPS:,}")
    deep = next((name for name in (*spec.layers, *spec.tensors) if name.count(".") > _MAX_DOTS), None)
    if deep is not None:
        raise FileError("file-too-large", f"layer {deep[:80]!r} is nested deeper than {_MAX_DOTS} levels")
    if len(nodes) < 2 or nodes[0].op != "input" or nodes[-1].op != "output":
        raise FileError("file-network-invalid", "a network must start with its input and end with its output")
    seen: set[str] = set()
    for index, node in enumerate(nodes):
        if node.op in ("input", "output") and index not in (0, len(nodes) - 1):
            raise FileError(
                "file-network-invalid", f"step {node.name!r} is a second {node.op}; a network must have exactly one"
            )
        if node.name in seen:
            raise FileError("file-network-invalid", f"two steps are named {node.name!r}")
        missing = [name for name in refs(node) if name not in seen]
        if missing:
            raise FileError(
                "file-network-invalid", f"step {node.name!r} uses {missing[0]!r}, which is not an earlier step"
            )
        if node.op == "function" and node.target not in FUNCTIONS:
            raise FileError(
                "file-unknown-operation", f"step {node.name!r} calls {node.target!r}, which is not an allowed function"
            )
        if node.op == "layer" and node.target not in spec.layers:
            raise FileError(
                "file-network-invalid", f"step {node.name!r} uses layer {node.target!r}, which is not in the file"
            )
        if node.op == "tensor" and node.target not in spec.tensors:
            raise FileError(
                "file-network-invalid", f"step {node.name!r} uses tensor {node.target!r}, which is not in the file"
            )
        if node.op == "output" and len(node.args) != 1:
            raise FileError("file-network-invalid", "the output step must take exactly one value")
        seen.add(node.name)


def node_spec(node: Node) -> NodeSpec:
    """A step as data.

    Raises:
        FileError: An argument has no form as data.
    """
    return NodeSpec(
        name=node.name,
        op=node.op,
        target=node.target,
        args=tuple(_to_json(value, node.name) for value in node.args),
        kwargs={key: _to_json(value, node.name) for key, value in node.kwargs.items()},
    )


def _read_node(spec: NodeSpec) -> Node:
    args = tuple(_from_json(value, spec.name, 0) for value in spec.args)
    kwargs = {key: _from_json(value, spec.name, 0) for key, value in spec.kwargs.items()}
    return Node(spec.name, spec.op, spec.target, args, kwargs)


def _to_json(value: Any, where: str) -> Any:
    if isinstance(value, Ref):
        return {"node": value.node}
    if isinstance(value, slice):
        return {"slice": [_to_json(item, where) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item, where) for item in value]}
    if isinstance(value, list):
        return [_to_json(item, where) for item in value]
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    raise FileError(
        "file-unsupported-operation", f"step {where!r} has an argument {value!r} that cannot be stored as data"
    )


def _from_json(value: Any, where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise FileError("file-too-large", f"step {where!r} has arguments nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, list):
        return [_from_json(item, where, depth + 1) for item in value]
    if isinstance(value, str) and (
        len(value) > _MAX_TEXT or "%" in value
    ):  # Python's operators format and repeat strings
        raise FileError(
            "file-unknown-operation",
            f"step {told(where, 80)!r} has the string {told(value, 40)!r}, which is not a valid argument of a function",
        )
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        key, inner = next(iter(value.items()))
        if key == "node" and isinstance(inner, str):
            return Ref(inner)
        if key == "tuple" and isinstance(inner, list):
            return tuple(_from_json(item, where, depth + 1) for item in inner)
        if key == "slice" and isinstance(inner, list) and len(inner) == 3:
            return slice(*(_from_json(item, where, depth + 1) for item in inner))
        if key == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if key == "ellipsis" and inner is True:
            return Ellipsis
        if key == "dtype" and isinstance(inner, str) and inner in _DTYPES:
            return _DTYPES[inner]
    raise FileError("file-unknown-operation", f"step {where!r} has an argument {str(value)[:80]!r} that is not allowed")


def iter_layers(network: Network) -> Iterator[tuple[int, Node, nn.Module]]:
    """Yield the steps that are layers, in order: position, step, layer."""
    for index, node in enumerate(network.nodes):
        if node.op == "layer":
            yield index, node, network.layer(node.target)


def kind(module: nn.Module) -> Tensor:
    """A tensor with the type and device of a module's parameters, or torch's defaults if it has none."""
    for value in module.parameters():
        return value
    return torch.zeros(0)


def step_shapes(network: Network, example: Tensor) -> dict[str, Any]:
    """Every step's value on an example, with meta tensors for tensors."""
    shapes: dict[str, Any] = {}
    values: dict[str, Any] = {network.nodes[0].name: network.taken(example)}
    shapes[network.nodes[0].name] = _bones(example)
    with torch.no_grad(), Remembering() if example.is_meta else contextlib.nullcontext():
        for index, node in enumerate(network.nodes):
            if node.op == "input":
                continue
            values[node.name] = network.step(node, values)
            shapes[node.name] = _bones(values[node.name])
            for name in network.dead_after(index):
                del values[name]
    return shapes


def _bones(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return type(value)(_bones(item) for item in value)
    return value
