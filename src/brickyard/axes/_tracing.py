"""Reads a model as a `Network`: symbolic tracing, in evaluation mode, with the model left unchanged."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from brickyard.axes._answers import (
    LOGITS_ALONE,
    SHOWN,
    Form,
    Path,
    at,
    detector_hint,
    logits_in,
    path_to_logits,
    shapes_in,
    told_of,
)
from brickyard.axes._converting import attribute, converted, own_copy, shared_layer
from brickyard.axes._exporting import export_draft
from brickyard.axes._lowering import Draft, lowered
from brickyard.axes._places import (
    advice_for,
    after,
    drawing_step,
    failing_step,
    first_step,
    line_of_error,
    line_of_forward,
    line_running,
    mixing_step,
    not_finite,
    parting_step,
)
from brickyard.axes._settling import settle
from brickyard.axes._sizes import ODD, fix_numbers, larger
from brickyard.base._errors import BrickyardError, BrickyardWarning, TraceError
from brickyard.base._interrupts import Held
from brickyard.base._messages import first_line
from brickyard.base._sides import BATCHED, BATCHES, by_sides
from brickyard.network._identity import source_of, wrapped
from brickyard.network._layer_types import find_type
from brickyard.network._network import Network
from brickyard.network._torch_private import NO_FORWARD, hooked

_tracing = threading.RLock()
_UNROLLED = ("lstm", "gru", "rnn_tanh", "rnn_relu")  # step by step, for as many steps as an image has
_MOST_STEPS = 150  # of a network that is exported for images of any size: what torch infers about sizes takes minutes


@contextmanager
def _same_luck(like: Tensor) -> Iterator[None]:
    """Restore torch's global generators, since a model may draw from them."""
    with torch.random.fork_rng([like.device] if like.is_cuda else []):
        yield


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a model without `torch.compile`: compiling it for two images takes too long."""
    if not any(type(module).__name__ == "OptimizedModule" for module in model.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _check_finite(model: nn.Module) -> None:
    numbers = [*model.named_parameters(), *model.named_buffers()]
    for place, value in numbers:
        if not value.is_floating_point():
            continue
        masks = not isinstance(value, nn.Parameter) and not place.endswith(("running_mean", "running_var"))
        with torch.inference_mode():
            bad = value.isnan() if masks else ~value.isfinite()  # a mask may hold infinities
        if bool(bad.any()):
            raise TraceError(
                "trace-not-finite",
                f"the network must be trained, but {int(bad.sum())} of {value.numel()} values in "
                f"{place!r} are NaN or infinite; load weights from before that",
            )


class _Tracer(fx.Tracer):
    """Stops at layers of the table and torch's own layers, and remembers each step's line, and where it failed."""

    def __init__(self) -> None:
        super().__init__()
        self.deepest = ""
        self.lines: dict[str, str] = {}
        self.thread = threading.get_ident()  # during tracing, torch sends all modules' calls here

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if find_type(m) is not None:
            return True
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if isinstance(m, nn.Sequential | nn.ModuleList | nn.ModuleDict) or wrapped(m) is not None:
            return False
        return type(m).__module__.startswith("torch.nn")

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        before = self.deepest
        self.deepest = self.path_of_module(m)
        result = super().call_module(m, self._forward_of(m), args, kwargs)
        self.deepest = before  # not in a finally: a failure needs the innermost name
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        step = super().create_node(*args, **kwargs)
        self.lines[step.name] = line_running(_traced.__code__)
        return step

    @staticmethod
    def _forward_of(m: nn.Module) -> Callable[..., Any]:
        """A module's forward without hooks, which would see steps instead of numbers."""
        inner = wrapped(m)
        return m.forward if inner is None else inner

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return an attribute, as a step if it is a tensor; calls of other threads pass through."""
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def read_network(model: nn.Module, example: Tensor, output: str | None = None, form: Form = LOGITS_ALONE) -> Network:
    """Trace a model into a `Network` that shares its weights and computes the same.

    Args:
        model: Any module that takes one image batch and returns logits (batch, classes), as they are or in a dict, a
            tuple or an object with fields.
        example: Example images (batch, channels, height, width), signals (batch, channels, length) or cubes (batch,
            channels, depth, height, width).
        output: The part of what it returns that holds the logits, where several could.
        form: What it returns, if not logits.

    Raises:
        OptionError: The model returns no part of that name.
        TraceError: The model cannot be traced or does not return logits, or the traced network's result differs from
            the model's.
    """
    model = source_of(model)
    if refusal := getattr(type(model), "no_source", ""):
        raise TraceError("trace-no-source", f"a source must be one network, but {refusal}")
    if not isinstance(example, Tensor):
        raise TraceError(
            "trace-example",
            f"the example must be a tensor of images, got {type(example).__name__}; give two images "
            "in the form the model takes",
        )
    if example.ndim not in BATCHED or not example.is_floating_point() or not example.numel():
        raise TraceError(
            "trace-example",
            f"the example must be floating-point {BATCHES}, got {tuple(example.shape)} of {example.dtype}; give two "
            "inputs in the form the model takes",
        )
    _check_finite(model)
    with _same_luck(example), _uncompiled(model), torch.no_grad():
        _defaults(model)
        result = _run(model, example)
        path = _path(model, result, len(example), output, form)
        logits = at(result, path)
        _checked(model, logits, example, partial(_first_not_finite, model, path))
        other = _larger(model, example, path, form)
        network = form.standardised(lowered(_trace(model, example.clone(), path, other)), logits.ndim)
        call = partial(_call, model, output, form)
        _check_equal(model, network, _three_images(example), call)
        if other is not None:
            _warn_of_sizes(call, network, other, example)
    return network


def _three_images(example: Tensor) -> Tensor:
    """Images of one shape and range that differ from each other: those given, or mirrored, or drawn."""
    first = example[:1]
    found = [first]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2, *first.shape[1:], generator=generator, dtype=torch.float64)
    low, high = (float(value) for value in first.double().aminmax())
    drawn = (low + drawn * ((high - low) or 1.0)).to(first)
    for image in (*example[1:].split(1), first.flip(-1), first.flip(-2), *drawn.split(1)):
        if len(found) < 3 and not any(torch.equal(image, other) for other in found):
            found.append(image)
    return torch.cat(found)


def _check_equal(model: nn.Module, network: Network, images: Tensor, call: Callable[[Tensor], Tensor]) -> None:
    """Compare what was read with the model, on three different images, and on each of two alone.

    Raises:
        TraceError: They differ, or the model's answer for an image depends on the others of its batch.
    """
    name = type(model).__name__
    try:
        expected = call(images.clone())
    except TraceError as error:
        if error.code == "trace-not-finite":
            raise
        cause = error.__cause__ or error
        raise TraceError(
            "trace-batch",
            f"{name} runs on the example and not on {len(images)} images ({first_line(cause)})"
            f"{after(line_of_error(cause))}: its forward holds the size of a batch; take it from x.shape[0], or write "
            "-1 in its place",
        ) from error
    for place in (0, len(images) - 1):
        alone = call(images[place : place + 1].clone())
        if not _close(alone[0], expected[place], 1e-3):
            if not _close(call(images.clone()), expected, 1e-6):
                break  # it draws random numbers, which is said below
            where = _found(partial(mixing_step, network, images, place))
            raise TraceError(
                "trace-batch",
                f"the answer of {name} for an image depends on the other images of its batch{where}: alone it differs "
                f"from its answer among {len(images)} by up to {float((alone[0] - expected[place]).abs().max()):.2g}; "
                "make the forward treat every image by itself",
            )
    try:
        found = network(images)
        same = found.shape == expected.shape and _close(found, expected, 1e-4)
        same = same and _close(network(images[:1])[0], expected[0], 1e-3)
    except Exception as error:
        raise TraceError(
            "trace-batch",
            f"{name} as it was read runs on the example and fails on {len(images)} images or one ({first_line(error)})"
            f"{_failing(network, images)}: its forward holds the size of a batch; take it from x.shape[0], or write -1 "
            "in its place",
        ) from error
    if not same:
        raise _mismatch(model, network, images)


def _failing(network: Network, images: Tensor) -> str:
    """The step that fails on some images or on the first of them, for a message."""
    return _found(partial(failing_step, network, images)) or _found(partial(failing_step, network, images[:1]))


def _found(find: Callable[[], str]) -> str:
    """The step that a search ends at, as the end of a phrase; a search that fails itself adds nothing to a message."""
    try:
        place = find()
    except Exception:
        place = ""
    return f", at {place}" if place else ""


def _mismatch(model: nn.Module, network: Network, images: Tensor) -> TraceError:
    watched = [n or type(m).__name__ for n, m in model.named_modules() if hooked(m)]
    drawn = _found(partial(drawing_step, network, images))
    parted = _found(partial(parting_step, model, network, images))
    seen = f"forward hooks of {watched[0]!r}" if watched else "numbers in Python, random state"
    if drawn:
        where = f"; it draws anew in every run{drawn}"
    elif parted:
        where = f"; the first layer to differ is{parted.removeprefix(', at')}, so look there and before"
    else:
        where = f"; look at what follows the last layer of its forward{after(line_of_forward(model))}"
    return TraceError(
        "trace-mismatch",
        f"{type(model).__name__} was traced, but the trace does not return what the model returns: its forward "
        f"depends on something that tracing does not see ({seen}){where}; "
        f"{'remove them, or ' if watched else ''}make that part a layer of its own",
    )


def _first_not_finite(model: nn.Module, path: Path, images: Tensor) -> str:
    """The first step whose value is not finite, for a message; the model has to be read for it."""

    def find() -> str:
        return first_step(lowered(_trace(model, images, path)), images, not_finite)

    return " in the images themselves" if not_finite(images) else _found(find)


def _close(found: Tensor, expected: Tensor, share: float) -> bool:
    """Whether outputs are equal but for rounding, as a share of the largest."""
    if found.dtype in (torch.float16, torch.bfloat16):
        share = max(share, 3e-2)
    return torch.allclose(found, expected, rtol=share, atol=share * float(expected.abs().max().clamp(min=0.1)))


def _call(model: nn.Module, output: str | None, form: Form, example: Tensor) -> Tensor:
    """A model's logits, (batch, classes), or what else it returns."""
    return _checked(model, rows_of(model, _run(model, example), len(example), output, form), example)


