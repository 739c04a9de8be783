"""Components, assemblies and relevances as files: safetensors with one JSON text, nothing that executes.

Reading treats a file as hostile: known operations, shapes that match; or one `FileError`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.assembly import Assembly, network_shapes
from brickyard.bounding import Bounds
from brickyard.component import Component
from brickyard.container import read, write
from brickyard.errors import BrickyardError, FileError, told
from brickyard.familiarity import Familiarity, feature_size
from brickyard.manifest import (
    AssemblyFile,
    ComponentFile,
    ComponentManifest,
    NetworkSpec,
    RelevanceFile,
    validated,
)
from brickyard.network import Network
from brickyard.options import Thresholds, given_path
from brickyard.relevance import LayerRecord, Relevance
from brickyard.scaling import Gate

__all__ = ["load", "save_assembly", "save_component", "save_relevance"]

MAX_SHARES = 1 << 26  # classes times parts of an assembly


# -- writing -----------------------------------------------------------------------------------------------


def save_component(component: Component, path: Path, *, overwrite: bool = False) -> Path:
    """Write a component. See `Component.save`."""
    text = ComponentFile(manifest=component.manifest, network=component.network.to_spec(), skeleton=component.skeleton)
    tensors = tensors_of(component.network, "network.") | tensors_of(component.familiarity, "familiarity.")
    return write(path, tensors, text.model_dump(mode="json"), overwrite)


def save_assembly(assembly: Assembly, path: Path, *, overwrite: bool = False) -> Path:
    """Write an assembly. See `Assembly.save`."""
    tensors: dict[str, Tensor] = {}
    specs: list[NetworkSpec] = []
    for index, network in enumerate(assembly.networks()):
        specs.append(network.to_spec())
        tensors.update(tensors_of(network, f"networks.{index}."))
    if assembly.manifest.form == "parallel":
        for index, part in enumerate(assembly.components()):
            tensors.update(tensors_of(part.familiarity, f"familiarity.{index}."))
    if assembly.matrix is not None and assembly.shift is not None:
        tensors["scaling.matrix"], tensors["scaling.shift"] = assembly.matrix, assembly.shift
    tensors.update(tensors_of(assembly.gate, "scaling.gate."))
    text = AssemblyFile(manifest=assembly.manifest, networks=tuple(specs), skeletons=assembly.skeletons)
    return write(path, tensors, text.model_dump(mode="json"), overwrite)


def save_relevance(relevance: Relevance, path: Path, *, overwrite: bool = False) -> Path:
    """Write relevances. See `Relevance.save`."""
    tensors: dict[str, Tensor] = {"scores": relevance.scores}
    for name, layer in relevance.layers.items():
        tensors[f"hard.{name}"] = relevance.hard_masks[name]
        tensors[f"reads.{name}"] = torch.from_numpy(layer.reads)
        tensors[f"writes.{name}"] = torch.from_numpy(layer.writes)
        if relevance.sums is not None:
            tensors[f"sums.{name}"] = relevance.sums[name]
    text = RelevanceFile(
        classes=relevance.classes,
        task=relevance.task,
        thresholds=relevance.thresholds.as_dict(),
        layers={name: layer.linear for name, layer in relevance.layers.items()},
        axes=relevance.axes,
        record=relevance.record,
        preprocessing=relevance.preprocessing,
        input_shape=relevance.input_shape,
        source_sha256=relevance.source_sha256,
        source_name=relevance.source_name,
        sums=relevance.sums is not None,
    )
    return write(path, tensors, text.model_dump(mode="json"), overwrite)


def tensors_of(module: nn.Module | None, prefix: str) -> dict[str, Tensor]:
    state = {} if module is None else module.state_dict()
    blank = next((name for name, value in state.items() if value.is_meta), None)
    if blank is not None:
        raise FileError(f"tensor {blank!r} is on the meta device, without numbers to write; load the component again")
    return {prefix + name: value for name, value in state.items()}


# -- reading -----------------------------------------------------------------------------------------------


def load(path: str | Path) -> Component | Assembly | Relevance:
    """Read a component, an assembly or relevances from a file; the source's class is not needed.

    Raises:
        FileError: The file is missing, truncated, foreign, from a newer version, or not consistent.

    Example:
        >>> import brickyard as by, tempfile, torch
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> source = chain()
        >>> component = by.disassemble(source, by.locate(source, data), task=["1", "3"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = component.save(f"{folder}/small.safetensors")
        ...     again = by.load(path)
        >>> torch.equal(again(data[0]), component(data[0]))
        True
    """
    path = given_path(path, "the file to load")
    text, tensors = read(path)
    manifest = text.get("manifest")
    kind = manifest.get("kind") if isinstance(manifest, dict) else text.get("kind")
    readers: dict[Any, Callable[[Path, dict[str, Any], dict[str, Tensor]], Component | Assembly | Relevance]]
    readers = {"component": read_component, "assembly": read_assembly, "relevance": read_relevance}
    if kind in ("graph-component", "graph-assembly"):
        raise FileError(f"{path} holds a part of a graph network; read it with brickyard.graphnets.load")
    if not isinstance(kind, str) or kind not in readers:
        raise FileError(f"{path} holds a {told(repr(kind))}; a component, an assembly or relevances are expected")
    try:
        return readers[kind](path, text, tensors)
    except FileError as error:
        raise FileError(f"{path}: {told(error)}") from None
    except BrickyardError as error:
        raise FileError(f"{path} is not consistent: {told(error)}") from None


def read_component(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> Component:
    file = validated(ComponentFile, text, "its text")
    bounds = Bounds(count_numbers(tensors))
    network = stored_network(file.network, tensors, "network.", file.manifest.input_shape, file.manifest.width, bounds)
    check_input(file.manifest)
    familiarity = read_familiarity(file.manifest, network, tensors, "familiarity.")
    check_all_used(tensors)
    return Component(network, file.manifest, file.skeleton, familiarity)


def read_assembly(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> Assembly:
    file = validated(AssemblyFile, text, "its text")
    manifest = file.manifest
    shapes, widths = network_shapes(manifest.parts, manifest.form, manifest.shared_input)
    if len(file.networks) != len(shapes) or len(file.skeletons) != len(manifest.parts):
        raise FileError(f"{len(file.networks)} networks for {len(manifest.parts)} parts joined as {manifest.form!r}")
    if len(manifest.classes) * len(manifest.parts) > MAX_SHARES:
        raise FileError(f"{len(manifest.parts)} parts and {len(manifest.classes)} classes are too many for one file")
    for part in manifest.parts:
        check_input(part)
    bounds = Bounds(count_numbers(tensors))
    networks = [
        stored_network(spec, tensors, f"networks.{index}.", shape, width, bounds)
        for index, (spec, shape, width) in enumerate(zip(file.networks, shapes, widths, strict=True))
    ]
    matrix, shift = tensors.pop("scaling.matrix", None), tensors.pop("scaling.shift", None)
    if (matrix is None) != (shift is None):
        raise FileError("its scaling has one of scaling.matrix and scaling.shift; both are needed, or neither")
    known: list[Familiarity | None] = []
    if manifest.form == "parallel":
        pairs = zip(manifest.parts, networks, strict=True)
        known = [read_familiarity(part, own, tensors, f"familiarity.{i}.") for i, (part, own) in enumerate(pairs)]
    gate = None
    if manifest.scaling.gate:
        sizes = [part.mean.shape[1] for part in known if part is not None]
        if len(sizes) != len(manifest.parts):
            raise FileError("its scaling needs what is known of the features of every part")
        gate = Gate.blank(sizes)
        match_types(gate, tensors, "scaling.gate.")
        fill_in(gate, tensors, "scaling.gate.")
    check_all_used(tensors)
    return Assembly(networks, manifest, matrix, shift, file.skeletons, known, gate)


def read_relevance(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> Relevance:
    file = validated(RelevanceFile, text, "its text")
    channels = sum(size for _, size in file.axes.values())
    count = len(file.classes)

    def take(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        value = tensors.pop(name, None)
        if value is None or value.dtype != dtype or (shape and tuple(value.shape) != shape):
            found = "missing" if value is None else f"{tuple(value.shape)} of {value.dtype}"
            raise FileError(f"tensor {name!r} is {found}; {shape or 'numbers'} of {dtype} is expected")
        return value

    if len(file.input_shape) != 3:
        raise FileError(f"its input shape {file.input_shape} is not (channels, height, width)")
    end = 0
    for name, (start, size) in sorted(file.axes.items(), key=lambda item: item[1]):
        if start != end:
            raise FileError(f"axis {name!r} starts at channel {start}; {end} is expected")
        end += size
    layers: dict[str, LayerRecord] = {}
    hard: dict[str, Tensor] = {}
    sums: dict[str, Tensor] | None = {} if file.sums else None
    scores = take("scores", torch.float64, 3, count, channels)
    for name, linear in file.layers.items():
        reads, writes = take(f"reads.{name}", torch.int64), take(f"writes.{name}", torch.int64)
        for numbers in (reads, writes):
            if numbers.ndim != 1 or not len(numbers) or int(numbers.min()) < 0 or int(numbers.max()) >= channels:
                raise FileError(f"layer {name!r} has channel numbers outside 0..{channels - 1}")
        layers[name] = LayerRecord(np.asarray(reads), np.asarray(writes), linear)
        hard[name] = take(f"hard.{name}", torch.bool, count, len(reads))
        if sums is not None:
            sums[name] = take(f"sums.{name}", torch.float32, count, len(writes), len(reads))
    check_all_used(tensors)
    if set(file.thresholds) != set(Thresholds().as_dict()):
        raise FileError(f"its thresholds are named {', '.join(file.thresholds)}")
    if any(k >= count for k in file.task) or not file.task:
        raise FileError(f"its task {file.task} does not fit {count} classes")
    return Relevance(
        classes=file.classes,
        task=file.task,
        thresholds=Thresholds(**file.thresholds),
        layers=layers,
        axes=dict(file.axes),
        record=file.record,
        preprocessing=file.preprocessing,
        input_shape=file.input_shape,
        source_sha256=file.source_sha256,
        source_name=file.source_name,
        sums=sums,
        hard_masks=hard,
        scores=scores,
    )


def stored_network(
    spec: NetworkSpec, tensors: dict[str, Tensor], prefix: str, shape: tuple[int, ...], width: int, bounds: Bounds
) -> Network:
    """Build a network, check that it runs from the image to the right number of outputs, and fill it."""
    network = Network.from_spec(spec)
    if len(shape) != 3:
        raise FileError(f"its input shape {shape} is not (channels, height, width)")
    match_types(network, tensors, prefix)
    try:
        found = bounds.run(network, shape)
    except FileError:
        raise
    except Exception as error:
        raise FileError(f"its network does not run on images of shape {shape}: {told(error)}") from None
    if not isinstance(found, Tensor) or tuple(found.shape) != (2, width):
        raise FileError(f"its network does not give {width} outputs an image")
    fill_in(network, tensors, prefix)
    return network


def count_numbers(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())


def match_types(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Give the tensors of a module without numbers the types of floating-point numbers that those of the file have."""
    state = module.state_dict()
    for name, blank in state.items():
        value = tensors.get(prefix + name)
        if value is not None and value.is_floating_point() and blank.is_floating_point():
            state[name] = blank.to(value.dtype)
    module.load_state_dict(state, strict=True, assign=True)


def check_input(manifest: ComponentManifest) -> None:
    """Refuse a preprocessing whose images are not those that the network takes."""
    how, (channels, *size) = manifest.preprocessing, manifest.input_shape
    if how.size is not None and list(how.size) != size:
        raise FileError(f"its preprocessing makes images of {how.size}, and its network takes {tuple(size)}")
    if how.channels not in (None, channels):
        raise FileError(f"its preprocessing makes images of {how.channels} channels, and its network takes {channels}")
    if how.mean is not None and len(how.mean) not in (1, channels):
        raise FileError(f"its preprocessing has a mean for {len(how.mean)} channels, and its network takes {channels}")


def read_familiarity(
    manifest: ComponentManifest, network: Network, tensors: dict[str, Tensor], prefix: str
) -> Familiarity | None:
    record = None if manifest.statistics is None else manifest.statistics.familiarity
    if record is None:
        return None
    size = feature_size(network, manifest.input_shape[0])
    if record.size != size:
        raise FileError(f"its manifest tells of {record.size} features, and its network has {size}")
    found = Familiarity.blank(record)
    match_types(found, tensors, prefix)
    fill_in(found, tensors, prefix)
    if not (found.unit > 0 and bool((found.length > 0).all())):
        raise FileError(f"tensors {prefix}unit and {prefix}length must be above 0")
    return found


def fill_in(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Give a module without numbers those of the file."""
    state: dict[str, Tensor] = {}
    for name, blank in module.state_dict().items():
        value = tensors.pop(prefix + name, None)
        if value is None:
            raise FileError(f"tensor {prefix + name!r} is missing")
        if value.shape != blank.shape or value.dtype != blank.dtype:
            raise FileError(
                f"tensor {prefix + name!r} is {tuple(value.shape)} of {value.dtype}; {tuple(blank.shape)} of "
                f"{blank.dtype} is expected"
            )
        state[name] = value
    module.load_state_dict(state, strict=True, assign=True)


def check_all_used(tensors: dict[str, Tensor]) -> None:
    if tensors:
        raise FileError(f"tensor {sorted(tensors)[0]!r} ({len(tensors)} in all) belongs to nothing in the file")
