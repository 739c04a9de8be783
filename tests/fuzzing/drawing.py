"""Files whose graphs and records are legal to look at, drawn from the vocabulary of the format, and written by it.

Shapes are followed on the meta device while steps are drawn, so that most networks run. Sizes are usual, extreme or
inconsistent; nothing is repaired afterwards.
"""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._atoms import Purse
from brickyard.axes._graph import analyse
from brickyard.base._errors import BrickyardError
from brickyard.base._records import ComponentFile
from brickyard.component._familiarity import Familiarity
from brickyard.component._features import reader
from brickyard.network._arguments import OPERANDS, ORDER
from brickyard.network._cost_limit import Bounds
from brickyard.network._functions import FUNCTIONS
from brickyard.network._layer_types import LAYER_TYPES, build_layer
from brickyard.network._network import Network, Node, Ref, map_refs
from brickyard.storage._safefile import read, write

IMAGES = (
    (3, 8, 8),
    (3, 8, 8),
    (1, 4, 4),
    (3, 16, 16),
    (1, 1, 1),
    (7, 5, 3),
    (3, 64, 64),
    (1, 32),
    (2, 9),
    (1, 4, 4, 4),
)
LARGE_IMAGES = ((3, 512, 512), (1, 4096, 4096), (1, 1 << 20), (1 << 16, 1, 1))
SMALL = (0, 1, 1, 2, 2, 3, 4, 5, 8, 16, -1)
HUGE = (63, 300, 1000, 4097, 1 << 14, 1 << 16, 1 << 20, 1 << 31, 1 << 40, (1 << 62) - 1)
NUMBERS = (0, 1, 2, 3, 7, 0.5, -1, 0.0, 1e-9, 1e30, *HUGE)
WORDS = (
    "sum",
    "mean",
    "max",
    "nearest",
    "bilinear",
    "bicubic",
    "reflect",
    "replicate",
    "constant",
    "zeros",
    "ij",
    "floor",
)
MOST_NUMBERS = 60_000  # in the tensors of one network
MOST_PIECES = 40_000  # that the drawing itself makes
NAMES = ("conv", "a.b", "0", "layer", "forward", "x", "weight", "bn", "a.b.c")


