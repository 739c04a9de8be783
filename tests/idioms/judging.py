"""What comes of one drawn network: right, refused with a reason, wrong, or an error that is none of the library's."""

from __future__ import annotations

import random
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import brickyard as by
from brickyard.axes import Graph, trace
from brickyard.surgery import Part, cut, join
from idioms.drawing import Drawn, drawn, images
from idioms.oracle import InexpressibleError, expected

TOLERANCE = 1e-7
Cut = Callable[[Graph, dict[str, Tensor]], nn.Module]


@dataclass
class Verdict:
    """What came of one network.

    Attributes:
        outcome: "right", "refused", "wrong", "raw error", or "not drawn" if the network itself does not run.
        what: What failed, or why it was refused.
        code: Of a refusal.
        axes: How many channels its axes have, the input and the class outputs aside, and how many are free.
        cuts: How many cuts were compared, and how many could not be.
        control: Whether cutting changed an output: else the comparison says little.
        saved: Whether the component was saved and read: "yes", "refused: code", or "" if not tried.
    """

    outcome: str
    what: str = ""
    code: str = ""
    axes: tuple[int, int] = (0, 0)
    cuts: tuple[int, int] = (0, 0)
    control: bool = False
    saved: str = ""


def running(seed: int) -> tuple[Drawn, nn.Module] | None:
    """The network of that number, if the model itself runs and treats every image by itself."""
    net = drawn(seed)
    return (net, model) if (model := runs(net)) is not None else None


def runs(net: Drawn) -> nn.Module | None:
    try:
        model = net.model()
        x = images(3, net.seed)
        with torch.no_grad():
            together, alone = model(x.clone()), torch.cat([model(one.clone()) for one in x.split(1)])
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, AssertionError):
        return None
    usable = together.ndim == 2 and together.shape == alone.shape and bool(together.isfinite().all())
    return model if usable and torch.allclose(together, alone) and float(together.abs().max()) < 1e6 else None


def judged(net: Drawn, model: nn.Module, *, save: bool = False, cutting: Cut = cut) -> Verdict:
    """Trace, cut, join and save a network, and compare each with the model."""
    found = Verdict("right")
    stage = "trace"
    try:
        with warnings.catch_warnings(), torch.random.fork_rng([]):
            warnings.simplefilter("ignore")
            for stage, act in (("trace", _traced), ("cut", _cuts), ("join", _joined)):
                problem = act(found, net, model, cutting)
                if problem:
                    found.outcome, found.what = "wrong", f"{stage}: {problem}"
                    return found
            if save:
                stage = "save"
                if problem := _saved(found, net, model):
                    found.outcome, found.what = "wrong", f"{stage}: {problem}"
    except by.BrickyardError as error:
        found.outcome, found.code, found.what = "refused", error.code, f"{stage}: {error}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        found.outcome = "raw error"
        found.what = f"{stage}: {type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"
    return found


def _apart(found: Tensor, wanted: Tensor) -> str:
    """How two outputs differ, or ""."""
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)} and not {tuple(wanted.shape)}"
    largest = float(wanted.abs().nan_to_num(posinf=0.0).max())  # 0 / 0 where a norm divides by nothing
    if torch.allclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True):
        return ""
    return f"differs by {float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)):.1e}"


def _logits(graph: Graph, values: Tensor) -> Tensor:
    """The model's outputs from the logits in which its graph ends."""
    for step in graph.ending.split(" and ") if graph.ending else ():
        act = {"softmax": lambda v: v.softmax(1), "log_softmax": lambda v: v.log_softmax(1), "log": torch.log}
        act |= {"sigmoid": torch.sigmoid, "probabilities": torch.exp}
        values = act[step](values)
    return values


