"""Every entry of the tables of layers and functions: a tiny network with it is traced, cut, healed, saved and exported.

A new entry needs an example here: a test fails until it has one.
"""

from __future__ import annotations

import importlib.util
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import brickyard as by
from brickyard.axes._graph import trace
from brickyard.export import export_module, export_onnx
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import LAYER_TYPES
from brickyard.surgery._join import cut
from brickyard.testing import randomised, zeroed_output
from conftest import needed_package
from errors import refused
from nets import relative

WIDTH, SIZE, CLASSES = 8, 8, 4
Between = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A convolution, what is tried, and a classifier; `x` are maps (batch, 8, 8, 8) of numbers between 0.05 and 0.95.

    What is tried may use a second convolution, `own`, and the layers and tensors that it asks for.
    """

    def __init__(self, between: Between, more: dict[str, Any]) -> None:
        super().__init__()
        self.stem, self.own = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)
        self.between = between
        for name, value in more.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        with torch.no_grad():
            found = self.eval().tried(torch.rand(2, 3, SIZE, SIZE))
        self.maps = found.ndim > 2
        self.fc = nn.Linear(found.shape[1], CLASSES)
        randomised(self)

    def tried(self, x: Tensor) -> Tensor:
        return self.between(self, torch.sigmoid(self.stem(x)) * 0.9 + 0.05)

    def read(self, y: Tensor) -> Tensor:
        y = torch.sin(y)
        return y.flatten(2).mean(2) if self.maps else y

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.read(self.tried(x)))


def images(count: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


# -- functions ---------------------------------------------------------------------------------------------


def method(name: str, *args: Any, times: float = 1.0, **kwargs: Any) -> Between:
    """A method of tensors, and a convolution behind it."""
    return lambda net, x: net.own(getattr(x * times, name)(*args, **kwargs).type_as(x))


def function(call: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Between:
    return lambda net, x: net.own(call(x, *args, **kwargs))


def pair(call: Callable[[Tensor, Tensor], Any]) -> Between:
    """Two branches, joined."""
    return lambda net, x: net.own(x) + call(x, net.own(x)).type_as(x)


def rows(call: Callable[[Tensor], Tensor]) -> Between:
    """What works on (batch, channels, positions)."""
    return lambda net, x: call(net.own(x).flatten(2))


def cubes(call: Callable[[Tensor], Tensor]) -> Between:
    return lambda net, x: call(net.own(x).unflatten(2, (4, 2)))


def reduced(name: str, **kwargs: Any) -> Between:
    """A method that leaves one number of each map."""
    return lambda net, x: getattr(net.own(x).flatten(2), name)(2, **kwargs).type_as(x)


def first(call: Callable[[Tensor], Any]) -> Between:
    """A function that returns several values, both of which are used."""
    return lambda net, x: sum(value.type_as(x) for value in call(net.own(x).flatten(2)))


def transformed(call: Callable[[Tensor], Tensor]) -> Between:
    """A spectrum, as real numbers."""
    return lambda net, x: net.own(call(x).abs()[..., :5, :5])


def in_place(call: Callable[[Tensor, Tensor], Any]) -> Between:
    def run(net: Net, x: Tensor) -> Tensor:
        return call(net.own(x), x)

    return run


def with_weight(call: Callable[[Tensor, Tensor], Tensor], *shape: int) -> tuple[Between, dict[str, Any]]:
    """A function of maps and a weight."""
    return lambda net, x: call(net.own(x), net.weight), {"weight": nn.Parameter(torch.rand(*shape))}


def convolved(name: str, out: int, dims: int) -> tuple[Between, dict[str, Any]]:
    maps = {1: lambda y: y.flatten(2), 2: lambda y: y, 3: lambda y: y.unflatten(2, (4, 2))}[dims]
    return with_weight(lambda x, w: getattr(F, name)(maps(x), w), out, WIDTH, *[2] * dims)


def recurrent(name: str) -> tuple[Between, dict[str, Any]]:
    """A recurrent layer over the positions."""
    kind, _, activation = name.partition("_")
    more = {"nonlinearity": activation} if activation else {}
    layer = getattr(nn, kind.upper())(WIDTH, 3, batch_first=True, **more)
    return lambda net, x: net.layer(net.own(x).flatten(2)[..., :5].transpose(1, 2))[0][:, -1], {"layer": layer}


def one_cell(name: str) -> tuple[Between, dict[str, Any]]:
    kind, _, activation = name.partition("_")
    layer = getattr(nn, f"{kind.upper()}Cell")(WIDTH, 3, **({"nonlinearity": activation} if activation else {}))

    def run(net: Net, x: Tensor) -> Tensor:
        found = net.layer(net.own(x).mean((2, 3)))
        return found[0] if isinstance(found, tuple) else found

    return run, {"layer": layer}


_SIGNED = ("sign", "floor", "ceil", "round", "trunc", "frac")
EXAMPLES: dict[str, Between | tuple[Between, dict[str, Any]]] = {
    **{name: method(name) for name in ("relu", "sigmoid", "tanh", "abs", "square", "sqrt", "exp", "log", "sin", "cos")},
    **{name: method(name) for name in ("rsqrt", "reciprocal", "erf", "log1p", "expm1", "log2", "log10", "tan", "atan")},
    **{name: method(name) for name in ("asin", "acos", "sinh", "cosh", "nan_to_num", "isnan", "isfinite", "neg")},
    **{name: method(name, times=5.0) for name in _SIGNED},
    **{name: method(name) for name in ("contiguous", "clone", "detach", "float")},
    **{
        name: (lambda net, x, n=name: net.own(x + getattr(torch, n)(x))) for name in ("exp2", "zeros_like", "ones_like")
    },
    **{
        name: (lambda net, x, n=name: net.own(getattr(F, n)(x - 0.5)))
        for name in ("relu6", "leaky_relu", "elu", "selu")
    },
    **{name: (lambda net, x, n=name: net.own(getattr(F, n)(x - 0.5))) for name in ("celu", "silu", "mish", "gelu")},
    **{name: (lambda net, x, n=name: net.own(getattr(F, n)(x - 0.5))) for name in ("softplus", "softsign", "hardtanh")},
    **{name: (lambda net, x, n=name: net.own(getattr(F, n)(x - 0.5))) for name in ("logsigmoid", "hardswish", "rrelu")},
    **{name: (lambda net, x, n=name: net.own(getattr(F, n)(x - 0.5))) for name in ("hardsigmoid", "tanhshrink")},
    **{name: (lambda net, x, n=name: net.own(getattr(F, n)(x, 0.3))) for name in ("hardshrink", "softshrink")},
    **{name: (lambda net, x, n=name: net.own(getattr(F, n)(x, 0.3, False))) for name in ("dropout", "dropout2d")},
    "alpha_dropout": function(F.alpha_dropout, 0.3, False),
    "threshold": function(F.threshold, 0.5, 0.1),
    "relu_": lambda net, x: net.own(x).relu_(),
    "clamp": method("clamp", 0.2, 0.7),
    "clamp_min": method("clamp_min", 0.4),
    "clamp_max": method("clamp_max", 0.6),
    "pow": lambda net, x: net.own(x**2),
    "logical_not": lambda net, x: net.own(x * (x > 0.5).logical_not()),
    "bitwise_not": lambda net, x: net.own(x * ~(x > 0.5)),
    "full_like": lambda net, x: net.own(x * torch.full_like(x, 0.5)),
    "real": lambda net, x: net.own(torch.fft.fft2(x).real),
    "imag": lambda net, x: net.own(torch.fft.fft2(x).imag),
    "angle": lambda net, x: net.own(torch.complex(x, x.flip(3)).angle()),
    "to_type": lambda net, x: net.own(x * (x * 4).to(torch.int64)),
    "type_as": lambda net, x: net.own((x > 0.5).type_as(x)),
    "add": pair(lambda x, y: x + y),
    "sub": pair(lambda x, y: x - y),
    "mul": pair(lambda x, y: x * y),
    "truediv": pair(lambda x, y: y / x),
    "iadd": in_place(operator.iadd),
    "imul": in_place(operator.imul),
    "tensor_add": pair(lambda x, y: x.add(y, alpha=0.5)),
    "tensor_mul": pair(torch.mul),
    "tensor_sub": pair(torch.sub),
    "tensor_div": pair(lambda x, y: torch.div(y, x)),
    "add_": in_place(lambda y, x: y.add_(x)),
    "mul_": in_place(lambda y, x: y.mul_(x)),
    "sub_": in_place(lambda y, x: y.sub_(x)),
    "div_": in_place(lambda y, x: y.div_(x)),
    **{name: pair(lambda x, y, n=name: getattr(x, n)(y)) for name in ("maximum", "minimum", "hypot", "atan2")},
    **{name: pair(lambda x, y, n=name: getattr(x, n)(y)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: pair(lambda x, y, n=name: getattr(y, n)(x)) for name in ("fmod", "remainder")},
    **{name: pair(lambda x, y, n=name: getattr(x, n)(x, y, value=0.5)) for name in ("addcmul",)},
    "addcdiv": pair(lambda x, y: y.addcdiv(y, x, value=0.5)),
    "lerp": pair(lambda x, y: x.lerp(y, 0.3)),
    "masked_fill": pair(lambda x, y: y.masked_fill(x > 0.5, -math.inf).exp()),
    **{f"logical_{n}": pair(lambda x, y, n=n: getattr(x > 0.5, f"logical_{n}")(y > 0)) for n in ("and", "or", "xor")},
    "bitwise_and": pair(lambda x, y: (x > 0.5) & (y > 0)),
    "bitwise_or": pair(lambda x, y: (x > 0.5) | (y > 0)),
    "bitwise_xor": pair(lambda x, y: (x > 0.5) ^ (y > 0)),
    "where": pair(lambda x, y: torch.where(x > 0.5, x, y)),
    "complex": pair(lambda x, y: torch.complex(x, y).abs()),
    **{f"{kind}_pool1d": rows(lambda y, k=kind: getattr(F, f"{k}_pool1d")(y, 4)) for kind in ("max", "avg")},
    **{f"{kind}_pool2d": function(getattr(F, f"{kind}_pool2d"), 2) for kind in ("max", "avg")},
    **{f"{kind}_pool3d": cubes(lambda y, k=kind: getattr(F, f"{k}_pool3d")(y, 2)) for kind in ("max", "avg")},
    **{f"adaptive_{k}_pool1d": rows(lambda y, k=k: getattr(F, f"adaptive_{k}_pool1d")(y, 2)) for k in ("max", "avg")},
    **{f"adaptive_{k}_pool2d": function(getattr(F, f"adaptive_{k}_pool2d"), 2) for k in ("max", "avg")},
    **{f"adaptive_{k}_pool3d": cubes(lambda y, k=k: getattr(F, f"adaptive_{k}_pool3d")(y, 2)) for k in ("max", "avg")},
    "lp_pool1d": rows(lambda y: F.lp_pool1d(y.sigmoid(), 2, 4)),
    "lp_pool2d": function(F.lp_pool2d, 2, 2),
    "lp_pool3d": cubes(lambda y: F.lp_pool3d(y.sigmoid(), 2, 2)),
    "interpolate": function(F.interpolate, scale_factor=2, mode="bilinear"),
    "pad": function(F.pad, (1, 2, 0, 1)),
    "getitem": lambda net, x: net.own(x[:, :, 1:, ::2]),
    "cat": lambda net, x: torch.cat([x, net.own(x)], 1),
    "stack": lambda net, x: torch.stack([x, net.own(x)], 2).flatten(2),
    "flatten": rows(lambda y: y.tanh()),
    "reshape": lambda net, x: net.own(x).reshape(x.shape[0], WIDTH, -1).tanh(),
    "view": lambda net, x: net.own(x).view(x.shape[0], WIDTH, -1).tanh(),
    "unflatten": cubes(lambda y: y.tanh()),
    "reshape_as": lambda net, x: x.flatten(2).reshape_as(net.own(x)) + net.own(x),
    "view_as": lambda net, x: x.flatten(2).view_as(net.own(x)) + net.own(x),
    "repeat": lambda net, x: net.own(x.repeat(1, 1, 2, 1)),
    "tile": lambda net, x: net.own(x.tile((1, 1, 2, 1))),
    "repeat_interleave": lambda net, x: net.own(x).repeat_interleave(2, dim=1),
    "permute": lambda net, x: net.own(x.permute(0, 1, 3, 2)),
    "transpose": lambda net, x: net.own(x.transpose(2, 3)),
    "movedim": lambda net, x: net.own(x).movedim(1, -1).tanh().movedim(-1, 1),
    "t": lambda net, x: net.own(x).mean((2, 3)).t().tanh().t(),
    "squeeze": lambda net, x: net.own(x).mean(3, keepdim=True).squeeze(3),
    "unsqueeze": lambda net, x: net.own(x).unsqueeze(2).tanh(),
    "chunk": lambda net, x: (lambda a, b: a * b)(*net.own(x).chunk(2, dim=1)),
    "split": lambda net, x: torch.cat(net.own(x).split([3, 5], dim=1)[::-1], 1),
    "tensor_split": lambda net, x: torch.cat(net.own(x).tensor_split((3, 4), dim=1)[::-1], 1),
    "unbind": lambda net, x: net.own(x).unbind(2)[3],
    "tensor_unfold": lambda net, x: net.own(x).unfold(2, 3, 2).amax(-1),
    "expand": lambda net, x: net.own(x.mean(2, keepdim=True).expand(-1, -1, 4, -1)),
    "expand_as": lambda net, x: net.own(x.mean(2, keepdim=True).expand_as(x)),
    "flip": lambda net, x: net.own(x.flip(3)) * x,
    "roll": lambda net, x: net.own(x.roll(1, 2)) * x,
    "rot90": lambda net, x: net.own(x.rot90(1, (2, 3))) * x,
    "channel_shuffle": lambda net, x: F.channel_shuffle(net.own(x), 2),
    "meshgrid": lambda net, x: net.own(x) * torch.meshgrid(torch.arange(x.size(2)), torch.arange(x.size(3)))[0],
    "take": (lambda net, x: net.own(x).index_select(1, net.places), {"places": torch.tensor([5, 0, 3, 3])}),
    "pixel_shuffle": lambda net, x: F.pixel_shuffle(net.own(x), 2),
    "pixel_unshuffle": lambda net, x: F.pixel_unshuffle(net.own(x), 2),
    "unfold": lambda net, x: F.unfold(net.own(x), 3, padding=1),
    "fold": lambda net, x: F.fold(F.unfold(x, 2, stride=2), (SIZE, SIZE), 2, stride=2) + net.own(x),
    "glu": lambda net, x: F.glu(net.own(x), dim=1),
    **{name: reduced(name) for name in ("mean", "amax", "amin", "std", "var", "logsumexp", "argmax")},
    "sum": lambda net, x: net.own(x).sum((2, 3)) / 50,
    "argmin": reduced("argmin"),
    "prod": lambda net, x: net.own((x + 0.5).prod(3, keepdim=True)),
    "norm": lambda net, x: net.own(x).norm(p=2, dim=(2, 3)),
    "any": lambda net, x: net.own(x) * (x > 0.5).any(3, keepdim=True),
    "all": lambda net, x: net.own(x) * (x > 0.1).all(3, keepdim=True),
    "max_along": first(lambda y: y.max(2)),
    "min_along": first(lambda y: torch.min(y, dim=2)),
    "median_along": first(lambda y: y.median(dim=2)),
    "var_mean": first(lambda y: torch.var_mean(y, dim=2)),
    "std_mean": first(lambda y: torch.std_mean(y, dim=2)),
    "kthvalue": first(lambda y: y.kthvalue(3, dim=2)),
    "cumsum": rows(lambda y: y.cumsum(2)),
    "cumprod": rows(lambda y: y.cumprod(dim=2)),
    "argsort": rows(lambda y: y.argsort(2) * y),
    "tril": lambda net, x: net.own(x.tril()),
    "triu": lambda net, x: net.own(torch.triu(x, 1)),
    "sort": first(lambda y: y.sort(dim=2)),
    "topk": first(lambda y: y.topk(3, dim=2)),
    "cummax": first(lambda y: y.cummax(2)),
    "cummin": first(lambda y: y.cummin(2)),
    **{f"fft_{n}": transformed(getattr(torch.fft, n)) for n in ("fft", "ifft", "rfft", "fft2", "ifft2", "rfft2")},
    **{
        f"fft_{n}": transformed(lambda x, n=n: getattr(torch.fft, n)(x, dim=(2, 3))) for n in ("fftn", "ifftn", "rfftn")
    },
    **{f"fft_{n}": transformed(getattr(torch.fft, n)) for n in ("irfft", "irfft2")},
    "fft_irfftn": transformed(lambda x: torch.fft.irfftn(x, dim=(2, 3))),
    **{f"fft_{n}": transformed(lambda x, n=n: getattr(torch.fft, n)(x, dim=(2, 3))) for n in ("fftshift", "ifftshift")},
    "gather": rows(lambda y: y.gather(2, y.argsort(2))),
    "scatter": rows(lambda y: y.scatter(2, y.argsort(2), y.exp())),
    "scatter_add": rows(lambda y: y.scatter_add(2, y.argsort(2), y)),
    "index_select": lambda net, x: net.own(x).index_select(2, torch.arange(0, x.size(2), 3)),
    "grid_sample": lambda net, x: F.grid_sample(net.own(x), x[:, :2].permute(0, 2, 3, 1), align_corners=False),
    "matmul": lambda net, x: net.own(x) @ x.mean(1, keepdim=True),
    "einsum": lambda net, x: torch.einsum("bchw,bcwk->bchk", x, net.own(x)),
    "scaled_dot_product_attention": lambda net, x: F.scaled_dot_product_attention(x, net.own(x), x),
    "softmax": function(F.softmax, dim=3),
    "tensor_softmax": method("softmax", 1),
    "log_softmax": function(F.log_softmax, dim=2),
    "softmin": function(F.softmin, dim=3),
    "normalize": function(F.normalize, dim=2),
    "local_response_norm": function(F.local_response_norm, 3),
    "cosine_similarity": lambda net, x: F.cosine_similarity(net.own(x).flatten(2), x.flatten(2), dim=2),
    "pairwise_distance": lambda net, x: F.pairwise_distance(net.own(x).flatten(2), x.flatten(2)),
    "cdist": with_weight(lambda x, w: torch.cdist(x.mean((2, 3)), w), 5, WIDTH),
    "outer": lambda net, x: net.own(x) + torch.outer(x[:, 0, 0, 0], torch.ones(WIDTH).type_as(x))[..., None, None],
    "baddbmm": lambda net, x: torch.baddbmm(net.own(x)[:, 0], x[:, 1], x[:, 2]).unsqueeze(1),
    "addmm": with_weight(lambda x, w: torch.addmm(w[0], x.mean((2, 3)), w), WIDTH, WIDTH),
    "bilinear": with_weight(lambda x, w: F.bilinear(x.mean((2, 3)), x.amax((2, 3)), w), 3, WIDTH, WIDTH),
    "embedding": with_weight(lambda x, w: F.embedding((x[:, 0, 0].sigmoid() * 6).long(), w).mean(1), 6, 5),
    "affine_grid": lambda net, x: F.grid_sample(
        net.own(x), F.affine_grid(x[:, :6, 0, 0].unflatten(1, (2, 3)), (x.size(0), 1, 6, 6), align_corners=False)
    ),
    "stft": lambda net, x: torch.stft(net.own(x).mean(1).flatten(1), 16, return_complex=True).abs(),
    "view_as_complex": lambda net, x: torch.view_as_complex(net.own(x).unflatten(3, (4, 2))).abs(),
    "view_as_real": lambda net, x: torch.view_as_real(torch.fft.fft(net.own(x))).flatten(3),
    **{name: recurrent(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"{name}_cell": one_cell(name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "new_full": lambda net, x: net.own(x) * x.new_full((x.size(0), WIDTH, 1, 1), 0.5),
    "arange": lambda net, x: net.own(x) * torch.arange(x.size(3)),
    "linspace": lambda net, x: net.own(x) * torch.linspace(0, 1, x.size(3)),
    "size": lambda net, x: net.own(x) / x.size(2),
    "shape": lambda net, x: net.own(x) / x.shape[2],
    "dim": lambda net, x: net.own(x) / x.dim(),
    "numel": lambda net, x: net.own(x) * (x.numel() / x.size(0) / 500),
    "floordiv": lambda net, x: net.own(x)[:, :, : x.size(2) // 2],
    "mod": lambda net, x: net.own(x)[:, :, : x.size(2) % 5],
    "mean_of": lambda net, x: net.own(x) * x.mean(1, keepdim=True),
    # with weights that are known, these become layers
    **{f"conv{n}d": convolved(f"conv{n}d", WIDTH, n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolved(f"conv_transpose{n}d", WIDTH, n) for n in (1, 2, 3)},
    "linear": with_weight(lambda x, w: F.linear(x.mean((2, 3)), w), 5, WIDTH),
    "layer_norm": with_weight(lambda x, w: F.layer_norm(x, (SIZE,), w), SIZE),
    "rms_norm": with_weight(lambda x, w: F.rms_norm(x, (SIZE,), w), SIZE),
    "group_norm": with_weight(lambda x, w: F.group_norm(x, 2, w, w), WIDTH),
    "instance_norm": with_weight(lambda x, w: F.instance_norm(x, weight=w, bias=w), WIDTH),
    "batch_norm": with_weight(lambda x, w: F.batch_norm(x, w, w.square() + 0.5), WIDTH),
    "prelu": with_weight(lambda x, w: F.prelu(x - 0.5, w), WIDTH),
}
# What tracing writes in another way: as a layer, as a number, or as another function.
WRITTEN_AS = {
    **{f"conv{n}d": f"Conv{n}d" for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": f"ConvTranspose{n}d" for n in (1, 2, 3)},
    **{"linear": "Linear", "layer_norm": "LayerNorm", "rms_norm": "RMSNorm", "group_norm": "GroupNorm"},
    **{"instance_norm": "InstanceNorm2d", "batch_norm": "BatchNorm2d", "prelu": "PReLU"},
    "dim": "truediv",  # by a constant
    **{"iadd": "add", "imul": "mul"},  # as torch writes what Python does to its tracer
    "channel_shuffle": "take",
    "mean_of": "mean",  # until it is cut
}

# -- layers ------------------------------------------------------------------------------------------------

_PLAIN = (
    *("Identity", "ReLU", "ReLU6", "LeakyReLU", "ELU", "SELU", "CELU", "SiLU", "Mish", "GELU", "Sigmoid", "Tanh"),
    *("Softplus", "Softsign", "RReLU", "LogSigmoid", "Hardswish", "Hardsigmoid", "Hardtanh", "Tanhshrink", "Softmax2d"),
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"),
)
# Layers of one, two and three dimensions, with their arguments.
_OF_ANY_DIMENSION: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), (WIDTH, 6, 2)),
    **dict.fromkeys(("BatchNorm", "InstanceNorm"), (WIDTH,)),
    **dict.fromkeys(("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool"), (2,)),
    "LPPool": (2, 2),
    **dict.fromkeys(("ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad"), (1,)),
    "ConstantPad": (1, 0.5),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{name: getattr(nn, name) for name in _PLAIN},
    **{
        f"{name}{n}d": partial(getattr(nn, f"{name}{n}d"), *a)
        for name, a in _OF_ANY_DIMENSION.items()
        for n in (1, 2, 3)
    },
    **{name: partial(getattr(nn, name), 2) for name in ("Softmin", "Softmax", "LogSoftmax", "Flatten")},
    **{name: partial(getattr(nn, name), 2) for name in ("ChannelShuffle", "PixelShuffle", "PixelUnshuffle")},
    **{name: partial(getattr(nn, name), 0.2) for name in ("Hardshrink", "Softshrink")},
    **{name: partial(getattr(nn, name), scale_factor=2) for name in ("Upsample", "UpsamplingNearest2d")},
    "UpsamplingBilinear2d": partial(nn.UpsamplingBilinear2d, scale_factor=2),
    "Linear": partial(nn.Linear, SIZE, 6),
    "PReLU": partial(nn.PReLU, WIDTH),
    "GroupNorm": partial(nn.GroupNorm, 2, WIDTH),
    "LayerNorm": partial(nn.LayerNorm, SIZE),
    "RMSNorm": partial(nn.RMSNorm, SIZE),
    "LocalResponseNorm": partial(nn.LocalResponseNorm, 3),
    "Threshold": partial(nn.Threshold, 0.3, 0.1),
    "Unfold": partial(nn.Unfold, 2, stride=2),
    "Fold": partial(nn.Fold, (4, 16), 2, stride=2),
    "GLU": partial(nn.GLU, 1),
}


def laid_out(name: str, x: Tensor) -> Tensor:
    """Maps with as many dimensions as a layer takes."""
    if name in ("Dropout1d", "Fold") or (name.endswith("1d") and name != "Dropout1d"):
        return x.flatten(2)[:, :, :16] if name == "Fold" else x.flatten(2)
    return x.unflatten(2, (4, 2)) if name.endswith("3d") else x


def with_layer(name: str) -> Net:
    """The layer between two convolutions."""
    return Net(lambda net, x: net.layer(laid_out(name, net.own(x))), {"layer": LAYERS[name]()})


def with_entry(name: str) -> Net:
    return with_function(name) if name in FUNCTIONS else with_layer(name)


def with_function(name: str) -> Net:
    found = EXAMPLES[name]
    return Net(*found) if isinstance(found, tuple) else Net(found, {})


# What torch's exporter has no way to write as ONNX, and what it says of it.
UNWRITTEN = {
    **dict.fromkeys(("rrelu", "RReLU"), "aten.rrelu_with_noise"),
    **dict.fromkeys(("adaptive_avg_pool3d", "AdaptiveAvgPool3d"), "aten._adaptive_avg_pool3d"),
    **{name: f"aten.{name}" for name in ("kthvalue", "cummax", "cummin")},
    "median_along": "aten.median",
    "cumprod": "prims.prod",
    "hypot": "prims.hypot",
    "cdist": "Constraints violated",  # it chooses its way by the number of rows, which is that of the images
}
WRITTEN = [name for name in (*FUNCTIONS, *LAYER_TYPES) if name not in UNWRITTEN]
AT_ONCE = 60  # in one network: a file for each would take minutes


class Many(nn.Module):
    """Many things that are tried, side by side, each on the same maps."""

    def __init__(self, nets: Sequence[Net]) -> None:
        super().__init__()
        self.stem, self.nets = nn.Conv2d(3, WIDTH, 3, padding=1), nn.ModuleList(nets)
        self.fc = nn.Linear(sum(net.fc.in_features for net in nets), CLASSES)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.sigmoid(self.stem(x)) * 0.9 + 0.05
        return self.fc(torch.cat([net.read(net.between(net, maps)) for net in self.nets], 1))


# -- what holds of each ------------------------------------------------------------------------------------


def test_every_entry_has_an_example() -> None:
    assert set(EXAMPLES) == set(FUNCTIONS)
    assert set(LAYERS) == set(LAYER_TYPES)


def checked(net: Net, tmp_path: Path) -> tuple[set[str], by.Component]:
    """Check a network all the way; return what it consists of, and its component."""
    wide = net.double()
    graph = trace(wide, images(2, torch.float64))
    x = images(3, torch.float64)
    assert not graph.network.foreign
    keep = {axis.name: torch.arange(0, axis.size, 2) for axis in graph.free if axis.size > 1}
    with torch.no_grad():
        whole, small = wide(x), cut(graph, keep)(x)
        torch.testing.assert_close(graph.network(x), whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(small, zeroed_output(graph, keep, x), rtol=1e-9, atol=1e-9)
        assert not keep or not torch.allclose(small, whole, rtol=1e-6)
    net.float()
    data = images(12, torch.float32), torch.arange(12) % CLASSES
    least = 0.9 if keep else 1.0
    part = by.disassemble(net, by.locate(net, data), task=[0, 2, 3], budget=by.Budget(flops=least))
    loaded = by.load(part.save(tmp_path / "part.safetensors"))
    export_module(part, tmp_path / "part.py")
    with torch.no_grad():
        assert torch.equal(loaded(data[0]), part(data[0]))
        torch.testing.assert_close(imported(tmp_path / "part.py")(data[0]), part(data[0]))
    layers = {type(graph.network.layer(name)).__name__ for name in graph.network.layer_names}
    return layers | {node.target for node in graph.network.nodes if node.op == "function"}, part


def imported(path: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("part", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = checked(with_function(name), tmp_path)
    assert WRITTEN_AS.get(name, name) in found


@pytest.mark.parametrize("name", LAYER_TYPES)
def test_layer(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = checked(with_layer(name), tmp_path)
    assert name in found


@pytest.fixture
def onnxruntime() -> Any:
    needed_package("onnxscript")
    return needed_package("onnxruntime")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", range(0, len(WRITTEN), AT_ONCE))
def test_written_as_onnx(start: int, tmp_path: Path, onnxruntime: Any) -> None:
    part = plain_part(Many([with_entry(name) for name in WRITTEN[start : start + AT_ONCE]]), 0.9)
    export_onnx(part, tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx", providers=["CPUExecutionProvider"])
    x = images(7, torch.float32)  # the exporter sees two
    (found,) = session.run(["logits"], {"images": x.numpy()})
    with torch.no_grad():
        assert relative(torch.from_numpy(found), part(x)) < 1e-5
        assert relative(torch.from_numpy(found), part(x.flip(0))) > 1e-3  # the control


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNWRITTEN)
def test_not_written_as_onnx(name: str, tmp_path: Path) -> None:
    with refused("surgery-export-failed", UNWRITTEN[name]) as caught:
        export_onnx(plain_part(with_entry(name), 1.0), tmp_path / "part.onnx")
    assert str(caught.value).isprintable()


def plain_part(net: nn.Module, flops: float) -> by.Component:
    """A component that is cut and not healed."""
    data = images(12, torch.float32), torch.arange(12) % CLASSES
    relevance = by.locate(net.float(), data)
    return by.disassemble(net, relevance, task=[0, 2, 3], budget=by.Budget(flops=flops), select="mda", heal="none")
