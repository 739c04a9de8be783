"""Recipes: one YAML file that says sources, tasks, budgets, repair, assembly and scores.

Every problem of a recipe is told with its place: `recipe.yaml:LINE:COLUMN`. Reading builds plain nodes and never an
object of YAML's own; size, depth and repetition are bounded.
"""

from __future__ import annotations

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
    reader, node = _Reader(path), _composed(path, content)
    if node is None:
        raise OptionError(
            "option-recipe-invalid", f"{path}:1:1: the recipe is empty; start with 'brickyard: {VERSION}'"
        )
    try:
        recipe = Recipe.model_validate(reader.value(node, Recipe, ()))
    except ValidationError as error:
        raise OptionError("option-recipe-invalid", _first(path, reader.marks, error)) from None
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
            reading_code(error), f"cannot read recipe {path}: {error.strerror or error}; check the path"
        ) from None
    if len(content) > MAX_BYTES:
        raise FileError("file-too-large", f"recipe {path} is larger than {MAX_BYTES >> 10} KiB; make it shorter")
    return content


def _composed(path: Path, content: bytes) -> Any:
    """The file as YAML nodes, after a look at its events: depth, aliases and tags are bounded."""
    import yaml

    def refuse(text: str, mark: Any = None) -> FileError:
        place = f"recipe {path} {told(text, 800)}" if mark is None else _told(path, mark, text)
        return FileError("file-recipe-syntax", place)

    try:
        text = content.decode("utf-8-sig")
        if STAND_IN in text:
            raise refuse("has the character U+E000, which is not text; remove it")
        text = INNER.sub(STAND_IN, text)
        depth = aliases = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > MAX_DEPTH:
                raise refuse(f"the recipe is nested deeper than {MAX_DEPTH}; it needs five", event.start_mark)
            if aliases > MAX_ALIASES:
                raise refuse(f"the recipe has more than {MAX_ALIASES} aliases; write values out", event.start_mark)
            if (tag := getattr(event, "tag", None)) not in (None, "!"):
                raise refuse(f"the tag {tag!r} was given; a recipe has plain values", event.start_mark)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise refuse(f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        parts = [part for part in (getattr(error, "problem", None), getattr(error, "context", None)) if part]
        why = f"is not YAML: {_text(' '.join(map(str, parts)) or str(error))}; check indentation, colons and quotes"
        raise refuse(f"the recipe {why}" if mark else why, mark) from None


class _Reader:
    """Turns nodes into texts, lists and mappings, and notes where each of them is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.marks: dict[Place, tuple[int, int]] = {}

    def fail(self, node: Any, text: str) -> OptionError:
        return OptionError("option-recipe-invalid", _told(self.path, node.start_mark, text))

    def note(self, place: Place, node: Any) -> None:
        if len(self.marks) >= MAX_NODES:
            raise self.fail(node, f"the recipe has more than {MAX_NODES:,} values; it must be smaller")
        if len(place) > MAX_DEPTH:
            raise self.fail(node, f"the recipe is nested deeper than {MAX_DEPTH}; a recipe needs five")
        self.marks[place] = (node.start_mark.line + 1, node.start_mark.column + 1)

    def value(self, node: Any, annotation: Any, place: Place) -> Any:
        """A node as a text, a list or a mapping; pydantic says whether its field may be one."""
        self.note(place, node)
        if node.tag == "tag:yaml.org,2002:null":
            raise self.fail(node, f"{dotted(place)} has no value; give one, or leave the key out")
        if node.id == "mapping":
            return self.mapping(node, *_holds(annotation), place)
        if node.id == "sequence":
            return [self.value(item, None, (*place, index)) for index, item in enumerate(node.value)]
        return _text(node.value)

    def mapping(self, node: Any, names: bool, section: type[BaseModel] | None, place: Place) -> dict[str, Any]:
        """A mapping from names (those of sections become file names), or from the keys of a section."""
        what = dotted(place)
        fields = {} if section is None else section.model_fields
        known = {key_of(name): field.annotation for name, field in fields.items()}
        found: dict[str, Any] = {}
        twins: dict[str, str] = {}  # keys as they are written, without a difference of capitals
        for key_node, value_node in node.value:
            if key_node.id != "scalar":
                raise self.fail(key_node, f"{what} has a list or a mapping as a key; keys are texts")
            key = _text(key_node.value)
            if (twin := twins.setdefault(key.casefold(), key)) in found:
                line, column = self.marks[(*place, twin, "key")]
                also = f"also at {line}:{column}" if twin == key else f"also {twin!r} at {line}:{column}"
                raise self.fail(key_node, f"{what} has {key!r} twice ({also}); names must differ in more than capitals")
            if not names and key not in known:
                raise self.fail(key_node, f"{what} has the key {key!r}, which is not known{nearest(key, known)}")
            if names and section and (not NAME.fullmatch(key) or RESERVED.fullmatch(key)):
                allowed = "use at most 64 letters, digits, dots, dashes and underscores, a letter or digit first"
                raise self.fail(key_node, f"{what} has the name {key[:80]!r}, which is not a safe file name; {allowed}")
            self.note((*place, key, "key"), key_node)
            found[key] = self.value(value_node, section if names else known[key], (*place, key))
        if names and section and not found:
            raise self.fail(node, f"{what} is empty; name at least one")
        return found


def _told(path: Path, mark: Any, text: str) -> str:
    """A message with a place of the file before it."""
    return f"{path}:{mark.line + 1}:{mark.column + 1}: {told(text, 800)}"


def _text(value: str) -> str:
    return value.replace(STAND_IN, "?")


def _holds(annotation: Any) -> tuple[bool, type[BaseModel] | None]:
    """Whether a field is a mapping from names, and which section it holds, if any."""
    for option in (annotation, *get_args(annotation)):
        if get_origin(option) is dict:
            return True, _holds(get_args(option)[1])[1]
        if isinstance(option, type) and issubclass(option, BaseModel):
            return False, option
    return True, None


def _first(path: Path, marks: dict[Place, tuple[int, int]], error: ValidationError) -> str:
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
    return f"{path}:{line}:{column}: {told(said(place, problem), 800)}{more}"
