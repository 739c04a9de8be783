"""The verbs: cut a component out of a graph network, and join components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from brickyard.assembly._assemble import assembly_manifest
from brickyard.base._checks import check_choice
from brickyard.base._classes import resolve_task
from brickyard.base._errors import DataError, OptionError, SurgeryError, TaskError
from brickyard.base._options import Budget, Duplicates, Thresholds
from brickyard.base._records import AxisRecord, ComponentManifest, HealRecord, SelectionRecord, SourceRecord, Statistics
from brickyard.component._disassemble import made_with, today
from brickyard.component._statistics import statistics_of
from brickyard.gnn._component import GraphAssembly, GraphComponent, columns_of, task_logits
from brickyard.gnn._locate import GraphRelevance
from brickyard.gnn._network import FEATURES, Edges, GraphNetwork, NodeData
from brickyard.gnn._surgery import cut, join, refit
from brickyard.network._identity import fingerprint
from brickyard.scaling._scale import Evidence
from brickyard.scaling._strategies import SCALINGS, find, scale

GraphForm = Literal["parallel", "padded"]
GraphHeal = Literal["refit", "none"]
GraphSelect = Literal["mda", "random"]


# -- disassembling -----------------------------------------------------------------------------------------


def disassemble(
    model: nn.Module,
    relevance: GraphRelevance,
    *,
    task: Sequence[int | str],
    thresholds: Thresholds | None = None,
    budget: Budget | None = None,
    select: GraphSelect = "mda",
    features: bool = False,
    reject: bool = False,
    heal: GraphHeal = "refit",
    nodes: Any = None,
    ridge: float = 1e-3,
    seed: int = 0,
) -> GraphComponent:
    """Cut out of a graph network the part that a task needs: channels and whole attention heads go.

    Args:
        model: The source that the relevances were located on; it comes back untouched.
        relevance: What `locate` returned.
        task: Classes by name or index, in the order that the outputs shall have.
        thresholds: Keep units by the paper's thresholds; default: those of the relevances.
        budget: Keep the most relevant units that a budget allows, instead of thresholds.
        select: Which units are kept: the relevant ones ("mda"), or as many of each axis at "random": a control.
        features: Whether features may go too. They are an axis as any other, but an input, as images are.
        reject: Keep one more output, the log-sum-exp of the source's other classes: "none of these".
        heal: Repair without gradients: "refit" or "none".
        nodes: Nodes to heal on, a mask or indices; labels are not used. Default: those that were located, of the
            task's classes (with reject: of all).
        ridge: Strength of the refit's prior, a share of the mean diagonal of its normal equations.
        seed: Seed of select="random".

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
    check_choice("heal", heal, GraphHeal)
    check_choice("select", select, GraphSelect)
    if thresholds is not None and budget is not None:
        raise OptionError(
            "option-conflict", "thresholds= and budget= were both given; a component is chosen by one of them"
        )
    if not ridge >= 0:
        raise OptionError("option-range", f"ridge={ridge!r} must be 0 or more")
    if fingerprint(model) != relevance.source_sha256:
        raise DataError(
            "data-wrong-source",
            f"the relevances belong to {relevance.source_name!r} with other weights: locate again, or give the model "
            "that was located",
        )
    chosen = resolve_task(task, relevance.classes)
    if reject and len(chosen) == len(relevance.classes):
        raise TaskError(
            "task-nothing-to-reject",
            "reject=True was asked for a task of all the source's classes; no other class is left",
        )
    outputs = list(range(len(relevance.classes))) if reject else chosen
    network, data = relevance.network, relevance.data
    scores = relevance.scores(chosen, thresholds)
    if not features:
        del scores[FEATURES]
    keep, notes = _by_thresholds(scores) if budget is None else (_by_budget(relevance, scores, outputs, budget), ())
    if select == "random":
        generator = torch.Generator().manual_seed(seed)
        for name, units in keep.items():
            order = torch.randperm(len(scores[name][0]), generator=generator)
            keep[name] = order[: len(units)].sort().values
    keep[network.axes()[-1].name] = torch.tensor(outputs)
    keep = {axis.name: keep.get(axis.name, torch.arange(axis.units)) for axis in network.axes()}
    small = cut(network, keep)
    record = HealRecord(method="none", notes=notes)
    own = relevance.nodes if reject else _of(data, relevance.nodes, chosen)
    if heal == "refit":
        at = own if nodes is None else data.chosen(nodes, "the nodes to heal on")
        report = refit(network, small, keep, data, at, ridge)
        record = HealRecord(
            method="refit", images=len(at), ridge=ridge, layers=report.layers, notes=(*notes, *report.notes)
        )
    choice = None if budget is None else budget.record(select)
    selection = SelectionRecord(
        thresholds=(thresholds or relevance.thresholds).as_dict() if budget is None else None,
        budget=choice,
        parameters=sum(p.numel() for p in small.parameters()),
        flops=small.flops(len(data.x), data.edge_index.shape[1]),
    )
    manifest = _manifest(relevance, keep, chosen, reject, selection, record)
    statistics = _statistics(small, manifest, data, _of(data, relevance.nodes, chosen))
    return GraphComponent(small, manifest.model_copy(update={"statistics": statistics}))


