"""Every error that Brickyard raises on purpose: one base class, few subclasses, and a stable code per kind.

A message has three parts, in this order: what was asked, what was found, and what to do next.
"""

from __future__ import annotations

import re

from brickyard.base._messages import shown


class BrickyardError(Exception):
    """Base class of all errors that Brickyard raises on purpose.

    Attributes:
        code: The kind of problem, such as "task-unknown-class"; stable across versions, unlike the message. The
            documentation lists them all.

    Example:
        >>> import brickyard as by
        >>> try:
        ...     by.load("missing.safetensors")
        ... except by.BrickyardError as error:
        ...     print(type(error).__name__, error.code)
        FileError file-missing
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(shown(message, keep=""))  # names from files are in it
        self.code = code

    def __reduce__(self) -> tuple[type[BrickyardError], tuple[str, str]]:
        return type(self), (self.code, str(self))


class OptionError(BrickyardError):
    """An option's value cannot be used."""


class TraceError(BrickyardError):
    """A model cannot be read as a network of layers and operations."""


class TaskError(BrickyardError):
    """A task is empty, or names classes that are missing or repeated."""


class DataError(BrickyardError):
    """Images or labels do not fit their purpose."""


class SurgeryError(BrickyardError):
    """A network cannot be cut, padded, healed or joined as asked."""


class FileError(BrickyardError):
    """A file cannot be read or written, or is not what it claims to be."""


class ProcessError(BrickyardError):
    """One of several cooperating processes has stopped."""


class BrickyardWarning(UserWarning):
    """What was done is right, and is probably not what was meant.

    Example:
        >>> import warnings
        >>> from brickyard import BrickyardWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", BrickyardWarning)  # stop where a source is no better than chance
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message, keep=""))


def reading_code(error: Exception) -> str:
    """The code of a failed read, depending on whether the file is missing or unreadable."""
    return "file-missing" if isinstance(error, FileNotFoundError | NotADirectoryError) else "file-unreadable"


_OF_THE_MOMENT = re.compile(r"os error|allocat|not enough memory|out of memory", re.IGNORECASE)  # as libraries say it


def passing(error: BaseException) -> bool:
    """Whether a failed read tells of this moment (memory, disk, open files, depth of calls), not of what was read.

    Whatever came before it counts too: an error that hides such a one is one.

    Example:
        >>> from brickyard.base._errors import FileError, passing
        >>> passing(FileError("file-wrong-kind", "relevances")), passing(OSError(24, "Too many open files"))
        (False, True)
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError | MemoryError | RecursionError):
            return True
        if isinstance(found, BrickyardError):
            if found.code in ("file-busy", "file-missing", "file-unreadable"):
                return True
        elif _OF_THE_MOMENT.search(str(found)):
            return True
        found = found.__cause__ or found.__context__
    return False
