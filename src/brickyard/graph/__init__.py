"""Tracing: a model becomes a network of steps whose channel axes are known."""

from brickyard.graph.axes import Axis, Graph, Mixer, analyse, trace

__all__ = ["Axis", "Graph", "Mixer", "analyse", "trace"]
