"""Declares every option of the verbs, each once.

A new option is one entry here; see `brickyard.base._declare` for what reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required, TypedDict

from brickyard.base._boxes import Boxes, outputs_asked
from brickyard.base._checks import decision_thresholds, other_names, output_name, seed_of
from brickyard.base._declare import Opt, Table, check_fields, opt
from brickyard.base._errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from brickyard.base._records import Preprocessing

    Module = nn.Module
else:  # types that are not loaded for the sake of a declaration
    Module = Preprocessing = Any

Choose = Literal["confident", "random", "all"]
Heal = Literal["refit", "distil", "moments", "none"]
Form = Literal["parallel", "padded", "grouped", "union", "cascade", "merged", "auto"]
Duplicates = Literal["error", "average", "max", "rename"]
Allocation = Literal["auto", "uniform", "global"]
Optimizer = Literal["sgd", "adamw"]
Precision = Literal["full", "bfloat16", "float16", "auto"]
Norms = Literal["trained", "frozen"]

CRITERIA = Table("brickyard.selection._importance", "CRITERIA", "criterion")
SCALINGS = Table("brickyard.scaling._strategies", "SCALINGS", "scaling")

_THRESHOLD: dict[str, Any] = {"least": 0, "below": 1, "owner": "threshold", "advice": "the paper uses 0.2 to 0.4"}


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds for locating components; the defaults are the paper's.

    Attributes:
        alpha: For convolutions, relative contributions above this count.
        beta: For convolutions, input channels with a share of counts above this are relevant.
        linear_alpha: `alpha` for linear layers.
        linear_beta: `beta` for linear layers.

    Raises:
        OptionError: A threshold is outside [0, 1).

    Example:
        >>> from brickyard import Thresholds
        >>> Thresholds(alpha=0.2, beta=0.1)
        Thresholds(alpha=0.2, beta=0.1, linear_alpha=0.4, linear_beta=0.3)
    """

    alpha: float = opt(0.3, help="Set the contribution threshold for convolutions.", **_THRESHOLD)
    beta: float = opt(0.2, help="Set the relevance threshold for convolutions.", **_THRESHOLD)
    linear_alpha: float = opt(0.4, help="Set the contribution threshold for linear layers.", **_THRESHOLD)
    linear_beta: float = opt(0.3, help="Set the relevance threshold for linear layers.", **_THRESHOLD)

    def __post_init__(self) -> None:
        check_fields(self)

    def as_dict(self) -> dict[str, float]:
        """Return the thresholds by name."""
        return dict(vars(self))

    def of(self, linear: bool) -> tuple[float, float]:
        """Return (alpha, beta) for a linear layer or a convolution."""
        return (self.linear_alpha, self.linear_beta) if linear else (self.alpha, self.beta)


_SHARE: dict[str, Any] = {
    "above": 0, "most": 1, "noun": "a share ", "owner": "budget", "advice": "0.5 is half of the source's",
}  # fmt: skip


