"""Write the files beside this script: what this version of Brickyard saves, and what it says of fixed inputs.

Run it with the version whose files are to be kept, and with no other: `tests/test_written.py` holds every later
version to them. A later version adds files under new names; it never writes these again.

    python tests/written/write.py EMPTY_FOLDER

For every model there are three files: `NAME.safetensors` as `save` writes it, `NAME.expected.safetensors` with an
input and the outputs for it (and, in its metadata, the torch version and the CPU that computed them), and `NAME.json`
with what a user reads about the model and a weight on which its outputs depend. `source.expected.safetensors` has the
numbers and the images of one source, `notebook/` what an interrupted `locate` leaves behind, `yard/` two components
with their index (`yard.json`: its entries), `state/` state dicts, and `names.json` the public names.
The same version on the same machine writes the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["SOURCE_DATE_EPOCH"] = "1767225600"  # the date in the manifests

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import brickyard as by
from brickyard import gnn as graphnets
from brickyard.base._options import Distillation, TrainingOptions
from brickyard.export._onnx import export_state_dict
from brickyard.sources import _zoo as zoo
from brickyard.testing import Branches, Residual, SqueezeExcite, chain, random_graph, randomised
from brickyard.yard._yard import Yard

sys.path.insert(0, str(Path(__file__).parent.parent))
from nets import Drawn, Plan
from test_written import facts, machine, numbers_of, tensors_of

CHANGED = 1767225600_000_000_000  # when the yard's files were last changed, in nanoseconds
NAMES = ["cat", "dog", "hen", "pig"]
SHORT = TrainingOptions(epochs=2, batch_size=8, augment=True)


def pictures(count: int, channels: int = 3, size: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def labelled(count: int = 32, classes: int = 4, **options: int) -> tuple[Tensor, Tensor]:
    return pictures(count, **options), torch.arange(count) % classes


DATA = labelled()


def part(
    source: nn.Module | None = None,
    task: tuple[int, ...] = (1, 3),
    *,
    data: tuple[Tensor, Tensor] = DATA,
    classes: list[str] | None = None,
    preprocessing: by.Preprocessing | None = None,
    **options: Any,
) -> by.Component:
    source = chain() if source is None else source
    relevance = by.locate(source, data, classes=classes, preprocessing=preprocessing)
    return by.disassemble(source, relevance, task=list(task), **options)


def drawn(*blocks: tuple[Any, ...], head: str = "pool", activation: str = "relu") -> Drawn:
    """A network in float64 that `tests/nets.py` builds."""
    return Drawn(Plan(blocks=blocks, activation=activation, head=head, classes=4))


# -- components --------------------------------------------------------------------------------------------


def components() -> Iterator[tuple[str, by.Component]]:
    half = by.Budget(flops=0.5)
    yield "thresholds", part(classes=NAMES)
    yield "thresholds-given", part(thresholds=by.Thresholds(alpha=0.1, beta=0.1, linear_alpha=0.2, linear_beta=0.2))
    yield "budget-flops", part(Residual(), budget=half)
    yield "budget-parameters", part(Branches(), budget=by.Budget(parameters=0.6))
    yield "budget-spread", part(Residual(), budget=by.Budget(flops=0.6, allocation="global"))
    rounded = by.Budget(parameters=0.7, allocation="uniform", round_to=4)
    yield "budget-multiple", part(chain(widths=(8, 12)), budget=rounded)
    for select in ("damage", "l1", "fpgm", "hrank", "activation", "taylor", "random"):
        yield f"select-{select}", part(budget=half, select=select)
    for heal in ("moments", "none"):
        yield f"heal-{heal}", part(heal=heal)
    yield "heal-ridge", part(Residual(), ridge=0.1, heal_images=6, budget=half)
    yield "reject", part(Residual(), reject=True)
    yield "one-class", part(task=(2,))
    yield "every-class", part(task=(3, 2, 1, 0), budget=by.Budget(parameters=0.8))
    yield "part-of-classes", by.disassemble(chain(), by.locate(chain(), DATA, task=[0, 2]), task=[2])
    yield (
        "random-images",
        by.disassemble(
            chain(), by.locate(chain(), DATA, choose="random", per_class=3, seed=5, name="drawn"), task=[0, 1]
        ),
    )

    yield "residual", part(Residual())
    yield "branches", part(Branches())
    yield "squeeze-excite", part(SqueezeExcite(), budget=by.Budget(flops=0.7))
    yield "grouped", part(drawn(("grouped", 2, 3, 2)))
    yield "depthwise-float64", part(drawn(("conv", 5, 3, 1, True, True), ("depthwise", 3), head="flatten"))
    yield "shuffle", part(drawn(("shuffle", 2, 2)))
    yield "group-norm", part(drawn(("groupnorm", 3, 2), activation="silu"))
    yield "layer-norm", part(drawn(("layernorm", 4, 5), activation="hardswish"))
    yield "attention", part(drawn(("attention", 2, 3, 4)))
    yield "float64", part(Residual().double(), budget=half)
    yield "float16", part(chain().half())
    grey = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    yield "grey", part(randomised(grey), data=labelled(channels=1))
    small = labelled(16, size=32)
    for name in ("resnet20", "cnn"):
        yield name, part(randomised(zoo.build(name, 4, 0.1)), data=small, budget=by.Budget(flops=0.5))
    lenet = randomised(zoo.build("lenet5", 4, 0.3))
    channels, size, _ = zoo.input_shape("lenet5", {})
    yield "lenet5", part(lenet, data=labelled(16, channels=channels, size=size), budget=by.Budget(parameters=0.5))
    google = part(randomised(zoo.build("googlenet", 4, 0.05)), data=small, budget=by.Budget(flops=0.5))
    yield "googlenet-fused", google.fused()

    prepared = by.Preprocessing(size=(10, 10), channels=3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))
    yield "preprocessing", part(preprocessing=prepared, data=labelled(channels=1))
    yield "preprocessing-pad", part(preprocessing=by.Preprocessing(size=(12, 12), fit="pad", mean=(0.5,), std=(0.2,)))
    yield "fused", part(Residual(), budget=half).fused()
    yield "tuned", part(classes=NAMES).finetune(DATA, training=SHORT)
    taught = part(Residual(), reject=True, budget=half)
    yield (
        "tuned-taught",
        taught.finetune(
            DATA,
            training=TrainingOptions(epochs=2, batch_size=8, optimizer="adamw", norms="frozen"),
            validation=0,
            teacher=Residual(),
            distillation=Distillation(weight=0.7),
        ),
    )
    scored = part(Residual())
    scores = by.evaluate(scored, labelled(24, seed=9), source=Residual(), latency=False)
    yield "scored", scored.with_scores({"random pictures": scores.as_dict()})


class Signal(nn.Module):
    """A network with a one-dimensional convolution, whose channels were kept whole once."""

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 7, 3)
        self.one = nn.Conv1d(7, 4 if ends else 5, 3, padding=1)
        self.head = nn.Identity() if ends else nn.Linear(5, 4)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(torch.relu(self.conv(torch.relu(self.front(x)))).flatten(2)))
        return self.head(x.mean(2))  # type: ignore[no-any-return]


def signals() -> Iterator[tuple[str, by.Component | by.Assembly]]:
    """Written by the version in which such a convolution was no layer that mixes channels."""
    yield "signal", part(Signal(False), budget=by.Budget(flops=0.8))
    yield "signal-ends", part(Signal(True), budget=by.Budget(flops=0.8))
    pair = [part(Signal(False), budget=by.Budget(flops=0.8)), part(randomised(Signal(False), 1), (0,))]
    yield "assembly-padded-signal", by.assemble(pair, form="padded")


# -- assemblies --------------------------------------------------------------------------------------------


def assemblies() -> Iterator[tuple[str, by.Assembly]]:
    pair = [part(classes=NAMES), part(randomised(chain(), 1), (0, 2), classes=NAMES)]
    images = [DATA, labelled(seed=2)]
    for form in ("parallel", "padded", "grouped"):
        yield f"assembly-{form}", by.assemble(pair, form=form)
    yield (
        "assembly-padded-residual",
        by.assemble([part(Residual(), (0,)), part(randomised(Residual(), 1), (3, 1), reject=True)], form="padded"),
    )
    yield "assembly-union", by.assemble([part(heal="none"), part(task=(0,), heal="none")], form="union")
    yield "assembly-union-source", by.assemble([part(), part(task=(0,))], form="union", source=chain())
    for scaling in ("magnitude", "logit-mean", "log-probability", "mahalanobis"):
        yield f"scaling-{scaling}", by.assemble(pair, scaling=scaling)
    for scaling in ("affine", "joint-head", "lda"):
        yield f"scaling-{scaling}", by.assemble(pair, scaling=scaling, images=images, shots=5, seed=3)
    yield "scaling-weight", by.assemble(pair, scaling="mahalanobis", weight=0.7)
    yield "scaling-padded", by.assemble(pair, form="padded", scaling="logit-mean")
    shared = [part(classes=NAMES), part(randomised(chain(), 1), (3, 0), classes=NAMES)]
    for rule in ("average", "max", "rename"):
        yield f"duplicates-{rule}", by.assemble(shared, on_duplicate=rule)
    yield "without", by.assemble(pair, without=["dog"])
    yield "without-padded", by.assemble(pair, form="padded", without=["hen"], scaling="magnitude")
    rejecting = [part(task=(k,), source=randomised(chain(), k), reject=True, classes=NAMES) for k in (0, 2)]
    yield "votes", by.assemble(rejecting, votes=True)
    yield "votes-gate", by.assemble(rejecting, votes=True, scaling="lda", images=images)
    large = by.Preprocessing(size=(32, 32), mean=(0.5,), std=(0.25,))
    other = part(randomised(zoo.build("cnn", 4, 0.05)), (2,), data=labelled(16), preprocessing=large, heal="moments")
    yield "assembly-mixed", by.assemble([part(), other, part(Branches(), (0,))], scaling="mahalanobis")
    yield "assembly-fused", by.assemble(pair).fused()
    yield "assembly-tuned", by.assemble(pair, scaling="logit-mean").finetune(images, training=SHORT)
    yield "assembly-padded-tuned", by.assemble(pair, form="padded").finetune(images, training=SHORT, validation=0)
    yield "assembly-one", by.assemble([part(Residual(), (2, 1))])


# -- relevances --------------------------------------------------------------------------------------------


def relevances() -> Iterator[tuple[str, by.Relevance]]:
    yield "relevance", by.locate(chain(), DATA, classes=NAMES, per_class=6)  # what notebook/ goes on to
    yield "relevance-without-sums", by.locate(Residual(), DATA, keep_sums=False)
    yield "relevance-part", by.locate(Branches(), DATA, task=[3, 1], choose="all")
    thresholds = by.Thresholds(alpha=0.1, linear_beta=0.1)
    prepared = by.Preprocessing(size=(8, 8), mean=(0.5,), std=(0.25,))
    yield (
        "relevance-thresholds",
        by.locate(drawn(("attention", 2, 2, 3)), DATA, thresholds=thresholds, preprocessing=prepared),
    )


# -- graph networks ----------------------------------------------------------------------------------------


class Geometric(nn.Module):
    """Layers of PyTorch Geometric of three kinds, with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        import torch_geometric.nn as geometric

        self.one = geometric.GATConv(12, 3, heads=2)
        self.norm = nn.BatchNorm1d(6)
        self.two = geometric.SAGEConv(6, 5)
        self.three = geometric.GCNConv(5, 4)
        randomised(self)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = nn.functional.elu(self.norm(self.one(x, edge_index)))
        return self.three(torch.relu(self.two(x, edge_index)), edge_index)


