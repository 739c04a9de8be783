"""Model disassembling and assembling for graph networks: GCN, GraphSAGE and GAT from PyTorch Geometric.

The verbs are those of images: `locate`, `disassemble`, `assemble`, `evaluate`, `load`. Sources come from PyTorch
Geometric (`pip install 'brickyard[graphs]'`); components and assemblies run without it.
"""

from brickyard.graphnets.component import GraphAssembly, GraphComponent
from brickyard.graphnets.evaluation import evaluate
from brickyard.graphnets.files import load
from brickyard.graphnets.locating import GraphRelevance, locate
from brickyard.graphnets.making import assemble, disassemble
from brickyard.graphnets.network import GraphNetwork, NodeData, disjoint, random_network

__all__ = [
    "GraphAssembly",
    "GraphComponent",
    "GraphNetwork",
    "GraphRelevance",
    "NodeData",
    "assemble",
    "disassemble",
    "disjoint",
    "evaluate",
    "load",
    "locate",
    "random_network",
]
