"""How unusual an image looks inside a network: at the inputs of some of its layers.

At each of these, the mean and standard deviation of every channel over positions are compared with those of a
component's own images. This tells strangers where the logits of a source rise on anything. Early layers count most:
images of another data set differ there already, and what enters late ones differs from image to image anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._errors import FileError
from brickyard.base._messages import told
from brickyard.base._statistics import DepthRecord
from brickyard.network._layer_types import find_mixing
from brickyard.network._mixing import Mixing
from brickyard.network._network import HELD, Network, iter_layers, kind, refs, step_shapes

MOST = 7  # layers that are looked at
FEW = 16  # images, of which neither half says what is usual
LARGEST = 6e4  # that float16 can hold
LEAST = 0.01  # of the root mean square deviation at a layer; below it, a channel counts as having that much


class Depths(nn.Module):
    """Measures how far what enters layers lies from what a component's own images put there.

    The distance at a layer is the root mean square, over channels, of the differences from the mean in standard
    deviations. Where it is at most its median on the component's own images, it counts as nothing, and a distance as
    far above that as the largest tenth of these begins counts as log 2.

    Attributes:
        layers: The layers, and how many numbers are compared at each.
        mean: The mean of each number, (numbers,).
        gain: One over its standard deviation, (numbers,).
        usual: The median distance at each layer, (layers,).
        spread: How far above it the largest tenth of distances begins, (layers,).
        weights: How much each layer counts, one on average, (layers,).

    Shapes:
        For each layer (batch, its numbers) -> (batch,)
    """

    mean: Tensor
    gain: Tensor
    usual: Tensor
    spread: Tensor
    weights: Tensor

    def __init__(
        self,
        layers: Sequence[DepthRecord],
        mean: Tensor,
        gain: Tensor,
        usual: Tensor,
        spread: Tensor,
        weights: Tensor,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        numbers = (("mean", mean), ("gain", gain), ("usual", usual), ("spread", spread), ("weights", weights))
        for name, value in numbers:
            self.register_buffer(name, value)

    @classmethod
    def blank(cls, layers: Sequence[DepthRecord]) -> Depths:
        """Create an instance without values, on the meta device."""
        count = sum(one.size for one in layers)
        sizes = (count, count, *(len(layers),) * 3)
        return cls(layers, *(torch.empty(size, device="meta") for size in sizes))

    @classmethod
    def fit(cls, layers: Sequence[DepthRecord], seen: Sequence[Tensor]) -> Depths | None:
        """Fit to what images put before layers, for each (images, its numbers); None if there are too few images.

        Means and deviations are those of every other image, and what is usual is measured on the rest. Layers where
        all distances are alike are left out.
        """
        if not layers or len(seen[0]) < FEW:
            return None
        found = []
        for one, numbers in zip(layers, seen, strict=True):
            known, rest = numbers[::2].double(), numbers[1::2].double()
            deviation = known.std(0, correction=0)
            least = max(LEAST * float(deviation.square().mean().sqrt()), 1 / LARGEST)
            gain = 1 / deviation.clamp_min(least)
            distances = ((rest - known.mean(0)) * gain).square().mean(1).sqrt()
            usual, high = distances.quantile(torch.tensor([0.5, 0.9], dtype=torch.float64))
            rounded = [value.float() for value in (known.mean(0), gain, usual, high - usual)]
            if all(bool(torch.isfinite(value).all()) for value in rounded) and rounded[3] > 0:
                found.append((one, *rounded))
        if not found:
            return None
        kept, means, gains, usuals, spreads = zip(*found, strict=True)
        weights = torch.arange(len(kept), 0, -1) * 2 / (len(kept) + 1)
        return cls(kept, torch.cat(means), torch.cat(gains), torch.stack(usuals), torch.stack(spreads), weights)

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        """Return the weighted mean over layers of `log(1 + excess)`; no gradient flows through it."""
        numbers = torch.cat(list(seen), 1).detach()
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        mean, gain, usual, spread, weights = (
            value.to(numbers.dtype) for value in (self.mean, self.gain, self.usual, self.spread, self.weights)
        )
        squares = ((numbers - mean) * gain).square().split([one.size for one in self.layers], 1)
        distances = torch.stack([one.mean(1).sqrt() for one in squares], 1)
        result: Tensor = (torch.log1p(((distances - usual) / spread).clamp_min(0)) * weights).mean(1)
        return result

    def check(self, network: Network, entering: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse what does not fit a network, as read from a file, and the shapes of what enters its layers.

        Raises:
            FileError: A layer is unknown, or is given other values.
        """
        layers = {node.target: layer for _, node, layer in iter_layers(network)}
        for one in self.layers:
            mixing = find_mixing(layers[one.layer]) if one.layer in layers else None
            size = 0 if mixing is None else mixing.rows.shape[1] * mixing.groups
            shape = entering.get(one.layer, ())
            there = len(shape) == 2 + len(one.dims) and shape[-1 if mixing and mixing.linear else 1] == size
            if not there or one.size != size * (2 if one.dims else 1) or one.dims != _dims(len(one.dims), mixing):
                found = f"{one.size} numbers over {len(one.dims)} dimensions of positions"
                why = f"its manifest lists {found} before layer {told(one.layer, 80)!r}"
                raise FileError("file-inconsistent", f"{why}, which its network does not have there")
        if not (bool((self.spread > 0).all()) and all(bool(torch.isfinite(v).all()) for v in self.buffers())):
            raise FileError("file-tensor-mismatch", "tensors familiarity.depths must be finite, and spread above 0")


