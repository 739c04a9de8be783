"""Closed-form repair of a cut network, layer by layer from the image to the classifier, without gradients.

The source and the cut network run side by side over the same images. At every layer, the cut network's inputs already
include the repairs so far, and the target is the output of the source's layer on the channels that were kept. A layer
that runs several times is repaired once, on the inputs of all its runs.

refit: ridge least squares for the change of the layer's weights, on outputs drawn from all positions of all images
(`Sample`). The prior is the sliced weights. Its strength is the one, of several, with which the layer is closest to its
target on images that no equation has seen.

Where a ReLU follows, what matters is the error behind it: a value that both sides lose there may be anything. That
error is lowered by repeating the same least squares with other targets (majorise and minimise): the source's value
if that is positive; otherwise the copy's own if it is negative; otherwise zero. Each round minimises an upper bound.
Other nonlinearities without jumps, such as SiLU, bend what they read less than it is: each number counts by the square
of their mean slope between what it is and what it should be. Weighted least squares would need equations for every
output; instead, the common ones give a direction, and the weighted error the length of the step.

Finally, both sets of weights are compared in float64, output by output, behind the nonlinearity that follows, on the
images held back (or, without any, on those of the equations). An output whose error the refit did not lower keeps the
weights that it was cut with.

moments: scales and shifts each output channel to the source's mean and variance.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.base._errors import DataError
from brickyard.base._options import Heal
from brickyard.healing._least_squares import Change, Equations, HealReport, Right
from brickyard.healing._places import PER_INPUT, Draws, Shown
from brickyard.healing._streams import Intercept, Stream, drawn, intercept_of, own_bias
from brickyard.healing._tail import Tail, tail_of
from brickyard.network._layer_types import find_mixing, mixing_of
from brickyard.network._mixing import Mixing
from brickyard.network._network import Network, Node
from brickyard.runtime._processes import Ranks
from brickyard.runtime._progress import bar
from brickyard.surgery._plan import KeepSet, Part, positions

_SAME = 1e-10  # a residual below this share of the target's energy is rounding
_GAIN = 1e-6  # a refit that lowers an output's error by a smaller share is rounding
_BLOCK = 1 << 12  # samples that are computed in float64 at once
_FLAT = 1e-6  # what is missing, or a slope, below which there is none
FURTHEST = 100.0  # ways that a step along one may be long
ROUNDS = 3  # least squares with the targets of a ReLU, after the plain one
BENT = 6  # the same for other nonlinearities
RIDGE = 1e-3  # the prior's strength where no images are held back
RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # strengths to choose from where some are


def heal_network(
    graph: Graph,
    keep: KeepSet,
    network: Network,
    shown: Shown,
    method: Heal,
    ridge: float | None = None,
    per_input: int = PER_INPUT,
    leave: Collection[str] = (),
) -> HealReport:
    """Repair a cut network in place.

    Args:
        graph: The source's graph.
        keep: The keep-set that the network was cut with.
        network: The cut network; its steps have the same names as the source's.
        shown: The images.
        method: "refit", "moments" or "none".
        ridge: Strength of the prior, as a share of the mean diagonal of the normal equations. None: the best for each
            layer on the images held back; 1e-3 without any.
        per_input: How many outputs to draw for each input of a layer.
        leave: Layers that stay as they are.

    Returns:
        How many layers changed, with notes on those that were left alone and why.
    """
    report = HealReport()
    if method == "none":
        return report
    ranks = Ranks.current()
    sides = [Side(graph, network, images, ranks) for images in (shown.fit, shown.held)]
    layers = [runs for runs in repairable(network) if runs[0][1].target not in leave]
    with torch.no_grad(), bar(f"healing ({method})", len(layers)) as advance:
        for number, runs in enumerate(layers):
            job = job_of(graph, keep, network, runs, ranks)
            if method == "moments":
                report.layers += _match_moments(job, sides[0], report)
            else:
                draws = (Draws(per_input, shown.seed + number, near) for near in shown.near)
                fit, held = (side.sample(job, drawn) for side, drawn in zip(sides, draws, strict=True))
                assert fit is not None
                report.layers += refit(job, fit, held, ridge, report)
            advance(text=f"healing {job.name}")
    return report.summed_up()


_Runs = Sequence[tuple[int, Node]]
"""All steps that run one layer, with their positions."""


def repairable(network: Network) -> list[_Runs]:
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
    """One layer to repair.

    Attributes:
        name: Its dotted name.
        layer: The layer, in the cut network.
        intercept: Where a shift of its outputs can go.
        tail: What its output goes through next.
        ranks: The processes that have a share of the images each.
        network: The cut network, whose steps the tail names.
        runs: The steps that run the layer.
        rows: The outputs that were kept of the source's layer; None: all.
    """

    name: str
    layer: nn.Module
    intercept: Intercept
    tail: Tail
    ranks: Ranks
    network: Any = None
    runs: _Runs = ()
    rows: NDArray[np.int64] | None = None

    @property
    def mixing(self) -> Mixing:
        """What answers for the layer."""
        return mixing_of(self.layer)

    def check(self, value: Tensor) -> Tensor:
        """Check that numbers are finite.

        Raises:
            DataError: They are not.
        """
        if bool(torch.isfinite(value).all()):
            return value
        raise DataError(
            "data-overflow",
            f"outputs of layer {self.name!r} are not finite on the data to heal with: numbers overflow there or on the "
            "way to it; check the weights and the preprocessing, or use a source in float32 or float64",
        )


def job_of(graph: Graph, keep: KeepSet, network: Network, runs: _Runs, ranks: Ranks) -> Job:
    """What there is to know of a layer before it is repaired."""
    index, node = runs[0]
    layer, once = network.layer(node.target), len(runs) == 1
    intercept = intercept_of(network, node) if once else own_bias(layer)
    tail = tail_of(graph, network, index, node) if once else Tail()
    rows = _kept_rows(graph, keep, node.target)
    return Job(node.target, layer, intercept, tail, ranks, network, runs, rows)


def reads(
    stream: Stream, index: int, node: Node, mixing: Mixing, sizes: Sequence[int], draws: Draws
) -> Iterator[Tensor]:
    """What outputs drawn of a layer read, batch by batch: (groups, inputs, N).

    Args:
        stream: The network over all images.
        index: The position of the layer's step.
        node: The step.
        mixing: What answers for the layer, or for another one in its place.
        sizes: The sizes of its output's dimensions that hold positions.
        draws: How many to draw.
    """
    every = stream.each(node, sizes)
    places = draws.places(sum(stream.counts), sizes, every, mixing)
    for start, count, values in zip(stream.starts, stream.counts, stream.before(index), strict=True):
        x = values[node.args[0].node]
        whole = x.numel() // x.shape[-1] if mixing.linear else len(x) * int(np.prod(sizes))
        where = drawn(places[start : start + count], every, whole)
        yield precise(mixing.read_at(x, sizes, where.to(x.device)))


@dataclass(frozen=True)
class Sample:
    """Some outputs of a layer: what they read, and what should become of them.

    Attributes:
        x: What they read, (groups, inputs, N).
        goal: What the source's layer and tail give there, (outputs, N).
        added: What sums of the tail add, by step, (outputs, N) each.
    """

    x: Tensor
    goal: Tensor
    added: Mapping[str, Tensor]


class Side:
    """A source and the network to repair, side by side over the same images."""

    def __init__(self, graph: Graph, network: Network, batches: Sequence[Tensor], ranks: Ranks) -> None:
        self._images = sum(map(len, batches))
        starts = ranks.mine([*itertools.accumulate(map(len, batches), initial=0)][:-1])
        self.source = Stream(graph, graph.network, ranks.mine(batches), starts)
        self.copy = Stream(graph, network, ranks.mine(batches), starts)

    def sample(self, job: Job, draws: Draws) -> Sample | None:
        """Outputs of a layer in every run, from all images; None without images."""
        if not self._images:
            return None
        first, node = job.runs[0]
        sizes = self.source.sizes(node)
        every = self.source.each(node, sizes)
        places = draws.places(self._images, sizes, every, job.mixing)
        found = []
        before = zip(
            self.copy.starts, self.copy.counts, self.copy.before(first), self.source.before(first), strict=True
        )
        for start, count, own, theirs in before:
            for index, run in job.runs:
                ours = self.copy.ahead(own, first, index)
                goal = self._goal(job, run, self.source.ahead(theirs, first, index))
                total = goal.numel() // goal.shape[job.mixing.channel_dim]
                where = drawn(places[start : start + count], every, total).to(goal.device)
                found.append(_drawn(job, ours, run, goal, sizes, where))
        if not found:  # another process has all images
            return _none(job)
        added = {name: torch.cat([one.added[name] for one in found], 1) for name in found[0].added}
        return Sample(torch.cat([one.x for one in found], 2), torch.cat([one.goal for one in found], 1), added)

    def outputs(self, job: Job) -> Iterator[tuple[Tensor, Tensor]]:
        """All outputs of a layer, and of the source's, in every run: (batch, outputs, ...) or (..., outputs) each."""
        first = job.runs[0][0]
        plain = replace(job, tail=Tail())
        for own, theirs in zip(self.copy.before(first), self.source.before(first), strict=True):
            for index, run in job.runs:
                ours = self.copy.ahead(own, first, index)
                yield (
                    job.check(job.network.step(run, ours)),
                    self._goal(plain, run, self.source.ahead(theirs, first, index)),
                )

    def _goal(self, job: Job, run: Node, theirs: Mapping[str, Any]) -> Tensor:
        source = self.source.network
        goal = job.tail.run(source, source.step(run, theirs), theirs)
        if job.rows is not None:
            goal = goal.index_select(job.mixing.channel_dim, torch.from_numpy(job.rows).to(goal.device))
        return job.check(goal)


