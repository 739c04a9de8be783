"""What it costs to lose channels of an axis: an order of its channels, and the damage at every length.

For a layer that reads channels x and returns y = W x, the normal equations H = sum x x^T give the best weights without
channels D, W - W_D (H^-1_DD)^-1 H^-1_D, and the remaining squared error, tr(W_D (H^-1_DD)^-1 W_D^T) (block elimination;
the surgeon of Hassibi and Stork, 1993, for channels). Each output's error is weighted by how much it moves the task's
logits: the mean squared gradient of their sum with random signs. Eliminating the cheapest channels first yields an
order for every axis, an estimate of the damage at every length, and weights.

An estimate from the images that the equations were made from promises too much. So the damage is measured at a few
lengths, on images that they have not seen: how far the task's logits move when only the layers that read the axis use
the updated weights. These bend the estimate to the truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brickyard.axes._graph import Axis, Graph
from brickyard.healing._heal import reads
from brickyard.healing._places import Draws, Shown
from brickyard.healing._streams import Stream, copied, image_bytes, intercept_of
from brickyard.network._layer_types import layer_role, mixing_of
from brickyard.network._network import Network, Node, iter_layers
from brickyard.network._probes import probed
from brickyard.outputs._detections import Detections
from brickyard.runtime._isolation import gradients
from brickyard.runtime._progress import bar
from brickyard.surgery._join import cut
from brickyard.surgery._plan import KeepSet, Part, positions

LEVELS = (0.8, 0.5, 0.25)  # shares of an axis at which damage is measured
STEPS = 64  # eliminations per axis at most; wider axes lose several channels at once
WIDEST = 6144  # largest number of inputs whose normal equations are inverted; wider layers are judged by energy
WIDE = 2048  # the same where there are fewer samples than inputs
RIDGE = 1e-3
MEASURED = 64  # images to measure damage on, at most
SENSED = 64  # images to take gradients on, at most
PER_INPUT = 100  # samples for each input of a layer
_LIVE = 256 << 20  # bytes of activations in one backward pass
_ROUNDING = 1e-12  # of a square, in float64 and many sums
_TINY = 1e-30


@dataclass(frozen=True)
class Curve:
    """The cost of cutting one axis.

    Attributes:
        order: The axis's present channels, the last to go first.
        damage: For each number of kept channels, from 0 to all of these, the squared error of the task's logits as a
            share of their energy.
    """

    order: NDArray[np.int64]
    damage: NDArray[np.float64]


def damage_curves(graph: Graph, shown: Shown, keep: KeepSet, network: Network | None = None) -> dict[str, Curve]:
    """Order the channels of every free axis, and estimate the cost of losing them.

    Args:
        graph: The source's graph.
        shown: Preprocessed images of the task; labels are not needed. Damage is measured on those held back, or on all
            without any.
        keep: What is left of the source, with the task's class outputs.
        network: What was cut with it (default: cut now).
    """
    part = Part(graph, keep)
    copy = cut(graph, keep) if network is None else network
    axes = [axis for axis in graph.free if len(_left(part, axis)) > 1]
    curves: dict[str, Curve] = {}
    readers = _readers(copy)
    weights = sensitivity(copy, [node for _, node in readers], graph, shown)
    with torch.no_grad(), bar("measuring axes", len(axes)) as advance:
        stream = Stream(graph, copy, shown.fit)
        equations = {
            node.target: _equations(stream, index, node, Draws(PER_INPUT, shown.seed + index, shown.near[0]))
            for index, node in readers
        }
        logits = _Logits(copy, _first(shown.held or shown.fit, MEASURED), answers_of(graph))
        read = {
            axis.name: [(*step, columns) for step in readers if (columns := _columns(part, axis, step[1].target))]
            for axis in axes
        }
        for axis in sorted(axes, key=lambda axis: min((index for index, _, _ in read[axis.name]), default=0)):
            own = [
                _Reader(node, index, columns, copy, equations[node.target], weights[node.target])
                for index, node, columns in read[axis.name]
            ]
            curves[axis.name] = _curve(_left(part, axis), own, logits)
            advance(text=f"measuring {axis.name}")
    return {axis.name: curves[axis.name] for axis in axes}


def _first(batches: Sequence[Tensor], most: int, size: int | None = None) -> list[Tensor]:
    """The first images, in batches of a size (default: that of the largest)."""
    before = itertools.accumulate(map(len, batches), initial=0)
    some = [batch for batch, start in zip(batches, before, strict=False) if start < most]
    return list(torch.cat(some)[:most].split(size or max(map(len, batches))))


# -- sensitivity --------------------------------------------------------------------------------------------


def sensitivity(network: Network, nodes: Sequence[Node], graph: Graph, shown: Shown) -> dict[str, Tensor]:
    """How much each output of some layers moves the logits: for each layer, by name, (outputs,), in float64.

    It is the mean over positions and images of the squared gradient of the logits' sum with random signs, times the
    positions of an image, over the logits' mean energy: squared errors of outputs, averaged over positions and weighted
    by it, add up to a share of the logits' energy.
    """
    each = sum(image_bytes(graph.shapes[node.name]) for node in network.nodes)
    size = max(1, min(len(shown.fit[0]), _LIVE // max(1, 2 * each)))
    generator, answers = torch.Generator().manual_seed(shown.seed), answers_of(graph)
    found = {node.target: torch.zeros(len(mixing_of(network.layer(node.target)).rows)).double() for node in nodes}
    seen: list[Tensor] = []
    for batch in _first(shown.fit, SENSED, size):
        with gradients("select='mda' or another criterion that needs none"):
            slopes, numbers = _slopes(network, {node.name for node in nodes}, batch, generator, answers)
        seen.append(numbers)
        for node in nodes:
            slope = slopes[node.name]
            if slope is not None:
                mixing = mixing_of(network.layer(node.target))
                found[node.target] += mixing.by_output(slope).double().square().sum(1).cpu()
    energy = answers.energy(seen)
    return {name: value / max(energy, _TINY) for name, value in found.items()}


def _slopes(
    network: Network, names: set[str], batch: Tensor, generator: torch.Generator, answers: Answers
) -> tuple[dict[str, Tensor | None], Tensor]:
    """Gradients of the logits' sum with random signs for the values of some steps, and the logits."""
    probes, logits = probed(network, names, batch)
    numbers = answers.numbers(logits)
    signs = torch.randint(0, 2, numbers.shape, generator=generator).to(logits) * 2 - 1
    slopes = torch.autograd.grad((numbers * signs).sum(), list(probes.values()), allow_unused=True)
    return dict(zip(probes, slopes, strict=True)), answers.kept(logits, numbers).detach()


