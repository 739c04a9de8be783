"""The schema of recipes: sections and keys, with their types and bounds."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, create_model

from brickyard.base._declare import Opt, flat
from brickyard.base._frozen import Frozen
from brickyard.base._messages import near
from brickyard.base._options import AssembleOptions, DisassembleOptions, EvaluateOptions, LocateOptions, TrainingOptions
from brickyard.base._preprocessing import Fit, Order, Place
from brickyard.base._records import Preprocessing

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


def _word(value: Any) -> Any:
    """A whole number as a text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


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
Texts = Annotated[tuple[Text, ...], BeforeValidator(_one), Field(min_length=1)]
Task = Annotated[
    Annotated[Texts, Tag("list")] | Annotated[dict[Text, Texts], Tag("mapping")],
    Discriminator(lambda value: "mapping" if isinstance(value, dict) else "list"),
]
Items = Annotated[tuple[Text, ...], BeforeValidator(_split), Field(min_length=1)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_split), Field(min_length=1, max_length=4)]
Side = Annotated[int, Field(ge=1, le=16384)]


SectionT = TypeVar("SectionT", bound="Section")


class Section(Frozen):
    """A part of a recipe; keys are written with dashes."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True)

    def said(self, *leave_out: str) -> dict[str, Any]:
        """The section as JSON values, defaults included, as a recipe spells its keys."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(leave_out), exclude_none=True)


class PreprocessingRecipe(Section):
    """What is done to raw images; what is left out stays as the source has it."""

    size: Annotated[tuple[Side, Side], BeforeValidator(_size)] | None = None
    fit: Fit | None = None
    antialias: bool | None = None
    mean: Numbers | None = None
    std: Numbers | None = None
    fill: Annotated[float, Field(ge=0, le=1)] | None = None
    place: Place | None = None
    order: Order | None = None

    def value(self) -> Preprocessing:
        """The same as the library's own value."""
        return Preprocessing(**self.model_dump(exclude_none=True))


def options_of(holder: Any, *only: str, **defaults: Any) -> Callable[[type[SectionT]], type[SectionT]]:
    """Give a section the options that a verb declares, after its own keys; `defaults` are others than the verb's."""

    def wrap(section: type[SectionT]) -> type[SectionT]:
        known = {name: one for name, one in flat(holder, *only).items() if one.plain is not Path}
        for name, default in defaults.items():
            known[name] = replace(known[name], default=default, optional=False, unset="")
        fields: dict[str, Any] = {name: _field(one) for name, one in known.items()}
        return create_model(section.__name__, __base__=section, __module__=__name__, __doc__=section.__doc__, **fields)

    return wrap


def _field(one: Opt) -> tuple[Any, Any]:
    """An option as a field: its type with bounds, and its default."""
    kind: Any = Annotated[one.plain, Field(**one.bounds)]
    if one.names:
        kind = Annotated[kind, AfterValidator(functools.partial(_chosen, one))]
    return (kind | None if one.optional else kind), Field(default=one.default, description=one.said)


def _chosen(one: Opt, value: str) -> str:
    if value not in one.names:
        raise ValueError(f"use one of {', '.join(map(repr, one.names))}{near(value, one.names)}")
    return value


@options_of(LocateOptions)
class LocateRecipe(Section):
    """How channels are located; see `brickyard.locate`."""


@options_of(TrainingOptions, "epochs", "lr", "batch_size", "augment", "seed", lr=0.1)
class TrainRecipe(Section):
    """A source that is trained; see `brickyard train`."""

    network: Text
    data: Text
    classes: Texts | None = None


class SourceRecipe(Section):
    """A source: a network with weights, or one that is trained first."""

    network: Text | None = None
    train: TrainRecipe | None = None
    data: Text | None = None
    weights: Text | None = None
    random_weights: bool = False
    class_names: Items | None = None
    output_name: Annotated[Text, BeforeValidator(_word)] | None = None
    preprocessing: PreprocessingRecipe | None = None
    locate: LocateRecipe = LocateRecipe()

    @property
    def images(self) -> str:
        """The text of its training images."""
        return self.data or (self.train.data if self.train else "")


@options_of(DisassembleOptions)
class ComponentRecipe(Section):
    """A component; see `brickyard.disassemble`."""

    source: Text
    task: Task


@options_of(AssembleOptions)
class AssemblyRecipe(Section):
    """The classifier made of the components; see `brickyard.assemble`."""

    parts: Texts | None = None


@options_of(EvaluateOptions, "latency", "including_calibration", latency=False)
class EvaluateRecipe(Section):
    """What is scored; see `brickyard.evaluate`."""

    data: Annotated[dict[str, Text], BeforeValidator(_for_all)]
    max_images: Count | None = None

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
        >>> recipe.components["low"].heal_images
        400
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