LIMITS = ("flops", "parameters", "agreement")  # a budget has one of them
JOINT = ("flops", "parameters", "round_to", "factors", "rotate")  # what a budget of several parts says


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The maximum cost of a component, as a share of its source, or the least that it must agree with it.

    Given to `assemble`, it is the maximum cost of all parts together, as a share of what they cost.

    Attributes:
        flops: Share of the source's floating-point operations, in (0, 1].
        parameters: Share of the source's parameters, in (0, 1].
        agreement: Share of the images held back on which the component must give its source's answer, in (0, 1]; the
            component is the smallest found that does.
        allocation: How to divide the budget among the axes. "global": rank the channels of all axes together;
            "uniform": keep about the same share of every axis; "auto": uniform for FLOPs, global for parameters.
        round_to: Keep a multiple of this many channels on every axis that is cut. Kernels are fast on multiples of 8
            or more (and slow on some other counts); 1 keeps exactly the most relevant channels. None: 1; with
            select="damage", 4 on axes of 32 channels or more.
        factors: Whether convolutions may become pairs of thinner ones, a column and a row, whose middle the budget
            may cut too. None: with select="damage". False: keep a pure sub-network of the source.
        rotate: Whether norms over channels may be rewritten so that the streams that they normalise can be cut: the
            residual stream of a transformer is turned to its principal directions where nothing but norms reads it;
            other norms are written as steps. None: with select="damage". False: such streams stay whole.

    Raises:
        OptionError: Not exactly one of `flops`, `parameters` and `agreement` is given, or a value is out of range.

    Example:
        >>> from brickyard import Budget
        >>> Budget(flops=0.5).resource
        'flops'
    """

    flops: float | None = opt(
        None, unset="no budget", **_SHARE,
        help="Keep at most this share of the FLOPs of the source with all its classes (of the parts, when assembling), "
        "in (0, 1].",
    )  # fmt: skip
    parameters: float | None = opt(
        None, unset="no budget", **_SHARE,
        help="Keep at most this share of the parameters of the source with all its classes (of the parts, when "
        "assembling), in (0, 1].",
    )  # fmt: skip
    agreement: float | None = opt(
        None, help="Keep the least that agrees with the source on this share of the images held back, in (0, 1].",
        unset="no budget", above=0, most=1, noun="a share ", owner="budget", advice="0.98 is 98 % of them",
    )  # fmt: skip
    allocation: Allocation = opt("auto", help="Distribute the budget over the axes", owner="budget")
    round_to: int | None = opt(
        None, least=1, owner="budget", advice="8 is a good value", unset="4 on wide axes with damage, else 1",
        help="Keep a multiple of this many channels on every axis that is cut; 8 runs fast.",
    )  # fmt: skip
    factors: bool | None = opt(
        None, owner="budget", unset='with select="damage"',
        help="Replace convolutions by pairs of thinner ones where that saves more than it costs.",
    )  # fmt: skip
    rotate: bool | None = opt(
        None, owner="budget", unset='with select="damage"',
        help="Rewrite norms over channels so that the streams behind them can be cut: turned to their principal "
        "directions where possible.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        count = sum(share is not None for share in (getattr(self, name) for name in LIMITS))
        if count != 1:
            raise OptionError(
                "option-conflict",
                f"a budget needs one of flops=, parameters= and agreement=; {count} were given: keep one",
            )
        check_fields(self)

    @property
    def resource(self) -> Literal["flops", "parameters"]:
        """The limited resource; that which is saved where agreement is asked for."""
        return "flops" if self.parameters is None else "parameters"

    @property
    def share(self) -> float:
        """The largest share that may remain; 0 where agreement is asked for."""
        return float(self.flops if self.flops is not None else self.parameters or 0.0)

    def limited(self, share: float) -> Budget:
        """The same budget with another share of its resource."""
        return replace(self, flops=share) if self.resource == "flops" else replace(self, parameters=share)

    @property
    def uniform(self) -> bool:
        """Whether every axis keeps about the same share."""
        return self.allocation == "uniform" or (self.allocation == "auto" and self.resource == "flops")

    def step(self, size: int) -> int:
        """How many channels of an axis of that size stay or go together, where damage is measured."""
        return self.round_to or (4 if size >= 32 else 1)

    def record(self, select: str, changed: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return the manifest's entry.

        Args:
            select: The criterion that ranked the channels.
            changed: What was rewritten before channels were chosen, and how often.
        """
        rounded = {"round_to": self.round_to} if (self.round_to or 1) > 1 else {}
        written = {name: count for name, count in (changed or {}).items() if count}
        limit: dict[str, Any] = {"agreement": self.agreement}
        if self.agreement is None:
            limit = {self.resource: self.share}
        return {**limit, "allocation": self.allocation, "select": select, **rounded, **written}