# -- normal equations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Equations:
    """Statistics of a layer's inputs, per position.

    Attributes:
        inverse: Inverse of the centred second moments (inputs, inputs), or of their diagonal (inputs,).
        mean: Mean input (inputs,).
    """

    inverse: Tensor
    mean: Tensor


def _readers(network: Network) -> list[tuple[int, Node]]:
    """The layers that mix channels, each at its first step."""
    found: dict[str, tuple[int, Node]] = {}
    for index, node, layer in iter_layers(network):
        if layer_role(layer) == "mix":
            found.setdefault(node.target, (index, node))
    return list(found.values())


def _equations(stream: Stream, index: int, node: Node, draws: Draws) -> _Equations:
    """Compute them from the network's own activations; average over groups that are cut alike."""
    mixing = mixing_of(stream.network.layer(node.target))
    inputs, sizes = mixing.rows[0].numel(), stream.sizes(node)
    positions = sum(stream.counts) * stream.each(node, sizes)
    full = inputs <= (WIDEST if positions >= inputs else WIDE) and mixing.groups == 1
    gram = torch.zeros((inputs, inputs) if full else (inputs,), dtype=torch.float64)
    total, count = torch.zeros(inputs, dtype=torch.float64), 0
    for columns in reads(stream, index, node, mixing, sizes, draws):
        for block in columns.split(1 << 13, 2):
            gram += (block[0] @ block[0].T).double().cpu() if full else block.double().square().sum((0, 2)).cpu()
        total += columns.sum((0, 2), dtype=torch.float64).cpu()
        count += columns.shape[0] * columns.shape[2]
    mean = total / count
    least = _ROUNDING * float((gram.diagonal() if full else gram).mean()) / count + _TINY
    gram = gram / count - (torch.outer(mean, mean) if full else mean.square())
    diagonal = gram.diagonal() if full else gram.clamp_min_(0)
    diagonal += RIDGE * diagonal.mean().clamp_min(least / RIDGE)  # constant inputs leave only what was rounded
    return _Equations(torch.linalg.inv(gram) if full else 1 / gram, mean)


def _left(part: Part, axis: Axis) -> NDArray[np.int64]:
    """The remaining channels of an axis, in order."""
    return np.flatnonzero(part.rank[axis.channels] >= 0)


