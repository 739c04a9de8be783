"""Graph networks on Cora: components for the published tasks, and two halves assembled.

    python benchmarks/applications/graphs.py              # everything that is not there yet
    python benchmarks/applications/graphs.py --only GAT   # rows whose name contains the text
    python benchmarks/applications/graphs.py --choose     # scores on validation nodes that settings were chosen by

Planetoid split, from the folder that BRICKYARD_SHARED names: 140 training nodes are trained on and located, healed and
scaled with; 500 validation nodes choose the epoch and settings; the 1,000 test nodes are scored, and nothing else.
"""

from __future__ import annotations

import itertools
import json
import pickle
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import brickyard as by
import tables
from brickyard.gnn import GraphComponent, NodeData, assemble, disassemble, evaluate, locate
from brickyard.scaling._strategies import find

warnings.filterwarnings("ignore", category=FutureWarning)  # PyTorch Geometric imports torch.jit

CORA = tables.SHARED / "data/cora"
CLASSES = 7
SEEDS = (0, 1, 2)
KINDS = ("GCN", "GraphSAGE", "GAT")
TASKS = {"0": [0], "1": [1], "1-2": [1, 2], "3-5": [3, 4, 5]}
HALVES = ([0, 1, 2, 3], [4, 5, 6])
HIDDEN = {"GCN": 16, "GraphSAGE": 64, "GAT": 8}  # GAT: a head, of eight
RATES = {"GCN": (0.01, 5e-4, 0.5), "GraphSAGE": (0.01, 5e-4, 0.5), "GAT": (0.005, 5e-4, 0.6)}  # step, decay, dropout
EPOCHS = 200
RIDGE = 1e-3
METHODS = ("mda", "mda + refit", "random", "random + refit")
SCALINGS = ("none", "logit-mean", "affine", "joint-head")
PATH = tables.RESULTS / "graphs.json"
PAGE = tables.RESULTS / "graphs.md"
PICTURE = tables.RESULTS / "graphs.png"


# -- the graph ---------------------------------------------------------------------------------------------