def graph_part(source: nn.Module, task: tuple[int, ...] = (1, 3), **options: Any) -> graphnets.GraphComponent:
    relevance = graphnets.locate(source, random_graph(), nodes=range(40))
    return graphnets.disassemble(source, relevance, task=list(task), **options)


def graph_models() -> Iterator[tuple[str, graphnets.GraphComponent | graphnets.GraphAssembly]]:
    gcn, sage, gat = (graphnets.random_network(kind, 12, 5, 4) for kind in ("gcn", "sage", "gat"))
    yield "graph-gcn", graph_part(gcn)
    yield "graph-sage", graph_part(sage, budget=by.Budget(parameters=0.5), reject=True)
    yield "graph-gat", graph_part(gat, features=True, heal="none")
    x, edges, labels = random_graph()
    double = graphnets.random_network("gat", 12, 5, 4).double()
    relevance = graphnets.locate(double, (x.double(), edges, labels), nodes=range(40))
    half = by.Budget(flops=0.6)
    yield "graph-float64", graphnets.disassemble(double, relevance, task=[2, 0], select="random", budget=half)
    yield "graph-geometric", graph_part(Geometric())
    pair = [graph_part(gcn), graph_part(graphnets.random_network("gcn", 12, 4, 4, seed=1), (0, 2))]
    yield "graph-assembly", graphnets.assemble(pair, scaling="logit-mean")
    yield "graph-assembly-padded", graphnets.assemble(pair, form="padded")
    yield "graph-assembly-disjoint", graphnets.assemble([graph_part(gat, (0,)), graph_part(sage)], shared_input=False)
    yield (
        "graph-assembly-affine",
        graphnets.assemble([graph_part(gat, (0, 1)), graph_part(gcn, (2, 3))], scaling="affine", data=random_graph(),
                           nodes=range(40)),
    )  # fmt: skip


