"""Graph networks in one form: every layer is a convolution over what its nodes gather from their neighbours.

A node gathers its neighbours' features in one or several ways: the normalised sum of a GCN, the mean of GraphSAGE, its
own features, or a sum weighted by an attention head. Channel j of what it gathers is multiplied by W[i, j] and summed:
the linear form that contributions need. Ways whose results are added are like the positions of a kernel; heads whose
results are concatenated are like the groups of a grouped convolution. So locating and the refit, which know
convolutions, serve graph networks as they are.

Attention is held folded: the score of a head is a vector times the layer's *input*, so that outputs can be cut without
a change of the attention.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from brickyard.base._errors import DataError
from brickyard.base._frozen import Frozen
from brickyard.network._shown import Shown
from brickyard.testing import randomised

FEATURES = "features"  # the axis that the first layer reads
Size = Annotated[int, Field(ge=1, le=1 << 24)]


# -- graphs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NodeData:
    """A graph whose nodes are classified.

    Attributes:
        x: Features, (nodes, features), floating point.
        edge_index: (2, edges), whole numbers: edges run from the first row's nodes to the second's.
        labels: The class of each node, (nodes,), or None.
        train: Which nodes were trained on, a mask (nodes,), or None where the data does not say.
    """

    x: Tensor
    edge_index: Tensor
    labels: Tensor | None = None
    train: Tensor | None = None

    @classmethod
    def of(cls, data: Any) -> NodeData:
        """Read `(x, edge_index)`, `(x, edge_index, labels)`, or an object with `x`, `edge_index`, `y`, `train_mask`.

        Raises:
            DataError: It is none of these, or the parts do not fit each other.
        """
        if isinstance(data, cls):
            return data
        if isinstance(data, tuple | list) and len(data) in (2, 3):
            found = cls(*data)
        elif hasattr(data, "x") and hasattr(data, "edge_index"):
            found = cls(data.x, data.edge_index, getattr(data, "y", None), getattr(data, "train_mask", None))
        else:
            wanted = "(x, edge_index), (x, edge_index, labels) or a torch_geometric Data"
            raise DataError("data-type", f"a graph must be {wanted}, got a {type(data).__name__}")
        if not isinstance(found.x, Tensor) or found.x.ndim != 2 or not found.x.is_floating_point():
            raise DataError("data-graph", "features of a graph must be a floating-point tensor (nodes, features)")
        Edges.of(found.edge_index, len(found.x))
        if found.labels is not None and (found.labels.shape != (len(found.x),) or found.labels.is_floating_point()):
            shape = f"{tuple(found.labels.shape)} for {len(found.x)} nodes"
            raise DataError("data-label-mismatch", f"labels must be one integer per node, got {shape}")
        return found

    def like(self, model: Any) -> NodeData:
        """The same graph with features of the type that a model's weights have."""
        weights = list(model.parameters()) if isinstance(model, nn.Module) else []
        return replace(self, x=self.x.to(weights[0].dtype)) if weights else self

    def chosen(self, nodes: Any, what: str) -> Tensor:
        """Node indices from a mask or from indices, (chosen,).

        Raises:
            DataError: There is none, or one is outside the graph.
        """
        found = torch.as_tensor(nodes).cpu()
        if found.dtype == torch.bool:
            if found.shape != (len(self.x),):
                raise DataError("data-graph", f"{what}: a mask {tuple(found.shape)} was given for {len(self.x)} nodes")
            found = found.nonzero().flatten()
        if found.ndim != 1 or not len(found) or found.is_floating_point():
            raise DataError("data-graph", f"{what}: give a mask or a list of node indices, with at least one node")
        if int(found.min()) < 0 or int(found.max()) >= len(self.x):
            asked = f"{what}: got nodes {int(found.min())} to {int(found.max())}"
            raise DataError("data-index-out-of-range", f"{asked}, but the graph has {len(self.x)}")
        return found.long()


