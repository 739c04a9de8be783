"""Reads a model with `torch.export` if symbolic tracing fails.

Exporting runs the model's own Python on the example's sizes, so control flow over sizes takes the path for images of
that size; the batch stays free. The steps are ATen operators, which are mapped to the table's functions.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from brickyard.axes._answers import Path, at
from brickyard.axes._lowering import Draft
from brickyard.axes._places import line_of_export
from brickyard.network._arguments import canonical
from brickyard.network._functions import function_name
from brickyard.network._network import Node, Ref

_UNCHANGED = (
    *("conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("conv2d", "linear", "relu", "sigmoid", "tanh", "silu", "gelu", "mish", "softplus", "hardswish", "hardsigmoid"),
    *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)),
    *("hardtanh", "relu6", "leaky_relu", "elu", "selu", "celu"),
    *("pad", "flatten", "view", "reshape", "permute", "transpose", "cat", "stack", "split"),
    *("chunk", "unbind", "squeeze", "unsqueeze", "expand", "expand_as", "reshape_as", "view_as", "flip", "roll"),
    *("repeat", "mean", "sum", "amax", "matmul", "clamp", "abs", "square", "sqrt", "exp", "pow", "neg", "contiguous"),
    *("log", "sin", "cos", "rsqrt", "reciprocal", "erf", "clamp_min", "unflatten", "einsum"),
    *("clone", "maximum", "minimum", "addcmul", "channel_shuffle"),
    "scaled_dot_product_attention",
)
# ATen operators by name -> the table's function that takes the same arguments.
_SAME = {
    **{name: name for name in _UNCHANGED},
    **{name: f"tensor_{name}" for name in ("add", "mul", "sub", "div", "softmax")},
    "split_with_sizes": "split",
    "sym_size": "size",
    **dict.fromkeys(("true_divide", "divide"), "tensor_div"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    "multiply": "tensor_mul",
    "subtract": "tensor_sub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "bmm": "matmul",
    "linalg_vector_norm": "norm",
}
_VIEWS = {"select", "slice", "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"}
_CONVERSIONS = {"to", "_to_copy", "type_as"}
_INSIDE = "inside."  # before the names of a model within `_Logits`
_NOTHING = {"dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "lift_fresh_copy"}


def export_draft(model: nn.Module, example: Tensor, path: Path = ()) -> Draft | str:
    """Return the steps of a model in evaluation mode, or why they are not available; the model is left unchanged.

    Args:
        model: The model.
        example: Images.
        path: The way to the logits in what it returns.
    """
    batch = example if len(example) > 1 else torch.cat([example, example])
    whole = _Logits(model, path) if path else model
    try:
        with _quiet():
            program = torch.export.export(whole, (batch,), dynamic_shapes=_open_batch(whole))
        return _read(whole, program, example, _INSIDE if path else "")
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class _Logits(nn.Module):
    """A model that returns its logits alone: exporting takes no objects that it does not know."""

    def __init__(self, model: nn.Module, path: Path) -> None:
        super().__init__()
        self.inside, self.path = model, path
        self.training = model.training

    def forward(self, images: Tensor) -> Any:
        return at(self.inside(images), self.path)


def _open_batch(model: nn.Module) -> Any:
    """Leave the batch free; a forward that takes `*args` has its image in there."""
    shape = {0: torch.export.Dim("batch")}
    first = next(iter(inspect.signature(model.forward).parameters.values()))
    return ((shape,),) if first.kind == first.VAR_POSITIONAL else (shape,)


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


def _read(model: nn.Module, program: torch.export.ExportedProgram, example: Tensor, prefix: str) -> Draft:
    """The steps of an exported model, without a prefix of the names in it."""
    signature = program.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    draft = Draft([], {}, {}, {}, example)
    same: dict[str, Ref] = {}
    for step in program.graph_module.graph.nodes:
        home = list((step.meta.get("nn_module_stack") or {}).values())
        draft.homes[step.name] = str(home[-1][0]).removeprefix(prefix) if home else ""
        if step.op == "placeholder" and step.name in signature.user_inputs:
            draft.nodes.append(Node(step.name, "input"))
        elif step.op == "placeholder":
            target = weights.get(step.name) or signature.inputs_to_lifted_tensor_constants[step.name]
            name = target.removeprefix(prefix)
            draft.tensors[name] = _number(model, program, target)
            draft.nodes.append(Node(step.name, "tensor", name))
        elif step.op == "output":
            (result,) = _plain(step.args[0], same)
            draft.nodes.append(Node(step.name, "output", "", (result,)))
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
    """Add one operator as a function inside or outside the table."""
    if step.name in same:
        return
    args, operator = _plain(step.args, same), step.target
    kwargs = {key: _plain(value, same) for key, value in step.kwargs.items()}
    assert callable(operator)
    known = function_name(operator)  # operators on sizes are Python's own
    name = str(getattr(operator, "_opname", operator))
    inputs = step.all_input_nodes
    if known is None and name.endswith("_") and name[:-1] in (*_SAME, *_NOTHING):
        if _seen_elsewhere(inputs[0]):
            raise ValueError(f"{operator} changes a value in place that other steps use")
        name = name[:-1]
    if known is None and (name in _NOTHING or (name in _CONVERSIONS and _keeps_kind(step))):
        same[step.name] = args[0]
        return
    if known is None and (name.startswith("_assert") or name == "sym_constrain_range_for_size"):
        return
    if known is None and name == "batch_norm":
        x, weight, bias, mean, variance, training, momentum, eps, *_ = args
        known, args = name, (x, mean, variance, weight, bias, training, momentum, eps)
    elif known is None and name in ("layer_norm", "group_norm"):
        known, args = name, args[:5]  # the last one selects a kernel
    elif known is None and name == "log_softmax" and args[2:] in ((), (None,)):
        known, args = name, args[:2]  # the last one is a type
    elif known is None and name in ("select", "slice"):
        known, args, kwargs = "getitem", (args[0], _subscript(name, args[1:], inputs[0].meta["val"].ndim)), {}
    elif known is None:
        known = _SAME.get(name)
    if known is not None and _returns_more(step, known):
        users = list(step.users)
        if any(user.args[1:] != (0,) for user in users):
            known = None
        else:  # as adaptive_max_pool2d, whose second value holds places: the table's function returns the first alone
            same.update((user.name, Ref(step.name)) for user in users)
    if known is None:
        known = f"{operator} ({step.name})"
        draft.foreign[known] = operator
    else:
        args, kwargs = canonical(known, args, kwargs)
    draft.nodes.append(Node(step.name, "function", known, args, kwargs, line_of_export(step.stack_trace)))


def _keeps_kind(step: fx.Node) -> bool:
    """Whether a conversion returns what it is given."""
    before, after = step.all_input_nodes[0].meta["val"], step.meta["val"]
    return bool(before.dtype == after.dtype and before.device == after.device)


def _seen_elsewhere(step: fx.Node) -> bool:
    """Whether other steps use a value, or what it is a view of."""
    while len(step.users) == 1 and getattr(step.target, "_opname", "") in _VIEWS:
        step = step.all_input_nodes[0]
    return len(step.users) > 1


def _returns_more(step: fx.Node, known: str) -> bool:
    """Whether an operator returns several values, where the table's function returns one tensor."""
    return isinstance(step.meta.get("val"), tuple | list) and known not in ("chunk", "split", "unbind")


def _subscript(name: str, args: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """The subscript equivalent to `select(dim, index)` or `slice(dim, start, end, step)`."""
    if name == "select":
        dim, index = args
        return (*[slice(None)] * (dim % ndim), index)
    defaults: tuple[Any, ...] = (0, None, None, 1)
    dim, start, end, step = args + defaults[len(args) :]
    if isinstance(end, int) and end >= 1 << 62:  # the operator's "to the end"
        end = None
    return (*[slice(None)] * (dim % ndim), slice(start, end, None if step == 1 else step))
