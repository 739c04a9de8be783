"""What the networks of several parts take, return and have in common."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import nn

from brickyard.base._records import AssemblyManifest, ComponentManifest
from brickyard.network._network import Network, kind
from brickyard.runtime._profiling import count_flops, count_parameters
from brickyard.surgery._sharing import Sharing, find_sharing, tied


def shared(
    networks: Sequence[Network], manifest: AssemblyManifest, ties: Mapping[str, str] | None = None
) -> tuple[list[Network], Sharing, AssemblyManifest]:
    """The networks of parts with equal layers as one, what they have in common, and the manifest that says so.

    Args:
        networks: The networks of the parts.
        manifest: That of the assembly.
        ties: Layers and tensors that are known to be equal, as in `Sharing`.
    """
    sharing, shapes = sharing_of(networks, manifest.parts, ties), [part.input_shape for part in manifest.parts]
    made = tied(networks, sharing.ties)
    if not sharing.runs or manifest.shared_parameters or manifest.shared_flops:
        return made, sharing, manifest
    twice = sum(count_flops(networks[index], shapes[index]) for run in sharing.runs for index in run.parts)
    once = sum(count_flops(run.network(made), shapes[run.parts[0]]) for run in sharing.runs)
    numbers = sum(map(count_parameters, networks)) - count_parameters(nn.ModuleList(made))
    return made, sharing, manifest.model_copy(update={"shared_parameters": numbers, "shared_flops": twice - once})


def sharing_of(
    networks: Sequence[Network], parts: Sequence[ComponentManifest], ties: Mapping[str, str] | None = None
) -> Sharing:
    """What networks have in common that are given the same images, prepared in the same way."""
    return find_sharing(networks, given_to(networks, parts), ties)


def given_to(networks: Sequence[Network], parts: Sequence[ComponentManifest]) -> list[Hashable]:
    """What tells the images that a network is given from those of another."""
    likes = map(kind, networks)
    return [(p.preprocessing, p.input_shape, like.dtype, like.device) for p, like in zip(parts, likes, strict=True)]


def network_shapes(
    parts: tuple[ComponentManifest, ...], form: str, shared_input: bool
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Input shapes and output widths of the networks of an assembly."""
    if form in ("parallel", "cascade"):
        return [part.input_shape for part in parts], [part.width for part in parts]
    channels, *size = parts[0].input_shape
    copies = 1 if shared_input else len(parts)
    return [(channels * copies, *size)], [sum(part.width for part in parts)]
