"""Parts side by side as groups of one convolution: alignment padding without multiplications by zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brickyard.network._layer_types import find_mixing
from brickyard.network._mixing import Mixing
from brickyard.network._network import Network
from brickyard.surgery._join import check_same, join
from brickyard.surgery._plan import Part
from brickyard.surgery._union import lay_over


def join_as_groups(parts: Sequence[Part], *, shared_input: bool = True) -> tuple[Network, tuple[str, ...]]:
    """Join parts as `join` does, with equal channel counts, and grouped convolutions where parts lie one by one.

    A convolution that reads a concatenation of axes has the parts' channels interleaved, and stays unchanged.

    Returns:
        The network, and notes on what was padded and grouped.

    Raises:
        SurgeryError: As for `join`.
    """
    check_same(parts)
    even, added = _evened(parts)
    network = join(even, shared_input=shared_input)
    grouped, convolutions = 0, 0
    for name in network.layer_names:
        mixing = find_mixing(network.layer(name))
        if mixing is not None and not mixing.linear and mixing.groups == 1:
            convolutions += 1
            grouped += _group(mixing, len(parts))
    notes = [f"{grouped} of {convolutions} convolutions run in {len(parts)} groups"]
    if added:
        notes.append(f"{added:,} channels of zeros make the parts' sizes equal")
    return network, tuple(notes)


def _evened(parts: Sequence[Part]) -> tuple[list[Part], int]:
    """Pad the parts to equal channel counts on every axis except the class outputs; also return how many were added."""
    added = 0
    keeps: list[dict[str, Tensor]] = [dict(part.keep) for part in parts]
    for axis in parts[0].graph.free:
        size = max(len(keep[axis.name]) for keep in keeps)
        for keep in keeps:
            missing = size - len(keep[axis.name])
            if missing:
                out = torch.ones(axis.size, dtype=torch.bool)
                out[keep[axis.name]] = False
                keep[axis.name] = torch.cat([keep[axis.name], out.nonzero().flatten()[:missing]]).sort().values
                added += missing
    even = []
    for part, keep in zip(parts, keeps, strict=True):
        same = all(len(keep[name]) == len(part.keep[name]) for name in keep)
        even.append(part if same else Part(part.graph, keep, lay_over([part], part.graph, keep)[0]))
    return even, added


def _group(mixing: Mixing, count: int) -> bool:
    """Turn a convolution into a grouped one if its weights allow; return whether they do."""
    rows = mixing.rows
    outputs, inputs = rows.shape[:2]
    if outputs % count or inputs % count:
        return False
    blocks = rows.reshape(count, outputs // count, count, inputs // count, *rows.shape[2:])
    for k in range(count):
        if blocks[k, :, :k].any() or blocks[k, :, k + 1 :].any():
            return False
    own = torch.cat([blocks[k, :, k] for k in range(count)])
    mixing.layer.groups = count
    mixing.layer.weight = nn.Parameter(mixing.weight_of(own).clone())
    return True
