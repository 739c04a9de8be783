"""What components and assemblies share: from pictures to class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.errors import DataError
from brickyard.preprocessing import check_images

__all__ = ["Predictor", "read_images", "run_images"]

ResultT = TypeVar("ResultT")

REJECT = "(none of these)"


class Predictor(nn.Module):
    """A module that knows its class names and takes raw images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        raise NotImplementedError

    @property
    def reject(self) -> bool:
        """Whether a last output stands for "none of these"."""
        raise NotImplementedError

    def _logits(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def predict_proba(self, images: Any, batch_size: int = 64) -> Tensor:
        """Probabilities (images, outputs) in float64.

        Args:
            images: A batch (batch, channels, height, width), uint8 or in [0, 1]; or a list of pictures: paths,
                PIL images, or arrays (height, width[, channels]).
            batch_size: Images at once.

        Raises:
            DataError: The images cannot be used.
        """
        found: list[Tensor] = []
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for batch in read_images(images, batch_size):
                    logits = run_images(self._logits, batch, "the images")
                    found.append(logits.double().softmax(1).cpu())
        finally:
            self.train(was_training)
        return torch.cat(found) if found else torch.zeros(0, len(self.classes) + int(self.reject))

    def predict(self, images: Any, batch_size: int = 64) -> list[str]:
        """Class names of images; "(none of these)" where the reject output wins.

        Raises:
            DataError: The images cannot be used.
        """
        names = (*self.classes, REJECT)
        return [names[k] for k in self.predict_proba(images, batch_size).argmax(1).tolist()]


def run_images(model: Callable[[Tensor], ResultT], images: Tensor, what: str) -> ResultT:
    """Run a model on images; images that it cannot take are a clear error.

    Raises:
        DataError: The model refuses the images.
    """
    try:
        return model(images)
    except RuntimeError as error:
        raise DataError(
            f"{what} of shape {tuple(images.shape)} do not fit the model: {str(error).splitlines()[0]}; give images "
            "of the size and channels that its source takes, or a preprocessing that makes them so"
        ) from error


def read_images(images: Any, batch_size: int) -> list[Tensor]:
    """Images in any of the forms that `Predictor.predict_proba` takes, as raw batches."""
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        check_images(images, "the images")
        return list(images.split(batch_size)) if len(images) else []
    if isinstance(images, str | Path) or not isinstance(images, Sequence):
        images = [images]
    return [_picture(item) for item in images]


def _picture(item: Any) -> Tensor:
    """One picture as (1, channels, height, width)."""
    if isinstance(item, Tensor) and item.ndim == 3:
        batch = item.unsqueeze(0)
        check_images(batch, "the image")
        return batch
    if isinstance(item, np.ndarray) and item.ndim in (2, 3):
        array = item if item.ndim == 3 else item[:, :, None]
        batch = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).unsqueeze(0)
        check_images(batch, "the image")
        return batch
    from brickyard.datasets import decode_image

    if isinstance(item, str | Path) or hasattr(item, "convert"):
        return decode_image(item).unsqueeze(0)
    raise DataError(f"an image is a {type(item).__name__}; give a path, a PIL image, an array or a tensor")
