"""Relevances: which channels of a source matter for each class, and how contributions become relevances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.axes._graph import Axes, Graph, trace
from brickyard.base import _limits as limits
from brickyard.base._boxes import Boxes
from brickyard.base._checks import check_kind, given_path
from brickyard.base._errors import DataError, FileError, OptionError
from brickyard.base._frozen import validated
from brickyard.base._history import MARK, UsedRecord
from brickyard.base._limits import check_axes
from brickyard.base._messages import shown
from brickyard.base._notebook import as_html, draw_heat, new_figure
from brickyard.base._options import Thresholds
from brickyard.base._records import LocateRecord, Preprocessing, RelevanceFile
from brickyard.base._sides import BATCHED, INPUTS
from brickyard.inputs._batches import Images
from brickyard.inputs._content import as_bytes
from brickyard.network._identity import fingerprint, weights_like
from brickyard.network._stored import check_all_used, taken
from brickyard.network._untouched import guarded
from brickyard.outputs._outputs import check_outputs, find_outputs
from brickyard.relevance._allocation import LayerRecord, allocate, normalised
from brickyard.relevance._contribution import ContributionSums
from brickyard.runtime._processes import Ranks
from brickyard.storage._safefile import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_relevance(relevance: Relevance, path: Path, *, overwrite: bool = False) -> Path:
    tensors: dict[str, Tensor] = {"scores": relevance.scores}
    for name, layer in relevance.layers.items():
        tensors[f"hard.{name}"] = relevance.hard_masks[name]
        tensors[f"reads.{name}"] = torch.from_numpy(layer.reads)
        tensors[f"writes.{name}"] = torch.from_numpy(layer.writes)
        if relevance.sums is not None:
            tensors[f"sums.{name}"] = relevance.sums[name]
    if relevance.marks is not None:
        tensors["marks"] = relevance.marks
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
        outputs=relevance.outputs,
        boxes=relevance.boxes,
    )
    return write(path, tensors, text.model_dump(mode="json"), overwrite)


def read_relevance(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> Relevance:
    file = validated(RelevanceFile, text, "its text")
    _check_text(file)
    channels = sum(size for _, size in file.axes.values())
    count = len(file.classes)

    def take(name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        return taken(tensors, name, shape, dtype)

    layers: dict[str, LayerRecord] = {}
    hard: dict[str, Tensor] = {}
    sums: dict[str, Tensor] | None = {} if file.sums else None
    scores = take("scores", torch.float64, 3, count, channels)
    for name, linear in file.layers.items():
        reads, writes = take(f"reads.{name}", torch.int64), take(f"writes.{name}", torch.int64)
        for numbers in (reads, writes):
            if numbers.ndim != 1 or not len(numbers) or int(numbers.min()) < 0 or int(numbers.max()) >= channels:
                raise FileError("file-inconsistent", f"layer {name!r} has channel indices outside 0..{channels - 1}")
        layers[name] = LayerRecord(np.asarray(reads), np.asarray(writes), linear)
        hard[name] = take(f"hard.{name}", torch.bool, count, len(reads))
        if sums is not None:
            sums[name] = take(f"sums.{name}", torch.float32, count, len(writes), len(reads))
    marks = take("marks", torch.uint8, sum(file.record.images), MARK) if "marks" in tensors else None
    check_all_used(tensors)
    check_outputs(file)
    _check_stations(file, layers)
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
        outputs=file.outputs,
        boxes=file.boxes,
        sums=sums,
        hard_masks=hard,
        scores=scores,
        marks=marks,
    )


def _check_stations(file: RelevanceFile, layers: Mapping[str, LayerRecord]) -> None:
    """Refuse layers that read and write more axes than can be drawn.

    Raises:
        FileError: There are too many.
    """
    starts = np.array(sorted(start for start, _ in file.axes.values()))
    owners = [np.searchsorted(starts, own, "right") for one in layers.values() for own in (one.reads, one.writes)]
    found = sum(len(np.unique(own)) for own in owners)
    if found > limits.PIECES:
        why = f"its layers read and write axes {found:,} times"
        raise FileError("file-too-large", f"{why}; the limit is {limits.PIECES:,}")


def _check_text(file: RelevanceFile) -> None:
    """Check the consistency of a file's text alone.

    Raises:
        FileError: It contradicts itself.
    """
    if len(file.input_shape) + 1 not in BATCHED:
        raise FileError("file-inconsistent", f"its input shape must be {INPUTS}, got {file.input_shape}")
    end = 0
    for name, (start, size) in sorted(file.axes.items(), key=lambda item: item[1]):
        if start != end:
            raise FileError("file-inconsistent", f"axis {name!r} must start at channel {end}, got {start}")
        end += size
    try:
        check_axes([size for _, size in file.axes.values()])
    except ValueError as error:
        raise FileError("file-too-large", f"it has {error}") from None
    if any(not size for _, size in file.axes.values()):
        raise FileError("file-inconsistent", "it has an axis without channels")
    if set(file.thresholds) != set(Thresholds().as_dict()):
        raise FileError("file-inconsistent", f"its thresholds have unexpected names: {', '.join(file.thresholds)}")
    if file.boxes is not None and file.boxes.classes != len(file.classes):
        found = f"boxes of {file.boxes.classes} classes for {len(file.classes)} classes"
        raise FileError("file-inconsistent", f"it has {found}")
    if any(k >= len(file.classes) for k in file.task) or not file.task:
        raise FileError("file-inconsistent", f"its task {file.task} does not fit {len(file.classes)} classes")


@dataclass(eq=False, kw_only=True)
class Relevances:
    """Which channels matter for which class, whatever kind of network they belong to.

    Attributes:
        classes: Names of the source's classes.
        task: Indices of the classes that were located.
        thresholds: What `hard` and `relevant` use.
        record: What they were located with.
        preprocessing: What was done to images before the source took them.
        input_shape: The shape of one input that the source takes.
        source_sha256: Fingerprint of the source's weights.
        source_name: The source's name.
        outputs: The kind of its outputs, as in `brickyard.outputs.OUTPUTS`.
        boxes: How a detector's outputs are read; None for a classifier.
    """

    sum_dtype: ClassVar[torch.dtype] = torch.float32

    classes: tuple[str, ...]
    task: tuple[int, ...]
    thresholds: Thresholds
    layers: dict[str, LayerRecord]
    axes: dict[str, tuple[int, int]]
    record: LocateRecord
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    input_shape: tuple[int, ...]
    source_sha256: str
    source_name: str
    sums: dict[str, Tensor] | None
    outputs: str = "one"
    boxes: Boxes | None = None
    hard_masks: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    _graph: Any = field(default=None, repr=False)

    @classmethod
    def blank(
        cls,
        model: nn.Module,
        graph: Axes,
        layers: dict[str, LayerRecord],
        options: Any,
        record: LocateRecord,
        **more: Any,
    ) -> Self:
        """Relevances of which no class is located yet."""
        return cls(
            thresholds=options["thresholds"] or Thresholds(),
            layers=layers,
            axes={axis.name: (axis.start, axis.size) for axis in graph.axes},
            record=record,
            input_shape=graph.input_shape,
            source_sha256=fingerprint(model),
            source_name=options["name"] or type(model).__name__,
            **more,
        )

    def add_class(self, k: int, sums: Mapping[str, Tensor] | Mapping[str, ContributionSums], graph: Axes) -> None:
        """Turn one class's contribution sums into its relevances."""
        self._prepare(graph)
        if self.sums is not None:
            for name, value in sums.items():
                self.sums[name][k] = value if isinstance(value, Tensor) else value.dense()
        found = allocate(self.layers, sums, self._start(k, graph), self.thresholds)
        for name, mask in found.hard.items():
            self.hard_masks[name][k] = mask
        self.scores[:, k] = torch.stack([found.relevant.double(), found.soft, found.score])

    def _prepare(self, graph: Axes) -> None:
        if self.hard_masks:
            return
        self.scores = torch.zeros(3, len(self.classes), graph.channels, dtype=torch.float64)
        for name, layer in self.layers.items():
            self.hard_masks[name] = torch.zeros(len(self.classes), len(layer.reads), dtype=torch.bool)
            if self.sums is not None:
                shape = (len(self.classes), len(layer.writes), len(layer.reads))
                self.sums[name] = torch.zeros(shape, dtype=self.sum_dtype)

    def _start(self, k: int, graph: Axes) -> tuple[Tensor, Tensor]:
        """(channels that are relevant before any layer says so, channels that count as written for class k)."""
        pinned = torch.zeros(graph.channels, dtype=torch.bool)
        for axis in graph.axes:
            if axis.pinned and not axis.output:
                pinned[axis.channels] = True
        written = pinned.clone()
        if graph.output is not None:
            written[[graph.output.start + place for place in find_outputs(self.outputs).read_from(k)]] = True
        return pinned, written

    def _layer(self, name: str) -> LayerRecord:
        if name not in self.layers:
            raise OptionError(
                "option-not-located", f"no relevances for layer {name!r}; they exist for {', '.join(self.layers)}"
            )
        return self.layers[name]

    def hard(self, layer: str) -> Tensor:
        """Relevant input channels of a layer: bool, (classes, in_channels).

        Raises:
            OptionError: The layer is unknown.
        """
        self._layer(layer)
        return self.hard_masks[layer]

    def sum(self, layer: str) -> Tensor:
        """S, the clamped contributions summed over the images of each class: (classes, out, in).

        Raises:
            OptionError: The layer is unknown, or sums were not kept.
        """
        self._layer(layer)
        if self.sums is None:
            raise OptionError(
                "option-sums-not-kept",
                f"contributions of {layer!r} need sums, which were not kept; locate again with keep_sums=True",
            )
        return self.sums[layer]

    def contribution(self, layer: str) -> Tensor:
        """Relative contributions r in [0, 1] (contribution aggregation): (classes, out, in).

        Raises:
            OptionError: The layer is unknown, or sums were not kept.
        """
        return normalised(self.sum(layer).double()).float()

    def inputs(self, layer: str, classes: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The relative contribution of each input of a layer, averaged over its outputs: (classes, in).

        Raises:
            OptionError: The layer is unknown, or sums were not kept.
        """
        sums = self.sum(layer)
        return np.stack([normalised(sums[k].double()).mean(0).numpy() for k in classes])

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def plot(self) -> Figure:
        """Draw what matters for each class: relative contributions to each layer or, without sums, relevant channels.

        At most 24 layers or axes are drawn, spread evenly, and at most 20 classes.

        Returns:
            A figure of matplotlib, which notebooks show; `figure.savefig(path)` writes it.

        Raises:
            OptionError: matplotlib is not installed.
        """
        names = list(self.axes if self.sums is None else self.layers)
        shown = [names[len(names) * k // min(24, len(names))] for k in range(min(24, len(names)))]
        classes = list(self.task)[:20]
        rows = -(-len(shown) // 3)
        figure, panels = new_figure(rows, min(3, len(shown)), 10.5, rows * (0.7 + 0.14 * len(classes)) + 0.5)
        for panel, name in zip(panels, shown, strict=False):
            own = self.axis(name)[classes].numpy() if self.sums is None else self.inputs(name, classes)
            draw_heat(panel, f"axis {name}" if self.sums is None else f"inputs of {name}", self._names(classes), own)
        for panel in panels[len(shown) :]:
            panel.axis("off")
        what = "Relevance of channels" if self.sums is None else "Relative contributions, averaged over outputs"
        counts = [(len(shown), len(names), "axes" if self.sums is None else "layers")]
        counts.append((len(classes), len(self.task), "classes"))
        cut = [f"{some} of {every} {things}" for some, every, things in counts if some < every]
        figure.suptitle(what + (f" ({', '.join(cut)})" if cut else ""), fontsize=10)
        return figure

    def _names(self, classes: Sequence[int]) -> list[str]:
        return [self.classes[k] for k in classes]

    def axis(self, name: str) -> Tensor:
        """Soft relevance in [0, 1] of an axis's channels, the highest over its readers: (classes, channels).

        Raises:
            OptionError: The axis is unknown.
        """
        start, size = self._axis(name)
        return self.scores[1, :, start : start + size].float()

    def relevant(self, name: str) -> Tensor:
        """Channels of an axis that any reader finds relevant: bool, (classes, channels)."""
        start, size = self._axis(name)
        return self.scores[0, :, start : start + size].bool()

    def _axis(self, name: str) -> tuple[int, int]:
        if name not in self.axes:
            raise OptionError(
                "option-not-located", f"no relevances for axis {name!r}; they exist for {', '.join(self.axes)}"
            )
        return self.axes[name]

    def check_source(self, model: nn.Module) -> None:
        """Check that a model is the one that was located.

        Raises:
            DataError: Its weights are others.
        """
        found = fingerprint(model)
        if found != self.source_sha256:
            raise DataError(
                "data-wrong-source",
                f"the relevances belong to {self.source_name!r} with weights "
                f"{self.source_sha256[:12]}, but this model has {found[:12]}; locate again, or give "
                "the model that was located",
            )

    def with_thresholds(self, thresholds: Thresholds, graph: Axes) -> Self:
        """The relevances under other thresholds, from the same sums.

        Raises:
            OptionError: Sums were not kept.
        """
        check_kind("thresholds", thresholds, Thresholds, "give brickyard.Thresholds(alpha=..., beta=...)")
        if thresholds == self.thresholds:
            return self
        check_kind("graph", graph or "nothing", Axes, "give what relevance.graph(model) returns")
        if self.sums is None:
            raise OptionError(
                "option-sums-not-kept",
                f"thresholds {thresholds} need sums, which were not kept; the relevances were made "
                f"with {self.thresholds}. Locate again with the new thresholds, or with "
                "keep_sums=True",
            )
        other = replace(self, thresholds=thresholds, sums=None, hard_masks={}, _graph=graph)
        for k in self.task:
            other.add_class(k, {name: value[k].double() for name, value in self.sums.items()}, graph)
        other.sums = self.sums
        return other


@dataclass(eq=False, kw_only=True)
class Relevance(Relevances):
    """Which channels matter for which class; made by `locate`, saved and loaded as safetensors; see `Relevances`.

    Attributes:
        marks: What the images that were located on show, class by class: (images, 16); None where that is not known.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> relevance = by.locate(chain(), (torch.rand(8, 3, 8, 8), torch.arange(8) % 4))
        >>> relevance.contribution("conv2").shape, relevance.axis("conv1").shape
        (torch.Size([4, 8, 6]), torch.Size([4, 6]))
    """

    marks: Tensor | None = None
    _images: Images | None = field(default=None, repr=False)
    _indices: list[int] = field(default_factory=list, repr=False)

    def attach(self, images: Images, indices: list[int], graph: Graph) -> None:
        """Remember the images and the graph, in memory only."""
        self._images, self._indices, self._graph = images, indices, graph

    def used(self, task: Sequence[int] | None = None) -> UsedRecord:
        """The images that some classes, or all, were located on."""
        counts = [self.record.images[k] if k < len(self.record.images) else 0 for k in self.task]
        wanted = [task is None or k in task for k in self.task]
        if self.marks is None:
            return UsedRecord(unknown=sum(count for count, own in zip(counts, wanted, strict=True) if own))
        classes = zip(self.marks.split(counts), wanted, strict=True)
        return UsedRecord.of(mark for rows, own in classes if own for mark in as_bytes(rows))

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
                raise FileError(
                    "file-tensor-mismatch",
                    f"tensor {name!r} of class {self.classes[k]!r} is missing, or has another shape or type",
                )
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

    def images(self) -> tuple[Images, list[int]] | None:
        """The images that were used and their indices, or None after loading from a file."""
        return None if self._images is None else (self._images, list(self._indices))

    def graph(self, model: nn.Module) -> Graph:
        """Return the graph of the located model, tracing it again if needed.

        Raises:
            DataError: The model's weights differ from those that were located.
        """
        self.check_source(model)
        if self._graph is None:
            generator = torch.Generator().manual_seed(0)
            like = weights_like(model)
            example = torch.randn(2, *self.input_shape, generator=generator).to(like.device, like.dtype)
            self._graph = trace(model, example, self.record.output, boxes=self.boxes)
        graph: Graph = self._graph
        return graph

    @guarded
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the relevances to a safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or it cannot be written.
        """
        return save_relevance(self, given_path(path, "the file to write"), overwrite=overwrite)

    def __str__(self) -> str:
        lines = [f"relevance of {self.source_name}: {len(self.task)} of {len(self.classes)} classes"]
        if self.record.right is not None and self.record.right[1]:
            right, asked = self.record.right
            lines.append(f"  source: {right / asked:.1%} of {asked:,} images right")
        if self.record.output is not None:
            lines.append(f"  output: {self.record.output}, of what the source returns")
        if self.record.ending is not None:
            lines.append(f"  logits: taken before the source's {self.record.ending}")
        for name, mask in self.hard_masks.items():
            share = mask[list(self.task)].float().mean().item()
            lines.append(f"  {name}: {mask.shape[1]} inputs, {share:.0%} relevant for a class on average")
        return "\n".join(shown(line, keep="") for line in lines)
