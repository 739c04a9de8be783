"""Declares each option once: name, type, bounds, default and one sentence of help.

Options are declared in a `TypedDict` (those of a verb) or a frozen dataclass (values such as a budget). Everything that
needs them reads them there: the verb's signature, checks and docstring, the command line, recipes, the workbench's form
and the tables in the documentation.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, Required, TypeVar, Union, get_args, get_origin, get_type_hints

from brickyard.base._checks import check_choice, check_kind, flag, is_number, share_or_more, whole
from brickyard.base._errors import OptionError
from brickyard.base._messages import brief, near

P = ParamSpec("P")
ResultT = TypeVar("ResultT")
REQUIRED: Any = inspect.Parameter.empty


class Table(Mapping[str, str]):
    """The names that a module registers with `@decorator("name", help="...")`, each with one sentence of help.

    Such modules import torch, which help should not wait for: until one is imported, its decorators are parsed from its
    source. `table` is the name of the module's dictionary, whose values have an attribute `help`.

    Example:
        >>> from brickyard.base._declare import Table
        >>> list(Table("brickyard.scaling._strategies", "SCALINGS", "scaling"))[0]
        'auto'
    """

    def __init__(self, module: str, table: str, decorator: str) -> None:
        self.module, self.table, self.decorator = module, table, decorator

    @property
    def register(self) -> str:
        """The public decorator that adds to the table."""
        return f"{self.module.rpartition('.')[0]}.{self.decorator}"

    def _now(self) -> dict[str, str]:
        found = getattr(sys.modules.get(self.module), self.table, None)
        return self._written if found is None else {name: entry.help for name, entry in found.items()}

    @functools.cached_property
    def _written(self) -> dict[str, str]:
        spec = importlib.util.find_spec(self.module)
        text = spec.loader.get_source(self.module) if spec and spec.loader else ""  # type: ignore[attr-defined]
        found: dict[str, str] = {}
        for node in ast.parse(text).body:
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == self.decorator:
                    said = {item.arg: item.value for item in call.keywords}
                    found[ast.literal_eval(call.args[0])] = ast.literal_eval(said["help"])
        return found

    def __getitem__(self, name: str) -> str:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


@dataclass(frozen=True, kw_only=True)
class Opt:
    """The declaration of one option.

    Attributes:
        default: Its default value; an option without one is required.
        help: One sentence, starting with a verb if possible.
        unset: What None stands for.
        inherits: Text before the defaults of a value's own options: "the relevances', or ".
        least: Inclusive lower bound; numbers also have `above`, `most` and `below`.
        noun: What a number is: "a share ".
        owner: What messages put before the name: "budget".
        advice: The end of messages about its value.
        choices: The names to choose from, each with its help, if the type does not list them.
        validate: Replaces the type's usual check: returns the value or raises OptionError.
        shell: The type that the command line and recipes accept, if the verb accepts more.
        words: Those of a value's own options that a shell and recipes ask for; none: all.
        only: "python": the command line and recipes express it differently; "shell": the workbench leaves it out.
        name: Its name.
        kind: Its type, without None.
        optional: Whether it may be None.
    """

    default: Any = REQUIRED
    help: str
    unset: str = ""
    inherits: str = ""
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    noun: str = ""
    owner: str = ""
    advice: str = ""
    choices: Mapping[str, str] | None = None
    validate: Callable[[Any], Any] | None = None
    shell: Any = None
    words: tuple[str, ...] = ()
    only: Literal["", "python", "shell"] = ""
    name: str = ""
    kind: Any = None
    optional: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The choices; empty if the option is not a choice."""
        if self.choices is not None:
            return tuple(self.choices)
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def plain(self) -> Any:
        """The type of value that one word of a shell or recipe can express, or None."""
        kind = str if self.names else self.shell or self.kind
        return kind if kind in (bool, int, float, str, Path) and self.only != "python" else None

    @property
    def sentence(self) -> str:
        """The help with the choices."""
        names = [f'"{name}"' for name in self.names]
        listed = f": {', '.join(names[:-1])} or {names[-1]}" if names else ""
        return f"{self.help.removesuffix('.')}{listed}."

    @property
    def said(self) -> str:
        """The help with the choices and the meaning of None."""
        return f"{self.sentence} Default: {self.unset}." if self.unset else self.sentence

    @property
    def value(self) -> str:
        """The default as text; empty if there is none to name."""
        if self.default in (None, REQUIRED, ()):
            return ""
        return str(self.default).lower() if isinstance(self.default, bool) else f"{self.default}"

    @property
    def bounds(self) -> dict[str, Any]:
        """The bounds under pydantic's names."""
        found = {"ge": self.least, "gt": self.above, "le": self.most, "lt": self.below}
        return {name: bound for name, bound in found.items() if math.isfinite(bound)}

    @property
    def shell_bounds(self) -> dict[str, Any]:
        """The bounds under typer's names."""
        return {{"ge": "min", "le": "max"}.get(name, ""): bound for name, bound in self.bounds.items()}

    def check(self, value: Any) -> Any:
        """Check a value and convert it to its type.

        Raises:
            OptionError: It cannot be used.
        """
        if value is None and self.optional:
            return None
        if self.validate is not None:
            return self.validate(value)
        what = f"{self.owner} {self.name}".lstrip()
        if self.names:
            check_choice(what, value, self.names, getattr(self.choices, "register", ""))
        elif self.kind is bool:
            return flag(what, value)
        elif self.kind is int:
            return whole(what, value, int(self.least), self.advice, self.most)
        elif self.kind is float:
            return share_or_more(what, value) if self.bounds == {"ge": 0} else self._number(what, value)
        elif isinstance(self.kind, type) and is_dataclass(self.kind):
            check_kind(what, value, self.kind, self.advice)
        return value

    def _number(self, what: str, value: Any) -> float:
        inside = is_number(value) and self.least <= value <= self.most and self.above < value < self.below
        if inside and math.isfinite(value):
            return float(value)
        low = f"({self.above:g}" if self.above > -math.inf else f"[{self.least:g}"
        high = f"{self.most:g}]" if self.most < math.inf else f"{self.below:g})"
        raise OptionError(
            "option-range", f"{what}={brief(value)} is not {self.noun}in {low}, {high}; {self.advice or 'give one'}"
        )


