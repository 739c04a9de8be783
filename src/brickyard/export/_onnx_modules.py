"""What becomes an ONNX graph: modules of tensors only, what they take, and how they are written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from brickyard.assembly._assembly import Assembly
from brickyard.base._interrupts import Held
from brickyard.component._predictor import Predictor
from brickyard.outputs._kinds import Outputs

if TYPE_CHECKING:
    from torch.export import ExportedProgram

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


# -- what the file takes, and writing it -------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Input of an exported network: raw images (batch, channels, *size), of any size if `size` is None.

    Signals and cubes have another number of sides, and always a size.
    """

    channels: int
    size: tuple[int, ...] | None
    usual: tuple[int, ...]
    dtype: str

    def random(self, count: int, size: tuple[int, ...], seed: int) -> Tensor:
        shape, generator = (count, self.channels, *size), torch.Generator().manual_seed(seed)
        if self.dtype == "uint8":
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return torch.rand(shape, generator=generator)

    def batches(self) -> list[Tensor]:
        """Random images for the check, one and five at a time, of other sizes too where those may differ."""
        sizes = [self.usual]
        if self.size is None:
            height, width = self.usual
            sizes += [(height + height // 2 + 1, width + 1), (max(height // 2, 2), max(width - 1, 2))]
        return [self.random(count, size, seed) for seed, size in enumerate(sizes) for count in (1, 5)]


class _LaidOut(TorchFunctionMode):
    """Lets attention give values that lie in memory in the order of their dimensions.

    Its kernel may lay them out otherwise. The exporter would rely on that, and what it turns the kernel into does not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.contiguous() if func is F.scaled_dot_product_attention else result


def program(module: nn.Module, entry: Entry, single: bool = False) -> ExportedProgram:
    """A module of raw images as a program, for any number of them, or for a single one."""
    open_sides = {} if single else {0: torch.export.Dim("batch")}
    if entry.size is None:
        open_sides |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with Held(long=True), torch.no_grad(), _LaidOut():
        images = entry.random(1 if single else 2, entry.usual, 0)
        return torch.export.export(module, (images,), dynamic_shapes=(open_sides,), strict=False)


def written(program: ExportedProgram, *outputs: str, given: str = "images") -> Any:
    """A program as an ONNX model."""
    names: Any = {"input_names": [given], "output_names": list(outputs)}
    with Held(long=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False, **names)
    assert found is not None
    return found.model_proto
