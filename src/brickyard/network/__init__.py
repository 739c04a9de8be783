"""A network as data: its steps, the tables of layers and functions, fusing, identity, stored weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.network._fusing import fuse as fuse
    from brickyard.network._identity import fingerprint as fingerprint
    from brickyard.network._network import Network as Network
    from brickyard.network._network import Node as Node

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "network._fusing": "fuse",
        "network._identity": "fingerprint",
        "network._network": "Network Node",
    },
)
