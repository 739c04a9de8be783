"""Read a trained graph network of PyTorch Geometric: a stack of layers that are known, with activations between.

What was read is run beside the source on the graph at hand, and must say the same: an option that nobody thought of is
an error, and no wrong component.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from brickyard.axes._places import advice_for, after, line_of_error
from brickyard.base._errors import TraceError
from brickyard.base._interrupts import Held
from brickyard.base._lazy import package
from brickyard.base._messages import first_line
from brickyard.gnn._network import FEATURES, Gather, GraphLayerSpec, GraphNetwork, NodeData, NodeLayer
from brickyard.network._untouched import guarded

KNOWN = "GCNConv, SAGEConv (mean or sum), GATConv and Linear, with BatchNorm, ReLU, ELU and dropout between"
_HOMES = ("torch.nn", "torch_geometric.nn.conv", "torch_geometric.nn.dense", "torch_geometric.nn.norm")
_SAME = 1e-3  # of the spread of the logits: what a source in float32 may differ by
_SKIPPED = {F.dropout, torch.dropout, "contiguous", nn.Dropout, nn.Identity}
_ENDS = {F.log_softmax, torch.log_softmax, F.softmax, torch.softmax, "log_softmax", "softmax", nn.LogSoftmax}
_ACTIVATIONS: dict[Any, str] = {F.relu: "relu", torch.relu: "relu", "relu": "relu", nn.ReLU: "relu"}
_ACTIVATIONS |= {F.elu: "elu", nn.ELU: "elu"}


@guarded
def read_network(model: nn.Module, data: NodeData, original: Any = None) -> GraphNetwork:
    """A source as layers in one form; the source is not changed.

    The model takes `(x, edge_index)` or one `Data`, of which `original` is one. What was read must say what the source
    says on `data`, a graph that it was made for.
    """
    if isinstance(model, GraphNetwork):
        return model
    package("torch_geometric.nn", "graphs", "a source of PyTorch Geometric")
    if not isinstance(model, nn.Module):
        raise TraceError("trace-not-module", f"a source must be a torch.nn.Module, got {type(model).__name__}")
    network = _Reading(model).network()
    _compare(model, network, data, original)
    return network


def _compare(model: nn.Module, network: GraphNetwork, data: NodeData, original: Any) -> None:
    twin = copy.deepcopy(model)  # its layers may keep what they computed
    one = len(_required(model)) == 1
    with torch.no_grad():
        try:
            said = twin(original) if one else twin(data.x, data.edge_index)
        except Exception as error:
            what = "the data" if one else "(x, edge_index)"
            why = f"{type(model).__name__} does not run on {what}{after(line_of_error(error))}: {first_line(error)}"
            raise TraceError("trace-run-failed", why) from None
        found = network(data.x, data.edge_index)
    if not isinstance(said, Tensor) or said.shape != found.shape:
        raise TraceError("trace-output", f"{type(model).__name__} does not return one row of logits per node")
    theirs, ours = said.double(), found.double()
    if bool((theirs.exp().sum(1) - 1).abs().max() < 1e-4):  # it ends in a log-softmax
        ours = ours.log_softmax(1)
    elif bool((theirs >= 0).all()) and bool((theirs.sum(1) - 1).abs().max() < 1e-4):
        ours = ours.softmax(1)
    gap, spread = (ours - theirs).abs().max().item(), theirs.std().item()
    if not gap <= _SAME * max(spread, 1e-12):
        why = f"{type(model).__name__} was read as {', '.join(network.names)}, but computes something else"
        found = f"logits differ by {gap:.2g} at a spread of {spread:.2g}"
        raise TraceError("trace-mismatch", f"{why}: {found}. A layer has an unsupported option; supported are {KNOWN}")


def _required(model: nn.Module) -> list[str]:
    """Names of the arguments that have no default."""
    found = inspect.signature(model.forward).parameters.values()
    return [p.name for p in found if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


class _Tracer(fx.Tracer):
    """Stops at the layers of both libraries."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        holds = isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        return not holds and type(m).__module__.startswith(_HOMES)


