"""Channels to keep by the paper's thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brickyard.axes._graph import Axes
from brickyard.relevance._relevance import Relevances


def by_thresholds(
    graph: Axes, relevance: Relevances, task: Sequence[int], outputs: Sequence[int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Keep the channels relevant to any class of the task; if an axis has none, keep its best channel.

    Returns:
        The keep-set, and notes on axes without a relevant channel.
    """
    keep = kept_outputs(graph, outputs)
    scores = mda_scores(relevance, task)
    notes: list[str] = []
    for axis in graph.free:
        relevant = relevance.relevant(axis.name)[list(task)].any(0)
        if not relevant.any():
            notes.append(f"axis {axis.name!r} has no relevant channel; its best one was kept")
            relevant[int(scores[axis.channels].argmax())] = True
        keep[axis.name] = relevant.nonzero().flatten()
    return keep, notes


def kept_outputs(graph: Axes, outputs: Sequence[int]) -> dict[str, Tensor]:
    return {} if graph.output is None else {graph.output.name: torch.tensor(list(outputs))}


def mda_scores(relevance: Relevances, task: Sequence[int]) -> Tensor:
    """The highest relevance for any class of the task, one number for every channel of all axes."""
    return relevance.scores[2, list(task)].amax(0)
