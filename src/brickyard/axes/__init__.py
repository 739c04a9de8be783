"""Tracing: turns a model into a network of steps whose channel axes are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.axes._graph import Axis as Axis
    from brickyard.axes._graph import Graph as Graph
    from brickyard.axes._graph import Mixer as Mixer
    from brickyard.axes._graph import trace as trace

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "axes._graph": "Axis Graph Mixer trace",
    },
)
