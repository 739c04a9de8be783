"""Which numbers of a network change with the size of its images: all others are constants.

A model that runs on larger images too is read so that its network does: sizes of its maps stay steps. Of a model that
takes one size only, they are numbers, as are counts of channels: surgery rewrites these where they shape a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from brickyard.axes._lowering import Draft
from brickyard.axes._settling import run
from brickyard.network._network import Ref, with_refs

EVEN, ODD = 32, 33  # pixels by which larger images are larger: most networks halve them up to five times
_Number = int | float | bool


def larger(images: Tensor, more: int = EVEN) -> Tensor:
    """One image, continued along all of its sides by its own beginning."""
    found = images[:1]
    for dim in range(2, images.ndim):
        size = images.shape[dim]
        found = found.index_select(dim, torch.arange(size + more, device=images.device) % size)
    return found


def fix_numbers(draft: Draft, other: Tensor | None) -> None:
    """Write numbers that never change as constants; changes the draft.

    Args:
        draft: The network.
        other: Larger images, if the model takes them.
    """
    if not any(node.target in ("size", "shape", "dim", "numel") for node in draft.nodes):
        return
    example = draft.example[:1]
    others = [torch.cat([example, example]), *([] if other is None else [other])]
    runs = [run(draft, images) for images in (example, *others)]
    constant = {name: value for name, value in runs[0].items() if _is_constant([one[name] for one in runs])}
    draft.nodes = [with_refs(node, partial(_written, constant)) for node in draft.nodes if node.name not in constant]


def _is_constant(values: Sequence[Any]) -> bool:
    return isinstance(values[0], _Number) and all(value == values[0] for value in values[1:])


def _written(constant: dict[str, Any], ref: Ref) -> Any:
    return constant.get(ref.node, ref)
