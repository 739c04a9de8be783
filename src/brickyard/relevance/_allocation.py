"""Contribution aggregation and allocation: from summed contributions to relevant channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brickyard.base._errors import DataError
from brickyard.base._options import Thresholds
from brickyard.relevance._contribution import ContributionSums

EPSILON = 1e-5
_BLOCK = 1 << 17  # numbers per block of rows of S
TIE = 1e-4  # weight of the tie-break: below one count among the outputs of all but very wide layers


@dataclass(frozen=True)
class LayerRecord:
    """What locating needs to know about a layer: its channel indices, and whether it is linear."""

    reads: np.ndarray[Any, np.dtype[np.int64]]
    writes: np.ndarray[Any, np.dtype[np.int64]]
    linear: bool


@dataclass(frozen=True)
class Allocation:
    """One class's relevances: per layer (`hard`), and per channel index.

    `soft` is u; `score` is u with ties broken by the contributions behind the counts.
    """

    hard: dict[str, Tensor]
    relevant: Tensor
    soft: Tensor
    score: Tensor


def normalised(sums: Tensor) -> Tensor:
    """Contribution aggregation: scale sums (..., out, in) to [0, 1] over the inputs of each output."""
    low, high = sums.amin(-1, keepdim=True), sums.amax(-1, keepdim=True)
    return (sums - low) / (high - low + EPSILON)


def allocate(
    layers: Mapping[str, LayerRecord],
    sums: Mapping[str, Tensor] | Mapping[str, ContributionSums],
    start: tuple[Tensor, Tensor],
    thresholds: Thresholds,
) -> Allocation:
    """Contribution allocation: walk back from the classifier to the image.

    For each of its inputs, a layer counts the relevant outputs linked to it by a strong contribution (parameter
    linking). A channel is relevant if any of its readers finds it relevant.

    Args:
        layers: The layers in network order.
        sums: For each layer, S of one class, (out, in).
        start: Channels that are relevant from the start, and those that count as written.
        thresholds: alpha and beta.

    Raises:
        DataError: Contributions are not finite.
    """
    relevant, written = start[0].clone(), start[1].clone()
    soft = relevant.double()
    score = soft.clone()
    hard: dict[str, Tensor] = {}
    for name in reversed(list(layers)):
        layer = layers[name]
        alpha, beta = thresholds.of(layer.linear)
        counts, shares = _linked(sums[name], written[torch.from_numpy(layer.writes)], alpha)
        if not bool(torch.isfinite(shares).all()):
            raise DataError(
                "data-overflow",
                f"contributions to layer {name!r} are not finite: values overflow before it; check "
                "the weights and the preprocessing, or locate in float32 or float64",
            )
        u, fine = normalised(counts), normalised(shares)
        hard[name] = u > beta
        reads = torch.from_numpy(layer.reads)
        at = reads[hard[name]]
        relevant[at] = True
        written[at] = True
        soft = soft.scatter_reduce(0, reads, u, "amax")
        score = score.scatter_reduce(0, reads, u + TIE * fine, "amax")
    return Allocation({name: hard[name] for name in layers}, relevant, soft, score)


def _linked(sums: Tensor | ContributionSums, written: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """For each input, count the written outputs linked to it by a strong contribution, and sum the contributions."""
    inputs = sums.shape[1]
    counts, shares = torch.zeros(2, inputs, dtype=torch.float64)
    for rows in torch.nonzero(written).flatten().split(max(1, _BLOCK // inputs)):
        r = normalised(sums[rows].to("cpu", torch.float64))
        counts += (r > alpha).sum(0)
        shares += r.sum(0)
    return counts, shares
