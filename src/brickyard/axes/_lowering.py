"""Reduces a traced network to plain form that computes the same.

Numbers that depend on no image are computed once (weight standardisation, bias tables). Functions whose weights are
then known become layers. Views that only shuffle channels become one step that permutes channels.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brickyard.network._arguments import ORDER, argument
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import build_layer
from brickyard.network._network import Network, Node, Ref, map_refs, overwrites, refs, step_shapes, with_refs
from brickyard.network._torch_private import is_pure, store, stored

_MAKERS = {"arange", "zeros", "ones", "full", "linspace", "tensor", "eye"}
_LIKE = {"new_zeros", "new_ones", "new_full", "new_tensor"}  # use no values of their input
_ROWS = ("arange", "linspace")
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, getattr)
_MOST_PLACES = 4096
_VIEWS = {"view", "reshape", "permute", "transpose", "flatten", "unflatten", "contiguous", "channel_shuffle"}

_SHAPED = _VIEWS | {"expand", "expand_as", "unsqueeze", "squeeze", "repeat"}


@dataclass
class Draft:
    """A network while it is being read.

    Attributes:
        nodes: The steps.
        layers: Layers by dotted name.
        tensors: Bare parameters and buffers by dotted name.
        foreign: Callables outside the table, by the target that names them.
        homes: By step: the dotted name of the module whose forward created it.
        example: Example images.
    """

    nodes: list[Node]
    layers: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    foreign: dict[str, Callable[..., Any]]
    example: Tensor
    homes: dict[str, str] = field(default_factory=dict)

    def unknown(self) -> list[str]:
        """Operations outside the table that depend on the image; all others are computed now."""
        _fold(self)
        return [node.target for node in _without_unused(self) if node.target in self.foreign]

    def network(self) -> Network:
        self.nodes = _without_unused(self)
        used = {node.target for node in self.nodes}
        self.tensors = {name: value for name, value in self.tensors.items() if name in used}
        self.foreign = {name: call for name, call in self.foreign.items() if name in used}
        return Network(self.nodes, self.layers, self.tensors, self.foreign).eval()


def lowered(draft: Draft) -> Network:
    """Return the network in plain form; consumes `draft`, the result of tracing."""
    _fold(draft)
    _drop_masks(draft)
    _rename_input(draft)
    shapes = step_shapes(draft.network(), draft.example)
    _make_layers(draft, shapes)
    _join_shuffles(draft, shapes)
    _repeat_heads(draft, shapes)
    return draft.network()


def _rename_input(draft: Draft) -> None:
    """Give the input a name that no layer has: dimensions are recorded by what they belong to."""
    name = free = draft.nodes[0].name
    while free in draft.layers or (free != name and any(node.name == free for node in draft.nodes)):
        free += "_"
    if free != name:
        draft.nodes = [with_refs(node, lambda ref: Ref(free) if ref.node == name else ref) for node in draft.nodes]
        draft.nodes[0] = replace(draft.nodes[0], name=free)


# -- numbers that depend on no image -----------------------------------------------------------------------


def _fold(draft: Draft) -> None:
    """Compute steps that depend only on weights and plain numbers."""
    known: dict[str, Any] = {}
    groups: dict[str, set[str]] = {}  # the modules whose weights a value comes from
    trained: set[str] = set()
    computed: set[str] = set()
    nodes: list[Node] = []
    placed: set[str] = set()
    for node in draft.nodes:
        inputs = refs(node)
        if node.op == "tensor":
            known[node.name] = draft.tensors[node.target]
            groups[node.name] = {node.target.rpartition(".")[0]}
            if isinstance(known[node.name], nn.Parameter):
                trained.add(node.name)
        elif _is_constant(node, inputs, known, computed, draft) and _is_stored(value := _result(draft, node, known)):
            known[node.name] = value
            computed.add(node.name)
            groups[node.name] = set().union(*(groups.get(name, set()) for name in inputs))
            if trained & set(inputs):
                trained.add(node.name)
            continue
        node = _with_places(node, known)
        inputs = refs(node)
        for name in inputs:
            if name in computed and isinstance(known[name], Tensor) and name not in placed:
                placed.add(name)
                home = next(iter(groups[name])) if len(groups[name]) == 1 else draft.homes.get(name, "")
                nodes.append(_constant(draft, name, home, known[name], name in trained))
        plain = {name: known[name] for name in inputs if name in computed and not isinstance(known[name], Tensor)}
        nodes.append(with_refs(node, partial(_plain_value, plain)) if plain else node)
    draft.nodes = nodes


def _with_places(node: Node, known: Mapping[str, Any]) -> Node:
    """Write places along a dimension as numbers where a subscript takes them from a buffer."""
    if node.op == "function" and node.target == "index_select" and isinstance(node.args[2:], tuple) and node.args[2:]:
        places = known.get(node.args[2].node) if isinstance(node.args[2], Ref) else None
        if isinstance(places, Tensor) and places.ndim == 1 and 0 < len(places) <= _MOST_PLACES and node.args[1] >= 0:
            return replace(node, target="take", args=(node.args[0], node.args[1], places.tolist()))
    if node.op != "function" or node.target != "getitem" or len(node.args) != 2:
        return node

    def plain(ref: Ref) -> Any:
        value = known.get(ref.node)
        if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim != 1 or len(value) > _MOST_PLACES:
            return ref
        return (value.nonzero().flatten() if value.dtype is torch.bool else value).tolist()

    return replace(node, args=(node.args[0], map_refs(node.args[1], plain)))


def _plain_value(values: Mapping[str, Any], ref: Ref) -> Any:
    return values.get(ref.node, ref)


def _is_constant(node: Node, inputs: list[str], known: Mapping[str, Any], computed: set[str], draft: Draft) -> bool:
    name = node.target.partition(" ")[0].removeprefix("aten.").partition(".")[0]
    if node.op != "function" or ((name.endswith("_") or name in ("iadd", "imul")) and inputs[0] not in computed):
        return False  # in place: the model's own values must not change
    if node.target in _ROWS:
        return len(inputs) == 1  # the images, of which it takes the device alone
    if not inputs or name in _LIKE:
        return name in _MAKERS or (name in _LIKE and len(inputs) == 1)
    return not isinstance(draft.foreign.get(node.target), nn.Module) and all(name in known for name in inputs)


def _result(draft: Draft, node: Node, known: Mapping[str, Any]) -> Any:
    args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: known.get(ref.node, draft.example))
    call = draft.foreign.get(node.target) or FUNCTIONS[node.target].call
    with torch.no_grad():
        result = call(*args, **kwargs)
    return tuple(result) if isinstance(result, torch.Size) else result


def _is_stored(value: Any) -> bool:
    """Whether a file can hold a value; complex numbers stay pairs of others until they are needed."""
    return not (isinstance(value, Tensor) and value.is_complex())


def _constant(draft: Draft, name: str, home: str, value: Tensor, trained: bool) -> Node:
    if home in draft.layers:
        home = home.rpartition(".")[0]
    target = f"{home}.computed_{name}" if home else f"computed_{name}"
    value = value.detach().contiguous()
    trained = trained and value.is_floating_point()
    draft.tensors[target] = nn.Parameter(value, requires_grad=False) if trained else value
    return Node(name, "tensor", target)


def _drop_masks(draft: Draft) -> None:
    """Leave out masks of attention that hide nothing: they would tie positions and heads to a constant."""
    by_name = {node.name: node for node in draft.nodes}
    for index, node in enumerate(draft.nodes):
        mask = argument(node, "attn_mask") if node.target == "scaled_dot_product_attention" else None
        if isinstance(mask, Ref) and _hides_nothing(by_name[mask.node], by_name, draft):
            args, kwargs = node.args[:3], {key: value for key, value in node.kwargs.items() if key != "attn_mask"}
            more = dict(zip(ORDER[node.target][4:], node.args[4:], strict=False))
            draft.nodes[index] = replace(node, args=args, kwargs={**more, **kwargs})


def _repeat_heads(draft: Draft, shapes: Mapping[str, Any]) -> None:
    """Write attention of groups of queries as attention of equal counts of heads, with keys and values repeated."""
    nodes: list[Node] = []
    for node in draft.nodes:
        attends = node.op == "function" and node.target == "scaled_dot_product_attention"
        if not attends or not argument(node, "enable_gqa", False):
            nodes.append(node)
            continue
        given = {name: argument(node, name) for name in ORDER[node.target] if name != "enable_gqa"}
        for name in ("key", "value"):
            times = shapes[given["query"].node].shape[-3] // shapes[given[name].node].shape[-3]
            repeated = Node(f"{node.name}_{name}", "function", "repeat_interleave", (given[name], times, -3))
            nodes.append(repeated)
            given[name] = Ref(repeated.name)
        first = tuple(given.pop(name) for name in ("query", "key", "value"))
        nodes.append(replace(node, args=first, kwargs={name: one for name, one in given.items() if one is not None}))
    draft.nodes = nodes


def _hides_nothing(node: Node, by_name: Mapping[str, Node], draft: Draft) -> bool:
    """Whether a mask is a constant that is true or zero everywhere, in whatever shape; not one that is trained."""
    while node.op == "function" and node.target in _SHAPED and isinstance(node.args[0], Ref):
        node = by_name[node.args[0].node]
    value = draft.tensors[node.target] if node.op == "tensor" else None
    if value is None or isinstance(value, nn.Parameter):
        return False
    return bool(value.all()) if value.dtype == torch.bool else not bool(value.any())


# -- functions that are layers -----------------------------------------------------------------------------


# The builtins have no signatures of their own.
_CONVOLUTION = inspect.signature(lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: None)
_TRANSPOSED = inspect.signature(
    lambda input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1: None
)
_SIGNATURES = {
    **{f"conv{n}d": _CONVOLUTION for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _TRANSPOSED for n in (1, 2, 3)},
    "linear": inspect.signature(lambda input, weight, bias=None: None),
    "batch_norm": inspect.signature(F.batch_norm),
    "layer_norm": inspect.signature(F.layer_norm),
    "group_norm": inspect.signature(F.group_norm),
    "rms_norm": inspect.signature(F.rms_norm),
    "instance_norm": inspect.signature(F.instance_norm),
    "prelu": inspect.signature(lambda input, weight: None),
}


def _make_layers(draft: Draft, shapes: Mapping[str, Any]) -> None:
    tensors = {node.name: node.target for node in draft.nodes if node.op == "tensor"}
    found: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {}
    for node in draft.nodes:
        if node.op == "function" and node.target in _SIGNATURES and node.target not in draft.foreign:
            made = _as_layer(node, tensors, draft, shapes)
            if made is not None:
                found[node.name] = made
    elsewhere = {
        tensors[name] for node in draft.nodes if node.name not in found for name in refs(node) if name in tensors
    }
    names: dict[str, str] = {}
    for index, node in enumerate(draft.nodes):
        if node.name not in found:
            continue
        kind, config, own = found[node.name]
        key = repr((kind, config, own))
        if key not in names:
            names[key] = _free_name(draft, node, own, elsewhere)
            draft.layers[names[key]] = _layer(kind, config, {k: draft.tensors[target] for k, target in own.items()})
        first = node.args[0] if node.args else node.kwargs["input"]
        draft.nodes[index] = Node(node.name, "layer", names[key], (first,), line=node.line)


def _as_layer(
    node: Node, tensors: Mapping[str, str], draft: Draft, shapes: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, str]] | None:
    """The layer's type, arguments and tensors, or None if a weight depends on the image."""
    try:
        bound = _SIGNATURES[node.target].bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    values = dict(bound.arguments)
    x = values.pop("input")
    own: dict[str, str] = {}
    for key in ("weight", "bias", "running_mean", "running_var"):
        value = values.pop(key, None)
        if isinstance(value, Ref):
            if value.node not in tensors:
                return None
            own[key] = tensors[value.node]
        elif value is not None:
            return None
    if any(isinstance(value, Ref) for value in values.values()) or not isinstance(x, Ref):
        return None
    sizes = {key: tuple(draft.tensors[target].shape) for key, target in own.items()}
    found = _READ[node.target](values, sizes, shapes[x.node])
    return None if found is None else (*found, own)


