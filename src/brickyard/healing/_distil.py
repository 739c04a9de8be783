"""Repair of a cut network by gradients: trained towards its source's answers, on images without labels.

Every step compares the logits of both on the same augmented images, restricted to the outputs that the task keeps.
Norms and dropout stay in evaluation mode. Images that no step sees decide which state stays, the first one included.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.base._checks import is_number, whole
from brickyard.base._errors import DataError, OptionError
from brickyard.base._messages import brief
from brickyard.inputs._augment import varied
from brickyard.network._fusing import quick, quick_layout
from brickyard.network._network import Network
from brickyard.network._untouched import guarded_but
from brickyard.outputs._kinds import ONE, Outputs
from brickyard.runtime._isolation import gradients
from brickyard.runtime._progress import bar

TEMPERATURE = 2.0
WARMUP = 0.1  # share of the training in which the learning rate rises
CHECKS = 12  # times that held-back images are looked at


@dataclass(frozen=True)
class DistilReport:
    """What training towards the source did, on images that no step saw.

    Attributes:
        steps: Number of steps taken.
        seconds: Time it took, with all checks.
        agreement_before: Share of the held-back images that were answered as the source answers them; for a detector,
            of the boxes that it found.
        agreement_after: The same for the state that stayed.
        kl_before: Mean Kullback-Leibler divergence from the source's probabilities on these images; for kinds of
            outputs that compete in no softmax, the distance that the kind defines.
        kl_after: The same for the state that stayed.
    """

    steps: int
    seconds: float
    agreement_before: float
    agreement_after: float
    kl_before: float
    kl_after: float


@guarded_but("network")
def distil_network(
    source: nn.Module,
    network: nn.Module,
    kept: Sequence[int],
    batches: Sequence[Tensor],
    held_back: Sequence[Tensor],
    *,
    outputs: Outputs = ONE,
    minutes: float | None = None,
    steps: int | None = None,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    sizes: Sequence[int] = (),
) -> DistilReport:
    """Train a cut network, in place, towards the answers of its source.

    The state that stays is the one with the lowest divergence on the held-back images, of those that agree with the
    source there at least as often as the network did before. Where none is better, no number of it changes. It is
    written only at the end: whatever stops the work before, the network is as it was.

    The same `steps` and seed give the same numbers. With `minutes` they depend on the speed of the machine.

    Limitations:
        Processes of a group do not share the work. With `minutes`, each ends up with numbers of its own: let one train,
        and send its numbers to the others.

    Args:
        source: The source, for preprocessed images.
        network: The cut network; it takes the same images.
        kept: The source's outputs that count, in the order of the network's own; a network that still has all the
            source's outputs is compared on these alone. With a reject output, these are all.
        batches: Preprocessed images to train on, (batch, channels, height, width) each.
        held_back: Other images, in the same form.
        outputs: What the outputs mean.
        minutes: Train for this long; checks are part of it.
        steps: Train for so many steps instead.
        lr: Peak learning rate of Adam. It rises over the first tenth, then falls along a cosine.
        batch_size: Images per step.
        seed: Seed of order and augmentation.
        sizes: How many of `kept` become one class, class by class; none stands for one each.

    Raises:
        OptionError: Not exactly one of `minutes` and `steps` is given, or a value or `kept` cannot be used.
        DataError: There are no images.
    """
    limit = _Limit(minutes, steps)
    if not (is_number(lr) and 0 < lr < math.inf):
        raise OptionError("option-range", f"lr={brief(lr)} must be a number above 0; 1e-3 suits a network just cut")
    size = whole("batch_size", batch_size, 2)
    if not batches or not held_back:
        which = "to train on" if not batches else "held back to judge by"
        raise DataError("data-no-images", f"distillation needs images {which}, and got none; give some")
    student = copy.deepcopy(network).eval().requires_grad_(True)
    if isinstance(student, Network):
        student = student.to(memory_format=quick_layout(student, batches[0][:1]))
    teacher = _Teacher(source, kept, batches[0], outputs, sizes)
    exam = [(images, teacher.answers(images)) for images in held_back]
    images = _drawn(batches, size, torch.Generator().manual_seed(seed))
    run = _Run(student, before=teacher.judge(student, exam))
    with bar("distilling", limit.total) as advance, gradients("heal='refit'"):
        while not limit.ended and run.step(teacher, next(images), lr * _rate(limit.share)):
            advance(limit.passed(run.steps), text=f"distilling, loss {run.loss:.3f}")
            if limit.check_due():
                run.judged(teacher.judge(student, exam))
    if run.state is not None:
        _written(list(network.parameters()), run.state)
    return DistilReport(run.steps, limit.seconds(), run.before[0], run.best[0], run.before[1], run.best[1])


class _Run:
    """The student in training, and its best state."""

    def __init__(self, student: nn.Module, before: tuple[float, float]) -> None:
        self.student, self.before, self.best = student, before, before
        self.optimizer = torch.optim.Adam(student.parameters())
        self.state: list[Tensor] | None = None
        self.steps, self.loss = 0, math.nan

    def step(self, teacher: _Teacher, images: Tensor, rate: float) -> bool:
        """Take one step; False if the loss is no longer a number, and there is none to take."""
        self.optimizer.param_groups[0]["lr"] = rate
        loss = teacher.distance(teacher.of(self.student, images), teacher.answers(images), TEMPERATURE)
        self.loss = loss.item()
        if not math.isfinite(self.loss):
            return False
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return True

    def judged(self, found: tuple[float, float]) -> None:
        """Keep the state if it is the best so far."""
        if found[0] >= self.before[0] and found[1] < self.best[1]:
            self.best, self.state = found, [value.detach().clone() for value in self.student.parameters()]


class _Teacher:
    """The source, what its answers are compared with, and how."""

    def __init__(
        self, source: nn.Module, kept: Sequence[int], example: Tensor, outputs: Outputs, sizes: Sequence[int]
    ) -> None:
        self.source = quick(source, example.shape[1:]) if isinstance(source, Network) else source
        self.kept = torch.tensor([whole("kept", k, 0) for k in kept], device=example.device, dtype=torch.long)
        self.outputs, self.sizes = outputs, sizes
        with torch.no_grad():
            self.count = self.source(example[:1]).shape[1]
        if not len(kept) or int(self.kept.max()) >= self.count:
            raise OptionError(
                "option-range", f"kept={brief(list(kept))} must name outputs of the source, 0 to {self.count - 1}"
            )

    def answers(self, images: Tensor) -> Tensor:
        """The source's logits for the task."""
        with torch.no_grad():
            logits: Tensor = self.source(images)
        return self.outputs.merged(logits[:, self.kept], self.sizes)

    def of(self, student: nn.Module, images: Tensor) -> Tensor:
        """The student's logits for the task."""
        logits: Tensor = student(images)
        if logits.shape[1] == len(self.kept):
            return self.outputs.merged(logits, self.sizes)
        if logits.shape[1] != self.count:
            raise OptionError(
                "option-count",
                f"kept has {len(self.kept)} outputs, and the cut network {logits.shape[1]}; give one for each",
            )
        return self.outputs.merged(logits[:, self.kept], self.sizes)

    def distance(self, logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        """How far answers are from the source's; a single output has no others to compete with."""
        if logits.shape[1] == 1:
            return F.mse_loss(logits, wanted)
        return self.outputs.taught(logits, wanted, temperature)

    def judge(self, student: nn.Module, exam: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Agreement with the source, and the mean distance from it."""
        with torch.no_grad():
            logits = torch.cat([self.of(student, images) for images, _ in exam]).double()
        wanted = torch.cat([answers for _, answers in exam]).double()
        same, count = self.outputs.agreeing(logits, wanted)
        return same / max(1, count), float(self.distance(logits, wanted, 1.0))


class _Limit:
    """When training ends: after some steps, or after some time."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        if (minutes is None) == (steps is None):
            found = "neither is" if steps is None else "both are"
            raise OptionError("option-conflict", f"distillation ends after minutes= or steps=, and {found} given")
        if minutes is not None and not (is_number(minutes) and 0 < minutes < math.inf):
            raise OptionError("option-range", f"minutes={brief(minutes)} must be a number above 0; 2 is a good start")
        self.steps = None if steps is None else whole("steps", steps)
        self.total = float(self.steps or 60 * (minutes or 0))
        self.begun = time.monotonic()
        self.share, self.checked = 0.0, 0

    @property
    def ended(self) -> bool:
        return self.share >= 1

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def passed(self, steps: int) -> float:
        """Note how many steps are taken; return what has passed since the last, in units of the bar."""
        before, self.share = self.share, min(1.0, (steps if self.steps else self.seconds()) / self.total)
        return (self.share - before) * self.total

    def check_due(self) -> bool:
        """Whether it is time to look at the held-back images: evenly spread, and at the end."""
        last, self.checked = self.checked, int(self.share * CHECKS)
        return self.ended or self.checked > last


def _rate(share: float) -> float:
    """The learning rate as a share of its peak."""
    if share < WARMUP:
        return 0.04 + 0.96 * share / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (share - WARMUP) / (1 - WARMUP)))


def _drawn(batches: Sequence[Tensor], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Augmented batches of images of one size each, without end; every image once before any comes again."""
    shapes = dict.fromkeys(batch.shape[1:] for batch in batches)
    pools = [torch.cat([batch for batch in batches if batch.shape[1:] == shape]) for shape in shapes]
    while True:
        parts: list[tuple[int, Tensor]] = []
        for k, pool in enumerate(pools):
            order = torch.randperm(len(pool), generator=generator)
            parts += [(k, part) for part in order[: len(order) // size * size or None].split(size)]
        for place in torch.randperm(len(parts), generator=generator).tolist():
            k, part = parts[place]
            yield varied(pools[k][part.to(pools[k].device)], generator)


def _written(values: Sequence[Tensor], state: Sequence[Tensor]) -> None:
    """Give parameters other numbers: all of them, or none."""
    before = [value.detach().clone() for value in values]
    with torch.no_grad():
        try:
            for value, new in zip(values, state, strict=True):
                value.copy_(new)
        except BaseException:
            for value, old in zip(values, before, strict=True):
                value.copy_(old)
            raise
