"""A network as data: its steps, and the layers and tensors that they name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from brickyard.base._frozen import Count, Frozen, Json, Name


class NodeSpec(Frozen):
    """One step of a network; `op` determines the table in which `target` is looked up.

    `args` and `kwargs` are JSON, with `{"node": NAME}` for the value of an earlier step,
    `{"slice": [a, b, c]}`, `{"tuple": [...]}`, `{"ellipsis": true}` and `{"dtype": NAME}`.
    """

    name: Name
    op: Literal["input", "layer", "tensor", "function", "output"]
    target: Annotated[str, Field(max_length=1024)] = ""
    args: tuple[Json, ...] = ()
    kwargs: dict[str, Json] = {}


class LayerSpec(Frozen):
    """A layer's type and constructor arguments, both from a whitelist."""

    type: Name
    config: dict[str, Json] = {}


class TensorSpec(Frozen):
    """A bare parameter or buffer: whether it is trained, and its shape."""

    kind: Literal["parameter", "buffer"]
    shape: tuple[Count, ...]


class NetworkSpec(Frozen):
    """A network as data: steps in order, layers and bare tensors by dotted name."""

    nodes: tuple[NodeSpec, ...]
    layers: dict[Name, LayerSpec]
    tensors: dict[Name, TensorSpec] = {}
