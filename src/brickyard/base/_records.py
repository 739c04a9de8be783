"""Frozen values that say what a component or an assembly is and where it came from, with conversion to and from JSON.

Nothing here depends on `torch`. Manifests are validated on creation; the JSON Schema in `docs/` is made from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from brickyard.base._boxes import Boxes
from brickyard.base._cascades import CascadeRecord
from brickyard.base._checks import EVEN
from brickyard.base._divided import BudgetRecord
from brickyard.base._frozen import Count, Frozen, Json, Name
from brickyard.base._history import TuneRecord, UsedRecord, Versions
from brickyard.base._limits import check_axes
from brickyard.base._merged import MergedRecord
from brickyard.base._precisions import PrecisionRecord
from brickyard.base._preprocessing import Preprocessing as Preprocessing
from brickyard.base._specs import NetworkSpec
from brickyard.base._statistics import Statistics, StrangersRecord

FORMAT_VERSION = 1

Form = Literal["parallel", "padded", "grouped", "union", "cascade"]


class SourceRecord(Frozen):
    """The source that a component was cut from."""

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    classes: tuple[Name, ...]
    parameters: Count
    flops: Count


class AxisRecord(Frozen):
    """How many channels an axis had in the source, and which of them were kept, in order."""

    size: Annotated[int, Field(ge=1, le=1 << 62)]
    kept: tuple[Count, ...]
    pinned: bool = False

    @model_validator(mode="after")
    def _kept_fits(self) -> AxisRecord:
        if len(set(self.kept)) != len(self.kept) or any(channel >= self.size for channel in self.kept):
            raise ValueError(f"the channels kept are not each one of {self.size}, once")
        return self


class Pinned(Frozen):
    """An axis or operation that was kept whole, and why."""

    axis: str
    channels: Count
    reason: str


class LocateRecord(Frozen):
    """Which images the relevances came from, and what was seen of the source on them.

    Attributes:
        ending: What the source's logits went through and was left out: "softmax", "log_softmax", "sigmoid", or
            "probabilities".
        right: How many of the images the source answers correctly, and how many it was asked.
        candidates: How many images of each class the most confident ones were chosen from, where some had more.
        output: The part of what the source returns that was asked for as its logits, or None.
        assumed: What was assumed of the preparation of the source's images, since nothing said it; "" for nothing.
        given: How many images there were to choose from, of any class; None in files of earlier versions.
    """

    choose: Literal["confident", "random", "all"]
    per_class: Count | None
    seed: Annotated[int, Field(ge=-(1 << 64), le=1 << 64)]
    images: tuple[Count, ...]
    data: str = ""
    ending: str | None = None
    right: tuple[Count, Count] | None = None
    candidates: Count | None = None
    output: Name | None = None
    assumed: Annotated[str, Field(max_length=1024)] = ""
    given: Count | None = None


_RENAMED = {"spread": "allocation", "multiple": "round_to", "relevance": "global", "even": "uniform"}


def _renamed(budget: Any) -> Any:
    """Translate a budget from files of earlier versions to today's names."""
    if not isinstance(budget, dict) or not {"spread", "multiple"} & budget.keys():
        return budget
    return {_RENAMED.get(key, key): _RENAMED.get(str(value), value) for key, value in budget.items()}


class SelectionRecord(Frozen):
    """How the channels were chosen: by thresholds or by a budget.

    `of` says what the axes are of, and a budget's share: the source, or a component of it that was cut further.
    """

    thresholds: dict[str, float] | None = None
    budget: Annotated[dict[str, Json] | None, BeforeValidator(_renamed)] = None
    parameters: Count
    flops: Count
    of: Literal["source", "component"] = "source"


