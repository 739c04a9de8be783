"""What holds while Brickyard works, whatever the caller's settings are: one result for one input."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

from brickyard.base._errors import SurgeryError
from brickyard.base._messages import first_line

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def steady(call: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Run a function outside the caller's inference mode, `no_grad`, autocast and default device.

    What it makes is then made of ordinary tensors, where and in the type that the source's numbers have.

    Example:
        >>> import torch
        >>> from brickyard.runtime._isolation import steady
        >>> with torch.inference_mode():
        ...     torch.zeros(1).is_inference(), steady(torch.zeros)(1).is_inference()
        (True, False)
    """

    @functools.wraps(call)
    def run(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            return call(*args, **kwargs)

    return run


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
