"""Relevances: which channels of a source matter for which class, and how contributions become relevances."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.errors import DataError, FileError, OptionError, TaskError, shown
from brickyard.graph import Graph, trace
from brickyard.graph.reading import source_of
from brickyard.images import Images
from brickyard.layers.contributions import ContributionSums
from brickyard.manifest import LocateRecord, Preprocessing
from brickyard.options import Thresholds, brief, check_kind, given_path, is_whole, near
from brickyard.ranks import Ranks

__all__ = ["LayerRecord", "Relevance", "allocate", "fingerprint", "normalised", "resolve_task", "weights_like"]

EPSILON = 1e-5
_BLOCK = 1 << 17  # numbers in a block of rows of S
TIE = 1e-4  # weight of the tie-break: below one count among the outputs of all but very wide layers


@dataclass(frozen=True)
class LayerRecord:
    """What locating needs to know of a layer: its channel numbers, and whether it is linear."""

    reads: np.ndarray[Any, np.dtype[np.int64]]
    writes: np.ndarray[Any, np.dtype[np.int64]]
    linear: bool


@dataclass(eq=False, kw_only=True)
class Relevance:
    """Which channels matter for which class; made by `locate`, saved and loaded as safetensors.

    Attributes:
        classes: Names of the source's classes.
        task: Indices of the classes that were located.
        thresholds: What `hard` and `relevant` use.
        record: Which images were used.
        preprocessing: What was done to them before the source took them.
        input_shape: (channels, height, width) that the source takes.
        source_sha256: Fingerprint of the source's weights.
        source_name: What the source is called.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> relevance = by.locate(chain(), (torch.rand(8, 3, 8, 8), torch.arange(8) % 4))
        >>> relevance.contribution("conv2").shape, relevance.axis("conv1").shape
        (torch.Size([4, 8, 6]), torch.Size([4, 6]))
    """

    classes: tuple[str, ...]
    task: tuple[int, ...]
    thresholds: Thresholds
    layers: dict[str, LayerRecord]
    axes: dict[str, tuple[int, int]]
    record: LocateRecord
    preprocessing: Preprocessing
    input_shape: tuple[int, ...]
    source_sha256: str
    source_name: str
    sums: dict[str, Tensor] | None
    hard_masks: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    _graph: Graph | None = field(default=None, repr=False)
    _images: Images | None = field(default=None, repr=False)
    _indices: list[int] = field(default_factory=list, repr=False)

    # -- filling it ------------------------------------------------------------------------------------

    def attach(self, images: Images, indices: list[int], graph: Graph) -> None:
        """Remember the images and the graph, in memory only."""
        self._images, self._indices, self._graph = images, indices, graph

    def add_class(self, k: int, sums: Mapping[str, Tensor] | Mapping[str, ContributionSums], graph: Graph) -> None:
        """Turn one class's contribution sums into its relevances."""
        self._prepare(graph)
        if self.sums is not None:
            for name, value in sums.items():
                self.sums[name][k] = value if isinstance(value, Tensor) else value.dense()
        found = allocate(self.layers, sums, self._start(k, graph), self.thresholds)
        for name, mask in found.hard.items():
            self.hard_masks[name][k] = mask
        self.scores[:, k] = torch.stack([found.relevant.double(), found.soft, found.score])

    def _prepare(self, graph: Graph) -> None:
        if self.hard_masks:
            return
        self.scores = torch.zeros(3, len(self.classes), graph.channels, dtype=torch.float64)
        for name, layer in self.layers.items():
            self.hard_masks[name] = torch.zeros(len(self.classes), len(layer.reads), dtype=torch.bool)
            if self.sums is not None:
                self.sums[name] = torch.zeros(
                    len(self.classes), len(layer.writes), len(layer.reads), dtype=torch.float32
                )

    def take(self, k: int) -> dict[str, Tensor]:
        """All that is known of one class."""
        masks = {f"hard.{name}": mask[k] for name, mask in self.hard_masks.items()}
        sums = {f"sums.{name}": value[k] for name, value in (self.sums or {}).items()}
        return {"scores": self.scores[:, k], **masks, **sums}

    def put(self, k: int, tensors: Mapping[str, Tensor], graph: Graph) -> None:
        """Set one class to what `take` gave.

        Raises:
            FileError: The tensors are not those of these layers.
        """
        self._prepare(graph)
        own = self.take(k)
        for name, value in own.items():
            found = tensors.get(name)
            if found is None or found.shape != value.shape or found.dtype != value.dtype:
                raise FileError(f"tensor {name!r} of class {self.classes[k]!r} is missing or of another shape or type")
            value.copy_(found)

    def gather(self, located: Sequence[int], ranks: Ranks, graph: Graph) -> None:
        """Take over what other processes located: the class at place i is that of process i % count."""
        if ranks.count == 1:
            return
        self._prepare(graph)
        for place, k in enumerate(located):
            for value in self.take(k).values():
                if place % ranks.count != ranks.rank:
                    value.zero_()
                sent = value.to(torch.uint8) if value.dtype == torch.bool else value.clone()
                ranks.add(sent)
                value.copy_(sent)

    def _start(self, k: int, graph: Graph) -> tuple[Tensor, Tensor]:
        """(channels that are relevant before any layer says so, channels that count as written for class k)."""
        pinned = torch.zeros(graph.channels, dtype=torch.bool)
        for axis in graph.axes:
            if axis.pinned and not axis.output:
                pinned[axis.channels] = True
        written = pinned.clone()
        if graph.output is not None:
            written[graph.output.start + k] = True
        return pinned, written

    # -- reading it ------------------------------------------------------------------------------------

    def _layer(self, name: str) -> LayerRecord:
        if name not in self.layers:
            raise OptionError(f"layer {name!r} was asked for; relevances exist for {', '.join(self.layers)}")
        return self.layers[name]

    def hard(self, layer: str) -> Tensor:
        """Relevant input channels of a layer: bool, (classes, in_channels).

        Raises:
            OptionError: There is no such layer.
        """
        self._layer(layer)
        return self.hard_masks[layer]

    def sum(self, layer: str) -> Tensor:
        """S, the clamped contributions summed over the images of each class: (classes, out, in).

        Raises:
            OptionError: There is no such layer, or sums were not kept.
        """
        self._layer(layer)
        if self.sums is None:
            raise OptionError(
                f"contributions of {layer!r} were asked for, but sums were not kept; locate again with keep_sums=True"
            )
        return self.sums[layer]

    def contribution(self, layer: str) -> Tensor:
        """Relative contributions r in [0, 1] (contribution aggregation): (classes, out, in).

        Raises:
            OptionError: There is no such layer, or sums were not kept.
        """
        return normalised(self.sum(layer).double()).float()

    def axis(self, name: str) -> Tensor:
        """Soft relevance in [0, 1] of an axis's channels: (classes, channels), the highest of any reader.

        Raises:
            OptionError: There is no such axis.
        """
        start, size = self._axis(name)
        return self.scores[1, :, start : start + size].float()

    def relevant(self, name: str) -> Tensor:
        """Relevant channels of an axis: bool, (classes, channels); relevant is what any reader finds so."""
        start, size = self._axis(name)
        return self.scores[0, :, start : start + size].bool()

    def _axis(self, name: str) -> tuple[int, int]:
        if name not in self.axes:
            raise OptionError(f"axis {name!r} was asked for; relevances exist for {', '.join(self.axes)}")
        return self.axes[name]

    def images(self) -> tuple[Images, list[int]] | None:
        """The images that were used and their indices, or None after loading from a file."""
        return None if self._images is None else (self._images, list(self._indices))

    def graph(self, model: nn.Module) -> Graph:
        """The graph of the model that was located, traced again where it is not at hand.

        Raises:
            DataError: The model's weights are not those that were located.
        """
        found = fingerprint(model)
        if found != self.source_sha256:
            raise DataError(
                f"the relevances belong to {self.source_name!r} with weights {self.source_sha256[:12]}; this model's "
                f"are {found[:12]}: locate again, or give the model that was located"
            )
        if self._graph is None:
            generator = torch.Generator().manual_seed(0)
            like = weights_like(model)
            example = torch.randn(2, *self.input_shape, generator=generator).to(like.device, like.dtype)
            self._graph = trace(model, example)
        return self._graph

    def with_thresholds(self, thresholds: Thresholds, graph: Graph) -> Relevance:
        """The relevances under other thresholds, from the same sums.

        Raises:
            OptionError: Sums were not kept.
        """
        check_kind("thresholds", thresholds, Thresholds, "give brickyard.Thresholds(alpha=..., beta=...)")
        if thresholds == self.thresholds:
            return self
        check_kind("graph", graph or "nothing", Graph, "give what relevance.graph(model) returns")
        if self.sums is None:
            raise OptionError(
                f"thresholds {thresholds} were asked for; the relevances were made with {self.thresholds} and "
                "sums were not kept: locate again with these thresholds or with keep_sums=True"
            )
        other = Relevance(**{**self._public(), "thresholds": thresholds, "sums": None, "hard_masks": {}})
        for k in self.task:
            other.add_class(k, {name: value[k].double() for name, value in self.sums.items()}, graph)
        other.sums = self.sums
        other._images, other._indices, other._graph = self._images, self._indices, graph
        return other

    def _public(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the relevances to a safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        from brickyard.files import save_relevance

        return save_relevance(self, given_path(path, "the file to write"), overwrite=overwrite)

    def __str__(self) -> str:
        lines = [f"relevance of {self.source_name}: {len(self.task)} of {len(self.classes)} classes"]
        for name, mask in self.hard_masks.items():
            share = mask[list(self.task)].float().mean().item()
            lines.append(f"  {name}: {mask.shape[1]} inputs, {share:.0%} relevant for a class on average")
        return "\n".join(shown(line, keep="") for line in lines)


@dataclass(frozen=True)
class Allocation:
    """One class's relevances: by layer (`hard`), and by channel number.

    `soft` is u; `score` is u with ties broken by the contributions behind the counts.
    """

    hard: dict[str, Tensor]
    relevant: Tensor
    soft: Tensor
    score: Tensor


def normalised(sums: Tensor) -> Tensor:
    """Contribution aggregation: sums (..., out, in) to [0, 1] over the inputs of each output."""
    low, high = sums.amin(-1, keepdim=True), sums.amax(-1, keepdim=True)
    return (sums - low) / (high - low + EPSILON)


def allocate(
    layers: Mapping[str, LayerRecord],
    sums: Mapping[str, Tensor] | Mapping[str, ContributionSums],
    start: tuple[Tensor, Tensor],
    thresholds: Thresholds,
) -> Allocation:
    """Contribution allocation: walk back from the classifier to the image.

    A layer counts the relevant outputs that a strong contribution links to each of its inputs (parameter
    linking). A channel is relevant when any of its readers finds it so.

    Args:
        layers: The layers in network order.
        sums: For each layer, S of one class, (out, in).
        start: Channels that are relevant from the start, and those that count as written.
        thresholds: alpha and beta.

    Raises:
        DataError: Contributions are not finite.
    """
    relevant, written = start[0].clone(), start[1].clone()
    soft = relevant.double()
    score = soft.clone()
    hard: dict[str, Tensor] = {}
    for name in reversed(list(layers)):
        layer = layers[name]
        alpha, beta = thresholds.of(layer.linear)
        counts, shares = _linked(sums[name], written[torch.from_numpy(layer.writes)], alpha)
        if not bool(torch.isfinite(shares).all()):
            raise DataError(
                f"contributions to layer {name!r} are not finite: numbers overflow on the way to it; check the weights "
                "and the preprocessing, or locate in float32 or float64"
            )
        u, fine = normalised(counts), normalised(shares)
        hard[name] = u > beta
        reads = torch.from_numpy(layer.reads)
        at = reads[hard[name]]
        relevant[at] = True
        written[at] = True
        soft = soft.scatter_reduce(0, reads, u, "amax")
        score = score.scatter_reduce(0, reads, u + TIE * fine, "amax")
    return Allocation({name: hard[name] for name in layers}, relevant, soft, score)


def _linked(sums: Tensor | ContributionSums, written: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """For each input, how many of the written outputs a strong contribution links to it, and the contributions' sum.

    Rows of S are made a block at a time.
    """
    inputs = sums.shape[1]
    counts, shares = torch.zeros(2, inputs, dtype=torch.float64)
    for rows in torch.nonzero(written).flatten().split(max(1, _BLOCK // inputs)):
        r = normalised(sums[rows].to("cpu", torch.float64))
        counts += (r > alpha).sum(0)
        shares += r.sum(0)
    return counts, shares


def resolve_task(task: Any, names: Sequence[str]) -> list[int]:
    """Indices of the classes that a task names, in its order.

    Raises:
        TaskError: The task is empty, names an unknown class, or names one twice.
    """
    if isinstance(task, str) or is_whole(task):
        task = [task]
    if isinstance(task, bytes | set | frozenset | Mapping) or not isinstance(task, Iterable):
        raise TaskError(
            f"a task is a list of class names or indices in the order of the outputs; {brief(task)} is a "
            f"{type(task).__name__}: give a list, such as [{_list(list(map(repr, names)), 2)}]"
        )
    found: list[int] = []
    for item in task.tolist() if isinstance(task, np.ndarray | Tensor) and task.ndim == 1 else task:
        if not isinstance(item, str) and not is_whole(item):
            raise TaskError(
                f"a task is a list of class names or indices; {brief(item)} is a {type(item).__name__}: give names, or "
                f"whole numbers from 0 to {len(names) - 1}"
            )
        if isinstance(item, str) and item in names:
            found.append(list(names).index(item))
        elif not isinstance(item, str) and 0 <= item < len(names):
            found.append(int(item))
        else:
            hint = near(item, names) if isinstance(item, str) else f"; indices run from 0 to {len(names) - 1}"
            raise TaskError(
                f"class {brief(item)} was asked for; the source knows {_list(names)}; name some of these{hint}"
            )
    if not found:
        raise TaskError(f"the task is empty; name at least one of {_list(names)}")
    if len(set(found)) != len(found):
        twice = next(k for k in found if found.count(k) > 1)
        raise TaskError(f"class {names[twice]!r} is named twice in the task; name each class once")
    return found


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and numbers of a model's weights, whatever torch has wrapped around it.

    Raises:
        TraceError: It is no module, or has no numbers.
    """
    model = source_of(model)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            value = value.to_dense() if value.layout != torch.strided else value
            digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_like(model: nn.Module) -> Tensor:
    """A tensor on the device and in the type of a model's weights."""
    if isinstance(model, nn.Module):
        for value in model.parameters():
            if value.is_floating_point():
                return torch.empty(0, dtype=value.dtype, device=value.device)
    return torch.zeros(0)


def _list(names: Sequence[str], most: int = 12) -> str:
    short = [name if len(name) <= 60 else f"{name[:60]}..." for name in names[:most]]
    return ", ".join(short) + (f" and {len(names) - most} more" if len(names) > most else "")