def rows_of(model: nn.Module, result: Any, images: int, output: str | None = None, form: Form = LOGITS_ALONE) -> Tensor:
    """The logits in what a model returned for so many images, (images, classes); one column may stand for two classes.

    Raises:
        OptionError: The result has no part of the name `output`.
        TraceError: There are none, or several tensors could be them.
    """
    return form.standard(at(result, _path(model, result, images, output, form)))


def _run(model: nn.Module, example: Tensor) -> Any:
    try:
        return model(example.clone())
    except Exception as error:
        raise TraceError(
            "trace-run-failed",
            f"{type(model).__name__} fails on an example of shape {tuple(example.shape)}{after(line_of_error(error))}: "
            f"{first_line(error)}; give `example` images of the size and type the model takes",
        ) from error


def _path(model: nn.Module, result: Any, images: int, output: str | None, form: Form = LOGITS_ALONE) -> Path:
    """The way to the logits in what a model returned for so many images."""
    if isinstance(model, Network):  # read from a file, with one result: what was asked for was chosen there
        output = None
    path = path_to_logits(result, images, output, form)
    if path is None or not form.fits(at(result, path), images):
        line = line_of_forward(model, returns=True)
        where = f" (it returns at {line})" if line else ""
        named = f"; {output!r} does not hold them alone" if output is not None else ""
        what = "the logits" if form.boxes is None else "one tensor"
        advice = f"return {what} alone"
        if len(several := logits_in(result, images, form)) > 1:
            named += f"; {' and '.join(map(repr, several[:6]))} could be them"
            name = several[0] if form.boxes is None else ",".join(several[:SHOWN])  # in the order of `boxes`
            order = "" if form.boxes is None else " (all that are needed, in the order in which boxes= describes them)"
            advice = f"name them with output={name!r}, or --output-name {name}{order}"
        raise TraceError(
            "trace-output",
            f"{type(model).__name__} must return floating-point {form.words} for {images} images, alone, "
            f"{_AS_LOGITS if form.boxes is None else ''}or as the only tensor of that form, got "
            f"{told_of(result)}{where}{named}; {advice}, or wrap it in a module that returns them"
            f"{detector_hint(shapes_in(result), form)}",
        )
    return path


