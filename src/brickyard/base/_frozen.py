"""Frozen values with conversion from JSON: what all records of files and recipes are made of."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brickyard.base._errors import FileError, OptionError
from brickyard.base._messages import told

Name = Annotated[str, Field(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=0, le=1 << 62)]
ModelT = TypeVar("ModelT", bound=BaseModel)
Json = Any  # JSON as pydantic reads it: null, bool, int, float, str, list, dict


class Frozen(BaseModel):
    """A frozen value that rejects unknown keys and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UnusableError(OptionError, ValueError):
    """Unusable values: an `OptionError` for direct callers, a validation problem within a file."""


def validated(kind: type[ModelT], value: Json, what: str) -> ModelT:
    """Validate `value` as a `kind`.

    Raises:
        FileError: The value is invalid; the message names the first problem and where it is.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise FileError(
            "file-manifest-invalid", f"{what} is not a valid {kind.__name__}: {first_problem(error)}"
        ) from None


def first_problem(error: ValidationError) -> str:
    """Describe the first problem of a validation error, with its place."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return told(f"{place + ': ' if place else ''}{problem['msg']}") + more
