"""Every layer and function of the tables can be written as Python, and arguments never become code."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brickyard.base._specs import LayerSpec
from brickyard.export._spelling import BREAK, callee, function, layer
from brickyard.network._arguments import OPERANDS, ORDER
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import LAYER_TYPES, describe_layer
from brickyard.network._network import Ref

SAMPLES = {
    "input": torch.rand(2, 3, 4) + 1,
    "other": 2,
    "exponent": 2,
    "index": (0, slice(1, None), ...),
    "dim": 1,
    "places": [2, 0],
    "keepdim": True,
    "share": 0.5,
    "dtype": torch.float64,
    "indexing": "xy",
    "start": 1,
    "end": 7,
    "step": 2,
    "steps": 4,
    "k": 2,
}
ROWS = {"meshgrid": torch.rand(2, 3)}  # what these functions work on, instead of maps


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_can_be_written(name) -> None:
    entry = FUNCTIONS[name]
    if not entry.python:
        assert eval(callee(entry), {"torch": torch, "F": F}) is entry.call  # noqa: S307
        args = tuple(Ref(f"step{index}") for index in range(len(OPERANDS[name])))
        text = function(name, args, {"dim": (1, slice(None))}, {ref.node: ref.node for ref in args})
        assert isinstance(ast.parse(text.replace(BREAK, " ")).body[0], ast.Expr)
        return
    given = ROWS.get(name, SAMPLES["input"])
    named = "{" not in entry.python  # a function of torch under its own name
    keys = [key for key in ORDER[name][1:] if key in ("k", "dim")] if named else OPERANDS[name][1:]
    values = {key: (1,) if key == "dim" and name.endswith(("fft2", "fftn", "shift")) else SAMPLES[key] for key in keys}
    wanted = entry.call(given.clone(), **values) if named else entry.call(given.clone(), *values.values())
    space = {"x": given.clone(), "torch": torch}
    for args, kwargs in (((Ref("x"),), values), *([] if named else [((Ref("x"), *values.values()), {})])):
        text = function(name, args, kwargs, {"x": "x"}).replace(BREAK, " ")
        if " = " in text.replace("+= ", " = ").replace("*= ", " = ") and entry.in_place:
            exec(text, copied := {**space, "x": space["x"].clone()})  # noqa: S102
            found = copied["x"]
        else:
            found = eval(text, space)  # noqa: S307
        found, wanted_too = (one if isinstance(one, tuple) else (one,) for one in (found, wanted))
        for one, other in zip(found, wanted_too, strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other)), text


NEEDED = {
    **dict.fromkeys(("in_channels", "out_channels", "in_features", "out_features", "num_features"), 4),
    **{"num_channels": 4, "num_groups": 2, "groups": 2, "kernel_size": 3, "normalized_shape": (4, 2), "padding": 1},
    **{"output_size": (2, None), "value": 0.5, "size": 3, "threshold": 0.1, "norm_type": 2},
    **{"upscale_factor": 2, "downscale_factor": 2},
}


@pytest.mark.parametrize("name", LAYER_TYPES)
def test_every_layer_can_be_written(name) -> None:
    entry = LAYER_TYPES[name]
    parameters = {key: item for key, item in inspect.signature(entry.cls).parameters.items() if key in entry.config}
    needed = {key: NEEDED[key] for key, item in parameters.items() if item.default is item.empty}
    needed |= {"output_size": 2} if "output_size" in needed and name.endswith("1d") else {}
    changed = [{}]
    for key, item in parameters.items():
        value = item.default
        if isinstance(value, bool):
            changed.append({key: not value})
        elif isinstance(value, int | float):
            changed.append({key: value + 1} if isinstance(value, int) else {key: value / 2})
        elif value is None:
            changed.append({key: True if key == "align_corners" else 2})
    built = 0
    for options in changed:
        try:
            wanted = entry.cls(**needed, **options)
        except (ValueError, TypeError):
            continue
        config = describe_layer(wanted)
        found = eval(layer(LayerSpec(type=name, config=config)).replace(BREAK, " "), {"nn": nn})  # noqa: S307
        assert type(found) is entry.cls
        assert describe_layer(found) == config
        assert found.state_dict().keys() == wanted.state_dict().keys()
        built += 1
    assert built >= max(1, len(changed) - 2)


def test_arguments_are_never_code() -> None:
    text = function("mean", (Ref("x"), (2, 3)), {"keepdim=True); import os; f(": True}, {"x": "x"}).replace(BREAK, " ")
    assert text == 'x.mean((2, 3), **{"keepdim=True); import os; f(": True})'
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
