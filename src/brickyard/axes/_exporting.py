"""Reads a model with `torch.export` if symbolic tracing fails.

Exporting runs the model's own Python on the example's sizes, so control flow over sizes takes the path for images of
that size; the batch stays free. The steps are ATen operators, which are mapped to the table's functions.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from brickyard.axes._answers import Path, at
from brickyard.axes._lowering import Draft
from brickyard.axes._operators import REWRITTEN
from brickyard.axes._overloads import resolved
from brickyard.axes._places import line_of_export
from brickyard.axes._settling import settle
from brickyard.network._arguments import canonical
from brickyard.network._functions import FUNCTIONS, function_name
from brickyard.network._network import Node, Ref, refs

# ATen operators -> the table's function that takes the same arguments, where the names differ.
_SAME = {
    **{name: f"tensor_{name}" for name in ("add", "mul", "sub", "div", "softmax", "unfold")},
    "split_with_sizes": "split",
    "sym_size": "size",
    **dict.fromkeys(("true_divide", "divide"), "tensor_div"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    "multiply": "tensor_mul",
    "subtract": "tensor_sub",
    **dict.fromkeys(("swapaxes", "swapdims"), "transpose"),
    "moveaxis": "movedim",
    "broadcast_to": "expand",
    **dict.fromkeys(("view", "_unsafe_view"), "reshape"),  # contiguous() is left out where the example needs none
    **dict.fromkeys(("bmm", "mm"), "matmul"),
    "linalg_vector_norm": "norm",
    "clip": "clamp",
    "absolute": "abs",
    "negative": "neg",
    "log_sigmoid": "logsigmoid",
    "im2col": "unfold",
    "col2im": "fold",
    "affine_grid_generator": "affine_grid",
    **{f"__{name}__": f"bitwise_{name}" for name in ("and", "or", "xor")},
}
_OTHER = {"size", "getitem", "float", "interpolate", "take", "mean_of", "to_type", "shape"}
_OTHER |= {"arange", "linspace", "new_full", "iadd", "imul", "truediv", "floordiv", "mod", "add", "sub", "mul"}
_PARTS = {"select", "slice"}
_VIEWS = {"select", "slice", "view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"}
_CONVERSIONS = {"to", "_to_copy", "type_as"}
_INSIDE = "inside."  # before the names of a model within `_Logits`
_NOTHING = {"dropout", "feature_dropout", "alpha_dropout", "detach", "alias", "lift_fresh_copy"}


def export_draft(model: nn.Module, example: Tensor, path: Path = (), any_size: bool = False) -> Draft | str:
    """Return the steps of a model in evaluation mode, or why they are not available; the model is left unchanged.

    Args:
        model: The model.
        example: Images.
        path: The way to the logits in what it returns.
        any_size: Leave the size of the images free, where the model's code allows it.
    """
    batch = example if len(example) > 1 else torch.cat([example, example])
    whole = _Logits(model, path) if path else model
    try:
        with _quiet():
            program = torch.export.export(whole, (batch,), dynamic_shapes=_open_shape(whole, any_size))
        prefix = _INSIDE if path else ""
        try:
            return _read(whole, program, example, prefix)
        except ValueError:  # it changes values in place that other steps use
            draft = _read(whole, program.run_decompositions({}), example, prefix)
            if _unknown_on_images(draft):  # that form takes layers apart, too
                raise
            return draft
    except Exception as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _unknown_on_images(draft: Draft) -> bool:
    """Whether an operator outside the table works on something that depends on the images."""
    reached: set[str] = set()
    for node in draft.nodes:
        if node.op == "input" or reached & set(refs(node)):
            reached.add(node.name)
            if node.target in draft.foreign:
                return True
    return False


class _Logits(nn.Module):
    """A model that returns its logits alone: exporting takes no objects that it does not know."""

    def __init__(self, model: nn.Module, path: Path) -> None:
        super().__init__()
        self.inside, self.path = model, path
        self.training = model.training

    def forward(self, images: Tensor) -> Any:
        return at(self.inside(images), self.path)


def _open_shape(model: nn.Module, any_size: bool) -> Any:
    """Leave the batch free, and the images' size if asked; a forward that takes `*args` has its image in there."""
    shape: dict[int, Any] = {0: torch.export.Dim("batch")}
    if any_size:
        shape |= {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
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
    settle(draft)
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
    kwargs = {key: _plain(value, same) for key, value in step.kwargs.items() if key != "memory_format"}
    assert callable(operator)
    known = function_name(operator)  # operators on sizes are Python's own
    name = str(getattr(operator, "_opname", operator))
    inputs = step.all_input_nodes
    if known is None and name in ("copy_", "fill_"):
        _overwrite_part(draft, step, same)
        return
    if known is None and name.endswith("_") and (name[:-1] in _NOTHING or _same(name[:-1])):
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
    elif known is None and name == "_native_batch_norm_legit_no_training":  # as run_decompositions writes it
        x, weight, bias, mean, variance, momentum, eps = args
        known, args = "batch_norm", (x, mean, variance, weight, bias, False, momentum, eps)
        same.update((user.name, Ref(step.name)) for user in step.users if user.args[1:] == (0,))
    elif known is None and name in ("select", "slice"):
        known, args, kwargs = "getitem", (args[0], _subscript(name, args[1:], inputs[0].meta["val"].ndim)), {}
    elif known is None and name in REWRITTEN:
        known, args, kwargs = REWRITTEN[name](args, kwargs) or (None, args, kwargs)
    elif known is None and (found := resolved(_same(name), name, args, kwargs)) is not None:
        known, args, kwargs = found
    if known is not None and _returns_more(step, known):
        users = list(step.users)
        if any(user.args[1:] != (0,) and user.users for user in users):
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
    return isinstance(step.meta.get("val"), tuple | list) and known.startswith(("adaptive_max_pool", "max_pool"))


def _same(name: str) -> str | None:
    """The table's function for an operator that takes the same arguments, or None."""
    return _SAME.get(name) or (name if name in FUNCTIONS and name not in _OTHER else None)


def _overwrite_part(draft: Draft, step: fx.Node, same: dict[str, Ref]) -> None:
    """Write `x[:, 2:4] = value` as what lies before, the value, and what lies behind; later steps take that for `x`.

    Raises:
        ValueError: Another view of what is overwritten is used later, or the part is no run of places.
    """
    parts: list[fx.Node] = []
    base = step.all_input_nodes[0]
    while getattr(base.target, "_opname", "") in _PARTS:
        parts.append(base)
        base = base.all_input_nodes[0]
    order = {node: place for place, node in enumerate(step.graph.nodes)}
    aliases = [node for node in order if node is not base and _views(node, base) and node not in parts]
    if any(order[alias] < order[step] < order[user] for alias in (*aliases, *parts) for user in alias.users):
        raise ValueError(f"{step.target} overwrites a part of a value of which another view is used later")
    value: Ref = _whole_part(draft, step, _plain(step.args[1], same), _plain(step.args[0], same))
    same[step.name] = value
    for part in parts:
        value = _put_back(draft, step, part, _plain(part.args, same), value)
    before, after = _plain(base, same), value
    same.update({name: after for name, ref in same.items() if ref == before})
    same[before.node] = after


def _views(node: fx.Node, base: fx.Node) -> bool:
    """Whether a value is a view of another one."""
    while getattr(node.target, "_opname", "") in (*_VIEWS, *_NOTHING, "expand", "contiguous") and node is not base:
        node = node.all_input_nodes[0]
    return node is base


def _whole_part(draft: Draft, step: fx.Node, value: Any, part: Ref) -> Ref:
    """What is written, in the type and the size of what it replaces."""
    if not isinstance(value, Ref):
        return _step(draft, step, "full_like", (part, value))
    target, source = step.args[0].meta["val"], step.args[1].meta["val"]  # type: ignore[union-attr]
    if source.dtype != target.dtype:
        value = _step(draft, step, "type_as", (value, part))
    return value if source.shape == target.shape else _step(draft, step, "expand_as", (value, part))


def _put_back(draft: Draft, step: fx.Node, part: fx.Node, args: tuple[Any, ...], value: Ref) -> Ref:
    """A value in which one part, a slice or one place of a dimension, is replaced."""
    source, whole = args[0], part.all_input_nodes[0].meta["val"]
    usual: tuple[Any, ...] = (0, None, None, 1)
    dim, start, end, by = args[1:] + usual[len(args) - 1 :]
    dim, size = dim % whole.ndim, whole.shape[dim]
    selects = getattr(part.target, "_opname", "") == "select"
    if selects:
        value = _step(draft, step, "unsqueeze", (value, dim))
        start, end, by = start, start + 1 or None, 1
    if not selects and start in (0, None) and isinstance(end, int) and end >= 1 << 62:
        return value  # the whole dimension
    if by != 1 or isinstance(start, Ref) or isinstance(end, Ref):
        raise ValueError(f"{step.target} overwrites places that are no run")
    if isinstance(size, int):
        start, end, _ = slice(start, end).indices(size)
    ends = end is None or end >= 1 << 62 or (isinstance(size, int) and end == size)
    pieces = [value]
    if start not in (0, None):
        pieces.insert(0, _step(draft, step, "getitem", (source, (*[slice(None)] * dim, slice(None, start)))))
    if not ends:
        pieces.append(_step(draft, step, "getitem", (source, (*[slice(None)] * dim, slice(end, None)))))
    return _step(draft, step, "cat", (tuple(pieces), dim)) if len(pieces) > 1 else value


def _step(draft: Draft, step: fx.Node, target: str, args: tuple[Any, ...]) -> Ref:
    """Add a step that stands for a part of another one."""
    taken = {node.name for node in (*draft.nodes, *step.graph.nodes)}
    name = next(name for number in itertools.count() if (name := f"{step.name}_{target}_{number}") not in taken)
    draft.nodes.append(Node(name, "function", target, args, {}, line_of_export(step.stack_trace)))
    draft.homes[name] = draft.homes.get(step.name, "")
    return Ref(name)


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
