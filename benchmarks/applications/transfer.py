"""Transfer: components as feature extractors for tasks that their sources were not trained for.

    python benchmarks/applications/transfer.py                # everything that is not there yet
    python benchmarks/applications/transfer.py --only MNIST
    python benchmarks/applications/transfer.py --workers 2    # rows at once, one thread each

A yard of components, each at half of its source's FLOPs; beside it every source whole, at half of the FLOPs and uncut.
Scores and probes see at most 1,000 training images of the target, and 5 a class for few-shot; the full test split of
the target is scored, and nothing else. Every row is written as soon as it is known; a run that was stopped goes on.
"""

from __future__ import annotations

import base64
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import brickyard as by
import tables
from brickyard.evaluation._probe import features, h_score, log_evidence, probe
from brickyard.inputs._datasets import ImageData

C10 = ("VGG-16-w25 CIFAR-10", "ResNet-20")
GOOGLENET = "GoogLeNet-w25 CIFAR-10"
C100 = "VGG-16-w25 CIFAR-100"
ANIMALS, VEHICLES = (2, 3, 4, 5, 6, 7), (0, 1, 8, 9)
WHOLE = "all classes"
PARTS = {"animals": ANIMALS, "vehicles": VEHICLES, "classes 0-4": tuple(range(5))}
TASKS: dict[str, dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(C10, PARTS),
    C100: {f"classes {k}-{k + 19}": tuple(range(k, k + 20)) for k in range(0, 100, 20)},
    **{
        name: {f"classes {a}-{b}": tuple(range(a, b + 1)) for a, b in ((0, 4), (5, 9), (2, 6))}
        for name in ("MNIST", "Fashion")
    },
    GOOGLENET: PARTS,
}
TARGETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "CIFAR-10 animals": ("ResNet-20", ANIMALS),
    "CIFAR-10 vehicles": ("ResNet-20", VEHICLES),
    **{f"CIFAR-100 {k}-{k + 9}": (C100, tuple(range(k, k + 10))) for k in (0, 10, 20)},
    "MNIST": ("MNIST", tuple(range(10))),
    "Fashion": ("Fashion", tuple(range(10))),
}
MOST, SHOTS, SEEDS = 1000, 5, (0, 1, 2)
DRAWS = 1000  # of the bootstrap
SCORES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "logme": log_evidence,
    "h-score": h_score,
    "h-score, shrunk": lambda x, y: h_score(x, y, shrink=True),
}
GUIDES = {  # what to choose by, the higher the better; the last two are for comparison
    **{name: name for name in SCORES},
    "probe, held out": "held out",
    "count of features": "size",
}
RIVALS = ("same source, 50 %", "same source, uncut", "best LogME, 50 %", "best LogME, uncut")
PATH = tables.RESULTS / "transfer.json"
PAGE = tables.RESULTS / "transfer.md"
PICTURE = tables.RESULTS / "transfer.png"


def extractors() -> Iterator[tuple[str, str, float]]:
    """Sources with a task and a share of the FLOPs."""
    for name, tasks in TASKS.items():
        yield from ((name, task, 0.5) for task in (*tasks, WHOLE))
        yield name, WHOLE, 1.0


def jobs() -> Iterator[tuple[str, str, str, float, str]]:
    for name, task, share in extractors():
        for target, (other, _) in TARGETS.items():
            if tables.SOURCES[name][2] != tables.SOURCES[other][2]:
                yield title(name, task, share, target), name, task, share, target


def title(name: str, task: str, share: float, target: str) -> str:
    return f"{name}, {task}, {share:.0%} | {target}"


@lru_cache(1)
def extractor(name: str, task: str, share: float) -> by.Component:
    """A component, or the whole source as one; norms are folded in, which is faster and agrees to rounding."""
    model = tables.source(name)
    wanted = range(len(model.classes)) if task == WHOLE else TASKS[name][task]
    budget = by.Budget(flops=share)
    return by.disassemble(model.model, tables.relevance(name), task=list(wanted), budget=budget, select="mda").fused()


