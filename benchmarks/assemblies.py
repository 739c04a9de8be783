"""Assemblies of components, whole and at half of the FLOPs: what each scaling is worth, full test splits.

    python benchmarks/assemblies.py              # everything that is not there yet
    python benchmarks/assemblies.py --only SAME  # rows whose name contains the text
    python benchmarks/assemblies.py --tune       # and the scores after ten epochs of training, which take long

Every row is written as soon as it is known; a run that was stopped goes on where it was. Settings of the scalings were
chosen on training images of sources that were trained for that; here test images are scored, and nothing else.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import brickyard as by
import tables
from brickyard.assembly._labelled import Shared, shared_signals
from brickyard.base._options import TrainingOptions
from brickyard.inputs._datasets import ImageData
from brickyard.scaling._scale import Evidence
from brickyard.scaling._strategies import scale
from brickyard.training._finetune import finetune

Parts = tuple[tuple[str, range], ...]
C10, C100 = "VGG-16-w25 CIFAR-10", "VGG-16-w25 CIFAR-100"
ASSEMBLIES: dict[str, Parts] = {
    "M5F5": tables.M5F5,
    "MF": tables.MF,
    "CF": tables.CF,
    "SAME": tables.SAME,
    "C10 0-2 + C100 0-19": ((C10, range(3)), (C100, range(20))),
    "C10 3-9 + C100 20-69": ((C10, range(3, 10)), (C100, range(20, 70))),
    "C10 0-9 + C100 20-99": ((C10, range(10)), (C100, range(20, 100))),
    "C100 0-49 + C100 50-99": ((C100, range(50)), ("VGG-11-w25 CIFAR-100", range(50, 100))),
}
KIN = ("SAME", "C100 0-49 + C100 50-99")  # both sources know all classes
SHARES = (1.0, 0.5)
SEEDS = (0, 1, 2)
SHOTS = (1, 5, 20)
FEW_SHOT = ("affine", "joint-head", "lda")
GREY = ("M5F5", "MF", "CF")  # with digits, which are not shifted and mirrored
EPOCHS = 10
PATH, PAGE = tables.RESULTS / "assembled.json", tables.RESULTS / "assembled.md"


def title(name: str, share: float) -> str:
    return f"{name} | {'whole' if share == 1 else f'{share:.0%} of the FLOPs'}"


def component(name: str, task: range, share: float, reject: bool) -> by.Component:
    """A part: whole, or what `select="damage"` leaves of it."""
    budget, heal = by.Budget(flops=share, factors=False), "refit" if share < 1 else "none"
    return by.disassemble(
        tables.source(name).model,
        tables.relevance(name),
        task=list(task),
        budget=budget,
        select="damage" if share < 1 else "mda",
        reject=reject,
        heal=heal,  # type: ignore[arg-type]
    )


def row(name: str, share: float) -> dict[str, Any]:
    """One assembly's scores on the full test splits: mean over classes."""
    torch.set_num_threads(1)
    parts = ASSEMBLIES[name]
    voting = name in KIN
    components = [component(*part, share, voting) for part in parts]
    tests = [tables.load(part, "test") for part, _ in parts]
    trains = [tables.load(part, "train") for part, _ in parts]
    sources = [tables.source(part).model for part, _ in parts]
    plain, auto = (by.assemble(components, on_duplicate="rename", scaling=scaling) for scaling in ("none", "auto"))
    scores = by.evaluate(plain, tests, source=sources, latency=False)
    found: dict[str, Any] = {"images": scores.row("assembled").images, "error": scores.row("assembled").class_error}
    found |= {kind: [scores.row(kind).class_accuracy] for kind in ("base", "restricted", "oracle")}
    seen = shared_signals(auto, tests, features=True)
    right = {"none": rights(plain, seen), "auto": rights(auto, seen)}
    for free in ("logit-mean", "mahalanobis"):
        right[free] = rights(scaled(plain, free, Evidence(plain.manifest)), seen)
    for shots in SHOTS:
        for seed in SEEDS:
            few = shared_signals(auto, trains, features=True, shots=shots, seed=seed)
            evidence = few.evidence(auto.manifest)
            for strategy in FEW_SHOT:
                whole = scaled(plain, strategy, evidence)
                found.setdefault(f"{strategy} n={shots}", []).append(accuracy(rights(whole, seen), seen.targets)[0])
    if voting:
        votes = by.assemble(components, scaling="mahalanobis", votes=True)
        again = shared_signals(votes, tests, features=True)
        right["mahalanobis, votes"] = rights(votes, again)
        for shots in SHOTS:
            for seed in SEEDS:
                whole = by.assemble(components, scaling="lda", votes=True, images=trains, shots=shots, seed=seed)
                found.setdefault(f"lda, votes n={shots}", []).append(accuracy(rights(whole, again), seen.targets)[0])
        if share == 1:
            right["both sources averaged"] = averaged(plain, sources, tests, seen)
    for kind, value in right.items():
        found[kind] = [accuracy(value, seen.targets)[0]]
        if kind != "none":
            found[f"gain of {kind}"] = accuracy(value - right["none"], seen.targets)
    return found


