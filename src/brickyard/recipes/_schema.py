"""The schema of recipes: sections and keys, with their types and bounds."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from brickyard.base._options import Budget, Choose, Duplicates, Form, Heal, Select, Spread, Thresholds
from brickyard.base._records import Frozen, Preprocessing

VERSION = 1
EVERY = "*"  # evaluate.data as one text: of every source
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")

INNER = re.compile(r"(?<=[^\s\[\]{},])\?(?=[^\s\[\]{},])")  # YAML 1.2 has it in texts between brackets, 1.1 not


# -- what a recipe says ------------------------------------------------------------------------------------


def _split(value: Any) -> Any:
    """A text by commas, or a list as it is."""
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _one(value: Any) -> Any:
    """A text as a list of one."""
    return [value] if isinstance(value, str) else value


def _size(value: Any) -> Any:
    """32, 32x48, or a list of two."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, str):
        sides = value.split("x")
        if len(sides) > 2 or not all(side.isdigit() for side in sides):
            raise ValueError("give 32, or 32x48: height and width")
        return sides[0], sides[-1]
    return value


def _for_all(value: Any) -> Any:
    return {EVERY: value} if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
Threshold = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_one), Field(min_length=1)]
Items = Annotated[tuple[Text, ...], BeforeValidator(_split), Field(min_length=1)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split), Field(min_length=1, max_length=4)]
Side = Annotated[int, Field(ge=1, le=16384)]


class Section(Frozen):
    """A part of a recipe; keys are written with dashes."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )

    def said(self, *leave_out: str) -> dict[str, Any]:
        """The section as JSON values, defaults included, as a recipe spells its keys."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(leave_out), exclude_none=True)


class PreprocessingRecipe(Section):
    """What is done to raw images; what is left out stays as the source has it."""

    size: Annotated[tuple[Side, Side], BeforeValidator(_size)] | None = None
    fit: Literal["resize", "pad"] | None = None
    mean: Numbers | None = None
    std: Numbers | None = None

    def value(self) -> Preprocessing:
        """The same as the library's own value."""
        return Preprocessing(**{key: item for key, item in self.model_dump().items() if item is not None})


class LocateRecipe(Section):
    """How channels are located; see `brickyard.locate`."""

    choose: Choose = "confident"
    per_class: Count = 50
    alpha: Threshold = 0.3
    beta: Threshold = 0.2
    linear_alpha: Threshold = 0.4
    linear_beta: Threshold = 0.3
    seed: Seed = 0

    def thresholds(self) -> Thresholds:
        """The library's own value."""
        return Thresholds(
            alpha=self.alpha, beta=self.beta, linear_alpha=self.linear_alpha, linear_beta=self.linear_beta
        )


class TrainRecipe(Section):
    """A source that is trained; see `brickyard train`."""

    network: Text
    data: Text
    classes: Texts | None = None
    epochs: Count = 10
    lr: Annotated[float, Field(gt=0)] = 0.1
    batch_size: Annotated[int, Field(ge=2)] = 64
    augment: bool = False
    seed: Seed = 0


class SourceRecipe(Section):
    """A source: a network with weights, or one that is trained first."""

    network: Text | None = None
    train: TrainRecipe | None = None
    data: Text | None = None
    weights: Text | None = None
    class_names: Items | None = None
    preprocessing: PreprocessingRecipe | None = None
    locate: LocateRecipe = LocateRecipe()

    @property
    def images(self) -> str:
        """The text of its training images."""
        return self.data or (self.train.data if self.train else "")


class ComponentRecipe(Section):
    """A component; see `brickyard.disassemble`."""

    source: Text
    task: Texts
    flops: Share | None = None
    parameters: Share | None = None
    spread: Spread = "auto"
    multiple: Count = 1
    alpha: Threshold | None = None
    beta: Threshold | None = None
    linear_alpha: Threshold | None = None
    linear_beta: Threshold | None = None
    select: Select = "mda"
    reject: bool = False
    heal: Heal = "refit"
    heal_images: Count = 400
    ridge: Annotated[float, Field(ge=0)] = 1e-3
    seed: Seed = 0

    THRESHOLDS: ClassVar = ("alpha", "beta", "linear_alpha", "linear_beta")

    def budget(self) -> Budget | None:
        """The library's own value, where a budget was given."""
        if self.flops is None and self.parameters is None:
            return None
        return Budget(flops=self.flops, parameters=self.parameters, spread=self.spread, multiple=self.multiple)

    def thresholds(self, base: Thresholds) -> Thresholds:
        """Those of the relevances, with what was given in their place."""
        given = {name: value for name in self.THRESHOLDS if (value := getattr(self, name)) is not None}
        return Thresholds(**{**base.as_dict(), **given})


class AssemblyRecipe(Section):
    """The classifier made of the components; see `brickyard.assemble`."""

    parts: Texts | None = None
    scaling: Text = "none"
    form: Form = "parallel"
    shots: Count | None = None
    on_duplicate: Duplicates = "error"
    votes: bool = False
    seed: Seed = 0


class EvaluateRecipe(Section):
    """What is scored; see `brickyard.evaluate`."""

    data: Annotated[dict[str, Text], BeforeValidator(_for_all)]
    max_images: Count | None = None
    latency: bool = False

    def of(self, source: str) -> str:
        """The text of the test images of a source."""
        return self.data.get(source) or self.data[EVERY]


class OutputsRecipe(Section):
    """Where results go."""

    folder: Text = "out"


class Recipe(Section):
    """All of a recipe.

    Example:
        >>> from brickyard.recipes._reader import Recipe
        >>> recipe = Recipe(
        ...     brickyard=1,
        ...     sources={"a": {"network": "zoo:lenet5", "weights": "a.safetensors", "data": "digits"}},
        ...     components={"low": {"source": "a", "task": "0-2", "flops": 0.5}},
        ... )
        >>> recipe.components["low"].budget().share
        0.5
    """

    brickyard: int
    name: Text | None = None
    license: Text | None = None
    sources: dict[str, SourceRecipe]
    components: dict[str, ComponentRecipe]
    assembly: AssemblyRecipe | None = None
    evaluate: EvaluateRecipe | None = None
    outputs: OutputsRecipe = OutputsRecipe()

    @property
    def used(self) -> tuple[str, ...]:
        """The sources that components come from, in the order of the recipe."""
        wanted = {component.source for component in self.components.values()}
        return tuple(name for name in self.sources if name in wanted)

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that are assembled, in order."""
        return (self.assembly.parts if self.assembly else None) or tuple(self.components)
