"""The one guard around every call that runs a network: the caller's models and settings come back as they were."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from brickyard.base._errors import ProcessError
from brickyard.base._interrupts import OPEN, SHORT, desk, listen, reopen, unlisten
from brickyard.network._torch_private import Modes, SharedState, own_buffers, own_parameters, place_of, version_of

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

MOST = 1000  # entries of a list that may hold models


_CONTAINERS = (list, dict, set, OrderedDict)
_NOTHING: tuple[Any, ...] = ()  # what most of them hold


class _Held:
    """A module's state before anything ran it, and the threads that run it."""

    def __init__(self, module: nn.Module) -> None:
        self.users: set[int] = set()
        self.module = module
        self.training = module.training
        self.attributes = dict(vars(module))
        self.contents = {
            name: value.copy() if value else _NOTHING
            for name, value in self.attributes.items()
            if type(value) in _CONTAINERS
        }
        self.buffers = [(b, b.detach().clone(), version_of(b)) for b in own_buffers(module)]

    def restore(self) -> None:
        """Restore what running it has changed: attributes and their contents, buffers, the mode."""
        module = self.module
        for name in vars(module).keys() - self.attributes.keys():
            del vars(module)[name]
        for name, value in self.attributes.items():
            if vars(module).get(name, module) is not value:
                vars(module)[name] = value
            before = self.contents.get(name)
            if before is not None and (value or before) and not _same(value, before):
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(before)
        for buffer, numbers, version in self.buffers:
            if version is None or version_of(buffer) != version:
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(numbers)
        module.training = self.training


def _same(value: Any, before: Any) -> bool:
    """Whether a container holds the very same objects."""
    if isinstance(value, set):
        return value == set(before)
    if isinstance(value, list):
        return len(value) == len(before) and all(a is b for a, b in zip(value, before, strict=True))
    return (
        len(value) == len(before) and list(value) == list(before) and all(value[key] is before[key] for key in before)
    )


_held: dict[int, _Held] = {}  # modules that some thread runs; the last one to finish restores them
_holding = threading.Lock()
_mine = threading.local()  # guards: those that this thread is in


class Guard:
    """What one call may not change: models, and the state that all code of this thread or process shares."""

    def __init__(self, frame: FrameType) -> None:
        self.frame: FrameType | None = frame
        self.place = desk()
        self.before = self.place.holding
        self.taken: list[nn.Module] = []
        self.shared: list[nn.Module] = []  # that an outer call of this thread has taken
        self.read: list[tuple[Tensor, int | None, int | None]] = []
        self.settings = contextlib.ExitStack()
        self.outside: SharedState | None = None
        self.inside: Modes | None = None

    def enter(self, models: Iterable[nn.Module]) -> None:
        """Put models in evaluation mode, and leave the caller's settings; interrupts wait meanwhile."""
        self.place.holding = SHORT
        guards = _guards()
        listen(self, self.place)
        guards.append(self)
        self.outside = SharedState()
        _ordinary(self.settings)
        self.inside = Modes()
        self._take({id(module): module for model in models for module in model.modules()}.values())
        reopen(self.place, OPEN if self.place.owner is self else self.before)

    def leave(self, error: BaseException | None) -> None:
        """Put everything back, then raise an interrupt that waited.

        Raises:
            ProcessError: Another thread has changed a model meanwhile.
        """
        self.place.holding = SHORT
        try:
            changed = self._restored(error)
        finally:
            if self.place.owner is self:
                unlisten(self, self.place, error)
            else:
                reopen(self.place, self.before)
        if changed and (error is None or isinstance(error, Exception)):
            raise ProcessError(
                "process-model-changed",
                "the model changed while it was read: its weights were written to, as by a thread that trains it; let "
                "that finish first, or give copy.deepcopy(model)",
            ) from error

    def _restored(self, error: BaseException | None) -> bool:
        """Put everything back; whether weights have changed."""
        torn = (error is not None and not isinstance(error, Exception)) or self.place.raised
        if torn:
            _close(error)
        changed = any(version_of(value) != was or place_of(value) != where for value, was, where in self.read)
        if torn and self.inside is not None:
            self.inside.restore()
        self.settings.close()
        if torn and self.outside is not None:
            self.outside.restore()
        self._give()
        guards: list[Guard] = _mine.guards if hasattr(_mine, "guards") else []
        if self in guards:
            guards.remove(self)
        self.frame = None
        return changed

    def _take(self, modules: Iterable[nn.Module]) -> None:
        me = threading.get_ident()
        with _holding:
            for module in modules:
                held = _held.get(id(module))
                if held is not None and me in held.users:
                    self.shared.append(module)
                    continue
                if held is not None and not held.users & sys._current_frames().keys():
                    held.restore()  # the threads that had it are gone
                    held = None
                if held is None:
                    held = _held[id(module)] = _Held(module)
                self.taken.append(module)
                held.users.add(me)
            for module in self.taken:  # only once all are known: some show another's mode
                _evaluating(module)
        for value in {id(v): v for module in self.taken for v in own_parameters(module)}.values():
            self.read.append((value, version_of(value), place_of(value)))

    def _give(self) -> None:
        me = threading.get_ident()
        with _holding:
            for module in self.taken:
                held = _held.get(id(module))
                if held is not None and me in held.users:
                    held.users.discard(me)
                    if not held.users:
                        del _held[id(module)]
                        held.restore()
            for module in self.shared:
                held = _held.get(id(module))
                if held is not None and held.users == {me}:
                    held.restore()
                    _evaluating(module)
        self.taken, self.shared = [], []


