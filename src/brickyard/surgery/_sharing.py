"""What networks side by side have in common, found once as data, so that nothing runs twice.

Two steps are equal if they do the same with equal values: one function or kind of layer, equal arguments, and layers
and bare tensors that agree in every bit. Equal layers become one layer, and equal steps run once.

A value that a step overwrites is another value from there on. The step works on a copy if anything else still needs
what was there. Where one network itself has several names for overwritten memory, that memory is not shared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from brickyard.base._errors import FileError
from brickyard.network._arguments import ORDER, argument
from brickyard.network._functions import FUNCTIONS
from brickyard.network._identity import digest_of
from brickyard.network._layer_types import describe_layer, find_type
from brickyard.network._network import (
    Network,
    Node,
    Ref,
    map_refs,
    may_alias,
    node_spec,
    overwrites,
    refs,
    with_refs,
)
from brickyard.network._torch_private import hooked, stored

MOST_NAMES = 256  # of one memory; with more, it is not shared
_INPUT = "input"
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


@dataclass(frozen=True)
class Run:
    """Networks of one input that have steps in common.

    Attributes:
        parts: The networks, by index.
        steps: All their steps, in order, and equal ones once. Names and targets begin with the index of the first
            network that has them.
        outputs: What each network returns, as references to steps.
        reads: For each network and each of its steps, the value that the step is given first.
        fixed: Steps that work in place without a copy, as in their network.
    """

    parts: tuple[int, ...]
    steps: tuple[Node, ...]
    outputs: tuple[Any, ...]
    reads: tuple[tuple[Ref, ...], ...]
    fixed: frozenset[str]

    def looking(
        self,
        networks: Sequence[Network],
        layers: Sequence[Sequence[tuple[int, Sequence[int]]]],
        reads_at: Sequence[int] = (),
    ) -> Network:
        """One network as from `network`, which returns a tuple for each part: its output, then what layers are given.

        Of what a layer is given it returns the mean and standard deviation over positions, (batch, numbers).

        Args:
            networks: The networks.
            layers: For each part of the run, steps of its network, and the dimensions that are positions there.
            reads_at: For each, a step; what that is given first comes last in its tuple, as it is.
        """
        steps: list[Node] = list(self.steps)
        ends: list[Any] = []
        made: dict[Any, Ref] = {}
        for turn, (part, places) in enumerate(zip(self.parts, layers, strict=True)):
            seen = []
            for at, dims in (*places, *((at, ()) for at in reads_at[turn : turn + 1])):
                read, own = self.reads[turn][at], f"{part}.{networks[part].nodes[at].name}"
                late = read.node in self.fixed  # it may be overwritten later, and before
                key = (own if late else read.node, tuple(dims))
                if key not in made:
                    found = _numbers(f"seen {len(made)}", read, tuple(dims), late)
                    names = [step.name for step in steps]
                    place = names.index(own) if late else names.index(read.node) + 1 if read.node != _INPUT else 0
                    steps[place:place] = found
                    made[key] = Ref(found[-1].name) if found else read
                seen.append(made[key])
            ends.append((self.outputs[turn], *seen))
        return self._network(networks, steps, ends)

    def network(self, networks: Sequence[Network]) -> Network:
        """One network of all the steps, whose layers are those of `networks`; it returns a tuple of the outputs."""
        return self._network(networks, self.steps, self.outputs)

    def _network(self, networks: Sequence[Network], steps: Sequence[Node], ends: Sequence[Any]) -> Network:
        layers: dict[str, nn.Module] = {str(index): networks[index] for index in self.parts}
        for node in self.steps:
            if node.op == "layer":
                part, _, name = node.target.partition(".")
                layers[node.target] = networks[int(part)].layer(name)
        nodes = [Node(_INPUT, "input"), *steps, Node("output", "output", args=(tuple(ends),))]
        made = Network(_with_copies(nodes, layers, self.fixed), layers)
        made.keeps_input = True
        return made


@dataclass(frozen=True)
class Sharing:
    """What networks side by side have in common.

    Attributes:
        ties: Layers and bare tensors that equal an earlier one, and that one; each as "index.name".
        runs: The networks that share steps.
    """

    ties: Mapping[str, str]
    runs: tuple[Run, ...]


def _numbers(name: str, read: Ref, dims: tuple[int, ...], copied: bool) -> list[Node]:
    """Steps that give the mean and standard deviation of a value over dimensions; the value itself without any."""
    if not dims:
        return [Node(name, "function", "clone", (read,))] if copied else []
    mean, std = Ref(f"{name} mean"), Ref(f"{name} std")
    return [
        Node(mean.node, "function", "mean", (read, dims)),
        Node(std.node, "function", "std", (read, dims), {"correction": 0}),
        Node(name, "function", "cat", ((mean, std), 1)),
    ]


def find_runs(
    networks: Sequence[Network], inputs: Sequence[Hashable], ties: Mapping[str, str] | None = None
) -> tuple[Run, ...]:
    """All networks as runs: those with steps in common together, and each other by itself.

    Args:
        networks: The networks; none overwrites its input or calls unknown operations.
        inputs: For each, what tells its input from others.
        ties: Layers and tensors that are known to be equal, as in `Sharing`; no others are compared.
    """
    equal, found = _Equal(networks, ties or {}), []
    for parts in _alike(networks, inputs):
        together = _Numbering(networks, parts, equal.first)
        found += [together] if together.saves else [_Numbering(networks, [index], equal.first) for index in parts]
    return tuple(one.run() for one in found)


def _alike(networks: Sequence[Network], inputs: Sequence[Hashable]) -> list[list[int]]:
    """Networks of the same input; without those that overwrite it or call unknown operations."""
    groups: dict[Hashable, list[int]] = {}
    for index, (network, given) in enumerate(zip(networks, inputs, strict=True)):
        if network.keeps_input and not network.foreign:
            groups.setdefault(given, []).append(index)
    return list(groups.values())


def find_sharing(
    networks: Sequence[Network], inputs: Sequence[Hashable], ties: Mapping[str, str] | None = None
) -> Sharing:
    """Find what networks have in common. Those that overwrite their input, or call unknown operations, share nothing.

    Args:
        networks: The networks; they are left unchanged.
        inputs: For each, what tells its input from others.
        ties: Layers and tensors that are known to be equal, as in `Sharing`.
    """
    groups, equal = _alike(networks, inputs), _Equal(networks, ties or {})
    for parts in groups:
        _Numbering(networks, parts, equal.compared)
    found = [_Numbering(networks, parts, equal.first) for parts in groups]
    return Sharing(equal.ties(), tuple(one.run() for one in found if one.saves))


def tied(networks: Sequence[Network], ties: Mapping[str, str]) -> list[Network]:
    """The networks with layers and tensors in common, where these are equal; those without any are the same objects."""
    found: list[Network] = []
    for index, network in enumerate(networks):
        layers = {name: network.layer(name) for name in network.layer_names}
        tensors = {name: network.tensor(name) for name in network.tensor_names}
        own = {name: first for name in (*layers, *tensors) if (first := ties.get(f"{index}.{name}")) is not None}
        for name, first in own.items():
            at, _, target = first.partition(".")
            if name in layers:
                layers[name] = networks[int(at)].layer(target)
            else:
                tensors[name] = networks[int(at)].tensor(target)
        made = Network(network.nodes, layers, tensors, network.foreign).eval() if own else network
        made.keeps_input = network.keeps_input
        found.append(made)
    return found


class _Equal:
    """Which layers and bare tensors, each as "index.name", are equal.

    They are compared by digests, and only where everything else about their steps agrees.
    """

    def __init__(self, networks: Sequence[Network], ties: Mapping[str, str]) -> None:
        self._networks = networks
        names = [f"{i}.{name}" for i, one in enumerate(networks) for name in (*one.layer_names, *one.tensor_names)]
        self._order = {name: place for place, name in enumerate(names)}
        self._earlier = dict(ties)
        self._single: dict[str, str] = {}
        self._known: dict[tuple[str, str], str] = {}
        self._digests: dict[int, str] = {}

    def first(self, structure: str, own: str) -> str:
        """The first that equals a layer or tensor, as far as is known."""
        while own in self._earlier:
            own = self._earlier[own]
        return own

    def compared(self, structure: str, own: str) -> str:
        """The first that equals a layer or tensor, of those with steps of the same structure."""
        if structure not in self._single:
            self._single[structure] = own
            return self.first(structure, own)
        single = self._single[structure]
        self._known.setdefault((structure, self._digest(single)), single)
        other = self._known.setdefault((structure, self._digest(own)), own)
        a, b = sorted((self.first("", own), self.first("", other)), key=self._order.__getitem__)
        if a != b:
            self._earlier[b] = a
        return a

    def ties(self) -> dict[str, str]:
        """All that equal an earlier one, and that one."""
        return {own: self.first("", own) for own in self._earlier}

    def _digest(self, own: str) -> str:
        index, _, name = own.partition(".")
        network = self._networks[int(index)]
        found: nn.Module | Tensor = network.layer(name) if name in network.layer_names else network.tensor(name)
        if id(found) not in self._digests:
            values = {"": found} if isinstance(found, Tensor) else found.state_dict()
            laid = sorted((key, value.stride(), str(value.device)) for key, value in values.items())
            blank = any(value.is_meta for value in values.values())
            self._digests[id(found)] = own if blank else f"{digest_of(values)} {laid}"
        return self._digests[id(found)]


class _Numbering:
    """Gives the values of networks with the same input one name where they are equal."""

    def __init__(self, networks: Sequence[Network], parts: Sequence[int], equal: Callable[[str, str], str]) -> None:
        self.saves = False
        self._equal = equal
        self._parts = tuple(parts)
        self._known: dict[str, str] = {}
        self._steps: list[Node] = []
        self._outputs: list[Any] = []
        self._reads: list[tuple[Ref, ...]] = []
        self._fixed: set[str] = set()
        for index in parts:
            self._add(index, networks[index])

    def run(self) -> Run:
        return Run(self._parts, tuple(self._steps), tuple(self._outputs), tuple(self._reads), frozenset(self._fixed))

    def _add(self, index: int, network: Network) -> None:
        entangled, nested, changes = _entangled(network), _nested(network), 0
        place: dict[str, Ref] = {}  # where a value is now
        same: dict[str, list[str]] = {}  # names of one value, if a step returned what it was given
        drawn: Counter[str] = Counter()
        reads: list[Ref] = []

        def number(ref: Ref) -> Ref:
            return Ref(f"{place[ref.node].node} {changes}") if ref.node in entangled else place[ref.node]

        for node in network.nodes:
            given, own = refs(node), Ref(f"{index}.{node.name}")
            reads.append(place[given[0]] if given else Ref(_INPUT))
            if node.op == "output":
                self._outputs.append(map_refs(node.args[0], lambda ref: place[ref.node]))
                continue
            same[node.name] = [node.name]
            if node.op == "input":
                place[node.name] = Ref(_INPUT)
                continue
            apart = node.name in entangled or (node.op != "function" and node.target in nested)
            key = None if apart else self._key(index, network, with_refs(node, number), drawn)
            found = own if key is None else Ref(self._known.setdefault(key, own.node))
            if found == own:
                target = node.target if node.op == "function" else f"{index}.{node.target}"
                made = with_refs(node, lambda ref: place[ref.node])
                self._steps.append(replace(made, name=own.node, target=target))
            else:
                self.saves |= node.op == "layer" or (node.op == "function" and FUNCTIONS[node.target].role != "number")
            place[node.name] = found
            if network.overwrites(node) and node.name in entangled:
                changes += 1
            elif network.overwrites(node):
                same[given[0]].append(node.name)
                same[node.name] = same[given[0]]
                place.update(dict.fromkeys(same[node.name], found))
        self._fixed |= {f"{index}.{name}" for name in entangled}
        self._reads.append(tuple(reads))

    def _key(self, index: int, network: Network, node: Node, drawn: Counter[str]) -> str | None:
        """What is the same for equal steps only, or None for a step that is never equal to another."""
        if node.op == "function" and _draws(node):
            return None
        try:
            spec = node_spec(node)
        except FileError:
            return None
        own = f"{index}.{node.target}"
        told: list[Any] = [node.op, spec.args, spec.kwargs]
        if node.op == "function":
            return json.dumps([*told, node.target])
        if node.op == "tensor":
            return json.dumps([*told, self._equal(json.dumps([*told, tuple(network.tensor(node.target).shape)]), own)])
        layer = network.layer(node.target)
        entry = find_type(layer)
        if entry is None or hooked(layer):
            return None
        told += [entry.name, describe_layer(layer)]
        if isinstance(layer, _RANDOM):  # in training, each draws its own numbers
            structure = json.dumps(told)
            told.append(drawn[structure])
            drawn[structure] += 1
        weights = any(value is not None for value in stored(layer).values())
        return json.dumps([*told, self._equal(json.dumps(told), own) if weights else ""])


def _draws(node: Node) -> bool:
    """Whether a function may draw random numbers, or change its settings, whatever mode its network is in."""
    order = ORDER[node.target]
    settings = {key: argument(node, key) for key in ("training", "train", "dropout_p", "max_norm") if key in order}
    if node.target in ("dropout", "dropout2d") and settings["training"] is None:
        return True
    return any(value not in (None, False, 0) for value in settings.values())


def _nested(network: Network) -> set[str]:
    """Layers and tensors that contain others, or are contained."""
    names, found = {*network.layer_names, *network.tensor_names}, set()
    for name in names:
        outer = name
        while outer := outer.rpartition(".")[0]:
            if outer in names:
                found |= {name, outer}
    return found


# -- memory ------------------------------------------------------------------------------------------------


class _Memory:
    """Which values may lie in the same memory."""

    def __init__(self) -> None:
        self._groups: dict[str, set[str]] = {}

    def __getitem__(self, name: str) -> set[str]:
        return self._groups[name]

    def add(self, name: str, given: Iterable[str] = ()) -> None:
        """Add a value in the memory of others, or in its own."""
        largest: set[str] = max((self._groups[one] for one in given), key=len, default=set())
        for one in given:
            if self._groups[one] is not largest:
                moved = self._groups[one]
                largest |= moved
                self._groups.update(dict.fromkeys(moved, largest))
        largest.add(name)
        self._groups[name] = largest


def _last_uses(nodes: Sequence[Node]) -> dict[str, int]:
    return {name: place for place, node in enumerate(nodes) for name in refs(node)}


def _entangled(network: Network) -> set[str]:
    """Values in memory that a step overwrites while other names for it are in use, or that may be no tensors."""
    last, root = _last_uses(network.nodes), {}
    memory, found = _Memory(), set()
    steps = {node.name: node for node in network.nodes}
    tensors: set[str] = set()  # values that are tensors for sure
    for place, node in enumerate(network.nodes):
        given, root[node.name] = refs(node), node.name
        number = node.op == "function" and FUNCTIONS[node.target].role == "number"
        if node.op != "function" or (not number and tensors & set(given)):
            tensors.add(node.name)
        layer, writes = network.layer(node.target) if node.op == "layer" else None, network.overwrites(node)
        if writes:
            root[node.name], names = root[given[0]], memory[given[0]]
            others = (
                steps[name].op == "tensor" or (root[name] != root[given[0]] and last.get(name, -1) >= place)
                for name in names
            )
            if given[0] not in tensors or len(names) > MOST_NAMES or any(others):
                found.add(node.name)
        memory.add(node.name, given if writes or may_alias(node, layer) else ())
    return {name for one in found for name in memory[one]}


def _with_copies(nodes: Sequence[Node], layers: Mapping[str, nn.Module], fixed: frozenset[str]) -> list[Node]:
    """Let steps that work in place do so on copies, where what was there is still needed."""
    last, memory = _last_uses(nodes), _Memory()
    found: list[Node] = []
    for place, node in enumerate(nodes):
        given = refs(node)
        layer = layers[node.target] if node.op == "layer" else None
        writes = overwrites(node, layer, None)
        if writes and node.name not in fixed:
            names = memory[given[0]]
            again = sum(name in names for name in given) > 1
            if again or len(names) > MOST_NAMES or any(last.get(name, -1) > place for name in names):
                copied = Node(f"copy {place}", "function", "clone", (Ref(given[0]),))
                found += [copied, _instead(node, copied.name)]
                memory.add(node.name)
                continue
        found.append(node)
        memory.add(node.name, given if writes or may_alias(node, layer) else ())
    return found


def _instead(node: Node, copied: str) -> Node:
    """A step with a copy in place of what it is given first."""
    left = [copied]
    return with_refs(node, lambda ref: Ref(left.pop()) if left else ref)
