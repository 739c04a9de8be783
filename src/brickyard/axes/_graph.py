"""Channel axes: which tensor dimensions of a network must be cut together.

An axis is a largest set of channels that the same layers write, read and follow and that are pinned for the same
reasons. A residual add ties the channels of its two sides, so they share an axis. A layer that reads a concatenation
has channels of several axes, in order. An option-A shortcut ties some channels of a layer to an earlier axis and leaves
the others in an axis of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brickyard.axes._answers import Form, with_two_classes
from brickyard.axes._atoms import DimRecord, DimRole, Labels, Purse, settled
from brickyard.axes._detector_models import with_one_output
from brickyard.axes._endings import with_logits
from brickyard.axes._labels import Labeller
from brickyard.axes._places import failing_step
from brickyard.axes._tracing import read_network
from brickyard.base._boxes import Boxes
from brickyard.base._checks import output_name
from brickyard.base._errors import OptionError, TraceError
from brickyard.base._messages import first_line, shown
from brickyard.base._records import Pinned
from brickyard.base._sides import BATCHED
from brickyard.network._identity import source_of
from brickyard.network._layer_types import layer_role, mixing_of, tensor_dims
from brickyard.network._network import Network, Node, iter_layers, kind, step_shapes
from brickyard.network._untouched import guarded

OUTPUT = "the class outputs are chosen by the task"
BOXES = "every task keeps the boxes and the objectness"


@dataclass(frozen=True)
class Axis:
    """A channel axis.

    Attributes:
        name: Its first writer, with "#2", "#3" ... if that layer writes several axes.
        size: Number of channels.
        start: Index of its first channel, counted over all axes of the network.
        writers: Layers whose output channels it holds.
        readers: Layers whose input channels it holds.
        followers: Layers and tensors with one entry per channel.
        pinned: Why it is kept whole; empty if it may be cut.
        output: Whether its channels are the network's class outputs, one per class.
        lines: For each reason in `pinned`, the line of the model's code that it is about, or "".
    """

    name: str
    size: int
    start: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    followers: tuple[str, ...]
    pinned: tuple[str, ...] = ()
    output: bool = False
    lines: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """Why it is kept whole, with the lines of code that are known."""
        lines = self.lines or ("",) * len(self.pinned)
        both = zip(self.pinned, lines, strict=True)
        return "; ".join(f"{reason} at {line}" if line else reason for reason, line in both)

    @property
    def channels(self) -> slice:
        """Its channels as a slice of those of all axes."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Mixer:
    """A layer that reads one set of channels and writes another.

    Attributes:
        name: The layer's dotted name.
        position: Its first step in the network.
        reads: Channel indices, one per input of the layer; flattened inputs repeat them.
        writes: Channel indices, one per output of the layer.
        flops: Floating-point operations per image and (output, input) pair.
    """

    name: str
    position: int
    reads: Labels
    writes: Labels
    flops: int


