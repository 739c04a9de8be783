"""What a cut must return, computed on the source model itself, run eagerly: nothing here is the library's.

Hooks set the inputs of convolutions and linear layers to zero where their channels are dropped. The one thing that is
asked of the graph is which channel lies where in a layer's input: `graph.at(layer, "in")`. Where the graph says that a
mean or a sum runs over channels (`graph.sums`), the calls of `mean` and `sum` are counted off against its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SUMS = {torch.mean, torch.sum, Tensor.mean, Tensor.sum}


class InexpressibleError(Exception):
    """A reader of the channels is not a module of the model: no hook can stand before it."""


def dropped_channels(graph: Any, keep: Mapping[str, Tensor]) -> set[int]:
    """The numbers of the channels that are not kept."""
    gone: set[int] = set()
    for axis in graph.axes:
        if axis.name in keep:
            kept = set(keep[axis.name].tolist())
            gone |= {axis.start + place for place in range(axis.size) if place not in kept}
    return gone


def expected(model: nn.Module, graph: Any, keep: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The model's outputs with the dropped channels at zero wherever a layer reads them.

    Raises:
        InexpressibleError: No hook can stand where dropped channels are read.
    """
    gone = dropped_channels(graph, keep)
    modules = dict(model.named_modules())
    runs: dict[str, int] = {}
    handles = []
    try:
        for name in sorted({owner for axis in graph.axes for owner in axis.readers}):
            labels = graph.at(name, "in")
            mask = torch.tensor([0.0 if int(label) in gone else 1.0 for label in labels], dtype=x.dtype)
            if bool(mask.all()):
                continue
            if not isinstance(modules.get(name), nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
                raise InexpressibleError(name)
            runs[name] = 0
            handles.append(modules[name].register_forward_pre_hook(_zeroing(name, mask, runs), with_kwargs=True))
        sums = _sums(graph, gone, x)
        with torch.no_grad(), sums:
            output: Tensor = model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    if missed := [name for name, count in runs.items() if not count]:
        raise InexpressibleError(missed[0])
    if sums.masks and sums.count != sums.steps:
        raise InexpressibleError("a sum over channels")
    return output


def _zeroing(name: str, mask: Tensor, runs: dict[str, int]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        runs[name] += 1
        x = args[0] if args else kwargs["input"]
        if isinstance(module, nn.Linear):
            whole = mask
        else:
            groups = module.in_channels // len(mask)  # groups that are cut alike
            whole = mask.repeat(groups).reshape(-1, *[1] * (module.weight.ndim - 2))
        return (x * whole, *args[1:]), {key: value for key, value in kwargs.items() if key != "input"}

    return hook


class _Sums(TorchFunctionMode):
    """Sets dropped channels to zero before the means and sums over channels, which are known by their place in line."""

    def __init__(self, masks: dict[int, Tensor], steps: int) -> None:
        super().__init__()
        self.masks, self.steps, self.count = masks, steps, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in SUMS:
            mask = self.masks.get(self.count)
            self.count += 1
            if mask is not None:
                x = args[0] if args else kwargs.pop("input")
                args = (x * mask, *args[1:])
        return func(*args, **kwargs)


def _sums(graph: Any, gone: set[int], x: Tensor) -> _Sums:
    """The masks of the means and sums that the graph says read dropped channels."""
    nodes = [
        node for node in graph.network.nodes if node.op == "function" and node.target in ("mean", "sum", "mean_of")
    ]
    masks: dict[int, Tensor] = {}
    for place, node in enumerate(nodes):
        if node.name in graph.sums:
            labels = torch.from_numpy(graph.sums[node.name])
            kept = torch.tensor([int(label) not in gone for label in labels.flatten()]).reshape(labels.shape)
            if not bool(kept.all()):
                masks[place] = kept.to(x.dtype)
    return _Sums(masks, len(nodes))
