"""Where the logits lie in what a model returns, and how they become (batch, classes).

Models return a tensor, a dict, an object with fields, or a tuple; logits have further dimensions of size 1, or are a
single number for two classes. Where several tensors of a result can be logits, the user names one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from brickyard.base._boxes import FAMILIES, Boxes
from brickyard.base._errors import OptionError
from brickyard.base._messages import brief, near
from brickyard.network._network import Network, Node, Ref

LOGITS = "logits"  # what libraries call them
SHOWN = 8  # parts of a result in a message
Path = tuple[str | int, ...]
"""Keys, names of fields or places that lead from what a model returns to its logits."""


@dataclasses.dataclass(frozen=True)
class Form:
    """The form of what is looked for in a model's result: logits, or a detector's outputs at places.

    Attributes:
        boxes: How a detector's outputs are read; None: it is a classifier, and returns logits.
    """

    boxes: Boxes | None = None

    @property
    def words(self) -> str:
        """What is looked for, for messages."""
        if self.boxes is None:
            return "logits (batch, classes)"
        return "outputs (batch, outputs, places)" if self.boxes.outputs_first else "outputs (batch, places, outputs)"

    def fits(self, value: Any, images: int) -> bool:
        """Whether a tensor can be that for so many images."""
        if self.boxes is None:
            return can_be_logits(value, images)
        return (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.ndim == 3
            and value.shape[0] == images
            and value.numel() > 0
        )

    def standard(self, value: Tensor) -> Tensor:
        """(B, classes) logits, or (B, outputs, places)."""
        if self.boxes is None:
            return as_rows(value)
        return value if self.boxes.outputs_first else value.transpose(1, 2)

    def standardised(self, network: Network, ndim: int) -> Network:
        """Let a network whose result has `ndim` dimensions return what `standard` makes of it."""
        if self.boxes is None:
            return with_rows(network, ndim)
        if self.boxes.outputs_first:
            return network
        return _extended(network, lambda name, ref: [Node(name, "function", "transpose", (ref, 1, 2))])


LOGITS_ALONE = Form()
DETECTOR_HINT = (
    "; if this is a detector, say how its outputs are read: --outputs yolox or another of "
    f"{', '.join(FAMILIES)} (in Python outputs='yolox' or brickyard.Boxes(...); for load_source boxes=)"
)


def detector_hint(shapes: Iterable[Sequence[int]], form: Form) -> str:
    """What to say where logits are looked for, and something has the form of a detector's outputs; "" otherwise."""
    return DETECTOR_HINT if form.boxes is None and any(len(shape) == 3 for shape in shapes) else ""


def path_to_logits(result: Any, images: int, output: str | None = None, form: Form = LOGITS_ALONE) -> Path | None:
    """Find the logits in what a model returns.

    Args:
        result: A tensor; or a dict, an object with fields or a tuple, nested or not. Of several tensors, that named
            "logits" is taken, else the only one that can be logits, or whose probabilities all others are.
        images: The number of images that it was given.
        output: The part of the result to look in, as `parts_of` names it; None: all of it.
        form: What is looked for, if not logits.

    Returns:
        The way to them; None if there is no such tensor, or several.

    Raises:
        OptionError: The result has no part of that name.
    """
    if output is not None:
        start = path_to(result, output)
        rest = path_to_logits(at(result, start), images, form=form)
        return None if rest is None else (*start, *rest)
    if isinstance(result, Tensor):
        return ()
    fields = dict(_fields(result))
    if form.boxes is None and isinstance(fields.get(LOGITS), Tensor):
        return (LOGITS,)
    found = [
        (key, *rest)
        for key, value in fields.items()
        if (rest := path_to_logits(value, images, form=form)) is not None and form.fits(at(value, rest), images)
    ]
    if len(found) > 1 and form.boxes is None:
        found = [path for path in found if all(_come_of(at(result, path), at(result, one)) for one in found)]
    return found[0] if len(found) == 1 else None


def _come_of(logits: Tensor, other: Tensor) -> bool:
    """Whether an output is another one's probabilities, or their logarithms, or that itself."""
    logits, other = as_rows(logits), as_rows(other)
    ways = [logits, logits.sigmoid()]
    if logits.shape[1] > 1:
        ways += [logits.softmax(1), logits.log_softmax(1)]
    near = math.sqrt(torch.finfo(logits.dtype).eps)
    return other.shape == logits.shape and any(
        torch.allclose(other.to(logits.dtype), way, rtol=near, atol=near) for way in ways
    )


