"""Every error that Brickyard raises on purpose: one base class, few subclasses.

A message has three parts, in this order: what was asked, what was found, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "BrickyardError",
    "DataError",
    "FileError",
    "OptionError",
    "ProcessError",
    "SurgeryError",
    "TaskError",
    "TraceError",
    "first_line",
    "shown",
    "told",
]


class BrickyardError(Exception):
    """Base class of all errors that Brickyard raises on purpose.

    Example:
        >>> import brickyard as by
        >>> try:
        ...     by.load("missing.safetensors")
        ... except by.BrickyardError as error:
        ...     print(type(error).__name__)
        FileError
    """


class OptionError(BrickyardError):
    """An option has a value that cannot be used."""


class TraceError(BrickyardError):
    """A model cannot be read as a network of layers and operations."""


class TaskError(BrickyardError):
    """A task names classes that are missing, repeated, or none at all."""


class DataError(BrickyardError):
    """Images or labels do not fit what they are used for."""


class SurgeryError(BrickyardError):
    """A network cannot be cut, padded, healed or joined as asked."""


class FileError(BrickyardError):
    """A file cannot be read or written, or is not what it claims to be."""


class ProcessError(BrickyardError):
    """One of several processes on a job has stopped."""


def first_line(error: BaseException) -> str:
    r"""What an error of another library says, in one line for a message of ours; its kind where it says nothing.

    Example:
        >>> from brickyard.errors import first_line
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
        >>> from brickyard.errors import shown
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
        >>> from brickyard.errors import told
        >>> told("a\nb\x1b[2J"), told("x" * 1000, most=8)
        ('a b\\x1b[2J', 'xxxxxxxx...')
    """
    text = str(value)
    text = shown(" ".join(text[: most + 1].split()) + text[most + 1 : most + 2], keep="")
    return text if len(text) <= most else text[:most] + "..."
