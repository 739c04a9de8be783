"""Sources: trained classifiers by name, and a zoo of small networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.sources._loading import Source as Source
    from brickyard.sources._loading import load_source as load_source
    from brickyard.sources._loading import save_source as save_source
    from brickyard.sources._registry import register as register
    from brickyard.sources._zoo import available as available
    from brickyard.sources._zoo import build as build

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "sources._loading": "Source load_source save_source",
        "sources._registry": "register",
        "sources._zoo": "available build",
    },
)
