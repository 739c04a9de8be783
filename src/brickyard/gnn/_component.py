"""Components and assemblies of graph networks, and their files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from brickyard._files import read_as
from brickyard.assembly._assembly import Joined
from brickyard.base._checks import given_path
from brickyard.base._errors import FileError
from brickyard.base._frozen import Frozen, Name, validated
from brickyard.base._records import AssemblyManifest, ComponentManifest, ScalingRecord
from brickyard.component._component import Cut
from brickyard.gnn._network import FEATURES, GraphLayerSpec, GraphNetwork, NodeLayer
from brickyard.network._stored import check_all_used, taken, tensors_of
from brickyard.network._untouched import all_in_evaluation, guarded
from brickyard.outputs._outputs import check_outputs
from brickyard.scaling._scale import Scale
from brickyard.storage._safefile import write


class GraphNetworkSpec(Frozen):
    """A network without its numbers: names and layers, from the features to the classes."""

    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1024)]
    layers: tuple[GraphLayerSpec, ...]

    @classmethod
    def of(cls, network: GraphNetwork) -> GraphNetworkSpec:
        """That of a network."""
        return cls(names=network.names, layers=tuple(layer.spec for layer in network.steps()))

    def filled(self, tensors: dict[str, Tensor], prefix: str, columns: Tensor, outputs: int) -> GraphNetwork:
        """The network with the numbers of a file."""
        widths, reads = [len(columns), *(layer.width for layer in self.layers)], [s.inputs for s in self.layers]
        if len(self.names) != len(self.layers) or widths[:-1] != reads or widths[-1] != outputs:
            why = f"its network does not map {len(columns)} features to {outputs} outputs"
            raise FileError("file-network-invalid", why)
        layers = [
            NodeLayer(s, {k: taken(tensors, f"{prefix}layers.{i}.{k}", shape) for k, shape in s.shapes.items()})
            for i, s in enumerate(self.layers)
        ]
        if len({value.dtype for layer in layers for value in layer.parameters()}) > 1:
            raise FileError("file-tensor-mismatch", "its network has values of several types")
        return GraphNetwork(layers, self.names, columns)


class GraphComponentFile(Frozen):
    """The JSON text of a graph component's file, beside its format version."""

    kind: Literal["graph-component"] = "graph-component"
    component: ComponentManifest
    network: GraphNetworkSpec


class GraphAssemblyFile(Frozen):
    """The JSON text of a graph assembly's file, beside its format version."""

    kind: Literal["graph-assembly"] = "graph-assembly"
    assembly: AssemblyManifest
    networks: tuple[GraphNetworkSpec, ...]


class GraphComponent(Cut):
    """A working graph network for one task, cut from one source; it needs no PyTorch Geometric.

    Attributes:
        manifest: What it is and where it came from. Its "images" are nodes; FLOPs are those of one pass over the graph
            that it was located on.

    Shapes:
        (nodes, features of the source), (2, edges) -> (nodes, classes of the task), and one more with reject.

    Example:
        >>> from brickyard.gnn import disassemble, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source, (x, edges, labels) = random_network("gcn", 12, 8, 4), random_graph()
        >>> part = disassemble(source, locate(source, (x, edges, labels), nodes=range(40)), task=[1, 3])
        >>> part.classes, part(x, edges).shape
        (('1', '3'), torch.Size([60, 2]))
    """

    network: GraphNetwork

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of the task's classes for all nodes; with reject, the log-sum-exp of the others comes last."""
        return self.head(self.network(x, edge_index))

    @guarded
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the component to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        text = GraphComponentFile(component=self.manifest, network=GraphNetworkSpec.of(self.network))
        tensors = tensors_of(self.network, "network.")
        return write(given_path(path, "the file to write"), tensors, text.model_dump(mode="json"), overwrite)


def columns_of(parts: Sequence[ComponentManifest], shared_input: bool) -> list[Tensor]:
    """The columns of the table of features that each part reads: of one table, or of theirs side by side."""
    starts = itertools.accumulate((0 if shared_input else part.input_shape[0] for part in parts), initial=0)
    return [torch.tensor(part.axes[FEATURES].kept) + start for part, start in zip(parts, starts, strict=False)]


