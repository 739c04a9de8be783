"""The training loop shared by all training here: seeded, with early stopping, and resumable.

It is independent of the task: the caller provides the loss of a batch and a score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.base._errors import OptionError
from brickyard.base._options import TrainingOptions
from brickyard.runtime._progress import bar
from brickyard.storage._notes import Notes

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Loss = Callable[[list[int], torch.Generator], Tensor]


@dataclass(frozen=True)
class Fitted:
    """Result of a training run.

    Attributes:
        epochs: Number of epochs run.
        best: The epoch whose weights were kept; 0 is before the first.
        losses: Mean loss of each epoch.
        scores: First value of the score, before the first epoch and after each; empty without a score.
    """

    epochs: int = 0
    best: int = 0
    losses: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()


def fit(
    model: nn.Module,
    loss: Loss,
    count: int,
    training: TrainingOptions,
    *,
    score: Callable[[], tuple[float, float]] | None = None,
    resume: Path | None = None,
    key: str = "",
) -> Fitted:
    """Train the parameters of a model that need gradients, in place; it is left in evaluation mode.

    Args:
        model: The model.
        loss: Computes the loss for image indices; takes all its random draws from the generator.
        count: Number of images.
        training: The training options.
        score: Scores the current model, higher is better: a value, and another that breaks ties. The weights of the
            best epoch, or those before the first, are kept. Without a score, those of the last epoch are kept.
        resume: A folder for the state after each epoch; an identical call resumes from it.
        key: Anything else that determines the result; a saved state with another key is refused.
    """
    run = _Run(model, count, training)
    key = f"{training!r} {count} {key}"
    notes = None if resume is None else Notes(resume, "training")
    if notes is not None and (kept := notes.read("training", lambda: key)) is not None:
        run.restore(*kept)
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(training.seed)  # for dropout
        if run.random is not None:
            torch.set_rng_state(run.random)
        with bar("training", run.total) as advance:
            advance(run.step)
            if score is not None and not run.scores:
                run.scored(score(), 0)
            while run.epoch < training.epochs and not run.patience_is_over():
                model.train()
                if training.norms == "frozen":
                    for module in model.modules():
                        module.training = module.training and not isinstance(module, NORMS)
                run.losses.append(_epoch(run, loss, advance))
                run.epoch += 1
                if score is not None:
                    model.eval()
                    run.scored(score(), run.epoch)
                if notes is not None:
                    run.random = torch.get_rng_state()
                    notes.write("training", key, *run.state())
    if run.best_state is not None:
        model.load_state_dict(run.best_state)
    model.eval()
    best = run.best if run.scores else run.epoch
    return Fitted(run.epoch, best, tuple(run.losses), tuple(first for first, _ in run.scores))


def _epoch(run: _Run, loss: Loss, advance: Callable[..., None]) -> float:
    """Run one epoch and return its mean loss."""
    total, batches = 0.0, run.batches()
    for chosen in batches:
        rate = run.rate()
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        with run.autocast():
            value = loss(chosen, run.generator)
        if not torch.isfinite(value):
            why = f"training diverged in pass {run.epoch + 1} (loss {value.item()})"
            raise OptionError("option-training-diverged", f"{why}; lower lr={run.training.rate:g}")
        run.optimizer.zero_grad()
        run.scaler.scale(value).backward()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.step += 1
        total += value.item()
        advance(text=f"training, loss {value.item():.3f}")
    return total / max(1, len(batches))


class _Run:
    """A training run in progress: everything that determines how it continues."""

    def __init__(self, model: nn.Module, count: int, training: TrainingOptions) -> None:
        self.model, self.count, self.training = model, count, training
        size = training.batch_size
        self.total = max(6, training.epochs * max(1, count // size))
        self.generator = torch.Generator().manual_seed(training.seed)
        self.random: Tensor | None = None
        self.step = self.epoch = self.best = 0
        self.losses: list[float] = []
        self.scores: list[tuple[float, float]] = []
        self.best_state: dict[str, Tensor] | None = None
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        options: dict[str, Any] = {"lr": training.rate, "weight_decay": training.weight_decay}
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(trained, momentum=0.9, nesterov=True, **options)
            if training.optimizer == "sgd"
            else torch.optim.AdamW(trained, **options)
        )
        self.device = trained[0].device.type
        self.dtype = _mixed(training, self.device)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def batches(self) -> list[list[int]]:
        """The batches of an epoch; an incomplete last batch is left out unless it is the only one."""
        size = self.training.batch_size
        order = torch.randperm(self.count, generator=self.generator)
        parts = order[: len(order) // size * size or None].split(size)
        return [part.tolist() for part in parts if len(part) > 1]  # batch norms need two

    def rate(self) -> float:
        """The learning rate of the next step: a cosine up, then a cosine down."""
        top = self.training.rate
        start = top / 25
        turn = self.training.warmup * self.total - 1
        if self.step <= turn:
            return _cosine(start, top, self.step / turn if turn else 1.0)
        return _cosine(top, start / 1e4, min(1.0, (self.step - turn) / max(1.0, self.total - 1 - turn)))

    def scored(self, value: tuple[float, float], epoch: int) -> None:
        """Record a score, and keep the weights if they are no worse than the best."""
        if not self.scores or value > max(self.scores):
            self.best = epoch
            self.best_state = {name: v.detach().clone() for name, v in self.model.state_dict().items()}
        self.scores.append(value)

    def patience_is_over(self) -> bool:
        patience = self.training.patience
        return patience is not None and bool(self.scores) and self.epoch - self.best >= patience

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it as data."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in (self.best_state or {}).items()}
        for place, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{k}": v for k, v in values.items() if isinstance(v, Tensor)}
        tensors["random.order"] = self.generator.get_state()
        if self.random is not None:
            tensors["random.torch"] = self.random
        text = {name: getattr(self, name) for name in ("step", "epoch", "best", "losses", "scores")}
        return tensors, {**text, "scaler": self.scaler.state_dict()}

    def restore(self, text: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Continue from a result of `state`."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

        self.step, self.epoch, self.best = text["step"], text["epoch"], text["best"]
        self.losses, self.scores = list(text["losses"]), [(a, b) for a, b in text["scores"]]
        self.model.load_state_dict(under("model."))
        self.best_state = under("best.") or None
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in under("optimizer.").items():
            place, _, kind = name.partition(".")
            states.setdefault(int(place), {})[kind] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})
        self.scaler.load_state_dict(text["scaler"])
        self.generator.set_state(tensors["random.order"])
        self.random = tensors.get("random.torch")


def _mixed(training: TrainingOptions, device: str) -> torch.dtype | None:
    """The type that products are computed in, if different from that of the weights."""
    if training.precision == "auto":
        return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(training.precision)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
