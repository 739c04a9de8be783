"""What a file may cost: one budget for everything that is derived from it.

It holds for loading, running on a few images, joining, reports, drawings and cards, in counts rather than seconds, so
that it is the same on every machine. `network/_cost_limit.py` counts what a network does. A file with many numbers may
cost more, in proportion to them, where a limit says so.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

# Its text
DEPTH = 64  # lists and objects in one another
VALUES = 1 << 22  # values, and one more for each 8 bytes of tensors
HOLDERS = 1 << 19  # lists and objects, and one more for each 64 bytes of tensors

# What it tells of a source
AXES = 1 << 12  # channel axes of a part
CHANNELS = 1 << 20  # channels of all axes of a part

# Its networks
STEPS = 1 << 13  # of one network
PIECES = 1 << 14  # that one step may cut a value into, and stations of a drawing
KINDS = 1 << 9  # operations on different shapes, and one more for each 256 numbers in the file
MADE = 1 << 17  # tensors that all networks make in one run, views and pieces included
WORK = 1 << 32  # multiply-adds per image, where a number read or written counts as `WORD`
RATIO = 1 << 16  # more of them for each number in the file, or as many as an image has positions
WORD = 32
NUMBERS = 1 << 28  # in one value, per image
MEMORY = 1 << 28  # bytes of the values that are needed at one time, per image, and 64 more for each number in the file

# Joining: following channels through a structure on paper
JOINED = 1 << 17  # channels, and one more for each number in the part
MOVED = 1 << 24  # numbers that one step moves, in a batch
MOVED_IN_ALL = 1 << 29
LABELS = 1 << 21  # numbers of channels that are noted, and pairs of channels that are tied; and 16 more for each number

STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"')  # without a way back, which would take much memory
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def foreign_json(text: str) -> Any:
    """Parse a JSON text that another program wrote, within the budget.

    Raises:
        ValueError: It is not valid JSON, or would take too much memory.

    Example:
        >>> from brickyard.base._limits import foreign_json
        >>> foreign_json('{"a": [1, 2]}')
        {'a': [1, 2]}
        >>> try:
        ...     foreign_json("[" + "[]," * 600_000 + "[]]")
        ... except ValueError as error:
        ...     print(error)
        it holds 600,002 lists and objects; the limit is 524,288
    """
    _check_size(text, 0)
    return json.loads(text)


def own_json(text: str, body: int) -> Any:
    """Parse the JSON text of one of our own files, within the budget.

    Args:
        text: The text.
        body: Bytes of the tensors beside it, in proportion to which it may hold more.

    Raises:
        ValueError: As for `foreign_json`, or a number is not finite, a key is there twice, or a character is half.
    """
    _check_size(text, body)
    value = json.loads(text, parse_constant=_no_constant, parse_float=_number, object_pairs_hook=_object)
    if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half a character is not allowed")
    return value


def _check_size(text: str, body: int) -> None:
    """Refuse what is nested too deep or holds too much, before anything is made of it."""
    bare = STRING.sub("", text)
    values, holders = bare.count(","), bare.count("[") + bare.count("{")
    for found, what, most in (
        (values, "values", VALUES + body // 8),
        (holders, "lists and objects", HOLDERS + body // 64),
    ):
        if found > most:
            raise ValueError(f"it holds {found:,} {what}; the limit is {most:,}")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH}")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def check_axes(sizes: Sequence[int]) -> None:
    """Check how many axes a part has, and how many channels these have in all.

    Raises:
        ValueError: There are too many.
    """
    if len(sizes) > AXES or sum(sizes) > CHANNELS:
        found = f"{len(sizes):,} axes with {sum(sizes):,} channels"
        raise ValueError(f"{found}; the limits are {AXES:,} and {CHANNELS:,}")
