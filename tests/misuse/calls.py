"""Every public call that takes a model, by name, and how it is made: rows for the tables of states and interrupts."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import brickyard as by
from brickyard import gnn
from brickyard.assembly import Refined, refine
from brickyard.axes import trace
from brickyard.base._options import TrainingOptions
from brickyard.evaluation import faithfulness, features, probe
from brickyard.export import export_html, export_module, export_onnx, export_state_dict, save_pretrained, torch_program
from brickyard.inputs import ImageData
from brickyard.network import fingerprint, fuse
from brickyard.network._network import kind
from brickyard.reports import model_card, report, write_report
from brickyard.sources import Source, save_source
from brickyard.testing import Detector, Residual, randomised, zeroed_output
from brickyard.training import accuracy, distil, train, train_source
from brickyard.yard import Yard
from misuse.world import DATA, X, Y

ROWS = (X, torch.eye(4)[Y].long())


@dataclass
class Models:
    """What calls are made with: nothing here is changed by any of them."""

    source: nn.Module
    relevance: by.Relevance
    component: by.Component
    other: by.Component
    loaded: by.Component
    assembly: by.Assembly
    cascade: by.Assembly
    several: by.Component
    several_assembly: by.Assembly
    nodes: Any
    node_relevance: Any
    node_part: Any
    node_assembly: Any
    detector: nn.Module
    found: by.Relevance
    objects: by.Component
    all_objects: by.Assembly
    refined: Refined
    untrained: list[nn.Module]
    folder: Path

    @property
    def modules(self) -> list[nn.Module]:
        return [value for value in vars(self).values() if isinstance(value, nn.Module)]

    def place(self, name: str) -> Path:
        """Where a call may write: nothing is there yet."""
        place = self.folder / "written"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place / name


def graph() -> Any:
    from brickyard.testing import random_graph

    return random_graph()


def make_models(folder: Path) -> Models:
    source: nn.Module = Residual()
    relevance = by.locate(source, DATA, per_class=3)
    component = by.disassemble(source, relevance, task=["1", "3"], budget=by.Budget(flops=0.7))
    other = by.disassemble(source, relevance, task=["0"])
    path = component.save(folder / "component.safetensors", overwrite=True)
    loaded = by.load(path)
    assert isinstance(loaded, by.Component)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assembly = by.assemble([component, other], scaling="lda", images=[DATA, DATA])
        cascade = by.assemble([component, other], form="cascade", calibration=X.repeat(4, 1, 1, 1), agreement=0.8)
        again = by.locate(source, ROWS, outputs="several", per_class=3)
        several = by.disassemble(source, again, task=["1", "3"])
    nodes = gnn.random_network("gcn", 12, 8, 4)
    located = gnn.locate(nodes, graph(), nodes=range(40))
    parts = [gnn.disassemble(nodes, located, task=task) for task in ([1, 3], [0])]
    whole = gnn.assemble(parts)
    several_assembly = by.assemble([several], scaling="none")
    detector = Detector()
    found = by.locate(detector, ROWS, outputs=detector.boxes, per_class=3)
    objects = by.disassemble(detector, found, task=["1", "3"], budget=by.Budget(flops=0.8), select="l1")
    all_objects = by.assemble([objects, by.disassemble(detector, found, task=["0"], heal="none")])
    return Models(
        *(source, relevance, component, other, loaded, assembly, cascade, several, several_assembly),
        *(nodes, located, parts[0], whole, detector, found, objects, all_objects),
        *(refine(objects, {"1": _namer(component)}), [randomised(Residual(2))], folder),
    )


def _namer(component: by.Component) -> by.Component:
    """A classifier for pictures of any size, with names of its own."""
    return component.with_preprocessing(by.Preprocessing(size=(8, 8))).renamed({"1": "one", "3": "three"})


def _data() -> ImageData:
    return ImageData(X, Y, ("0", "1", "2", "3"), "drawn")


def _train(m: Models) -> Any:
    """The model that is trained is the call's own to change; its teacher is not."""
    with torch.inference_mode(False):
        own = copy.deepcopy(m.untrained[0])
    data = ImageData(X[Y % 2 == 1], Y[Y % 2 == 1] // 2, m.component.classes, "drawn")
    return train(own, data, preprocessing=by.Preprocessing(), epochs=1, teacher=m.component), own


def _trained() -> Any:
    return train_source("lenet5?width=0.25", _data(), preprocessing=by.Preprocessing(size=(16, 16)), epochs=1)


def _yard(m: Models) -> Yard:
    yard = Yard(m.place("yard"), create=True)
    for name, part in (("small", m.component), ("other", m.other)):
        yard.add(part, name)
    return yard


CALLS: dict[str, Callable[[Models], Any]] = {
    "locate": lambda m: by.locate(m.source, DATA, per_class=2),
    "locate of a component": lambda m: by.locate(m.component, (X, Y % 2), per_class=2),
    "disassemble": lambda m: by.disassemble(m.source, m.relevance, task=["1", "3"]),
    "disassemble, by damage": lambda m: by.disassemble(
        m.source, m.relevance, task=["1"], budget=by.Budget(flops=0.6), select="damage"
    ),
    "disassemble, by taylor": lambda m: by.disassemble(
        m.source, m.relevance, task=["1"], budget=by.Budget(flops=0.6), select="taylor"
    ),
    "disassemble, distilled": lambda m: by.disassemble(m.source, m.relevance, task=["1", "3"], heal="refit"),
    "assemble": lambda m: by.assemble([m.component, m.other]),
    "assemble, padded": lambda m: by.assemble([m.component, m.other], form="padded"),
    "assemble, affine": lambda m: by.assemble([m.component, m.other], scaling="affine", images=[DATA, DATA]),
    "assemble, lda": lambda m: by.assemble([m.component, m.other], scaling="lda", images=[DATA, DATA]),
    "assemble, cascade": lambda m: by.assemble(
        [m.component, m.other], form="cascade", calibration=X.repeat(4, 1, 1, 1), agreement=0.8
    ),
    "assemble, budget": lambda m: by.assemble([m.component, m.other], budget=by.Budget(flops=0.9), calibration=[X, X]),
    "evaluate": lambda m: by.evaluate(m.component, DATA, source=m.source, latency=False, including_calibration=True),
    "evaluate, with latency": lambda m: _untimed(
        by.evaluate(m.component, DATA, source=m.source, latency=True, including_calibration=True)
    ),
    "evaluate of a loaded one": lambda m: by.evaluate(m.loaded, DATA, latency=False, including_calibration=True),
    "evaluate of an assembly": lambda m: by.evaluate(
        m.assembly, [DATA, DATA], source=m.source, latency=False, including_calibration=True
    ),
    "evaluate of an assembly, with latency": lambda m: _untimed(
        by.evaluate(m.assembly, [DATA, DATA], latency=True, including_calibration=True)
    ),
    "evaluate of a cascade": lambda m: by.evaluate(m.cascade, [DATA, DATA], latency=False, including_calibration=True),
    "finetune": lambda m: by.finetune(m.component, DATA, training=TrainingOptions(epochs=1), teacher=m.source),
    "finetune of an assembly": lambda m: by.finetune(m.assembly, [DATA, DATA], training=TrainingOptions(epochs=1)),
    "Component.predict": lambda m: m.component.predict(X),
    "Component.predict_proba": lambda m: m.component.predict_proba(X),
    "Component.judge": lambda m: m.component.judge(X).verdicts(),
    "Component.strangeness": lambda m: m.component.strangeness(X),
    "Component.score": lambda m: m.component.score(X[Y == 1], ["1"] * 3),
    "locate of a detector": lambda m: by.locate(m.detector, ROWS, outputs=m.found.boxes, per_class=2),
    "disassemble of a detector": lambda m: by.disassemble(
        m.detector, m.found, task=["1"], budget=by.Budget(flops=0.8), select="damage"
    ),
    "assemble detectors": lambda m: by.assemble([m.objects]),
    "Component.detect": lambda m: m.objects.detect(X, score=0.1),
    "Component.predict of a detector": lambda m: m.objects.predict(X),
    "Assembly.detect": lambda m: m.all_objects.detect(X, score=0.1),
    "Component.fused": lambda m: m.component.fused(),
    "Component.renamed": lambda m: m.component.renamed({"3": "three"}),
    "Component.save": lambda m: m.component.save(m.place("part.safetensors")),
    "Component.with_decision_thresholds": lambda m: m.several.with_decision_thresholds(0.7),
    "Component.with_manifest": lambda m: m.component.with_manifest(),
    "Component.with_preprocessing": lambda m: m.component.with_preprocessing(by.Preprocessing(mean=(0.5,), std=(1.0,))),
    "Component.with_scores": lambda m: m.component.with_scores({"mine": {}}),
    "Assembly.predict": lambda m: m.assembly.predict(X),
    "Assembly.predict of a cascade": lambda m: m.cascade.predict(X),
    "Assembly.predict_proba": lambda m: m.assembly.predict_proba(X),
    "Assembly.judge": lambda m: m.assembly.judge(X).verdicts(),
    "Assembly.strangeness of a cascade": lambda m: m.cascade.strangeness(X),
    "Assembly.score": lambda m: m.assembly.score(X[Y == 1], ["1"] * 3),
    "Assembly.fused": lambda m: m.assembly.fused(),
    "Assembly.unshared": lambda m: m.assembly.unshared(),
    "Assembly.renamed": lambda m: m.assembly.renamed({"3": "three"}),
    "Assembly.save": lambda m: m.assembly.save(m.place("whole.safetensors")),
    "Assembly.with_decision_thresholds": lambda m: m.several_assembly.with_decision_thresholds(0.7),
    "Assembly.with_manifest": lambda m: m.assembly.with_manifest(),
    "assembly.refine": lambda m: refine(m.objects, {"1": _namer(m.component)}).classes,
    "assembly.Refined.detect": lambda m: [list(one) for one in m.refined.detect(X, score=0.01)],
    "assembly.Refined.predict": lambda m: m.refined.predict(X),
    "assembly.Refined.save": lambda m: m.refined.save(m.place("refined.safetensors")),
    "Assembly.with_scaling": lambda m: m.assembly.with_scaling(*_scaling(m)),
    "Relevance.check_source": lambda m: m.relevance.check_source(m.source),
    "Relevance.graph": lambda m: str(m.relevance.graph(m.source)),
    "Relevance.save": lambda m: m.relevance.save(m.place("relevance.safetensors")),
    "load": lambda m: by.load(m.folder / "component.safetensors"),
    "axes.trace": lambda m: str(trace(m.source, X[:2])),
    "evaluation.faithfulness": lambda m: faithfulness(m.source, m.relevance, [1, 3], DATA, including_calibration=True),
    "evaluation.features": lambda m: features(m.component, DATA),
    "export.export_html": lambda m: _files(export_html(m.component, m.place("part.html"))),
    "export.export_module": lambda m: _files(export_module(m.component, m.place("part.py"))),
    "export.export_module of a detector": lambda m: _files(export_module(m.objects, m.place("objects.py"))),
    "export.export_onnx": lambda m: _files(export_onnx(m.component, m.place("part.onnx"))),
    "export.export_onnx of a detector": lambda m: _files(export_onnx(m.objects, m.place("objects.onnx"))),
    "export.export_onnx, int8": lambda m: _files(
        export_onnx(m.component, m.place("part.onnx"), int8=True, images=X.repeat(9, 1, 1, 1))
    ),
    "export.export_state_dict": lambda m: _files(export_state_dict(m.assembly, m.place("state.safetensors"))),
    "export.save_pretrained": lambda m: _tree(save_pretrained(m.component, m.place("hub"))),
    "export.torch_program": lambda m: torch_program(m.component).module()(X),
    "network.fingerprint": lambda m: fingerprint(m.source),
    "network.fuse": lambda m: fuse(m.component.network, X[:2].to(kind(m.component))),
    "reports.model_card": lambda m: model_card(m.component),
    "reports.report": lambda m: report(
        [m.component, m.assembly, m.relevance],
        data=[DATA, [DATA, DATA], DATA],
        sources=[m.source],
        including_calibration=True,
    ),
    "reports.write_report": lambda m: write_report(
        m.place("page.html"), [m.component], data=[DATA], including_calibration=True
    ),
    "sources.save_source": lambda m: save_source(
        m.place("source.safetensors"),
        Source(m.source, "residual", ("0", "1", "2", "3"), by.Preprocessing(), (3, 8, 8)),
        arch="cnn",
    ),
    "training.accuracy": lambda m: accuracy(m.source, _data(), by.Preprocessing()),
    "training.distil": lambda m: distil(m.assembly, X.repeat(3, 1, 1, 1), like="zoo:resnet20?width=0.125", epochs=1),
    "training.train": _train,
    "training.train_source": lambda m: _trained().source.model,
    "yard.Yard.add": lambda m: Yard(m.place("yard"), create=True).add(m.component, "small").name,
    "yard.Yard.rank": lambda m: [one.score for one in _yard(m).rank((X, Y % 2), per_class=None)],
    "evaluation.probe": lambda m: probe(features(m.component, DATA)[:, :3], Y, folds=2).strength,
    "testing.zeroed_output": lambda m: zeroed_output(trace(m.source, X[:2]), {}, X),
    "gnn.locate": lambda m: gnn.locate(m.nodes, graph(), nodes=range(40)),
    "gnn.disassemble": lambda m: gnn.disassemble(m.nodes, m.node_relevance, task=[1, 3]),
    "gnn.assemble": lambda m: gnn.assemble([m.node_part]),
    "gnn.evaluate": lambda m: gnn.evaluate(m.node_part, graph(), nodes=range(40, 60), source=m.nodes),
    "gnn.evaluate of an assembly": lambda m: gnn.evaluate(m.node_assembly, graph(), nodes=range(40, 60)),
    "gnn.GraphComponent.save": lambda m: m.node_part.save(m.place("part.safetensors")),
    "gnn.GraphAssembly.save": lambda m: m.node_assembly.save(m.place("part.safetensors")),
    "gnn.GraphAssembly.with_scaling": lambda m: m.node_assembly.with_scaling(
        _Scale(m.node_assembly.matrix, m.node_assembly.shift), m.node_assembly.manifest.scaling
    ),
    "gnn.GraphRelevance.check_source": lambda m: m.node_relevance.check_source(m.nodes),
    "gnn.GraphRelevance.graph": lambda m: str(m.node_relevance.graph(m.nodes).axes),
}

FORWARD = "a forward pass, or a part of one: it follows the mode, as that of any module"
STRUCTURE = "reads structure, and runs nothing"
WEIGHTS = "works on a traced graph, which is no model of the caller's"
WITHOUT: dict[str, str] = {
    **dict.fromkeys(
        [
            *(
                f"Assembly.{n}"
                for n in [
                    "answers",
                    "energies",
                    "forward",
                    "inputs",
                    "judged",
                    "laid",
                    "logits",
                    "order",
                    "scaled",
                    "side_by_side",
                    "signals",
                    "unknown",
                    "without_reject",
                ]
            ),
            *(f"Component.{n}" for n in ["forward", "head", "judged", "logits", "look", "observe"]),
            *(f"Component.{n}" for n in ["of_source", "preprocess", "strangeness_of"]),
            *(f"gnn.GraphAssembly.{n}" for n in ["energies", "forward", "laid", "scaled", "side_by_side", "unknown"]),
            *(f"gnn.GraphComponent.{n}" for n in ["forward", "head", "of_source"]),
            *(f"gnn.GraphNetwork.{n}" for n in ["forward", "steps", "walk"]),
            *(f"network.Network.{n}" for n in ["advance", "forward", "step", "taken", "walk"]),
            *("scaling.Gate.forward", *(f"testing.{n}.forward" for n in ("Residual", "Branches", "SqueezeExcite"))),
            *("testing.Detector.forward", "Assembly.found", "Component.found"),
        ],
        FORWARD,
    ),
    **dict.fromkeys(
        [
            *(f"Assembly.{n}" for n in ["components", "distinct_networks", "networks", "plot", "shaped_networks"]),
            *("Assembly.content", "Component.content"),
            *("Component.plot", "gnn.GraphAssembly.plot", "gnn.GraphComponent.plot"),
            *(
                f"network.Network.{n}"
                for n in ["dead_after", "from_spec", "holder", "layer", "overwrites", "tensor", "to_spec"]
            ),
            *(f"network.Network.{n}" for n in ["reachable", "with_steps"]),
            *("scaling.Gate.blank", "yard.ranked"),
            *(f"{one}.plot" for one in ("Assembly", "Component", "gnn.GraphAssembly", "gnn.GraphComponent")),
        ],
        STRUCTURE,
    ),
    **dict.fromkeys(
        [
            *(f"Relevance.{n}" for n in ("attach", "blank", "gather", "put")),
            *(
                "gnn.GraphRelevance.blank",
                "axes.Graph.rewritten",
                "surgery.check_keep",
                "surgery.cut",
                "surgery.overlay",
            ),
        ],
        WEIGHTS,
    ),
    "export.push_to_hub": "sends what `export.save_pretrained` writes to a server",
}

KINDS = re.compile(
    r"\b(Module|Component|Assembly|GraphComponent|GraphAssembly|GraphNetwork|ModelT|Network|Item|Predictor|Graph|Source)\b"
)


def takers() -> Iterator[str]:
    """The names of all public calls that take a model: by the types of their arguments, or as methods of one."""
    seen: set[int] = set()
    below = [one.name for one in pkgutil.iter_modules(by.__path__) if one.ispkg]
    for package in ["", *below, "testing"]:
        home = importlib.import_module(f"brickyard.{package}".rstrip("."))
        own = [
            n
            for n, v in vars(home).items()
            if n[0] != "_" and str(getattr(v, "__module__", "")).startswith("brickyard")
        ]
        for name in getattr(home, "__all__", own):
            value = getattr(home, name)
            if id(value) in seen or not callable(value) or not getattr(value, "__module__", "").startswith("brickyard"):
                continue
            seen.add(id(value))
            place = f"{package}.{name}".lstrip(".")
            if not inspect.isclass(value):
                yield from [place] * _takes(value)
                continue
            for key in sorted({key for one in value.__mro__ if "brickyard" in one.__module__ for key in vars(one)}):
                method = inspect.getattr_static(value, key)
                if key[0] == "_" or not (inspect.isfunction(method) or isinstance(method, classmethod | staticmethod)):
                    continue
                if issubclass(value, nn.Module) or _takes(getattr(value, key)):
                    yield f"{place}.{key}"


def _takes(call: Any) -> bool:
    try:
        given = inspect.signature(call).parameters.values()
    except ValueError:
        return False
    return any(KINDS.search(str(one.annotation)) for one in given)


# -- results -----------------------------------------------------------------------------------------------------


@dataclass
class _Scale:
    matrix: Tensor | None
    shift: Tensor | None
    gate: Any = None


def _scaling(m: Models) -> tuple[Any, Any]:
    return _Scale(m.assembly.matrix, m.assembly.shift, m.assembly.gate), m.assembly.manifest.scaling


def _untimed(scores: Any) -> Any:
    return [row.model_copy(update={"latency": None}) for row in scores.rows]


def _files(record: Any) -> Any:
    found = dict(vars(record))
    if found.get("int8") is not None:
        found["int8"] = found["int8"].agreement
    return found


def _tree(folder: Path) -> Any:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def digest(value: Any) -> Any:
    """A result as plain values that are equal where the results are, to the bit."""
    if isinstance(value, Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
    if isinstance(value, nn.Module):
        about = value.manifest.model_dump() if hasattr(value, "manifest") else None
        return about, value.training, {key: digest(item) for key, item in value.state_dict().items()}
    if isinstance(value, by.Relevance | gnn.GraphRelevance):
        sums = {name: value.sum(name) for name in value.layers} if hasattr(value, "layers") else {}
        return value.record, digest(sums), digest(getattr(value, "scores", None))
    if isinstance(value, Path):
        return value.read_bytes() if value.is_file() else str(value)
    if isinstance(value, dict):
        return {str(key): digest(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [digest(item) for item in value]
    return value if isinstance(value, str | bytes | int | float | bool | type(None)) else repr(value)
