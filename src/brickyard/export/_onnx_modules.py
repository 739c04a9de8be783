"""What of a model becomes one ONNX graph: modules of tensors only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly
from brickyard.component._predictor import Predictor
from brickyard.outputs._kinds import Outputs

OUTPUTS = ("logits", "probabilities", "strangeness")


class FromRaw(nn.Module):
    """Maps raw images to logits, probabilities and, if that is asked for, strangeness: the least, or to `each` part."""

    def __init__(self, model: Predictor, strangers: bool = False, each: bool = False) -> None:
        super().__init__()
        self.model = model
        self.strangers = strangers
        self.each = each
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if not self.strangers:
            logits = self.model.logits(images)
            return logits, self.model.outputs.probabilities(logits)
        logits, strange = self.model.judged(images, torch.float32)
        return logits, self.model.outputs.probabilities(logits), strange if self.each else strange.amin(1)


class Shares(nn.Module):
    """Maps logits to probabilities."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs = outputs
        self.eval()

    def forward(self, logits: Tensor) -> Tensor:
        return self.outputs.probabilities(logits)


class Order(nn.Module):
    """Maps raw images to the order of the parts."""

    def __init__(self, model: Assembly) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.model.order(images)


class Said(nn.Module):
    """Maps raw images to what one part says: the logits of its classes, then `more` of it, each (batch,).

    That is, with reject, the log-probability of classes which are none of the assembly's, and if that is asked for, how
    strange they are to the part.
    """

    def __init__(self, model: Assembly, strangers: bool) -> None:
        super().__init__()
        self.model = model
        self.judging = torch.float32 if strangers else None
        self.more = (("unknown",) if model.reject else ()) + (OUTPUTS[2:] if strangers else ())
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, *more = self.model.without_reject(images, self.judging)
        return logits, *(value[:, 0] for value in more if value is not None)
