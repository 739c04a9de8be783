"""Honest scores of graph components: against the source with only the task's classes competing, on the same nodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._errors import DataError, OptionError
from brickyard.base._records import SelectionRecord, SourceRecord
from brickyard.evaluation._evaluate import Answered, Ask, assembly_title, component_answers, scored, sources_of
from brickyard.evaluation._scores import Scores
from brickyard.gnn._component import GraphAssembly, GraphComponent
from brickyard.gnn._network import NodeData
from brickyard.gnn._reading import read_network
from brickyard.network._untouched import guarded
from brickyard.outputs._kinds import Cases


@guarded
def evaluate(
    model: GraphComponent | GraphAssembly, data: Any, *, nodes: Any, source: nn.Module | None = None
) -> Scores:
    """Score a component or an assembly of graph networks.

    Args:
        model: What to score.
        data: The graph with labels: indices into the source's classes, for an assembly into its own.
        nodes: Test nodes, a mask or indices. Nodes that were used to locate, heal or scale must not be among them.
        source: A component's source, for the rows "base" and "restricted".

    Returns:
        For a component: base (all of the source's classes compete), restricted (only the task's: the fair baseline) and
        component, over the nodes of the task's classes. One class alone is always answered right: its AUROC against
        all other nodes says more. A component of one class that was cut with `reject` answers "mine" or "not mine" for
        all nodes: all rows then have the accuracy of that answer, and `class_accuracy` is the mean of the share of
        its own nodes that it finds (recall) and of others that it leaves, which `per_class` has one by one.
        For an assembly: oracle (each node answered by the part that knows its class) and assembled.

    Raises:
        DataError: The nodes cannot be used, or none belongs to the task, or the source is another one.
        OptionError: `model` is neither a component nor an assembly, or an assembly was given with a source.

    Example:
        >>> from brickyard.gnn import disassemble, evaluate, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source, graph = random_network("gcn", 12, 8, 4), random_graph()
        >>> part = disassemble(source, locate(source, graph, nodes=range(40)), task=[1, 3])
        >>> [row.name for row in evaluate(part, graph, nodes=range(40, 60), source=source).rows]
        ['base', 'restricted', 'component']
    """
    graph = NodeData.of(data).like(model)
    if graph.labels is None:
        raise DataError("data-no-labels", "scoring needs labels; give (x, edge_index, labels), or data with y")
    chosen = graph.chosen(nodes, "the nodes to score")
    labels = graph.labels[chosen].long().cpu()
    if isinstance(model, GraphComponent):
        (given,) = sources_of(model, source)
        whole = None if given is None else partial(_logits, read_network(given, graph, data), graph, chosen)
        return _component(model, labels, partial(_logits, model, graph, chosen), whole)
    if not isinstance(model, GraphAssembly) or source is not None:
        found = f"{type(model).__name__}{'' if source is None else ' with a source'}"
        wanted = "a graph component with its source, or a graph assembly without one"
        raise OptionError("option-wrong-object", f"evaluate needs {wanted}, got {found}")
    return _assembly(model, labels, partial(_logits, model, graph, chosen))


def _component(component: GraphComponent, labels: Tensor, own: Ask, whole: Ask | None) -> Scores:
    manifest, names = component.manifest, component.classes
    answered = component_answers(component, labels, own, whole, "nodes")
    if manifest.reject and len(names) == 1:
        answered, names = _mine_or_not(component, answered, own, whole), (*names, "others")
    sizes: dict[str, SourceRecord | SelectionRecord] = {"base": manifest.source, "component": manifest.selection}
    return scored(names, answered, {k: {"parameters": v.parameters, "flops": v.flops} for k, v in sizes.items()})


def _mine_or_not(component: GraphComponent, answered: Answered, own: Ask, whole: Ask | None) -> Answered:
    """The answers of a component of one class with reject, to all nodes: whether they are of its class."""
    outputs, inside, everything = component.outputs, answered.inside, torch.arange(len(answered.inside))
    cases = Cases(everything, (~inside).long(), torch.ones_like(inside))
    right, scores = {"component": outputs.right(own(everything), cases)}, {**answered.scores}
    if whole is not None:
        logits = whole(everything)
        gathered = outputs.gathered(logits, component.manifest.groups)
        base = outputs.says(gathered)[:, component.manifest.leads[0]] == inside
        right = {"base": base, "restricted": outputs.right(component.of_source(logits), cases), **right}
        scores |= {"restricted": scores["base"]} if scores else {}
    note = "one class with reject: the answers are 'mine' and 'not mine', for all nodes"
    return replace(answered, cases=cases, right=right, scores=scores, notes=(note,))


def _assembly(assembly: GraphAssembly, labels: Tensor, ask: Ask) -> Scores:
    manifest, count = assembly.manifest, len(assembly.classes)
    cases = assembly.outputs.cases(assembly.outputs.targets(labels, torch.arange(count), count))
    if not len(cases.images):
        why = f"none of the {len(labels)} nodes belongs to a class of the assembly"
        raise DataError("data-no-task-class", f"{why}; labels must index its classes")
    logits = ask(cases.images)
    others = ((len(labels) - len(logits), len(labels)),)
    cases = cases._replace(images=torch.arange(len(logits)))
    owners = [set(own) for own in manifest.owners]
    rival = torch.tensor([[not own & other for other in owners] for own in owners])
    oracle = assembly.outputs.right(logits.masked_fill(rival[cases.classes], -torch.inf), cases)
    right = {"oracle": oracle, "assembled": assembly.outputs.right(logits, cases)}
    note = "drop of an assembly: oracle minus assembled"
    title = assembly_title(manifest)
    answered = Answered(title, cases, right, {}, rival, (note,), counted="nodes", others=others)
    return scored(manifest.classes, answered, {})


def _logits(model: nn.Module, graph: NodeData, nodes: Tensor, chosen: Tensor) -> Tensor:
    """The outputs for some of some nodes, in float64."""
    with torch.no_grad():
        found: Tensor = model(graph.x, graph.edge_index)
    return found[nodes[chosen]].double().cpu()
