"""The verbs: locate, cut a component out of a graph network, and join components."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Required, TypedDict, Unpack

import torch
from torch import Tensor, nn

from brickyard.assembly._assemble import assembly_manifest
from brickyard.base._declare import Opt, declared, verb
from brickyard.base._errors import DataError, OptionError, SurgeryError
from brickyard.base._options import AssembleOptions, Budget, DisassembleOptions, Duplicates, LocateOptions, Thresholds
from brickyard.base._records import HealRecord, LocateRecord
from brickyard.base._statistics import Statistics
from brickyard.component._disassemble import Choice
from brickyard.component._statistics import statistics_of
from brickyard.gnn._component import GraphAssembly, GraphComponent, columns_of
from brickyard.gnn._network import GraphNetwork, NodeData
from brickyard.gnn._reading import read_network
from brickyard.gnn._surgery import NodeGraph, cut, join, refit
from brickyard.network._untouched import guarded
from brickyard.outputs._kinds import ONE
from brickyard.relevance._contribution import ContributionSums
from brickyard.relevance._locate import output_names
from brickyard.relevance._relevance import Relevances
from brickyard.runtime._progress import bar
from brickyard.scaling._scale import Evidence
from brickyard.scaling._strategies import SCALINGS, find, scale
from brickyard.selection._budget import by_budget
from brickyard.selection._thresholds import by_thresholds, mda_scores

_LOCATE, _CUT, _JOIN = declared(LocateOptions), declared(DisassembleOptions), declared(AssembleOptions)


# -- locating ----------------------------------------------------------------------------------------------


class GraphLocateOptions(TypedDict, total=False):
    """Options of `locate`."""

    nodes: Annotated[
        Any, Opt(default=None, help="Locate with these nodes, a mask or indices.", unset="the data's train_mask")
    ]
    classes: Annotated[Sequence[str] | None, _LOCATE["classes"]]
    thresholds: Annotated[Thresholds | None, _LOCATE["thresholds"]]
    name: Annotated[str | None, _LOCATE["name"]]


@dataclass(eq=False, kw_only=True)
class GraphRelevance(Relevances):
    """Which channels of a graph network matter for which class; made by `locate`.

    Its axes are those of features, channels and whole heads; `sum` has the contributions of all channels of a head.

    Attributes:
        nodes: The nodes that were used.
    """

    sum_dtype: ClassVar[torch.dtype] = torch.float64
    nodes: Tensor = field(repr=False)

    def graph(self, model: nn.Module, features: bool = True) -> NodeGraph:
        """The source with its axes; `features` says whether these may be cut."""
        self.check_source(model)
        return NodeGraph(self._graph.network, self._graph.data, self._graph.parameters, features)


@guarded
@verb(GraphLocateOptions)
def locate(model: nn.Module, data: Any, **options: Unpack[GraphLocateOptions]) -> GraphRelevance:
    """Find out which features, channels and heads of a graph network matter for which class.

    Channel j contributes `W[i, j] * (A x)[v, j]` to channel i at node v, where A is how the layer's nodes gather from
    their neighbours (attention as the source computes it). Contributions are clamped node by node and summed over the
    nodes of a class; a head's are those of its channels.

    Args:
        model: The source: layers of PyTorch Geometric one after the other.
        data: The graph: `(x, edge_index, labels)`, or a `torch_geometric.data.Data` with `y`. Labels are indices into
            the source's classes.

    Raises:
        TraceError: The source cannot be read.
        DataError: The graph, its labels or the nodes cannot be used, or a class has no node.
        TaskError: Names do not fit the source's outputs.
        OptionError: PyTorch Geometric is missing, or no nodes were given.

    Example:
        >>> from brickyard.gnn import locate, random_network
        >>> from brickyard.testing import random_graph
        >>> relevance = locate(random_network("gcn", 12, 8, 4), random_graph(), nodes=range(40))
        >>> relevance.sum("conv2").shape, relevance.relevant("conv1").shape
        (torch.Size([4, 4, 8]), torch.Size([4, 8]))
    """
    found = NodeData.of(data).like(model)
    graph = NodeGraph(read_network(model, found, data), found, sum(p.numel() for p in model.parameters()))
    count = graph.axes[-1].size
    names = output_names(options["classes"], count)
    chosen = _nodes(found, options["nodes"], names)
    assert found.labels is not None
    by_class = [chosen[ONE.members(found.labels[chosen], k)] for k in range(count)]
    data = f"{len(found.x)} nodes, {found.edge_index.shape[1]} edges"
    record = LocateRecord(choose="all", per_class=None, seed=0, images=tuple(map(len, by_class)), data=data)
    more: dict[str, Any] = {"classes": names, "task": tuple(range(count)), "nodes": chosen, "sums": {}, "_graph": graph}
    relevance = GraphRelevance.blank(model, graph, graph.layers, options, record, **more)
    for k, sums in enumerate(_sums(graph, by_class)):
        relevance.add_class(k, sums, graph)
    return relevance


def _nodes(graph: NodeData, nodes: Any, names: Sequence[str]) -> Tensor:
    if graph.labels is None:
        raise DataError("data-no-labels", "locate needs labelled nodes; give (x, edge_index, labels), or data with y")
    if nodes is None and graph.train is None:
        raise OptionError("option-needs-data", "locate needs nodes; give nodes= with some the source was trained on")
    chosen = graph.chosen(graph.train if nodes is None else nodes, "the nodes to locate with")
    labels = graph.labels[chosen]
    ONE.check_labels(labels, len(names))
    missing = [name for k, name in enumerate(names) if not bool(ONE.members(labels, k).any())]
    if missing:
        why = f"none of the {len(labels)} labelled nodes is of class {missing[0]!r}"
        raise DataError("data-class-without-images", f"{why}; give at least one per class")
    return chosen


def _sums(graph: NodeGraph, by_class: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """For each class, S of every layer: (outputs, input units)."""
    found: list[dict[str, Tensor]] = [{} for _ in by_class]
    network, data = graph.network, graph.data
    with torch.no_grad(), bar("locating", len(network.names)) as advance:
        steps = network.walk(data.x, data.edge_index)
        for (name, layer, x, edges), axis in zip(steps, graph.axes, strict=False):
            conv = layer.convolution()
            for sums, nodes in zip(found, by_class, strict=True):
                total = ContributionSums(conv)
                total.add(layer.gathered(x, edges, nodes.to(x.device)))
                sums[name] = total.dense().unflatten(1, (axis.size, -1)).sum(2).cpu()
            advance(text=f"locating {name}")
    return found


# -- disassembling -----------------------------------------------------------------------------------------


class GraphDisassembleOptions(TypedDict, total=False):
    """Options of `disassemble`."""

    task: Required[Annotated[Sequence[int | str] | Mapping[str, Any], _CUT["task"]]]
    thresholds: Annotated[Thresholds | None, _CUT["thresholds"]]
    budget: Annotated[Budget | None, _CUT["budget"]]
    select: Annotated[
        Literal["mda", "random"], Opt(default="mda", help="Keep the relevant units, or as many at random")
    ]
    features: Annotated[bool, Opt(default=False, help="Cut features too; they are an input, as images are.")]
    reject: Annotated[bool, _CUT["reject"]]
    heal: Annotated[Literal["refit", "none"], _CUT["heal"]]
    nodes: Annotated[
        Any, Opt(default=None, help="Heal with these nodes; labels are not used.", unset="the task's that were located")
    ]
    ridge: Annotated[float, _CUT["ridge"]]
    seed: Annotated[int, _CUT["seed"]]


@guarded
@verb(GraphDisassembleOptions)
def disassemble(
    model: nn.Module, relevance: GraphRelevance, **options: Unpack[GraphDisassembleOptions]
) -> GraphComponent:
    """Cut out of a graph network the part that a task needs: channels and whole attention heads go.

    Args:
        model: The source that the relevances were located on; it comes back untouched.
        relevance: What `locate` returned.

    Raises:
        TaskError: The task is empty or names a class that is unknown.
        OptionError: Options contradict each other, or the budget is too small.
        DataError: The relevances belong to another model, or the nodes cannot be used.

    Example:
        >>> import brickyard as by
        >>> from brickyard.gnn import disassemble, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source = random_network("sage", 12, 8, 4)
        >>> relevance = locate(source, random_graph(), nodes=range(40))
        >>> part = disassemble(source, relevance, task=[0, 2], budget=by.Budget(flops=0.5))
        >>> part.manifest.selection.flops <= 0.5 * part.manifest.source.flops
        True
    """
    if not isinstance(relevance, GraphRelevance):
        raise OptionError(
            "option-wrong-object",
            f"disassemble needs what brickyard.gnn.locate returned, got {type(relevance).__name__}",
        )
    budget = options["budget"]
    if budget is not None and (budget.agreement is not None or budget.factors or budget.rotate):
        raise OptionError(
            "option-conflict",
            "a budget of a graph network has no agreement=, factors= or rotate=; give flops= or parameters=",
        )
    choice = Choice.of(relevance, options, lambda: relevance.graph(model, options["features"]))
    graph: NodeGraph = choice.graph
    keep, notes = _choose(choice)
    network = cut(graph.network, keep)
    assert graph.data.labels is not None
    labels = graph.data.labels[relevance.nodes].cpu()
    own = relevance.nodes[ONE.members_of(labels, choice.task)]
    healed = HealRecord(method="none", notes=tuple(notes))
    if options["heal"] == "refit":
        nodes = relevance.nodes if options["reject"] else own
        if options["nodes"] is not None:
            nodes = graph.data.chosen(options["nodes"], "the nodes to heal on")
        report = refit(graph, keep, network, nodes, options["ridge"])
        notes += report.notes
        healed = HealRecord(
            method="refit", images=len(nodes), ridge=options["ridge"], layers=report.layers, notes=tuple(notes)
        )
    manifest = choice.manifest(keep, graph.costs, healed)
    statistics = _statistics(GraphComponent(network, manifest), graph.data, own)
    return GraphComponent(network, manifest.model_copy(update={"statistics": statistics}))


def _choose(choice: Choice) -> tuple[dict[str, Tensor], list[str]]:
    """The units to keep, and what a reader of the manifest should know."""
    graph, options = choice.graph, choice.options
    notes: list[str] = []
    if options["budget"] is None:
        keep, notes = by_thresholds(graph, choice.relevance, choice.task, choice.outputs)
    else:
        scores = mda_scores(choice.relevance, choice.task)
        keep = by_budget(graph, graph.costs, scores, choice.outputs, options["budget"])
    if options["select"] == "random":
        generator = torch.Generator().manual_seed(options["seed"])
        for axis in graph.free:
            order = torch.randperm(axis.size, generator=generator)
            keep[axis.name] = order[: len(keep[axis.name])].sort().values
    return keep, notes


def _statistics(component: GraphComponent, data: NodeData, nodes: Tensor) -> Statistics:
    """What scaling may need, at nodes of the component's own classes."""
    assert data.labels is not None
    with torch.no_grad():
        ((_, layer, entering, edges),) = deque(component.network.walk(data.x, data.edge_index), maxlen=1)
        logits = component.head(layer(entering, edges))[nodes].double().cpu()
    labels = torch.tensor(component.manifest.places[0])[data.labels[nodes].cpu()]
    magnitude = entering[nodes].abs().double().mean().item()
    return statistics_of(logits[:, : len(component.classes)], labels, magnitude, component.outputs)