def scaled(plain: by.Assembly, strategy: str, evidence: Evidence) -> by.Assembly:
    return plain.with_scaling(*scale(strategy, evidence, {}))


def rights(assembly: by.Assembly, seen: Shared) -> Tensor:
    return (assembly.scaled(*seen.signals).argmax(1) == seen.targets).double()


def accuracy(right: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean over classes of a value an image, in points, with one standard error."""
    values = [right[targets == k] for k in targets.unique().tolist()]
    means = [float(value.mean()) for value in values]
    error = math.sqrt(sum(float(value.var(correction=0)) / len(value) for value in values)) / len(values)
    return 100 * statistics.mean(means), 100 * error


def averaged(plain: by.Assembly, sources: list[torch.nn.Module], tests: list[ImageData], seen: Shared) -> Tensor:
    """Both whole sources, all their classes competing, log-probabilities averaged."""
    total = torch.zeros(len(seen.targets), len(plain.manifest.parts[0].source.classes), dtype=torch.float64)
    start = 0
    for index, part in enumerate(plain.components()):
        chosen = torch.isin(tests[index].labels, torch.tensor(part.manifest.task))
        images = tests[index].images[chosen]
        for batch in images.split(256):
            with torch.inference_mode():
                for source in sources:
                    found = source(part.preprocess(batch)).double().log_softmax(1)
                    total[start : start + len(batch)] += found
            start += len(batch)
    labels = torch.cat([test.labels[chosen] for test, chosen in zip(tests, seen.chosen, strict=True)])
    return (total.argmax(1) == labels).double()


def tuned(name: str, share: float) -> dict[str, Any]:
    """After ten epochs on the training images, all parts together: the paper's second score."""
    torch.set_num_threads(1)
    parts = ASSEMBLIES[name]
    components = [component(*part, share, False) for part in parts]
    whole = by.assemble(components, on_duplicate="rename")
    before = rights(whole, seen := shared_signals(whole, [tables.load(p, "test") for p, _ in parts], features=False))
    trains = [tables.load(p, "train") for p, _ in parts]
    training = TrainingOptions(epochs=EPOCHS, augment=name not in GREY)
    whole = finetune(whole, trains, training=training, validation=0)
    after = rights(whole, shared_signals(whole, [tables.load(p, "test") for p, _ in parts], features=False))
    how = "finetune, shifted and mirrored" if training.augment else "finetune"
    return {"before": accuracy(before, seen.targets), "after": accuracy(after, seen.targets), "how": how}


def jobs(tune: bool) -> Iterator[tuple[str, str, float]]:
    for share in SHARES:
        for name in ASSEMBLIES:
            yield title(name, share), name, share
    if tune:
        for name in ASSEMBLIES:
            yield f"{title(name, 0.5)} | tuned", name, 0.5


def work(key: str, name: str, share: float) -> dict[str, Any]:
    return tuned(name, share) if key.endswith("tuned") else row(name, share)


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, (job[0] for job in jobs(True)))
    PAGE.write_text(page(ordered))


