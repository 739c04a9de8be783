"""What a user may choose: frozen values, validated when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from brickyard.base._checks import check_choice, is_number, is_whole
from brickyard.base._errors import OptionError
from brickyard.base._messages import brief

Choose = Literal["confident", "random", "all"]
Heal = Literal["refit", "moments", "none"]
Form = Literal["parallel", "padded", "grouped", "union", "auto"]
Duplicates = Literal["error", "average", "max", "rename"]
Spread = Literal["auto", "relevance", "even"]
Optimizer = Literal["sgd", "adamw"]
Precision = Literal["full", "bfloat16", "float16", "auto"]
Norms = Literal["trained", "frozen"]
Select = Literal["mda", "damage", "l1", "fpgm", "hrank", "activation", "taylor", "random"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds of component locating; the defaults are the paper's.

    Attributes:
        alpha: A relative contribution above this counts, for convolutions.
        beta: An input channel with a share of counts above this is relevant, for convolutions.
        linear_alpha: `alpha` for linear layers.
        linear_beta: `beta` for linear layers.

    Raises:
        OptionError: A threshold is outside [0, 1).

    Example:
        >>> from brickyard import Thresholds
        >>> Thresholds(alpha=0.2, beta=0.1)
        Thresholds(alpha=0.2, beta=0.1, linear_alpha=0.4, linear_beta=0.3)
    """

    alpha: float = 0.3
    beta: float = 0.2
    linear_alpha: float = 0.4
    linear_beta: float = 0.3

    def __post_init__(self) -> None:
        for name, value in self.as_dict().items():
            if not is_number(value) or not 0 <= value < 1:
                raise OptionError(
                    "option-range", f"threshold {name}={brief(value)} is not in [0, 1); the paper uses 0.2 to 0.4"
                )
            object.__setattr__(self, name, float(value))

    def as_dict(self) -> dict[str, float]:
        """Names and values."""
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "linear_alpha": self.linear_alpha,
            "linear_beta": self.linear_beta,
        }

    def of(self, linear: bool) -> tuple[float, float]:
        """(alpha, beta) for a linear layer or a convolution."""
        return (self.linear_alpha, self.linear_beta) if linear else (self.alpha, self.beta)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a component may cost, as a share of its source.

    Attributes:
        flops: Share of the source's floating-point operations, in (0, 1].
        parameters: Share of the source's parameters, in (0, 1].
        spread: Where to spend it, if channels are ranked by scores. "relevance": wherever they are highest, over
            all layers; "even": about the same share of every axis; "auto": even for FLOPs, relevance for parameters.
        multiple: Axes that are cut keep a multiple of so many channels. Kernels are fast on multiples of 8 or more
            (and slow on some other counts); 1 keeps what is most relevant to the channel.

    Raises:
        OptionError: Not exactly one of `flops` and `parameters` is given, or it is outside (0, 1], or `multiple` is
            no whole number above 0.

    Example:
        >>> from brickyard import Budget
        >>> Budget(flops=0.5).resource
        'flops'
    """

    flops: float | None = None
    parameters: float | None = None
    spread: Spread = "auto"
    multiple: int = 1

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"flops": self.flops, "parameters": self.parameters}
        given = {name: share for name, share in given.items() if share is not None}
        if len(given) != 1:
            raise OptionError(
                "option-conflict", f"a budget needs one of flops= and parameters=; {len(given)} were given: keep one"
            )
        (name, share), *_ = given.items()
        if not is_number(share) or not 0 < share <= 1:
            raise OptionError(
                "option-range", f"budget {name}={brief(share)} is not a share in (0, 1]; 0.5 is half of the source's"
            )
        check_choice("spread", self.spread, Spread)
        object.__setattr__(self, name, float(share))
        if not is_whole(self.multiple) or self.multiple < 1:
            raise OptionError(
                "option-range", f"budget multiple={brief(self.multiple)} is no whole number above 0; 8 is a good one"
            )

    @property
    def resource(self) -> Literal["flops", "parameters"]:
        """What is limited."""
        return "flops" if self.flops is not None else "parameters"

    @property
    def share(self) -> float:
        """How much of it may be left."""
        return float(self.flops if self.flops is not None else self.parameters or 0.0)


LR = {"sgd": 0.01, "adamw": 3e-4}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a network is trained.

    Attributes:
        epochs: Passes over the images, at most.
        optimizer: "sgd" (momentum 0.9, Nesterov) or "adamw".
        lr: The highest learning rate; None: 0.01 for sgd, 3e-4 for adamw. It rises over the warm-up and falls to
            almost zero along a cosine.
        warmup: Share of the steps in which it rises, in [0, 1).
        weight_decay: Decay of the weights a step, times the rate.
        batch_size: Images a step.
        patience: Stop after so many epochs in a row without a better score on the validation images; None: never.
        augment: Shift every image by up to an eighth of its size, and mirror half of them.
        norms: "frozen": batch norms keep the means and variances that they have. "trained": they follow the images.
        precision: "full"; "bfloat16" or "float16": mixed precision where the device has it; "auto": bfloat16 on a GPU.
        seed: Seed of order, augmentation and dropout.

    Raises:
        OptionError: A value cannot be used.

    Example:
        >>> from brickyard.base._options import Schedule
        >>> Schedule(optimizer="adamw").rate
        0.0003
    """

    epochs: int = 10
    optimizer: Optimizer = "sgd"
    lr: float | None = None
    warmup: float = 0.2
    weight_decay: float = 5e-4
    batch_size: int = 64
    patience: int | None = None
    augment: bool = False
    norms: Norms = "trained"
    precision: Precision = "full"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, Optimizer)
        check_choice("norms", self.norms, Norms)
        check_choice("precision", self.precision, Precision)
        wanted = {"epochs": 1, "batch_size": 2, "patience": 1, "seed": 0}
        for name, least in wanted.items():
            value = getattr(self, name)
            if not (value is None and name == "patience") and (type(value) is not int or value < least):
                raise OptionError(
                    "option-range", f"{name}={value!r} was given; training needs a whole number of at least {least}"
                )
        bounds: dict[str, tuple[float, float]] = {
            "lr": (1e-30, math.inf),
            "warmup": (0, 1),
            "weight_decay": (0, math.inf),
        }
        for name, (low, high) in bounds.items():
            number = self.rate if name == "lr" else getattr(self, name)
            if not isinstance(number, int | float) or not low <= number < high:
                raise OptionError(
                    "option-range",
                    f"{name}={number!r} was given; lr is above 0 (0.1 for a new network, 0.01 for a trained one), "
                    "warmup in [0, 1), weight_decay 0 or more",
                )

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return LR[self.optimizer] if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much a student heeds its teacher (Hinton et al., 2015, arXiv 1503.02531).

    Attributes:
        temperature: What both sides' logits are divided by, before they are compared as probabilities.
        weight: Share of the teacher in the loss, in [0, 1]; the labels have the rest.
        features: Weight of the features' mean squared error, in units of the teacher's variance; only between a
            source and its component, where the channels of one are known to be channels of the other.

    Raises:
        OptionError: A value cannot be used.

    Example:
        >>> from brickyard.base._options import Distillation
        >>> Distillation(weight=0.9).temperature
        4.0
    """

    temperature: float = 4.0
    weight: float = 0.5
    features: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 1e-3, 1e3), ("weight", 0, 1), ("features", 0, 1e6)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise OptionError(
                    "option-range",
                    f"{name}={value!r} of a distillation is not in [{low:g}, {high:g}]; 4, 0.5, 0 are usual",
                )
