"""Modules whose layers may have been named by a stranger."""

from __future__ import annotations

from torch import nn

from brickyard.base._messages import shown


class Shown(nn.Module):
    """A module that says what it is made of without giving a terminal orders."""

    def __repr__(self) -> str:
        return shown(super().__repr__())
