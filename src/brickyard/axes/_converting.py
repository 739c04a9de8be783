"""Turns the graph of torch's symbolic tracer into steps: layers and functions of the tables, and callables outside."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from brickyard.axes._answers import Path, at
from brickyard.axes._lowering import Draft
from brickyard.axes._overloads import of_attribute, resolved
from brickyard.axes._places import after, line_of_forward
from brickyard.base._errors import TraceError
from brickyard.network._arguments import canonical
from brickyard.network._functions import function_name, method_name
from brickyard.network._layer_types import build_layer, describe_layer, find_type
from brickyard.network._network import Node, Ref, overwrites
from brickyard.network._torch_private import ASSERT, ASSERT_IS_NONE, store, stored


def converted(model: nn.Module, graph: fx.Graph, example: Tensor, lines: dict[str, str], path: Path) -> Draft:
    draft = Draft([], {}, {}, {}, example)
    nodes = draft.nodes
    same: dict[str, Ref] = {}
    for step in graph.nodes:
        if step.op == "output":
            step.args = (at(step.args[0], path),)
        args, kwargs = _arguments(step, same)
        target = str(step.target)
        draft.homes[step.name] = next(reversed(step.meta.get("nn_module_stack") or [""]))
        if step.op == "placeholder":
            if nodes and not all(_checks_default(user) for user in step.users):
                raise TraceError(
                    "trace-forward-inputs",
                    f"{type(model).__name__}.forward{after(line_of_forward(model))} takes a second input, "
                    f"{step.name!r}; only one is supported: wrap it in a module that supplies the rest",
                )
            if not nodes:
                nodes.append(Node(step.name, "input"))
        elif step.op == "call_module":
            module = model.get_submodule(target)
            if isinstance(module, nn.Unflatten) and isinstance(module.dim, int):
                sizes = tuple(module.unflattened_size)
                nodes.append(Node(step.name, "function", "unflatten", (args[0], module.dim, sizes)))
            elif _representable(module) and len(args) == 1 and not kwargs:  # more would change what a layer does
                draft.layers.setdefault(target, shared_layer(module))
                nodes.append(Node(step.name, "layer", target, args, kwargs))
            else:
                draft.foreign[target] = draft.foreign.get(target) or own_copy(module)
                nodes.append(Node(step.name, "function", target, args, kwargs))
        elif step.op == "get_attr":
            draft.tensors[target] = attribute(model, target, lines.get(step.name, ""))
            nodes.append(Node(step.name, "tensor", target))
        elif step.op == "output":
            nodes.append(Node(step.name, "output", "", args))
        elif step.target is ASSERT_IS_NONE or (isinstance(step.target, type) and _only_returned(step)):
            continue
        elif _is_idle(step):
            same[step.name] = args[0]
        else:
            node = _function_node(step, args, kwargs, draft.foreign)
            if node is not None:
                nodes.append(node)
        if nodes and nodes[-1].name == step.name:
            nodes[-1] = replace(nodes[-1], line=lines.get(step.name, ""))
            if _overwrites(nodes[-1], draft):
                _pass_on(nodes[-1], same)
    _keep_from_layers(draft)
    return draft


def _overwrites(node: Node, draft: Draft) -> bool:
    """Whether a step overwrites the tensor it is given; not `+=` of Python, which may be given a number."""
    if not node.args or not isinstance(node.args[0], Ref) or node.op not in ("layer", "function"):
        return False
    name = node.target.partition(" ")[0]
    if name in ("iadd", "imul") or name.endswith("__"):
        return False
    layer = draft.layers[node.target] if node.op == "layer" else None
    return overwrites(node, layer, draft.foreign.get(node.target))


def _pass_on(node: Node, same: dict[str, Ref]) -> None:
    """Let later steps take a value that was overwritten from the step that did it, under whatever name they know it."""
    before, after = node.args[0], Ref(node.name)
    same.update({name: after for name, ref in same.items() if ref == before})
    same[before.node] = after


def _keep_from_layers(draft: Draft) -> None:
    """Rename bare tensors that belong to a layer that also runs: a layer does not share its tensors."""
    for index, node in enumerate(draft.nodes):
        group, _, leaf = node.target.rpartition(".")
        if node.op == "tensor" and group in draft.layers:
            name = f"{group}_{leaf}"
            draft.tensors[name] = draft.tensors[node.target]
            draft.nodes[index] = replace(node, target=name)


def _checks_default(user: fx.Node) -> bool:
    """Whether a step only checks that an argument has its default."""
    is_none, is_equal = ASSERT_IS_NONE, operator.eq
    return user.target is is_none or (user.target is is_equal and all(check.target is ASSERT for check in user.users))


def _only_returned(step: fx.Node) -> bool:
    """Whether nothing is done with a value but to return it, as with the object that holds the logits."""
    return all(user.op == "output" for user in step.users)


def _is_idle(step: fx.Node) -> bool:
    """Whether a step is stochastic depth, which does nothing in evaluation mode."""
    training = step.args[3] if len(step.args) > 3 else step.kwargs.get("training", True)
    return getattr(step.target, "__name__", "") == "stochastic_depth" and training is False


def _function_node(
    step: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], foreign: dict[str, Callable[..., Any]]
) -> Node | None:
    if step.op == "call_method":
        call: Callable[..., Any] = getattr(Tensor, str(step.target))
        name, title, own = method_name(str(step.target)), f"Tensor.{step.target}", str(step.target)
    else:
        call = step.target  # type: ignore[assignment]
        title = own = getattr(call, "__name__", str(call))
        if title == "_assert":
            return None
        name = function_name(call)
    found = of_attribute(args) if call is getattr else resolved(name, own, args, kwargs)
    if found is None:
        target = f"{title} ({step.name})"
        foreign[target] = call
        return Node(step.name, "function", target, args, kwargs)
    name, args, kwargs = found
    return Node(step.name, "function", name, *canonical(name, args, kwargs))


def _arguments(step: fx.Node, same: dict[str, Ref]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A step's arguments; `same` maps steps that only pass on an earlier value."""

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return same.get(value.name) or Ref(value.name)
        if isinstance(value, slice):
            return slice(plain(value.start), plain(value.stop), plain(value.step))
        if isinstance(value, tuple):
            return tuple(plain(item) for item in value)
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value

    args = tuple(plain(value) for value in step.args)
    kwargs = {key: plain(value) for key, value in step.kwargs.items()}
    if step.op == "call_module" and not args and len(kwargs) == 1:  # layers name their one input as they like
        args = (kwargs.popitem()[1],)
    return args, kwargs