def _checked(
    model: nn.Module, logits: Tensor, images: Tensor, infinite_at: Callable[[Tensor], str] = lambda images: ""
) -> Tensor:
    """The logits, if they are finite; `infinite_at` finds where they stopped being so."""
    if not bool(logits.isfinite().all()):
        raise TraceError(
            "trace-not-finite",
            f"{type(model).__name__} must return finite logits, got NaN or infinity for images of shape "
            f"{tuple(images.shape)} and type {images.dtype}{infinite_at(images)}; check the weights, and give images "
            "in the range it was trained on",
        )
    return logits


_AS_LOGITS = "as 'logits', "


def _larger(model: nn.Module, example: Tensor, path: Path, form: Form) -> Tensor | None:
    """A larger image, if the model takes one."""
    image = larger(example)
    try:
        logits = at(model(image.clone()), path)
    except Exception:  # whatever the model's own code raises
        return None
    return image if form.fits(logits, 1) else None


def _warn_of_sizes(run: Callable[[Tensor], Tensor], network: Network, other: Tensor, example: Tensor) -> None:
    """Say if the network runs on larger images, but returns something else than the model."""

    def differs(images: Tensor) -> bool:
        try:
            found, wanted = network(images.clone()), run(images)
        except Exception:  # one of them takes no such images, and says so where it is given them
            return False
        return not _close(found, wanted, 1e-3)

    if differs(other) or differs(larger(example, ODD)):
        warnings.warn(
            "the model computes with sizes of its images in a way that cannot be followed: what was read of it holds "
            f"for images like those of {by_sides(example.shape[2:])}; give it images of that size",
            BrickyardWarning,
            stacklevel=2,
        )


