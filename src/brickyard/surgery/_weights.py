"""Building the layers and tensors of the result: kept weights in their positions, zeros elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brickyard.axes._atoms import DimRole, Labels
from brickyard.base._errors import SurgeryError
from brickyard.network._layer_types import build_layer, describe_layer, find_type, tensor_dims
from brickyard.surgery._plan import Part, Plan, positions

Indices = Sequence[list[NDArray[np.int64]] | None]
"""For each dimension of a tensor: for each part, where its entries go; None for a dimension without channels."""


def made_layer(plan: Plan, name: str) -> nn.Module:
    """Build a layer of the result: resized, and filled with the parts' weights."""
    module = plan.first.network.layer(name)
    entry = find_type(module)
    assert entry is not None
    config = describe_layer(module)
    out = plan.places(name, "out") or plan.places(name, "follow")
    read = plan.places(name, "in") or plan.places(name, "through")
    if entry.resize is not None and out is not None:
        config = entry.resize(config, _total(out), 0 if read is None else _total(read))
    made = build_layer(entry.name, config)
    dims = tensor_dims(module)
    stores: tuple[dict[str, Any], ...] = (made._parameters, made._buffers)
    for store in stores:
        for key, blank in store.items():
            if blank is not None:
                indices = [{"out": out, "in": read}[role] for role in dims.get(key, ())]
                indices += [None] * (blank.ndim - len(indices))
                value = _blended(plan, name, key, tuple(blank.shape), indices)
                store[key] = nn.Parameter(value) if store is made._parameters else value
    return made


def made_tensor(plan: Plan, name: str) -> Tensor:
    """Build a bare parameter or buffer of the result."""
    first = number_of(plan.parts[0], name, "")
    indices = [plan.places(name, "follow", dim) for dim in range(first.ndim)]
    shape = [size if places is None else _total(places) for places, size in zip(indices, first.shape, strict=True)]
    value = _blended(plan, name, "", tuple(shape), indices)
    return nn.Parameter(value) if isinstance(first, nn.Parameter) else value


def number_of(part: Part, name: str, key: str) -> Tensor:
    """A part's own tensor: `key` of a layer, or a bare tensor if the key is empty."""
    network = part.network or part.graph.network
    value: Tensor = getattr(network.layer(name), key) if key else network.tensor(name)
    return value


def dim_labels(part: Part, name: str, key: str, dim: int) -> Labels | None:
    """Channel indices along a dimension of a layer's or bare tensor in the part's source."""
    if not key:
        return part.graph.at(name, "follow", dim)
    roles = tensor_dims(part.graph.network.layer(name)).get(key, ())
    if dim >= len(roles):
        return None
    alone: DimRole = "through" if roles[dim] == "in" else "follow"
    found = part.graph.at(name, roles[dim])
    return part.graph.at(name, alone) if found is None else found


def _total(places: list[NDArray[np.int64]]) -> int:
    return 1 + max(int(found.max()) for found in places if len(found))


def _blended(plan: Plan, name: str, key: str, shape: tuple[int, ...], indices: Indices) -> Tensor:
    """Put the kept weights of each part in their positions."""
    values = [number_of(part, name, key).detach() for part in plan.parts]
    if all(places is None for places in indices):
        if any(not torch.equal(value, values[0]) for value in values[1:]) and values[0].is_floating_point():
            raise SurgeryError(
                "surgery-weights-differ",
                f"the parts have different values in {name!r}, which has no channels; use form='parallel'",
            )
        return values[0].clone()
    result = torch.zeros(shape, dtype=values[0].dtype, device=values[0].device)
    for number, (part, value) in enumerate(zip(plan.parts, values, strict=True)):
        target = [
            torch.arange(size) if places is None else torch.from_numpy(places[number])
            for places, size in zip(indices, shape, strict=True)
        ]
        if part.network is None:
            value = _sliced(part, value, name, key)
        result[torch.meshgrid(*target, indexing="ij")] = value
    return result


def _sliced(part: Part, value: Tensor, name: str, key: str) -> Tensor:
    for dim in range(value.ndim):
        labels = dim_labels(part, name, key, dim)
        if labels is not None:
            value = value.index_select(dim, torch.from_numpy(positions(part, labels)).to(value.device))
    return value