LR = {"sgd": 0.01, "adamw": 3e-4}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train a network.

    Attributes:
        epochs: Maximum number of epochs.
        optimizer: "sgd" (momentum 0.9, Nesterov) or "adamw".
        lr: Peak learning rate; None: 0.01 for sgd, 3e-4 for adamw. The rate rises during warm-up, then falls to
            almost zero along a cosine.
        warmup: Share of the steps spent on warm-up, in [0, 1).
        weight_decay: Decay of the weights per step, times the rate.
        batch_size: Images per step.
        patience: Stop after this many epochs in a row without a better score on the validation images; None: never.
        augment: Shift every image by up to an eighth of its size, and mirror half of them.
        norms: "frozen": batch norms keep their means and variances. "trained": they follow the images.
        precision: "full"; "bfloat16" or "float16": mixed precision if the device has it; "auto": bfloat16 on a GPU.
        seed: Seed of order, augmentation and dropout.

    Raises:
        OptionError: A value cannot be used.

    Example:
        >>> from brickyard.training import TrainingOptions
        >>> TrainingOptions(optimizer="adamw").rate
        0.0003
    """

    epochs: int = opt(10, least=1, help="Train for at most this many epochs.")
    optimizer: Optimizer = opt("sgd", help="Choose the optimizer")
    lr: float | None = opt(
        None, above=0, help="Set the peak learning rate.", unset="0.01, or 3e-4 for adamw",
        advice="0.1 suits a new network, 0.01 a trained one",
    )  # fmt: skip
    warmup: float = opt(0.2, least=0, below=1, help="Warm up the learning rate over this share of the steps.")
    weight_decay: float = opt(5e-4, least=0, help="Set the weight decay.")
    batch_size: int = opt(64, least=2, help="Use this many images per training step.")
    patience: int | None = opt(None, least=1, help="Stop after this many epochs without improvement.", unset="never")
    augment: bool = opt(False, help="Augment the images with random shifts and mirroring.")
    norms: Norms = opt("trained", help="Choose how batch norms treat their statistics")
    precision: Precision = opt("full", help="Choose the numeric precision; auto means bfloat16 on a GPU")
    seed: int = opt(0, least=0, help="Set the random seed for data order, augmentation and dropout.")

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return LR[self.optimizer] if self.lr is None else self.lr


_USUAL: dict[str, Any] = {"owner": "distillation", "advice": "4, 0.5 and 0 are usual"}


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How strongly a student follows its teacher (Hinton et al., 2015, arXiv 1503.02531).

    Attributes:
        temperature: Divisor of both sides' logits before they are compared as probabilities.
        weight: The teacher's share of the loss, in [0, 1]; the labels have the rest.
        features: Weight of the features' mean squared error, in units of the teacher's variance; only between a
            source and its component, whose channels are known to correspond.

    Raises:
        OptionError: A value cannot be used.

    Example:
        >>> from brickyard.training import Distillation
        >>> Distillation(weight=0.9).temperature
        4.0
    """

    temperature: float = opt(
        4.0, least=1e-3, most=1e3, help="Divide logits by this temperature before comparing them.", **_USUAL
    )
    weight: float = opt(
        0.5, least=0, most=1, help="Set the teacher's share of the loss; the labels have the rest.", **_USUAL
    )
    features: float = opt(
        0.0, least=0, most=1e6, help="Set the weight of the feature loss on the kept channels.", **_USUAL
    )

    def __post_init__(self) -> None:
        check_fields(self)


Seed = Annotated[
    int, Opt(default=0, least=-(2**63), most=2**63 - 1, validate=seed_of, only="shell", help="Set the random seed.")
]
BatchSize = Annotated[int, Opt(default=64, least=1, only="shell", help="Process images in batches of this size.")]
Resume = Annotated[
    str | Path | None,
    Opt(default=None, help="Save progress in this folder; an identical call resumes from it.", unset="none",
        shell=Path, only="shell"),
]  # fmt: skip