# -- writing -----------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def expect(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    plain = {key: value.detach().contiguous().clone() for key, value in sorted(tensors.items())}
    save_file(plain, folder / f"{name}.expected.safetensors", {"machine": json.dumps(machine())})


def weight_that_counts(path: Path, logits: Tensor, say: Callable[[Path], Tensor]) -> list[Any]:
    """Tensor and place of a weight on which these logits depend; behind a ReLU, or below a maximum, not all do."""
    tensors, metadata = tensors_of(path)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        place = Path(folder) / "other.safetensors"
        for name in sorted(tensors, reverse=True):
            if not name.startswith("network") or tensors[name].ndim < 2:
                continue
            index = int(tensors[name].abs().argmax())
            other = tensors[name].clone()
            other.view(-1)[index] *= 1.5
            save_file(tensors | {name: other}, place, metadata)
            if (say(place) - logits).abs().max() > 0.01 * logits.abs().max():
                return [name, index]
    raise RuntimeError(f"no weight of {path} counts")


def write_model(folder: Path, name: str, model: by.Component | by.Assembly) -> None:
    path = model.save(folder / f"{name}.safetensors")
    loaded = by.load(path)
    first = loaded.manifest.parts[0]
    shape = {"preprocessing": (1, 9), "preprocessing-pad": (3, 9), "assembly-mixed": (3, 8)}
    channels, size = shape.get(name, first.input_shape[:2])
    images = pictures(2 if size > 16 else 4, channels, size, seed=7)
    with torch.no_grad():
        logits = loaded.logits(images)
    if "fused" not in name and not torch.equal(logits, model.logits(images)):  # fused ones are laid out otherwise
        raise RuntimeError(f"{name} says something else after loading")
    expect(folder, name, {"images": images, "logits": logits, "probabilities": loaded.predict_proba(images)})
    weight = weight_that_counts(path, logits, lambda place: by.load(place).logits(images))
    write_json(folder / f"{name}.json", facts(loaded) | {"text": str(loaded), "weight": weight})


