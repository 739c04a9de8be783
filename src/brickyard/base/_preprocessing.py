"""How raw images become a network's input, as a frozen value that says nothing of how it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from brickyard.base import _pipelines
from brickyard.base._boxes import Boxes
from brickyard.base._frozen import Frozen, UnusableError, first_problem

Fit = Literal["resize", "crop", "pad", "letterbox"]
Place = Literal["centre", "corner"]
Order = Literal["rgb", "bgr"]
FILLED = ("pad", "letterbox")  # ways that leave something around a picture


_BOXED: dict[str, Any] = {"size": (640, 640), "fit": "letterbox", "channels": 3, "fill": 114 / 255, "antialias": False}
_TORCHVISION: dict[str, Any] = {
    **_BOXED,
    "fill": 0.449,  # about what becomes zero
    "place": "corner",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_RESIZED: dict[str, Any] = {"fit": "resize", "channels": 3, "antialias": False}
_DETECTORS: dict[str, dict[str, Any]] = {
    "yolox": {**_BOXED, "place": "corner", "order": "bgr", "mean": (0.0,), "std": (1 / 255,)},
    "nanodet": {
        **_BOXED,
        "size": (320, 320),
        "fill": 0.0,
        "order": "bgr",
        "mean": tuple(value / 255 for value in (103.53, 116.28, 123.675)),
        "std": tuple(value / 255 for value in (57.375, 57.12, 58.395)),
    },
    "yolov5": _BOXED,
    "yolov8": _BOXED,
    "retinanet": _TORCHVISION,
    "fcos": _TORCHVISION,
    "ssd": {
        **_RESIZED,
        "size": (300, 300),
        "mean": (0.48235, 0.45882, 0.40784),
        "std": (1 / 255,),
    },
    "ssdlite": {**_RESIZED, "size": (320, 320), "mean": (0.5,), "std": (0.5,)},
}


class Preprocessing(Frozen):
    """How to turn raw images into a network's input.

    Raw images are uint8 in 0..255 or floating point in [0, 1], of shape (batch, channels, height, width).
    They are scaled to [0, 1], converted to `channels`, `size` and `order`, then normalised as `(x - mean) / std` per
    channel.
    The default changes nothing, so a network without preprocessing takes the same input as its source. Signals
    (batch, channels, length) and cubes (batch, channels, depth, height, width) are only normalised: floating-point
    ones are in any unit, in which `mean` and `std` are too.

    Attributes:
        size: Height and width of the network's input, or None to keep the size.
        fit: How an image is brought to `size`: "resize" (its sides are scaled independently), "crop" (it is scaled to
            cover `size / crop`, and the middle is taken), "pad" (`fill` around a smaller image; a larger one is
            resized), or "letterbox" (any image is scaled by one factor until it just fits into `size`, and the rest
            is `fill`). The sides of a letterboxed image are rounded down to whole pixels, and are at least 1.
        crop: With fit="crop" or "resize", the share of the scaled image's sides that is taken: 224 / 256 = 0.875 in
            the usual evaluation on ImageNet.
        interpolation: "bilinear" or "bicubic".
        antialias: Whether a larger image is smoothed while it is scaled down, as PIL does and torchvision by default.
        channels: 1 or 3, or None to keep the channels. Grey becomes colour by repetition; colour becomes grey by
            the luma weights of ITU-R BT.601.
        mean: Per-channel mean, in [0, 1] units (123.675 of bytes is 0.485), or None for no normalisation.
        std: Per-channel standard deviation, in [0, 1] units; needs `mean`. A network that takes 0 to 255 has
            mean=(0,), std=(1 / 255,).
        unknown: Whether the source was located on images that something else had prepared: neither uint8 nor in
            [0, 1]. Pictures cannot be brought into that form, and are refused.
        fill: With fit="pad" or "letterbox", the value around the image in all channels, in [0, 1] units: YOLO has
            114 / 255. Around uint8 images it is rounded to a byte.
        place: With fit="pad" or "letterbox", where the image lies: in the "centre" (an odd pixel is left at the bottom
            or on the right), or in the top left "corner", as YOLOX has it.
        order: "rgb", or "bgr" for a network that takes blue first: colours are reversed before normalisation, so
            `mean` and `std` are in the network's order.

    Example:
        >>> from brickyard import Preprocessing
        >>> Preprocessing(size=(32, 32), channels=3, mean=(0.5,), std=(0.25,)).size
        (32, 32)
        >>> yolox = Preprocessing(size=(416, 416), fit="letterbox", fill=114 / 255, place="corner", order="bgr")
        >>> yolox.fills, yolox.crops
        (True, False)
    """

    size: tuple[Annotated[int, Field(ge=1, le=16384)], Annotated[int, Field(ge=1, le=16384)]] | None = None
    fit: Fit = "resize"
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    channels: Literal[1, 3] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    unknown: bool = False
    fill: Annotated[float, Field(ge=0, le=1)] = 0.0
    place: Place = "centre"
    order: Order = "rgb"

    def __init__(self, **values: Any) -> None:
        """See the class.

        Raises:
            OptionError: A value cannot be used; the message names it.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            place = error.errors(include_url=False, include_input=False)[0]["loc"]
            given = f": {place[0]!s}={values[str(place[0])]!r:.60}" if place and str(place[0]) in values else ""
            problem = first_problem(error).removeprefix("Value error, ")
            known = ", ".join(type(self).model_fields)
            raise UnusableError(
                "option-preprocessing",
                f"preprocessing{given} cannot be used: {problem}; its options are {known}, for "
                "example size=(32, 32), mean=(0.5,), std=(0.25,)",
            ) from None

    @classmethod
    def from_transforms(cls, transforms: Any) -> Preprocessing:
        """Read torchvision's transforms: Resize, CenterCrop, Grayscale, Normalize and conversions, in either version.

        Raises:
            OptionError: There is one that cannot be read, such as those that are drawn at random.

        Example:
            >>> from torchvision import transforms as T
            >>> from brickyard import Preprocessing
            >>> chain = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize([0.5], [0.25])])
            >>> how = Preprocessing.from_transforms(chain)
            >>> how.size, how.fit, how.crop
            ((224, 224), 'crop', 0.875)
        """
        return cls(**_pipelines.readable(_pipelines.from_transforms, transforms))

    @classmethod
    def from_torchvision(cls, weights: Any) -> Preprocessing:
        """Read what belongs to some of torchvision's weights, such as `ResNet50_Weights.DEFAULT`.

        Raises:
            OptionError: They are not those of a classifier.
        """
        return cls(**_pipelines.readable(_pipelines.from_torchvision, weights))

    @classmethod
    def from_timm(cls, model: Any) -> Preprocessing:
        """Read what belongs to a model of timm, or its `pretrained_cfg`.

        Raises:
            OptionError: It has none, or one that cannot be read.
        """
        return cls(**_pipelines.readable(_pipelines.from_timm, model))

    @classmethod
    def from_processor(cls, processor: Any) -> Preprocessing:
        """Read an image processor of transformers, or the content of a `preprocessor_config.json`.

        Raises:
            OptionError: It does what a `Preprocessing` cannot do, such as adding borders.
        """
        return cls(**_pipelines.readable(_pipelines.from_processor, processor))

    @classmethod
    def of_detector(cls, family: str, size: tuple[int, int] | None = None) -> Preprocessing:
        """What is usual for a family of detectors, as their public tools do it.

        Args:
            family: A name that `Boxes.named` knows.
            size: Height and width of the network's input; default: that of most of the family.

        Raises:
            OptionError: The family is unknown.

        Example:
            >>> from brickyard import Preprocessing
            >>> how = Preprocessing.of_detector("yolox", size=(416, 416))
            >>> how.fit, how.place, how.order, round(how.fill * 255)
            ('letterbox', 'corner', 'bgr', 114)
        """
        Boxes.named(family)  # refuses others
        return cls(**{**_DETECTORS[family], **({} if size is None else {"size": size})})

    @property
    def frame(self) -> tuple[Any, ...]:
        """What says which pixels a network is shown: all but colours and normalisation."""
        return self.size, self.fit, self.crop, self.interpolation, self.antialias, self.fill, self.place

    @property
    def crops(self) -> bool:
        """Whether the middle of a larger image is taken."""
        return self.fit == "crop" or (self.fit == "resize" and self.crop < 1)

    @property
    def fills(self) -> bool:
        """Whether something may be left around an image."""
        return self.fit in FILLED

    def changed(self, values: Mapping[str, Any]) -> Preprocessing:
        """The same with other values; what belongs to another `fit` than a new one is left out.

        Raises:
            OptionError: A value cannot be used, or not with the others.

        Example:
            >>> from brickyard import Preprocessing
            >>> how = Preprocessing(size=(32, 32), fit="letterbox", fill=0.5, antialias=False)
            >>> how.changed({"fit": "resize"}) == Preprocessing(size=(32, 32), antialias=False)
            True
        """
        known = self.model_dump()
        if "fit" in values:
            stale: tuple[str, ...] = () if values["fit"] in FILLED else ("fill", "place")
            stale += ("crop",) if values["fit"] == "letterbox" else ()
            known = {name: value for name, value in known.items() if name not in stale}
        return Preprocessing(**known | dict(values))

    @model_validator(mode="after")
    def _what_is_around_an_image_agrees(self) -> Preprocessing:
        if not self.fills and (self.fill or self.place != "centre"):
            raise ValueError(f"fill and place are for fit='letterbox' and fit='pad', and fit is {self.fit!r}")
        if self.fit == "letterbox" and self.crop < 1:
            raise ValueError(f"a letterboxed image is not cropped, and crop is {self.crop:g}: leave it out")
        if self.order == "bgr" and self.channels == 1:
            raise ValueError("order='bgr' is for colours, and channels is 1: leave one of them out")
        return self

    @model_validator(mode="after")
    def _mean_and_std_agree(self) -> Preprocessing:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both, or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std {len(self.std)}: give the same count")
        return self
