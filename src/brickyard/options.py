"""What a user may choose: frozen values, validated when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from brickyard.errors import OptionError

__all__ = ["Budget", "Choose", "Duplicates", "Form", "Heal", "Select", "Spread", "Thresholds", "check_choice"]

Choose = Literal["confident", "random", "all"]
Heal = Literal["refit", "moments", "none"]
Form = Literal["parallel", "padded", "grouped", "union", "auto"]
Duplicates = Literal["error", "average", "max", "rename"]
Spread = Literal["auto", "relevance", "even"]
Select = Literal["mda", "damage", "l1", "activation", "taylor", "random"]


def check_choice(name: str, value: object, choices: object) -> None:
    """Check a value against a `Literal`.

    Raises:
        OptionError: It is not among the choices.
    """
    allowed = get_args(choices)
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is not a choice; use one of {', '.join(map(repr, allowed))}")


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
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise OptionError(f"threshold {name}={value!r} is not in [0, 1); the paper uses 0.2 to 0.4")

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
        given = {"flops": self.flops, "parameters": self.parameters}
        given = {name: share for name, share in given.items() if share is not None}
        if len(given) != 1:
            raise OptionError(f"a budget needs one of flops= and parameters=; {len(given)} were given: keep one")
        (name, share), *_ = given.items()
        if not isinstance(share, int | float) or not math.isfinite(share) or not 0 < share <= 1:
            raise OptionError(f"budget {name}={share!r} is not a share in (0, 1]; 0.5 is half of the source's")
        check_choice("spread", self.spread, Spread)
        if not isinstance(self.multiple, int) or self.multiple < 1:
            raise OptionError(f"budget multiple={self.multiple!r} is no whole number above 0; 8 is a good one")

    @property
    def resource(self) -> Literal["flops", "parameters"]:
        """What is limited."""
        return "flops" if self.flops is not None else "parameters"

    @property
    def share(self) -> float:
        """How much of it may be left."""
        return float(self.flops if self.flops is not None else self.parameters or 0.0)