def _columns(part: Part, axis: Axis, layer: str) -> list[Tensor] | None:
    """For each remaining channel, the columns of the cut layer's weight that read it; None if there are none."""
    reads = part.graph.at(layer, "in")
    if reads is None or not ((reads >= axis.start) & (reads < axis.start + axis.size)).any():
        return None
    reads = reads[positions(part, reads)]
    kernel = mixing_of(part.graph.network.layer(layer)).kernel.shape[2]
    places = (torch.from_numpy(np.flatnonzero(reads == axis.start + channel)) for channel in _left(part, axis))
    return [(found.unsqueeze(1) * kernel + torch.arange(kernel)).flatten() for found in places]


# -- one axis -----------------------------------------------------------------------------------------------


class _Reader:
    """A layer (step `node` at `position` in `network`) that reads channels of an axis, while they are eliminated.

    `columns` lists, for each channel of the axis, its columns among the layer's inputs.
    """

    def __init__(
        self,
        node: Node,
        position: int,
        columns: list[Tensor],
        network: Network,
        equations: _Equations,
        outputs: Tensor,
    ) -> None:
        self.node, self.position, self.columns = node, position, columns
        self.mixing = mixing_of(network.layer(node.target))
        self.weight = self.mixing.rows.double().flatten(1).cpu().clone()  # as refitted so far
        self.mean = equations.mean
        self.inverse = equations.inverse.clone()
        self.intercept = intercept_of(network, node)
        self._outputs = outputs.sqrt().unsqueeze(1)

    def costs(self, channels: Tensor) -> Tensor:
        """The error left by losing each channel, as a share of the logits' energy."""
        found = [self.columns[channel] for channel in channels.tolist()]
        if len({len(columns) for columns in found}) == 1:
            return self._cost(torch.stack(found))
        return torch.cat([self._cost(columns.unsqueeze(0)) for columns in found])

    def _cost(self, columns: Tensor) -> Tensor:
        """For blocks of equally many columns: (C, b) -> (C,)."""
        weight = self.weight[:, columns] * self._outputs.unsqueeze(2)  # (Q, C, b)
        if self.inverse.ndim == 1:
            return (weight.square() / self.inverse[columns]).sum((0, 2))
        blocks = self.inverse[columns.unsqueeze(2), columns.unsqueeze(1)]  # (C, b, b)
        solved = torch.linalg.solve(blocks, weight.permute(1, 2, 0))  # (C, b, Q)
        error: Tensor = (solved * weight.permute(1, 2, 0)).sum((1, 2))
        return error

    def eliminate(self, channels: Tensor) -> float:
        """Remove channels and let the rest compensate as well as possible; the error that this adds."""
        gone = torch.cat([self.columns[channel] for channel in channels.tolist()])
        if not len(gone):
            return 0.0
        weight = self.weight[:, gone]
        if self.inverse.ndim == 1:
            error = float(((weight * self._outputs).square() / self.inverse[gone]).sum())
            self.weight[:, gone] = 0
            return error
        rows = self.inverse[gone]  # (d, n)
        lost = (weight * self._outputs).T
        error = float((torch.linalg.solve(rows[:, gone], lost) * lost).sum())
        solved = torch.linalg.solve(rows[:, gone], rows)  # (d, n)
        self.weight -= weight @ solved
        self.inverse -= rows.T @ solved
        self.weight[:, gone] = 0
        return error


