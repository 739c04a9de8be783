"""Wrong and odd uses of the library, one a case: what comes of each, and that the user's model comes back untouched.

`python -m pytest -q tests/test_misuse.py --co` counts them.
"""

# ruff: noqa: B023, S301 - names are bound by the outer lambda; what is unpickled was pickled here

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import itertools
import os
import pickle
import random
import re
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn  # noqa: F401 - sets environment variables when it is imported for the first time
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.base._errors import (
    BrickyardError,
    DataError,
    FileError,
    OptionError,
    SurgeryError,
    TaskError,
    TraceError,
)
from brickyard.base._options import Distillation, TrainingOptions
from brickyard.evaluation._probe import Probe, features, h_score, log_evidence, probe
from brickyard.export._hub import from_pretrained, push_to_hub, save_pretrained
from brickyard.export._onnx import export_onnx, export_state_dict
from brickyard.inputs._datasets import load_data
from brickyard.recipes._reader import load_recipe
from brickyard.reports._page import report
from brickyard.reports._routes import routes
from brickyard.sources._loading import load_source
from brickyard.testing import Residual, chain, randomised
from brickyard.training._finetune import finetune
from brickyard.yard._yard import Yard

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules.*:UserWarning"),
]

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
DATA = (X, Y)
NAN = float("nan")


# -- the user's model stays as it is -----------------------------------------------------------------------