def opt(default: Any, **known: Any) -> Any:
    """Declare an option as a dataclass field, whose value `check_fields` checks."""
    return field(default=default, metadata={"opt": Opt(default=default, **known)})


def declared(holder: Any) -> dict[str, Opt]:
    """List the options that a `TypedDict` or a dataclass declares, by name and in order.

    Example:
        >>> from brickyard.base._declare import declared
        >>> from brickyard.base._options import DisassembleOptions
        >>> declared(DisassembleOptions)["heal_images"].default
        400
    """
    return _declared(holder)


@functools.cache
def _declared(holder: Any) -> dict[str, Opt]:
    hints = get_type_hints(holder, include_extras=True)
    made = {item.name: item.metadata["opt"] for item in fields(holder)} if is_dataclass(holder) else {}
    found: dict[str, Opt] = {}
    for name, hint in hints.items():
        if get_origin(hint) is Required:
            hint = get_args(hint)[0]
        kind, option = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, made.get(name))
        inner = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        left = [one for one in inner if one is not type(None)]
        kind = left[0] if len(left) == 1 else Any
        found[name] = replace(option, name=name, kind=kind, optional=len(left) < len(inner))
    return found


def check_fields(value: Any) -> None:
    """Check the fields of a frozen dataclass, and convert them to their types.

    Raises:
        OptionError: A value cannot be used.
    """
    for name, option in declared(type(value)).items():
        object.__setattr__(value, name, option.check(getattr(value, name)))


