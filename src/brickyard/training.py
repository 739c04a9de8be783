"""Make a source: train a small network on image data. Plain, seeded, without surprises."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.datasets import ImageData
from brickyard.errors import DataError, OptionError
from brickyard.graph.reading import as_before
from brickyard.manifest import Preprocessing
from brickyard.preprocessing import preprocess
from brickyard.progress import bar
from brickyard.shifting import windows
from brickyard.sources import zoo

__all__ = ["accuracy", "build_seeded", "train"]


def build_seeded(name: str, classes: int, width: float = 1.0, seed: int = 0, **options: object) -> nn.Module:
    """A network of the zoo with initial weights drawn from a seed; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return zoo.build(name, classes, width, **options)


def train(
    model: nn.Module,
    data: ImageData,
    *,
    preprocessing: Preprocessing,
    epochs: int = 10,
    lr: float = 0.1,
    batch_size: int = 64,
    weight_decay: float = 5e-4,
    augment: bool = False,
    seed: int = 0,
) -> float:
    """Train a classifier in place: SGD with momentum, a warm-up, and a cosine to zero.

    Args:
        model: Takes preprocessed images and returns (batch, classes).
        data: Training images; labels are the model's outputs.
        preprocessing: What is done to the images before the model takes them.
        epochs: Passes over the data.
        lr: The highest learning rate.
        batch_size: Images a step.
        weight_decay: L2 penalty.
        augment: Shift every image by up to an eighth of its size, and mirror half of them.
        seed: Seed for order and augmentation.

    Returns:
        Accuracy on the training images, in [0, 1]. The model is left in evaluation mode.

    Raises:
        OptionError: An option cannot be used.
        DataError: There are no images.
    """
    if epochs < 1 or batch_size < 2 or not 0 < lr < math.inf or not weight_decay >= 0:
        raise OptionError(
            f"epochs={epochs}, batch_size={batch_size}, lr={lr}, weight_decay={weight_decay}: give at least 1, 2, "
            "above 0, and 0"
        )
    if len(data) < 2:
        raise DataError(f"{data.name} has {len(data)} images; training needs two or more")
    generator = torch.Generator().manual_seed(seed)
    like = next(model.parameters())
    steps = epochs * max(1, len(data) // batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    model.train()
    with torch.random.fork_rng(devices=[]), bar("training", steps) as advance:
        torch.manual_seed(seed)  # for dropout
        for _ in range(epochs):
            order = torch.randperm(len(data), generator=generator)
            for chosen in order[: len(order) // batch_size * batch_size or None].split(batch_size):
                if len(chosen) < 2:
                    continue
                x = preprocess(data.images[chosen], preprocessing).to(like.dtype)
                x = _augmented(x, generator) if augment else x
                logits = model(x)
                if logits.ndim != 2 or logits.shape[1] <= int(data.labels.max()):
                    raise DataError(
                        f"{data.name} has labels to {int(data.labels.max())}, the model outputs of shape "
                        f"{tuple(logits.shape)}; give it one output a class"
                    )
                loss = F.cross_entropy(logits, data.labels[chosen])
                if not torch.isfinite(loss):
                    raise OptionError(f"training diverged (loss {loss.item()}); give a lower lr than {lr}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if schedule.last_epoch < steps:
                    schedule.step()
                advance(text=f"training, loss {loss.item():.3f}")
    model.eval()
    return accuracy(model, data, preprocessing)


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift and mirror each image on its own."""
    count, _, height, width = x.shape
    reach = max(1, width // 8)
    shift = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator)
    x = windows(F.pad(x, (reach,) * 4), shift[0], shift[1], (height, width))
    mirror = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirror.reshape(-1, 1, 1, 1), x.flip(3), x)


def accuracy(model: nn.Module, data: ImageData, preprocessing: Preprocessing, batch_size: int = 256) -> float:
    """Share of images that a classifier answers right, in [0, 1]."""
    right, like = 0, next(model.parameters())
    with as_before(model), torch.inference_mode():
        for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
            x = preprocess(images, preprocessing).to(like.dtype)
            right += int((model(x).argmax(1) == labels).sum())
    return right / len(data) if len(data) else 0.0
