"""What the outputs of a network depend on: gradients for the values of some of its steps."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from brickyard.network._network import Network


def probed(network: Network, names: Collection[str], batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Run a network with a zero added to the value of some steps: these zeros, by name, and the outputs."""
    probes: dict[str, Tensor] = {}
    with torch.enable_grad():
        values = {network.nodes[0].name: network.taken(batch)}
        for index, node in enumerate(network.nodes):
            network.advance(values, index, index + 1)
            if node.name in names:
                probes[node.name] = torch.zeros_like(values[node.name], requires_grad=True)
                values[node.name] = values[node.name] + probes[node.name]
        outputs: Tensor = values[network.nodes[-1].name]
    return probes, outputs