@dataclass
class _Found:
    """A layer on the way: what it is and its numbers."""

    name: str
    spec: GraphLayerSpec
    tensors: dict[str, Tensor]


class _Reading:
    """Walks from the output back to the features, then builds the layers in order."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.kind = model, type(model).__name__
        self.found: list[_Found] = []
        self.ended = False  # by a softmax

    def network(self) -> GraphNetwork:
        for node in self._chain():
            self._step(node)
        if not self.found:
            raise TraceError("trace-graph-layers", f"{self.kind} has no supported layer; supported are {KNOWN}")
        last = self.found[-1].spec
        if last.groups > 1 or last.activation != "none":
            why = "concatenates heads" if last.groups > 1 else f"is followed by {last.activation}"
            why = f"{self.kind}: its last layer {self.found[-1].name!r} {why}"
            advice = "a classifier ends in one logit per class (GATConv: concat=False, or one head)"
            raise TraceError("trace-graph-layers", f"{why}; {advice}")
        layers = [NodeLayer(one.spec, one.tensors) for one in self.found]
        names = [one.name if one.name != FEATURES else f"{FEATURES}_" for one in self.found]
        columns = torch.arange(layers[0].spec.inputs, device=layers[0].weight.device)
        return GraphNetwork(layers, names, columns)

    def _chain(self) -> list[fx.Node]:
        """The steps from the features to the logits."""
        given = inspect.signature(self.model.forward).parameters.values()
        optional = {p.name: p.default for p in given if p.default is not p.empty}
        try:
            with Held(long=True):
                graph = _Tracer().trace(self.model, concrete_args=optional or None)
        except Exception as error:
            why = f"{self.kind} cannot be traced{after(line_of_error(error))}: {first_line(error)}"
            raise TraceError("trace-control-flow", f"{why}; {advice_for(why)}") from None
        output = next(node for node in graph.nodes if node.op == "output").args[0]
        chain: list[fx.Node] = []
        while isinstance(output, fx.Node) and output.op != "placeholder":
            if _is_feature(output):
                return chain[::-1]
            chain.append(output)
            output = output.args[0] if output.args else None
        if not isinstance(output, fx.Node):
            why = f"{self.kind} does not lead step by step from the features to one output"
            raise TraceError("trace-graph-layers", why)
        return chain[::-1]

    def _step(self, node: fx.Node) -> None:
        inputs = [
            value for value in node.all_input_nodes if value.op in ("call_module", "call_function", "call_method")
        ]
        if len([value for value in inputs if not _is_feature(value, "edge_index")]) > 1:
            raise self._unknown(node, "joins two values")
        if self.ended:
            raise self._unknown(node, "comes after a softmax")
        module: Any = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind: Any = node.target if module is None else type(module)
        numbers = [value for value in (*node.args[1:2], *node.kwargs.values()) if type(value) in (int, float)]
        if kind in _ENDS:
            self.ended = True
        elif kind in _ACTIVATIONS:
            if any(value != 1 for value in (*numbers, getattr(module, "alpha", 1))):
                raise self._unknown(node, "has an alpha other than 1")
            if not self.found or self.found[-1].spec.activation != "none":
                raise self._unknown(node, "does not follow a layer")
            self.found[-1].spec = self.found[-1].spec.model_copy(update={"activation": _ACTIVATIONS[kind]})
        elif module is not None and kind.__name__ in ("BatchNorm1d", "BatchNorm"):
            self._fold(module if kind is nn.BatchNorm1d else module.module, node)
        elif module is not None and kind.__name__ in _LAYERS and kind.__module__.startswith(_HOMES):
            if str(node.target) in [one.name for one in self.found]:
                raise self._unknown(node, "runs twice")
            read = _LAYERS[kind.__name__](module, lambda why: self._unknown(node, why))
            self.found.append(_Found(str(node.target), *read))
        elif kind not in _SKIPPED:
            raise self._unknown(node, "is not known")

    def _fold(self, norm: nn.BatchNorm1d, node: fx.Node) -> None:
        """Put a batch norm into the layer before it."""
        if not self.found or self.found[-1].spec.activation != "none" or norm.running_var is None:
            raise self._unknown(node, "does not follow a layer directly, or keeps no statistics")
        one = self.found[-1]
        assert norm.running_mean is not None
        scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.detach())
        shift = (0.0 if norm.bias is None else norm.bias.detach()) - norm.running_mean * scale
        one.tensors["weight"] = one.tensors["weight"] * scale.reshape(one.spec.groups, 1, -1, 1)
        one.tensors["bias"] = shift + scale * one.tensors.get("bias", torch.zeros_like(scale))
        one.spec = one.spec.model_copy(update={"bias": True})

    def _unknown(self, node: fx.Node, why: str) -> TraceError:
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            what = f"layer {node.target!r} ({type(module).__name__})"
        else:
            what = f"operation {getattr(node.target, '__name__', node.target)!r}"
        return TraceError("trace-graph-layers", f"{self.kind}: {what} {why}; supported are {KNOWN}")


def _is_feature(node: fx.Node, name: str = "x") -> bool:
    """Whether a node is an attribute of a graph that came as one object."""
    return node.op == "call_function" and node.target is getattr and node.args[1:2] == (name,)


# -- layers of PyTorch Geometric ---------------------------------------------------------------------------


Refuse = Callable[[str], TraceError]
Read = tuple[GraphLayerSpec, dict[str, Tensor]]


def _check(module: nn.Module, refuse: Refuse, **expected: Any) -> None:
    for name, value in expected.items():
        found = getattr(module, name, value)
        if found != value:
            raise refuse(f"has {name}={found!r}, which is not known")


def _read(gather: Sequence[Gather], weight: Tensor, bias: Tensor | None, **more: Any) -> Read:
    """A layer with a weight (groups, ways, outputs, inputs), and what attention has more."""
    groups, _, outputs, inputs = weight.shape
    given = {"weight": weight, "bias": bias, "source": more.pop("source", None), "target": more.pop("target", None)}
    more |= {"groups": groups, "outputs": outputs, "inputs": inputs, "bias": bias is not None}
    tensors = {name: value.detach() for name, value in given.items() if value is not None}
    return GraphLayerSpec(gather=tuple(gather), **more), tensors


def _linear(module: Any, refuse: Refuse) -> Read:
    return _read(["self"], module.weight[None, None], module.bias)


def _gcn(module: Any, refuse: Refuse) -> Read:
    _check(module, refuse, aggr="add", flow="source_to_target", improved=False)
    if module.normalize and not module.add_self_loops:
        raise refuse("has add_self_loops=False with normalize=True, which is not known")
    return _read(["gcn" if module.normalize else "sum"], module.lin.weight[None, None], module.bias)


def _sage(module: Any, refuse: Refuse) -> Read:
    ways: dict[str, Gather] = {"mean": "mean", "sum": "sum", "add": "sum"}
    if module.aggr not in ways:
        raise refuse(f"has aggr={module.aggr!r}; contributions need a sum or a mean")
    _check(module, refuse, flow="source_to_target", normalize=False, project=False)
    gather, weights = [ways[module.aggr]], [module.lin_l.weight]
    if module.root_weight:
        gather, weights = [*gather, "self"], [*weights, module.lin_r.weight]
    return _read(gather, torch.stack(weights)[None], module.lin_l.bias)


def _gat(module: Any, refuse: Refuse) -> Read:
    _check(module, refuse, aggr="add", flow="source_to_target", res=None, edge_dim=None)
    if module.lin is None:
        raise refuse("has two kinds of nodes, which is not known")
    heads = module.heads
    weight = module.lin.weight.unflatten(0, (heads, module.out_channels))  # (H, C, P)
    more: dict[str, Any] = {"slope": module.negative_slope, "loops": module.add_self_loops}
    for name, short in (("source", "src"), ("target", "dst")):
        more[name] = torch.einsum("hc,hcp->hp", getattr(module, f"att_{short}")[0], weight)
    if module.concat:
        return _read(["attention"], weight.unsqueeze(1), module.bias, **more)
    return _read(["attention"] * heads, weight.unsqueeze(0) / heads, module.bias, **more)


_LAYERS = {"Linear": _linear, "GCNConv": _gcn, "SAGEConv": _sage, "GATConv": _gat}
