"""Wrong and odd networks."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import brickyard as by
from brickyard.axes import trace
from brickyard.testing import Residual, chain, randomised
from misuse.world import DATA, INFINITY, NAN, Case, Labelled, World, X, Y, plain, whole


def changed(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = chain()
        change(model)
        return model

    return make


HOOKS: dict[str, Callable[[nn.Sequential], Any]] = {
    "forward": lambda m: m.conv1.register_forward_hook(lambda module, args, out: out * 2),
    "before": lambda m: m.conv1.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "whole": lambda m: m.register_forward_hook(lambda module, args, out: out * 2),
    "failing": lambda m: m.conv1.register_forward_hook(lambda *args: 1 / 0),
    # needs numbers: it must never see the steps of a trace
    "reading": lambda m: m.conv1.register_forward_hook(lambda m, args, out: out.numpy(force=True).sum() * 0 or None),
    "backward": lambda m: m.conv1.register_full_backward_hook(lambda *args: None),
    "before backward": lambda m: m.conv2.register_full_backward_pre_hook(lambda *args: None),
}


def hooked(*kinds: str) -> Callable[[], nn.Module]:
    return changed(lambda model: [HOOKS[kind](model) for kind in kinds])


class Inner(nn.Module):
    """A network around the plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = chain()


class Ends(Inner):
    """A classifier that ends in its own way."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.inner(x))


class Wraps(Inner):
    """What parallel wrappers of other libraries look like."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Needs(Inner):
    def forward(self, x: Tensor, scale: float) -> Tensor:
        return self.inner(x) * scale


class Optional(Inner):
    def forward(self, x: Tensor, scale: float = 1.0, *, flag: bool = False) -> Tensor:
        return self.inner(x) * scale


class ByKey(Inner):
    def forward(self, *, pixel_values: Tensor) -> Tensor:
        return self.inner(pixel_values)


class Remembers(Inner):
    """Its forward writes into the model: an attribute, a list, a dict, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.seen, self.known = None, [], {}
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.late = self.known["x"] = x
        self.seen.append(x)
        self.calls.add_(1)
        return self.inner(x)


class Branches(Inner):
    """Python control flow on numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else -self.inner(x)


class Draws(Inner):
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


def subclassed(model: nn.Sequential) -> None:
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach().as_subclass(Labelled))


Pair = namedtuple("Pair", "logits extra")
narrow, tenth = partial(chain, widths=(1, 1)), partial(World.cut, budget=by.Budget(flops=0.1))
jit_first = changed(lambda m: setattr(m, "conv1", torch.jit.script(m.conv1)))


def no_channel() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 0, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(0, 4))


def save_whole(w: World) -> Path:
    return whole(w).save(w.folder / "never.safetensors")


def says(w: World) -> Tensor:
    """What the model itself answers."""
    with torch.no_grad():
        return w.model.eval()(X)


def typed(w: World) -> tuple[set[torch.dtype], by.Component]:
    component = w.cut()
    return {value.dtype for value in component.parameters()}, component


def in_double(w: World) -> tuple[set[torch.dtype], by.Component]:
    """The model's own type, and the component of the same numbers in float64."""
    return {next(w.model.parameters()).dtype}, w.cut(copy.deepcopy(w.model).double())


def tuned_by_dropout(w: World) -> Tensor:
    w.cut()
    return whole(w)(X)


def kept(w: World) -> dict[str, int]:
    return {name: len(axis.kept) for name, axis in w.cut().manifest.axes.items() if name in ("stem", "first", "second")}


def dead_is_kept(w: World) -> tuple[bool, bool]:
    channels = w.cut().manifest.axes["conv1"].kept
    return bool(channels), 2 in channels


def located_layers(w: World) -> list[bool]:
    return [w.locate().hard(layer).any().item() for layer in ("conv1", "conv2", "linear")]


def one_class(w: World) -> Tensor:
    """One output is the logit of the second of two classes."""
    relevance = w.locate(data=(X, Y % 2))
    return 2 * by.disassemble(w.model, relevance, task=["1"], budget=by.Budget(flops=1.0), heal="none")(X)