def _dims(count: int, mixing: Mixing | None) -> tuple[int, ...]:
    """The dimensions of a layer's input that are positions, if there are so many."""
    if mixing is not None and not mixing.linear:
        count = mixing.rows.ndim - 2
    first = 1 if mixing is not None and mixing.linear else 2
    return tuple(range(first, first + count))


def find_layers(network: Network, input_shape: Sequence[int]) -> list[DepthRecord]:
    """Choose layers to look at: at most `MOST` that mix channels, evenly from the first to one before the last."""
    if network.foreign or not network.keeps_input:
        return []
    like = kind(network)
    shapes = step_shapes(network, torch.zeros(2, *input_shape, dtype=like.dtype, device=like.device))
    found: dict[str, DepthRecord] = {}  # by the value that enters
    known: set[str] = set()
    for _, node, layer in iter_layers(network):
        mixing, given = find_mixing(layer), refs(node)
        value = shapes.get(given[0]) if given else None
        if mixing is None or node.target in known or not isinstance(value, Tensor):
            continue
        known.add(node.target)
        size = mixing.rows.shape[1] * mixing.groups
        dims = _dims(value.ndim - 2, mixing)
        if value.ndim == 2 + len(dims) and len(value) == 2 and value.shape[-1 if mixing.linear else 1] == size:
            found.setdefault(given[0], DepthRecord(layer=node.target, size=size * (2 if dims else 1), dims=dims))
    every = list(found.values())
    count = min(MOST, len(every) - 1)
    return [every[round(turn * (len(every) - 1) / count)] for turn in range(count)] or every


def places_of(network: Network, layers: Sequence[DepthRecord]) -> list[tuple[int, tuple[int, ...]]]:
    """For each layer, the first step that is this layer, and the dimensions that are positions there.

    The layers may have the names that `Network.reachable` gives.
    """
    first: dict[str, int] = {}
    for index, node, _ in iter_layers(network):
        first.setdefault(node.target, index)
    return [(first[one.layer if one.layer in first else HELD + one.layer], one.dims) for one in layers]


class Looking:
    """Keeps what images put before layers, while a network runs step by step.

    Attributes:
        layers: The layers.
    """

    def __init__(self, network: Network, layers: Sequence[DepthRecord]) -> None:
        self.layers = layers
        places = places_of(network, layers)
        self._names = {place: (refs(network.nodes[place])[0], dims) for place, dims in places}
        self._seen: dict[int, list[Tensor]] = {place: [] for place, _ in places}

    def __call__(self, index: int, values: Mapping[str, Any]) -> None:
        """Look at what step `index` is given."""
        if index in self._names:
            name, dims = self._names[index]
            self._seen[index].append(numbers_of(values[name], dims))

    def seen(self) -> list[Tensor]:
        """What was put before each layer, (images, numbers) in float64."""
        return [torch.cat(seen).double().cpu() for seen in self._seen.values()]

    def last(self) -> list[Tensor]:
        """What the last images put there, as it is."""
        return [seen[-1] for seen in self._seen.values()]


def numbers_of(value: Tensor, dims: Sequence[int]) -> Tensor:
    """What is compared of a value: the mean and deviation over positions of each channel, (batch, numbers)."""
    if not dims:
        return value
    over = tuple(dims)
    return torch.cat([value.mean(over), value.std(over, correction=0)], 1)
