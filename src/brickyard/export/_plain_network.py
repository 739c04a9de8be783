"""A network as the text of an ordinary `torch.nn.Module`: its layers under their own names, a statement a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._errors import SurgeryError
from brickyard.base._messages import first_line
from brickyard.base._specs import LayerSpec, NetworkSpec, NodeSpec
from brickyard.export._spelling import (
    Identifiers,
    arguments,
    assigned,
    function,
    is_word,
    joined,
    layer,
    literal,
    wrapped,
)
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import find_mixing
from brickyard.network._network import Network, Node, Ref, kind, refs, step_shapes
from brickyard.network._stored import match_types

RESERVED = frozenset({"self", "torch", "nn", "F", "float", "slice", "super"})

GROUP = '''
class Group(nn.Module):
    """Layers under the names that they have in the source, whatever these are."""

    def __init__(self, /, **layers):
        super().__init__()
        self._modules.update(layers)

    def __getitem__(self, name):
        return self._modules[name]
'''.strip()

_USUAL = nn.Module()


def _attribute(name: str) -> bool:
    """Whether a module can have a layer or tensor as an attribute of this name."""
    return is_word(name) and not hasattr(_USUAL, name)


# -- layers ------------------------------------------------------------------------------------------------


@dataclass
class _Place:
    """What is under a dotted name: a layer, or a group of others; and the bare tensors there."""

    root: bool = False
    spec: LayerSpec | None = None
    inner: dict[str, _Place] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def listed(self) -> bool:
        """Whether this is a group whose layers are numbered without a gap."""
        bare = not self.root and self.spec is None and not self.tensors
        return bare and bool(self.inner) and self.inner.keys() == {str(index) for index in range(len(self.inner))}

    @property
    def words(self) -> bool:
        """Whether its layers can all be attributes."""
        return all(map(_attribute, self.inner))

    def into(self, name: str) -> str:
        """How a layer or group here is reached."""
        if self.listed:
            return f"[{int(name)}]"
        if self.spec is not None:
            return f"._modules[{literal(name)}]"
        return f".{name}" if _attribute(name) else f"[{literal(name)}]"

    def tensor(self, name: str) -> str:
        """How a bare tensor here is reached."""
        if self.spec is None and _attribute(name):
            return f".{name}"
        return f"._{'parameters' if isinstance(self.tensors[name], nn.Parameter) else 'buffers'}[{literal(name)}]"


def _tree(network: Network) -> _Place:
    root, layers = _Place(root=True), network.to_spec().layers
    for name, tensor in [*dict.fromkeys(layers).items(), *((one, network.tensor(one)) for one in network.tensor_names)]:
        place, parts = root, name.split(".")
        for part in parts if tensor is None else parts[:-1]:
            place = place.inner.setdefault(part, _Place())
        if tensor is None:
            place.spec = layers[name]
        else:
            place.tensors[parts[-1]] = tensor
    return root


def _made(place: _Place, indent: int, before: str, after: str) -> list[str]:
    """The expression that makes a layer, or a group with all that is in it, as lines."""
    if place.spec is not None:
        return wrapped(before + layer(place.spec) + after, indent)
    opening, closing, names = "Group(", ")", [f"{name}=" for name in place.inner]
    if place.listed:
        opening, closing, names = "nn.ModuleList([", "])", ["" for _ in place.inner]
    elif not all(map(is_word, place.inner)):
        opening, closing, names = "Group(**{", "})", [f"{literal(name)}: " for name in place.inner]
    if not names:
        return [f"{' ' * indent}{before}Group(){after}"]
    inner = [place.inner[str(index)] for index in range(len(names))] if place.listed else list(place.inner.values())
    lines = [f"{' ' * indent}{before}{opening}"]
    for name, one in zip(names, inner, strict=True):
        lines += _made(one, indent + 4, name, ",")
    return [*lines, f"{' ' * indent}{closing}{after}"]


def _added(place: _Place, path: str) -> list[str]:
    """Statements for what cannot be made along with a group: bare tensors, and layers within layers."""
    lines: list[str] = []
    for name, value in place.tensors.items():
        type_ = "" if value.is_floating_point() else f", dtype={value.dtype}"
        made = f"torch.zeros({literal(tuple(value.shape))}{type_})"
        made = f"nn.Parameter({made})" if isinstance(value, nn.Parameter) else made
        where = place.tensor(name)
        plain = where.startswith(("._parameters[", "._buffers[")) or isinstance(value, nn.Parameter)
        lines += wrapped(f"{path}{where} = {made}" if plain else f"{path}.register_buffer({literal(name)}, {made})", 8)
    for name, inner in place.inner.items():
        if place.spec is not None:
            lines += _made(inner, 8, f"{path}{place.into(name)} = ", "")
        lines += _added(inner, path + place.into(name))
    return lines


def _without_idle(spec: NetworkSpec) -> NetworkSpec:
    """A network without the steps that only take values apart that nothing uses."""
    kept: list[NodeSpec] = []
    used: set[str] = set()
    for node, read in reversed(list(zip(spec.nodes, Network.from_spec(spec).nodes, strict=True))):
        idle = node.op == "tensor" or (node.op == "function" and FUNCTIONS[node.target].role in ("number", "move"))
        if node.name in used or not idle:
            kept.append(node)
            used.update(refs(read))
    return spec.model_copy(update={"nodes": tuple(reversed(kept))})


class PlainNetwork:
    """Writes a network's layers and steps.

    Args:
        network: The network.
        shape: The shape of its images, (channels, height, width).

    Raises:
        FileError: It has steps or layers without a form as data.
        SurgeryError: It does not run on such images.
    """

    def __init__(self, network: Network, shape: Sequence[int]) -> None:
        blank = Network.from_spec(_without_idle(network.to_spec()))
        self._names = [node.name for node in network.nodes]
        try:
            match_types(blank, network.state_dict(), "")
            images = torch.empty(2, *shape, device="meta", dtype=kind(network).dtype)
            self._values = step_shapes(blank, images)
        except Exception as error:  # whatever torch raises
            why = f"its network does not run on images of {tuple(shape)}: {first_line(error)}"
            raise SurgeryError("surgery-export-failed", f"{why}; nothing was written") from error
        self._network, self._tree, self._copies = blank, _tree(blank), not network.keeps_input

    @property
    def base(self) -> str:
        """The class that the module is derived from."""
        return "nn.Module" if self._tree.words else "Group"

    @property
    def grouped(self) -> bool:
        """Whether the text uses `Group`."""
        places = [self._tree]
        for place in places:
            places += place.inner.values()
        return not self._tree.words or any(p.spec is None and not p.listed for p in places if not p.root)

    def layers(self) -> list[str]:
        """The statements of `__init__` that make the layers and tensors."""
        lines: list[str] = []
        for name, place in self._tree.inner.items():
            where = f".{name}" if _attribute(name) else f"._modules[{literal(name)}]"
            lines += _made(place, 8, f"self{where} = ", "")
        return lines + _added(self._tree, "self")

    def steps(self, reserved: Iterable[str] = (), reads_at: int | None = None) -> tuple[str, list[str], str, list[str]]:
        """The statements of `forward`.

        Args:
            reserved: Names that no variable may have.
            reads_at: The step whose input, averaged over positions, is the network's features.

        Returns:
            The variable of the images, the statements, the expression that is the output, and the variable of the
            features, if they were asked for.
        """
        reader = None if reads_at is None else self._names[reads_at]
        return _Steps(self, RESERVED | set(reserved), reader).written()

    # -- for the steps ---------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self._network.nodes

    @property
    def copies(self) -> bool:
        """Whether the images must be copied first, since a step would overwrite them."""
        return self._copies

    def dead_after(self, index: int) -> tuple[str, ...]:
        return self._network.dead_after(index)

    def averaged(self, name: str) -> str:
        """What averages over positions what a step is given first, as the end of an expression.

        Raises:
            SurgeryError: It cannot be written.
        """
        node = next(node for node in self.nodes if node.name == name)
        value = self._values[name if node.op == "input" else refs(node)[0]]
        mixing = find_mixing(self._network.layer(node.target)) if node.op == "layer" else None
        if value.shape[0] != 2:
            why = "the network makes several copies of each image, so that its features cannot be written as Python"
            raise SurgeryError("surgery-export-failed", f"{why}; export it as .onnx")
        if value.ndim <= 2:
            return ""
        return ".flatten(1, -2).mean(1)" if mixing is not None and mixing.linear else ".flatten(2).mean(2)"

    def value(self, name: str) -> Any:
        """A step's value on two images, without numbers."""
        return self._values[name]

    def reached(self, node: Node) -> str:
        """How the forward method reaches a step's layer or tensor."""
        *groups, leaf = node.target.split(".")
        text, place = "self", self._tree
        for part in groups:
            text, place = text + place.into(part), place.inner[part]
        return text + (place.tensor(leaf) if node.op == "tensor" else place.into(leaf))


