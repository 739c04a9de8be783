"""What a classifier's outputs mean.

Whether logits stand for one of many classes or for several at once is defined here and nowhere else. Each kind of
answer is one class, registered under the name that manifests store. All other code asks it which images belong to a
class, how to read an answer, join it with another part's and judge it, and what training minimises.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from brickyard.base._boxes import Boxes
from brickyard.base._checks import EVEN, check_new
from brickyard.base._errors import DataError, OptionError


class Cases(NamedTuple):
    """The cases that answers are judged on: one for each image and class whose presence is known.

    Attributes:
        images: The image of each case, (cases,), in order.
        classes: The class, (cases,).
        wanted: Whether the image belongs to it, (cases,).
    """

    images: Tensor
    classes: Tensor
    wanted: Tensor

    def of(self, classes: Tensor) -> Cases:
        """Return the same cases with class k renamed to `classes[k]`."""
        return self._replace(classes=classes[self.classes])


class Outputs:
    """A kind of answer. Methods that every kind must define raise `NotImplementedError`; the others suit most kinds.

    Labels are those of a source. Targets are the same labels in the order of a model's own classes; a target without
    a case is unknown, or none of the model's classes.

    Attributes:
        label_dims: Dimensions of the labels of a batch: 1 for (images,), 2 for (images, classes).
        exclusive: Whether an image belongs to one class only: answers then compete, and a model can reject.
        others: How many outputs are no class's.
    """

    label_dims = 1
    exclusive = False
    others = 0

    # -- labels ----------------------------------------------------------------------------------------

    def check_labels(self, labels: Tensor, count: int) -> None:
        """Check labels of a source with `count` classes.

        Raises:
            DataError: They are not labels of this kind.
        """
        raise NotImplementedError

    def members(self, labels: Tensor, k: int) -> Tensor:
        """Which images belong to class k: bool, (images,)."""
        raise NotImplementedError

    def members_of(self, labels: Tensor, group: Sequence[int]) -> Tensor:
        """Which images belong to any class of a group: bool, (images,)."""
        return torch.stack([self.members(labels, k) for k in group]).any(0)

    def targets(self, labels: Tensor, places: Tensor, count: int) -> Tensor:
        """Renumber labels for a model with `count` classes.

        Args:
            labels: Labels of a source.
            places: The model's class for each class of the source, or -1; several may have the same.
            count: The number of the model's classes.

        Returns:
            One row per image, of the same shape for every source, so that several sources can be concatenated.
        """
        raise NotImplementedError

    def cases(self, targets: Tensor) -> Cases:
        """Turn targets into cases."""
        raise NotImplementedError

    # -- the network -----------------------------------------------------------------------------------

    def read_from(self, k: int) -> list[int]:
        """The source's outputs that concern class k: the starting points of its relevance."""
        return [k]

    def kept(self, task: Sequence[int], count: int, reject: bool) -> list[int]:
        """The outputs that a component's network keeps, of a source with `count` classes."""
        return list(range(count)) if reject else [place for k in task for place in self.read_from(k)]

    def head(self, logits: Tensor, task: Tensor, others: Tensor | None) -> Tensor:
        """Map logits of all the source's classes to the task's; with `others`, add one output for those."""
        return logits.index_select(1, task)

    # -- several classes as one ------------------------------------------------------------------------

    def any_of(self, logits: Tensor) -> Tensor:
        """Reduce the logits of some classes, (images, classes), to that of belonging to any of them, (images, 1).

        Raises:
            OptionError: The kind does not say how.
        """
        raise OptionError(
            "option-conflict",
            f"several classes were asked for as one, and {type(self).__name__} does not say how their outputs become "
            "one; name each class by itself, or define any_of",
        )

    def merged(self, logits: Tensor, sizes: Sequence[int]) -> Tensor:
        """Reduce every run of so many logits to one; any that follow stay as they are."""
        if all(size == 1 for size in sizes):
            return logits
        rest = logits.shape[1] - sum(sizes)
        runs = logits.split([*sizes, *([rest] if rest else [])], 1)
        merged = [run if size == 1 else self.any_of(run) for run, size in zip(runs, sizes, strict=False)]
        return torch.cat([*merged, *runs[len(sizes) :]], 1)

    def gathered(self, logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """The logits of all the source's classes; the first class of a group has the group's, its others none."""
        found = logits.clone()
        for group in (list(group) for group in groups if len(group) > 1):
            found[:, group] = -torch.inf
            found[:, group[0]] = self.any_of(logits[:, group])[:, 0]
        return found

    # -- answers ---------------------------------------------------------------------------------------

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (images, classes) -> probabilities."""
        raise NotImplementedError

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """The logarithms of `probabilities`: how confident each answer is."""
        raise NotImplementedError

    def says(self, logits: Tensor) -> Tensor:
        """Which classes the answer to each image includes: bool, (images, classes)."""
        raise NotImplementedError

    def named(self, logits: Tensor, names: Sequence[str]) -> list[Any]:
        """The answer to each image as class names."""
        raise NotImplementedError

    def names_in(self, answer: Any) -> set[str]:
        """The class names in one answer, from `named` or from a user."""
        raise NotImplementedError

    def right(self, logits: Tensor, cases: Cases) -> Tensor:
        """Whether each case is answered correctly: bool, (cases,)."""
        return self.says(logits)[cases.images, cases.classes] == cases.wanted

    def measures(self, logits: Tensor, cases: Cases) -> dict[str, float]:
        """Further figures of a score table, by the name of its column, in percent."""
        return {}

    def alike(self, logits: Tensor, others: Tensor) -> Tensor:
        """Which images have the same answer from both: bool, (images,)."""
        return (self.says(logits) == self.says(others)).flatten(1).all(1)

    def agreeing(self, logits: Tensor, others: Tensor) -> tuple[int, int]:
        """How many answers, or parts of answers, both have, and how many there are."""
        return int(self.alike(logits, others).sum()), len(logits)

    def reading(self, boxes: Boxes | None, shape: Sequence[int] = ()) -> Self:
        """The same kind for a detector's outputs.

        Args:
            boxes: How they are read; None for a classifier's.
            shape: What the network takes, (channels, height, width).

        Raises:
            OptionError: It is said how boxes are read, and the kind has none; or it has, and it is not said.
        """
        if boxes is not None:
            raise OptionError("option-boxes", f"{type(self).__name__} has no boxes, and how to read some was given")
        return self

    def deciding(self, thresholds: Sequence[float]) -> Self:
        """The same kind for outputs whose answers include the classes with a probability above these thresholds.

        Args:
            thresholds: One per output; none where the kind decides by itself.

        Raises:
            OptionError: Thresholds are given, and the kind has none.
        """
        if len(thresholds):
            raise OptionError(
                "option-conflict",
                f"decision_thresholds= are for classes that do not exclude each other, and "
                f"{type(self).__name__} decides in another way; leave them out, or locate with outputs='several'",
            )
        return self

    def placed(self, task: Tensor, count: int) -> Outputs:
        """The same kind for all `count` outputs of a source, of which those of `task` are this model's."""
        return self

    # -- several parts ---------------------------------------------------------------------------------

    def normalised(self, logits: Tensor) -> Tensor:
        """A part's logits on a scale shared by all parts without calibration."""
        return logits

    def joined(self, logits: Tensor, members: Sequence[Sequence[int]], highest: bool) -> Tensor:
        """Reduce the logits of all parts, side by side, to one per class: the highest of its members, or their mean."""
        columns = [logits[:, list(member)] for member in members]
        return torch.stack([column.amax(1) if highest else column.mean(1) for column in columns], 1)

    # -- training --------------------------------------------------------------------------------------

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss that training minimises, ()."""
        raise NotImplementedError

    def own_targets(self, logits: Tensor) -> Tensor:
        """A model's own answers as targets of `loss`, one row per image."""
        return self.says(logits).to(logits.dtype)

    def taught(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far a student's logits are from its teacher's, ()."""
        return F.mse_loss(logits, teacher)


OUTPUTS: dict[str, Outputs] = {}
KindT = TypeVar("KindT", bound=type[Outputs])


def outputs(name: str) -> Callable[[KindT], KindT]:
    """Register a kind of answer under a name.

    Raises:
        OptionError: The name is one of Brickyard's own kinds.
    """

    def register(kind: KindT) -> KindT:
        check_new("outputs", name, kind, type(OUTPUTS[name]) if name in OUTPUTS else None)
        OUTPUTS[name] = kind()
        return kind

    return register


@outputs("one")
class OneOfMany(Outputs):
    """One of many classes: softmax. A label is a class index; -1 and indices beyond the classes mean no class."""

    exclusive = True

    def check_labels(self, labels: Tensor, count: int) -> None:
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= count):
            raise DataError(
                "data-label-out-of-range",
                f"labels run from {int(labels.min())} to {int(labels.max())}; the model has classes 0 to {count - 1}: "
                "give each image the index of its class, and leave out images without a label",
            )

    def members(self, labels: Tensor, k: int) -> Tensor:
        return labels == k

    def targets(self, labels: Tensor, places: Tensor, count: int) -> Tensor:
        known = (labels >= 0) & (labels < len(places))
        return torch.where(known, places[labels.clamp(0, len(places) - 1)], -1)

    def cases(self, targets: Tensor) -> Cases:
        images = torch.nonzero(targets >= 0).flatten()
        return Cases(images, targets[images], torch.ones(len(images), dtype=torch.bool))

    def head(self, logits: Tensor, task: Tensor, others: Tensor | None) -> Tensor:
        chosen = logits.index_select(1, task)
        if others is None:
            return chosen
        return torch.cat([chosen, logits.index_select(1, others).logsumexp(1, keepdim=True)], 1)

    def any_of(self, logits: Tensor) -> Tensor:
        """The log-sum-exp: a softmax then gives the sum of the classes' probabilities."""
        return logits.logsumexp(1, keepdim=True)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(1)

    def says(self, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)

    def named(self, logits: Tensor, names: Sequence[str]) -> list[Any]:
        return [names[k] for k in logits.argmax(1).tolist()]

    def names_in(self, answer: Any) -> set[str]:
        return {str(answer)}

    normalised = log_probabilities

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    def own_targets(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def taught(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """`t^2 * KL(softmax(z_T / t) || softmax(z / t))`."""
        t = temperature
        wanted, given = (teacher / t).log_softmax(1), (logits / t).log_softmax(1)
        return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * t * t


@outputs("several")
class Several(Outputs):
    """Several classes at once: sigmoid. A label is 0 or 1 for each image and class; a target of -1 is unknown.

    Attributes:
        thresholds: The probability above which an answer includes a class, (classes,) in float64; None: one half.
    """

    label_dims = 2
    thresholds: Tensor | None = None

    def check_labels(self, labels: Tensor, count: int) -> None:
        if labels.shape[1] != count or not bool(((labels == 0) | (labels == 1)).all()):
            low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
            raise DataError(
                "data-label-out-of-range",
                f"labels must be 0 or 1 for each of the model's {count} classes, got {labels.shape[1]} from {low} to "
                f"{high} per image: give one row per image, with a 1 for each class that it shows",
            )

    def members(self, labels: Tensor, k: int) -> Tensor:
        return labels[:, k] == 1

    def targets(self, labels: Tensor, places: Tensor, count: int) -> Tensor:
        if labels.shape[1] != len(places):
            raise DataError(
                "data-label-out-of-range",
                f"labels must be 0 or 1 for each of the source's {len(places)} classes, got {labels.shape[1]} per "
                "image: give one row per image in the order of these classes, as `ImageData.in_order` does by name",
            )
        found = torch.full((len(labels), count), -1)
        known = places >= 0
        found.scatter_reduce_(1, places[known].expand(len(labels), -1), labels[:, known].long(), "amax")
        return found

    def cases(self, targets: Tensor) -> Cases:
        images, classes = torch.nonzero(targets >= 0, as_tuple=True)
        return Cases(images, classes, targets[images, classes] == 1)

    def any_of(self, logits: Tensor) -> Tensor:
        """The logit of `1 - prod(1 - p)`: the classes are independent given the image, as their training assumes.

        Odds of a or b are `(1 + e^a) * (1 + e^b) - 1`, so that nothing is lost where probabilities are near 0 or 1.
        """
        found = logits[:, :1]
        for other in logits[:, 1:].split(1, 1):
            found = torch.cat([found, other, found + other], 1).logsumexp(1, keepdim=True)
        return found

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return F.logsigmoid(logits)

    def says(self, logits: Tensor) -> Tensor:
        if self.thresholds is None:
            return logits > 0
        return self.probabilities(logits.double()) > self.thresholds.to(logits.device)

    def deciding(self, thresholds: Sequence[float]) -> Self:
        if type(self).says is not Several.says:
            return super().deciding(thresholds)
        found = copy.copy(self)
        found.thresholds = torch.tensor(thresholds, dtype=torch.float64) if set(thresholds) - {EVEN} else None
        return found

    def placed(self, task: Tensor, count: int) -> Outputs:
        if self.thresholds is None:
            return self
        every = torch.full((count,), EVEN, dtype=torch.float64)
        every[task] = self.thresholds
        return self.deciding(every.tolist())

    def named(self, logits: Tensor, names: Sequence[str]) -> list[Any]:
        answers = self.says(logits).tolist()
        return [tuple(name for name, said in zip(names, row, strict=False) if said) for row in answers]

    def names_in(self, answer: Any) -> set[str]:
        return set(answer)

    def measures(self, logits: Tensor, cases: Cases) -> dict[str, float]:
        """The mean average precision (mAP) and the mean F1 score of the classes that have images."""
        from sklearn.metrics import average_precision_score

        scores, said = logits[cases.images, cases.classes].double(), self.right(logits, cases) == cases.wanted
        precision, f1 = [], []
        for k in cases.classes[cases.wanted].unique():
            mine = cases.classes == k
            wanted, found = cases.wanted[mine], said[mine]
            precision.append(float(average_precision_score(wanted.numpy(), scores[mine].numpy())))
            f1.append(2 * int((wanted & found).sum()) / int(wanted.sum() + found.sum()))
        count = max(1, len(f1))
        return {"mean_ap": 100 * sum(precision) / count, "f1": 100 * sum(f1) / count}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        known = targets >= 0
        return F.binary_cross_entropy_with_logits(logits[known], targets[known].to(logits.dtype))


ONE = OUTPUTS["one"]
