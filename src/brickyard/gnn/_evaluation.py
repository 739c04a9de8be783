"""Honest scores of graph components: against the source with only the task's classes competing, on the same nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._errors import DataError, OptionError
from brickyard.base._records import ComponentManifest
from brickyard.evaluation._evaluate import accuracy_row, difference, per_class, with_auroc
from brickyard.evaluation._scores import Row, Scores
from brickyard.gnn._component import GraphAssembly, GraphComponent
from brickyard.gnn._network import NodeData
from brickyard.gnn._reading import read_network
from brickyard.network._identity import fingerprint


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
    graph = NodeData.of(data)
    if graph.labels is None:
        raise DataError("data-no-labels", "labels are needed to score; give (x, edge_index, labels), or data with y")
    chosen = graph.chosen(nodes, "the nodes to score")
    labels = graph.labels[chosen].long().cpu()
    if isinstance(model, GraphComponent):
        return _component(model, graph, data, chosen, labels, source)
    if not isinstance(model, GraphAssembly) or source is not None:
        raise OptionError(
            "option-wrong-object",
            f"a graph component (with its source) or a graph assembly (without) is scored; a {type(model).__name__} "
            f"was given{'' if source is None else ' with a source'}",
        )
    return _assembly(model, graph, chosen, labels)


def _component(
    component: GraphComponent, graph: NodeData, data: Any, nodes: Tensor, labels: Tensor, source: nn.Module | None
) -> Scores:
    manifest = component.manifest
    whole: Tensor | None = None
    if source is not None:
        if fingerprint(source) != manifest.source.sha256:
            raise DataError(
                "data-wrong-source",
                f"the component was cut from {manifest.source.name!r} with other weights; give its source",
            )
        whole = _logits(read_network(source, graph, data), graph, nodes)
    own = _logits(component, graph, nodes)
    task = torch.tensor(manifest.task)
    inside = torch.isin(labels, task)
    if not inside.any():
        raise DataError(
            "data-no-task-class",
            f"none of the {len(labels)} nodes belongs to the task {', '.join(manifest.classes[:8])}",
        )
    single = len(task) == 1
    notes: tuple[str, ...] = ()
    names = manifest.classes
    if single and manifest.reject:
        target = (~inside).long()
        answers = {"component": own.argmax(1)}
        if whole is not None:
            answers["base"] = (whole.argmax(1) != task).long()
            answers["restricted"] = _mine_or_not(manifest, whole).argmax(1)
        right = {name: answer == target for name, answer in answers.items()}
        names = (*names, "others")
        notes = ("one class with reject: the answers are 'mine' and 'not mine', for all nodes",)
    else:
        target = torch.tensor([manifest.task.index(k) for k in labels[inside].tolist()])
        right = {"component": own[inside][:, : len(task)].argmax(1) == target}
        if whole is not None:
            right["base"] = whole[inside].argmax(1) == labels[inside]
            right["restricted"] = whole[inside][:, task].argmax(1) == target
        if single:
            notes = ("a task of one class is always answered right; AUROC against the other classes says more",)
    rows: list[Row] = []
    for name in ("base", "restricted", "component"):
        if name in right:
            rows.append(accuracy_row(name, right[name], target))
    if "restricted" in right:
        drop, error = difference(right["restricted"], right["component"])
        rows[-1] = rows[-1].model_copy(update={"drop": drop, "drop_error": error})
    if single and not inside.all():
        scores = {"component": own[:, 0] - own[:, 1] if manifest.reject else own[:, 0]}
        if whole is not None:
            pair = _mine_or_not(manifest, whole)
            scores["base"] = pair[:, 0] - pair[:, 1]
            scores["restricted"] = scores["base"] if manifest.reject else pair[:, 0]
        rows = with_auroc(rows, scores, inside)
    sizes = {"base": (manifest.source.parameters, manifest.source.flops)}
    sizes["component"] = (manifest.selection.parameters, manifest.selection.flops)
    known = [sizes.get(row.name, (None, None)) for row in rows]
    rows = [row.model_copy(update={"parameters": p, "flops": f}) for row, (p, f) in zip(rows, known, strict=True)]
    return Scores(
        title=f"{', '.join(manifest.classes[:6])}{' ...' if len(task) > 6 else ''} of {manifest.source.name}",
        rows=tuple(rows),
        notes=notes,
        per_class=per_class(names, right["component"], target),
    )


def _mine_or_not(manifest: ComponentManifest, logits: Tensor) -> Tensor:
    """A source's logits -> those of a single class, and the log-sum-exp of the others."""
    (k,) = manifest.task
    others = [other for other in range(logits.shape[1]) if other != k]
    return torch.stack([logits[:, k], logits[:, others].logsumexp(1)], 1)


def _assembly(assembly: GraphAssembly, graph: NodeData, nodes: Tensor, labels: Tensor) -> Scores:
    manifest = assembly.manifest
    known = (labels >= 0) & (labels < len(manifest.classes))
    if not known.any():
        raise DataError(
            "data-no-task-class",
            f"none of the {len(labels)} nodes has one of the assembly's classes; labels index them",
        )
    nodes, labels = nodes[known], labels[known]
    logits = _logits(assembly, graph, nodes)
    owners = [set(own) for own in manifest.owners]
    rival = torch.tensor([[not owners[k] & owners[other] for other in range(len(owners))] for k in range(len(owners))])
    own = logits.masked_fill(rival[labels], -torch.inf)
    rows = [
        accuracy_row("oracle", own.argmax(1) == labels, labels),
        accuracy_row("assembled", logits.argmax(1) == labels, labels),
    ]
    drop, error = difference(own.argmax(1) == labels, logits.argmax(1) == labels)
    rows[1] = rows[1].model_copy(update={"drop": drop, "drop_error": error})
    return Scores(
        title=f"{len(manifest.classes)} classes from {len(manifest.parts)} parts, {manifest.form}, "
        f"scaling {manifest.scaling.name}",
        rows=tuple(rows),
        notes=("drop of an assembly: oracle minus assembled",),
        per_class=per_class(manifest.classes, logits.argmax(1) == labels, labels),
    )


def _logits(model: nn.Module, graph: NodeData, nodes: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(graph.x, graph.edge_index)
    return found[nodes].double().cpu()
