"""The guard around calls, for modules that do without torch until one of them is made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def guarded_later(call: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """As `brickyard.network._untouched.guarded`, which is imported with the first call.

    Example:
        >>> from brickyard.network._guarding import guarded_later
        >>> guarded_later(lambda x: x + 1)(1)
        2
    """

    @functools.wraps(call)
    def run(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        from brickyard.network._untouched import guarded

        return guarded(call)(*args, **kwargs)

    return run
