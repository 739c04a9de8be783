"""Parts that run in turn: a glance at an image tells which is first; the others run where that is not enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brickyard.base._cascades import CascadeRecord
from brickyard.base._errors import FileError
from brickyard.base._records import AssemblyManifest
from brickyard.network._stored import fill_in, match_types
from brickyard.outputs._outputs import find_outputs
from brickyard.scaling._scale import with_reject

BLOCKS = (8, 4)  # a side, of means and of root mean squares
MOST_SIDES = 2  # with more, half as many blocks a side
RIDGE = 0.1  # over the number of images, for features of unit variance


class Glance(nn.Module):
    """Which part probably knows an image: linear in coarse averages of it, as the first part takes it.

    Attributes:
        weights: (parts, features).
        bias: (parts,).

    Shapes:
        (batch, channels, sides ...) -> (batch, parts); the part with the highest value runs first
    """

    weights: Tensor
    bias: Tensor

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights.float())
        self.register_buffer("bias", bias.float())

    @classmethod
    def blank(cls, parts: int, shape: Sequence[int]) -> Glance:
        """A glance on the meta device for images of this shape, (channels, sides ...)."""
        size = features(torch.empty(1, *shape, device="meta")).shape[1]
        return cls(torch.empty(parts, size, device="meta"), torch.empty(parts, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """How much speaks for starting with each part, (batch, parts)."""
        return features(x.to(self.weights.dtype)) @ self.weights.T + self.bias


def ranked(values: Tensor) -> Tensor:
    """The parts in the order of each image, (batch, parts), from what its glance says."""
    return values.argsort(dim=1, descending=True)


def features(x: Tensor) -> Tensor:
    """Averages over blocks of each channel, and root mean squares over larger ones: (batch, features)."""
    fewer = x.dim() - 2 > MOST_SIDES
    means, squares = (_averaged(value, n // 2 if fewer else n) for value, n in zip((x, x * x), BLOCKS, strict=True))
    return torch.cat([means, (squares + 1e-6).sqrt()], 1)


def _averaged(x: Tensor, blocks: int) -> Tensor:
    """The means over so many blocks a side, or over single values where a side has fewer: (batch, features)."""
    for side in range(2, x.dim()):
        size = x.shape[side]
        count = min(blocks, size)
        rows = [
            [float(i * size // count <= k < -(-(i + 1) * size // count)) for k in range(size)] for i in range(count)
        ]
        mean = torch.tensor(rows, dtype=x.dtype, device=x.device)  # (blocks, size)
        x = (x.movedim(side, -1) @ (mean / mean.sum(1, keepdim=True)).T).movedim(-1, side)
    return x.flatten(1)


def fitted(seen: Tensor, winners: Tensor, costs: Sequence[int]) -> Glance:
    """Fit a glance by ridge regression.

    An image's value of a part estimates the chance that the part has the answer, over what the part costs: looking for
    something at several places is cheapest in this order.

    Args:
        seen: The `features` of images, (images, features).
        winners: The part that has the answer of each.
        costs: What each part costs.
    """
    seen = seen.double()
    mean, spread = seen.mean(0), seen.std(0, correction=0) + 1e-3
    unit = (seen - mean) / spread
    wanted = nn.functional.one_hot(winners, len(costs)).double()
    base = wanted.mean(0)
    ridge = RIDGE * len(seen) * torch.eye(seen.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(unit.T @ unit + ridge, unit.T @ (wanted - base)) / spread[:, None]
    share = torch.tensor(costs, dtype=torch.float64)
    share = share.clamp_min(1) / share.clamp_min(1).mean()
    return Glance((weights / share).T, (base - mean @ weights) / share)


def in_turn(
    record: CascadeRecord,
    owner: Sequence[int],
    run: Callable[[int, Tensor], tuple[Tensor, Tensor | None]],
    order: Tensor,
    logits: Tensor,
    unknown: Tensor | None = None,
) -> Tensor:
    """Run parts on images, each on those only whose answer is not final before its turn: their outputs.

    Args:
        record: The cascade.
        owner: The part of each class.
        run: Runs a part on some images, by their indices: the logits of its classes, and with reject, the
            log-probability that it gives to classes which are none of the cascade's, (images, 1).
        order: The parts in the order of each image, (batch, parts).
        logits: Those of all classes where nothing has run, (batch, classes); they are overwritten.
        unknown: With reject, zeros, (batch, parts); they are overwritten.
    """
    known, parts = torch.zeros_like(logits, dtype=torch.bool), torch.tensor(owner, device=logits.device)
    going = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for turn in range(order.shape[1]):
        for part in range(order.shape[1]):
            rows = torch.nonzero(going & (order[:, turn] == part)).flatten()
            if len(rows):
                places = rows[:, None], torch.nonzero(parts == part).flatten()
                found, none = run(part, rows)
                logits[places] = found.to(logits)
                known[places] = True
                if unknown is not None and none is not None:
                    unknown[rows, part] = none[:, 0].to(unknown)
        going = going & ~final(record, owner, logits.detach(), known, unknown)
    return with_reject(logits, unknown)


@dataclass(frozen=True)
class Turns:
    """The course of images through parts that run in turn.

    Attributes:
        logits: Those of all classes, (images, classes): of parts that did not run, what is expected of them.
        order: The parts in the order of each image, (images, parts).
        ran: How many of them ran, (images,).
        unknown: With reject, the log-probability that each part that ran gives to classes which are none of the
            cascade's, (images, parts), and 0 for the others; else None.
    """

    logits: Tensor
    order: Tensor
    ran: Tensor
    unknown: Tensor | None = None

    def flops(self, costs: Sequence[int]) -> float:
        """The mean cost of an image, given that of each part."""
        first = torch.arange(self.order.shape[1]) < self.ran[:, None]
        return float((torch.tensor(costs, dtype=torch.float64)[self.order] * first).sum(1).mean())


def final(
    record: CascadeRecord, owner: Sequence[int], logits: Tensor, known: Tensor, unknown: Tensor | None = None
) -> Tensor:
    """Which images' best answer so far is final: bool, (images,). "None of these" is not before all parts have run.

    Args:
        record: The cascade.
        owner: The part of each class.
        logits: Those of the classes, (images, classes).
        known: Which of them are of parts that ran, (images, classes).
        unknown: With reject, as in `Turns`.
    """
    limits = torch.tensor([torch.inf if one is None else one for one in record.thresholds], dtype=logits.dtype)
    best, where = logits.masked_fill(~known, -torch.inf).max(1)
    found = best > limits[list(owner)].to(best.device)[where]
    return found if unknown is None else found & ~rejected(logits, unknown.detach())


def rejected(logits: Tensor, unknown: Tensor | None) -> Tensor:
    """Which images are answered as none of the classes: bool, (images,); never without reject."""
    return with_reject(logits, unknown).argmax(1) == logits.shape[1]


def turns(
    record: CascadeRecord, owner: Sequence[int], logits: Tensor, order: Tensor, unknown: Tensor | None = None
) -> Turns:
    """The course of images whose logits are known of all parts.

    Args:
        record: The cascade.
        owner: The part of each class.
        logits: Those of all classes, (images, classes).
        order: The parts in the order of each image, (images, parts).
        unknown: With reject, what all parts say of other classes than the cascade's, (images, parts).
    """
    going = torch.ones(len(logits), dtype=torch.bool)
    done = torch.zeros(order.shape, dtype=torch.bool)
    for turn in range(order.shape[1]):
        done = done.scatter(1, order[:, turn : turn + 1], done.gather(1, order[:, turn : turn + 1]) | going[:, None])
        found, known, none = so_far(record.expected, owner, logits, done, unknown)
        going = going & ~final(record, owner, found, known, none)
    return Turns(found, order, done.sum(1), none)


def so_far(
    expected: Sequence[float], owner: Sequence[int], logits: Tensor, done: Tensor, unknown: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What images are known to be when some parts have run, where all is known.

    Args:
        expected: For each class, its logit where its part did not run.
        owner: The part of each class.
        logits: Those of all classes, (images, classes).
        done: Which parts have run, (images, parts).
        unknown: With reject, what all parts say of other classes than the cascade's, (images, parts).

    Returns:
        The logits, with those expected of parts that have not run; which of them are of parts that have; and `unknown`
        of these, with 0 for the others.
    """
    known = done[:, list(owner)]
    found = torch.where(known, logits, torch.tensor(expected, dtype=logits.dtype))
    return found, known, None if unknown is None else unknown * done


def separable(matrix: Tensor | None, owner: Sequence[int]) -> bool:
    """Whether a scaling's matrix maps the logits of each part by themselves."""
    parts = torch.tensor(owner)
    return matrix is None or not bool((matrix.cpu() != 0)[parts[:, None] != parts].any())


def read_glance(manifest: AssemblyManifest, matrix: Tensor | None, tensors: dict[str, Tensor]) -> Glance:
    """The glance of a file's cascade, taken from its tensors.

    Raises:
        FileError: It is not there, does not fit, or the scaling needs all parts at once.
    """
    size, outputs = len(manifest.classes), find_outputs(manifest.outputs)
    fits = matrix is None or matrix.shape == (size, size)
    if not outputs.exclusive or (fits and not separable(matrix, [owners[0] for owners in manifest.owners])):
        why = "its parts cannot run in turn: their answers depend on each other"
        raise FileError("file-inconsistent", f"{why}; assemble it again in parallel form")
    found = Glance.blank(len(manifest.parts), manifest.parts[0].input_shape)
    match_types(found, tensors, "cascade.glance.")
    fill_in(found, tensors, "cascade.glance.")
    return found
