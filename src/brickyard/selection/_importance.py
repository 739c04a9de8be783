"""Criteria by which a budget can rank channels: relevances, measured damage, and controls to compare them with.

Each is one registered function of what is known of a task (`Evidence`). It returns one number per channel of every
axis; the highest within an axis are kept. A criterion that divides the budget itself returns the channels to keep, or a
`Selected`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.base._checks import check_new
from brickyard.base._errors import OptionError
from brickyard.base._options import Budget
from brickyard.healing._places import Shown
from brickyard.network._layer_types import find_mixing
from brickyard.network._network import Network, iter_layers
from brickyard.outputs._outputs import find_outputs
from brickyard.relevance._relevance import Relevance
from brickyard.runtime._isolation import gradients
from brickyard.selection._budget import by_budget
from brickyard.selection._damage import Selected, by_agreement, by_damage
from brickyard.selection._thresholds import kept_outputs, mda_scores
from brickyard.surgery._cost import CostModel

RANKED = 64  # images to measure ranks on


@dataclass(frozen=True)
class Evidence:
    """What a criterion may use.

    Attributes:
        graph: The source's graph.
        batches: Preprocessed images of the task; empty if the criterion needs none.
        outputs: The class outputs to keep.
        seed: Seed of its random draws.
        relevance: The located relevances.
        task: The task's classes.
        budget: How much may be kept.
        ridge: The prior of the refit that follows; None: the best for each layer.
        held: Preprocessed images that nothing is fitted to.
        agreement: On how many of these, as a share, a network gives the source's answer.
        near: For a detector, where objects are in `batches` and in `held`: (images, rows, columns) each, up to 1.
    """

    graph: Graph
    batches: Sequence[Tensor]
    outputs: Sequence[int]
    seed: int = 0
    relevance: Relevance | None = None
    task: Sequence[int] = ()
    budget: Budget = field(default_factory=lambda: Budget(flops=1.0))
    ridge: float | None = None
    held: Sequence[Tensor] = ()
    agreement: Callable[[Network], float] = lambda _: 1.0
    near: tuple[Tensor | None, Tensor | None] = (None, None)


@dataclass(frozen=True)
class Criterion:
    """A criterion: its function, whether it needs images, and whether it divides the budget itself."""

    name: str
    help: str
    call: Callable[[Evidence], Any]
    images: bool
    keeps: bool

    def select(self, evidence: Evidence) -> Selected:
        """What to keep within the budget."""
        found: Any = self.call(evidence)
        if isinstance(found, Selected):
            outputs = kept_outputs(found.graph, evidence.outputs)
            return replace(found, keep={**found.graph.everything(), **found.keep, **outputs})
        if self.keeps:
            self._check_kept(found)
            found = {**evidence.graph.everything(), **found, **kept_outputs(evidence.graph, evidence.outputs)}
        else:
            self._check(found, sum(axis.size for axis in evidence.graph.axes))
            costs = CostModel(evidence.graph)
            found = by_budget(evidence.graph, costs, found, evidence.outputs, evidence.budget)
        return Selected(evidence.graph, found)

    def _check_kept(self, found: Any) -> None:
        """Refuse what does not say which channels stay.

        Raises:
            OptionError: It says what was returned.
        """
        if isinstance(found, dict) and all(isinstance(kept, Tensor) for kept in found.values()):
            return
        wanted = "the channels to keep as a dict of tensors, by the name of the axis, or a brickyard.selection.Selected"
        raise OptionError(
            "option-wrong-object", f"select={self.name!r} returned a {type(found).__name__}; return {wanted}"
        )

    def _check(self, found: Any, channels: int) -> None:
        """Refuse what is not one number per channel.

        Raises:
            OptionError: It says what was returned.
        """
        why = f"a {type(found).__name__}"
        if isinstance(found, Tensor):
            if found.shape == (channels,) and not bool(found.isnan().any()):
                return
            why = f"scores of shape {tuple(found.shape)}" + (", some NaN" if bool(found.isnan().any()) else "")
        wanted = f"return a tensor with one number for each of the {channels} channels of all axes"
        raise OptionError("option-wrong-object", f"select={self.name!r} returned {why}; {wanted}")


CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str, *, help: str, images: bool = True, keeps: bool = False
) -> Callable[[Callable[[Evidence], Any]], Callable[[Evidence], Any]]:
    """Register a criterion under a name, with one sentence of help for every list of choices.

    Raises:
        OptionError: One of Brickyard's own has that name.
    """

    def register(call: Callable[[Evidence], Any]) -> Callable[[Evidence], Any]:
        check_new("criterion", name, call, CRITERIA[name].call if name in CRITERIA else None)
        CRITERIA[name] = Criterion(name, help, call, images, keeps)
        return call

    return register


@criterion("mda", help="the relevances of the task's classes, as in the paper", images=False)
def relevances(evidence: Evidence) -> Tensor:
    """Highest relevance of a channel for any class of the task."""
    assert evidence.relevance is not None
    return mda_scores(evidence.relevance, evidence.task)


@criterion("damage", help="what the refit cannot repair, measured on images held back; the most accurate", keeps=True)
def damage(evidence: Evidence) -> Selected:
    """Channels whose loss the refit cannot repair."""
    shown = Shown(evidence.batches, evidence.held, evidence.seed, evidence.near)
    if evidence.budget.agreement is not None:
        given = evidence.budget, evidence.ridge, evidence.agreement
        return by_agreement(evidence.graph, shown, evidence.outputs, *given)
    return by_damage(evidence.graph, shown, evidence.outputs, evidence.budget, evidence.ridge)


@criterion("l1", help="the L1 norm of the weights that write a channel", images=False)
def magnitude(evidence: Evidence) -> Tensor:
    """L1 norm of the weights that write a channel (Li et al., "Pruning Filters for Efficient ConvNets", 2017)."""
    graph = evidence.graph
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    for _, node, layer in iter_layers(graph.network):
        writes, mixing = graph.at(node.target, "out"), find_mixing(layer)
        if writes is not None and mixing is not None:
            norms = mixing.rows.double().flatten(1).abs().sum(1).cpu()
            scores.index_add_(0, torch.from_numpy(writes), norms)
    return scores


@criterion("fpgm", help="FPGM: how far a channel's weights are from those of the others", images=False)
def median_distance(evidence: Evidence) -> Tensor:
    """FPGM (He et al., 2019, arXiv 1811.00250): sum of a filter's distances from all filters of its layer.

    Filters near the geometric median of a layer can be replaced by the others.
    """
    graph = evidence.graph
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    for _, node, layer in iter_layers(graph.network):
        writes, mixing = graph.at(node.target, "out"), find_mixing(layer)
        if writes is not None and mixing is not None:
            filters = mixing.rows.double().flatten(1)
            scores.index_add_(0, torch.from_numpy(writes), torch.cdist(filters, filters).sum(1).cpu())
    return scores


@criterion("hrank", help="HRank: the mean rank of a channel's feature maps")
def feature_rank(evidence: Evidence) -> Tensor:
    """HRank (Lin et al., 2020, arXiv 2002.10179): mean rank of a channel's values (height, width) as a matrix.

    It is measured where layers read the channel, on the first images; single values have rank 1 unless they are 0.
    """
    graph = evidence.graph
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    left = RANKED
    with torch.no_grad():
        for batch in evidence.batches:
            batch, left = batch[:left], left - len(batch[:left])
            if not len(batch):
                break
            for reads, x, dim in _read(graph, [batch]):
                maps = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2) if dim == -1 else x
                maps = maps.unsqueeze(3) if maps.ndim == 3 else maps.flatten(3)
                ranks = torch.linalg.matrix_rank(maps.float()).double().sum(0).cpu()
                scores.index_add_(0, reads, ranks.reshape(-1, len(reads)).sum(0))
    return scores


@criterion("activation", help="the mean size of a channel's values")
def activation(evidence: Evidence) -> Tensor:
    """Mean magnitude of a channel's values where layers read them."""
    graph = evidence.graph
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    with torch.no_grad():
        for reads, x, dim in _read(graph, evidence.batches):
            scores.index_add_(0, reads, _per_channel(x.abs(), dim, len(reads)))
    return scores