# -- steps -------------------------------------------------------------------------------------------------


class _Steps:
    """Writes the forward method.

    A value takes over the variable of a value that its step is the last to use, so that nothing is kept for longer
    than it is needed; what ends without a successor is deleted.
    """

    def __init__(self, network: PlainNetwork, reserved: Iterable[str], reads_at: str | None) -> None:
        self._network, self._reads_at = network, reads_at
        self._identifiers = Identifiers(reserved)
        self._names: dict[str, str] = {}
        self._age: dict[str, int] = {}  # of each variable
        self._stored = {node.name for node in network.nodes if node.op == "tensor"}

    def written(self) -> tuple[str, list[str], str, list[str]]:
        first, *middle, last = self._network.nodes
        features = [self._identifiers.new("features")] if self._reads_at is not None else []
        images = self._named(first.name, None, "x")
        lines = [f"        {images} = {images}.clone()  # a step works in place"] if self._network.copies else []
        lines += self._features(first.name, features) if self._reads_at == first.name else []
        for index, node in enumerate(middle, start=1):
            lines += self._features(refs(node)[0], features) if node.name == self._reads_at else []
            lines += self._step(node, self._network.dead_after(index))
        return images, lines, literal(last.args[0], self._names), features

    def _features(self, entering: str, names: Sequence[str]) -> list[str]:
        """The statement that averages what enters the reading layer over positions."""
        return wrapped(f"{names[0]} = {self._names[entering]}{self._network.averaged(self._reads_at or entering)}", 8)

    def _named(self, node: str, heir: str | None, wanted: str = "") -> str:
        """Give a step's value a variable: that of a value that has ended, or a new one."""
        name = self._identifiers.new(wanted or node) if heir is None else self._names[heir]
        self._names[node] = name
        self._age.setdefault(name, len(self._age))
        return name

    def _step(self, node: Node, dead: Sequence[str]) -> list[str]:
        """The statements of one step."""
        sign = assigned(node.target) if node.op == "function" else ""
        if node.name in dead and not sign:
            name, texts = "", [self._expression(node)]
        else:
            heir = self._heir(node, dead, sign)
            expression = literal(node.args[0], self._names) if sign else self._expression(node)
            others = [literal(value, self._names) for value in (*node.args[1:], *node.kwargs.values())] if sign else []
            name = self._named(node.name, heir)
            texts = [f"{name} = {expression}"] if name != expression else []
            texts += [f"{name} {sign} {other}" for other in others]
        ended = [one for one in dead if self._holds(one) and self._names.get(one, name) != name]
        if sign and node.name in dead:
            ended.append(node.name)
        gone = [self._names[one] for one in ended]
        if gone:
            texts.append(f"del {', '.join(gone)}" if len(gone) < 4 else f"del ({joined(gone)})")
        return [line for text in texts for line in wrapped(text, 8)]

    def _heir(self, node: Node, dead: Sequence[str], sign: str) -> str | None:
        """The value whose variable the step takes over: of those that end here, the one in the oldest."""
        if not isinstance(self._network.value(node.name), Tensor):
            return None
        ended = [one for one in dead if one != node.name and isinstance(self._network.value(one), Tensor)]
        if sign:
            first = node.args[0]
            return first.node if isinstance(first, Ref) and first.node in ended else None
        return min(ended, key=lambda one: self._age[self._names[one]], default=None)

    def _holds(self, name: str) -> bool:
        """Whether a value holds memory of its own."""
        value = self._network.value(name)
        values = value if isinstance(value, tuple | list) else (value,)
        return name in self._names and name not in self._stored and any(isinstance(one, Tensor) for one in values)

    def _expression(self, node: Node) -> str:
        if node.op == "function":
            return function(node.target, node.args, node.kwargs, self._names)
        reached = self._network.reached(node)
        return reached if node.op == "tensor" else f"{reached}({arguments(node.args, node.kwargs, self._names)})"
