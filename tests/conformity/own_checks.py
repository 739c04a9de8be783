"""What is checked of an own module: is it traced, cut exactly, saved, loaded, exported; and how much of it is free."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import checks
import numpy as np
import torch
from own_modules import CLASSES, SIZE, Own
from torch import Tensor, nn

import brickyard as by
from brickyard.axes._graph import Graph, trace
from brickyard.surgery._cost import CostModel
from brickyard.surgery._join import cut
from brickyard.testing import zeroed_output

Report = dict[str, Any]


def images(count: int, seed: int, dtype: torch.dtype, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def made(own: Own) -> nn.Module:
    """The network with random weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return own.make().eval()


def free_parameters(graph: Graph) -> float:
    """The share of parameters that lie along a free axis: those that go with all of its channels."""
    mask = np.ones(graph.channels, dtype=bool)
    whole = CostModel(graph)(mask).parameters
    for axis in graph.free:
        mask[axis.channels] = False
    return 1 - CostModel(graph)(mask).parameters / whole


def check(own: Own, *, onnx: bool) -> Report:
    """Everything of one own module; what stops it is in "stage" and "reason"."""
    report: Report = {
        "name": own.name,
        "stage": "",
        "reason": "",
        "saved": False,
        "onnx": None,
        "sizes": None,
        "free": 0.0,
    }
    start = time.perf_counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            _check(own, report, Path(folder), onnx)
        except by.BrickyardError as error:
            report["reason"] = f"{error.code}: {error}"
        except Exception as error:
            report["reason"] = f"raw {type(error).__name__}: {error}"
    report["seconds"] = time.perf_counter() - start
    if not report["reason"]:
        report["stage"] = ""
    return report


def _check(own: Own, report: Report, folder: Path, onnx: bool) -> None:
    report["stage"] = "trace"
    model = made(own).double()
    x = images(3, 1, torch.float64)
    start = time.perf_counter()
    graph = trace(model, images(2, 0, torch.float64))
    report["trace_s"] = time.perf_counter() - start
    report["foreign"] = sorted(graph.network.foreign)
    report["free"] = free_parameters(graph)
    report["pinned"] = sorted(
        {reason for axis in graph.axes if axis.pinned and not axis.output for reason in axis.pinned}
    )
    report["stage"] = "cut"
    with torch.no_grad():
        keep = checks.drawn_keep(graph, 0)
        part = cut(graph, keep)
        wanted = zeroed_output(graph, keep, x)
        report["traced"] = checks.relative(graph.network(x), model(x))
        report["zeroed"] = checks.relative(part(x), wanted)
        report["control"] = checks.relative(part(x), model(x))
        if own.sizes and _takes(model, bigger := images(2, 2, torch.float64, 24)):
            try:
                report["sizes"] = checks.relative(part(bigger), zeroed_output(graph, keep, bigger))
                report["sizes"] = max(report["sizes"], checks.relative(graph.network(bigger), model(bigger)))
            except RuntimeError as error:
                report["sizes"] = str(error).splitlines()[0][:100]
    report["stage"] = "component"
    model = made(own)
    data = images(2 * CLASSES, 3, torch.float32), torch.arange(2 * CLASSES) % CLASSES
    component = by.disassemble(model, by.locate(model, data), task=[0, 2, 3], budget=by.Budget(flops=0.75))
    report["stage"] = "save"
    loaded = by.load(component.save(folder / "part.safetensors"))
    with torch.no_grad():
        report["saved"] = torch.equal(component(data[0]), loaded(data[0]))
    report["stage"] = "python"
    from brickyard.export._module import export_module

    export_module(component, folder / "part.py")
    if onnx:
        report["stage"] = "onnx"
        report["onnx"] = exported(component, data[0][:3], folder)


def _takes(model: nn.Module, x: Tensor) -> bool:
    try:
        model(x)
    except (RuntimeError, IndexError, ValueError):
        return False
    return True


def exported(component: by.Component, x: Tensor, folder: Path) -> float:
    """How far onnxruntime is from torch, on a batch of another size than was exported."""
    import onnxruntime

    path = str(folder / "part.onnx")
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        component.network, (x[:2],), path, dynamo=True, external_data=False, dynamic_shapes=batch, verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        return checks.relative(torch.from_numpy(found), component.network(x))
