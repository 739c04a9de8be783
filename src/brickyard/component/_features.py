"""What a component's classifier reads: its features."""

from __future__ import annotations

from torch import Tensor

from brickyard.network._layer_types import find_mixing
from brickyard.network._mixing import Mixing
from brickyard.network._network import Network, Node, iter_layers, refs


def observe(network: Network, stop: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run a network whose `reader` is step `stop`.

    Returns:
        Its features, averaged over positions, (batch, size); the values that they are averages of; and the output.
        Where there is no convolution and no linear layer, the images themselves stand for what one reads.
    """
    for index, node, values in network.walk(x):
        if index == stop:
            entering: Tensor = values[refs(node)[0] if stop else node.name]
            features = _pooled(_mixing(network, node), entering)
    return features, entering, values[node.name]


def reader(network: Network) -> int:
    """The step of the last convolution or linear layer is, or the first of the linear layers that end the network."""
    place = {node.name: index for index, node in enumerate(network.nodes)}
    found = [index for index, node, layer in iter_layers(network) if find_mixing(layer) is not None]
    index = last = found[-1] if found else 0
    while network.nodes[index].op in ("layer", "function") and len(before := refs(network.nodes[index])) == 1:
        index = place[before[0]]
        mixing = _mixing(network, network.nodes[index])
        if mixing is not None and not mixing.linear:
            break
        last = last if mixing is None else index
    return last


def feature_size(network: Network, channels: int) -> int:
    """How many features a network has that takes images of so many channels."""
    mixing = _mixing(network, network.nodes[reader(network)])
    return channels if mixing is None else mixing.rows.shape[1] * mixing.groups


def _mixing(network: Network, node: Node) -> Mixing | None:
    return find_mixing(network.layer(node.target)) if node.op == "layer" else None


def _pooled(mixing: Mixing | None, value: Tensor) -> Tensor:
    """What enters a layer, averaged over positions: (batch, channels)."""
    if value.ndim <= 2:
        return value
    last = mixing is not None and mixing.linear
    return value.flatten(1, -2).mean(1) if last else value.flatten(2).mean(2)
