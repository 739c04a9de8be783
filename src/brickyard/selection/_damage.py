"""Which channels a budget should keep, by the damage that the refit cannot repair.

For a layer that reads channels x and returns y = W x, the normal equations H = sum x x^T give the best weights without
channels D, W - W_D (H^-1_DD)^-1 H^-1_D, and the remaining squared error, tr(W_D (H^-1_DD)^-1 W_D^T) (block elimination;
the surgeon of Hassibi and Stork, 1993, for channels). Eliminating the cheapest channels first yields an order for every
axis, and weights at each length.

To decide how much each axis may lose, we measure how far the task's logits move at some lengths of each axis, when only
the layers that read it use the updated weights. The budget is then spent where it saves operations at the least damage.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brickyard.axes._graph import Axis, Graph
from brickyard.base._options import Budget
from brickyard.healing._heal import heal_network
from brickyard.healing._streams import Stream, blocks, intercept_of
from brickyard.network._layer_types import layer_role, mixing_of
from brickyard.network._network import Network, Node, iter_layers
from brickyard.runtime._progress import bar
from brickyard.selection._budget import check_enough
from brickyard.selection._thresholds import kept_outputs
from brickyard.surgery._cost import CostModel, Mask, keep_mask
from brickyard.surgery._join import cut
from brickyard.surgery._plan import KeepSet, Part, positions

LEVELS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # shares of an axis at which damage is measured
STEPS = 64  # eliminations per axis at most; wider axes lose several channels at once
WIDEST = 6144  # largest number of inputs whose normal equations are inverted; wider layers are judged by energy
RIDGE = 1e-3
MEASURED = 256  # images to measure damage on, at most


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


class _Reader:
    """A layer (step `node` at `position` in `network`) that reads channels of an axis, while they are eliminated.

    `columns` lists, for each channel of the axis, its columns among the layer's inputs.
    """

    def __init__(
        self, node: Node, position: int, columns: list[Tensor], network: Network, equations: _Equations
    ) -> None:
        self.node, self.position, self.columns = node, position, columns
        self.mixing = mixing_of(network.layer(node.target))
        self.weight = self.mixing.rows.double().flatten(1).clone()  # as refitted so far
        self.mean, self.energy = equations.mean, equations.energy
        self.inverse = equations.inverse.clone()
        self.intercept = intercept_of(network, node)

    def costs(self, channels: Tensor) -> Tensor:
        """The error left by losing each channel, as a share of the output's variance."""
        found = [self.columns[channel] for channel in channels.tolist()]
        if len({len(columns) for columns in found}) == 1:
            return self._cost(torch.stack(found))
        return torch.cat([self._cost(columns.unsqueeze(0)) for columns in found])

    def _cost(self, columns: Tensor) -> Tensor:
        """For blocks of equally many columns: (C, b) -> (C,)."""
        weight = self.weight[:, columns]  # (Q, C, b)
        if self.inverse.ndim == 1:
            return (weight.square() / self.inverse[columns]).sum((0, 2)) / self.energy
        blocks = self.inverse[columns.unsqueeze(2), columns.unsqueeze(1)]  # (C, b, b)
        solved = torch.linalg.solve(blocks, weight.permute(1, 2, 0))  # (C, b, Q)
        error: Tensor = (solved * weight.permute(1, 2, 0)).sum((1, 2))
        return error / self.energy

    def eliminate(self, channels: Tensor) -> None:
        """Remove channels and let the rest compensate as well as possible."""
        gone = torch.cat([self.columns[channel] for channel in channels.tolist()])
        if not len(gone):
            return
        if self.inverse.ndim == 1:
            self.weight[:, gone] = 0
            return
        rows = self.inverse[gone]  # (d, n)
        solved = torch.linalg.solve(rows[:, gone], rows)  # (d, n)
        self.weight -= self.weight[:, gone] @ solved
        self.inverse -= rows.T @ solved
        self.weight[:, gone] = 0


def damage_curves(
    graph: Graph, batches: Sequence[Tensor], keep: KeepSet, network: Network | None = None
) -> dict[str, Curve]:
    """Order the channels of every free axis, and measure the cost of losing them.

    `batches` are preprocessed images of the task, (batch, channels, height, width) each; labels are not needed. `keep`
    is what is left of the source, with the task's class outputs; `network` is what was cut with it (default: cut now).
    """
    part = Part(graph, keep)
    copy = cut(graph, keep) if network is None else network
    axes = [axis for axis in graph.free if len(_left(part, axis)) > 1]
    curves: dict[str, Curve] = {}
    with torch.no_grad(), bar("measuring axes", len(axes)) as advance:
        readers = _readers(copy)
        stream = Stream(graph, copy, batches)
        equations = {node.target: _equations(stream, index, node) for index, node in readers}
        shown = list(torch.cat(list(batches))[:MEASURED].split(max(map(len, batches))))
        whole = [copy(batch) for batch in shown]
        for axis in axes:
            own = [
                _Reader(node, index, columns, copy, equations[node.target])
                for index, node in readers
                if (columns := _columns(part, axis, node.target)) is not None
            ]
            curves[axis.name] = _curve(_left(part, axis), own, _Measure(own, copy, shown, whole))
            advance(text=f"measuring {axis.name}")
    return curves