@cache
def images(target: str, split: str) -> ImageData:
    name, task = TARGETS[target]
    data = tables.load(name, split).renumbered(task)
    return data if split == "test" else data.shuffled(0).subset(range(min(MOST, len(data))))


def few(labels: Tensor, seed: int) -> Tensor:
    """Places of a few images of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == k][:SHOTS] for k in labels.unique().tolist()])


def work(_: str, name: str, task: str, share: float, target: str) -> dict[str, Any]:
    """One extractor and one target: scores on training images, accuracies of probes on the test split."""
    torch.set_num_threads(1)
    part = extractor(name, task, share)
    train, test = images(target, "train"), images(target, "test")
    x, held = features(part, train, 256), features(part, test, 256)
    head = probe(x, train.labels)
    right = head.predict(held) == test.labels
    row: dict[str, Any] = {
        "flops": part.manifest.selection.flops,
        "parameters": part.manifest.selection.parameters,
        "size": x.shape[1],
        "images": len(x),
        "tests": len(right),
        "accuracy": 100 * right.double().mean().item(),
        "held out": head.validated,
        **{score: found(x, train.labels) for score, found in SCORES.items()},
        "few": [],
        "right": base64.b64encode(np.packbits(right.numpy()).tobytes()).decode(),
    }
    for seed in SEEDS:
        chosen = few(train.labels, seed)
        own, labels = x[chosen], train.labels[chosen]
        head = probe(own, labels, seed=seed)
        scores = {score: found(own, labels) for score, found in SCORES.items()}
        accuracy = 100 * head.score(held, test.labels)
        row["few"].append({"accuracy": accuracy, "held out": head.validated, "size": x.shape[1], **scores})
    return row


# -- what the rows say ---------------------------------------------------------------------------------------


class Pool:
    """Extractors of one kind for one target, as far as they have been measured."""

    def __init__(self, rows: dict[str, Any], target: str, kind: Callable[[str, float], bool]) -> None:
        keys = [job[0] for job in jobs() if job[4] == target and kind(job[2], job[3]) and job[0] in rows]
        self.names = [key.split(" | ")[0] for key in keys]
        self.rows = [rows[key] for key in keys]

    def values(self, key: str, seed: int | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([row[key] if seed is None else row["few"][seed][key] for row in self.rows], np.float64)

    def right(self, place: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Whether each test image was answered right."""
        row = self.rows[place]
        bits = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
        return np.unpackbits(bits, count=row["tests"]).astype(np.float64)

    def chosen(self, guide: str, seed: int | None = None) -> int:
        return int(self.values(GUIDES[guide], seed).argmax())


def components(rows: dict[str, Any], target: str) -> Pool:
    return Pool(rows, target, lambda task, share: task != WHOLE)


def halves(rows: dict[str, Any], target: str) -> Pool:
    return Pool(rows, target, lambda task, share: task == WHOLE and share < 1)


def wholes(rows: dict[str, Any], target: str) -> Pool:
    return Pool(rows, target, lambda task, share: task == WHOLE and share == 1)


def ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Places in order from 1; equal values share the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[index]