class Arrays(pickle.Unpickler):
    """Reads pickles of plain arrays, and refuses everything else."""

    KNOWN = frozenset(
        {
            ("collections", "defaultdict"),
            ("__builtin__", "list"),
            ("builtins", "list"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("scipy.sparse.csr", "csr_matrix"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no plain array")
        return super().find_class(module, name)


def plain(name: str) -> Any:
    path = CORA / f"ind.cora.{name}"
    if not path.exists():
        raise SystemExit(f"{path} is missing: set BRICKYARD_SHARED")
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return Arrays(file, encoding="latin1").load()


@cache
def cora() -> tuple[NodeData, dict[str, Tensor]]:
    """The graph with features that sum to one a node, and the nodes of each split."""
    order = np.loadtxt(CORA / "ind.cora.test.index", dtype=np.int64)
    x = torch.from_numpy(np.concatenate([plain("allx").toarray(), plain("tx").toarray()])).float()
    y = torch.from_numpy(np.concatenate([plain("ally"), plain("ty")])).argmax(1)
    place = torch.arange(len(x))
    place[torch.from_numpy(order)] = torch.arange(len(x) - len(order), len(x))
    x, y = x[place], y[place]
    pairs = {(a, b) for a, others in plain("graph").items() for b in others if a != b}
    pairs |= {(b, a) for a, b in pairs}
    edges = torch.tensor(sorted(pairs)).T
    known = len(plain("y"))
    splits = {"train": torch.arange(known), "val": torch.arange(known, known + 500), "test": torch.from_numpy(order)}
    splits["test"] = splits["test"].sort().values
    return NodeData(x / x.sum(1, keepdim=True).clamp_min(1), edges, y), splits


# -- sources -----------------------------------------------------------------------------------------------


class Source(nn.Module):
    """Two layers of PyTorch Geometric."""

    def __init__(self, kind: str, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv, GCNConv, SAGEConv

        features, heads = cora()[0].x.shape[1], 8
        self.dropout, self.elu = dropout, kind == "GAT"
        if kind == "GAT":
            self.conv1: nn.Module = GATConv(features, hidden, heads=heads, dropout=dropout)
            self.conv2: nn.Module = GATConv(heads * hidden, classes, heads=1, concat=False, dropout=dropout)
        else:
            layer = GCNConv if kind == "GCN" else SAGEConv
            self.conv1, self.conv2 = layer(features, hidden), layer(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(nodes, features), (2, edges) -> (nodes, classes)."""
        x = nn.functional.dropout(x, self.dropout, training=self.training)
        x = self.conv1(x, edge_index)
        x = nn.functional.elu(x) if self.elu else nn.functional.relu(x)
        x = nn.functional.dropout(x, self.dropout, training=self.training)
        found: Tensor = self.conv2(x, edge_index)
        return found


def trained(
    kind: str, seed: int, classes: Sequence[int], hidden: int | None = None, decay: float | None = None
) -> Source:
    """A source of some classes, from their training nodes; the epoch is the best on their validation nodes.

    What was trained before is read from `benchmarks/trained`.
    """
    graph, splits = cora()
    assert graph.labels is not None
    torch.manual_seed(seed)
    step, usual, dropout = RATES[kind]
    model = Source(kind, len(classes), hidden or HIDDEN[kind], dropout)
    asked = [kind, seed, *classes, hidden or HIDDEN[kind], usual if decay is None else decay]
    path = tables.TRAINED / f"cora-{'-'.join(map(str, asked))}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    number = torch.full((CLASSES,), -1)
    number[list(classes)] = torch.arange(len(classes))
    labels = number[graph.labels]
    own = {name: nodes[labels[nodes] >= 0] for name, nodes in splits.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=step, weight_decay=usual if decay is None else decay)
    best, state = -torch.inf, model.state_dict()
    for _ in range(EPOCHS):
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(graph.x, graph.edge_index)[own["train"]], labels[own["train"]]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = model(graph.x, graph.edge_index)[own["val"]]
        loss = nn.functional.cross_entropy(logits, labels[own["val"]]).item()
        score = -loss
        if score > best:
            best, state = score, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    tables.TRAINED.mkdir(exist_ok=True)
    save_file(state, path)
    return model.eval()


# -- components --------------------------------------------------------------------------------------------


SETTINGS: dict[str, dict[str, Any]] = {
    "50 %": {"features": True, "budget": by.Budget(parameters=0.5, allocation="uniform")},
    "25 %": {"features": True, "budget": by.Budget(parameters=0.25, allocation="uniform")},
    "10 %": {"features": True, "budget": by.Budget(parameters=0.1, allocation="uniform")},
    "thresholds": {},
    "thresholds, features too": {"features": True},
}


def to_heal() -> Tensor:
    """Nodes to heal on, without their labels: all that neither choose settings nor are scored."""
    graph, splits = cora()
    free = torch.ones(len(graph.x), dtype=torch.bool)
    free[splits["val"]] = free[splits["test"]] = False
    return free


def scored(part: GraphComponent, source: Source, split: str) -> dict[str, Any]:
    """One component: AUROC of a task of one class, accuracy of others, and what is lost against restricted."""
    graph, splits = cora()
    scores = evaluate(part, graph, nodes=splits[split], source=source)
    base, restricted, own = (scores.row(name) for name in ("base", "restricted", "component"))
    found = {
        "base": base.accuracy,
        "restricted": restricted.accuracy,
        "score": own.accuracy,
        "drop": own.drop,
        "drop_error": own.drop_error,
        "nodes": own.images,
        "parameters": part.manifest.selection.parameters / part.manifest.source.parameters,
        "kept": {name: len(axis.kept) for name, axis in part.manifest.axes.items()},
    }
    if own.auroc is not None and restricted.auroc is not None:
        found |= {"detection": own.accuracy, "detection_restricted": restricted.accuracy}
        found |= {"recall": scores.per_class[part.classes[0]], "base": base.auroc, "restricted": restricted.auroc}
        found |= {"score": own.auroc, "drop": own.auroc_drop, "drop_error": own.auroc_drop_error}
    return found


def component_row(kind: str, seed: int, split: str = "test") -> dict[str, Any]:
    graph, splits = cora()
    assert graph.labels is not None
    source = trained(kind, seed, range(CLASSES))
    relevance = locate(source, graph, nodes=splits["train"], name=kind)
    with torch.no_grad():
        answers = source(graph.x, graph.edge_index).argmax(1)
    row: dict[str, Any] = {"accuracy": 100 * (answers == graph.labels)[splits[split]].double().mean().item()}
    for (task, classes), (setting, options) in itertools.product(TASKS.items(), SETTINGS.items()):
        for method in METHODS:
            select, _, heal = method.partition(" + ")
            part = disassemble(
                source,
                relevance,
                task=classes,
                reject=len(classes) == 1,
                select=select,  # type: ignore[arg-type]
                heal=heal or "none",  # type: ignore[arg-type]
                nodes=to_heal(),
                ridge=RIDGE,
                seed=seed,
                **options,
            )
            row[f"{task} | {setting} | {method}"] = scored(part, source, split)
    return row


# -- assemblies --------------------------------------------------------------------------------------------


def assembly_row(kind: str, seed: int, split: str = "test") -> dict[str, Any]:
    """Two sources that know half of the classes each, as one classifier of all; and a source that knows all."""
    graph, splits = cora()
    assert graph.labels is not None
    whole = trained(kind, seed, range(CLASSES))
    with torch.no_grad():
        right = (whole(graph.x, graph.edge_index).argmax(1) == graph.labels)[splits[split]].double()
    row: dict[str, Any] = {"all": 100 * right.mean().item(), "error": 100 * right.std().item() / len(right) ** 0.5}
    sources = [trained(kind, seed, half) for half in HALVES]
    for setting in ("whole", *(name for name in SETTINGS if "%" in name)):
        parts = []
        for source, half in zip(sources, HALVES, strict=True):
            own = torch.full((CLASSES,), -1)
            own[half] = torch.arange(len(half))
            data = NodeData(graph.x, graph.edge_index, own[graph.labels])
            nodes = splits["train"][torch.isin(graph.labels[splits["train"]], torch.tensor(half))]
            relevance = locate(source, data, nodes=nodes, classes=[str(k) for k in half], name=f"{kind} {half}")
            options = SETTINGS.get(setting, {"budget": by.Budget(parameters=1.0, allocation="uniform")})
            parts.append(
                disassemble(source, relevance, task=[str(k) for k in half], nodes=to_heal(), ridge=RIDGE, **options)
            )
        found: dict[str, Any] = {}
        for scaling in SCALINGS:
            few: dict[str, Any] = {"data": graph, "nodes": splits["train"]} if find(scaling).few_shot else {}
            made = assemble(parts, form="padded", scaling=scaling, **few)
            scores = evaluate(made, graph, nodes=splits[split])
            found[scaling] = scores.row("assembled").accuracy
            found["oracle"] = scores.row("oracle").accuracy
        with torch.no_grad():
            one = assemble(parts, form="padded")(graph.x, graph.edge_index)
            other = assemble(parts, form="parallel")(graph.x, graph.edge_index)
        found["padded_from_parallel"] = (one - other).abs().max().item()
        row[setting] = found
    return row


# -- rows, table and picture -------------------------------------------------------------------------------


def jobs() -> Iterator[tuple[str, str, str, int]]:
    for seed, kind in itertools.product(SEEDS, KINDS):
        yield f"{kind} | {seed}", "component", kind, seed
    for seed in SEEDS:
        yield f"halves | {seed}", "assembly", "GCN", seed


def work(_: str, what: str, kind: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return (component_row if what == "component" else assembly_row)(kind, seed)


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, (job[0] for job in jobs()))
    PAGE.write_text(page(ordered))
    draw(ordered)


def over_seeds(values: Sequence[float], nodes: float = 0.0) -> tuple[float, float]:
    """Mean, and one standard error: of the mean over seeds, and of the nodes that are scored."""
    seeds = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.mean(values), (seeds**2 + nodes**2) ** 0.5


def cell(found: Sequence[dict[str, Any]]) -> str:
    drop, error = over_seeds([one["drop"] for one in found], statistics.mean(one["drop_error"] for one in found))
    return f"{drop + 0.0:.1f} ({error:.1f})"


def page(rows: dict[str, Any]) -> str:
    lines = [
        "# Graph networks on Cora",
        "",
        "Written by `python benchmarks/applications/graphs.py`. Planetoid split, three seeds. Sources have the usual",
        "sizes and settings for this graph and are trained on the 140 training nodes; the epoch, and what components",
        "are made with, were chosen on the 500 validation nodes; the 1,000 test nodes are scored. Relevances",
        "come from the training nodes; the refit uses the nodes outside validation and",
        "test, without their labels. (Features of all nodes take part where neighbours gather, as usual on this",
        "split.)",
        "",
        "Test accuracy of the sources, all seven classes: "
        + ", ".join(
            f"{kind} {mean:.1f} ({error:.1f})"
            for kind in KINDS
            if (found := [row["accuracy"] for title, row in rows.items() if title.startswith(f"{kind} |")])
            for mean, error in [over_seeds(found)]
        )
        + ".",
        "",
        "Each cell is the drop against the source restricted to the task, in points: mean over seeds, and one standard",
        "error in brackets, of seeds and paired nodes together. Tasks of several classes have",
        "accuracy on the task's test nodes. **Tasks of one class have AUROC** on all test nodes, since the accuracy of",
        "one class alone is always 100: the score is the class's logit minus the log-sum-exp of the source's others",
        "(the reject output). Size: share of the source's parameters; `50 %`, `25 %`, `10 %` are budgets spread evenly",
        "over features and channels; `thresholds` are the paper's, with all features kept, or features cut too. base:",
        "all classes of the source compete. random: as many units of each axis, drawn anew with each seed.",
        "",
        f"| source | task | kept | size | base | restricted | {' | '.join(METHODS)} |",
        f"|---|---|---|---|---|---|{'---|' * len(METHODS)}",
    ]
    for setting, kind, task in itertools.product(SETTINGS, KINDS, TASKS):
        each = {method: results(rows, kind, task, setting, method) for method in METHODS}
        if each["mda"]:
            first = each["mda"]
            mean = {key: statistics.mean(one[key] for one in first) for key in ("parameters", "base", "restricted")}
            lines.append(
                f"| {kind} | {task} | {setting} | {mean['parameters']:.0%} | {mean['base']:.1f} | "
                f"{mean['restricted']:.1f} | {' | '.join(cell(each[method]) for method in METHODS)} |"
            )
    lines += [
        "",
        "![Points below restricted against parameters](graphs.png)",
        "",
        "The attention of a GAT is held folded (see [graph networks](../../docs/graphs.md)), which takes more",
        "parameters than the source has while all features are kept.",
        "",
        *detections(rows),
        *assemblies(rows),
    ]
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, f"Machine: {about}.", ""])


def results(rows: dict[str, Any], kind: str, task: str, setting: str, method: str) -> list[dict[str, Any]]:
    titles = [f"{kind} | {seed}" for seed in SEEDS]
    return [rows[title][f"{task} | {setting} | {method}"] for title in titles if title in rows]


def detections(rows: dict[str, Any]) -> list[str]:
    """Tasks of one class as answers."""
    lines = [
        "Tasks of one class as answers, at half of the parameters after the refit: 'mine' where the class's logit is",
        "above the log-sum-exp of the others, over all 1,000 test nodes. Recall: share of the class's nodes that are",
        "found.",
        "",
        "| source | task | restricted: right | component: right | recall |",
        "|---|---|---|---|---|",
    ]
    for kind, task in itertools.product(KINDS, ("0", "1")):
        found = results(rows, kind, task, "50 %", "mda + refit")
        if found:
            cells = ["{:.1f} ({:.1f})".format(*over_seeds([one[key] for one in found])) for key in DETECTED]
            lines.append(f"| {kind} | {task} | {' | '.join(cells)} |")
    return [*lines, ""]


DETECTED = ("detection_restricted", "detection", "recall")


def assemblies(rows: dict[str, Any]) -> list[str]:
    """Two halves as one classifier."""
    found = [row for title, row in rows.items() if title.startswith("halves |")]
    if not found:
        return []
    mean, error = over_seeds([row["all"] for row in found], statistics.mean(row["error"] for row in found))
    lines = [
        "Two GCNs, one trained on classes 0-3 and one on 4-6 (each sees the labels of its own classes only), assembled",
        "into a classifier of all seven; accuracy on the 1,000 test nodes. A GCN trained on all seven: "
        f"{mean:.1f} ({error:.1f}).",
        "oracle: each node answered by the part that knows its class (told which half it is in). none: logits",
        "side by side. affine and joint-head",
        "learn from the 140 training nodes. Padded and parallel agree to "
        f"{max(one['padded_from_parallel'] for row in found for one in row.values() if isinstance(one, dict)):.0e}.",
        "",
        f"| parts | oracle | {' | '.join(SCALINGS)} |",
        f"|---|---|{'---|' * len(SCALINGS)}",
    ]
    for setting in ("whole", *(name for name in SETTINGS if "%" in name)):
        cells = []
        for name in ("oracle", *SCALINGS):
            mean, error = over_seeds([row[setting][name] for row in found], found[0]["error"])
            cells.append(f"{mean:.1f} ({error:.1f})")
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return [*lines, ""]


def draw(rows: dict[str, Any]) -> None:
    """Drop against parameters, a panel a task, a line a kind of source and method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shares = [name for name in SETTINGS if "%" in name]
    figure, panels = plt.subplots(1, len(TASKS), figsize=(3 * len(TASKS), 3.3), constrained_layout=True, sharex=True)
    for panel, task in zip(panels, TASKS, strict=True):
        for number, kind in enumerate(KINDS):
            for method, style in (("mda + refit", "-"), ("mda", "--"), ("random + refit", ":")):
                found = [results(rows, kind, task, share, method) for share in shares]
                if not all(found):
                    continue
                x = [100 * statistics.mean(one["parameters"] for one in each) for each in found]
                y = [statistics.mean(one["drop"] for one in each) for each in found]
                label = f"{kind}, {method}" if panel is panels[0] else None
                panel.plot(x, y, style, color=f"C{number}", marker="o", markersize=3.5, linewidth=1.3, label=label)
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.axhline(1, color="0.8", linewidth=0.8, linestyle="--")
        panel.set_ylim(-2, 15)
        panel.set_title(f"task {task}" + (" (AUROC)" if len(TASKS[task]) == 1 else ""), fontsize=9)
        panel.set_xlabel("% of the source's parameters")
        panel.set_xticks([10, 25, 50])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("points below restricted")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def choose() -> None:
    """What the settings were chosen by, on validation nodes, two seeds."""
    graph, splits = cora()
    assert graph.labels is not None
    for kind, decay, hidden in itertools.product(KINDS, (5e-4, 5e-3), (8, 16, 64)):
        if (kind == "GAT") == (hidden == 8):
            model = trained(kind, SEEDS[0], range(CLASSES), hidden, decay)
            with torch.no_grad():
                right = model(graph.x, graph.edge_index).argmax(1) == graph.labels
            score = 100 * right[splits["val"]].double().mean().item()
            print(f"{kind} decay {decay:g} hidden {hidden}: {score:.1f}", flush=True)
    for kind in KINDS:
        rows = [component_row(kind, seed, "val") for seed in SEEDS[:2]]
        for key in rows[0]:
            if key != "accuracy":
                drop = statistics.mean(row[key]["drop"] for row in rows)
                print(f"{kind} | {key}: {drop:.1f}", flush=True)
    rows = [assembly_row("GCN", seed, "val") for seed in SEEDS[:2]]
    print(json.dumps(rows, indent=1), flush=True)


def main() -> None:
    parser = tables.parser("Graph networks on Cora.")
    parser.add_argument("--choose", action="store_true", help="scores on validation nodes, for choosing settings")
    options = parser.parse_args()
    if options.choose:
        choose()
        return
    tables.run_rows(options, PATH, list(jobs()), work, write)


if __name__ == "__main__":
    main()