class Graph:
    """A network that is being drawn: its steps, their values on the meta device, and what they hold."""

    def __init__(self, rng: random.Random, image: tuple[int, ...]) -> None:
        self.rng = rng
        self.nodes = [Node("image", "input")]
        self.values: dict[str, Any] = {"image": torch.empty(2, *image, device="meta")}
        self.layers: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.pieces = 0

    def add(self, node: Node, call: Any) -> bool:
        """Add a step if it runs and is not too large to be drawn."""
        try:
            args, kwargs = map_refs((node.args, dict(node.kwargs)), lambda ref: self.values[ref.node])
            value = call(*args, **kwargs)
        except Exception:
            return False
        self.pieces += len(value) if isinstance(value, tuple | list) else 1
        if self.pieces > MOST_PIECES:
            return False
        self.values[node.name] = value
        self.nodes.append(node)
        return True

    def tensor_names(self) -> list[str]:
        return [name for name, value in self.values.items() if isinstance(value, Tensor)]

    def pick(self) -> Ref:
        """A tensor, mostly one of the latest."""
        names = self.tensor_names()
        return Ref(names[-1] if self.rng.random() < 0.6 else self.rng.choice(names))

    def name(self, word: str) -> str:
        return f"{word}{len(self.nodes)}"

    # -- steps -----------------------------------------------------------------------------------------

    def size(self) -> Any:
        """A number where a size, a place or a dimension stands."""
        numbers = [name for name, value in self.values.items() if type(value) is int]
        if numbers and self.rng.random() < 0.2:
            return Ref(self.rng.choice(numbers))
        if self.rng.random() < 0.1:
            sides = [side for name in self.tensor_names()[-4:] for side in self.values[name].shape]
            return self.rng.choice(sides or [1])
        return self.rng.choice(HUGE if self.rng.random() < 0.08 else SMALL)

    def argument(self, key: str, x: Ref) -> Any:
        """Something for an argument of this name, of a step on `x`."""
        rng, value = self.rng, self.values[x.node]
        if key in (
            "input",
            "other",
            "end",
            "tensor1",
            "tensor2",
            "mask",
            "condition",
            "src",
            "grid",
            "batch1",
            "batch2",
        ):
            return self.pick() if rng.random() < 0.8 or key == "input" else rng.choice(NUMBERS)
        if key in ("query", "key", "value", "input1", "input2", "vec2", "theta", "hx", "running_mean", "running_var"):
            return self.pick()
        if key in ("weight", "index", "attn_mask", "bias") and rng.random() < 0.8:
            return self.pick()
        if key in ("dim", "dim0", "dim1", "start_dim", "end_dim", "dimension", "source", "destination"):
            return rng.choice([*range(-value.ndim, value.ndim), 1, 1]) if rng.random() < 0.9 else [1, -1]
        if key in (
            "dims",
            "shape",
            "size",
            "sizes",
            "repeats",
            "places",
            "normalized_shape",
            "pad",
            "output_size",
            "s",
        ):
            usual = [1] * value.ndim if key == "repeats" else list(value.shape)
            if key == "dims":
                usual = rng.sample(range(value.ndim), value.ndim)
            return [side if rng.random() < 0.7 else self.size() for side in usual]
        if key in ("tensors", "operands"):
            return [x] + [self.pick() if rng.random() < 0.5 else x for _ in range(rng.choice((1, 1, 2, 30)))]
        if key == "equation":
            return rng.choice(("nchw,ncij->nhi", "nc,nc->n", "nc,mc->nm", "...i,...i->...", "nchw->nc"))
        if key == "dtype":
            return rng.choice((torch.float32, torch.int64, torch.bool, torch.float16, torch.float64))
        if key in ("mode", "padding_mode", "rounding_mode", "indexing", "reduce", "norm", "approximate"):
            return rng.choice(WORDS)
        if key == "index":
            return tuple(self.place() for _ in range(rng.choice((1, 1, 2, value.ndim))))
        if key in (
            "training",
            "keepdim",
            "inplace",
            "ceil_mode",
            "align_corners",
            "largest",
            "descending",
            "is_causal",
        ):
            return rng.random() < 0.4
        if key in ("kernel_size", "stride", "dilation", "padding", "split_size", "chunks", "k", "n", "groups"):
            return self.size() if rng.random() < 0.7 else [self.size() for _ in range(rng.choice((1, 2, 3)))]
        return self.size() if rng.random() < 0.6 else rng.choice(NUMBERS)

    def place(self) -> Any:
        """A piece of a subscript."""
        numbers = [None, *SMALL]
        kind = self.rng.randrange(5)
        if kind < 3:
            return slice(*(self.rng.choice(numbers) for _ in range(2)), self.rng.choice((None, None, 1, 2)))
        return self.rng.choice((None, Ellipsis, self.size(), [0, 0, 0], self.pick())) if kind == 3 else self.size()

    def function(self) -> bool:
        """A step that calls a function."""
        name = self.rng.choice(list(FUNCTIONS))
        x = self.pick()
        given = [x if at == 0 else self.argument(key, x) for at, key in enumerate(OPERANDS[name])]
        if name in ("cat", "stack", "meshgrid", "einsum"):
            given = [self.argument(key, x) for key in OPERANDS[name]]
        kwargs = {key: self.argument(key, x) for key in ORDER[name][len(given) :] if self.rng.random() < 0.3}
        return self.add(Node(self.name("f"), "function", name, tuple(given), kwargs), FUNCTIONS[name].call)

    def item(self) -> bool:
        """One of the values of a step that has several."""
        several = [name for name, value in self.values.items() if isinstance(value, tuple | list) and value]
        if not several:
            return False
        name = self.rng.choice(several)
        at = self.rng.randrange(len(self.values[name]))
        return self.add(Node(self.name("i"), "function", "getitem", (Ref(name), at)), FUNCTIONS["getitem"].call)

    def number(self) -> bool:
        """A number made of sizes."""
        rng, known = self.rng, [name for name, value in self.values.items() if type(value) is int]
        if not known or rng.random() < 0.4:
            return self.add(
                Node(self.name("n"), "function", "size", (self.pick(), rng.choice((0, 1)))), FUNCTIONS["size"].call
            )
        target = rng.choice(("add", "sub", "mul", "floordiv", "mod", "pow"))
        other = Ref(rng.choice(known)) if rng.random() < 0.5 else rng.choice(SMALL)
        return self.add(
            Node(self.name("n"), "function", target, (Ref(rng.choice(known)), other)), FUNCTIONS[target].call
        )

    def bare(self) -> bool:
        """A bare tensor."""
        rng = self.rng
        value = self.values[self.pick().node]
        shape = rng.choice((tuple(value.shape[1:]), (1, *value.shape[1:]), (1,), (), (5,), tuple(value.shape[1:2])))
        name = rng.choice(("", "t.")) + self.name("held")
        made = torch.empty(shape, device="meta")
        if rng.random() < 0.25:
            made = made.to(rng.choice((torch.int64, torch.bool, torch.int32)))
        if made.numel() > 5000 or not self.add(Node(self.name("t"), "tensor", name), lambda: made):
            return False
        trained = made.is_floating_point() and rng.random() < 0.6
        self.tensors[name] = nn.Parameter(made) if trained else made
        return True

    def layer(self) -> bool:
        """A layer, or one that is there already."""
        rng, x = self.rng, self.pick()
        if self.layers and rng.random() < 0.1:
            name = rng.choice(list(self.layers))
            return self.add(Node(self.name("l"), "layer", name, (x,)), self.layers[name])
        made = self.made(rng.choice(list(LAYER_TYPES)), self.values[x.node])
        if made is None or sum(value.numel() for value in made.state_dict().values()) > MOST_NUMBERS // 6:
            return False
        name = f"{rng.choice(NAMES)}{len(self.layers)}"
        if not self.add(Node(self.name("l"), "layer", name, (x,)), made):
            return False
        self.layers[name] = made
        return True

    def made(self, kind: str, value: Tensor) -> nn.Module | None:
        """A layer for a value."""
        rng = self.rng
        channels = value.shape[1] if value.ndim > 1 else 1
        pooled = [rng.choice((1, 2, 3)), rng.choice((1, 2)), rng.choice((0, 0, 1))]
        config: dict[str, Any] = {}
        for key in LAYER_TYPES[kind].config:
            if key in ("in_channels", "num_features", "num_channels"):
                config[key] = channels
            elif key == "in_features":
                config[key] = value.shape[-1] if value.ndim else 1
            elif key in ("out_channels", "out_features"):
                config[key] = rng.choice((1, 2, 3, 4, 8, 16, 300))
            elif key in ("kernel_size", "stride", "padding"):
                config[key] = (
                    pooled[("kernel_size", "stride", "padding").index(key)] if rng.random() < 0.9 else self.plain()
                )
            elif key == "normalized_shape":
                config[key] = list(value.shape[rng.choice((-1, 1)) :])
            elif key in ("groups", "num_groups"):
                config[key] = rng.choice((1, 1, channels, 2))
            elif key in ("output_size", "size", "num_parameters", "upscale_factor", "downscale_factor"):
                config[key] = self.plain() if rng.random() < 0.5 else rng.choice((1, 2, channels))
            elif key == "scale_factor":
                config[key] = None if "size" in config else rng.choice((1, 2, 0.5, 300))
            elif key in ("inplace", "affine", "bias", "ceil_mode", "track_running_stats", "elementwise_affine"):
                config[key] = rng.random() < 0.6
            elif rng.random() < 0.2:
                config[key] = rng.choice((*SMALL, 0.5, True, "zeros", "circular"))
        with contextlib.suppress(BrickyardError):
            return build_layer(kind, {key: item for key, item in config.items() if item is not None})
        return None

    def plain(self) -> Any:
        return self.rng.choice(HUGE if self.rng.random() < 0.15 else SMALL)

    def end(self, width: int) -> None:
        """Lead to so many outputs, mostly in the right way."""
        rng = self.rng
        rows = [name for name in self.tensor_names() if self.values[name].ndim and len(self.values[name]) == 2]
        x = Ref(rows[-1]) if rows and rng.random() < 0.95 else self.pick()
        if rng.random() < 0.03:
            self.nodes.append(Node("output", "output", "", (x,)))
            return
        value = self.values[x.node]
        for name, when, target, args in (
            ("real", not value.is_floating_point() and not value.is_complex(), "float", ()),
            ("size", value.is_complex(), "abs", ()),
            ("flat", value.ndim > 2, "flatten", (1,)),
            ("flat", value.ndim < 2, "reshape", ([-1, 1],)),
        ):
            if when and self.add(Node(name, "function", target, (x, *args)), FUNCTIONS[target].call):
                x, value = Ref(name), self.values[name]
        features = value.shape[-1] if value.ndim else 1
        if features * width < MOST_NUMBERS // 2 and value.is_floating_point() and rng.random() < 0.7:
            last = build_layer("Linear", {"in_features": features, "out_features": width}).to(value.dtype)
            if self.add(Node("fc", "layer", "fc", (x,)), last):
                self.layers["fc"], x = last, Ref("fc")
        else:
            self.add(Node("mean", "function", "mean", (x, [1]), {"keepdim": True}), FUNCTIONS["mean"].call)
            self.add(Node("wide", "function", "expand", (Ref("mean"), [-1, width])), FUNCTIONS["expand"].call)
            x = Ref("wide" if "wide" in self.values else x.node)
        self.nodes.append(Node("output", "output", "", (x,)))