def keep_sets(graph: Graph, seed: int) -> list[dict[str, Tensor]]:
    """One channel of one axis dropped; and about half of all axes."""
    rng = random.Random(seed)
    free = [axis for axis in graph.free if axis.size > 1]
    if not free:
        return []
    one = rng.choice(free)
    gone = rng.randrange(one.size)
    half = {
        axis.name: torch.tensor(sorted(rng.sample(range(axis.size), max(1, (axis.size + rng.randint(0, 1)) // 2))))
        for axis in free
    }
    return [{one.name: torch.tensor([c for c in range(one.size) if c != gone])}, half]


_GRAPHS: dict[int, Graph] = {}
_MADE: list[nn.Module] = []  # the cuts of the last network


def _traced(found: Verdict, net: Drawn, model: nn.Module, cutting: Cut) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = trace(model, images(2, net.seed + 1))
    _GRAPHS.clear()
    _GRAPHS[net.seed] = graph
    if any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()):
        return "the model changed"
    inner = [
        a
        for a in graph.axes
        if not a.output and a.writers != (graph.input_name,) and "class outputs" not in str(a.pinned)
    ]
    found.axes = sum(a.size for a in inner), sum(a.size for a in inner if not a.pinned)
    x = images(3, net.seed)
    with torch.no_grad():
        whole = cutting(graph, {})
        for batch in (x, x[:1]):
            if apart := _apart(_logits(graph, whole(batch.clone())), model(batch.clone())):
                return f"with nothing cut it {apart}"
    return ""


def _cuts(found: Verdict, net: Drawn, model: nn.Module, cutting: Cut) -> str:
    graph = _GRAPHS[net.seed]
    done, skipped = 0, 0
    _MADE.clear()
    x = images(3, net.seed)
    with torch.no_grad():
        for keep in keep_sets(graph, net.seed):
            small = cutting(graph, keep)
            _MADE.append(small)
            for batch in (x, x[:1]):
                try:
                    wanted = expected(model, graph, keep, batch)
                except InexpressibleError:
                    skipped += 1
                    break
                if apart := _apart(_logits(graph, small(batch.clone())), wanted):
                    return f"the cut {apart} on {len(batch)} images, keeping {_short(keep)}"
                done += len(batch) > 1
                found.control |= bool(_apart(wanted, model(batch.clone())))
    found.cuts = done, skipped
    return ""


def _joined(found: Verdict, net: Drawn, model: nn.Module, cutting: Cut) -> str:
    graph = _GRAPHS[net.seed]
    sets = keep_sets(graph, net.seed)
    if len(sets) < 2 or graph.output is None:
        return ""
    x = images(3, net.seed)
    with torch.no_grad():
        both = join([Part(graph, keep) for keep in sets])
        for batch in (x, x[:1]):
            if apart := _apart(both(batch.clone()), torch.cat([small(batch.clone()) for small in _MADE], 1)):
                return f"two cuts side by side: the padded one {apart}"
    return ""


def _saved(found: Verdict, net: Drawn, model: nn.Module) -> str:
    """A component, written to a file and read again."""
    classes = net.widths[1]
    data = images(2 * classes, net.seed), torch.arange(2 * classes) % classes
    try:
        relevance = by.locate(model, data)
        component = by.disassemble(model, relevance, task=[0, 1], budget=by.Budget(flops=0.7), heal="none")
    except by.BrickyardError as error:
        found.saved = f"refused: {error.code}"
        if error.code in ("surgery-check-failed",):
            raise
        return ""
    x = images(3, net.seed)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            path = component.save(Path(folder) / "part.safetensors")
        except by.BrickyardError as error:
            found.saved = f"refused: {error.code}"
            return ""
        again = by.load(path)
        found.saved = "yes"
        for batch in (x, x[:1]):
            if not torch.equal(component(batch.clone()), again(batch.clone())):
                return "the component read from its file differs"
    return ""


def _short(keep: dict[str, Tensor]) -> str:
    return ", ".join(f"{name}: {channels.tolist()}" for name, channels in keep.items())[:300]


def minimal(net: Drawn, same: Callable[[Verdict], bool], **options: Any) -> Drawn:
    """A network with as few idioms as still show the same."""
    place = 0
    while place < len(net.parts):
        less = net.without(place)
        model = runs(less)
        if model is not None and same(judged(less, model, **options)):
            net = less
        else:
            place += 1
    return net
