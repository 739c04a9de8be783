"""Small valid files of every kind, to start from."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import brickyard as by
from brickyard import gnn as graphnets
from brickyard.sources._loading import load_source, save_source
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, random_graph, randomised
from brickyard.yard._index import INDEX
from brickyard.yard._yard import Yard

DATA = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 4
RECIPES = [
    """\
brickyard: 1
name: two digits
sources:
  a: {network: "zoo:lenet5", data: "digits", locate: {per-class: 5, alpha: 0.3}}
  b:
    train: {network: "zoo:lenet5", data: "digits?split=train&classes=0-4", epochs: 2, lr: 0.1}
components:
  low: {source: a, task: 0-2, flops: 0.5, heal: refit, allocation: uniform}
  high: {source: b, task: [3, 4], reject: true, alpha: 0.2}
assembly: {scaling: logit-mean, form: parallel, parts: [low, high]}
evaluate:
  data: {a: digits, b: digits}
outputs: {folder: out}
""",
    """\
brickyard: 1
license: CC0-1.0
x: &x {source: a, task: "1"}
sources:
  a:
    network: zoo:cnn?width=0.5
    data: digits
    class-names: a, b, c
    preprocessing: {size: 8x8, fit: pad, mean: 0.5, std: [0.25]}
components:
  one: {source: a, task: "0", parameters: 0.4, select: l1, round-to: 8}
  two: {source: a, task: "1-2", heal-images: 10, ridge: 0.01, seed: 7}
evaluate: {data: digits, max-images: 100, latency: false}
""".replace('x: &x {source: a, task: "1"}\n', ""),
]


@dataclass
class Seed:
    """One valid file.

    Attributes:
        name: What it is.
        ending: Of its file name.
        content: Its bytes.
        head: The header of a safetensors file, with the text under `__metadata__` parsed.
        body: Its bytes after the header.
        key: Of its text in the header.
    """

    name: str
    ending: str
    content: bytes
    head: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""
    key: str = ""

    @property
    def header(self) -> dict[str, Any]:
        """A copy of its header."""
        return copy.deepcopy(self.head)

    @property
    def text(self) -> Any:
        """Its JSON text."""
        return json.loads(self.head["__metadata__"][self.key])


def parse(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file, read by hand."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def built(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    """A safetensors file from its parts, which may be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + body


def seeds(folder: Path) -> dict[str, list[Seed]]:
    """All seeds by what reads them."""
    made: dict[str, Any] = {}
    small = lambda: chain(4, (3, 4))  # noqa: E731
    nets = {
        "chain": small,
        "residual": lambda: Residual(4, 3, 2),
        "branches": lambda: Branches(4, (2, 2, 2)),
        "squeeze": lambda: SqueezeExcite(4, 3, 2),
    }
    half = by.Budget(parameters=0.7)
    for name, make in nets.items():
        model = make()
        found = by.locate(model, DATA)
        made[name] = by.disassemble(model, found, task=["1", "3"], images=DATA, budget=half, reject=name == "squeeze")
        if name == "chain":
            made["relevance"] = found
            made["relevance-without-sums"] = by.locate(model, DATA, keep_sums=False)
            made["uncut"] = by.disassemble(model, found, task=["0"], budget=by.Budget(parameters=1.0))
    pair = []
    for task, seed in ((("1", "3"), 0), (("0",), 1)):
        model = randomised(_tiny(), seed)
        found = by.locate(model, DATA)
        pair.append(by.disassemble(model, found, task=list(task), images=DATA, budget=half, reject=True))
    found = by.locate(_tiny(), DATA)
    apart = [by.disassemble(_tiny(), found, task=[k], images=DATA) for k in ("0", "2")]
    made["parallel"] = by.assemble(pair)
    made["gated"] = by.assemble(pair, scaling="mahalanobis", votes=True)
    made["few-shot"] = by.assemble(pair, scaling="lda", images=[DATA, DATA])
    made["padded"] = by.assemble(pair, form="padded", scaling="log-probability")
    made["grouped"] = by.assemble(pair, form="grouped", scaling="logit-mean")
    made["union"] = by.assemble(apart, form="union")
    made["fused"] = made["chain"].fused()
    files = [_seed(name, item.save(folder / f"{name}.safetensors"), "brickyard") for name, item in made.items()]
    return {
        "file": files,
        "entry": [seed for seed in files if seed.name in ("chain", "residual", "uncut")],
        "graph": _graphs(folder),
        "weights": _weights(folder),
        "recipe": [Seed(f"recipe-{i}", ".yaml", text.encode()) for i, text in enumerate(RECIPES)],
        "index": [_index(folder, made)],
    }


def _tiny() -> nn.Module:
    """Few steps, for files that hold several networks."""
    layers = nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)
    return randomised(nn.Sequential(*layers))


def _seed(name: str, path: Path, key: str) -> Seed:
    content = path.read_bytes()
    header, body = parse(content)
    return Seed(name, ".safetensors", content, header, body, key)


def _graphs(folder: Path) -> list[Seed]:
    """Parts of graph networks, which lie in files of a kind of their own."""
    made: dict[str, Any] = {}
    graph = random_graph(24, 6)
    for kind in ("gcn", "gat", "sage"):
        source = graphnets.random_network(kind, 6, 4, 4)
        found = graphnets.locate(source, graph, nodes=range(16))
        made[kind] = graphnets.disassemble(source, found, task=[1, 3])
        if kind == "gcn":
            other = graphnets.disassemble(source, found, task=[0])
            made["graph-parallel"] = graphnets.assemble([made[kind], other])
            made["graph-padded"] = graphnets.assemble([made[kind], other], form="padded")
    return [_seed(name, item.save(folder / f"{name}.safetensors"), "brickyard") for name, item in made.items()]


def _weights(folder: Path) -> list[Seed]:
    source = load_source("zoo:lenet5?classes=3&width=0.5", random_weights=True)
    path = save_source(
        folder / "source.safetensors", source, arch="lenet5", options={"width": 0.5, "classes": 3}, scores={"top1": 0.5}
    )
    found = [_seed("source", path, "brickyard-source")]
    state = source.model.state_dict()
    for name, value in {"plain": state, "nested": {"state_dict": state, "epoch": 3}}.items():
        torch.save(value, folder / f"{name}.pt")
        found.append(Seed(name, ".pt", (folder / f"{name}.pt").read_bytes()))
    return found


def _index(folder: Path, made: dict[str, Any]) -> Seed:
    yard = Yard(folder / "yard", create=True)
    for name in ("chain", "residual"):
        yard.add(made[name], name)
    yard.entries()
    return Seed("index", ".sqlite", (folder / "yard" / INDEX).read_bytes())
