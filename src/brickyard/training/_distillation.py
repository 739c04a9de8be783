"""Teachers, whose answers follow the order of the student's outputs, and the distillation loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly
from brickyard.axes._graph import trace
from brickyard.base._errors import OptionError
from brickyard.base._options import Distillation
from brickyard.component._component import Component
from brickyard.component._features import observe
from brickyard.component._predictor import Predictor
from brickyard.network._identity import fingerprint, weights_like
from brickyard.network._network import Network, refs
from brickyard.outputs._kinds import ONE, Outputs
from brickyard.surgery._pairs import plain_name
from brickyard.surgery._plan import Part, positions

Lesson = tuple[Tensor, Tensor | None]  # logits (batch, outputs) of the student; features (batch, size) where wanted
Teacher = Callable[[Tensor], Lesson]  # raw images (batch, channels, height, width) -> a lesson


def taught_by(teacher: nn.Module, student: Component | Assembly, how: Distillation) -> Teacher:
    """Prepare a teacher: a component or an assembly that knows the student's classes by name, or its source."""
    if isinstance(teacher, Predictor):
        if how.features:
            why = "features need the component's own source as teacher, because only its channels are known to match"
            raise OptionError("option-teacher-source", f"{why}; give that source, or features=0")
        return named_teacher(teacher, student.classes, student.reject)
    if not isinstance(teacher, nn.Module):
        raise OptionError(
            "option-wrong-object",
            f"the teacher must be a component, an assembly or a source, got {type(teacher).__name__}",
        )
    if not isinstance(student, Component):
        why = "an assembly needs a teacher that knows class names, and a plain network does not"
        raise OptionError("option-teacher-classes", f"{why}; give a component or an assembly")
    return SourceTeacher(teacher, student, features=how.features > 0)


def named_teacher(teacher: Predictor, classes: Sequence[str], reject: bool = False) -> Teacher:
    """Prepare a teacher that matches the student's classes with its own by name."""
    missing = [name for name in classes if name not in teacher.classes]
    if missing or (reject and not teacher.reject):
        what = f"class {missing[0]!r}" if missing else 'an output for "none of these"'
        why = f"the teacher has no {what}; it knows {', '.join(teacher.classes[:8])}"
        raise OptionError("option-teacher-classes", f"{why}: give one that knows all classes")
    columns = [teacher.classes.index(name) for name in classes] + ([len(teacher.classes)] if reject else [])

    def lesson(images: Tensor) -> Lesson:
        with torch.no_grad():
            return teacher.logits(images)[:, columns], None

    return lesson


class SourceTeacher:
    """A component's source as its teacher: its logits for the task, and its features on the kept channels."""

    def __init__(self, source: nn.Module, component: Component, *, features: bool) -> None:
        manifest = component.manifest
        found = fingerprint(source)
        if found != manifest.source.sha256:
            why = f"the component was cut from {manifest.source.name!r} with weights {manifest.source.sha256[:12]}"
            advice = f"the teacher network has {found[:12]}: give its own source, a component or an assembly"
            raise OptionError("option-teacher-source", f"{why}, and {advice}")
        self.component, self.like = component, weights_like(source)
        example = torch.zeros(2, *manifest.input_shape).to(self.like.device, self.like.dtype)
        graph = trace(source, example, manifest.output)
        self.network: Network = graph.network
        self.kept: Tensor | None
        self.stop, self.kept = 0, None
        if features and manifest.selection.of == "component":
            why = "features need channels known to match, and the component was cut further after it left its source"
            raise OptionError("option-teacher-source", f"{why}; leave features out")
        if features:
            reads = component.network.nodes[component.reads_at]
            labels = graph.at(reads.target, "in") if refs(reads) else None
            place = [i for i, node in enumerate(self.network.nodes) if node.name == reads.name]
            if labels is None or not place:
                why = "features need channels known to match, and the input of the source's classifier has none"
                raise OptionError("option-teacher-source", f"{why}; leave features out")
            own = {axis.name for axis in graph.axes}  # a source may have layers with the names of factors
            keep = {
                name if name in own else plain_name(name): torch.tensor(axis.kept)
                for name, axis in manifest.axes.items()
            }
            self.stop, self.kept = place[0], torch.from_numpy(positions(Part(graph, keep), labels))

    def __call__(self, images: Tensor) -> Lesson:
        """Map raw images to the teacher's answers."""
        x = self.component.preprocess(images).to(self.like.device, self.like.dtype)
        with torch.no_grad():
            features, _, logits = observe(self.network, self.stop, x)
        return self.component.of_source(logits), None if self.kept is None else features[:, self.kept]


def lesson_loss(student: Lesson, teacher: Lesson, targets: Tensor, how: Distillation, outputs: Outputs = ONE) -> Tensor:
    """Compute the loss of a student with labels and a teacher.

    This is `(1 - weight) * loss + weight * taught`, as defined by the kind of outputs, plus `features` times the mean
    squared error of the features, relative to the teacher's variance in the batch.
    """
    taught = outputs.taught(student[0], teacher[0].to(student[0]), how.temperature)
    loss = how.weight * taught + (1 - how.weight) * outputs.loss(student[0], targets)
    if how.features and student[1] is not None and teacher[1] is not None:
        goal = teacher[1].to(student[1])
        loss = loss + how.features * F.mse_loss(student[1], goal) / goal.var().clamp_min(1e-12)
    return loss


def teacher_name(teacher: nn.Module, student: Component | Assembly) -> str:
    """The name of a teacher in manifests."""
    if isinstance(teacher, Component):
        return f"component of {teacher.manifest.source.name}"
    if isinstance(teacher, Assembly):
        return f"assembly of {len(teacher.manifest.parts)} components"
    return student.manifest.parts[0].source.name
