"""Parts of two or three sources, drawn at random: what scalings without labelled images are worth.

    python benchmarks/pairings.py          # sixty pairings, 4,000 test images per data set
    python benchmarks/pairings.py --fresh  # make the rows that are there again; with --only, those alone

Six sources (MNIST, Fashion-MNIST, CIFAR-10 three times, CIFAR-100) give whole parts with 2 to 7 classes of ten, or 5,
20 or 50 of a hundred. Each part knows what it stores about 100 training images per class. Scores are means over
classes. The rule of `auto` was chosen on sixty other pairings, on training images.
"""

from __future__ import annotations

import random
import statistics
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tables
from brickyard.axes._graph import trace
from brickyard.base._statistics import DepthRecord
from brickyard.component._depths import Depths, Looking, find_layers
from brickyard.component._familiarity import Familiarity
from brickyard.component._features import observe, reader
from brickyard.component._statistics import PER_CLASS, statistics_of
from brickyard.inputs._preprocessing import preprocess
from brickyard.network._network import Network
from brickyard.scaling._scale import shortfall
from brickyard.scaling._strategies import FAMILIARITY, INSIDE

PATH: Path = tables.RESULTS / "pairings.json"
DATA = {
    "MNIST": "MNIST",
    "Fashion": "Fashion",
    "ResNet-20": "ResNet-20",
    "ResNet-32": "ResNet-20",
    "VGG-16-w25 CIFAR-10": "ResNet-20",
    "VGG-16-w25 CIFAR-100": "VGG-16-w25 CIFAR-100",
}  # the source whose data set a source was trained on
COUNT, SEED, IMAGES = 60, 79, 4000
WAYS = ("none", "mahalanobis", "energy", "auto", "oracle")
KNOWN = 3000  # training images to take those of a part from

Pairing = tuple[tuple[str, tuple[int, ...]], ...]


class Seen(NamedTuple):
    """Logits and features of a source's images, what they put before layers side by side, and their labels."""

    logits: Tensor
    features: Tensor
    numbers: Tensor
    labels: Tensor


class Part(NamedTuple):
    """What a part stores of its own images."""

    usual: float
    spread: float
    margin: float
    familiarity: Familiarity
    depths: Depths


@cache
def seen(source: str, data: str, split: str) -> Seen:
    """A source's answers to a random part of a data set."""
    path = tables.TRAINED / f"seen-{source}-{data}-{split}.safetensors".replace(" ", "_")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        save_file(_answers(source, data, split)._asdict(), path)
    return Seen(**load_file(path))


def _answers(name: str, data: str, split: str) -> Seen:
    images, how, network = tables.load(data, split), tables.source(name).preprocessing, traced(name)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    order = order[: KNOWN if split == "train" else IMAGES]
    first = preprocess(images.images[order[:1]], how)
    stop, _ = reader(network, first.shape[1])
    found = []
    with torch.inference_mode():
        for some in order.split(200):
            looking = Looking(network, layers(name))
            features, _, logits = observe(network, stop, preprocess(images.images[some], how), looking)
            found.append((logits, features, torch.cat(looking.seen(), 1).float()))
    logits, features, numbers = map(torch.cat, zip(*found, strict=True))
    return Seen(logits, features, numbers, torch.as_tensor(images.labels)[order])


@cache
def traced(name: str) -> Network:
    """A source as a network."""
    source, images = tables.source(name), tables.load(DATA[name], "test")
    return trace(source.model, preprocess(images.images[:2], source.preprocessing)).network


@cache
def layers(name: str) -> list[DepthRecord]:
    """The layers of a source before which parts look."""
    images = tables.load(DATA[name], "test")
    return find_layers(traced(name), preprocess(images.images[:1], tables.source(name).preprocessing)[0].shape)


@cache
def part(source: str, task: tuple[int, ...]) -> Part:
    """What a whole part would store."""
    known = seen(source, DATA[source], "train")
    chosen = torch.cat([(known.labels == k).nonzero().flatten()[:PER_CLASS] for k in task])
    labels = torch.tensor([task.index(k) for k in known.labels[chosen].tolist()])
    stored = statistics_of(known.logits[chosen][:, list(task)].double(), labels, 1.0)
    familiarity = Familiarity.fit(known.features[chosen], labels)
    assert stored.energy is not None
    assert stored.margin is not None
    assert familiarity is not None
    own = layers(source)
    depths = Depths.fit(own, known.numbers[chosen].split([one.size for one in own], 1))
    assert depths is not None
    return Part(*stored.energy, stored.margin, familiarity, depths)


