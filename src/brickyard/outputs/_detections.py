"""What a detector's outputs mean: boxes with scores, at many places of an image.

Outputs are (batch, outputs, places), as `base._boxes.Boxes` describes them. Here they are decoded to boxes in pixels of
the network's input, duplicates are suppressed, and answers are compared. Boxes are left, top, right and bottom.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from brickyard.axes._detector_models import cells
from brickyard.base._boxes import Boxes
from brickyard.base._errors import OptionError
from brickyard.outputs._kinds import Outputs, Several, outputs

SCORE = 0.25  # least score of a box that is told of
IOU = 0.5  # overlap above which two boxes of a class are one object
MOST = 300  # boxes of an image, at most
CANDIDATES = 4000  # of an image whose overlaps are compared, at most
LARGEST = 4.0  # inputs: a box is cut off beyond
_TINY = 1e-9
EXPONENT = 12.0  # of a size, at most: wider than any input
GROWTH = math.log(1000 / 16)  # the same for what an anchor is multiplied with, as torchvision has it


class Found(NamedTuple):
    """The boxes in one image, by falling score.

    Attributes:
        boxes: Left, top, right and bottom, (boxes, 4).
        scores: How sure each is, (boxes,).
        labels: Its class, (boxes,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def on_cpu(self) -> Found:
        """The same on the processor."""
        return Found(self.boxes.cpu(), self.scores.cpu(), self.labels.cpu())

    def of(self, chosen: Tensor | slice) -> Found:
        """Those at some indices, or where a mask is true."""
        return Found(self.boxes[chosen], self.scores[chosen], self.labels[chosen])


def together(found: Sequence[Found]) -> Found:
    """Boxes of several answers as one, by falling score."""
    boxes, scores, labels = (torch.cat(values) for values in zip(*found, strict=True))
    return Found(boxes, scores, labels).of(scores.argsort(descending=True, stable=True))


def decoded(rows: Tensor, boxes: Boxes, sides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Decode a detector's outputs.

    Args:
        rows: (batch, outputs, places).
        boxes: How they are read; how many classes there are is counted.
        sides: Height and width of the network's input.

    Returns:
        Boxes in pixels of the input, (batch, places, 4), and the score of each class, (batch, places, classes).
    """
    count = rows.shape[1] - boxes.others
    own = boxes if boxes.classes == count else boxes.of_task(count)
    numbers = rows[:, own.boxes_at : own.boxes_at + own.box_outputs].transpose(1, 2)
    return _corners(numbers, own, sides), _scores(rows, own, count)


def _scores(rows: Tensor, boxes: Boxes, count: int) -> Tensor:
    """The score of each class, (batch, places, classes)."""
    scores = rows[:, boxes.scores_at : boxes.scores_at + count].transpose(1, 2)
    if boxes.background_at is not None:
        return torch.cat([scores, rows[:, boxes.background_at].unsqueeze(2)], 2).softmax(2)[..., :count]
    if boxes.scores == "sigmoid":
        scores = scores.sigmoid()
    if boxes.objectness_at is None:
        return scores
    sure = rows[:, boxes.objectness_at].unsqueeze(2)
    scores = scores * (sure.sigmoid() if boxes.scores == "sigmoid" else sure)
    return scores if boxes.joined == "product" else scores.sqrt()


def _corners(numbers: Tensor, boxes: Boxes, sides: Sequence[int]) -> Tensor:
    """Numbers (batch, places, 4 or 4 * bins) -> left, top, right, bottom, (batch, places, 4)."""
    if boxes.coding == "corners":
        return numbers
    if boxes.coding == "centre":
        middle, size = numbers[..., :2], numbers[..., 2:]
        return torch.cat([middle - size / 2, middle + size / 2], -1)
    cell, stride, anchor = cells(boxes, sides, numbers)
    if boxes.coding == "deltas":
        weights = numbers.new_tensor(boxes.weights)
        middle = (cell + boxes.offset) * stride + numbers[..., :2] / weights[:2] * anchor
        size = (numbers[..., 2:] / weights[2:]).clamp(max=GROWTH).exp() * anchor
        return torch.cat([middle - size / 2, middle + size / 2], -1)
    if boxes.coding == "grid":
        middle, size = (numbers[..., :2] + cell) * stride, numbers[..., 2:].clamp(max=EXPONENT).exp() * stride
        return torch.cat([middle - size / 2, middle + size / 2], -1)
    if boxes.coding == "bins":
        shares = numbers.unflatten(-1, (4, boxes.bins)).softmax(-1)
        numbers = (shares * torch.arange(boxes.bins).to(shares)).sum(-1)
    middle, reach = (cell + boxes.offset) * stride, numbers * stride
    return torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1)


def within(boxes: Tensor, sides: tuple[int, int]) -> Tensor:
    """Boxes cut off at the borders of a picture of (height, width)."""
    height, width = sides
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each of some boxes with each of others: (n, 4), (m, 4) -> (n, m)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    both = (high - low).clamp(min=0).prod(2)
    areas = [(one[:, 2:] - one[:, :2]).clamp(min=0).prod(1) for one in (boxes, others)]
    return both / (areas[0][:, None] + areas[1][None, :] - both).clamp(min=_TINY)


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, most: int) -> Tensor:
    """Class by class, leave out boxes that overlap a surer one (non-maximum suppression); indices by falling score.

    Raises:
        OptionError: torchvision is not installed.
    """
    try:
        from torchvision.ops import batched_nms
    except ImportError:
        raise OptionError(
            "option-missing-package",
            "detectors need torchvision, which is not installed; pip install 'brickyard[detectors]'",
        ) from None
    found: Tensor = batched_nms(boxes.float(), scores.float(), labels, iou)
    return found[:most]


@outputs("boxes")
class Detections(Several):
    """Boxes: several objects in an image, each of one class. A label is 0 or 1 for each image and class.

    Attributes:
        boxes: How the source's outputs are read; None until that is said.
        sides: Height and width of the network's input.
    """

    boxes: Boxes | None = None
    sides: tuple[int, ...] = ()

    def reading(self, boxes: Boxes | None, shape: Sequence[int] = ()) -> Self:
        if boxes is None:
            raise OptionError(
                "option-boxes",
                "outputs='boxes' was given, and not how a detector's outputs are read; give a known family, such as "
                "outputs='yolox', or brickyard.Boxes(...)",
            )
        found = copy.copy(self)
        found.boxes, found.sides, found.others = boxes, tuple(shape[1:]), boxes.others
        return found

    def decode(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes in pixels of the input (batch, places, 4), and scores (batch, places, classes)."""
        assert self.boxes is not None
        return decoded(logits, self.boxes, self.sides)

    def bounded(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with boxes cut off far beyond the input's sides."""
        boxes, scores = self.decode(logits)
        height, width = self.sides
        low = boxes.new_tensor([-width * (LARGEST - 1), -height * (LARGEST - 1)] * 2)
        return boxes.clamp(low, boxes.new_tensor([width * LARGEST, height * LARGEST] * 2)), scores

    def find(self, logits: Tensor, score: float = SCORE, iou: float = IOU, most: int = MOST) -> list[Found]:
        """The boxes in each image, in pixels of the network's input.

        Args:
            logits: (batch, outputs, places).
            score: The least score.
            iou: The overlap from which two boxes of a class are one object.
            most: How many boxes an image has at most.
        """
        boxes, scores = self.bounded(logits)
        return [self._found(*pair, score, iou, most) for pair in zip(boxes, scores, strict=True)]

    @staticmethod
    def _found(boxes: Tensor, scores: Tensor, score: float, iou: float, most: int) -> Found:
        chosen = ((scores > score) & boxes.isfinite().all(1, keepdim=True)).nonzero()
        values = scores[chosen[:, 0], chosen[:, 1]]
        values, order = values.sort(descending=True, stable=True)
        values, chosen = values[:CANDIDATES], chosen[order[:CANDIDATES]]
        found = Found(boxes[chosen[:, 0]], values, chosen[:, 1])
        return found.of(suppressed(*found, iou, most))

    # -- the network -----------------------------------------------------------------------------------

    def head(self, logits: Tensor, task: Tensor, others: Tensor | None) -> Tensor:
        assert self.boxes is not None
        kept = self.boxes.kept(tuple(task.tolist()))
        return logits.index_select(1, torch.tensor(kept, device=logits.device))

    def any_of(self, logits: Tensor) -> Tensor:
        return Outputs.any_of(self, logits)  # refuses: boxes of several classes are not joined yet

    # -- answers ---------------------------------------------------------------------------------------

    def probabilities(self, logits: Tensor) -> Tensor:
        """For each class, the highest score of any box, (images, classes)."""
        return self.decode(logits)[1].amax(1)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits).clamp(min=_TINY).log()

    def says(self, logits: Tensor) -> Tensor:
        return self.probabilities(logits) > SCORE

    def named(self, logits: Tensor, names: Sequence[str]) -> list[Any]:
        """For each image its boxes, as dicts, in pixels of the network's input."""
        return [told(found, names) for found in self.find(logits)]

    def agreeing(self, logits: Tensor, others: Tensor) -> tuple[int, int]:
        """Of the boxes of both answers, how many the other has too, and how many there are.

        The other has a box that has one of the same class which overlaps it by half.
        """
        same = count = 0
        for ours, theirs in zip(self.find(logits), self.find(others), strict=True):
            same += 2 * matched(ours, theirs)
            count += len(ours.labels) + len(theirs.labels)
        return same, count

    def compared(self, logits: Tensor, reference: Tensor) -> Tensor:
        """What of an answer counts against another one's, (images, numbers).

        Scores as they are; and the corners of boxes, as shares of the size that they have in the reference, weighted by
        the score that they have there.
        """
        boxes, scores = self.decode(logits)
        with torch.no_grad():
            usual, sure = self.decode(reference)
            size = (usual[..., 2:] - usual[..., :2]).clamp(min=1).prod(-1, keepdim=True).sqrt()
            weight = sure.amax(-1, keepdim=True) / size
        return torch.cat([scores.flatten(1), (boxes * weight).flatten(1)], 1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise OptionError("option-conflict", "detectors are not trained here: use heal='refit', which needs no labels")

    def taught(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return (self.compared(logits, teacher) - self.compared(teacher, teacher)).square().sum(1).mean()


def matches(found: Found, others: Found) -> Tensor:
    """Which boxes of one answer another one has, (boxes,): each of the other's at most once, for the surest."""
    known = torch.zeros(len(found.labels), dtype=torch.bool)
    if not len(found.labels) or not len(others.labels):
        return known
    shared = overlaps(found.boxes.double(), others.boxes.double())
    shared = torch.where(found.labels[:, None] == others.labels[None, :], shared, 0.0)
    for row in range(len(shared)):
        best = int(shared[row].argmax())
        if float(shared[row, best]) >= IOU:
            known[row] = True
            shared[:, best] = 0
    return known


def matched(found: Found, others: Found) -> int:
    """How many boxes of one answer another one has: each at most once, the surest first."""
    return int(matches(found, others).sum())


def told(found: Found, names: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes as data: class name, score, and left, top, right and bottom in pixels."""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [{"class": names[label], "score": score, "box": tuple(box)} for label, score, box in rows]
