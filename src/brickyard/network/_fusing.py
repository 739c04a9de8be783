"""Folding batch norm into the convolution or linear layer before it: the same outputs for inference, in fewer steps."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.network._layer_types import find_mixing, mixing_of
from brickyard.network._mixing import NORMS
from brickyard.network._network import Network, Node, Ref, kind, refs, step_shapes
from brickyard.network._untouched import guarded


def quick(network: Network, input_shape: Sequence[int]) -> Network:
    """Fuse a network's norms into other layers where possible, and use the fastest memory layout."""
    like = kind(network)
    example = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    fused = fuse(network, example)
    return fused.to(memory_format=quick_layout(fused, example))


def quick_layout(network: Network, example: Tensor) -> torch.memory_format:
    """The memory layout of images that makes a network fast: channels last on a CPU, if it runs that way.

    Networks that depend on strides (a `view` of feature maps) run only on contiguous images.
    """
    deep = any(value.ndim > 4 for value in network.parameters())  # these lack that layout
    if example.device.type != "cpu" or example.dtype != torch.float32 or deep:
        return torch.contiguous_format
    try:
        with torch.inference_mode():
            network(example.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


@guarded
def fuse(network: Network, example: Tensor) -> Network:
    """Return a copy in which every batch norm that directly follows a layer is part of that layer.

    A norm with its own statistics computes `s (y - mean) + b` in evaluation mode, with
    `s = weight / sqrt(var + eps)`; for `y = W x + c` that is `(s W) x + s (c - mean) + b`. A norm stays if it does not
    directly follow a layer, if that layer's output is also used elsewhere, or if it normalises a dimension other than
    the one the layer writes.

    Args:
        network: The network; it is left unchanged.
        example: Example images.
    """
    shapes = step_shapes(network, example.clone())
    uses = Counter(name for node in network.nodes for name in refs(node))
    runs = Counter(node.target for node in network.nodes if node.op == "layer")
    steps = {node.name: node for node in network.nodes}
    layers = {name: copy.deepcopy(network.layer(name)) for name in network.layer_names}
    gone: set[str] = set()
    nodes: list[Node] = []
    for node in network.nodes:
        before = _foldable(network, node, steps, shapes, uses, runs)
        if before is None:
            nodes.append(node)
            continue
        norm = layers.pop(node.target)
        layers[before.target] = _folded(layers[before.target], norm)
        gone.add(before.name)
        nodes.append(replace(before, name=node.name))
    kept = [node for node in nodes if node.name not in gone]
    tensors = {name: copy.deepcopy(network.tensor(name)) for name in network.tensor_names}
    return Network(kept, layers, tensors, network.foreign).eval()


def _foldable(
    network: Network,
    node: Node,
    steps: dict[str, Node],
    shapes: dict[str, Any],
    uses: Counter[str],
    runs: Counter[str],
) -> Node | None:
    """The layer that a step can be folded into, or None if the step is not such a norm."""
    if node.op != "layer" or len(node.args) != 1 or not isinstance(node.args[0], Ref):
        return None
    norm, before = network.layer(node.target), steps[node.args[0].node]
    if not isinstance(norm, NORMS) or norm.running_mean is None or before.op != "layer":
        return None
    mixing = find_mixing(network.layer(before.target))
    fits = mixing is not None and mixing.channel_dim % shapes[before.name].ndim == 1
    alone = uses[before.name] == 1 and runs[before.target] == 1 and runs[node.target] == 1
    return before if fits and alone else None


def _folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = _number(norm.weight, mean, 1.0) / (variance + norm.eps).sqrt()
    mixing = mixing_of(layer)
    rows = mixing.rows
    shift = (_number(mixing.layer.bias, mean, 0.0) - mean) * scale + _number(norm.bias, mean, 0.0)
    changed = rows.double() * scale.reshape(-1, *[1] * (rows.ndim - 1))
    layer.weight = nn.Parameter(mixing.weight_of(changed).to(rows.dtype))
    layer.bias = nn.Parameter(shift.to(rows.dtype))
    return layer


def _number(value: Tensor | None, like: Tensor, missing: float) -> Tensor:
    return torch.full_like(like, missing) if value is None else value.detach().double()