def checked(holder: Any, given: Mapping[str, Any], call: str, *, more: bool = False) -> dict[str, Any]:
    """Check a verb's given options and fill in the defaults.

    Args:
        holder: The class that declares them.
        given: Values by name.
        call: The verb's name, for messages.
        more: Whether to pass other names through unchanged.

    Raises:
        TypeError: An option is missing or unknown.
        OptionError: A value cannot be used.
    """
    known = declared(holder)
    for name in given:
        if name not in known and not more:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{near(name, list(known))}")
    for name, option in known.items():
        if name not in given and option.default is REQUIRED:
            raise TypeError(f"{call}() missing 1 required keyword-only argument: {name!r}")
    values = {name: option.check(given[name]) if name in given else option.default for name, option in known.items()}
    return {**given, **values}


def verb(holder: Any, *, more: bool = False) -> Callable[[Callable[P, ResultT]], Callable[P, ResultT]]:
    """Make a function's `**options` those that a `TypedDict` declares: checked, with defaults, and documented.

    Args:
        holder: The class that declares them.
        more: Whether the function accepts other names too.
    """

    def wrap(call: Callable[P, ResultT]) -> Callable[P, ResultT]:
        signature = inspect.signature(call)
        own = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
        rest = [item for item in signature.parameters.values() if item.kind is item.VAR_KEYWORD and more]

        @functools.wraps(call)
        def run(*args: P.args, **kwargs: P.kwargs) -> ResultT:
            mine = {item.name: kwargs.pop(item.name) for item in own if item.name in kwargs}
            return call(*args, **mine, **checked(holder, kwargs, call.__name__, more=more))  # type: ignore[arg-type]

        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *_parameters(holder), *rest]
        )
        run.__doc__ = _documented(inspect.cleandoc(call.__doc__ or ""), holder)
        return run

    return wrap


def _parameters(holder: Any) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=option.kind | None if option.optional else option.kind,
        )
        for name, option in declared(holder).items()
    ]


def _documented(text: str, holder: Any) -> str:
    """Add a line for each option to the end of a docstring's arguments."""
    lines = text.split("\n")
    if "Args:" not in lines:
        return text
    end = lines.index("Args:") + 1
    while end < len(lines) and lines[end].startswith("    "):
        end += 1
    new = [f"    {name}: {option.said}" for name, option in declared(holder).items()]
    return "\n".join([*lines[:end], *new, *lines[end:]])


def flat(holder: Any, *names: str) -> dict[str, Opt]:
    """List the options that shells and recipes ask for word by word, with values such as a budget split up.

    A value's options may be omitted, so that whatever is not given stays unchanged.

    Args:
        holder: The class that declares them.
        names: Only these; default: all.
    """
    found: dict[str, Opt] = {}
    for name, option in declared(holder).items():
        if names and name not in names:
            continue
        if is_dataclass(option.kind):
            for key, one in declared(option.kind).items():
                if option.words and key not in option.words:
                    continue
                found[key] = replace(
                    one, default=None, optional=True, unset=one.unset or (one.value and option.inherits + one.value)
                )
        elif option.plain is not None:
            found[name] = option
    return found


def gathered(holder: Any, given: Mapping[str, Any], **base: Any) -> dict[str, Any]:
    """Assemble a verb's options from words: the reverse of `flat`; None stands for a word that was not given.

    Args:
        holder: The class that declares them.
        given: The given words by name; other names are ignored.
        base: Values, by name, that the words change in part.
    """
    found: dict[str, Any] = {}
    for name, option in declared(holder).items():
        if isinstance(option.kind, type) and is_dataclass(option.kind):
            words = option.words or declared(option.kind)
            inner = {key: given[key] for key in words if given.get(key) is not None}
            if inner:
                found[name] = replace(base[name], **inner) if name in base else option.kind(**inner)
        elif given.get(name) is not None:
            found[name] = given[name]
    return found
