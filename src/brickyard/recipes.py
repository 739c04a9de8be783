"""Recipes: one YAML file that says sources, tasks, budgets, repair, assembly and scores.

Every problem of a recipe is told with its place: `recipe.yaml:LINE:COLUMN`. Reading builds plain nodes and never an
object of YAML's own; size, depth and repetition are bounded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from brickyard.errors import FileError, OptionError, told
from brickyard.manifest import Frozen, Preprocessing
from brickyard.options import Budget, Choose, Duplicates, Form, Heal, Select, Spread, Thresholds, given_path

__all__ = [
    "AssemblyRecipe",
    "ComponentRecipe",
    "EvaluateRecipe",
    "LocateRecipe",
    "OutputsRecipe",
    "PreprocessingRecipe",
    "Recipe",
    "RecipeFile",
    "SourceRecipe",
    "TrainRecipe",
    "load_recipe",
]

VERSION = 1
EVERY = "*"  # evaluate.data as one text: of every source
MAX_BYTES = 256 << 10
MAX_DEPTH = 12
MAX_ALIASES = 64
MAX_NODES = 20_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")

INNER = re.compile(r"(?<=[^\s\[\]{},])\?(?=[^\s\[\]{},])")  # YAML 1.2 has it in texts between brackets, 1.1 not
STAND_IN = "\ue000"  # for such a question mark while YAML is read

Place = tuple[str | int, ...]


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
        >>> from brickyard.recipes import Recipe
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


# -- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that was read, with the place of everything in its file.

    Attributes:
        path: The file.
        recipe: What it says.
        content: Its bytes.
    """

    path: Path
    recipe: Recipe
    content: bytes
    marks: dict[Place, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """The folder that paths in the recipe start from."""
        return self.path.parent

    def problem(self, place: Place, text: str) -> OptionError:
        """An error at a place of the recipe."""
        return OptionError(self.told(place, text))

    def told(self, place: Place, text: str) -> str:
        """A message with a place of the recipe before it."""
        return f"{_at(self.path, self.marks, place)}: {told(text, 800)}"

    def resolved(self, text: str) -> str:
        """A text of a source or of data, with its path taken from the recipe's folder."""
        kind = text.partition("?")[0]
        if kind == "digits" or text.startswith(("zoo:", "torchvision:", "timm:")):
            return text
        return str(self.folder / text)


def load_recipe(path: str | Path) -> RecipeFile:
    r"""Read a recipe and check all that can be checked before work starts.

    Args:
        path: A YAML file.

    Returns:
        The recipe, with the places of its keys and values.

    Raises:
        FileError: The file cannot be read, is too large, or is not YAML.
        OptionError: A key or value cannot be used. The message starts with `FILE:LINE:COLUMN`.

    Example:
        >>> import tempfile, pathlib
        >>> from brickyard.recipes import load_recipe
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "recipe.yaml")
        ...     _ = path.write_text("brickyard: 1\nsource: {}\n")
        ...     try:
        ...         load_recipe(path)
        ...     except OptionError as error:
        ...         print(str(error).removeprefix(folder + "/"))
        recipe.yaml:2:1: the recipe has the key 'source', which is not known; did you mean 'sources'?
    """
    path = given_path(path, "the recipe")
    content = _content(path)
    reader = _Reader(path)
    value = reader.mapping(_composed(path, content), Recipe, (), "the recipe")
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        raise OptionError(_first(path, reader.marks, value, error)) from None
    found = RecipeFile(path, recipe, content, reader.marks)
    for place, text in problems_of(found):
        raise found.problem(place, text)
    return found


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileError(f"recipe {path} cannot be read: {error.strerror or error}; check the path") from None
    if len(content) > MAX_BYTES:
        raise FileError(f"recipe {path} is larger than {MAX_BYTES >> 10} KiB; a recipe is a short text")
    return content


def _composed(path: Path, content: bytes) -> Any:
    """The file as YAML nodes, after a look at its events: depth, aliases and tags are bounded."""
    import yaml

    def refuse(mark: Any, text: str) -> FileError:
        return FileError(f"{path}:{mark.line + 1}:{mark.column + 1}: {told(text, 800)}")

    try:
        text = content.decode("utf-8-sig")
        if STAND_IN in text:
            raise FileError(f"recipe {path} has the character U+E000, which is no text; remove it")
        text = INNER.sub(STAND_IN, text)
        depth = aliases = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > MAX_DEPTH:
                raise refuse(event.start_mark, f"the recipe is nested deeper than {MAX_DEPTH}; a recipe needs five")
            if aliases > MAX_ALIASES:
                raise refuse(event.start_mark, f"the recipe has more than {MAX_ALIASES} aliases; write values out")
            if getattr(event, "tag", None) not in (None, "!"):
                raise refuse(event.start_mark, f"the tag {event.tag!r} was given; a recipe has plain values, no tags")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise FileError(f"recipe {path} is no text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        text = " ".join(str(part) for part in (error.problem, error.context) if part)
        if mark is None:
            raise FileError(f"recipe {path} is not YAML: {text}") from None
        raise refuse(mark, f"the recipe is not YAML: {_text(text)}; check indentation, colons and quotes") from None
    except yaml.YAMLError as error:
        raise FileError(f"recipe {path} is not YAML: {told(error)}") from None


class _Reader:
    """Turns nodes into texts, lists and mappings, and notes where each of them is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks: dict[Place, tuple[int, int]] = {}
        self.nodes = 0

    def fail(self, node: Any, text: str) -> OptionError:
        return OptionError(f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {told(text, 800)}")

    def note(self, place: Place, node: Any) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.fail(node, f"the recipe has more than {MAX_NODES:,} values; it must be smaller")
        if len(place) > MAX_DEPTH:
            raise self.fail(node, f"the recipe is nested deeper than {MAX_DEPTH}; a recipe needs five")
        self.marks[place] = (node.start_mark.line + 1, node.start_mark.column + 1)

    def mapping(self, node: Any, model: type[BaseModel] | None, place: Place, what: str) -> dict[str, Any]:
        """A mapping whose keys are those of a model, or names (model=None: of texts)."""
        import yaml

        if node is None:
            raise OptionError(f"{self.path}:1:1: {what} is empty; start with 'brickyard: {VERSION}'")
        self.note(place, node)
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{what} is {_kind(node)}; a mapping of keys and values is needed")
        known = None if model is None else {key_of(name): item for name, item in model.model_fields.items()}
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, f"{what} has {_kind(key_node)} as a key; keys are texts")
            key = _text(key_node.value)
            if key in found:
                line, column = self.marks[(*place, key, "key")]
                raise self.fail(key_node, f"{what} has the key {key!r} twice (also at {line}:{column}); leave one out")
            if known is not None and key not in known:
                raise self.fail(key_node, f"{what} has the key {key!r}, which is not known{nearest(key, known)}")
            self.note((*place, key, "key"), key_node)
            annotation = None if known is None else known[key].annotation
            found[key] = self.value(value_node, annotation, (*place, key))
        return found

    def value(self, node: Any, annotation: Any, place: Place) -> Any:
        import yaml

        what = dotted(place)
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            raise self.fail(node, f"{what} has no value; give one, or leave the key out")
        names, model = _holds(annotation)
        if names and (model is not None or isinstance(node, yaml.MappingNode)):
            if model is None:
                return self.mapping(node, None, place, what)
            self.note(place, node)
            if not isinstance(node, yaml.MappingNode):
                raise self.fail(node, f"{what} is {_kind(node)}; a mapping from names is needed, such as 'a: {{...}}'")
            return self.named(node, model, place, what)
        if model is not None:
            return self.mapping(node, model, place, what)
        self.note(place, node)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, None, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{what} is a mapping; a value or a list is needed")
        return _text(node.value)

    def named(self, node: Any, model: type[BaseModel], place: Place, what: str) -> dict[str, Any]:
        """A mapping from names, which become file names, to sections."""
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = getattr(key_node, "value", None)
            if not isinstance(key, str) or not NAME.fullmatch(key) or RESERVED.fullmatch(key):
                raise self.fail(
                    key_node,
                    f"{what} has the name {str(key)[:80]!r}, which is no safe file name; use letters, digits, dots, "
                    "dashes and underscores (64 at most, the first one a letter or digit)",
                )
            twin = next((other for other in found if other.casefold() == key.casefold()), None)
            if twin is not None:
                line, column = self.marks[(*place, twin, "key")]
                raise self.fail(
                    key_node,
                    f"{what} has the name {key!r} twice (also {twin!r} at {line}:{column}); names must differ in more "
                    "than capitals",
                )
            self.note((*place, key, "key"), key_node)
            if value_node.tag == "tag:yaml.org,2002:null":
                raise self.fail(value_node, f"{dotted((*place, key))} has no value; give its keys")
            found[key] = self.mapping(value_node, model, (*place, key), dotted((*place, key)))
        if not found:
            raise self.fail(node, f"{what} is empty; name at least one")
        return found


def _text(value: str) -> str:
    return value.replace(STAND_IN, "?")


def nearest(word: str, known: Any) -> str:
    """The end of a message about a word that is not known: what may have been meant, and what there is."""
    choices = [str(item) for item in known]
    close = difflib.get_close_matches(word, choices, 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; use one of {', '.join(choices[:24])}" if choices else ""


def _kind(node: Any) -> str:
    return {"mapping": "a mapping", "sequence": "a list"}.get(node.id, f"the text {_text(str(node.value))[:60]!r}")


def key_of(name: str) -> str:
    return name.replace("_", "-")


def dotted(place: Place) -> str:
    return ".".join(str(part) for part in place if part != "key") or "the recipe"


def _holds(annotation: Any) -> tuple[bool, type[BaseModel] | None]:
    """Whether a field is a mapping from names, and which section it holds, if any."""
    options = [annotation, *get_args(annotation)]
    for option in options:
        if get_origin(option) is dict:
            inner = get_args(option)[1]
            return True, inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
        if isinstance(option, type) and issubclass(option, BaseModel):
            return False, option
    return False, None


def _at(path: Path, marks: dict[Place, tuple[int, int]], place: Place) -> str:
    while place and place not in marks:
        place = place[:-1]
    line, column = marks.get(place, (1, 1))
    return f"{path}:{line}:{column}"


def _first(path: Path, marks: dict[Place, tuple[int, int]], value: Any, error: ValidationError) -> str:
    """The problem that comes first in the file."""
    found = []
    for problem in error.errors(include_url=False):
        place = tuple(part for part in problem["loc"] if isinstance(part, str | int))
        while place and place not in marks and problem["type"] != "missing":
            place = place[:-1]
        holder = place[:-1] if problem["type"] == "missing" else place
        found.append((marks.get(holder, (1, 1)), place, problem))
    (line, column), place, problem = min(found, key=lambda item: item[0])
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{path}:{line}:{column}: {told(said(place, problem, _found(value, place)), 800)}{more}"


def _found(value: Any, place: Sequence[str | int]) -> Any:
    for part in place:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return value
    return value


NEEDED = {
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "int_type": "a whole number is needed",
    "float_parsing": "a number is needed",
    "float_type": "a number is needed",
    "finite_number": "a finite number is needed",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "string_type": "a text is needed",
    "tuple_type": "a list is needed",
    "string_too_short": "a text is needed",
    "too_short": "at least one is needed",
    "dict_type": "one text, or a mapping from sources to texts, is needed",
}


def said(place: Place, problem: Any, found: Any) -> str:
    what, kind, limits = dotted(place), problem["type"], problem.get("ctx", {})
    if kind == "missing":
        return f"{dotted(place[:-1])} lacks the key {place[-1]!r}; add it"
    start = f"{what} is {found!r}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(limits.get("expected", "")))
        close = difflib.get_close_matches(str(found), choices, 1, 0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{start}; use one of {', '.join(map(repr, choices))}{hint}"
    if kind in NEEDED:
        return f"{start}; {NEEDED[kind]}"
    for name, text in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if name in limits:
            return f"{start}; it must be {text} {limits[name]:g}"
    return f"{start}; {str(problem['msg']).removeprefix('Value error, ')}"


# -- what fits together ------------------------------------------------------------------------------------


def problems_of(file: RecipeFile) -> Iterator[tuple[Place, str]]:
    """What is wrong between the keys of a recipe, in the order of its sections."""
    recipe = file.recipe
    if recipe.brickyard != VERSION:
        yield ("brickyard",), f"recipe version {recipe.brickyard} was asked for; this Brickyard reads {VERSION}"
    for name, source in recipe.sources.items():
        yield from _source_problems(file, ("sources", name), source)
    for name, component in recipe.components.items():
        yield from _component_problems(recipe, ("components", name), component)
    yield from _assembly_problems(recipe)
    yield from _evaluate_problems(file)


def _source_problems(file: RecipeFile, place: Place, source: SourceRecipe) -> Iterator[tuple[Place, str]]:
    what = dotted(place)
    if (source.network is None) == (source.train is None):
        given = "both were" if source.train else "neither was"
        yield place, f"{what} needs one of 'network' and 'train'; {given} given"
    if source.train is not None:
        for key in ("weights", "class_names"):
            if getattr(source, key) is not None:
                name = key_of(key)
                yield (*place, name), f"{what}.{name} would change nothing: the source is trained; remove it"
        yield from _zoo_problems((*place, "train", "network"), source.train.network)
        yield from _data_problems(file, (*place, "train", "data"), source.train.data)
    if source.network is not None:
        if source.data is None:
            yield place, f"{what} lacks the key 'data'; add its training images, to locate and to heal with"
        yield from _network_problems(file, (*place, "network"), source.network)
    if source.weights is not None and not _there(file.folder / source.weights, plain=True):
        yield (*place, "weights"), f"{what}.weights is {source.weights!r}, and there is no such file; check the path"
    if source.data is not None:
        yield from _data_problems(file, (*place, "data"), source.data)
    if source.preprocessing is not None:
        try:
            source.preprocessing.value()
        except OptionError as error:
            yield (*place, "preprocessing"), f"{what}.{error}"


def _network_problems(file: RecipeFile, place: Place, text: str) -> Iterator[tuple[Place, str]]:
    what = dotted(place)
    if text.startswith("zoo:"):
        yield from _zoo_problems(place, text)
    elif not text.startswith(("torchvision:", "timm:")):
        path = text.rpartition(":")[0] if ".py:" in text else text
        if not (".py:" in text or text.endswith(".safetensors")):
            yield (
                place,
                f"{what} is {text!r}, which is no source; give zoo:NAME, torchvision:NAME, timm:NAME, "
                "file.py:function, or a .safetensors file of a source",
            )
        elif not _there(file.folder / path, plain=True):
            yield place, f"{what} is {text!r}, and there is no file {path!r} in the recipe's folder; check the path"


def _zoo_problems(place: Place, text: str) -> Iterator[tuple[Place, str]]:
    from brickyard.sources import zoo

    name = text.removeprefix("zoo:").partition("?")[0]
    try:
        known = name == "auto" or bool(zoo.entry(name))
    except OptionError:
        known = False
    if not known:
        yield place, f"{dotted(place)} is {text!r}, and the zoo has no {name!r}{nearest(name, zoo.available())}"


def _there(path: Path, plain: bool = False) -> bool:
    """Whether a path leads anywhere, or to a plain file; one that no system takes does not."""
    try:
        return path.is_file() if plain else path.exists()
    except (OSError, ValueError):
        return False


def _data_problems(file: RecipeFile, place: Place, text: str) -> Iterator[tuple[Place, str]]:
    path, _, options = text.rpartition("?") if "?" in text else (text, "", "")
    if _there(file.folder / text):
        path, options = text, ""
    for item in filter(None, options.split("&")):
        key = item.partition("=")[0]
        if key not in ("split", "classes"):
            yield place, f"{dotted(place)} is {text!r} with the option {key!r}{nearest(key, ('split', 'classes'))}"
    if path != "digits" and not _there(file.folder / path):
        hint = "; did you mean 'digits'?" if difflib.get_close_matches(path, ["digits"], 1, 0.6) else ""
        yield (
            place,
            f"{dotted(place)} is {text!r}, and there is no file or folder {path!r}{hint or '; check the path'}",
        )


def _component_problems(recipe: Recipe, place: Place, part: ComponentRecipe) -> Iterator[tuple[Place, str]]:
    what = dotted(place)
    if place[-1] == "assembly":
        yield (*place, "key"), "a component is called 'assembly', as the whole is in the score table; name it otherwise"
    if part.source not in recipe.sources:
        hint = nearest(part.source, recipe.sources)
        yield (*place, "source"), f"{what}.source is {part.source!r}, and there is no such source{hint}"
    budget = [key for key in ("flops", "parameters") if getattr(part, key) is not None]
    if len(budget) > 1:
        yield (*place, "parameters"), f"{what} has 'flops' and 'parameters'; a budget is one of them: remove the other"
    if budget:
        for key in part.THRESHOLDS:
            if getattr(part, key) is not None:
                yield (
                    (*place, key_of(key)),
                    f"{what} has {budget[0]!r} and {key_of(key)!r}; a component is chosen by a budget or by "
                    "thresholds: remove one",
                )
    else:
        for key in ("select", "spread", "multiple"):
            if getattr(part, key) != ComponentRecipe.model_fields[key].default:
                yield (*place, key), f"{what}.{key} is for a budget, and none was given; add 'flops' or 'parameters'"


def _assembly_problems(recipe: Recipe) -> Iterator[tuple[Place, str]]:
    assembly = recipe.assembly
    if assembly is None:
        return
    place: Place = ("assembly", "parts")
    for index, name in enumerate(assembly.parts or ()):
        if name not in recipe.components:
            yield (*place, index), f"assembly.parts has {name!r}, no component{nearest(name, recipe.components)}"
        if name in (assembly.parts or ())[:index]:
            yield (*place, index), f"assembly.parts has {name!r} twice; name every component once"
    if assembly.scaling != "none":
        from brickyard.scaling import SCALINGS

        if assembly.scaling not in SCALINGS:
            hint = nearest(assembly.scaling, SCALINGS)
            yield ("assembly", "scaling"), f"assembly.scaling is {assembly.scaling!r}, no scaling{hint}"
    sources = {recipe.components[name].source for name in recipe.parts if name in recipe.components}
    if assembly.form == "union" and len(sources) > 1:
        yield (
            ("assembly", "form"),
            f"assembly.form is 'union', and its parts come from {', '.join(sorted(sources))}; a union has one source: "
            "use 'parallel'",
        )
    if assembly.votes and not any(part.reject for part in recipe.components.values()):
        yield ("assembly", "votes"), "assembly.votes needs parts with 'reject: true'; add it to some, or remove votes"


def _evaluate_problems(file: RecipeFile) -> Iterator[tuple[Place, str]]:
    recipe, place = file.recipe, ("evaluate", "data")
    if recipe.evaluate is None:
        return
    texts = recipe.evaluate.data
    for name, text in texts.items():
        if name != EVERY and name not in recipe.sources:
            hint = nearest(name, recipe.sources)
            yield (*place, name, "key"), f"evaluate.data has {name!r}, and there is no such source{hint}"
        yield from _data_problems(file, place if name == EVERY else (*place, name), text)
    missing = [name for name in recipe.used if name not in texts and EVERY not in texts]
    if missing:
        yield place, f"evaluate.data lacks test images of the source {missing[0]!r}; add them"
