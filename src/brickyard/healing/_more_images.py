"""Shifted copies of images, for layers with few positions to learn from for their many inputs."""

from __future__ import annotations

import math

from brickyard.axes._graph import Graph
from brickyard.healing._streams import peak_bytes
from brickyard.network._layer_types import find_mixing
from brickyard.network._network import iter_layers

ENOUGH = 5  # positions per input of a layer
MOST = 4  # times the images, the originals included
CHEAP = 1 << 30  # bytes of activations at the widest step, of all images


def copies_needed(graph: Graph, images: int) -> int:
    """How often to use `images` images, including the originals, so that every layer has enough positions.

    The number is limited where a pass over the images is not cheap.
    """
    needed = 1
    for _, node, layer in iter_layers(graph.network):
        mixing = find_mixing(layer)
        if mixing is None:
            continue
        outputs, inputs = mixing.rows.flatten(1).shape
        positions = graph.shapes[node.name][0].numel() // outputs
        needed = max(needed, math.ceil(ENOUGH * inputs / (positions * max(1, images))))
    held = CHEAP // max(1, peak_bytes(graph) * images)
    return max(1, min(needed, MOST, held))
