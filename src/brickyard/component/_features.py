"""What a component's classifier reads: its features."""

from __future__ import annotations

from torch import Tensor, nn

from brickyard.network._network import Network, iter_layers, refs


def observe(network: Network, stop: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run a network whose `reader` is step `stop`.

    Returns:
        Its features, averaged over positions, (batch, size); the values that they are averages of; and the output.
        Where there is no convolution and no linear layer, the images themselves stand for what one reads.
    """
    for index, node, values in network.walk(x):
        if index == stop:
            layer = network.layer(node.target) if node.op == "layer" else None
            entering: Tensor = values[refs(node)[0] if stop else node.name]
            features = _pooled(layer, entering)
    return features, entering, values[node.name]


def reader(network: Network) -> int:
    """The step of the last convolution or linear layer is, or the first of the linear layers that end the network."""
    place = {node.name: index for index, node in enumerate(network.nodes)}
    found = [index for index, node, layer in iter_layers(network) if isinstance(layer, nn.Conv2d | nn.Linear)]
    index = last = found[-1] if found else 0
    while network.nodes[index].op in ("layer", "function") and len(before := refs(network.nodes[index])) == 1:
        index = place[before[0]]
        layer = network.layer(network.nodes[index].target) if network.nodes[index].op == "layer" else None
        if isinstance(layer, nn.Linear):
            last = index
        elif isinstance(layer, nn.Conv2d):
            break
    return last


def feature_size(network: Network, channels: int) -> int:
    """How many features a network has that takes images of so many channels."""
    node = network.nodes[reader(network)]
    layer = network.layer(node.target) if node.op == "layer" else None
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels if isinstance(layer, nn.Conv2d) else channels


def _pooled(layer: nn.Module | None, value: Tensor) -> Tensor:
    """What enters a layer, averaged over positions: (batch, channels)."""
    if value.ndim <= 2:
        return value
    return value.flatten(1, -2).mean(1) if isinstance(layer, nn.Linear) else value.flatten(2).mean(2)
