"""Reading assemblies from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from brickyard.assembly._assembly import Assembly
from brickyard.assembly._common import network_shapes, shared, sharing_of
from brickyard.assembly._turns import read_glance
from brickyard.base._errors import FileError
from brickyard.base._frozen import validated
from brickyard.base._messages import told
from brickyard.base._records import AssemblyFile
from brickyard.component._component import check_input, read_familiarity
from brickyard.component._predictor import check_answers
from brickyard.network._cost_limit import Bounds
from brickyard.network._network import Network
from brickyard.network._stored import check_all_used, count_numbers, fill_in, match_types, stored_network
from brickyard.outputs._outputs import check_outputs
from brickyard.scaling._scale import Gate

MAX_SHARES = 1 << 26  # classes times parts of an assembly


def read_assembly(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> Assembly:
    file = validated(AssemblyFile, text, "its text")
    manifest = file.manifest
    shapes, widths = network_shapes(manifest.parts, manifest.form, manifest.shared_input)
    if len(file.networks) != len(shapes) or len(file.skeletons) != len(manifest.parts):
        raise FileError(
            "file-inconsistent",
            f"it has {len(file.networks)} networks for {len(manifest.parts)} parts joined as {manifest.form!r}",
        )
    if len(manifest.classes) * len(manifest.parts) > MAX_SHARES:
        found = f"{len(manifest.parts)} parts and {len(manifest.classes)} classes"
        raise FileError("file-too-large", f"{found} are too many for one file")
    for part in manifest.parts:
        check_input(part)
    check_outputs(manifest)
    bounds = [Bounds(count_numbers(tensors))] * len(shapes)
    if file.shared:
        _repeat_shared(file, tensors)
        bounds = _bounds_of_shared(file, tensors, bounds[0], shapes)
    networks: list[Network] = []
    entering = []
    for index, (spec, shape, width, bound) in enumerate(zip(file.networks, shapes, widths, bounds, strict=True)):
        boxes = manifest.parts[index].boxes if manifest.apart else None
        places = () if boxes is None else (boxes.places(shape[1:]),)
        networks.append(stored_network(spec, tensors, f"networks.{index}.", shape, width, bound, places))
        entering.append(bound.entering)
    matrix, shift = tensors.pop("scaling.matrix", None), tensors.pop("scaling.shift", None)
    each = enumerate(zip(manifest.parts, networks, entering, strict=True) if manifest.apart else ())
    known = [read_familiarity(part, own, tensors, f"familiarity.{i}.", seen) for i, (part, own, seen) in each]
    gate = None
    if manifest.scaling.gate:
        sizes = [part.mean.shape[1] for part in known if part is not None]
        if len(sizes) != len(manifest.parts):
            raise FileError("file-inconsistent", "its scaling needs the feature statistics of every part")
        gate = Gate.blank(sizes)
        match_types(gate, tensors, "scaling.gate.")
        fill_in(gate, tensors, "scaling.gate.")
    glance = read_glance(manifest, matrix, tensors) if manifest.cascade is not None else None
    check_all_used(tensors)
    sharing = None
    if manifest.apart:
        networks, sharing, manifest = shared(networks, manifest, file.shared)
    assembly = Assembly(networks, manifest, matrix, shift, file.skeletons, known, gate, sharing, glance)
    if len({part.input_shape for part in manifest.parts if part.preprocessing.size is None}) < 2:
        check_answers(assembly, sum(bound.work for bound in set(bounds)))  # else no one size of images need fit all
    return assembly


def _repeat_shared(file: AssemblyFile, tensors: dict[str, Tensor]) -> None:
    """Put the tensors of layers in common under the name of each layer."""
    specs: dict[str, Any] = {}
    for index, one in enumerate(file.networks if file.manifest.apart else ()):
        specs |= {f"{index}.{name}": spec for name, spec in (*one.layers.items(), *one.tensors.items())}
    found: dict[str, list[str]] = {}
    for name in tensors:
        for owner in (name, name.rpartition(".")[0]):
            found.setdefault(owner, []).append(name)
    for own, first in file.shared.items():
        if own not in specs or first in file.shared or specs[own] != specs.get(first):
            why = f"{told(own, 80)!r} cannot be the same layer or tensor as {told(first, 80)!r}"
            raise FileError("file-inconsistent", f"{why}: there is no such pair in its networks")
        for name in found.get(f"networks.{first}", []):
            again = f"networks.{own}{name.removeprefix(f'networks.{first}')}"
            if again in tensors:
                raise FileError("file-tensor-mismatch", f"tensor {again!r} is there, and is also to be {name!r}")
            tensors[again] = tensors[name]


def _bounds_of_shared(
    file: AssemblyFile, tensors: dict[str, Tensor], bounds: Bounds, shapes: Sequence[tuple[int, ...]]
) -> list[Bounds]:
    """Check what networks with layers in common cost when each step runs once; return a limit for each by itself."""
    bones = [Network.from_spec(spec) for spec in file.networks]
    try:
        for index, network in enumerate(bones):
            match_types(network, tensors, f"networks.{index}.")
        runs = sharing_of(bones, file.manifest.parts, file.shared).runs
        once = {run.parts[0]: run.network(bones) for run in runs}
        gone = {index for run in runs for index in run.parts[1:]}
        for index in range(len(bones)):
            if index not in gone:
                bounds.run(once.get(index, bones[index]), shapes[index])
    except FileError:
        raise
    except Exception as error:
        raise FileError("file-network-invalid", f"its networks do not run together: {told(error)}") from None
    return [Bounds(bounds.numbers) for _ in shapes]