def spearman(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Rank correlation, and its standard error by drawing the extractors anew."""

    def found(places: np.ndarray[Any, Any]) -> float:
        x, y = ranks(a[places]), ranks(b[places])
        return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")

    random = np.random.default_rng(0)
    draws = [found(random.integers(0, len(a), len(a))) for _ in range(DRAWS)]
    return found(np.arange(len(a))), float(np.nanstd(draws))


def off(values: np.ndarray[Any, Any], groups: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values less the mean of their group."""
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    return values - (sums / counts)[groups]  # type: ignore[no-any-return]


def difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[float, float]:
    """In points, with its standard error, paired over test images."""
    d = 100 * (a - b)
    return float(d.mean()), float(d.std() / len(d) ** 0.5)


def few_difference(pool: Pool, one: Sequence[int], other: Sequence[int]) -> tuple[float, float]:
    """Of few-shot accuracies, places by seed; the error is that of seeds and of test images, as if not paired."""
    a = [pool.values("accuracy", seed)[place] for seed, place in zip(SEEDS, one, strict=True)]
    b = [pool.values("accuracy", seed)[place] for seed, place in zip(SEEDS, other, strict=True)]
    return few_error([x - y for x, y in zip(a, b, strict=True)], [*a, *b], pool.rows[0]["tests"])


def few_error(values: Sequence[float], accuracies: Sequence[float], tests: int) -> tuple[float, float]:
    """A mean over seeds with its standard error: of seeds, and of the test images of these accuracies."""
    variance = 2 * statistics.mean(p * (100 - p) for p in accuracies) / tests if any(values) else 0.0
    return statistics.mean(values), (statistics.variance(values) / len(values) + variance) ** 0.5


def with_error(value: float, error: float, digits: int = 1) -> str:
    return f"{value:.{digits}f} ({error:.{digits}f})"


def gain(value: float, error: float) -> str:
    return f"{value:+.1f} ({error:.1f})"


def mean_of(cells: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean over targets, with its standard error from target to target."""
    values = [value for value, _ in cells]
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def table(header: Sequence[str], lines: dict[str, list[tuple[float, float]]], digits: int) -> Iterator[str]:
    """A line a target, and their means."""
    yield f"| target | {' | '.join(header)} |"
    yield "|---|" + "---|" * len(header)
    for target, cells in lines.items():
        yield f"| {target} | {' | '.join(with_error(*cell, digits) for cell in cells)} |"
    columns = list(zip(*lines.values(), strict=True))
    yield f"| mean | {' | '.join(with_error(*mean_of(column), digits) for column in columns)} |"
    yield ""


def correlations(
    rows: dict[str, Any], targets: Sequence[str], *, few_shot: bool = False, within: bool = False
) -> Iterator[str]:
    """Of what guides a choice with the probe's accuracy; `within` sources: each source's means are taken off."""
    lines: dict[str, list[tuple[float, float]]] = {}
    guides = {name: key for name, key in GUIDES.items() if not (within and key == "size")}  # equal within a source
    for target in targets:
        pool = components(rows, target)
        sources = np.unique([name.split(", ")[0] for name in pool.names], return_inverse=True)[1]
        lines[target] = []
        for key in guides.values():
            if within:
                a, b = (off(pool.values(name), sources) for name in (key, "accuracy"))
                lines[target].append(spearman(a, b))
            elif few_shot:
                found = [spearman(pool.values(key, seed), pool.values("accuracy", seed)) for seed in SEEDS]
                # the same components in each: their errors go together
                lines[target].append(tuple(statistics.mean(column) for column in zip(*found, strict=True)))
            else:
                lines[target].append(spearman(pool.values(key), pool.values("accuracy")))
    yield from table(tuple(guides), lines, 2)


def regrets(rows: dict[str, Any], targets: Sequence[str]) -> Iterator[str]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for target in targets:
        pool = components(rows, target)
        right = [pool.right(place) for place in range(len(pool.rows))]
        best = right[int(pool.values("accuracy").argmax())]
        lines[target] = [difference(best, right[pool.chosen(guide)]) for guide in GUIDES]
        lines[target].append(difference(best, np.mean(right, axis=0)))
    yield from table((*GUIDES, "at random"), lines, 1)


def few_regrets(rows: dict[str, Any], targets: Sequence[str]) -> Iterator[str]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for target in targets:
        pool = components(rows, target)
        best = [int(pool.values("accuracy", seed).argmax()) for seed in SEEDS]
        lines[target] = [few_difference(pool, best, [pool.chosen(guide, seed) for seed in SEEDS]) for guide in GUIDES]
        tops = [pool.values("accuracy", seed).max() for seed in SEEDS]
        means = [pool.values("accuracy", seed).mean() for seed in SEEDS]
        gaps = [top - mean for top, mean in zip(tops, means, strict=True)]
        lines[target].append(few_error(gaps, [*tops, *means], pool.rows[0]["tests"]))
    yield from table((*GUIDES, "at random"), lines, 1)


def against(rows: dict[str, Any], targets: Sequence[str]) -> Iterator[str]:
    """The component with the best LogME against whole sources."""
    yield f"| target | chosen by LogME | MFLOPs | accuracy | {' | '.join(RIVALS)} |"
    yield "|---|---|---|---|" + "---|" * len(RIVALS)
    gaps: list[list[tuple[float, float]]] = []
    for target in targets:
        pool, half, full = (kind(rows, target) for kind in (components, halves, wholes))
        place = pool.chosen("logme")
        row, right = pool.rows[place], pool.right(place)
        name, task, _ = pool.names[place].split(", ")
        error = 100 * right.std() / len(right) ** 0.5
        gaps.append([])
        for other in (half, full):
            same = next(k for k, found in enumerate(other.names) if found.startswith(f"{name}, "))
            gaps[-1].append(difference(right, other.right(same)))
        gaps[-1] += [difference(right, other.right(other.chosen("logme"))) for other in (half, full)]
        cells = " | ".join(gain(*gap) for gap in gaps[-1])
        own = with_error(row["accuracy"], error)
        yield f"| {target} | {name}, {task} | {row['flops'] / 1e6:.0f} | {own} | {cells} |"
    means = [gain(*mean_of(column)) for column in zip(*gaps, strict=True)]
    yield f"| mean | | | | {' | '.join(means)} |"
    yield ""


def few_against(rows: dict[str, Any], targets: Sequence[str]) -> Iterator[str]:
    """The same with few images, which are all that the choice sees."""
    yield f"| target | accuracy | {' | '.join(RIVALS)} |"
    yield "|---|---|" + "---|" * len(RIVALS)
    gaps: list[list[tuple[float, float]]] = []
    for target in targets:
        pool, half, full = (kind(rows, target) for kind in (components, halves, wholes))
        tests = pool.rows[0]["tests"]
        places = [pool.chosen("logme", seed) for seed in SEEDS]
        own = [pool.values("accuracy", seed)[place] for seed, place in zip(SEEDS, places, strict=True)]
        sources = [pool.names[place].split(", ")[0] for place in places]
        others: list[list[float]] = []
        for other in (half, full):
            same = [next(k for k, f in enumerate(other.names) if f.startswith(f"{name}, ")) for name in sources]
            others.append([other.values("accuracy", s)[k] for s, k in zip(SEEDS, same, strict=True)])
        others += [[other.values("accuracy", s)[other.chosen("logme", s)] for s in SEEDS] for other in (half, full)]
        gaps.append([few_error([a - b for a, b in zip(own, o, strict=True)], [*own, *o], tests) for o in others])
        seeds = statistics.variance(own) / len(own) + statistics.mean(p * (100 - p) for p in own) / tests
        cells = " | ".join(gain(*gap) for gap in gaps[-1])
        yield f"| {target} | {with_error(statistics.mean(own), seeds**0.5)} | {cells} |"
    means = [gain(*mean_of(column)) for column in zip(*gaps, strict=True)]
    yield f"| mean | | {' | '.join(means)} |"
    yield ""


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, (job[0] for job in jobs()))
    wanted = [job[0] for job in jobs()]
    ready = [t for t in TARGETS if all(key in ordered for key in wanted if key.endswith(f" | {t}"))]
    if ready:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            PAGE.write_text(page(ordered, ready))
        draw(ordered, ready)


def page(rows: dict[str, Any], targets: Sequence[str]) -> str:
    count = sum(len(tasks) for tasks in TASKS.values())
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    parts: list[str | Iterator[str]] = [
        f"""# Transfer

Written by `python benchmarks/applications/transfer.py`. A yard of {count} components of {len(TASKS)} sources, each at
half of its source's FLOPs (`select="mda"`, refit), as feature extractors for tasks of data sets that the source was not
trained on. Scores and probes see at most {MOST:,} training images of the target, or {SHOTS} a class ({len(SEEDS)}
draws); accuracy is on the target's full test split. Brackets: one standard error.

## Does a score order the components as their probes do?

Spearman's rank correlation with the probe's test accuracy; errors by drawing components anew. The last two columns are
for comparison: the probe's own accuracy on training images that were held out, which costs training it for every
component, and how many features there are. `h-score` is shrunk only where there are fewer images than features;
`brickyard yard rank` shrinks always.

At most {MOST:,} training images:
""",
        correlations(rows, targets),
        f"At most {MOST:,} training images, each source's mean taken off: what scores know within a source:\n",
        correlations(rows, targets, within=True),
        f"{SHOTS} training images per class, mean of the draws:\n",
        correlations(rows, targets, few_shot=True),
        f"""## What a choice costs

Points below the component that turns out best on the test split, with the error of the difference. The best one is
known from test images only, so that even a perfect guide has a little regret. At random: the mean of all components.

At most {MOST:,} training images (errors paired over test images):
""",
        regrets(rows, targets),
        f"{SHOTS} training images per class (errors of draws and of test images, not paired):\n",
        few_regrets(rows, targets),
        f"""## Against whole sources

Accuracy of the probe on the component with the best LogME, and how many points it is above: its source with all classes
kept, cut to the same FLOPs; its source uncut, at twice the FLOPs; and the source with the best LogME among all that are
cut to half of their own FLOPs (more or fewer than the component's), or uncut.

At most {MOST:,} training images:
""",
        against(rows, targets),
        f"{SHOTS} training images per class, which are all that the choice sees:\n",
        few_against(rows, targets),
        f"![LogME and accuracy](transfer.png)\n\nMachine: {about}.\n",
    ]
    return "\n".join(part if isinstance(part, str) else "\n".join(part) for part in parts)


def draw(rows: dict[str, Any], targets: Sequence[str]) -> None:
    """LogME and accuracy, a panel a target, a colour a source."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(TASKS, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    lines = (len(targets) + 1 + 3) // 4
    figure, panels = plt.subplots(lines, 4, figsize=(11, 2.8 * lines), constrained_layout=True, squeeze=False)
    flat = list(panels.flat)
    for panel, target in zip(flat, targets, strict=False):
        for pool, mark, filled in (
            (components(rows, target), "o", True),
            (halves(rows, target), "s", False),
            (wholes(rows, target), "^", False),
        ):
            for name, row in zip(pool.names, pool.rows, strict=True):
                colour = colours[name.split(", ")[0]]
                face = colour if filled else "none"
                panel.plot(row["logme"], row["accuracy"], mark, color=colour, markerfacecolor=face, markersize=5)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(target, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="x", nbins=5)
    for line in panels:
        line[0].set_ylabel("probe's accuracy, %", fontsize=8)
    for panel in flat[: len(targets)]:
        panel.set_xlabel("LogME", fontsize=8)
    for panel in flat[len(targets) :]:
        panel.axis("off")
    legend = flat[len(targets)]
    for name, colour in colours.items():
        legend.plot([], [], "o", color=colour, label=name)
    for mark, label in (("o", "component"), ("s", "source, all classes, 50 %"), ("^", "source, uncut")):
        legend.plot([], [], mark, color="0.3", markerfacecolor="0.3" if mark == "o" else "none", label=label)
    legend.legend(frameon=False, fontsize=8, loc="center")
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def main() -> None:
    options = tables.parser("Components as feature extractors for new tasks.").parse_args()
    tables.run_rows(options, PATH, list(jobs()), work, write)


if __name__ == "__main__":
    main()