DTYPES = {
    "float32": "the usual type",
    "float64": "exact, at half the speed or less",
    "float16": "for GPUs; half the memory, and a small range",
    "bfloat16": "for GPUs; half the memory, and few digits",
}


class PlaceOptions(TypedDict, total=False):
    """Where commands compute, and with which numbers; in Python, of `brickyard.load` and `load_source`."""

    device: Annotated[
        str,
        Opt(default="auto", only="shell",
            help="Compute on this device: cpu, cuda, cuda:1 or mps; auto uses a CUDA GPU if there is one."),
    ]  # fmt: skip
    dtype: Annotated[
        str | None,
        Opt(default=None, choices=DTYPES, unset="that of the files", only="shell",
            help="Convert networks to this data type, also in the files that are written"),
    ]  # fmt: skip


class LocateOptions(TypedDict, total=False):
    """Options of `brickyard.locate`."""

    classes: Annotated[
        Sequence[str] | None,
        Opt(default=None, help="Name the source's classes.", unset="the data's names, or numbers"),
    ]
    preprocessing: Annotated[
        Preprocessing | None,
        Opt(default=None, help="Preprocess the images this way before they enter the model.", unset="nothing"),
    ]
    outputs: Annotated[
        str | Boxes | None,
        Opt(default=None, validate=outputs_asked, shell=str,
            help="Let an image belong to one class or to several, or show boxes: one, several, a family of detectors "
                 "(yolox, nanodet, yolov5, yolov8, retinanet, fcos, ssd, ssdlite), or a kind of your own.",
            unset="several for a model of transformers that was trained for it, else one"),
    ]  # fmt: skip
    output: Annotated[
        str | int | None,
        Opt(default=None, validate=output_name, only="python", unset="the one called logits, or the only one",
            help="Take the logits from this part of what the model returns: logits, 1 or head.logits."),
    ]  # fmt: skip
    choose: Annotated[Choose, Opt(default="confident", help="Choose the images of each class used for locating")]
    per_class: Annotated[int, Opt(default=50, least=1, help="Use this many images per class for locating.")]
    task: Annotated[
        Sequence[int | str] | Mapping[str, Any] | None,
        Opt(default=None, help="Locate only these classes.", unset="all"),
    ]
    thresholds: Annotated[
        Thresholds | None,
        Opt(default=None, help="Count contributions and channels with these thresholds.", unset="the paper's",
            advice="give brickyard.Thresholds(alpha=..., beta=...)"),
    ]  # fmt: skip
    keep_sums: Annotated[
        bool | None,
        Opt(default=None, help="Keep the contribution sums of every class and layer.", only="python",
            unset="when those of all the source's classes take at most 256 MiB"),
    ]  # fmt: skip
    batch_size: BatchSize
    seed: Seed
    accuracy: Annotated[
        float | None,
        Opt(default=None, least=0, most=1, noun="a share ", only="python",
            help="Warn if the source classifies far fewer images correctly than this share, its known accuracy.",
            unset="no known accuracy"),
    ]  # fmt: skip
    name: Annotated[
        str | None,
        Opt(default=None, help="Record the source under this name.", unset="the model's class", only="python"),
    ]
    resume: Resume


class BoxOptions(TypedDict, total=False):
    """Which of the boxes that a detector finds are told of."""

    score: Annotated[float, Opt(default=0.25, least=0, most=1, help="Show boxes with a score above this.")]
    iou: Annotated[
        float,
        Opt(default=0.5, least=0, most=1,
            help="Of boxes of one class that overlap by more (intersection over union), show the surest alone."),
    ]  # fmt: skip
    most: Annotated[int, Opt(default=300, least=1, help="Show at most this many boxes of an image, the surest.")]


class DetectOptions(BoxOptions, total=False):
    """Options of a detector's answers."""

    batch_size: BatchSize