def cell(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" ({statistics.stdev(values) / math.sqrt(len(values)):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def page(rows: dict[str, Any]) -> str:
    free = ("base", "restricted", "oracle", "none", "auto", "logit-mean", "mahalanobis", "mahalanobis, votes")
    few = [f"{strategy} n={shots}" for shots in SHOTS for strategy in FEW_SHOT]
    lines = [
        "# Assemblies",
        "",
        "Written by `python benchmarks/assemblies.py`. Full test splits; accuracy in percent, mean over classes, and",
        "one standard error from the test images. Parts are whole, or cut by measured damage to half of the FLOPs of",
        "their source, and refitted. base: the sources with all their classes; restricted: with those of their task;",
        "oracle: each image sent to the right part. No scaling in this table has seen an image of the other side:",
        "",
        f"| assembly | parts | {' | '.join(free)} | error |",
        f"|---|---|{'---|' * (len(free) + 1)}",
    ]
    main = {key: value for key, value in rows.items() if not key.endswith("tuned")}
    for key, value in main.items():
        cells = [cell(value.get(column)) for column in free]
        lines.append(f"| {key} | {' | '.join(cells)} | {value['error']:.1f} |")
    lines += [
        "",
        "What label-free scalings gain over side by side, paired over images, with one standard error:",
        "",
        "| assembly | parts | auto | mahalanobis | mahalanobis, votes |",
        "|---|---|---|---|---|",
    ]
    for key, value in main.items():
        gains = [value.get(f"gain of {kind}") for kind in ("auto", "mahalanobis", "mahalanobis, votes")]
        lines.append(f"| {key} | {' | '.join(f'{g[0]:+.2f} ({g[1]:.2f})' if g else '' for g in gains)} |")
    lines += [
        "",
        "With n labelled training images per class: mean over three draws, with its standard error.",
        "",
        f"| assembly | parts | none | {' | '.join(few)} | oracle |",
        f"|---|---|{'---|' * (len(few) + 2)}",
    ]
    for key, value in main.items():
        cells = [cell(value.get(column)) for column in ("none", *few, "oracle")]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    for key, value in main.items():
        if "mahalanobis, votes" in value:
            found = ", ".join(f"{cell(value[f'lda, votes n={shots}'])} with n={shots}" for shots in SHOTS)
            lines += ["", f"{key.replace(' | ', ', ')}: lda with votes: {found}."]
        if "both sources averaged" in value:
            both = cell(value["both sources averaged"])
            lines += [f"Both whole sources averaged over all their classes: {both}."]
    after = {key: value for key, value in rows.items() if key.endswith("tuned")}
    if after:
        lines += [
            "",
            f"Side by side, before and after {EPOCHS} epochs of training on the training images (the paper's second",
            "score), parts at half of the FLOPs:",
            "",
            "| assembly | before | after | trained by |",
            "|---|---|---|---|",
        ]
        for key, value in after.items():
            cells = [f"{value[when][0]:.1f} ({value[when][1]:.1f})" for when in ("before", "after")]
            lines.append(f"| {key.split(' | ')[0]} | {' | '.join(cells)} | {value['how']} |")
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def main() -> None:
    parser = tables.parser("What each scaling is worth.")
    parser.add_argument("--tune", action="store_true", help="train assemblies for ten epochs too")
    options = parser.parse_args()
    tables.run_rows(options, PATH, list(jobs(options.tune)), work, write)


if __name__ == "__main__":
    main()
