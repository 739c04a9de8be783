"""Running the parts of an assembly while looking at what their layers are given; common steps run once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from brickyard.base._records import ComponentManifest
from brickyard.component._component import Component
from brickyard.component._depths import places_of
from brickyard.component._features import features_of
from brickyard.network._network import Network, kind
from brickyard.surgery._sharing import find_runs

T = TypeVar("T")
Lookers = tuple[tuple[tuple[int, ...], Network], ...]  # parts, and the network of these
Row = tuple[Tensor, Tensor | None, list[Tensor]]  # of a part, as from `Component.look`; features are None if not read


def lookers_of(parts: Sequence[Component], given: Sequence[Hashable], ties: Mapping[str, str], reads: bool) -> Lookers:
    """Networks that also return what enters layers, each with its parts; those that cannot be looked into have none.

    Args:
        parts: The parts.
        given: For each, what tells its input from others.
        ties: Layers and tensors that are known to be equal, as in `Sharing`.
        reads: Whether they also return what features are read from.
    """
    networks = [part.network for part in parts]
    places = [places_of(part.network, part.inside) for part in parts]
    reads_at = [part.reads_at for part in parts] if reads else []
    return tuple(
        (run.parts, run.looking(networks, chosen(places, run.parts), chosen(reads_at, run.parts) if reads else ()))
        for run in find_runs(networks, given, ties)
    )


def inputs_of(networks: Sequence[Network], parts: Sequence[ComponentManifest]) -> list[Hashable]:
    """What tells the images that a network is given from those of another."""
    likes = map(kind, networks)
    return [(p.preprocessing, p.input_shape, like.dtype, like.device) for p, like in zip(parts, likes, strict=True)]


def looked(parts: Sequence[Component], inputs: Sequence[Tensor], lookers: Lookers) -> list[Row]:
    """What each part says, with its features where they are read, and what enters the layers that are compared."""
    found: dict[int, tuple[Tensor, ...]] = {}
    for places, network in lookers:
        found |= zip(places, network(inputs[places[0]]), strict=True)
    return [
        _row(part, x, *found[index]) if index in found else part.look(x)
        for index, (part, x) in enumerate(zip(parts, inputs, strict=True))
    ]


def _row(part: Component, x: Tensor, output: Tensor, *seen: Tensor) -> Row:
    count = len(part.inside)
    features = features_of(part.network, part.reads_at, x, seen[-1]) if len(seen) > count else None
    return output, features, list(seen[:count])


def chosen(values: Sequence[T], places: Sequence[int]) -> list[T]:
    """The values at some places."""
    return [values[place] for place in places]
