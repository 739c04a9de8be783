"""Features: what a component's classifier reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from brickyard.network._layer_types import find_mixing
from brickyard.network._mixing import Mixing
from brickyard.network._network import Network, Node, iter_layers, refs


def observe(
    network: Network, stop: int, x: Tensor, look: Callable[[int, dict[str, Any]], None] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a network whose `reader` is step `stop`.

    Args:
        network: The network.
        stop: The step.
        x: Preprocessed images.
        look: Called before each step with its index and the values that are still needed.

    Returns:
        The features, averaged over positions, (batch, size); the values they are averages of; and the output. Without
        any convolution or linear layer, the images themselves serve as features. If a network makes several copies of
        every image in its batch, as for averages over mirrored ones, an image's features are averaged over these.
    """
    for index, node, values in network.walk(x):
        if look is not None:
            look(index, values)
        if index == stop:
            entering: Tensor = values[refs(node)[0] if stop else node.name]
            features = features_of(network, stop, x, entering)
    return features, entering, values[node.name]


def features_of(network: Network, stop: int, x: Tensor, entering: Tensor) -> Tensor:
    """The features of images, (batch, size), as `observe` returns them, where what enters step `stop` is known."""
    features = _pooled(_mixing(network, network.nodes[stop]), entering)
    if features.shape[0] == x.shape[0]:
        return features
    alone = x.split(1) if x.shape[0] > 1 else ()  # which rows are of one image is known for one image only
    rows = [observe(network, stop, image)[0] for image in alone] or [features.mean(0, keepdim=True)]
    return torch.cat(rows)


def reader(network: Network, channels: int, size: int | None = None) -> tuple[int, int]:
    """Find the step that reads a network's features, and how many features there are.

    It is the last layer that mixes channels, or the first of the linear layers that end the network.

    Args:
        network: The network.
        channels: Channels of its images, which are the features if no layer mixes channels.
        size: The number of features, if known: layers that read another number are skipped, as in earlier versions,
            which knew fewer kinds of layers.
    """
    place = {node.name: index for index, node in enumerate(network.nodes)}
    mixings = {index: mixing for index, _, layer in iter_layers(network) if (mixing := find_mixing(layer)) is not None}
    found = (0, channels)
    for last in sorted(mixings, reverse=True):
        index = first = last
        while network.nodes[index].op in ("layer", "function") and len(before := refs(network.nodes[index])) == 1:
            index = place[before[0]]
            if index in mixings and not mixings[index].linear:
                break
            first = index if index in mixings else first
        features = mixings[first].rows.shape[1] * mixings[first].groups
        found = found if found[0] else (first, features)
        if size in (None, features):
            return first, features
    return found


def _mixing(network: Network, node: Node) -> Mixing | None:
    return find_mixing(network.layer(node.target)) if node.op == "layer" else None


def _pooled(mixing: Mixing | None, value: Tensor) -> Tensor:
    """Average a layer's input over positions: (batch, channels)."""
    if value.ndim <= 2:
        return value
    last = mixing is not None and mixing.linear
    return value.flatten(1, -2).mean(1) if last else value.flatten(2).mean(2)
