"""Components and assemblies of graph networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from brickyard.base._errors import FileError
from brickyard.base._records import AssemblyManifest, ComponentManifest, Frozen, Name, ScalingRecord, validated
from brickyard.component._describe import describe
from brickyard.gnn._network import FEATURES, GraphLayerSpec, GraphNetwork, NodeLayer, shapes
from brickyard.scaling._scale import Scale, combine
from brickyard.storage._safefile import read, write


class GraphComponent(nn.Module):
    """A working graph network for one task, cut from one source; it needs no PyTorch Geometric.

    Attributes:
        network: The cut network.
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
        >>> from brickyard.gnn import assemble, disassemble, locate, random_network
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
        return save(self, Path(path), overwrite=overwrite)


class GraphNetworkSpec(Frozen):
    """A network without its numbers: names and layers, from the features to the classes."""

    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1024)]
    layers: tuple[GraphLayerSpec, ...]


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


# -- writing -----------------------------------------------------------------------------------------------


def save(model: GraphComponent | GraphAssembly, path: Path, *, overwrite: bool = False) -> Path:
    """Write a component or an assembly. See `GraphComponent.save`."""
    text: Frozen
    tensors: dict[str, Tensor] = {}
    if isinstance(model, GraphComponent):
        tensors |= _tensors(model.network, "network.")
        text = GraphComponentFile(component=model.manifest, network=_spec(model.network))
    else:
        specs: list[GraphNetworkSpec] = []
        for index, network in enumerate(model.networks):
            assert isinstance(network, GraphNetwork)
            specs.append(_spec(network))
            tensors |= _tensors(network, f"networks.{index}.")
        if model.matrix is not None and model.shift is not None:
            tensors |= {"scaling.matrix": model.matrix, "scaling.shift": model.shift}
        text = GraphAssemblyFile(assembly=model.manifest, networks=tuple(specs))
    return write(path, tensors, text.model_dump(mode="json"), overwrite)


def _spec(network: GraphNetwork) -> GraphNetworkSpec:
    return GraphNetworkSpec(names=network.names, layers=tuple(layer.spec for layer in network.steps()))


def _tensors(network: GraphNetwork, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in network.state_dict().items()}


# -- reading -----------------------------------------------------------------------------------------------


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
    path = Path(path)
    text, tensors = read(path)
    kind = text.get("kind")
    try:
        if kind == "graph-component":
            return _component(text, tensors)
        if kind == "graph-assembly":
            return _assembly(text, tensors)
    except FileError as error:
        raise FileError(error.code, f"{path}: {error}") from None
    raise FileError(
        "file-wrong-kind",
        f"{path} holds no part of a graph network; brickyard.load reads components and assemblies of images",
    )


def _component(text: dict[str, Any], tensors: dict[str, Tensor]) -> GraphComponent:
    file = validated(GraphComponentFile, text, "its text")
    (columns,) = _columns([file.component], shared_input=True)
    network = _network(file.network, tensors, "network.", columns, file.component.width)
    _all_used(tensors)
    return GraphComponent(network, file.component)


def _assembly(text: dict[str, Any], tensors: dict[str, Tensor]) -> GraphAssembly:
    file = validated(GraphAssemblyFile, text, "its text")
    manifest = file.assembly
    if manifest.form not in ("parallel", "padded") or manifest.votes or manifest.scaling.gate:
        raise FileError("file-inconsistent", "it is joined or scaled in a way that graph networks are not")
    columns, widths = _columns(manifest.parts, manifest.shared_input), [part.width for part in manifest.parts]
    if manifest.form == "padded":
        columns, widths = [torch.cat(columns).unique()], [sum(widths)]
    if len(file.networks) != len(columns):
        raise FileError(
            "file-inconsistent",
            f"{len(file.networks)} networks for {len(manifest.parts)} parts joined as {manifest.form!r}",
        )
    networks = [
        _network(spec, tensors, f"networks.{index}.", own, width)
        for index, (spec, own, width) in enumerate(zip(file.networks, columns, widths, strict=True))
    ]
    matrix, shift = tensors.pop("scaling.matrix", None), tensors.pop("scaling.shift", None)
    count = sum(map(len, manifest.columns))
    for value, shape in ((matrix, (count, count)), (shift, (count,))):
        if (matrix is None) != (shift is None) or (value is not None and tuple(value.shape) != shape):
            raise FileError("file-inconsistent", f"its scaling does not fit {count} logits")
    _all_used(tensors)
    return GraphAssembly(networks, manifest, matrix, shift)


def _columns(parts: Sequence[ComponentManifest], shared_input: bool) -> list[Tensor]:
    """The features that the parts read, checked."""
    for part in parts:
        axis = part.axes.get(FEATURES)
        kept = () if axis is None else axis.kept
        if len(part.input_shape) != 1 or not kept or len(set(kept)) != len(kept) or max(kept) >= part.input_shape[0]:
            raise FileError(
                "file-inconsistent", f"its manifest does not say which of {part.input_shape} features are read"
            )
    return columns_of(parts, shared_input)


def _network(
    spec: GraphNetworkSpec, tensors: dict[str, Tensor], prefix: str, columns: Tensor, outputs: int
) -> GraphNetwork:
    """Build a network, check that it leads from the features to the classes, and fill it."""
    widths = [len(columns), *(layer.width for layer in spec.layers)]
    reads = [layer.inputs for layer in spec.layers]
    if len(spec.names) != len(spec.layers) or widths[:-1] != reads or widths[-1] != outputs:
        raise FileError(
            "file-network-invalid", f"its network does not lead from {len(columns)} features to {outputs} outputs"
        )
    layers: list[NodeLayer] = []
    for index, layer in enumerate(spec.layers):
        found: dict[str, Tensor] = {}
        for name, shape in shapes(layer).items():
            key = f"{prefix}layers.{index}.{name}"
            value = tensors.pop(key, None)
            if value is None or tuple(value.shape) != shape or not value.is_floating_point():
                what = "missing" if value is None else f"{tuple(value.shape)} of {value.dtype}"
                raise FileError(
                    "file-tensor-mismatch",
                    f"tensor {key!r} is {what}; floating-point numbers of shape {shape} are expected",
                )
            found[name] = value
        layers.append(NodeLayer(layer, found))
    if len({value.dtype for layer in layers for value in layer.parameters()}) > 1:
        raise FileError("file-tensor-mismatch", "its network holds numbers of several types")
    return GraphNetwork(layers, spec.names, columns)


def _all_used(tensors: dict[str, Tensor]) -> None:
    if tensors:
        raise FileError(
            "file-tensor-mismatch",
            f"tensor {sorted(tensors)[0]!r} ({len(tensors)} in all) belongs to nothing in the file",
        )
