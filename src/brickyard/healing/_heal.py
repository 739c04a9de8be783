"""Closed-form repair of a cut network, layer by layer from the image to the classifier, without gradients.

The source and the cut network run side by side over the same images. At every layer, the cut network's inputs already
include the repairs so far, and the target is the output of the source's layer on the channels that were kept. A layer
that runs several times is repaired once, at its first run, on the inputs of all its runs.

refit: ridge least squares for the change of the layer's weights. Normal equations are summed batch by batch, so memory
is (inputs * kernel)^2 numbers, whatever the number of images; with fewer positions than inputs, the same solution is
computed from the products between positions. The prior is the sliced weights.

Where a ReLU follows, what matters is the error behind it: a value that both sides lose there may be anything. That
error is lowered by repeating the same least squares with other targets (majorise and minimise): the source's value
if that is positive; otherwise the copy's own if it is negative; otherwise zero. No round can raise it.

Finally, both sets of weights are compared in float64 on the same images, output by output, behind the ReLU if one
follows. An output whose error the refit did not lower (by rounding, or because the first solution is optimal before the
ReLU but not behind it) keeps the weights that it was cut with.

moments: scales and shifts each output channel to the source's mean and variance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.base._errors import DataError
from brickyard.base._options import Heal
from brickyard.healing._least_squares import HealReport, equations_for
from brickyard.healing._streams import Intercept, Stream, blocks, exact, intercept_of, own_bias
from brickyard.network._layer_types import find_mixing, mixing_of
from brickyard.network._mixing import NORMS, UNFOLD, Mixing
from brickyard.network._network import Network, Node, Ref, refs
from brickyard.runtime._processes import Ranks
from brickyard.runtime._progress import bar
from brickyard.surgery._plan import KeepSet, Part, positions

_SAME = 1e-10  # a residual below this share of the target's energy is rounding
_GAIN = 1e-6  # a refit that lowers an output's error by a smaller share is rounding
_ADD = ("add", "iadd", "add_", "tensor_add")
_RELU = ("relu", "relu_")
ROUNDS = 3  # least squares with the targets of a ReLU, after the plain one


def heal_network(
    graph: Graph, keep: KeepSet, network: Network, batches: Sequence[Tensor], method: Heal, ridge: float
) -> HealReport:
    """Repair a cut network in place.

    Args:
        graph: The source's graph.
        keep: The keep-set that the network was cut with.
        network: The cut network; its steps have the same names as the source's.
        batches: Preprocessed images, (batch, channels, height, width) each.
        method: "refit", "moments" or "none".
        ridge: Strength of the prior, as a share of the mean diagonal of the normal equations.

    Returns:
        How many layers changed, with notes on those that were left alone and why.
    """
    report = HealReport()
    if method == "none":
        return report
    ranks = Ranks.current()
    images = sum(map(len, batches))
    batches = ranks.mine(batches)
    repair = refit if method == "refit" else _match_moments
    source, copy = Stream(graph, graph.network, batches), Stream(graph, network, batches)
    layers = _repairable(network)
    with torch.no_grad(), bar(f"healing ({method})", len(layers)) as advance:
        for runs in layers:
            index, node = runs[0]
            rows, layer = _kept_rows(graph, keep, node.target), network.layer(node.target)
            once = len(runs) == 1
            shift = intercept_of(network, node) if once else own_bias(layer)
            tail = _tail(network, index, node) if once else Tail()
            goals = partial(_goals, source, copy, runs, tail, rows)
            count = images * sum(source.positions(run) for _, run in runs)
            job = Job(node.target, layer, shift, tail, count, goals, ranks, network)
            report.layers += repair(job, ridge, report)
            advance(text=f"healing {node.target}")
    return report


@dataclass(frozen=True)
class Tail:
    """What a layer's output goes through on its way to the next nonlinearity.

    Attributes:
        name: The value that is the layer's output.
        steps: A batch norm, and a sum with a shortcut that is known by then; either, both, or none.
        scale: What they multiply the layer's output by, (channels,).
        rectified: Whether a ReLU follows.
    """

    name: str = ""
    steps: tuple[Node, ...] = ()
    scale: Tensor | None = None
    rectified: bool = False

    def run(self, network: Any, output: Tensor, values: Mapping[str, Any]) -> Tensor:
        """What a network's steps make of a layer's output; no value is changed in place."""
        name, found = self.name, {**values, self.name: output}
        for step in self.steps:
            if step.op == "function":
                one, other = (found[ref.node] for ref in step.args)
                found[step.name] = one + other
            else:
                found[step.name] = network.step(step, found)
            name = step.name
        result: Tensor = found[name]
        return result

    def exact(self, network: Any, output: Tensor, values: Mapping[str, Any]) -> Tensor:
        """The same in float64, for the output of a layer in float64."""
        name, found = self.name, {**values, self.name: output}
        for step in self.steps:
            value: Tensor = found[name]
            layer = network.layer(step.target) if step.op == "layer" else None
            if isinstance(layer, NORMS):
                numbers = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
                mean, variance, weight, bias = (None if n is None else n.double() for n in numbers)
                value = F.batch_norm(value, mean, variance, weight, bias, eps=layer.eps)
            elif layer is None:
                one, other = (found[ref.node].double() for ref in step.args)
                value = one + other
            found[step.name] = value
            name = step.name
        result: Tensor = found[name]
        return result


def _tail(network: Network, index: int, node: Node) -> Tail:
    """The steps behind the layer at `index`, as far as they can be seen through."""
    known = {step.name for step in network.nodes[:index]}
    seen = Tail(node.name)
    fresh = not mixing_of(network.layer(node.target)).linear  # nothing has changed a convolution's output yet
    name = node.name
    while True:
        users = [other for other in network.nodes if name in refs(other)]
        if len(users) != 1:
            return seen
        (user,) = users
        layer = network.layer(user.target) if user.op == "layer" else None
        scale = seen.scale
        if isinstance(layer, nn.ReLU) or (user.op == "function" and user.target in _RELU):
            return replace(seen, rectified=True)
        if isinstance(layer, NORMS) and fresh:
            if layer.running_var is None or layer.weight is None or bool((layer.weight == 0).any()):
                return seen
            scale = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
        elif user.op == "function" and user.target in _ADD and len(user.args) == 2 and not user.kwargs:
            others = [value.node for value in user.args if isinstance(value, Ref) and value.node != name]
            if len(others) != 1 or others[0] not in known:
                return seen
        elif not isinstance(layer, nn.Identity | nn.Dropout):
            return seen
        fresh = fresh and isinstance(layer, nn.Identity | nn.Dropout)
        seen = Tail(node.name, (*seen.steps, user), scale)
        name = user.name


_Runs = Sequence[tuple[int, Node]]
"""All steps that run one layer, with their positions."""


def _repairable(network: Network) -> list[_Runs]:
    """Convolutions and linear layers, by their first run."""
    found: dict[str, list[tuple[int, Node]]] = {}
    for index, node in enumerate(network.nodes):
        if node.op == "layer" and find_mixing(network.layer(node.target)) is not None:
            found.setdefault(node.target, []).append((index, node))
    return list(found.values())


def _kept_rows(graph: Graph, keep: KeepSet, layer: str) -> NDArray[np.int64] | None:
    labels = graph.at(layer, "out")
    if labels is None:
        labels = graph.at(layer, "follow")
    return None if labels is None else positions(Part(graph, keep), labels)


@dataclass(frozen=True)
class Job:
    """One layer to repair, with what it is repaired on.

    Attributes:
        name: Its dotted name.
        layer: The layer in the cut network.
        intercept: Where a shift of its outputs can go.
        tail: What its output goes through next.
        positions: How many outputs of each channel there are, in all processes.
        goals: For each batch: values that the tail needs, the layer's inputs, and what its tail should give.
        ranks: The processes that have a share of the batches each.
        network: The cut network, whose steps the tail names.
    """

    name: str
    layer: nn.Module
    intercept: Intercept
    tail: Tail
    positions: int
    goals: Callable[[], Iterable[tuple[Mapping[str, Tensor], Tensor, Tensor]]]
    ranks: Ranks
    network: Any = None

    @property
    def mixing(self) -> Mixing:
        """What answers for the layer."""
        return mixing_of(self.layer)

    def residuals(self, rectified: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each batch, yield the layer's inputs, its outputs, and the residuals (target minus output).

        The target is the output of the source's layer; if that is added to a shortcut that has an error already, the
        target makes up for that too. With `rectified`, the residual is what matters behind the ReLU.

        Raises:
            DataError: They are not finite.
        """
        for ours, x, goal in self.goals():
            output = self.layer(x)
            found = self.tail.run(self.network, output, ours)
            if rectified:
                goal = torch.where(goal > 0, goal, found.clamp(max=0))
            missing = goal - found
            if self.tail.scale is not None:
                missing = missing / self.tail.scale.to(missing.dtype).reshape(-1, *[1] * (missing.ndim - 2))
            if not bool(torch.isfinite(missing).all()):
                raise DataError(
                    "data-overflow",
                    f"outputs of layer {self.name!r} are not finite on the data to heal with: numbers overflow there "
                    "or on the way to it; check the weights and the preprocessing, or use a source in float32 or "
                    "float64",
                )
            yield x, output, missing

    def errors(self, states: Sequence[Sequence[Tensor]]) -> Tensor:
        """Squared errors with each of several `state`s, (states, outputs), in float64; the last one stays set.

        They are measured behind the tail, and behind the ReLU if one follows.
        """
        rows = self.mixing.rows
        totals = torch.zeros(len(states), len(rows), dtype=torch.float64, device=rows.device)
        for ours, x, goal in self.goals():
            names = {name for step in self.tail.steps for name in refs(step)} & ours.keys()
            step = max(1, UNFOLD * len(x) // max(x.numel(), goal.numel(), 1))  # images per block
            for start in range(0, len(x), step):
                some = slice(start, start + step)
                values = {name: ours[name][some] for name in names}
                wanted = goal[some].double()
                for index, state in enumerate(states):
                    self.put(state)
                    found = self.tail.exact(self.network, exact(self.layer, x[some]), values)
                    if self.tail.rectified:
                        found, wanted = found.clamp(min=0), wanted.clamp(min=0)
                    totals[index] += self.mixing.by_output((wanted - found).square()).sum(1)
        self.ranks.add(totals)
        return totals

    def state(self) -> list[Tensor]:
        """Copy the numbers that a repair changes; outputs lie along their first dimension."""
        return [self.mixing.rows.clone(), *self.intercept.values()]

    def put(self, state: Sequence[Tensor]) -> None:
        self.mixing.set_rows(state[0])
        self.intercept.put(state[1:])


def _goals(
    source: Stream, copy: Stream, runs: _Runs, tail: Tail, rows: NDArray[np.int64] | None
) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """The goals of a layer of a traced network: what the source's layer gives in every run, in the rows kept."""
    first = runs[0][0]
    for before in zip(copy.before(first), source.before(first), strict=True):
        for index, node in runs:
            pairs = zip((copy, source), before, strict=True)
            ours, theirs = (stream.ahead(values, first, index) for stream, values in pairs)
            goal = tail.run(source.network, source.network.step(node, theirs), theirs)
            if rows is not None:
                dim = mixing_of(source.network.layer(node.target)).channel_dim
                goal = goal.index_select(dim, torch.from_numpy(rows).to(goal.device))
            yield ours, ours[node.args[0].node], goal


# -- moments -----------------------------------------------------------------------------------------------


def _match_moments(job: Job, ridge: float, report: HealReport) -> bool:
    mixing, intercept, name = job.mixing, job.intercept, job.name
    rows = mixing.rows
    sums = torch.zeros(5, len(rows), dtype=torch.float64, device=rows.device)
    for _, output, missing in job.residuals():
        ours, theirs = (mixing.by_output(y).double() for y in (output, output + missing))  # (Q, N)
        found = [ours.sum(1), ours.square().sum(1), theirs.sum(1), theirs.square().sum(1)]
        sums += torch.stack([*found, torch.full_like(found[0], ours.shape[1])])
    job.ranks.add(sums)
    mean, square, goal, goal_square = sums[:4] / sums[4]
    variance, goal_variance = (square - mean**2).clamp_min(0), (goal_square - goal**2).clamp_min(0)
    if torch.allclose(mean, goal, rtol=1e-6, atol=1e-9) and torch.allclose(variance, goal_variance, rtol=1e-6):
        return False
    still = variance <= 1e-12 * goal_variance.clamp_min(1e-12)
    scale = torch.where(still, 1.0, (goal_variance / variance.clamp_min(1e-300)).sqrt()).clamp(0.1, 10.0)
    if still.any():
        report.notes.append(f"layer {name!r}: {int(still.sum())} of {len(scale)} outputs do not vary; only shifted")
    if not intercept:
        report.notes.append(f"layer {name!r} has no bias and no batch norm behind it; it was scaled, not shifted")
    mixing.set_rows(rows * scale.to(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1)))
    bias = 0.0 if intercept.bias is None else intercept.bias.double()
    intercept.add(goal - scale * mean + (scale - 1) * bias)
    return True