def path_to(result: Any, output: str) -> Path:
    """The way to the part of a result that has a name.

    Raises:
        OptionError: There is none.
    """
    named = dict(parts_of(result))
    if output in named:
        return named[output]
    if isinstance(result, tuple | list) and re.fullmatch(r"-?[0-9]{1,4}", output):  # as Python counts, also by names
        keys = [key for key, _ in _fields(result)]
        with contextlib.suppress(IndexError):
            return (keys[int(output)],)
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    found = f"it has {', '.join(map(brief, list(named)[:SHOWN]))}{more}{near(output, list(named))}"
    raise OptionError(
        "option-choice",
        f"output={brief(output)} was asked for, and the model returns {told_of(result)}; "
        f"{f'{found}: give one of these' if named else 'it has no parts: leave output out'}",
    )


def parts_of(result: Any, before: Path = ()) -> Iterator[tuple[str, Path]]:
    """The parts of what a model returns, by keys joined with dots, such as "head.logits" or "0": each with its way."""
    for key, value in _fields(result):
        path = (*before, key)
        yield ".".join(map(str, path)), path
        yield from parts_of(value, path)


def shapes_in(result: Any) -> Iterator[tuple[int, ...]]:
    """The shapes of all tensors in a result."""
    for value in (result, *(at(result, path) for _, path in parts_of(result))):
        if isinstance(value, Tensor):
            yield tuple(value.shape)


def logits_in(result: Any, images: int, form: Form = LOGITS_ALONE) -> list[str]:
    """The names of all parts of a result that can be logits, or have another form."""
    return [name for name, path in parts_of(result) if form.fits(at(result, path), images)]


def can_be_logits(value: Any, images: int) -> bool:
    """Whether a tensor has one row of numbers for each image, but for dimensions of size 1 behind them."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim > 0
        and value.shape[0] == images
        and value.numel() == images * (value.shape[1] if value.ndim > 1 else 1) > 0
    )


def at(value: Any, path: Path) -> Any:
    """What lies at the end of a path, in a model's result or in what tracing made of it.

    Raises:
        KeyError: Nothing does.
    """
    for key in path:
        value = dict(_fields(value))[key]
    return value


def told_of(result: Any) -> str:
    """What a model returned, for a message."""
    if isinstance(result, Tensor):
        return f"a tensor of shape {tuple(result.shape)} of {result.dtype}"
    fields = [f"{key}: {_shape(value)}" for key, value in _fields(result)]
    return f"{type(result).__name__} of {', '.join(fields[:SHOWN])}" if fields else type(result).__name__


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _fields(value: Any) -> Iterator[tuple[str | int, Any]]:
    """The parts of a value that holds others, by key, name of a field, or place."""
    if isinstance(value, fx.Node):  # an object with fields, as symbolic tracing notes it
        if isinstance(value.target, type) and dataclasses.is_dataclass(value.target):
            names = (field.name for field in dataclasses.fields(value.target))
            yield from {**dict(zip(names, value.args, strict=False)), **value.kwargs}.items()
    elif isinstance(value, Mapping):
        yield from value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        yield from enumerate(value)


# -- as rows of logits ---------------------------------------------------------------------------------------


def as_rows(logits: Tensor) -> Tensor:
    """(B,), (B, C) or (B, C, 1, ...) -> (B, C)."""
    return logits.unsqueeze(1) if logits.ndim == 1 else logits if logits.ndim == 2 else logits.flatten(1)


def with_rows(network: Network, ndim: int) -> Network:
    """Let a network return rows of logits, where its result has `ndim` dimensions."""
    if ndim == 2:
        return network
    step = ("unsqueeze", 1) if ndim == 1 else ("flatten", 1)
    return _extended(network, lambda name, ref: [Node(name, "function", step[0], (ref, step[1]))])


def with_two_classes(network: Network) -> Network:
    """Turn the one logit z of "yes" into two logits, (-z/2, z/2), whose softmax is (1 - sigmoid(z), sigmoid(z))."""

    def steps(name: str, ref: Ref) -> list[Node]:
        yes = Node(f"{name}_yes", "function", "mul", (ref, 0.5))
        no = Node(f"{name}_no", "function", "mul", (ref, -0.5))
        return [no, yes, Node(name, "function", "cat", ([Ref(no.name), Ref(yes.name)],), {"dim": 1})]

    return _extended(network, steps)


def _extended(network: Network, steps: Callable[[str, Ref], list[Node]]) -> Network:
    """The same network with steps behind its result, made from a free name for the last of them and the result."""
    *before, output = network.nodes
    taken = {node.name for node in before}
    name = "rows"
    while any(one.startswith(name) for one in taken):
        name += "_"
    more = steps(name, output.args[0])
    return network.with_steps([*before, *more, Node(output.name, "output", "", (Ref(more[-1].name),))])