def _trace(model: nn.Module, example: Tensor, path: Path, other: Tensor | None = None) -> Draft:
    """Trace symbolically; use `torch.export` if that fails, or leaves unknown operations that export knows.

    Args:
        model: The model.
        example: Images.
        path: The way to the logits in what it returns.
        other: A larger image, if the model takes one.
    """
    with Held(long=True), _tracing:  # torch's tracer and exporter patch functions that all threads use
        return _traced(model, example, path, other)


def _exported(model: nn.Module, example: Tensor, path: Path, other: Tensor | None) -> Draft | str:
    """Export a model for images of any size if it takes them and can be read so, else for those of one size."""
    found = export_draft(model, example, path)
    if other is None or not isinstance(found, Draft) or len(found.nodes) > _MOST_STEPS:
        return found
    if any(node.target in _UNROLLED for node in found.nodes):
        return found
    free = export_draft(model, example, path, any_size=True)
    suits = isinstance(free, Draft) and not free.unknown() and _suits(free, model, other, path)
    return free if suits else found


def _suits(draft: Draft, model: nn.Module, images: Tensor, path: Path) -> bool:
    """Whether a model as it was read returns for some images what the model does."""
    try:
        fix_numbers(draft, images)
        return _close(draft.network()(images), at(model(images.clone()), path), 1e-4)
    except Exception:  # a step that was read for one size can fail in any way
        return False


def _traced(model: nn.Module, example: Tensor, path: Path, other: Tensor | None) -> Draft:
    if type(model) is Network and not hooked(model):
        return _as_draft(model, example)
    tracer = _Tracer()
    try:
        draft = converted(model, tracer.trace(model, concrete_args=_defaults(model)), example, tracer.lines, path)
        settle(draft)
        fix_numbers(draft, other)
    except BrickyardError:
        raise
    except Exception as error:
        exported = _exported(model, example, path, other)
        if isinstance(exported, Draft):
            return exported
        where = f" in layer {tracer.deepest!r}" if tracer.deepest else ""
        raise TraceError(
            "trace-control-flow",
            f"{type(model).__name__} cannot be traced{where}{after(line_of_error(error))}: {first_line(error)}; "
            f"torch.export cannot trace it either ({exported}). Python control flow that depends on tensor values "
            f"cannot be traced: {advice_for(first_line(error))}, or move that part into a separate layer",
        ) from error
    unknown = draft.unknown()
    if unknown:
        exported = _exported(model, example, path, other)
        if isinstance(exported, Draft) and len(exported.unknown()) < len(unknown):
            return exported
    return draft


def _as_draft(network: Network, example: Tensor) -> Draft:
    """Take a network's own steps: it is data already."""
    layers = {name: shared_layer(network.layer(name)) for name in network.layer_names}
    tensors = {name: attribute(network, name, "") for name in network.tensor_names}
    foreign = {name: own_copy(call) if isinstance(call, nn.Module) else call for name, call in network.foreign.items()}
    return Draft(list(network.nodes), layers, tensors, foreign, example)


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """Values for all arguments of forward after the first, which must have defaults."""
    if getattr(model.forward, "__func__", None) is NO_FORWARD:
        raise TraceError(
            "trace-forward-inputs",
            f"the model must be a classifier that takes one image batch, but {type(model).__name__} "
            "has no forward; give the module that is called on images",
        )
    parameters = list(inspect.signature(model.forward).parameters.values())
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise TraceError(
            "trace-forward-inputs",
            "the model must be a classifier that takes one image batch, but "
            f"{type(model).__name__}.forward{after(line_of_forward(model))} has no positional argument "
            f"({', '.join(p.name for p in parameters) or 'nothing'}); wrap it in a module that "
            "passes it the images",
        )
    rest = [p for p in parameters[1:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in rest if p.default is inspect.Parameter.empty]
    if needed:
        raise TraceError(
            "trace-forward-inputs",
            "the model must be a classifier that takes one image batch, but "
            f"{type(model).__name__}.forward{after(line_of_forward(model))} also needs {', '.join(needed)}; wrap it in "
            "a module that supplies the rest",
        )
    return {p.name: p.default for p in rest} or None
