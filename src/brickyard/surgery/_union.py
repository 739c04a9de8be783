"""The union of parts that were cut from one source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.base._errors import SurgeryError
from brickyard.network._network import Network
from brickyard.network._torch_private import store, stored
from brickyard.surgery._join import cut
from brickyard.surgery._plan import KeepSet, Part, positions
from brickyard.surgery._weights import dim_labels, number_of


def overlay(parts: Sequence[Part], source: Graph | None) -> tuple[Network, tuple[str, ...]]:
    """Build one component with the union of the channels of parts that were cut from one source.

    Args:
        parts: The parts, each with its cut network.
        source: The source's graph. With it, the union has the source's weights. Without it, weights between
            channels that no single part keeps together are zero.

    Returns:
        The network, and notes on unknown weights.

    Raises:
        SurgeryError: The parts come from different sources, or their weights disagree where they overlap.
    """
    graph = parts[0].graph
    if any(p.graph.network.nodes != graph.network.nodes or p.graph.names != graph.names for p in parts):
        raise SurgeryError("surgery-union-sources", "form='union' needs parts of one source; use form='parallel'")
    output = graph.output
    if output is None:
        raise SurgeryError(
            "surgery-outputs-not-joinable", "form='union' needs class outputs that can be cut; use form='parallel'"
        )
    keep: dict[str, Tensor] = {}
    for axis in graph.axes:
        kept = [p.keep[axis.name] for p in parts]
        keep[axis.name] = torch.cat(kept) if axis.output else torch.cat(kept).unique()
    if len(keep[output.name].unique()) != len(keep[output.name]):
        raise SurgeryError(
            "surgery-union-classes",
            "form='union' needs parts that share no class and have no reject output; use form='parallel'",
        )
    if source is not None:
        return cut(source, keep), ()
    network, unknown = lay_over(parts, graph, keep)
    notes = (f"{unknown:,} weights between channels of different parts are not known and were set to zero",)
    return network, notes if unknown else ()


def lay_over(parts: Sequence[Part], graph: Graph, keep: KeepSet) -> tuple[Network, int]:
    """Build a network with everything that the parts keep; also return how many of its weights no part has.

    Raises:
        SurgeryError: The parts' weights disagree where they overlap.
    """
    whole, network = Part(graph, keep), cut(graph, keep)
    names = (*graph.network.layer_names, *graph.network.tensor_names)
    return network, sum(_overlay_one(network, whole, parts, name) for name in names)


def _overlay_one(network: Network, whole: Part, parts: Sequence[Part], name: str) -> int:
    """Fill one layer or bare tensor of a union; return how many of its weights no part knows."""
    bare = name in network.tensor_names
    keys = [""] if bare else list(stored(network.layer(name)))
    unknown = 0
    for key in keys:
        blank = network.tensor(name) if bare else getattr(network.layer(name), key)
        if blank is None:
            continue
        if blank.ndim == 0:
            _set(network, name, key, number_of(parts[0], name, key).detach().clone())
            continue
        value = torch.zeros(blank.shape, dtype=number_of(parts[0], name, key).dtype)  # not touched before sizes fit
        known = torch.zeros(blank.shape, dtype=torch.bool)
        for part in parts:
            own = number_of(part, name, key).detach().cpu()
            places = [_within(whole, part, name, key, dim, size) for dim, size in enumerate(blank.shape)]
            if tuple(map(len, places)) != tuple(own.shape):
                raise SurgeryError(
                    "surgery-structure-mismatch",
                    f"{name!r} of a part is {tuple(own.shape)}, and not as the structure it records; "
                    "use form='parallel'",
                )
            index = torch.meshgrid(*places, indexing="ij")
            if bool((known[index] & (value[index] != own)).any()):
                raise SurgeryError(
                    "surgery-weights-differ",
                    f"the parts have different values in {name!r} where they overlap (healed "
                    "separately, or trained since); give source= to use its weights, or use "
                    "form='parallel'",
                )
            value[index] = own
            known[index] = True
        unknown += int((~known).sum())
        _set(network, name, key, value)
    return unknown


def _within(whole: Part, part: Part, name: str, key: str, dim: int, size: int) -> Tensor:
    """The positions of the part's entries along a dimension of the union."""
    labels = dim_labels(whole, name, key, dim)
    if labels is None:
        return torch.arange(size)
    place = {int(entry): index for index, entry in enumerate(positions(whole, labels))}
    return torch.tensor([place[int(entry)] for entry in positions(part, labels)])


def _set(network: Network, name: str, key: str, value: Tensor) -> None:
    parent, leaf = (network.layer(name), key) if key else network.holder(name)
    store(parent, leaf, value)
