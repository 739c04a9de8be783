"""What is checked of one architecture; every figure comes with an independent way to the same numbers."""

from __future__ import annotations

import html
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import models
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import Graph, trace
from brickyard.network._network import Network
from brickyard.surgery._join import cut, join
from brickyard.surgery._plan import Part
from brickyard.testing import zeroed_output

REMOVED = 0.3
FOREIGNERS = ("torchvision", "timm")

# Loads files where the sources' libraries are not imported, and says whether they give the same. As many threads: sums
# are ordered by them.
LOADER = f"""
import sys, torch
import brickyard as by
from safetensors.torch import load_file
torch.set_num_threads(int(sys.argv[1]))
for line in sys.stdin:
    path, shown = line.rstrip("\\n").split("\\t")
    shown = load_file(shown)
    with torch.no_grad():
        found = by.load(path)(shown["images"].clone())
    assert not set({FOREIGNERS!r}) & set(sys.modules)
    print(torch.equal(found, shown["outputs"]), flush=True)
"""

Report = dict[str, Any]  # the figures of one architecture by name: the columns of the table


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((a - b).abs().max() / b.abs().max())


def images(entry: models.Entry, count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, entry.size, entry.size, generator=generator, dtype=torch.float64).to(dtype)


def drawn_keep(graph: Graph, seed: int) -> dict[str, Tensor]:
    """A random keep-set that removes 30 % of every free axis, at least one channel where there are two."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for axis in graph.free:
        if axis.size > 1:
            kept = axis.size - max(1, round(REMOVED * axis.size))
            keep[axis.name] = torch.randperm(axis.size, generator=generator)[:kept].sort().values
    return keep


def check_surgery(entry: models.Entry, model: nn.Module, report: Report) -> Graph:
    """Tracing, cutting and padding, in float64."""
    x = images(entry, 2, 0)
    start = time.perf_counter()
    graph = trace(model, x)
    report["trace_s"] = time.perf_counter() - start
    report["axes"], report["steps"], report["free"] = len(graph.axes), len(graph.network.nodes), graph.free_share
    report["pinned"] = dict(Counter(reason_kind(pin.reason) for pin in graph.pinned()))
    x = images(entry, 3, 1)  # another batch than was traced
    keeps = [drawn_keep(graph, seed) for seed in (0, 1)]
    networks = [cut(graph, keep) for keep in keeps]
    with torch.no_grad():
        whole = model(x)
        report["traced"] = relative(graph.network(x), whole)
        outputs = [network(x) for network in networks]
        report["zeroed"] = relative(outputs[0], zeroed_output(graph, keeps[0], x))
        report["control"] = relative(outputs[0], whole)
        parts = [Part(graph, keep, network) for keep, network in zip(keeps, networks, strict=True)]
        report["padded"] = relative(join(parts)(x), torch.cat(outputs, 1))
    return graph


def reason_kind(reason: str) -> str:
    """A reason without the name of the layer, so that like reasons are counted together."""
    return " ".join(word for word in reason.split() if not word.startswith(("'", "(")))


def check_component(entry: models.Entry, model: nn.Module, report: Report, folder: Path) -> by.Component:
    """Locating, disassembling with refit, and the file, as a user does it, in float32."""
    data = images(entry, 2 * models.CLASSES, 2, torch.float32), torch.arange(2 * models.CLASSES) % models.CLASSES
    relevance = by.locate(model, data, keep_sums=False)
    task = [2, 0, *range(3, models.CLASSES), 1]
    component = by.disassemble(model, relevance, task=task, budget=by.Budget(flops=0.6), select="mda")
    report["flops"] = component.manifest.selection.flops / component.manifest.source.flops
    graph = relevance.graph(model)
    keep = {name: torch.tensor(axis.kept) for name, axis in component.manifest.axes.items()}
    with torch.no_grad():
        goal = model(data[0])[:, task]
        energy = (goal - goal.mean(0)).norm()
        report["bare"] = float((cut(graph, keep)(data[0]) - goal).norm() / energy)
        report["refit"] = float((component(data[0]) - goal).norm() / energy)
    report["file"] = loads_elsewhere(component, data[0][:2], folder)
    return component


@cache
def elsewhere(threads: int) -> subprocess.Popen[str]:
    """A process without the sources' libraries: one for all files, as it takes seconds to start."""
    command = [sys.executable, "-c", LOADER, str(threads)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def loads_elsewhere(component: by.Component, x: Tensor, folder: Path) -> bool:
    """Whether the file gives the same outputs, bit for bit, in a process without the source's library."""
    with torch.no_grad():
        outputs = component(x)
    path = component.save(folder / "component.safetensors", overwrite=True)
    save_file({"images": x.contiguous(), "outputs": outputs}, folder / "shown.safetensors")
    loader = elsewhere(torch.get_num_threads())
    print(path, folder / "shown.safetensors", sep="\t", file=loader.stdin, flush=True)
    said = loader.stdout.readline() if loader.stdout else ""
    if not said:
        raise RuntimeError(f"{path} does not load elsewhere")
    return said == "True\n"


def check_onnx(entry: models.Entry, component: by.Component, folder: Path) -> float:
    """How far onnxruntime is from torch, on a batch of another size than was exported."""
    import onnxruntime

    network: Network = component.network
    path = str(folder / "component.onnx")
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        network,
        (images(entry, 2, 3, torch.float32),),
        path,
        dynamo=True,
        external_data=False,
        dynamic_shapes=(batch,),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = images(entry, 3, 4, torch.float32)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        return relative(torch.from_numpy(found), network(x))


def check(entry: models.Entry, folder: Path, *, onnx: bool, pruning: bool) -> Report:
    """Everything of one architecture."""
    start = time.perf_counter()
    report: Report = {"title": entry.title, "size": entry.size, "onnx": None, "pruning": ""}
    model = models.build(entry).double()
    graph = check_surgery(entry, model, report)
    if pruning:
        import second_opinion

        report["pruning"] = second_opinion.compare(entry, model, graph)
    component = check_component(entry, model.float(), report, folder)
    if onnx:
        report["onnx"] = check_onnx(entry, component, folder)
    report["seconds"] = time.perf_counter() - start
    return report


def told(text: str, most: int) -> str:
    """The beginning of a message, in one line, of which a page takes nothing for HTML."""
    return html.escape(" ".join(text.split())[:most], quote=False)


def wrong(report: dict[str, Any]) -> list[str]:
    """What of a report is not as it must be."""
    if "error" in report:
        return [report["error"]]
    found = [f"{key} error {report[key]:.1e}" for key in ("traced", "zeroed", "padded") if not report[key] < 1e-9]
    if not report["control"] > 1e-6:
        found.append("the cut changed nothing: the check is empty")
    if not report["refit"] < report["bare"]:
        found.append(f"refit error {report['refit']:.2f} is not below {report['bare']:.2f}")
    if not report["file"]:
        found.append("the file gives other outputs elsewhere")
    if report["onnx"] is not None and not report["onnx"] < 1e-4:
        found.append(f"onnx error {report['onnx']:.1e}")
    return found
