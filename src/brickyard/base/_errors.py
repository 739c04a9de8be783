"""Every error that Brickyard raises on purpose: one base class, few subclasses.

A message has three parts, in this order: what was asked, what was found, and what to do next.
"""

from __future__ import annotations


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