def _of(data: NodeData, nodes: Tensor, classes: Sequence[int]) -> Tensor:
    """Those of some nodes that belong to some classes."""
    assert data.labels is not None
    return nodes[torch.isin(data.labels[nodes].cpu(), torch.tensor(list(classes)))]


def _by_thresholds(scores: dict[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    keep: dict[str, Tensor] = {}
    notes: list[str] = []
    for name, (relevant, score) in scores.items():
        if not relevant.any():
            notes.append(f"axis {name!r} has no relevant channel; its best one was kept")
            relevant = score == score.max()
        keep[name] = relevant.nonzero().flatten()
    return keep, tuple(notes)


def _by_budget(
    relevance: GraphRelevance, scores: dict[str, tuple[Tensor, Tensor]], outputs: Sequence[int], budget: Budget
) -> dict[str, Tensor]:
    """The most relevant units that fit; at least one an axis."""
    if budget.round_to != 1:
        raise OptionError(
            "option-without-effect", "a budget's round_to= is for convolutions; leave it out for graph networks"
        )
    network, data = relevance.network, relevance.data
    whole = network.flops(*_size(data)) if budget.resource == "flops" else relevance.parameters
    last = {network.axes()[-1].name: torch.tensor(list(outputs))}
    orders = {name: torch.argsort(score, descending=True, stable=True) for name, (_, score) in scores.items()}
    ranked = sorted(
        (-(1 - place / len(order)) if budget.uniform else -float(scores[name][1][order[place]]), name, place)
        for name, order in orders.items()
        for place in range(1, len(order))
    )

    def kept(count: int) -> dict[str, Tensor]:
        more = [name for _, name, _ in ranked[:count]]
        return {name: order[: 1 + more.count(name)].sort().values for name, order in orders.items()}

    def cost(count: int) -> int:
        small = cut(network, kept(count) | last)
        return small.flops(*_size(data)) if budget.resource == "flops" else sum(p.numel() for p in small.parameters())

    limit = budget.share * whole
    if cost(0) > limit:
        raise OptionError(
            "option-budget-too-small",
            f"a budget of {budget.share:.3g} of the source's {budget.resource} was asked for; one channel an axis "
            f"already takes {cost(0) / whole:.3g}: raise the budget",
        )
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle - 1)
    return kept(low)


def _size(data: NodeData) -> tuple[int, int]:
    return len(data.x), data.edge_index.shape[1]


def _manifest(
    relevance: GraphRelevance,
    keep: dict[str, Tensor],
    task: Sequence[int],
    reject: bool,
    selection: SelectionRecord,
    heal: HealRecord,
) -> ComponentManifest:
    axes = relevance.network.axes()
    return ComponentManifest(
        classes=tuple(relevance.classes[k] for k in task),
        task=tuple(task),
        reject=reject,
        input_shape=(relevance.data.x.shape[1],),
        source=SourceRecord(
            name=relevance.source_name,
            sha256=relevance.source_sha256,
            classes=relevance.classes,
            parameters=relevance.parameters,
            flops=relevance.network.flops(*_size(relevance.data)),
        ),
        axes={axis.name: AxisRecord(size=axis.units, kept=tuple(keep[axis.name].tolist())) for axis in axes},
        output_axis=axes[-1].name,
        located=relevance.record,
        selection=selection,
        heal=heal,
        versions=made_with(),
        created=today(),
    )


def _statistics(network: GraphNetwork, manifest: ComponentManifest, data: NodeData, nodes: Tensor) -> Statistics:
    """What scaling may need, at nodes of the component's own classes."""
    assert data.labels is not None
    edges = Edges.of(data.edge_index, len(data.x))
    x = data.x[:, network.columns]
    with torch.no_grad():
        for layer in network.steps():
            entering, x = x, layer(x, edges)
    logits = task_logits(manifest, x)[nodes, : len(manifest.classes)].double().cpu()
    labels = torch.tensor([manifest.task.index(k) for k in data.labels[nodes].tolist()])
    return statistics_of(logits, labels, entering[nodes].abs().double().mean().item())


# -- assembling --------------------------------------------------------------------------------------------


def assemble(
    components: Sequence[GraphComponent],
    *,
    form: GraphForm = "parallel",
    shared_input: bool = True,
    scaling: str = "none",
    data: Any = None,
    nodes: Any = None,
    on_duplicate: Duplicates = "error",
    **options: Any,
) -> GraphAssembly:
    """Join components of graph networks into one classifier, without training.

    Args:
        components: The parts.
        form: "parallel": the parts run one after the other; "padded": one network with the parts side by side on every
            axis, zeros between them (parameter linking and alignment padding; layers of the same kinds).
        shared_input: All parts read the same table of features (one graph). Without it each part has columns of its
            own, for sources from different graphs: give `disjoint([...])` to the assembly.
        scaling: How logits become comparable: a name in `brickyard.scaling.SCALINGS` that reads no features.
        data: For few-shot scalings, a graph with labels that are indices into the assembly's classes.
        nodes: Which of its nodes to use, a mask or indices; they must not be scored.
        on_duplicate: When two parts know a class of the same name: "error", "average" or "max" of their scaled
            logits, or "rename" the later ones.
        **options: Options of the scaling.

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
    check_choice("form", form, GraphForm)
    parts = list(components)
    if not parts or not all(isinstance(part, GraphComponent) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts})) or "nothing"
        raise OptionError(
            "option-wrong-object",
            f"graph components to assemble are needed; {kinds} was given: make some with disassemble",
        )
    if find(scaling).gated:
        known = ", ".join(name for name, entry in SCALINGS.items() if not entry.gated)
        raise OptionError("option-choice", f"scaling={scaling!r} reads features of images; graph networks have {known}")
    manifest = assembly_manifest([part.manifest for part in parts], form, on_duplicate)
    manifest = manifest.model_copy(update={"shared_input": shared_input})
    widths = {part.input_shape[0] for part in manifest.parts}
    if shared_input and len(widths) > 1:
        raise SurgeryError(
            "surgery-input-mismatch",
            f"the parts' sources take {' and '.join(map(str, sorted(widths)))} features, which is no one table; give "
            "shared_input=False, and disjoint([...]) of their graphs to the assembly",
        )
    columns = columns_of(manifest.parts, shared_input)
    steps = [part.network.steps() for part in parts]
    networks = [GraphNetwork(s, p.network.names, c) for s, p, c in zip(steps, parts, columns, strict=True)]
    if form == "padded":
        networks = [join(networks, columns)]
    assembly = GraphAssembly(networks, manifest)
    find(scaling, data, "data")
    evidence = Evidence(manifest)
    if data is not None:
        evidence = _evidence(assembly, NodeData.of(data), nodes)
    return assembly.with_scaling(*scale(scaling, evidence, options))


def _evidence(assembly: GraphAssembly, data: NodeData, nodes: Any) -> Evidence:
    if data.labels is None or nodes is None:
        raise DataError(
            "data-no-labels", "a few-shot scaling needs labels and nodes=; give (x, edge_index, labels) and some nodes"
        )
    chosen = data.chosen(nodes, "the nodes to scale with")
    targets = data.labels[chosen].long().cpu()
    if int(targets.min()) < 0 or int(targets.max()) >= len(assembly.classes):
        raise DataError(
            "data-label-out-of-range",
            f"labels run from {int(targets.min())} to {int(targets.max())}; they are indices into the assembly's "
            f"{len(assembly.classes)} classes",
        )
    with torch.no_grad():
        logits = assembly.side_by_side(data.x, data.edge_index)[chosen].double().cpu()
    owners = torch.tensor([assembly.manifest.owners[k][0] for k in targets.tolist()])
    return Evidence(assembly.manifest, logits, targets, owners)