def write_relevance(folder: Path, name: str, relevance: by.Relevance) -> None:
    relevance.save(folder / f"{name}.safetensors")
    expect(folder, name, numbers_of(relevance))
    told = {
        "kind": "Relevance",
        "classes": list(relevance.classes),
        "task": list(relevance.task),
        "layers": list(relevance.layers),
        "axes": list(relevance.axes),
        "sums": relevance.sums is not None,
        "source": relevance.source_name,
        "text": str(relevance),
    }
    write_json(folder / f"{name}.json", told)


def write_graph(folder: Path, name: str, model: graphnets.GraphComponent | graphnets.GraphAssembly) -> None:
    path = model.save(folder / f"{name}.safetensors")
    loaded = graphnets.load(path)
    x, edges, _ = random_graph(10, 24 if "disjoint" in name else 12, degree=2, seed=4)
    x = x.double() if "float64" in name else x
    with torch.no_grad():
        logits = loaded(x, edges)
    expect(folder, name, {"x": x, "edges": edges, "logits": logits})
    weight = weight_that_counts(path, logits, lambda place: graphnets.load(place)(x, edges))
    write_json(folder / f"{name}.json", facts(loaded) | {"text": str(loaded), "weight": weight})


def write_source(folder: Path) -> None:
    """The source of `relevance`, what an interrupted locate leaves of it, and what is cut out of it."""
    source, images = chain(), {"images": DATA[0], "labels": DATA[1]}
    relevance = by.locate(source, DATA, classes=NAMES, per_class=6)
    cut = by.disassemble(source, relevance, task=["pig", "dog"], images=DATA, budget=by.Budget(parameters=0.6))
    with torch.no_grad():
        images["logits"] = cut.logits(DATA[0][:4])
    state = {f"source.{name}": value for name, value in source.state_dict().items()}
    expect(folder, "source", state | images)
    by.locate(source, DATA, classes=NAMES, per_class=6, resume=folder / "notebook")
    (folder / "notebook" / "class-00003.safetensors").unlink()  # as if it had been stopped here


def write_yard(folder: Path) -> None:
    yard = Yard(folder / "yard", create=True)
    relevance = by.locate(chain(), DATA, classes=NAMES)
    yard.add(by.disassemble(chain(), relevance, task=["dog", "cat"]))
    yard.add(by.disassemble(chain(), relevance, task=["hen"], reject=True), "hens")
    for path in (folder / "yard").glob("*.safetensors"):
        os.utime(path, ns=(CHANGED, CHANGED))
    entries = Yard(folder / "yard").entries()  # brings the index up to date
    (folder / "yard" / ".lock").unlink()
    write_json(folder / "yard.json", [entry.as_dict() for entry in entries])


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder} has files in it, and none is written again; give an empty folder")
    for writer, models in (
        (write_model, components),
        (write_model, signals),
        (write_model, assemblies),
        (write_relevance, relevances),
        (write_graph, graph_models),
    ):
        for name, model in models():
            writer(folder, name, model)  # type: ignore[operator]
            print(name, flush=True)
    write_source(folder)
    write_yard(folder)
    (folder / "state").mkdir()
    for name in ("reject", "scaling-lda"):
        export_state_dict(by.load(folder / f"{name}.safetensors"), folder / "state" / f"{name}.safetensors")
    write_json(folder / "names.json", {"version": by.__version__, "names": sorted(by.__all__)})


if __name__ == "__main__":
    main()
