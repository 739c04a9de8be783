"""Which outputs of a layer equations are made of: positions that are drawn of every image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from brickyard.axes._graph import Graph
from brickyard.network._mixing import Mixing
from brickyard.outputs._detections import Detections

PER_INPUT = 50  # samples for each input of a layer
FEWEST = 4000  # samples, where there are that many
MOST = 1 << 25  # numbers that a layer's samples may read
NEAR = 0.65  # share of the positions that are drawn near objects, where there are any
CELL = 4  # pixels of a detector's input to a cell of the map of where its objects are
FAINT = 0.05  # score below which a detector's box is none
_BOXES = 300  # of an image, the surest


@dataclass(frozen=True)
class Shown:
    """Images to heal with, in batches.

    Attributes:
        fit: Those that equations are made from; preprocessed, (batch, channels, height, width) each.
        held: Those that nothing is fitted to; may be empty.
        seed: Seed of the positions that are drawn.
        near: For a detector, where objects are in images to fit with, and in those held back: (images, rows, columns)
            each, up to 1; None where all positions are alike.
    """

    fit: Sequence[Tensor]
    held: Sequence[Tensor] = ()
    seed: int = 0
    near: tuple[Tensor | None, Tensor | None] = (None, None)

    def focused(self, graph: Graph, task: Sequence[int]) -> Shown:
        """The same, with what the source finds of a task in them where it is a detector."""
        if graph.boxes is None:
            return self
        return replace(self, near=(_objects(graph, self.fit, task), _objects(graph, self.held, task)))


@dataclass(frozen=True)
class Draws:
    """How many outputs of a layer to draw, the seed of the draw, and where objects are, as in `Shown.near`."""

    per_input: int
    seed: int
    near: Tensor | None = None

    def places(self, images: int, sizes: Sequence[int], every: int, mixing: Mixing) -> Tensor:
        """For each image, the same number of its `every` positions, in ascending order: (images, positions).

        Near objects, where these are known, positions are drawn more often, and may come several times.
        """
        inputs = mixing.rows[0].numel()
        wanted = min(max(self.per_input * inputs, FEWEST), MOST // (inputs * mixing.groups))
        each = min(every, max(1, -(-wanted // max(1, images))))
        generator = torch.Generator().manual_seed(self.seed)
        if self.near is not None and len(sizes) == 2 and sizes[0] * sizes[1] == every:
            return _systematic(_shares(self.near, sizes), each, generator)
        if each == every:
            return torch.arange(every).expand(images, every)
        drawn = [torch.randperm(every, generator=generator)[:each].sort().values for _ in range(images)]
        return torch.stack(drawn)


def _shares(near: Tensor, sizes: Sequence[int]) -> Tensor:
    """How often each position of a grid is drawn, as a share: (images, rows * columns), in float64."""
    coarser = all(ours <= theirs for ours, theirs in zip(sizes, near.shape[1:], strict=True))
    resized = F.adaptive_max_pool2d if coarser else F.interpolate
    weight = resized(near.unsqueeze(1), tuple(sizes)).flatten(1).double()
    total, every = weight.sum(1, keepdim=True), weight.shape[1]
    focused = (1 - NEAR) / every + NEAR * weight / total.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(total > 0, focused, 1 / every)


def _systematic(shares: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw so many of each row's numbers, each as often as its share says, rounded up or down: (rows, count).

    Systematic sampling: equally spaced marks, from a random start, on the line of cumulated shares.
    """
    ends = shares.cumsum(1)
    starts = torch.rand(len(shares), 1, generator=generator, dtype=torch.float64)
    marks = (torch.arange(count) + starts) / count * ends[:, -1:]
    return torch.searchsorted(ends, marks, right=True).clamp(max=shares.shape[1] - 1)


def _objects(graph: Graph, batches: Sequence[Tensor], task: Sequence[int]) -> Tensor | None:
    """Where a detector finds objects of a task: on a map of each image, the score of the surest box that lies there."""
    if not batches:
        return None
    kind = Detections().reading(graph.boxes, graph.input_shape)
    chosen = torch.tensor(list(task))
    maps: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            boxes, scores = kind.bounded(kind.head(graph.network(batch), chosen, None))
            best = scores.amax(2).cpu()
            maps += [_drawn_on(*one, graph.input_shape[1:]) for one in zip(boxes.cpu(), best, strict=True)]
    return torch.stack(maps)


def _drawn_on(boxes: Tensor, scores: Tensor, sides: Sequence[int]) -> Tensor:
    """Boxes (places, 4) and their scores (places,) of one image on a map of it."""
    found = torch.zeros([max(1, side // CELL) for side in sides])
    sure = torch.nonzero((scores > FAINT) & boxes.isfinite().all(1)).flatten()
    sure = sure[scores[sure].argsort(stable=True)][-_BOXES:]  # the surest last
    cells = (boxes[sure] / CELL).clamp(min=0)
    low, high = cells[:, :2].floor().long().tolist(), cells[:, 2:].ceil().long().tolist()
    for (left, top), (right, bottom), score in zip(low, high, scores[sure].tolist(), strict=True):
        found[top:bottom, left:right] = score
    return found
