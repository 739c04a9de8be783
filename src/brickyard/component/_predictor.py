"""What components and assemblies share: from pictures to class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from brickyard.base._checks import whole
from brickyard.base._errors import BrickyardError, DataError
from brickyard.base._messages import brief, first_line
from brickyard.inputs._decoding import read_images
from brickyard.network._untouched import as_before
from brickyard.outputs._outputs import Outputs

ResultT = TypeVar("ResultT")

REJECT = "(none of these)"


class Predictor(nn.Module):
    """A module that knows its class names and what its outputs mean, and takes raw images."""

    outputs: Outputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, one an output."""
        raise NotImplementedError

    @property
    def reject(self) -> bool:
        """Whether a last output stands for "none of these"."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """Raw images, (batch, channels, height, width), uint8 or in [0, 1] -> (batch, outputs)."""
        raise NotImplementedError

    @property
    def classes_(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """Names of `predict_proba`'s columns, as scikit-learn calls them; with reject, "(none of these)" is last."""
        return np.array([*self.classes, *([REJECT] if self.reject else [])])

    def predict_proba(self, images: Any, batch_size: int = 64) -> Tensor:
        """Probabilities (images, outputs) in float64, as this kind of outputs has them.

        Args:
            images: A batch, uint8 or in [0, 1]: a tensor or an array (batch, channels, height, width), or an array
                (batch, height, width, channels) of grey or colour images; one picture; or a list of pictures, in
                any mix: paths, PIL images, arrays (height, width[, channels]) and tensors (channels, height, width).
                Files and PIL images are turned as their EXIF data says; palettes become colour, 16 bits become 8,
                and what is transparent becomes white.
            batch_size: Images at once.

        Raises:
            DataError: The images cannot be used.
        """
        found = self._read(images, batch_size, lambda logits: self.outputs.probabilities(logits).cpu())
        return torch.cat(found) if found else torch.zeros(0, len(self.classes_), dtype=torch.float64)

    def predict(self, images: Any, batch_size: int = 64) -> list[Any]:
        """Class names of images; "(none of these)" where the reject output wins.

        Args:
            images: As for `predict_proba`.
            batch_size: Images at once.

        Returns:
            What this kind of outputs answers: for one of many classes, the name of one for each image.

        Raises:
            DataError: The images cannot be used.
        """
        names = (*self.classes, REJECT)
        found = self._read(images, batch_size, lambda logits: self.outputs.named(logits, names))
        return [answer for batch in found for answer in batch]

    def _read(self, images: Any, batch_size: int, how: Callable[[Tensor], ResultT]) -> list[ResultT]:
        """What `how` makes of the logits of every batch, in float64."""
        batch_size = whole("batch_size", batch_size)
        if any(value.is_meta for value in self.parameters()):
            raise DataError(
                "data-meta-device", "the model is on the meta device and has no weights to compute with; load it again"
            )
        with as_before(self), torch.inference_mode():
            batches = read_images(images, batch_size)
            return [how(run_images(self.logits, batch, "the images").double()) for batch in batches]

    def score(self, images: Any, names: Sequence[Any], batch_size: int = 64) -> float:
        """The share of images whose answer is the one that is given.

        Args:
            images: As for `predict_proba`.
            names: The right answer to each image, as `predict` gives it; "(none of these)" is right where the reject
                output should win.
            batch_size: Images at once.

        Raises:
            DataError: The images cannot be used, or a name is no class of the model, or there are not as many.
        """
        if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray):
            raise DataError(
                "data-type",
                f"names must be a list with one name per image, got {brief(names)} of type {type(names).__name__}",
            )
        wanted = [self.outputs.names_in(name) for name in names]
        unknown = sorted(set().union(*wanted) - set(self.classes_.tolist()))
        if unknown:
            raise DataError(
                "data-unknown-class",
                f"class {unknown[0]!r} is not one of {', '.join(self.classes_[:8])}; use those names",
            )
        found = self.predict(images, batch_size)
        if len(found) != len(names) or not found:
            raise DataError(
                "data-label-mismatch", f"got {len(found)} images and {len(names)} names; give one name per image"
            )
        return sum(self.outputs.names_in(a) == b for a, b in zip(found, wanted, strict=True)) / len(found)


def run_images(model: Callable[[Tensor], ResultT], images: Tensor, what: str) -> ResultT:
    """Run a model on images; images that it cannot take are a clear error.

    Raises:
        DataError: The model refuses the images.
    """
    try:
        return model(images)
    except BrickyardError:
        raise
    except Exception as error:  # a network from a file may fail in any way of torch's
        raise DataError(
            "data-wrong-size",
            f"{what} of shape {tuple(images.shape)} do not fit the model: {first_line(error)}; give "
            "images of the size and channels its source takes, or a preprocessing that produces "
            "them",
        ) from error