def _curve(channels: NDArray[np.int64], readers: list[_Reader], logits: _Logits) -> Curve:
    """Eliminate channel after channel, and measure the damage at some lengths."""
    size = len(channels)
    alive = torch.arange(size)
    gone: list[int] = []
    marks = {max(1, round(level * size)) for level in LEVELS} - {size}
    estimated, measured = {size: 0.0}, {}
    while len(alive) > 1:
        cost = sum((reader.costs(alive) for reader in readers), torch.zeros(len(alive), dtype=torch.float64))
        following = [mark for mark in marks if mark < len(alive)] or [1]
        count = min(max(1, size // STEPS), len(alive) - max(following))
        chosen = alive[torch.argsort(cost, stable=True)[:count]]
        before = estimated[len(alive)]
        alive = alive[~torch.isin(alive, chosen)]
        estimated[len(alive)] = before + sum(reader.eliminate(chosen) for reader in readers)
        gone += chosen.tolist()
        if len(alive) in marks:
            measured[len(alive)] = logits.damage(readers)
    order = np.array([*gone, *alive.tolist()][::-1], dtype=np.int64)
    estimated[0] = estimated[1] + float(sum(reader.costs(alive).sum() for reader in readers))
    return Curve(channels[order], bent(estimated, measured))


def bent(estimated: Mapping[int, float], measured: Mapping[int, float]) -> NDArray[np.float64]:
    """Damage for 0, 1, 2, ... channels: estimates at some lengths, bent to go through what was measured at a few.

    Between measured lengths, the ratio of measured to estimated damage follows a power of the estimate; beyond them it
    stays. More channels never cost more.
    """
    lengths = sorted(estimated)
    found = np.array([estimated[length] for length in lengths])
    if measured:
        marks = sorted(measured, key=lambda length: estimated[length])
        places = np.log([max(estimated[length], _TINY) for length in marks])
        ratios = np.log([max(measured[length], _TINY) for length in marks]) - places
        positive = found > 0
        found[positive] *= np.exp(np.interp(np.log(found[positive]), places, ratios))
        for length, value in measured.items():
            found[lengths.index(length)] = value
    found = np.maximum.accumulate(found[::-1])[::-1]
    whole: NDArray[np.float64] = np.interp(np.arange(lengths[-1] + 1), lengths, found)
    return whole


class _Logits:
    """Measures how far logits move with other weights of a few layers.

    Values before these layers are kept from one axis to the next, in the order of the network.
    """

    def __init__(self, network: Network, batches: Sequence[Tensor], answers: Answers) -> None:
        self.network, self._answers = network, answers
        self._whole = [network(batch) for batch in batches]
        self._energy = answers.energy([answers.kept(one, answers.numbers(one)) for one in self._whole])
        self._position = 0
        self._before: list[dict[str, Any]] = [{network.nodes[0].name: network.taken(batch)} for batch in batches]
        overwriting = [place for place, node in enumerate(network.nodes) if network.overwrites(node)]
        self._last = max(overwriting, default=-1)  # before it, values are copied

    def damage(self, readers: Sequence[_Reader]) -> float:
        """The squared error of the logits with the current weights of readers, as a share of their energy."""
        if not readers:
            return 0.0
        start = min(reader.position for reader in readers)
        for values in self._before:
            self.network.advance(values, self._position, start)
        self._position = start
        before = [(reader, reader.mixing.rows.clone(), reader.intercept.values()) for reader in readers]
        for reader in readers:
            self._set(reader)
        moved = []
        for values, goal in zip(self._before, self._whole, strict=True):
            found = copied(values) if start <= self._last else dict(values)
            self.network.advance(found, start, len(self.network.nodes))
            moved.append(self._answers.moved(found[self.network.nodes[-1].name], goal))
        for reader, rows, shift in before:
            reader.mixing.set_rows(rows)
            reader.intercept.put(shift)
        return self._answers.energy(moved) / max(self._energy, _TINY)

    @staticmethod
    def _set(reader: _Reader) -> None:
        rows = reader.mixing.rows
        shift = (rows.double().flatten(1).cpu() - reader.weight) @ reader.mean
        reader.mixing.set_rows(reader.weight)
        reader.intercept.add(shift.to(rows.device))


class Answers:
    """What of a network's outputs counts when they move: all logits, but for what classes share."""

    def numbers(self, logits: Tensor) -> Tensor:
        """The numbers that count, of one batch."""
        return _centred(logits) if logits.shape[1] > 1 else logits  # what images share is no matter of one batch

    def kept(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """What `energy` takes of a batch."""
        return logits

    def moved(self, logits: Tensor, goal: Tensor) -> Tensor:
        """The same of the difference between outputs and those that they should be."""
        return logits - goal

    def energy(self, batches: Sequence[Tensor]) -> float:
        """The sum of squares of what counts."""
        return float(_centred(torch.cat(list(batches))).double().square().sum())


class BoxAnswers(Answers):
    """The same for a detector: scores, and where boxes lie that it is sure of."""

    def __init__(self, kind: Detections) -> None:
        self.kind = kind

    def numbers(self, logits: Tensor) -> Tensor:
        return self.kind.compared(logits, logits.detach())

    def kept(self, logits: Tensor, numbers: Tensor) -> Tensor:
        return numbers

    def moved(self, logits: Tensor, goal: Tensor) -> Tensor:
        return self.kind.compared(logits, goal) - self.kind.compared(goal, goal)

    def energy(self, batches: Sequence[Tensor]) -> float:
        return float(torch.cat(list(batches)).double().square().sum())


def answers_of(graph: Graph) -> Answers:
    """What counts of a network's outputs."""
    return Answers() if graph.boxes is None else BoxAnswers(Detections().reading(graph.boxes, graph.input_shape))


def _centred(logits: Tensor) -> Tensor:
    """Remove from all logits what classes share; for a single class, what images share where there are several."""
    if logits.shape == (1, 1):
        return logits
    return logits - logits.mean(1 if logits.shape[1] > 1 else 0, keepdim=True)
