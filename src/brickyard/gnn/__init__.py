"""Model disassembling and assembling for graph networks of PyTorch Geometric."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brickyard.base._lazy import lazy_exports

if TYPE_CHECKING:
    from brickyard.gnn._component import GraphAssembly as GraphAssembly
    from brickyard.gnn._component import GraphComponent as GraphComponent
    from brickyard.gnn._component import load as load
    from brickyard.gnn._evaluation import evaluate as evaluate
    from brickyard.gnn._make import GraphRelevance as GraphRelevance
    from brickyard.gnn._make import assemble as assemble
    from brickyard.gnn._make import disassemble as disassemble
    from brickyard.gnn._make import locate as locate
    from brickyard.gnn._network import GraphNetwork as GraphNetwork
    from brickyard.gnn._network import NodeData as NodeData
    from brickyard.gnn._network import disjoint as disjoint
    from brickyard.gnn._network import random_network as random_network

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "gnn._component": "GraphAssembly GraphComponent load",
        "gnn._evaluation": "evaluate",
        "gnn._make": "GraphRelevance assemble disassemble locate",
        "gnn._network": "GraphNetwork NodeData disjoint random_network",
    },
)
