"""One declaration of an option: name, type, bounds, default and one sentence of help.

Options stand in a `TypedDict` (those of a verb) or a frozen dataclass (values such as a budget). All that asks for
options reads them there: the verb's signature, checks and docstring, the command line, recipes, the workbench's form
and the tables of the documentation.
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
    """Names, each with one sentence of help, of what a module registers by a decorator.

    Such modules need torch, which help must not wait for: until one is imported, its decorators are read as text.

    Args:
        module: The module.
        table: The name of its dictionary, whose values have an attribute `help`.
        decorator: The name of its decorator: `@decorator("name", help="...")`.

    Example:
        >>> from brickyard.base._declare import Table
        >>> list(Table("brickyard.scaling._strategies", "SCALINGS", "scaling"))[0]
        'none'
    """

    def __init__(self, module: str, table: str, decorator: str) -> None:
        self.module, self.table, self.decorator = module, table, decorator

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
    """What is known of an option.

    Attributes:
        default: Its value where none is given; left out: it is required.
        help: One sentence, a verb first where it can be.
        unset: What None stands for.
        inherits: What comes before the defaults of a value's own options: "the relevances', or ".
        least: Its value is at least this; for numbers, `above`, `most` and `below` too.
        noun: What a number is: "a share ".
        owner: What messages put before the name: "budget".
        advice: The end of messages about its value.
        choices: The names that may be given, where the type does not say; each with its help.
        validate: A check in place of the usual one for the type: returns the value, or raises OptionError.
        shell: The type that the command line and recipes take, where the verb takes more.
        only: "python": the command line and recipes have other words for it; "shell": the workbench leaves it out.
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
    only: Literal["", "python", "shell"] = ""
    name: str = ""
    kind: Any = None
    optional: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The choices; none where it is no choice."""
        if self.choices is not None:
            return tuple(self.choices)
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def plain(self) -> Any:
        """The type of the value that one word of a shell or recipe gives; None where that is not possible."""
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
        """The default as text; empty where there is none to name."""
        if self.default in (None, REQUIRED, ()):
            return ""
        return str(self.default).lower() if isinstance(self.default, bool) else f"{self.default}"

    @property
    def bounds(self) -> dict[str, Any]:
        """The bounds by the names that pydantic has for them."""
        found = {"ge": self.least, "gt": self.above, "le": self.most, "lt": self.below}
        return {name: bound for name, bound in found.items() if math.isfinite(bound)}

    @property
    def shell_bounds(self) -> dict[str, Any]:
        """The bounds by the names that typer has for them."""
        return {{"ge": "min", "le": "max"}.get(name, ""): bound for name, bound in self.bounds.items()}

    def check(self, value: Any) -> Any:
        """The value, as the type wants it.

        Raises:
            OptionError: It cannot be used.
        """
        if value is None and self.optional:
            return None
        if self.validate is not None:
            return self.validate(value)
        what = f"{self.owner} {self.name}".lstrip()
        if self.names:
            check_choice(what, value, self.names)
        elif self.kind is bool:
            return flag(what, value)
        elif self.kind is int:
            return whole(what, value, int(self.least), self.advice)
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
    """A field of a dataclass that is an option: the value is checked by `check_fields`."""
    return field(default=default, metadata={"opt": Opt(default=default, **known)})


def declared(holder: Any) -> dict[str, Opt]:
    """The options that a `TypedDict` or a dataclass declares, by name and in order.

    Example:
        >>> from brickyard.base._declare import declared
        >>> from brickyard.base._options import DisassembleOptions
        >>> declared(DisassembleOptions)["heal_images"].default
        400
    """
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
    """Check the fields of a frozen dataclass, and bring them to their types.

    Raises:
        OptionError: One cannot be used.
    """
    for name, option in declared(type(value)).items():
        object.__setattr__(value, name, option.check(getattr(value, name)))


def checked(holder: Any, given: Mapping[str, Any], call: str, *, more: bool = False) -> dict[str, Any]:
    """Every option of a verb: what is given, checked, and defaults.

    Args:
        holder: Where they are declared.
        given: Values by name.
        call: The verb's name, for messages.
        more: Whether other names are passed on as they are.

    Raises:
        TypeError: One is missing, or not known.
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
    """Make `**options` of a function those that a `TypedDict` declares: checked, with defaults, and documented.

    Args:
        holder: Where they are declared.
        more: Whether the function takes other names too.
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
    """Options as keyword-only parameters."""
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
    """A docstring with a line for each option at the end of its arguments."""
    lines = text.split("\n")
    if "Args:" not in lines:
        return text
    end = lines.index("Args:") + 1
    while end < len(lines) and lines[end].startswith("    "):
        end += 1
    new = [f"    {name}: {option.said}" for name, option in declared(holder).items()]
    return "\n".join([*lines[:end], *new, *lines[end:]])


def flat(holder: Any, *names: str) -> dict[str, Opt]:
    """The options that shells and recipes ask for word by word: those of values, such as a budget's, one by one.

    A value's options may be left out, so that what is not given stays as it is.

    Args:
        holder: Where they are declared.
        names: Only these; default: all.
    """
    found: dict[str, Opt] = {}
    for name, option in declared(holder).items():
        if names and name not in names:
            continue
        if is_dataclass(option.kind):
            for key, one in declared(option.kind).items():
                found[key] = replace(
                    one, default=None, optional=True, unset=one.unset or (one.value and option.inherits + one.value)
                )
        elif option.plain is not None:
            found[name] = option
    return found


def gathered(holder: Any, given: Mapping[str, Any], **base: Any) -> dict[str, Any]:
    """Options of a verb from words: the reverse of `flat`; None stands for what is not given.

    Args:
        holder: Where they are declared.
        given: What was given, by name; other names are left out.
        base: Values that what is given changes a part of, by name.
    """
    found: dict[str, Any] = {}
    for name, option in declared(holder).items():
        if isinstance(option.kind, type) and is_dataclass(option.kind):
            inner = {key: given[key] for key in declared(option.kind) if given.get(key) is not None}
            if inner:
                found[name] = replace(base[name], **inner) if name in base else option.kind(**inner)
        elif given.get(name) is not None:
            found[name] = given[name]
    return found