# -- refit -------------------------------------------------------------------------------------------------


def refit(job: Job, ridge: float, report: HealReport) -> bool:
    """Refit one layer in place; whether any of its outputs changed."""
    layer, mixing, intercept = job.layer, job.mixing, job.intercept
    before = job.state()
    sliced = before[0]
    equations = equations_for(layer, job.positions, bool(intercept), job.ranks)
    for turn in range(1 + ROUNDS):
        found = job.residuals(rectified=turn > 0)
        first = list(itertools.islice(found, 1))
        if turn == 0 and _unchanged(first, job.ranks):
            return False
        for x, _, missing in itertools.chain(first, found):
            for block, goal in blocks(layer, x, missing):
                equations.add(block, goal)
        solution = equations.solve(ridge, mixing.rows - sliced, job.name, report)
        if solution is None:
            if turn == 0:
                return False
            break
        change, shift = solution
        mixing.set_rows(mixing.rows + change.reshape(sliced.shape).to(sliced.dtype))
        if shift is not None:
            intercept.add(shift)
        if not job.tail.rectified or not equations.again():
            break
    after = job.state()
    better = keep_better(job.name, after, before, job.errors([before, after]), report)
    job.put(after)
    return better


def keep_better(
    name: str, places: Sequence[Tensor], before: Sequence[Tensor], errors: Tensor, report: HealReport
) -> bool:
    """Undo a refit for outputs whose error it did not lower; return whether any output stays refitted.

    Outputs lie along the first dimension of the refitted tensors `places` and of `before`, their previous values.
    `errors` are the squared errors before and after, (2, outputs).
    """
    worse = ~(errors[1] <= errors[0] * (1 - _GAIN))  # true for NaN too
    if not bool(worse.any()):
        return True
    for place, value in zip(places, before, strict=True):
        place[worse] = value[worse]
    report.notes.append(
        f"layer {name!r}: the refit did not lower the error of {int(worse.sum())} of {len(worse)} outputs; they "
        "were left as they were cut"
    )
    return not bool(worse.all())


def _unchanged(first: Sequence[tuple[Tensor, Tensor, Tensor]], ranks: Ranks) -> bool:
    """Whether a layer's output is already right, on the first batch of each process."""
    energy = torch.zeros(2, dtype=torch.float64)
    for _, output, missing in first:
        energy = torch.stack([y.double().square().sum().cpu() for y in (missing, output + missing)])
    ranks.add(energy)
    return bool(energy[0] <= _SAME * energy[1])


"""Changes of weights (G * q, n), and shifts (G * q,) or None."""