class HealRecord(Frozen):
    """How the component was repaired, with notes.

    `copies` is how many times the images were used, including the originals; the other copies were shifted. `held` is
    how many more images were held back, and `others` how many of all of these are of none of the task's classes.
    `ridges` has the strength of the prior of each layer, `steps` how many steps of training followed the refit.
    """

    method: Literal["none", "moments", "refit", "distil"]
    images: Count = 0
    copies: Annotated[int, Field(ge=1, le=1 << 62)] = 1
    ridge: float | None = None
    layers: Count = 0
    notes: tuple[str, ...] = ()
    held: Count = 0
    others: Count = 0
    ridges: dict[Name, float] = {}
    steps: Count = 0


class ComponentManifest(Frozen):
    """What a component is and where it came from.

    `agreement` is how many images that nothing was fitted to have the same answer as from the source, restricted to
    the task, and how many were looked at. `decision_thresholds` has, for each class, the probability above which an
    answer includes it, where classes do not exclude each other; none stands for one half each. `task` has the classes
    of the source that were cut for. `members` divides these among the component's classes, where one of them stands for
    several or has a name of its own; none stands for one each, of the same name. `precisions` says how often boxes of a
    detector are right, by their score; None where too few were seen to tell. `used` says which images the component
    was located, repaired and measured with.
    """

    kind: Literal["component"] = "component"
    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    task: Annotated[tuple[Count, ...], Field(min_length=1)]
    members: tuple[Annotated[tuple[Count, ...], Field(min_length=1)], ...] = ()
    reject: bool = False
    preprocessing: Preprocessing = Preprocessing()
    input_shape: tuple[Annotated[int, Field(ge=1, le=1 << 62)], ...]
    source: SourceRecord
    axes: dict[str, AxisRecord]
    output_axis: str | None = None
    pinned: tuple[Pinned, ...] = ()
    located: LocateRecord | None = None
    selection: SelectionRecord
    heal: HealRecord = HealRecord(method="none")
    agreement: tuple[Count, Count] | None = None
    tuned: TuneRecord | None = None
    outputs: Name = "one"
    boxes: Boxes | None = None
    decision_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    statistics: Statistics | None = None
    precisions: PrecisionRecord | None = None
    used: UsedRecord | None = None
    scores: dict[str, Json] = {}
    versions: Versions
    created: str

    @model_validator(mode="after")
    def _task_fits(self) -> ComponentManifest:
        if len(self.groups) != len(self.classes):
            raise ValueError(f"{len(self.groups)} task indices for {len(self.classes)} class names")
        if len(set(self.task)) != len(self.task):
            raise ValueError("the task has a class twice")
        if self.decision_thresholds and len(self.decision_thresholds) != len(self.classes):
            raise ValueError(f"{len(self.decision_thresholds)} decision thresholds for {len(self.classes)} classes")
        if self.statistics is not None and len(self.statistics.images) != len(self.classes):
            raise ValueError(f"statistics of {len(self.statistics.images)} classes for {len(self.classes)} classes")
        features = None if self.statistics is None else self.statistics.familiarity
        if features is not None and features.classes > len(self.task):
            raise ValueError(f"features of {features.classes} classes for a task of {len(self.task)}")
        check_axes([axis.size for axis in self.axes.values()])
        if self.boxes is not None and self.boxes.classes != len(self.source.classes):
            raise ValueError(f"boxes of {self.boxes.classes} classes for the {len(self.source.classes)} of the source")
        if self.precisions is not None and self.boxes is None:
            raise ValueError("a curve of the precisions of boxes, and no boxes")
        if max(self.task) >= len(self.source.classes):
            raise ValueError(f"the task has classes beyond the {len(self.source.classes)} of the source")
        if tuple(k for group in self.groups for k in group) != self.task:
            raise ValueError("its members do not divide the task among its classes")
        if self.members and len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have one name")
        known = set(self.source.classes)
        for group, name in zip(self.groups, self.classes, strict=True):
            if (name in known or not self.members) and name not in [self.source.classes[k] for k in group]:
                raise ValueError(f"task index {group[0]} is not class {name!r} of the source")
        return self

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """For each class, the classes of the source that it stands for."""
        return self.members or tuple((k,) for k in self.task)

    @property
    def leads(self) -> tuple[int, ...]:
        """For each class, the first of the classes of the source that it stands for."""
        return tuple(group[0] for group in self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """What the source's classes are called here: those of the task as the class that they belong to."""
        pairs = zip(self.places[0], self.source.classes, strict=True)
        return tuple(name if place < 0 else self.classes[place] for place, name in pairs)

    def thresholds_of(self, leads: Sequence[int]) -> tuple[float, ...]:
        """The decision thresholds of some of `leads`; none where the component has none."""
        found = dict(zip(self.leads, self.decision_thresholds, strict=False))
        return tuple(found[k] for k in leads) if found else ()

    @property
    def uses(self) -> tuple[UsedRecord, ...]:
        """The images that it was made with, in a tuple of one; files of earlier versions only know how many."""
        located = () if self.located is None else self.located.images
        told = [located[k] for k in self.task if k < len(located)] + [self.heal.images, self.heal.held]
        return (self.used or UsedRecord(unknown=sum(told) + (0 if self.tuned is None else self.tuned.images)),)

    @property
    def parts(self) -> tuple[ComponentManifest, ...]:
        """This manifest alone, matching an assembly's `parts`."""
        return (self,)

    @property
    def stranger_limits(self) -> tuple[StrangersRecord, ...]:
        """From when on images are strangers, in a tuple of one, matching an assembly's; empty where it is not known."""
        known = None if self.statistics is None else self.statistics.strangers
        return () if known is None else (known,)

    @property
    def output(self) -> str | None:
        """The part of what the source returns that was asked for as its logits, or None."""
        return None if self.located is None else self.located.output

    @property
    def width(self) -> int:
        """The network's own number of outputs, before task and reject are selected from them."""
        classes = len(self.source.classes) if self.reject or self.output_axis is None else len(self.task)
        return classes if self.boxes is None else classes + self.boxes.others

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """For each class of the source, the component's class or -1; in a tuple of one, matching an assembly's."""
        place = {k: index for index, group in enumerate(self.groups) for k in group}
        return (tuple(place.get(k, -1) for k in range(len(self.source.classes))),)


class ScalingRecord(Frozen):
    """How the parts' logits were made comparable.

    `gate` means that each part's classes also gain or lose by how familiar its features look; `energy`, that they lose
    where the part's logits are lower than they usually are; `depth` is the weight by which they also lose where the
    values inside the part are unusual.
    """

    name: Name
    options: dict[str, Json] = {}
    images: Count = 0
    log_probability: bool = False
    gate: bool = False
    energy: bool = False
    depth: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    notes: tuple[str, ...] = ()


class AssemblyManifest(Frozen):
    """What an assembly is: its parts, how they are joined, and its classes.

    `votes` lists, for each part, the further classes of its source that it votes on, as other parts contribute them.
    `left_out` lists, for each part, the classes that are not used, by the first of their `members`; the part itself is
    unchanged.
    `members` lists, for each class, the parts' logits that form it (as indices into all logits side by side: each
    part's task, then its votes). `shared_parameters` and `shared_flops` (per image) count once, not in each part.
    `reject` adds an output for images of which every part says that they belong to another class of its source.
    """

    kind: Literal["assembly"] = "assembly"
    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    members: tuple[Annotated[tuple[Count, ...], Field(min_length=1)], ...]
    on_duplicate: Literal["error", "average", "max", "rename"] = "error"
    votes: tuple[tuple[Count, ...], ...] = ()
    left_out: tuple[tuple[Count, ...], ...] = ()
    parts: Annotated[tuple[ComponentManifest, ...], Field(min_length=1)]
    form: Form
    shared_input: bool = False
    shared_parameters: Count = 0
    shared_flops: Count = 0
    budget: BudgetRecord | None = None
    scaling: ScalingRecord = ScalingRecord(name="none")
    cascade: CascadeRecord | None = None
    merged: MergedRecord | None = None
    reject: bool = False
    tuned: TuneRecord | None = None
    used: UsedRecord | None = None
    notes: tuple[str, ...] = ()
    scores: dict[str, Json] = {}
    versions: Versions
    created: str

    @model_validator(mode="after")
    def _members_fit(self) -> AssemblyManifest:
        places = [place for member in self.members for place in member]
        if self.votes and len(self.votes) != len(self.parts):
            raise ValueError(f"votes of {len(self.votes)} parts for {len(self.parts)} parts")
        for part, votes in zip(self.parts, self.votes, strict=False):
            others = set(range(len(part.source.classes))) - set(part.task) if votes else set()
            if votes and (not part.reject or len(set(votes)) != len(votes) or not set(votes) <= others):
                raise ValueError(f"the component of {part.source.name!r} cannot vote on {votes}")
        if self.budget is not None and len(self.budget.parts) != len(self.parts):
            raise ValueError(f"a budget of {len(self.budget.parts)} parts for {len(self.parts)} parts")
        if self.merged is not None:
            self.merged.check(len(self.parts))
        if self.left_out and len(self.left_out) != len(self.parts):
            raise ValueError(f"classes of {len(self.left_out)} parts are left out of {len(self.parts)} parts")
        for part, gone in zip(self.parts, self.left_out, strict=False):
            if len(set(gone)) != len(gone) or not set(gone) < set(part.leads):
                raise ValueError(f"{gone} cannot be left out of the task {part.task}")
        total = sum(map(len, self.columns))
        if len(self.members) != len(self.classes) or sorted(places) != list(range(total)):
            raise ValueError(f"{len(self.members)} members do not divide {total} logits among the classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have one name")
        if len({part.outputs for part in self.parts}) > 1:
            raise ValueError("the parts' outputs differ in kind")
        if self.reject and not self.rejectable:
            raise ValueError("an output for other classes than theirs, which not every part has")
        return self

    @model_validator(mode="after")
    def _cascade_fits(self) -> AssemblyManifest:
        found = self.cascade
        if (found is None) != (self.form != "cascade"):
            raise ValueError(f"form {self.form!r} {'without' if found is None else 'with'} the record of a cascade")
        if found is None:
            return self
        if len(self.parts) < 2 or not self.plain or self.scaling.gate:
            raise ValueError("a cascade has two parts or more, each class in one of them, and no gate")
        found.check([owners[0] for owners in self.owners], len(self.parts))
        return self

    @property
    def uses(self) -> tuple[UsedRecord, ...]:
        """The images that its parts were made with, part by part, then those that it was made with itself."""
        told = [self.scaling.images] + [one.images for one in (self.tuned, self.cascade) if one is not None]
        return (*(use for part in self.parts for use in part.uses), self.used or UsedRecord(unknown=sum(told)))

    @property
    def apart(self) -> bool:
        """Whether each part keeps a network of its own."""
        return self.form in ("parallel", "cascade")

    @property
    def stranger_limits(self) -> tuple[StrangersRecord, ...]:
        """For each part, from when on images are strangers to it; empty unless all know, and can be looked into."""
        found = tuple(limits for part in self.parts for limits in part.stranger_limits)
        return found if self.apart and len(found) == len(self.parts) else ()

    @property
    def outputs(self) -> str:
        """The kind of outputs that all parts share."""
        return self.parts[0].outputs

    @property
    def thresholds_by_part(self) -> tuple[tuple[float, ...], ...]:
        """For each class, the decision thresholds that its parts have for it."""
        found: list[float] = []
        for part, task, columns in zip(self.parts, self.tasks, self.columns, strict=True):
            own = part.thresholds_of(task)
            found += [*own, *(EVEN,) * (len(columns) - len(own))]
        return tuple(tuple(found[place] for place in member) for member in self.members)

    @property
    def decision_thresholds(self) -> tuple[float, ...]:
        """The decision threshold of each class; none where the parts have none."""
        known = any(part.decision_thresholds for part in self.parts)
        return tuple(own[0] for own in self.thresholds_by_part) if known else ()

    @property
    def plain(self) -> bool:
        """Whether every class is one logit, in the order of the logits."""
        return all(member == (place,) for place, member in enumerate(self.members))

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """For each part and class of its source, the corresponding class of the assembly, or -1."""
        class_of = {place: k for k, member in enumerate(self.members) for place in member}
        found, offset = [], 0
        for part, task, groups in zip(self.parts, self.tasks, self.groups, strict=True):
            known = {k: class_of[offset + index] for index, own in enumerate(groups[: len(task)]) for k in own}
            found.append(tuple(known.get(k, -1) for k in range(len(part.source.classes))))
            offset += len(groups)
        return tuple(found)

    @property
    def tasks(self) -> tuple[tuple[int, ...], ...]:
        """For each part, those of its `leads` that are used."""
        gone = self.left_out or ((),) * len(self.parts)
        return tuple(tuple(k for k in part.leads if k not in out) for part, out in zip(self.parts, gone, strict=True))

    @property
    def columns(self) -> tuple[tuple[int, ...], ...]:
        """For each part, the classes of its source whose logits are used: its task's, then its votes."""
        votes = self.votes or ((),) * len(self.parts)
        return tuple(task + own for task, own in zip(self.tasks, votes, strict=True))

    @property
    def groups(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each part and each of its `columns`, the classes of the source that it stands for."""
        known = [{group[0]: group for group in part.groups} for part in self.parts]
        pairs = zip(known, self.columns, strict=True)
        return tuple(tuple(groups.get(k, (k,)) for k in columns) for groups, columns in pairs)

    @property
    def rest(self) -> tuple[tuple[int, ...], ...]:
        """For each part, the classes of its source that no class of the assembly stands for."""
        named = [{k for group in groups for k in group} for groups in self.groups]
        pairs = zip(self.parts, named, strict=True)
        return tuple(tuple(k for k in range(len(p.source.classes)) if k not in own) for p, own in pairs)

    @property
    def rejectable(self) -> bool:
        """Whether all parts know other classes than those of the assembly."""
        return self.outputs == "one" and all(part.reject for part in self.parts) and all(self.rest)

    @property
    def owners(self) -> tuple[tuple[int, ...], ...]:
        """For each class, the parts whose task includes it."""
        tasks = self.tasks
        owner = [
            part if place < len(tasks[part]) else None
            for part, columns in enumerate(self.columns)
            for place in range(len(columns))
        ]
        return tuple(tuple(o for place in member if (o := owner[place]) is not None) for member in self.members)


class ComponentFile(Frozen):
    """The JSON text of a component file, beside its format version."""

    manifest: ComponentManifest
    network: NetworkSpec
    skeleton: NetworkSpec | None = None


class AssemblyFile(Frozen):
    """The JSON text of an assembly file. `shared`: layers ("1.conv1") with the tensors of an equal one ("0.conv1")."""

    manifest: AssemblyManifest
    networks: tuple[NetworkSpec, ...]
    skeletons: tuple[NetworkSpec | None, ...]
    shared: dict[str, str] = {}


class RelevanceFile(Frozen):
    """The JSON text of a relevance file, beside its format version."""

    kind: Literal["relevance"] = "relevance"
    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    task: tuple[Count, ...]
    thresholds: dict[str, float]
    layers: dict[str, bool]
    axes: dict[str, tuple[Count, Count]]
    record: LocateRecord
    preprocessing: Preprocessing
    input_shape: tuple[Annotated[int, Field(ge=1, le=1 << 62)], ...]
    source_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source_name: Name
    sums: bool
    outputs: Name = "one"
    boxes: Boxes | None = None
