"""Cutting a network and laying several side by side: both build one network from parts.

A step of several parts runs once, on channels that lie side by side, if that gives the same results as each part
alone. Otherwise (a norm over all channels, an unknown operation), each part's channels are extracted, the step runs
once per part with that part's own weights, and the results are laid side by side again.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brickyard.axes._atoms import indexed_dims
from brickyard.axes._graph import Graph
from brickyard.axes._places import failing_step
from brickyard.base._errors import SurgeryError
from brickyard.base._messages import first_line
from brickyard.network._arguments import argument, listed
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import build_layer, describe_layer, find_type, layer_role, mixing_of
from brickyard.network._network import Network, Node, Ref, kind, map_refs, refs, step_shapes, with_refs
from brickyard.surgery._plan import KeepSet, Part, Plan, check_keep, is_output
from brickyard.surgery._steps import concrete, rewritten
from brickyard.surgery._verify import drawn_images, same
from brickyard.surgery._weights import made_layer, made_tensor, number_of


def cut(graph: Graph, keep: KeepSet) -> Network:
    """Build a new network with only the kept channels; the graph's own network is left unchanged.

    Raises:
        SurgeryError: The keep-set does not fit the graph.
    """
    check_keep(graph, keep)
    return join([Part(graph, keep)])


def join(parts: Sequence[Part], *, shared_input: bool = True) -> Network:
    """Build one network that computes the parts side by side on every channel axis.

    Class outputs follow each other, part by part. With `shared_input`, all parts read the same image; otherwise the
    input holds the parts' images, one after another along its channels.

    Raises:
        SurgeryError: The parts' graphs differ, their class outputs cannot be laid side by side, or the result does not
            return what the parts return.
    """
    if len(parts) > 1:
        check_same(parts)
        _check_views(parts[0].graph.network)
    builder = _Builder(Plan(parts, shared_input))
    for node in builder.source.nodes:
        builder.add(node)
    network = builder.network()
    _check_shapes(builder, network)
    if len(parts) > 1:
        _check_outputs(parts, network, shared_input)
    return network


def _check_outputs(parts: Sequence[Part], network: Network, shared_input: bool) -> None:
    """Compare networks laid side by side with each alone, on two images each and on single ones.

    Raises:
        SurgeryError: They do not run, or return something else.
    """
    own = [join([part]) if part.network is None else part.network for part in parts]
    if any(kind(one).is_meta for one in own):
        return
    images = [drawn_images(part.graph, kind(one)) for part, one in zip(parts, own, strict=True)]
    equal = True
    try:
        with torch.no_grad():
            for given in (images, [x[:1] for x in images]):
                found = network(given[0] if shared_input else torch.cat(given, 1))
                equal &= same(found, torch.cat([one(x) for one, x in zip(own, given, strict=True)], 1))
    except Exception as error:  # a step that does not fit the parts together can fail in any way
        why = f"the padded network does not run: {first_line(error)}"
        raise SurgeryError("surgery-check-failed", f"{why}; use form='parallel' and please report it") from error
    if not equal:
        why = "the padded network does not return what its parts return"
        raise SurgeryError("surgery-check-failed", f"{why}; use form='parallel' and please report this architecture")


class _Builder:
    """Adds steps one by one; each runs either once for all parts, or once per part."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.source = plan.first.network
        self.alone = [plan.alone(number) for number in range(len(plan.parts))]
        self.apart: set[str] = set()
        self._nodes: list[Node] = []
        self._layers: dict[str, nn.Module] = {}
        self._tensors: dict[str, Tensor] = {}
        self._foreign: dict[str, Callable[..., Any]] = {}
        self._steps = {node.name: node for node in self.source.nodes}
        self._live: set[str] = set()  # values that come from the image
        self._names: set[str] = set(self._steps)
        self._asked: defaultdict[str, int] = defaultdict(lambda: 1)  # how often a name was wanted
        self._joined: dict[str, str] = {}
        self._sizes: dict[tuple[str, int], str] = {}

    def network(self) -> Network:
        return Network(self._nodes, self._layers, self._tensors, self._foreign).eval()

    def add(self, node: Node) -> None:
        if node.op == "input" or any(name in self._live for name in refs(node)):
            self._live.add(node.name)
        if not self._runs_apart(node):
            made = with_refs(rewritten(self.plan, node), self._together)
            self._use(made, node.target, self.plan)
            return
        self.apart.add(node.name)
        for number, plan in enumerate(self.alone):
            name = self._new_name(f"{node.name}_part{number}")
            self._sizes[node.name, number] = name
            made = with_refs(rewritten(plan, node), partial(self._of_part, number))
            own = f"{node.target}_part{number}" if node.op in ("layer", "tensor") else made.target
            if node.target in self.source.foreign:
                own = f"{node.target} of part {number}"
            self._use(replace(made, name=name, target=own), node.target, plan)

    def _use(self, node: Node, target: str, plan: Plan) -> None:
        """Add a step and the layer or tensor it needs: the source's `target`, as the plan makes it."""
        self._nodes.append(node)
        if node.op == "layer" and node.target not in self._layers:
            self._layers[node.target] = made_layer(plan, target)
        elif node.op == "tensor":
            self._tensors[node.target] = made_tensor(plan, target)
        elif target in self.source.foreign:
            self._foreign[node.target] = _own(plan.parts[0].network or plan.first.network, target)

    # -- together or apart -----------------------------------------------------------------------------

    def _runs_apart(self, node: Node) -> bool:
        if len(self.plan.parts) == 1 or node.op in ("input", "output"):
            return False
        if node.op == "tensor":
            return self.plan.first.labels(node) is None and not self._same_numbers(node.target, "")
        if node.op == "function" and node.target in FUNCTIONS and FUNCTIONS[node.target].role == "number":
            return False
        values = [name for name in refs(node) if _is_value(self.plan.first.shapes[name])]
        if values and isinstance(self.plan.first.shapes[values[0]], tuple | list) and node.target == "getitem":
            return values[0] in self.apart
        if node.name in self.plan.first.apart or any(self._is_lost(name) for name in values):
            return True
        if self._moves(node) and self._breaks_single(node):
            return True
        if node.op != "layer" or self._halves(node):
            return self._breaks_layout(node)
        layer = self.source.layer(node.target)
        if layer_role(layer) == "follow":
            return self._shared(values[0])
        if layer_role(layer) == "mix" and self._breaks_groups(node.target, mixing_of(layer).groups):
            return True
        keys = [key for key, value in layer.named_parameters(recurse=False) if value is not None]
        return layer_role(layer) != "mix" and not all(self._same_numbers(node.target, key) for key in keys)

    def _moves(self, node: Node) -> bool:
        if node.op == "layer":
            return layer_role(self.source.layer(node.target)) == "move"
        return node.target in FUNCTIONS and FUNCTIONS[node.target].role == "move"

    def _halves(self, node: Node) -> bool:
        if node.op == "layer":
            return layer_role(self.source.layer(node.target)) == "halve"
        return node.target in FUNCTIONS and FUNCTIONS[node.target].role == "halve"

    def _breaks_layout(self, node: Node) -> bool:
        """Whether moving channels that lie side by side results in an order other than the planned one.

        Entries of one run stay together, part after part. That fails if a boundary between joined or cut-off pieces
        lies within a run, or the order is reversed.
        """
        if node.target == "flip":
            dims = listed(node, "dims")
            (x,) = refs(node)
            dim = self.plan.dim(self._steps[x])
            return dim in [d % self.plan.first.shapes[x].ndim for d in dims]
        if self._halves(node):
            (x,) = refs(node)
            dim = self.plan.dim(self._steps[x])
            given: Any = self.source.layer(node.target).dim if node.op == "layer" else argument(node, "dim", -1)
            whole = dim is not None and int(given) % self.plan.first.shapes[x].ndim == dim
            pieces = np.split(self._numbers(x, dim), 2) if whole else []
        elif node.target in ("cat", "repeat", "tile"):
            dim = self.plan.dim(node)
            names = refs(node) if node.target == "cat" else [refs(node)[0]] * 2
            pieces = [self._numbers(name, dim) for name in names]
        elif node.target in ("chunk", "split", "tensor_split"):
            values = self.plan.first.labels(node)
            dim = self.plan.dim(self._steps[refs(node)[0]])
            pieces = [self.plan.along(node, dim, place)[0] for place in range(len(values))] if dim is not None else []
        elif node.target == "getitem":
            source = refs(node)[0]
            dim = self.plan.dim(self._steps[source])
            if dim is None:
                return False
            whole = self._numbers(source, dim)
            runs = {0, len(whole), *(np.flatnonzero(np.diff(self.plan.runs(whole))) + 1).tolist()}
            cuts = [
                stop
                for at, part in indexed_dims(node.args[1], self.plan.first.shapes[source].ndim)
                if at == dim and isinstance(part, slice)
                for stop in concrete(self.plan, part).indices(len(whole))[:2]
            ]
            return not set(cuts) <= runs
        else:
            return False
        return any(
            len(a) and len(b) and not np.diff(self.plan.runs(np.append(a[-1:], b[:1]))) for a, b in pairwise(pieces)
        )

    def _breaks_single(self, node: Node) -> bool:
        """Whether a step that moves numbers would not leave those of a single channel where they are planned.

        A single channel, or several that are all tied, lies along one dimension only by convention, so the step is
        tried on part numbers.
        """
        name, shapes, count = refs(node)[0], self.plan.first.shapes, len(self.plan.parts)
        labels, source = self.plan.first.labels(node), self.plan.first.labels(self._steps[name])
        if not all(isinstance(found, np.ndarray) and (found == found.flat[0]).all() for found in (labels, source)):
            return False
        before, after = self.plan.dim(self._steps[name]), self.plan.dim(node)
        if self._shared(name) or before is None or after is None:
            return False
        if sum(isinstance(shapes[ref], Tensor) for ref in refs(node)) > 1:
            return True
        made = map_refs(
            (rewritten(self.plan, node).args, dict(node.kwargs)),
            lambda ref: _numbered(shapes[name].shape, before, count) if ref.node == name else shapes[ref.node],
        )
        call = self.source.layer(node.target) if node.op == "layer" else FUNCTIONS[node.target].call
        try:
            found = call(*made[0], **made[1])
        except (RuntimeError, IndexError, ValueError, TypeError):
            return True
        return not torch.equal(found, _numbered(shapes[node.name].shape, after, count))

    def _breaks_groups(self, name: str, groups: int) -> bool:
        """Whether parts that lie side by side in each group of a convolution would not lie where they are planned."""
        read, written = self.plan.first.at(name, "in"), self.plan.first.at(name, "out")
        for labels in (None if read is None else np.tile(read, groups), written):
            if labels is not None and groups > 1:
                runs, starts = self.plan.runs(labels), np.arange(1, groups) * (len(labels) // groups)
                if (runs[starts] == runs[starts - 1]).any():
                    return True
        return False

    def _numbers(self, name: str, dim: int | None) -> NDArray[np.int64]:
        """The first part's channel indices along a dimension of a step's value."""
        return np.zeros(0, dtype=np.int64) if dim is None else self.plan.along(self._steps[name], dim)[0]

    def _is_lost(self, name: str) -> bool:
        """Whether a value exists only for each part by itself and cannot be laid side by side."""
        if self.plan.dim(self._steps[name]) is None:
            return name in self._live or name in self.apart
        return name in self.apart and self._shared(name)

    def _shared(self, name: str) -> bool:
        """Whether a value has the channels of an image that all parts share."""
        dim = self.plan.dim(self._steps[name])
        return dim is not None and self.plan.layout(self.plan.along(self._steps[name], dim)).shared

    def _same_numbers(self, name: str, key: str) -> bool:
        first, *others = (number_of(part, name, key) for part in self.plan.parts)
        return first.is_meta or all(torch.equal(first, other) for other in others)

    # -- from one to the other -------------------------------------------------------------------------

    def _together(self, ref: Ref) -> Ref:
        name = ref.node
        if name not in self.apart:
            return ref
        if name not in self._joined:
            names = [Ref(self._sizes[name, number]) for number in range(len(self.alone))]
            node = self._steps[name]
            dim = self.plan.dim(node)
            if dim is None:
                return names[0]  # a size, the same for all parts
            layout = self.plan.layout(self.plan.along(node, dim))
            order = np.argsort(np.concatenate(layout.targets))
            last = self._function(f"{name}_joined", "cat", (names, dim))
            if (order != np.arange(len(order))).any():
                last = self._function(f"{name}_in_order", "take", (Ref(last), dim, order.tolist()))
            self._joined[name] = last
        return Ref(self._joined[name])

    def _of_part(self, number: int, ref: Ref) -> Ref:
        name = ref.node
        if (name, number) in self._sizes:
            return Ref(self._sizes[name, number])
        node = self._steps[name]
        if not _is_value(self.plan.first.shapes[name]):
            made = with_refs(node, partial(self._of_part, number))
            new = self._sizes[name, number] = self._new_name(f"{name}_part{number}")
            self._nodes.append(replace(made, name=new))
            return Ref(new)
        if isinstance(self.plan.first.shapes[name], tuple | list):  # made again, from what the part has of its source
            made = with_refs(rewritten(self.alone[number], node), partial(self._of_part, number))
            new = self._sizes[name, number] = self._new_name(f"{name}_part{number}")
            self._nodes.append(replace(made, name=new))
            return Ref(new)
        dim = self.plan.dim(node)
        if dim is None or self._shared(name):
            return ref
        places = self.plan.layout(self.plan.along(node, dim)).targets[number].tolist()
        return Ref(self._function(f"{name}_of_part{number}", "take", (ref, dim, places)))

    def _function(self, name: str, function: str, args: tuple[Any, ...]) -> str:
        name = self._new_name(name)
        self._nodes.append(Node(name, "function", function, args))
        return name

    def _new_name(self, wanted: str) -> str:
        name = wanted
        while name in self._names:
            self._asked[wanted] += 1
            name = f"{wanted}_{self._asked[wanted]}"
        self._names.add(name)
        return name


def _is_value(value: Any) -> bool:
    """Whether a step's value is or contains a tensor."""
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return any(_is_value(item) for item in value)
    return isinstance(value, Tensor)


def _numbered(shape: Sequence[int], dim: int, count: int) -> Tensor:
    """A value of `count` parts side by side along a dimension, each filled with its number."""
    return torch.cat([torch.full(tuple(shape), float(number)) for number in range(count)], dim)


def _own(network: Network, target: str) -> Callable[..., Any]:
    """Copy a foreign module, so that training a component leaves its source unchanged."""
    call = network.foreign[target]
    return copy.deepcopy(call) if isinstance(call, nn.Module) else call


def check_same(parts: Sequence[Part]) -> None:
    """Check that parts can be laid side by side.

    Raises:
        SurgeryError: Their architectures differ, or their class outputs cannot be cut.
    """
    first = parts[0].graph
    for part in parts:
        if part.graph.output is None:
            raise SurgeryError(
                "surgery-outputs-not-joinable",
                f"the class outputs cannot be placed side by side: {_ends_in(part.graph)}; use form='parallel'",
            )
        if part.graph.network.nodes != first.network.nodes or not _same_sizes(part.graph, first):
            raise SurgeryError(
                "surgery-not-paddable",
                "alignment padding needs parts cut from the same architecture with equal sizes "
                "(class counts may differ); use form='parallel'",
            )


def _ends_in(graph: Graph) -> str:
    """What the class outputs come from, for a message."""
    last = next(node for node in graph.network.nodes if node.name in refs(graph.network.nodes[-1]))
    return f"{last.place} mixes them, or computes several from one value" if last.op != "layer" else last.place


def _check_views(network: Network) -> None:
    """Check that no step overwrites a part of a value that is used later: the part would be taken out as a copy.

    Raises:
        SurgeryError: One does.
    """
    steps = {node.name: node for node in network.nodes}
    used = {name: place for place, node in enumerate(network.nodes) for name in refs(node)}
    for place, node in enumerate(network.nodes):
        if not network.overwrites(node):
            continue
        name = refs(node)[0]
        while steps[name].op == "function" and getattr(FUNCTIONS.get(steps[name].target), "role", "") == "move":
            name = refs(steps[name])[0]
            if used[name] > place:
                raise SurgeryError(
                    "surgery-not-paddable",
                    f"{node.place} overwrites a part of {name!r}, which is used later; write it without working in "
                    "place, or use form='parallel'",
                )


def _same_sizes(a: Graph, b: Graph) -> bool:
    if [(x.name, x.size, x.output) for x in a.axes if not x.output] != [
        (x.name, x.size, x.output) for x in b.axes if not x.output
    ]:
        return False
    ends = {record.owner for record in a.dims if is_output(a.output, record.atoms)}
    for name in a.network.layer_names:
        x, y = a.network.layer(name), b.network.layer(name)
        if type(x) is not type(y) or (name not in ends and describe_layer(x) != describe_layer(y)):
            return False
    return True


def _check_shapes(builder: _Builder, network: Network) -> None:
    """Run the result on the meta device and compare every value's shape with the plan."""
    if network.foreign:
        return  # foreign callables may not run there
    plan = builder.plan
    channels, *sides = plan.first.input_shape
    channels *= 1 if plan.shared_input else len(plan.parts)
    bones = Network(
        network.nodes,
        {name: _on_meta(network.layer(name)) for name in network.layer_names},
        {name: _tensor_on_meta(network.tensor(name)) for name in network.tensor_names},
    )
    example = torch.empty(2, channels, *sides, device="meta")
    try:
        shapes = step_shapes(bones, example)
    except NotImplementedError:  # sizes that depend on numbers: a mask as a subscript
        return
    except Exception as error:
        raise SurgeryError(
            "surgery-check-failed",
            f"the resized network is inconsistent at {failing_step(bones, example)}: {first_line(error)}; please "
            "report this network, and make that part a layer of its own until then",
        ) from error
    for node in plan.first.network.nodes[1:]:
        before = plan.first.shapes[node.name]
        if isinstance(before, Tensor) and plan.dim(node) is not None and node.name not in builder.apart:
            after = shapes[node.name]
            expected = [plan.changed(node).get(dim, size) for dim, size in enumerate(before.shape)]
            if list(after.shape) != expected:
                raise SurgeryError(
                    "surgery-check-failed",
                    f"{node.place} of the resized network returns {tuple(after.shape)}, but "
                    f"{tuple(expected)} was planned; please report this network",
                )


def _tensor_on_meta(value: Tensor) -> Tensor:
    """A bare tensor without numbers; those that are not places are of the default type, as the layers are."""
    return torch.empty(value.shape, device="meta", dtype=None if value.is_floating_point() else value.dtype)


def _on_meta(module: nn.Module) -> nn.Module:
    entry = find_type(module)
    assert entry is not None
    return build_layer(entry.name, describe_layer(module))