class Axes:
    """Channel axes of a source, of whatever kind of network: what choosing channels and describing a cut ask for.

    Channels of all axes are numbered together: axis by axis, in the order of `axes`.

    Attributes:
        axes: The channel axes.
        input_name: What writes the axis of the input, which is never cut.
        input_shape: The shape of one input: (channels, height, width) of the images that a network was traced with,
            or that of its signals or cubes.
    """

    axes: tuple[Axis, ...]
    input_name: str
    input_shape: tuple[int, ...]

    def __iter__(self) -> Iterator[Axis]:
        return iter(self.axes)

    @property
    def channels(self) -> int:
        """How many channels all axes have together."""
        return sum(axis.size for axis in self.axes)

    def axis(self, name: str) -> Axis:
        """The axis with this name.

        Raises:
            KeyError: There is none.
        """
        return next(axis for axis in self.axes if axis.name == name) if name in self.names else _no_axis(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes, in order."""
        return tuple(axis.name for axis in self.axes)

    @property
    def free(self) -> tuple[Axis, ...]:
        """The axes that may be cut."""
        return tuple(axis for axis in self.axes if not axis.pinned)

    @property
    def output(self) -> Axis | None:
        """The axis of the class outputs, where it can be cut."""
        return next((axis for axis in self.axes if axis.output), None)

    def pinned(self) -> tuple[Pinned, ...]:
        """Every axis that is kept whole, except the input and the class outputs, with each reason."""
        return tuple(
            Pinned(axis=axis.name, channels=axis.size, reason=reason)
            for axis in self.axes
            for reason in axis.pinned
            if axis.writers != (self.input_name,) and reason not in (OUTPUT, BOXES)
        )

    def everything(self) -> dict[str, Tensor]:
        """The keep-set that keeps all channels of every axis."""
        return {axis.name: torch.arange(axis.size) for axis in self.axes}


class Graph(Axes):
    """A traced network with its channel axes.

    Printing it gives the table of axes.

    Attributes:
        network: The network.
        shapes: The value of every step on an example, with tensors replaced by meta tensors.
        output_width: How many class outputs there are.
        boxes: How a detector's outputs are read; None for a classifier.
        one_logit: Whether both classes come of a single logit.
        apart: Steps that treat channels of different networks, laid side by side, differently than alone.
        sums: By step: channel numbers of values whose channels the step sums up or averages.
        ending: What turns the network's logits into the model's outputs and was left out, such as "softmax", or "".
        counts: Steps whose value is a number that was computed from a count of channels, and not from the batch.
    """

    def __init__(
        self,
        network: Network,
        shapes: dict[str, Any],
        other: dict[str, Any] | None = None,
        ending: str = "",
        purse: Purse | None = None,
        boxes: Boxes | None = None,
    ) -> None:
        self.network = network
        self.ending = ending
        self.shapes = shapes
        self._other = shapes if other is None else other
        self.input_name = network.nodes[0].name
        self.input_shape = tuple(shapes[self.input_name].shape[1:])
        labeller = Labeller(network, shapes, other, purse)
        _pin_shared_weights(network, labeller)
        self.one_logit = False
        width = int(shapes[network.nodes[-1].name].shape[1])
        self.boxes = None if boxes is None else boxes.sized(width)
        self.output_width = width if self.boxes is None else self.boxes.classes or 0
        output_atoms = _output_atoms(labeller, network, width, self.boxes)
        number, self.axes = _number_atoms(labeller, output_atoms)
        self.dims = [
            DimRecord(record.owner, record.role, number[record.atoms], record.position, record.dim)
            for record in labeller.dims
        ]
        self._at = {(record.owner, record.role, record.dim): record.atoms for record in reversed(self.dims)}
        self.apart = frozenset(labeller.apart)
        self.counts = frozenset(labeller.counts - labeller.by_batch)
        self.sums = {name: number[labels] for name, labels in labeller.sums.items()}
        self._labels = {name: _renumber(value, number) for name, value in labeller.labels.items()}

    @property
    def free_share(self) -> float:
        """Share of the output channels of convolutions and linear layers, class outputs aside, that can be cut."""
        free = np.zeros(self.channels, dtype=np.bool_)
        for axis in self.free:
            free[axis.channels] = True
        written = [record.atoms for record in self.dims if record.role == "out" and record.position > 0]
        output = self.output
        if output is not None:
            written = [
                atoms for atoms in written if not (atoms >= output.start).all() or atoms.max() >= output.channels.stop
            ]
        channels = np.concatenate(written) if written else np.zeros(0, dtype=np.int64)
        return float(free[channels].mean()) if len(channels) else 0.0

    def at(self, owner: str, role: DimRole, dim: int = 0) -> Labels | None:
        """Channel indices along a dimension of a layer or bare tensor, or None."""
        return self._at.get((owner, role, dim))

    @property
    def batch(self) -> int:
        """How many images the example has."""
        return len(self.shapes[self.network.nodes[0].name])

    def batch_dims(self, node: Node) -> tuple[int, ...]:
        """The dimensions of a step's value whose size changes with the batch."""
        sizes = zip(self.shapes[node.name].shape, self._other[node.name].shape, strict=True)
        return tuple(dim for dim, (size, more) in enumerate(sizes) if size != more)

    def labels(self, node: Node) -> Any:
        """Channel indices of a step's value: an array as `labels.Labeller` creates them, a tuple, or None."""
        return self._labels[node.name]

    def outputs_of(self, keep: Mapping[str, Tensor]) -> list[int] | None:
        """Which of the network's outputs a cut has, in order; None: all of them."""
        chosen = None if self.output is None else keep.get(self.output.name)
        if chosen is None:
            return None
        return chosen.tolist() if self.boxes is None else list(self.boxes.kept(tuple(chosen.tolist())))

    def mixers(self) -> list[Mixer]:
        """The layers that read and write channels, in the order of their first use."""
        found: dict[str, Mixer] = {}
        for position, node, module in iter_layers(self.network):
            reads, writes = self.at(node.target, "in"), self.at(node.target, "out")
            if layer_role(module) != "mix" or reads is None or writes is None:
                continue
            flops = mixing_of(module).pair_flops(self.shapes[node.args[0].node], self.shapes[node.name], self.batch)
            if node.target in found:
                flops += found[node.target].flops
                position = found[node.target].position
            found[node.target] = Mixer(node.target, position, reads, writes, flops)
        return list(found.values())

    def rewritten(self, nodes: Sequence[Node], layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> Graph:
        """The graph of these steps, with those of the layers and tensors that they use.

        They must take the same images and end in the same outputs.
        """
        used = {node.target for node in nodes}
        made = Network(
            nodes,
            {name: layer for name, layer in layers.items() if name in used},
            {name: value for name, value in tensors.items() if name in used},
            self.network.foreign,
        ).eval()
        like = kind(self.network)
        example = torch.zeros(2, *self.input_shape, dtype=like.dtype, device=like.device)
        graph = analyse(made, example, self.ending, boxes=self.boxes)
        graph.one_logit = self.one_logit
        return graph

    def __str__(self) -> str:
        header = ("axis", "size", "writers", "readers", "followers", "pinned because")
        rows = [
            [
                shown(cell, keep="")
                for cell in (
                    *(axis.name, str(axis.size)),
                    *(_short(axis.writers), _short(axis.readers), _short(axis.followers), axis.told),
                )
            ]
            for axis in self.axes
        ]
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, *rows)
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    __repr__ = __str__


@guarded
def trace(model: nn.Module, example: Tensor, output: str | int | None = None, *, boxes: Boxes | None = None) -> Graph:
    """Trace a model and find its channel axes.

    Where a model ends in a softmax, a log-softmax or a sigmoid, its graph ends in the logits before it. Where it has
    one logit z, that of class 1 against class 0, its graph ends in both classes' logits, (-z/2, z/2).

    Args:
        model: A classifier that takes one image batch and returns logits (batch, classes): alone, in a dict, a tuple
            or an object with fields, and with any number of dimensions of size 1 behind them.
        example: Example images (batch, channels, height, width), signals (batch, channels, length) or cubes (batch,
            channels, depth, height, width); two are enough.
        output: Which part of what the model returns the logits are, where several could be: a key or the name of a
            field, a place in a tuple, or several of these joined with dots.
        boxes: How to read the outputs of a detector, which returns one tensor with outputs for many places; its graph
            ends in (batch, outputs, places). RetinaNet, FCOS and SSD of torchvision are known, and need none. Several
            tensors become one in the order of their names in `output`, such as "boxes,scores".

    Returns:
        A graph that prints as a table of axes: size, writers, readers, followers, and why an axis is pinned.

    Raises:
        TraceError: The model cannot be traced.
        OptionError: The model returns no part of that name, or outputs that `boxes` does not fit.

    Example:
        >>> import torch
        >>> from brickyard.axes import trace
        >>> from brickyard.testing import chain
        >>> print(trace(chain(), torch.rand(2, 3, 8, 8)))
        axis     size  writers  readers  followers  pinned because
        ----------------------------------------------------------
        input_1  3     input_1  conv1               the image input is never cut
        conv1    6     conv1    conv2    bn1
        conv2    8     conv2    linear   bn2
        linear   4     linear                       the class outputs are chosen by the task
    """
    if isinstance(example, Tensor) and example.ndim in BATCHED:
        example = torch.cat([example, example])[:2]
    asked = None if output is None else output_name(output)
    model, boxes, asked = with_one_output(source_of(model), example, boxes, asked)
    network, example = _precise(read_network(model, example, asked, Form(boxes)), example)
    if boxes is not None:
        return _of_detector(network, example, boxes)
    network, ending = with_logits(network, example)
    graph = analyse(network, example, ending)
    if graph.output_width > 1:
        return graph
    graph = analyse(with_two_classes(network), example, ending)
    graph.one_logit = True
    return graph


def _of_detector(network: Network, example: Tensor, boxes: Boxes) -> Graph:
    """The graph of a network that returns (batch, outputs, places).

    Raises:
        OptionError: It has other outputs or places than described.
    """
    with torch.no_grad():
        _, outputs, places = network(example[:1]).shape
    boxes = boxes.sized(outputs)
    expected = boxes.places(tuple(example.shape[2:]))
    if expected not in (None, places):
        sides = " x ".join(map(str, example.shape[2:]))
        raise OptionError(
            "option-boxes",
            f"the detector returns {places:,} places for an image of {sides}, and grids with strides "
            f"{', '.join(map(str, boxes.strides))} have {expected:,}; describe its own strides, and with "
            "outputs_first= whether it returns (batch, outputs, places)",
        )
    return analyse(network, example, boxes=boxes)


def _precise(network: Network, example: Tensor) -> tuple[Network, Tensor]:
    """Convert a half-precision network to float32 if it runs that way: sums and repairs need the precision."""
    if example.dtype not in (torch.float16, torch.bfloat16):
        return network, example
    wide, more = copy.deepcopy(network).float(), example.float()
    try:
        with torch.no_grad():
            wide(more)
    except RuntimeError:  # it converts its values to some type itself
        return network, example
    return wide, more


def analyse(
    network: Network, example: Tensor, ending: str = "", purse: Purse | None = None, boxes: Boxes | None = None
) -> Graph:
    """Find the channel axes of a network, which may be on the meta device, for what `purse` holds.

    Every step is seen on a second size of batch too: what changes with it is not a count of channels.

    Raises:
        TraceError: A step holds the size of the batch as a constant.
    """
    shapes = step_shapes(network, example)
    try:
        more = step_shapes(network, torch.cat([example, example[:1]]))
    except Exception as error:
        raise TraceError(
            "trace-batch",
            f"the network runs on {len(example)} images and fails on {len(example) + 1} ({first_line(error)}), at "
            f"{failing_step(network, torch.cat([example, example[:1]]))}: its "
            "forward holds the size of a batch; take it from x.shape[0], or write -1 in its place",
        ) from error
    return Graph(network, shapes, more, ending, purse, boxes)


def _no_axis(name: str) -> Axis:
    raise KeyError(name)


def _short(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" +{len(names) - most}" if len(names) > most else "")


def _pin_shared_weights(network: Network, labeller: Labeller) -> None:
    """Pin the channels of layers that share a parameter with another layer."""
    owners: dict[int, list[str]] = {}
    for _, node, module in iter_layers(network):
        for name in tensor_dims(module):
            value = getattr(module, name)
            if value is not None and not value.is_meta and value.numel():
                names = owners.setdefault(value.data_ptr(), [])
                if node.target not in names:
                    names.append(node.target)
    for names in owners.values():
        if len(names) > 1:
            for record in labeller.dims:
                if record.owner in names:
                    labeller.pin(record.atoms, f"layers {', '.join(names)} share their weights")


def _output_atoms(labeller: Labeller, network: Network, width: int, boxes: Boxes | None) -> set[int]:
    """Representatives of the class outputs, pinned because the task chooses them; a detector's others are pinned too.

    There are none if two outputs share a channel, or if a step sums the outputs or averages them: the outputs of a task
    depend on all others then, which stay.
    """
    labels = labeller.labels[network.nodes[-1].name]
    if labels is None:
        return set()
    others = np.zeros(0, dtype=np.int64)
    if boxes is not None:
        if labels.shape != (1, width, 1):
            labeller.pin(labels, BOXES)
            return set()
        scores = [boxes.is_score(k) for k in range(width)]
        labels, rest, width = labels[:, scores, 0], labels[0, np.invert(scores), 0], sum(scores)
        labeller.pin(rest, BOXES)
        others = labeller.atoms.roots(rest)
    labeller.pin(labels, OUTPUT)
    roots = labeller.atoms.roots(labels)
    for node in network.nodes:
        if node.name in labeller.sums and np.isin(labeller.atoms.roots(labeller.sums[node.name]), roots).any():
            labeller.pin(labels, f"{labeller.title(node)} mixes class outputs")
            return set()
    plain = roots.shape == (1, width) and len(np.unique(roots)) == width and not np.isin(others, roots).any()
    return set(roots.reshape(-1).tolist()) if plain else set()


def _number_atoms(labeller: Labeller, outputs: set[int]) -> tuple[Labels, tuple[Axis, ...]]:
    """Group atoms into axes; return every atom's channel index, and the axes."""
    uses: dict[int, list[int]] = {}
    for index, record in enumerate(labeller.dims):
        for root in dict.fromkeys(labeller.atoms.roots(record.atoms).tolist()):
            uses.setdefault(root, []).append(index)
    reasons: dict[int, dict[str, str]] = {}
    for pin in labeller.pins:
        for root in set(labeller.atoms.roots(pin.atoms).tolist()):
            reasons.setdefault(root, {}).setdefault(pin.reason, pin.line)
    groups: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = {}
    for root in [*uses, *(root for root in reasons if root not in uses)]:
        key = (tuple(uses.get(root, ())), tuple(reasons.get(root, ())))
        groups.setdefault(key, []).append(root)

    axes: list[Axis] = []
    start_of: dict[int, int] = {}
    names: dict[str, int] = {}
    start = 0
    for (used, why), roots in groups.items():
        axis = _axis([labeller.dims[index] for index in used], why, len(roots), start, names)
        is_output = bool(outputs) and set(roots) == outputs and why == (OUTPUT,) and not axis.readers
        lines = tuple(reasons[roots[0]][reason] for reason in why)
        axes.append(replace(axis, output=is_output, lines=lines))
        start_of.update({root: start + place for place, root in enumerate(roots)})
        start += len(roots)
    count = len(labeller.atoms)
    number = np.full(count, -1, dtype=np.int64)
    for root, place in start_of.items():
        number[root] = place
    number = number[labeller.atoms.roots(np.arange(count))]
    return number, tuple(axes)


def _axis(records: list[DimRecord], why: tuple[str, ...], size: int, start: int, names: dict[str, int]) -> Axis:
    def owners(*roles: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(record.owner for record in records if record.role in roles))

    writers = owners("out") or owners("zeros")
    if not writers and not why:
        why = ("no layer writes it",)
    first = (writers or owners("in", "follow") or ("unknown",))[0]
    names[first] = names.get(first, 0) + 1
    name = first if names[first] == 1 else f"{first}#{names[first]}"
    return Axis(name, size, start, writers, owners("in"), owners("follow"), why)


def _renumber(value: Any, number: NDArray[np.int64]) -> Any:
    if isinstance(value, tuple):
        return tuple(_renumber(item, number) for item in value)
    return None if value is None else settled(number[value], lambda labels: labels)
