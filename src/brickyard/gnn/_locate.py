"""Component locating in graph networks: which features, channels and heads matter for which class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.base._errors import DataError, OptionError, TaskError
from brickyard.base._options import Thresholds
from brickyard.base._records import LocateRecord
from brickyard.gnn._network import Edges, GraphNetwork, NodeData
from brickyard.gnn._reading import read_network
from brickyard.network._identity import fingerprint
from brickyard.relevance._allocation import LayerRecord, allocate
from brickyard.relevance._contribution import ContributionSums
from brickyard.runtime._progress import bar


@dataclass(eq=False, kw_only=True)
class GraphRelevance:
    """Which channels of a graph network matter for which class; made by `locate`.

    Attributes:
        classes: Names of the source's classes.
        thresholds: What `relevant` uses.
        sums: For each layer S, the clamped contributions summed over the nodes of each class and over the channels of
            each input unit: (classes, outputs, input units).
        record: Which nodes were used.
        source_sha256: Fingerprint of the source's weights.
        source_name: What the source is called.
        parameters: Numbers in the source's parameters.
        network: The source as it was read.
        data: The graph.
        nodes: The nodes that were used.
    """

    classes: tuple[str, ...]
    thresholds: Thresholds
    sums: dict[str, Tensor]
    record: LocateRecord
    source_sha256: str
    source_name: str
    parameters: int
    network: GraphNetwork = field(repr=False)
    data: NodeData = field(repr=False)
    nodes: Tensor = field(repr=False)

    def scores(self, task: Sequence[int], thresholds: Thresholds | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """For each axis: what is relevant for any class of a task, (units,) bool; and how much, (units,) in float64.

        Contribution allocation and parameter linking are those of images (`brickyard.relevance._allocation.allocate`).
        """
        axes = self.network.axes()
        starts = np.cumsum([0, *(axis.units for axis in axes)])
        records = {
            name: LayerRecord(
                reads=np.arange(starts[i], starts[i + 1]),
                writes=starts[i + 1] + np.repeat(np.arange(axes[i + 1].units), axes[i + 1].size),
                linear=layer.spec.gather == ("self",),
            )
            for i, (name, layer) in enumerate(zip(self.network.names, self.network.steps(), strict=True))
        }
        nothing = torch.zeros(int(starts[-1]), dtype=torch.bool)
        found: list[tuple[Tensor, Tensor]] = []
        for k in task:
            written = nothing.clone()
            written[int(starts[-2]) + k] = True
            sums = {name: value[k] for name, value in self.sums.items()}
            one = allocate(records, sums, (nothing, written), thresholds or self.thresholds)
            found.append((one.relevant, one.score))
        relevant = torch.stack([one for one, _ in found]).any(0)
        score = torch.stack([one for _, one in found]).amax(0)
        spans = [slice(int(a), int(b)) for a, b in itertools.pairwise(starts)]
        return {axis.name: (relevant[span], score[span]) for axis, span in zip(axes[:-1], spans[:-1], strict=True)}

    def relevant(self, axis: str, task: Sequence[int]) -> Tensor:
        """Relevant units of an axis for any class of a task: bool, (units,).

        Raises:
            OptionError: There is no such axis.
        """
        found = self.scores(task)
        if axis not in found:
            raise OptionError(
                "option-not-located", f"axis {axis!r} was asked for; relevances exist for {', '.join(found)}"
            )
        return found[axis][0]


def locate(
    model: nn.Module,
    data: Any,
    *,
    nodes: Any = None,
    classes: Sequence[str] | None = None,
    thresholds: Thresholds | None = None,
    name: str | None = None,
) -> GraphRelevance:
    """Find out which features, channels and heads of a graph network matter for which class.

    Channel j contributes `W[i, j] * (A x)[v, j]` to channel i at node v, where A is how the layer's nodes gather from
    their neighbours (attention as the source computes it). Contributions are clamped node by node and summed over the
    nodes of a class; a head's are those of its channels.

    Args:
        model: The source: layers of PyTorch Geometric one after the other.
        data: The graph: `(x, edge_index, labels)`, or a `torch_geometric.data.Data` with `y`. Labels are indices into
            the source's classes.
        nodes: Nodes to locate with, a mask or indices: some that the source was trained on. Default: the data's
            `train_mask`.
        classes: Names of the source's classes; default: "0", "1", ...
        thresholds: Thresholds of `relevant`; the first pair is that of the graph layers.
        name: What to call the source; default: the name of its class.

    Raises:
        TraceError: The source cannot be read.
        DataError: The graph, its labels or the nodes cannot be used, or a class has no node.
        TaskError: Names do not fit the source's outputs.
        OptionError: PyTorch Geometric is missing, or no nodes were given.

    Example:
        >>> from brickyard.gnn import locate, random_network
        >>> from brickyard.testing import random_graph
        >>> relevance = locate(random_network("gcn", 12, 8, 4), random_graph(), nodes=range(40))
        >>> relevance.sums["conv2"].shape, relevance.relevant("conv1", [0]).shape
        (torch.Size([4, 4, 8]), torch.Size([8]))
    """
    graph = NodeData.of(data)
    network = read_network(model, graph, data)
    count = network.axes()[-1].units
    names = tuple(map(str, classes if classes is not None else range(count)))
    if len(names) != count or len(set(names)) != count:
        raise TaskError(
            "task-class-count", f"{len(set(names))} different class names were given and the source has {count} outputs"
        )
    chosen = _nodes(graph, nodes, names)
    assert graph.labels is not None
    by_class = [chosen[graph.labels[chosen] == k] for k in range(count)]
    return GraphRelevance(
        classes=names,
        thresholds=thresholds or Thresholds(),
        sums=_sums(network, graph, by_class),
        record=LocateRecord(
            choose="all",
            per_class=None,
            seed=0,
            images=tuple(map(len, by_class)),
            data=f"{len(graph.x)} nodes, {graph.edge_index.shape[1]} edges",
        ),
        source_sha256=fingerprint(model),
        source_name=name or type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        network=network,
        data=graph,
        nodes=chosen,
    )


def _nodes(graph: NodeData, nodes: Any, names: Sequence[str]) -> Tensor:
    if graph.labels is None:
        raise DataError(
            "data-no-labels", "nodes need labels to locate with; give (x, edge_index, labels), or data with y"
        )
    if nodes is None and graph.train is None:
        raise OptionError(
            "option-needs-data", "nodes to locate with are needed: give nodes=, some that the source was trained on"
        )
    chosen = graph.chosen(graph.train if nodes is None else nodes, "the nodes to locate with")
    labels = graph.labels[chosen]
    if int(labels.min()) < 0 or int(labels.max()) >= len(names):
        raise DataError(
            "data-label-out-of-range",
            f"labels run from {int(labels.min())} to {int(labels.max())}; the source has classes 0 to {len(names) - 1}",
        )
    missing = [name for k, name in enumerate(names) if not bool((labels == k).any())]
    if missing:
        raise DataError(
            "data-class-without-images",
            f"class {missing[0]!r} has no node among {len(labels)}; give at least one of each class",
        )
    return chosen


def _sums(network: GraphNetwork, graph: NodeData, by_class: Sequence[Tensor]) -> dict[str, Tensor]:
    """S of every layer: (classes, outputs, input units)."""
    found: dict[str, Tensor] = {}
    edges = Edges.of(graph.edge_index, len(graph.x))
    x = graph.x[:, network.columns]
    steps = network.steps()
    with torch.no_grad(), bar("locating", len(steps)) as advance:
        for name, layer, axis in zip(network.names, steps, network.axes(), strict=False):
            conv = layer.convolution()
            sums: list[Tensor] = []
            for nodes in by_class:
                total = ContributionSums(conv)
                total.add(layer.gathered(x, edges, nodes.to(x.device)))
                sums.append(total.dense().unflatten(1, (axis.units, axis.size)).sum(2).cpu())
            found[name] = torch.stack(sums)
            x = layer(x, edges)
            advance(text=f"locating {name}")
    return found