def drawn_network(rng: random.Random, image: tuple[int, ...], width: int) -> Network:
    """A network on the meta device."""
    graph = Graph(rng, image)
    steps = rng.choice((0, 1, 2, 3, 5, 8, 12, 20, 20, 60))
    many = rng.random() < 0.03
    for _ in range(3 * steps):
        rng.choice(
            (
                graph.layer,
                graph.layer,
                graph.function,
                graph.function,
                graph.function,
                graph.item,
                graph.number,
                graph.bare,
            )
        )()
        if len(graph.nodes) > steps:
            break
    if many:  # the same step very often
        node = graph.nodes[-1]
        if node.op != "input":
            call = graph.layers.get(node.target) or (FUNCTIONS[node.target].call if node.op == "function" else None)
            for at in range(rng.choice((50, 300, 3000)) if call else 0):
                if not graph.add(Node(f"again{at}", node.op, node.target, node.args, node.kwargs), call):
                    break
    graph.end(width)
    return Network(graph.nodes, graph.layers, graph.tensors).eval()


def filled(network: Network, rng: random.Random) -> Network:
    """The network with numbers, or itself where these are too many."""
    state = network.state_dict()
    if sum(value.numel() for value in state.values()) > MOST_NUMBERS:
        return network
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    scale = rng.choice((0.3, 0.3, 0.3, 0.0, 1e20))
    made = {}
    for name, value in state.items():
        if value.is_floating_point():
            number = torch.randn(value.shape, generator=generator) * scale
            made[name] = number.abs() if name.endswith("running_var") else number
        else:
            made[name] = torch.randint(0, rng.choice((1, 2, 5, 1000)), value.shape, generator=generator).to(value.dtype)
    network.load_state_dict(made, strict=True, assign=True)
    return network