def _drawn(job: Job, ours: Mapping[str, Any], run: Node, goal: Tensor, sizes: Sequence[int], where: Tensor) -> Sample:
    mixing = job.mixing
    values = {
        step.name: next(ours[ref.node] for ref in step.args if ref.node in ours)
        for step in job.tail.steps
        if step.op == "function"
    }
    added = {name: mixing.by_output(value.expand_as(goal))[:, where].clone() for name, value in values.items()}
    wanted = mixing.by_output(goal)[:, where].clone()
    read = mixing.read_at(ours[run.args[0].node], sizes, where)
    return Sample(job.check(precise(read)), precise(wanted), added)


def precise(value: Tensor) -> Tensor:
    """Numbers to sum products of, which needs more than half precision."""
    return value.float() if value.element_size() < 4 else value


def _none(job: Job) -> Sample:
    rows = job.mixing.rows
    empty = rows.new_zeros(len(rows), 0)
    added = {step.name: empty for step in job.tail.steps if step.op == "function"}
    return Sample(rows.new_zeros(job.mixing.groups, rows[0].numel(), 0), empty, added)


# -- moments -----------------------------------------------------------------------------------------------


def _match_moments(job: Job, side: Side, report: HealReport) -> bool:
    mixing, intercept, name = job.mixing, job.intercept, job.name
    rows = mixing.rows
    sums = torch.zeros(5, len(rows), dtype=torch.float64, device=rows.device)
    for pair in side.outputs(job):
        ours, theirs = (mixing.by_output(y).double() for y in pair)  # (Q, N)
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