class DisassembleOptions(TypedDict, total=False):
    """Options of `brickyard.disassemble`."""

    task: Required[
        Annotated[
            Sequence[int | str] | Mapping[str, Any],
            Opt(help="Cut for these classes, by name or index, in the order of the outputs; animal=cat+dog is one."),
        ]
    ]
    thresholds: Annotated[
        Thresholds | None,
        Opt(default=None, help="Keep the channels relevant under these thresholds.", unset="those of the relevances",
            inherits="the relevances', or ", advice="give brickyard.Thresholds(alpha=..., beta=...)"),
    ]  # fmt: skip
    budget: Annotated[
        Budget | None,
        Opt(default=None, help="Keep the best channels within this budget, instead of using thresholds.", unset="none",
            advice="give brickyard.Budget(flops=...) or Budget(parameters=...)"),
    ]  # fmt: skip
    decision_thresholds: Annotated[
        Mapping[str, float] | float | None,
        Opt(default=None, validate=decision_thresholds, shell=str, unset="0.5",
            help="With outputs several, include classes above this probability: 0.3, or cat=0.3,dog=0.7."),
    ]  # fmt: skip
    select: Annotated[
        str | None,
        Opt(default=None, choices=CRITERIA, help="With a budget, choose channels by this criterion",
            unset="damage where there are images, else mda"),
    ]  # fmt: skip
    reject: Annotated[bool, Opt(default=False, help='Add an output for "none of these".')]
    heal: Annotated[
        Heal, Opt(default="refit", help="Choose how to repair the component; only distil uses gradients, after a refit")
    ]
    minutes: Annotated[
        float | None,
        Opt(default=None, above=0, help="With heal distil, train towards the source for this long.", unset="5"),
    ]
    images: Annotated[
        Any,
        Opt(default=None, help="Heal with these images, as for `locate`, or with an unlabelled tensor.",
            unset="the images recorded with the relevances"),
    ]  # fmt: skip
    more_images: Annotated[
        Any,
        Opt(default=None, only="python", unset="none",
            help="Heal with these images too, without labels: a folder, or anything that a component predicts."),
    ]  # fmt: skip
    heal_images: Annotated[
        int, Opt(default=400, least=1, help="Heal with at most this many images, drawn evenly from the task's classes.")
    ]
    ridge: Annotated[
        float | None,
        Opt(default=None, least=0, help="Set the ridge (L2) strength of the refit.",
            unset="what suits each layer on images held back"),
    ]  # fmt: skip
    batch_size: BatchSize
    seed: Seed


class AssembleOptions(TypedDict, total=False):
    """Options of `brickyard.assemble`."""

    without: Annotated[Sequence[str], Opt(default=(), help="Leave these classes out.")]
    same: Annotated[
        Mapping[str, str] | None,
        Opt(default=None, validate=other_names, shell=str, only="shell", unset="none",
            help="Rename classes of parts first, so that aeroplane=airplane is one class."),
    ]  # fmt: skip
    budget: Annotated[
        Budget | None,
        Opt(default=None, help="Cut the parts further, so that together they fit this budget.", unset="none",
            words=JOINT,
            advice="give brickyard.Budget(flops=...) or Budget(parameters=...)"),
    ]  # fmt: skip
    form: Annotated[Form, Opt(default="parallel", help="Run the parts in this form; auto measures which is fastest")]
    scaling: Annotated[
        str, Opt(default="auto", choices=SCALINGS, help="Make the parts' logits comparable with this method")
    ]
    images: Annotated[
        Any,
        Opt(default=None, help="Calibrate with these labelled images: a list with one entry per part.", unset="none"),
    ]
    calibration: Annotated[
        Any,
        Opt(default=None, only="python", unset="none; with a budget, `images`",
            help="With a budget or form merged: images to cut or merge with, labelled or not; a list with one entry "
            "per part. With form cascade: images of the kind that it will see, without labels, in the shares that it "
            "will see; a folder, anything that an assembly predicts, data sets, or a list of these."),
    ]  # fmt: skip
    agreement: Annotated[
        float | None,
        Opt(default=None, above=0, below=1, noun="a share ", unset="0.99", only="shell",
            help="With form cascade, answer at least this share of images as all parts together would; with form "
            "merged, as each part would alone."),
    ]  # fmt: skip
    shots: Annotated[
        int | None,
        Opt(
            default=None, least=1, help="Calibrate with at most this many images per class.", unset="all", only="shell"
        ),
    ]
    on_duplicate: Annotated[Duplicates, Opt(default="error", help="Resolve class names that several parts share")]
    votes: Annotated[
        bool | None,
        Opt(
            default=None,
            unset="with scaling auto, where parts can",
            help="Let parts cut with reject vote on those classes of other parts that they know.",
        ),
    ]
    source: Annotated[
        Module | None,
        Opt(default=None, help="Fill in the weights of a union from the parts' common source.", unset="none"),
    ]
    seed: Seed


