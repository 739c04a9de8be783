"""Messages for people: safe, short, with a hint to the nearest known word."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any


def first_line(error: BaseException) -> str:
    r"""What an error of another library says, in one line for a message of ours; its kind where it says nothing.

    Example:
        >>> from brickyard.base._errors import first_line
        >>> first_line(RuntimeError("no\nmore")), first_line(KeyError())
        ('no', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(text: str, keep: str = "\n\t") -> str:
    r"""A text of which nothing is obeyed where it is shown: characters that are not printable become escapes.

    Those are control characters, which terminals take for commands, marks that turn the direction of writing, and
    halves of characters, as names of files may have them.

    Args:
        text: The text.
        keep: Characters that stay as they are.

    Example:
        >>> from brickyard.base._errors import shown
        >>> shown("cat\x1b]0;title\x07, k\u00e4fer"), shown("two\nlines", keep="")
        ('cat\\x1b]0;title\\x07, k\xe4fer', 'two\\nlines')
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def told(value: object, most: int = 400) -> str:
    r"""Foreign text for a message of ours: one line in which nothing is obeyed, and not a long one.

    Example:
        >>> from brickyard.base._errors import told
        >>> told("a\nb\x1b[2J"), told("x" * 1000, most=8)
        ('a b\\x1b[2J', 'xxxxxxxx...')
    """
    text = str(value)
    text = shown(" ".join(text[: most + 1].split()) + text[most + 1 : most + 2], keep="")
    return text if len(text) <= most else text[:most] + "..."


MOST_WORD = 100  # longer names are not compared


def writable(text: str) -> bool:
    """Whether a text can be written as UTF-8: half a surrogate pair cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def near(word: str, known: Sequence[str]) -> str:
    """A hint ("; did you mean ...?") for a word that is like a known one, or "".

    Example:
        >>> from brickyard.base._options import near
        >>> near("catt", ["dog", "cat"]), near("zebra", ["dog", "cat"])
        ("; did you mean 'cat'?", '')
    """
    if len(word) > MOST_WORD:
        return ""
    found = get_close_matches(word, [name for name in known if len(name) <= MOST_WORD], 3, 0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def brief(value: object, most: int = 60) -> str:
    """A value in a message: its beginning, in one line."""
    text = shown(" ".join(repr(value).split()), keep="")
    return text if len(text) <= most else f"{text[:most]}..."


def tidy(text: str, most: int = 60) -> str:
    """A name from outside as one short line: no control or direction characters, an ellipsis where it is cut."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def nearest(word: str, known: Any) -> str:
    """The end of a message about a word that is not known: what may have been meant, and what there is."""
    choices = [str(item) for item in known]
    close = difflib.get_close_matches(word, choices, 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; use one of {', '.join(choices[:24])}" if choices else ""