def disjoint(graphs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Several graphs as one that an assembly with `shared_input=False` takes.

    Nodes come graph after graph. Each graph's features have columns of their own; the others' are zero.

    Example:
        >>> import torch
        >>> from brickyard.gnn import disjoint
        >>> x, edge_index = disjoint([(torch.ones(2, 3), torch.tensor([[0], [1]]))] * 2)
        >>> x.shape, edge_index.tolist()
        (torch.Size([4, 6]), [[0, 2], [1, 3]])
    """
    found = [NodeData.of(graph) for graph in graphs]
    offsets = [sum(len(g.x) for g in found[:i]) for i in range(len(found))]
    edges = torch.cat([g.edge_index + offset for g, offset in zip(found, offsets, strict=True)], 1)
    return torch.block_diag(*(g.x for g in found)), edges


@dataclass(frozen=True)
class Spread:
    """A linear map between nodes: along each edge, from its source to its target, with a weight."""

    source: Tensor
    target: Tensor
    weight: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """What all nodes receive: (nodes, n) -> (nodes, n)."""
        return torch.zeros_like(y).index_add(0, self.target, self.weight.unsqueeze(1) * y[self.source])

    def to(self, y: Tensor, nodes: Tensor) -> Tensor:
        """What some nodes receive: (nodes, n) -> (chosen, n)."""
        place = torch.full((len(y),), -1, device=y.device)
        place[nodes] = torch.arange(len(nodes), device=y.device)
        own = (place[self.target] >= 0).nonzero().flatten()
        found = y.new_zeros(len(nodes), y.shape[1])
        return found.index_add(0, place[self.target[own]], self.weight[own].unsqueeze(1) * y[self.source[own]])


@dataclass(frozen=True)
class Edges:
    """The edges of a graph with so many nodes."""

    source: Tensor
    target: Tensor
    count: int

    @classmethod
    def of(cls, edge_index: Tensor, count: int) -> Edges:
        """Edges from (2, edges) whole numbers.

        Raises:
            DataError: They are not, or a number is no node.
        """
        known = isinstance(edge_index, Tensor) and edge_index.dtype in (torch.int64, torch.int32)
        if not known or edge_index.ndim != 2 or len(edge_index) != 2:
            raise DataError("data-graph", "edge_index must be a tensor (2, edges) of integers")
        if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= count):
            found = f"edge_index refers to nodes {int(edge_index.min())} to {int(edge_index.max())}"
            raise DataError("data-index-out-of-range", f"{found}, but there are {count}")
        return cls(edge_index[0].long(), edge_index[1].long(), count)

    def looped(self) -> Edges:
        """With exactly one edge from each node to itself."""
        other = self.source != self.target
        own = torch.arange(self.count, device=self.source.device)
        return Edges(torch.cat([self.source[other], own]), torch.cat([self.target[other], own]), self.count)

    def degree(self, like: Tensor) -> Tensor:
        """Edges that arrive at each node, (nodes,)."""
        return like.new_zeros(self.count).index_add(0, self.target, like.new_ones(len(self.target)))

    def sum(self, like: Tensor) -> Spread:
        """Neighbours added up."""
        return Spread(self.source, self.target, like.new_ones(len(self.source)))

    def mean(self, like: Tensor) -> Spread:
        """The mean of the neighbours; zero where there is none."""
        return Spread(self.source, self.target, 1 / self.degree(like)[self.target])

    def normalised(self, like: Tensor) -> Spread:
        """A GCN's sum: the node itself and its neighbours, each over the root of the product of both degrees."""
        edges = self.looped()
        root = edges.degree(like).rsqrt()
        return Spread(edges.source, edges.target, root[edges.source] * root[edges.target])

    def attention(self, scores: Tensor) -> Tensor:
        """Softmax of the scores (edges, heads) over the edges that arrive at each node."""
        target = self.target.unsqueeze(1).expand_as(scores)
        start = scores.new_full((self.count, scores.shape[1]), -torch.inf)
        highest = start.scatter_reduce(0, target, scores, "amax")
        raised = (scores - highest[self.target]).exp()
        total = scores.new_zeros(self.count, scores.shape[1]).index_add(0, self.target, raised)
        return raised / total[self.target]


# -- layers ------------------------------------------------------------------------------------------------


Gather = Literal["gcn", "mean", "sum", "self", "attention"]
_ACTIVATIONS = {"none": nn.Identity(), "relu": nn.ReLU(), "elu": nn.ELU()}


class GraphLayerSpec(Frozen):
    """What a layer is, without its numbers.

    Attributes:
        gather: Ways to gather; their results are multiplied by weights of their own and added.
        groups: Attention heads whose outputs are concatenated; else 1.
        outputs: Output channels, of each group.
        inputs: Input channels.
        bias: Whether something is added to each output.
        activation: What follows.
        slope: Of the attention's leaky ReLU.
        loops: Whether attention sees the node itself.
    """

    gather: Annotated[tuple[Gather, ...], Field(min_length=1, max_length=4096)]
    groups: Annotated[int, Field(ge=1, le=4096)] = 1
    outputs: Size
    inputs: Size
    bias: bool = True
    activation: Literal["none", "relu", "elu"] = "none"
    slope: float = 0.2
    loops: bool = True

    @model_validator(mode="after")
    def _attention_is_alone(self) -> GraphLayerSpec:
        heads = self.gather.count("attention")
        if heads not in (0, len(self.gather)) or (self.groups > 1 and not heads):
            raise ValueError("attention does not go with other ways to gather, and groups are attention heads")
        return self

    @property
    def attends(self) -> bool:
        """Whether its nodes gather by attention."""
        return self.gather[0] == "attention"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the layer's tensors."""
        ways = len(self.gather)
        bias = {"bias": (self.width,)} if self.bias else {}
        heads = {name: (self.groups * ways, self.inputs) for name in ("source", "target") if self.attends}
        return {"weight": (self.groups, ways, self.outputs, self.inputs), **bias, **heads}

    @property
    def width(self) -> int:
        """Output channels in all."""
        return self.groups * self.outputs

    @property
    def units(self) -> int:
        """How many things can be kept or dropped: whole heads where there are several side by side, else channels."""
        return self.groups if self.groups > 1 else self.outputs

    def channels(self, units: Tensor) -> Tensor:
        """The output channels of some units."""
        size = self.width // self.units
        return (units.unsqueeze(1) * size + torch.arange(size)).flatten()


class NodeLayer(nn.Module):
    """One layer of a graph network.

    Attributes:
        spec: What it is.
        weight: (groups, ways, outputs, inputs).
        bias: (groups * outputs,), or None.
        source: For each head, what the score of an edge takes from its source's features, (heads, inputs), or None.
        target: The same for its target.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    source: nn.Parameter | None
    target: nn.Parameter | None

    def __init__(self, spec: GraphLayerSpec, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.spec = spec
        found = tensors or {name: torch.zeros(shape) for name, shape in spec.shapes.items()}
        for name in ("weight", "bias", "source", "target"):
            value = found.get(name)
            self.register_parameter(name, None if value is None else nn.Parameter(value.detach().clone()))

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers."""
        return {name: value.detach() for name, value in self.named_parameters()}

    def spreads(self, x: Tensor, edges: Edges) -> list[Spread | None]:
        """How a node gathers: one map for each group and way, None for its own features."""
        spec = self.spec
        if not spec.attends:
            ways = {"gcn": edges.normalised, "mean": edges.mean, "sum": edges.sum}
            return [None if name == "self" else ways[name](x) for name in spec.gather]
        assert self.source is not None
        assert self.target is not None
        edges = edges.looped() if spec.loops else edges
        scores = (x @ self.source.T)[edges.source] + (x @ self.target.T)[edges.target]
        weights = edges.attention(F.leaky_relu(scores, spec.slope))
        return [Spread(edges.source, edges.target, weight) for weight in weights.unbind(1)]

    def linear(self, x: Tensor, edges: Edges) -> Tensor:
        """Outputs before the activation: (nodes, inputs) -> (nodes, groups * outputs)."""
        found = [x @ weight.T for weight in self.weight.flatten(0, 1)]  # all ways of a group, then of the next
        pairs = zip(found, self.spreads(x, edges), strict=True)
        found = [y if spread is None else spread(y) for y, spread in pairs]
        ways = len(self.spec.gather)
        total = torch.cat([sum(found[i + 1 : i + ways], found[i]) for i in range(0, len(found), ways)], 1)
        return total if self.bias is None else total + self.bias

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """(nodes, inputs) -> (nodes, groups * outputs)."""
        return self.activate(self.linear(x, edges))

    def activate(self, y: Tensor) -> Tensor:
        """What follows the linear form."""
        found: Tensor = _ACTIVATIONS[self.spec.activation](y)
        return found

    def gathered(self, x: Tensor, edges: Edges, nodes: Tensor) -> Tensor:
        """What some nodes gather, as `convolution` takes it: (chosen, groups * inputs, 1, ways)."""
        found = [x[nodes] if spread is None else spread.to(x, nodes) for spread in self.spreads(x, edges)]
        ways = len(self.spec.gather)
        stacked: Tensor = torch.stack(found, 1).unflatten(1, (-1, ways))  # (chosen, groups, ways, inputs)
        return stacked.transpose(2, 3).flatten(1, 2).unsqueeze(2)

    def convolution(self) -> nn.Conv2d:
        """The layer's linear form as a convolution over what is gathered."""
        groups, ways, outputs, inputs = self.weight.shape
        weight = self.weight.detach().permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(2)  # (G Q, P, 1, K)
        conv = nn.Conv2d(groups * inputs, groups * outputs, (1, ways), groups=groups, bias=False, device="meta")
        conv.weight = nn.Parameter(weight.clone(), requires_grad=False)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return conv

    def take(self, conv: nn.Conv2d) -> None:
        """Set the numbers to those of a `convolution`."""
        value = conv.weight.detach().squeeze(2).unflatten(0, (self.spec.groups, -1)).permute(0, 3, 1, 2)
        self.weight.data.copy_(value)
        if self.bias is not None and conv.bias is not None:
            self.bias.data.copy_(conv.bias)


# -- networks ----------------------------------------------------------------------------------------------


class GraphNetwork(Shown):
    """Layers one after the other, reading some columns of a table of features.

    Attributes:
        names: What the layers are called.
        columns: The features that are read, (inputs of the first layer,).

    Shapes:
        (nodes, features), (2, edges) -> (nodes, classes)
    """

    columns: Tensor

    def __init__(self, layers: Sequence[NodeLayer], names: Sequence[str], columns: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.names = tuple(names)
        self.register_buffer("columns", columns, persistent=False)
        self.eval()

    def steps(self) -> list[NodeLayer]:
        """The layers."""
        return [layer for layer in self.layers if isinstance(layer, NodeLayer)]

    def walk(self, x: Tensor, edge_index: Tensor) -> Iterator[tuple[str, NodeLayer, Tensor, Edges]]:
        """Run layer by layer: the name of each, itself, what it reads at all nodes, and the edges."""
        edges = Edges.of(edge_index, len(x))
        if int(self.columns.max()) >= x.shape[1]:
            found = f"the network reads feature {int(self.columns.max())}, but the nodes have only {x.shape[1]}"
            raise DataError("data-graph", f"{found}; give the features the source was trained on")
        x = x[:, self.columns]
        for index, (name, layer) in enumerate(zip(self.names, self.steps(), strict=True)):
            x = self.layers[index - 1](x, edges) if index else x
            yield name, layer, x, edges

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of all nodes."""
        ((_, layer, entering, edges),) = deque(self.walk(x, edge_index), maxlen=1)
        found: Tensor = layer(entering, edges)
        return found


def random_network(
    kind: Literal["gcn", "sage", "gat"], features: int, hidden: int, classes: int, *, heads: int = 2, seed: int = 0
) -> GraphNetwork:
    """A network of two layers with random numbers, for tests of your own.

    Between them are `hidden` channels; for "gat", as many of each of the `heads`.

    Example:
        >>> from brickyard.gnn import random_network
        >>> random_network("gat", 12, 4, 3).names
        ('conv1', 'conv2')
    """
    gather: tuple[Gather, ...] = {"gcn": ("gcn",), "sage": ("mean", "self"), "gat": ("attention",)}[kind]  # type: ignore[assignment]
    groups = heads if kind == "gat" else 1
    first = GraphLayerSpec(gather=gather, groups=groups, outputs=hidden, inputs=features, activation="relu")
    last = GraphLayerSpec(gather=gather, outputs=classes, inputs=groups * hidden)
    network = GraphNetwork([NodeLayer(first), NodeLayer(last)], ["conv1", "conv2"], torch.arange(features))
    return randomised(network, seed)
