"""Norms opened, and residual streams in the basis of their principal directions on the task's images."""

from __future__ import annotations

import torch
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.healing._places import Shown
from brickyard.network._network import Network, Ref
from brickyard.surgery._rotation import Opened, Residual, opened, principal


def turned(graph: Graph, shown: Shown) -> Opened:
    """Turn every residual stream that can be turned, and write other norms as steps.

    Args:
        graph: The source's graph.
        shown: Preprocessed images of the task.
    """
    return opened(graph, lambda graph, stream: principal(_moments(graph.network, stream, shown)))


def _moments(network: Network, stream: Residual, shown: Shown) -> Tensor:
    """Second moments of the stream behind all its norms, without their affine parts: (width, width), in float64."""
    total = torch.zeros(stream.width, stream.width, dtype=torch.float64)
    with torch.no_grad():
        for batch in shown.fit:
            for _, node, values in network.walk(batch):
                if node.name in stream.norms and isinstance(node.args[0], Ref):
                    x = values[node.args[0].node].reshape(-1, stream.width).double()
                    x = x - x.mean(1, keepdim=True) if stream.centred else x
                    x = x / x.square().mean(1, keepdim=True).clamp_min(1e-12).sqrt()
                    total += (x.T @ x).cpu()
    return total