def refit(job: Job, fit: Sample, held: Sample | None, ridge: float | None, report: HealReport) -> bool:
    """Refit one layer in place; whether any of its outputs changed."""
    here = _Outputs(job, fit)
    if here.right():
        return False
    equations = Equations(fit.x, bool(job.intercept), job.ranks)
    if equations.dead:
        report.notes.append(f"layer {job.name!r}: {equations.dead} of {len(fit.x)} groups have only zeros as input")
    there = here if held is None else _Outputs(job, held)
    right = equations.right(here.residual(None))
    if ridge is None:
        ridge = RIDGE if held is None else _best_ridge(equations, right, there)
    found = _solved(equations, right, here, there, ridge, job.name, report)
    if found is None:
        return False
    change, report.ridges[job.name] = found
    before = there.errors(None)
    rows = job.mixing.rows
    new = (rows.double().flatten(1) + change.weight.flatten(0, 1)).to(rows.dtype)  # as it will be stored
    stored = change._replace(weight=(new.double() - rows.double().flatten(1)).reshape(change.weight.shape))
    worse = made_worse(before, there.errors(stored))
    if bool(worse.any()):
        report.worse[job.name] = int(worse.sum()), len(worse)
    change = change.only(~worse)
    job.mixing.set_rows((rows.double().flatten(1) + change.weight.flatten(0, 1)).to(rows.dtype))
    job.intercept.add(change.shift.flatten())
    return not bool(worse.all())