def snapshot(*models: nn.Module) -> dict[str, Any]:
    """All that must not change: of models everything that can be seen, and the state that all code shares."""
    found: dict[str, Any] = {}
    for number, model in enumerate(models):
        for name, module in model.named_modules():
            place = f"model {number}, module {name!r}: "
            found[place + "class"] = type(module)
            found[place + "mode"] = module.training
            for key, value in vars(module).items():
                found[f"{place}attribute {key}"] = _seen(value)
        named = itertools.chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        )
        for name, value in named:
            found[f"model {number}, tensor {name!r}"] = _tensor(value)
            found[f"model {number}, gradient of {name!r}"] = None if value.grad is None else _tensor(value.grad)
    found["torch's random state"] = bytes(torch.get_rng_state().numpy())
    found["numpy's random state"] = str(np.random.get_state())
    found["Python's random state"] = random.getstate()
    found["default type"] = torch.get_default_dtype()
    found["default device"] = torch.get_default_device()
    found["threads"] = torch.get_num_threads(), torch.get_num_interop_threads()
    found["gradients"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    found["autocast"] = torch.is_autocast_enabled("cpu")
    found["determinism"] = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    found["what torch calls"] = nn.Module.__call__, nn.Module.__getattr__
    found["environment"] = dict(os.environ)
    found["folder"] = Path.cwd()
    return found


def _seen(value: Any) -> Any:
    """An attribute: itself, and what it holds where it is a container."""
    if type(value) in (dict, OrderedDict):
        return value, [(key, _Same(item)) for key, item in value.items()]
    if type(value) in (list, tuple, set):
        return _Same(value), [_Same(item) for item in value]
    return _Same(value)


class _Same:
    """Equal to the very same thing only; it is kept, so that no other can take its place in memory."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and (self.value is other.value or _plain_equal(self.value, other.value))

    __hash__ = None  # type: ignore[assignment]


def _plain_equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, bool | int | float | str | type(None)) and a == b


def _tensor(value: Tensor) -> tuple[Any, ...]:
    lazy = isinstance(value, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer)
    blank = lazy or value.is_meta or value.is_quantized
    content = b"" if blank else value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    shape = () if lazy else tuple(value.shape)
    return _Same(value), shape, value.dtype, value.device, value.requires_grad, value.is_leaf, content


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    missing = object()
    return [key for key in {**before, **after} if _differ(before.get(key, missing), after.get(key, missing))]


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == 2 and isinstance(a[0], dict):
        return a[0] is not b[0] or a[1] != b[1]
    return bool(a != b)


@contextlib.contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Check that models, and the state that all code shares, are the same after the block, also where it fails."""
    before = snapshot(*models)
    try:
        yield
    finally:
        assert changes(before, snapshot(*models)) == []


def used_source() -> nn.Sequential:
    """A source as users have them: half in training mode, half frozen, with gradients, hooks and notes of its own."""
    model = chain()
    model.conv1.weight.requires_grad_(False)
    model.bn1.requires_grad_(False)
    for value in model.parameters():
        if value.requires_grad:
            value.grad = torch.full_like(value, 0.5)
    model.train()
    model.bn1.eval()
    model.conv1.register_forward_hook(lambda module, args, out: None)
    model.linear.register_full_backward_hook(lambda module, before, after: None)
    model.register_forward_pre_hook(lambda module, args: None)
    model.note = {"epochs": 3}
    return model


def _set(model: nn.Module, name: str, value: Any) -> None:
    setattr(model, name, value)


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "one bit of a weight": lambda m: m.conv2.weight.data.view(torch.int32)[0, 0, 0, 0].bitwise_xor_(1),
    "another tensor of the same numbers": lambda m: _set(m.conv2, "weight", nn.Parameter(m.conv2.weight.detach())),
    "a buffer": lambda m: m.bn1.running_mean.add_(1e-6),
    "the mode of one module": lambda m: m.relu1.eval(),
    "a forward hook": lambda m: m.conv2.register_forward_hook(lambda *a: None),
    "a hook less": lambda m: m.conv1._forward_hooks.clear(),
    "a backward hook": lambda m: m.conv2.register_full_backward_hook(lambda *a: None),
    "an attribute more": lambda m: _set(m.conv2, "seen", 1),
    "an attribute less": lambda m: delattr(m, "note"),
    "another number in an attribute": lambda m: _set(m.bn1, "momentum", 0.2),
    "what an attribute holds": lambda m: m.note.update(epochs=4),
    "a module replaced": lambda m: _set(m, "relu1", nn.ReLU().train()),
    "a module more": lambda m: m.add_module("extra", nn.Identity()),
    "requires_grad": lambda m: m.conv1.weight.requires_grad_(True),
    "a gradient": lambda m: m.conv2.weight.grad.mul_(2),
    "a gradient less": lambda m: _set(m.conv2.weight, "grad", None),
    "the type": lambda m: m.linear.double(),
    "the device": lambda m: m.linear.to("meta"),
    "the class": lambda m: _set(m.relu1, "__class__", nn.ReLU6),
    "torch's random state": lambda m: torch.rand(1),
    "numpy's random state": lambda m: np.random.rand(),
    "Python's random state": lambda m: random.random(),
    "the default type": lambda m: torch.set_default_dtype(torch.float64),
    "the number of threads": lambda m: torch.set_num_threads(2),
    "the mode of gradients": lambda m: torch.set_grad_enabled(False),
    "the environment": lambda m: os.environ.update(BRICKYARD_MISUSE="1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_check_notices_every_kind_of_change(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    model = used_source()
    with untouched(model):
        pass
    try:
        with pytest.raises(AssertionError), untouched(model):
            CHANGES[name](model)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        torch.set_grad_enabled(True)


# -- a case ------------------------------------------------------------------------------------------------


@dataclass
class World:
    """What every case may use."""

    source: nn.Sequential
    relevance: by.Relevance
    component: by.Component
    other: by.Component
    rejecting: by.Component
    assembly: by.Assembly
    scores: Any
    folder: Path
    grey: by.Component
    double: by.Component

    def locate(self, model: Any = None, data: Any = DATA, **options: Any) -> by.Relevance:
        return by.locate(self.source if model is None else model, data, **{"per_class": 2, **options})

    def cut(self, model: Any = None, **options: Any) -> by.Component:
        model = self.source if model is None else model
        relevance = options.pop("relevance", None) or (self.relevance if model is self.source else self.locate(model))
        return by.disassemble(model, relevance, **{"task": ["1", "3"], **options})


@dataclass(frozen=True)
class Fails:
    """An error of this very class whose message has words of what was asked, what was found, and what to do next."""

    kind: type[Exception]
    asked: str
    found: str
    todo: str


@dataclass(frozen=True)
class Case:
    """A use: what is called, what is expected (an error, or a check of the result), and whose model it is."""

    name: str
    call: Callable[[World, Any], Any]
    expect: Fails | Callable[[World, Any, Any], object]
    model: Callable[[], Any] | None = None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.manual_seed(0)
    source = used_source()
    relevance = by.locate(source, DATA, per_class=2)
    component = by.disassemble(source, relevance, task=["1", "3"])
    other = by.disassemble(source, relevance, task=["0"])
    rejecting = by.disassemble(source, relevance, task=["2"], reject=True)
    assembly = by.assemble([component, other])
    scores = by.evaluate(component, DATA, source=source, latency=False)
    folder = tmp_path_factory.mktemp("misuse")
    component.save(folder / "component.safetensors")
    (folder / "text.safetensors").write_text("this is no file of numbers")
    grey, double = grey_component(), double_component()
    return World(source, relevance, component, other, rejecting, assembly, scores, folder, grey, double)


def plain_cut() -> by.Component:
    """The component that the plain model gives, made here and now: what odd models are compared with."""
    model = chain()
    return by.disassemble(model, by.locate(model, DATA, per_class=2), task=["1", "3"])


def like_plain(w: World, model: Any, got: by.Component) -> None:
    """The same channels, and the same answers, as from the plain model."""
    expected = plain_cut()
    assert [a.kept for a in got.manifest.axes.values()] == [a.kept for a in expected.manifest.axes.values()]
    with torch.no_grad():
        torch.testing.assert_close(got(X), expected(X), rtol=1e-4, atol=1e-5)


def whole(w: World, model: Any) -> by.Component:
    """All classes with everything kept and nothing healed: it must say what the model says."""
    relevance = by.locate(model, DATA, per_class=2)
    return by.disassemble(model, relevance, task=range(4), budget=by.Budget(flops=1.0), heal="none")


def says_what_it_says(w: World, model: nn.Module, got: by.Component) -> None:
    modes = [module.training for module in model.modules()]
    states = [{k: v for k, v in vars(module).items() if k != "training"} for module in model.modules()]
    buffers = [b.clone() for b in model.buffers()]
    try:
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(got(X), model(X), rtol=1e-4, atol=1e-5)
    finally:  # our own use of the model is not what is judged
        for module, mode, state in zip(model.modules(), modes, states, strict=True):
            module.training = mode
            vars(module).update(state)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def equals(expected: Callable[[World], Any]) -> Callable[[World, Any, Any], None]:
    """The result is what an independent way gives."""

    def check(w: World, model: Any, got: Any) -> None:
        want = expected(w)
        if isinstance(want, Tensor):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        else:
            assert got == want

    return check


def located_alike(w: World, model: Any, got: by.Relevance) -> None:
    """The relevances are those of the plain data."""
    for layer in ("conv1", "conv2", "linear"):
        assert torch.equal(got.hard(layer), w.relevance.hard(layer))


# -- models --------------------------------------------------------------------------------------------------


def changed(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = chain()
        change(model)
        return model

    return make


def hooked(kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = chain()
        if kind == "forward":
            model.conv1.register_forward_hook(lambda module, args, out: out * 2)
        elif kind == "before":
            model.conv1.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        elif kind == "whole":
            model.register_forward_hook(lambda module, args, out: out * 2)
        elif kind == "failing":
            model.conv1.register_forward_hook(lambda *args: 1 / 0)
        elif kind == "reading":  # needs numbers: it must never see the steps of a trace
            model.conv1.register_forward_hook(lambda module, args, out: out.detach().numpy().sum() * 0 or None)
        elif kind == "backward":
            model.conv1.register_full_backward_hook(lambda *args: None)
            model.conv2.register_full_backward_pre_hook(lambda *args: None)
        return model

    return make


class Ends(nn.Module):
    """A classifier that ends in its own way."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.end = chain(), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.inner(x))


class Wraps(nn.Module):
    """What parallel wrappers of other libraries look like."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Needs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = chain()

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return self.inner(x) * scale


class Optional(Needs):
    def forward(self, x: Tensor, scale: float = 1.0, *, flag: bool = False) -> Tensor:  # type: ignore[override]
        return self.inner(x) * scale


class ByKey(Needs):
    def forward(self, *, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner(pixel_values)


class Remembers(nn.Module):
    """Its forward writes into the model: an attribute, a list, a dict, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = chain()
        self.last: Any = None
        self.seen: list[Any] = []
        self.known: dict[str, Any] = {}
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.seen.append(x)
        self.known["x"] = x
        self.late = x
        self.calls.add_(1)
        return self.inner(x)


class Branches(nn.Module):
    """Python control flow on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = chain()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else -self.inner(x)


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = chain()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(nn.functional.dropout(x, 0.5))


class Tied(nn.Module):
    """Two convolutions over one weight, and a layer after them that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.second, self.free, self.linear = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 5, 1), nn.Linear(5, 4)
        self.second.weight = self.first.weight
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x).relu()).relu()).relu()
        return self.linear(self.free(x).relu().mean((2, 3)))


class Labelled(Tensor):
    """A subclass of a tensor."""


class Unwritten(nn.Module):
    """No forward at all."""


def nested(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """The chain, its body wrapped."""

    def make() -> nn.Module:
        layers = list(chain().children())
        return nn.Sequential(wrap(nn.Sequential(*layers[:6])), *layers[6:])

    return make


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))


def woken() -> nn.Module:
    model = lazy()
    model(X)
    return randomised(model)


def dropping() -> nn.Module:
    layers = list(chain().children())
    return nn.Sequential(*layers[:6], nn.Dropout(0.5), *layers[6:]).train()


def in_inference() -> nn.Module:
    with torch.inference_mode():
        return chain()


def without_gain(model: nn.Sequential) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()


def dead_channel(model: nn.Sequential) -> None:
    with torch.no_grad():
        for value in (model.conv1.weight[2], model.conv1.bias[2], model.bn1.weight[2], model.bn1.bias[2]):
            value.zero_()


def poked(place: str, value: float) -> Callable[[], nn.Module]:
    def change(model: nn.Sequential) -> None:
        layer, name = place.split(".")
        getattr(model.get_submodule(layer), name).data.view(-1)[0] = value

    return changed(change)


def spectral(model: nn.Sequential) -> None:
    parametrizations.spectral_norm(model.conv2)
    model.eval()


def weight_normed(model: nn.Sequential) -> None:
    parametrizations.weight_norm(model.conv2)


def jit_first(model: nn.Sequential) -> None:
    model.conv1 = torch.jit.script(model.conv1)


def subclassed(model: nn.Sequential) -> None:
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach().as_subclass(Labelled))


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(chain(), {nn.Linear})


def narrow() -> nn.Module:
    return chain(widths=(1, 1))


Pair = namedtuple("Pair", "logits extra")

ONLY_LOGITS = Fails(TraceError, "Ends", r"(batch, classes)", "returns the logits")
NO_NUMBERS = Fails(TraceError, "a network with numbers", "meta device", "load weights")


def cut_of(w: World, model: Any) -> by.Component:
    return w.cut(model)


def located(w: World, model: Any) -> by.Relevance:
    return w.locate(model)


MODELS = [
    Case(
        "model None", lambda w, m: by.locate(None, DATA), Fails(TraceError, "torch.nn.Module", "NoneType", "give the")
    ),
    Case("model a text", lambda w, m: by.locate("net", DATA), Fails(TraceError, "torch.nn.Module", "str", "give the")),
    Case("model a class", lambda w, m: by.locate(Residual, DATA), Fails(TraceError, "Module", "type", "give the")),
    Case("model a function", lambda w, m: by.locate(chain, DATA), Fails(TraceError, "Module", "function", "give the")),
    Case("on the meta device", located, NO_NUMBERS, changed(lambda m: m.to("meta"))),
    Case("half on the meta device", located, NO_NUMBERS, changed(lambda m: m.linear.to("meta"))),
    Case(
        "NaN in a weight", located, Fails(TraceError, "trained", "'conv2.weight'", "load"), poked("conv2.weight", NAN)
    ),
    Case(
        "infinity in a weight",
        located,
        Fails(TraceError, "trained", "1 of 32 numbers in 'linear.weight'", "load"),
        poked("linear.weight", float("inf")),
    ),
    Case(
        "NaN in a running mean",
        located,
        Fails(TraceError, "trained", "'bn1.running_mean'", "load"),
        poked("bn1.running_mean", NAN),
    ),
    Case("float16", cut_of, lambda w, m, c: close_type(c, torch.float16), lambda: chain().half()),
    Case("bfloat16", cut_of, lambda w, m, c: close_type(c, torch.bfloat16), lambda: chain().bfloat16()),
    Case("float64", cut_of, lambda w, m, c: close_type(c, torch.float64), lambda: chain().double()),
    Case(
        "complex numbers",
        located,
        Fails(TraceError, "floating-point", "complex64", "float32"),
        changed(lambda m: m.to(torch.complex64)),
    ),
    Case("hooks that only look", cut_of, like_plain, hooked("reading")),
    Case("backward hooks", cut_of, like_plain, hooked("backward")),
    Case(
        "a forward hook that changes the output",
        located,
        Fails(TraceError, "Sequential was traced", "forward hooks of 'conv1'", "remove them"),
        hooked("forward"),
    ),
    Case(
        "a hook that changes the input",
        located,
        Fails(TraceError, "Sequential was traced", "forward hooks of 'conv1'", "remove them"),
        hooked("before"),
    ),
    Case(
        "a hook on the whole model",
        located,
        Fails(TraceError, "was traced", "forward hooks of 'Sequential'", "remove them"),
        hooked("whole"),
    ),
    Case(
        "a hook that fails",
        located,
        Fails(TraceError, "Sequential fails", "division by zero", "give `example` images"),
        hooked("failing"),
    ),
    Case("weight norm", cut_of, like_plain, changed(weight_normed)),
    Case("weight norm of old", cut_of, like_plain, changed(lambda m: nn.utils.weight_norm(m.conv2))),
    Case("spectral norm", whole, says_what_it_says, changed(spectral)),
    Case("orthogonal", whole, says_what_it_says, changed(lambda m: parametrizations.orthogonal(m.linear))),
    Case("pruned", whole, says_what_it_says, changed(lambda m: prune.l1_unstructured(m.conv2, "weight", 0.5))),
    Case("training mode", cut_of, like_plain, changed(lambda m: m.train())),
    Case("training mode with dropout", cut_of, lambda w, m, c: says_what_it_says(w, m, whole(w, m)), dropping),
    Case("frozen parameters", cut_of, like_plain, changed(lambda m: m.requires_grad_(False))),
    Case("made in inference mode", cut_of, like_plain, in_inference),
    Case("weights of a tensor subclass", cut_of, like_plain, changed(subclassed)),
    Case("torch.compile", cut_of, like_plain, lambda: torch.compile(chain())),
    Case("model.compile()", cut_of, like_plain, changed(lambda m: m.compile())),
    Case("torch.compile inside", whole, lambda w, m, c: inner_alike(c), nested(torch.compile)),
    Case("DataParallel", cut_of, like_plain, lambda: nn.DataParallel(chain())),
    Case("DataParallel inside", whole, lambda w, m, c: inner_alike(c), nested(nn.DataParallel)),
    Case("DataParallel of a compiled model", cut_of, like_plain, lambda: nn.DataParallel(torch.compile(chain()))),
    Case("a wrapper with *args", cut_of, lambda w, m, c: answers_alike(c), lambda: Wraps(chain())),
    Case("traced by fx", cut_of, like_plain, lambda: torch.fx.symbolic_trace(chain())),
    Case(
        "torch.jit.script",
        located,
        Fails(TraceError, "network in Python", "TorchScript", "give the torch.nn.Module"),
        lambda: torch.jit.script(chain()),
    ),
    Case(
        "torch.jit.trace",
        located,
        Fails(TraceError, "network in Python", "TorchScript", "give the torch.nn.Module"),
        lambda: torch.jit.trace(chain(), X[:2]),
    ),
    Case("a scripted layer inside", whole, says_what_it_says, changed(jit_first)),
    Case(
        "a scripted layer inside, saved",
        lambda w, m: whole(w, m).save(w.folder / "never.safetensors"),
        Fails(FileError, "network uses", "conv1", "cannot be written"),
        changed(jit_first),
    ),
    Case(
        "lazy and not initialised",
        located,
        Fails(TraceError, "network with numbers", "'0.weight' is not initialised", "run Sequential once"),
        lazy,
    ),
    Case("lazy and initialised", whole, says_what_it_says, woken),
    Case(
        "quantised",
        located,
        Fails(TraceError, "floating-point", "'linear' is a quantised", "take the float"),
        quantised,
    ),
    Case("one channel a layer", whole, says_what_it_says, narrow),
    Case(
        "one channel a layer and a budget",
        lambda w, m: w.cut(m, budget=by.Budget(flops=0.1)),
        Fails(OptionError, "0.1 of the source's flops", "already take", "raise the budget"),
        narrow,
    ),
    Case(
        "no channel in a layer",
        located,
        Fails(TraceError, "Sequential fails", "(2, 3, 8, 8)", "give `example` images"),
        lambda: nn.Sequential(nn.Conv2d(3, 0, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(0, 4)),
    ),
    Case(
        "one class",
        lambda w, m: by.disassemble(m, w.locate(m, (X, Y * 0)), task=["0"], budget=by.Budget(flops=1.0), heal="none"),
        says_what_it_says,
        lambda: chain(1),
    ),
    Case(
        "two classes, one taken",
        lambda w, m: by.disassemble(m, w.locate(m, (X, Y % 2)), task=["1"], reject=True)(X).shape,
        equals(lambda w: torch.Size([12, 2])),
        lambda: chain(2),
    ),
    Case("a dead channel", cut_of, lambda w, m, c: not_kept(c, "conv1", 2), changed(dead_channel)),
    Case(
        "a constant network",
        lambda w, m: w.cut(m)(X),
        equals(lambda w: torch.zeros(12, 2)),
        changed(without_gain),
    ),
    Case(
        "a constant network's relevances",
        lambda w, m: [w.locate(m).hard(layer).any().item() for layer in ("conv1", "conv2", "linear")],
        equals(lambda w: [False] * 3),
        changed(without_gain),
    ),
    Case("shared weights", whole, says_what_it_says, Tied),
    Case(
        "shared weights, cut",
        lambda w, m: {name: len(a.kept) for name, a in w.cut(m).manifest.axes.items() if name in "first second stem"},
        equals(lambda w: {"stem": 6, "first": 6, "second": 6}),
        Tied,
    ),
    Case("returns a tuple", located, dataclasses.replace(ONLY_LOGITS, asked="tuple"), lambda: Ends(lambda y: (y, y))),
    Case("returns a dict", located, dataclasses.replace(ONLY_LOGITS, asked="dict"), lambda: Ends(lambda y: {"y": y})),
    Case(
        "returns a namedtuple",
        located,
        dataclasses.replace(ONLY_LOGITS, asked="Pair"),
        lambda: Ends(lambda y: Pair(y, y)),
    ),
    Case("returns None", located, dataclasses.replace(ONLY_LOGITS, asked="NoneType"), lambda: Ends(lambda y: None)),
    Case(
        "returns one more dimension",
        located,
        dataclasses.replace(ONLY_LOGITS, asked="(2, 1, 4)"),
        lambda: Ends(lambda y: y[:, None]),
    ),
    Case("returns classes", located, Fails(TraceError, "Ends", "int64", "wrap it"), lambda: Ends(lambda y: y.long())),
    Case("returns truth values", located, Fails(TraceError, "Ends", "bool", "wrap it"), lambda: Ends(lambda y: y > 0)),
    Case(
        "returns no class",
        located,
        Fails(TraceError, "Ends", "(2, 0)", "at least one"),
        lambda: Ends(lambda y: y[:, :0]),
    ),
    Case("returns NaN", located, Fails(TraceError, "Ends", "NaN", "check the weights"), lambda: Ends(lambda y: y / 0)),
    Case("needs another argument", located, Fails(TraceError, "one image batch", "scale", "wrap it"), Needs),
    Case("has other arguments with defaults", cut_of, lambda w, m, c: answers_alike(c), Optional),
    Case("takes images by name only", located, Fails(TraceError, "one image batch", "pixel_values", "wrap it"), ByKey),
    Case(
        "has no forward", located, Fails(TraceError, "one image batch", "has no forward", "give the module"), Unwritten
    ),
    Case("writes into itself when it runs", cut_of, lambda w, m, c: answers_alike(c), Remembers),
    Case(
        "branches on numbers",
        located,
        Fails(TraceError, "Branches cannot be traced", "x.sum() > 0", "move that part"),
        Branches,
    ),
    Case("draws random numbers", located, Fails(TraceError, "Draws was traced", "random", "layer of its own"), Draws),
    Case(
        "a component as a source", lambda w, m: by.locate(w.component, (X, Y % 2)).classes, equals(lambda w: ("0", "1"))
    ),
]


def close_type(component: by.Component, kind: torch.dtype) -> None:
    """A component of the source's type, as that of the same numbers in float64 but for the type's own rounding."""
    assert {value.dtype for value in component.parameters()} == {kind}
    model = chain().to(kind).double()
    expected = by.disassemble(model, by.locate(model, DATA, per_class=2), task=["1", "3"])
    assert [a.kept for a in component.manifest.axes.values()] == [a.kept for a in expected.manifest.axes.values()]
    reach = {torch.float64: 1e-9, torch.float16: 0.01, torch.bfloat16: 0.05}[kind]
    assert float((component.predict_proba(X) - expected.predict_proba(X)).abs().max()) < reach


def answers_alike(component: by.Component) -> None:
    with torch.no_grad():
        torch.testing.assert_close(component(X), plain_cut()(X), rtol=1e-4, atol=1e-5)


def inner_alike(component: by.Component) -> None:
    with torch.no_grad():
        torch.testing.assert_close(component(X), chain()(X), rtol=1e-4, atol=1e-5)


def not_kept(component: by.Component, axis: str, channel: int) -> None:
    assert channel not in component.manifest.axes[axis].kept
    assert component.manifest.axes[axis].kept


# -- arguments -------------------------------------------------------------------------------------------------


def located_with(**options: Any) -> Callable[[World, Any], by.Relevance]:
    return lambda w, m: w.locate(**options)


def cut_with(**options: Any) -> Callable[[World, Any], by.Component]:
    return lambda w, m: w.cut(**options)


def joined_with(parts: Callable[[World], Any] | None = None, **options: Any) -> Callable[[World, Any], by.Assembly]:
    return lambda w, m: by.assemble([w.component, w.other] if parts is None else parts(w), **options)


def scored_with(data: Any = DATA, **options: Any) -> Callable[[World, Any], Any]:
    return lambda w, m: by.evaluate(w.component, data, **{"latency": False, **options})


def wrong_values(
    what: str, make: Callable[..., Callable[[World, Any], Any]], name: str, found: str, todo: str, *values: Any
) -> list[Case]:
    """One case a value of one argument, all refused alike."""
    return [
        Case(f"{what}({name}={value!r:.30})", make(**{name: value}), Fails(OptionError, f"{name}=", found, todo))
        for value in values
    ]


def refused(kind: type, name: str, value: Any, found: str, todo: str) -> Case:
    title = f"{kind.__name__}({name}={value!r})"
    return Case(title, lambda w, m: kind(**{name: value}), Fails(OptionError, f"{name}=", found, todo))


def names_of(relevance: by.Relevance) -> tuple[str, ...]:
    return relevance.classes


ODD_NAMES = ["\u00e9", "\u65e5\u672c", "\U0001f9f1", "two\nlines"]
LONG = "x" * 10_000
DID_YOU_MEAN = "did you mean 'tabby'?"
CATS = ["tabby", "siamese", "manx", "sphynx"]


def named(w: World) -> by.Relevance:
    return w.locate(classes=CATS)


LOCATE = [
    *wrong_values("locate", located_with, "choose", "is not a choice", "use one of", "best", None, 3, ["all"]),
    *wrong_values("locate", located_with, "per_class", "no whole number", "give one", 0, -1, 1.5, "2", None, True),
    *wrong_values("locate", located_with, "batch_size", "no whole number", "give one", 0, -1, 2.5, "8", None),
    *wrong_values("locate", located_with, "seed", "no whole number", "give one", 1.5, "x", None, 2**80),
    *wrong_values("locate", located_with, "thresholds", "of type", "give brickyard.Thresholds", 0.3, {"alpha": 0.1}),
    *wrong_values("locate", located_with, "preprocessing", "of type", "give brickyard.Preprocessing", "x", {"size": 4}),
    *wrong_values("locate", located_with, "keep_sums", "of type", "give True", "no", 1),
    *wrong_values("locate", located_with, "name", "cannot be a source's name", "leave it out", 5, "", LONG, "\ud800"),
    Case(
        "locate(choose='confidnet')",
        located_with(choose="confidnet"),
        Fails(OptionError, "choose", "choice", "did you mean 'confident'?"),
    ),
    Case("locate(per_class=numpy)", located_with(per_class=np.int64(2)), located_alike),
    Case("locate(batch_size beyond the images)", located_with(batch_size=10**12), located_alike),
    Case("locate(seed=-1)", located_with(seed=-1), located_alike),
    Case("locate(unknown=1)", located_with(unknown=1), Fails(TypeError, "locate()", "unexpected", "unknown")),
    Case("locate(resume=5)", located_with(resume=5), Fails(FileError, "to go on from", "int", "pathlib.Path")),
    Case("locate(resume=bytes)", located_with(resume=b"x"), Fails(FileError, "to go on from", "bytes", "pathlib.Path")),
    Case(
        "locate(classes a text)",
        located_with(classes="abcd"),
        Fails(TaskError, "class names", "'abcd' is a str", "give a list of 4"),
    ),
    Case(
        "locate(classes a number)", located_with(classes=5), Fails(TaskError, "class names", "int", "give a list of 4")
    ),
    Case(
        "locate(classes a set)", located_with(classes=set("abcd")), Fails(TaskError, "order", "set", "give a list of 4")
    ),
    Case(
        "locate(too few names)",
        located_with(classes=["a"]),
        Fails(TaskError, "1 class names", "4 outputs", "give one a class"),
    ),
    Case(
        "locate(too many names)",
        located_with(classes=list("abcde")),
        Fails(TaskError, "5 class names", "4 outputs", "give one"),
    ),
    Case(
        "locate(no names)", located_with(classes=[]), Fails(TaskError, "0 class names", "4 outputs", "give one a class")
    ),
    Case(
        "locate(a name twice)",
        located_with(classes=list("aabc")),
        Fails(TaskError, "'a'", "occurs twice", "rename one"),
    ),
    Case(
        "locate(an empty name)",
        located_with(classes=["", "b", "c", "d"]),
        Fails(TaskError, "class 0", "0 letters", "give a text"),
    ),
    Case(
        "locate(a name of 10,000 letters)",
        located_with(classes=["a", LONG, "c", "d"]),
        Fails(TaskError, "class 1", "10,000 letters", "1 to 1024"),
    ),
    Case(
        "locate(half a surrogate pair)",
        located_with(classes=["a", "b", "\ud800", "d"]),
        Fails(TaskError, "class 2", r"\ud800", "UTF-8"),
    ),
    Case(
        "locate(a name None)",
        located_with(classes=["a", "b", "c", None]),
        Fails(TaskError, "class 3", "None", "give a text"),
    ),
    Case(
        "locate(names as numbers)",
        lambda w, m: names_of(w.locate(classes=[7, 8, 9, 10])),
        equals(lambda w: ("7", "8", "9", "10")),
    ),
    Case(
        "locate(names as an array)",
        lambda w, m: names_of(w.locate(classes=np.array(list("abcd")))),
        equals(lambda w: ("a", "b", "c", "d")),
    ),
    Case(
        "locate(names in other scripts)",
        lambda w, m: names_of(w.locate(classes=ODD_NAMES)),
        equals(lambda w: tuple(ODD_NAMES)),
    ),
    Case(
        "names in other scripts, written and read",
        lambda w, m: (
            by.load(
                w.cut(relevance=w.locate(classes=ODD_NAMES), task=ODD_NAMES).save(w.folder / "odd.safetensors")
            ).classes
        ),
        equals(lambda w: tuple(ODD_NAMES)),
    ),
    Case(
        "locate(normalised for other channels)",
        located_with(preprocessing=by.Preprocessing(mean=(0.5,) * 2, std=(1,) * 2)),
        Fails(DataError, "3 channels", "std for 2", "give as many"),
    ),
    Case(
        "locate(too small a size)",
        located_with(preprocessing=by.Preprocessing(size=(1, 1))),
        Fails(TraceError, "Sequential fails", "(2, 3, 1, 1)", "give `example`"),
    ),
]

TASKS: list[tuple[str, Any, Fails | tuple[str, ...]]] = [
    ("a text", "1", ("1",)),
    ("a number", 3, ("3",)),
    ("numpy's number", np.int64(2), ("2",)),
    ("numpy's numbers", [np.int64(1), np.int32(0)], ("1", "0")),
    ("an array", np.array([3, 1]), ("3", "1")),
    ("an array of texts", np.array(["3", "1"]), ("3", "1")),
    ("a tensor", torch.tensor([2, 0]), ("2", "0")),
    ("a range", range(2), ("0", "1")),
    ("a generator", (k for k in (3, 0)), ("3", "0")),
    ("a tuple", ("1", 0), ("1", "0")),
    ("names run together", "13", Fails(TaskError, "'13'", "the source knows 0, 1, 2, 3", "did you mean")),
    ("nothing", [], Fails(TaskError, "task", "empty", "name at least one")),
    ("None", None, Fails(TaskError, "a task is a list", "NoneType", "give a list")),
    ("bytes", b"1", Fails(TaskError, "a task is a list", "bytes", "give a list")),
    ("a set", {"1", "3"}, Fails(TaskError, "in the order", "set", "give a list")),
    ("a dict", {"1": 0}, Fails(TaskError, "in the order", "dict", "give a list")),
    ("beyond the classes", [9], Fails(TaskError, "class 9", "the source knows", "from 0 to 3")),
    ("negative", [-1], Fails(TaskError, "class -1", "the source knows", "from 0 to 3")),
    ("numpy's number, negative", [np.int64(-1)], Fails(TaskError, "class", "the source knows", "from 0 to 3")),
    ("a fraction", [1.0], Fails(TaskError, "class names or indices", "float", "whole numbers from 0 to 3")),
    ("a truth value", [True], Fails(TaskError, "class names or indices", "bool", "whole numbers")),
    ("None in a list", [None], Fails(TaskError, "class names or indices", "NoneType", "give names")),
    ("twice by name", ["1", "1"], Fails(TaskError, "'1'", "named twice", "once")),
    ("twice, by name and number", ["1", 1], Fails(TaskError, "'1'", "named twice", "once")),
    ("a name with a space", ["1 "], Fails(TaskError, "'1 '", "the source knows", "did you mean '1'?")),
    ("a very long name", [LONG], Fails(TaskError, "class 'xxx", "the source knows", "name some of these")),
    (
        "an unknown name in another script",
        ["\u65e5"],
        Fails(TaskError, "\u65e5", "the source knows", "name some of these"),
    ),
]

DISASSEMBLE = [
    Case(
        f"task: {name}",
        (lambda task: lambda w, m: w.cut(task=task).classes)(task),
        expect if isinstance(expect, Fails) else equals((lambda want: lambda w: want)(expect)),
    )
    for name, task, expect in TASKS
] + [
    Case(
        "task: a near miss",
        lambda w, m: w.cut(relevance=named(w), task=["taby"]),
        Fails(TaskError, "'taby'", "the source knows tabby", DID_YOU_MEAN),
    ),
    Case(
        "task: not located",
        lambda w, m: w.cut(relevance=w.locate(task=[0])),
        Fails(TaskError, "'1' was asked", "not located", "locate it"),
    ),
    Case(
        "task: all, and reject",
        cut_with(task=range(4), reject=True),
        Fails(TaskError, "reject=True", "all the source's classes", "no other class"),
    ),
    *wrong_values("disassemble", cut_with, "budget", "of type", "give brickyard.Budget", 0.5, "0.5", {"flops": 0.5}),
    *wrong_values("disassemble", cut_with, "thresholds", "of type", "give brickyard.Thresholds", 0.3, {"alpha": 1}),
    *wrong_values("disassemble", cut_with, "select", "not a choice", "use one of", "best", None, ["mda"]),
    *wrong_values("disassemble", cut_with, "heal", "not a choice", "use one of 'refit'", "x", None, True),
    *wrong_values("disassemble", cut_with, "reject", "of type", "True or False", "yes", None, 1),
    *wrong_values("disassemble", cut_with, "heal_images", "no whole number", "give one", 0, -1, 1.5, "x", None, NAN),
    *wrong_values(
        "disassemble", cut_with, "ridge", "must be 0 or more", "give such a number", -1, NAN, float("inf"), "x", None
    ),
    *wrong_values("disassemble", cut_with, "batch_size", "no whole number", "give one", 0, -1, 1.5, "x", None),
    *wrong_values("disassemble", cut_with, "seed", "no whole number", "give one", "x", None, 1.5, 2**80),
    Case(
        "thresholds and a budget",
        cut_with(thresholds=by.Thresholds(), budget=by.Budget(flops=0.5)),
        Fails(OptionError, "thresholds= and budget=", "both given", "one of them"),
    ),
    Case(
        "a ranking without a budget",
        cut_with(select="l1"),
        Fails(OptionError, "select='l1'", "none was given", "add budget="),
    ),
    Case(
        "other thresholds without sums",
        lambda w, m: w.cut(relevance=w.locate(keep_sums=False), thresholds=by.Thresholds(alpha=0.1)),
        Fails(OptionError, "alpha=0.1", "sums were not kept", "locate again"),
    ),
    Case(
        "relevances None",
        lambda w, m: by.disassemble(w.source, None, task="1"),
        Fails(OptionError, "what locate returned", "NoneType", "call locate"),
    ),
    Case(
        "relevances a path",
        lambda w, m: by.disassemble(w.source, "r.safetensors", task="1"),
        Fails(OptionError, "what locate returned", "str", "load its file"),
    ),
    Case(
        "relevances of another model",
        lambda w, m: by.disassemble(m, w.relevance, task="1"),
        Fails(DataError, "relevances belong to 'Sequential'", "this model's are", "locate again"),
        Residual,
    ),
    Case(
        "cutting None",
        lambda w, m: by.disassemble(None, w.relevance, task="1"),
        Fails(TraceError, "torch.nn.Module", "NoneType", "give the"),
    ),
    Case(
        "cutting a component",
        lambda w, m: by.disassemble(w.component, w.relevance, task="1"),
        Fails(DataError, "relevances belong", "this model's are", "locate again"),
    ),
    Case(
        "cutting a copy of the source",
        lambda w, m: by.disassemble(m, w.relevance, task=["1", "3"])(X),
        equals(lambda w: w.component(X)),
        lambda: copy.deepcopy(chain()),
    ),
    Case(
        "cutting the wrapped source",
        lambda w, m: by.disassemble(m, w.relevance, task=["1", "3"])(X),
        equals(lambda w: w.component(X)),
        lambda: nn.DataParallel(chain()),
    ),
    Case("healing with images alone", lambda w, m: w.cut(images=X).manifest.heal.images, equals(lambda w: 12)),
    Case(
        "healing without labels",
        cut_with(images=(X, None)),
        Fails(DataError, "images to heal with", "no labels", "give (images, labels)"),
    ),
    Case(
        "healing with no image",
        cut_with(images=X[:0]),
        Fails(DataError, "images to heal with", "(0, 3, 8, 8)", "at least one image"),
    ),
    Case(
        "healing with images of another size",
        cut_with(images=torch.rand(2, 3, 9, 9)),
        Fails(DataError, "heal='refit' needs", "(3, 9, 9)", "give images of that size"),
    ),
    Case(
        "healing with images of other classes",
        cut_with(images=(X, Y * 0)),
        Fails(DataError, "images to heal with", "none of the task's classes", "give some"),
    ),
    Case(
        "healing with a number",
        cut_with(images=5),
        Fails(DataError, "images to heal with", "int", "give (images, labels)"),
    ),
    Case(
        "healing from a file's relevances",
        lambda w, m: w.cut(relevance=by.load(saved(w, w.relevance))),
        Fails(OptionError, "heal='refit' needs images", "remember none", "give images="),
    ),
]


def saved(w: World, item: Any) -> Path:
    return item.save(w.folder / f"{next(_numbers)}.safetensors")


_numbers = itertools.count()


def budget_with(**options: Any) -> Callable[[World, Any], Any]:
    return lambda w, m: by.Budget(**{"flops": 0.5, **options})


def thresholds_with(**options: Any) -> Callable[[World, Any], Any]:
    return lambda w, m: by.Thresholds(**options)


def preprocessing_with(**options: Any) -> Callable[[World, Any], Any]:
    return lambda w, m: by.Preprocessing(**options)


def refused_preprocessing(found: str, **options: Any) -> Case:
    title = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return Case(
        f"Preprocessing({title})",
        preprocessing_with(**options),
        Fails(OptionError, "preprocessing", found, "it takes size, fit, channels, mean, std"),
    )


VALUES = [
    *wrong_values(
        "Budget",
        budget_with,
        "flops",
        "not a share in (0, 1]",
        "0.5 is half",
        0,
        -1,
        NAN,
        1.1,
        float("inf"),
        "0.5",
        True,
        torch.tensor(0.5),
    ),
    *wrong_values("Budget", budget_with, "round_to", "no whole number", "8 is a good one", 0, 1.5, True, None),
    *wrong_values("Budget", budget_with, "allocation", "not a choice", "use one of", "x", [], None),
    Case(
        "Budget()",
        lambda w, m: by.Budget(),
        Fails(OptionError, "a budget needs one", "0 were given", "keep one"),
    ),
    Case(
        "Budget of both",
        budget_with(parameters=0.5),
        Fails(OptionError, "a budget needs one", "2 were given", "keep one"),
    ),
    Case("Budget(0.5)", lambda w, m: by.Budget(0.5), Fails(TypeError, "Budget", "positional", "argument")),
    Case("Budget(flop=)", lambda w, m: by.Budget(flop=0.5), Fails(TypeError, "Budget", "unexpected", "flop")),
    Case(
        "a budget is frozen",
        lambda w, m: setattr(by.Budget(flops=0.5), "flops", 2),
        Fails(dataclasses.FrozenInstanceError, "assign", "field", "flops"),
    ),
    Case("Budget(flops=1)", lambda w, m: by.Budget(flops=1).share, equals(lambda w: 1.0)),
    Case("Budget(numpy)", lambda w, m: by.Budget(flops=np.float32(0.5)), equals(lambda w: by.Budget(flops=0.5))),
    Case(
        "a budget too small",
        cut_with(budget=by.Budget(flops=1e-9)),
        Fails(OptionError, "budget of 1e-09", "already take", "raise the budget"),
    ),
    Case(
        "a multiple beyond the layers",
        cut_with(budget=by.Budget(flops=0.5, round_to=10**9)),
        Fails(OptionError, "budget of 0.5", "1000000000 channel(s)", "raise the budget"),
    ),
    *wrong_values(
        "Thresholds", thresholds_with, "alpha", "not in [0, 1)", "the paper uses", 1, -0.1, NAN, "x", None, True
    ),
    *wrong_values("Thresholds", thresholds_with, "linear_beta", "not in [0, 1)", "the paper uses", 1.5, float("-inf")),
    Case("Thresholds(gamma=)", thresholds_with(gamma=1), Fails(TypeError, "Thresholds", "unexpected", "gamma")),
    Case("Thresholds(numpy)", thresholds_with(alpha=np.float64(0.25)), equals(lambda w: by.Thresholds(alpha=0.25))),
    Case(
        "thresholds that nothing passes",
        lambda w, m: [
            len(a.kept)
            for n, a in w.cut(
                thresholds=by.Thresholds(alpha=0.999, beta=0.999, linear_alpha=0.999, linear_beta=0.999)
            ).manifest.axes.items()
            if n.startswith("conv")
        ],
        lambda w, m, got: check(all(count >= 1 for count in got) and len(got) == 2),
    ),
    refused_preprocessing("size", size=5),
    refused_preprocessing("size.0", size=(0, 1)),
    refused_preprocessing("size.1", size=(4,)),
    refused_preprocessing("size", size="4x4"),
    refused_preprocessing("size.0", size=(4.5, 4)),
    refused_preprocessing("16384", size=(2**20, 2)),
    refused_preprocessing("give both, or neither", mean=(0.5,)),
    refused_preprocessing("greater than 0", mean=(0,), std=(0,)),
    refused_preprocessing("finite", mean=(NAN,), std=(1,)),
    refused_preprocessing("give the same count", mean=(1, 2), std=(1,)),
    refused_preprocessing("mean", mean=0.5, std=0.5),
    refused_preprocessing("1 or 3", channels=2),
    refused_preprocessing("'resize' or 'pad'", fit="crop"),
    refused_preprocessing("not permitted", colour="rgb"),
]


def check(holds: bool) -> None:
    assert holds


# -- data ------------------------------------------------------------------------------------------------------


class Items(Dataset[Any]):
    """A data set that gives what a function says."""

    def __init__(self, item: Callable[[int], Any], count: int = 12) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i], int(Y[i])) for i in range(12)])


def broken(index: int) -> Any:
    raise OSError("the disk is gone")


def failing_batches() -> Iterator[Any]:
    yield DATA
    raise RuntimeError("the network is gone")


WANTS_PAIRS = "(images, labels)"

DATA_CASES = [
    Case(f"data: {name}", (lambda make: lambda w, m: w.locate(data=make()))(make), expect)
    for name, make, expect in [
        ("None", lambda: None, Fails(DataError, "locate with", "NoneType", WANTS_PAIRS)),
        ("a text", lambda: "digits", Fails(DataError, "locate with", "str", WANTS_PAIRS)),
        ("a dict", lambda: {"images": X}, Fails(DataError, "locate with", "dict", WANTS_PAIRS)),
        ("images alone", lambda: X, Fails(DataError, "locate with", "no labels", WANTS_PAIRS)),
        ("labels None", lambda: (X, None), Fails(DataError, "locate with", "no labels", WANTS_PAIRS)),
        ("three tensors", lambda: (X, Y, Y), Fails(DataError, "locate with", "yields a Tensor", "pairs are needed")),
        ("labels as fractions", lambda: (X, Y.float()), Fails(DataError, "12 images", "float32", "one whole number")),
        ("too few labels", lambda: (X, Y[:3]), Fails(DataError, "12 images", "(3,)", "one whole number an image")),
        ("labels as a column", lambda: (X, Y[:, None]), Fails(DataError, "12 images", "(12, 1)", "one whole number")),
        ("labels beyond the classes", lambda: (X, Y + 1), Fails(DataError, "from 1 to 4", "0 to 3", "give each image")),
        ("labels below 0", lambda: (X, Y - 1), Fails(DataError, "from -1 to 2", "0 to 3", "without a label")),
        (
            "labels as texts",
            lambda: (X, np.array(list("abcd" * 3))),
            Fails(DataError, "locate with", "no tensor of numbers", "index of the class"),
        ),
        (
            "a class without an image",
            lambda: (X, Y * 0),
            Fails(DataError, "class '1'", "no image among 12", "leave it out"),
        ),
        (
            "whole numbers as images",
            lambda: ((X * 255).long(), Y),
            Fails(DataError, "images", "int64", "uint8 in 0..255"),
        ),
        ("bytes as images", lambda: ((X * 255).round().byte(), Y), located_alike),
        ("doubles as images", lambda: (X.double(), Y), located_alike),
        ("arrays", lambda: (X.numpy(), Y.numpy()), located_alike),
        ("images of a tensor subclass", lambda: (X.as_subclass(Labelled), Y), located_alike),
        ("images that want a gradient", lambda: (X.clone().requires_grad_(), Y), located_alike),
        ("NaN", lambda: (X * NAN, Y), Fails(DataError, "images to locate with", "NaN", "remove or repair")),
        ("infinity", lambda: (X / 0, Y), Fails(DataError, "images to locate with", "infinity", "remove or repair")),
        (
            "too small",
            lambda: (X[..., :1, :1], Y),
            Fails(TraceError, "Sequential fails", "(2, 3, 1, 1)", "give `example`"),
        ),
        (
            "one channel of three",
            lambda: (X[:, :1], Y),
            Fails(TraceError, "Sequential fails", "(2, 1, 8, 8)", "give `example`"),
        ),
        (
            "one image without a batch",
            lambda: (X[0], Y),
            Fails(DataError, "locate with", "(3, 8, 8)", "(batch, channels"),
        ),
        (
            "five dimensions",
            lambda: (X[None], Y[:1]),
            Fails(DataError, "locate with", "(1, 12, 3, 8, 8)", "(batch, channels"),
        ),
        ("no image", lambda: (X[:0], Y[:0]), Fails(DataError, "locate with", "(0, 3, 8, 8)", "at least one image")),
        (
            "on the meta device",
            lambda: (X.to("meta"), Y),
            Fails(DataError, "locate with", "meta device", "ordinary tensors"),
        ),
        ("sparse", lambda: (X.to_sparse(), Y), Fails(DataError, "locate with", "torch.sparse_coo", "ordinary tensors")),
        ("a generator of batches", lambda: (pair for pair in [(X[:6], Y[:6]), (X[6:], Y[6:])]), located_alike),
        ("a list of single images", lambda: [(X[i], int(Y[i])) for i in range(12)], located_alike),
        ("an empty generator", lambda: iter(()), Fails(DataError, "locate with", "no image", "give at least one")),
        (
            "a generator of numbers",
            lambda: iter((1, 2)),
            Fails(DataError, "locate with", "yields a int", "pairs are needed"),
        ),
        (
            "a generator that fails",
            failing_batches,
            Fails(DataError, "locate with", "RuntimeError: the network is gone", "repair"),
        ),
        ("a loader of batches", lambda: DataLoader(TensorDataset(X, Y), batch_size=5), located_alike),
        ("a loader that shuffles", lambda: DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True), located_alike),
        ("a loader of a stream", lambda: DataLoader(Stream(), batch_size=5), located_alike),
        (
            "a loader of images alone",
            lambda: DataLoader(TensorDataset(X)),
            Fails(DataError, "locate with", "yields list", "pairs are needed"),
        ),
        (
            "a loader of three",
            lambda: DataLoader(TensorDataset(X, Y, Y)),
            Fails(DataError, "locate with", "yields list", "pairs are needed"),
        ),
        (
            "a loader of texts",
            lambda: DataLoader(["a", "b"]),
            Fails(DataError, "locate with", "yields a str", "pairs are needed"),
        ),
        (
            "a data set that fails",
            lambda: Items(broken),
            Fails(DataError, "locate with", "OSError: the disk is gone", "repair"),
        ),
        (
            "a data set of None",
            lambda: Items(lambda i: None),
            Fails(DataError, "locate with", "NoneType", "repair the data"),
        ),
        (
            "a data set of dicts",
            lambda: Items(lambda i: {"x": X[i]}),
            Fails(DataError, "locate with", "yields dict", "pairs are needed"),
        ),
        (
            "a data set of mixed sizes",
            lambda: Items(lambda i: (X[i, :, : 8 - i % 2], i % 4)),
            Fails(DataError, "put in batches", "equal size", "bring all images to one size"),
        ),
        (
            "a data set that claims too many",
            lambda: Items(lambda i: (X[i], i % 4), 99),
            Fails(DataError, "put in batches", "IndexError", "repair the data"),
        ),
        (
            "a data set with labels None",
            lambda: Items(lambda i: (X[i], None)),
            Fails(DataError, "put in batches", "NoneType", "repair the data"),
        ),
        ("a data set of pairs", lambda: Items(lambda i: (X[i], i % 4)), located_alike),
    ]
]

# -- assembling and scoring ------------------------------------------------------------------------------------


def grey_component() -> by.Component:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    model = randomised(nn.Sequential(*layers))
    relevance = by.locate(model, (X[:, :1], Y % 2), classes=["g", "h"])
    return by.disassemble(model, relevance, task=["g", "h"], budget=by.Budget(flops=0.9))


def normalised_component(w: World) -> by.Component:
    how = by.Preprocessing(size=(8, 8), mean=(0.5,), std=(0.2,))
    return w.cut(relevance=w.locate(classes=list("abcd"), preprocessing=how), task=["a", "b"])


def double_component() -> by.Component:
    model = chain().double()
    return by.disassemble(model, by.locate(model, DATA, classes=list("abcd"), per_class=2), task=["a"])


def side_by_side(*parts: Callable[[World], by.Component]) -> Callable[[World], Tensor]:
    def answer(w: World) -> Tensor:
        with torch.no_grad():
            return torch.cat([part(w)(part(w).preprocess(X)).float() for part in parts], 1)

    return answer


def first(w: World) -> by.Component:
    return w.component


ASSEMBLE = [
    Case(
        "assemble nothing",
        joined_with(lambda w: []),
        Fails(OptionError, "components to assemble", "nothing was given", "disassemble or load"),
    ),
    Case(
        "assemble None",
        joined_with(lambda w: None),
        Fails(OptionError, "a list of components", "NoneType", "put it in a list"),
    ),
    Case(
        "assemble a component",
        joined_with(lambda w: w.component),
        Fails(OptionError, "a list of components", "a Component was given", "put it in a list"),
    ),
    Case(
        "assemble a text",
        joined_with(lambda w: "ab"),
        Fails(OptionError, "components to assemble", "str", "disassemble or load"),
    ),
    Case(
        "assemble a source",
        joined_with(lambda w: [w.component, w.source]),
        Fails(OptionError, "components to assemble", "Sequential", "disassemble or load"),
    ),
    Case(
        "assemble an assembly",
        lambda w, m: by.assemble([w.assembly, w.cut(task=["2"])])(X)[:, :3],
        equals(lambda w: w.assembly(X)),
    ),
    Case(
        "assemble a padded assembly",
        lambda w, m: by.assemble([by.assemble([w.component], form="padded"), w.other]),
        Fails(OptionError, "padded form", "no longer apart", "give the components"),
    ),
    Case("leave out a text", joined_with(without="1"), Fails(OptionError, "without='1'", "one text", "give a list")),
    Case(
        "leave out everything",
        joined_with(without=["0", "1", "3"]),
        Fails(TaskError, "without 0, 1, 3", "no class is left", "leave some in"),
    ),
    Case(
        "leave out an unknown class",
        joined_with(without=["zz"]),
        Fails(TaskError, "'zz'", "is none of 1, 3, 0", "give one of them"),
    ),
    Case(
        "assemble relevances",
        joined_with(lambda w: [w.relevance]),
        Fails(OptionError, "components to assemble", "Relevance", "disassemble or load"),
    ),
    Case("assemble one", lambda w, m: by.assemble([w.component])(X), equals(lambda w: w.component(X))),
    Case(
        "assemble a generator",
        lambda w, m: by.assemble(c for c in (w.component, w.other))(X),
        equals(lambda w: w.assembly(X)),
    ),
    Case(
        "assemble one twice",
        joined_with(lambda w: [w.component] * 2),
        Fails(TaskError, "class '1'", "in part 0", "on_duplicate='average'"),
    ),
    Case(
        "assemble one twice, renamed",
        lambda w, m: by.assemble([w.component] * 2, on_duplicate="rename").classes,
        equals(lambda w: ("1", "3", "1 (Sequential)", "3 (Sequential)")),
    ),
    Case(
        "assemble one twice, averaged",
        lambda w, m: by.assemble([w.component] * 2, on_duplicate="average")(X),
        equals(lambda w: w.component(X)),
    ),
    Case(
        "overlapping classes, the larger",
        lambda w, m: by.assemble([w.component, w.cut(task=["3"], heal="none")], on_duplicate="max")(X)[:, 1],
        equals(lambda w: torch.maximum(w.component(X)[:, 1], w.cut(task=["3"], heal="none")(X)[:, 0])),
    ),
    *wrong_values("assemble", joined_with, "form", "not a choice", "use one of", "x", None, 5, ["padded"]),
    *wrong_values("assemble", joined_with, "scaling", "is not known", "choose one of none", "x", None, 5, ["none"]),
    *wrong_values("assemble", joined_with, "on_duplicate", "not a choice", "use one of", "x", None),
    *wrong_values("assemble", joined_with, "votes", "of type", "give True or False", "yes", None),
    *wrong_values("assemble", joined_with, "source", "of type", "give the torch.nn.Module", 5, "x"),
    *wrong_values("assemble", joined_with, "seed", "no whole number", "give one", "x", None),
    Case(
        "assemble(images=..., scaling='logit-mean')",
        joined_with(images=[DATA, DATA], scaling="logit-mean"),
        Fails(OptionError, "images= was given", "'logit-mean' does not look at it", "choose one of affine"),
    ),
    *wrong_values("assemble", joined_with, "shots", "no whole number", "give one", 0, -1, 1.5, "x", True),
    Case(
        "scaling in capitals",
        joined_with(scaling="Mahalanobis"),
        Fails(OptionError, "'Mahalanobis'", "not known", "did you mean 'mahalanobis'?"),
    ),
    Case(
        "scaling without images",
        joined_with(scaling="affine"),
        Fails(OptionError, "scaling='affine'", "labelled images", "give images="),
    ),
    Case(
        "scaling with one pair for all parts",
        joined_with(scaling="lda", images=[DATA]),
        Fails(DataError, "each of the 2 parts", "list", "one entry a part"),
    ),
    Case(
        "scaling with a number",
        joined_with(scaling="lda", images=5),
        Fails(DataError, "each of the 2 parts", "a int was given", "in a list"),
    ),
    Case(
        "scaling with no images of any part",
        joined_with(scaling="lda", images=[None, None]),
        Fails(DataError, "images", "none of", "give some"),
    ),
    Case(
        "scaling weight below 0",
        joined_with(scaling="mahalanobis", weight=-1),
        Fails(OptionError, "weight=-1", "0 or more", "give such a number"),
    ),
    Case(
        "scaling weight infinite",
        joined_with(scaling="mahalanobis", weight=float("inf")),
        Fails(OptionError, "weight=inf", "finite", "give such a number"),
    ),
    Case(
        "scaling weight a text",
        joined_with(scaling="mahalanobis", weight="x"),
        Fails(OptionError, "weight='x'", "0 or more", "give such a number"),
    ),
    Case(
        "scaling option misspelt",
        joined_with(scaling="mahalanobis", wieght=1),
        Fails(OptionError, "scaling='mahalanobis'", "unexpected keyword", "'wieght'"),
    ),
    Case(
        "votes that nobody has",
        joined_with(votes=True),
        Fails(TaskError, "votes=True", "no part knows", "leave votes out"),
    ),
    Case(
        "union of healed parts",
        joined_with(form="union"),
        Fails(SurgeryError, "different numbers", "'conv2'", "give source="),
    ),
    Case(
        "union with another source",
        lambda w, m: by.assemble([w.component, w.other], form="union", source=m),
        Fails(SurgeryError, "form='union'", "was cut from", "give its own source"),
        Residual,
    ),
    Case(
        "union with the wrapped source",
        lambda w, m: by.assemble([w.component, w.other], form="union", source=nn.DataParallel(m)).classes,
        equals(lambda w: ("1", "3", "0")),
        chain,
    ),
    Case(
        "padded parts of other channel counts",
        lambda w, m: by.assemble([w.component, w.grey], form="padded"),
        Fails(SurgeryError, "padded parts", "one size", "form='parallel'"),
    ),
    Case(
        "images that one part cannot take",
        lambda w, m: by.assemble([w.component, w.grey]).predict(X),
        Fails(DataError, "images of shape (12, 3, 8, 8)", "do not fit", "give images"),
    ),
    Case(
        "padded parts of other preprocessing",
        lambda w, m: by.assemble([w.component, normalised_component(w)], form="padded")(X),
        equals(side_by_side(first, normalised_component)),
    ),
    Case(
        "parts of other types",
        lambda w, m: by.assemble([w.component, w.double])(X).float(),
        equals(side_by_side(first, lambda w: copy.deepcopy(w.double).float())),
    ),
    Case(
        "padded parts of other types",
        lambda w, m: by.assemble([w.component, w.double], form="padded"),
        Fails(SurgeryError, "padded parts", "float32 (1, 3) and float64 (a)", "bring them to one"),
    ),
    Case(
        "grouped parts of other types",
        lambda w, m: by.assemble([w.component, w.double], form="grouped"),
        Fails(SurgeryError, "grouped parts", "float64", ".float()"),
    ),
    Case(
        "padded, one part fused",
        lambda w, m: by.assemble([w.component.fused(), w.other], form="padded"),
        Fails(SurgeryError, "source's structure", "it is fused", "fuse what is assembled"),
    ),
]

EVALUATE = [
    *[
        Case(
            f"evaluate a {name}",
            (lambda pick: lambda w, m: by.evaluate(pick(w), DATA))(pick),
            Fails(OptionError, "is scored", found, "make one"),
        )
        for name, pick, found in [
            ("None", lambda w: None, "NoneType"),
            ("source", lambda w: w.source, "Sequential"),
            ("relevance", lambda w: w.relevance, "Relevance"),
            ("list", lambda w: [w.component], "list"),
        ]
    ],
    *wrong_values("evaluate", scored_with, "latency", "of type", "True or False", "x", None),
    *wrong_values("evaluate", scored_with, "latency_batch", "no whole number", "give one", 0, -1, 1.5, "x"),
    *wrong_values("evaluate", scored_with, "batch_size", "no whole number", "give one", 0, -1, 1.5, "x"),
    Case(
        "evaluate with another source",
        lambda w, m: by.evaluate(w.component, DATA, source=m, latency=False),
        Fails(DataError, "was cut from 'Sequential'", "the source given has", "give the source"),
        Residual,
    ),
    Case(
        "evaluate with a number for a source",
        scored_with(source=5),
        Fails(TraceError, "torch.nn.Module", "int", "give the"),
    ),
    Case(
        "evaluate with two sources",
        lambda w, m: by.evaluate(w.component, DATA, source=[w.source] * 2),
        Fails(OptionError, "one source", "list of 2", "give that one"),
    ),
    Case(
        "evaluate with the wrapped source",
        lambda w, m: by.evaluate(w.component, DATA, source=m, latency=False),
        lambda w, m, got: check(got == w.scores),
        lambda: nn.DataParallel(chain()),
    ),
    Case(
        "evaluate with the compiled source",
        lambda w, m: by.evaluate(w.component, DATA, source=m, latency=False),
        lambda w, m, got: check(got == w.scores),
        lambda: torch.compile(chain()),
    ),
    Case(
        "evaluate while timing the source",
        lambda w, m: by.evaluate(w.component, DATA, source=w.source).rows[0].latency is not None,
        equals(lambda w: True),
    ),
    Case(
        "evaluate classes that the data lack",
        scored_with((X, Y * 0)),
        Fails(DataError, "none of the 12 images", "task 1, 3", "give some"),
    ),
    Case(
        "evaluate half the classes",
        lambda w, m: by.evaluate(w.component, (X[Y == 1], Y[Y == 1]), latency=False).rows[0].images,
        equals(lambda w: 3),
    ),
    Case(
        "evaluate without labels", scored_with((X, None)), Fails(DataError, "images to score", "no labels", WANTS_PAIRS)
    ),
    Case(
        "evaluate images of other channels",
        scored_with((X[:, :1], Y)),
        Fails(DataError, "images to score", "(6, 1, 8, 8)", "give images"),
    ),
    Case(
        "evaluate an assembly with one pair",
        lambda w, m: by.evaluate(w.assembly, [DATA]),
        Fails(DataError, "each of the 2 parts", "list", "one entry a part"),
    ),
    Case(
        "evaluate an assembly with None",
        lambda w, m: by.evaluate(w.assembly, None),
        Fails(DataError, "each of the 2 parts", "NoneType", "in a list"),
    ),
    Case(
        "evaluate an assembly with one source of two",
        lambda w, m: by.evaluate(w.assembly, [DATA] * 2, source=[w.source]),
        Fails(OptionError, "2 parts need", "1 were given", "give one a part"),
    ),
    Case(
        "evaluate an assembly with a foreign source",
        lambda w, m: by.evaluate(w.assembly, [DATA] * 2, source=[w.source, m], latency=False),
        Fails(DataError, "was cut from", "the source given has", "give the source"),
        Residual,
    ),
    Case(
        "evaluate an assembly with half its data",
        lambda w, m: by.evaluate(w.assembly, [DATA, None], latency=False).rows[-1].images,
        equals(lambda w: 6),
    ),
]

# -- components, assemblies, relevances --------------------------------------------------------------------------


def in_training(w: World) -> by.Component:
    return copy.deepcopy(w.component).train()


def trained_on(w: World) -> tuple[list[str], set[bool]]:
    component = in_training(w)
    return component.predict(X), {module.training for module in component.modules()}


NO_PATH = "give a text or a pathlib.Path"
NEEDS_PICTURES = "give a path, a PIL image"

METHODS = [
    Case(
        "pickle a component", lambda w, m: pickle.loads(pickle.dumps(w.component))(X), equals(lambda w: w.component(X))
    ),
    Case("pickle an assembly", lambda w, m: pickle.loads(pickle.dumps(w.assembly))(X), equals(lambda w: w.assembly(X))),
    Case("copy a component", lambda w, m: copy.deepcopy(w.component)(X), equals(lambda w: w.component(X))),
    Case("copy an assembly", lambda w, m: copy.deepcopy(w.assembly)(X), equals(lambda w: w.assembly(X))),
    Case(
        "a copy shares nothing",
        lambda w, m: shared_tensors(w.component, copy.deepcopy(w.component)),
        equals(lambda w: 0),
    ),
    Case(
        "a component shares nothing with its source",
        lambda w, m: shared_tensors(w.source, w.component),
        equals(lambda w: 0),
    ),
    Case(
        "copy relevances", lambda w, m: w.cut(relevance=copy.deepcopy(w.relevance))(X), equals(lambda w: w.component(X))
    ),
    Case("predict in training mode", lambda w, m: trained_on(w), equals(lambda w: (w.component.predict(X), {True}))),
    Case(
        "training mode answers otherwise",
        lambda w, m: in_training(w)(X),
        lambda w, m, got: check(not torch.allclose(got, w.component(X))),
    ),
    Case(
        "predict with float16 images",
        lambda w, m: (w.component.predict_proba(X.half()) - w.component.predict_proba(X)).abs().max() < 1e-3,
        equals(lambda w: torch.tensor(True)),
    ),
    Case(
        "predict with byte images",
        lambda w, m: (
            (w.component.predict_proba((X * 255).round().byte()) - w.component.predict_proba(X)).abs().max() < 0.01
        ),
        equals(lambda w: torch.tensor(True)),
    ),
    Case(
        "a call with float16 images is torch's own",
        lambda w, m: w.component(X.half()),
        Fails(RuntimeError, "Input type", "Half", "float"),
    ),
    Case(
        "a call with other channels is torch's own",
        lambda w, m: w.component(X[:, :1]),
        Fails(RuntimeError, "weight of size", "1 channels", "3 channels"),
    ),
    Case(
        "a component in float64",
        lambda w, m: copy.deepcopy(w.component).double().predict_proba(X),
        equals(lambda w: w.component.predict_proba(X)),
    ),
    Case(
        "predict None", lambda w, m: w.component.predict(None), Fails(DataError, "an image", "NoneType", NEEDS_PICTURES)
    ),
    Case("predict a number", lambda w, m: w.component.predict(5), Fails(DataError, "an image", "int", NEEDS_PICTURES)),
    Case("predict nothing", lambda w, m: w.component.predict([]), equals(lambda w: [])),
    Case("predict one image", lambda w, m: w.component.predict(X[0]), equals(lambda w: w.component.predict(X)[:1])),
    Case(
        "predict no image",
        lambda w, m: w.component.predict(X[:0]),
        Fails(DataError, "the images", "(0, 3, 8, 8)", "at least one"),
    ),
    Case(
        "predict a plane",
        lambda w, m: w.component.predict(X[0, 0]),
        Fails(DataError, "an image", "(8, 8)", NEEDS_PICTURES),
    ),
    Case(
        "predict NaN",
        lambda w, m: w.component.predict(X * NAN),
        Fails(DataError, "the images", "12 of 12", "remove or repair"),
    ),
    Case(
        "predict a missing file",
        lambda w, m: w.component.predict("no.png"),
        Fails(DataError, "image no.png", "No such file", "leave it out"),
    ),
    *[
        Case(
            f"predict(batch_size={size!r})",
            (lambda size: lambda w, m: w.component.predict(X, batch_size=size))(size),
            Fails(OptionError, "batch_size=", "no whole number", "give one"),
        )
        for size in (0, -1, "x", 1.5)
    ],
    Case(
        "predict on the meta device",
        lambda w, m: copy.deepcopy(w.component).to("meta").predict(X),
        Fails(DataError, "the model", "meta device", "load it again"),
    ),
    Case(
        "score with unknown names",
        lambda w, m: w.component.score(X, ["zz"] * 12),
        Fails(DataError, "class 'zz'", "none of 1, 3", "give names"),
    ),
    Case(
        "score with too few names",
        lambda w, m: w.component.score(X, ["1"]),
        Fails(DataError, "12 images", "1 names", "give one name an image"),
    ),
    Case(
        "score with a text",
        lambda w, m: w.component.score(X, "1" * 12),
        Fails(DataError, "names=", "str", "give a list"),
    ),
    Case(
        "score with None",
        lambda w, m: w.component.score(X, None),
        Fails(DataError, "names=", "NoneType", "give a list"),
    ),
    Case(
        "preprocess None",
        lambda w, m: w.component.preprocess(None),
        Fails(DataError, "images as a tensor", "NoneType", "give a torch.Tensor"),
    ),
    Case(
        "preprocess an array",
        lambda w, m: w.component.preprocess(X.numpy()),
        Fails(DataError, "images as a tensor", "ndarray", "give a torch.Tensor"),
    ),
    Case(
        "an assembly of None",
        lambda w, m: w.assembly(None),
        Fails(DataError, "images as a tensor", "NoneType", "give a torch.Tensor"),
    ),
    Case(
        "side by side of whole numbers",
        lambda w, m: w.assembly.side_by_side(X.long()),
        Fails(DataError, "images", "int64", "give uint8"),
    ),
    Case("fuse twice", lambda w, m: w.component.fused().fused()(X), equals(lambda w: w.component(X))),
    *[
        Case(
            f"relevance.{name}({layer!r})",
            (lambda name, layer: lambda w, m: getattr(w.relevance, name)(layer))(name, layer),
            Fails(OptionError, f"{what} {layer!r}", "was asked for", "relevances exist for"),
        )
        for name, what in [
            ("hard", "layer"),
            ("sum", "layer"),
            ("contribution", "layer"),
            ("axis", "axis"),
            ("relevant", "axis"),
        ]
        for layer in ("conv9", None)
    ],
    Case(
        "sums that were not kept",
        lambda w, m: w.locate(keep_sums=False).sum("conv1"),
        Fails(OptionError, "'conv1'", "not kept", "keep_sums=True"),
    ),
    Case(
        "relevance.with_thresholds(0.3)",
        lambda w, m: w.relevance.with_thresholds(0.3, w.relevance.graph(w.source)),
        Fails(OptionError, "thresholds=0.3", "float", "give brickyard.Thresholds"),
    ),
    Case(
        "relevance.with_thresholds(..., None)",
        lambda w, m: w.relevance.with_thresholds(by.Thresholds(alpha=0.1), None),
        Fails(OptionError, "graph=", "of type", "relevance.graph(model)"),
    ),
    Case(
        "relevance.graph(None)",
        lambda w, m: w.relevance.graph(None),
        Fails(TraceError, "torch.nn.Module", "NoneType", "give the"),
    ),
    Case(
        "relevance.graph(another)",
        lambda w, m: w.relevance.graph(m),
        Fails(DataError, "belong to", "this model's are", "locate again"),
        Residual,
    ),
    Case("Component()", lambda w, m: by.Component(), Fails(TypeError, "__init__", "missing", "network")),
    Case("Assembly()", lambda w, m: by.Assembly(), Fails(TypeError, "__init__", "missing", "networks")),
    Case("Relevance()", lambda w, m: by.Relevance(), Fails(TypeError, "__init__", "missing", "classes")),
]


def tuned_with(data: Any = DATA, **options: Any) -> Callable[[World, Any], by.Component]:
    usual = {"training": TrainingOptions(epochs=1), "validation": 0}
    return lambda w, m: by.finetune(w.component, data, **usual | options)


TUNE = [
    *wrong_values("finetune", tuned_with, "training", "of type", "TrainingOptions(epochs=...)", 5, {"epochs": 1}),
    *wrong_values("finetune", tuned_with, "distillation", "of type", "Distillation(weight=...)", 5, {"weight": 1}),
    *wrong_values("finetune", tuned_with, "validation", "was given", "give a share in [0, 0.5]", 5, NAN),
    *[
        refused(TrainingOptions, name, value, "no whole number", "give one")
        for name, value in (("epochs", 0), ("epochs", 1.5), ("epochs", "x"), ("batch_size", 0), ("patience", -1))
    ],
    *[refused(TrainingOptions, "lr", value, "not in (0, inf)", "0.1 suits") for value in (-1, NAN, "x")],
    *[
        refused(Distillation, name, value, "not in", "usual")
        for name, value in (("temperature", 0), ("temperature", "x"), ("weight", 2), ("weight", NAN))
    ],
    Case("finetune(resume=5)", tuned_with(resume=5), Fails(FileError, "to go on from", "int", NO_PATH)),
    Case("finetune without labels", tuned_with(X), Fails(DataError, "train on", "no labels", WANTS_PAIRS)),
    Case("finetune on other classes", tuned_with((X, Y * 0)), Fails(DataError, "train on", "1, 3", "give some")),
    Case(
        "finetune a source",
        lambda w, m: finetune(m, DATA),
        Fails(OptionError, "is trained", "Sequential", "cut one"),
        chain,
    ),
    Case("a teacher that is a number", tuned_with(teacher=5), Fails(OptionError, "as teacher", "int", "give a")),
    Case(
        "finetuning changes the copy",
        tuned_with(training=TrainingOptions(epochs=2, lr=0.1)),
        lambda w, m, got: check(not torch.equal(got(X), w.component(X))),
    ),
]


def shared_tensors(a: nn.Module, b: nn.Module) -> int:
    places = {value.data_ptr() for value in [*a.parameters(), *a.buffers()] if value.numel()}
    return sum(value.data_ptr() in places for value in [*b.parameters(), *b.buffers()] if value.numel())


# -- files, yards, exports, pages ----------------------------------------------------------------------------------

BAD_PATHS: list[tuple[str, Any, str, str]] = [
    ("None", None, "NoneType", NO_PATH),
    ("a number", 5, "int", NO_PATH),
    ("bytes", b"x.safetensors", "bytes", NO_PATH),
    ("a zero byte", "a\0b", "null", "choose another"),
    ("half a surrogate pair", "\ud800.safetensors", "surrogates", "choose another"),
    ("5,000 letters", "a" * 5000, "too long", "choose another"),
]

FILES = [
    *[
        Case(
            f"load {name}",
            (lambda path: lambda w, m: by.load(path))(path),
            Fails(FileError, "the file to load", found, todo),
        )
        for name, path, found, todo in BAD_PATHS
    ],
    *[
        Case(
            f"save {kind} to {name}",
            (lambda kind, path: lambda w, m: getattr(w, kind).save(path))(kind, path),
            Fails(FileError, "the file to write", found, todo),
        )
        for kind in ("component", "assembly", "relevance")
        for name, path, found, todo in BAD_PATHS
    ],
    Case(
        "load a folder",
        lambda w, m: by.load(w.folder),
        Fails(FileError, "cannot be read", "directory", "check the path"),
    ),
    Case(
        "load a missing file",
        lambda w, m: by.load(w.folder / "no.safetensors"),
        Fails(FileError, "no.safetensors", "No such file", "check the path"),
    ),
    Case(
        "load a text",
        lambda w, m: by.load(w.folder / "text.safetensors"),
        Fails(FileError, "text.safetensors", "not a safetensors file", "get it again"),
    ),
    Case(
        "load by a text",
        lambda w, m: by.load(str(w.folder / "component.safetensors"))(X),
        equals(lambda w: w.component(X)),
    ),
    Case(
        "save to a folder",
        lambda w, m: w.component.save(w.folder),
        Fails(FileError, "exists", "misuse", "give another path"),
    ),
    Case(
        "save where there is no folder",
        lambda w, m: w.component.save(w.folder / "no" / "x.safetensors"),
        Fails(FileError, "x.safetensors", "cannot be written", "no"),
    ),
    Case(
        "save below a file",
        lambda w, m: w.component.save(w.folder / "text.safetensors" / "x"),
        Fails(FileError, "text.safetensors", "cannot be written", "no place"),
    ),
    Case(
        "save over a file",
        lambda w, m: w.component.save(w.folder / "component.safetensors"),
        Fails(FileError, "component.safetensors", "exists", "overwrite=True"),
    ),
    Case(
        "save from the meta device",
        lambda w, m: copy.deepcopy(w.component).to("meta").save(w.folder / "meta.safetensors"),
        Fails(FileError, "numbers to write", "meta device", "load the component again"),
    ),
    Case(
        "save NaN",
        lambda w, m: with_nan(w.component).save(w.folder / "nan.safetensors"),
        Fails(FileError, "'network.conv1.weight'", "not finite", "nothing was written"),
    ),
    Case("a yard at None", lambda w, m: Yard(None), Fails(FileError, "the yard", "NoneType", NO_PATH)),
    Case(
        "a yard that is missing",
        lambda w, m: Yard(w.folder / "no"),
        Fails(FileError, "the yard", "does not exist", "create=True"),
    ),
    Case(
        "a yard that is a file",
        lambda w, m: Yard(w.folder / "text.safetensors"),
        Fails(FileError, "the yard", "is a file", "give a folder"),
    ),
    *[
        Case(
            f"yard.add({name})",
            (lambda pick: lambda w, m: a_yard(w).add(pick(w)))(pick),
            Fails(OptionError, "added to a yard", found, "component or a path"),
        )
        for name, pick, found in [
            ("None", lambda w: None, "NoneType"),
            ("a source", lambda w: w.source, "Sequential"),
            ("an assembly", lambda w: w.assembly, "Assembly"),
            ("bytes", lambda w: b"x", "bytes"),
        ]
    ],
    *[
        Case(
            f"yard.add(name={name!r:.12})",
            (lambda name: lambda w, m: a_yard(w).add(w.other, name))(name),
            Fails(FileError, "name for a component", "is no name", "use letters"),
        )
        for name in (5, "", "a/b", "../x", ".hidden", "\ud800")
    ],
    Case(
        "yard.entry(near miss)",
        lambda w, m: a_yard(w).entry("smal"),
        Fails(FileError, "'smal'", "among the 1", "did you mean 'small'?"),
    ),
    Case(
        "yard.load(None)",
        lambda w, m: a_yard(w).load(None),
        Fails(FileError, "component None", "among the 1", "list the yard"),
    ),
    Case(
        "yard.remove(unknown)",
        lambda w, m: a_yard(w).remove("zebra"),
        Fails(FileError, "'zebra'", "among the 1", "list the yard"),
    ),
    *[
        Case(
            f"yard.search({name}={value!r})",
            (lambda name, value: lambda w, m: a_yard(w).search(**{name: value}))(name, value),
            Fails(OptionError, f"{name}=", found, todo),
        )
        for name, value, found, todo in [
            ("classes", "1", "one text", "give a list"),
            ("classes", 5, "int", "give a list"),
            ("min_accuracy", 2, "not in [0, 1]", "0.9 is"),
            ("min_accuracy", "x", "not in [0, 1]", "0.9 is"),
            ("max_parameters", "x", "no whole number", "give one"),
            ("max_flops", -1, "no whole number", "give one"),
            ("text", 5, "int", "give a text"),
            ("source", 5, "int", "give a text"),
        ]
    ],
    Case(
        "yard.choose(nothing)",
        lambda w, m: a_yard(w).choose([]),
        Fails(TaskError, "components", "no classes", "name at least one"),
    ),
    Case(
        "yard.choose(unknown)",
        lambda w, m: a_yard(w).choose(["zz"]),
        Fails(TaskError, "no component", "class 'zz'", "cut components"),
    ),
    Case(
        "yard.choose(one twice)",
        lambda w, m: a_yard(w).choose(["1", "1"]),
        Fails(TaskError, "class '1'", "twice", "once"),
    ),
    Case(
        "yard.choose(a text)",
        lambda w, m: a_yard(w).choose("1"),
        Fails(OptionError, "classes='1'", "one text", "give a list"),
    ),
    Case(
        "yard.choose(None)",
        lambda w, m: a_yard(w).choose(None),
        Fails(OptionError, "classes=None", "NoneType", "give a list"),
    ),
    Case(
        "yard.choose(a number)",
        lambda w, m: a_yard(w).choose([5]),
        Fails(OptionError, "by name", "5 was given", "give texts"),
    ),
    Case(
        "yard.choose(max_parameters=0)",
        lambda w, m: a_yard(w).choose(["1"], max_parameters=0),
        Fails(OptionError, "max_parameters=0", "no whole number", "leave it out"),
    ),
    *[
        Case(
            f"{call.__name__}({name})",
            (lambda call, pick: lambda w, m: call(pick(w), w.folder / "never"))(call, pick),
            Fails(OptionError, asked, found, "make one" if call is not save_pretrained else "given"),
        )
        for call, asked in (
            (export_onnx, "is exported"),
            (export_state_dict, "is exported"),
            (save_pretrained, "a card is of a component"),
        )
        for name, pick, found in (
            ("None", lambda w: None, "NoneType"),
            ("a source", lambda w: w.source, "Sequential"),
            ("relevances", lambda w: w.relevance, "Relevance"),
        )
    ],
    Case(
        "export_state_dict to None",
        lambda w, m: export_state_dict(w.component, None),
        Fails(FileError, "the file to write", "NoneType", NO_PATH),
    ),
    Case(
        "export_onnx to None",
        lambda w, m: export_onnx(w.component, None),
        Fails(FileError, "the file to write", "NoneType", NO_PATH),
    ),
    Case(
        "save_pretrained to None",
        lambda w, m: save_pretrained(w.component, None),
        Fails(FileError, "the folder to write to", "NoneType", NO_PATH),
    ),
    Case(
        "push_to_hub(None)",
        lambda w, m: push_to_hub(None, "someone/pets"),
        Fails(OptionError, "is uploaded", "NoneType", "make or load one"),
    ),
    Case(
        "from_pretrained(None)",
        lambda w, m: from_pretrained(None),
        Fails(FileError, "folder or repository", "NoneType", NO_PATH),
    ),
    Case(
        "from_pretrained(an empty folder)",
        lambda w, m: from_pretrained(w.folder),
        Fails(FileError, "brickyard.safetensors", "No such file", "check the path"),
    ),
    Case(
        "from_pretrained(revision of a folder)",
        lambda w, m: from_pretrained(w.folder, revision="main"),
        Fails(OptionError, "revision='main'", "is a folder", "leave it out"),
    ),
    Case(
        "report about nothing",
        lambda w, m: report([]),
        Fails(OptionError, "a report about nothing", "was asked for", "give a list"),
    ),
    Case(
        "report about a component alone",
        lambda w, m: report(w.component),
        Fails(OptionError, "a report about a Component", "was asked for", "give a list"),
    ),
    Case(
        "report about a source",
        lambda w, m: report([w.source]),
        Fails(OptionError, "a report shows", "Sequential", "components, assemblies"),
    ),
    Case(
        "report with too many names",
        lambda w, m: report([w.component], names=["a", "b"]),
        Fails(OptionError, "2 names", "1 items", "give one an item"),
    ),
    Case(
        "report with a number for a source",
        lambda w, m: report([w.component], sources=[5]),
        Fails(TraceError, "torch.nn.Module", "int", "give the"),
    ),
    Case(
        "report with the wrapped source",
        lambda w, m: (
            report([w.component], data=[DATA], sources=[m]) == report([w.component], data=[DATA], sources=[w.source])
        ),
        equals(lambda w: True),
        lambda: nn.DataParallel(chain()),
    ),
    Case(
        "routes of nothing",
        lambda w, m: routes(w.relevance, []),
        Fails(TaskError, "task", "empty", "name at least one"),
    ),
    Case(
        "routes of an unknown class",
        lambda w, m: routes(w.relevance, ["zz"]),
        Fails(TaskError, "'zz'", "the source knows", "name some of these"),
    ),
    Case(
        "routes of a component",
        lambda w, m: routes(w.component, ["1"]),
        Fails(OptionError, "those of relevances", "Component", "call locate"),
    ),
    Case(
        "routes with -1 links",
        lambda w, m: routes(w.relevance, ["1"], most_links=-1),
        Fails(OptionError, "most_links=-1", "no whole number", "give one"),
    ),
    Case(
        "trace with None",
        lambda w, m: trace(w.source, None),
        Fails(TraceError, "the example", "NoneType", "give two images"),
    ),
    Case(
        "trace with an array",
        lambda w, m: trace(w.source, X.numpy()),
        Fails(TraceError, "the example", "ndarray", "give two images"),
    ),
    Case(
        "trace with whole numbers",
        lambda w, m: trace(w.source, X.long()),
        Fails(TraceError, "the example", "int64", "give two images"),
    ),
    Case(
        "trace with no image",
        lambda w, m: trace(w.source, X[:0]),
        Fails(TraceError, "the example", "(0, 3, 8, 8)", "give two images"),
    ),
    Case(
        "trace with NaN",
        lambda w, m: trace(w.source, X * NAN),
        Fails(TraceError, "Sequential returns", "NaN", "give images in the range"),
    ),
    Case(
        "trace with meta images",
        lambda w, m: trace(w.source, X.to("meta")),
        Fails(TraceError, "Sequential fails", "meta", "give `example`"),
    ),
    Case(
        "load_source(None)",
        lambda w, m: load_source(None),
        Fails(OptionError, "source None", "NoneType", "zoo:resnet20"),
    ),
    Case(
        "load_source(bytes)", lambda w, m: load_source(b"zoo:cnn"), Fails(OptionError, "source", "bytes", "give a text")
    ),
    Case(
        "load_source(unknown)",
        lambda w, m: load_source("nope"),
        Fails(OptionError, "'nope'", "not understood", "zoo:NAME"),
    ),
    Case("load_data(None)", lambda w, m: load_data(None), Fails(DataError, "'None'", "no such file", "'digits'")),
    Case("load_recipe(None)", lambda w, m: load_recipe(None), Fails(FileError, "the recipe", "NoneType", NO_PATH)),
    Case(
        "load_recipe(a folder)",
        lambda w, m: load_recipe(w.folder),
        Fails(FileError, "recipe", "directory", "check the path"),
    ),
]


def a_yard(w: World) -> Yard:
    yard = Yard(w.folder / "yard", create=True)
    yard.add(w.component, "small")
    return yard


def with_nan(component: by.Component) -> by.Component:
    broken_one = copy.deepcopy(component)
    next(iter(broken_one.parameters())).data.view(-1)[0] = NAN
    return broken_one


ROWS = torch.randn(24, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
KINDS = torch.arange(24) % 3


def probed(**given: Any) -> Callable[[World, Any], Any]:
    return lambda w, m: probe(ROWS, KINDS, **given)


def ranked_with(data: Any = DATA, **given: Any) -> Callable[[World, Any], Any]:
    return lambda w, m: a_yard(w).rank(data, **given)


TRANSFER = [
    *[
        Case(
            f"features of {name}",
            (lambda pick: lambda w, m: features(pick(w), DATA))(pick),
            Fails(OptionError, "features of a", found, "give a component"),
        )
        for name, pick, found in (
            ("None", lambda w: None, "NoneType"),
            ("a source", lambda w: w.source, "Sequential"),
            ("an assembly", lambda w: w.assembly, "Assembly"),
        )
    ],
    Case(
        "features in training mode",
        lambda w, m: features(in_training(w), DATA),
        equals(lambda w: features(w.component, DATA)),
    ),
    Case(
        "features(batch_size=0)",
        lambda w, m: features(w.component, DATA, 0),
        Fails(OptionError, "batch_size=0", "no whole", "give"),
    ),
    Case(
        "features of a component with NaN",
        lambda w, m: features(with_nan(w.component), DATA),
        Fails(DataError, "features of", "NaN or infinite", "look at the component"),
    ),
    *[
        Case(
            f"{call.__name__} of {name}",
            (lambda call, x, y: lambda w, m: call(x, y))(call, x, y),
            Fails(DataError, asked, found, todo),
        )
        for call in (log_evidence, h_score, probe)
        for name, x, y, asked, found, todo in (
            ("one class", ROWS, KINDS * 0, "24 images", "of one class", "two classes or more"),
            ("as many images as classes", ROWS[:3], KINDS[:3], "3 images", "of 3 classes", "more images than classes"),
            ("labels of other images", ROWS, KINDS[:9], "24 feature vectors", "shape (9,)", "one whole number"),
            ("labels with a comma", ROWS, KINDS + 0.5, "24 feature vectors", "torch.float32", "one whole number"),
            ("images", X, Y, "features of shape", "(", "(images, size)"),
            (
                "infinite features",
                ROWS * torch.inf,
                KINDS,
                "features of 24",
                "NaN or infinite",
                "leave these images out",
            ),
            ("a text", "rows", KINDS, "features and labels", "a str", "give tensors"),
        )
    ],
    Case(
        "scores of features in half precision",
        lambda w, m: log_evidence(ROWS.half(), KINDS),
        equals(lambda w: log_evidence(ROWS.half().double(), KINDS)),
    ),
    Case(
        "scores of other numbers for the same classes",
        lambda w, m: (log_evidence(ROWS, 7 - 3 * KINDS), h_score(ROWS, 7 - 3 * KINDS)),
        lambda w, m, got: got == pytest.approx((log_evidence(ROWS, KINDS), h_score(ROWS, KINDS))),
    ),
    *wrong_values("probe", probed, "strengths", "is no list", "give one", [], 5, None),
    Case(
        "probe(strengths=[0])",
        probed(strengths=[0.0]),
        Fails(OptionError, "strength 0.0", "no finite number", "give one"),
    ),
    Case("probe(folds=1)", probed(folds=1), Fails(OptionError, "folds=1", "no whole number", "give")),
    Case("a probe", probed(), lambda w, m, got: isinstance(got, Probe) and got.validated is not None),
    Case(
        "Probe.predict with other features",
        lambda w, m: probe(ROWS, KINDS).predict(ROWS[:, :3]),
        Fails(DataError, "features of shape", "(24, 3)", "(images, 5)"),
    ),
    Case(
        "Probe.score with fewer labels",
        lambda w, m: probe(ROWS, KINDS).score(ROWS, KINDS[:2]),
        Fails(DataError, "24 feature vectors", "(2,)", "give one an image"),
    ),
    *wrong_values("yard.rank", ranked_with, "score", "is not a choice", "use one of", "best", None, 3),
    *wrong_values("yard.rank", ranked_with, "per_class", "no whole number", "give", 0, 1.5),
    Case("yard.rank without labels", ranked_with(X), Fails(DataError, "the images", "no labels", WANTS_PAIRS)),
    Case(
        "yard.rank of one class",
        ranked_with((X, Y * 0)),
        Fails(DataError, "all", "of one class", "two classes or more"),
    ),
]

CASES = [*MODELS, *LOCATE, *DISASSEMBLE, *VALUES, *DATA_CASES, *ASSEMBLE, *EVALUATE, *METHODS, *TUNE, *FILES, *TRANSFER]


@pytest.mark.parametrize("case", CASES, ids=[ascii(case.name)[1:-1] for case in CASES])
def test_wrong_and_odd_uses(case: Case, world: World) -> None:
    model = world.source if case.model is None else case.model()
    models = [world.source, world.component, world.other, world.assembly]
    models += [model] if isinstance(model, nn.Module) and model is not world.source else []
    if isinstance(case.expect, Fails):
        with untouched(*models), pytest.raises(Exception) as caught:
            case.call(world, model)
        assert type(caught.value) is case.expect.kind or (
            isinstance(caught.value, BrickyardError) and isinstance(caught.value, case.expect.kind)
        ), repr(caught.value)
        text = str(caught.value)
        for part in (case.expect.asked, case.expect.found, case.expect.todo):
            assert part in text, f"{part!r} is not in: {text}"
        if isinstance(caught.value, BrickyardError):
            assert len(text) < 700
            assert text.encode("utf-8")
        return
    with untouched(*models):
        got = case.call(world, model)
    case.expect(world, model, got)


def test_names_of_cases_differ_and_there_are_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 80
    for case in CASES:
        if isinstance(case.expect, Fails):
            assert all((case.expect.asked, case.expect.found, case.expect.todo)), case.name


def test_everything_in_the_reference_is_used() -> None:
    """Every function, class and method that the reference lists is called, or read, in some case."""
    text = (Path(__file__).parent.parent / "docs" / "reference" / "python.md").read_text()
    text = text.partition("## Graph networks")[0]  # these have a page and tests of their own
    names = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", text, re.M)}
    names |= {name for members in re.findall(r"members: \[(.*)\]", text) for name in members.split(", ")}
    tree = ast.parse(Path(__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert len(names) > 25
    assert names <= used, names - used


# -- settings of the caller ------------------------------------------------------------------------------------------


def everything(source: nn.Module) -> dict[str, Tensor]:
    """What the verbs give, as numbers."""
    relevance = by.locate(source, DATA, per_class=2)
    parts = [by.disassemble(source, relevance, task=["1", "3"]), by.disassemble(source, relevance, task=["0"])]
    damage = by.disassemble(source, relevance, task=["1"], budget=by.Budget(flops=0.6), select="damage")
    taylor = by.disassemble(source, relevance, task=["1"], budget=by.Budget(flops=0.6), select="taylor")
    found = {"sums": relevance.sum("conv2"), "scores": relevance.scores, "damage": damage.network.linear.weight}
    found["taylor"] = taylor.network.linear.weight
    for form in ("parallel", "padded", "grouped"):
        whole_one = by.assemble(parts, form=form)
        assert not any(value.is_inference() for value in whole_one.parameters())
        found[form] = torch.cat([value.flatten() for value in whole_one.parameters()])
    for scaling in ("affine", "lda"):
        matrix = by.assemble(parts, scaling=scaling, images=[DATA, DATA]).matrix
        assert matrix is not None
        found[scaling] = matrix
    rows = by.evaluate(parts[0], DATA, source=source, latency=False).rows
    found["scored"] = torch.tensor([[row.accuracy, row.error] for row in rows], dtype=torch.float64, device="cpu")
    return found


@contextlib.contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a default type": lambda: default_type(torch.float64),
    "a default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_caller_change_nothing(name: str) -> None:
    source = used_source()
    expected = everything(source)
    with SETTINGS[name](), untouched(source):
        found = everything(source)
    for what, value in expected.items():
        assert found[what].dtype == value.dtype, what
        assert found[what].device == value.device, what
        torch.testing.assert_close(found[what], value, msg=what)


def test_a_component_made_in_inference_mode_trains() -> None:
    source = chain()
    with torch.inference_mode():
        component = by.disassemble(source, by.locate(source, DATA, per_class=2), task=["1", "3"])
    loss = nn.functional.cross_entropy(component(X), Y % 2)
    other = in_inference()
    with pytest.raises(RuntimeError):  # the control: what inference mode makes does not train
        nn.functional.cross_entropy(other(X), Y).backward()
    for value in component.parameters():
        value.requires_grad_(True)
    nn.functional.cross_entropy(component(X), Y % 2).backward()
    assert torch.isfinite(loss)
    assert all(value.grad is not None for value in component.parameters())


def test_threads_give_what_one_gives() -> None:
    """Several threads locate and cut one model at once, while another one runs a model of its own."""
    source = used_source()
    expected = everything(source)
    found: list[dict[str, Tensor]] = []
    problems: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            found.extend(everything(source) for _ in range(2))
        except BaseException as error:
            problems.append(error)

    model = chain()
    wanted = model(X)

    def bystander() -> None:
        try:
            while not stop.is_set():
                assert torch.equal(model(X), wanted)
        except BaseException as error:
            problems.append(error)

    with untouched(source):
        other = threading.Thread(target=bystander)
        threads = [threading.Thread(target=work) for _ in range(4)]
        other.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        other.join()
    assert not problems, problems
    assert len(found) == 8
    for one in found:
        for what, value in expected.items():
            torch.testing.assert_close(one[what], value, msg=what)


def test_a_distributed_wrapper_is_seen_through(tmp_path: Path) -> None:
    if torch.distributed.is_initialized():
        pytest.skip("another test has a process group")
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(chain())
        with untouched(model):
            component = by.disassemble(model, by.locate(model, DATA, per_class=2), task=["1", "3"])
    finally:
        torch.distributed.destroy_process_group()
    answers_alike(component)


def test_a_gpu_that_is_not_there_is_torchs_own_error(world: World) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    component = copy.deepcopy(world.component)
    with pytest.raises((RuntimeError, AssertionError), match=r"NVIDIA|CUDA"):
        component.to("cuda")
    answers_alike(component)  # and it still works where it was
