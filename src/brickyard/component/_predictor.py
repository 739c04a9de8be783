"""What components and assemblies share: from images to class names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Unpack, get_args

import numpy as np
import torch
from torch import Tensor

from brickyard.base._checks import check_choice, whole
from brickyard.base._declare import verb
from brickyard.base._errors import BrickyardError, DataError, FileError, OptionError
from brickyard.base._messages import brief, first_line
from brickyard.base._messages import told as told_of
from brickyard.base._options import DetectOptions
from brickyard.base._records import Preprocessing
from brickyard.base._statistics import StrangersRecord
from brickyard.component._strangers import SURE
from brickyard.inputs._decoding import read_images
from brickyard.inputs._preprocessing import check_raw
from brickyard.network._cost_limit import BATCHES
from brickyard.network._place import unsupported
from brickyard.network._shown import Shown
from brickyard.network._untouched import guarded
from brickyard.outputs._detections import Detections, Found, told
from brickyard.outputs._kinds import Outputs

ResultT = TypeVar("ResultT")
Strangers = Literal["reject", "answer"]

REJECT = "(none of these)"
FAR = 1e6  # strangeness that is written, at most
_HALF = (torch.float16, torch.bfloat16)
CHEAP = 1 << 28  # multiply-adds per image, up to which a model is run on batches of several sizes when it is read
AFFORDABLE = 1 << 33  # up to which it is run on one image


@dataclass(frozen=True)
class Verdict:
    """What a model says to one image.

    Attributes:
        answer: As from `predict`.
        strangeness: As from `strangeness`, at most a million, or None where that is not known.
        sure: As in `Judgement`, or None where that is not known.
        none: Whether the answer is none of the classes.
    """

    answer: Any
    strangeness: float | None
    sure: bool | None
    none: bool

    @property
    def words(self) -> str:
        """How far the answer can be trusted, in words; "" where that is not known."""
        if self.none:
            strange = self.strangeness is not None and self.strangeness > 1
            several = "none of the classes" if self.answer == () else "none of these"
            return "none of these (unlike all of its classes)" if strange else several
        return "" if self.sure is None else "sure" if self.sure else "not sure"


@dataclass(frozen=True)
class Judgement:
    """What a model says to images, and how far that can be trusted.

    Attributes:
        probabilities: As from `predict_proba`, (images, outputs) in float64.
        strangeness: As from `strangeness`, (images,) in float64.
        answers: As from `predict`, one per image.
        sure: Whether the best class has a probability of 0.9 or more, and the image is no more unusual to that class's
            part than two in three of the part's own: bool, (images,); False where strangeness is not known.
    """

    probabilities: Tensor
    strangeness: Tensor
    answers: tuple[Any, ...]
    sure: Tensor

    def verdicts(self) -> list[Verdict]:
        """The same without probabilities, one per image."""
        rows = zip(self.strangeness.clamp_max(FAR).tolist(), self.answers, self.sure.tolist(), strict=True)
        known = ((answer, *((None, None) if math.isnan(far) else (far, sure))) for far, answer, sure in rows)
        return [Verdict(answer, far, sure, answer in (REJECT, ())) for answer, far, sure in known]

    @classmethod
    def of(cls, batches: Sequence[Judgement], width: int) -> Judgement:
        """Several as one, with so many outputs."""
        blank = torch.zeros(0, dtype=torch.float64)
        none = cls(blank.reshape(0, width), blank, (), blank.bool())
        every = batches or [none]
        return cls(
            torch.cat([one.probabilities for one in every]),
            torch.cat([one.strangeness for one in every]),
            tuple(answer for one in every for answer in one.answers),
            torch.cat([one.sure for one in every]),
        )


class Predictor(Shown):
    """A module that takes raw images, and knows its class names and what its outputs mean."""

    outputs: Outputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, one per output."""
        raise NotImplementedError

    @property
    def reject(self) -> bool:
        """Whether a last output stands for "none of these"."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """How many outputs it has, of each place if it is a detector."""
        return len(self.classes_) + self.outputs.others

    @property
    def dims(self) -> int:
        """Dimensions of its outputs: 2, or 3 for those of a detector's places."""
        return 3 if isinstance(self.outputs, Detections) else 2

    @property
    def preprocessings(self) -> Sequence[Preprocessing]:
        """How each of its networks prepares raw images."""
        raise NotImplementedError

    @property
    def input_shape(self) -> tuple[int, ...]:
        """What its first network takes, such as (channels, height, width)."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """Map raw images (batch, channels, height, width), uint8 or in [0, 1], to (batch, outputs)."""
        raise NotImplementedError

    @property
    def owners(self) -> tuple[tuple[int, ...], ...]:
        """For each class, the parts that have it."""
        raise NotImplementedError

    @property
    def stranger_limits(self) -> tuple[StrangersRecord, ...]:
        """For each part, from when on images are strangers to it; empty where that is not known."""
        raise NotImplementedError

    def judged(self, images: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Map raw images to `logits`, and to how strange they are to each part, (batch, parts), where that is known.

        A part that did not run finds them infinitely strange.
        """
        raise NotImplementedError

    @property
    def classes_(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        """Column names of `predict_proba`, under scikit-learn's name; with reject, "(none of these)" comes last."""
        return np.array([*self.classes, *([REJECT] if self.reject else [])])

    def predict_proba(self, images: Any, batch_size: int = 64) -> Tensor:
        """Return probabilities (images, outputs) in float64, as the kind of outputs defines them.

        Args:
            images: A batch, uint8 or in [0, 1]: a tensor or array (batch, channels, height, width), or an array (batch,
                height, width, channels) of grey or colour images; a single image; or a list that may mix paths, PIL
                images, arrays (height, width[, channels]) and tensors (channels, height, width). Files and PIL images
                are rotated according to their EXIF data; palettes become colour, 16 bits become 8, and transparent
                areas become white. For networks of signals or cubes: tensors or arrays (batch, channels, length) or
                (batch, channels, depth, height, width), single ones, or a list of these; the axis of a single channel
                may be left out.
            batch_size: Number of images to process at once.

        Raises:
            DataError: The images cannot be used.
        """
        found = self._read(images, batch_size, lambda sides, logits: self.outputs.probabilities(logits).cpu())
        return torch.cat(found) if found else torch.zeros(0, len(self.classes_), dtype=torch.float64)

    def predict(self, images: Any, batch_size: int = 64, *, strangers: Strangers = "reject") -> list[Any]:
        """Return the class names of images; "(none of these)" where the reject output wins, or for strangers.

        Args:
            images: As for `predict_proba`.
            batch_size: Number of images to process at once.
            strangers: What becomes of images that look like none of the classes (`strangeness` above 1): "reject"
                answers "(none of these)", "answer" names the best class all the same.

        Returns:
            One answer per image, in the form its kind of outputs defines: for one of many classes, a class name.

        Raises:
            DataError: The images cannot be used.
            OptionError: `strangers` is neither.
        """
        check_choice("strangers", strangers, get_args(Strangers))
        if strangers == "reject" and self.stranger_limits:
            return list(self.judge(images, batch_size).answers)
        found = self._read(images, batch_size, self._named)
        return [answer for batch in found for answer in batch]

    def _named(self, sides: tuple[int, ...], logits: Tensor) -> list[Any]:
        """The answers to raw images of some sides."""
        if isinstance(self.outputs, Detections):
            return [told(one, self.classes) for one in self.found(sides, logits)]
        return self.outputs.named(logits, (*self.classes, REJECT))

    @verb(DetectOptions)
    def detect(self, images: Any, **options: Unpack[DetectOptions]) -> list[Found]:
        """Find objects in images, with a component or an assembly of detectors.

        Args:
            images: As for `predict_proba`.

        Returns:
            For each image its boxes (n, 4), left, top, right and bottom in pixels of the image; their scores (n,) and
            classes (n,), by falling score.

        Raises:
            OptionError: It is a classifier, or a number is out of range.
            DataError: The images cannot be used.
        """
        if not isinstance(self.outputs, Detections):
            raise OptionError("option-conflict", "detect finds boxes, and this is a classifier; use predict")
        how = options["score"], options["iou"], options["most"]
        found = self._read(images, options["batch_size"], lambda sides, logits: self.found(sides, logits, *how))
        return [one for batch in found for one in batch]

    def found(self, sides: tuple[int, ...], logits: Tensor, *how: Any) -> list[Found]:
        """The boxes in images of some sides, in pixels of these, and cut off at their borders.

        Args:
            sides: Height and width of the images.
            logits: The detector's outputs for them, (batch, outputs, places).
            how: As for `Detections.find`.
        """
        raise NotImplementedError

    def strangeness(self, images: Any, batch_size: int = 64) -> Tensor:
        """Return how unlike all classes images look, (images,) in float64.

        About one in a hundred images of the model's own classes is above 1; `predict` turns those away. To an assembly,
        an image is as strange as to the part that finds it least so, of those that ran.

        It is NaN where it is not known: where a part was cut from fewer than 20 labelled images, or by an earlier
        version, where the parts are joined into one network, or where images may show several classes or none.

        Args:
            images: As for `predict_proba`.
            batch_size: Number of images to process at once.

        Raises:
            DataError: The images cannot be used.
        """
        return self.judge(images, batch_size).strangeness

    def judge(self, images: Any, batch_size: int = 64) -> Judgement:
        """Return probabilities, answers, and how far these can be trusted, from running the model once.

        Args:
            images: As for `predict_proba`.
            batch_size: Number of images to process at once.

        Raises:
            DataError: The images cannot be used.
        """
        if not self.stranger_limits:
            found = self._read(images, batch_size, lambda sides, logits: self._judgement(sides, logits, None))
        else:
            found = self._read(images, batch_size, self._judgement, self.judged)
        return Judgement.of(found, len(self.classes_))

    def _judgement(self, sides: tuple[int, ...], logits: Tensor, strange: Tensor | None) -> Judgement:
        """What logits and strangeness to each part, where that is known, say of a batch."""
        chances, answers = self.outputs.probabilities(logits).cpu(), self._named(sides, logits)
        sure = torch.zeros(len(logits), dtype=torch.bool)
        if strange is None:
            return Judgement(chances, torch.full((len(logits),), torch.nan, dtype=torch.float64), tuple(answers), sure)
        strange, least = strange.cpu(), strange.amin(1).cpu()
        near = strange <= torch.tensor([one.sure / one.limit for one in self.stranger_limits], dtype=strange.dtype)
        highest, best = chances[:, : len(self.classes)].max(1)
        for row, (share, place, far) in enumerate(zip(highest.tolist(), best.tolist(), least.tolist(), strict=True)):
            sure[row] = share >= SURE and bool(near[row, list(self.owners[place])].any())
            answers[row] = REJECT if far > 1 else answers[row]
        return Judgement(chances, least, tuple(answers), sure)

    @guarded
    def _read(
        self, images: Any, batch_size: int, how: Callable[..., ResultT], run: Callable[[Tensor], Any] | None = None
    ) -> list[ResultT]:
        """Apply `how` to the sides of each batch's images and its logits in float64, or what `run` returns of it."""
        batch_size = whole("batch_size", batch_size)
        if any(value.is_meta for value in self.parameters()):
            raise DataError(
                "data-meta-device", "the model is on the meta device and has no weights to compute with; load it again"
            )
        with torch.inference_mode():
            batches = read_images(images, batch_size, self.input_shape)
            for batch, one in itertools.product(batches, self.preprocessings):
                check_raw(batch, one, "the images")
            found = []
            for batch in batches:
                both = run_images(run or self.logits, batch, "the images")
                numbers = both if isinstance(both, tuple) else (both,)
                found.append(how(tuple(batch.shape[2:]), *(one.double() for one in numbers)))
            return found

    def score(self, images: Any, names: Sequence[Any], batch_size: int = 64) -> float:
        """Return the share of images that are answered correctly; none is turned away as a stranger.

        Args:
            images: As for `predict_proba`.
            names: The correct answer for each image, in the form `predict` returns; use "(none of these)" where the
                reject output should win.
            batch_size: Number of images to process at once.

        Raises:
            DataError: The images cannot be used, a name is not one of the model's classes, or the counts differ.
            OptionError: The model is a detector.
        """
        if isinstance(self.outputs, Detections):
            why = "score compares class names, and this is a detector"
            raise OptionError("option-conflict", f"{why}; use brickyard.evaluate with images with boxes")
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
        found = self.predict(images, batch_size, strangers="answer")
        if len(found) != len(names) or not found:
            raise DataError(
                "data-label-mismatch", f"got {len(found)} images and {len(names)} names; give one name per image"
            )
        return sum(self.outputs.names_in(a) == b for a, b in zip(found, wanted, strict=True)) / len(found)


def check_answers(model: Predictor, work: int) -> None:
    """Run a model that was read from a file on one, two and three drawn images, or on one if it costs much.

    Args:
        model: The model.
        work: Multiply-adds that its networks take per image.

    Raises:
        FileError: It does not run, or does not give one answer per image.
    """
    if work > AFFORDABLE or any(
        value.dtype in _HALF for value in model.parameters()
    ):  # which not every machine computes
        return
    drawn = torch.rand(max(BATCHES), *model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        for count in BATCHES if work <= CHEAP else (1,):
            try:
                found = tuple(model.logits(drawn[:count]).shape)
            except Exception as error:  # a network from a file may fail in any way of torch's
                why = f"its network does not run on {count} images of shape {model.input_shape}: {told_of(error)}"
                raise FileError("file-network-invalid", why) from None
            if found[:2] != (count, model.width) or len(found) != model.dims:
                wanted = (count, model.width)
                raise FileError(
                    "file-network-invalid", f"it answers {found} to {count} images, where {wanted} is right"
                )


def run_images(model: Callable[[Tensor], ResultT], images: Tensor, what: str) -> ResultT:
    """Run a model on images, and report clearly if they do not fit it.

    Raises:
        DataError: The model rejects the images.
        OptionError: Its device or its type of numbers lacks an operation.
    """
    try:
        found = model(images)
        if isinstance(found, Tensor) and (not found.ndim or len(found) != len(images)):
            raise ValueError(f"it returns {len(found) if found.ndim else 'one of'} answers for {len(images)} images")
        return found
    except BrickyardError:
        raise
    except Exception as error:  # a network from a file may fail in any way of torch's
        if (lacking := unsupported(error)) is not None:
            raise lacking from error
        raise DataError(
            "data-wrong-size",
            f"{what} of shape {tuple(images.shape)} do not fit the model: {first_line(error)}; give "
            "images of the size and channels its source takes, or a preprocessing that produces "
            "them",
        ) from error