# -- normal equations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Equations:
    """Statistics of a layer's inputs.

    Attributes:
        inverse: Inverse of the centred normal equations (inputs, inputs), or of their diagonal (inputs,).
        mean: Mean input (inputs,).
        energy: Variance of the outputs, summed over outputs and positions.
    """

    inverse: Tensor
    mean: Tensor
    energy: float


def _readers(network: Network) -> list[tuple[int, Node]]:
    """The layers that mix channels, each at its first step."""
    found: dict[str, tuple[int, Node]] = {}
    for index, node, layer in iter_layers(network):
        if layer_role(layer) == "mix":
            found.setdefault(node.target, (index, node))
    return list(found.values())


def _equations(stream: Stream, index: int, node: Node) -> _Equations:
    """Compute them from the source's own activations; average over groups that are cut alike."""
    layer = stream.network.layer(node.target)
    mixing = mixing_of(layer)
    outputs, inputs = mixing.rows.flatten(1).shape
    full = inputs <= WIDEST and mixing.groups == 1
    gram = torch.zeros((inputs, inputs) if full else (inputs,), dtype=torch.float64)
    total = torch.zeros(inputs, dtype=torch.float64)
    sums = torch.zeros(2, outputs, dtype=torch.float64)
    count = positions = 0
    for values in stream.before(index):
        x = values[node.args[0].node]
        for columns, result in blocks(layer, x, layer(x)):
            out = result.double().flatten(0, 1)  # (q, N)
            gram += (columns[0] @ columns[0].T).double().cpu() if full else columns.double().square().sum((0, 2)).cpu()
            total += columns.sum((0, 2), dtype=torch.float64).cpu()
            sums += torch.stack([out.sum(1), out.square().sum(1)]).cpu()
            positions += columns.shape[2]
            count += columns.shape[0] * columns.shape[2]
    mean = total / count
    energy = float((sums[1] - sums[0].square() / positions).clamp_min(0).sum())
    gram -= count * (torch.outer(mean, mean) if full else mean.square())
    diagonal = gram.diagonal() if full else gram.clamp_min_(0)
    diagonal += RIDGE * diagonal.mean().clamp_min(1e-30)
    return _Equations(torch.linalg.inv(gram) if full else 1 / gram, mean, max(energy, 1e-30))


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


