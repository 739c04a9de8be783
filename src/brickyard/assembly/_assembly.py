"""Assemblies: one classifier made of components."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.assembly._common import given_to, network_shapes, shared
from brickyard.assembly._detectors import boxes_of_all, found_among, spans_of
from brickyard.assembly._looking import Lookers, Row, chosen, looked, lookers_of
from brickyard.assembly._turns import Glance, in_turn, ranked
from brickyard.base._checks import EVEN, decision_thresholds, given_path
from brickyard.base._errors import FileError, OptionError, SurgeryError
from brickyard.base._records import (
    AssemblyFile,
    AssemblyManifest,
    ComponentManifest,
    Preprocessing,
    ScalingRecord,
)
from brickyard.base._specs import NetworkSpec
from brickyard.base._statistics import StrangersRecord
from brickyard.component._component import Component
from brickyard.component._depths import Depths
from brickyard.component._describe import describe_assembly
from brickyard.component._familiarity import Familiarity
from brickyard.component._features import features_of
from brickyard.component._names import renamed_assembly
from brickyard.component._notebook import InNotebooks
from brickyard.component._predictor import Predictor
from brickyard.inputs._preprocessing import preprocess
from brickyard.network._fusing import quick
from brickyard.network._network import Network, kind
from brickyard.network._stored import tensors_of
from brickyard.network._untouched import all_in_evaluation, guarded, in_evaluation
from brickyard.outputs._detections import Detections, Found
from brickyard.outputs._kinds import Outputs
from brickyard.outputs._outputs import outputs_of, thresholds_for
from brickyard.scaling._scale import (
    Gate,
    Scale,
    Signals,
    combine,
    owned,
    shortfall,
    usual_energies,
    with_reject,
)
from brickyard.storage._safefile import write
from brickyard.surgery._sharing import Sharing


class Joined(InNotebooks, nn.Module):
    """What assemblies of all kinds of networks share: the parts' logits side by side, and their scaling.

    Attributes:
        manifest: Its description, including the manifests of its parts.
        outputs: The kind of its outputs.
        matrix: The scaling's linear map on the parts' logits, (logits, logits), or None.
        shift: Its shift, (logits,), or None.
        gate: What the scaling adds to a part's classes by how its features look, or None.
    """

    manifest: AssemblyManifest
    outputs: Outputs
    matrix: Tensor | None
    shift: Tensor | None
    gate: Gate | None
    _share: Tensor
    _usual: Tensor  # of the parts' energies, and their spread: (2, parts)
    _owner: list[int]  # the part of each logit

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        return self.manifest.classes

    def _scale_by(self, matrix: Tensor | None, shift: Tensor | None, gate: Gate | None = None) -> None:
        """Take a scaling."""
        count = sum(map(len, self.manifest.columns))
        fits = matrix is not None and shift is not None and (matrix.shape, shift.shape) == ((count, count), (count,))
        if not fits and (matrix is not None or shift is not None):
            found = " and ".join("none" if value is None else str(tuple(value.shape)) for value in (matrix, shift))
            why = f"scaling.matrix and scaling.shift of shapes {found} do not fit {count} logits"
            raise SurgeryError("surgery-scaling-shape", why)
        self.outputs = outputs_of(self.manifest)
        self.register_buffer("matrix", matrix)  # None must come last: torch.export counts it among its inputs
        self.register_buffer("shift", shift)
        self.gate = in_evaluation(gate)
        if self.manifest.scaling.energy:
            self.register_buffer("_usual", usual_energies(self.manifest).to(kind(self).device), persistent=False)
            self._owner = [part for part, columns in enumerate(self.manifest.columns) for _ in columns]
        self._plain, self._groups = self.manifest.plain, self.manifest.groups
        self._rest = [list(rest) for rest in self.manifest.rest] if self.manifest.reject else []

    def laid(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of each part's network -> the logits of their classes side by side, (batch, logits)."""
        columns = zip(self.manifest.parts, outputs, self._groups, strict=True)
        return torch.cat([self._columns(*column) for column in columns], 1)

    def energies(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """The log-sum-exp of each part's logits, (batch, parts), if the scaling reads it."""
        if not self.manifest.scaling.energy:
            return None
        own = [
            found[:, list(part.task)] if part.reject or part.output_axis is None else found
            for part, found in zip(self.manifest.parts, outputs, strict=True)
        ]
        return torch.stack([logits.logsumexp(1) for logits in own], 1)

    def _columns(self, part: ComponentManifest, outputs: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """A part's logits of the classes that are asked of it, each by those of the source that it stands for."""
        columns = [k for group in groups for k in group]
        if not part.reject and part.output_axis is None:
            outputs = outputs[:, list(part.task)]
        if self.manifest.scaling.log_probability:
            outputs = self.outputs.normalised(outputs)
        if part.reject:
            outputs = outputs[:, columns]
        elif len(columns) != len(part.task):
            outputs = outputs[:, [part.task.index(k) for k in columns]]
        return self.outputs.merged(outputs, [len(group) for group in groups])

    def scaled(
        self,
        logits: Tensor,
        features: Tensor | None = None,
        distances: Tensor | None = None,
        energies: Tensor | None = None,
        depths: Tensor | None = None,
        unknown: Tensor | None = None,
    ) -> Tensor:
        """What `signals` gives -> the assembly's outputs: scaling, classes that several parts know, gate and reject."""
        if energies is not None and self.manifest.scaling.energy:
            usual, spread = self._usual.to(logits.dtype)
            lost = shortfall(energies, usual, spread, depths, self.manifest.scaling.depth)
            logits = logits - lost[:, self._owner]
        if self.matrix is not None and self.shift is not None:
            logits = logits @ self.matrix.T.to(logits.dtype) + self.shift.to(logits.dtype)
        logits = logits if self._plain else combine(self.manifest, logits)
        if self.gate is not None and features is not None and distances is not None:
            gain: Tensor = self.gate(features, distances)
            logits = logits + gain @ self._share.T.to(logits.dtype)
        return with_reject(logits, unknown)

    def unknown(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """With reject, the log-probability that each part gives to classes of its source which the assembly has not.

        (batch, parts); the sum over parts is that of "none of these".
        """
        if not self._rest:
            return None
        pairs = zip(outputs, self._rest, strict=True)
        own = [found[:, rest].logsumexp(1) - found.logsumexp(1) for found, rest in pairs]
        return torch.stack(own, 1)

    def _scaling_tensors(self) -> dict[str, Tensor]:
        found = {"scaling.matrix": self.matrix, "scaling.shift": self.shift}
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        return describe_assembly(self.manifest)


class Assembly(Joined, Predictor):
    """One classifier made of components; made by `assemble` or `load`.

    It takes raw images, uint8 or in [0, 1], and applies each component's own preprocessing.

    Attributes:
        skeletons: The sources' networks as data, one a part.
        sharing: What the networks of the parts have in common, and therefore run once.
        runs: For each of its runs, the indices of the parts, the network of all their steps, and one that also returns
            what the features are read from.
        glance: What tells the order of parts that run in turn, or None.
        stages: Each of these parts by itself, scaled as it is among the others.

    Shapes:
        (batch, channels, height, width) -> (batch, classes), plus one output with reject; signals and cubes likewise

    Example:
        >>> import brickyard as by, torch
        >>> from brickyard.testing import chain
        >>> images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
        >>> relevance = by.locate(chain(), (images, labels))
        >>> whole = by.assemble([by.disassemble(chain(), relevance, task=[k]) for k in (3, 1)])
        >>> isinstance(whole, by.Assembly), whole(images).shape
        (True, torch.Size([8, 2]))
    """

    parts: Sequence[Component]
    joined: Network
    no_source = (
        "an assembly prepares raw images and scales its parts; make one network of it with "
        "brickyard.training.distil, or give one of its components"
    )

    def __init__(
        self,
        networks: Sequence[Network],
        manifest: AssemblyManifest,
        matrix: Tensor | None = None,
        shift: Tensor | None = None,
        skeletons: Sequence[NetworkSpec | None] = (),
        familiarity: Sequence[Familiarity | None] = (),
        gate: Gate | None = None,
        sharing: Sharing | None = None,
        glance: Glance | None = None,
    ) -> None:
        super().__init__()
        networks = all_in_evaluation(networks)
        if manifest.apart:
            known = familiarity or [None] * len(networks)
            self.parts = nn.ModuleList(map(Component, networks, manifest.parts, skeletons, known))  # type: ignore[assignment]
        else:
            self.joined = networks[0]
        self.manifest = manifest
        self.skeletons = tuple(skeletons)
        self._alike = [self.preprocessings.index(how) for how in self.preprocessings]
        self.sharing = sharing or Sharing({}, ())
        reads_at = [part.reads_at for part in self.components()]
        self.runs = tuple(
            (
                run.parts,
                run.network(networks),
                run.looking(networks, [()] * len(run.parts), chosen(reads_at, run.parts)),
            )
            for run in self.sharing.runs
        )
        self.register_buffer("_share", owned(manifest).to(kind(networks[0]).device), persistent=False)
        self._scale_by(matrix, shift, gate)
        if manifest.scaling.depth and not self.depths:
            raise FileError("file-inconsistent", "its scaling needs what is usual inside every part, in parallel form")
        self.lookers = self._lookers(reads=gate is not None) if manifest.scaling.depth else ()
        self._judges = self._lookers(reads=True) if self.stranger_limits else ()
        self.glance = in_evaluation(glance)
        self.stages = () if glance is None else tuple(map(self._stage, range(len(manifest.parts))))
        self.eval()

    @property
    def owners(self) -> tuple[tuple[int, ...], ...]:
        """For each class, the parts that have it."""
        return self.manifest.owners

    @property
    def stranger_limits(self) -> tuple[StrangersRecord, ...]:
        """For each part, from when on images are strangers to it; empty where that is not known."""
        return self.manifest.stranger_limits if self.outputs.exclusive else ()

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """How each part prepares raw images."""
        return tuple(part.preprocessing for part in self.manifest.parts)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What the first part takes after preprocessing: (channels, height, width) for images."""
        return self.manifest.parts[0].input_shape

    @property
    def reject(self) -> bool:
        """Whether a last output stands for "none of these", as all parts have one."""
        return self.manifest.reject

    def networks(self) -> list[Network]:
        """The networks that hold the weights: one per part, or a single joined one."""
        return [part.network for part in self.components()] or [self.joined]

    def shaped_networks(self) -> list[tuple[Network, tuple[int, ...]]]:
        """`networks`, each with its input shape (channels, height, width)."""
        shapes, _ = network_shapes(self.manifest.parts, self.manifest.form, self.manifest.shared_input)
        return list(zip(self.networks(), shapes, strict=True))

    def distinct_networks(self) -> list[tuple[Network, tuple[int, ...]]]:
        """What runs, with input shapes as in `shaped_networks`: networks with common steps are one."""
        shaped = self.shaped_networks()
        found = {parts[0]: (network, shaped[parts[0]][1]) for parts, network, _ in self.runs}
        gone = {index for parts, *_ in self.runs for index in parts}
        return [found.get(index, pair) for index, pair in enumerate(shaped) if index not in gone or index in found]

    def components(self) -> list[Component]:
        """The parts, where they are apart: in parallel form, and where they run in turn."""
        return list(self.parts) if self.manifest.apart else []

    def signals(self, images: Tensor, features: bool = False) -> Signals:
        """Run the parts, without scaling.

        Args:
            images: Raw images, (batch, channels, height, width).
            features: Also return features and distances; only in parallel form.
        """
        return self._signals(self.inputs(images), features)

    def inputs(self, images: Tensor) -> list[Tensor]:
        """Preprocess raw images for each of `networks`."""
        parts, likes = self.manifest.parts, [kind(network) for network in self.networks()]
        if self.manifest.apart or self.manifest.shared_input:
            prepared: list[Tensor] = []
            for index, first in enumerate(self._alike[: len(likes)]):
                known = first < index
                prepared.append(prepared[first] if known else preprocess(images, parts[index].preprocessing))
        else:
            prepared = [torch.cat([preprocess(images, part.preprocessing) for part in parts], 1)]
        return [x.to(like.device, like.dtype) for x, like in zip(prepared, likes, strict=True)]

    def answers(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map the result of `inputs` to the logits of all classes."""
        return self.scaled(*self._signals(inputs, features=self.gate is not None))

    def _signals(self, inputs: Sequence[Tensor], features: bool) -> Signals:
        if self.lookers:
            read = features and self.gate is None
            rows = looked(self.components(), inputs, self._lookers(reads=True) if read else self.lookers)
        elif features and self.manifest.apart:
            rows = self._seen(inputs)
        else:
            outputs = self._outputs(inputs)
            if not self.manifest.apart:
                outputs = list(outputs[0].split([part.width for part in self.manifest.parts], 1))
            rows = [(output, None, []) for output in outputs]
        return self._told(rows, features)

    def _told(self, rows: Sequence[Row], features: bool) -> Signals:
        """What parts say, from what was seen of each."""
        outputs, depths = [output for output, _, _ in rows], None
        if self.lookers:
            unusual = [one(seen) for one, (_, _, seen) in zip(self.depths, rows, strict=True)]
            depths = torch.stack(unusual, 1)
        logits, energies, unknown = self.laid(outputs), self.energies(outputs), self.unknown(outputs)
        pairs = zip(self.components(), rows, strict=False)
        known = [(part.familiarity, found) for part, (_, found, _) in pairs if features and found is not None]
        distances = [familiarity(found) for familiarity, found in known if familiarity is not None]
        if not distances or len(distances) < len(rows):
            return Signals(logits, energies=energies, depths=depths, unknown=unknown)
        entering = [nn.functional.normalize(found, dim=1) for _, found in known]
        return Signals(logits, torch.cat(entering, 1), torch.stack(distances, 1), energies, depths, unknown)

    @property
    def depths(self) -> list[Depths]:
        """What is usual inside each part; empty unless that is known of all, and the parts can be looked into."""
        parts = [part for part in self.components() if part.network.keeps_input and not part.network.foreign]
        known = [part.familiarity.depths for part in parts if part.familiarity is not None]
        found = [depths for depths in known if depths is not None]
        return found if len(found) == len(self.manifest.parts) else []

    def _lookers(self, reads: bool) -> Lookers:
        """Networks that also return what enters layers, each with its parts; and what features are read from."""
        return lookers_of(self.components(), given_to(self.networks(), self.manifest.parts), self.sharing.ties, reads)

    def judged(self, images: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Map raw images to the logits of all classes, and to how strange they are to each part, (batch, parts)."""
        if self.stages:
            return self._in_turn(images, dtype)
        logits, unknown, strange = self.without_reject(images, dtype)
        assert strange is not None  # as it was asked for
        return with_reject(logits, unknown), strange

    def without_reject(
        self, images: Tensor, judging: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Map raw images to logits without reject, to what `unknown` says, and to how strange they are to each part.

        All parts run. The last is None unless `judging` says in what to compute it.
        """
        features, inputs = self.gate is not None, self.inputs(images)
        if judging is None:
            signals, strange = self._signals(inputs, features), None
        else:
            rows = looked(self.components(), inputs, self._judges)
            known = [part.strangeness_of(*row, judging) for part, row in zip(self.components(), rows, strict=True)]
            signals, strange = self._told(rows, features), torch.stack(known, 1)
        return self.scaled(*signals._replace(unknown=None)), signals.unknown, strange

    def _outputs(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What each of `networks` returns."""
        found: dict[int, Tensor] = {}
        for parts, network, _ in self.runs:
            found |= zip(parts, network(inputs[parts[0]]), strict=True)
        pairs = enumerate(zip(self.networks(), inputs, strict=True))
        return [found[index] if index in found else network(x) for index, (network, x) in pairs]

    def _seen(self, inputs: Sequence[Tensor]) -> list[Row]:
        """What each network returns, and the features of each part."""
        common: dict[int, tuple[Tensor, Tensor]] = {}
        for parts, _, network in self.runs:
            common |= zip(parts, network(inputs[parts[0]]), strict=True)
        found: list[Row] = []
        for index, (part, x) in enumerate(zip(self.components(), inputs, strict=True)):
            if index in common:
                output, entering = common[index]
                found.append((output, features_of(part.network, part.reads_at, x, entering), []))
            else:
                features, _, output = part.observe(x)
                found.append((output, features, []))
        return found

    def side_by_side(self, images: Tensor) -> Tensor:
        """The parts' logits before scaling, (batch, logits)."""
        return self.signals(images).logits

    def found(self, sides: tuple[int, ...], logits: Tensor, *how: Any) -> list[Found]:
        return found_among(self.outputs, self.owners, self._spans, sides, logits, how)

    @cached_property
    def _spans(self) -> tuple[int, ...]:
        return spans_of(self.components(), self.manifest)

    def forward(self, images: Tensor) -> Tensor:
        """Map raw images to the logits of all classes."""
        if isinstance(self.outputs, Detections):
            said, precise = self._outputs(self.inputs(images)), self.manifest.scaling.name == "auto"
            return boxes_of_all(self.components(), self.manifest.places, said, images, precise=precise)
        return self._in_turn(images)[0] if self.stages else self.answers(self.inputs(images))

    logits = forward

    def _stage(self, index: int) -> Assembly:
        """A part by itself, scaled as it is among the others."""
        whole, part = self.manifest, self.parts[index]
        own = [place for place, owners in enumerate(whole.owners) if owners == (index,)]
        changes: dict[str, Any] = {
            "classes": tuple(whole.classes[place] for place in own),
            "members": tuple((place,) for place in range(len(own))),
            "left_out": whole.left_out[index : index + 1],
            "parts": (part.manifest,),
            "form": "parallel",
            "cascade": None,
        }
        matrix, shift = self.matrix, self.shift
        if matrix is not None and shift is not None:
            matrix, shift = matrix[own][:, own], shift[own]
        made, known = whole.model_copy(update=changes), (part.familiarity,)
        return Assembly([part.network], made, matrix, shift, (part.skeleton,), known)

    def order(self, images: Tensor) -> Tensor:
        """In which order the parts look at raw images, where they run in turn: (batch, parts)."""
        assert self.glance is not None
        x = preprocess(images, self.manifest.parts[0].preprocessing).to(self.glance.bias.device)
        return ranked(self.glance(x))

    def _in_turn(self, images: Tensor, judging: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Map raw images to the logits of all classes, and to how strange they are to each part, if that is asked for.

        A part runs for those images whose answer is not final before it; to others, all are infinitely strange, and
        they leave it to the others whether an image is none of the classes.
        """
        record, owner = self.manifest.cascade, [owners[0] for owners in self.manifest.owners]
        assert record is not None  # as there are stages
        like = kind(self.parts[0].network)
        logits = torch.tensor(record.expected, dtype=like.dtype, device=like.device).repeat(len(images), 1)
        strange = torch.full((len(images), len(self.stages)), torch.inf, dtype=judging, device=like.device)
        unknown = torch.zeros(strange.shape, dtype=like.dtype, device=like.device) if self.reject else None

        def run(part: int, rows: Tensor) -> tuple[Tensor, Tensor | None]:
            found, none, own = self.stages[part].without_reject(images[rows.to(images.device)], judging)
            if own is not None:
                strange[rows, part] = own[:, 0]
            return found, none

        return in_turn(record, owner, run, self.order(images), logits, unknown), strange

    def _apply(self, fn: Any, recurse: bool = True) -> Assembly:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for stage in self.stages:  # what it shares with the parts stays as it is
            stage._apply(fn, recurse)
        return self

    def with_scaling(self, fitted: Scale, record: ScalingRecord) -> Assembly:
        """The same assembly with another scaling."""
        check_no_cascade(self, "another scaling")
        manifest = self.manifest.model_copy(update={"scaling": record})
        return self._with(manifest=manifest, matrix=fitted.matrix, shift=fitted.shift, gate=fitted.gate)

    def with_manifest(self, **changes: Any) -> Assembly:
        """The same assembly with changed manifest entries."""
        return self._with(manifest=self.manifest.model_copy(update=changes))

    def renamed(self, names: Mapping[str, str]) -> Assembly:
        """The same assembly with other class names, in its parts too; see `Component.renamed`."""
        return self._with(manifest=renamed_assembly(self.manifest, names))

    def with_decision_thresholds(self, thresholds: Mapping[str, float] | float) -> Assembly:
        """The same assembly with other probabilities above which its answers include a class.

        They are those of its parts, for probabilities after scaling; see `Component.with_decision_thresholds`.
        """
        manifest, given = self.manifest, decision_thresholds(thresholds)
        found = thresholds_for(given, self.classes, manifest.decision_thresholds)
        parts = []
        for part, places in zip(manifest.parts, manifest.places, strict=True):
            before = zip(part.leads, part.decision_thresholds or (EVEN,) * len(part.classes), strict=True)
            own = tuple(found[places[k]] if places[k] >= 0 else share for k, share in before)
            parts.append(part.model_copy(update={"decision_thresholds": own}))
        return self.with_manifest(parts=tuple(parts))

    def _with(self, **changes: Any) -> Assembly:
        """A copy of the assembly with some of its contents replaced."""
        same: dict[str, Any] = {
            "networks": self.networks(),
            "manifest": self.manifest,
            "matrix": self.matrix,
            "shift": self.shift,
            "skeletons": self.skeletons,
            "familiarity": [part.familiarity for part in self.components()],
            "gate": self.gate,
            "sharing": self.sharing,
            "glance": self.glance,
        }
        return Assembly(**(same | changes))

    @guarded
    def fused(self) -> Assembly:
        """A copy fused for inference, as by `Component.fused`; form and scaling stay the same."""
        networks = [quick(network, shape) for network, shape in self.shaped_networks()]
        sharing = None
        if self.manifest.apart:
            networks, sharing, _ = shared(networks, self.manifest)
        return self._with(networks=networks, sharing=sharing, skeletons=[None] * len(self.manifest.parts))

    @guarded
    def unshared(self) -> Assembly:
        """A copy whose parts run and train by themselves, also where they are equal: training one leaves the others.

        Loading it from a file, or fusing it, finds what is still equal.
        """
        networks = [copy.deepcopy(network) for network in self.networks()]
        manifest = self.manifest.model_copy(update={"shared_parameters": 0, "shared_flops": 0})
        return self._with(networks=networks, manifest=manifest, sharing=None)

    @guarded
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the assembly to one safetensors file, atomically.

        Raises:
            FileError: The file exists and `overwrite` is false, or cannot be written.
        """
        text, tensors = self.content()
        return write(given_path(path, "the file to write"), tensors, text.model_dump(mode="json"), overwrite)

    def content(self) -> tuple[AssemblyFile, dict[str, Tensor]]:
        """What its file holds: the text, and the tensors."""
        networks = self.networks()
        tensors = self._scaling_tensors() | tensors_of(self.gate, "scaling.gate.")
        tensors |= tensors_of(self.glance, "cascade.glance.")
        for index, network in enumerate(networks):
            tensors |= tensors_of(network, f"networks.{index}.")
        again = {f"networks.{own}" for own in self.sharing.ties}
        tensors = {name: value for name, value in tensors.items() if not again & {name, name.rpartition(".")[0]}}
        for index, part in enumerate(self.components()):
            tensors |= tensors_of(part.familiarity, f"familiarity.{index}.")
        specs = tuple(network.to_spec() for network in networks)
        ties = dict(self.sharing.ties)
        return AssemblyFile(manifest=self.manifest, networks=specs, skeletons=self.skeletons, shared=ties), tensors


def check_model(model: object, verb: str) -> None:
    """Refuse anything but a component or an assembly."""
    if not isinstance(model, Component | Assembly):
        kind = type(model).__name__
        advice = "create one with disassemble or assemble, or load one"
        raise OptionError("option-wrong-object", f"{verb} needs a component or an assembly, got {kind}; {advice}")


def check_no_cascade(model: object, what: str) -> None:
    """Refuse to change what the thresholds of a cascade were chosen for.

    Raises:
        OptionError: It is a cascade.
    """
    if isinstance(model, Assembly) and model.stages:
        why = f"{what} would need other thresholds than those of this cascade"
        advice = "join its parts with assemble([cascade]), change that, and assemble it with form='cascade' again"
        raise OptionError("option-needs-parallel-form", f"{why}; {advice}")