def pairings(seed: int, count: int) -> list[Pairing]:
    """Two or three sources with tasks that share no class of a data set."""
    draw = random.Random(seed)
    found: list[Pairing] = []
    while len(found) < count:
        used: set[tuple[str, int]] = set()
        parts = []
        for source in draw.sample(list(DATA), draw.choice((2, 2, 3))):
            many = source.endswith("CIFAR-100")
            free = [k for k in range(100 if many else 10) if (DATA[source], k) not in used]
            size = draw.choice((5, 20, 50) if many else (2, 3, 5, 7))
            task = tuple(sorted(draw.sample(free, min(size, len(free)))))
            used |= {(DATA[source], k) for k in task}
            parts.append((source, task))
        if all(len(task) > 1 for _, task in parts):
            found.append(tuple(parts))
    return found


def row(title: str, pairing: Pairing) -> dict[str, Any]:
    """Mean accuracy over classes with each scaling, in percent."""
    right = dict.fromkeys(WAYS, 0.0)
    stored = [part(*one) for one in pairing]
    least, total, start = min(one.margin for one in stored), sum(len(task) for _, task in pairing), 0
    for index, (source, task) in enumerate(pairing):
        labels = seen(source, DATA[source], "test").labels
        own = torch.isin(labels, torch.tensor(task))
        wanted = torch.tensor([task.index(k) for k in labels[own].tolist()])
        found = [seen(other, DATA[source], "test") for other, _ in pairing]
        logits = [one.logits[own][:, list(classes)] for one, (_, classes) in zip(found, pairing, strict=True)]
        far = [one.familiarity(answers.features[own]) for one, answers in zip(stored, found, strict=True)]
        inner = [
            one.depths(answers.numbers[own].split([layer.size for layer in one.depths.layers], 1))
            for one, answers in zip(stored, found, strict=True)
        ]
        lost = [
            shortfall(one.logsumexp(1), torch.tensor(known.usual), torch.tensor(known.spread))
            for one, known in zip(logits, stored, strict=True)
        ]
        more = [d + INSIDE * known.spread * deep for d, known, deep in zip(lost, stored, inner, strict=True)]
        ways = {
            "none": logits,
            "mahalanobis": [one - FAMILIARITY * least * d[:, None] for one, d in zip(logits, far, strict=True)],
            "energy": [one - d[:, None] for one, d in zip(logits, lost, strict=True)],
            "auto": [one - d[:, None] for one, d in zip(logits, more, strict=True)],
        }
        answers = {way: torch.cat(found, 1).argmax(1) - start for way, found in ways.items()}
        answers["oracle"] = logits[index].argmax(1)
        for way, said in answers.items():
            right[way] += 100 * len(task) / total * float((said == wanted).double().mean())
        start += len(task)
    return dict(right)


def jobs() -> list[tuple[str, Pairing]]:
    found = pairings(SEED, COUNT)
    names = [" + ".join(f"{source} {len(task)}" for source, task in pairing) for pairing in found]
    return [(f"{index:02}: {name}", pairing) for index, (name, pairing) in enumerate(zip(names, found, strict=True))]


def page(rows: dict[str, Any]) -> str:
    """The page of the results."""
    means = {way: statistics.mean(one[way] for one in rows.values()) for way in WAYS}
    lines = [
        "# Parts of sources drawn at random",
        "",
        "Written by `python benchmarks/pairings.py`: whole parts of two or three of six sources, without an image of",
        "the other side. `none` leaves the logits side by side, `oracle` knows the part; `closed` is the share of the",
        f"gap between these two. {len(rows)} pairings, 4,000 test images per data set, mean accuracy over classes.",
        "",
        "| scaling | accuracy | closed | worst and best against `none` | more than 0.5 below `none` |",
        "|---|---|---|---|---|",
    ]
    for way, mean in means.items():
        gains = [one[way] - one["none"] for one in rows.values()]
        closed = (mean - means["none"]) / (means["oracle"] - means["none"])
        below = sum(gain < -0.5 for gain in gains)
        lines.append(f"| {way} | {mean:.2f} | {closed:.2f} | {min(gains):+.1f}, {max(gains):+.1f} | {below} |")
    told = ", ".join(f"{key} {value}" for key, value in tables.machine().items())
    return "\n".join([*lines, "", f"Machine: {told}.", ""])


def write(rows: dict[str, Any]) -> None:
    ordered = tables.write_rows(PATH, rows, [title for title, _ in jobs()])
    PATH.with_suffix(".md").write_text(page(ordered))


def main() -> None:
    options = tables.parser("Parts of sources drawn at random.").parse_args()
    tables.run_rows(options, PATH, jobs(), row, write)


if __name__ == "__main__":
    main()