_Sizes = Mapping[str, tuple[int, ...]]
_Found = tuple[str, dict[str, Any]] | None


def _conv(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    if len(sizes.get("weight", ())) != x.ndim:
        return None
    transposed, groups = "output_padding" in values, values["groups"]
    first, second, *kernel = sizes["weight"]
    return f"Conv{'Transpose' * transposed}{len(kernel)}d", {
        "in_channels": first if transposed else second * groups,
        "out_channels": second * groups if transposed else first,
        "kernel_size": kernel,
        **{key: _listed(value) for key, value in values.items()},
        "bias": "bias" in sizes,
        **({} if transposed else {"padding_mode": "zeros"}),
    }


def _linear(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    if len(sizes.get("weight", ())) != 2:
        return None
    out, in_ = sizes["weight"]
    return "Linear", {"in_features": in_, "out_features": out, "bias": "bias" in sizes}


def _layer_norm(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    affine, bias = "weight" in sizes, "bias" in sizes
    if bias and not affine:
        return None
    shape = _listed(values["normalized_shape"])
    return "LayerNorm", {"normalized_shape": shape, "eps": values["eps"], "elementwise_affine": affine, "bias": bias}


def _group_norm(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    if ("weight" in sizes) != ("bias" in sizes):
        return None
    groups, channels = values["num_groups"], int(x.shape[1])
    config = {"num_groups": groups, "num_channels": channels, "eps": values["eps"], "affine": "weight" in sizes}
    return "GroupNorm", config


def _batch_norm(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    known = "running_mean" in sizes and "running_var" in sizes
    if values["training"] or not known or ("weight" in sizes) != ("bias" in sizes):
        return None
    return f"BatchNorm{max(1, x.ndim - 2)}d", {
        "num_features": sizes["running_mean"][0],
        "eps": values["eps"],
        "momentum": values["momentum"],
        "affine": "weight" in sizes,
        "track_running_stats": True,
    }


def _rms_norm(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    shape = _listed(values["normalized_shape"])
    return "RMSNorm", {"normalized_shape": shape, "eps": values["eps"], "elementwise_affine": "weight" in sizes}


def _instance_norm(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    tracked = "running_mean" in sizes
    if ("weight" in sizes) != ("bias" in sizes) or values["use_input_stats"] == tracked or x.ndim < 3:
        return None
    return f"InstanceNorm{x.ndim - 2}d", {
        "num_features": int(x.shape[1]),
        "eps": values["eps"],
        "momentum": values["momentum"],
        "affine": "weight" in sizes,
        "track_running_stats": tracked,
    }


def _prelu(values: dict[str, Any], sizes: _Sizes, x: Any) -> _Found:
    return ("PReLU", {"num_parameters": sizes["weight"][0]}) if "weight" in sizes else None


_READ: dict[str, Callable[[dict[str, Any], _Sizes, Any], _Found]] = {
    **{f"conv{transpose}{n}d": _conv for n in (1, 2, 3) for transpose in ("", "_transpose")},
    "linear": _linear,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "rms_norm": _rms_norm,
    "instance_norm": _instance_norm,
    "prelu": _prelu,
}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list | torch.Size) else value


def _layer(kind: str, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    layer = build_layer(kind, config)
    for key, value in tensors.items():
        store(layer, key, value.detach())
    if "num_batches_tracked" in stored(layer):
        store(layer, "num_batches_tracked", torch.tensor(0))
    return layer.requires_grad_(False)


def _free_name(draft: Draft, node: Node, own: Mapping[str, str], elsewhere: set[str]) -> str:
    """The name of the module that owns the weights, if it is free."""
    homes = {target.rpartition(".")[0] for target in own.values()}
    wanted = homes.pop() if len(homes) == 1 else draft.homes.get(node.name, "")
    name = wanted = wanted or node.name
    number = 1
    while name in draft.layers or any(target == name or target.startswith(name + ".") for target in elsewhere):
        name, number = f"{wanted}_{node.target}" + (f"_{number}" if number > 1 else ""), number + 1
    return name


# -- shuffles ----------------------------------------------------------------------------------------------


def _join_shuffles(draft: Draft, shapes: Mapping[str, Any]) -> None:
    """Replace views and permutations that amount to a permutation of channels by one step."""
    chains: dict[str, tuple[str, Tensor]] = {}
    for index, node in enumerate(draft.nodes):
        shuffles = node.op == "layer" and isinstance(draft.layers[node.target], nn.ChannelShuffle)
        if not ((node.op == "function" and node.target in _VIEWS) or shuffles) or not isinstance(node.args[0], Ref):
            continue
        source = node.args[0].node
        shape, result = tuple(shapes[source].shape), tuple(shapes[node.name].shape)
        if source in chains:
            start, places = chains[source]
        elif len(shape) == 4 and (len(result) > 4 or shuffles or node.target == "channel_shuffle"):
            start, places = source, torch.arange(shapes[source].numel()).reshape(shape)
        else:
            continue
        args = map_refs(node.args[1:], lambda ref: shapes[ref.node])
        call = draft.layers[node.target] if shuffles else FUNCTIONS[node.target].call
        places = call(places, *args, **map_refs(dict(node.kwargs), lambda ref: shapes[ref.node]))
        order = _channel_order(places, tuple(shapes[start].shape))
        if order is None:
            chains[node.name] = (start, places)
        else:
            draft.nodes[index] = Node(node.name, "function", "take", (Ref(start), 1, order), line=node.line)


def _channel_order(places: Tensor, shape: tuple[int, ...]) -> list[int] | None:
    """The channels in their new order, if nothing else moved."""
    if tuple(places.shape) != shape:
        return None
    order = places[0, :, 0, 0] // (shape[2] * shape[3])
    moved = torch.arange(places.numel()).reshape(shape)[:, order.clamp(0, shape[1] - 1)]
    return [int(channel) for channel in order] if torch.equal(moved, places) else None


# -- steps that nothing needs ------------------------------------------------------------------------------


def _without_unused(draft: Draft) -> list[Node]:
    """Drop steps whose values nobody needs, unless they may act on something else."""
    kept: list[Node] = []
    used: set[str] = set()
    for node in reversed(draft.nodes):
        if node.name in used or node.op in ("input", "output") or _may_act(node, draft):
            kept.append(node)
            used.update(refs(node))
    return kept[::-1]


def _may_act(node: Node, draft: Draft) -> bool:
    """Whether a step may change a value that it was given, or something outside the network."""
    call = draft.foreign.get(node.target)
    if call is not None and call not in _COMPARISONS and not is_pure(call):
        return True
    return overwrites(node, draft.layers[node.target] if node.op == "layer" else None, call)
