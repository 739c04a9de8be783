"""Messages for people: safe and short, with a hint at the nearest known word."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def first_line(error: BaseException) -> str:
    r"""Reduce another library's error to one line for a message of ours; its type's name if it has no text.

    Example:
        >>> from brickyard.base._messages import first_line
        >>> first_line(RuntimeError("no\nmore")), first_line(KeyError())
        ('no', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(text: str, keep: str = "\n\t") -> str:
    r"""Make a text safe to display: characters that are not printable become escapes.

    These are control characters, which terminals take for commands, marks that change the direction of writing, and
    halves of surrogate pairs, which file names may contain.

    Args:
        text: The text.
        keep: Characters that stay as they are.

    Example:
        >>> from brickyard.base._messages import shown
        >>> shown("cat\x1b]0;title\x07, k\u00e4fer"), shown("two\nlines", keep="")
        ('cat\\x1b]0;title\\x07, k\xe4fer', 'two\\nlines')
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def json_text(value: object, indent: int | None = None) -> str:
    r"""JSON with escapes in place of what is not printable; letters of any script stay as they are.

    Example:
        >>> from brickyard.base._messages import json_text
        >>> json_text(["k\u00e4fer", "\u202ehen"])
        '["k\xe4fer", "\\u202ehen"]'
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def told(value: object, most: int = 400) -> str:
    r"""Shorten foreign text to one safe line for a message of ours.

    Example:
        >>> from brickyard.base._messages import told
        >>> told("a\nb\x1b[2J"), told("x" * 1000, most=8)
        ('a b\\x1b[2J', 'xxxxxxxx...')
    """
    text = str(value)
    text = shown(" ".join(text[: most + 1].split()) + text[most + 1 : most + 2], keep="")
    return text if len(text) <= most else text[:most] + "..."


MOST_WORD = 100  # longest name to compare


def writable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: half a surrogate pair cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


MOST_WITHIN = 6  # names that a word is a part of, which are told


def near(word: str, known: Sequence[str]) -> str:
    """Return a hint ("; did you mean ...?") for a word that resembles a known one, or is a part of a few, or "".

    Example:
        >>> from brickyard.base._messages import near
        >>> near("catt", ["dog", "cat"]), near("zebra", ["dog", "cat"])
        ("; did you mean 'cat'?", '')
    """
    if len(word) > MOST_WORD:
        return ""
    within = [name for name in known if word.casefold() in name.casefold()] if len(word) > 2 else []
    within = [name for name in within if len(name) <= MOST_WORD]
    if 0 < len(within) <= MOST_WITHIN:
        return f"; did you mean {' or '.join(map(repr, within))}?"
    found = get_close_matches(word, [name for name in known if len(name) <= MOST_WORD], 3, 0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def brief(value: object, most: int = 60) -> str:
    """The beginning of a value, in one line, for a message."""
    text = shown(" ".join(repr(value).split()), keep="")
    return text if len(text) <= most else f"{text[:most]}..."


def tidy(text: str, most: int = 60) -> str:
    """Shorten a foreign name to one line: no control or direction characters, an ellipsis where it is cut."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def nearest(word: str, known: Any) -> str:
    """The end of a message about an unknown word: what may have been meant, and what exists."""
    choices = [str(item) for item in known]
    close = difflib.get_close_matches(word, choices, 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; use one of {', '.join(choices[:24])}" if choices else ""


def path_title(path: Path) -> str:
    """What data in a file are called: by its folder and its name, or by its name alone if it was given so.

    Example:
        >>> from pathlib import Path
        >>> from brickyard.base._messages import path_title
        >>> path_title(Path("photos/test.csv")), path_title(Path("test.csv"))
        ('photos/test', 'test')
    """
    return f"{path.parent.name}/{path.stem}" if path.parent.name else path.stem
