"""Read a model with `torch.export`, where symbolic tracing fails.

Exporting runs the model's own Python on the example's sizes, so control flow over sizes is followed as it goes
for images of that size; the batch stays free. Its steps are ATen operators, which become the table's functions.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from brickyard.graph.lowering import Draft
from brickyard.layers.functions import function_name
from brickyard.network import Node, Ref

__all__ = ["export_draft"]

# ATen operators by name -> the table's function that takes the same arguments.
_SAME = {
    **{name: name for name in ("conv2d", "linear", "relu", "sigmoid", "tanh", "silu", "gelu", "mish", "softplus")},
    **{name: name for name in ("hardswish", "hardsigmoid", "hardtanh", "relu6", "leaky_relu", "elu", "selu", "celu")},
    **{name: name for name in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "pad")},
    **{name: name for name in ("flatten", "view", "reshape", "permute", "transpose", "cat", "stack", "split", "chunk")},
    **{name: name for name in ("unbind", "squeeze", "unsqueeze", "expand", "expand_as", "reshape_as", "view_as", "flip")},
    **{name: name for name in ("roll", "mean", "sum", "amax", "matmul", "clamp", "abs", "square", "sqrt", "exp", "pow")},
    **{name: name for name in ("neg", "contiguous", "clone", "maximum", "minimum", "addcmul", "layer_norm", "repeat")},
    **{name: name for name in ("group_norm", "channel_shuffle", "scaled_dot_product_attention")},
    **{name: f"tensor_{name}" for name in ("add", "mul", "sub", "div", "softmax")},
    "split_with_sizes": "split",
    "sym_size": "size",
}
_NOTHING = {"dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "lift_fresh_copy"}


def export_draft(model: nn.Module, example: Tensor) -> Draft | str:
    """The model's steps, or why they cannot be had.

    Args:
        model: The model, in evaluation mode; it is not changed.
        example: Images as the model takes them, (batch, channels, height, width).
    """
    batch = example if len(example) > 1 else torch.cat([example, example])
    try:
        with _quiet():
            program = torch.export.export(model, (batch,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        return _read(model, program)
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read(model: nn.Module, program: torch.export.ExportedProgram) -> Draft:
    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    draft = Draft([], {}, {}, {})
    same: dict[str, Ref] = {}
    for step in program.graph_module.graph.nodes:
        home = list((step.meta.get("nn_module_stack") or {}).values())
        draft.homes[step.name] = str(home[-1][0]) if home else ""
        if step.op == "placeholder" and step.name in signature.user_inputs:
            draft.nodes.append(Node(step.name, "input"))
        elif step.op == "placeholder":
            target = weights.get(step.name) or signature.inputs_to_lifted_tensor_constants[step.name]
            draft.tensors[target] = _number(model, program, target)
            draft.nodes.append(Node(step.name, "tensor", target))
        elif step.op == "output":
            draft.nodes.append(Node("output", "output", "", (_plain(step.args[0][0], same),)))
        elif step.op == "call_function":
            _add(draft, step, same)
        else:
            raise ValueError(f"the exported program has a step {step.op} {step.target}")
    first = [node for node in draft.nodes if node.op == "input"]
    draft.nodes = first + [node for node in draft.nodes if node.op != "input"]
    return draft


def _number(model: nn.Module, program: torch.export.ExportedProgram, target: str) -> Tensor:
    if target in program.constants:
        value = program.constants[target]
    else:
        group, _, leaf = target.rpartition(".")
        value = getattr(model.get_submodule(group), leaf)
    assert isinstance(value, Tensor)
    is_parameter = isinstance(value, nn.Parameter)
    return nn.Parameter(value.detach(), requires_grad=False) if is_parameter else value.detach()


def _plain(value: Any, same: dict[str, Ref]) -> Any:
    if isinstance(value, fx.Node):
        return same.get(value.name) or Ref(value.name)
    if isinstance(value, tuple | list):
        return tuple(_plain(item, same) for item in value)
    return value


def _add(draft: Draft, step: fx.Node, same: dict[str, Ref]) -> None:
    """Add one operator as a function of the table, or as one outside it."""
    args = _plain(step.args, same)
    kwargs = {key: _plain(value, same) for key, value in step.kwargs.items()}
    known = function_name(step.target)  # operators on sizes are Python's own
    if known is not None:
        draft.nodes.append(Node(step.name, "function", known, args, kwargs))
        return
    name = str(getattr(step.target, "_opname", step.target))
    if name.endswith("_") and name[:-1] in (*_SAME, *_NOTHING):
        if len(step.args[0].users) > 1:
            raise ValueError(f"{step.target} changes a value in place that other steps use")
        name = name[:-1]
    if name in _NOTHING:
        same[step.name] = args[0]
    elif name.startswith("_assert") or name == "sym_constrain_range_for_size":
        return
    elif name == "batch_norm":
        x, weight, bias, mean, variance, training, momentum, eps, *_ = args
        draft.nodes.append(
            Node(step.name, "function", name, (x, mean, variance, weight, bias, training, momentum, eps))
        )
    elif name == "select":
        index = (*[slice(None)] * (args[1] % step.args[0].meta["val"].ndim), args[2])
        draft.nodes.append(Node(step.name, "function", "getitem", (args[0], index)))
    elif name == "slice":
        x, dim, start, end, stride = (*args, *(0, None, None, 1)[len(args) - 1 :])
        end = None if isinstance(end, int) and end >= 1 << 62 else end
        index = (*[slice(None)] * (dim % step.args[0].meta["val"].ndim), slice(start, end, None if stride == 1 else stride))
        draft.nodes.append(Node(step.name, "function", "getitem", (x, index)))
    elif name in _SAME:
        draft.nodes.append(Node(step.name, "function", _SAME[name], args, kwargs))
    else:
        target = f"{step.target} ({step.name})"
        draft.foreign[target] = step.target
        draft.nodes.append(Node(step.name, "function", target, args, kwargs))