def _evaluating(module: nn.Module) -> None:
    module.training = False
    if vars(module).get("_compiled_call_impl") is not None:
        vars(module)["_compiled_call_impl"] = None


def _guards() -> list[Guard]:
    """The guards that this thread is in; what is left of calls that were torn out of theirs is put back."""
    if not hasattr(_mine, "guards"):
        _mine.guards = []
    found: list[Guard] = _mine.guards
    if found:
        running = set()
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            running.add(frame)
            frame = frame.f_back
        for guard in [one for one in reversed(found) if one.frame not in running]:
            guard._restored(KeyboardInterrupt())
            if guard.place.owner is guard:
                guard.place.owner = None
    return found


def _close(error: BaseException | None) -> None:
    """Close what an interrupt has left open now, and not when nobody holds its traceback any more.

    Context managers that were being entered hang on frames of the traceback; until they are gone, what they have
    changed stays so, and it would be undone at any later time.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _ordinary(stack: contextlib.ExitStack) -> None:
    """Leave the caller's inference mode, `no_grad`, autocast and default device.

    What is made is then made of ordinary tensors, where and in the type that the source's numbers have.
    """
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    if not torch.is_grad_enabled():
        stack.enter_context(torch.enable_grad())
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    if torch.get_default_device().type != "cpu":
        stack.enter_context(torch.device("cpu"))


def _models(value: Any, depth: int = 3) -> Iterator[nn.Module]:
    """The models among arguments, also in lists and dicts of some."""
    if isinstance(value, nn.Module):
        yield value
    elif depth and isinstance(value, dict) and len(value) <= MOST:
        for item in value.values():
            yield from _models(item, depth - 1)
    elif depth and isinstance(value, list | tuple) and len(value) <= MOST:
        for item in value:
            yield from _models(item, depth - 1)


def guarded(call: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Guard a function that runs networks: every public one that takes a model, or makes one.

    It runs outside the caller's inference mode, `no_grad`, autocast and default device. The models among its arguments
    are in evaluation mode meanwhile, and come back as they were, also after an error or an interrupt.

    Example:
        >>> import torch
        >>> from brickyard.network._untouched import guarded
        >>> layer = torch.nn.Dropout()
        >>> guarded(lambda model: model.training)(layer), layer.training
        (False, True)
    """
    return _decorated(call, lambda args, kwargs: _models((args, kwargs)))


def guarded_but(name: str) -> Callable[[Callable[P, ResultT]], Callable[P, ResultT]]:
    """As `guarded`, for a function that trains one of its arguments: that is its own to change."""

    def wrap(call: Callable[P, ResultT]) -> Callable[P, ResultT]:
        names = list(inspect.signature(call).parameters)

        def find(args: Any, kwargs: Any) -> Iterator[nn.Module]:
            return _models(
                {key: value for key, value in [*zip(names, args, strict=False), *kwargs.items()] if key != name}
            )

        return _decorated(call, find)

    return wrap


def _decorated(call: Callable[P, ResultT], find: Callable[[Any, Any], Iterable[nn.Module]]) -> Callable[P, ResultT]:
    @functools.wraps(call)
    def run(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        guard = Guard(sys._getframe())
        try:
            guard.enter(find(args, kwargs))
            result = call(*args, **kwargs)
        except BaseException as error:
            guard.place.holding = SHORT  # nothing can come between an exception and this line
            guard.leave(error)
            raise
        guard.place.holding = SHORT
        guard.leave(None)
        return result

    return run


def in_evaluation(module: Any) -> Any:
    """A module in evaluation mode: itself, or a twin with the same weights if the caller has it in training mode."""
    return None if module is None else all_in_evaluation([module])[0]


def all_in_evaluation(modules: Sequence[Any]) -> list[Any]:
    """As `in_evaluation`, for modules that may have parts in common; twins have the same in common."""
    parts = {id(one): one for module in modules for one in module.modules()}
    modes = [_held[key].training if key in _held else one.training for key, one in parts.items()]
    if not any(modes):
        return list(modules)
    numbers = [value for module in modules for value in (*module.parameters(), *module.buffers())]
    return [twin.eval() for twin in copy.deepcopy(list(modules), {id(value): value for value in numbers})]