# -- records -------------------------------------------------------------------------------------------------


def drawn_component(rng: random.Random, path: Path) -> None:
    """Write one component."""
    image = rng.choice(LARGE_IMAGES if rng.random() < 0.01 else IMAGES)
    count = rng.choice((1, 2, 3, 4, 10, 200))
    task = rng.sample(range(count), rng.choice((1, min(2, count), min(3, count), count)))
    reject = rng.random() < 0.2
    cut = rng.random() < 0.8
    width = count if reject or not cut else len(task)
    network = filled(drawn_network(rng, image, width), rng)
    spec = network.to_spec()
    names = [f"class {k}" if rng.random() < 0.95 else "class 0" for k in range(count)]
    axes: dict[str, Any] = {}
    skeleton = None
    if rng.random() < 0.6:
        with contextlib.suppress(Exception):
            bones = Network.from_spec(spec)
            Bounds(None).run(bones, image)
            found = analyse(bones, torch.empty(2, *image, device="meta"), purse=Purse(10_000))
            axes = {axis.name: {"size": axis.size, "kept": list(range(axis.size))} for axis in found.axes}
            skeleton = spec
    if rng.random() < 0.2:
        axes |= {f"axis{k}": _axis(rng) for k in range(rng.choice((1, 1, 3, 3, 30, 3000, 5000)))}
    manifest: dict[str, Any] = {
        "kind": "component",
        "classes": [names[k] for k in task],
        "task": task,
        "reject": reject,
        "input_shape": list(image),
        "source": {
            "name": "drawn",
            "sha256": "0" * 64,
            "classes": names,
            "parameters": rng.choice((0, 7, 1 << 60)),
            "flops": 9,
        },
        "axes": axes,
        "output_axis": rng.choice(list(axes) or ["out"]) if cut else None,
        "selection": {
            "parameters": rng.choice((0, 5, 1 << 60)),
            "flops": 5,
            "budget": rng.choice((None, {"flops": 0.5})),
        },
        "preprocessing": _preprocessing(rng, image),
        "heal": {"method": rng.choice(("none", "refit", "distil")), "images": rng.choice((0, 9))},
        "agreement": rng.choice((None, [3, 4], [0, 0], [9, 2])),
        "outputs": "several" if rng.random() < 0.2 and not reject else "one",
        "pinned": [{"axis": "conv", "channels": 3, "reason": "x" * rng.choice((1, 3000))}] * rng.choice((0, 1, 500)),
        "scores": _scores(rng),
        "versions": {"brickyard": "0", "torch": "0", "python": "0"},
        "created": "now",
    }
    if rng.random() < 0.2 and len(task) > 1:
        manifest |= {"members": [task[:2], *([k] for k in task[2:])], "classes": ["both", *manifest["classes"][2:]]}
    if manifest["outputs"] == "several" and rng.random() < 0.5:
        manifest["decision_thresholds"] = [rng.choice((0.1, 0.5, 0.9)) for _ in manifest["classes"]]
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    if rng.random() < 0.6:
        _know(rng, network, manifest, tensors)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 1, 2))):
        change(rng, manifest)
    text = {"manifest": manifest, "network": spec.model_dump(mode="json")}
    text["skeleton"] = skeleton and skeleton.model_dump(mode="json")
    if skeleton is not None and rng.random() < 0.15:
        change(rng, text["skeleton"])
    with contextlib.suppress(ValueError):  # as Brickyard would write it, where it would
        text = ComponentFile.model_validate(text).model_dump(mode="json")
    write(path, {name: value for name, value in tensors.items() if not value.is_meta}, text, overwrite=True)


