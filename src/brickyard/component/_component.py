"""Components: small networks for one task, each with a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._checks import decision_thresholds, given_path
from brickyard.base._errors import DataError, FileError
from brickyard.base._frozen import validated
from brickyard.base._limits import NUMBERS
from brickyard.base._messages import first_line
from brickyard.base._records import ComponentFile, ComponentManifest, Preprocessing
from brickyard.base._specs import NetworkSpec
from brickyard.base._statistics import DepthRecord, StrangersRecord
from brickyard.component._depths import Looking
from brickyard.component._describe import describe
from brickyard.component._familiarity import Familiarity
from brickyard.component._features import observe, reader
from brickyard.component._names import renamed_component
from brickyard.component._notebook import InNotebooks
from brickyard.component._predictor import Predictor, check_answers
from brickyard.component._strangers import strangeness
from brickyard.inputs._preprocessing import check_units, preprocess, to_picture
from brickyard.network._cost_limit import Bounds
from brickyard.network._fusing import quick
from brickyard.network._network import Network, kind
from brickyard.network._stored import check_all_used, count_numbers, fill_in, match_types, stored_network, tensors_of
from brickyard.network._untouched import guarded, in_evaluation
from brickyard.outputs._detections import Detections, Found, within
from brickyard.outputs._outputs import check_outputs, outputs_of, thresholds_for
from brickyard.storage._safefile import write


class Cut(InNotebooks, nn.Module):
    """What components of all kinds of networks share: a network whose outputs are those of a task.

    Attributes:
        network: The cut network.
        manifest: What it is and where it came from.
        outputs: What its outputs mean.
    """

    manifest: ComponentManifest
    _task: Tensor
    _others: Tensor

    def __init__(self, network: nn.Module, manifest: ComponentManifest) -> None:
        super().__init__()
        self.network = in_evaluation(network)
        self.manifest = manifest
        self.outputs = outputs_of(manifest)
        self._select = manifest.reject or manifest.output_axis is None
        self._sizes = tuple(map(len, manifest.groups))
        task = set(manifest.task)
        others = [k for k in range(len(manifest.source.classes)) if k not in task]
        for name, classes in (("_task", list(manifest.task)), ("_others", others)):
            self.register_buffer(name, torch.tensor(classes, device=kind(network).device).long(), persistent=False)
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        return self.manifest.classes

    def head(self, logits: Tensor) -> Tensor:
        """The network's outputs (batch, n) -> the task's, with the reject output where there is one."""
        return self.of_source(logits) if self._select else self.outputs.merged(logits, self._sizes)

    def of_source(self, logits: Tensor) -> Tensor:
        """Logits of all the source's classes (batch, n) -> the task's, with the reject output where there is one."""
        chosen = self.outputs.head(logits, self._task, self._others if self.manifest.reject else None)
        return self.outputs.merged(chosen, self._sizes)

    def __str__(self) -> str:
        return describe(self.manifest)


class Component(Cut, Predictor):
    """A working model for one task, cut from one source.

    A component is an ordinary module: you can train it, move it between devices, compile it and export it. It takes the
    same input as its source, after preprocessing: `component(component.preprocess(images))`.

    Attributes:
        skeleton: The source's network as data, without numbers, or None where it has no form as data.
        familiarity: How far an image is from those that the component was made for, or None where it was cut
            without labelled images.
        reads_at: The step of the network whose input its features are.

    Shapes:
        (batch, *input_shape) -> (batch, classes of the task), plus one output with reject.

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> source = chain()
        >>> component = by.disassemble(source, by.locate(source, data), task=["1", "3"])
        >>> component.classes, component(data[0]).shape
        (('1', '3'), torch.Size([8, 2]))
    """

    network: Network

    def __init__(
        self,
        network: Network,
        manifest: ComponentManifest,
        skeleton: NetworkSpec | None = None,
        familiarity: Familiarity | None = None,
    ) -> None:
        super().__init__(network, manifest)
        self.skeleton = skeleton
        self.familiarity = in_evaluation(familiarity)
        size = None if familiarity is None else familiarity.mean.shape[1]
        self.reads_at, _ = reader(self.network, manifest.input_shape[0], size)
        self.eval()

    @property
    def reject(self) -> bool:
        """Whether a last output stands for the source's other classes."""
        return self.manifest.reject

    @property
    def owners(self) -> tuple[tuple[int, ...], ...]:
        """For each class, the parts that have it, of which there is one."""
        return ((0,),) * len(self.classes)

    @property
    def inside(self) -> tuple[DepthRecord, ...]:
        """The layers before which values are compared with usual ones."""
        depths = None if self.familiarity is None else self.familiarity.depths
        return () if depths is None else depths.layers

    @property
    def stranger_limits(self) -> tuple[StrangersRecord, ...]:
        """In a tuple of one, from when on images are strangers; empty where that is not known."""
        return self.manifest.stranger_limits if self.outputs.exclusive else ()

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """How raw images are prepared."""
        return (self.manifest.preprocessing,)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What the network takes after preprocessing: (channels, height, width) for images."""
        return self.manifest.input_shape

    def with_preprocessing(self, preprocessing: Preprocessing) -> Component:
        """Return the same component with another way to prepare raw images, as where its source's was unknown.

        Raises:
            OptionError: A mean or a standard deviation of pictures is not in [0, 1].
        """
        check_units(preprocessing, self.manifest.input_shape)
        before, used = self.manifest.preprocessing, self.manifest.used
        if used is not None and before.frame != preprocessing.frame:
            used = used.forgotten()  # an image is known by the pixels that the network is shown
        return self.with_manifest(preprocessing=preprocessing, used=used)

    def renamed(self, names: Mapping[str, str]) -> Component:
        """Return the same component with other class names; those that are left out stay.

        Args:
            names: New names by old ones.

        Raises:
            TaskError: An old name is none of the classes, two classes would have one name, or a new name is that of
                another class of the source.
            OptionError: They are not names by names.

        Example:
            >>> import brickyard as by, torch
            >>> from brickyard.testing import chain
            >>> data = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
            >>> component = by.disassemble(chain(), by.locate(chain(), data), task=["1", "3"])
            >>> component.renamed({"3": "three"}).classes
            ('1', 'three')
        """
        manifest = renamed_component(self.manifest, names)
        return self.with_manifest(classes=manifest.classes, members=manifest.members)

    def with_decision_thresholds(self, thresholds: Mapping[str, float] | float) -> Component:
        """Return the same component with other probabilities above which its answers include a class.

        Logits and probabilities stay the same. Assemblies of the component keep its thresholds.

        Args:
            thresholds: One for all classes, or some by class name; the others keep theirs, which are 0.5 at first.

        Raises:
            OptionError: One is not between 0 and 1, or the component answers with one class only.
            TaskError: A name is none of the classes.

        Example:
            >>> import brickyard as by, torch
            >>> from brickyard.testing import chain
            >>> images, rows = torch.rand(8, 3, 8, 8), torch.eye(4).repeat(2, 1).long()
            >>> relevance = by.locate(chain(), (images, rows), outputs="several")
            >>> component = by.disassemble(chain(), relevance, task=["1", "3"])
            >>> careful = component.with_decision_thresholds({"3": 0.9})
            >>> said = careful.predict_proba(images) > torch.tensor([0.5, 0.9])
            >>> careful.predict(images) == [tuple(n for n, yes in zip("13", row) if yes) for row in said.tolist()]
            True
        """
        before, given = self.manifest.decision_thresholds, decision_thresholds(thresholds)
        return self.with_manifest(decision_thresholds=thresholds_for(given, self.classes, before))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the task's classes for preprocessed images."""
        try:
            return self.head(self.network(x))
        except (RuntimeError, IndexError, ValueError) as error:
            self._check_size(x, error)
            raise

    def _check_size(self, x: Tensor, error: Exception) -> None:
        """Say so where the network failed on images of another size than it takes.

        Raises:
            DataError: They have another size.
        """
        wanted, given = self.manifest.input_shape, tuple(x.shape[1:])
        if given != wanted:
            raise DataError(
                "data-wrong-size",
                f"the component was cut from a source that was read at {wanted}, and images of {given} do not fit it: "
                f"{first_line(error)}; resize them, or locate and cut at that size",
            ) from error

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of preprocessed images, the values they are averages of, and the network's output."""
        return observe(self.network, self.reads_at, x)

    def look(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the network's output for preprocessed images, their features, and what they put before layers."""
        looking = Looking(self.network, self.inside)
        try:
            features, _, outputs = observe(self.network, self.reads_at, x, looking)
        except (RuntimeError, IndexError, ValueError) as error:
            self._check_size(x, error)
            raise
        return outputs, features, looking.last()

    def strangeness_of(
        self, outputs: Tensor, features: Tensor | None, seen: Sequence[Tensor], dtype: torch.dtype
    ) -> Tensor:
        """Return how unlike the component's own images others are, (batch,), from what `look` returns of them."""
        statistics = self.manifest.statistics
        assert statistics is not None  # as there are limits
        own = self.head(outputs)[:, : len(self.classes)].to(dtype)
        read = None if features is None else features.to(dtype)
        return strangeness(statistics, self.familiarity, own, read, [one.to(dtype) for one in seen])

    def preprocess(self, images: Tensor) -> Tensor:
        """Turn raw images, uint8 or in [0, 1], into the component's input."""
        return preprocess(images, self.manifest.preprocessing)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of the task's classes for raw images, uint8 or in [0, 1]."""
        like = kind(self)
        return self.forward(self.preprocess(images).to(like.device, like.dtype))

    def judged(self, images: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Return logits for raw images, and how strange they are to the component, (batch, 1)."""
        like = kind(self)
        found = self.look(self.preprocess(images).to(like.device, like.dtype))
        return self.head(found[0]), self.strangeness_of(*found, dtype).unsqueeze(1)

    def found(self, sides: tuple[int, ...], logits: Tensor, *how: Any) -> list[Found]:
        assert isinstance(self.outputs, Detections)
        height, width = sides
        found = []
        for own in self.outputs.find(logits, *how):
            boxes = to_picture(own.boxes.cpu(), (height, width), self.manifest.preprocessing)
            found.append(own.on_cpu()._replace(boxes=within(boxes, (height, width))))
        return found

    def with_scores(self, scores: dict[str, Any]) -> Component:
        """Return the same component with measured scores in its manifest."""
        return self.with_manifest(scores=scores)

    def with_manifest(self, **changes: Any) -> Component:
        """Return the same component with changed manifest entries."""
        return Component(self.network, self.manifest.model_copy(update=changes), self.skeleton, self.familiarity)

    @guarded
    def fused(self) -> Component:
        """Return the same component for inference, with fewer steps and the fastest memory layout for this machine.

        Batch norm is folded into the layer before it, so outputs agree up to rounding. A fused component is no longer a
        cut of its source: it joins others only in parallel form. Saved files keep the fusion, but not the layout.

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

    @guarded
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the component to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, it cannot be written, or the network has operations
                without a form as data.
        """
        return save_component(self, given_path(path, "the file to write"), overwrite=overwrite)

    def content(self) -> tuple[ComponentFile, dict[str, Tensor]]:
        """What its file holds: the text, and the tensors."""
        text = ComponentFile(manifest=self.manifest, network=self.network.to_spec(), skeleton=self.skeleton)
        return text, tensors_of(self.network, "network.") | tensors_of(self.familiarity, "familiarity.")


# -- writing -----------------------------------------------------------------------------------------------


def save_component(component: Component, path: Path, *, overwrite: bool = False) -> Path:
    text, tensors = component.content()
    return write(path, tensors, text.model_dump(mode="json"), overwrite)


def read_component(path: Path, text: dict[str, Any], tensors: dict[str, Tensor]) -> Component:
    file = validated(ComponentFile, text, "its text")
    bounds = Bounds(count_numbers(tensors))
    about = file.manifest
    places = () if about.boxes is None else (about.boxes.places(about.input_shape[1:]),)
    network = stored_network(file.network, tensors, "network.", about.input_shape, about.width, bounds, places)
    check_input(file.manifest)
    check_outputs(file.manifest)
    familiarity = read_familiarity(file.manifest, network, tensors, "familiarity.", bounds.entering)
    check_all_used(tensors)
    component = Component(network, file.manifest, file.skeleton, familiarity)
    check_answers(component, bounds.work)
    return component


def check_input(manifest: ComponentManifest) -> None:
    """Reject preprocessing whose result does not match the network's input."""
    how, (channels, *size) = manifest.preprocessing, manifest.input_shape
    if how.size is not None and list(how.size) != size:
        raise FileError(
            "file-inconsistent", f"its preprocessing makes images of {how.size}, but its network takes {tuple(size)}"
        )
    if len(manifest.input_shape) != 3 and (how.size or how.channels or how.order == "bgr"):
        found = f"its preprocessing makes pictures, but its network takes {manifest.input_shape}"
        raise FileError("file-inconsistent", found)
    made = channels * math.prod(side / how.crop for side in how.size or ())
    if made > NUMBERS >> 4:
        raise FileError("file-too-costly", f"its preprocessing makes {made:,.0f} numbers of an image: too many to read")
    if how.channels not in (None, channels):
        raise FileError(
            "file-inconsistent",
            f"its preprocessing makes images of {how.channels} channels, but its network takes {channels}",
        )
    if how.order == "bgr" and channels != 3:
        found = f"its preprocessing reverses red, green and blue, but its network takes {channels} channels"
        raise FileError("file-inconsistent", found)
    if how.mean is not None and len(how.mean) not in (1, channels):
        raise FileError(
            "file-inconsistent",
            f"its preprocessing has a mean for {len(how.mean)} channels, but its network takes {channels}",
        )


def read_familiarity(
    manifest: ComponentManifest,
    network: Network,
    tensors: dict[str, Tensor],
    prefix: str,
    entering: Mapping[str, tuple[int, ...]],
) -> Familiarity | None:
    """The statistics of a component's features, checked against what enters its layers, as `Bounds` saw it."""
    record = None if manifest.statistics is None else manifest.statistics.familiarity
    if record is None:
        return None
    _, size = reader(network, manifest.input_shape[0], record.size)
    if record.size != size:
        raise FileError("file-inconsistent", f"its manifest lists {record.size} features, but its network has {size}")
    found = Familiarity.blank(record)
    match_types(found, tensors, prefix)
    fill_in(found, tensors, prefix)
    if not (found.unit > 0 and bool((found.length > 0).all())):
        raise FileError("file-tensor-mismatch", f"tensors {prefix}unit and {prefix}length must be above 0")
    if found.depths is not None:
        found.depths.check(network, entering)
    return found
