"""Refuses networks that predict a quantity or a rank: they have no output of its own for each class.

Found are what a model of transformers says of itself, labels that are fractions, outputs that differ by constants alone
(CORAL), and labels or names that are one more than outputs (CORAL, CORN). What has none of these signs cannot be told
from a classifier.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.axes._graph import Graph
from brickyard.base._classes import one_too_many
from brickyard.base._errors import DataError, TraceError
from brickyard.network._identity import QUANTITY, problem_of, weights_like
from brickyard.outputs._kinds import Outputs

APART = 1e-3  # of the largest output: how far images' outputs must be from each other for anything to be seen
TOGETHER = 1e-4  # of that: how far outputs may drift apart by rounding


def check_no_quantity(model: nn.Module, data: Any) -> None:
    """Refuse what is known to predict a quantity before anything is run.

    Raises:
        TraceError: The model is one of transformers, and says so.
        DataError: The labels are fractions.
    """
    if problem_of(model) == QUANTITY:
        raise TraceError(
            "trace-output",
            f"{type(model).__name__} predicts a quantity: its config has num_labels 1 or problem_type regression. "
            "Components are cut for classes; give a classifier",
        )
    labels = data[1] if isinstance(data, tuple | list) and len(data) == 2 else getattr(data, "labels", None)
    fractions = _fractions(labels)
    if len(fractions) and _are_shares(labels):
        raise DataError(
            "data-label-mismatch",
            f"labels are shares of classes, such as {float(fractions[0]):.3g}, that sum to 1 per image; give each "
            "image the index of its largest one, as with labels.argmax(1)",
        )
    if len(fractions):
        raise DataError(
            "data-label-mismatch",
            f"labels are fractions such as {float(fractions[0]):.3g}: a network that was trained "
            "towards them predicts a quantity, and has no classes; give a classifier, and one integer per image "
            "as its label",
        )


def _fractions(labels: Any) -> Tensor:
    """The labels that are no whole numbers, if they are tensors or arrays of numbers."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "f":
        labels = torch.as_tensor(labels)
    plain = isinstance(labels, Tensor) and labels.layout == torch.strided and not labels.is_meta
    if not plain or not labels.is_floating_point():
        return torch.zeros(0)
    found: Tensor = labels[labels.isfinite() & (labels != labels.round())]
    return found


def _are_shares(labels: Any) -> bool:
    """Whether each row of labels sums to 1, as probabilities, smoothed or mixed labels do."""
    rows = torch.as_tensor(labels).double()
    if rows.ndim != 2 or rows.shape[1] < 2 or not bool((rows >= 0).all()):
        return False
    return torch.allclose(rows.sum(1), torch.ones(len(rows), dtype=rows.dtype), atol=1e-2)


def check_no_rank(graph: Graph) -> None:
    """Refuse a source whose outputs differ by constants alone, as those of an ordinal network (CORAL).

    Raises:
        TraceError: They do.
    """
    images = torch.rand(4, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = graph.network(images.to(weights_like(graph.network))).double()
    centred = logits - logits.mean(0)
    spread = float(centred.abs().max())
    drift = float((centred - centred[:, :1]).abs().max())
    if logits.shape[1] > 1 and spread > APART * float(logits.abs().max()) and drift <= TOGETHER * spread:
        raise TraceError(
            "trace-output",
            f"the {logits.shape[1]} outputs differ by the same numbers for every image: they are one rank above "
            "thresholds, as in an ordinal network (CORAL), and no class has an output of its own; give a classifier "
            "with one output per class",
        )


def check_labels(outputs: Outputs, labels: Tensor, graph: Graph) -> None:
    """Check labels of a source, and say what else they may be.

    Raises:
        DataError: They do not fit its outputs.
    """
    try:
        outputs.check_labels(labels, graph.output_width)
    except DataError as error:
        if graph.one_logit:
            hint = (
                ". The source has one output, which is taken for the logit of class 1 against class 0; if it was "
                "trained to predict a quantity or a rank, it has no classes"
            )
        else:
            ranks = labels.ndim == 1 and len(labels) and int(labels.min()) == 0
            hint = one_too_many(int(labels.max()) + 1, graph.output_width) if ranks else ""
        raise DataError(error.code, f"{error}{hint}") from None