class GraphAssembly(Joined):
    """One classifier of nodes made of components.

    Attributes:
        networks: One a part ("parallel"), or one in all ("padded").

    Shapes:
        (nodes, features), (2, edges) -> (nodes, classes). With `shared_input` the features are those that every part's
        source takes; without, each source's side by side, as `disjoint` lays them.

    Example:
        >>> from brickyard.gnn import assemble, disassemble, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source, (x, edges, labels) = random_network("gat", 12, 8, 4), random_graph()
        >>> relevance = locate(source, (x, edges, labels), nodes=range(40))
        >>> whole = assemble([disassemble(source, relevance, task=[k]) for k in (3, 1)], form="padded")
        >>> whole.classes, whole(x, edges).shape
        (('3', '1'), torch.Size([60, 2]))
    """

    networks: Sequence[GraphNetwork]

    def __init__(
        self,
        networks: Sequence[GraphNetwork],
        manifest: AssemblyManifest,
        matrix: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(all_in_evaluation(networks))  # type: ignore[assignment]
        self.manifest = manifest
        self._scale_by(matrix, shift)
        self.eval()

    def side_by_side(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """The parts' logits of their classes before scaling, (nodes, logits)."""
        return self.laid(self._outputs(x, edge_index))

    def _outputs(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, ...]:
        outputs = torch.cat([network(x, edge_index) for network in self.networks], 1)
        found: tuple[Tensor, ...] = outputs.split([part.width for part in self.manifest.parts], 1)
        return found

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Logits of all classes for all nodes; with reject, one more."""
        outputs = self._outputs(x, edge_index)
        return self.scaled(self.laid(outputs), energies=self.energies(outputs), unknown=self.unknown(outputs))

    def with_scaling(self, fitted: Scale, record: ScalingRecord) -> GraphAssembly:
        """The same assembly, scaled otherwise."""
        manifest = self.manifest.model_copy(update={"scaling": record})
        return GraphAssembly(self.networks, manifest, fitted.matrix, fitted.shift)

    @guarded
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the assembly to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        tensors = tensors_of(nn.ModuleList(self.networks), "networks.") | self._scaling_tensors()
        text = GraphAssemblyFile(assembly=self.manifest, networks=tuple(map(GraphNetworkSpec.of, self.networks)))
        return write(given_path(path, "the file to write"), tensors, text.model_dump(mode="json"), overwrite)


# -- reading -----------------------------------------------------------------------------------------------


@guarded
def load(path: str | Path) -> GraphComponent | GraphAssembly:
    """Read a component or an assembly of graph networks; neither the source nor PyTorch Geometric is needed.

    Raises:
        FileError: The file is missing, truncated, foreign, from a newer version, or not consistent.

    Example:
        >>> import tempfile, torch
        >>> from brickyard.gnn import disassemble, load, locate, random_network
        >>> from brickyard.testing import random_graph
        >>> source, (x, edges, labels) = random_network("gcn", 12, 8, 4), random_graph()
        >>> part = disassemble(source, locate(source, (x, edges, labels), nodes=range(40)), task=[1, 3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(part.save(f"{folder}/part.safetensors"))
        >>> torch.equal(again(x, edges), part(x, edges))
        True
    """
    readers = {"graph-component": _component, "graph-assembly": _assembly}
    expected, others = "a component or an assembly of graph networks", ("component", "assembly", "relevance")
    found: GraphComponent | GraphAssembly = read_as(path, readers, expected, others, "brickyard.load")
    return found


def _component(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> GraphComponent:
    file = validated(GraphComponentFile, text, "its text")
    (columns,) = _columns([file.component], shared_input=True)
    network = file.network.filled(tensors, "network.", columns, file.component.width)
    check_all_used(tensors)
    return GraphComponent(network, file.component)


def _assembly(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> GraphAssembly:
    file = validated(GraphAssemblyFile, text, "its text")
    manifest = file.assembly
    if manifest.form not in ("parallel", "padded") or manifest.votes or manifest.scaling.gate:
        raise FileError("file-inconsistent", "its form or scaling is not one that graph networks support")
    columns, widths = _columns(manifest.parts, manifest.shared_input), [part.width for part in manifest.parts]
    if manifest.form == "padded":
        columns, widths = [torch.cat(columns).unique()], [sum(widths)]
    if len(file.networks) != len(columns):
        raise FileError(
            "file-inconsistent",
            f"it has {len(file.networks)} networks for {len(manifest.parts)} parts joined as {manifest.form!r}",
        )
    networks = [
        spec.filled(tensors, f"networks.{index}.", own, width)
        for index, (spec, own, width) in enumerate(zip(file.networks, columns, widths, strict=True))
    ]
    matrix, shift = tensors.pop("scaling.matrix", None), tensors.pop("scaling.shift", None)
    check_all_used(tensors)
    return GraphAssembly(networks, manifest, matrix, shift)


def _columns(parts: Sequence[ComponentManifest], shared_input: bool) -> list[Tensor]:
    """The features that the parts read, checked."""
    for part in parts:
        axis = part.axes.get(FEATURES)
        if len(part.input_shape) != 1 or axis is None or not axis.kept or max(axis.kept) >= part.input_shape[0]:
            why = f"its manifest does not say which of the {part.input_shape} features are read"
            raise FileError("file-inconsistent", why)
        check_outputs(part)
    return columns_of(parts, shared_input)
