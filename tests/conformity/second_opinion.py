"""A second opinion: Torch-Pruning cuts the same channels, and the outputs are compared."""

from __future__ import annotations

import copy
import signal
import warnings

import checks
import models
import numpy as np
import torch
from torch import nn

from brickyard.axes._graph import Graph
from brickyard.surgery._join import cut

PATIENCE = 120  # seconds; with more of them, one network has taken all memory of a machine with 24 GiB


def compare(entry: models.Entry, model: nn.Module, graph: Graph) -> str:
    """What Torch-Pruning gives: "agrees (...)", "differs (...)" or "fails (...)"."""
    keep = checks.drawn_keep(graph, 0)
    x = checks.images(entry, 2, 1)
    with torch.no_grad():
        expected = cut(graph, keep)(x)
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = _prune(copy.deepcopy(model), graph, keep, checks.images(entry, 2, 0))
        with torch.no_grad():
            found = pruned(x)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:80]
        return f"fails ({type(error).__name__}: {text})"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    difference = checks.relative(found, expected)
    return f"{'agrees' if difference < 1e-6 else 'differs'} ({difference:.0e})"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"no answer within {PATIENCE} s")


def _prune(model: nn.Module, graph: Graph, keep: dict[str, torch.Tensor], example: torch.Tensor) -> nn.Module:
    """Cut every free axis at the first layer that writes it; Torch-Pruning finds what else that touches."""
    import torch_pruning as tp

    graph_of_tp = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    dropped = np.zeros(graph.channels, dtype=bool)
    for axis in graph.free:
        if axis.name in keep:
            dropped[axis.channels] = True
            dropped[axis.start + keep[axis.name].numpy()] = False
    modules = dict(model.named_modules())
    done = np.zeros(graph.channels, dtype=bool)
    for record in graph.dims:
        if record.role != "out" or record.owner not in modules:
            continue
        layer = modules[record.owner]
        places = np.flatnonzero(dropped[record.atoms] & ~done[record.atoms]).tolist()
        done[record.atoms] = True
        if not places:
            continue
        function = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
        group = graph_of_tp.get_pruning_group(layer, function, idxs=places)
        group.prune()
    missed = [axis.name for axis in graph.free if axis.name in keep and not done[axis.channels].all()]
    if missed:
        raise NotImplementedError(f"{len(missed)} axes have no layer of the model to cut at")
    return model
