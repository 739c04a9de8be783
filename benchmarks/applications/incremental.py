"""Incremental learning: a class from another source joins a deployed assembly, and one leaves it; nothing is trained.

    python benchmarks/applications/incremental.py              # everything that is not there yet
    python benchmarks/applications/incremental.py --only MNIST # rows whose name contains the text

Full test splits. What is compared with: the deployed source gets one more output and is trained on the new class alone,
with 20 images of each old class, or on all of them, for three epochs; three seeds.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import brickyard as by
import tables
from brickyard.inputs._datasets import ImageData
from brickyard.inputs._preprocessing import preprocess
from brickyard.training._sources import train

C10, C100 = "VGG-16-w25 CIFAR-10", "VGG-16-w25 CIFAR-100"
CASES = {  # the deployed source and its classes; where the new class is from, and which; the old class that leaves
    "ResNet-20 0-4, and 5 of VGG-16-w25 CIFAR-10": ("ResNet-20", range(5), C10, 5, 2),
    "Fashion 0-4, and 7 of MNIST": ("Fashion", range(5), "MNIST", 7, 2),
    "VGG-16-w25 CIFAR-10 0-4, and 3 of CIFAR-100": (C10, range(5), C100, 3, 2),
}
SEEDS = (0, 1, 2)
FEW = 20
EPOCHS, RATE = 3, 0.01
PATH, PAGE = tables.RESULTS / "incremental.json", tables.RESULTS / "incremental.md"
WAYS = ("added", "added, mahalanobis", f"added, lda n={FEW}")
TRAINED = ("new class alone", f"new class and {FEW} of each", "all images")


def part(name: str, task: list[int]) -> by.Component:
    """A component at half of the FLOPs."""
    budget = by.Budget(flops=0.5, factors=False)
    return by.disassemble(tables.source(name).model, tables.relevance(name), task=task, budget=budget, select="damage")


def work(title: str) -> dict[str, Any]:
    """Old classes before and after, the new class, and the same for a trained source."""
    torch.set_num_threads(1)
    name, task, other, k, gone = CASES[title]
    old, new = part(name, list(task)), part(other, [k])
    tests, trains = ([tables.load(n, split) for n in (name, other)] for split in ("test", "train"))
    deployed = by.assemble([old])
    images, labels = mixed(tests, task, k, deployed)
    before = tables.answers(deployed.side_by_side, images)
    found: dict[str, Any] = {"before": shares(before, labels, len(task))}
    for way, scaling in zip(WAYS, ("none", "mahalanobis", "lda"), strict=True):
        runs = []
        for seed in SEEDS if scaling == "lda" else SEEDS[:1]:
            few: dict[str, Any] = {"images": trains, "shots": FEW, "seed": seed} if scaling == "lda" else {}
            more = by.assemble([deployed, new], on_duplicate="rename", scaling=scaling, **few)
            unscaled = tables.answers(more.side_by_side, images)
            assert torch.equal(unscaled[:, : len(task)], before)
            runs.append(shares(tables.answers(more, images), labels, len(task)))
        found[way] = averaged(runs)
    found["bits that differ"] = int((unscaled[:, : len(task)] != before).sum())
    less = by.assemble([more], without=[deployed.classes[gone]], on_duplicate="rename")
    kept = [c for c in range(len(task) + 1) if c != gone]
    found["bits that differ after removal"] = int(
        (tables.answers(less.side_by_side, images) != unscaled[:, kept]).sum()
    )
    found["logits compared"] = before.numel()
    for way in TRAINED:
        runs = []
        for seed in SEEDS:
            model = widened(tables.source(name).model, task)
            train(
                model,
                training_images(way, trains, task, k, name, seed),
                preprocessing=old.manifest.preprocessing,
                epochs=EPOCHS,
                lr=RATE,
                augment=True,
                seed=seed,
            )
            logits = tables.answers(lambda x, m=model: m(preprocess(x, old.manifest.preprocessing)), images)
            runs.append(shares(logits, labels, len(task)))
        found[way] = averaged(runs)
    return found


def alike(images: Tensor) -> Tensor:
    """Images in one size and three colours."""
    return preprocess(images, by.Preprocessing(size=(32, 32), channels=3)).mul(255).round().to(torch.uint8)


def mixed(data: list[ImageData], task: range, k: int, deployed: by.Assembly) -> tuple[Tensor, Tensor]:
    """Test images of the old classes and of the new one, as one deployed model gets them."""
    first, second = data
    own = torch.isin(first.labels, torch.tensor(list(task)))
    images = torch.cat([alike(first.images[own]), alike(second.images[second.labels == k])])
    labels = torch.cat([first.labels[own] - task.start, torch.full((int((second.labels == k).sum()),), len(task))])
    return images, labels


def training_images(way: str, data: list[ImageData], task: range, k: int, name: str, seed: int) -> ImageData:
    first, second = data
    generator = torch.Generator().manual_seed(seed)
    wanted = {TRAINED[0]: 0, TRAINED[1]: FEW, TRAINED[2]: len(first)}[way]
    images = [alike(second.images[second.labels == k])]
    labels = [torch.full((len(images[0]),), len(task))]
    for place, c in enumerate(task):
        pool = torch.nonzero(first.labels == c).flatten()
        chosen = pool[torch.randperm(len(pool), generator=generator)[:wanted]]
        if len(chosen):
            images.append(alike(first.images[chosen]))
            labels.append(torch.full((len(chosen),), place))
    names = tuple(map(str, range(len(task) + 1)))
    return ImageData(torch.cat(images), torch.cat(labels), names, name)


def widened(source: nn.Module, task: range) -> nn.Module:
    """A copy of a source with its outputs of the task and a new one."""
    model = copy.deepcopy(source)
    place, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    wide = nn.Linear(last.in_features, len(task) + 1)
    with torch.no_grad():
        wide.weight[: len(task)], wide.bias[: len(task)] = last.weight[list(task)], last.bias[list(task)]
        wide.weight[len(task)], wide.bias[len(task)] = 0, 0
    home, _, leaf = place.rpartition(".")
    setattr(model.get_submodule(home), leaf, wide)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def shares(logits: Tensor, labels: Tensor, old: int) -> dict[str, list[float]]:
    """Accuracy of the old classes among themselves, of the old among all, and of the new; with standard errors."""
    inside = labels < old
    alone = logits[inside][:, :old].argmax(1) == labels[inside]
    found = {"old among old": alone}
    if logits.shape[1] > old:
        right = logits.argmax(1) == labels
        found |= {"old among all": right[inside], "new": right[~inside]}
    return {key: [100 * v.double().mean().item(), error(v)] for key, v in found.items()}


def error(right: Tensor) -> float:
    return float(100 * right.double().std(correction=0).item() / len(right) ** 0.5)


def averaged(runs: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    found = {}
    for key in runs[0]:
        values = [run[key][0] for run in runs]
        seeds = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        found[key] = [statistics.mean(values), (runs[0][key][1] ** 2 + seeds**2) ** 0.5]
    return found


def jobs() -> Iterator[tuple[str]]:
    for title in CASES:
        yield (title,)


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, CASES)
    lines = [
        "# A class joins, a class leaves",
        "",
        "Written by `python benchmarks/applications/incremental.py`. Full test splits, components at half of the",
        f"FLOPs; accuracy in percent, with one standard error. Trained: {EPOCHS} epochs, three seeds. old among old:",
        "only the old classes compete, so what is lost there is forgotten.",
        "",
        "| deployed, and what joins | way | old among old | old among all | new |",
        "|---|---|---|---|---|",
    ]
    for title, row in ordered.items():
        for way in ("before", *WAYS, *(f"trained: {way}" for way in TRAINED)):
            values = row[way.removeprefix("trained: ")]
            cells = [f"{v[0]:.1f} ({v[1]:.1f})" if (v := values.get(key)) else "" for key in KEYS]
            lines.append(f"| {title} | {way} | {' | '.join(cells)} |")
    lines.append("")
    for title, row in ordered.items():
        lines.append(
            f"- {title}: of {row['logits compared']:,} logits of old classes before scaling, "
            f"{row['bits that differ']} differ in any bit after the class joined, and "
            f"{row['bits that differ after removal']} after one left."
        )
    about = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    PAGE.write_text("\n".join([*lines, "", f"Machine: {about}.", ""]))


KEYS = ("old among old", "old among all", "new")


def main() -> None:
    options = tables.parser("A class joins, a class leaves.").parse_args()
    tables.run_rows(options, PATH, list(jobs()), work, write)


if __name__ == "__main__":
    main()
