"""Recipes: one YAML file that says sources, tasks, budgets, repair, assembly and scores.

Every problem of a recipe is told with its place: `recipe.yaml:LINE:COLUMN`. Reading builds plain nodes and never an
object of YAML's own; size, depth and repetition are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from brickyard.base._checks import given_path
from brickyard.base._errors import FileError, OptionError, reading_code
from brickyard.base._messages import nearest, told
from brickyard.recipes._checks import problems_of, said
from brickyard.recipes._recipe_file import Place, RecipeFile, dotted, key_of
from brickyard.recipes._schema import INNER, NAME, RESERVED, VERSION, Recipe

MAX_BYTES = 256 << 10
MAX_DEPTH = 12
MAX_ALIASES = 64
MAX_NODES = 20_000
STAND_IN = "\ue000"  # for such a question mark while YAML is read


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
        >>> from brickyard.recipes._reader import load_recipe
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
        raise OptionError("option-recipe-invalid", _first(path, reader.marks, value, error)) from None
    found = RecipeFile(path, recipe, content, reader.marks)
    for place, text in problems_of(found):
        raise found.problem(place, text)
    return found


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileError(
            reading_code(error), f"recipe {path} cannot be read: {error.strerror or error}; check the path"
        ) from None
    if len(content) > MAX_BYTES:
        raise FileError(
            "file-too-large", f"recipe {path} is larger than {MAX_BYTES >> 10} KiB; a recipe is a short text"
        )
    return content


def _composed(path: Path, content: bytes) -> Any:
    """The file as YAML nodes, after a look at its events: depth, aliases and tags are bounded."""
    import yaml

    def refuse(mark: Any, text: str) -> FileError:
        return FileError("file-recipe-syntax", f"{path}:{mark.line + 1}:{mark.column + 1}: {told(text, 800)}")

    try:
        text = content.decode("utf-8-sig")
        if STAND_IN in text:
            raise FileError(
                "file-recipe-syntax", f"recipe {path} has the character U+E000, which is no text; remove it"
            )
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
        raise FileError(
            "file-recipe-syntax", f"recipe {path} is no text in UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        text = " ".join(str(part) for part in (error.problem, error.context) if part)
        if mark is None:
            raise FileError("file-recipe-syntax", f"recipe {path} is not YAML: {text}") from None
        raise refuse(mark, f"the recipe is not YAML: {_text(text)}; check indentation, colons and quotes") from None
    except yaml.YAMLError as error:
        raise FileError("file-recipe-syntax", f"recipe {path} is not YAML: {told(error)}") from None


class _Reader:
    """Turns nodes into texts, lists and mappings, and notes where each of them is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks: dict[Place, tuple[int, int]] = {}
        self.nodes = 0

    def fail(self, node: Any, text: str) -> OptionError:
        return OptionError(
            "option-recipe-invalid",
            f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}: {told(text, 800)}",
        )

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
            raise OptionError(
                "option-recipe-invalid", f"{self.path}:1:1: {what} is empty; start with 'brickyard: {VERSION}'"
            )
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


def _kind(node: Any) -> str:
    return {"mapping": "a mapping", "sequence": "a list"}.get(node.id, f"the text {_text(str(node.value))[:60]!r}")


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