class RefineOptions(TypedDict, total=False):
    """Options of `brickyard.assembly.refine`."""

    margin: Annotated[
        float,
        Opt(default=0.1, least=0, most=1, noun="a share ",
            help="Enlarge a box by this share of its width and height to each side before it is named further."),
    ]  # fmt: skip
    crops: Annotated[
        int,
        Opt(default=100, least=1, most=300,
            help="Name at most this many boxes of a class and an image further, the surest."),
    ]  # fmt: skip


class EvaluateOptions(TypedDict, total=False):
    """Options of `brickyard.evaluate`."""

    source: Annotated[
        Module | Sequence[Module | None] | None,
        Opt(default=None, help="Also score the source, or a list with one source per part.", unset="none"),
    ]
    including_calibration: Annotated[
        bool, Opt(default=False, help="Also score images that were used to locate, heal or scale.")
    ]
    latency: Annotated[bool, Opt(default=True, help="Measure the latency of one batch.")]
    latency_batch: Annotated[int, Opt(default=1, least=1, help="Measure latency with batches of this size.")]
    batch_size: Annotated[int, Opt(default=128, least=1, only="shell", help="Score images in batches of this size.")]


class FinetuneOptions(TypedDict, total=False):
    """Options of `brickyard.finetune`."""

    training: Annotated[
        TrainingOptions | None,
        Opt(default=None, help="Train with these options.", unset="ten epochs of SGD",
            advice="give brickyard.training.TrainingOptions(epochs=...)"),
    ]  # fmt: skip
    validation: Annotated[
        Any,
        Opt(default=0.1, shell=float,
            help="Select the best epoch on this share of the images, or on other images; 0 keeps the last epoch."),
    ]  # fmt: skip
    teacher: Annotated[
        Module | None,
        Opt(
            default=None,
            help="Distil from a model that knows the classes, or from the component's source.",
            unset="none",
        ),
    ]
    distillation: Annotated[
        Distillation | None,
        Opt(default=None, help="Set the influence of the teacher.", unset="half of the loss",
            advice="give brickyard.training.Distillation(weight=...)"),
    ]  # fmt: skip
    resume: Resume


class DistilOptions(TypedDict, total=False):
    """Options of `brickyard.training.distil`."""

    like: Required[
        Annotated[
            str | Module,
            Opt(help="Train a student of this architecture: zoo:NAME, torchvision:NAME, timm:NAME or file.py:function.",
                shell=str),
        ]
    ]  # fmt: skip
    epochs: Annotated[
        int | None,
        Opt(default=None, least=1, help="Train for this many epochs.",
            unset="as many as make 2,000 steps, at most 200"),
    ]  # fmt: skip
    lr: Annotated[float, Opt(default=2e-3, above=0, help="Set the peak learning rate of AdamW.")]
    batch_size: Annotated[int, Opt(default=64, least=2, help="Use this many images per training step.")]
    temperature: Annotated[
        float, Opt(default=4.0, least=1e-3, most=1e3, help="Divide logits by this temperature before comparing them.")
    ]
    seed: Seed