# -- assembling --------------------------------------------------------------------------------------------


class GraphAssembleOptions(TypedDict, total=False):
    """Options of `assemble`; more are those of the scaling."""

    form: Annotated[Literal["parallel", "padded"], Opt(default="parallel", help="Run the parts in this form")]
    shared_input: Annotated[
        bool, Opt(default=True, help="Give all parts one table of features; False: as `disjoint` lays them.")
    ]
    scaling: Annotated[str, _JOIN["scaling"]]
    data: Annotated[Any, Opt(default=None, help="Calibrate with this graph; labels index the assembly's classes.")]
    nodes: Annotated[Any, Opt(default=None, help="Calibrate with these of its nodes, which must not be scored.")]
    on_duplicate: Annotated[Duplicates, _JOIN["on_duplicate"]]


@guarded
@verb(GraphAssembleOptions, more=True)
def assemble(components: Sequence[GraphComponent], **options: Any) -> GraphAssembly:
    """Join components of graph networks into one classifier, without training.

    Args:
        components: The parts.
        **options: Those of the scaling too.

    Raises:
        TaskError: Two parts know a class of the same name.
        SurgeryError: The parts cannot be joined in this form.
        OptionError: An option or scaling is not known, or lacks what it needs.
        DataError: The data cannot be used.

    Example:
        >>> from brickyard.gnn import assemble, disassemble, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source, graph = random_network("gcn", 12, 8, 4), random_graph()
        >>> relevance = locate(source, graph, nodes=range(40))
        >>> parts = [disassemble(source, relevance, task=task) for task in ([0, 1], [2, 3])]
        >>> assemble(parts, scaling="affine", data=graph, nodes=range(40)).manifest.scaling.images
        40
    """
    scaling, data, shared, form = (options[name] for name in ("scaling", "data", "shared_input", "form"))
    scaling = "joint-head" if scaling == "auto" and data is not None else scaling
    parts = list(components)
    if not parts or not all(isinstance(part, GraphComponent) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "nothing"
        raise OptionError("option-wrong-object", f"assemble needs graph components, got {kinds}; cut some first")
    if find(scaling, data, "data").gated:
        known = ", ".join(name for name, entry in SCALINGS.items() if not entry.gated)
        raise OptionError("option-choice", f"scaling={scaling!r} reads image features; graph networks support {known}")
    manifest = assembly_manifest([part.manifest for part in parts], form, options["on_duplicate"])
    manifest = manifest.model_copy(update={"shared_input": shared})
    widths = sorted({part.input_shape[0] for part in manifest.parts})
    if shared and len(widths) > 1:
        why = f"the parts' sources take {' and '.join(map(str, widths))} features, which is not one table"
        advice = "give shared_input=False, and disjoint([...]) of their graphs to the assembly"
        raise SurgeryError("surgery-input-mismatch", f"{why}; {advice}")
    columns = columns_of(manifest.parts, shared)
    pairs = zip((part.network for part in parts), columns, strict=True)
    networks = [GraphNetwork(network.steps(), network.names, own) for network, own in pairs]
    assembly = GraphAssembly([join(networks, columns)] if form == "padded" else networks, manifest)
    evidence = (
        Evidence(manifest) if data is None else _evidence(assembly, NodeData.of(data).like(assembly), options["nodes"])
    )
    more = {name: value for name, value in options.items() if name not in GraphAssembleOptions.__annotations__}
    return assembly.with_scaling(*scale(scaling, evidence, more))


def _evidence(assembly: GraphAssembly, data: NodeData, nodes: Any) -> Evidence:
    if data.labels is None or nodes is None:
        raise DataError("data-no-labels", "a few-shot scaling needs (x, edge_index, labels), and nodes= to fit it on")
    chosen = data.chosen(nodes, "the nodes to scale with")
    targets = data.labels[chosen].long().cpu()
    assembly.outputs.check_labels(targets, len(assembly.classes))
    with torch.no_grad():
        logits = assembly.side_by_side(data.x, data.edge_index)[chosen].double().cpu()
    owners = torch.tensor([assembly.manifest.owners[k][0] for k in targets.tolist()])
    return Evidence(assembly.manifest, logits, targets, owners)
