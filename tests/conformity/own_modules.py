"""Own modules: how people write blocks and classifiers that no library has, each as one small network.

A block is a class that takes its channels and gives maps of as many channels and the same size; it runs between two
plain convolutions. A whole network takes images (batch, 3, 16, 16). The files `own_*.py` hold them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

CLASSES = 4
SIZE = 16
FILES = tuple(
    f"own_{kind}"
    for kind in ("attention", "convolutions", "heads", "classifiers", "patches", "signals", "steps", "tokens")
)
T = TypeVar("T", bound=type[nn.Module])


@dataclass(frozen=True)
class Own:
    """One network: its name, how it is made, and whether it takes images of other sizes than it was made for."""

    name: str
    make: Callable[[], nn.Module]
    sizes: bool


_FOUND: dict[str, Own] = {}


class Around(nn.Module):
    """A block between two convolutions, with a classifier behind."""

    def __init__(self, block: Callable[[int], nn.Module], width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = block(width)
        self.body = nn.Sequential(nn.Conv2d(width, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.block(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def conv_bn(c, out, k=3, stride=1, groups=1):
    conv = nn.Conv2d(c, out, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def block(width: int = 8, sizes: bool = True) -> Callable[[T], T]:
    """Add a block of that many channels to the table."""

    def add(cls: T) -> T:
        _add(Own(cls.__name__, lambda: Around(cls, width), sizes))
        return cls

    return add


def network(sizes: bool = True) -> Callable[[T], T]:
    """Add a whole network to the table."""

    def add(cls: T) -> T:
        _add(Own(cls.__name__, cls, sizes))
        return cls

    return add


def _add(own: Own) -> None:
    if own.name in _FOUND:
        raise ValueError(f"two own modules are named {own.name}")
    _FOUND[own.name] = own


def all_own() -> dict[str, Own]:
    """Every network of the table by name."""
    for file in FILES:
        importlib.import_module(file)
    return dict(sorted(_FOUND.items()))
