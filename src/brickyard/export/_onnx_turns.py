"""Parts that run in turn as one ONNX graph: a part's steps stand in a branch that takes the images still open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brickyard.assembly._assembly import Assembly
from brickyard.base._errors import OptionError
from brickyard.base._lazy import package
from brickyard.export._onnx_modules import OUTPUTS, Order, Said

START = {"unknown": 0.0, "strangeness": torch.inf}  # of images for which no part has run
JOINED = {"unknown": "Add", "strangeness": "Min"}  # what a part says with what those before it said

Write = Callable[..., Any]
"""A module of raw images and the names of its outputs -> an ONNX model with an input called images."""


def check_at_once(model: object, why: str) -> None:
    """Refuse a cascade, where it cannot be exported.

    Raises:
        OptionError: It is one.
    """
    if isinstance(model, Assembly) and model.stages:
        advice = "export assemble([cascade]) (brickyard assemble FILE -o OTHER), which runs all parts at once, or "
        advice += "write the cascade as ONNX without int8"
        raise OptionError("option-needs-parallel-form", f"{why}, and this is a cascade; {advice}")


class Graph:
    """Nodes of a graph, one after the other, with names that begin alike."""

    def __init__(self, helper: Any, prefix: str) -> None:
        self._helper, self._prefix, self._count = helper, prefix, 0
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        return self.several(kind, 1, *inputs, **attributes)[0]

    def several(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with so many outputs; returns their names."""
        self._count += 1
        name = f"{self._prefix}{kind.lower()}_{self._count}"
        names = [name, *(f"{name}_{k}" for k in range(1, count))]
        self.nodes.append(self._helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names

    def constant(self, value: Tensor) -> str:
        """Add a constant; returns its name."""
        from onnx import numpy_helper

        self._count += 1
        name = f"{self._prefix}constant_{self._count}"
        self.initializers.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def numbers(self, *values: int) -> str:
        """Add a constant of whole numbers, in one dimension."""
        return self.constant(torch.tensor(values))

    def include(self, graph: Any, images: str, held: str) -> list[str]:
        """Add the nodes of another graph, with its initializers under `held`.

        Returns:
            The names of its outputs.
        """
        weights = {item.name for item in graph.initializer}
        renamed = {graph.input[0].name: images, "": ""} | {name: f"{held}{name}" for name in weights}
        for node in graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ValueError(f"a part has branches of its own ({node.op_type})")
            renamed |= {name: f"{self._prefix}{name}" for name in node.output if name}
        for node in graph.node:
            made = type(node)()
            made.CopyFrom(node)
            made.name = f"{self._prefix}{node.name}"
            made.input[:], made.output[:] = ([renamed[name] for name in side] for side in (node.input, node.output))
            self.nodes.append(made)
        return [renamed[output.name] for output in graph.output]


def in_turn_proto(model: Assembly, stages: Sequence[nn.Module], write: Write, shares: Any, strangers: bool) -> Any:
    """An ONNX model of a cascade, with the outputs logits, probabilities and perhaps strangeness, for any batch size.

    Args:
        model: The cascade.
        stages: What maps raw images to the logits of each part's classes.
        write: Writes a module as an ONNX model.
        shares: The ONNX model that maps logits to probabilities.
        strangers: Whether it says how strange images are.
    """
    onnx = package("onnx", "onnx", "writing ONNX")
    helper, kinds, record = onnx.helper, onnx.TensorProto, model.manifest.cascade
    assert record is not None
    owner = torch.tensor([owners[0] for owners in model.manifest.owners])
    limits = torch.tensor([torch.inf if one is None else one for one in record.thresholds], dtype=torch.float32)[owner]
    parts = [Said(stage, strangers) for stage in stages]  # type: ignore[arg-type]
    more = parts[0].more
    protos = [inlined(onnx, write(part, OUTPUTS[0], *more)) for part in parts]
    first = inlined(onnx, write(Order(model), "order"))
    main = Graph(helper, "turns.")
    (order,) = main.include(first.graph, "images", "glance.")
    batch = main.add("Slice", main.add("Shape", "images"), main.numbers(0), main.numbers(1))
    wide = main.add("Concat", batch, main.numbers(len(owner)), axis=0)
    logits = main.add("Expand", main.constant(torch.tensor([record.expected], dtype=torch.float32)), wide)
    known = main.add("Expand", main.constant(torch.zeros(1, len(owner), dtype=torch.bool)), wide)
    going = main.add("Expand", main.constant(torch.ones(1, dtype=torch.bool)), batch)
    said = [logits]  # by image: logits, and what the parts so far say more of it
    said += [main.add("Expand", main.constant(torch.tensor([START[name]])), batch) for name in more]
    for turn in range(len(stages)):
        place = main.add("Gather", order, main.constant(torch.tensor(turn)), axis=1)
        for part, proto in enumerate(protos):
            mine = main.add("And", going, main.add("Equal", place, main.numbers(part)))
            some = main.add("ReduceMax", main.add("Cast", mine, to=kinds.INT32), keepdims=0)
            run = Graph(helper, f"turn{turn}.part{part}.")
            found = _branch(run, proto.graph, f"part{part}.", mine, said, owner == part, more)
            main.initializers += run.initializers
            skip = Graph(helper, f"turn{turn}.skip{part}.")
            same = [skip.add("Identity", one) for one in said]
            branches = [_subgraph(helper, kinds, *one) for one in ((run, found), (skip, same))]
            some = main.add("Cast", some, to=kinds.BOOL)
            said = main.several("If", len(said), some, then_branch=branches[0], else_branch=branches[1])
            columns = main.add("And", main.add("Unsqueeze", mine, main.numbers(1)), main.constant(owner[None] == part))
            known = main.add("Or", known, columns)
        if turn + 1 < len(stages):
            final = _final(main, limits, known, *said[: 1 + model.reject])
            going = main.add("And", going, main.add("Not", final))
    ends = dict(zip((OUTPUTS[0], *more), said, strict=True))
    unknown = ends.pop("unknown", None)
    if unknown is not None:
        ends["logits"] = _with_reject(main, ends["logits"], unknown)
    for name, one in ends.items():
        main.nodes.append(helper.make_node("Identity", [one], [name], name=name))
    main.nodes.append(helper.make_node("Identity", main.include(shares.graph, "logits", ""), ["probabilities"]))
    held = [(first, "glance."), *((proto, f"part{i}.") for i, proto in enumerate(protos))]
    return _model(onnx, main, held, shares, strangers)


def _final(made: Graph, limits: Tensor, known: str, logits: str, unknown: str | None = None) -> str:
    """Which images' best answer so far is final, as from `assembly._turns.final`."""
    seen = made.add("Where", known, logits, made.constant(torch.tensor(-torch.inf)))
    best = made.add("ReduceMax", seen, made.numbers(1), keepdims=0)
    limit = made.add("Gather", made.constant(limits), made.add("ArgMax", seen, axis=1, keepdims=0))
    final = made.add("Greater", best, limit)
    if unknown is None:
        return final
    answer = made.add("ArgMax", _with_reject(made, logits, unknown), axis=1, keepdims=0)
    return made.add("And", final, made.add("Less", answer, made.numbers(len(limits))))


def _with_reject(made: Graph, logits: str, unknown: str) -> str:
    """The logits with that of "none of these", as from `scaling._scale.with_reject`."""
    least, one = made.constant(torch.tensor(-torch.finfo(torch.float32).eps)), made.constant(torch.tensor(1.0))
    known = made.add("Min", unknown, least)
    odds = made.add("Sub", known, made.add("Log", made.add("Sub", one, made.add("Exp", known))))
    axis = made.numbers(1)
    whole = made.add("ReduceLogSumExp", logits, axis, keepdims=0)
    return made.add("Concat", logits, made.add("Unsqueeze", made.add("Add", whole, odds), axis), axis=1)


def _branch(
    made: Graph, graph: Any, held: str, mine: str, said: Sequence[str], own: Tensor, more: Sequence[str]
) -> list[str]:
    """A part's steps for some of the images: what is said of all then, with what it says of these."""
    places = torch.nonzero(own).flatten().tolist()
    rows = made.add("Squeeze", made.add("NonZero", mine), made.numbers(0))
    found, *others = made.include(graph, made.add("Gather", "images", rows, axis=0), held)
    before, axis = made.add("Gather", said[0], rows, axis=0), made.numbers(1)
    left = made.add("Slice", before, made.numbers(0), made.numbers(places[0]), axis)
    right = made.add("Slice", before, made.numbers(places[-1] + 1), made.numbers(len(own)), axis)
    at = made.add("Unsqueeze", rows, axis)
    ends = [made.add("ScatterND", said[0], at, made.add("Concat", left, found, right, axis=1))]
    for name, one, value in zip(more, said[1:], others, strict=True):
        joined = made.add(JOINED[name], made.add("Gather", one, rows, axis=0), value)
        ends.append(made.add("ScatterND", one, at, joined))
    return ends


def _subgraph(helper: Any, kinds: Any, made: Graph, ends: Sequence[str]) -> Any:
    outputs = [helper.make_tensor_value_info(name, kinds.FLOAT, None) for name in ends]
    return helper.make_graph(made.nodes, made.nodes[-1].name, [], outputs)


def inlined(onnx: Any, proto: Any) -> Any:
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _model(onnx: Any, main: Graph, held: Sequence[tuple[Any, str]], shares: Any, strangers: bool) -> Any:
    """The whole model, with the weights of all its parts."""
    helper, (first, _) = onnx.helper, held[0]
    weights = list(main.initializers) + list(shares.graph.initializer)
    for proto, prefix in held:
        for item in proto.graph.initializer:
            copied = type(item)()
            copied.CopyFrom(item)
            copied.name = f"{prefix}{item.name}"
            weights.append(copied)
    batch = first.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    width = shares.graph.output[0].type.tensor_type.shape.dim[1]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, width.dim_value])
        for name in ("logits", "probabilities")
    ]
    if strangers:
        outputs.append(helper.make_tensor_value_info("strangeness", onnx.TensorProto.FLOAT, [batch]))
    graph = helper.make_graph(main.nodes, "brickyard", list(first.graph.input), outputs, weights)
    return helper.make_model(graph, opset_imports=list(first.opset_import), ir_version=first.ir_version)