def _representable(module: nn.Module) -> bool:
    return find_type(module) is not None and not getattr(module, "return_indices", False)


def shared_layer(module: nn.Module) -> nn.Module:
    """A plain copy of a layer, in evaluation mode, that shares its weights but not its hooks."""
    entry = find_type(module)
    assert entry is not None
    found = build_layer(entry.name, describe_layer(module))
    for name in stored(found):
        value = getattr(module, name)
        store(found, name, None if value is None else _ordinary(value))
    return found.requires_grad_(False)


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of a module outside the table, in evaluation mode, that shares its weights where it can.

    It becomes part of the network, which moves and converts its parts; the model's own module stays as it is.
    """
    shared: dict[int, Any] = {id(value): value for value in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, shared).eval()
    except Exception:  # a module may hold anything; one that cannot be copied is used as it is
        return module


def _ordinary(value: Tensor) -> Tensor:
    """The same tensor without a history; an inference tensor is copied, since no gradient can pass through it."""
    return value.detach().clone() if value.is_inference() else value.detach()


def attribute(model: nn.Module, target: str, line: str) -> Tensor:
    group, _, leaf = target.rpartition(".")
    value = getattr(model.get_submodule(group), leaf)
    if not isinstance(value, Tensor):
        raise TraceError(
            "trace-control-flow",
            f"{target!r} is used as a value in the forward{after(line)} and must be a tensor, got "
            f"{type(value).__name__}; register it as a buffer or a parameter",
        )
    is_parameter = isinstance(value, nn.Parameter)
    return nn.Parameter(_ordinary(value), requires_grad=False) if is_parameter else _ordinary(value)