def made_worse(before: Tensor, after: Tensor) -> Tensor:
    """The outputs whose error a refit did not lower, as a mask."""
    return ~(after <= before * (1 - _GAIN))  # true for NaN too


def _best_ridge(equations: Equations, right: Right, there: _Outputs) -> float:
    """The strength with which the plain least squares come closest on images held back."""
    errors: dict[float, float] = {}
    for ridge in RIDGES:
        found = equations.solve(right, ridge)
        errors[ridge] = float("inf") if found is None else float(there.errors(found[0]).sum())
        if errors[ridge] > 1.5 * min(errors.values()):
            break
    return min(errors, key=lambda ridge: errors[ridge])


def _solved(
    equations: Equations, right: Right, here: _Outputs, there: _Outputs, ridge: float, name: str, report: HealReport
) -> tuple[Change, float] | None:
    """The change of a layer, and the strength it took, with the targets of a nonlinearity where one follows."""
    found = equations.solve(right, ridge)
    if found is None:
        report.notes.append(f"layer {name!r}: its equations overflow or stayed singular; it was left as it was cut")
        return None
    for _ in range(ROUNDS if here.rectified else 0):
        after = equations.solve(equations.right(here.residual(found[0], rectified=True)), ridge)
        if after is None:
            break
        found = after
    if found[1] > ridge:
        report.notes.append(f"layer {name!r}: its equations were singular; ridge {found[1]:g} was used")
    return (_bent(equations, here, there, found[0], ridge), found[1]) if here.bent else found


def _bent(equations: Equations, here: _Outputs, there: _Outputs, plain: Change, ridge: float) -> Change:
    """The change of a layer with the targets of a nonlinearity that is no ReLU, for outputs that come closer by it."""
    found = plain
    for _ in range(BENT):
        after = equations.solve(equations.right(here.nearer(found)), ridge)
        if after is None:
            break
        found = here.between(found, after[0])
    worse = made_worse(there.errors(plain), there.errors(found)).reshape(plain.shift.shape)
    return Change(*(torch.where(worse, one, other) for one, other in zip(plain, found, strict=True)))