@criterion("taylor", help="the first-order change of the loss without a channel")
def taylor(evidence: Evidence) -> Tensor:
    """First-order change of the loss without a channel (Molchanov et al., 2017): |sum of value times gradient|.

    The loss is that of the task's logits, with the source's own answers as labels.
    """
    graph = evidence.graph
    kind = find_outputs("one" if evidence.relevance is None else evidence.relevance.outputs)
    scores = torch.zeros(graph.channels, dtype=torch.float64)
    for batch in evidence.batches:
        with torch.enable_grad(), gradients("select='mda' or another criterion that needs none"):
            answer: list[Tensor] = []
            found = _read(graph, [batch.clone().requires_grad_()], answer)
            read = [(reads, x, dim) for reads, x, dim in found if x.requires_grad]
            logits = answer[0][:, list(evidence.outputs)]
            loss = kind.loss(logits, kind.own_targets(logits.detach())) * len(batch)
            slopes = torch.autograd.grad(loss, [x for _, x, _ in read], allow_unused=True)
        for (channels, x, dim), slope in zip(read, slopes, strict=True):
            if slope is not None:
                scores.index_add_(0, channels, _per_channel(x.detach() * slope, dim, len(channels)))
    return scores


@criterion("random", help="random numbers, for comparison", images=False)
def random(evidence: Evidence) -> Tensor:
    """Numbers drawn with the seed."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return torch.rand(evidence.graph.channels, dtype=torch.float64, generator=generator)


def _read(
    graph: Graph, batches: Sequence[Tensor], answers: list[Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield what every layer reads on every batch: channel indices, values, and the dimension that holds channels.

    The network's outputs are appended to `answers`.
    """
    for batch in batches:
        for _, node, values in graph.network.walk(batch):
            reads = graph.at(node.target, "in") if node.op == "layer" else None
            mixing = find_mixing(graph.network.layer(node.target)) if reads is not None else None
            if reads is not None and mixing is not None:
                yield torch.from_numpy(reads), values[node.args[0].node], mixing.channel_dim
        if answers is not None:
            answers.append(values[node.name])


def _per_channel(x: Tensor, dim: int, channels: int) -> Tensor:
    """Magnitudes of the sums over positions, summed over images (and over groups that are cut alike): (channels,)."""
    if x.ndim > 2:
        x = x.flatten(1, -2).sum(1) if dim == -1 else x.flatten(2).sum(2)
    return x.abs().sum(0).double().cpu().reshape(-1, channels).sum(0)
