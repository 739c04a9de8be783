"""A component: a small network for one task, with its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brickyard.errors import shown
from brickyard.familiarity import Familiarity, observe, reader
from brickyard.manifest import ComponentManifest, NetworkSpec, TuneRecord
from brickyard.network import Network, kind, quick_layout
from brickyard.options import given_path
from brickyard.predicting import Predictor
from brickyard.surgery import fuse

__all__ = ["Component", "kept_text", "quick", "selection_text", "share_text", "tuned_text"]


class Component(Predictor):
    """A working model for one task, cut from one source.

    It is an ordinary module: it trains, moves between devices, compiles and exports. It takes what its source
    took, after preprocessing: `component(component.preprocess(images))`.

    Attributes:
        network: The cut network.
        manifest: What it is and where it came from.
        skeleton: The source's network as data, without numbers, or None where it has no form as data.
        familiarity: How far an image is from those that the component was made for, or None where it was cut
            without labelled images.
        reads_at: The step of the network whose input its features are.

    Shapes:
        (batch, channels, height, width) -> (batch, classes of the task), and one more output with reject.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> source = chain()
        >>> component = by.disassemble(source, by.locate(source, data), task=["1", "3"])
        >>> component.classes, component(data[0]).shape
        (('1', '3'), torch.Size([8, 2]))
    """

    def __init__(
        self,
        network: Network,
        manifest: ComponentManifest,
        skeleton: NetworkSpec | None = None,
        familiarity: Familiarity | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.manifest = manifest
        self.skeleton = skeleton
        self.familiarity = familiarity
        self.reads_at = reader(network)
        self._select = manifest.reject or manifest.output_axis is None
        task = set(manifest.task)
        others = [k for k in range(len(manifest.source.classes)) if k not in task]
        self.register_buffer("_task", torch.tensor(manifest.task, dtype=torch.long), persistent=False)
        self.register_buffer("_others", torch.tensor(others, dtype=torch.long), persistent=False)
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        return self.manifest.classes

    @property
    def reject(self) -> bool:
        """Whether a last output stands for the source's other classes."""
        return self.manifest.reject

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the task's classes for preprocessed images."""
        return self.head(self.network(x))

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For preprocessed images the features, the values that they are averages of, and the network's output."""
        return observe(self.network, self.reads_at, x)

    def head(self, logits: Tensor) -> Tensor:
        """The network's outputs (batch, n) -> the task's, with the reject output where there is one."""
        return self.of_source(logits) if self._select else logits

    def of_source(self, logits: Tensor) -> Tensor:
        """Logits of all the source's classes (batch, n) -> the task's, with the reject output where there is one."""
        chosen = logits.index_select(1, self._task)  # type: ignore[arg-type]
        if not self.manifest.reject:
            return chosen
        rest = logits.index_select(1, self._others).logsumexp(1, keepdim=True)  # type: ignore[arg-type]
        return torch.cat([chosen, rest], 1)

    def preprocess(self, images: Tensor) -> Tensor:
        """Raw images, uint8 or in [0, 1] -> what the component takes."""
        from brickyard.preprocessing import preprocess

        return preprocess(images, self.manifest.preprocessing)

    def logits(self, images: Tensor) -> Tensor:
        """Raw images, uint8 or in [0, 1] -> logits of the task's classes."""
        like = kind(self)
        return self.forward(self.preprocess(images).to(like.device, like.dtype))

    def with_scores(self, scores: dict[str, Any]) -> Component:
        """The same component with measured scores in its manifest."""
        manifest = self.manifest.model_copy(update={"scores": scores})
        return Component(self.network, manifest, self.skeleton, self.familiarity)

    def fused(self) -> Component:
        """The same component for inference: fewer steps, and numbers laid out in memory as they run fastest here.

        Batch norm is folded into the layer before it, so that outputs agree to rounding. A fused component is no
        longer a cut of its source: it joins others in parallel form only. Files keep what is fused, not the layout.

        Example:
            >>> import brickyard as by, torch
            >>> from brickyard.testing import chain
            >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
            >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
            >>> fast = component.fused()
            >>> len(component.network.layer_names), len(fast.network.layer_names)
            (9, 7)
            >>> torch.allclose(fast(data[0]), component(data[0]), atol=1e-5)
            True
        """
        return Component(quick(self.network, self.manifest.input_shape), self.manifest, None, self.familiarity)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the component to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written, or the network has operations
                without a form as data.
        """
        from brickyard.files import save_component

        return save_component(self, given_path(path, "the file to write"), overwrite=overwrite)

    def __str__(self) -> str:
        return describe(self.manifest)


def quick(network: Network, input_shape: Sequence[int]) -> Network:
    """A network without the norms that its other layers can take up, laid out in memory as it runs fastest."""
    fused = fuse(network)
    like = kind(fused)
    example = torch.zeros(1, *input_shape, dtype=like.dtype, device=like.device)
    return fused.to(memory_format=quick_layout(fused, example))


def describe(manifest: ComponentManifest) -> str:
    """A component's manifest as a short report."""
    source, chosen = manifest.source, manifest.selection
    lines = [
        f"component of {source.name} ({len(source.classes)} classes)",
        f"  classes      {_short(manifest.classes)}{' + reject' if manifest.reject else ''}",
        f"  parameters   {chosen.parameters:,} ({share_text(chosen.parameters, source.parameters)} of the source)",
        f"  FLOPs        {chosen.flops:,} ({share_text(chosen.flops, source.flops)})",
        f"  chosen by    {selection_text(manifest)}",
        f"  heal         {_heal(manifest)}",
        f"  kept         {kept_text(manifest)}",
    ]
    if manifest.tuned is not None:
        lines.append(f"  trained      {tuned_text(manifest.tuned)}")
    lines += [f"  pinned       {p.axis} ({p.channels} channels): {p.reason}" for p in manifest.pinned]
    lines += [f"  note         {note}" for note in manifest.heal.notes]
    return "\n".join(shown(line, keep="") for line in lines)


def kept_text(manifest: ComponentManifest) -> str:
    """How many channels are left, and on how many axes."""
    cut = [axis for axis in manifest.axes.values() if len(axis.kept) < axis.size]
    kept, size = sum(len(axis.kept) for axis in cut), sum(axis.size for axis in cut)
    return f"{kept:,} of {size:,} channels on {len(cut)} of {len(manifest.axes)} axes" if cut else "every channel"


def selection_text(manifest: ComponentManifest) -> str:
    """What channels were chosen by."""
    chosen = manifest.selection
    if chosen.budget is not None:
        return f"budget, {chosen.budget}"
    if chosen.thresholds is not None:
        return "thresholds, " + ", ".join(f"{name} {value:g}" for name, value in chosen.thresholds.items())
    return "hand"


def _heal(manifest: ComponentManifest) -> str:
    heal = manifest.heal
    if heal.method == "none":
        return "none"
    shifted = f" and {heal.copies - 1} shifted copies of each" if heal.copies > 1 else ""
    return f"{heal.method}, {heal.images} images{shifted}, {heal.layers} layers"


def tuned_text(tuned: TuneRecord) -> str:
    """How a component or an assembly was trained after it was made."""
    taught = f", taught by {tuned.teacher}" if tuned.teacher else ""
    kept = f", those of pass {tuned.best} kept" if tuned.best != tuned.epochs else ""
    return f"{tuned.epochs} passes over {tuned.images:,} images, {tuned.optimizer} {tuned.lr:g}{taught}{kept}"


def share_text(part: int, whole: int) -> str:
    """A share in percent, or a dash where there is no whole."""
    return f"{part / whole:.1%}" if whole else "-"


def _short(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