class _Outputs:
    """A layer's outputs at samples, with changes of its weights."""

    def __init__(self, job: Job, sample: Sample) -> None:
        self._job, self._sample = job, sample  # outputs are computed in the type of the samples
        bias = own_bias(job.layer).bias
        self._rows = job.mixing.rows.double().flatten(1).unflatten(0, (job.mixing.groups, -1))  # (G, q, n)
        self._bias = self._rows.new_zeros(self._rows.shape[:2].numel()) if bias is None else bias.double()
        self._plain = (self._rows.to(sample.x.dtype) @ sample.x).flatten(0, 1)
        self._plain += self._bias.to(sample.x.dtype).unsqueeze(1)
        scale = job.tail.scale
        self._scale = torch.ones_like(self._bias) if scale is None else scale.double()
        self.rectified, self.bent = job.tail.rectified, job.tail.bend is not None
        self._wanted = job.tail.behind(sample.goal) if self.bent else sample.goal

    def right(self) -> bool:
        """Whether they already are what they should be."""
        goal = self._sample.goal
        missing = goal - self._job.tail.at(self._job.network, self._plain, self._sample.added)
        energy = torch.stack([y.double().square().sum() for y in (missing, goal)])
        self._job.ranks.add(energy)
        return bool(energy[0] <= _SAME * energy[1])

    def residual(self, change: Change | None, rectified: bool = False) -> Tensor:
        """How far the outputs with `change` are from where they should be, counted from those without: (G, q, N)."""
        sample, groups = self._sample, len(self._sample.x)
        output = self._plain if change is None else self._plain + change.moved(sample.x)
        found = self._job.tail.at(self._job.network, output, sample.added)
        goal = torch.where(sample.goal > 0, sample.goal, found.clamp(max=0)) if rectified else sample.goal
        missing = (goal - found) / self._scale.to(found.dtype).unsqueeze(1)
        residual: Tensor = (output - self._plain + missing).unflatten(0, (groups, -1))
        return residual

    def nearer(self, change: Change) -> Tensor:
        """Residuals that lead nearer behind the bend from where `change` has led, as `residual` counts them.

        What is missing counts by the square of the mean slope of the bend on the way, as a share of the largest: an
        error that the bend hides is none.
        """
        output, found = self._led(change)
        missing, weight = self._weighed(found)
        missing *= weight / weight.amax(1, keepdim=True).clamp(min=_FLAT)
        missing /= self._scale.to(found.dtype).unsqueeze(1)
        nearer: Tensor = (output - self._plain + missing).unflatten(0, (len(self._sample.x), -1))
        return nearer

    def between(self, change: Change, other: Change) -> Change:
        """The change on the way from one to another, or beyond, with the least error by these weights."""
        found = self._led(change)[1]
        way = self._led(other)[1] - found
        missing, weight = self._weighed(found)
        sums = torch.stack([(weight * way * one).sum(1, dtype=torch.float64) for one in (missing, way)])
        self._job.ranks.add(sums)
        share = torch.where(sums[1] > 0, sums[0] / sums[1], 0.0).clamp(0, FURTHEST).reshape(change.shift.shape)
        return Change(*(one + share * (last - one) for one, last in zip(change, other, strict=True)))

    def _led(self, change: Change) -> tuple[Tensor, Tensor]:
        """The layer's outputs with a change, and what the tail makes of them."""
        output = self._plain + change.moved(self._sample.x)
        return output, self._job.tail.at(self._job.network, output, self._sample.added)

    def _weighed(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """What is missing to the goal, and the square of the mean slope of the bend on the way there."""
        missing, rise = self._sample.goal - found, self._wanted - self._job.tail.behind(found)
        return missing, (rise / torch.where(missing.abs() < _FLAT, torch.inf, missing)).square()

    def errors(self, change: Change | None) -> Tensor:
        """Squared errors of each output with `change`, in float64, behind the tail and its bend: (outputs,)."""
        rows, shift = self._rows, self._bias
        if change is not None:
            rows, shift = rows + change.weight, shift + change.shift.flatten()
        total = torch.zeros_like(self._bias)
        for start in range(0, self._sample.x.shape[2], _BLOCK):
            some = slice(start, start + _BLOCK)
            output = (rows @ self._sample.x[:, :, some].double()).flatten(0, 1) + shift.unsqueeze(1)
            added = {name: value[:, some] for name, value in self._sample.added.items()}
            found, goal = self._job.tail.at(self._job.network, output, added), self._sample.goal[:, some].double()
            tail = self._job.tail
            total += (tail.behind(goal) - tail.behind(found)).square().sum(1)
        self._job.ranks.add(total)
        return total