def _curve(channels: NDArray[np.int64], readers: list[_Reader], measure: _Measure) -> Curve:
    """Eliminate channel after channel, and measure the damage at some lengths."""
    size = len(channels)
    alive = torch.arange(size)
    gone: list[int] = []
    marks = {max(1, round(level * size)) for level in LEVELS} - {size}
    measured = {size: 0.0}
    while len(alive) > 1:
        cost = sum((reader.costs(alive) for reader in readers), torch.zeros(len(alive), dtype=torch.float64))
        following = [mark for mark in marks if mark < len(alive)] or [1]
        count = min(max(1, size // STEPS), len(alive) - max(following))
        chosen = alive[torch.argsort(cost, stable=True)[:count]]
        for reader in readers:
            reader.eliminate(chosen)
        gone += chosen.tolist()
        alive = alive[~torch.isin(alive, chosen)]
        if len(alive) in marks:
            measured[len(alive)] = measure()
    order = np.array([*gone, *alive.tolist()][::-1], dtype=np.int64)
    sizes = sorted(measured)
    damage = np.maximum.accumulate([measured[length] for length in sizes][::-1])[::-1]  # more channels never cost more
    return Curve(channels[order], np.interp(np.arange(size + 1), sizes, damage))


class _Measure:
    """Measures how far the logits move with the readers' current weights."""

    def __init__(
        self, readers: list[_Reader], network: Network, batches: Sequence[Tensor], whole: Sequence[Tensor]
    ) -> None:
        self.readers, self.network, self.whole = readers, network, whole
        self._start = min((reader.position for reader in readers), default=len(network.nodes))
        self._before: list[dict[str, Tensor]] = []
        for batch in batches:
            values = {network.nodes[0].name: batch}
            network.advance(values, 0, self._start)
            self._before.append(values)

    def __call__(self) -> float:
        """Return the squared error of the logits, as a share of their energy."""
        before = [(reader, reader.mixing.rows.clone(), reader.intercept.values()) for reader in self.readers]
        for reader in self.readers:
            self._set(reader)
        error = energy = 0.0
        for values, goal in zip(self._before, self.whole, strict=True):
            found = dict(values)
            self.network.advance(found, self._start, len(self.network.nodes))
            logits = found[self.network.nodes[-1].name]
            error += float(_centred(logits - goal).double().square().sum())
            energy += float(_centred(goal).double().square().sum())
        for reader, rows, shift in before:
            reader.mixing.set_rows(rows)
            reader.intercept.put(shift)
        return error / max(energy, 1e-30)

    @staticmethod
    def _set(reader: _Reader) -> None:
        rows = reader.mixing.rows
        shift = (rows.double().flatten(1).cpu() - reader.weight) @ reader.mean
        reader.mixing.set_rows(reader.weight)
        reader.intercept.add(shift.to(rows.device))


def _centred(logits: Tensor) -> Tensor:
    """Remove from the logits what all classes share; for a single class, what all images share."""
    return logits - logits.mean(1 if logits.shape[1] > 1 else 0, keepdim=True)


STAGE = 0.8  # approximate share left after each stage


def by_damage(
    graph: Graph, batches: Sequence[Tensor], outputs: Sequence[int], budget: Budget, ridge: float
) -> dict[str, Tensor]:
    """Keep the channels whose loss the refit cannot repair; see the module.

    Channels are removed in stages. Each starts from the remainder, refitted with the prior `ridge`, since the cost of
    losing a channel depends on what else is gone. `outputs` are the class outputs to keep, in order.

    Raises:
        OptionError: Even one channel per axis exceeds the budget.
    """
    keep = {**graph.everything(), **kept_outputs(graph, outputs)}
    network: Network | None = None
    whole = getattr(CostModel(graph)(np.ones(graph.channels, dtype=np.bool_)), budget.resource)
    stages = max(1, round(math.log(budget.share) / math.log(STAGE)))
    for stage in range(1, stages + 1):
        limit = int(budget.share ** (stage / stages) * whole)
        keep = by_curves(graph, damage_curves(graph, batches, keep, network), keep, limit, budget)
        if stage < stages:
            network = cut(graph, keep)
            heal_network(graph, keep, network, batches, "refit", ridge)
    return keep


def by_curves(
    graph: Graph, curves: Mapping[str, Curve], keep: dict[str, Tensor], limit: int, budget: Budget
) -> dict[str, Tensor]:
    """Cut down to `limit` operations (or parameters) at the least damage per unit saved.

    Channels of one axis at a time are removed until the budget is met; then whatever still fits comes back.

    Raises:
        OptionError: Even one channel per axis exceeds the budget.
    """
    cost_model = CostModel(graph)

    def cost(mask: Mask) -> int:
        return int(getattr(cost_model(mask), budget.resource))

    mask = keep_mask(graph, keep)
    axes = {name: graph.axis(name) for name in curves}
    kept = {name: len(curve.order) for name, curve in curves.items()}
    least = mask.copy()
    for name, axis in axes.items():
        least[axis.start + curves[name].order[budget.round_to :]] = False
    check_enough(cost(least), limit, budget)

    def cheapest(name: str) -> tuple[float, int]:
        """The least damage per unit saved by any next cut of an axis, and how many channels that cut leaves."""
        axis, curve, now = axes[name], curves[name], kept[name]
        found = []
        for step in (1, 2, 4):
            left = now - step * max(1, len(curve.order) // 16)
            left = max(budget.round_to, left - left % budget.round_to)
            trial = mask.copy()
            trial[axis.start + curve.order[left:now]] = False
            found.append(((curve.damage[left] - curve.damage[now]) / max(1, spent - cost(trial)), left))
        return min(found)

    spent = cost(mask)
    queue = [(*cheapest(name), name) for name in axes if kept[name] > budget.round_to]
    heapq.heapify(queue)
    while spent > limit:
        _, _, name = heapq.heappop(queue)
        ratio, left = cheapest(name)  # its savings have changed since
        if queue and ratio > queue[0][0]:
            heapq.heappush(queue, (ratio, left, name))
            continue
        mask[axes[name].start + curves[name].order[left : kept[name]]] = False
        kept[name] = left
        spent = cost(mask)
        if left > budget.round_to:
            heapq.heappush(queue, (*cheapest(name), name))
    _take_back(mask, axes, curves, kept, cost, limit, budget.round_to)
    return {
        **keep,
        **{axis.name: torch.from_numpy(np.flatnonzero(mask[axis.channels])) for axis in graph.free},
    }


def _take_back(
    mask: Mask,
    axes: Mapping[str, Axis],
    curves: Mapping[str, Curve],
    kept: dict[str, int],
    cost: Callable[[Mask], int],
    limit: float,
    round_to: int,
) -> None:
    """Restore channels, `round_to` at a time, while they fit, the most damaging losses first."""
    while True:
        short = {name: k for name, k in kept.items() if k < len(curves[name].order)}
        more = {name: min(len(curves[name].order), k + round_to) for name, k in short.items()}
        losses = {name: curves[name].damage[k] - curves[name].damage[more[name]] for name, k in short.items()}
        for name in sorted(losses, key=lambda name: -losses[name]):
            channels = axes[name].start + curves[name].order[kept[name] : more[name]]
            mask[channels] = True
            if cost(mask) <= limit:
                kept[name] = more[name]
                break
            mask[channels] = False
        else:
            return
