"""Components and assemblies of graph networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from brickyard.component import describe
from brickyard.graphnets.network import FEATURES, GraphNetwork
from brickyard.manifest import AssemblyManifest, ComponentManifest, ScalingRecord
from brickyard.scaling import Scale, combine

__all__ = ["GraphAssembly", "GraphComponent", "columns_of", "task_logits"]


class GraphComponent(nn.Module):
    """A working graph network for one task, cut from one source; it needs no PyTorch Geometric.

    Attributes:
        network: The cut network.
        manifest: What it is and where it came from. Its "images" are nodes; FLOPs are those of one pass over the graph
            that it was located on.

    Shapes:
        (nodes, features of the source), (2, edges) -> (nodes, classes of the task), and one more with reject.

    Example:
        >>> from brickyard.graphnets import disassemble, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source, (x, edges, labels) = random_network("gcn", 12, 8, 4), random_graph()
        >>> part = disassemble(source, locate(source, (x, edges, labels), nodes=range(40)), task=[1, 3])
        >>> part.classes, part(x, edges).shape
        (('1', '3'), torch.Size([60, 2]))
    """

    def __init__(self, network: GraphNetwork, manifest: ComponentManifest) -> None:
        super().__init__()
        self.network = network
        self.manifest = manifest
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        return self.manifest.classes

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of the task's classes for all nodes; with reject, the log-sum-exp of the others comes last."""
        return task_logits(self.manifest, self.network(x, edge_index))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the component to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        from brickyard.graphnets.files import save

        return save(self, Path(path), overwrite=overwrite)

    def __str__(self) -> str:
        return describe(self.manifest)


def task_logits(manifest: ComponentManifest, logits: Tensor) -> Tensor:
    """A network's outputs (nodes, n) -> the task's, with the reject output where there is one."""
    if not manifest.reject:
        return logits
    task = list(manifest.task)
    others = [k for k in range(len(manifest.source.classes)) if k not in manifest.task]
    return torch.cat([logits[:, task], logits[:, others].logsumexp(1, keepdim=True)], 1)


def columns_of(parts: Sequence[ComponentManifest], shared_input: bool) -> list[Tensor]:
    """The columns of the table of features that each part reads: of one table, or of theirs side by side."""
    found: list[Tensor] = []
    start = 0
    for part in parts:
        found.append(torch.tensor(part.axes[FEATURES].kept) + start)
        start += 0 if shared_input else part.input_shape[0]
    return found


class GraphAssembly(nn.Module):
    """One classifier of nodes made of components.

    Attributes:
        networks: One a part ("parallel"), or one in all ("padded").
        manifest: What it is, with the manifests of its parts.
        matrix: The scaling's linear map on the parts' logits, or None.
        shift: Its shift, or None.

    Shapes:
        (nodes, features), (2, edges) -> (nodes, classes). With `shared_input` the features are those that every part's
        source takes; without, each source's side by side, as `disjoint` lays them.

    Example:
        >>> from brickyard.graphnets import assemble, disassemble, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source, (x, edges, labels) = random_network("gat", 12, 8, 4), random_graph()
        >>> relevance = locate(source, (x, edges, labels), nodes=range(40))
        >>> whole = assemble([disassemble(source, relevance, task=[k]) for k in (3, 1)], form="padded")
        >>> whole.classes, whole(x, edges).shape
        (('3', '1'), torch.Size([60, 2]))
    """

    matrix: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        networks: Sequence[GraphNetwork],
        manifest: AssemblyManifest,
        matrix: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.manifest = manifest
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        return self.manifest.classes

    def side_by_side(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """The parts' logits of their classes before scaling, (nodes, logits)."""
        parts = self.manifest.parts
        outputs = torch.cat([network(x, edge_index) for network in self.networks], 1)
        found: list[Tensor] = []
        for part, own in zip(parts, outputs.split([part.width for part in parts], 1), strict=True):
            own = own.log_softmax(1) if self.manifest.scaling.log_probability else own
            found.append(own[:, list(part.task)] if part.reject else own)
        return torch.cat(found, 1)

    def scaled(self, logits: Tensor) -> Tensor:
        """What `side_by_side` gives -> one logit a class."""
        if self.matrix is not None and self.shift is not None:
            logits = logits @ self.matrix.T.to(logits.dtype) + self.shift.to(logits.dtype)
        return combine(self.manifest, logits)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of all classes for all nodes."""
        return self.scaled(self.side_by_side(x, edge_index))

    def with_scaling(self, fitted: Scale, record: ScalingRecord) -> GraphAssembly:
        """The same assembly, scaled otherwise."""
        manifest = self.manifest.model_copy(update={"scaling": record})
        networks = [network for network in self.networks if isinstance(network, GraphNetwork)]
        return GraphAssembly(networks, manifest, fitted.matrix, fitted.shift)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the assembly to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        from brickyard.graphnets.files import save

        return save(self, Path(path), overwrite=overwrite)