def _axis(rng: random.Random) -> dict[str, Any]:
    size = rng.choice(HUGE if rng.random() < 0.003 else (1, 3, 16, 64))
    return {"size": size, "kept": sorted({rng.randrange(size) for _ in range(rng.choice((0, 1, 3)))})}


def _preprocessing(rng: random.Random, image: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rng.random() < 0.3 and (len(image) == 3 or rng.random() < 0.1):
        found["size"] = list(image[1:]) if len(image) == 3 else [8, 8]
        found["fit"] = rng.choice(("resize", "crop", "pad", "letterbox"))
        found["crop"] = rng.choice((1.0, 0.875, 0.5, 0.01)) if rng.random() < 0.95 else 1e-9
        if found["fit"] in ("pad", "letterbox"):
            found |= {"crop": 1.0, "fill": rng.choice((0.0, 0.4, 1.0)), "place": rng.choice(("centre", "corner"))}
    if rng.random() < 0.3 and (image[0] in (1, 3) or rng.random() < 0.1) and (len(image) == 3 or rng.random() < 0.1):
        found["channels"] = 1 if rng.random() < 0.1 or image[0] == 1 else 3
    if image[0] == 3 and found.get("channels") != 1 and rng.random() < 0.2:
        found["order"] = "bgr"
    if rng.random() < 0.3:
        count = rng.choice((1, image[0])) if rng.random() < 0.95 else 3
        found |= {"mean": [0.5] * min(9, count), "std": [rng.choice((0.25, 1e-300, 1e300))] * min(9, count)}
    found["unknown"] = rng.random() < 0.05
    return found


def _scores(rng: random.Random) -> dict[str, Any]:
    row = {
        "name": "component",
        "accuracy": 50.0,
        "class_accuracy": 50.0,
        "images": 10,
        "parameters": rng.choice((0, 9)),
        "flops": 9,
    }
    kinds = (
        {},
        {"test": {"rows": [row], "notes": []}},
        {"x": NUMBERS[:9]},
        {f"s{k}": [k] for k in range(500)},
        {"test": {"rows": []}},
    )
    return dict(rng.choice(kinds))


def _know(rng: random.Random, network: Network, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Give a component statistics of its logits and features."""
    count = len(manifest["classes"])
    lists = {"images": [4] * count, "correct": [2] * count, "winning_logit": [rng.choice((1.0, None, 1e30))] * count}
    _, size = reader(network, manifest["input_shape"][0])
    record: dict[str, Any] = {
        "classes": rng.choice((1, count)),
        "size": max(1, min(size, 5000)),
        "rank": rng.choice((1, 2)),
    }
    if rng.random() < 0.5:
        record["depths"] = [_depth(rng, network, name) for name in _mixing(network)[: rng.choice((1, 3))]]
    manifest["statistics"] = {**lists, "mean_logit": [0.5] * count, "familiarity": record}
    manifest["statistics"] |= {
        "margin": rng.choice((None, 1.0, -1.0)),
        "energy": rng.choice((None, [1.0, 0.5], [1e30, 1e-30])),
    }
    with contextlib.suppress(Exception):
        from brickyard.base._statistics import FamiliarityRecord

        blank = Familiarity.blank(FamiliarityRecord.model_validate(record))
        for name, value in blank.state_dict().items():
            tensors[f"familiarity.{name}"] = torch.full(tuple(value.shape), rng.choice((1.0, 0.5, 1e-30, 1e30)))


def _mixing(network: Network) -> list[str]:
    """Layers that mix channels, or all where there are none."""
    names = list(network.layer_names)
    return [name for name in names if getattr(getattr(network.layer(name), "weight", None), "ndim", 0) > 1] or names


def _depth(rng: random.Random, network: Network, name: str) -> dict[str, Any]:
    weight = getattr(network.layer(name), "weight", None)
    size = weight.shape[1] if isinstance(weight, Tensor) and weight.ndim > 1 else 3
    usual = [] if weight is None or weight.ndim < 3 else list(range(2, weight.ndim))
    dims = usual if rng.random() < 0.7 else rng.choice(([], [1], [2, 3], [2], [1, 2], [2, 3, 4]))
    return {"layer": name, "size": size * (2 if dims else 1), "dims": dims}


def change(rng: random.Random, item: Any) -> None:
    """Change one value of a text into another of its kind."""
    places: list[tuple[Any, Any]] = []
    stack = [item]
    while stack:
        holder = stack.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                stack.append(holder[key])
    if not places:
        return
    holder, key = rng.choice(places)
    value = holder[key]
    if isinstance(value, bool):
        holder[key] = not value
    elif isinstance(value, int):
        holder[key] = rng.choice((value + 1, max(0, value - 1), *SMALL[:8], *HUGE))
    elif isinstance(value, float):
        holder[key] = rng.choice((0.0, 1.0, -value, 1e30, 1e-30))
    elif isinstance(value, list) and value:
        rng.choice((value.reverse, value.pop, lambda: value.append(value[0]), lambda: value.extend(value * 50)))()
    elif isinstance(value, dict) and value:
        value.pop(rng.choice(list(value)))
    elif isinstance(value, str):
        holder[key] = rng.choice((value + "x", "x" * 300, "out", "conv0", "class 0"))


def drawn_assembly(rng: random.Random, path: Path, folder: Path) -> None:
    """Write an assembly of drawn components, whose text is then changed."""
    parts = []
    for _ in range(12):
        drawn_component(rng, path)
        with contextlib.suppress(BrickyardError):
            parts.append(by.load(path))
        if len(parts) == rng.choice((2, 2, 3)):
            break
    if not parts:
        return
    if rng.random() < 0.4:
        parts = [parts[0], parts[0]]
    form = rng.choice(("parallel", "parallel", "padded", "grouped", "union"))
    scaling = rng.choice(("none", "log-probability", "logit-mean", "auto", "mahalanobis", "energy"))
    with contextlib.suppress(BrickyardError):
        made = by.assemble(parts, form=form, scaling=scaling, on_duplicate=rng.choice(("rename", "average", "max")))
        made.save(path, overwrite=True)
        text, tensors = read(path)
        for _ in range(rng.choice((0, 1, 1, 2))):
            change(rng, text["manifest"])
        if rng.random() < 0.1:
            text["manifest"] |= {"form": "cascade", "cascade": _cascade(rng, text["manifest"])}
        if rng.random() < 0.1:
            text["shared"] = {"1.fc": "0.fc"}
        write(path, tensors, text, overwrite=True)


def _cascade(rng: random.Random, manifest: dict[str, Any]) -> dict[str, Any]:
    thresholds = [rng.choice((None, 1.0, 5.0)) for _ in manifest["parts"]]
    figures = {"wanted": 0.9, "images": 9, "held_back": 4, "agreement": 1.0, "flops": 0.5}
    return {"thresholds": thresholds, "expected": [0.0] * len(manifest["classes"]), **figures}


def drawn_file(rng: random.Random, path: Path, folder: Path) -> str:
    """Write one file; what it is."""
    path.unlink(missing_ok=True)
    kind = "assembly" if rng.random() < 0.25 else "component"
    if kind == "assembly":
        drawn_assembly(rng, path, folder)
    else:
        drawn_component(rng, path)
    return kind


def digest(path: Path) -> str:
    """The text of a file, for a report."""
    return json.dumps(read(path)[0])[:2000]