def two_classes(w: World) -> torch.Size:
    return by.disassemble(w.model, w.locate(data=(X, Y % 2)), task=["1"], reject=True)(X).shape


def all_channels(w: World) -> Tensor:
    return whole(w)(X)


def cut_answers(w: World) -> Tensor:
    return w.cut()(X)


def bad(name: str, model: Callable[[], Any], code: str, *quoted: str) -> Case:
    """A network that nothing can be located in."""
    return Case(name, World.locate, code, *quoted, model=model)


def like(name: str, model: Callable[[], Any]) -> Case:
    """A network that is cut like the plain one."""
    return Case(name, World.cut, plain, model=model)


def kept_whole(name: str, model: Callable[[], Any]) -> Case:
    """A network whose answers are kept where all channels are."""
    return Case(name, all_channels, says, model=model)


CASES = [
    Case("model None", lambda w: by.locate(None, DATA), "trace-not-module", "torch.nn.Module", "NoneType"),
    Case("model a text", lambda w: by.locate("net", DATA), "trace-not-module", "torch.nn.Module", "str"),
    Case("model a class", lambda w: by.locate(Residual, DATA), "trace-not-module", "torch.nn.Module", "type"),
    Case("model a function", lambda w: by.locate(chain, DATA), "trace-not-module", "torch.nn.Module", "function"),
    bad("on the meta device", changed(lambda m: m.to("meta")), "trace-no-weights", "'conv1.weight'"),
    bad("half on the meta device", changed(lambda m: m.linear.to("meta")), "trace-no-weights", "'linear.weight'"),
    bad("NaN in a weight", poked("conv2.weight", NAN), "trace-not-finite", "'conv2.weight'"),
    bad("infinity in a weight", poked("linear.weight", INFINITY), "trace-not-finite", "1 of 32", "'linear.weight'"),
    bad("NaN in a running mean", poked("bn1.running_mean", NAN), "trace-not-finite", "'bn1.running_mean'"),
    Case("float16", typed, in_double, model=lambda: chain().half()),
    Case("bfloat16", typed, in_double, model=lambda: chain().bfloat16()),
    Case("float64", typed, in_double, model=lambda: chain().double()),
    bad("complex numbers", changed(lambda m: m.to(torch.complex64)), "trace-not-floating-point", "complex64"),
    like("hooks that only look", hooked("reading")),
    like("backward hooks", hooked("backward", "before backward")),
    bad("a forward hook that changes the output", hooked("forward"), "trace-mismatch", "Sequential", "'conv1'"),
    bad("a hook that changes the input", hooked("before"), "trace-mismatch", "Sequential", "'conv1'"),
    bad("a hook on the whole model", hooked("whole"), "trace-mismatch", "'Sequential'"),
    bad("a hook that fails", hooked("failing"), "trace-run-failed", "Sequential", "division by zero"),
    like("weight norm", changed(lambda m: parametrizations.weight_norm(m.conv2))),
    like("weight norm of old", changed(lambda m: nn.utils.weight_norm(m.conv2))),
    kept_whole("spectral norm", changed(spectral)),
    kept_whole("orthogonal", changed(lambda m: parametrizations.orthogonal(m.linear))),
    kept_whole("pruned", changed(lambda m: prune.l1_unstructured(m.conv2, "weight", 0.5))),
    like("training mode", changed(lambda m: m.train())),
    Case("training mode with dropout", tuned_by_dropout, says, model=dropping),
    like("frozen parameters", changed(lambda m: m.requires_grad_(False))),
    like("made in inference mode", in_inference),
    like("weights of a tensor subclass", changed(subclassed)),
    like("torch.compile", lambda: torch.compile(chain())),
    like("model.compile()", changed(lambda m: m.compile())),
    Case("torch.compile inside", all_channels, lambda w: chain()(X), model=nested(torch.compile)),
    like("DataParallel", lambda: nn.DataParallel(chain())),
    Case("DataParallel inside", all_channels, lambda w: chain()(X), model=nested(nn.DataParallel)),
    like("DataParallel of a compiled model", lambda: nn.DataParallel(torch.compile(chain()))),
    Case("a wrapper with *args", cut_answers, lambda w: plain(w)(X), model=Wraps),
    like("traced by fx", lambda: torch.fx.symbolic_trace(chain())),
    bad("torch.jit.script", lambda: torch.jit.script(chain()), "trace-torchscript", "RecursiveScriptModule"),
    bad("torch.jit.trace", lambda: torch.jit.trace(chain(), X[:2]), "trace-torchscript", "TopLevelTracedModule"),
    kept_whole("a scripted layer inside", jit_first),
    Case("a scripted layer inside, saved", save_whole, "file-unsupported-operation", "conv1", model=jit_first),
    bad("lazy and not initialised", lazy, "trace-no-weights", "'0.weight'", "Sequential"),
    kept_whole("lazy and initialised", woken),
    bad(
        "quantised",
        lambda: torch.ao.quantization.quantize_dynamic(chain(), {nn.Linear}),
        "trace-not-floating-point",
        "'linear'",
    ),
    kept_whole("one channel a layer", narrow),
    Case("one channel a layer, a budget", tenth, "option-budget-too-small", "0.1", model=narrow),
    bad("no channel in a layer", no_channel, "trace-run-failed", "Sequential", "(2, 3, 8, 8)"),
    Case("one output", one_class, says, model=lambda: chain(1)),
    Case("two classes, one taken", two_classes, torch.Size([12, 2]), model=lambda: chain(2)),
    Case("a dead channel", dead_is_kept, (True, False), model=changed(dead_channel)),
    Case("a constant network", cut_answers, torch.zeros(12, 2), model=changed(without_gain)),
    Case("a constant network's relevances", located_layers, [False] * 3, model=changed(without_gain)),
    kept_whole("shared weights", Tied),
    Case("shared weights, cut", kept, {"stem": 6, "first": 6, "second": 6}, model=Tied),
    bad("returns a tuple", partial(Ends, lambda y: (y, y)), "trace-output", "Ends", "tuple"),
    like("returns a dict", partial(Ends, lambda y: {"y": y})),
    bad("returns a dict of two", partial(Ends, lambda y: {"y": y, "z": y}), "trace-output", "Ends", "y: (2, 4)"),
    like("returns a namedtuple", partial(Ends, lambda y: Pair(y, y))),
    bad("returns None", partial(Ends, lambda y: None), "trace-output", "Ends", "NoneType"),
    bad("returns one more dimension", partial(Ends, lambda y: y[:, None]), "trace-output", "Ends", "(2, 1, 4)"),
    bad("returns classes", partial(Ends, lambda y: y.long()), "trace-output", "Ends", "int64"),
    bad("returns truth values", partial(Ends, lambda y: y > 0), "trace-output", "Ends", "bool"),
    bad("returns no class", partial(Ends, lambda y: y[:, :0]), "trace-output", "Ends", "(2, 0)"),
    bad("returns NaN", partial(Ends, lambda y: y / 0), "trace-not-finite", "Ends", "NaN"),
    bad("needs another argument", Needs, "trace-forward-inputs", "Needs", "scale"),
    Case("has other arguments with defaults", cut_answers, lambda w: plain(w)(X), model=Optional),
    bad("takes images by name only", ByKey, "trace-forward-inputs", "ByKey", "pixel_values"),
    bad("has no forward", Unwritten, "trace-forward-inputs", "Unwritten"),
    Case("writes into itself when it runs", cut_answers, lambda w: plain(w)(X), model=Remembers),
    bad("branches on numbers", Branches, "trace-control-flow", "Branches", "x.sum() > 0"),
    bad("draws random numbers", Draws, "trace-mismatch", "Draws", "random"),
    Case(
        "an assembly as a source", lambda w: by.locate(w.assembly, (X, Y % 2)), "trace-no-source", "distil", "component"
    ),
    Case("an assembly to trace", lambda w: trace(w.assembly, X[:2]), "trace-no-source", "distil", "component"),
    Case("a component as a source", lambda w: by.locate(w.component, (X, Y % 2)).classes, ("0", "1")),
]
