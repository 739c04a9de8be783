"""What holds while Brickyard works, whatever the caller's settings are: one result for one input."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from brickyard.base._errors import SurgeryError
from brickyard.base._messages import first_line


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """For imports of libraries that draw random numbers while they load: the caller's next ones stay the same."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def gradients(instead: str) -> Iterator[None]:
    """For backward passes through a network of the caller's, and the passes before them.

    Args:
        instead: What does without gradients.

    Raises:
        SurgeryError: The network overwrites what they need.
    """
    try:
        yield
    except RuntimeError as error:
        if "inplace" not in (text := first_line(error)) and "in-place" not in text:
            raise
        raise SurgeryError(
            "surgery-no-gradients",
            f"the network overwrites values that its gradients need, so torch cannot compute them ({text[:120]}); "
            f"use a form of the network that overwrites nothing, or {instead}",
        ) from error
